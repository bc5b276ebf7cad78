//! How many requests each user may make in a second.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// So long after its last request a user has the same right as one who never asked.
const SECOND: Duration = Duration::from_secs(1);

/// A limit, and who has used how much of it. Whoever was silent for a second may make all requests of one at once.
#[derive(Debug)]
pub struct Rates {
    /// The time that one request takes of a second.
    share: Duration,
    /// Until when each user has used up what they may. Who is not in it, or is in the past, has used nothing.
    used_until: Mutex<BTreeMap<u32, Instant>>,
}

impl Rates {
    /// Makes a limit of so many requests a second for each user.
    pub fn new(per_second: NonZeroU32) -> Self {
        Rates {
            share: SECOND / per_second.get(),
            used_until: Mutex::default(),
        }
    }

    /// Tells whether a user may make a request now, and counts it if so.
    pub fn allow(&self, uid: u32, now: Instant) -> bool {
        let mut users = self.used_until.lock();
        users.retain(|_, until| *until > now);
        let until = users.get(&uid).copied().unwrap_or(now) + self.share;
        let is_allowed = until <= now + SECOND;
        if is_allowed {
            users.insert(uid, until);
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_so_many_requests_in_a_second_and_another_second_gives_as_many() {
        let rates = Rates::new(NonZeroU32::new(4).unwrap());
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let count = |uid, millis| (0..10).filter(|_| rates.allow(uid, at(millis))).count();
        assert_eq!(count(1, 0), 4);
        assert_eq!(count(2, 0), 4, "another user has their own");
        assert_eq!(count(1, 240), 0);
        assert_eq!(count(1, 250), 1);
        assert_eq!(count(1, 750), 2);
        assert_eq!(count(1, 10_000), 4, "rights are not saved up");
    }
}
