//! The recovery key: 32 random bytes to print and keep in a drawer (docs/FORMAT.md section 4).
//!
//! Each of its eight groups carries its own check character, so that whoever types it in is told which group to look at again.

use std::fmt;

use zeroize::Zeroizing;

use crate::crypto::{
    KEY_SIZE,
    derive::{self, recovery_key_checksum},
    keys::{KeyBytes, SlotSecret},
    random,
};

/// What a printed key starts with; its last character is the version of the scheme.
const PREFIX: &str = "HUSH1";

/// Crockford's base32: no I, L, O and U.
pub(super) const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Groups of a printed key.
const GROUPS: usize = 8;

/// Characters of a group that carry the key; one more checks them.
const GROUP_SYMBOLS: usize = 7;

/// Characters of a printed key without prefix and hyphens.
const TEXT_LEN: usize = GROUPS * (GROUP_SYMBOLS + 1);

const CHECKSUM_SIZE: usize = 3;

/// Key and checksum, in bytes.
const PAYLOAD_SIZE: usize = KEY_SIZE + CHECKSUM_SIZE;

// 35 bytes are 280 bits, and so are 56 characters of five.
const _: () = assert!(PAYLOAD_SIZE * 8 == GROUPS * GROUP_SYMBOLS * 5);

/// A key that opens a slot of its own, for when everything else is lost.
#[derive(Debug)]
pub struct RecoveryKey(KeyBytes);

/// Why a text is not a recovery key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryKeyError {
    /// It does not start with `HUSH1`.
    Prefix,
    /// It has this many characters after that, where 64 belong.
    Length(usize),
    /// This group, counted from 1, is mistyped.
    Group(usize),
    /// Every group is right in itself, but not all of them together.
    Checksum,
}

impl fmt::Display for RecoveryKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoveryKeyError::Prefix => write!(f, "not a recovery key: it starts with {PREFIX}-"),
            RecoveryKeyError::Length(len) => write!(
                f,
                "a recovery key has {GROUPS} groups of {} characters after {PREFIX}-, {TEXT_LEN} together; this has {len}",
                GROUP_SYMBOLS + 1
            ),
            RecoveryKeyError::Group(group) => {
                write!(
                    f,
                    "group {group} of {GROUPS} of the recovery key (after {PREFIX}-) is mistyped"
                )
            }
            RecoveryKeyError::Checksum => {
                f.write_str("the recovery key is mistyped: check the order of its groups, and Z against 0")
            }
        }
    }
}

impl std::error::Error for RecoveryKeyError {}

impl RecoveryKey {
    /// Makes a random one.
    pub fn generate() -> Self {
        RecoveryKey(random::key())
    }

    /// Returns the secret of the slot that this key opens.
    pub(super) fn slot_secret(&self) -> SlotSecret {
        derive::recovery_slot(&self.0)
    }

    /// Returns the key as it is printed: `HUSH1-` and eight groups of eight characters.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut payload = Zeroizing::new([0; PAYLOAD_SIZE]);
        payload[..KEY_SIZE].copy_from_slice(self.0.as_bytes());
        payload[KEY_SIZE..].copy_from_slice(&recovery_key_checksum(&self.0));
        let symbols = to_symbols(&payload);
        // At its full length from the start, so that no copy is left where it grew out of.
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + GROUPS + TEXT_LEN));
        text.push_str(PREFIX);
        for (number, group) in symbols.chunks_exact(GROUP_SYMBOLS).enumerate() {
            text.push('-');
            for symbol in group.iter().copied().chain([check_symbol(number, group)]) {
                text.push(char::from(ALPHABET[usize::from(symbol)]));
            }
        }
        text
    }

    /// Reads a key that someone typed in.
    ///
    /// Takes lower case, `O` for `0`, `I` and `L` for `1`, and ignores white space and hyphens.
    ///
    /// # Errors
    ///
    /// The [`RecoveryKeyError`] that says where to look.
    pub fn from_text(text: &str) -> Result<Self, RecoveryKeyError> {
        let mut typed = Zeroizing::new(Vec::with_capacity(text.len()));
        typed.extend(
            text.chars()
                .filter(|c| !c.is_ascii_whitespace() && *c != '-')
                .map(unambiguous),
        );
        let prefix: [char; PREFIX.len()] = std::array::from_fn(|i| char::from(PREFIX.as_bytes()[i]));
        let typed = typed.strip_prefix(&prefix).ok_or(RecoveryKeyError::Prefix)?;
        if typed.len() != TEXT_LEN {
            return Err(RecoveryKeyError::Length(typed.len()));
        }
        let mut symbols = Zeroizing::new([0; GROUPS * GROUP_SYMBOLS]);
        for (number, (typed, symbols)) in typed
            .chunks_exact(GROUP_SYMBOLS + 1)
            .zip(symbols.chunks_exact_mut(GROUP_SYMBOLS))
            .enumerate()
        {
            read_group(number, typed, symbols).ok_or(RecoveryKeyError::Group(number + 1))?;
        }
        let payload = to_payload(&symbols);
        let mut key = KeyBytes::zero();
        key.as_mut_bytes().copy_from_slice(&payload[..KEY_SIZE]);
        if recovery_key_checksum(&key) != payload[KEY_SIZE..] {
            return Err(RecoveryKeyError::Checksum);
        }
        Ok(RecoveryKey(key))
    }
}

/// Returns the character that a typed one stands for.
pub(super) fn unambiguous(typed: char) -> char {
    match typed.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    }
}

/// Reads the symbols of a group, or nothing when one is not in the alphabet or they do not check.
fn read_group(number: usize, typed: &[char], symbols: &mut [u8]) -> Option<()> {
    let value = |c: char| {
        ALPHABET
            .iter()
            .position(|symbol| char::from(*symbol) == c)
            .map(|v| v as u8)
    };
    let (check, typed) = typed.split_last()?;
    for (symbol, typed) in symbols.iter_mut().zip(typed) {
        *symbol = value(*typed)?;
    }
    (value(*check)? == check_symbol(number, symbols)).then_some(())
}

/// Returns the check symbol of a group.
///
/// The modulus is prime and the weights are below it: one wrong symbol always shows, and so do two that changed places, except where the
/// symbols are 0 and Z (0 and 31 are the same modulo 31); the checksum over the whole key finds those. The number shows groups that changed
/// places.
fn check_symbol(number: usize, group: &[u8]) -> u8 {
    let sum: usize = group
        .iter()
        .enumerate()
        .map(|(i, symbol)| (i + 1) * usize::from(*symbol))
        .sum();
    ((sum + number) % 31) as u8
}

/// Splits bytes into symbols of five bits, the highest first.
fn to_symbols(payload: &[u8; PAYLOAD_SIZE]) -> Zeroizing<[u8; GROUPS * GROUP_SYMBOLS]> {
    let mut symbols = Zeroizing::new([0; GROUPS * GROUP_SYMBOLS]);
    for (bytes, symbols) in payload.chunks_exact(5).zip(symbols.chunks_exact_mut(8)) {
        let bits = bytes.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        for (i, symbol) in symbols.iter_mut().enumerate() {
            *symbol = (bits >> (35 - 5 * i) & 31) as u8;
        }
    }
    symbols
}

/// Joins the symbols of [`to_symbols`].
fn to_payload(symbols: &[u8; GROUPS * GROUP_SYMBOLS]) -> Zeroizing<[u8; PAYLOAD_SIZE]> {
    let mut payload = Zeroizing::new([0; PAYLOAD_SIZE]);
    for (symbols, bytes) in symbols.chunks_exact(8).zip(payload.chunks_exact_mut(5)) {
        let bits = symbols.iter().fold(0u64, |bits, symbol| bits << 5 | u64::from(*symbol));
        bytes.copy_from_slice(&bits.to_be_bytes()[3..]);
    }
    payload
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(bytes: [u8; 32]) -> RecoveryKey {
        RecoveryKey(KeyBytes::copy_of(&bytes))
    }

    fn error(text: &str) -> RecoveryKeyError {
        RecoveryKey::from_text(text).unwrap_err()
    }

    #[test]
    fn a_known_key_prints_as_it_always_did() {
        let text = key(std::array::from_fn(|i| i as u8)).to_text();
        assert_eq!(
            text.as_str(),
            "HUSH1-000G40R4-40M30E2M-09185GR3-38E1W81F-24GK2GA4-HC5RR34D-D1P70X30-RFKGP0S2"
        );
    }

    #[test]
    fn what_is_left_out_or_added_is_counted() {
        let text = key([7; 32]).to_text();
        assert_eq!(error(&text[..text.len() - 1]), RecoveryKeyError::Length(63));
        assert_eq!(error(&format!("{}0", *text)), RecoveryKeyError::Length(65));
        assert_eq!(error("HUSH1"), RecoveryKeyError::Length(0));
        assert_eq!(error(""), RecoveryKeyError::Prefix);
        assert_eq!(error(&text.replace("HUSH1", "HUSH2")), RecoveryKeyError::Prefix);
    }

    #[test]
    fn groups_that_changed_places_are_noticed() {
        let text = key(std::array::from_fn(|i| (i * 37) as u8)).to_text();
        let mut groups: Vec<&str> = text.split('-').collect();
        groups.swap(3, 5);
        assert_eq!(error(&groups.join("-")), RecoveryKeyError::Group(3));
    }

    #[test]
    fn a_character_outside_the_alphabet_names_its_group() {
        let text = key([0; 32]).to_text();
        for (typed, group) in [("U", 1), ("ä", 8)] {
            let at = "HUSH1-".len() + (group - 1) * 9 + 2;
            let mut changed = text.as_str().to_owned();
            changed.replace_range(at..at + 1, typed);
            assert_eq!(error(&changed), RecoveryKeyError::Group(group));
        }
    }

    #[test]
    fn z_for_0_is_found_by_the_checksum() {
        let text = key([0; 32]).to_text();
        let changed = text.replacen("-0", "-Z", 1);
        assert_eq!(error(&changed), RecoveryKeyError::Checksum);
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read(bytes: [u8; 32]) {
            let text = key(bytes).to_text();
            prop_assert_eq!(text.len(), 5 + 8 * 9);
            prop_assert_eq!(*RecoveryKey::from_text(&text).unwrap().0.as_bytes(), bytes);
        }

        #[test]
        fn sloppy_typing_is_read(bytes: [u8; 32], ones in "[1iIlL]{8}", zeros in "[0oO]{8}") {
            let text = key(bytes).to_text();
            let (mut ones, mut zeros) = (ones.chars().cycle(), zeros.chars().cycle());
            let mut sloppy = String::from(" ");
            for c in text.to_lowercase().chars() {
                match c {
                    '1' => sloppy.extend(ones.next()),
                    '0' => sloppy.extend(zeros.next()),
                    '-' => sloppy.push_str("  "),
                    other => sloppy.push(other),
                }
            }
            sloppy.push('\n');
            prop_assert_eq!(*RecoveryKey::from_text(&sloppy).unwrap().0.as_bytes(), bytes);
        }

        #[test]
        fn every_substitution_is_noticed(bytes: [u8; 32], at in 0..64usize, by in 1..32u8) {
            let text = key(bytes).to_text();
            let (group, checks) = (at / 8 + 1, at % 8 == GROUP_SYMBOLS);
            let at = "HUSH1-".len() + at + at / 8;
            let from = ALPHABET.iter().position(|c| *c == text.as_bytes()[at]).unwrap() as u8;
            let to = (from + by) % 32;
            let mut changed = text.as_str().to_owned();
            changed.replace_range(at..at + 1, &char::from(ALPHABET[usize::from(to)]).to_string());
            let expected = if from.abs_diff(to) == 31 && !checks {
                RecoveryKeyError::Checksum
            } else {
                RecoveryKeyError::Group(group)
            };
            prop_assert_eq!(error(&changed), expected);
        }

        #[test]
        fn random_text_never_panics(text in ".{0,100}", tail in "[0-9A-Zäß-]{64,72}") {
            let _ = RecoveryKey::from_text(&text);
            let _ = RecoveryKey::from_text(&format!("HUSH1{tail}"));
        }
    }
}
