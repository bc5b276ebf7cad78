//! The fixed values of the vectors, as tests/format/vectors.py has them, and what runs that.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use data_encoding::HEXLOWER;
use hushfs::{
    crypto::{
        derive,
        keys::{DataKey, EpochKey, KeyBytes, KeystoreRoot, MacKey, NamesRoot, SivKey},
        locked::LockedKey,
        seal::SealKey,
    },
    format::xattr::XattrKeys,
    ids::{DirectoryId, FileId, KeyId, KeystoreId, VaultId},
};
use serde_json::Value;

pub const VAULT: VaultId = VaultId([0x11; 16]);
pub const FILE: FileId = FileId([0x22; 16]);
pub const DIRECTORY: DirectoryId = DirectoryId([0x33; 16]);
pub const KEYSTORE: KeystoreId = KeystoreId([0x44; 16]);
pub const KEY_ID: KeyId = KeyId([0x55; 16]);

/// What most keys of the vectors are.
pub fn key() -> [u8; 32] {
    std::array::from_fn(|i| i as u8)
}

/// What is wrapped in the vectors.
pub fn secret() -> [u8; 32] {
    std::array::from_fn(|i| 0x80 + i as u8)
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
    DataKey::new(KeyBytes::copy_of(&secret()))
}

pub fn seal_key() -> SealKey {
    data_key().seal_key(FILE, 1)
}

pub fn name_key() -> SivKey {
    names_root().directory_name_key(DIRECTORY)
}

pub fn directory_header_key() -> MacKey {
    names_root().directory_header_key()
}

pub fn xattr_keys() -> XattrKeys {
    XattrKeys {
        value: names_root().xattr_key(),
        name: names_root().xattr_name_key(),
    }
}

/// The data key of the derivations, which all start from [`key`].
pub fn data_key_of_key() -> DataKey {
    DataKey::new(KeyBytes::copy_of(&key()))
}

/// The hash of what stands for a sealed name in the derivations.
pub fn long_name_hash() -> String {
    HEXLOWER.encode(&derive::long_name_hash(b"sealed name"))
}

pub fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format")
}

pub fn vectors() -> Value {
    serde_json::from_slice(&std::fs::read(here().join("vectors.json")).unwrap()).unwrap()
}

pub fn hex(text: &Value) -> Vec<u8> {
    HEXLOWER.decode(text.as_str().expect("a string").as_bytes()).unwrap()
}

/// Returns a command that runs one of the Python programs here, if Python and its packages are installed.
pub fn python(program: &str) -> Option<Command> {
    let built = here().join("../../target/python/bin/python");
    let python = if built.exists() { built } else { "python3".into() };
    let ready = Command::new(&python)
        .args([
            "-c",
            "import argon2, blake3, cryptography.hazmat.primitives.asymmetric.mlkem",
        ])
        .output()
        .is_ok_and(|output| output.status.success());
    if ready {
        let mut command = Command::new(python);
        command.arg("-B").arg(here().join(program));
        return Some(command);
    }
    assert!(
        std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none(),
        "the second reader must run here, but Python lacks the packages of tests/format/requirements.txt"
    );
    eprintln!("SKIPPED: Python lacks the packages of tests/format/requirements.txt");
    None
}
