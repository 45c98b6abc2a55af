//! The API client that agent and network share: it connects through the local balancer with the node's client
//! certificate. The client is kept when the certificate is renewed: new requests use connections made with
//! the newest one. Requests are sent again when a master says so, as client-go does. kube-rs' own retries are
//! switched off: their pauses grow to minutes, for which a node would go on without news after the masters are
//! back, and they send a write again whose outcome is unknown (504).

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{Request, Response};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use proto_env::TlsMaterial;
use tokio::sync::watch;

use crate::tls;

/// Maximum number of times that a refused request is sent again, as in client-go.
const RETRIES: usize = 10;

/// Longest pause before a refused request is sent again.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Replaces the certificate of the client created by [`renewable`].
pub struct ApiCredentials {
    port: u16,
    current: watch::Sender<Client>,
}

/// Creates a client of the API behind 127.0.0.1:`port`, and the handle that renews its certificate.
///
/// # Errors
/// A one-line text, if the certificate cannot be used.
pub async fn renewable(port: u16, material: &TlsMaterial) -> Result<(Client, ApiCredentials), String> {
    let current = watch::Sender::new(connecting(port, material).await?);
    let newest = current.subscribe();
    let service = tower::service_fn(move |request: Request<Body>| {
        let newest = newest.clone();
        send(request, move |request| {
            let client = newest.borrow().clone();
            async move { client.send(request).await }
        })
    });
    Ok((Client::new(service, "default"), ApiCredentials { port, current }))
}

impl ApiCredentials {
    /// Makes new connections with another certificate from now on. Responses in progress, including watches,
    /// stay on their old connections.
    ///
    /// # Errors
    /// A one-line text, if the certificate cannot be used.
    pub async fn replace(&self, material: &TlsMaterial) -> Result<(), String> {
        self.current.send_replace(connecting(self.port, material).await?);
        Ok(())
    }
}

/// Creates a client with its own connections.
async fn connecting(port: u16, material: &TlsMaterial) -> Result<Client, String> {
    let text = tls::kubeconfig(&format!("https://127.0.0.1:{port}"), material);
    let file = Kubeconfig::from_yaml(&text).map_err(|error| error.to_string())?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    let mut config = config.map_err(|error| error.to_string())?;
    config.default_retry = false;
    Client::try_from(config).map_err(|error| error.to_string())
}

/// Sends a request with `once`, and again after the pause that the answer asks for.
async fn send<R, E, F: Future<Output = Result<Response<R>, E>>>(
    request: Request<Body>,
    mut once: impl FnMut(Request<Body>) -> F,
) -> Result<Response<R>, E> {
    let (parts, body) = request.into_parts();
    for _ in 0..RETRIES {
        // A stream cannot be sent twice.
        let Some(copy) = body.try_clone() else { break };
        let answer = once(Request::from_parts(parts.clone(), copy)).await?;
        let Some(pause) = retry_after(&answer) else { return Ok(answer) };
        tokio::time::sleep(pause).await;
    }
    once(Request::from_parts(parts, body)).await
}

/// Returns how long to wait before a refused request is sent again; `None` for any other answer.
fn retry_after<R>(answer: &Response<R>) -> Option<Duration> {
    let status = answer.status();
    let refused = status == http::StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
    let seconds = answer.headers().get(RETRY_AFTER).filter(|_| refused)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tokio::time::Instant;

    use super::*;

    /// Sends a request to a server that gives these answers, the last one for ever; returns the last code, the
    /// number of requests and the time it took.
    async fn exchange(answers: &[(u16, Option<&str>)]) -> (u16, usize, Duration) {
        let (began, mut sent) = (Instant::now(), 0);
        let request = Request::post("/x").body(Body::from(b"body".to_vec())).expect("a request");
        let answer = send(request, |_| {
            let (code, seconds) = answers[sent.min(answers.len() - 1)];
            sent += 1;
            let mut answer = Response::builder().status(code);
            if let Some(seconds) = seconds {
                answer = answer.header(RETRY_AFTER, seconds);
            }
            async move { Ok::<_, Infallible>(answer.body(()).expect("an answer")) }
        });
        let code = answer.await.expect("an answer").status().as_u16();
        (code, sent, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_sent_again_when_the_server_says_and_not_otherwise() {
        let seconds = Duration::from_secs;
        let busy = [(429, Some("2")), (503, Some("1")), (201, None)];
        assert_eq!(exchange(&busy).await, (201, 3, seconds(3)));
        // The outcome of a write is not known: to send it again is for its caller to decide.
        assert_eq!(exchange(&[(504, None)]).await, (504, 1, seconds(0)));
        assert_eq!(exchange(&[(409, Some("1"))]).await, (409, 1, seconds(0)));
        assert_eq!(exchange(&[(503, Some("1"))]).await, (503, RETRIES + 1, seconds(10)));
    }
}
