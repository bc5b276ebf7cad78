//! Key servers and HSMs, which wrap 32 bytes under keys that they never show.
//!
//! What a provider wraps is never an epoch key: it is an *inner key*, made for one wrap, and under that the secret is wrapped as
//! everything is ([`crypto::wrap`](crate::crypto::wrap)). So a blob commits to its key whatever cipher the other side uses, and a
//! provider that opens a blob to something else is noticed. docs/FORMAT.md section 3 has the bytes.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::custodian::{Context, KeyError};
use crate::{
    crypto::{
        KEY_SIZE,
        locked::LockedKey,
        wrap::{self, WRAPPED_SIZE, Wrapped},
    },
    format::keystore::RemoteKeyName,
    ids::KeyId,
};

/// What asking for a key takes of the process that asks, from the least to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Its own memory and files.
    Here,
    /// A Unix socket.
    Agent,
    /// Servers in the network.
    Network,
    /// Libraries or programs that hushfs does not know.
    ForeignCode,
}

/// A key server or an HSM.
///
/// Where it is and who asks is its own affair, taken from the user's arguments and environment: a [`RemoteKeyName`] comes from a file, which
/// must not choose a server or a library. What holds for time, refusals and retries is said at [`Custodian`](super::Custodian).
pub trait Provider: fmt::Debug + Send + Sync {
    /// Returns the name that messages use: `AWS KMS`.
    fn name(&self) -> &'static str;

    /// Makes 32 random bytes, and wraps them: some servers do both, so that no request has a secret in it. What comes out need not
    /// commit to its key.
    ///
    /// # Errors
    ///
    /// The [`ProviderError`] that says why the key cannot be used.
    fn generate(&self, key: &RemoteKeyName, context: &Context) -> Result<(LockedKey, Vec<u8>), ProviderError>;

    /// Unwraps what [`generate`](Self::generate) gave. The context is authenticated: under another one nothing opens.
    ///
    /// # Errors
    ///
    /// The [`ProviderError`] that says why the key cannot be used, or that the blob is not for this key and context.
    fn unwrap(&self, key: &RemoteKeyName, context: &Context, blob: &[u8]) -> Result<LockedKey, ProviderError>;

    /// Tells whether the key could be used.
    ///
    /// # Errors
    ///
    /// [`ProviderError::NotFound`], [`ProviderError::AccessDenied`], [`ProviderError::Unauthorized`] or [`ProviderError::Unavailable`].
    fn describe(&self, key: &RemoteKeyName) -> Result<RemoteKeyState, ProviderError>;

    /// Tells what asking takes.
    fn reach(&self) -> Reach {
        Reach::ForeignCode
    }
}

/// Whether a remote key could be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteKeyState {
    /// It wraps and unwraps.
    Enabled,
    /// It does neither until it is enabled.
    Disabled,
    /// It does neither, and will be destroyed, at this time in seconds since 1970 if that is known.
    PendingDeletion { date: Option<u64> },
    /// Its server has it, but cannot use it now: what it is kept in does not answer.
    Unavailable,
}

/// Why a remote key could not be used: the reasons of a [`KeyError`], of a key whose id in the keystore the provider does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProviderError {
    /// There is no such key.
    NotFound,
    /// The key is disabled.
    Disabled,
    /// The key is to be destroyed.
    PendingDeletion,
    /// No answer, or one that says to try later.
    Unavailable,
    /// This user may not do this with this key.
    AccessDenied,
    /// The blob was changed, or wrapped with another context or, where that cannot be told, under another key.
    Rejected,
    /// The blob was wrapped under another key.
    IncorrectKey,
    /// The key, or who holds it, has as much of something as it may.
    Limit,
    /// The key is not one that can wrap 32 bytes.
    Unsupported,
    /// What was just wrapped does not open to the same again.
    Commitment,
    /// Who asks is not let in, or is refused with words that do not say that it is about this key and this call.
    Unauthorized,
}

impl ProviderError {
    /// Returns the name AWS KMS gives this error.
    pub fn aws_name(self) -> Option<&'static str> {
        self.of_key(KeyId([0; 16]), "").aws_name()
    }

    /// Says which key of the keystore it was about, and who holds that.
    pub fn of_key(self, key: KeyId, provider: &'static str) -> KeyError {
        match self {
            ProviderError::NotFound => KeyError::NotFound { key },
            ProviderError::Disabled => KeyError::Disabled { key },
            ProviderError::PendingDeletion => KeyError::PendingDeletion { key },
            ProviderError::Unavailable => KeyError::Unavailable { key, provider },
            ProviderError::AccessDenied | ProviderError::Unauthorized => KeyError::AccessDenied { key, provider },
            ProviderError::Rejected => KeyError::Rejected { key },
            ProviderError::IncorrectKey => KeyError::IncorrectKey { key },
            ProviderError::Limit => KeyError::Limit { key },
            ProviderError::Unsupported => KeyError::Unsupported { key },
            ProviderError::Commitment => KeyError::Commitment { key },
        }
    }
}

impl fmt::Display for ProviderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProviderError::NotFound => "there is no such key",
            ProviderError::Disabled => "the key is disabled",
            ProviderError::PendingDeletion => "the key is pending deletion",
            ProviderError::Unavailable => "no answer",
            ProviderError::AccessDenied | ProviderError::Unauthorized => "access denied",
            ProviderError::Rejected => "tampered with, or wrapped with another context",
            ProviderError::IncorrectKey => "wrapped under another key",
            ProviderError::Limit => "a limit is reached",
            ProviderError::Unsupported => "the key is of a kind that cannot be used",
            ProviderError::Commitment => "what it has just wrapped does not open: nothing was stored",
        })
    }
}

impl std::error::Error for ProviderError {}

/// The providers at hand: at most one of each kind.
#[derive(Clone, Debug, Default)]
pub struct Providers {
    /// AWS KMS.
    pub aws_kms: Option<Arc<dyn Provider>>,
    /// A PKCS#11 module.
    pub pkcs11: Option<Arc<dyn Provider>>,
}

impl Providers {
    /// Returns who serves a key.
    ///
    /// # Errors
    ///
    /// [`NoProvider`], with what would serve it.
    pub fn of(&self, key: &RemoteKeyName) -> Result<&dyn Provider, NoProvider> {
        let (provider, name) = match key {
            RemoteKeyName::AwsKms { .. } => (&self.aws_kms, "AWS KMS"),
            RemoteKeyName::Pkcs11 { .. } => (&self.pkcs11, "a PKCS#11 token"),
        };
        provider.as_deref().ok_or(NoProvider(name))
    }
}

/// Nothing here reaches this holder of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoProvider(pub &'static str);

/// Wraps a secret under an inner key, and that under a remote key, and makes sure that it opens again: what is wrapped often takes the place of something
/// that does.
///
/// Who may wrap and not unwrap is not told, and is believed; no other refusal is.
///
/// # Errors
///
/// Those of [`Provider::generate`] and [`Provider::unwrap`]; [`ProviderError::Commitment`] when it does not open, or to something else.
pub fn wrap(
    provider: &dyn Provider,
    key: &RemoteKeyName,
    bound: &Bound<'_>,
    secret: &[u8; KEY_SIZE],
) -> Result<Vec<u8>, ProviderError> {
    let (inner, remote) = provider.generate(key, bound.context)?;
    match provider.unwrap(key, bound.context, &remote) {
        Ok(again) if bool::from(inner.as_bytes().ct_eq(again.as_bytes())) => {}
        Ok(_) | Err(ProviderError::Rejected | ProviderError::IncorrectKey) => return Err(ProviderError::Commitment),
        Err(ProviderError::AccessDenied) => {
            log::warn!("what {key} has wrapped could not be opened to try it: it may be used to wrap only");
        }
        Err(error) => return Err(error),
    }
    Ok(under_inner(&inner, bound, secret, &remote))
}

/// As [`wrap()`], without the second call: for what takes the place of nothing, and is wrapped so often that a call counts.
///
/// # Errors
///
/// Those of [`Provider::generate`].
pub fn wrap_unopened(
    provider: &dyn Provider,
    key: &RemoteKeyName,
    bound: &Bound<'_>,
    secret: &[u8; KEY_SIZE],
) -> Result<Vec<u8>, ProviderError> {
    let (inner, remote) = provider.generate(key, bound.context)?;
    Ok(under_inner(&inner, bound, secret, &remote))
}

fn under_inner(inner: &LockedKey, bound: &Bound<'_>, secret: &[u8; KEY_SIZE], remote: &[u8]) -> Vec<u8> {
    let wrapped = wrap::wrap(inner.as_bytes(), &bound.aad(), secret);
    [wrapped.0.as_slice(), remote].concat()
}

/// Unwraps what [`wrap()`] made.
///
/// # Errors
///
/// Those of [`Provider::unwrap`]; [`ProviderError::Rejected`] when what the provider opened does not open the rest.
pub fn unwrap<K>(
    provider: &dyn Provider,
    key: &RemoteKeyName,
    bound: &Bound<'_>,
    blob: &[u8],
    take: impl FnOnce(&[u8; KEY_SIZE]) -> K,
) -> Result<K, ProviderError> {
    let (wrapped, remote) = blob
        .split_first_chunk::<WRAPPED_SIZE>()
        .ok_or(ProviderError::Rejected)?;
    let inner = provider.unwrap(key, bound.context, remote)?;
    wrap::unwrap(inner.as_bytes(), &bound.aad(), &Wrapped(*wrapped), take).map_err(|_| ProviderError::Rejected)
}

/// What a wrap by a remote key is bound to.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    /// What is wrapped, and whose: the provider does not learn this.
    pub purpose: &'a [u8],
    /// The encryption context, which the provider authenticates and may log.
    pub context: &'a Context,
}

impl Bound<'_> {
    fn aad(&self) -> Vec<u8> {
        [self.purpose, &self.context.encode()].concat()
    }
}

/// A key server in memory, for tests: keys by name, with their states, and a switch for its network.
#[cfg(test)]
pub(crate) mod memory {
    use std::{
        collections::BTreeMap,
        sync::atomic::{AtomicBool, Ordering},
    };

    use parking_lot::Mutex;

    use super::*;
    use crate::crypto::{
        keys::{KeyBytes, WrappingKey},
        random,
    };

    #[derive(Debug, Default)]
    pub struct MemoryProvider {
        keys: Mutex<BTreeMap<String, (WrappingKey, RemoteKeyState)>>,
        down: AtomicBool,
        spoils: AtomicBool,
    }

    impl MemoryProvider {
        /// Makes a key, or puts one into another state.
        pub fn set(&self, key: &RemoteKeyName, state: RemoteKeyState) {
            let mut keys = self.keys.lock();
            let fresh = || (WrappingKey::new(KeyBytes::copy_of(&random::bytes())), state);
            keys.entry(key.to_string()).or_insert_with(fresh).1 = state;
        }

        /// Takes the server off the network, or puts it back.
        pub fn set_down(&self, down: bool) {
            self.down.store(down, Ordering::Relaxed);
        }

        /// Has what the server wraps from now on not open, or open again.
        pub fn set_spoiling(&self, spoils: bool) {
            self.spoils.store(spoils, Ordering::Relaxed);
        }

        fn with_key<T>(
            &self,
            key: &RemoteKeyName,
            act: impl FnOnce(&WrappingKey) -> Result<T, ProviderError>,
        ) -> Result<T, ProviderError> {
            let state = self.describe(key)?;
            let keys = self.keys.lock();
            match state {
                RemoteKeyState::Enabled => act(&keys[&key.to_string()].0),
                RemoteKeyState::Disabled => Err(ProviderError::Disabled),
                RemoteKeyState::PendingDeletion { .. } => Err(ProviderError::PendingDeletion),
                RemoteKeyState::Unavailable => Err(ProviderError::Unavailable),
            }
        }
    }

    impl Provider for MemoryProvider {
        fn name(&self) -> &'static str {
            "a server in memory"
        }

        fn generate(&self, key: &RemoteKeyName, context: &Context) -> Result<(LockedKey, Vec<u8>), ProviderError> {
            let secret = random::locked_key();
            let mut wrapped =
                self.with_key(key, |kek| Ok(kek.wrap(&context.encode(), secret.as_bytes()).0.to_vec()))?;
            wrapped[0] ^= u8::from(self.spoils.load(Ordering::Relaxed));
            Ok((secret, wrapped))
        }

        fn unwrap(&self, key: &RemoteKeyName, context: &Context, blob: &[u8]) -> Result<LockedKey, ProviderError> {
            let blob: [u8; WRAPPED_SIZE] = blob.try_into().map_err(|_| ProviderError::Rejected)?;
            self.with_key(key, |kek| {
                kek.unwrap(&context.encode(), &Wrapped(blob), LockedKey::copy_of)
                    .map_err(|_| ProviderError::Rejected)
            })
        }

        fn describe(&self, key: &RemoteKeyName) -> Result<RemoteKeyState, ProviderError> {
            if self.down.load(Ordering::Relaxed) {
                return Err(ProviderError::Unavailable);
            }
            let keys = self.keys.lock();
            keys.get(&key.to_string())
                .map(|(_, state)| *state)
                .ok_or(ProviderError::NotFound)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{memory::MemoryProvider, *};

    fn name(arn: &str) -> RemoteKeyName {
        RemoteKeyName::AwsKms { arn: arn.to_owned() }
    }

    #[test]
    fn a_blob_is_bound_to_key_purpose_and_context() {
        let (provider, key) = (MemoryProvider::default(), name("arn:1"));
        provider.set(&key, RemoteKeyState::Enabled);
        provider.set(&name("arn:2"), RemoteKeyState::Enabled);
        let context = Context::default().with("a", "b").unwrap();
        let bound = Bound {
            purpose: b"purpose",
            context: &context,
        };
        let secret = [7; KEY_SIZE];
        let blob = wrap(&provider, &key, &bound, &secret).unwrap();
        let open = |key: &RemoteKeyName, bound: &Bound<'_>| unwrap(&provider, key, bound, &blob, |bytes| *bytes);
        assert_eq!(open(&key, &bound), Ok(secret));
        assert_eq!(open(&name("arn:2"), &bound), Err(ProviderError::Rejected));
        assert_eq!(open(&name("arn:3"), &bound), Err(ProviderError::NotFound));
        let purpose = Bound {
            purpose: b"other",
            ..bound
        };
        assert_eq!(open(&key, &purpose), Err(ProviderError::Rejected));
        let other = Context::default();
        let context = Bound {
            context: &other,
            ..bound
        };
        assert_eq!(open(&key, &context), Err(ProviderError::Rejected));
    }

    /// Opens everything to a key of its own making.
    #[derive(Debug)]
    struct Liar;

    impl Provider for Liar {
        fn name(&self) -> &'static str {
            "a liar"
        }

        fn generate(&self, _: &RemoteKeyName, _: &Context) -> Result<(LockedKey, Vec<u8>), ProviderError> {
            Ok((LockedKey::copy_of(&[2; KEY_SIZE]), Vec::new()))
        }

        fn unwrap(&self, _: &RemoteKeyName, _: &Context, _: &[u8]) -> Result<LockedKey, ProviderError> {
            Ok(LockedKey::copy_of(&[1; KEY_SIZE]))
        }

        fn describe(&self, _: &RemoteKeyName) -> Result<RemoteKeyState, ProviderError> {
            Ok(RemoteKeyState::Enabled)
        }
    }

    #[test]
    fn a_provider_that_opens_to_another_key_is_noticed() {
        let context = Context::default();
        let bound = Bound {
            purpose: b"",
            context: &context,
        };
        assert_eq!(
            wrap(&Liar, &name("arn:1"), &bound, &[2; KEY_SIZE]),
            Err(ProviderError::Commitment)
        );
        let blob = wrap_unopened(&Liar, &name("arn:1"), &bound, &[2; KEY_SIZE]).unwrap();
        let opened = unwrap(&Liar, &name("arn:1"), &bound, &blob, |bytes| *bytes);
        assert_eq!(opened, Err(ProviderError::Rejected));
    }

    /// Wraps, and says this of what is to be unwrapped.
    #[derive(Debug)]
    struct WrapsOnly(ProviderError);

    impl Provider for WrapsOnly {
        fn name(&self) -> &'static str {
            "a server that does not unwrap"
        }

        fn generate(&self, _: &RemoteKeyName, _: &Context) -> Result<(LockedKey, Vec<u8>), ProviderError> {
            Ok((LockedKey::copy_of(&[2; KEY_SIZE]), vec![3]))
        }

        fn unwrap(&self, _: &RemoteKeyName, _: &Context, _: &[u8]) -> Result<LockedKey, ProviderError> {
            Err(self.0)
        }

        fn describe(&self, _: &RemoteKeyName) -> Result<RemoteKeyState, ProviderError> {
            Ok(RemoteKeyState::Enabled)
        }
    }

    #[test]
    fn what_does_not_open_at_once_is_not_given_out_unless_the_user_may_not_open_it() {
        let context = Context::default();
        let bound = Bound {
            purpose: b"",
            context: &context,
        };
        for (said, error) in [
            (ProviderError::Rejected, Some(ProviderError::Commitment)),
            (ProviderError::IncorrectKey, Some(ProviderError::Commitment)),
            (ProviderError::Unavailable, Some(ProviderError::Unavailable)),
            (ProviderError::Unauthorized, Some(ProviderError::Unauthorized)),
            (ProviderError::AccessDenied, None),
        ] {
            let wrapped = wrap(&WrapsOnly(said), &name("arn:1"), &bound, &[2; KEY_SIZE]);
            assert_eq!(wrapped.err(), error, "{said}");
        }
    }

    #[test]
    fn who_would_serve_a_key_is_named() {
        let providers = Providers::default();
        assert_eq!(providers.of(&name("arn:1")).map(drop), Err(NoProvider("AWS KMS")));
    }
}
