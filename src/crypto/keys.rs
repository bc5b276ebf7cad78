//! A type for every role a key has: none is `Clone`, `Copy`, comparable or printable, all are wiped on drop.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{KEY_SIZE, locked::LockedKey};

/// Thirty-two secret bytes on the heap, so that moving the key leaves no copy behind.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct KeyBytes(Box<[u8; KEY_SIZE]>);

impl KeyBytes {
    /// Makes a key of zeros, to be filled.
    pub fn zero() -> Self {
        KeyBytes(Box::new([0; KEY_SIZE]))
    }

    /// Copies `bytes`; the caller wipes the original.
    pub fn copy_of(bytes: &[u8; KEY_SIZE]) -> Self {
        KeyBytes(Box::new(*bytes))
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8; KEY_SIZE] {
        &self.0
    }

    /// Returns the bytes to fill.
    pub fn as_mut_bytes(&mut self) -> &mut [u8; KEY_SIZE] {
        &mut self.0
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

macro_rules! key {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name($inner);

        impl $name {
            /// Gives 32 bytes this role.
            pub fn new(bytes: $inner) -> Self {
                $name(bytes)
            }

            /// Returns the bytes, for derivation and wrapping.
            pub fn as_bytes(&self) -> &[u8; KEY_SIZE] {
                self.0.as_bytes()
            }
        }
    };
}

key!(
    /// Opens a keystore: every master key in it is wrapped under it.
    KeystoreRoot(LockedKey)
);
key!(
    /// One version of a master key, held by the local keystore.
    MasterKey(LockedKey)
);
key!(
    /// A vault key: wraps the data keys of the files written in one epoch.
    EpochKey(LockedKey)
);
key!(
    /// The root of the keys of names, links and xattrs; made once per vault.
    NamesRoot(LockedKey)
);
key!(
    /// A file's own key; block key, seal key and commitment come from it.
    DataKey(KeyBytes)
);
key!(
    /// Wraps other keys: derived from an epoch key or taken from a slot.
    WrappingKey(KeyBytes)
);
key!(
    /// A secret of one file's own, which a custodian has unwrapped for that file: without a bucket key it takes this and the key of the epoch to open the file.
    FileSecret(KeyBytes)
);
key!(
    /// Makes and checks MACs over a header.
    MacKey(KeyBytes)
);
key!(
    /// Seals names, links or xattrs.
    SivKey(KeyBytes)
);
key!(
    /// What a slot gives: the seed of the key pair the keystore root is sealed to.
    SlotSecret(KeyBytes)
);
key!(
    /// Proves to a slot that its root was sealed by someone who could open the keystore.
    SlotAuthenticator(KeyBytes)
);

key!(
    /// A key that a customer brings when files are used, and that is stored nowhere.
    CustomerKey(KeyBytes)
);
key!(
    /// What the first keys of a keystore's audit logs come from.
    AuditSeed(LockedKey)
);
key!(
    /// Makes the MAC of one line of an audit log, and the key of the next line; wiped then.
    AuditKey(KeyBytes)
);

key!(
    /// What someone to whom a vault is shared keeps: the input of their key pair.
    IdentityKey(KeyBytes)
);

impl FileSecret {
    /// Takes what a custodian has made or unwrapped for a file.
    pub fn of(unwrapped: &EpochKey) -> Self {
        FileSecret(KeyBytes::copy_of(unwrapped.as_bytes()))
    }
}

impl AuditKey {
    /// Returns the MAC of `message`.
    pub fn mac(&self, message: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(self.as_bytes(), message).as_bytes()
    }

    /// Tells in constant time whether `mac` is the MAC of `message`.
    pub fn check(&self, message: &[u8], mac: &[u8; 32]) -> bool {
        blake3::keyed_hash(self.as_bytes(), message) == blake3::Hash::from_bytes(*mac)
    }
}

impl MacKey {
    /// Returns the MAC of `message`.
    pub fn mac(&self, message: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(self.as_bytes(), message).as_bytes()
    }

    /// Tells in constant time whether `mac` is the MAC of `message`.
    pub fn check(&self, message: &[u8], mac: &[u8; 32]) -> bool {
        // blake3::Hash compares in constant time.
        blake3::keyed_hash(self.as_bytes(), message) == blake3::Hash::from_bytes(*mac)
    }
}
