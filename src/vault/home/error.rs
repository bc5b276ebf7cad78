//! Why a vault cannot be made or opened.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use super::{AuditError, ChangeError, audit::REFUSED};
use crate::{
    format::{
        FormatError,
        name::{KEYSTORE, VAULT_HEADER},
    },
    ids::{Epoch, VaultId},
    keystore::{KeyError, KeystoreError, UnlockError},
};

/// What is to be done where files are on other devices than their directories.
const FILES_APART: &str = "files there are on another device than their directory, as on an overlay of several filesystems: put the vault in a directory of one filesystem, as a volume is";

/// Why a vault does not open.
#[derive(Debug)]
pub enum OpenError {
    /// There is no such directory.
    NoDirectory { path: PathBuf },
    /// The directory has neither vault header nor keystore.
    NotAVault { path: PathBuf },
    /// The directory has a keystore, but no vault header: it was lost, or the vault never finished.
    HeaderMissing { path: PathBuf },
    /// The directory has a vault header, but no keystore.
    KeystoreMissing { path: PathBuf },
    /// There is no keystore in this directory.
    NoKeystore { path: PathBuf },
    /// The keystore that was named as one of its own lies in a vault, whose lock guards it.
    KeystoreOfVault { path: PathBuf },
    /// Another process uses the vault.
    InUse { path: PathBuf },
    /// A crash has left a journal, which others who read the vault keep from being applied.
    JournalInUse { path: PathBuf },
    /// Files are on other devices than their directories.
    FilesApart { path: PathBuf },
    /// A file was made by a newer version: its format version, or none when it is a feature.
    Newer { path: PathBuf, version: Option<u16> },
    /// A file does not decode or authenticate.
    Damaged { path: PathBuf, error: FormatError },
    /// The keystore does not open.
    Unlock(UnlockError),
    /// The key of the current epoch does not open.
    Key(KeyError),
    /// The key that a customer has brought is none of the vault's.
    WrongCustomerKey,
    /// A customer has brought a key, and the vault takes none.
    NoCustomerKeys,
    /// The vault header is older than one that the keystore has seen.
    RolledBack {
        /// The current epoch of the header.
        current: Epoch,
        /// The lowest one it may have.
        lowest: Epoch,
    },
    /// The vault has another names root than the one with this id that the keystore knows.
    OtherVault { vault: VaultId },
    /// The keystore does not know the vault, and has last seen another in its place.
    InPlaceOf {
        path: PathBuf,
        vault: VaultId,
        known: VaultId,
    },
    /// The use of the keys cannot be recorded.
    Audit(AuditError),
    /// A file or the directory cannot be read.
    Io { path: PathBuf, source: io::Error },
}

impl From<AuditError> for OpenError {
    fn from(error: AuditError) -> Self {
        OpenError::Audit(error)
    }
}

/// Says of a [`FormatError`] which file of which directory it is about; versions are told from damage.
pub(super) fn in_file(dir: &Path, file: &str) -> impl Fn(FormatError) -> OpenError {
    let path = dir.join(file);
    move |error| match error {
        FormatError::Newer(version) => OpenError::Newer {
            path: path.clone(),
            version: Some(version),
        },
        FormatError::UnknownFeature => OpenError::Newer {
            path: path.clone(),
            version: None,
        },
        error => OpenError::Damaged {
            path: path.clone(),
            error,
        },
    }
}

/// Says of an [`UnlockError`] where the keystore lies, if it is about its file.
pub(super) fn of_unlock(dir: &Path) -> impl Fn(UnlockError) -> OpenError {
    let in_keystore = in_file(dir, KEYSTORE);
    move |error| match error {
        UnlockError::Format(error) => in_keystore(error),
        error => OpenError::Unlock(error),
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::NoDirectory { path } => write!(f, "{}: no such directory", path.display()),
            OpenError::NotAVault { path } => write!(
                f,
                "{}: not a vault (no {VAULT_HEADER} in it): make one with `hushfs init`",
                path.display()
            ),
            OpenError::HeaderMissing { path } => write!(
                f,
                "{}: {VAULT_HEADER} is missing: wait for the sync tool to finish, or put it back from a backup; if `hushfs init` was interrupted here, remove {KEYSTORE} and run it again",
                path.display()
            ),
            OpenError::KeystoreMissing { path } => write!(
                f,
                "{}: no {KEYSTORE} in it: name the keystore with --keystore, wait for the sync tool to finish, or put it back from a backup",
                path.display()
            ),
            OpenError::NoKeystore { path } => write!(
                f,
                "{}: no keystore ({KEYSTORE}) there: name a vault or --keystore, or make one with `hushfs keystore init`",
                path.display()
            ),
            OpenError::KeystoreOfVault { path } => write!(
                f,
                "{}: is a vault: --keystore names a keystore outside vaults, and without it a vault's own one is used",
                path.display()
            ),
            OpenError::InUse { path } => write!(
                f,
                "{}: vault is in use by another hushfs (mounted?): unmount it or wait",
                path.display()
            ),
            OpenError::JournalInUse { path } => write!(
                f,
                "{}: a crash has left changes in its journal, which cannot be written to its files while others read the vault: wait until they end",
                path.display()
            ),
            OpenError::FilesApart { path } => write!(f, "{}: {FILES_APART}", path.display()),
            OpenError::Newer {
                path,
                version: Some(version),
            } => write!(
                f,
                "{}: {}: use a newer hushfs",
                path.display(),
                FormatError::Newer(*version)
            ),
            OpenError::Newer { path, version: None } => {
                write!(
                    f,
                    "{}: {}: use a newer one",
                    path.display(),
                    FormatError::UnknownFeature
                )
            }
            OpenError::Damaged { path, error } => write!(
                f,
                "{}: {error}: put it back from a backup or the sync tool's history",
                path.display()
            ),
            OpenError::Unlock(error) => error.fmt(f),
            OpenError::Key(KeyError::Rejected { .. }) => write!(
                f,
                "{VAULT_HEADER} and {KEYSTORE} do not belong together: one is older or of another vault; wait for the sync tool to finish, or put both back from the same backup"
            ),
            OpenError::Key(KeyError::NotFound { key }) => write!(
                f,
                "the vault's key {key} is not in this keystore: it was deleted, another keystore is meant (--keystore), or {VAULT_HEADER} is damaged"
            ),
            OpenError::Key(error) => write!(f, "the vault's key cannot be used: {error}"),
            OpenError::WrongCustomerKey => {
                f.write_str("wrong customer key: `hushfs vault encryption show` lists those that the vault takes")
            }
            OpenError::NoCustomerKeys => {
                f.write_str("the vault takes no customer keys: `hushfs vault customer-key add` allows one")
            }
            OpenError::RolledBack { current, lowest } => write!(
                f,
                "{VAULT_HEADER}: an old one was put back (epoch {current}, the keystore has seen {lowest}): wait for the sync tool to finish, or put the newest one back; a backup that is to be written to needs `hushfs vault rotate --accept-older-header` first, reading does not"
            ),
            OpenError::OtherVault { vault } => write!(
                f,
                "{VAULT_HEADER}: not that of the vault {vault} which the keystore knows: someone who may have data keys made has put one of their own in its place; put the newest one back from a backup, and look who may write to the vault"
            ),
            OpenError::InPlaceOf { path, vault, known } => write!(
                f,
                "{}: the keystore does not know the vault {vault}, and has last seen vault {known} here: someone may have put one of their own in its place; if it is yours, use it under another path once",
                path.display()
            ),
            OpenError::Audit(error) => write!(f, "{REFUSED}: {error}"),
            OpenError::Io { path, source } => write!(f, "{}: {source}", path.display()),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::Damaged { error, .. } => Some(error),
            OpenError::Unlock(error) => Some(error),
            OpenError::Key(error) => Some(error),
            OpenError::Audit(error) => Some(error),
            OpenError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Why a vault cannot be made.
#[derive(Debug)]
pub enum CreateError {
    /// There is a vault already.
    IsVault { path: PathBuf },
    /// The directory holds something.
    NotEmpty { path: PathBuf, entry: String },
    /// There is a keystore already.
    IsKeystore { path: PathBuf },
    /// The directory holds a keystore and nothing else: what an interrupted call leaves, or all that is left of a vault.
    Unfinished { path: PathBuf },
    /// Another process is making a vault there.
    InUse { path: PathBuf },
    /// Files are on other devices than their directories.
    FilesApart { path: PathBuf },
    /// The keystore has no key under the default alias.
    NoDefaultKey,
    /// The key of the first epoch could not be wrapped.
    Key(KeyError),
    /// The keystore could not take the vault.
    Keystore(KeystoreError),
    /// The vault was made, but its keystore has no record of it yet.
    Record(ChangeError),
    /// The use of the key cannot be recorded.
    Audit(AuditError),
    /// The keystore cannot be stored with its log.
    Log(ChangeError),
    /// A limit of the format.
    Format(FormatError),
    /// The directory cannot be made, or a file not written.
    Io { path: PathBuf, source: io::Error },
}

impl From<AuditError> for CreateError {
    fn from(error: AuditError) -> Self {
        CreateError::Audit(error)
    }
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CreateError::IsVault { path } => write!(f, "{}: is a vault already", path.display()),
            CreateError::IsKeystore { path } => write!(f, "{}: is a keystore already", path.display()),
            CreateError::NotEmpty { path, entry } => write!(
                f,
                "{}: directory is not empty ({entry:?} is in it): name an empty or a new one",
                path.display()
            ),
            CreateError::Unfinished { path } => write!(
                f,
                "{}: holds a {KEYSTORE} and nothing else: if `hushfs init` was interrupted here, remove it and run init again; it may be what is left of a vault",
                path.display()
            ),
            CreateError::InUse { path } => write!(
                f,
                "{}: in use by another hushfs: wait for it, or name another directory",
                path.display()
            ),
            CreateError::FilesApart { path } => write!(f, "{}: {FILES_APART}", path.display()),
            CreateError::NoDefaultKey => f.write_str("the keystore has no default key"),
            CreateError::Key(error) => error.fmt(f),
            CreateError::Keystore(error) => error.fmt(f),
            CreateError::Audit(error) => write!(f, "{REFUSED}: {error}"),
            CreateError::Record(error) => write!(f, "the vault was made, but: {error}"),
            CreateError::Log(error) => error.fmt(f),
            CreateError::Format(error) => error.fmt(f),
            CreateError::Io { path, source } => write!(f, "{}: {source}", path.display()),
        }
    }
}

impl std::error::Error for CreateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CreateError::Key(error) => Some(error),
            CreateError::Keystore(error) => Some(error),
            CreateError::Record(error) | CreateError::Log(error) => Some(error),
            CreateError::Audit(error) => Some(error),
            CreateError::Format(error) => Some(error),
            CreateError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
