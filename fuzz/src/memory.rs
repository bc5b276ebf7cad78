//! A file in memory that can be full, fail, and stop.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use hushfs::backing::{ShortWrite, Storage};
use rustix::fs::Timespec;

/// What goes wrong from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No byte is stored beyond so many more than there are.
    Full(usize),
    /// No change is made any more after so many.
    Kill(usize),
    /// The next read fails.
    Read,
    /// The next sync fails.
    Sync,
}

/// The file; clones are the same file.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    bytes: Vec<u8>,
    fault: Option<Fault>,
    /// Something was refused since the last [`Memory::repair`] or [`Memory::set`].
    has_failed: bool,
}

impl Memory {
    /// Makes a file with content.
    pub fn of(bytes: Vec<u8>) -> Self {
        Memory(Arc::new(Mutex::new(Inner {
            bytes,
            ..Inner::default()
        })))
    }

    /// Returns what is in the file.
    pub fn bytes(&self) -> Vec<u8> {
        self.inner().bytes.clone()
    }

    /// Has something go wrong.
    pub fn set(&self, fault: Fault) {
        let mut inner = self.inner();
        inner.fault = Some(match fault {
            Fault::Full(more) => Fault::Full(inner.bytes.len() + more),
            fault => fault,
        });
        inner.has_failed = false;
    }

    /// Ends whatever goes wrong.
    pub fn repair(&self) {
        let mut inner = self.inner();
        (inner.fault, inner.has_failed) = (None, false);
    }

    /// Tells whether something was refused.
    pub fn has_failed(&self) -> bool {
        self.inner().has_failed
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nobody panics with it")
    }

    fn change<R>(&self, change: impl FnOnce(&mut Inner) -> R) -> io::Result<R> {
        let mut inner = self.inner();
        if let Some(Fault::Kill(left)) = &mut inner.fault {
            if *left == 0 {
                inner.has_failed = true;
                return Err(io::Error::other("killed"));
            }
            *left -= 1;
        }
        Ok(change(&mut inner))
    }

    /// Fails once if that is what goes wrong.
    fn fail_once(&self, fault: Fault) -> io::Result<()> {
        let mut inner = self.inner();
        if inner.fault != Some(fault) {
            return Ok(());
        }
        (inner.fault, inner.has_failed) = (None, true);
        Err(io::Error::from_raw_os_error(libc::EIO))
    }
}

impl Storage for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inner().bytes.len() as u64)
    }

    fn inode(&self) -> io::Result<u64> {
        Ok(1)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.fail_once(Fault::Read)?;
        let inner = self.inner();
        let rest = inner.bytes.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), ShortWrite> {
        let offset = offset as usize;
        let written = self.change(|inner| {
            let fits = match inner.fault {
                Some(Fault::Full(capacity)) => capacity.saturating_sub(offset).min(buf.len()),
                _ => buf.len(),
            };
            if fits > 0 {
                let end = (offset + fits).max(inner.bytes.len());
                inner.bytes.resize(end, 0);
                inner.bytes[offset..offset + fits].copy_from_slice(&buf[..fits]);
            }
            inner.has_failed |= fits < buf.len();
            fits
        });
        match written {
            Ok(written) if written == buf.len() => Ok(()),
            Ok(written) => Err(ShortWrite {
                written,
                error: io::ErrorKind::StorageFull.into(),
            }),
            Err(error) => Err(ShortWrite { written: 0, error }),
        }
    }

    fn write_with_mtime(&self, buf: &[u8], offset: u64, _mtime: Option<Timespec>) -> io::Result<()> {
        self.write_at(buf, offset).map_err(|short| short.error)
    }

    fn set_mtime(&self, _mtime: Timespec) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|inner| inner.bytes.resize(len as usize, 0))
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(|inner| {
            let end = ((offset + len) as usize).min(inner.bytes.len());
            inner.bytes[offset as usize..end].fill(0);
        })
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let inner = self.inner();
        let rest = inner.bytes.get(offset as usize..).unwrap_or_default();
        Ok(rest.iter().position(|&byte| byte != 0).map(|at| offset + at as u64))
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        let inner = self.inner();
        let rest = inner.bytes.get(offset as usize..).unwrap_or_default();
        let hole = rest
            .windows(4096)
            .position(|window| window.iter().all(|&byte| byte == 0));
        Ok(hole.map_or(inner.bytes.len() as u64, |at| offset + at as u64))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.fail_once(Fault::Sync)
    }
}

/// Returns bytes of which none is zero, so that a hole is told from data.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed) | 1)
        .collect()
}
