//! A Kubernetes client of an experiment: plain HTTP/1.1 over connections that [`Connect`] makes. It tells
//! requests that were never sent from requests whose outcome is unknown. Simulated and live clients connect
//! in their own ways (`http.rs` of `chaos/sim` and `chaos/live`).

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::calls;
use crate::history::Call;

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
#[derive(Debug)]
pub struct Answer {
    /// HTTP status code.
    pub status: StatusCode,
    /// The object, or a Kubernetes `Status` on an error.
    pub body: Value,
}

/// Makes the connections to one master.
pub trait Connect: Send + Sync {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Connects to the master; `None` if that fails.
    fn connect(&self) -> impl Future<Output = Option<Self::Stream>> + Send;
}

/// A client of one master; connects at the first request.
pub struct Client<C> {
    to: C,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl<C: Connect> Client<C> {
    /// Creates a client of the master that `to` connects to.
    pub fn to(to: C) -> Self {
        Self { to, connection: None }
    }

    /// Sends a request and waits for the whole answer, at most [`TIMEOUT`].
    ///
    /// # Errors
    /// Fails if no whole answer came; the connection is then not used again.
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

    /// Returns the existing connection once it accepts another request: hyper refuses to send until its task
    /// has seen the end of the last answer.
    async fn reuse(&mut self) -> Option<SendRequest<Full<Bytes>>> {
        let mut connection = self.connection.take()?;
        let ready = tokio::time::timeout(CONNECT_TIMEOUT, connection.ready()).await;
        matches!(ready, Ok(Ok(()))).then_some(connection)
    }

    async fn connect(&self) -> Option<SendRequest<Full<Bytes>>> {
        let connect = async { http1::handshake(TokioIo::new(self.to.connect().await?)).await.ok() };
        let (sender, connection) = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.ok()??;
        tokio::spawn(async move {
            // The end of the connection shows in the request sender.
            let _ = connection.await;
        });
        Some(sender)
    }
}
