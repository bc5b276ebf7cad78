//! Checks the structure of a vault: that every name opens, every file has its header, and what lies about besides.
//!
//! It reads preambles and headers, no contents: `verify` does that. It changes nothing. What it finds is damage, where something of the user's
//! cannot be used, or a note: leftovers of interrupted operations and files of strangers harm nobody.

use std::{collections::HashSet, fmt, io};

use rustix::fs::FileType;

use crate::{
    backing::{Dir, Storage},
    format::{
        FormatError,
        layout::PREAMBLE_SIZE,
        link::{self, DiskTarget, LINK_FILE_MAX},
        name::{self, Shape},
        preamble::UnverifiedPreamble,
    },
    ids::FileId,
    vault::{
        DirectoryKeys, Vault, VaultError,
        file::{FoundAt, VaultFile},
    },
};

/// What a check comes upon.
#[derive(Debug)]
pub enum Event {
    /// An entry was checked.
    Entry,
    /// Something is not as it should be.
    Found(Finding),
}

/// Something that is not as it should be, and where.
#[derive(Debug)]
pub struct Finding {
    /// The path in the backing directory.
    pub disk_path: Vec<u8>,
    /// The path in the view, where there is one: for what has none that of its directory.
    pub plain_path: Option<Vec<u8>>,
    /// What it is.
    pub problem: Problem,
}

/// What can be wrong.
#[derive(Debug)]
pub enum Problem {
    /// The name does not open: it is of another directory, or damaged.
    NameUnopened(VaultError),
    /// The file, link or directory cannot be used.
    Unusable(VaultError),
    /// The backing filesystem does not let it be read.
    Unreadable(io::Error),
    /// A header that no file in its directory has.
    OrphanedHeader,
    /// The long name of an entry that is not there.
    OrphanedLongName,
    /// The target of a link that is not there.
    OrphanedLinkFile,
    /// An unfinished replacement.
    Temporary,
    /// The copy of an entry that a sync tool made in a conflict.
    Conflict,
    /// Nothing of hushfs's.
    Stranger,
    /// Another filesystem is mounted there.
    OtherFilesystem,
}

impl Problem {
    /// Tells whether something of the user's cannot be used.
    pub fn is_damage(&self) -> bool {
        match self {
            Problem::NameUnopened(_) | Problem::Unusable(_) | Problem::Unreadable(_) => true,
            Problem::OrphanedHeader
            | Problem::OrphanedLongName
            | Problem::OrphanedLinkFile
            | Problem::Temporary
            | Problem::Conflict
            | Problem::Stranger
            | Problem::OtherFilesystem => false,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::NameUnopened(error) => write!(f, "the name does not open: {error}"),
            Problem::Unusable(error) => error.fmt(f),
            Problem::Unreadable(error) => error.fmt(f),
            Problem::OrphanedHeader => f.write_str("header of no file in this directory"),
            Problem::OrphanedLongName => f.write_str("long name of no entry in this directory"),
            Problem::OrphanedLinkFile => f.write_str("target of no link in this directory"),
            Problem::Temporary => f.write_str("left over from an interrupted write"),
            Problem::Conflict => f.write_str("conflict copy of a sync tool"),
            Problem::Stranger => f.write_str("not made by hushfs"),
            Problem::OtherFilesystem => f.write_str("another filesystem is mounted there, and not shown"),
        }
    }
}

/// How much was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Directories.
    pub directories: u64,
    /// Files of every other kind.
    pub files: u64,
}

/// Checks everything below a vault's root.
///
/// # Errors
///
/// What reading the root's attributes gives; whatever else cannot be read is a [`Finding`].
pub fn check(vault: &Vault, root: &Dir, report: &mut dyn FnMut(Event)) -> io::Result<Summary> {
    let mut run = Run {
        vault,
        device: root.stat_self()?.st_dev,
        report,
        summary: Summary::default(),
    };
    let root = Open {
        dir: root.open_dir(".")?,
        keys: vault.root_keys(),
        disk_path: Vec::new(),
        plain_path: Vec::new(),
        is_root: true,
    };
    let mut levels = vec![(run.directory(&root), root)];
    while let Some((waiting, parent)) = levels.last_mut() {
        let Some(entry) = waiting.pop() else {
            levels.pop();
            continue;
        };
        if let Some(open) = run.enter(parent, &entry) {
            levels.push((run.directory(&open), open));
        }
    }
    Ok(run.summary)
}

struct Run<'r> {
    vault: &'r Vault,
    device: u64,
    report: &'r mut dyn FnMut(Event),
    summary: Summary,
}

/// A directory being checked.
struct Open {
    dir: Dir,
    keys: DirectoryKeys,
    disk_path: Vec<u8>,
    plain_path: Vec<u8>,
    is_root: bool,
}

/// An entry whose name opens.
struct Entry {
    disk: String,
    name: Vec<u8>,
}

/// What lies in a directory besides entries, and what of it is needed.
#[derive(Default)]
struct Besides {
    headers: HashSet<FileId>,
    long_names: HashSet<String>,
    link_files: HashSet<FileId>,
    /// Files whose header is not known: any header may be theirs.
    unknown: bool,
}

impl Run<'_> {
    fn found(&mut self, at: &Open, disk: &[u8], name: Option<&[u8]>, problem: Problem) {
        (self.report)(Event::Found(Finding {
            disk_path: join(&at.disk_path, disk),
            plain_path: Some(name.map_or_else(|| at.plain_path.clone(), |name| join(&at.plain_path, name))),
            problem,
        }));
    }

    /// Opens a directory found in another.
    fn enter(&mut self, parent: &Open, entry: &Entry) -> Option<Open> {
        let opened = parent
            .dir
            .open_dir(&entry.disk)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EXDEV) => Problem::OtherFilesystem,
                _ => Problem::Unreadable(error),
            });
        let opened = opened.and_then(|dir| {
            let keys = self.vault.load_directory(&dir, parent.keys.id, &entry.name);
            Ok((dir, keys.map_err(unusable)?))
        });
        match opened {
            Ok((dir, keys)) => Some(Open {
                dir,
                keys,
                disk_path: join(&parent.disk_path, entry.disk.as_bytes()),
                plain_path: join(&parent.plain_path, &entry.name),
                is_root: false,
            }),
            Err(problem) => {
                self.found(parent, entry.disk.as_bytes(), Some(&entry.name), problem);
                None
            }
        }
    }

    /// Checks a directory and what lies in it; returns the directories to go on with.
    fn directory(&mut self, at: &Open) -> Vec<Entry> {
        self.summary.directories += 1;
        let entries = match at.dir.entries() {
            Ok(entries) => entries,
            Err(error) => {
                self.found(at, b"", None, Problem::Unreadable(error));
                return Vec::new();
            }
        };
        let mut besides = Besides::default();
        for entry in &entries {
            match name::shape(&entry.name) {
                Shape::Header(file) => drop(besides.headers.insert(file)),
                Shape::LongNameFile(entry) => drop(besides.long_names.insert(entry)),
                Shape::LinkFile(file) => drop(besides.link_files.insert(file)),
                _ => {}
            }
        }
        let mut directories = Vec::new();
        for raw in &entries {
            let shape = name::shape(&raw.name);
            match shape {
                Shape::Dots | Shape::Header(_) | Shape::LongNameFile(_) | Shape::LinkFile(_) => {}
                Shape::VaultFile if at.is_root => {}
                Shape::DirectoryHeader if !at.is_root => {}
                Shape::Temporary => self.found(at, &raw.name, None, Problem::Temporary),
                Shape::VaultFile | Shape::DirectoryHeader | Shape::Stranger => {
                    self.found(at, &raw.name, None, Problem::Stranger);
                }
                Shape::Inline(_) | Shape::Long | Shape::Conflict(..) => {
                    (self.report)(Event::Entry);
                    if let Some(entry) = self.open_name(at, &raw.name, &shape, &mut besides) {
                        directories.extend(self.entry(at, entry, &mut besides));
                    }
                }
            }
        }
        self.leftovers(at, besides);
        directories
    }

    /// Opens the name of an entry.
    fn open_name(&mut self, at: &Open, raw: &[u8], shape: &Shape, besides: &mut Besides) -> Option<Entry> {
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
            (Ok(name), Shape::Conflict(..)) => {
                self.found(at, raw, Some(&name), Problem::Conflict);
                Some(Entry { disk, name })
            }
            (Ok(name), _) => Some(Entry { disk, name }),
            // By its shape it could have been a copy of an entry, but it is of none.
            (Err(_), Shape::Conflict(..)) => {
                self.found(at, raw, None, Problem::Stranger);
                None
            }
            (Err(error), _) => {
                besides.unknown = true;
                self.found(at, raw, None, Problem::NameUnopened(error));
                None
            }
        }
    }

    /// Checks an entry; gives it back when it is a directory, to go on with.
    fn entry(&mut self, at: &Open, entry: Entry, besides: &mut Besides) -> Option<Entry> {
        let problem = match at.dir.stat(&entry.disk) {
            Err(error) => Err(Problem::Unreadable(error)),
            Ok(stat) if stat.st_dev != self.device => Err(Problem::OtherFilesystem),
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => return Some(entry),
                FileType::RegularFile => self.file(at, &entry, besides),
                FileType::Symlink => self.link(at, &entry, besides),
                _ => Ok(()),
            },
        };
        self.summary.files += 1;
        if let Err(problem) = problem {
            self.found(at, entry.disk.as_bytes(), Some(&entry.name), problem);
        }
        None
    }

    fn file(&self, at: &Open, entry: &Entry, besides: &mut Besides) -> Result<(), Problem> {
        let open = || at.dir.open_file(&entry.disk, true);
        let file = open()
            .inspect_err(|_| besides.unknown = true)
            .map_err(Problem::Unreadable)?;
        let found_at = FoundAt {
            directory: at.keys.id,
            name: &entry.name,
        };
        match VaultFile::load(self.vault, file, &at.dir, found_at) {
            Ok(file) => {
                file.id().map(|id| besides.headers.remove(&id));
                Ok(())
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

    fn link(&self, at: &Open, entry: &Entry, besides: &mut Besides) -> Result<(), Problem> {
        let key = self.vault.symlink_key();
        let damaged = |error| Problem::Unusable(VaultError::LinkDamaged(error));
        let text = at.dir.readlink(&entry.disk).map_err(Problem::Unreadable)?;
        match link::decode(&text).map_err(damaged)? {
            DiskTarget::Inline(sealed) => {
                link::open_inline(key, &sealed).map_err(|_| damaged(FormatError::NotAuthentic))?;
            }
            DiskTarget::Long { link: id, .. } => {
                besides.link_files.remove(&id);
                let bytes = at.dir.read_small(&name::link_file(id), LINK_FILE_MAX);
                let bytes = bytes.map_err(Problem::Unreadable)?;
                let bytes = bytes.ok_or_else(|| damaged(FormatError::TooShort))?;
                link::open_file(key, id, &bytes).map_err(damaged)?;
            }
        }
        Ok(())
    }

    /// Reports what no entry of the directory needs.
    fn leftovers(&mut self, at: &Open, besides: Besides) {
        let Besides {
            headers,
            long_names,
            link_files,
            unknown,
        } = besides;
        if !unknown {
            for file in headers {
                self.found(at, name::header_file(file).as_bytes(), None, Problem::OrphanedHeader);
            }
        }
        for entry in long_names {
            self.found(
                at,
                name::long_name_file(&entry).as_bytes(),
                None,
                Problem::OrphanedLongName,
            );
        }
        for file in link_files {
            self.found(at, name::link_file(file).as_bytes(), None, Problem::OrphanedLinkFile);
        }
    }
}

fn unusable(error: VaultError) -> Problem {
    match error {
        VaultError::Io(error) => Problem::Unreadable(error),
        error => Problem::Unusable(error),
    }
}

fn join(path: &[u8], entry: &[u8]) -> Vec<u8> {
    match (path, entry) {
        ([], entry) => entry.to_vec(),
        (path, []) => path.to_vec(),
        (path, entry) => [path, b"/", entry].concat(),
    }
}
