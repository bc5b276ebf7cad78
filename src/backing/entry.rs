//! What a name in a directory was found to be, whatever someone else makes of the name meanwhile.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{self, AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timestamps, Uid, XattrFlags},
    io::Errno,
    path::Arg,
};

use super::{
    dir::{names_in, proc_path, with_growing_buffer},
    file::{BackingFile, born},
};

/// A file of any kind, held by an O_PATH descriptor: nothing of it was opened, and all that is done to it is done to this one.
#[derive(Debug)]
pub struct Entry {
    fd: OwnedFd,
}

impl Entry {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Entry { fd }
    }

    /// Returns that of an open file.
    ///
    /// # Errors
    ///
    /// What dup(2) gives.
    pub fn of(file: &BackingFile) -> io::Result<Self> {
        Ok(Entry {
            fd: file.fd().try_clone()?,
        })
    }

    fn path(&self) -> std::ffi::CString {
        proc_path(self.fd.as_fd(), "")
    }

    /// Returns its attributes.
    ///
    /// # Errors
    ///
    /// What fstat(2) gives.
    pub fn stat(&self) -> io::Result<Stat> {
        Ok(fs::fstat(&self.fd)?)
    }

    /// Returns when it was made, in nanoseconds since 1970; 0 where the filesystem does not know.
    pub fn born(&self) -> u64 {
        born(self.fd.as_fd())
    }

    /// Changes its mode. Symbolic links have none.
    ///
    /// # Errors
    ///
    /// What chmod(2) gives.
    pub fn chmod(&self, mode: u32) -> io::Result<()> {
        // fchmod(2) takes no such descriptor.
        let mode = Mode::from_raw_mode(mode & 0o7777);
        Ok(fs::chmodat(CWD, self.path().as_c_str(), mode, AtFlags::empty())?)
    }

    /// Changes its owner or group, or neither where nothing is given.
    ///
    /// # Errors
    ///
    /// What fchownat(2) gives.
    pub fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        Ok(fs::chownat(&self.fd, "", uid, gid, AtFlags::EMPTY_PATH)?)
    }

    /// Sets its times.
    ///
    /// # Errors
    ///
    /// What utimensat(2) gives.
    pub fn set_times(&self, times: &Timestamps) -> io::Result<()> {
        Ok(fs::utimensat(CWD, self.path().as_c_str(), times, AtFlags::empty())?)
    }

    /// Reads an extended attribute as stored.
    ///
    /// # Errors
    ///
    /// What getxattr(2) gives.
    pub fn get_xattr(&self, attribute: &str) -> io::Result<Vec<u8>> {
        let path = self.path();
        with_growing_buffer(|buffer| fs::getxattr(path.as_c_str(), attribute, buffer))
    }

    /// Stores an extended attribute.
    ///
    /// # Errors
    ///
    /// What setxattr(2) gives.
    pub fn set_xattr(&self, attribute: impl Arg, value: &[u8], flags: XattrFlags) -> io::Result<()> {
        Ok(fs::setxattr(self.path().as_c_str(), attribute, value, flags)?)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    ///
    /// What removexattr(2) gives.
    pub fn remove_xattr(&self, attribute: &str) -> io::Result<()> {
        Ok(fs::removexattr(self.path().as_c_str(), attribute)?)
    }

    /// Returns the names of its extended attributes as stored.
    ///
    /// # Errors
    ///
    /// What listxattr(2) gives.
    pub fn list_xattrs(&self) -> io::Result<Vec<Vec<u8>>> {
        let path = self.path();
        Ok(names_in(&with_growing_buffer(|buffer| {
            fs::listxattr(path.as_c_str(), buffer)
        })?))
    }

    /// Opens a regular file whose mode keeps even its owner out: it is made accessible for that moment.
    pub(super) fn open_forced(&self) -> Result<OwnedFd, Errno> {
        let stat = fs::fstat(&self.fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::ACCESS);
        }
        let (path, mode) = (self.path(), Mode::from_raw_mode(stat.st_mode & 0o7777));
        let set_mode = |mode| fs::chmodat(CWD, path.as_c_str(), mode, AtFlags::empty());
        set_mode(mode | Mode::RUSR | Mode::WUSR)?;
        let fd = fs::openat(CWD, path.as_c_str(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        set_mode(mode)?;
        fd
    }
}
