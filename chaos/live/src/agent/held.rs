//! The faults that the agent holds: each is written to the journal before it is applied, undone at its
//! deadline or on request, and undoing is retried until it succeeds. `service` calls it; `mod` runs
//! [`Faults::keep`].

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use super::journal::{Held, Journal, is_id};
use super::node::Node;
use super::{delay, packets};
use crate::effect::Effect;

/// Maximum duration of a fault: one that is never undone on request ends after this.
pub const LIMIT_MAX: Duration = Duration::from_secs(3600);
/// Maximum number of faults held at once.
const HELD_MAX: usize = 64;
/// Maximum number of outcomes remembered for repeated requests.
const ENDED_MAX: usize = 256;
/// Time until undoing is retried after it failed.
const RETRY: Duration = Duration::from_secs(1);

/// Reason why a fault was not applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is invalid.
    #[error("{0}")]
    Refused(String),
    /// The node does not support the fault, or the system returned an error.
    #[error("{0}")]
    Failed(#[from] io::Error),
}

/// Outcome of a fault that was undone or could not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Id of the fault.
    pub id: String,
    /// Number of times the fault took effect.
    pub fired: u64,
    /// Reason why the fault could not be undone; `None` if it was.
    pub error: Option<String>,
}

/// All faults that the agent holds.
pub struct Faults {
    node: Node,
    state: Mutex<State>,
    /// Notified when there is a new deadline.
    changed: Notify,
}

struct State {
    journal: Journal,
    held: BTreeMap<String, Active>,
    ended: VecDeque<Ended>,
}

#[derive(Clone)]
struct Active {
    held: Held,
    /// When the fault is undone, or undoing is retried.
    due: Instant,
    fired: u64,
}

impl Faults {
    /// Loads the faults of the journal. Those past their deadline are undone by [`Faults::keep`].
    ///
    /// # Errors
    /// Fails if the journal cannot be read.
    pub fn load(node: Node, directory: &Path) -> io::Result<Arc<Self>> {
        let journal = Journal::open(directory)?;
        let now = Instant::now();
        let active = |held: Held| (held.id.clone(), Active { due: now + held.left(), held, fired: 0 });
        let held: BTreeMap<_, _> = journal.read()?.into_iter().map(active).collect();
        for active in held.values() {
            tracing::warn!(id = active.held.id, left = ?active.held.left(), "found a fault in the journal");
        }
        let state = Mutex::new(State { journal, held, ended: VecDeque::new() });
        Ok(Arc::new(Self { node, state, changed: Notify::new() }))
    }

    /// Returns the node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Returns the faults held now.
    pub async fn list(&self) -> Vec<Held> {
        self.state.lock().await.held.values().map(|active| active.held.clone()).collect()
    }

    /// Applies a fault for `limit`; returns how often it took effect at once.
    ///
    /// # Errors
    /// Fails if the fault is refused or cannot be applied; it is then undone.
    pub async fn inject(&self, id: &str, effect: Effect, limit: Duration) -> Result<u64, Error> {
        let refused = |why: &str| Err(Error::Refused(why.to_owned()));
        if !is_id(id) {
            return refused("the id of a fault is at most 32 of a-z, 0-9 and _");
        }
        if limit.is_zero() || limit > LIMIT_MAX {
            return refused("a fault lasts for more than nothing and at most an hour");
        }
        let mut state = self.state.lock().await;
        if state.held.contains_key(id) {
            return refused("a fault of this id is there already");
        }
        if state.held.len() >= HELD_MAX {
            return refused("too many faults at once");
        }
        let counted = {
            let effect = effect.clone();
            self.off_thread(move |node| node.ready(&effect)).await?
        };
        let held = Held::begin(id.to_owned(), effect, limit, counted);
        state.journal.write(&held)?;
        tracing::info!(id, effect = ?held.effect, ?limit, "a fault");
        let active = Active { held: held.clone(), due: Instant::now() + limit, fired: 0 };
        state.held.insert(id.to_owned(), active);
        match self.off_thread(move |node| node.apply(&held)).await {
            Ok(fired) => {
                if let Some(active) = state.held.get_mut(id) {
                    active.fired = fired;
                }
                self.changed.notify_one();
                Ok(fired)
            }
            Err(error) => {
                tracing::warn!(id, %error, "the fault was not applied");
                // The fault may have been applied in part.
                self.end(&mut state, id, false).await;
                self.changed.notify_one();
                Err(error.into())
            }
        }
    }

    /// Undoes the faults of `ids`, or all if `ids` is empty; with `keep_down` killed processes are not
    /// started.
    pub async fn undo(&self, ids: &[String], keep_down: bool) -> Vec<Ended> {
        let mut state = self.state.lock().await;
        let ids: Vec<String> =
            if ids.is_empty() { state.held.keys().cloned().collect() } else { ids.to_vec() };
        let mut all = Vec::new();
        for id in ids {
            if state.held.contains_key(&id) {
                all.push(self.end(&mut state, &id, keep_down).await);
            } else if let Some(ended) = state.ended.iter().find(|ended| ended.id == id) {
                all.push(ended.clone());
            }
        }
        all
    }

    /// Starts the node's process so that it joins a cluster.
    ///
    /// # Errors
    /// Fails if the process cannot be started.
    pub async fn join(&self, join: Vec<String>, token: String) -> io::Result<()> {
        let node = self.node.clone();
        tokio::task::spawn_blocking(move || node.join(&join, &token)).await.map_err(io::Error::other)?
    }

    /// Undoes faults at their deadlines; never returns.
    pub async fn keep(&self) {
        loop {
            let next = self.end_due().await;
            tokio::select! {
                biased;
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Undoes the faults past their deadline; returns the next deadline.
    async fn end_due(&self) -> Instant {
        let mut state = self.state.lock().await;
        let now = Instant::now();
        let over = |active: &&Active| active.due <= now;
        let due: Vec<String> =
            state.held.values().filter(over).map(|active| active.held.id.clone()).collect();
        for id in due {
            tracing::info!(id, "its time is over");
            self.end(&mut state, &id, false).await;
        }
        state.held.values().map(|active| active.due).min().unwrap_or(now + LIMIT_MAX)
    }

    /// Undoes a fault, and forgets it if that succeeded.
    async fn end(&self, state: &mut State, id: &str, keep_down: bool) -> Ended {
        let Some(active) = state.held.get(id).cloned() else {
            return Ended { id: id.to_owned(), fired: 0, error: None };
        };
        // Another fault may need the process to stay down.
        let mut others = state.held.values().filter(|other| other.held.id != id);
        let stay_down = keep_down || others.any(|other| other.held.effect.is_down());
        let held = active.held;
        let undone = self.off_thread(move |node| node.undo(&held, stay_down)).await;
        let undone = undone.and_then(|fired| state.journal.remove(id).map(|()| fired));
        let fired = active.fired;
        match undone {
            Ok(more) => {
                tracing::info!(id, fired = fired + more, "undone");
                state.held.remove(id);
                let ended = Ended { id: id.to_owned(), fired: fired + more, error: None };
                state.ended.push_back(ended.clone());
                if state.ended.len() > ENDED_MAX {
                    state.ended.pop_front();
                }
                ended
            }
            Err(error) => {
                tracing::error!(id, %error, "not undone; it is tried again");
                if let Some(active) = state.held.get_mut(id) {
                    active.due = Instant::now() + RETRY;
                }
                self.changed.notify_one();
                Ended { id: id.to_owned(), fired, error: Some(error.to_string()) }
            }
        }
    }

    /// Runs work that waits for the kernel or other programs on a thread for blocking calls.
    async fn off_thread(
        &self,
        work: impl FnOnce(&Node) -> io::Result<u64> + Send + 'static,
    ) -> io::Result<u64> {
        let node = self.node.clone();
        tokio::task::spawn_blocking(move || work(&node)).await.map_err(io::Error::other)?
    }
}

/// Undoes everything that the journal in `directory` holds, without an agent, for an operator on the node
/// itself. Returns a line for each fault undone.
///
/// # Errors
/// Fails with the first error; the other faults are undone even so.
pub fn recover(node: &Node, directory: &Path) -> io::Result<Vec<String>> {
    let journal = Journal::open(directory)?;
    let mut undone = Vec::new();
    let mut failed = None;
    for held in journal.read()? {
        match node.undo(&held, false).and_then(|_| journal.remove(&held.id)) {
            Ok(()) => undone.push(held.id),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    packets::undo_all()?;
    delay::undo_all()?;
    failed.map_or(Ok(undone), Err)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::busy::Programs;
    use super::super::delay::Delays;
    use super::super::process::Supervised;
    use super::*;

    fn node(directory: &Path) -> Node {
        let command = ["sleep", "600"].map(str::to_owned).to_vec();
        let process = Supervised { pid_file: directory.join("pid"), command, log_file: None };
        Node {
            name: "m1".to_owned(),
            process: Some(process),
            disk: None,
            agent_port: 6446,
            delays: Delays::default(),
            programs: Programs::default(),
        }
    }

    async fn eventually(mut holds: impl FnMut() -> bool) {
        let end = SystemTime::now() + Duration::from_secs(20);
        while !holds() {
            assert!(SystemTime::now() < end, "it never came to that");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_killed_node_is_started_at_the_limit_by_an_agent_that_crashed_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let node = node(directory.path());
        let process = node.process.clone().unwrap();
        process.start(&[]).unwrap();
        let journal = directory.path().join("journal");
        let before = Faults::load(node.clone(), &journal).unwrap();
        let fired = before.inject("k", Effect::Kill, Duration::from_millis(1500)).await.unwrap();
        assert_eq!((fired, process.running()), (1, None));
        drop(before);
        let after = Faults::load(node, &journal).unwrap();
        assert_eq!(after.list().await.len(), 1);
        let clock = tokio::spawn({
            let after = after.clone();
            async move { after.keep().await }
        });
        eventually(|| process.running().is_some()).await;
        assert_eq!(after.list().await, []);
        clock.abort();
        process.kill().unwrap();
    }

    #[tokio::test]
    async fn two_kills_end_with_the_later_one_and_an_undone_one_is_told_again() {
        let directory = tempfile::tempdir().unwrap();
        let node = node(directory.path());
        let process = node.process.clone().unwrap();
        process.start(&[]).unwrap();
        let faults = Faults::load(node, &directory.path().join("journal")).unwrap();
        let limit = Duration::from_secs(60);
        assert_eq!(faults.inject("a", Effect::Kill, limit).await.unwrap(), 1);
        assert_eq!(faults.inject("b", Effect::Kill, limit).await.unwrap(), 0);
        let ended = |id: &str, fired| [Ended { id: id.to_owned(), fired, error: None }];
        assert_eq!(faults.undo(&["a".to_owned()], false).await, ended("a", 1));
        assert_eq!(process.running(), None, "b holds it down");
        assert_eq!(faults.undo(&[], false).await, ended("b", 0));
        assert!(process.running().is_some());
        assert_eq!(faults.undo(&["a".to_owned()], false).await, ended("a", 1));
        process.kill().unwrap();
    }

    #[tokio::test]
    async fn what_cannot_be_done_is_refused_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let faults = Faults::load(node(directory.path()), &directory.path().join("journal")).unwrap();
        let minute = Duration::from_secs(60);
        for (id, effect, limit, expected) in [
            ("a/b", Effect::Kill, minute, "the id of a fault"),
            ("a", Effect::Kill, Duration::ZERO, "more than nothing"),
            ("a", Effect::Kill, LIMIT_MAX * 2, "at most an hour"),
            ("a", Effect::PowerLoss { seed: 1 }, minute, "--disk-control"),
        ] {
            let error = faults.inject(id, effect, limit).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(faults.list().await.is_empty());
        assert!(faults.node().process.as_ref().unwrap().running().is_none());
    }

    #[test]
    fn an_operator_undoes_everything_without_an_agent() {
        let directory = tempfile::tempdir().unwrap();
        let node = node(directory.path());
        let process = node.process.clone().unwrap();
        let journal = Journal::open(&directory.path().join("journal")).unwrap();
        journal.write(&Held::begin("k".to_owned(), Effect::Kill, Duration::from_secs(600), 0)).unwrap();
        assert_eq!(recover(&node, &directory.path().join("journal")).unwrap(), ["k"]);
        assert!(process.running().is_some());
        assert!(journal.read().unwrap().is_empty());
        process.kill().unwrap();
    }
}
