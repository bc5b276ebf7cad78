//! Extended attributes: names hashed, values sealed together with their names (docs/FORMAT.md section 8).

use data_encoding::BASE64URL_NOPAD;

use super::FormatError;
use crate::crypto::{
    TAG_SIZE,
    keys::{MacKey, SivKey},
    random, siv,
};

/// The longest name of an attribute, in bytes: XATTR_NAME_MAX.
pub const XATTR_NAME_MAX: usize = 255;

/// Bytes that sealing adds to a value, beside its name.
pub const XATTR_OVERHEAD: usize = siv::NONCE_SIZE + TAG_SIZE + 2;

/// Where attributes of files and directories are stored.
const USER_PREFIX: &str = "user.hush.";

/// Where attributes of links and special files are stored: user attributes are not allowed there.
const TRUSTED_PREFIX: &str = "trusted.hush.";

/// Seals and opens attributes.
#[derive(Debug)]
pub struct XattrKeys {
    /// Seals values.
    pub value: SivKey,
    /// Hashes names.
    pub name: MacKey,
}

/// The hash an attribute is stored under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XattrHash([u8; 16]);

impl XattrHash {
    /// Returns the attribute's name on disk. `plain_file` says that the file is a regular one or a directory.
    pub fn disk_name(self, plain_file: bool) -> String {
        let prefix = if plain_file { USER_PREFIX } else { TRUSTED_PREFIX };
        format!("{prefix}{}", BASE64URL_NOPAD.encode(&self.0))
    }

    /// Parses a name on disk; nothing for attributes that are not hushfs's.
    pub fn from_disk_name(name: &[u8]) -> Option<Self> {
        let hash = name
            .strip_prefix(USER_PREFIX.as_bytes())
            .or_else(|| name.strip_prefix(TRUSTED_PREFIX.as_bytes()))?;
        Some(XattrHash(BASE64URL_NOPAD.decode(hash).ok()?.try_into().ok()?))
    }
}

impl XattrKeys {
    /// Returns the hash an attribute is stored under.
    pub fn hash(&self, name: &[u8]) -> XattrHash {
        let mac = self.name.mac(name);
        XattrHash(mac[..16].try_into().expect("half of 32 bytes"))
    }

    /// Seals an attribute.
    ///
    /// # Errors
    ///
    /// [`FormatError::OutOfRange`] when the name is empty or longer than [`XATTR_NAME_MAX`].
    pub fn seal(&self, name: &[u8], value: &[u8]) -> Result<Vec<u8>, FormatError> {
        if name.is_empty() || name.len() > XATTR_NAME_MAX {
            return Err(FormatError::OutOfRange("length of the attribute's name"));
        }
        let len = u16::try_from(name.len()).expect("at most XATTR_NAME_MAX");
        let plain = [&len.to_le_bytes()[..], name, value].concat();
        let nonce = random::bytes();
        let sealed = siv::seal(self.value.as_bytes(), &nonce, &self.hash(name).0, &plain);
        Ok([&nonce[..], &sealed].concat())
    }

    /// Opens an attribute stored under `hash`: its name and value.
    ///
    /// # Errors
    ///
    /// [`FormatError::NotAuthentic`] when it was changed, or moved from another attribute.
    pub fn open(&self, hash: XattrHash, sealed: &[u8]) -> Result<(Vec<u8>, Vec<u8>), FormatError> {
        let (nonce, body) = sealed.split_first_chunk().ok_or(FormatError::TooShort)?;
        let plain = siv::open(self.value.as_bytes(), nonce, &hash.0, body).map_err(|_| FormatError::NotAuthentic)?;
        let (len, rest) = plain.split_first_chunk().ok_or(FormatError::TooShort)?;
        let (name, value) = rest
            .split_at_checked(usize::from(u16::from_le_bytes(*len)))
            .ok_or(FormatError::TooShort)?;
        if self.hash(name) != hash {
            return Err(FormatError::NotAuthentic);
        }
        Ok((name.to_vec(), value.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::keys::KeyBytes;

    fn keys() -> XattrKeys {
        XattrKeys {
            value: SivKey::new(KeyBytes::copy_of(&[6; 32])),
            name: MacKey::new(KeyBytes::copy_of(&[7; 32])),
        }
    }

    #[test]
    fn an_attribute_comes_back_under_its_own_hash_only() {
        let hash = keys().hash(b"user.colour");
        assert_eq!(XattrHash::from_disk_name(hash.disk_name(true).as_bytes()), Some(hash));
        assert_eq!(XattrHash::from_disk_name(hash.disk_name(false).as_bytes()), Some(hash));
        for value in [&b""[..], b"red"] {
            let sealed = keys().seal(b"user.colour", value).unwrap();
            assert_eq!(sealed.len(), XATTR_OVERHEAD + 11 + value.len());
            assert_eq!(
                keys().open(hash, &sealed),
                Ok((b"user.colour".to_vec(), value.to_vec()))
            );
            assert_eq!(
                keys().open(keys().hash(b"user.other"), &sealed),
                Err(FormatError::NotAuthentic)
            );
        }
        assert!(keys().seal(&[b'x'; 256], b"").is_err());
        assert_eq!(keys().open(hash, b"short"), Err(FormatError::TooShort));
    }

    #[test]
    fn foreign_attributes_are_not_ours() {
        for name in [&b"user.colour"[..], b"user.hush.", b"user.hush.!!", b"security.selinux"] {
            assert_eq!(XattrHash::from_disk_name(name), None);
        }
    }
}
