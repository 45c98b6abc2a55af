//! Tests cluster DNS in real namespaces: pods ask over UDP and TCP, with and without an upstream resolver.

#[allow(dead_code, reason = "each test file uses another part of the lab")]
mod lab;

use std::{net::Ipv4Addr, str::FromStr, time::Duration};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use lab::{Lab, Namespace, eventually, is_root};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use worker_network::{PortMapping, Protocol};

const DNS: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 10), 53);

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    message
}

fn ask(from: &Namespace, name: &str, kind: RecordType) -> Option<Message> {
    let question = question(name, kind);
    from.run(async move {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
        socket.connect(DNS).await.ok()?;
        socket.send(&question.to_vec().ok()?).await.ok()?;
        let mut buffer = [0; 4096];
        let length = timeout(Duration::from_secs(3), socket.recv(&mut buffer)).await.ok()?.ok()?;
        Message::from_vec(&buffer[..length]).ok().filter(|answer| answer.metadata.id == question.metadata.id)
    })
}

fn ask_tcp(from: &Namespace, name: &str, kind: RecordType) -> Message {
    let question = question(name, kind).to_vec().unwrap();
    from.run(async move {
        let mut stream = TcpStream::connect(DNS).await.unwrap();
        stream
            .write_all(&[&(question.len() as u16).to_be_bytes(), question.as_slice()].concat())
            .await
            .unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        Message::from_vec(&answer).unwrap()
    })
}

fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

#[test]
fn a_pod_with_host_port_53_does_not_take_over_the_cluster_dns_of_its_node() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    lab.api.put_service("web", "10.96.0.7", "TCP", 80, json!({}));
    let one = lab.worker(1);
    let port = |protocol| PortMapping { protocol, host_ip: None, host_port: 53, container_port: 8080 };
    let taker = one.pod_with_ports("taker", &[port(Protocol::Udp), port(Protocol::Tcp)]);
    taker.namespace.serve("taker", 8080);
    let pod = one.pod("a");
    let web = "web.default.svc.cluster.local.";
    for from in [&pod.namespace, &one.namespace] {
        let answer = eventually("an answer", || ask(from, web, RecordType::A));
        assert_eq!(data(&answer), ["10.96.0.7"]);
        assert_eq!(data(&ask_tcp(from, web, RecordType::A)), ["10.96.0.7"]);
    }
    // A pod's host port still gets the packets to the host's own address.
    assert_eq!(pod.namespace.ask(one.ip, 53).unwrap().server, "taker");
}

#[test]
fn pods_resolve_services_over_udp_and_tcp() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    lab.api.put_service("web", "10.96.0.7", "TCP", 80, json!({}));
    lab.api.put_service("many", "None", "TCP", 80, json!({}));
    let ends: Vec<_> = (2..102).map(|last| (Ipv4Addr::new(10, 42, 7, last), "n7")).collect();
    lab.api.put_endpoints("many", "TCP", 8080, &ends);
    // A DNS Service like that of other clusters may exist; this node's server still answers.
    lab.api.put_service("kube-dns", "10.96.0.10", "UDP", 53, json!({}));
    let one = lab.worker(1);
    let pod = one.pod("a");
    let web = "web.default.svc.cluster.local.";
    let answer = eventually("an answer", || {
        ask(&pod.namespace, web, RecordType::A).filter(|a| a.metadata.response_code == ResponseCode::NoError)
    });
    assert_eq!(data(&answer), ["10.96.0.7"]);
    assert!(answer.metadata.authoritative && answer.answers[0].ttl <= 30);
    assert_eq!(data(&ask_tcp(&pod.namespace, web, RecordType::A)), ["10.96.0.7"]);
    assert_eq!(
        data(&ask(&one.namespace, web, RecordType::A).unwrap()),
        ["10.96.0.7"],
        "from the node itself"
    );

    let empty = ask(&pod.namespace, web, RecordType::AAAA).unwrap();
    assert_eq!((empty.metadata.response_code, empty.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(empty.authorities[0].record_type(), RecordType::SOA);
    let absent = ask(&pod.namespace, "nope.default.svc.cluster.local.", RecordType::A).unwrap();
    assert_eq!(absent.metadata.response_code, ResponseCode::NXDomain);

    // An answer too large for UDP is truncated there and complete over TCP.
    let many = "many.default.svc.cluster.local.";
    let cut = ask(&pod.namespace, many, RecordType::A).unwrap();
    assert!(cut.metadata.truncation && cut.answers.len() < 100);
    assert_eq!(ask_tcp(&pod.namespace, many, RecordType::A).answers.len(), 100);

    // Changes are visible at once.
    lab.api.put_service("new", "10.96.0.99", "TCP", 80, json!({}));
    eventually("the new name", || {
        ask(&pod.namespace, "new.default.svc.cluster.local.", RecordType::A).filter(|a| !a.answers.is_empty())
    });
}

#[test]
fn other_names_are_forwarded_and_fail_quickly_without_a_resolver() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let (resolver, ip) = lab.outsider(53);
    let socket = resolver.run(async move { UdpSocket::bind((ip, 53)).await.unwrap() });
    resolver.spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let name = question.queries[0].name().clone();
            let mut answer = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
            answer.add_query(question.queries[0].clone());
            answer.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 1))));
            socket.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
        }
    });
    lab.resolv_conf(&format!("nameserver 10.96.0.10\nnameserver {ip}\n"));
    lab.api.put_service(
        "out",
        "",
        "TCP",
        80,
        json!({ "type": "ExternalName", "externalName": "example.org" }),
    );
    let one = lab.worker(1);
    let pod = one.pod("a");
    let answer = eventually("an answer", || ask(&pod.namespace, "example.org.", RecordType::A));
    assert_eq!(data(&answer), ["192.0.2.1"]);
    let alias = eventually("the alias", || {
        ask(&pod.namespace, "out.default.svc.cluster.local.", RecordType::A).filter(|a| a.answers.len() == 2)
    });
    assert_eq!(data(&alias), ["example.org.", "192.0.2.1"]);

    lab.resolv_conf("");
    let two = lab.worker(2);
    let started = std::time::Instant::now();
    let failed = eventually("an answer", || ask(&two.namespace, "example.org.", RecordType::A));
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    assert!(started.elapsed() < Duration::from_secs(3));
}
