//! Headers of files (docs/FORMAT.md section 5.1).

#![no_main]

use hushfs::{
    crypto::keys::{KeyBytes, WrappingKey},
    format::header::UnverifiedHeader,
    ids::VaultId,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = UnverifiedHeader::decode(bytes) {
        let key = WrappingKey::new(KeyBytes::copy_of(&[1; 32]));
        assert!(header.verify(VaultId([1; 16]), &key).is_err());
    }
});
