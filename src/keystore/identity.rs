//! Identities and recipients as texts: what someone to whom a vault is shared keeps, and what they give away (docs/FORMAT.md section 4).
//!
//! Each text carries a checksum, so that one that was cut or mistyped is called that, and not a wrong key.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use zeroize::Zeroizing;

use super::{
    recovery::{ALPHABET, unambiguous},
    secret::Passphrase,
};
use crate::crypto::{
    KEY_SIZE,
    derive::{SHARE_CODE_SIZE, text_checksum},
    keys::{IdentityKey, KeyBytes},
    passphrase::{Hardness, HardnessError},
    random,
    recipient::Recipient,
    wrap::{WRAPPED_SIZE, Wrapped},
};

/// The most bytes a file with an identity or a recipient may have; someone may have named a disk.
pub const IDENTITY_FILE_SIZE_MAX: usize = 16 * 1024;

const CHECKSUM_SIZE: usize = 4;

/// Characters of a share code, hyphens not counted.
const SHARE_CODE_LEN: usize = 16;

// Characters have five bits.
const _: () = assert!(SHARE_CODE_LEN * 5 == SHARE_CODE_SIZE * 8);

/// Salt, memory, passes and lanes.
const HARDNESS_SIZE: usize = 28;

const AAD: &[u8] = b"hushfs v1 identity";

/// A kind of text: what it starts with, and the number that goes into its checksum.
struct TextKind {
    prefix: &'static str,
    number: u8,
}

/// What a recipient starts with.
pub const RECIPIENT_PREFIX: &str = "hush-recipient-1-";

const RECIPIENT: TextKind = TextKind {
    prefix: RECIPIENT_PREFIX,
    number: 1,
};
const IDENTITY: TextKind = TextKind {
    prefix: "HUSH-IDENTITY-1-",
    number: 2,
};
const LOCKED_IDENTITY: TextKind = TextKind {
    prefix: "HUSH-LOCKED-IDENTITY-1-",
    number: 3,
};

/// What someone to whom a vault is shared keeps to themselves.
#[derive(Debug)]
pub struct Identity {
    key: IdentityKey,
    recipient: Recipient,
}

/// An identity that a passphrase opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockedIdentity {
    hardness: Hardness,
    wrapped: Wrapped,
}

/// What is in a file.
#[derive(Debug)]
pub enum IdentityFile {
    /// An identity as it is.
    Plain(Identity),
    /// An identity that a passphrase opens.
    Locked(LockedIdentity),
}

/// Why a text is no identity or recipient, or a locked identity does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityError {
    /// There is no line with an identity, or more than one.
    NoIdentity,
    /// There is no line with a recipient, or more than one.
    NoRecipient,
    /// It is an identity, which is not to be given away.
    IdentityForRecipient,
    /// The text was cut or changed: its checksum is wrong.
    Mistyped,
    /// The passphrase is wrong.
    WrongPassphrase,
    /// It asks for more memory or time than hushfs ever uses, or less. Nothing was run.
    HostileParameters,
    /// There is not enough memory to try the passphrase.
    NoMemory(HardnessError),
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdentityError::NoIdentity => write!(f, "not one line starts with {}", IDENTITY.prefix),
            IdentityError::NoRecipient => write!(f, "not one line starts with {}", RECIPIENT.prefix),
            IdentityError::IdentityForRecipient => {
                f.write_str("this is an identity, which opens vaults: never give it away; `hushfs recipient show` prints its recipient")
            }
            IdentityError::Mistyped => f.write_str("the text was cut or changed: copy it again as a whole"),
            IdentityError::WrongPassphrase => f.write_str("wrong passphrase for the identity"),
            IdentityError::HostileParameters => {
                f.write_str("the identity asks for Argon2id parameters that hushfs never writes")
            }
            IdentityError::NoMemory(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for IdentityError {}

impl IdentityError {
    fn of_hardness(error: HardnessError) -> Self {
        match error {
            HardnessError::OutOfRange => IdentityError::HostileParameters,
            HardnessError::NoMemory { .. } => IdentityError::NoMemory(error),
        }
    }
}

impl Identity {
    /// Makes a random one.
    pub fn generate() -> Self {
        Self::of(IdentityKey::new(random::key()))
    }

    fn of(key: IdentityKey) -> Self {
        let recipient = Recipient::of(&key);
        Identity { key, recipient }
    }

    /// Returns the key.
    pub(super) fn key(&self) -> &IdentityKey {
        &self.key
    }

    /// Returns whom others seal to.
    pub fn recipient(&self) -> &Recipient {
        &self.recipient
    }

    /// Returns the identity as a text, without the end of the line.
    pub fn to_text(&self) -> Zeroizing<String> {
        IDENTITY.write(self.key.as_bytes())
    }

    /// Wraps the identity under a passphrase.
    ///
    /// # Errors
    ///
    /// [`IdentityError::HostileParameters`] when the parameters are out of range, [`IdentityError::NoMemory`].
    pub fn lock(&self, passphrase: &Passphrase, hardness: Hardness) -> Result<LockedIdentity, IdentityError> {
        let key = hardness
            .stretch_for_identity(passphrase.as_bytes())
            .map_err(IdentityError::of_hardness)?;
        let wrapped = key.wrap(&locked_aad(&hardness), self.key.as_bytes());
        Ok(LockedIdentity { hardness, wrapped })
    }
}

impl LockedIdentity {
    /// Opens the identity.
    ///
    /// # Errors
    ///
    /// [`IdentityError::WrongPassphrase`]; [`IdentityError::HostileParameters`] and [`IdentityError::NoMemory`] before anything is run.
    pub fn unlock(&self, passphrase: &Passphrase) -> Result<Identity, IdentityError> {
        let key = self
            .hardness
            .stretch_for_identity(passphrase.as_bytes())
            .map_err(IdentityError::of_hardness)?;
        key.unwrap(&locked_aad(&self.hardness), &self.wrapped, |bytes| {
            Identity::of(IdentityKey::new(KeyBytes::copy_of(bytes)))
        })
        .map_err(|_| IdentityError::WrongPassphrase)
    }

    /// Returns the locked identity as a text, without the end of the line.
    pub fn to_text(&self) -> String {
        let bytes = [&encode_hardness(&self.hardness), self.wrapped.0.as_slice()].concat();
        LOCKED_IDENTITY.write(&bytes).as_str().to_owned()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, IdentityError> {
        let (hardness, wrapped) = bytes
            .split_first_chunk::<HARDNESS_SIZE>()
            .ok_or(IdentityError::Mistyped)?;
        let wrapped: [u8; WRAPPED_SIZE] = wrapped.try_into().map_err(|_| IdentityError::Mistyped)?;
        Ok(LockedIdentity {
            hardness: decode_hardness(hardness),
            wrapped: Wrapped(wrapped),
        })
    }
}

impl IdentityFile {
    /// Reads what is in a file: a line with an identity, between empty ones and those that start with `#`.
    ///
    /// # Errors
    ///
    /// The [`IdentityError`] that says why it is none.
    pub fn parse(contents: &[u8]) -> Result<Self, IdentityError> {
        let line = only_line(contents).ok_or(IdentityError::NoIdentity)?;
        if let Some(bytes) = LOCKED_IDENTITY.read(line)? {
            return LockedIdentity::from_bytes(&bytes).map(IdentityFile::Locked);
        }
        let bytes = IDENTITY.read(line)?.ok_or(IdentityError::NoIdentity)?;
        let key = <&[u8; KEY_SIZE]>::try_from(bytes.as_slice()).map_err(|_| IdentityError::Mistyped)?;
        Ok(IdentityFile::Plain(Identity::of(IdentityKey::new(KeyBytes::copy_of(
            key,
        )))))
    }
}

/// What who made a slot for someone tells them, so that they know whose vault they have opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareCode(pub [u8; SHARE_CODE_SIZE]);

impl ShareCode {
    /// Reads a code that someone typed in: in lower case too, with or without hyphens.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut bits = 0u128;
        let mut len = 0;
        for typed in text.chars().filter(|c| !c.is_ascii_whitespace() && *c != '-') {
            let typed = unambiguous(typed);
            let value = ALPHABET.iter().position(|symbol| char::from(*symbol) == typed)?;
            bits = bits << 5 | value as u128;
            len += 1;
            if len > SHARE_CODE_LEN {
                return None;
            }
        }
        let bytes = bits.to_be_bytes();
        (len == SHARE_CODE_LEN).then(|| ShareCode(std::array::from_fn(|i| bytes[bytes.len() - SHARE_CODE_SIZE + i])))
    }
}

impl fmt::Display for ShareCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0.iter().fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
        for i in 0..SHARE_CODE_LEN {
            if i > 0 && i % 4 == 0 {
                f.write_str("-")?;
            }
            let symbol = bits >> (5 * (SHARE_CODE_LEN - 1 - i)) & 31;
            write!(f, "{}", char::from(ALPHABET[symbol as usize]))?;
        }
        Ok(())
    }
}

/// Returns a recipient as a text, without the end of the line.
pub fn recipient_to_text(recipient: &Recipient) -> String {
    RECIPIENT.write(recipient.as_bytes()).as_str().to_owned()
}

/// Reads a recipient: a line among empty ones and those that start with `#`.
///
/// # Errors
///
/// The [`IdentityError`] that says why it is none.
pub fn parse_recipient(contents: &[u8]) -> Result<Recipient, IdentityError> {
    let line = only_line(contents).ok_or(IdentityError::NoRecipient)?;
    if line.starts_with(IDENTITY.prefix) || line.starts_with(LOCKED_IDENTITY.prefix) {
        return Err(IdentityError::IdentityForRecipient);
    }
    let bytes = RECIPIENT.read(line)?.ok_or(IdentityError::NoRecipient)?;
    Recipient::from_bytes(&bytes).map_err(|_| IdentityError::Mistyped)
}

/// Returns the one line that says something.
fn only_line(contents: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(contents).ok()?;
    let mut lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let only = lines.next()?;
    lines.next().is_none().then_some(only)
}

impl TextKind {
    fn write(&self, bytes: &[u8]) -> Zeroizing<String> {
        let mut checked = Zeroizing::new(Vec::with_capacity(bytes.len() + CHECKSUM_SIZE));
        checked.extend_from_slice(bytes);
        checked.extend_from_slice(&text_checksum(self.number, bytes));
        // At its full length from the start, so that no copy is left where it grew out of.
        let len = self.prefix.len() + BASE64URL_NOPAD.encode_len(checked.len());
        let mut text = Zeroizing::new(String::with_capacity(len));
        text.push_str(self.prefix);
        BASE64URL_NOPAD.encode_append(&checked, &mut text);
        text
    }

    /// Reads the bytes of a text, or nothing when it is of another kind.
    fn read(&self, line: &str) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityError> {
        let Some(text) = line.strip_prefix(self.prefix) else {
            return Ok(None);
        };
        let mut bytes = BASE64URL_NOPAD
            .decode(text.as_bytes())
            .map(Zeroizing::new)
            .map_err(|_| IdentityError::Mistyped)?;
        let len = bytes.len().checked_sub(CHECKSUM_SIZE).ok_or(IdentityError::Mistyped)?;
        if text_checksum(self.number, &bytes[..len]) != bytes[len..] {
            return Err(IdentityError::Mistyped);
        }
        bytes.truncate(len);
        Ok(Some(bytes))
    }
}

/// Returns the additional data of a locked identity's wrap: weaker parameters cannot be put in.
fn locked_aad(hardness: &Hardness) -> Vec<u8> {
    [AAD, &encode_hardness(hardness)].concat()
}

fn encode_hardness(hardness: &Hardness) -> [u8; HARDNESS_SIZE] {
    let mut out = [0; HARDNESS_SIZE];
    out[..16].copy_from_slice(&hardness.salt);
    for (place, number) in out[16..]
        .chunks_exact_mut(4)
        .zip([hardness.memory_kib, hardness.passes, hardness.lanes])
    {
        place.copy_from_slice(&number.to_le_bytes());
    }
    out
}

fn decode_hardness(bytes: &[u8; HARDNESS_SIZE]) -> Hardness {
    let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    Hardness {
        salt: std::array::from_fn(|i| bytes[i]),
        memory_kib: number(16),
        passes: number(20),
        lanes: number(24),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keystore::slot::tests::{EASY, passphrase};

    fn identity(byte: u8) -> Identity {
        Identity::of(IdentityKey::new(KeyBytes::copy_of(&[byte; KEY_SIZE])))
    }

    fn plain(text: &str) -> Result<[u8; KEY_SIZE], IdentityError> {
        match IdentityFile::parse(text.as_bytes())? {
            IdentityFile::Plain(identity) => Ok(*identity.key.as_bytes()),
            IdentityFile::Locked(_) => panic!("locked"),
        }
    }

    #[test]
    fn an_identity_is_read_among_comments() {
        let text = identity(7).to_text();
        assert_eq!(
            text.as_str(),
            "HUSH-IDENTITY-1-BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcAXMOB"
        );
        assert_eq!(plain(&text), Ok([7; KEY_SIZE]));
        assert_eq!(plain(&format!("# made today\n\n  {}\r\n#\n", *text)), Ok([7; KEY_SIZE]));
        for none in [
            "",
            "# nothing\n",
            "secret",
            &format!("{0}\n{0}", *text),
            "hush-recipient-1-",
        ] {
            assert_eq!(plain(none), Err(IdentityError::NoIdentity), "{none}");
        }
        assert_eq!(
            IdentityFile::parse(b"\xff").map(drop).unwrap_err(),
            IdentityError::NoIdentity
        );
    }

    #[test]
    fn a_recipient_is_read_and_an_identity_is_not_taken_for_one() {
        let recipient = identity(7).recipient().clone();
        let text = recipient_to_text(&recipient);
        assert_eq!(text.len(), 17 + 1627);
        assert_eq!(parse_recipient(text.as_bytes()), Ok(recipient));
        assert_eq!(
            parse_recipient(identity(7).to_text().as_bytes()),
            Err(IdentityError::IdentityForRecipient)
        );
        assert_eq!(parse_recipient(b""), Err(IdentityError::NoRecipient));
        assert_eq!(parse_recipient(b"age1xyz"), Err(IdentityError::NoRecipient));
        assert_eq!(plain(&text), Err(IdentityError::NoIdentity));
        // As many bytes as an identity has, with the right checksum.
        assert_eq!(
            parse_recipient(RECIPIENT.write(&[1; 32]).as_bytes()),
            Err(IdentityError::Mistyped)
        );
    }

    #[test]
    fn a_locked_identity_opens_with_its_passphrase_only() {
        let identity = identity(7);
        let locked = identity.lock(&passphrase("correct horse"), EASY).unwrap();
        let IdentityFile::Locked(read) = IdentityFile::parse(locked.to_text().as_bytes()).unwrap() else {
            panic!("not locked")
        };
        assert_eq!(read, locked);
        let opened = read.unlock(&passphrase("correct horse")).unwrap();
        assert_eq!(opened.recipient(), identity.recipient());
        assert_eq!(
            read.unlock(&passphrase("Correct horse")).map(drop),
            Err(IdentityError::WrongPassphrase)
        );
        let weaker = LockedIdentity {
            hardness: Hardness { passes: 2, ..EASY },
            ..read.clone()
        };
        assert_eq!(
            weaker.unlock(&passphrase("correct horse")).map(drop),
            Err(IdentityError::WrongPassphrase)
        );
        let hostile = LockedIdentity {
            hardness: Hardness {
                memory_kib: u32::MAX,
                ..EASY
            },
            ..read
        };
        assert_eq!(
            hostile.unlock(&passphrase("correct horse")).map(drop),
            Err(IdentityError::HostileParameters)
        );
        assert!(!format!("{:?}", IdentityFile::Plain(opened)).contains("7, 7"));
    }

    #[test]
    fn a_share_code_is_written_in_groups_and_read_as_people_type() {
        let code = ShareCode([0, 1, 2, 3, 4, 5, 6, 7, 8, 0xFF]);
        assert_eq!(code.to_string(), "000G-40R4-0M30-E27Z");
        for typed in ["000G-40R4-0M30-E27Z", "ooog40r4om30e27z", " 000G 40R4 0M30 E27Z\n"] {
            assert_eq!(ShareCode::from_text(typed), Some(code), "{typed}");
        }
        for wrong in [
            "",
            "000G-40R4-0M30-E27",
            "000G-40R4-0M30-E27Z0",
            "000G-40R4-0M30-E27U",
            "ä",
        ] {
            assert_eq!(ShareCode::from_text(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_share_code_is_read_as_it_was_written(bytes: [u8; SHARE_CODE_SIZE]) {
            prop_assert_eq!(ShareCode::from_text(&ShareCode(bytes).to_string()), Some(ShareCode(bytes)));
        }

        #[test]
        fn every_change_of_a_text_is_noticed(byte: u8, at in 16..64usize, by in 1..64usize) {
            let text = identity(byte).to_text();
            let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let from = alphabet.iter().position(|c| *c == text.as_bytes()[at]).unwrap();
            let mut changed = text.as_str().to_owned();
            changed.replace_range(at..=at, &char::from(alphabet[(from + by) % 64]).to_string());
            prop_assert_eq!(plain(&changed), Err(IdentityError::Mistyped));
            prop_assert_eq!(plain(&text[..at]), Err(IdentityError::Mistyped));
        }

        #[test]
        fn random_text_never_panics(text in "(HUSH-(LOCKED-)?IDENTITY-1-|hush-recipient-1-)?[A-Za-z0-9_-]{0,200}", bytes: Vec<u8>) {
            let _ = IdentityFile::parse(text.as_bytes());
            let _ = parse_recipient(text.as_bytes());
            let _ = IdentityFile::parse(&bytes);
            let _ = IdentityFile::parse(LOCKED_IDENTITY.write(&bytes).as_bytes());
        }
    }
}
