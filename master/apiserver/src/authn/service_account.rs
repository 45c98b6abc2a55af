//! ServiceAccount tokens: JWTs signed with a key of the masters (`signing_keys.rs`), issued by the TokenRequest subresource and
//! verified against the account, and the pod, that they are bound to (KEP-1205).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jsonwebtoken::{Header, Validation};
use proto_api::status::Status;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::key_rotation;
use super::signing_keys::{RECENT, SigningKey, SigningKeys};
use crate::context::UserInfo;
use crate::object_lookup::ObjectLookup;
use crate::registry::{Registry, metadata};

/// Tolerated difference between the clocks of masters, in seconds.
const LEEWAY_SECONDS: i64 = 10;
/// Longest time for which clients may keep the public keys, as in stock.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// Signs and verifies tokens.
pub struct TokenIssuer {
    issuer: String,
    keys: SigningKeys,
}

/// Result of checking a token's signature and times.
enum Verdict {
    /// This cluster signed the token for its API server, and it is current.
    Genuine(Box<Claims>),
    /// The token names a key that this replica does not have.
    UnknownKey,
    /// The token is worthless.
    Refused,
}

/// Reference to an object whose deletion invalidates the token.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct BoundObject {
    /// Name of the object.
    pub name: String,
    /// Uid of the object.
    #[serde(default)]
    pub uid: String,
}

/// The ServiceAccount a token speaks for, and the objects it is bound to.
#[derive(Clone, Debug, Default)]
pub struct TokenSubject {
    /// The account's namespace.
    pub namespace: String,
    /// The account's name.
    pub name: String,
    /// The account's uid.
    pub uid: String,
    /// The pod the token is bound to; `None` for a token without one.
    pub pod: Option<BoundObject>,
    /// The node that pod runs on; `None` where no pod is bound or that pod has no node.
    pub node: Option<BoundObject>,
    /// The secret the token is bound to; `None` for a token without one.
    pub secret: Option<BoundObject>,
}

#[derive(Debug, Deserialize)]
struct Claims {
    exp: i64,
    #[serde(default)]
    nbf: i64,
    #[serde(default)]
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: KubernetesClaims,
}

#[derive(Debug, Deserialize)]
struct KubernetesClaims {
    namespace: String,
    serviceaccount: BoundObject,
    pod: Option<BoundObject>,
    node: Option<BoundObject>,
    secret: Option<BoundObject>,
}

impl TokenIssuer {
    /// Creates an issuer that signs with `keys`.
    pub fn new(issuer: String, keys: SigningKeys) -> Self {
        Self { issuer, keys }
    }

    /// Returns the `iss` of tokens, which is also their default audience.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Returns the keys.
    pub fn keys(&self) -> &SigningKeys {
        &self.keys
    }

    /// Returns the algorithms of all keys: `ES256`, `RS256` or both.
    pub fn algorithms(&self, objects: &dyn ObjectLookup) -> Vec<String> {
        let set = self.keys.of(objects.signing_keys().as_deref());
        let names: BTreeSet<String> = set.keys.iter().map(|key| format!("{:?}", key.algorithm)).collect();
        names.into_iter().collect()
    }

    /// Returns the public keys as a JWK set.
    pub fn jwks(&self, objects: &dyn ObjectLookup) -> Value {
        self.keys.of(objects.signing_keys().as_deref()).jwks()
    }

    /// Returns for how long clients may keep the public keys: less than the time for which a key is published before
    /// it signs, and an hour at most, as in stock.
    pub fn max_age(&self) -> Duration {
        (self.keys.lead() / 2).min(MAX_AGE)
    }

    /// Returns when the lifetime of the key ends that signs.
    pub fn key_end(&self, objects: &dyn ObjectLookup) -> SystemTime {
        self.keys.end(&self.keys.of(objects.signing_keys().as_deref()))
    }

    /// Signs a token.
    ///
    /// # Errors
    ///
    /// 500 where signing fails, 503 or 504 where the end of a long token cannot be noted.
    pub async fn issue(
        &self,
        subject: &TokenSubject,
        audiences: &[String],
        seconds: i64,
        registry: &Registry,
    ) -> Result<String, Status> {
        let now = registry.unix_now();
        let end = now.saturating_add(seconds);
        let key = key_rotation::key_for(registry, &self.keys, end).await?;
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
            "iss": self.issuer, "aud": audiences, "iat": now, "nbf": now, "exp": end,
            "jti": registry.random.uuid(), "kubernetes.io": private,
            "sub": format!("system:serviceaccount:{}:{}", subject.namespace, subject.name),
        });
        let header = Header { kid: Some(key.id.clone()), ..Header::new(key.algorithm) };
        jsonwebtoken::encode(&header, &claims, &key.encoding).map_err(Status::internal)
    }

    /// Returns the user of a token that is genuine, current and meant for the API server, and whose account
    /// and bound objects still exist; `None` otherwise. A key or an object missing from the local replica is looked up
    /// again after a read barrier: a master that has just joined knows no account yet.
    ///
    /// # Errors
    ///
    /// 503 where that barrier is needed and there is no quorum.
    pub async fn authenticate(
        &self,
        token: &str,
        objects: &dyn ObjectLookup,
    ) -> Result<Option<UserInfo>, Status> {
        for caught_up in [false, true] {
            match self.verify(token, objects) {
                Verdict::Genuine(claims) if exist(&claims.kubernetes, objects) => {
                    return Ok(Some(user_of(&claims.kubernetes, &claims.jti)));
                }
                Verdict::Genuine(_) => {}
                // Tokens with made-up keys cost at most one barrier in this time.
                Verdict::UnknownKey if !objects.caught_up_within(RECENT) => {}
                Verdict::UnknownKey | Verdict::Refused => return Ok(None),
            }
            if !caught_up {
                objects.catch_up().await?;
            }
        }
        Ok(None)
    }

    /// Checks that this cluster signed a token for its API server and that the token is current.
    fn verify(&self, token: &str, objects: &dyn ObjectLookup) -> Verdict {
        let Ok(header) = jsonwebtoken::decode_header(token) else { return Verdict::Refused };
        let set = self.keys.of(objects.signing_keys().as_deref());
        // A token that names no key may be of any, as in stock.
        let named = |key: &&Arc<SigningKey>| header.kid.as_ref().is_none_or(|id| *id == key.id);
        let keys: Vec<&Arc<SigningKey>> = set.keys.iter().filter(named).collect();
        if keys.is_empty() {
            return Verdict::UnknownKey;
        }
        let Some(claims) = keys.into_iter().find_map(|key| self.claims(token, key)) else {
            return Verdict::Refused;
        };
        let now = objects.unix_now();
        let expired = claims.exp.saturating_add(LEEWAY_SECONDS) < now;
        let early = claims.nbf > now.saturating_add(LEEWAY_SECONDS);
        if expired || early { Verdict::Refused } else { Verdict::Genuine(Box::new(claims)) }
    }

    /// Returns the claims of a token that this key signed for the API server.
    fn claims(&self, token: &str, key: &SigningKey) -> Option<Claims> {
        let mut validation = Validation::new(key.algorithm);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.issuer]);
        // The caller checks the expiry against the clock of `env`.
        validation.validate_exp = false;
        jsonwebtoken::decode::<Claims>(token, &key.decoding, &validation).ok().map(|token| token.claims)
    }
}

/// Returns whether the local replica has the account and the bound objects under their uids, none of them
/// deleted long ago.
fn exist(private: &KubernetesClaims, objects: &dyn ObjectLookup) -> bool {
    let exists = |resource: &str, bound: &BoundObject| {
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

fn user_of(private: &KubernetesClaims, token_id: &str) -> UserInfo {
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
    use storage::Object;

    use super::*;
    use crate::authn::signing_keys::{STORE_KEY, ServiceAccountKeys};
    use crate::settings::ClusterSettings;

    const NOW: i64 = 1_800_000_000;

    /// A replica that has the right account and pod only after it has caught up.
    struct Lagging {
        settings: ClusterSettings,
        caught_up: AtomicBool,
        reachable: bool,
        /// The record of keys, which the replica has only after it has caught up.
        record: Option<Arc<Object>>,
    }

    #[async_trait]
    impl ObjectLookup for Lagging {
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

        fn caught_up_within(&self, _age: Duration) -> bool {
            self.caught_up.load(Ordering::Relaxed)
        }

        fn signing_keys(&self) -> Option<Arc<Object>> {
            self.caught_up.load(Ordering::Relaxed).then(|| self.record.clone()).flatten()
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
        let (settings, caught_up) = (ClusterSettings::default(), AtomicBool::new(false));
        Lagging { settings, caught_up, reachable, record: None }
    }

    fn issuer() -> TokenIssuer {
        let keys = ServiceAccountKeys {
            first_key_pem: rcgen::KeyPair::generate().expect("a key").serialize_pem(),
            first_key_since: SystemTime::UNIX_EPOCH,
            first_key_tokens_until: SystemTime::UNIX_EPOCH,
            secret: [7; 32].into(),
            lifetime: Duration::from_secs(3600),
        };
        TokenIssuer::new("https://issuer".to_owned(), SigningKeys::new(keys).expect("keys"))
    }

    fn token(issuer: &TokenIssuer, pod: &str, exp: i64) -> String {
        signed(issuer, None, false, pod, exp)
    }

    /// Signs a token with the key that signs under a record, naming the key or not.
    fn signed(issuer: &TokenIssuer, record: Option<&Object>, named: bool, pod: &str, exp: i64) -> String {
        let claims = json!({
            "iss": "https://issuer", "aud": ["https://issuer"], "iat": NOW, "nbf": NOW, "exp": exp, "jti": "j",
            "kubernetes.io": {
                "namespace": "default", "serviceaccount": {"name": "a", "uid": "new"},
                "pod": {"name": pod, "uid": "new"},
            },
        });
        let set = issuer.keys.of(record);
        let key = set.signing().expect("a key that signs").0;
        let header = Header { kid: named.then(|| key.id.clone()), ..Header::new(key.algorithm) };
        jsonwebtoken::encode(&header, &claims, &key.encoding).expect("a token")
    }

    /// The record after the first rotation: the second key signs.
    fn rotated() -> Arc<Object> {
        let record = json!({"keys": [
            {"seed": "", "signsFrom": NOW - 100, "signsUntil": NOW - 50, "tokensUntil": 0},
            {"seed": "c2VlZA==", "signsFrom": NOW - 50, "tokensUntil": 0},
        ]});
        Arc::new(Object::new(STORE_KEY.into(), record.to_string().into_bytes().into(), 1, 2))
    }

    #[tokio::test]
    async fn a_replica_that_lacks_a_key_catches_up_before_it_refuses_its_token() {
        let (issuer, record) = (issuer(), rotated());
        let late = |reachable| Lagging { record: Some(Arc::clone(&record)), ..lagging(reachable) };
        let new = signed(&issuer, Some(&record), true, "p", NOW + 600);
        let user = issuer.authenticate(&new, &late(true)).await.expect("a quorum").expect("a user");
        assert_eq!(user.name, "system:serviceaccount:default:a");
        assert_eq!(issuer.authenticate(&new, &late(false)).await.expect_err("503").code, 503);
        let old = signed(&issuer, None, true, "p", NOW + 600);
        assert!(
            issuer.authenticate(&old, &late(true)).await.expect("a quorum").is_some(),
            "of the key before"
        );
    }

    #[tokio::test]
    async fn made_up_keys_cost_no_barrier_while_the_replica_is_current() {
        let stranger = self::issuer();
        let unknown = signed(&stranger, None, true, "p", NOW + 600);
        let mut current = lagging(false);
        current.caught_up = AtomicBool::new(true);
        // A barrier would fail here.
        assert_eq!(issuer().authenticate(&unknown, &current).await.expect("no barrier"), None);
        assert_eq!(issuer().authenticate(&unknown, &lagging(true)).await.expect("a quorum"), None);
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
