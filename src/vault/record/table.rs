//! What a record holds, in memory: each file by its id, and by the place where it was last seen.

use hashbrown::HashTable;

use super::Backwards;
use crate::{
    format::record::{Batch, Noted, SeenFile, SeenHome},
    ids::FileId,
};

/// Files that are gone are remembered as long as they are no more than these, or than the files that are there.
const GONE_MIN: usize = 65_536;

/// The files and homes of a record. About 60 bytes for each file.
#[derive(Debug, Default)]
pub struct Table {
    files: Vec<SeenFile>,
    /// Indices into `files`, by id. Ids are random, and so their own hashes.
    by_id: HashTable<u32>,
    /// The same of files that are not gone and whose place is known, by place.
    by_place: HashTable<u32>,
    /// Versions of the vault header, in the order they were seen.
    pub homes: Vec<SeenHome>,
    /// They were not written yet.
    pub homes_changed: bool,
}

fn hash(file: FileId) -> u64 {
    u64::from_le_bytes(*file.0.first_chunk().expect("an id has 16 bytes"))
}

impl Table {
    /// Returns all files.
    pub fn files(&self) -> &[SeenFile] {
        &self.files
    }

    /// Finds what was seen of a file.
    pub fn find(&self, file: FileId) -> Option<&SeenFile> {
        self.index(file).map(|index| &self.files[index as usize])
    }

    fn index(&self, file: FileId) -> Option<u32> {
        let is_it = |&index: &u32| self.files[index as usize].file == file;
        self.by_id.find(hash(file), is_it).copied()
    }

    /// Finds the file that was last seen at a place.
    pub fn at_place(&self, place: u64) -> Option<&SeenFile> {
        let is_it = |&index: &u32| self.files[index as usize].place == place;
        let index = self.by_place.find(place, is_it)?;
        Some(&self.files[*index as usize])
    }

    /// Compares a sighting with the last one.
    pub fn compare(&self, seen: &SeenFile) -> Option<Backwards> {
        let known = self.find(seen.file)?;
        if seen.count < known.count {
            let (seen, found) = (known.count, seen.count);
            return Some(Backwards::Older { seen, found });
        }
        if seen.count == known.count && seen.differs_in_content(known) {
            return Some(Backwards::Other { count: seen.count });
        }
        if seen.count == known.count && known.is_gone() && seen.place == known.place {
            return Some(Backwards::Returned);
        }
        known.is_suspect().then_some(Backwards::NotAccepted)
    }

    /// Returns what is to be noted after a sighting; nothing where that is what is noted already, or would be going backwards.
    pub fn merge(&self, seen: &SeenFile) -> Option<SeenFile> {
        let Some(known) = self.find(seen.file) else {
            // Nothing is older than what was never sealed.
            return (seen.count > 0).then_some(*seen);
        };
        if seen.count < known.count || (seen.count == known.count && seen.differs_in_content(known)) {
            return None;
        }
        let mut merged = *seen;
        if seen.count == known.count {
            merged.keep_mark_of(known);
        }
        if known.is_suspect() {
            merged.set_suspect();
        }
        (merged != *known).then_some(merged)
    }

    /// Notes a file, whatever was noted before. Another file at its place is gone from there.
    pub fn put(&mut self, seen: SeenFile) {
        let index = match self.index(seen.file) {
            Some(index) => {
                self.leave_place(index);
                self.files[index as usize] = seen;
                index
            }
            None => {
                // 2^32 files would be 160 GiB.
                let Ok(index) = u32::try_from(self.files.len()) else {
                    return;
                };
                self.files.push(seen);
                let files = &self.files;
                self.by_id
                    .insert_unique(hash(seen.file), index, |&index| hash(files[index as usize].file));
                index
            }
        };
        if seen.is_gone() || seen.place == 0 {
            return;
        }
        if let Some(other) = self.at_place(seen.place) {
            let mut other = *other;
            other.set_gone();
            self.put(other);
        }
        let files = &self.files;
        self.by_place
            .insert_unique(seen.place, index, |&index| files[index as usize].place);
    }

    fn leave_place(&mut self, index: u32) {
        let place = self.files[index as usize].place;
        if let Ok(entry) = self.by_place.find_entry(place, |&other| other == index) {
            entry.remove();
        }
    }

    /// Takes in what was read.
    pub fn take_in(&mut self, batch: Batch) {
        match batch.noted {
            Noted::Files(files) => files.into_iter().for_each(|seen| self.put(seen)),
            Noted::Homes(homes) if !self.homes_changed => self.homes = homes,
            // What this process has seen replaces it.
            Noted::Homes(_) => {}
        }
    }

    /// Lets go of files that have been gone for long, and of the room that is not needed.
    pub fn compact(&mut self) {
        let gone = self.files.iter().filter(|seen| seen.is_gone()).count();
        let mut excess = gone.saturating_sub(GONE_MIN.max(self.files.len() - gone));
        let kept: Vec<SeenFile> = self
            .files
            .iter()
            .filter(|seen| {
                let drop = seen.is_gone() && excess > 0;
                excess -= usize::from(drop);
                !drop
            })
            .copied()
            .collect();
        let homes = std::mem::take(&mut self.homes);
        let homes_changed = self.homes_changed;
        *self = Table::default();
        kept.into_iter().for_each(|seen| self.put(seen));
        (self.homes, self.homes_changed) = (homes, homes_changed);
    }
}
