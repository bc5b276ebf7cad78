//! Operations on one file's content, in memory that fills up, fails and stops: it reads as a plain vector does. What failed has happened
//! or not, for each byte; nothing else has changed.

#![no_main]

use hushfs::{
    crypto::{block::Suite, seal::SealKey},
    format::{header::FileHeader, layout::Layout, preamble::UnverifiedPreamble},
    ids::Epoch,
    units::{CipherSize, PlainOffset, PlainSize},
    vault::content::{Content, Stored},
};
use hushfs_fuzz::{
    DIRECTORY, FILE,
    memory::{Fault, Memory, pattern},
};
use libfuzzer_sys::{arbitrary, fuzz_target};

/// More in one input are slower, not better.
const OPERATIONS_MAX: usize = 40;

/// What is done; the numbers are of bytes, and of blocks where they are said to be.
#[derive(Clone, Debug, arbitrary::Arbitrary)]
enum Operation {
    Write(At, u16, u8),
    SetSize(At),
    Punch(At, u16),
    Read(At, u16),
    Seal,
    Verify,
    Reload,
    /// The disk has no more than so many bytes more.
    Full(u16),
    /// The process stops after so many changes.
    Kill(u8),
    /// The next read or sync fails.
    Fail(bool),
}

/// A place: near an edge of a block, or anywhere.
#[derive(Clone, Copy, Debug, arbitrary::Arbitrary)]
enum At {
    Edge(u8, i8),
    Anywhere(u16),
}

impl At {
    fn offset(self) -> u64 {
        match self {
            At::Edge(block, by) => (u64::from(block % 12) * 4096).saturating_add_signed(i64::from(by)),
            At::Anywhere(at) => u64::from(at),
        }
    }
}

fn layout() -> Layout {
    Layout::new(Suite::Aes256GcmSiv, 4096).expect("the usual one")
}

fn header() -> FileHeader {
    FileHeader::new(Suite::Aes256GcmSiv, Epoch(1), FILE, DIRECTORY, hushfs_fuzz::data_key())
}

fn place(key: &SealKey) -> Option<[u8; 32]> {
    Some(key.place(DIRECTORY, b"name"))
}

/// The content, and what must be in it.
struct Run {
    memory: Memory,
    content: Content<Memory>,
    model: Vec<u8>,
}

impl Run {
    fn new() -> Self {
        let memory = Memory::default();
        let content = Content::create(memory.clone(), layout(), &header());
        Run {
            memory,
            content,
            model: Vec::new(),
        }
    }

    /// Opens the file anew, as after the end of a process.
    fn reload(&mut self) {
        self.memory.repair();
        let bytes = self.memory.bytes();
        let (layout, header) = (layout(), header());
        self.content = if bytes.is_empty() {
            Content::create(self.memory.clone(), layout, &header)
        } else {
            let preamble = UnverifiedPreamble::decode(&bytes).expect("a file has a preamble from its first byte on");
            let stored = Stored {
                size: CipherSize(bytes.len() as u64),
                preamble: &preamble,
            };
            Content::load(self.memory.clone(), layout, &header, stored, place).expect("nobody tampered with it")
        };
    }

    /// Seals until nothing is left to do: a cut is finished first, and what a crash left behind the end is taken away.
    fn seal(&self) {
        for _ in 0..4 {
            let Some(ticket) = self.content.begin_seal() else {
                return;
            };
            if self.content.finish_seal(ticket, None, place).is_err() {
                assert!(self.memory.has_failed(), "a seal fails without a cause");
                return;
            }
        }
        panic!("the file is not sealed");
    }

    fn read(&self, offset: u64, len: usize) -> Option<Vec<u8>> {
        let mut plain = Vec::new();
        match self.content.read(PlainOffset(offset), len, &mut plain) {
            Ok(range) => Some(plain[range].to_vec()),
            Err(error) => {
                assert!(self.memory.has_failed(), "read of {len} at {offset}: {error}");
                None
            }
        }
    }

    fn compare(&self, offset: u64, len: usize) {
        let from = (offset as usize).min(self.model.len());
        let to = (offset as usize + len).min(self.model.len());
        if let Some(found) = self.read(offset, len) {
            assert!(found == self.model[from..to], "read of {len} at {offset}");
        }
    }

    /// Takes over what a change has made that should make `wanted`.
    fn changed(&mut self, wanted: Vec<u8>, is_done: bool, what: &Operation) {
        if is_done {
            self.model = wanted;
            return;
        }
        assert!(self.memory.has_failed(), "{what:?} fails without a cause");
        self.reload();
        self.seal();
        let found = self.read(0, 1 << 20).expect("nothing fails any more");
        let lens = [self.model.len(), wanted.len()];
        assert!(
            (lens[0].min(lens[1])..=lens[0].max(lens[1])).contains(&found.len()),
            "{what:?}"
        );
        for (i, byte) in found.iter().enumerate() {
            let old = self.model.get(i).or((i >= self.model.len()).then_some(&0));
            assert!(old == Some(byte) || wanted.get(i) == Some(byte), "{what:?}: byte {i}");
        }
        self.model = found;
    }

    fn carry_out(&mut self, operation: &Operation) {
        match *operation {
            Operation::Write(at, len, seed) => {
                let (offset, data) = (at.offset(), pattern(usize::from(len).max(1), seed));
                let mut wanted = self.model.clone();
                let end = offset as usize + data.len();
                wanted.resize(end.max(wanted.len()), 0);
                wanted[offset as usize..end].copy_from_slice(&data);
                let is_done = self.content.write(PlainOffset(offset), &data).is_ok();
                self.changed(wanted, is_done, operation);
            }
            Operation::SetSize(at) => {
                let mut wanted = self.model.clone();
                wanted.resize(at.offset() as usize, 0);
                let is_done = self.content.set_size(PlainSize(at.offset())).is_ok();
                self.changed(wanted, is_done, operation);
            }
            Operation::Punch(at, len) => {
                let mut wanted = self.model.clone();
                let from = (at.offset() as usize).min(wanted.len());
                let to = (from + usize::from(len)).min(wanted.len());
                wanted[from..to].fill(0);
                let is_done = self.content.punch(PlainOffset(at.offset()), u64::from(len)).is_ok();
                self.changed(wanted, is_done, operation);
            }
            Operation::Read(at, len) => self.compare(at.offset(), usize::from(len)),
            Operation::Seal => self.seal(),
            Operation::Verify => {
                let result = self.content.verify(|_| ());
                assert!(result.is_ok() || self.memory.has_failed(), "{result:?}");
            }
            Operation::Reload => {
                self.reload();
                self.seal();
            }
            Operation::Full(more) => self.memory.set(Fault::Full(usize::from(more))),
            Operation::Kill(changes) => self.memory.set(Fault::Kill(usize::from(changes % 8))),
            Operation::Fail(reads) => self.memory.set(if reads { Fault::Read } else { Fault::Sync }),
        }
    }
}

fuzz_target!(|operations: Vec<Operation>| {
    let mut run = Run::new();
    run.content.ensure_preamble().expect("memory suffices");
    for operation in operations.iter().take(OPERATIONS_MAX) {
        run.carry_out(operation);
    }
    run.reload();
    run.seal();
    run.compare(0, 1 << 20);
    run.content
        .verify(|_| ())
        .expect("a file that nobody tampered with is whole");
});
