//! Many threads at once on a filesystem that is not mounted, as the kernel lets them: what locks guard stays whole, and nobody waits for ever.
//!
//! The kernel has one change of a directory's names at a time, and one of an inode's, and lets everything else happen at once; so does this.
//! `scripts/sanitize` runs it with each access to memory watched.

#[path = "support/mod.rs"]
mod support;
#[path = "support/unmounted.rs"]
mod unmounted;

use std::{collections::BTreeSet, sync::mpsc, thread, time::Duration};

use hushfs::fs::{Allocate, Caller, Fs, FsError, FsResult, NameIn, ROOT, SetAttr};
use parking_lot::{Mutex, MutexGuard, RwLock};
use rustix::fs::FileType;
use support::{Bench, Rng};

/// Threads that use the filesystem.
const USERS: usize = 4;

/// What each of them does, unless HUSHFS_OPERATIONS says how much.
const OPERATIONS: usize = 4000;

/// Files are no longer than this, in words of eight bytes: several blocks, and not a whole number of them.
const WORDS_MAX: u64 = 3000;

/// How long all of it may take before someone is said to wait for ever.
const PATIENCE: Duration = Duration::from_secs(600);

/// Locks of inodes.
const INODE_LOCKS: usize = 64;

/// Names in each directory. More files in all than may be open at once, so that some are sealed while others change.
const NAMES: usize = 40;

/// The upper half of each word that is written.
const MARK: u64 = 0x6875_7368 << 32;

/// A directory, and what the kernel locks to change the names in it.
struct Directory {
    id: u64,
    names: RwLock<()>,
}

struct Shared {
    fs: Fs,
    caller: Caller,
    directories: Vec<Directory>,
    /// What the kernel locks to change the names of an inode (`vfs_link`, `vfs_unlink` and `vfs_rename` in fs/namei.c): several inodes to a lock.
    inodes: [Mutex<()>; INODE_LOCKS],
}

/// Inodes that are locked, and that the kernel knows at least until then.
struct Locked<'s> {
    fs: &'s Fs,
    known: Vec<u64>,
    locks: Vec<MutexGuard<'s, ()>>,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.locks.clear();
        self.known.iter().for_each(|&id| self.fs.forget(id, 1));
    }
}

fn lock_of(inode: u64) -> usize {
    inode as usize % INODE_LOCKS
}

impl Shared {
    /// Locks the inodes that there are under names; those in their directories are locked.
    fn lock_inodes(&self, names: &[NameIn<'_>]) -> Locked<'_> {
        let look_up = |at: &NameIn<'_>| unless_gone(self.fs.look_up(at.parent, at.name)).map(|found| found.node.id);
        let known: Vec<_> = names.iter().filter_map(look_up).collect();
        let locks: BTreeSet<_> = known.iter().map(|&id| lock_of(id)).collect();
        Locked {
            fs: &self.fs,
            known,
            locks: locks.iter().map(|&lock| self.inodes[lock].lock()).collect(),
        }
    }
}

/// One of the threads.
struct User<'s> {
    shared: &'s Shared,
    rng: Rng,
    /// Inodes that were looked up and not forgotten since.
    known: Vec<u64>,
    /// The directory that this one makes symbolic links in, whose inode numbers become those of files elsewhere.
    own: u64,
}

fn name(number: usize) -> Vec<u8> {
    // Some are too long for the names of the backing filesystem, and lie in files.
    let filler = if number % 10 == 9 { 230 } else { 0 };
    format!("{number}{}", "-".repeat(filler)).into_bytes()
}

/// Passes what happens when others are faster.
fn unless_gone<T>(result: FsResult<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) if [libc::ENOENT, libc::EEXIST, libc::ESTALE].contains(&error.errno()) => None,
        Err(error) => panic!("{error}: {error:?}"),
    }
}

impl User<'_> {
    fn pick(&mut self) -> (usize, Vec<u8>) {
        (
            self.rng.below(self.shared.directories.len()),
            name(self.rng.below(NAMES)),
        )
    }

    /// A range of words: offset and length in bytes.
    fn range(&mut self) -> (u64, u64) {
        let at = self.rng.below(WORDS_MAX as usize - 1) as u64;
        let len = 1 + self.rng.below((WORDS_MAX - at) as usize) as u64;
        (8 * at, 8 * len)
    }

    /// Looks a file up, and opens it.
    fn open(&mut self) -> Option<u64> {
        let (directory, name) = self.pick();
        let directory = &self.shared.directories[directory];
        let names = directory.names.read();
        let found = unless_gone(self.shared.fs.look_up(directory.id, &name))?;
        drop(names);
        let id = found.node.id;
        drop(found);
        self.known.push(id);
        unless_gone(self.shared.fs.open(id, true))?;
        Some(id)
    }

    fn with_file(&mut self, act: impl FnOnce(&Fs, u64, &mut Self)) {
        let Some(id) = self.open() else { return };
        let shared = self.shared;
        act(&shared.fs, id, self);
        shared.fs.release(id);
    }

    fn write(&mut self, fs: &Fs, id: u64) {
        let (offset, len) = self.range();
        let words = (0..len / 8).map(|_| MARK | self.rng.next() >> 32);
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        fs.write(id, offset, &bytes).unwrap();
    }

    fn create(&mut self) {
        let (directory, name) = self.pick();
        let directory = &self.shared.directories[directory];
        let at = NameIn {
            parent: directory.id,
            name: &name,
        };
        let names = directory.names.write();
        let created = unless_gone(self.shared.fs.create(at, 0o600, self.shared.caller));
        drop(names);
        let Some(id) = created.map(|found| found.node.id) else {
            return;
        };
        self.known.push(id);
        self.write(&self.shared.fs, id);
        self.shared.fs.release(id);
    }

    fn rename(&mut self) {
        let ((from, old), (to, new)) = (self.pick(), self.pick());
        let flags = [0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE][self.rng.below(4)];
        let directories = &self.shared.directories;
        let locks = BTreeSet::from([from, to]);
        let names: Vec<_> = locks.iter().map(|&at| directories[at].names.write()).collect();
        let name_in = |directory: usize, name| NameIn {
            parent: directories[directory].id,
            name,
        };
        let (old, new) = (name_in(from, &old), name_in(to, &new));
        let inodes = self.shared.lock_inodes(&[old, new]);
        let renamed = self.shared.fs.rename(old, new, flags);
        drop((inodes, names));
        if let Some(leftovers) = unless_gone(renamed) {
            self.shared.fs.clear(leftovers);
        }
    }

    fn link(&mut self) {
        let (to, new) = self.pick();
        self.with_file(|fs, id, this| {
            let directory = &this.shared.directories[to];
            let names = directory.names.write();
            let at = NameIn {
                parent: directory.id,
                name: &new,
            };
            let inodes = this.shared.inodes[lock_of(id)].lock();
            let linked = unless_gone(fs.link(id, at));
            drop((inodes, names));
            this.known.extend(linked.map(|found| found.node.id));
        });
    }

    fn unlink(&mut self) {
        let (directory, name) = self.pick();
        let directory = &self.shared.directories[directory];
        let names = directory.names.write();
        let at = NameIn {
            parent: directory.id,
            name: &name,
        };
        let inodes = self.shared.lock_inodes(&[at]);
        let removed = self.shared.fs.unlink(at);
        drop((inodes, names));
        if let Some(leftovers) = unless_gone(removed) {
            self.shared.fs.clear(leftovers);
        }
    }

    fn make_and_remove_link(&mut self) {
        let at = NameIn {
            parent: self.own,
            name: b"link",
        };
        let id = self
            .shared
            .fs
            .make_link(at, b"target", self.shared.caller)
            .unwrap()
            .node
            .id;
        let left = self.shared.fs.unlink(at).unwrap();
        self.shared.fs.clear(left);
        self.shared.fs.forget(id, 1);
    }

    fn look(&mut self) {
        let Some(&id) = self.known.last() else { return };
        let fs = &self.shared.fs;
        if let Some(attr) = unless_gone(fs.get_attr(id)) {
            assert_eq!((attr.ino, attr.kind()), (id, FileType::RegularFile));
        }
        match fs.get_xattr(id, b"user.none") {
            Err(FsError::NoAttribute) => {}
            other => drop(unless_gone(other)),
        }
    }

    fn forget(&mut self, keep: usize) {
        while self.known.len() > keep {
            let id = self.known.swap_remove(self.rng.below(self.known.len()));
            self.shared.fs.forget(id, 1);
        }
    }

    fn act(&mut self) {
        match self.rng.below(100) {
            0..15 => self.create(),
            15..18 => self.make_and_remove_link(),
            18..20 => self.look(),
            20..40 => self.with_file(|fs, id, this| this.write(fs, id)),
            40..60 => self.with_file(|fs, id, _| check(fs, id)),
            60..64 => self.with_file(|fs, id, this| {
                let size = SetAttr {
                    size: Some(this.range().0),
                    ..SetAttr::default()
                };
                fs.set_attr(id, this.shared.caller, &size).unwrap();
            }),
            64..68 => self.with_file(|fs, id, this| {
                let how = [Allocate::PunchHole, Allocate::ZeroRange, Allocate::Extend][this.rng.below(3)];
                let (offset, len) = this.range();
                fs.allocate(id, offset, len, how).unwrap();
            }),
            68..72 => self.with_file(|fs, from, this| {
                let ((source, _), (target, len)) = (this.range(), this.range());
                this.with_file(|_, to, _| {
                    if from != to {
                        fs.copy_range((from, source), (to, target), len).unwrap();
                    }
                });
            }),
            72..79 => self.with_file(|fs, id, _| fs.sync_file(id, true).unwrap()),
            79..80 => {
                let directory = self.rng.below(self.shared.directories.len());
                self.shared
                    .fs
                    .sync_directory(self.shared.directories[directory].id)
                    .unwrap();
            }
            80..88 => self.rename(),
            88..92 => self.link(),
            92..97 => self.unlink(),
            _ => self.forget(10),
        }
    }
}

/// Asserts that a file has nothing in it but what was written.
fn check(fs: &Fs, id: u64) {
    let mut plain = Vec::new();
    let read = fs.read(id, 0, 8 * WORDS_MAX as usize, &mut plain).unwrap();
    for word in plain[read].chunks(8) {
        let word = u64::from_le_bytes(word.try_into().expect("files end with a word"));
        assert!(word == 0 || word & MARK == MARK, "{word:x}");
    }
}

fn use_together(journal: bool) {
    let bench = Bench::with_init_options(&[]);
    let (fs, home, caller) = unmounted::fs_of(unmounted::open(&bench.vault(), &bench.passfile()), journal);
    let make = |name: &[u8]| {
        fs.make_directory(NameIn { parent: ROOT, name }, 0o700, caller)
            .unwrap()
            .node
            .id
    };
    let directories = [ROOT, make(b"a"), make(b"b")];
    let own: Vec<_> = (0..USERS)
        .map(|user| make(format!("links {user}").as_bytes()))
        .collect();
    let shared = Shared {
        fs,
        caller,
        inodes: std::array::from_fn(|_| Mutex::default()),
        directories: directories
            .into_iter()
            .map(|id| Directory {
                id,
                names: RwLock::new(()),
            })
            .collect(),
    };
    let operations = std::env::var("HUSHFS_OPERATIONS").map_or(OPERATIONS, |text| text.parse().unwrap());
    let mut seeds = Rng::new(7);
    thread::scope(|scope| {
        scope.spawn(|| shared.fs.run_sealer());
        scope.spawn(|| shared.fs.run_journal());
        let users: Vec<_> = own
            .into_iter()
            .map(|own| {
                let rng = seeds.fork();
                let shared = &shared;
                scope.spawn(move || {
                    let known = Vec::new();
                    let mut user = User {
                        shared,
                        rng,
                        known,
                        own,
                    };
                    (0..operations).for_each(|_| user.act());
                    user.forget(0);
                })
            })
            .collect();
        let ended: Vec<_> = users.into_iter().map(|user| user.join()).collect();
        shared.fs.stop_sealer();
        assert!(ended.iter().all(Result::is_ok), "a thread has panicked");
    });
    shared.fs.seal_all();
    drop((shared, home));
    bench.assert_whole("at last");
}

/// Runs it on a thread of its own, so that a lock that is never given up is a failure and no silence.
fn in_time(journal: bool) {
    let (done, ended) = mpsc::channel();
    let run = thread::spawn(move || {
        use_together(journal);
        let _ = done.send(());
    });
    match ended.recv_timeout(PATIENCE) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("some threads wait for ever"),
        _ => run.join().unwrap(),
    }
}

#[test]
fn threads_change_files_and_names_at_once() {
    in_time(false);
}

#[test]
fn threads_change_files_and_names_at_once_with_a_journal() {
    in_time(true);
}
