//! Random bytes: keys, ids, salts and nonces, all from the operating system.
//!
//! A generator of the process's own would go on from the same state in each copy of a virtual machine, and give the same nonces for other blocks. The
//! kernel is told of a copy (vmgenid).

use zeroize::Zeroizing;

use super::{KEY_SIZE, keys::KeyBytes, locked::LockedKey};

/// Fills `out` from the operating system's generator.
///
/// # Panics
///
/// When the operating system has no randomness to give: nothing sensible can follow.
pub fn fill(out: &mut [u8]) {
    getrandom::fill(out).expect("the operating system's random generator works");
}

/// Returns an array of random bytes.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    fill(&mut out);
    out
}

/// Returns a random key.
pub fn key() -> KeyBytes {
    let mut out = KeyBytes::zero();
    fill(out.as_mut_bytes());
    out
}

/// Returns an id and a key for a new file, drawn with one system call.
pub fn id_and_key() -> ([u8; 16], KeyBytes) {
    let mut drawn = Zeroizing::new([0; 16 + KEY_SIZE]);
    fill(&mut *drawn);
    let (id, key) = drawn.split_first_chunk().expect("more than 16 bytes were drawn");
    (*id, KeyBytes::copy_of(key.try_into().expect("the rest is a key")))
}

/// Returns a random key in locked memory.
pub fn locked_key() -> LockedKey {
    LockedKey::new(fill)
}
