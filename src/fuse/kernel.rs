//! What the kernel is asked for: capabilities of the connection, threads, and the limits of the mount's backing device info.

use std::{fs, io, path::Path, thread, time::Duration};

use fuser::{INodeNo, InitFlags, KernelConfig, Notifier};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::{MountOptions, memory};

/// What a mount needs of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Something else may change the vault: keep little.
    pub shared: bool,
    /// Access control lists.
    pub acl: bool,
    /// Requests come over io_uring.
    pub uring: bool,
}

/// Takes from the kernel what it has of a file's content, which it writes first where that is newer. Waits for these writes, which others must serve.
pub fn drop_pages(notifier: &Notifier, inode: u64) {
    if let Err(error) = notifier.inval_inode(INodeNo(inode), 0, 0) {
        // It has forgotten the inode meanwhile, and with it the pages.
        log::debug!("pages of inode {inode} stay in the kernel: {error}");
    }
}

/// The longest name, in bytes.
pub const NAME_MAX: u32 = 255;

/// The largest write in one request: what the kernel's default of fs.fuse.max_pages_limit allows, 256 pages.
pub const MAX_WRITE: u32 = 1 << 20;

/// Requests the kernel may have under way in the background, readahead and writeback.
const MAX_BACKGROUND: u16 = 64;

/// How far the kernel reads ahead, in KiB. INIT cannot raise it above 128.
const READ_AHEAD_KIB: u32 = 1024;

/// Percent of dirtyable memory that the mount may fill; FUSE's own limit is 1.
const DIRTY_RATIO: u32 = 40;

/// How long the kernel may keep names and attributes, while nothing else changes the vault.
const FOREVER: Duration = Duration::from_secs(86_400);

/// How long it may keep them while something else may.
const SHARED: Duration = Duration::from_secs(1);

/// Returns how long the kernel may keep names and attributes.
pub fn time_to_live(shared: bool) -> Duration {
    if shared { SHARED } else { FOREVER }
}

/// Returns the largest read in one request, in bytes: a readahead window is split into several, so that threads share it.
pub const MAX_READ: u32 = 256 << 10;

/// FUSE_OVER_IO_URING of linux/fuse.h, which fuser does not know.
const OVER_IO_URING: InitFlags = InitFlags::from_bits_retain(1 << 41);

/// The kernel checks access by lists, and leaves callers' masks to the filesystem, since a directory's default list takes their place.
const ACCESS_LISTS: InitFlags = InitFlags::FUSE_POSIX_ACL.union(InitFlags::FUSE_DONT_MASK);

/// Tells whether the times in a SETATTR are the kernel's own: with a size, of the cut; with a handle, of writes that it has sent. utimensat(2) gives neither.
pub fn has_times_of_changes(with_size: bool, with_handle: bool) -> bool {
    with_size || with_handle
}

/// Asks for what makes FUSE fast, as far as the kernel has it, and for access control lists if they are wanted.
///
/// # Errors
///
/// A kernel without access control lists.
pub fn negotiate(config: &mut KernelConfig, how: &Wanted) -> io::Result<()> {
    let mut wanted = InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_DO_READDIRPLUS
        | InitFlags::FUSE_READDIRPLUS_AUTO
        | InitFlags::FUSE_ASYNC_DIO
        | InitFlags::FUSE_HANDLE_KILLPRIV_V2
        | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
    wanted |= if how.shared {
        InitFlags::FUSE_AUTO_INVAL_DATA
    } else {
        InitFlags::FUSE_WRITEBACK_CACHE
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
    };
    if how.acl {
        wanted |= ACCESS_LISTS;
        if !config.capabilities().contains(ACCESS_LISTS) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel's FUSE has no access control lists",
            ));
        }
    }
    if how.uring {
        wanted |= OVER_IO_URING;
    }
    // All that the kernel has is asked for at once: what it does not have it must not be asked for.
    let offered = config.capabilities();
    if let Err(missing) = config.add_capabilities(wanted & offered) {
        log::warn!("the kernel took back what it offered: {missing:?}");
    }
    // These setters only refuse what no constant here is.
    let _ = config.set_max_write(MAX_WRITE);
    let _ = config.set_max_background(MAX_BACKGROUND);
    let _ = config
        .set_max_readahead(MAX_WRITE)
        .map_err(|most| config.set_max_readahead(most));
    Ok(())
}

/// Returns the session's threads; with rings, /dev/fuse brings little more than FORGET, of which one thread gets many at a time.
pub fn session_config(options: &MountOptions, uring: bool) -> fuser::Config {
    let processors = thread::available_parallelism().map_or(2, usize::from);
    let mut config = fuser::Config::default();
    // One more than can run, for the one that waits on the disk.
    let best = if uring { 1 } else { (processors + 1).clamp(2, 16) };
    config.n_threads = Some(options.threads.unwrap_or(best));
    config.clone_fd = true;
    config
}

/// Raises limits that keep FUSE mounts slow and that only root may raise; skips them quietly otherwise. That of dirty memory stays in a cgroup with little
/// memory of its own.
pub fn tune(mountpoint: &Path) {
    // Without asking the filesystem, which is not served yet.
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let Ok(stat) = statx(CWD, mountpoint, flags, StatxFlags::empty()) else {
        return;
    };
    let bdi = format!("/sys/class/bdi/{}:{}", stat.stx_dev_major, stat.stx_dev_minor);
    let mut values = vec![("read_ahead_kb", READ_AHEAD_KIB)];
    match memory::limit() {
        // What is not written yet would fill it, and leave nothing for who has to write it.
        Some(limit) if limit < memory::total() / 2 => {
            log::debug!("dirty memory stays limited: this process may have {limit} bytes")
        }
        _ => values.extend([("strict_limit", 0), ("max_ratio", DIRTY_RATIO)]),
    }
    for (file, value) in values {
        if let Err(error) = fs::write(format!("{bdi}/{file}"), value.to_string()) {
            log::debug!("{bdi}/{file} stays as it is: {error}");
        }
    }
}
