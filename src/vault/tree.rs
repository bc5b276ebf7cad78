//! Goes through a vault in the order of its names, a directory's entries right behind it: for what compares two states of a vault side by side.
//!
//! Reads names, attributes and headers of directories; files are for the visitor. What lies about besides (copies of sync tools, files of strangers)
//! is passed over: `fsck` names it.

use std::{cmp::Ordering, io};

use rustix::fs::{FileType, Stat};

use super::{
    DirectoryKeys, Vault, VaultError,
    file::{FoundAt, VaultFile},
};
use crate::{
    backing::Dir,
    crypto::record::RecordKey,
    format::{
        link::{self, DiskTarget, LINK_FILE_MAX},
        name::{self, Shape},
        snapshot::{FileState, SealedContent},
    },
    ids::DirectoryId,
};

/// Directories inside each other that are gone through; paths as deep cannot be named either.
pub const DEPTH_MAX: usize = 4096;

/// How often a file is looked at again that was being written when it was looked at.
const TRIES: u32 = 4;

/// An entry of the vault.
#[derive(Debug)]
pub struct Visited<'s> {
    /// The path in the view, without a leading slash.
    pub path: &'s [u8],
    /// How many directories it is in, besides the root.
    pub depth: usize,
    /// The directory.
    pub dir: &'s Dir,
    /// Its id.
    pub directory: DirectoryId,
    /// The name.
    pub name: &'s [u8],
    /// The name on disk.
    pub disk: &'s str,
    /// Its attributes.
    pub stat: &'s Stat,
    /// Its own id, for a directory.
    pub id: Option<DirectoryId>,
}

/// What a walk comes upon.
#[derive(Debug)]
pub enum Step<'s> {
    /// An entry.
    Entry(Visited<'s>),
    /// An entry that cannot be looked at.
    Unreadable {
        /// The path in the view.
        path: &'s [u8],
        /// How many directories it is in, besides the root.
        depth: usize,
        /// The name.
        name: &'s [u8],
        /// What is wrong.
        error: VaultError,
    },
    /// Something in a directory that has no name of its own: an entry whose name does not open, or the rest of a listing.
    Problem {
        /// The path of the directory.
        path: &'s [u8],
        /// What is wrong.
        error: VaultError,
    },
}

/// Compares two paths in the order of a walk.
pub fn order(one: &[u8], other: &[u8]) -> Ordering {
    // A slash ends a name, and no name contains a byte as low as its end.
    let low = |&byte: &u8| if byte == b'/' { 0 } else { byte };
    one.iter().map(low).cmp(other.iter().map(low))
}

/// Goes through a vault; stops where `visit` fails.
///
/// # Errors
///
/// What opening the root gives, or `visit`.
pub fn walk<E: From<io::Error>>(
    vault: &Vault,
    root: &Dir,
    visit: &mut dyn FnMut(Step<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let device = root.stat_self()?.st_dev;
    let mut path = Vec::new();
    let root = Level {
        dir: root.open_dir(".")?,
        keys: vault.root_keys(),
        path_len: 0,
        waiting: Vec::new(),
    };
    let mut levels = vec![root.list(&path, visit)?];
    while let Some(level) = levels.last_mut() {
        path.truncate(level.path_len);
        let Some(entry) = level.waiting.pop() else {
            levels.pop();
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&entry.name);
        let depth = levels.len() - 1;
        let level = &levels[depth];
        let unreadable = |error| Step::Unreadable {
            path: &path,
            depth,
            name: &entry.name,
            error,
        };
        let stat = match level.dir.stat(&entry.disk) {
            Ok(stat) if stat.st_dev == device => stat,
            Ok(_) => {
                visit(unreadable(hidden().into()))?;
                continue;
            }
            // Removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                visit(unreadable(error.into()))?;
                continue;
            }
        };
        let below = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            match level.enter(vault, &entry, path.len()) {
                Ok(below) => Some(below),
                Err(error) => {
                    visit(unreadable(error))?;
                    continue;
                }
            }
        } else {
            None
        };
        visit(Step::Entry(Visited {
            path: &path,
            depth,
            dir: &level.dir,
            directory: level.keys.id,
            name: &entry.name,
            disk: &entry.disk,
            stat: &stat,
            id: below.as_ref().map(|below| below.keys.id),
        }))?;
        match below {
            Some(_) if levels.len() >= DEPTH_MAX => {
                let error = io::Error::from_raw_os_error(libc::ELOOP).into();
                visit(Step::Problem { path: &path, error })?;
            }
            Some(below) => levels.push(below.list(&path, visit)?),
            None => {}
        }
    }
    Ok(())
}

/// Tells whether what was to be opened is on another filesystem.
pub fn is_elsewhere(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::CrossesDevices
}

/// Says that an entry of the vault is not seen, for what is mounted there.
pub(super) fn hidden() -> io::Error {
    let what = "another filesystem is in this place: unmount it and start again";
    io::Error::new(io::ErrorKind::CrossesDevices, what)
}

/// A directory that is gone through.
struct Level {
    dir: Dir,
    keys: DirectoryKeys,
    path_len: usize,
    /// What is left to visit, the next one last.
    waiting: Vec<Entry>,
}

struct Entry {
    name: Box<[u8]>,
    disk: Box<str>,
}

impl Level {
    fn enter(&self, vault: &Vault, entry: &Entry, path_len: usize) -> Result<Level, VaultError> {
        let opened = self.dir.open_dir(&*entry.disk);
        let dir = opened.map_err(|error| if is_elsewhere(&error) { hidden() } else { error })?;
        let keys = vault.load_directory(&dir, self.keys.id, &entry.name)?;
        Ok(Level {
            dir,
            keys,
            path_len,
            waiting: Vec::new(),
        })
    }

    fn list<E>(mut self, path: &[u8], visit: &mut dyn FnMut(Step<'_>) -> Result<(), E>) -> Result<Self, E> {
        let mut problems = Vec::new();
        let listed = self.dir.each_entry(|raw| match name::shape(raw.name) {
            Shape::Inline(sealed) => match self.keys.open_name(&sealed) {
                Some(name) => self.waiting.push(Entry {
                    name: name.into(),
                    disk: String::from_utf8_lossy(raw.name).into(),
                }),
                None => problems.push(VaultError::NameDamaged(crate::format::FormatError::NotAuthentic)),
            },
            Shape::Long => {
                let disk: Box<str> = String::from_utf8_lossy(raw.name).into();
                match self.keys.open_long_name(&self.dir, &disk) {
                    Ok(name) => self.waiting.push(Entry {
                        name: name.into(),
                        disk,
                    }),
                    Err(error) => problems.push(error),
                }
            }
            _ => {}
        });
        self.waiting.sort_unstable_by(|one, other| other.name.cmp(&one.name));
        problems.extend(listed.err().map(VaultError::Io));
        for error in problems {
            visit(Step::Problem { path, error })?;
        }
        Ok(self)
    }
}

impl Visited<'_> {
    /// Returns the kind of entry it is.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Returns where it was found.
    pub fn found_at(&self) -> FoundAt<'_> {
        FoundAt {
            directory: self.directory,
            name: self.name,
        }
    }

    /// Tells whether a directory has a header, which admits the place where it was found: the walk has compared that.
    pub fn has_directory_header(&self, vault: &Vault) -> bool {
        let dir = self.dir.open_dir(self.disk).map_err(VaultError::Io);
        matches!(dir.and_then(|dir| vault.load_directory_header(&dir)), Ok(Some(_)))
    }

    /// Opens a file and checks all that can be checked at once; `None` where it is gone again.
    ///
    /// A file that is being written to meanwhile may be caught between two states of its front, and is looked at again.
    ///
    /// # Errors
    ///
    /// The check that failed.
    pub fn load(&self, vault: &Vault) -> Result<Option<VaultFile>, VaultError> {
        let mut tries = 1;
        loop {
            let loaded = self
                .dir
                .open_file(self.disk, true)
                .map_err(VaultError::Io)
                .and_then(|file| VaultFile::load(vault, file, None, self.dir, self.found_at()));
            match loaded {
                Ok(file) => return Ok(Some(file)),
                Err(VaultError::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(VaultError::Content(_) | VaultError::HeaderMissing(_)) if tries < TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns what a snapshot says of a file.
    pub fn state_of(file: &VaultFile) -> FileState {
        let (Some(id), Some(content)) = (file.id(), file.content()) else {
            return FileState::Blank;
        };
        let (count, mark) = content.last_seal();
        FileState::Written {
            file: id,
            size: content.size(),
            count,
            sealed: mark.map(|mark| SealedContent {
                mark,
                placed: content.is_placed(),
            }),
        }
    }

    /// Returns the mark of what a symbolic link says on disk.
    ///
    /// # Errors
    ///
    /// What reading it gives.
    pub fn link_mark(&self, key: &RecordKey) -> Result<[u8; 16], VaultError> {
        let mut stored = self.dir.readlink(self.disk)?;
        if let Ok(DiskTarget::Long { link, .. }) = link::decode(&stored)
            && let Some(file) = self.dir.read_small(&name::link_file(link), LINK_FILE_MAX)?
        {
            stored.extend_from_slice(&file);
        }
        Ok(key.link_mark(&stored))
    }

    /// Returns the mark of the attributes that a file cannot keep when it is changed, on a filesystem and a machine that are to be trusted.
    pub fn stamp(&self, key: &RecordKey) -> u64 {
        let stat = self.stat;
        let fields = [
            stat.st_ino,
            stat.st_size as u64,
            stat.st_mtime as u64,
            stat.st_mtime_nsec,
            stat.st_ctime as u64,
            stat.st_ctime_nsec,
        ];
        key.stamp(&fields.map(u64::to_le_bytes).concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_followed_by_what_is_in_it() {
        let sorted: [&[u8]; 7] = [b"a", b"a/b", b"a/b/c", b"a/\x01", b"a\x01", b"a.b", b"aa"];
        let mut paths = sorted.to_vec();
        paths.sort_by(|one, other| order(one, other));
        let expected: [&[u8]; 7] = [b"a", b"a/\x01", b"a/b", b"a/b/c", b"a\x01", b"a.b", b"aa"];
        assert_eq!(paths, expected);
    }
}
