//! Local records (docs/FORMAT.md section 11): without the key nothing is believed.

#![no_main]

use hushfs::{
    crypto::{keys::NamesRoot, locked::LockedKey},
    format::record,
    ids::VaultId,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let key = NamesRoot::new(LockedKey::copy_of(&[1; 32])).record_key();
    assert!(record::decode_front(&key, VaultId([1; 16]), bytes).is_err());
    assert!(record::decode_batch(&key, &[1; 32], bytes).is_err());
});
