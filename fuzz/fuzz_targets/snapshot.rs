//! Snapshots (docs/FORMAT.md section 12): the list as who has the key could have written it, and the chunks as anyone could.

#![no_main]

use hushfs::{
    crypto::{keys::NamesRoot, locked::LockedKey},
    format::snapshot::{Item, SnapshotFront, SnapshotHead},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((front, chunk)) = bytes.split_first_chunk()
        && let Ok(front) = SnapshotFront::decode(front)
    {
        let key = NamesRoot::new(LockedKey::copy_of(&[1; 32])).snapshot_key(front.snapshot);
        assert!(front.open_chunk(&key, 0, true, chunk).is_err());
    }
    if let Ok(head) = SnapshotHead::decode(bytes) {
        assert_eq!(SnapshotHead::decode(&head.encode()), Ok(head));
    }
    let mut rest = bytes;
    while let Ok((item, size)) = Item::decode(rest) {
        let mut again = Vec::new();
        item.encode_into(&mut again);
        assert_eq!(again, rest[..size]);
        rest = &rest[size..];
    }
});
