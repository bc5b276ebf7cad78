//! What a user offers to open a slot, or to make one.

use std::{fmt, io, sync::Arc};

use zeroize::Zeroizing;

use super::{
    custodian::Context,
    identity::Identity,
    provider::{self, Bound, Provider, ProviderError},
    recovery::RecoveryKey,
    slot::UnlockError,
    tpm::{TpmObject, Unsealer},
};
use crate::{
    crypto::{
        derive,
        keys::{KeyBytes, SlotSecret},
        passphrase::{Hardness, HardnessError},
        random,
        recipient::Recipient,
        slot::SealedKey,
    },
    format::{
        keystore::{RemoteKeyName, SealedBytes, SlotId, SlotKind, recipient_slot_aad, remote_slot_purpose},
        sealed::{recipient_way_aad, remote_way_purpose},
    },
    ids::{FileId, KeystoreId},
};

/// The fewest bytes a key file has: fewer cannot be as strong as the key they give.
pub const KEY_FILE_SIZE_MIN: usize = 32;

/// The most bytes a key file has. Whoever reads one stops behind this, for someone may have named a disk.
pub const KEY_FILE_SIZE_MAX: usize = 1024 * 1024;

/// Asks for the PIN of what it is given the name of, or reads it where the user said.
pub type AskPin = dyn Fn(&str) -> io::Result<Zeroizing<Vec<u8>>> + Send + Sync;

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

    /// Returns the bytes, for stretching.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The contents of a key file, or as many bytes from elsewhere.
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

    fn slot_secret(&self) -> SlotSecret {
        derive::key_file_slot(&self.0)
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

/// What a slot opens. Its secret is bound to that, and to the slot's number.
#[derive(Clone, Copy, Debug)]
pub enum SlotOwner<'a> {
    /// A keystore.
    Keystore(KeystoreId),
    /// A sealed file, with its encryption context.
    File(FileId, &'a Context),
}

impl SlotOwner<'_> {
    /// Returns the additional data of what is sealed to a recipient.
    fn recipient_aad(self, slot: SlotId) -> Vec<u8> {
        match self {
            SlotOwner::Keystore(keystore) => recipient_slot_aad(keystore, slot),
            SlotOwner::File(file, _) => recipient_way_aad(file, slot),
        }
    }

    /// Returns the purpose and the encryption context of what a remote key wraps.
    fn remote_bound(self, slot: SlotId) -> (Vec<u8>, Context) {
        match self {
            SlotOwner::Keystore(keystore) => (remote_slot_purpose(keystore, slot), Context::for_slot(keystore, slot)),
            SlotOwner::File(file, context) => (remote_way_purpose(file, slot), context.clone()),
        }
    }
}

/// What a user offers to open a keystore or a sealed file.
#[derive(Debug)]
pub enum Unlock {
    /// A passphrase.
    Passphrase(Passphrase),
    /// The contents of a key file.
    KeyFile(KeyFile),
    /// A recovery key.
    RecoveryKey(RecoveryKey),
    /// The contents of a systemd credential: what slots that name it take.
    Credential { name: String, contents: KeyFile },
    /// What a command has written, which the user named and who calls has run: what slots that name the same take.
    Command { words: Vec<String>, output: KeyFile },
    /// What was sealed to a public key is opened with this.
    Identity(Identity),
    /// A TPM, which is asked for what it has sealed.
    Tpm(Box<dyn Unsealer>),
    /// A key that a server or an HSM holds, which the user named: slots may name any.
    RemoteKey {
        key: RemoteKeyName,
        provider: Arc<dyn Provider>,
    },
}

impl Unlock {
    /// Returns the kind of slot that this may open.
    pub fn kind(&self) -> SecretKind {
        match self {
            Unlock::Passphrase(_) => SecretKind::Passphrase,
            Unlock::KeyFile(_) => SecretKind::KeyFile,
            Unlock::RecoveryKey(_) => SecretKind::RecoveryKey,
            Unlock::Credential { .. } => SecretKind::Credential,
            Unlock::Command { .. } => SecretKind::Command,
            Unlock::Identity(_) => SecretKind::Identity,
            Unlock::Tpm(_) => SecretKind::Tpm,
            Unlock::RemoteKey { .. } => SecretKind::RemoteKey,
        }
    }

    /// Returns the secret that this gives for a slot, or none when the slot is not one for it.
    pub(super) fn secret_for(
        &self,
        owner: SlotOwner<'_>,
        id: SlotId,
        kind: &SlotKind,
    ) -> Option<Result<SlotSecret, UnlockError>> {
        match (self, kind) {
            (Unlock::Passphrase(passphrase), SlotKind::Passphrase(hardness)) => {
                let secret = hardness.stretch(&passphrase.0);
                Some(secret.map_err(|error| match error {
                    HardnessError::OutOfRange => UnlockError::HostileParameters { slot: id },
                    HardnessError::NoMemory { .. } => UnlockError::NoMemory { slot: id, error },
                }))
            }
            (Unlock::KeyFile(file), SlotKind::KeyFile) => Some(Ok(file.slot_secret())),
            (Unlock::RecoveryKey(key), SlotKind::Recovery) => Some(Ok(key.slot_secret())),
            (Unlock::Credential { name, contents }, SlotKind::Credential { name: own }) if name == own => {
                Some(Ok(contents.slot_secret()))
            }
            (Unlock::Command { words, output }, SlotKind::Command { words: own }) if words == own => {
                Some(Ok(output.slot_secret()))
            }
            (
                Unlock::Identity(identity),
                SlotKind::Recipient {
                    recipient,
                    encapsulated,
                    sealed,
                },
            ) if recipient == identity.recipient().as_bytes() => {
                let sealed = SealedKey {
                    encapsulated: encapsulated.clone(),
                    sealed: sealed.as_bytes().to_vec(),
                };
                let secret = identity.key().open(&owner.recipient_aad(id), &sealed);
                Some(secret.map_err(|_| UnlockError::DamagedSlot { slot: id }))
            }
            (
                Unlock::Tpm(tpm),
                SlotKind::Tpm2 {
                    public,
                    private,
                    pcrs,
                    pin,
                },
            ) => {
                let object = TpmObject {
                    public: public.clone(),
                    private: private.clone(),
                    pcrs: *pcrs,
                    pin: *pin,
                };
                let secret = tpm.unseal(&object);
                Some(secret.map_err(|error| UnlockError::Tpm { slot: id, error }))
            }
            (Unlock::RemoteKey { key, provider }, SlotKind::Remote { key: own, blob }) if key.names(own) => {
                let (purpose, context) = owner.remote_bound(id);
                let bound = Bound {
                    purpose: &purpose,
                    context: &context,
                };
                let secret = provider::unwrap(&**provider, own, &bound, blob, |bytes| {
                    SlotSecret::new(KeyBytes::copy_of(bytes))
                });
                Some(secret.map_err(|error| match error {
                    ProviderError::Rejected => UnlockError::DamagedSlot { slot: id },
                    error => UnlockError::Remote {
                        slot: id,
                        provider: provider.name(),
                        error,
                    },
                }))
            }
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
    /// A systemd credential, by its name and contents.
    Credential { name: &'a str, contents: &'a KeyFile },
    /// A command, by its words and what it has written.
    Command { words: &'a [String], output: &'a KeyFile },
    /// Whoever has the identity of this public key.
    Recipient(&'a Recipient),
    /// Thirty-two bytes, as a TPM has sealed them.
    Tpm {
        object: &'a TpmObject,
        secret: &'a SlotSecret,
    },
    /// A key that a server or an HSM holds.
    RemoteKey {
        key: &'a RemoteKeyName,
        provider: &'a dyn Provider,
    },
}

/// Why a slot cannot be made with a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSecretError {
    /// The passphrase cannot be stretched.
    Hardness(HardnessError),
    /// Nothing can be sealed to the public key.
    Recipient,
    /// The key's holder did not wrap.
    Remote {
        provider: &'static str,
        error: ProviderError,
    },
}

impl NewSecret<'_> {
    /// Returns the kind of slot that it makes.
    pub fn kind(&self) -> SecretKind {
        match self {
            NewSecret::Passphrase(..) => SecretKind::Passphrase,
            NewSecret::KeyFile(_) => SecretKind::KeyFile,
            NewSecret::RecoveryKey(_) => SecretKind::RecoveryKey,
            NewSecret::Credential { .. } => SecretKind::Credential,
            NewSecret::Command { .. } => SecretKind::Command,
            NewSecret::Recipient(_) => SecretKind::Identity,
            NewSecret::Tpm { .. } => SecretKind::Tpm,
            NewSecret::RemoteKey { .. } => SecretKind::RemoteKey,
        }
    }

    /// Returns the kind of a slot as it is stored, and the secret its key pair grows from.
    ///
    /// # Errors
    ///
    /// The [`NewSecretError`] that says why there is none.
    pub(super) fn make(&self, owner: SlotOwner<'_>, slot: SlotId) -> Result<(SlotKind, SlotSecret), NewSecretError> {
        Ok(match self {
            NewSecret::Passphrase(passphrase, hardness) => {
                // One salt for two slots would let one guess be tried on both at the price of one.
                let hardness = Hardness {
                    salt: random::bytes(),
                    ..*hardness
                };
                let secret = hardness.stretch(&passphrase.0).map_err(NewSecretError::Hardness)?;
                (SlotKind::Passphrase(hardness), secret)
            }
            NewSecret::KeyFile(file) => (SlotKind::KeyFile, file.slot_secret()),
            NewSecret::RecoveryKey(key) => (SlotKind::Recovery, key.slot_secret()),
            NewSecret::Credential { name, contents } => {
                let name = (*name).to_owned();
                (SlotKind::Credential { name }, contents.slot_secret())
            }
            NewSecret::Command { words, output } => {
                let words = words.to_vec();
                (SlotKind::Command { words }, output.slot_secret())
            }
            NewSecret::Recipient(recipient) => {
                let secret = SlotSecret::new(random::key());
                let sealed = recipient
                    .seal(&owner.recipient_aad(slot), &secret)
                    .map_err(|_| NewSecretError::Recipient)?;
                let kind = SlotKind::Recipient {
                    recipient: recipient.as_bytes().to_vec(),
                    encapsulated: sealed.encapsulated,
                    sealed: SealedBytes::from_slice(&sealed.sealed).expect("a sealed key has one size"),
                };
                (kind, secret)
            }
            NewSecret::Tpm { object, secret } => {
                let TpmObject {
                    public,
                    private,
                    pcrs,
                    pin,
                } = (*object).clone();
                let kind = SlotKind::Tpm2 {
                    public,
                    private,
                    pcrs,
                    pin,
                };
                (kind, SlotSecret::new(KeyBytes::copy_of(secret.as_bytes())))
            }
            NewSecret::RemoteKey { key, provider } => {
                let secret = SlotSecret::new(random::key());
                let (purpose, context) = owner.remote_bound(slot);
                let bound = Bound {
                    purpose: &purpose,
                    context: &context,
                };
                let blob = provider::wrap(*provider, key, &bound, secret.as_bytes()).map_err(|error| {
                    NewSecretError::Remote {
                        provider: provider.name(),
                        error,
                    }
                })?;
                let key = (*key).clone();
                (SlotKind::Remote { key, blob }, secret)
            }
        })
    }
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
    /// A systemd credential.
    Credential,
    /// A command.
    Command,
    /// An identity.
    Identity,
    /// A TPM.
    Tpm,
    /// A key in a key server or an HSM.
    RemoteKey,
}

impl SecretKind {
    /// Returns the kind of secret that a slot takes.
    pub fn of(kind: &SlotKind) -> Self {
        match kind {
            SlotKind::Passphrase(_) => SecretKind::Passphrase,
            SlotKind::KeyFile => SecretKind::KeyFile,
            SlotKind::Recovery => SecretKind::RecoveryKey,
            SlotKind::Credential { .. } => SecretKind::Credential,
            SlotKind::Command { .. } => SecretKind::Command,
            SlotKind::Recipient { .. } => SecretKind::Identity,
            SlotKind::Tpm2 { .. } => SecretKind::Tpm,
            SlotKind::Remote { .. } => SecretKind::RemoteKey,
        }
    }

    /// Returns it with its article.
    pub fn with_article(self) -> String {
        match self {
            SecretKind::Identity => format!("an {self}"),
            _ => format!("a {self}"),
        }
    }
}

impl fmt::Display for SecretKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SecretKind::Passphrase => "passphrase",
            SecretKind::KeyFile => "key file",
            SecretKind::RecoveryKey => "recovery key",
            SecretKind::Credential => "credential",
            SecretKind::Command => "command",
            SecretKind::Identity => "identity",
            SecretKind::Tpm => "TPM",
            SecretKind::RemoteKey => "remote key",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keystore::slot::tests::{key_file, passphrase};

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
            Unlock::Credential {
                name: "hushfs".into(),
                contents: key_file(b'h'),
            },
            Unlock::Command {
                words: vec!["true".into()],
                output: key_file(b'h'),
            },
            Unlock::Identity(Identity::generate()),
        ] {
            assert!(format!("{unlock:?}").contains("[redacted]"));
        }
    }
}
