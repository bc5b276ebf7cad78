//! Seals and opens the blocks of a file: the bulk of all work.
//!
//! A sealed block is `nonce ‖ ciphertext ‖ tag` (docs/FORMAT.md section 5.2). The cipher of a vault is fixed when the vault is made.

use std::fmt;

use aes_gcm_siv::{
    AeadInOut, KeyInit,
    aead::{Nonce, Tag, inout::InOutBuf},
};
use chacha20poly1305::XChaCha20Poly1305;

use super::{OpenError, TAG_SIZE, keys::DataKey};
use crate::{ids::FileId, units::BlockIndex};

/// Authenticated with every block, so that a block of another format version never opens.
const BLOCK_VERSION: u16 = 1;

/// The cipher of a vault's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Suite {
    /// AEAD_AES_256_GCM_SIV, RFC 8452.
    Aes256GcmSiv,
    /// XChaCha20-Poly1305, for processors without AES instructions (draft-irtf-cfrg-xchacha).
    XChaCha20Poly1305,
}

impl Suite {
    /// All suites, the default first.
    pub const ALL: [Suite; 2] = [Suite::Aes256GcmSiv, Suite::XChaCha20Poly1305];

    /// Returns the number that stands for the suite on disk.
    pub fn number(self) -> u16 {
        match self {
            Suite::Aes256GcmSiv => 1,
            Suite::XChaCha20Poly1305 => 2,
        }
    }

    /// Returns the suite with a number, if there is one.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.number() == number)
    }

    /// Returns the suite's name, as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Suite::Aes256GcmSiv => "aes-256-gcm-siv",
            Suite::XChaCha20Poly1305 => "xchacha20-poly1305",
        }
    }

    /// Returns the size of a nonce, in bytes.
    pub const fn nonce_size(self) -> usize {
        match self {
            Suite::Aes256GcmSiv => 12,
            Suite::XChaCha20Poly1305 => 24,
        }
    }

    /// Returns how many bytes sealing adds to a block.
    pub const fn overhead(self) -> usize {
        self.nonce_size() + TAG_SIZE
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Seals and opens one file's blocks: an expanded key, made once per open file.
pub struct BlockCipher(Implementation);

enum Implementation {
    #[cfg(feature = "aws-lc")]
    AwsLc(aws_lc_rs::aead::LessSafeKey),
    #[cfg(any(test, not(feature = "aws-lc")))]
    Portable(Box<aes_gcm_siv::Aes256GcmSiv>),
    XChaCha(Box<XChaCha20Poly1305>),
}

impl BlockCipher {
    /// Derives a file's block key and expands it.
    pub fn new(suite: Suite, key: &DataKey, file: FileId) -> Self {
        let block_key = key.block_key(file, suite.number());
        Self::from_key(suite, block_key.as_bytes())
    }

    fn from_key(suite: Suite, key: &[u8; 32]) -> Self {
        BlockCipher(match suite {
            #[cfg(feature = "aws-lc")]
            Suite::Aes256GcmSiv => Implementation::AwsLc(aws_lc_rs::aead::LessSafeKey::new(
                aws_lc_rs::aead::UnboundKey::new(&aws_lc_rs::aead::AES_256_GCM_SIV, key)
                    .expect("a key of 32 bytes fits the cipher"),
            )),
            #[cfg(not(feature = "aws-lc"))]
            Suite::Aes256GcmSiv => Implementation::Portable(Box::new(aes_gcm_siv::Aes256GcmSiv::new(key.into()))),
            Suite::XChaCha20Poly1305 => Implementation::XChaCha(Box::new(XChaCha20Poly1305::new(key.into()))),
        })
    }

    /// Returns the suite the cipher implements.
    pub fn suite(&self) -> Suite {
        match &self.0 {
            #[cfg(feature = "aws-lc")]
            Implementation::AwsLc(_) => Suite::Aes256GcmSiv,
            #[cfg(any(test, not(feature = "aws-lc")))]
            Implementation::Portable(_) => Suite::Aes256GcmSiv,
            Implementation::XChaCha(_) => Suite::XChaCha20Poly1305,
        }
    }

    /// Seals `plain` into `sealed`, whose front already holds a nonce never used before.
    ///
    /// # Panics
    ///
    /// When `sealed` is not `plain.len()` plus the suite's overhead long.
    pub fn seal(&self, index: BlockIndex, plain: &[u8], sealed: &mut [u8]) {
        assert_eq!(sealed.len(), plain.len() + self.suite().overhead());
        let aad = additional_data(index);
        let (nonce, rest) = sealed.split_at_mut(self.suite().nonce_size());
        let (body, tag_out) = rest.split_at_mut(plain.len());
        match &self.0 {
            #[cfg(feature = "aws-lc")]
            Implementation::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                body.copy_from_slice(plain);
                let nonce = Nonce::try_assume_unique_for_key(nonce).expect("the nonce is 12 bytes");
                let tag = key
                    .seal_in_place_separate_tag(nonce, Aad::from(aad), body)
                    .expect("a block is far below the cipher's limit");
                tag_out.copy_from_slice(tag.as_ref());
            }
            #[cfg(any(test, not(feature = "aws-lc")))]
            Implementation::Portable(cipher) => seal_portable(&**cipher, nonce, &aad, plain, body, tag_out),
            Implementation::XChaCha(cipher) => seal_portable(&**cipher, nonce, &aad, plain, body, tag_out),
        }
    }

    /// Opens `sealed` into `plain`.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when the block was changed, or sealed for another index or under another key; what `plain` then
    /// holds must not be used.
    ///
    /// # Panics
    ///
    /// When `plain` is not `sealed.len()` minus the suite's overhead long.
    pub fn open(&self, index: BlockIndex, sealed: &[u8], plain: &mut [u8]) -> Result<(), OpenError> {
        assert_eq!(sealed.len(), plain.len() + self.suite().overhead());
        let aad = additional_data(index);
        let (nonce, rest) = sealed.split_at(self.suite().nonce_size());
        let (body, tag) = rest.split_at(plain.len());
        match &self.0 {
            #[cfg(feature = "aws-lc")]
            Implementation::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::try_assume_unique_for_key(nonce).expect("the nonce is 12 bytes");
                key.open_separate_gather(nonce, Aad::from(aad), body, tag, plain)
                    .map_err(|_| OpenError)
            }
            #[cfg(any(test, not(feature = "aws-lc")))]
            Implementation::Portable(cipher) => open_portable(&**cipher, nonce, &aad, body, tag, plain),
            Implementation::XChaCha(cipher) => open_portable(&**cipher, nonce, &aad, body, tag, plain),
        }
    }

    /// Returns the tag of a sealed block, what the seal's sum is made of.
    pub fn tag(sealed: &[u8]) -> [u8; TAG_SIZE] {
        sealed[sealed.len() - TAG_SIZE..]
            .try_into()
            .expect("a slice of the size of a tag")
    }
}

impl fmt::Debug for BlockCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockCipher({}, [redacted])", self.suite())
    }
}

/// Returns what is authenticated with block `index`.
fn additional_data(index: BlockIndex) -> [u8; 10] {
    let mut aad = [0; 10];
    aad[..8].copy_from_slice(&index.0.to_le_bytes());
    aad[8..].copy_from_slice(&BLOCK_VERSION.to_le_bytes());
    aad
}

fn seal_portable<C: AeadInOut>(
    cipher: &C,
    nonce: &[u8],
    aad: &[u8],
    plain: &[u8],
    body: &mut [u8],
    tag_out: &mut [u8],
) {
    let nonce = Nonce::<C>::try_from(nonce).expect("the nonce has the suite's size");
    let buffer = InOutBuf::new(plain, body).expect("both sides have the same length");
    let tag = cipher
        .encrypt_inout_detached(&nonce, aad, buffer)
        .expect("a block is far below the cipher's limit");
    tag_out.copy_from_slice(&tag);
}

fn open_portable<C: AeadInOut>(
    cipher: &C,
    nonce: &[u8],
    aad: &[u8],
    body: &[u8],
    tag: &[u8],
    plain: &mut [u8],
) -> Result<(), OpenError> {
    let nonce = Nonce::<C>::try_from(nonce).expect("the nonce has the suite's size");
    let tag = Tag::<C>::try_from(tag).expect("the tag has the suite's size");
    let buffer = InOutBuf::new(body, plain).expect("both sides have the same length");
    cipher
        .decrypt_inout_detached(&nonce, aad, buffer, &tag)
        .map_err(|_| OpenError)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sealed(cipher: &BlockCipher, index: u64, nonce_byte: u8, plain: &[u8]) -> Vec<u8> {
        let mut out = vec![nonce_byte; plain.len() + cipher.suite().overhead()];
        cipher.seal(BlockIndex(index), plain, &mut out);
        out
    }

    #[test]
    fn a_block_opens_only_at_its_own_index_and_unchanged() {
        for suite in Suite::ALL {
            let cipher = BlockCipher::from_key(suite, &[5; 32]);
            let block = sealed(&cipher, 7, 1, b"attack at dawn");
            let mut plain = [0; 14];
            cipher.open(BlockIndex(7), &block, &mut plain).unwrap();
            assert_eq!(&plain, b"attack at dawn");
            assert_eq!(cipher.open(BlockIndex(8), &block, &mut plain), Err(OpenError));
            for i in 0..block.len() {
                let mut changed = block.clone();
                changed[i] ^= 1;
                assert_eq!(
                    cipher.open(BlockIndex(7), &changed, &mut plain),
                    Err(OpenError),
                    "byte {i}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn both_implementations_of_gcm_siv_agree_byte_for_byte(
            key: [u8; 32], index: u64, nonce: u8, plain in proptest::collection::vec(any::<u8>(), 1..5000)
        ) {
            let ours = BlockCipher::from_key(Suite::Aes256GcmSiv, &key);
            let portable = BlockCipher(Implementation::Portable(Box::new(aes_gcm_siv::Aes256GcmSiv::new(&key.into()))));
            let one = sealed(&ours, index, nonce, &plain);
            let two = sealed(&portable, index, nonce, &plain);
            prop_assert_eq!(&one, &two);
            let mut back = vec![0; plain.len()];
            portable.open(BlockIndex(index), &one, &mut back).unwrap();
            prop_assert_eq!(&back, &plain);
            ours.open(BlockIndex(index), &two, &mut back).unwrap();
            prop_assert_eq!(&back, &plain);
        }
    }

    /// Prints how fast each implementation seals and opens blocks: `cargo test --release block::tests::rates -- --ignored --nocapture`.
    #[test]
    #[ignore = "measures; by hand, in a release build"]
    fn rates() {
        const BLOCK: usize = 4096;
        const COUNT: u64 = 65_536;
        let ciphers = [
            (
                "aes-256-gcm-siv, built in",
                BlockCipher::from_key(Suite::Aes256GcmSiv, &[5; 32]),
            ),
            (
                "aes-256-gcm-siv, portable",
                BlockCipher(Implementation::Portable(Box::new(aes_gcm_siv::Aes256GcmSiv::new(
                    &[5; 32].into(),
                )))),
            ),
            (
                "xchacha20-poly1305",
                BlockCipher::from_key(Suite::XChaCha20Poly1305, &[5; 32]),
            ),
        ];
        for (name, cipher) in ciphers {
            let plain = [7; BLOCK];
            let mut opened = [0; BLOCK];
            let mut sealed = vec![1; BLOCK + cipher.suite().overhead()];
            let gigabytes =
                |elapsed: std::time::Duration| (COUNT as usize * BLOCK) as f64 / elapsed.as_secs_f64() / 1e9;
            let start = std::time::Instant::now();
            for i in 0..COUNT {
                cipher.seal(BlockIndex(i), &plain, &mut sealed);
            }
            let sealing = gigabytes(start.elapsed());
            let start = std::time::Instant::now();
            for _ in 0..COUNT {
                cipher.open(BlockIndex(COUNT - 1), &sealed, &mut opened).unwrap();
            }
            println!(
                "{name}: seals {sealing:.2} GB/s, opens {:.2} GB/s",
                gigabytes(start.elapsed())
            );
        }
    }
}
