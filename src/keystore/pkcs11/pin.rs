//! A token's PIN: asked for when it is needed, kept for the next login, and never tried twice when it was wrong.

use std::fmt;

use cryptoki::{
    error::{Error as CallError, RvError},
    types::RawAuthPin,
};
use parking_lot::Mutex;

use super::error::Pkcs11Error;
use crate::keystore::secret::AskPin;

/// Keeps a PIN for as long as a token may have to be logged in to again.
pub struct PinKeeper {
    ask: Box<AskPin>,
    /// Held while logging in.
    pin: Mutex<Pin>,
}

enum Pin {
    NotAsked,
    Known(RawAuthPin),
    /// A token locks itself after a few wrong ones, and then nobody gets in.
    Refused(RvError),
}

impl PinKeeper {
    /// Makes a keeper that asks when a PIN is needed for the first time.
    pub fn new(ask: Box<AskPin>) -> Self {
        PinKeeper {
            ask,
            pin: Mutex::new(Pin::NotAsked),
        }
    }

    /// Logs in by `login`, which is given no PIN where the token has a pad of its own to type it on.
    ///
    /// # Errors
    ///
    /// [`Pkcs11Error::NoPin`] when none could be had, [`Pkcs11Error::Pin`] when the token does not take it, now or earlier.
    pub fn log_in(
        &self,
        token: &str,
        on_pad: bool,
        login: impl Fn(Option<&RawAuthPin>) -> Result<(), CallError>,
    ) -> Result<(), Pkcs11Error> {
        let mut pin = self.pin.lock();
        if let Pin::NotAsked = *pin
            && !on_pad
        {
            let asked = (self.ask)(token).map_err(|source| Pkcs11Error::NoPin {
                token: token.to_owned(),
                source,
            })?;
            // The copy has its final size, and is wiped on drop as the original is.
            *pin = Pin::Known(RawAuthPin::new(Box::new(asked.to_vec())));
        }
        let result = match &*pin {
            Pin::NotAsked => login(None),
            Pin::Known(known) => login(Some(known)),
            Pin::Refused(code) => {
                return Err(Pkcs11Error::Pin {
                    token: token.to_owned(),
                    code: *code,
                });
            }
        };
        match result {
            Err(CallError::Pkcs11(code, _)) if is_refusal(code) => {
                *pin = Pin::Refused(code);
                Err(Pkcs11Error::Pin {
                    token: token.to_owned(),
                    code,
                })
            }
            result => Ok(result?),
        }
    }
}

impl fmt::Debug for PinKeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

fn is_refusal(code: RvError) -> bool {
    matches!(
        code,
        RvError::PinIncorrect
            | RvError::PinInvalid
            | RvError::PinLenRange
            | RvError::PinExpired
            | RvError::PinLocked
            | RvError::UserPinNotInitialized
    )
}
