//! Forwards questions about names outside the cluster to the host's resolvers: UDP first, TCP if the answer
//! is truncated. Called by `server`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// Maximum time to wait for the answer of one resolver.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time without an answer after which the next resolver is asked as well.
const STAGGER: Duration = Duration::from_millis(250);
/// Maximum size of a UDP answer that is requested, in bytes (RFC 9715).
const PAYLOAD: u16 = 1232;

/// Why no resolver gave an answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host has no resolvers configured.
    #[error("the host has no resolvers")]
    NoUpstream,
    /// The last resolver failed with this I/O error.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The last resolver's answer was malformed.
    #[error("malformed answer")]
    Malformed,
    /// The last resolver did not answer in time.
    #[error("no answer within {PATIENCE:?}")]
    Deadline,
}

/// The host's resolvers; the one that answered last is asked first.
#[derive(Debug, Default)]
pub struct Upstreams {
    resolvers: Vec<SocketAddr>,
    /// Index of the resolver that answered last.
    preferred: AtomicUsize,
}

impl Upstreams {
    /// Uses these resolvers; the first one is preferred until another one answers instead.
    pub fn new(resolvers: Vec<SocketAddr>) -> Self {
        Self { resolvers, preferred: AtomicUsize::new(0) }
    }

    /// Reads the first three `nameserver` lines of a resolv.conf. Leaves out this server's own
    /// address, so that a host that uses the cluster's DNS does not make it ask itself. A missing
    /// file yields no resolvers.
    pub fn from_resolv_conf(path: &Path, own: Ipv4Addr) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let addresses = text.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
        });
        let others = addresses.filter(|address| *address != IpAddr::V4(own));
        Self::new(others.take(3).map(|address| SocketAddr::new(address, 53)).collect())
    }

    /// Asks the preferred resolver, and the next one when all before it have failed or have not answered for
    /// [`STAGGER`]; returns the first answer. A dead resolver delays one question by `STAGGER`, and the
    /// following ones not at all.
    pub async fn ask(&self, name: &Name, kind: RecordType) -> Result<Message, Error> {
        let count = self.resolvers.len();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut waiting = (0..count).map(|offset| (first + offset) % count);
        let mut asked = FuturesUnordered::new();
        let mut last = Error::NoUpstream;
        loop {
            let next = waiting.next();
            if let Some(index) = next {
                let resolver = self.resolvers[index];
                asked.push(async move {
                    let answer = timeout(PATIENCE, ask_one(resolver, name, kind)).await;
                    (index, answer.unwrap_or(Err(Error::Deadline)))
                });
            }
            // Once every resolver has been asked, those still pending get their full time.
            let limit = if next.is_some() { STAGGER } else { PATIENCE };
            match timeout(limit, asked.next()).await {
                Ok(Some((index, Ok(message)))) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(message);
                }
                Ok(Some((_, Err(error)))) => last = error,
                Ok(None) => return Err(last),
                Err(_) => {}
            }
        }
    }
}

async fn ask_one(resolver: SocketAddr, name: &Name, kind: RecordType) -> Result<Message, Error> {
    let id: u16 = rand::random();
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD);
    message.edns = Some(edns);
    let question = message.to_vec().map_err(|_| Error::Malformed)?;
    let answer = over_udp(resolver, &question, id, name).await?;
    if answer.metadata.truncation { over_tcp(resolver, &question, id).await } else { Ok(answer) }
}

async fn over_udp(resolver: SocketAddr, question: &[u8], id: u16, name: &Name) -> Result<Message, Error> {
    let any: SocketAddr = match resolver {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(question).await?;
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Ignores answers to other questions, which are late or forged.
        if let Ok(message) = Message::from_vec(&buffer[..length])
            && message.metadata.id == id
            && message.queries.first().is_some_and(|query| query.name() == name)
        {
            return Ok(message);
        }
    }
}

async fn over_tcp(resolver: SocketAddr, question: &[u8], id: u16) -> Result<Message, Error> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(question.len()).map_err(|_| Error::Malformed)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    let message = Message::from_vec(&answer).map_err(|_| Error::Malformed)?;
    if message.metadata.id == id { Ok(message) } else { Err(Error::Malformed) }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    /// Starts a resolver that answers every question with "no such name" and counts the questions.
    async fn resolver() -> (SocketAddr, std::sync::Arc<AtomicUsize>) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (address, count) = (socket.local_addr().unwrap(), std::sync::Arc::new(AtomicUsize::new(0)));
        let counted = count.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                counted.fetch_add(1, Ordering::Relaxed);
                let mut message = Message::from_vec(&buffer[..length]).unwrap();
                message.metadata.message_type = MessageType::Response;
                socket.send_to(&message.to_vec().unwrap(), client).await.unwrap();
            }
        });
        (address, count)
    }

    #[tokio::test]
    async fn a_resolver_that_is_silent_is_asked_once_and_then_no_longer_first() {
        // A socket that is never read from: questions to it get no answer, as from a dead host.
        let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (alive, asked) = resolver().await;
        let upstreams = Upstreams::new(vec![silent.local_addr().unwrap(), alive]);
        let name = Name::from_str("example.org.").unwrap();
        for _ in 0..5 {
            upstreams.ask(&name, RecordType::A).await.unwrap();
        }
        assert_eq!(asked.load(Ordering::Relaxed), 5);
        let mut buffer = [0; 4096];
        let mut lost = 0;
        while silent.try_recv(&mut buffer).is_ok() {
            lost += 1;
        }
        assert_eq!(lost, 1, "only the first question waited for the silent one");
    }

    #[tokio::test]
    async fn with_silent_resolvers_alone_each_has_its_full_time_and_the_question_ends() {
        let silent = [
            UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(),
            UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(),
        ];
        let upstreams = Upstreams::new(silent.iter().map(|socket| socket.local_addr().unwrap()).collect());
        let name = Name::from_str("example.org.").unwrap();
        assert!(matches!(upstreams.ask(&name, RecordType::A).await, Err(Error::Deadline)));
        assert!(matches!(
            Upstreams::new(Vec::new()).ask(&Name::root(), RecordType::A).await,
            Err(Error::NoUpstream)
        ));
    }

    #[test]
    fn resolvers_come_from_resolv_conf_without_ourselves() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "search x\nnameserver 10.96.0.10\nnameserver 9.9.9.9 # quad\n").unwrap();
        let found = Upstreams::from_resolv_conf(file.path(), Ipv4Addr::new(10, 96, 0, 10));
        assert_eq!(found.resolvers, ["9.9.9.9:53".parse().unwrap()]);
    }
}
