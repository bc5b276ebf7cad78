//! Random bytes: keys and ids from the operating system, nonces from a generator seeded by it.

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

/// Fills `out` with nonces and salts: from a generator of this thread, seeded by the operating system, without a system call each.
///
/// Keys and ids come from [`fill`].
pub fn fill_nonces(out: &mut [u8]) {
    rand::Rng::fill_bytes(&mut rand::rng(), out);
}

/// Returns a nonce or salt; see [`fill_nonces`].
pub fn nonce<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    fill_nonces(&mut out);
    out
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
