//! The content engine in memory: against a model, with a full disk, cut at every step, and with bytes changed behind its back.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::{
    crypto::{block::Suite, keys::DataKey},
    ids::{DirectoryId, Epoch, FileId},
};

/// A file in memory that can run out of space, and stop working after a number of changes.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    bytes: Vec<u8>,
    /// No byte may be stored at or behind this offset.
    capacity: Option<usize>,
    /// The file cannot become longer than this; nothing may be stored behind it.
    len_max: Option<usize>,
    /// Changes that were tried.
    tried: usize,
    /// Changes that still succeed; none after it, as if the process had been killed.
    changes_left: Option<usize>,
    syncs: usize,
    reads: usize,
    reads_beyond_end: usize,
}

impl Memory {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().bytes.clone()
    }

    fn change<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> io::Result<R> {
        let mut inner = self.0.lock().unwrap();
        inner.tried += 1;
        if let Some(left) = &mut inner.changes_left {
            if *left == 0 {
                return Err(io::Error::other("killed"));
            }
            *left -= 1;
        }
        Ok(f(&mut inner))
    }
}

impl Storage for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().bytes.len() as u64)
    }

    fn inode(&self) -> io::Result<u64> {
        Ok(1)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut inner = self.0.lock().unwrap();
        inner.reads += 1;
        inner.reads_beyond_end += usize::from(offset as usize + buf.len() > inner.bytes.len());
        let rest = inner.bytes.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), ShortWrite> {
        let written = self.change(|inner| {
            let limits = [inner.capacity, inner.len_max].into_iter().flatten();
            let fits = limits.fold(buf.len(), |fits, limit| fits.min(limit.saturating_sub(offset as usize)));
            let end = offset as usize + fits;
            if fits > 0 {
                let len = inner.bytes.len().max(end);
                inner.bytes.resize(len, 0);
                inner.bytes[offset as usize..end].copy_from_slice(&buf[..fits]);
            }
            fits
        });
        match written {
            Ok(written) if written == buf.len() => Ok(()),
            Ok(written) => Err(ShortWrite {
                written,
                error: io::ErrorKind::StorageFull.into(),
            }),
            Err(error) => Err(ShortWrite { written: 0, error }),
        }
    }

    fn write_with_mtime(&self, buf: &[u8], offset: u64, _mtime: Option<Timespec>) -> io::Result<()> {
        self.write_at(buf, offset).map_err(|short| short.error)
    }

    fn set_mtime(&self, _mtime: Timespec) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|inner| {
            if inner.len_max.is_some_and(|max| len as usize > max) {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            inner.bytes.resize(len as usize, 0);
            Ok(())
        })?
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(|inner| inner.bytes[offset as usize..][..len as usize].fill(0))
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let inner = self.0.lock().unwrap();
        let rest = inner.bytes.get(offset as usize..).unwrap_or_default();
        Ok(rest.iter().position(|&byte| byte != 0).map(|at| offset + at as u64))
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        let inner = self.0.lock().unwrap();
        let rest = inner.bytes.get(offset as usize..).unwrap_or_default();
        let at = rest
            .windows(4096)
            .position(|window| window.iter().all(|&byte| byte == 0));
        Ok(at.map_or(inner.bytes.len() as u64, |at| offset + at as u64))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.lock().unwrap().syncs += 1;
        Ok(())
    }
}

type Change = fn(&Content<Memory>) -> Result<(), ContentError>;

const FILE: FileId = FileId([4; 16]);

fn layout() -> Layout {
    Layout::new(Suite::Aes256GcmSiv, 4096).unwrap()
}

fn header() -> FileHeader {
    let data_key = DataKey::new(crate::crypto::keys::KeyBytes::copy_of(&[8; 32]));
    FileHeader::new(Suite::Aes256GcmSiv, Epoch(1), FILE, DirectoryId([5; 16]), data_key)
}

fn place(name: &'static [u8]) -> impl FnOnce(&SealKey) -> Option<[u8; 32]> {
    move |key| Some(key.place(DirectoryId([5; 16]), name))
}

fn create(memory: &Memory) -> Content<Memory> {
    Content::create(memory.clone(), layout(), &header())
}

fn stored<'p>(memory: &Memory, preamble: &'p UnverifiedPreamble) -> Stored<'p> {
    let size = CipherSize(memory.len().unwrap());
    Stored { size, preamble }
}

fn load(memory: &Memory) -> Result<Content<Memory>, ContentError> {
    let preamble = UnverifiedPreamble::decode(&memory.bytes()).map_err(ContentError::Preamble)?;
    Content::load(
        memory.clone(),
        layout(),
        &header(),
        stored(memory, &preamble),
        place(b"name"),
    )
}

fn seal(content: &Content<Memory>) -> bool {
    let ticket = content.begin_seal().unwrap();
    content.finish_seal(ticket, None, place(b"name")).unwrap()
}

fn read_all(content: &Content<Memory>) -> Result<Vec<u8>, ContentError> {
    let mut plain = Vec::new();
    let range = content.read(PlainOffset(0), content.size().0 as usize + 10, &mut plain)?;
    Ok(plain[range].to_vec())
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed) | 1)
        .collect()
}

#[test]
fn a_new_file_is_one_write_and_has_the_size_of_the_format() {
    let memory = Memory::default();
    memory.0.lock().unwrap().changes_left = Some(1);
    create(&memory).write(PlainOffset(0), &pattern(5000, 1)).unwrap();
    assert_eq!(memory.bytes().len(), 5312);
    assert_eq!(read_all(&load(&memory).unwrap()).unwrap(), pattern(5000, 1));
}

#[test]
fn writing_to_a_sealed_file_makes_the_open_mark_durable_first() {
    let memory = Memory::default();
    let content = create(&memory);
    content.write(PlainOffset(0), b"one").unwrap();
    assert!(seal(&content));
    assert_eq!(memory.0.lock().unwrap().syncs, 0);
    memory.0.lock().unwrap().changes_left = Some(1);
    assert!(content.write(PlainOffset(0), b"two").is_err());
    assert_eq!(memory.0.lock().unwrap().syncs, 1);
    memory.0.lock().unwrap().changes_left = None;
    let reloaded = load(&memory).unwrap();
    assert!(!reloaded.is_sealed());
    assert_eq!(read_all(&reloaded).unwrap(), b"one");
}

#[test]
fn a_change_after_the_ticket_prevents_the_seal() {
    let content = create(&Memory::default());
    content.write(PlainOffset(0), b"one").unwrap();
    let ticket = content.begin_seal().unwrap();
    content.write(PlainOffset(0), b"two").unwrap();
    assert!(!content.finish_seal(ticket, None, place(b"name")).unwrap());
    assert!(seal(&content));
    assert!(content.begin_seal().is_none());
}

#[test]
fn a_file_of_many_blocks_that_a_crash_has_left_open_is_sealed_with_all_of_them() {
    for blocks in [TAGS_AT_ONCE, 2 * TAGS_AT_ONCE + 1] {
        let memory = Memory::default();
        let size = blocks as usize * 4096;
        create(&memory).write(PlainOffset(0), &pattern(size, 1)).unwrap();
        let left_open = load(&memory).unwrap();
        assert!(seal(&left_open));
        let sealed = load(&memory).unwrap();
        assert!(sealed.is_sealed());
        sealed.verify(|_| ()).unwrap();
        zero_block(&memory, blocks as usize - 1);
        assert!(load(&memory).unwrap().verify(|_| ()).is_err());
    }
}

#[test]
fn a_sealed_file_is_bound_to_its_size_name_and_blocks() {
    let memory = Memory::default();
    let content = create(&memory);
    content.write(PlainOffset(0), &pattern(3 * 4096, 1)).unwrap();
    let old_block = memory.bytes()[256..256 + 4124].to_vec();
    content.write(PlainOffset(0), &pattern(4096, 2)).unwrap();
    assert!(seal(&content));
    let good = memory.bytes();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let memory = Memory::default();
        memory.0.lock().unwrap().bytes = good.clone();
        change(&mut memory.0.lock().unwrap().bytes);
        memory
    };
    assert!(load(&with(&|_| ())).unwrap().verify(|_| ()).is_ok());
    assert!(matches!(
        load(&with(&|b| b.truncate(256 + 4124))),
        Err(ContentError::WrongSize { .. })
    ));
    assert!(matches!(
        load(&with(&|b| b.truncate(256))),
        Err(ContentError::WrongSize { .. })
    ));
    assert!(matches!(
        load(&with(&|b| b.resize(256 + 5 * 4124, 0))),
        Err(ContentError::WrongSize { .. })
    ));
    let zeroed = load(&with(&|b| b[256..256 + 4124].fill(0))).unwrap();
    assert!(matches!(read_all(&zeroed), Err(ContentError::Damaged(BlockIndex(0)))));
    let swapped = load(&with(&|b| {
        let (one, two) = b[256..].split_at_mut(4124);
        one.swap_with_slice(&mut two[..4124]);
    }));
    assert!(matches!(read_all(&swapped.unwrap()), Err(ContentError::Damaged(_))));
    let rolled_back = load(&with(&|b| b[256..256 + 4124].copy_from_slice(&old_block))).unwrap();
    assert!(matches!(rolled_back.verify(|_| ()), Err(ContentError::WrongSum)));
    let preamble = UnverifiedPreamble::decode(&good).unwrap();
    let memory = with(&|_| ());
    let elsewhere = Content::load(
        memory.clone(),
        layout(),
        &header(),
        stored(&memory, &preamble),
        place(b"other"),
    );
    assert!(matches!(elsewhere, Err(ContentError::Misplaced)));
}

/// Zeroes a block of a file that is being used, and returns what was there.
fn zero_block(memory: &Memory, index: usize) -> Vec<u8> {
    let mut inner = memory.0.lock().unwrap();
    let block = &mut inner.bytes[256 + index * 4124..][..4124];
    let old = block.to_vec();
    block.fill(0);
    old
}

fn put_block(memory: &Memory, index: usize, block: &[u8]) {
    memory.0.lock().unwrap().bytes[256 + index * 4124..][..4124].copy_from_slice(block);
}

#[test]
fn a_block_that_is_zeroed_before_it_is_freed_or_overwritten_does_not_stay_in_the_sum() {
    let changes: [(usize, Change); 6] = [
        (1, |content| content.punch(PlainOffset(4096), 4096)),
        (1, |content| content.punch(PlainOffset(100), 9000)),
        (3, |content| content.set_size(PlainSize(3 * 4096))),
        (3, |content| content.set_size(PlainSize(2 * 4096 + 5))),
        (1, |content| content.write(PlainOffset(4096), &[9; 4096])),
        (3, |content| content.set_size(PlainSize(4 * 4096))),
    ];
    for (number, (block, change)) in changes.into_iter().enumerate() {
        for is_sealed in [false, true] {
            let memory = Memory::default();
            let content = create(&memory);
            content.write(PlainOffset(0), &pattern(2 * 4096, 3)).unwrap();
            let older = memory.bytes()[256..256 + 4124].to_vec();
            let written = pattern(4 * 4096 - 50, 1);
            content.write(PlainOffset(0), &written).unwrap();
            if is_sealed {
                assert!(seal(&content));
            }
            let end = memory.bytes().len();
            memory.0.lock().unwrap().bytes.resize(256 + 4 * 4124, 0);
            let old = zero_block(&memory, block);
            memory.0.lock().unwrap().bytes.truncate(end);
            let refused = change(&content);
            assert!(
                matches!(refused, Err(ContentError::Damaged(BlockIndex(damaged))) if damaged == block as u64),
                "change {number}, sealed: {is_sealed}: {refused:?}"
            );
            assert!(!content.is_sparse());
            // Nothing was changed, and nothing forgotten: not even what an older block would be worth.
            memory.0.lock().unwrap().bytes.resize(256 + 4 * 4124, 0);
            put_block(&memory, block, &old);
            memory.0.lock().unwrap().bytes.truncate(end);
            assert_eq!(read_all(&content).unwrap(), written);
            content.write(PlainOffset(4096), &[7; 4096]).unwrap();
            assert!(seal(&content));
            load(&memory).unwrap().verify(|_| ()).unwrap();
            put_block(&memory, 0, &older);
            let rolled_back = load(&memory).unwrap().verify(|_| ());
            assert!(matches!(rolled_back, Err(ContentError::WrongSum)), "{rolled_back:?}");
        }
    }
}

#[test]
fn zeros_that_a_crash_has_left_can_be_overwritten_and_freed() {
    let changes: [Change; 4] = [
        |content| content.write(PlainOffset(4096), &[9; 4096]),
        |content| content.punch(PlainOffset(0), 3 * 4096),
        |content| content.set_size(PlainSize(4096)),
        |content| content.set_size(PlainSize(5)),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let memory = Memory::default();
        create(&memory).write(PlainOffset(0), &pattern(4 * 4096, 1)).unwrap();
        // The size was durable before two of the blocks.
        zero_block(&memory, 1);
        zero_block(&memory, 2);
        let content = load(&memory).unwrap();
        assert!(seal(&content));
        let content = load(&memory).unwrap();
        let damaged = read_all(&content);
        assert!(
            matches!(damaged, Err(ContentError::Damaged(BlockIndex(1)))),
            "{damaged:?}"
        );
        let old = zero_block(&memory, 0);
        let refused = content.write(PlainOffset(4096), &[9; 4096]);
        assert!(
            matches!(refused, Err(ContentError::Damaged(_))),
            "one more is zero: {refused:?}"
        );
        put_block(&memory, 0, &old);
        change(&content).unwrap_or_else(|error| panic!("change {number}: {error}"));
        if number == 0 {
            content.write(PlainOffset(2 * 4096), &[9; 4096]).unwrap();
        }
        assert!(seal(&content));
        load(&memory).unwrap().verify(|_| ()).unwrap();
    }
}

#[test]
fn cutting_to_nothing_reads_nothing_and_what_is_written_then_is_sealed_well() {
    let memory = Memory::default();
    let content = create(&memory);
    content.write(PlainOffset(0), &[1; 100 * 4096 + 5]).unwrap();
    let before = memory.0.lock().unwrap().reads;
    content.set_size(PlainSize(0)).unwrap();
    assert_eq!(memory.0.lock().unwrap().reads, before);
    content.write(PlainOffset(0), b"new").unwrap();
    assert!(seal(&content));
    load(&memory).unwrap().verify(|_| ()).unwrap();
}

#[test]
fn reading_up_to_the_end_does_not_ask_for_more() {
    let memory = Memory::default();
    let content = create(&memory);
    content.write(PlainOffset(0), &[1; 4096 + 5]).unwrap();
    assert_eq!(read_all(&content).unwrap(), [1; 4096 + 5]);
    assert_eq!(memory.0.lock().unwrap().reads_beyond_end, 0);
}

#[test]
fn a_zeroed_block_is_a_hole_only_in_a_sparse_file() {
    let content = create(&Memory::default());
    content.write(PlainOffset(10 * 4096), b"end").unwrap();
    assert!(content.is_sparse());
    let mut expected = vec![0; 10 * 4096];
    expected.extend_from_slice(b"end");
    assert_eq!(read_all(&content).unwrap(), expected);
}

#[test]
fn a_hole_in_a_file_without_holes_is_damage_and_is_not_read() {
    const BLOCKS: usize = 1000;
    let memory = Memory::default();
    create(&memory).write(PlainOffset(0), &pattern(3 * 4096, 1)).unwrap();
    memory.set_len((256 + BLOCKS * 4124) as u64).unwrap();
    let content = load(&memory).unwrap();
    memory.0.lock().unwrap().reads = 0;
    let (mut damaged, mut passed) = (Vec::new(), 0);
    content
        .verify_blocks(0..BLOCKS as u64, &mut |bytes| passed += bytes, &mut |blocks| {
            damaged.push(blocks)
        })
        .unwrap();
    assert_eq!(
        memory.0.lock().unwrap().reads,
        1,
        "the blocks that are there are read at once"
    );
    assert_eq!(passed, BLOCKS as u64 * 4096);
    assert_eq!(damaged.last(), Some(&(READ_CHUNK_BLOCKS..BLOCKS as u64)));
    assert!(damaged.into_iter().flatten().eq(3..BLOCKS as u64));
    assert!(matches!(
        content.verify(|_| ()),
        Err(ContentError::Damaged(BlockIndex(3)))
    ));
}

#[test]
fn a_sealed_file_is_refused_at_every_place_but_its_own() {
    let memory = Memory::default();
    let content = create(&memory);
    content.write(PlainOffset(0), b"text").unwrap();
    let place = |name: &'static [u8]| move |key: &SealKey| key.place(DirectoryId([3; 16]), name);
    let open = content.check_place(place(b"one"));
    assert!(
        matches!(open, Err(ContentError::Misplaced)),
        "it has one name: {open:?}"
    );
    let ticket = content.begin_seal().unwrap();
    assert!(
        content
            .finish_seal(ticket, None, |key| Some(place(b"one")(key)))
            .unwrap()
    );
    content.check_place(place(b"one")).unwrap();
    let other = content.check_place(place(b"other"));
    assert!(matches!(other, Err(ContentError::Misplaced)), "{other:?}");
    content.admit_several_names(Storage::sync_data).unwrap();
    content.check_place(place(b"other")).unwrap();
    content.write(PlainOffset(0), b"more").unwrap();
    content.check_place(place(b"other")).unwrap();
    drop(content);
    load(&memory).unwrap().check_place(place(b"other")).unwrap();
}

#[test]
fn a_full_disk_leaves_every_block_whole() {
    for capacity in (256..40_000).step_by(97) {
        let memory = Memory::default();
        let content = create(&memory);
        let old = pattern(9000, 1);
        content.write(PlainOffset(0), &old).unwrap();
        let used = memory.bytes().len();
        memory.0.lock().unwrap().capacity = Some(used.max(capacity));
        let new = pattern(30_000, 2);
        let result = content.write(PlainOffset(5000), &new);
        let mut expected = old.clone();
        expected.truncate(5000);
        expected.extend_from_slice(&new);
        for content in [content, load(&memory).unwrap()] {
            let now = read_all(&content).unwrap();
            if result.is_ok() {
                assert_eq!(now, expected);
            } else {
                assert!(now.len() >= 9000, "capacity {capacity}");
                let newer = now.iter().zip(&expected).take_while(|(a, b)| a == b).count();
                assert!(
                    newer == now.len() || newer % 4096 == 0 || newer >= 5000,
                    "capacity {capacity}"
                );
                for (i, byte) in now.iter().enumerate() {
                    assert!(
                        expected[i] == *byte || old.get(i) == Some(byte),
                        "byte {i}, capacity {capacity}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_full_disk_leaves_a_hole_a_hole() {
    for (offset, more) in [(0, 32), (0, 4000), (0, 4124 + 32), (100, 32), (8192, 2000)] {
        let memory = Memory::default();
        let content = create(&memory);
        content.set_size(PlainSize(20_000)).unwrap();
        let start = 256 + offset / 4096 * 4124;
        memory.0.lock().unwrap().capacity = Some(start + more);
        assert!(content.write(PlainOffset(offset as u64), &pattern(9000, 1)).is_err());
        for content in [content, load(&memory).unwrap()] {
            let now = read_all(&content).unwrap();
            assert_eq!(now.len(), 20_000);
            let written = now.iter().filter(|&&byte| byte != 0).count();
            assert_eq!(written, if more > 4124 { 4096 } else { 0 }, "{more} bytes at {offset}");
        }
    }
}

#[test]
fn a_full_disk_keeps_the_last_block_where_it_cannot_become_longer() {
    // 60 are what there is of the block.
    for more in [0, 32, 45, 50, 51, 59, 60, 1000, 4000] {
        for is_hole in [false, true] {
            for offset in [5000, 20_000] {
                let memory = Memory::default();
                let content = create(&memory);
                let mut old = vec![0; 32];
                if is_hole {
                    content.set_size(PlainSize(32)).unwrap();
                } else {
                    old = pattern(32, 1);
                    content.write(PlainOffset(0), &old).unwrap();
                }
                // What a file has is there; of a hole nothing is.
                memory.0.lock().unwrap().capacity = Some(if is_hole { 256 } else { 316 } + more);
                assert!(content.set_size(PlainSize(offset)).is_err());
                assert!(content.write(PlainOffset(offset), b"behind").is_err());
                for content in [content, load(&memory).unwrap()] {
                    assert_eq!(read_all(&content).unwrap(), old, "{more} bytes, {offset}, {is_hole}");
                }
            }
        }
    }
}

/// Changes that need more than three blocks, and so fail for [`with_three_blocks_at_most`].
const TOO_LONG: [Change; 3] = [
    |content| content.set_size(PlainSize(10 * 4096 + 3)),
    |content| content.write(PlainOffset(10 * 4096), b"behind"),
    |content| content.write(PlainOffset(10 * 4096 + 7), &[9; 9000]),
];

fn with_three_blocks_at_most(old: &[u8], is_sealed: bool) -> (Memory, Content<Memory>) {
    let memory = Memory::default();
    let content = create(&memory);
    content.write(PlainOffset(0), old).unwrap();
    if is_sealed {
        assert!(seal(&content));
    }
    memory.0.lock().unwrap().len_max = Some(256 + 3 * 4124);
    (memory, content)
}

#[test]
fn a_file_that_cannot_become_longer_stays_as_it_was() {
    for len in [5, 4096, 4096 + 5, 9000] {
        for (number, change) in TOO_LONG.into_iter().enumerate() {
            for is_sealed in [false, true] {
                let old = pattern(len, 1);
                let (memory, content) = with_three_blocks_at_most(&old, is_sealed);
                let end = memory.bytes().len();
                assert!(change(&content).is_err());
                assert_eq!(memory.bytes().len(), end, "{len} bytes, change {number}");
                for content in [&content, &load(&memory).unwrap()] {
                    assert_eq!(read_all(content).unwrap(), old, "{len} bytes, change {number}");
                }
                content.write(PlainOffset(1), b"more").unwrap();
                assert!(seal(&content));
                load(&memory).unwrap().verify(|_| ()).unwrap();
                assert_eq!(memory.bytes().len(), end);
            }
        }
    }
}

#[test]
fn a_file_that_cannot_become_longer_is_whole_where_it_is_killed_at_any_step() {
    for (number, change) in TOO_LONG.into_iter().enumerate() {
        for steps in 0..12 {
            let old = pattern(4096 + 5, 1);
            let (memory, content) = with_three_blocks_at_most(&old, true);
            memory.0.lock().unwrap().changes_left = Some(steps);
            assert!(change(&content).is_err());
            memory.0.lock().unwrap().changes_left = None;
            let content = load(&memory).unwrap();
            // The next change finishes what was begun.
            content.write(PlainOffset(0), &old[..1]).unwrap();
            let mut now = read_all(&content).unwrap();
            let added = now.split_off(old.len());
            assert!(
                now == old && added.len() <= 4091 && added.iter().all(|&byte| byte == 0),
                "change {number}, {steps} steps: {} bytes more",
                added.len()
            );
            assert!(seal(&content));
            load(&memory).unwrap().verify(|_| ()).unwrap();
        }
    }
}

#[test]
fn a_write_of_which_nothing_was_stored_is_not_mended() {
    let memory = Memory::default();
    let content = create(&memory);
    let old = pattern(9000, 1);
    content.write(PlainOffset(0), &old).unwrap();
    let tried = |changes_left, capacity| {
        let mut inner = memory.0.lock().unwrap();
        (inner.changes_left, inner.capacity) = (changes_left, capacity);
        let before = inner.tried;
        drop(inner);
        assert!(content.write(PlainOffset(10), &[9; 5000]).is_err());
        memory.0.lock().unwrap().tried - before
    };
    assert_eq!(tried(Some(0), None), 1, "the write");
    assert_eq!(read_all(&content).unwrap(), old);
    // A block of it was stored, and nothing of the next.
    assert_eq!(
        tried(None, Some(256 + 4124)),
        2,
        "the write, and the cut of what it may have left"
    );
    assert_eq!(read_all(&content).unwrap()[4096..], old[4096..]);
}

#[test]
fn a_cut_killed_at_any_step_leaves_the_old_or_the_new_content() {
    for (from, to) in [(9000, 5000), (9000, 4096), (4096, 100), (9000, 8999), (20_000, 1)] {
        for steps in 0..6 {
            let memory = Memory::default();
            let content = create(&memory);
            let old = pattern(from, 1);
            content.write(PlainOffset(0), &old).unwrap();
            assert!(seal(&content));
            memory.0.lock().unwrap().changes_left = Some(steps);
            let done = content.set_size(PlainSize(to as u64)).is_ok();
            memory.0.lock().unwrap().changes_left = None;
            let content = load(&memory).unwrap();
            // The next change finishes what was begun.
            content.write(PlainOffset(0), &old[..1]).unwrap();
            let now = read_all(&content).unwrap();
            assert!(
                now == old[..to] || (!done && now == old),
                "{from} to {to}, {steps} steps: {}",
                now.len()
            );
            assert!(seal(&content));
            load(&memory).unwrap().verify(|_| ()).unwrap();
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, usize, u8),
    SetSize(u64),
    Punch(u64, u64),
    Read(u64, usize),
    Seal,
    Reload,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let offset = prop_oneof![
        0..40_000u64,
        (0..9u64).prop_map(|n| n * 4096),
        (1..9u64).prop_map(|n| n * 4096 - 1)
    ];
    let op = prop_oneof![
        4 => (offset.clone(), 1..20_000usize, any::<u8>()).prop_map(|(o, l, s)| Op::Write(o, l, s)),
        2 => offset.clone().prop_map(Op::SetSize),
        2 => (offset.clone(), 1..20_000u64).prop_map(|(o, l)| Op::Punch(o, l)),
        2 => (offset, 1..20_000usize).prop_map(|(o, l)| Op::Read(o, l)),
        1 => Just(Op::Seal),
        1 => Just(Op::Reload),
    ];
    proptest::collection::vec(op, 1..30)
}

proptest! {
    #[test]
    fn random_operations_agree_with_a_vector(ops in ops()) {
        let memory = Memory::default();
        let mut content = create(&memory);
        content.ensure_preamble().unwrap();
        let mut model: Vec<u8> = Vec::new();
        for op in ops {
            match op {
                Op::Write(offset, len, seed) => {
                    let data = pattern(len, seed);
                    content.write(PlainOffset(offset), &data).unwrap();
                    let end = offset as usize + len;
                    if model.len() < end {
                        model.resize(end, 0);
                    }
                    model[offset as usize..end].copy_from_slice(&data);
                }
                Op::SetSize(size) => {
                    content.set_size(PlainSize(size)).unwrap();
                    model.resize(size as usize, 0);
                }
                Op::Punch(offset, len) => {
                    content.punch(PlainOffset(offset), len).unwrap();
                    let end = ((offset + len) as usize).min(model.len());
                    if (offset as usize) < end {
                        model[offset as usize..end].fill(0);
                    }
                }
                Op::Read(offset, len) => {
                    let mut plain = Vec::new();
                    let range = content.read(PlainOffset(offset), len, &mut plain).unwrap();
                    let end = (offset as usize + len).min(model.len());
                    let expected = model.get(offset as usize..end).unwrap_or_default();
                    prop_assert_eq!(&plain[range], expected);
                    for offset in [offset, offset / 4096 * 4096] {
                        let expected = model.get(offset as usize..).unwrap_or_default();
                        let expected = &expected[..len.min(expected.len())];
                        for room in [len, len.next_multiple_of(4096)] {
                            let mut room = vec![0xaa; room];
                            let got = content.read_into(PlainOffset(offset), len, &mut room).unwrap();
                            prop_assert_eq!(&room[..got], expected);
                        }
                    }
                }
                Op::Seal => {
                    if let Some(ticket) = content.begin_seal() {
                        prop_assert!(content.finish_seal(ticket, None, place(b"name")).unwrap());
                    }
                }
                Op::Reload => content = load(&memory).unwrap(),
            }
            prop_assert_eq!(content.size(), PlainSize(model.len() as u64));
        }
        prop_assert_eq!(read_all(&content).unwrap(), model);
        while let Some(ticket) = content.begin_seal() {
            content.finish_seal(ticket, None, place(b"name")).unwrap();
        }
        load(&memory).unwrap().verify(|_| ()).unwrap();
    }
}
