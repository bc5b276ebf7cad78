//! Has the vault's keys asked for again while it is mounted, and takes from the kernel what may not be read any more.
//!
//! The kernel answers from its pages without asking, and those of a file whose key is refused must go. To drop pages it first writes those that were
//! changed, which the threads that serve requests must be free to answer. So none of them waits here: all of this is done by a thread of its own.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use fuser::Notifier;

use super::kernel;

use crate::{
    backing::alarm::{Alarm, since_boot},
    fs::Fs,
    ids::Epoch,
    vault::{
        freshness::State,
        keeper::{Change, Keeper, Source},
    },
};

/// A read that was under way when a key was refused may bring pages after they were dropped; they are dropped again so much later.
const SECOND_DROP: Duration = Duration::from_secs(1);

/// The thread that has keys asked for, for who wants it to do so at once, or to end.
#[derive(Clone, Debug)]
pub struct KeyChecks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    alarm: Alarm,
    at_once: AtomicBool,
    ended: AtomicBool,
}

impl KeyChecks {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// What making its alarm or itself gives.
    pub fn start<S>(keeper: Keeper<S>, fs: Arc<Fs>, notifier: Notifier) -> io::Result<Self>
    where
        S: Source + Send + 'static,
    {
        let shared = Arc::new(Shared {
            alarm: Alarm::new()?,
            at_once: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let checks = KeyChecks(shared.clone());
        let mut checker = Checker {
            keeper,
            fs,
            notifier,
            again: Vec::new(),
        };
        let waker = shared.clone();
        checker.keeper.set_wake(move || waker.alarm.ring());
        thread::Builder::new()
            .name("keys".into())
            .spawn(move || checker.run(&shared))?;
        Ok(checks)
    }

    /// Has all keys asked for now.
    pub fn check_now(&self) {
        self.0.at_once.store(true, Ordering::Release);
        self.0.alarm.ring();
    }

    /// Has the thread end. Nobody waits for it: a keystore on a server that does not answer would keep the mount from ending.
    pub fn end(&self) {
        self.0.ended.store(true, Ordering::Release);
        self.0.alarm.ring();
    }
}

struct Checker<S> {
    keeper: Keeper<S>,
    fs: Arc<Fs>,
    notifier: Notifier,
    /// Epochs whose pages are to be dropped once more, and when.
    again: Vec<(Duration, Epoch)>,
}

impl<S: Source> Checker<S> {
    fn run(&mut self, shared: &Shared) {
        while !shared.ended.load(Ordering::Acquire) {
            self.keeper.learn(self.fs.vault().epochs());
            let changes = self.keeper.round(shared.at_once.swap(false, Ordering::AcqRel));
            self.carry_out(&changes);
            let next = self.again.iter().map(|(time, _)| *time).min();
            let next = next.map_or(self.keeper.next(), |time| time.min(self.keeper.next()));
            if let Err(error) = shared.alarm.wait_until(next) {
                log::error!("keys are not asked for in time: {error}");
                thread::sleep(SECOND_DROP);
            }
        }
    }

    fn carry_out(&mut self, changes: &[Change]) {
        let now = since_boot();
        let (due, later) = std::mem::take(&mut self.again)
            .into_iter()
            .partition(|(time, _)| *time <= now);
        self.again = later;
        for (_, epoch) in due {
            self.drop_pages(epoch);
        }
        for Change { epoch, state } in changes {
            self.again.retain(|(_, other)| other != epoch);
            match state {
                State::Refused(_) => {
                    self.drop_pages(*epoch);
                    self.again.push((now + SECOND_DROP, *epoch));
                }
                State::Fresh | State::Stale(_) => self.fs.seal_put_off(),
            }
        }
    }

    /// Takes from the kernel what it has of the files of an epoch.
    fn drop_pages(&self, epoch: Epoch) {
        for inode in self.fs.inodes_of_epoch(epoch) {
            kernel::drop_pages(&self.notifier, inode);
        }
    }
}
