//! Reads and authenticates content for its own sake: in parts, so that several threads can read one file, and going on behind what is damaged.

use std::ops::Range;

use super::{Content, ContentError, READ_CHUNK_BLOCKS};
use crate::{
    backing::Storage,
    crypto::{TAG_SIZE, seal::BlockSum},
    format::preamble::State,
    units::{BlockIndex, PlainSize},
};

impl<S: Storage> Content<S> {
    /// Reads and authenticates everything, and compares the sum of a sealed file. `progress` hears of bytes read.
    ///
    /// # Errors
    ///
    /// The first fault found.
    pub fn verify(&self, mut progress: impl FnMut(u64)) -> Result<(), ContentError> {
        let mut first = None;
        let sum = self.verify_blocks(0..self.block_count(), &mut progress, &mut |blocks| {
            first.get_or_insert(BlockIndex(blocks.start));
        })?;
        match first {
            Some(block) => Err(ContentError::Damaged(block)),
            None => self.check_sum(sum),
        }
    }

    /// Returns how many blocks there are.
    pub fn block_count(&self) -> u64 {
        self.layout.block_count(self.size())
    }

    /// Returns the size that the file gets by a cut inside a block that was interrupted, and is to be finished.
    pub fn being_cut_to(&self) -> Option<PlainSize> {
        let state = self.state.read();
        state.preamble.cutting.then_some(state.preamble.plain_size)
    }

    /// Reads and authenticates some blocks; returns what they add to the sum. `progress` hears of bytes of plaintext passed, `damaged` of blocks that
    /// do not authenticate.
    ///
    /// # Errors
    ///
    /// [`ContentError::Io`] when the storage fails, [`ContentError::Damaged`] when it holds less than it said.
    pub fn verify_blocks(
        &self,
        blocks: Range<u64>,
        progress: &mut dyn FnMut(u64),
        damaged: &mut dyn FnMut(Range<u64>),
    ) -> Result<BlockSum, ContentError> {
        let size = self.size();
        let end = blocks.end.min(self.layout.block_count(size));
        let sparse = self.is_sparse();
        let (mut sealed, mut plain) = (Vec::new(), Vec::new());
        let mut sum = BlockSum::default();
        let mut at = blocks.start;
        while at < end {
            // A hole of terabytes is passed over at once, also one that is damage: it costs nothing to make.
            let data = self.skip_hole(BlockIndex(at))?.map_or(end, |block| block.0.min(end));
            if data > at {
                if !sparse {
                    damaged(at..data);
                }
                progress(self.layout.plain_len_of_run(BlockIndex(at), data - at, size));
                at = data;
                continue;
            }
            let count = READ_CHUNK_BLOCKS.min(end - at);
            let first = BlockIndex(at);
            let plain_len = self.layout.plain_len_of_run(first, count, size);
            plain.resize(plain_len as usize, 0);
            sealed.resize(self.layout.sealed_len(plain_len) as usize, 0);
            let got = {
                let _state = self.state.read();
                self.storage.read_at(&mut sealed, self.layout.cipher_start(first).0)?
            };
            if got < sealed.len() {
                return Err(ContentError::Damaged(BlockIndex(
                    at + got as u64 / self.layout.stride(),
                )));
            }
            let opened = self.cipher.open_run(self.run(first), sparse, &sealed, &mut plain);
            if opened.is_err() {
                self.name_damaged(first, sparse, &sealed, &mut plain, damaged);
            }
            let stride = self.layout.stride() as usize;
            for (index, block) in (at..).zip(sealed.chunks(stride)) {
                let tag: &[u8; TAG_SIZE] = block.last_chunk().expect("a block is longer than its tag");
                if *tag != [0; TAG_SIZE] {
                    sum += self.seal_key.term(BlockIndex(index), tag);
                }
            }
            progress(plain_len);
            at += count;
        }
        Ok(sum)
    }

    /// Tries each block of a run by itself.
    fn name_damaged(
        &self,
        first: BlockIndex,
        sparse: bool,
        sealed: &[u8],
        plain: &mut [u8],
        damaged: &mut dyn FnMut(Range<u64>),
    ) {
        let sealed = sealed.chunks(self.layout.stride() as usize);
        let plain = plain.chunks_mut(self.layout.block_size() as usize);
        for (index, (sealed, plain)) in (first.0..).zip(sealed.zip(plain)) {
            if self
                .cipher
                .open_run(self.run(BlockIndex(index)), sparse, sealed, plain)
                .is_err()
            {
                damaged(index..index + 1);
            }
        }
    }

    /// Compares the sum of all blocks with the one that a sealed file was sealed with.
    ///
    /// # Errors
    ///
    /// [`ContentError::WrongSum`].
    pub fn check_sum(&self, sum: BlockSum) -> Result<(), ContentError> {
        let state = self.state.read();
        if state.preamble.state == State::Sealed && sum != state.preamble.sum {
            return Err(ContentError::WrongSum);
        }
        Ok(())
    }
}
