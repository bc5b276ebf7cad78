//! Slots: the ways a local keystore is opened.
//!
//! A slot is a key pair grown from its secret; the keystore root is sealed to the public half (docs/FORMAT.md section 4). Sealing takes the
//! slot's authenticator too, which lies under the root: so a root that opens was sealed by someone who could open the keystore.

use std::fmt;

use super::{
    provider::ProviderError,
    secret::{NewSecret, NewSecretError, SecretKind, SlotOwner, Unlock},
    tpm::TpmError,
};
use crate::{
    crypto::{
        OpenError,
        keys::{KeyBytes, KeystoreRoot, SlotAuthenticator},
        passphrase::HardnessError,
        slot::{SealedKey, open_root, public_key, seal_root},
        wrap::{self, Wrapped},
    },
    format::{
        FormatError,
        keystore::{SealedBytes, Slot, SlotId, SlotKind, UnverifiedKeystoreFile, slot_aad, slot_authenticator_aad},
    },
    ids::KeystoreId,
};

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
    /// There is not enough memory to try a slot.
    NoMemory { slot: SlotId, error: HardnessError },
    /// The secret is the right one for the slot, but the root sealed in it was changed, or put there by a stranger.
    DamagedSlot { slot: SlotId },
    /// The TPM does not give the slot's secret.
    Tpm { slot: SlotId, error: TpmError },
    /// Whoever holds the key that wraps the slot's secret does not give it.
    Remote {
        slot: SlotId,
        provider: &'static str,
        error: ProviderError,
    },
}

impl UnlockError {
    /// Tells whether the same secret is better not tried on other slots, because who is asked counts tries or does not answer.
    pub(super) fn ends_tries(&self) -> bool {
        matches!(self, UnlockError::Tpm { .. } | UnlockError::Remote { .. }) && self.is_final()
    }

    /// Tells whether other slots need not be tried: one that hushfs has not written, for whoever put it there may have changed the others
    /// too; a TPM that would count another wrong PIN; a server that does not answer.
    pub(super) fn is_final(&self) -> bool {
        match self {
            UnlockError::Tpm { error, .. } => error.is_final(),
            UnlockError::HostileParameters { .. } | UnlockError::DamagedSlot { .. } | UnlockError::Remote { .. } => {
                true
            }
            UnlockError::Format(_)
            | UnlockError::NoSuchSlot(_)
            | UnlockError::NoSlotOfKind(_)
            | UnlockError::WrongSecret(_)
            | UnlockError::NoMemory { .. } => false,
        }
    }
}

impl fmt::Display for UnlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnlockError::Format(_) => f.write_str("the keystore cannot be read"),
            UnlockError::NoSuchSlot(choice) => write!(f, "the keystore has no {choice}"),
            UnlockError::NoSlotOfKind(kind) => {
                write!(
                    f,
                    "no slot of the keystore, or not the one chosen, takes {}",
                    kind.with_article()
                )
            }
            UnlockError::WrongSecret(SecretKind::Passphrase) => f.write_str("wrong passphrase"),
            UnlockError::WrongSecret(kind) => write!(f, "the {kind} does not open any slot"),
            UnlockError::HostileParameters { slot } => write!(
                f,
                "slot {slot} asks for Argon2id parameters that hushfs never writes; the keystore was tampered with"
            ),
            UnlockError::NoMemory { slot, error } => write!(f, "slot {slot}: {error}"),
            UnlockError::DamagedSlot { slot } => {
                write!(
                    f,
                    "slot {slot} is damaged or tampered with; use another slot or a copy of the keystore"
                )
            }
            UnlockError::Tpm { slot, error } => write!(f, "slot {slot}: {error}"),
            UnlockError::Remote { slot, provider, error } => write!(f, "slot {slot}: {provider}: {error}"),
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
/// The [`UnlockError`] that says why no slot opened.
pub fn try_slots(
    file: &UnverifiedKeystoreFile<'_>,
    unlock: &Unlock,
    choice: &SlotChoice,
) -> Result<(KeystoreRoot, SlotId), UnlockError> {
    let mut chosen = file.slots().iter().filter(|slot| choice.takes(slot)).peekable();
    if chosen.peek().is_none() {
        return Err(UnlockError::NoSuchSlot(choice.clone()));
    }
    let mut first_error = None;
    for slot in chosen {
        let secret = match unlock.secret_for(SlotOwner::Keystore(file.id()), slot.id, &slot.kind) {
            None => continue,
            Some(Err(error)) if error.is_final() => return Err(error),
            // That others do not open says nothing of this one.
            Some(Err(error @ UnlockError::NoMemory { .. })) => {
                first_error = Some(error);
                continue;
            }
            Some(Err(error)) => {
                first_error.get_or_insert(error);
                continue;
            }
            Some(Ok(secret)) => secret,
        };
        if let Ok(root) = open_root(&secret, &slot_aad(file.id(), slot.id, &slot.kind), &sealed_root(slot)) {
            return Ok((root, slot.id));
        }
        // A mistyped passphrase gives another key pair. So "wrong passphrase" is never said to one who typed it right.
        if public_key(&secret) == slot.public_key {
            return Err(UnlockError::DamagedSlot { slot: slot.id });
        }
        first_error.get_or_insert(UnlockError::WrongSecret(unlock.kind()));
    }
    Err(first_error.unwrap_or(UnlockError::NoSlotOfKind(unlock.kind())))
}

fn sealed_root(slot: &Slot) -> SealedKey {
    SealedKey {
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
    /// The [`NewSecretError`] that says why there is no secret.
    pub fn seal(&self, keystore: KeystoreId, root: &KeystoreRoot) -> Result<Slot, NewSecretError> {
        let (kind, secret) = self.secret.make(SlotOwner::Keystore(keystore), self.id)?;
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
    let authenticator = authenticator(slot, keystore, from)?;
    let sealed = SealedParts::seal(&slot.public_key, &authenticator, (keystore, slot.id, &slot.kind), to)?;
    Ok(Slot {
        encapsulated: sealed.encapsulated,
        sealed_root: sealed.root,
        authenticator: sealed.authenticator,
        ..slot.clone()
    })
}

/// Returns what a root must be sealed with to a slot of a keystore, besides its public key.
///
/// # Errors
///
/// [`OpenError`] when it is not wrapped under `root`.
pub(super) fn authenticator(
    slot: &Slot,
    keystore: KeystoreId,
    root: &KeystoreRoot,
) -> Result<SlotAuthenticator, OpenError> {
    let aad = slot_authenticator_aad(keystore, slot.id);
    wrap::unwrap(root.as_bytes(), &aad, &slot.authenticator, |bytes| {
        SlotAuthenticator::new(KeyBytes::copy_of(bytes))
    })
}

/// The parts of a slot that change with the root.
struct SealedParts {
    encapsulated: Vec<u8>,
    root: SealedBytes,
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
            root: SealedBytes::from_slice(&sealed.sealed).expect("a sealed root has one size"),
            authenticator: wrap::wrap(root.as_bytes(), &aad, authenticator.as_bytes()),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use zeroize::Zeroizing;

    use super::*;
    use crate::{
        crypto::{
            keys::SlotSecret,
            passphrase::{Hardness, MEMORY_KIB_MIN},
            recipient::Recipient,
        },
        format::keystore::RemoteKeyName,
        keystore::{
            KeyFile, KeystoreError, LocalKeystore, Passphrase, Provider, RecoveryKey, RemoteKeyState,
            identity::Identity,
            provider::memory::MemoryProvider,
            tpm::{TpmObject, Unsealer},
        },
    };

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

    /// Returns the place of the kind of slot 1: front, id, two u64, audit head, count, slot id, label, created.
    const KIND_AT: usize = 16 + 16 + 8 + 8 + 40 + 8 + 4 + (8 + "laptop".len()) + 8;

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

    fn credential(name: &str, byte: u8) -> Unlock {
        Unlock::Credential {
            name: name.to_owned(),
            contents: key_file(byte),
        }
    }

    fn command(words: &[&str], byte: u8) -> Unlock {
        Unlock::Command {
            words: words.iter().map(|&word| word.to_owned()).collect(),
            output: key_file(byte),
        }
    }

    /// A TPM that knows one object, or says why it does not.
    #[derive(Debug)]
    struct FakeTpm(TpmObject, Result<u8, TpmError>);

    impl Unsealer for FakeTpm {
        fn unseal(&self, object: &TpmObject) -> Result<SlotSecret, TpmError> {
            if *object != self.0 {
                return Err(TpmError::OtherTpm);
            }
            self.1.map(|byte| SlotSecret::new(KeyBytes::copy_of(&[byte; 32])))
        }
    }

    fn tpm_object(byte: u8) -> TpmObject {
        TpmObject {
            public: vec![byte; 78],
            private: vec![byte; 158],
            pcrs: 1 << 7,
            pin: true,
        }
    }

    fn fake_tpm(object: u8, result: Result<u8, TpmError>) -> Unlock {
        Unlock::Tpm(Box::new(FakeTpm(tpm_object(object), result)))
    }

    fn remote_name(number: u8) -> RemoteKeyName {
        RemoteKeyName::AwsKms {
            arn: format!("arn:aws:kms:eu-central-1:111122223333:key/{number}"),
        }
    }

    /// Returns a keystore with two slots of each kind that names something (2 to 11), and what two of them need.
    fn two_of_each() -> (LocalKeystore, [Identity; 2], Arc<MemoryProvider>) {
        let file = key_file(0);
        let mut keystore = LocalKeystore::create("1", &NewSecret::KeyFile(&file), 1).unwrap();
        let identities = [Identity::generate(), Identity::generate()];
        let server = Arc::new(MemoryProvider::default());
        let words = [
            vec!["get".to_owned(), "a".to_owned()],
            vec!["get".to_owned(), "b".to_owned()],
        ];
        let mut number = 1;
        for i in 0..2 {
            let (file, secret) = (key_file(i + 1), SlotSecret::new(KeyBytes::copy_of(&[i + 1; 32])));
            let key = remote_name(i);
            server.set(&key, RemoteKeyState::Enabled);
            for new in [
                NewSecret::Credential {
                    name: ["a", "b"][usize::from(i)],
                    contents: &file,
                },
                NewSecret::Command {
                    words: &words[usize::from(i)],
                    output: &file,
                },
                NewSecret::Recipient(identities[usize::from(i)].recipient()),
                NewSecret::Tpm {
                    object: &tpm_object(i),
                    secret: &secret,
                },
                NewSecret::RemoteKey {
                    key: &key,
                    provider: &*server,
                },
            ] {
                number += 1;
                assert_eq!(keystore.add_slot(&number.to_string(), &new, 1), Ok(SlotId(number)));
            }
        }
        (keystore, identities, server)
    }

    fn remote(number: u8, provider: &Arc<MemoryProvider>) -> Unlock {
        Unlock::RemoteKey {
            key: remote_name(number),
            provider: provider.clone(),
        }
    }

    #[test]
    fn each_of_several_slots_of_a_kind_opens_with_what_it_names() {
        let (mut keystore, [one, two], server) = two_of_each();
        let bytes = keystore.encode(1).unwrap();
        for (unlock, slot) in [
            (credential("a", 1), 2),
            (credential("b", 2), 7),
            (command(&["get", "a"], 1), 3),
            (command(&["get", "b"], 2), 8),
            (Unlock::Identity(one), 4),
            (Unlock::Identity(two), 9),
            (fake_tpm(0, Ok(1)), 5),
            (fake_tpm(1, Ok(2)), 10),
            (remote(0, &server), 6),
            (remote(1, &server), 11),
        ] {
            assert_eq!(open(&bytes, &unlock, &SlotChoice::Any), Ok(SlotId(slot)), "{unlock:?}");
            assert!(LocalKeystore::unlock(&bytes, &unlock, &SlotChoice::Id(SlotId(slot))).is_ok());
            let other = SlotChoice::Id(SlotId(slot % 11 + 1));
            let error = open(&bytes, &unlock, &other).unwrap_err();
            assert_eq!(error, UnlockError::NoSlotOfKind(unlock.kind()));
        }
    }

    #[test]
    fn slots_open_after_another_was_removed() {
        let (mut keystore, [one, _], server) = two_of_each();
        let _ = keystore.remove_slot(SlotId(1), 2).unwrap();
        let bytes = keystore.encode(2).unwrap();
        for unlock in [
            credential("a", 1),
            command(&["get", "a"], 1),
            Unlock::Identity(one),
            fake_tpm(0, Ok(1)),
            remote(0, &server),
        ] {
            assert!(
                LocalKeystore::unlock(&bytes, &unlock, &SlotChoice::Any).is_ok(),
                "{unlock:?}"
            );
        }
    }

    #[test]
    fn what_is_not_for_a_slot_does_not_open_it() {
        let (mut keystore, _, server) = two_of_each();
        let bytes = keystore.encode(1).unwrap();
        let refused = |unlock: &Unlock| open(&bytes, unlock, &SlotChoice::Any).unwrap_err();
        for (unlock, error) in [
            // What a slot names decides, not what opens another.
            (credential("a", 2), UnlockError::WrongSecret(SecretKind::Credential)),
            (credential("c", 1), UnlockError::NoSlotOfKind(SecretKind::Credential)),
            (command(&["get", "a"], 2), UnlockError::WrongSecret(SecretKind::Command)),
            (command(&["get"], 1), UnlockError::NoSlotOfKind(SecretKind::Command)),
            (
                command(&["get", "a", ""], 1),
                UnlockError::NoSlotOfKind(SecretKind::Command),
            ),
            (
                Unlock::Identity(Identity::generate()),
                UnlockError::NoSlotOfKind(SecretKind::Identity),
            ),
            (remote(2, &server), UnlockError::NoSlotOfKind(SecretKind::RemoteKey)),
        ] {
            assert_eq!(refused(&unlock), error);
            assert!(!error.to_string().contains("takes a identity"));
        }
        let (slot, provider) = (SlotId(6), server.name());
        server.set(&remote_name(0), RemoteKeyState::Disabled);
        let error = ProviderError::Disabled;
        assert_eq!(
            refused(&remote(0, &server)),
            UnlockError::Remote { slot, provider, error }
        );
    }

    #[test]
    fn a_tpm_that_did_not_seal_one_slot_is_asked_for_the_next_but_a_pin_is_tried_once() {
        let (mut keystore, _, _) = two_of_each();
        let bytes = keystore.encode(1).unwrap();
        let refused = |unlock: &Unlock| open(&bytes, unlock, &SlotChoice::Any).unwrap_err();
        assert_eq!(open(&bytes, &fake_tpm(1, Ok(2)), &SlotChoice::Any), Ok(SlotId(10)));
        let (slot, error) = (SlotId(5), TpmError::OtherTpm);
        assert_eq!(refused(&fake_tpm(9, Ok(1))), UnlockError::Tpm { slot, error });
        let error = TpmError::WrongPin;
        let wrong = fake_tpm(0, Err(error));
        assert_eq!(refused(&wrong), UnlockError::Tpm { slot, error });
        let tried = LocalKeystore::try_each(&bytes, &wrong).unwrap();
        assert_eq!(tried, [(slot, Err(UnlockError::Tpm { slot, error }))]);
        // The register of the first slot changed; that of the second has not.
        let tried = LocalKeystore::try_each(&bytes, &fake_tpm(1, Ok(2))).unwrap();
        let error = TpmError::OtherTpm;
        assert_eq!(
            tried,
            [(slot, Err(UnlockError::Tpm { slot, error })), (SlotId(10), Ok(()))]
        );
    }

    #[test]
    fn a_slot_made_to_name_another_command_or_recipient_does_not_open() {
        let words = |text: &str| SlotKind::Command {
            words: vec![text.to_owned()],
        };
        let (keystore, _, _) = two_of_each();
        let bytes = keystore.encode_with_kind(SlotId(3), words("evil"));
        assert_eq!(
            open(&bytes, &command(&["get", "a"], 1), &SlotChoice::Any),
            Err(UnlockError::NoSlotOfKind(SecretKind::Command))
        );
        let (keystore, _, _) = two_of_each();
        let bytes = keystore.encode_with_kind(SlotId(3), words("get"));
        let slot = SlotId(3);
        assert_eq!(
            open(&bytes, &command(&["get"], 1), &SlotChoice::Any),
            Err(UnlockError::DamagedSlot { slot }),
            "the kind is sealed with the root"
        );
        // One slot's secret, sealed to the same recipient, in another slot.
        let (keystore, [one, _], _) = two_of_each();
        let kind = keystore.slots()[3].kind.clone();
        let bytes = keystore.encode_with_kind(SlotId(9), kind);
        assert_eq!(
            open(&bytes, &Unlock::Identity(one), &SlotChoice::Id(SlotId(9))),
            Err(UnlockError::DamagedSlot { slot: SlotId(9) })
        );
    }

    #[test]
    fn a_share_code_is_the_slot_s_for_ever_and_not_a_stranger_s() {
        let (mut keystore, [one, _], _) = two_of_each();
        let slot = SlotId(4);
        let code = keystore.share_code(slot).unwrap();
        assert_ne!(keystore.share_code(SlotId(9)).unwrap(), code);
        let _ = keystore.remove_slot(SlotId(1), 2).unwrap();
        let bytes = keystore.encode(2).unwrap();
        let (mut opened, by) = LocalKeystore::unlock(&bytes, &Unlock::Identity(one), &SlotChoice::Any).unwrap();
        assert_eq!((by, opened.share_code(slot)), (slot, Ok(code)));
        assert_eq!(
            opened.share_code(SlotId(1)),
            Err(KeystoreError::NoSuchSlot { slot: SlotId(1) })
        );

        // A keystore that someone else has made for the same recipient.
        let recipient = identity_of(&opened);
        let mut forged = LocalKeystore::create("1", &NewSecret::Recipient(&recipient), 1).unwrap();
        assert_ne!(forged.share_code(SlotId(1)).unwrap(), code);
        // Nor is it that of a recipient who was removed and added again.
        let _ = opened.remove_slot(slot, 3).unwrap();
        assert_eq!(
            opened.add_slot("again", &NewSecret::Recipient(&recipient), 3),
            Ok(SlotId(1))
        );
        assert_ne!(opened.share_code(SlotId(1)).unwrap(), code);
        assert!(forged.encode(1).is_ok());
    }

    /// Returns the recipient of slot 4.
    fn identity_of(keystore: &LocalKeystore) -> Recipient {
        let slot = keystore.slots().iter().find(|slot| slot.id == SlotId(4)).unwrap();
        match &slot.kind {
            SlotKind::Recipient { recipient, .. } => Recipient::from_bytes(recipient).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_secret_is_tried_on_each_slot_it_may_open() {
        let secret = passphrase("correct horse");
        let mut keystore = LocalKeystore::create("a", &NewSecret::Passphrase(&secret, EASY), 1).unwrap();
        let other = passphrase("other");
        keystore.add_slot("b", &NewSecret::Passphrase(&other, EASY), 1).unwrap();
        keystore.add_slot("c", &NewSecret::KeyFile(&key_file(1)), 1).unwrap();
        keystore
            .add_slot("d", &NewSecret::Passphrase(&secret, EASY), 1)
            .unwrap();
        let bytes = keystore.encode(1).unwrap();
        let tried = LocalKeystore::try_each(&bytes, &Unlock::Passphrase(secret)).unwrap();
        let wrong = || Err(UnlockError::WrongSecret(SecretKind::Passphrase));
        assert_eq!(tried, [(SlotId(1), Ok(())), (SlotId(2), wrong()), (SlotId(4), Ok(()))]);
        assert_eq!(LocalKeystore::try_each(&bytes, &credential("a", 1)).unwrap(), []);
        assert!(LocalKeystore::try_each(b"", &credential("a", 1)).is_err());
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
}
