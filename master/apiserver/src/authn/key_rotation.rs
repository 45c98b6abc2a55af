//! Changes the keys of ServiceAccount tokens: the leader publishes a new key after two thirds of the lifetime of the
//! one that signs, lets it sign once every master can have it, and forgets old ones. Each change is a transaction on
//! the record as it was read, fenced by the term, so that a deposed leader changes nothing and a leader that dies
//! leaves a record that the next one goes on from.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use consensus::ProposeOptions;
use proto_api::status::Status;
use storage::{Mutation, Precondition, Txn, TxnOutcome};

use super::signing_keys::{KeySet, Record, SHORT_TOKEN_SECONDS, STORE_KEY, SigningKey, SigningKeys};
use crate::errors;
use crate::object_lookup::ObjectLookup;
use crate::registry::Registry;

/// Deadline of one change.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest and shortest time between two looks at the record.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// Seconds by which the noted end of tokens is later than asked for, so that few requests need a write.
const AHEAD_SECONDS: i64 = 3600;
/// Maximum number of attempts to note a longer token; each fails only because another change succeeded.
const ATTEMPTS: usize = 20;

/// Writes the record of a new cluster, before anything can be signed in it.
///
/// # Errors
///
/// 503 or 504 where the transaction is not acknowledged.
pub async fn begin(registry: &Registry, keys: &SigningKeys) -> Result<(), Status> {
    let set = keys.of(registry.signing_keys().as_deref());
    if set.revision.is_none() {
        write(registry, &set, &Record::first(registry.unix_now(), 0), None).await?;
    }
    Ok(())
}

/// Returns the key that signs a token that ends at `end`. Where that token lives long, it first notes in the record
/// that the key has to verify until then.
///
/// # Errors
///
/// 503 or 504 where that transaction is not acknowledged.
pub async fn key_for(registry: &Registry, keys: &SigningKeys, end: i64) -> Result<Arc<SigningKey>, Status> {
    for _ in 0..ATTEMPTS {
        let set = keys.of(registry.signing_keys().as_deref());
        let Some((key, tokens_until)) = set.signing() else { break };
        if end <= tokens_until.max(registry.unix_now().saturating_add(SHORT_TOKEN_SECONDS)) {
            return Ok(Arc::clone(key));
        }
        let record = set.record.with_tokens_until(end.saturating_add(AHEAD_SECONDS));
        write(registry, &set, &record, None).await?;
    }
    Err(Status::service_unavailable("the ServiceAccount keys change too often").with_retry_after(1))
}

/// Changes the keys when it is time, as the leader of `term`, until the caller drops the future.
pub async fn rotate(registry: &Registry, keys: &SigningKeys, term: u64) {
    let interval = (keys.lead() / 4).clamp(INTERVALS.0, INTERVALS.1);
    // The next key, and when this leader first saw it published, by its monotonic clock.
    let mut seen: Option<(String, Duration)> = None;
    loop {
        if let Err(status) = step(registry, keys, term, &mut seen).await {
            tracing::warn!(%status, "the ServiceAccount keys could not be changed, will try again");
        }
        tokio::time::sleep(interval).await;
    }
}

async fn step(
    registry: &Registry,
    keys: &SigningKeys,
    term: u64,
    seen: &mut Option<(String, Duration)>,
) -> Result<(), Status> {
    let set = keys.of(registry.signing_keys().as_deref());
    let now = registry.clock.monotonic();
    *seen = set.record.next_seed().map(|next| match seen.take() {
        Some((seed, since)) if seed == next => (seed, since),
        _ => (next.to_owned(), now),
    });
    let published = seen.as_ref().is_some_and(|(_, since)| now.saturating_sub(*since) >= keys.lead());
    let seed = || {
        let mut seed = [0; 32];
        registry.random.fill(&mut seed);
        base64::engine::general_purpose::STANDARD.encode(seed)
    };
    let Some(record) = set.record.step(registry.unix_now(), keys.lifetime(), published, seed) else {
        return Ok(());
    };
    if write(registry, &set, &record, Some(term)).await? {
        let set = keys.of(registry.signing_keys().as_deref());
        let signing = set.signing().map(|(key, _)| key.id.as_str());
        let next = record.next_seed().is_some();
        tracing::info!(signing, next, keys = set.keys.len(), "the ServiceAccount keys changed");
    }
    Ok(())
}

/// Replaces the record that `set` was read from; returns false where it has changed since.
async fn write(
    registry: &Registry,
    set: &KeySet,
    record: &Record,
    fence: Option<u64>,
) -> Result<bool, Status> {
    let key = STORE_KEY.to_owned();
    let unchanged = match set.revision {
        None => Precondition::Absent(key.clone()),
        Some(mod_revision) => Precondition::AtRevision { key: key.clone(), mod_revision },
    };
    let value = serde_json::to_vec(record).map_err(Status::internal)?.into();
    let txn = Txn { preconditions: vec![unchanged], mutations: vec![Mutation::Put { key, value }] };
    let options = ProposeOptions { fence, deadline: DEADLINE };
    match registry.consensus.propose(txn, options).await.map_err(errors::propose)? {
        TxnOutcome::Committed { .. } => Ok(true),
        TxnOutcome::Failed { .. } => Ok(false),
        TxnOutcome::Fenced { term } => Err(errors::fenced(term)),
    }
}
