//! A data file whose durable content is changed by way of the journal.

use std::{collections::BTreeMap, io, mem, ops::Range};

use rustix::fs::Timespec;

use super::{DataFile, Journal, Taken, What, again::write_again};
use crate::{
    backing::{ShortWrite, Storage},
    format::{
        journal::{Entry, EntryFile},
        layout::{Layout, PREAMBLE_SIZE},
        preamble::UnverifiedPreamble,
    },
    ids::FileId,
    sync::{
        Arc, Mutex, RwLock, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering},
    },
};

/// All of a file is changed by way of the journal, whatever its size: it was cut, and what is written behind the cut must not be cut again.
const ALL: u64 = u64::MAX;

/// Changes that are done to a data file before who waits for it has a turn.
const AT_ONCE: usize = 16;

/// What was written at once. Memory has all of it until none of its runs is held.
#[derive(Debug)]
struct Buffer {
    bytes: Vec<u8>,
    /// Those that are held.
    runs: AtomicUsize,
}

/// Bytes of a file that are not in it yet. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub offset: u64,
    data: Arc<Buffer>,
    within: Range<usize>,
    /// Tells it from an earlier one at the same offset.
    number: u64,
}

impl Run {
    pub fn bytes(&self) -> &[u8] {
        &self.data.bytes[self.within.clone()]
    }

    fn len(&self) -> usize {
        self.within.len()
    }

    fn end(&self) -> u64 {
        self.offset + self.len() as u64
    }

    /// Notes that the run is held no more; returns how much memory that frees.
    fn let_go(self) -> usize {
        match self.data.runs.fetch_sub(1, Ordering::AcqRel) {
            1 => self.data.bytes.len(),
            _ => 0,
        }
    }
}

/// What a file holds, shared with the journal.
#[derive(Debug)]
pub(super) struct Held<S> {
    storage: S,
    file: FileId,
    state: RwLock<State>,
    /// Among those that a commit looks at.
    is_waiting: AtomicBool,
    /// Whether there is anything in `state.runs`: most reads need not look.
    is_holding: AtomicBool,
    /// The data file was changed since it was synced, other than by what the journal has.
    changed_in_place: AtomicBool,
    /// Held while the data file is synced, sealed, or written again.
    syncing: Mutex<()>,
    /// The data file was changed in place since someone was told how a sync of it went; and how many such changes are under way.
    is_at_stake: AtomicBool,
    changing: AtomicUsize,
    /// Why a sync that nobody asked for has failed after which that may be lost, as in errno(3); 0 for none.
    untold: AtomicI32,
    /// More was written to the data file than `state.durable` says.
    has_grown: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// A preamble, or blocks, by their offset; none overlaps another.
    runs: BTreeMap<u64, Run>,
    last_number: u64,
    /// The journal has all runs up to this one.
    committed: u64,
    /// What stands before this offset may be durable, and is changed by way of the journal.
    durable: u64,
    /// The generation of the journal that has a cut of this file.
    cut_in: Option<u64>,
    seal_count: u64,
    /// The inode number of the data file, once the journal needs it.
    inode: Option<u64>,
    /// When what is held was written, or as when it was set since.
    mtime: Option<Timespec>,
    /// It was set, and recovery would put it back to what the journal has.
    is_time_due: bool,
    /// The journal has something of this file.
    is_in_journal: bool,
    /// Space is reserved in the data file up to here.
    reserved: u64,
    /// Why the data file did not take what the journal has; for the next who syncs it.
    failed: Option<io::Error>,
    /// Why it did not take a cut, or the freeing of a range; for who asked for it.
    refused: Option<io::Error>,
    /// That is the last that the journal has of the file.
    is_last_refused: bool,
}

impl State {
    fn is_holding(&self) -> bool {
        self.is_time_due || !self.runs.is_empty()
    }

    fn end(&self) -> u64 {
        self.runs.last_key_value().map_or(0, |(_, run)| run.end())
    }

    /// Returns the first run that ends behind an offset.
    fn run_from(&self, offset: u64) -> Option<&Run> {
        let before = self.runs.range(..=offset).next_back().map(|(_, run)| run);
        let behind = || self.runs.range(offset..).next().map(|(_, run)| run);
        before.filter(|run| run.end() > offset).or_else(behind)
    }

    /// Returns when the file was modified last, as an entry has it; zeros where that is not known.
    fn entry_mtime(&self) -> (i64, u32) {
        self.mtime.map_or((0, 0), |mtime| (mtime.tv_sec, mtime.tv_nsec as u32))
    }

    fn entry(&self, file: FileId) -> EntryFile {
        EntryFile {
            file,
            // Unknown, recovery looks at more files.
            inode: self.inode.unwrap_or(0),
            seal_count: self.seal_count,
            mtime: self.entry_mtime(),
        }
    }
}

impl<S: Storage> Held<S> {
    /// Notes that a commit has to look at the file; tells whether none had to before.
    pub fn start_waiting(&self) -> bool {
        !self.is_waiting.swap(true, Ordering::AcqRel)
    }

    pub fn is_holding(&self) -> bool {
        self.is_holding.load(Ordering::Acquire)
    }

    /// Returns what is held, for a commit; it stays held until it is in the data file.
    pub fn take(self: &Arc<Self>) -> Vec<Taken<S>> {
        // First: who holds more from here on has the next commit look again.
        self.is_waiting.store(false, Ordering::Release);
        let state = self.state.read();
        let entry = state.entry(self.file);
        let runs = joined(state.runs.values()).map(What::Run);
        // With content the time comes too, but for one that an entry has for none.
        let has_time = !state.runs.is_empty() && entry.mtime != (0, 0);
        let time = (state.is_time_due && !has_time).then_some(What::Time);
        let taken = |what| Taken {
            file: self.clone(),
            entry,
            what,
        };
        runs.chain(time).map(taken).collect()
    }

    /// Returns a change that comes after all that is held.
    ///
    /// # Errors
    ///
    /// What fstat(2) gives.
    pub fn taken(self: &Arc<Self>, what: What) -> io::Result<Taken<S>> {
        let mut state = self.state.write();
        if state.inode.is_none() {
            state.inode = Some(self.storage.inode()?);
        }
        Ok(Taken {
            file: self.clone(),
            entry: state.entry(self.file),
            what,
        })
    }

    /// Does committed changes to the data file; returns how much memory is free that was held.
    ///
    /// What the data file does not take stays held, and who syncs it is told.
    pub fn apply(&self, changes: &[Taken<S>], generation: u64) -> usize {
        let (mut released, mut result, mut is_written) = (0, Ok(()), false);
        let mut done = 0;
        // Readers wait: what they read from the file and what they take from here must be of one moment. Not for all of it: a disk may have to be read
        // for each of them.
        let mut state = self.state.write();
        state.is_in_journal = true;
        for change in changes {
            if done == AT_ONCE {
                RwLockWriteGuard::bump(&mut state);
                done = 0;
            }
            done += 1;
            match &change.what {
                What::Run(run) => {
                    is_written = true;
                    state.committed = state.committed.max(run.number);
                    match self.write_run(run) {
                        Ok(()) => released += state.release(run.offset..run.end(), run.number),
                        Err(error) => result = Err(error),
                    }
                }
                What::Zero(offset, len) => {
                    released += state.release(*offset..offset + len, u64::MAX);
                    state.durable = state.durable.max(offset + len);
                    state.refuse(self.storage.punch(*offset, *len));
                }
                What::Time => {}
                What::SetLen(len) => {
                    released += state.release(*len..u64::MAX, u64::MAX);
                    state.durable = ALL;
                    state.cut_in = Some(generation);
                    state.reserved = 0;
                    state.refuse(self.storage.set_len(*len));
                }
            }
        }
        if let Some(mtime) = state.mtime.filter(|_| is_written) {
            result = result.and(self.storage.set_mtime(mtime));
        }
        state.is_time_due &= changes
            .last()
            .is_none_or(|last| last.entry.mtime != state.entry_mtime());
        self.is_holding.store(state.is_holding(), Ordering::Release);
        state.failed = result.err();
        released
    }

    /// Returns why the data file did not take what the journal has, if it did not.
    pub fn failure(&self) -> io::Result<()> {
        self.state.write().failed.take().map_or(Ok(()), Err)
    }

    /// Returns why the data file did not take the cut, or the freeing of a range, that was just committed.
    pub fn refusal(&self) -> io::Result<()> {
        self.state.write().refused.take().map_or(Ok(()), Err)
    }

    fn write_run(&self, run: &Run) -> io::Result<()> {
        let written = self.storage.write_at(run.bytes(), run.offset);
        written.map_err(|short| short.error)
    }

    /// Has the data file have all that the journal has of it, before both are synced.
    pub fn complete(&self) -> io::Result<()> {
        let mut state = self.state.write();
        // What a full disk did not take it may take now; without it the journal must stay as it is.
        for run in state.runs.values().filter(|run| run.number <= state.committed) {
            self.write_run(run)?;
        }
        state.durable = state.durable.max(self.storage.len()?);
        Ok(())
    }

    /// Makes the data file durable; where that fails, the next who asks for it is told, too, unless the journal has all that may be lost.
    pub fn sync(&self) -> io::Result<()> {
        let _syncing = self.syncing.lock();
        let was_at_stake = self.is_at_stake.swap(false, Ordering::AcqRel);
        self.storage.sync_data().inspect_err(|error| {
            // Also what was changed meanwhile, whose mark may come after it.
            let is_changing = self.changing.load(Ordering::Acquire) > 0;
            if was_at_stake || is_changing || self.is_at_stake.load(Ordering::Acquire) {
                self.note_untold(error);
            }
        })
    }

    fn note_untold(&self, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        self.untold.store(errno, Ordering::Release);
    }

    /// Writes again what the journal has of the data file, but for what that did not take.
    pub fn write_again(&self, entries: &[Entry<'_>]) -> io::Result<()> {
        let _syncing = self.syncing.lock();
        let refused = usize::from(self.state.read().is_last_refused);
        write_again(&self.storage, &entries[..entries.len().saturating_sub(refused)])
    }

    /// Returns which data file it is, once the journal has something of it.
    pub fn data_file(&self) -> Option<DataFile> {
        Some((self.file, self.state.read().inode?))
    }

    /// Tells whether the data file did not take the last that the journal has of it.
    pub fn is_last_refused(&self) -> bool {
        self.state.read().is_last_refused
    }

    /// Notes that the journal has nothing of this file any more.
    pub fn note_checkpoint(&self) {
        let mut state = self.state.write();
        state.is_last_refused = false;
        state.is_in_journal = false;
        if state.cut_in.take().is_some() {
            // Synced a moment ago. What came since, and waits for its own commit, is changed by way of the journal too.
            state.durable = self.storage.len().map_or(ALL, |len| len.max(state.end()));
        }
    }
}

impl State {
    fn refuse(&mut self, done: io::Result<()>) {
        self.refused = done.err();
        self.is_last_refused = self.refused.is_some();
    }

    /// Lets go of what begins in a range, unless it was written after the number given; returns how much memory that frees.
    fn release(&mut self, range: Range<u64>, number: u64) -> usize {
        let begun = self.runs.range(range).filter(|(_, run)| run.number <= number);
        let offsets: Vec<_> = begun.map(|(&offset, _)| offset).collect();
        let runs = offsets.iter().filter_map(|offset| self.runs.remove(offset));
        runs.map(Run::let_go).sum()
    }
}

/// Joins runs that lie side by side in one buffer, as a large write leaves them.
fn joined<'r>(runs: impl Iterator<Item = &'r Run>) -> impl Iterator<Item = Run> {
    let mut runs = runs.peekable();
    std::iter::from_fn(move || {
        let mut run = runs.next()?.clone();
        while let Some(next) = runs.next_if(|next| {
            next.offset == run.end() && Arc::ptr_eq(&next.data, &run.data) && next.within.start == run.within.end
        }) {
            run.within.end = next.within.end;
            run.number = run.number.max(next.number);
        }
        Some(run)
    })
}

/// A data file as content sees it.
#[derive(Debug)]
pub struct Journaled<S> {
    held: Arc<Held<S>>,
    journal: Option<Arc<Journal<S>>>,
    layout: Layout,
    /// The file's last name is gone.
    has_no_name: AtomicBool,
}

impl<S> Drop for Journaled<S> {
    fn drop(&mut self) {
        let Some(journal) = self.journal.as_ref().filter(|_| *self.has_no_name.get_mut()) else {
            return;
        };
        let mut state = self.held.state.write();
        let released = mem::take(&mut state.runs).into_values().map(Run::let_go).sum();
        state.is_time_due = false;
        self.held.is_holding.store(false, Ordering::Release);
        journal.held.fetch_sub(released, Ordering::Relaxed);
        // Without a number nothing of it was ever committed.
        if let Some(inode) = state.inode {
            journal.was_removed(inode);
        }
    }
}

/// What is known of a data file when it is opened.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The file.
    pub file: FileId,
    /// How often it was sealed.
    pub seal_count: u64,
    /// How many bytes of it may be durable: all that there are, in a file that was there before.
    pub durable: u64,
}

/// A journal, and how many bytes may be held for it.
type Bounded<'j, S> = (&'j Arc<Journal<S>>, usize);

impl<S: Storage> Journaled<S> {
    /// Wraps a data file; without a journal every write goes straight to it.
    pub fn new(storage: S, journal: Option<Arc<Journal<S>>>, layout: Layout, identity: Identity) -> Self {
        Journaled {
            held: Arc::new(Held {
                storage,
                file: identity.file,
                state: RwLock::new(State {
                    seal_count: identity.seal_count,
                    durable: if journal.is_some() { identity.durable } else { 0 },
                    ..State::default()
                }),
                is_waiting: AtomicBool::new(false),
                is_holding: AtomicBool::new(false),
                changed_in_place: AtomicBool::new(true),
                syncing: Mutex::default(),
                is_at_stake: AtomicBool::new(false),
                changing: AtomicUsize::new(0),
                untold: AtomicI32::new(0),
                has_grown: AtomicBool::new(false),
            }),
            journal,
            layout,
            has_no_name: AtomicBool::new(false),
        }
    }

    /// Returns the end of what is held, in bytes of the data file; 0 where nothing is.
    pub fn held_end(&self) -> u64 {
        if self.held.is_holding() {
            self.held.state.read().end()
        } else {
            0
        }
    }

    /// Changes the file's times by `set`, which returns when it was last modified then. What is held does not change that any more. Tells whether a
    /// commit will have it durable.
    ///
    /// # Errors
    ///
    /// What `set` gives.
    pub fn with_times(&self, set: impl FnOnce() -> io::Result<Option<Timespec>>) -> io::Result<bool> {
        let mut state = self.held.state.write();
        if let Some(mtime) = set()? {
            state.mtime = Some(mtime);
            // What is held may be on its way there, with the time before.
            state.is_time_due |= state.is_in_journal || !state.runs.is_empty();
        }
        let is_holding = state.is_holding();
        self.held.is_holding.store(is_holding, Ordering::Release);
        let is_time_due = state.is_time_due;
        drop(state);
        if let Some(journal) = self.journal.as_ref().filter(|_| is_time_due) {
            journal.note_held(&self.held, 0, 0);
        }
        Ok(is_holding)
    }

    /// Tells whether what is durable is changed by way of a journal.
    pub fn is_journaled(&self) -> bool {
        self.journal.is_some()
    }

    /// Commits what is held, then calls `sync` with whether the data file was changed in place since it was last synced.
    ///
    /// One caller at a time: who finds nothing changed must not be told so while another still syncs it.
    ///
    /// # Errors
    ///
    /// What the journal or `sync` gives.
    pub fn sync_with(&self, sync: impl FnOnce(bool) -> io::Result<()>) -> io::Result<()> {
        self.commit_held()?;
        let _syncing = self.held.syncing.lock();
        // Before the sync: what is written over from now on may be what the sync makes durable.
        self.note_durable()?;
        let changed = self.held.changed_in_place.swap(false, Ordering::AcqRel);
        self.held.is_at_stake.store(false, Ordering::Release);
        sync(changed).inspect_err(|_| {
            self.held.changed_in_place.store(true, Ordering::Release);
            self.doubt();
        })
    }

    /// Calls `sync`, which makes the data file durable with what is in it, not what the journal alone has.
    ///
    /// # Errors
    ///
    /// What `sync` gives.
    pub fn sync_in_place(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let _syncing = self.held.syncing.lock();
        sync().inspect_err(|_| self.doubt())
    }

    /// Notes that a sync has failed.
    fn doubt(&self) {
        if let (Some(journal), Ok(inode)) = (&self.journal, self.held.storage.inode()) {
            journal.doubt((self.held.file, inode));
        }
    }

    /// Tells whether there may be less in the data file than the journal has of it: a sync has failed.
    pub fn is_in_doubt(&self) -> bool {
        // Without a number nothing of it was ever committed.
        let in_journal = self.journal.as_ref().zip(self.held.data_file());
        in_journal.is_some_and(|(journal, data_file)| journal.is_in_doubt(data_file))
    }

    /// Notes that a sync that nobody asked for has failed, and something may be lost.
    pub fn note_untold_failure(&self, error: &io::Error) {
        self.held.note_untold(error);
    }

    /// Tells whether a sync that nobody asked for has failed, after which something may be lost, until that was [taken](Self::take_untold_failure).
    pub fn has_untold_failure(&self) -> bool {
        self.held.untold.load(Ordering::Acquire) != 0
    }

    /// Tells why, once.
    ///
    /// # Errors
    ///
    /// That one.
    pub fn take_untold_failure(&self) -> io::Result<()> {
        match self.held.untold.swap(0, Ordering::AcqRel) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Notes that all there is may be durable from now on.
    fn note_durable(&self) -> io::Result<()> {
        if self.journal.is_some() && self.held.has_grown.swap(false, Ordering::AcqRel) {
            let mut state = self.held.state.write();
            state.durable = state.durable.max(self.held.storage.len()?);
        }
        Ok(())
    }

    /// Notes that the file's last name is gone: when it is closed, what is held of it need not be written.
    pub fn last_name_is_gone(&self) {
        self.has_no_name.store(true, Ordering::Release);
    }

    fn commit_held(&self) -> io::Result<()> {
        match &self.journal {
            Some(journal) if self.held.is_holding() => journal.commit().and_then(|()| self.held.failure()),
            _ => Ok(()),
        }
    }

    /// Does what goes straight to the data file, after all that is held: it must not be durable before that is.
    fn in_place<R>(&self, act: impl FnOnce(&S) -> R) -> io::Result<R> {
        self.commit_held()?;
        self.held.changing.fetch_add(1, Ordering::AcqRel);
        let done = act(&self.held.storage);
        self.was_changed_in_place();
        self.held.changing.fetch_sub(1, Ordering::AcqRel);
        Ok(done)
    }

    /// After the change: who syncs meanwhile may not have had it, and takes the marks away.
    fn was_changed_in_place(&self) {
        self.held.changed_in_place.store(true, Ordering::Release);
        self.held.is_at_stake.store(true, Ordering::Release);
    }

    /// As [`in_place`](Self::in_place), for what may make the file longer.
    fn grow_in_place<R>(&self, act: impl FnOnce(&S) -> R) -> io::Result<R> {
        let done = self.in_place(act);
        self.held.has_grown.store(true, Ordering::Release);
        done
    }

    /// Returns the journal, if what stands at an offset is changed by way of it, and how many bytes may be held.
    ///
    /// Where there is no room for a journal, everything is changed in place: who wants to free space by a truncation must be able to.
    fn journal_at(&self, offset: u64) -> io::Result<Option<Bounded<'_, S>>> {
        let Some(journal) = &self.journal else { return Ok(None) };
        if offset >= self.held.state.read().durable {
            return Ok(None);
        }
        Ok(journal.limit()?.map(|limit| (journal, limit)))
    }

    /// Reserves space for what makes the file longer: once it is in the journal, the file must take it.
    fn reserve(&self, state: &mut State, offset: u64, end: u64) -> io::Result<()> {
        let is_there = state.durable != ALL && end <= state.durable;
        if is_there || end <= state.reserved {
            return Ok(());
        }
        // A whole block, so that small appends reserve seldom.
        let end = end.max(offset + self.layout.stride());
        match self.held.storage.allocate(offset, end - offset) {
            Err(error) if error.raw_os_error() != Some(libc::EOPNOTSUPP) => Err(error),
            _ => {
                state.reserved = end;
                Ok(())
            }
        }
    }

    /// Holds what is written, as much as there is room for; what is said to be stored is held, and nothing else.
    fn hold(&self, journal: &Journal<S>, limit: usize, buf: &[u8], offset: u64) -> Result<(), ShortWrite> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let mut written = 0;
        while written < buf.len() {
            let short = |error| ShortWrite { written, error };
            let begin = offset + written as u64;
            let part = &buf[written..][..self.part_len(begin, buf.len() - written, limit)];
            let data = Arc::new(Buffer {
                bytes: part.to_vec(),
                runs: AtomicUsize::new(0),
            });
            // Before anything is held: who is told that it failed must not find it there.
            if journal
                .held
                .load(Ordering::Relaxed)
                .saturating_add(part.len().min(limit))
                > limit
            {
                journal.commit().map_err(short)?;
            }
            let mut state = self.held.state.write();
            let end = begin + part.len() as u64;
            self.reserve(&mut state, begin, end).map_err(short)?;
            if state.inode.is_none() {
                state.inode = Some(self.held.storage.inode().map_err(short)?);
            }
            state.mtime = Some(now);
            let dropped = self.hold_part(&mut state, &data, begin);
            // What the journal has is changed by way of it, or recovery would put it over what came later.
            state.durable = state.durable.max(end);
            self.held.is_holding.store(true, Ordering::Release);
            drop(state);
            journal.note_held(&self.held, part.len(), dropped);
            written += part.len();
        }
        Ok(())
    }

    /// Returns how much of what is written at an offset is held at once: whole units, the first that reach the limit.
    fn part_len(&self, offset: u64, len: usize, limit: usize) -> usize {
        let first = self.unit(offset);
        let stride = self.layout.stride() as usize;
        len.min(first + limit.saturating_sub(first).next_multiple_of(stride))
    }

    /// Returns the size of what is at an offset: the preamble, or a block.
    fn unit(&self, offset: u64) -> usize {
        match offset {
            0 => PREAMBLE_SIZE as usize,
            _ => self.layout.stride() as usize,
        }
    }

    /// Holds bytes, each unit as a run of its own; returns how much memory is free of what they are written over.
    fn hold_part(&self, state: &mut State, data: &Arc<Buffer>, offset: u64) -> usize {
        state.last_number += 1;
        let (mut start, mut dropped) = (0, 0);
        while start < data.bytes.len() {
            let at = offset + start as u64;
            let end = data.bytes.len().min(start + self.unit(at));
            data.runs.fetch_add(1, Ordering::AcqRel);
            let run = Run {
                offset: at,
                data: data.clone(),
                within: start..end,
                number: state.last_number,
            };
            if at == 0
                && let Ok(preamble) = UnverifiedPreamble::decode(run.bytes())
            {
                state.seal_count = preamble.claimed_seal_count();
            }
            dropped += state.runs.insert(at, run).map_or(0, Run::let_go);
            start = end;
        }
        dropped
    }
}

impl<S: Storage> Storage for Journaled<S> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.held.storage.len()?.max(self.held_end()))
    }

    fn inode(&self) -> io::Result<u64> {
        self.held.storage.inode()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if !self.held.is_holding() {
            return self.held.storage.read_at(buf, offset);
        }
        // Through both: nothing moves from here to the file meanwhile.
        let state = self.held.state.read();
        let mut got = self.held.storage.read_at(buf, offset)?;
        let there = state.end().saturating_sub(offset).min(buf.len() as u64) as usize;
        if there > got {
            buf[got..there].fill(0);
            got = there;
        }
        let end = offset + got as u64;
        let before = state.runs.range(..offset).next_back().into_iter();
        for (_, run) in before.chain(state.runs.range(offset..end)) {
            let (from, to) = (run.offset.max(offset), run.end().min(end));
            if from < to {
                let piece = &run.bytes()[(from - run.offset) as usize..(to - run.offset) as usize];
                buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(piece);
            }
        }
        Ok(got)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), ShortWrite> {
        let whole = |error| ShortWrite { written: 0, error };
        match self.journal_at(offset).map_err(whole)? {
            Some((journal, limit)) => self.hold(journal, limit, buf, offset),
            None => self
                .grow_in_place(|storage| storage.write_at(buf, offset))
                .map_err(whole)?,
        }
    }

    /// Of a file that is durable as it is: for seals, and changes of a sealed file's preamble.
    fn write_with_mtime(&self, buf: &[u8], offset: u64, mtime: Option<Timespec>) -> io::Result<()> {
        self.commit_held()?;
        let _syncing = self.held.syncing.lock();
        let written = self.held.storage.write_with_mtime(buf, offset, mtime);
        self.was_changed_in_place();
        written?;
        if let Ok(preamble) = UnverifiedPreamble::decode(buf) {
            let mut state = self.held.state.write();
            let before = mem::replace(&mut state.seal_count, preamble.claimed_seal_count());
            // Recovery passes over what the journal has from before a seal.
            state.is_in_journal &= state.seal_count <= before;
        }
        self.note_durable()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.journal_at(len)? {
            Some((journal, _)) => journal
                .commit_with(&self.held, What::SetLen(len))
                .and_then(|()| self.held.refusal()),
            None => self.grow_in_place(|storage| storage.set_len(len))?,
        }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.journal_at(offset)? {
            Some((journal, _)) => journal
                .commit_with(&self.held, What::Zero(offset, len))
                .and_then(|()| self.held.refusal()),
            None => self.in_place(|storage| storage.punch(offset, len))?,
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.held.storage.allocate(offset, len)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        if !self.held.is_holding() {
            return self.held.storage.next_data(offset);
        }
        // Of both: nothing moves from here to the file meanwhile.
        let state = self.held.state.read();
        let held = state.run_from(offset).map(|run| run.offset.max(offset));
        let stored = self.held.storage.next_data(offset)?;
        Ok(held.into_iter().chain(stored).min())
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        if !self.held.is_holding() {
            return self.held.storage.next_hole(offset);
        }
        let state = self.held.state.read();
        let mut at = offset;
        loop {
            // Behind its end the data file has nothing, though it names that.
            at = self.held.storage.next_hole(at)?.max(at);
            match state.run_from(at).filter(|run| run.offset <= at) {
                Some(run) => at = run.end(),
                None => return Ok(at),
            }
        }
    }

    fn set_mtime(&self, mtime: Timespec) -> io::Result<()> {
        self.held.storage.set_mtime(mtime)
    }

    fn announce(&self) -> io::Result<()> {
        // What is held becomes durable before all that follows it.
        match &self.journal {
            Some(_) if self.held_end() > 0 => Ok(()),
            _ => self.sync_data(),
        }
    }

    fn sync_announced(&self) -> io::Result<()> {
        self.commit_held()
    }

    fn sync_data(&self) -> io::Result<()> {
        if !self.is_journaled() {
            return self.held.storage.sync_data();
        }
        self.sync_with(|changed| if changed { self.held.storage.sync_data() } else { Ok(()) })
    }

    fn write_back(&self) -> io::Result<()> {
        self.commit_held()?;
        self.sync_in_place(|| self.held.storage.write_back())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    impl<S> Journaled<S> {
        /// Returns how much memory what is held takes, each buffer once.
        pub fn memory(&self) -> usize {
            let state = self.held.state.read();
            let buffer = |run: &Run| (Arc::as_ptr(&run.data), run.data.bytes.len());
            let buffers: HashMap<_, _> = state.runs.values().map(buffer).collect();
            buffers.into_values().sum()
        }
    }
}
