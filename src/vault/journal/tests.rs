//! The journal on a disk in memory that loses power: what was synced is there, of what was not each page for itself may or may not be.

#[cfg(shuttle)]
mod orders;

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{Arc, Mutex as StdMutex},
};

use proptest::prelude::*;
use rustix::fs::Timespec;

use super::*;
use crate::{
    backing::ShortWrite,
    crypto::{
        block::Suite,
        keys::{DataKey, KeyBytes, MacKey},
    },
    format::{
        header::FileHeader,
        journal::decode_groups,
        layout::{Layout, PREAMBLE_SIZE},
        preamble::UnverifiedPreamble,
    },
    ids::{DirectoryId, Epoch},
    units::{CipherSize, PlainOffset, PlainSize},
    vault::content::{Content, ContentError, Stored},
};

const PAGE: usize = 4096;

/// A small source of chance, so that a case can be repeated.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// A file on the disk, opened once.
#[derive(Clone, Debug, Default)]
struct DiskFile {
    inner: Arc<StdMutex<Inner>>,
    /// Failed syncs that were told to who has it open so: each is told to everyone once.
    told: Arc<std::sync::atomic::AtomicUsize>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// What each page has been since the last sync, and how long the file was.
    pages: HashMap<usize, Vec<Vec<u8>>>,
    lengths: Vec<usize>,
    /// Changes that still succeed.
    changes_left: Option<usize>,
    /// Syncs that will fail, and what was to be synced is taken for written; and those that have.
    failing_syncs: usize,
    failed_syncs: usize,
    mtime: Option<Timespec>,
    /// Pages of zeros are holes. Not every filesystem knows its holes.
    knows_holes: bool,
}

impl Inner {
    fn change(&mut self) -> io::Result<()> {
        match &mut self.changes_left {
            Some(0) => Err(io::Error::other("no power")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn page(bytes: &[u8], page: usize) -> Vec<u8> {
        let start = (page * PAGE).min(bytes.len());
        let mut found = bytes[start..(start + PAGE).min(bytes.len())].to_vec();
        found.resize(PAGE, 0);
        found
    }

    /// Returns where the next page begins, from an offset on, that has data, or has none.
    fn next_page(&self, offset: u64, has_data: bool) -> Option<u64> {
        let is_data = |page: usize| !self.knows_holes || Self::page(&self.bytes, page).iter().any(|&byte| byte != 0);
        let mut pages = offset as usize / PAGE..self.bytes.len().div_ceil(PAGE);
        let found = pages.find(|&page| is_data(page) == has_data)?;
        Some(offset.max((found * PAGE) as u64)).filter(|&at| at < self.bytes.len() as u64)
    }

    fn note(&mut self, from: usize, to: usize) {
        for page in from / PAGE..to.div_ceil(PAGE) {
            let now = Self::page(&self.bytes, page);
            self.pages.entry(page).or_default().push(now);
        }
        self.lengths.push(self.bytes.len());
    }
}

impl DiskFile {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Ends all that was not synced: each page is one of those it has been, and so is the length.
    fn lose_power(&self, chance: &mut Chance) {
        let inner = &mut *self.inner();
        let lengths = std::mem::take(&mut inner.lengths);
        let len = match chance.below(lengths.len() + 1) {
            0 => inner.durable.len(),
            n => lengths[n - 1],
        };
        let mut left = inner.durable.clone();
        left.resize(len, 0);
        for (page, versions) in std::mem::take(&mut inner.pages) {
            let version = chance.below(versions.len() + 1);
            let start = page * PAGE;
            if version > 0 && start < len {
                let end = (start + PAGE).min(len);
                left[start..end].copy_from_slice(&versions[version - 1][..end - start]);
            }
        }
        inner.bytes.clone_from(&left);
        inner.durable = left;
        inner.changes_left = None;
        inner.failing_syncs = 0;
        self.told.store(inner.failed_syncs, Ordering::Relaxed);
    }

    /// Opens the file once more.
    fn opened_again(&self) -> Self {
        DiskFile {
            inner: self.inner.clone(),
            told: Arc::new(self.inner().failed_syncs.into()),
        }
    }

    /// Has so many syncs fail.
    fn fail_syncs(&self, count: usize) {
        self.inner().failing_syncs = count;
    }

    /// Has the kernel let go of what it takes for written.
    fn forget(&self) {
        let inner = &mut *self.inner();
        inner.bytes.clone_from(&inner.durable);
    }
}

/// Lets another thread go on, where a test chooses which.
fn step() {
    #[cfg(shuttle)]
    shuttle::thread::yield_now();
}

impl Storage for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inner().bytes.len() as u64)
    }

    fn inode(&self) -> io::Result<u64> {
        Ok(Arc::as_ptr(&self.inner) as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        step();
        let inner = self.inner();
        let rest = inner.bytes.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), ShortWrite> {
        step();
        interrupt();
        let mut inner = self.inner();
        inner.change().map_err(|error| ShortWrite { written: 0, error })?;
        let (from, to) = (offset as usize, offset as usize + buf.len());
        if inner.bytes.len() < to {
            inner.bytes.resize(to, 0);
        }
        inner.bytes[from..to].copy_from_slice(buf);
        inner.note(from, to);
        Ok(())
    }

    fn write_with_mtime(&self, buf: &[u8], offset: u64, _: Option<Timespec>) -> io::Result<()> {
        self.write_at(buf, offset).map_err(|short| short.error)
    }

    fn set_mtime(&self, mtime: Timespec) -> io::Result<()> {
        self.inner().mtime = Some(mtime);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        step();
        let mut inner = self.inner();
        inner.change()?;
        let before = inner.bytes.len();
        inner.bytes.resize(len as usize, 0);
        let (from, to) = (before.min(len as usize), before.max(len as usize));
        inner.note(from, to);
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        step();
        let mut inner = self.inner();
        inner.change()?;
        let (from, to) = (offset as usize, ((offset + len) as usize).min(inner.bytes.len()));
        if from < to {
            inner.bytes[from..to].fill(0);
            inner.note(from, to);
        }
        Ok(())
    }

    fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(self.inner().next_page(offset, true))
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        let inner = self.inner();
        Ok(inner.next_page(offset, false).unwrap_or(inner.bytes.len() as u64))
    }

    fn sync_data(&self) -> io::Result<()> {
        step();
        let mut inner = self.inner();
        inner.change()?;
        let pages = mem::take(&mut inner.pages);
        if inner.failing_syncs > 0 {
            inner.failing_syncs -= 1;
            inner.failed_syncs += 1;
            self.told.store(inner.failed_syncs, Ordering::Relaxed);
            return Err(Errno::IO.into());
        }
        let len = inner.bytes.len();
        inner.durable.resize(len, 0);
        for page in pages.into_keys() {
            let (start, end) = ((page * PAGE).min(len), (page * PAGE + PAGE).min(len));
            let Inner { bytes, durable, .. } = &mut *inner;
            durable[start..end].copy_from_slice(&bytes[start..end]);
        }
        inner.lengths.clear();
        if self.told.swap(inner.failed_syncs, Ordering::Relaxed) < inner.failed_syncs {
            return Err(Errno::IO.into());
        }
        Ok(())
    }
}

thread_local! {
    static MEANWHILE: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

/// Has something happen when the next write begins, or the journal is about to be made, as another thread can.
fn meanwhile(act: impl FnOnce() + 'static) {
    MEANWHILE.set(Some(Box::new(act)));
}

fn interrupt() {
    if let Some(act) = MEANWHILE.take() {
        act();
    }
}

/// Room for a small journal only, so that it begins anew often.
#[derive(Debug)]
struct SmallHome {
    log: DiskFile,
    /// All else on the filesystem, where that can be synced.
    others: Vec<DiskFile>,
}

const PLACE: JournalPlace = JournalPlace { inode: 1, born: 2 };

impl JournalHome<DiskFile> for SmallHome {
    fn make(&self, size: u64) -> io::Result<(DiskFile, JournalPlace)> {
        interrupt();
        if size > 256 << 10 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok((self.log.clone(), PLACE))
    }

    fn settle(&self, journal: &DiskFile) -> io::Result<()> {
        journal.sync_data()
    }

    fn sync_filesystem(&self) -> io::Result<()> {
        if self.others.is_empty() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.others.iter().try_for_each(DiskFile::sync_data)
    }

    fn can_sync_filesystem(&self) -> bool {
        !self.others.is_empty()
    }

    fn remove(&self) -> io::Result<()> {
        self.log.set_len(0)?;
        self.log.sync_data()
    }
}

fn key() -> MacKey {
    MacKey::new(KeyBytes::copy_of(&[9; 32]))
}

fn journal_in(log: &DiskFile) -> Arc<Journal<DiskFile>> {
    journal_beside(log, Vec::new())
}

fn journal_beside(log: &DiskFile, others: Vec<DiskFile>) -> Arc<Journal<DiskFile>> {
    let log = log.clone();
    let home = Box::new(SmallHome { log, others });
    Arc::new(Journal::new(home, VaultId([1; 16]), key(), 2))
}

fn layout() -> Layout {
    Layout::new(Suite::Aes256GcmSiv, 4096).unwrap()
}

fn header(number: u8) -> FileHeader {
    let data_key = DataKey::new(KeyBytes::copy_of(&[number; 32]));
    let (file, directory) = (FileId([number; 16]), DirectoryId([2; 16]));
    FileHeader::new(Suite::Aes256GcmSiv, Epoch(1), file, directory, data_key)
}

type OnDisk = Content<Journaled<DiskFile>>;

/// A file, what it has been since it was last made durable, and what it was then.
struct Tracked {
    number: u8,
    disk: DiskFile,
    content: OnDisk,
    now: Vec<u8>,
    since: Vec<Vec<u8>>,
    /// A sync has failed, and who asks for the next is not told yet.
    may_be_lost: bool,
    is_untold: bool,
}

fn open(number: u8, disk: &DiskFile, journal: &Arc<Journal<DiskFile>>) -> Result<OnDisk, ContentError> {
    let header = header(number);
    let mut preamble = [0; PREAMBLE_SIZE as usize];
    let got = disk.read_at(&mut preamble, 0).unwrap();
    let size = disk.len().unwrap();
    let wrap = |seal_count, durable| {
        let identity = Identity {
            file: header.fields.file,
            seal_count,
            durable,
        };
        Journaled::new(disk.clone(), Some(journal.clone()), layout(), identity)
    };
    if got == 0 {
        return Ok(Content::create(wrap(0, 0), layout(), &header));
    }
    let preamble = UnverifiedPreamble::decode(&preamble[..got]).map_err(ContentError::Preamble)?;
    let stored = Stored {
        size: CipherSize(size),
        preamble: &preamble,
    };
    let storage = wrap(preamble.claimed_seal_count(), size);
    Content::load(storage, layout(), &header, stored, |_| None)
}

impl Tracked {
    fn new(number: u8, journal: &Arc<Journal<DiskFile>>) -> Self {
        Self::on(DiskFile::default(), number, journal)
    }

    fn on(disk: DiskFile, number: u8, journal: &Arc<Journal<DiskFile>>) -> Self {
        let content = open(number, &disk, journal).unwrap();
        // As a file is whose header and name were just synced.
        content.ensure_preamble().unwrap();
        content.storage().sync_data().unwrap();
        Tracked {
            number,
            disk,
            content,
            now: Vec::new(),
            since: vec![Vec::new()],
            may_be_lost: false,
            is_untold: false,
        }
    }

    /// Syncs as a file of the vault does, which has errors told once.
    fn sync(&mut self) -> io::Result<()> {
        let (storage, disk) = (self.content.storage(), &self.disk);
        let synced = storage.sync_with(|changed| {
            let synced = if changed { disk.sync_data() } else { Ok(()) };
            let is_untold = mem::take(&mut self.is_untold) | storage.take_untold_failure().is_err();
            if is_untold { Err(Errno::IO.into()) } else { synced }
        });
        self.may_be_lost |= synced.is_err();
        synced
    }

    fn is_now(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.now);
        self.since.push(self.now.clone());
    }

    fn is_durable(&mut self) {
        self.since = vec![self.now.clone()];
    }

    fn seal(&mut self, journal: &Journal<DiskFile>) {
        self.seal_as_it_is(journal);
        if self.content.is_sealed() {
            self.is_durable();
        }
    }

    /// As the sealer does; twice, since the first round may only finish a cut.
    fn seal_as_it_is(&mut self, journal: &Journal<DiskFile>) {
        for _ in 0..2 {
            let Some(ticket) = self.content.begin_seal() else {
                continue;
            };
            journal.commit().unwrap();
            journal.settle_doubts().unwrap();
            let storage = self.content.storage();
            if storage.sync_in_place(|| self.disk.sync_data()).is_err() {
                (self.may_be_lost, self.is_untold) = (true, true);
            }
            let may_be_lost = self.may_be_lost || storage.has_untold_failure();
            if !may_be_lost && !storage.is_in_doubt() {
                self.content.finish_seal(ticket, None, |_| None).unwrap();
            }
        }
    }

    /// Checks every block after a crash; returns what there is.
    fn check(&self) -> Vec<u8> {
        let content = &self.content;
        let size = content.size().0 as usize;
        let lengths = || self.since.iter().map(Vec::len);
        let (least, most) = (lengths().min().unwrap(), lengths().max().unwrap());
        assert!((least..=most).contains(&size), "{size} bytes, of {least} to {most}");
        let mut found = vec![0; size];
        let mut plain = Vec::new();
        for start in (0..size).step_by(PAGE) {
            let end = (start + PAGE).min(size);
            match content.read(PlainOffset(start as u64), end - start, &mut plain) {
                Ok(range) => found[start..end].copy_from_slice(&plain[range]),
                // Behind what was once the end: written there for the first time, and never acknowledged.
                Err(ContentError::Damaged(_)) if start >= least => continue,
                Err(error) => panic!("block at {start}, {least} at least: {error}"),
            }
            let was = |state: &Vec<u8>| {
                let mut block = state.get(start..).unwrap_or_default().to_vec();
                block.resize(block.len().max(end - start), 0);
                block[..end - start] == found[start..end]
            };
            // The rest of the last block may be cut off, or be zeros that an extension put there.
            assert!(
                self.since.iter().any(was),
                "block at {start} is none of those it has been"
            );
        }
        found
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, usize, u8),
    SetSize(u64),
    Punch(u64, u64),
    Sync,
    Commit,
    Checkpoint,
    Seal,
    Reopen,
    FailSync,
}

fn ops() -> impl Strategy<Value = Vec<(bool, Op)>> {
    let offset = prop_oneof![
        0..60_000u64,
        (0..15u64).prop_map(|n| n * 4096),
        (1..15u64).prop_map(|n| n * 4096 - 1)
    ];
    let op = prop_oneof![
        8 => (offset.clone(), 1..20_000usize, any::<u8>()).prop_map(|(o, l, s)| Op::Write(o, l, s)),
        2 => offset.clone().prop_map(Op::SetSize),
        2 => (offset, 1..20_000u64).prop_map(|(o, l)| Op::Punch(o, l)),
        4 => Just(Op::Sync),
        2 => Just(Op::Commit),
        1 => Just(Op::Checkpoint),
        2 => Just(Op::Seal),
        1 => Just(Op::Reopen),
        1 => Just(Op::FailSync),
    ];
    proptest::collection::vec((any::<bool>(), op), 1..60)
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed | 1)
        .collect()
}

fn act(file: &mut Tracked, journal: &Arc<Journal<DiskFile>>, op: &Op) {
    match *op {
        Op::Write(offset, len, seed) => {
            let data = pattern(len, seed);
            file.content.write(PlainOffset(offset), &data).unwrap();
            file.is_now(|now| {
                let end = offset as usize + len;
                now.resize(now.len().max(end), 0);
                now[offset as usize..end].copy_from_slice(&data);
            });
        }
        Op::SetSize(size) => {
            file.content.set_size(PlainSize(size)).unwrap();
            file.is_now(|now| now.resize(size as usize, 0));
        }
        Op::Punch(offset, len) => {
            file.content.punch(PlainOffset(offset), len).unwrap();
            file.is_now(|now| {
                let (from, to) = (offset as usize, ((offset + len) as usize).min(now.len()));
                if from < to {
                    now[from..to].fill(0);
                }
            });
        }
        Op::Sync => {
            while file.sync().is_err() {
                // Who is told has to: nothing says what was lost.
                file.content.write(PlainOffset(0), &file.now).unwrap();
            }
            file.is_durable();
        }
        Op::Commit => journal.commit().unwrap(),
        Op::Checkpoint => journal.checkpoint().unwrap(),
        Op::Seal => file.seal(journal),
        Op::Reopen => {
            // Only sealed files are closed.
            file.seal(journal);
            if file.content.is_sealed() {
                file.disk = file.disk.opened_again();
                file.content = open(file.number, &file.disk, journal).unwrap();
            }
        }
        // Once: a checkpoint goes on then.
        Op::FailSync => file.disk.fail_syncs(1),
    }
}

/// Recovers the files; without power after so many changes.
fn recover(files: &[Tracked], log: &DiskFile, changes: Option<usize>, chance: &mut Chance) {
    let bytes = log.inner().bytes.clone();
    let Ok(header) = JournalHeader::decode(&bytes, &key()) else {
        return;
    };
    let entries = decode_groups(
        bytes.get(FIRST_GROUP as usize..).unwrap_or_default(),
        header.generation,
        &key(),
    )
    .unwrap();
    let by_file = recovery::by_file(&entries);
    for file in files {
        file.disk.inner().changes_left = changes;
        // By its id alone: a copy of the disk has other numbers.
        let of_id = FileId([file.number; 16]);
        if let Some((_, entries)) = by_file.iter().find(|((id, _), _)| *id == of_id)
            && recovery::apply_to(&file.disk, entries).is_err()
        {
            file.disk.lose_power(chance);
        }
        file.disk.inner().changes_left = None;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_power_cut_leaves_of_each_durable_block_a_version_that_it_has_been(
        rounds in proptest::collection::vec((ops(), any::<u64>(), 0..12usize), 1..4),
    ) {
        let log = DiskFile::default();
        let mut journal = journal_in(&log);
        let mut files = vec![Tracked::new(1, &journal), Tracked::new(2, &journal)];
        for (ops, seed, interrupted) in rounds {
            for (second, op) in &ops {
                act(&mut files[usize::from(*second)], &journal, op);
                let file = &files[usize::from(*second)];
                prop_assert_eq!(file.content.size().0 as usize, file.now.len());
                let mut plain = Vec::new();
                let range = file.content.read(PlainOffset(0), file.now.len(), &mut plain).unwrap();
                prop_assert!(plain[range] == file.now);
            }
            let mut chance = Chance(seed | 1);
            log.lose_power(&mut chance);
            files.iter().for_each(|file| file.disk.lose_power(&mut chance));
            recover(&files, &log, Some(interrupted), &mut chance);
            recover(&files, &log, None, &mut chance);
            log.set_len(0).unwrap();
            log.sync_data().unwrap();
            journal = journal_in(&log);
            for file in &mut files {
                file.content = open(file.number, &file.disk, &journal).unwrap();
                (file.may_be_lost, file.is_untold) = (false, false);
                file.check();
                // A cut that was under way is finished with the first change.
                file.seal_as_it_is(&journal);
                file.now = file.check();
                // What cannot be read was never acknowledged: cut off, as its owner would.
                let readable = (0..file.now.len()).step_by(PAGE).take_while(|&start| {
                    file.content.read(PlainOffset(start as u64), PAGE, &mut Vec::new()).is_ok()
                });
                let len = file.now.len().min(readable.count() * PAGE);
                file.now.truncate(len);
                if file.content.size().0 != len as u64 {
                    file.content.set_size(PlainSize(len as u64)).unwrap();
                }
                file.content.storage().sync_data().unwrap();
                file.is_durable();
            }
        }
    }
}

#[test]
fn who_syncs_second_is_not_told_before_the_first_is_done() {
    let log = DiskFile::default();
    let journal = journal_in(&log);
    let file = Tracked::new(1, &journal);
    let storage = file.content.storage();
    let (begins, begun) = std::sync::mpsc::channel();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let sync = |_| {
                begins.send(()).unwrap();
                std::thread::sleep(Duration::from_millis(50));
                is_done.store(true, Ordering::Release);
                Ok(())
            };
            storage.sync_with(sync).unwrap();
        });
        begun.recv().unwrap();
        storage.sync_data().unwrap();
        assert!(is_done.load(Ordering::Acquire));
    });
}

#[test]
fn a_file_whose_name_a_crash_gives_back_is_as_it_was_synced() {
    for (seed, checkpoint) in (1..40).flat_map(|seed| [(seed, false), (seed, true)]) {
        let log = DiskFile::default();
        let journal = journal_in(&log);
        let mut files = vec![Tracked::new(1, &journal), Tracked::new(2, &journal)];
        // The second time over what is durable.
        for seed in [3, 5] {
            for file in &mut files {
                act(file, &journal, &Op::Write(100, 3 * PAGE, seed));
                act(file, &journal, &Op::Sync);
            }
        }
        // Held, and never written.
        act(&mut files[0], &journal, &Op::Write(0, PAGE, 9));
        files[0].content.storage().last_name_is_gone();
        files[0].content = open(2, &DiskFile::default(), &journal).unwrap();
        journal.let_go_of_removed();
        // A group behind it, after which nothing of the file need be in the journal.
        act(&mut files[1], &journal, &Op::Write(0, PAGE, 7));
        act(&mut files[1], &journal, &Op::Sync);
        if checkpoint {
            journal.checkpoint().unwrap();
        }
        let mut chance = Chance(seed);
        log.lose_power(&mut chance);
        files.iter().for_each(|file| file.disk.lose_power(&mut chance));
        recover(&files, &log, None, &mut chance);
        for file in &mut files {
            file.content = open(file.number, &file.disk, &journal).unwrap();
            file.check();
        }
    }
}

#[test]
fn what_is_held_of_a_file_without_a_name_goes_when_it_is_closed() {
    let (journal, disk, content) = with_a_durable_block();
    let before = disk.inner().bytes.clone();
    content.write(PlainOffset(0), &pattern(4096, 2)).unwrap();
    content.storage().last_name_is_gone();
    let mut plain = Vec::new();
    let read = content.read(PlainOffset(0), 4096, &mut plain).unwrap();
    assert!(plain[read] == pattern(4096, 2));
    drop(content);
    journal.commit().unwrap();
    assert!(disk.inner().bytes == before);
    assert_eq!(journal.held.load(Ordering::Relaxed), 0);
    assert!(journal.waiting.lock().is_empty());
}

/// Makes a file with a block that is durable.
fn with_a_durable_block() -> (Arc<Journal<DiskFile>>, DiskFile, Arc<OnDisk>) {
    let (journal, disk) = (journal_in(&DiskFile::default()), DiskFile::default());
    let content = Arc::new(open(1, &disk, &journal).unwrap());
    content.write(PlainOffset(0), &pattern(4096, 1)).unwrap();
    content.storage().sync_data().unwrap();
    (journal, disk, content)
}

#[test]
fn a_sync_beside_a_write_does_not_stand_for_the_next() {
    let (_journal, disk, content) = with_a_durable_block();
    let other = content.clone();
    meanwhile(move || other.storage().sync_data().unwrap());
    content.write(PlainOffset(4096), &pattern(4096, 2)).unwrap();
    content.storage().sync_data().unwrap();
    let inner = disk.inner();
    assert_eq!(inner.durable.len(), inner.bytes.len());
}

/// A file of which a block was durable and then written over, and that is in the journal alone.
fn with_a_block_in_the_journal() -> (Arc<Journal<DiskFile>>, DiskFile, Arc<OnDisk>) {
    let (journal, disk, content) = with_a_durable_block();
    content.write(PlainOffset(0), &pattern(4096, 2)).unwrap();
    content.storage().sync_data().unwrap();
    (journal, disk, content)
}

#[test]
fn a_time_that_was_set_and_synced_is_not_taken_back_by_recovery() {
    for seconds in [1_000_000_000, 0] {
        let (log, disk) = (DiskFile::default(), DiskFile::default());
        let journal = journal_in(&log);
        let mut file = Tracked::on(disk.clone(), 1, &journal);
        file.content.write(PlainOffset(0), &pattern(4096, 1)).unwrap();
        file.sync().unwrap();
        file.content.write(PlainOffset(0), &pattern(4096, 2)).unwrap();
        file.sync().unwrap();
        let set = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let set_mtime = || disk.set_mtime(set).map(|()| Some(set));
        assert!(file.content.storage().with_times(set_mtime).unwrap());
        file.sync().unwrap();
        let mut chance = Chance(1);
        log.lose_power(&mut chance);
        recover(&[file], &log, None, &mut chance);
        assert_eq!(disk.inner().mtime, Some(set));
    }
}

#[test]
fn a_time_that_was_set_while_a_commit_was_under_way_is_not_taken_back() {
    let (log, disk) = (DiskFile::default(), DiskFile::default());
    let journal = journal_in(&log);
    let content = Arc::new(open(1, &disk, &journal).unwrap());
    content.write(PlainOffset(0), &pattern(4096, 1)).unwrap();
    content.storage().sync_data().unwrap();
    content.write(PlainOffset(0), &pattern(4096, 2)).unwrap();
    let set = Timespec {
        tv_sec: 1_000_000_000,
        tv_nsec: 0,
    };
    let (other, times) = (content.clone(), disk.clone());
    meanwhile(move || {
        let set_mtime = || times.set_mtime(set).map(|()| Some(set));
        assert!(other.storage().with_times(set_mtime).unwrap());
    });
    journal.commit().unwrap();
    content.storage().sync_data().unwrap();
    let mut chance = Chance(1);
    log.lose_power(&mut chance);
    let file = Tracked::on(disk.clone(), 1, &journal_in(&DiskFile::default()));
    recover(&[file], &log, None, &mut chance);
    assert_eq!(disk.inner().mtime, Some(set));
}

#[test]
fn a_time_of_a_sealed_file_is_not_the_journals() {
    let (journal, disk) = (journal_in(&DiskFile::default()), DiskFile::default());
    let mut file = Tracked::on(disk, 1, &journal);
    for seed in [1, 2] {
        file.content.write(PlainOffset(0), &pattern(4096, seed)).unwrap();
        file.sync().unwrap();
    }
    file.seal(&journal);
    assert!(file.content.is_sealed());
    let set = Timespec { tv_sec: 1, tv_nsec: 0 };
    assert!(!file.content.storage().with_times(|| Ok(Some(set))).unwrap());
}

/// Content that was durable, of so many whole blocks and the beginning of one, in a file whose journal takes no group any more.
fn with_a_journal_that_fails(blocks: usize) -> (Tracked, DiskFile, Arc<Journal<DiskFile>>) {
    let log = DiskFile::default();
    let journal = journal_in(&log);
    let mut file = Tracked::new(1, &journal);
    let old = pattern(blocks * PAGE + 110, 1);
    file.content.write(PlainOffset(0), &old).unwrap();
    file.is_now(|now| *now = old);
    file.sync().unwrap();
    file.is_durable();
    // The journal is there.
    file.content.punch(PlainOffset(0), 1).unwrap();
    file.is_now(|now| now[0] = 0);
    log.inner().changes_left = Some(0);
    (file, log, journal)
}

#[test]
fn what_the_journal_does_not_take_leaves_every_block_whole() {
    const BLOCKS: usize = 30;
    let (mut file, log, journal) = with_a_journal_that_fails(BLOCKS);
    // As much as may be held, then an end that grows, then more than may be held.
    let refused = (0..BLOCKS).find(|block| {
        let new = pattern(PAGE, 2);
        file.is_now(|now| now[block * PAGE..][..PAGE].copy_from_slice(&new));
        let result = file.content.write(PlainOffset((block * PAGE) as u64), &new);
        file.check();
        result.is_err()
    });
    assert!(refused.is_some(), "there was room for all of it");
    let longer = pattern(PAGE - 100, 3);
    file.content
        .write(PlainOffset((BLOCKS * PAGE + 10) as u64), &longer)
        .unwrap_err();
    file.check();
    let new = pattern(BLOCKS * PAGE, 4);
    file.is_now(|now| now[..new.len()].copy_from_slice(&new));
    file.content.write(PlainOffset(0), &new).unwrap_err();
    file.check();
    log.inner().changes_left = None;
    file.sync().unwrap();
    file.check();
    file.seal_as_it_is(&journal);
    assert!(file.content.is_sealed());
    file.content.verify(|_| ()).unwrap();
}

#[test]
fn a_time_that_the_journal_has_nothing_of_is_not_held() {
    let (_journal, _disk, content) = with_a_durable_block();
    let now = || Ok(Some(Timespec { tv_sec: 1, tv_nsec: 0 }));
    assert!(!content.storage().with_times(now).unwrap());
}

/// Checks that a power cut after which there is no journal leaves the block as it was written last.
fn is_durable_without_the_journal(disk: &DiskFile) {
    disk.forget();
    let content = open(1, disk, &journal_in(&DiskFile::default())).unwrap();
    let mut plain = Vec::new();
    let read = content.read(PlainOffset(0), 4096, &mut plain).unwrap();
    assert!(plain[read] == pattern(4096, 2));
}

#[test]
fn what_a_sync_that_failed_did_not_write_is_written_again_from_the_journal() {
    let (journal, disk, content) = with_a_block_in_the_journal();
    disk.fail_syncs(1);
    journal.checkpoint().unwrap();
    assert!(!content.storage().has_untold_failure(), "nothing was lost");
    is_durable_without_the_journal(&disk);
}

#[test]
fn the_journal_stays_until_what_it_has_is_durable() {
    let (journal, disk, content) = with_a_block_in_the_journal();
    disk.fail_syncs(2);
    journal.checkpoint().unwrap_err();
    assert!(content.storage().is_in_doubt());
    disk.forget();
    journal.checkpoint().unwrap();
    assert!(!content.storage().is_in_doubt());
    is_durable_without_the_journal(&disk);
}

#[test]
fn a_sync_that_someone_asked_for_and_that_failed_leaves_doubt_of_what_the_journal_has() {
    let (journal, disk, content) = with_a_block_in_the_journal();
    content.write(PlainOffset(4096), &pattern(4096, 3)).unwrap();
    disk.fail_syncs(1);
    content.storage().sync_data().unwrap_err();
    journal.checkpoint().unwrap();
    is_durable_without_the_journal(&disk);
}

#[test]
fn who_syncs_next_is_told_that_the_journals_sync_has_failed() {
    let (journal, disk, content) = with_a_block_in_the_journal();
    content.write(PlainOffset(4096), &pattern(4096, 3)).unwrap();
    disk.fail_syncs(1);
    journal.checkpoint().unwrap();
    content.storage().take_untold_failure().unwrap_err();
    assert!(!content.storage().has_untold_failure(), "once");
}

#[test]
fn a_cut_that_the_file_did_not_take_is_not_done_later() {
    for failing in [0, 1] {
        let (journal, disk, content) = with_a_block_in_the_journal();
        disk.inner().changes_left = Some(0);
        content.storage().set_len(100).unwrap_err();
        disk.inner().changes_left = None;
        disk.fail_syncs(failing);
        journal.settle_doubts().unwrap();
        let log = journal.log.lock();
        assert_eq!(log.open.as_ref().unwrap().at, FIRST_GROUP, "a crash would find it");
        is_durable_without_the_journal(&disk);
    }
}

#[test]
fn what_a_file_did_not_take_is_known_of_the_file_as_it_was_opened_last() {
    let (journal, disk, content) = with_a_block_in_the_journal();
    let ticket = content.begin_seal().unwrap();
    disk.sync_data().unwrap();
    content.finish_seal(ticket, None, |_| None).unwrap();
    drop(content);
    let disk = disk.opened_again();
    let content = open(1, &disk, &journal).unwrap();
    disk.inner().changes_left = Some(0);
    content.storage().set_len(100).unwrap_err();
    disk.inner().changes_left = None;
    journal.settle_doubts().unwrap();
    is_durable_without_the_journal(&disk);
}

#[test]
fn what_is_held_is_bounded_with_the_writes_that_it_is_a_part_of() {
    const BLOCKS: usize = 12;
    let disk = DiskFile::default();
    let journal = journal_in(&DiskFile::default());
    let content = open(1, &disk, &journal).unwrap();
    content.write(PlainOffset(0), &pattern(100 * PAGE, 1)).unwrap();
    content.storage().sync_data().unwrap();
    for block in 0..50 {
        let new = pattern(BLOCKS * PAGE, block as u8);
        content.write(PlainOffset(block * PAGE as u64), &new).unwrap();
        let held = journal.held.load(Ordering::Relaxed);
        assert_eq!(held, content.storage().memory());
        assert!(held <= journal.limit().unwrap().unwrap() + BLOCKS * PAGE, "{held}");
    }
    journal.commit().unwrap();
    assert_eq!(journal.held.load(Ordering::Relaxed), 0);
    content.verify(|_| ()).unwrap();
}

#[test]
fn where_data_and_holes_are_is_told_with_what_is_held_and_without_a_commit() {
    let (log, disk) = (DiskFile::default(), DiskFile::default());
    disk.inner().knows_holes = true;
    let journal = journal_in(&log);
    let content = open(1, &disk, &journal).unwrap();
    content.write(PlainOffset(0), &pattern(PAGE, 1)).unwrap();
    content.storage().sync_data().unwrap();
    content.set_size(PlainSize(64 * PAGE as u64)).unwrap();
    content.storage().sync_data().unwrap();
    let durable = log.inner().durable.clone();
    let block = |index: u64| PlainOffset(index * PAGE as u64);
    content.write(block(20), &pattern(3 * PAGE, 2)).unwrap();
    content.write(block(30), &pattern(2 * PAGE, 3)).unwrap();
    assert_eq!(content.seek_data(block(1)).unwrap(), Some(block(20)));
    assert_eq!(content.seek_hole(block(20)).unwrap(), Some(block(23)));
    assert_eq!(content.seek_data(block(23)).unwrap(), Some(block(30)));
    assert_eq!(content.seek_data(block(31)).unwrap(), Some(block(31)));
    assert_eq!(content.seek_hole(block(31)).unwrap(), Some(block(32)));
    assert!(
        content.storage().held_end() > 0 && log.inner().durable == durable,
        "committed"
    );
}

#[test]
fn a_limit_on_the_size_of_files_makes_the_journal_small() {
    #[derive(Debug)]
    struct Limited(SmallHome);

    impl JournalHome<DiskFile> for Limited {
        fn make(&self, size: u64) -> io::Result<(DiskFile, JournalPlace)> {
            let made = self.0.make(size);
            made.map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
        }

        fn settle(&self, journal: &DiskFile) -> io::Result<()> {
            self.0.settle(journal)
        }

        fn sync_filesystem(&self) -> io::Result<()> {
            self.0.sync_filesystem()
        }

        fn can_sync_filesystem(&self) -> bool {
            self.0.can_sync_filesystem()
        }

        fn remove(&self) -> io::Result<()> {
            self.0.remove()
        }
    }

    let home = Limited(SmallHome {
        log: DiskFile::default(),
        others: Vec::new(),
    });
    let journal = Journal::new(Box::new(home), VaultId([1; 16]), key(), 2);
    assert!(journal.limit().unwrap().is_some());
}
