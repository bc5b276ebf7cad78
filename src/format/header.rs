//! The header sidecar: a file's wrapped data key (docs/FORMAT.md section 5.1).
//!
//! It is written whole before the first byte of the data file and never changes when the data change, so any version of it opens any
//! version of the data.
//!
//! There are two forms. In the first, of version 1, the data key is wrapped under the key of an epoch, the bucket key. In the second it is wrapped under
//! that key and a secret of the file's own, which only the custodian of the epoch's key opens, for this file: no bucket key, and a call for each file.

use std::sync::Arc;

use super::{FORMAT_VERSION, FormatError, Reader};
use crate::{
    crypto::{
        OpenError,
        block::Suite,
        keys::{DataKey, FileSecret, KeyBytes, WrappingKey},
        wrap::{WRAPPED_SIZE, Wrapped},
    },
    ids::{DirectoryId, Epoch, FileId, KeyId, VaultId},
};

const MAGIC: &[u8; 8] = b"HUSHHEAD";

/// The version of a header without a bucket key, which an older hushfs says a newer one made.
const OWN_VERSION: u16 = 2;

const BODY_ENCODING: u16 = 1;

/// Bytes before the body: magic, version, encoding, length.
const FRONT_SIZE: usize = 16;

/// Bytes that the wrap of version 1 authenticates beside the key: all before it. Those of version 2 begin with them.
const FIELDS_END: usize = 86;

/// Where the custodian's blob begins in version 2: after the key's id and the blob's length.
const BLOB_AT: usize = FIELDS_END + 16 + 4;

/// The largest blob of a custodian, as in the vault header.
const BLOB_SIZE_MAX: usize = super::vault::BLOB_SIZE_MAX;

/// The size of a header with a bucket key, in bytes.
pub const HEADER_SIZE: usize = FIELDS_END + WRAPPED_SIZE;

/// The largest header, in bytes.
pub const HEADER_SIZE_MAX: usize = BLOB_AT + BLOB_SIZE_MAX + WRAPPED_SIZE;

const WRAP_PURPOSE: &[u8] = b"hushfs v1 header";
const OWN_WRAP_PURPOSE: &[u8] = b"hushfs v2 header";

/// A header as read: nothing in it is to be believed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnverifiedHeader {
    fields: Fields,
    own: Option<OwnWrap>,
    wrapped: Wrapped,
}

/// What a header says of its file, beside the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    /// The cipher of the file's blocks.
    pub suite: Suite,
    /// The epoch whose vault key wraps the data key; without a bucket key, an epoch of the key whose custodian does.
    pub epoch: Epoch,
    /// The file's id.
    pub file: FileId,
    /// The directory the header lies in.
    pub directory: DirectoryId,
    /// Binds the data file to the data key.
    pub commitment: [u8; 32],
}

/// A secret of one file's own, as a custodian has wrapped it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnWrap {
    key: KeyId,
    blob: Vec<u8>,
}

impl OwnWrap {
    /// Takes what the custodian of a key has made.
    ///
    /// # Errors
    ///
    /// [`FormatError::OutOfRange`] when it is empty or too long.
    pub fn new(key: KeyId, blob: Vec<u8>) -> Result<Self, FormatError> {
        if blob.is_empty() || blob.len() > BLOB_SIZE_MAX {
            return Err(FormatError::OutOfRange("size of a wrapped key"));
        }
        Ok(OwnWrap { key, blob })
    }

    /// Returns the key it is under.
    pub fn key(&self) -> KeyId {
        self.key
    }

    /// Returns what the custodian made.
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }
}

/// A secret of one file's own, and what the custodian opens to it.
#[derive(Debug)]
pub struct OwnKey {
    /// Wraps the file's data key, together with the key of the epoch.
    pub secret: FileSecret,
    /// What the header has of it.
    pub wrap: OwnWrap,
}

/// A header whose wrap opened: its fields are authentic and its commitment matches its key.
#[derive(Debug)]
pub struct FileHeader {
    /// What it says of its file.
    pub fields: Fields,
    /// The file's data key.
    pub data_key: DataKey,
    /// What wraps that instead of the key of the epoch, where the file has no bucket key.
    pub own: Option<Arc<OwnKey>>,
}

impl UnverifiedHeader {
    /// Decodes a header.
    ///
    /// # Errors
    ///
    /// The [`FormatError`] that names the first thing wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader(bytes);
        let version = reader.magic_and_version_to(MAGIC, OWN_VERSION)?;
        if reader.u16()? != BODY_ENCODING {
            return Err(FormatError::OutOfRange("body encoding"));
        }
        let body_len = reader.u32()? as usize;
        let sizes = match version {
            FORMAT_VERSION => HEADER_SIZE..=HEADER_SIZE,
            _ => BLOB_AT + 1 + WRAPPED_SIZE..=HEADER_SIZE_MAX,
        };
        if !sizes.contains(&body_len.saturating_add(FRONT_SIZE)) {
            return Err(FormatError::OutOfRange("length of the body"));
        }
        let fields = Fields {
            suite: Suite::from_number(reader.u16()?).ok_or(FormatError::OutOfRange("suite"))?,
            epoch: Epoch(reader.u32()?),
            file: FileId(reader.take()?),
            directory: DirectoryId(reader.take()?),
            commitment: reader.take()?,
        };
        let own = match version {
            FORMAT_VERSION => None,
            _ => Some(decode_own(&mut reader, FRONT_SIZE + body_len)?),
        };
        let wrapped = Wrapped(reader.take()?);
        reader.end()?;
        Ok(UnverifiedHeader { fields, own, wrapped })
    }

    /// Returns the epoch the header says its key is wrapped in: needed before anything can be checked.
    pub fn epoch(&self) -> Epoch {
        self.fields.epoch
    }

    /// Returns the file that the header says it is of.
    pub fn file(&self) -> FileId {
        self.fields.file
    }

    /// Returns the directory that the header says it is for.
    pub fn directory(&self) -> DirectoryId {
        self.fields.directory
    }

    /// Returns the cipher that the header says the file's blocks have.
    pub fn suite(&self) -> Suite {
        self.fields.suite
    }

    /// Returns what a custodian is to be asked with, if the header says that the file has no bucket key.
    pub fn own(&self) -> Option<&OwnWrap> {
        self.own.as_ref()
    }

    /// Unwraps the data key under that of the epoch, which authenticates every field, and checks the commitment to it.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when a field was changed, the header is another vault's, or it has no bucket key.
    pub fn verify(&self, vault: VaultId, key: &WrappingKey) -> Result<FileHeader, OpenError> {
        match self.own {
            None => self.unwrap(vault, key, None),
            Some(_) => Err(OpenError),
        }
    }

    /// As [`verify`](Self::verify), under the secret of the file's own too, which was made from what this header says.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when a field was changed, the header is another vault's, or the secret is from another header.
    pub fn verify_own(&self, vault: VaultId, key: &WrappingKey, own: &Arc<OwnKey>) -> Result<FileHeader, OpenError> {
        if self.own.as_ref() != Some(&own.wrap) {
            return Err(OpenError);
        }
        self.unwrap(vault, &own.secret.file_wrapping_key(key), Some(own.clone()))
    }

    fn unwrap(&self, vault: VaultId, key: &WrappingKey, own: Option<Arc<OwnKey>>) -> Result<FileHeader, OpenError> {
        let additional_data = additional_data(vault, &self.fields, self.own.as_ref());
        let data_key = key.unwrap(&additional_data, &self.wrapped, |bytes| {
            DataKey::new(KeyBytes::copy_of(bytes))
        })?;
        // The fields are authentic now, so this can only differ by a fault of the writer; it costs little to know.
        if data_key.commitment(self.fields.file, self.fields.suite.number()) != self.fields.commitment {
            return Err(OpenError);
        }
        Ok(FileHeader {
            fields: self.fields,
            data_key,
            own,
        })
    }
}

fn decode_own(reader: &mut Reader<'_>, size: usize) -> Result<OwnWrap, FormatError> {
    let key = KeyId(reader.take()?);
    let blob_len = reader.u32()? as usize;
    if BLOB_AT + blob_len + WRAPPED_SIZE != size {
        return Err(FormatError::OutOfRange("size of a wrapped key"));
    }
    let (blob, rest) = reader.0.split_at_checked(blob_len).ok_or(FormatError::TooShort)?;
    reader.0 = rest;
    OwnWrap::new(key, blob.to_vec())
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
            own: None,
        }
    }

    /// Encodes the header. The data key is wrapped under `key`, which must be that of the header's epoch, and under the file's own secret with it, where it
    /// has one.
    pub fn encode(&self, vault: VaultId, key: &WrappingKey) -> Vec<u8> {
        let own = self.own.as_deref();
        let mut out = encode_front(&self.fields, own.map(|own| &own.wrap));
        let additional_data = additional_data(vault, &self.fields, own.map(|own| &own.wrap));
        let wrapped = match own {
            None => key.wrap(&additional_data, self.data_key.as_bytes()),
            Some(own) => {
                let with_secret = own.secret.file_wrapping_key(key);
                with_secret.wrap(&additional_data, self.data_key.as_bytes())
            }
        };
        out.extend_from_slice(&wrapped.0);
        out
    }
}

/// Encodes all that stands before the wrap.
fn encode_front(fields: &Fields, own: Option<&OwnWrap>) -> Vec<u8> {
    let (version, size) = match own {
        None => (FORMAT_VERSION, HEADER_SIZE),
        Some(own) => (OWN_VERSION, BLOB_AT + own.blob.len() + WRAPPED_SIZE),
    };
    let body_len = u32::try_from(size - FRONT_SIZE).expect("a header is smaller than 16 KiB");
    let mut out = Vec::with_capacity(size);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&BODY_ENCODING.to_le_bytes());
    out.extend_from_slice(&body_len.to_le_bytes());
    out.extend_from_slice(&fields.suite.number().to_le_bytes());
    out.extend_from_slice(&fields.epoch.0.to_le_bytes());
    out.extend_from_slice(&fields.file.0);
    out.extend_from_slice(&fields.directory.0);
    out.extend_from_slice(&fields.commitment);
    if let Some(own) = own {
        let blob_len = u32::try_from(own.blob.len()).expect("a blob is at most 8 KiB");
        out.extend_from_slice(&own.key.0);
        out.extend_from_slice(&blob_len.to_le_bytes());
        out.extend_from_slice(&own.blob);
    }
    out
}

/// Returns what the wrap of a data key authenticates.
fn additional_data(vault: VaultId, fields: &Fields, own: Option<&OwnWrap>) -> Vec<u8> {
    let purpose = own.map_or(WRAP_PURPOSE, |_| OWN_WRAP_PURPOSE);
    [purpose, &vault.0, &encode_front(fields, own)].concat()
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

    fn header() -> FileHeader {
        let data_key = DataKey::new(random::key());
        FileHeader::new(
            Suite::Aes256GcmSiv,
            Epoch(3),
            FileId([4; 16]),
            DirectoryId([5; 16]),
            data_key,
        )
    }

    fn encoded() -> Vec<u8> {
        header().encode(VAULT, &key())
    }

    /// The secret of a file, with what a custodian made of it.
    fn own(blob_len: usize) -> Arc<OwnKey> {
        Arc::new(OwnKey {
            secret: FileSecret::new(KeyBytes::copy_of(&[6; 32])),
            wrap: OwnWrap::new(KeyId([7; 16]), vec![8; blob_len]).unwrap(),
        })
    }

    fn encoded_own(own: &Arc<OwnKey>) -> Vec<u8> {
        let header = FileHeader {
            own: Some(own.clone()),
            ..header()
        };
        header.encode(VAULT, &key())
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
            let mut bytes = good.clone();
            bytes[i] ^= 1;
            let accepted = UnverifiedHeader::decode(&bytes).is_ok_and(|header| header.verify(VAULT, &key()).is_ok());
            assert!(!accepted, "byte {i}");
        }
    }

    #[test]
    fn a_header_without_a_bucket_key_opens_by_the_secret_of_the_file_and_the_key_of_the_epoch() {
        for blob_len in [1, 184, BLOB_SIZE_MAX] {
            let own = own(blob_len);
            let bytes = encoded_own(&own);
            assert_eq!(bytes.len(), 202 + blob_len);
            let decoded = UnverifiedHeader::decode(&bytes).unwrap();
            assert_eq!(decoded.own(), Some(&own.wrap));
            assert_eq!(decoded.epoch(), Epoch(3));
            let with_secret = own.secret.file_wrapping_key(&key());
            assert!(
                decoded.verify(VAULT, &key()).is_err(),
                "the epoch's key alone does not open it"
            );
            assert!(
                decoded.verify(VAULT, &with_secret).is_err(),
                "nor does it pass as one with a bucket key"
            );
            let header = decoded.verify_own(VAULT, &key(), &own).unwrap();
            assert_eq!(header.fields.directory, DirectoryId([5; 16]));
            assert_eq!(header.encode(VAULT, &key()).len(), bytes.len());
        }
        assert_eq!(HEADER_SIZE_MAX, 202 + BLOB_SIZE_MAX);
    }

    #[test]
    fn who_has_a_secret_made_for_a_file_cannot_make_its_header_without_the_key_of_the_epoch() {
        let own = own(40);
        let header = FileHeader {
            own: Some(own.clone()),
            ..header()
        };
        for guessed in [[0; 32], *own.secret.as_bytes()] {
            let forged = header.encode(VAULT, &WrappingKey::new(KeyBytes::copy_of(&guessed)));
            let decoded = UnverifiedHeader::decode(&forged).unwrap();
            assert!(decoded.verify_own(VAULT, &key(), &own).is_err());
        }
        let fields = encode_front(&header.fields, Some(&own.wrap));
        let additional_data = additional_data(VAULT, &header.fields, Some(&own.wrap));
        let alone = WrappingKey::new(KeyBytes::copy_of(own.secret.as_bytes()));
        let wrapped = alone.wrap(&additional_data, header.data_key.as_bytes());
        let forged = [&fields[..], &wrapped.0].concat();
        let decoded = UnverifiedHeader::decode(&forged).unwrap();
        assert!(decoded.verify_own(VAULT, &key(), &own).is_err());
    }

    #[test]
    fn no_byte_of_a_header_without_a_bucket_key_can_be_changed() {
        let own = own(40);
        let good = encoded_own(&own);
        for i in 0..good.len() {
            let mut bytes = good.clone();
            bytes[i] ^= 1;
            let accepted = UnverifiedHeader::decode(&bytes).is_ok_and(|header| {
                // Whoever opens it asks with what the header says, so the secret is tried with that.
                let as_named = header.own().map(|wrap| OwnKey {
                    secret: FileSecret::new(KeyBytes::copy_of(own.secret.as_bytes())),
                    wrap: wrap.clone(),
                });
                as_named.is_some_and(|own| header.verify_own(VAULT, &key(), &Arc::new(own)).is_ok())
                    || header.verify(VAULT, &key()).is_ok()
            });
            assert!(!accepted, "byte {i}");
        }
        for len in 0..good.len() {
            assert!(UnverifiedHeader::decode(&good[..len]).is_err(), "cut to {len}");
        }
        assert!(UnverifiedHeader::decode(&[&good[..], b"x"].concat()).is_err());
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
            let mut bytes = good.clone();
            bytes[at] = value;
            UnverifiedHeader::decode(&bytes).unwrap_err()
        };
        assert_eq!(with(0, b'X'), FormatError::NotOne);
        assert_eq!(with(8, 3), FormatError::Newer(3));
        assert_eq!(with(8, 2), FormatError::OutOfRange("length of the body"));
        assert_eq!(with(10, 0), FormatError::OutOfRange("body encoding"));
        assert_eq!(with(12, 0), FormatError::OutOfRange("length of the body"));
        assert_eq!(with(16, 77), FormatError::OutOfRange("suite"));
        assert_eq!(UnverifiedHeader::decode(&good[..181]), Err(FormatError::TooShort));
        assert_eq!(
            UnverifiedHeader::decode(&[&good[..], b"x"].concat()),
            Err(FormatError::TrailingBytes)
        );
        assert_eq!(UnverifiedHeader::decode(b""), Err(FormatError::TooShort));
        let own = encoded_own(&own(9));
        let with = |at: usize, value: u8| {
            let mut bytes = own.clone();
            bytes[at] = value;
            UnverifiedHeader::decode(&bytes).unwrap_err()
        };
        assert_eq!(with(8, 1), FormatError::OutOfRange("length of the body"));
        assert_eq!(with(12, own[12] + 1), FormatError::OutOfRange("size of a wrapped key"));
        assert_eq!(with(15, 1), FormatError::OutOfRange("length of the body"));
        assert_eq!(with(102, 8), FormatError::OutOfRange("size of a wrapped key"));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_give_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = UnverifiedHeader::decode(&bytes);
        }
    }
}
