//! The keys of ServiceAccount tokens change while API servers use them: two servers over one store, as two masters
//! with equal replicas.

mod test_server;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use base64::Engine;
use master_apiserver::{ApiServer, ServerLimits, ServiceAccountKeys};
use proto_env::{CancellationToken, Clock, Env, SystemClock, TlsNetwork};
use serde_json::{Value, json};
use test_server::{PATIENCE, World, service_account_keys};

const ACCOUNT: &str = "/api/v1/namespaces/default/serviceaccounts/default/token";
const RECORD: &str = "/ephor/service-account-keys";
const DAY: u64 = 86_400;
const YEAR: Duration = Duration::from_secs(365 * DAY);

/// The machine's wall clock plus a number of seconds that the test sets.
struct Ahead(SystemClock, Arc<AtomicU64>);

impl Clock for Ahead {
    fn now(&self) -> SystemTime {
        self.0.now() + Duration::from_secs(self.1.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }
}

/// A world whose keys live for `lifetime`, and what its clock is ahead.
async fn start(lifetime: Duration) -> (World, Arc<AtomicU64>) {
    let ahead = Arc::new(AtomicU64::new(0));
    let mut env = Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new());
    env.clock = Arc::new(Ahead(SystemClock::new(), Arc::clone(&ahead)));
    let keys = ServiceAccountKeys { lifetime, ..service_account_keys(&env) };
    let keys = ServiceAccountKeys { first_key_since: env.clock.now(), ..keys };
    let world = World::start_with_keys(env, ServerLimits::default(), keys).await;
    world.server.begin_service_account_keys().await.expect("a record");
    (world, ahead)
}

/// Rotates the keys on `server` until the handle is aborted.
fn lead(server: &ApiServer, term: u64) -> tokio::task::JoinHandle<()> {
    let server = server.clone();
    tokio::spawn(async move { server.rotate_service_account_keys(term).await })
}

async fn token(world: &World, seconds: u64) -> String {
    let issued = world.post(ACCOUNT, json!({"spec": {"expirationSeconds": seconds}})).await.expect(201).body;
    issued["status"]["token"].as_str().expect("a token").to_owned()
}

fn key_of(token: &str) -> String {
    let header = token.split('.').next().expect("a header");
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).expect("base64");
    let header: Value = serde_json::from_slice(&header).expect("JSON");
    header["kid"].as_str().expect("a kid").to_owned()
}

async fn published(world: &World) -> Vec<String> {
    let answer = world.get("/openid/v1/jwks").await.expect(200);
    assert!(
        answer.headers.get("cache-control").is_some_and(|it| it.as_bytes().starts_with(b"public, max-age="))
    );
    let keys = answer.body["keys"].as_array().expect("keys").iter();
    keys.map(|key| key["kid"].as_str().expect("a kid").to_owned()).collect()
}

/// Returns whether a server accepts a token from a client over TLS.
async fn is_known(server: &ApiServer, world: &World, token: &str) -> bool {
    let code = test_server::code_with_token(server, world, token, test_server::PODS).await;
    assert!(matches!(code, 401 | 403), "{code}: the account may do nothing");
    code == 403
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited for {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_is_refused_while_keys_change_and_leaders_die() {
    let (world, ahead) = start(YEAR).await;
    let (one, two) = (world.server.clone(), world.another_server());
    let term = world.consensus.leadership().borrow().term;
    let old = token(&world, 3600).await;
    let first = key_of(&old);
    assert_eq!(published(&world).await, std::slice::from_ref(&first));

    ahead.store(244 * DAY, Ordering::Relaxed);
    let deposed = lead(&two, term - 1);
    let leader = lead(&one, term);
    until("the next key", async || published(&world).await.len() == 2).await;
    let next = published(&world).await[1].clone();
    leader.abort();
    let before = token(&world, 3600).await;
    assert_eq!(key_of(&before), first, "a key signs only some time after it was published");

    // Its successor goes on with the key that it finds. A year's lead is two hours; it waits for them by its own clock.
    let successor = lead(&world.another_server_with(Duration::from_secs(12)), term);
    until("the next key to sign", async || key_of(&token(&world, 3600).await) == next).await;
    successor.abort();
    deposed.abort();
    assert_eq!(published(&world).await, [first.clone(), next.clone()], "nobody made a third key");
    let new = token(&world, 3600).await;
    for server in [&one, &two] {
        assert!(is_known(server, &world, &before).await, "signed by the key before");
        assert!(is_known(server, &world, &new).await, "signed by the new key");
        assert!(!is_known(server, &world, &old).await, "244 days old");
    }
    ahead.fetch_add(DAY, Ordering::Relaxed);
    let leader = lead(&two, term);
    until("the first key to go", async || published(&world).await == [next.clone()]).await;
    leader.abort();
    world.env.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_verifies_for_as_long_as_its_longest_token_lives() {
    let (world, ahead) = start(YEAR).await;
    let term = world.consensus.leadership().borrow().term;
    let record = || world.consensus.store().get(RECORD).expect("a record").mod_revision;
    let began = record();
    token(&world, 3600).await;
    assert_eq!(record(), began, "the tokens of pods cost no write");
    // A year and a half.
    let long = token(&world, 548 * DAY).await;
    assert!(record() > began);
    let noted = record();
    token(&world, 548 * DAY).await;
    assert_eq!(record(), noted, "one write is good for an hour of such tokens");

    let fast = world.another_server_with(Duration::from_secs(12));
    for days in [244, 488] {
        ahead.store(days * DAY, Ordering::Relaxed);
        let signs = key_of(&token(&world, 3600).await);
        let leader = lead(&fast, term);
        until("another key", async || key_of(&token(&world, 3600).await) != signs).await;
        leader.abort();
    }
    assert!(published(&world).await.contains(&key_of(&long)));
    assert!(is_known(&world.server, &world, &long).await, "after two rotations");
    ahead.store(549 * DAY, Ordering::Relaxed);
    let leader = lead(&world.server, term);
    until("its key to go", async || !published(&world).await.contains(&key_of(&long))).await;
    leader.abort();
    world.env.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_say_when_the_key_ends_and_the_store_holds_no_key() {
    let (world, _) = start(YEAR).await;
    let text = world.get("/metrics").await.expect(200).text;
    let prefix = "ephor_certificate_expiration_timestamp_seconds{certificate=\"service-account-key\"} ";
    let end: f64 =
        text.lines().find_map(|line| line.strip_prefix(prefix)).expect("it").parse().expect("a time");
    let now = world.env.clock.now().duration_since(SystemTime::UNIX_EPOCH).expect("now").as_secs_f64();
    assert!((end - now - YEAR.as_secs_f64()).abs() < 60.0, "{end}");
    let record = world.consensus.store().get(RECORD).expect("a record");
    let record: Value = serde_json::from_slice(&record.value).expect("JSON");
    let fields: Vec<&String> = record["keys"][0].as_object().expect("a key").keys().collect();
    assert_eq!(fields, ["seed", "signsFrom", "tokensUntil"]);
    // No path of the API leads there.
    for path in
        ["/ephor/service-account-keys", "/api/v1/service-account-keys", "/apis/ephor/service-account-keys"]
    {
        world.get(path).await.expect(404);
    }
    world.env.shutdown.cancel();
}
