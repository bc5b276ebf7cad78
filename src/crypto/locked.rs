//! Memory for long-lived keys: locked against swapping, left out of core dumps, absent or wiped in forked children, wiped on release.
//!
//! Where the kernel has it, this is secret memory (memfd_secret(2)): the kernel itself has no way to it but through this process, so that no other
//! process, root's included, reads it by ptrace or /proc/PID/mem, and a machine with such memory does not hibernate. Elsewhere, and where the limit on
//! locked memory is used up, it is ordinary memory that is locked as far as the limit goes; see mlock(2) and madvise(2).

use std::{
    ffi::c_void,
    fmt, io,
    os::fd::{FromRawFd, OwnedFd},
    ptr::NonNull,
};

use parking_lot::Mutex;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap, mmap_anonymous};
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
    let base = map_secret().unwrap_or_else(|_| map_locked());
    let base = base.cast::<[u8; KEY_SIZE]>();
    let mut free = FREE_CELLS.lock();
    let cell = |i: usize| {
        // SAFETY: i is below the number of cells in the chunk, so the pointer stays inside the mapping and is not null.
        Cell(unsafe { NonNull::new_unchecked(base.add(i)) })
    };
    free.extend((1..CHUNK_SIZE / KEY_SIZE).map(cell));
    cell(0)
}

/// Maps a page of secret memory.
fn map_secret() -> io::Result<*mut c_void> {
    // SAFETY: the call takes no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::FD_CLOEXEC) };
    let fd = match i32::try_from(fd) {
        // SAFETY: the kernel has just given this descriptor to nobody else.
        Ok(fd) if fd >= 0 => unsafe { OwnedFd::from_raw_fd(fd) },
        _ => return Err(io::Error::last_os_error()),
    };
    rustix::fs::ftruncate(&fd, CHUNK_SIZE as u64)?;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice. Whoever else had the descriptor could change it, and it is closed here.
    let base = unsafe { mmap(std::ptr::null_mut(), CHUNK_SIZE, access, MapFlags::SHARED, &fd, 0) }?;
    // It is shared memory, of which a child would not have a copy but this very page.
    // SAFETY: the range is the mapping made above.
    unsafe { madvise(base, CHUNK_SIZE, Advice::LinuxDontFork) }?;
    Ok(base)
}

/// Maps a page of ordinary memory and protects it as far as possible.
fn map_locked() -> *mut c_void {
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
    base
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

    /// Returns the flags of the mapping at an address, as proc_pid_smaps(5) has them.
    fn flags_at(address: usize) -> String {
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
                return flags.to_owned();
            }
        }
        panic!("the page is not in smaps");
    }

    #[test]
    fn the_page_of_a_key_is_left_out_of_core_dumps_and_children() {
        let key = LockedKey::copy_of(&[7; KEY_SIZE]);
        let flags = flags_at(key.as_bytes().as_ptr() as usize);
        assert!(flags.contains(" dd"), "no DONTDUMP in {flags}");
        let in_children = flags.contains(" wf") || flags.contains(" dc");
        assert!(in_children, "neither WIPEONFORK nor DONTFORK in {flags}");
    }

    #[test]
    fn without_secret_memory_a_page_is_locked() {
        let flags = flags_at(map_locked() as usize);
        for wanted in [" dd", " wf", " lo"] {
            assert!(flags.contains(wanted), "no {wanted} in {flags}");
        }
    }

    #[test]
    fn secret_memory_is_not_to_be_read_from_outside() {
        use std::os::unix::fs::FileExt;

        let Ok(page) = map_secret() else {
            eprintln!("SKIPPED: this kernel has no memfd_secret(2)");
            return;
        };
        let flags = flags_at(page as usize);
        assert!([" dd", " lo", " dc"].iter().all(|flag| flags.contains(flag)), "{flags}");
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let mut byte = [0];
        assert!(memory.read_at(&mut byte, page as u64).is_err(), "read {byte:?}");
    }
}
