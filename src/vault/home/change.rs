//! Changes of a vault's keys: slots come and go, epochs are added and retired.
//!
//! A change that shuts someone out takes three writes, each durable before the next:
//!
//! 1. `keystore.hush` with the new material (and, when a slot went, under a new root);
//! 2. `vault.hush` with a new epoch, wrapped under that material, as the current one;
//! 3. `keystore.hush` with the vault's lowest epoch raised.
//!
//! What a crash leaves:
//!
//! - before 1: the old pair; nothing happened.
//! - between 1 and 2: the new keystore and the old header. A keystore keeps every material it ever had, so it opens the old epochs, with the
//!   slots that stay. But new files still use an epoch that whoever was shut out may know.
//! - between 2 and 3: the new pair, without the floor: an old header could be put back.
//!
//! The other order, header first, could leave a header whose current epoch no stored keystore opens. Both states in between are
//! recognized and completed by [`OpenVault::finish`], which every command that may write calls right after opening. So running the
//! command again, or any other, completes what was begun.

use std::{collections::BTreeSet, fmt, io};

use super::{KEYSTORE, OpenVault, VAULT_HEADER, make_epoch, store};
use crate::{
    format::{FormatError, keystore::SlotId, vault::EPOCHS_MAX},
    ids::Epoch,
    keystore::{KeyHandle, KeystoreError, NewSecret, WrappedKey},
};

/// Why a change of a vault's keys failed. The vault in memory is not to be used further: open it again.
#[derive(Debug)]
pub enum ChangeError {
    /// The keystore does not allow it.
    Keystore(KeystoreError),
    /// The vault has as many epochs as it may.
    TooManyEpochs,
    /// A file has outgrown its limit.
    Format { file: &'static str, error: FormatError },
    /// A file could not be replaced; the old version stands.
    Io { file: &'static str, source: io::Error },
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChangeError::Keystore(error) => error.fmt(f),
            ChangeError::TooManyEpochs => write!(
                f,
                "the vault has {EPOCHS_MAX} epochs: retire old ones with `hushfs rewrap --retire` first"
            ),
            ChangeError::Format { file, error } => write!(f, "{file}: {error}"),
            ChangeError::Io { file, source } => write!(f, "{file}: {source}"),
        }
    }
}

impl std::error::Error for ChangeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ChangeError::Keystore(error) => Some(error),
            ChangeError::Format { error, .. } => Some(error),
            ChangeError::Io { source, .. } => Some(source),
            ChangeError::TooManyEpochs => None,
        }
    }
}

impl<E: Into<KeystoreError>> From<E> for ChangeError {
    fn from(error: E) -> Self {
        ChangeError::Keystore(error.into())
    }
}

impl OpenVault {
    /// Adds a slot.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn add_slot(&mut self, label: &str, secret: &NewSecret<'_>, now: u64) -> Result<SlotId, ChangeError> {
        let slot = self.keystore.add_slot(label, secret, now)?;
        self.store_keystore(now)?;
        Ok(slot)
    }

    /// Removes a slot and shuts out who holds its secret; returns the epoch that new files use from now on.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn remove_slot(&mut self, slot: SlotId, now: u64) -> Result<Epoch, ChangeError> {
        self.check_room()?;
        let _every_key_has_a_new_material = self.keystore.remove_slot(slot, now)?;
        self.store_keystore(now)?;
        self.advance(now)
    }

    /// Gives a slot another secret and shuts out who holds the one before; returns the epoch that new files use from now on.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn replace_slot(&mut self, slot: SlotId, secret: &NewSecret<'_>, now: u64) -> Result<Epoch, ChangeError> {
        self.check_room()?;
        let _every_key_has_a_new_material = self.keystore.replace_slot(slot, secret, now)?;
        self.store_keystore(now)?;
        self.advance(now)
    }

    /// Adds a material to the vault's master key, and an epoch to the vault; returns the epoch.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn rotate(&mut self, now: u64) -> Result<Epoch, ChangeError> {
        self.check_room()?;
        let keys: BTreeSet<_> = self.current_wraps().map(|(key, _)| key.0).collect();
        for key in keys {
            self.keystore.rotate(&KeyHandle(key), now)?;
        }
        self.store_keystore(now)?;
        self.advance(now)
    }

    /// Completes a change that was interrupted; returns whether there was one.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn finish(&mut self, now: u64) -> Result<bool, ChangeError> {
        let behind = self
            .current_wraps()
            .any(|(key, blob)| !self.keystore.is_under_newest(&key, &blob));
        if behind {
            self.advance(now)?;
            return Ok(true);
        }
        self.raise_floor(now)
    }

    /// Drops the epochs that no header names any more. Headers that lie elsewhere, in a backup or on their way here, cannot be opened then.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn retire_epochs_except(&mut self, used: &BTreeSet<Epoch>) -> Result<Vec<Epoch>, ChangeError> {
        let current = self.header.current;
        let keep = |epoch: Epoch| epoch == current || used.contains(&epoch);
        let retired: Vec<_> = self
            .header
            .epochs
            .iter()
            .map(|epoch| epoch.number)
            .filter(|&epoch| !keep(epoch))
            .collect();
        if !retired.is_empty() {
            self.header.epochs.retain(|epoch| keep(epoch.number));
            self.store_header()?;
        }
        Ok(retired)
    }

    /// Returns the keys and blobs of the wraps of the current epoch's key.
    fn current_wraps(&self) -> impl Iterator<Item = (KeyHandle, WrappedKey)> {
        let record = self.header.epoch(self.header.current);
        record.into_iter().flat_map(|record| &record.wraps).map(|wrap| {
            let blob = WrappedKey::new(wrap.blob.clone()).expect("the format has the same limit");
            (KeyHandle(wrap.key), blob)
        })
    }

    /// Refuses before anything is written what could not be completed.
    fn check_room(&self) -> Result<(), ChangeError> {
        if self.header.epochs.len() >= EPOCHS_MAX {
            return Err(ChangeError::TooManyEpochs);
        }
        Ok(())
    }

    /// Adds an epoch wrapped as the current one is, makes it the current one, and raises the floor to it.
    fn advance(&mut self, now: u64) -> Result<Epoch, ChangeError> {
        self.check_room()?;
        let vault = self.header.vault;
        let last = self.header.epochs.last().map_or(0, |epoch| epoch.number.0);
        let number = Epoch(last.checked_add(1).ok_or(ChangeError::TooManyEpochs)?);
        let record = self.header.epoch(self.header.current);
        let keys: Vec<_> = record
            .into_iter()
            .flat_map(|record| &record.wraps)
            .map(|wrap| (KeyHandle(wrap.key), wrap.context.clone()))
            .collect();
        let (key, record) = make_epoch(&self.keystore, &keys, (vault, number), &self.vault.names_root, now)?;
        self.header.epochs.push(record);
        self.header.current = number;
        self.mac_key = key.vault_header_mac_key(vault);
        self.vault.epochs.keys.insert(number, key.header_wrapping_key(vault));
        self.vault.epochs.current = number;
        self.store_header()?;
        self.raise_floor(now)?;
        Ok(number)
    }

    fn raise_floor(&mut self, now: u64) -> Result<bool, ChangeError> {
        let raised = self
            .keystore
            .raise_epoch_floor(self.header.vault, self.header.current)?;
        if raised {
            self.store_keystore(now)?;
        }
        Ok(raised)
    }

    fn store_keystore(&mut self, now: u64) -> Result<(), ChangeError> {
        let file = KEYSTORE;
        let bytes = self
            .keystore
            .encode(now)
            .map_err(|error| ChangeError::Format { file, error })?;
        store(&self.home.dir, file, &bytes).map_err(|source| ChangeError::Io { file, source })
    }

    fn store_header(&mut self) -> Result<(), ChangeError> {
        let file = VAULT_HEADER;
        let bytes = self
            .header
            .encode(&self.mac_key)
            .map_err(|error| ChangeError::Format { file, error })?;
        store(&self.home.dir, file, &bytes).map_err(|source| ChangeError::Io { file, source })
    }
}
