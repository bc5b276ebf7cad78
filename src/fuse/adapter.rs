//! The ordinary transport: requests that fuser reads from /dev/fuse, and the answers it writes there.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use rustix::fs::FileType as Kind;

use super::{
    asks::Asks,
    kernel::{self, Wanted},
    pool::Pool,
    request::{Answer, Asked, KeptAsked, Operation, Reply, Waiting},
    server::Server,
};
use crate::fs::{Attr, Caller, Listed, ListedPlus, NameIn, SetAttr, SetTime, Time};

/// What fuser calls.
pub struct Adapter {
    server: Arc<Server>,
    /// For what waits on the disk.
    slow: Arc<Pool>,
    /// For what waits for who has a key.
    asks: Asks,
    wanted: Wanted,
}

/// Where fuser takes an answer, by the kind of request.
enum Slot {
    Entry(ReplyEntry),
    Attr(ReplyAttr),
    Empty(ReplyEmpty),
    Data(ReplyData),
    Open(ReplyOpen),
    Create(ReplyCreate),
    Write(ReplyWrite),
    Directory(ReplyDirectory),
    DirectoryPlus(ReplyDirectoryPlus),
    Filesystem(ReplyStatfs),
    Xattr(ReplyXattr),
    Seek(ReplyLseek),
    Ioctl(ReplyIoctl),
}

struct ToFuser {
    slot: Slot,
    time_to_live: Duration,
    opened: FopenFlags,
}

impl Adapter {
    /// Makes an adapter.
    pub fn new(server: Arc<Server>, slow: Arc<Pool>, asks: Asks, wanted: Wanted) -> Self {
        Adapter {
            server,
            slow,
            asks,
            wanted,
        }
    }

    fn serve(&self, request: &Request, ino: INodeNo, operation: Operation<'_>, slot: Slot) {
        self.serve_masked(request, ino, 0, operation, slot);
    }

    fn serve_masked(&self, request: &Request, ino: INodeNo, umask: u32, operation: Operation<'_>, slot: Slot) {
        let asked = asked(request, ino, umask, operation);
        if let Err(waiting) = self.server.serve(&asked, self.reply(slot)) {
            serve_later(self.server.clone(), self.asks.clone(), KeptAsked::new(&asked), waiting);
        }
    }

    /// Leaves a request to the pool if it is slow.
    fn serve_slow(&self, request: &Request, ino: INodeNo, operation: Operation<'static>, slot: Slot) {
        let after_writes = self.server.needs_kernel_write(ino.0, &operation);
        if !after_writes && !self.server.may_wait(&operation) {
            return self.serve(request, ino, operation, slot);
        }
        let (server, asks) = (self.server.clone(), self.asks.clone());
        let job = operation.job();
        let (asked, reply) = (asked(request, ino, 0, operation), self.reply(slot));
        self.slow.run(job, move || {
            if after_writes {
                server.have_kernel_write(asked.ino);
            }
            if let Err(waiting) = server.serve(&asked, reply) {
                serve_later(server, asks, KeptAsked::new(&asked), waiting);
            }
        });
    }

    fn reply(&self, slot: Slot) -> ToFuser {
        ToFuser {
            slot,
            time_to_live: self.server.time_to_live(),
            opened: if self.server.keeps_content() {
                FopenFlags::FOPEN_KEEP_CACHE
            } else {
                FopenFlags::empty()
            },
        }
    }
}

/// Has a key asked for that a request needs, and then the request served again.
fn serve_later(server: Arc<Server>, asks: Asks, kept: KeptAsked, Waiting { ask, reply }: Waiting<ToFuser>) {
    let line = asks.clone();
    line.run(ask.key(), move || {
        let asked = kept.asked();
        match server.ask(&asked, &ask) {
            Err(error) => server.refuse(&asked, error, reply),
            Ok(()) => {
                if let Err(waiting) = server.serve(&asked, reply) {
                    serve_later(server, asks, kept, waiting);
                }
            }
        }
    });
}

fn asked<'r>(request: &Request, ino: INodeNo, umask: u32, operation: Operation<'r>) -> Asked<'r> {
    Asked {
        unique: request.unique().0,
        ino: ino.0,
        caller: Caller {
            uid: request.uid(),
            gid: request.gid(),
            pid: request.pid(),
            umask,
        },
        operation,
    }
}

impl Reply for ToFuser {
    fn add(&mut self, entry: &Listed) -> bool {
        let Slot::Directory(reply) = &mut self.slot else {
            return false;
        };
        let name = OsStr::from_bytes(&entry.name);
        !reply.add(INodeNo(entry.ino), entry.next, file_type(entry.kind), name)
    }

    fn add_plus(&mut self, listed: &ListedPlus) -> bool {
        let Slot::DirectoryPlus(reply) = &mut self.slot else {
            return false;
        };
        let entry = &listed.entry;
        let (attr, generation) = match &listed.found {
            Some(found) => (file_attr(&found.attr), found.node.generation.into()),
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
        let generation = Generation(generation);
        !reply.add(
            INodeNo(entry.ino),
            entry.next,
            name,
            &self.time_to_live,
            &attr,
            generation,
        )
    }

    fn send(self, answer: Answer<'_>) {
        let ttl = &self.time_to_live;
        match (self.slot, answer) {
            (slot, Answer::Failed(errno)) => slot.fail(errno),
            (Slot::Entry(reply), Answer::Entry(found)) => {
                reply.entry(ttl, &file_attr(&found.attr), Generation(found.node.generation.into()));
            }
            (Slot::Entry(reply), Answer::NoEntry) => reply.entry(ttl, &no_entry(), Generation(0)),
            (Slot::Create(reply), Answer::Created(found)) => {
                let generation = Generation(found.node.generation.into());
                reply.created(ttl, &file_attr(&found.attr), generation, FileHandle(0), self.opened);
            }
            (Slot::Attr(reply), Answer::Attr(attr)) => reply.attr(ttl, &file_attr(attr)),
            (Slot::Empty(reply), Answer::Done) => reply.ok(),
            (Slot::Directory(reply), Answer::Done) => reply.ok(),
            (Slot::DirectoryPlus(reply), Answer::Done) => reply.ok(),
            (Slot::Open(reply), Answer::Opened) => reply.opened(FileHandle(0), self.opened),
            (Slot::Data(reply), Answer::Bytes(bytes)) => reply.data(bytes),
            (Slot::Xattr(reply), Answer::Bytes(bytes)) => reply.data(bytes),
            (Slot::Xattr(reply), Answer::Size(size)) => reply.size(size),
            (Slot::Write(reply), Answer::Written(len)) => reply.written(len),
            (Slot::Seek(reply), Answer::Offset(offset)) => reply.offset(offset as i64),
            (Slot::Filesystem(reply), Answer::Filesystem(stat)) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                stat.f_bsize as u32,
                kernel::NAME_MAX,
                stat.f_frsize as u32,
            ),
            (slot, _) => {
                log::error!("an answer of another kind than the question");
                slot.fail(libc::EIO);
            }
        }
    }
}

impl Slot {
    fn fail(self, errno: i32) {
        let errno = Errno::from_i32(errno);
        match self {
            Slot::Entry(reply) => reply.error(errno),
            Slot::Attr(reply) => reply.error(errno),
            Slot::Empty(reply) => reply.error(errno),
            Slot::Data(reply) => reply.error(errno),
            Slot::Open(reply) => reply.error(errno),
            Slot::Create(reply) => reply.error(errno),
            Slot::Write(reply) => reply.error(errno),
            Slot::Directory(reply) => reply.error(errno),
            Slot::DirectoryPlus(reply) => reply.error(errno),
            Slot::Filesystem(reply) => reply.error(errno),
            Slot::Xattr(reply) => reply.error(errno),
            Slot::Seek(reply) => reply.error(errno),
            Slot::Ioctl(reply) => reply.error(errno),
        }
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
        kernel::negotiate(config, &self.wanted)
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes();
        self.serve(request, parent, Operation::LookUp { name }, Slot::Entry(reply));
    }

    fn forget(&self, _: &Request, ino: INodeNo, nlookup: u64) {
        self.server.fs().forget(ino.0, nlookup);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(request, ino, Operation::GetAttr, Slot::Attr(reply));
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
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            has_times_of_changes: kernel::has_times_of_changes(size.is_some(), handle.is_some()),
        };
        self.serve_slow(request, ino, Operation::SetAttr(changes), Slot::Attr(reply));
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.serve(request, ino, Operation::ReadLink, Slot::Data(reply));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        device: u32,
        reply: ReplyEntry,
    ) {
        let name = name.as_bytes();
        let operation = Operation::MakeNode { name, mode, device };
        self.serve_masked(request, parent, umask, operation, Slot::Entry(reply));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let name = name.as_bytes();
        let operation = Operation::MakeDirectory { name, mode };
        self.serve_masked(request, parent, umask, operation, Slot::Entry(reply));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes();
        self.serve(request, parent, Operation::Unlink { name }, Slot::Empty(reply));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes();
        self.serve(request, parent, Operation::RemoveDirectory { name }, Slot::Empty(reply));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let operation = Operation::MakeLink {
            name: name.as_bytes(),
            target: target.as_os_str().as_bytes(),
        };
        self.serve(request, parent, operation, Slot::Entry(reply));
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
        let operation = Operation::Rename {
            name: name.as_bytes(),
            to: NameIn {
                parent: new_parent.0,
                name: new_name.as_bytes(),
            },
            flags: flags.bits(),
        };
        self.serve(request, parent, operation, Slot::Empty(reply));
    }

    fn link(&self, request: &Request, ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let to = NameIn {
            parent: new_parent.0,
            name: new_name.as_bytes(),
        };
        self.serve(request, ino, Operation::Link { to }, Slot::Entry(reply));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.serve(request, ino, Operation::Open { flags: flags.0 }, Slot::Open(reply));
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
        let len = size as usize;
        self.serve(request, ino, Operation::Read { offset, len }, Slot::Data(reply));
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
        let operation = Operation::Write {
            offset,
            data,
            drops_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        self.serve(request, ino, operation, Slot::Write(reply));
    }

    fn flush(&self, request: &Request, ino: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.serve(request, ino, Operation::Flush, Slot::Empty(reply));
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        flags: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let operation = Operation::Release { flags: flags.0 };
        self.serve(request, ino, operation, Slot::Empty(reply));
    }

    fn fsync(&self, request: &Request, ino: INodeNo, _: FileHandle, data_only: bool, reply: ReplyEmpty) {
        self.serve_slow(request, ino, Operation::Sync { data_only }, Slot::Empty(reply));
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.serve(request, ino, Operation::OpenDirectory, Slot::Open(reply));
    }

    fn readdir(&self, request: &Request, ino: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.serve(request, ino, Operation::List { offset }, Slot::Directory(reply));
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.serve(request, ino, Operation::ListPlus { offset }, Slot::DirectoryPlus(reply));
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.serve_slow(request, ino, Operation::SyncDirectory, Slot::Empty(reply));
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.serve(request, ino, Operation::StatFilesystem, Slot::Filesystem(reply));
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
        let name = name.as_bytes();
        let operation = Operation::SetXattr { name, value, flags };
        self.serve(request, ino, operation, Slot::Empty(reply));
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.as_bytes();
        self.serve(request, ino, Operation::GetXattr { name, size }, Slot::Xattr(reply));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.serve(request, ino, Operation::ListXattrs { size }, Slot::Xattr(reply));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes();
        self.serve(request, ino, Operation::RemoveXattr { name }, Slot::Empty(reply));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = name.as_bytes();
        let operation = Operation::Create { name, mode, flags };
        self.serve_masked(request, parent, umask, operation, Slot::Create(reply));
    }

    fn ioctl(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.serve(request, ino, Operation::Ioctl, Slot::Ioctl(reply));
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.serve_slow(
            request,
            ino,
            Operation::Allocate { offset, len, mode },
            Slot::Empty(reply),
        );
    }

    fn lseek(&self, request: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.serve_slow(request, ino, Operation::Seek { offset, whence }, Slot::Seek(reply));
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        ino_out: INodeNo,
        _: FileHandle,
        offset_out: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let to = (ino_out.0, offset_out);
        self.serve_slow(
            request,
            ino,
            Operation::CopyRange { offset, to, len },
            Slot::Write(reply),
        );
    }
}
