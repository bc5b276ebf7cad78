//! Holds master keys, or asks who does: wraps and unwraps the keys of vaults.
//!
//! Two acts make up a keystore, and they are kept apart. A [slot] opens the local keystore: a passphrase, a key file, a recovery
//! key. A [custodian] wraps and unwraps the 32 bytes of an epoch key, with an encryption context, and knows nothing of files. The
//! [local keystore](local) is that: it has the materials of its own keys, and asks a [provider] for those that a key server or an HSM
//! holds. Its file is in docs/FORMAT.md section 4. An [agent] that holds one is another.

pub mod agent;
#[cfg(feature = "aws")]
pub mod aws;
pub mod custodian;
pub mod identity;
pub mod local;
#[cfg(feature = "pkcs11")]
pub mod pkcs11;
pub mod policy;
pub mod provider;
pub mod recovery;
pub mod request;
pub mod secret;
pub mod slot;
pub mod tpm;
pub mod way;
mod word;

pub use agent::{AgentClient, AgentError};
pub use custodian::{Context, ContextError, Custodian, KeyError, KeyHandle, WrappedKey};
pub use local::{KeystoreError, LocalKeystore, NewKey, Rekeyed};
pub use policy::{Policy, PolicyError, Principal};
pub use provider::{NoProvider, Provider, ProviderError, Providers, Reach, RemoteKeyState};
pub use recovery::{RecoveryKey, RecoveryKeyError};
pub use secret::{KeyFile, NewSecret, Passphrase, SecretKind, SecretSizeError, Unlock};
pub use slot::{SlotChoice, UnlockError};
