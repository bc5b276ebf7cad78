//! Compares what is there after a cut or a kill with what must be.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::history::{Entry, Expected, Kind, ObjectId, TOP, Versions};

/// Contents are compared in units of this.
const BLOCK_SIZE: usize = 4096;

/// How many findings of a kind are described.
const DESCRIBED_MAX: usize = 6;

/// What may be wrong. All but the last break a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Finding {
    /// The vault does not mount again, or its program fails or dies.
    Unusable,
    /// A file, directory or link that was synced cannot be found.
    Missing,
    /// An entry is there that cannot be, or is something else.
    Stranger,
    /// A file or directory does not open, or a block gives an error that nobody was writing.
    Unreadable,
    /// A block gives an error where content had been synced that was being written over.
    Torn,
    /// A block or a size is neither what was synced nor anything later.
    Wrong,
    /// What the filesystem's own check complains about that no other finding explains.
    Complaint,
    /// An entry cannot be removed.
    Undeletable,
    /// A block gives an error that was never synced: allowed.
    TornUnsynced,
}

impl Finding {
    /// All of them, in the order they are reported in.
    pub const ALL: [Self; 9] = [
        Finding::Unusable,
        Finding::Missing,
        Finding::Stranger,
        Finding::Unreadable,
        Finding::Torn,
        Finding::Wrong,
        Finding::Complaint,
        Finding::Undeletable,
        Finding::TornUnsynced,
    ];

    /// Tells whether it breaks one of the rules.
    pub fn is_fault(self) -> bool {
        self != Finding::TornUnsynced
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Finding::Unusable => "vaults that do not mount, or programs that die",
            Finding::Missing => "synced entries missing",
            Finding::Stranger => "entries that cannot be",
            Finding::Unreadable => "files and directories unreadable",
            Finding::Torn => "synced blocks torn (EIO)",
            Finding::Wrong => "blocks and sizes that never were, or are older than synced",
            Finding::Complaint => "complaints of the filesystem's own checks",
            Finding::Undeletable => "entries that cannot be removed",
            Finding::TornUnsynced => "blocks torn that were never synced (allowed)",
        })
    }
}

/// What was found, counted.
#[derive(Debug, Default)]
pub struct Tally {
    counts: BTreeMap<Finding, usize>,
    /// Cuts or kills that were checked.
    pub events: usize,
    /// Of these, those with a fault.
    pub faulty: usize,
    /// Files that were read.
    pub files: usize,
}

impl Tally {
    /// Counts a finding, and describes it if there were few.
    pub fn add(&mut self, finding: Finding, what: impl fmt::Display) {
        let count = self.counts.entry(finding).or_default();
        *count += 1;
        let is_described = *count <= DESCRIBED_MAX;
        if is_described && finding.is_fault() {
            println!("  {finding:?}: {what}");
        }
    }

    /// Returns how often something was found.
    pub fn count(&self, finding: Finding) -> usize {
        self.counts.get(&finding).copied().unwrap_or_default()
    }

    /// Returns how many faults there were.
    pub fn faults(&self) -> usize {
        let faults = self.counts.iter().filter(|(finding, _)| finding.is_fault());
        faults.map(|(_, count)| count).sum()
    }
}

/// What a file is, as one of the things it may be.
#[derive(Debug, Default)]
struct Comparison {
    findings: Vec<(Finding, String)>,
}

impl Comparison {
    fn add(&mut self, finding: Finding, what: String) {
        self.findings.push((finding, what));
    }

    /// The fewer the better, and what was torn can be anything.
    fn rank(&self) -> (usize, usize) {
        let torn = |finding| matches!(finding, Finding::Torn | Finding::TornUnsynced);
        let count = self.findings.iter().filter(|(finding, _)| torn(*finding)).count();
        (self.findings.len() - count, count)
    }
}

/// Compares a mounted vault with what must be in it: a tree for each worker, by its name.
///
/// Returns the paths, in the view, of the files with torn blocks.
pub fn check_trees(mount: &Path, trees: &[(&str, Expected)], tally: &mut Tally) -> BTreeSet<PathBuf> {
    let mut torn = BTreeSet::new();
    for (name, expected) in trees {
        let mut walk = Walk {
            mount,
            expected,
            tally,
            torn: &mut torn,
            found: HashSet::new(),
            reported: HashSet::new(),
        };
        walk.directory(Path::new(name), TOP);
        for object in expected.certain() {
            if !walk.found.contains(&object) && walk.reported.insert(object) {
                let what = format!("{name}/{}\n    {}", expected.last_name(object), expected.story(object));
                walk.tally.add(Finding::Missing, what);
            }
        }
    }
    torn
}

/// A walk over one tree.
struct Walk<'w> {
    mount: &'w Path,
    expected: &'w Expected,
    tally: &'w mut Tally,
    torn: &'w mut BTreeSet<PathBuf>,
    found: HashSet<ObjectId>,
    /// Objects that are known to be missing.
    reported: HashSet<ObjectId>,
}

impl Walk<'_> {
    fn directory(&mut self, path: &Path, directory: ObjectId) {
        let names = match names_in(&self.mount.join(path)) {
            Ok(names) => names,
            Err(error) => {
                self.tally
                    .add(Finding::Unreadable, format!("{}: {error}", path.display()));
                return;
            }
        };
        for name in &names {
            self.entry(&path.join(name), &(directory, name.as_str().into()));
        }
        for name in self.expected.names_in(directory) {
            if names.contains(&**name) {
                continue;
            }
            let allowed = self.expected.allowed(&(directory, name.clone()));
            let certain = allowed.unwrap_or_default();
            // A name that must be something; which of them is missing is anyone's guess.
            if !certain.contains(&None)
                && let Some(Some(object)) = certain.first()
                && self.reported.insert(*object)
            {
                let what = format!("{}: {:?}", path.join(&**name).display(), self.expected.kind(*object));
                self.tally.add(Finding::Missing, what);
            }
        }
    }

    fn entry(&mut self, path: &Path, entry: &Entry) {
        let full = self.mount.join(path);
        let kind = match fs::symlink_metadata(&full) {
            Ok(metadata) => metadata.file_type(),
            Err(error) => {
                self.tally
                    .add(Finding::Unreadable, format!("{}: {error}", path.display()));
                return;
            }
        };
        let allowed = self.expected.allowed(entry).unwrap_or_default();
        let fits = |object: &ObjectId| match self.expected.kind(*object) {
            Kind::File => kind.is_file(),
            Kind::Directory => kind.is_dir(),
            Kind::Symlink(_) => kind.is_symlink(),
        };
        let candidates: Vec<_> = allowed.iter().flatten().copied().filter(fits).collect();
        let Some(&first) = candidates.first() else {
            let what = format!("{}: {kind:?}, may be {allowed:?}", path.display());
            self.tally.add(Finding::Stranger, what);
            return;
        };
        if kind.is_dir() {
            self.found.insert(first);
            self.directory(path, first);
        } else if kind.is_file() {
            self.tally.files += 1;
            self.file(path, &candidates);
        } else {
            self.link(path, &candidates);
        }
    }

    fn link(&mut self, path: &Path, candidates: &[ObjectId]) {
        let target = match fs::read_link(self.mount.join(path)) {
            Ok(target) => target,
            Err(error) => {
                self.found.extend(candidates);
                self.tally
                    .add(Finding::Unreadable, format!("{}: {error}", path.display()));
                return;
            }
        };
        let is_it =
            |object: &&ObjectId| matches!(self.expected.kind(**object), Kind::Symlink(to) if target == Path::new(to));
        match candidates.iter().find(is_it) {
            Some(object) => drop(self.found.insert(*object)),
            None => self
                .tally
                .add(Finding::Wrong, format!("{}: another target", path.display())),
        }
    }

    /// Compares a file with each that it may be; it is the one it is most like.
    fn file(&mut self, path: &Path, candidates: &[ObjectId]) {
        let content = read(&self.mount.join(path));
        let compare = |object: &ObjectId| (*object, compare(&content, &self.expected.versions(*object)));
        let compared: Vec<_> = candidates.iter().map(compare).collect();
        let Some((best, closest)) = compared.iter().min_by_key(|(_, comparison)| comparison.rank()) else {
            return;
        };
        self.found.insert(*best);
        let perfect = compared.iter().filter(|(_, comparison)| comparison.findings.is_empty());
        self.found.extend(perfect.map(|(object, _)| object));
        for (finding, what) in &closest.findings {
            if matches!(finding, Finding::Torn | Finding::TornUnsynced) {
                self.torn.insert(path.to_owned());
            }
            let story = finding.is_fault().then(|| self.expected.story(*best));
            let what = format!("{}: {what}\n    {}", path.display(), story.unwrap_or_default());
            self.tally.add(*finding, what);
        }
    }
}

fn names_in(directory: &Path) -> io::Result<BTreeSet<String>> {
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    fs::read_dir(directory)?.map(name).collect()
}

/// The blocks of a file, each as it was read.
type Blocks = io::Result<Vec<io::Result<Vec<u8>>>>;

fn read(path: &Path) -> Blocks {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let offsets = (0..size).step_by(BLOCK_SIZE);
    let block = |offset| {
        let mut block = vec![0; (BLOCK_SIZE as u64).min(size - offset) as usize];
        file.read_exact_at(&mut block, offset)?;
        Ok(block)
    };
    Ok(offsets.map(block).collect())
}

/// Returns a block of some content; behind its end is zero.
fn block_of(content: &[u8], number: usize) -> [u8; BLOCK_SIZE] {
    let mut block = [0; BLOCK_SIZE];
    let begin = (number * BLOCK_SIZE).min(content.len());
    let end = ((number + 1) * BLOCK_SIZE).min(content.len());
    block[..end - begin].copy_from_slice(&content[begin..end]);
    block
}

/// Compares what was read with what a file may hold.
fn compare(content: &Blocks, versions: &Versions) -> Comparison {
    let mut comparison = Comparison::default();
    let blocks = match content {
        Ok(blocks) => blocks,
        Err(error) => {
            comparison.add(Finding::Unreadable, error.to_string());
            return comparison;
        }
    };
    let Versions { is_synced, all, .. } = versions;
    let size = blocks
        .iter()
        .map(|block| block.as_ref().map_or(BLOCK_SIZE, Vec::len))
        .sum::<usize>();
    let sizes = all.iter().map(Vec::len);
    let (least, most) = (sizes.clone().min().unwrap_or(0), sizes.max().unwrap_or(0));
    // A torn block at the end hides how long it is.
    if size < least || size > most.next_multiple_of(BLOCK_SIZE) || (size > most && blocks.iter().all(Result::is_ok)) {
        comparison.add(Finding::Wrong, format!("{size} bytes, not {least} to {most}"));
    }
    for (number, block) in blocks.iter().enumerate() {
        let mut may_be: Vec<_> = all.iter().map(|content| block_of(content, number)).collect();
        may_be.dedup();
        match block {
            Ok(block) if may_be.iter().any(|version| version.starts_with(block)) => {}
            Ok(block) => {
                let what = describe(block, &may_be);
                comparison.add(Finding::Wrong, format!("block {number} of {}: {what}", blocks.len()));
            }
            Err(error) => {
                let begin = (number * BLOCK_SIZE) as u64;
                let was_synced = *is_synced && begin < all[0].len() as u64;
                let finding = match (was_synced, versions.is_touched(begin..begin + BLOCK_SIZE as u64)) {
                    (true, false) => Finding::Unreadable,
                    (true, true) => Finding::Torn,
                    (false, _) => Finding::TornUnsynced,
                };
                comparison.add(finding, format!("block {number} of {}: {error}", blocks.len()));
            }
        }
    }
    comparison
}

/// Says how a block differs, for who looks for the cause.
fn describe(block: &[u8], may_be: &[[u8; BLOCK_SIZE]]) -> String {
    if block.iter().all(|byte| *byte == 0) {
        return format!("zeros, {} versions", may_be.len());
    }
    let same = may_be
        .iter()
        .map(|version| version.iter().zip(block).take_while(|(a, b)| a == b).count());
    let most = same.max().unwrap_or(0);
    format!(
        "{} bytes, none of {} versions; {most} bytes as in one",
        block.len(),
        may_be.len()
    )
}

/// Removes everything in a directory; what cannot be is counted.
pub fn remove_all(directory: &Path, tally: &mut Tally) {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            tally.add(Finding::Undeletable, format!("{}: {error}", directory.display()));
            return;
        }
    };
    for entry in entries {
        let removed = entry.and_then(|entry| {
            let path = entry.path();
            if !entry.file_type()?.is_dir() {
                return fs::remove_file(path);
            }
            remove_all(&path, tally);
            fs::remove_dir(path)
        });
        if let Err(error) = removed {
            tally.add(Finding::Undeletable, format!("in {}: {error}", directory.display()));
        }
    }
}
