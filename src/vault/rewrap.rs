//! Moves the headers of files to another epoch, without touching contents and without the names of anything: to the current one of the key
//! that each file has, or of another key that all of them are to have.
//!
//! A header says itself which directory it is for, so the walk needs no plaintext name: it goes through every directory of the backing
//! tree, whatever it is called, and takes every file that has the shape of a header.
//!
//! An fsync for each of a million headers would take hours. So they are replaced in batches:
//!
//! 1. write the new versions under temporary names;
//! 2. sync the filesystem, once;
//! 3. rename each over its old version;
//! 4. in the end, sync once more: also where nothing was replaced, for what was read may be what another run has put in place and not synced, and on
//!    the word that no header names an older epoch that one's key is given up.
//!
//! A crash during 1 and 2 leaves the old versions, and temporary files that nobody reads; during 3 some headers are old and some new, each of them
//! whole, since what is renamed is durable. Old and new versions open the same data: each new one was opened before it was written. Starting again
//! goes through all headers, passes over those that are of the epoch they shall have, and removes temporary files; one of a header that does not open is tried
//! before. The vault must be locked for exclusive use: those of a running hushfs look the same.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{FileType, RenameFlags},
    io::Errno,
};

use super::{
    Vault, VaultError,
    path::Located,
    read_header,
    tree::{DEPTH_MAX, hidden, is_elsewhere},
};
use crate::{
    backing::{Descent, Dir},
    format::{
        FormatError,
        header::{HEADER_SIZE_MAX, UnverifiedHeader},
        name::{self, Shape},
    },
    ids::{Epoch, FileId},
    vault::{beginning::Beginning, choice::KeyOfFile},
};

/// Headers replaced between two syncs.
const BATCH_HEADERS_MAX: usize = 4096;

/// Directories that a batch may span, for each holds a descriptor.
const BATCH_DIRECTORIES_MAX: usize = 128;

/// What was just done. Whoever observes the steps may stop after any by giving an error; what is on disk then is what a kill would leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many headers are to be looked at.
    Counted(u64),
    /// A header was looked at.
    Examined,
    /// A new version lies under its temporary name.
    Written,
    /// The batch is durable, or the end.
    Synced,
    /// A new version stands in the place of the old one.
    Renamed,
}

/// Which epoch headers are moved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The current one of the key that the file has.
    OwnKey,
    /// This one.
    Epoch(Epoch),
}

/// What headers become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Their epoch.
    pub target: Target,
    /// With a bucket key or without; where nothing is said, as they are.
    pub bucket_key: Option<bool>,
}

impl From<Target> for Wanted {
    fn from(target: Target) -> Self {
        Wanted {
            target,
            bucket_key: None,
        }
    }
}

/// What is walked through.
#[derive(Debug)]
pub struct Scope {
    dir: Arc<Dir>,
    disk_path: String,
    /// Only this header in the directory.
    file: Option<FileId>,
    /// What its file was called by who named it.
    named: Option<PathBuf>,
}

/// What a walk found and did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Headers moved to their epoch.
    pub rewrapped: u64,
    /// Headers that were of it.
    pub current: u64,
    /// Headers and directories that could not be read or do not open.
    pub failed: Vec<Failure>,
    /// Epochs that headers still name.
    pub used: BTreeSet<Epoch>,
    /// Headers that are without a bucket key, or could not be read.
    pub without_bucket_key: u64,
}

/// Something in the way.
#[derive(Debug)]
pub struct Failure {
    /// The file's path in the view, if it was named.
    pub path: Option<PathBuf>,
    /// Its path in the backing directory.
    pub disk_path: String,
    /// What is wrong with it.
    pub error: VaultError,
}

impl Outcome {
    /// Tells whether every header that was looked for was seen and is of its epoch: only then may older epochs be dropped.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty()
    }
}

impl Scope {
    /// Walks through everything in the vault.
    ///
    /// # Errors
    ///
    /// What openat2(2) gives.
    pub fn everything(root: &Dir) -> io::Result<Self> {
        Ok(Scope {
            dir: Arc::new(root.open_dir(".")?),
            disk_path: String::new(),
            file: None,
            named: None,
        })
    }

    /// Walks through what was found under a path of the view: a directory with all below, or one file; nothing where that has no header.
    ///
    /// # Errors
    ///
    /// What reading the file gives.
    pub fn of(path: &Path, located: Located) -> Result<Option<Self>, VaultError> {
        let file = match &located.entry {
            None => None,
            Some(entry) if entry.kind != FileType::RegularFile => return Ok(None),
            Some(entry) => match claimed_id(&located.dir, &entry.disk)? {
                None => return Ok(None),
                file => file,
            },
        };
        Ok(Some(Scope {
            dir: Arc::new(located.dir),
            disk_path: located.disk_path,
            named: file.map(|_| path.to_owned()),
            file,
        }))
    }

    fn visit(&self, visit: &mut Visit<'_>) -> io::Result<()> {
        match self.file {
            Some(file) => visit(&self.disk_path, Ok((&self.dir, Found::Header(file)))),
            None => walk(&self.dir, &self.disk_path, visit),
        }
    }
}

/// Returns the id that a data file says it has; nothing for one that was never written. Its header is opened before it is believed.
fn claimed_id(dir: &Dir, disk: &str) -> Result<Option<FileId>, VaultError> {
    let beginning = Beginning::read(&dir.open_file(disk, true)?)?;
    Ok(beginning.preamble().map(|preamble| preamble.file()))
}

/// Moves every header in what is walked through to the epoch it shall have.
///
/// # Errors
///
/// What syncing, writing or renaming gives, or `observe`. Headers that cannot be read or opened are in the [`Outcome`] instead.
pub fn rewrap(
    vault: &Vault,
    scopes: &[Scope],
    wanted: impl Into<Wanted>,
    observe: &mut dyn FnMut(Step) -> io::Result<()>,
) -> io::Result<Outcome> {
    let mut count = 0;
    // What cannot be listed is reported by the second walk.
    for scope in scopes {
        scope.visit(&mut |_, found| {
            if let Ok((_, Found::Header(_))) = found {
                count += 1;
            }
            Ok(())
        })?;
    }
    observe(Step::Counted(count))?;
    let Some(first) = scopes.first() else {
        return Ok(Outcome::default());
    };
    let mut run = Run {
        vault,
        wanted: wanted.into(),
        settling: Settling::new(first.dir.clone()),
        observe,
        batch: Vec::new(),
        in_batch: HashSet::new(),
        directories: 0,
        named: None,
        outcome: Outcome::default(),
    };
    for scope in scopes {
        run.named.clone_from(&scope.named);
        scope.visit(&mut |path, found| run.take(path, found))?;
    }
    run.finish()
}

/// Returns the epochs that headers of the vault name, durably, and what could not be read. Nothing is opened.
///
/// # Errors
///
/// What reading the root, or syncing, gives.
pub fn survey(root: &Dir) -> io::Result<Outcome> {
    let mut outcome = Outcome::default();
    let everything = Scope::everything(root)?;
    let mut settling = Settling::new(everything.dir.clone());
    everything.visit(&mut |path, found| {
        if let Ok((dir, _)) = &found {
            settling.pass(dir)?;
        }
        let read = match found {
            Ok((_, Found::Temporary(_))) => return Ok(()),
            Ok((dir, Found::Header(file))) => read_header(dir, file)
                .and_then(|bytes| UnverifiedHeader::decode(&bytes).map_err(|e| VaultError::HeaderDamaged(file, e)))
                .map_err(|error| (join(path, &name::header_file(file)), error)),
            Err(error) => Err((path.to_owned(), error.into())),
        };
        match read {
            Ok(header) => {
                outcome.current += 1;
                outcome.used.insert(header.epoch());
                outcome.without_bucket_key += u64::from(header.own().is_some());
            }
            Err((_, error)) if is_beyond_use(path, &error) => {}
            Err((disk_path, error)) => {
                outcome.without_bucket_key += 1;
                outcome.failed.push(Failure {
                    path: None,
                    disk_path,
                    error,
                });
            }
        }
        Ok(())
    })?;
    settling.finish()?;
    Ok(outcome)
}

/// Makes durable what a walk comes upon: a name that is not may be the old header's again after a power cut.
struct Settling {
    root: Arc<Dir>,
    /// One sync of the filesystem does it.
    at_once: bool,
    /// The directory that was synced last, where each is.
    last: Option<Arc<Dir>>,
}

impl Settling {
    fn new(root: Arc<Dir>) -> Self {
        Settling {
            at_once: root.can_sync_filesystem(),
            root,
            last: None,
        }
    }

    /// Takes in that something was come upon in a directory.
    fn pass(&mut self, dir: &Arc<Dir>) -> io::Result<()> {
        if self.at_once || self.last.as_ref().is_some_and(|last| Arc::ptr_eq(last, dir)) {
            return Ok(());
        }
        dir.sync()?;
        self.last = Some(dir.clone());
        Ok(())
    }

    /// Ends the walk, or a part of it.
    fn finish(&self) -> io::Result<()> {
        match self.at_once {
            true => self.root.sync_filesystem(),
            false => Ok(()),
        }
    }
}

/// A rewrap under way.
struct Run<'r> {
    vault: &'r Vault,
    wanted: Wanted,
    settling: Settling,
    observe: &'r mut dyn FnMut(Step) -> io::Result<()>,
    /// Headers whose new version is written but not in place.
    batch: Vec<(Arc<Dir>, FileId)>,
    /// The same by the paths of their directories: what is walked through may be named twice.
    in_batch: HashSet<(String, FileId)>,
    /// Directories in the batch.
    directories: usize,
    /// What the file that is looked at was called by who named it.
    named: Option<PathBuf>,
    outcome: Outcome,
}

impl Run<'_> {
    fn take(&mut self, path: &str, found: io::Result<(&Arc<Dir>, Found)>) -> io::Result<()> {
        if let Ok((dir, _)) = &found {
            self.settling.pass(dir)?;
        }
        match found {
            Err(error) => {
                self.fail(path.to_owned(), error.into());
                Ok(())
            }
            Ok((_, Found::Temporary(_))) if is_kept(path) => Ok(()),
            Ok((dir, Found::Temporary(entry))) => self.clear_away(dir, &entry),
            Ok((dir, Found::Header(file))) => {
                if self.in_batch.contains(&(path.to_owned(), file)) {
                    return (self.observe)(Step::Examined);
                }
                match self.examine(dir, path, file) {
                    Ok(None) => self.outcome.current += 1,
                    Ok(Some(bytes)) => self.write(dir, path, file, &bytes)?,
                    Err(error) if is_beyond_use(path, &error) => {}
                    Err(error) => self.fail(join(path, &name::header_file(file)), error),
                }
                (self.observe)(Step::Examined)
            }
        }
    }

    fn fail(&mut self, disk_path: String, error: VaultError) {
        self.outcome.failed.push(Failure {
            path: self.named.clone(),
            disk_path,
            error,
        });
    }

    /// Removes a temporary file. One that opens, of a header that does not, takes that one's place: a power cut may have put back the old version when its
    /// epoch was gone already.
    fn clear_away(&self, dir: &Dir, entry: &str) -> io::Result<()> {
        let Some(file) = name::temporary_header(entry) else {
            return dir.unlink(entry);
        };
        let opens = |bytes: Vec<u8>| self.vault.verify_header(file, &bytes);
        match read_header(dir, file).and_then(opens) {
            // Another machine has made it, and this one does not know yet with which key.
            Err(VaultError::EpochMissing(epoch)) if epoch > self.vault.epochs().newest() => return Ok(()),
            Err(VaultError::HeaderDamaged(_, FormatError::Newer(_))) => return Ok(()),
            Err(error) if is_lost(&error) => {}
            _ => return dir.unlink(entry),
        }
        match dir.read_small(entry, HEADER_SIZE_MAX).map(|bytes| bytes.map(opens)) {
            Ok(Some(Ok(_))) => {
                dir.open_file(entry, true)?.sync_all()?;
                dir.rename(entry, dir, &name::header_file(file), RenameFlags::empty())?;
                dir.sync()
            }
            Ok(Some(Err(error))) if is_lost(&error) => dir.unlink(entry),
            // Perhaps it can be read another time. The walk comes to the header, and names that.
            _ => Ok(()),
        }
    }

    /// Returns the new version of a header; nothing if it needs none.
    fn examine(&mut self, dir: &Dir, path: &str, file: FileId) -> Result<Option<Vec<u8>>, VaultError> {
        let bytes = read_header(dir, file)?;
        let named = UnverifiedHeader::decode(&bytes).map_err(|error| VaultError::HeaderDamaged(file, error))?;
        let epoch = match self.wanted.target {
            Target::OwnKey => self.vault.newest_epoch_like(named.epoch()),
            Target::Epoch(epoch) => epoch,
        };
        let had_bucket_key = named.own().is_none();
        let key = KeyOfFile {
            epoch,
            bucket_key: self.wanted.bucket_key.unwrap_or(had_bucket_key),
        };
        let rewrapped = self.vault.rewrap_header(file, &bytes, key);
        let (has_bucket_key, used) = match &rewrapped {
            Ok(_) => (key.bucket_key, epoch),
            Err(error) if is_beyond_use(path, error) => return rewrapped,
            Err(_) => (had_bucket_key, named.epoch()),
        };
        self.outcome.without_bucket_key += u64::from(!has_bucket_key);
        self.outcome.used.insert(used);
        rewrapped
    }

    fn write(&mut self, dir: &Arc<Dir>, path: &str, file: FileId, bytes: &[u8]) -> io::Result<()> {
        let (header, temporary) = (name::header_file(file), temporary_header(file));
        let written = dir.write_replacement(&header, &temporary, bytes)?;
        if !self.settling.at_once {
            written.sync_all()?;
        }
        if !self.batch.last().is_some_and(|(last, _)| Arc::ptr_eq(last, dir)) {
            self.directories += 1;
        }
        self.batch.push((dir.clone(), file));
        self.in_batch.insert((path.to_owned(), file));
        (self.observe)(Step::Written)?;
        if self.batch.len() >= BATCH_HEADERS_MAX || self.directories >= BATCH_DIRECTORIES_MAX {
            self.put_in_place()?;
        }
        Ok(())
    }

    /// Makes the batch durable, then lets every new version take the place of the old one.
    fn put_in_place(&mut self) -> io::Result<()> {
        self.settling.finish()?;
        (self.observe)(Step::Synced)?;
        let mut batch = std::mem::take(&mut self.batch);
        for (dir, file) in &batch {
            dir.rename(
                &temporary_header(*file),
                dir,
                &name::header_file(*file),
                RenameFlags::empty(),
            )?;
            self.outcome.rewrapped += 1;
            (self.observe)(Step::Renamed)?;
        }
        if !self.settling.at_once {
            batch.dedup_by(|one, other| Arc::ptr_eq(&one.0, &other.0));
            batch.iter().try_for_each(|(dir, _)| dir.sync())?;
        }
        self.in_batch.clear();
        self.directories = 0;
        Ok(())
    }

    fn finish(mut self) -> io::Result<Outcome> {
        if !self.batch.is_empty() {
            self.put_in_place()?;
        }
        self.settling.finish()?;
        (self.observe)(Step::Synced)?;
        Ok(self.outcome)
    }
}

/// Tells whether a directory is of what repairs keep.
fn is_kept(path: &str) -> bool {
    let below = path.strip_prefix(name::LOST_AND_FOUND);
    below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

/// Tells whether a header is one that a repair has set aside and that is damaged for good: it holds no epoch. One that cannot be read just now does.
fn is_beyond_use(path: &str, error: &VaultError) -> bool {
    is_kept(path) && is_lost(error)
}

/// Tells whether a header opens with no key that the vault could have.
fn is_lost(error: &VaultError) -> bool {
    matches!(error, VaultError::HeaderDamaged(..) | VaultError::EpochMissing(_))
}

fn temporary_header(file: FileId) -> String {
    name::temporary_file(&name::header_file(file))
}

/// What a walk comes upon.
enum Found {
    /// A file that has the shape of a header.
    Header(FileId),
    /// An unfinished replacement.
    Temporary(String),
}

/// Takes what a walk comes upon and the directory that it is in, with that one's path.
type Visit<'v> = dyn FnMut(&str, io::Result<(&Arc<Dir>, Found)>) -> io::Result<()> + 'v;

/// Calls `visit` with every header and every unfinished replacement below a directory, or with the error of a directory that cannot be read, or
/// is hidden by what is mounted over it.
fn walk(root: &Arc<Dir>, path: &str, visit: &mut Visit<'_>) -> io::Result<()> {
    let device = root.stat_self()?.st_dev;
    let mut descent = Descent::new(root.clone(), path);
    while let Some(entered) = descent.enter_next() {
        let entered = entered.cloned().and_then(|dir| on_device(dir, device));
        let path = descent.path();
        match entered {
            Ok(_) if descent.depth() >= DEPTH_MAX => visit(path, Err(Errno::LOOP.into()))?,
            Ok(dir) => {
                let below = look_into(&dir, path, visit)?;
                descent.enter_later(below);
            }
            // What bears no name of the vault hides nothing of it: the snapshots of a filesystem, a directory of someone's own.
            Err(error) if is_elsewhere(&error) && is_stranger(path) => {}
            // A directory of the vault lies below, whose headers are not seen and which no sync of ours would reach.
            Err(error) if is_elsewhere(&error) => visit(path, Err(hidden()))?,
            Err(error) => visit(path, Err(error))?,
        }
    }
    Ok(())
}

/// Passes a directory on that is on a device; EXDEV for another.
fn on_device(dir: Arc<Dir>, device: u64) -> io::Result<Arc<Dir>> {
    match dir.stat_self()?.st_dev == device {
        true => Ok(dir),
        false => Err(Errno::XDEV.into()),
    }
}

/// Tells whether a path ends in what bears no name of a vault.
fn is_stranger(path: &str) -> bool {
    let entry = path.rsplit('/').next().unwrap_or_default();
    matches!(name::shape(entry.as_bytes()), Shape::Stranger)
}

/// Visits what is in a directory; returns the directories in it.
fn look_into(dir: &Arc<Dir>, path: &str, visit: &mut Visit<'_>) -> io::Result<Vec<String>> {
    let mut directories = Vec::new();
    let mut headers = Vec::new();
    let mut temporary = Vec::new();
    let listed = dir.each_entry(|entry| {
        let Ok(entry_name) = std::str::from_utf8(entry.name) else {
            return;
        };
        match (name::shape(entry.name), entry.kind) {
            (Shape::Dots, _) => {}
            (_, FileType::Directory) => directories.push(entry_name.to_owned()),
            (Shape::Header(file), _) => headers.push(file),
            (Shape::Temporary, _) => temporary.push(entry_name.to_owned()),
            (_, FileType::Unknown) if is_directory(dir, entry_name) => directories.push(entry_name.to_owned()),
            _ => {}
        }
    });
    if let Err(error) = listed {
        visit(path, Err(error))?;
    }
    for file in temporary {
        visit(path, Ok((dir, Found::Temporary(file))))?;
    }
    // Behind the temporary files: they have the names that the new versions of these headers get.
    for file in headers {
        visit(path, Ok((dir, Found::Header(file))))?;
    }
    Ok(directories)
}

fn is_directory(dir: &Dir, entry: &str) -> bool {
    dir.stat(entry)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn join(path: &str, entry: &str) -> String {
    if path.is_empty() {
        entry.to_owned()
    } else {
        format!("{path}/{entry}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        crypto::block::Suite,
        format::layout::Layout,
        keystore::{KeyFile, LocalKeystore, NewSecret, SlotChoice, Unlock},
        vault::home::{Lock, OpenVault, VaultHome},
    };

    fn rewrap_all(open: &OpenVault, observe: &mut dyn FnMut(Step) -> io::Result<()>) -> io::Result<Outcome> {
        let everything = [Scope::everything(open.home.dir()).unwrap()];
        rewrap(&open.vault, &everything, Target::OwnKey, observe)
    }

    fn key_file() -> KeyFile {
        KeyFile::new(vec![3; 32].into()).unwrap()
    }

    /// A vault with headers in its root and in directories of any name, all of epoch 1, and the current epoch 2.
    fn vault() -> (tempfile::TempDir, OpenVault, Vec<(String, FileId)>) {
        let temp = tempfile::tempdir().unwrap();
        let keystore = LocalKeystore::create("file", &NewSecret::KeyFile(&key_file()), 1).unwrap();
        let layout = Layout::new(Suite::Aes256GcmSiv, 4096).unwrap();
        let mut open = VaultHome::create(temp.path(), layout, keystore, 1).unwrap();
        let mut headers = Vec::new();
        for (number, path) in ["", "a", "a/b", "stranger.d"].into_iter().enumerate() {
            std::fs::create_dir_all(temp.path().join(path)).unwrap();
            let dir = Dir::open(&temp.path().join(path)).unwrap();
            for _ in 0..3 {
                let header = open.vault.new_header(crate::ids::DirectoryId([number as u8; 16]));
                open.vault.store_header(&dir, &header).unwrap();
                headers.push((path.to_owned(), header.fields.file));
            }
        }
        assert_eq!(open.rotate(2).unwrap(), Epoch(2));
        (temp, open, headers)
    }

    fn reopen(open: OpenVault) -> OpenVault {
        let path = open.home.path().to_owned();
        drop(open);
        VaultHome::enter(&path, Lock::Exclusive)
            .unwrap()
            .open(&Unlock::KeyFile(key_file()), &SlotChoice::Any)
            .unwrap()
    }

    fn epochs(temp: &tempfile::TempDir, vault: &Vault, headers: &[(String, FileId)]) -> BTreeSet<Epoch> {
        let number = |path: &str| ["", "a", "a/b", "stranger.d"].iter().position(|p| *p == path).unwrap() as u8;
        headers
            .iter()
            .map(|(path, file)| {
                let dir = Dir::open(&temp.path().join(path)).unwrap();
                let directory = crate::ids::DirectoryId([number(path); 16]);
                vault.load_header(&dir, directory, *file).unwrap().fields.epoch
            })
            .collect()
    }

    fn temporaries(dir: &std::path::Path) -> usize {
        std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                if entry.file_type().unwrap().is_dir() {
                    temporaries(&entry.path())
                } else {
                    usize::from(entry.file_name().to_str().unwrap().ends_with(".tmp.hush"))
                }
            })
            .sum()
    }

    #[test]
    fn every_header_moves_and_the_old_epoch_can_go() {
        let (temp, mut open, headers) = vault();
        let mut steps = Vec::new();
        let outcome = rewrap_all(&open, &mut |step| {
            steps.push(step);
            Ok(())
        })
        .unwrap();
        assert_eq!((outcome.rewrapped, outcome.current), (12, 0));
        assert!(outcome.is_complete());
        assert_eq!(steps[0], Step::Counted(12));
        assert_eq!(epochs(&temp, &open.vault, &headers), BTreeSet::from([Epoch(2)]));
        assert_eq!(open.retire_epochs_except(&outcome.used, 2).unwrap(), [Epoch(1)]);
        let open = reopen(open);
        assert_eq!(open.header().epochs.len(), 1);
        assert_eq!(epochs(&temp, &open.vault, &headers), BTreeSet::from([Epoch(2)]));
        let again = rewrap_all(&open, &mut |_| Ok(())).unwrap();
        assert_eq!((again.rewrapped, again.current), (0, 12));
    }

    #[test]
    fn a_run_that_finds_nothing_to_do_syncs_before_an_epoch_can_go() {
        let (_temp, open, _) = vault();
        rewrap_all(&open, &mut |_| Ok(())).unwrap();
        let mut last = None;
        let outcome = rewrap_all(&open, &mut |step| {
            last = Some(step);
            Ok(())
        });
        assert_eq!(outcome.unwrap().rewrapped, 0);
        assert_eq!(last, Some(Step::Synced));
    }

    #[test]
    fn a_temporary_file_takes_the_place_of_a_header_that_does_not_open() {
        let (temp, mut open, headers) = vault();
        let at = |(path, file): &(String, FileId)| {
            let dir = temp.path().join(path);
            (dir.join(name::header_file(*file)), dir.join(temporary_header(*file)))
        };
        let old = |header| std::fs::read(at(header).0).unwrap();
        let (lost, damaged) = (old(&headers[4]), old(&headers[7]));
        let outcome = rewrap_all(&open, &mut |_| Ok(())).unwrap();
        assert_eq!(open.retire_epochs_except(&outcome.used, 2).unwrap(), [Epoch(1)]);
        let open = reopen(open);
        // As a power cut leaves them where the renames were not on disk when the epoch went.
        let (header, temporary) = at(&headers[4]);
        std::fs::rename(&header, &temporary).unwrap();
        std::fs::write(&header, lost).unwrap();
        // Neither of these opens.
        let (header, temporary) = at(&headers[7]);
        std::fs::write(&header, &damaged[..100]).unwrap();
        std::fs::write(&temporary, damaged).unwrap();
        // One that opens stays.
        let (_, temporary) = at(&headers[2]);
        std::fs::write(&temporary, old(&headers[3])).unwrap();
        let outcome = rewrap_all(&open, &mut |_| Ok(())).unwrap();
        assert_eq!((outcome.rewrapped, outcome.current, outcome.failed.len()), (0, 11, 1));
        assert_eq!(temporaries(temp.path()), 0);
        let others = [&headers[..7], &headers[8..]].concat();
        assert_eq!(epochs(&temp, &open.vault, &others), BTreeSet::from([Epoch(2)]));
    }

    #[test]
    fn a_header_of_an_epoch_that_only_another_machine_has_stays() {
        let (temp, mut open, headers) = vault();
        rewrap_all(&open, &mut |_| Ok(())).unwrap();
        let (path, file) = &headers[4];
        let header = temp.path().join(path).join(name::header_file(*file));
        let temporary = temp.path().join(path).join(temporary_header(*file));
        std::fs::copy(&header, &temporary).unwrap();
        let home = [name::VAULT_HEADER, name::KEYSTORE].map(|name| temp.path().join(name));
        let before = home.each_ref().map(|path| std::fs::read(path).unwrap());
        assert_eq!(open.rotate(3).unwrap(), Epoch(3));
        let bytes = std::fs::read(&header).unwrap();
        let newer = open
            .vault
            .rewrap_header(*file, &bytes, KeyOfFile::of_epoch(Epoch(3)))
            .unwrap()
            .unwrap();
        std::fs::write(&header, &newer).unwrap();
        for (path, bytes) in home.iter().zip(before) {
            std::fs::write(path, bytes).unwrap();
        }
        let open = reopen(open);
        let outcome = rewrap_all(&open, &mut |_| Ok(())).unwrap();
        assert_eq!((outcome.current, outcome.failed.len()), (11, 1));
        assert!(matches!(outcome.failed[0].error, VaultError::EpochMissing(Epoch(3))));
        assert_eq!(std::fs::read(&header).unwrap(), newer);
        assert!(temporary.exists());
    }

    #[test]
    fn killed_at_any_step_every_file_opens_and_the_next_run_completes() {
        for stop in 0.. {
            let (temp, open, headers) = vault();
            let mut steps = 0;
            let outcome = rewrap_all(&open, &mut |_| {
                steps += 1;
                if steps > stop {
                    Err(io::ErrorKind::Interrupted.into())
                } else {
                    Ok(())
                }
            });
            let open = reopen(open);
            epochs(&temp, &open.vault, &headers);
            if outcome.is_ok() {
                break;
            }
            let outcome = rewrap_all(&open, &mut |_| Ok(())).unwrap();
            assert_eq!(outcome.rewrapped + outcome.current, 12, "stopped at {stop}");
            assert_eq!(epochs(&temp, &open.vault, &headers), BTreeSet::from([Epoch(2)]));
            assert_eq!(temporaries(temp.path()), 0, "stopped at {stop}");
        }
    }

    #[test]
    fn a_header_that_does_not_open_is_named_and_keeps_its_epoch() {
        let (temp, mut open, headers) = vault();
        let (path, file) = &headers[7];
        let damaged = temp.path().join(path).join(name::header_file(*file));
        let mut bytes = std::fs::read(&damaged).unwrap();
        bytes[100] ^= 1;
        std::fs::write(&damaged, bytes).unwrap();
        let outcome = rewrap_all(&open, &mut |_| Ok(())).unwrap();
        assert_eq!(outcome.rewrapped, 11);
        assert!(!outcome.is_complete());
        assert_eq!(outcome.failed[0].disk_path, format!("a/b/{}", name::header_file(*file)));
        assert!(matches!(outcome.failed[0].error, VaultError::HeaderDamaged(..)));
        assert_eq!(open.retire_epochs_except(&outcome.used, 2).unwrap(), []);
    }
}
