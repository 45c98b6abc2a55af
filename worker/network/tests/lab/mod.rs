//! Hosts and pods for the tests: network namespaces named `nt-...` on one machine, connected by a bridge in a
//! namespace of its own. Each namespace has a thread with an async runtime, on which its code runs. Dropping
//! a [`Lab`] removes everything. Needs root.

pub mod fake_api;
pub mod talk;

use std::{
    future::Future,
    net::Ipv4Addr,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use worker_network::{Balancer, NetworkConfig, NodeNetwork, PortMapping};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Returns whether the tests can run; prints the reason if not.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: network namespaces need root");
    }
    root
}

/// Runs a program and returns its output; panics if it fails.
pub fn sh(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect(program);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Waits until `condition` returns a value; panics with `what` after ten seconds.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within ten seconds: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A network namespace and a thread that runs in it.
pub struct Namespace {
    pub name: String,
    handle: tokio::runtime::Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    pub fn new(label: &str) -> Self {
        let name = format!("nt-{}-{}-{label}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        sh("ip", &["netns", "add", &name]);
        let (stop, stopped) = oneshot::channel();
        let (ready, handle) = mpsc::channel();
        let path = format!("/run/netns/{name}");
        let thread = std::thread::spawn(move || {
            setns(std::fs::File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            ready.send(runtime.handle().clone()).unwrap();
            let _dropped = runtime.block_on(stopped);
            runtime.shutdown_timeout(Duration::from_secs(2));
        });
        let handle = handle.recv().unwrap();
        let namespace = Self { name, handle, stop: Some(stop), thread: Some(thread) };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    pub fn path(&self) -> PathBuf {
        format!("/run/netns/{}", self.name).into()
    }

    /// Runs a future in the namespace and waits for it.
    pub fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.handle.spawn(async move { done.send(work.await) });
        result.recv_timeout(Duration::from_secs(60)).expect("work in a namespace panicked or hangs")
    }

    /// Starts a future in the namespace.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(work);
    }

    pub fn ip(&self, args: &[&str]) -> String {
        sh("ip", &[&["-n", &self.name], args].concat())
    }

    pub fn exec(&self, args: &[&str]) -> String {
        sh("ip", &[&["netns", "exec", &self.name], args].concat())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
        sh("ip", &["netns", "del", &self.name]);
    }
}

/// A host that runs the network under test.
pub struct Host {
    pub namespace: Namespace,
    pub ip: Ipv4Addr,
    pub network: Arc<NodeNetwork>,
    pub config: NetworkConfig,
    shutdown: CancellationToken,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A pod: a network namespace attached to a host.
pub struct Pod {
    pub namespace: Namespace,
    pub ip: Ipv4Addr,
    pub name: String,
}

/// A local network of hosts, and the API server that they follow.
pub struct Lab {
    lan: Namespace,
    pub api: fake_api::FakeApi,
    pub masters: watch::Sender<Vec<std::net::SocketAddr>>,
    dir: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
        let lan = Namespace::new("lan");
        lan.ip(&["link", "add", "br0", "type", "bridge"]);
        lan.ip(&["link", "set", "br0", "up"]);
        // Set in this bridge's namespace only: frames between hosts must bypass the hosts' nftables rules.
        lan.exec(&["sh", "-c", "echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables || true"]);
        Self {
            lan,
            api: fake_api::FakeApi::default(),
            masters: watch::Sender::new(vec![]),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// Makes a host without Ephor: a client outside the cluster, with no default route.
    pub fn outsider(&self, last: u8) -> (Namespace, Ipv4Addr) {
        let namespace = Namespace::new(&format!("h{last}"));
        let ip = Ipv4Addr::new(172, 31, 9, last);
        self.cable(&namespace, ip);
        (namespace, ip)
    }

    fn cable(&self, namespace: &Namespace, ip: Ipv4Addr) {
        let port = format!("h{}", ip.octets()[3]);
        let peer = ["peer", "name", "eth0", "netns", &namespace.name];
        self.lan.ip(&[&["link", "add", port.as_str(), "type", "veth"], &peer[..]].concat());
        self.lan.ip(&["link", "set", &port, "master", "br0", "up"]);
        namespace.ip(&["addr", "add", &format!("{ip}/24"), "dev", "eth0"]);
        namespace.ip(&["link", "set", "eth0", "up"]);
    }

    /// Returns the configuration of host `last`; call it before the host starts.
    pub fn config(&self, last: u8) -> NetworkConfig {
        let state_dir = self.dir.path().join(format!("n{last}"));
        std::fs::create_dir_all(&state_dir).unwrap();
        let mut config = NetworkConfig::new(format!("n{last}"), Ipv4Addr::new(172, 31, 9, last), state_dir);
        if let Some(dns) = &mut config.dns {
            dns.resolv_conf = self.dir.path().join("resolv.conf");
        }
        config
    }

    /// Sets the content of the hosts' resolv.conf; call it before the hosts start.
    pub fn resolv_conf(&self, text: &str) {
        std::fs::write(self.dir.path().join("resolv.conf"), text).unwrap();
    }

    /// Starts a worker with podCIDR 10.42.LAST.0/24; waits until pods can be attached.
    pub fn worker(&self, last: u8) -> Host {
        self.worker_with(last, |_| None)
    }

    /// Starts a worker with a balancer, which runs in the worker's namespace.
    pub fn worker_with(
        &self,
        last: u8,
        balancer: impl FnOnce(CancellationToken) -> Option<Arc<Balancer>> + Send + 'static,
    ) -> Host {
        let config = self.config(last);
        self.api.put_node(&config.node_name, config.node_ip, &format!("10.42.{last}.0/24"));
        let host = self.host(config, balancer);
        let network = host.network.clone();
        eventually("the pod network is ready", || network.pod_network().ready().borrow().clone());
        host
    }

    /// Starts a master without pods.
    pub fn master(&self, last: u8) -> Host {
        let ip = Ipv4Addr::new(172, 31, 9, last);
        self.masters.send_modify(|masters| masters.push((ip, 6443).into()));
        self.host(self.config(last).without_pods(), |_| None)
    }

    fn host(
        &self,
        config: NetworkConfig,
        balancer: impl FnOnce(CancellationToken) -> Option<Arc<Balancer>> + Send + 'static,
    ) -> Host {
        let namespace = Namespace::new(&config.node_name);
        self.cable(&namespace, config.node_ip);
        let shutdown = CancellationToken::new();
        let (api, masters, stop) = (self.api.clone(), self.masters.subscribe(), shutdown.clone());
        let started = config.clone();
        let network = namespace.run(async move {
            let balancer = balancer(stop.clone());
            NodeNetwork::start(started, api.client(), masters, balancer, stop).await
        });
        let network = network.unwrap();
        Host { namespace, ip: config.node_ip, network, config, shutdown }
    }
}

impl Host {
    /// Attaches a new pod.
    pub fn pod(&self, name: &str) -> Pod {
        self.pod_with_ports(name, &[])
    }

    pub fn pod_with_ports(&self, name: &str, ports: &[PortMapping]) -> Pod {
        let namespace = Namespace::new(name);
        let (network, path) = (self.network.clone(), namespace.path());
        let (sandbox, ports) = (name.to_string(), ports.to_vec());
        let ips = self
            .namespace
            .run(async move { network.pod_network().attach(&sandbox, &path, &ports).await })
            .unwrap();
        let std::net::IpAddr::V4(ip) = ips[0] else { panic!("{ips:?}") };
        Pod { namespace, ip, name: name.into() }
    }

    pub fn detach(&self, name: &str) {
        let (network, sandbox) = (self.network.clone(), name.to_string());
        self.namespace.run(async move { network.pod_network().detach(&sandbox).await }).unwrap();
    }

    /// Stops the network as at a regular end of the process.
    pub fn stop(&self) {
        self.shutdown.cancel();
    }
}
