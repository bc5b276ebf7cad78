//! Where a byte of plaintext lies in a data file: all offset arithmetic there is (docs/FORMAT.md section 5.2).

use super::FormatError;
use crate::{
    crypto::{TAG_SIZE, block::Suite},
    units::{BlockIndex, CipherOffset, CipherSize, PlainOffset, PlainSize},
};

/// Bytes before the first block of a data file.
pub const PREAMBLE_SIZE: u64 = 256;

/// The smallest block, in bytes of plaintext.
pub const BLOCK_SIZE_MIN: u32 = 4096;

/// The largest block, in bytes of plaintext.
pub const BLOCK_SIZE_MAX: u32 = 65536;

/// The largest file: 16 TiB, what ext4 takes at its default block size; far from overflowing any offset below.
pub const PLAIN_SIZE_MAX: u64 = 16 << 40;

const _: () = assert!(PLAIN_SIZE_MAX / (BLOCK_SIZE_MIN as u64) < u64::MAX / (2 * BLOCK_SIZE_MAX as u64));

/// How a vault's data files are divided into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    suite: Suite,
    block_size: u64,
}

/// What a data file's size says about its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes of plaintext.
    pub plain: PlainSize,
    /// Bytes at the end that are no whole block and too few for a part of one: what a crash may leave.
    pub torn: u64,
}

impl Layout {
    /// Makes a layout.
    ///
    /// # Errors
    ///
    /// [`FormatError::OutOfRange`] when the block size is not a power of two from 4096 to 65536.
    pub fn new(suite: Suite, block_size: u32) -> Result<Self, FormatError> {
        if !block_size.is_power_of_two() || !(BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block_size) {
            return Err(FormatError::OutOfRange("block size"));
        }
        Ok(Layout {
            suite,
            block_size: block_size.into(),
        })
    }

    /// Returns the cipher of the blocks.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Returns how many bytes of plaintext a full block holds.
    pub fn block_size(&self) -> u64 {
        self.block_size
    }

    /// Returns how many bytes a full block takes in the data file.
    pub fn stride(&self) -> u64 {
        self.block_size + self.overhead()
    }

    /// Returns how many bytes sealing adds to a block.
    pub fn overhead(&self) -> u64 {
        self.suite.overhead() as u64
    }

    /// Returns the block that holds a byte of plaintext.
    pub fn block_of(&self, offset: PlainOffset) -> BlockIndex {
        BlockIndex(offset.0 / self.block_size)
    }

    /// Returns how many blocks a size of plaintext takes, the last one perhaps in part.
    pub fn block_count(&self, size: PlainSize) -> u64 {
        size.0.div_ceil(self.block_size)
    }

    /// Returns the offset of a block's first byte of plaintext.
    pub fn plain_start(&self, block: BlockIndex) -> PlainOffset {
        PlainOffset(block.0 * self.block_size)
    }

    /// Returns the offset of a sealed block.
    pub fn cipher_start(&self, block: BlockIndex) -> CipherOffset {
        CipherOffset(PREAMBLE_SIZE + block.0 * self.stride())
    }

    /// Returns the offset of a full sealed block's tag.
    pub fn tag_start(&self, block: BlockIndex, plain_len: u64) -> CipherOffset {
        CipherOffset(self.cipher_start(block).0 + self.suite.nonce_size() as u64 + plain_len)
    }

    /// Returns how many bytes of plaintext a block holds in a file of a size; 0 behind the end.
    pub fn plain_len(&self, block: BlockIndex, size: PlainSize) -> u64 {
        size.0.saturating_sub(self.plain_start(block).0).min(self.block_size)
    }

    /// Returns how many bytes of plaintext `count` blocks from `first` on hold in a file of a size.
    pub fn plain_len_of_run(&self, first: BlockIndex, count: u64, size: PlainSize) -> u64 {
        let len = size.0.saturating_sub(self.plain_start(first).0);
        len.min(count * self.block_size)
    }

    /// Returns how many bytes plaintext from the start of a block on takes when it is sealed.
    pub fn sealed_len(&self, plain_len: u64) -> u64 {
        plain_len + plain_len.div_ceil(self.block_size) * self.overhead()
    }

    /// Returns the size of a data file that has a preamble and holds this much plaintext.
    pub fn cipher_size(&self, size: PlainSize) -> CipherSize {
        CipherSize(PREAMBLE_SIZE + self.sealed_len(size.0))
    }

    /// Returns what a data file's size says.
    ///
    /// A file shorter than a preamble that is not empty is all torn.
    pub fn extent(&self, size: CipherSize) -> Extent {
        let Some(body) = size.0.checked_sub(PREAMBLE_SIZE) else {
            return Extent {
                plain: PlainSize(0),
                torn: size.0,
            };
        };
        let (full, rest) = (body / self.stride(), body % self.stride());
        let (last, torn) = match rest.checked_sub(self.overhead()) {
            Some(last) if last > 0 => (last, 0),
            _ => (0, rest),
        };
        Extent {
            plain: PlainSize(full * self.block_size + last),
            torn,
        }
    }

    /// Returns the size of plaintext for `stat`: arithmetic on the data file's size alone.
    pub fn plain_size(&self, size: CipherSize) -> PlainSize {
        self.extent(size).plain
    }
}

const _: () = assert!(TAG_SIZE == 16);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout() -> Layout {
        Layout::new(Suite::Aes256GcmSiv, 4096).unwrap()
    }

    #[test]
    fn worked_sizes_of_the_format() {
        for (plain, cipher) in [
            (0, 256),
            (1, 285),
            (4096, 4380),
            (4097, 4409),
            (5000, 5312),
            (1 << 20, 1_056_000),
        ] {
            assert_eq!(layout().cipher_size(PlainSize(plain)), CipherSize(cipher));
            assert_eq!(layout().plain_size(CipherSize(cipher)), PlainSize(plain));
        }
        assert_eq!(layout().plain_size(CipherSize(0)), PlainSize(0));
    }

    #[test]
    fn every_small_size_and_its_torn_neighbours() {
        for plain in 0..10_000 {
            let cipher = layout().cipher_size(PlainSize(plain));
            let whole = Extent {
                plain: PlainSize(plain),
                torn: 0,
            };
            assert_eq!(layout().extent(cipher), whole);
        }
        for torn in 1..=28 {
            let extent = layout().extent(CipherSize(4380 + torn));
            assert_eq!(
                extent,
                Extent {
                    plain: PlainSize(4096),
                    torn
                }
            );
        }
        assert_eq!(layout().extent(CipherSize(255)).torn, 255);
    }

    #[test]
    fn only_powers_of_two_are_block_sizes() {
        for bad in [0, 1, 2048, 4095, 5000, 131_072] {
            assert!(Layout::new(Suite::Aes256GcmSiv, bad).is_err());
        }
    }

    proptest! {
        #[test]
        fn sizes_go_both_ways(plain in 0..PLAIN_SIZE_MAX, shift in 0u32..5, xchacha: bool) {
            let suite = if xchacha { Suite::XChaCha20Poly1305 } else { Suite::Aes256GcmSiv };
            let layout = Layout::new(suite, 4096 << shift).unwrap();
            let extent = layout.extent(layout.cipher_size(PlainSize(plain)));
            prop_assert_eq!(extent, Extent { plain: PlainSize(plain), torn: 0 });
        }
    }
}
