//! The front of a data file: which file it is, and its seal (docs/FORMAT.md section 5.2).

use super::{FORMAT_VERSION, FormatError, Reader, layout::PREAMBLE_SIZE};
use crate::{
    crypto::{
        random,
        seal::{BlockSum, SealKey},
    },
    ids::FileId,
    units::PlainSize,
};

const MAGIC: &[u8; 8] = b"HUSHDATA";

/// Bytes before the MAC: what it authenticates.
const AUTHENTICATED_SIZE: usize = 224;

const SIZE: usize = PREAMBLE_SIZE as usize;

/// Where the state is, and its number for a file that is complete.
const STATE_OFFSET: usize = 10;
const SEALED: u8 = 2;

/// Where the number of seals is.
const SEAL_COUNT_OFFSET: usize = 64;

/// Where the size of the plaintext is.
const SIZE_OFFSET: usize = 72;

const FLAG_SPARSE: u8 = 1;
const FLAG_PLACED: u8 = 2;
const FLAG_NEXT_PLACE: u8 = 4;
const FLAG_CUTTING: u8 = 8;

/// Whether a file is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Being written, or left so by a crash: each block stands for itself.
    Open,
    /// Durable and complete: size, place and sum hold.
    Sealed,
}

/// What the name a file is opened by must match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The file's place; none for files with several names, and for open ones.
    pub current: Option<[u8; 32]>,
    /// The place a rename under way is about to give it.
    pub next: Option<[u8; 32]>,
}

impl Places {
    /// Tells whether a file with these places may be found at `place`.
    pub fn admit(&self, place: &[u8; 32]) -> bool {
        // Places are not secret: they are stored beside this in the clear.
        self.current.is_none() || self.current.as_ref() == Some(place) || self.next.as_ref() == Some(place)
    }
}

/// The preamble of a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// Being written, or complete.
    pub state: State,
    /// The file has holes.
    pub sparse: bool,
    /// Which file this is the content of.
    pub file: FileId,
    /// Binds the content to its data key.
    pub commitment: [u8; 32],
    /// How often the file was sealed.
    pub seal_count: u64,
    /// The plaintext size when it was last sealed; while `cutting`, the one it shall get.
    pub plain_size: PlainSize,
    /// A truncation to a size inside a block is under way.
    pub cutting: bool,
    /// The sum over the blocks when it was last sealed.
    pub sum: BlockSum,
    /// Where the file may be found.
    pub places: Places,
}

/// A preamble as read: only its shape was checked.
#[derive(Clone, Debug)]
pub struct UnverifiedPreamble {
    bytes: [u8; SIZE],
    file: FileId,
    commitment: [u8; 32],
}

impl UnverifiedPreamble {
    /// Decodes a preamble from the first [`PREAMBLE_SIZE`] bytes of a data file.
    ///
    /// # Errors
    ///
    /// The [`FormatError`] that names the first thing wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader(bytes);
        reader.magic_and_version(MAGIC)?;
        if !matches!(reader.take::<1>()?, [1 | 2]) {
            return Err(FormatError::OutOfRange("state"));
        }
        let [flags] = reader.take::<1>()?;
        if flags & !(FLAG_SPARSE | FLAG_PLACED | FLAG_NEXT_PLACE | FLAG_CUTTING) != 0 {
            return Err(FormatError::OutOfRange("flags"));
        }
        reader.take::<4>()?;
        let (file, commitment) = (FileId(reader.take()?), reader.take()?);
        let bytes = Reader(bytes).take::<SIZE>()?;
        Ok(UnverifiedPreamble {
            bytes,
            file,
            commitment,
        })
    }

    /// Returns the file's id, which says where its header is.
    pub fn file(&self) -> FileId {
        self.file
    }

    /// Tells whether the file says that it is complete.
    pub fn claims_to_be_sealed(&self) -> bool {
        self.bytes[STATE_OFFSET] == SEALED
    }

    /// Returns the size of plaintext that the file says it was last sealed with.
    pub fn claimed_size(&self) -> PlainSize {
        let field = self.bytes[SIZE_OFFSET..].first_chunk().expect("it is before the end");
        PlainSize(u64::from_le_bytes(*field))
    }

    /// Returns how often the file says that it was sealed.
    pub fn claimed_seal_count(&self) -> u64 {
        let bytes = self.bytes[SEAL_COUNT_OFFSET..][..8].try_into();
        u64::from_le_bytes(bytes.expect("eight bytes"))
    }

    /// Returns the commitment, to be compared with that of the unwrapped key before anything is opened.
    pub fn commitment(&self) -> &[u8; 32] {
        &self.commitment
    }

    /// Checks the MAC.
    ///
    /// # Errors
    ///
    /// [`FormatError::NotAuthentic`] when a field was changed; [`FormatError::OutOfRange`] when a field that must be zero is not.
    pub fn verify(&self, key: &SealKey) -> Result<Preamble, FormatError> {
        let (message, mac) = self.bytes.split_at(AUTHENTICATED_SIZE);
        if !key.check_preamble(message, mac.try_into().expect("the last 32 bytes")) {
            return Err(FormatError::NotAuthentic);
        }
        let mut reader = Reader(message);
        reader.take::<10>()?;
        let [state, flags] = reader.take::<2>()?;
        if reader.take::<4>()? != [0; 4] {
            return Err(FormatError::OutOfRange("reserved bytes"));
        }
        reader.take::<48>()?;
        let seal_count = reader.u64()?;
        let plain_size = PlainSize(reader.u64()?);
        let nonce = reader.take()?;
        let sum = key.unmask(&reader.take()?, &nonce);
        let (place, next) = (reader.take::<32>()?, reader.take::<32>()?);
        if reader.take::<32>()? != [0; 32] {
            return Err(FormatError::OutOfRange("reserved bytes"));
        }
        Ok(Preamble {
            state: if state == SEALED { State::Sealed } else { State::Open },
            sparse: flags & FLAG_SPARSE != 0,
            file: self.file,
            commitment: self.commitment,
            seal_count,
            plain_size,
            cutting: flags & FLAG_CUTTING != 0,
            sum,
            places: Places {
                current: (flags & FLAG_PLACED != 0).then_some(place),
                next: (flags & FLAG_NEXT_PLACE != 0).then_some(next),
            },
        })
    }
}

impl Preamble {
    /// Makes the preamble of a new file, open.
    pub fn new(file: FileId, commitment: [u8; 32]) -> Self {
        Preamble {
            state: State::Open,
            sparse: false,
            file,
            commitment,
            seal_count: 0,
            plain_size: PlainSize(0),
            cutting: false,
            sum: BlockSum::default(),
            places: Places::default(),
        }
    }

    /// Encodes the preamble, with a new nonce for the sum's mask.
    pub fn encode(&self, key: &SealKey) -> [u8; SIZE] {
        let nonce: [u8; 16] = random::bytes();
        let mut out = [0; SIZE];
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[10] = match self.state {
            State::Open => 1,
            State::Sealed => SEALED,
        };
        out[11] = u8::from(self.sparse) * FLAG_SPARSE
            + u8::from(self.places.current.is_some()) * FLAG_PLACED
            + u8::from(self.places.next.is_some()) * FLAG_NEXT_PLACE
            + u8::from(self.cutting) * FLAG_CUTTING;
        out[16..32].copy_from_slice(&self.file.0);
        out[32..64].copy_from_slice(&self.commitment);
        out[64..72].copy_from_slice(&self.seal_count.to_le_bytes());
        out[SIZE_OFFSET..80].copy_from_slice(&self.plain_size.0.to_le_bytes());
        out[80..96].copy_from_slice(&nonce);
        out[96..128].copy_from_slice(&key.mask(self.sum, &nonce));
        out[128..160].copy_from_slice(&self.places.current.unwrap_or_default());
        out[160..192].copy_from_slice(&self.places.next.unwrap_or_default());
        let mac = key.preamble_mac(&out[..AUTHENTICATED_SIZE]);
        out[AUTHENTICATED_SIZE..].copy_from_slice(&mac);
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        crypto::keys::{DataKey, KeyBytes},
        ids::DirectoryId,
        units::BlockIndex,
    };

    fn key() -> SealKey {
        DataKey::new(KeyBytes::copy_of(&[6; 32])).seal_key(FileId([1; 16]), 1)
    }

    fn sealed() -> Preamble {
        Preamble {
            state: State::Sealed,
            sparse: true,
            seal_count: 77,
            plain_size: PlainSize(123_456),
            sum: key().term(BlockIndex(4), &[2; 16]),
            places: Places {
                current: Some(key().place(DirectoryId([3; 16]), b"a")),
                next: Some(key().place(DirectoryId([3; 16]), b"b")),
            },
            ..Preamble::new(FileId([1; 16]), [5; 32])
        }
    }

    #[test]
    fn what_is_encoded_verifies_to_the_same() {
        let cutting = Preamble {
            cutting: true,
            ..Preamble::new(FileId([1; 16]), [5; 32])
        };
        for preamble in [sealed(), Preamble::new(FileId([1; 16]), [5; 32]), cutting] {
            let read = UnverifiedPreamble::decode(&preamble.encode(&key())).unwrap();
            assert_eq!(read.verify(&key()), Ok(preamble));
        }
    }

    #[test]
    fn no_byte_can_be_changed() {
        let good = sealed().encode(&key());
        for i in 0..good.len() {
            let mut bytes = good;
            bytes[i] ^= 1;
            let accepted = UnverifiedPreamble::decode(&bytes).is_ok_and(|preamble| preamble.verify(&key()).is_ok());
            assert!(!accepted, "byte {i}");
        }
    }

    #[test]
    fn two_encodings_of_one_sum_do_not_show_it() {
        let (one, two) = (sealed().encode(&key()), sealed().encode(&key()));
        assert_ne!(one[96..128], two[96..128]);
    }

    #[test]
    fn a_file_may_be_found_at_its_place_and_the_next_only() {
        let places = sealed().places;
        let place = |name: &[u8]| key().place(DirectoryId([3; 16]), name);
        assert!(places.admit(&place(b"a")));
        assert!(places.admit(&place(b"b")));
        assert!(!places.admit(&place(b"c")));
        assert!(Places::default().admit(&place(b"c")));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_give_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(preamble) = UnverifiedPreamble::decode(&bytes) {
                let _ = preamble.verify(&key());
            }
        }
    }
}
