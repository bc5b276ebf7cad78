//! The keys that files of a vault have beside the vault's own: added, made the default of a directory, taken away.
//!
//! Every change here is one write of `vault.hush`, with a new epoch of the vault in it, and one of the keystore that raises the floor to that
//! epoch; `change` says what a crash between them leaves. Without the new epoch, who can write to the vault could put the header from
//! before back, and new files would silently get another key than was asked for.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde_json::json;

use super::{Call, ChangeError, ContextPairs, OpenVault, asker::unwrap_by_customer, make_customer_epoch, make_epoch};
use crate::{
    crypto::{
        keys::{CustomerKey, EpochKey},
        random,
    },
    format::vault::{
        CHAINS_MAX, CustodianKind, DIRECTORY_KEYS_MAX, DirectoryKey, EpochRecord, EpochWrap, KeyChain, VaultHeader,
    },
    ids::{DirectoryId, Epoch, KeyId},
    keystore::KeyHandle,
    vault::choice::KeyChoice,
};

/// An epoch of a key beside the vault's own, in memory.
pub(super) struct MadeEpoch {
    key: KeyId,
    epoch_key: EpochKey,
    record: EpochRecord,
}

impl OpenVault {
    /// Has new files in a directory, and in those below that have none of their own, get a key, with a bucket key or without; where nothing is said, as
    /// it was, and with one where the directory had no key.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn set_directory_key(
        &mut self,
        directory: DirectoryId,
        (key, context): (KeyHandle, ContextPairs),
        bucket_key: Option<bool>,
        now: u64,
    ) -> Result<(), ChangeError> {
        let directories = &self.header.directories;
        let at = directories.binary_search_by_key(&directory, |of| of.directory);
        if at.is_err() && directories.len() >= DIRECTORY_KEYS_MAX {
            return Err(ChangeError::TooManyDirectories);
        }
        let made = self.make_first_epoch(key, context, now)?;
        let of = DirectoryKey { directory, key: key.0 };
        match at {
            Ok(at) => self.header.directories[at] = of,
            Err(at) => self.header.directories.insert(at, of),
        }
        if let Some(on) = bucket_key {
            self.change_bucket_keys(|off| set_in(&mut off.directories, directory, on));
        }
        let call = self.put_encryption(Some(directory), key);
        self.advance_recorded(&self.current_keys(), made, Some(call), now)
            .map(drop)
    }

    /// Has new files in a directory that has a key of its own get a bucket key, or none.
    ///
    /// The key gets another epoch: headers from before, which its epoch's key opens, can be made useless with that one.
    ///
    /// # Errors
    ///
    /// [`ChangeError::NoDirectoryKey`], and the others that say why not.
    pub fn set_directory_bucket_key(&mut self, directory: DirectoryId, on: bool, now: u64) -> Result<(), ChangeError> {
        let mut directories = self.header.directories.iter();
        let of = directories.find(|of| of.directory == directory).copied();
        let key = of.ok_or(ChangeError::NoDirectoryKey)?.key;
        self.refresh(now)?;
        let chain = self.header.chain(key);
        let wrap = chain.and_then(|chain| current_wrap(&self.header, chain));
        let context = wrap.map(|wrap| wrap.context.clone()).unwrap_or_default();
        let made = self.make_chain_epoch(KeyHandle(key), context, self.next_number(0)?, now)?;
        self.change_bucket_keys(|off| set_in(&mut off.directories, directory, on));
        let call = self.put_encryption(Some(directory), KeyHandle(key));
        self.advance_recorded(&self.current_keys(), vec![made], Some(call), now)
            .map(drop)
    }

    /// Has directories no longer have a key of their own; tells how many had.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn unset_directory_keys(
        &mut self,
        mut is_meant: impl FnMut(DirectoryId) -> bool,
        now: u64,
    ) -> Result<usize, ChangeError> {
        let directories = &mut self.header.directories;
        let gone: Vec<_> = directories
            .extract_if(.., |of| is_meant(of.directory))
            .map(|of| of.directory.to_hex())
            .collect();
        let count = gone.len();
        if count > 0 {
            let kept: BTreeSet<_> = self.header.directories.iter().map(|of| of.directory).collect();
            self.change_bucket_keys(|off| off.directories.retain(|id| kept.contains(id)));
            self.refresh(now)?;
            let parameters = json!({"vaultId": self.header.vault.to_hex(), "directoryIds": gone});
            let call = Call::new("DeleteBucketEncryption", parameters);
            self.advance_recorded(&self.current_keys(), Vec::new(), Some(call), now)?;
        }
        Ok(count)
    }

    /// Returns the epoch of files that are to have a key, making the first one if need be.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn epoch_of_key(&mut self, key: KeyHandle, now: u64) -> Result<Epoch, ChangeError> {
        if self.header.chain(key.0).is_none() {
            let made = self.make_first_epoch(key, Vec::new(), now)?;
            self.advance_under(&self.current_keys(), made, now)?;
        }
        let chain = self.header.chain(key.0);
        Ok(chain.expect("made above where it was not there").current())
    }

    /// Has the vault take a customer's key; returns the id that it goes by. One that it takes already keeps its id.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn add_customer_key(&mut self, customer_key: &CustomerKey, now: u64) -> Result<KeyId, ChangeError> {
        let vault = self.header.vault;
        let known = self.customer_chains().find(|chain| {
            let wrap = current_wrap(&self.header, chain);
            wrap.is_some_and(|wrap| unwrap_by_customer(Some(customer_key), vault, chain.current(), wrap).is_ok())
        });
        if let Some(chain) = known {
            return Ok(chain.key);
        }
        self.check_chains()?;
        self.refresh(now)?;
        let key = KeyId(random::bytes());
        let (epoch_key, record) = make_customer_epoch(customer_key, key, (vault, self.next_number(0)?), now);
        let made = MadeEpoch { key, epoch_key, record };
        let call = self.of_customer_key("AddCustomerKey", key);
        self.advance_recorded(&self.current_keys(), vec![made], Some(call), now)?;
        Ok(key)
    }

    /// Has the vault no longer take a customer's key, which no file has; `used` are the epochs that headers name.
    ///
    /// # Errors
    ///
    /// [`ChangeError::CustomerKeyInUse`], [`ChangeError::NoSuchCustomerKey`], or why it cannot be stored.
    pub fn remove_customer_key(&mut self, key: KeyId, used: &BTreeSet<Epoch>, now: u64) -> Result<(), ChangeError> {
        let chain = self
            .customer_chains()
            .find(|chain| chain.key == key)
            .cloned()
            .ok_or(ChangeError::NoSuchCustomerKey { key })?;
        if chain.epochs.iter().any(|epoch| used.contains(epoch)) {
            return Err(ChangeError::CustomerKeyInUse { key });
        }
        self.header.chains.retain(|chain| chain.key != key);
        self.header
            .epochs
            .retain(|record| !chain.epochs.contains(&record.number));
        self.refresh(now)?;
        let call = self.of_customer_key("RemoveCustomerKey", key);
        self.advance_recorded(&self.current_keys(), Vec::new(), Some(call), now)
            .map(drop)
    }

    fn of_customer_key(&self, name: &'static str, key: KeyId) -> Call {
        let parameters = json!({"vaultId": self.header.vault.to_hex(), "customerKeyId": key.to_hex()});
        Call::new(name, parameters)
    }

    fn customer_chains(&self) -> impl Iterator<Item = &KeyChain> {
        self.header
            .chains
            .iter()
            .filter(|chain| self.header.custodian(chain) == CustodianKind::Customer)
    }

    fn check_chains(&self) -> Result<(), ChangeError> {
        if self.header.chains.len() >= CHAINS_MAX {
            return Err(ChangeError::TooManyChains);
        }
        Ok(())
    }

    /// Makes an epoch of a key, unless it has one already with the same context that opens.
    fn make_first_epoch(
        &mut self,
        key: KeyHandle,
        context: ContextPairs,
        now: u64,
    ) -> Result<Vec<MadeEpoch>, ChangeError> {
        match self.header.chain(key.0) {
            Some(chain) => {
                let is_same = current_wrap(&self.header, chain).is_some_and(|wrap| wrap.context == context);
                if is_same && self.vault.epochs.check(chain.current()).is_ok() {
                    self.refresh(now)?;
                    return Ok(Vec::new());
                }
            }
            None => {
                self.check_chains()?;
                self.check_key(key)?;
            }
        }
        self.refresh(now)?;
        let number = self.next_number(0)?;
        Ok(vec![self.make_chain_epoch(key, context, number, now)?])
    }

    fn make_chain_epoch(
        &mut self,
        key: KeyHandle,
        context: ContextPairs,
        number: Epoch,
        now: u64,
    ) -> Result<MadeEpoch, ChangeError> {
        let at = (self.header.vault, number);
        let (epoch_key, record) = self.keys.use_keys(|in_use| {
            make_epoch(in_use.custodian(), &[(key, context)], at, None, now).map_err(ChangeError::from)
        })?;
        Ok(MadeEpoch {
            key: key.0,
            epoch_key,
            record,
        })
    }

    /// Returns the keys of the keystore that could be used when the vault was opened, with the contexts of their current epochs.
    pub(super) fn usable_chains(&self) -> Vec<(KeyHandle, ContextPairs)> {
        self.chains_where(|_| true)
    }

    /// Returns those of them that have a newer material than their current epoch is wrapped under.
    pub(super) fn chains_behind(&self) -> Vec<(KeyHandle, ContextPairs)> {
        let look = self.look();
        self.chains_where(|record| match self.keys.state(self.header.vault, record, &look) {
            Ok(state) => !state.is_newest,
            // A key that an agent no longer lets this user use keeps its epoch, as one does that refuses a new one.
            Err(error) => {
                log::warn!(
                    "whether epoch {} is of the newest version is not known: {error}",
                    record.number
                );
                false
            }
        })
    }

    fn chains_where(&self, is_meant: impl Fn(&EpochRecord) -> bool) -> Vec<(KeyHandle, ContextPairs)> {
        let opens = |chain: &&KeyChain| self.vault.epochs.check(chain.current()).is_ok();
        let mut meant = Vec::new();
        for chain in self.header.chains.iter().filter(opens) {
            let record = self.header.epoch(chain.current());
            if let Some((record, wrap)) = record.and_then(|record| Some((record, record.wraps.first()?)))
                && wrap.custodian == CustodianKind::Local
                && is_meant(record)
            {
                meant.push((KeyHandle(wrap.key), wrap.context.clone()));
            }
        }
        meant
    }

    /// Makes the next epochs of keys. One that refuses keeps its epoch: it must not keep the others from being changed.
    pub(super) fn make_chain_epochs(
        &mut self,
        keys: &[(KeyHandle, ContextPairs)],
        now: u64,
    ) -> Result<Vec<MadeEpoch>, ChangeError> {
        let mut made = Vec::new();
        for (key, context) in keys {
            let number = self.next_number(made.len())?;
            match self.make_chain_epoch(*key, context.clone(), number, now) {
                Ok(epoch) => made.push(epoch),
                Err(error) => log::warn!("files of key {key} stay with its epoch: {error}"),
            }
        }
        Ok(made)
    }

    /// Puts an epoch that was made at the end of its key's chain.
    pub(super) fn take_chain_epoch(&mut self, made: MadeEpoch) {
        let MadeEpoch { key, epoch_key, record } = made;
        let number = record.number;
        self.vault
            .epochs
            .insert(number, Ok(epoch_key.header_wrapping_key(self.header.vault)));
        self.header.epochs.push(record);
        let chains = &mut self.header.chains;
        match chains.binary_search_by_key(&key, |chain| chain.key) {
            Ok(at) => chains[at].epochs.push(number),
            Err(at) => chains.insert(
                at,
                KeyChain {
                    key,
                    epochs: vec![number],
                },
            ),
        }
    }

    /// Has the vault in memory choose keys as the header says now.
    pub(super) fn apply_choice(&mut self) {
        let customer = self.vault.choice.customer();
        let customer = customer.and_then(|epoch| Some(self.header.chain_of(epoch)?.current()));
        self.vault.choice = KeyChoice::new(&self.header, customer);
    }

    /// Returns the epochs that keys beside the vault's own need although no header names them: the current one of every key that a
    /// directory has, that a customer may bring, or that has another epoch in use.
    pub(super) fn epochs_of_chains_except(&self, used: &BTreeSet<Epoch>) -> BTreeSet<Epoch> {
        let header = &self.header;
        let is_needed = |chain: &&KeyChain| {
            header.directories.iter().any(|of| of.key == chain.key)
                || header.custodian(chain) == CustodianKind::Customer
                || chain.epochs.iter().any(|epoch| used.contains(epoch))
        };
        let needed = header.chains.iter().filter(is_needed);
        needed.map(|chain| chain.current()).collect()
    }
}

fn set_in(off: &mut BTreeSet<DirectoryId>, directory: DirectoryId, on: bool) {
    if on {
        off.remove(&directory);
    } else {
        off.insert(directory);
    }
}

/// Returns the one wrap of the epoch that new files of a key use.
fn current_wrap<'h>(header: &'h VaultHeader, chain: &KeyChain) -> Option<&'h EpochWrap> {
    header.epoch(chain.current())?.wraps.first()
}
