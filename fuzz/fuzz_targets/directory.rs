//! Directory headers (docs/FORMAT.md section 6.2).

#![no_main]

use hushfs::{
    crypto::keys::{KeyBytes, MacKey},
    format::directory::DirectoryHeader,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let key = MacKey::new(KeyBytes::copy_of(&[1; 32]));
    assert!(DirectoryHeader::decode(bytes, &key).is_err());
});
