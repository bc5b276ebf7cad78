//! The local keystore: master keys in a file that a slot opens; the custodian that needs no server.
//!
//! It takes bytes and gives bytes; whoever calls loads and stores them, and makes sure that one process at a time changes a keystore.
//! A change is in memory until the bytes of [`LocalKeystore::encode`] are stored. docs/FORMAT.md section 4 has the file.

use std::fmt;

use super::{
    custodian::{Context, Custodian, KeyError, KeyHandle, WrappedKey},
    slot::{NewSecret, SlotChoice, SlotDraft, Unlock, UnlockError, seal_again, try_slots},
};
use crate::{
    crypto::{
        derive::key_material_id,
        keys::{EpochKey, KeystoreRoot, MasterKey},
        locked::LockedKey,
        passphrase::HardnessError,
        random,
        wrap::{self, WRAPPED_SIZE, Wrapped},
    },
    format::{
        FormatError,
        keystore::{
            self as file, Alias, KeyRecord, KeyState, KeystoreBody, LABEL_LEN_MAX, MATERIALS_MAX, Manager, Material,
            MaterialVersion, SLOTS_MAX, Slot, SlotId, UnverifiedKeystoreFile, VAULTS_MAX, VaultRecord, material_aad,
        },
    },
    ids::{Epoch, KeyId, KeystoreId, VaultId},
};

/// The alias of the key that a new keystore has; vaults use it unless told otherwise.
pub const DEFAULT_ALIAS: &str = "alias/hushfs/default";

/// An unlocked local keystore.
///
/// Operations that fail change nothing but the latest time seen.
#[derive(Debug)]
pub struct LocalKeystore {
    body: KeystoreBody,
    root: KeystoreRoot,
}

/// Every key has a new material, because someone who could open the keystore no longer shall.
///
/// They may hold a copy of the old file, and with it every epoch key that was wrapped so far. So each vault must add an epoch, and use
/// it for what is written from now on; older epochs stay within their reach until their files are rewrapped.
#[must_use = "each vault that uses one of these keys needs a new epoch"]
#[derive(Debug, PartialEq, Eq)]
pub struct Rekeyed {
    /// The keys whose vaults need a new epoch.
    pub keys: Vec<KeyId>,
}

/// Why a keystore could not be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeystoreError {
    /// The label has this many bytes; it must have one, and at most [`LABEL_LEN_MAX`].
    LabelLength(usize),
    /// This slot has the label already.
    LabelTaken { slot: SlotId },
    /// There are [`SLOTS_MAX`] slots.
    TooManySlots,
    /// There is no such slot.
    NoSuchSlot { slot: SlotId },
    /// Without this slot nothing would open the keystore.
    LastSlot { slot: SlotId },
    /// The public key or authenticator of this slot is none: nothing can be sealed to it. The slot must go first.
    UnusableSlot { slot: SlotId },
    /// The Argon2id parameters for the new passphrase are out of range.
    Hardness,
    /// There are records of [`VAULTS_MAX`] vaults.
    TooManyVaults { vault: VaultId },
    /// A key could not be rotated or wrapped anew.
    Key(KeyError),
}

impl fmt::Display for KeystoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeystoreError::LabelLength(len) => {
                write!(f, "the label of a slot has 1 to {LABEL_LEN_MAX} bytes; this has {len}")
            }
            KeystoreError::LabelTaken { slot } => write!(f, "slot {slot} has that label already"),
            KeystoreError::TooManySlots => write!(f, "the keystore has {SLOTS_MAX} slots; remove one first"),
            KeystoreError::NoSuchSlot { slot } => write!(f, "the keystore has no slot {slot}"),
            KeystoreError::LastSlot { slot } => {
                write!(
                    f,
                    "slot {slot} is the last; nothing would open the keystore without it: add another first"
                )
            }
            KeystoreError::UnusableSlot { slot } => write!(f, "slot {slot} cannot be sealed to; remove it first"),
            KeystoreError::Hardness => f.write_str("Argon2id parameters out of range"),
            KeystoreError::TooManyVaults { vault } => {
                write!(
                    f,
                    "no room for vault {vault}: the keystore has records of {VAULTS_MAX} vaults"
                )
            }
            KeystoreError::Key(_) => f.write_str("a key of the keystore could not be given a new version"),
        }
    }
}

impl std::error::Error for KeystoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            KeystoreError::Key(error) => Some(error),
            _ => None,
        }
    }
}

impl From<KeyError> for KeystoreError {
    fn from(error: KeyError) -> Self {
        KeystoreError::Key(error)
    }
}

impl LocalKeystore {
    /// Makes a keystore with one slot, and one key that hushfs manages, under [`DEFAULT_ALIAS`].
    ///
    /// `now` is seconds since 1970, here and below.
    ///
    /// # Errors
    ///
    /// Those of [`add_slot`](Self::add_slot).
    pub fn create(label: &str, secret: &NewSecret<'_>, now: u64) -> Result<Self, KeystoreError> {
        let mut keystore = LocalKeystore {
            body: KeystoreBody {
                id: KeystoreId(random::bytes()),
                generation: 0,
                last_time: now,
                slots: Vec::new(),
                keys: Vec::new(),
                aliases: Vec::new(),
                vaults: Vec::new(),
                extensions: Vec::new(),
            },
            root: KeystoreRoot::new(random::locked_key()),
        };
        keystore.add_slot(label, secret, now)?;
        let key = keystore.make_key(Manager::Hushfs, now)?;
        keystore.body.aliases.push(Alias {
            name: DEFAULT_ALIAS.to_owned(),
            key,
        });
        Ok(keystore)
    }

    /// Unlocks a stored keystore, and tells which slot did it.
    ///
    /// # Errors
    ///
    /// The [`UnlockError`] that says why not.
    pub fn unlock(bytes: &[u8], unlock: &Unlock, choice: &SlotChoice) -> Result<(Self, SlotId), UnlockError> {
        let file = UnverifiedKeystoreFile::decode(bytes)?;
        let (root, slot) = try_slots(&file, unlock, choice)?;
        let body = file.verify(&root.mac_key())?;
        Ok((LocalKeystore { body, root }, slot))
    }

    /// Returns the keystore as bytes to store, as its next generation.
    ///
    /// # Errors
    ///
    /// [`FormatError::OutOfRange`] when it has outgrown the file's limit. What is stored stays good; unlock that again.
    pub fn encode(&mut self, now: u64) -> Result<Vec<u8>, FormatError> {
        self.clock(now);
        self.body.generation += 1;
        file::encode(&self.body, &self.root.mac_key())
    }

    /// Returns the keystore's id.
    pub fn id(&self) -> KeystoreId {
        self.body.id
    }

    /// Returns how often the keystore has been encoded.
    pub fn generation(&self) -> u64 {
        self.body.generation
    }

    /// Returns the slots, by rising id.
    pub fn slots(&self) -> &[Slot] {
        &self.body.slots
    }

    /// Returns the keys, by rising id; their materials are wrapped.
    pub fn keys(&self) -> &[KeyRecord] {
        &self.body.keys
    }

    /// Returns the aliases, by rising name.
    pub fn aliases(&self) -> &[Alias] {
        &self.body.aliases
    }

    /// Returns the key that an alias stands for.
    pub fn key_of_alias(&self, name: &str) -> Option<KeyHandle> {
        let aliases = &self.body.aliases;
        let at = aliases.binary_search_by(|alias| alias.name.as_str().cmp(name)).ok()?;
        Some(KeyHandle(aliases[at].key))
    }

    /// Adds a slot under a free id. The other slots and all keys stay as they are.
    ///
    /// # Errors
    ///
    /// The [`KeystoreError`] that says what is wrong with the label or the secret, or that there are too many slots.
    pub fn add_slot(&mut self, label: &str, secret: &NewSecret<'_>, now: u64) -> Result<SlotId, KeystoreError> {
        let slots = &self.body.slots;
        if !(1..=LABEL_LEN_MAX).contains(&label.len()) {
            return Err(KeystoreError::LabelLength(label.len()));
        }
        if let Some(taken) = slots.iter().find(|slot| slot.label == label) {
            return Err(KeystoreError::LabelTaken { slot: taken.id });
        }
        if slots.len() >= SLOTS_MAX {
            return Err(KeystoreError::TooManySlots);
        }
        let id = (1..)
            .map(SlotId)
            .find(|id| slots.iter().all(|slot| slot.id != *id))
            .expect("of more numbers than slots one is free");
        let created = self.clock(now);
        let slot = self.seal_slot(&SlotDraft {
            id,
            label,
            created,
            secret,
        })?;
        let at = self.body.slots.partition_point(|slot| slot.id < id);
        self.body.slots.insert(at, slot);
        Ok(id)
    }

    /// Removes a slot, and shuts out who holds its secret, even with a copy of the keystore as it was.
    ///
    /// # Errors
    ///
    /// [`KeystoreError::LastSlot`] when nothing would open the keystore; those of a key that cannot be rotated.
    pub fn remove_slot(&mut self, slot: SlotId, now: u64) -> Result<Rekeyed, KeystoreError> {
        let at = self.slot_index(slot)?;
        if self.body.slots.len() == 1 {
            return Err(KeystoreError::LastSlot { slot });
        }
        let mut slots = self.body.slots.clone();
        slots.remove(at);
        self.rekey(&slots, now)
    }

    /// Gives a slot another secret, of the same or another kind, and shuts out who holds the one before.
    ///
    /// # Errors
    ///
    /// As for adding and removing a slot.
    pub fn replace_slot(&mut self, slot: SlotId, secret: &NewSecret<'_>, now: u64) -> Result<Rekeyed, KeystoreError> {
        let at = self.slot_index(slot)?;
        let created = self.clock(now);
        let mut slots = self.body.slots.clone();
        let label = &self.body.slots[at].label;
        slots[at] = self.seal_slot(&SlotDraft {
            id: slot,
            label,
            created,
            secret,
        })?;
        self.rekey(&slots, now)
    }

    /// Adds a material to a key; wraps use it from now on, and what older ones wrapped still opens.
    ///
    /// # Errors
    ///
    /// The [`KeyError`] of a key that cannot be used; [`KeyError::Limit`] when it has as many materials as it may.
    pub fn rotate(&mut self, key: &KeyHandle, now: u64) -> Result<MaterialVersion, KeyError> {
        let created = self.clock(now);
        let material = next_material(&self.root, self.body.id, self.usable(key)?, created)?;
        let version = material.version;
        let at = self.key_index(key)?;
        self.body.keys[at].materials.push(material);
        Ok(version)
    }

    /// Tells whether a blob is wrapped under the newest material of a key. If not, whoever was shut out since may be able to open it.
    pub fn is_under_newest(&self, key: &KeyHandle, wrapped: &WrappedKey) -> bool {
        let newest = self
            .key_index(key)
            .ok()
            .and_then(|at| self.body.keys[at].materials.last());
        match (newest, decode_blob(wrapped)) {
            (Some(newest), Some((version, _))) => newest.version == version,
            _ => false,
        }
    }

    /// Returns the lowest number that a vault's current epoch may have, if the keystore has a record of the vault.
    pub fn epoch_floor(&self, vault: VaultId) -> Option<Epoch> {
        let at = self.vault_index(vault).ok()?;
        Some(self.body.vaults[at].lowest_epoch)
    }

    /// Raises that number; it never falls. Tells whether it changed, and with it whether the keystore must be stored.
    ///
    /// Whoever makes an epoch the current one stores the vault header first and raises this after: the other way round, a crash in
    /// between would leave a vault that cannot be opened.
    ///
    /// # Errors
    ///
    /// [`KeystoreError::TooManyVaults`] when there is no room for another vault.
    pub fn raise_epoch_floor(&mut self, vault: VaultId, epoch: Epoch) -> Result<bool, KeystoreError> {
        let vaults = &mut self.body.vaults;
        match vaults.binary_search_by_key(&vault, |record| record.vault) {
            Ok(at) if vaults[at].lowest_epoch >= epoch => Ok(false),
            Ok(at) => {
                vaults[at].lowest_epoch = epoch;
                Ok(true)
            }
            Err(_) if vaults.len() >= VAULTS_MAX => Err(KeystoreError::TooManyVaults { vault }),
            Err(at) => {
                vaults.insert(
                    at,
                    VaultRecord {
                        vault,
                        lowest_epoch: epoch,
                    },
                );
                Ok(true)
            }
        }
    }

    /// Takes a reading of the clock and returns the time: one set back stands still here.
    fn clock(&mut self, now: u64) -> u64 {
        self.body.last_time = self.body.last_time.max(now);
        self.body.last_time
    }

    fn slot_index(&self, slot: SlotId) -> Result<usize, KeystoreError> {
        self.body
            .slots
            .binary_search_by_key(&slot, |other| other.id)
            .map_err(|_| KeystoreError::NoSuchSlot { slot })
    }

    fn key_index(&self, key: &KeyHandle) -> Result<usize, KeyError> {
        self.body
            .keys
            .binary_search_by_key(&key.0, |other| other.id)
            .map_err(|_| KeyError::NotFound { key: key.0 })
    }

    fn vault_index(&self, vault: VaultId) -> Result<usize, usize> {
        self.body.vaults.binary_search_by_key(&vault, |record| record.vault)
    }

    fn seal_slot(&self, draft: &SlotDraft<'_>) -> Result<Slot, KeystoreError> {
        draft
            .seal(self.body.id, &self.root)
            .map_err(|HardnessError| KeystoreError::Hardness)
    }

    fn make_key(&mut self, manager: Manager, now: u64) -> Result<KeyId, KeyError> {
        let created = self.clock(now);
        let mut key = KeyRecord {
            id: KeyId(random::bytes()),
            manager,
            state: KeyState::Enabled,
            created,
            description: String::new(),
            rotation: None,
            materials: Vec::new(),
        };
        key.materials
            .push(next_material(&self.root, self.body.id, &key, created)?);
        let id = key.id;
        let at = self.body.keys.partition_point(|other| other.id < id);
        self.body.keys.insert(at, key);
        Ok(id)
    }

    /// Makes a new root, wraps every material anew under it, seals it to `slots`, and adds a material to every key.
    ///
    /// The new root keeps a removed secret out of the file as it is from now on; the new materials make a copy of the old file useless
    /// for what is wrapped from now on. Keys that are disabled get one too: they may be enabled again.
    fn rekey(&mut self, slots: &[Slot], now: u64) -> Result<Rekeyed, KeystoreError> {
        let now = self.clock(now);
        let keystore = self.body.id;
        let root = KeystoreRoot::new(random::locked_key());
        let slots = slots
            .iter()
            .map(|slot| {
                seal_again(slot, keystore, &self.root, &root).map_err(|_| KeystoreError::UnusableSlot { slot: slot.id })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut keys = self.body.keys.clone();
        for key in &mut keys {
            for material in &mut key.materials {
                let secret = self.unwrap_material(key.id, material)?;
                let aad = material_aad(keystore, key.id, material.version);
                material.wrapped = wrap::wrap(root.as_bytes(), &aad, secret.as_bytes());
            }
            let material = next_material(&root, keystore, key, now)?;
            key.materials.push(material);
        }
        self.root = root;
        self.body.slots = slots;
        self.body.keys = keys;
        Ok(Rekeyed {
            keys: self.body.keys.iter().map(|key| key.id).collect(),
        })
    }

    /// Returns a key that may be used.
    fn usable(&self, handle: &KeyHandle) -> Result<&KeyRecord, KeyError> {
        let key = &self.body.keys[self.key_index(handle)?];
        match key.state {
            KeyState::Enabled => Ok(key),
            KeyState::Disabled => Err(KeyError::Disabled { key: key.id }),
            KeyState::PendingDeletion { .. } => Err(KeyError::PendingDeletion { key: key.id }),
        }
    }

    /// Unwraps a material, and makes sure that it is the one it is said to be.
    fn unwrap_material(&self, key: KeyId, material: &Material) -> Result<MasterKey, KeyError> {
        let aad = material_aad(self.body.id, key, material.version);
        wrap::unwrap(self.root.as_bytes(), &aad, &material.wrapped, |bytes| {
            MasterKey::new(LockedKey::copy_of(bytes))
        })
        .ok()
        .filter(|secret| key_material_id(secret.as_bytes()) == material.id)
        .ok_or(KeyError::Commitment { key })
    }

    /// Returns the additional data of an epoch key's wrap: docs/FORMAT.md section 3.
    fn epoch_key_aad(&self, key: KeyId, version: MaterialVersion, context: &Context) -> Vec<u8> {
        [
            b"hushfs v1 master key wrap".as_slice(),
            &self.body.id.0,
            &key.0,
            &version.0.to_le_bytes(),
            &context.encode(),
        ]
        .concat()
    }
}

impl Custodian for LocalKeystore {
    fn wrap(&self, key: &KeyHandle, context: &Context, secret: &EpochKey) -> Result<WrappedKey, KeyError> {
        let key = self.usable(key)?;
        let material = key.materials.last().expect("every key has a material");
        let master = self.unwrap_material(key.id, material)?;
        let aad = self.epoch_key_aad(key.id, material.version, context);
        let wrapped = wrap::wrap(master.as_bytes(), &aad, secret.as_bytes());
        Ok(encode_blob(material.version, &wrapped))
    }

    fn unwrap(&self, key: &KeyHandle, context: &Context, wrapped: &WrappedKey) -> Result<EpochKey, KeyError> {
        let key = self.usable(key)?;
        let rejected = KeyError::Rejected { key: key.id };
        let (version, wrapped) = decode_blob(wrapped).ok_or(rejected)?;
        let at = key
            .materials
            .binary_search_by_key(&version, |material| material.version)
            .map_err(|_| rejected)?;
        let master = self.unwrap_material(key.id, &key.materials[at])?;
        let aad = self.epoch_key_aad(key.id, version, context);
        wrap::unwrap(master.as_bytes(), &aad, &wrapped, |bytes| {
            EpochKey::new(LockedKey::copy_of(bytes))
        })
        .map_err(|_| rejected)
    }
}

/// Makes the material that follows the ones a key has.
fn next_material(
    root: &KeystoreRoot,
    keystore: KeystoreId,
    key: &KeyRecord,
    created: u64,
) -> Result<Material, KeyError> {
    let limit = KeyError::Limit { key: key.id };
    if key.materials.len() >= MATERIALS_MAX {
        return Err(limit);
    }
    let last = key.materials.last().map_or(0, |material| material.version.0);
    let version = MaterialVersion(last.checked_add(1).ok_or(limit)?);
    let secret = MasterKey::new(random::locked_key());
    Ok(Material {
        version,
        id: key_material_id(secret.as_bytes()),
        created,
        wrapped: wrap::wrap(
            root.as_bytes(),
            &material_aad(keystore, key.id, version),
            secret.as_bytes(),
        ),
    })
}

/// Puts the version of the material in front of what it wrapped.
fn encode_blob(version: MaterialVersion, wrapped: &Wrapped) -> WrappedKey {
    let blob = [version.0.to_le_bytes().as_slice(), &wrapped.0].concat();
    WrappedKey::new(blob).expect("a blob of 100 bytes is below the limit")
}

fn decode_blob(blob: &WrappedKey) -> Option<(MaterialVersion, Wrapped)> {
    let (version, wrapped) = blob.as_bytes().split_first_chunk::<4>()?;
    let wrapped: [u8; WRAPPED_SIZE] = wrapped.try_into().ok()?;
    Some((MaterialVersion(u32::from_le_bytes(*version)), Wrapped(wrapped)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        format::keystore::slot_authenticator_aad,
        keystore::{
            custodian::check_custodian,
            recovery::RecoveryKey,
            slot::{
                SecretKind,
                tests::{EASY, key_file, passphrase},
            },
        },
    };

    const VAULT: VaultId = VaultId([7; 16]);

    fn keystore() -> LocalKeystore {
        LocalKeystore::create("stick", &NewSecret::KeyFile(&key_file(1)), 100).unwrap()
    }

    fn unlock(bytes: &[u8], byte: u8) -> Result<LocalKeystore, UnlockError> {
        LocalKeystore::unlock(bytes, &Unlock::KeyFile(key_file(byte)), &SlotChoice::Any).map(|(keystore, _)| keystore)
    }

    fn default_key(keystore: &LocalKeystore) -> KeyHandle {
        keystore.key_of_alias(DEFAULT_ALIAS).unwrap()
    }

    fn epoch(number: u32) -> Context {
        Context::for_epoch(VAULT, Epoch(number))
    }

    #[test]
    fn the_local_keystore_is_a_custodian() {
        let mut keystore = keystore();
        check_custodian(&keystore, &default_key(&keystore));
        keystore.rotate(&default_key(&keystore), 1).unwrap();
        check_custodian(&keystore, &default_key(&keystore));
    }

    #[test]
    fn a_keystore_unlocks_with_each_of_its_slots() {
        let (typed, recovery) = (passphrase("x"), RecoveryKey::generate());
        let mut keystore = keystore();
        let (secret, wrapped) = keystore.generate(&default_key(&keystore), &epoch(1)).unwrap();
        keystore
            .add_slot("laptop", &NewSecret::Passphrase(&typed, EASY), 2)
            .unwrap();
        keystore
            .add_slot("paper", &NewSecret::RecoveryKey(&recovery), 2)
            .unwrap();
        let bytes = keystore.encode(2).unwrap();
        let again = RecoveryKey::from_text(&recovery.to_text()).unwrap();
        for (unlock, slot) in [
            (Unlock::KeyFile(key_file(1)), 1),
            (Unlock::Passphrase(typed), 2),
            (Unlock::RecoveryKey(again), 3),
        ] {
            let (opened, by) = LocalKeystore::unlock(&bytes, &unlock, &SlotChoice::Any).unwrap();
            assert_eq!(by, SlotId(slot));
            let key = opened.unwrap(&default_key(&opened), &epoch(1), &wrapped).unwrap();
            assert_eq!(key.as_bytes(), secret.as_bytes());
        }
        assert_eq!(
            unlock(&bytes, 2).unwrap_err(),
            UnlockError::WrongSecret(SecretKind::KeyFile)
        );
    }

    #[test]
    fn a_removed_secret_with_a_copy_of_the_old_file_opens_nothing_newer() {
        let mut keystore = keystore();
        let key = default_key(&keystore);
        let removed = keystore.add_slot("lost", &NewSecret::KeyFile(&key_file(2)), 2).unwrap();
        let (_, before) = keystore.generate(&key, &epoch(1)).unwrap();
        let old_file = keystore.encode(2).unwrap();

        let rekeyed = keystore.remove_slot(removed, 3).unwrap();
        assert_eq!(rekeyed.keys, [key.0]);
        let (secret, after) = keystore.generate(&key, &epoch(2)).unwrap();
        let new_file = keystore.encode(3).unwrap();

        let thief = unlock(&old_file, 2).unwrap();
        assert!(
            thief.unwrap(&key, &epoch(1), &before).is_ok(),
            "what was open to the thief stays so"
        );
        let refused = Err(KeyError::Rejected { key: key.0 });
        assert_eq!(thief.unwrap(&key, &epoch(2), &after).map(|_| ()), refused);
        // Nor with the version that the old file has in front.
        let renamed = [&before.as_bytes()[..4], &after.as_bytes()[4..]].concat();
        let renamed = WrappedKey::new(renamed).unwrap();
        assert_eq!(thief.unwrap(&key, &epoch(2), &renamed).map(|_| ()), refused);
        assert!(unlock(&new_file, 2).is_err());
        // The root that the old file gave is not that of the new file.
        let file = UnverifiedKeystoreFile::decode(&new_file).unwrap();
        assert_eq!(file.verify(&thief.root.mac_key()), Err(FormatError::NotAuthentic));

        let owner = unlock(&new_file, 1).unwrap();
        assert!(owner.unwrap(&key, &epoch(1), &before).is_ok());
        assert_eq!(
            owner.unwrap(&key, &epoch(2), &after).unwrap().as_bytes(),
            secret.as_bytes()
        );
    }

    #[test]
    fn a_replaced_secret_opens_nothing_newer_and_the_new_one_does() {
        let mut keystore = keystore();
        keystore
            .add_slot("other", &NewSecret::KeyFile(&key_file(3)), 1)
            .unwrap();
        let key = default_key(&keystore);
        let old_file = keystore.encode(1).unwrap();
        let _ = keystore
            .replace_slot(SlotId(1), &NewSecret::KeyFile(&key_file(2)), 9)
            .unwrap();
        assert_eq!(
            (keystore.slots()[0].label.as_str(), keystore.slots()[0].created),
            ("stick", 100)
        );
        let (_, after) = keystore.generate(&key, &epoch(2)).unwrap();
        let bytes = keystore.encode(9).unwrap();
        assert!(unlock(&bytes, 1).is_err());
        assert!(unlock(&old_file, 1).unwrap().unwrap(&key, &epoch(2), &after).is_err());
        assert!(unlock(&bytes, 2).unwrap().unwrap(&key, &epoch(2), &after).is_ok());
        assert!(unlock(&bytes, 3).unwrap().unwrap(&key, &epoch(2), &after).is_ok());
    }

    #[test]
    fn a_keystore_with_any_byte_flipped_is_refused() {
        let bytes = keystore().encode(1).unwrap();
        for at in (0..bytes.len()).step_by(7) {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(unlock(&changed, 1).is_err(), "byte {at}");
        }
        assert!(unlock(&bytes, 1).is_ok());
    }

    #[test]
    fn a_keystore_of_another_root_in_the_same_slot_is_refused() {
        let (mut one, mut two) = (keystore(), keystore());
        two.body.id = one.body.id;
        let slot = one.body.slots[0].clone();
        let _ = one.encode(1).unwrap();
        two.body.slots[0] = slot;
        let bytes = two.encode(1).unwrap();
        assert_eq!(
            unlock(&bytes, 1).unwrap_err(),
            UnlockError::Format(FormatError::NotAuthentic)
        );
    }

    /// A writer of the file who cannot open it knows a slot's public key, and makes a keystore of their own around it.
    #[test]
    fn a_keystore_that_a_stranger_made_for_a_slot_is_refused() {
        let mut keystore = keystore();
        keystore
            .add_slot("laptop", &NewSecret::KeyFile(&key_file(2)), 1)
            .unwrap();
        let bytes = keystore.encode(1).unwrap();
        let seen = UnverifiedKeystoreFile::decode(&bytes).unwrap();

        let mut forged = LocalKeystore::create("laptop", &NewSecret::KeyFile(&key_file(9)), 1).unwrap();
        let own = forged.body.slots[0].clone();
        forged.body.id = seen.id();
        let victim = Slot {
            // The stranger can wrap an authenticator under a root of their own, but must make it up.
            authenticator: wrap::wrap(
                forged.root.as_bytes(),
                &slot_authenticator_aad(seen.id(), seen.slots()[1].id),
                &[0; 32],
            ),
            ..seen.slots()[1].clone()
        };
        let victim = seal_again(&victim, seen.id(), &forged.root, &forged.root).unwrap();
        forged.body.slots = vec![own, victim];
        let bytes = forged.encode(1).unwrap();
        assert_eq!(
            unlock(&bytes, 2).unwrap_err(),
            UnlockError::DamagedSlot { slot: SlotId(2) }
        );
    }

    #[test]
    fn a_wrapped_key_is_of_its_keystore_and_key() {
        let mut keystore = keystore();
        let key = default_key(&keystore);
        let other = KeyHandle(keystore.make_key(Manager::Customer, 1).unwrap());
        let (_, wrapped) = keystore.generate(&key, &epoch(1)).unwrap();
        let refused = keystore.unwrap(&other, &epoch(1), &wrapped).unwrap_err();
        assert_eq!(refused, KeyError::Rejected { key: other.0 });
        let moved = keystore.rewrap(&key, &epoch(1), &wrapped, &other, &epoch(1)).unwrap();
        assert!(keystore.unwrap(&other, &epoch(1), &moved).is_ok());
    }

    #[test]
    fn a_key_that_is_not_enabled_does_nothing() {
        let mut keystore = keystore();
        let key = default_key(&keystore);
        let (secret, wrapped) = keystore.generate(&key, &epoch(1)).unwrap();
        for (state, error) in [
            (KeyState::Disabled, KeyError::Disabled { key: key.0 }),
            (
                KeyState::PendingDeletion { date: 9 },
                KeyError::PendingDeletion { key: key.0 },
            ),
        ] {
            keystore.body.keys[0].state = state;
            assert_eq!(keystore.wrap(&key, &epoch(1), &secret).unwrap_err(), error);
            assert_eq!(keystore.unwrap(&key, &epoch(1), &wrapped).unwrap_err(), error);
            assert_eq!(keystore.generate(&key, &epoch(1)).unwrap_err(), error);
            assert_eq!(keystore.rotate(&key, 1).unwrap_err(), error);
        }
        keystore.body.keys[0].state = KeyState::Enabled;
        assert!(keystore.unwrap(&key, &epoch(1), &wrapped).is_ok());
    }

    #[test]
    fn a_disabled_key_gets_a_new_material_when_a_slot_goes() {
        let mut keystore = keystore();
        let gone = keystore.add_slot("lost", &NewSecret::KeyFile(&key_file(2)), 1).unwrap();
        keystore.body.keys[0].state = KeyState::Disabled;
        let _ = keystore.remove_slot(gone, 1).unwrap();
        assert_eq!(keystore.keys()[0].materials.len(), 2);
    }

    #[test]
    fn rotation_wraps_with_the_new_material_and_opens_with_the_old() {
        let mut keystore = keystore();
        let key = default_key(&keystore);
        let (secret, old) = keystore.generate(&key, &epoch(1)).unwrap();
        assert_eq!(keystore.rotate(&key, 200), Ok(MaterialVersion(2)));
        let new = keystore.rewrap(&key, &epoch(1), &old, &key, &epoch(1)).unwrap();
        assert_eq!((old.as_bytes()[0], new.as_bytes()[0]), (1, 2));
        for wrapped in [old, new] {
            let opened = keystore.unwrap(&key, &epoch(1), &wrapped).unwrap();
            assert_eq!(opened.as_bytes(), secret.as_bytes());
        }
        assert_eq!(
            keystore.rotate(&KeyHandle(KeyId([0; 16])), 1),
            Err(KeyError::NotFound { key: KeyId([0; 16]) })
        );
    }

    #[test]
    fn a_key_has_at_most_a_thousand_materials() {
        let mut keystore = keystore();
        let key = default_key(&keystore);
        for _ in 1..MATERIALS_MAX {
            keystore.rotate(&key, 1).unwrap();
        }
        let limit = KeyError::Limit { key: key.0 };
        assert_eq!(keystore.rotate(&key, 1), Err(limit));
        let gone = keystore.add_slot("lost", &NewSecret::KeyFile(&key_file(2)), 1).unwrap();
        assert_eq!(keystore.remove_slot(gone, 1), Err(KeystoreError::Key(limit)));
        let bytes = keystore.encode(1).unwrap();
        assert!(unlock(&bytes, 2).is_ok(), "the removal that failed changed nothing");
    }

    #[test]
    fn a_material_that_is_not_what_it_says_is_not_used() {
        let mut keystore = keystore();
        let key = default_key(&keystore);
        let (_, wrapped) = keystore.generate(&key, &epoch(1)).unwrap();
        keystore.body.keys[0].materials[0].id[0] ^= 1;
        let error = keystore.unwrap(&key, &epoch(1), &wrapped).unwrap_err();
        assert_eq!(error, KeyError::Commitment { key: key.0 });
    }

    #[test]
    fn a_change_that_is_refused_says_why() {
        let mut keystore = keystore();
        let file = key_file(2);
        let secret = NewSecret::KeyFile(&file);
        let typed = passphrase("x");
        let too_easy = NewSecret::Passphrase(&typed, crate::crypto::passphrase::Hardness { passes: 0, ..EASY });
        let (first, ninth) = (SlotId(1), SlotId(9));
        assert_eq!(keystore.add_slot("", &secret, 1), Err(KeystoreError::LabelLength(0)));
        assert_eq!(
            keystore.add_slot(&"x".repeat(65), &secret, 1),
            Err(KeystoreError::LabelLength(65))
        );
        assert_eq!(
            keystore.add_slot("stick", &secret, 1),
            Err(KeystoreError::LabelTaken { slot: first })
        );
        assert_eq!(keystore.add_slot("easy", &too_easy, 1), Err(KeystoreError::Hardness));
        assert_eq!(
            keystore.remove_slot(first, 1),
            Err(KeystoreError::LastSlot { slot: first })
        );
        assert_eq!(
            keystore.remove_slot(ninth, 1),
            Err(KeystoreError::NoSuchSlot { slot: ninth })
        );
        assert_eq!(
            keystore.replace_slot(ninth, &secret, 1),
            Err(KeystoreError::NoSuchSlot { slot: ninth })
        );
        for i in 2..=SLOTS_MAX {
            keystore.add_slot(&format!("slot {i}"), &secret, 1).unwrap();
        }
        assert_eq!(keystore.add_slot("more", &secret, 1), Err(KeystoreError::TooManySlots));
    }

    #[test]
    fn a_slot_that_nothing_can_be_sealed_to_can_still_be_removed() {
        let mut keystore = keystore();
        let bad = keystore.add_slot("bad", &NewSecret::KeyFile(&key_file(2)), 1).unwrap();
        let third = keystore
            .add_slot("third", &NewSecret::KeyFile(&key_file(3)), 1)
            .unwrap();
        keystore.body.slots[1].public_key = vec![0xFF; 1216];
        assert_eq!(
            keystore.remove_slot(third, 1),
            Err(KeystoreError::UnusableSlot { slot: bad })
        );
        let _ = keystore.remove_slot(bad, 1).unwrap();
        let _ = keystore.remove_slot(third, 1).unwrap();
    }

    #[test]
    fn the_id_of_a_removed_slot_is_free_again() {
        let mut keystore = keystore();
        let (two, three) = (key_file(2), key_file(3));
        assert_eq!(keystore.add_slot("two", &NewSecret::KeyFile(&two), 1), Ok(SlotId(2)));
        assert_eq!(
            keystore.add_slot("three", &NewSecret::KeyFile(&three), 1),
            Ok(SlotId(3))
        );
        let _ = keystore.remove_slot(SlotId(2), 1).unwrap();
        assert_eq!(keystore.add_slot("new", &NewSecret::KeyFile(&two), 1), Ok(SlotId(2)));
        let bytes = keystore.encode(1).unwrap();
        assert!(unlock(&bytes, 2).is_ok());
    }

    #[test]
    fn an_epoch_floor_never_falls() {
        let mut keystore = keystore();
        assert_eq!(keystore.epoch_floor(VAULT), None);
        assert_eq!(keystore.raise_epoch_floor(VAULT, Epoch(2)), Ok(true));
        assert_eq!(keystore.raise_epoch_floor(VaultId([1; 16]), Epoch(9)), Ok(true));
        assert_eq!(keystore.raise_epoch_floor(VAULT, Epoch(1)), Ok(false));
        assert_eq!(keystore.raise_epoch_floor(VAULT, Epoch(2)), Ok(false));
        assert_eq!(keystore.raise_epoch_floor(VAULT, Epoch(3)), Ok(true));
        let bytes = keystore.encode(1).unwrap();
        assert_eq!(unlock(&bytes, 1).unwrap().epoch_floor(VAULT), Some(Epoch(3)));
    }

    #[test]
    fn records_of_vaults_have_a_limit() {
        let mut keystore = keystore();
        let vault = |i: usize| VaultId(std::array::from_fn(|at| if at < 8 { i.to_be_bytes()[at] } else { 0 }));
        for i in 0..VAULTS_MAX {
            keystore.raise_epoch_floor(vault(i), Epoch(1)).unwrap();
        }
        let vault = vault(VAULTS_MAX);
        assert_eq!(
            keystore.raise_epoch_floor(vault, Epoch(1)),
            Err(KeystoreError::TooManyVaults { vault })
        );
        assert!(keystore.encode(1).is_ok());
    }

    #[test]
    fn each_store_is_a_new_generation_and_time_stands_still_rather_than_back() {
        let mut keystore = keystore();
        keystore.encode(500).unwrap();
        keystore.encode(400).unwrap();
        assert_eq!((keystore.generation(), keystore.body.last_time), (2, 500));
        keystore.rotate(&default_key(&keystore), 300).unwrap();
        assert_eq!(keystore.keys()[0].materials[1].created, 500);
    }

    #[test]
    fn a_new_keystore_has_the_default_key() {
        let keystore = keystore();
        assert_eq!(keystore.keys().len(), 1);
        assert_eq!(keystore.keys()[0].manager, Manager::Hushfs);
        assert_eq!(keystore.aliases()[0].name, DEFAULT_ALIAS);
        assert_eq!(keystore.key_of_alias("alias/other"), None);
    }

    #[test]
    fn keys_are_not_printed() {
        let printed = format!("{:?}", keystore());
        assert!(printed.contains("root: KeystoreRoot([redacted])"), "{printed}");
    }
}
