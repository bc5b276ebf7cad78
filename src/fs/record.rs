//! What is seen of files goes into the local record, where there is one: when a file is opened, sealed, renamed and removed. No request waits for it.

use std::{collections::HashSet, sync::Arc};

use parking_lot::Mutex;

use super::{Fs, Link, node::Node};
use crate::{
    backing::{BackingFile, Storage},
    ids::FileId,
    vault::{
        VaultError,
        file::{FoundAt, VaultFile},
        record::Record,
    },
};

/// Files that are told of once only; beyond it they are told of again.
const TOLD_MAX: usize = 65_536;

/// Files kept open to be synced one by one, where the filesystem is not synced as a whole.
const UNSYNCED_MAX: usize = 256;

/// A record in use by a filesystem.
#[derive(Debug)]
pub struct Watch {
    record: Record,
    /// Files that went backwards are not opened.
    refuses: bool,
    told: Mutex<HashSet<FileId>>,
    /// Files that are to be synced before anything is written about them, where the filesystem is not synced as a whole.
    unsynced: Mutex<Vec<Arc<BackingFile>>>,
}

impl Watch {
    /// Takes a record, and whether files that went backwards shall be refused, not only told of.
    pub fn new(record: Record, refuses: bool) -> Self {
        Watch {
            record,
            refuses,
            told: Mutex::default(),
            unsynced: Mutex::default(),
        }
    }
}

impl Fs {
    /// Has what is seen of files compared and recorded from now on.
    pub fn set_watch(&mut self, watch: Watch) {
        self.vault.take_over_nothing();
        self.watch = Some(watch);
    }

    /// Compares a file that was just opened with what was last seen of it.
    pub(super) fn compare_with_record(&self, file: &VaultFile, link: &Link, at: FoundAt<'_>) -> Result<(), VaultError> {
        // A sync tool's copy is a second version of the same file, and shows under a name that says so.
        let Some(watch) = self.watch.as_ref().filter(|_| link.conflict_of.is_none()) else {
            return Ok(());
        };
        let Some(seen) = watch.record.sighting(file, at) else {
            return Ok(());
        };
        match watch.record.compare(&seen) {
            None => self.remember_to_sync(watch, file),
            Some(backwards) if watch.refuses => return Err(VaultError::RolledBack(backwards)),
            Some(backwards) => {
                let mut told = watch.told.lock();
                if told.len() >= TOLD_MAX {
                    told.clear();
                }
                if told.insert(seen.file) {
                    let directory = self.disk_path(&link.parent);
                    log::warn!("{:?} in {directory:?}: {backwards}", link.disk);
                }
            }
        }
        Ok(())
    }

    /// Notes a file that was just sealed at a place.
    pub(super) fn record_seal(&self, file: &VaultFile, link: &Link, at: FoundAt<'_>) {
        if let Some(watch) = self.watch.as_ref().filter(|_| link.conflict_of.is_none())
            && let Some(seen) = watch.record.sighting(file, at)
        {
            watch.record.note(&seen);
            self.remember_to_sync(watch, file);
        }
    }

    /// Notes where a file is that was renamed.
    pub(super) fn record_rename(&self, node: &Node) {
        let Some(watch) = &self.watch else { return };
        let link = node.link.lock();
        let (Some(link), Some(file)) = (link.as_ref(), node.file.lock().clone()) else {
            return;
        };
        if let Ok(at) = self.found_at(link)
            && let Some(seen) = watch.record.sighting(&file, at)
        {
            watch.record.note(&seen);
            self.remember_to_sync(watch, &file);
        }
    }

    /// Notes that a file's last name was removed.
    pub(super) fn record_removal(&self, file: FileId) {
        if let Some(watch) = &self.watch {
            watch.record.note_removed(file);
        }
    }

    /// As [`record_removal`](Self::record_removal), of a file that was not opened, whose id is what it says itself: believed where that file was last seen.
    pub(super) fn record_removal_unopened(&self, file: FileId, at: FoundAt<'_>) {
        if let Some(watch) = &self.watch
            && watch.record.at_place(watch.record.place(at.directory, at.name)) == Some(file)
        {
            watch.record.note_removed(file);
        }
    }

    /// Writes the record if that is due.
    pub(super) fn write_record_if_due(&self) {
        if let Some(watch) = &self.watch {
            let written = if watch.unsynced.lock().len() >= UNSYNCED_MAX {
                watch.record.write(|| self.sync_for_record(watch))
            } else {
                watch.record.write_due(|| self.sync_for_record(watch))
            };
            if let Err(error) = written {
                log::warn!("{error}");
            }
        }
    }

    /// Writes all that is to be recorded; for the end of a mount.
    pub fn finish_record(&self) {
        if let Some(watch) = &self.watch
            && let Err(error) = watch.record.write(|| self.sync_for_record(watch))
        {
            log::warn!("{error}");
        }
    }

    fn remember_to_sync(&self, watch: &Watch, file: &VaultFile) {
        if !self.syncs_at_once {
            watch.unsynced.lock().push(file.backing().clone());
        }
    }

    fn sync_for_record(&self, watch: &Watch) -> std::io::Result<()> {
        if self.syncs_at_once {
            return self.root_dir.sync_filesystem();
        }
        let files = std::mem::take(&mut *watch.unsynced.lock());
        let synced = files.iter().try_for_each(|file| file.sync_data());
        if synced.is_err() {
            watch.unsynced.lock().extend(files);
        }
        synced
    }
}
