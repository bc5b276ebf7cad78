//! A keystore that remembers what it was asked for.

use parking_lot::Mutex;

use super::Call;
use crate::{
    crypto::keys::EpochKey,
    ids::KeystoreId,
    keystore::{Context, Custodian, KeyError, KeyHandle, LocalKeystore, WrappedKey},
};

/// A keystore as a custodian, with the calls that it got. What it gives is not to be handed out before they are recorded.
#[derive(Debug)]
pub struct Recorded<'k> {
    keystore: &'k LocalKeystore,
    calls: Mutex<Vec<Call>>,
}

impl<'k> Recorded<'k> {
    /// Takes a keystore.
    pub fn new(keystore: &'k LocalKeystore) -> Self {
        Recorded {
            keystore,
            calls: Mutex::default(),
        }
    }

    /// Returns the keystore.
    pub(in crate::vault::home) fn keystore(&self) -> &'k LocalKeystore {
        self.keystore
    }

    /// Returns the calls, in their order, for [`OpenKeystore::recorded`](super::OpenKeystore::recorded).
    pub fn into_calls(self) -> Vec<Call> {
        self.calls.into_inner()
    }

    fn note<T>(&self, mut call: Call, result: Result<T, KeyError>) -> Result<T, KeyError> {
        if let Err(error) = &result {
            call.failed_with_key(error);
        }
        self.calls.lock().push(call);
        result
    }
}

impl Custodian for Recorded<'_> {
    fn id(&self) -> KeystoreId {
        self.keystore.id()
    }

    fn wrap(&self, key: &KeyHandle, context: &Context, secret: &EpochKey) -> Result<WrappedKey, KeyError> {
        let result = self.keystore.wrap(key, context, secret);
        self.note(Call::wrap("Encrypt", self.keystore, *key, context), result)
    }

    fn unwrap(&self, key: &KeyHandle, context: &Context, wrapped: &WrappedKey) -> Result<EpochKey, KeyError> {
        let result = self.keystore.unwrap(key, context, wrapped);
        self.note(Call::decrypt(self.keystore, *key, context, wrapped), result)
    }

    fn generate(&self, key: &KeyHandle, context: &Context) -> Result<(EpochKey, WrappedKey), KeyError> {
        let result = self.keystore.generate(key, context);
        self.note(Call::wrap("GenerateDataKey", self.keystore, *key, context), result)
    }

    fn rewrap(
        &self,
        from: &KeyHandle,
        context: &Context,
        wrapped: &WrappedKey,
        to: &KeyHandle,
        to_context: &Context,
    ) -> Result<WrappedKey, KeyError> {
        let result = self.keystore.rewrap(from, context, wrapped, to, to_context);
        let call = Call::re_encrypt(self.keystore, (*from, context), (*to, to_context));
        self.note(call, result)
    }
}
