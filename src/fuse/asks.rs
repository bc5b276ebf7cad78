//! Threads that wait for who has a key, so that no other request does.
//!
//! Each key has a line of its own: one whose holder never answers keeps waiting who asks for that key, and nobody else.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
    thread,
};

use parking_lot::Mutex;

use crate::ids::KeyId;

/// Threads that wait for the holder of one key.
const THREADS_MAX: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// The lines of all keys. Threads end when nobody is left in their line.
#[derive(Clone, Default)]
pub struct Asks(Arc<Mutex<BTreeMap<KeyId, Line>>>);

#[derive(Default)]
struct Line {
    waiting: VecDeque<Job>,
    threads: usize,
}

impl fmt::Debug for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.lock().len())
    }
}

impl Asks {
    /// Runs a job that may wait for the holder of a key; at once, here, where there is no thread and none can be started.
    pub fn run(&self, key: KeyId, job: impl FnOnce() + Send + 'static) {
        let mut lines = self.0.lock();
        let line = lines.entry(key).or_default();
        line.waiting.push_back(Box::new(job));
        if line.threads >= THREADS_MAX {
            return;
        }
        line.threads += 1;
        drop(lines);
        let asks = self.clone();
        if let Err(error) = thread::Builder::new().name("ask".into()).spawn(move || asks.serve(key)) {
            log::warn!("no thread to ask for key {key}: {error}");
            self.serve(key);
        }
    }

    fn serve(&self, key: KeyId) {
        while let Some(job) = self.next(key) {
            job();
        }
    }

    /// Takes the next job; with the last one, the caller's place in the line.
    fn next(&self, key: KeyId) -> Option<Job> {
        let mut lines = self.0.lock();
        let line = lines.get_mut(&key)?;
        let job = line.waiting.pop_front();
        if job.is_none() {
            line.threads -= 1;
            if line.threads == 0 {
                lines.remove(&key);
            }
        }
        job
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn a_key_whose_holder_never_answers_keeps_nobody_waiting_who_asks_for_another() {
        let asks = Asks::default();
        let (release, hang) = mpsc::channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        let (sender, done) = mpsc::channel();
        for number in 0..THREADS_MAX + 5 {
            let (hang, sender) = (hang.clone(), sender.clone());
            asks.run(KeyId([1; 16]), move || {
                let _ = hang.lock().recv();
                sender.send(number).unwrap();
            });
        }
        let other = sender.clone();
        asks.run(KeyId([2; 16]), move || other.send(100).unwrap());
        assert_eq!(done.recv_timeout(SOON), Ok(100));
        drop(release);
        let mut rest: Vec<_> = (0..THREADS_MAX + 5).map(|_| done.recv_timeout(SOON).unwrap()).collect();
        rest.sort_unstable();
        assert_eq!(rest, (0..THREADS_MAX + 5).collect::<Vec<_>>());
    }
}
