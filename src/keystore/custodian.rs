//! What a keystore is to the rest of hushfs: someone who wraps and unwraps 32 bytes, with a key that hushfs may never see.
//!
//! The words and the errors are those of cloud key services, so that one table of states and messages serves all of them.

use std::fmt;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::word::{self, Word};
use crate::{
    crypto::{keys::EpochKey, random},
    format::{FormatError, keystore::SlotId},
    ids::{Epoch, FileId, KeyId, KeystoreId, VaultId},
};

/// The most bytes a wrapped key may have; cloud key services stay below 6144.
pub const WRAPPED_KEY_SIZE_MAX: usize = 8192;

/// The most pairs a context may have.
pub const CONTEXT_PAIRS_MAX: usize = 16;

/// Names in a context that start so are made by hushfs, never taken from a file or a user.
pub const CONTEXT_RESERVED_PREFIX: &str = "hushfs:";

/// Wraps and unwraps epoch keys with a key that hushfs may never see.
///
/// A custodian may be a server. So a call may take 100 ms and must not be made under a lock that reading or writing a file
/// needs; it may fail for a while ([`KeyError::Unavailable`]), and then, and only then, a key that is still cached may serve a
/// little longer; and it may refuse ([`KeyError::AccessDenied`], [`KeyError::Disabled`]), which is an answer and
/// empties the cache. A custodian does not retry on its own for longer than one call should take, and it keeps no unwrapped keys:
/// caching is for who calls.
///
/// An unwrap under another context than that of the wrap fails, as does one of a blob that was changed; a custodian that cannot
/// tell the two apart says [`KeyError::Rejected`] for both.
pub trait Custodian: Send + Sync + fmt::Debug {
    /// Returns the id of the keystore whose keys these are.
    fn id(&self) -> KeystoreId;

    /// Wraps an epoch key under the current version of a key.
    ///
    /// The blob has been unwrapped once when this returns, unless it is for one file of a vault, or whoever asks may not unwrap.
    ///
    /// # Errors
    ///
    /// The [`KeyError`] that says why the key cannot be used; [`KeyError::Commitment`] when the blob does not open.
    fn wrap(&self, key: &KeyHandle, context: &Context, secret: &EpochKey) -> Result<WrappedKey, KeyError>;

    /// Unwraps an epoch key, under the version of the key that the blob names.
    ///
    /// # Errors
    ///
    /// The [`KeyError`] that says why the key cannot be used, or that the blob is not for this key and context.
    fn unwrap(&self, key: &KeyHandle, context: &Context, wrapped: &WrappedKey) -> Result<EpochKey, KeyError>;

    /// Makes an epoch key, and wraps it.
    ///
    /// # Errors
    ///
    /// Those of [`wrap`](Self::wrap).
    fn generate(&self, key: &KeyHandle, context: &Context) -> Result<(EpochKey, WrappedKey), KeyError> {
        let secret = EpochKey::new(random::locked_key());
        let wrapped = self.wrap(key, context, &secret)?;
        Ok((secret, wrapped))
    }

    /// Wraps anew what was wrapped, under the current version of the same or another key, or with another context.
    ///
    /// The new blob has been unwrapped once when this returns: the old one can be dropped.
    ///
    /// # Errors
    ///
    /// Those of [`wrap`](Self::wrap) and [`unwrap`](Self::unwrap); [`KeyError::Commitment`] when the new blob opens to another key.
    fn rewrap(
        &self,
        from: &KeyHandle,
        context: &Context,
        wrapped: &WrappedKey,
        to: &KeyHandle,
        to_context: &Context,
    ) -> Result<WrappedKey, KeyError> {
        let secret = self.unwrap(from, context, wrapped)?;
        let rewrapped = self.wrap(to, to_context, &secret)?;
        let again = self.unwrap(to, to_context, &rewrapped)?;
        if bool::from(secret.as_bytes().ct_eq(again.as_bytes())) {
            Ok(rewrapped)
        } else {
            Err(KeyError::Commitment { key: to.0 })
        }
    }
}

/// Names a master key to a custodian. Which of its versions wrapped something stands in the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyHandle(pub KeyId);

impl fmt::Display for KeyHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A wrapped epoch key, as its custodian gave it: at most [`WRAPPED_KEY_SIZE_MAX`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>")]
pub struct WrappedKey(Vec<u8>);

impl TryFrom<Vec<u8>> for WrappedKey {
    type Error = FormatError;

    fn try_from(blob: Vec<u8>) -> Result<Self, FormatError> {
        WrappedKey::new(blob)
    }
}

impl WrappedKey {
    /// Takes a blob.
    ///
    /// # Errors
    ///
    /// [`FormatError::OutOfRange`] when it is too long.
    pub fn new(blob: Vec<u8>) -> Result<Self, FormatError> {
        if blob.len() > WRAPPED_KEY_SIZE_MAX {
            return Err(FormatError::OutOfRange("size of a wrapped key"));
        }
        Ok(WrappedKey(blob))
    }

    /// Returns the blob.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the blob, for storing.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// The encryption context: pairs of strings that are authenticated with a wrapped key and stand in clear in the audit log.
///
/// Unwrapping needs the same pairs. Their order does not matter; here they are sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(String, String)>")]
pub struct Context(Vec<(String, String)>);

/// Names of the pairs that every context of an epoch key has.
const EPOCH_NAME: &str = "hushfs:epoch";
const VAULT_NAME: &str = "hushfs:vault";

/// The name of the pair that the context of a secret of one file's own has.
const FILE_NAME: &str = "hushfs:file";

/// Takes a context from someone else: of the names that hushfs makes, those of an epoch key and of a file in a vault alone.
impl TryFrom<Vec<(String, String)>> for Context {
    type Error = ContextError;

    fn try_from(mut pairs: Vec<(String, String)>) -> Result<Self, ContextError> {
        let is_of_vault = |(name, _): &(String, String)| [EPOCH_NAME, VAULT_NAME, FILE_NAME].contains(&name.as_str());
        let own: Vec<_> = pairs.extract_if(.., |pair| is_of_vault(pair)).collect();
        // That of a file without a vault is a way into a sealed file.
        let has = |wanted: &str| own.iter().any(|(name, _)| name == wanted);
        if has(FILE_NAME) && !has(VAULT_NAME) {
            return Err(ContextError::Reserved);
        }
        let context = pairs
            .iter()
            .try_fold(Context::default(), |context, (name, value)| context.with(name, value))?;
        own.into_iter()
            .try_fold(context, |context, (name, value)| context.insert(name, value))
    }
}

impl Context {
    /// Makes the context that every wrap of an epoch key has: which vault, which epoch.
    ///
    /// It is made from what the reader knows, never from the file: a wrap moved to another vault or epoch does not open.
    pub fn for_epoch(vault: VaultId, epoch: Epoch) -> Self {
        Context(vec![
            (EPOCH_NAME.to_owned(), epoch.to_string()),
            (VAULT_NAME.to_owned(), vault.to_hex()),
        ])
    }

    /// Makes the context of the secret of a slot that a remote key wraps: which keystore, which slot.
    pub fn for_slot(keystore: KeystoreId, slot: SlotId) -> Self {
        Context(vec![
            ("hushfs:keystore".to_owned(), keystore.to_hex()),
            ("hushfs:slot".to_owned(), slot.to_string()),
        ])
    }

    /// Makes the context of a way into a sealed file: which file.
    pub fn for_file(file: FileId) -> Self {
        Context(vec![(FILE_NAME.to_owned(), file.to_hex())])
    }

    /// Makes the context of a secret of one file's own: which vault, which file.
    ///
    /// As for an epoch, it is made from what the reader knows: a secret moved to another file, or its file to another vault, does not open.
    pub fn for_file_of(vault: VaultId, file: FileId) -> Self {
        Context(vec![
            (FILE_NAME.to_owned(), file.to_hex()),
            (VAULT_NAME.to_owned(), vault.to_hex()),
        ])
    }

    /// Tells whether it is that of a secret of one file's own in a vault.
    pub(super) fn is_for_file_of_vault(&self) -> bool {
        let has = |wanted: &str| self.0.iter().any(|(name, _)| name == wanted);
        has(FILE_NAME) && has(VAULT_NAME)
    }

    /// Adds a pair of the user's.
    ///
    /// # Errors
    ///
    /// [`ContextError`] when the name is taken or reserved, or there are too many pairs.
    pub fn with(self, name: &str, value: &str) -> Result<Self, ContextError> {
        if name.starts_with(CONTEXT_RESERVED_PREFIX) {
            return Err(ContextError::Reserved);
        }
        self.insert(name.to_owned(), value.to_owned())
    }

    fn insert(mut self, name: String, value: String) -> Result<Self, ContextError> {
        if self.0.len() >= CONTEXT_PAIRS_MAX {
            return Err(ContextError::TooManyPairs);
        }
        match self.0.binary_search_by(|(other, _)| other.cmp(&name)) {
            Ok(_) => Err(ContextError::NameTaken),
            Err(at) => {
                self.0.insert(at, (name, value));
                Ok(self)
            }
        }
    }

    /// Returns the pairs, rising by name.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    /// Returns the one encoding of this context, the additional data of a wrap: as a list in a body, docs/FORMAT.md section 1.3.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&(self.0.len() as u64).to_le_bytes());
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            out.extend_from_slice(&(text.len() as u64).to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        out
    }
}

/// Why a pair cannot be added to a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextError {
    /// The context has a pair with that name.
    NameTaken,
    /// Names starting with `hushfs:` are made by hushfs.
    Reserved,
    /// The context has as many pairs as it may.
    TooManyPairs,
}

impl fmt::Display for ContextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContextError::NameTaken => f.write_str("the encryption context has that name already"),
            ContextError::Reserved => {
                write!(
                    f,
                    "names in an encryption context must not start with {CONTEXT_RESERVED_PREFIX}"
                )
            }
            ContextError::TooManyPairs => {
                write!(
                    f,
                    "an encryption context has at most {CONTEXT_PAIRS_MAX} pairs, some of them made by hushfs"
                )
            }
        }
    }
}

impl std::error::Error for ContextError {}

/// Why a key could not be used, in the words of cloud key services.
///
/// Only [`Unavailable`](Self::Unavailable) passes by itself; every other one is the custodian's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyError {
    /// The custodian has no such key.
    NotFound { key: KeyId },
    /// The key is disabled.
    Disabled { key: KeyId },
    /// The key is to be destroyed.
    PendingDeletion { key: KeyId },
    /// The custodian could not be reached or is out of order; trying again later may help.
    Unavailable {
        key: KeyId,
        #[serde(deserialize_with = "word::deserialize")]
        provider: Word,
    },
    /// A key server or an HSM holds the key, and nothing here reaches that.
    NoProvider {
        key: KeyId,
        #[serde(deserialize_with = "word::deserialize")]
        provider: Word,
    },
    /// The key is of a kind that this cannot be done with.
    Unsupported { key: KeyId },
    /// Whoever holds the key does not let this user do this with it.
    AccessDenied {
        key: KeyId,
        #[serde(deserialize_with = "word::deserialize")]
        provider: Word,
    },
    /// The key's policy does not.
    Denied {
        key: KeyId,
        /// The user.
        uid: u32,
        /// What they wanted to do, as policies name it.
        #[serde(deserialize_with = "word::deserialize")]
        action: Word,
        /// Whether a statement denies it; otherwise none allows it.
        explicit: bool,
    },
    /// The blob was changed, or wrapped with another context. Which of the two is not told, on purpose.
    Rejected { key: KeyId },
    /// The blob was wrapped under another key.
    IncorrectKey { key: KeyId },
    /// What came out is not the key that was put in. Never harmless: someone made a blob that opens to two keys, or memory is failing.
    Commitment { key: KeyId },
    /// The key or its custodian has as much of something as it may.
    Limit { key: KeyId },
    /// The key is a customer's, who has not brought it.
    NotBrought { key: KeyId },
}

impl KeyError {
    /// Returns the key it was about.
    pub fn key(&self) -> KeyId {
        match *self {
            KeyError::NotFound { key }
            | KeyError::Disabled { key }
            | KeyError::PendingDeletion { key }
            | KeyError::Unavailable { key, .. }
            | KeyError::NoProvider { key, .. }
            | KeyError::Unsupported { key }
            | KeyError::AccessDenied { key, .. }
            | KeyError::Denied { key, .. }
            | KeyError::Rejected { key }
            | KeyError::IncorrectKey { key }
            | KeyError::Commitment { key }
            | KeyError::Limit { key }
            | KeyError::NotBrought { key } => key,
        }
    }

    /// Tells whether the same call may succeed later with nothing changed: only then may a cached key serve on.
    pub fn is_transient(&self) -> bool {
        matches!(self, KeyError::Unavailable { .. })
    }

    /// Returns the name AWS KMS gives this error, for the audit log; none where AWS has no such error.
    pub fn aws_name(&self) -> Option<&'static str> {
        Some(match self {
            KeyError::NotFound { .. } => "NotFoundException",
            KeyError::Disabled { .. } => "DisabledException",
            KeyError::PendingDeletion { .. } => "KMSInvalidStateException",
            KeyError::Unavailable { .. } => "KeyUnavailableException",
            KeyError::NoProvider { .. } => return None,
            KeyError::Unsupported { .. } => "UnsupportedOperationException",
            KeyError::AccessDenied { .. } | KeyError::Denied { .. } => "AccessDeniedException",
            KeyError::Rejected { .. } => "InvalidCiphertextException",
            KeyError::IncorrectKey { .. } => "IncorrectKeyException",
            KeyError::Commitment { .. } => return None,
            KeyError::Limit { .. } => "LimitExceededException",
            KeyError::NotBrought { .. } => return None,
        })
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::NotFound { key } => write!(f, "no key {key} in this keystore"),
            KeyError::Disabled { key } => write!(f, "key {key} is disabled"),
            KeyError::PendingDeletion { key } => write!(f, "key {key} is pending deletion"),
            KeyError::Unavailable { key, provider } => {
                write!(f, "key {key} is unavailable: {provider} does not answer")
            }
            KeyError::NoProvider { key, provider } => {
                write!(
                    f,
                    "key {key} is held by {provider}, and this hushfs has not been told how to reach it"
                )
            }
            KeyError::Unsupported { key } => write!(f, "this cannot be done with a key of the kind of {key}"),
            KeyError::AccessDenied { key, provider } => write!(f, "{provider} denies the use of key {key}"),
            KeyError::Denied {
                key,
                uid,
                action,
                explicit,
            } => {
                let why = match explicit {
                    true => "with an explicit deny in its policy",
                    false => "because no statement of its policy allows it",
                };
                write!(f, "user {uid} is not authorized to perform {action} on key {key} {why}")
            }
            KeyError::Rejected { key } => {
                write!(
                    f,
                    "key {key} does not open this: tampered with, or made for something else"
                )
            }
            KeyError::IncorrectKey { key } => write!(f, "this was wrapped under another key than {key}"),
            KeyError::Commitment { key } => {
                write!(
                    f,
                    "what is wrapped under key {key} does not open to what was wrapped: whoever holds the key is out of order"
                )
            }
            KeyError::Limit { key } => write!(f, "key {key} has reached a limit"),
            KeyError::NotBrought { key } => {
                write!(f, "customer key {key} was not brought: name it with --customer-key")
            }
        }
    }
}

impl std::error::Error for KeyError {}

/// Checks what every custodian must do, with a key of it that is enabled.
///
/// What holds: a blob opens to what was wrapped, in its context only; no changed or cut blob opens; an unknown key is refused; none of
/// these refusals is transient, for then a cache would hide them.
#[cfg(test)]
pub(crate) fn check_custodian(custodian: &dyn Custodian, key: &KeyHandle) {
    let context = Context::for_epoch(VaultId([1; 16]), Epoch(1));
    let refused = |key: &KeyHandle, context: &Context, wrapped: &WrappedKey, what: &str| {
        let error = custodian.unwrap(key, context, wrapped).expect_err(what);
        assert!(!error.is_transient(), "{what}: {error}");
    };

    let secret = EpochKey::new(random::locked_key());
    let wrapped = custodian.wrap(key, &context, &secret).unwrap();
    let opened = custodian.unwrap(key, &context, &wrapped).unwrap();
    assert_eq!(opened.as_bytes(), secret.as_bytes());
    assert_ne!(
        custodian.wrap(key, &context, &secret).unwrap(),
        wrapped,
        "wraps are randomized"
    );

    for (other, what) in [
        (Context::default(), "no context"),
        (Context::for_epoch(VaultId([2; 16]), Epoch(1)), "another vault"),
        (Context::for_epoch(VaultId([1; 16]), Epoch(2)), "another epoch"),
        (context.clone().with("more", "").unwrap(), "one pair more"),
    ] {
        refused(key, &other, &wrapped, what);
    }

    let unknown = KeyHandle(KeyId([0xEE; 16]));
    refused(&unknown, &context, &wrapped, "an unknown key");
    assert!(custodian.wrap(&unknown, &context, &secret).is_err());

    let blob = wrapped.as_bytes();
    let step = if blob.len() > 256 { 7 } else { 1 };
    for at in (0..blob.len()).step_by(step) {
        let mut changed = blob.to_vec();
        changed[at] ^= 1;
        refused(
            key,
            &context,
            &WrappedKey::new(changed).unwrap(),
            &format!("byte {at} flipped"),
        );
    }
    for len in [0, 1, 4, blob.len() / 2, blob.len() - 1] {
        refused(
            key,
            &context,
            &WrappedKey::new(blob[..len].to_vec()).unwrap(),
            &format!("cut to {len}"),
        );
    }
    let longer = [blob, &[0]].concat();
    refused(key, &context, &WrappedKey::new(longer).unwrap(), "a byte more");

    let (made, wrapped) = custodian.generate(key, &context).unwrap();
    assert_eq!(
        custodian.unwrap(key, &context, &wrapped).unwrap().as_bytes(),
        made.as_bytes()
    );
    assert_ne!(custodian.generate(key, &context).unwrap().0.as_bytes(), made.as_bytes());

    let next = Context::for_epoch(VaultId([1; 16]), Epoch(2));
    let rewrapped = custodian.rewrap(key, &context, &wrapped, key, &next).unwrap();
    assert_eq!(
        custodian.unwrap(key, &next, &rewrapped).unwrap().as_bytes(),
        made.as_bytes()
    );
    refused(key, &context, &rewrapped, "the context before the rewrap");
    assert!(custodian.rewrap(key, &next, &wrapped, key, &next).is_err());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::locked::LockedKey;

    #[test]
    fn the_context_of_an_epoch_is_encoded_as_in_the_format() {
        let context = Context::for_epoch(VaultId([0xAB; 16]), Epoch(12));
        let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        let expected = [
            2u64.to_le_bytes().to_vec(),
            text("hushfs:epoch"),
            text("12"),
            text("hushfs:vault"),
            text("abababababababababababababababab"),
        ];
        assert_eq!(context.encode(), expected.concat());
    }

    #[test]
    fn the_pairs_of_a_context_rise_whatever_order_they_came_in() {
        let context = || Context::for_epoch(VaultId([1; 16]), Epoch(1));
        let one = context().with("z", "1").unwrap().with("a", "2").unwrap();
        let two = context().with("a", "2").unwrap().with("z", "1").unwrap();
        assert_eq!(one, two);
        assert!(crate::format::body::rises(one.pairs().iter().map(|(name, _)| name)));
        assert_ne!(
            context().with("ab", "c").unwrap().encode(),
            context().with("a", "bc").unwrap().encode()
        );
    }

    #[test]
    fn a_context_refuses_what_it_must() {
        let context = Context::for_epoch(VaultId([1; 16]), Epoch(1)).with("a", "1").unwrap();
        assert_eq!(context.clone().with("a", "2"), Err(ContextError::NameTaken));
        assert_eq!(context.clone().with("hushfs:x", "2"), Err(ContextError::Reserved));
        let full = (3..CONTEXT_PAIRS_MAX).fold(context, |context, i| context.with(&format!("n{i}"), "").unwrap());
        assert_eq!(full.with("one more", ""), Err(ContextError::TooManyPairs));
    }

    #[test]
    fn a_wrapped_key_has_a_limit() {
        assert!(WrappedKey::new(vec![0; WRAPPED_KEY_SIZE_MAX]).is_ok());
        assert!(WrappedKey::new(vec![0; WRAPPED_KEY_SIZE_MAX + 1]).is_err());
    }

    #[test]
    fn only_unavailable_is_transient() {
        let key = KeyId([1; 16]);
        assert!(KeyError::Unavailable { key, provider: "test" }.is_transient());
        for error in [
            KeyError::NotFound { key },
            KeyError::Disabled { key },
            KeyError::PendingDeletion { key },
            KeyError::AccessDenied { key, provider: "test" },
            KeyError::Rejected { key },
            KeyError::Commitment { key },
        ] {
            assert!(!error.is_transient(), "{error}");
            assert_eq!(error.key(), key);
        }
        assert_eq!(KeyError::Commitment { key }.aws_name(), None);
    }

    /// Opens everything to the same key.
    #[derive(Debug)]
    struct Forgetful;

    impl Custodian for Forgetful {
        fn id(&self) -> KeystoreId {
            KeystoreId([0; 16])
        }

        fn wrap(&self, _: &KeyHandle, _: &Context, _: &EpochKey) -> Result<WrappedKey, KeyError> {
            Ok(WrappedKey(Vec::new()))
        }

        fn unwrap(&self, _: &KeyHandle, context: &Context, _: &WrappedKey) -> Result<EpochKey, KeyError> {
            Ok(EpochKey::new(LockedKey::copy_of(&[context.pairs().len() as u8; 32])))
        }
    }

    #[test]
    fn a_rewrap_that_opens_to_another_key_is_an_error() {
        let key = KeyHandle(KeyId([1; 16]));
        let to = Context::for_epoch(VaultId([1; 16]), Epoch(1));
        let rewrapped = Forgetful.rewrap(&key, &Context::default(), &WrappedKey(Vec::new()), &key, &to);
        assert_eq!(rewrapped, Err(KeyError::Commitment { key: key.0 }));
    }
}
