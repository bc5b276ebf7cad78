//! How long a key may be used without asking its custodian again: the rules, without a clock or a custodian.
//!
//! Times are since boot, sleep included. What always holds:
//!
//! - without an answer a key serves until `max_stale` after it was last asked for with success, and no longer;
//! - a refusal ends its use at once, and that the custodian cannot be reached later does not bring it back;
//! - every state ends by itself once the custodian gives the key.

use std::time::Duration;

use crate::keystore::KeyError;

/// How long one question may take: what custodians promise, and as much again.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// How soon a custodian is asked again after the first answer that was not the key; twice as long after each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// For how long a key may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// After so long its custodian is asked again.
    pub ttl: Duration,
    /// While the custodian cannot be reached, the key serves until so long after it was last had.
    pub max_stale: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            ttl: Duration::from_secs(300),
            max_stale: Duration::from_secs(3600),
        }
    }
}

/// How it stands with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its custodian gave it when it was last asked.
    Fresh,
    /// Its custodian cannot be reached, for this reason; the key serves on.
    Stale(KeyError),
    /// It does not serve.
    Refused(KeyError),
}

/// Watches one key.
#[derive(Debug)]
pub struct Watch {
    limits: Limits,
    state: State,
    /// When the question was asked that was last answered with the key.
    confirmed: Duration,
    /// When the question is to be asked again.
    due: Duration,
    /// When the question was asked that has no answer yet.
    asked: Option<Duration>,
    /// Someone wants to know what the answer is now, and not when it was asked.
    ask_again: bool,
    /// Answers in a row that were not the key.
    failures: u32,
}

impl Watch {
    /// Begins with what was said when the vault was opened.
    pub fn new(limits: Limits, now: Duration, answer: Result<(), KeyError>) -> Self {
        let mut watch = Watch {
            limits,
            state: State::Fresh,
            confirmed: now,
            due: now.saturating_add(limits.ttl),
            asked: None,
            ask_again: false,
            failures: 0,
        };
        if let Err(error) = answer {
            watch.state = State::Refused(error);
            watch.retry(now);
        }
        watch
    }

    /// Returns how it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Tells whether the custodian is to be asked now; not while it has not answered yet.
    pub fn is_due(&self, now: Duration) -> bool {
        self.asked.is_none() && self.due <= now
    }

    /// Has the custodian be asked now; while it has not answered yet, once more after that.
    pub fn want(&mut self, now: Duration) {
        self.ask_again = self.asked.is_some();
        self.due = now;
    }

    /// Notes that the custodian is asked.
    pub fn ask(&mut self, now: Duration) {
        self.asked = Some(now);
    }

    /// Notes that the custodian cannot be asked at this moment.
    pub fn put_off(&mut self, now: Duration) {
        self.due = now.saturating_add(FIRST_RETRY);
    }

    /// Takes the answer; tells whether the state is another now.
    pub fn answer(&mut self, now: Duration, answer: Result<(), KeyError>) -> bool {
        // What was answered before the machine went to sleep is as old as the question.
        let asked = self.asked.take().unwrap_or(now);
        let before = self.state;
        match (answer, before) {
            (Ok(()), _) if now.saturating_sub(asked) >= self.longest_use() => self.due = now,
            (Ok(()), _) => {
                self.confirmed = asked;
                self.due = asked.saturating_add(self.limits.ttl);
                self.failures = 0;
                self.state = State::Fresh;
            }
            (Err(error), State::Refused(refusal)) => {
                if !error.is_transient() || refusal.is_transient() {
                    self.state = State::Refused(error);
                }
                self.retry(now);
            }
            (Err(error), State::Stale(_)) if self.may_serve_without(error, now) => {
                self.state = State::Stale(error);
                self.retry(now);
            }
            (Err(error), State::Fresh | State::Stale(_)) => {
                self.failures = 0;
                self.state = if self.may_serve_without(error, now) {
                    State::Stale(error)
                } else {
                    State::Refused(error)
                };
                self.retry(now);
            }
        }
        if std::mem::take(&mut self.ask_again) {
            self.due = now;
        }
        self.state != before
    }

    /// Ends the use of a key that nobody has answered for in time; tells whether it does. `error` is the reason where there was no answer at all.
    pub fn lapse(&mut self, now: Duration, error: KeyError) -> bool {
        let error = match self.state {
            State::Fresh => error,
            State::Stale(error) => error,
            State::Refused(_) => return false,
        };
        if !self.is_over(now) {
            return false;
        }
        self.state = State::Refused(error);
        self.failures = 0;
        self.retry(now);
        true
    }

    /// Tells whether the key is in use although nobody has answered for it in time.
    pub fn is_over(&self, now: Duration) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now)
    }

    fn may_serve_without(&self, error: KeyError, now: Duration) -> bool {
        error.is_transient() && now.saturating_sub(self.confirmed) < self.limits.max_stale
    }

    /// Returns for how long a key may be used that was had once, if no answer comes: it is asked for in time, and there must be time to answer.
    fn longest_use(&self) -> Duration {
        self.limits.max_stale.max(self.limits.ttl.saturating_add(ANSWER_TIME))
    }

    /// Returns until when the key may be used with no further answer; nothing when it may not be used anyway.
    fn deadline(&self) -> Option<Duration> {
        let age = match self.state {
            State::Fresh => self.longest_use(),
            State::Stale(_) => self.limits.max_stale,
            State::Refused(_) => return None,
        };
        Some(self.confirmed.saturating_add(age))
    }

    /// Returns when there is something to do without an answer.
    pub fn next(&self) -> Duration {
        let due = if self.asked.is_some() { Duration::MAX } else { self.due };
        due.min(self.deadline().unwrap_or(Duration::MAX))
    }

    fn retry(&mut self, now: Duration) {
        let delay = FIRST_RETRY
            .saturating_mul(1 << self.failures.min(30))
            .min(self.limits.ttl);
        self.failures = self.failures.saturating_add(1);
        self.due = now.saturating_add(delay);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::KeyId;

    const KEY: KeyId = KeyId([1; 16]);
    const AWAY: KeyError = KeyError::Unavailable {
        key: KEY,
        provider: "test",
    };
    const DISABLED: KeyError = KeyError::Disabled { key: KEY };
    const PENDING: KeyError = KeyError::PendingDeletion { key: KEY };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A key that was had at second 1000, with the default limits.
    fn watch() -> Watch {
        Watch::new(Limits::default(), seconds(1000), Ok(()))
    }

    #[derive(Debug)]
    enum Event {
        /// A question, and its answer some seconds later.
        Answer(u64, Result<(), KeyError>),
        /// Nothing but that time goes by.
        Wait,
    }

    /// Goes through events, and compares state and the seconds until there is something to do after each.
    fn check(mut watch: Watch, steps: &[(u64, Event, State, u64)]) {
        for (at, event, state, next) in steps {
            let mut now = seconds(*at);
            if let Event::Answer(took, answer) = event {
                watch.ask(now);
                now += seconds(*took);
                watch.answer(now, *answer);
            }
            watch.lapse(now, AWAY);
            assert_eq!(watch.state(), *state, "at {at}: {event:?}");
            assert_eq!(watch.next().saturating_sub(now), seconds(*next), "at {at}: {event:?}");
        }
    }

    #[test]
    fn a_key_stays_fresh_while_its_custodian_gives_it() {
        use Event::{Answer, Wait};
        check(
            watch(),
            &[
                (1000, Wait, State::Fresh, 300),
                (1300, Answer(2, Ok(())), State::Fresh, 298),
                (1600, Answer(0, Ok(())), State::Fresh, 300),
            ],
        );
    }

    #[test]
    fn a_key_whose_custodian_is_away_serves_as_long_as_it_may() {
        use Event::{Answer, Wait};
        check(
            watch(),
            &[
                (1300, Answer(0, Err(AWAY)), State::Stale(AWAY), 1),
                (1301, Answer(0, Err(AWAY)), State::Stale(AWAY), 2),
                (1303, Answer(5, Err(AWAY)), State::Stale(AWAY), 4),
                (1312, Answer(0, Ok(())), State::Fresh, 300),
                (1612, Answer(0, Err(AWAY)), State::Stale(AWAY), 1),
                (1613, Answer(0, Err(AWAY)), State::Stale(AWAY), 2),
                (1615, Answer(0, Err(AWAY)), State::Stale(AWAY), 4),
                (4911, Wait, State::Stale(AWAY), 0),
                (4912, Wait, State::Refused(AWAY), 1),
                (4913, Answer(0, Err(AWAY)), State::Refused(AWAY), 2),
                (4915, Answer(0, Ok(())), State::Fresh, 300),
            ],
        );
    }

    #[test]
    fn a_refusal_counts_at_once_and_outlasts_an_absence() {
        use Event::Answer;
        check(
            watch(),
            &[
                (1300, Answer(0, Err(DISABLED)), State::Refused(DISABLED), 1),
                (1301, Answer(0, Err(AWAY)), State::Refused(DISABLED), 2),
                (1303, Answer(0, Err(PENDING)), State::Refused(PENDING), 4),
                (1307, Answer(0, Ok(())), State::Fresh, 300),
                (1607, Answer(0, Err(AWAY)), State::Stale(AWAY), 1),
                (1608, Answer(0, Err(DISABLED)), State::Refused(DISABLED), 1),
            ],
        );
        for error in [
            KeyError::AccessDenied { key: KEY, provider: "" },
            KeyError::NotFound { key: KEY },
            KeyError::Rejected { key: KEY },
        ] {
            check(watch(), &[(1300, Answer(0, Err(error)), State::Refused(error), 1)]);
        }
    }

    #[test]
    fn a_key_that_is_refused_is_asked_for_ever_less_often_but_within_its_time() {
        let mut watch = watch();
        let mut now = seconds(1300);
        let mut waits = Vec::new();
        for _ in 0..12 {
            watch.ask(now);
            watch.answer(now, Err(DISABLED));
            waits.push(watch.next().saturating_sub(now).as_secs());
            now = watch.next();
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    }

    #[test]
    fn a_key_that_was_refused_when_the_vault_was_opened_comes_by_itself() {
        let mut watch = Watch::new(Limits::default(), seconds(1000), Err(DISABLED));
        assert_eq!((watch.state(), watch.next()), (State::Refused(DISABLED), seconds(1001)));
        watch.ask(seconds(1001));
        assert!(watch.answer(seconds(1001), Ok(())));
        assert_eq!(watch.state(), State::Fresh);
    }

    #[test]
    fn a_sleep_counts_and_what_was_answered_before_it_is_old() {
        // Asleep from second 1010 on, for two hours.
        let mut slept = watch();
        assert!(slept.is_due(seconds(8210)));
        slept.ask(seconds(8210));
        assert!(slept.lapse(seconds(8210), AWAY), "nothing is served before the answer");
        assert!(slept.answer(seconds(8211), Ok(())));
        assert_eq!(slept.state(), State::Fresh);

        // The same with a question under way: its answer says nothing of now.
        let mut slept = watch();
        slept.ask(seconds(1300));
        assert!(slept.lapse(seconds(8500), AWAY));
        assert!(!slept.answer(seconds(8500), Ok(())));
        assert_eq!(slept.state(), State::Refused(AWAY));
        assert!(slept.is_due(seconds(8500)));
    }

    #[test]
    fn a_custodian_that_never_answers_is_one_that_is_away() {
        let mut watch = watch();
        watch.ask(seconds(1300));
        assert!(!watch.is_due(seconds(4000)));
        assert_eq!(watch.next(), seconds(4600));
        assert!(!watch.lapse(seconds(4599), AWAY));
        assert!(watch.lapse(seconds(4600), AWAY));
        assert_eq!((watch.state(), watch.next()), (State::Refused(AWAY), Duration::MAX));
    }

    #[test]
    fn who_wants_an_answer_gets_one_that_was_asked_for_after_that() {
        let mut watch = watch();
        watch.want(seconds(1010));
        assert!(watch.is_due(seconds(1010)));
        watch.ask(seconds(1010));
        watch.want(seconds(1012));
        assert!(!watch.is_due(seconds(1012)));
        watch.answer(seconds(1014), Ok(()));
        assert!(watch.is_due(seconds(1014)));
        watch.ask(seconds(1014));
        watch.answer(seconds(1014), Ok(()));
        assert_eq!(watch.next(), seconds(1314));
    }

    #[test]
    fn without_patience_an_absence_is_a_refusal() {
        use Event::{Answer, Wait};
        let limits = Limits {
            ttl: seconds(60),
            max_stale: Duration::ZERO,
        };
        check(
            Watch::new(limits, seconds(1000), Ok(())),
            &[
                (1060, Wait, State::Fresh, 0),
                (1060, Answer(5, Err(AWAY)), State::Refused(AWAY), 1),
                (1066, Answer(0, Ok(())), State::Fresh, 60),
                (1136, Wait, State::Refused(AWAY), 1),
            ],
        );
    }
}
