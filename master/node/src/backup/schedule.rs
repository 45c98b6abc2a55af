//! Scheduled backups. The schedule is stored in a Secret, its status in a ConfigMap,
//! both in `kube-system`; `ephor backup schedule` writes the Secret and shows the
//! ConfigMap. The leader reads both from its own replica, writes the bundle itself,
//! and removes the oldest bundles of this cluster beyond the number to keep.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use consensus::Consensus;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::{
    BackupSource, BundleLocation, BundleManifest, Error, LocationOptions, Passphrase, bundle, manifest,
};

/// Namespace of the Secret and the ConfigMap.
pub const NAMESPACE: &str = "kube-system";
/// Name of the Secret that holds the schedule.
pub const SCHEDULE: &str = "ephor-backup-schedule";
/// Name of the ConfigMap that holds the status.
pub const STATUS: &str = "ephor-backup-status";
/// Type of the Secret that holds the schedule.
const SECRET_TYPE: &str = "ephor.dev/backup-schedule";
/// Prefix of the names of scheduled bundles.
const KIND: &str = "scheduled";
/// Interval at which the leader checks whether a backup is due.
const INTERVAL: Duration = Duration::from_secs(2);
/// Pause before a failed backup is tried again, unless the schedule's own interval is shorter.
const RETRY: Duration = Duration::from_secs(120);
/// Deadline of one backup.
const BACKUP_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// Deadline of one API request.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Shortest interval between backups that a schedule may ask for.
pub const EVERY_MIN: Duration = Duration::from_secs(10);

/// A backup schedule, as the Secret holds it.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// Id of this schedule; every newly made schedule gets another one.
    pub id: String,
    /// Interval between the beginnings of two backups.
    pub every: Duration,
    /// Number of bundles to keep; at least one.
    pub keep: usize,
    /// Destination: a directory on every master, or `s3://BUCKET/PREFIX`.
    pub to: String,
    /// URL of an S3-compatible store; `None` for AWS itself.
    pub endpoint: Option<String>,
    /// Whether the store may be reached without TLS.
    pub allow_http: bool,
    /// `AWS_...` variables; those that are missing come from the masters' own environment.
    pub variables: BTreeMap<String, String>,
    /// Passphrase that the bundles are encrypted with.
    pub passphrase: Passphrase,
}

/// Outcome of the last backups, as the ConfigMap stores it. Times are RFC 3339.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackupStatus(pub BTreeMap<String, String>);

// === impl Schedule ===

impl Schedule {
    /// Checks that the schedule makes sense.
    ///
    /// # Errors
    /// One line that says what is wrong.
    pub fn validate(&self) -> Result<(), Error> {
        if self.every < EVERY_MIN {
            return Err(Error::Refused(format!("--every must be at least {} s", EVERY_MIN.as_secs())));
        }
        if self.keep == 0 {
            return Err(Error::Refused("--keep must be at least 1".to_owned()));
        }
        match self.place()? {
            BundleLocation::Local(path) if !path.is_absolute() => Err(Error::Refused(format!(
                "{} is no absolute path: masters write there, each on its own machine",
                path.display()
            ))),
            _ => Ok(()),
        }
    }

    fn place(&self) -> Result<BundleLocation, Error> {
        let options = LocationOptions {
            endpoint: self.endpoint.clone(),
            allow_http: self.allow_http,
            variables: self.variables.clone(),
        };
        BundleLocation::parse(&self.to, &options)
    }

    /// Encodes the schedule as the Secret it is stored in.
    pub fn to_secret(&self) -> Secret {
        let mut data = BTreeMap::from([
            ("id".to_owned(), self.id.clone()),
            ("everySeconds".to_owned(), self.every.as_secs().to_string()),
            ("keep".to_owned(), self.keep.to_string()),
            ("to".to_owned(), self.to.clone()),
            ("allowHTTP".to_owned(), self.allow_http.to_string()),
            ("passphrase".to_owned(), self.passphrase.text().to_owned()),
        ]);
        data.extend(self.endpoint.clone().map(|endpoint| ("endpoint".to_owned(), endpoint)));
        data.extend(self.variables.clone());
        Secret {
            metadata: ObjectMeta { name: Some(SCHEDULE.to_owned()), ..ObjectMeta::default() },
            type_: Some(SECRET_TYPE.to_owned()),
            data: Some(data.into_iter().map(|(k, v)| (k, ByteString(v.into_bytes()))).collect()),
            ..Secret::default()
        }
    }

    /// Decodes a schedule from its Secret.
    ///
    /// # Errors
    /// Fails if the Secret's data is missing or malformed.
    pub fn from_secret(secret: Secret) -> Result<Self, Error> {
        let mut data: BTreeMap<String, String> = BTreeMap::new();
        for (key, value) in secret.data.unwrap_or_default() {
            let text = String::from_utf8(value.0).map_err(|_| wrong(&key))?;
            data.insert(key, text);
        }
        let mut take = |key: &str| data.remove(key).ok_or_else(|| wrong(key));
        let schedule = Self {
            id: take("id")?,
            every: Duration::from_secs(number(&take("everySeconds")?, "everySeconds")?),
            keep: usize::try_from(number(&take("keep")?, "keep")?).map_err(|_| wrong("keep"))?,
            to: take("to")?,
            allow_http: take("allowHTTP")? == "true",
            passphrase: Passphrase::for_new(take("passphrase")?)?,
            endpoint: take("endpoint").ok(),
            variables: data.into_iter().filter(|(key, _)| key.starts_with("AWS_")).collect(),
        };
        schedule.validate()?;
        Ok(schedule)
    }
}

fn wrong(key: &str) -> Error {
    Error::Refused(format!("Secret {NAMESPACE}/{SCHEDULE} has no usable {key}: make the schedule again"))
}

fn number(text: &str, key: &str) -> Result<u64, Error> {
    text.parse().map_err(|_| wrong(key))
}

// === impl Status ===

impl BackupStatus {
    /// Returns the value of one key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn time(&self, key: &str) -> Option<SystemTime> {
        self.get(key)?.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
    }

    /// Whether the next backup is due: at once for a new schedule and after the clock went back; after a
    /// failure no later than [`RETRY`].
    fn is_due(&self, schedule: &Schedule, now: SystemTime) -> bool {
        let begun = self.time("lastAttempt").filter(|_| self.get("schedule") == Some(&schedule.id));
        let Some(since) = begun.and_then(|begun| now.duration_since(begun).ok()) else { return true };
        let failed = self.get("lastError").is_some_and(|error| !error.is_empty());
        since >= if failed { schedule.every.min(RETRY) } else { schedule.every }
    }

    fn succeeded(&mut self, bundle: &BundleLocation, manifest: &BundleManifest, took: Duration) {
        let mut set = |key: &str, value: String| self.0.insert(key.to_owned(), value);
        set("lastSuccess", manifest.head.time.clone());
        set("lastBundle", bundle.to_string());
        set("lastRevision", manifest.head.revision.to_string());
        set("lastObjects", manifest.head.objects.to_string());
        set("lastSeconds", format!("{:.1}", took.as_secs_f64()));
        set("lastError", String::new());
    }
}

/// Runs the schedule until this master no longer leads. The client's writes are
/// fenced to the term.
pub async fn run(source: Arc<BackupSource>, client: Client, shutdown: CancellationToken) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = interval.tick() => {}
        }
        let Some(secret) = stored::<Secret>(source.consensus(), "secrets", SCHEDULE) else { continue };
        let uid = secret.metadata.uid.clone().unwrap_or_default();
        let known = stored::<ConfigMap>(source.consensus(), "configmaps", STATUS);
        let mut status = BackupStatus(known.and_then(|map| map.data).unwrap_or_default());
        let now = source.env().clock.now();
        let result = match Schedule::from_secret(secret) {
            Ok(schedule) if status.is_due(&schedule, now) => {
                if status.get("schedule") != Some(&schedule.id) {
                    status = BackupStatus::default();
                }
                status.0.insert("schedule".to_owned(), schedule.id.clone());
                status.0.insert("lastAttempt".to_owned(), text(now));
                back_up(&source, &schedule, &mut status).await
            }
            Ok(_) => continue,
            // A Secret that does not decode is reported once, not at every check.
            Err(_) if status.get("schedule") == Some(&uid) => continue,
            Err(error) => {
                status.0.insert("schedule".to_owned(), uid);
                Err(error)
            }
        };
        if let Err(error) = result {
            tracing::error!(%error, "the scheduled backup failed");
            status.0.insert("lastFailure".to_owned(), text(source.env().clock.now()));
            status.0.insert("lastError".to_owned(), error.to_string());
        }
        write_status(&client, status).await;
    }
}

fn text(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Reads an object from this master's replica: a leader has everything that earlier terms wrote.
fn stored<T: DeserializeOwned>(consensus: &Consensus, resource: &str, name: &str) -> Option<T> {
    let object = consensus.store().get(&format!("/registry/core/{resource}/{NAMESPACE}/{name}"))?;
    serde_json::from_slice(&object.value).ok()
}

async fn back_up(
    source: &Arc<BackupSource>,
    schedule: &Schedule,
    status: &mut BackupStatus,
) -> Result<(), Error> {
    let begun = source.env().clock.monotonic();
    let place = schedule.place()?;
    if let BundleLocation::Local(path) = &place
        && !path.is_dir()
    {
        return Err(Error::Refused(format!("{} is no directory on this master", path.display())));
    }
    let prefix = manifest::prefix(KIND, source.consensus().cluster_id());
    place.tidy(&prefix);
    let opened = source.open().await?;
    let bundle = place.of(&opened.head().file_name(KIND));
    let sink = bundle.create().await?;
    let (entries, passphrase) = (opened.stream(), schedule.passphrase.clone());
    // When this task is dropped, the guard ends the stream, so that the writer fails and removes the
    // partial bundle.
    let (entries, _guard) = until_dropped(entries);
    let written = source.env().blocking.run(move || bundle::write(entries, sink, &passphrase));
    let written = tokio::time::timeout(BACKUP_TIMEOUT, written).await;
    let written = written.map_err(|_| Error::Source("the backup took longer than an hour".to_owned()))?;
    let manifest = written.map_err(|error| Error::Source(error.to_string()))??;
    let took = source.env().clock.monotonic().saturating_sub(begun);
    tracing::info!(bundle = %bundle, revision = manifest.head.revision, ?took, "a scheduled backup was written");
    status.succeeded(&bundle, &manifest, took);
    prune(&place, &prefix, schedule.keep).await
}

type Entries = tokio::sync::mpsc::Receiver<Result<super::BundleEntry, Error>>;

/// Forwards the stream, and ends it early when the returned guard is dropped.
fn until_dropped(mut entries: Entries) -> (Entries, tokio_util::sync::DropGuard) {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let given_up = CancellationToken::new();
    let guard = given_up.clone().drop_guard();
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                biased;
                () = given_up.cancelled() => return,
                next = entries.recv() => next,
            };
            let Some(entry) = next else { return };
            tokio::select! {
                biased;
                () = given_up.cancelled() => return,
                sent = sender.send(entry) => if sent.is_err() { return },
            }
        }
    });
    (receiver, guard)
}

/// Removes the oldest bundles of this cluster's schedules beyond `keep`.
async fn prune(place: &BundleLocation, prefix: &str, keep: usize) -> Result<(), Error> {
    for name in superfluous(place.list(prefix).await?, keep) {
        let bundle = place.of(&name);
        bundle.remove().await?;
        tracing::info!(bundle = %bundle, "an old backup was removed");
    }
    Ok(())
}

/// Returns all names but the `keep` newest. Bundles are ordered by the cluster's revision,
/// because clocks may be wrong.
fn superfluous(mut names: Vec<String>, keep: usize) -> Vec<String> {
    let revision = |name: &String| {
        let number = name.rsplit_once("-r").and_then(|(_, rest)| rest.split('.').next()?.parse::<u64>().ok());
        (number.unwrap_or(0), name.clone())
    };
    names.sort_by_key(revision);
    names.truncate(names.len().saturating_sub(keep));
    names
}

async fn write_status(client: &Client, status: BackupStatus) {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
    let map = ConfigMap {
        metadata: ObjectMeta { name: Some(STATUS.to_owned()), ..ObjectMeta::default() },
        data: Some(status.0),
        ..ConfigMap::default()
    };
    let write = async {
        let patch = serde_json::json!({ "data": map.data });
        match maps.patch(STATUS, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                maps.create(&PostParams::default(), &map).await
            }
            written => written,
        }
    };
    match tokio::time::timeout(WRITE_TIMEOUT, write).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "writing the status of the backups failed"),
        Err(_) => tracing::warn!("writing the status of the backups took too long"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule() -> Schedule {
        // As the binary does; without one, a client of a bucket cannot be made.
        drop(rustls::crypto::ring::default_provider().install_default());
        Schedule {
            id: "one".to_owned(),
            every: Duration::from_secs(600),
            keep: 3,
            to: "s3://bucket/prefix".to_owned(),
            endpoint: Some("https://s3.example".to_owned()),
            allow_http: false,
            variables: BTreeMap::from([("AWS_REGION".to_owned(), "eu-1".to_owned())]),
            passphrase: Passphrase::new("correct horse battery".to_owned()),
        }
    }

    #[test]
    fn a_schedule_reads_back_from_its_secret() {
        let read = Schedule::from_secret(schedule().to_secret()).unwrap();
        assert_eq!(read.passphrase.text(), "correct horse battery");
        let (read, made) = (read.to_secret(), schedule().to_secret());
        assert_eq!(read, made);
        let mut broken = schedule().to_secret();
        broken.data.as_mut().unwrap().remove("keep");
        let error = Schedule::from_secret(broken).unwrap_err().to_string();
        assert!(error.contains("no usable keep"), "{error}");
    }

    #[test]
    fn a_schedule_that_cannot_be_meant_is_refused() {
        for (changed, why) in [
            (Schedule { keep: 0, ..schedule() }, "--keep"),
            (Schedule { every: Duration::from_secs(1), ..schedule() }, "--every"),
            (Schedule { to: "backups".to_owned(), ..schedule() }, "absolute"),
        ] {
            let error = changed.validate().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_backup_is_due_at_once_then_at_its_interval_and_sooner_after_a_failure() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds);
        let mut status = BackupStatus::default();
        assert!(status.is_due(&schedule(), at(0)));
        status.0.insert("schedule".to_owned(), "one".to_owned());
        status.0.insert("lastAttempt".to_owned(), text(at(0)));
        assert!(!status.is_due(&schedule(), at(599)));
        assert!(status.is_due(&schedule(), at(600)));
        status.0.insert("lastError".to_owned(), "full".to_owned());
        assert!(!status.is_due(&schedule(), at(119)));
        assert!(status.is_due(&schedule(), at(120)));
        // The clock was ahead when it was written.
        status.0.insert("lastAttempt".to_owned(), text(at(10_000)));
        assert!(status.is_due(&schedule(), at(1)));
        // Another schedule does not wait for this one's interval.
        status.0.insert("lastAttempt".to_owned(), text(at(0)));
        assert!(status.is_due(&Schedule { id: "two".to_owned(), ..schedule() }, at(1)));
    }

    #[tokio::test]
    async fn the_newest_bundles_by_revision_are_kept_and_others_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let prefix = manifest::prefix(KIND, "c1");
        // The clock went back before the last one.
        let ours = ["20260102T000000Z-r90", "20260103T000000Z-r100", "20260101T000000Z-r1000"];
        let others =
            ["scheduled-c2-20200101T000000Z-r1.ephor", "manual-c1-20200101T000000Z-r1.ephor", "notes"];
        let names: Vec<String> = ours.iter().map(|name| format!("{prefix}{name}.ephor")).collect();
        for name in names.iter().map(String::as_str).chain(others) {
            std::fs::write(directory.path().join(name), "x").unwrap();
        }
        let place = BundleLocation::Local(directory.path().to_owned());
        prune(&place, &prefix, 2).await.unwrap();
        let mut left = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect::<Vec<_>>();
        left.sort();
        let mut wanted: Vec<String> = others.iter().map(|name| (*name).to_owned()).collect();
        wanted.extend([names[1].clone(), names[2].clone()]);
        wanted.sort();
        assert_eq!(left, wanted);
    }
}
