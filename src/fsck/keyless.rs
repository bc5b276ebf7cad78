//! Checks what can be checked of a vault without a key: the form of names and files, sizes, and that what belongs together is there.
//!
//! It sees cuts, gaps and what is half synced. It does not see what was changed with care: that takes the key.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use rustix::fs::FileType;

use super::{
    Event, Summary,
    finding::{Finding, Problem, join, unusable},
    tree::{self, Listed},
    walk::is_sync_tool,
};
use crate::{
    backing::{Dir, Storage},
    format::{
        FormatError,
        directory::{self, DIRECTORY_HEADER_SIZE},
        header::{HEADER_SIZE_MAX, UnverifiedHeader},
        layout::Layout,
        link::{self, DiskTarget},
        name::{self, LONG_NAME_FILE_MAX, LOST_AND_FOUND, Shape},
    },
    ids::{DirectoryId, FileId},
    units::CipherSize,
    vault::{VaultError, beginning::Beginning, content::ContentError},
};

/// Checks everything below a vault's directory. `layout` is what the vault's header says of its blocks.
///
/// # Errors
///
/// What opening the root gives; whatever else cannot be read is a [`Finding`].
pub fn check_without_key(
    root: &Dir,
    layout: Layout,
    stops: &dyn Fn() -> bool,
    report: &mut dyn FnMut(Event),
) -> io::Result<Summary> {
    let mut summary = Summary::default();
    let kept = [LOST_AND_FOUND.as_bytes(), b"/"].concat();
    tree::each_directory(root.open_dir(".")?, &mut |path, listed| {
        if stops() || path == LOST_AND_FOUND.as_bytes() || path.starts_with(&kept) {
            return;
        }
        let mut check = Check { path, layout, report };
        match listed {
            Ok((dir, entries)) => {
                summary.directories += 1;
                summary.files += check.directory(dir, entries);
            }
            Err(error) => check.found(b"", Problem::Unreadable(error)),
        }
    });
    Ok(summary)
}

/// A directory being checked.
struct Check<'c> {
    path: &'c [u8],
    layout: Layout,
    report: &'c mut dyn FnMut(Event),
}

/// What lies in a directory besides entries, and what of it is needed.
#[derive(Default)]
struct Besides {
    headers: HashSet<FileId>,
    used_headers: HashSet<FileId>,
    long_names: HashSet<String>,
    link_files: HashSet<FileId>,
    /// Files whose header is not known: any header may be theirs.
    unknown: bool,
}

impl Check<'_> {
    fn found(&mut self, disk: &[u8], problem: Problem) {
        (self.report)(Event::Found(Finding {
            disk_path: join(self.path, disk),
            directory: None,
            name: None,
            parent: None,
            problem,
        }));
    }

    /// Checks a directory; returns how many entries it holds besides directories.
    fn directory(&mut self, dir: &Dir, entries: &[Listed]) -> u64 {
        let mut besides = Besides::default();
        let named = |entry: &Listed| {
            Some((
                std::str::from_utf8(&entry.name).ok()?.to_owned(),
                name::shape(&entry.name),
            ))
        };
        for (_, shape) in entries.iter().filter_map(named) {
            match shape {
                Shape::Header(file) => drop(besides.headers.insert(file)),
                Shape::LongNameFile(entry) => drop(besides.long_names.insert(entry)),
                Shape::LinkFile(file) => drop(besides.link_files.insert(file)),
                _ => {}
            }
        }
        let mut files = 0;
        for entry in entries {
            let Some((disk, shape)) = named(entry) else {
                self.found(&entry.name, Problem::Stranger);
                continue;
            };
            let raw = &entry.name;
            match shape {
                Shape::Dots | Shape::Header(_) | Shape::LongNameFile(_) | Shape::LinkFile(_) => {}
                Shape::VaultFile | Shape::LostAndFound if self.path.is_empty() => {}
                Shape::DirectoryHeader if !self.path.is_empty() => self.directory_header(dir, &disk),
                Shape::Temporary => self.found(raw, Problem::Temporary),
                Shape::Stranger if is_sync_tool(raw) => self.found(raw, Problem::SyncTool),
                Shape::VaultFile | Shape::LostAndFound | Shape::DirectoryHeader | Shape::Stranger => {
                    self.found(raw, Problem::Stranger);
                }
                Shape::Inline(_) | Shape::Long | Shape::Conflict(..) => {
                    (self.report)(Event::Entry);
                    let base = match shape {
                        Shape::Conflict(base, _) => {
                            self.found(raw, Problem::Conflict);
                            base
                        }
                        _ => disk.clone(),
                    };
                    files += u64::from(entry.kind != FileType::Directory);
                    self.long_name(dir, &disk, &base, &mut besides);
                    self.entry(dir, &disk, entry.kind, &mut besides);
                }
            }
        }
        self.headers(dir, &besides);
        self.leftovers(besides);
        files
    }

    fn directory_header(&mut self, dir: &Dir, disk: &str) {
        // One byte more, so that one that is too long shows as that.
        match dir.read_small(disk, DIRECTORY_HEADER_SIZE + 1) {
            Ok(bytes) => {
                if let Err(error) = directory::check_form(&bytes.unwrap_or_default()) {
                    self.found(disk.as_bytes(), Problem::Malformed(error));
                }
            }
            Err(error) => self.found(disk.as_bytes(), unreadable(error)),
        }
    }

    /// Checks the file with the name of a long entry.
    fn long_name(&mut self, dir: &Dir, disk: &str, base: &str, besides: &mut Besides) {
        if name::shape(base.as_bytes()) != Shape::Long {
            return;
        }
        besides.long_names.remove(base);
        let problem = match dir.read_small(&name::long_name_file(base), LONG_NAME_FILE_MAX) {
            Ok(Some(bytes)) => name::decode_long_name(&bytes, base).err().map(name_unopened),
            Ok(None) => Some(name_unopened(FormatError::TooShort)),
            Err(error) => Some(unreadable(error)),
        };
        if let Some(problem) = problem {
            self.found(disk.as_bytes(), problem);
        }
    }

    fn entry(&mut self, dir: &Dir, disk: &str, kind: FileType, besides: &mut Besides) {
        let problem = match kind {
            FileType::RegularFile => self.file(dir, disk, besides),
            FileType::Symlink => self.link(dir, disk, besides),
            _ => None,
        };
        if let Some(problem) = problem {
            self.found(disk.as_bytes(), problem);
        }
    }

    fn file(&self, dir: &Dir, disk: &str, besides: &mut Besides) -> Option<Problem> {
        let read = || -> Result<_, VaultError> {
            let file = dir.open_file(disk, true)?;
            Ok((file.len()?, Beginning::read(&file)?))
        };
        let (size, preamble) = match read() {
            Ok((_, Beginning::Empty)) => return None,
            Ok((_, Beginning::Zeros)) => return Some(Problem::NeverSynced),
            Ok((size, Beginning::Preamble(preamble))) => (size, preamble),
            Err(error) => {
                besides.unknown = true;
                return Some(unusable(error));
            }
        };
        besides.used_headers.insert(preamble.file());
        if !besides.headers.contains(&preamble.file()) {
            return Some(unusable(VaultError::HeaderMissing(preamble.file())));
        }
        let extent = self.layout.extent(CipherSize(size));
        if !preamble.claims_to_be_sealed() {
            return Some(Problem::LeftOpen { torn: extent.torn });
        }
        let (sealed, found) = (preamble.claimed_size(), extent.plain);
        let fits = sealed == found && extent.torn == 0;
        (!fits).then(|| unusable(VaultError::Content(ContentError::WrongSize { sealed, found })))
    }

    fn link(&self, dir: &Dir, disk: &str, besides: &mut Besides) -> Option<Problem> {
        let damaged = |error| Some(unusable(VaultError::LinkDamaged(error)));
        // A link that does not say which file its target is in may have any.
        let text = match dir.readlink(disk) {
            Ok(text) => text,
            Err(error) => {
                besides.link_files.clear();
                return Some(Problem::Unreadable(error));
            }
        };
        match link::decode(&text) {
            Err(error) => {
                besides.link_files.clear();
                damaged(error)
            }
            Ok(DiskTarget::Inline(_)) => None,
            Ok(DiskTarget::Long { link, .. }) => match dir.stat(&name::link_file(link)) {
                Ok(_) => {
                    besides.link_files.remove(&link);
                    None
                }
                Err(_) => damaged(FormatError::TooShort),
            },
        }
    }

    /// Checks the form of headers, and that all of a directory are for the same one.
    fn headers(&mut self, dir: &Dir, besides: &Besides) {
        let mut directories: HashMap<DirectoryId, Vec<FileId>> = HashMap::new();
        for file in &besides.headers {
            let disk = name::header_file(*file);
            let decoded = match dir.read_small(&disk, HEADER_SIZE_MAX + 1) {
                Ok(bytes) => UnverifiedHeader::decode(&bytes.unwrap_or_default()),
                Err(error) => {
                    self.found(disk.as_bytes(), unreadable(error));
                    continue;
                }
            };
            match decoded {
                Ok(header) if header.file() == *file => {
                    directories.entry(header.directory()).or_default().push(*file);
                }
                Ok(_) => self.found(disk.as_bytes(), Problem::Malformed(FormatError::NotAuthentic)),
                Err(error) => self.found(disk.as_bytes(), Problem::Malformed(error)),
            }
        }
        let most = directories.values().map(Vec::len).max().unwrap_or(0);
        for files in directories.values().filter(|files| files.len() < most) {
            // One that no file has is told of as that.
            for file in files.iter().filter(|file| besides.used_headers.contains(file)) {
                self.found(name::header_file(*file).as_bytes(), Problem::HeaderElsewhere);
            }
        }
    }

    fn leftovers(&mut self, besides: Besides) {
        if !besides.unknown {
            for file in besides.headers.difference(&besides.used_headers) {
                self.found(name::header_file(*file).as_bytes(), Problem::OrphanedHeader);
            }
        }
        for entry in besides.long_names {
            self.found(name::long_name_file(&entry).as_bytes(), Problem::OrphanedLongName);
        }
        for file in besides.link_files {
            self.found(name::link_file(file).as_bytes(), Problem::OrphanedLinkFile);
        }
    }
}

fn name_unopened(error: FormatError) -> Problem {
    Problem::NameUnopened(VaultError::NameDamaged(error))
}

/// Says what it means that a small file of hushfs's own cannot be read.
fn unreadable(error: io::Error) -> Problem {
    match error.raw_os_error() {
        Some(libc::EFBIG) => Problem::Malformed(FormatError::TrailingBytes),
        _ => Problem::Unreadable(error),
    }
}
