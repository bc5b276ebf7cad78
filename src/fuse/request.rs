//! A request of the kernel and the answer to it, whichever transport carries them.

use rustix::fs::StatVfs;

use crate::fs::{Attr, Caller, Found, Listed, ListedPlus, NameIn, SetAttr};

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
    /// CREATE
    Create { name: &'r [u8], mode: u32 },
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
    /// RELEASE
    Release,
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
            Operation::Release => "release",
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
