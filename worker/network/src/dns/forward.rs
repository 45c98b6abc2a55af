//! Asks the host's resolvers for names outside the cluster: UDP first, TCP when the answer does not fit.
//! Called by `server`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// How long one resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Largest UDP answer that is asked for (RFC 9715).
const PAYLOAD: u16 = 1232;

/// No resolver gave an answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host has none.
    #[error("the host has no resolvers")]
    NoUpstream,
    /// The last one failed so.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It answered nonsense, or something else.
    #[error("malformed answer")]
    Malformed,
    /// It did not answer.
    #[error("no answer within {PATIENCE:?}")]
    Deadline,
}

/// The host's resolvers.
#[derive(Clone, Debug, Default)]
pub struct Upstreams {
    resolvers: Vec<SocketAddr>,
}

impl Upstreams {
    /// These resolvers, in this order.
    pub fn new(resolvers: Vec<SocketAddr>) -> Self {
        Self { resolvers }
    }

    /// The first three `nameserver` lines of a resolv.conf. This server's own address is left out: a
    /// host that uses the cluster's DNS must not make it ask itself. A file that is not there has none.
    pub fn from_resolv_conf(path: &Path, own: Ipv4Addr) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let addresses = text.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
        });
        let others = addresses.filter(|address| *address != IpAddr::V4(own));
        Self { resolvers: others.take(3).map(|address| SocketAddr::new(address, 53)).collect() }
    }

    /// Asks one resolver after the other until one answers.
    pub async fn ask(&self, name: &Name, kind: RecordType) -> Result<Message, Error> {
        let mut last = Error::NoUpstream;
        for resolver in &self.resolvers {
            match timeout(PATIENCE, ask_one(*resolver, name, kind)).await {
                Ok(Ok(message)) => return Ok(message),
                Ok(Err(error)) => last = error,
                Err(_) => last = Error::Deadline,
            }
        }
        Err(last)
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
        // Anything else is late or forged.
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
    use super::*;

    #[test]
    fn resolvers_come_from_resolv_conf_without_ourselves() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "search x\nnameserver 10.96.0.10\nnameserver 9.9.9.9 # quad\n").unwrap();
        let found = Upstreams::from_resolv_conf(file.path(), Ipv4Addr::new(10, 96, 0, 10));
        assert_eq!(found.resolvers, ["9.9.9.9:53".parse().unwrap()]);
    }
}
