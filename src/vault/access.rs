//! The key of an epoch, and whether it may be used now.
//!
//! Every operation on a file's content asks; the [keeper](super::keeper) decides. Asking costs one atomic load as long as the answer is yes.

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;
use subtle::ConstantTimeEq;

use super::VaultError;
use crate::{crypto::keys::WrappingKey, ids::Epoch, keystore::KeyError};

/// The key that wraps data keys in an epoch, and why it may not be used if it may not.
///
/// The key stays in memory while it may not be used: only so a file that is open goes on when the key is back, and only so it is noticed that
/// another key comes back.
#[derive(Debug)]
pub struct EpochAccess {
    epoch: Epoch,
    key: OnceLock<WrappingKey>,
    /// Tells whether there is a refusal. Set after it, cleared before it.
    is_refused: AtomicBool,
    refusal: Mutex<Option<KeyError>>,
}

impl EpochAccess {
    /// Takes the key of an epoch, or why it does not open.
    pub fn new(epoch: Epoch, key: Result<WrappingKey, KeyError>) -> Self {
        let (key, refusal) = match key {
            Ok(key) => (OnceLock::from(key), None),
            Err(error) => (OnceLock::new(), Some(error)),
        };
        EpochAccess {
            epoch,
            key,
            is_refused: AtomicBool::new(refusal.is_some()),
            refusal: Mutex::new(refusal),
        }
    }

    /// Returns the epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Tells whether the key, and what it wraps, may be used now.
    ///
    /// # Errors
    ///
    /// [`VaultError::EpochKey`], with the reason.
    pub fn check(&self) -> Result<(), VaultError> {
        if !self.is_refused.load(Ordering::Acquire) {
            return Ok(());
        }
        match self.refusal() {
            None => Ok(()),
            Some(error) => Err(VaultError::EpochKey(self.epoch, error)),
        }
    }

    /// Returns why the key may not be used, if it may not.
    pub fn refusal(&self) -> Option<KeyError> {
        *self.refusal.lock()
    }

    /// Returns the key.
    ///
    /// # Errors
    ///
    /// As for [`check`](Self::check).
    pub fn key(&self) -> Result<&WrappingKey, VaultError> {
        self.check()?;
        Ok(self.key.get().expect("an epoch without a key is refused"))
    }

    /// Takes the key as its custodian unwraps it now; tells whether it is the one that is known, if one is.
    pub fn takes(&self, key: WrappingKey) -> bool {
        match self.key.get() {
            Some(known) => known.as_bytes().ct_eq(key.as_bytes()).into(),
            None => {
                self.key.get_or_init(|| key);
                true
            }
        }
    }

    /// Lets the key be used; nothing where it is not known yet.
    pub fn admit(&self) {
        if self.key.get().is_some() {
            self.is_refused.store(false, Ordering::Release);
            *self.refusal.lock() = None;
        }
    }

    /// Lets it be used no more.
    pub fn refuse(&self, error: KeyError) {
        *self.refusal.lock() = Some(error);
        self.is_refused.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{crypto::keys::KeyBytes, ids::KeyId};

    fn key(byte: u8) -> WrappingKey {
        WrappingKey::new(KeyBytes::copy_of(&[byte; 32]))
    }

    #[test]
    fn a_key_comes_goes_and_comes_back_but_no_other() {
        let disabled = KeyError::Disabled { key: KeyId([1; 16]) };
        let access = EpochAccess::new(Epoch(1), Err(disabled));
        assert!(matches!(access.key(), Err(VaultError::EpochKey(Epoch(1), error)) if error == disabled));
        access.admit();
        assert!(access.check().is_err(), "there is no key yet");
        assert!(access.takes(key(1)));
        access.admit();
        assert_eq!(access.key().unwrap().as_bytes(), &[1; 32]);
        access.refuse(disabled);
        assert!(access.check().is_err());
        assert!(!access.takes(key(2)));
        assert!(access.takes(key(1)));
        access.admit();
        assert_eq!(access.key().unwrap().as_bytes(), &[1; 32]);
    }
}
