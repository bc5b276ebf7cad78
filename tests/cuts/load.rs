//! The loads: programs that change their own trees, sync some of it, and remember what was answered.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::fs::FallocateFlags;

use crate::history::{Action, Clock, Entry, Expected, History, Kind, ObjectId, TOP, fill, is_refusal};

/// What one worker mostly does.
#[derive(Clone, Copy, Debug)]
enum Load {
    Overwrites,
    Appends,
    Replacements,
    Names,
    Sizes,
}

/// A worker for each load.
const LOADS: [Load; 5] = [
    Load::Overwrites,
    Load::Appends,
    Load::Replacements,
    Load::Names,
    Load::Sizes,
];

/// One thing to do.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Overwrite,
    Append,
    Truncate,
    Punch,
    Create,
    Replace,
    RenameFile,
    Link,
    Symlink,
    Unlink,
    MakeDirectory,
    RenameDirectory,
    RemoveDirectory,
}

const DEEDS: [Deed; 13] = [
    Deed::Overwrite,
    Deed::Append,
    Deed::Truncate,
    Deed::Punch,
    Deed::Create,
    Deed::Replace,
    Deed::RenameFile,
    Deed::Link,
    Deed::Symlink,
    Deed::Unlink,
    Deed::MakeDirectory,
    Deed::RenameDirectory,
    Deed::RemoveDirectory,
];

impl Load {
    fn deeds(self) -> &'static [Deed] {
        match self {
            Load::Overwrites => &[Deed::Overwrite],
            Load::Appends => &[Deed::Append, Deed::Append, Deed::Create],
            Load::Replacements => &[Deed::Replace, Deed::Replace, Deed::Create, Deed::Overwrite],
            Load::Names => &DEEDS,
            Load::Sizes => &[Deed::Truncate, Deed::Punch, Deed::Append, Deed::Overwrite],
        }
    }
}

/// How many files and directories a worker has at most.
const FILES_MAX: usize = 40;
const DIRECTORIES_MAX: usize = 10;

/// So many files are in use at a time; the others rest, and are sealed.
const HOT_FILES: usize = 6;

/// How many steps until others are in use.
const HOT_STEPS: usize = 60;

/// Longest name of an entry.
const NAME_MAX: usize = 255;

/// A file that has a name.
struct LiveFile {
    object: ObjectId,
    names: Vec<Entry>,
    size: u64,
}

/// A worker and its tree.
pub struct Worker {
    load: Load,
    /// The directory of the tree, in the mount.
    root: PathBuf,
    /// The name of that directory.
    pub name: String,
    history: History,
    rng: StdRng,
    files: Vec<LiveFile>,
    directories: Vec<(ObjectId, Entry)>,
    links: Vec<Entry>,
    /// Names that files have had.
    free: Vec<Entry>,
    /// Numbers names and contents.
    counter: u64,
    hot: usize,
}

impl Worker {
    /// Makes workers, one for each load, with trees at `mount` whose names begin with `prefix`.
    pub fn all(mount: &Path, prefix: &str, clock: &Arc<Clock>, rng: &mut StdRng) -> Vec<Self> {
        let loads = LOADS.iter().enumerate();
        loads
            .map(|(i, &load)| {
                let name = format!("{prefix}{i}");
                Worker {
                    load,
                    root: mount.join(&name),
                    name,
                    history: History::new(clock),
                    rng: StdRng::seed_from_u64(rng.random()),
                    files: Vec::new(),
                    directories: Vec::new(),
                    links: Vec::new(),
                    free: Vec::new(),
                    counter: (i as u64) << 32,
                    hot: 0,
                }
            })
            .collect()
    }

    /// Makes the tree, with files to begin with.
    pub fn prepare(&mut self, files: usize) -> io::Result<()> {
        fs::create_dir(&self.root)?;
        let made = (0..3).map(|_| self.make_directory()).collect::<Vec<_>>();
        let created = (0..files).map(|_| self.create()).collect::<Vec<_>>();
        // A filesystem without long names has fewer.
        let is_fault = |made: &io::Result<()>| made.as_ref().is_err_and(|error| !is_refusal(error));
        made.into_iter().chain(created).find(is_fault).unwrap_or(Ok(()))
    }

    /// Notes that the vault was unmounted and the disk synced.
    pub fn note_sync(&self) -> io::Result<()> {
        self.history.perform(Action::SyncAll, || Ok(()))
    }

    /// Returns what must be there after a cut.
    pub fn expected(&self, cut: crate::history::Cut) -> Expected {
        self.history.expected(cut)
    }

    /// Works until it is told to stop.
    pub fn run(&mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut steps = 0;
        while !stop.load(Ordering::Relaxed) {
            steps += 1;
            if steps % HOT_STEPS == 0 {
                self.hot = self.rng.random_range(0..FILES_MAX);
            }
            self.step()?;
            thread::sleep(Duration::from_micros(self.rng.random_range(0..8000)));
        }
        Ok(())
    }

    fn step(&mut self) -> io::Result<()> {
        let deeds = if self.rng.random_bool(0.85) {
            self.load.deeds()
        } else {
            &DEEDS
        };
        let deed = deeds[self.rng.random_range(0..deeds.len())];
        let done = match deed {
            Deed::Overwrite => self.overwrite(),
            Deed::Append => self.append(),
            Deed::Truncate => self.truncate(),
            Deed::Punch => self.punch(),
            Deed::Create => self.create(),
            Deed::Replace => self.replace(),
            Deed::RenameFile => self.rename_file(),
            Deed::Link => self.link(),
            Deed::Symlink => self.symlink(),
            Deed::Unlink => self.unlink(),
            Deed::MakeDirectory => self.make_directory(),
            Deed::RenameDirectory => self.rename_directory(),
            Deed::RemoveDirectory => self.remove_directory(),
        };
        match done {
            Err(error) if is_refusal(&error) => Ok(()),
            other => other.map_err(|error| io::Error::new(error.kind(), format!("{deed:?} in {}: {error}", self.name))),
        }
    }

    fn likely(&mut self) -> bool {
        self.rng.random_bool(0.6)
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    // Where things are.

    fn directory_path(&self, directory: ObjectId) -> PathBuf {
        if directory == TOP {
            return self.root.clone();
        }
        let found = self.directories.iter().find(|(id, _)| *id == directory);
        self.path(&found.expect("a directory that is there").1)
    }

    fn path(&self, entry: &Entry) -> PathBuf {
        self.directory_path(entry.0).join(&*entry.1)
    }

    fn some_directory(&mut self) -> ObjectId {
        match self.rng.random_range(0..=self.directories.len()) {
            0 => TOP,
            i => self.directories[i - 1].0,
        }
    }

    /// Chooses a file, by its place in the list.
    fn some_file(&mut self) -> Option<usize> {
        let count = self.files.len();
        let hot = self.hot + self.rng.random_range(0..HOT_FILES);
        (count > 0).then(|| hot % count)
    }

    /// Chooses a name that is not taken; one that was before, or one that is as long as names may be, now and then.
    fn new_name(&mut self, letter: char) -> Entry {
        if letter == 'f' && !self.free.is_empty() && self.rng.random_bool(0.4) {
            let at = self.rng.random_range(0..self.free.len());
            let entry = self.free.swap_remove(at);
            let is_there = entry.0 == TOP || self.directories.iter().any(|(id, _)| *id == entry.0);
            if is_there {
                return entry;
            }
        }
        let directory = self.some_directory();
        let mut name = format!("{letter}{}", self.next() & 0xffff_ffff);
        if self.rng.random_bool(0.15) {
            let len = self.rng.random_range(170..=NAME_MAX);
            name.extend(std::iter::repeat_n('-', len - name.len()));
        }
        (directory, name.into())
    }

    // Contents.

    fn open(&self, file: usize) -> io::Result<File> {
        let path = self.path(&self.files[file].names[0]);
        OpenOptions::new().read(true).write(true).open(path)
    }

    fn write(&mut self, file: usize, handle: &File, offset: u64, len: u64) -> io::Result<()> {
        let seed = self.next();
        let object = self.files[file].object;
        let mut data = vec![0; len as usize];
        fill(&mut data, offset, seed);
        let action = Action::Write {
            object,
            offset,
            len,
            seed,
        };
        self.history.perform(action, || handle.write_all_at(&data, offset))?;
        self.files[file].size = self.files[file].size.max(offset + len);
        Ok(())
    }

    fn sync_file(&mut self, file: usize, handle: &File) -> io::Result<()> {
        let data_only = self.rng.random_bool(0.5);
        let object = self.files[file].object;
        self.history.perform(Action::SyncFile(object), || match data_only {
            true => handle.sync_data(),
            false => handle.sync_all(),
        })
    }

    fn sync_directory(&mut self, directory: ObjectId) -> io::Result<()> {
        let path = self.directory_path(directory);
        let action = Action::SyncDirectory(directory);
        self.history.perform(action, || File::open(path)?.sync_all())
    }

    fn some_len(&mut self) -> u64 {
        match self.rng.random_range(0..20) {
            0 => self.rng.random_range(100_000..300_000),
            1..6 => self.rng.random_range(1..200),
            _ => self.rng.random_range(1..20_000),
        }
    }

    fn overwrite(&mut self) -> io::Result<()> {
        let Some(file) = self.some_file() else { return Ok(()) };
        let handle = self.open(file)?;
        for _ in 0..self.rng.random_range(1..4) {
            let size = self.files[file].size.max(1);
            let mut offset = self.rng.random_range(0..size);
            let mut len = self.some_len();
            if self.likely() {
                offset -= offset % 4096;
                len = len.next_multiple_of(4096);
            }
            let len = len.min(size - offset);
            self.write(file, &handle, offset, len)?;
        }
        if self.likely() {
            self.sync_file(file, &handle)?;
        }
        Ok(())
    }

    fn append(&mut self) -> io::Result<()> {
        let Some(file) = self.some_file() else { return Ok(()) };
        if self.files[file].size > 600_000 {
            return self.truncate();
        }
        let handle = self.open(file)?;
        for _ in 0..self.rng.random_range(1..4) {
            let (offset, len) = (self.files[file].size, self.some_len());
            self.write(file, &handle, offset, len)?;
        }
        if self.likely() {
            self.sync_file(file, &handle)?;
        }
        Ok(())
    }

    fn truncate(&mut self) -> io::Result<()> {
        let Some(file) = self.some_file() else { return Ok(()) };
        let handle = self.open(file)?;
        let LiveFile { object, size, .. } = self.files[file];
        let size = self.rng.random_range(0..size.max(20_000) * 5 / 4);
        let size = if self.likely() { size } else { size - size % 4096 };
        self.history
            .perform(Action::Truncate(object, size), || handle.set_len(size))?;
        self.files[file].size = size;
        if self.likely() {
            self.sync_file(file, &handle)?;
        }
        Ok(())
    }

    fn punch(&mut self) -> io::Result<()> {
        let Some(file) = self.some_file() else { return Ok(()) };
        let handle = self.open(file)?;
        let LiveFile { object, size, .. } = self.files[file];
        let offset = self.rng.random_range(0..size.max(1));
        let len = self.some_len();
        let action = Action::Punch { object, offset, len };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.history
            .perform(action, || Ok(rustix::fs::fallocate(&handle, flags, offset, len)?))?;
        if self.likely() {
            self.sync_file(file, &handle)?;
        }
        Ok(())
    }

    // Names.

    fn create(&mut self) -> io::Result<()> {
        if self.files.len() >= FILES_MAX {
            return self.unlink();
        }
        let entry = self.new_name('f');
        let handle = self.create_file(&entry)?;
        let file = self.files.len() - 1;
        let len = self.some_len();
        self.write(file, &handle, 0, len)?;
        if self.likely() {
            self.sync_file(file, &handle)?;
        }
        if self.likely() {
            self.sync_directory(entry.0)?;
        }
        Ok(())
    }

    /// Makes a file, the last in the list then.
    fn create_file(&mut self, entry: &Entry) -> io::Result<File> {
        let object = self.history.add(Kind::File);
        let path = self.path(entry);
        let handle = self
            .history
            .perform(Action::Bind(entry.clone(), object), || File::create_new(path))?;
        self.files.push(LiveFile {
            object,
            names: vec![entry.clone()],
            size: 0,
        });
        Ok(handle)
    }

    /// Replaces a file by another one, by renaming that over it.
    fn replace(&mut self) -> io::Result<()> {
        let Some(old) = self.some_file() else { return Ok(()) };
        let to = self.files[old].names[0].clone();
        // In the same directory, as programs do; or it may have to change its own.
        let mut from = self.new_name('t');
        if self.rng.random_bool(0.7) {
            from.0 = to.0;
        }
        let handle = self.create_file(&from)?;
        let new = self.files.len() - 1;
        let len = self.some_len();
        self.write(new, &handle, 0, len)?;
        if self.likely() {
            self.sync_file(new, &handle)?;
        }
        self.rename(&from, &to)?;
        self.files[new].names = vec![to.clone()];
        self.lose_name(old, &to);
        if self.likely() {
            self.sync_directory(to.0)?;
        }
        Ok(())
    }

    /// Takes a name from a file, and the file from the list if it was the last one.
    fn lose_name(&mut self, file: usize, entry: &Entry) {
        self.files[file].names.retain(|name| name != entry);
        if self.files[file].names.is_empty() {
            self.files.swap_remove(file);
        }
    }

    fn rename(&mut self, from: &Entry, to: &Entry) -> io::Result<()> {
        let paths = (self.path(from), self.path(to));
        self.history.perform(Action::Rename(from.clone(), to.clone()), || {
            fs::rename(&paths.0, &paths.1)
        })
    }

    fn rename_file(&mut self) -> io::Result<()> {
        let Some(file) = self.some_file() else { return Ok(()) };
        let from = self.files[file].names[0].clone();
        let to = self.new_name('f');
        self.rename(&from, &to)?;
        self.files[file].names[0] = to.clone();
        self.free.push(from.clone());
        self.sync_both(&from, &to)
    }

    fn sync_both(&mut self, from: &Entry, to: &Entry) -> io::Result<()> {
        if self.likely() {
            self.sync_directory(to.0)?;
            if from.0 != to.0 {
                self.sync_directory(from.0)?;
            }
        }
        Ok(())
    }

    fn link(&mut self) -> io::Result<()> {
        let Some(file) = self.some_file() else { return Ok(()) };
        let from = self.path(&self.files[file].names[0]);
        let entry = self.new_name('f');
        let to = self.path(&entry);
        let action = Action::Bind(entry.clone(), self.files[file].object);
        self.history.perform(action, || fs::hard_link(from, to))?;
        self.files[file].names.push(entry.clone());
        if self.likely() {
            self.sync_directory(entry.0)?;
        }
        Ok(())
    }

    fn symlink(&mut self) -> io::Result<()> {
        if self.links.len() >= FILES_MAX {
            let entry = self.links.swap_remove(0);
            return self.remove(&entry);
        }
        let entry = self.new_name('s');
        let len = match self.rng.random_range(0..4) {
            0 => self.rng.random_range(2000..4000),
            _ => self.rng.random_range(1..200),
        };
        let target: String = std::iter::repeat_n('x', len).collect();
        let object = self.history.add(Kind::Symlink(target.clone()));
        let path = self.path(&entry);
        let action = Action::Bind(entry.clone(), object);
        self.history
            .perform(action, || std::os::unix::fs::symlink(target, path))?;
        self.links.push(entry.clone());
        if self.likely() {
            self.sync_directory(entry.0)?;
        }
        Ok(())
    }

    fn unlink(&mut self) -> io::Result<()> {
        let Some(file) = self.some_file() else { return Ok(()) };
        let entry = self.files[file].names[0].clone();
        self.remove(&entry)?;
        self.lose_name(file, &entry);
        self.free.push(entry);
        Ok(())
    }

    /// Removes a file or link.
    fn remove(&mut self, entry: &Entry) -> io::Result<()> {
        let path = self.path(entry);
        self.history
            .perform(Action::Unbind(entry.clone()), || fs::remove_file(path))?;
        if self.likely() {
            self.sync_directory(entry.0)?;
        }
        Ok(())
    }

    fn make_directory(&mut self) -> io::Result<()> {
        if self.directories.len() >= DIRECTORIES_MAX {
            return self.rename_directory();
        }
        let entry = self.new_name('d');
        let object = self.history.add(Kind::Directory);
        let path = self.path(&entry);
        self.history
            .perform(Action::Bind(entry.clone(), object), || fs::create_dir(path))?;
        self.directories.push((object, entry.clone()));
        if self.likely() {
            self.sync_directory(object)?;
        }
        if self.likely() {
            self.sync_directory(entry.0)?;
        }
        Ok(())
    }

    fn rename_directory(&mut self) -> io::Result<()> {
        if self.directories.is_empty() {
            return Ok(());
        }
        let at = self.rng.random_range(0..self.directories.len());
        let (object, from) = self.directories[at].clone();
        let to = self.new_name('d');
        if self.lies_in(to.0, object) {
            return Ok(());
        }
        self.rename(&from, &to)?;
        self.directories[at].1 = to.clone();
        self.sync_both(&from, &to)
    }

    /// Tells whether a directory is another one, or lies in it.
    fn lies_in(&self, mut directory: ObjectId, other: ObjectId) -> bool {
        while directory != TOP {
            if directory == other {
                return true;
            }
            let found = self.directories.iter().find(|(id, _)| *id == directory);
            directory = found.expect("a directory that is there").1.0;
        }
        false
    }

    fn remove_directory(&mut self) -> io::Result<()> {
        let is_used = |id: ObjectId| {
            let names = self.files.iter().flat_map(|file| &file.names);
            let directories = self.directories.iter().map(|(_, entry)| entry);
            names.chain(&self.links).chain(directories).any(|entry| entry.0 == id)
        };
        let Some(at) = self.directories.iter().position(|(id, _)| !is_used(*id)) else {
            return Ok(());
        };
        let (_, entry) = self.directories.swap_remove(at);
        let path = self.path(&entry);
        self.history
            .perform(Action::Unbind(entry.clone()), || fs::remove_dir(path))?;
        if self.likely() {
            self.sync_directory(entry.0)?;
        }
        Ok(())
    }
}
