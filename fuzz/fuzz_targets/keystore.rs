//! Keystore files (docs/FORMAT.md section 4).

#![no_main]

use hushfs::{
    crypto::keys::{KeyBytes, MacKey},
    format::keystore::UnverifiedKeystoreFile,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(keystore) = UnverifiedKeystoreFile::decode(bytes) {
        assert!(!keystore.slots().is_empty());
        let key = MacKey::new(KeyBytes::copy_of(&[1; 32]));
        assert!(keystore.verify(&key).is_err());
    }
});
