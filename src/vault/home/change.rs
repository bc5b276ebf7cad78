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
//!
//! A keystore that many vaults share is changed by step 1 alone, by whoever administers it. Each of its vaults is then in the state
//! between 1 and 2, and the next command that may write to it takes the other steps. The same goes for a key that rotates by itself.
//!
//! [`OpenVault::set_key`] takes steps 2 and 3 only. Before 2 is the old pair, between them the new one without the floor. So do the changes
//! of the keys beside the vault's own, in `chains`: each also makes a new epoch of the vault, so that a header from before it is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::PathBuf,
};

use serde_json::json;

use super::{
    AuditError, Call, ContextPairs, OpenVault, VAULT_HEADER, audit::REFUSED, chains::MadeEpoch, make_epoch, store,
};
use crate::{
    format::{
        FormatError,
        keystore::{SlotId, VAULT_KEYS_MAX, VaultKey},
        vault::{BucketKeysOff, CHAINS_MAX, CustodianKind, DIRECTORY_KEYS_MAX, EPOCHS_MAX, VaultHeader},
    },
    ids::{DirectoryId, Epoch, KeyId},
    keystore::{
        AgentError, KeyError, KeyHandle, KeystoreError, NewSecret,
        agent::Refusal,
        local::{VaultLook, VaultUse},
    },
};

/// Why a change of a vault's keys failed. The vault in memory is not to be used further: open it again.
#[derive(Debug)]
pub enum ChangeError {
    /// The keystore does not allow it.
    Keystore(KeystoreError),
    /// The vault has as many epochs as it may.
    TooManyEpochs,
    /// The epochs of the vault are wrapped under as many keys as they may.
    TooManyKeys,
    /// An agent holds the keystore, and slots are changed where it is.
    HeldByAgent,
    /// The agent did not do it.
    Agent(AgentError),
    /// The agent has answered something else than it was asked.
    UnexpectedAnswer,
    /// As many customer keys and other keys are in use beside the vault's own as may be.
    TooManyChains,
    /// As many directories have a key of their own as may.
    TooManyDirectories,
    /// There is no such customer key.
    NoSuchCustomerKey { key: KeyId },
    /// Files have the customer key that was to be removed.
    CustomerKeyInUse { key: KeyId },
    /// Someone else changes the keystore, and goes on doing so.
    KeystoreInUse { path: PathBuf },
    /// The keystore was replaced by one that other secrets open, since it was opened here.
    KeystoreChanged { path: PathBuf },
    /// It cannot be recorded.
    Audit(AuditError),
    /// The directory has no key of its own, of which it could be said how files get it.
    NoDirectoryKey,
    /// A file has outgrown its limit.
    Format { path: PathBuf, error: FormatError },
    /// A file could not be replaced; the old version stands.
    Io { path: PathBuf, source: io::Error },
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChangeError::Keystore(error) => error.fmt(f),
            ChangeError::TooManyEpochs => write!(
                f,
                "the vault has {EPOCHS_MAX} epochs: retire old ones with `hushfs rewrap --retire` first"
            ),
            ChangeError::TooManyKeys => write!(
                f,
                "the vault's epochs are under {VAULT_KEYS_MAX} keys: retire old ones with `hushfs rewrap --retire` first"
            ),
            ChangeError::HeldByAgent => f.write_str(
                "an agent does not do this, nor give a way to its slots: open the keystore by its own secret, with --keystore",
            ),
            ChangeError::Agent(error) => error.fmt(f),
            ChangeError::UnexpectedAnswer => {
                f.write_str("the agent answered something else: use the same hushfs on both sides")
            }
            ChangeError::TooManyChains => write!(f, "the vault has {CHAINS_MAX} keys beside its own: remove one first"),
            ChangeError::TooManyDirectories => write!(
                f,
                "{DIRECTORY_KEYS_MAX} directories have a key of their own: `hushfs vault encryption unset` first"
            ),
            ChangeError::NoSuchCustomerKey { key } => {
                write!(f, "no customer key {key}: `hushfs vault encryption show` lists them")
            }
            ChangeError::CustomerKeyInUse { key } => write!(
                f,
                "files have customer key {key}, and nobody could open them: give them another with `hushfs rewrap --customer-key FILE --vault-key` first"
            ),
            ChangeError::KeystoreInUse { path } => write!(
                f,
                "{}: keystore is being changed by another hushfs: try again",
                path.display()
            ),
            ChangeError::KeystoreChanged { path } => write!(
                f,
                "{}: keystore was changed by another hushfs meanwhile: try again",
                path.display()
            ),
            ChangeError::NoDirectoryKey => f.write_str(
                "the directory has no key of its own: give it one with `hushfs vault encryption set --key KEY --bucket-key on|off`",
            ),
            ChangeError::Audit(error) => write!(f, "{REFUSED}: {error}"),
            ChangeError::Format { path, error } => write!(f, "{}: {error}", path.display()),
            ChangeError::Io { path, source } => write!(f, "{}: {source}", path.display()),
        }
    }
}

impl std::error::Error for ChangeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ChangeError::Keystore(error) => Some(error),
            ChangeError::Agent(error) => Some(error),
            ChangeError::Audit(error) => Some(error),
            ChangeError::Format { error, .. } => Some(error),
            ChangeError::Io { source, .. } => Some(source),
            ChangeError::TooManyEpochs
            | ChangeError::TooManyKeys
            | ChangeError::HeldByAgent
            | ChangeError::UnexpectedAnswer
            | ChangeError::TooManyChains
            | ChangeError::TooManyDirectories
            | ChangeError::NoSuchCustomerKey { .. }
            | ChangeError::CustomerKeyInUse { .. }
            | ChangeError::NoDirectoryKey
            | ChangeError::KeystoreInUse { .. }
            | ChangeError::KeystoreChanged { .. } => None,
        }
    }
}

impl From<AgentError> for ChangeError {
    fn from(error: AgentError) -> Self {
        match error {
            // What the keystore says it says in the same words wherever it is.
            AgentError::Refused(Refusal::Keystore(error)) => ChangeError::Keystore(error),
            error => ChangeError::Agent(error),
        }
    }
}

impl From<AuditError> for ChangeError {
    fn from(error: AuditError) -> Self {
        ChangeError::Audit(error)
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
        self.keys.keystore_mut()?.change(
            now,
            Call::new("AddSlot", json!({"slotName": label, "kind": secret.kind().to_string()})),
            |keystore| keystore.add_slot(label, secret, now),
        )
    }

    /// Removes a slot and shuts out who holds its secret; returns the epoch that new files use from now on.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn remove_slot(&mut self, slot: SlotId, now: u64) -> Result<Epoch, ChangeError> {
        self.check_room()?;
        let call = Call::new("RemoveSlot", json!({"slotId": slot.0}));
        let keystore = self.keys.keystore_mut()?;
        let _every_key_has_a_new_material = keystore.change(now, call, |keystore| keystore.remove_slot(slot, now))?;
        self.advance(now)
    }

    /// Gives a slot another secret and shuts out who holds the one before; returns the epoch that new files use from now on.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn replace_slot(&mut self, slot: SlotId, secret: &NewSecret<'_>, now: u64) -> Result<Epoch, ChangeError> {
        self.check_room()?;
        let call = Call::new(
            "ReplaceSlot",
            json!({"slotId": slot.0, "kind": secret.kind().to_string()}),
        );
        let keystore = self.keys.keystore_mut()?;
        let _every_key_has_a_new_material =
            keystore.change(now, call, |keystore| keystore.replace_slot(slot, secret, now))?;
        self.advance(now)
    }

    /// Adds an epoch to the vault and to each of its other keys, and before that a material to the key that hushfs manages, if that is
    /// among them; returns the vault's epoch.
    ///
    /// A key that the user manages may serve other vaults too, and is rotated by itself.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn rotate(&mut self, now: u64) -> Result<Epoch, ChangeError> {
        self.check_room()?;
        let chains = self.header.chains.iter().map(|chain| chain.key);
        let keys = self
            .header
            .current_epoch()
            .wraps
            .iter()
            .map(|wrap| wrap.key)
            .chain(chains)
            .collect();
        self.keys.renew_managed(&keys, now)?;
        self.advance(now)
    }

    /// Has the vault's next epochs wrapped under a key; returns the first of them, which new files use from now on, with a bucket key or without; where
    /// nothing is said, as it was.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn set_key(
        &mut self,
        (key, context): (KeyHandle, ContextPairs),
        bucket_key: Option<bool>,
        now: u64,
    ) -> Result<Epoch, ChangeError> {
        self.check_key(key)?;
        self.refresh(now)?;
        if let Some(on) = bucket_key {
            self.change_bucket_keys(|off| off.vault = !on);
        }
        let call = self.put_encryption(None, key);
        self.advance_recorded(&[(key, context)], Vec::new(), Some(call), now)
    }

    /// Refuses a key for which the keystore's record of the vault has no room.
    pub(super) fn check_key(&self, key: KeyHandle) -> Result<(), ChangeError> {
        let known = vault_keys(&self.header);
        if known.len() >= VAULT_KEYS_MAX && known.iter().all(|known| known.key != key.0) {
            return Err(ChangeError::TooManyKeys);
        }
        Ok(())
    }

    /// Rotates the keys of the keystore whose time has come; returns them.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn rotate_due(&mut self, now: u64) -> Result<Vec<KeyId>, ChangeError> {
        self.keys.rotate_due(now)
    }

    /// Completes a change that was interrupted, or that was made to the keystore without this vault; tells whether there was one.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn finish(&mut self, now: u64) -> Result<bool, ChangeError> {
        let vault = self.header.vault;
        let look = self.look();
        let behind = !self.keys.state(vault, self.header.current_epoch(), &look)?.is_newest;
        let chains_behind = self.chains_behind();
        if behind || !chains_behind.is_empty() {
            self.refresh(now)?;
            let made = self.make_chain_epochs(&chains_behind, now)?;
            // A key that gets no epoch although it opens may get one another time; the vault needs none because of it.
            if behind || !made.is_empty() {
                match self.advance_under(&self.current_keys(), made, now) {
                    // An agent lets someone use a vault who may make no epoch of it: that is left to those who may.
                    Err(ChangeError::Keystore(KeystoreError::Key(error @ KeyError::Denied { .. })))
                        if self.keys.keystore().is_none() =>
                    {
                        log::warn!("the vault needs a new epoch since its key was rotated: {error}");
                    }
                    advanced => return advanced.map(|_| true),
                }
            }
        }
        if self.keys.state(vault, self.header.current_epoch(), &look)?.floor >= Some(self.header.current) {
            // Whoever may not write the keystore, as that of an administrator, may use the vault all the same.
            if let Err(error) = self.record(None, now) {
                log::info!("the keystore does not know of this use of the vault: {error}");
            }
            return Ok(false);
        }
        self.record(None, now)
    }

    /// Has the keystore know how many files the vault has.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn record_files(&mut self, count: u64, now: u64) -> Result<(), ChangeError> {
        self.record(Some(count), now).map(drop)
    }

    /// Has new files of the vault's own key get a bucket key, or none; returns the epoch that they use from now on.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn set_bucket_key(&mut self, on: bool, now: u64) -> Result<Epoch, ChangeError> {
        self.refresh(now)?;
        self.change_bucket_keys(|off| off.vault = !on);
        let keys = self.current_keys();
        let call = keys.first().map(|(key, _)| self.put_encryption(None, *key));
        self.advance_recorded(&keys, Vec::new(), call, now)
    }

    /// Has it known that files may be without a bucket key, before the first is; with that the vault gets a new epoch.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn allow_without_bucket_key(&mut self, now: u64) -> Result<(), ChangeError> {
        if self.header.bucket_keys_off().is_some() {
            return Ok(());
        }
        self.refresh(now)?;
        self.header.set_bucket_keys_off(Some(&BucketKeysOff::default()));
        self.advance_under(&self.current_keys(), Vec::new(), now).map(drop)
    }

    /// Has it no longer said that files may be without a bucket key, where none is and new files get one everywhere.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn end_without_bucket_key(&mut self) -> Result<(), ChangeError> {
        if self.header.bucket_keys_off() == Some(BucketKeysOff::default()) {
            self.header.set_bucket_keys_off(None);
            self.store_header()?;
        }
        Ok(())
    }

    /// Changes where bucket keys are off, in memory.
    pub(super) fn change_bucket_keys(&mut self, change: impl FnOnce(&mut BucketKeysOff)) {
        let before = self.header.bucket_keys_off();
        let mut off = before.clone().unwrap_or_default();
        change(&mut off);
        // It stays where it was: there may be files.
        if before.is_some() || off != BucketKeysOff::default() {
            self.header.set_bucket_keys_off(Some(&off));
        }
    }

    /// Drops the epochs that no header names any more. Headers that lie elsewhere, in a backup or on their way here, cannot be opened then.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn retire_epochs_except(&mut self, used: &BTreeSet<Epoch>, now: u64) -> Result<Vec<Epoch>, ChangeError> {
        let mut kept = self.epochs_of_chains_except(used);
        kept.insert(self.header.current);
        let keep = |epoch: Epoch| kept.contains(&epoch) || used.contains(&epoch);
        let retired: Vec<_> = self
            .header
            .epochs
            .iter()
            .map(|epoch| epoch.number)
            .filter(|&epoch| !keep(epoch))
            .collect();
        if !retired.is_empty() {
            self.header.epochs.retain(|epoch| keep(epoch.number));
            for chain in &mut self.header.chains {
                chain.epochs.retain(|&epoch| keep(epoch));
            }
            self.header.chains.retain(|chain| !chain.epochs.is_empty());
            self.store_header()?;
            self.apply_choice();
            self.record(None, now)?;
        }
        Ok(retired)
    }

    /// Refuses before anything is written what could not be completed: an epoch for the vault and one for each of its other keys.
    fn check_room(&self) -> Result<(), ChangeError> {
        if self.header.epochs.len() + self.header.chains.len() >= EPOCHS_MAX {
            return Err(ChangeError::TooManyEpochs);
        }
        Ok(())
    }

    /// Returns the keys that the current epoch is wrapped under, with their contexts.
    pub(super) fn current_keys(&self) -> Vec<(KeyHandle, ContextPairs)> {
        let wraps = self.header.current_epoch().wraps.iter();
        wraps.map(|wrap| (KeyHandle(wrap.key), wrap.context.clone())).collect()
    }

    /// Adds an epoch wrapped as the current one is, makes it the current one, and raises the floor to it. The other keys get one too.
    fn advance(&mut self, now: u64) -> Result<Epoch, ChangeError> {
        self.check_room()?;
        self.refresh(now)?;
        let made = self.make_chain_epochs(&self.usable_chains(), now)?;
        self.advance_under(&self.current_keys(), made, now)
    }

    /// Takes what others have changed in the keystore: epochs are made under the newest material there is, and not at all if who has this
    /// open was shut out meanwhile.
    pub(super) fn refresh(&mut self, now: u64) -> Result<(), ChangeError> {
        self.keys.refresh(now)
    }

    /// Returns the number of the epoch that comes behind those there are and `more`.
    pub(super) fn next_number(&self, more: usize) -> Result<Epoch, ChangeError> {
        if self.header.epochs.len() + more >= EPOCHS_MAX {
            return Err(ChangeError::TooManyEpochs);
        }
        // Above what the keystore has seen, too: a header that was put back is to be the newest again, and no number to mean two keys.
        let look = self.look();
        let seen = self
            .keys
            .state(self.header.vault, self.header.current_epoch(), &look)?
            .floor;
        let last = self.header.epochs.last().map(|epoch| epoch.number);
        let last = last.max(seen).map_or(0, |epoch| epoch.0);
        let number = u32::try_from(more + 1).ok().and_then(|more| last.checked_add(more));
        number.map(Epoch).ok_or(ChangeError::TooManyEpochs)
    }

    /// Adds epochs of other keys that were made, and behind them the vault's next one.
    pub(super) fn advance_under(
        &mut self,
        keys: &[(KeyHandle, ContextPairs)],
        made: Vec<MadeEpoch>,
        now: u64,
    ) -> Result<Epoch, ChangeError> {
        self.advance_recorded(keys, made, None, now)
    }

    /// As [`advance_under`](Self::advance_under), for a change that is on record before it is stored.
    pub(super) fn advance_recorded(
        &mut self,
        keys: &[(KeyHandle, ContextPairs)],
        made: Vec<MadeEpoch>,
        call: Option<Call>,
        now: u64,
    ) -> Result<Epoch, ChangeError> {
        let vault = self.header.vault;
        let number = self.next_number(made.len())?;
        let names_root = Some(&self.vault.names_root);
        let (key, record) = self.keys.use_keys(|in_use| {
            make_epoch(in_use.custodian(), keys, (vault, number), names_root, now).map_err(ChangeError::from)
        })?;
        call.map_or(Ok(()), |call| self.keys.record_change(call))?;
        made.into_iter().for_each(|made| self.take_chain_epoch(made));
        self.header.epochs.push(record);
        self.header.current = number;
        self.mac_key = key.vault_header_mac_key(vault);
        self.vault.epochs.advance(number, key.header_wrapping_key(vault));
        self.store_header()?;
        self.apply_choice();
        self.ask_for_files().map_err(|source| ChangeError::Io {
            path: self.home.path().to_owned(),
            source,
        })?;
        self.record(None, now)?;
        Ok(number)
    }

    /// Makes the call by which new files get a key, with a bucket key or without as the header in memory says: in the vault or in a directory.
    pub(super) fn put_encryption(&self, directory: Option<DirectoryId>, key: KeyHandle) -> Call {
        let off = self.header.bucket_keys_off().unwrap_or_default();
        let is_off = directory.map_or(off.vault, |directory| off.directories.contains(&directory));
        let mut parameters = json!({"vaultId": self.header.vault.to_hex(), "bucketKeyEnabled": !is_off});
        if let Some(directory) = directory {
            parameters["directoryId"] = directory.to_hex().into();
        }
        Call::on_key("PutBucketEncryption", &key.to_string(), parameters)
    }

    /// Returns what the vault shows of itself.
    pub(super) fn look(&self) -> VaultLook {
        self.home.look_of(&self.vault.names_root, self.keys.is_embedded())
    }

    /// Raises the floor to the current epoch and has the keystore know the vault, and what the vault needs it for; tells whether the floor was behind.
    fn record(&mut self, files: Option<u64>, now: u64) -> Result<bool, ChangeError> {
        let VaultLook { names, path } = self.look();
        let vault_use = VaultUse {
            path,
            keys: vault_keys(&self.header),
            files,
        };
        let current = self.header.current_epoch();
        self.keys.record((self.header.vault, current), (names, vault_use), now)
    }

    fn store_header(&mut self) -> Result<(), ChangeError> {
        let path = self.home.path.join(VAULT_HEADER);
        match self.header.encode(&self.mac_key) {
            Err(error) => Err(ChangeError::Format { path, error }),
            Ok(bytes) => store(&self.home.dir, VAULT_HEADER, &bytes).map_err(|source| ChangeError::Io { path, source }),
        }
    }
}

/// Returns what a vault needs its keys for, by rising id.
pub(super) fn vault_keys(header: &VaultHeader) -> Vec<VaultKey> {
    let mut keys: BTreeMap<KeyId, VaultKey> = BTreeMap::new();
    for record in &header.epochs {
        let in_keystore = record
            .wraps
            .iter()
            .filter(|wrap| wrap.custodian == CustodianKind::Local);
        let of_epoch: BTreeSet<KeyId> = in_keystore.map(|wrap| wrap.key).collect();
        for key in &of_epoch {
            let need = keys.entry(*key).or_insert(VaultKey {
                key: *key,
                epochs: 0,
                alone: 0,
            });
            need.epochs += 1;
            need.alone += u32::from(of_epoch.len() == 1);
        }
    }
    keys.into_values().collect()
}
