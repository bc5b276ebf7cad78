//! The directory header `dir.hush`: the id of a directory that was renamed (docs/FORMAT.md section 6.2).

use super::{FORMAT_VERSION, FormatError, Reader};
use crate::{crypto::keys::MacKey, ids::DirectoryId};

const MAGIC: &[u8; 8] = b"HUSHDIRS";

const AUTHENTICATED_SIZE: usize = 96;

/// The size of a directory header, in bytes.
pub const DIRECTORY_HEADER_SIZE: usize = AUTHENTICATED_SIZE + 32;

const FLAG_NEXT_PLACE: u16 = 1;

/// The header of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryHeader {
    /// The id its names are sealed under.
    pub directory: DirectoryId,
    /// Where the directory is.
    pub place: [u8; 32],
    /// Where a rename under way is about to put it.
    pub next_place: Option<[u8; 32]>,
}

impl DirectoryHeader {
    /// Decodes and authenticates a directory header.
    ///
    /// # Errors
    ///
    /// The [`FormatError`] that names the first thing wrong.
    pub fn decode(bytes: &[u8], key: &MacKey) -> Result<Self, FormatError> {
        let mut reader = Reader(bytes);
        reader.magic_and_version(MAGIC)?;
        let flags = reader.u16()?;
        let reserved = reader.take::<4>()?;
        let directory = DirectoryId(reader.take()?);
        let (place, next) = (reader.take()?, reader.take()?);
        let mac = reader.take()?;
        reader.end()?;
        if !key.check(&bytes[..AUTHENTICATED_SIZE], &mac) {
            return Err(FormatError::NotAuthentic);
        }
        if flags & !FLAG_NEXT_PLACE != 0 || reserved != [0; 4] {
            return Err(FormatError::OutOfRange("flags"));
        }
        Ok(DirectoryHeader {
            directory,
            place,
            next_place: (flags & FLAG_NEXT_PLACE != 0).then_some(next),
        })
    }

    /// Encodes the header.
    pub fn encode(&self, key: &MacKey) -> [u8; DIRECTORY_HEADER_SIZE] {
        let mut out = [0; DIRECTORY_HEADER_SIZE];
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&(u16::from(self.next_place.is_some()) * FLAG_NEXT_PLACE).to_le_bytes());
        out[16..32].copy_from_slice(&self.directory.0);
        out[32..64].copy_from_slice(&self.place);
        out[64..96].copy_from_slice(&self.next_place.unwrap_or_default());
        let mac = key.mac(&out[..AUTHENTICATED_SIZE]);
        out[AUTHENTICATED_SIZE..].copy_from_slice(&mac);
        out
    }

    /// Tells whether the directory may be found at `place`.
    pub fn admits(&self, place: &[u8; 32]) -> bool {
        &self.place == place || self.next_place.as_ref() == Some(place)
    }
}

/// Checks that bytes have the form of a directory header, without a key.
///
/// # Errors
///
/// The [`FormatError`] that names the first thing wrong.
pub fn check_form(bytes: &[u8]) -> Result<(), FormatError> {
    let mut reader = Reader(bytes);
    reader.magic_and_version(MAGIC)?;
    reader.take::<{ DIRECTORY_HEADER_SIZE - MAGIC.len() - 2 }>()?;
    reader.end()
}

/// Returns the place of a directory under a name in another.
pub fn place(key: &MacKey, parent: DirectoryId, name: &[u8]) -> [u8; 32] {
    key.mac(&[b"place", &parent.0[..], name].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::keys::KeyBytes;

    fn key() -> MacKey {
        MacKey::new(KeyBytes::copy_of(&[6; 32]))
    }

    fn header() -> DirectoryHeader {
        DirectoryHeader {
            directory: DirectoryId([1; 16]),
            place: place(&key(), DirectoryId([2; 16]), b"here"),
            next_place: Some(place(&key(), DirectoryId([2; 16]), b"there")),
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        let one_place = DirectoryHeader {
            next_place: None,
            ..header()
        };
        for header in [header(), one_place] {
            assert_eq!(DirectoryHeader::decode(&header.encode(&key()), &key()), Ok(header));
        }
    }

    #[test]
    fn no_byte_can_be_changed() {
        let good = header().encode(&key());
        for i in 0..good.len() {
            let mut bytes = good;
            bytes[i] ^= 1;
            assert!(DirectoryHeader::decode(&bytes, &key()).is_err(), "byte {i}");
        }
        assert_eq!(
            DirectoryHeader::decode(&good[..127], &key()),
            Err(FormatError::TooShort)
        );
        assert_eq!(
            DirectoryHeader::decode(&[&good[..], b"x"].concat(), &key()),
            Err(FormatError::TrailingBytes)
        );
    }

    #[test]
    fn a_directory_is_admitted_at_both_its_places_only() {
        let at = |name: &[u8]| header().admits(&place(&key(), DirectoryId([2; 16]), name));
        assert!(at(b"here") && at(b"there") && !at(b"elsewhere"));
    }
}
