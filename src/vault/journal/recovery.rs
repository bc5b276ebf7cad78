//! What a crash left in journals is written to the data files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    sync::Arc,
};

use rustix::fs::{FileType, Timespec};

use super::DataFile;
use crate::{
    backing::{BackingFile, Descent, Dir, Storage},
    format::{
        journal::{self, Change, Entry, FIRST_GROUP, JOURNAL_HEADER_SIZE, JOURNAL_MAX, JournalHeader},
        layout::PREAMBLE_SIZE,
        name::{self, Shape},
        preamble::UnverifiedPreamble,
    },
    ids::FileId,
    vault::Vault,
};

/// What recovery found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Journals that were there.
    pub journals: usize,
    /// Data files that were written to.
    pub files: usize,
    /// Files that entries are about and that are not there any more.
    pub missing: usize,
    /// Journals that are copies from elsewhere, and were left alone.
    pub foreign: usize,
}

/// Tells whether there is a journal in a vault's directory that [`recover`] would apply: it is mounted, or a mount of it ended by a crash.
///
/// # Errors
///
/// What listing the directory or reading a journal gives.
pub fn is_needed(vault: &Vault, root: &Dir, copied: bool) -> io::Result<bool> {
    let left_alone = if copied { 0 } else { copies(vault, root)?.len() };
    Ok(journals(root)?.len() > left_alone)
}

/// Tells whether a journal has changes that are not known to be in the files: it may also be there because nobody could remove it.
///
/// # Errors
///
/// As for [`recover`].
pub fn has_changes(vault: &Vault, root: &Dir, copied: bool) -> io::Result<bool> {
    let mut found = false;
    for name in journals(root)? {
        let file = open(root, &name)?;
        let bytes = read(&file)?;
        let Some(header) = header_of(vault, &bytes) else {
            continue;
        };
        let is_copy = is_copy(&header, &file)?;
        if copied || !is_copy {
            let entries = entries_of(vault, &bytes, &header)?;
            each_wanted(root, &by_file(&entries), is_copy, &mut |file, entries| {
                found |= is_due(file, entries)?;
                Ok(())
            })?;
        }
    }
    Ok(found)
}

fn journals(root: &Dir) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    root.each_entry(|entry| {
        if name::is_journal(entry.name) {
            found.push(String::from_utf8_lossy(entry.name).into_owned());
        }
    })?;
    Ok(found)
}

/// Opens a journal; the error names it.
fn open(root: &Dir, name: &str) -> io::Result<BackingFile> {
    let is_file = FileType::from_raw_mode(root.stat(name)?.st_mode) == FileType::RegularFile;
    let opened = match is_file {
        true => root.open_file(name, true),
        false => Err(io::ErrorKind::InvalidInput.into()),
    };
    opened.map_err(|source| {
        let name = name.to_owned();
        io::Error::new(source.kind(), Unopened { name, is_file, source })
    })
}

/// What has the name of a journal and could not be opened.
#[derive(Debug)]
struct Unopened {
    name: String,
    is_file: bool,
    source: io::Error,
}

impl fmt::Display for Unopened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unopened { name, is_file, source } = self;
        match is_file {
            true => write!(f, "the journal {name} in it cannot be opened: {source}"),
            false => write!(
                f,
                "{name} in it is no regular file, and so none of its journals: move it out of the vault and try again"
            ),
        }
    }
}

impl std::error::Error for Unopened {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Returns the names of journals that are copies from elsewhere: what they have is in no data file yet, unless that was sealed since.
///
/// # Errors
///
/// What reading a journal gives.
pub fn copies(vault: &Vault, root: &Dir) -> io::Result<Vec<String>> {
    let mut copies = Vec::new();
    for name in journals(root)? {
        let file = open(root, &name)?;
        let mut bytes = vec![0; JOURNAL_HEADER_SIZE];
        let got = file.read_at(&mut bytes, 0)?;
        bytes.truncate(got);
        if let Some(header) = header_of(vault, &bytes)
            && is_copy(&header, &file)?
        {
            copies.push(name);
        }
    }
    Ok(copies)
}

/// Returns the header of a journal, if it was begun and is of this vault.
fn header_of(vault: &Vault, bytes: &[u8]) -> Option<JournalHeader> {
    let header = JournalHeader::decode(bytes, &vault.journal_key()).ok()?;
    (header.vault == vault.id()).then_some(header)
}

fn is_copy(header: &JournalHeader, file: &BackingFile) -> io::Result<bool> {
    Ok(header.place != file.place()?.into())
}

/// Writes what is in a vault's journals to its data files, durably, and removes them. Nobody else may use the vault meanwhile.
///
/// `copied` applies journals that are not where they were made: for a vault that was copied as a crash had left it. For who does `not_write` after it a
/// journal may stay that cannot be removed.
///
/// # Errors
///
/// What reading a journal or writing a data file gives: the journal stays, and may be tried again.
pub fn recover(vault: &Vault, root: &Dir, copied: bool, not_write: bool) -> io::Result<Recovered> {
    let mut recovered = Recovered::default();
    for name in journals(root)? {
        recovered.journals += 1;
        let file = open(root, &name)?;
        let bytes = read(&file)?;
        // Made and not begun before a crash, or nothing of this vault's: no entry of it was ever relied on.
        let Some(header) = header_of(vault, &bytes) else {
            log::info!("{name} was never begun, or is not of this vault: removed");
            remove(root, &name, not_write)?;
            continue;
        };
        let is_copy = is_copy(&header, &file)?;
        if !copied && is_copy {
            log::warn!("{name} is a copy from elsewhere, and is left alone");
            recovered.foreign += 1;
            continue;
        }
        let entries = entries_of(vault, &bytes, &header)?;
        apply(root, &entries, is_copy, &mut recovered)?;
        remove(root, &name, not_write)?;
    }
    if recovered.files > 0 {
        log::info!(
            "the last mount did not end well: what its journal had was written to {} files",
            recovered.files
        );
    }
    if recovered.missing > 0 {
        log::warn!(
            "the journal had changes of {} files that are not there: removed before the last mount ended, or since",
            recovered.missing
        );
    }
    Ok(recovered)
}

fn remove(root: &Dir, name: &str, may_stay: bool) -> io::Result<()> {
    match root.unlink(name) {
        Err(error) if may_stay && may_not_write(&error) => {
            log::debug!("{name} has nothing that the files have not, and stays: {error}");
            Ok(())
        }
        result => result.and_then(|()| root.sync()),
    }
}

fn may_not_write(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
    )
}

fn read(file: &BackingFile) -> io::Result<Vec<u8>> {
    let size = file.len()?.min(JOURNAL_MAX) as usize;
    let mut bytes = vec![0; size.max(JOURNAL_HEADER_SIZE)];
    let got = file.read_at(&mut bytes, 0)?;
    bytes.truncate(got);
    Ok(bytes)
}

/// The entries about one file, in their order.
pub(super) type Entries<'d> = Vec<Entry<'d>>;

/// Sorts entries by the data file that they are about.
pub(super) fn by_file<'d>(entries: &[Entry<'d>]) -> BTreeMap<DataFile, Entries<'d>> {
    let mut files: BTreeMap<DataFile, Entries<'_>> = BTreeMap::new();
    for entry in entries {
        let data_file = (entry.file.file, entry.file.inode);
        files.entry(data_file).or_default().push(*entry);
    }
    files
}

fn entries_of<'b>(vault: &Vault, bytes: &'b [u8], header: &JournalHeader) -> io::Result<Vec<Entry<'b>>> {
    let groups = bytes.get(FIRST_GROUP as usize..).unwrap_or_default();
    journal::decode_groups(groups, header.generation, &vault.journal_key()).map_err(io::Error::other)
}

fn apply(root: &Dir, entries: &[Entry<'_>], is_copy: bool, recovered: &mut Recovered) -> io::Result<()> {
    let missing = each_wanted(root, &by_file(entries), is_copy, &mut |file, entries| {
        if file.is_writable() {
            recovered.files += 1;
            return apply_to(file, entries);
        }
        match is_due(file, entries)? {
            true => Err(unwritable()),
            false => Ok(()),
        }
    })?;
    recovered.missing += missing;
    Ok(())
}

/// Takes a data file and the entries about it.
type Wanted<'w> = dyn FnMut(&BackingFile, &Entries<'_>) -> io::Result<()> + 'w;

/// Calls `act` for each data file that entries are about; returns how many are not there.
fn each_wanted(
    root: &Dir,
    files: &BTreeMap<DataFile, Entries<'_>>,
    is_copy: bool,
    act: &mut Wanted<'_>,
) -> io::Result<usize> {
    check_known(root, files, is_copy)?;
    let mut wanted: BTreeSet<_> = files.keys().copied().collect();
    let unseen = each_directory(root, &mut wanted, &mut |dir, _, listed, wanted| {
        each_data_file(dir, listed, is_copy, &mut |data_file, file| {
            wanted.remove(&data_file);
            act(file, &files[&data_file])
        })
    })?;
    match unseen {
        Some(unseen) if !wanted.is_empty() => Err(unseen.error(wanted.len())),
        _ => Ok(wanted.len()),
    }
}

/// Checks that each data file which only its id tells is the only one of that id in the vault, before anything is written.
///
/// # Errors
///
/// [`Unknown`]: of a file and a sync tool's copy of it the changes are of one, and in the other they would be wrong content that authenticates.
fn check_known(root: &Dir, files: &BTreeMap<DataFile, Entries<'_>>, is_copy: bool) -> io::Result<()> {
    let by_id = files.keys().filter(|(_, inode)| is_copy || *inode == 0);
    let mut wanted: BTreeSet<_> = by_id.copied().collect();
    let mut seen: BTreeMap<FileId, (u64, String)> = BTreeMap::new();
    let unseen = each_directory(root, &mut wanted, &mut |dir, path, listed, wanted| {
        if listed.here.is_empty() {
            return Ok(());
        }
        for (name, inode) in &listed.names {
            let Some(id) = id_of(&dir.open_file(name, true)?)? else {
                continue;
            };
            let path = || format!("{path}/{name}").trim_start_matches('/').to_owned();
            match (of_id(wanted, id).count(), seen.get(&id)) {
                (0, _) => {}
                (1, None) => drop(seen.insert(id, (*inode, path()))),
                (1, Some((other, _))) if other == inode => {}
                (1, Some((_, first))) => return Err(Unknown::Which(first.clone(), path()).into()),
                _ => return Err(Unknown::Several(path()).into()),
            }
        }
        Ok(())
    })?;
    unseen.map_or(Ok(()), |unseen| Err(unseen.error(wanted.len())))
}

/// Takes a directory, its path, and what is in it; and takes away what need not be looked for any more.
type Directory<'d> = dyn FnMut(&Dir, &str, &Listed, &mut BTreeSet<DataFile>) -> io::Result<()> + 'd;

/// Calls `act` for each directory of a vault while something is wanted; returns the first that could not be looked into.
fn each_directory(
    root: &Dir,
    wanted: &mut BTreeSet<DataFile>,
    act: &mut Directory<'_>,
) -> io::Result<Option<UnseenDirectory>> {
    let mut descent = Descent::new(Arc::new(root.open_dir(".")?), "");
    let mut unseen = None;
    while !wanted.is_empty()
        && let Some(entered) = descent.enter_next()
    {
        match entered.and_then(|dir| Ok((dir.clone(), list(dir, wanted)?))) {
            Ok((dir, listed)) => {
                act(&dir, descent.path(), &listed, wanted)?;
                descent.enter_later(listed.below);
            }
            Err(error) if has_no_data_file(&error) => log::debug!("{:?} is not looked into: {error}", descent.path()),
            Err(source) => {
                let directory = path_in_vault(&descent).to_owned();
                unseen = unseen.or(Some(UnseenDirectory { directory, source }));
            }
        }
    }
    Ok(unseen)
}

/// Returns the path of the directory that was entered last.
fn path_in_vault(descent: &Descent) -> &str {
    let path = descent.path();
    if path.is_empty() { "." } else { path }
}

/// Tells whether what was to be looked into is gone, no directory, or another filesystem.
fn has_no_data_file(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code.is_some_and(|code| [libc::ENOENT, libc::ENOTDIR, libc::ELOOP, libc::EXDEV].contains(&code))
}

/// A directory that could not be looked into.
struct UnseenDirectory {
    directory: String,
    source: io::Error,
}

impl UnseenDirectory {
    /// Makes the error of so many files that may be there.
    fn error(self, files: usize) -> io::Error {
        let UnseenDirectory { directory, source } = self;
        let kind = source.kind();
        io::Error::new(
            kind,
            Unseen {
                directory,
                files,
                source,
            },
        )
    }
}

/// A directory that could not be looked into, while files were still to be found.
#[derive(Debug)]
struct Unseen {
    directory: String,
    files: usize,
    source: io::Error,
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unseen {
            directory,
            files,
            source,
        } = self;
        write!(
            f,
            "the directory {directory} in it cannot be read: {source}. The journal is kept, since it has changes of {files} files that may be there: \
             make the directory readable and try again"
        )
    }
}

impl std::error::Error for Unseen {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// A data file that the journal has changes of, and that nothing tells from another. Both are named by their paths on disk.
#[derive(Debug)]
enum Unknown {
    /// Two files of which the changes may be.
    Which(String, String),
    /// A file that has changes of several of its id.
    Several(String),
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unknown::Which(first, second) => write!(
                f,
                "{first} and {second} in it are versions of one file, and where the vault was copied its journal does not tell which of them has the \
                 changes: move the one that was not written to last out of the vault, and try again"
            ),
            Unknown::Several(path) => write!(
                f,
                "its journal has changes of several versions of {path}, and where the vault was copied does not tell which are of which: move it out of \
                 the vault, and try again"
            ),
        }
    }
}

impl std::error::Error for Unknown {}

impl From<Unknown> for io::Error {
    fn from(unknown: Unknown) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, unknown)
    }
}

/// The data files among these that have an id.
fn of_id(files: &BTreeSet<DataFile>, id: FileId) -> impl Iterator<Item = DataFile> {
    files.range((id, 0)..=(id, u64::MAX)).copied()
}

/// What there is to look at in a directory.
struct Listed {
    /// The directories in it.
    below: Vec<String>,
    /// Data files that are wanted, and whose headers are here.
    here: BTreeSet<DataFile>,
    /// Names on disk of data files, with their inode numbers.
    names: Vec<(String, u64)>,
}

fn list(dir: &Dir, wanted: &BTreeSet<DataFile>) -> io::Result<Listed> {
    let (mut below, mut here, mut names) = (Vec::new(), BTreeSet::new(), Vec::new());
    dir.each_entry(|entry| {
        let Ok(name) = std::str::from_utf8(entry.name) else {
            return;
        };
        match name::shape(entry.name) {
            Shape::Header(id) => here.extend(of_id(wanted, id)),
            Shape::Inline(_) | Shape::Long | Shape::Conflict(..) => match kind_of(dir, name, entry.kind) {
                FileType::Directory => below.push(name.to_owned()),
                FileType::RegularFile => names.push((name.to_owned(), entry.ino)),
                _ => {}
            },
            _ => {}
        }
    })?;
    Ok(Listed { below, here, names })
}

/// Returns the kind of an entry, also where the listing does not tell.
fn kind_of(dir: &Dir, name: &str, listed: FileType) -> FileType {
    let stat = (listed == FileType::Unknown).then(|| dir.stat(name));
    match stat {
        Some(Ok(stat)) => FileType::from_raw_mode(stat.st_mode),
        _ => listed,
    }
}

/// Takes a data file that was wanted.
type Found<'f> = dyn FnMut(DataFile, &BackingFile) -> io::Result<()> + 'f;

/// Calls `act` for each data file in a directory that is wanted. In a vault that was copied files have other inode numbers: each is the only one of its
/// id, by [`check_known`].
fn each_data_file(dir: &Dir, listed: &Listed, is_copy: bool, act: &mut Found<'_>) -> io::Result<()> {
    let mut here = listed.here.clone();
    let may_be_any = |data_file: &DataFile| data_file.1 == 0 || is_copy;
    let inodes: BTreeSet<_> = here.iter().map(|data_file| data_file.1).collect();
    let mut names: Vec<_> = listed.names.iter().collect();
    names.sort_by_key(|(_, inode)| !inodes.contains(inode));
    for (name, inode) in names {
        if here.is_empty() || !(inodes.contains(inode) || here.iter().any(may_be_any)) {
            break;
        }
        let file = dir.open_file(name, false)?;
        let Some(id) = id_of(&file)? else { continue };
        let is_it = of_id(&here, id).find(|data_file| may_be_any(data_file) || data_file.1 == *inode);
        if let Some(data_file) = is_it {
            here.remove(&data_file);
            act(data_file, &file)?;
        }
    }
    Ok(())
}

pub(super) fn preamble_of(file: &impl Storage) -> io::Result<Option<UnverifiedPreamble>> {
    let mut bytes = [0; PREAMBLE_SIZE as usize];
    let got = file.read_at(&mut bytes, 0)?;
    Ok(UnverifiedPreamble::decode(&bytes[..got]).ok())
}

fn id_of(file: &BackingFile) -> io::Result<Option<FileId>> {
    Ok(preamble_of(file)?.map(|preamble| preamble.file()))
}

/// Tells whether entries say more than is known to be in a data file.
fn is_due(file: &impl Storage, entries: &Entries<'_>) -> io::Result<bool> {
    let present = preamble_of(file)?;
    let sealed = present.map(|present| present.claimed_seal_count());
    let is_later = |entry: &Entry<'_>| sealed.is_some_and(|sealed| entry.file.seal_count >= sealed);
    Ok(entries.iter().any(is_later))
}

fn unwritable() -> io::Error {
    let what = "a crash has left changes in its journal that cannot be written to its files here: copy it to where they can, and mount the copy with \
                --apply-journal";
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, what)
}

/// Does to a data file what the journal has of it.
///
/// The preamble last, when all else is durable: it says how often the file was sealed, and with that which entries still mean something to a
/// recovery that comes after this one was interrupted.
pub(super) fn apply_to(file: &impl Storage, entries: &Entries<'_>) -> io::Result<()> {
    let mut preamble = [0; PREAMBLE_SIZE as usize];
    let got = file.read_at(&mut preamble, 0)?;
    let Ok(present) = UnverifiedPreamble::decode(&preamble[..got]) else {
        return Ok(());
    };
    let mut front = None;
    let mut mtime = None;
    for entry in entries {
        // Sealed since: everything of that time is in the file.
        if entry.file.seal_count < present.claimed_seal_count() {
            continue;
        }
        match entry.change {
            Change::Write(0, bytes) => {
                let (preamble, blocks) = bytes.split_at(bytes.len().min(PREAMBLE_SIZE as usize));
                front = Some(preamble);
                write(file, blocks, PREAMBLE_SIZE)?;
            }
            Change::Write(offset, bytes) => write(file, bytes, offset)?,
            Change::Zero(_, 0) => {
                mtime = Some(entry.file.mtime);
                continue;
            }
            Change::Zero(offset, len) => file.punch(offset, len)?,
            Change::SetLen(len) => file.set_len(len)?,
        }
        mtime = Some(entry.file.mtime).filter(|&mtime| mtime != (0, 0)).or(mtime);
    }
    file.sync_data()?;
    if let Some(front) = front {
        write(file, front, 0)?;
    }
    if let Some((tv_sec, nanos)) = mtime {
        file.set_mtime(Timespec {
            tv_sec,
            tv_nsec: nanos.into(),
        })?;
    }
    file.sync_data()
}

fn write(file: &impl Storage, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_at(bytes, offset).map_err(|short| short.error)
}

#[cfg(test)]
mod tests;
