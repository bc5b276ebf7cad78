//! Questions to who has a key, each on a thread of its own that whoever asks does not wait for longer than for a time.
//!
//! Foreign code and an agent that is stopped may never answer, and the kernel holds a directory while a file is made in it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;

use crate::{ids::KeyId, keystore::KeyError};

/// How long an answer is waited for. Key servers are given up before by themselves; a token may want a touch or a PIN, and an agent ask such a one.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// Questions for one key that may be under way. With so many nobody asks again until one is answered: a module that never answers keeps so many threads.
const UNDER_WAY_MAX: usize = 32;

/// The questions under way.
#[derive(Debug)]
pub(super) struct Questions {
    /// How long an answer is waited for.
    pub wait: Duration,
    under_way: Arc<Mutex<BTreeMap<KeyId, usize>>>,
}

impl Default for Questions {
    fn default() -> Self {
        Questions {
            wait: ANSWER_WAIT,
            under_way: Arc::default(),
        }
    }
}

impl Questions {
    /// Asks for a key.
    ///
    /// # Errors
    ///
    /// What the answer is, and `unanswered` where none comes in time; one that comes later is dropped.
    pub fn ask<T: Send + 'static>(
        &self,
        key: KeyId,
        unanswered: KeyError,
        ask: impl FnOnce() -> Result<T, KeyError> + Send + 'static,
    ) -> Result<T, KeyError> {
        let place = Place::take(&self.under_way, key).ok_or(unanswered)?;
        let (sender, answer) = mpsc::sync_channel(1);
        let asked = thread::Builder::new().name("question".into()).spawn(move || {
            let answer = ask();
            drop(place);
            let _ = sender.send(answer);
        });
        if let Err(error) = asked {
            log::warn!("no thread to ask for key {key}: {error}");
            return Err(unanswered);
        }
        match answer.recv_timeout(self.wait) {
            Ok(answer) => answer,
            // Without an answer the thread has ended by a panic, which says so itself.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(unanswered),
        }
    }
}

/// A place among the questions for a key.
struct Place {
    under_way: Arc<Mutex<BTreeMap<KeyId, usize>>>,
    key: KeyId,
}

impl Place {
    fn take(under_way: &Arc<Mutex<BTreeMap<KeyId, usize>>>, key: KeyId) -> Option<Self> {
        let mut counts = under_way.lock();
        let count = counts.entry(key).or_default();
        if *count >= UNDER_WAY_MAX {
            return None;
        }
        *count += 1;
        Some(Place {
            under_way: under_way.clone(),
            key,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.under_way.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: KeyId = KeyId([1; 16]);
    const UNANSWERED: KeyError = KeyError::Unavailable {
        key: KEY,
        provider: "test",
    };

    #[test]
    fn a_holder_that_never_answers_is_left_and_after_some_questions_not_asked_any_more() {
        let mut questions = Questions {
            wait: Duration::from_millis(1),
            ..Questions::default()
        };
        let (release, hang) = mpsc::channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        let (started, starts) = mpsc::channel();
        for _ in 0..UNDER_WAY_MAX + 5 {
            let (hang, started) = (hang.clone(), started.clone());
            let answer = questions.ask(KEY, UNANSWERED, move || {
                started.send(()).unwrap();
                let _ = hang.lock().recv();
                Ok(())
            });
            assert_eq!(answer, Err(UNANSWERED));
        }
        for _ in 0..UNDER_WAY_MAX {
            starts.recv().unwrap();
        }
        assert!(starts.try_recv().is_err());
        // Another key's is asked, and this one's too once it answers.
        questions.wait = Duration::from_secs(60);
        assert_eq!(questions.ask(KeyId([2; 16]), UNANSWERED, || Ok(7)), Ok(7));
        drop(release);
        while questions.under_way.lock().contains_key(&KEY) {
            thread::yield_now();
        }
        assert_eq!(questions.ask(KEY, UNANSWERED, || Ok(8)), Ok(8));
    }
}
