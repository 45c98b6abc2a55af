//! A Kubernetes client of the experiment: plain HTTP/1.1 over TLS to one master,
//! as the operator. What matters here is what a failure means: the request never
//! left, or nobody knows. `workload`, `watcher` and `truth` use it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use chaos_oracle::calls;
use chaos_oracle::history::Call;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::access::Access;

/// How long a client waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The request never left.
    NotSent,
    /// It may have arrived.
    Unknown,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its code.
    pub status: StatusCode,
    /// Its object, or the Status.
    pub body: Value,
}

/// A connection to one master, made when it is needed.
pub struct Client {
    access: Access,
    master: SocketAddr,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// A client of the API at `master`.
    pub fn new(access: &Access, master: SocketAddr) -> Self {
        Self { access: access.clone(), master, connection: None }
    }

    /// Asks, and waits a few seconds for the whole answer.
    ///
    /// # Errors
    /// Where no whole answer came; the connection is not used again.
    pub async fn ask(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, Failure> {
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let Ok(Ok(whole)) = tokio::time::timeout(TIMEOUT, response.into_body().collect()).await else {
            self.connection = None;
            return Err(Failure::Unknown);
        };
        let body = serde_json::from_slice(&whole.to_bytes()).unwrap_or(Value::Null);
        Ok(Answer { status, body })
    }

    /// Makes a call on a collection, page after page where it is a list in pages.
    ///
    /// # Errors
    /// Where no whole answer came. Pages that show different states are no whole answer.
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

    /// Asks and gives the answer as it comes: watches.
    ///
    /// # Errors
    /// Where no answer began.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<http::Response<Incoming>, Failure> {
        let mut connection = match self.reuse().await {
            Some(connection) => connection,
            None => self.connect().await.ok_or(Failure::NotSent)?,
        };
        let bytes = body.map_or(Bytes::new(), |body| Bytes::from(body.to_string()));
        let content_type = calls::content_type(&method);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "kubernetes")
            .header(http::header::CONTENT_TYPE, content_type)
            .header(http::header::ACCEPT, "application/json")
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

    /// The connection there is, once it takes another request: until its task has
    /// seen the end of the last answer, hyper refuses to send.
    async fn reuse(&mut self) -> Option<SendRequest<Full<Bytes>>> {
        let mut connection = self.connection.take()?;
        let ready = tokio::time::timeout(CONNECT_TIMEOUT, connection.ready()).await;
        matches!(ready, Ok(Ok(()))).then_some(connection)
    }

    async fn connect(&self) -> Option<SendRequest<Full<Bytes>>> {
        let connect = async {
            let stream = TcpStream::connect(self.master).await.ok()?;
            stream.set_nodelay(true).ok()?;
            let name = ServerName::try_from("kubernetes").ok()?;
            let stream = self.access.api().connect(name, stream).await.ok()?;
            http1::handshake(TokioIo::new(stream)).await.ok()
        };
        let (sender, connection) = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.ok()??;
        tokio::spawn(async move {
            // Its end shows in the sender.
            let _ = connection.await;
        });
        Some(sender)
    }
}
