//! Long-name files (docs/FORMAT.md section 6.3): what decodes encodes to the same.

#![no_main]

use hushfs::format::name;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((entry, file)) = bytes.split_at_checked(44)
        && let Ok(entry) = std::str::from_utf8(entry)
        && let Ok(sealed) = name::decode_long_name(file, entry)
    {
        assert_eq!(name::encode_long_name(&sealed), file);
    }
});
