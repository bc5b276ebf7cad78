//! Mends what a check finds, where there is one answer to how; keeps a copy of what it changes, durably before it changes it.
//!
//! It goes in rounds, since one thing mended shows others: all that is wrong is found, then mended one by one. Leftovers come last: what needs one of them
//! may have been found by then. Every step is one that a kill or a power cut may follow; docs/decisions/0020-repair.md says what it leaves. Starting again goes on.
//!
//! The vault must be locked for exclusive use.

mod adopt;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, io,
    ops::Range,
    path::PathBuf,
};

use rustix::fs::{FileType, Stat, Timespec};

use super::{
    finding::{Finding, Problem, Severity, join, unusable},
    lost::{Lost, path_in, split},
    tree,
    walk::{Content, Entry, Visitor, WalkError, directories_named, directory_header_copy, names_in, opens_in, walk},
};
use crate::{
    backing::{BackingFile, Dir, Storage},
    format::{
        header::FileHeader,
        layout::PREAMBLE_SIZE,
        link::{self, DiskTarget, LINK_FILE_MAX},
        name::{self, LONG_NAME_FILE_MAX, Shape},
        preamble::UnverifiedPreamble,
        xattr::XattrHash,
    },
    ids::{DirectoryId, FileId},
    units::{BlockIndex, CipherSize, PlainOffset, PlainSize},
    vault::{
        DirectoryKeys, Vault, VaultError,
        content::{self, ContentError, Stored},
        file::{FoundAt, VaultFile},
    },
};

/// Rounds at most: each but the last mends something that was hidden behind something else.
const ROUNDS_MAX: usize = 64;

/// Directories that cannot be used and are compared at most, each with each.
const EXCHANGED_MAX: usize = 256;

/// Attributes without which a file would be open to more users than before.
const ACCESS_LISTS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// What a repair tells.
#[derive(Debug)]
pub enum Told {
    /// Something was mended.
    Corrected {
        /// What was wrong.
        finding: Finding,
        /// What was done.
        remedy: Remedy,
    },
    /// Something stays as it is.
    Left {
        /// What is wrong.
        finding: Finding,
        /// Why it stays.
        why: Why,
    },
}

/// What was done.
#[derive(Debug)]
pub struct Remedy {
    /// What it was.
    pub action: Action,
    /// Where in the vault what was changed is kept.
    pub kept: Option<String>,
}

/// What can be done.
#[derive(Debug)]
pub enum Action {
    /// Moved to where it is kept.
    SetAside,
    /// The file was sealed as it is, after all of it was read.
    Sealed,
    /// A cut of the file that a crash had interrupted was finished, and the file sealed after all that is left was read.
    CutFinished,
    /// What someone had put behind the end of a sealed file was taken away.
    Cut,
    /// The attribute was removed.
    AttributeRemoved,
    /// A header was made from another of the same file, at this path.
    Header(String),
    /// A directory's header was made from what is in the directory.
    DirectoryHeader,
    /// A directory's header that was another's was taken away.
    DirectoryHeaderRemoved,
    /// A file of hushfs's own was copied from this path.
    Copied(String),
    /// Moved to where its name is from.
    Moved(String),
    /// An entry was given a name of the directory it is in, and what it needs there.
    Adopted,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::SetAside => f.write_str("set aside"),
            Action::Sealed => f.write_str("sealed as it is, every block was verified"),
            Action::CutFinished => {
                f.write_str("the cut was finished and the file sealed, every block that is left was verified")
            }
            Action::Cut => f.write_str("cut to the size it was sealed with, every block was verified"),
            Action::AttributeRemoved => f.write_str("the attribute was removed"),
            Action::Header(path) => write!(f, "its header was made from {path}"),
            Action::DirectoryHeader => f.write_str("its header was made from what is in it"),
            Action::DirectoryHeaderRemoved => f.write_str("it needs no header"),
            Action::Copied(path) => write!(f, "copied from {path}"),
            Action::Moved(path) => write!(f, "moved back to {path}"),
            Action::Adopted => f.write_str("its name was made anew for this directory, with what it needs under that"),
        }
    }
}

/// Why something stays as it is.
#[derive(Debug)]
pub enum Why {
    /// It is nobody's fault, and nothing is to be done.
    Note,
    /// There is nothing to mend it with.
    NoSource,
    /// There is more than one way, and these are in the way of each other.
    Ambiguous(Vec<String>),
    /// What is in a directory was made in one with this id, and nothing but the word of the user says that it belongs where it is.
    Unproved(DirectoryId),
    /// As `Unproved`, and there are other directories with this id, at these paths.
    Shared(DirectoryId, Vec<String>),
    /// An entry was made in a directory with this id, and nothing but the word of the user says that it belongs where it is.
    UnprovedEntry(DirectoryId),
    /// An entry beside it may yet be mended with it.
    Needed,
    /// There is nothing in a directory to say which it is, and it may be this one: it has a key of its own, and is nowhere else.
    MayHaveKey(DirectoryId),
    /// A file has more links than names were found, and there may be some at these paths, which cannot be looked at.
    OtherNames(Vec<String>),
    /// Its key is not at hand.
    NoKey,
    /// Who repairs may not read it.
    Denied,
    /// Without the attribute more users might reach the file.
    AccessList,
    /// What would be done failed.
    Failed(io::Error),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Note => f.write_str("nothing to be done"),
            Why::NoSource => f.write_str("nothing in the vault to mend it with: take it from a backup"),
            Why::Ambiguous(paths) => write!(f, "more than one answer, look at {}", paths.join(" and ")),
            Why::Unproved(id) => write!(
                f,
                "nothing proves that what is in it, made in directory {id}, belongs here"
            ),
            Why::Shared(id, paths) => write!(
                f,
                "what is in it was made in directory {id}, which {} is, too, and nothing proves that it belongs here",
                paths.join(" and ")
            ),
            Why::UnprovedEntry(id) => write!(f, "nothing proves that it, made in directory {id}, belongs here"),
            Why::Needed => f.write_str("an entry beside it may need it"),
            Why::MayHaveKey(id) => write!(
                f,
                "it may be directory {id}, for which a key was chosen and which is nowhere else: take its {} from a backup, or \
                 forget that choice with `hushfs vault encryption unset --gone` and set the key anew",
                name::DIRECTORY_HEADER
            ),
            Why::OtherNames(paths) => write!(
                f,
                "it is linked to more than its name, perhaps to one in {}: mend that first",
                paths.join(", ")
            ),
            Why::NoKey => f.write_str("its key is not at hand"),
            Why::Denied => f.write_str("it may not be read: repair as root, or let its owner read it"),
            Why::AccessList => f.write_str("it says who may use the file: set it anew"),
            Why::Failed(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for Why {
    fn from(error: io::Error) -> Self {
        Why::Failed(error)
    }
}

impl From<VaultError> for Why {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::Io(error) | VaultError::Content(ContentError::Io(error)) => Why::Failed(error),
            VaultError::EpochKey(..) | VaultError::KeyNeeded(_) => Why::NoKey,
            _ => Why::NoSource,
        }
    }
}

/// Mends what can be mended in a whole vault; `root` is its directory. What is in the directories `accepted`, paths of the view, belongs there.
///
/// # Errors
///
/// What keeps the root from being read; what else fails is told of.
pub fn repair(
    vault: &Vault,
    root: &Dir,
    accepted: &[PathBuf],
    stops: &dyn Fn() -> bool,
    tell: &mut dyn FnMut(Told),
) -> Result<super::Summary, WalkError> {
    let accepted = accepted.iter().map(|path| names_in(path).join(&b'/')).collect();
    let mut lost = Lost::new(root.open_dir(".").map_err(|error| WalkError {
        path: PathBuf::new(),
        source: error.into(),
    })?);
    for round in 1.. {
        let mut survey = Survey {
            vault,
            stops,
            summary: super::Summary {
                directories: 1,
                files: 0,
            },
            findings: Vec::new(),
            directories: BTreeMap::new(),
            links: HashMap::new(),
        };
        survey.note_directory(vault.root_keys().id, b"");
        walk(vault, root, &[] as &[PathBuf], &mut survey)?;
        let Survey {
            summary,
            findings,
            directories,
            links,
            ..
        } = survey;
        let (leftovers, others): (Vec<_>, Vec<_>) = findings.into_iter().partition(is_leftover);
        let sources = Sources::find(root, &others);
        let mut mender = Mender {
            vault,
            root,
            claimed: claimed(vault, root, &directories, &others),
            merged: merged(&others),
            names: Names {
                hidden: hidden(root, &others),
                found: links,
            },
            directories,
            accepted: &accepted,
            sources,
            lost: &mut lost,
        };
        let mut left = Vec::new();
        let mut corrected = mend_all(&mut mender, others, &mut left, stops, tell);
        if corrected == 0 {
            corrected = mend_all(&mut mender, leftovers, &mut left, stops, tell);
        }
        if corrected == 0 || round == ROUNDS_MAX || stops() {
            for (finding, why) in left {
                tell(Told::Left { finding, why });
            }
            return Ok(summary);
        }
    }
    unreachable!("a loop without end returns from within")
}

/// Mends one after the other; returns how many were mended.
fn mend_all(
    mender: &mut Mender<'_>,
    findings: Vec<Finding>,
    left: &mut Vec<(Finding, Why)>,
    stops: &dyn Fn() -> bool,
    tell: &mut dyn FnMut(Told),
) -> usize {
    let mut corrected = 0;
    for mut finding in findings {
        if stops() {
            return corrected;
        }
        match mender.mend(&mut finding) {
            Ok(remedy) => {
                corrected += 1;
                tell(Told::Corrected { finding, remedy });
            }
            Err(why) => left.push((finding, why)),
        }
    }
    corrected
}

/// Tells whether something is only in the way: nothing is made of it, it is set aside.
fn is_leftover(finding: &Finding) -> bool {
    matches!(
        finding.problem,
        Problem::OrphanedHeader
            | Problem::OrphanedLongName
            | Problem::OrphanedLinkFile
            | Problem::Temporary
            | Problem::Stranger
    )
}

/// Takes everything that a walk shows and that a repair needs.
struct Survey<'s> {
    vault: &'s Vault,
    stops: &'s dyn Fn() -> bool,
    summary: super::Summary,
    findings: Vec<Finding>,
    /// Directories that can be used, by their ids: their paths on disk. Two may have one id (docs/FORMAT.md section 6.2).
    directories: BTreeMap<DirectoryId, Vec<Vec<u8>>>,
    /// How many names were found of files that have several links, by their inode numbers.
    links: HashMap<u64, usize>,
}

impl Survey<'_> {
    fn note_directory(&mut self, id: DirectoryId, disk_path: &[u8]) {
        self.directories.entry(id).or_default().push(disk_path.to_vec());
    }
}

impl Visitor for Survey<'_> {
    fn entry(&mut self, entry: Entry<'_>) {
        match entry.content {
            Content::Directory(id) => {
                self.summary.directories += 1;
                self.note_directory(id, &entry.place.disk_path);
            }
            Content::File(_) if entry.stat.st_nlink > 1 => {
                self.summary.files += 1;
                // A link under the name of a sync tool's copy is anyone's.
                let is_own = split(&entry.place.disk_path)
                    .is_ok_and(|(_, disk)| matches!(name::shape(disk.as_bytes()), Shape::Inline(_) | Shape::Long));
                *self.links.entry(entry.stat.st_ino).or_default() += usize::from(is_own);
            }
            _ => self.summary.files += 1,
        }
    }

    fn found(&mut self, finding: Finding) {
        // A directory without its header was shown as one that can be used before it was looked into.
        if let (Problem::DirectoryHeaderMissing(_), Some(parent), Some(name)) =
            (&finding.problem, finding.parent, &finding.name)
        {
            let id = self.vault.born_directory_keys(parent, name).id;
            if let Some(paths) = self.directories.get_mut(&id) {
                paths.retain(|path| *path != finding.disk_path);
            }
            self.directories.retain(|_, paths| !paths.is_empty());
        }
        self.findings.push(finding);
    }

    fn stops(&self) -> bool {
        (self.stops)()
    }
}

/// Returns which ids of directories are spoken for, and by which paths on disk: those of directories that can be used; of those that cannot the one that
/// they would have without a header, the one that their header says, those of what is in them, and those of others whose headers admit their names.
fn claimed(
    vault: &Vault,
    root: &Dir,
    directories: &BTreeMap<DirectoryId, Vec<Vec<u8>>>,
    findings: &[Finding],
) -> HashMap<DirectoryId, BTreeSet<Vec<u8>>> {
    let mut claimed: HashMap<_, BTreeSet<_>> = HashMap::new();
    for (id, paths) in directories {
        claimed.entry(*id).or_default().extend(paths.iter().cloned());
    }
    let (mut homeless, mut places) = (Vec::new(), Vec::new());
    for finding in findings {
        let is_directory = matches!(
            finding.problem,
            Problem::DirectoryHeaderMissing(_)
                | Problem::Unusable(VaultError::DirectoryDamaged(_) | VaultError::DirectoryMisplaced)
        );
        let (true, Some(parent), Some(name)) = (is_directory, finding.parent, &finding.name) else {
            continue;
        };
        let Ok(dir) = open_path(root, &finding.disk_path) else {
            continue;
        };
        let mut ids = vec![vault.born_directory_keys(parent, name).id];
        if let Ok(inside) = Inside::list(&dir) {
            ids.extend(inside.ids(vault, &dir, []));
        }
        if let Ok(Some(header)) = vault.load_directory_header(&dir) {
            ids.push(header.directory);
            homeless.push(dir);
        }
        for id in ids {
            claimed.entry(id).or_default().insert(finding.disk_path.clone());
        }
        places.push((parent, name, &finding.disk_path));
    }
    // What is under one of these names may belong under another.
    for dir in homeless.iter().take(EXCHANGED_MAX) {
        for (parent, name, path) in places.iter().take(EXCHANGED_MAX) {
            if let Ok(keys) = vault.load_directory(dir, *parent, name) {
                claimed.entry(keys.id).or_default().insert((*path).clone());
            }
        }
    }
    claimed
}

/// Which names files have. How many links one has says nothing: who can write to the vault can link it to any name.
struct Names {
    /// How many names were found of files that have several links, by their inode numbers.
    found: HashMap<u64, usize>,
    /// What could not be looked at.
    hidden: Vec<Hidden>,
}

impl Names {
    /// Tells whether a file has several names of the vault.
    fn are_several(&self, stat: &Stat) -> Result<bool, Why> {
        let are_several = self.found.get(&stat.st_ino).is_some_and(|&found| found > 1);
        if stat.st_nlink == 1 || are_several {
            return Ok(are_several);
        }
        let may_be_in = |hidden: &&Hidden| hidden.inode.is_none_or(|inode| inode == stat.st_ino);
        let paths: Vec<_> = self
            .hidden
            .iter()
            .filter(may_be_in)
            .map(|hidden| hidden.path.clone())
            .collect();
        if paths.is_empty() {
            Ok(false)
        } else {
            Err(Why::OtherNames(paths))
        }
    }
}

/// Something that could not be looked at.
struct Hidden {
    path: String,
    /// Its inode number; nothing for what may have names in it.
    inode: Option<u64>,
}

/// Returns what could not be looked at, and may be other names of files.
fn hidden(root: &Dir, findings: &[Finding]) -> Vec<Hidden> {
    let not_shown = findings.iter().filter(|finding| {
        matches!(
            finding.problem,
            Problem::NameUnopened(_)
                | Problem::NameElsewhere { .. }
                | Problem::Unusable(_)
                | Problem::DirectoryHeaderMissing(_)
                | Problem::Unreadable(_)
                | Problem::Malformed(_)
        )
    });
    let hidden = not_shown.map(|finding| {
        let stat = split(&finding.disk_path).and_then(|(above, disk)| {
            open_path(root, above.as_bytes())?.stat(if disk.is_empty() { "." } else { disk })
        });
        let is_file = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
        Hidden {
            path: String::from_utf8_lossy(&finding.disk_path).into_owned(),
            inode: stat.ok().filter(is_file).map(|stat| stat.st_ino),
        }
    });
    hidden.collect()
}

/// Returns the paths on disk of directories in which there are entries of others.
fn merged(findings: &[Finding]) -> BTreeSet<Vec<u8>> {
    let elsewhere = findings
        .iter()
        .filter(|finding| matches!(finding.problem, Problem::NameElsewhere { .. }));
    let above = elsewhere.filter_map(|finding| Some(split(&finding.disk_path).ok()?.0.as_bytes().to_vec()));
    above.collect()
}

/// The names on disk in a directory that say which one it is.
struct Inside {
    entries: Vec<String>,
    headers: Vec<FileId>,
}

impl Inside {
    fn list(dir: &Dir) -> io::Result<Self> {
        let (mut entries, mut headers) = (Vec::new(), Vec::new());
        dir.each_entry(|entry| match name::shape(entry.name) {
            Shape::Inline(_) | Shape::Long => entries.extend(std::str::from_utf8(entry.name).map(str::to_owned)),
            Shape::Header(file) => headers.push(file),
            _ => {}
        })?;
        Ok(Inside { entries, headers })
    }

    /// Returns the ids under which a name in the directory opens, of those that authentic headers in it are for and of some more.
    fn ids(&self, vault: &Vault, dir: &Dir, more: impl IntoIterator<Item = DirectoryId>) -> Vec<DirectoryId> {
        let mut ids = directories_named(vault, dir, self.headers.iter().copied());
        ids.extend(more);
        ids.retain(|id| {
            let keys = vault.directory_keys(*id);
            self.entries.iter().any(|name| opens_in(&keys, dir, name))
        });
        ids.into_iter().collect()
    }
}

/// Renames durably, and replaces nothing.
fn rename(dir: &Dir, from: &str, to_dir: &Dir, to: &str) -> io::Result<()> {
    dir.rename_to_free(from, to_dir, to)?;
    to_dir.sync()?;
    dir.sync()
}

fn printable(paths: &[Vec<u8>]) -> Vec<String> {
    let paths = paths.iter().map(|path| String::from_utf8_lossy(path).into_owned());
    paths.collect()
}

/// Opens a directory by its path in the backing directory.
fn open_path(root: &Dir, disk_path: &[u8]) -> io::Result<Dir> {
    let path = std::str::from_utf8(disk_path).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let names = path.split('/').filter(|name| !name.is_empty());
    names
        .into_iter()
        .try_fold(root.open_dir(".")?, |dir, name| dir.open_dir(name))
}

/// Files of hushfs's own that could serve, wherever they are: by their names, the directories they are in. What earlier repairs have kept is among them.
#[derive(Default)]
struct Sources(HashMap<String, Vec<String>>);

impl Sources {
    fn find(root: &Dir, findings: &[Finding]) -> Self {
        let mut sources = Sources::default();
        for finding in findings {
            let wanted = match &finding.problem {
                Problem::Unusable(
                    VaultError::HeaderMissing(id) | VaultError::HeaderDamaged(id, _) | VaultError::HeaderMisplaced(id),
                ) => Some(name::header_file(*id)),
                Problem::NameUnopened(_) => split(&finding.disk_path)
                    .ok()
                    .map(|(_, entry)| name::long_name_file(entry)),
                Problem::Unusable(VaultError::LinkDamaged(_)) => link_file_of(root, &finding.disk_path),
                _ => None,
            };
            if let Some(wanted) = wanted {
                sources.0.entry(wanted).or_default();
            }
        }
        let Some(start) = root.open_dir(".").ok().filter(|_| !sources.0.is_empty()) else {
            return sources;
        };
        tree::each_directory(start, &mut |path, listed| {
            let (Ok((_, entries)), Ok(path)) = (listed, std::str::from_utf8(path)) else {
                return;
            };
            for entry in entries {
                let found = std::str::from_utf8(&entry.name).ok();
                if let Some(directories) = found.and_then(|name| sources.0.get_mut(name)) {
                    directories.push(path.to_owned());
                }
            }
        });
        sources
    }

    fn of(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }
}

/// Returns the name of the file that holds a link's target, if that is where it is.
fn link_file_of(root: &Dir, disk_path: &[u8]) -> Option<String> {
    let (above, entry) = split(disk_path).ok()?;
    let text = open_path(root, above.as_bytes()).ok()?.readlink(entry).ok()?;
    match link::decode(&text).ok()? {
        DiskTarget::Long { link, .. } => Some(name::link_file(link)),
        DiskTarget::Inline(_) => None,
    }
}

struct Mender<'m> {
    vault: &'m Vault,
    root: &'m Dir,
    directories: BTreeMap<DirectoryId, Vec<Vec<u8>>>,
    claimed: HashMap<DirectoryId, BTreeSet<Vec<u8>>>,
    /// Paths on disk of directories in which there are entries of others.
    merged: BTreeSet<Vec<u8>>,
    names: Names,
    /// Paths in the view of directories of which the user says that what is in them belongs there.
    accepted: &'m BTreeSet<Vec<u8>>,
    sources: Sources,
    lost: &'m mut Lost,
}

/// Where something that is to be mended lies.
struct Site {
    dir: Dir,
    keys: DirectoryKeys,
    /// The path of the directory on disk.
    above: String,
    /// The name on disk.
    disk: String,
}

impl Site {
    fn path_of(&self, name: &str) -> Vec<u8> {
        path_in(&self.above, name)
    }

    fn disk_path(&self) -> Vec<u8> {
        self.path_of(&self.disk)
    }
}

type Mended = Result<Remedy, Why>;

impl Mender<'_> {
    /// Mends one thing. What is found to be worse than it looked is noted in the finding.
    fn mend(&mut self, finding: &mut Finding) -> Mended {
        let site = match &finding.problem {
            problem if problem.is_denied() => return Err(Why::Denied),
            problem if problem.severity() == Severity::Unchecked => return Err(Why::NoKey),
            Problem::Conflict | Problem::SyncTool | Problem::OtherFilesystem | Problem::NeverSynced => {
                return Err(Why::Note);
            }
            _ if is_leftover(finding) => {
                let (above, entry) = split(&finding.disk_path)?;
                if directory_header_copy(entry.as_bytes()).is_some() && self.merged.contains(above.as_bytes()) {
                    return Err(Why::Needed);
                }
                let dir = open_path(self.root, above.as_bytes())?;
                return self.set_aside(&dir, &finding.disk_path, Action::SetAside);
            }
            Problem::AttributeDamaged(attribute, _) => return self.attribute(&finding.disk_path, attribute),
            _ => self.site(finding)?,
        };
        match &finding.problem {
            Problem::LeftOpen { .. } => self.seal(&site, &mut finding.problem),
            Problem::Unusable(
                VaultError::HeaderMissing(id) | VaultError::HeaderDamaged(id, _) | VaultError::HeaderMisplaced(id),
            ) => self.header(&site, *id),
            Problem::Unusable(VaultError::DirectoryDamaged(_) | VaultError::DirectoryMisplaced)
            | Problem::DirectoryHeaderMissing(_) => {
                let is_accepted = finding.plain_path().is_some_and(|path| self.accepted.contains(&path));
                self.directory(&site, finding.name.as_deref().unwrap_or_default(), is_accepted)
            }
            Problem::Unusable(VaultError::Content(ContentError::WrongSize { sealed, .. })) => self.cut(&site, *sealed),
            Problem::Unusable(VaultError::LinkDamaged(_)) => self.link(&site),
            Problem::NameUnopened(_) => match name::shape(site.disk.as_bytes()) {
                Shape::Inline(sealed) => self.entry(&site, &sealed),
                _ => self.long_name(&site),
            },
            Problem::NameElsewhere { made_in, is_of_path } => {
                let directory = finding.directory.clone().unwrap_or_default();
                self.elsewhere(&site, *made_in, *is_of_path, &directory)
            }
            _ => Err(Why::NoSource),
        }
    }

    fn site(&self, finding: &Finding) -> Result<Site, Why> {
        let (above, disk) = split(&finding.disk_path)?;
        let parent = finding.parent.ok_or(Why::NoSource)?;
        Ok(Site {
            dir: open_path(self.root, above.as_bytes())?,
            keys: self.vault.directory_keys(parent),
            above: above.to_owned(),
            disk: disk.to_owned(),
        })
    }

    fn set_aside(&mut self, dir: &Dir, disk_path: &[u8], action: Action) -> Mended {
        let kept = self.lost.set_aside(dir, disk_path)?;
        Ok(Remedy {
            action,
            kept: Some(kept),
        })
    }

    /// Puts a file of hushfs's own in its place, durably; sets aside what is there.
    fn put(&mut self, site: &Site, name: &str, bytes: &[u8], action: Action) -> Mended {
        let kept = match site.dir.stat(name) {
            Ok(_) => Some(self.lost.set_aside(&site.dir, &site.path_of(name))?),
            Err(_) => None,
        };
        let before = site.dir.stat_self()?;
        // Where root repairs the vault of someone else, who must be able to read it.
        let owner = match name::shape(name.as_bytes()) {
            Shape::Header(_) => site.dir.stat(&site.disk)?,
            _ => before,
        };
        site.dir.replace_for(name, &name::temporary_file(name), bytes, &owner)?;
        site.dir.keep_modified(&before)?;
        Ok(Remedy { action, kept })
    }

    fn attribute(&mut self, disk_path: &[u8], attribute: &str) -> Mended {
        let hash = XattrHash::from_disk_name(attribute.as_bytes());
        let governs = |list: &&[u8]| hash == Some(self.vault.xattr_keys().hash(list));
        if ACCESS_LISTS.iter().any(governs) {
            return Err(Why::AccessList);
        }
        let (above, entry) = match disk_path {
            [] => ("", "."),
            path => split(path)?,
        };
        let dir = open_path(self.root, above.as_bytes())?;
        let kept = self
            .lost
            .attribute(disk_path, attribute, &dir.get_xattr(entry, attribute)?)?;
        dir.remove_xattr(entry, attribute)?;
        Ok(Remedy {
            action: Action::AttributeRemoved,
            kept: Some(kept),
        })
    }

    /// Returns the name that a file's place was made with: for the copy of a sync tool that of the entry it is of.
    fn sealed_name(&self, site: &Site) -> Result<Vec<u8>, Why> {
        let base = match name::shape(site.disk.as_bytes()) {
            Shape::Conflict(base, _) => base,
            _ => site.disk.clone(),
        };
        match name::shape(base.as_bytes()) {
            Shape::Inline(sealed) => site.keys.open_name(&sealed).ok_or(Why::NoSource),
            _ => Ok(site.keys.open_long_name(&site.dir, &base)?),
        }
    }

    /// Seals a file that a crash left open, if all of it authenticates.
    fn seal(&mut self, site: &Site, problem: &mut Problem) -> Mended {
        let name = self.sealed_name(site)?;
        let backing = site.dir.open_file(&site.disk, false)?;
        let stat = backing.stat()?;
        let several_names = self.names.are_several(&stat)?;
        let at = FoundAt {
            directory: site.keys.id,
            name: &name,
        };
        let file = VaultFile::load(self.vault, backing, None, &site.dir, at)?;
        let (Some(content), Some(id)) = (file.content(), file.id()) else {
            return Err(Why::NoSource);
        };
        let cut = content.being_cut_to();
        match cut {
            // The block of the cut is of the old length or of the new one, which sealing sets right first.
            Some(size) => verify_before(content, self.vault.layout().block_of(PlainOffset(size.0)), problem)?,
            None => verify(content, problem)?,
        }
        let mut kept = self
            .lost
            .copy(&site.disk_path(), "preamble", &**file.backing(), 0..PREAMBLE_SIZE)?;
        let tail = self.tail_of(CipherSize(file.backing().len()?), cut);
        if !tail.is_empty() {
            kept = self.lost.copy(&site.disk_path(), "tail", &**file.backing(), tail)?;
        }
        let mtime = Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as _,
        };
        // Once to finish a cut, once to take a torn tail away, once to seal.
        while let Some(ticket) = content.begin_seal() {
            let header = site.dir.open_file(&name::header_file(id), true)?;
            header.sync_all()?;
            file.backing().sync_all()?;
            site.dir.sync()?;
            let was_cut = content.being_cut_to().is_some();
            content
                .finish_seal(ticket, Some(mtime), |key| {
                    (!several_names).then(|| key.place(site.keys.id, &name))
                })
                .map_err(VaultError::from)?;
            if was_cut {
                verify(content, problem)?;
            }
        }
        file.backing().sync_all()?;
        let action = match cut {
            Some(_) => Action::CutFinished,
            None => Action::Sealed,
        };
        Ok(Remedy {
            action,
            kept: Some(kept),
        })
    }

    /// Returns what sealing takes away from a file's end: a part of a block, or all from the block of a cut on, which is replaced.
    fn tail_of(&self, size: CipherSize, cut: Option<PlainSize>) -> Range<u64> {
        let layout = self.vault.layout();
        match cut {
            Some(cut) => layout.cipher_start(layout.block_of(PlainOffset(cut.0))).0..size.0,
            None => size.0 - layout.extent(size).torn..size.0,
        }
    }

    /// Makes a file's header from another of the same file.
    fn header(&mut self, site: &Site, id: FileId) -> Mended {
        let name = name::header_file(id);
        let mut found: Option<(FileHeader, String)> = None;
        let mut others = Vec::new();
        let mut why = Why::NoSource;
        for directory in self.sources.of(&name) {
            let dir = open_path(self.root, directory.as_bytes())?;
            let header = match self.vault.load_header_of_any(&dir, id) {
                Ok(header) => header,
                Err(error @ (VaultError::EpochKey(..) | VaultError::KeyNeeded(_))) => {
                    why = error.into();
                    continue;
                }
                Err(_) => continue,
            };
            match &found {
                // All that are for this directory will do; the others need proof.
                Some((known, _)) if known.fields.commitment != header.fields.commitment => {
                    others.push(format!("{directory}/{name}"));
                }
                Some((known, _)) if known.fields.directory == site.keys.id => {}
                Some(_) if header.fields.directory != site.keys.id => {}
                _ => found = Some((header, format!("{directory}/{name}").trim_start_matches('/').to_owned())),
            }
        }
        let Some((header, from)) = found else { return Err(why) };
        if !others.is_empty() {
            others.push(from);
            return Err(Why::Ambiguous(others));
        }
        let is_for_here = header.fields.directory == site.keys.id;
        let header = self.vault.header_for_directory(header, site.keys.id);
        let file = site.dir.open_file(&site.disk, true)?;
        let size = CipherSize(file.len()?);
        let placed = self.opens(site, file, size, &header)?.is_placed();
        if !is_for_here && !placed {
            // Nothing says that the file is not one that someone has moved here.
            return Err(Why::Ambiguous(vec![from]));
        }
        let bytes = self.vault.encode_header(&header)?;
        self.put(site, &name, &bytes, Action::Header(from))
    }

    /// Opens a data file of a size with a header, and checks that it may be under its name.
    fn opens(
        &self,
        site: &Site,
        file: BackingFile,
        size: CipherSize,
        header: &FileHeader,
    ) -> Result<content::Content<BackingFile>, Why> {
        let mut bytes = [0; PREAMBLE_SIZE as usize];
        let got = file.read_at(&mut bytes, 0)?;
        let preamble = UnverifiedPreamble::decode(&bytes[..got]).map_err(|_| Why::NoSource)?;
        let stored = Stored {
            size,
            preamble: &preamble,
        };
        let name = self.sealed_name(site)?;
        let place = |key: &crate::crypto::seal::SealKey| Some(key.place(site.keys.id, &name));
        content::Content::load(file, self.vault.layout(), header, stored, place)
            .map_err(|error| VaultError::from(error).into())
    }

    /// Takes away what someone has put behind the end of a sealed file, if all before it is as it was sealed.
    fn cut(&mut self, site: &Site, sealed: PlainSize) -> Mended {
        let file = site.dir.open_file(&site.disk, false)?;
        let mut bytes = [0; PREAMBLE_SIZE as usize];
        let got = file.read_at(&mut bytes, 0)?;
        let preamble = UnverifiedPreamble::decode(&bytes[..got]).map_err(|_| Why::NoSource)?;
        let header = self.vault.load_header(&site.dir, site.keys.id, preamble.file())?;
        let (size, stat) = (self.vault.layout().cipher_size(sealed), file.stat()?);
        let found = stat.st_size as u64;
        if found <= size.0 {
            return Err(Why::NoSource);
        }
        let content = self.opens(site, file, size, &header)?;
        content.verify(|_| ()).map_err(VaultError::from)?;
        let kept = self
            .lost
            .copy(&site.disk_path(), "tail", content.storage(), size.0..found)?;
        let mtime = Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as _,
        };
        content.storage().set_len(size.0)?;
        content.storage().set_mtime(mtime)?;
        content.storage().sync_all()?;
        Ok(Remedy {
            action: Action::Cut,
            kept: Some(kept),
        })
    }

    /// Gives a directory the header that fits what is in it, if that can be of nowhere else or the user has said that it belongs here.
    fn directory(&mut self, site: &Site, name: &[u8], is_accepted: bool) -> Mended {
        let dir = site.dir.open_dir(&site.disk)?;
        let born = self.vault.born_directory_keys(site.keys.id, name).id;
        let (said, is_damaged) = match self.vault.load_directory_header(&dir) {
            Ok(header) => (header.map(|header| header.directory), false),
            Err(VaultError::DirectoryDamaged(_)) => (None, true),
            Err(error) => return Err(error.into()),
        };
        let listed = Inside::list(&dir)?;
        let inside = Site {
            keys: self.vault.directory_keys(born),
            above: format!("{}/{}", site.above, site.disk)
                .trim_start_matches('/')
                .to_owned(),
            disk: name::DIRECTORY_HEADER.to_owned(),
            dir,
        };
        let fitting = match (listed.entries.is_empty(), said) {
            // Someone moved it, empty as it is.
            (true, Some(said)) => vec![said],
            (true, None) => vec![self.unless_a_key_is_missed(born)?],
            (false, said) => listed.ids(self.vault, &inside.dir, [Some(born), said].into_iter().flatten()),
        };
        let id = match fitting[..] {
            [] => return Err(Why::NoSource),
            [id] => id,
            _ => return Err(Why::Ambiguous(vec![inside.above])),
        };
        let elsewhere = self.others_with(id, &site.disk_path());
        if said == Some(id) && !elsewhere.is_empty() {
            // The header is that of what is in it, but the directory was given this name by someone else.
            return Err(Why::Ambiguous([vec![inside.above], elsewhere].concat()));
        }
        // A tool that has merged two trees may have brought a part of a directory that goes by another name there.
        let may_share = said.is_none() && !is_damaged && id != born && self.are_usable(id, &site.disk_path());
        if !listed.entries.is_empty() && !elsewhere.is_empty() && !may_share {
            return Err(Why::Ambiguous(elsewhere));
        }
        if said == Some(id) && !is_accepted {
            return Err(Why::Unproved(id));
        }
        if id == born {
            let path = inside.disk_path();
            return self.set_aside(&inside.dir, &path, Action::DirectoryHeaderRemoved);
        }
        if !is_accepted {
            // Keys prove which directory it is, not where: anyone could have moved it here, and taken its header away.
            return Err(match elsewhere.is_empty() || listed.entries.is_empty() {
                true => Why::Unproved(id),
                false => Why::Shared(id, elsewhere),
            });
        }
        let kept = match inside.dir.stat(&inside.disk) {
            Ok(_) => Some(self.lost.set_aside(&inside.dir, &inside.disk_path())?),
            Err(_) => None,
        };
        self.vault.settle_directory(&inside.dir, id, (site.keys.id, name))?;
        Ok(Remedy {
            action: Action::DirectoryHeader,
            kept,
        })
    }

    /// Returns the id that an empty directory is to have: whatever it had, nothing in it depends on it, but the key of what is made there may.
    fn unless_a_key_is_missed(&self, born: DirectoryId) -> Result<DirectoryId, Why> {
        let mut with_a_key = self.vault.directories_with_a_key();
        match with_a_key.find(|id| !self.directories.contains_key(id)) {
            Some(missed) => Err(Why::MayHaveKey(missed)),
            None => Ok(born),
        }
    }

    /// Returns the paths of directories, other than one, that may have an id too.
    fn others_with(&self, id: DirectoryId, disk_path: &[u8]) -> Vec<String> {
        let claimed = self.claimed.get(&id).into_iter().flatten();
        let others = claimed.filter(|path| *path != disk_path);
        others.map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    }

    /// Tells whether the directories, other than that at a path, that may have an id can all be used, and have it.
    fn are_usable(&self, id: DirectoryId, disk_path: &[u8]) -> bool {
        let usable = self.directories.get(&id).map_or(&[][..], Vec::as_slice);
        let mut claimed = self.claimed.get(&id).into_iter().flatten();
        claimed.all(|path| path == disk_path || usable.contains(path))
    }

    /// Brings an entry back to the directory whose name it has.
    fn entry(&mut self, site: &Site, sealed: &[u8]) -> Mended {
        let mut homes = Vec::new();
        for (id, paths) in &self.directories {
            if self.vault.directory_keys(*id).open_name(sealed).is_some() {
                homes.extend(paths.iter().cloned());
            }
        }
        match &homes[..] {
            [] => Err(Why::NoSource),
            [home] => self.move_back(site, home),
            several => Err(Why::Ambiguous(printable(several))),
        }
    }

    /// Moves an entry to the directory that it is of, if there is nothing of its name.
    fn move_back(&mut self, site: &Site, home: &[u8]) -> Mended {
        let to = open_path(self.root, home)?;
        let path = String::from_utf8_lossy(&join(home, site.disk.as_bytes())).into_owned();
        if to.stat(&site.disk).is_ok() {
            let here = String::from_utf8_lossy(&site.disk_path()).into_owned();
            return Err(Why::Ambiguous(vec![here, path]));
        }
        rename(&site.dir, &site.disk, &to, &site.disk)?;
        Ok(Remedy {
            action: Action::Moved(path),
            kept: None,
        })
    }

    /// Gives a long entry the file with its name, from elsewhere.
    fn long_name(&mut self, site: &Site) -> Mended {
        let wanted = name::long_name_file(&site.disk);
        for directory in self.sources.of(&wanted) {
            let dir = open_path(self.root, directory.as_bytes())?;
            let Ok(Some(bytes)) = dir.read_small(&wanted, LONG_NAME_FILE_MAX) else {
                continue;
            };
            let sealed = name::decode_long_name(&bytes, &site.disk).ok();
            if sealed.is_some_and(|sealed| site.keys.open_name(&sealed).is_some()) {
                let from = format!("{directory}/{wanted}");
                return self.put(site, &wanted, &bytes, Action::Copied(from));
            }
        }
        Err(Why::NoSource)
    }

    /// Gives a long link the file with its target, from elsewhere.
    fn link(&mut self, site: &Site) -> Mended {
        let text = site.dir.readlink(&site.disk)?;
        let Ok(DiskTarget::Long { link, .. }) = link::decode(&text) else {
            return Err(Why::NoSource);
        };
        let wanted = name::link_file(link);
        for directory in self.sources.of(&wanted) {
            let dir = open_path(self.root, directory.as_bytes())?;
            let Ok(Some(bytes)) = dir.read_small(&wanted, LINK_FILE_MAX) else {
                continue;
            };
            if link::open_file(self.vault.symlink_key(), link, &bytes).is_ok() {
                let from = format!("{directory}/{wanted}");
                return self.put(site, &wanted, &bytes, Action::Copied(from));
            }
        }
        Err(Why::NoSource)
    }
}

/// Reads all of a file; what is wrong with it is noted as the problem.
fn verify<S: Storage>(content: &content::Content<S>, problem: &mut Problem) -> Result<(), Why> {
    content.verify(|_| ()).map_err(|error| noted(error, problem))
}

/// Reads the blocks of a file before one; what is wrong with them is noted as the problem.
fn verify_before<S: Storage>(content: &content::Content<S>, end: BlockIndex, problem: &mut Problem) -> Result<(), Why> {
    let mut first = None;
    let read = content.verify_blocks(0..end.0, &mut |_| (), &mut |blocks| {
        first.get_or_insert(BlockIndex(blocks.start));
    });
    match read.map(|_| first) {
        Ok(None) => Ok(()),
        Ok(Some(block)) => Err(noted(ContentError::Damaged(block), problem)),
        Err(error) => Err(noted(error, problem)),
    }
}

fn noted(error: ContentError, problem: &mut Problem) -> Why {
    let (noted, why) = match error {
        ContentError::Io(error) => (Problem::Unreadable(again(&error)), Why::Failed(error)),
        error => (unusable(error.into()), Why::NoSource),
    };
    *problem = noted;
    why
}

/// Makes another error that says the same.
fn again(error: &io::Error) -> io::Error {
    error
        .raw_os_error()
        .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_worse_than_left_open() {
        let mut problem = Problem::LeftOpen { torn: 0 };
        let why = noted(ContentError::Io(io::Error::from_raw_os_error(libc::EIO)), &mut problem);
        let Why::Failed(error) = why else { panic!("{why:?}") };
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert_eq!((problem.severity(), problem.code()), (Severity::Damage, "unreadable"));
    }
}
