//! Scores ImageLocality: nodes that already have the pod's images are better, the more so the larger the
//! images.

use std::collections::BTreeMap;

use crate::plugins::{Cycle, MAX_SCORE, NodeScore, Score};
use crate::snapshot::NodeInfo;

/// Total image size below which the score is lowest.
const MIN_BYTES: i64 = 23 * 1024 * 1024;
/// Image size per container from which on the score is highest.
const MAX_BYTES: i64 = 1000 * 1024 * 1024;

pub(crate) struct ImageLocality;

impl Score for ImageLocality {
    fn weight(&self) -> i64 {
        1
    }

    fn prepare<'a>(&self, cycle: &'a Cycle<'_>, nodes: &[&NodeInfo]) -> Option<NodeScore<'a>> {
        let spec = cycle.pod.pod.spec.as_ref()?;
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let wanted: Vec<String> =
            containers.filter_map(|container| container.image.as_deref()).map(normalized).collect();
        // An image on few of many nodes counts less, or all pods with it would be drawn to those nodes.
        let mut spread: BTreeMap<&String, i64> = BTreeMap::new();
        for image in &wanted {
            let having = nodes.iter().filter(|info| size_on(info, image).is_some()).count();
            spread.insert(image, i64::try_from(having).unwrap_or(0));
        }
        if spread.values().all(|having| *having == 0) {
            return None;
        }
        let total = i64::try_from(nodes.len()).unwrap_or(1).max(1);
        let spread: BTreeMap<String, i64> =
            spread.into_iter().map(|(image, having)| (image.clone(), having)).collect();
        let count = i64::try_from(wanted.len()).unwrap_or(1);
        Some(Box::new(move |info| {
            let bytes: i64 = wanted
                .iter()
                .filter_map(|image| Some(size_on(info, image)? * spread.get(image)? / total))
                .sum();
            let max = MAX_BYTES * count;
            MAX_SCORE * (bytes.clamp(MIN_BYTES, max) - MIN_BYTES) / (max - MIN_BYTES).max(1)
        }))
    }
}

fn normalized(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains(':') || image.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

fn size_on(info: &NodeInfo, image: &str) -> Option<i64> {
    let status = info.node.as_ref()?.status.as_ref()?;
    let images = status.images.as_ref()?;
    let found = images.iter().find(|present| present.names.iter().flatten().any(|name| name == image))?;
    found.size_bytes
}
