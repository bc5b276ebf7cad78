//! Sealed files: one file, sealed for who may open it, without a vault (docs/FORMAT.md section 9).
//!
//! The content is a stream: blocks as those of a vault, and behind them what tells that all of them are there. So pipes and files larger
//! than memory pass through. Nothing comes out that was not authenticated; that nothing is missing shows at the end only, and who
//! writes to a file keeps it back until then.

use std::{
    fmt,
    io::{self, Read, Write},
};

use zeroize::Zeroizing;

use crate::{
    crypto::{
        block::{BlockCipher, Run, Suite},
        keys::DataKey,
        random,
        seal::{BlockSum, SealKey},
    },
    format::{
        FormatError,
        layout::Layout,
        sealed::{BLOCK_SIZE, END_SIZE, SEALED_FRONT_SIZE, SealedHeader, UnverifiedSealedHeader, Way, could_begin},
    },
    ids::FileId,
    keystore::way::{NewWay, Opener, WayError},
    units::{BlockIndex, PlainSize},
};

/// Blocks that are sealed or opened at a time: 1 MiB at the block size that is written.
const RUN_BLOCKS: usize = 16;

/// Why a file cannot be sealed or opened.
#[derive(Debug)]
pub enum SealedError {
    /// It is not a sealed file, or its header was changed.
    Format(FormatError),
    /// No way opens, or one cannot be made.
    Way(WayError),
    /// A block was changed; `offset` is that of its plaintext.
    Damaged { offset: u64 },
    /// Something is missing at the end, or was put there.
    WrongEnd,
    /// It cannot be read.
    Read(io::Error),
    /// What comes out cannot be written.
    Write(io::Error),
}

impl fmt::Display for SealedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SealedError::Format(error) => error.fmt(f),
            SealedError::Way(error) => error.fmt(f),
            SealedError::Damaged { offset } => write!(f, "damaged or tampered with at byte {offset} of its content"),
            SealedError::WrongEnd => f.write_str("cut short, or something was put behind its end"),
            SealedError::Read(error) | SealedError::Write(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SealedError {}

impl From<FormatError> for SealedError {
    fn from(error: FormatError) -> Self {
        SealedError::Format(error)
    }
}

impl From<WayError> for SealedError {
    fn from(error: WayError) -> Self {
        SealedError::Way(error)
    }
}

/// A file that is to be sealed: its header and its key.
#[derive(Debug)]
pub struct SealedFile {
    header: SealedHeader,
    key: DataKey,
}

impl SealedFile {
    /// Draws the key of a new file, and wraps it for each way: any of them opens the file.
    ///
    /// # Errors
    ///
    /// [`SealedError::Way`].
    pub fn new(suite: Suite, context: Vec<(String, String)>, ways: &[NewWay<'_>]) -> Result<Self, SealedError> {
        let (id, key) = random::id_and_key();
        let mut context = context;
        context.sort();
        let mut file = SealedFile {
            header: SealedHeader {
                file: FileId(id),
                layout: Layout::new(suite, BLOCK_SIZE)?,
                context,
                ways: Vec::new(),
            },
            key: DataKey::new(key),
        };
        for way in ways {
            file.add_way(way)?;
        }
        Ok(file)
    }

    /// Returns the ways to open the file, by rising number.
    pub fn ways(&self) -> &[Way] {
        &self.header.ways
    }

    /// Returns the user's pairs of the encryption context.
    pub fn context(&self) -> &[(String, String)] {
        &self.header.context
    }

    /// Adds a way to open the file.
    ///
    /// # Errors
    ///
    /// [`SealedError::Way`].
    pub fn add_way(&mut self, new: &NewWay<'_>) -> Result<(), SealedError> {
        let way = new.make(&self.header, &self.key)?;
        let at = self.header.ways.partition_point(|other| other.id < way.id);
        self.header.ways.insert(at, way);
        Ok(())
    }

    /// Keeps those ways only that `keep` says.
    pub fn retain_ways(&mut self, keep: impl FnMut(&Way) -> bool) {
        self.header.ways.retain(keep);
    }

    /// Writes the header.
    ///
    /// # Errors
    ///
    /// [`SealedError::Format`] when there are no ways, or too many; [`SealedError::Write`].
    pub fn write_header(&self, output: &mut impl Write) -> Result<(), SealedError> {
        let header = self.header.encode(&self.key)?;
        output.write_all(&header).map_err(SealedError::Write)
    }

    /// Seals all that there is to read, header and end included. `progress` hears of bytes read.
    ///
    /// # Errors
    ///
    /// [`SealedError::Read`] and [`SealedError::Write`], and those of [`write_header`](Self::write_header).
    pub fn seal(
        &self,
        mut input: impl Read,
        mut output: impl Write,
        mut progress: impl FnMut(u64),
    ) -> Result<(), SealedError> {
        self.write_header(&mut output)?;
        let mut stream = Stream::new(&self.header, &self.key);
        let mut plain = Zeroizing::new(vec![0; RUN_BLOCKS * stream.block_size]);
        let mut sealed = vec![0; RUN_BLOCKS * stream.stride];
        loop {
            let got = fill(&mut input, &mut plain).map_err(SealedError::Read)?;
            if got > 0 {
                let len = got + got.div_ceil(stream.block_size) * stream.overhead();
                stream.seal(&plain[..got], &mut sealed[..len]);
                output.write_all(&sealed[..len]).map_err(SealedError::Write)?;
                progress(got as u64);
            }
            if got < plain.len() {
                break;
            }
        }
        output.write_all(&stream.end()).map_err(SealedError::Write)
    }
}

/// A sealed file whose header was read. Nothing in it is to be believed yet.
#[derive(Debug)]
pub struct UnopenedFile<R> {
    header: UnverifiedSealedHeader,
    input: R,
}

impl<R: Read> UnopenedFile<R> {
    /// Reads the header of a sealed file.
    ///
    /// # Errors
    ///
    /// [`SealedError::Format`] when it is none, and [`SealedError::Read`].
    pub fn enter(mut input: R) -> Result<Self, SealedError> {
        let mut bytes = vec![0; SEALED_FRONT_SIZE];
        let got = fill(&mut input, &mut bytes).map_err(SealedError::Read)?;
        let front = bytes[..got].try_into().map_err(|_| match could_begin(&bytes[..got]) {
            true => FormatError::TooShort,
            false => FormatError::NotOne,
        })?;
        bytes.resize(UnverifiedSealedHeader::size(&front)?, 0);
        let rest = &mut bytes[SEALED_FRONT_SIZE..];
        if fill(&mut input, rest).map_err(SealedError::Read)? < rest.len() {
            return Err(FormatError::TooShort.into());
        }
        let header = UnverifiedSealedHeader::decode(&bytes)?;
        Ok(UnopenedFile { header, input })
    }

    /// Returns what the header says. Whoever can write the file can make it say anything.
    pub fn claims(&self) -> &SealedHeader {
        self.header.claims()
    }

    /// Unwraps the key of the file, and checks the header with it.
    ///
    /// # Errors
    ///
    /// [`SealedError::Way`] when no way opens, [`SealedError::Format`] when the header was changed.
    pub fn open(self, opener: &Opener<'_>) -> Result<OpenedFile<R>, SealedError> {
        let key = opener.data_key(self.claims())?;
        let header = self.header.verify(&key)?;
        Ok(OpenedFile {
            file: SealedFile { header, key },
            input: self.input,
        })
    }
}

/// A sealed file whose header is authentic.
#[derive(Debug)]
pub struct OpenedFile<R> {
    /// The header and the key.
    pub file: SealedFile,
    input: R,
}

impl<R: Read> OpenedFile<R> {
    /// Opens the content. `progress` hears of bytes written.
    ///
    /// # Errors
    ///
    /// [`SealedError::Damaged`], [`SealedError::WrongEnd`], [`SealedError::Read`] and [`SealedError::Write`]. What was written before is
    /// as it was sealed, but is not all.
    pub fn copy_to(mut self, mut output: impl Write, mut progress: impl FnMut(u64)) -> Result<(), SealedError> {
        let mut stream = Stream::new(&self.file.header, &self.file.key);
        let run_size = RUN_BLOCKS * stream.stride;
        let mut sealed = vec![0; run_size + END_SIZE];
        let mut plain = Zeroizing::new(vec![0; RUN_BLOCKS * stream.block_size]);
        let mut held = 0;
        loop {
            // What may be the end is held back until something follows it.
            held += fill(&mut self.input, &mut sealed[held..]).map_err(SealedError::Read)?;
            let is_last = held < sealed.len();
            let size = held.checked_sub(END_SIZE).ok_or(SealedError::WrongEnd)?;
            let opened = stream.open(&sealed[..size], &mut plain);
            if is_last {
                let end = sealed[size..held].try_into().expect("split at the size of an end");
                let is_cut_block =
                    matches!(opened, Err(SealedError::Damaged { offset }) if stream.is_in_last_block(offset));
                if !stream.check_end(end) && (opened.is_ok() || is_cut_block) {
                    return Err(SealedError::WrongEnd);
                }
            }
            let len = opened?;
            output.write_all(&plain[..len]).map_err(SealedError::Write)?;
            progress(len as u64);
            if is_last {
                return Ok(());
            }
            sealed.copy_within(size.., 0);
            held = END_SIZE;
        }
    }

    /// Copies the content as it is, sealed, behind the header as it is now.
    ///
    /// # Errors
    ///
    /// Those of [`SealedFile::write_header`], and [`SealedError::Write`].
    pub fn reseal_to(mut self, mut output: impl Write) -> Result<(), SealedError> {
        self.file.write_header(&mut output)?;
        io::copy(&mut self.input, &mut output)
            .map(drop)
            .map_err(SealedError::Write)
    }
}

/// The blocks of a file, one after another.
struct Stream {
    cipher: BlockCipher,
    seal_key: SealKey,
    block_size: usize,
    stride: usize,
    next: BlockIndex,
    size: PlainSize,
    sum: BlockSum,
}

impl Stream {
    fn new(header: &SealedHeader, key: &DataKey) -> Self {
        let layout = header.layout;
        Stream {
            cipher: BlockCipher::new(layout.suite(), key, header.file),
            seal_key: header.seal_key(key),
            block_size: layout.block_size() as usize,
            stride: layout.stride() as usize,
            next: BlockIndex(0),
            size: PlainSize(0),
            sum: BlockSum::default(),
        }
    }

    fn overhead(&self) -> usize {
        self.stride - self.block_size
    }

    fn seal(&mut self, plain: &[u8], sealed: &mut [u8]) {
        let run = self.run();
        self.sum += self.cipher.seal_run(&self.seal_key, run, plain, sealed);
        self.advance(plain.len());
    }

    /// Opens blocks into the front of `plain`, and returns how long they are.
    fn open(&mut self, sealed: &[u8], plain: &mut [u8]) -> Result<usize, SealedError> {
        let blocks = sealed.len().div_ceil(self.stride);
        // The last block is whole, or has a byte at least.
        let last = sealed.len() % self.stride;
        if last != 0 && last <= self.overhead() {
            return Err(SealedError::WrongEnd);
        }
        let len = sealed.len() - blocks * self.overhead();
        let run = self.run();
        for (block, index) in sealed.chunks(self.stride).zip(run.first.0..) {
            self.sum += self.seal_key.term(BlockIndex(index), &BlockCipher::tag(block));
        }
        self.advance(len);
        let opened = self.cipher.open_run(run, false, sealed, &mut plain[..len]);
        opened.map(|()| len).map_err(|block| SealedError::Damaged {
            offset: block.0 * self.block_size as u64,
        })
    }

    /// Tells whether an offset lies in the last block so far: what a cut leaves of one does not open.
    fn is_in_last_block(&self, offset: u64) -> bool {
        self.size.0 - offset <= self.block_size as u64
    }

    fn run(&self) -> Run {
        Run {
            first: self.next,
            block_size: self.block_size,
        }
    }

    fn advance(&mut self, len: usize) {
        self.next.0 += len.div_ceil(self.block_size) as u64;
        self.size.0 += len as u64;
    }

    fn end(&self) -> [u8; END_SIZE] {
        self.seal_key.end_mac(self.size, self.sum)
    }

    fn check_end(&self, end: &[u8; END_SIZE]) -> bool {
        self.seal_key.check_end(self.size, self.sum, end)
    }
}

/// Reads until the buffer is full or there is no more; returns how much it was.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match input.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(got) => len += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests;
