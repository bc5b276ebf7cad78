//! Extended attributes: names on disk and values (docs/FORMAT.md section 8).

#![no_main]

use hushfs::{
    crypto::keys::{KeyBytes, MacKey, SivKey},
    format::xattr::{XattrHash, XattrKeys},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let keys = XattrKeys {
        value: SivKey::new(KeyBytes::copy_of(&[1; 32])),
        name: MacKey::new(KeyBytes::copy_of(&[2; 32])),
    };
    let _ = XattrHash::from_disk_name(bytes);
    assert!(keys.open(keys.hash(b"user.x"), bytes).is_err());
});
