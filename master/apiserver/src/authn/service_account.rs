//! ServiceAccount tokens: JWTs signed with the cluster's key, issued by the TokenRequest subresource and
//! verified against the account, and the pod, that they are bound to (KEP-1205).

use jsonwebtoken::jwk::{Jwk, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use proto_api::status::Status;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::context::UserInfo;
use crate::registry::{Registry, metadata};

/// Clocks of masters may differ by this many seconds.
const LEEWAY_SECONDS: i64 = 10;

/// Why a signing key is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither RSA nor ECDSA P-256 in PEM.
    #[error("the ServiceAccount key is neither an RSA nor a P-256 private key in PKCS#8 PEM")]
    Key,
    /// The public half cannot be derived.
    #[error("the public half of the ServiceAccount key: {0}")]
    PublicKey(#[from] jsonwebtoken::errors::Error),
}

/// Signs and verifies tokens.
pub struct TokenIssuer {
    issuer: String,
    algorithm: Algorithm,
    encoding: EncodingKey,
    decoding: DecodingKey,
    key_id: String,
    jwk: Jwk,
}

/// Something a token is bound to.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Bound {
    /// Its name.
    pub name: String,
    /// Its uid.
    #[serde(default)]
    pub uid: String,
}

/// Whom a token is for.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// The account's namespace.
    pub namespace: String,
    /// The account's name.
    pub name: String,
    /// The account's uid.
    pub uid: String,
    /// The pod it is bound to.
    pub pod: Option<Bound>,
    /// The node that pod runs on.
    pub node: Option<Bound>,
    /// The secret it is bound to.
    pub secret: Option<Bound>,
}

#[derive(Debug, Deserialize)]
struct Claims {
    exp: i64,
    #[serde(default)]
    nbf: i64,
    #[serde(default)]
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Private,
}

#[derive(Debug, Deserialize)]
struct Private {
    namespace: String,
    serviceaccount: Bound,
    pod: Option<Bound>,
    node: Option<Bound>,
    secret: Option<Bound>,
}

impl TokenIssuer {
    /// An issuer over a private key in PKCS#8 PEM: RSA (RS256) or ECDSA P-256 (ES256).
    ///
    /// # Errors
    ///
    /// For any other key.
    pub fn new(issuer: String, key_pem: &str) -> Result<Self, Error> {
        let candidates = [
            (Algorithm::ES256, EncodingKey::from_ec_pem(key_pem.as_bytes())),
            (Algorithm::RS256, EncodingKey::from_rsa_pem(key_pem.as_bytes())),
        ];
        for (algorithm, key) in candidates {
            let Ok(encoding) = key else { continue };
            let mut jwk = Jwk::from_encoding_key(&encoding, algorithm)?;
            let key_id = jwk.thumbprint(ThumbprintHash::SHA256);
            jwk.common.key_id = Some(key_id.clone());
            let decoding = DecodingKey::from_jwk(&jwk)?;
            return Ok(Self { issuer, algorithm, encoding, decoding, key_id, jwk });
        }
        Err(Error::Key)
    }

    /// The `iss` of tokens, and their default audience.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// `ES256` or `RS256`.
    pub fn algorithm_name(&self) -> String {
        format!("{:?}", self.algorithm)
    }

    /// The public keys, as a JWK set.
    pub fn jwks(&self) -> Value {
        json!({"keys": [self.jwk]})
    }

    /// Signs a token.
    ///
    /// # Errors
    ///
    /// 500 where signing fails.
    pub fn issue(
        &self,
        subject: &Subject,
        audiences: &[String],
        seconds: i64,
        registry: &Registry,
    ) -> Result<String, Status> {
        let now = unix_now(registry);
        let mut private = json!({
            "namespace": subject.namespace,
            "serviceaccount": {"name": subject.name, "uid": subject.uid},
        });
        for (key, bound) in [("pod", &subject.pod), ("node", &subject.node), ("secret", &subject.secret)] {
            if let Some(bound) = bound {
                private[key] = json!(bound);
            }
        }
        let claims = json!({
            "iss": self.issuer, "aud": audiences, "iat": now, "nbf": now, "exp": now + seconds,
            "jti": registry.random.uuid(), "kubernetes.io": private,
            "sub": format!("system:serviceaccount:{}:{}", subject.namespace, subject.name),
        });
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, &claims, &self.encoding).map_err(Status::internal)
    }

    /// The user of a token, where it is genuine, current, meant for the API server, and the account and what
    /// it is bound to still exist.
    pub fn authenticate(&self, token: &str, registry: &Registry) -> Option<UserInfo> {
        let mut validation = Validation::new(self.algorithm);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.issuer]);
        // Checked below against the env's clock.
        validation.validate_exp = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation).ok()?.claims;
        let now = unix_now(registry);
        if claims.exp + LEEWAY_SECONDS < now || claims.nbf > now + LEEWAY_SECONDS {
            return None;
        }
        let private = &claims.kubernetes;
        let exists = |resource: &str, namespace: &str, bound: &Bound| {
            let object = registry.peek("", resource, namespace, &bound.name);
            object.is_some_and(|o| metadata::text(&o, "uid") == bound.uid)
        };
        if !exists("serviceaccounts", &private.namespace, &private.serviceaccount) {
            return None;
        }
        let bound = [("pods", &private.pod), ("secrets", &private.secret)];
        if bound
            .iter()
            .any(|(resource, b)| b.as_ref().is_some_and(|b| !exists(resource, &private.namespace, b)))
        {
            return None;
        }
        Some(user_of(private, &claims.jti))
    }
}

fn user_of(private: &Private, token_id: &str) -> UserInfo {
    let (namespace, account) = (&private.namespace, &private.serviceaccount);
    let groups = ["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")];
    let mut user =
        UserInfo::authenticated(format!("system:serviceaccount:{namespace}:{}", account.name), &groups);
    user.uid.clone_from(&account.uid);
    let mut extra = |key: &str, value: &str| {
        if !value.is_empty() {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        }
    };
    extra("credential-id", &if token_id.is_empty() { String::new() } else { format!("JTI={token_id}") });
    if let Some(pod) = &private.pod {
        extra("pod-name", &pod.name);
        extra("pod-uid", &pod.uid);
    }
    if let Some(node) = &private.node {
        extra("node-name", &node.name);
        extra("node-uid", &node.uid);
    }
    user
}

fn unix_now(registry: &Registry) -> i64 {
    let since = registry.clock.now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
