//! Tests the balancer against masters that die, stop answering and come back. On loopback, without root.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use proto_api::silent_masters;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::PrivateKeyDer},
};
use tokio_util::sync::CancellationToken;
use worker_network::{Balancer, BalancerConfig, ListenerLimits, MasterProbe, ReadyzProbe, TcpProbe};

const READY: u8 = 0;
const UNREADY: u8 = 1;
/// State in which the kernel accepts connections, as for a stopped process, but nothing answers.
const STOPPED: u8 = 2;

/// A fake API server: answers `/readyz` over TLS.
#[derive(Clone)]
struct Master {
    address: SocketAddr,
    mode: Arc<AtomicU8>,
    /// Value of the header [`silent_masters::HEADER`] in its answers.
    silent: Arc<Mutex<String>>,
    /// Number of answers the server has given.
    answers: Arc<AtomicUsize>,
    stop: CancellationToken,
}

/// A CA that all fake masters share.
struct Authority {
    acceptor: TlsAcceptor,
    client: Arc<ClientConfig>,
}

fn authority() -> Authority {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["kubernetes".into()]).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Authority { acceptor: TlsAcceptor::from(Arc::new(server)), client: Arc::new(client) }
}

impl Master {
    async fn start(authority: &Authority, address: Option<SocketAddr>) -> Self {
        let listener = TcpListener::bind(address.unwrap_or((Ipv4Addr::LOCALHOST, 0).into())).await.unwrap();
        let master = Self {
            address: listener.local_addr().unwrap(),
            mode: Arc::default(),
            silent: Arc::default(),
            answers: Arc::default(),
            stop: CancellationToken::new(),
        };
        let (acceptor, stop, served) = (authority.acceptor.clone(), master.stop.clone(), master.clone());
        tokio::spawn(async move {
            while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
                let (acceptor, master, stop) = (acceptor.clone(), served.clone(), stop.clone());
                tokio::spawn(async move { stop.run_until_cancelled(serve(acceptor, stream, master)).await });
            }
        });
        master
    }

    /// Makes this master report `master` as silent from now on.
    fn calls_silent(&self, master: &Self) {
        *self.silent.lock().unwrap() = master.address.to_string();
    }

    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, master: Master) -> Option<()> {
    let stopped = || master.mode.load(Ordering::SeqCst) == STOPPED;
    while stopped() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut stream = acceptor.accept(stream).await.ok()?;
    let mut buffer = [0; 1024];
    loop {
        let length = stream.read(&mut buffer).await.ok().filter(|length| *length > 0)?;
        while stopped() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(buffer[..length].starts_with(b"GET /"));
        let ready = master.mode.load(Ordering::SeqCst) == READY;
        let status = if ready { "200 OK" } else { "500 Internal Server Error" };
        let silent = master.silent.lock().unwrap().clone();
        let header = silent_masters::HEADER;
        let answer = format!("HTTP/1.1 {status}\r\n{header}: {silent}\r\ncontent-length: 2\r\n\r\nok");
        stream.write_all(answer.as_bytes()).await.ok()?;
        master.answers.fetch_add(1, Ordering::SeqCst);
    }
}

struct Stage {
    masters: watch::Sender<Vec<SocketAddr>>,
    balancer: Arc<Balancer>,
    front: SocketAddr,
    stop: CancellationToken,
    authority: Authority,
}

/// Returns a configuration with long timeouts, so that a busy machine does not make a master look late.
fn patient() -> BalancerConfig {
    BalancerConfig { probe_timeout: Duration::from_secs(1), ..BalancerConfig::default() }
}

async fn stage(authority: Authority, addresses: Vec<SocketAddr>) -> Stage {
    stage_with(patient(), authority, addresses).await
}

async fn stage_with(config: BalancerConfig, authority: Authority, addresses: Vec<SocketAddr>) -> Stage {
    let (masters, following) = watch::channel(addresses);
    let stop = CancellationToken::new();
    let probe = ReadyzProbe::new(authority.client.clone(), "kubernetes".try_into().unwrap());
    let balancer = Balancer::start(config, following, Arc::new(probe), stop.clone());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let front = listener.local_addr().unwrap();
    tokio::spawn(balancer.clone().serve(listener, ListenerLimits::HOST, stop.clone()));
    Stage { masters, balancer, front, stop, authority }
}

impl Stage {
    /// Sends one request over a new connection through the balancer.
    async fn ask(&self) -> Result<(), String> {
        let probe = ReadyzProbe::new(self.authority.client.clone(), "kubernetes".try_into().unwrap());
        let asked = timeout(Duration::from_secs(3), probe.probe(self.front, Duration::from_secs(1))).await;
        asked.map_err(|_| "no answer".to_string())?.map(drop).map_err(|error| error.to_string())
    }

    async fn until_health(&self, address: SocketAddr, healthy: bool) -> Duration {
        let started = Instant::now();
        while !self.balancer.health().contains(&(address, healthy)) {
            assert!(started.elapsed() < Duration::from_secs(10), "{address} never became {healthy}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        started.elapsed()
    }

    /// Opens six connections; they are distributed in turn, three to each of two masters.
    async fn open_six(&self) -> Vec<TcpStream> {
        let mut open = Vec::new();
        for _ in 0..6 {
            open.push(TcpStream::connect(self.front).await.unwrap());
        }
        open
    }
}

/// Returns how many of the connections are reset within `limit`; panics if any receives data or ends
/// otherwise.
async fn resets_within(open: &mut [TcpStream], limit: Duration) -> usize {
    let outcomes = futures::future::join_all(open.iter_mut().map(async |stream| {
        let mut byte = [0];
        timeout(limit, stream.read(&mut byte)).await
    }));
    let mut resets = 0;
    for outcome in outcomes.await {
        match outcome {
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => resets += 1,
            Ok(other) => panic!("{other:?}"),
            Err(_) => {}
        }
    }
    resets
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_master_costs_no_request() {
    let authority = authority();
    let (one, two) = (Master::start(&authority, None).await, Master::start(&authority, None).await);
    let stage = stage(authority, vec![one.address, two.address]).await;
    for _ in 0..10 {
        stage.ask().await.unwrap();
    }
    one.stop.cancel();
    for _ in 0..20 {
        stage.ask().await.unwrap();
    }
    stage.until_health(one.address, false).await;
    let again = Master::start(&stage.authority, Some(one.address)).await;
    stage.until_health(again.address, true).await;
    stage.ask().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_is_late_keeps_its_connections_and_gets_no_new_ones() {
    let authority = authority();
    let (one, two) = (Master::start(&authority, None).await, Master::start(&authority, None).await);
    let stage = stage(authority, vec![one.address, two.address]).await;
    stage.ask().await.unwrap();
    let mut open = stage.open_six().await;
    one.set(STOPPED);
    stage.until_health(one.address, false).await;
    // The late master gets no new connections: all of these go to the other one.
    for _ in 0..10 {
        stage.ask().await.unwrap();
    }
    assert_eq!(resets_within(&mut open, Duration::from_secs(2)).await, 0);
    // No probes have piled up: the balancer waited for the late answer instead of repeating the probe.
    let before = one.answers.load(Ordering::SeqCst);
    one.set(READY);
    stage.until_health(one.address, true).await;
    assert!(one.answers.load(Ordering::SeqCst) - before <= 3, "requests had piled up");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_a_stopped_master_are_reset_once_the_leader_calls_it_silent() {
    let authority = authority();
    let (one, two) = (Master::start(&authority, None).await, Master::start(&authority, None).await);
    let stage = stage(authority, vec![one.address, two.address]).await;
    stage.ask().await.unwrap();
    let mut open = stage.open_six().await;
    one.set(STOPPED);
    two.calls_silent(&one);
    stage.until_health(one.address, false).await;
    let started = Instant::now();
    let mut resets = 0;
    while resets < 3 && started.elapsed() < Duration::from_secs(10) {
        resets = resets_within(&mut open, Duration::from_millis(500)).await;
    }
    assert_eq!(resets, 3, "those to the stopped master, and no others");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_process_and_unanswered_traffic_are_noticed_between_two_probes() {
    let authority = authority();
    let (one, two) = (Master::start(&authority, None).await, Master::start(&authority, None).await);
    // With this interval no master is probed a second time during the test without a reason.
    let config = BalancerConfig { probe_interval: Duration::from_secs(600), ..patient() };
    let stage = stage_with(config, authority, vec![one.address, two.address]).await;
    while one.answers.load(Ordering::SeqCst) == 0 || two.answers.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    one.stop.cancel();
    stage.until_health(one.address, false).await;
    two.set(STOPPED);
    let mut open = TcpStream::connect(stage.front).await.unwrap();
    open.write_all(b"a request").await.unwrap();
    stage.until_health(two.address, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_says_it_is_not_ready_gets_nothing_new() {
    let authority = authority();
    let (one, two) = (Master::start(&authority, None).await, Master::start(&authority, None).await);
    let stage = stage(authority, vec![one.address, two.address]).await;
    one.set(UNREADY);
    stage.until_health(one.address, false).await;
    for _ in 0..10 {
        stage.ask().await.unwrap();
    }
    // While no master is ready, the balancer still passes connections on and keeps the existing ones.
    let mut open = TcpStream::connect(stage.front).await.unwrap();
    two.set(UNREADY);
    stage.until_health(two.address, false).await;
    assert_eq!(stage.ask().await.unwrap_err(), "not ready: status 500");
    let mut byte = [0];
    assert!(timeout(Duration::from_millis(300), open.read(&mut byte)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn masters_come_and_go_and_an_empty_list_is_ignored() {
    let authority = authority();
    let (one, two) = (Master::start(&authority, None).await, Master::start(&authority, None).await);
    let stage = stage(authority, vec![one.address]).await;
    stage.ask().await.unwrap();
    stage.masters.send_replace(vec![two.address]);
    stage.until_health(two.address, true).await;
    one.stop.cancel();
    stage.ask().await.unwrap();
    assert_eq!(stage.balancer.health().len(), 1);
    stage.masters.send_replace(vec![]);
    stage.ask().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_master_at_all_clients_are_reset_and_shutdown_is_orderly() {
    let authority = authority();
    let gone = Master::start(&authority, None).await;
    gone.stop.cancel();
    let stage = stage(authority, vec![gone.address]).await;
    stage.until_health(gone.address, false).await;
    let exchange = async {
        let mut byte = [0];
        TcpStream::connect(stage.front).await?.read(&mut byte).await
    };
    let outcome = timeout(Duration::from_secs(3), exchange).await.unwrap();
    assert_eq!(outcome.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    stage.stop.cancel();
    let started = Instant::now();
    while TcpStream::connect(stage.front).await.is_ok() {
        assert!(started.elapsed() < Duration::from_secs(5), "still listening");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Starts a master that sends a byte on each connection and keeps it open, with a balancer in front.
async fn greeting_master() -> (Arc<Balancer>, CancellationToken) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (masters, following) = watch::channel(vec![listener.local_addr().unwrap()]);
    tokio::spawn(async move {
        let _masters = masters;
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // A probe closes its connection at once, so that writing may fail.
                let _closed = stream.write_all(b"x").await;
                let _until_the_end = stream.read(&mut [0]).await;
            });
        }
    });
    let stop = CancellationToken::new();
    (Balancer::start(BalancerConfig::default(), following, Arc::new(TcpProbe), stop.clone()), stop)
}

async fn front(balancer: &Arc<Balancer>, limits: ListenerLimits, stop: &CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(balancer.clone().serve(listener, limits, stop.clone()));
    address
}

async fn greeted(stream: &mut TcpStream) {
    let mut byte = [0];
    timeout(Duration::from_secs(5), stream.read_exact(&mut byte)).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded_for_each_listener_alone() {
    let (balancer, stop) = greeting_master().await;
    let pods = front(&balancer, ListenerLimits { total: 2, per_client: None }, &stop).await;
    let agent = front(&balancer, ListenerLimits { total: 2, per_client: None }, &stop).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(TcpStream::connect(pods).await.unwrap());
    }
    for stream in &mut streams[..2] {
        greeted(stream).await;
    }
    let mut byte = [0];
    let third = timeout(Duration::from_millis(200), streams[2].read_exact(&mut byte)).await;
    assert!(third.is_err(), "the third waits");
    // Connections used up by pods do not reduce those of the agent's listener.
    greeted(&mut TcpStream::connect(agent).await.unwrap()).await;
    drop(streams.remove(0));
    greeted(&mut streams[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_address_has_a_bound_of_its_own() {
    let (balancer, stop) = greeting_master().await;
    let address = front(&balancer, ListenerLimits { total: 10, per_client: Some(2) }, &stop).await;
    // Opens a connection and waits for the master's byte; a reset may arrive before connecting is complete.
    let from = async |source: [u8; 4]| {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::from(source), 0).into())?;
        let mut stream = socket.connect(address).await?;
        stream.read_exact(&mut [0]).await?;
        std::io::Result::Ok(stream)
    };
    let within = async |source| timeout(Duration::from_secs(5), from(source)).await.unwrap();
    let open = [within([127, 0, 0, 2]).await.unwrap(), within([127, 0, 0, 2]).await.unwrap()];
    let refused = within([127, 0, 0, 2]).await;
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    within([127, 0, 0, 3]).await.unwrap();
    drop(open);
    // Connections can be opened again once the balancer has noticed the ends of the earlier ones.
    let started = Instant::now();
    while within([127, 0, 0, 2]).await.is_err() {
        assert!(started.elapsed() < Duration::from_secs(10), "its places are never given back");
    }
}
