//! Turns FUSE requests into calls of [`Fs`], and their results into replies. Decides nothing about files.

use std::{
    cell::RefCell,
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, Notifier, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::FileType as Kind;

use super::{kernel, pool::Pool};
use crate::fs::{Allocate, Attr, Caller, Found, Fs, FsError, FsResult, Leftovers, NameIn, SetAttr, SetTime, Time};

/// A change of size above this is left to the pool: it may free or reserve much.
const SLOW_SIZE_CHANGE: u64 = 1 << 20;

thread_local! {
    /// Plaintext of the read at hand, reused from request to request.
    static PLAIN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Serves FUSE requests from a filesystem.
pub struct Adapter {
    fs: Arc<Fs>,
    pool: Pool,
    time_to_live: Duration,
    activity: Arc<Activity>,
}

/// When the mount was used last, and the way to tell the kernel things unasked.
pub struct Activity {
    started: Instant,
    /// Milliseconds after `started`.
    last_used: AtomicU64,
    notifier: OnceLock<Notifier>,
}

impl Activity {
    /// Returns how long ago the last request came.
    pub fn idle_for(&self) -> Duration {
        let last = Duration::from_millis(self.last_used.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }

    /// Gives the way to the kernel, once there is one.
    pub fn set_notifier(&self, notifier: Notifier) {
        self.notifier.get_or_init(|| notifier);
    }

    fn used(&self) {
        self.last_used
            .store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

impl Adapter {
    /// Makes an adapter; what it shares with the mount's other threads comes with it.
    pub fn new(fs: Arc<Fs>) -> (Self, Arc<Activity>) {
        let activity = Arc::new(Activity {
            started: Instant::now(),
            last_used: AtomicU64::new(0),
            notifier: OnceLock::new(),
        });
        let adapter = Adapter {
            time_to_live: kernel::time_to_live(fs.options().shared),
            fs,
            pool: Pool::new(),
            activity: activity.clone(),
        };
        (adapter, activity)
    }

    fn reply_entry(&self, request: &Request, result: FsResult<Found>, reply: ReplyEntry) {
        match result {
            Ok(found) => reply.entry(
                &self.time_to_live,
                &file_attr(&found.attr),
                Generation(found.node.generation),
            ),
            Err(error) => reply.error(errno(request, "entry", &error)),
        }
    }

    /// Replies first: who asked need not wait for headers to be removed.
    fn reply_then_clear(&self, request: &Request, operation: &str, result: FsResult<Leftovers>, reply: ReplyEmpty) {
        match result {
            Ok(leftovers) => {
                reply.ok();
                self.fs.clear(leftovers);
            }
            Err(error) => reply.error(errno(request, operation, &error)),
        }
    }

    fn open_flags(&self) -> FopenFlags {
        if self.fs.options().shared {
            FopenFlags::empty()
        } else {
            FopenFlags::FOPEN_KEEP_CACHE
        }
    }
}

/// Logs what is worth it, once, here at the edge, and returns what applications see.
fn errno(request: &Request, operation: &str, error: &FsError) -> Errno {
    if error.is_damage() {
        log::error!("request {} ({operation}): {error}", request.unique().0);
    } else {
        log::debug!("request {} ({operation}): {error}", request.unique().0);
    }
    Errno::from_i32(error.errno())
}

fn reply_empty(request: &Request, operation: &str, result: FsResult<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(request, operation, &error)),
    }
}

fn caller(request: &Request) -> Caller {
    masked_caller(request, 0)
}

fn masked_caller(request: &Request, umask: u32) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
        umask,
    }
}

fn at(parent: INodeNo, name: &OsStr) -> NameIn<'_> {
    NameIn {
        parent: parent.0,
        name: name.as_bytes(),
    }
}

fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(time.nanos.into());
    match u64::try_from(time.seconds) {
        Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds) + nanos,
        Err(_) => UNIX_EPOCH - Duration::from_secs(time.seconds.unsigned_abs()) + nanos,
    }
}

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Time {
                seconds: after.as_secs() as i64,
                nanos: after.subsec_nanos(),
            },
            // fuser 0.18 turns seconds -2 and nanoseconds 800,000,000 (1.2 s before 1970) into 2.8 s before: this undoes it.
            Err(before) => Time {
                seconds: -(before.duration().as_secs() as i64),
                nanos: before.duration().subsec_nanos(),
            },
        }),
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharacterDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::RegularFile | Kind::Unknown => FileType::RegularFile,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind()),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// What the kernel keeps for a name that is not there: inode number 0.
fn no_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let options = self.fs.options();
        kernel::negotiate(config, options.shared, options.acl)
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.activity.used();
        match self.fs.look_up(parent.0, name.as_bytes()) {
            // The kernel remembers that there is none, until it makes one itself.
            Err(FsError::NotFound) => reply.entry(&self.time_to_live, &no_entry(), Generation(0)),
            result => self.reply_entry(request, result, reply),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, nlookup: u64) {
        self.fs.forget(ino.0, nlookup);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.activity.used();
        match self.fs.get_attr(ino.0) {
            Ok(attr) => reply.attr(&self.time_to_live, &file_attr(&attr)),
            Err(error) => reply.error(errno(request, "getattr", &error)),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.activity.used();
        let changes = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        let (fs, time_to_live, caller, unique) =
            (self.fs.clone(), self.time_to_live, caller(request), request.unique());
        let serve = move || match fs.set_attr(ino.0, caller, &changes) {
            Ok(attr) => reply.attr(&time_to_live, &file_attr(&attr)),
            Err(error) => {
                log::debug!("request {} (setattr): {error}", unique.0);
                reply.error(Errno::from_i32(error.errno()));
            }
        };
        if size.is_some_and(|size| size > SLOW_SIZE_CHANGE) {
            self.pool.run(serve);
        } else {
            serve();
        }
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.activity.used();
        match self.fs.read_link(ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(request, "readlink", &error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.activity.used();
        let result = self
            .fs
            .make_node(at(parent, name), mode, rdev, masked_caller(request, umask));
        self.reply_entry(request, result, reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.activity.used();
        let result = self
            .fs
            .make_directory(at(parent, name), mode, masked_caller(request, umask));
        self.reply_entry(request, result, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.activity.used();
        self.reply_then_clear(request, "unlink", self.fs.unlink(at(parent, name)), reply);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.activity.used();
        reply_empty(request, "rmdir", self.fs.remove_directory(at(parent, name)), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.activity.used();
        let target = target.as_os_str().as_bytes();
        let result = self.fs.make_link(at(parent, name), target, caller(request));
        self.reply_entry(request, result, reply);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.activity.used();
        let result = self.fs.rename(at(parent, name), at(new_parent, new_name), flags.bits());
        self.reply_then_clear(request, "rename", result, reply);
    }

    fn link(&self, request: &Request, ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        self.activity.used();
        let result = self.fs.link(ino.0, at(new_parent, new_name));
        self.reply_entry(request, result, reply);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.activity.used();
        let for_writing = flags.acc_mode() != OpenAccMode::O_RDONLY || flags.0 & libc::O_TRUNC != 0;
        match self.fs.open(ino.0, for_writing) {
            Ok(()) => reply.opened(FileHandle(0), self.open_flags()),
            Err(error) => reply.error(errno(request, "open", &error)),
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.activity.used();
        PLAIN.with_borrow_mut(|plain| match self.fs.read(ino.0, offset, size as usize, plain) {
            Ok(range) => reply.data(&plain[range]),
            Err(error) => reply.error(errno(request, "read", &error)),
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.activity.used();
        let mut result = self.fs.write(ino.0, offset, data);
        if result.is_ok() && write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
            result = self.fs.drop_privileges(ino.0);
        }
        match result {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(errno(request, "write", &error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Nothing waits in this process; the kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
        self.fs.release(ino.0);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.activity.used();
        let fs = self.fs.clone();
        self.pool.run(move || match fs.sync_file(ino.0, datasync) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(Errno::from_i32(error.errno())),
        });
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.fs.options().shared {
            reply.opened(FileHandle(0), FopenFlags::empty());
        } else {
            // Listings need no handle: the kernel does not ask again, and keeps what it has read.
            reply.error(Errno::ENOSYS);
        }
    }

    fn readdir(&self, request: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.activity.used();
        let result = self.fs.list(ino.0, offset, |entry| {
            !reply.add(
                INodeNo(entry.ino),
                entry.next,
                file_type(entry.kind),
                OsStr::from_bytes(&entry.name),
            )
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(request, "readdir", &error)),
        }
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.activity.used();
        let result = self.fs.list_plus(ino.0, offset, |listed| {
            let entry = &listed.entry;
            let (attr, generation) = match &listed.found {
                Some(found) => (file_attr(&found.attr), found.node.generation),
                None => {
                    // The kernel takes only the number and kind of the two dots.
                    let dots = FileAttr {
                        ino: INodeNo(entry.ino),
                        kind: FileType::Directory,
                        ..no_entry()
                    };
                    (dots, 0)
                }
            };
            let name = OsStr::from_bytes(&entry.name);
            !reply.add(
                INodeNo(entry.ino),
                entry.next,
                name,
                &self.time_to_live,
                &attr,
                Generation(generation),
            )
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(request, "readdirplus", &error)),
        }
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.activity.used();
        let fs = self.fs.clone();
        self.pool.run(move || match fs.sync_directory(ino.0) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(Errno::from_i32(error.errno())),
        });
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.fs.stat_filesystem() {
            Ok(stat) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                stat.f_bsize as u32,
                255,
                stat.f_frsize as u32,
            ),
            Err(error) => reply.error(errno(request, "statfs", &error)),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.activity.used();
        let result = self.fs.set_xattr(ino.0, name.as_bytes(), value, flags, caller(request));
        reply_empty(request, "setxattr", result, reply);
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.activity.used();
        reply_xattr(
            request,
            "getxattr",
            self.fs.get_xattr(ino.0, name.as_bytes()),
            size,
            reply,
        );
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.activity.used();
        let names = self.fs.list_xattrs(ino.0, request.uid() == 0);
        reply_xattr(request, "listxattr", names, size, reply);
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.activity.used();
        reply_empty(
            request,
            "removexattr",
            self.fs.remove_xattr(ino.0, name.as_bytes()),
            reply,
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        self.activity.used();
        match self.fs.create(at(parent, name), mode, masked_caller(request, umask)) {
            Ok(found) => reply.created(
                &self.time_to_live,
                &file_attr(&found.attr),
                Generation(found.node.generation),
                FileHandle(0),
                self.open_flags(),
            ),
            Err(error) => reply.error(errno(request, "create", &error)),
        }
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // None is known here, as on files of filesystems that have no ioctls of their own.
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.activity.used();
        let Some(how) = Allocate::from_mode(mode) else {
            return reply.error(Errno::EOPNOTSUPP);
        };
        let fs = self.fs.clone();
        self.pool.run(move || match fs.allocate(ino.0, offset, length, how) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(Errno::from_i32(error.errno())),
        });
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.activity.used();
        let (Ok(from), libc::SEEK_DATA | libc::SEEK_HOLE) = (u64::try_from(offset), whence) else {
            return reply.error(Errno::EINVAL);
        };
        let (fs, activity) = (self.fs.clone(), self.activity.clone());
        self.pool.run(move || {
            // The kernel may hold pages it has not written yet, and does not write them for this request. Dropping its pages writes them; from a thread
            // of the pool, since the readers must serve those writes.
            if let Some(notifier) = activity.notifier.get()
                && let Err(error) = notifier.inval_inode(ino, 0, 0)
            {
                log::debug!("pages of inode {ino} stay in the kernel: {error}");
            }
            match fs.seek(ino.0, from, whence == libc::SEEK_HOLE) {
                Ok(at) => reply.offset(at as i64),
                Err(error) => reply.error(Errno::from_i32(error.errno())),
            }
        });
    }

    fn copy_file_range(
        &self,
        _: &Request,
        ino_in: INodeNo,
        _: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _: FileHandle,
        offset_out: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.activity.used();
        let fs = self.fs.clone();
        self.pool.run(move || {
            match fs.copy_range((ino_in.0, offset_in), (ino_out.0, offset_out), len) {
                // At most 16 MiB a call, so it fits.
                Ok(copied) => reply.written(copied as u32),
                Err(error) => reply.error(Errno::from_i32(error.errno())),
            }
        });
    }
}

/// Answers as getxattr(2) does: the size when none is given, ERANGE when it is too small.
fn reply_xattr(request: &Request, operation: &str, result: FsResult<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(Errno::ERANGE),
        Err(error) => reply.error(errno(request, operation, &error)),
    }
}
