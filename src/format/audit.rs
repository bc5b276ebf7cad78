//! The lines of an audit log, and the chain that binds them: docs/FORMAT.md section 10.
//!
//! Each line has a key of its own, derived from that of the line before, which is wiped then. Who takes the key of the next line cannot make
//! an earlier one. What an event says is decided elsewhere: here it is a JSON object of some bytes.

use std::fmt;

use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

use super::{FormatError, Reader, keystore::AuditHead};
use crate::{
    crypto::{
        derive::audit_line_hash,
        keys::{AuditKey, AuditSeed, KeyBytes},
    },
    ids::LogId,
};

/// The most bytes a line may have, its end included.
pub const LINE_SIZE_MAX: usize = 1 << 20;

/// So many records may be missing between two lines; the key is derived through them.
const GAP_MAX: u64 = 10_000_000;

const STATE_MAGIC: &[u8; 8] = b"HUSHAUDT";

const STATE_VERSION: u16 = 1;

/// The size of the state of a log, in bytes: front, log, seq, size, generation, hash, key, MAC.
pub const STATE_SIZE: usize = 12 + 16 + 8 + 8 + 8 + 32 + 32 + 32;

/// Where the MAC is in a line: `,"mac":"<64 digits>"}`.
const MAC_PREFIX: &[u8] = b",\"mac\":\"";
const MAC_LEN: usize = MAC_PREFIX.len() + 64 + 2;

/// A line that was decoded; whether it is authentic is for [`is_authentic`](Self::is_authentic).
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The log it belongs to.
    pub log: LogId,
    /// Its number.
    pub seq: u64,
    /// The hash of the line before.
    pub prev: [u8; 32],
    /// The event, a JSON object.
    pub event: &'a str,
    message: &'a [u8],
    mac: [u8; 32],
}

impl<'a> Line<'a> {
    /// Decodes a line, without its end.
    ///
    /// # Errors
    ///
    /// [`FormatError::TooShort`], [`FormatError::TrailingBytes`] or [`FormatError::NotCanonical`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, FormatError> {
        if bytes.len() >= LINE_SIZE_MAX {
            return Err(FormatError::TrailingBytes);
        }
        let split = bytes.len().checked_sub(MAC_LEN).ok_or(FormatError::TooShort)?;
        let (message, mac) = bytes.split_at(split);
        Self::parse(message, mac).ok_or(FormatError::NotCanonical)
    }

    fn parse(message: &'a [u8], mac: &'a [u8]) -> Option<Self> {
        let mac = hex(mac.strip_prefix(MAC_PREFIX)?.strip_suffix(b"\"}")?)?;
        let text = std::str::from_utf8(message).ok()?;
        let (log, text) = text.strip_prefix("{\"log\":\"")?.split_once("\",\"seq\":")?;
        let (seq, text) = text.split_once(",\"prev\":\"")?;
        let (prev, event) = text.split_once("\",\"event\":")?;
        let number: u64 = seq.parse().ok()?;
        // One number has one form, or a line could be changed without changing what it says.
        if number.to_string() != seq || !event.starts_with('{') || !event.ends_with('}') {
            return None;
        }
        Some(Line {
            log: LogId(hex(log.as_bytes())?),
            seq: number,
            prev: hex(prev.as_bytes())?,
            event,
            message,
            mac,
        })
    }

    /// Tells whether the line was written with this key.
    pub fn is_authentic(&self, key: &AuditKey) -> bool {
        key.check(self.message, &self.mac)
    }
}

fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    HEXLOWER.decode(text).ok()?.try_into().ok()
}

/// Where a log stands: what its next line needs.
#[derive(Debug)]
pub struct Chain {
    log: LogId,
    head: AuditHead,
    key: AuditKey,
}

impl Chain {
    /// Begins a log behind the last line of the one before it, if there was one.
    pub fn start(seed: &AuditSeed, log: LogId, head: AuditHead) -> Self {
        Chain {
            log,
            head,
            key: seed.first_key(log),
        }
    }

    /// Returns the log.
    pub fn log(&self) -> LogId {
        self.log
    }

    /// Returns number and hash of the last line.
    pub fn head(&self) -> AuditHead {
        self.head
    }

    /// Makes the next line, with its end.
    ///
    /// # Errors
    ///
    /// [`FormatError::OutOfRange`] when the event is too long for one.
    pub fn append(&mut self, event: &str) -> Result<Vec<u8>, FormatError> {
        debug_assert!(!event.contains('\n'));
        let seq = self
            .head
            .seq
            .checked_add(1)
            .ok_or(FormatError::OutOfRange("number of records"))?;
        let prev = HEXLOWER.encode(&self.head.hash);
        let mut line = format!(
            "{{\"log\":\"{}\",\"seq\":{seq},\"prev\":\"{prev}\",\"event\":{event}",
            self.log
        );
        if line.len() + MAC_LEN >= LINE_SIZE_MAX {
            return Err(FormatError::OutOfRange("length of a record"));
        }
        let mac = HEXLOWER.encode(&self.key.mac(line.as_bytes()));
        line.push_str(&format!(",\"mac\":\"{mac}\"}}"));
        self.advance(seq, line.as_bytes());
        line.push('\n');
        Ok(line.into_bytes())
    }

    /// Takes a line that someone else has appended; tells whether it is the next one.
    pub fn follow(&mut self, bytes: &[u8]) -> bool {
        let Ok(line) = Line::decode(bytes) else { return false };
        let is_next = line.log == self.log
            && self.head.seq.checked_add(1) == Some(line.seq)
            && line.prev == self.head.hash
            && line.is_authentic(&self.key);
        if is_next {
            self.advance(line.seq, bytes);
        }
        is_next
    }

    fn advance(&mut self, seq: u64, line: &[u8]) {
        let hash = audit_line_hash(line);
        self.head = AuditHead { seq, hash };
        // The key before is wiped when it is dropped.
        self.key = self.key.next();
    }
}

/// A chain, and what else is kept of a log between two appends.
#[derive(Debug)]
pub struct State {
    /// Where the log stands.
    pub chain: Chain,
    /// How many bytes the log has.
    pub size: u64,
    /// The latest generation of the keystore that a record speaks of.
    pub generation: u64,
}

impl State {
    /// Encodes the state; the key of the next line is in it.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(STATE_SIZE));
        out.extend_from_slice(STATE_MAGIC);
        out.extend_from_slice(&STATE_VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.chain.log.0);
        out.extend_from_slice(&self.chain.head.seq.to_le_bytes());
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.chain.head.hash);
        out.extend_from_slice(self.chain.key.as_bytes());
        let mac = self.chain.key.mac(&out);
        out.extend_from_slice(&mac);
        debug_assert_eq!(out.len(), STATE_SIZE);
        out
    }

    /// Decodes a state.
    ///
    /// # Errors
    ///
    /// The [`FormatError`] that names the first thing wrong; [`FormatError::NotAuthentic`] for one that was written in part.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader(bytes);
        if reader.magic_and_version_to(STATE_MAGIC, STATE_VERSION)? != STATE_VERSION || reader.u16()? != 0 {
            return Err(FormatError::OutOfRange("format version"));
        }
        let log = LogId(reader.take()?);
        let (seq, size, generation) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let hash = reader.take()?;
        let key: Zeroizing<[u8; 32]> = Zeroizing::new(reader.take()?);
        let key = AuditKey::new(KeyBytes::copy_of(&key));
        let mac = reader.take()?;
        if !reader.0.is_empty() {
            return Err(FormatError::TrailingBytes);
        }
        if !key.check(&bytes[..STATE_SIZE - 32], &mac) {
            return Err(FormatError::NotAuthentic);
        }
        let head = AuditHead { seq, hash };
        Ok(State {
            chain: Chain { log, head, key },
            size,
            generation,
        })
    }
}

/// What is wrong with a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The line is no record.
    NoRecord,
    /// The record was changed, or is not of this keystore.
    Changed { seq: u64 },
    /// The record belongs to another log.
    OtherLog { seq: u64 },
    /// A record with this number was here before, or one with a later number.
    OutOfPlace { seq: u64 },
    /// Records are missing before this line.
    Missing { from: u64, to: u64 },
    /// The record is authentic, but does not name the one before it.
    Unchained { seq: u64 },
    /// The record is not the one that the keystore knows.
    NotTheHead { seq: u64 },
    /// Records are missing at the end.
    CutOff { from: u64, to: u64 },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Problem::NoRecord => f.write_str("no record"),
            Problem::Changed { seq } => write!(f, "record {seq} was changed, or is not of this keystore"),
            Problem::OtherLog { seq } => write!(f, "record {seq} is of another log"),
            Problem::OutOfPlace { seq } => write!(f, "record {seq} does not belong here"),
            Problem::Missing { from, to } if from == to => write!(f, "record {from} is missing before this line"),
            Problem::Missing { from, to } => write!(f, "records {from} to {to} are missing before this line"),
            Problem::Unchained { seq } => write!(f, "record {seq} does not name the one before it"),
            Problem::NotTheHead { seq } => write!(f, "record {seq} is not the one that the keystore knows"),
            Problem::CutOff { from, to } if from == to => write!(f, "record {from} was cut off behind this line"),
            Problem::CutOff { from, to } => write!(f, "records {from} to {to} were cut off behind this line"),
        }
    }
}

/// Checks a log line by line, from its first.
#[derive(Debug)]
pub struct Verifier {
    log: LogId,
    key: AuditKey,
    /// The number that the next line has.
    next: u64,
    /// The hash of the line before; nothing where that is not what was written.
    hash: Option<[u8; 32]>,
    /// What must be in the log at least.
    pinned: Vec<AuditHead>,
    /// How many lines were as they should be.
    good: u64,
}

impl Verifier {
    /// Starts with a log whose first line has a number, and of which these lines must be there.
    pub fn new(seed: &AuditSeed, log: LogId, first: u64, pinned: &[AuditHead]) -> Self {
        Verifier {
            log,
            key: seed.first_key(log),
            next: first,
            hash: None,
            pinned: pinned.iter().copied().filter(|head| head.seq >= first).collect(),
            good: 0,
        }
    }

    /// Checks the next line, without its end; gives what is wrong with it, or before it.
    pub fn check(&mut self, bytes: &[u8]) -> Vec<Problem> {
        let Ok(line) = Line::decode(bytes) else {
            // In place of the line that should be here.
            self.step(None);
            return vec![Problem::NoRecord];
        };
        let seq = line.seq;
        if line.log != self.log {
            return vec![Problem::OtherLog { seq }];
        }
        if seq < self.next {
            return vec![Problem::OutOfPlace { seq }];
        }
        let mut problems = Vec::new();
        if seq > self.next && self.skip_to(&line) {
            problems.push(Problem::Missing {
                from: self.next,
                to: seq - 1,
            });
            (self.next, self.hash) = (seq, None);
        }
        if seq != self.next || !line.is_authentic(&self.key) {
            self.step(None);
            problems.push(Problem::Changed { seq });
            return problems;
        }
        let hash = audit_line_hash(bytes);
        if self.hash.is_some_and(|before| before != line.prev) {
            problems.push(Problem::Unchained { seq });
        }
        if self.pinned.iter().any(|head| head.seq == seq && head.hash != hash) {
            problems.push(Problem::NotTheHead { seq });
        }
        self.good += u64::from(problems.is_empty());
        self.step(Some(hash));
        problems
    }

    /// Ends the check; gives what was cut off.
    pub fn finish(&self) -> Option<Problem> {
        let last = self.pinned.iter().map(|head| head.seq).max()?;
        (last >= self.next).then_some(Problem::CutOff {
            from: self.next,
            to: last,
        })
    }

    /// Returns how many lines were as they should be.
    pub fn good(&self) -> u64 {
        self.good
    }

    /// Returns the number that the next line would have.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Derives the key of a line further on, if the line was written with that.
    fn skip_to(&mut self, line: &Line<'_>) -> bool {
        if line.seq - self.next > GAP_MAX {
            return false;
        }
        let mut key = self.key.next();
        for _ in self.next + 1..line.seq {
            key = key.next();
        }
        let is_later = line.is_authentic(&key);
        if is_later {
            self.key = key;
        }
        is_later
    }

    fn step(&mut self, hash: Option<[u8; 32]>) {
        self.key = self.key.next();
        self.next = self.next.saturating_add(1);
        self.hash = hash;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::locked::LockedKey;

    const LOG: LogId = LogId([5; 16]);

    fn seed() -> AuditSeed {
        AuditSeed::new(LockedKey::copy_of(&[9; 32]))
    }

    /// A log of ten lines that starts with number 4, and its last line's number and hash.
    fn log() -> (Vec<Vec<u8>>, AuditHead) {
        let before = AuditHead { seq: 3, hash: [7; 32] };
        let mut chain = Chain::start(&seed(), LOG, before);
        let lines = (0..10).map(|number| {
            let mut line = chain.append(&format!("{{\"n\":{number}}}")).unwrap();
            assert_eq!(line.pop(), Some(b'\n'));
            line
        });
        (lines.collect(), chain.head())
    }

    /// Returns what is wrong, with the index of the line.
    fn problems(lines: &[Vec<u8>], pinned: &[AuditHead]) -> Vec<(usize, Problem)> {
        let mut verifier = Verifier::new(&seed(), LOG, 4, pinned);
        let mut found = Vec::new();
        for (at, line) in lines.iter().enumerate() {
            found.extend(verifier.check(line).into_iter().map(|problem| (at, problem)));
        }
        found.extend(verifier.finish().map(|problem| (lines.len(), problem)));
        found
    }

    #[test]
    fn a_log_as_it_was_written_is_whole() {
        let (lines, head) = log();
        assert_eq!(problems(&lines, &[head]), []);
        assert_eq!(head.seq, 13);
        let line = Line::decode(&lines[2]).unwrap();
        assert_eq!((line.seq, line.event), (6, "{\"n\":2}"));
        let value: serde_json::Value = serde_json::from_slice(&lines[2]).unwrap();
        assert_eq!((&value["seq"], &value["event"]["n"]), (&6.into(), &2.into()));
    }

    #[test]
    fn each_way_to_tamper_is_found() {
        let (lines, head) = log();
        let tampered = |change: fn(&mut Vec<Vec<u8>>)| {
            let mut lines = lines.clone();
            change(&mut lines);
            problems(&lines, &[head])
        };
        let edit = |lines: &mut Vec<Vec<u8>>, at: usize, from: &str, to: &str| {
            let text = String::from_utf8(lines[at].clone()).unwrap();
            assert!(text.contains(from));
            lines[at] = text.replace(from, to).into_bytes();
        };
        assert_eq!(
            tampered(|lines| lines.swap(3, 4)),
            [
                (3, Problem::Missing { from: 7, to: 7 }),
                (4, Problem::OutOfPlace { seq: 7 })
            ]
        );
        assert_eq!(
            tampered(|lines| drop(lines.remove(3))),
            [(3, Problem::Missing { from: 7, to: 7 })]
        );
        assert_eq!(
            tampered(|lines| drop(lines.drain(..2))),
            [(0, Problem::Missing { from: 4, to: 5 })]
        );
        assert_eq!(
            tampered(|lines| lines.truncate(8)),
            [(8, Problem::CutOff { from: 12, to: 13 })]
        );
        assert_eq!(tampered(Vec::clear), [(0, Problem::CutOff { from: 4, to: 13 })]);
        assert_eq!(
            tampered(|lines| lines.insert(3, lines[1].clone())),
            [(3, Problem::OutOfPlace { seq: 5 })]
        );
        assert_eq!(
            tampered(|lines| lines.insert(3, b"{}".to_vec())),
            [(3, Problem::NoRecord), (4, Problem::OutOfPlace { seq: 7 })]
        );
        let mut edited = lines.clone();
        edit(&mut edited, 5, "\"n\":5", "\"n\":6");
        assert_eq!(problems(&edited, &[head]), [(5, Problem::Changed { seq: 9 })]);
        let mut renumbered = lines.clone();
        edit(&mut renumbered, 5, "\"seq\":9", "\"seq\":12");
        assert_eq!(problems(&renumbered, &[head]), [(5, Problem::Changed { seq: 12 })]);
        let mut other = lines.clone();
        edit(&mut other, 5, &LOG.to_hex(), &LogId([6; 16]).to_hex());
        assert_eq!(problems(&other, &[head])[0], (5, Problem::OtherLog { seq: 9 }));
        for at in 0..lines[9].len() {
            let mut flipped = lines.clone();
            flipped[9][at] ^= 1;
            assert_ne!(problems(&flipped, &[head]), [], "byte {at}");
        }
    }

    #[test]
    fn who_has_the_key_of_the_next_line_cannot_put_another_end_in_place_of_a_known_one() {
        let (lines, head) = log();
        let mut chain = Chain::start(&seed(), LOG, AuditHead { seq: 3, hash: [7; 32] });
        for line in &lines[..9] {
            assert!(chain.follow(line));
        }
        let mut forged = lines[..9].to_vec();
        let mut line = chain.append("{\"n\":\"other\"}").unwrap();
        line.pop();
        forged.push(line);
        assert_eq!(problems(&forged, &[]), []);
        assert_eq!(problems(&forged, &[head]), [(9, Problem::NotTheHead { seq: 13 })]);
    }

    #[test]
    fn only_the_next_line_is_followed() {
        let (lines, _) = log();
        let mut chain = Chain::start(&seed(), LOG, AuditHead { seq: 3, hash: [7; 32] });
        assert!(!chain.follow(&lines[1]));
        assert!(!chain.follow(b"x"));
        assert!(chain.follow(&lines[0]) && chain.follow(&lines[1]));
        assert!(!chain.follow(&lines[1]));
        assert_eq!(chain.head().seq, 5);
    }

    #[test]
    fn a_state_comes_back_and_a_torn_one_does_not() {
        let mut chain = Chain::start(&seed(), LOG, AuditHead::default());
        let line = chain.append("{}").unwrap();
        let (size, generation) = (line.len() as u64, 8);
        let state = State {
            chain,
            size,
            generation,
        };
        let bytes = state.encode();
        assert_eq!(bytes.len(), STATE_SIZE);
        let mut decoded = State::decode(&bytes).unwrap();
        assert_eq!((decoded.size, decoded.generation), (size, 8));
        assert_eq!(decoded.chain.head(), state.chain.head());
        assert_eq!(decoded.chain.append("{}").unwrap().len(), line.len());
        for at in 0..STATE_SIZE {
            let mut torn = bytes.to_vec();
            torn[at] ^= 1;
            assert!(State::decode(&torn).is_err(), "byte {at}");
        }
        assert_eq!(State::decode(&bytes[..50]).unwrap_err(), FormatError::TooShort);
        assert_eq!(
            State::decode(&[&bytes[..], &[0]].concat()).unwrap_err(),
            FormatError::TrailingBytes
        );
    }

    #[test]
    fn an_event_that_is_too_long_is_not_written() {
        let mut chain = Chain::start(&seed(), LOG, AuditHead::default());
        let long = format!("{{\"x\":\"{}\"}}", "y".repeat(LINE_SIZE_MAX));
        assert_eq!(chain.append(&long), Err(FormatError::OutOfRange("length of a record")));
        assert_eq!(chain.head(), AuditHead::default());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_line_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0..200usize) {
            let _ = Line::decode(&bytes);
            let (mut lines, head) = log();
            lines.insert(at % lines.len(), bytes.clone());
            prop_assert_ne!(problems(&lines, &[head]), []);
            let mut line = lines[0].clone();
            line.truncate(at);
            let _ = Line::decode(&line);
            let _ = State::decode(&bytes);
        }
    }
}
