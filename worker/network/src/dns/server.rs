//! Serves DNS over UDP and TCP through `hickory-server` on the cluster DNS address, which the loopback
//! interface of every node has. Started by `network.rs`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode},
    rr::{DNSClass, Name, Record, RecordType},
};
use hickory_server::{
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo, Server},
    zone_handler::MessageResponseBuilder,
};
use rand::seq::SliceRandom;
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use super::{Answer, Error, Upstreams, Zone, ZoneResult};
use crate::{cluster_state::ClusterState, config::DnsConfig, netlink::Netlink};

/// Maximum idle time of a TCP client.
const TCP_IDLE: Duration = Duration::from_secs(5);
/// Maximum number of answers queued on one TCP connection.
const TCP_BUFFER: usize = 32;
/// Maximum number of questions that wait for the host's resolvers at the same time.
const FORWARDED: usize = 512;
/// Maximum size of a UDP answer in bytes (RFC 9715), even if the client accepts more.
const PAYLOAD: u16 = 1232;
/// Maximum number of aliases inside the cluster that are followed for one question.
const ALIASES: usize = 4;

/// Serves DNS until shutdown. `bind` is the address to listen on: the configured one,
/// which is first added to `lo`.
pub async fn run(
    config: &DnsConfig,
    zone: Zone,
    state: ClusterState,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let netlink = Netlink::open()?;
    if let Some(lo) = netlink.link_index("lo").await? {
        netlink.set_up(lo, None).await?;
        // Host scope prevents the kernel from choosing the address as the source of other traffic.
        netlink.ensure_address(lo, config.address, true).await?;
    }
    let address = SocketAddr::from((config.address, config.port));
    let listen = |source| Error::Listen { address, source };
    let udp = UdpSocket::bind(address).await.map_err(listen)?;
    let tcp = TcpListener::bind(address).await.map_err(listen)?;
    let upstreams = Upstreams::from_resolv_conf(&config.resolv_conf, config.address);
    let handler = Handler { zone, state, upstreams, forwarded: Arc::new(Semaphore::new(FORWARDED)) };
    let mut server = Server::new(handler);
    server.register_socket(udp);
    server.register_listener(tcp, TCP_IDLE, TCP_BUFFER);
    tracing::info!(%address, "cluster DNS is serving");
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        result = server.block_until_done() => if let Err(error) = result {
            return Err(listen(std::io::Error::other(error.to_string())));
        },
    }
    if let Err(error) = server.shutdown_gracefully().await {
        tracing::debug!(%error, "cluster DNS did not end in order");
    }
    Ok(())
}

struct Handler {
    zone: Zone,
    state: ClusterState,
    upstreams: Upstreams,
    forwarded: Arc<Semaphore>,
}

/// Content of the response.
struct Reply {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    authority: Vec<Record>,
    additional: Vec<Record>,
}

impl Reply {
    fn failure(code: ResponseCode) -> Self {
        Self { code, authoritative: false, answers: vec![], authority: vec![], additional: vec![] }
    }

    fn forwarded(message: Message) -> Self {
        Self {
            code: message.metadata.response_code,
            authoritative: false,
            answers: message.answers,
            authority: message.authorities,
            additional: message.additionals,
        }
    }
}

impl Handler {
    async fn reply(&self, request: &Request) -> Reply {
        let Ok(info) = request.request_info() else { return Reply::failure(ResponseCode::FormErr) };
        if info.metadata.message_type != MessageType::Query || info.metadata.op_code != OpCode::Query {
            return Reply::failure(ResponseCode::NotImp);
        }
        let query = info.query.original();
        if !matches!(query.query_class(), DNSClass::IN | DNSClass::ANY) {
            return Reply::failure(ResponseCode::Refused);
        }
        self.look_up(query.name(), query.query_type()).await
    }

    async fn look_up(&self, name: &Name, kind: RecordType) -> Reply {
        let mut answer = match self.ask_zone(name, kind) {
            ZoneResult::Elsewhere => return self.forward(name, kind).await,
            ZoneResult::NotReady => return Reply::failure(ResponseCode::ServFail),
            ZoneResult::Answer(answer) => answer,
        };
        for _ in 0..ALIASES {
            let Some(target) = answer.alias.take() else { break };
            match self.ask_zone(&target, kind) {
                ZoneResult::Answer(next) => {
                    answer.records.extend(next.records);
                    answer.alias = next.alias;
                }
                ZoneResult::NotReady => {}
                // If the target cannot be resolved, the answer still contains the alias itself.
                ZoneResult::Elsewhere => answer.records.extend(self.forward(&target, kind).await.answers),
            }
        }
        self.authoritative(answer)
    }

    fn ask_zone(&self, name: &Name, kind: RecordType) -> ZoneResult {
        self.zone.answer(&self.state.read(), name, kind)
    }

    fn authoritative(&self, mut answer: Answer) -> Reply {
        let code = if answer.exists { ResponseCode::NoError } else { ResponseCode::NXDomain };
        let authority = if answer.records.is_empty() { vec![self.zone.soa()] } else { vec![] };
        // Clients use the first address, so that shuffling spreads them. Aliases stay before
        // the records they lead to.
        let aliases = answer.records.iter().take_while(|r| r.record_type() == RecordType::CNAME).count();
        answer.records[aliases..].shuffle(&mut rand::rng());
        Reply { code, authoritative: true, answers: answer.records, authority, additional: answer.additional }
    }

    async fn forward(&self, name: &Name, kind: RecordType) -> Reply {
        // At the limit further questions fail at once instead of queueing.
        let Ok(_permit) = self.forwarded.try_acquire() else {
            return Reply::failure(ResponseCode::ServFail);
        };
        match self.upstreams.ask(name, kind).await {
            Ok(message) => Reply::forwarded(message),
            Err(error) => {
                tracing::debug!(%name, %error, "forwarded question failed");
                Reply::failure(ResponseCode::ServFail)
            }
        }
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let reply = self.reply(request).await;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.authoritative;
        metadata.recursion_available = true;
        let mut builder = MessageResponseBuilder::from_message_request(request);
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().clamp(512, PAYLOAD));
            edns
        });
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response =
            builder.build(metadata, &reply.answers, &reply.authority, &[] as &[Record], &reply.additional);
        match response_handle.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, client = %request.src(), "DNS answer could not be sent");
                let mut failed = Metadata::response_from_request(&request.metadata);
                failed.response_code = ResponseCode::ServFail;
                hickory_proto::op::Header { metadata: failed, counts: Default::default() }.into()
            }
        }
    }
}
