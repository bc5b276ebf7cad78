//! Where a keystore lies: in its vault, or in a directory of its own that many vaults share.
//!
//! A keystore in its vault is guarded by the vault's lock. One of its own has a lock of its own, on its directory, and nobody holds it for
//! longer than a change takes: mounts of other vaults open it too. A change takes the lock, reads the file once more in case someone
//! else has changed it since it was opened, applies itself to that, and replaces the file. So a change is whole or it did not happen.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::Stat;

use super::{
    AuditLog, Call, ChangeError, CreateError, KEYSTORE, KEYSTORE_SIZE_MAX, OpenError, VaultHome, audit, error,
    make_directory, store, take_back,
};
use crate::{
    backing::Dir,
    format::{
        FormatError,
        keystore::{Slot, SlotId, UnverifiedKeystoreFile},
        name::VAULT_HEADER,
    },
    ids::KeyId,
    keystore::{KeystoreError, LocalKeystore, Principal, Providers, SlotChoice, Unlock, local::Tried},
};

/// How long a change waits for someone else's: a second for their Argon2id, and more for a server that their keystore asks.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// A keystore's directory, with the file as it was read. Nothing in it is to be believed yet.
#[derive(Debug)]
pub struct KeystoreHome {
    path: PathBuf,
    dir: Dir,
    is_embedded: bool,
    bytes: Vec<u8>,
    providers: Providers,
}

/// A keystore that is open, and what changes it.
#[derive(Debug)]
pub struct OpenKeystore {
    /// The slot that opened it.
    pub slot: SlotId,
    pub(super) home: KeystoreHome,
    pub(super) keystore: LocalKeystore,
}

impl KeystoreHome {
    /// Makes a keystore of its own, in a directory that is empty or not there yet.
    ///
    /// # Errors
    ///
    /// The [`CreateError`] that says what is in the way.
    pub fn create(path: &Path, keystore: LocalKeystore, now: u64) -> Result<OpenKeystore, CreateError> {
        let dir = make_directory(path).map_err(is_keystore)?;
        let mut open = OpenKeystore::create_in(path, &dir, keystore, now)?;
        open.home.is_embedded = false;
        Ok(open)
    }

    /// Makes a keystore of its own, as [`create`](Self::create), that records calls: it says so when it is stored first, whatever interrupts this.
    ///
    /// # Errors
    ///
    /// The [`CreateError`] that says what is in the way.
    pub fn create_recorded(path: &Path, keystore: LocalKeystore, now: u64) -> Result<OpenKeystore, CreateError> {
        let dir = make_directory(path).map_err(is_keystore)?;
        let io_error = |source| CreateError::Io {
            path: path.to_owned(),
            source,
        };
        // What an interrupted call has left.
        audit::remove_coming(&dir).map_err(io_error)?;
        let mut open = OpenKeystore::in_memory(path, &dir, keystore).map_err(io_error)?;
        open.home.is_embedded = false;
        open.begin_first_log(now).map_err(|error| {
            let _ = audit::remove_coming(&dir);
            take_back(&dir);
            CreateError::Log(error)
        })?;
        // As where a log is begun later: the next who looks for it does the same.
        AuditLog::of(&open.home, &open.keystore)?;
        Ok(open)
    }

    /// Tells whether a keystore could be made in a directory, before a passphrase is thought of; changes nothing.
    ///
    /// # Errors
    ///
    /// As for [`create`](Self::create).
    pub fn check_free(path: &Path) -> Result<(), CreateError> {
        VaultHome::check_free(path).map_err(is_keystore)
    }

    /// Finds a keystore of its own, and reads it.
    ///
    /// # Errors
    ///
    /// Everything that can be told without a secret. [`OpenError::KeystoreOfVault`] for one in a vault.
    pub fn enter(path: &Path) -> Result<Self, OpenError> {
        let no_keystore = || OpenError::NoKeystore { path: path.to_owned() };
        let dir = Dir::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => no_keystore(),
            _ => OpenError::Io {
                path: path.to_owned(),
                source,
            },
        })?;
        let bytes = read(&dir, path)?.ok_or_else(no_keystore)?;
        match dir.stat(VAULT_HEADER) {
            // Changed under the lock of its directory alone, and recorded in a log outside vaults, it would be two keystores in one.
            Ok(_) => Err(OpenError::KeystoreOfVault { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::new(path, dir, bytes, false),
            Err(source) => Err(OpenError::Io {
                path: path.join(VAULT_HEADER),
                source,
            }),
        }
    }

    /// Takes the keystore of a vault, whose lock guards it; nothing when the vault has none.
    pub(super) fn of_vault(path: &Path, dir: &Dir) -> Result<Option<Self>, OpenError> {
        let Some(bytes) = read(dir, path)? else {
            return Ok(None);
        };
        let dir = dir.open_dir(".").map_err(|source| OpenError::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::new(path, dir, bytes, true).map(Some)
    }

    fn new(path: &Path, dir: Dir, bytes: Vec<u8>, is_embedded: bool) -> Result<Self, OpenError> {
        UnverifiedKeystoreFile::decode(&bytes).map_err(error::in_file(path, KEYSTORE))?;
        Ok(KeystoreHome {
            path: path.to_owned(),
            dir,
            is_embedded,
            bytes,
            providers: Providers::default(),
        })
    }

    /// Reads the keystore once more, in case someone has changed it.
    pub(super) fn read_again(self) -> Result<Self, OpenError> {
        let bytes = read(&self.dir, &self.path)?.ok_or_else(|| OpenError::NoKeystore {
            path: self.path.clone(),
        })?;
        UnverifiedKeystoreFile::decode(&bytes).map_err(error::in_file(&self.path, KEYSTORE))?;
        Ok(KeystoreHome { bytes, ..self })
    }

    /// Returns the file's attributes: while they are the same, so is the file.
    pub(super) fn stat(&self) -> io::Result<Stat> {
        self.dir.stat(KEYSTORE)
    }

    /// Returns the file as it is now, or none where there is none.
    pub(super) fn read(&self) -> Result<Option<Vec<u8>>, OpenError> {
        read(&self.dir, &self.path)
    }

    fn io_error(&self, source: io::Error) -> ChangeError {
        ChangeError::Io {
            path: self.path.join(KEYSTORE),
            source,
        }
    }

    /// Says who serves the keys that a key server or an HSM holds.
    pub fn set_providers(&mut self, providers: Providers) {
        self.providers = providers;
    }

    /// Returns the path of its directory: that of the vault where the keystore is in one.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its directory.
    pub(super) fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Tells whether the keystore lies in the vault it was found by.
    pub fn is_embedded(&self) -> bool {
        self.is_embedded
    }

    /// Returns the slots that the keystore says it has. Whoever can write the file can make it say anything.
    pub fn claimed_slots(&self) -> Vec<Slot> {
        UnverifiedKeystoreFile::decode(&self.bytes).map_or_else(|_| Vec::new(), |file| file.slots().to_vec())
    }

    /// Tries a secret on each slot that it may open.
    ///
    /// # Errors
    ///
    /// The [`OpenError`] of a keystore that is none.
    pub fn try_each(&self, unlock: &Unlock) -> Result<Vec<Tried>, OpenError> {
        LocalKeystore::try_each(&self.bytes, unlock).map_err(error::of_unlock(&self.path))
    }

    /// Opens the keystore.
    ///
    /// # Errors
    ///
    /// The [`OpenError`] that says why not.
    pub fn open(self, unlock: &Unlock, choice: &SlotChoice) -> Result<OpenKeystore, OpenError> {
        let (mut keystore, slot) =
            LocalKeystore::unlock(&self.bytes, unlock, choice).map_err(error::of_unlock(&self.path))?;
        keystore.set_providers(self.providers.clone());
        Ok(OpenKeystore {
            slot,
            home: self,
            keystore,
        })
    }
}

impl OpenKeystore {
    /// Stores a keystore that was just made, in a directory that is locked; at first it counts as that of a vault.
    pub(super) fn create_in(
        path: &Path,
        dir: &Dir,
        mut keystore: LocalKeystore,
        now: u64,
    ) -> Result<Self, CreateError> {
        let io_error = |source| CreateError::Io {
            path: path.join(KEYSTORE),
            source,
        };
        let bytes = keystore.encode(now).map_err(CreateError::Format)?;
        store(dir, KEYSTORE, &bytes).map_err(io_error)?;
        let mut open = Self::in_memory(path, dir, keystore).map_err(io_error)?;
        open.home.bytes = bytes;
        Ok(open)
    }

    /// Takes a keystore that was just made and is not stored yet.
    fn in_memory(path: &Path, dir: &Dir, keystore: LocalKeystore) -> io::Result<Self> {
        Ok(OpenKeystore {
            slot: keystore.slots()[0].id,
            home: KeystoreHome {
                path: path.to_owned(),
                dir: dir.open_dir(".")?,
                is_embedded: true,
                bytes: Vec::new(),
                providers: Providers::default(),
            },
            keystore,
        })
    }

    /// Takes the keystore and its directory apart, for who only asks it from now on.
    pub(super) fn into_parts(self) -> (KeystoreHome, LocalKeystore) {
        (self.home, self.keystore)
    }

    /// Returns a copy to be asked for keys, which must not be changed.
    pub(super) fn to_be_asked(&self) -> io::Result<Self> {
        let KeystoreHome {
            path,
            dir,
            is_embedded,
            bytes,
            providers,
        } = &self.home;
        Ok(OpenKeystore {
            slot: self.slot,
            home: KeystoreHome {
                path: path.clone(),
                dir: dir.open_dir(".")?,
                is_embedded: *is_embedded,
                bytes: bytes.clone(),
                providers: providers.clone(),
            },
            keystore: self.keystore.asked_by(self.keystore.principal().clone()),
        })
    }

    /// Returns the keystore.
    pub fn keystore(&self) -> &LocalKeystore {
        &self.keystore
    }

    /// Returns the path of its directory.
    pub fn path(&self) -> &Path {
        &self.home.path
    }

    /// Tells whether the keystore lies in the vault it was found by.
    pub fn is_embedded(&self) -> bool {
        self.home.is_embedded
    }

    /// Changes the keystore as it was asked to by a call, records that, and stores it.
    ///
    /// # Errors
    ///
    /// What `act` gives: that is recorded, and nothing is stored. [`ChangeError::Audit`] when it cannot be recorded.
    /// [`ChangeError::KeystoreInUse`], [`ChangeError::KeystoreChanged`], and why it cannot be stored.
    pub fn change<T, E: Into<KeystoreError>>(
        &mut self,
        now: u64,
        mut call: Call,
        act: impl FnOnce(&mut LocalKeystore) -> Result<T, E>,
    ) -> Result<T, ChangeError> {
        self.whole_change(|open| {
            // Of before the change, which may be to record no more.
            let log = AuditLog::of(&open.home, &open.keystore)?;
            call.note_key(&open.keystore);
            let before = open.keystore.key_ids();
            match act(&mut open.keystore).map_err(Into::into) {
                Ok(result) => {
                    let changed: Vec<_> = before.symmetric_difference(&open.keystore.key_ids()).copied().collect();
                    call.note_changed(&open.keystore, &changed);
                    open.store_recorded(now, log.as_ref(), vec![call])?;
                    Ok(result)
                }
                Err(error) => {
                    call.refused(&error);
                    open.record_failed(log.as_ref(), &[call]);
                    Err(error.into())
                }
            }
        })
    }

    /// Changes what the keystore keeps for hushfs itself, which nobody has asked for and no record tells of; stores it if `act` says that this
    /// is worth it, and tells whether it was.
    ///
    /// # Errors
    ///
    /// As for [`change`](Self::change).
    pub fn update<E: Into<KeystoreError>>(
        &mut self,
        now: u64,
        act: impl FnOnce(&mut LocalKeystore) -> Result<bool, E>,
    ) -> Result<bool, ChangeError> {
        self.whole_change(|open| {
            let is_worth_it = act(&mut open.keystore).map_err(Into::into)?;
            if is_worth_it {
                open.store(now)?;
            }
            Ok(is_worth_it)
        })
    }

    /// Locks a keystore of its own, takes what someone else has stored meanwhile, and lets `act` change and store it; what `act` fails with is
    /// taken back in memory.
    pub(super) fn whole_change<T>(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<T, ChangeError>,
    ) -> Result<T, ChangeError> {
        let _lock = match self.home.is_embedded {
            true => None,
            false => Some(self.lock(LOCK_WAIT)?),
        };
        self.refresh()?;
        let before = self.keystore.checkpoint();
        let result = act(self);
        if result.is_err() {
            // An agent goes on after this: what it answers is what is stored, and the next change starts from there. What is on record stays so.
            let head = self.keystore.audit_head();
            self.keystore.restore(before);
            self.keystore.set_audit_head(head);
        }
        result
    }

    /// Takes the keystore as it is stored, if someone else has changed it since it was read.
    ///
    /// # Errors
    ///
    /// [`ChangeError::KeystoreChanged`], and why it cannot be read.
    pub fn refresh(&mut self) -> Result<(), ChangeError> {
        let failed = |source| self.home.io_error(source);
        let stored = self.home.dir.read_small(KEYSTORE, KEYSTORE_SIZE_MAX).map_err(failed)?;
        if stored.as_ref() != Some(&self.home.bytes) {
            let changed = || ChangeError::KeystoreChanged {
                path: self.home.path.clone(),
            };
            let stored = stored.ok_or_else(changed)?;
            self.keystore.refresh(&stored).map_err(|_| changed())?;
            self.home.bytes = stored;
        }
        Ok(())
    }

    /// Says what holds for keys without a policy of their own: see [`LocalKeystore::set_default_policy`].
    pub fn set_default_policy(&mut self, policy: &str) {
        self.keystore.set_default_policy(policy);
    }

    /// Acts for someone else: by who they are it is decided and recorded.
    pub fn on_behalf_of<T>(&mut self, principal: &Principal, act: impl FnOnce(&mut Self) -> T) -> T {
        let own = self.keystore.principal().clone();
        self.keystore.set_principal(principal.clone());
        let result = act(self);
        self.keystore.set_principal(own);
        result
    }

    /// Records calls that have changed the keystore, and stores it.
    pub(super) fn store_recorded(
        &mut self,
        now: u64,
        log: Option<&AuditLog>,
        mut calls: Vec<Call>,
    ) -> Result<(), ChangeError> {
        if let Some(log) = log {
            let generation = self.keystore.generation() + 1;
            log.record(&mut self.keystore, &calls, Some(generation))?;
        }
        let stored = self.store(now);
        if let Err(error) = &stored {
            for call in &mut calls {
                call.failed("KMSInternalException", format!("it was not stored: {error}"));
            }
            self.record_failed(log, &calls);
        }
        stored
    }

    fn store(&mut self, now: u64) -> Result<(), ChangeError> {
        let bytes = self.encode(now)?;
        let stored = store(&self.home.dir, KEYSTORE, &bytes);
        stored.map_err(|source| self.home.io_error(source))?;
        self.home.bytes = bytes;
        Ok(())
    }

    /// Goes through a change without storing it, to see whether it would succeed. The keystore in memory is of no use after that.
    ///
    /// # Errors
    ///
    /// As for [`change`](Self::change).
    pub fn rehearse<T, E: Into<KeystoreError>>(
        mut self,
        now: u64,
        act: impl FnOnce(&mut LocalKeystore) -> Result<T, E>,
    ) -> Result<T, ChangeError> {
        let result = act(&mut self.keystore).map_err(Into::into)?;
        self.encode(now)?;
        Ok(result)
    }

    /// Rotates the keys whose time has come; returns them.
    ///
    /// # Errors
    ///
    /// As for [`change`](Self::change).
    pub fn rotate_due(&mut self, now: u64) -> Result<Vec<KeyId>, ChangeError> {
        self.whole_change(|open| {
            let rotated = open.keystore.rotate_due(now)?;
            if !rotated.is_empty() {
                let log = AuditLog::of(&open.home, &open.keystore)?;
                let calls = rotated.iter().map(|key| Call::rotated(&open.keystore, *key)).collect();
                open.store_recorded(now, log.as_ref(), calls)?;
            }
            Ok(rotated)
        })
    }

    fn encode(&mut self, now: u64) -> Result<Vec<u8>, ChangeError> {
        self.keystore.encode(now).map_err(|error| ChangeError::Format {
            path: self.home.path.join(KEYSTORE),
            error,
        })
    }

    /// Locks the keystore's directory by a descriptor of its own, which unlocks it when it is dropped.
    fn lock(&self, wait: Duration) -> Result<Dir, ChangeError> {
        let failed = |source| self.home.io_error(source);
        let dir = self.home.dir.open_dir(".").map_err(failed)?;
        match dir.lock_within(wait) {
            Ok(()) => Ok(dir),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(ChangeError::KeystoreInUse {
                path: self.home.path.clone(),
            }),
            Err(error) => Err(failed(error)),
        }
    }
}

/// What a vault that never finished looks like is a keystore where one is to be made.
fn is_keystore(error: CreateError) -> CreateError {
    match error {
        CreateError::Unfinished { path } => CreateError::IsKeystore { path },
        other => other,
    }
}

fn read(dir: &Dir, path: &Path) -> Result<Option<Vec<u8>>, OpenError> {
    match dir.read_small(KEYSTORE, KEYSTORE_SIZE_MAX) {
        Err(error) if error.raw_os_error() == Some(libc::EFBIG) => Err(OpenError::Damaged {
            path: path.join(KEYSTORE),
            error: FormatError::TrailingBytes,
        }),
        other => other.map_err(|source| OpenError::Io {
            path: path.join(KEYSTORE),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::keystore::{KeyFile, NewKey, NewSecret};

    fn call() -> Call {
        Call::new("Test", serde_json::Value::Null)
    }

    #[test]
    fn a_change_that_cannot_be_stored_is_taken_back() {
        let temp = tempfile::tempdir().unwrap();
        let secret = KeyFile::new(vec![1; 32].into()).unwrap();
        let keystore = LocalKeystore::create("main", &NewSecret::KeyFile(&secret), 1).unwrap();
        let mut open = KeystoreHome::create(&temp.path().join("keys"), keystore, 1).unwrap();
        let key = open
            .change(1, call(), |keystore| keystore.create_key(&NewKey::default(), 1))
            .unwrap();
        let tags: Vec<_> = (0..50).map(|n| (format!("{n}"), "\u{10348}".repeat(256))).collect();
        let grown = open.change(2, call(), |keystore| {
            // More than the file may have: some of them would do.
            for _ in 0..100 {
                let many = NewKey {
                    tags: &tags,
                    ..NewKey::default()
                };
                keystore.create_key(&many, 2)?;
            }
            keystore.disable(&key)
        });
        assert!(matches!(grown, Err(ChangeError::Format { .. })), "{grown:?}");
        assert_eq!(open.keystore().keys().len(), 2);
        open.change(3, call(), |keystore| keystore.disable(&key)).unwrap();
    }

    #[test]
    fn a_keystore_that_stays_locked_is_given_up_and_one_that_does_not_is_waited_for() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("keys");
        let secret = KeyFile::new(vec![1; 32].into()).unwrap();
        let keystore = LocalKeystore::create("main", &NewSecret::KeyFile(&secret), 1).unwrap();
        let open = KeystoreHome::create(&path, keystore, 1).unwrap();
        let held = open.lock(Duration::ZERO).unwrap();
        assert!(matches!(
            open.lock(Duration::from_millis(50)),
            Err(ChangeError::KeystoreInUse { path: in_use }) if in_use == path
        ));
        let waiting = thread::spawn(move || open.lock(LOCK_WAIT).map(drop));
        thread::sleep(Duration::from_millis(50));
        drop(held);
        waiting.join().unwrap().unwrap();
    }
}
