//! What the filesystem under a vault can answer instead of doing it: no space, no more of a quota, an error, half of a write; at every single call.
//!
//! For each operation of a mount the n-th call on the vault fails, for n = 1, 2, ... until the operation has no n-th call. What holds, each time:
//!
//! 1. The caller is told that errno, or the operation was done.
//! 2. What had been synced before is there and can be read; what was being changed is old or new, block by block.
//! 3. Once the fault is over, the same operation succeeds, without anything else being done first.
//! 4. The mount ends well, or is killed; `fsck` and `verify` find nothing, and another mount shows what 2 and 3 say.
//!
//! HUSHFS_FAULTS=all goes through all faults and all calls of commands; without it some are left out. HUSHFS_FAULTS=journal has mounts use their journal.

mod support;

#[path = "injected/commands.rs"]
mod commands;
#[path = "injected/data.rs"]
mod data;
#[path = "support/injector.rs"]
mod injector;
#[path = "injected/names.rs"]
mod names;
#[path = "injected/session.rs"]
mod session;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use injector::{Fault, Injector};
use support::{Bench, can_mount, is_root};

/// What there is in the directory that an operation works in, and is sealed.
const KEPT: &str = "kept";
const FILE: &str = "file";
const OTHER: &str = "other";
const SUB: &str = "sub";
const INNER: &str = "sub/inner";
const EMPTY: &str = "empty";

const BLOCK: usize = 4096;

/// More calls than an operation makes; the sealer's come between.
const CALLS_MAX: u64 = 400;

/// Tells whether faults can be injected here.
pub fn can_inject() -> bool {
    if !can_mount() {
        return false;
    }
    if is_root() {
        return true;
    }
    assert!(
        std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none(),
        "faults must be injected here, but that needs root"
    );
    eprintln!("SKIPPED: only root injects faults");
    false
}

/// Tells whether nothing is left out.
pub fn is_whole() -> bool {
    asks_for("all")
}

fn asks_for(what: &str) -> bool {
    std::env::var("HUSHFS_FAULTS").is_ok_and(|value| value == what)
}

/// The faults of a run.
fn faults() -> Vec<Fault> {
    let mut faults = vec![
        Fault::Once(libc::ENOSPC),
        Fault::Once(libc::EIO),
        Fault::From(libc::ENOSPC),
        Fault::Short(libc::ENOSPC),
    ];
    if is_whole() {
        faults.extend([
            Fault::From(libc::EIO),
            Fault::Short(libc::EIO),
            Fault::Once(libc::EDQUOT),
            Fault::Once(libc::EMFILE),
        ]);
    }
    faults
}

/// Returns bytes that differ from block to block and from one seed to another.
pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| seed ^ (i % 251) as u8 ^ ((i / BLOCK) as u8).wrapping_mul(37))
        .collect()
}

/// The content of each of the files above.
pub fn content_of(file: &str) -> Vec<u8> {
    match file {
        KEPT => pattern(11, 5_000),
        FILE => pattern(22, 5 * BLOCK + 100),
        OTHER => pattern(33, 3_000),
        INNER => pattern(44, 2_000),
        _ => panic!("{file} is none of them"),
    }
}

/// How far an operation came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Old,
    New,
    /// Some blocks are old and some new.
    Between,
}

/// What keeps a state from being any of these.
type Broken = String;

/// Something that a program asks of a filesystem, in a directory with the files above.
pub struct Operation {
    pub name: &'static str,
    pub act: fn(&Path) -> io::Result<()>,
    pub state: fn(&Path) -> Result<State, Broken>,
    /// It can be done again where it was done already; and must be, where only the kernel may have what was written.
    pub again: bool,
}

/// Compares a file with what it was and what it was to be, block by block; what it never had may be zeros.
pub fn blend(path: &Path, old: &[u8], new: &[u8]) -> Result<State, Broken> {
    let found = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if found == new {
        return Ok(State::New);
    }
    if found == old {
        return Ok(State::Old);
    }
    let (shortest, longest) = (old.len().min(new.len()), old.len().max(new.len()));
    if !(shortest..=longest).contains(&found.len()) {
        return Err(format!("{}: {} bytes", path.display(), found.len()));
    }
    for (number, block) in found.chunks(BLOCK).enumerate() {
        let is_of = |whole: &[u8]| {
            let rest = whole.get(number * BLOCK..).unwrap_or_default();
            block
                .iter()
                .enumerate()
                .all(|(i, &byte)| byte == rest.get(i).copied().unwrap_or(0))
        };
        if !is_of(old) && !is_of(new) {
            return Err(format!("{}: block {number} is neither old nor new", path.display()));
        }
    }
    Ok(State::Between)
}

/// Tells whether a file is the one of these whose content it should be; nothing if there is none.
pub fn is_there(dir: &Path, name: &str, content: &[u8]) -> Result<bool, Broken> {
    match fs::read(dir.join(name)) {
        Ok(found) if found == content => Ok(true),
        Ok(found) => Err(format!("{name}: {} other bytes", found.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("{name}: {error}")),
    }
}

/// Makes the files above.
fn furnish(dir: &Path) {
    fs::create_dir_all(dir.join(SUB)).unwrap();
    fs::create_dir(dir.join(EMPTY)).unwrap();
    for file in [KEPT, FILE, OTHER, INNER] {
        fs::write(dir.join(file), content_of(file)).unwrap();
    }
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Each operation is done again, then the mount ends.
    Retry,
    /// Each operation is done again, then the daemon is killed.
    RetryKill,
    /// The mount ends.
    Unmount,
    /// The daemon is killed.
    Kill,
}

/// One operation with one fault.
struct Trial {
    operation: &'static Operation,
    fault: Fault,
    /// Which call it befalls.
    n: u64,
    /// It succeeded, in the mount.
    done: bool,
}

/// The operations of one run, in one vault.
struct Run {
    bench: Bench,
    ending: Ending,
    operations: &'static [Operation],
    trials: BTreeMap<PathBuf, Trial>,
    broken: Vec<String>,
}

/// Fails every call of operations, with each of the endings.
pub fn fail_every_call(operations: &'static [Operation]) {
    if !can_inject() {
        return;
    }
    let mut broken = Vec::new();
    for ending in [Ending::Retry, Ending::RetryKill, Ending::Unmount, Ending::Kill] {
        let run = Run {
            bench: Bench::new(),
            ending,
            operations,
            trials: BTreeMap::new(),
            broken: Vec::new(),
        };
        broken.extend(run.go());
    }
    assert!(broken.is_empty(), "{} faults:\n{}", broken.len(), broken.join("\n"));
}

/// Mounts a vault whose calls can be made to fail.
///
/// What the rings of io_uring carry is not in question here, and one way is enough. Without the journal, unless HUSHFS_FAULTS=journal: of a change of
/// size that the journal has and the file does not take, the caller is told that it failed.
pub fn mount_watched(bench: &mut Bench) -> Injector {
    mount_watched_with(
        bench,
        &[if asks_for("journal") {
            "--journal"
        } else {
            "--journal=never"
        }],
    )
}

/// As [`mount_watched`], with options of the test's own.
pub fn mount_watched_with(bench: &mut Bench, options: &[&str]) -> Injector {
    let vault = bench.vault();
    let mut injector = None;
    let options = [&["--transport", "device"], options].concat();
    let ended = bench.try_mount_with(&options, |command| {
        injector = Some(Injector::watch(command, &vault));
    });
    assert!(ended.is_none(), "mount: {:?}", ended.unwrap());
    injector.unwrap()
}

impl Run {
    fn directory(&self, operation: &Operation, fault: Fault, n: u64) -> PathBuf {
        PathBuf::from(format!("{}, {fault:?}", operation.name)).join(n.to_string())
    }

    fn go(mut self) -> Vec<String> {
        let counts = self.count_calls();
        self.bench.mount(&[]);
        for (operation, fault, count) in counts {
            // Without all of it each call fails in two of the endings.
            for n in (1..=count).filter(|n| is_whole() || (n + self.ending as u64).is_multiple_of(2)) {
                let at = self.directory(operation, fault, n);
                furnish(&self.bench.mnt().join(&at));
                let done = false;
                self.trials.insert(
                    at,
                    Trial {
                        operation,
                        fault,
                        n,
                        done,
                    },
                );
            }
        }
        self.bench.unmount();
        self.inject();
        self.end();
        self.broken
    }

    /// Does each operation once without a fault; returns how many calls a fault can happen to.
    fn count_calls(&mut self) -> Vec<(&'static Operation, Fault, u64)> {
        self.bench.mount(&[]);
        for operation in self.operations {
            furnish(&self.bench.mnt().join(operation.name));
        }
        self.bench.unmount();
        let injector = mount_watched(&mut self.bench);
        let mut counts = Vec::new();
        for operation in self.operations {
            let dir = self.bench.mnt().join(operation.name);
            injector.count();
            (operation.act)(&dir).unwrap_or_else(|error| panic!("{}: {error}", operation.name));
            let outcome = injector.disarm();
            assert_eq!((operation.state)(&dir), Ok(State::New), "{}", operation.name);
            for fault in faults() {
                let count = outcome.count(fault);
                assert!(count < CALLS_MAX, "{}: {:?}", operation.name, outcome.calls);
                // Some are made for the first file of a vault only, or by the sealer.
                counts.push((operation, fault, count));
            }
        }
        self.bench.unmount();
        counts
    }

    fn inject(&mut self) {
        let injector = mount_watched(&mut self.bench);
        let mnt = self.bench.mnt();
        let ending = self.ending;
        let mut hits = 0;
        let mut told = 0;
        for (at, trial) in &mut self.trials {
            let dir = mnt.join(at);
            let operation = trial.operation;
            injector.arm(trial.fault, trial.n);
            let result = (operation.act)(&dir);
            let outcome = injector.disarm();
            hits += u64::from(!outcome.hits.is_empty());
            told += u64::from(result.is_err());
            trial.done = result.is_ok();
            let mut complain = |what: String| {
                self.broken.push(format!(
                    "{ending:?}, {}: {what}; failed: {:?}",
                    at.display(),
                    outcome.hits
                ));
            };
            if let Err(error) = result
                && !is_right_errno(&error, trial.fault)
            {
                complain(format!("the error is {error}"));
            }
            if let Err(what) = check(&dir, trial) {
                complain(what);
            }
            if matches!(ending, Ending::Retry | Ending::RetryKill) {
                let is_left = operation.again || (operation.state)(&dir) != Ok(State::New);
                match if is_left { (operation.act)(&dir) } else { Ok(()) } {
                    Ok(()) => trial.done = true,
                    Err(error) => complain(format!("done again it fails: {error}")),
                }
            }
            if let Err(what) = check(&dir, trial) {
                complain(format!("afterwards {what}"));
            }
        }
        eprintln!(
            "{ending:?}: {} trials, {hits} faults, {told} told to the caller",
            self.trials.len()
        );
        assert!(hits as usize * 2 > self.trials.len(), "the faults do not happen");
    }

    fn end(&mut self) {
        if matches!(self.ending, Ending::Kill | Ending::RetryKill) {
            self.bench.kill();
        } else {
            self.bench.unmount();
        }
        // Once as it is, once after a mount has recovered what the kill left open.
        for _ in 0..2 {
            for command in ["fsck", "verify"] {
                let output = self.bench.run(command, &[]);
                let (stdout, stderr) = (
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr),
                );
                if !output.status.success() {
                    let damage: Vec<_> = stdout.lines().filter(|line| !line.starts_with("note")).collect();
                    self.broken
                        .push(format!("{:?}: {command}: {}\n{stderr}", self.ending, damage.join("\n")));
                }
            }
            self.bench.mount(&[]);
            let mnt = self.bench.mnt();
            for (at, trial) in &self.trials {
                if let Err(what) = check(&mnt.join(at), trial) {
                    self.broken.push(format!(
                        "{:?}, {}: after another mount {what}",
                        self.ending,
                        at.display()
                    ));
                }
            }
            self.bench.unmount();
        }
        // What failed leaves nothing that cannot be removed.
        self.bench.mount(&[]);
        for entry in fs::read_dir(self.bench.mnt()).unwrap() {
            let path = entry.unwrap().path();
            if let Err(error) = fs::remove_dir_all(&path) {
                self.broken.push(format!(
                    "{:?}, {}: cannot be removed: {error}",
                    self.ending,
                    path.display()
                ));
            }
        }
        self.bench.unmount();
    }
}

/// The kernel tells who syncs a file of ENOSPC and of EIO only.
fn is_right_errno(error: &io::Error, fault: Fault) -> bool {
    let found = error.raw_os_error();
    found == Some(fault.errno()) || (found == Some(libc::EIO) && fault.errno() != libc::ENOSPC)
}

/// Asserts what holds whatever happened.
fn check(dir: &Path, trial: &Trial) -> Result<(), Broken> {
    match is_there(dir, KEPT, &content_of(KEPT)) {
        Ok(true) => {}
        Ok(false) => return Err("a file that nobody touched is gone".into()),
        Err(what) => return Err(what),
    }
    let state = (trial.operation.state)(dir)?;
    if trial.done && state != State::New {
        return Err(format!("it is {state:?} though it was done"));
    }
    Ok(())
}

/// Opens a file of a directory for writing.
pub fn writable(dir: &Path, name: &str) -> io::Result<File> {
    File::options().read(true).write(true).open(dir.join(name))
}

/// Writes to a file and makes that durable.
pub fn write_synced(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)?;
    file.sync_all()
}
