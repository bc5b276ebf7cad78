//! A keystore's master keys as stored.

use serde::{Deserialize, Serialize};

use super::{check_text, in_range};
use crate::{
    crypto::wrap::{WRAPPED_SIZE, Wrapped},
    format::{FormatError, body},
    ids::{KeyId, KeystoreId},
};

/// The most bytes the description of a key may have.
pub const DESCRIPTION_LEN_MAX: usize = 8192;

/// The most materials a key may have.
pub const MATERIALS_MAX: usize = 1000;

/// The most tags a key may have.
pub const TAGS_MAX: usize = 50;

/// The most characters the name of a tag may have. It has at least one.
pub const TAG_NAME_CHARS_MAX: usize = 128;

/// The most characters the value of a tag may have.
pub const TAG_VALUE_CHARS_MAX: usize = 256;

/// The most bytes a key's policy may have.
pub const POLICY_LEN_MAX: usize = 32 * 1024;

/// The most bytes an ARN may have.
pub const ARN_LEN_MAX: usize = 2048;

/// The most bytes the label of a token may have: what PKCS#11 has room for.
pub const TOKEN_LABEL_LEN_MAX: usize = 32;

/// The most bytes the label of a key in a token, or its id, may have.
pub const TOKEN_KEY_NAME_LEN_MAX: usize = 255;

/// A tag, encoded: at most four bytes for each character.
const TAG_SIZE_MAX: usize = (8 + 4 * TAG_NAME_CHARS_MAX) + (8 + 4 * TAG_VALUE_CHARS_MAX);

/// The largest key, encoded: id, manager, remote, state with date, created, description, rotation, tags, policy, last use, materials.
pub(super) const KEY_SIZE_MAX: usize = 16
    + 4
    + (1 + RemoteKeyName::SIZE_MAX)
    + (4 + 8)
    + 8
    + (8 + DESCRIPTION_LEN_MAX)
    + (1 + 4 + 8)
    + (8 + TAGS_MAX * TAG_SIZE_MAX)
    + (8 + POLICY_LEN_MAX)
    + (1 + 4 + 8)
    + (8 + MATERIALS_MAX * (4 + 32 + 8 + 4 + WRAPPED_SIZE));

/// A master key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Random, made once.
    pub id: KeyId,
    /// Who may administer it.
    pub manager: Manager,
    /// The key in a key server or an HSM that this record stands for; none when its materials are here.
    pub remote: Option<RemoteKeyName>,
    /// Whether it may be used.
    pub state: KeyState,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// What the user says it is for.
    pub description: String,
    /// When it rotates by itself, if the user says so. The key that hushfs manages rotates every year whatever stands here.
    pub rotation: Option<Rotation>,
    /// What the user calls it by, rising by name.
    pub tags: Vec<Tag>,
    /// The JSON text of its policy; empty for the default.
    pub policy: String,
    /// What it was last used for, as far as that was stored.
    pub last_use: Option<LastUse>,
    /// Its versions, rising; the last is the current one, the others only unwrap. At least one, but none of a remote key.
    pub materials: Vec<Material>,
}

/// Who may administer a key. The order is that of the numbers in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Manager {
    /// The user.
    Customer,
    /// hushfs itself, as the default key.
    Hushfs,
}

/// Names a key that a server or an HSM holds: never where to find that, for a file must not choose a server or a library on the client.
///
/// The order is that of the numbers in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RemoteKeyName {
    /// A key of AWS KMS.
    AwsKms {
        /// Its ARN.
        arn: String,
    },
    /// A key in a PKCS#11 token.
    Pkcs11 {
        /// The label of the token.
        token: String,
        /// The label of the key (CKA_LABEL); empty where the id is enough.
        label: String,
        /// The id of the key (CKA_ID); empty where the label is enough. Not both.
        id: Vec<u8>,
    },
}

impl RemoteKeyName {
    /// The largest one, encoded: an ARN.
    pub(super) const SIZE_MAX: usize = 4 + 8 + ARN_LEN_MAX;

    /// Returns what holds the key as one word, for lists.
    pub fn word(&self) -> &'static str {
        match self {
            RemoteKeyName::AwsKms { .. } => "aws-kms",
            RemoteKeyName::Pkcs11 { .. } => "pkcs11",
        }
    }

    /// Tells whether a key is the one that this names, or one of those: label or id may be enough to name a key in a token.
    pub fn names(&self, key: &RemoteKeyName) -> bool {
        match (self, key) {
            (
                RemoteKeyName::Pkcs11 { token, label, id },
                RemoteKeyName::Pkcs11 {
                    token: own_token,
                    label: own_label,
                    id: own_id,
                },
            ) => token == own_token && (label.is_empty() || label == own_label) && (id.is_empty() || id == own_id),
            (one, other) => one == other,
        }
    }

    pub(super) fn check(&self) -> Result<(), FormatError> {
        match self {
            RemoteKeyName::AwsKms { arn } => {
                check_text(arn, ARN_LEN_MAX, "ARN of a key")?;
                let is_arn = arn.starts_with("arn:") && arn.bytes().all(|byte| byte.is_ascii_graphic());
                in_range(is_arn, "ARN of a key")
            }
            RemoteKeyName::Pkcs11 { token, label, id } => {
                check_text(token, TOKEN_LABEL_LEN_MAX, "label of a token")?;
                if !label.is_empty() || id.is_empty() {
                    check_text(label, TOKEN_KEY_NAME_LEN_MAX, "label of a key in a token")?;
                }
                in_range(id.len() <= TOKEN_KEY_NAME_LEN_MAX, "id of a key in a token")
            }
        }
    }
}

const _: () = assert!(
    RemoteKeyName::SIZE_MAX >= 4 + (8 + TOKEN_LABEL_LEN_MAX) + 2 * (8 + TOKEN_KEY_NAME_LEN_MAX),
    "an ARN is the longest name"
);

impl std::fmt::Display for RemoteKeyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RemoteKeyName::AwsKms { arn } => f.write_str(arn),
            RemoteKeyName::Pkcs11 { token, label, id } if label.is_empty() => {
                write!(f, "key {} of token {token:?}", data_encoding::HEXLOWER.encode(id))
            }
            RemoteKeyName::Pkcs11 { token, label, .. } => write!(f, "key {label:?} of token {token:?}"),
        }
    }
}

/// Whether a key may be used. The order is that of the numbers in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyState {
    /// It wraps and unwraps.
    Enabled,
    /// It does neither until it is enabled.
    Disabled,
    /// It does neither, and will be destroyed.
    PendingDeletion {
        /// The earliest time of that, in seconds since 1970.
        date: u64,
    },
}

/// When a key rotates by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Days from one rotation to the next.
    pub period_days: u32,
    /// The next one, in seconds since 1970.
    pub next: u64,
}

/// A name and a value that the user has given a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// The name.
    pub name: String,
    /// The value.
    pub value: String,
}

/// What a key was last used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastUse {
    /// What was done with it.
    pub operation: KeyOperation,
    /// When, in seconds since 1970.
    pub time: u64,
}

/// What can be done with a key. The order is that of the numbers in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyOperation {
    /// Something was wrapped.
    Encrypt,
    /// Something was unwrapped.
    Decrypt,
    /// An epoch key was made and wrapped.
    GenerateDataKey,
    /// Something was wrapped anew.
    ReEncrypt,
}

/// The number of a key's material, from 1; a wrapped key names the one it was wrapped under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MaterialVersion(pub u32);

impl std::fmt::Display for MaterialVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Material {
    /// Its number, from 1.
    pub version: MaterialVersion,
    /// Derived from the secret: tells whether what was unwrapped is this material.
    pub id: [u8; 32],
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Why it was made.
    pub cause: MaterialCause,
    /// The secret, wrapped under the keystore root.
    pub wrapped: Wrapped,
}

/// Why a material was made. The order is that of the numbers in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MaterialCause {
    /// The key was.
    Creation,
    /// It was time.
    AutomaticRotation,
    /// The user asked for it. So many of them are allowed for a key.
    OnDemandRotation,
    /// Someone who could open the keystore no longer shall. Or not known: keystores of version 1 do not say.
    Rekey,
}

/// Returns the additional data of a material's wrap: it opens in this keystore, key and version only.
pub fn material_aad(keystore: KeystoreId, key: KeyId, version: MaterialVersion) -> Vec<u8> {
    [
        b"hushfs v1 key material".as_slice(),
        &keystore.0,
        &key.0,
        &version.0.to_le_bytes(),
    ]
    .concat()
}

pub(super) fn check_key(key: &KeyRecord) -> Result<(), FormatError> {
    in_range(key.description.len() <= DESCRIPTION_LEN_MAX, "length of a description")?;
    in_range(key.policy.len() <= POLICY_LEN_MAX, "length of a policy")?;
    in_range(key.tags.len() <= TAGS_MAX, "number of tags")?;
    in_range(body::rises(key.tags.iter().map(|tag| &tag.name)), "name of a tag")?;
    for tag in &key.tags {
        let name_len = tag.name.chars().count();
        in_range((1..=TAG_NAME_CHARS_MAX).contains(&name_len), "name of a tag")?;
        in_range(tag.value.chars().count() <= TAG_VALUE_CHARS_MAX, "value of a tag")?;
    }
    if let Some(remote) = &key.remote {
        remote.check()?;
        return in_range(key.materials.is_empty(), "number of materials");
    }
    in_range(
        (1..=MATERIALS_MAX).contains(&key.materials.len()),
        "number of materials",
    )?;
    let versions = || key.materials.iter().map(|material| material.version);
    in_range(
        body::rises(versions()) && versions().all(|v| v.0 > 0),
        "version of a material",
    )
}
