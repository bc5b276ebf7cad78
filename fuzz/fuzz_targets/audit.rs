//! The audit log and its state (docs/FORMAT.md section 10): of any text, no line counts as good but those that were written, in their order.

#![no_main]

use std::sync::LazyLock;

use hushfs::{
    crypto::{keys::AuditSeed, locked::LockedKey},
    format::{
        audit::{Chain, State, Verifier},
        keystore::AuditHead,
    },
    ids::LogId,
};
use libfuzzer_sys::fuzz_target;

const LOG: LogId = LogId([5; 16]);

static SEED: LazyLock<AuditSeed> = LazyLock::new(|| AuditSeed::new(LockedKey::copy_of(&[9; 32])));

const GOOD: &[u8] = include_bytes!("../corpus/audit/good");

fuzz_target!(|bytes: &[u8]| {
    let head = AuditHead::default();
    let good: Vec<_> = GOOD.split_inclusive(|&byte| byte == b'\n').collect();
    let mut chain = Chain::start(&SEED, LOG, head);
    let mut verifier = Verifier::new(&SEED, LOG, 1, &[]);
    let mut followed = 0;
    for line in bytes.split(|&byte| byte == b'\n') {
        if chain.follow(line) {
            assert_eq!(good[followed].strip_suffix(b"\n"), Some(line));
            followed += 1;
        }
        if verifier.check(line).is_empty() {
            assert!(good.iter().any(|good| good.strip_suffix(b"\n") == Some(line)));
        }
    }
    assert!(verifier.good() as usize <= good.len());
    let _ = verifier.finish();
    if let Ok(state) = State::decode(bytes) {
        assert_eq!(&state.encode()[..], bytes);
    }
});
