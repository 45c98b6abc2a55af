//! Creates objects: set server fields, admit, validate, allocate, propose. `handlers/create.rs` calls it with
//! the object the client sent.

use proto_api::field::ErrorList;
use proto_api::status::Status;
use serde_json::{Map, Value};
use storage::{Mutation, Precondition, Txn, TxnOutcome};

use super::strategy::ObjectChange;
use super::write::{ATTEMPTS, Write, WriteAttempt, canonical, encode, invalid_unless_empty, starving};
use super::{Registry, Target, metadata, object};
use crate::admission;

/// Maximum number of generated names that are tried, as in stock.
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
        admission::admit_create(self, &write.attributes(), &mut obj).await?;
        self.prepare_create(target, &mut obj);
        let mut names_left = NAME_ATTEMPTS;
        for _ in 0..ATTEMPTS {
            let name = metadata::text(&obj, "name").to_owned();
            self.validate_create(write, &obj, &name)?;
            match self.try_create(write, &name, obj.clone()).await? {
                WriteAttempt::Done(object) => return Ok(object),
                WriteAttempt::Newer(revision) => self.reach(revision).await?,
                WriteAttempt::Taken if generate && names_left > 1 => {
                    names_left -= 1;
                    self.generate_name(&mut obj);
                }
                WriteAttempt::Taken if generate => {
                    let gvk = target.kind.gvk;
                    return Err(Status::generate_name_conflict(gvk.group, target.kind.resource, &name, 1));
                }
                WriteAttempt::Taken => {
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
        // A kind whose own validation does not include metadata gets the generic check only when its own
        // found no errors.
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

    /// Sets the fields that the server owns and drops those that a client may not set.
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

    async fn try_create(&self, write: Write<'_>, name: &str, mut obj: Value) -> Result<WriteAttempt, Status> {
        let target = write.target;
        let key = target.key(name);
        let guard = self.namespace_guard(target, name).await?;
        let asked_for = obj.clone();
        let allocate = |obj: &mut Value| {
            target.strategy.allocations(&self.allocation_context(), ObjectChange::Create { new: obj })
        };
        let allocations = match allocate(&mut obj) {
            Ok(allocations) => allocations,
            // On a lagging replica a taken value may have been released since: allocate again after a read
            // barrier.
            Err(_) => {
                self.barrier().await?;
                obj = asked_for;
                allocate(&mut obj)?
            }
        };
        canonical(target, &mut obj);
        if write.dry_run {
            self.barrier().await?;
            return Ok(if self.store().get(&key).is_some() {
                WriteAttempt::Taken
            } else {
                WriteAttempt::Done(obj)
            });
        }
        let mut preconditions = vec![Precondition::Absent(key.clone())];
        preconditions.extend(guard);
        preconditions.extend(allocations.preconditions);
        let mut mutations = vec![Mutation::Put { key, value: encode(&obj)?.into() }];
        mutations.extend(allocations.mutations);
        match self.propose(write.ctx, Txn { preconditions, mutations }).await? {
            TxnOutcome::Committed { revisions } => {
                object::set_version(&mut obj, revisions.first().copied());
                Ok(WriteAttempt::Done(obj))
            }
            TxnOutcome::Failed { precondition: 0, .. } => Ok(WriteAttempt::Taken),
            TxnOutcome::Failed { at, .. } => Ok(WriteAttempt::Newer(at)),
            TxnOutcome::Fenced { term } => Err(crate::errors::fenced(term)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use proto_api::kinds;
    use proto_env::{CancellationToken, Env, TlsNetwork};
    use serde_json::json;

    use super::super::strategy::{AllocationContext, Allocations, Strategy};
    use super::*;
    use crate::context::{Context, UserInfo};
    use crate::request_info::RequestInfo;
    use crate::settings::ClusterSettings;

    /// A strategy whose first allocation fails as on a lagging replica, where every value still seems taken.
    #[derive(Debug)]
    struct TakenAtFirst(AtomicUsize);

    impl Strategy for TakenAtFirst {
        fn allocations(
            &self,
            _: &AllocationContext<'_>,
            change: ObjectChange<'_>,
        ) -> Result<Allocations, Status> {
            let ObjectChange::Create { new } = change else { return Ok(Allocations::default()) };
            if new.get("data").is_some() {
                return Err(Status::internal("the object of an attempt that failed came again"));
            }
            new["data"] = json!({"address": "a"});
            match self.0.fetch_add(1, Ordering::Relaxed) {
                0 => Err(Status::internal("provided IP is already allocated")),
                _ => Ok(Allocations::default()),
            }
        }
    }

    static TAKEN_AT_FIRST: TakenAtFirst = TakenAtFirst(AtomicUsize::new(0));

    #[tokio::test(flavor = "multi_thread")]
    async fn an_allocation_is_refused_only_by_a_replica_that_has_caught_up() {
        let env = Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new());
        let data = tempfile::tempdir().expect("a directory");
        let consensus = consensus::testing::lone_master(data.path(), &env).await.expect("a lone master");
        let registry = Registry::new(
            consensus,
            Arc::clone(&env.clock),
            Arc::clone(&env.random),
            ClusterSettings::default(),
        );
        let kind = kinds::by_resource("", "v1", "nodes").expect("a kind");
        let target = Target { kind, strategy: &TAKEN_AT_FIRST, namespace: "" };
        let ctx = Context::new(
            UserInfo::admin("admin"),
            RequestInfo::default(),
            String::new(),
            String::new(),
            Duration::from_secs(20),
        );
        let write = Write { ctx: &ctx, target, dry_run: false };
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
        let made = registry.create(write, node).await.expect("created");
        assert_eq!(metadata::text(&made, "name"), "n");
        assert_eq!(TAKEN_AT_FIRST.0.load(Ordering::Relaxed), 2);
    }
}
