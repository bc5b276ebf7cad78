//! Names on disk (docs/FORMAT.md sections 2 and 6.3): what opens is what is sealed for it again.

#![no_main]

use hushfs::format::name::{self, Shape};
use hushfs_fuzz::DIRECTORY;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let key = hushfs_fuzz::names_root().directory_name_key(DIRECTORY);
    if let Shape::Inline(sealed) = name::shape(bytes)
        && let Ok(plain) = name::open(&key, &sealed)
    {
        assert_eq!(name::seal(&key, &plain).entry.as_bytes(), bytes);
    }
});
