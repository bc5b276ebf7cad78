//! Seals files some time after they were changed: once nothing more happens to them, and only when they are durable.
//!
//! A crash before the seal leaves the file open, which costs nothing but the checks of the whole; a crash between the sync and the seal the
//! same. The seal itself needs no sync: a seal that never reached the disk was never set.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use rustix::fs::{FileType, Timespec};

use super::{
    Fs, FsError, FsResult,
    attr::Time,
    node::{Link, Node},
};
use crate::{
    backing::{Dir, process},
    vault::{
        content::SealTicket,
        file::{HeaderCount, VaultFile},
    },
};

/// How long a file that no handle has open must have been quiet.
const QUIET_CLOSED: Duration = Duration::from_secs(3);

/// How long a file that is open must have been quiet: sealing costs a sync now, and another at the next change.
const QUIET_OPEN: Duration = Duration::from_secs(30);

/// How often the queue is looked through.
const ROUND: Duration = Duration::from_secs(1);

/// Memory is given back when the kernel has forgotten more nodes than are left, and at least so many.
const GIVE_BACK_MIN: usize = 4096;

/// Up to so many files are made durable one by one; more, by one sync of the whole filesystem.
const SYNC_ONE_BY_ONE_MAX: usize = 4;

/// Files that were changed and not sealed since.
#[derive(Debug)]
pub struct SealQueue {
    state: Mutex<QueueState>,
    wake: Condvar,
    /// Held by who seals.
    sealing: Mutex<()>,
    /// Files kept waiting at most; beyond it they are sealed although they were changed a moment ago.
    capacity: usize,
}

#[derive(Debug, Default)]
struct QueueState {
    waiting: VecDeque<Waiting>,
    /// Files whose keys may not be used now; they come back with the keys.
    parked: Vec<Arc<Node>>,
    /// Nodes of which the log has that they cannot be made durable.
    told: BTreeSet<u64>,
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
    /// The headers it had, and how often its names had changed.
    headers: HeaderCount,
    moves: u32,
}

impl SealQueue {
    pub fn new(capacity: usize) -> Self {
        SealQueue {
            state: Mutex::default(),
            wake: Condvar::new(),
            sealing: Mutex::default(),
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

    /// Puts a file off until its key may be used again, unless it was queued anew meanwhile.
    fn park(&self, node: Arc<Node>) {
        if !node.queued.swap(true, Ordering::AcqRel) {
            self.state.lock().parked.push(node);
        }
    }

    /// Queues again what was put off; returns how many files that are.
    fn unpark(&self) -> usize {
        self.unpark_those(|_| true)
    }

    /// Queues again those of what was put off that need it no more.
    fn unpark_those(&self, may_go: impl Fn(&Arc<Node>) -> bool) -> usize {
        // Looked at without the lock, as in `take_due`.
        let parked = std::mem::take(&mut self.state.lock().parked);
        let (go, stay): (Vec<_>, Vec<_>) = parked.into_iter().partition(may_go);
        let count = go.len();
        let mut state = self.state.lock();
        state.parked.extend(stay);
        state.waiting.extend(go.into_iter().map(|node| Waiting {
            node,
            seen: None,
            since: Instant::now(),
        }));
        count
    }

    /// Takes what is due: all when `everything`, else what has been quiet, and the oldest where there is too much.
    fn take_due(&self, everything: bool) -> Vec<Waiting> {
        // Looked at without the lock: a file that is being written on a slow disk would hold up all that are pushed meanwhile.
        let all = std::mem::take(&mut self.state.lock().waiting);
        let now = Instant::now();
        let excess = all.len().saturating_sub(self.capacity / 2);
        let over = all.len() > self.capacity;
        let mut due = Vec::new();
        let mut rest = VecDeque::with_capacity(all.len());
        for (i, mut waiting) in all.into_iter().enumerate() {
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
        let mut state = self.state.lock();
        rest.append(&mut state.waiting);
        state.waiting = rest;
        due
    }
}

/// Returns what is to be done with a node now.
fn pending(node: &Node) -> Option<Pending> {
    let seal = || {
        // A file being opened is not quiet; who opens it may hold the lock for long.
        let file = node.file.try_lock()?.clone()?;
        file.begin_seal().map(Pending::Seal)
    };
    seal().or_else(|| node.unsettled.load(Ordering::Acquire).then_some(Pending::Settle))
}

impl Fs {
    /// Runs the sealer until [`Fs::stop_sealer`]; for a thread of its own.
    pub fn run_sealer(&self) {
        let mut failed = false;
        loop {
            {
                let mut state = self.seal_queue.state.lock();
                if !state.stopped && (failed || state.waiting.len() <= self.seal_queue.capacity) {
                    self.seal_queue.wake.wait_for(&mut state, ROUND);
                }
                if state.stopped {
                    return;
                }
            }
            // Those whose key may be used again, also where nobody said so.
            self.seal_queue.unpark_those(|node| !self.is_refused(node));
            failed = self.seal_due(false).is_err();
            self.remove_late();
            self.drop_unused_headers(false);
            self.write_record_if_due();
            self.give_back_memory();
        }
    }

    /// Gives memory back after the kernel has forgotten much: what nodes lay in does not return by itself.
    fn give_back_memory(&self) {
        let removed = self.nodes.removed.load(Ordering::Relaxed);
        if removed >= GIVE_BACK_MIN.max(self.nodes.count()) {
            self.nodes.removed.fetch_sub(removed, Ordering::Relaxed);
            process::give_back_memory();
        }
    }

    /// Ends [`Fs::run_sealer`] and [`Fs::run_journal`].
    pub fn stop_sealer(&self) {
        self.seal_queue.state.lock().stopped = true;
        self.seal_queue.wake.notify_all();
        if let Some(journal) = &self.journal {
            journal.stop();
        }
    }

    /// Seals all files that were changed; for the end of a mount, when nothing changes them any more. Tells whether all that was changed is durable: what is
    /// not was logged.
    pub fn seal_all(&self) -> bool {
        self.remove_late();
        self.drop_unused_headers(true);
        self.give_up_unused_headers();
        self.seal_queue.unpark();
        // A second round for those that a recovery changed in the first, and once more for what failed, which was logged.
        let _ = self.seal_due(true);
        let mut is_durable = self.seal_due(true).is_ok();
        let left = self.seal_queue.unpark();
        if left > 0 {
            log::warn!(
                "files that stay unsealed until they are opened with their keys, which may not be used now: {left}"
            );
        }
        if let Some(journal) = &self.journal
            && let Err(error) = journal.finish()
        {
            log::error!("the journal stays for the next mount: {error}");
            is_durable = false;
        }
        // Names, times and modes, which nothing else has synced.
        if let Err(error) = self.root_dir.sync_filesystem() {
            log::error!("what was changed last may not be on disk: {error}");
            is_durable = false;
        }
        is_durable
    }

    /// Has files sealed whose keys may be used again.
    pub fn seal_put_off(&self) {
        self.seal_queue.unpark();
    }

    /// Seals all files that were changed and can be sealed now, also those that are being sealed.
    pub(super) fn seal_now(&self) {
        if !self.options.read_only {
            let _ = self.seal_due(true);
        }
    }

    /// Seals what is due, or all; an error where something could not be made durable, which is logged.
    fn seal_due(&self, everything: bool) -> FsResult<()> {
        // One at a time: who waits for room waits for what another has begun.
        let _sealing = self.seal_queue.sealing.lock();
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
            if self.is_refused(&waiting.node) {
                self.seal_queue.park(waiting.node);
                continue;
            }
            let moves = waiting.node.moves();
            if waiting.node.unsettled.load(Ordering::Acquire) {
                renamed.push((waiting.node.clone(), moves));
            }
            let Some(file) = waiting.node.file.lock().clone() else {
                self.keep_unused(waiting.node);
                continue;
            };
            let Some(ticket) = file.begin_seal() else {
                self.keep_unused(waiting.node);
                continue;
            };
            candidates.push(Candidate {
                node: waiting.node,
                moves,
                headers: file.headers(),
                file,
                ticket,
            });
        }
        if candidates.is_empty() && renamed.is_empty() {
            return Ok(());
        }
        let put_off = self.make_durable(&mut candidates, &mut renamed).inspect_err(|error| {
            log::warn!("sealing put off: the backing filesystem does not sync: {error}");
            let renamed = renamed.iter().map(|(node, _)| node);
            for node in candidates.iter().map(|candidate| &candidate.node).chain(renamed) {
                self.seal_queue.push(node);
            }
        })?;
        for candidate in candidates {
            self.seal(candidate);
        }
        for (node, moves) in renamed {
            if let Err(error) = self.settle(&node, moves) {
                log::warn!("{:?} still admits its old name: {error}", self.disk_path(&node));
            }
            self.keep_unused(node);
        }
        put_off.map_or(Ok(()), Err)
    }

    /// Has the sealer look at a file or directory that was renamed.
    pub(super) fn note_rename(&self, node: &Arc<Node>) {
        self.record_rename(node);
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

    /// Ends the rename of a node, which is durable now, unless another came after it.
    fn settle(&self, node: &Arc<Node>, moves: u32) -> FsResult<()> {
        let link = node.link.lock();
        if node.moves() != moves {
            self.seal_queue.push(node);
            return Ok(());
        }
        let at = link.as_ref().filter(|_| !node.is_dead());
        let settled = at.map_or(Ok(()), |at| self.settle_at(node, at));
        // Also where it failed: it is tried again with the next rename only. Last, since until then nobody closes the file.
        node.unsettled.store(false, Ordering::Release);
        settled
    }

    fn settle_at(&self, node: &Arc<Node>, at: &Link) -> FsResult<()> {
        let parent = self.keys(&at.parent)?.id;
        let in_vault = |error| self.at(&at.parent, &at.disk)(error);
        if let Some(keys) = node.keys() {
            let dir = self.dir(&at.parent)?.open_dir(&*at.disk)?;
            return self
                .vault
                .settle_directory(&dir, keys.id, (parent, &at.name))
                .map_err(in_vault);
        }
        let Some(file) = node.file.lock().clone() else {
            return Ok(());
        };
        match file.usable_content().map_err(in_vault)? {
            Some(content) => content
                .settle(|key| key.place(parent, &at.name))
                .map_err(|error| in_vault(error.into())),
            None => Ok(()),
        }
    }

    /// Makes files durable, and renames; those that cannot be are put off, and the others stay. Returns why the last of these could not, if there are any.
    fn make_durable(
        &self,
        candidates: &mut Vec<Candidate>,
        renamed: &mut Vec<(Arc<Node>, u32)>,
    ) -> FsResult<Option<FsError>> {
        if let Some(journal) = &self.journal {
            // A seal speaks of what is in the data file.
            journal.commit()?;
            journal.settle_doubts()?;
        }
        let at_once = self.syncs_at_once && candidates.len() + renamed.len() > SYNC_ONE_BY_ONE_MAX;
        // Where the whole does not sync, each file says whether it is the one.
        if !at_once || self.root_dir.sync_filesystem().is_err() {
            return self.make_durable_one_by_one(candidates, renamed);
        }
        for candidate in candidates {
            candidate.file.headers_were_synced(candidate.headers);
            candidate.node.moves_were_synced(candidate.moves);
        }
        Ok(None)
    }

    fn make_durable_one_by_one(
        &self,
        candidates: &mut Vec<Candidate>,
        renamed: &mut Vec<(Arc<Node>, u32)>,
    ) -> FsResult<Option<FsError>> {
        // Once each, however many of the files lie in it.
        let mut directories = BTreeMap::new();
        let (mut with_headers, mut moved) = (BTreeSet::new(), BTreeSet::new());
        let mut put_off = None;
        let mut is_done = |node: &Arc<Node>, result: FsResult<()>| {
            let Err(error) = result else { return true };
            self.put_off(node, &error);
            put_off = Some(error);
            false
        };
        candidates.retain(|candidate| {
            let result = (|| {
                if candidate.file.header_needs_sync()
                    && let (Some(at), Some(id)) = (&*candidate.node.link.lock(), candidate.file.id())
                {
                    let dir = self.dir(&at.parent)?;
                    candidate.file.sync_header(&dir, id)?;
                    directories.insert(at.parent.id, dir);
                    with_headers.insert(candidate.node.id);
                }
                // A seal says by which name there is a file, and that must not be on disk before the name is: a file that has lost or changed one is synced
                // with its attributes, and the names with them (ext4, XFS, Btrfs).
                let has_moved = candidate.node.move_needs_sync();
                candidate.file.sync_unasked(has_moved)?;
                if has_moved {
                    self.add_directory(&candidate.node, &mut directories)?;
                    moved.insert(candidate.node.id);
                }
                Ok(())
            })();
            is_done(&candidate.node, result)
        });
        renamed.retain(|(node, _)| is_done(node, self.add_directory(node, &mut directories)));
        for dir in directories.values() {
            dir.sync()?;
        }
        for candidate in candidates {
            if with_headers.contains(&candidate.node.id) {
                candidate.file.headers_were_synced(candidate.headers);
            }
            if moved.contains(&candidate.node.id) {
                candidate.node.moves_were_synced(candidate.moves);
            }
        }
        Ok(put_off)
    }

    fn add_directory(&self, node: &Node, directories: &mut BTreeMap<u64, Arc<Dir>>) -> FsResult<()> {
        let parent = node.link.lock().as_ref().map(|link| link.parent.clone());
        if let Some(parent) = parent {
            directories.insert(parent.id, self.dir(&parent)?);
        }
        Ok(())
    }

    /// Has a node that could not be made durable looked at again later. Nothing else waits for it.
    fn put_off(&self, node: &Arc<Node>, error: &FsError) {
        let path = self.disk_path(node);
        match self.seal_queue.state.lock().told.insert(node.id) {
            true => log::warn!("{path:?} stays unsealed, it cannot be made durable: {error}"),
            false => log::debug!("{path:?} stays unsealed: {error}"),
        }
        self.seal_queue.push(node);
    }

    /// Tells whether a file has one name, and that is it: another one may be going just now, and be this one.
    fn is_only_name(&self, node: &Node, at: &Link, file: &VaultFile) -> FsResult<bool> {
        Ok(file.backing().stat()?.st_nlink == 1 && self.is_there(node, at)?)
    }

    fn seal(&self, candidate: Candidate) {
        let Candidate {
            node,
            file,
            ticket,
            moves,
            ..
        } = candidate;
        let Ok(Some(content)) = file.usable_content() else {
            self.seal_queue.park(node);
            return;
        };
        // Held until the seal is set: a rename must not change the place between.
        let link = node.link.lock();
        let Some(at) = link.as_ref().filter(|_| !node.is_dead()) else {
            return;
        };
        if node.moves() != moves {
            // Its name on disk is another by now, which may not be durable.
            self.seal_queue.push(&node);
            return;
        }
        if file.header_needs_sync() {
            // It went to another directory meanwhile, and what is sealed must open after a crash.
            self.seal_queue.push(&node);
            return;
        }
        if file.is_in_doubt() {
            // The journal has it, and writes it again.
            self.seal_queue.push(&node);
            return;
        }
        if file.may_have_lost_changes() {
            drop(link);
            self.keep_unused(node);
            return;
        }
        let sealed = (|| -> FsResult<bool> {
            // Anyone can link it to a name more; on another machine hushfs can.
            let may_have_several = content.may_have_several_names() || self.options.shared;
            let several_names = may_have_several && !self.is_only_name(&node, at, &file)?;
            let at = self.found_at(at)?;
            // Without the writeback cache the backing file's time is right.
            let mtime = (!self.options.shared).then(|| {
                let Time { seconds, nanos } = *node.mtime.lock();
                Timespec {
                    tv_sec: seconds,
                    tv_nsec: nanos.into(),
                }
            });
            content
                .finish_seal(ticket, mtime, |key| {
                    (!several_names).then(|| key.place(at.directory, at.name))
                })
                .map_err(|error| self.at(&self.root, "")(error.into()))
        })();
        match sealed {
            Ok(true) => {
                if let Ok(found) = self.found_at(at) {
                    self.record_seal(&file, at, found);
                }
            }
            // Changed meanwhile, or repaired just now: again later.
            Ok(false) => self.seal_queue.push(&node),
            Err(error) => {
                log::warn!("{:?} stays unsealed: {error}", at.disk);
                // What fails now may not fail later; what is damaged stays so.
                if !error.is_damage() {
                    self.seal_queue.push(&node);
                }
            }
        }
        drop(link);
        self.keep_unused(node);
    }
}
