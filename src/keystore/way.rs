//! Ways into a sealed file: what a slot takes, or a key of a keystore, gives a secret that the file's data key is wrapped under.

use std::fmt;

use super::{
    custodian::{Context, ContextError, Custodian, KeyError, KeyHandle, WrappedKey},
    provider::ProviderError,
    secret::{NewSecret, NewSecretError, SecretKind, SlotOwner, Unlock},
    slot::UnlockError,
};
use crate::{
    crypto::{
        OpenError,
        keys::{DataKey, KeyBytes, SlotSecret},
        passphrase::{HardnessError, MEMORY_KIB_MAX, PASSES_MAX},
        wrap,
    },
    format::{
        keystore::{SlotId, SlotKind},
        sealed::{SealedHeader, Way, WayKind, way_aad},
    },
    ids::{FileId, KeystoreId},
};

/// The most work that trying a passphrase on all ways of a file may be, in passes over a KiB: as much as one may cost. Whoever opens a file with 64 of those
/// would wait for hours.
const STRETCHING_MAX: u64 = PASSES_MAX as u64 * MEMORY_KIB_MAX as u64;

/// What a new way shall take.
#[derive(Debug)]
pub enum NewWay<'a> {
    /// What a slot takes.
    Secret(NewSecret<'a>),
    /// A key of a keystore.
    Key {
        keystore: &'a dyn Custodian,
        key: KeyHandle,
    },
}

/// What a user offers to open a sealed file.
#[derive(Debug)]
pub enum Opener<'a> {
    /// What a slot takes.
    Secret(&'a Unlock),
    /// A keystore, whose keys may open it.
    Keystore(&'a dyn Custodian),
}

/// Why a way cannot be made, or none opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WayError {
    /// No way takes such a secret.
    NoWayOfKind(SecretKind),
    /// The secret does not open any way.
    WrongSecret(SecretKind),
    /// No way is by a key of this keystore.
    NotOfKeystore { keystore: KeystoreId },
    /// A way was changed, or asks for what hushfs never writes.
    Damaged { way: SlotId },
    /// To try the passphrase on this way, too, would take longer than hushfs ever means it to.
    Costly { way: SlotId },
    /// The TPM does not give the way's secret, or whoever holds the key that wraps it.
    Unlock(UnlockError),
    /// The key of the keystore cannot be used.
    Key(KeyError),
    /// The encryption context has what it must not.
    Context(ContextError),
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

impl fmt::Display for WayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WayError::NoWayOfKind(kind) => write!(f, "does not open with {}", kind.with_article()),
            WayError::WrongSecret(SecretKind::Passphrase) => f.write_str("wrong passphrase"),
            WayError::WrongSecret(kind) => write!(f, "does not open with this {kind}"),
            WayError::NotOfKeystore { keystore } => write!(f, "does not open with a key of keystore {keystore}"),
            WayError::Damaged { way } => write!(f, "way {way} is damaged or tampered with"),
            WayError::Costly { way } => write!(
                f,
                "the passphrase opens none of the ways before {way}, and to try it on all would take too long: ask who sealed the file for one with fewer"
            ),
            WayError::Unlock(UnlockError::Tpm { slot, error }) => write!(f, "way {slot}: {error}"),
            WayError::Unlock(UnlockError::Remote { slot, provider, error }) => {
                write!(f, "way {slot}: {provider}: {error}")
            }
            WayError::Unlock(UnlockError::NoMemory { slot, error }) => write!(f, "way {slot}: {error}"),
            WayError::Unlock(error) => error.fmt(f),
            WayError::Key(error) => error.fmt(f),
            WayError::Context(error) => error.fmt(f),
            WayError::Hardness(error) => error.fmt(f),
            WayError::Recipient => f.write_str("nothing can be sealed to this recipient"),
            WayError::Remote { provider, error } => write!(f, "{provider}: {error}"),
        }
    }
}

impl std::error::Error for WayError {}

impl From<KeyError> for WayError {
    fn from(error: KeyError) -> Self {
        WayError::Key(error)
    }
}

/// Returns the encryption context of a file: which it is, as the reader knows it, and the user's pairs.
///
/// # Errors
///
/// The [`ContextError`] that says which pair cannot be.
pub fn file_context(file: FileId, pairs: &[(String, String)]) -> Result<Context, ContextError> {
    pairs
        .iter()
        .try_fold(Context::for_file(file), |context, (name, value)| {
            context.with(name, value)
        })
}

impl NewWay<'_> {
    /// Makes a way into a file, under the lowest number that is free.
    ///
    /// # Errors
    ///
    /// The [`WayError`] that says why not.
    pub fn make(&self, header: &SealedHeader, key: &DataKey) -> Result<Way, WayError> {
        let (file, id) = (header.file, header.free_way());
        let context = file_context(file, &header.context).map_err(WayError::Context)?;
        let aad = way_aad(file, id);
        let (kind, wrapped) = match self {
            NewWay::Secret(new) => {
                let (kind, secret) = new
                    .make(SlotOwner::File(file, &context), id)
                    .map_err(|error| match error {
                        NewSecretError::Hardness(error) => WayError::Hardness(error),
                        NewSecretError::Recipient => WayError::Recipient,
                        NewSecretError::Remote { provider, error } => WayError::Remote { provider, error },
                    })?;
                (WayKind::Slot(kind), wrap::wrap(secret.as_bytes(), &aad, key.as_bytes()))
            }
            NewWay::Key { keystore, key: handle } => {
                let (secret, blob) = keystore.generate(handle, &context)?;
                let kind = WayKind::Key {
                    keystore: keystore.id(),
                    key: handle.0,
                    blob: blob.into_bytes(),
                };
                (kind, wrap::wrap(secret.as_bytes(), &aad, key.as_bytes()))
            }
        };
        Ok(Way { id, kind, wrapped })
    }
}

impl Opener<'_> {
    /// Unwraps the data key of a file by whichever way opens. It proves nothing of the header: that is checked with it.
    ///
    /// # Errors
    ///
    /// The [`WayError`] that says why no way opens.
    pub fn data_key(&self, claims: &SealedHeader) -> Result<DataKey, WayError> {
        let context = file_context(claims.file, &claims.context)
            // Hushfs never writes such pairs.
            .map_err(|_| WayError::Damaged { way: claims.ways[0].id })?;
        let mut first_error = None;
        let mut work = 0;
        for way in &claims.ways {
            work += self.work(way);
            if work > STRETCHING_MAX {
                return Err(WayError::Costly { way: way.id });
            }
            let tried = match self {
                Opener::Secret(unlock) => by_secret(unlock, way, claims.file, &context),
                Opener::Keystore(keystore) => by_keystore(*keystore, way, claims.file, &context),
            };
            match tried {
                None => {}
                Some(Ok(key)) => return Ok(key),
                Some(Err(WayError::Unlock(error))) if error.is_final() => return Err(WayError::Unlock(error)),
                Some(Err(error)) => drop(first_error.get_or_insert(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| match self {
            Opener::Secret(unlock) => WayError::NoWayOfKind(unlock.kind()),
            Opener::Keystore(keystore) => WayError::NotOfKeystore {
                keystore: keystore.id(),
            },
        }))
    }
}

impl Opener<'_> {
    /// Returns what trying a passphrase on a way costs. What is out of range is refused, and costs nothing.
    fn work(&self, way: &Way) -> u64 {
        match (self, &way.kind) {
            (Opener::Secret(Unlock::Passphrase(_)), WayKind::Slot(SlotKind::Passphrase(hardness))) => {
                hardness.work().unwrap_or_default()
            }
            _ => 0,
        }
    }
}

fn by_secret(unlock: &Unlock, way: &Way, file: FileId, context: &Context) -> Option<Result<DataKey, WayError>> {
    let WayKind::Slot(kind) = &way.kind else { return None };
    let damaged = WayError::Damaged { way: way.id };
    let secret: SlotSecret = match unlock.secret_for(SlotOwner::File(file, context), way.id, kind)? {
        Ok(secret) => secret,
        Err(UnlockError::DamagedSlot { .. } | UnlockError::HostileParameters { .. }) => return Some(Err(damaged)),
        Err(error) => return Some(Err(WayError::Unlock(error))),
    };
    Some(unwrap(secret.as_bytes(), way, file).map_err(|OpenError| match unlock {
        // These were there already: what they gave is the right secret.
        Unlock::Identity(_) | Unlock::RemoteKey { .. } | Unlock::Tpm(_) => damaged,
        _ => WayError::WrongSecret(unlock.kind()),
    }))
}

fn by_keystore(
    opened: &dyn Custodian,
    way: &Way,
    file: FileId,
    context: &Context,
) -> Option<Result<DataKey, WayError>> {
    let WayKind::Key { keystore, key, blob } = &way.kind else {
        return None;
    };
    if *keystore != opened.id() {
        return None;
    }
    let damaged = WayError::Damaged { way: way.id };
    let Ok(blob) = WrappedKey::new(blob.clone()) else {
        return Some(Err(damaged));
    };
    let secret = match opened.unwrap(&KeyHandle(*key), context, &blob) {
        Ok(secret) => secret,
        Err(error) => return Some(Err(error.into())),
    };
    Some(unwrap(secret.as_bytes(), way, file).map_err(|OpenError| damaged))
}

fn unwrap(secret: &[u8; 32], way: &Way, file: FileId) -> Result<DataKey, OpenError> {
    wrap::unwrap(secret, &way_aad(file, way.id), &way.wrapped, |bytes| {
        DataKey::new(KeyBytes::copy_of(bytes))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        crypto::{
            block::Suite,
            passphrase::{Hardness, MEMORY_KIB_MIN},
            wrap::{WRAPPED_SIZE, Wrapped},
        },
        format::layout::Layout,
        keystore::Passphrase,
    };

    #[test]
    fn a_passphrase_is_not_tried_on_ways_that_cost_more_together_than_one_may() {
        let easy = Hardness {
            salt: [0; 16],
            memory_kib: MEMORY_KIB_MIN,
            passes: 1,
            lanes: 1,
        };
        let hardest = Hardness {
            memory_kib: MEMORY_KIB_MAX,
            passes: PASSES_MAX,
            ..easy
        };
        let way = |(id, hardness): (u32, Hardness)| Way {
            id: SlotId(id),
            kind: WayKind::Slot(SlotKind::Passphrase(hardness)),
            wrapped: Wrapped([2; WRAPPED_SIZE]),
        };
        let header = |ways: &[(u32, Hardness)]| SealedHeader {
            file: FileId([3; 16]),
            layout: Layout::new(Suite::Aes256GcmSiv, 4096).unwrap(),
            context: Vec::new(),
            ways: ways.iter().copied().map(way).collect(),
        };
        let unlock = Unlock::Passphrase(Passphrase::new(b"horse".to_vec().into()).unwrap());
        let answer = |ways: &[(u32, Hardness)]| Opener::Secret(&unlock).data_key(&header(ways)).err().unwrap();
        let wrong = WayError::WrongSecret(SecretKind::Passphrase);
        assert_eq!(answer(&[(1, easy), (2, easy)]), wrong);
        // The second is not even begun.
        assert_eq!(answer(&[(1, easy), (2, hardest)]), WayError::Costly { way: SlotId(2) });
        // What is refused for its parameters alone costs nothing.
        let refused = Hardness {
            passes: PASSES_MAX + 1,
            ..hardest
        };
        assert_eq!(answer(&[(1, refused), (2, easy)]), WayError::Damaged { way: SlotId(1) });
    }
}
