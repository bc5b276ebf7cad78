//! The directories of a tree, one after the other. There may be more beside each other, and inside each other, than a process may have open, and paths
//! longer than the kernel takes: each is opened by its name in the one above, and few stay open.

use std::{io, sync::Arc};

use super::Dir;

/// Directories that are open at a time, those deepest down.
pub const OPEN_MAX: usize = 64;

/// A way down through directories.
#[derive(Debug)]
pub struct Descent {
    /// The path of the directory that was entered last.
    path: String,
    /// The first is where it starts; the one behind it is the same, entered.
    levels: Vec<Level>,
}

/// A directory on the way down.
#[derive(Debug)]
struct Level {
    /// Where its name ends in the path.
    path_len: usize,
    /// Closed again while it is far above.
    dir: Option<Arc<Dir>>,
    /// Directories in it that are still to be entered.
    waiting: Vec<String>,
}

impl Descent {
    /// Begins at a directory with its path, which stays open.
    pub fn new(start: Arc<Dir>, path: &str) -> Self {
        let anchor = Level {
            path_len: path.len(),
            dir: Some(start),
            waiting: vec![String::new()],
        };
        Descent {
            path: path.to_owned(),
            levels: vec![anchor],
        }
    }

    /// Opens the next directory; nothing behind the last. The first is where it starts.
    pub fn enter_next(&mut self) -> Option<io::Result<&Arc<Dir>>> {
        let name = loop {
            let level = self.levels.last_mut()?;
            self.path.truncate(level.path_len);
            match level.waiting.pop() {
                Some(name) => break name,
                None => self.levels.pop(),
            };
        };
        if !self.path.is_empty() && !name.is_empty() {
            self.path.push('/');
        }
        self.path.push_str(&name);
        self.levels.push(Level {
            path_len: self.path.len(),
            dir: None,
            waiting: Vec::new(),
        });
        Some(self.open_last())
    }

    /// Has directories entered that are in the one that was entered last.
    pub fn enter_later(&mut self, below: Vec<String>) {
        if let Some(level) = self.levels.last_mut() {
            level.waiting = below;
        }
    }

    /// Returns the path of the directory that was entered last.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns how many directories that one is in, from the start on.
    pub fn depth(&self) -> usize {
        self.levels.len().saturating_sub(2)
    }

    /// Opens what is closed between the last directory and the nearest open one above it.
    fn open_last(&mut self) -> io::Result<&Arc<Dir>> {
        let open = self.levels.iter().rposition(|level| level.dir.is_some());
        let mut at = open.expect("the first is always open");
        while at + 1 < self.levels.len() {
            let above = self.levels[at].dir.as_ref().expect("opened just now");
            let dir = above.open_dir(self.name(at + 1))?;
            at += 1;
            self.levels[at].dir = Some(Arc::new(dir));
            if at > OPEN_MAX {
                self.levels[at - OPEN_MAX].dir = None;
            }
        }
        Ok(self.levels[at].dir.as_ref().expect("opened just now"))
    }

    /// Returns the name of a directory in the one above it.
    fn name(&self, at: usize) -> &str {
        match &self.path[self.levels[at - 1].path_len..self.levels[at].path_len] {
            "" => ".",
            name => name.strip_prefix('/').unwrap_or(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rustix::fs::FileType;
    use tempfile::TempDir;

    use super::*;

    fn make(dir: &Dir, name: &str) -> Dir {
        dir.mkdir(name, 0o700).unwrap();
        dir.open_dir(name).unwrap()
    }

    fn below(dir: &Dir) -> Vec<String> {
        let mut below = Vec::new();
        dir.each_entry(|entry| {
            if entry.kind == FileType::Directory && !matches!(entry.name, b"." | b"..") {
                below.push(String::from_utf8(entry.name.to_vec()).unwrap());
            }
        })
        .unwrap();
        below
    }

    #[test]
    fn few_directories_are_open_however_many_there_are_inside_each_other() {
        const DEPTH: usize = 5 * OPEN_MAX;
        let temporary = TempDir::new().unwrap();
        let mut dir = Dir::open(temporary.path()).unwrap();
        for _ in 0..DEPTH {
            make(&dir, "sibling");
            dir = make(&dir, "below");
        }
        let start = Arc::new(Dir::open(temporary.path()).unwrap());
        let mut descent = Descent::new(start, "");
        let mut entered = 0;
        while let Some(dir) = descent.enter_next() {
            let found = below(dir.unwrap());
            entered += 1;
            descent.enter_later(found);
            let open = descent.levels.iter().filter(|level| level.dir.is_some()).count();
            assert!(open <= OPEN_MAX + 1, "{open} open at {}", descent.path());
            assert_eq!(descent.depth(), descent.path().split_terminator('/').count());
        }
        assert_eq!(entered, 1 + 2 * DEPTH);
    }

    #[test]
    fn paths_go_on_from_where_it_starts() {
        let temporary = TempDir::new().unwrap();
        let root = Dir::open(temporary.path()).unwrap();
        let one = make(&root, "one");
        make(&one, "a");
        make(&make(&one, "b"), "c");
        for (path, wanted) in [
            ("", ["", "a", "b", "b/c"]),
            ("one", ["one", "one/a", "one/b", "one/b/c"]),
        ] {
            let mut descent = Descent::new(Arc::new(one.open_dir(".").unwrap()), path);
            let mut paths = BTreeSet::new();
            while let Some(dir) = descent.enter_next() {
                let found = below(dir.unwrap());
                descent.enter_later(found);
                paths.insert(descent.path().to_owned());
            }
            assert_eq!(paths, wanted.map(str::to_owned).into());
        }
    }

    #[test]
    fn what_is_gone_is_an_error_under_its_path_and_the_rest_is_entered() {
        let temporary = TempDir::new().unwrap();
        let start = Arc::new(Dir::open(temporary.path()).unwrap());
        make(&start, "here");
        let mut descent = Descent::new(start, "");
        descent.enter_next().unwrap().unwrap();
        descent.enter_later(vec!["here".to_owned(), "gone".to_owned()]);
        let error = descent.enter_next().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(descent.path(), "gone");
        descent.enter_next().unwrap().unwrap();
        assert_eq!(descent.path(), "here");
        assert!(descent.enter_next().is_none());
    }
}
