//! The backing directory: directory handles and ways down through them, data files, small files replaced whole.
//!
//! Everything goes through directory descriptors and single names, never through joined paths, and no symbolic link is followed:
//! someone who changes the backing directory cannot lead the daemon out of it.

pub mod alarm;
pub mod descent;
pub mod dir;
pub mod entry;
pub mod file;
pub mod process;

pub use descent::Descent;
pub use dir::{Dir, DirStream, RawEntry, Stamp};
pub use entry::Entry;
pub use file::{BackingFile, FilePlace, ShortWrite, Storage, is_settled, mtime_of};
