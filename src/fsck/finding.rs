//! What a check finds, how bad it is, and the word for it that scripts go by.

use std::{fmt, io, iter, ops::Range};

use crate::{
    format::{FormatError, name},
    ids::DirectoryId,
    vault::{VaultError, content::ContentError},
};

/// Something that is not as it should be, and where.
#[derive(Debug)]
pub struct Finding {
    /// The path in the backing directory.
    pub disk_path: Vec<u8>,
    /// The path of its directory in the view; nothing without a key.
    pub directory: Option<Vec<u8>>,
    /// The name in the view, where it has one.
    pub name: Option<Vec<u8>>,
    /// The id of its directory; nothing without a key.
    pub parent: Option<DirectoryId>,
    /// What it is.
    pub problem: Problem,
}

impl Finding {
    /// Returns the path in the view, where there is one.
    pub fn plain_path(&self) -> Option<Vec<u8>> {
        Some(join(self.directory.as_ref()?, self.name.as_ref()?))
    }
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Something of the user's cannot be used, or is not what it was.
    Damage,
    /// Nothing of the user's is missing, but someone else has been here.
    Warning,
    /// It could not be checked: its key is not at hand, or who looks may not read it.
    Unchecked,
    /// Left over from an interrupted operation or made by a sync tool; harms nobody.
    Note,
}

/// What can be wrong.
#[derive(Debug)]
pub enum Problem {
    /// The name does not open: it is of another directory, or damaged.
    NameUnopened(VaultError),
    /// The name is that of an entry of a directory with another id: someone has moved it here, or a tool has merged two directories.
    NameElsewhere {
        /// That id.
        made_in: DirectoryId,
        /// It is an id that the directory under this very path can have, or had.
        is_of_path: bool,
    },
    /// The file, link or directory cannot be used.
    Unusable(VaultError),
    /// The directory has no header, and what is in it is of directories with these ids, not of the one that it would be without.
    DirectoryHeaderMissing(Vec<DirectoryId>),
    /// The backing filesystem does not let it be read.
    Unreadable(io::Error),
    /// Blocks do not authenticate: ranges of their numbers.
    BlocksDamaged(Vec<Range<u64>>),
    /// An extended attribute does not open: its name on disk.
    AttributeDamaged(String, FormatError),
    /// A file of hushfs's own is not of the form that its name says. Only looked for without a key, which tells more.
    Malformed(FormatError),
    /// A header is for another directory than most in its directory. Only looked for without a key.
    HeaderElsewhere,
    /// A journal of this vault that is not where it was made: what it has is in no file.
    JournalCopied,
    /// The file was being written when hushfs ended, and not sealed since; so many bytes at its end are no whole block.
    LeftOpen {
        /// The bytes at the end.
        torn: u64,
    },
    /// There is nothing in the file but zeros: it was new when the power went, and nothing in it was ever synced.
    NeverSynced,
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
    /// What a sync tool or a desktop keeps for itself.
    SyncTool,
    /// Nothing of hushfs's.
    Stranger,
    /// Another filesystem is mounted there.
    OtherFilesystem,
}

impl Problem {
    /// Tells how bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Problem::Unusable(VaultError::EpochKey(..) | VaultError::KeyNeeded(_)) => Severity::Unchecked,
            problem if problem.is_denied() => Severity::Unchecked,
            Problem::NameUnopened(_)
            | Problem::NameElsewhere { .. }
            | Problem::Unusable(_)
            | Problem::DirectoryHeaderMissing(_)
            | Problem::Unreadable(_)
            | Problem::BlocksDamaged(_)
            | Problem::AttributeDamaged(..)
            | Problem::Malformed(_)
            | Problem::HeaderElsewhere
            | Problem::JournalCopied => Severity::Damage,
            Problem::Stranger => Severity::Warning,
            Problem::LeftOpen { .. }
            | Problem::NeverSynced
            | Problem::OrphanedHeader
            | Problem::OrphanedLongName
            | Problem::OrphanedLinkFile
            | Problem::Temporary
            | Problem::Conflict
            | Problem::SyncTool
            | Problem::OtherFilesystem => Severity::Note,
        }
    }

    /// Tells whether it says no more than that who looks may not read it.
    pub fn is_denied(&self) -> bool {
        let error = match self {
            Problem::Unreadable(error)
            | Problem::Unusable(VaultError::Io(error) | VaultError::Content(ContentError::Io(error))) => error,
            _ => return false,
        };
        error.kind() == io::ErrorKind::PermissionDenied
    }

    /// Returns the word that scripts know it by. docs/CLI.md lists them; none ever changes its meaning.
    pub fn code(&self) -> &'static str {
        match self {
            Problem::NameUnopened(_) | Problem::NameElsewhere { .. } => "name",
            Problem::Unusable(error) => error_code(error),
            Problem::DirectoryHeaderMissing(_) => "directory-header-missing",
            Problem::Unreadable(_) => "unreadable",
            Problem::BlocksDamaged(_) => "blocks",
            Problem::AttributeDamaged(..) => "attribute",
            Problem::Malformed(_) => "malformed",
            Problem::HeaderElsewhere => "header-misplaced",
            Problem::JournalCopied => "journal-copied",
            Problem::LeftOpen { .. } => "left-open",
            Problem::NeverSynced => "never-synced",
            Problem::OrphanedHeader => "orphaned-header",
            Problem::OrphanedLongName => "orphaned-long-name",
            Problem::OrphanedLinkFile => "orphaned-link-file",
            Problem::Temporary => "temporary",
            Problem::Conflict => "conflict-copy",
            Problem::SyncTool => "sync-tool",
            Problem::Stranger => "stranger",
            Problem::OtherFilesystem => "other-filesystem",
        }
    }
}

fn error_code(error: &VaultError) -> &'static str {
    match error {
        VaultError::Io(_) | VaultError::Content(ContentError::Io(_)) => "unreadable",
        VaultError::HeaderMissing(_) => "header-missing",
        VaultError::HeaderDamaged(..) => "header",
        VaultError::HeaderMisplaced(_) => "header-misplaced",
        VaultError::EpochMissing(_) | VaultError::EpochRetired(_) => "epoch-missing",
        VaultError::EpochKey(..) | VaultError::KeyNeeded(_) => "key",
        VaultError::DirectoryDamaged(_) => "directory-header",
        VaultError::DirectoryMisplaced => "directory-misplaced",
        VaultError::RolledBack(_) => "rolled-back",
        VaultError::NameDamaged(_) => "name",
        VaultError::LinkDamaged(_) => "link",
        VaultError::XattrDamaged(_) => "attribute",
        VaultError::Content(ContentError::Damaged(_)) => "blocks",
        VaultError::Content(ContentError::Preamble(_)) => "preamble",
        VaultError::Content(ContentError::WrongFile) => "wrong-file",
        VaultError::Content(ContentError::WrongSize { .. }) => "size",
        VaultError::Content(ContentError::Misplaced) => "misplaced",
        VaultError::Content(ContentError::WrongSum) => "older-blocks",
        VaultError::Content(ContentError::TooLarge | ContentError::ReadOnly) => "unreadable",
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::NameUnopened(error) => write!(f, "the name does not open: {error}"),
            Problem::NameElsewhere {
                is_of_path: true, ..
            } => f.write_str(
                "the name does not open: it was made here while the directory had another id, and a tool has merged two directories of this name",
            ),
            Problem::NameElsewhere { made_in, .. } => write!(
                f,
                "the name does not open: it was made in directory {made_in}, and this one has another id: it was moved here, or a tool has \
                 merged two directories"
            ),
            Problem::Unusable(error) => error.fmt(f),
            Problem::DirectoryHeaderMissing(ids) if ids.len() == 1 => write!(
                f,
                "its {} is missing: what is in it was made in a directory with another id",
                name::DIRECTORY_HEADER
            ),
            Problem::DirectoryHeaderMissing(ids) => write!(
                f,
                "its {} is missing, or it was exchanged: what is in it is of {} directories",
                name::DIRECTORY_HEADER,
                ids.len()
            ),
            Problem::Unreadable(error) => error.fmt(f),
            Problem::BlocksDamaged(ranges) => write_blocks(f, ranges),
            Problem::AttributeDamaged(attribute, error) => {
                write!(f, "its extended attribute {attribute}: {error}")
            }
            Problem::Malformed(error) => error.fmt(f),
            Problem::HeaderElsewhere => f.write_str("header for another directory than the others here"),
            Problem::JournalCopied => f.write_str(
                "journal of an unclean end, made elsewhere: what it has is in no file. If the vault was copied as that end had left it, \
                 `hushfs fsck --apply-journal` writes it to the files; otherwise remove the journal",
            ),
            Problem::LeftOpen { torn: 0 } => f.write_str("open since an unclean end"),
            Problem::LeftOpen { torn } => write!(f, "open since an unclean end, with a torn tail of {torn} bytes"),
            Problem::NeverSynced => f.write_str("new at an unclean end and never synced: there is nothing in it"),
            Problem::OrphanedHeader => f.write_str("header of no file in this directory"),
            Problem::OrphanedLongName => f.write_str("long name of no entry in this directory"),
            Problem::OrphanedLinkFile => f.write_str("target of no link in this directory"),
            Problem::Temporary => f.write_str("left over from an interrupted write"),
            Problem::Conflict => f.write_str("conflict copy of a sync tool"),
            Problem::SyncTool => f.write_str("a sync tool's own"),
            Problem::Stranger => f.write_str("not made by hushfs"),
            Problem::OtherFilesystem => f.write_str("another filesystem is mounted there, and not shown"),
        }
    }
}

/// Writes the first few of the ranges.
fn write_blocks(f: &mut fmt::Formatter<'_>, ranges: &[Range<u64>]) -> fmt::Result {
    const SHOWN: usize = 8;
    let count: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    f.write_str(if count == 1 { "block" } else { "blocks" })?;
    for (i, range) in ranges.iter().take(SHOWN).enumerate() {
        let comma = if i == 0 { "" } else { "," };
        match range.end - range.start {
            1 => write!(f, "{comma} {}", range.start)?,
            _ => write!(f, "{comma} {}-{}", range.start, range.end - 1)?,
        }
    }
    if ranges.len() > SHOWN {
        write!(f, " and more, {count} in all,")?;
    }
    f.write_str(if count == 1 { " is" } else { " are" })?;
    f.write_str(" damaged or tampered with")
}

/// Says of an error what it makes of the file, link or directory.
pub(super) fn unusable(error: VaultError) -> Problem {
    match error {
        VaultError::Io(error) | VaultError::Content(ContentError::Io(error)) => Problem::Unreadable(error),
        VaultError::Content(ContentError::Damaged(block)) => {
            Problem::BlocksDamaged(iter::once(block.0..block.0 + 1).collect())
        }
        error => Problem::Unusable(error),
    }
}

/// Puts an entry to a path.
pub(super) fn join(path: &[u8], entry: &[u8]) -> Vec<u8> {
    match (path, entry) {
        ([], entry) => entry.to_vec(),
        (path, []) => path.to_vec(),
        (path, entry) => [path, b"/", entry].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_blocks_are_named_by_their_ranges() {
        let one = Problem::BlocksDamaged(iter::once(3..4).collect());
        assert_eq!(one.to_string(), "block 3 is damaged or tampered with");
        let some = Problem::BlocksDamaged(vec![0..2, 7..8]);
        assert_eq!(some.to_string(), "blocks 0-1, 7 are damaged or tampered with");
        let many = Problem::BlocksDamaged((0..20).map(|i| 2 * i..2 * i + 1).collect());
        assert_eq!(
            many.to_string(),
            "blocks 0, 2, 4, 6, 8, 10, 12, 14 and more, 20 in all, are damaged or tampered with"
        );
    }

    #[test]
    fn what_one_may_not_read_is_unchecked_and_not_damage() {
        let error = || io::Error::from_raw_os_error(libc::EACCES);
        for problem in [Problem::Unreadable(error()), Problem::Unusable(VaultError::Io(error()))] {
            assert_eq!(
                (problem.severity(), problem.code()),
                (Severity::Unchecked, "unreadable")
            );
        }
        let failed = io::Error::from_raw_os_error(libc::EIO);
        assert_eq!(Problem::Unreadable(failed).severity(), Severity::Damage);
    }
}
