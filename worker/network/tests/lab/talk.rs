//! Servers and clients for pods and hosts of the tests: a server answers with its own name and the
//! client's address that it sees.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

use super::Namespace;

const PATIENCE: Duration = Duration::from_secs(3);

/// An answer: the server's name, and the client's address as the server saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub server: String,
    pub client: Ipv4Addr,
}

fn parse(text: &str) -> io::Result<Heard> {
    let mut words = text.split_whitespace();
    let (server, client) = (words.next(), words.next().and_then(|ip| ip.parse().ok()));
    match (server, client) {
        (Some(server), Some(client)) => Ok(Heard { server: server.into(), client }),
        _ => Err(io::Error::other(format!("odd answer {text:?}"))),
    }
}

impl Namespace {
    /// Serves TCP and UDP on `port`, answering with `name`.
    pub fn serve(&self, name: &str, port: u16) {
        let (tcp, udp) = self.run(async move {
            let any = (Ipv4Addr::UNSPECIFIED, port);
            (TcpListener::bind(any).await.unwrap(), UdpSocket::bind(any).await.unwrap())
        });
        let name_of_tcp = name.to_string();
        self.spawn(async move {
            while let Ok((mut stream, peer)) = tcp.accept().await {
                let text = format!("{name_of_tcp} {}\n", peer.ip());
                // Fails if the client has disconnected, which does not matter to the server.
                let _gone = stream.write_all(text.as_bytes()).await;
            }
        });
        let name_of_udp = name.to_string();
        self.spawn(async move {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer).await {
                let _gone = udp.send_to(format!("{name_of_udp} {}", peer.ip()).as_bytes(), peer).await;
            }
        });
    }

    /// Sends a request over TCP.
    pub fn ask(&self, ip: Ipv4Addr, port: u16) -> io::Result<Heard> {
        self.ask_from(None, ip, port)
    }

    /// Sends a request over TCP from the given source address.
    pub fn ask_from(&self, source: Option<Ipv4Addr>, ip: Ipv4Addr, port: u16) -> io::Result<Heard> {
        self.run(async move {
            let work = async {
                let socket = tokio::net::TcpSocket::new_v4()?;
                if let Some(source) = source {
                    socket.bind((source, 0).into())?;
                }
                let mut stream: TcpStream = socket.connect(SocketAddr::from((ip, port))).await?;
                let mut text = String::new();
                stream.read_to_string(&mut text).await?;
                parse(&text)
            };
            timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        })
    }

    /// Sends a request over UDP from a new port.
    pub fn ask_udp(&self, ip: Ipv4Addr, port: u16) -> io::Result<Heard> {
        self.run(async move {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
            udp_exchange(&socket, ip, port).await
        })
    }
}

/// Sends one request over `socket` and waits for its answer.
pub async fn udp_exchange(socket: &UdpSocket, ip: Ipv4Addr, port: u16) -> io::Result<Heard> {
    socket.send_to(b"?", (ip, port)).await?;
    let mut buffer = [0; 64];
    let received = timeout(Duration::from_secs(1), socket.recv_from(&mut buffer)).await;
    let (length, _) = received.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    parse(&String::from_utf8_lossy(&buffer[..length]))
}
