//! Checks a vault, verifies it and repairs it.
//!
//! All three go through the vault by [`walk`], which shows a [`Visitor`] every entry and everything that is not as it should be. A [`Finding`] is damage, where something of the user's
//! cannot be used, a warning, where someone else has been there, or a note: leftovers of interrupted operations harm nobody.

mod finding;
mod keyless;
mod lost;
mod repair;
mod tree;
mod verify;
mod walk;

use std::path::PathBuf;

pub use self::{
    finding::{Finding, Problem, Severity},
    keyless::check_without_key,
    repair::{Remedy, Told, Why, repair},
    verify::{Known, Options, Verified, bytes_in, verify},
    walk::{Content, Entry, Place, Visitor, WalkError, walk},
};
use crate::{backing::Dir, vault::Vault};

/// What a check comes upon.
#[derive(Debug)]
pub enum Event {
    /// An entry was checked.
    Entry,
    /// So many bytes of plaintext were read, or need not be.
    Read(u64),
    /// Something is not as it should be.
    Found(Finding),
}

/// How much was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Directories.
    pub directories: u64,
    /// Files of every other kind.
    pub files: u64,
}

/// Checks the structure of everything below a vault's root.
///
/// # Errors
///
/// What keeps the root from being read; whatever else cannot be read is a [`Finding`].
pub fn check(
    vault: &Vault,
    root: &Dir,
    stops: &dyn Fn() -> bool,
    report: &mut dyn FnMut(Event),
) -> Result<Summary, WalkError> {
    let mut check = Check {
        stops,
        report,
        // The root is no entry.
        summary: Summary {
            directories: 1,
            files: 0,
        },
    };
    walk(vault, root, &[] as &[PathBuf], &mut check)?;
    Ok(check.summary)
}

struct Check<'c> {
    stops: &'c dyn Fn() -> bool,
    report: &'c mut dyn FnMut(Event),
    summary: Summary,
}

impl Visitor for Check<'_> {
    fn entry(&mut self, entry: Entry<'_>) {
        match entry.content {
            Content::Directory(_) => self.summary.directories += 1,
            _ => self.summary.files += 1,
        }
        (self.report)(Event::Entry);
    }

    fn found(&mut self, finding: Finding) {
        (self.report)(Event::Found(finding));
    }

    fn stops(&self) -> bool {
        (self.stops)()
    }
}
