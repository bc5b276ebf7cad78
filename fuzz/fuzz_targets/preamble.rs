//! Preambles of data files (docs/FORMAT.md section 5.2): none is accepted but the one that was written.

#![no_main]

use hushfs::format::preamble::UnverifiedPreamble;
use hushfs_fuzz::FILE;
use libfuzzer_sys::fuzz_target;

const GOOD: &[u8] = include_bytes!("../corpus/preamble/good");

fuzz_target!(|bytes: &[u8]| {
    let key = hushfs_fuzz::data_key().seal_key(FILE, 1);
    let is_good = UnverifiedPreamble::decode(bytes).is_ok_and(|preamble| preamble.verify(&key).is_ok());
    // What follows a preamble is not its concern.
    assert_eq!(is_good, bytes.starts_with(GOOD));
});
