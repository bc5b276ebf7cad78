//! The header sidecar: a file's wrapped data key (docs/FORMAT.md section 5.1).
//!
//! It is written whole before the first byte of the data file and never changes when the data change, so any version of it opens any
//! version of the data.

use super::{FORMAT_VERSION, FormatError, Reader};
use crate::{
    crypto::{
        OpenError,
        block::Suite,
        keys::{DataKey, KeyBytes, WrappingKey},
        wrap::{WRAPPED_SIZE, Wrapped},
    },
    ids::{DirectoryId, Epoch, FileId, VaultId},
};

const MAGIC: &[u8; 8] = b"HUSHHEAD";

const BODY_ENCODING: u16 = 1;

/// Bytes that the wrap authenticates beside the key: all before it.
const AUTHENTICATED_SIZE: usize = 86;

const BODY_SIZE: u32 = (AUTHENTICATED_SIZE - 16 + WRAPPED_SIZE) as u32;

/// The size of a header, in bytes.
pub const HEADER_SIZE: usize = AUTHENTICATED_SIZE + WRAPPED_SIZE;

const WRAP_PURPOSE: &[u8] = b"hushfs v1 header";

/// A header as read: nothing in it is to be believed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnverifiedHeader {
    fields: Fields,
    wrapped: Wrapped,
}

/// What a header says of its file, beside the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    /// The cipher of the file's blocks.
    pub suite: Suite,
    /// The epoch whose vault key wraps the data key.
    pub epoch: Epoch,
    /// The file's id.
    pub file: FileId,
    /// The directory the header lies in.
    pub directory: DirectoryId,
    /// Binds the data file to the data key.
    pub commitment: [u8; 32],
}

/// A header whose wrap opened: its fields are authentic and its commitment matches its key.
#[derive(Debug)]
pub struct FileHeader {
    /// What it says of its file.
    pub fields: Fields,
    /// The file's data key.
    pub data_key: DataKey,
}

impl UnverifiedHeader {
    /// Decodes a header.
    ///
    /// # Errors
    ///
    /// The [`FormatError`] that names the first thing wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader(bytes);
        reader.magic_and_version(MAGIC)?;
        if reader.u16()? != BODY_ENCODING {
            return Err(FormatError::OutOfRange("body encoding"));
        }
        if reader.u32()? != BODY_SIZE {
            return Err(FormatError::OutOfRange("length of the body"));
        }
        let fields = Fields {
            suite: Suite::from_number(reader.u16()?).ok_or(FormatError::OutOfRange("suite"))?,
            epoch: Epoch(reader.u32()?),
            file: FileId(reader.take()?),
            directory: DirectoryId(reader.take()?),
            commitment: reader.take()?,
        };
        let wrapped = Wrapped(reader.take()?);
        reader.end()?;
        Ok(UnverifiedHeader { fields, wrapped })
    }

    /// Returns the epoch the header says its key is wrapped in: needed before anything can be checked.
    pub fn epoch(&self) -> Epoch {
        self.fields.epoch
    }

    /// Unwraps the data key, which authenticates every field, and checks the commitment to it.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when a field was changed or the header is another vault's.
    pub fn verify(&self, vault: VaultId, key: &WrappingKey) -> Result<FileHeader, OpenError> {
        let data_key = key.unwrap(&additional_data(vault, &self.fields), &self.wrapped, |bytes| {
            DataKey::new(KeyBytes::copy_of(bytes))
        })?;
        // The fields are authentic now, so this can only differ by a fault of the writer; it costs little to know.
        if data_key.commitment(self.fields.file, self.fields.suite.number()) != self.fields.commitment {
            return Err(OpenError);
        }
        Ok(FileHeader {
            fields: self.fields,
            data_key,
        })
    }
}

impl FileHeader {
    /// Makes the header of a file that gets this data key.
    pub fn new(suite: Suite, epoch: Epoch, file: FileId, directory: DirectoryId, data_key: DataKey) -> Self {
        FileHeader {
            fields: Fields {
                suite,
                epoch,
                file,
                directory,
                commitment: data_key.commitment(file, suite.number()),
            },
            data_key,
        }
    }

    /// Encodes the header, wrapping the data key under `key`, which must be that of the header's epoch.
    pub fn encode(&self, vault: VaultId, key: &WrappingKey) -> [u8; HEADER_SIZE] {
        let mut out = [0; HEADER_SIZE];
        out[..AUTHENTICATED_SIZE].copy_from_slice(&encode_fields(&self.fields));
        let wrapped = key.wrap(&additional_data(vault, &self.fields), self.data_key.as_bytes());
        out[AUTHENTICATED_SIZE..].copy_from_slice(&wrapped.0);
        out
    }
}

fn encode_fields(fields: &Fields) -> [u8; AUTHENTICATED_SIZE] {
    let mut out = [0; AUTHENTICATED_SIZE];
    out[..8].copy_from_slice(MAGIC);
    out[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    out[10..12].copy_from_slice(&BODY_ENCODING.to_le_bytes());
    out[12..16].copy_from_slice(&BODY_SIZE.to_le_bytes());
    out[16..18].copy_from_slice(&fields.suite.number().to_le_bytes());
    out[18..22].copy_from_slice(&fields.epoch.0.to_le_bytes());
    out[22..38].copy_from_slice(&fields.file.0);
    out[38..54].copy_from_slice(&fields.directory.0);
    out[54..86].copy_from_slice(&fields.commitment);
    out
}

/// Returns what the wrap of a data key authenticates.
fn additional_data(vault: VaultId, fields: &Fields) -> Vec<u8> {
    [WRAP_PURPOSE, &vault.0, &encode_fields(fields)].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::random;

    const VAULT: VaultId = VaultId([1; 16]);

    fn key() -> WrappingKey {
        WrappingKey::new(KeyBytes::copy_of(&[9; 32]))
    }

    fn encoded() -> [u8; HEADER_SIZE] {
        let data_key = DataKey::new(random::key());
        FileHeader::new(
            Suite::Aes256GcmSiv,
            Epoch(3),
            FileId([4; 16]),
            DirectoryId([5; 16]),
            data_key,
        )
        .encode(VAULT, &key())
    }

    #[test]
    fn a_header_gives_its_key_and_fields_back() {
        let bytes = encoded();
        assert_eq!(bytes.len(), 182);
        let header = UnverifiedHeader::decode(&bytes).unwrap().verify(VAULT, &key()).unwrap();
        assert_eq!(header.fields.epoch, Epoch(3));
        assert_eq!(header.fields.file, FileId([4; 16]));
        assert_eq!(header.fields.directory, DirectoryId([5; 16]));
    }

    #[test]
    fn no_byte_of_a_header_can_be_changed() {
        let good = encoded();
        for i in 0..good.len() {
            let mut bytes = good;
            bytes[i] ^= 1;
            let accepted = UnverifiedHeader::decode(&bytes).is_ok_and(|header| header.verify(VAULT, &key()).is_ok());
            assert!(!accepted, "byte {i}");
        }
    }

    #[test]
    fn a_header_of_another_vault_or_epoch_does_not_open() {
        let header = UnverifiedHeader::decode(&encoded()).unwrap();
        assert!(header.verify(VaultId([2; 16]), &key()).is_err());
        assert!(
            header
                .verify(VAULT, &WrappingKey::new(KeyBytes::copy_of(&[8; 32])))
                .is_err()
        );
    }

    #[test]
    fn each_malformed_header_has_its_error() {
        let good = encoded();
        let with = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            UnverifiedHeader::decode(&bytes).unwrap_err()
        };
        assert_eq!(with(0, b'X'), FormatError::NotOne);
        assert_eq!(with(8, 2), FormatError::Newer(2));
        assert_eq!(with(10, 0), FormatError::OutOfRange("body encoding"));
        assert_eq!(with(12, 0), FormatError::OutOfRange("length of the body"));
        assert_eq!(with(16, 77), FormatError::OutOfRange("suite"));
        assert_eq!(UnverifiedHeader::decode(&good[..181]), Err(FormatError::TooShort));
        assert_eq!(
            UnverifiedHeader::decode(&[&good[..], b"x"].concat()),
            Err(FormatError::TrailingBytes)
        );
        assert_eq!(UnverifiedHeader::decode(b""), Err(FormatError::TooShort));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_give_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = UnverifiedHeader::decode(&bytes);
        }
    }
}
