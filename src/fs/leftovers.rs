//! Headers that an operation on names leaves without a use.
//!
//! A header too many is harmless, and one too few a file lost: it goes where no other file of the directory needs it, and where to know that takes a look
//! at all of them, once for all that went in a while.

use std::{
    collections::{BTreeMap, HashSet},
    mem,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use rustix::fs::{FileType, Stat};

use super::{Fs, FsResult, Node, OpenDirectory};
use crate::{
    backing::{BackingFile, Dir},
    format::name::{self, Shape},
    ids::FileId,
    vault::{
        VaultError,
        file::{FoundAt, VaultFile},
    },
};

/// Files of a directory that are looked at for each that is deleted without its key, or while another may have the same header. In a larger one that
/// header stays until the directory goes, and `fsck` names it.
const COMPARED_MAX: usize = 1024;

/// A directory whose names changed so short a time ago is looked at later: what the look has missed would not show in its times.
const CHANGED_LATELY: Duration = Duration::from_millis(100);

/// Headers that an operation may have left without a use, for [`Fs::clear`].
#[must_use = "headers stay behind otherwise"]
#[derive(Debug, Default)]
pub struct Leftovers {
    pub(super) gone: Vec<Gone>,
}

/// A file's last name in a directory that is gone.
#[derive(Debug)]
pub(super) struct Gone {
    pub directory: OpenDirectory,
    /// The name on disk.
    pub disk: String,
    /// The name that the file was sealed for.
    pub name: Vec<u8>,
    pub file: GoneFile,
    /// A sync tool's copy took its place, which has the same header.
    pub replaced_by_copy: bool,
}

/// The file that had a name, to tell which header was its own.
#[derive(Debug)]
pub(super) enum GoneFile {
    /// It was open, and so checked.
    Open(Arc<VaultFile>),
    /// It was not; what its data file says of itself is still to be checked.
    Closed(BackingFile),
}

/// A header that a file without a name leaves.
#[derive(Debug)]
pub struct Unused {
    directory: Arc<Node>,
    id: FileId,
    /// The name that its file was sealed for.
    name: Vec<u8>,
    /// Any other file of the directory may need it, and not only a sync tool's copy.
    look_at_all: bool,
    /// The file was opened, so it is known that the header is its own.
    was_opened: bool,
}

impl Fs {
    /// Removes headers that an operation left without a use.
    ///
    /// Not part of the operation, since nobody needs to wait for it.
    pub fn clear(&self, leftovers: Leftovers) {
        for gone in leftovers.gone {
            let directory = gone.directory.clone();
            match self.header_of(gone) {
                Some(unused) if unused.was_opened && (unused.look_at_all || self.options.shared) => {
                    self.unused_headers.lock().push(unused);
                }
                Some(unused) => self.drop_unused(&unused, &directory),
                None => {}
            }
            // The kernel may have forgotten it meanwhile.
            self.keep_unused(directory.node);
        }
    }

    /// Removes the header of a file from the directory it is gone from, at once, unless another file needs it.
    pub(super) fn drop_header(&self, gone: Gone) {
        let directory = gone.directory.clone();
        if let Some(unused) = self.header_of(gone) {
            self.drop_unused(&unused, &directory);
        }
    }

    /// Returns which header a file leaves; nothing where that cannot be said.
    fn header_of(&self, gone: Gone) -> Option<Unused> {
        let Gone {
            directory,
            disk,
            name,
            file,
            replaced_by_copy,
        } = gone;
        let at = FoundAt {
            directory: directory.keys().id,
            name: &name,
        };
        let opened = match file {
            GoneFile::Open(file) => Ok((file.id()?, file.owns_header())),
            GoneFile::Closed(backing) => VaultFile::load(&self.vault, backing, None, &directory.dir, at)
                .map(|file| Some((file.id()?, file.owns_header())))
                .transpose()?,
        };
        let (id, owns_header, was_opened) = match opened {
            Ok((id, owns_header)) => (id, owns_header, true),
            // Nobody asks for a key to delete a file. Without it the file's word counts where no other file here says the same.
            Err(VaultError::KeyNeeded(ask)) => match files_in(&directory.dir) {
                Ok(others) if others.len() <= COMPARED_MAX => (ask.file(), false, false),
                _ => {
                    self.record_removal_unopened(ask.file(), at);
                    return None;
                }
            },
            // What a file says of itself that fails its checks is nothing to remove headers by.
            Err(error) => {
                log::debug!("the header of {disk:?} stays behind: {error}");
                return None;
            }
        };
        let was_copy = matches!(name::shape(disk.as_bytes()), Shape::Conflict(..));
        Some(Unused {
            directory: directory.node,
            id,
            name,
            look_at_all: was_copy || replaced_by_copy || !owns_header,
            was_opened,
        })
    }

    /// Removes a header, unless another file needs it: a sync tool's copy, the original where the copy is gone, or the true owner where someone had put a
    /// copy of its data under another name.
    fn drop_unused(&self, unused: &Unused, directory: &OpenDirectory) {
        let id = &unused.id;
        let others = if unused.look_at_all {
            files_in(&directory.dir).map(Arc::new)
        } else {
            self.conflicts(directory)
        };
        let needed = match others {
            Ok(others) => others
                .iter()
                .any(|other| !matches!(Self::id_on_disk(&directory.dir, other), Ok(found) if found != Some(*id))),
            Err(_) => true,
        };
        if !needed {
            self.remove_header(unused, directory);
        }
    }

    fn remove_header(&self, unused: &Unused, directory: &OpenDirectory) {
        let id = &unused.id;
        if unused.was_opened {
            self.record_removal(*id);
        } else {
            let at = FoundAt {
                directory: directory.keys().id,
                name: &unused.name,
            };
            self.record_removal_unopened(*id, at);
        }
        if let Err(error) = directory.dir.unlink(&name::header_file(*id)) {
            log::debug!("header {} stays behind: {error}", name::header_file(*id));
        }
    }

    /// Removes those of the headers that wait which no file in their directories needs; at the end, when nobody changes names any more, all of them.
    pub(super) fn drop_unused_headers(&self, at_the_end: bool) {
        let mut by_directory: BTreeMap<u64, Vec<Unused>> = BTreeMap::new();
        for unused in mem::take(&mut *self.unused_headers.lock()) {
            by_directory.entry(unused.directory.id).or_default().push(unused);
        }
        for unused in by_directory.into_values() {
            let node = unused[0].directory.clone();
            match self.needed_in(&node, COMPARED_MAX * unused.len(), at_the_end) {
                Ok(Look::Ids(directory, needed)) => {
                    let unused = unused.iter().filter(|unused| !needed.contains(&unused.id));
                    unused.for_each(|unused| self.remove_header(unused, &directory));
                }
                Ok(Look::TooMany | Look::Gone) => unused.iter().for_each(|unused| self.record_removal(unused.id)),
                Ok(Look::Changing) => {
                    self.unused_headers.lock().extend(unused);
                    continue;
                }
                Err(error) => log::debug!("{} headers stay behind: {error}", unused.len()),
            }
            drop(unused);
            self.keep_unused(node);
        }
    }

    /// Returns which headers files in a directory need.
    fn needed_in(&self, node: &Arc<Node>, files_max: usize, at_the_end: bool) -> FsResult<Look> {
        if node.is_dead() {
            return Ok(Look::Gone);
        }
        let directory = OpenDirectory {
            dir: self.dir(node)?,
            node: node.clone(),
        };
        let changed = |stat: Stat| UNIX_EPOCH + Duration::new(stat.st_ctime as u64, stat.st_ctime_nsec as u32);
        let before = changed(directory.dir.stat_self()?);
        let is_new = before.elapsed().is_ok_and(|since| since < CHANGED_LATELY);
        if is_new && !at_the_end {
            return Ok(Look::Changing);
        }
        let files = files_in(&directory.dir)?;
        if files.len() > files_max {
            return Ok(Look::TooMany);
        }
        let mut ids = HashSet::new();
        for file in files {
            match Self::id_on_disk(&directory.dir, &file) {
                Ok(id) => ids.extend(id),
                Err(error) if error.errno() == libc::ENOENT => return Ok(Look::Changing),
                Err(error) => return Err(error),
            }
        }
        if changed(directory.dir.stat_self()?) != before {
            // A file that was renamed meanwhile may have been missed.
            return Ok(Look::Changing);
        }
        Ok(Look::Ids(directory, ids))
    }
}

/// What a look at the files of a directory came to.
enum Look {
    /// The ids of all of them.
    Ids(OpenDirectory, HashSet<FileId>),
    /// There are more than are looked at.
    TooMany,
    /// Names change in it.
    Changing,
    /// It was removed.
    Gone,
}

/// Lists the names on disk in a directory that may be files'.
fn files_in(dir: &Dir) -> FsResult<Vec<String>> {
    let mut files = Vec::new();
    dir.each_entry(|entry| {
        let is_entry = matches!(
            name::shape(entry.name),
            Shape::Inline(_) | Shape::Long | Shape::Conflict(..)
        );
        if is_entry
            && matches!(entry.kind, FileType::RegularFile | FileType::Unknown)
            && let Ok(name) = std::str::from_utf8(entry.name)
        {
            files.push(name.to_owned());
        }
    })?;
    Ok(files)
}
