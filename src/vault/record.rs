//! The local record: what was last seen of a vault, kept outside it, so that an older version put back is told (docs/FORMAT.md section 11).
//!
//! Nothing in a vault tells an old version of a file from the present one: both are authentic. A record knows how often each file had been sealed.
//! Only going backwards is news; that a file is newer than when it was last seen is what syncing is for.
//!
//! What always holds:
//!
//! - A record is never ahead of the vault's disk: what it notes was made durable before. Otherwise a power cut would look like an attack.
//! - It is always said that a record is lost or damaged. One that is not authentic is fatal only where older versions are refused.
//! - What went backwards stays noted as it was before, and is told again, until it is accepted.

mod store;
mod table;

use std::{
    collections::HashSet,
    fmt, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;

pub use self::store::{RecordError, Start};
use self::{store::Store, table::Table};
use super::{
    Vault,
    file::{FoundAt, VaultFile},
};
use crate::{
    crypto::record::RecordKey,
    format::{
        FormatError,
        record::{BATCH_MAX, Noted, SeenFile, SeenHome},
    },
    ids::{DirectoryId, FileId},
};

/// How long sightings wait before they are written: a record costs one sync of the vault's filesystem for all of them.
const WRITE_EVERY: Duration = Duration::from_secs(60);

/// So many wait at most.
const WAITING_MAX: usize = 16_384;

/// In how many ways a vault header is known again; more were never seen of one vault.
const HOMES_MAX: usize = 64;

/// How a file, or the vault itself, is older than when it was last seen here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backwards {
    /// It was sealed less often.
    Older {
        /// How often it had been sealed when it was last seen.
        seen: u64,
        /// How often it has been now.
        found: u64,
    },
    /// It was sealed as often, with other content: put back and written on elsewhere, or written in two places at a time.
    Other {
        /// How often it was sealed.
        count: u64,
    },
    /// It had been removed here, or another file had taken its place.
    Returned,
    /// It was found to be older some time ago, and nobody has accepted it.
    NotAccepted,
    /// It is empty, and the file that was seen here is nowhere else.
    Emptied,
    /// The vault header is one that was replaced since.
    Header,
    /// The keystore was stored less often than when it was last seen.
    Keystore {
        /// How often it had been stored.
        seen: u64,
        /// How often it has been now.
        found: u64,
    },
}

impl fmt::Display for Backwards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backwards::Older { seen, found } => write!(
                f,
                "older than when it was last seen here: seal {found}, and it was {seen}"
            ),
            Backwards::Other { count } => write!(f, "not what was last seen here: seal {count} had other content"),
            Backwards::Returned => f.write_str("was removed or replaced here, and is back"),
            Backwards::NotAccepted => f.write_str("was put back to an older version, which nobody has accepted"),
            Backwards::Emptied => f.write_str("empty, and had content when it was last seen here"),
            Backwards::Header => {
                f.write_str("older than when it was last seen here: its header has been replaced since")
            }
            Backwards::Keystore { seen, found } => write!(
                f,
                "its keystore is older than when it was last seen here: version {found}, and it was {seen}"
            ),
        }
    }
}

/// A record of a vault, open.
#[derive(Debug)]
pub struct Record {
    key: RecordKey,
    /// Which file is where is noted too. Not on a filesystem that cannot be made durable as a whole: names could fall behind the record.
    follows_names: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    store: Store,
    table: Table,
    /// Sightings that are not written yet.
    waiting: Vec<SeenFile>,
    /// What was accepted and is not written yet: counts, whatever was seen before.
    accepted: Vec<SeenFile>,
    written: Instant,
}

/// How much a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordSize {
    /// Files that are there, as far as is known.
    pub files: u64,
    /// Files that are gone, remembered in case they come back.
    pub gone: u64,
    /// Files that went backwards, not accepted.
    pub suspect: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// When it was last written to, in seconds since 1970.
    pub time: u64,
}

impl Record {
    /// Opens the record of a vault in a directory, or begins one; says which.
    ///
    /// # Errors
    ///
    /// [`RecordError`], for what is no matter of a lost record: a directory that cannot be written, a record of a newer version.
    pub fn open(vault: &Vault, path: &Path, follows_names: bool) -> Result<(Self, Start), RecordError> {
        let key = vault.record_key();
        let mut table = Table::default();
        let (store, start) = Store::open(path, vault.id(), &key, &mut table)?;
        Ok((Self::with(key, follows_names, store, table), start))
    }

    /// Opens the record of a vault for a look, and begins and changes none; nothing where there is none. Says what is wrong with it: what stands before that is
    /// used.
    ///
    /// # Errors
    ///
    /// [`RecordError`], for what is no matter of a lost record: a directory that cannot be read, a record of a newer version.
    pub fn open_read_only(
        vault: &Vault,
        path: &Path,
        follows_names: bool,
    ) -> Result<Option<(Self, Option<FormatError>)>, RecordError> {
        let key = vault.record_key();
        let mut table = Table::default();
        let opened = Store::open_read_only(path, vault.id(), &key, &mut table)?;
        Ok(opened.map(|(store, problem)| (Self::with(key, follows_names, store, table), problem)))
    }

    fn with(key: RecordKey, follows_names: bool, store: Store, table: Table) -> Self {
        let state = Mutex::new(State {
            store,
            table,
            waiting: Vec::new(),
            accepted: Vec::new(),
            written: Instant::now(),
        });
        Record {
            key,
            follows_names,
            state,
        }
    }

    /// Removes the record of a vault; tells whether there was one.
    ///
    /// # Errors
    ///
    /// What removing it gives.
    pub fn forget(vault: &Vault, path: &Path) -> Result<bool, RecordError> {
        Store::forget(path, vault.id())
    }

    /// Returns the directory that it is kept in, as it was named.
    pub fn directory(&self) -> PathBuf {
        self.state.lock().store.directory().to_owned()
    }

    /// Returns the mark of a name, to be noted with the file that was seen there.
    pub fn place(&self, directory: DirectoryId, name: &[u8]) -> u64 {
        if self.follows_names {
            self.key.place(directory, name)
        } else {
            0
        }
    }

    /// Returns what there is to note of a file that was found at a name; nothing for one that was never written.
    pub fn sighting(&self, file: &VaultFile, at: FoundAt<'_>) -> Option<SeenFile> {
        let content = file.content()?;
        let (count, mark) = content.last_seal();
        let has_several_names = mark.is_some() && !content.is_placed();
        let place = if has_several_names {
            0
        } else {
            self.place(at.directory, at.name)
        };
        Some(SeenFile::new(file.id()?, count, place, mark.as_ref()))
    }

    /// Compares a file with what was last seen of it, and notes it where it did not go backwards.
    pub fn compare(&self, seen: &SeenFile) -> Option<Backwards> {
        let mut state = self.state.lock();
        let mut backwards = state.table.compare(seen);
        if backwards.is_some() {
            // Someone may have accepted it since.
            if let Err(error) = state.catch_up(&self.key) {
                log::debug!("the record was not read again: {error}");
            }
            backwards = state.table.compare(seen);
        }
        match backwards {
            None => state.note(seen),
            Some(_) => {
                if let Err(error) = state.suspect(&self.key, seen.file) {
                    log::warn!("that a file is older than it was is not recorded: {error}");
                }
            }
        }
        backwards
    }

    /// As [`compare`](Self::compare), for a look only: notes nothing.
    pub fn look(&self, seen: &SeenFile) -> Option<Backwards> {
        self.state.lock().table.compare(seen)
    }

    /// Notes a file that was sealed or renamed here.
    pub fn note(&self, seen: &SeenFile) {
        self.state.lock().note(seen);
    }

    /// Notes that a file was removed here.
    pub fn note_removed(&self, file: FileId) {
        if !self.follows_names {
            return;
        }
        let mut state = self.state.lock();
        if let Some(known) = state.table.find(file)
            && !known.is_gone()
        {
            let mut gone = *known;
            gone.set_gone();
            state.put(gone);
        }
    }

    /// Takes a file as it is now for what is to be seen from now on; tells whether that was news.
    pub fn accept_file(&self, file: &VaultFile, at: FoundAt<'_>) -> bool {
        let mut state = self.state.lock();
        match self.sighting(file, at) {
            Some(seen) => state.accept(seen),
            None => match state.table.at_place(self.place(at.directory, at.name)) {
                // It is empty where a file was.
                Some(known) => {
                    let mut gone = *known;
                    gone.set_gone();
                    state.accept(gone)
                }
                None => false,
            },
        }
    }

    /// Returns which file was last seen at a place and is not known to be gone from it.
    pub fn at_place(&self, place: u64) -> Option<FileId> {
        self.state.lock().table.at_place(place).map(|known| known.file)
    }

    /// Counts the files that are noted as being there and are not among those that were found.
    pub fn count_missing(&self, found: &HashSet<FileId>) -> u64 {
        let state = self.state.lock();
        let is_missing = |seen: &&SeenFile| !seen.is_gone() && !found.contains(&seen.file);
        state.table.files().iter().filter(is_missing).count() as u64
    }

    /// Compares the vault header and the keystore with those that were last seen.
    pub fn compare_home(&self, home: &SeenHome) -> Option<Backwards> {
        let state = self.state.lock();
        let last = state.table.homes.last()?;
        let was_replaced = last.header != home.header && state.table.homes.iter().any(|old| old.header == home.header);
        if home.epoch < last.epoch || was_replaced {
            return Some(Backwards::Header);
        }
        let same_keystore = home.keystore == last.keystore;
        (same_keystore && home.generation < last.generation).then_some(Backwards::Keystore {
            seen: last.generation,
            found: home.generation,
        })
    }

    /// Notes the vault header and the keystore, or accepts them, whatever was seen before.
    pub fn note_home(&self, home: SeenHome) {
        let mut state = self.state.lock();
        if state.table.homes.last() == Some(&home) {
            return;
        }
        // What is accepted again is no longer one that was replaced.
        let mut homes = std::mem::take(&mut state.table.homes);
        homes.retain(|old| old.header != home.header);
        homes.push(home);
        let excess = homes.len().saturating_sub(HOMES_MAX);
        homes.drain(..excess);
        state.table.homes = homes;
        state.table.homes_changed = true;
    }

    /// Writes what waits, where that is due; `make_durable` makes the vault durable before.
    ///
    /// # Errors
    ///
    /// What either gives; it waits on then.
    pub fn write_due(&self, make_durable: impl FnOnce() -> io::Result<()>) -> Result<(), RecordError> {
        {
            let state = self.state.lock();
            let is_due = state.waiting.len() >= WAITING_MAX || state.written.elapsed() >= WRITE_EVERY;
            if !is_due {
                return Ok(());
            }
        }
        self.write(make_durable)
    }

    /// Writes what waits; `make_durable` makes the vault durable before.
    ///
    /// # Errors
    ///
    /// What either gives; it waits on then.
    pub fn write(&self, make_durable: impl FnOnce() -> io::Result<()>) -> Result<(), RecordError> {
        let waiting = {
            let mut state = self.state.lock();
            state.written = Instant::now();
            if state.waiting.is_empty() && state.accepted.is_empty() && !state.table.homes_changed {
                return Ok(());
            }
            std::mem::take(&mut state.waiting)
        };
        // Without the lock: files are opened and sealed meanwhile, and what is noted of those comes with the next batch.
        let durable = make_durable();
        let mut state = self.state.lock();
        let result = match durable {
            Ok(()) => state.append(&self.key, &waiting),
            Err(source) => Err(RecordError::Vault(source)),
        };
        if result.is_err() {
            state.waiting.splice(..0, waiting);
        }
        result
    }

    /// Returns how much there is.
    pub fn size(&self) -> RecordSize {
        let state = self.state.lock();
        let (mut gone, mut suspect) = (0, 0);
        for seen in state.table.files() {
            gone += u64::from(seen.is_gone());
            suspect += u64::from(seen.is_suspect());
        }
        RecordSize {
            files: state.table.files().len() as u64 - gone,
            gone,
            suspect,
            bytes: state.store.size(),
            time: state.store.time(),
        }
    }

    /// Tells whether nothing is noted in it: it was begun, and there is nothing to compare with.
    pub fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.table.files().is_empty() && state.table.homes.is_empty()
    }

    /// Returns what was last seen of the vault header and the keystore.
    pub fn home(&self) -> Option<SeenHome> {
        self.state.lock().table.homes.last().copied()
    }
}

impl State {
    fn note(&mut self, seen: &SeenFile) {
        if let Some(merged) = self.table.merge(seen) {
            self.put(merged);
        }
    }

    fn put(&mut self, seen: SeenFile) {
        self.table.put(seen);
        self.waiting.push(seen);
    }

    fn accept(&mut self, seen: SeenFile) -> bool {
        let is_news = self.table.merge(&seen).is_some() || self.table.compare(&seen).is_some();
        if is_news {
            self.table.put(seen);
            self.accepted.push(seen);
        }
        is_news
    }

    /// Notes at once that a file went backwards: who accepts it must not be overtaken by what waits here.
    fn suspect(&mut self, key: &RecordKey, file: FileId) -> Result<(), RecordError> {
        let Some(known) = self.table.find(file).filter(|known| !known.is_suspect()) else {
            return Ok(());
        };
        let mut suspect = *known;
        suspect.set_suspect();
        self.table.put(suspect);
        let _lock = self.store.lock()?;
        self.store.catch_up(key, &mut self.table)?;
        self.table.put(suspect);
        self.store.append(key, now(), &Noted::Files(vec![suspect]))
    }

    /// Takes in what another process has written.
    fn catch_up(&mut self, key: &RecordKey) -> Result<(), RecordError> {
        let _lock = self.store.lock()?;
        self.store.catch_up(key, &mut self.table)
    }

    fn append(&mut self, key: &RecordKey, waiting: &[SeenFile]) -> Result<(), RecordError> {
        let (_lock, now) = (self.store.lock()?, now());
        let homes = self.table.homes_changed.then(|| self.table.homes.clone());
        self.store.catch_up(key, &mut self.table)?;
        // Others may have seen what is newer still.
        let is_older = |seen: &&SeenFile| self.table.find(seen.file).is_some_and(|known| known.count > seen.count);
        let mut files: Vec<SeenFile> = waiting.iter().filter(|seen| !is_older(seen)).copied().collect();
        files.extend(&self.accepted);
        files.iter().for_each(|seen| self.table.put(*seen));
        for files in files.chunks(BATCH_MAX) {
            self.store.append(key, now, &Noted::Files(files.to_vec()))?;
        }
        if let Some(homes) = homes {
            self.store.append(key, now, &Noted::Homes(homes.clone()))?;
            self.table.homes = homes;
        }
        self.store.sync()?;
        self.accepted.clear();
        self.table.homes_changed = false;
        // What was noted meanwhile is in the table, and not durable yet.
        if self.waiting.is_empty() {
            self.store.compact_if_due(key, now, &mut self.table)?;
        }
        Ok(())
    }
}

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod tests;
