//! Slots: the ways a local keystore is opened, and what a user offers to open one.
//!
//! A slot is a key pair grown from its secret; the keystore root is sealed to the public half (docs/FORMAT.md section 4). Sealing takes the
//! slot's authenticator too, which lies under the root: so a root that opens was sealed by someone who could open the keystore.

use std::fmt;

use zeroize::Zeroizing;

use super::recovery::RecoveryKey;
use crate::{
    crypto::{
        OpenError, derive,
        keys::{KeyBytes, KeystoreRoot, SlotAuthenticator, SlotSecret},
        passphrase::{Hardness, HardnessError},
        random,
        slot::{SealedRoot, open_root, public_key, seal_root},
        wrap::{self, Wrapped},
    },
    format::{
        FormatError,
        keystore::{SealedRootBytes, Slot, SlotId, SlotKind, UnverifiedKeystoreFile, slot_aad, slot_authenticator_aad},
    },
    ids::KeystoreId,
};

/// The fewest bytes a key file has: fewer cannot be as strong as the key they give.
pub const KEY_FILE_SIZE_MIN: usize = 32;

/// The most bytes a key file has. Whoever reads one stops behind this, for someone may have named a disk.
pub const KEY_FILE_SIZE_MAX: usize = 1024 * 1024;

/// A passphrase that has at least one byte.
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// Takes what the user typed, without the end of the line.
    ///
    /// # Errors
    ///
    /// [`SecretSizeError::EmptyPassphrase`].
    pub fn new(typed: Zeroizing<Vec<u8>>) -> Result<Self, SecretSizeError> {
        if typed.is_empty() {
            return Err(SecretSizeError::EmptyPassphrase);
        }
        Ok(Passphrase(typed))
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The contents of a key file.
pub struct KeyFile(Zeroizing<Vec<u8>>);

impl KeyFile {
    /// Takes all that is in the file; every byte counts, an end of line at its end too.
    ///
    /// # Errors
    ///
    /// [`SecretSizeError::KeyFileSize`] when it is too small or too large.
    pub fn new(contents: Zeroizing<Vec<u8>>) -> Result<Self, SecretSizeError> {
        if !(KEY_FILE_SIZE_MIN..=KEY_FILE_SIZE_MAX).contains(&contents.len()) {
            return Err(SecretSizeError::KeyFileSize(contents.len()));
        }
        Ok(KeyFile(contents))
    }
}

impl fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Why some bytes cannot be the secret of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretSizeError {
    /// A passphrase of no bytes.
    EmptyPassphrase,
    /// A key file of this many bytes.
    KeyFileSize(usize),
}

impl fmt::Display for SecretSizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretSizeError::EmptyPassphrase => f.write_str("the passphrase is empty"),
            SecretSizeError::KeyFileSize(size) => write!(
                f,
                "a key file has {KEY_FILE_SIZE_MIN} to {KEY_FILE_SIZE_MAX} bytes; this has {size}"
            ),
        }
    }
}

impl std::error::Error for SecretSizeError {}

/// What a user offers to open a keystore.
#[derive(Debug)]
pub enum Unlock {
    /// A passphrase.
    Passphrase(Passphrase),
    /// The contents of a key file.
    KeyFile(KeyFile),
    /// A recovery key.
    RecoveryKey(RecoveryKey),
}

impl Unlock {
    /// Returns the kind of slot that this may open.
    pub fn kind(&self) -> SecretKind {
        match self {
            Unlock::Passphrase(_) => SecretKind::Passphrase,
            Unlock::KeyFile(_) => SecretKind::KeyFile,
            Unlock::RecoveryKey(_) => SecretKind::RecoveryKey,
        }
    }

    /// Returns the secret that this gives for a slot, or none when the slot is of another kind.
    fn secret_for(&self, kind: &SlotKind) -> Option<Result<SlotSecret, HardnessError>> {
        match (self, kind) {
            (Unlock::Passphrase(passphrase), SlotKind::Passphrase(hardness)) => Some(hardness.stretch(&passphrase.0)),
            (Unlock::KeyFile(file), SlotKind::KeyFile) => Some(Ok(derive::key_file_slot(&file.0))),
            (Unlock::RecoveryKey(key), SlotKind::Recovery) => Some(Ok(key.slot_secret())),
            _ => None,
        }
    }
}

/// What a new slot shall be opened with.
#[derive(Debug)]
pub enum NewSecret<'a> {
    /// A passphrase, and how hard it shall be to guess. The slot takes a salt of its own, not the one given.
    Passphrase(&'a Passphrase, Hardness),
    /// The contents of a key file.
    KeyFile(&'a KeyFile),
    /// A recovery key, which the caller shows to the user.
    RecoveryKey(&'a RecoveryKey),
}

/// A kind of secret, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretKind {
    /// A passphrase.
    Passphrase,
    /// A key file.
    KeyFile,
    /// A recovery key.
    RecoveryKey,
}

impl fmt::Display for SecretKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SecretKind::Passphrase => "passphrase",
            SecretKind::KeyFile => "key file",
            SecretKind::RecoveryKey => "recovery key",
        })
    }
}

/// Which slots are tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SlotChoice {
    /// Every one that the secret may fit, by rising id.
    #[default]
    Any,
    /// The one with this id.
    Id(SlotId),
    /// The one with this label.
    Label(String),
}

impl SlotChoice {
    fn takes(&self, slot: &Slot) -> bool {
        match self {
            SlotChoice::Any => true,
            SlotChoice::Id(id) => slot.id == *id,
            SlotChoice::Label(label) => slot.label == *label,
        }
    }
}

impl fmt::Display for SlotChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SlotChoice::Any => f.write_str("any slot"),
            SlotChoice::Id(id) => write!(f, "slot {id}"),
            SlotChoice::Label(label) => write!(f, "slot {label:?}"),
        }
    }
}

/// Why a keystore does not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnlockError {
    /// The file is not a keystore, is damaged, or does not carry the mark of the root in its slot.
    Format(FormatError),
    /// The keystore does not have the slot asked for.
    NoSuchSlot(SlotChoice),
    /// No slot, or not the one asked for, is opened with such a secret.
    NoSlotOfKind(SecretKind),
    /// The secret does not open any of the slots tried.
    WrongSecret(SecretKind),
    /// A slot asks for more memory or time than hushfs ever uses, or less. Nothing was run.
    HostileParameters { slot: SlotId },
    /// The secret is the right one for the slot, but the root sealed in it was changed, or put there by a stranger.
    DamagedSlot { slot: SlotId },
}

impl fmt::Display for UnlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnlockError::Format(_) => f.write_str("the keystore cannot be read"),
            UnlockError::NoSuchSlot(choice) => write!(f, "the keystore has no {choice}"),
            UnlockError::NoSlotOfKind(kind) => {
                write!(f, "no slot of the keystore, or not the one chosen, takes a {kind}")
            }
            UnlockError::WrongSecret(SecretKind::Passphrase) => f.write_str("wrong passphrase"),
            UnlockError::WrongSecret(kind) => write!(f, "the {kind} does not open any slot"),
            UnlockError::HostileParameters { slot } => write!(
                f,
                "slot {slot} asks for Argon2id parameters that hushfs never writes; the keystore was tampered with"
            ),
            UnlockError::DamagedSlot { slot } => {
                write!(
                    f,
                    "slot {slot} is damaged or tampered with; use another slot or a copy of the keystore"
                )
            }
        }
    }
}

impl std::error::Error for UnlockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            UnlockError::Format(error) => Some(error),
            _ => None,
        }
    }
}

impl From<FormatError> for UnlockError {
    fn from(error: FormatError) -> Self {
        UnlockError::Format(error)
    }
}

/// Tries the slots that a secret may open, and returns the root and the slot that gave it.
///
/// The slots are not authenticated yet, so a root is no proof of anything: the file's MAC must be checked with it.
///
/// # Errors
///
/// The [`UnlockError`] that says why no slot opened. A slot that cannot have been written by hushfs ends the search, rather than being
/// passed over: whoever put it there may have changed the others too.
pub fn try_slots(
    file: &UnverifiedKeystoreFile<'_>,
    unlock: &Unlock,
    choice: &SlotChoice,
) -> Result<(KeystoreRoot, SlotId), UnlockError> {
    let mut chosen = file.slots().iter().filter(|slot| choice.takes(slot)).peekable();
    if chosen.peek().is_none() {
        return Err(UnlockError::NoSuchSlot(choice.clone()));
    }
    let mut tried = false;
    for slot in chosen {
        let Some(secret) = unlock.secret_for(&slot.kind) else {
            continue;
        };
        let secret = secret.map_err(|HardnessError| UnlockError::HostileParameters { slot: slot.id })?;
        tried = true;
        if let Ok(root) = open_root(&secret, &slot_aad(file.id(), slot.id, &slot.kind), &sealed_root(slot)) {
            return Ok((root, slot.id));
        }
        // A mistyped passphrase gives another key pair. So "wrong passphrase" is never said to one who typed it right.
        if public_key(&secret) == slot.public_key {
            return Err(UnlockError::DamagedSlot { slot: slot.id });
        }
    }
    Err(if tried {
        UnlockError::WrongSecret(unlock.kind())
    } else {
        UnlockError::NoSlotOfKind(unlock.kind())
    })
}

fn sealed_root(slot: &Slot) -> SealedRoot {
    SealedRoot {
        encapsulated: slot.encapsulated.clone(),
        sealed: slot.sealed_root.as_bytes().to_vec(),
    }
}

/// What a slot is before a root is sealed in it.
pub(super) struct SlotDraft<'a> {
    pub id: SlotId,
    pub label: &'a str,
    pub created: u64,
    pub secret: &'a NewSecret<'a>,
}

impl SlotDraft<'_> {
    /// Grows the key pair from the secret and seals the root to it.
    ///
    /// # Errors
    ///
    /// [`HardnessError`] when the parameters for a passphrase are out of range.
    pub fn seal(&self, keystore: KeystoreId, root: &KeystoreRoot) -> Result<Slot, HardnessError> {
        let (kind, secret) = match self.secret {
            NewSecret::Passphrase(passphrase, hardness) => {
                // One salt for two slots would let one guess be tried on both at the price of one.
                let hardness = Hardness {
                    salt: random::bytes(),
                    ..*hardness
                };
                (SlotKind::Passphrase(hardness), hardness.stretch(&passphrase.0)?)
            }
            NewSecret::KeyFile(file) => (SlotKind::KeyFile, derive::key_file_slot(&file.0)),
            NewSecret::RecoveryKey(key) => (SlotKind::Recovery, key.slot_secret()),
        };
        let (id, public_key) = (self.id, public_key(&secret));
        let sealed = SealedParts::seal(&public_key, &secret.authenticator(), (keystore, id, &kind), root)
            .expect("a public key that was just derived is one");
        Ok(Slot {
            id,
            label: self.label.to_owned(),
            created: self.created,
            kind,
            public_key,
            encapsulated: sealed.encapsulated,
            sealed_root: sealed.root,
            authenticator: sealed.authenticator,
        })
    }
}

/// Returns a slot of a keystore whose root is `from` with the root `to` sealed in it; the slot's secret is not needed.
///
/// # Errors
///
/// [`OpenError`] when the slot's public key is none, or its authenticator is not wrapped under `from`.
pub(super) fn seal_again(
    slot: &Slot,
    keystore: KeystoreId,
    from: &KeystoreRoot,
    to: &KeystoreRoot,
) -> Result<Slot, OpenError> {
    let aad = slot_authenticator_aad(keystore, slot.id);
    let authenticator = wrap::unwrap(from.as_bytes(), &aad, &slot.authenticator, |bytes| {
        SlotAuthenticator::new(KeyBytes::copy_of(bytes))
    })?;
    let sealed = SealedParts::seal(&slot.public_key, &authenticator, (keystore, slot.id, &slot.kind), to)?;
    Ok(Slot {
        encapsulated: sealed.encapsulated,
        sealed_root: sealed.root,
        authenticator: sealed.authenticator,
        ..slot.clone()
    })
}

/// The parts of a slot that change with the root.
struct SealedParts {
    encapsulated: Vec<u8>,
    root: SealedRootBytes,
    authenticator: Wrapped,
}

impl SealedParts {
    fn seal(
        public_key: &[u8],
        authenticator: &SlotAuthenticator,
        (keystore, slot, kind): (KeystoreId, SlotId, &SlotKind),
        root: &KeystoreRoot,
    ) -> Result<Self, OpenError> {
        let sealed = seal_root(public_key, authenticator, &slot_aad(keystore, slot, kind), root)?;
        let aad = slot_authenticator_aad(keystore, slot);
        Ok(SealedParts {
            encapsulated: sealed.encapsulated,
            root: SealedRootBytes::from_slice(&sealed.sealed).expect("a sealed root has one size"),
            authenticator: wrap::wrap(root.as_bytes(), &aad, authenticator.as_bytes()),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{crypto::passphrase::MEMORY_KIB_MIN, keystore::LocalKeystore};

    /// As little work as a slot may ask for.
    pub const EASY: Hardness = Hardness {
        salt: [0; 16],
        memory_kib: MEMORY_KIB_MIN,
        passes: 1,
        lanes: 1,
    };

    pub fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(Zeroizing::new(text.into())).unwrap()
    }

    pub fn key_file(byte: u8) -> KeyFile {
        KeyFile::new(Zeroizing::new(vec![byte; 100])).unwrap()
    }

    /// Returns a keystore with a passphrase slot (1, "laptop") and a key file slot (2, "stick").
    fn two_slots() -> Vec<u8> {
        let secret = passphrase("correct horse");
        let mut keystore = LocalKeystore::create("laptop", &NewSecret::Passphrase(&secret, EASY), 1).unwrap();
        keystore
            .add_slot("stick", &NewSecret::KeyFile(&key_file(1)), 1)
            .unwrap();
        keystore.encode(1).unwrap()
    }

    fn open(bytes: &[u8], unlock: &Unlock, choice: &SlotChoice) -> Result<SlotId, UnlockError> {
        try_slots(&UnverifiedKeystoreFile::decode(bytes).unwrap(), unlock, choice).map(|(_, slot)| slot)
    }

    #[test]
    fn a_secret_opens_its_slot() {
        let bytes = two_slots();
        let typed = Unlock::Passphrase(passphrase("correct horse"));
        let file = Unlock::KeyFile(key_file(1));
        assert_eq!(open(&bytes, &typed, &SlotChoice::Any), Ok(SlotId(1)));
        assert_eq!(open(&bytes, &typed, &SlotChoice::Id(SlotId(1))), Ok(SlotId(1)));
        assert_eq!(open(&bytes, &file, &SlotChoice::Any), Ok(SlotId(2)));
        assert_eq!(open(&bytes, &file, &SlotChoice::Label("stick".into())), Ok(SlotId(2)));
    }

    #[test]
    fn each_reason_not_to_open_has_its_name() {
        let bytes = two_slots();
        let typed = Unlock::Passphrase(passphrase("correct horse"));
        let wrong = Unlock::Passphrase(passphrase("Correct horse"));
        let file = Unlock::KeyFile(key_file(2));
        let recovery = Unlock::RecoveryKey(RecoveryKey::generate());
        let (third, nobody) = (SlotChoice::Id(SlotId(3)), SlotChoice::Label("nobody".into()));
        assert_eq!(
            open(&bytes, &wrong, &SlotChoice::Any),
            Err(UnlockError::WrongSecret(SecretKind::Passphrase))
        );
        assert_eq!(
            open(&bytes, &file, &SlotChoice::Any),
            Err(UnlockError::WrongSecret(SecretKind::KeyFile))
        );
        assert_eq!(
            open(&bytes, &recovery, &SlotChoice::Any),
            Err(UnlockError::NoSlotOfKind(SecretKind::RecoveryKey))
        );
        assert_eq!(
            open(&bytes, &typed, &SlotChoice::Id(SlotId(2))),
            Err(UnlockError::NoSlotOfKind(SecretKind::Passphrase))
        );
        assert_eq!(
            open(&bytes, &typed, &third),
            Err(UnlockError::NoSuchSlot(third.clone()))
        );
        assert_eq!(
            open(&bytes, &typed, &nobody),
            Err(UnlockError::NoSuchSlot(nobody.clone()))
        );
        assert_eq!(
            UnlockError::WrongSecret(SecretKind::Passphrase).to_string(),
            "wrong passphrase"
        );
    }

    /// Returns the place of the kind of slot 1: front, id, two u64, count, slot id, label, created.
    const KIND_AT: usize = 16 + 16 + 8 + 8 + 8 + 4 + (8 + "laptop".len()) + 8;

    #[test]
    fn hostile_parameters_are_not_run() {
        let typed = Unlock::Passphrase(passphrase("correct horse"));
        for (at, hostile) in [(4 + 16, u32::MAX), (4 + 16, 1), (4 + 20, 65), (4 + 24, 65), (4 + 24, 0)] {
            let mut bytes = two_slots();
            bytes[KIND_AT + at..][..4].copy_from_slice(&hostile.to_le_bytes());
            assert_eq!(
                open(&bytes, &typed, &SlotChoice::Any),
                Err(UnlockError::HostileParameters { slot: SlotId(1) })
            );
            assert_eq!(
                open(&bytes, &Unlock::KeyFile(key_file(1)), &SlotChoice::Any),
                Ok(SlotId(2))
            );
        }
    }

    #[test]
    fn a_damaged_slot_is_not_called_a_wrong_passphrase() {
        let mut bytes = two_slots();
        let sealed_root_at = KIND_AT + 4 + 28 + 8 + 1216 + 8 + 1120;
        bytes[sealed_root_at] ^= 1;
        let typed = Unlock::Passphrase(passphrase("correct horse"));
        assert_eq!(
            open(&bytes, &typed, &SlotChoice::Any),
            Err(UnlockError::DamagedSlot { slot: SlotId(1) })
        );
    }

    #[test]
    fn two_slots_with_one_passphrase_have_two_salts() {
        let secret = passphrase("x");
        let mut keystore = LocalKeystore::create("a", &NewSecret::Passphrase(&secret, EASY), 1).unwrap();
        keystore
            .add_slot("b", &NewSecret::Passphrase(&secret, EASY), 1)
            .unwrap();
        assert_ne!(keystore.slots()[0].kind, keystore.slots()[1].kind);
    }

    #[test]
    fn a_secret_has_a_size() {
        let file = |size| KeyFile::new(Zeroizing::new(vec![1; size])).map(|_| ());
        assert_eq!(
            Passphrase::new(Zeroizing::new(Vec::new())).unwrap_err(),
            SecretSizeError::EmptyPassphrase
        );
        assert_eq!(file(31), Err(SecretSizeError::KeyFileSize(31)));
        assert_eq!(file(32), Ok(()));
        assert_eq!(file(1024 * 1024), Ok(()));
        assert_eq!(
            file(1024 * 1024 + 1),
            Err(SecretSizeError::KeyFileSize(1024 * 1024 + 1))
        );
    }

    #[test]
    fn secrets_are_not_printed() {
        for unlock in [
            Unlock::Passphrase(passphrase("hunter2")),
            Unlock::KeyFile(key_file(b'h')),
            Unlock::RecoveryKey(RecoveryKey::generate()),
        ] {
            assert!(format!("{unlock:?}").contains("[redacted]"));
        }
    }
}
