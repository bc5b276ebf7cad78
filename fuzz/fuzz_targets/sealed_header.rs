//! Headers of sealed files (docs/FORMAT.md section 9): none is accepted but the one that was written.

#![no_main]

use hushfs::format::sealed::UnverifiedSealedHeader;
use libfuzzer_sys::fuzz_target;

const GOOD: &[u8] = include_bytes!("../corpus/sealed_header/good");

fuzz_target!(|bytes: &[u8]| {
    let is_good =
        UnverifiedSealedHeader::decode(bytes).is_ok_and(|header| header.verify(&hushfs_fuzz::data_key()).is_ok());
    assert_eq!(is_good, bytes == GOOD);
});
