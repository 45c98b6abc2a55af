//! A Kubernetes client of the simulation: plain HTTP/1.1 over the simulated network, as the administrator by
//! default. It tells requests that were never sent from requests whose outcome is unknown. `workload.rs` and
//! `watcher.rs` use it.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use chaos_oracle::calls;
use chaos_oracle::history::Call;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use proto_env::PeerIdentity;
use serde_json::Value;

use crate::machine::API_PORT;
use crate::seams::links::Links;
use crate::seams::network::connect_as;

/// Maximum time a client waits for an answer.
pub const TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Reason why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The request was never sent.
    NotSent,
    /// The request was sent and may have arrived.
    Unknown,
}

/// An answer of the API server.
pub struct Answer {
    /// HTTP status code.
    pub status: StatusCode,
    /// The object, or a Kubernetes `Status` on an error.
    pub body: Value,
}

/// A client of one master; connects at the first request.
pub struct Client {
    master: IpAddr,
    links: Links,
    identity: PeerIdentity,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// Creates a client of the master at `master` that identifies itself as the administrator.
    pub fn new(master: IpAddr, links: Links) -> Self {
        let identity = PeerIdentity {
            common_name: "simulation".to_owned(),
            organizations: vec!["system:masters".to_owned()],
        };
        Self::with_identity(master, links, identity)
    }

    /// Creates a client of the master at `master` that identifies itself as `identity`.
    pub fn with_identity(master: IpAddr, links: Links, identity: PeerIdentity) -> Self {
        Self { master, links, identity, connection: None }
    }

    /// Sends a request and waits for the whole answer, at most [`TIMEOUT`].
    ///
    /// # Errors
    /// Fails if no whole answer came; the connection is then not used again.
    pub async fn ask(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, Failure> {
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let whole = tokio::time::timeout(TIMEOUT, response.into_body().collect()).await;
        let Ok(Ok(whole)) = whole else {
            self.connection = None;
            return Err(Failure::Unknown);
        };
        let body = serde_json::from_slice(&whole.to_bytes()).unwrap_or(Value::Null);
        Ok(Answer { status, body })
    }

    /// Makes a call on a collection; a paged list is read page by page and joined.
    ///
    /// # Errors
    /// Fails if no whole answer came, or if the pages of a list show different states.
    pub async fn call(&mut self, collection: &str, call: &Call) -> Result<Answer, Failure> {
        let (method, path, body) = calls::request(collection, call);
        let mut answer = self.ask(method, &path, body.as_ref()).await?;
        while answer.status.is_success()
            && let Some(path) = calls::next_page(collection, call, &answer.body)
        {
            let page = self.ask(Method::GET, &path, None).await?;
            if !page.status.is_success() {
                return Ok(page);
            }
            if !calls::add_page(&mut answer.body, page.body) {
                let status = StatusCode::IM_A_TEAPOT;
                return Ok(Answer { status, body: Value::String("pages of different states".to_owned()) });
            }
        }
        Ok(answer)
    }

    /// Sends a request and returns the answer as a stream, for watches.
    ///
    /// # Errors
    /// Fails if no answer began.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<http::Response<Incoming>, Failure> {
        let mut connection = match self.connection.take().filter(|connection| !connection.is_closed()) {
            Some(connection) => connection,
            None => self.connect().await.ok_or(Failure::NotSent)?,
        };
        let bytes = body.map_or(Bytes::new(), |body| Bytes::from(body.to_string()));
        let content_type = calls::content_type(&method);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "master")
            .header(http::header::CONTENT_TYPE, content_type)
            .body(Full::new(bytes))
            .map_err(|_| Failure::NotSent)?;
        match tokio::time::timeout(TIMEOUT, connection.send_request(request)).await {
            Ok(Ok(response)) => {
                self.connection = Some(connection);
                Ok(response)
            }
            _ => Err(Failure::Unknown),
        }
    }

    async fn connect(&self) -> Option<SendRequest<Full<Bytes>>> {
        let address = format!("{}:{API_PORT}", self.master);
        let connecting = connect_as(&address, Some(&self.identity), &self.links);
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
        let stream = connected.ok()?.ok()?.stream;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(async move {
            // The end of the connection shows in the request sender.
            let _ = connection.await;
        });
        Some(sender)
    }
}
