//! Requests out of, and answers into, the buffers that a ring entry shares with the kernel.
//!
//! The kernel puts a request's fixed part into the operation area and all else, names and data, into the payload; it takes everything that an
//! answer holds from the payload.

use std::time::Duration;

use rustix::fs::FileType;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::abi::{
    self, AttrFields, AttrOut, CopyFileRangeIn, CreateIn, CreateOut, DIRENT_ALIGN, Dirent, EntryOut, FallocateIn,
    FsyncIn, InHeader, LinkIn, LseekIn, LseekOut, MkdirIn, MknodIn, OpenIn, OpenOut, ReadWriteIn, ReleaseIn, RenameIn,
    SetAttrIn, SizeOut, StatfsOut, XattrIn, fattr, opcode,
};
use crate::{
    fs::{Attr, Caller, Found, Listed, ListedPlus, NameIn, SetAttr, SetTime, Time},
    fuse::{
        kernel,
        request::{Answer, Asked, Operation, Reply},
    },
};

/// Reads a request; an errno for one that is not known or not whole.
pub fn decode<'r>(header: &InHeader, fixed: &[u8], payload: &'r [u8]) -> Result<Asked<'r>, i32> {
    let (umask, operation) = operation(header.opcode, fixed, payload)?;
    let ino = match operation {
        Operation::Link { .. } => part::<LinkIn>(fixed)?.node,
        _ => header.nodeid,
    };
    let operation = match operation {
        // The kernel names the new directory in the header, and the file beside it.
        Operation::Link { to } => Operation::Link {
            to: NameIn {
                parent: header.nodeid,
                name: to.name,
            },
        },
        other => other,
    };
    Ok(Asked {
        unique: header.unique,
        ino,
        caller: Caller {
            uid: header.uid,
            gid: header.gid,
            pid: header.pid,
            umask,
        },
        operation,
    })
}

fn operation<'r>(code: u32, fixed: &[u8], payload: &'r [u8]) -> Result<(u32, Operation<'r>), i32> {
    let plain = |operation| Ok((0, operation));
    match code {
        opcode::LOOKUP => plain(Operation::LookUp { name: name(payload)? }),
        opcode::GETATTR => plain(Operation::GetAttr),
        opcode::SETATTR => plain(Operation::SetAttr(changes(&part(fixed)?))),
        opcode::READLINK => plain(Operation::ReadLink),
        opcode::SYMLINK => {
            let (name, target) = two_names(payload)?;
            plain(Operation::MakeLink { name, target })
        }
        opcode::MKNOD => {
            let MknodIn {
                mode, device, umask, ..
            } = part(fixed)?;
            let name = name(payload)?;
            Ok((umask, Operation::MakeNode { name, mode, device }))
        }
        opcode::MKDIR => {
            let MkdirIn { mode, umask } = part(fixed)?;
            let name = name(payload)?;
            Ok((umask, Operation::MakeDirectory { name, mode }))
        }
        opcode::UNLINK => plain(Operation::Unlink { name: name(payload)? }),
        opcode::RMDIR => plain(Operation::RemoveDirectory { name: name(payload)? }),
        opcode::RENAME | opcode::RENAME2 => {
            let RenameIn {
                new_directory, flags, ..
            } = part(fixed)?;
            let (name, new_name) = two_names(payload)?;
            plain(Operation::Rename {
                name,
                to: NameIn {
                    parent: new_directory,
                    name: new_name,
                },
                flags: if code == opcode::RENAME2 { flags } else { 0 },
            })
        }
        opcode::LINK => plain(Operation::Link {
            to: NameIn {
                parent: 0,
                name: name(payload)?,
            },
        }),
        opcode::OPEN => plain(Operation::Open {
            flags: part::<OpenIn>(fixed)?.flags as i32,
        }),
        opcode::CREATE => {
            let CreateIn { flags, mode, umask, .. } = part(fixed)?;
            let (name, flags) = (name(payload)?, flags as i32);
            Ok((umask, Operation::Create { name, mode, flags }))
        }
        opcode::READ => {
            let ReadWriteIn { offset, size, .. } = part(fixed)?;
            let len = size as usize;
            plain(Operation::Read { offset, len })
        }
        opcode::WRITE => {
            let ReadWriteIn {
                offset,
                size,
                own_flags,
                ..
            } = part(fixed)?;
            plain(Operation::Write {
                offset,
                data: payload.get(..size as usize).ok_or(libc::EINVAL)?,
                drops_privileges: own_flags & abi::WRITE_KILL_SUIDGID != 0,
            })
        }
        opcode::FLUSH => plain(Operation::Flush),
        opcode::RELEASE => plain(Operation::Release {
            flags: part::<ReleaseIn>(fixed)?.flags as i32,
        }),
        opcode::FSYNC => plain(Operation::Sync {
            data_only: part::<FsyncIn>(fixed)?.flags & abi::FSYNC_DATA_ONLY != 0,
        }),
        opcode::OPENDIR => plain(Operation::OpenDirectory),
        opcode::READDIR => plain(Operation::List {
            offset: part::<ReadWriteIn>(fixed)?.offset,
        }),
        opcode::READDIRPLUS => plain(Operation::ListPlus {
            offset: part::<ReadWriteIn>(fixed)?.offset,
        }),
        opcode::FSYNCDIR => plain(Operation::SyncDirectory),
        opcode::STATFS => plain(Operation::StatFilesystem),
        opcode::SETXATTR => {
            let XattrIn { size, flags } = part(fixed)?;
            let (name, value) = split_name(payload)?;
            plain(Operation::SetXattr {
                name,
                value: value.get(..size as usize).ok_or(libc::EINVAL)?,
                flags: flags as i32,
            })
        }
        opcode::GETXATTR => plain(Operation::GetXattr {
            name: name(payload)?,
            size: part::<XattrIn>(fixed)?.size,
        }),
        opcode::LISTXATTR => plain(Operation::ListXattrs {
            size: part::<XattrIn>(fixed)?.size,
        }),
        opcode::REMOVEXATTR => plain(Operation::RemoveXattr { name: name(payload)? }),
        opcode::IOCTL => plain(Operation::Ioctl),
        opcode::FALLOCATE => {
            let FallocateIn { offset, len, mode, .. } = part(fixed)?;
            let mode = mode as i32;
            plain(Operation::Allocate { offset, len, mode })
        }
        opcode::LSEEK => {
            let LseekIn { offset, whence, .. } = part(fixed)?;
            let whence = whence as i32;
            plain(Operation::Seek { offset, whence })
        }
        opcode::COPY_FILE_RANGE => {
            let CopyFileRangeIn {
                offset,
                to_node,
                to_offset,
                len,
                ..
            } = part(fixed)?;
            let to = (to_node, to_offset);
            plain(Operation::CopyRange { offset, to, len })
        }
        _ => Err(libc::ENOSYS),
    }
}

/// Returns how many bytes a listing may take.
pub fn listing_size(header: &InHeader, fixed: &[u8]) -> Option<usize> {
    let is_listing = matches!(header.opcode, opcode::READDIR | opcode::READDIRPLUS);
    is_listing.then(|| part::<ReadWriteIn>(fixed).map_or(0, |asked| asked.size as usize))
}

fn part<T: FromBytes>(fixed: &[u8]) -> Result<T, i32> {
    T::read_from_prefix(fixed)
        .map(|(part, _)| part)
        .map_err(|_| libc::EINVAL)
}

/// Takes a name that a zero byte ends off the front.
fn split_name(payload: &[u8]) -> Result<(&[u8], &[u8]), i32> {
    let end = payload.iter().position(|&byte| byte == 0).ok_or(libc::EINVAL)?;
    Ok((&payload[..end], &payload[end + 1..]))
}

fn name(payload: &[u8]) -> Result<&[u8], i32> {
    Ok(split_name(payload)?.0)
}

fn two_names(payload: &[u8]) -> Result<(&[u8], &[u8]), i32> {
    let (first, rest) = split_name(payload)?;
    Ok((first, name(rest)?))
}

fn changes(asked: &SetAttrIn) -> SetAttr {
    let set = |bit| asked.valid & bit != 0;
    let time = |bit, now, seconds, nanos| {
        set(bit).then_some(if set(now) {
            SetTime::Now
        } else {
            SetTime::At(Time { seconds, nanos })
        })
    };
    SetAttr {
        mode: set(fattr::MODE).then_some(asked.mode),
        uid: set(fattr::UID).then_some(asked.uid),
        gid: set(fattr::GID).then_some(asked.gid),
        size: set(fattr::SIZE).then_some(asked.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, asked.atime, asked.atime_nanos),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, asked.mtime, asked.mtime_nanos),
        has_times_of_changes: kernel::has_times_of_changes(set(fattr::SIZE), set(fattr::FH)),
    }
}

/// Puts an answer into a payload.
pub struct Writer<'e> {
    payload: &'e mut [u8],
    /// How much of the payload an answer may take.
    limit: usize,
    time_to_live: Duration,
    keeps_content: bool,
    used: usize,
    /// The errno of the answer, or 0.
    pub error: i32,
}

impl<'e> Writer<'e> {
    /// Starts an answer of at most `limit` bytes.
    pub fn new(payload: &'e mut [u8], limit: usize, time_to_live: Duration, keeps_content: bool) -> Self {
        Writer {
            limit: limit.min(payload.len()),
            payload,
            time_to_live,
            keeps_content,
            used: 0,
            error: libc::EIO,
        }
    }

    /// Returns how many bytes the answer takes.
    pub fn len(&self) -> usize {
        self.used
    }

    fn put(&mut self, bytes: &[u8]) -> bool {
        let end = self.used + bytes.len();
        if end > self.limit {
            return false;
        }
        self.payload[self.used..end].copy_from_slice(bytes);
        self.used = end;
        true
    }

    fn whole(&mut self, answer: &(impl IntoBytes + Immutable)) {
        self.error = if self.put(answer.as_bytes()) { 0 } else { libc::EIO };
    }

    fn entry(&self, found: &Found) -> EntryOut {
        EntryOut {
            node: found.attr.ino,
            generation: found.node.generation.into(),
            ..self.entry_of(attr_fields(&found.attr))
        }
    }

    fn entry_of(&self, attr: AttrFields) -> EntryOut {
        let (valid, nanos) = (self.time_to_live.as_secs(), self.time_to_live.subsec_nanos());
        EntryOut {
            node: 0,
            generation: 0,
            entry_valid: valid,
            attr_valid: valid,
            entry_valid_nanos: nanos,
            attr_valid_nanos: nanos,
            attr,
        }
    }

    fn opened(&self) -> OpenOut {
        OpenOut {
            fh: 0,
            open_flags: if self.keeps_content { abi::OPENED_KEEP_CACHE } else { 0 },
            backing_id: 0,
        }
    }

    /// Adds what every entry of a listing has, and pads it; takes nothing if it has no room.
    fn add_dirent(&mut self, before: &[u8], entry: &Listed) -> bool {
        let dirent = Dirent {
            ino: entry.ino,
            next: entry.next,
            name_len: entry.name.len() as u32,
            kind: kind_bits(entry.kind) >> 12,
        };
        let whole = (size_of::<Dirent>() + entry.name.len()).next_multiple_of(DIRENT_ALIGN);
        if self.used + before.len() + whole > self.limit {
            return false;
        }
        let padding = whole - size_of::<Dirent>() - entry.name.len();
        self.put(before)
            && self.put(dirent.as_bytes())
            && self.put(&entry.name)
            && self.put(&[0; DIRENT_ALIGN][..padding])
    }
}

impl Reply for &mut Writer<'_> {
    fn add(&mut self, entry: &Listed) -> bool {
        self.add_dirent(&[], entry)
    }

    fn add_plus(&mut self, listed: &ListedPlus) -> bool {
        let entry = match &listed.found {
            Some(found) => self.entry(found),
            // The kernel takes only the number and kind of the two dots.
            None => EntryOut::new_zeroed(),
        };
        self.add_dirent(entry.as_bytes(), &listed.entry)
    }

    fn room(&mut self) -> Option<&mut [u8]> {
        Some(&mut self.payload[..self.limit])
    }

    fn send(self, answer: Answer<'_>) {
        match answer {
            Answer::Done => self.error = 0,
            Answer::InRoom(used) => {
                self.used = used.min(self.limit);
                self.error = 0;
            }
            Answer::Entry(found) => self.whole(&self.entry(found)),
            Answer::NoEntry => self.whole(&self.entry_of(AttrFields::new_zeroed())),
            Answer::Created(found) => self.whole(&CreateOut {
                entry: self.entry(found),
                open: self.opened(),
            }),
            Answer::Attr(attr) => self.whole(&AttrOut {
                valid: self.time_to_live.as_secs(),
                valid_nanos: self.time_to_live.subsec_nanos(),
                dummy: 0,
                attr: attr_fields(attr),
            }),
            Answer::Opened => self.whole(&self.opened()),
            Answer::Bytes(bytes) => self.error = if self.put(bytes) { 0 } else { libc::EIO },
            Answer::Size(size) | Answer::Written(size) => self.whole(&SizeOut { size, padding: 0 }),
            Answer::Filesystem(stat) => self.whole(&StatfsOut {
                blocks: stat.f_blocks,
                bfree: stat.f_bfree,
                bavail: stat.f_bavail,
                files: stat.f_files,
                ffree: stat.f_ffree,
                bsize: stat.f_bsize as u32,
                name_max: kernel::NAME_MAX,
                fragment_size: stat.f_frsize as u32,
                padding: 0,
                spare: [0; 6],
            }),
            Answer::Offset(offset) => self.whole(&LseekOut { offset }),
            Answer::Failed(errno) => {
                self.used = 0;
                self.error = errno;
            }
            // Kept by who serves: nothing comes here. If it did, the kernel would ask again.
            Answer::Later(_) => self.error = libc::EINTR,
        }
    }
}

fn attr_fields(attr: &Attr) -> AttrFields {
    AttrFields {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime.seconds,
        mtime: attr.mtime.seconds,
        ctime: attr.ctime.seconds,
        atime_nanos: attr.atime.nanos,
        mtime_nanos: attr.mtime.nanos,
        ctime_nanos: attr.ctime.nanos,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        block_size: attr.blksize,
        flags: 0,
    }
}

fn kind_bits(kind: FileType) -> u32 {
    kind.as_raw_mode()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(opcode: u32) -> InHeader {
        InHeader {
            len: 0,
            opcode,
            unique: 9,
            nodeid: 5,
            uid: 1,
            gid: 2,
            pid: 3,
            total_extlen: 0,
            padding: 0,
        }
    }

    #[test]
    fn names_end_with_a_zero_byte_each() {
        let fixed = RenameIn {
            new_directory: 7,
            flags: 1,
            padding: 0,
        };
        let asked = decode(&header(opcode::RENAME2), fixed.as_bytes(), b"old\0new\0").unwrap();
        match asked.operation {
            Operation::Rename { name, to, flags } => {
                assert_eq!((name, to.parent, to.name, flags), (&b"old"[..], 7, &b"new"[..], 1));
            }
            other => panic!("{other:?}"),
        }
        for broken in [&b"old\0new"[..], b"old", b""] {
            assert_eq!(
                decode(&header(opcode::RENAME2), fixed.as_bytes(), broken).unwrap_err(),
                libc::EINVAL
            );
        }
        let link = LinkIn { node: 77 };
        let asked = decode(&header(opcode::LINK), link.as_bytes(), b"name\0").unwrap();
        assert_eq!(asked.ino, 77);
        assert!(matches!(asked.operation, Operation::Link { to } if to.parent == 5 && to.name == b"name"));
    }

    #[test]
    fn every_request_is_read_or_refused_whatever_it_holds() {
        for code in 0..100 {
            for len in 0..150 {
                let bytes: Vec<u8> = (0..len).map(|i| (i * 37 + code as usize) as u8).collect();
                let _ = decode(&header(code), &bytes, &bytes);
            }
        }
        assert_eq!(decode(&header(999), &[0; 128], &[]).unwrap_err(), libc::ENOSYS);
    }

    #[test]
    fn more_data_than_came_is_refused() {
        let mut write = ReadWriteIn::new_zeroed();
        write.size = 5;
        assert!(decode(&header(opcode::WRITE), write.as_bytes(), b"12345").is_ok());
        assert_eq!(
            decode(&header(opcode::WRITE), write.as_bytes(), b"1234").unwrap_err(),
            libc::EINVAL
        );
    }

    #[test]
    fn entries_of_a_listing_are_aligned_and_stop_at_the_limit() {
        let mut payload = [0xff; 200];
        let mut writer = Writer::new(&mut payload, 70, Duration::from_secs(1), true);
        let entry = |name: &[u8]| Listed {
            name: name.to_vec(),
            ino: 3,
            kind: FileType::Directory,
            next: 4,
        };
        let mut reply = &mut writer;
        assert!(reply.add(&entry(b"abc")));
        assert!(reply.add(&entry(b"abcdefgh")));
        assert!(!reply.add(&entry(b"x")));
        reply.send(Answer::Done);
        assert_eq!((writer.len(), writer.error), (64, 0));
        let (first, _) = Dirent::read_from_prefix(&payload).unwrap();
        assert_eq!((first.ino, first.next, first.name_len, first.kind), (3, 4, 3, 4));
        assert_eq!(&payload[24..32], b"abc\0\0\0\0\0");
    }

    #[test]
    fn an_answer_that_failed_has_no_bytes() {
        let mut payload = [0; 64];
        let mut writer = Writer::new(&mut payload, 64, Duration::ZERO, false);
        (&mut writer).send(Answer::Bytes(b"part"));
        (&mut writer).send(Answer::Failed(libc::EIO));
        assert_eq!((writer.len(), writer.error), (0, libc::EIO));
        (&mut writer).send(Answer::Bytes(&[0; 65]));
        assert_eq!((writer.len(), writer.error), (0, libc::EIO));
    }
}
