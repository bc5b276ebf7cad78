//! The audit log of a keystore: who used or changed which of its keys, when, and what came of it (docs/FORMAT.md section 10).
//!
//! The log and its state lie beside the keystore. Whoever appends holds a lock on the state, which nobody holds for longer than that takes,
//! and does, in this order:
//!
//! 1. takes in lines that are there beyond what the state knows, and cuts a last one that is not whole;
//! 2. appends the new lines and makes them durable;
//! 3. writes the state with the key of the line after them, makes it durable, and wipes the one before;
//! 4. goes on with the call: hands the key out, or stores the keystore, with number and hash of the last line in it.
//!
//! What a crash leaves:
//!
//! - in 2: a line in part, which is cut; or whole lines, which are taken in: the call is on record and did not take place, or nobody was told.
//! - between 2 and 3, or in 3: the same. The state has two places and the older one stands until the newer is durable.
//! - between 3 and 4: a record of a change that was not stored. The record names the generation of the keystore that it was to become; the
//!   next change has the same.
//!
//! A step that fails fails that call, and leaves no more than that:
//!
//! - 2: the log is cut back to what the state knows, as nobody was told of a line behind that.
//! - 3, before the new state is durable: the lines stay, the state before stands, and the next append takes the lines in.
//! - 3, when the one before cannot be wiped: the lines and the new state stay; the next state is written over the one before.
//!
//! Another log is begun beside the one there is, under names of its own, with its first line. Then the keystore is stored, which says that it is the log
//! now, and then the files get their names. What is interrupted before the keystore is stored did not take place: the log before goes on, and what was made is
//! set aside by the next who begins one. After that, whoever looks for the log gives the files their names first. Nobody takes files for a coming log that the
//! keystore does not name, nor ones that are behind what it knows.
//!
//! A call that cannot be recorded fails. So a log that was cut, is missing or does not follow from its state stops everything
//! but looking, until the files are put back or another log is begun.

mod error;
mod event;
mod files;
mod read;
mod recorded;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

pub use self::{
    error::AuditError,
    event::{Call, FileUse},
    read::{LogReader, Verified},
    recorded::Recorded,
};
pub(super) use self::{
    error::REFUSED,
    files::{is_coming, is_log, remove_coming},
};
use self::{event::Recorder, files::AuditNames};
use super::{ChangeError, KeystoreHome, OpenKeystore};
use crate::{
    backing::{BackingFile, Dir, Storage},
    format::{
        audit::{Chain, LINE_SIZE_MAX, STATE_SIZE, State},
        keystore::AuditHead,
    },
    ids::LogId,
    keystore::{KeystoreError, LocalKeystore},
};

/// How long an append waits for someone else's, which takes two syncs of a disk.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// How often it looks.
const LOCK_POLL: Duration = Duration::from_millis(2);

/// The second place of a state is in another block of any disk.
const STATE_PLACE_SIZE: u64 = 4096;

/// What is said of a failure that stands all the same.
const UNRECORDED_FAILURE: &str = "a call that failed is not in the audit log";

/// The audit log of a keystore, to be appended to.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    dir: Dir,
    names: AuditNames,
    /// The one that is meant; whichever there is, for who does not know the keystore any more.
    log: Option<LogId>,
}

/// The two files of a log, the state locked.
#[derive(Clone, Copy)]
struct Files<'f> {
    log: &'f dyn Storage,
    state: &'f dyn Storage,
}

/// What the log must not be behind of, where the keystore is open.
#[derive(Clone, Copy, Debug)]
struct Known {
    head: AuditHead,
    generation: u64,
}

impl Known {
    fn of(keystore: &LocalKeystore) -> Self {
        Known {
            head: keystore.audit_head(),
            generation: keystore.generation(),
        }
    }
}

impl AuditLog {
    /// Finds the log of a keystore; nothing when it records no calls.
    pub(super) fn of(home: &KeystoreHome, keystore: &LocalKeystore) -> Result<Option<Self>, AuditError> {
        match keystore.audit_settings() {
            Some(settings) if settings.is_on => Self::find(home, keystore, settings.log).map(Some),
            _ => Ok(None),
        }
    }

    /// Finds a log that the keystore has; puts it in its place first if whoever began it did not come to do that.
    fn find(home: &KeystoreHome, keystore: &LocalKeystore, log: LogId) -> Result<Self, AuditError> {
        let names = AuditNames::of(home.is_embedded()).coming();
        Self::new(home, names, log)?.put_in_place(home, Known::of(keystore))
    }

    fn new(home: &KeystoreHome, names: AuditNames, log: LogId) -> Result<Self, AuditError> {
        let dir = home.dir().open_dir(".").map_err(|source| AuditError::Io {
            file: home.path().join(names.log),
            source,
        })?;
        Ok(AuditLog {
            path: home.path().to_owned(),
            dir,
            names,
            log: Some(log),
        })
    }

    /// Begins the log of a keystore that was told to have a new one, beside the one there is.
    fn begin(home: &KeystoreHome, keystore: &LocalKeystore) -> Result<Self, AuditError> {
        let settings = keystore.audit_settings().expect("the caller has begun one");
        let names = AuditNames::of(home.is_embedded()).coming();
        let log = Self::new(home, names, settings.log)?;
        let failed = |file: &str| {
            let file = log.path.join(file);
            move |source| AuditError::Io { file, source }
        };
        // One that the keystore was never told of.
        names.set_aside(&log.dir).map_err(failed(names.log))?;
        let seed = keystore.audit_seed(&settings).map_err(|_| log.no_seed())?;
        let state = State {
            chain: Chain::start(&seed, settings.log, keystore.audit_head()),
            size: 0,
            generation: 0,
        };
        let written = log.dir.write_small(names.state, &state.encode());
        let written = written.and_then(|file| file.sync_all());
        written.map_err(failed(names.state))?;
        let made = log.dir.create_file(names.log, 0o600);
        made.and_then(|file| file.sync_all())
            .and_then(|()| log.dir.sync())
            .map_err(failed(names.log))?;
        Ok(log)
    }

    /// Gives the files of a coming log their names, if there is one and it is that of the keystore, which is stored.
    fn put_in_place(self, home: &KeystoreHome, known: Known) -> Result<Self, AuditError> {
        let names = AuditNames::of(home.is_embedded());
        // Held while it is looked at and renamed.
        if let Some(_coming) = self.coming_state(known)? {
            // Who is appending to the one before finishes first.
            let before = match self.open_state(names.state, false) {
                Err(error @ AuditError::InUse { .. }) => return Err(error),
                before => before.ok(),
            };
            names.put_in_place(&self.dir).map_err(|source| AuditError::Io {
                file: self.path.join(names.log),
                source,
            })?;
            drop(before);
        }
        Ok(AuditLog { names, ..self })
    }

    /// Returns the state of a log that the keystore has and that is not in its place yet, locked.
    fn coming_state(&self, known: Known) -> Result<Option<BackingFile>, AuditError> {
        let file = match self.open_state(self.names.state, false) {
            Ok(file) => file,
            // One that someone else has begun and never told the keystore of is in nobody's way.
            Err(AuditError::Missing { .. } | AuditError::Strange { .. } | AuditError::ReadOnly { .. }) => {
                return Ok(None);
            }
            Err(AuditError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_known = self
            .read_state(&file)
            .and_then(|(_, state)| self.compare(&state, known));
        match is_known {
            Ok(()) => Ok(Some(file)),
            Err(error) if error.is_damage() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn no_seed(&self) -> AuditError {
        AuditError::NoSeed {
            path: self.path.clone(),
        }
    }

    /// Appends events, durably; returns number and hash of the last line.
    fn append(&self, events: &[String], known: Option<Known>, generation: u64) -> Result<AuditHead, AuditError> {
        let state = self.open_state(self.names.state, false)?;
        let log = self.open(self.names.log, false)?;
        let files = Files {
            log: &log,
            state: &state,
        };
        self.append_to(files, events, known, generation)
    }

    fn append_to(
        &self,
        files: Files<'_>,
        events: &[String],
        known: Option<Known>,
        generation: u64,
    ) -> Result<AuditHead, AuditError> {
        let (place, mut state) = self.read_state(files.state)?;
        let known_size = state.size;
        self.catch_up(files.log, &mut state)?;
        if let Some(known) = known {
            self.compare(&state, known)?;
        }
        let mut lines = Vec::new();
        for event in events {
            let line = state.chain.append(event).map_err(|_| AuditError::TooLong)?;
            lines.extend_from_slice(&line);
        }
        let written = files.log.write_at(&lines, state.size).map_err(|short| short.error);
        if let Err(source) = written.and_then(|()| files.log.sync_data()) {
            // What is not cut now is taken for what it says by the next who appends. What was taken in is cut too: after a sync that failed, nobody knows
            // what of it is on the disk.
            let _ = files.log.set_len(known_size).and_then(|()| files.log.sync_data());
            let file = self.path.join(self.names.log);
            return Err(AuditError::Io { file, source });
        }
        state.size += lines.len() as u64;
        state.generation = state.generation.max(generation);
        self.write_state(files.state, place, &state)?;
        Ok(state.chain.head())
    }

    /// Returns number and hash of the last line that the state knows, having compared it with what the keystore knows. Changes nothing.
    fn state_for_reading(&self, known: Known) -> Result<AuditHead, AuditError> {
        let file = self.open_state(self.names.state, true)?;
        self.head_of(&file, known)
    }

    fn head_of(&self, file: &BackingFile, known: Known) -> Result<AuditHead, AuditError> {
        let (_, state) = self.read_state(file)?;
        self.compare(&state, known)?;
        Ok(state.chain.head())
    }

    /// Refuses a log that is older than the keystore, and a keystore that is older than the log.
    fn compare(&self, state: &State, known: Known) -> Result<(), AuditError> {
        let (head, path) = (state.chain.head(), || self.path.clone());
        if head.seq < known.head.seq || (head.seq == known.head.seq && head.hash != known.head.hash) {
            return Err(AuditError::LogOlder { path: path() });
        }
        // One generation may be on record and not stored.
        if known.generation.saturating_add(1) < state.generation {
            return Err(AuditError::KeystoreOlder { path: path() });
        }
        Ok(())
    }

    /// Takes in lines that were appended by someone who did not come to write the state.
    fn catch_up(&self, log_file: &dyn Storage, state: &mut State) -> Result<(), AuditError> {
        let file = || self.path.join(self.names.log);
        let failed = |source| AuditError::Io { file: file(), source };
        let size = log_file.len().map_err(failed)?;
        if size < state.size {
            return Err(AuditError::Cut { file: file() });
        }
        while state.size < size {
            let rest = usize::try_from(size - state.size).map_or(LINE_SIZE_MAX, |rest| rest.min(LINE_SIZE_MAX));
            let mut bytes = vec![0; rest];
            let len = log_file.read_at(&mut bytes, state.size).map_err(failed)?;
            let Some(end) = bytes[..len].iter().position(|&byte| byte == b'\n') else {
                if len == LINE_SIZE_MAX {
                    return Err(AuditError::Strange { file: file() });
                }
                // The beginning of a line, whose call was never answered.
                return log_file.set_len(state.size).map_err(failed);
            };
            if !state.chain.follow(&bytes[..end]) {
                return Err(AuditError::Strange { file: file() });
            }
            state.size += end as u64 + 1;
        }
        Ok(())
    }

    /// Reads the newer of the two places of the state; returns which it is.
    fn read_state(&self, file: &dyn Storage) -> Result<(u64, State), AuditError> {
        let path = || self.path.join(self.names.state);
        let mut newest: Option<(u64, State)> = None;
        for place in 0..2 {
            let mut bytes = zeroize::Zeroizing::new([0; STATE_SIZE]);
            let read = file.read_at(&mut *bytes, place * STATE_PLACE_SIZE);
            read.map_err(|source| AuditError::Io { file: path(), source })?;
            // One that was not written to its end is passed over: the other is older by one append.
            if let Ok(state) = State::decode(&*bytes)
                && newest.as_ref().is_none_or(|(_, other)| other.size < state.size)
            {
                newest = Some((place, state));
            }
        }
        let (place, state) = newest.ok_or_else(|| AuditError::Strange { file: path() })?;
        if self.log.is_some_and(|log| log != state.chain.log()) {
            return Err(AuditError::OtherLog {
                path: self.path.clone(),
            });
        }
        Ok((place, state))
    }

    /// Writes the state in the place that is not the newest, then wipes that.
    fn write_state(&self, file: &dyn Storage, newest: u64, state: &State) -> Result<(), AuditError> {
        let failed = |source| AuditError::Io {
            file: self.path.join(self.names.state),
            source,
        };
        let write = |bytes: &[u8], place| {
            file.write_at(bytes, place * STATE_PLACE_SIZE)
                .map_err(|short| short.error)
        };
        let other = 1 - newest;
        let written = write(&state.encode(), other).and_then(|()| file.sync_data());
        written.map_err(|source| {
            // It may be there to read and never come to the disk: the one before stands.
            let _ = write(&[0; STATE_SIZE], other);
            failed(source)
        })?;
        // On its way to the disk with whatever is written there next.
        write(&[0; STATE_SIZE], newest).map_err(failed)
    }

    fn open(&self, name: &str, read_only: bool) -> Result<BackingFile, AuditError> {
        let path = || self.path.join(name);
        let file = self
            .dir
            .open_file(name, read_only)
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => AuditError::Missing { file: path() },
                _ => AuditError::Io { file: path(), source },
            })?;
        let stat = file.stat().map_err(|source| AuditError::Io { file: path(), source })?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
            return Err(AuditError::Strange { file: path() });
        }
        if !read_only && !file.is_writable() {
            return Err(AuditError::ReadOnly { file: path() });
        }
        Ok(file)
    }

    /// Opens a state and locks it: that which has the name once it is locked, for another log may have been put in its place meanwhile.
    fn open_state(&self, name: &str, read_only: bool) -> Result<BackingFile, AuditError> {
        loop {
            let file = self.open(name, read_only)?;
            self.lock(&file)?;
            let failed = |source| AuditError::Io {
                file: self.path.join(name),
                source,
            };
            let locked = file.stat().map_err(failed)?;
            match self.dir.stat(name) {
                Ok(named) if (named.st_dev, named.st_ino) == (locked.st_dev, locked.st_ino) => return Ok(file),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    fn lock(&self, file: &BackingFile) -> Result<(), AuditError> {
        let start = Instant::now();
        loop {
            match flock(file.fd(), FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && start.elapsed() < LOCK_WAIT => {
                    thread::sleep(LOCK_POLL);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(AuditError::InUse {
                        path: self.path.clone(),
                    });
                }
                Err(source) => {
                    let file = self.path.join(self.names.state);
                    return Err(AuditError::Io { file, source });
                }
            }
        }
    }

    /// Records calls of a mount that asks again: the keystore that it has may know of less than there is meanwhile.
    ///
    /// # Errors
    ///
    /// As for [`record`](Self::record).
    pub(super) fn record_again(&self, keystore: &LocalKeystore, calls: &[Call]) -> Result<(), AuditError> {
        let recorder = Recorder::of(keystore);
        let events: Vec<_> = calls.iter().map(|call| recorder.event(call, None)).collect();
        self.append(&events, None, 0).map(drop)
    }

    /// Records calls that a keystore was asked for; notes in the keystore, in memory, how far the log goes.
    ///
    /// `generation` is that of the keystore as it is to be stored, for calls that change it.
    pub(super) fn record(
        &self,
        keystore: &mut LocalKeystore,
        calls: &[Call],
        generation: Option<u64>,
    ) -> Result<(), AuditError> {
        let recorder = Recorder::of(keystore);
        let events: Vec<_> = calls.iter().map(|call| recorder.event(call, generation)).collect();
        let known = Known::of(keystore);
        let head = self.append(&events, Some(known), generation.unwrap_or(0))?;
        keystore.set_audit_head(head);
        Ok(())
    }
}

fn start_logging(begins: bool) -> Call {
    Call::new("StartLogging", serde_json::json!({"newLog": begins}))
}

impl OpenKeystore {
    /// Has calls recorded from now on, in the log that was there before, or in another one; tells whether that is news.
    ///
    /// # Errors
    ///
    /// As for [`change`](Self::change).
    pub fn audit_on(&mut self, another: bool, now: u64) -> Result<bool, ChangeError> {
        let is_news = self.whole_change(|open| {
            let settings = open.keystore.audit_settings();
            if !another && settings.as_ref().is_some_and(|settings| settings.is_on) {
                return Ok(false);
            }
            let begins = another || settings.is_none();
            let call = start_logging(begins);
            if begins {
                return open.begin_log(now, call).map(|()| true);
            }
            open.keystore.set_audit_on(true);
            let log = AuditLog::of(&open.home, &open.keystore)?;
            open.store_recorded(now, log.as_ref(), vec![call])?;
            Ok(true)
        })?;
        // The keystore says so, whatever comes of this: the next who looks for the log does the same.
        AuditLog::of(&self.home, &self.keystore)?;
        Ok(is_news)
    }

    /// Begins the log of a keystore that is not stored yet, and stores that.
    pub(super) fn begin_first_log(&mut self, now: u64) -> Result<(), ChangeError> {
        self.begin_log(now, start_logging(true))
    }

    /// Begins another log with a call, and stores the keystore, which says so; the log is not in its place yet.
    fn begin_log(&mut self, now: u64, call: Call) -> Result<(), ChangeError> {
        let before = match self.keystore.audit_settings() {
            Some(settings) => self.note_end_of(settings.log)?,
            None => None,
        };
        let end = self.keystore.audit_head();
        let no_seed = |_| AuditError::NoSeed {
            path: self.home.path().to_owned(),
        };
        self.keystore.begin_audit_log().map_err(no_seed)?;
        let log = AuditLog::begin(&self.home, &self.keystore)?;
        if let Err(error) = self.store_recorded(now, Some(&log), vec![call]) {
            // The log before goes on, and does not have the line.
            self.keystore.set_audit_head(end);
            return Err(error);
        }
        drop(before);
        Ok(())
    }

    /// Has calls recorded no longer. The log stays, and can be verified.
    ///
    /// # Errors
    ///
    /// As for [`change`](Self::change): that it is switched off is recorded too.
    pub fn audit_off(&mut self, now: u64) -> Result<(), ChangeError> {
        let call = Call::new("StopLogging", serde_json::Value::Null);
        self.change(now, call, |keystore| {
            keystore.set_audit_on(false);
            Ok::<_, KeystoreError>(())
        })
    }

    /// Notes how far a log has come that is to be set aside, as far as its state tells; returns that, locked, so that nobody appends to it meanwhile.
    fn note_end_of(&mut self, log: LogId) -> Result<Option<BackingFile>, AuditError> {
        let log = AuditLog::find(&self.home, &self.keystore, log)?;
        let state = match log.open_state(log.names.state, true) {
            Err(error @ AuditError::InUse { .. }) => return Err(error),
            state => state.ok(),
        };
        // A log that is damaged is why there is to be another.
        let head = state
            .as_ref()
            .map(|state| log.head_of(state, Known::of(&self.keystore)));
        if let Some(Ok(head)) = head {
            self.keystore.set_audit_head(head);
        }
        Ok(state)
    }

    /// Records calls before what they gave is handed out.
    pub(super) fn record(&mut self, calls: &[Call]) -> Result<(), AuditError> {
        if calls.is_empty() {
            return Ok(());
        }
        let Some(log) = AuditLog::of(&self.home, &self.keystore)? else {
            return Ok(());
        };
        match log.record(&mut self.keystore, calls, None) {
            // Someone may have changed the keystore since it was opened here, and begun another log.
            Err(error) if error.is_damage() => {
                let before = self.keystore.generation();
                if self.refresh().is_err() || self.keystore.generation() == before {
                    return Err(error);
                }
                match AuditLog::of(&self.home, &self.keystore)? {
                    Some(log) => log.record(&mut self.keystore, calls, None),
                    None => Ok(()),
                }
            }
            result => result,
        }
    }

    /// Records calls that failed. They have failed whether or not that is on record.
    pub(super) fn record_failed(&mut self, log: Option<&AuditLog>, calls: &[Call]) {
        if let Some(log) = log
            && let Err(error) = log.record(&mut self.keystore, calls, None)
        {
            log::warn!("{UNRECORDED_FAILURE}: {error}");
        }
    }

    /// Records a change that was refused before it was begun.
    pub fn record_refused(&mut self, mut call: Call, error: &KeystoreError) {
        call.note_key(&self.keystore);
        call.refused(error);
        if let Err(error) = self.record(&[call]) {
            log::warn!("{UNRECORDED_FAILURE}: {error}");
        }
    }

    /// Uses keys, and records that before the result is handed out.
    ///
    /// # Errors
    ///
    /// What `act` gives, and the [`AuditError`] of what cannot be recorded.
    pub fn use_keys<T, E: From<AuditError>>(
        &mut self,
        act: impl FnOnce(&Recorded<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let custodian = Recorded::new(&self.keystore);
        let result = act(&custodian);
        let calls = custodian.into_calls();
        self.recorded(result, &calls)
    }

    /// Hands out the result of calls to a keystore, or a copy of it, once they are on record.
    ///
    /// # Errors
    ///
    /// That of the result, and the [`AuditError`] of what cannot be recorded.
    pub fn recorded<T, E: From<AuditError>>(&mut self, result: Result<T, E>, calls: &[Call]) -> Result<T, E> {
        match (result, self.record(calls)) {
            (Ok(result), Ok(())) => Ok(result),
            (Ok(_), Err(error)) => Err(error.into()),
            (Err(error), Ok(())) => Err(error),
            (Err(error), Err(unrecorded)) => {
                log::warn!("{UNRECORDED_FAILURE}: {unrecorded}");
                Err(error)
            }
        }
    }

    /// Verifies the log, or another file with one that the keystore had before; nothing when it never had one.
    ///
    /// # Errors
    ///
    /// The [`AuditError`] of a log that cannot be read.
    pub fn verify_log(&self, other: Option<&Path>) -> Result<Option<Verified>, AuditError> {
        read::verify(&self.home, &self.keystore, other)
    }

    /// Returns what records uses of files; nothing when no calls are recorded.
    ///
    /// # Errors
    ///
    /// The [`AuditError`] of a log that is not there.
    pub fn file_audit(&self) -> Result<Option<FileAudit>, AuditError> {
        let log = AuditLog::of(&self.home, &self.keystore)?;
        Ok(log.map(|log| FileAudit {
            // Another one may be begun while the files are in use.
            log: AuditLog { log: None, ..log },
            recorder: Recorder::of(&self.keystore),
        }))
    }
}

/// Records who opened which file, after the keystore was let go of.
#[derive(Debug)]
pub struct FileAudit {
    log: AuditLog,
    recorder: Recorder,
}

impl FileAudit {
    /// Appends the records of uses of files, and of how many were dropped before them.
    ///
    /// # Errors
    ///
    /// The [`AuditError`] that says why they could not be recorded.
    pub fn record(&self, uses: &[FileUse], dropped: u64) -> Result<(), AuditError> {
        let mut events: Vec<_> = uses.iter().map(|file| self.recorder.file_event(file)).collect();
        if dropped > 0 {
            events.push(self.recorder.dropped_event(dropped));
        }
        self.log.append(&events, None, 0).map(drop)
    }
}
