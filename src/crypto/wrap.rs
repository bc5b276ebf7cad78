//! The committing wrap: how every stored 32-byte key is wrapped (docs/FORMAT.md section 1.2).

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeTuple};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::{
    KEY_SIZE, OpenError, TAG_SIZE,
    derive::{context, derive_secret},
    keys::WrappingKey,
    random, siv,
};

/// Bytes of salt in front of a wrapped key.
const SALT_SIZE: usize = 16;

/// Bytes of the commitment to wrapping key and additional data.
const COMMITMENT_SIZE: usize = 32;

/// The size of a wrapped key, in bytes: salt, commitment, key and tag.
pub const WRAPPED_SIZE: usize = SALT_SIZE + COMMITMENT_SIZE + KEY_SIZE + TAG_SIZE;

/// A wrapped key, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapped(pub [u8; WRAPPED_SIZE]);

/// Key, nonce and commitment of one wrap.
struct Derived(Zeroizing<[u8; KEY_SIZE + siv::NONCE_SIZE + COMMITMENT_SIZE]>);

impl Derived {
    fn new(kek: &[u8; KEY_SIZE], salt: &[u8], aad: &[u8]) -> Self {
        let mut out = Zeroizing::new([0; KEY_SIZE + siv::NONCE_SIZE + COMMITMENT_SIZE]);
        derive_secret(
            context::COMMITTING_WRAP,
            &[kek, salt, blake3::hash(aad).as_bytes()],
            &mut *out,
        );
        Derived(out)
    }

    fn key(&self) -> &[u8; KEY_SIZE] {
        self.0[..KEY_SIZE].try_into().expect("the first 32 bytes")
    }

    fn nonce(&self) -> &[u8; siv::NONCE_SIZE] {
        self.0[KEY_SIZE..KEY_SIZE + siv::NONCE_SIZE]
            .try_into()
            .expect("the next 12 bytes")
    }

    fn commitment(&self) -> &[u8] {
        &self.0[KEY_SIZE + siv::NONCE_SIZE..]
    }
}

/// Wraps 32 secret bytes under `kek`, bound to `aad`.
pub fn wrap(kek: &[u8; KEY_SIZE], aad: &[u8], secret: &[u8; KEY_SIZE]) -> Wrapped {
    wrap_with_salt(kek, aad, secret, &random::bytes())
}

fn wrap_with_salt(kek: &[u8; KEY_SIZE], aad: &[u8], secret: &[u8; KEY_SIZE], salt: &[u8; SALT_SIZE]) -> Wrapped {
    let derived = Derived::new(kek, salt, aad);
    let sealed = siv::seal(derived.key(), derived.nonce(), b"", secret);
    let mut out = [0; WRAPPED_SIZE];
    out[..SALT_SIZE].copy_from_slice(salt);
    out[SALT_SIZE..SALT_SIZE + COMMITMENT_SIZE].copy_from_slice(derived.commitment());
    out[SALT_SIZE + COMMITMENT_SIZE..].copy_from_slice(&sealed);
    Wrapped(out)
}

/// Unwraps what [`wrap`] made, into `take`.
///
/// # Errors
///
/// [`OpenError`] when the wrap was changed, or made under another key or for another purpose.
pub fn unwrap<K>(
    kek: &[u8; KEY_SIZE],
    aad: &[u8],
    wrapped: &Wrapped,
    take: impl FnOnce(&[u8; KEY_SIZE]) -> K,
) -> Result<K, OpenError> {
    let (salt, rest) = wrapped.0.split_at(SALT_SIZE);
    let (commitment, sealed) = rest.split_at(COMMITMENT_SIZE);
    let derived = Derived::new(kek, salt, aad);
    // Before anything is opened: GCM-SIV alone lets one blob open under two keys (see docs/SECURITY.md).
    if !bool::from(derived.commitment().ct_eq(commitment)) {
        return Err(OpenError);
    }
    let mut plain = siv::open(derived.key(), derived.nonce(), b"", sealed)?;
    let key = take(plain.as_slice().try_into().map_err(|_| OpenError)?);
    plain.zeroize();
    Ok(key)
}

impl WrappingKey {
    /// Wraps a key under this one; see [`wrap`].
    pub fn wrap(&self, aad: &[u8], secret: &[u8; KEY_SIZE]) -> Wrapped {
        wrap(self.as_bytes(), aad, secret)
    }

    /// Unwraps a key; see [`unwrap`].
    ///
    /// # Errors
    ///
    /// [`OpenError`] when the wrap does not belong to this key and purpose.
    pub fn unwrap<K>(
        &self,
        aad: &[u8],
        wrapped: &Wrapped,
        take: impl FnOnce(&[u8; KEY_SIZE]) -> K,
    ) -> Result<K, OpenError> {
        unwrap(self.as_bytes(), aad, wrapped, take)
    }
}

impl Serialize for Wrapped {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // A tuple, so that no count precedes the bytes; serde's own arrays end at 32.
        let mut tuple = serializer.serialize_tuple(WRAPPED_SIZE)?;
        for byte in &self.0 {
            tuple.serialize_element(byte)?;
        }
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for Wrapped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Wrapped;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{WRAPPED_SIZE} bytes")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Wrapped, A::Error> {
                let mut out = [0; WRAPPED_SIZE];
                for (i, byte) in out.iter_mut().enumerate() {
                    *byte = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(i, &self))?;
                }
                Ok(Wrapped(out))
            }
        }
        deserializer.deserialize_tuple(WRAPPED_SIZE, Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(from: u8) -> [u8; 32] {
        std::array::from_fn(|i| from + i as u8)
    }

    #[test]
    fn a_wrap_opens_only_under_its_key_and_purpose() {
        let wrapped = wrap(&counting(0), b"vault=v1", &counting(0x80));
        let take = |k: &[u8; 32]| *k;
        assert_eq!(unwrap(&counting(0), b"vault=v1", &wrapped, take), Ok(counting(0x80)));
        assert_eq!(unwrap(&counting(1), b"vault=v1", &wrapped, take), Err(OpenError));
        assert_eq!(unwrap(&counting(0), b"vault=v2", &wrapped, take), Err(OpenError));
        for i in 0..WRAPPED_SIZE {
            let mut changed = wrapped.clone();
            changed.0[i] ^= 1;
            assert_eq!(
                unwrap(&counting(0), b"vault=v1", &changed, take),
                Err(OpenError),
                "byte {i}"
            );
        }
    }

    #[test]
    fn two_wraps_of_one_key_differ() {
        assert_ne!(wrap(&[1; 32], b"", &[2; 32]), wrap(&[1; 32], b"", &[2; 32]));
    }
}
