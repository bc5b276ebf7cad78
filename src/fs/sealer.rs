//! Seals files some time after they were changed: once nothing more happens to them, and only when they are durable.
//!
//! A crash before the seal leaves the file open, which costs nothing but the checks of the whole; a crash between the sync and the seal the
//! same. The seal itself needs no sync: a seal that never reached the disk was never set.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use rustix::fs::{FileType, Timespec};

use super::{Fs, FsResult, node::Node};
use crate::{
    backing::Storage,
    vault::{content::SealTicket, file::VaultFile},
};

/// How long a file that no handle has open must have been quiet.
const QUIET_CLOSED: Duration = Duration::from_secs(3);

/// How long a file that is open must have been quiet: sealing costs a sync now, and another at the next change.
const QUIET_OPEN: Duration = Duration::from_secs(30);

/// How often the queue is looked through.
const ROUND: Duration = Duration::from_secs(1);

/// Up to so many files are made durable one by one; more, by one sync of the whole filesystem.
const SYNC_ONE_BY_ONE_MAX: usize = 4;

/// Files that were changed and not sealed since.
#[derive(Debug)]
pub struct SealQueue {
    state: Mutex<QueueState>,
    wake: Condvar,
    /// Files kept waiting at most; beyond it they are sealed although they were changed a moment ago.
    capacity: usize,
}

#[derive(Debug, Default)]
struct QueueState {
    waiting: VecDeque<Waiting>,
    stopped: bool,
}

#[derive(Debug)]
struct Waiting {
    node: Arc<Node>,
    /// What was to be done when it was last looked at.
    seen: Option<Pending>,
    since: Instant,
}

/// What is to be done with a file or directory in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    /// Seal it.
    Seal(SealTicket),
    /// Have it admit its new name only.
    Settle,
}

/// A file that is about to be sealed.
struct Candidate {
    node: Arc<Node>,
    file: Arc<VaultFile>,
    ticket: SealTicket,
}

impl SealQueue {
    pub fn new(capacity: usize) -> Self {
        SealQueue {
            state: Mutex::default(),
            wake: Condvar::new(),
            capacity: capacity.max(1),
        }
    }

    /// Adds a changed file, unless it is there.
    pub fn push(&self, node: &Arc<Node>) {
        if node.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut state = self.state.lock();
        state.waiting.push_back(Waiting {
            node: node.clone(),
            seen: None,
            since: Instant::now(),
        });
        if state.waiting.len() > self.capacity {
            self.wake.notify_one();
        }
    }

    /// Takes what is due: all when `everything`, else what has been quiet, and the oldest where there is too much.
    fn take_due(&self, everything: bool) -> Vec<Waiting> {
        let mut state = self.state.lock();
        let now = Instant::now();
        let excess = state.waiting.len().saturating_sub(self.capacity / 2);
        let over = state.waiting.len() > self.capacity;
        let mut due = Vec::new();
        let mut rest = VecDeque::with_capacity(state.waiting.len());
        for (i, mut waiting) in std::mem::take(&mut state.waiting).into_iter().enumerate() {
            let pending = pending(&waiting.node);
            if pending != waiting.seen {
                waiting.seen = pending;
                waiting.since = now;
            }
            let quiet = if waiting.node.is_open() {
                QUIET_OPEN
            } else {
                QUIET_CLOSED
            };
            let is_due = everything
                || waiting.node.is_dead()
                || pending.is_none()
                || now - waiting.since >= quiet
                || (over && i < excess);
            if is_due {
                due.push(waiting)
            } else {
                rest.push_back(waiting)
            }
        }
        state.waiting = rest;
        due
    }
}

/// Returns what is to be done with a node now.
fn pending(node: &Node) -> Option<Pending> {
    let seal = || {
        // A file being opened is not quiet; who opens it may hold the lock for long.
        let file = node.file.try_lock()?.clone()?;
        file.content()?.begin_seal().map(Pending::Seal)
    };
    seal().or_else(|| node.unsettled.load(Ordering::Acquire).then_some(Pending::Settle))
}

impl Fs {
    /// Runs the sealer until [`Fs::stop_sealer`]; for a thread of its own.
    pub fn run_sealer(&self) {
        loop {
            {
                let mut state = self.seal_queue.state.lock();
                if !state.stopped && state.waiting.len() <= self.seal_queue.capacity {
                    self.seal_queue.wake.wait_for(&mut state, ROUND);
                }
                if state.stopped {
                    return;
                }
            }
            self.seal_due(false);
        }
    }

    /// Ends [`Fs::run_sealer`].
    pub fn stop_sealer(&self) {
        self.seal_queue.state.lock().stopped = true;
        self.seal_queue.wake.notify_all();
    }

    /// Seals all files that were changed; for the end of a mount, when nothing changes them any more.
    pub fn seal_all(&self) {
        // A second round for those that a recovery changed in the first.
        self.seal_due(true);
        self.seal_due(true);
    }

    fn seal_due(&self, everything: bool) {
        let mut candidates = Vec::new();
        let mut renamed = Vec::new();
        for waiting in self.seal_queue.take_due(everything) {
            // From here on a change queues the file anew.
            waiting.node.queued.store(false, Ordering::Release);
            if waiting.node.is_dead() {
                self.let_go(&waiting.node);
                self.nodes.remove_unused(waiting.node);
                continue;
            }
            if waiting.node.unsettled.load(Ordering::Acquire) {
                renamed.push(waiting.node.clone());
            }
            let Some(file) = waiting.node.file.lock().clone() else {
                continue;
            };
            let Some(ticket) = file.content().and_then(|content| content.begin_seal()) else {
                if waiting.node.is_forgotten() && !waiting.node.unsettled.load(Ordering::Acquire) {
                    drop(file);
                    self.let_go(&waiting.node);
                    self.nodes.remove_unused(waiting.node);
                }
                continue;
            };
            candidates.push(Candidate {
                node: waiting.node,
                file,
                ticket,
            });
        }
        if candidates.is_empty() && renamed.is_empty() {
            return;
        }
        if let Err(error) = self.make_durable(&candidates, &renamed) {
            log::warn!("sealing put off: the backing filesystem does not sync: {error}");
            for node in candidates.iter().map(|candidate| &candidate.node).chain(&renamed) {
                self.seal_queue.push(node);
            }
            return;
        }
        for candidate in candidates {
            self.seal(candidate);
        }
        for node in renamed {
            if let Err(error) = self.settle(&node) {
                log::warn!("{:?} still admits its old name: {error}", self.disk_path(&node));
            }
            if node.is_forgotten() {
                self.let_go(&node);
                self.nodes.remove_unused(node);
            }
        }
    }

    /// Has the sealer look at a file or directory that was renamed.
    pub(super) fn note_rename(&self, node: &Arc<Node>) {
        let admits_two = node.kind == FileType::Directory
            || node
                .file
                .lock()
                .as_ref()
                .and_then(|file| Some(file.content()?.is_renaming()))
                .unwrap_or(false);
        if admits_two {
            node.unsettled.store(true, Ordering::Release);
            self.seal_queue.push(node);
        }
    }

    /// Ends the rename of a node, which is durable now.
    fn settle(&self, node: &Arc<Node>) -> FsResult<()> {
        let link = node.link.lock();
        let Some(at) = link.as_ref().filter(|_| !node.is_dead()) else {
            return Ok(());
        };
        node.unsettled.store(false, Ordering::Release);
        let parent = self.keys(&at.parent)?.id;
        let in_vault = |error| self.at(&at.parent, &at.disk)(error);
        if let Some(keys) = node.keys.get() {
            let dir = self.dir(&at.parent)?.open_dir(&at.disk)?;
            return self
                .vault
                .settle_directory(&dir, keys.id, (parent, &at.name))
                .map_err(in_vault);
        }
        let Some(file) = node.file.lock().clone() else {
            return Ok(());
        };
        match file.content() {
            Some(content) => content
                .settle(|key| key.place(parent, &at.name))
                .map_err(|error| in_vault(error.into())),
            None => Ok(()),
        }
    }

    fn make_durable(&self, candidates: &[Candidate], renamed: &[Arc<Node>]) -> FsResult<()> {
        if candidates.len() + renamed.len() > SYNC_ONE_BY_ONE_MAX {
            self.root_dir.sync_filesystem()?;
            for candidate in candidates {
                candidate.file.header_was_synced();
            }
            return Ok(());
        }
        for candidate in candidates {
            self.sync_header(&candidate.node, &candidate.file)?;
            candidate.file.backing().sync_data()?;
        }
        for node in renamed {
            let parent = node.link.lock().as_ref().map(|link| link.parent.clone());
            if let Some(parent) = parent {
                self.dir(&parent)?.sync()?;
            }
        }
        Ok(())
    }

    fn seal(&self, candidate: Candidate) {
        let Candidate { node, file, ticket } = candidate;
        let Some(content) = file.content() else { return };
        // Held until the seal is set: a rename must not change the place between.
        let link = node.link.lock();
        let Some(at) = link.as_ref().filter(|_| !node.is_dead()) else {
            return;
        };
        let sealed = (|| -> FsResult<bool> {
            let several_names = file.backing().stat()?.st_nlink != 1;
            let at = self.found_at(at)?;
            // Without the writeback cache the backing file's time is right.
            let mtime = node.mtime.lock().filter(|_| !self.options.shared);
            let mtime = mtime.map(|time| Timespec {
                tv_sec: time.seconds,
                tv_nsec: time.nanos.into(),
            });
            content
                .finish_seal(ticket, mtime, |key| {
                    (!several_names).then(|| key.place(at.directory, at.name))
                })
                .map_err(|error| self.at(&self.root, "")(error.into()))
        })();
        match sealed {
            Ok(true) => {}
            // Changed meanwhile, or repaired just now: again later.
            Ok(false) => self.seal_queue.push(&node),
            Err(error) => log::warn!("{:?} stays unsealed: {error}", at.disk),
        }
        drop(link);
        if !node.is_open() {
            self.keep_idle(&node);
        }
    }
}
