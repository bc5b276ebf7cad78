//! A snapshot's list as a stream: chunks sealed and opened one at a time.

use std::io::{self, Read, Write};

use super::SnapshotError;
use crate::{
    crypto::{keys::SivKey, random},
    format::{
        FormatError,
        snapshot::{
            CHUNK_SIZE, Entry, Item, SEALED_CHUNK_SIZE, SNAPSHOT_FRONT_SIZE, SNAPSHOT_HEAD_SIZE, SnapshotFront,
            SnapshotHead,
        },
    },
    ids::SnapshotId,
    vault::{Vault, tree},
};

/// Writes a snapshot.
#[derive(Debug)]
pub struct SnapshotWriter<W> {
    out: W,
    front: SnapshotFront,
    key: SivKey,
    index: u64,
    plain: Vec<u8>,
    entries: u64,
}

impl<W: Write> SnapshotWriter<W> {
    /// Begins a snapshot of a vault.
    ///
    /// # Errors
    ///
    /// What writing gives.
    pub fn new(vault: &Vault, head: &SnapshotHead, mut out: W) -> Result<Self, SnapshotError> {
        let snapshot = SnapshotId(random::bytes());
        let front = SnapshotFront {
            vault: vault.id(),
            snapshot,
        };
        out.write_all(&front.encode())?;
        Ok(SnapshotWriter {
            out,
            front,
            key: vault.snapshot_key(snapshot),
            index: 0,
            plain: head.encode().to_vec(),
            entries: 0,
        })
    }

    /// Adds an entry.
    ///
    /// # Errors
    ///
    /// What writing gives.
    pub fn add(&mut self, entry: Entry) -> Result<(), SnapshotError> {
        Item::Entry(entry).encode_into(&mut self.plain);
        self.entries += 1;
        // What fills a chunk to its last byte may be the end, and waits.
        while self.plain.len() > CHUNK_SIZE {
            let rest = self.plain.split_off(CHUNK_SIZE);
            let chunk = std::mem::replace(&mut self.plain, rest);
            self.write(&chunk, false)?;
        }
        Ok(())
    }

    /// Ends the snapshot.
    ///
    /// # Errors
    ///
    /// What writing gives.
    pub fn finish(mut self) -> Result<W, SnapshotError> {
        let entries = self.entries;
        Item::End { entries }.encode_into(&mut self.plain);
        let plain = std::mem::take(&mut self.plain);
        let mut chunks = plain.chunks(CHUNK_SIZE).peekable();
        while let Some(chunk) = chunks.next() {
            self.write(chunk, chunks.peek().is_none())?;
        }
        Ok(self.out)
    }

    fn write(&mut self, chunk: &[u8], last: bool) -> Result<(), SnapshotError> {
        let sealed = self.front.seal_chunk(&self.key, self.index, last, chunk);
        self.index += 1;
        Ok(self.out.write_all(&sealed)?)
    }
}

/// Reads a snapshot. What was read before an error is authentic; that nothing is missing is known at the end only.
#[derive(Debug)]
pub struct SnapshotReader<R> {
    input: R,
    front: SnapshotFront,
    key: SivKey,
    head: SnapshotHead,
    index: u64,
    /// The next sealed chunk: whether it is the last shows when there is nothing behind it.
    ahead: Vec<u8>,
    plain: Vec<u8>,
    /// How much of `plain` was given out.
    given: usize,
    entries: u64,
    path: Vec<u8>,
    /// For each directory on the path, how long the path to it is.
    ends: Vec<usize>,
}

impl<R: Read> SnapshotReader<R> {
    /// Opens a snapshot of a vault.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::OtherVault`], or what is wrong with its begin.
    pub fn new(vault: &Vault, mut input: R) -> Result<Self, SnapshotError> {
        let mut bytes = [0; SNAPSHOT_FRONT_SIZE];
        input.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => FormatError::TooShort.into(),
            _ => SnapshotError::Io(error),
        })?;
        let front = SnapshotFront::decode(&bytes)?;
        if front.vault != vault.id() {
            return Err(SnapshotError::OtherVault);
        }
        let ahead = read_chunk(&mut input)?;
        let mut plain = Vec::new();
        let key = vault.snapshot_key(front.snapshot);
        let (next, index) = open_next(&mut input, &front, &key, (&ahead, 0), &mut plain)?;
        let head = SnapshotHead::decode(&plain)?;
        Ok(SnapshotReader {
            input,
            front,
            key,
            head,
            index,
            ahead: next,
            plain,
            given: SNAPSHOT_HEAD_SIZE,
            entries: 0,
            path: Vec::new(),
            ends: Vec::new(),
        })
    }

    /// Returns which snapshot it is.
    pub fn id(&self) -> SnapshotId {
        self.front.snapshot
    }

    /// Returns what it says of the vault.
    pub fn head(&self) -> &SnapshotHead {
        &self.head
    }

    /// Returns the next entry with its path; nothing at the end.
    ///
    /// # Errors
    ///
    /// What is wrong with it, or with what it ends with.
    pub fn next_entry(&mut self) -> Result<Option<(Vec<u8>, Entry)>, SnapshotError> {
        match self.next_item()? {
            Item::Entry(entry) => {
                self.entries += 1;
                self.go_to(&entry)?;
                Ok(Some((self.path.clone(), entry)))
            }
            Item::End { entries } if entries != self.entries => {
                Err(FormatError::OutOfRange("number of entries").into())
            }
            Item::End { .. } if self.given < self.plain.len() || !self.ahead.is_empty() => {
                Err(FormatError::TrailingBytes.into())
            }
            Item::End { .. } => Ok(None),
        }
    }

    fn next_item(&mut self) -> Result<Item, SnapshotError> {
        loop {
            match Item::decode(&self.plain[self.given..]) {
                Ok((item, size)) => {
                    self.given += size;
                    return Ok(item);
                }
                Err(FormatError::TooShort) if !self.ahead.is_empty() => {
                    self.plain.drain(..self.given);
                    self.given = 0;
                    let ahead = (&self.ahead[..], self.index);
                    let (next, index) = open_next(&mut self.input, &self.front, &self.key, ahead, &mut self.plain)?;
                    (self.ahead, self.index) = (next, index);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Goes to an entry, which must stand behind the one before.
    fn go_to(&mut self, entry: &Entry) -> Result<(), FormatError> {
        let depth = usize::from(entry.depth);
        if depth > self.ends.len() {
            return Err(FormatError::OutOfRange("depth of an entry"));
        }
        self.ends.truncate(depth);
        let mut path = self.path[..self.ends.last().copied().unwrap_or(0)].to_vec();
        if depth > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(&entry.name);
        if self.entries > 1 && !tree::order(&self.path, &path).is_lt() {
            return Err(FormatError::OutOfRange("order of the entries"));
        }
        self.ends.push(path.len());
        self.path = path;
        Ok(())
    }
}

/// Opens a chunk behind what is in `plain` already; returns the next one, and its index.
fn open_next(
    input: &mut impl Read,
    front: &SnapshotFront,
    key: &SivKey,
    (sealed, index): (&[u8], u64),
    plain: &mut Vec<u8>,
) -> Result<(Vec<u8>, u64), SnapshotError> {
    let next = read_chunk(input)?;
    plain.extend(front.open_chunk(key, index, next.is_empty(), sealed)?);
    Ok((next, index + 1))
}

/// Reads as much as a chunk has on disk, or what is left.
fn read_chunk(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut chunk = Vec::new();
    input.by_ref().take(SEALED_CHUNK_SIZE as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}
