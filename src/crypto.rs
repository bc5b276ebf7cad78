//! Seals, opens, wraps, unwraps and derives; the only module that names a cipher crate.
//!
//! Nothing here does I/O or knows where a key is stored. The constructions are in docs/FORMAT.md section 1.

pub mod block;
pub mod derive;
pub mod keys;
pub mod locked;
pub mod passphrase;
pub mod random;
pub mod recipient;
pub mod record;
pub mod seal;
pub mod siv;
pub mod slot;
pub mod wrap;

/// The size of every key, in bytes.
pub const KEY_SIZE: usize = 32;

/// The size of every AEAD tag, in bytes.
pub const TAG_SIZE: usize = 16;

/// Returned when authentication fails: the bytes were not sealed under this key, or were changed since.
///
/// It says no more on purpose; callers add what was being opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenError;

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("authentication failed")
    }
}

impl std::error::Error for OpenError {}
