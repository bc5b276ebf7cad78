//! Finds files by their path in the view, in a vault that is not mounted.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::unix::ffi::OsStrExt,
    path::{Component, Path},
};

use rustix::fs::FileType;

use super::{DirectoryKeys, Vault, VaultError, choice::KeyOfFile};
use crate::{
    backing::Dir,
    format::name::{self, NAME_MAX, Shape},
    ids::DirectoryId,
};

/// What is under a path.
#[derive(Debug)]
pub struct Located {
    /// The directories on the way to it from the root, itself among them if it is one.
    pub directories: Vec<DirectoryId>,
    /// The directory it is in, or itself if it is one.
    pub dir: Dir,
    /// The path of that directory in the backing directory.
    pub disk_path: String,
    /// What is in it; nothing for a directory itself.
    pub entry: Option<Entry>,
}

/// An entry that is no directory.
#[derive(Debug)]
pub struct Entry {
    /// Its kind.
    pub kind: FileType,
    /// Its name in plaintext.
    pub name: Vec<u8>,
    /// Its name on disk.
    pub disk: String,
}

impl Located {
    /// Returns the directory that it is in, or that it is.
    pub fn directory(&self) -> DirectoryId {
        *self.directories.last().expect("the root is on every way")
    }
}

impl Vault {
    /// Finds what is under a path from the view's root. Links on the way are not followed, and copies of sync tools not found.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives, among it ENOENT and ENOTDIR, or what keeps a directory on the way from being used.
    pub fn locate(&self, root: &Dir, path: &Path) -> Result<Located, VaultError> {
        let mut at = Located {
            directories: Vec::new(),
            dir: root.open_dir(".")?,
            disk_path: String::new(),
            entry: None,
        };
        let mut keys = self.root_keys();
        at.directories.push(keys.id);
        for component in path.components() {
            let name = match component {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => name.as_bytes(),
                Component::ParentDir | Component::Prefix(_) => return Err(not_found()),
            };
            if at.entry.is_some() {
                return Err(io::Error::from_raw_os_error(libc::ENOTDIR).into());
            }
            keys = self.step(&mut at, keys, name)?;
        }
        Ok(at)
    }

    /// Goes from a directory to an entry of it; returns the keys of the directory that it then is in.
    fn step(&self, at: &mut Located, keys: DirectoryKeys, name: &[u8]) -> Result<DirectoryKeys, VaultError> {
        if name.len() > NAME_MAX {
            return Err(not_found());
        }
        let disk = keys.seal_name(name).entry;
        let kind = FileType::from_raw_mode(at.dir.stat(&disk)?.st_mode);
        if kind != FileType::Directory {
            at.entry = Some(Entry {
                kind,
                name: name.to_vec(),
                disk,
            });
            return Ok(keys);
        }
        at.dir = at.dir.open_dir(&disk)?;
        let keys = self.load_directory(&at.dir, keys.id, name)?;
        at.directories.push(keys.id);
        if !at.disk_path.is_empty() {
            at.disk_path.push('/');
        }
        at.disk_path.push_str(&disk);
        Ok(keys)
    }

    /// Returns the paths of directories. What cannot be read or opened on the way is passed over.
    ///
    /// # Errors
    ///
    /// What opening the root gives.
    pub fn paths_of(
        &self,
        root: &Dir,
        wanted: &BTreeSet<DirectoryId>,
    ) -> Result<BTreeMap<DirectoryId, Vec<u8>>, VaultError> {
        let mut found = BTreeMap::new();
        let mut levels = vec![Level {
            dir: root.open_dir(".")?,
            keys: self.root_keys(),
            path: Vec::new(),
            waiting: None,
        }];
        while let Some(level) = levels.last_mut() {
            let entered = level.waiting.is_none();
            if entered && wanted.contains(&level.keys.id) {
                found.insert(level.keys.id, level.path.clone());
            }
            if found.len() == wanted.len() {
                break;
            }
            let waiting = level
                .waiting
                .get_or_insert_with(|| entries_like_directories(&level.dir));
            let Some(disk) = waiting.pop() else {
                levels.pop();
                continue;
            };
            let below = self.enter(level, &disk);
            levels.extend(below);
        }
        Ok(found)
    }

    fn enter(&self, level: &Level, disk: &str) -> Option<Level> {
        let dir = level.dir.open_dir(disk).ok()?;
        let name = match name::shape(disk.as_bytes()) {
            Shape::Inline(sealed) => level.keys.open_name(&sealed)?,
            _ => level.keys.open_long_name(&level.dir, disk).ok()?,
        };
        let keys = self.load_directory(&dir, level.keys.id, &name).ok()?;
        let mut path = level.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        Some(Level {
            dir,
            keys,
            path,
            waiting: None,
        })
    }

    /// Returns the directories that have a key of their own for new files, whether they are there or not.
    pub fn directories_with_a_key(&self) -> impl Iterator<Item = DirectoryId> {
        self.choice.directories()
    }

    /// Returns the key of a new file, in the last of the directories on the way from the root.
    pub fn key_of_new_files_in(&self, directories: &[DirectoryId]) -> KeyOfFile {
        let chosen = directories.iter().rev().find_map(|id| self.choice.of_directory(*id));
        match self.choice.customer() {
            Some(epoch) => KeyOfFile::of_epoch(epoch),
            None => chosen.unwrap_or(self.key_of_new_files()),
        }
    }
}

/// A directory on the way down.
struct Level {
    dir: Dir,
    keys: DirectoryKeys,
    path: Vec<u8>,
    /// Names on disk of directories in it that are still to be visited, once it was listed.
    waiting: Option<Vec<String>>,
}

/// Lists the names on disk that may be directories'.
fn entries_like_directories(dir: &Dir) -> Vec<String> {
    let mut entries = Vec::new();
    let listed = dir.each_entry(|entry| {
        if matches!(name::shape(entry.name), Shape::Inline(_) | Shape::Long)
            && matches!(entry.kind, FileType::Directory | FileType::Unknown)
            && let Ok(name) = std::str::from_utf8(entry.name)
        {
            entries.push(name.to_owned());
        }
    });
    if let Err(error) = listed {
        log::warn!("a directory cannot be listed: {error}");
    }
    entries
}

fn not_found() -> VaultError {
    io::Error::from_raw_os_error(libc::ENOENT).into()
}
