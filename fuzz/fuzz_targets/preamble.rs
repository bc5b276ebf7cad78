//! Preambles of data files (docs/FORMAT.md section 5.2).

#![no_main]

use hushfs::{
    crypto::keys::{DataKey, KeyBytes},
    format::preamble::UnverifiedPreamble,
    ids::FileId,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(preamble) = UnverifiedPreamble::decode(bytes) {
        let key = DataKey::new(KeyBytes::copy_of(&[1; 32])).seal_key(FileId([1; 16]), 1);
        assert!(preamble.verify(&key).is_err());
    }
});
