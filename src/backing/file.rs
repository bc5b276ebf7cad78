//! One data file's bytes: the seam under the content engine.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{self, AtFlags, FallocateFlags, Gid, SeekFrom, Stat, StatxFlags, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use super::dir::{names_in, with_growing_buffer};

/// A write that failed, and how far it came.
#[derive(Debug)]
pub struct ShortWrite {
    /// Bytes that were written before the error.
    pub written: usize,
    /// What stopped it.
    pub error: io::Error,
}

/// What the content engine needs of a file.
///
/// Small on purpose: tests implement it in memory, and cut it at every step.
pub trait Storage: Send + Sync {
    /// Returns the size in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Returns the inode number.
    fn inode(&self) -> io::Result<u64>;

    /// Tells whether the file has no bytes at all.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads until `buf` is full or the file ends; returns how many bytes there were.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buf`.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), ShortWrite>;

    /// Writes all of `buf` and sets the time of last modification, to what it was where none is given: for what is no change of content.
    fn write_with_mtime(&self, buf: &[u8], offset: u64, mtime: Option<Timespec>) -> io::Result<()>;

    /// Sets the time of last modification, which no application asked for; it stays that of the last write where only the owner may set it.
    fn set_mtime(&self, mtime: Timespec) -> io::Result<()>;

    /// Has all that was written so far become durable before what is written next does.
    fn announce(&self) -> io::Result<()> {
        self.sync_data()
    }

    /// Makes durable what was only announced.
    fn sync_announced(&self) -> io::Result<()> {
        Ok(())
    }

    /// Cuts or extends with a hole.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Frees a range, which then reads as zeros.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Reserves space for a range without changing the size.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Returns the offset of the first byte at or after `offset` that is not in a hole; `None` when there is none.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;

    /// Returns the offset of the first hole at or after `offset`, the end of the file where there is none before it.
    fn next_hole(&self, offset: u64) -> io::Result<u64>;

    /// Makes the content durable, with the size.
    fn sync_data(&self) -> io::Result<()>;

    /// Has what was written handed to the disk, which may keep it in its cache: it is durable once a name that is changed afterwards is, where
    /// [`Dir::keeps_contents_first`](super::Dir::keeps_contents_first).
    fn write_back(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Which inode a file is, whatever its name: a copy is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilePlace {
    /// The inode number.
    pub inode: u64,
    /// When the inode was made, in nanoseconds since 1970; 0 where the filesystem does not know.
    pub born: u64,
}

/// A data file in the backing directory.
#[derive(Debug)]
pub struct BackingFile {
    fd: OwnedFd,
    writable: bool,
}

impl BackingFile {
    /// Takes an open file.
    pub fn new(fd: OwnedFd, writable: bool) -> Self {
        BackingFile { fd, writable }
    }

    /// Returns the descriptor.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Tells whether the file was opened for writing.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Returns the file's attributes.
    ///
    /// # Errors
    ///
    /// What fstat(2) gives.
    pub fn stat(&self) -> io::Result<Stat> {
        Ok(fs::fstat(&self.fd)?)
    }

    /// Changes the file's owner and group.
    ///
    /// # Errors
    ///
    /// What fchown(2) gives.
    pub fn chown(&self, uid: u32, gid: u32) -> io::Result<()> {
        Ok(fs::fchown(
            &self.fd,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
        )?)
    }

    /// Returns which inode the file is.
    ///
    /// # Errors
    ///
    /// What fstat(2) gives.
    pub fn place(&self) -> io::Result<FilePlace> {
        let inode = self.stat()?.st_ino;
        let born = born(self.fd.as_fd());
        Ok(FilePlace { inode, born })
    }

    /// Makes content and attributes durable.
    ///
    /// # Errors
    ///
    /// What fsync(2) gives.
    pub fn sync_all(&self) -> io::Result<()> {
        Ok(fs::fsync(&self.fd)?)
    }

    /// Returns an extended attribute.
    ///
    /// # Errors
    ///
    /// What fgetxattr(2) gives.
    pub fn get_xattr(&self, attribute: &str) -> io::Result<Vec<u8>> {
        with_growing_buffer(|buffer| fs::fgetxattr(&self.fd, attribute, buffer))
    }

    /// Stores an extended attribute.
    ///
    /// # Errors
    ///
    /// What fsetxattr(2) gives.
    pub fn set_xattr(&self, attribute: &str, value: &[u8], flags: XattrFlags) -> io::Result<()> {
        Ok(fs::fsetxattr(&self.fd, attribute, value, flags)?)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    ///
    /// What fremovexattr(2) gives.
    pub fn remove_xattr(&self, attribute: &str) -> io::Result<()> {
        Ok(fs::fremovexattr(&self.fd, attribute)?)
    }

    /// Returns the names of the extended attributes as stored.
    ///
    /// # Errors
    ///
    /// What flistxattr(2) gives.
    pub fn list_xattrs(&self) -> io::Result<Vec<Vec<u8>>> {
        let names = with_growing_buffer(|buffer| fs::flistxattr(&self.fd, buffer))?;
        Ok(names_in(&names))
    }
}

/// The longest that two changes of a file may be apart and have one time: that of FAT. Of ext4 with small inodes it is a second.
const TICK_SECONDS_MAX: i64 = 2;

/// Tells whether a file was changed so long before a time, in seconds since 1970, that a change from then on gives it another time of change.
pub fn is_settled(stat: &Stat, at: u64) -> bool {
    i64::try_from(at).is_ok_and(|at| stat.st_ctime.saturating_add(TICK_SECONDS_MAX) <= at)
}

/// Returns when a file was last modified.
pub fn mtime_of(stat: &Stat) -> Timespec {
    Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: stat.st_mtime_nsec as _,
    }
}

/// Sets the time of last modification, which no application asked for; it stays that of the last write where only the owner may set it.
pub(super) fn set_modified(fd: impl AsFd, mtime: Timespec) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: fs::UTIME_OMIT,
        },
        last_modification: mtime,
    };
    match fs::futimens(fd, &times) {
        // Who may write a file need not own it.
        Err(Errno::PERM) => Ok(()),
        result => Ok(result?),
    }
}

impl Storage for BackingFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.stat()?.st_size as u64)
    }

    fn inode(&self) -> io::Result<u64> {
        Ok(self.stat()?.st_ino)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match rustix::io::pread(&self.fd, &mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), ShortWrite> {
        let mut written = 0;
        while written < buf.len() {
            match rustix::io::pwrite(&self.fd, &buf[written..], offset + written as u64) {
                Ok(0) => {
                    let error = io::ErrorKind::WriteZero.into();
                    return Err(ShortWrite { written, error });
                }
                Ok(n) => written += n,
                Err(Errno::INTR) => {}
                Err(error) => {
                    let error = error.into();
                    return Err(ShortWrite { written, error });
                }
            }
        }
        Ok(())
    }

    fn write_with_mtime(&self, buf: &[u8], offset: u64, mtime: Option<Timespec>) -> io::Result<()> {
        let mtime = match mtime {
            Some(mtime) => mtime,
            None => mtime_of(&self.stat()?),
        };
        self.write_at(buf, offset).map_err(|short| short.error)?;
        self.set_mtime(mtime)
    }

    fn set_mtime(&self, mtime: Timespec) -> io::Result<()> {
        set_modified(&self.fd, mtime)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Ok(fs::ftruncate(&self.fd, len)?)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fs::fallocate(&self.fd, flags, offset, len) {
            Err(Errno::OPNOTSUPP) => write_zeros(self, offset, len),
            result => Ok(result?),
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        Ok(fs::fallocate(&self.fd, FallocateFlags::KEEP_SIZE, offset, len)?)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match fs::seek(&self.fd, SeekFrom::Data(offset)) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            // Not every filesystem knows its holes: then everything is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok((offset < self.len()?).then_some(offset)),
            Err(error) => Err(error.into()),
        }
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        match fs::seek(&self.fd, SeekFrom::Hole(offset)) {
            Ok(at) => Ok(at),
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => self.len(),
            Err(error) => Err(error.into()),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(fs::fdatasync(&self.fd)?)
    }

    fn write_back(&self) -> io::Result<()> {
        let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        // SAFETY: it takes no pointer, and the descriptor is open as long as this lives.
        match unsafe { libc::sync_file_range(self.fd.as_raw_fd(), 0, 0, flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl<T: Storage> Storage for std::sync::Arc<T> {
    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }

    fn inode(&self) -> io::Result<u64> {
        (**self).inode()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), ShortWrite> {
        (**self).write_at(buf, offset)
    }

    fn write_with_mtime(&self, buf: &[u8], offset: u64, mtime: Option<Timespec>) -> io::Result<()> {
        (**self).write_with_mtime(buf, offset, mtime)
    }

    fn set_mtime(&self, mtime: Timespec) -> io::Result<()> {
        (**self).set_mtime(mtime)
    }

    fn announce(&self) -> io::Result<()> {
        (**self).announce()
    }

    fn sync_announced(&self) -> io::Result<()> {
        (**self).sync_announced()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        (**self).set_len(len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        (**self).punch(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        (**self).allocate(offset, len)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        (**self).next_data(offset)
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        (**self).next_hole(offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        (**self).sync_data()
    }

    fn write_back(&self) -> io::Result<()> {
        (**self).write_back()
    }
}

/// Returns when an inode was made, in nanoseconds since 1970; 0 where that is unknown.
pub(super) fn born(fd: BorrowedFd<'_>) -> u64 {
    // Kernels before 4.11 do not have the call, and not every filesystem has the time.
    fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME)
        .ok()
        .filter(|stat| stat.stx_mask & StatxFlags::BTIME.bits() != 0)
        .map_or(0, |stat| {
            let seconds = u64::try_from(stat.stx_btime.tv_sec).unwrap_or(0);
            seconds
                .saturating_mul(1_000_000_000)
                .saturating_add(stat.stx_btime.tv_nsec.into())
        })
}

/// Writes zeros over a range inside the file.
fn write_zeros(storage: &impl Storage, offset: u64, len: u64) -> io::Result<()> {
    const CHUNK: u64 = 64 * 1024;
    let zeros = [0; CHUNK as usize];
    let end = (offset + len).min(storage.len()?);
    let mut at = offset;
    while at < end {
        let step = CHUNK.min(end - at);
        storage
            .write_at(&zeros[..step as usize], at)
            .map_err(|short| short.error)?;
        at += step;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::{process::geteuid, thread::set_thread_uid};

    use super::*;

    /// Runs `f` as a user who has no file.
    fn as_other_user<R: Send>(f: impl FnOnce() -> R + Send) -> R {
        let run = || {
            set_thread_uid(Uid::from_raw(65534)).unwrap();
            f()
        };
        std::thread::scope(|scope| scope.spawn(run).join().unwrap())
    }

    #[test]
    fn who_does_not_own_a_file_writes_it_without_choosing_its_time() {
        if !geteuid().is_root() {
            eprintln!("SKIPPED: who_does_not_own_a_file_writes_it_without_choosing_its_time: needs root");
            return;
        }
        let file = BackingFile::new(OwnedFd::from(tempfile::tempfile().unwrap()), true);
        let old = Timespec {
            tv_sec: 1_000_000,
            tv_nsec: 0,
        };
        file.write_with_mtime(b"owner", 0, Some(old)).unwrap();
        assert_eq!(mtime_of(&file.stat().unwrap()), old);
        as_other_user(|| {
            let refused = fs::futimens(
                file.fd(),
                &Timestamps {
                    last_access: old,
                    last_modification: old,
                },
            );
            assert_eq!(refused, Err(Errno::PERM));
            file.write_with_mtime(b"other", 0, None).unwrap();
            file.set_mtime(old).unwrap();
        });
        let mut found = [0; 5];
        file.read_at(&mut found, 0).unwrap();
        assert_eq!(&found, b"other");
        assert!(mtime_of(&file.stat().unwrap()).tv_sec > old.tv_sec);
    }
}
