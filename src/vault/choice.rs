//! Which key a file has and which one a new file gets: docs/FORMAT.md section 3.1.
//!
//! A key in a vault is a chain of epochs, and a file has the key whose epoch its header names. What is here follows from the vault
//! header and is known when the vault is open: no operation on a file asks the disk for it.

use std::collections::{BTreeMap, HashMap};

use crate::{
    format::vault::{DirectoryKey, VaultHeader},
    ids::{DirectoryId, Epoch},
};

/// The key that a file has or gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyOfFile {
    /// An epoch of the key.
    pub epoch: Epoch,
    /// The epoch's key wraps the file's. Otherwise whoever has the key wraps a secret of the file's own, and is asked for each file.
    pub bucket_key: bool,
}

impl KeyOfFile {
    /// Makes that of a file whose key the epoch's wraps.
    pub fn of_epoch(epoch: Epoch) -> Self {
        KeyOfFile {
            epoch,
            bucket_key: true,
        }
    }
}

/// The keys of a vault beside its own, as far as files need them.
#[derive(Debug, Default)]
pub struct KeyChoice {
    /// For every epoch of such a key, the one that new files of the key use.
    newest: BTreeMap<Epoch, Epoch>,
    /// The key of new files in directories that have one of their own.
    directories: HashMap<DirectoryId, KeyOfFile>,
    /// New files of the vault's own key get no bucket key.
    off: bool,
    /// The epoch of all new files, where a customer has brought a key.
    customer: Option<Epoch>,
}

impl KeyChoice {
    /// Reads the choices from a vault header; `customer` is the epoch of the key that a customer has brought.
    pub fn new(header: &VaultHeader, customer: Option<Epoch>) -> Self {
        let chains = header.chains.iter();
        let off = header.bucket_keys_off().unwrap_or_default();
        let of_directory = |of: &DirectoryKey| {
            let key = KeyOfFile {
                epoch: header.chain(of.key)?.current(),
                bucket_key: !off.directories.contains(&of.directory),
            };
            Some((of.directory, key))
        };
        KeyChoice {
            newest: chains
                .flat_map(|chain| chain.epochs.iter().map(|&epoch| (epoch, chain.current())))
                .collect(),
            directories: header.directories.iter().filter_map(of_directory).collect(),
            off: off.vault,
            customer,
        }
    }

    /// Returns the epoch of all new files, where a customer has brought a key.
    pub fn customer(&self) -> Option<Epoch> {
        self.customer
    }

    /// Tells whether it matters where a new file lies.
    pub fn is_by_directory(&self) -> bool {
        self.customer.is_none() && !self.directories.is_empty()
    }

    /// Tells whether new files of the vault's own key get a bucket key.
    pub fn has_bucket_key(&self) -> bool {
        !self.off
    }

    /// Returns the key of new files in a directory that has one of its own.
    pub fn of_directory(&self, directory: DirectoryId) -> Option<KeyOfFile> {
        self.directories.get(&directory).copied()
    }

    /// Returns the directories that have a key of their own.
    pub fn directories(&self) -> impl Iterator<Item = DirectoryId> {
        self.directories.keys().copied()
    }

    /// Returns the epoch that new files of an epoch's key use; nothing for an epoch of the vault's own key.
    pub fn newest_like(&self, epoch: Epoch) -> Option<Epoch> {
        self.newest.get(&epoch).copied()
    }
}
