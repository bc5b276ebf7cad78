//! Targets of symbolic links (docs/FORMAT.md section 7).

use data_encoding::BASE64URL_NOPAD;

use super::{FORMAT_VERSION, FormatError, Reader};
use crate::{
    crypto::{OpenError, TAG_SIZE, keys::SivKey, random, siv},
    ids::{FileId, ID_TEXT_LEN},
};

/// The longest target, in bytes: PATH_MAX without its final zero byte.
pub const TARGET_MAX: usize = 4095;

/// The longest text of a link on disk that is written, in bytes: XFS takes no longer one, nor ext4 with blocks of 1 KiB, and a vault is to be
/// copied from any filesystem to any other. Vaults of before have longer ones, up to [`TARGET_MAX`].
pub const TEXT_MAX: usize = 1023;

const OVERHEAD: usize = siv::NONCE_SIZE + TAG_SIZE;

const MAGIC: &[u8; 8] = b"HUSHLINK";

/// Bytes before the sealed target in a link file.
const FRONT_SIZE: usize = 12;

/// The largest link file, in bytes.
pub const LINK_FILE_MAX: usize = FRONT_SIZE + OVERHEAD + TARGET_MAX;

/// What a link on disk points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskTarget {
    /// The sealed target itself.
    Inline(Vec<u8>),
    /// The target is in a link file.
    Long {
        /// Names the link file.
        link: FileId,
        /// The target's length in bytes, for `stat`.
        len: usize,
    },
}

/// A sealed target: what to store in the link, and in its file if it is long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedTarget {
    /// What the link on disk points to.
    pub text: String,
    /// The id and contents of the link file.
    pub file: Option<(FileId, Vec<u8>)>,
}

/// Seals a target.
///
/// # Errors
///
/// [`FormatError::OutOfRange`] when it is empty or longer than [`TARGET_MAX`].
pub fn seal(key: &SivKey, target: &[u8]) -> Result<SealedTarget, FormatError> {
    if target.is_empty() || target.len() > TARGET_MAX {
        return Err(FormatError::OutOfRange("length of the target"));
    }
    let nonce = random::bytes();
    let sealed = |aad: &[u8]| [&nonce[..], &siv::seal(key.as_bytes(), &nonce, aad, target)].concat();
    let text = BASE64URL_NOPAD.encode(&sealed(b""));
    if text.len() <= TEXT_MAX {
        return Ok(SealedTarget { text, file: None });
    }
    let link = FileId(random::bytes());
    let mut file = Vec::with_capacity(FRONT_SIZE + OVERHEAD + target.len());
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    file.extend_from_slice(&[0; 2]);
    file.extend_from_slice(&sealed(&link.0));
    Ok(SealedTarget {
        text: format!("+{}+{}", link.to_b64(), target.len()),
        file: Some((link, file)),
    })
}

/// Decodes what a link on disk points to.
///
/// # Errors
///
/// [`FormatError::NotOne`] when hushfs did not write it.
pub fn decode(text: &[u8]) -> Result<DiskTarget, FormatError> {
    if let Some(long) = text.strip_prefix(b"+") {
        return decode_long(long).ok_or(FormatError::NotOne);
    }
    let sealed = BASE64URL_NOPAD.decode(text).map_err(|_| FormatError::NotOne)?;
    if sealed.len() <= OVERHEAD {
        return Err(FormatError::TooShort);
    }
    Ok(DiskTarget::Inline(sealed))
}

fn decode_long(text: &[u8]) -> Option<DiskTarget> {
    let (id, rest) = text.split_at_checked(ID_TEXT_LEN)?;
    let len: usize = std::str::from_utf8(rest.strip_prefix(b"+")?).ok()?.parse().ok()?;
    let link = FileId::from_b64(id)?;
    (len <= TARGET_MAX).then_some(DiskTarget::Long { link, len })
}

impl DiskTarget {
    /// Returns the length of the target in bytes.
    pub fn len(&self) -> usize {
        match self {
            DiskTarget::Inline(sealed) => sealed.len() - OVERHEAD,
            DiskTarget::Long { len, .. } => *len,
        }
    }

    /// Tells whether the target is empty, which no target is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Returns the length of the target of a link whose text on disk has `text_len` characters and is not a long one.
pub fn inline_len(text_len: usize) -> Option<usize> {
    BASE64URL_NOPAD.decode_len(text_len).ok()?.checked_sub(OVERHEAD)
}

/// Opens a target that the link itself holds.
///
/// # Errors
///
/// [`OpenError`] when it was changed or is another vault's.
pub fn open_inline(key: &SivKey, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
    open_sealed(key, b"", sealed)
}

/// Opens a target that a link file holds.
///
/// # Errors
///
/// [`FormatError::NotAuthentic`] when it was changed or is another link's, or the one that names what is wrong.
pub fn open_file(key: &SivKey, link: FileId, bytes: &[u8]) -> Result<Vec<u8>, FormatError> {
    let mut reader = Reader(bytes);
    reader.magic_and_version(MAGIC)?;
    if reader.take::<2>()? != [0; 2] {
        return Err(FormatError::OutOfRange("reserved bytes"));
    }
    open_sealed(key, &link.0, reader.0).map_err(|OpenError| FormatError::NotAuthentic)
}

fn open_sealed(key: &SivKey, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
    let (nonce, body) = sealed.split_first_chunk().ok_or(OpenError)?;
    siv::open(key.as_bytes(), nonce, aad, body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::keys::KeyBytes;

    fn key() -> SivKey {
        SivKey::new(KeyBytes::copy_of(&[6; 32]))
    }

    #[test]
    fn targets_of_every_kind_of_length_come_back() {
        for len in (1..200).chain([738, 739, 740, 3043, 3044, 4094, 4095]) {
            let target = vec![b't'; len];
            let sealed = seal(&key(), &target).unwrap();
            assert!(sealed.text.len() <= TEXT_MAX);
            let disk = decode(sealed.text.as_bytes()).unwrap();
            assert_eq!(disk.len(), len);
            match (disk, sealed.file) {
                (DiskTarget::Inline(bytes), None) => {
                    assert!(len <= 739);
                    assert_eq!(inline_len(sealed.text.len()), Some(len));
                    assert_eq!(open_inline(&key(), &bytes).unwrap(), target);
                }
                (DiskTarget::Long { link, .. }, Some((id, file))) => {
                    assert!(len > 739 && link == id && file.len() <= LINK_FILE_MAX);
                    assert_eq!(open_file(&key(), link, &file).unwrap(), target);
                    assert_eq!(
                        open_file(&key(), FileId([0; 16]), &file),
                        Err(FormatError::NotAuthentic)
                    );
                    assert_eq!(open_file(&key(), link, &file[..11]), Err(FormatError::TooShort));
                }
                other => panic!("length {len}: {other:?}"),
            }
        }
        assert!(seal(&key(), b"").is_err());
        assert!(seal(&key(), &[b't'; 4096]).is_err());
    }

    #[test]
    fn a_link_of_before_whose_text_is_longer_than_is_written_now_opens() {
        let (target, nonce) = (vec![b't'; 3043], [9; 12]);
        let sealed = [&nonce[..], &siv::seal(key().as_bytes(), &nonce, b"", &target)].concat();
        let text = BASE64URL_NOPAD.encode(&sealed);
        assert_eq!(text.len(), TARGET_MAX);
        assert_eq!(inline_len(text.len()), Some(3043));
        assert_eq!(decode(text.as_bytes()).unwrap(), DiskTarget::Inline(sealed.clone()));
        assert_eq!(open_inline(&key(), &sealed).unwrap(), target);
    }

    #[test]
    fn foreign_links_are_refused() {
        for bad in [
            &b"/etc/passwd"[..],
            b"../x",
            b"",
            b"AAAA",
            b"+short+3",
            b"+AAAAAAAAAAAAAAAAAAAAAA+99999",
        ] {
            assert!(decode(bad).is_err(), "{bad:?}");
        }
    }
}
