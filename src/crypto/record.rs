//! The pseudorandom function behind what was seen of a vault: the local record and snapshots (docs/FORMAT.md sections 11 and 12).

use super::keys::{KeyBytes, MacKey};
use crate::ids::DirectoryId;

/// Makes and checks the MACs of a local record, and the marks by which a record or a snapshot knows things again without holding them.
///
/// The first byte of each input says what it is for, so that no two uses share one.
#[derive(Debug)]
pub struct RecordKey(MacKey);

impl RecordKey {
    /// Gives 32 derived bytes this role.
    pub(super) fn new(key: KeyBytes) -> Self {
        RecordKey(MacKey::new(key))
    }

    /// Returns the MAC of a record's front.
    pub fn front_mac(&self, front: &[u8]) -> [u8; 32] {
        self.prf(1, &[front])
    }

    /// Returns the MAC of a batch of a record, which stands behind what `before` is the MAC of.
    pub fn batch_mac(&self, before: &[u8; 32], batch: &[u8]) -> [u8; 32] {
        self.prf(2, &[before, batch])
    }

    /// Tells in constant time whether two MACs are the same.
    pub fn is_same(one: &[u8; 32], other: &[u8; 32]) -> bool {
        blake3::Hash::from_bytes(*one) == blake3::Hash::from_bytes(*other)
    }

    /// Returns the mark of a name in a directory; never 0, which stands for no place.
    pub fn place(&self, directory: DirectoryId, name: &[u8]) -> u64 {
        first_number(&self.prf(3, &[&directory.0, name])).max(1)
    }

    /// Returns the mark of a vault header.
    pub fn header_mark(&self, header: &[u8]) -> [u8; 16] {
        first_bytes(&self.prf(4, &[header]))
    }

    /// Returns the mark of a symbolic link, by what stands on disk for it.
    pub fn link_mark(&self, stored: &[u8]) -> [u8; 16] {
        first_bytes(&self.prf(5, &[stored]))
    }

    /// Returns the mark of the attributes by which an unchanged file is known again.
    pub fn stamp(&self, attributes: &[u8]) -> u64 {
        first_number(&self.prf(6, &[attributes]))
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

fn first_bytes(mac: &[u8; 32]) -> [u8; 16] {
    *mac.first_chunk().expect("a mark is shorter than what it is cut from")
}

fn first_number(mac: &[u8; 32]) -> u64 {
    u64::from_le_bytes(*mac.first_chunk().expect("a mark is shorter than what it is cut from"))
}
