//! Listing directories.

use std::sync::Arc;

use rustix::fs::FileType;

use super::{Attr, Found, Fs, FsError, FsResult, Node, OpenDirectory, ROOT, node};
use crate::{
    backing::{Dir, DirStream, RawEntry},
    format::name::{self, CONFLICT_MARK, Shape},
};

/// An entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name in plaintext.
    pub name: Vec<u8>,
    /// The inode number.
    pub ino: u64,
    /// The kind of file.
    pub kind: FileType,
    /// Where to go on behind this entry.
    pub next: u64,
}

/// An entry of a listing with attributes. The look-up was counted, but for `.` and `..`.
#[derive(Debug)]
pub struct ListedPlus {
    /// The entry.
    pub entry: Listed,
    /// Its node and attributes; nothing for `.` and `..`.
    pub found: Option<Found>,
}

/// What became of an entry that was offered.
enum Offered {
    Taken,
    LeftOut,
    /// There is no room for it.
    Full,
}

impl From<bool> for Offered {
    fn from(is_taken: bool) -> Self {
        if is_taken { Offered::Taken } else { Offered::Full }
    }
}

/// A listing between two parts of it.
#[derive(Debug)]
pub(super) struct Listing {
    stream: DirStream,
    /// The copies that sync tools made which it came upon; nothing for a listing that did not begin with the first entry.
    conflicts: Option<Vec<String>>,
}

impl Listing {
    fn begin(dir: &Dir, position: u64) -> FsResult<Self> {
        let mut stream = dir.stream()?;
        if position != 0 {
            stream.seek(position)?;
        }
        Ok(Listing {
            stream,
            conflicts: (position == 0).then(Vec::new),
        })
    }
}

impl Fs {
    /// Lists a directory from a position on: 0, or an entry's `next`. `take` says whether it wants another.
    ///
    /// # Errors
    ///
    /// What reading the directory gives.
    pub fn list(&self, id: u64, position: u64, mut take: impl FnMut(&Listed) -> bool) -> FsResult<()> {
        self.list_raw(id, position, |_, listed, _| Ok(take(&listed).into()))?;
        Ok(())
    }

    /// As [`Fs::list`], with attributes. `take` keeps the entry if it says so; if not its look-up is taken back. Returns how many entries were left out: their
    /// names do not open, or something is mounted in their place.
    ///
    /// # Errors
    ///
    /// What reading the directory gives.
    pub fn list_plus(&self, id: u64, position: u64, mut take: impl FnMut(&ListedPlus) -> bool) -> FsResult<u64> {
        let mut elsewhere = 0;
        let unopened = self.list_raw(id, position, |directory, entry, disk| {
            let found = if entry.name == b"." || entry.name == b".." {
                None
            } else {
                match directory.dir.stat(disk) {
                    Ok(stat) if stat.st_dev != self.device => {
                        elsewhere += 1;
                        return Ok(Offered::LeftOut);
                    }
                    Ok(stat) => match self.found_listed(directory, &entry.name, disk, &stat) {
                        Ok(found) => Some(found),
                        Err(FsError::NotFound) => return Ok(Offered::LeftOut),
                        Err(error) => return Err(error),
                    },
                    // Removed since it was read from the directory.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Offered::LeftOut),
                    Err(error) => return Err(error.into()),
                }
            };
            let listed = ListedPlus { entry, found };
            let taken = take(&listed);
            if !taken && let Some(found) = &listed.found {
                self.forget(found.node.id, 1);
            }
            Ok(taken.into())
        })?;
        Ok(unopened + elsewhere)
    }

    fn found_listed(
        &self,
        directory: &OpenDirectory,
        name: &[u8],
        disk: &str,
        stat: &rustix::fs::Stat,
    ) -> FsResult<Found> {
        let found = self.found(directory, name, disk, stat)?;
        // Where there are many entries, a look at each that can be none of them counts.
        if name::has_addition(disk) {
            self.mark_conflict(directory, &found.node, disk);
        }
        Ok(found)
    }

    /// Returns how many names did not open.
    fn list_raw(
        &self,
        id: u64,
        position: u64,
        mut offer: impl FnMut(&OpenDirectory, Listed, &str) -> FsResult<Offered>,
    ) -> FsResult<u64> {
        let directory = self.directory(id)?;
        // Whoever begins again must see what was added since (rewinddir(3)), so no listing goes on at 0.
        let known = self.listings.lock().pop(&(id, position));
        let Listing { mut stream, conflicts } = match known {
            Some(listing) => listing,
            None => Listing::begin(&directory.dir, position)?,
        };
        let mut conflicts = conflicts;
        let mut at_end = true;
        // Where the reader goes on, who knows nothing of what is left out behind that.
        let mut last = position;
        let mut unopened = 0;
        while let Some(raw) = stream.next_entry()? {
            at_end = false;
            let shape = name::shape(raw.name);
            if let (Shape::Conflict(base, rest), Some(conflicts)) = (&shape, &mut conflicts) {
                conflicts.push(format!("{base}{rest}"));
            }
            let is_entry = matches!(shape, Shape::Inline(_) | Shape::Long);
            let Some((listed, disk)) = self.listed(&directory, raw, shape) else {
                unopened += u64::from(is_entry);
                continue;
            };
            let next = listed.next;
            match offer(&directory, listed, &disk)? {
                Offered::Taken => last = next,
                Offered::LeftOut => {}
                Offered::Full => {
                    // It comes first next time.
                    stream.step_back();
                    break;
                }
            }
        }
        if !at_end {
            // A reader that saw everything asks once more, gets nothing, and then it is closed. To go on elsewhere in a directory that was opened anew is not
            // the same on every filesystem: in many of FUSE a position is a number of entries, counted when the directory was opened.
            if last != 0 {
                self.listings.lock().put((id, last), Listing { stream, conflicts });
            }
        } else if let Some(conflicts) = conflicts {
            // What was seen in passing need not be looked for.
            directory.state().conflicts.lock().get_or_insert(Arc::new(conflicts));
        }
        Ok(unopened)
    }

    /// Turns a name on disk into an entry; nothing for what is not to be shown.
    fn listed(&self, directory: &OpenDirectory, raw: RawEntry<'_>, shape: Shape) -> Option<(Listed, String)> {
        let ino = node::node_id(raw.ino);
        let (name, ino) = match shape {
            Shape::Dots if raw.name == b"." => (raw.name.to_vec(), directory.node.id),
            Shape::Dots => (raw.name.to_vec(), self.parent_id(&directory.node)),
            Shape::VaultFile if directory.node.id == ROOT => return None,
            Shape::Header(_)
            | Shape::LongNameFile(_)
            | Shape::LinkFile(_)
            | Shape::DirectoryHeader
            | Shape::Temporary
            | Shape::VaultFile
            | Shape::LostAndFound
            | Shape::Stranger => return None,
            shape => (self.open_entry(directory, raw.name, shape)?, ino),
        };
        let disk = std::str::from_utf8(raw.name).ok()?.to_owned();
        let kind = if raw.kind == FileType::Unknown {
            directory
                .dir
                .stat(&disk)
                .map(|stat| FileType::from_raw_mode(stat.st_mode))
                .ok()?
        } else {
            raw.kind
        };
        let next = raw.next;
        Some((Listed { name, ino, kind, next }, disk))
    }

    fn parent_id(&self, node: &Node) -> u64 {
        node.link.lock().as_ref().map_or(ROOT, |link| link.parent.id)
    }

    /// Opens the name of an entry on disk; one that does not open is logged, never shown as something else.
    fn open_entry(&self, directory: &OpenDirectory, raw: &[u8], shape: Shape) -> Option<Vec<u8>> {
        let opened = match &shape {
            Shape::Inline(sealed) => directory.keys().open_name(sealed),
            Shape::Long => {
                let entry = std::str::from_utf8(raw).ok()?;
                directory.keys().open_long_name(&directory.dir, entry).ok()
            }
            Shape::Conflict(base, rest) => self.conflict_name(directory, base, rest),
            _ => None,
        };
        if opened.is_none() {
            log::warn!(
                "{:?} in {:?} has a name that does not open; run fsck",
                String::from_utf8_lossy(raw),
                self.disk_path(&directory.node)
            );
        }
        opened
    }

    /// Returns the name under which a sync tool's copy of an entry shows.
    fn conflict_name(&self, directory: &OpenDirectory, base: &str, rest: &str) -> Option<Vec<u8>> {
        let name = match name::shape(base.as_bytes()) {
            Shape::Inline(sealed) => directory.keys().open_name(&sealed)?,
            Shape::Long => directory.keys().open_long_name(&directory.dir, base).ok()?,
            _ => return None,
        };
        Some(name::conflict_name(&name, rest))
    }

    /// Returns the names on disk that sync tools made of entries of a directory.
    pub(super) fn conflicts(&self, directory: &OpenDirectory) -> FsResult<Arc<Vec<String>>> {
        let mut known = directory.state().conflicts.lock();
        if let Some(known) = &*known
            && !self.options.shared
        {
            return Ok(known.clone());
        }
        let found = Arc::new(conflicts_in(&directory.dir)?);
        *known = Some(found.clone());
        Ok(found)
    }

    /// Looks for an entry among the copies that sync tools made.
    pub(super) fn look_up_conflict(&self, directory: &OpenDirectory, name: &[u8]) -> FsResult<Option<Found>> {
        // Names like this are rare, and only they cost a listing.
        if !name
            .windows(CONFLICT_MARK.len())
            .any(|window| window == CONFLICT_MARK.as_bytes())
        {
            return Ok(None);
        }
        for disk in self.conflicts(directory)?.iter() {
            let Shape::Conflict(base, rest) = name::shape(disk.as_bytes()) else {
                continue;
            };
            if self.conflict_name(directory, &base, &rest).as_deref() == Some(name) {
                let stat = directory.dir.stat(disk)?;
                let found = self.found(directory, name, disk, &stat)?;
                self.mark_conflict(directory, &found.node, disk);
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Notes of a conflict's node whose place its content was sealed at.
    fn mark_conflict(&self, directory: &OpenDirectory, node: &Node, disk: &str) {
        let Shape::Conflict(base, _) = name::shape(disk.as_bytes()) else {
            return;
        };
        let original = match name::shape(base.as_bytes()) {
            Shape::Inline(sealed) => directory.keys().open_name(&sealed),
            Shape::Long => directory.keys().open_long_name(&directory.dir, &base).ok(),
            _ => None,
        };
        if let Some(mut link) = node.link.try_lock()
            && let Some(link) = link.as_mut()
        {
            link.conflict_of = original.map(Vec::into_boxed_slice);
        }
    }

    /// Returns the disk name of an entry that is there: its own, or that of a sync tool's copy.
    pub(super) fn existing_disk_name(&self, directory: &OpenDirectory, name: &[u8]) -> FsResult<String> {
        let disk = directory.seal_name(name)?;
        if !name
            .windows(CONFLICT_MARK.len())
            .any(|window| window == CONFLICT_MARK.as_bytes())
            || directory.dir.stat(&disk).is_ok()
        {
            return Ok(disk);
        }
        for conflict in self.conflicts(directory)?.iter() {
            if let Shape::Conflict(base, rest) = name::shape(conflict.as_bytes())
                && self.conflict_name(directory, &base, &rest).as_deref() == Some(name)
            {
                return Ok(conflict.clone());
            }
        }
        Ok(disk)
    }

    /// Returns the attributes of the root, for those who start there.
    ///
    /// # Errors
    ///
    /// What fstat(2) gives.
    pub fn root_attr(&self) -> FsResult<Attr> {
        self.get_attr(ROOT)
    }
}

/// Lists the names in a directory that sync tools made of entries.
fn conflicts_in(dir: &Dir) -> FsResult<Vec<String>> {
    let mut found = Vec::new();
    dir.each_entry(|entry| {
        if let Shape::Conflict(base, rest) = name::shape(entry.name) {
            found.push(format!("{base}{rest}"));
        }
    })?;
    Ok(found)
}
