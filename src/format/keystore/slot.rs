//! A keystore's slots as stored.

use serde::{Deserialize, Serialize};

use super::{RemoteKeyName, check_text, in_range};
use crate::{
    crypto::{
        passphrase::Hardness,
        slot::{ENCAPSULATED_SIZE, PUBLIC_KEY_SIZE, SEALED_ROOT_SIZE},
        wrap::{WRAPPED_SIZE, Wrapped},
    },
    format::{FormatError, body},
    ids::KeystoreId,
};

/// The most bytes the label of a slot may have.
pub const LABEL_LEN_MAX: usize = 64;

/// The most bytes the name of a systemd credential may have, as for a file.
pub const CREDENTIAL_NAME_LEN_MAX: usize = 255;

/// The most words of a command.
pub const COMMAND_WORDS_MAX: usize = 64;

/// The most bytes all words of a command may have together.
pub const COMMAND_LEN_MAX: usize = 4096;

/// The most bytes either half of an object that a TPM has sealed may have.
pub const TPM_BLOB_SIZE_MAX: usize = 2048;

/// The bits of the registers that a TPM's policy may name: 24 of them.
pub const TPM_PCRS_MAX: u32 = 0x00FF_FFFF;

/// The most bytes of what a remote key made of a slot's secret, as for an epoch key.
pub const SLOT_BLOB_SIZE_MAX: usize = 8192;

/// The largest kind of slot, encoded: that of a remote key.
const KIND_SIZE_MAX: usize = 4 + RemoteKeyName::SIZE_MAX + 8 + SLOT_BLOB_SIZE_MAX;

// Larger than the others: a command, what a TPM sealed, what was sealed to a recipient.
const _: () = assert!(KIND_SIZE_MAX > 4 + 8 + COMMAND_WORDS_MAX * 8 + COMMAND_LEN_MAX);
const _: () = assert!(KIND_SIZE_MAX > 4 + 2 * (8 + TPM_BLOB_SIZE_MAX) + 4 + 1);
const _: () = assert!(KIND_SIZE_MAX > 4 + (8 + PUBLIC_KEY_SIZE) + (8 + ENCAPSULATED_SIZE) + SEALED_ROOT_SIZE);

/// The largest slot, encoded: id, label, created, kind, two lists, sealed root, authenticator.
pub(super) const SLOT_SIZE_MAX: usize = 4
    + (8 + LABEL_LEN_MAX)
    + 8
    + KIND_SIZE_MAX
    + (8 + PUBLIC_KEY_SIZE)
    + (8 + ENCAPSULATED_SIZE)
    + SEALED_ROOT_SIZE
    + WRAPPED_SIZE;

/// Names a slot of a keystore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SlotId(pub u32);

impl std::fmt::Display for SlotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The keystore root, sealed for one way of opening it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Its number.
    pub id: SlotId,
    /// Its name for the user.
    pub label: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// What opens it.
    pub kind: SlotKind,
    /// The public half of the key pair that grows from its secret.
    pub public_key: Vec<u8>,
    /// The KEM's output that belongs to `sealed_root`.
    pub encapsulated: Vec<u8>,
    /// The keystore root, sealed to `public_key`.
    pub sealed_root: SealedBytes,
    /// What it takes besides `public_key` to seal a root, wrapped under the root: a stranger cannot.
    pub authenticator: Wrapped,
}

/// What opens a slot. The order is that of the numbers in the file.
///
/// Slots are read before anything is authenticated. What a kind names (a command, a key, a credential) says what the slot was made
/// for; whoever can write the file can put another there, so nothing is run or asked because it stands here: the user has to name it too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotKind {
    /// A passphrase, stretched with Argon2id. The parameters are not in range until they have been stretched with.
    Passphrase(Hardness),
    /// The contents of a file.
    KeyFile,
    /// A recovery key, as printed.
    Recovery,
    /// A systemd credential as a whole, 32 bytes or more.
    Credential {
        /// Its name.
        name: String,
    },
    /// What a command writes to its standard output, 32 bytes or more.
    Command {
        /// The program and its arguments; no shell.
        words: Vec<String>,
    },
    /// Thirty-two bytes sealed by a TPM 2.0.
    Tpm2 {
        /// The public half of the object, a TPM2B_PUBLIC.
        public: Vec<u8>,
        /// The private half, a TPM2B_PRIVATE.
        private: Vec<u8>,
        /// The registers of the SHA-256 bank that must be as they were, a bit for each.
        pcrs: u32,
        /// Whether the object has a PIN.
        pin: bool,
    },
    /// Thirty-two bytes sealed to someone's public key.
    Recipient {
        /// The X-Wing public key.
        recipient: Vec<u8>,
        /// The KEM's output.
        encapsulated: Vec<u8>,
        /// The bytes, sealed.
        sealed: SealedBytes,
    },
    /// Thirty-two bytes wrapped by a key in a key server or an HSM.
    Remote {
        /// The key.
        key: RemoteKeyName,
        /// What it made of them.
        blob: Vec<u8>,
    },
}

impl SlotKind {
    /// Returns the kind as one word, for lists.
    pub fn word(&self) -> &'static str {
        match self {
            SlotKind::Passphrase(_) => "passphrase",
            SlotKind::KeyFile => "key-file",
            SlotKind::Recovery => "recovery-key",
            SlotKind::Credential { .. } => "credential",
            SlotKind::Command { .. } => "command",
            SlotKind::Tpm2 { .. } => "tpm2",
            SlotKind::Recipient { .. } => "recipient",
            SlotKind::Remote { key, .. } => key.word(),
        }
    }

    pub(in crate::format) fn check(&self) -> Result<(), FormatError> {
        match self {
            SlotKind::Passphrase(_) | SlotKind::KeyFile | SlotKind::Recovery => Ok(()),
            SlotKind::Credential { name } => {
                check_text(name, CREDENTIAL_NAME_LEN_MAX, "name of a credential")?;
                // It becomes part of a path.
                let is_one_name = !name.contains('/') && name != "." && name != "..";
                in_range(is_one_name, "name of a credential")
            }
            SlotKind::Command { words } => {
                in_range((1..=COMMAND_WORDS_MAX).contains(&words.len()), "number of words")?;
                let len: usize = words.iter().map(String::len).sum();
                let has_program = !words[0].is_empty();
                let has_no_nul = words.iter().all(|word| !word.contains('\0'));
                in_range(
                    has_program && has_no_nul && len <= COMMAND_LEN_MAX,
                    "words of a command",
                )
            }
            SlotKind::Tpm2 {
                public, private, pcrs, ..
            } => {
                let fits = |half: &Vec<u8>| (1..=TPM_BLOB_SIZE_MAX).contains(&half.len());
                in_range(fits(public) && fits(private), "size of a TPM's object")?;
                in_range(*pcrs <= TPM_PCRS_MAX, "registers of a TPM")
            }
            SlotKind::Recipient {
                recipient,
                encapsulated,
                ..
            } => {
                in_range(recipient.len() == PUBLIC_KEY_SIZE, "size of a public key")?;
                in_range(encapsulated.len() == ENCAPSULATED_SIZE, "size of an encapsulated key")
            }
            SlotKind::Remote { key, blob } => {
                key.check()?;
                in_range(blob.len() <= SLOT_BLOB_SIZE_MAX, "size of a wrapped slot secret")
            }
        }
    }
}

/// Returns the additional data of a slot's sealed root: it opens in this keystore, slot and kind only.
///
/// Argon2id's parameters are part of the kind, so weaker ones cannot be put in.
pub fn slot_aad(keystore: KeystoreId, slot: SlotId, kind: &SlotKind) -> Vec<u8> {
    let kind = body::encode_part(kind, KIND_SIZE_MAX).expect("a kind within its limits has at most that size");
    [keystore.0.as_slice(), &slot.0.to_le_bytes(), &kind].concat()
}

/// Returns the additional data of the wrap of a slot's authenticator: it opens in this keystore and slot only.
pub fn slot_authenticator_aad(keystore: KeystoreId, slot: SlotId) -> Vec<u8> {
    [
        b"hushfs v1 slot authenticator".as_slice(),
        &keystore.0,
        &slot.0.to_le_bytes(),
    ]
    .concat()
}

/// Returns the additional data of what is sealed to a recipient: it opens in this keystore and slot only.
pub fn recipient_slot_aad(keystore: KeystoreId, slot: SlotId) -> Vec<u8> {
    [
        b"hushfs v1 recipient slot".as_slice(),
        &keystore.0,
        &slot.0.to_le_bytes(),
    ]
    .concat()
}

/// Returns the purpose of what a remote key wraps for a slot: it opens in this keystore and slot only.
pub fn remote_slot_purpose(keystore: KeystoreId, slot: SlotId) -> Vec<u8> {
    [b"hushfs v1 remote slot".as_slice(), &keystore.0, &slot.0.to_le_bytes()].concat()
}

/// A sealed key as stored. Serde's arrays end at 32 bytes, so the 48 stand in rows; the encoding is the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedBytes([[u8; 16]; SEALED_ROOT_SIZE / 16]);

const _: () = assert!(SEALED_ROOT_SIZE.is_multiple_of(16));

impl SealedBytes {
    /// Takes the bytes of a sealed key, if they are as many as one has.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let (rows, rest) = bytes.as_chunks();
        if !rest.is_empty() {
            return None;
        }
        Some(SealedBytes(rows.try_into().ok()?))
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_flattened()
    }
}

pub(super) fn check_slot(slot: &Slot) -> Result<(), FormatError> {
    in_range(slot.label.len() <= LABEL_LEN_MAX, "length of a label")?;
    slot.kind.check()?;
    in_range(slot.public_key.len() == PUBLIC_KEY_SIZE, "size of a public key")?;
    in_range(
        slot.encapsulated.len() == ENCAPSULATED_SIZE,
        "size of an encapsulated key",
    )
}
