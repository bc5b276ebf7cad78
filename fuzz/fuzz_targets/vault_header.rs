//! Vault headers (docs/FORMAT.md section 3).

#![no_main]

use hushfs::{
    crypto::keys::{KeyBytes, MacKey},
    format::vault::UnverifiedVaultHeader,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = UnverifiedVaultHeader::decode(bytes) {
        let _ = header.claims().layout().expect("checked when decoded");
        let key = MacKey::new(KeyBytes::copy_of(&[1; 32]));
        assert!(header.verify(&key).is_err());
    }
});
