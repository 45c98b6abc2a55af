//! The directory tree: which file each of the kernel's node numbers means, and the directory changes that are
//! not synced. A removed or replaced file is kept in a hidden directory until its removal is durable and no
//! handle is open on it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fuser::Errno;

use crate::data::Data;

/// Name of the directory for removed files, in the backing directory.
const TRASH: &str = ".chaos-disk-removed";
pub(crate) const ROOT: u64 = 1;

/// Files, directories and their names' pending changes.
pub(crate) struct Names {
    backing: PathBuf,
    nodes: BTreeMap<u64, Node>,
    children: HashMap<(u64, OsString), u64>,
    /// Changes that no sync has made durable, oldest first.
    pub(crate) changes: Vec<Change>,
    next_node: u64,
    next_trash: u64,
}

/// A file or directory that the kernel, a change or a child refers to.
pub(crate) struct Node {
    place: Place,
    /// Number of times the kernel has looked the node up and not forgotten it.
    lookups: u64,
    /// Number of open handles.
    pub(crate) handles: u64,
    /// Number of pending changes that refer to the node.
    changes: u64,
    children: u64,
    /// Unsynced data of a file; `None` if the file is neither open nor unsynced.
    pub(crate) data: Option<Data>,
}

#[derive(Clone)]
enum Place {
    Root,
    In(u64, OsString),
    Trash(u64),
}

/// A change of one or two directories.
pub(crate) struct Change {
    pub(crate) sequence: u64,
    kind: Kind,
}

enum Kind {
    Create { node: u64, directory: u64 },
    Remove { node: u64, from: (u64, OsString) },
    Rename { node: u64, from: (u64, OsString), to: (u64, OsString), replaced: Option<u64> },
}

// === impl Change ===

impl Change {
    /// Returns the directories whose entries the change alters.
    pub(crate) fn directories(&self) -> impl Iterator<Item = u64> + use<> {
        let (first, second) = match &self.kind {
            Kind::Create { directory, .. } => (*directory, None),
            Kind::Remove { from, .. } => (from.0, None),
            Kind::Rename { from, to, .. } => (from.0, Some(to.0).filter(|to| *to != from.0)),
        };
        [Some(first), second].into_iter().flatten()
    }

    /// Returns every node that the change refers to.
    fn nodes(&self) -> Vec<u64> {
        let own = match &self.kind {
            Kind::Create { node, .. } | Kind::Remove { node, .. } => [Some(*node), None],
            Kind::Rename { node, replaced, .. } => [Some(*node), *replaced],
        };
        own.into_iter().flatten().chain(self.directories()).collect()
    }
}

// === impl Names ===

impl Names {
    /// Creates the tree of `backing`, all of it durable.
    pub(crate) fn new(backing: &Path) -> io::Result<Self> {
        let mut names = Self {
            backing: backing.to_owned(),
            nodes: BTreeMap::new(),
            children: HashMap::new(),
            changes: Vec::new(),
            next_node: ROOT + 1,
            next_trash: 0,
        };
        names.start_over()?;
        Ok(names)
    }

    /// Forgets every node and deletes removed files: all that is in the tree is durable then.
    pub(crate) fn start_over(&mut self) -> io::Result<()> {
        clean(&self.backing)?;
        fs::create_dir(self.backing.join(TRASH))?;
        self.nodes.clear();
        self.children.clear();
        self.changes.clear();
        // The root's number never changes, and the kernel never forgets it.
        self.nodes.insert(ROOT, Node::new(Place::Root));
        Ok(())
    }

    pub(crate) fn node(&mut self, number: u64) -> Result<&mut Node, Errno> {
        // An unknown number is from before a power cut.
        self.nodes.get_mut(&number).ok_or(Errno::EIO)
    }

    /// Returns the path of a node in the backing directory.
    pub(crate) fn path(&self, number: u64) -> Result<PathBuf, Errno> {
        match &self.nodes.get(&number).ok_or(Errno::EIO)?.place {
            Place::Root => Ok(self.backing.clone()),
            Place::In(parent, name) => Ok(self.path(*parent)?.join(name)),
            Place::Trash(place) => Ok(self.trash(*place)),
        }
    }

    /// Returns the path of a name in the backing directory.
    pub(crate) fn path_of(&self, directory: u64, name: &OsStr) -> Result<PathBuf, Errno> {
        if is_hidden(directory, name) {
            return Err(Errno::ENOENT);
        }
        Ok(self.path(directory)?.join(name))
    }

    fn trash(&self, place: u64) -> PathBuf {
        self.backing.join(TRASH).join(place.to_string())
    }

    /// Returns the node of an existing name, and counts the lookup by the kernel.
    pub(crate) fn look_up(&mut self, directory: u64, name: &OsStr) -> Result<u64, Errno> {
        fs::symlink_metadata(self.path_of(directory, name)?)?;
        let number = self.known(directory, name)?;
        self.node(number)?.lookups += 1;
        Ok(number)
    }

    /// Returns the node of an existing name; creates the node if it is new.
    fn known(&mut self, directory: u64, name: &OsStr) -> Result<u64, Errno> {
        if let Some(number) = self.children.get(&(directory, name.to_owned())) {
            return Ok(*number);
        }
        let number = self.next_node;
        self.next_node += 1;
        self.node(directory)?.children += 1;
        self.nodes.insert(number, Node::new(Place::In(directory, name.to_owned())));
        self.children.insert((directory, name.to_owned()), number);
        Ok(number)
    }

    /// Subtracts the lookups that the kernel has forgotten.
    pub(crate) fn forget(&mut self, number: u64, lookups: u64) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.lookups = node.lookups.saturating_sub(lookups);
            self.settle(number);
        }
    }

    /// Drops a node, and then its parents, if nothing refers to it any more.
    pub(crate) fn settle(&mut self, mut number: u64) {
        while number != ROOT {
            let Some(node) = self.nodes.get_mut(&number) else { return };
            if node.handles > 0 || node.changes > 0 || node.children > 0 {
                return;
            }
            if let Place::Trash(place) = node.place {
                node.data = None;
                let path = self.trash(place);
                // The file does not exist any more if the node was dropped before.
                if fs::remove_file(&path).is_err() {
                    let _gone = fs::remove_dir(&path);
                }
            }
            let Some(node) = self.nodes.get_mut(&number) else { return };
            if node.data.as_ref().is_some_and(Data::is_synced) {
                node.data = None;
            }
            if node.lookups > 0 || node.data.is_some() {
                return;
            }
            let place = node.place.clone();
            self.nodes.remove(&number);
            let Place::In(parent, name) = place else { return };
            self.children.remove(&(parent, name));
            if let Some(parent) = self.nodes.get_mut(&parent) {
                parent.children -= 1;
            }
            number = parent;
        }
    }

    /// Records a new file or directory, whose name is not synced yet.
    pub(crate) fn created(&mut self, directory: u64, name: &OsStr, sequence: u64) -> Result<u64, Errno> {
        let node = self.known(directory, name)?;
        self.node(node)?.lookups += 1;
        self.pend(Change { sequence, kind: Kind::Create { node, directory } });
        Ok(node)
    }

    /// Removes a name from a directory; the removal is pending until the directory is synced.
    pub(crate) fn remove(&mut self, directory: u64, name: &OsStr, sequence: u64) -> Result<(), Errno> {
        let node = self.known(directory, name)?;
        self.discard(node)?;
        self.pend(Change { sequence, kind: Kind::Remove { node, from: (directory, name.to_owned()) } });
        Ok(())
    }

    /// Renames a file or directory; a file with the new name is replaced.
    pub(crate) fn rename(
        &mut self,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        sequence: u64,
    ) -> Result<(), Errno> {
        let node = self.known(from.0, from.1)?;
        let replaced = match fs::symlink_metadata(self.path_of(to.0, to.1)?) {
            Ok(_) => Some(self.known(to.0, to.1)?),
            Err(_) => None,
        };
        if replaced == Some(node) {
            return Ok(());
        }
        if let Some(replaced) = replaced {
            self.discard(replaced)?;
        }
        self.relocate(node, Place::In(to.0, to.1.to_owned()))?;
        let (from, to) = ((from.0, from.1.to_owned()), (to.0, to.1.to_owned()));
        self.pend(Change { sequence, kind: Kind::Rename { node, from, to, replaced } });
        Ok(())
    }

    fn pend(&mut self, change: Change) {
        for node in change.nodes() {
            if let Some(node) = self.nodes.get_mut(&node) {
                node.changes += 1;
            }
        }
        self.changes.push(change);
    }

    /// Marks a directory's changes as durable after a sync; for a change of two directories, also all earlier
    /// changes of the other one.
    pub(crate) fn synced(&mut self, directory: u64) {
        let mut limits = BTreeMap::from([(directory, u64::MAX)]);
        let mut durable = Vec::new();
        let mut kept = Vec::new();
        for change in std::mem::take(&mut self.changes).into_iter().rev() {
            let reached = |of: u64| limits.get(&of).is_some_and(|limit| change.sequence <= *limit);
            if !change.directories().any(reached) {
                kept.push(change);
                continue;
            }
            for of in change.directories() {
                let limit = limits.entry(of).or_insert(0);
                *limit = (*limit).max(change.sequence);
            }
            durable.push(change);
        }
        kept.reverse();
        self.changes = kept;
        for node in durable.iter().flat_map(Change::nodes) {
            if let Some(found) = self.nodes.get_mut(&node) {
                found.changes -= 1;
            }
        }
        for node in durable.iter().flat_map(Change::nodes) {
            self.settle(node);
        }
    }

    /// Undoes a change. Later changes of its directories must be undone first.
    pub(crate) fn undo(&mut self, change: Change) -> io::Result<()> {
        match change.kind {
            Kind::Create { node, .. } => self.discard(node),
            Kind::Remove { node, from } => self.relocate(node, Place::In(from.0, from.1)),
            Kind::Rename { node, from, to, replaced } => {
                self.relocate(node, Place::In(from.0, from.1))?;
                replaced.map_or(Ok(()), |replaced| self.relocate(replaced, Place::In(to.0, to.1)))
            }
        }
    }

    fn discard(&mut self, node: u64) -> io::Result<()> {
        self.next_trash += 1;
        self.relocate(node, Place::Trash(self.next_trash))
    }

    fn relocate(&mut self, number: u64, place: Place) -> io::Result<()> {
        let error = |errno: Errno| io::Error::from_raw_os_error(errno.code());
        let to = match &place {
            Place::Root => return Err(error(Errno::EBUSY)),
            Place::In(directory, name) => self.path(*directory).map_err(error)?.join(name),
            Place::Trash(place) => self.trash(*place),
        };
        fs::rename(self.path(number).map_err(error)?, to)?;
        if let Place::In(directory, name) = &place {
            self.children.insert((*directory, name.clone()), number);
            self.node(*directory).map_err(error)?.children += 1;
        }
        let old = std::mem::replace(&mut self.node(number).map_err(error)?.place, place);
        if let Place::In(directory, name) = old {
            self.children.remove(&(directory, name));
            self.node(directory).map_err(error)?.children -= 1;
        }
        Ok(())
    }

    /// Takes the data of the files in the tree that are not synced.
    pub(crate) fn take_unsynced(&mut self) -> Vec<Data> {
        let numbers: Vec<u64> =
            self.nodes.keys().copied().filter(|number| self.is_in_tree(*number)).collect();
        let data = numbers.into_iter().filter_map(|number| self.nodes.get_mut(&number)?.data.take());
        data.filter(|data| !data.is_synced()).collect()
    }

    fn is_in_tree(&self, mut number: u64) -> bool {
        loop {
            match self.nodes.get(&number).map(|node| &node.place) {
                Some(Place::Root) => return true,
                Some(Place::In(parent, _)) => number = *parent,
                _ => return false,
            }
        }
    }

    /// Returns the memory for data that is not synced, in bytes.
    pub(crate) fn pending_bytes(&self) -> u64 {
        self.nodes.values().filter_map(|node| node.data.as_ref()).map(Data::pending_bytes).sum()
    }

    /// Returns the file with the most memory for data that is not synced.
    pub(crate) fn heaviest(&mut self) -> Option<&mut Data> {
        let data = self.nodes.values_mut().filter_map(|node| node.data.as_mut());
        data.max_by_key(|data| data.pending_bytes())
    }
}

// === impl Node ===

impl Node {
    fn new(place: Place) -> Self {
        Self { place, lookups: 0, handles: 0, changes: 0, children: 0, data: None }
    }
}

/// Deletes our hidden directory from a backing directory.
pub(crate) fn clean(backing: &Path) -> io::Result<()> {
    match fs::remove_dir_all(backing.join(TRASH)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns whether a name is that of our hidden directory.
pub(crate) fn is_hidden(directory: u64, name: &OsStr) -> bool {
    directory == ROOT && name == TRASH
}
