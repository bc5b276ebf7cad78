//! A vault's directory as a whole: made, entered and locked, opened, its keys changed.
//!
//! `vault.hush` and `keystore.hush` are read and written here and nowhere else (docs/FORMAT.md sections 3 and 4). Both are
//! replaced as a whole and durably, so what a crash leaves is always one version of each; `change` says why every pair of versions that
//! can come about opens. The keystore may lie in another directory: `keyring` knows.

mod asker;
mod audit;
mod chains;
mod change;
mod error;
mod keyring;
mod keys;
mod source;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use self::{
    asker::EpochAsker,
    audit::AuditLog,
    keys::KeysInUse,
    source::{HeaderReader, KeyAsker},
};
pub use self::{
    audit::{AuditError, Call, FileAudit, FileUse, LogReader, Recorded, Verified},
    change::ChangeError,
    error::{CreateError, OpenError},
    keyring::{KeystoreHome, OpenKeystore},
    keys::KeySource,
    source::KeptKeys,
};
use super::{
    EpochKeys, Vault,
    choice::KeyChoice,
    freshness::Limits,
    header_watch::EpochTaker,
    journal::recovery::{self, Recovered},
    keeper::Keeper,
};
use crate::{
    backing::{Dir, alarm},
    crypto::{
        keys::{CustomerKey, EpochKey, MacKey, NamesRoot, WrappingKey},
        locked::LockedKey,
        random,
    },
    format::{
        FormatError,
        keystore::{BODY_SIZE_MAX, Slot},
        layout::Layout,
        name::{self, KEYSTORE, Shape, VAULT_HEADER},
        record::SeenHome,
        vault::{
            BucketKeysOff, CustodianKind, EpochRecord, EpochWrap, NO_NAMES_ROOT, UnverifiedVaultHeader,
            VAULT_HEADER_MAX, VaultHeader,
        },
    },
    ids::{Epoch, KeyId, VaultId},
    keystore::{
        Context, Custodian, KeyError, KeyHandle, LocalKeystore, Providers, Reach, SlotChoice, Unlock,
        local::{DEFAULT_ALIAS, Standing, VaultLook, VaultUse},
    },
};

/// How long who reads waits for others, where a crash has left a journal, and how often it looks.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// The largest keystore file: the front, the largest body, the MAC.
const KEYSTORE_SIZE_MAX: usize = 16 + BODY_SIZE_MAX + 32;

/// Who else may use the vault meanwhile. The lock is held as long as the [`VaultHome`] lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Nobody: for a mount, and for every change.
    Exclusive,
    /// Others that read.
    Shared,
    /// Anyone: for a look at what the files say.
    Unlocked,
}

/// A vault's directory, locked, with its header and keystore as they were read. Nothing in them is to be believed yet.
#[derive(Debug)]
pub struct VaultHome {
    path: PathBuf,
    dir: Dir,
    header: UnverifiedVaultHeader,
    /// None where it lies elsewhere and was not asked for, and once it was opened.
    keystore: Option<KeystoreHome>,
    /// What a customer has brought.
    customer_key: Option<CustomerKey>,
    /// A header is taken that is older than one that the keystore has seen.
    takes_older_header: bool,
}

/// A vault whose keys are open, and what changes them.
#[derive(Debug)]
pub struct OpenVault {
    /// The directory; its lock lasts as long as this.
    pub home: VaultHome,
    /// The vault.
    pub vault: Vault,
    header: VaultHeader,
    keys: KeySource,
    /// The key of the MAC of `vault.hush`: it is the current epoch's.
    mac_key: MacKey,
}

/// The pairs of an encryption context that the user has chosen.
pub type ContextPairs = Vec<(String, String)>;

impl VaultHome {
    /// Makes a vault in a directory that is empty or not there yet, with a keystore in it that was just made, and locks it.
    ///
    /// The keystore is written first. A crash between the two files leaves a directory with a keystore only, which the next call
    /// refuses as [`CreateError::Unfinished`]: it may as well be the keystore of a vault whose header was lost, and is not ours to replace.
    ///
    /// # Errors
    ///
    /// The [`CreateError`] that says what is in the way; nothing was written then, or what was is named.
    pub fn create(
        path: &Path,
        form: impl Into<Form>,
        mut keystore: LocalKeystore,
        now: u64,
    ) -> Result<OpenVault, CreateError> {
        let dir = make_directory(path)?;
        let key = keystore.key_of_alias(DEFAULT_ALIAS).ok_or(CreateError::NoDefaultKey)?;
        // A keystore that was just made in memory has no log yet.
        let new = NewVault::make(&keystore, form.into(), (key, Vec::new()), now)?;
        keystore
            .raise_epoch_floor(new.header.vault, Epoch(1))
            .map_err(CreateError::Keystore)?;
        keystore
            .note_names(new.header.vault, new.names_root.mark())
            .map_err(CreateError::Keystore)?;
        let vault_use = VaultUse {
            keys: change::vault_keys(&new.header),
            ..VaultUse::default()
        };
        keystore.note_vault(new.header.vault, vault_use, now);
        let keystore = OpenKeystore::create_in(path, &dir, keystore, now).inspect_err(|_| take_back(&dir))?;
        new.store(path, dir, keystore.into())
    }

    /// Makes a vault whose keystore lies elsewhere, under one of the keys of that.
    ///
    /// The header is written first; a crash leaves a vault of which the keystore has no record, which the next command that may write makes.
    ///
    /// # Errors
    ///
    /// As for [`create`](Self::create).
    pub fn create_under(
        path: &Path,
        form: impl Into<Form>,
        mut keys: KeySource,
        key: (KeyHandle, ContextPairs),
        now: u64,
    ) -> Result<OpenVault, CreateError> {
        let dir = make_directory(path)?;
        let form = form.into();
        let new = keys.use_keys(|keys| NewVault::make(keys.custodian(), form, key, now))?;
        let mut open = new.store(path, dir, keys)?;
        open.finish(now).map_err(CreateError::Record)?;
        Ok(open)
    }

    /// Tells whether a vault could be made in a directory, before a passphrase is thought of; changes nothing.
    ///
    /// # Errors
    ///
    /// As for [`create`](Self::create).
    pub fn check_free(path: &Path) -> Result<(), CreateError> {
        match Dir::open(path) {
            Ok(dir) => check_empty(&dir, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(CreateError::Io {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Enters a vault's directory, with the keystore in it: locks it and reads its files.
    ///
    /// # Errors
    ///
    /// Everything that can be told without a secret, so that nobody is asked for one in vain; [`OpenError::KeystoreMissing`] when the
    /// keystore is elsewhere.
    pub fn enter(path: &Path, lock: Lock) -> Result<Self, OpenError> {
        Self::enter_with(path, lock, None)
    }

    /// As [`enter`](Self::enter), with a keystore that lies elsewhere, if one is given.
    ///
    /// # Errors
    ///
    /// As for [`enter`](Self::enter).
    pub fn enter_with(path: &Path, lock: Lock, keystore: Option<KeystoreHome>) -> Result<Self, OpenError> {
        let home = Self::read(path, lock, keystore)?;
        match home.keystore {
            Some(_) => Ok(home),
            None => Err(OpenError::KeystoreMissing { path: home.path }),
        }
    }

    /// As [`enter`](Self::enter), whether there is a keystore in the vault or not: an agent has another.
    ///
    /// # Errors
    ///
    /// As for [`enter`](Self::enter).
    pub fn enter_for_agent(path: &Path, lock: Lock) -> Result<Self, OpenError> {
        Self::read(path, lock, None)
    }

    /// Looks at what a vault's files say, with or without a keystore among them. Locks nothing.
    ///
    /// # Errors
    ///
    /// As for [`enter`](Self::enter).
    pub fn look(path: &Path) -> Result<Self, OpenError> {
        Self::read(path, Lock::Unlocked, None)
    }

    fn read(path: &Path, lock: Lock, keystore: Option<KeystoreHome>) -> Result<Self, OpenError> {
        let dir = Dir::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => OpenError::NoDirectory { path: path.to_owned() },
            _ => OpenError::Io {
                path: path.to_owned(),
                source,
            },
        })?;
        if lock != Lock::Unlocked {
            dir.lock(lock == Lock::Shared).map_err(|source| match source.kind() {
                io::ErrorKind::WouldBlock => OpenError::InUse { path: path.to_owned() },
                _ => OpenError::Io {
                    path: path.to_owned(),
                    source,
                },
            })?;
        }
        let header = match dir.read_small(VAULT_HEADER, VAULT_HEADER_MAX) {
            Err(error) if error.raw_os_error() == Some(libc::EFBIG) => {
                return Err(error::in_file(path, VAULT_HEADER)(FormatError::TrailingBytes));
            }
            other => other.map_err(|source| OpenError::Io {
                path: path.join(VAULT_HEADER),
                source,
            })?,
        };
        // After the header: whoever changes both writes the keystore first, so this one opens what the header says.
        let keystore = match keystore {
            Some(keystore) => Some(keystore.read_again()?),
            None => KeystoreHome::of_vault(path, &dir)?,
        };
        let path = path.to_owned();
        let Some(header) = header else {
            return Err(match keystore {
                Some(keystore) if keystore.is_embedded() => OpenError::HeaderMissing { path },
                _ => OpenError::NotAVault { path },
            });
        };
        let is_apart = lock != Lock::Unlocked && is_apart(&dir, VAULT_HEADER).unwrap_or_default();
        if is_apart {
            return Err(OpenError::FilesApart { path });
        }
        let header = UnverifiedVaultHeader::decode(&header).map_err(error::in_file(&path, VAULT_HEADER))?;
        Ok(VaultHome {
            path,
            dir,
            header,
            keystore,
            customer_key: None,
            // Who does not write puts nothing under a key that someone who was shut out may know.
            takes_older_header: lock != Lock::Exclusive,
        })
    }

    /// Says who serves the keys that a key server or an HSM holds.
    pub fn set_providers(&mut self, providers: Providers) {
        if let Some(keystore) = &mut self.keystore {
            keystore.set_providers(providers);
        }
    }

    /// Takes the key that a customer has brought: files of it open, and new files get it.
    pub fn set_customer_key(&mut self, key: CustomerKey) {
        self.customer_key = Some(key);
    }

    /// Takes a header for changes that is older than one that the keystore has seen, for who gives the vault a new epoch before anything else:
    /// [`OpenVault::rotate`].
    pub fn accept_older_header(&mut self) {
        self.takes_older_header = true;
    }

    /// Returns the path the vault was entered by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Opens the directory once more, for who needs one of their own.
    ///
    /// # Errors
    ///
    /// What openat2(2) gives.
    pub fn open_dir(&self) -> io::Result<Dir> {
        self.dir.open_dir(".")
    }

    /// Writes what a crash left in the vault's journal to its files. With a shared lock it waits some seconds for others that read.
    ///
    /// `copied` applies a journal that is not where it was made.
    ///
    /// # Errors
    ///
    /// What writing gives, and [`OpenError::JournalInUse`]; the journal stays then.
    pub fn recover(&self, vault: &Vault, lock: Lock, copied: bool) -> Result<Recovered, OpenError> {
        self.recover_within(LOCK_WAIT, vault, lock, copied)
    }

    fn recover_within(&self, wait: Duration, vault: &Vault, lock: Lock, copied: bool) -> Result<Recovered, OpenError> {
        let io_error = |source| OpenError::Io {
            path: self.path.clone(),
            source,
        };
        let reads_only = lock != Lock::Exclusive;
        let recover = || recovery::recover(vault, &self.dir, copied, reads_only).map_err(io_error);
        let is_needed = || recovery::is_needed(vault, &self.dir, copied).map_err(io_error);
        if !reads_only || !is_needed()? {
            return recover();
        }
        let has_changes = || recovery::has_changes(vault, &self.dir, copied).map_err(io_error);
        let mut is_due = None;
        let start = Instant::now();
        loop {
            // Whether it is got or not, the lock that there was is gone (flock(2)): another may have changed the vault before the next.
            if self.try_lock(false)? {
                let recovered = recover();
                if !self.try_lock(true)? {
                    return Err(OpenError::InUse {
                        path: self.path.clone(),
                    });
                }
                self.check_unchanged()?;
                return recovered;
            }
            if self.try_lock(true)? {
                // Someone else may have done it; or it stays, without anything to be done, where nobody can remove it.
                let is_done = !is_needed()? || !is_due.map_or_else(has_changes, Ok)?;
                if is_done {
                    self.check_unchanged()?;
                    return Ok(Recovered::default());
                }
                is_due = Some(true);
            }
            if start.elapsed() > wait {
                return Err(OpenError::JournalInUse {
                    path: self.path.clone(),
                });
            }
            // Others may wait for the same.
            self.dir.unlock().map_err(io_error)?;
            thread::sleep(LOCK_POLL);
        }
    }

    /// Locks the vault as far as others let it be; tells whether they do.
    fn try_lock(&self, shared: bool) -> Result<bool, OpenError> {
        match self.dir.lock(shared) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(source) => Err(OpenError::Io {
                path: self.path.clone(),
                source,
            }),
        }
    }

    /// Checks that the header is as it was read: it was not locked all the time.
    fn check_unchanged(&self) -> Result<(), OpenError> {
        let now = self.dir.read_small(VAULT_HEADER, VAULT_HEADER_MAX).unwrap_or_default();
        let now = now.and_then(|bytes| UnverifiedVaultHeader::decode(&bytes).ok());
        match now.is_some_and(|now| now == self.header) {
            true => Ok(()),
            false => Err(OpenError::InUse {
                path: self.path.clone(),
            }),
        }
    }

    /// Returns what the vault header says. Whoever can write to the vault can make it say anything.
    pub fn claims(&self) -> &VaultHeader {
        self.header.claims()
    }

    /// Returns the keystore as it was found, if it was and is not open yet.
    pub fn keystore(&self) -> Option<&KeystoreHome> {
        self.keystore.as_ref()
    }

    /// Returns the slots that the keystore says it has; as little to be believed.
    pub fn claimed_slots(&self) -> Vec<Slot> {
        self.keystore
            .as_ref()
            .map_or_else(Vec::new, KeystoreHome::claimed_slots)
    }

    /// Opens the keystore, and with it the vault.
    ///
    /// # Errors
    ///
    /// The [`OpenError`] that says why not.
    pub fn open(mut self, unlock: &Unlock, choice: &SlotChoice) -> Result<OpenVault, OpenError> {
        let keystore = self.open_keystore(unlock, choice)?;
        self.open_with(keystore.into())
    }

    /// Opens the keystore alone: keys can be administered that the vault does not open with, as one that is disabled.
    ///
    /// # Errors
    ///
    /// The [`OpenError`] that says why not.
    pub fn open_keystore(&mut self, unlock: &Unlock, choice: &SlotChoice) -> Result<OpenKeystore, OpenError> {
        let keystore = self.keystore.take().ok_or_else(|| OpenError::KeystoreMissing {
            path: self.path.clone(),
        })?;
        keystore.open(unlock, choice)
    }

    /// Lets go of the vault, for who wants to look at its keystore as it was found.
    ///
    /// # Errors
    ///
    /// [`OpenError::KeystoreMissing`] when none was.
    pub fn into_keystore(self) -> Result<KeystoreHome, OpenError> {
        self.keystore.ok_or(OpenError::KeystoreMissing { path: self.path })
    }

    /// Opens the vault with the keys of its keystore.
    ///
    /// An older epoch whose key does not open is left out with a warning: its files give an error until the key is back, the others do not.
    ///
    /// # Errors
    ///
    /// The [`OpenError`] that says why not.
    pub fn open_with(self, mut keys: KeySource) -> Result<OpenVault, OpenError> {
        let is_embedded = keys.is_embedded();
        let Opened { vault, header, mac_key } = keys.use_keys(|keys| self.unwrap_epochs(keys, is_embedded))?;
        let mut open = OpenVault {
            vault,
            home: self,
            header,
            keys,
            mac_key,
        };
        open.ask_for_files().map_err(|source| OpenError::Io {
            path: open.home.path.clone(),
            source,
        })?;
        Ok(open)
    }

    /// Returns what the vault shows its keystore of itself.
    fn look_of(&self, names_root: &NamesRoot, is_embedded: bool) -> VaultLook {
        let path = fs::canonicalize(&self.path).ok();
        let path = path.and_then(|path| path.into_os_string().into_string().ok());
        VaultLook {
            names: names_root.mark(),
            path: path.filter(|_| !is_embedded),
        }
    }

    /// Refuses a vault that stands in the place of another: its header is authentic under a key of the keystore, and may be so for who can have data keys made.
    fn check_standing(&self, vault: VaultId, standing: Standing) -> Result<(), OpenError> {
        match standing {
            Standing::Known | Standing::New => Ok(()),
            Standing::OtherNames => Err(OpenError::OtherVault { vault }),
            Standing::InPlaceOf(known) => Err(OpenError::InPlaceOf {
                path: self.path.clone(),
                vault,
                known,
            }),
        }
    }

    fn unwrap_epochs(&self, keys: &KeysInUse<'_>, is_embedded: bool) -> Result<Opened, OpenError> {
        // The one field used before the MAC is checked is the current epoch, and with it the wraps of its key.
        let claims = self.header.claims();
        let vault = claims.vault;
        let current = claims.current_epoch();
        let mut asker = EpochAsker::new(keys.custodian(), vault);
        let key = asker.unwrap(current).map_err(|error| match error {
            // A vault's own keystore knows the vault, or is not its own. One that does has destroyed the key.
            KeyError::NotFound { key } if is_embedded && !keys.has_record(vault) => {
                OpenError::Key(KeyError::Rejected { key })
            }
            error => OpenError::Key(error),
        })?;
        let mac_key = key.vault_header_mac_key(vault);
        let (header, names_root) =
            authenticate(&self.header, &key, &mac_key).map_err(error::in_file(&self.path, VAULT_HEADER))?;
        let look = self.look_of(&names_root, is_embedded);
        let state = keys.state(vault, current, &look).map_err(OpenError::Key)?;
        self.check_standing(vault, state.standing)?;
        if is_embedded && state.floor.is_none() {
            // It is made with the record of its vault.
            let key = current.wraps[0].key;
            return Err(OpenError::Key(KeyError::Rejected { key }));
        }
        if let Some(lowest) = state.floor
            && header.current < lowest
        {
            let error = OpenError::RolledBack {
                current: header.current,
                lowest,
            };
            if !self.takes_older_header {
                return Err(error);
            }
            log::warn!("{error}");
        }
        let layout = header.layout().map_err(error::in_file(&self.path, VAULT_HEADER))?;
        let mut epochs = EpochKeys::new(header.current, key.header_wrapping_key(vault));
        let customer_key = self.customer_key.as_ref();
        asker.bring(customer_key);
        for epoch in header.epochs.iter().filter(|epoch| epoch.number != header.current) {
            let opened = asker.unwrap(epoch);
            match &opened {
                Ok(_) => {}
                Err(KeyError::NotBrought { key }) => {
                    log::info!("files of epoch {} need customer key {key}", epoch.number);
                }
                Err(error) => log::warn!("epoch {} is left out, its files do not open: {error}", epoch.number),
            }
            epochs.insert(epoch.number, opened.map(|key| key.header_wrapping_key(vault)));
        }
        let customer = match customer_key {
            Some(_) => Some(customer_epoch(&header, &epochs)?),
            None => None,
        };
        let mut opened = Vault::new(vault, layout, epochs, names_root);
        opened.choice = KeyChoice::new(&header, customer);
        Ok(Opened {
            vault: opened,
            header,
            mac_key,
        })
    }
}

/// What the keys of a vault's epochs give.
struct Opened {
    vault: Vault,
    header: VaultHeader,
    mac_key: MacKey,
}

impl OpenVault {
    /// Returns the vault header, which is authentic.
    pub fn header(&self) -> &VaultHeader {
        &self.header
    }

    /// Returns what the vault header and the keystore are to be known by again.
    pub fn seen(&self) -> SeenHome {
        let header = self
            .header
            .encode(&self.mac_key)
            .expect("a header that was read or stored keeps its limits");
        SeenHome {
            epoch: self.header.current,
            header: self.vault.record_key().header_mark(&header),
            keystore: self.keys.id(),
            generation: self.keys.generation(),
        }
    }

    /// Returns where the vault's keys come from.
    pub fn keys(&self) -> &KeySource {
        &self.keys
    }

    /// Tells what it takes to ask for the keys of the vault's epochs again.
    pub fn reach(&self) -> Reach {
        let KeySource::Keystore(keystore) = &self.keys else {
            return Reach::Agent;
        };
        let keystore = keystore.keystore();
        let wraps = self.header.epochs.iter().flat_map(|epoch| &epoch.wraps);
        let keys = wraps.filter_map(|wrap| keystore.keys().iter().find(|key| key.id == wrap.key));
        keystore.reach_of(keys)
    }

    /// Returns where the vault's keys come from, for changing them.
    pub fn keys_mut(&mut self) -> &mut KeySource {
        &mut self.keys
    }

    /// Has the keystore, or the agent, be asked for files without a bucket key, where there may be any.
    pub(super) fn ask_for_files(&mut self) -> io::Result<()> {
        if self.header.bucket_keys_off().is_some() {
            let asker = KeyAsker::new(&self.keys, &self.header)?;
            self.vault.own_keys.set_custodian(Arc::new(asker));
        }
        self.vault.own_keys.set_epochs(&self.header);
        Ok(())
    }

    /// Lets go of the keystore, for who only uses files and not for long: master keys are not kept in memory longer than needed, which they are where files
    /// are without a bucket key.
    pub fn into_vault(self) -> (Vault, VaultHome) {
        (self.vault, self.home)
    }

    /// As [`into_vault`](Self::into_vault), with what goes on asking the keystore, or the agent, whether the vault's keys may be used.
    ///
    /// Of files without a bucket key operations do not wait to hear whether they may be used.
    pub fn into_kept_vault(mut self, limits: Limits) -> (Vault, VaultHome, Keeper<KeptKeys>) {
        self.vault.own_keys.defer(limits);
        let reader = HeaderReader::new(&self.keys, &self.header, &self.vault);
        self.vault.taker = reader.map(|reader| Box::new(reader) as Box<dyn EpochTaker>);
        let keys = KeptKeys::new(self.keys, &self.header);
        let keeper = Keeper::new(keys, self.vault.epochs(), limits, alarm::since_boot);
        (self.vault, self.home, keeper)
    }
}

/// What a new vault is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// How contents are laid out.
    pub layout: Layout,
    /// New files get a bucket key. Said in the first header: a vault that an interrupted command leaves is what was asked for.
    pub bucket_key: bool,
}

impl From<Layout> for Form {
    fn from(layout: Layout) -> Self {
        Form {
            layout,
            bucket_key: true,
        }
    }
}

/// A vault that is to be made, in memory.
struct NewVault {
    header: VaultHeader,
    layout: Layout,
    epoch_key: EpochKey,
    names_root: NamesRoot,
}

impl NewVault {
    fn make(
        custodian: &dyn Custodian,
        Form { layout, bucket_key }: Form,
        key: (KeyHandle, ContextPairs),
        now: u64,
    ) -> Result<Self, CreateError> {
        let vault = VaultId(random::bytes());
        let names_root = NamesRoot::new(random::locked_key());
        let (epoch_key, record) =
            make_epoch(custodian, &[key], (vault, Epoch(1)), Some(&names_root), now).map_err(CreateError::Key)?;
        let mut header = VaultHeader::new(vault, now, layout, record);
        if !bucket_key {
            header.set_bucket_keys_off(Some(&BucketKeysOff {
                vault: true,
                ..BucketKeysOff::default()
            }));
        }
        Ok(NewVault {
            header,
            layout,
            epoch_key,
            names_root,
        })
    }

    /// Writes the header, and opens the vault with it.
    fn store(self, path: &Path, dir: Dir, keys: KeySource) -> Result<OpenVault, CreateError> {
        let vault = self.header.vault;
        let mac_key = self.epoch_key.vault_header_mac_key(vault);
        let bytes = self.header.encode(&mac_key).map_err(CreateError::Format)?;
        store(&dir, VAULT_HEADER, &bytes).map_err(|source| {
            take_back(&dir);
            CreateError::Io {
                path: path.join(VAULT_HEADER),
                source,
            }
        })?;
        let epochs = EpochKeys::new(Epoch(1), self.epoch_key.header_wrapping_key(vault));
        Ok(OpenVault {
            home: VaultHome {
                path: path.to_owned(),
                dir,
                header: UnverifiedVaultHeader::decode(&bytes).map_err(CreateError::Format)?,
                keystore: None,
                customer_key: None,
                takes_older_header: false,
            },
            vault: Vault::new(vault, self.layout, epochs, self.names_root),
            header: self.header,
            keys,
            mac_key,
        })
    }
}

/// Opens the directory of a coming vault, making it if need be, locks it, and makes sure that nothing is in it.
fn make_directory(path: &Path) -> Result<Dir, CreateError> {
    let io_error = |source| CreateError::Io {
        path: path.to_owned(),
        source,
    };
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {
            let parent = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            Dir::open(parent).and_then(|parent| parent.sync()).map_err(io_error)?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io_error(error)),
    }
    let dir = Dir::open(path).map_err(io_error)?;
    dir.lock(false).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => CreateError::InUse { path: path.to_owned() },
        _ => io_error(source),
    })?;
    check_empty(&dir, path)?;
    check_devices(&dir, path)?;
    Ok(dir)
}

/// Makes sure that files will be found in the directory of a coming vault.
fn check_devices(dir: &Dir, path: &Path) -> Result<(), CreateError> {
    let path = path.to_owned();
    let probe = name::temporary_file(VAULT_HEADER);
    let made = match dir.create_file(&probe, 0o600) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => is_apart(dir, &probe),
    };
    let _ = dir.unlink(&probe);
    match made {
        Ok(false) => Ok(()),
        Ok(true) => Err(CreateError::FilesApart { path }),
        Err(source) => Err(CreateError::Io { path, source }),
    }
}

/// Tells whether a file is on another device than its directory, as on an overlay of several filesystems: what is on another device is taken for mounted
/// there, and not for the vault's.
fn is_apart(dir: &Dir, file: &str) -> io::Result<bool> {
    Ok(dir.stat(file)?.st_dev != dir.stat_self()?.st_dev)
}

/// Removes what was made of a vault that there will not be: the directory was empty. The header first, for the keystore alone is known to be unfinished.
fn take_back(dir: &Dir) {
    for file in [VAULT_HEADER, KEYSTORE] {
        let _ = dir.unlink(file);
    }
}

/// Makes sure that nothing is in the directory of a coming vault, but what an interrupted write left.
fn check_empty(dir: &Dir, path: &Path) -> Result<(), CreateError> {
    let (mut has_header, mut has_keystore, mut log, mut other) = (false, false, None, None);
    let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    let listed = dir.each_entry(|entry| match name::shape(entry.name) {
        Shape::Dots | Shape::Temporary => {}
        _ if audit::is_coming(entry.name) => {}
        _ if entry.name == VAULT_HEADER.as_bytes() => has_header = true,
        _ if entry.name == KEYSTORE.as_bytes() => has_keystore = true,
        _ if audit::is_log(entry.name) => drop(log.get_or_insert_with(|| text(entry.name))),
        _ => drop(other.get_or_insert_with(|| text(entry.name))),
    });
    let path = path.to_owned();
    match listed {
        Err(source) => Err(CreateError::Io { path, source }),
        Ok(()) if has_header => Err(CreateError::IsVault { path }),
        // Where a keystore is, its log is no surprise.
        Ok(()) => match (other, log) {
            (Some(entry), _) => Err(CreateError::NotEmpty { path, entry }),
            (None, _) if has_keystore => Err(CreateError::Unfinished { path }),
            (None, Some(entry)) => Err(CreateError::NotEmpty { path, entry }),
            (None, None) => Ok(()),
        },
    }
}

/// Replaces one of the vault's two files, durably.
fn store(dir: &Dir, file: &str, bytes: &[u8]) -> io::Result<()> {
    dir.replace(file, &name::temporary_file(file), bytes)
}

/// Makes an epoch: a key of its own, wrapped under each of `keys`, and the names root wrapped under it where it shall open names.
fn make_epoch(
    custodian: &dyn Custodian,
    keys: &[(KeyHandle, ContextPairs)],
    (vault, number): (VaultId, Epoch),
    names_root: Option<&NamesRoot>,
    now: u64,
) -> Result<(EpochKey, EpochRecord), KeyError> {
    let mut wraps = Vec::new();
    let mut epoch_key = None;
    for (key, pairs) in keys {
        let context = epoch_context(vault, number, *key, pairs)?;
        // The first key makes the epoch key, as a data key is made in a cloud; the others wrap the same.
        let blob = match &epoch_key {
            None => {
                let (made, blob) = custodian.generate(key, &context)?;
                epoch_key = Some(made);
                blob
            }
            Some(made) => custodian.wrap(key, &context, made)?,
        };
        wraps.push(EpochWrap {
            custodian: CustodianKind::Local,
            key: key.0,
            context: pairs.clone(),
            blob: blob.into_bytes(),
        });
    }
    let epoch_key = epoch_key.expect("an epoch is made under at least one key");
    let names_root = names_root.map_or(NO_NAMES_ROOT, |names_root| {
        epoch_key
            .names_root_wrapping_key(vault)
            .wrap(&VaultHeader::names_root_purpose(vault, number), names_root.as_bytes())
    });
    let record = EpochRecord {
        number,
        created: now,
        names_root,
        wraps,
    };
    Ok((epoch_key, record))
}

/// Returns the encryption context of an epoch key: vault and epoch as the reader knows them, other pairs as the file has them.
fn epoch_context(
    vault: VaultId,
    epoch: Epoch,
    key: KeyHandle,
    pairs: &[(String, String)],
) -> Result<Context, KeyError> {
    pairs
        .iter()
        .try_fold(Context::for_epoch(vault, epoch), |context, (name, value)| {
            context.with(name, value)
        })
        // Hushfs never writes such pairs, so whoever did has no wrap of ours.
        .map_err(|_| KeyError::Rejected { key: key.0 })
}

/// Makes an epoch of a customer's key.
fn make_customer_epoch(
    customer_key: &CustomerKey,
    key: KeyId,
    (vault, number): (VaultId, Epoch),
    now: u64,
) -> (EpochKey, EpochRecord) {
    let epoch_key = EpochKey::new(random::locked_key());
    let wrapped = customer_key
        .epoch_wrapping_key(vault)
        .wrap(&VaultHeader::customer_purpose(vault, number, key), epoch_key.as_bytes());
    let record = EpochRecord {
        number,
        created: now,
        names_root: NO_NAMES_ROOT,
        wraps: vec![EpochWrap {
            custodian: CustodianKind::Customer,
            key,
            context: Vec::new(),
            blob: wrapped.0.to_vec(),
        }],
    };
    (epoch_key, record)
}

/// Finds the epoch of new files of the key that a customer has brought.
fn customer_epoch(header: &VaultHeader, epochs: &EpochKeys) -> Result<Epoch, OpenError> {
    let customers = header
        .chains
        .iter()
        .filter(|chain| header.custodian(chain) == CustodianKind::Customer);
    let mut known = customers.map(|chain| chain.current()).peekable();
    if known.peek().is_none() {
        return Err(OpenError::NoCustomerKeys);
    }
    known
        .find(|&epoch| epochs.check(epoch).is_ok())
        .ok_or(OpenError::WrongCustomerKey)
}

/// Authenticates a header by the key of its current epoch and the one that follows from it, and opens what names are sealed under.
fn authenticate(
    header: &UnverifiedVaultHeader,
    key: &EpochKey,
    mac_key: &MacKey,
) -> Result<(VaultHeader, NamesRoot), FormatError> {
    let header = header.clone().verify(mac_key)?;
    let names_root = unwrap_names_root(&header, key)?;
    Ok((header, names_root))
}

fn unwrap_names_root(header: &VaultHeader, key: &EpochKey) -> Result<NamesRoot, FormatError> {
    let record = header.current_epoch();
    let purpose = VaultHeader::names_root_purpose(header.vault, header.current);
    let wrapping_key: WrappingKey = key.names_root_wrapping_key(header.vault);
    wrapping_key
        .unwrap(&purpose, &record.names_root, |bytes| {
            NamesRoot::new(LockedKey::copy_of(bytes))
        })
        .map_err(|_| FormatError::NotAuthentic)
}
