//! Threads for requests that wait on the disk, so that those who wait for the kernel's next request do not.

use std::{collections::VecDeque, fmt, sync::Arc, thread};

use parking_lot::{Condvar, Mutex};

use crate::sandbox::Sandbox;

type Job = Box<dyn FnOnce() + Send>;

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
    jobs: VecDeque<Job>,
    ended: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} jobs", self.queue.lock().jobs.len())
    }
}

impl Pool {
    /// Starts threads, which are called by a name and a number, and have entered a sandbox.
    pub fn new(name: &str, count: usize, sandbox: &Arc<Sandbox>) -> Self {
        let shared = Arc::new(Shared::default());
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
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        if self.threads.is_empty() {
            return job();
        }
        self.shared.queue.lock().jobs.push_back(Box::new(job));
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn serve(&self) {
        while let Some(job) = self.next_job() {
            job();
        }
    }

    /// Waits for a job; none is left at the end.
    fn next_job(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.ended {
                return None;
            }
            self.changed.wait(&mut queue);
        }
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
