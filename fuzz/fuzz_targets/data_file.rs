//! Any bytes as the data file of a sealed file: each block that is read is the one that was written there.

#![no_main]

use std::sync::LazyLock;

use hushfs::{
    crypto::block::Suite,
    format::{header::FileHeader, layout::Layout, preamble::UnverifiedPreamble},
    ids::Epoch,
    units::{CipherSize, PlainOffset},
    vault::content::{Content, Stored},
};
use hushfs_fuzz::{
    DIRECTORY, FILE,
    memory::{Memory, pattern},
};
use libfuzzer_sys::{arbitrary, fuzz_target};

const BLOCK: usize = 4096;
const LEN: usize = 2 * BLOCK + 100;

/// The file as it was sealed, and what it was before that: its blocks authenticate too.
static GOOD: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let memory = Memory::default();
    let content = Content::create(memory.clone(), layout(), &header());
    [2, 1].map(|seed| {
        content
            .write(PlainOffset(0), &pattern(LEN, seed))
            .expect("memory suffices");
        let ticket = content.begin_seal().expect("it was changed");
        assert!(
            content
                .finish_seal(ticket, None, |key| Some(key.place(DIRECTORY, b"name")))
                .expect("memory suffices")
        );
        memory.bytes()
    })
});

fn layout() -> Layout {
    Layout::new(Suite::Aes256GcmSiv, BLOCK as u32).expect("the usual one")
}

fn header() -> FileHeader {
    FileHeader::new(Suite::Aes256GcmSiv, Epoch(1), FILE, DIRECTORY, hushfs_fuzz::data_key())
}

/// One change of the stored bytes.
#[derive(Debug, arbitrary::Arbitrary)]
enum Change {
    Set(u16, u8),
    Cut(u16),
    Append(u16, u8),
    Zero(u16, u16),
    /// Copies a range to elsewhere.
    Copy(u16, u16, u16),
    /// Puts the older bytes back.
    Old(u16, u16),
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    let len = bytes.len();
    let range = |from: u16, count: u16| {
        let from = usize::from(from).min(len);
        from..(from + usize::from(count)).min(len)
    };
    match *change {
        Change::Set(at, value) => bytes[range(at, 1)].fill(value),
        Change::Cut(to) => bytes.truncate(usize::from(to)),
        Change::Append(count, value) => bytes.resize(len + usize::from(count), value),
        Change::Zero(from, count) => bytes[range(from, count)].fill(0),
        Change::Copy(from, count, to) => {
            let source = range(from, count);
            let to = usize::from(to).min(len - source.len());
            bytes.copy_within(source, to);
        }
        Change::Old(from, count) => {
            let old = &GOOD[0];
            let range = range(from, count);
            let range = range.start.min(old.len())..range.end.min(old.len());
            bytes[range.clone()].copy_from_slice(&old[range]);
        }
    }
}

fuzz_target!(|changes: Vec<Change>| {
    let mut bytes = GOOD[1].clone();
    changes.iter().take(16).for_each(|change| apply(&mut bytes, change));
    let memory = Memory::of(bytes.clone());
    let Ok(preamble) = UnverifiedPreamble::decode(&bytes) else {
        return;
    };
    let stored = Stored {
        size: CipherSize(bytes.len() as u64),
        preamble: &preamble,
    };
    let place = |key: &hushfs::crypto::seal::SealKey| Some(key.place(DIRECTORY, b"name"));
    let Ok(content) = Content::load(memory, layout(), &header(), stored, place) else {
        return;
    };
    assert_eq!(content.size().0, LEN as u64);
    let (new, old) = (pattern(LEN, 1), pattern(LEN, 2));
    for (i, block) in new.chunks(BLOCK).enumerate() {
        let mut plain = Vec::new();
        if let Ok(range) = content.read(PlainOffset((i * BLOCK) as u64), BLOCK, &mut plain) {
            // That it is an older one is for the sum to tell.
            assert!(plain[range.clone()] == *block || plain[range.clone()] == old[i * BLOCK..][..block.len()]);
        }
    }
    if content.verify(|_| ()).is_ok() {
        assert!(GOOD.contains(&bytes));
    }
});
