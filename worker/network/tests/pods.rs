//! Tests that pods, nodes and masters reach each other, over the overlay and on one node, in real namespaces.

#[allow(dead_code, reason = "each test file uses another part of the lab")]
mod lab;

use std::net::Ipv4Addr;

use lab::{Lab, Namespace, eventually, is_root};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use worker_network::{PortMapping, Protocol, cleanup, cni};

/// Sends `size` bytes from one namespace to another and returns how many arrived.
fn transfer(from: &Namespace, to: &Namespace, ip: Ipv4Addr, size: usize) -> usize {
    let listener = to.run(async move { tokio::net::TcpListener::bind((ip, 9000)).await.unwrap() });
    from.spawn(async move {
        let mut stream = tokio::net::TcpStream::connect((ip, 9000)).await.unwrap();
        stream.write_all(&vec![7; size]).await.unwrap();
    });
    to.run(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut data = Vec::new();
        stream.read_to_end(&mut data).await.unwrap();
        data.len()
    })
}

#[test]
fn pods_reach_each_other_on_one_node_and_across_nodes_with_their_own_addresses() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let (one, two) = (lab.worker(1), lab.worker(2));
    let (a, b, c) = (one.pod("a"), one.pod("b"), two.pod("c"));
    assert_eq!(a.ip, Ipv4Addr::new(10, 42, 1, 2));
    for pod in [&a, &b, &c] {
        pod.namespace.serve(&pod.name, 8080);
    }
    // The second node was added after the first one's overlay was up.
    eventually("node 1 knows node 2", || a.namespace.ask(c.ip, 8080).ok());
    for (from, to) in [(&a, &b), (&b, &a), (&a, &c), (&c, &a), (&c, &b)] {
        let heard = from.namespace.ask(to.ip, 8080).unwrap();
        assert_eq!((heard.server, heard.client), (to.name.clone(), from.ip));
        assert_eq!(from.namespace.ask_udp(to.ip, 8080).unwrap().client, from.ip);
    }
    assert_eq!(transfer(&a.namespace, &c.namespace, c.ip, 8 << 20), 8 << 20);
    assert_eq!(transfer(&a.namespace, &b.namespace, b.ip, 8 << 20), 8 << 20);
    // Nodes reach pods, local and remote ones, and pods reach nodes.
    assert_eq!(one.namespace.ask(a.ip, 8080).unwrap().client, Ipv4Addr::new(10, 42, 1, 1));
    assert_eq!(one.namespace.ask(c.ip, 8080).unwrap().client, Ipv4Addr::new(10, 42, 1, 1));
    one.namespace.serve("n1", 8081);
    assert_eq!(c.namespace.ask(one.ip, 8081).unwrap().client, two.ip, "leaves the pod network masqueraded");
    // Uses a source address to which the overlay has no route back.
    one.namespace.ask_from(Some(one.ip), c.ip, 8080).unwrap();
}

#[test]
fn a_master_without_pods_reaches_pods_and_is_answered() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let (master, worker) = (lab.master(9), lab.worker(1));
    let pod = worker.pod("a");
    pod.namespace.serve("a", 8080);
    let heard = eventually("the master knows the worker", || master.namespace.ask(pod.ip, 8080).ok());
    assert_eq!(heard.client, Ipv4Addr::new(252, 31, 9, 9));
    assert_eq!(transfer(&master.namespace, &pod.namespace, pod.ip, 4 << 20), 4 << 20);
    // A service reached from the master, whose packets must be routed without a default route.
    lab.api.put_service("web", "10.96.0.7", "TCP", 80, serde_json::json!({}));
    lab.api.put_endpoints("web", "TCP", 8080, &[(pod.ip, "n1")]);
    eventually("the service answers", || master.namespace.ask(Ipv4Addr::new(10, 96, 0, 7), 80).ok());
}

#[test]
fn a_node_that_goes_away_or_changes_its_address_is_followed() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let one = lab.worker(1);
    let routes = || one.namespace.ip(&["route"]);
    lab.api.put_node("n7", Ipv4Addr::new(172, 31, 9, 7), "10.42.7.0/24");
    eventually("a route to the new node", || routes().contains("10.42.7.0/24 via 252.31.9.7").then_some(()));
    lab.api.put_node("n7", Ipv4Addr::new(172, 31, 9, 8), "10.42.7.0/24");
    eventually("the route follows the address", || {
        let fdb = one.namespace.exec(&["bridge", "fdb", "show", "dev", "ephor.vx"]);
        let moved = fdb.contains("172.31.9.8") && !fdb.contains("172.31.9.7");
        (moved && routes().contains("10.42.7.0/24 via 252.31.9.8")).then_some(())
    });
    lab.api.delete("nodes", "n7");
    eventually("nothing of it is left", || {
        let neighbours = one.namespace.ip(&["neigh", "show", "dev", "ephor.vx"]);
        (!routes().contains("10.42.7.0") && !neighbours.contains("252.31.9.8")).then_some(())
    });
}

#[test]
fn a_pod_address_that_is_gone_is_refused_at_once_and_detaching_is_idempotent() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let one = lab.worker(1);
    let (a, b) = (one.pod("a"), one.pod("b"));
    b.namespace.serve("b", 8080);
    assert!(a.namespace.ask(b.ip, 8080).is_ok());
    one.detach("b");
    one.detach("b");
    let error = a.namespace.ask(b.ip, 8080).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");
    // Attaching again after a crash gives the same address and a working interface.
    let network = one.network.clone();
    let path = a.namespace.path();
    let again =
        one.namespace.run(async move { network.pod_network().attach("a", &path, &[]).await }).unwrap();
    assert_eq!(again, [std::net::IpAddr::V4(a.ip)]);
    one.namespace.ask(a.ip, 1).unwrap_err();
    // Addresses that belong to no live sandbox are released.
    let network = one.network.clone();
    let freed =
        one.namespace.run(async move { network.pod_network().collect_garbage(&Default::default()).await });
    assert_eq!(freed.unwrap(), 1);
    assert!(!one.namespace.ip(&["link"]).contains("epod"));
}

#[test]
fn host_ports_lead_to_pods_from_everywhere() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let (one, two) = (lab.worker(1), lab.worker(2));
    let (outside, _) = lab.outsider(200);
    let port = |protocol, host_ip: Option<&str>, host_port| PortMapping {
        protocol,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        host_port,
        container_port: 8080,
    };
    // Three pods share a port, distinguished by host address and by protocol.
    let a = one.pod_with_ports("a", &[port(Protocol::Tcp, Some("127.0.0.1"), 5000)]);
    let b = one.pod_with_ports("b", &[port(Protocol::Tcp, Some("172.31.9.1"), 5000)]);
    let c = one.pod_with_ports("c", &[port(Protocol::Udp, None, 5000), port(Protocol::Tcp, None, 5001)]);
    let far = two.pod("far");
    for pod in [&a, &b, &c] {
        pod.namespace.serve(&pod.name, 8080);
    }
    assert_eq!(one.namespace.ask(Ipv4Addr::LOCALHOST, 5000).unwrap().server, "a");
    assert_eq!(one.namespace.ask_from(Some(one.ip), Ipv4Addr::LOCALHOST, 5000).unwrap().server, "a");
    assert_eq!(outside.ask(one.ip, 5000).unwrap().server, "b");
    assert_eq!(far.namespace.ask(one.ip, 5000).unwrap().server, "b");
    assert_eq!(one.namespace.ask(one.ip, 5000).unwrap().server, "b");
    assert_eq!(outside.ask_udp(one.ip, 5000).unwrap().server, "c");
    assert_eq!(
        c.namespace.ask(one.ip, 5001).unwrap().server,
        "c",
        "a pod reaches itself through its host port"
    );
    assert!(b.namespace.ask(Ipv4Addr::LOCALHOST, 5000).is_err());
    one.detach("b");
    assert!(outside.ask(one.ip, 5000).is_err());
    assert_eq!(outside.ask(one.ip, 5001).unwrap().server, "c");
}

#[test]
fn a_restarted_node_keeps_its_pods_connected_before_it_knows_the_cluster() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let one = lab.worker(1);
    let pod = one.pod("a");
    pod.namespace.serve("a", 8080);
    // Starts the same network again with the same state, as after a restart, while the API is down.
    let down = lab::fake_api::FakeApi::default();
    down.set_down(true);
    let (again, masters) = (one.config.clone(), lab.masters.subscribe());
    let network = one.namespace.run(async move {
        worker_network::NodeNetwork::start(again, down.client(), masters, None, Default::default()).await
    });
    assert!(network.unwrap().pod_network().ready().borrow().is_some(), "the podCIDR is remembered");
    assert_eq!(one.namespace.ask(pod.ip, 8080).unwrap().server, "a");
}

#[test]
fn cleanup_removes_what_a_running_node_made() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let plain = Namespace::new("plain");
    let one = lab.worker(1);
    let _pod = one.pod("a");
    eventually("services are routed", || {
        one.namespace.exec(&["nft", "list", "tables"]).contains("ephor-proxy").then_some(())
    });
    let config = one.config.clone();
    let network = one.network.clone();
    one.stop();
    one.namespace.run(async move { network.stopped().await });
    assert!(one.namespace.ip(&["link"]).contains("ephor.vx"), "stopping leaves pods connected");
    one.namespace.run(async move { cleanup(&config).await }).unwrap();
    let links = one.namespace.ip(&["-o", "link"]);
    assert!(!links.contains("ephor") && !links.contains("epod"), "{links}");
    assert_eq!(one.namespace.exec(&["nft", "list", "ruleset"]), "");
    assert!(!one.namespace.ip(&["route"]).contains("10."));
    assert_eq!(one.namespace.ip(&["addr", "show", "lo"]), plain.ip(&["addr", "show", "lo"]));
}

#[test]
fn the_cni_plugin_attaches_as_the_runtime_does() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let one = lab.worker(1);
    let sandbox = Namespace::new("cni");
    let input = serde_json::json!({
        "cniVersion": "1.0.0", "name": "ephor", "type": "ephor-cni", "stateDir": one.config.state_dir,
        "runtimeConfig": { "portMappings": [
            { "hostPort": 7000, "containerPort": 8080, "protocol": "tcp", "hostIP": "" }
        ] },
    });
    let path = sandbox.path().display().to_string();
    let run = |command: &str, input: &serde_json::Value| {
        let environment = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "box"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", path.as_str()),
        ];
        let environment = environment.map(|(k, v)| (k.to_string(), v.to_string())).into();
        let input = input.to_string();
        // The plugin starts its own async runtime and therefore runs on its own thread, in the host's
        // namespace.
        one.namespace.run(async move {
            tokio::task::spawn_blocking(move || cni::run(&environment, &input)).await.unwrap()
        })
    };
    let result: serde_json::Value = serde_json::from_str(&run("ADD", &input).unwrap()).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.42.1.2/32");
    sandbox.serve("box", 8080);
    assert_eq!(one.namespace.ask(one.ip, 7000).unwrap().server, "box");
    run("CHECK", &input).unwrap();
    run("DEL", &input).unwrap();
    run("DEL", &input).unwrap();
    run("CHECK", &input).unwrap_err();
    assert!(one.namespace.ask(one.ip, 7000).is_err());
}
