//! What the targets share: the fixed keys of tests/format/vectors.json, from which the corpora are: so the fuzzer starts behind every check, at a file that opens.

pub mod memory;

use hushfs::{
    crypto::{
        keys::{DataKey, EpochKey, KeyBytes, KeystoreRoot, NamesRoot},
        locked::LockedKey,
    },
    format::xattr::XattrKeys,
    ids::{DirectoryId, FileId, VaultId},
};

pub const VAULT: VaultId = VaultId([0x11; 16]);
pub const FILE: FileId = FileId([0x22; 16]);
pub const DIRECTORY: DirectoryId = DirectoryId([0x33; 16]);

/// What most keys of the vectors are.
pub fn key() -> [u8; 32] {
    std::array::from_fn(|i| i as u8)
}

pub fn epoch_key() -> EpochKey {
    EpochKey::new(LockedKey::copy_of(&key()))
}

pub fn names_root() -> NamesRoot {
    NamesRoot::new(LockedKey::copy_of(&key()))
}

pub fn keystore_root() -> KeystoreRoot {
    KeystoreRoot::new(LockedKey::copy_of(&key()))
}

pub fn data_key() -> DataKey {
    DataKey::new(KeyBytes::copy_of(&std::array::from_fn(|i| 0x80 + i as u8)))
}

pub fn xattr_keys() -> XattrKeys {
    XattrKeys {
        value: names_root().xattr_key(),
        name: names_root().xattr_name_key(),
    }
}
