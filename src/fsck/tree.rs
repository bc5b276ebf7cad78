//! Goes through the backing tree as it is: every directory, whatever it is called, and without a key.

use std::{io, sync::Arc};

use rustix::{fs::FileType, io::Errno};

use crate::{
    backing::{Descent, Dir},
    vault::tree::{DEPTH_MAX, is_elsewhere},
};

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
pub fn each_directory(start: Dir, visit: &mut Visit<'_>) {
    let mut descent = Descent::new(Arc::new(start), "");
    while let Some(entered) = descent.enter_next() {
        let entered = entered.cloned();
        let path = descent.path().as_bytes();
        match entered {
            Ok(_) if descent.depth() >= DEPTH_MAX => visit(path, Err(Errno::LOOP.into())),
            Ok(dir) => {
                let below = look_into(&dir, path, visit);
                descent.enter_later(below);
            }
            Err(error) if is_elsewhere(&error) => {}
            Err(error) => visit(path, Err(error)),
        }
    }
}

/// Visits a directory; returns the directories in it.
fn look_into(dir: &Dir, path: &[u8], visit: &mut Visit<'_>) -> Vec<String> {
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
    visit(path, listed.map(|()| (dir, &entries[..])));
    let directories = entries.iter().filter(|entry| entry.kind == FileType::Directory);
    let below = directories.filter_map(|entry| Some(std::str::from_utf8(&entry.name).ok()?.to_owned()));
    below.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_too_far_down_is_an_error_and_what_is_above_is_visited() {
        let temporary = tempfile::TempDir::new().unwrap();
        let mut dir = Dir::open(temporary.path()).unwrap();
        for _ in 0..DEPTH_MAX + 2 {
            dir.mkdir("d", 0o700).unwrap();
            dir = dir.open_dir("d").unwrap();
        }
        let (mut visited, mut refused) = (0, Vec::new());
        each_directory(Dir::open(temporary.path()).unwrap(), &mut |path, listed| match listed {
            Ok(_) => visited += 1,
            Err(error) => refused.push((path.len(), error.raw_os_error())),
        });
        assert_eq!(visited, DEPTH_MAX);
        assert_eq!(refused, [(2 * DEPTH_MAX - 1, Some(libc::ELOOP))]);
    }
}
