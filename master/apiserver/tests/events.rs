//! Expiry tests: events are deleted a time after their last write, by the leader's clock and only in its
//! term.

mod test_server;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use master_apiserver::ServerLimits;
use proto_env::{CancellationToken, Clock, Env, SystemClock, TlsNetwork};
use serde_json::{Value, json};
use test_server::{MAPS, PATIENCE, World, config_map};

const EVENTS: &str = "/api/v1/namespaces/default/events";
const TTL: Duration = Duration::from_secs(60);

/// The machine's clock plus a number of seconds.
struct AheadClock {
    clock: SystemClock,
    ahead_seconds: AtomicU64,
}

impl Clock for AheadClock {
    fn now(&self) -> SystemTime {
        self.clock.now() + Duration::from_secs(self.ahead_seconds.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }
}

fn event(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": "default"},
        "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}, "reason": "Test", "type": "Normal",
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_written_for_its_time_goes_and_nothing_else() {
    let clock = Arc::new(AheadClock { clock: SystemClock::new(), ahead_seconds: AtomicU64::new(0) });
    let mut env = Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new());
    env.clock = Arc::clone(&clock) as Arc<dyn Clock>;
    let world = World::start_in(env, ServerLimits::default()).await;
    world.post(MAPS, config_map("kept", "1")).await.expect(201);
    // More events than one transaction deletes.
    for i in 0..150 {
        world.post(EVENTS, event(&format!("old{i}"))).await.expect(201);
    }
    world.post(EVENTS, event("again")).await.expect(201);

    clock.ahead_seconds.store(2 * TTL.as_secs(), Ordering::SeqCst);
    let now = jiff::Timestamp::try_from(clock.now()).expect("a time");
    world
        .merge(
            &format!("{EVENTS}/again"),
            json!({"count": 2, "lastTimestamp": now.to_string()[..19].to_owned() + "Z"}),
        )
        .await
        .expect(200);
    world.post(EVENTS, event("new")).await.expect(201);
    let mut watch = world
        .watch(&format!("{EVENTS}?watch=true&fieldSelector=metadata.name%3Dold149&resourceVersion=0"))
        .await;
    assert_eq!(watch.event().await, ("ADDED".to_owned(), "old149".to_owned()));

    let term = world.consensus.leadership().borrow().term;
    let names = async || {
        let list = world.get(EVENTS).await.expect(200).body;
        let items = list["items"].as_array().expect("a list").clone();
        items
            .iter()
            .map(|e| e["metadata"]["name"].as_str().unwrap_or_default().to_owned())
            .collect::<Vec<_>>()
    };
    // A deposed leader deletes nothing; its first scan would come after a second.
    let deposed = world.server.expire_events(term - 1, TTL);
    assert!(tokio::time::timeout(Duration::from_secs(2), deposed).await.is_err());
    assert_eq!(names().await.len(), 152);

    let server = world.server.clone();
    let leading = tokio::spawn(async move { server.expire_events(term, TTL).await });
    let began = std::time::Instant::now();
    while names().await.len() > 2 {
        assert!(began.elapsed() < PATIENCE, "{:?}", names().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(names().await, ["again", "new"]);
    assert_eq!(watch.event().await, ("DELETED".to_owned(), "old149".to_owned()));
    world.get(&format!("{MAPS}/kept")).await.expect(200);
    leading.abort();
}
