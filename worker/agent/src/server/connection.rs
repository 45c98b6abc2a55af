//! One connection of the node's HTTPS server: its handshake, who the client is, and its end, which is that of the
//! client's certificate at the latest.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use proto_env::{BoxedStream, ExpiringStream};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::auth::Client;
use super::{Body, text};

const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves one connection with `answer` until either side or the client's certificate ends it.
pub async fn serve<F>(
    tls: Arc<ServerConfig>,
    stream: TcpStream,
    peer: SocketAddr,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) where
    F: Future<Output = Response<Body>> + Send,
{
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "nodelay");
    }
    let stream = match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => return debug!(%peer, "TLS handshake timed out"),
    };
    let client = Client::of(stream.get_ref().1);
    let stream: BoxedStream = match client.until() {
        Some(until) => Box::new(ExpiringStream::new(Box::new(stream), until)),
        None => Box::new(stream),
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer.clone();
        async move {
            // The stream looks at the wall clock, which may jump, only now and then.
            Ok::<_, Infallible>(match client.refused(SystemTime::now()) {
                Some((code, why)) => text(code, why),
                None => answer(request).await,
            })
        }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    if let Err(error) = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        debug!(%peer, %error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use time::OffsetDateTime;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsConnector;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);
    /// Validity of the client's certificate from now on, cut to whole seconds.
    const LIFETIME: Duration = Duration::from_secs(3);

    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        pem: String,
    }

    impl Authority {
        fn new() -> Self {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let pem = params.self_signed(&key).expect("a CA").pem();
            Self { issuer: Issuer::from_ca_cert_pem(&pem, key).expect("an issuer"), pem }
        }

        /// Issues a certificate for an API server that ends after `life`.
        fn issue(&self, life: Duration) -> (String, String) {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("params");
            params.not_before = OffsetDateTime::now_utc() - time::Duration::hours(1);
            params.not_after = OffsetDateTime::now_utc() + life;
            let group = proto_env::KUBELET_CLIENTS_ORGANIZATION;
            params.distinguished_name.push(DnType::OrganizationName, group);
            let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
            (certificate.pem(), key.serialize_pem())
        }

        fn client(&self, life: Duration) -> TlsConnector {
            let (certificate, key) = self.issue(life);
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("a CA")).expect("a root");
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = rustls::ClientConfig::builder_with_provider(provider);
            let builder = builder.with_safe_default_protocol_versions().expect("versions");
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate")];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
            let config = builder.with_root_certificates(roots).with_client_auth_cert(chain, key);
            TlsConnector::from(Arc::new(config.expect("client authentication")))
        }
    }

    #[tokio::test]
    async fn a_connection_does_not_outlive_the_certificate_of_its_client() {
        let authority = Authority::new();
        let (certificate, key) = authority.issue(PATIENCE * 2);
        let tls = crate::serving_config(certificate.as_bytes(), key.as_bytes(), authority.pem.as_bytes());
        let tls = tls.expect("a configuration");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            let (stream, peer) = listener.accept().await.expect("a connection");
            serve(tls, stream, peer, |_| async { text(StatusCode::OK, "ok") }).await;
        });
        let end = SystemTime::now() + LIFETIME;
        let tcp = tokio::net::TcpStream::connect(address).await.expect("a connection");
        let name = ServerName::try_from("localhost").expect("a name");
        let mut stream = authority.client(LIFETIME).connect(name, tcp).await.expect("a handshake");
        stream.write_all(b"GET /pods HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.expect("an answer");
        assert_eq!(&head, b"HTTP/1.1 200");
        // The client keeps the connection open and asks nothing: the node ends it.
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        ended.expect("the connection outlives its certificate").ok();
        // Certificates know whole seconds.
        assert!(
            SystemTime::now() + Duration::from_secs(1) >= end,
            "it ends with the certificate, not before"
        );
    }
}
