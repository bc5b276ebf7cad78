//! The local keystore's file: docs/FORMAT.md section 4.
//!
//! Its slots can be read by anyone, for they are needed to open it; everything else is believed only after
//! [`UnverifiedKeystoreFile::verify`]. What a slot or a key means is decided in [`keystore`](crate::keystore).

mod audit;
mod key;
mod names;
mod slot;
#[cfg(test)]
mod tests;
mod v1;

use serde::{Deserialize, Serialize};

pub use self::{
    audit::{AuditSettings, audit_seed_aad},
    key::{
        ARN_LEN_MAX, DESCRIPTION_LEN_MAX, KeyOperation, KeyRecord, KeyState, LastUse, MATERIALS_MAX, Manager, Material,
        MaterialCause, MaterialVersion, POLICY_LEN_MAX, RemoteKeyName, Rotation, TAG_NAME_CHARS_MAX,
        TAG_VALUE_CHARS_MAX, TAGS_MAX, TOKEN_KEY_NAME_LEN_MAX, TOKEN_LABEL_LEN_MAX, Tag, material_aad,
    },
    slot::{
        COMMAND_LEN_MAX, COMMAND_WORDS_MAX, CREDENTIAL_NAME_LEN_MAX, LABEL_LEN_MAX, SLOT_BLOB_SIZE_MAX, SealedBytes,
        Slot, SlotId, SlotKind, TPM_BLOB_SIZE_MAX, TPM_PCRS_MAX, recipient_slot_aad, remote_slot_purpose, slot_aad,
        slot_authenticator_aad,
    },
};
use super::{
    FormatError,
    body::{self, Extension},
};
use crate::{
    crypto::keys::MacKey,
    ids::{Epoch, KeyId, KeystoreId, VaultId},
};

/// The version of the keystore's format; version 1 is read too.
pub const KEYSTORE_VERSION: u16 = 2;

/// The most bytes a body may have.
pub const BODY_SIZE_MAX: usize = 4 * 1024 * 1024;

const KIND: body::Kind = body::Kind {
    magic: b"HUSHKEYS",
    version: KEYSTORE_VERSION,
    size_max: BODY_SIZE_MAX,
};

/// The most slots a keystore may have.
pub const SLOTS_MAX: usize = 32;

/// The most keys a keystore may have.
pub const KEYS_MAX: usize = 1024;

/// The most aliases a keystore may have.
pub const ALIASES_MAX: usize = 4096;

/// The most vaults a keystore may keep a record of.
pub const VAULTS_MAX: usize = 4096;

/// The most keys that the epochs of one vault may be wrapped under.
pub const VAULT_KEYS_MAX: usize = 16;

/// The most bytes the path of a vault may have; of a longer one none is kept.
pub const VAULT_PATH_LEN_MAX: usize = 255;

/// The largest record of a vault, encoded: id, lowest epoch, path, keys, files, last use; and its mark.
const VAULT_SIZE_MAX: usize =
    16 + 4 + (8 + VAULT_PATH_LEN_MAX) + (8 + VAULT_KEYS_MAX * (16 + 4 + 4)) + (1 + 8 + 8) + (1 + 8) + names::MARK_SIZE;

// All slots, all vaults and a key that was rotated to its limit fit together. Not every limit can be reached at once.
const _: () =
    assert!(SLOTS_MAX * slot::SLOT_SIZE_MAX + VAULTS_MAX * VAULT_SIZE_MAX + key::KEY_SIZE_MAX + 1024 < BODY_SIZE_MAX);

/// A keystore as stored, without the front and the MAC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeystoreBody {
    /// Random, made once.
    pub id: KeystoreId,
    /// Grows with every store.
    pub generation: u64,
    /// The latest clock reading the keystore has seen, in seconds since 1970.
    pub last_time: u64,
    /// The end of the audit log when the keystore was stored.
    pub audit: AuditHead,
    /// How the keystore is opened, by rising id.
    pub slots: Vec<Slot>,
    /// The master keys, by rising id.
    pub keys: Vec<KeyRecord>,
    /// Other names of keys, by rising name.
    pub aliases: Vec<Alias>,
    /// What is known of the vaults that use the keystore, by rising id.
    pub vaults: Vec<VaultRecord>,
    /// What later versions added.
    pub extensions: Vec<Extension>,
}

/// How far an audit log goes: one that ends before this was cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditHead {
    /// How many records it has had; 0 where there is no log.
    pub seq: u64,
    /// The hash of the last one; zero where there is no log.
    pub hash: [u8; 32],
}

/// Another name of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// The name, starting with `alias/`.
    pub name: String,
    /// The key it stands for.
    pub key: KeyId,
}

/// What a keystore knows of a vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultRecord {
    /// The vault.
    pub vault: VaultId,
    /// The lowest number its current epoch may have.
    ///
    /// Who knows the key of an older epoch could otherwise put an older vault header back and read what is written next.
    pub lowest_epoch: Epoch,
    /// Where it was last seen; empty when the keystore lies in it, or that is not known.
    pub path: String,
    /// The keys that its epochs are wrapped under, by rising id, as far as that is known.
    pub keys: Vec<VaultKey>,
    /// How many files it had.
    pub files: Option<FileCount>,
    /// When it was last opened, in seconds since 1970, as far as that was stored.
    pub last_use: Option<u64>,
}

impl VaultRecord {
    /// Makes the record of a vault of which no more is known.
    pub fn new(vault: VaultId, lowest_epoch: Epoch) -> Self {
        VaultRecord {
            vault,
            lowest_epoch,
            path: String::new(),
            keys: Vec::new(),
            files: None,
            last_use: None,
        }
    }
}

/// What a vault needs a key for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultKey {
    /// The key.
    pub key: KeyId,
    /// Epochs that are wrapped under it.
    pub epochs: u32,
    /// Those of them that nothing else opens: without the key their files are lost.
    pub alone: u32,
}

/// How many files a vault had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCount {
    /// So many.
    pub count: u64,
    /// When they were counted, in seconds since 1970.
    pub time: u64,
}

/// A keystore file whose MAC has not been checked: good for finding a slot to open, and nothing else.
#[derive(Debug)]
pub struct UnverifiedKeystoreFile<'a> {
    body: KeystoreBody,
    message: &'a [u8],
    mac: [u8; body::MAC_SIZE],
}

impl<'a> UnverifiedKeystoreFile<'a> {
    /// Decodes a keystore file and checks every limit.
    ///
    /// # Errors
    ///
    /// The [`FormatError`] that names the first thing wrong.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let (body, rest) = match body::version(KIND, bytes)? {
            1 => v1::decode(bytes)?,
            _ => body::decode(KIND, bytes)?,
        };
        let (message, mac) = body::split_mac(bytes, rest)?;
        check(&body)?;
        Ok(Self { body, message, mac })
    }

    /// Returns the keystore's id. Not authenticated.
    pub fn id(&self) -> KeystoreId {
        self.body.id
    }

    /// Returns the slots. Not authenticated: who shows a label must expect any characters in it.
    pub fn slots(&self) -> &[Slot] {
        &self.body.slots
    }

    /// Checks the MAC and returns the body.
    ///
    /// # Errors
    ///
    /// [`FormatError::NotAuthentic`] when the file was changed, or written under another root.
    pub fn verify(self, key: &MacKey) -> Result<KeystoreBody, FormatError> {
        if key.check(self.message, &self.mac) {
            Ok(self.body)
        } else {
            Err(FormatError::NotAuthentic)
        }
    }
}

/// Encodes a keystore file.
///
/// # Errors
///
/// The [`FormatError`] that a reader would have given: nothing is written that cannot be read.
pub fn encode(keystore: &KeystoreBody, key: &MacKey) -> Result<Vec<u8>, FormatError> {
    check(keystore)?;
    let mut out = body::encode(KIND, keystore)?;
    let mac = key.mac(&out);
    out.extend_from_slice(&mac);
    Ok(out)
}

/// Checks everything about a body that its types leave open.
fn check(keystore: &KeystoreBody) -> Result<(), FormatError> {
    body::check_extensions(&keystore.extensions, &[audit::EXTENSION, names::EXTENSION])?;
    audit::check(&keystore.extensions)?;
    names::check(&keystore.extensions)?;
    in_range((1..=SLOTS_MAX).contains(&keystore.slots.len()), "number of slots")?;
    in_range((1..=KEYS_MAX).contains(&keystore.keys.len()), "number of keys")?;
    in_range(keystore.aliases.len() <= ALIASES_MAX, "number of aliases")?;
    in_range(keystore.vaults.len() <= VAULTS_MAX, "number of vaults")?;
    in_range(body::rises(keystore.slots.iter().map(|slot| slot.id)), "slot id")?;
    in_range(body::rises(keystore.keys.iter().map(|key| key.id)), "key id")?;
    in_range(
        body::rises(keystore.aliases.iter().map(|alias| &alias.name)),
        "name of an alias",
    )?;
    in_range(
        body::rises(keystore.vaults.iter().map(|record| record.vault)),
        "vault id",
    )?;
    keystore.slots.iter().try_for_each(slot::check_slot)?;
    keystore.keys.iter().try_for_each(key::check_key)?;
    keystore.vaults.iter().try_for_each(check_vault)
}

fn check_vault(record: &VaultRecord) -> Result<(), FormatError> {
    in_range(record.path.len() <= VAULT_PATH_LEN_MAX, "length of a path")?;
    in_range(record.keys.len() <= VAULT_KEYS_MAX, "number of a vault's keys")?;
    in_range(body::rises(record.keys.iter().map(|key| key.key)), "key id of a vault")
}

/// Checks a text that must not be empty.
fn check_text(text: &str, len_max: usize, field: &'static str) -> Result<(), FormatError> {
    in_range((1..=len_max).contains(&text.len()) && !text.contains('\0'), field)
}

fn in_range(holds: bool, field: &'static str) -> Result<(), FormatError> {
    if holds {
        Ok(())
    } else {
        Err(FormatError::OutOfRange(field))
    }
}
