//! The journal in orders of its threads that Shuttle chooses: who writes, syncs, seals, reads, cuts and empties the journal stops at each lock and atomic,
//! and another goes on. In every order a power cut at any step leaves what was synced.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::io::Errno;
use shuttle::{
    rand::{RngCore, thread_rng},
    thread,
};

use super::{Chance, DiskFile, Journal, OnDisk, PAGE, Tracked, journal_beside, journal_in, open, pattern, recover};
use crate::{
    backing::Storage,
    units::{PlainOffset, PlainSize},
    vault::content::ContentError,
};

/// Orders that are tried, of each kind, unless HUSHFS_ORDERS says another number.
const ORDERS: usize = 3000;

/// How many times the order is changed against the priorities of threads, where it follows these.
const CHANGES: usize = 4;

/// Changes of each file.
const STEPS: usize = 6;

/// The file that loses its last name.
const REMOVED: u8 = 3;

/// The size of a file at first, in pages.
const PAGES: usize = 3;

fn in_chosen_orders(test: fn()) {
    let orders = std::env::var("HUSHFS_ORDERS").map_or(ORDERS, |orders| orders.parse().unwrap());
    shuttle::check_random(test, orders);
    shuttle::check_pct(test, orders, CHANGES);
}

fn chance() -> Chance {
    Chance(thread_rng().next_u64() | 1)
}

/// A file that threads share.
struct Shared {
    number: u8,
    disk: DiskFile,
    /// Nothing when it was closed.
    content: Mutex<Option<Arc<OnDisk>>>,
    /// What it is, or is about to be; before it what it has been since its last sync.
    since: Mutex<Vec<Vec<u8>>>,
    /// The sealer's sync has failed, and who asks for the next is not told yet.
    is_untold: AtomicBool,
    may_be_lost: AtomicBool,
    /// Syncs that fail in all.
    failures: usize,
}

impl Shared {
    fn new(number: u8, disk: DiskFile, journal: &Arc<Journal<DiskFile>>, failures: usize) -> Self {
        let now = pattern(PAGES * PAGE, number);
        let content = open(number, &disk, journal).unwrap();
        content.write(PlainOffset(0), &now).unwrap();
        content.storage().sync_data().unwrap();
        Shared {
            number,
            disk,
            content: Mutex::new(Some(Arc::new(content))),
            since: Mutex::new(vec![now]),
            is_untold: AtomicBool::new(false),
            may_be_lost: AtomicBool::new(false),
            failures,
        }
    }

    /// Changes the file; again where it was told of a sync that failed.
    fn until_done(&self, change: impl Fn(&OnDisk) -> Result<(), ContentError>) {
        until_done(self.failures, || change(&self.content()));
    }

    /// Syncs as a file of the vault does, which has errors told once.
    fn sync(&self) -> io::Result<()> {
        let content = self.content();
        content.storage().sync_with(|changed| {
            let synced = if changed { self.disk.sync_data() } else { Ok(()) };
            let is_untold =
                self.is_untold.swap(false, Ordering::Relaxed) | content.storage().take_untold_failure().is_err();
            let synced = if is_untold { Err(Errno::IO.into()) } else { synced };
            self.may_be_lost.fetch_or(synced.is_err(), Ordering::Relaxed);
            synced
        })
    }

    fn content(&self) -> Arc<OnDisk> {
        self.content.lock().unwrap().clone().unwrap()
    }

    /// Notes what the file is about to be.
    fn becomes(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut since = self.since.lock().unwrap();
        let mut next = since.last().unwrap().clone();
        change(&mut next);
        since.push(next);
    }

    /// Changes and syncs the file; one thread only.
    fn change(&self, chance: &mut Chance) {
        for _ in 0..STEPS {
            let offset = chance.below(PAGES * PAGE);
            match chance.below(8) {
                0..=3 => {
                    let data = pattern(1 + chance.below(2 * PAGE), chance.below(256) as u8);
                    self.becomes(|now| {
                        let end = offset + data.len();
                        now.resize(now.len().max(end), 0);
                        now[offset..end].copy_from_slice(&data);
                    });
                    self.until_done(|content| content.write(PlainOffset(offset as u64), &data));
                }
                4 => {
                    self.becomes(|now| now.resize(offset, 0));
                    self.until_done(|content| content.set_size(PlainSize(offset as u64)));
                }
                5 => {
                    self.becomes(|now| {
                        let end = now.len().min(offset + PAGE);
                        now[offset.min(end)..end].fill(0);
                    });
                    self.until_done(|content| content.punch(PlainOffset(offset as u64), PAGE as u64));
                }
                _ => {
                    while self.sync().is_err() {
                        // Who is told has to: nothing says what was lost.
                        let now = self.since.lock().unwrap().last().unwrap().clone();
                        self.until_done(|content| content.write(PlainOffset(0), &now));
                    }
                    let mut since = self.since.lock().unwrap();
                    let done = since.len() - 1;
                    since.drain(..done);
                }
            }
            self.check(|since| since.last().cloned().into_iter().collect());
        }
    }

    /// Checks that what is read is one of these.
    fn check(&self, allowed: impl Fn(&[Vec<u8>]) -> Vec<Vec<u8>>) {
        let before = allowed(&self.since.lock().unwrap());
        let mut plain = Vec::new();
        let read = self.content().read(PlainOffset(0), 6 * PAGE, &mut plain).unwrap();
        let found = &plain[read];
        let after = allowed(&self.since.lock().unwrap());
        for (start, page) in (0..).step_by(PAGE).zip(found.chunks(PAGE)) {
            let is_it = |state: &Vec<u8>| {
                let mut was = state.get(start..).unwrap_or_default().to_vec();
                was.resize(was.len().max(page.len()), 0);
                was[..page.len()] == *page
            };
            assert!(
                before.iter().chain(&after).any(is_it),
                "page at {start} of {}",
                self.number
            );
        }
    }

    /// As the sealer does, which tries again later where something failed.
    fn seal(&self, journal: &Journal<DiskFile>) {
        if let Some(ticket) = self.content().begin_seal() {
            if journal.commit().and_then(|()| journal.settle_doubts()).is_err() {
                assert!(self.failures > 0, "nothing fails here");
                return;
            }
            let content = self.content();
            let sync = || {
                self.disk.sync_data().inspect_err(|_| {
                    self.is_untold.store(true, Ordering::Relaxed);
                    self.may_be_lost.store(true, Ordering::Relaxed);
                })
            };
            let synced = content.storage().sync_in_place(sync);
            let may_be_lost = self.may_be_lost.load(Ordering::Relaxed) || content.storage().has_untold_failure();
            if synced.is_ok() && !may_be_lost && !content.storage().is_in_doubt() {
                content.finish_seal(ticket, None, |_| None).unwrap();
            }
        }
    }

    /// Returns a copy of the disk, and what a power cut may leave.
    fn image(&self) -> (DiskFile, Vec<Vec<u8>>) {
        (copy(&self.disk), self.since.lock().unwrap().clone())
    }
}

fn until_done<E: fmt::Debug>(failures: usize, mut act: impl FnMut() -> Result<(), E>) {
    let failed = (0..failures).take_while(|_| act().is_err()).count();
    if failed == failures {
        act().unwrap();
    }
}

fn copy(disk: &DiskFile) -> DiskFile {
    let copied = disk.inner().clone();
    DiskFile {
        told: Arc::new(copied.failed_syncs.into()),
        inner: Arc::new(Mutex::new(copied)),
    }
}

/// Cuts the power of copies, has the files recovered and checks them.
fn cut_power(log: &DiskFile, files: &[Arc<Shared>], chance: &mut Chance) {
    // At one instant: nothing here is a step at which another thread goes on.
    let log = copy(log);
    let images: Vec<_> = files.iter().map(|file| file.image()).collect();
    let journal = journal_in(&DiskFile::default());
    log.lose_power(chance);
    let after = files.iter().zip(images).map(|(file, (disk, since))| {
        disk.lose_power(chance);
        Tracked {
            number: file.number,
            content: open(file.number, &DiskFile::default(), &journal).unwrap(),
            disk,
            now: Vec::new(),
            since,
            may_be_lost: false,
            is_untold: false,
        }
    });
    let mut after: Vec<_> = after.collect();
    recover(&after, &log, None, chance);
    for file in &mut after {
        file.content = open(file.number, &file.disk, &journal).unwrap();
        file.check();
    }
}

fn files_change_beside_the_journal() {
    change_files(0);
}

fn files_change_and_some_syncs_fail() {
    change_files(2);
}

fn change_files(failures: usize) {
    let log = DiskFile::default();
    let disks = [1, 2, 3].map(|number| (number, DiskFile::default()));
    let can_sync_all = chance().below(2) == 1;
    let others = disks.iter().map(|(_, disk)| disk.clone()).filter(|_| can_sync_all);
    let journal = journal_beside(&log, others.collect());
    let files = disks.map(|(number, disk)| Arc::new(Shared::new(number, disk, &journal, failures)));
    let is_done = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for file in &files {
        let (file, journal, mut chance) = (file.clone(), journal.clone(), chance());
        threads.push(thread::spawn(move || {
            file.change(&mut chance);
            if file.number == REMOVED {
                file.content().storage().last_name_is_gone();
                file.content.lock().unwrap().take();
                journal.let_go_of_removed();
            }
        }));
    }
    let (file, kept) = (files[0].clone(), journal.clone());
    let sealer = thread::spawn(move || (0..2).for_each(|_| file.seal(&kept)));
    let file = files[1].clone();
    let reader = thread::spawn(move || {
        for _ in 0..3 {
            file.check(<[_]>::to_vec);
            // Who is told of a failure is the only one.
            if failures == 0 {
                file.sync().unwrap();
            }
        }
    });
    let (kept, failing, mut chosen) = (journal.clone(), files.clone(), chance());
    let keeper = thread::spawn(move || {
        for round in 0..2 {
            if round < failures {
                // The file that is removed does not count any more when a sync of the filesystem has made that durable, and no cut here knows of it.
                failing[chosen.below(failing.len() - 1)].disk.fail_syncs(1);
            }
            until_done(failures, || kept.commit());
            until_done(failures, || kept.checkpoint());
        }
    });
    let (watched, done, mut cutting) = (files.clone(), is_done.clone(), chance());
    let cutter = thread::spawn(move || {
        while !done.load(Ordering::Relaxed) {
            cut_power(&log, &watched, &mut cutting);
            for _ in 0..cutting.below(20) {
                thread::yield_now();
            }
        }
        cut_power(&log, &watched, &mut cutting);
    });
    for thread in threads.into_iter().chain([sealer, reader, keeper]) {
        thread.join().unwrap();
    }
    is_done.store(true, Ordering::Relaxed);
    cutter.join().unwrap();
    until_done(failures, || journal.finish());
    for file in files.iter().filter(|file| file.number != REMOVED) {
        file.check(|since| since.last().cloned().into_iter().collect());
    }
}

#[test]
fn a_power_cut_at_any_step_of_any_order_leaves_what_was_synced() {
    in_chosen_orders(files_change_beside_the_journal);
}

#[test]
fn a_power_cut_after_syncs_that_failed_leaves_what_was_synced() {
    in_chosen_orders(files_change_and_some_syncs_fail);
}
