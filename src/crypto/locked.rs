//! Memory for long-lived keys: locked against swapping, left out of core dumps, wiped in forked children and on release.
//!
//! Where the limit on locked memory is used up the pages are still kept out of core dumps and wiped; see mlock(2) and madvise(2).

use std::{fmt, ptr::NonNull};

use parking_lot::Mutex;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous};
use zeroize::Zeroize;

use super::KEY_SIZE;

/// Bytes mapped at a time: 128 keys to a page.
const CHUNK_SIZE: usize = 4096;

/// Cells of `KEY_SIZE` bytes in locked pages that are free to use. Pages are never unmapped.
static FREE_CELLS: Mutex<Vec<Cell>> = Mutex::new(Vec::new());

/// One key's place in a locked page.
struct Cell(NonNull<[u8; KEY_SIZE]>);

// SAFETY: a cell is owned by one `LockedKey` or by the free list at a time.
unsafe impl Send for Cell {}
// SAFETY: shared references to a cell only read it.
unsafe impl Sync for Cell {}

/// A 32-byte key in locked memory, wiped on drop.
pub struct LockedKey(Cell);

impl LockedKey {
    /// Makes a key that `fill` writes in place.
    pub fn new(fill: impl FnOnce(&mut [u8])) -> Self {
        let free = FREE_CELLS.lock().pop();
        let mut cell = free.unwrap_or_else(map_chunk);
        // SAFETY: the cell was taken from the free list, so nothing else refers to it.
        fill(unsafe { cell.0.as_mut() });
        LockedKey(cell)
    }

    /// Copies a key into locked memory.
    pub fn copy_of(bytes: &[u8; KEY_SIZE]) -> Self {
        Self::new(|out| out.copy_from_slice(bytes))
    }

    /// Returns the key.
    pub fn as_bytes(&self) -> &[u8; KEY_SIZE] {
        // SAFETY: the cell is valid and owned by self; only shared reads happen until drop.
        unsafe { self.0.0.as_ref() }
    }
}

impl Drop for LockedKey {
    fn drop(&mut self) {
        // SAFETY: self is being dropped, so nothing else refers to the cell.
        unsafe { self.0.0.as_mut() }.zeroize();
        FREE_CELLS.lock().push(Cell(self.0.0));
    }
}

impl fmt::Debug for LockedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Maps another page, keeps all its cells but one on the free list, and returns that one.
fn map_chunk() -> Cell {
    // SAFETY: a new private anonymous mapping at an address of the kernel's choice.
    let base = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            CHUNK_SIZE,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    }
    .expect("a page of memory can be mapped");
    // Failure leaves an ordinary page: RLIMIT_MEMLOCK may be zero in containers, and the mount must still work.
    // SAFETY: the range is the mapping made above.
    unsafe {
        let _ = mlock(base, CHUNK_SIZE);
        let _ = madvise(base, CHUNK_SIZE, Advice::LinuxDontDump);
        let _ = madvise(base, CHUNK_SIZE, Advice::LinuxWipeOnFork);
    }
    let base = base.cast::<[u8; KEY_SIZE]>();
    let mut free = FREE_CELLS.lock();
    let cell = |i: usize| {
        // SAFETY: i is below the number of cells in the chunk, so the pointer stays inside the mapping and is not null.
        Cell(unsafe { NonNull::new_unchecked(base.add(i)) })
    };
    free.extend((1..CHUNK_SIZE / KEY_SIZE).map(cell));
    cell(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_bytes_apart() {
        let keys: Vec<_> = (0..300u32).map(|i| LockedKey::copy_of(&[i as u8; KEY_SIZE])).collect();
        for (i, key) in keys.iter().enumerate() {
            assert_eq!(key.as_bytes(), &[i as u8; KEY_SIZE]);
        }
    }

    #[test]
    fn the_page_is_left_out_of_core_dumps() {
        let key = LockedKey::copy_of(&[7; KEY_SIZE]);
        let address = key.as_bytes().as_ptr() as usize;
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            if let Some((range, _)) = line.split_once(' ')
                && let Some((from, to)) = range.split_once('-')
                && let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
            {
                inside = (from..to).contains(&address);
            }
            if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
                assert!(flags.contains(" dd"), "no DONTDUMP in {flags}");
                assert!(flags.contains(" wf"), "no WIPEONFORK in {flags}");
                return;
            }
        }
        panic!("the key's page is not in smaps");
    }
}
