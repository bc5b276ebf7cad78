//! Threads for requests that wait on the disk, so that those who wait for the kernel's next request do not.

use std::{
    sync::{Arc, mpsc},
    thread,
};

use parking_lot::Mutex;

type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs one after another on a few threads, which end with it.
#[derive(Debug)]
pub struct Pool {
    jobs: Option<mpsc::Sender<Job>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Pool {
    /// Starts threads, which are called by a name and a number.
    pub fn new(name: &str, count: usize) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let serve = move || {
            loop {
                let job = queue.lock().recv();
                match job {
                    Ok(job) => job(),
                    Err(mpsc::RecvError) => return,
                }
            }
        };
        let threads = (0..count)
            .filter_map(|i| {
                let serve = serve.clone();
                thread::Builder::new().name(format!("{name}-{i}")).spawn(serve).ok()
            })
            .collect();
        Pool {
            jobs: Some(jobs),
            threads,
        }
    }

    /// Runs a job when a thread is free; at once, here, where no thread could be started.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        match &self.jobs {
            Some(jobs) if !self.threads.is_empty() => {
                if let Err(mpsc::SendError(job)) = jobs.send(Box::new(job)) {
                    job();
                }
            }
            _ => job(),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A job that panicked has been reported where it did.
            let _ = thread.join();
        }
    }
}
