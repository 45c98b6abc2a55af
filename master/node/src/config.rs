//! The typed configuration of a master. `ops/cli` fills it from `--config FILE`
//! and flags; `build.rs` is its only reader.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use proto_wire::settings::ClusterSettings;
use serde::{Deserialize, Serialize};

use crate::pki;

/// Largest `disk_reserve_mib` that is accepted, in MiB: a tebibyte.
const RESERVE_MAX_MIB: u64 = 1 << 20;
const LOG_MIN_MIB: u64 = 8;
const LOG_MAX_MIB: u64 = 64 << 10;
const SNAPSHOT_COUNT_MAX: u64 = 10_000_000;
const LIFETIME_MIN_S: u64 = 10;
/// Shortest maximum lifetime of ServiceAccount tokens in seconds; Kubernetes asks for an hour at least.
const TOKEN_MIN_S: u64 = 10;
/// Longest certificate lifetime in seconds: five years, half the lifetime of the CA.
const LIFETIME_MAX_S: u64 = 5 * 365 * 86_400;

/// The configuration a master is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MasterConfig {
    /// Name of this master; its hostname by default.
    pub name: String,
    /// Directory of the log, objects, certificates and keys.
    pub data_dir: PathBuf,
    /// Address the servers listen on.
    pub bind_address: IpAddr,
    /// Address at which other machines reach this master.
    pub advertise_address: IpAddr,
    /// Port of the Kubernetes API.
    pub api_port: u16,
    /// Port of Raft, joining and node liveness.
    pub peer_port: u16,
    /// `HOST:PORT` (peer port) of masters of the cluster to join, tried in order; `None` to join none.
    pub join: Option<Vec<String>>,
    /// Join token for masters; needed with `join`.
    pub token: Option<String>,
    /// Name or id of the master to replace when joining: it leaves the cluster once this one has
    /// caught up.
    pub replace: Option<String>,
    /// `HOST:PORT` (peer port) of other masters that have moved from their known addresses.
    pub peers: Vec<String>,
    /// Number of masters the cluster is meant to have: odd; 0 when not given.
    pub masters: u32,
    /// Additional names and addresses in the serving certificate.
    pub tls_san: Vec<String>,
    /// Cluster-wide settings; used by [`crate::create`] only, joiners receive them.
    pub cluster: ClusterSettings,
    /// Timers that decide how fast failures are noticed.
    pub timers: Timers,
    /// MiB to keep free on the disk of the data directory; 0: the smaller of 256 and 5 % of the disk.
    pub disk_reserve_mib: u64,
    /// Size of the log in MiB above which a snapshot is taken and the log purged, however few entries
    /// it has.
    pub log_mib: u64,
    /// Number of log entries between two snapshots; half as many are kept for followers that lag behind.
    pub snapshot_count: u64,
    /// Lifetime in seconds of the certificates that this master issues to itself and to nodes; the
    /// same on every master.
    pub certificate_lifetime_s: u64,
    /// Longest lifetime in seconds of ServiceAccount tokens, whatever is asked for; `None`: 2^32 seconds. The
    /// same on every master.
    pub service_account_max_token_expiration_s: Option<u64>,
    /// Seconds for which an event is kept after its last write; 0: for ever.
    pub event_ttl_s: u64,
    /// Membership changes a leader makes by itself; the same on every master, since any may lead.
    pub autopilot: Autopilot,
}

/// How long a leader waits for members that do not answer before it acts.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Autopilot {
    /// Seconds of silence after which a voter is replaced by a learner that has caught up; in a cluster of
    /// 5 or 7, two such voters are removed. 0: never.
    pub replace_dead_after_s: u64,
    /// Seconds after which a learner that does not answer is removed. 0: never.
    pub learner_expiry_s: u64,
}

impl Default for Autopilot {
    fn default() -> Self {
        Self { replace_dead_after_s: 600, learner_expiry_s: 600 }
    }
}

impl From<Autopilot> for consensus::AutopilotConfig {
    fn from(config: Autopilot) -> Self {
        let seconds = |seconds: u64| (seconds != 0).then(|| Duration::from_secs(seconds));
        Self {
            dead_after: seconds(config.replace_dead_after_s),
            learner_expiry: seconds(config.learner_expiry_s),
        }
    }
}

/// The timers that decide how fast failures are noticed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Timers {
    /// Raft heartbeat interval in milliseconds.
    pub heartbeat_ms: u64,
    /// Shortest election timeout in milliseconds.
    pub election_min_ms: u64,
    /// Longest election timeout in milliseconds.
    pub election_max_ms: u64,
    /// Silence in milliseconds after which a node is not ready.
    pub node_grace_ms: u64,
}

impl Default for Timers {
    fn default() -> Self {
        Self { heartbeat_ms: 50, election_min_ms: 100, election_max_ms: 250, node_grace_ms: 4000 }
    }
}

impl Timers {
    /// Interval at which a leader asks whether the other masters serve: twice the longest election timeout,
    /// half a second with the usual timers.
    pub fn health_interval(&self) -> Duration {
        Duration::from_millis(self.election_max_ms) * 2
    }

    /// Silence after which a node is not ready.
    pub fn node_grace(&self) -> Duration {
        Duration::from_millis(self.node_grace_ms)
    }
}

impl Default for MasterConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            data_dir: PathBuf::from("/var/lib/ephor/master"),
            bind_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            advertise_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            api_port: 6443,
            peer_port: 6444,
            join: None,
            token: None,
            replace: None,
            peers: Vec::new(),
            masters: 0,
            tls_san: Vec::new(),
            cluster: ClusterSettings::default(),
            timers: Timers::default(),
            disk_reserve_mib: 0,
            log_mib: consensus::DEFAULT_LOG_BYTES >> 20,
            snapshot_count: consensus::DEFAULT_SNAPSHOT_COUNT,
            certificate_lifetime_s: pki::DEFAULT_LIFETIME.as_secs(),
            service_account_max_token_expiration_s: None,
            event_ttl_s: 3600,
            autopilot: Autopilot::default(),
        }
    }
}

/// Why a configuration is rejected; each text is one line and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An even number of masters, which survives no more failures than the next smaller odd number.
    #[error(
        "{0} masters asked for: the number must be odd (1, 3, 5 or 7), because {0} masters survive no more \
         failures than {fewer}", fewer = .0.saturating_sub(1)
    )]
    EvenMasters(u32),
    /// More than 7 voters, which only slow every write down.
    #[error("{0} masters asked for: at most 7 are supported")]
    TooManyMasters(u32),
    /// The advertise address is not one at which others can reach this master.
    #[error("no advertise address: give --advertise-address an address of this machine that others reach")]
    NoAdvertiseAddress,
    /// The master has no name.
    #[error("no name: give --name")]
    NoName,
    /// `--replace` without `--join`.
    #[error("--replace requires --join")]
    ReplaceWithoutJoin,
    /// `--join` without `--token`.
    #[error(
        "--join requires --token (create one with `ephor token create --role master` on a running master)"
    )]
    JoinWithoutToken,
    /// `disk_reserve_mib` is larger than any disk.
    #[error("--disk-reserve-mib is {0}: it must be at most {RESERVE_MAX_MIB}")]
    LargeReserve(u64),
    /// The log is too small for a few of the largest objects, or too large to be read again at a start.
    #[error("--log-mib is {0}: it must be {LOG_MIN_MIB} to {LOG_MAX_MIB}")]
    LogSize(u64),
    /// Snapshots would be taken all the time because they are too few entries apart, or the log would never
    /// be purged because they are too many apart.
    #[error(
        "--snapshot-count is {0}: it must be {min} to {SNAPSHOT_COUNT_MAX}",
        min = consensus::MIN_SNAPSHOT_COUNT
    )]
    SnapshotCount(u64),
    /// The lifetime of certificates is too short for renewal, or too long beside that of the CA.
    #[error(
        "--certificate-lifetime is {0}s: it must be {LIFETIME_MIN_S}s to {max}d",
        max = LIFETIME_MAX_S / 86_400
    )]
    CertificateLifetime(u64),
    /// Tokens would expire before the pods that use them have read them.
    #[error(
        "tokens that live {0} s are asked for: give --service-account-max-token-expiration {TOKEN_MIN_S}s or more"
    )]
    TokenExpiration(u64),
    /// The cluster-wide settings contradict each other.
    #[error(transparent)]
    Settings(#[from] proto_wire::settings::Error),
}

impl MasterConfig {
    /// How long events are kept; `None`: for ever.
    pub fn event_ttl(&self) -> Option<Duration> {
        (self.event_ttl_s != 0).then(|| Duration::from_secs(self.event_ttl_s))
    }

    /// Checks the configuration before any file is touched.
    pub fn validate(&self) -> Result<(), Error> {
        if self.name.is_empty() {
            return Err(Error::NoName);
        }
        if self.advertise_address.is_unspecified() {
            return Err(Error::NoAdvertiseAddress);
        }
        if self.join.is_some() && self.token.is_none() {
            return Err(Error::JoinWithoutToken);
        }
        if self.replace.is_some() && self.join.is_none() {
            return Err(Error::ReplaceWithoutJoin);
        }
        if self.masters != 0 && self.masters.is_multiple_of(2) {
            return Err(Error::EvenMasters(self.masters));
        }
        if self.masters > 7 {
            return Err(Error::TooManyMasters(self.masters));
        }
        if self.disk_reserve_mib > RESERVE_MAX_MIB {
            return Err(Error::LargeReserve(self.disk_reserve_mib));
        }
        if !(LOG_MIN_MIB..=LOG_MAX_MIB).contains(&self.log_mib) {
            return Err(Error::LogSize(self.log_mib));
        }
        if !(consensus::MIN_SNAPSHOT_COUNT..=SNAPSHOT_COUNT_MAX).contains(&self.snapshot_count) {
            return Err(Error::SnapshotCount(self.snapshot_count));
        }
        if !(LIFETIME_MIN_S..=LIFETIME_MAX_S).contains(&self.certificate_lifetime_s) {
            return Err(Error::CertificateLifetime(self.certificate_lifetime_s));
        }
        if let Some(seconds) = self.service_account_max_token_expiration_s.filter(|s| *s < TOKEN_MIN_S) {
            return Err(Error::TokenExpiration(seconds));
        }
        Ok(self.cluster.validate()?)
    }

    /// Lifetime of the certificates that this master issues.
    pub fn certificate_lifetime(&self) -> Duration {
        Duration::from_secs(self.certificate_lifetime_s)
    }

    /// Address at which others reach the API of this master.
    pub fn api_address(&self) -> SocketAddr {
        SocketAddr::new(self.advertise_address, self.api_port)
    }

    /// Address at which others reach the peer port of this master.
    pub fn peer_address(&self) -> SocketAddr {
        SocketAddr::new(self.advertise_address, self.peer_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> MasterConfig {
        MasterConfig {
            name: "m1".into(),
            advertise_address: Ipv4Addr::LOCALHOST.into(),
            ..MasterConfig::default()
        }
    }

    #[test]
    fn an_even_number_of_masters_is_refused_with_the_reason() {
        let error = MasterConfig { masters: 4, ..valid() }.validate().unwrap_err();
        assert!(error.to_string().contains("survive no more failures than 3"), "{error}");
    }

    #[test]
    fn odd_numbers_up_to_seven_are_accepted() {
        for masters in [0, 1, 3, 5, 7] {
            MasterConfig { masters, ..valid() }.validate().unwrap();
        }
        assert!(matches!(MasterConfig { masters: 9, ..valid() }.validate(), Err(Error::TooManyMasters(9))));
    }

    #[test]
    fn a_log_too_small_for_its_entries_is_refused() {
        for (log_mib, accepted) in [(0, false), (7, false), (8, true), (256, true), (1 << 20, false)] {
            assert_eq!(MasterConfig { log_mib, ..valid() }.validate().is_ok(), accepted, "{log_mib}");
        }
    }

    #[test]
    fn snapshots_neither_without_end_nor_never() {
        for (snapshot_count, accepted) in
            [(0, false), (9, false), (10, true), (10_000_000, true), (10_000_001, false)]
        {
            let config = MasterConfig { snapshot_count, ..valid() };
            assert_eq!(config.validate().is_ok(), accepted, "{snapshot_count}");
        }
    }

    #[test]
    fn joining_needs_a_token() {
        let config = MasterConfig { join: Some(vec!["10.0.0.1:6444".into()]), ..valid() };
        assert!(matches!(config.validate(), Err(Error::JoinWithoutToken)));
    }
}
