//! Files of hushfs's own that names need no more, where these may be gone from the disk before the names are.
//!
//! Most filesystems have changes of names on disk in their order. On Btrfs what an fsync(2) adds to the tree log may have the last of several changes in a
//! directory without the first (fs/btrfs/tree-log.c): a file would be there again without its header. There these files go after a sync of the filesystem.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use super::{Fs, Node, OpenDirectory, leftovers::Unused};
use crate::{format::name, ids::FileId};

/// A file that is to be removed.
#[derive(Debug)]
pub(super) enum Needless {
    Header(Unused),
    /// The long-name file of an entry with this name on disk.
    LongName(String),
    LinkFile(FileId),
}

impl Needless {
    fn file(&self) -> String {
        match self {
            Needless::Header(unused) => name::header_file(unused.id()),
            Needless::LongName(entry) => name::long_name_file(entry),
            Needless::LinkFile(id) => name::link_file(*id),
        }
    }
}

/// What waits for a sync.
#[derive(Debug, Default)]
pub(super) struct Late {
    /// By directory, as the number of its node, and name.
    waiting: Mutex<BTreeMap<(u64, String), Waiting>>,
    numbers: AtomicU64,
}

#[derive(Debug)]
struct Waiting {
    directory: Arc<Node>,
    needless: Needless,
    /// Those with lower numbers came before.
    number: u64,
}

impl Late {
    fn push(&self, directory: &Arc<Node>, needless: Needless) {
        let mut waiting = self.waiting.lock();
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let at = (directory.id, needless.file());
        waiting.insert(
            at,
            Waiting {
                directory: directory.clone(),
                needless,
                number,
            },
        );
    }

    /// Returns what waits, and the number that the next one gets.
    fn all(&self) -> (Vec<(String, Arc<Node>)>, u64) {
        let waiting = self.waiting.lock();
        let all = waiting
            .iter()
            .map(|((_, file), waiting)| (file.clone(), waiting.directory.clone()));
        (all.collect(), self.numbers.load(Ordering::Relaxed))
    }

    /// Does what is to be done with one that was there when `end` was the next number, unless it stays or came anew since; nobody has it stay meanwhile.
    fn take(&self, at: (u64, String), end: u64, act: impl FnOnce(Needless)) {
        let mut waiting = self.waiting.lock();
        if let Entry::Occupied(entry) = waiting.entry(at)
            && entry.get().number < end
        {
            act(entry.remove().needless);
        }
    }
}

impl Fs {
    /// Removes a file of a directory that nothing needs since a name changed: at once, where changes of names reach the disk in their order.
    pub(super) fn remove_in_order(&self, directory: &OpenDirectory, needless: Needless) {
        match &self.late {
            Some(late) => late.push(&directory.node, needless),
            None => self.remove_needless(directory, needless),
        }
    }

    /// Has a file of a directory stay that waits to be removed: for an entry that is about to come.
    pub(super) fn keep(&self, directory: &Node, file: &str) {
        if let Some(late) = &self.late {
            late.waiting.lock().remove(&(directory.id, file.to_owned()));
        }
    }

    /// Removes what waits, after a sync; tells whether there was anything.
    pub(super) fn remove_late(&self) -> bool {
        let Some((late, (waiting, end))) = self.late.as_ref().map(|late| (late, late.all())) else {
            return false;
        };
        if waiting.is_empty() {
            return false;
        }
        if let Err(error) = self.root_dir.sync_filesystem() {
            log::debug!("{} files that nothing needs stay for now: {error}", waiting.len());
            return false;
        }
        for (file, node) in waiting {
            // Before the lock: who renames a directory holds it, and may have something wait.
            let open = self.dir(&node).map(|dir| OpenDirectory {
                dir,
                node: node.clone(),
            });
            late.take((node.id, file), end, |needless| match (open, needless) {
                (Ok(open), needless) => self.remove_needless(&open, needless),
                // It was removed with all that was in it.
                (Err(_), Needless::Header(unused)) => self.record_gone(&unused),
                (Err(_), _) => {}
            });
            self.keep_unused(node);
        }
        true
    }

    fn remove_needless(&self, directory: &OpenDirectory, needless: Needless) {
        match needless {
            Needless::Header(unused) => self.drop_own(&unused, directory),
            Needless::LongName(entry) => self.remove_long_name(directory, &entry),
            Needless::LinkFile(link) => self.remove_link_file(directory, link),
        }
    }
}
