//! Authentication: the user of a request, from an in-process identity, a client certificate, or a bearer
//! token. `chain.rs` authenticates each request once.

pub mod key_rotation;
pub mod service_account;
pub mod signing_keys;
pub mod x509;

use std::sync::Arc;
use std::time::SystemTime;

use http::Request;
use http::header::AUTHORIZATION;
use proto_api::status::Status;

use crate::context::{LocalIdentity, UserInfo};
use crate::object_lookup::ObjectLookup;
use service_account::TokenIssuer;

/// Looks up bearer tokens other than ServiceAccount tokens, such as bootstrap tokens.
pub trait TokenAuthenticator: Send + Sync + 'static {
    /// Returns the user a token belongs to; `None` where the token is unknown.
    fn authenticate(&self, token: &str) -> Option<UserInfo>;
}

/// User of a client certificate that was verified during the handshake; set by the listener.
#[derive(Clone, Debug)]
pub struct PeerUser {
    /// User that the certificate names.
    pub user: UserInfo,
    /// Time at which the certificate or its chain expires first; `None` where the transport vouches for the
    /// user.
    pub valid_until: Option<SystemTime>,
}

/// Marks a client whose certificate the cluster's CA does not vouch for; set by the listener.
#[derive(Clone, Copy, Debug)]
pub struct RefusedCertificate;

/// Finds out which user sent a request.
pub struct Authenticator {
    /// Lookups of bearer tokens, tried in order before ServiceAccount tokens.
    pub tokens: Vec<Arc<dyn TokenAuthenticator>>,
    /// Verifies ServiceAccount tokens.
    pub service_accounts: Arc<TokenIssuer>,
}

/// Result of authentication.
#[derive(Debug)]
pub enum Authentication {
    /// An authenticated user, and the fencing term of an in-process client.
    Known(UserInfo, Option<u64>),
    /// The request carries no credentials.
    Anonymous,
    /// The request carries credentials that are not valid.
    Refused,
}

impl Authenticator {
    /// Determines which user sent a request.
    ///
    /// # Errors
    ///
    /// 503 where a token can be neither accepted nor refused without a quorum.
    pub async fn authenticate(
        &self,
        credentials: &Credentials,
        objects: &dyn ObjectLookup,
    ) -> Result<Authentication, Status> {
        match credentials {
            Credentials::Local(local) => Ok(Authentication::Known(local.user.clone(), local.fence)),
            Credentials::Certificate(user) => Ok(Authentication::Known(user.clone(), None)),
            Credentials::Nothing => Ok(Authentication::Anonymous),
            Credentials::Worthless => Ok(Authentication::Refused),
            Credentials::Bearer(token) => {
                let found = self.tokens.iter().find_map(|t| t.authenticate(token));
                let found = match found {
                    Some(user) => Some(user),
                    None => self.service_accounts.authenticate(token, objects).await?,
                };
                Ok(found.map_or(Authentication::Refused, |user| Authentication::Known(user, None)))
            }
        }
    }
}

/// Credentials that a request carries.
#[derive(Debug)]
pub enum Credentials {
    /// Identity of an in-process client.
    Local(LocalIdentity),
    /// A client certificate that is valid now.
    Certificate(UserInfo),
    /// A bearer token.
    Bearer(String),
    /// A client certificate that is not valid, or a header that is no bearer token.
    Worthless,
    /// No credentials.
    Nothing,
}

impl Credentials {
    /// Returns the credentials of a request that arrived at `now`. A certificate's expiry is checked at every
    /// request, since a connection may outlive its certificate.
    pub fn of<B>(request: &Request<B>, now: SystemTime) -> Self {
        let extensions = request.extensions();
        if let Some(local) = extensions.get::<LocalIdentity>() {
            return Self::Local(local.clone());
        }
        let peer = extensions.get::<PeerUser>();
        if let Some(peer) = peer.filter(|peer| peer.valid_until.is_none_or(|until| now <= until)) {
            return Self::Certificate(peer.user.clone());
        }
        let Some(header) = request.headers().get(AUTHORIZATION) else {
            let refused = peer.is_some() || extensions.get::<RefusedCertificate>().is_some();
            return if refused { Self::Worthless } else { Self::Nothing };
        };
        let token = header.to_str().ok().and_then(bearer);
        token.map_or(Self::Worthless, |token| Self::Bearer(token.to_owned()))
    }
}

fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
