//! Targets of links and link files (docs/FORMAT.md section 7).

#![no_main]

use hushfs::{
    crypto::keys::{KeyBytes, SivKey},
    format::link::{self, DiskTarget},
    ids::FileId,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let key = SivKey::new(KeyBytes::copy_of(&[1; 32]));
    if let Ok(DiskTarget::Inline(sealed)) = link::decode(bytes) {
        assert!(link::open_inline(&key, &sealed).is_err());
    }
    assert!(link::open_file(&key, FileId([1; 16]), bytes).is_err());
});
