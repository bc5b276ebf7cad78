//! The journal: what is written over durable blocks is durable in it before it is written to the data file.
//!
//! A sealed block lies in two pages. A power cut between them, or a kill in the middle of the write, leaves half of the old block and half of the new
//! one: neither opens. So a change to what is durable is *held* in memory, made durable in the journal together with all others that are held (a
//! *commit*), and only then written to the data file. What fsync(2) acknowledges may stand in the journal alone; when that is full, the data files
//! are synced and it begins anew (a *checkpoint*). What a crash leaves in it is written to the data files by the next mount ([`recovery`]).
//!
//! What a crash leaves, step by step:
//!
//! 1. before the commit is durable: the old blocks, all of them whole. Nobody was told that the new ones are safe.
//! 2. after it, before or while the data files are written: the journal has every new block whole, and recovery writes them again.
//! 3. while data files are synced for a checkpoint: the same. The journal begins anew only when all of them are durable.
//! 4. while the journal begins anew: its header is smaller than a sector, so it is the old one (as 3) or the new one, which no group is of yet.
//! 5. during recovery: as 2, since recovery begins with the first entry again. It removes the journal when all is durable.
//! 6. after a file has lost its last name: a crash may give it back, with what was synced. So its entries stay, and a checkpoint syncs it too, or the
//!    removal. What is held of it when it is closed is dropped.
//! 7. at the end of a mount: the journal is removed after a checkpoint; left there by a crash it is of a generation without groups.
//!
//! A data file that could not be synced may have lost what the journal has of it, though the next sync succeeds: until that is written again (`again`),
//! and synced, the journal does not begin anew and the file is not sealed. A crash meanwhile is as 2.
//!
//! Entries apply in their order. What may not overtake an entry waits for its commit: a write behind the durable end, a truncation, a freed range.

mod again;
mod held;
pub mod recovery;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    fmt, io, mem,
    time::Duration,
};

use parking_lot::Condvar;
use rustix::io::Errno;

use held::{Held, Run};
pub use held::{Identity, Journaled};

use crate::{
    backing::{BackingFile, Dir, Storage},
    crypto::keys::MacKey,
    format::{
        journal::{Change, EntryFile, FIRST_GROUP, GroupWriter, JournalHeader, JournalPlace, decode_groups},
        name,
    },
    ids::{FileId, VaultId},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

/// Sizes of a journal, in bytes: the first that there is room for, and all but the last no more than a part of what is free.
const SIZES: [u64; 5] = [64 << 20, 16 << 20, 4 << 20, 1 << 20, SIZE_MIN];
const SIZE_MIN: u64 = 256 << 10;
const FREE_PART: u64 = 16;

/// How far ahead of its groups the journal is written with zeros, in bytes. In space that is only reserved a sync has the filesystem note besides, in
/// a journal of its own, that it is written now (ext4 and XFS: unwritten extents). That tells where groups are small.
const ZEROS_AHEAD: u64 = 512 << 10;
const SMALL_GROUP: u64 = ZEROS_AHEAD / 8;

/// Bytes held at most, as a part of the journal, and in all.
const HELD_PART: u64 = 4;
const HELD_MAX: u64 = 16 << 20;

/// Bytes held for which the thread that commits what nobody else does is woken: enough for a sync, and committed long before anyone has to wait.
const HELD_MUCH: usize = 2 << 20;

/// Up to so many data files are made durable one by one; more, by one sync of the whole filesystem.
const SYNC_ONE_BY_ONE_MAX: usize = 16;

/// How long a change is held at most. Longer than that nothing is lost that the kernel would not lose too.
const HELD_FOR: Duration = Duration::from_secs(1);

/// Where journals are made.
pub trait JournalHome<S>: fmt::Debug + Send + Sync {
    /// Makes a journal that this much can be written to. A crash may leave nothing of it.
    ///
    /// # Errors
    ///
    /// What creating a file gives; ENOSPC where there is no room for it, EFBIG where no file may be that large.
    fn make(&self, size: u64) -> io::Result<(S, JournalPlace)>;

    /// Has the journal that was made last, with what is in it, survive a crash.
    ///
    /// # Errors
    ///
    /// What fsync(2) gives.
    fn settle(&self, journal: &S) -> io::Result<()>;

    /// Makes everything on the filesystem durable, data files too.
    ///
    /// # Errors
    ///
    /// What syncfs(2) gives.
    fn sync_filesystem(&self) -> io::Result<()>;

    /// Tells whether [`sync_filesystem`](Self::sync_filesystem) reaches the files.
    fn can_sync_filesystem(&self) -> bool;

    /// Removes the journal that was made.
    ///
    /// # Errors
    ///
    /// What unlink(2) gives.
    fn remove(&self) -> io::Result<()>;
}

/// A journal in the vault's own directory: it goes where the disk goes, and is durable as its files are.
#[derive(Debug)]
pub struct InVault {
    dir: Dir,
    name: String,
}

impl InVault {
    /// Has the journal of a mount made in the vault's directory, under a name of its own.
    pub fn new(dir: Dir) -> Self {
        let number = u64::from_le_bytes(crate::crypto::random::bytes());
        InVault {
            dir,
            name: name::journal_file(number),
        }
    }
}

impl JournalHome<Arc<BackingFile>> for InVault {
    fn make(&self, size: u64) -> io::Result<(Arc<BackingFile>, JournalPlace)> {
        let free = self.dir.statvfs()?;
        if size > SIZE_MIN && size > free.f_bavail.saturating_mul(free.f_frsize) / FREE_PART {
            return Err(Errno::NOSPC.into());
        }
        let file = match self.dir.create_file(&self.name, 0o600) {
            // What could be made in part only, and not be removed either: the name is nobody else's.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.dir.unlink(&self.name)?;
                self.dir.create_file(&self.name, 0o600)?
            }
            result => result?,
        };
        let made = match file.allocate(0, size) {
            // Space is taken as it is needed, then.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            result => result,
        };
        let made = made.and_then(|()| file.set_len(size)).and_then(|()| file.place());
        match made {
            Ok(place) => Ok((Arc::new(file), place.into())),
            Err(error) => {
                let _ = self.dir.unlink(&self.name);
                Err(error)
            }
        }
    }

    fn settle(&self, journal: &Arc<BackingFile>) -> io::Result<()> {
        journal.sync_all()?;
        self.dir.sync()
    }

    fn sync_filesystem(&self) -> io::Result<()> {
        self.dir.sync_filesystem()
    }

    fn can_sync_filesystem(&self) -> bool {
        self.dir.can_sync_filesystem()
    }

    fn remove(&self) -> io::Result<()> {
        self.dir.unlink(&self.name)?;
        self.dir.sync()
    }
}

impl From<crate::backing::FilePlace> for JournalPlace {
    fn from(place: crate::backing::FilePlace) -> Self {
        JournalPlace {
            inode: place.inode,
            born: place.born,
        }
    }
}

/// The journal of a mount.
pub struct Journal<S> {
    home: Box<dyn JournalHome<S>>,
    key: MacKey,
    vault: VaultId,
    /// Files that may stay open because the journal has something of them.
    files_max: usize,
    /// Counts what was held, so that a commit knows whose changes it has.
    holds: AtomicU64,
    /// Bytes of memory that what is held takes now.
    held: AtomicUsize,
    /// Bytes that may be held; 0 before there is a journal.
    limit: AtomicUsize,
    /// Someone was told that there is no room for a journal.
    is_without_room: AtomicBool,
    /// Files with something held.
    waiting: Mutex<Vec<Arc<Held<S>>>>,
    /// The inode numbers of files without a name that were closed since it was last looked.
    removed: Mutex<HashSet<u64>>,
    /// Data files of which a sync has failed: what the journal has of them may be in none of their pages any more.
    in_doubt: Mutex<HashSet<DataFile>>,
    /// Held through a commit: one at a time.
    log: Mutex<Log<S>>,
    /// Ends the thread that commits what nobody else does.
    stopped: parking_lot::Mutex<bool>,
    wake: Condvar,
}

/// A data file by its id and the inode number that it had when it was written, 0 where that is not known: a sync tool's copy has the id of what it is a
/// copy of.
type DataFile = (FileId, u64);

/// The journal's file.
struct Log<S> {
    open: Option<Open<S>>,
    /// How much of what was held is durable.
    committed: u64,
}

struct Open<S> {
    storage: S,
    header: JournalHeader,
    size: u64,
    /// Where the next group goes, and how many there were before it.
    at: u64,
    /// Up to where it was ever written.
    written: u64,
    sequence: u64,
    /// Files that groups have entries about.
    live: HashMap<DataFile, Arc<Held<S>>>,
    /// There were others, whose last names went. Until that is durable a crash gives them back, and they have to be as they were synced.
    had_removed: bool,
    /// A crash leaves the journal and the groups in it; before the first commit it is as if there were none.
    is_settled: bool,
    /// No group may follow: a write failed, and what is in the file behind the last one is unknown, or a data file did not take the last change.
    broken: bool,
}

impl<S> fmt::Debug for Journal<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("home", &self.home)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

/// A change that is about to be committed.
struct Taken<S> {
    file: Arc<Held<S>>,
    entry: EntryFile,
    what: What,
}

enum What {
    Run(Run),
    Zero(u64, u64),
    SetLen(u64),
    /// Nothing but when the file was modified last, as someone has set it.
    Time,
}

impl What {
    fn change(&self) -> Change<'_> {
        match self {
            What::Run(run) => Change::Write(run.offset, run.bytes()),
            What::Zero(offset, len) => Change::Zero(*offset, *len),
            What::SetLen(len) => Change::SetLen(*len),
            What::Time => Change::Zero(0, 0),
        }
    }
}

impl<S> Journal<S> {
    /// Notes that a file, by its inode number, has no name and was closed.
    pub fn was_removed(&self, inode: u64) {
        self.removed.lock().insert(inode);
    }

    /// Notes that a sync of a data file has failed.
    fn doubt(&self, file: DataFile) {
        self.in_doubt.lock().insert(file);
    }

    fn is_in_doubt(&self, file: DataFile) -> bool {
        self.in_doubt.lock().contains(&file)
    }
}

impl<S: Storage> Journal<S> {
    /// Prepares a journal; it is made when it is needed. It keeps up to `files_max` files open, and those of one commit.
    pub fn new(home: Box<dyn JournalHome<S>>, vault: VaultId, key: MacKey, files_max: usize) -> Self {
        Journal {
            home,
            key,
            vault,
            files_max: files_max.max(1),
            holds: AtomicU64::new(0),
            held: AtomicUsize::new(0),
            limit: AtomicUsize::new(0),
            is_without_room: AtomicBool::new(false),
            waiting: Mutex::default(),
            removed: Mutex::default(),
            in_doubt: Mutex::default(),
            log: Mutex::new(Log {
                open: None,
                committed: 0,
            }),
            stopped: parking_lot::Mutex::new(false),
            wake: Condvar::new(),
        }
    }

    /// Commits what is held for long, until [`stop`](Self::stop); for a thread of its own.
    pub fn run(&self) {
        let mut failed = false;
        loop {
            {
                let mut stopped = self.stopped.lock();
                if !*stopped {
                    self.wake.wait_for(&mut stopped, HELD_FOR);
                }
                if *stopped {
                    return;
                }
            }
            self.let_go_of_removed();
            match self.commit().and_then(|()| self.settle_doubts()) {
                Ok(()) => failed = false,
                // Those who sync are told. Once is enough for the log.
                Err(error) if !failed => {
                    log::warn!("what was written stays in memory, the journal cannot be: {error}");
                    failed = true;
                }
                Err(_) => {}
            }
        }
    }

    /// Ends [`run`](Self::run).
    pub fn stop(&self) {
        *self.stopped.lock() = true;
        self.wake.notify_all();
    }

    /// Closes files that have no name: the journal has what a crash needs of them, if that gives them back.
    ///
    /// Where there is no sync of the filesystem, which makes the removals durable before the journal begins anew, they stay open until they are synced.
    pub fn let_go_of_removed(&self) {
        let removed = mem::take(&mut *self.removed.lock());
        if removed.is_empty() || !self.home.can_sync_filesystem() {
            return;
        }
        if let Some(open) = &mut self.log.lock().open {
            let before = open.live.len();
            open.live.retain(|(_, inode), _| !removed.contains(inode));
            open.had_removed |= open.live.len() < before;
        }
    }

    fn is_much(&self) -> bool {
        self.held.load(Ordering::Relaxed) > HELD_MUCH.min(self.limit.load(Ordering::Relaxed) / 2)
    }

    /// Returns how many bytes may be held, making the journal if there is none; nothing where there is no room for one.
    fn limit(&self) -> io::Result<Option<usize>> {
        let limit = self.limit.load(Ordering::Acquire);
        if limit > 0 {
            return Ok(Some(limit));
        }
        let mut log = self.log.lock();
        if log.open.is_none() {
            match self.open() {
                Ok(open) => log.open = Some(open),
                Err(error) if is_without_room(&error) => {
                    if !self.is_without_room.swap(true, Ordering::AcqRel) {
                        log::warn!(
                            "no room for the journal: a power cut can make blocks unreadable that are written over, until there is"
                        );
                    }
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        self.is_without_room.store(false, Ordering::Release);
        let size = log.open.as_ref().map_or(0, |open| open.size);
        let limit = (size / HELD_PART).min(HELD_MAX) as usize;
        self.limit.store(limit, Ordering::Release);
        Ok(Some(limit))
    }

    fn open(&self) -> io::Result<Open<S>> {
        let mut sizes = SIZES.iter().peekable();
        loop {
            let size = *sizes.next().expect("the last size returns");
            match self.home.make(size) {
                Err(error) if is_without_room(&error) && sizes.peek().is_some() => {}
                Err(error) => return Err(error),
                Ok((storage, place)) => {
                    let open = Open {
                        storage,
                        header: JournalHeader {
                            vault: self.vault,
                            place,
                            generation: 1,
                        },
                        size,
                        at: FIRST_GROUP,
                        written: FIRST_GROUP,
                        sequence: 0,
                        live: HashMap::new(),
                        had_removed: false,
                        is_settled: false,
                        broken: false,
                    };
                    open.write_header(&open.header, &self.key)?;
                    return Ok(open);
                }
            }
        }
    }

    /// Notes that a file holds so many bytes more, or less.
    fn note_held(&self, file: &Arc<Held<S>>, added: usize, dropped: usize) {
        self.held.fetch_add(added, Ordering::Relaxed);
        self.held.fetch_sub(dropped, Ordering::Relaxed);
        if file.start_waiting() {
            self.waiting.lock().push(file.clone());
        }
        // After it: a commit that counts this one looks at the file.
        self.holds.fetch_add(1, Ordering::AcqRel);
        if self.is_much() {
            self.wake.notify_one();
        }
    }

    /// Makes everything held durable, and writes it to the data files.
    ///
    /// # Errors
    ///
    /// What writing the journal gives. What was held stays so, and the next commit has it again.
    pub fn commit(&self) -> io::Result<()> {
        let target = self.holds.load(Ordering::Acquire);
        let mut log = self.log.lock();
        if log.committed >= target {
            // Someone else's commit had it.
            return Ok(());
        }
        self.commit_all(&mut log, None)
    }

    /// Makes everything held durable, and after it this change of a file; then does it to the file.
    fn commit_with(&self, file: &Arc<Held<S>>, what: What) -> io::Result<()> {
        let mut log = self.log.lock();
        self.commit_all(&mut log, Some((file, what)))?;
        if let Some(open) = log.open.as_mut().filter(|_| file.is_last_refused()) {
            // Who asked for it is told. A crash much later must not do it: the journal begins anew, as soon as that can be.
            open.broken = true;
            file.data_file().into_iter().for_each(|id| self.doubt(id));
        }
        Ok(())
    }

    fn commit_all(&self, log: &mut Log<S>, last: Option<(&Arc<Held<S>>, What)>) -> io::Result<()> {
        let reached = self.holds.load(Ordering::Acquire);
        let files = mem::take(&mut *self.waiting.lock());
        let mut taken: Vec<_> = files.iter().flat_map(Held::take).collect();
        if let Some((file, what)) = last {
            taken.push(file.taken(what)?);
        }
        let Some(open) = &mut log.open else {
            // Nothing can be held before there is a journal.
            return Ok(());
        };
        let result = self.commit_taken(open, &taken);
        if result.is_ok() {
            log.committed = reached;
        }
        // What was not committed, or not taken by its file, is tried again.
        for file in files {
            if file.is_holding() {
                self.note_held(&file, 0, 0);
            }
        }
        result
    }

    /// Commits changes in as many groups as they need, and does them to the data files.
    fn commit_taken(&self, open: &mut Open<S>, taken: &[Taken<S>]) -> io::Result<()> {
        let mut done = 0;
        while done < taken.len() {
            let mut group = GroupWriter::new(open.header.generation, open.sequence);
            let begin = done;
            // One at least: the journal has room for the largest block many times.
            while let Some(next) = taken.get(done) {
                let room = open.size - FIRST_GROUP;
                if done > begin && group.size() + next.what.change().size() > room {
                    break;
                }
                group.push(&next.entry, next.what.change());
                done += 1;
            }
            let chunk = &taken[begin..done];
            self.append(open, group)?;
            for change in chunk {
                // A file that was closed and opened again is known as it is now; it was sealed between, and the journal is done with what it was.
                let data_file = (change.entry.file, change.entry.inode);
                open.live.insert(data_file, change.file.clone());
            }
            for changes in chunk.chunk_by(|a, b| Arc::ptr_eq(&a.file, &b.file)) {
                let released = changes[0].file.apply(changes, open.header.generation);
                self.held.fetch_sub(released, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Writes a group behind the others, or where there is no room or too much to sync as the first of a journal that begins anew.
    fn append(&self, open: &mut Open<S>, mut group: GroupWriter) -> io::Result<()> {
        if open.broken || open.at + group.size() > open.size || open.live.len() >= self.files_max {
            open.checkpoint(self)?;
            group.restart(open.header.generation);
        }
        open.append(group, &self.key, &*self.home)
    }

    /// Has the data files synced, and the journal begin anew.
    ///
    /// # Errors
    ///
    /// What syncing gives; the journal stays as it is then.
    pub fn checkpoint(&self) -> io::Result<()> {
        self.commit()?;
        let mut log = self.log.lock();
        match &mut log.open {
            Some(open) if open.at > FIRST_GROUP => open.checkpoint(self),
            _ => {
                self.in_doubt.lock().clear();
                Ok(())
            }
        }
    }

    /// Has data files of which a sync has failed be as the journal has them, durably.
    ///
    /// # Errors
    ///
    /// What reading the journal, writing or syncing gives; they stay in doubt then.
    pub fn settle_doubts(&self) -> io::Result<()> {
        if self.in_doubt.lock().is_empty() {
            return Ok(());
        }
        self.checkpoint()
    }

    /// Ends the journal: everything stands in the data files, durably.
    ///
    /// # Errors
    ///
    /// What syncing gives; the journal stays where it is then, for the next mount.
    pub fn finish(&self) -> io::Result<()> {
        self.checkpoint()?;
        let mut log = self.log.lock();
        if log.open.is_none() {
            return Ok(());
        }
        self.home.remove()?;
        log.open = None;
        self.limit.store(0, Ordering::Release);
        Ok(())
    }
}

impl<S: Storage> Open<S> {
    /// Writes a group behind the others, durably.
    fn append(&mut self, group: GroupWriter, key: &MacKey, home: &dyn JournalHome<S>) -> io::Result<()> {
        let size = group.size();
        self.broken = true;
        self.storage
            .write_at(&group.finish(key), self.at)
            .map_err(|short| short.error)?;
        self.write_ahead(size);
        if self.is_settled {
            self.storage.sync_data()?;
        } else {
            home.settle(&self.storage)?;
            self.is_settled = true;
        }
        self.broken = false;
        self.at += size;
        self.sequence += 1;
        Ok(())
    }

    /// Writes zeros behind a group of that size, if it is the first to end where it does.
    fn write_ahead(&mut self, size: u64) {
        let end = self.at + size;
        if end <= self.written {
            return;
        }
        self.written = end;
        let ahead = (end + ZEROS_AHEAD).min(self.size);
        // Without them it is slower, and nothing else.
        if size <= SMALL_GROUP && self.storage.write_at(&vec![0; (ahead - end) as usize], end).is_ok() {
            self.written = ahead;
        }
    }

    fn checkpoint(&mut self, journal: &Journal<S>) -> io::Result<()> {
        for file in self.live.values() {
            file.complete()?;
        }
        let is_many = self.live.len() > SYNC_ONE_BY_ONE_MAX && journal.home.can_sync_filesystem();
        let at_once = self.had_removed || is_many;
        if at_once && let Err(error) = journal.home.sync_filesystem() {
            // It does not say of which, nor a second time.
            self.live.keys().for_each(|&id| journal.doubt(id));
            if self.had_removed {
                return Err(error);
            }
        }
        if !at_once {
            for (&id, file) in &self.live {
                file.sync().unwrap_or_else(|error| {
                    log::warn!(
                        "file {}: a sync has failed: {error}: what the journal has of it is written again",
                        id.0
                    );
                    journal.doubt(id);
                });
            }
        }
        self.write_again(journal)?;
        self.begin_anew(&journal.key)?;
        self.had_removed = false;
        journal.in_doubt.lock().clear();
        for (_, file) in self.live.drain() {
            file.note_checkpoint();
        }
        Ok(())
    }

    /// Has data files that are in doubt be as the journal has them, durably.
    fn write_again(&self, journal: &Journal<S>) -> io::Result<()> {
        let in_doubt: Vec<_> = self.live.iter().filter(|(id, _)| journal.is_in_doubt(**id)).collect();
        if in_doubt.is_empty() {
            return Ok(());
        }
        let mut groups = vec![0; (self.at - FIRST_GROUP) as usize];
        let got = self.storage.read_at(&mut groups, FIRST_GROUP)?;
        let entries = decode_groups(&groups[..got], self.header.generation, &journal.key).map_err(io::Error::other)?;
        let entries = recovery::by_file(&entries);
        for (&id, file) in in_doubt {
            file.write_again(entries.get(&id).map_or(&[], Vec::as_slice))?;
            // Before the sync, which may be the next to fail: the mark is then of someone else's.
            journal.in_doubt.lock().remove(&id);
            file.sync().inspect_err(|_| journal.doubt(id))?;
            if journal.is_in_doubt(id) {
                return Err(Errno::IO.into());
            }
        }
        Ok(())
    }

    fn begin_anew(&mut self, key: &MacKey) -> io::Result<()> {
        let next = JournalHeader {
            generation: self.header.generation + 1,
            ..self.header
        };
        // Until it is known which of both is there no group may follow either.
        self.broken = true;
        self.write_header(&next, key)?;
        self.storage.sync_data()?;
        self.header = next;
        self.at = FIRST_GROUP;
        self.sequence = 0;
        self.broken = false;
        Ok(())
    }

    fn write_header(&self, header: &JournalHeader, key: &MacKey) -> io::Result<()> {
        let written = self.storage.write_at(&header.encode(key), 0);
        written.map_err(|short| short.error)
    }
}

fn is_without_room(error: &io::Error) -> bool {
    // EFBIG where files may not grow that large (RLIMIT_FSIZE).
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG))
}
