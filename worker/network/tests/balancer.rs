//! The balancer against masters that die, stop answering, and come back. On loopback, without root.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

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
use worker_network::{Balancer, BalancerConfig, Probe, ReadyzProbe, TcpProbe};

const READY: u8 = 0;
const UNREADY: u8 = 1;
/// Accepts, as the kernel does for a stopped process, and never answers.
const STOPPED: u8 = 2;

/// A pretended API server: answers `/readyz` over TLS.
struct Master {
    address: SocketAddr,
    mode: Arc<AtomicU8>,
    stop: CancellationToken,
}

/// A CA that all pretended masters share.
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
            stop: CancellationToken::new(),
        };
        let (acceptor, mode, stop) = (authority.acceptor.clone(), master.mode.clone(), master.stop.clone());
        tokio::spawn(async move {
            while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
                let (acceptor, mode, stop) = (acceptor.clone(), mode.clone(), stop.clone());
                tokio::spawn(async move { stop.run_until_cancelled(serve(acceptor, stream, mode)).await });
            }
        });
        master
    }

    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, mode: Arc<AtomicU8>) -> Option<()> {
    while mode.load(Ordering::SeqCst) == STOPPED {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut stream = acceptor.accept(stream).await.ok()?;
    let mut buffer = [0; 1024];
    loop {
        let length = stream.read(&mut buffer).await.ok().filter(|length| *length > 0)?;
        while mode.load(Ordering::SeqCst) == STOPPED {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(buffer[..length].starts_with(b"GET /"));
        let status =
            if mode.load(Ordering::SeqCst) == READY { "200 OK" } else { "500 Internal Server Error" };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok");
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}

struct Stage {
    masters: watch::Sender<Vec<SocketAddr>>,
    balancer: Arc<Balancer>,
    front: SocketAddr,
    stop: CancellationToken,
    authority: Authority,
}

async fn stage(authority: Authority, addresses: Vec<SocketAddr>) -> Stage {
    let (masters, following) = watch::channel(addresses);
    let stop = CancellationToken::new();
    let probe = ReadyzProbe::new(authority.client.clone(), "kubernetes".try_into().unwrap());
    // Patient, so that a busy machine does not make a master look dead.
    let config = BalancerConfig { probe_timeout: Duration::from_secs(1), ..BalancerConfig::default() };
    let balancer = Balancer::start(config, following, Arc::new(probe), stop.clone());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let front = listener.local_addr().unwrap();
    tokio::spawn(balancer.clone().serve(listener, stop.clone()));
    Stage { masters, balancer, front, stop, authority }
}

impl Stage {
    /// One request over a new connection through the balancer.
    async fn ask(&self) -> Result<(), String> {
        let probe = ReadyzProbe::new(self.authority.client.clone(), "kubernetes".try_into().unwrap());
        let asked = timeout(Duration::from_secs(3), probe.probe(self.front)).await;
        asked.map_err(|_| "no answer".to_string())?.map_err(|error| error.to_string())
    }

    async fn until_health(&self, address: SocketAddr, healthy: bool) -> Duration {
        let started = Instant::now();
        while !self.balancer.health().contains(&(address, healthy)) {
            assert!(started.elapsed() < Duration::from_secs(10), "{address} never became {healthy}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        started.elapsed()
    }
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
async fn a_stopped_master_is_noticed_and_its_connections_are_reset() {
    let authority = authority();
    let (one, two) = (Master::start(&authority, None).await, Master::start(&authority, None).await);
    let stage = stage(authority, vec![one.address, two.address]).await;
    stage.ask().await.unwrap();
    // Connections take turns: three for each master.
    let mut open = Vec::new();
    for _ in 0..6 {
        open.push(TcpStream::connect(stage.front).await.unwrap());
    }
    one.set(STOPPED);
    let noticed = stage.until_health(one.address, false).await;
    println!("a stopped master was noticed after {noticed:?}");
    assert!(noticed < Duration::from_secs(4), "{noticed:?}");
    let mut resets = 0;
    for stream in &mut open {
        let mut byte = [0];
        match timeout(Duration::from_millis(500), stream.read(&mut byte)).await {
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => resets += 1,
            Ok(other) => panic!("{other:?}"),
            Err(_) => {}
        }
    }
    assert_eq!(resets, 3, "those to the stopped master, and no others");
    for _ in 0..10 {
        stage.ask().await.unwrap();
    }
    one.set(READY);
    stage.until_health(one.address, true).await;
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
    // With none ready the balancer still passes connections on, and does not cut those it has.
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

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (_masters, following) = watch::channel(vec![listener.local_addr().unwrap()]);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // A probe closes at once; that is fine.
                let _closed = stream.write_all(b"x").await;
                let _until_the_end = stream.read(&mut [0]).await;
            });
        }
    });
    let stop = CancellationToken::new();
    let config = BalancerConfig { max_connections: 2, ..BalancerConfig::default() };
    let balancer = Balancer::start(config, following, Arc::new(TcpProbe), stop.clone());
    let front = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = front.local_addr().unwrap();
    tokio::spawn(balancer.serve(front, stop));
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(TcpStream::connect(address).await.unwrap());
    }
    let mut byte = [0];
    for stream in &mut streams[..2] {
        timeout(Duration::from_secs(2), stream.read_exact(&mut byte)).await.unwrap().unwrap();
    }
    let third = timeout(Duration::from_millis(200), streams[2].read_exact(&mut byte)).await;
    assert!(third.is_err(), "the third waits");
    drop(streams.remove(0));
    timeout(Duration::from_secs(2), streams[1].read_exact(&mut byte)).await.unwrap().unwrap();
}
