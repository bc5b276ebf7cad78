//! The front and body of headers with a variable part: docs/FORMAT.md section 1.3.
//!
//! The encoding is bincode 1.3 at fixed width. It is decoded with a limit, refused with bytes left over, and encoded again and
//! compared, so that each value has one encoding only.

use bincode::Options;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{FormatError, Reader};

/// The only body encoding there is.
const BODY_ENCODING: u16 = 1;

/// Bytes before the body: magic, version, encoding, length.
pub const FRONT_SIZE: usize = 16;

/// The size of the MAC behind a body, in bytes.
pub const MAC_SIZE: usize = 32;

/// The most extensions a body may have.
pub const EXTENSIONS_MAX: usize = 64;

/// A part of a body that a later version added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// What it is.
    pub kind: u16,
    /// Not zero when a reader that does not know the kind must refuse the file.
    pub critical: u8,
    /// Its contents.
    pub data: Vec<u8>,
}

/// Refuses too many extensions, and critical ones of kinds that are not `known`.
///
/// # Errors
///
/// [`FormatError::UnknownFeature`] or [`FormatError::OutOfRange`].
pub fn check_extensions(extensions: &[Extension], known: &[u16]) -> Result<(), FormatError> {
    if extensions.len() > EXTENSIONS_MAX {
        return Err(FormatError::OutOfRange("number of extensions"));
    }
    let is_refused = |extension: &Extension| extension.critical != 0 && !known.contains(&extension.kind);
    if extensions.iter().any(is_refused) {
        return Err(FormatError::UnknownFeature);
    }
    Ok(())
}

/// A kind of file with a body, in one version of it.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// What its front starts with.
    pub magic: &'static [u8; 8],
    /// The version in its front.
    pub version: u16,
    /// The largest body, in bytes.
    pub size_max: usize,
}

fn options(limit: u64) -> impl Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_little_endian()
        .with_limit(limit)
        .reject_trailing_bytes()
}

/// Encodes `front ‖ body`.
///
/// # Errors
///
/// [`FormatError::OutOfRange`] when the body is above its limit.
pub fn encode<T: Serialize>(kind: Kind, body: &T) -> Result<Vec<u8>, FormatError> {
    let body = encode_part(body, kind.size_max)?;
    let len = u32::try_from(body.len()).map_err(|_| FormatError::OutOfRange("length of the body"))?;
    let mut out = Vec::with_capacity(FRONT_SIZE + body.len() + MAC_SIZE);
    out.extend_from_slice(kind.magic);
    out.extend_from_slice(&kind.version.to_le_bytes());
    out.extend_from_slice(&BODY_ENCODING.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&body);
    Ok(out)
}

/// Encodes a part of a body as it stands in one.
///
/// # Errors
///
/// [`FormatError::OutOfRange`] when it is above `size_max` bytes.
pub fn encode_part<T: Serialize>(part: &T, size_max: usize) -> Result<Vec<u8>, FormatError> {
    options(size_max as u64)
        .serialize(part)
        .map_err(|_| FormatError::OutOfRange("length of the body"))
}

/// Returns the version in the front of a file of this kind, which may be any up to the kind's own.
///
/// # Errors
///
/// [`FormatError::Newer`] for others, and what a front without one gives.
pub fn version(kind: Kind, bytes: &[u8]) -> Result<u16, FormatError> {
    Reader(bytes).magic_and_version_to(kind.magic, kind.version)
}

/// Returns the length of the body behind a front.
///
/// # Errors
///
/// The [`FormatError`] that names the first thing wrong.
pub fn body_len(kind: Kind, front: &[u8]) -> Result<usize, FormatError> {
    let mut reader = Reader(front);
    if reader.magic_and_version_to(kind.magic, kind.version)? != kind.version {
        return Err(FormatError::OutOfRange("format version"));
    }
    if reader.u16()? != BODY_ENCODING {
        return Err(FormatError::OutOfRange("body encoding"));
    }
    let len = reader.u32()? as usize;
    if len > kind.size_max {
        return Err(FormatError::OutOfRange("length of the body"));
    }
    Ok(len)
}

/// Decodes `front ‖ body` and returns the body with the bytes behind it.
///
/// # Errors
///
/// The [`FormatError`] that names the first thing wrong.
pub fn decode<T: Serialize + DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<(T, &[u8]), FormatError> {
    let len = body_len(kind, bytes)?;
    let after_front = &bytes[FRONT_SIZE..];
    if after_front.len() < len {
        return Err(FormatError::TooShort);
    }
    let (body, rest) = after_front.split_at(len);
    let value: T = options(kind.size_max as u64)
        .deserialize(body)
        .map_err(|_| FormatError::NotCanonical)?;
    if encode_part(&value, kind.size_max).as_deref() != Ok(body) {
        return Err(FormatError::NotCanonical);
    }
    Ok((value, rest))
}

/// Splits a file that ends in a MAC into the bytes it authenticates and the MAC.
///
/// # Errors
///
/// [`FormatError::TooShort`] or [`FormatError::TrailingBytes`] when what follows the body is not one MAC.
pub fn split_mac<'a>(bytes: &'a [u8], after_body: &[u8]) -> Result<(&'a [u8], [u8; MAC_SIZE]), FormatError> {
    match after_body.len().cmp(&MAC_SIZE) {
        std::cmp::Ordering::Less => Err(FormatError::TooShort),
        std::cmp::Ordering::Greater => Err(FormatError::TrailingBytes),
        std::cmp::Ordering::Equal => {
            let (message, mac) = bytes.split_at(bytes.len() - MAC_SIZE);
            Ok((message, mac.try_into().expect("split off at the size of a MAC")))
        }
    }
}

/// Tells whether `keys` rise strictly: sorted and free of duplicates.
pub fn rises<K: PartialOrd>(keys: impl IntoIterator<Item = K>) -> bool {
    let mut keys = keys.into_iter();
    let Some(mut last) = keys.next() else { return true };
    keys.all(|key| {
        let rising = last < key;
        last = key;
        rising
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind {
        magic: b"HUSHTEST",
        version: 2,
        size_max: 100,
    };

    #[test]
    fn what_is_encoded_decodes() {
        let bytes = encode(KIND, &(7u32, String::from("x"))).unwrap();
        let ((number, text), rest) = decode::<(u32, String)>(KIND, &bytes).unwrap();
        assert_eq!((number, text.as_str(), rest.len()), (7, "x", 0));
    }

    #[test]
    fn each_fault_of_the_front_has_its_name() {
        let good = encode(KIND, &7u32).unwrap();
        let fault = |change: fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            decode::<u32>(KIND, &bytes).map(|_| ()).unwrap_err()
        };
        assert_eq!(fault(|b| b[0] ^= 1), FormatError::NotOne);
        assert_eq!(fault(|b| b[8] = 3), FormatError::Newer(3));
        assert_eq!(fault(|b| b[8] = 1), FormatError::OutOfRange("format version"));
        assert_eq!(fault(|b| b[8] = 0), FormatError::OutOfRange("format version"));
        assert_eq!(fault(|b| b[10] = 2), FormatError::OutOfRange("body encoding"));
        assert_eq!(fault(|b| b[12] = 101), FormatError::OutOfRange("length of the body"));
        assert_eq!(fault(|b| b[12] = 5), FormatError::TooShort);
        assert_eq!(fault(|b| b[12] = 3), FormatError::NotCanonical);
        assert_eq!(fault(|b| b.truncate(9)), FormatError::TooShort);
    }

    #[test]
    fn a_front_tells_its_version() {
        let older = Kind { version: 1, ..KIND };
        let bytes = encode(older, &7u32).unwrap();
        assert_eq!(version(KIND, &bytes), Ok(1));
        assert_eq!(
            version(older, &encode(KIND, &7u32).unwrap()),
            Err(FormatError::Newer(2))
        );
        assert_eq!(decode::<u32>(older, &bytes), Ok((7, [].as_slice())));
    }

    #[test]
    fn a_body_above_its_limit_is_not_encoded() {
        assert!(encode(Kind { size_max: 3, ..KIND }, &7u32).is_err());
    }

    #[test]
    fn equal_neighbours_do_not_rise() {
        assert!(rises([1, 2, 3]));
        assert!(rises::<u32>([]));
        assert!(!rises([1, 1]));
        assert!(!rises([2, 1]));
    }
}
