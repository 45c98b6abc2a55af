//! Makes the entries of a bundle on a master: takes a view of the state in an
//! instant, and encodes frames only as fast as they are received, so that a slow
//! receiver costs neither writes nor memory. `admin.rs` sends the entries to an
//! operator, `schedule.rs` writes them itself.

use std::sync::Arc;
use std::time::Duration;

use consensus::{BackupView, Consensus};
use proto_env::Env;
use proto_wire::settings::ClusterSettings;
use tokio::sync::{Semaphore, mpsc};

use super::manifest::{self, FORMAT, Head, SETTINGS, SNAPSHOT, Sum, json_entry};
use super::{BundleEntry, Error};
use crate::pki::{ClusterKeys, KeyFiles};

/// Longest time to wait until a quorum confirms that this master has every acknowledged write.
const BARRIER_DEADLINE: Duration = Duration::from_secs(5);
/// Maximum number of queued entries, each of half a megabyte or one larger object.
const ENTRIES_AHEAD: usize = 4;
/// Longest pause between two entries that a receiver may make.
const ENTRY_TIMEOUT: Duration = Duration::from_secs(300);
/// Maximum number of backups at a time: each keeps replaced objects in memory.
const AT_A_TIME: usize = 2;

/// Makes backups of this master's state.
pub struct BackupSource {
    consensus: Arc<Consensus>,
    keys: Arc<ClusterKeys>,
    settings: ClusterSettings,
    master: String,
    env: Env,
    places: Arc<Semaphore>,
}

/// A view of the state that is ready to be streamed.
pub struct OpenBackup {
    head: Head,
    view: BackupView,
    files: Vec<BundleEntry>,
    env: Env,
    place: tokio::sync::OwnedSemaphorePermit,
}

impl BackupSource {
    /// Creates the source of backups of this master.
    pub fn new(
        consensus: Arc<Consensus>,
        keys: Arc<ClusterKeys>,
        settings: ClusterSettings,
        master: String,
        env: Env,
    ) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        Arc::new(Self { consensus, keys, settings, master, env, places })
    }

    pub(super) fn consensus(&self) -> &Consensus {
        &self.consensus
    }

    pub(super) fn env(&self) -> &Env {
        &self.env
    }

    /// Takes a view of the state. Without a quorum it is the state of this master
    /// alone, and [`Head::stale`] says so.
    ///
    /// # Errors
    /// Fails if too many backups run, or this master has no state yet.
    pub async fn open(&self) -> Result<OpenBackup, Error> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            Error::Refused(format!("{AT_A_TIME} backups of this master are running: try again later"))
        })?;
        let view = self.consensus.backup_view(BARRIER_DEADLINE).await?;
        let now = jiff::Timestamp::try_from(self.env.clock.now()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        let head = Head {
            format: FORMAT,
            cluster_id: self.consensus.cluster_id().to_owned(),
            revision: view.view.revision(),
            applied_index: view.applied_index,
            term: view.term,
            objects: view.view.objects() as u64,
            time: now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            master: self.master.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            stale: view.stale.clone(),
        };
        let mut files = vec![
            json_entry(manifest::HEAD, &head)?,
            BundleEntry { name: SETTINGS.to_owned(), data: self.settings.to_json().into() },
        ];
        for (name, data) in KeyFiles::contents(&self.keys) {
            files.push(BundleEntry { name: format!("pki/{name}"), data: data.into() });
        }
        Ok(OpenBackup { head, view, files, env: self.env.clone(), place })
    }
}

impl OpenBackup {
    /// Describes the state that the view holds.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Streams the entries, each made when the receiver is ready for it. A stream that does
    /// not end with the manifest is not a bundle.
    pub fn stream(self) -> mpsc::Receiver<Result<BundleEntry, Error>> {
        let (sender, receiver) = mpsc::channel(ENTRIES_AHEAD);
        tokio::spawn(async move {
            let shutdown = self.env.shutdown.clone();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                () = self.send(sender) => {}
            }
        });
        receiver
    }

    async fn send(self, sender: mpsc::Sender<Result<BundleEntry, Error>>) {
        let Self { head, view, files, env: _, place: _place } = self;
        let mut sum = Sum::default();
        let frames = (0_u64..).zip(view.view.frames()).map(|(number, frame)| {
            let data = frame.map_err(|error| Error::Source(error.to_string()))?;
            Ok(BundleEntry { name: format!("{SNAPSHOT}{number:08}"), data })
        });
        for entry in files.into_iter().map(Ok).chain(frames) {
            if let Ok(BundleEntry { name, data }) = &entry {
                sum.add(name, data);
            }
            let failed = entry.is_err();
            match tokio::time::timeout(ENTRY_TIMEOUT, sender.send(entry)).await {
                Ok(Ok(())) if !failed => {}
                _ => return,
            }
        }
        let end = json_entry(manifest::MANIFEST, &sum.manifest(head));
        if tokio::time::timeout(ENTRY_TIMEOUT, sender.send(end)).await.is_err() {
            tracing::warn!("the receiver of a backup has not read its end");
        }
    }
}
