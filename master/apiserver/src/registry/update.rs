//! Updates objects: make the new object from the stored one, admit, validate, allocate, propose; repeat on
//! newer state where another write came first. Handlers of update, patch, scale, binding and other
//! subresources call it.

use proto_api::field::{Error, ErrorList, Path};
use proto_api::status::Status;
use serde_json::Value;
use storage::{Mutation, Object, Precondition, Revision, Txn, TxnOutcome};

use super::kinds::{namespace, pod};
use super::strategy::{Allocations, ObjectChange};
use super::write::{ATTEMPTS, Rules, Write, WriteAttempt, canonical, encode, invalid_unless_empty, starving};
use super::{Registry, Target, metadata, object};
use crate::admission::{self, Attributes};
use crate::options::bad_uint;

/// Result of an update.
pub struct Updated {
    /// The object as it is stored now.
    pub object: Value,
    /// Whether the update created the object.
    pub created: bool,
}

/// The write that an update needs.
enum UpdateWrite {
    Unchanged(Value),
    Put { object: Value, bytes: Vec<u8>, allocations: Allocations },
    Delete { object: Value, allocations: Allocations },
}

impl Registry {
    /// Replaces the stored object by the result of `make`, which is called again whenever newer state is
    /// found.
    ///
    /// An error of `make` or of a rule is returned only when a read barrier has confirmed the state it is
    /// based on: the local replica may lag behind what the client has seen.
    ///
    /// # Errors
    ///
    /// Any Status an update can have.
    pub async fn update<F>(
        &self,
        write: Write<'_>,
        name: &str,
        rules: Rules,
        mut make: F,
    ) -> Result<Updated, Status>
    where
        F: FnMut(Option<&Value>) -> Result<Value, Status> + Send,
    {
        let key = write.target.key(name);
        let mut confirmed: Option<Option<Revision>> = None;
        for _ in 0..ATTEMPTS {
            let current = self.store().get(&key);
            let seen = current.as_ref().map(|o| o.mod_revision);
            let next = match &current {
                Some(current) => self.next_state(write, current, rules, &mut make).await,
                None => Err(write.target.not_found(name)),
            };
            let settled = matches!(&next, Err(_) | Ok(UpdateWrite::Unchanged(_)));
            if settled && confirmed != Some(seen) {
                self.barrier().await?;
                confirmed = Some(self.store().get(&key).map(|o| o.mod_revision));
                if confirmed != Some(seen) {
                    continue;
                }
            }
            if current.is_none() && write.target.strategy.allow_create_on_update() && rules == Rules::Main {
                let object = self.create(write, make(None)?).await?;
                return Ok(Updated { object, created: true });
            }
            let next = next?;
            if let UpdateWrite::Unchanged(object) = next {
                return Ok(Updated { object, created: false });
            }
            match self.commit_update(write, &key, seen.unwrap_or_default(), next).await? {
                WriteAttempt::Done(object) => return Ok(Updated { object, created: false }),
                WriteAttempt::Newer(revision) => self.reach(revision).await?,
                WriteAttempt::Taken => {}
            }
        }
        Err(starving())
    }

    async fn next_state<F>(
        &self,
        write: Write<'_>,
        current: &Object,
        rules: Rules,
        make: &mut F,
    ) -> Result<UpdateWrite, Status>
    where
        F: FnMut(Option<&Value>) -> Result<Value, Status> + Send,
    {
        let target = write.target;
        let old = object::value(current, current.mod_revision)?;
        let mut new = make(Some(&old))?;
        check_version(target, &new, &old, current.mod_revision)?;
        keep_system_fields(&mut new, &old);
        if rules != Rules::Binding {
            target.strategy.default(&mut new);
        }
        admission::check_update(self, &attributes(write, rules), &new, &old).await?;
        prepare_update(target, rules, &mut new, &old);
        if rules == Rules::Main {
            admission::admit_update(self.settings(), &write.attributes(), &mut new, &old);
        }
        self.validate_update(write, rules, &new, &old)?;
        canonical(target, &mut new);
        let bytes = encode(&new)?;
        if bytes == current.value.as_ref() {
            return Ok(UpdateWrite::Unchanged(old));
        }
        if deletes_during_update(&new, &old) {
            let allocations = target
                .strategy
                .allocations(&self.allocation_context(), ObjectChange::Delete { old: &old })?;
            return Ok(UpdateWrite::Delete { object: new, allocations });
        }
        if rules != Rules::Main {
            return Ok(UpdateWrite::Put { object: new, bytes, allocations: Allocations::default() });
        }
        let change = ObjectChange::Update { new: &mut new, old: &old };
        let allocations = target.strategy.allocations(&self.allocation_context(), change)?;
        canonical(target, &mut new);
        Ok(UpdateWrite::Put { bytes: encode(&new)?, object: new, allocations })
    }

    fn validate_update(
        &self,
        write: Write<'_>,
        rules: Rules,
        new: &Value,
        old: &Value,
    ) -> Result<(), Status> {
        let target = write.target;
        let mut errs = ErrorList::default();
        metadata::validate_update(new, old, target.kind, target.strategy.name_rule(), &mut errs);
        match rules {
            Rules::Main => target.strategy.validate_update(new, old, &mut errs),
            Rules::Status => target.strategy.validate_status_update(new, old, &mut errs),
            Rules::Finalize => namespace::validate_finalize(new, &mut errs),
            Rules::EphemeralContainers => pod::validate_ephemeral_containers(new, old, &mut errs),
            Rules::Resize => pod::validate_resize(new, old, &mut errs),
            Rules::Binding => {}
        }
        invalid_unless_empty(target, metadata::text(old, "name"), errs)?;
        if rules == Rules::Main {
            for warning in target.strategy.warnings(new, Some(old)) {
                write.ctx.warn(warning);
            }
        }
        Ok(())
    }

    async fn commit_update(
        &self,
        write: Write<'_>,
        key: &str,
        revision: Revision,
        next: UpdateWrite,
    ) -> Result<WriteAttempt, Status> {
        let (mut object, mutation, allocations) = match next {
            UpdateWrite::Unchanged(object) => return Ok(WriteAttempt::Done(object)),
            UpdateWrite::Put { object, bytes, allocations } => {
                (object, Mutation::Put { key: key.to_owned(), value: bytes.into() }, allocations)
            }
            UpdateWrite::Delete { object, allocations } => {
                (object, Mutation::Delete { key: key.to_owned() }, allocations)
            }
        };
        if write.dry_run {
            return Ok(WriteAttempt::Done(object));
        }
        let mut preconditions =
            vec![Precondition::AtRevision { key: key.to_owned(), mod_revision: revision }];
        preconditions.extend(allocations.preconditions);
        let mut mutations = vec![mutation];
        mutations.extend(allocations.mutations);
        match self.propose(write.ctx, Txn { preconditions, mutations }).await? {
            TxnOutcome::Committed { revisions } => {
                object::set_version(&mut object, revisions.first().copied());
                Ok(WriteAttempt::Done(object))
            }
            TxnOutcome::Failed { at, .. } => Ok(WriteAttempt::Newer(at)),
            TxnOutcome::Fenced { term } => Err(crate::errors::fenced(term)),
        }
    }
}

/// Returns the attributes for admission; the older `bindings` resource counts as the `binding` subresource of
/// pods.
fn attributes(write: Write<'_>, rules: Rules) -> Attributes<'_> {
    let attributes = write.attributes();
    if rules == Rules::Binding { Attributes { subresource: "binding", ..attributes } } else { attributes }
}

/// Checks the uid and the resourceVersion the client sent against the stored object.
fn check_version(target: Target<'_>, new: &Value, old: &Value, stored: Revision) -> Result<(), Status> {
    let (group, resource) = (target.kind.gvk.group, target.kind.resource);
    let name = metadata::text(old, "name");
    let (uid, old_uid) = (metadata::text(new, "uid"), metadata::text(old, "uid"));
    if !uid.is_empty() && uid != old_uid {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}");
        return Err(Status::conflict(group, resource, name, why));
    }
    let version = metadata::text(new, "resourceVersion");
    if version.is_empty() || version == "0" {
        if target.strategy.allow_unconditional_update() {
            return Ok(());
        }
        let path = Path::new("metadata").child("resourceVersion");
        let errs = ErrorList(vec![Error::invalid(&path, 0, "must be specified for an update")]);
        return Err(Status::invalid(group, resource, name, errs));
    }
    match version.parse::<Revision>() {
        Err(_) => Err(Status::failure(500, "", bad_uint(version))),
        Ok(revision) if revision == stored => Ok(()),
        Ok(_) => Err(Status::modified(group, resource, name)),
    }
}

/// Restores the metadata that only the server may write.
fn keep_system_fields(new: &mut Value, old: &Value) {
    let from = |key: &str| old.get("metadata").and_then(|m| m.get(key)).cloned();
    let meta = metadata::of(new);
    for key in ["resourceVersion", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        match from(key) {
            Some(value) => meta.insert(key.to_owned(), value),
            None => meta.remove(key),
        };
    }
    for key in ["uid", "creationTimestamp", "namespace"] {
        let absent = meta.get(key).is_none_or(|v| v.is_null() || v.as_str() == Some(""));
        if let (true, Some(value)) = (absent, from(key)) {
            meta.insert(key.to_owned(), value);
        }
    }
    meta.remove("selfLink");
    meta.remove("managedFields");
}

fn prepare_update(target: Target<'_>, rules: Rules, new: &mut Value, old: &Value) {
    match rules {
        Rules::Binding => {}
        Rules::Finalize => {
            let finalizers = new.pointer("/spec/finalizers").cloned();
            let version = metadata::text(new, "resourceVersion").to_owned();
            *new = old.clone();
            metadata::of(new).insert("resourceVersion".to_owned(), Value::from(version));
            if let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) {
                match finalizers {
                    Some(list) => spec.insert("finalizers".to_owned(), list),
                    None => spec.remove("finalizers"),
                };
            }
        }
        Rules::EphemeralContainers => {
            pod::prepare_ephemeral_containers(new, old);
            bump_generation(target, new, old);
        }
        Rules::Resize => {
            pod::prepare_resize(new, old);
            bump_generation(target, new, old);
        }
        Rules::Main => {
            if target.kind.subresource("status").is_some() {
                copy_member(new, old, "status");
            }
            target.strategy.prepare_for_update(new, old);
            bump_generation(target, new, old);
        }
        Rules::Status => {
            let mut kept = old.clone();
            for key in ["status", "metadata"] {
                copy_member(&mut kept, new, key);
            }
            *new = kept;
            target.strategy.prepare_for_status_update(new, old);
        }
    }
}

/// Copies a top-level member, or removes it where `from` has none.
fn copy_member(to: &mut Value, from: &Value, key: &str) {
    if let Some(map) = to.as_object_mut() {
        match from.get(key) {
            Some(value) => map.insert(key.to_owned(), value.clone()),
            None => map.remove(key),
        };
    }
}

fn bump_generation(target: Target<'_>, new: &mut Value, old: &Value) {
    let changed = |obj: &Value| {
        let mut rest = obj.as_object().cloned().unwrap_or_default();
        rest.retain(|key, _| !matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind"));
        rest
    };
    let mut written = new.clone();
    canonical(target, &mut written);
    if target.strategy.has_generation() && changed(&written) != changed(old) {
        let next = metadata::generation(old) + 1;
        metadata::of(new).insert("generation".to_owned(), Value::from(next));
    }
}

/// Returns whether an update removes the last finalizer that delayed a deletion.
fn deletes_during_update(new: &Value, old: &Value) -> bool {
    let grace = old.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
    metadata::is_deleting(old) && grace == 0 && !super::delete::waits_for_finalizers(new)
}
