//! Replaces the pods of one template by those of the next: rolling, or all at once (Recreate); and scales
//! all sets in proportion when the size changes during a rollout. Called by `deployment.rs` with the sets
//! it found.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use master_client::Informers;

use super::DeploymentController;
use super::arithmetic::{
    available, is_rolling, max_unavailable, new_set_size, proportional_sizes, replicas, size, size_change,
    total_available, total_size,
};
use super::replica_sets::{Sets, by_age};
use super::{annotations, status};
use crate::error::Error;
use crate::owner::uid;
use crate::pod_state::is_terminal;

impl DeploymentController {
    /// Does one step of a rolling update: scales up if there is room, else down if enough pods are available.
    pub(super) async fn roll(
        &self,
        deployment: &mut Deployment,
        sets: Vec<ReplicaSet>,
    ) -> Result<Sets, Error> {
        let mut sets = self.sync_sets(deployment, sets, true).await?;
        if self.size_new_set(deployment, &mut sets).await?
            || self.shrink_old_sets(deployment, &mut sets).await?
        {
            return Ok(sets);
        }
        self.finish(deployment, &sets).await?;
        Ok(sets)
    }

    /// Does one step of Recreate: creates no new pod before all old pods have ended.
    pub(super) async fn recreate(
        &self,
        deployment: &mut Deployment,
        sets: Vec<ReplicaSet>,
    ) -> Result<Sets, Error> {
        let mut sets = self.sync_sets(deployment, sets, false).await?;
        let mut scaled = false;
        for old in sets.old.clone().iter().filter(|set| size(set) > 0) {
            scaled |= self.scale_set(deployment, &mut sets, old, 0).await?;
        }
        if scaled || self.old_pods_run(&sets) {
            return Ok(sets);
        }
        if sets.new.is_none() {
            sets = self.sync_sets(deployment, sets.old, true).await?;
        }
        self.size_new_set(deployment, &mut sets).await?;
        self.finish(deployment, &sets).await?;
        Ok(sets)
    }

    async fn finish(&self, deployment: &Deployment, sets: &Sets) -> Result<(), Error> {
        let current = deployment.status.clone().unwrap_or_default();
        if status::is_complete(deployment, &current) {
            self.clean_up(deployment, &sets.old).await?;
        }
        Ok(())
    }

    async fn size_new_set(&self, deployment: &Deployment, sets: &mut Sets) -> Result<bool, Error> {
        let Some(new) = sets.new.clone() else { return Ok(false) };
        let wanted = if size(&new) > replicas(deployment) {
            replicas(deployment)
        } else {
            new_set_size(deployment, total_size(sets.all()), size(&new))
        };
        if size(&new) == replicas(deployment) {
            return Ok(false);
        }
        self.scale_set(deployment, sets, &new, wanted).await
    }

    /// Scales the old sets down: first by pods that are not available anyway, then by others as far as the
    /// minimum of available pods allows.
    async fn shrink_old_sets(&self, deployment: &Deployment, sets: &mut Sets) -> Result<bool, Error> {
        let Some(new) = sets.new.clone() else { return Ok(false) };
        if total_size(&sets.old) == 0 {
            return Ok(false);
        }
        let minimum = replicas(deployment) - max_unavailable(deployment);
        let new_unavailable = size(&new) - available(&new);
        let removable = total_size(sets.all()).saturating_sub(minimum).saturating_sub(new_unavailable);
        if removable <= 0 {
            return Ok(false);
        }
        let mut removed = self.remove_unhealthy(deployment, sets, removable).await?;
        let mut spare = total_available(sets.all()) - minimum;
        for old in sets.old.clone() {
            if spare <= 0 {
                break;
            }
            let count = size(&old).min(spare);
            if count > 0 {
                self.scale_set(deployment, sets, &old, size(&old) - count).await?;
                spare -= count;
                removed += count;
            }
        }
        Ok(removed > 0)
    }

    async fn remove_unhealthy(
        &self,
        deployment: &Deployment,
        sets: &mut Sets,
        removable: i32,
    ) -> Result<i32, Error> {
        let mut removed = 0;
        for old in sets.old.clone() {
            if removed >= removable {
                break;
            }
            let count = (size(&old) - available(&old)).min(removable - removed);
            if size(&old) > 0 && count > 0 {
                self.scale_set(deployment, sets, &old, size(&old) - count).await?;
                removed += count;
            }
        }
        Ok(removed)
    }

    fn old_pods_run(&self, sets: &Sets) -> bool {
        let reported =
            sets.old.iter().any(|set| set.status.as_ref().is_some_and(|status| status.replicas > 0));
        let pods = self.context.informers.pods.cache();
        reported
            || sets.old.iter().any(|set| {
                let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
                let value = Informers::controlled_by(namespace, uid(&set.metadata));
                let pods = pods.by_index(Informers::BY_CONTROLLER, &value);
                pods.iter().any(|pod| !is_terminal(pod))
            })
    }

    /// Scales to a changed `spec.replicas` without advancing the rollout.
    pub(super) async fn scale(&self, deployment: &Deployment, sets: &mut Sets) -> Result<(), Error> {
        let wanted = replicas(deployment);
        if let Some(only) = active_or_latest(sets) {
            if size(&only) != wanted || annotations::desired_replicas(&only) != Some(wanted) {
                self.scale_set(deployment, sets, &only, wanted).await?;
            }
            return Ok(());
        }
        let saturated = sets.new.as_ref().is_some_and(|new| {
            size(new) == wanted
                && annotations::desired_replicas(new) == Some(wanted)
                && available(new) == wanted
        });
        if saturated {
            for old in sets.old.clone().iter().filter(|set| size(set) > 0) {
                self.scale_set(deployment, sets, old, 0).await?;
            }
            return Ok(());
        }
        if !is_rolling(deployment) {
            return Ok(());
        }
        let mut active: Vec<ReplicaSet> =
            sets.all().into_iter().filter(|set| size(set) > 0).cloned().collect();
        let growing = size_change(deployment, total_size(&active)) > 0;
        active.sort_by(|left, right| {
            let age = if growing { by_age(right, left) } else { by_age(left, right) };
            size(right).cmp(&size(left)).then(age)
        });
        let sizes = proportional_sizes(deployment, &active.iter().collect::<Vec<_>>());
        for (set, wanted) in active.iter().zip(sizes) {
            self.scale_set(deployment, sets, set, wanted).await?;
        }
        Ok(())
    }
}

/// Returns the only set with replicas or, when no set has any, the newest; `None` when several sets have
/// replicas.
fn active_or_latest(sets: &Sets) -> Option<ReplicaSet> {
    let active: Vec<_> = sets.all().into_iter().filter(|set| size(set) > 0).collect();
    match active.as_slice() {
        [] => sets.new.clone().or_else(|| sets.old.last().cloned()),
        [only] => Some((*only).clone()),
        _ => None,
    }
}
