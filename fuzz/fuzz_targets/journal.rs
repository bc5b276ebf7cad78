//! Journals: no group is taken but those that were written, in their order; and of a group with a MAC, whatever is in it, what decodes
//! encodes to the same.

#![no_main]

use hushfs::{
    crypto::keys::{KeyBytes, MacKey},
    format::journal::{GroupWriter, JournalHeader, decode_groups},
};
use libfuzzer_sys::fuzz_target;

const GENERATION: u64 = 3;
const GOOD: &[u8] = include_bytes!("../corpus/journal/good");
const GOOD_GROUPS: &[u8] = include_bytes!("../corpus/journal/good-groups");

fuzz_target!(|bytes: &[u8]| {
    let key = MacKey::new(KeyBytes::copy_of(&hushfs_fuzz::key()));
    assert_eq!(JournalHeader::decode(bytes, &key).is_ok(), bytes.starts_with(GOOD));
    let good = decode_groups(GOOD_GROUPS, GENERATION, &key).expect("they were encoded");
    let entries = decode_groups(bytes, GENERATION, &key).expect("no other group has a MAC");
    assert!(good.starts_with(&entries));

    let mut group = Vec::new();
    for number in [GENERATION, 0, bytes.len() as u64] {
        group.extend_from_slice(&number.to_le_bytes());
    }
    group.extend_from_slice(bytes);
    let mac = key.mac(&group);
    group.extend_from_slice(&mac);
    if let Ok(entries) = decode_groups(&group, GENERATION, &key) {
        let mut again = GroupWriter::new(GENERATION, 0);
        entries.iter().for_each(|entry| again.push(&entry.file, entry.change));
        // Numbers that a kind of change has no use for are not kept.
        assert_eq!(again.finish(&key).len(), group.len());
    }
});
