//! Holds master keys, or asks who does: wraps and unwraps the keys of vaults.
//!
//! Two acts make up a keystore, and they are kept apart. A [slot] opens the local keystore: a passphrase, a key file, a recovery
//! key. A [custodian] wraps and unwraps the 32 bytes of an epoch key, with an encryption context; it may be far away,
//! and knows nothing of files. The [local keystore](local) is the custodian that needs no server; its file is in docs/FORMAT.md section 4.

pub mod custodian;
pub mod local;
pub mod recovery;
pub mod slot;

pub use custodian::{Context, ContextError, Custodian, KeyError, KeyHandle, WrappedKey};
pub use local::{KeystoreError, LocalKeystore, Rekeyed};
pub use recovery::{RecoveryKey, RecoveryKeyError};
pub use slot::{KeyFile, NewSecret, Passphrase, SecretKind, SecretSizeError, SlotChoice, Unlock, UnlockError};
