//! Keys in a hardware security module, reached by PKCS#11: the module's file is loaded, the key never leaves the token.
//!
//! What is wrapped is sealed by the token with AES-256-GCM (CKM_AES_GCM), the one mechanism that all have, with the encryption
//! context as additional data: IV, ciphertext and tag, 60 bytes. The user says which module and how to get the PIN; the keystore only which
//! token and which key ([`KeyUri`]).

mod error;
mod module;
mod pin;
#[cfg(test)]
mod tests;
mod uri;

use std::{path::Path, sync::Arc};

use cryptoki::{
    error::{Error as CallError, RvError},
    mechanism::{Mechanism, aead::GcmParams},
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
    types::Ulong,
};
use zeroize::Zeroizing;

pub use self::{
    error::{KeyFault, Pkcs11Error},
    uri::{KeyUri, UriError},
};
use self::{
    error::{is_rejection, may_be_rejection},
    module::{Access, Module},
    pin::PinKeeper,
};
use super::{
    custodian::Context,
    provider::{Provider, ProviderError, RemoteKeyState},
    secret::AskPin,
};
use crate::{
    crypto::{KEY_SIZE, TAG_SIZE, locked::LockedKey, random},
    format::keystore::RemoteKeyName,
};

const IV_SIZE: usize = 12;

/// The size of what a token wrapped: IV, key, tag.
const BLOB_SIZE: usize = IV_SIZE + KEY_SIZE + TAG_SIZE;

const TAG_BITS: std::ffi::c_ulong = 8 * TAG_SIZE as std::ffi::c_ulong;

/// Bytes of the id of a key made here.
const KEY_ID_SIZE: usize = 16;

/// A PKCS#11 module and the way to its tokens' PIN.
#[derive(Debug)]
pub struct Pkcs11 {
    module: Arc<Module>,
    pin: PinKeeper,
}

/// What a token says of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDescription {
    /// Its whole name, label and id.
    pub key: KeyUri,
    /// Whether it was made in the token.
    pub is_local: bool,
    /// Whether it could ever leave the token.
    pub is_never_extractable: bool,
    /// Why it is not used for wrapping, if so.
    pub fault: Option<KeyFault>,
}

impl Pkcs11 {
    /// Takes a module's file. It is loaded, and the PIN asked for, when a key is used for the first time.
    ///
    /// # Errors
    ///
    /// [`Pkcs11Error::ModuleFile`] when there is no such file.
    pub fn new(module: &Path, ask_pin: Box<AskPin>) -> Result<Self, Pkcs11Error> {
        Ok(Pkcs11 {
            module: Module::open(module)?,
            pin: PinKeeper::new(ask_pin),
        })
    }

    /// Wraps 32 secret bytes, bound to `aad`.
    ///
    /// # Errors
    ///
    /// The [`Pkcs11Error`] that says why not; [`Pkcs11Error::UnfitKey`] for a key that may leave the token.
    pub fn wrap(&self, key: &KeyUri, aad: &[u8], secret: &[u8; KEY_SIZE]) -> Result<Vec<u8>, Pkcs11Error> {
        self.module.call(Access::Read, &key.token, &self.pin, |session| {
            let (handle, description) = find(session, key)?;
            match description.fault {
                Some(fault) => Err(Pkcs11Error::UnfitKey {
                    key: key.clone(),
                    fault,
                }),
                None => encrypt(session, handle, key, aad, secret),
            }
        })
    }

    /// Unwraps what [`wrap`](Self::wrap) made.
    ///
    /// # Errors
    ///
    /// The [`Pkcs11Error`] that says why not.
    pub fn unwrap(&self, key: &KeyUri, aad: &[u8], blob: &[u8]) -> Result<LockedKey, Pkcs11Error> {
        if blob.len() != BLOB_SIZE {
            return Err(Pkcs11Error::Rejected { key: key.clone() });
        }
        self.module.call(Access::Read, &key.token, &self.pin, |session| {
            let (handle, description) = find(session, key)?;
            if let Some(fault) = description.fault {
                // What it wrapped would be lost otherwise. It wraps nothing more.
                log::warn!(
                    "{}: move to another key soon",
                    Pkcs11Error::UnfitKey {
                        key: key.clone(),
                        fault
                    }
                );
            }
            decrypt(session, handle, key, aad, blob)
        })
    }

    /// Returns what the token says of a key.
    ///
    /// # Errors
    ///
    /// The [`Pkcs11Error`] that says why not.
    pub fn describe(&self, key: &KeyUri) -> Result<KeyDescription, Pkcs11Error> {
        self.module.call(Access::Read, &key.token, &self.pin, |session| {
            find(session, key).map(|(_, description)| description)
        })
    }

    /// Makes a key in the token that never leaves it, and returns its whole name.
    ///
    /// # Errors
    ///
    /// [`Pkcs11Error::KeyExists`] when the name is taken, or the [`Pkcs11Error`] that says why not.
    pub fn create(&self, key: &KeyUri) -> Result<KeyUri, Pkcs11Error> {
        let mut key = key.clone();
        if key.id.is_empty() {
            key.id = random::bytes::<KEY_ID_SIZE>().to_vec();
        }
        self.module.call(Access::Write, &key.token, &self.pin, |session| {
            // By label alone too, or the name that the user gave would fit two keys.
            let by_label = KeyUri {
                id: Vec::new(),
                ..key.clone()
            };
            let is_taken = |key: &KeyUri| Ok::<_, CallError>(!session.find_objects(&template(key))?.is_empty());
            if is_taken(&key)? || !key.label.is_empty() && is_taken(&by_label)? {
                return Err(Pkcs11Error::KeyExists { key: key.clone() });
            }
            session.generate_key(
                &Mechanism::AesKeyGen,
                &[
                    Attribute::Class(ObjectClass::SECRET_KEY),
                    Attribute::KeyType(KeyType::AES),
                    Attribute::ValueLen(Ulong::new(KEY_SIZE as _)),
                    Attribute::Label(key.label.clone().into_bytes()),
                    Attribute::Id(key.id.clone()),
                    Attribute::Token(true),
                    Attribute::Private(true),
                    Attribute::Sensitive(true),
                    Attribute::Extractable(false),
                    Attribute::Encrypt(true),
                    Attribute::Decrypt(true),
                    Attribute::Wrap(false),
                    Attribute::Unwrap(false),
                    Attribute::Derive(false),
                    Attribute::Sign(false),
                    Attribute::Verify(false),
                ],
            )?;
            Ok(())
        })?;
        Ok(key)
    }
}

impl Provider for Pkcs11 {
    fn name(&self) -> &'static str {
        "the PKCS#11 token"
    }

    fn generate(&self, key: &RemoteKeyName, context: &Context) -> Result<(LockedKey, Vec<u8>), ProviderError> {
        let key = KeyUri::of(key).ok_or(ProviderError::NotFound)?;
        let secret = random::locked_key();
        let blob = told(self.wrap(&key, &context.encode(), secret.as_bytes()))?;
        Ok((secret, blob))
    }

    fn unwrap(&self, key: &RemoteKeyName, context: &Context, blob: &[u8]) -> Result<LockedKey, ProviderError> {
        let key = KeyUri::of(key).ok_or(ProviderError::NotFound)?;
        told(self.unwrap(&key, &context.encode(), blob))
    }

    fn describe(&self, key: &RemoteKeyName) -> Result<RemoteKeyState, ProviderError> {
        let key = KeyUri::of(key).ok_or(ProviderError::NotFound)?;
        match told(self.describe(&key))?.fault {
            None => Ok(RemoteKeyState::Enabled),
            Some(fault) => told(Err(Pkcs11Error::UnfitKey { key, fault })),
        }
    }
}

/// Says in the log what happened, which a reason alone does not tell: which PIN, which token.
fn told<T>(result: Result<T, Pkcs11Error>) -> Result<T, ProviderError> {
    result.map_err(|error| {
        let reason = error.reason();
        if reason != ProviderError::Rejected {
            log::warn!("{error}");
        }
        reason
    })
}

/// Returns what the objects that a name means have in common.
fn template(key: &KeyUri) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(true),
    ];
    if !key.label.is_empty() {
        template.push(Attribute::Label(key.label.clone().into_bytes()));
    }
    if !key.id.is_empty() {
        template.push(Attribute::Id(key.id.clone()));
    }
    template
}

/// Finds the one key of a name, and what the token says of it.
fn find(session: &Session, key: &KeyUri) -> Result<(ObjectHandle, KeyDescription), Pkcs11Error> {
    let found = session.find_objects(&template(key))?;
    let handle = match found.as_slice() {
        [] => return Err(Pkcs11Error::NoSuchKey { key: key.clone() }),
        [one] => *one,
        _ => return Err(Pkcs11Error::SeveralKeys { key: key.clone() }),
    };
    let mut description = KeyDescription {
        key: key.clone(),
        is_local: false,
        is_never_extractable: false,
        fault: None,
    };
    // What a token does not say is taken for the worse.
    let (mut size, mut extractable, mut sensitive, mut encrypts, mut decrypts) = (0, true, false, false, false);
    let asked = [
        AttributeType::Label,
        AttributeType::Id,
        AttributeType::ValueLen,
        AttributeType::Local,
        AttributeType::NeverExtractable,
        AttributeType::Extractable,
        AttributeType::Sensitive,
        AttributeType::Encrypt,
        AttributeType::Decrypt,
    ];
    for attribute in session.get_attributes(handle, &asked)? {
        match attribute {
            Attribute::Label(label) => description.key.label = String::from_utf8(label).unwrap_or_default(),
            Attribute::Id(id) => description.key.id = id,
            Attribute::ValueLen(len) => size = u64::from(len),
            Attribute::Local(is) => description.is_local = is,
            Attribute::NeverExtractable(is) => description.is_never_extractable = is,
            Attribute::Extractable(is) => extractable = is,
            Attribute::Sensitive(is) => sensitive = is,
            Attribute::Encrypt(may) => encrypts = may,
            Attribute::Decrypt(may) => decrypts = may,
            _ => {}
        }
    }
    let faults = [
        (size != KEY_SIZE as u64, KeyFault::Size),
        (extractable, KeyFault::Extractable),
        (!sensitive, KeyFault::NotSensitive),
        (!(encrypts && decrypts), KeyFault::Usage),
    ];
    description.fault = faults.into_iter().find_map(|(is, fault)| is.then_some(fault));
    Ok((handle, description))
}

fn encrypt(
    session: &Session,
    handle: ObjectHandle,
    key: &KeyUri,
    aad: &[u8],
    secret: &[u8; KEY_SIZE],
) -> Result<Vec<u8>, Pkcs11Error> {
    let with_iv = |mut iv: [u8; IV_SIZE]| -> Result<Vec<u8>, CallError> {
        let parameters = GcmParams::new(&mut iv, aad, Ulong::new(TAG_BITS))?;
        let sealed = session.encrypt(&Mechanism::AesGcm(parameters), handle, secret)?;
        // The IV is read after the call: an HSM that makes its own has put it there.
        Ok([iv.as_slice(), &sealed].concat())
    };
    let blob = match with_iv(random::bytes()) {
        // CloudHSM wants zeros, and puts its own IV in their place.
        Err(CallError::Pkcs11(RvError::MechanismParamInvalid | RvError::ArgumentsBad, _)) => with_iv([0; IV_SIZE])?,
        result => result?,
    };
    // Zeros used as they are would be one IV for two wraps, which gives GCM's authentication key away.
    let (iv, sealed) = blob.split_at(IV_SIZE);
    if iv == [0; IV_SIZE] || sealed.len() != KEY_SIZE + TAG_SIZE {
        return Err(Pkcs11Error::NoIv { key: key.clone() });
    }
    Ok(blob)
}

fn decrypt(
    session: &Session,
    handle: ObjectHandle,
    key: &KeyUri,
    aad: &[u8],
    blob: &[u8],
) -> Result<LockedKey, Pkcs11Error> {
    let mut result = decrypt_once(session, handle, aad, blob);
    // SoftHSM says CKR_GENERAL_ERROR to a wrong tag. If the key opens what it has just sealed, and not this, it is not the token's fault.
    if let Err(error) = &result
        && may_be_rejection(error)
        && works(session, handle, key)
    {
        result = decrypt_once(session, handle, aad, blob);
        if result.as_ref().is_err_and(may_be_rejection) {
            return Err(Pkcs11Error::Rejected { key: key.clone() });
        }
    }
    match result {
        Ok(secret) => match <&[u8; KEY_SIZE]>::try_from(secret.as_slice()) {
            Ok(secret) => Ok(LockedKey::copy_of(secret)),
            Err(_) => Err(Pkcs11Error::Rejected { key: key.clone() }),
        },
        Err(error) if is_rejection(&error) => Err(Pkcs11Error::Rejected { key: key.clone() }),
        Err(error) => Err(error.into()),
    }
}

/// Tells whether a key can be used at all at this moment.
fn works(session: &Session, handle: ObjectHandle, key: &KeyUri) -> bool {
    encrypt(session, handle, key, b"", &[0; KEY_SIZE])
        .is_ok_and(|blob| decrypt_once(session, handle, b"", &blob).is_ok_and(|opened| *opened == [0; KEY_SIZE]))
}

fn decrypt_once(
    session: &Session,
    handle: ObjectHandle,
    aad: &[u8],
    blob: &[u8],
) -> Result<Zeroizing<Vec<u8>>, CallError> {
    let (iv, sealed) = blob.split_at(IV_SIZE);
    let mut iv = iv.to_vec();
    let parameters = GcmParams::new(&mut iv, aad, Ulong::new(TAG_BITS))?;
    session
        .decrypt(&Mechanism::AesGcm(parameters), handle, sealed)
        .map(Zeroizing::new)
}
