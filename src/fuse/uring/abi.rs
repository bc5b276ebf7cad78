//! The bytes of FUSE requests and answers, as linux/fuse.h (protocol 7.42) defines them: only what the rings carry.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Operation codes.
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const IOCTL: u32 = 39;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
}

/// Tells whether the answer to a request may be longer than a few fields.
pub fn has_long_answer(code: u32) -> bool {
    matches!(
        code,
        opcode::READ | opcode::READDIR | opcode::READDIRPLUS | opcode::READLINK | opcode::GETXATTR | opcode::LISTXATTR
    )
}

/// Fields of [`SetAttrIn`] that count.
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// In `write_flags`: set-user-id and set-group-id are to be cleared.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;

/// In `fsync_flags`: content only.
pub const FSYNC_DATA_ONLY: u32 = 1 << 0;

/// In `open_flags` of an answer: what the kernel has of the content stays good.
pub const OPENED_KEEP_CACHE: u32 = 1 << 1;

/// `struct fuse_in_header`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct InHeader {
    pub len: u32,
    pub opcode: u32,
    pub unique: u64,
    pub nodeid: u64,
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    pub total_extlen: u16,
    pub padding: u16,
}

/// `struct fuse_out_header`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct OutHeader {
    pub len: u32,
    pub error: i32,
    pub unique: u64,
}

/// `struct fuse_uring_ent_in_out`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct RingEntryInOut {
    pub flags: u64,
    pub commit_id: u64,
    pub payload_size: u32,
    pub padding: u32,
    pub reserved: u64,
}

/// `struct fuse_uring_cmd_req`
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
#[repr(C)]
pub struct RingCommand {
    pub flags: u64,
    pub commit_id: u64,
    pub queue: u16,
    pub padding: [u8; 6],
}

/// `struct fuse_setattr_in`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct SetAttrIn {
    pub valid: u32,
    pub padding: u32,
    pub fh: u64,
    pub size: u64,
    pub lock_owner: u64,
    pub atime: i64,
    pub mtime: i64,
    pub ctime: i64,
    pub atime_nanos: u32,
    pub mtime_nanos: u32,
    pub ctime_nanos: u32,
    pub mode: u32,
    pub unused4: u32,
    pub uid: u32,
    pub gid: u32,
    pub unused5: u32,
}

/// `struct fuse_mknod_in`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct MknodIn {
    pub mode: u32,
    pub device: u32,
    pub umask: u32,
    pub padding: u32,
}

/// `struct fuse_mkdir_in`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct MkdirIn {
    pub mode: u32,
    pub umask: u32,
}

/// `struct fuse_rename2_in`; `struct fuse_rename_in` is its first field.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct RenameIn {
    pub new_directory: u64,
    pub flags: u32,
    pub padding: u32,
}

/// `struct fuse_link_in`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct LinkIn {
    pub node: u64,
}

/// `struct fuse_open_in`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct OpenIn {
    pub flags: u32,
    pub open_flags: u32,
}

/// The beginning of `struct fuse_release_in`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct ReleaseIn {
    pub handle: u64,
    pub flags: u32,
    pub release_flags: u32,
}

/// `struct fuse_create_in`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct CreateIn {
    pub flags: u32,
    pub mode: u32,
    pub umask: u32,
    pub open_flags: u32,
}

/// `struct fuse_read_in` and, but for the meaning of the flags, `struct fuse_write_in`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct ReadWriteIn {
    pub fh: u64,
    pub offset: u64,
    pub size: u32,
    pub own_flags: u32,
    pub lock_owner: u64,
    pub flags: u32,
    pub padding: u32,
}

/// `struct fuse_fsync_in`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct FsyncIn {
    pub fh: u64,
    pub flags: u32,
    pub padding: u32,
}

/// `struct fuse_setxattr_in` without its extension, and `struct fuse_getxattr_in` with padding for flags
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct XattrIn {
    pub size: u32,
    pub flags: u32,
}

/// `struct fuse_lseek_in`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct LseekIn {
    pub fh: u64,
    pub offset: i64,
    pub whence: u32,
    pub padding: u32,
}

/// `struct fuse_fallocate_in`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct FallocateIn {
    pub fh: u64,
    pub offset: u64,
    pub len: u64,
    pub mode: u32,
    pub padding: u32,
}

/// `struct fuse_copy_file_range_in`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct CopyFileRangeIn {
    pub fh: u64,
    pub offset: u64,
    pub to_node: u64,
    pub to_fh: u64,
    pub to_offset: u64,
    pub len: u64,
    pub flags: u64,
}

/// `struct fuse_attr`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct AttrFields {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: i64,
    pub mtime: i64,
    pub ctime: i64,
    pub atime_nanos: u32,
    pub mtime_nanos: u32,
    pub ctime_nanos: u32,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub block_size: u32,
    pub flags: u32,
}

/// `struct fuse_attr_out`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct AttrOut {
    pub valid: u64,
    pub valid_nanos: u32,
    pub dummy: u32,
    pub attr: AttrFields,
}

/// `struct fuse_entry_out`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct EntryOut {
    pub node: u64,
    pub generation: u64,
    pub entry_valid: u64,
    pub attr_valid: u64,
    pub entry_valid_nanos: u32,
    pub attr_valid_nanos: u32,
    pub attr: AttrFields,
}

/// `struct fuse_open_out`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct OpenOut {
    pub fh: u64,
    pub open_flags: u32,
    pub backing_id: i32,
}

/// The answer to CREATE: an entry, then how it was opened.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct CreateOut {
    pub entry: EntryOut,
    pub open: OpenOut,
}

/// `struct fuse_write_out` and `struct fuse_getxattr_out`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct SizeOut {
    pub size: u32,
    pub padding: u32,
}

/// `struct fuse_lseek_out`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct LseekOut {
    pub offset: u64,
}

/// `struct fuse_statfs_out`
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct StatfsOut {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub name_max: u32,
    pub fragment_size: u32,
    pub padding: u32,
    pub spare: [u32; 6],
}

/// `struct fuse_dirent`, before the name
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct Dirent {
    pub ino: u64,
    pub next: u64,
    pub name_len: u32,
    pub kind: u32,
}

/// What entries of a listing are aligned to.
pub const DIRENT_ALIGN: usize = 8;

// Sizes of linux/fuse.h: a field too many would shift all that follow.
const _: () = {
    assert!(size_of::<InHeader>() == 40);
    assert!(size_of::<OutHeader>() == 16);
    assert!(size_of::<RingEntryInOut>() == 32);
    assert!(size_of::<RingCommand>() == 24);
    assert!(size_of::<SetAttrIn>() == 88);
    assert!(size_of::<ReadWriteIn>() == 40);
    assert!(size_of::<CopyFileRangeIn>() == 56);
    assert!(size_of::<AttrFields>() == 88);
    assert!(size_of::<AttrOut>() == 104);
    assert!(size_of::<EntryOut>() == 128);
    assert!(size_of::<StatfsOut>() == 80);
    assert!(size_of::<Dirent>() == 24);
};
