//! Asks for the keys of a vault's epochs while the vault is opened. A wrap is docs/FORMAT.md section 3's.

use std::collections::BTreeMap;

use super::epoch_context;
use crate::{
    crypto::{
        keys::{CustomerKey, EpochKey},
        locked::LockedKey,
        wrap::Wrapped,
    },
    format::vault::{CustodianKind, EpochRecord, EpochWrap, VaultHeader},
    ids::{Epoch, KeyId, VaultId},
    keystore::{Custodian, KeyError, KeyHandle, WrappedKey},
};

/// Opens the keys of epochs, and remembers who did not answer.
pub struct EpochAsker<'a> {
    custodian: &'a dyn Custodian,
    customer_key: Option<&'a CustomerKey>,
    vault: VaultId,
    /// Keys whose holders did not answer, with what was said of them. Each such answer takes seconds, and a vault may have a thousand epochs.
    away: BTreeMap<KeyId, KeyError>,
}

impl<'a> EpochAsker<'a> {
    /// Asks a custodian alone.
    pub fn new(custodian: &'a dyn Custodian, vault: VaultId) -> Self {
        EpochAsker {
            custodian,
            customer_key: None,
            vault,
            away: BTreeMap::new(),
        }
    }

    /// Tries a customer's key, too, from now on.
    pub fn bring(&mut self, customer_key: Option<&'a CustomerKey>) {
        self.customer_key = customer_key;
    }

    /// Opens an epoch's key by whichever of its wraps opens. If none does, but one may later, that is the answer; else it is the first.
    pub fn unwrap(&mut self, epoch: &EpochRecord) -> Result<EpochKey, KeyError> {
        let mut answer: Option<KeyError> = None;
        for wrap in &epoch.wraps {
            let opened = match wrap.custodian {
                CustodianKind::Local => self.unwrap_by_keystore(epoch.number, wrap),
                CustodianKind::Customer => unwrap_by_customer(self.customer_key, self.vault, epoch.number, wrap),
            };
            match opened {
                Ok(key) => return Ok(key),
                Err(error) => {
                    if answer.is_none_or(|answer| error.is_transient() && !answer.is_transient()) {
                        answer = Some(error);
                    }
                }
            }
        }
        Err(answer.expect("an epoch without wraps does not decode"))
    }

    fn unwrap_by_keystore(&mut self, epoch: Epoch, wrap: &EpochWrap) -> Result<EpochKey, KeyError> {
        let key = KeyHandle(wrap.key);
        if let Some(error) = self.away.get(&key.0) {
            return Err(*error);
        }
        let context = epoch_context(self.vault, epoch, key, &wrap.context)?;
        let blob = WrappedKey::new(wrap.blob.clone()).map_err(|_| KeyError::Rejected { key: key.0 })?;
        let opened = self.custodian.unwrap(&key, &context, &blob);
        if let Some(error) = opened.as_ref().err().filter(|error| error.is_transient()) {
            self.away.insert(key.0, *error);
        }
        opened
    }
}

/// The wrap commits to its key with a salt of its own, so that it is also what another key is told by.
pub(super) fn unwrap_by_customer(
    customer_key: Option<&CustomerKey>,
    vault: VaultId,
    epoch: Epoch,
    wrap: &EpochWrap,
) -> Result<EpochKey, KeyError> {
    let key = wrap.key;
    let wrapping_key = customer_key
        .ok_or(KeyError::NotBrought { key })?
        .epoch_wrapping_key(vault);
    let blob = wrap
        .blob
        .as_slice()
        .try_into()
        .map_err(|_| KeyError::Rejected { key })?;
    let purpose = VaultHeader::customer_purpose(vault, epoch, key);
    let take = |bytes: &[u8; 32]| EpochKey::new(LockedKey::copy_of(bytes));
    wrapping_key
        .unwrap(&purpose, &Wrapped(blob), take)
        .map_err(|_| KeyError::NotBrought { key })
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::{crypto::random, format::vault::NO_NAMES_ROOT, ids::KeystoreId, keystore::Context};

    const AWAY: KeyId = KeyId([1; 16]);
    const REFUSED: KeyId = KeyId([2; 16]);
    const HERE: KeyId = KeyId([3; 16]);

    /// Has one key that does not answer, one that is refused, and one that opens anything; notes who was asked for.
    #[derive(Debug, Default)]
    struct Noting(Mutex<Vec<KeyId>>);

    impl Custodian for Noting {
        fn id(&self) -> KeystoreId {
            KeystoreId([0; 16])
        }

        fn wrap(&self, key: &KeyHandle, _: &Context, _: &EpochKey) -> Result<WrappedKey, KeyError> {
            Err(KeyError::Unsupported { key: key.0 })
        }

        fn unwrap(&self, key: &KeyHandle, _: &Context, _: &WrappedKey) -> Result<EpochKey, KeyError> {
            self.0.lock().push(key.0);
            match key.0 {
                AWAY => Err(KeyError::Unavailable {
                    key: key.0,
                    provider: "test",
                }),
                REFUSED => Err(KeyError::Disabled { key: key.0 }),
                _ => Ok(EpochKey::new(random::locked_key())),
            }
        }
    }

    fn epoch(number: u32, keys: &[KeyId]) -> EpochRecord {
        let wrap = |key: &KeyId| EpochWrap {
            custodian: CustodianKind::Local,
            key: *key,
            context: Vec::new(),
            blob: vec![1],
        };
        EpochRecord {
            number: Epoch(number),
            created: 1,
            names_root: NO_NAMES_ROOT,
            wraps: keys.iter().map(wrap).collect(),
        }
    }

    #[test]
    fn who_does_not_answer_is_asked_once_for_all_epochs() {
        let custodian = Noting::default();
        let mut asker = EpochAsker::new(&custodian, VaultId([7; 16]));
        for number in 1..4 {
            let opened = asker.unwrap(&epoch(number, &[AWAY]));
            assert!(opened.is_err_and(|error| error.is_transient()));
            // A refusal is of what was asked, and may be another for the next.
            let opened = asker.unwrap(&epoch(number, &[REFUSED]));
            assert_eq!(opened.err(), Some(KeyError::Disabled { key: REFUSED }));
            assert!(asker.unwrap(&epoch(number, &[AWAY, HERE])).is_ok());
        }
        assert_eq!(*custodian.0.lock(), [AWAY, REFUSED, HERE, REFUSED, HERE, REFUSED, HERE]);
    }
}
