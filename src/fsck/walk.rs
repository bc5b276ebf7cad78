//! Walks through a vault, directory by directory, checks all that can be told without reading contents, and shows a [`Visitor`] what is there.
//!
//! It reads names, headers, preambles, links and extended attributes, and changes nothing. Memory grows with the depth of the tree and with the
//! largest directory, not with the number of files.

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{FileType, Stat};

use super::finding::{Finding, Problem, join, unusable};
use crate::{
    backing::{Dir, Storage},
    format::{
        FormatError,
        layout::PREAMBLE_SIZE,
        link::{self, DiskTarget, LINK_FILE_MAX},
        name::{self, Shape},
        preamble::UnverifiedPreamble,
        xattr::XattrHash,
    },
    ids::{DirectoryId, FileId},
    units::CipherSize,
    vault::{
        DirectoryKeys, Vault, VaultError,
        file::{FoundAt, VaultFile},
        journal::recovery,
        path::Located,
    },
};

/// Is shown what a walk comes upon. A directory comes before what is in it.
pub trait Visitor {
    /// Takes an entry whose name opens and that can be used; of a file everything but the blocks was checked.
    fn entry(&mut self, entry: Entry<'_>);

    /// Takes something that is not as it should be. An entry with damage does not come as an [`Entry`], unless the damage is to one of its attributes.
    fn found(&mut self, finding: Finding);

    /// Tells whether the walk is to end early; asked before each entry.
    fn stops(&self) -> bool {
        false
    }
}

/// An entry of a directory.
#[derive(Debug)]
pub struct Entry<'w> {
    /// Where it is.
    pub place: &'w Place,
    /// Its attributes on disk.
    pub stat: Stat,
    /// What it is.
    pub content: Content,
}

/// What an entry is.
#[derive(Debug)]
pub enum Content {
    /// A directory with this id.
    Directory(DirectoryId),
    /// A file, open; without content where it was never written.
    File(Arc<VaultFile>),
    /// A link to this target.
    Link(Vec<u8>),
    /// A fifo, a socket or a device.
    Special,
}

/// Where an entry is.
#[derive(Clone, Debug)]
pub struct Place {
    /// The path in the backing directory.
    pub disk_path: Vec<u8>,
    /// The path of its directory in the view.
    pub directory: Vec<u8>,
    /// The name in the view.
    pub name: Vec<u8>,
    /// The id of its directory.
    pub parent: DirectoryId,
}

impl Place {
    /// Returns the path in the view.
    pub fn plain_path(&self) -> Vec<u8> {
        join(&self.directory, &self.name)
    }

    /// Makes a finding of something wrong with the entry.
    pub fn finding(&self, problem: Problem) -> Finding {
        Finding {
            disk_path: self.disk_path.clone(),
            directory: Some(self.directory.clone()),
            name: Some(self.name.clone()),
            parent: Some(self.parent),
            problem,
        }
    }
}

/// Why a walk could not begin or go on.
#[derive(Debug)]
pub struct WalkError {
    /// The path in the view that was to be walked through; empty for everything.
    pub path: PathBuf,
    /// What is in the way.
    pub source: VaultError,
}

impl fmt::Display for WalkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.source)
    }
}

impl std::error::Error for WalkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Walks through what paths of the view name, or through everything where there are none; `root` is the vault's directory.
///
/// # Errors
///
/// [`WalkError`] for a path under which nothing is found; whatever else cannot be read is a [`Finding`].
pub fn walk(vault: &Vault, root: &Dir, paths: &[PathBuf], visitor: &mut dyn Visitor) -> Result<(), WalkError> {
    journals(vault, root, visitor);
    let everything = [PathBuf::new()];
    let paths = if paths.is_empty() { &everything[..] } else { paths };
    for path in paths {
        let failed = |source| WalkError {
            path: path.clone(),
            source,
        };
        let located = vault.locate(root, path).map_err(failed)?;
        let device = root.stat_self().map_err(|error| failed(error.into()))?.st_dev;
        let mut run = Run { vault, device, visitor };
        run.start(located, path);
    }
    Ok(())
}

/// Reports the journals that were made elsewhere: files below any path may be what they were before what those have.
fn journals(vault: &Vault, root: &Dir, visitor: &mut dyn Visitor) {
    let mut found = |disk_path, problem| {
        visitor.found(Finding {
            disk_path,
            directory: Some(Vec::new()),
            name: None,
            parent: Some(vault.root_keys().id),
            problem,
        });
    };
    match recovery::copies(vault, root) {
        Ok(copies) => copies
            .into_iter()
            .for_each(|journal| found(journal.into_bytes(), Problem::JournalCopied)),
        Err(error) => found(Vec::new(), Problem::Unreadable(error)),
    }
}

struct Run<'r> {
    vault: &'r Vault,
    device: u64,
    visitor: &'r mut dyn Visitor,
}

/// A directory being walked through.
struct Open {
    dir: Dir,
    keys: DirectoryKeys,
    disk_path: Vec<u8>,
    plain_path: Vec<u8>,
    /// Where it is itself; nothing for the root.
    place: Option<Place>,
}

impl Open {
    fn place_of(&self, entry: &Named) -> Place {
        Place {
            disk_path: join(&self.disk_path, entry.disk.as_bytes()),
            directory: self.plain_path.clone(),
            name: entry.shown.clone(),
            parent: self.keys.id,
        }
    }

    fn is_root(&self) -> bool {
        self.plain_path.is_empty()
    }
}

/// An entry whose name opens.
struct Named {
    disk: String,
    /// The name it was sealed under.
    name: Vec<u8>,
    /// The name it shows under, another for the copies of sync tools.
    shown: Vec<u8>,
}

/// What lies in a directory besides entries, and what of it is needed.
#[derive(Default)]
struct Besides {
    headers: HashSet<FileId>,
    long_names: HashSet<String>,
    link_files: HashSet<FileId>,
    has_directory_header: bool,
    /// Names that copies of the directory's header may have.
    directory_header_copies: Vec<String>,
    /// What else it may be to entries whose names do not open; looked for once one does not.
    other_ids: Option<OtherIds>,
    /// Files whose header is not known: any header may be theirs.
    unknown: bool,
}

/// Ids, other than its own, under which names in a directory may have been made, with their keys.
struct OtherIds {
    /// Those that the directory under its path can have, or had: without a header, and by copies of one for this path.
    of_path: Vec<DirectoryKeys>,
    /// Those of other copies of headers, and those that authentic headers of files in it name.
    named: Vec<DirectoryKeys>,
}

impl OtherIds {
    fn find(vault: &Vault, at: &Open, besides: &Besides) -> Self {
        let (mut of_path, mut named) = (Vec::new(), BTreeSet::new());
        // The root has one id for ever.
        if let Some(place) = &at.place {
            of_path.push(vault.born_directory_keys(place.parent, &place.name));
            for copy in &besides.directory_header_copies {
                match vault.load_directory_header_under(&at.dir, copy) {
                    Ok(Some(header)) if vault.admits(&header, place.parent, &place.name) => {
                        of_path.push(vault.directory_keys(header.directory));
                    }
                    Ok(Some(header)) => drop(named.insert(header.directory)),
                    _ => {}
                }
            }
            named.extend(directories_named(vault, &at.dir, besides.headers.iter().copied()));
        }
        OtherIds {
            of_path,
            named: named.into_iter().map(|id| vault.directory_keys(id)).collect(),
        }
    }

    /// Says what an entry is whose name on disk opens under one of them.
    fn problem(&self, dir: &Dir, disk: &str) -> Option<Problem> {
        let of = |ids: &[DirectoryKeys]| Some(ids.iter().find(|keys| opens_in(keys, dir, disk))?.id);
        let of_path = of(&self.of_path).map(|id| (id, true));
        let (made_in, is_of_path) = of_path.or_else(|| Some((of(&self.named)?, false)))?;
        Some(Problem::NameElsewhere { made_in, is_of_path })
    }
}

impl Run<'_> {
    fn start(&mut self, located: Located, path: &Path) {
        let mut names = names_in(path);
        if located.entry.is_some() {
            names.pop();
        }
        let disk_path = located.disk_path.as_bytes().to_vec();
        let ids = &located.directories;
        let place = names.split_last().map(|(name, above)| Place {
            disk_path: disk_path.clone(),
            directory: above.join(&b'/'),
            name: name.to_vec(),
            parent: ids[ids.len() - 2],
        });
        let open = Open {
            keys: self.vault.directory_keys(located.directory()),
            dir: located.dir,
            disk_path,
            plain_path: names.join(&b'/'),
            place,
        };
        match located.entry {
            None => self.tree(open),
            Some(entry) => {
                let named = Named {
                    disk: entry.disk,
                    shown: entry.name.clone(),
                    name: entry.name,
                };
                self.entry(&open, named, &mut Besides::default());
            }
        }
    }

    fn tree(&mut self, start: Open) {
        let root = || Place {
            disk_path: Vec::new(),
            directory: Vec::new(),
            name: Vec::new(),
            parent: start.keys.id,
        };
        self.attributes(&start.dir, ".", &start.place.clone().unwrap_or_else(root), None);
        let mut levels = vec![(self.directory(&start), start)];
        while let Some((waiting, parent)) = levels.last_mut() {
            let Some(entry) = waiting.pop() else {
                levels.pop();
                continue;
            };
            if self.visitor.stops() {
                return;
            }
            if let Some(open) = self.enter(parent, &entry) {
                levels.push((self.directory(&open), open));
            }
        }
    }

    /// Reports something that is no entry.
    fn found(&mut self, at: &Open, disk: &[u8], problem: Problem) {
        self.visitor.found(Finding {
            disk_path: join(&at.disk_path, disk),
            directory: Some(at.plain_path.clone()),
            name: None,
            parent: Some(at.keys.id),
            problem,
        });
    }

    /// Opens a directory found in another.
    fn enter(&mut self, parent: &Open, entry: &Named) -> Option<Open> {
        let place = parent.place_of(entry);
        let opened = parent
            .dir
            .open_dir(&entry.disk)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EXDEV) => Problem::OtherFilesystem,
                _ => Problem::Unreadable(error),
            });
        let opened = opened.and_then(|dir| {
            let keys = self.vault.load_directory(&dir, parent.keys.id, &entry.name);
            let stat = dir.stat_self().map_err(Problem::Unreadable)?;
            Ok((dir, stat, keys.map_err(unusable)?))
        });
        match opened {
            Ok((dir, stat, keys)) => {
                self.attributes(&dir, ".", &place, None);
                self.visitor.entry(Entry {
                    place: &place,
                    stat,
                    content: Content::Directory(keys.id),
                });
                Some(Open {
                    dir,
                    keys,
                    disk_path: place.disk_path.clone(),
                    plain_path: place.plain_path(),
                    place: Some(place),
                })
            }
            Err(problem) => {
                self.visitor.found(place.finding(problem));
                None
            }
        }
    }

    /// Goes through a directory and what lies in it; returns the directories to go on with.
    fn directory(&mut self, at: &Open) -> Vec<Named> {
        let mut besides = Besides::default();
        // What belongs to an entry may be listed behind it.
        let mut others = Vec::new();
        let listed = at.dir.each_entry(|entry| match name::shape(entry.name) {
            Shape::Dots => {}
            Shape::Header(file) => drop(besides.headers.insert(file)),
            Shape::LongNameFile(entry) => drop(besides.long_names.insert(entry)),
            Shape::LinkFile(file) => drop(besides.link_files.insert(file)),
            Shape::DirectoryHeader if !at.is_root() => besides.has_directory_header = true,
            shape => {
                if let (Shape::Stranger, Some(copy)) = (shape, directory_header_copy(entry.name)) {
                    besides.directory_header_copies.push(copy.to_owned());
                }
                others.push(Box::<[u8]>::from(entry.name));
            }
        });
        if let Err(error) = listed {
            self.found(at, b"", Problem::Unreadable(error));
            return Vec::new();
        }
        if self.has_lost_its_header(at, &besides, &others) {
            return Vec::new();
        }
        let mut directories = Vec::new();
        for raw in &others {
            if self.visitor.stops() {
                return Vec::new();
            }
            let shape = name::shape(raw);
            match shape {
                Shape::Dots | Shape::Header(_) | Shape::LongNameFile(_) | Shape::LinkFile(_) => {}
                Shape::VaultFile | Shape::LostAndFound if at.is_root() => {}
                Shape::Temporary => self.found(at, raw, Problem::Temporary),
                Shape::Stranger if is_sync_tool(raw) => self.found(at, raw, Problem::SyncTool),
                Shape::VaultFile | Shape::LostAndFound | Shape::DirectoryHeader | Shape::Stranger => {
                    self.found(at, raw, Problem::Stranger);
                }
                Shape::Inline(_) | Shape::Long | Shape::Conflict(..) => {
                    if let Some(entry) = self.open_name(at, raw, &shape, &mut besides) {
                        directories.extend(self.entry(at, entry, &mut besides));
                    }
                }
            }
        }
        self.leftovers(at, besides);
        directories
    }

    /// Tells whether a directory lacks the header that says its id, and reports it: no name in it opens, and headers of files in it name other directories.
    fn has_lost_its_header(&mut self, at: &Open, besides: &Besides, others: &[Box<[u8]>]) -> bool {
        let Some(place) = at.place.as_ref().filter(|_| !besides.has_directory_header) else {
            return false;
        };
        let mut names = others.iter().filter_map(|raw| match name::shape(raw) {
            Shape::Inline(sealed) => Some(at.keys.open_name(&sealed).is_some()),
            Shape::Long => {
                let entry = std::str::from_utf8(raw).ok()?;
                Some(at.keys.open_long_name(&at.dir, entry).is_ok())
            }
            _ => None,
        });
        let Some(first) = names.next() else { return false };
        if first || names.any(|opens| opens) {
            return false;
        }
        let ids = directories_named(self.vault, &at.dir, besides.headers.iter().copied());
        let ids: Vec<_> = ids.into_iter().filter(|id| *id != at.keys.id).collect();
        if ids.is_empty() {
            return false;
        }
        self.visitor.found(place.finding(Problem::DirectoryHeaderMissing(ids)));
        true
    }

    /// Opens the name of an entry.
    fn open_name(&mut self, at: &Open, raw: &[u8], shape: &Shape, besides: &mut Besides) -> Option<Named> {
        let disk = std::str::from_utf8(raw).ok()?.to_owned();
        let base = match shape {
            Shape::Conflict(base, _) => base.clone(),
            _ => disk.clone(),
        };
        besides.long_names.remove(&base);
        let opened = match name::shape(base.as_bytes()) {
            Shape::Inline(sealed) => at
                .keys
                .open_name(&sealed)
                .ok_or(VaultError::NameDamaged(FormatError::NotAuthentic)),
            _ => at.keys.open_long_name(&at.dir, &base),
        };
        match (opened, shape) {
            (Ok(name), Shape::Conflict(_, rest)) => {
                let shown = name::conflict_name(&name, rest);
                let named = Named { disk, name, shown };
                self.visitor.found(at.place_of(&named).finding(Problem::Conflict));
                Some(named)
            }
            (Ok(name), _) => Some(Named {
                disk,
                shown: name.clone(),
                name,
            }),
            (Err(error), _) => {
                let known = besides.other_ids.take();
                let other_ids = known.unwrap_or_else(|| OtherIds::find(self.vault, at, besides));
                let problem = match (other_ids.problem(&at.dir, &base), shape) {
                    (Some(problem), _) => problem,
                    // By its shape it could have been a copy of an entry, but it is of none.
                    (None, Shape::Conflict(..)) => Problem::Stranger,
                    (None, _) => Problem::NameUnopened(error),
                };
                besides.other_ids = Some(other_ids);
                besides.unknown |= !matches!(problem, Problem::Stranger);
                self.found(at, raw, problem);
                None
            }
        }
    }

    /// Checks an entry; gives it back when it is a directory, to go on with.
    fn entry(&mut self, at: &Open, entry: Named, besides: &mut Besides) -> Option<Named> {
        let place = at.place_of(&entry);
        let stat = match at.dir.stat(&entry.disk) {
            Ok(stat) if stat.st_dev == self.device => stat,
            stat => {
                besides.unknown = true;
                let problem = stat.map_or_else(Problem::Unreadable, |_| Problem::OtherFilesystem);
                self.visitor.found(place.finding(problem));
                return None;
            }
        };
        let content = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Some(entry),
            FileType::RegularFile => self.file(at, &entry, besides).map(Content::File),
            FileType::Symlink => self.link(at, &entry, besides).map(Content::Link),
            _ => Ok(Content::Special),
        };
        let file = match &content {
            Ok(Content::File(file)) => Some(file.clone()),
            _ => None,
        };
        self.attributes(&at.dir, &entry.disk, &place, file.as_deref());
        match content {
            Ok(content) => {
                if let Some(problem) = file.and_then(|file| self.left_open(&file)) {
                    self.visitor.found(place.finding(problem));
                }
                let place = &place;
                self.visitor.entry(Entry { place, stat, content });
            }
            Err(problem) => self.visitor.found(place.finding(problem)),
        }
        None
    }

    fn file(&self, at: &Open, entry: &Named, besides: &mut Besides) -> Result<Arc<VaultFile>, Problem> {
        let open = || at.dir.open_file(&entry.disk, true);
        let file = open()
            .inspect_err(|_| besides.unknown = true)
            .map_err(Problem::Unreadable)?;
        let found_at = FoundAt {
            directory: at.keys.id,
            name: &entry.name,
        };
        match VaultFile::load(self.vault, file, None, &at.dir, found_at) {
            Ok(file) => {
                file.id().map(|id| besides.headers.remove(&id));
                Ok(Arc::new(file))
            }
            Err(error) => {
                // What it says of itself is enough to leave its header alone.
                let mut bytes = [0; PREAMBLE_SIZE as usize];
                let claimed = open()
                    .and_then(|file| file.read_at(&mut bytes, 0))
                    .ok()
                    .and_then(|got| UnverifiedPreamble::decode(&bytes[..got]).ok());
                match claimed {
                    Some(preamble) => drop(besides.headers.remove(&preamble.file())),
                    None => besides.unknown = true,
                }
                Err(unusable(error))
            }
        }
    }

    /// Tells whether a file was being written when hushfs ended. Whoever holds the lock on the vault knows that nobody writes it now.
    fn left_open(&self, file: &VaultFile) -> Option<Problem> {
        if file.is_zeros() {
            return Some(Problem::NeverSynced);
        }
        file.begin_seal()?;
        let size = file.backing().len().map_err(Problem::Unreadable);
        Some(match size {
            Ok(size) => Problem::LeftOpen {
                torn: self.vault.layout().extent(CipherSize(size)).torn,
            },
            Err(problem) => problem,
        })
    }

    fn link(&self, at: &Open, entry: &Named, besides: &mut Besides) -> Result<Vec<u8>, Problem> {
        let key = self.vault.symlink_key();
        let damaged = |error| Problem::Unusable(VaultError::LinkDamaged(error));
        let text = at.dir.readlink(&entry.disk).map_err(Problem::Unreadable);
        let target = text.and_then(|text| link::decode(&text).map_err(damaged));
        // One that does not say which file its target is in may have any.
        match target.inspect_err(|_| besides.link_files.clear())? {
            DiskTarget::Inline(sealed) => {
                link::open_inline(key, &sealed).map_err(|_| damaged(FormatError::NotAuthentic))
            }
            DiskTarget::Long { link: id, .. } => {
                besides.link_files.remove(&id);
                let bytes = at.dir.read_small(&name::link_file(id), LINK_FILE_MAX);
                let bytes = bytes.map_err(Problem::Unreadable)?;
                let bytes = bytes.ok_or_else(|| damaged(FormatError::TooShort))?;
                link::open_file(key, id, &bytes).map_err(damaged)
            }
        }
    }

    /// Opens all extended attributes of an entry.
    fn attributes(&mut self, dir: &Dir, disk: &str, place: &Place, file: Option<&VaultFile>) {
        let listed = match file {
            Some(file) => file.backing().list_xattrs(),
            None => dir.list_xattrs(disk),
        };
        let names = match listed {
            Ok(names) => names,
            // A filesystem without attributes has none that are damaged.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return,
            Err(error) => return self.visitor.found(place.finding(Problem::Unreadable(error))),
        };
        for attribute in names {
            let (Some(hash), Ok(attribute)) = (XattrHash::from_disk_name(&attribute), String::from_utf8(attribute))
            else {
                continue;
            };
            let problem = match dir.get_xattr(disk, &attribute) {
                Err(error) => Problem::Unreadable(error),
                Ok(sealed) => match self.vault.xattr_keys().open(hash, &sealed) {
                    Ok(_) => continue,
                    Err(error) => Problem::AttributeDamaged(attribute, error),
                },
            };
            self.visitor.found(place.finding(problem));
        }
    }

    /// Reports what no entry of the directory needs.
    fn leftovers(&mut self, at: &Open, besides: Besides) {
        let Besides {
            headers,
            long_names,
            link_files,
            unknown,
            ..
        } = besides;
        if !unknown {
            for file in headers {
                self.found(at, name::header_file(file).as_bytes(), Problem::OrphanedHeader);
            }
        }
        for entry in long_names {
            self.found(at, name::long_name_file(&entry).as_bytes(), Problem::OrphanedLongName);
        }
        // An entry of which nothing is known may be a link, too.
        if !unknown {
            for file in link_files {
                self.found(at, name::link_file(file).as_bytes(), Problem::OrphanedLinkFile);
            }
        }
    }
}

/// Returns the ids of the directories that authentic headers in a directory are for.
pub(super) fn directories_named(
    vault: &Vault,
    dir: &Dir,
    headers: impl IntoIterator<Item = FileId>,
) -> BTreeSet<DirectoryId> {
    let headers = headers.into_iter();
    let loaded = headers.filter_map(|file| vault.load_header_of_any(dir, file).ok());
    loaded.map(|header| header.fields.directory).collect()
}

/// Tells whether a name on disk is that of an entry of a directory.
pub(super) fn opens_in(keys: &DirectoryKeys, dir: &Dir, disk: &str) -> bool {
    match name::shape(disk.as_bytes()) {
        Shape::Inline(sealed) => keys.open_name(&sealed).is_some(),
        _ => keys.open_long_name(dir, disk).is_ok(),
    }
}

/// Returns a name in a directory that is none of hushfs's, if it is such as sync tools make of the directory's header in a conflict.
pub(super) fn directory_header_copy(entry: &[u8]) -> Option<&str> {
    std::str::from_utf8(entry).ok().filter(|entry| entry.starts_with("dir"))
}

/// Returns the names in a path of the view.
pub(super) fn names_in(path: &Path) -> Vec<&[u8]> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.as_bytes()),
        _ => None,
    });
    names.collect()
}

/// Tells whether a name is of what sync tools and desktops keep for themselves, and make again if it is taken away.
pub(super) fn is_sync_tool(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 12] = [
        b".stfolder",
        b".stignore",
        b".stversions",
        b".dropbox",
        b".dropbox.attr",
        b".dropbox.cache",
        b".DS_Store",
        b".directory",
        b"desktop.ini",
        b"Thumbs.db",
        b".owncloudsync.log",
        b".nextcloudsync.log",
    ];
    const STARTS: [&[u8]; 6] = [
        b".syncthing.",
        b"~syncthing~",
        b".sync_",
        b"._sync_",
        b".Trash-",
        b".nfs",
    ];
    NAMES.contains(&name) || STARTS.iter().any(|start| name.starts_with(start))
}
