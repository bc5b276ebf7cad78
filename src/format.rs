//! Bytes to structs and back, and all offset arithmetic: docs/FORMAT.md in code.
//!
//! Nothing here does I/O. What has been read but not authenticated has a type of its own (`Unverified...`).

pub mod audit;
pub mod body;
pub mod directory;
pub mod header;
pub mod journal;
pub mod keystore;
pub mod layout;
pub mod link;
pub mod name;
pub mod preamble;
pub mod record;
pub mod sealed;
pub mod snapshot;
pub mod vault;
pub mod xattr;

/// The version of the format that this program reads and writes. The keystore has one of its own.
pub const FORMAT_VERSION: u16 = 1;

/// Why stored bytes are not what they should be. Says nothing about keys: that is for who tried to open them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FormatError {
    /// The magic number is not that of this kind of file.
    NotOne,
    /// Made by a newer version of hushfs; the number is its format version.
    Newer(u16),
    /// Shorter than its own front or length says.
    TooShort,
    /// Longer than its own length says.
    TrailingBytes,
    /// A length, count or number is outside its limit.
    OutOfRange(&'static str),
    /// The body does not decode, or does not encode back to the same bytes.
    NotCanonical,
    /// A feature or extension that this version does not know and must not ignore.
    UnknownFeature,
    /// The MAC does not match: changed, or written under another key.
    NotAuthentic,
}

impl std::fmt::Display for FormatError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FormatError::NotOne => f.write_str("not a file of this kind (wrong magic number)"),
            FormatError::Newer(version) => write!(f, "made by a newer hushfs (format version {version})"),
            FormatError::TooShort => f.write_str("cut short"),
            FormatError::TrailingBytes => f.write_str("bytes after its end"),
            FormatError::OutOfRange(field) => write!(f, "{field} out of range"),
            FormatError::NotCanonical => f.write_str("does not decode"),
            FormatError::UnknownFeature => f.write_str("uses a feature this hushfs does not know"),
            FormatError::NotAuthentic => f.write_str("damaged or tampered with (authentication failed)"),
        }
    }
}

impl std::error::Error for FormatError {}

/// Reads fixed fields off the front of a slice. Running out of bytes is an error, never a panic.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(FormatError::TooShort)?;
        self.0 = rest;
        Ok(*head)
    }

    pub fn u16(&mut self) -> Result<u16, FormatError> {
        self.take().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, FormatError> {
        self.take().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, FormatError> {
        self.take().map(u64::from_le_bytes)
    }

    /// Reads and compares a magic number and the format version behind it.
    pub fn magic_and_version(&mut self, magic: &[u8; 8]) -> Result<(), FormatError> {
        self.magic_and_version_to(magic, FORMAT_VERSION).map(drop)
    }

    /// Reads and compares a magic number, and returns the version behind it, which may be any up to `newest`.
    pub fn magic_and_version_to(&mut self, magic: &[u8; 8], newest: u16) -> Result<u16, FormatError> {
        if &self.take::<8>()? != magic {
            return Err(FormatError::NotOne);
        }
        match self.u16()? {
            0 => Err(FormatError::OutOfRange("format version")),
            newer if newer > newest => Err(FormatError::Newer(newer)),
            version => Ok(version),
        }
    }

    /// Asserts that nothing is left.
    pub fn end(self) -> Result<(), FormatError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(FormatError::TrailingBytes)
        }
    }
}
