//! Expiry of events, as in Kubernetes an hour after their last write (`--event-ttl`): otherwise every master
//! would hold every event ever written. `ApiServer::expire_events` runs it on the leader, for one term.
//!
//! Only the leader's clock decides; the deletion is an ordinary replicated transaction fenced by the term, so
//! replicas need no clock and a deposed leader deletes nothing.

use std::time::Duration;

use consensus::ProposeOptions;
use jiff::{SignedDuration, Timestamp};
use proto_api::kinds;
use proto_api::status::Status;
use serde::Deserialize;
use storage::{Mutation, Object, Precondition, Revision, Txn, TxnOutcome};

use super::key;
use super::store::Registry;
use crate::errors;

/// Number of events examined before other tasks get their turn.
const CHUNK: usize = 500;

/// Maximum number of events that one transaction deletes.
const BATCH: usize = 100;

/// Deadline of one transaction.
const DEADLINE: Duration = Duration::from_secs(5);

/// Longest time between two scans of all events.
const MAX_INTERVAL: Duration = Duration::from_secs(60);

/// Number of scans within the time to live: an event is deleted at most a sixtieth of it late.
const LOOKS: u32 = 60;

/// The times at which an event states it was written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Times {
    metadata: Meta,
    event_time: Option<String>,
    last_timestamp: Option<String>,
    series: Option<Series>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Meta {
    creation_timestamp: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Series {
    last_observed_time: Option<String>,
}

/// Returns when an event was last written: the latest of its times that is not in the future. `None` where
/// the object is not a valid event or has no such time.
fn last_written(event: &Object, now: Timestamp) -> Option<Timestamp> {
    let times: Times = serde_json::from_slice(&event.value).ok()?;
    let observed = times.series.and_then(|series| series.last_observed_time);
    let all = [times.metadata.creation_timestamp, times.event_time, times.last_timestamp, observed];
    all.into_iter().flatten().filter_map(|text| text.parse().ok()).filter(|time| *time <= now).max()
}

impl Registry {
    /// Deletes events that were not written for `ttl`, until the caller drops the future; after `term` has
    /// passed its deletions are refused.
    pub(crate) async fn expire_events(&self, term: u64, ttl: Duration) {
        let interval = (ttl / LOOKS).clamp(Duration::from_secs(1), MAX_INTERVAL);
        loop {
            tokio::time::sleep(interval).await;
            match self.expire_events_once(term, ttl).await {
                Ok(0) => {}
                Ok(count) => tracing::debug!(count, "events expired"),
                Err(status) => tracing::debug!(%status, "events could not be expired, will try again"),
            }
        }
    }

    /// Scans all events once, deletes expired ones and returns their number.
    async fn expire_events_once(&self, term: u64, ttl: Duration) -> Result<usize, Status> {
        let Some(kind) = kinds::by_resource("", "v1", "events") else { return Ok(0) };
        let now = Timestamp::try_from(self.clock.now()).unwrap_or(Timestamp::UNIX_EPOCH);
        let ttl = SignedDuration::try_from(ttl).unwrap_or(SignedDuration::MAX);
        let Ok(oldest) = now.checked_sub(ttl) else { return Ok(0) };
        let prefix = key::prefix(kind, "");
        let (mut after, mut deleted) = (None::<String>, 0);
        loop {
            let page = self
                .store()
                .range(&prefix, after.as_deref(), CHUNK, None)
                .map_err(|c| errors::compacted(c.asked, c.oldest))?;
            let expired: Vec<(String, Revision)> = page
                .objects
                .iter()
                .filter(|event| last_written(event, now).is_some_and(|written| written <= oldest))
                .map(|event| (event.key.to_string(), event.mod_revision))
                .collect();
            for batch in expired.chunks(BATCH) {
                deleted += self.delete_unchanged(term, batch).await?;
            }
            after = page.objects.last().map(|event| event.key.to_string());
            if !page.more || after.is_none() {
                return Ok(deleted);
            }
            tokio::task::yield_now().await;
        }
    }

    /// Deletes keys that are still at the given revisions, all or none; returns how many.
    async fn delete_unchanged(&self, term: u64, keys: &[(String, Revision)]) -> Result<usize, Status> {
        let at = |(key, mod_revision): &(String, Revision)| Precondition::AtRevision {
            key: key.clone(),
            mod_revision: *mod_revision,
        };
        let delete = |(key, _): &(String, Revision)| Mutation::Delete { key: key.clone() };
        let txn = Txn {
            preconditions: keys.iter().map(at).collect(),
            mutations: keys.iter().map(delete).collect(),
        };
        let options = ProposeOptions { fence: Some(term), deadline: DEADLINE };
        match self.consensus.propose(txn, options).await.map_err(errors::propose)? {
            TxnOutcome::Committed { .. } => Ok(keys.len()),
            // Another write changed one of the events: the next scan handles the batch.
            TxnOutcome::Failed { .. } => Ok(0),
            TxnOutcome::Fenced { term } => Err(errors::fenced(term)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn written(event: &Value) -> Option<String> {
        let object = Object::new("/k".into(), event.to_string().into_bytes().into(), 1, 1);
        let now = "2026-01-01T12:00:00Z".parse().expect("a time");
        last_written(&object, now).map(|time| time.to_string())
    }

    #[test]
    fn the_last_time_of_an_event_counts_unless_it_is_in_the_future() {
        let created = json!({"metadata": {"creationTimestamp": "2026-01-01T10:00:00Z"}});
        assert_eq!(written(&created).as_deref(), Some("2026-01-01T10:00:00Z"));
        let mut event = created.clone();
        event["lastTimestamp"] = json!("2026-01-01T11:00:00Z");
        assert_eq!(written(&event).as_deref(), Some("2026-01-01T11:00:00Z"));
        event["series"] = json!({"count": 2, "lastObservedTime": "2026-01-01T11:30:00.000000Z"});
        assert_eq!(written(&event).as_deref(), Some("2026-01-01T11:30:00Z"));
        event["series"] = json!({"lastObservedTime": "2036-01-01T11:30:00.000000Z"});
        event["eventTime"] = Value::Null;
        assert_eq!(written(&event).as_deref(), Some("2026-01-01T11:00:00Z"));
        assert_eq!(written(&json!({"metadata": {}})), None);
    }
}
