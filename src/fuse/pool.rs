//! Threads for requests that wait on the disk, so that those who wait for the kernel's next request do not.

use std::{collections::VecDeque, fmt, sync::Arc, thread};

use parking_lot::{Condvar, Mutex};

use crate::sandbox::Sandbox;

type Act = Box<dyn FnOnce() + Send>;

/// What a job does, which decides what it keeps waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// It makes something durable.
    Sync,
    /// It may read or write much first. No sync waits for such jobs, however many there are.
    Long,
}

/// Runs jobs one after another on a few threads, which end with it.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Wakes one thread up for each job, and all at the end.
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    syncs: VecDeque<Act>,
    long: VecDeque<Act>,
    /// Threads that are in a long job, and how many may be.
    in_long: usize,
    in_long_max: usize,
    ended: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.queue.lock();
        write!(f, "{} syncs, {} long jobs", queue.syncs.len(), queue.long.len())
    }
}

impl Pool {
    /// Starts threads, which are called by a name and a number, and have entered a sandbox.
    pub fn new(name: &str, count: usize, sandbox: &Arc<Sandbox>) -> Self {
        let shared = Arc::new(Shared::default());
        shared.queue.lock().in_long_max = (count / 2).max(1);
        let threads = (0..count)
            .filter_map(|i| {
                let shared = shared.clone();
                let builder = thread::Builder::new().name(format!("{name}-{i}"));
                sandbox.spawn(builder, move || shared.serve()).ok()
            })
            .collect();
        Pool { shared, threads }
    }

    /// Runs a job when a thread is free; at once, here, where no thread could be started.
    pub fn run(&self, job: Job, act: impl FnOnce() + Send + 'static) {
        if self.threads.is_empty() {
            return act();
        }
        let mut queue = self.shared.queue.lock();
        match job {
            Job::Sync => queue.syncs.push_back(Box::new(act)),
            Job::Long => queue.long.push_back(Box::new(act)),
        }
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn serve(&self) {
        while let Some((job, act)) = self.next() {
            let _running = (job == Job::Long).then(|| RunningLong(self));
            act();
        }
    }

    /// Waits for a job; none is left at the end.
    fn next(&self) -> Option<(Job, Act)> {
        let mut queue = self.queue.lock();
        loop {
            // One is taken first, or many syncs would keep it waiting for ever.
            if queue.in_long > 0
                && let Some(act) = queue.syncs.pop_front()
            {
                return Some((Job::Sync, act));
            }
            if queue.in_long < queue.in_long_max
                && let Some(act) = queue.long.pop_front()
            {
                queue.in_long += 1;
                return Some((Job::Long, act));
            }
            if let Some(act) = queue.syncs.pop_front() {
                return Some((Job::Sync, act));
            }
            if queue.ended && queue.long.is_empty() {
                return None;
            }
            self.changed.wait(&mut queue);
        }
    }
}

/// A long job that runs; another may when it is dropped, also by a panic.
struct RunningLong<'s>(&'s Shared);

impl Drop for RunningLong<'_> {
    fn drop(&mut self) {
        self.0.queue.lock().in_long -= 1;
        // At the end all look whether something is left.
        self.0.changed.notify_all();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queue.lock().ended = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A job that panicked has been reported where it did.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_sync_waits_for_no_long_job() {
        let pool = Pool::new("test", 4, &Arc::new(Sandbox::off()));
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let (done, synced) = mpsc::channel();
        for _ in 0..8 {
            let (released, done) = (released.clone(), done.clone());
            pool.run(Job::Long, move || {
                // An error: the other end was dropped.
                let _ = released.lock().recv();
                done.send(Job::Long).unwrap();
            });
        }
        pool.run(Job::Sync, move || done.send(Job::Sync).unwrap());
        assert_eq!(synced.recv(), Ok(Job::Sync));
        drop(release);
        drop(pool);
        // None is left out at the end.
        assert_eq!(synced.iter().collect::<Vec<_>>(), [Job::Long; 8]);
    }

    #[test]
    fn a_long_job_that_panics_makes_room_for_another() {
        let pool = Pool::new("test", 4, &Arc::new(Sandbox::off()));
        let (done, finished) = mpsc::channel();
        pool.run(Job::Long, || panic!("as asked for"));
        for _ in 0..3 {
            let done = done.clone();
            pool.run(Job::Long, move || done.send(()).unwrap());
        }
        drop(done);
        assert_eq!(finished.iter().count(), 3);
    }

    #[test]
    fn syncs_leave_what_is_counted_of_long_jobs_alone() {
        let pool = Pool::new("test", 4, &Arc::new(Sandbox::off()));
        let (done, finished) = mpsc::channel();
        for job in [Job::Sync, Job::Long, Job::Sync, Job::Long] {
            let done = done.clone();
            pool.run(job, move || done.send(()).unwrap());
        }
        drop(done);
        assert_eq!(finished.iter().count(), 4);
        let shared = pool.shared.clone();
        drop(pool);
        assert_eq!(shared.queue.lock().in_long, 0);
    }
}
