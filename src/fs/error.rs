//! What can go wrong in an operation, and the one place where an errno is chosen for it.

use std::{fmt, io, sync::Arc};

use crate::{
    keystore::KeyError,
    vault::{VaultError, content::ContentError, own_keys::Ask},
};

/// Why an operation failed.
#[derive(Debug)]
pub enum FsError {
    /// The backing filesystem said so.
    Io(io::Error),
    /// Something in the vault cannot be used. Carries the entry's path on disk, for the log.
    Vault {
        /// What is wrong.
        source: VaultError,
        /// The path in the backing directory.
        disk_path: String,
    },
    /// There is no such entry.
    NotFound,
    /// There is one already.
    Exists,
    /// The directory holds entries.
    NotEmpty,
    /// The name is longer than 255 bytes, or the target longer than 4095.
    NameTooLong,
    /// The vault is mounted for reading only.
    ReadOnly,
    /// Not possible on this kind of file, or not at all.
    NotSupported,
    /// The arguments make no sense.
    Invalid,
    /// Not a directory.
    NotDirectory,
    /// A directory.
    IsDirectory,
    /// There is no such attribute.
    NoAttribute,
    /// The offset is behind the end of the file.
    NoSuchOffset,
    /// The kernel asks for an inode that is gone.
    Stale,
}

impl FsError {
    /// Returns the errno that applications see.
    pub fn errno(&self) -> i32 {
        match self {
            FsError::Io(error) => error.raw_os_error().unwrap_or(libc::EIO),
            FsError::Vault { source, .. } => vault_errno(source),
            FsError::NotFound => libc::ENOENT,
            FsError::Exists => libc::EEXIST,
            FsError::NotEmpty => libc::ENOTEMPTY,
            FsError::NameTooLong => libc::ENAMETOOLONG,
            FsError::ReadOnly => libc::EROFS,
            FsError::NotSupported => libc::EOPNOTSUPP,
            FsError::Invalid => libc::EINVAL,
            FsError::NotDirectory => libc::ENOTDIR,
            FsError::IsDirectory => libc::EISDIR,
            FsError::NoAttribute => libc::ENODATA,
            FsError::NoSuchOffset => libc::ENXIO,
            FsError::Stale => libc::ESTALE,
        }
    }

    /// Returns why a key could not be used, where that is what is wrong.
    pub fn key_error(&self) -> Option<&KeyError> {
        match self {
            FsError::Vault {
                source: VaultError::EpochKey(_, error),
                ..
            } => Some(error),
            _ => None,
        }
    }

    /// Returns what is to be asked before the operation is done again, where that is what is wrong. Nothing was changed then.
    pub fn key_needed(&self) -> Option<&Arc<Ask>> {
        match self {
            FsError::Vault {
                source: VaultError::KeyNeeded(ask),
                ..
            } => Some(ask),
            _ => None,
        }
    }

    /// Tells whether the vault itself is at fault: worth a line in the log, unlike what applications cause, and that a key may not be used, which was said
    /// once for all files.
    pub fn is_damage(&self) -> bool {
        matches!(self, FsError::Vault { .. } if !matches!(self.errno(), libc::EFBIG | libc::EROFS))
            && self.key_error().is_none()
    }
}

/// Tampered and damaged data are EIO, and so never look like data; a key that is not at hand is ENOKEY.
fn vault_errno(error: &VaultError) -> i32 {
    match error {
        VaultError::Io(error) => error.raw_os_error().unwrap_or(libc::EIO),
        VaultError::EpochMissing(_) | VaultError::EpochRetired(_) => libc::ENOKEY,
        VaultError::EpochKey(_, error) => key_errno(error),
        // Who serves requests asks and has the operation done again, so that nobody sees this.
        VaultError::KeyNeeded(_) => libc::ETIMEDOUT,
        VaultError::Content(ContentError::Io(error)) => error.raw_os_error().unwrap_or(libc::EIO),
        VaultError::Content(ContentError::TooLarge) => libc::EFBIG,
        VaultError::Content(ContentError::ReadOnly) => libc::EROFS,
        VaultError::Content(
            ContentError::Damaged(_)
            | ContentError::Preamble(_)
            | ContentError::WrongFile
            | ContentError::WrongSize { .. }
            | ContentError::Misplaced
            | ContentError::WrongSum,
        )
        | VaultError::HeaderMissing(_)
        | VaultError::HeaderDamaged(..)
        | VaultError::HeaderMisplaced(_)
        | VaultError::DirectoryDamaged(_)
        | VaultError::DirectoryMisplaced
        | VaultError::NameDamaged(_)
        | VaultError::LinkDamaged(_)
        | VaultError::XattrDamaged(_)
        | VaultError::RolledBack(_) => libc::EIO,
    }
}

/// What a key server or an administrator has decided is told from damage, so that a user knows whom to ask.
fn key_errno(error: &KeyError) -> i32 {
    match error {
        KeyError::NotFound { .. }
        | KeyError::NoProvider { .. }
        | KeyError::Unsupported { .. }
        | KeyError::NotBrought { .. } => libc::ENOKEY,
        KeyError::Disabled { .. } => libc::EKEYREVOKED,
        KeyError::PendingDeletion { .. } => libc::EKEYEXPIRED,
        KeyError::Unavailable { .. } => libc::ETIMEDOUT,
        KeyError::AccessDenied { .. } | KeyError::Denied { .. } => libc::EACCES,
        KeyError::Limit { .. } => libc::ENOSPC,
        KeyError::Rejected { .. } | KeyError::IncorrectKey { .. } | KeyError::Commitment { .. } => libc::EIO,
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FsError::Vault { source, disk_path } => write!(f, "{disk_path:?}: {source}"),
            FsError::Io(error) => error.fmt(f),
            other => io::Error::from_raw_os_error(other.errno()).fmt(f),
        }
    }
}

impl std::error::Error for FsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            FsError::Io(error) => Some(error),
            FsError::Vault { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<io::Error> for FsError {
    fn from(error: io::Error) -> Self {
        FsError::Io(error)
    }
}

impl From<rustix::io::Errno> for FsError {
    fn from(error: rustix::io::Errno) -> Self {
        FsError::Io(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, KeyId};

    #[test]
    fn why_a_key_cannot_be_used_is_told_by_the_errno() {
        let (key, provider) = (KeyId([1; 16]), "test");
        for (error, errno) in [
            (KeyError::NotFound { key }, libc::ENOKEY),
            (KeyError::NoProvider { key, provider }, libc::ENOKEY),
            (KeyError::Disabled { key }, libc::EKEYREVOKED),
            (KeyError::PendingDeletion { key }, libc::EKEYEXPIRED),
            (KeyError::Unavailable { key, provider }, libc::ETIMEDOUT),
            (KeyError::AccessDenied { key, provider }, libc::EACCES),
            (KeyError::NotBrought { key }, libc::ENOKEY),
            (KeyError::Rejected { key }, libc::EIO),
            (KeyError::IncorrectKey { key }, libc::EIO),
            (KeyError::Commitment { key }, libc::EIO),
        ] {
            let failed = FsError::Vault {
                source: VaultError::EpochKey(Epoch(1), error),
                disk_path: String::new(),
            };
            assert_eq!((failed.errno(), failed.key_error()), (errno, Some(&error)), "{error}");
        }
    }
}
