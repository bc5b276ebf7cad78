//! Targets of links and link files (docs/FORMAT.md section 7): none opens but what was sealed.

#![no_main]

use hushfs::format::link::{self, DiskTarget};
use hushfs_fuzz::FILE;
use libfuzzer_sys::fuzz_target;

const GOOD: &[u8] = include_bytes!("../corpus/link/good");
const GOOD_FILE: &[u8] = include_bytes!("../corpus/link/good-file");

fuzz_target!(|bytes: &[u8]| {
    let key = hushfs_fuzz::names_root().symlink_key();
    let is_good =
        matches!(link::decode(bytes), Ok(DiskTarget::Inline(sealed)) if link::open_inline(&key, &sealed).is_ok());
    assert_eq!(is_good, bytes == GOOD);
    assert_eq!(link::open_file(&key, FILE, bytes).is_ok(), bytes == GOOD_FILE);
});
