//! Headers of files (docs/FORMAT.md section 5.1): none is accepted but the ones that were written, with a bucket key and without.

#![no_main]

use std::sync::Arc;

use hushfs::{
    crypto::keys::FileSecret,
    format::header::{OwnKey, UnverifiedHeader},
};
use hushfs_fuzz::VAULT;
use libfuzzer_sys::fuzz_target;

const GOOD: &[u8] = include_bytes!("../corpus/header/good");
const GOOD_WITHOUT_BUCKET_KEY: &[u8] = include_bytes!("../corpus/header/good_without_bucket_key");

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = UnverifiedHeader::decode(bytes) else {
        assert!(bytes != GOOD && bytes != GOOD_WITHOUT_BUCKET_KEY);
        return;
    };
    let key = hushfs_fuzz::epoch_key().header_wrapping_key(VAULT);
    let verified = match header.own().cloned() {
        None => header.verify(VAULT, &key),
        Some(wrap) => {
            let secret = FileSecret::of(&hushfs_fuzz::epoch_key());
            header.verify_own(VAULT, &key, &Arc::new(OwnKey { secret, wrap }))
        }
    };
    assert_eq!(verified.is_ok(), bytes == GOOD || bytes == GOOD_WITHOUT_BUCKET_KEY);
});
