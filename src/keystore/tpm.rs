//! What a TPM 2.0 is to a slot: it has sealed 32 bytes, and gives them back to who has its PIN on a machine that started as it did then.

#[cfg(feature = "tpm2")]
mod esapi;

use std::fmt;

#[cfg(feature = "tpm2")]
pub use self::esapi::Tpm2;
use crate::crypto::keys::SlotSecret;

/// Thirty-two bytes that a TPM has sealed: no other TPM opens them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmObject {
    /// The public half, a TPM2B_PUBLIC.
    pub public: Vec<u8>,
    /// The private half, a TPM2B_PRIVATE.
    pub private: Vec<u8>,
    /// The registers of the SHA-256 bank that must be as they were, a bit for each.
    pub pcrs: u32,
    /// Whether it takes a PIN.
    pub pin: bool,
}

/// Asks a TPM, the one that the user named, for what it has sealed.
pub trait Unsealer: fmt::Debug + Send + Sync {
    /// Returns the bytes.
    ///
    /// # Errors
    ///
    /// The [`TpmError`] that says why not.
    fn unseal(&self, object: &TpmObject) -> Result<SlotSecret, TpmError>;
}

/// Why a TPM did not seal or unseal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TpmError {
    /// This is no name of a TPM.
    Name,
    /// None answers.
    NoTpm,
    /// A PIN is needed, and none could be had.
    NoPin,
    /// The PIN is wrong. A TPM counts these.
    WrongPin,
    /// There were too many wrong PINs.
    LockedOut,
    /// The registers are not as they were: firmware, settings or the system that was started are others.
    Registers,
    /// It was sealed by another TPM, or this one before it was cleared, or it was changed.
    OtherTpm,
    /// The PIN is longer than a TPM's may be, or ends with a zero byte.
    PinLength,
    /// This command failed for another reason, which the log has.
    Refused(&'static str),
}

impl TpmError {
    /// Tells whether asking for another slot is no use, or costs another try of the PIN.
    pub(super) fn is_final(self) -> bool {
        !matches!(self, TpmError::Registers | TpmError::OtherTpm)
    }
}

impl fmt::Display for TpmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TpmError::Name => f.write_str(
                "no name of a TPM: it is device:/dev/tpmrm0, tabrmd, or swtpm:host=127.0.0.1,port=2321 for an emulated one",
            ),
            TpmError::NoTpm => f.write_str(
                "no TPM answers: name it with --tpm2, such as device:/dev/tpmrm0 (its group is often `tss`)",
            ),
            TpmError::NoPin => f.write_str("the TPM wants a PIN: give it at a terminal or by --pin-file"),
            TpmError::WrongPin => f.write_str("wrong PIN: the TPM counts these and locks itself for a while after some"),
            TpmError::LockedOut => f.write_str(
                "the TPM has locked itself after too many wrong PINs: wait some hours, or `tpm2_dictionarylockout --clear-lockout`",
            ),
            TpmError::Registers => f.write_str(
                "the TPM does not unseal, for this machine has not started as it did then (firmware, settings, kernel): \
                 use another slot, then make this one anew",
            ),
            TpmError::OtherTpm => {
                f.write_str("sealed by another TPM, or by this one before it was cleared: use another slot")
            }
            TpmError::PinLength => f.write_str("a TPM's PIN has at most 32 bytes, the last of them not zero"),
            TpmError::Refused(command) => write!(f, "the TPM refused {command}, see above"),
        }
    }
}

impl std::error::Error for TpmError {}
