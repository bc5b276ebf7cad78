//! Small messages under AES-256-GCM-SIV: names, targets of links, attributes, wrapped keys.

use aes_gcm_siv::{
    AeadInOut, Aes256GcmSiv, KeyInit,
    aead::{Nonce, Tag, inout::InOutBuf},
};

use super::{KEY_SIZE, OpenError, TAG_SIZE};

/// The size of a nonce, in bytes.
pub const NONCE_SIZE: usize = 12;

/// Returns `plain` sealed: ciphertext ‖ tag.
pub fn seal(key: &[u8; KEY_SIZE], nonce: &[u8; NONCE_SIZE], aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut sealed = vec![0; plain.len() + TAG_SIZE];
    let (body, tag_out) = sealed.split_at_mut(plain.len());
    let tag = Aes256GcmSiv::new(key.into())
        .encrypt_inout_detached(
            &Nonce::<Aes256GcmSiv>::from(*nonce),
            aad,
            InOutBuf::new(plain, body).expect("both sides have the same length"),
        )
        .expect("the message is far below the cipher's limit");
    tag_out.copy_from_slice(&tag);
    sealed
}

/// Opens what [`seal`] made.
///
/// # Errors
///
/// [`OpenError`] when the message was changed or is not under this key, nonce and additional data.
pub fn open(key: &[u8; KEY_SIZE], nonce: &[u8; NONCE_SIZE], aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
    let body_len = sealed.len().checked_sub(TAG_SIZE).ok_or(OpenError)?;
    let (body, tag) = sealed.split_at(body_len);
    let mut plain = vec![0; body_len];
    Aes256GcmSiv::new(key.into())
        .decrypt_inout_detached(
            &Nonce::<Aes256GcmSiv>::from(*nonce),
            aad,
            InOutBuf::new(body, &mut plain).expect("both sides have the same length"),
            &Tag::<Aes256GcmSiv>::try_from(tag).expect("the tag was split off at its size"),
        )
        .map_err(|_| OpenError)?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    /// RFC 8452 appendix C.2, the vectors with plaintexts of 8 and 12 bytes and additional data, and the empty one.
    #[test]
    fn rfc_8452_vectors() {
        let vectors = [
            (
                "0100000000000000000000000000000000000000000000000000000000000000",
                "030000000000000000000000",
                "",
                "",
                "07f5f4169bbf55a8400cd47ea6fd400f",
            ),
            (
                "0100000000000000000000000000000000000000000000000000000000000000",
                "030000000000000000000000",
                "",
                "0100000000000000",
                "c2ef328e5c71c83b843122130f7364b761e0b97427e3df28",
            ),
            (
                "0100000000000000000000000000000000000000000000000000000000000000",
                "030000000000000000000000",
                "01",
                "0200000000000000",
                "1de22967237a813291213f267e3b452f02d01ae33e4ec854",
            ),
            (
                "0100000000000000000000000000000000000000000000000000000000000000",
                "030000000000000000000000",
                "01",
                "020000000000000000000000",
                "163d6f9cc1b346cd453a2e4cc1a4a19ae800941ccdc57cc8413c277f",
            ),
        ];
        for (key, nonce, aad, plain, expected) in vectors {
            let hex = |text: &str| HEXLOWER.decode(text.as_bytes()).unwrap();
            let key = hex(key).try_into().unwrap();
            let nonce = hex(nonce).try_into().unwrap();
            let sealed = seal(&key, &nonce, &hex(aad), &hex(plain));
            assert_eq!(HEXLOWER.encode(&sealed), expected);
            assert_eq!(open(&key, &nonce, &hex(aad), &sealed).unwrap(), hex(plain));
        }
    }

    #[test]
    fn too_short_a_message_is_refused() {
        assert_eq!(open(&[0; 32], &[0; 12], b"", &[0; 15]), Err(OpenError));
    }
}
