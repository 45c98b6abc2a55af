//! The handle that all verbs share: consensus, clock, randomness and settings. It reads single objects and is
//! the only place that proposes transactions. `list.rs`, `create.rs`, `update.rs` and `delete.rs` build on
//! it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use consensus::{Consensus, ProposeOptions};
use proto_api::kinds::{self, Kind};
use proto_api::status::Status;
use proto_env::{Clock, Random};
use serde_json::Value;
use storage::{Object, Precondition, Revision, Store, Txn, TxnOutcome};

use super::caught_up::{CaughtUp, RECENT};
use super::strategy::{AllocationContext, Strategy};
use super::{key, object};
use crate::authn::signing_keys::STORE_KEY;
use crate::context::Context;
use crate::errors;
use crate::object_lookup::ObjectLookup;
use crate::settings::ClusterSettings;

/// Longest time a read waits for a quorum; long enough for a lost leader to be replaced.
const BARRIER_DEADLINE: Duration = Duration::from_secs(5);
/// Longest time a write may look for a leader and a quorum.
const PROPOSE_DEADLINE: Duration = Duration::from_secs(15);
/// Longest time a readiness probe waits for a read barrier, where the replica has not caught up recently.
const READY_DEADLINE: Duration = Duration::from_secs(3);
/// Longest time a request waits for a revision that this replica has not reached, as in the stock watch
/// cache.
const REVISION_DEADLINE: Duration = Duration::from_secs(3);

/// Access to the cluster's objects through one master's consensus and local replica.
pub struct Registry {
    pub(crate) consensus: Arc<Consensus>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) settings: ClusterSettings,
    caught_up: CaughtUp,
}

/// The kind and the namespace of a request; the namespace is empty for cluster scope or all namespaces.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// Row of the kind in the table of kinds.
    pub kind: &'static Kind,
    /// Rules of the kind.
    pub strategy: &'static dyn Strategy,
    /// Namespace; empty for cluster scope or all namespaces.
    pub namespace: &'a str,
}

impl<'a> Target<'a> {
    /// Returns the target of a kind in a namespace.
    pub fn new(kind: &'static Kind, namespace: &'a str) -> Self {
        let strategy = super::kinds::strategy_for(kind.gvk.group, kind.resource);
        let namespace = if kind.namespaced { namespace } else { "" };
        Self { kind, strategy, namespace }
    }

    /// Returns the key of one object.
    pub fn key(&self, name: &str) -> String {
        key::key(self.kind, self.namespace, name)
    }

    /// Returns the 404 for one object.
    pub fn not_found(&self, name: &str) -> Status {
        Status::not_found(self.kind.gvk.group, self.kind.resource, name)
    }
}

impl Registry {
    /// Creates a registry over one master's consensus.
    pub fn new(
        consensus: Arc<Consensus>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        settings: ClusterSettings,
    ) -> Self {
        Self { consensus, clock, random, settings, caught_up: CaughtUp::default() }
    }

    /// Returns the local replica's store.
    pub fn store(&self) -> &Store {
        self.consensus.store()
    }

    /// Returns the settings that all masters share.
    pub fn settings(&self) -> &ClusterSettings {
        &self.settings
    }

    /// Waits until the local replica holds every write that was acknowledged before the call.
    ///
    /// # Errors
    ///
    /// 503 without a quorum.
    pub async fn barrier(&self) -> Result<(), Status> {
        self.barrier_within(BARRIER_DEADLINE).await
    }

    async fn barrier_within(&self, deadline: Duration) -> Result<(), Status> {
        let began = self.clock.monotonic();
        self.consensus.read_barrier(deadline).await.map_err(errors::read)?;
        self.caught_up.note(began);
        Ok(())
    }

    /// Returns whether the local replica has caught up recently. Uses the last read barrier where it is
    /// recent, and otherwise passes a new one, which asks the leader; see [`CaughtUp`].
    pub async fn has_caught_up(&self) -> bool {
        self.caught_up.within(self.clock.monotonic(), RECENT)
            || self.barrier_within(READY_DEADLINE).await.is_ok()
    }

    /// Returns whether this master currently knows a leader with a quorum.
    pub fn has_quorum(&self) -> bool {
        self.consensus.leadership().borrow().quorum
    }

    /// Waits until the local replica has reached a revision that the client has seen, possibly at another
    /// master.
    ///
    /// # Errors
    ///
    /// 504 with cause ResourceVersionTooLarge after three seconds.
    pub async fn reach(&self, revision: Revision) -> Result<(), Status> {
        if self.store().revision() >= revision {
            return Ok(());
        }
        self.store()
            .wait_for(revision, REVISION_DEADLINE)
            .await
            .map_err(|_| Status::too_large_resource_version(revision, self.store().revision()))
    }

    /// Makes the replica fresh enough for a read at `version`: consistent for `None`, any state for 0, else
    /// at least that revision.
    ///
    /// # Errors
    ///
    /// 503 without a quorum, 504 where the revision is not reached.
    pub async fn freshen(&self, ctx: &Context, version: Option<Revision>) -> Result<(), Status> {
        match version {
            None => self.barrier().await,
            Some(0) => {
                if !self.has_quorum() {
                    ctx.warn("no quorum: this answer may be stale");
                }
                Ok(())
            }
            Some(revision) => self.reach(revision).await,
        }
    }

    /// Returns one object.
    ///
    /// # Errors
    ///
    /// 404, or the error of making the read as fresh as requested.
    pub async fn get(
        &self,
        ctx: &Context,
        target: Target<'_>,
        name: &str,
        version: Option<Revision>,
    ) -> Result<Arc<Object>, Status> {
        self.freshen(ctx, version).await?;
        self.store().get(&target.key(name)).ok_or_else(|| target.not_found(name))
    }

    /// Returns one object of the local replica as a value; `None` where it is not there.
    pub fn peek(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let kind = kinds::KINDS.iter().find(|k| k.gvk.group == group && k.resource == resource)?;
        let object = self.store().get(&key::key(kind, namespace, name))?;
        object::value(&object, object.mod_revision).ok()
    }

    /// Proposes a transaction within the request's deadline.
    ///
    /// # Errors
    ///
    /// 503 or 504 as `errors.rs` decides, 403 for a writer whose term has passed.
    pub(crate) async fn propose(&self, ctx: &Context, txn: Txn) -> Result<TxnOutcome, Status> {
        let options = ProposeOptions { fence: ctx.fence, deadline: PROPOSE_DEADLINE.min(ctx.timeout) };
        match self.consensus.propose(txn, options).await.map_err(errors::propose)? {
            TxnOutcome::Fenced { term } => Err(errors::fenced(term)),
            outcome => Ok(outcome),
        }
    }

    /// Returns the state that allocation hooks may read.
    pub(crate) fn allocation_context(&self) -> AllocationContext<'_> {
        AllocationContext { store: self.store(), settings: &self.settings, random: &*self.random }
    }

    /// Returns the current time as objects carry it: RFC 3339 in seconds.
    pub fn now(&self) -> String {
        self.timestamp(0)
    }

    /// Returns the current time plus some seconds; the latest representable time where the sum overflows.
    pub fn timestamp(&self, plus_seconds: i64) -> String {
        let now = jiff::Timestamp::try_from(self.clock.now()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        let at =
            now.checked_add(jiff::SignedDuration::from_secs(plus_seconds)).unwrap_or(jiff::Timestamp::MAX);
        format_seconds(at)
    }

    /// Checks that the namespace of new content exists and is not terminating; returns the precondition that
    /// it is unchanged when the write is applied. `None` for cluster-scoped kinds.
    ///
    /// # Errors
    ///
    /// 404 where the namespace does not exist, 403 where it is terminating.
    pub(crate) async fn namespace_guard(
        &self,
        target: Target<'_>,
        name: &str,
    ) -> Result<Option<Precondition>, Status> {
        if !target.kind.namespaced {
            return Ok(None);
        }
        let key = key::core("namespaces", "", target.namespace);
        let mut found = self.store().get(&key);
        if found.as_ref().is_none_or(|n| is_terminating(n)) {
            self.barrier().await?;
            found = self.store().get(&key);
        }
        let Some(namespace) = found else {
            return Err(Status::not_found("", "namespaces", target.namespace));
        };
        if is_terminating(&namespace) {
            return Err(terminating(target, name));
        }
        Ok(Some(Precondition::AtRevision { key, mod_revision: namespace.mod_revision }))
    }
}

#[async_trait]
impl ObjectLookup for Registry {
    fn core(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.peek("", resource, namespace, name)
    }

    async fn catch_up(&self) -> Result<(), Status> {
        self.barrier().await
    }

    fn caught_up_within(&self, age: Duration) -> bool {
        self.caught_up.within(self.clock.monotonic(), age)
    }

    fn signing_keys(&self) -> Option<Arc<Object>> {
        self.store().get(STORE_KEY)
    }

    fn settings(&self) -> &ClusterSettings {
        &self.settings
    }

    fn suffix(&self, letters: usize) -> String {
        self.random.suffix(letters)
    }

    fn unix_now(&self) -> i64 {
        let since = self.clock.now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    }
}

/// Formats a time as RFC 3339 in whole seconds.
pub fn format_seconds(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn is_terminating(namespace: &Object) -> bool {
    object::value(namespace, 0).is_ok_and(|value| super::metadata::is_deleting(&value))
}

fn terminating(target: Target<'_>, name: &str) -> Status {
    let namespace = target.namespace;
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    Status::forbidden(target.kind.gvk.group, target.kind.resource, name, why).with_cause(
        "NamespaceTerminating",
        format!("namespace {namespace} is being terminated"),
        "metadata.namespace",
    )
}
