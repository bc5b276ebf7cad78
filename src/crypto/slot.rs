//! Seals a keystore's root to a slot's public key: HPKE (RFC 9180) with X-Wing.
//!
//! A slot is a key pair grown from its secret (a stretched passphrase, a key file). So the root can be replaced and sealed again for every
//! slot that stays, without their secrets: docs/decisions/0003-slots-are-key-pairs.md.
//!
//! A public key is public: anyone who can write the file could seal a root of their own to it, and with it a keystore whose keys they
//! know. So each seal is made with the slot's authenticator as well (HPKE's pre-shared key mode), which only someone who could
//! open the keystore has.

use hpke::{
    Deserializable, Kem, OpModeR, OpModeS, PskBundle, Serializable, aead::ChaCha20Poly1305, kdf::HkdfSha256,
    kem::XWing, single_shot_open, single_shot_seal,
};
use zeroize::Zeroizing;

use super::{
    KEY_SIZE, OpenError, TAG_SIZE,
    keys::{KeystoreRoot, SlotAuthenticator, SlotSecret},
    locked::LockedKey,
};

/// The size of a slot's public key, in bytes.
pub const PUBLIC_KEY_SIZE: usize = 1216;

/// The size of the encapsulated key beside a sealed root, in bytes.
pub const ENCAPSULATED_SIZE: usize = 1120;

/// The size of a sealed root, in bytes.
pub const SEALED_ROOT_SIZE: usize = KEY_SIZE + TAG_SIZE;

const INFO: &[u8] = b"hushfs v1 slot";

/// HPKE wants a name for the pre-shared key.
const PSK_ID: &[u8] = b"hushfs v1 slot authenticator";

/// Thirty-two bytes sealed to a public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedKey {
    /// The KEM's output, [`ENCAPSULATED_SIZE`] bytes.
    pub encapsulated: Vec<u8>,
    /// The bytes and their tag, [`SEALED_ROOT_SIZE`] together.
    pub sealed: Vec<u8>,
}

/// Returns the public key that grows from a slot's secret.
pub fn public_key(secret: &SlotSecret) -> Vec<u8> {
    public_half(secret.as_bytes())
}

/// Returns the public key that grows from 32 secret bytes.
pub(super) fn public_half(secret: &[u8; KEY_SIZE]) -> Vec<u8> {
    let (_, public) = XWing::derive_keypair(secret);
    public.to_bytes().to_vec()
}

/// Seals a keystore root to a slot's public key, bound to `aad`.
///
/// # Errors
///
/// [`OpenError`] when the public key is none.
pub fn seal_root(
    public_key: &[u8],
    authenticator: &SlotAuthenticator,
    aad: &[u8],
    root: &KeystoreRoot,
) -> Result<SealedKey, OpenError> {
    seal(
        &OpModeS::Psk(psk(authenticator)),
        INFO,
        public_key,
        aad,
        root.as_bytes(),
    )
}

/// Opens a sealed keystore root with the slot's secret.
///
/// # Errors
///
/// [`OpenError`] when the secret is another slot's, or the slot was changed, or sealed by someone without its authenticator.
pub fn open_root(secret: &SlotSecret, aad: &[u8], sealed: &SealedKey) -> Result<KeystoreRoot, OpenError> {
    let authenticator = secret.authenticator();
    let mode = OpModeR::Psk(psk(&authenticator));
    open(&mode, INFO, secret.as_bytes(), aad, sealed, |root| {
        KeystoreRoot::new(LockedKey::copy_of(root))
    })
}

/// Seals 32 bytes to a public key.
pub(super) fn seal(
    mode: &OpModeS<'_, XWing>,
    info: &[u8],
    public_key: &[u8],
    aad: &[u8],
    secret: &[u8; KEY_SIZE],
) -> Result<SealedKey, OpenError> {
    let public = <XWing as Kem>::PublicKey::from_bytes(public_key).map_err(|_| OpenError)?;
    let (encapsulated, sealed) =
        single_shot_seal::<ChaCha20Poly1305, HkdfSha256, XWing>(mode, &public, info, secret, aad)
            .map_err(|_| OpenError)?;
    Ok(SealedKey {
        encapsulated: encapsulated.to_bytes().to_vec(),
        sealed,
    })
}

/// Opens what [`seal`] made, with the input of the key pair, into `take`.
pub(super) fn open<K>(
    mode: &OpModeR<'_, XWing>,
    info: &[u8],
    secret: &[u8; KEY_SIZE],
    aad: &[u8],
    sealed: &SealedKey,
    take: impl FnOnce(&[u8; KEY_SIZE]) -> K,
) -> Result<K, OpenError> {
    let (private, _) = XWing::derive_keypair(secret);
    let encapsulated = <XWing as Kem>::EncappedKey::from_bytes(&sealed.encapsulated).map_err(|_| OpenError)?;
    let opened = single_shot_open::<ChaCha20Poly1305, HkdfSha256, XWing>(
        mode,
        &private,
        &encapsulated,
        info,
        &sealed.sealed,
        aad,
    )
    .map_err(|_| OpenError)?;
    let opened = Zeroizing::new(opened);
    Ok(take(opened.as_slice().try_into().map_err(|_| OpenError)?))
}

fn psk(authenticator: &SlotAuthenticator) -> PskBundle<'_> {
    PskBundle::new(authenticator.as_bytes(), PSK_ID).expect("neither the key nor its name is empty")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{keys::KeyBytes, random};

    #[test]
    fn a_root_opens_with_its_slot_only() {
        let secret = SlotSecret::new(KeyBytes::copy_of(&[1; 32]));
        let root = KeystoreRoot::new(random::locked_key());
        let sealed = seal_root(&public_key(&secret), &secret.authenticator(), b"slot 1", &root).unwrap();
        assert_eq!(sealed.encapsulated.len(), ENCAPSULATED_SIZE);
        assert_eq!(sealed.sealed.len(), SEALED_ROOT_SIZE);
        assert_eq!(public_key(&secret).len(), PUBLIC_KEY_SIZE);
        let opened = open_root(&secret, b"slot 1", &sealed).unwrap();
        assert_eq!(opened.as_bytes(), root.as_bytes());
        assert!(open_root(&secret, b"slot 2", &sealed).is_err());
        let other = SlotSecret::new(KeyBytes::copy_of(&[2; 32]));
        assert!(open_root(&other, b"slot 1", &sealed).is_err());
    }

    #[test]
    fn a_public_key_alone_is_not_enough_to_seal_a_root_that_opens() {
        let secret = SlotSecret::new(KeyBytes::copy_of(&[1; 32]));
        let root = KeystoreRoot::new(random::locked_key());
        let guessed = SlotAuthenticator::new(KeyBytes::zero());
        let sealed = seal_root(&public_key(&secret), &guessed, b"slot 1", &root).unwrap();
        assert!(open_root(&secret, b"slot 1", &sealed).is_err());
    }
}
