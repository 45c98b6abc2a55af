//! The service proxy: `routing` computes the endpoints of each service port from Services and EndpointSlices
//! (pure), `rules` turns them into an nftables ruleset (pure), `diff` turns the difference of two rulesets
//! into a script (pure), `writer` applies the script after every change, and `conntrack` ends UDP flows to
//! removed endpoints. Started by `network.rs`.

mod conntrack;
mod diff;
mod routing;
mod rules;
mod writer;

pub use diff::{Ruleset, difference, replacement};
pub use routing::{EndpointAddress, Overrides, PortKey, RoutedPort, route};
pub use rules::{RuleParameters, TABLE, ruleset};
pub use writer::{ProxyStats, ProxyStatsSnapshot, run};

/// Why the service proxy could not update the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Running `nft` failed.
    #[error(transparent)]
    Nft(#[from] crate::nft::Error),
    /// Reading or changing the connection tracking table failed.
    #[error("connection tracking: {0}")]
    Conntrack(#[from] std::io::Error),
}
