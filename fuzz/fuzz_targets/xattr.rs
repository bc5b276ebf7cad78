//! Extended attributes: names on disk and values (docs/FORMAT.md section 8): none opens but what was sealed.

#![no_main]

use hushfs::format::xattr::XattrHash;
use libfuzzer_sys::fuzz_target;

const GOOD: &[u8] = include_bytes!("../corpus/xattr/good");

fuzz_target!(|bytes: &[u8]| {
    let keys = hushfs_fuzz::xattr_keys();
    if let Some(hash) = XattrHash::from_disk_name(bytes) {
        assert!(
            [hash.disk_name(true), hash.disk_name(false)]
                .iter()
                .any(|name| name.as_bytes() == bytes)
        );
    }
    assert_eq!(keys.open(keys.hash(NAME), bytes).is_ok(), bytes == GOOD);
});

/// The name of the attribute of the vectors.
const NAME: &[u8] = b"user.colour";
