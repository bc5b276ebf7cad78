//! The local record of what was last seen of a vault: a front, then batches, each bound to all before it (docs/FORMAT.md section 11).

use super::{FORMAT_VERSION, FormatError, Reader};
use crate::{
    crypto::record::RecordKey,
    ids::{Epoch, FileId, KeystoreId, RecordId, VaultId},
};

const MAGIC: &[u8; 8] = b"HUSHRECD";

/// Bytes of the front before its MAC.
const FRONT_AUTHENTICATED_SIZE: usize = 48;

const MAC_SIZE: usize = 32;

/// The size of a record's front, in bytes.
pub const RECORD_FRONT_SIZE: usize = FRONT_AUTHENTICATED_SIZE + MAC_SIZE;

const BATCH_FRONT_SIZE: usize = 16;

/// The size of what is noted of a file, in bytes.
pub const SEEN_FILE_SIZE: usize = 40;

const SEEN_HOME_SIZE: usize = 44;

/// What a batch costs besides what is in it, in bytes.
pub const BATCH_OVERHEAD: usize = BATCH_FRONT_SIZE + MAC_SIZE;

/// Things noted in one batch at most: 2.5 MiB of files.
pub const BATCH_MAX: usize = 65_536;

const KIND_FILES: u32 = 1;
const KIND_HOMES: u32 = 2;

const FLAG_MARKED: u8 = 1;
const FLAG_GONE: u8 = 2;
const FLAG_SUSPECT: u8 = 4;

/// What was last seen of a file. 40 bytes in memory too, since there may be millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenFile {
    /// The file.
    pub file: FileId,
    /// How often it was sealed.
    pub count: u64,
    /// The mark of where it was; 0 for a file with several names, and where names are not followed.
    pub place: u64,
    mark: [u8; 7],
    flags: u8,
}

const _: () = assert!(size_of::<SeenFile>() == SEEN_FILE_SIZE);

impl SeenFile {
    /// Notes a file as it was seen, with the mark of its content where that is known.
    pub fn new(file: FileId, count: u64, place: u64, content: Option<&[u8; 16]>) -> Self {
        let mut mark = [0; 7];
        if let Some(content) = content {
            mark.copy_from_slice(&content[..7]);
        }
        SeenFile {
            file,
            count,
            place,
            mark,
            flags: u8::from(content.is_some()) * FLAG_MARKED,
        }
    }

    /// Tells whether two sightings of one seal differ in content.
    pub fn differs_in_content(&self, other: &SeenFile) -> bool {
        self.flags & other.flags & FLAG_MARKED != 0 && self.mark != other.mark
    }

    /// Takes over the mark of the content from another sighting of the same seal, where this one has none.
    pub fn keep_mark_of(&mut self, other: &SeenFile) {
        if self.flags & FLAG_MARKED == 0 {
            self.mark = other.mark;
            self.flags |= other.flags & FLAG_MARKED;
        }
    }

    /// Tells whether the file was removed, or another one was seen in its place.
    pub fn is_gone(&self) -> bool {
        self.flags & FLAG_GONE != 0
    }

    /// Notes that it is gone.
    pub fn set_gone(&mut self) {
        self.flags |= FLAG_GONE;
    }

    /// Tells whether it was found to have gone backwards, and nobody has accepted that.
    pub fn is_suspect(&self) -> bool {
        self.flags & FLAG_SUSPECT != 0
    }

    /// Notes that it has gone backwards.
    pub fn set_suspect(&mut self) {
        self.flags |= FLAG_SUSPECT;
    }

    fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.file.0);
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.place.to_le_bytes());
        out.extend_from_slice(&self.mark);
        out.push(self.flags);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let seen = SeenFile {
            file: FileId(reader.take()?),
            count: reader.u64()?,
            place: reader.u64()?,
            mark: reader.take()?,
            flags: reader.take::<1>()?[0],
        };
        if seen.flags & !(FLAG_MARKED | FLAG_GONE | FLAG_SUSPECT) != 0 {
            return Err(FormatError::OutOfRange("flags"));
        }
        Ok(seen)
    }
}

/// What was seen of the vault header and the keystore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenHome {
    /// The epoch that new files used.
    pub epoch: Epoch,
    /// The mark of the vault header.
    pub header: [u8; 16],
    /// The keystore.
    pub keystore: KeystoreId,
    /// How often it had been stored.
    pub generation: u64,
}

impl SeenHome {
    fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
        out.extend_from_slice(&self.header);
        out.extend_from_slice(&self.keystore.0);
        out.extend_from_slice(&self.generation.to_le_bytes());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(SeenHome {
            epoch: Epoch(reader.u32()?),
            header: reader.take()?,
            keystore: KeystoreId(reader.take()?),
            generation: reader.u64()?,
        })
    }
}

/// What is noted at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Noted {
    /// Files.
    Files(Vec<SeenFile>),
    /// Versions of the vault header, in the order they were seen; these replace all noted before.
    Homes(Vec<SeenHome>),
}

/// A batch that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// When it was written, in seconds since 1970.
    pub time: u64,
    /// What it notes.
    pub noted: Noted,
    /// Its size, in bytes.
    pub size: usize,
    /// Its MAC, to which the next batch is bound.
    pub mac: [u8; 32],
}

/// Encodes the front of a record.
pub fn encode_front(key: &RecordKey, vault: VaultId, record: RecordId) -> [u8; RECORD_FRONT_SIZE] {
    let mut out = [0; RECORD_FRONT_SIZE];
    out[..8].copy_from_slice(MAGIC);
    out[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    out[16..32].copy_from_slice(&vault.0);
    out[32..48].copy_from_slice(&record.0);
    let mac = key.front_mac(&out[..FRONT_AUTHENTICATED_SIZE]);
    out[FRONT_AUTHENTICATED_SIZE..].copy_from_slice(&mac);
    out
}

/// Decodes and authenticates the front of a vault's record; returns its MAC, to which the first batch is bound.
///
/// # Errors
///
/// The [`FormatError`] that names the first thing wrong.
pub fn decode_front(key: &RecordKey, vault: VaultId, bytes: &[u8]) -> Result<[u8; 32], FormatError> {
    let mut reader = Reader(bytes);
    reader.magic_and_version(MAGIC)?;
    let reserved = reader.take::<6>()?;
    let named = VaultId(reader.take()?);
    reader.take::<16>()?;
    let mac = reader.take()?;
    if !RecordKey::is_same(&key.front_mac(&bytes[..FRONT_AUTHENTICATED_SIZE]), &mac) {
        return Err(FormatError::NotAuthentic);
    }
    if reserved != [0; 6] || named != vault {
        return Err(FormatError::OutOfRange("vault"));
    }
    Ok(mac)
}

/// Encodes a batch of at most [`BATCH_MAX`] things, which follows what `before` is the MAC of; returns its own MAC too.
pub fn encode_batch(key: &RecordKey, before: &[u8; 32], time: u64, noted: &Noted) -> (Vec<u8>, [u8; 32]) {
    let (kind, count) = match noted {
        Noted::Files(files) => (KIND_FILES, files.len()),
        Noted::Homes(homes) => (KIND_HOMES, homes.len()),
    };
    let mut out = Vec::with_capacity(BATCH_OVERHEAD + count * SEEN_HOME_SIZE);
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&(count as u32).to_le_bytes());
    out.extend_from_slice(&time.to_le_bytes());
    match noted {
        Noted::Files(files) => files.iter().for_each(|seen| seen.encode_into(&mut out)),
        Noted::Homes(homes) => homes.iter().for_each(|seen| seen.encode_into(&mut out)),
    }
    let mac = key.batch_mac(before, &out);
    out.extend_from_slice(&mac);
    (out, mac)
}

/// Decodes and authenticates the batch that `bytes` begin with.
///
/// # Errors
///
/// [`FormatError::TooShort`] where it was never written to its end; otherwise what is wrong with it.
pub fn decode_batch(key: &RecordKey, before: &[u8; 32], bytes: &[u8]) -> Result<Batch, FormatError> {
    let mut reader = Reader(bytes);
    let (kind, count, time) = (reader.u32()?, reader.u32()? as usize, reader.u64()?);
    let size_of_one = match kind {
        KIND_FILES => SEEN_FILE_SIZE,
        KIND_HOMES => SEEN_HOME_SIZE,
        _ => return Err(FormatError::OutOfRange("kind of a batch")),
    };
    if !(1..=BATCH_MAX).contains(&count) {
        return Err(FormatError::OutOfRange("size of a batch"));
    }
    let body_size = BATCH_FRONT_SIZE + count * size_of_one;
    let size = body_size + MAC_SIZE;
    let (message, rest) = bytes.split_at_checked(body_size).ok_or(FormatError::TooShort)?;
    let mac = Reader(rest).take()?;
    if !RecordKey::is_same(&key.batch_mac(before, message), &mac) {
        return Err(FormatError::NotAuthentic);
    }
    let noted = match kind {
        KIND_FILES => Noted::Files(
            (0..count)
                .map(|_| SeenFile::decode(&mut reader))
                .collect::<Result<_, _>>()?,
        ),
        _ => Noted::Homes(
            (0..count)
                .map(|_| SeenHome::decode(&mut reader))
                .collect::<Result<_, _>>()?,
        ),
    };
    Ok(Batch { time, noted, size, mac })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{keys::NamesRoot, locked::LockedKey};

    const VAULT: VaultId = VaultId([1; 16]);

    fn key() -> RecordKey {
        NamesRoot::new(LockedKey::copy_of(&[6; 32])).record_key()
    }

    fn seen(byte: u8) -> SeenFile {
        SeenFile::new(FileId([byte; 16]), 7, 9, Some(&[byte; 16]))
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        let front = encode_front(&key(), VAULT, RecordId([2; 16]));
        let before = decode_front(&key(), VAULT, &front).unwrap();
        let home = SeenHome {
            epoch: Epoch(3),
            header: [4; 16],
            keystore: KeystoreId([5; 16]),
            generation: 6,
        };
        for noted in [Noted::Files(vec![seen(1), seen(2)]), Noted::Homes(vec![home])] {
            let (bytes, mac) = encode_batch(&key(), &before, 99, &noted);
            let batch = decode_batch(&key(), &before, &[&bytes[..], b"the next"].concat()).unwrap();
            let size = bytes.len();
            assert_eq!(
                batch,
                Batch {
                    time: 99,
                    noted,
                    size,
                    mac
                }
            );
        }
    }

    #[test]
    fn no_byte_can_be_changed() {
        let front = encode_front(&key(), VAULT, RecordId([2; 16]));
        for i in 0..front.len() {
            let mut bytes = front;
            bytes[i] ^= 1;
            assert!(decode_front(&key(), VAULT, &bytes).is_err(), "byte {i} of the front");
        }
        assert!(decode_front(&key(), VaultId([2; 16]), &front).is_err());
        let (good, _) = encode_batch(&key(), &[0; 32], 99, &Noted::Files(vec![seen(1)]));
        for i in 0..good.len() {
            let mut bytes = good.clone();
            bytes[i] ^= 1;
            assert!(decode_batch(&key(), &[0; 32], &bytes).is_err(), "byte {i} of a batch");
        }
    }

    #[test]
    fn a_batch_stands_in_its_place_only() {
        let (bytes, mac) = encode_batch(&key(), &[0; 32], 99, &Noted::Files(vec![seen(1)]));
        assert_eq!(decode_batch(&key(), &mac, &bytes), Err(FormatError::NotAuthentic));
    }

    #[test]
    fn a_batch_that_was_not_finished_is_told_from_a_changed_one() {
        let (bytes, _) = encode_batch(&key(), &[0; 32], 99, &Noted::Files(vec![seen(1), seen(2)]));
        for len in 0..bytes.len() {
            assert_eq!(
                decode_batch(&key(), &[0; 32], &bytes[..len]),
                Err(FormatError::TooShort),
                "{len} bytes"
            );
        }
    }

    #[test]
    fn contents_are_compared_where_both_are_known() {
        let unknown = SeenFile::new(FileId([1; 16]), 7, 9, None);
        assert!(!seen(1).differs_in_content(&unknown));
        assert!(seen(1).differs_in_content(&seen(2)));
        let mut learned = unknown;
        learned.keep_mark_of(&seen(1));
        assert!(learned.differs_in_content(&seen(2)) && !learned.differs_in_content(&seen(1)));
    }
}
