//! A TPM 2.0 reached by libtss2: seals and unseals.
//!
//! What is sealed lies under the storage key that every TPM makes of its owner's seed, made anew each time, so nothing is kept in the TPM. It is
//! given back to who satisfies its policy: the registers as they were (TPM2_PolicyPCR), if any, and the PIN (TPM2_PolicyAuthValue), which is empty if
//! there is none. Sessions are salted with the storage key and encrypted, for who listens on the bus.

#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr};

use tss_esapi::{
    Context, Error as EsapiError,
    attributes::{ObjectAttributesBuilder, SessionAttributesBuilder},
    constants::{SessionType, Tss2ResponseCodeKind as Code},
    handles::{KeyHandle, ObjectHandle},
    interface_types::{
        algorithm::{HashingAlgorithm, PublicAlgorithm},
        ecc::EccCurve,
        resource_handles::Hierarchy,
        session_handles::{AuthSession, PolicySession},
    },
    structures::{
        Auth, Digest, EccPoint, EccScheme, KeyDerivationFunctionScheme, KeyedHashScheme, PcrSelectionList, PcrSlot,
        Private, Public, PublicBuilder, PublicEccParametersBuilder, PublicKeyedHashParameters, SensitiveData,
        SymmetricDefinition, SymmetricDefinitionObject,
    },
    tcti_ldr::TctiNameConf,
    traits::{Marshall, UnMarshall},
};
use zeroize::Zeroizing;

use super::{TpmError, TpmObject, Unsealer};
use crate::{
    crypto::{
        KEY_SIZE,
        keys::{KeyBytes, SlotSecret},
        random,
    },
    keystore::secret::AskPin,
};

/// The most bytes of a PIN: TPM 2.0 keeps as many as the hash of the object has.
const PIN_LEN_MAX: usize = 32;

/// A TPM that the user has named, and the way to its PIN.
pub struct Tpm2 {
    tcti: TctiNameConf,
    ask_pin: Box<AskPin>,
}

impl fmt::Debug for Tpm2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tpm2({:?})", self.tcti)
    }
}

impl Tpm2 {
    /// Takes the name of a TPM as tools of TPM 2.0 do (a TCTI): `device:/dev/tpmrm0`, `tabrmd`, `swtpm:host=127.0.0.1,port=2321`.
    ///
    /// # Errors
    ///
    /// [`TpmError::Name`] when it is none.
    pub fn new(tcti: &str, ask_pin: Box<AskPin>) -> Result<Self, TpmError> {
        let tcti = TctiNameConf::from_str(tcti).map_err(|_| TpmError::Name)?;
        Ok(Tpm2 { tcti, ask_pin })
    }

    /// Seals the secret of a new slot, to the state of some registers and to a PIN.
    ///
    /// # Errors
    ///
    /// The [`TpmError`] that says why not.
    pub fn seal(&self, pcrs: u32, pin: Option<&[u8]>) -> Result<(TpmObject, SlotSecret), TpmError> {
        let secret = SlotSecret::new(random::key());
        let mut tpm = Session::open(&self.tcti)?;
        let policy = tpm.policy_of(pcrs)?;
        let public = sealed_template(policy, pin.is_some()).map_err(|error| refused("template", &error))?;
        let data = SensitiveData::try_from(secret.as_bytes().as_slice());
        let data = data.map_err(|error| refused("template", &error))?;
        let (parent, auth) = (tpm.parent, authorization(pin.unwrap_or_default())?);
        let created = tpm.with_encryption("TPM2_Create", |context| {
            context.create(parent, public, Some(auth), Some(data), None, None)
        })?;
        let public = created.out_public.marshall();
        let object = TpmObject {
            public: with_size(&public.map_err(|error| refused("TPM2_Create", &error))?),
            private: with_size(created.out_private.value()),
            pcrs,
            pin: pin.is_some(),
        };
        Ok((object, secret))
    }

    /// Tells whether there is a TPM.
    ///
    /// # Errors
    ///
    /// [`TpmError::NoTpm`], or what it said.
    pub fn check(&self) -> Result<(), TpmError> {
        Session::open(&self.tcti).map(drop)
    }
}

impl Unsealer for Tpm2 {
    fn unseal(&self, object: &TpmObject) -> Result<SlotSecret, TpmError> {
        let public = without_size(&object.public).and_then(|bytes| Public::unmarshall(bytes).ok());
        let private = without_size(&object.private).and_then(|bytes| Private::try_from(bytes).ok());
        let (Some(public), Some(private)) = (public, private) else {
            return Err(TpmError::OtherTpm);
        };
        let mut tpm = Session::open(&self.tcti)?;
        let parent = tpm.parent;
        let loaded = tpm
            .with_encryption("TPM2_Load", |context| context.load(parent, private, public))
            .map_err(|error| match error {
                // Whatever a TPM says of bytes that are not its own.
                TpmError::Refused(_) => TpmError::OtherTpm,
                error => error,
            })?;
        let object_handle = ObjectHandle::from(loaded);
        if object.pin {
            // Only now: nobody is asked for a PIN that is of no use.
            let pin = (self.ask_pin)("the TPM").map_err(|_| TpmError::NoPin)?;
            let auth = authorization(&pin)?;
            tpm.step("TPM2_Unseal", |context| context.tr_set_auth(object_handle, auth))?;
        }
        let policy = tpm.start(SessionType::Policy)?;
        tpm.apply_policy(policy, object.pcrs)?;
        let unsealed = tpm.step("TPM2_Unseal", |context| {
            context.execute_with_session(Some(policy), |context| context.unseal(object_handle))
        })?;
        let secret = <&[u8; KEY_SIZE]>::try_from(unsealed.value()).map_err(|_| TpmError::OtherTpm)?;
        Ok(SlotSecret::new(KeyBytes::copy_of(secret)))
    }
}

/// A connection to a TPM, with its storage key; what was loaded is flushed when this is dropped.
struct Session {
    context: Context,
    parent: KeyHandle,
}

impl Session {
    fn open(tcti: &TctiNameConf) -> Result<Self, TpmError> {
        let mut context = Context::new(tcti.clone()).map_err(|error| {
            log::info!("TPM: {error}");
            TpmError::NoTpm
        })?;
        let template = storage_template().map_err(|error| refused("template", &error))?;
        let made = context.execute_with_nullauth_session(|context| {
            context.create_primary(Hierarchy::Owner, template, None, None, None, None)
        });
        let parent = made.map_err(|error| refused("TPM2_CreatePrimary", &error))?.key_handle;
        Ok(Session { context, parent })
    }

    fn step<T>(
        &mut self,
        command: &'static str,
        step: impl FnOnce(&mut Context) -> Result<T, EsapiError>,
    ) -> Result<T, TpmError> {
        step(&mut self.context).map_err(|error| reason(command, &error))
    }

    /// Calls a command with a session that authorizes the use of the storage key and encrypts what goes over the bus.
    fn with_encryption<T>(
        &mut self,
        command: &'static str,
        step: impl FnOnce(&mut Context) -> Result<T, EsapiError>,
    ) -> Result<T, TpmError> {
        let session = self.start(SessionType::Hmac)?;
        self.step(command, |context| context.execute_with_session(Some(session), step))
    }

    /// Starts a session that only the storage key's holder can follow.
    fn start(&mut self, kind: SessionType) -> Result<AuthSession, TpmError> {
        let salt = self.parent;
        self.step("TPM2_StartAuthSession", |context| {
            let session = context.start_auth_session(
                Some(salt),
                None,
                None,
                kind,
                SymmetricDefinition::AES_128_CFB,
                HashingAlgorithm::Sha256,
            )?;
            let session = session.ok_or(EsapiError::WrapperError(tss_esapi::WrapperErrorKind::WrongValueFromTpm))?;
            if kind != SessionType::Trial {
                let (attributes, mask) = SessionAttributesBuilder::new()
                    .with_decrypt(kind == SessionType::Hmac)
                    .with_encrypt(true)
                    .build();
                context.tr_sess_set_attributes(session, attributes, mask)?;
            }
            Ok(session)
        })
    }

    /// Returns the policy that what is sealed now shall have.
    fn policy_of(&mut self, pcrs: u32) -> Result<Digest, TpmError> {
        let trial = self.start(SessionType::Trial)?;
        self.apply_policy(trial, pcrs)?;
        self.step("TPM2_PolicyGetDigest", |context| {
            context.policy_get_digest(PolicySession::try_from(trial)?)
        })
    }

    fn apply_policy(&mut self, session: AuthSession, pcrs: u32) -> Result<(), TpmError> {
        self.step("TPM2_PolicyPCR", |context| {
            let session = PolicySession::try_from(session)?;
            if pcrs != 0 {
                // Without a digest the TPM takes the registers as they are.
                context.policy_pcr(session, Digest::default(), selection(pcrs)?)?;
            }
            context.policy_auth_value(session)
        })
    }
}

/// Returns the template of the storage key that TPMs have by the TCG's provisioning guidance: ECC P-256 with AES-128.
fn storage_template() -> Result<Public, EsapiError> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()?;
    let parameters = PublicEccParametersBuilder::new()
        .with_symmetric(SymmetricDefinitionObject::AES_128_CFB)
        .with_ecc_scheme(EccScheme::Null)
        .with_curve(EccCurve::NistP256)
        .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
        .with_is_signing_key(false)
        .with_is_decryption_key(true)
        .with_restricted(true)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

/// Returns the template of what is sealed: to be had by its policy alone.
fn sealed_template(policy: Digest, has_pin: bool) -> Result<Public, EsapiError> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_admin_with_policy(true)
        // Wrong PINs are counted. Where there is none, wrong PINs of others shall not lock this out.
        .with_no_da(!has_pin)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_auth_policy(policy)
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(Digest::default())
        .build()
}

fn selection(pcrs: u32) -> Result<PcrSelectionList, EsapiError> {
    let slots = (0..24).filter(|bit| pcrs >> bit & 1 == 1);
    let slots = slots
        .map(|bit| PcrSlot::try_from(1 << bit))
        .collect::<Result<Vec<_>, _>>()?;
    PcrSelectionList::builder()
        .with_selection(HashingAlgorithm::Sha256, &slots)
        .build()
}

fn authorization(pin: &[u8]) -> Result<Auth, TpmError> {
    // A TPM takes zeros at the end of a PIN for nothing.
    if pin.len() > PIN_LEN_MAX || pin.last() == Some(&0) {
        return Err(TpmError::PinLength);
    }
    let pin = Zeroizing::new(pin.to_vec());
    Auth::try_from(pin.as_slice()).map_err(|_| TpmError::PinLength)
}

/// Puts the size before the bytes of a TPM2B structure.
fn with_size(bytes: &[u8]) -> Vec<u8> {
    let size = u16::try_from(bytes.len()).expect("what a TPM gives has less than 64 KiB");
    [size.to_be_bytes().as_slice(), bytes].concat()
}

fn without_size(bytes: &[u8]) -> Option<&[u8]> {
    let (size, rest) = bytes.split_first_chunk::<2>()?;
    (usize::from(u16::from_be_bytes(*size)) == rest.len()).then_some(rest)
}

/// Says why a command failed that has to do with what is sealed.
fn reason(command: &'static str, error: &EsapiError) -> TpmError {
    let code = match error {
        EsapiError::Tss2Error(code) => code.kind(),
        EsapiError::WrapperError(_) => None,
    };
    match code {
        Some(Code::AuthFail | Code::BadAuth) => TpmError::WrongPin,
        Some(Code::Lockout) => TpmError::LockedOut,
        Some(Code::PolicyFail | Code::PcrChanged) => TpmError::Registers,
        Some(Code::Integrity) => TpmError::OtherTpm,
        _ => refused(command, error),
    }
}

/// Says of a code that has no meaning of its own here where it came from; the log has the code.
fn refused(command: &'static str, error: &EsapiError) -> TpmError {
    log::warn!("TPM: {command}: {error}");
    TpmError::Refused(command)
}
