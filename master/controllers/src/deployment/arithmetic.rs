//! The arithmetic of a rollout: surge, unavailability, and how a change of size is shared among
//! ReplicaSets. Pure; called by the other files of `deployment/`. Any 32-bit size may be asked for, so sums
//! and differences saturate.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::annotations;

/// Returns `spec.replicas` of a Deployment, 1 by default.
pub(crate) fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Returns `spec.replicas` of a ReplicaSet, 1 by default.
pub(crate) fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Returns the sum of `spec.replicas` of all `sets`.
pub(crate) fn total_size<'a>(sets: impl IntoIterator<Item = &'a ReplicaSet>) -> i32 {
    sum(sets.into_iter().map(size))
}

/// Returns the sum of `status.availableReplicas` of all `sets`.
pub(crate) fn total_available<'a>(sets: impl IntoIterator<Item = &'a ReplicaSet>) -> i32 {
    sum(sets.into_iter().map(available))
}

/// Adds counts of pods; at most the largest count there is.
pub(crate) fn sum(counts: impl Iterator<Item = i32>) -> i32 {
    counts.fold(0, i32::saturating_add)
}

/// Returns `status.availableReplicas` of a ReplicaSet.
pub(crate) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

/// Whether the strategy is RollingUpdate, the default.
pub(crate) fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("Recreate")
}

/// Returns how many pods a rolling update may have above and below the wanted number. Both cannot be zero:
/// then one pod may be unavailable, or the update could not progress.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    let wanted = replicas(deployment);
    let rolling = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref())
        .and_then(|strategy| strategy.rolling_update.as_ref());
    let quarter = || IntOrString::String("25%".to_owned());
    let surge = rolling.and_then(|rolling| rolling.max_surge.clone()).unwrap_or_else(quarter);
    let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.clone()).unwrap_or_else(quarter);
    match (scaled(&surge, wanted, true), scaled(&unavailable, wanted, false)) {
        (0, 0) => (0, 1),
        both => both,
    }
}

fn scaled(value: &IntOrString, of: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let hundredths = percent.saturating_mul(i64::from(of));
            let rounded =
                if up { hundredths.saturating_add(99).div_euclid(100) } else { hundredths.div_euclid(100) };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

/// Returns how many pods are allowed above the wanted number.
pub(crate) fn max_surge(deployment: &Deployment) -> i32 {
    if is_rolling(deployment) { fenceposts(deployment).0 } else { 0 }
}

/// Returns how many pods there may be during a rollout: the wanted number and the surge.
pub(crate) fn maximum(deployment: &Deployment) -> i32 {
    replicas(deployment).saturating_add(max_surge(deployment))
}

/// Returns how many of the wanted pods may be unavailable.
pub(crate) fn max_unavailable(deployment: &Deployment) -> i32 {
    let wanted = replicas(deployment);
    if !is_rolling(deployment) || wanted == 0 { 0 } else { fenceposts(deployment).1.min(wanted) }
}

/// Returns the size that the new ReplicaSet may have now, given the sum of all sizes.
pub(crate) fn new_set_size(deployment: &Deployment, all_sizes: i32, new_size: i32) -> i32 {
    let wanted = replicas(deployment);
    if !is_rolling(deployment) {
        return wanted;
    }
    let room = maximum(deployment).saturating_sub(all_sizes);
    if room <= 0 { new_size } else { new_size.saturating_add(room.min(wanted.saturating_sub(new_size))) }
}

/// Shares `deployment`'s change of size among `sets` (all with replicas) in proportion to their sizes; the
/// first gets what rounding leaves over. Returns the new size of each, in the order of `sets`, which must
/// be the larger and newer first when growing, the larger and older first when shrinking.
pub(crate) fn proportional_sizes(deployment: &Deployment, sets: &[&ReplicaSet]) -> Vec<i32> {
    let to_add = size_change(deployment, total_size(sets.iter().copied()));
    let mut added = 0;
    let mut sizes = Vec::with_capacity(sets.len());
    for set in sets {
        let share = if to_add == 0 { 0 } else { proportion(set, deployment, to_add, added) };
        added = added.saturating_add(share);
        sizes.push(size(set).saturating_add(share));
    }
    if let Some(first) = sizes.first_mut() {
        *first = first.saturating_add(to_add.saturating_sub(added)).max(0);
    }
    sizes
}

/// Returns how many pods a proportional scaling adds to `total` pods; negative to remove pods.
pub(crate) fn size_change(deployment: &Deployment, total: i32) -> i32 {
    let allowed = if replicas(deployment) > 0 { maximum(deployment) } else { 0 };
    allowed.saturating_sub(total)
}

fn proportion(set: &ReplicaSet, deployment: &Deployment, to_add: i32, added: i32) -> i32 {
    if size(set) == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(set, deployment);
    let left = to_add.saturating_sub(added);
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}

/// Returns by how much the set's size changes if it keeps its share of the Deployment's former maximum.
fn fraction(set: &ReplicaSet, deployment: &Deployment) -> i32 {
    let wanted = replicas(deployment);
    if wanted == 0 {
        return 0_i32.saturating_sub(size(set));
    }
    let maximum = maximum(deployment);
    let before = annotations::max_replicas(set).filter(|max| *max > 0).or_else(|| {
        deployment.status.as_ref().and_then(|status| status.replicas).filter(|replicas| *replicas > 0)
    });
    let Some(before) = before else { return 0 };
    #[allow(clippy::cast_possible_truncation, reason = "the cast saturates")]
    let scaled = (f64::from(size(set)) * f64::from(maximum) / f64::from(before)).round() as i32;
    scaled.saturating_sub(size(set))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn deployment(replicas: i32, surge: Value, unavailable: Value) -> Deployment {
        serde_json::from_value(json!({"spec": {
            "replicas": replicas, "selector": {}, "template": {},
            "strategy": {"type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
        }}))
        .unwrap()
    }

    fn set(size: i32, max: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"annotations": {"deployment.kubernetes.io/max-replicas": max.to_string()}},
            "spec": {"replicas": size, "selector": {}}
        }))
        .unwrap()
    }

    #[test]
    fn surge_rounds_up_and_unavailability_down() {
        let quarter = deployment(10, json!("25%"), json!("25%"));
        assert_eq!((max_surge(&quarter), max_unavailable(&quarter)), (3, 2));
        let one = deployment(1, json!("25%"), json!("25%"));
        assert_eq!((max_surge(&one), max_unavailable(&one)), (1, 0));
    }

    #[test]
    fn a_rollout_that_could_not_move_may_have_one_unavailable() {
        let stuck = deployment(3, json!(0), json!("10%"));
        assert_eq!((max_surge(&stuck), max_unavailable(&stuck)), (0, 1));
        assert_eq!(max_unavailable(&deployment(2, json!(0), json!(5))), 2);
        assert_eq!(max_unavailable(&deployment(0, json!(0), json!(5))), 0);
    }

    #[test]
    fn the_new_set_grows_only_into_the_room_the_surge_leaves() {
        let rolling = deployment(10, json!(3), json!(2));
        assert_eq!(new_set_size(&rolling, 10, 0), 3);
        assert_eq!(new_set_size(&rolling, 13, 3), 3);
        assert_eq!(new_set_size(&rolling, 9, 8), 10);
        let recreate: Deployment = serde_json::from_value(json!({"spec": {
            "replicas": 4, "selector": {}, "template": {}, "strategy": {"type": "Recreate"}}}))
        .unwrap();
        assert_eq!(new_set_size(&recreate, 9, 0), 4);
    }

    #[test]
    fn a_bigger_deployment_grows_its_sets_in_proportion() {
        // The upstream example: 10 replicas with surge 3 and unavailability 2 amid a rollout, scaled to 30.
        let deployment = deployment(30, json!(3), json!(2));
        let (old, new) = (set(8, 13), set(5, 13));
        assert_eq!(proportional_sizes(&deployment, &[&old, &new]), [20, 13]);
    }

    #[test]
    fn the_largest_sizes_overflow_nothing() {
        for surge in [json!("25%"), json!("9223372036854775807%"), json!(i32::MAX)] {
            let huge = deployment(i32::MAX, surge, json!(1));
            assert_eq!(maximum(&huge), i32::MAX);
            assert_eq!(new_set_size(&huge, 3, 3), i32::MAX);
            let (old, new) = (set(i32::MAX, 1), set(i32::MAX, 1));
            assert_eq!(total_size([&old, &new]), i32::MAX);
            assert_eq!(size_change(&huge, total_size([&old, &new])), 0);
            assert_eq!(proportional_sizes(&huge, &[&old, &new]), [i32::MAX, i32::MAX]);
            let (old, new) = (set(4, 1), set(2, 1));
            assert!(proportional_sizes(&huge, &[&old, &new]).iter().all(|size| *size >= 2));
        }
    }

    #[test]
    fn a_smaller_deployment_shrinks_its_sets_in_proportion() {
        let deployment = deployment(5, json!(0), json!(1));
        let (old, new) = (set(6, 10), set(4, 10));
        assert_eq!(proportional_sizes(&deployment, &[&old, &new]), [3, 2]);
        let nothing = super::tests::deployment(0, json!(0), json!(1));
        assert_eq!(proportional_sizes(&nothing, &[&old, &new]), [0, 0]);
    }
}
