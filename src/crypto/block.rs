//! Seals and opens the blocks of a file: the bulk of all work.
//!
//! A sealed block is `nonce ‖ ciphertext ‖ tag` (docs/FORMAT.md section 5.2). The cipher of a vault is fixed when the vault is made.

use std::fmt;

use aes_gcm_siv::{
    AeadInOut, KeyInit,
    aead::{Nonce, Tag, inout::InOutBuf},
};
use chacha20poly1305::XChaCha20Poly1305;

use super::{
    OpenError, TAG_SIZE,
    keys::DataKey,
    random,
    seal::{BlockSum, SealKey},
};
use crate::{ids::FileId, units::BlockIndex};

/// Authenticated with every block, so that a block of another format version never opens.
const BLOCK_VERSION: u16 = 1;

/// The size of the longest nonce of a suite, in bytes.
const NONCE_SIZE_MAX: usize = 24;

/// Nonces drawn at a time.
const NONCES_DRAWN: usize = 16;

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

    /// Returns the library that files of this suite are sealed and opened with.
    pub const fn library(self) -> Library {
        match self {
            Suite::Aes256GcmSiv if cfg!(feature = "aws-lc") => Library::AwsLc,
            Suite::Aes256GcmSiv | Suite::XChaCha20Poly1305 => Library::Portable,
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whose implementation of a suite is used. All of a suite give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// aws-lc: C and assembly; AES-256-GCM-SIV only, and only if it is built in.
    AwsLc,
    /// The crates of RustCrypto.
    Portable,
}

impl Library {
    /// All libraries.
    pub const ALL: [Library; 2] = [Library::AwsLc, Library::Portable];

    /// Returns the library's name, as users see it.
    pub fn name(self) -> &'static str {
        match self {
            Library::AwsLc => "aws-lc",
            Library::Portable => "portable",
        }
    }
}

/// Blocks that follow one another: all whole, but perhaps the last.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// The first block.
    pub first: BlockIndex,
    /// Bytes of plaintext in a whole block.
    pub block_size: usize,
}

/// Seals and opens one file's blocks: an expanded key, made once per open file.
pub struct BlockCipher(Implementation);

enum Implementation {
    #[cfg(feature = "aws-lc")]
    AwsLc(aws_lc_rs::aead::LessSafeKey),
    Portable(Box<aes_gcm_siv::Aes256GcmSiv>),
    XChaCha(Box<XChaCha20Poly1305>),
}

impl BlockCipher {
    /// Derives a file's block key and expands it.
    pub fn new(suite: Suite, key: &DataKey, file: FileId) -> Self {
        Self::of_library(suite.library(), suite, key, file).expect("the library of a suite implements it")
    }

    /// As [`BlockCipher::new`], with a library of the caller's choice; nothing if it does not implement the suite, or is not built in.
    pub fn of_library(library: Library, suite: Suite, key: &DataKey, file: FileId) -> Option<Self> {
        let block_key = key.block_key(file, suite.number());
        Self::from_key(library, suite, block_key.as_bytes())
    }

    fn from_key(library: Library, suite: Suite, key: &[u8; 32]) -> Option<Self> {
        let implementation = match (suite, library) {
            #[cfg(feature = "aws-lc")]
            (Suite::Aes256GcmSiv, Library::AwsLc) => Implementation::AwsLc(aws_lc_rs::aead::LessSafeKey::new(
                aws_lc_rs::aead::UnboundKey::new(&aws_lc_rs::aead::AES_256_GCM_SIV, key)
                    .expect("a key of 32 bytes fits the cipher"),
            )),
            (Suite::Aes256GcmSiv, Library::Portable) => {
                Implementation::Portable(Box::new(aes_gcm_siv::Aes256GcmSiv::new(key.into())))
            }
            (Suite::XChaCha20Poly1305, Library::Portable) => {
                Implementation::XChaCha(Box::new(XChaCha20Poly1305::new(key.into())))
            }
            _ => return None,
        };
        Some(BlockCipher(implementation))
    }

    /// Returns the suite the cipher implements.
    pub fn suite(&self) -> Suite {
        match &self.0 {
            #[cfg(feature = "aws-lc")]
            Implementation::AwsLc(_) => Suite::Aes256GcmSiv,
            Implementation::Portable(_) => Suite::Aes256GcmSiv,
            Implementation::XChaCha(_) => Suite::XChaCha20Poly1305,
        }
    }

    /// Seals blocks side by side into `sealed`, each under a new nonce; returns what they add to the sum of the file's seal.
    ///
    /// # Panics
    ///
    /// When `sealed` is not as long as the blocks of `plain` become.
    pub fn seal_run(&self, seal_key: &SealKey, run: Run, plain: &[u8], sealed: &mut [u8]) -> BlockSum {
        let suite = self.suite();
        let nonce_size = suite.nonce_size();
        let mut nonces = [0; NONCES_DRAWN * NONCE_SIZE_MAX];
        let mut sum = BlockSum::default();
        let mut index = run.first;
        let drawn_for = plain.chunks(NONCES_DRAWN * run.block_size);
        let into = sealed.chunks_mut(NONCES_DRAWN * (run.block_size + suite.overhead()));
        assert_eq!(drawn_for.len(), into.len());
        for (plain, sealed) in drawn_for.zip(into) {
            let plain = plain.chunks(run.block_size);
            let nonces = &mut nonces[..plain.len() * nonce_size];
            random::fill(nonces);
            let sealed = sealed.chunks_mut(run.block_size + suite.overhead());
            assert_eq!(plain.len(), sealed.len());
            for ((plain, sealed), nonce) in plain.zip(sealed).zip(nonces.chunks_exact(nonce_size)) {
                sealed[..nonce_size].copy_from_slice(nonce);
                self.seal(index, plain, sealed);
                sum += seal_key.term(index, &Self::tag(sealed));
                index = BlockIndex(index.0 + 1);
            }
        }
        sum
    }

    /// Opens blocks side by side into `plain`. A block of nothing but zeros is a hole, which only files with holes have.
    ///
    /// # Errors
    ///
    /// The first block that does not open, or is a hole and must not be; what `plain` then holds must not be used.
    ///
    /// # Panics
    ///
    /// When `plain` is not as long as the blocks of `sealed` become.
    pub fn open_run(&self, run: Run, has_holes: bool, sealed: &[u8], plain: &mut [u8]) -> Result<(), BlockIndex> {
        let sealed = sealed.chunks(run.block_size + self.suite().overhead());
        let plain = plain.chunks_mut(run.block_size);
        assert_eq!(sealed.len(), plain.len());
        for ((sealed, plain), index) in sealed.zip(plain).zip(run.first.0..) {
            if is_hole(sealed) {
                // Without holes a zeroed block is damage or an attack, never data: EncFS and others return zeros here.
                if !has_holes {
                    return Err(BlockIndex(index));
                }
                plain.fill(0);
            } else {
                self.open(BlockIndex(index), sealed, plain)
                    .map_err(|_| BlockIndex(index))?;
            }
        }
        Ok(())
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
                let nonce = Nonce::try_assume_unique_for_key(nonce).expect("the nonce is 12 bytes");
                key.seal_out_of_place_scatter(nonce, Aad::from(aad), plain, body, &[], tag_out)
                    .expect("a block is far below the cipher's limit");
            }
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

/// Tells whether a sealed block is all zero.
pub fn is_hole(sealed: &[u8]) -> bool {
    // Nonces are random, so a block that is not a hole shows it in its first bytes.
    sealed.iter().all(|&byte| byte == 0)
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
            let cipher = BlockCipher::from_key(suite.library(), suite, &[5; 32]).unwrap();
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
            let suite = Suite::Aes256GcmSiv;
            let ours = BlockCipher::from_key(suite.library(), suite, &key).unwrap();
            let portable = BlockCipher::from_key(Library::Portable, suite, &key).unwrap();
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

    #[test]
    fn a_run_is_its_blocks_side_by_side() {
        for suite in Suite::ALL {
            let (key, file) = (DataKey::new(random::key()), FileId([2; 16]));
            let (cipher, seal_key) = (BlockCipher::new(suite, &key, file), key.seal_key(file, suite.number()));
            for (count, rest) in [(0, 1), (1, 0), (3, 7), (16, 0), (16, 1), (40, 50)] {
                let run = Run {
                    first: BlockIndex(9),
                    block_size: 64,
                };
                let plain: Vec<u8> = (0..count * 64 + rest).map(|i| i as u8).collect();
                let mut sealed = vec![0; plain.len() + plain.chunks(64).len() * suite.overhead()];
                let sum = cipher.seal_run(&seal_key, run, &plain, &mut sealed);
                let mut expected = BlockSum::default();
                let mut nonces = std::collections::HashSet::new();
                for (i, block) in sealed.chunks(64 + suite.overhead()).enumerate() {
                    let index = BlockIndex(9 + i as u64);
                    let mut opened = vec![0; block.len() - suite.overhead()];
                    cipher.open(index, block, &mut opened).unwrap();
                    assert_eq!(opened, plain[i * 64..][..opened.len()]);
                    expected += seal_key.term(index, &BlockCipher::tag(block));
                    assert!(nonces.insert(&block[..suite.nonce_size()]), "a nonce twice");
                }
                assert_eq!(sum, expected);
                let mut opened = vec![0; plain.len()];
                cipher.open_run(run, false, &sealed, &mut opened).unwrap();
                assert_eq!(opened, plain);
            }
        }
    }

    #[test]
    fn a_run_says_which_block_does_not_open() {
        let suite = Suite::Aes256GcmSiv;
        let (key, file) = (DataKey::new(random::key()), FileId([2; 16]));
        let (cipher, seal_key) = (BlockCipher::new(suite, &key, file), key.seal_key(file, suite.number()));
        let run = Run {
            first: BlockIndex(5),
            block_size: 64,
        };
        let stride = 64 + suite.overhead();
        let mut sealed = vec![0; 3 * stride];
        cipher.seal_run(&seal_key, run, &[7; 3 * 64], &mut sealed);
        let mut plain = [1; 3 * 64];
        let mut changed = sealed.clone();
        changed[2 * stride + 20] ^= 1;
        assert_eq!(cipher.open_run(run, true, &changed, &mut plain), Err(BlockIndex(7)));
        sealed[stride..2 * stride].fill(0);
        assert_eq!(cipher.open_run(run, false, &sealed, &mut plain), Err(BlockIndex(6)));
        cipher.open_run(run, true, &sealed, &mut plain).unwrap();
        assert_eq!(plain[64..128], [0; 64]);
        assert_eq!(plain[128..], [7; 64]);
    }
}
