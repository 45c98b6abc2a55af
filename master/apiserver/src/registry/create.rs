//! Create: stamp, admit, validate, allocate, propose. `handlers/create.rs` calls it with what the client sent.

use proto_api::field::ErrorList;
use proto_api::status::Status;
use serde_json::{Map, Value};
use storage::{Mutation, Precondition, Txn, TxnOutcome};

use super::strategy::Change;
use super::write::{ATTEMPTS, Tried, Write, canonical, encode, invalid_unless_empty, starving};
use super::{Registry, Target, metadata, object};
use crate::admission;

/// How many generated names are tried, as in stock.
const NAME_ATTEMPTS: usize = 8;

impl Registry {
    /// Creates an object.
    ///
    /// # Errors
    ///
    /// Any Status a create can have.
    pub async fn create(&self, write: Write<'_>, mut obj: Value) -> Result<Value, Status> {
        let target = write.target;
        let generate =
            metadata::text(&obj, "name").is_empty() && !metadata::text(&obj, "generateName").is_empty();
        if !metadata::text(&obj, "resourceVersion").is_empty() {
            return Err(Status::failure(
                500,
                "",
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let name = metadata::text(&obj, "name").to_owned();
        self.namespace_guard(target, &name).await?;
        target.strategy.default(&mut obj);
        admission::admit_create(self, write, &mut obj).await?;
        self.prepare_create(target, &mut obj);
        let mut names_left = NAME_ATTEMPTS;
        for _ in 0..ATTEMPTS {
            let name = metadata::text(&obj, "name").to_owned();
            self.validate_create(write, &obj, &name)?;
            match self.try_create(write, &name, obj.clone()).await? {
                Tried::Done(object) => return Ok(object),
                Tried::Newer(revision) => self.reach(revision).await?,
                Tried::Taken if generate && names_left > 1 => {
                    names_left -= 1;
                    self.generate_name(&mut obj);
                }
                Tried::Taken if generate => {
                    let gvk = target.kind.gvk;
                    return Err(Status::generate_name_conflict(gvk.group, target.kind.resource, &name, 1));
                }
                Tried::Taken => {
                    return Err(Status::already_exists(target.kind.gvk.group, target.kind.resource, &name));
                }
            }
        }
        Err(starving())
    }

    fn validate_create(&self, write: Write<'_>, obj: &Value, name: &str) -> Result<(), Status> {
        let target = write.target;
        let mut errs = ErrorList::default();
        let mut own = ErrorList::default();
        target.strategy.validate(obj, &mut own);
        // A kind whose own validation leaves metadata alone gets the generic pass only when that found nothing.
        if own.is_empty() || metadata::is_part_of_validation(target.kind) {
            metadata::validate_create(obj, target.kind, target.strategy.name_rule(), &mut errs);
        }
        errs.append(own);
        invalid_unless_empty(target, name, errs)?;
        for warning in target.strategy.warnings(obj, None) {
            write.ctx.warn(warning);
        }
        Ok(())
    }

    fn generate_name(&self, obj: &mut Value) {
        let base = metadata::text(obj, "generateName").to_owned();
        let name = metadata::generated_name(&base, &*self.random);
        metadata::of(obj).insert("name".to_owned(), Value::from(name));
    }

    /// Stamps what the server owns and drops what a client may not set.
    fn prepare_create(&self, target: Target<'_>, obj: &mut Value) {
        if target.kind.subresource("status").is_some() && !target.strategy.keeps_status_on_create() {
            obj["status"] = Value::Object(Map::new());
        }
        let meta = metadata::of(obj);
        for key in
            ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields", "generation"]
        {
            meta.remove(key);
        }
        meta.insert("uid".to_owned(), Value::from(self.random.uuid()));
        meta.insert("creationTimestamp".to_owned(), Value::from(self.now()));
        if target.kind.namespaced {
            meta.insert("namespace".to_owned(), Value::from(target.namespace));
        } else {
            meta.remove("namespace");
        }
        if target.strategy.has_generation() {
            meta.insert("generation".to_owned(), Value::from(1));
        }
        let unnamed = metadata::text(obj, "name").is_empty();
        if unnamed && !metadata::text(obj, "generateName").is_empty() {
            self.generate_name(obj);
        }
        target.strategy.prepare_for_create(obj);
    }

    async fn try_create(&self, write: Write<'_>, name: &str, mut obj: Value) -> Result<Tried, Status> {
        let target = write.target;
        let key = target.key(name);
        let guard = self.namespace_guard(target, name).await?;
        let change = Change::Create { new: &mut obj };
        let allocations = target.strategy.allocations(&self.allocation_context(), change)?;
        canonical(target, &mut obj);
        if write.dry_run {
            self.barrier().await?;
            return Ok(if self.store().get(&key).is_some() { Tried::Taken } else { Tried::Done(obj) });
        }
        let mut preconditions = vec![Precondition::Absent(key.clone())];
        preconditions.extend(guard);
        preconditions.extend(allocations.preconditions);
        let mut mutations = vec![Mutation::Put { key, value: encode(&obj)?.into() }];
        mutations.extend(allocations.mutations);
        match self.propose(write.ctx, Txn { preconditions, mutations }).await? {
            TxnOutcome::Committed { revisions } => {
                object::set_version(&mut obj, revisions.first().copied());
                Ok(Tried::Done(obj))
            }
            TxnOutcome::Failed { precondition: 0, .. } => Ok(Tried::Taken),
            TxnOutcome::Failed { at, .. } => Ok(Tried::Newer(at)),
            TxnOutcome::Fenced { term } => Err(crate::errors::fenced(term)),
        }
    }
}
