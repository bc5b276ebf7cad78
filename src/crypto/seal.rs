//! The pseudorandom function behind a file's seal (docs/FORMAT.md section 5.2).

use std::ops::{AddAssign, SubAssign};

use super::{
    TAG_SIZE,
    keys::{KeyBytes, MacKey},
};
use crate::{
    ids::DirectoryId,
    units::{BlockIndex, PlainSize},
};

/// Makes and checks everything in a preamble, or around the blocks of a sealed file, that must be unforgeable.
///
/// The first byte of each input says what it is for, so that no two uses share one.
#[derive(Debug)]
pub struct SealKey(MacKey);

/// The sum of the terms of a file's blocks: changing a block costs one subtraction and one addition.
///
/// Four lanes, each modulo 2^64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockSum([u64; 4]);

impl SealKey {
    /// Gives 32 derived bytes this role.
    pub(super) fn new(key: KeyBytes) -> Self {
        SealKey(MacKey::new(key))
    }

    /// Returns the MAC of a preamble.
    pub fn preamble_mac(&self, bytes: &[u8]) -> [u8; 32] {
        self.prf(1, &[bytes])
    }

    /// Tells in constant time whether `mac` is that of the preamble.
    pub fn check_preamble(&self, bytes: &[u8], mac: &[u8; 32]) -> bool {
        blake3::Hash::from_bytes(self.preamble_mac(bytes)) == blake3::Hash::from_bytes(*mac)
    }

    /// Returns what a block adds to the sum.
    pub fn term(&self, index: BlockIndex, tag: &[u8; TAG_SIZE]) -> BlockSum {
        // As `prf` would, in one piece, which is quicker: this runs for every block written.
        let mut input = [2; 1 + 8 + TAG_SIZE];
        input[1..9].copy_from_slice(&index.0.to_le_bytes());
        input[9..].copy_from_slice(tag);
        BlockSum::from_bytes(&self.0.mac(&input))
    }

    /// Hides a sum, for storage.
    pub fn mask(&self, sum: BlockSum, nonce: &[u8; 16]) -> [u8; 32] {
        let mut masked = BlockSum::from_bytes(&self.prf(3, &[nonce]));
        masked += sum;
        masked.to_bytes()
    }

    /// Recovers a stored sum.
    pub fn unmask(&self, masked: &[u8; 32], nonce: &[u8; 16]) -> BlockSum {
        let mut sum = BlockSum::from_bytes(masked);
        sum -= BlockSum::from_bytes(&self.prf(3, &[nonce]));
        sum
    }

    /// Returns what binds the file to a name in a directory.
    pub fn place(&self, directory: DirectoryId, name: &[u8]) -> [u8; 32] {
        self.prf(4, &[&directory.0, name])
    }

    /// Returns the MAC of the header of a sealed file.
    pub fn sealed_header_mac(&self, bytes: &[u8]) -> [u8; 32] {
        self.prf(5, &[bytes])
    }

    /// Tells in constant time whether `mac` is that of the header of a sealed file.
    pub fn check_sealed_header(&self, bytes: &[u8], mac: &[u8; 32]) -> bool {
        blake3::Hash::from_bytes(self.sealed_header_mac(bytes)) == blake3::Hash::from_bytes(*mac)
    }

    /// Returns what ends a sealed file: nothing was cut off, and nothing put behind.
    pub fn end_mac(&self, size: PlainSize, sum: BlockSum) -> [u8; 32] {
        self.prf(6, &[&size.0.to_le_bytes(), &sum.to_bytes()])
    }

    /// Tells in constant time whether `mac` ends a sealed file of this size and sum.
    pub fn check_end(&self, size: PlainSize, sum: BlockSum, mac: &[u8; 32]) -> bool {
        blake3::Hash::from_bytes(self.end_mac(size, sum)) == blake3::Hash::from_bytes(*mac)
    }

    /// Returns what tells the content of one seal from that of others with the same count; it gives neither size nor sum away.
    pub fn content_mark(&self, size: PlainSize, sum: BlockSum) -> [u8; 16] {
        let mark = self.prf(7, &[&size.0.to_le_bytes(), &sum.to_bytes()]);
        *mark.first_chunk().expect("a mark is shorter than what it is cut from")
    }

    fn prf(&self, purpose: u8, parts: &[&[u8]]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(self.0.as_bytes());
        hasher.update(&[purpose]);
        for part in parts {
            hasher.update(part);
        }
        *hasher.finalize().as_bytes()
    }
}

impl BlockSum {
    /// Reads four lanes, little-endian.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        BlockSum(std::array::from_fn(|lane| {
            u64::from_le_bytes(bytes[lane * 8..lane * 8 + 8].try_into().expect("eight bytes"))
        }))
    }

    fn to_bytes(self) -> [u8; 32] {
        let mut out = [0; 32];
        for (chunk, lane) in out.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&lane.to_le_bytes());
        }
        out
    }
}

impl AddAssign for BlockSum {
    fn add_assign(&mut self, other: Self) {
        for (lane, other) in self.0.iter_mut().zip(other.0) {
            *lane = lane.wrapping_add(other);
        }
    }
}

impl SubAssign for BlockSum {
    fn sub_assign(&mut self, other: Self) {
        for (lane, other) in self.0.iter_mut().zip(other.0) {
            *lane = lane.wrapping_sub(other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SealKey {
        SealKey::new(KeyBytes::copy_of(&[3; 32]))
    }

    #[test]
    fn the_sum_forgets_what_was_taken_away() {
        let (a, b) = (key().term(BlockIndex(0), &[1; 16]), key().term(BlockIndex(1), &[1; 16]));
        let mut sum = BlockSum::default();
        sum += a;
        sum += b;
        sum -= a;
        assert_eq!(sum, b);
        assert_ne!(a, b, "the index is part of the term");
    }

    #[test]
    fn a_mask_comes_off_with_its_nonce_only() {
        let sum = key().term(BlockIndex(9), &[4; 16]);
        let masked = key().mask(sum, &[1; 16]);
        assert_eq!(key().unmask(&masked, &[1; 16]), sum);
        assert_ne!(key().unmask(&masked, &[2; 16]), sum);
    }
}
