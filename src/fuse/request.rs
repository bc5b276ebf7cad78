//! A request of the kernel and the answer to it, whichever transport carries them.

use std::sync::Arc;

use rustix::fs::StatVfs;

use super::pool::Job;
use crate::{
    fs::{Attr, Caller, Found, Listed, ListedPlus, NameIn, SetAttr},
    vault::own_keys::Ask,
};

/// A request.
#[derive(Debug)]
pub struct Asked<'r> {
    /// The kernel's number for it.
    pub unique: u64,
    /// The inode it is about; for an operation on a name, the directory.
    pub ino: u64,
    /// Who asks.
    pub caller: Caller,
    /// What is asked.
    pub operation: Operation<'r>,
}

/// What can be asked, with the names of linux/fuse.h in its own words.
#[derive(Debug)]
pub enum Operation<'r> {
    /// LOOKUP
    LookUp { name: &'r [u8] },
    /// GETATTR
    GetAttr,
    /// SETATTR
    SetAttr(SetAttr),
    /// READLINK
    ReadLink,
    /// SYMLINK
    MakeLink { name: &'r [u8], target: &'r [u8] },
    /// MKNOD
    MakeNode { name: &'r [u8], mode: u32, device: u32 },
    /// MKDIR
    MakeDirectory { name: &'r [u8], mode: u32 },
    /// UNLINK
    Unlink { name: &'r [u8] },
    /// RMDIR
    RemoveDirectory { name: &'r [u8] },
    /// RENAME2, with the flags of renameat2(2)
    Rename { name: &'r [u8], to: NameIn<'r>, flags: u32 },
    /// LINK, of the inode
    Link { to: NameIn<'r> },
    /// OPEN, with the flags of open(2)
    Open { flags: i32 },
    /// CREATE, with the flags of open(2)
    Create { name: &'r [u8], mode: u32, flags: i32 },
    /// READ
    Read { offset: u64, len: usize },
    /// WRITE
    Write {
        offset: u64,
        data: &'r [u8],
        drops_privileges: bool,
    },
    /// FLUSH
    Flush,
    /// RELEASE, with the flags of open(2)
    Release { flags: i32 },
    /// FSYNC
    Sync { data_only: bool },
    /// OPENDIR
    OpenDirectory,
    /// READDIR
    List { offset: u64 },
    /// READDIRPLUS
    ListPlus { offset: u64 },
    /// FSYNCDIR
    SyncDirectory,
    /// STATFS
    StatFilesystem,
    /// SETXATTR, with the flags of setxattr(2)
    SetXattr {
        name: &'r [u8],
        value: &'r [u8],
        flags: i32,
    },
    /// GETXATTR; size 0 asks for the size
    GetXattr { name: &'r [u8], size: u32 },
    /// LISTXATTR; size 0 asks for the size
    ListXattrs { size: u32 },
    /// REMOVEXATTR
    RemoveXattr { name: &'r [u8] },
    /// FALLOCATE, with the mode of fallocate(2)
    Allocate { offset: u64, len: u64, mode: i32 },
    /// LSEEK, for data and holes
    Seek { offset: i64, whence: i32 },
    /// COPY_FILE_RANGE, from the inode to another one at an offset
    CopyRange { offset: u64, to: (u64, u64), len: u64 },
    /// IOCTL
    Ioctl,
}

/// A change of size above this may free or reserve much.
const SLOW_SIZE_CHANGE: u64 = 1 << 20;

/// Reads and writes of more bytes than this take longer to seal or open than to hand to another thread.
const SMALL_TRANSFER_MAX: usize = 32 << 10;

impl Operation<'_> {
    /// Tells whether it may wait on the disk for long, so that who takes the kernel's requests should not wait for it. None of these borrows.
    pub fn is_slow(&self) -> bool {
        match self {
            Operation::Sync { .. }
            | Operation::SyncDirectory
            | Operation::Allocate { .. }
            | Operation::Seek { .. }
            | Operation::CopyRange { .. } => true,
            Operation::SetAttr(changes) => changes.size.is_some_and(|size| size > SLOW_SIZE_CHANGE),
            _ => false,
        }
    }

    /// Returns what it is for those that may wait on the disk.
    pub fn job(&self) -> Job {
        match self {
            Operation::Sync { .. } | Operation::SyncDirectory => Job::Sync,
            _ => Job::Long,
        }
    }

    /// Tells whether it seals or opens much data.
    pub fn is_bulk(&self) -> bool {
        match self {
            Operation::Read { len, .. } => *len > SMALL_TRANSFER_MAX,
            Operation::Write { data, .. } => data.len() > SMALL_TRANSFER_MAX,
            _ => false,
        }
    }

    /// Returns a word for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Operation::LookUp { .. } => "lookup",
            Operation::GetAttr => "getattr",
            Operation::SetAttr(_) => "setattr",
            Operation::ReadLink => "readlink",
            Operation::MakeLink { .. } => "symlink",
            Operation::MakeNode { .. } => "mknod",
            Operation::MakeDirectory { .. } => "mkdir",
            Operation::Unlink { .. } => "unlink",
            Operation::RemoveDirectory { .. } => "rmdir",
            Operation::Rename { .. } => "rename",
            Operation::Link { .. } => "link",
            Operation::Open { .. } => "open",
            Operation::Create { .. } => "create",
            Operation::Read { .. } => "read",
            Operation::Write { .. } => "write",
            Operation::Flush => "flush",
            Operation::Release { .. } => "release",
            Operation::Sync { .. } => "fsync",
            Operation::OpenDirectory => "opendir",
            Operation::List { .. } => "readdir",
            Operation::ListPlus { .. } => "readdirplus",
            Operation::SyncDirectory => "fsyncdir",
            Operation::StatFilesystem => "statfs",
            Operation::SetXattr { .. } => "setxattr",
            Operation::GetXattr { .. } => "getxattr",
            Operation::ListXattrs { .. } => "listxattr",
            Operation::RemoveXattr { .. } => "removexattr",
            Operation::Allocate { .. } => "fallocate",
            Operation::Seek { .. } => "lseek",
            Operation::CopyRange { .. } => "copy_file_range",
            Operation::Ioctl => "ioctl",
        }
    }
}

impl Operation<'_> {
    /// Returns the bytes that it borrows: names, or what is written.
    fn bytes(&self) -> [&[u8]; 2] {
        match self {
            Operation::LookUp { name }
            | Operation::MakeNode { name, .. }
            | Operation::MakeDirectory { name, .. }
            | Operation::Unlink { name }
            | Operation::RemoveDirectory { name }
            | Operation::Create { name, .. }
            | Operation::GetXattr { name, .. }
            | Operation::RemoveXattr { name } => [name, b""],
            Operation::MakeLink { name, target } => [name, target],
            Operation::Rename { name, to, .. } => [name, to.name],
            Operation::Link { to } => [to.name, b""],
            Operation::Write { data, .. } => [data, b""],
            Operation::SetXattr { name, value, .. } => [name, value],
            Operation::GetAttr
            | Operation::SetAttr(_)
            | Operation::ReadLink
            | Operation::Open { .. }
            | Operation::Read { .. }
            | Operation::Flush
            | Operation::Release { .. }
            | Operation::Sync { .. }
            | Operation::OpenDirectory
            | Operation::List { .. }
            | Operation::ListPlus { .. }
            | Operation::SyncDirectory
            | Operation::StatFilesystem
            | Operation::ListXattrs { .. }
            | Operation::Allocate { .. }
            | Operation::Seek { .. }
            | Operation::CopyRange { .. }
            | Operation::Ioctl => [b"", b""],
        }
    }

    /// Returns the same with other bytes, which are equal ones elsewhere.
    fn with_bytes<'b>(&self, [first, second]: [&'b [u8]; 2]) -> Operation<'b> {
        let to = |to: &NameIn<'_>, name| NameIn {
            parent: to.parent,
            name,
        };
        match *self {
            Operation::LookUp { .. } => Operation::LookUp { name: first },
            Operation::GetAttr => Operation::GetAttr,
            Operation::SetAttr(changes) => Operation::SetAttr(changes),
            Operation::ReadLink => Operation::ReadLink,
            Operation::MakeLink { .. } => Operation::MakeLink {
                name: first,
                target: second,
            },
            Operation::MakeNode { mode, device, .. } => Operation::MakeNode {
                name: first,
                mode,
                device,
            },
            Operation::MakeDirectory { mode, .. } => Operation::MakeDirectory { name: first, mode },
            Operation::Unlink { .. } => Operation::Unlink { name: first },
            Operation::RemoveDirectory { .. } => Operation::RemoveDirectory { name: first },
            Operation::Rename { to: at, flags, .. } => Operation::Rename {
                name: first,
                to: to(&at, second),
                flags,
            },
            Operation::Link { to: at } => Operation::Link { to: to(&at, first) },
            Operation::Open { flags } => Operation::Open { flags },
            Operation::Create { mode, flags, .. } => Operation::Create {
                name: first,
                mode,
                flags,
            },
            Operation::Read { offset, len } => Operation::Read { offset, len },
            Operation::Write {
                offset,
                drops_privileges,
                ..
            } => Operation::Write {
                offset,
                data: first,
                drops_privileges,
            },
            Operation::Flush => Operation::Flush,
            Operation::Release { flags } => Operation::Release { flags },
            Operation::Sync { data_only } => Operation::Sync { data_only },
            Operation::OpenDirectory => Operation::OpenDirectory,
            Operation::List { offset } => Operation::List { offset },
            Operation::ListPlus { offset } => Operation::ListPlus { offset },
            Operation::SyncDirectory => Operation::SyncDirectory,
            Operation::StatFilesystem => Operation::StatFilesystem,
            Operation::SetXattr { flags, .. } => Operation::SetXattr {
                name: first,
                value: second,
                flags,
            },
            Operation::GetXattr { size, .. } => Operation::GetXattr { name: first, size },
            Operation::ListXattrs { size } => Operation::ListXattrs { size },
            Operation::RemoveXattr { .. } => Operation::RemoveXattr { name: first },
            Operation::Allocate { offset, len, mode } => Operation::Allocate { offset, len, mode },
            Operation::Seek { offset, whence } => Operation::Seek { offset, whence },
            Operation::CopyRange { offset, to, len } => Operation::CopyRange { offset, to, len },
            Operation::Ioctl => Operation::Ioctl,
        }
    }
}

/// A request with its bytes, for who answers it when those that came with it are gone.
#[derive(Debug)]
pub struct KeptAsked {
    /// The request, without them.
    asked: Asked<'static>,
    bytes: [Box<[u8]>; 2],
}

impl KeptAsked {
    /// Copies what a request borrows.
    pub fn new(asked: &Asked<'_>) -> Self {
        KeptAsked {
            asked: asked.with_operation(asked.operation.with_bytes([b"", b""])),
            bytes: asked.operation.bytes().map(Box::from),
        }
    }

    /// Returns the request.
    pub fn asked(&self) -> Asked<'_> {
        let [first, second] = &self.bytes;
        self.asked
            .with_operation(self.asked.operation.with_bytes([first, second]))
    }
}

impl Asked<'_> {
    fn with_operation<'o>(&self, operation: Operation<'o>) -> Asked<'o> {
        Asked {
            unique: self.unique,
            ino: self.ino,
            caller: self.caller,
            operation,
        }
    }
}

/// What the kernel is told.
pub enum Answer<'a> {
    /// It is done, or for a listing, that was all.
    Done,
    /// An entry, looked up or made.
    Entry(&'a Found),
    /// There is none, and the kernel may remember that.
    NoEntry,
    /// An entry, made and opened.
    Created(&'a Found),
    /// Attributes.
    Attr(&'a Attr),
    /// Opened.
    Opened,
    /// Bytes: content, a link's target, an attribute's value.
    Bytes(&'a [u8]),
    /// So many bytes, which are in the answer's room already.
    InRoom(usize),
    /// How many bytes an attribute takes.
    Size(u32),
    /// How many bytes were written.
    Written(u32),
    /// The state of the filesystem.
    Filesystem(&'a StatVfs),
    /// An offset in a file.
    Offset(u64),
    /// It failed, with this errno.
    Failed(i32),
    /// Nothing yet: this is to be asked first, and it is to be served again.
    Later(Arc<Ask>),
}

/// An answer that waits until who has a key was asked.
pub struct Waiting<R> {
    /// What is to be asked.
    pub ask: Arc<Ask>,
    /// Where the answer will go.
    pub reply: R,
}

/// Passes answers on, and keeps one that comes later.
pub struct NowOrLater<'w, R> {
    /// Where answers go.
    pub reply: R,
    /// What waits.
    pub waiting: &'w mut Option<Waiting<R>>,
}

impl<R: Reply> Reply for NowOrLater<'_, R> {
    fn add(&mut self, entry: &Listed) -> bool {
        self.reply.add(entry)
    }

    fn add_plus(&mut self, entry: &ListedPlus) -> bool {
        self.reply.add_plus(entry)
    }

    fn room(&mut self) -> Option<&mut [u8]> {
        self.reply.room()
    }

    fn send(self, answer: Answer<'_>) {
        let reply = self.reply;
        match answer {
            Answer::Later(ask) => *self.waiting = Some(Waiting { ask, reply }),
            answer => reply.send(answer),
        }
    }
}

/// Where an answer goes.
pub trait Reply {
    /// Adds an entry to a listing; tells whether there was room.
    fn add(&mut self, entry: &Listed) -> bool;

    /// Adds an entry with attributes to a listing; tells whether there was room.
    fn add_plus(&mut self, entry: &ListedPlus) -> bool;

    /// Returns where the bytes of the answer can be put by who has them, if the transport has such a place.
    fn room(&mut self) -> Option<&mut [u8]> {
        None
    }

    /// Sends the answer.
    fn send(self, answer: Answer<'_>);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_kept_with_its_bytes() {
        let caller = Caller {
            uid: 1,
            gid: 2,
            pid: 3,
            umask: 0o22,
        };
        let (names, data) = ([b"from".to_vec(), b"to".to_vec()], vec![7; 9]);
        let to = NameIn {
            parent: 5,
            name: &names[1],
        };
        let operations = [
            Operation::Create {
                name: &names[0],
                mode: 0o600,
                flags: 3,
            },
            Operation::Rename {
                name: &names[0],
                to,
                flags: 1,
            },
            Operation::Link { to },
            Operation::Write {
                offset: 4,
                data: &data,
                drops_privileges: true,
            },
            Operation::Open { flags: 2 },
        ];
        for operation in operations {
            let asked = Asked {
                unique: 8,
                ino: 9,
                caller,
                operation,
            };
            let kept = KeptAsked::new(&asked);
            assert_eq!(format!("{:?}", kept.asked()), format!("{asked:?}"));
        }
    }
}
