//! Why a token did not do what it was asked.

use std::{fmt, io, path::PathBuf};

use cryptoki::{
    context::Function,
    error::{Error as CallError, RvError},
};

use super::uri::KeyUri;
use crate::keystore::provider::ProviderError;

/// Why a key in a token could not be used or made.
#[derive(Debug)]
pub enum Pkcs11Error {
    /// The module's file cannot be found.
    ModuleFile { module: PathBuf, source: io::Error },
    /// The file is no module, or one that does not start.
    Module { module: PathBuf, source: CallError },
    /// The module knows no token of that name.
    NoSuchToken { token: String, module: PathBuf },
    /// The name fits more than one token.
    SeveralTokens { token: String },
    /// No PIN could be had.
    NoPin { token: String, source: io::Error },
    /// The token does not take the PIN.
    Pin { token: String, code: RvError },
    /// The token has no AES key of that name, or does not show it.
    NoSuchKey { key: KeyUri },
    /// The name fits more than one key.
    SeveralKeys { key: KeyUri },
    /// A key of that name is there already.
    KeyExists { key: KeyUri },
    /// The key is of no use.
    UnfitKey { key: KeyUri, fault: KeyFault },
    /// What was to be unwrapped was changed, or wrapped with another context or key.
    Rejected { key: KeyUri },
    /// The token did not make an IV of its own, nor take one.
    NoIv { key: KeyUri },
    /// A call failed.
    Call(CallError),
}

/// Why a key is not used, although it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFault {
    /// It is not 256 bits long.
    Size,
    /// It may leave the token.
    Extractable,
    /// It can be read.
    NotSensitive,
    /// It may not both encrypt and decrypt.
    Usage,
}

impl Pkcs11Error {
    /// Returns the reason in the words of cloud key services.
    pub fn reason(&self) -> ProviderError {
        match self {
            // Plugging in, installing or starting something helps.
            Pkcs11Error::ModuleFile { .. } | Pkcs11Error::Module { .. } | Pkcs11Error::NoSuchToken { .. } => {
                ProviderError::Unavailable
            }
            Pkcs11Error::NoPin { .. } | Pkcs11Error::Pin { .. } => ProviderError::Unauthorized,
            Pkcs11Error::NoSuchKey { .. } | Pkcs11Error::SeveralKeys { .. } | Pkcs11Error::SeveralTokens { .. } => {
                ProviderError::NotFound
            }
            Pkcs11Error::KeyExists { .. } | Pkcs11Error::UnfitKey { .. } | Pkcs11Error::NoIv { .. } => {
                ProviderError::Unsupported
            }
            Pkcs11Error::Rejected { .. } => ProviderError::Rejected,
            Pkcs11Error::Call(CallError::Pkcs11(code, _)) => reason_of(*code),
            // The module lacks a function, or answers what no module may.
            Pkcs11Error::Call(_) => ProviderError::Unsupported,
        }
    }

    /// Tells whether setting everything up anew may help: a session, the login or the token is gone.
    pub(super) fn is_loss(&self) -> bool {
        match self {
            // A token that was plugged in since is seen by some modules only when they start.
            Pkcs11Error::NoSuchToken { .. } | Pkcs11Error::NoSuchKey { .. } => true,
            Pkcs11Error::Call(CallError::Pkcs11(code, _)) => matches!(
                code,
                RvError::CryptokiNotInitialized
                    | RvError::DeviceError
                    | RvError::DeviceMemory
                    | RvError::DeviceRemoved
                    | RvError::FunctionFailed
                    | RvError::GeneralError
                    | RvError::KeyHandleInvalid
                    | RvError::ObjectHandleInvalid
                    | RvError::OperationActive
                    | RvError::SessionClosed
                    | RvError::SessionCount
                    | RvError::SessionHandleInvalid
                    | RvError::SlotIdInvalid
                    | RvError::TokenNotPresent
                    | RvError::TokenNotRecognized
                    | RvError::UserNotLoggedIn
                    | RvError::VendorDefined(_)
            ),
            _ => false,
        }
    }
}

impl fmt::Display for Pkcs11Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pkcs11Error::ModuleFile { module, source } => write!(f, "PKCS#11 module {}: {source}", module.display()),
            Pkcs11Error::Module { module, source } => write!(
                f,
                "{}: not a PKCS#11 module that starts here: {}",
                module.display(),
                Told(source)
            ),
            Pkcs11Error::NoSuchToken { token, module } => write!(
                f,
                "no token {token:?}: plug it in or start it; `pkcs11-tool --module {} --list-slots` shows what there is",
                module.display()
            ),
            Pkcs11Error::SeveralTokens { token } => {
                write!(f, "several tokens have the label {token:?}: give one of them another")
            }
            Pkcs11Error::NoPin { token, source } => write!(f, "PIN of token {token:?}: {source}"),
            Pkcs11Error::Pin { token, code } => f.write_str(&match code {
                RvError::PinLocked => {
                    format!("the PIN of token {token:?} is locked: its security officer can set a new one")
                }
                RvError::PinExpired => format!("the PIN of token {token:?} has expired: set a new one"),
                RvError::UserPinNotInitialized => {
                    format!("token {token:?} has no user PIN yet: its security officer sets one")
                }
                _ => format!("wrong PIN for token {token:?}; it was not tried again, for tokens lock themselves"),
            }),
            Pkcs11Error::NoSuchKey { key } => {
                write!(
                    f,
                    "token {:?} has no AES key {key}: make one with `hushfs key create`",
                    key.token
                )
            }
            Pkcs11Error::SeveralKeys { key } => write!(f, "several keys {key}: add id= to the name"),
            Pkcs11Error::KeyExists { key } => write!(f, "key {key} exists already: choose another label"),
            Pkcs11Error::UnfitKey { key, fault } => write!(
                f,
                "key {key} {}: make another with `hushfs key create`",
                match fault {
                    KeyFault::Size => "is not an AES key of 256 bits",
                    KeyFault::Extractable => "may leave the token (CKA_EXTRACTABLE)",
                    KeyFault::NotSensitive => "can be read from the token (not CKA_SENSITIVE)",
                    KeyFault::Usage => "may not both encrypt and decrypt (CKA_ENCRYPT, CKA_DECRYPT)",
                }
            ),
            Pkcs11Error::Rejected { key } => write!(
                f,
                "key {key} does not open this: tampered with, or made with another key or for another vault or epoch"
            ),
            Pkcs11Error::NoIv { key } => write!(
                f,
                "the token of key {key} neither makes an IV for AES-GCM nor takes one"
            ),
            Pkcs11Error::Call(error) => Told(error).fmt(f),
        }
    }
}

impl std::error::Error for Pkcs11Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Pkcs11Error::ModuleFile { source, .. } | Pkcs11Error::NoPin { source, .. } => Some(source),
            Pkcs11Error::Module { source, .. } | Pkcs11Error::Call(source) => Some(source),
            _ => None,
        }
    }
}

impl From<CallError> for Pkcs11Error {
    fn from(error: CallError) -> Self {
        Pkcs11Error::Call(error)
    }
}

/// Returns what a token means by a code that says nothing of what was wrapped.
fn reason_of(code: RvError) -> ProviderError {
    match code {
        RvError::ActionProhibited | RvError::FunctionRejected | RvError::KeyFunctionNotPermitted => {
            ProviderError::AccessDenied
        }
        RvError::PinExpired
        | RvError::PinIncorrect
        | RvError::PinInvalid
        | RvError::PinLenRange
        | RvError::PinLocked
        | RvError::SessionReadOnly
        | RvError::TokenWriteProtected
        | RvError::UserAnotherAlreadyLoggedIn
        | RvError::UserNotLoggedIn
        | RvError::UserPinNotInitialized
        | RvError::UserTooManyTypes => ProviderError::Unauthorized,
        RvError::ArgumentsBad
        | RvError::AttributeReadOnly
        | RvError::AttributeTypeInvalid
        | RvError::AttributeValueInvalid
        | RvError::DataInvalid
        | RvError::DataLenRange
        | RvError::FunctionNotSupported
        | RvError::KeySizeRange
        | RvError::KeyTypeInconsistent
        | RvError::MechanismInvalid
        | RvError::MechanismParamInvalid
        | RvError::TemplateIncomplete
        | RvError::TemplateInconsistent => ProviderError::Unsupported,
        RvError::DeviceMemory => ProviderError::Limit,
        // Out of order, not there, busy, or a vendor's own: it may pass.
        _ => ProviderError::Unavailable,
    }
}

/// Writes an error of the library in one line: the function and the name of the code, which is what can be looked up.
struct Told<'a>(&'a CallError);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            CallError::Pkcs11(code, function) => write!(f, "C_{function:?} gave {code:?}"),
            CallError::MissingSymbol(name) => write!(f, "it has no {name}"),
            error => error.fmt(f),
        }
    }
}

/// Tells whether a token says by this code that what it was to decrypt is not what it has encrypted.
pub(super) fn is_rejection(error: &CallError) -> bool {
    /// CKR_AEAD_DECRYPT_FAILED of PKCS#11 3.0, which the library has no name for.
    const AEAD_DECRYPT_FAILED: u64 = 0x42;
    matches!(
        error,
        CallError::Pkcs11(
            RvError::EncryptedDataInvalid
                | RvError::EncryptedDataLenRange
                | RvError::DataInvalid
                | RvError::DataLenRange
                | RvError::SignatureInvalid
                | RvError::UnknownErrorCode(AEAD_DECRYPT_FAILED),
            Function::Decrypt | Function::DecryptInit
        )
    )
}

/// Tells whether a token may mean the same by this code, or that it is out of order: PKCS#11 has codes for that, but tokens do not use them.
pub(super) fn may_be_rejection(error: &CallError) -> bool {
    matches!(
        error,
        CallError::Pkcs11(
            RvError::GeneralError | RvError::FunctionFailed | RvError::DeviceError | RvError::VendorDefined(_),
            Function::Decrypt | Function::DecryptInit
        )
    )
}
