//! The ReplicaSets of a Deployment: finds or creates the current one, scales them, and deletes the oldest.
//! Called by `deployment.rs` and `rollout.rs`; writes ReplicaSets through the API.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use master_client::{EventType, reference};

use super::arithmetic::{new_set_size, replicas, size, total_size};
use super::{DeploymentController, annotations, status, template};
use crate::error::{Error, describe, ignore_not_found, is_already_exists, is_namespace_terminating};
use crate::owner::{controller_of, controller_reference, uid};

/// The ReplicaSets that a Deployment controls.
pub(super) struct Sets {
    /// The ReplicaSet of the current template; `None` before it is created.
    pub new: Option<ReplicaSet>,
    /// All other ReplicaSets, oldest first.
    pub old: Vec<ReplicaSet>,
}

impl Sets {
    /// Finds the ReplicaSet with the current template among `sets`; the oldest, when several have it.
    pub fn find(deployment: &Deployment, mut sets: Vec<ReplicaSet>) -> Self {
        sets.sort_by(by_age);
        let template = deployment.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
        let current = sets.iter().position(|set| {
            let own = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            own.is_some_and(|own| template::equal(own, &template))
        });
        let new = current.map(|position| sets.remove(position));
        Self { new, old: sets }
    }

    pub fn all(&self) -> Vec<&ReplicaSet> {
        self.old.iter().chain(&self.new).collect()
    }

    /// Replaces a ReplicaSet by its newly written state.
    pub fn put(&mut self, set: ReplicaSet) {
        if let Some(new) = &mut self.new
            && new.metadata.uid == set.metadata.uid
        {
            *new = set;
        } else if let Some(old) = self.old.iter_mut().find(|old| old.metadata.uid == set.metadata.uid) {
            *old = set;
        }
    }
}

/// Orders ReplicaSets by creation, then by name.
pub(super) fn by_age(left: &ReplicaSet, right: &ReplicaSet) -> std::cmp::Ordering {
    let age = |set: &ReplicaSet| set.metadata.creation_timestamp.clone();
    age(left).cmp(&age(right)).then_with(|| left.metadata.name.cmp(&right.metadata.name))
}

impl DeploymentController {
    /// Finds the current ReplicaSet, brings its revision and annotations up to date and, with `create`,
    /// creates it when there is none. Updates `deployment` as well.
    pub(super) async fn sync_sets(
        &self,
        deployment: &mut Deployment,
        sets: Vec<ReplicaSet>,
        create: bool,
    ) -> Result<Sets, Error> {
        let mut sets = Sets::find(deployment, sets);
        let revision = sets.old.iter().map(annotations::revision).max().unwrap_or(0).saturating_add(1);
        match sets.new.take() {
            Some(current) => sets.new = Some(self.refresh(deployment, current, revision).await?),
            None if create => {
                let new = self.create(deployment, &sets.old, revision).await?;
                sets.new = Some(new);
            }
            None => {}
        }
        Ok(sets)
    }

    /// Gives the ReplicaSet with the current template the newest revision.
    async fn refresh(
        &self,
        deployment: &mut Deployment,
        current: ReplicaSet,
        revision: i64,
    ) -> Result<ReplicaSet, Error> {
        let mut updated = current.clone();
        let mut changed = annotations::set_current(&mut updated, deployment, revision, true);
        let min_ready = deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        if let Some(spec) = &mut updated.spec
            && spec.min_ready_seconds.unwrap_or(0) != min_ready.unwrap_or(0)
        {
            spec.min_ready_seconds = min_ready;
            changed = true;
        }
        // The server returns the newest state; a conflict is an error, and the Deployment is reconciled
        // again.
        let updated = if changed { self.update(&updated).await? } else { current };
        let progressing = deployment.status.as_ref().and_then(|now| status::find(now, status::PROGRESSING));
        if status::has_deadline(deployment) && progressing.is_none() {
            let name = updated.metadata.name.as_deref().unwrap_or_default();
            let message = format!("Found new replica set {name:?}");
            self.set_progressing(deployment, "True", "FoundNewReplicaSet", message).await?;
        }
        self.set_revision(deployment, annotations::revision(&updated)).await?;
        Ok(updated)
    }

    async fn create(
        &self,
        deployment: &mut Deployment,
        old: &[ReplicaSet],
        revision: i64,
    ) -> Result<ReplicaSet, Error> {
        let wanted = self.new_set(deployment, old, revision)?;
        let name = wanted.metadata.name.clone().unwrap_or_default();
        let namespace = deployment.metadata.namespace.clone().unwrap_or_default();
        let sets = self.context.namespaced::<ReplicaSet>(&namespace);
        let (created, is_new) = match sets.create(&PostParams::default(), &wanted).await {
            Ok(created) => (created, true),
            Err(error) if is_already_exists(&error) => {
                (self.existing_or_collision(deployment, &name, error).await?, false)
            }
            Err(error) if is_namespace_terminating(&error) => return Err(error.into()),
            Err(error) => {
                let message = format!("Failed to create new replica set {name:?}: {}", describe(&error));
                let reason = "ReplicaSetCreateError";
                let about = reference(deployment);
                self.recorder.event(about, EventType::Warning, reason, message.clone());
                if status::has_deadline(deployment) {
                    self.set_progressing(deployment, "False", reason, message).await?;
                }
                return Err(error.into());
            }
        };
        let replicas = size(&created);
        if is_new && replicas > 0 {
            let message = format!("Scaled up replica set {name} from 0 to {replicas}");
            self.recorder.event(reference(deployment), EventType::Normal, "ScalingReplicaSet", message);
        }
        if is_new && status::has_deadline(deployment) {
            let message = format!("Created new replica set {name:?}");
            self.set_progressing(deployment, "True", "NewReplicaSetCreated", message).await?;
        }
        self.set_revision(deployment, revision).await?;
        Ok(created)
    }

    /// Returns the ReplicaSet for the current template, with the size that it may have at once.
    fn new_set(
        &self,
        deployment: &Deployment,
        old: &[ReplicaSet],
        revision: i64,
    ) -> Result<ReplicaSet, Error> {
        let spec = deployment.spec.clone().ok_or_else(|| Error::Object("no spec".to_owned()))?;
        let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
        let hash = template::hash(&spec.template, collisions);
        let mut template = spec.template;
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(template::TEMPLATE_HASH.to_owned(), hash.clone());
        let labels = labels.clone();
        let mut selector = spec.selector;
        selector
            .match_labels
            .get_or_insert_default()
            .insert(template::TEMPLATE_HASH.to_owned(), hash.clone());
        let name = deployment.metadata.name.as_deref().unwrap_or_default();
        let mut set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{name}-{hash}")),
                namespace: deployment.metadata.namespace.clone(),
                owner_references: Some(vec![controller_reference(deployment)]),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(new_set_size(deployment, total_size(old), 0)),
                min_ready_seconds: spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        };
        annotations::set_current(&mut set, deployment, revision, false);
        Ok(set)
    }

    /// Handles a name that is taken: the existing set is either the wanted one, not yet in the cache, or
    /// has another template with the same hash. Then the collision count is raised, which changes the next
    /// hash.
    async fn existing_or_collision(
        &self,
        deployment: &mut Deployment,
        name: &str,
        error: kube::Error,
    ) -> Result<ReplicaSet, Error> {
        let namespace = deployment.metadata.namespace.clone().unwrap_or_default();
        let existing = self.context.namespaced::<ReplicaSet>(&namespace).get(name).await?;
        let ours =
            controller_of(&existing.metadata).is_some_and(|owner| owner.uid == uid(&deployment.metadata));
        let template = deployment.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
        let same = existing
            .spec
            .as_ref()
            .and_then(|spec| spec.template.as_ref())
            .is_some_and(|own| template::equal(own, &template));
        if ours && same {
            return Ok(existing);
        }
        let mut status = deployment.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0).checked_add(1).unwrap_or(0));
        self.write_status(deployment, status).await?;
        Err(error.into())
    }

    async fn set_progressing(
        &self,
        deployment: &mut Deployment,
        value: &str,
        reason: &str,
        message: String,
    ) -> Result<(), Error> {
        let now = self.context.now();
        let mut status = deployment.status.clone().unwrap_or_default();
        status::set(&mut status, status::condition(status::PROGRESSING, value, reason, message, now));
        self.write_status(deployment, status).await
    }

    /// Records the current revision on the Deployment itself.
    async fn set_revision(&self, deployment: &mut Deployment, revision: i64) -> Result<(), Error> {
        let revision = revision.to_string();
        let annotations = deployment.metadata.annotations.get_or_insert_default();
        if annotations.get(annotations::REVISION) == Some(&revision) {
            return Ok(());
        }
        annotations.insert(annotations::REVISION.to_owned(), revision);
        self.put_status(deployment).await
    }

    /// Scales one ReplicaSet and records an event; true when its size changed.
    pub(super) async fn scale_set(
        &self,
        deployment: &Deployment,
        sets: &mut Sets,
        set: &ReplicaSet,
        wanted: i32,
    ) -> Result<bool, Error> {
        let before = size(set);
        let mut updated = set.clone();
        let annotated = annotations::set_sizes(&mut updated, deployment);
        if before == wanted && !annotated {
            return Ok(false);
        }
        updated.spec.get_or_insert_default().replicas = Some(wanted);
        sets.put(self.update(&updated).await?);
        if before == wanted {
            return Ok(false);
        }
        let direction = if wanted > before { "up" } else { "down" };
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let message = format!("Scaled {direction} replica set {name} from {before} to {wanted}");
        self.recorder.event(reference(deployment), EventType::Normal, "ScalingReplicaSet", message);
        Ok(true)
    }

    async fn update(&self, set: &ReplicaSet) -> Result<ReplicaSet, Error> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let sets = self.context.namespaced::<ReplicaSet>(namespace);
        let name = set.metadata.name.as_deref().unwrap_or_default();
        Ok(sets.replace(name, &PostParams::default(), set).await?)
    }

    /// Deletes the oldest ReplicaSets without pods beyond `spec.revisionHistoryLimit`.
    pub(super) async fn clean_up(&self, deployment: &Deployment, old: &[ReplicaSet]) -> Result<(), Error> {
        let limit = deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit);
        let Some(limit) = limit.filter(|limit| *limit != i32::MAX) else { return Ok(()) };
        let mut kept: Vec<_> = old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
        let excess = kept.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        kept.sort_by_key(|set| annotations::revision(set));
        for set in kept.into_iter().take(excess) {
            let status = set.status.clone().unwrap_or_default();
            let observed = status.observed_generation >= set.metadata.generation;
            if status.replicas != 0 || size(set) != 0 || !observed {
                continue;
            }
            let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
            let sets = self.context.namespaced::<ReplicaSet>(namespace);
            let name = set.metadata.name.as_deref().unwrap_or_default();
            ignore_not_found(sets.delete(name, &DeleteParams::background()).await)?;
        }
        Ok(())
    }

    /// Whether `spec.replicas` differs from the value for which the sets were last scaled.
    pub(super) fn is_scaling(deployment: &Deployment, sets: &Sets) -> bool {
        let active = sets.all().into_iter().filter(|set| size(set) > 0);
        active.filter_map(annotations::desired_replicas).any(|desired| desired != replicas(deployment))
    }
}
