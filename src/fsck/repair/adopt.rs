//! Entries whose names are of another id than their directory's, as sync tools leave them that merge two directories into one.
//!
//! They go back to the directory they are of, where there is one; otherwise they get names of the directory that they are in. Its id stays: others may be of that.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

use rustix::fs::FileType;

use super::{Action, Mended, Mender, Remedy, Site, Why, printable, rename};
use crate::{
    backing::Storage,
    format::{
        layout::PREAMBLE_SIZE,
        name::{self, Shape},
        preamble::Places,
    },
    fsck::finding::join,
    ids::DirectoryId,
    units::CipherSize,
    vault::{VaultError, beginning::Beginning},
};

impl Mender<'_> {
    /// Brings an entry that was made in a directory with another id back to that one, or gives it a name of this one, whose path in the view is `directory`:
    /// where this one's path has had that id, or the user says so.
    pub(super) fn elsewhere(
        &mut self,
        site: &Site,
        made_in: DirectoryId,
        is_of_path: bool,
        directory: &[u8],
    ) -> Mended {
        let homes = self.directories.get(&made_in).cloned().unwrap_or_default();
        let is_accepted = self.accepted.contains(directory);
        match &homes[..] {
            [] if is_of_path => {}
            _ if is_accepted => self.note_accepted(site, made_in, directory)?,
            [] => return Err(Why::UnprovedEntry(made_in)),
            // The file with a long name, and what a sync tool adds to a name, would be left behind.
            [home] if matches!(name::shape(site.disk.as_bytes()), Shape::Inline(_)) => {
                return self.move_back(site, home);
            }
            several => return Err(Why::Ambiguous(printable(several))),
        }
        self.adopt(site, made_in)
    }

    /// Stores beside what is accepted that a directory is to have an id too, for a repair that goes on where this one was killed.
    fn note_accepted(&self, site: &Site, id: DirectoryId, directory: &[u8]) -> Result<(), Why> {
        let located = self.vault.locate(self.root, Path::new(OsStr::from_bytes(directory)));
        let located = located.map_err(|_| Why::NoSource)?;
        let name = directory.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let [.., parent, _] = located.directories[..] else {
            return Err(Why::NoSource);
        };
        let copy = format!("dir.{id}.hush");
        match site.dir.stat(&copy) {
            Ok(_) => Ok(()),
            Err(_) => Ok(self
                .vault
                .settle_directory_under(&site.dir, &copy, id, (parent, name))?),
        }
    }

    /// Gives an entry that was made in a directory with another id its name in the one it is in, and what it needs under that. Whatever of this is done, it
    /// can be used as before under its old name, and done again.
    fn adopt(&mut self, site: &Site, made_in: DirectoryId) -> Mended {
        let from = Site {
            dir: site.dir.open_dir(".")?,
            keys: self.vault.directory_keys(made_in),
            above: site.above.clone(),
            disk: site.disk.clone(),
        };
        let name = self.sealed_name(&from)?;
        let sealed = site.keys.seal_name(&name);
        let to = match name::shape(site.disk.as_bytes()) {
            Shape::Conflict(_, added) => format!("{}{added}", sealed.entry),
            _ => sealed.entry.clone(),
        };
        if site.dir.stat(&to).is_ok() {
            let both = [site.disk_path(), site.path_of(&to)];
            return Err(Why::Ambiguous(printable(&both)));
        }
        if let Some(long) = &sealed.long {
            let (file, owner) = (sealed.long_name_file(), site.dir.stat_self()?);
            let bytes = name::encode_long_name(long);
            site.dir
                .replace_for(&file, &name::temporary_file(&file), &bytes, &owner)?;
        }
        let kept = match FileType::from_raw_mode(site.dir.stat(&site.disk)?.st_mode) {
            FileType::RegularFile => self.adopt_file(&from, site, &name, &to)?,
            FileType::Directory => self.adopt_directory(&from, site, &name, &to)?,
            _ => {
                rename(&site.dir, &site.disk, &site.dir, &to)?;
                None
            }
        };
        Ok(Remedy {
            action: Action::Adopted,
            kept,
        })
    }

    fn adopt_file(&mut self, from: &Site, site: &Site, name: &[u8], to: &str) -> Result<Option<String>, Why> {
        let file = site.dir.open_file(&site.disk, false)?;
        let Some(preamble) = Beginning::read(&file)?.preamble() else {
            rename(&site.dir, &site.disk, &site.dir, to)?;
            return Ok(None);
        };
        let header = self.vault.load_header_of_any(&site.dir, preamble.file())?;
        let is_for_here = header.fields.directory == site.keys.id;
        if !is_for_here && header.fields.directory != from.keys.id {
            return Err(Why::NoSource);
        }
        let size = CipherSize(file.len()?);
        let content = self.opens(from, file, size, &header)?;
        let mut kept = self
            .lost
            .copy(&site.disk_path(), "preamble", content.storage(), 0..PREAMBLE_SIZE)?;
        if !is_for_here {
            let (file, owner) = (name::header_file(preamble.file()), site.dir.stat(&site.disk)?);
            let old = site.dir.open_file(&file, true)?;
            kept = self.lost.copy(&site.path_of(&file), "header", &old, 0..old.len()?)?;
            let header = self.vault.header_for_directory(header, site.keys.id);
            let bytes = self.vault.encode_header(&header)?;
            site.dir
                .replace_for(&file, &name::temporary_file(&file), &bytes, &owner)?;
        }
        let in_vault = |error| Why::from(VaultError::from(error));
        content
            .set_places(Storage::sync_data, |key, places| match places.current {
                None => places,
                Some(_) => Places {
                    current: Some(key.place(from.keys.id, name)),
                    next: Some(key.place(site.keys.id, name)),
                },
            })
            .map_err(in_vault)?;
        rename(&site.dir, &site.disk, &site.dir, to)?;
        content.settle(|key| key.place(site.keys.id, name)).map_err(in_vault)?;
        Ok(Some(kept))
    }

    fn adopt_directory(&mut self, from: &Site, site: &Site, name: &[u8], to: &str) -> Result<Option<String>, Why> {
        let dir = site.dir.open_dir(&site.disk)?;
        let id = self.vault.load_directory(&dir, from.keys.id, name)?.id;
        let kept = match dir.stat(name::DIRECTORY_HEADER) {
            Ok(_) => {
                let old = dir.open_file(name::DIRECTORY_HEADER, true)?;
                let path = join(&site.disk_path(), name::DIRECTORY_HEADER.as_bytes());
                Some(self.lost.copy(&path, "header", &old, 0..old.len()?)?)
            }
            Err(_) => None,
        };
        let place = (site.keys.id, name);
        self.vault
            .announce_directory_rename(&dir, id, (from.keys.id, name), place)?;
        rename(&site.dir, &site.disk, &site.dir, to)?;
        self.vault.settle_directory(&dir, id, place)?;
        Ok(kept)
    }
}
