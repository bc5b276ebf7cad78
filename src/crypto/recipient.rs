//! Seals 32 bytes to someone's public key: HPKE (RFC 9180) with X-Wing, in base mode.
//!
//! Anyone who knows a public key can seal to it. So what comes out is a slot's secret and says nothing of who put it there: see
//! [`share_code`](super::keys::SlotAuthenticator::share_code).

use std::fmt;

use hpke::{Deserializable, Kem, OpModeR, OpModeS, kem::XWing};

use super::{
    OpenError,
    keys::{IdentityKey, KeyBytes, SlotSecret},
    slot::{PUBLIC_KEY_SIZE, SealedKey, open, public_half, seal},
};

const INFO: &[u8] = b"hushfs v1 recipient";

/// The public half of an identity: whom something is sealed to.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient(Vec<u8>);

impl Recipient {
    /// Takes the bytes of a public key.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when they are none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, OpenError> {
        <XWing as Kem>::PublicKey::from_bytes(bytes).map_err(|_| OpenError)?;
        Ok(Recipient(bytes.to_vec()))
    }

    /// Returns the public half of an identity.
    pub fn of(identity: &IdentityKey) -> Self {
        Recipient(public_half(identity.as_bytes()))
    }

    /// Returns the public key, [`PUBLIC_KEY_SIZE`] bytes.
    pub fn as_bytes(&self) -> &[u8] {
        debug_assert_eq!(self.0.len(), PUBLIC_KEY_SIZE);
        &self.0
    }

    /// Seals a slot's secret to this recipient, bound to `aad`.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when nothing can be sealed to such a key.
    pub fn seal(&self, aad: &[u8], secret: &SlotSecret) -> Result<SealedKey, OpenError> {
        seal(&OpModeS::Base, INFO, &self.0, aad, secret.as_bytes())
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Two and a half thousand digits help nobody.
        write!(f, "Recipient({:02x?}...)", &self.0[..4])
    }
}

impl IdentityKey {
    /// Opens a slot's secret that was sealed to the public half of this.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when it was sealed to another, or for another purpose, or changed.
    pub fn open(&self, aad: &[u8], sealed: &SealedKey) -> Result<SlotSecret, OpenError> {
        open(&OpModeR::Base, INFO, self.as_bytes(), aad, sealed, |secret| {
            SlotSecret::new(KeyBytes::copy_of(secret))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random;

    #[test]
    fn a_secret_opens_for_its_recipient_and_purpose_only() {
        let identity = IdentityKey::new(random::key());
        let recipient = Recipient::of(&identity);
        let secret = SlotSecret::new(random::key());
        let sealed = recipient.seal(b"slot 1", &secret).unwrap();
        assert_eq!(identity.open(b"slot 1", &sealed).unwrap().as_bytes(), secret.as_bytes());
        assert!(identity.open(b"slot 2", &sealed).is_err());
        assert!(IdentityKey::new(random::key()).open(b"slot 1", &sealed).is_err());
        assert_ne!(recipient.seal(b"slot 1", &secret).unwrap(), sealed);
    }

    #[test]
    fn a_public_key_has_a_size() {
        let recipient = Recipient::of(&IdentityKey::new(random::key()));
        assert_eq!(Recipient::from_bytes(recipient.as_bytes()), Ok(recipient.clone()));
        assert_eq!(Recipient::from_bytes(&recipient.as_bytes()[1..]), Err(OpenError));
        assert_eq!(Recipient::from_bytes(b""), Err(OpenError));
    }
}
