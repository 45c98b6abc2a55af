//! Who a request comes from: an in-process identity, a client certificate, or a bearer token. `chain.rs` asks
//! once a request.

pub mod service_account;
pub mod x509;

use std::sync::Arc;

use http::Request;
use http::header::AUTHORIZATION;

use crate::context::{LocalIdentity, UserInfo};
use crate::registry::Registry;
use service_account::TokenIssuer;

/// Looks up bearer tokens that are no ServiceAccount tokens, such as bootstrap tokens.
pub trait TokenAuthenticator: Send + Sync + 'static {
    /// The user a token belongs to.
    fn authenticate(&self, token: &str) -> Option<UserInfo>;
}

/// The user of a client certificate that the TLS handshake verified; the listener sets it.
#[derive(Clone, Debug)]
pub struct PeerUser(pub UserInfo);

/// The client showed a certificate that the cluster's CA does not vouch for; the listener sets it.
#[derive(Clone, Copy, Debug)]
pub struct RefusedCertificate;

/// All ways to be known.
pub struct Authenticator {
    /// Further token lookups, asked in order.
    pub tokens: Vec<Arc<dyn TokenAuthenticator>>,
    /// Verifies ServiceAccount tokens.
    pub service_accounts: Arc<TokenIssuer>,
}

/// What authentication came to.
#[derive(Debug)]
pub enum Outcome {
    /// A user, and the fence of an in-process client.
    Known(UserInfo, Option<u64>),
    /// No credentials.
    Anonymous,
    /// Credentials that prove nothing.
    Refused,
}

impl Authenticator {
    /// Finds out who sent a request.
    pub fn authenticate<B>(&self, request: &Request<B>, registry: &Registry) -> Outcome {
        if let Some(local) = request.extensions().get::<LocalIdentity>() {
            return Outcome::Known(local.user.clone(), local.fence);
        }
        if let Some(PeerUser(user)) = request.extensions().get::<PeerUser>() {
            return Outcome::Known(user.clone(), None);
        }
        let Some(header) = request.headers().get(AUTHORIZATION) else {
            let refused = request.extensions().get::<RefusedCertificate>().is_some();
            return if refused { Outcome::Refused } else { Outcome::Anonymous };
        };
        let token = header.to_str().ok().and_then(bearer);
        let Some(token) = token else { return Outcome::Refused };
        let found = self.tokens.iter().find_map(|t| t.authenticate(token));
        match found.or_else(|| self.service_accounts.authenticate(token, registry)) {
            Some(user) => Outcome::Known(user, None),
            None => Outcome::Refused,
        }
    }
}

fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
