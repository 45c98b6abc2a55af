//! ServiceAccount tokens: JWTs signed with the cluster's key, issued by the TokenRequest subresource and
//! verified against the account, and the pod, that they are bound to (KEP-1205).

use jsonwebtoken::jwk::{Jwk, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use proto_api::status::Status;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::context::UserInfo;
use crate::objects::Objects;
use crate::registry::{Registry, metadata};

/// Tolerated difference between the clocks of masters, in seconds.
const LEEWAY_SECONDS: i64 = 10;

/// Why a signing key is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is neither an RSA nor an ECDSA P-256 key in PEM.
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

/// Reference to an object whose deletion invalidates the token.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Bound {
    /// Name of the object.
    pub name: String,
    /// Uid of the object.
    #[serde(default)]
    pub uid: String,
}

/// The ServiceAccount a token speaks for, and the objects it is bound to.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// The account's namespace.
    pub namespace: String,
    /// The account's name.
    pub name: String,
    /// The account's uid.
    pub uid: String,
    /// The pod the token is bound to; `None` for a token without one.
    pub pod: Option<Bound>,
    /// The node that pod runs on; `None` where no pod is bound or that pod has no node.
    pub node: Option<Bound>,
    /// The secret the token is bound to; `None` for a token without one.
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
    /// Creates an issuer from a private key in PKCS#8 PEM: RSA (RS256) or ECDSA P-256 (ES256).
    ///
    /// # Errors
    ///
    /// [`Error`] for any other key.
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

    /// Returns the `iss` of tokens, which is also their default audience.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Returns the signing algorithm: `ES256` or `RS256`.
    pub fn algorithm_name(&self) -> String {
        format!("{:?}", self.algorithm)
    }

    /// Returns the public keys as a JWK set.
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
        let now = registry.unix_now();
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
            "iss": self.issuer, "aud": audiences, "iat": now, "nbf": now, "exp": now.saturating_add(seconds),
            "jti": registry.random.uuid(), "kubernetes.io": private,
            "sub": format!("system:serviceaccount:{}:{}", subject.namespace, subject.name),
        });
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, &claims, &self.encoding).map_err(Status::internal)
    }

    /// Returns the user of a token that is genuine, current and meant for the API server, and whose account
    /// and bound objects still exist; `None` otherwise. An object missing from the local replica is looked up
    /// again after a read barrier: a master that has just joined knows no account yet.
    ///
    /// # Errors
    ///
    /// 503 where that barrier is needed and there is no quorum.
    pub async fn authenticate(&self, token: &str, objects: &dyn Objects) -> Result<Option<UserInfo>, Status> {
        let Some(claims) = self.verify(token, objects.unix_now()) else { return Ok(None) };
        let private = &claims.kubernetes;
        if !exist(private, objects) {
            objects.catch_up().await?;
            if !exist(private, objects) {
                return Ok(None);
            }
        }
        Ok(Some(user_of(private, &claims.jti)))
    }

    /// Returns the claims of a current token that this cluster signed for its API server.
    fn verify(&self, token: &str, now: i64) -> Option<Claims> {
        let mut validation = Validation::new(self.algorithm);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.issuer]);
        // The expiry is checked below against the clock of `env`, not by the library.
        validation.validate_exp = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation).ok()?.claims;
        let expired = claims.exp.saturating_add(LEEWAY_SECONDS) < now;
        let early = claims.nbf > now.saturating_add(LEEWAY_SECONDS);
        (!expired && !early).then_some(claims)
    }
}

/// Returns whether the local replica has the account and the bound objects under their uids, none of them
/// deleted long ago.
fn exist(private: &Private, objects: &dyn Objects) -> bool {
    let exists = |resource: &str, bound: &Bound| {
        let object = objects.core(resource, &private.namespace, &bound.name);
        object.is_some_and(|o| {
            metadata::text(&o, "uid") == bound.uid && !is_long_deleted(&o, objects.unix_now())
        })
    };
    exists("serviceaccounts", &private.serviceaccount)
        && private.pod.as_ref().is_none_or(|pod| exists("pods", pod))
        && private.secret.as_ref().is_none_or(|secret| exists("secrets", secret))
}

/// Time after an object's deletion timestamp at which tokens bound to it end, in seconds, as in stock. The object
/// itself may stay for long, for example a pod on a node that is lost.
const DELETED_SECONDS: i64 = 60;

fn is_long_deleted(object: &Value, now: i64) -> bool {
    let deleted: Option<jiff::Timestamp> = metadata::text(object, "deletionTimestamp").parse().ok();
    deleted.is_some_and(|at| at.as_second() < now.saturating_sub(DELETED_SECONDS))
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::settings::ClusterSettings;

    const NOW: i64 = 1_800_000_000;

    /// A replica that has the right account and pod only after it has caught up.
    struct Lagging {
        settings: ClusterSettings,
        caught_up: AtomicBool,
        reachable: bool,
    }

    #[async_trait]
    impl Objects for Lagging {
        fn core(&self, _resource: &str, _namespace: &str, name: &str) -> Option<Value> {
            // Before catching up, the replica holds an older object of the same name.
            let uid = if self.caught_up.load(Ordering::Relaxed) { "new" } else { "old" };
            let mut object = json!({"metadata": {"uid": uid}});
            if let Some(seconds) = name.strip_prefix("deleted-").and_then(|n| n.parse::<i64>().ok()) {
                let at = jiff::Timestamp::from_second(NOW - seconds).expect("a time").to_string();
                object["metadata"]["deletionTimestamp"] = json!(at);
            }
            (name != "gone").then_some(object)
        }

        async fn catch_up(&self) -> Result<(), Status> {
            if !self.reachable {
                return Err(Status::service_unavailable("no quorum"));
            }
            self.caught_up.store(true, Ordering::Relaxed);
            Ok(())
        }

        fn settings(&self) -> &ClusterSettings {
            &self.settings
        }

        fn suffix(&self, _letters: usize) -> String {
            String::new()
        }

        fn unix_now(&self) -> i64 {
            NOW
        }
    }

    fn lagging(reachable: bool) -> Lagging {
        Lagging { settings: ClusterSettings::default(), caught_up: AtomicBool::new(false), reachable }
    }

    fn issuer() -> TokenIssuer {
        let key = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        TokenIssuer::new("https://issuer".to_owned(), &key).expect("an issuer")
    }

    fn token(issuer: &TokenIssuer, pod: &str, exp: i64) -> String {
        let claims = json!({
            "iss": "https://issuer", "aud": ["https://issuer"], "iat": NOW, "nbf": NOW, "exp": exp, "jti": "j",
            "kubernetes.io": {
                "namespace": "default", "serviceaccount": {"name": "a", "uid": "new"},
                "pod": {"name": pod, "uid": "new"},
            },
        });
        jsonwebtoken::encode(&Header::new(issuer.algorithm), &claims, &issuer.encoding).expect("a token")
    }

    #[tokio::test]
    async fn a_replica_that_lags_catches_up_before_it_calls_an_account_unknown() {
        let issuer = issuer();
        let genuine = token(&issuer, "p", NOW + 600);
        let user = issuer.authenticate(&genuine, &lagging(true)).await.expect("a quorum").expect("a user");
        assert_eq!(user.name, "system:serviceaccount:default:a");
        // Without a quorum the token's validity is unknown: 503, since 401 would make clients discard the
        // token.
        assert_eq!(issuer.authenticate(&genuine, &lagging(false)).await.expect_err("503").code, 503);
        let gone = token(&issuer, "gone", NOW + 600);
        assert_eq!(issuer.authenticate(&gone, &lagging(true)).await.expect("a quorum"), None);
    }

    #[tokio::test]
    async fn a_token_ends_a_minute_after_the_deletion_of_what_it_is_bound_to() {
        let issuer = issuer();
        // A pod that is being deleted has its deletion timestamp ahead, at the end of its grace period.
        for (pod, valid) in [("deleted--30", true), ("deleted-59", true), ("deleted-61", false)] {
            let token = token(&issuer, pod, NOW + 600);
            let user = issuer.authenticate(&token, &lagging(true)).await.expect("a quorum");
            assert_eq!(user.is_some(), valid, "{pod}");
        }
    }

    #[tokio::test]
    async fn tokens_that_prove_nothing_cost_no_barrier() {
        let issuer = issuer();
        for bad in [token(&issuer, "p", NOW - 600), token(&self::issuer(), "p", NOW + 600), "x".to_owned()] {
            let replica = lagging(true);
            assert_eq!(issuer.authenticate(&bad, &replica).await.expect("no error"), None);
            assert!(!replica.caught_up.load(Ordering::Relaxed), "{bad}");
        }
    }
}
