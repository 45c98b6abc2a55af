//! The service proxy: `model` turns Services and EndpointSlices into routing (pure), `rules` turns
//! routing into an nftables ruleset (pure), `diff` the difference of two rulesets into a script (pure),
//! `writer` applies it when something changes, and `conntrack` ends UDP flows to endpoints that are
//! gone. Started by `network.rs`.

mod conntrack;
mod diff;
mod model;
mod rules;
mod writer;

pub use diff::{Ruleset, difference, replacement};
pub use model::{Backend, Overrides, PortKey, RoutedPort, route};
pub use rules::{RuleParameters, TABLE, ruleset};
pub use writer::{ProxyStats, ProxyStatsSnapshot, run};

/// The service proxy could not bring the kernel up to date.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// nftables.
    #[error(transparent)]
    Nft(#[from] crate::nft::Error),
    /// The connection tracking table.
    #[error("connection tracking: {0}")]
    Conntrack(#[from] std::io::Error),
}
