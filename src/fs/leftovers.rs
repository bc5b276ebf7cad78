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

use parking_lot::Mutex;
use rustix::fs::FileType;

use super::{Fs, FsResult, Node, OpenDirectory, directory::is_copy, late::Needless};
use crate::{
    backing::{BackingFile, Dir},
    format::name::{self, Shape},
    ids::FileId,
    vault::{
        VaultError,
        beginning::Beginning,
        file::{FoundAt, VaultFile},
    },
};

/// Files of a directory that are looked at for each that is gone, at most. In a larger one headers wait for more to be gone, and what waits at the end of the
/// mount stays until the directory goes, and `fsck` names it.
const COMPARED_MAX: usize = 1024;

/// In a directory whose names changed so short a time ago more may be about to go: looks at no more files than are gone, so that all looks while a large
/// directory is emptied are at no more files than it had.
const CHANGED_LATELY: Duration = Duration::from_secs(3);

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
    pub how: How,
}

/// What became of a file that lost its last name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Removed,
    /// It went to another directory.
    Moved,
    /// It has other names, here or elsewhere.
    OneOfSeveral,
    /// A sync tool's copy took its place, which has the same header.
    ReplacedByCopy,
}

impl How {
    /// Tells whether there still is the file, which goes on needing its headers elsewhere.
    fn lives_on(self) -> bool {
        matches!(self, How::Moved | How::OneOfSeveral)
    }
}

/// The file that had a name, to tell which header was its own.
#[derive(Debug)]
pub(super) enum GoneFile {
    /// It was open, and so checked.
    Open(Arc<VaultFile>),
    /// It was not; what its data file says of itself is still to be checked.
    Closed(BackingFile),
}

/// A header that a file without a name leaves, and that another file of the directory may need.
#[derive(Debug)]
pub struct Unused {
    directory: Arc<Node>,
    id: FileId,
    /// The name that its file was sealed for, where it was not opened: whose the header is only the file itself has said.
    unopened: Option<Box<[u8]>>,
    /// The file is in another directory now, or has other names.
    lives_on: bool,
    /// How many files there were in the directory when these were too many to look at.
    files: usize,
}

/// Names that come into a directory for files whose headers may be there already: by renames, also within it, and by links. A look at all files of it may
/// miss them.
#[derive(Debug, Default)]
pub struct Arrivals(Mutex<ArrivalCounts>);

#[derive(Debug, Default)]
struct ArrivalCounts {
    under_way: u32,
    ever: u64,
}

/// How many names had come when no other was under way.
#[derive(Clone, Copy, Debug)]
struct Arrived(u64);

/// A name is on its way into a directory.
#[derive(Debug)]
pub struct Arriving<'d>(&'d Arrivals);

impl Arrivals {
    /// Notes that a name comes, until what is returned is dropped; to be called before it is looked whether a header is there.
    pub fn begin(&self) -> Arriving<'_> {
        let mut counts = self.0.lock();
        counts.under_way += 1;
        counts.ever += 1;
        Arriving(self)
    }

    /// Returns how many have come; nothing while one is under way.
    fn settled(&self) -> Option<Arrived> {
        let counts = self.0.lock();
        (counts.under_way == 0).then_some(Arrived(counts.ever))
    }

    /// Does something unless a name has begun to come since; none begins meanwhile.
    fn unless_more(&self, since: Arrived, act: impl FnOnce()) -> bool {
        let counts = self.0.lock();
        let none = counts.ever == since.0;
        if none {
            act();
        }
        none
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        self.0.0.lock().under_way -= 1;
    }
}

impl Unused {
    /// Returns the file's id, which is the header's.
    pub(super) fn id(&self) -> FileId {
        self.id
    }
}

impl Fs {
    /// Removes headers that an operation left without a use.
    ///
    /// Not part of the operation, since nobody needs to wait for it.
    pub fn clear(&self, leftovers: Leftovers) {
        for gone in leftovers.gone {
            let node = gone.directory.node.clone();
            self.drop_header(gone);
            // The kernel may have forgotten it meanwhile.
            self.keep_unused(node);
        }
    }

    /// Removes the header of a file from the directory it is gone from: at once where no other file can need it, else after a look at the others.
    pub(super) fn drop_header(&self, gone: Gone) {
        // On another machine the file may have been changed meanwhile, and then its sync tool keeps the file and takes the header away: headers stay, and
        // only the record has to know what is gone.
        if self.options.shared && (self.watch.is_none() || gone.how.lives_on()) {
            return;
        }
        let directory = gone.directory.clone();
        match self.header_of(gone) {
            Some((unused, true)) => self.remove_in_order(&directory, Needless::Header(unused)),
            Some((unused, false)) => self.unused_headers.lock().push(unused),
            None => {}
        }
    }

    /// Returns which header a file leaves, and whether that can be no other's but a sync tool's copy's; nothing where that cannot be said.
    fn header_of(&self, gone: Gone) -> Option<(Unused, bool)> {
        let Gone {
            directory,
            disk,
            name,
            file,
            how,
        } = gone;
        let at = FoundAt {
            directory: directory.keys().id,
            name: &name,
        };
        let opened = match file {
            GoneFile::Open(file) => Ok((file.id()?, file.made_header())),
            // Its word counts, as below: whether files here need the header is looked at in any case.
            GoneFile::Closed(backing) if how == How::OneOfSeveral => {
                Ok((Beginning::read(&backing).ok()?.preamble()?.file(), false))
            }
            GoneFile::Closed(backing) => VaultFile::load(&self.vault, backing, None, &directory.dir, at)
                .map(|file| Some((file.id()?, file.made_header())))
                .transpose()?,
        };
        let (id, made_header, was_opened) = match opened {
            Ok((id, made_header)) => (id, made_header, true),
            // Nobody asks for a key to delete a file. Without it the file's word counts where no other file here says the same.
            Err(VaultError::KeyNeeded(ask)) => (ask.file(), false, false),
            // What a file says of itself that fails its checks is nothing to remove headers by.
            Err(error) => {
                log::debug!("the header of {disk:?} stays behind: {error}");
                return None;
            }
        };
        let unused = Unused {
            directory: directory.node,
            id,
            unopened: (!was_opened).then(|| name.into()),
            lives_on: how.lives_on(),
            files: 0,
        };
        let may_be_anothers = is_copy(&disk) || matches!(how, How::ReplacedByCopy | How::OneOfSeveral);
        Some((unused, made_header && !may_be_anothers))
    }

    /// Removes a header that was made for the file that is gone, unless a sync tool's copy needs it.
    pub(super) fn drop_own(&self, unused: &Unused, directory: &OpenDirectory) {
        let is_other =
            |copy: &String| matches!(Self::id_on_disk(&directory.dir, copy), Ok(id) if id != Some(unused.id));
        if self
            .conflicts(directory)
            .is_ok_and(|copies| copies.iter().all(is_other))
        {
            self.remove_header(unused, directory);
        }
    }

    fn remove_header(&self, unused: &Unused, directory: &OpenDirectory) {
        self.record_gone(unused);
        if self.options.shared {
            return;
        }
        let header = name::header_file(unused.id);
        if let Err(error) = directory.dir.unlink(&header) {
            log::debug!("header {header} stays behind: {error}");
        }
    }

    pub(super) fn record_gone(&self, unused: &Unused) {
        match (&unused.unopened, unused.directory.keys()) {
            _ if unused.lives_on => {}
            (None, _) => self.record_removal(unused.id),
            (Some(name), Some(keys)) => {
                let directory = keys.id;
                self.record_removal_unopened(unused.id, FoundAt { directory, name });
            }
            (Some(_), None) => {}
        }
    }

    /// Removes those of the headers that wait which no file in their directories needs; also those of busy directories where it is to be `now`: at the end,
    /// or because there is no room. Tells whether any was removed.
    pub(super) fn drop_unused_headers(&self, now: bool) -> bool {
        let mut by_directory: BTreeMap<u64, Vec<Unused>> = BTreeMap::new();
        for unused in mem::take(&mut *self.unused_headers.lock()) {
            by_directory.entry(unused.directory.id).or_default().push(unused);
        }
        let mut was_removed = false;
        for unused in by_directory.into_values() {
            let node = unused[0].directory.clone();
            let (before, waiting) = (unused.len(), self.drop_unneeded(&node, unused, now));
            was_removed |= waiting.len() < before;
            if waiting.is_empty() {
                self.keep_unused(node);
            } else {
                self.unused_headers.lock().extend(waiting);
            }
        }
        was_removed
    }

    /// Notes of headers that still wait what becomes of their files; for the end of a mount. The headers stay.
    pub(super) fn give_up_unused_headers(&self) {
        for unused in mem::take(&mut *self.unused_headers.lock()) {
            log::debug!("header {} stays behind", name::header_file(unused.id));
            self.record_gone(&unused);
            self.keep_unused(unused.directory);
        }
    }

    /// Removes those of a directory's headers that no file in it needs; returns those of which that cannot be said yet.
    fn drop_unneeded(&self, node: &Arc<Node>, mut unused: Vec<Unused>, now: bool) -> Vec<Unused> {
        match self.look(node, &unused, now) {
            Ok(Look::Ids(directory, needed, arrived)) => {
                unused.retain(|unused| !needed.contains(&unused.id));
                if self.late.is_some() && self.root_dir.sync_filesystem().is_err() {
                    return unused;
                }
                let arrivals = &directory.state().arrivals;
                unused.retain(|unused| !arrivals.unless_more(arrived, || self.remove_header(unused, &directory)));
                return unused;
            }
            Ok(Look::TooMany(files)) => {
                unused.iter_mut().for_each(|unused| unused.files = files);
                return unused;
            }
            Ok(Look::Changing) => return unused,
            Ok(Look::Gone) => unused.iter().for_each(|unused| self.record_gone(unused)),
            Err(error) => log::debug!("{} headers stay behind: {error}", unused.len()),
        }
        Vec::new()
    }

    /// Looks which headers files in a directory need.
    fn look(&self, node: &Arc<Node>, unused: &[Unused], now: bool) -> FsResult<Look> {
        if node.is_dead() {
            return Ok(Look::Gone);
        }
        let directory = OpenDirectory {
            dir: self.dir(node)?,
            node: node.clone(),
        };
        let Some(arrived) = directory.state().arrivals.settled() else {
            return Ok(Look::Changing);
        };
        let stat = directory.dir.stat_self()?;
        let changed = UNIX_EPOCH + Duration::new(stat.st_ctime as u64, stat.st_ctime_nsec as u32);
        let is_busy = !now && changed.elapsed().is_ok_and(|since| since < CHANGED_LATELY);
        let files_max = unused.len() * if is_busy { 1 } else { COMPARED_MAX };
        let files_then = unused.iter().map(|unused| unused.files).max().unwrap_or(0);
        // Those that are gone were counted, too: about half may be left of what there was.
        let files_now_min = if is_busy { files_then / 2 } else { files_then };
        if files_now_min > files_max {
            return Ok(Look::TooMany(files_then));
        }
        let files = files_in(&directory.dir)?;
        if files.len() > files_max {
            return Ok(Look::TooMany(files.len()));
        }
        let mut ids = HashSet::new();
        for file in files {
            match Self::id_on_disk(&directory.dir, &file) {
                Ok(id) => ids.extend(id),
                // It was removed; had it been renamed, that would have been counted.
                Err(error) if error.errno() == libc::ENOENT => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Look::Ids(directory, ids, arrived))
    }
}

/// What a look at the files of a directory came to.
enum Look {
    /// The ids of all of them, and the names that had come until then.
    Ids(OpenDirectory, HashSet<FileId>, Arrived),
    /// There are more than are looked at, so many.
    TooMany(usize),
    /// A name is on its way into it.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_of_a_directory_into_which_a_name_comes() {
        let arrivals = Arrivals::default();
        let before = arrivals.settled().unwrap();
        assert!(arrivals.unless_more(before, || ()));
        let arriving = arrivals.begin();
        assert!(arrivals.settled().is_none());
        assert!(!arrivals.unless_more(before, || panic!("a name comes")));
        drop(arriving);
        assert!(!arrivals.unless_more(before, || panic!("a name has come")));
        assert!(arrivals.unless_more(arrivals.settled().unwrap(), || ()));
    }
}
