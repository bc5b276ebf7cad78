//! Why a keystore could not be changed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    crypto::passphrase::HardnessError,
    format::keystore::{
        ALIASES_MAX, DESCRIPTION_LEN_MAX, KEYS_MAX, LABEL_LEN_MAX, SLOTS_MAX, SlotId, TAG_NAME_CHARS_MAX,
        TAG_VALUE_CHARS_MAX, TAGS_MAX, VAULTS_MAX,
    },
    ids::{KeyId, VaultId},
    keystore::{
        KeyError, ProviderError,
        policy::PolicyError,
        word::{self, Word},
    },
};

/// Why a keystore could not be changed.
///
/// What users know from cloud key services has their name: [`aws_name`](Self::aws_name).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The new passphrase cannot be stretched.
    Hardness(HardnessError),
    /// Nothing can be sealed to the recipient's public key.
    Recipient,
    /// Whoever holds the key that shall wrap a new slot's secret did not do so.
    RemoteSlot {
        #[serde(deserialize_with = "word::deserialize")]
        provider: Word,
        error: ProviderError,
    },
    /// The seed of the audit log does not open under the root: the keystore is damaged in a way that its MAC does not show.
    AuditSeed,
    /// There are records of [`VAULTS_MAX`] vaults.
    TooManyVaults { vault: VaultId },
    /// The vault has another names root than the one with this id that the keystore knows.
    OtherVault { vault: VaultId },
    /// A key cannot be used for this, or not now.
    Key(KeyError),
    /// No key has this id, alias or ARN.
    NoSuchKey { name: String },
    /// It starts as an ARN and is none of a key of this keystore.
    NotAnArn { text: String },
    /// There is no such alias.
    NoSuchAlias { name: String },
    /// No alias can have this name.
    InvalidAlias { name: String },
    /// Aliases with such names are made by hushfs alone.
    ReservedAlias { name: String },
    /// The alias exists, and stands for this key.
    AliasTaken { name: String, key: KeyId },
    /// There are [`ALIASES_MAX`] aliases.
    TooManyAliases,
    /// There are [`KEYS_MAX`] keys.
    TooManyKeys,
    /// The description has this many bytes, above [`DESCRIPTION_LEN_MAX`].
    DescriptionLength(usize),
    /// The key is hushfs's own; users do not administer it.
    Managed { key: KeyId },
    /// Only who owns the keystore that an agent holds makes and destroys keys in it.
    NotOwner { uid: u32 },
    /// The key is not going to be destroyed, so there is nothing to cancel.
    NotPendingDeletion { key: KeyId },
    /// Destruction in so many days is out of range.
    DeletionWindow { days: u64 },
    /// Rotation every so many days is out of range.
    RotationPeriod { days: u64 },
    /// The key is about to rotate by itself.
    RotationDue { key: KeyId },
    /// The key was rotated on demand as often as it may.
    TooManyRotations { key: KeyId },
    /// No tag can have this name or value.
    InvalidTag { name: String },
    /// The key would have more than [`TAGS_MAX`] tags.
    TooManyTags { key: KeyId },
    /// The policy for the key is none.
    Policy { key: KeyId, error: PolicyError },
    /// Under the policy nobody who sets it could change it again.
    PolicyLockout { key: KeyId },
}

impl KeystoreError {
    /// Returns the name AWS KMS gives this error; none where it has no such error.
    pub fn aws_name(&self) -> Option<&'static str> {
        Some(match self {
            KeystoreError::Key(error) => return error.aws_name(),
            KeystoreError::NoSuchKey { .. } | KeystoreError::NoSuchAlias { .. } => "NotFoundException",
            KeystoreError::NotAnArn { .. } => "InvalidArnException",
            KeystoreError::InvalidAlias { .. } | KeystoreError::ReservedAlias { .. } => "InvalidAliasNameException",
            KeystoreError::AliasTaken { .. } => "AlreadyExistsException",
            KeystoreError::TooManyAliases
            | KeystoreError::TooManyKeys
            | KeystoreError::TooManyRotations { .. }
            | KeystoreError::TooManyTags { .. } => "LimitExceededException",
            KeystoreError::DescriptionLength(_)
            | KeystoreError::DeletionWindow { .. }
            | KeystoreError::RotationPeriod { .. } => "ValidationException",
            KeystoreError::Managed { .. } | KeystoreError::NotOwner { .. } => "AccessDeniedException",
            KeystoreError::NotPendingDeletion { .. } => "KMSInvalidStateException",
            KeystoreError::RotationDue { .. } => "ConflictException",
            KeystoreError::InvalidTag { .. } => "TagException",
            KeystoreError::Policy { .. } | KeystoreError::PolicyLockout { .. } => "MalformedPolicyDocumentException",
            KeystoreError::RemoteSlot { error, .. } => return error.aws_name(),
            KeystoreError::LabelLength(_)
            | KeystoreError::LabelTaken { .. }
            | KeystoreError::TooManySlots
            | KeystoreError::NoSuchSlot { .. }
            | KeystoreError::LastSlot { .. }
            | KeystoreError::UnusableSlot { .. }
            | KeystoreError::Hardness(_)
            | KeystoreError::Recipient
            | KeystoreError::AuditSeed
            | KeystoreError::TooManyVaults { .. }
            | KeystoreError::OtherVault { .. } => return None,
        })
    }
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
            KeystoreError::LastSlot { slot } => write!(
                f,
                "slot {slot} is the last; nothing would open the keystore without it: add another first"
            ),
            KeystoreError::UnusableSlot { slot } => write!(f, "slot {slot} cannot be sealed to; remove it first"),
            KeystoreError::Hardness(error) => error.fmt(f),
            KeystoreError::Recipient => f.write_str("nothing can be sealed to the recipient: its public key is none"),
            KeystoreError::AuditSeed => {
                f.write_str("the key of the audit log does not open: put the keystore back from a backup")
            }
            KeystoreError::RemoteSlot { provider, error } => write!(f, "{provider}: {error}"),
            KeystoreError::TooManyVaults { vault } => write!(
                f,
                "no room for vault {vault}: the keystore has records of {VAULTS_MAX} vaults"
            ),
            KeystoreError::OtherVault { vault } => write!(
                f,
                "vault {vault} is another than the keystore knows by this id: look who may write to it, and put its vault.hush back from a backup"
            ),
            KeystoreError::Key(error) => error.fmt(f),
            KeystoreError::NoSuchKey { name } => write!(f, "no key {name:?} in this keystore"),
            KeystoreError::NotAnArn { text } => write!(f, "{text:?} is not the ARN of a key of this keystore"),
            KeystoreError::NoSuchAlias { name } => write!(f, "no alias {name:?} in this keystore"),
            KeystoreError::InvalidAlias { name } => write!(
                f,
                "{name:?} cannot be an alias: it is alias/ and at most 250 characters of a-z A-Z 0-9 : / _ -"
            ),
            KeystoreError::ReservedAlias { name } => write!(
                f,
                "{name:?}: aliases that start with alias/hushfs/ or alias/aws/ are kept for hushfs and AWS: choose another name"
            ),
            KeystoreError::AliasTaken { name, key } => write!(f, "alias {name:?} exists and stands for key {key}"),
            KeystoreError::TooManyAliases => write!(f, "the keystore has {ALIASES_MAX} aliases; remove one first"),
            KeystoreError::TooManyKeys => write!(f, "the keystore has {KEYS_MAX} keys; delete one first"),
            KeystoreError::DescriptionLength(len) => write!(
                f,
                "a description has at most {DESCRIPTION_LEN_MAX} bytes; this has {len}"
            ),
            KeystoreError::Managed { key } => write!(
                f,
                "key {key} is managed by hushfs: make one of your own with `hushfs key create`"
            ),
            KeystoreError::NotOwner { uid } => write!(
                f,
                "user {uid} does not own the keystore: only root and the user of its agent may do this"
            ),
            KeystoreError::NotPendingDeletion { key } => write!(f, "key {key} is not pending deletion"),
            KeystoreError::DeletionWindow { days } => {
                write!(f, "a key is deleted after 7 to 30 days, not {days}")
            }
            KeystoreError::RotationPeriod { days } => {
                write!(f, "a key rotates every 90 to 2560 days, not {days}")
            }
            KeystoreError::RotationDue { key } => write!(
                f,
                "key {key} rotates by itself within 20 minutes: there is nothing to do"
            ),
            KeystoreError::TooManyRotations { key } => {
                write!(f, "key {key} was rotated on demand 25 times, which is the most")
            }
            KeystoreError::InvalidTag { name } => write!(
                f,
                "tag {name:?}: a name has 1 to {TAG_NAME_CHARS_MAX} characters and does not start with hushfs: or aws:, a value has at most \
                 {TAG_VALUE_CHARS_MAX}, and neither has control characters"
            ),
            KeystoreError::TooManyTags { key } => write!(f, "key {key} would have more than {TAGS_MAX} tags"),
            KeystoreError::Policy { key, error } => write!(f, "key {key}: {error}"),
            KeystoreError::PolicyLockout { key } => write!(
                f,
                "under that policy you could not change the policy of key {key} again: allow yourself kms:PutKeyPolicy"
            ),
        }
    }
}

impl std::error::Error for KeystoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            KeystoreError::Key(error) => Some(error),
            KeystoreError::Policy { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl From<KeyError> for KeystoreError {
    fn from(error: KeyError) -> Self {
        KeystoreError::Key(error)
    }
}
