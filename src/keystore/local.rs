//! The local keystore: master keys in a file that a slot opens; the custodian that needs no server.
//!
//! It takes bytes and gives bytes; whoever calls loads and stores them, and makes sure that one process at a time changes a keystore.
//! A change is in memory until the bytes of [`LocalKeystore::encode`] are stored. docs/FORMAT.md section 4 has the file.

mod audit;
mod error;
mod keys;
mod names;
mod rotation;
mod shared;
mod slots;
#[cfg(test)]
mod tests;
mod vaults;

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use subtle::ConstantTimeEq;

use self::shared::CopyOnWrite;
pub use self::{
    error::KeystoreError,
    keys::{DELETION_DAYS_DEFAULT, NewKey, Reaped},
    rotation::{ON_DEMAND_ROTATIONS_MAX, ROTATION_DAYS_DEFAULT, RotationStatus},
    slots::{Rekeyed, free_label},
    vaults::{Standing, VaultLook, VaultUse},
};
use super::{
    custodian::{Context, Custodian, KeyError, KeyHandle, WrappedKey},
    policy::{DEFAULT_POLICY, Principal, action},
    provider::{self, Bound, NoProvider, Provider, Providers, Reach},
    secret::{NewSecret, Unlock},
    slot::{SlotChoice, UnlockError, try_slots},
};
use crate::{
    crypto::{
        derive::key_material_id,
        keys::{EpochKey, KeystoreRoot, MasterKey},
        locked::LockedKey,
        random,
        wrap::{self, WRAPPED_SIZE, Wrapped},
    },
    format::{
        FormatError,
        keystore::{
            self as file, AuditHead, KeyOperation, KeyRecord, KeystoreBody, LastUse, MATERIALS_MAX, Material,
            MaterialCause, MaterialVersion, RemoteKeyName, Slot, SlotId, UnverifiedKeystoreFile, VaultRecord,
            material_aad,
        },
    },
    ids::{KeyId, KeystoreId},
};

/// The alias of the key that a new keystore has; vaults use it unless told otherwise.
pub const DEFAULT_ALIAS: &str = "alias/hushfs/default";

/// An unlocked local keystore.
///
/// Operations that fail change nothing but the latest time seen.
#[derive(Debug)]
pub struct LocalKeystore {
    body: CopyOnWrite<KeystoreBody>,
    root: Arc<KeystoreRoot>,
    providers: Providers,
    principal: Principal,
    /// The policy of keys that have none of their own; empty for [`DEFAULT_POLICY`].
    default_policy: Arc<str>,
    /// What keys were used for since the last store. Nothing else may be locked by who holds it.
    uses: Arc<Mutex<BTreeMap<KeyId, KeyOperation>>>,
}

/// A keystore as it was at some time.
#[derive(Debug)]
pub struct Checkpoint {
    body: CopyOnWrite<KeystoreBody>,
    root: Arc<KeystoreRoot>,
}

/// Whether a secret opens a slot, and why not.
pub type Tried = (SlotId, Result<(), UnlockError>);

impl LocalKeystore {
    /// Makes a keystore with one slot, and one key that hushfs manages, under [`DEFAULT_ALIAS`].
    ///
    /// `now` is seconds since 1970, here and below.
    ///
    /// # Errors
    ///
    /// Those of [`add_slot`](Self::add_slot).
    pub fn create(label: &str, secret: &NewSecret<'_>, now: u64) -> Result<Self, KeystoreError> {
        let mut keystore = Self::with_slot(label, secret, now)?;
        let key = keystore.make_managed_key(now)?;
        keystore.insert_alias(DEFAULT_ALIAS, key.0);
        Ok(keystore)
    }

    /// Makes a keystore with one slot, and one key that a key server or an HSM holds, under [`DEFAULT_ALIAS`].
    ///
    /// # Errors
    ///
    /// Those of [`add_slot`](Self::add_slot) and [`create_key`](Self::create_key).
    pub fn create_for(
        remote: &RemoteKeyName,
        providers: Providers,
        (label, secret): (&str, &NewSecret<'_>),
        now: u64,
    ) -> Result<Self, KeystoreError> {
        let mut keystore = Self::with_slot(label, secret, now)?;
        keystore.set_providers(providers);
        let new = NewKey {
            remote: Some(remote.clone()),
            ..NewKey::default()
        };
        let key = keystore.create_key(&new, now)?;
        keystore.insert_alias(DEFAULT_ALIAS, key.0);
        Ok(keystore)
    }

    /// Makes a keystore with one slot, and no key yet.
    fn with_slot(label: &str, secret: &NewSecret<'_>, now: u64) -> Result<Self, KeystoreError> {
        let mut keystore = LocalKeystore {
            body: CopyOnWrite::new(KeystoreBody {
                id: KeystoreId(random::bytes()),
                generation: 0,
                last_time: now,
                audit: AuditHead::default(),
                slots: Vec::new(),
                keys: Vec::new(),
                aliases: Vec::new(),
                vaults: Vec::new(),
                extensions: Vec::new(),
            }),
            root: Arc::new(KeystoreRoot::new(random::locked_key())),
            providers: Providers::default(),
            principal: Principal::of_process(label),
            default_policy: Arc::default(),
            uses: Arc::default(),
        };
        keystore.add_slot(label, secret, now)?;
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
        let role = body.slots.iter().find(|other| other.id == slot);
        let keystore = LocalKeystore {
            principal: Principal::of_process(role.map_or("", |slot| &slot.label)),
            body: CopyOnWrite::new(body),
            root: Arc::new(root),
            providers: Providers::default(),
            default_policy: Arc::default(),
            uses: Arc::default(),
        };
        Ok((keystore, slot))
    }

    /// Tries a secret on each slot that it may open, and tells of each whether it does.
    ///
    /// A TPM or a server that will not answer differently is asked once.
    ///
    /// # Errors
    ///
    /// [`UnlockError::Format`] when this is no keystore.
    pub fn try_each(bytes: &[u8], unlock: &Unlock) -> Result<Vec<Tried>, UnlockError> {
        let mut tried = Vec::new();
        for slot in UnverifiedKeystoreFile::decode(bytes)?.slots() {
            let result = Self::unlock(bytes, unlock, &SlotChoice::Id(slot.id)).map(drop);
            let is_last = result.as_ref().is_err_and(UnlockError::ends_tries);
            if result != Err(UnlockError::NoSlotOfKind(unlock.kind())) {
                tried.push((slot.id, result));
            }
            if is_last {
                break;
            }
        }
        Ok(tried)
    }

    /// Takes the keystore as someone else has stored it meanwhile.
    ///
    /// # Errors
    ///
    /// [`FormatError::NotAuthentic`] when it has another root now, and so another set of secrets may open it, or is older than this one.
    pub fn refresh(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let body = UnverifiedKeystoreFile::decode(bytes)?.verify(&self.root.mac_key())?;
        if body.id != self.body.id || body.generation < self.body.generation {
            return Err(FormatError::NotAuthentic);
        }
        self.body = CopyOnWrite::new(body);
        Ok(())
    }

    /// Returns the keystore as someone else has stored it meanwhile, beside this one; nothing when that is older than this one.
    ///
    /// # Errors
    ///
    /// [`FormatError::NotAuthentic`] when it is another keystore, or has another root now, and so another set of secrets may open it.
    pub fn stored_meanwhile(&self, bytes: &[u8]) -> Result<Option<Self>, FormatError> {
        let body = UnverifiedKeystoreFile::decode(bytes)?.verify(&self.root.mac_key())?;
        if body.id != self.body.id {
            return Err(FormatError::NotAuthentic);
        }
        Ok((body.generation >= self.body.generation).then(|| LocalKeystore {
            body: CopyOnWrite::new(body),
            root: self.root.clone(),
            providers: self.providers.clone(),
            principal: self.principal.clone(),
            default_policy: self.default_policy.clone(),
            uses: Arc::default(),
        }))
    }

    /// Says who asks from now on; at first it is who runs this process, in the role of the slot that opened the keystore.
    pub fn set_principal(&mut self, principal: Principal) {
        self.principal = principal;
    }

    /// Says what holds for keys without a policy of their own. At first it is the default: whoever opens the keystore may do everything.
    pub fn set_default_policy(&mut self, policy: &str) {
        self.default_policy = policy.into();
    }

    /// Returns the policy of keys that have none of their own.
    pub fn default_policy(&self) -> &str {
        match &*self.default_policy {
            "" => DEFAULT_POLICY,
            policy => policy,
        }
    }

    /// Returns the keystore as it is now, to be asked by someone else: what happens to this one meanwhile does not change it.
    ///
    /// Uses of keys are noted in this one too. Changes of it are not: it is of no use after them, and must not be stored.
    pub fn asked_by(&self, principal: Principal) -> LocalKeystore {
        LocalKeystore {
            body: self.body.clone(),
            root: self.root.clone(),
            providers: self.providers.clone(),
            principal,
            default_policy: self.default_policy.clone(),
            uses: self.uses.clone(),
        }
    }

    /// Returns what [`restore`](Self::restore) takes: the keystore as it is now.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            body: self.body.clone(),
            root: self.root.clone(),
        }
    }

    /// Takes back every change since a checkpoint, for a change that could not be stored.
    pub fn restore(&mut self, checkpoint: Checkpoint) {
        self.body = checkpoint.body;
        self.root = checkpoint.root;
    }

    /// Tells what it takes to use all of its keys.
    pub fn reach(&self) -> Reach {
        self.reach_of(self.keys().iter())
    }

    /// Tells what it takes to use some of its keys.
    pub fn reach_of<'k>(&self, keys: impl Iterator<Item = &'k KeyRecord>) -> Reach {
        let remote = keys.filter_map(|key| self.providers.of(key.remote.as_ref()?).ok());
        remote.map(Provider::reach).max().unwrap_or(Reach::Here)
    }

    /// Returns what messages call who serves a key; none of one whose materials are here, or that nobody serves.
    pub fn provider_name(&self, key: &KeyHandle) -> Option<&'static str> {
        let record = &self.body.keys[self.key_index(key).ok()?];
        let provider = self.providers.of(record.remote.as_ref()?).ok()?;
        Some(provider.name())
    }

    /// Returns who serves the keys that a key server or an HSM holds.
    pub fn providers(&self) -> &Providers {
        &self.providers
    }

    /// Says who serves the keys that a key server or an HSM holds.
    pub fn set_providers(&mut self, providers: Providers) {
        self.providers = providers;
    }

    /// Returns the keystore as bytes to store, as its next generation.
    ///
    /// # Errors
    ///
    /// [`FormatError::OutOfRange`] when it has outgrown the file's limit. What is stored stays good; unlock that again.
    pub fn encode(&mut self, now: u64) -> Result<Vec<u8>, FormatError> {
        let time = self.clock(now);
        for (key, operation) in std::mem::take(&mut *self.uses.lock()) {
            // A key that was destroyed meanwhile has no more uses.
            if let Some(key) = self.body.keys.iter_mut().find(|record| record.id == key) {
                key.last_use = Some(LastUse { operation, time });
            }
        }
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

    /// Returns the latest time seen, before which no time counts.
    pub fn latest_time(&self) -> u64 {
        self.body.last_time
    }

    /// Returns the slots, by rising id.
    pub fn slots(&self) -> &[Slot] {
        &self.body.slots
    }

    /// Returns the keys, by rising id; their materials are wrapped.
    pub fn keys(&self) -> &[KeyRecord] {
        &self.body.keys
    }

    /// Returns what is known of the vaults that use the keystore, by rising id.
    pub fn vaults(&self) -> &[VaultRecord] {
        &self.body.vaults
    }

    /// Tells whether a blob is wrapped under the newest material of a key. If not, whoever was shut out since may be able to open it.
    ///
    /// A remote key has one version here: who was shut out of the keystore is shut out of it elsewhere.
    pub fn is_under_newest(&self, key: &KeyHandle, wrapped: &WrappedKey) -> bool {
        let Ok(at) = self.key_index(key) else { return false };
        let key = &self.body.keys[at];
        match (key.materials.last(), decode_blob(wrapped)) {
            (Some(newest), Some((version, _))) => newest.version == version,
            _ => key.remote.is_some(),
        }
    }

    /// Takes a reading of the clock and returns the time: one set back stands still here.
    fn clock(&mut self, now: u64) -> u64 {
        let before = self.body.last_time;
        self.body.last_time = before.max(now);
        self.postpone_unseen(before);
        self.body.last_time
    }

    fn key_index(&self, key: &KeyHandle) -> Result<usize, KeyError> {
        self.body
            .keys
            .binary_search_by_key(&key.0, |other| other.id)
            .map_err(|_| KeyError::NotFound { key: key.0 })
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

    /// Wraps a secret under a key that may be used.
    fn wrap_under(&self, key: &KeyRecord, context: &Context, secret: &EpochKey) -> Result<WrappedKey, KeyError> {
        if let Some(name) = &key.remote {
            return self.wrap_remotely(key.id, name, context, secret);
        }
        let material = key
            .materials
            .last()
            .expect("every key that is not remote has a material");
        let master = self.unwrap_material(key.id, material)?;
        let aad = self.epoch_key_aad(key.id, material.version, context);
        let wrapped = wrap::wrap(master.as_bytes(), &aad, secret.as_bytes());
        Ok(encode_blob(material.version, &wrapped))
    }

    /// Unwraps what was wrapped under a key that may be used.
    fn unwrap_under(&self, key: &KeyRecord, context: &Context, wrapped: &WrappedKey) -> Result<EpochKey, KeyError> {
        if let Some(name) = &key.remote {
            return self.unwrap_remotely(key.id, name, context, wrapped);
        }
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

    fn wrap_remotely(
        &self,
        key: KeyId,
        name: &RemoteKeyName,
        context: &Context,
        secret: &EpochKey,
    ) -> Result<WrappedKey, KeyError> {
        let provider = self.provider_of(key, name)?;
        let purpose = &remote_purpose(key);
        let wrap = match context.is_for_file_of_vault() {
            // A call for each file is enough; whoever puts it in the place of another opens it first.
            true => provider::wrap_unopened,
            false => provider::wrap,
        };
        let blob = wrap(provider, name, &Bound { purpose, context }, secret.as_bytes())
            .map_err(|error| error.of_key(key, provider.name()))?;
        WrappedKey::new(blob).map_err(|_| KeyError::Limit { key })
    }

    fn unwrap_remotely(
        &self,
        key: KeyId,
        name: &RemoteKeyName,
        context: &Context,
        wrapped: &WrappedKey,
    ) -> Result<EpochKey, KeyError> {
        let provider = self.provider_of(key, name)?;
        let purpose = &remote_purpose(key);
        provider::unwrap(
            provider,
            name,
            &Bound { purpose, context },
            wrapped.as_bytes(),
            |bytes| EpochKey::new(LockedKey::copy_of(bytes)),
        )
        .map_err(|error| error.of_key(key, provider.name()))
    }

    fn provider_of(&self, key: KeyId, name: &RemoteKeyName) -> Result<&dyn Provider, KeyError> {
        self.providers
            .of(name)
            .map_err(|NoProvider(provider)| KeyError::NoProvider { key, provider })
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
    fn id(&self) -> KeystoreId {
        self.body.id
    }

    fn wrap(&self, key: &KeyHandle, context: &Context, secret: &EpochKey) -> Result<WrappedKey, KeyError> {
        let record = self.usable(key, action::ENCRYPT, context)?;
        let wrapped = self.wrap_under(record, context, secret)?;
        self.note_use(key, KeyOperation::Encrypt);
        Ok(wrapped)
    }

    fn unwrap(&self, key: &KeyHandle, context: &Context, wrapped: &WrappedKey) -> Result<EpochKey, KeyError> {
        let record = self.usable(key, action::DECRYPT, context)?;
        let secret = self.unwrap_under(record, context, wrapped)?;
        self.note_use(key, KeyOperation::Decrypt);
        Ok(secret)
    }

    fn generate(&self, key: &KeyHandle, context: &Context) -> Result<(EpochKey, WrappedKey), KeyError> {
        let record = self.usable(key, action::GENERATE_DATA_KEY, context)?;
        let secret = EpochKey::new(random::locked_key());
        let wrapped = self.wrap_under(record, context, &secret)?;
        self.note_use(key, KeyOperation::GenerateDataKey);
        Ok((secret, wrapped))
    }

    fn rewrap(
        &self,
        from: &KeyHandle,
        context: &Context,
        wrapped: &WrappedKey,
        to: &KeyHandle,
        to_context: &Context,
    ) -> Result<WrappedKey, KeyError> {
        let source = self.usable(from, action::RE_ENCRYPT_FROM, context)?;
        let target = self.usable(to, action::RE_ENCRYPT_TO, to_context)?;
        let secret = self.unwrap_under(source, context, wrapped)?;
        let rewrapped = self.wrap_under(target, to_context, &secret)?;
        let again = self.unwrap_under(target, to_context, &rewrapped)?;
        if !bool::from(secret.as_bytes().ct_eq(again.as_bytes())) {
            return Err(KeyError::Commitment { key: to.0 });
        }
        self.note_use(from, KeyOperation::ReEncrypt);
        self.note_use(to, KeyOperation::ReEncrypt);
        Ok(rewrapped)
    }
}

/// Returns what a wrap by a remote key is for. Not bound to the keystore: a new one, with a key of the same id and name, opens it.
fn remote_purpose(key: KeyId) -> Vec<u8> {
    [b"hushfs v1 remote key wrap".as_slice(), &key.0].concat()
}

/// When and why a material is made.
#[derive(Clone, Copy)]
struct Made {
    time: u64,
    cause: MaterialCause,
}

/// Makes the material that follows the ones a key has.
fn next_material(root: &KeystoreRoot, keystore: KeystoreId, key: &KeyRecord, made: Made) -> Result<Material, KeyError> {
    if key.remote.is_some() {
        return Err(KeyError::Unsupported { key: key.id });
    }
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
        created: made.time,
        cause: made.cause,
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

/// Returns the version of a key of a keystore, not a remote one, that something was wrapped under.
pub fn version_of(wrapped: &WrappedKey) -> Option<MaterialVersion> {
    decode_blob(wrapped).map(|(version, _)| version)
}

fn decode_blob(blob: &WrappedKey) -> Option<(MaterialVersion, Wrapped)> {
    let (version, wrapped) = blob.as_bytes().split_first_chunk::<4>()?;
    let wrapped: [u8; WRAPPED_SIZE] = wrapped.try_into().ok()?;
    Some((MaterialVersion(u32::from_le_bytes(*version)), Wrapped(wrapped)))
}

#[cfg(test)]
impl LocalKeystore {
    /// Makes a keystore with a key that a provider holds.
    #[cfg(any(feature = "aws", feature = "pkcs11"))]
    pub(super) fn for_remote_key(name: RemoteKeyName, providers: Providers) -> (Self, KeyHandle) {
        let file = super::slot::tests::key_file(1);
        let mut keystore = LocalKeystore::create("stick", &NewSecret::KeyFile(&file), 1).unwrap();
        keystore.set_providers(providers);
        // Not asked whether it can be used: some tests begin with one that cannot.
        let key = KeyRecord {
            remote: Some(name),
            ..keys::blank_key(file::Manager::Customer, 1)
        };
        let handle = KeyHandle(key.id);
        let at = keystore.body.keys.partition_point(|other| other.id < key.id);
        keystore.body.keys.insert(at, key);
        (keystore, handle)
    }

    /// Encodes the keystore with a slot that is said to be of another kind.
    pub(super) fn encode_with_kind(mut self, slot: SlotId, kind: file::SlotKind) -> Vec<u8> {
        let at = self.slot_index(slot).unwrap();
        self.body.slots[at].kind = kind;
        self.encode(1).unwrap()
    }
}
