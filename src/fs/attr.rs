//! Attributes of files as applications see them.

use rustix::fs::{FileType, Stat};

use crate::{
    format::{layout::Layout, link},
    units::CipherSize,
};

/// A point in time: seconds since 1970, perhaps before it, and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds, below a thousand million.
    pub nanos: u32,
}

/// The size every directory shows, in bytes.
const DIRECTORY_SIZE: u64 = 4096;

/// A file's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The inode number, the same as the node's.
    pub ino: u64,
    /// Bytes of plaintext; for a link the length of its target.
    pub size: u64,
    /// Units of 512 bytes that the data file takes.
    pub blocks: u64,
    /// Last read.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of attributes.
    pub ctime: Time,
    /// Kind and permissions, as in `st_mode`.
    pub mode: u32,
    /// Names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The device that a special file stands for.
    pub rdev: u32,
    /// The size of reads and writes that suits the file.
    pub blksize: u32,
}

impl Attr {
    /// Makes attributes from those of the file on disk, under node number `ino`.
    pub fn new(stat: &Stat, ino: u64, layout: &Layout) -> Self {
        let size = stat.st_size as u64;
        Attr {
            ino,
            size: match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => layout.plain_size(CipherSize(size)).0,
                FileType::Symlink => link::inline_len(size as usize).unwrap_or(0) as u64,
                // On some filesystems it counts the names, hushfs's own among them.
                FileType::Directory => DIRECTORY_SIZE,
                _ => size,
            },
            blocks: stat.st_blocks as u64,
            atime: Time {
                seconds: stat.st_atime,
                nanos: stat.st_atime_nsec as u32,
            },
            mtime: Time {
                seconds: stat.st_mtime,
                nanos: stat.st_mtime_nsec as u32,
            },
            ctime: Time {
                seconds: stat.st_ctime,
                nanos: stat.st_ctime_nsec as u32,
            },
            mode: stat.st_mode,
            nlink: stat.st_nlink as u32,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: stat.st_rdev as u32,
            blksize: layout.block_size() as u32,
        }
    }

    /// Returns the kind of file.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The present.
    Now,
    /// This one.
    At(Time),
}

/// Attributes to change; those that are `None` stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permissions.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size of the plaintext in bytes.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<SetTime>,
    /// Last change of content.
    pub mtime: Option<SetTime>,
    /// No application asked for the times: they are when the kernel saw what it has stored here, or cut.
    pub has_times_of_changes: bool,
}

impl SetAttr {
    /// Makes the changes to attributes that are in memory only; a size is not one of them.
    pub fn apply(&self, stat: &mut Stat) {
        if let Some(mode) = self.mode {
            stat.st_mode = stat.st_mode & libc::S_IFMT | mode & 0o7777;
        }
        stat.st_uid = self.uid.unwrap_or(stat.st_uid);
        stat.st_gid = self.gid.unwrap_or(stat.st_gid);
        if let Some(SetTime::At(time)) = self.atime {
            (stat.st_atime, stat.st_atime_nsec) = (time.seconds, time.nanos.into());
        }
        if let Some(SetTime::At(time)) = self.mtime {
            (stat.st_mtime, stat.st_mtime_nsec) = (time.seconds, time.nanos.into());
        }
    }
}
