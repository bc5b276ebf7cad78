//! Directory handles, and operations on the names in them.

use std::{
    ffi::CStr,
    io,
    mem::MaybeUninit,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{
        self, AtFlags, CWD, FileType, FlockOperation, Gid, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom,
        Stat, Timestamps, Uid, XattrFlags,
    },
    io::Errno,
    path::Arg,
};

use super::{entry::Entry, file::BackingFile};

/// Bytes read of a directory at a time.
const DIRECTORY_BUFFER_SIZE: usize = 64 * 1024;

/// How often a lock that others have is tried.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// Filesystems that keep files on a disk of this machine: ext2 to ext4, XFS, Btrfs, F2FS, bcachefs and ZFS (statfs(2), linux/magic.h).
const DISK_FILESYSTEMS: [u32; 6] = [
    libc::EXT4_SUPER_MAGIC as u32,
    libc::XFS_SUPER_MAGIC as u32,
    libc::BTRFS_SUPER_MAGIC as u32,
    libc::F2FS_SUPER_MAGIC as u32,
    0xca45_1a4e,
    0x2fc1_2fc1,
];

/// An open directory of the backing tree.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
}

/// A name in a directory, as the backing filesystem lists it.
#[derive(Clone, Copy, Debug)]
pub struct RawEntry<'s> {
    /// The name on disk.
    pub name: &'s [u8],
    /// The inode number.
    pub ino: u64,
    /// The kind, where the filesystem tells.
    pub kind: FileType,
    /// Where to go on listing behind this entry.
    pub next: u64,
}

/// What tells a file that was replaced or changed from the one that was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    ino: u64,
    size: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl From<&Stat> for Stamp {
    fn from(stat: &Stat) -> Self {
        Stamp {
            ino: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

impl Dir {
    /// Opens a directory by a path of the user's; symbolic links in it are followed.
    ///
    /// # Errors
    ///
    /// What open(2) gives.
    pub fn open(path: &std::path::Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Dir {
            fd: fs::openat(CWD, path, flags, Mode::empty())?,
        })
    }

    /// Opens a directory inside this one.
    ///
    /// # Errors
    ///
    /// What openat2(2) gives; ELOOP for a symbolic link, EXDEV for another filesystem.
    pub fn open_dir(&self, name: impl Arg + Copy) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Dir {
            fd: self.openat(name, flags, Mode::empty())?,
        })
    }

    /// Opens a directory inside this one that may be the root of another filesystem.
    ///
    /// # Errors
    ///
    /// What openat(2) gives; ELOOP or ENOTDIR for a symbolic link.
    pub fn open_mounted_dir(&self, name: impl Arg) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Dir {
            fd: fs::openat(&self.fd, name, flags, Mode::empty())?,
        })
    }

    /// Returns the directory itself as what a name was found to be.
    ///
    /// # Errors
    ///
    /// What dup(2) gives.
    pub fn as_entry(&self) -> io::Result<Entry> {
        Ok(Entry::new(self.fd.try_clone()?))
    }

    /// Returns to whom what is made here belongs; nothing where the filesystem makes no files without a name.
    pub fn owner_of_new(&self) -> Option<u32> {
        let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
        let unnamed = fs::openat(&self.fd, ".", flags, Mode::RUSR | Mode::WUSR).ok()?;
        fs::fstat(&unnamed).ok().map(|stat| stat.st_uid)
    }

    /// Opens a file inside this directory, for writing too where that is allowed.
    ///
    /// A file whose mode keeps even its owner out is made accessible for the moment of opening: who may do what was decided by the
    /// kernel before the request came here.
    ///
    /// # Errors
    ///
    /// What openat2(2) gives.
    pub fn open_file(&self, name: &str, read_only: bool) -> io::Result<BackingFile> {
        let open = |flags| {
            self.openat(
                name,
                flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK,
                Mode::empty(),
            )
        };
        let fd = if read_only {
            Err(Errno::ROFS)
        } else {
            open(OFlags::RDWR)
        };
        match fd {
            Ok(fd) => Ok(BackingFile::new(fd, true)),
            Err(Errno::ROFS | Errno::TXTBSY) => Ok(BackingFile::new(open(OFlags::RDONLY)?, false)),
            Err(Errno::ACCESS | Errno::PERM) => match self.entry_raw(name).and_then(|entry| entry.open_forced()) {
                Ok(fd) => Ok(BackingFile::new(fd, true)),
                Err(_) => Ok(BackingFile::new(open(OFlags::RDONLY)?, false)),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Returns what has a name, without opening it; the link itself, where it is one.
    ///
    /// # Errors
    ///
    /// What openat2(2) gives.
    pub fn entry(&self, name: impl Arg + Copy) -> io::Result<Entry> {
        Ok(self.entry_raw(name)?)
    }

    fn entry_raw(&self, name: impl Arg + Copy) -> Result<Entry, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.openat(name, flags, Mode::empty()).map(Entry::new)
    }

    /// Creates a file that must not exist yet.
    ///
    /// # Errors
    ///
    /// What openat2(2) gives.
    pub fn create_file(&self, name: impl Arg + Copy, mode: u32) -> io::Result<BackingFile> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.openat(name, flags, Mode::from_raw_mode(mode))?;
        Ok(BackingFile::new(fd, true))
    }

    fn openat(&self, name: impl Arg + Copy, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        if !has_openat2() {
            // A single name cannot leave the directory either, only its filesystem.
            return fs::openat(&self.fd, name, flags, mode);
        }
        loop {
            match fs::openat2(&self.fd, name, flags, mode, resolve) {
                Err(Errno::INTR | Errno::AGAIN) => {}
                result => return result,
            }
        }
    }

    /// Returns a name's attributes; of the link itself, where it is one.
    ///
    /// # Errors
    ///
    /// What fstatat(2) gives.
    pub fn stat(&self, name: &str) -> io::Result<Stat> {
        Ok(self.stat_raw(name)?)
    }

    /// Returns what tells a file from what may be in its place later; nothing where there is none.
    ///
    /// # Errors
    ///
    /// What fstatat(2) gives.
    pub fn stamp(&self, name: &str) -> io::Result<Option<Stamp>> {
        match self.stat_raw(name) {
            Ok(stat) => Ok(Some((&stat).into())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn stat_raw(&self, name: &str) -> Result<Stat, Errno> {
        fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Returns the directory's own attributes.
    ///
    /// # Errors
    ///
    /// What fstat(2) gives.
    pub fn stat_self(&self) -> io::Result<Stat> {
        Ok(fs::fstat(&self.fd)?)
    }

    /// Returns the state of the filesystem the directory is on.
    ///
    /// # Errors
    ///
    /// What fstatvfs(3) gives.
    pub fn statvfs(&self) -> io::Result<fs::StatVfs> {
        Ok(fs::fstatvfs(&self.fd)?)
    }

    /// Tells whether the directory is on a disk of this machine, by a filesystem whose inodes are the same after a crash.
    ///
    /// # Errors
    ///
    /// What fstatfs(2) gives.
    pub fn is_on_disk(&self) -> io::Result<bool> {
        Ok(DISK_FILESYSTEMS.contains(&(fs::fstatfs(&self.fd)?.f_type as u32)))
    }

    /// Tells whether changes of names are on disk in the order in which they were made, also where some are synced.
    ///
    /// Not on Btrfs: what fsync(2) of a file writes to the tree log may have a name gone, and in the same directory one there that went before it.
    pub fn keeps_order(&self) -> bool {
        !fs::fstatfs(&self.fd).is_ok_and(|stat| stat.f_type as u32 == libc::BTRFS_SUPER_MAGIC as u32)
    }

    /// Tells whether a change of names is on disk only with all contents that were handed to the disk before it.
    ///
    /// So it is where blocks, sizes and names are changed in one log, whose next commit has the disk empty its cache first: a page is written back only when
    /// its block and the file's size are in that log (`ext4_end_io_end` in fs/ext4/page-io.c, `xfs_end_ioend` in fs/xfs/xfs_aops.c).
    pub fn keeps_contents_first(&self) -> bool {
        const KINDS: [u32; 2] = [libc::EXT4_SUPER_MAGIC as u32, libc::XFS_SUPER_MAGIC as u32];
        fs::fstatfs(&self.fd).is_ok_and(|stat| KINDS.contains(&(stat.f_type as u32)))
    }

    /// Reads a small file whole; nothing when it does not exist.
    ///
    /// # Errors
    ///
    /// EFBIG when it is larger than `max` bytes, EIO when it is no regular file, or what the reads give.
    pub fn read_small(&self, name: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match self.openat(name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            // A symbolic link, or a socket.
            Err(Errno::LOOP | Errno::NXIO) => return Err(Errno::IO.into()),
            Err(error) => return Err(error.into()),
        };
        let stat = fs::fstat(&fd)?;
        // Someone put something else in its place: damage, whatever a read of it would say.
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::IO.into());
        }
        let size = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
        if size > max {
            return Err(Errno::FBIG.into());
        }
        // What is added meanwhile was not there when the file was opened.
        let mut bytes = vec![0; size];
        let len = super::Storage::read_at(&BackingFile::new(fd, false), &mut bytes, 0)?;
        bytes.truncate(len);
        Ok(Some(bytes))
    }

    /// Creates a small file whole. It is not durable yet.
    ///
    /// A file of that name is replaced; an error leaves none behind.
    ///
    /// # Errors
    ///
    /// What creating or writing gives.
    pub fn write_small(&self, name: &str, bytes: &[u8]) -> io::Result<BackingFile> {
        let file = match self.create_file(name, 0o600) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.unlink(name)?;
                self.create_file(name, 0o600)?
            }
            result => result?,
        };
        if let Err(short) = super::Storage::write_at(&file, bytes, 0) {
            let _ = self.unlink(name);
            return Err(short.error);
        }
        Ok(file)
    }

    /// Replaces a small file by a new version, durably: a crash leaves the old one or the new one.
    ///
    /// # Errors
    ///
    /// What any step gives; the old version stands then.
    pub fn replace(&self, name: &str, temporary: &str, bytes: &[u8]) -> io::Result<()> {
        let file = self.write_replacement(name, temporary, bytes)?;
        self.put_in_place(name, temporary, &file)
    }

    /// As [`replace`](Self::replace); where there is no old version, the new one belongs to the owner of something else.
    ///
    /// # Errors
    ///
    /// As for [`replace`](Self::replace).
    pub fn replace_for(&self, name: &str, temporary: &str, bytes: &[u8], owner: &Stat) -> io::Result<()> {
        let is_new = self.stat_raw(name).is_err();
        let file = self.write_replacement(name, temporary, bytes)?;
        if is_new {
            // As in a replacement: it matters where root works on what is someone else's.
            let _ = file.chown(owner.st_uid, owner.st_gid);
        }
        self.put_in_place(name, temporary, &file)
    }

    fn put_in_place(&self, name: &str, temporary: &str, file: &BackingFile) -> io::Result<()> {
        let replaced = file
            .sync_all()
            .and_then(|()| self.rename(temporary, self, name, RenameFlags::empty()));
        if replaced.is_err() {
            let _ = self.unlink(temporary);
        }
        replaced?;
        self.sync()
    }

    /// Writes the coming version of a small file under a temporary name, with the owner and mode of the present one. It is not durable yet.
    ///
    /// # Errors
    ///
    /// What creating or writing gives; no temporary file is left then.
    pub fn write_replacement(&self, name: &str, temporary: &str, bytes: &[u8]) -> io::Result<BackingFile> {
        let file = self.write_small(temporary, bytes)?;
        if let Ok(old) = self.stat_raw(name)
            && FileType::from_raw_mode(old.st_mode) == FileType::RegularFile
        {
            // Root may work on a vault of someone else's, who must be able to read the new version. Who is not root has no owner to give.
            let _ = file.chown(old.st_uid, old.st_gid);
            let _ = fs::fchmod(file.fd(), Mode::from_raw_mode(old.st_mode & 0o777));
        }
        Ok(file)
    }

    /// Makes the directory's names durable.
    ///
    /// # Errors
    ///
    /// What fsync(2) gives, or syncfs(2) where the filesystem syncs no directory by itself.
    pub fn sync(&self) -> io::Result<()> {
        match fs::fsync(&self.fd) {
            Err(Errno::INVAL) => self.sync_filesystem(),
            synced => Ok(synced?),
        }
    }

    /// Tells whether [`sync_filesystem`](Self::sync_filesystem) does what it says: with FUSE the kernel does not ask the program behind it.
    pub fn can_sync_filesystem(&self) -> bool {
        /// FUSE_SUPER_MAGIC of linux/magic.h.
        const FUSE: u32 = 0x6573_5546;
        fs::fstatfs(&self.fd).is_ok_and(|stat| stat.f_type as u32 != FUSE)
    }

    /// Makes everything on the directory's filesystem durable.
    ///
    /// # Errors
    ///
    /// What syncfs(2) gives.
    pub fn sync_filesystem(&self) -> io::Result<()> {
        Ok(fs::syncfs(&self.fd)?)
    }

    /// Locks the directory against other processes, without waiting.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when another process holds a lock that excludes this one.
    pub fn lock(&self, shared: bool) -> io::Result<()> {
        let operation = if shared {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        Ok(fs::flock(&self.fd, operation)?)
    }

    /// Locks the directory against all other processes, and waits so long for one that has it.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when another process still holds a lock then.
    pub fn lock_within(&self, wait: Duration) -> io::Result<()> {
        let start = Instant::now();
        loop {
            match self.lock(false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && start.elapsed() < wait => {
                    thread::sleep(LOCK_POLL);
                }
                locked => return locked,
            }
        }
    }

    /// Gives the lock back.
    ///
    /// # Errors
    ///
    /// What flock(2) gives.
    pub fn unlock(&self) -> io::Result<()> {
        Ok(fs::flock(&self.fd, FlockOperation::Unlock)?)
    }

    /// Removes a file.
    ///
    /// # Errors
    ///
    /// What unlinkat(2) gives.
    pub fn unlink(&self, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    ///
    /// What unlinkat(2) gives.
    pub fn rmdir(&self, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?)
    }

    /// Makes a directory.
    ///
    /// # Errors
    ///
    /// What mkdirat(2) gives.
    pub fn mkdir(&self, name: impl Arg, mode: u32) -> io::Result<()> {
        Ok(fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode))?)
    }

    /// Makes a special file.
    ///
    /// # Errors
    ///
    /// What mknodat(2) gives.
    pub fn mknod(&self, name: impl Arg, mode: u32, device: u64) -> io::Result<()> {
        let kind = FileType::from_raw_mode(mode);
        Ok(fs::mknodat(
            &self.fd,
            name,
            kind,
            Mode::from_raw_mode(mode & 0o7777),
            device,
        )?)
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    ///
    /// What symlinkat(2) gives.
    pub fn symlink(&self, target: impl Arg, name: impl Arg) -> io::Result<()> {
        Ok(fs::symlinkat(target, &self.fd, name)?)
    }

    /// Reads what a symbolic link on disk points to.
    ///
    /// # Errors
    ///
    /// What readlinkat(2) gives.
    pub fn readlink(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(fs::readlinkat(&self.fd, name, Vec::new())?.into_bytes())
    }

    /// Makes another name for a file.
    ///
    /// # Errors
    ///
    /// What linkat(2) gives.
    pub fn link(&self, name: &str, to: &Dir, to_name: &str) -> io::Result<()> {
        Ok(fs::linkat(&self.fd, name, &to.fd, to_name, AtFlags::empty())?)
    }

    /// Renames, by renameat2(2) where flags are given.
    ///
    /// # Errors
    ///
    /// What renameat2(2) gives.
    pub fn rename(&self, name: &str, to: &Dir, to_name: &str, flags: RenameFlags) -> io::Result<()> {
        if flags.is_empty() {
            return Ok(fs::renameat(&self.fd, name, &to.fd, to_name)?);
        }
        Ok(fs::renameat_with(&self.fd, name, &to.fd, to_name, flags)?)
    }

    /// Renames to a name that must be free. Where the filesystem cannot refuse to replace, nobody else may use the directories meanwhile.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`, or what renameat2(2) gives.
    pub fn rename_to_free(&self, name: &str, to: &Dir, to_name: &str) -> io::Result<()> {
        match fs::renameat_with(&self.fd, name, &to.fd, to_name, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match to.stat_raw(to_name) {
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                Err(Errno::NOENT) => self.rename(name, to, to_name, RenameFlags::empty()),
                Err(error) => Err(error.into()),
            },
            renamed => Ok(renamed?),
        }
    }

    /// Sets the directory's own times.
    ///
    /// # Errors
    ///
    /// What futimens(3) gives.
    pub fn set_times_self(&self, times: &Timestamps) -> io::Result<()> {
        Ok(fs::futimens(&self.fd, times)?)
    }

    /// Puts the directory's time of modification back to what it was, where this process may.
    ///
    /// # Errors
    ///
    /// What futimens(3) gives.
    pub fn keep_modified(&self, before: &Stat) -> io::Result<()> {
        super::file::set_modified(&self.fd, super::file::mtime_of(before))
    }

    /// Changes the directory's own mode.
    ///
    /// # Errors
    ///
    /// What fchmod(2) gives.
    pub fn chmod_self(&self, mode: u32) -> io::Result<()> {
        Ok(fs::fchmod(&self.fd, Mode::from_raw_mode(mode & 0o7777))?)
    }

    /// Changes the directory's own owner or group.
    ///
    /// # Errors
    ///
    /// What fchown(2) gives.
    pub fn chown_self(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        Ok(fs::fchown(&self.fd, uid.map(Uid::from_raw), gid.map(Gid::from_raw))?)
    }

    /// Reads an extended attribute as stored. `name` of `.` is the directory itself.
    ///
    /// # Errors
    ///
    /// What lgetxattr(2) gives.
    pub fn get_xattr(&self, name: &str, attribute: &str) -> io::Result<Vec<u8>> {
        let path = proc_path(self.fd.as_fd(), name);
        with_growing_buffer(|buffer| fs::lgetxattr(path.as_c_str(), attribute, buffer))
    }

    /// Stores an extended attribute.
    ///
    /// # Errors
    ///
    /// What lsetxattr(2) gives.
    pub fn set_xattr(&self, name: &str, attribute: &str, value: &[u8], flags: XattrFlags) -> io::Result<()> {
        Ok(fs::lsetxattr(
            proc_path(self.fd.as_fd(), name).as_c_str(),
            attribute,
            value,
            flags,
        )?)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    ///
    /// What lremovexattr(2) gives.
    pub fn remove_xattr(&self, name: &str, attribute: &str) -> io::Result<()> {
        Ok(fs::lremovexattr(
            proc_path(self.fd.as_fd(), name).as_c_str(),
            attribute,
        )?)
    }

    /// Returns the names of the extended attributes as stored.
    ///
    /// # Errors
    ///
    /// What llistxattr(2) gives.
    pub fn list_xattrs(&self, name: &str) -> io::Result<Vec<Vec<u8>>> {
        let path = proc_path(self.fd.as_fd(), name);
        Ok(names_in(&with_growing_buffer(|buffer| {
            fs::llistxattr(path.as_c_str(), buffer)
        })?))
    }

    /// Starts listing the directory.
    ///
    /// # Errors
    ///
    /// What openat2(2) gives.
    pub fn stream(&self) -> io::Result<DirStream> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // Opened anew, since the position belongs to the open file, which a duplicate would share.
        let fd = fs::openat(&self.fd, ".", flags, Mode::empty())?;
        Ok(DirStream {
            fd,
            start: 0,
            names: Vec::new(),
            entries: Vec::new(),
            given: 0,
        })
    }

    /// Lists the whole directory: calls `act` for each entry, of which there may be millions.
    ///
    /// # Errors
    ///
    /// What getdents64(2) gives.
    pub fn each_entry(&self, mut act: impl FnMut(RawEntry<'_>)) -> io::Result<()> {
        let mut stream = self.stream()?;
        while let Some(entry) = stream.next_entry()? {
            act(entry);
        }
        Ok(())
    }
}

/// Tells whether there is openat2(2): not in kernels before 5.6, and in containers that forbid it. What it says of a file does not count.
fn has_openat2() -> bool {
    static HAS_IT: OnceLock<bool> = OnceLock::new();
    *HAS_IT.get_or_init(|| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let tried = fs::openat2(CWD, "/", flags, Mode::empty(), ResolveFlags::empty());
        !matches!(tried, Err(Errno::NOSYS | Errno::PERM))
    })
}

/// Returns a path to a name in an open directory that no rename of the directory can redirect.
pub(super) fn proc_path(fd: BorrowedFd<'_>, name: &str) -> std::ffi::CString {
    let path = match name {
        "" => format!("/proc/self/fd/{}", fd.as_raw_fd()),
        name => format!("/proc/self/fd/{}/{name}", fd.as_raw_fd()),
    };
    std::ffi::CString::new(path).expect("names on disk have no zero byte")
}

/// Takes apart what listxattr(2) gives.
pub(super) fn names_in(list: &[u8]) -> Vec<Vec<u8>> {
    let names = list.split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names.map(<[u8]>::to_vec).collect()
}

/// Calls a function that fills a buffer, with a larger one until it fits.
pub(super) fn with_growing_buffer(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> io::Result<Vec<u8>> {
    let mut size = 1024;
    loop {
        let mut buffer = vec![0; size];
        match call(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            // 64 KiB is the most Linux lets an attribute or a list of names have.
            Err(Errno::RANGE) if size < 1 << 17 => size *= 8,
            Err(error) => return Err(error.into()),
        }
    }
}

/// A listing of a directory that can go on from any entry's position.
#[derive(Debug)]
pub struct DirStream {
    fd: OwnedFd,
    /// Where the first of the entries that were read ahead stands.
    start: u64,
    /// The names of these entries, one behind the other.
    names: Vec<u8>,
    entries: Vec<ReadAhead>,
    /// How many of them were given out.
    given: usize,
}

/// An entry that was read ahead.
#[derive(Debug)]
struct ReadAhead {
    name: Range<usize>,
    ino: u64,
    kind: FileType,
    next: u64,
}

impl DirStream {
    /// Goes to a position: 0, or an entry's `next`.
    ///
    /// # Errors
    ///
    /// What lseek(2) gives.
    pub fn seek(&mut self, position: u64) -> io::Result<()> {
        fs::seek(&self.fd, SeekFrom::Start(position))?;
        self.read_ahead_from(position);
        Ok(())
    }

    /// Returns where the next entry stands.
    pub fn position(&self) -> u64 {
        let last = self.given.checked_sub(1).map(|last| self.entries[last].next);
        last.unwrap_or(self.start)
    }

    /// Returns the next entry; nothing at the end.
    ///
    /// # Errors
    ///
    /// What getdents64(2) gives.
    pub fn next_entry(&mut self) -> io::Result<Option<RawEntry<'_>>> {
        if self.given == self.entries.len() {
            self.fill()?;
        }
        let Some(entry) = self.entries.get(self.given) else {
            return Ok(None);
        };
        self.given += 1;
        Ok(Some(RawEntry {
            name: &self.names[entry.name.clone()],
            ino: entry.ino,
            kind: entry.kind,
            next: entry.next,
        }))
    }

    /// Takes the entry back that was given out last: it comes next again, without being read again.
    pub fn step_back(&mut self) {
        self.given = self.given.saturating_sub(1);
    }

    fn read_ahead_from(&mut self, position: u64) {
        self.start = position;
        self.names.clear();
        self.entries.clear();
        self.given = 0;
    }

    /// Reads ahead as much as one system call gives.
    fn fill(&mut self) -> io::Result<()> {
        self.read_ahead_from(self.position());
        let mut buffer = Box::<[u8]>::new_uninit_slice(DIRECTORY_BUFFER_SIZE);
        let mut raw = RawDir::new(&self.fd, &mut buffer[..] as &mut [MaybeUninit<u8>]);
        while let Some(entry) = raw.next() {
            let entry = entry?;
            let name: &CStr = entry.file_name();
            let begin = self.names.len();
            self.names.extend_from_slice(name.to_bytes());
            self.entries.push(ReadAhead {
                name: begin..self.names.len(),
                ino: entry.ino(),
                kind: entry.file_type(),
                next: entry.next_entry_cookie(),
            });
            if raw.is_buffer_empty() {
                break;
            }
        }
        Ok(())
    }
}
