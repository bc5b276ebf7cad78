//! A vault's directory as a whole: made, entered and locked, opened, its keys changed.
//!
//! `vault.hush` and `keystore.hush` are read and written here and nowhere else (docs/FORMAT.md sections 3 and 4). Both are
//! replaced as a whole and durably, so what a crash leaves is always one version of each; `change` says why every pair of versions that
//! can come about opens.

mod change;
mod error;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

pub use self::{
    change::ChangeError,
    error::{CreateError, OpenError},
};
use super::{EpochKeys, Vault};
use crate::{
    backing::{Dir, RawEntry},
    crypto::{
        keys::{EpochKey, MacKey, NamesRoot, WrappingKey},
        locked::LockedKey,
        random,
    },
    format::{
        FormatError,
        keystore::{BODY_SIZE_MAX, Slot, SlotId, UnverifiedKeystoreFile},
        layout::Layout,
        name::{self, KEYSTORE, Shape, VAULT_HEADER},
        vault::{CustodianKind, EpochRecord, EpochWrap, UnverifiedVaultHeader, VAULT_HEADER_MAX, VaultHeader},
    },
    ids::{Epoch, VaultId},
    keystore::{
        Context, Custodian, KeyError, KeyHandle, LocalKeystore, SlotChoice, Unlock, WrappedKey, local::DEFAULT_ALIAS,
    },
};

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

/// A vault's directory, locked, with its two files as they were read under the lock. Nothing in them is to be believed yet.
#[derive(Debug)]
pub struct VaultHome {
    path: PathBuf,
    dir: Dir,
    header: UnverifiedVaultHeader,
    keystore: Vec<u8>,
}

/// A vault whose keys are open, and what changes them.
#[derive(Debug)]
pub struct OpenVault {
    /// The directory; its lock lasts as long as this.
    pub home: VaultHome,
    /// The vault.
    pub vault: Vault,
    /// The slot that opened the keystore.
    pub slot: SlotId,
    header: VaultHeader,
    keystore: LocalKeystore,
    /// The key of the MAC of `vault.hush`: it is the current epoch's.
    mac_key: MacKey,
}

impl VaultHome {
    /// Makes a vault in a directory that is empty or not there yet, with a keystore that was just made, and locks it.
    ///
    /// The keystore is written first. A crash between the two files leaves a directory with a keystore only, which the next call
    /// refuses as [`CreateError::Unfinished`]: it may as well be the keystore of a vault whose header was lost, and is not ours to replace.
    ///
    /// # Errors
    ///
    /// The [`CreateError`] that says what is in the way; nothing was written then, or what was is named.
    pub fn create(
        path: &Path,
        layout: Layout,
        mut keystore: LocalKeystore,
        now: u64,
    ) -> Result<OpenVault, CreateError> {
        let dir = make_directory(path)?;
        let io_error = |file: &'static str| {
            let path = path.join(file);
            move |source| CreateError::Io { path, source }
        };
        let vault = VaultId(random::bytes());
        let key = keystore.key_of_alias(DEFAULT_ALIAS).ok_or(CreateError::NoDefaultKey)?;
        let names_root = NamesRoot::new(random::locked_key());
        let (epoch_key, record) = make_epoch(&keystore, &[(key, Vec::new())], (vault, Epoch(1)), &names_root, now)
            .map_err(CreateError::Key)?;
        let header = VaultHeader::new(vault, now, layout, record);
        keystore
            .raise_epoch_floor(vault, Epoch(1))
            .map_err(CreateError::Keystore)?;
        let mac_key = epoch_key.vault_header_mac_key(vault);
        let header_bytes = header.encode(&mac_key).map_err(CreateError::Format)?;
        let keystore_bytes = keystore.encode(now).map_err(CreateError::Format)?;
        store(&dir, KEYSTORE, &keystore_bytes).map_err(io_error(KEYSTORE))?;
        store(&dir, VAULT_HEADER, &header_bytes).map_err(io_error(VAULT_HEADER))?;

        let slot = keystore.slots()[0].id;
        let keys = BTreeMap::from([(Epoch(1), epoch_key.header_wrapping_key(vault))]);
        Ok(OpenVault {
            home: VaultHome {
                path: path.to_owned(),
                dir,
                header: UnverifiedVaultHeader::decode(&header_bytes).map_err(CreateError::Format)?,
                keystore: keystore_bytes,
            },
            vault: Vault::new(vault, layout, EpochKeys::new(keys, Epoch(1)), names_root),
            slot,
            header,
            keystore,
            mac_key,
        })
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

    /// Enters a vault's directory: locks it and reads its files.
    ///
    /// # Errors
    ///
    /// Everything that can be told without a secret, so that nobody is asked for one in vain.
    pub fn enter(path: &Path, lock: Lock) -> Result<Self, OpenError> {
        let io_error = |path: PathBuf| move |source| OpenError::Io { path, source };
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
        let read = |file: &'static str, max| match dir.read_small(file, max) {
            Err(error) if error.raw_os_error() == Some(libc::EFBIG) => Err(OpenError::Damaged {
                file,
                error: FormatError::TrailingBytes,
            }),
            other => other.map_err(io_error(path.join(file))),
        };
        let header = read(VAULT_HEADER, VAULT_HEADER_MAX)?;
        let keystore = read(KEYSTORE, KEYSTORE_SIZE_MAX)?;
        let path = path.to_owned();
        let (header, keystore) = match (header, keystore) {
            (Some(header), Some(keystore)) => (header, keystore),
            (Some(_), None) => return Err(OpenError::KeystoreMissing { path }),
            (None, Some(_)) => return Err(OpenError::HeaderMissing { path }),
            (None, None) => return Err(OpenError::NotAVault { path }),
        };
        let header = UnverifiedVaultHeader::decode(&header).map_err(error::in_file(VAULT_HEADER))?;
        UnverifiedKeystoreFile::decode(&keystore).map_err(error::in_file(KEYSTORE))?;
        Ok(VaultHome {
            path,
            dir,
            header,
            keystore,
        })
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

    /// Returns what the vault header says. Whoever can write to the vault can make it say anything.
    pub fn claims(&self) -> &VaultHeader {
        self.header.claims()
    }

    /// Returns the slots that the keystore says it has; as little to be believed.
    pub fn claimed_slots(&self) -> Vec<Slot> {
        UnverifiedKeystoreFile::decode(&self.keystore).map_or_else(|_| Vec::new(), |file| file.slots().to_vec())
    }

    /// Opens the keystore, and with it the vault.
    ///
    /// An older epoch whose key does not open is left out with a warning: its files are lost until the key is back, the others are not.
    ///
    /// # Errors
    ///
    /// The [`OpenError`] that says why not.
    pub fn open(self, unlock: &Unlock, choice: &SlotChoice) -> Result<OpenVault, OpenError> {
        let (keystore, slot) = LocalKeystore::unlock(&self.keystore, unlock, choice).map_err(error::of_unlock)?;
        // The one field used before the MAC is checked is the current epoch, and with it the wraps of its key.
        let claims = self.header.claims();
        let vault = claims.vault;
        let current = claims
            .epoch(claims.current)
            .expect("a header without its current epoch does not decode");
        let key = unwrap_epoch(&keystore, vault, current).map_err(OpenError::Key)?;
        let mac_key = key.vault_header_mac_key(vault);
        let header = self
            .header
            .clone()
            .verify(&mac_key)
            .map_err(error::in_file(VAULT_HEADER))?;
        if let Some(lowest) = keystore.epoch_floor(vault)
            && header.current < lowest
        {
            return Err(OpenError::RolledBack {
                current: header.current,
                lowest,
            });
        }
        let layout = header.layout().map_err(error::in_file(VAULT_HEADER))?;
        let names_root = unwrap_names_root(&header, &key)?;
        let mut keys = BTreeMap::from([(header.current, key.header_wrapping_key(vault))]);
        for epoch in header.epochs.iter().filter(|epoch| epoch.number != header.current) {
            match unwrap_epoch(&keystore, vault, epoch) {
                Ok(key) => drop(keys.insert(epoch.number, key.header_wrapping_key(vault))),
                Err(error) => log::warn!("epoch {} is left out, its files do not open: {error}", epoch.number),
            }
        }
        Ok(OpenVault {
            vault: Vault::new(vault, layout, EpochKeys::new(keys, header.current), names_root),
            home: self,
            slot,
            header,
            keystore,
            mac_key,
        })
    }
}

impl OpenVault {
    /// Returns the vault header, which is authentic.
    pub fn header(&self) -> &VaultHeader {
        &self.header
    }

    /// Returns the keystore.
    pub fn keystore(&self) -> &LocalKeystore {
        &self.keystore
    }

    /// Lets go of the keystore, for who only uses files: master keys are not kept in memory longer than needed.
    pub fn into_vault(self) -> (Vault, VaultHome) {
        (self.vault, self.home)
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
    Ok(dir)
}

/// Makes sure that nothing is in the directory of a coming vault, but what an interrupted write left.
fn check_empty(dir: &Dir, path: &Path) -> Result<(), CreateError> {
    let entries = dir.entries().map_err(|source| CreateError::Io {
        path: path.to_owned(),
        source,
    })?;
    let has = |file: &str| entries.iter().any(|entry| entry.name == file.as_bytes());
    if has(VAULT_HEADER) {
        return Err(CreateError::IsVault { path: path.to_owned() });
    }
    let others = |entry: &&RawEntry| {
        entry.name != KEYSTORE.as_bytes() && !matches!(name::shape(&entry.name), Shape::Dots | Shape::Temporary)
    };
    if let Some(entry) = entries.iter().find(others) {
        return Err(CreateError::NotEmpty {
            path: path.to_owned(),
            entry: String::from_utf8_lossy(&entry.name).into_owned(),
        });
    }
    if has(KEYSTORE) {
        return Err(CreateError::Unfinished { path: path.to_owned() });
    }
    Ok(())
}

/// Replaces one of the vault's two files, durably.
fn store(dir: &Dir, file: &str, bytes: &[u8]) -> io::Result<()> {
    dir.replace(file, &name::temporary_file(file), bytes)
}

/// Makes an epoch: a key of its own, wrapped under each of `keys`, and the names root wrapped under it.
fn make_epoch(
    keystore: &LocalKeystore,
    keys: &[(KeyHandle, Vec<(String, String)>)],
    (vault, number): (VaultId, Epoch),
    names_root: &NamesRoot,
    now: u64,
) -> Result<(EpochKey, EpochRecord), KeyError> {
    let epoch_key = EpochKey::new(random::locked_key());
    let wraps = keys
        .iter()
        .map(|(key, pairs)| {
            let context = epoch_context(vault, number, *key, pairs)?;
            Ok(EpochWrap {
                custodian: CustodianKind::Local,
                key: key.0,
                context: pairs.clone(),
                blob: keystore.wrap(key, &context, &epoch_key)?.into_bytes(),
            })
        })
        .collect::<Result<Vec<_>, KeyError>>()?;
    let names_root = epoch_key
        .names_root_wrapping_key(vault)
        .wrap(&VaultHeader::names_root_purpose(vault, number), names_root.as_bytes());
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

/// Opens an epoch's key by whichever of its wraps opens.
fn unwrap_epoch(keystore: &LocalKeystore, vault: VaultId, epoch: &EpochRecord) -> Result<EpochKey, KeyError> {
    let mut first_error = None;
    for wrap in &epoch.wraps {
        let CustodianKind::Local = wrap.custodian;
        let key = KeyHandle(wrap.key);
        let opened = epoch_context(vault, epoch.number, key, &wrap.context).and_then(|context| {
            let blob = WrappedKey::new(wrap.blob.clone()).map_err(|_| KeyError::Rejected { key: key.0 })?;
            keystore.unwrap(&key, &context, &blob)
        });
        match opened {
            Ok(key) => return Ok(key),
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    Err(first_error.expect("an epoch without wraps does not decode"))
}

fn unwrap_names_root(header: &VaultHeader, key: &EpochKey) -> Result<NamesRoot, OpenError> {
    let record = header
        .epoch(header.current)
        .expect("checked when the header was decoded");
    let purpose = VaultHeader::names_root_purpose(header.vault, header.current);
    let wrapping_key: WrappingKey = key.names_root_wrapping_key(header.vault);
    wrapping_key
        .unwrap(&purpose, &record.names_root, |bytes| {
            NamesRoot::new(LockedKey::copy_of(bytes))
        })
        .map_err(|_| error::in_file(VAULT_HEADER)(FormatError::NotAuthentic))
}
