//! Calls of clients under way that a key server or a token is to answer.
//!
//! Foreign code may never answer, and each call has one of its user's connections until then: without a bound one token that hangs would shut a user out of
//! every key.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

use crate::ids::KeyId;

/// The most calls of one user that wait for one key.
const CALLS_OF_KEY_MAX: usize = 32;

/// The most calls of one user that wait for any: the connections that are left are for keys that the agent has itself, and for looks.
const CALLS_OF_USER_MAX: usize = 48;

const _: () = assert!(CALLS_OF_USER_MAX < super::CONNECTIONS_OF_USER_MAX);

/// How many calls each user has under way, by key.
#[derive(Debug, Default)]
pub struct UnderWay(Mutex<BTreeMap<u32, BTreeMap<KeyId, usize>>>);

impl UnderWay {
    /// Takes a place for a call that needs these keys. The key that has too many is the error.
    pub fn take(self: &Arc<Self>, uid: u32, keys: Vec<KeyId>) -> Result<CallPlace, KeyId> {
        let mut counts = self.0.lock();
        let of_user = counts.entry(uid).or_default();
        let of_all: usize = of_user.values().sum();
        let has_many = |key: &&KeyId| {
            of_all >= CALLS_OF_USER_MAX || of_user.get(*key).is_some_and(|count| *count >= CALLS_OF_KEY_MAX)
        };
        if let Some(key) = keys.iter().find(has_many) {
            return Err(*key);
        }
        for key in &keys {
            *of_user.entry(*key).or_default() += 1;
        }
        Ok(CallPlace {
            under_way: self.clone(),
            uid,
            keys,
        })
    }
}

/// A place among the calls under way, given back on drop.
#[derive(Debug)]
pub struct CallPlace {
    under_way: Arc<UnderWay>,
    uid: u32,
    keys: Vec<KeyId>,
}

impl Drop for CallPlace {
    fn drop(&mut self) {
        let mut counts = self.under_way.0.lock();
        let Some(of_user) = counts.get_mut(&self.uid) else {
            return;
        };
        for key in &self.keys {
            if let Some(count) = of_user.get_mut(key) {
                *count -= 1;
            }
        }
        of_user.retain(|_, count| *count > 0);
        if of_user.is_empty() {
            counts.remove(&self.uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> Vec<KeyId> {
        vec![KeyId([number; 16])]
    }

    #[test]
    fn one_key_holds_so_many_calls_of_a_user_and_all_keys_some_more() {
        let calls = Arc::new(UnderWay::default());
        let mut places: Vec<_> = (0..CALLS_OF_KEY_MAX).map(|_| calls.take(1, key(1)).unwrap()).collect();
        assert_eq!(calls.take(1, key(1)).unwrap_err(), KeyId([1; 16]));
        assert!(calls.take(2, key(1)).is_ok(), "another user has others");
        assert!(calls.take(1, [key(2), key(1)].concat()).is_err());
        places.pop();
        assert!(calls.take(1, key(1)).is_ok());
        let left = CALLS_OF_USER_MAX - places.len();
        places.extend((0..left).map(|_| calls.take(1, key(2)).unwrap()));
        assert!(calls.take(1, key(3)).is_err());
        drop(calls.take(1, vec![]).unwrap());
        drop(places);
        assert!(calls.0.lock().is_empty());
    }
}
