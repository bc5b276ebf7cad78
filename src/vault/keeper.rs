//! Keeps a mounted vault from using keys that their custodian does not give any more: asks again, and opens or closes the way to each epoch's files.
//!
//! A thread of the mount calls it, never one that serves requests: a question may take seconds. What may take long is asked on threads of its own, one for
//! each key that is held elsewhere, so that one that never answers holds up nothing else, and its files only when their time is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use super::{
    EpochKeys,
    access::EpochAccess,
    freshness::{Limits, State, Watch},
};
use crate::{
    crypto::keys::WrappingKey,
    format::vault::EpochRecord,
    ids::{Epoch, KeyId},
    keystore::KeyError,
};

/// Who can be asked for the keys of a vault's epochs again.
pub trait Source {
    /// Tells whether there is someone to ask for an epoch's key. Otherwise it stays as it was when the vault was opened.
    fn has_custodian(&self, epoch: Epoch) -> bool;

    /// Looks whether what it knows of keys has changed. Called before questions, which may be many.
    fn refresh(&mut self);

    /// Returns the question for an epoch's key.
    fn question(&self, epoch: Epoch) -> Question;

    /// Returns the error of an epoch whose key nobody answers for.
    fn unanswered(&self, epoch: Epoch) -> KeyError;

    /// Learns of an epoch that was taken over, and whose key was had just then.
    fn learn(&mut self, epoch: &Arc<EpochRecord>);
}

type Answer = Result<WrappingKey, KeyError>;

/// A question for an epoch's key.
pub struct Question {
    /// The key that is held elsewhere, for a question that may take long.
    holder: Option<KeyId>,
    ask: Box<dyn FnOnce() -> Answer + Send>,
}

impl Question {
    /// One that takes no longer than reading memory.
    pub fn quick(ask: impl FnOnce() -> Answer + Send + 'static) -> Self {
        Question {
            holder: None,
            ask: Box::new(ask),
        }
    }

    /// One that waits for who holds this key.
    pub fn slow(key: KeyId, ask: impl FnOnce() -> Answer + Send + 'static) -> Self {
        Question {
            holder: Some(key),
            ask: Box::new(ask),
        }
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Question")
            .field("holder", &self.holder)
            .finish_non_exhaustive()
    }
}

/// What the threads that ask send.
enum Heard {
    Answer(Epoch, Answer),
    /// The last that will be heard of a key for now.
    End(KeyId),
}

/// A key of an epoch, and how it stands with it.
#[derive(Debug)]
struct Kept {
    access: Arc<EpochAccess>,
    watch: Watch,
}

/// An epoch whose files may be used from now on, or no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The epoch.
    pub epoch: Epoch,
    /// How it stands with its key now.
    pub state: State,
}

/// Keeps the keys of one vault.
pub struct Keeper<S> {
    source: S,
    limits: Limits,
    clock: fn() -> Duration,
    /// How many of the epochs that were taken over are known.
    learned: usize,
    keys: BTreeMap<Epoch, Kept>,
    /// Keys held elsewhere that are being asked for.
    asking: BTreeSet<KeyId>,
    heard: Receiver<Heard>,
    teller: Sender<Heard>,
    /// Called when there is an answer.
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl<S> fmt::Debug for Keeper<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper")
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

impl<S: Source> Keeper<S> {
    /// Begins with a vault that was just opened. `clock` gives the time since boot, sleep included.
    pub fn new(source: S, epochs: &EpochKeys, limits: Limits, clock: fn() -> Duration) -> Self {
        let now = clock();
        let (teller, heard) = channel();
        let kept = |access: &Arc<EpochAccess>| Kept {
            watch: Watch::new(limits, now, access.refusal().map_or(Ok(()), Err)),
            access: access.clone(),
        };
        let asked = epochs.all().filter(|access| source.has_custodian(access.epoch()));
        Keeper {
            keys: asked.map(|access| (access.epoch(), kept(access))).collect(),
            source,
            limits,
            clock,
            learned: 0,
            asking: BTreeSet::new(),
            heard,
            teller,
            wake: Arc::new(|| {}),
        }
    }

    /// Says how to wake up who waits until [`next`](Self::next).
    pub fn set_wake(&mut self, wake: impl Fn() + Send + Sync + 'static) {
        self.wake = Arc::new(wake);
    }

    /// Keeps the keys of epochs, too, that were taken over since the vault was opened.
    pub fn learn(&mut self, epochs: &EpochKeys) {
        for taken in epochs.taken_since(self.learned) {
            self.learned += 1;
            self.source.learn(&taken.record);
            if self.source.has_custodian(taken.record.number) {
                let kept = Kept {
                    watch: Watch::new(self.limits, taken.asked, Ok(())),
                    access: taken.access,
                };
                self.keys.insert(taken.record.number, kept);
            }
        }
    }

    /// Returns when [`round`](Self::round) is to be called again, if nothing wakes the caller before.
    pub fn next(&self) -> Duration {
        let times = self.keys.values().map(|kept| kept.watch.next());
        times.min().unwrap_or(Duration::MAX)
    }

    /// Takes the answers there are, asks what is to be asked now, or everything `at_once`, and ends the use of keys whose time is over.
    pub fn round(&mut self, at_once: bool) -> Vec<Change> {
        let now = (self.clock)();
        let before: Vec<_> = self
            .keys
            .iter()
            .map(|(epoch, kept)| (*epoch, kept.watch.state()))
            .collect();
        self.listen(now);
        self.ask(now, at_once);
        // After the quick answers: what they say after a long sleep is in time.
        for (epoch, kept) in &mut self.keys {
            if kept.watch.is_over(now) {
                kept.watch.lapse(now, self.source.unanswered(*epoch));
                kept.apply();
            }
        }
        let changes = before.into_iter().filter_map(|(epoch, before)| {
            let state = self.keys[&epoch].watch.state();
            (state != before).then(|| {
                log(epoch, before, state);
                Change { epoch, state }
            })
        });
        changes.collect()
    }

    fn listen(&mut self, now: Duration) {
        while let Ok(heard) = self.heard.try_recv() {
            match heard {
                Heard::Answer(epoch, answer) => self.take(epoch, now, answer),
                Heard::End(key) => drop(self.asking.remove(&key)),
            }
        }
    }

    fn take(&mut self, epoch: Epoch, now: Duration, answer: Answer) {
        let Some(kept) = self.keys.get_mut(&epoch) else { return };
        let answer = match answer.map(|key| kept.access.takes(key)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(KeyError::Rejected {
                key: self.source.unanswered(epoch).key(),
            }),
            Err(error) => Err(error),
        };
        kept.watch.answer(now, answer);
        kept.apply();
    }

    fn ask(&mut self, now: Duration, at_once: bool) {
        if at_once {
            self.keys.values_mut().for_each(|kept| kept.watch.want(now));
        }
        let due = self.keys.iter().filter(|(_, kept)| kept.watch.is_due(now));
        let due: Vec<_> = due.map(|(epoch, _)| *epoch).collect();
        if due.is_empty() {
            return;
        }
        self.source.refresh();
        let mut slow: BTreeMap<KeyId, Vec<(Epoch, Question)>> = BTreeMap::new();
        for epoch in due {
            let question = self.source.question(epoch);
            if let Some(key) = question.holder {
                slow.entry(key).or_default().push((epoch, question));
                continue;
            }
            self.watch(epoch).ask(now);
            self.take(epoch, now, (question.ask)());
        }
        for (key, questions) in slow {
            self.ask_elsewhere(key, questions, now);
        }
    }

    fn watch(&mut self, epoch: Epoch) -> &mut Watch {
        let kept = self
            .keys
            .get_mut(&epoch)
            .expect("only the vault's epochs are asked for");
        &mut kept.watch
    }

    /// Has a thread ask who holds a key, unless one does so already: then the questions wait for its end.
    fn ask_elsewhere(&mut self, key: KeyId, questions: Vec<(Epoch, Question)>, now: Duration) {
        let epochs: Vec<_> = questions.iter().map(|(epoch, _)| *epoch).collect();
        if !self.asking.insert(key) {
            epochs.iter().for_each(|epoch| self.watch(*epoch).put_off(now));
            return;
        }
        let (teller, wake) = (self.teller.clone(), self.wake.clone());
        let ask = move || {
            let mut away = None;
            for (epoch, question) in questions {
                // Who did not answer in five seconds is not asked a thousand times.
                let answer = match away {
                    Some(error) => Err(error),
                    None => (question.ask)(),
                };
                away = answer.as_ref().err().copied().filter(KeyError::is_transient);
                let _ = teller.send(Heard::Answer(epoch, answer));
            }
            let _ = teller.send(Heard::End(key));
            wake();
        };
        match thread::Builder::new().name("ask".into()).spawn(ask) {
            Ok(_) => epochs.iter().for_each(|epoch| self.watch(*epoch).ask(now)),
            Err(error) => {
                log::warn!("key {key} is not asked for now: {error}");
                self.asking.remove(&key);
                for epoch in epochs {
                    let error = self.source.unanswered(epoch);
                    self.take(epoch, now, Err(error));
                }
            }
        }
    }
}

impl Kept {
    /// Opens or closes the way to the files.
    fn apply(&self) {
        match self.watch.state() {
            State::Fresh | State::Stale(_) => self.access.admit(),
            State::Refused(error) => self.access.refuse(error),
        }
    }
}

/// Says what changes for users.
fn log(epoch: Epoch, before: State, now: State) {
    match (before, now) {
        (State::Fresh, State::Stale(error)) => {
            log::warn!("epoch {epoch}: {error}; its files can be used for a while without");
        }
        (State::Stale(_), State::Fresh) => log::warn!("epoch {epoch}: its key is available again"),
        (_, State::Refused(error)) => log::error!("epoch {epoch}: its files cannot be used: {error}"),
        (State::Refused(_), State::Fresh | State::Stale(_)) => log::warn!("epoch {epoch}: its files can be used again"),
        (State::Fresh, State::Fresh) | (State::Stale(_), State::Stale(_)) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, sync::mpsc};

    use parking_lot::Mutex;

    use super::*;
    use crate::{crypto::keys::KeyBytes, vault::VaultError};

    const KEY: KeyId = KeyId([1; 16]);
    const AWAY: KeyError = KeyError::Unavailable {
        key: KEY,
        provider: "test",
    };
    const DISABLED: KeyError = KeyError::Disabled { key: KEY };

    thread_local! {
        static NOW: Cell<u64> = const { Cell::new(1000) };
    }

    fn clock() -> Duration {
        Duration::from_secs(NOW.get())
    }

    fn key(byte: u8) -> WrappingKey {
        WrappingKey::new(KeyBytes::copy_of(&[byte; 32]))
    }

    /// Who holds a key elsewhere, if anybody does, and what the question for it gives.
    type Asked = (Option<KeyId>, Arc<dyn Fn() -> Answer + Send + Sync>);

    /// What answers questions: at once, or from elsewhere.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<BTreeMap<Epoch, Asked>>>);

    impl Fake {
        fn quick(&self, epoch: u32, ask: impl Fn() -> Answer + Send + Sync + 'static) {
            self.0.lock().insert(Epoch(epoch), (None, Arc::new(ask)));
        }

        fn slow(&self, epoch: u32, holder: u8, ask: impl Fn() -> Answer + Send + Sync + 'static) {
            let holder = Some(KeyId([holder; 16]));
            self.0.lock().insert(Epoch(epoch), (holder, Arc::new(ask)));
        }

        /// Answers once what is returned is dropped.
        fn hang(&self, epoch: u32, holder: u8) -> mpsc::Sender<()> {
            let (release, hang) = channel::<()>();
            let hang = Mutex::new(hang);
            self.slow(epoch, holder, move || {
                let _ = hang.lock().recv();
                Ok(key(epoch as u8))
            });
            release
        }
    }

    impl Source for Fake {
        fn has_custodian(&self, epoch: Epoch) -> bool {
            self.0.lock().contains_key(&epoch)
        }

        fn refresh(&mut self) {}

        fn question(&self, epoch: Epoch) -> Question {
            let (holder, ask) = self.0.lock()[&epoch].clone();
            match holder {
                Some(holder) => Question::slow(holder, move || ask()),
                None => Question::quick(move || ask()),
            }
        }

        fn unanswered(&self, _: Epoch) -> KeyError {
            AWAY
        }

        fn learn(&mut self, _: &Arc<EpochRecord>) {}
    }

    /// Two epochs whose keys are had; the key of an epoch is its number, 32 times.
    fn two_epochs() -> (Fake, EpochKeys, Keeper<Fake>, mpsc::Receiver<()>) {
        let fake = Fake::default();
        let mut epochs = EpochKeys::new(Epoch(2), key(2));
        epochs.insert(Epoch(1), Ok(key(1)));
        fake.quick(1, || Ok(key(1)));
        fake.quick(2, || Ok(key(2)));
        let mut keeper = Keeper::new(fake.clone(), &epochs, Limits::default(), clock);
        let (waker, woken) = channel();
        keeper.set_wake(move || {
            let _ = waker.send(());
        });
        (fake, epochs, keeper, woken)
    }

    fn refusal(epochs: &EpochKeys, epoch: u32) -> Option<KeyError> {
        match epochs.check(Epoch(epoch)) {
            Ok(()) => None,
            Err(VaultError::EpochKey(Epoch(of), error)) if of == epoch => Some(error),
            Err(error) => panic!("{error}"),
        }
    }

    fn change(epoch: u32, state: State) -> Change {
        Change {
            epoch: Epoch(epoch),
            state,
        }
    }

    #[test]
    fn a_refusal_closes_its_epoch_only_until_the_key_is_back() {
        let (fake, epochs, mut keeper, _) = two_epochs();
        assert_eq!(keeper.round(false), []);
        assert_eq!(keeper.next(), Duration::from_secs(1300));
        fake.quick(1, || Err(DISABLED));
        assert_eq!(keeper.round(false), [], "nobody is asked before the time");
        NOW.set(1300);
        assert_eq!(keeper.round(false), [change(1, State::Refused(DISABLED))]);
        assert_eq!((refusal(&epochs, 1), refusal(&epochs, 2)), (Some(DISABLED), None));
        assert_eq!(keeper.next(), Duration::from_secs(1301));
        fake.quick(1, || Ok(key(1)));
        NOW.set(1301);
        assert_eq!(keeper.round(false), [change(1, State::Fresh)]);
        assert_eq!((refusal(&epochs, 1), refusal(&epochs, 2)), (None, None));
    }

    #[test]
    fn who_wants_it_has_all_asked_at_once() {
        let (fake, epochs, mut keeper, _) = two_epochs();
        fake.quick(2, || Err(AWAY));
        assert_eq!(keeper.round(true), [change(2, State::Stale(AWAY))]);
        assert_eq!(refusal(&epochs, 2), None, "it serves on");
        fake.quick(2, || Err(DISABLED));
        assert_eq!(keeper.round(true), [change(2, State::Refused(DISABLED))]);
        assert_eq!(refusal(&epochs, 2), Some(DISABLED));
    }

    #[test]
    fn another_key_than_the_one_that_was_had_is_rejected() {
        let (fake, epochs, mut keeper, _) = two_epochs();
        fake.quick(1, || Ok(key(7)));
        let rejected = KeyError::Rejected { key: KEY };
        assert_eq!(keeper.round(true), [change(1, State::Refused(rejected))]);
        assert_eq!(refusal(&epochs, 1), Some(rejected));
    }

    #[test]
    fn a_key_that_was_not_had_when_the_vault_was_opened_comes_by_itself() {
        let fake = Fake::default();
        let mut epochs = EpochKeys::new(Epoch(2), key(2));
        epochs.insert(Epoch(1), Err(AWAY));
        fake.quick(1, || Ok(key(1)));
        fake.quick(2, || Ok(key(2)));
        let mut keeper = Keeper::new(fake, &epochs, Limits::default(), clock);
        assert_eq!(refusal(&epochs, 1), Some(AWAY));
        NOW.set(1001);
        assert_eq!(keeper.round(false), [change(1, State::Fresh)]);
        assert_eq!(epochs.access(Epoch(1)).unwrap().key().unwrap().as_bytes(), &[1; 32]);
    }

    #[test]
    fn a_holder_that_never_answers_holds_up_no_other_and_loses_its_own_files_in_time() {
        let (fake, epochs, mut keeper, woken) = two_epochs();
        let release = fake.hang(1, 9);
        NOW.set(1300);
        assert_eq!(keeper.round(false), []);
        fake.quick(2, || Err(DISABLED));
        NOW.set(1600);
        assert_eq!(keeper.round(false), [change(2, State::Refused(DISABLED))]);
        assert_eq!(refusal(&epochs, 1), None);
        fake.quick(2, || Ok(key(2)));
        NOW.set(4600);
        let changes = [change(1, State::Refused(AWAY)), change(2, State::Fresh)];
        assert_eq!(keeper.round(false), changes);
        assert_eq!((refusal(&epochs, 1), refusal(&epochs, 2)), (Some(AWAY), None));
        // It answers after all, and is asked again: what it says is of an hour ago.
        drop(release);
        woken.recv().unwrap();
        NOW.set(5000);
        assert_eq!(keeper.round(false), []);
        woken.recv().unwrap();
        assert_eq!(keeper.round(false), [change(1, State::Fresh)]);
    }

    #[test]
    fn another_question_for_a_key_that_is_being_asked_for_waits_and_nobody_spins() {
        let (fake, _, mut keeper, woken) = two_epochs();
        let release = fake.hang(1, 9);
        NOW.set(1300);
        keeper.round(false);
        // What was quick at first is held by the same key now.
        fake.slow(2, 9, || Ok(key(2)));
        NOW.set(1600);
        keeper.round(false);
        assert_eq!(keeper.next(), Duration::from_secs(1601));
        drop(release);
        woken.recv().unwrap();
        NOW.set(1601);
        assert_eq!(keeper.round(false), []);
        woken.recv().unwrap();
        assert_eq!(keeper.round(false), []);
        assert!(keeper.next() > Duration::from_secs(1700));
    }

    #[test]
    fn who_does_not_answer_for_one_epoch_is_not_asked_for_the_others() {
        let (fake, _, mut keeper, woken) = two_epochs();
        let asked = Arc::new(Mutex::new(0));
        for epoch in [1, 2] {
            let asked = asked.clone();
            fake.slow(epoch, 9, move || {
                *asked.lock() += 1;
                Err(AWAY)
            });
        }
        keeper.round(true);
        woken.recv().unwrap();
        let changes = [1, 2].map(|epoch| change(epoch, State::Stale(AWAY)));
        assert_eq!(keeper.round(false), changes);
        assert_eq!(*asked.lock(), 1);
    }
}
