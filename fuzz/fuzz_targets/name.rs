//! Names on disk (docs/FORMAT.md sections 2 and 6.3).

#![no_main]

use hushfs::{
    crypto::keys::{KeyBytes, SivKey},
    format::name::{self, Shape},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let key = SivKey::new(KeyBytes::copy_of(&[1; 32]));
    if let Shape::Inline(sealed) = name::shape(bytes) {
        assert!(name::open(&key, &sealed).is_err());
    }
});
