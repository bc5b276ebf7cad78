//! Snapshots: taking one of a vault, and comparing a vault with one (docs/FORMAT.md section 12).
//!
//! Both go through the vault in the order of its names, and an older snapshot beside it; what is held in memory is what differs.

mod compare;
mod stream;

use std::{
    fmt,
    io::{self, Read, Write},
};

use rustix::fs::FileType;

pub use self::{
    compare::{Change, Difference, Summary, accept_all, compare, compare_with_record},
    stream::{SnapshotReader, SnapshotWriter},
};
use super::{
    Vault, VaultError,
    tree::{self, Step, Visited},
};
use crate::{
    backing::{Dir, is_settled},
    crypto::record::RecordKey,
    format::{
        FormatError,
        snapshot::{Entry, SnapshotHead, What},
    },
};

/// Why a snapshot cannot be taken or read.
#[derive(Debug)]
pub enum SnapshotError {
    /// The vault's root cannot be read, or the snapshot read or written.
    Io(io::Error),
    /// The snapshot is not authentic, or malformed.
    Format(FormatError),
    /// It is of another vault.
    OtherVault,
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SnapshotError::Io(error) => error.fmt(f),
            SnapshotError::Format(error) => error.fmt(f),
            SnapshotError::OtherVault => f.write_str("a snapshot of another vault"),
        }
    }
}

impl std::error::Error for SnapshotError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SnapshotError::Io(error) => Some(error),
            SnapshotError::Format(error) => Some(error),
            SnapshotError::OtherVault => None,
        }
    }
}

impl From<io::Error> for SnapshotError {
    fn from(error: io::Error) -> Self {
        SnapshotError::Io(error)
    }
}

impl From<FormatError> for SnapshotError {
    fn from(error: FormatError) -> Self {
        SnapshotError::Format(error)
    }
}

/// What was listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Entries.
    pub entries: u64,
    /// Files that were taken over from the base without being opened.
    pub taken_over: u64,
    /// What could not be read.
    pub unreadable: u64,
}

/// What is heard of a snapshot being taken.
#[derive(Debug)]
pub enum TakeEvent<'e> {
    /// An entry was listed.
    Entry,
    /// Something could not be read.
    Unreadable {
        /// Its path, or that of its directory.
        path: &'e [u8],
        /// Why.
        error: &'e VaultError,
    },
}

/// Takes a snapshot. Files whose attributes are those of `base` are taken over from there; not those that had been changed so shortly before it was begun that
/// they could have been changed again within one tick of the filesystem's clock.
///
/// # Errors
///
/// What reading the vault's root or the base, or writing the snapshot gives; files that cannot be read are listed as such.
pub fn take<W: Write, R: Read>(
    vault: &Vault,
    root: &Dir,
    (head, out): (SnapshotHead, W),
    base: Option<SnapshotReader<R>>,
    report: &mut dyn FnMut(TakeEvent<'_>),
) -> Result<(Taken, W), SnapshotError> {
    let head = SnapshotHead {
        base: base.as_ref().map(SnapshotReader::id),
        ..head
    };
    let key = vault.record_key();
    let mut base = base.map(Beside::new).transpose()?;
    let mut writer = SnapshotWriter::new(vault, &head, out)?;
    let mut taken = Taken::default();
    tree::walk(vault, root, &mut |step| {
        let (depth, name, mode, what) = match step {
            Step::Entry(visited) => {
                let known = match &mut base {
                    Some(base) if is_settled(visited.stat, base.reader.head().time) => base.at(visited.path)?,
                    _ => None,
                };
                let what = match listed(vault, &key, &visited, known) {
                    Ok(Some((what, taken_over))) => {
                        taken.taken_over += u64::from(taken_over);
                        what
                    }
                    // Gone meanwhile.
                    Ok(None) => return Ok(()),
                    Err(error) => {
                        taken.unreadable += 1;
                        let path = visited.path;
                        report(TakeEvent::Unreadable { path, error: &error });
                        What::Unreadable
                    }
                };
                (visited.depth, visited.name, visited.stat.st_mode, what)
            }
            Step::Unreadable {
                path,
                depth,
                name,
                error,
            } => {
                taken.unreadable += 1;
                report(TakeEvent::Unreadable { path, error: &error });
                (depth, name, 0, What::Unreadable)
            }
            Step::Problem { path, error } => {
                taken.unreadable += 1;
                report(TakeEvent::Unreadable { path, error: &error });
                return Ok(());
            }
        };
        taken.entries += 1;
        report(TakeEvent::Entry);
        writer.add(Entry {
            // A walk goes no deeper.
            depth: depth as u16,
            name: name.to_vec(),
            mode,
            what,
        })
    })?;
    // Whoever made the base kept it whole, or it is not one to take anything over from.
    if let Some(base) = &mut base {
        base.read_to_end()?;
    }
    Ok((taken, writer.finish()?))
}

/// Returns what an entry is, and whether that was taken over from what a snapshot says; nothing where it is gone meanwhile.
fn listed(
    vault: &Vault,
    key: &RecordKey,
    visited: &Visited<'_>,
    known: Option<&Entry>,
) -> Result<Option<(What, bool)>, VaultError> {
    let what = match (visited.kind(), visited.id) {
        (FileType::Directory, Some(id)) => What::Directory(id),
        (FileType::RegularFile, _) => {
            let stamp = visited.stamp(key);
            if let Some(Entry {
                what: What::File { stamp: before, state },
                ..
            }) = known
                && *before == stamp
            {
                return Ok(Some((What::File { stamp, state: *state }, true)));
            }
            match visited.load(vault)? {
                Some(file) => What::File {
                    stamp,
                    state: Visited::state_of(&file),
                },
                None => return Ok(None),
            }
        }
        (FileType::Symlink, _) => What::Link {
            mark: visited.link_mark(key)?,
        },
        _ => What::Special {
            device: visited.stat.st_rdev,
        },
    };
    Ok(Some((what, false)))
}

/// A snapshot that is read along with a walk.
struct Beside<R> {
    reader: SnapshotReader<R>,
    next: Option<(Vec<u8>, Entry)>,
}

impl<R: Read> Beside<R> {
    fn new(mut reader: SnapshotReader<R>) -> Result<Self, SnapshotError> {
        let next = reader.next_entry()?;
        Ok(Beside { reader, next })
    }

    /// Returns the entry that stands before a path, or before the end where none is given; the next call goes on behind it.
    fn take_before(&mut self, path: Option<&[u8]>) -> Result<Option<(Vec<u8>, Entry)>, SnapshotError> {
        let is_before = match (&self.next, path) {
            (Some((at, _)), Some(path)) => tree::order(at, path).is_lt(),
            (next, _) => next.is_some(),
        };
        if !is_before {
            return Ok(None);
        }
        let next = self.reader.next_entry()?;
        Ok(std::mem::replace(&mut self.next, next))
    }

    /// Returns the entry of a path, passing over those before it.
    fn at(&mut self, path: &[u8]) -> Result<Option<&Entry>, SnapshotError> {
        while self.take_before(Some(path))?.is_some() {}
        Ok(self.next.as_ref().filter(|(at, _)| at == path).map(|(_, entry)| entry))
    }

    /// As [`at`](Self::at), and goes on behind it.
    fn take_at(&mut self, path: &[u8]) -> Result<Option<Entry>, SnapshotError> {
        if self.at(path)?.is_none() {
            return Ok(None);
        }
        let next = self.reader.next_entry()?;
        Ok(std::mem::replace(&mut self.next, next).map(|(_, entry)| entry))
    }

    fn read_to_end(&mut self) -> Result<(), SnapshotError> {
        while self.take_before(None)?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests;
