//! One file's content: blocks, read-modify-write, holes, and the seal (docs/FORMAT.md section 5.2).
//!
//! Works over any [`Storage`], so that tests can run it in memory and cut it at every step. What always holds:
//!
//! - no plaintext leaves before its block was authenticated;
//! - ciphers run outside the lock, the lock is held around each read and write of the storage, so that nobody reads a block half written;
//! - the change of a sealed file to *open* is durable before the first of its bytes changes.

mod verify;

use std::{cell::RefCell, cmp::Ordering, fmt, io, ops::Range, thread::LocalKey};

use rustix::{fs::Timespec, io::Errno};

use crate::{
    backing::{ShortWrite, Storage},
    crypto::{
        TAG_SIZE,
        block::{BlockCipher, Run, is_hole},
        seal::{BlockSum, SealKey},
    },
    format::{
        FormatError,
        header::FileHeader,
        layout::{Layout, PLAIN_SIZE_MAX, PREAMBLE_SIZE},
        preamble::{Places, Preamble, State, UnverifiedPreamble},
    },
    sync::{RwLock, RwLockUpgradableReadGuard},
    units::{BlockIndex, CipherSize, PlainOffset, PlainSize},
};

/// Blocks read and opened at a time, so that their ciphertext stays in the processor's cache.
const READ_CHUNK_BLOCKS: u64 = 64;

/// Blocks that are looked at for a hole that the storage does not know; whoever asks for holes reads the data before them anyway.
const LOOK_AHEAD_BLOCKS: u64 = 256;

/// Tags that are read while nobody can change the file.
const TAGS_AT_ONCE: u64 = 256;

/// Why content could not be read, written or trusted.
#[derive(Debug)]
pub enum ContentError {
    /// The storage failed.
    Io(io::Error),
    /// A block does not authenticate, or is a hole in a file that has none.
    Damaged(BlockIndex),
    /// The preamble is malformed or was changed.
    Preamble(FormatError),
    /// The data file belongs to another header.
    WrongFile,
    /// A sealed file's size is not the one it was sealed with.
    WrongSize {
        /// The size it was sealed with.
        sealed: PlainSize,
        /// The size it has.
        found: PlainSize,
    },
    /// A sealed file is under a name or in a directory that is not its own.
    Misplaced,
    /// The blocks of a sealed file are not those it was sealed with, though each authenticates: an older version of some.
    WrongSum,
    /// Beyond the largest size a file may have.
    TooLarge,
    /// The file was opened where writing is not possible.
    ReadOnly,
}

impl fmt::Display for ContentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContentError::Io(error) => error.fmt(f),
            ContentError::Damaged(block) => write!(f, "block {} is damaged or was tampered with", block.0),
            ContentError::Preamble(error) => write!(f, "preamble: {error}"),
            ContentError::WrongFile => f.write_str("content and header are of different files"),
            ContentError::WrongSize { sealed, found } => {
                write!(
                    f,
                    "sealed with {} bytes, but has {}: cut or extended by someone",
                    sealed.0, found.0
                )
            }
            ContentError::Misplaced => f.write_str("moved or renamed by someone outside hushfs"),
            ContentError::WrongSum => f.write_str("some blocks are of an older version"),
            ContentError::TooLarge => f.write_str("file too large"),
            ContentError::ReadOnly => f.write_str("the backing file cannot be written"),
        }
    }
}

impl std::error::Error for ContentError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ContentError::Io(error) => Some(error),
            ContentError::Preamble(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for ContentError {
    fn from(error: io::Error) -> Self {
        ContentError::Io(error)
    }
}

/// A file's content.
#[derive(Debug)]
pub struct Content<S> {
    storage: S,
    layout: Layout,
    cipher: BlockCipher,
    seal_key: SealKey,
    /// The preamble and what follows from the storage. Held for reading around each read of the storage, for writing around each write.
    state: RwLock<ContentState>,
}

#[derive(Debug)]
struct ContentState {
    preamble: Preamble,
    /// The storage holds a preamble; false for a new file before its first write.
    preamble_stored: bool,
    /// The storage may hold another one than this, since storing or syncing it failed: nothing changes before that has succeeded.
    preamble_behind: bool,
    size: PlainSize,
    /// The sum over the blocks as they are; unknown after a crash, and computed anew when the file is sealed.
    sum: Option<BlockSum>,
    /// Bytes behind the last block that a crash left.
    torn: bool,
    /// hushfs has given the file more than one name, or a crash leaves open whether. How many it has on disk is for anyone to change.
    several_names: bool,
    /// Counts changes, so that a seal can tell whether what was made durable is still all there is.
    changes: u64,
}

/// What stands in the storage of existing content.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'p> {
    /// How much there is in all.
    pub size: CipherSize,
    /// What it begins with.
    pub preamble: &'p UnverifiedPreamble,
}

/// What was seen before content was made durable; see [`Content::finish_seal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealTicket {
    changes: u64,
}

thread_local! {
    /// Ciphertext of the request at hand, reused from request to request.
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };

    /// Whole blocks of a read that asks for parts of them.
    static BLOCKS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` with a buffer of this thread, `len` bytes of whatever it held before.
fn with_buffer<R>(buffer: &'static LocalKey<RefCell<Vec<u8>>>, len: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
    let mut taken = buffer.take();
    if taken.len() < len {
        taken.resize(len, 0);
    }
    let result = f(&mut taken[..len]);
    buffer.set(taken);
    result
}

/// The blocks of one write.
struct BlockRange {
    first: BlockIndex,
    last: BlockIndex,
    start: u64,
    end: u64,
}

impl BlockRange {
    fn new(layout: &Layout, offset: PlainOffset, len: usize) -> Self {
        let end = offset.0 + len as u64;
        BlockRange {
            first: layout.block_of(offset),
            last: layout.block_of(PlainOffset(end - 1)),
            start: offset.0,
            end,
        }
    }

    fn count(&self) -> u64 {
        self.last.0 - self.first.0 + 1
    }

    /// Returns the blocks that the write covers whole; none where there is no block between its ends.
    fn whole(&self, layout: &Layout) -> Range<u64> {
        self.start.div_ceil(layout.block_size())..self.end / layout.block_size()
    }

    /// Returns which bytes of a block the write covers.
    fn within(&self, layout: &Layout, block: BlockIndex) -> Range<usize> {
        let start = layout.plain_start(block).0;
        let from = self.start.max(start) - start;
        let to = self.end.min(start + layout.block_size()) - start;
        from as usize..to as usize
    }

    /// Returns the blocks that the write covers in part: the first, the last, one or neither.
    fn edges(&self, layout: &Layout) -> impl Iterator<Item = BlockIndex> + use<> {
        let whole = self.whole(layout);
        let last = (self.last != self.first).then_some(self.last);
        let edges = [Some(self.first), last].into_iter().flatten();
        edges.filter(move |block| !whole.contains(&block.0))
    }

    /// Returns the part of the data that goes into a block.
    fn slice<'d>(&self, layout: &Layout, block: BlockIndex, data: &'d [u8]) -> &'d [u8] {
        let within = self.within(layout, block);
        let at = (layout.plain_start(block).0 + within.start as u64 - self.start) as usize;
        &data[at..at + within.len()]
    }

    /// Returns where a block stands in the buffer of sealed blocks.
    fn position(&self, layout: &Layout, block: BlockIndex) -> usize {
        ((block.0 - self.first.0) * layout.stride()) as usize
    }
}

impl<S: Storage> Content<S> {
    /// Makes the content of a new file. Nothing is stored before the first write.
    pub fn create(storage: S, layout: Layout, header: &FileHeader) -> Self {
        let fields = &header.fields;
        Self::with_state(
            storage,
            layout,
            header,
            ContentState {
                preamble: Preamble::new(fields.file, fields.commitment),
                preamble_stored: false,
                preamble_behind: false,
                size: PlainSize(0),
                sum: Some(BlockSum::default()),
                torn: false,
                several_names: false,
                changes: 0,
            },
        )
    }

    /// Opens existing content: checks commitment, MAC, and for a sealed file size and place.
    ///
    /// `place` makes the place the file was found at; without it the place is not checked, for files reached by no name.
    ///
    /// # Errors
    ///
    /// The check that failed.
    pub fn load(
        storage: S,
        layout: Layout,
        header: &FileHeader,
        stored: Stored<'_>,
        place: impl FnOnce(&SealKey) -> Option<[u8; 32]>,
    ) -> Result<Self, ContentError> {
        let preamble = stored.preamble;
        // The commitment first: before it nothing says that this key is the one the content was written with.
        if preamble.file() != header.fields.file || preamble.commitment() != &header.fields.commitment {
            return Err(ContentError::WrongFile);
        }
        let seal_key = header
            .data_key
            .seal_key(header.fields.file, header.fields.suite.number());
        let preamble = preamble.verify(&seal_key).map_err(ContentError::Preamble)?;
        let extent = layout.extent(stored.size);
        let sealed = preamble.state == State::Sealed;
        if sealed {
            if extent.torn != 0 || extent.plain != preamble.plain_size {
                let (sealed, found) = (preamble.plain_size, extent.plain);
                return Err(ContentError::WrongSize { sealed, found });
            }
            if place(&seal_key).is_some_and(|place| !preamble.places.admit(&place)) {
                return Err(ContentError::Misplaced);
            }
        }
        let state = ContentState {
            sum: sealed.then_some(preamble.sum),
            several_names: preamble.places.current.is_none(),
            preamble,
            preamble_stored: true,
            preamble_behind: false,
            size: extent.plain,
            torn: extent.torn != 0,
            changes: 0,
        };
        let content = Self::with_state(storage, layout, header, state);
        content.see_cut(&mut content.state.write());
        Ok(content)
    }

    fn with_state(storage: S, layout: Layout, header: &FileHeader, state: ContentState) -> Self {
        let fields = &header.fields;
        Content {
            storage,
            layout,
            cipher: BlockCipher::new(fields.suite, &header.data_key, fields.file),
            seal_key: header.data_key.seal_key(fields.file, fields.suite.number()),
            state: RwLock::new(state),
        }
    }

    /// Returns the storage.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// Returns the size of the plaintext.
    pub fn size(&self) -> PlainSize {
        self.state.read().size
    }

    /// Tells whether the file has holes.
    pub fn is_sparse(&self) -> bool {
        self.state.read().preamble.sparse
    }

    /// Tells whether the file is sealed.
    pub fn is_sealed(&self) -> bool {
        self.state.read().preamble.state == State::Sealed
    }

    /// Tells whether the file is sealed for one name, which was compared when it was loaded.
    pub fn is_placed(&self) -> bool {
        let state = self.state.read();
        state.preamble.state == State::Sealed && state.preamble.places.current.is_some()
    }

    /// Tells whether the seal admits a place that a rename was about to give the file.
    pub fn is_renaming(&self) -> bool {
        let state = self.state.read();
        state.preamble.state == State::Sealed && state.preamble.places.next.is_some()
    }

    /// Checks that the file may be found at a place, besides the one it was opened at.
    ///
    /// # Errors
    ///
    /// [`ContentError::Misplaced`].
    pub fn check_place(&self, place: impl FnOnce(&SealKey) -> [u8; 32]) -> Result<(), ContentError> {
        let state = self.state.read();
        let is_admitted = match state.preamble.state {
            State::Sealed => state.preamble.places.admit(&place(&self.seal_key)),
            State::Open => state.several_names,
        };
        if is_admitted {
            Ok(())
        } else {
            Err(ContentError::Misplaced)
        }
    }

    /// Ends a rename that is durable: the file may be found at `place` only. Nothing for an open file.
    ///
    /// # Errors
    ///
    /// What the storage gives.
    pub fn settle(&self, place: impl FnOnce(&SealKey) -> [u8; 32]) -> Result<(), ContentError> {
        let mut state = self.state.write();
        if state.preamble.state == State::Sealed && state.preamble.places.next.is_some() {
            let places = Places {
                current: Some(place(&self.seal_key)),
                next: None,
            };
            self.store_places(&mut state, places)?;
        }
        Ok(())
    }

    /// Returns how often the file was sealed.
    pub fn seal_count(&self) -> u64 {
        self.state.read().preamble.seal_count
    }

    /// Returns what tells the last seal from all others: its count, and a mark of the content, which is known while nothing has changed since.
    pub fn last_seal(&self) -> (u64, Option<[u8; 16]>) {
        let state = self.state.read();
        let Preamble { plain_size, sum, .. } = state.preamble;
        let sealed = state.preamble.state == State::Sealed;
        let mark = sealed.then(|| self.seal_key.content_mark(plain_size, sum));
        (state.preamble.seal_count, mark)
    }

    /// Reads up to `len` bytes at `offset`; fewer at the end of the file.
    ///
    /// `plain` is resized as needed; the bytes read are those in the range returned.
    ///
    /// # Errors
    ///
    /// [`ContentError::Damaged`] when any block of the range does not authenticate; nothing is to be used then.
    pub fn read(&self, offset: PlainOffset, len: usize, plain: &mut Vec<u8>) -> Result<Range<usize>, ContentError> {
        let size = self.size();
        let len = (size.0.saturating_sub(offset.0)).min(len as u64) as usize;
        if len == 0 {
            return Ok(0..0);
        }
        let blocks = BlockRange::new(&self.layout, offset, len);
        let plain_size = blocks.count() as usize * self.layout.block_size() as usize;
        if plain.len() < plain_size {
            plain.resize(plain_size, 0);
        }
        self.read_blocks(&blocks, size, plain)?;
        let start = (offset.0 - self.layout.plain_start(blocks.first).0) as usize;
        Ok(start..start + len)
    }

    /// As [`Content::read`], into a buffer of the caller's; returns how many bytes there were. `room` may be written to behind them.
    ///
    /// # Errors
    ///
    /// As [`Content::read`].
    pub fn read_into(&self, offset: PlainOffset, len: usize, room: &mut [u8]) -> Result<usize, ContentError> {
        let size = self.size();
        let len = (size.0.saturating_sub(offset.0)).min(len as u64).min(room.len() as u64) as usize;
        if len == 0 {
            return Ok(0);
        }
        let blocks = BlockRange::new(&self.layout, offset, len);
        let plain_size = blocks.count() as usize * self.layout.block_size() as usize;
        if offset == self.layout.plain_start(blocks.first) && plain_size <= room.len() {
            // Whole blocks, as the kernel's page cache asks for: no copy.
            self.read_blocks(&blocks, size, room)?;
            return Ok(len);
        }
        with_buffer(&BLOCKS, plain_size, |plain| {
            self.read_blocks(&blocks, size, plain)?;
            let start = (offset.0 - self.layout.plain_start(blocks.first).0) as usize;
            room[..len].copy_from_slice(&plain[start..start + len]);
            Ok(len)
        })
    }

    fn read_blocks(&self, blocks: &BlockRange, size: PlainSize, plain: &mut [u8]) -> Result<(), ContentError> {
        let mut at = blocks.first;
        while at <= blocks.last {
            let last = BlockIndex(blocks.last.0.min(at.0 + READ_CHUNK_BLOCKS - 1));
            let to = ((at.0 - blocks.first.0) * self.layout.block_size()) as usize;
            self.read_chunk(at, last, size, &mut plain[to..])?;
            at = BlockIndex(last.0 + 1);
        }
        Ok(())
    }

    /// Reads and opens whole blocks, side by side into `plain`.
    fn read_chunk(
        &self,
        first: BlockIndex,
        last: BlockIndex,
        expected: PlainSize,
        plain: &mut [u8],
    ) -> Result<(), ContentError> {
        let count = last.0 - first.0 + 1;
        with_buffer(&SEALED, (count * self.layout.stride()) as usize, |sealed| {
            let plain_len = |size| self.layout.plain_len_of_run(first, count, size) as usize;
            let wanted = plain_len(expected);
            let (got, there, sealed_len, has_holes) = {
                let state = self.state.read();
                let there = plain_len(state.size);
                // No more than there is: to be told that the file ends takes another call.
                let sealed_len = self.layout.sealed_len(there as u64) as usize;
                let start = self.layout.cipher_start(first);
                let got = self.storage.read_at(&mut sealed[..sealed_len], start.0)?;
                (got, there, sealed_len, state.preamble.sparse)
            };
            if got < sealed_len {
                return Err(ContentError::Damaged(BlockIndex(
                    first.0 + got as u64 / self.layout.stride(),
                )));
            }
            self.cipher
                .open_run(self.run(first), has_holes, &sealed[..sealed_len], &mut plain[..there])
                .map_err(ContentError::Damaged)?;
            // Cut since the size was looked at: what is gone reads as zeros, as the kernel does with pages behind the end.
            plain[there..wanted.max(there)].fill(0);
            Ok(())
        })
    }

    /// Reads one block as it is, with the lock held.
    fn read_block(&self, state: &ContentState, block: BlockIndex, plain: &mut [u8]) -> Result<(), ContentError> {
        let mut sealed = vec![0; plain.len() + self.layout.overhead() as usize];
        let got = self.storage.read_at(&mut sealed, self.layout.cipher_start(block).0)?;
        if got < sealed.len() {
            return Err(ContentError::Damaged(block));
        }
        self.cipher
            .open_run(self.run(block), state.preamble.sparse, &sealed, plain)
            .map_err(ContentError::Damaged)
    }

    /// Returns the run of blocks that begins with `first`.
    fn run(&self, first: BlockIndex) -> Run {
        Run {
            first,
            block_size: self.layout.block_size() as usize,
        }
    }

    /// Seals blocks from `first` on side by side, each under a new nonce; returns what they add to the sum.
    fn seal_run(&self, first: BlockIndex, plain: &[u8], sealed: &mut [u8]) -> BlockSum {
        self.cipher.seal_run(&self.seal_key, self.run(first), plain, sealed)
    }

    /// Writes `data` at `offset`, extending the file as needed.
    ///
    /// # Errors
    ///
    /// [`ContentError::Io`] when the storage failed: whole blocks may have been written, none is left in part.
    pub fn write(&self, offset: PlainOffset, data: &[u8]) -> Result<(), ContentError> {
        if data.is_empty() {
            return Ok(());
        }
        if offset
            .0
            .checked_add(data.len() as u64)
            .is_none_or(|end| end > PLAIN_SIZE_MAX)
        {
            return Err(ContentError::TooLarge);
        }
        let blocks = BlockRange::new(&self.layout, offset, data.len());
        let buffer_len = PREAMBLE_SIZE as usize + (blocks.count() * self.layout.stride()) as usize;
        with_buffer(&SEALED, buffer_len, |buffer| {
            let mut added = BlockSum::default();
            let whole = blocks.whole(&self.layout);
            if !whole.is_empty() {
                // The bulk of the work, outside the lock.
                let first = BlockIndex(whole.start);
                let from = (self.layout.plain_start(first).0 - blocks.start) as usize;
                let len = (whole.end - whole.start) * self.layout.block_size();
                let at = PREAMBLE_SIZE as usize + blocks.position(&self.layout, first);
                let sealed = &mut buffer[at..][..self.layout.sealed_len(len) as usize];
                added += self.seal_run(first, &data[from..][..len as usize], sealed);
            }
            let mut state = self.state.write();
            let leaves_hole =
                self.layout.plain_start(blocks.first).0 > state.size.0.next_multiple_of(self.layout.block_size());
            self.start_change(&mut state, leaves_hole)?;
            let old_size = state.size;
            self.pad_tail_before(&mut state, blocks.first)?;
            let padded_size = state.size;
            let written = self.write_blocks(&mut state, &blocks, data, (buffer, added));
            if written.is_err() && state.size == padded_size {
                self.take_back_pad(&mut state, old_size);
            }
            written
        })
    }

    /// Writes blocks from a buffer that has room for the preamble before them; the whole ones are sealed there, and what they add to the sum is given.
    fn write_blocks(
        &self,
        state: &mut ContentState,
        blocks: &BlockRange,
        data: &[u8],
        (buffer, mut added): (&mut [u8], BlockSum),
    ) -> Result<(), ContentError> {
        let (preamble_space, sealed) = buffer.split_at_mut(PREAMBLE_SIZE as usize);
        let mut sealed_len = blocks.count() as usize * self.layout.stride() as usize;
        let mut merged: Vec<(BlockIndex, Vec<u8>)> = Vec::new();
        for block in blocks.edges(&self.layout) {
            let within = blocks.within(&self.layout, block);
            let new = blocks.slice(&self.layout, block, data);
            let replaces_all = within.start == 0 && within.end as u64 >= self.layout.plain_len(block, state.size);
            let plain = if replaces_all {
                new
            } else {
                merged.push((block, self.merge(state, block, within, new)?));
                &merged[merged.len() - 1].1
            };
            let at = blocks.position(&self.layout, block);
            let end = at + self.layout.sealed_len(plain.len() as u64) as usize;
            added += self.seal_run(block, plain, &mut sealed[at..end]);
            if block == blocks.last {
                sealed_len = end;
            }
        }
        if !state.preamble_stored && blocks.first.0 > 0 {
            self.store_preamble(state)?;
        }
        self.forget_terms(state, blocks.first, blocks.last)?;
        let written = if state.preamble_stored {
            self.storage
                .write_at(&sealed[..sealed_len], self.layout.cipher_start(blocks.first).0)
        } else {
            // A new file's preamble and first blocks in one write.
            preamble_space.copy_from_slice(&state.preamble.encode(&self.seal_key));
            let result = self.storage.write_at(&buffer[..PREAMBLE_SIZE as usize + sealed_len], 0);
            state.preamble_stored = !matches!(&result, Err(short) if short.written < PREAMBLE_SIZE as usize);
            result.map_err(|short| ShortWrite {
                written: short.written.saturating_sub(PREAMBLE_SIZE as usize),
                error: short.error,
            })
        };
        state.changes += 1;
        match written {
            Ok(()) => {
                state.size = state.size.max(PlainSize(blocks.end));
                if let Some(sum) = &mut state.sum {
                    *sum += added;
                }
                Ok(())
            }
            Err(short) => Err(self.mend_short_write(state, blocks, data, &merged, short)),
        }
    }

    /// Returns a block's content after a write to a part of it.
    fn merge(
        &self,
        state: &ContentState,
        block: BlockIndex,
        within: Range<usize>,
        data: &[u8],
    ) -> Result<Vec<u8>, ContentError> {
        let old_len = self.layout.plain_len(block, state.size) as usize;
        let mut plain = vec![0; old_len.max(within.end)];
        if old_len > 0 {
            self.read_block(state, block, &mut plain[..old_len])?;
        }
        plain[within].copy_from_slice(data);
        Ok(plain)
    }

    /// Fills the last block with zeros where a write or an extension begins in a later one: only the last may be short.
    fn pad_tail_before(&self, state: &mut ContentState, first: BlockIndex) -> Result<(), ContentError> {
        let tail = BlockIndex(state.size.0 / self.layout.block_size());
        if state.size.0.is_multiple_of(self.layout.block_size()) || tail >= first {
            return Ok(());
        }
        self.extend_tail(state, tail, self.layout.block_size() as usize)
    }

    /// Gives the last block a greater length, filled with zeros.
    fn extend_tail(&self, state: &mut ContentState, tail: BlockIndex, len: usize) -> Result<(), ContentError> {
        let old_len = self.layout.plain_len(tail, state.size) as usize;
        let mut plain = vec![0; len];
        self.read_block(state, tail, &mut plain[..old_len])?;
        self.replace_block(state, tail, &plain, &plain[..old_len])?;
        state.size = PlainSize(self.layout.plain_start(tail).0 + len as u64);
        Ok(())
    }

    /// Gives a file whose last block was filled with zeros for what has failed then the size that it had before.
    fn take_back_pad(&self, state: &mut ContentState, old: PlainSize) {
        if state.size == old {
            return;
        }
        let tail = self.layout.block_of(PlainOffset(old.0));
        let tail_len = self.layout.plain_len(tail, old) as usize;
        if let Err(error) = self.cut_inside(state, old, (tail, tail_len)) {
            log::warn!(
                "{} bytes became {}, the last of them zeros: {error}",
                old.0,
                state.size.0
            );
        }
    }

    /// Seals and stores one block in place of what is there, which is put back where only a part of the new one could be stored.
    fn replace_block(
        &self,
        state: &mut ContentState,
        block: BlockIndex,
        plain: &[u8],
        old: &[u8],
    ) -> Result<(), ContentError> {
        let result = self.store_block(state, block, plain);
        if let Err(short) = &result
            && short.written > 0
        {
            // Zeros again as a hole, which takes no space, whether they were one or not.
            let is_hole =
                state.preamble.sparse && old.iter().all(|&byte| byte == 0) && self.make_hole(block, old.len()).is_ok();
            if !is_hole {
                self.mend_block(state, block, old);
            }
            self.drop_excess(state, self.layout.cipher_size(state.size));
        }
        result.map_err(|short| short.error.into())
    }

    /// Seals and stores one block.
    fn store_block(&self, state: &mut ContentState, block: BlockIndex, plain: &[u8]) -> Result<(), ShortWrite> {
        let mut sealed = vec![0; self.layout.sealed_len(plain.len() as u64) as usize];
        let added = self.seal_run(block, plain, &mut sealed);
        match self.forget_terms(state, block, block) {
            Ok(()) => {}
            Err(ContentError::Damaged(_)) => {
                let error = Errno::IO.into();
                return Err(ShortWrite { written: 0, error });
            }
            // Whatever is there when tags cannot be read, the sum is computed anew.
            Err(_) => state.sum = None,
        }
        state.changes += 1;
        let result = self.storage.write_at(&sealed, self.layout.cipher_start(block).0);
        match &result {
            Ok(()) => {
                if let Some(sum) = &mut state.sum {
                    *sum += added;
                }
            }
            Err(_) => state.sum = None,
        }
        result
    }

    /// Cuts what a failed write has left behind the end; now, or before the next change.
    fn drop_excess(&self, state: &mut ContentState, size: CipherSize) {
        state.torn |= self.storage.set_len(size.0).is_err();
    }

    /// Takes the blocks as they are out of the sum, before they are overwritten or freed.
    fn forget_terms(&self, state: &mut ContentState, first: BlockIndex, last: BlockIndex) -> Result<(), ContentError> {
        let terms = self.terms(state, first, last)?;
        if let Some(sum) = &mut state.sum {
            *sum -= terms;
        }
        Ok(())
    }

    /// Adds up the terms of blocks as they are, which are in the sum; of none where that is not known.
    ///
    /// Who writes to the vault can zero a block a moment before it is overwritten or freed. Taken for a hole, it would leave its term in the sum: put back
    /// where there is a hole then, it would be what the seal speaks of.
    fn terms(&self, state: &ContentState, first: BlockIndex, last: BlockIndex) -> Result<BlockSum, ContentError> {
        let Some(sum) = state.sum else {
            return Ok(BlockSum::default());
        };
        let within = first.0..last.0 + 1;
        let (terms, zeros) = self.add_up(state, within.clone())?;
        match zeros {
            Some(block) if !state.preamble.sparse => {
                // A crash can have left zeros, too: then the file was sealed with them, and they are not in its sum.
                let (before, _) = self.add_up(state, 0..first.0)?;
                let (terms, _) = self.add_up(state, within)?;
                let (mut all, _) = self.add_up(state, last.0 + 1..self.layout.block_count(state.size))?;
                all += before;
                all += terms;
                if all == sum {
                    Ok(terms)
                } else {
                    Err(ContentError::Damaged(block))
                }
            }
            _ => Ok(terms),
        }
    }

    /// Adds up the terms of blocks from their tags; returns the first of which there are zeros, too.
    fn add_up(&self, state: &ContentState, blocks: Range<u64>) -> Result<(BlockSum, Option<BlockIndex>), ContentError> {
        let (mut terms, mut zeros) = (BlockSum::default(), None);
        let mut index = blocks.start;
        while index < blocks.end {
            let block = BlockIndex(index);
            let len = self.layout.plain_len(block, state.size);
            if len == 0 {
                break;
            }
            let mut tag = [0; TAG_SIZE];
            let got = self.storage.read_at(&mut tag, self.layout.tag_start(block, len).0)?;
            index += 1;
            if got == TAG_SIZE && tag != [0; TAG_SIZE] {
                terms += self.seal_key.term(block, &tag);
                continue;
            }
            zeros.get_or_insert(block);
            if index < blocks.end {
                // A hole has no tag, and no term.
                let Some(next) = self.skip_hole(BlockIndex(index))? else {
                    break;
                };
                index = next.0;
            }
        }
        Ok((terms, zeros))
    }

    /// Returns the first block from `block` on that is not in a hole of the storage; nothing when none follows.
    ///
    /// A hole of 2^32 blocks costs nothing to make; looking at each of them would block the file for hours.
    fn skip_hole(&self, block: BlockIndex) -> Result<Option<BlockIndex>, ContentError> {
        let at = self.storage.next_data(self.layout.cipher_start(block).0)?;
        Ok(at.map(|at| BlockIndex(at.saturating_sub(PREAMBLE_SIZE) / self.layout.stride()).max(block)))
    }

    /// After a write that stopped in the middle: leaves no block in part, where the storage still lets it.
    fn mend_short_write(
        &self,
        state: &mut ContentState,
        blocks: &BlockRange,
        data: &[u8],
        merged: &[(BlockIndex, Vec<u8>)],
        short: ShortWrite,
    ) -> ContentError {
        state.sum = None;
        let whole = (short.written as u64 / self.layout.stride()).min(blocks.count());
        let old_size = state.size;
        let reached = PlainSize((blocks.first.0 + whole) * self.layout.block_size());
        if whole > 0 && reached > state.size {
            state.size = reached;
        }
        let broken = BlockIndex(blocks.first.0 + whole);
        let is_broken = short.written as u64 > whole * self.layout.stride();
        let old_len = self.layout.plain_len(broken, old_size) as usize;
        if is_broken && old_len > 0 && broken <= blocks.last {
            let plain = match merged.iter().find(|(block, _)| *block == broken) {
                Some((_, plain)) => &plain[..old_len],
                None => &blocks.slice(&self.layout, broken, data)[..old_len],
            };
            self.mend_block(state, broken, plain);
        }
        if state.preamble_stored {
            if short.written > 0 {
                self.drop_excess(state, self.layout.cipher_size(state.size));
            }
        } else {
            // The next write begins there too.
            let _ = self.storage.set_len(0);
        }
        ContentError::Io(short.error)
    }

    /// Stores a block at the length it had, after a write that stopped inside it: its space is there already, so this can succeed on a full disk.
    fn mend_block(&self, state: &mut ContentState, block: BlockIndex, plain: &[u8]) {
        let is_mended = self.store_block(state, block, plain).is_ok()
            || self
                .restore_hole(state, block, plain.len())
                .is_ok_and(|is_hole| is_hole);
        if !is_mended {
            log::error!("block {} was lost: the backing filesystem took half of it", block.0);
        }
    }

    /// Makes a block a hole again, of which a write has reached the front only; tells whether it was one. A hole has no space that is
    /// there already.
    fn restore_hole(&self, state: &ContentState, block: BlockIndex, old_len: usize) -> Result<bool, ContentError> {
        let (start, size) = (
            self.layout.cipher_start(block).0,
            self.layout.sealed_len(old_len as u64),
        );
        // Where no write has come to. A block's ciphertext does not end like this.
        let mut end = [0; TAG_SIZE / 2];
        let at = start + size - end.len() as u64;
        if !state.preamble.sparse || self.storage.read_at(&mut end, at)? < end.len() || end != [0; TAG_SIZE / 2] {
            return Ok(false);
        }
        self.make_hole(block, old_len)?;
        Ok(true)
    }

    /// Gives back the space of a block of so many bytes, which are zeros then.
    fn make_hole(&self, block: BlockIndex, len: usize) -> io::Result<()> {
        let start = self.layout.cipher_start(block).0;
        self.storage.punch(start, self.layout.sealed_len(len as u64))
    }

    /// Prepares a change: the file is open, durably so if it was sealed; what a crash left is cleared away.
    fn start_change(&self, state: &mut ContentState, makes_sparse: bool) -> Result<(), ContentError> {
        let was_sealed = state.preamble.state == State::Sealed;
        if was_sealed {
            state.preamble.state = State::Open;
            state.preamble.places = Places::default();
        }
        let newly_sparse = makes_sparse && !state.preamble.sparse;
        state.preamble.sparse |= makes_sparse;
        if (was_sealed || newly_sparse || state.preamble_behind) && state.preamble_stored {
            let must_be_durable = was_sealed || state.preamble_behind;
            // Until it is there: whoever tries again must not take it for stored.
            state.preamble_behind = true;
            self.store_preamble(state)?;
            if must_be_durable {
                // The mark must be on disk before the change it announces: a sealed file that does not match was changed by someone.
                self.storage.announce()?;
            }
            state.preamble_behind = false;
        }
        if state.preamble.cutting {
            self.finish_cut(state)?;
        }
        if state.torn {
            self.storage.set_len(self.layout.cipher_size(state.size).0)?;
            state.torn = false;
        }
        Ok(())
    }

    fn store_preamble(&self, state: &mut ContentState) -> Result<(), ContentError> {
        let result = self.storage.write_at(&state.preamble.encode(&self.seal_key), 0);
        state.preamble_behind |= result.is_err();
        result.map_err(|short| short.error)?;
        state.preamble_stored = true;
        Ok(())
    }

    /// Cuts or extends the file.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub fn set_size(&self, new: PlainSize) -> Result<(), ContentError> {
        if new.0 > PLAIN_SIZE_MAX {
            return Err(ContentError::TooLarge);
        }
        let state = self.state.upgradable_read();
        let is_unfinished = state.preamble.cutting || state.torn;
        if new == state.size && !is_unfinished {
            return Ok(());
        }
        let mut state = RwLockUpgradableReadGuard::upgrade(state);
        if is_unfinished {
            // Only then is it known how long the file is.
            self.start_change(&mut state, false)?;
        }
        let result = match new.cmp(&state.size) {
            Ordering::Less => self
                .start_change(&mut state, false)
                .and_then(|()| self.cut(&mut state, new)),
            Ordering::Equal => Ok(()),
            Ordering::Greater => self.extend(&mut state, new),
        };
        // What is damaged is seen before anything changes; and a sum that is computed anew would take what is there then for right.
        if !matches!(result, Ok(()) | Err(ContentError::Damaged(_))) {
            state.sum = None;
        }
        result
    }

    /// Cuts the file. A crash between the steps leaves the mark that tells the next writer to go on.
    fn cut(&self, state: &mut ContentState, new: PlainSize) -> Result<(), ContentError> {
        let tail = self.layout.block_of(PlainOffset(new.0));
        let tail_len = self.layout.plain_len(tail, new) as usize;
        let last = BlockIndex(self.layout.block_count(state.size).saturating_sub(1));
        if tail_len > 0 {
            return self.cut_inside(state, new, (tail, tail_len));
        }
        if new.0 > 0 {
            self.forget_terms(state, tail, last)?;
        } else {
            // Without a block there is no term. Files that are replaced are cut to nothing first, and may have been large.
            state.sum = Some(BlockSum::default());
        }
        state.changes += 1;
        self.storage.set_len(self.layout.cipher_size(new).0)?;
        state.size = new;
        Ok(())
    }

    /// Cuts the file inside a block, to which so many bytes are left; or else leaves it as it was.
    fn cut_inside(
        &self,
        state: &mut ContentState,
        new: PlainSize,
        (tail, tail_len): (BlockIndex, usize),
    ) -> Result<(), ContentError> {
        let last = BlockIndex(self.layout.block_count(state.size).saturating_sub(1));
        let mut old = vec![0; self.layout.plain_len(tail, state.size) as usize];
        self.read_block(state, tail, &mut old)?;
        state.preamble.cutting = true;
        state.preamble.plain_size = new;
        let mut is_tail_cut = false;
        let result = (|| -> Result<(), ContentError> {
            self.store_preamble(state)?;
            self.forget_terms(state, BlockIndex(tail.0 + 1), last)?;
            self.replace_block(state, tail, &old[..tail_len], &old)?;
            is_tail_cut = true;
            state.changes += 1;
            self.storage.set_len(self.layout.cipher_size(new).0)?;
            state.size = new;
            Ok(())
        })();
        if result.is_err() && is_tail_cut && self.store_block(state, tail, &old).is_err() {
            // The mark stays, and who changes the file next goes on.
            self.see_cut(state);
            return result;
        }
        state.preamble.cutting = false;
        if self.store_preamble(state).is_err() {
            log::debug!("the end of a cut is noted with the next change");
        }
        result
    }

    /// Takes a file whose last block was cut already for as long as it is to be, so that it can be read before the cut is finished.
    fn see_cut(&self, state: &mut ContentState) {
        let new = state.preamble.plain_size;
        if !state.preamble.cutting || new >= state.size {
            return;
        }
        let tail = self.layout.block_of(PlainOffset(new.0));
        let mut plain = vec![0; self.layout.plain_len(tail, new) as usize];
        if !plain.is_empty() && self.read_block(state, tail, &mut plain).is_ok() {
            state.size = new;
            state.torn = true;
        }
    }

    /// Finishes a cut that a crash interrupted.
    fn finish_cut(&self, state: &mut ContentState) -> Result<(), ContentError> {
        let new = state.preamble.plain_size;
        if new < state.size {
            let tail = self.layout.block_of(PlainOffset(new.0));
            let len = self.layout.plain_len(tail, new) as usize;
            let mut plain = vec![0; len];
            // The block as it shall be may be there already; otherwise the old one still is.
            if self.read_block(state, tail, &mut plain).is_err() {
                let old_len = self.layout.plain_len(tail, state.size) as usize;
                let mut old = vec![0; old_len];
                match self.read_block(state, tail, &mut old) {
                    Ok(()) => self.replace_block(state, tail, &old[..len], &old)?,
                    // Neither was ever durable. That it cannot be read must not keep the file from being written.
                    Err(ContentError::Damaged(block)) => log::warn!("block {} was lost in a truncation", block.0),
                    Err(error) => return Err(error),
                }
            }
            state.size = new;
        }
        self.storage.set_len(self.layout.cipher_size(state.size).0)?;
        state.torn = false;
        state.sum = None;
        state.preamble.cutting = false;
        state.changes += 1;
        self.store_preamble(state)
    }

    /// Extends the file by a hole.
    fn extend(&self, state: &mut ContentState, new: PlainSize) -> Result<(), ContentError> {
        let block_size = self.layout.block_size();
        let tail_end = state.size.0.next_multiple_of(block_size);
        self.start_change(state, new.0 > tail_end)?;
        let old = state.size;
        if !state.size.0.is_multiple_of(block_size) {
            let tail = BlockIndex(state.size.0 / block_size);
            let len = self.layout.plain_len(tail, new) as usize;
            self.extend_tail(state, tail, len)?;
        }
        if !state.preamble_stored {
            self.store_preamble(state)?;
        }
        if new > state.size {
            // The last block first: a crash between leaves a whole one at the end.
            if let Err(error) = self.storage.set_len(self.layout.cipher_size(new).0) {
                self.take_back_pad(state, old);
                return Err(error.into());
            }
            state.size = new;
            state.changes += 1;
        }
        Ok(())
    }

    /// Makes a range read as zeros and frees its space, without changing the size.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub fn punch(&self, offset: PlainOffset, len: u64) -> Result<(), ContentError> {
        let mut state = self.state.write();
        let end = offset.0.saturating_add(len).min(state.size.0);
        if offset.0 >= end {
            return Ok(());
        }
        let block_size = self.layout.block_size();
        let last = BlockIndex(self.layout.block_count(state.size) - 1);
        // Whole blocks become holes, the last one too if the range reaches the end of the file.
        let first_whole = offset.0.div_ceil(block_size);
        let end_whole = if end == state.size.0 {
            last.0 + 1
        } else {
            end / block_size
        };
        // Before the file is one with holes: none of them is one yet, where it has none.
        let terms = if first_whole < end_whole {
            self.terms(&state, BlockIndex(first_whole), BlockIndex(end_whole - 1))?
        } else {
            BlockSum::default()
        };
        self.start_change(&mut state, first_whole < end_whole)?;
        let edges = [offset.0 / block_size, (end - 1) / block_size];
        for (i, &index) in edges.iter().enumerate() {
            let block = BlockIndex(index);
            let whole = (first_whole..end_whole).contains(&index);
            if whole || (i == 1 && edges[0] == edges[1]) {
                continue;
            }
            let start = self.layout.plain_start(block).0;
            let mut plain = vec![0; self.layout.plain_len(block, state.size) as usize];
            self.read_block(&state, block, &mut plain)?;
            let from = offset.0.max(start) - start;
            let to = end.min(start + plain.len() as u64) - start;
            let old = plain.clone();
            plain[from as usize..to as usize].fill(0);
            self.replace_block(&mut state, block, &plain, &old)?;
        }
        if first_whole < end_whole {
            if let Some(sum) = &mut state.sum {
                *sum -= terms;
            }
            let from = self.layout.cipher_start(BlockIndex(first_whole)).0;
            let to = self.layout.cipher_start(BlockIndex(end_whole)).0;
            let to = to.min(self.layout.cipher_size(state.size).0);
            state.changes += 1;
            if let Err(error) = self.storage.punch(from, to - from) {
                state.sum = None;
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Reserves space for a range; the size does not change.
    ///
    /// # Errors
    ///
    /// What the storage gives.
    pub fn allocate(&self, offset: PlainOffset, len: u64) -> Result<(), ContentError> {
        let Some(end) = offset.0.checked_add(len).filter(|&end| end <= PLAIN_SIZE_MAX) else {
            return Err(ContentError::TooLarge);
        };
        let state = self.state.write();
        let from = if state.preamble_stored {
            self.layout.cipher_start(self.layout.block_of(offset)).0
        } else {
            0
        };
        let to = self.layout.cipher_size(PlainSize(end)).0;
        Ok(self.storage.allocate(from, to - from)?)
    }

    /// Returns the first offset from `offset` on that holds data; nothing when only a hole or nothing follows.
    ///
    /// # Errors
    ///
    /// What the storage gives.
    pub fn seek_data(&self, offset: PlainOffset) -> Result<Option<PlainOffset>, ContentError> {
        let state = self.state.read();
        if offset.0 >= state.size.0 {
            return Ok(None);
        }
        if !state.preamble.sparse {
            return Ok(Some(offset));
        }
        let mut block = self.layout.block_of(offset);
        loop {
            let Some(at) = self.storage.next_data(self.layout.cipher_start(block).0)? else {
                return Ok(None);
            };
            let found = BlockIndex(at.saturating_sub(PREAMBLE_SIZE) / self.layout.stride()).max(block);
            let start = self.layout.plain_start(found).0.max(offset.0);
            if start >= state.size.0 {
                return Ok(None);
            }
            // The storage knows its pages, and a hole may begin and end in one that it shares with data.
            if !self.is_hole_at(&state, found)? {
                return Ok(Some(PlainOffset(start)));
            }
            block = BlockIndex(found.0 + 1);
        }
    }

    /// Returns the first offset from `offset` on that is in a hole, the end of the file counting as one; nothing behind it.
    ///
    /// # Errors
    ///
    /// What the storage gives.
    pub fn seek_hole(&self, offset: PlainOffset) -> Result<Option<PlainOffset>, ContentError> {
        let state = self.state.read();
        if offset.0 >= state.size.0 {
            return Ok(None);
        }
        if !state.preamble.sparse {
            return Ok(Some(PlainOffset(state.size.0)));
        }
        let block = self.layout.block_of(offset);
        let at = self.storage.next_hole(self.layout.cipher_start(block).0)?;
        // The block that the hole begins in still holds data, unless it begins at its very start.
        let mut hole = BlockIndex(at.saturating_sub(PREAMBLE_SIZE).div_ceil(self.layout.stride()));
        // The storage may know of it late: a page that a hole shares with data is data, and to ext4 also reserved space that was looked at.
        for index in block.0..hole.0.min(block.0 + LOOK_AHEAD_BLOCKS) {
            if self.is_hole_at(&state, BlockIndex(index))? {
                hole = BlockIndex(index);
                break;
            }
        }
        let start = self.layout.plain_start(hole).0.max(offset.0);
        Ok(Some(PlainOffset(start.min(state.size.0))))
    }

    /// Tells whether a block is a hole, by its content.
    fn is_hole_at(&self, state: &ContentState, block: BlockIndex) -> Result<bool, ContentError> {
        let mut sealed = vec![0; (self.layout.plain_len(block, state.size) + self.layout.overhead()) as usize];
        self.storage.read_at(&mut sealed, self.layout.cipher_start(block).0)?;
        Ok(is_hole(&sealed))
    }

    /// Stores the preamble of a file that has none yet, so that the file has an id that links and headers can refer to.
    ///
    /// # Errors
    ///
    /// What the storage gives.
    pub fn ensure_preamble(&self) -> Result<(), ContentError> {
        let mut state = self.state.write();
        if !state.preamble_stored {
            self.store_preamble(&mut state)?;
            state.changes += 1;
        }
        Ok(())
    }

    /// Runs `f` while nobody writes: for changes of attributes that a seal must not undo.
    pub fn while_quiet<R>(&self, f: impl FnOnce(&S) -> R) -> R {
        let _state = self.state.write();
        f(&self.storage)
    }

    /// Changes where a sealed file may be found, and has `last` make it durable, or so that it is before a name is changed.
    ///
    /// An open file is placed when it is sealed: that it is open is durable then.
    ///
    /// # Errors
    ///
    /// What the storage gives.
    pub fn set_places(
        &self,
        last: impl FnOnce(&S) -> io::Result<()>,
        places: impl FnOnce(&SealKey, Places) -> Places,
    ) -> Result<(), ContentError> {
        let mut state = self.state.write();
        if state.preamble.state != State::Sealed {
            // The seal that it had may still be on disk, with the places of that time.
            return Ok(self.storage.sync_announced()?);
        }
        let places = places(&self.seal_key, state.preamble.places);
        self.store_places(&mut state, places)?;
        Ok(last(&self.storage)?)
    }

    /// Lets the file be found under several names from now on, in each directory that has a header of it; `last` is as in
    /// [`set_places`](Self::set_places).
    ///
    /// # Errors
    ///
    /// What the storage gives.
    pub fn admit_several_names(&self, last: impl FnOnce(&S) -> io::Result<()>) -> Result<(), ContentError> {
        self.state.write().several_names = true;
        self.set_places(last, |_, _| Places::default())
    }

    /// Tells whether the file may have several names; that it has them does not say so.
    pub fn may_have_several_names(&self) -> bool {
        self.state.read().several_names
    }

    /// Stores where a sealed file may be found.
    fn store_places(&self, state: &mut ContentState, places: Places) -> Result<(), ContentError> {
        let moved = Preamble {
            places,
            ..state.preamble.clone()
        };
        self.storage.write_with_mtime(&moved.encode(&self.seal_key), 0, None)?;
        state.preamble = moved;
        Ok(())
    }

    /// Returns how often content was changed since it was loaded.
    pub fn changes(&self) -> u64 {
        self.state.read().changes
    }

    /// Begins sealing: what is in the storage now must become durable, then [`finish_seal`](Self::finish_seal) follows.
    ///
    /// Nothing for a file that is sealed, or that nothing was ever written to.
    pub fn begin_seal(&self) -> Option<SealTicket> {
        let state = self.state.read();
        let open = state.preamble_stored && state.preamble.state == State::Open;
        open.then_some(SealTicket { changes: state.changes })
    }

    /// Seals the file, if nothing changed since the ticket; tells whether it did.
    ///
    /// `mtime` is when the content was last modified, where someone knows better than the storage: the kernel, which writes later than applications do.
    ///
    /// # Errors
    ///
    /// What reading the tags and writing the preamble gives; the file stays open then.
    pub fn finish_seal(
        &self,
        ticket: SealTicket,
        mtime: Option<Timespec>,
        place: impl FnOnce(&SealKey) -> Option<[u8; 32]>,
    ) -> Result<bool, ContentError> {
        let counted = self.count_tags(ticket)?;
        let mut state = self.state.write();
        if state.changes != ticket.changes || state.preamble.state == State::Sealed {
            return Ok(false);
        }
        if state.preamble.cutting {
            // Changes the file, which must be durable before the seal: the next round seals it.
            self.finish_cut(&mut state)?;
            return Ok(false);
        }
        if state.torn {
            self.storage.set_len(self.layout.cipher_size(state.size).0)?;
            state.torn = false;
            state.changes += 1;
            return Ok(false);
        }
        let Some(sum) = state.sum.or(counted) else {
            return Ok(false);
        };
        let sealed = Preamble {
            state: State::Sealed,
            seal_count: state.preamble.seal_count + 1,
            plain_size: state.size,
            sum,
            places: Places {
                current: place(&self.seal_key),
                next: None,
            },
            ..state.preamble.clone()
        };
        // It may be there though it failed, as where only the time could not be set.
        state.preamble_behind = true;
        self.storage
            .write_with_mtime(&sealed.encode(&self.seal_key), 0, mtime)?;
        state.preamble_behind = false;
        state.sum = Some(sum);
        state.several_names = sealed.places.current.is_none();
        state.preamble = sealed;
        Ok(true)
    }

    /// Adds up the terms of all blocks from their tags, where the sum is not known; nothing where the file is changed meanwhile.
    ///
    /// A few at a time: whoever reads or writes the file waits no longer than that.
    fn count_tags(&self, ticket: SealTicket) -> Result<Option<BlockSum>, ContentError> {
        let mut counted = Counted::default();
        loop {
            let state = self.state.read();
            let is_as_it_was = state.changes == ticket.changes && !state.preamble.cutting && !state.torn;
            if state.sum.is_some() || !is_as_it_was {
                return Ok(None);
            }
            if !self.count_some_tags(&state, &mut counted)? {
                return Ok(Some(counted.sum));
            }
        }
    }

    /// Adds up the terms of the next blocks; tells whether there are more.
    fn count_some_tags(&self, state: &ContentState, counted: &mut Counted) -> Result<bool, ContentError> {
        let Counted { sum, next: index } = counted;
        let count = self.layout.block_count(state.size);
        let end = count.min(*index + TAGS_AT_ONCE);
        while *index < end {
            let block = BlockIndex(*index);
            let mut tag = [0; TAG_SIZE];
            let at = self.layout.tag_start(block, self.layout.plain_len(block, state.size));
            if self.storage.read_at(&mut tag, at.0)? < TAG_SIZE {
                return Err(ContentError::Damaged(block));
            }
            *index += 1;
            if tag != [0; TAG_SIZE] {
                *sum += self.seal_key.term(block, &tag);
            } else if *index < count {
                // The last block is looked at in any case: it shows that the storage is not shorter than the file.
                *index = self
                    .skip_hole(BlockIndex(*index))?
                    .map_or(count - 1, |next| next.0.min(count - 1));
            }
        }
        Ok(*index < count)
    }
}

/// The terms of the first blocks.
#[derive(Default)]
struct Counted {
    sum: BlockSum,
    /// The first block that is not in it.
    next: u64,
}

#[cfg(test)]
mod tests;
