//! Compares a vault with a snapshot, or with the local record, and says of each difference whether it was to be expected.
//!
//! To be expected is what only someone with the vault's keys can have made: what was written, made and renamed since. Everything else can be the
//! work of anyone who can write to the vault, though the user may have done it too: what is older, missing, empty or exchanged.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    io::Read,
};

use rustix::fs::FileType;

use super::{Beside, SnapshotError, SnapshotReader, listed};
use crate::{
    backing::Dir,
    crypto::record::RecordKey,
    format::{
        record::SeenHome,
        snapshot::{Entry, FileState, SealedContent, SnapshotHead, What},
    },
    ids::FileId,
    vault::{
        Vault, VaultError,
        record::{Backwards, Record},
        tree::{self, Step, Visited},
    },
};

/// How something differs from what was known of it.
#[derive(Debug)]
pub enum Change {
    /// It is new.
    Added,
    /// It was written to.
    Written,
    /// Another file has its name, which was not known before, or a link its own.
    Replaced,
    /// Something has its name that takes no key to make: an empty file, a directory, a special file, the copy of a link, or of a file that is elsewhere too.
    Supplanted,
    /// It was renamed by hushfs.
    Moved {
        /// What it was called.
        from: Vec<u8>,
    },
    /// Its permissions are others.
    Mode {
        /// What they were, with its type.
        was: u32,
        /// What they are.
        is: u32,
    },
    /// It is gone.
    Removed,
    /// It is older, or empty.
    Backwards(Backwards),
    /// It has the name of something else, and nothing in it says that hushfs gave it that.
    Exchanged {
        /// What it was called.
        with: Vec<u8>,
    },
    /// It cannot be read.
    Unreadable(VaultError),
}

impl Change {
    /// Tells whether only someone with the vault's keys can have made it.
    pub fn is_expected(&self) -> bool {
        match self {
            Change::Added | Change::Written | Change::Replaced | Change::Moved { .. } | Change::Mode { .. } => true,
            Change::Supplanted
            | Change::Removed
            | Change::Backwards(_)
            | Change::Exchanged { .. }
            | Change::Unreadable(_) => false,
        }
    }

    /// Returns a word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Change::Added => "added",
            Change::Written => "written",
            Change::Replaced => "replaced",
            Change::Supplanted => "supplanted",
            Change::Moved { .. } => "moved",
            Change::Mode { .. } => "mode",
            Change::Removed => "removed",
            Change::Backwards(_) => "backwards",
            Change::Exchanged { .. } => "exchanged",
            Change::Unreadable(_) => "unreadable",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Added => f.write_str("new"),
            Change::Written => f.write_str("written to since"),
            Change::Replaced => f.write_str("another file has its name now"),
            Change::Supplanted => f.write_str("something has its name now that anyone can have put there"),
            Change::Moved { from } => write!(f, "renamed; was {:?}", String::from_utf8_lossy(from)),
            Change::Mode { was, is } => write!(f, "mode {:o}, was {:o}", is & 0o7777, was & 0o7777),
            Change::Removed => f.write_str("is not there any more"),
            Change::Backwards(backwards) => backwards.fmt(f),
            Change::Exchanged { with } => write!(
                f,
                "is what was called {:?}, and may have been exchanged by anyone",
                String::from_utf8_lossy(with)
            ),
            Change::Unreadable(error) => error.fmt(f),
        }
    }
}

/// A difference, and where.
#[derive(Debug)]
pub struct Difference {
    /// The path in the view; nothing for the vault itself.
    pub path: Option<Vec<u8>>,
    /// What differs.
    pub change: Change,
}

/// How much was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Entries that are there.
    pub entries: u64,
    /// Differences that were to be expected.
    pub expected: u64,
    /// The others.
    pub unexpected: u64,
    /// Files of the record that are nowhere in the vault: removed by another machine, or by anyone.
    pub missing: u64,
}

/// Reports differences, and counts them.
struct Reporter<'r> {
    report: &'r mut dyn FnMut(Option<Difference>),
    summary: Summary,
}

impl Reporter<'_> {
    fn entry(&mut self) {
        self.summary.entries += 1;
        (self.report)(None);
    }

    fn found(&mut self, path: &[u8], change: Change) {
        self.count(&change);
        let path = Some(path.to_vec());
        (self.report)(Some(Difference { path, change }));
    }

    fn found_in_vault(&mut self, change: Change) {
        self.count(&change);
        (self.report)(Some(Difference { path: None, change }));
    }

    fn count(&mut self, change: &Change) {
        if change.is_expected() {
            self.summary.expected += 1;
        } else {
            self.summary.unexpected += 1;
        }
    }
}

/// Compares a vault with a snapshot: looks at every file, whatever its attributes say, but reads no contents. `report` hears of each entry that was
/// looked at, without a difference, and of each difference.
///
/// # Errors
///
/// What reading the vault's root or the snapshot gives. What was reported before counts.
pub fn compare<R: Read>(
    vault: &Vault,
    root: &Dir,
    home: &SeenHome,
    snapshot: SnapshotReader<R>,
    report: &mut dyn FnMut(Option<Difference>),
) -> Result<Summary, SnapshotError> {
    let mut run = Comparison {
        vault,
        key: vault.record_key(),
        reporter: Reporter {
            report,
            summary: Summary::default(),
        },
        lost: HashMap::new(),
        gained: Vec::new(),
        found: HashMap::new(),
        links: HashMap::new(),
        kept_links: HashSet::new(),
        relinked: Vec::new(),
    };
    if let Some(backwards) = compare_homes(snapshot.head(), home) {
        run.reporter.found_in_vault(Change::Backwards(backwards));
    }
    let mut beside = Beside::new(snapshot)?;
    tree::walk(vault, root, &mut |step| run.step(step, &mut beside))?;
    while let Some((path, entry)) = beside.take_before(None)? {
        run.removed(path, &entry);
    }
    Ok(run.finish())
}

fn compare_homes(head: &SnapshotHead, now: &SeenHome) -> Option<Backwards> {
    let was = &head.home;
    if now.epoch < was.epoch {
        return Some(Backwards::Header);
    }
    (now.keystore == was.keystore && now.generation < was.generation).then_some(Backwards::Keystore {
        seen: was.generation,
        found: now.generation,
    })
}

/// A file or directory, wherever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Identity {
    File(FileId),
    Directory([u8; 16]),
}

fn identity(what: &What) -> Option<Identity> {
    match what {
        What::Directory(id) => Some(Identity::Directory(id.0)),
        What::File {
            state: FileState::Written { file, .. },
            ..
        } => Some(Identity::File(*file)),
        _ => None,
    }
}

struct Comparison<'r> {
    vault: &'r Vault,
    key: RecordKey,
    reporter: Reporter<'r>,
    /// What was known under names that something else, or nothing, has now. Several for a file with several names, and for directories that share an id.
    lost: HashMap<Identity, Vec<Lost>>,
    /// What has a name now that something else, or nothing, had.
    gained: Vec<Gained>,
    /// All files that are under a name, with that name unless the seal admits no other.
    found: HashMap<FileId, Option<Box<[u8]>>>,
    /// The marks of all links of the snapshot that are not as they were, and a path of each.
    links: HashMap<[u8; 16], Vec<u8>>,
    /// The marks of the other links.
    kept_links: HashSet<[u8; 16]>,
    /// Links that have another mark than they had.
    relinked: Vec<(Vec<u8>, [u8; 16])>,
}

struct Lost {
    path: Vec<u8>,
    what: What,
    /// Something else has its name.
    replaced: bool,
}

struct Gained {
    path: Vec<u8>,
    what: What,
    /// It says itself that hushfs has put it there.
    is_bound: bool,
    /// What has happened, unless it was moved there.
    otherwise: Change,
}

impl Comparison<'_> {
    fn step<R: Read>(&mut self, step: Step<'_>, beside: &mut Beside<R>) -> Result<(), SnapshotError> {
        let path = match step {
            Step::Entry(ref visited) => visited.path,
            Step::Unreadable { path, .. } => path,
            Step::Problem { path, error } => {
                self.reporter.found(path, Change::Unreadable(error));
                return Ok(());
            }
        };
        while let Some((path, entry)) = beside.take_before(Some(path))? {
            self.removed(path, &entry);
        }
        let known = beside.take_at(path)?;
        match step {
            Step::Entry(visited) => match listed(self.vault, &self.key, &visited, None) {
                Ok(Some((what, _))) => self.entry(&visited, what, known),
                Ok(None) => {
                    if let Some(known) = known {
                        self.removed(visited.path.to_vec(), &known);
                    }
                }
                Err(error) => self.reporter.found(visited.path, Change::Unreadable(error)),
            },
            Step::Unreadable { path, error, .. } => self.reporter.found(path, Change::Unreadable(error)),
            Step::Problem { .. } => {}
        }
        Ok(())
    }

    fn entry(&mut self, visited: &Visited<'_>, what: What, known: Option<Entry>) {
        self.reporter.entry();
        let path = visited.path;
        let Some(known) = known.filter(|known| known.what != What::Unreadable) else {
            return self.gained(visited, what, Change::Added);
        };
        let (was, is) = (known.mode, visited.stat.st_mode);
        if was != is && FileType::from_raw_mode(was) == FileType::from_raw_mode(is) {
            self.reporter.found(path, Change::Mode { was, is });
        }
        match (&known.what, &what) {
            (What::File { state: was, .. }, What::File { state: is, .. }) => match (was, is) {
                (FileState::Blank, FileState::Blank) => {}
                (FileState::Blank, FileState::Written { .. }) => self.gained(visited, what, Change::Written),
                (FileState::Written { .. }, FileState::Blank) => {
                    let change = Change::Backwards(Backwards::Emptied);
                    self.lose(path.to_vec(), known.what, true);
                    self.reporter.found(path, change);
                }
                (FileState::Written { file: was_file, .. }, FileState::Written { file, .. }) if was_file != file => {
                    self.replaced(visited, known.what, what);
                }
                (was, is) => {
                    if let Some(change) = compare_files(was, is) {
                        self.reporter.found(path, change);
                    }
                    self.is_at(path, &what);
                }
            },
            (What::Link { mark: was }, What::Link { mark: is }) => {
                if was == is {
                    self.kept_links.insert(*is);
                } else {
                    self.links.insert(*was, path.to_vec());
                    self.relinked.push((path.to_vec(), *is));
                }
            }
            (was, is) if was == is => {}
            (was, _) => self.replaced(visited, *was, what),
        }
    }

    fn replaced(&mut self, visited: &Visited<'_>, was: What, is: What) {
        self.lose(visited.path.to_vec(), was, true);
        let is_written = matches!(
            is,
            What::File {
                state: FileState::Written { .. },
                ..
            }
        );
        let change = if is_written {
            Change::Replaced
        } else {
            Change::Supplanted
        };
        self.gained(visited, is, change);
    }

    fn gained(&mut self, visited: &Visited<'_>, what: What, otherwise: Change) {
        if identity(&what).is_none() {
            return self.reporter.found(visited.path, otherwise);
        }
        let is_bound = match what {
            // Its header admits its place only. Without one its id comes from its name: whoever moves it there, and removes the header, gives it that.
            What::Directory(_) => visited.has_directory_header(self.vault),
            _ => is_placed(&what),
        };
        self.gained.push(Gained {
            path: visited.path.to_vec(),
            what,
            is_bound,
            otherwise,
        });
    }

    fn is_at(&mut self, path: &[u8], what: &What) {
        if let Some(Identity::File(file)) = identity(what) {
            let name = (!is_placed(what)).then(|| path.into());
            self.found.entry(file).or_insert(name);
        }
    }

    fn removed(&mut self, path: Vec<u8>, entry: &Entry) {
        self.lose(path, entry.what, false);
    }

    fn lose(&mut self, path: Vec<u8>, what: What, replaced: bool) {
        if let What::Link { mark } = what {
            self.links.insert(mark, path.clone());
        }
        match identity(&what) {
            Some(identity) => self
                .lost
                .entry(identity)
                .or_default()
                .push(Lost { path, what, replaced }),
            None if replaced => {}
            None => self.reporter.found(&path, Change::Removed),
        }
    }

    /// Finds what was moved among what was lost and gained.
    fn finish(mut self) -> Summary {
        // New names first: a file that has one may have been put under a known name by anyone.
        let (added, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.gained)
            .into_iter()
            .partition(|gained| matches!(gained.otherwise, Change::Added));
        for gained in added.into_iter().chain(others) {
            self.settle(gained);
        }
        for lost in std::mem::take(&mut self.lost).into_values().flatten() {
            if !lost.replaced {
                self.reporter.found(&lost.path, Change::Removed);
            }
        }
        for (path, mark) in std::mem::take(&mut self.relinked) {
            let change = match self.links.get(&mark) {
                Some(with) => Change::Exchanged { with: with.clone() },
                None if self.kept_links.contains(&mark) => Change::Supplanted,
                None => Change::Replaced,
            };
            self.reporter.found(&path, change);
        }
        self.reporter.summary
    }

    /// Reports what has become of something that was gained.
    fn settle(&mut self, gained: Gained) {
        let Gained {
            path,
            what,
            is_bound,
            otherwise,
        } = gained;
        let change = match self.take_lost(&what) {
            Some(lost) => {
                if let (What::File { state: was, .. }, What::File { state: is, .. }) = (&lost.what, &what)
                    && let Some(change) = compare_files(was, is)
                {
                    self.reporter.found(&path, change);
                }
                if is_bound {
                    Change::Moved { from: lost.path }
                } else {
                    Change::Exchanged { with: lost.path }
                }
            }
            None => self.elsewhere(&what).unwrap_or(otherwise),
        };
        self.is_at(&path, &what);
        self.reporter.found(&path, change);
    }

    /// Takes one of the names that something was known under and has no more.
    fn take_lost(&mut self, what: &What) -> Option<Lost> {
        let lost = self.lost.get_mut(&identity(what)?)?;
        // One that something else has now: that is said there. Of the others it has to be said that they are gone.
        let index = lost.iter().position(|lost| lost.replaced).unwrap_or(0);
        (index < lost.len()).then(|| lost.remove(index))
    }

    /// Returns what has happened where a file is under another name as well. It takes no key to put there what opens under several names, or the copy of a
    /// whole directory.
    fn elsewhere(&self, what: &What) -> Option<Change> {
        let Some(Identity::File(file)) = identity(what) else {
            return None;
        };
        Some(match self.found.get(&file)? {
            Some(with) => Change::Exchanged { with: with.to_vec() },
            None => Change::Supplanted,
        })
    }
}

/// Tells whether a file opens under no name but one that hushfs gave it.
fn is_placed(what: &What) -> bool {
    matches!(
        what,
        What::File {
            state: FileState::Written {
                sealed: Some(SealedContent { placed: true, .. }),
                ..
            },
            ..
        }
    )
}

/// Compares two states of one file.
fn compare_files(was: &FileState, is: &FileState) -> Option<Change> {
    let (
        FileState::Written {
            count: seen,
            sealed: was,
            ..
        },
        FileState::Written {
            count: found,
            sealed: is,
            ..
        },
    ) = (was, is)
    else {
        return None;
    };
    if found < seen {
        let (seen, found) = (*seen, *found);
        return Some(Change::Backwards(Backwards::Older { seen, found }));
    }
    let other = Change::Backwards(Backwards::Other { count: *seen });
    match (was, is) {
        _ if found > seen => Some(Change::Written),
        (Some(was), Some(is)) => (was.mark != is.mark).then_some(other),
        // As it was before it was written to.
        (None, Some(_)) => Some(other),
        (_, None) => Some(Change::Written),
    }
}

/// Compares a vault with the local record, looking at every file, but reads no contents and notes nothing.
///
/// # Errors
///
/// What reading the vault's root gives.
pub fn compare_with_record(
    vault: &Vault,
    root: &Dir,
    home: &SeenHome,
    record: &Record,
    report: &mut dyn FnMut(Option<Difference>),
) -> Result<Summary, SnapshotError> {
    let mut reporter = Reporter {
        report,
        summary: Summary::default(),
    };
    if let Some(backwards) = record.compare_home(home) {
        reporter.found_in_vault(Change::Backwards(backwards));
    }
    let mut found = HashSet::new();
    // Files that are empty where another was last seen: unless that is elsewhere now.
    let mut emptied = Vec::new();
    tree::walk::<SnapshotError>(vault, root, &mut |step| {
        let visited = match step {
            Step::Entry(visited) => visited,
            Step::Unreadable { path, error, .. } | Step::Problem { path, error } => {
                reporter.found(path, Change::Unreadable(error));
                return Ok(());
            }
        };
        reporter.entry();
        if visited.kind() != FileType::RegularFile {
            return Ok(());
        }
        match visited.load(vault) {
            Ok(Some(file)) => match record.sighting(&file, visited.found_at()) {
                Some(seen) => {
                    found.insert(seen.file);
                    if let Some(backwards) = record.look(&seen) {
                        reporter.found(visited.path, Change::Backwards(backwards));
                    }
                }
                None => {
                    let place = record.place(visited.directory, visited.name);
                    if let Some(file) = record.at_place(place) {
                        emptied.push((visited.path.to_vec(), file));
                    }
                }
            },
            Ok(None) => {}
            Err(error) => reporter.found(visited.path, Change::Unreadable(error)),
        }
        Ok(())
    })?;
    for (path, file) in emptied {
        if found.insert(file) {
            reporter.found(&path, Change::Backwards(Backwards::Emptied));
        }
    }
    reporter.summary.missing = record.count_missing(&found);
    Ok(reporter.summary)
}

/// Accepts all files of a vault as they are now; returns how many of them were not as they were last seen.
///
/// # Errors
///
/// What reading the vault's root gives.
pub fn accept_all(vault: &Vault, root: &Dir, record: &Record) -> Result<u64, SnapshotError> {
    let mut accepted = 0;
    tree::walk::<SnapshotError>(vault, root, &mut |step| {
        if let Step::Entry(visited) = step
            && visited.kind() == FileType::RegularFile
            && let Ok(Some(file)) = visited.load(vault)
        {
            accepted += u64::from(record.accept_file(&file, visited.found_at()));
        }
        Ok(())
    })?;
    Ok(accepted)
}
