//! The journal: changes to durable blocks, held until they stand in their data files too (docs/FORMAT.md section 13).
//!
//! A header, and from [`FIRST_GROUP`] on groups of entries, each with a MAC: a group is there whole or not at all.

use super::{FORMAT_VERSION, FormatError, Reader};
use crate::{
    crypto::keys::MacKey,
    ids::{FileId, VaultId},
};

const MAGIC: &[u8; 8] = b"HUSHJRNL";

const MAC_SIZE: usize = 32;

const AUTHENTICATED_SIZE: usize = 56;

/// The size of the header, in bytes: less than a sector, so that it is written whole.
pub const JOURNAL_HEADER_SIZE: usize = AUTHENTICATED_SIZE + MAC_SIZE;

/// Where the first group begins: no write to a group touches the header's page.
pub const FIRST_GROUP: u64 = 4096;

/// The largest journal, in bytes.
pub const JOURNAL_MAX: u64 = 64 << 20;

/// Bytes of a group before its entries; its MAC follows them.
const GROUP_FRONT_SIZE: usize = 24;

/// Bytes of an entry before its data.
const ENTRY_FRONT_SIZE: usize = 64;

const WRITE: u8 = 1;
const ZERO: u8 = 2;
const SET_LEN: u8 = 3;

/// Where a journal was made. A copy that a backup or a sync tool made is at another place, and says nothing about the files beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalPlace {
    /// The inode number of the journal itself.
    pub inode: u64,
    /// When that inode was made, in nanoseconds since 1970; 0 where the filesystem does not know.
    pub born: u64,
}

/// The header of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalHeader {
    /// The vault it belongs to.
    pub vault: VaultId,
    /// Where it was made.
    pub place: JournalPlace,
    /// Groups of another generation are left from before and mean nothing.
    pub generation: u64,
}

impl JournalHeader {
    /// Decodes and authenticates a header.
    ///
    /// # Errors
    ///
    /// The [`FormatError`] that names the first thing wrong.
    pub fn decode(bytes: &[u8], key: &MacKey) -> Result<Self, FormatError> {
        let mut reader = Reader(bytes);
        reader.magic_and_version(MAGIC)?;
        let reserved = reader.take::<6>()?;
        let vault = VaultId(reader.take()?);
        let (inode, born, generation) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let mac = reader.take()?;
        if !key.check(&bytes[..AUTHENTICATED_SIZE], &mac) {
            return Err(FormatError::NotAuthentic);
        }
        if reserved != [0; 6] {
            return Err(FormatError::OutOfRange("reserved bytes"));
        }
        let place = JournalPlace { inode, born };
        Ok(JournalHeader {
            vault,
            place,
            generation,
        })
    }

    /// Encodes the header.
    pub fn encode(&self, key: &MacKey) -> [u8; JOURNAL_HEADER_SIZE] {
        let mut out = [0; JOURNAL_HEADER_SIZE];
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.vault.0);
        out[32..40].copy_from_slice(&self.place.inode.to_le_bytes());
        out[40..48].copy_from_slice(&self.place.born.to_le_bytes());
        out[48..56].copy_from_slice(&self.generation.to_le_bytes());
        let mac = key.mac(&out[..AUTHENTICATED_SIZE]);
        out[AUTHENTICATED_SIZE..].copy_from_slice(&mac);
        out
    }
}

/// Which data file an entry is about, and how it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryFile {
    /// The file.
    pub file: FileId,
    /// The inode number of its data file: where to look first.
    pub inode: u64,
    /// How often the file had been sealed. In a file that was sealed more often since, the entry means nothing.
    pub seal_count: u64,
    /// When the content was last modified: seconds and nanoseconds.
    pub mtime: (i64, u32),
}

/// What was done to a data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'d> {
    /// These bytes stand at this offset.
    Write(u64, &'d [u8]),
    /// From this offset on so many bytes were freed, and read as zeros.
    Zero(u64, u64),
    /// The file has this size.
    SetLen(u64),
}

impl Change<'_> {
    /// Returns how many bytes an entry of it takes in a group.
    pub fn size(&self) -> u64 {
        let data = match self {
            Change::Write(_, data) => data.len(),
            _ => 0,
        };
        (ENTRY_FRONT_SIZE + data) as u64
    }
}

/// Makes a group.
#[derive(Debug)]
pub struct GroupWriter {
    bytes: Vec<u8>,
}

impl GroupWriter {
    /// Begins a group that follows `sequence` others of its generation.
    pub fn new(generation: u64, sequence: u64) -> Self {
        let mut bytes = vec![0; GROUP_FRONT_SIZE];
        bytes[..8].copy_from_slice(&generation.to_le_bytes());
        bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
        GroupWriter { bytes }
    }

    /// Adds an entry.
    pub fn push(&mut self, file: &EntryFile, change: Change<'_>) {
        let (kind, offset, len, data) = match change {
            Change::Write(offset, data) => (WRITE, offset, data.len() as u64, data),
            Change::Zero(offset, len) => (ZERO, offset, len, &[][..]),
            Change::SetLen(len) => (SET_LEN, 0, len, &[][..]),
        };
        self.bytes.extend_from_slice(&file.file.0);
        self.bytes.extend_from_slice(&file.inode.to_le_bytes());
        self.bytes.extend_from_slice(&file.seal_count.to_le_bytes());
        self.bytes.extend_from_slice(&file.mtime.0.to_le_bytes());
        self.bytes.extend_from_slice(&file.mtime.1.to_le_bytes());
        self.bytes.extend_from_slice(&[kind, 0, 0, 0]);
        self.bytes.extend_from_slice(&offset.to_le_bytes());
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(data);
    }

    /// Returns how many bytes the group takes by now, with its MAC.
    pub fn size(&self) -> u64 {
        (self.bytes.len() + MAC_SIZE) as u64
    }

    /// Has the group be the first of another generation.
    pub fn restart(&mut self, generation: u64) {
        self.bytes[..8].copy_from_slice(&generation.to_le_bytes());
        self.bytes[8..16].fill(0);
    }

    /// Ends the group: returns its bytes.
    pub fn finish(mut self, key: &MacKey) -> Vec<u8> {
        let len = (self.bytes.len() - GROUP_FRONT_SIZE) as u64;
        self.bytes[16..24].copy_from_slice(&len.to_le_bytes());
        let mac = key.mac(&self.bytes);
        self.bytes.extend_from_slice(&mac);
        self.bytes
    }
}

/// An entry of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'d> {
    /// Which data file it is about.
    pub file: EntryFile,
    /// What was done to it.
    pub change: Change<'d>,
}

/// Decodes the groups of a journal from [`FIRST_GROUP`] on, in their order, up to the first that is not whole: nobody was told that it is safe.
///
/// # Errors
///
/// A [`FormatError`] for a group whose MAC is right and whose entries are not: made by another program.
pub fn decode_groups<'d>(mut bytes: &'d [u8], generation: u64, key: &MacKey) -> Result<Vec<Entry<'d>>, FormatError> {
    let mut entries = Vec::new();
    for sequence in 0.. {
        let Some((body, rest)) = split_group(bytes, (generation, sequence), key) else {
            break;
        };
        decode_entries(body, &mut entries)?;
        bytes = rest;
    }
    Ok(entries)
}

/// Splits the first group off; returns its entries and what follows it.
fn split_group<'d>(bytes: &'d [u8], expected: (u64, u64), key: &MacKey) -> Option<(&'d [u8], &'d [u8])> {
    let mut reader = Reader(bytes);
    let found = (reader.u64().ok()?, reader.u64().ok()?);
    let len = usize::try_from(reader.u64().ok()?).ok()?;
    let (body, rest) = reader.0.split_at_checked(len)?;
    let (mac, rest) = rest.split_first_chunk::<MAC_SIZE>()?;
    let is_whole = found == expected && key.check(&bytes[..GROUP_FRONT_SIZE + len], mac);
    is_whole.then_some((body, rest))
}

fn decode_entries<'d>(body: &'d [u8], entries: &mut Vec<Entry<'d>>) -> Result<(), FormatError> {
    let mut reader = Reader(body);
    while !reader.0.is_empty() {
        let file = EntryFile {
            file: FileId(reader.take()?),
            inode: reader.u64()?,
            seal_count: reader.u64()?,
            mtime: (i64::from_le_bytes(reader.take()?), reader.u32()?),
        };
        let [kind, reserved @ ..] = reader.take::<4>()?;
        let (offset, len) = (reader.u64()?, reader.u64()?);
        if reserved != [0; 3] {
            return Err(FormatError::OutOfRange("reserved bytes"));
        }
        // No data file is larger than an i64 says, so no sum of these overflows.
        let limit = i64::MAX as u64;
        if offset > limit || len > limit - offset || file.mtime.1 >= 1_000_000_000 {
            return Err(FormatError::OutOfRange("journal entry"));
        }
        let change = match kind {
            WRITE => {
                let len = usize::try_from(len).map_err(|_| FormatError::TooShort)?;
                let (data, rest) = reader.0.split_at_checked(len).ok_or(FormatError::TooShort)?;
                reader = Reader(rest);
                Change::Write(offset, data)
            }
            ZERO => Change::Zero(offset, len),
            SET_LEN => Change::SetLen(len),
            _ => return Err(FormatError::UnknownFeature),
        };
        entries.push(Entry { file, change });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::keys::KeyBytes;

    fn key() -> MacKey {
        MacKey::new(KeyBytes::copy_of(&[6; 32]))
    }

    fn header() -> JournalHeader {
        JournalHeader {
            vault: VaultId([1; 16]),
            place: JournalPlace { inode: 77, born: 5 },
            generation: 9,
        }
    }

    fn file(number: u8) -> EntryFile {
        EntryFile {
            file: FileId([number; 16]),
            inode: 1234,
            seal_count: 3,
            mtime: (-5, 999_999_999),
        }
    }

    fn changes() -> [Entry<'static>; 3] {
        [
            Change::Write(256, b"sealed block"),
            Change::Zero(4380, 8248),
            Change::SetLen(256),
        ]
        .map(|change| Entry { file: file(2), change })
    }

    fn group(sequence: u64) -> Vec<u8> {
        let mut group = GroupWriter::new(9, sequence);
        changes().iter().for_each(|entry| group.push(&entry.file, entry.change));
        let size = group.size();
        let bytes = group.finish(&key());
        assert_eq!(bytes.len() as u64, size);
        bytes
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        assert_eq!(JournalHeader::decode(&header().encode(&key()), &key()), Ok(header()));
        let two = [group(0), group(1)].concat();
        let found = decode_groups(&two, 9, &key()).unwrap();
        assert_eq!(found, [changes(), changes()].concat());
    }

    #[test]
    fn no_byte_can_be_changed() {
        let good = header().encode(&key());
        for i in 0..good.len() {
            let mut bytes = good;
            bytes[i] ^= 1;
            assert!(JournalHeader::decode(&bytes, &key()).is_err(), "byte {i}");
        }
        let good = [group(0), group(1)].concat();
        let first = group(0).len();
        for i in 0..good.len() {
            let mut bytes = good.clone();
            bytes[i] ^= 1;
            let left = if i < first { 0 } else { changes().len() };
            assert_eq!(decode_groups(&bytes, 9, &key()).unwrap().len(), left, "byte {i}");
        }
    }

    #[test]
    fn what_is_left_from_before_means_nothing() {
        assert!(decode_groups(&group(0), 10, &key()).unwrap().is_empty());
        assert!(decode_groups(&group(1), 9, &key()).unwrap().is_empty());
        let twice = [group(0), group(0)].concat();
        assert_eq!(decode_groups(&twice, 9, &key()).unwrap().len(), changes().len());
        for len in 0..group(0).len() {
            assert!(decode_groups(&group(0)[..len], 9, &key()).unwrap().is_empty());
        }
        let mut restarted = GroupWriter::new(8, 5);
        restarted.push(&file(1), Change::SetLen(7));
        restarted.restart(9);
        assert_eq!(decode_groups(&restarted.finish(&key()), 9, &key()).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_give_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = JournalHeader::decode(&bytes, &key());
            let _ = decode_entries(&bytes, &mut Vec::new());
            let _ = decode_groups(&bytes, 0, &key());
        }
    }
}
