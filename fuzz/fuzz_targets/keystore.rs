//! Keystore files (docs/FORMAT.md section 4): none is accepted but the one that was written.

#![no_main]

use hushfs::format::keystore::UnverifiedKeystoreFile;
use libfuzzer_sys::fuzz_target;

const GOOD: [&[u8]; 2] = [
    include_bytes!("../corpus/keystore/good"),
    include_bytes!("../corpus/keystore/good-1"),
];

fuzz_target!(|bytes: &[u8]| {
    let key = hushfs_fuzz::keystore_root().mac_key();
    let is_good = UnverifiedKeystoreFile::decode(bytes).is_ok_and(|keystore| {
        assert!(!keystore.slots().is_empty());
        keystore.verify(&key).is_ok()
    });
    assert_eq!(is_good, GOOD.contains(&bytes));
});
