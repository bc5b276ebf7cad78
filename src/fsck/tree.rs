//! Goes through the backing tree as it is: every directory, whatever it is called, and without a key.

use rustix::fs::FileType;
use std::io;

use super::finding::join;
use crate::backing::Dir;

/// A name in a directory.
#[derive(Debug)]
pub struct Listed {
    /// The name on disk.
    pub name: Box<[u8]>,
    /// The kind.
    pub kind: FileType,
}

/// Takes a directory with its path and what is in it, or why it cannot be listed.
type Visit<'v> = dyn FnMut(&[u8], io::Result<(&Dir, &[Listed])>) + 'v;

/// Calls `visit` for a directory and every one below it. What is mounted inside is passed over.
pub fn each_directory(start: Dir, path: &[u8], visit: &mut Visit<'_>) {
    let mut levels = vec![enter(start, path.to_vec(), visit)];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.waiting.pop() else {
            levels.pop();
            continue;
        };
        let path = join(&level.path, entry.as_bytes());
        match level.dir.open_dir(&entry) {
            Ok(dir) => levels.push(enter(dir, path, visit)),
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {}
            Err(error) => visit(&path, Err(error)),
        }
    }
}

/// A directory on the way down.
struct Level {
    dir: Dir,
    path: Vec<u8>,
    /// Directories in it that are still to be visited.
    waiting: Vec<String>,
}

fn enter(dir: Dir, path: Vec<u8>, visit: &mut Visit<'_>) -> Level {
    let mut entries = Vec::new();
    let listed = dir.each_entry(|entry| {
        if !matches!(entry.name, b"." | b"..") {
            entries.push(Listed {
                name: entry.name.into(),
                kind: entry.kind,
            });
        }
    });
    for entry in entries.iter_mut().filter(|entry| entry.kind == FileType::Unknown) {
        let stat = std::str::from_utf8(&entry.name).ok().map(|name| dir.stat(name));
        if let Some(Ok(stat)) = stat {
            entry.kind = FileType::from_raw_mode(stat.st_mode);
        }
    }
    visit(&path, listed.map(|()| (&dir, &entries[..])));
    let directories = entries.iter().filter(|entry| entry.kind == FileType::Directory);
    let waiting = directories.filter_map(|entry| Some(std::str::from_utf8(&entry.name).ok()?.to_owned()));
    let waiting = waiting.collect();
    Level { dir, path, waiting }
}
