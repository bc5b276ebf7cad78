//! A record's file: appended to in batches, written anew when it has grown far beyond what it holds.
//!
//! Several processes may use it: the directory is locked for the moment of a change, and what others have written is read first.

use std::{
    fmt, fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::table::Table;
use crate::{
    backing::{BackingFile, Dir, Storage},
    crypto::{random, record::RecordKey},
    format::{
        FormatError,
        record::{
            BATCH_MAX, BATCH_OVERHEAD, Noted, RECORD_FRONT_SIZE, SEEN_FILE_SIZE, decode_batch, decode_front,
            encode_batch, encode_front,
        },
    },
    ids::{RecordId, VaultId},
};

/// How long a process waits for another that writes.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// A record is written anew when it is twice as long as it need be, and so much.
const SPARE_MIN: u64 = 1 << 20;

/// The largest record that is read into memory: 100 million files.
const RECORD_SIZE_MAX: u64 = 4 << 30;

/// Why a record cannot be used.
#[derive(Debug)]
pub enum RecordError {
    /// The record cannot be read or written.
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was made by a newer version.
    Newer {
        /// The file.
        path: PathBuf,
        /// What it says.
        source: FormatError,
    },
    /// Another process has been writing it for too long.
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// A mount, or another command, uses it.
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The vault could not be made durable, and a record must not be ahead of it.
    Vault(io::Error),
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordError::Io { path, source } => write!(f, "the record {}: {source}", path.display()),
            RecordError::Newer { path, source } => write!(f, "the record {}: {source}", path.display()),
            RecordError::Busy { path } => {
                write!(f, "the records in {} are locked by another process", path.display())
            }
            RecordError::InUse { path } => write!(
                f,
                "the record {} is in use, and would be written again: unmount the vault first",
                path.display()
            ),
            RecordError::Vault(source) => write!(f, "nothing is recorded, since the vault cannot be synced: {source}"),
        }
    }
}

impl std::error::Error for RecordError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RecordError::Io { source, .. } | RecordError::Vault(source) => Some(source),
            RecordError::Newer { source, .. } => Some(source),
            RecordError::Busy { .. } | RecordError::InUse { .. } => None,
        }
    }
}

/// What a record was when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// As it was left.
    Whole,
    /// There was none: the vault was never seen here, or the record was removed.
    New,
    /// It ends inside a batch, or some of it is not authentic; or only what was put aside then is left. What stands before that is there; the whole was put aside
    /// under this name.
    Damaged {
        /// What is wrong.
        problem: FormatError,
        /// Where it is now.
        kept: PathBuf,
    },
}

/// The file of a record.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    dir: Dir,
    vault: VaultId,
    name: String,
    file: BackingFile,
    /// Bytes that are authentic, and the MAC that ends them.
    end: u64,
    mac: [u8; 32],
    /// When it was last written to.
    time: u64,
}

/// Held while a record is changed.
#[derive(Debug)]
pub struct RecordLock(#[expect(dead_code, reason = "the lock is its descriptor's")] Dir);

impl Store {
    /// Opens the record of a vault, or begins one.
    pub fn open(path: &Path, vault: VaultId, key: &RecordKey, table: &mut Table) -> Result<(Self, Start), RecordError> {
        let failed = |source| RecordError::Io {
            path: path.to_owned(),
            source,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed)?;
        let dir = Dir::open(path).map_err(failed)?;
        let _lock = lock(&dir, path)?;
        let (file, found) = match find(&dir, vault, false).map_err(failed)? {
            Some((file, found)) => (file, Some(found)),
            None => {
                let begun = begin(&dir, &file_name(vault), key, vault, (table, 0));
                (begun.map_err(failed)?.file, None)
            }
        };
        let mut store = Store::unread(path, dir, vault, file);
        let problem = store.read_first(key, table)?;
        let start = match (found, problem) {
            (None, _) => Start::New,
            (Some(Found::Record), None) => Start::Whole,
            (Some(Found::Record), Some(problem)) => Start::Damaged {
                problem,
                kept: store.set_aside(key, table)?,
            },
            (Some(Found::SetAside), problem) => {
                store.write_anew(key, table)?;
                Start::Damaged {
                    problem: problem.unwrap_or(FormatError::TooShort),
                    kept: store.path.join(kept_name(vault)),
                }
            }
        };
        Ok((store, start))
    }

    /// Opens the record of a vault to compare with what it holds; returns what is wrong with the rest, if anything, and nothing where there is no record.
    ///
    /// What is wrong stays as it is, and nothing may be appended.
    pub fn open_read_only(
        path: &Path,
        vault: VaultId,
        key: &RecordKey,
        table: &mut Table,
    ) -> Result<Option<(Self, Option<FormatError>)>, RecordError> {
        let failed = |source| RecordError::Io {
            path: path.to_owned(),
            source,
        };
        let dir = match Dir::open(path) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let _lock = lock(&dir, path)?;
        let Some((file, found)) = find(&dir, vault, true).map_err(failed)? else {
            return Ok(None);
        };
        let mut store = Store::unread(path, dir, vault, file);
        let problem = store.read_first(key, table)?;
        Ok(Some((
            store,
            match found {
                Found::Record => problem,
                Found::SetAside => problem.or(Some(FormatError::TooShort)),
            },
        )))
    }

    /// Begins to read the record's file, which is held from now on.
    fn unread(path: &Path, dir: Dir, vault: VaultId, file: BackingFile) -> Self {
        hold(&file);
        Store {
            path: path.to_owned(),
            dir,
            vault,
            name: file_name(vault),
            file,
            end: 0,
            mac: [0; 32],
            time: 0,
        }
    }

    /// Reads from the begin; returns what is wrong with the rest, if anything.
    fn read_first(&mut self, key: &RecordKey, table: &mut Table) -> Result<Option<FormatError>, RecordError> {
        match self.read_on(key, table)? {
            Some(source @ FormatError::Newer(_)) => Err(RecordError::Newer {
                path: self.full_path(),
                source,
            }),
            problem => Ok(problem),
        }
    }

    /// Removes the record of a vault, and what was put aside of it; tells whether there was one. Whoever uses it would write it again.
    pub fn forget(path: &Path, vault: VaultId) -> Result<bool, RecordError> {
        let failed = |source| RecordError::Io {
            path: path.to_owned(),
            source,
        };
        let dir = match Dir::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened.map_err(failed)?,
        };
        let _lock = lock(&dir, path)?;
        if let Some((file, _)) = find(&dir, vault, true).map_err(failed)?
            && flock(file.fd(), FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
        {
            return Err(RecordError::InUse {
                path: path.join(file_name(vault)),
            });
        }
        let mut removed = false;
        for name in [kept_name(vault), file_name(vault)] {
            match dir.unlink(&name) {
                Ok(()) => removed = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        dir.sync().map_err(failed)?;
        Ok(removed)
    }

    /// Returns how long the file is.
    pub fn size(&self) -> u64 {
        self.end
    }

    /// Returns when it was last written to.
    pub fn time(&self) -> u64 {
        self.time
    }

    /// Locks the record for a change.
    pub fn lock(&self) -> Result<RecordLock, RecordError> {
        lock(&self.dir, &self.path)
    }

    /// Returns the directory that it is in, as it was named.
    pub fn directory(&self) -> &Path {
        &self.path
    }

    fn full_path(&self) -> PathBuf {
        self.path.join(&self.name)
    }

    fn failed(&self) -> impl Fn(io::Error) -> RecordError + use<> {
        let path = self.full_path();
        move |source| RecordError::Io {
            path: path.clone(),
            source,
        }
    }

    /// Takes in what others have written since. A record that was written anew by another, or replaced, is read from its begin.
    pub fn catch_up(&mut self, key: &RecordKey, table: &mut Table) -> Result<(), RecordError> {
        let file = match self.dir.open_file(&self.name, false) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Someone has removed it: what is known here is written again.
                log::warn!(
                    "the record {} was removed; it is written anew",
                    self.full_path().display()
                );
                return self.write_anew(key, table);
            }
            Err(error) => return Err(self.failed()(error)),
        };
        let ino = |file: &BackingFile| Ok::<_, io::Error>(file.stat()?.st_ino);
        let is_other = ino(&file)
            .and_then(|one| Ok(one != ino(&self.file)?))
            .map_err(self.failed())?;
        if is_other {
            hold(&file);
            self.file = file;
            self.end = 0;
        } else if self.file.len().map_err(self.failed())? == self.end {
            return Ok(());
        }
        match self.read_on(key, table)? {
            None => Ok(()),
            Some(problem) => {
                let kept = self.set_aside(key, table)?;
                log::warn!(
                    "the record {}: {problem}; it was put aside as {} and is written anew",
                    self.full_path().display(),
                    kept.display()
                );
                Ok(())
            }
        }
    }

    /// Reads from where it stands to the end; returns what is wrong with the rest, if anything.
    fn read_on(&mut self, key: &RecordKey, table: &mut Table) -> Result<Option<FormatError>, RecordError> {
        let len = self.file.len().map_err(self.failed())?;
        if len > RECORD_SIZE_MAX {
            return Ok(Some(FormatError::OutOfRange("size")));
        }
        let mut bytes = vec![0; len.saturating_sub(self.end) as usize];
        let got = self.file.read_at(&mut bytes, self.end).map_err(self.failed())?;
        let mut rest = &bytes[..got];
        if self.end == 0 {
            match decode_front(key, self.vault, rest) {
                Ok(mac) => (self.mac, self.end) = (mac, RECORD_FRONT_SIZE as u64),
                Err(problem) => return Ok(Some(problem)),
            }
            rest = &rest[RECORD_FRONT_SIZE..];
        }
        while !rest.is_empty() {
            let batch = match decode_batch(key, &self.mac, rest) {
                Ok(batch) => batch,
                Err(problem) => return Ok(Some(problem)),
            };
            rest = &rest[batch.size..];
            self.end += batch.size as u64;
            (self.mac, self.time) = (batch.mac, batch.time);
            table.take_in(batch);
        }
        Ok(None)
    }

    /// Appends a batch. It is not durable yet.
    pub fn append(&mut self, key: &RecordKey, now: u64, noted: &Noted) -> Result<(), RecordError> {
        let (bytes, mac) = encode_batch(key, &self.mac, now, noted);
        self.file
            .write_at(&bytes, self.end)
            .map_err(|short| self.failed()(short.error))?;
        self.end += bytes.len() as u64;
        (self.mac, self.time) = (mac, now);
        Ok(())
    }

    /// Makes what was appended durable.
    pub fn sync(&self) -> Result<(), RecordError> {
        self.file.sync_data().map_err(self.failed())
    }

    /// Writes the record anew where it is much longer than need be.
    pub fn compact_if_due(&mut self, key: &RecordKey, now: u64, table: &mut Table) -> Result<(), RecordError> {
        let needed = (table.files().len() * SEEN_FILE_SIZE) as u64;
        if self.end <= 2 * needed + SPARE_MIN {
            return Ok(());
        }
        table.compact();
        self.time = now;
        self.write_anew(key, table)
    }

    /// Puts a damaged record aside, and writes what is known anew. It keeps its own name until the new one has that: a disk that is full, or a kill, would have it
    /// forgotten.
    ///
    /// Also one that ends inside a batch: that a batch was never finished is what it looks like, too, when someone has changed how many things it says are
    /// in it, and then whole batches stand behind.
    fn set_aside(&mut self, key: &RecordKey, table: &Table) -> Result<PathBuf, RecordError> {
        let kept = kept_name(self.vault);
        self.keep_as(&kept).map_err(self.failed())?;
        self.write_anew(key, table)?;
        Ok(self.path.join(kept))
    }

    /// Gives the file another name besides, or copies it where it can have one only.
    fn keep_as(&self, kept: &str) -> io::Result<()> {
        match self.dir.unlink(kept) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if self.dir.link(&self.name, &self.dir, kept).is_ok() {
            return Ok(());
        }
        let mut bytes = vec![0; self.file.len()?.min(RECORD_SIZE_MAX) as usize];
        let got = self.file.read_at(&mut bytes, 0)?;
        self.dir.replace(kept, &format!("{kept}.tmp"), &bytes[..got])
    }

    /// Replaces the file by one that holds what is in the table: a crash leaves the old one or the new one.
    fn write_anew(&mut self, key: &RecordKey, table: &Table) -> Result<(), RecordError> {
        let written = begin(&self.dir, &self.name, key, self.vault, (table, self.time)).map_err(self.failed())?;
        Written {
            file: self.file,
            end: self.end,
            mac: self.mac,
        } = written;
        hold(&self.file);
        Ok(())
    }
}

/// A file that was just written.
struct Written {
    file: BackingFile,
    end: u64,
    mac: [u8; 32],
}

fn file_name(vault: VaultId) -> String {
    format!("{}.record", vault.to_hex())
}

/// Returns the name of a record that was put aside.
fn kept_name(vault: VaultId) -> String {
    format!("{}.damaged", file_name(vault))
}

/// Has a record's file not be forgotten while it is open. Who would do that locks its directory first, as whoever opens it; where there are no locks, it is.
fn hold(file: &BackingFile) {
    let _ = flock(file.fd(), FlockOperation::NonBlockingLockShared);
}

/// What there is of a record.
enum Found {
    /// It.
    Record,
    /// What was put aside, when a new one could not be written.
    SetAside,
}

fn find(dir: &Dir, vault: VaultId, read_only: bool) -> io::Result<Option<(BackingFile, Found)>> {
    for (name, found) in [(file_name(vault), Found::Record), (kept_name(vault), Found::SetAside)] {
        match dir.open_file(&name, read_only) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return Ok(Some((opened?, found))),
        }
    }
    Ok(None)
}

/// Writes a new record with what is known, as of a time, durably.
fn begin(dir: &Dir, name: &str, key: &RecordKey, vault: VaultId, (table, time): (&Table, u64)) -> io::Result<Written> {
    let front = encode_front(key, vault, RecordId(random::bytes()));
    let mut bytes = front.to_vec();
    let mut mac = *front.last_chunk().expect("a front ends with its MAC");
    bytes.reserve(table.files().len() * SEEN_FILE_SIZE + BATCH_OVERHEAD);
    let files = table
        .files()
        .chunks(BATCH_MAX)
        .map(|files| Noted::Files(files.to_vec()));
    let homes = (!table.homes.is_empty()).then(|| Noted::Homes(table.homes.clone()));
    for noted in homes.into_iter().chain(files) {
        let (batch, next) = encode_batch(key, &mac, time, &noted);
        bytes.extend_from_slice(&batch);
        mac = next;
    }
    dir.replace(name, &format!("{name}.tmp"), &bytes)?;
    Ok(Written {
        file: dir.open_file(name, false)?,
        end: bytes.len() as u64,
        mac,
    })
}

fn lock(dir: &Dir, path: &Path) -> Result<RecordLock, RecordError> {
    let failed = |source| RecordError::Io {
        path: path.to_owned(),
        source,
    };
    // A descriptor of its own: a lock is shared by all that have the same one. Not by the path, which a process that has gone to the background would
    // look up from another directory.
    let dir = dir.open_dir(".").map_err(failed)?;
    match dir.lock_within(LOCK_WAIT) {
        Ok(()) => Ok(RecordLock(dir)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(RecordError::Busy { path: path.to_owned() }),
        Err(error) => Err(failed(error)),
    }
}
