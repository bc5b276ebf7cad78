//! The directory `lost+found.hush` at the vault's root, in which repairs keep what they change.
//!
//! Each run that keeps something has a directory of its own in it, by number, and below that the path that the thing had in the vault: what was moved
//! away as it was, what was changed as a copy with a suffix. Everything is durable before what it is kept of changes.

use std::io;

use rustix::fs::XattrFlags;

use super::finding::join;
use crate::{
    backing::{BackingFile, Dir, Storage},
    format::name::LOST_AND_FOUND,
};

/// Names that are tried for one thing: an earlier one may be there already.
const NAMES_MAX: u32 = 1000;

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// What a run keeps.
pub struct Lost {
    root: Dir,
    /// The run's directory, once there is something in it, and its path in the vault.
    run: Option<(Dir, String)>,
}

impl Lost {
    pub fn new(root: Dir) -> Self {
        Lost { root, run: None }
    }

    /// Moves something out of a directory of the vault; returns where it is kept. A crash leaves it in the one place or the other.
    pub fn set_aside(&mut self, dir: &Dir, disk_path: &[u8]) -> io::Result<String> {
        let (above, entry) = split(disk_path)?;
        let (to, path) = self.directory_for(above)?;
        let name = first_free(entry, |name| dir.rename_to_free(entry, &to, name))?;
        to.sync()?;
        dir.sync()?;
        Ok(format!("{path}/{name}"))
    }

    /// Keeps a copy of a part of a file; returns where.
    pub fn copy(
        &mut self,
        disk_path: &[u8],
        suffix: &str,
        from: &impl Storage,
        range: std::ops::Range<u64>,
    ) -> io::Result<String> {
        let (above, entry) = split(disk_path)?;
        let (to, path) = self.directory_for(above)?;
        let mut made = None;
        let name = first_free(&format!("{entry}.{suffix}"), |name| {
            made = Some(self.create(&to, name)?);
            Ok(())
        })?;
        if let Some(file) = made {
            let mut buffer = vec![0; CHUNK];
            let mut at = range.start;
            while at < range.end {
                let want = CHUNK.min((range.end - at) as usize);
                let got = from.read_at(&mut buffer[..want], at)?;
                if got == 0 {
                    break;
                }
                file.write_at(&buffer[..got], at - range.start)
                    .map_err(|short| short.error)?;
                at += got as u64;
            }
            file.sync_all()?;
        }
        to.sync()?;
        Ok(format!("{path}/{name}"))
    }

    /// Keeps an extended attribute, on an empty file; returns which.
    pub fn attribute(&mut self, disk_path: &[u8], attribute: &str, value: &[u8]) -> io::Result<String> {
        let (above, entry) = match disk_path {
            [] => ("", "root"),
            path => split(path)?,
        };
        let (to, path) = self.directory_for(above)?;
        let mut made = None;
        let name = first_free(&format!("{entry}.xattr"), |name| {
            made = Some(self.create(&to, name)?);
            Ok(())
        })?;
        if let Some(file) = made {
            file.set_xattr(attribute, value, XattrFlags::empty())?;
            file.sync_all()?;
        }
        to.sync()?;
        Ok(format!("{path}/{name}"))
    }

    /// Returns the directory for what was in a directory of the vault, made as needed, and its path in the vault.
    fn directory_for(&mut self, above: &str) -> io::Result<(Dir, String)> {
        if self.run.is_none() {
            self.run = Some(self.begin()?);
        }
        let (run, path) = self.run.as_ref().expect("begun above");
        let (mut dir, mut path) = (run.open_dir(".")?, path.clone());
        for name in above.split('/').filter(|name| !name.is_empty()) {
            dir = self.make(&dir, name)?;
            path = format!("{path}/{name}");
        }
        Ok((dir, path))
    }

    /// Makes the directory of this run.
    fn begin(&self) -> io::Result<(Dir, String)> {
        let lost = self.make(&self.root, LOST_AND_FOUND)?;
        let mut number = 1;
        let name = loop {
            let name = number.to_string();
            match lost.mkdir(&name, 0o700) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                result => break result.map(|()| name)?,
            }
        };
        let run = lost.open_dir(&name)?;
        self.give(&run)?;
        lost.sync()?;
        Ok((run, format!("{LOST_AND_FOUND}/{name}")))
    }

    /// Makes a directory, durably, unless it is there, and opens it.
    fn make(&self, dir: &Dir, name: &str) -> io::Result<Dir> {
        let is_new = match dir.mkdir(name, 0o700) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            result => result.map(|()| true)?,
        };
        let made = dir.open_dir(name)?;
        self.give(&made)?;
        if is_new {
            dir.sync()?;
        }
        Ok(made)
    }

    /// Creates a file that was not there.
    fn create(&self, dir: &Dir, name: &str) -> io::Result<BackingFile> {
        let file = dir.create_file(name, 0o600)?;
        let owner = self.root.stat_self()?;
        // Who is not root has no owner to give.
        let _ = file.chown(owner.st_uid, owner.st_gid);
        Ok(file)
    }

    /// Gives a directory that was made, also by a run that was killed, to who owns the vault, as if they had made it, where root repairs it.
    ///
    /// By what is open, and only where nothing is in it: who may write to the vault can put something else of root's under its name meanwhile.
    fn give(&self, dir: &Dir) -> io::Result<()> {
        let owner = self.root.stat_self()?;
        if dir.stat_self()?.st_uid != owner.st_uid && is_empty(dir)? {
            let _ = dir.chown_self(Some(owner.st_uid), Some(owner.st_gid));
        }
        Ok(())
    }
}

fn is_empty(dir: &Dir) -> io::Result<bool> {
    let mut is_empty = true;
    dir.each_entry(|entry| is_empty &= matches!(entry.name, b"." | b".."))?;
    Ok(is_empty)
}

/// Takes a path apart into that of the directory and the name in it.
pub(super) fn split(disk_path: &[u8]) -> io::Result<(&str, &str)> {
    // Names that are no text are strangers' and stay where they are.
    let path = std::str::from_utf8(disk_path).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(path.rsplit_once('/').unwrap_or(("", path)))
}

/// Tries a name, then the same with a number, until one is free.
fn first_free(name: &str, mut attempt: impl FnMut(&str) -> io::Result<()>) -> io::Result<String> {
    let mut tried = name.to_owned();
    for number in 1..NAMES_MAX {
        match attempt(&tried) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => tried = format!("{name}.{number}"),
            result => return result.map(|()| tried),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Returns the path of something in a directory.
pub(super) fn path_in(directory: &str, name: &str) -> Vec<u8> {
    join(directory.as_bytes(), name.as_bytes())
}
