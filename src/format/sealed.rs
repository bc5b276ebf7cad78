//! The header of a sealed file: which ways open it, and what follows (docs/FORMAT.md section 9).
//!
//! A way wraps the file's data key. Ways come and go without the content, which is bound to the commitment and not to them.

use serde::{Deserialize, Serialize};

use super::{
    FormatError,
    body::{self, Extension, FRONT_SIZE, Kind, MAC_SIZE, check_extensions, rises},
    keystore::{SlotId, SlotKind},
    layout::{BLOCK_SIZE_MAX, Layout},
};
use crate::{
    crypto::{block::Suite, keys::DataKey, seal::SealKey, wrap::Wrapped},
    ids::{FileId, KeyId, KeystoreId},
};

const KIND: Kind = Kind {
    magic: b"HUSHSEAL",
    version: 1,
    size_max: 1024 * 1024,
};

/// The most ways a file may have. All of the largest kind have room.
pub const WAYS_MAX: usize = 64;

/// The most pairs of the user's that the encryption context may have; hushfs adds one.
const CONTEXT_PAIRS_MAX: usize = 15;

/// The most bytes of what a keystore made of a way's secret, as for an epoch key.
const KEY_BLOB_SIZE_MAX: usize = 8192;

/// How the content is divided into blocks: there is no random access to save for, and large blocks are quicker.
pub const BLOCK_SIZE: u32 = BLOCK_SIZE_MAX;

/// The size of what stands behind the last block, in bytes.
pub const END_SIZE: usize = 32;

/// The size of the part of a header that tells how long all of it is, in bytes.
pub const SEALED_FRONT_SIZE: usize = FRONT_SIZE;

/// Tells whether a file that is too short for a header could be the beginning of a sealed one.
pub fn could_begin(bytes: &[u8]) -> bool {
    let len = bytes.len().min(KIND.magic.len());
    len > 0 && bytes[..len] == KIND.magic[..len]
}

/// A way to open a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// Its number.
    pub id: SlotId,
    /// What it takes.
    pub kind: WayKind,
    /// The data key, wrapped under the secret of the way.
    pub wrapped: Wrapped,
}

/// What a way takes. The order is that of the numbers in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WayKind {
    /// What a slot of a keystore takes. What a slot's kind says of believing it holds here too.
    Slot(SlotKind),
    /// A key of a keystore.
    Key {
        /// The keystore.
        keystore: KeystoreId,
        /// The key.
        key: KeyId,
        /// What it made of the way's secret.
        blob: Vec<u8>,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Body {
    file: FileId,
    suite: u16,
    block_size: u32,
    commitment: [u8; 32],
    context: Vec<(String, String)>,
    ways: Vec<Way>,
    extensions: Vec<Extension>,
}

/// A header as read: nothing in it is to be believed yet.
#[derive(Clone, Debug)]
pub struct UnverifiedSealedHeader {
    message: Vec<u8>,
    mac: [u8; MAC_SIZE],
    commitment: [u8; 32],
    header: SealedHeader,
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedHeader {
    /// Names the content.
    pub file: FileId,
    /// How the content is sealed.
    pub layout: Layout,
    /// The user's pairs of the encryption context, rising by name; not secret.
    pub context: Vec<(String, String)>,
    /// The ways to open the file, by rising number: any of them will do.
    pub ways: Vec<Way>,
}

impl UnverifiedSealedHeader {
    /// Returns how long a header is, by its first bytes.
    ///
    /// # Errors
    ///
    /// The [`FormatError`] that says why they are not those of a sealed file.
    pub fn size(front: &[u8; SEALED_FRONT_SIZE]) -> Result<usize, FormatError> {
        Ok(FRONT_SIZE + body::body_len(KIND, front)? + MAC_SIZE)
    }

    /// Decodes a header.
    ///
    /// # Errors
    ///
    /// The [`FormatError`] that names the first thing wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (body, rest) = body::decode::<Body>(KIND, bytes)?;
        let (message, mac) = body::split_mac(bytes, rest)?;
        let suite = Suite::from_number(body.suite).ok_or(FormatError::OutOfRange("suite"))?;
        check_extensions(&body.extensions, &[])?;
        let header = SealedHeader {
            file: body.file,
            layout: Layout::new(suite, body.block_size)?,
            context: body.context,
            ways: body.ways,
        };
        header.check()?;
        Ok(UnverifiedSealedHeader {
            message: message.to_vec(),
            mac,
            commitment: body.commitment,
            header,
        })
    }

    /// Returns what the header says. Whoever can write the file can make it say anything.
    pub fn claims(&self) -> &SealedHeader {
        &self.header
    }

    /// Checks the commitment to a data key, and then with it the rest.
    ///
    /// # Errors
    ///
    /// [`FormatError::NotAuthentic`] when the header was changed, or the key is another file's.
    pub fn verify(self, key: &DataKey) -> Result<SealedHeader, FormatError> {
        let header = self.header;
        // What is compared stands in the file; without the key nobody can make it.
        let commits = key.commitment(header.file, header.layout.suite().number()) == self.commitment;
        if !commits || !header.seal_key(key).check_sealed_header(&self.message, &self.mac) {
            return Err(FormatError::NotAuthentic);
        }
        Ok(header)
    }
}

impl SealedHeader {
    /// Encodes the header.
    ///
    /// # Errors
    ///
    /// [`FormatError::OutOfRange`] when there are no ways, or too many, or too much in the encryption context.
    pub fn encode(&self, key: &DataKey) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let suite = self.layout.suite().number();
        let body = Body {
            file: self.file,
            suite,
            block_size: u32::try_from(self.layout.block_size()).expect("a block has at most 65536 bytes"),
            commitment: key.commitment(self.file, suite),
            context: self.context.clone(),
            ways: self.ways.clone(),
            extensions: Vec::new(),
        };
        let mut out = body::encode(KIND, &body)?;
        let mac = self.seal_key(key).sealed_header_mac(&out);
        out.extend_from_slice(&mac);
        Ok(out)
    }

    /// Derives the key of the header's MAC and of the end of the file.
    pub fn seal_key(&self, key: &DataKey) -> SealKey {
        key.seal_key(self.file, self.layout.suite().number())
    }

    /// Returns the lowest number that no way has.
    pub fn free_way(&self) -> SlotId {
        (1..)
            .map(SlotId)
            .find(|id| self.ways.iter().all(|way| way.id != *id))
            .expect("of more numbers than ways one is free")
    }

    fn check(&self) -> Result<(), FormatError> {
        if !(1..=WAYS_MAX).contains(&self.ways.len()) {
            return Err(FormatError::OutOfRange("number of ways"));
        }
        if self.context.len() > CONTEXT_PAIRS_MAX {
            return Err(FormatError::OutOfRange("number of pairs in the encryption context"));
        }
        if !rises(self.ways.iter().map(|way| way.id)) || !rises(self.context.iter().map(|(name, _)| name)) {
            return Err(FormatError::NotCanonical);
        }
        self.ways.iter().try_for_each(|way| match &way.kind {
            WayKind::Slot(kind) => kind.check(),
            WayKind::Key { blob, .. } if blob.len() > KEY_BLOB_SIZE_MAX => {
                Err(FormatError::OutOfRange("size of a wrapped key"))
            }
            WayKind::Key { .. } => Ok(()),
        })
    }
}

/// Returns the additional data of a way's wrap: it opens in this file and way only.
pub fn way_aad(file: FileId, way: SlotId) -> Vec<u8> {
    of_way(b"hushfs v1 sealed file", file, way)
}

/// Returns the additional data of what is sealed to a recipient: it opens in this file and way only.
pub fn recipient_way_aad(file: FileId, way: SlotId) -> Vec<u8> {
    of_way(b"hushfs v1 sealed file recipient", file, way)
}

/// Returns the purpose of what a remote key wraps for a way: it opens in this file and way only.
pub fn remote_way_purpose(file: FileId, way: SlotId) -> Vec<u8> {
    of_way(b"hushfs v1 sealed file remote", file, way)
}

fn of_way(purpose: &[u8], file: FileId, way: SlotId) -> Vec<u8> {
    [purpose, &file.0, &way.0.to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::{keys::KeyBytes, wrap::WRAPPED_SIZE};

    fn key() -> DataKey {
        DataKey::new(KeyBytes::copy_of(&[1; 32]))
    }

    fn header() -> SealedHeader {
        let wrapped = Wrapped([2; WRAPPED_SIZE]);
        let way = |id, kind| Way {
            id: SlotId(id),
            kind,
            wrapped: wrapped.clone(),
        };
        SealedHeader {
            file: FileId([3; 16]),
            layout: Layout::new(Suite::Aes256GcmSiv, BLOCK_SIZE).unwrap(),
            context: vec![("department".into(), "sales".into())],
            ways: vec![
                way(1, WayKind::Slot(SlotKind::KeyFile)),
                way(
                    3,
                    WayKind::Key {
                        keystore: KeystoreId([4; 16]),
                        key: KeyId([5; 16]),
                        blob: vec![6; 100],
                    },
                ),
            ],
        }
    }

    #[test]
    fn what_is_encoded_verifies_to_the_same() {
        let bytes = header().encode(&key()).unwrap();
        let front = bytes[..SEALED_FRONT_SIZE].try_into().unwrap();
        assert_eq!(UnverifiedSealedHeader::size(&front), Ok(bytes.len()));
        let read = UnverifiedSealedHeader::decode(&bytes).unwrap();
        assert_eq!(read.verify(&key()), Ok(header()));
    }

    #[test]
    fn no_byte_can_be_changed_or_missing() {
        let good = header().encode(&key()).unwrap();
        let accepted =
            |bytes: &[u8]| UnverifiedSealedHeader::decode(bytes).is_ok_and(|header| header.verify(&key()).is_ok());
        for i in 0..good.len() {
            let mut bytes = good.clone();
            bytes[i] ^= 1;
            assert!(!accepted(&bytes), "byte {i}");
            assert!(!accepted(&good[..i]), "cut to {i}");
        }
        assert!(!accepted(&[good.as_slice(), b"\0"].concat()));
    }

    #[test]
    fn another_files_key_is_refused() {
        let bytes = header().encode(&key()).unwrap();
        let other = DataKey::new(KeyBytes::copy_of(&[9; 32]));
        assert_eq!(
            UnverifiedSealedHeader::decode(&bytes).unwrap().verify(&other),
            Err(FormatError::NotAuthentic)
        );
    }

    #[test]
    fn ways_and_pairs_are_counted_and_sorted() {
        let fault = |change: fn(&mut SealedHeader)| {
            let mut header = header();
            change(&mut header);
            header.encode(&key()).unwrap_err()
        };
        assert_eq!(fault(|h| h.ways.clear()), FormatError::OutOfRange("number of ways"));
        assert_eq!(fault(|h| h.ways.reverse()), FormatError::NotCanonical);
        assert_eq!(
            fault(|h| h.ways = (1..=65)
                .map(|id| Way {
                    id: SlotId(id),
                    ..h.ways[0].clone()
                })
                .collect()),
            FormatError::OutOfRange("number of ways")
        );
        assert_eq!(
            fault(|h| h.context = vec![("a".into(), "b".into()); 2]),
            FormatError::NotCanonical
        );
        assert_eq!(
            fault(|h| h.context = (10..26).map(|i| (i.to_string(), String::new())).collect()),
            FormatError::OutOfRange("number of pairs in the encryption context")
        );
        assert_eq!(header().free_way(), SlotId(2));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_give_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = UnverifiedSealedHeader::decode(&bytes);
        }

        #[test]
        fn any_body_decodes_or_gives_an_error(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = header().encode(&key()).unwrap()[..12].to_vec();
            bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&body);
            bytes.extend_from_slice(&[0; MAC_SIZE]);
            if let Ok(header) = UnverifiedSealedHeader::decode(&bytes) {
                prop_assert!(header.verify(&key()).is_err());
            }
        }
    }
}
