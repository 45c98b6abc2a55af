//! Deletes objects: preconditions, grace periods, finalizers, propagation. Follows the order of Kubernetes'
//! generic store: first records on the object what must be recorded; then, when nothing delays it, removes
//! the object.

use proto_api::status::Status;
use serde_json::Value;
use storage::{Mutation, Object, Precondition, Revision, Txn, TxnOutcome};

use super::strategy::ObjectChange;
use super::write::{Write, encode, starving};
use super::{Registry, Target, metadata, object};
use crate::admission;
use crate::options::DeleteOptions;

const ATTEMPTS: usize = 256;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// Result of a delete.
pub struct Deleted {
    /// The object after the delete, or its last state where it was removed.
    pub object: Value,
    /// Whether the object was removed; otherwise finalizers or the grace period delay its deletion.
    pub gone: bool,
}

/// The next write of a deletion.
enum Step {
    /// Nothing: the deletion is already in progress.
    Pending,
    /// The object with its deletion recorded, which then waits for the grace period or finalizers.
    Mark(Value),
    /// The removal of the object; the value is the object to answer with.
    Remove(Value),
}

impl Registry {
    /// Deletes an object, or starts its deletion.
    ///
    /// # Errors
    ///
    /// 404, 409 for preconditions that fail, 403 for objects that may not be deleted.
    pub async fn delete(
        &self,
        write: Write<'_>,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let target = write.target;
        let key = target.key(name);
        let mut confirmed: Option<Option<Revision>> = None;
        for _ in 0..ATTEMPTS {
            let current = self.store().get(&key);
            let seen = current.as_ref().map(|o| o.mod_revision);
            let step = match &current {
                Some(current) => self.deletion_step(write, name, current, options),
                None => admission::check_delete(&write.attributes(), name, None)
                    .and_then(|()| Err(target.not_found(name))),
            };
            if matches!(step, Err(_) | Ok(Step::Pending)) && confirmed != Some(seen) {
                self.barrier().await?;
                confirmed = Some(self.store().get(&key).map(|o| o.mod_revision));
                if confirmed != Some(seen) {
                    continue;
                }
            }
            let step = step?;
            let Some(current) = current else { return Err(target.not_found(name)) };
            if let Some(done) = self.commit_delete(write, &key, &current, step).await? {
                return Ok(done);
            }
        }
        Err(starving())
    }

    async fn commit_delete(
        &self,
        write: Write<'_>,
        key: &str,
        current: &Object,
        step: Step,
    ) -> Result<Option<Deleted>, Status> {
        let (mut object, gone, mut mutations, mut preconditions) = match step {
            Step::Pending => {
                let object = object::value(current, current.mod_revision)?;
                return Ok(Some(Deleted { object, gone: false }));
            }
            Step::Mark(object) => {
                let value = encode(&object)?.into();
                (object, false, vec![Mutation::Put { key: key.to_owned(), value }], Vec::new())
            }
            Step::Remove(object) => {
                let old = object::value(current, current.mod_revision)?;
                let released = write
                    .target
                    .strategy
                    .allocations(&self.allocation_context(), ObjectChange::Delete { old: &old })?;
                let mut mutations = vec![Mutation::Delete { key: key.to_owned() }];
                mutations.extend(released.mutations);
                (object, true, mutations, released.preconditions)
            }
        };
        if write.dry_run {
            return Ok(Some(Deleted { object, gone }));
        }
        let mod_revision = current.mod_revision;
        preconditions.insert(0, Precondition::AtRevision { key: key.to_owned(), mod_revision });
        let txn = Txn { preconditions, mutations: std::mem::take(&mut mutations) };
        match self.propose(write.ctx, txn).await? {
            TxnOutcome::Committed { revisions } => {
                object::set_version(&mut object, revisions.first().copied());
                Ok(Some(Deleted { object, gone }))
            }
            TxnOutcome::Failed { at, .. } => {
                self.reach(at).await?;
                Ok(None)
            }
            TxnOutcome::Fenced { term } => Err(crate::errors::fenced(term)),
        }
    }

    /// Decides which step deletes the stored object.
    fn deletion_step(
        &self,
        write: Write<'_>,
        name: &str,
        current: &Object,
        options: &DeleteOptions,
    ) -> Result<Step, Status> {
        let target = write.target;
        let old = object::value(current, current.mod_revision)?;
        check_preconditions(target, name, &old, options)?;
        admission::check_delete(&write.attributes(), name, Some(&old))?;
        let mut new = old.clone();
        if is_namespace(target) {
            return Ok(self.namespace_step(old, new, options));
        }
        let grace = match self.begin_grace(target, &mut new, options) {
            Grace::Pending => return Ok(Step::Pending),
            Grace::Not => None,
            Grace::Seconds(seconds) => Some(seconds),
        };
        update_finalizers(&mut new, options);
        let waits = waits_for_finalizers(&new);
        match grace {
            None if waits => {
                self.mark_deleting(&mut new);
                Ok(if new == old { Step::Pending } else { Step::Mark(new) })
            }
            None => Ok(Step::Remove(new)),
            Some(seconds) if seconds > 0 || waits => Ok(Step::Mark(new)),
            Some(_) => Ok(Step::Remove(new)),
        }
    }

    /// Decides the step of a namespace: it stays, terminating, until its controller has emptied it and its
    /// finalizers are gone.
    fn namespace_step(&self, old: Value, mut new: Value, options: &DeleteOptions) -> Step {
        if !metadata::is_deleting(&old) {
            let now = Value::from(self.now());
            metadata::of(&mut new).insert("deletionTimestamp".to_owned(), now);
            new["status"]["phase"] = Value::from("Terminating");
            update_finalizers(&mut new, options);
            return Step::Mark(new);
        }
        if waits_for_finalizers(&new) { Step::Pending } else { Step::Remove(new) }
    }

    /// Determines the grace period as `rest.BeforeDelete` does, and records it in `new`.
    fn begin_grace(&self, target: Target<'_>, new: &mut Value, options: &DeleteOptions) -> Grace {
        let set_grace = |new: &mut Value, at: String, seconds: i64| {
            let meta = metadata::of(new);
            meta.insert("deletionTimestamp".to_owned(), Value::from(at));
            meta.insert("deletionGracePeriodSeconds".to_owned(), Value::from(seconds));
        };
        // As in stock, a negative period means one second.
        let requested = options.grace_period_seconds.map(|s| if s < 0 { 1 } else { s });
        if metadata::is_deleting(new) {
            let before =
                new.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
            if before == 0 {
                return Grace::Not;
            }
            return match requested {
                Some(seconds) if seconds < before => {
                    let at = shortened(metadata::text(new, "deletionTimestamp"), before - seconds)
                        .unwrap_or_else(|| self.timestamp(seconds));
                    set_grace(new, at, seconds);
                    Grace::Seconds(seconds)
                }
                _ => Grace::Pending,
            };
        }
        let Some(seconds) = target.strategy.graceful_delete_seconds(new, requested) else {
            return Grace::Not;
        };
        let seconds = if seconds < 0 { 1 } else { seconds };
        set_grace(new, self.timestamp(seconds), seconds);
        bump(new);
        Grace::Seconds(seconds)
    }

    fn mark_deleting(&self, new: &mut Value) {
        if !metadata::is_deleting(new) {
            bump(new);
            let now = Value::from(self.now());
            metadata::of(new).insert("deletionTimestamp".to_owned(), now);
        }
        metadata::of(new).insert("deletionGracePeriodSeconds".to_owned(), Value::from(0));
    }
}

/// Grace period of a delete.
enum Grace {
    /// The kind has no grace period, or the period is over.
    Not,
    /// The deletion is already waiting, and the request does not shorten its grace period.
    Pending,
    /// The period in seconds, recorded just now.
    Seconds(i64),
}

fn bump(obj: &mut Value) {
    let generation = metadata::generation(obj);
    if generation > 0 {
        metadata::of(obj).insert("generation".to_owned(), Value::from(generation + 1));
    }
}

fn shortened(timestamp: &str, seconds: i64) -> Option<String> {
    let at: jiff::Timestamp = timestamp.parse().ok()?;
    at.checked_sub(jiff::SignedDuration::from_secs(seconds)).ok().map(super::store::format_seconds)
}

fn is_namespace(target: Target<'_>) -> bool {
    target.kind.gvk.group.is_empty() && target.kind.resource == "namespaces"
}

/// Returns whether finalizers (in the metadata, or a namespace's own) keep an object from being removed.
pub(super) fn waits_for_finalizers(obj: &Value) -> bool {
    let of_namespace = obj.get("kind").and_then(Value::as_str) == Some("Namespace")
        && obj.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|f| !f.is_empty());
    of_namespace || !metadata::finalizers(obj).is_empty()
}

/// Adds or removes the finalizers that implement a propagation policy.
fn update_finalizers(obj: &mut Value, options: &DeleteOptions) {
    let before: Vec<String> = metadata::finalizers(obj).into_iter().map(str::to_owned).collect();
    let has = |name: &str| before.iter().any(|f| f == name);
    let orphan = match options.policy() {
        Some(policy) => policy == "Orphan",
        None => has(ORPHAN),
    };
    let foreground = match options.policy() {
        Some(policy) => policy == "Foreground",
        None => has(FOREGROUND),
    };
    let mut after: Vec<String> =
        before.iter().filter(|f| *f != ORPHAN && *f != FOREGROUND).cloned().collect();
    if orphan {
        after.push(ORPHAN.to_owned());
    }
    if foreground {
        after.push(FOREGROUND.to_owned());
    }
    let same = after.len() == before.len() && after.iter().all(|f| has(f));
    if same {
        return;
    }
    let meta = metadata::of(obj);
    if after.is_empty() {
        meta.remove("finalizers");
    } else {
        meta.insert("finalizers".to_owned(), Value::from(after));
    }
}

fn check_preconditions(
    target: Target<'_>,
    name: &str,
    old: &Value,
    options: &DeleteOptions,
) -> Result<(), Status> {
    let gvk = target.kind.gvk;
    let (uid, version) = (metadata::text(old, "uid"), metadata::text(old, "resourceVersion"));
    if let Some(wanted) = options.uid.as_deref().filter(|w| *w != uid) {
        if is_namespace(target) {
            let why =
                format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}");
            return Err(Status::conflict(gvk.group, target.kind.resource, name, why));
        }
        let why = format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(target.kind.storage.0, gvk.kind, name, why));
    }
    if let Some(wanted) = options.resource_version.as_deref().filter(|w| *w != version) {
        let why = format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({version}). The object might have been modified"
        );
        return Err(Status::conflict(target.kind.storage.0, gvk.kind, name, why));
    }
    Ok(())
}
