//! Reading and writing allocate nothing: buffers belong to threads, and are used again.
//!
//! A program of its own, because it counts what its allocator is asked for.

#[path = "support/unmounted.rs"]
mod unmounted;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    process::Command,
};

use hushfs::{
    fs::{NameIn, ROOT},
    keystore::{KeyFile, SlotChoice, Unlock},
    vault::home::{Lock, VaultHome},
};

/// The system's allocator, which counts.
struct Counting;

thread_local! {
    /// How often this thread asked for memory.
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller keeps the same promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the same promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Does something once, so that buffers get their size, and returns how often it asks for memory after that.
fn allocations(mut act: impl FnMut()) -> usize {
    act();
    let before = COUNT.get();
    act();
    COUNT.get() - before
}

const MIB: usize = 1 << 20;

#[test]
fn reads_and_writes_allocate_nothing() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("key"), [7; 32]).unwrap();
    let init = Command::new(env!("CARGO_BIN_EXE_hushfs"))
        .args(["init", "--key-file", "key", "vault"])
        .current_dir(place.path())
        .status();
    assert!(init.unwrap().success());
    let key = KeyFile::new(vec![7; 32].into()).unwrap();
    let home = VaultHome::enter(&place.path().join("vault"), Lock::Exclusive).unwrap();
    let open = home.open(&Unlock::KeyFile(key), &SlotChoice::Any).unwrap();
    unmounted::with_fs(open, |fs, caller| {
        let at = |name| NameIn { parent: ROOT, name };
        let large = fs.create(at(b"large"), 0o600, caller).unwrap().node.id;
        let small = fs.create(at(b"small"), 0o600, caller).unwrap().node.id;
        let data = vec![7; MIB];
        let mut room = vec![0; MIB];
        let mut plain = Vec::new();

        let found = [
            ("write 1 MiB", allocations(|| fs.write(large, 0, &data).unwrap())),
            (
                "write up to an end inside a block",
                allocations(|| fs.write(small, 0, &data[..1000]).unwrap()),
            ),
            (
                "read 1 MiB into room",
                allocations(|| assert_eq!(fs.read_into(large, 0, MIB, &mut room).unwrap(), MIB)),
            ),
            (
                "read parts of blocks into room",
                allocations(|| assert_eq!(fs.read_into(large, 100, MIB - 200, &mut room).unwrap(), MIB - 200)),
            ),
            (
                "read 1 MiB",
                allocations(|| assert_eq!(fs.read(large, 0, MIB, &mut plain).unwrap(), 0..MIB)),
            ),
            (
                "read 1 KB",
                allocations(|| assert_eq!(fs.read(small, 0, MIB, &mut plain).unwrap(), 0..1000)),
            ),
        ];
        let wrong: Vec<_> = found.iter().filter(|(_, count)| *count > 0).collect();
        assert!(wrong.is_empty(), "memory was asked for: {wrong:?}");
    });
}
