//! Directory headers (docs/FORMAT.md section 6.2): none is accepted but the one that was written.

#![no_main]

use hushfs::format::directory::DirectoryHeader;
use libfuzzer_sys::fuzz_target;

const GOOD: &[u8] = include_bytes!("../corpus/directory/good");

fuzz_target!(|bytes: &[u8]| {
    let key = hushfs_fuzz::names_root().directory_header_key();
    match DirectoryHeader::decode(bytes, &key) {
        Ok(header) => assert_eq!(header.encode(&key), GOOD),
        Err(_) => assert_ne!(bytes, GOOD),
    }
});
