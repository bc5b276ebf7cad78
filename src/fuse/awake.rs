//! Keeps processors awake while requests come fast.
//!
//! Whoever waits for an answer is woken up on a processor that has nothing to do. In a virtual machine such a processor has halted, and the way out of
//! that, through the hypervisor, takes several times as long as the request. So while one request follows the other, a thread of the lowest class,
//! SCHED_IDLE (sched(7)), spins on each processor. The scheduler counts a processor that runs nothing else as idle, and takes it from that thread at once
//! (`sched_idle_cpu` in kernel/sched/fair.c); where there is other work, the thread gets no time worth mentioning.
//!
//! It is what the kernel's haltpoll governor does for a guest, for as long as requests come. Where the kernel does it, or the processors sleep lightly because
//! no hypervisor is under them, nothing is done here.

use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use rustix::thread::{CpuSet, sched_setaffinity};

/// How long after the last request processors are kept awake.
const LINGER: Duration = Duration::from_micros(200);

/// So many requests, each within [`LINGER`] of the one before, before any is.
const BURST: u32 = 4;

/// With more processors than this, one that is awake can mostly be found.
const PROCESSORS_MAX: usize = 8;

/// How often a spinning thread pauses between two looks at the clock.
const PAUSES: usize = 300;

/// Threads that keep the processors awake, and end with it.
#[derive(Debug)]
pub struct Wakefulness {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    /// When the last request came, in nanoseconds after `started`.
    last_request: AtomicU64,
    /// Requests that followed each other closely.
    burst: AtomicU32,
    /// No request came lately: the threads wait, or are about to.
    quiet: AtomicBool,
    ended: AtomicBool,
    /// Held while `quiet` or `ended` change in a way that a thread waits for.
    lock: Mutex<()>,
    changed: Condvar,
}

/// Tells whether processors that have nothing to do halt, and only a hypervisor can wake them up.
pub fn helps() -> bool {
    let read = |file: &str| fs::read_to_string(file).map(|text| text.trim().to_owned());
    // Processors of real machines have a driver that knows their light sleep.
    let driver = read("/sys/devices/system/cpu/cpuidle/current_driver");
    let halts = driver.is_ok_and(|driver| driver == "none" || driver == "haltpoll");
    let polls = read("/sys/module/haltpoll/parameters/guest_halt_poll_ns").is_ok_and(|time| time != "0");
    halts && !polls && processors() <= PROCESSORS_MAX
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

impl Wakefulness {
    /// Starts the threads, one for each processor; they wait until requests come fast.
    ///
    /// # Errors
    ///
    /// What keeps a thread from being started.
    pub fn new() -> io::Result<Self> {
        let shared = Arc::new(Shared {
            started: Instant::now(),
            last_request: AtomicU64::new(0),
            burst: AtomicU32::new(0),
            quiet: AtomicBool::new(true),
            ended: AtomicBool::new(false),
            lock: Mutex::new(()),
            changed: Condvar::new(),
        });
        let mut threads = Vec::new();
        for processor in 0..processors() {
            let shared = shared.clone();
            let body = move || match prepare_thread(processor) {
                Ok(()) => shared.keep_awake(),
                Err(error) => log::debug!("processor {processor} is not kept awake: {error}"),
            };
            threads.push(thread::Builder::new().name(format!("awake-{processor}")).spawn(body)?);
        }
        Ok(Wakefulness { shared, threads })
    }

    /// Notes that a request came.
    pub fn note_request(&self) {
        self.shared.note_request();
    }
}

impl Drop for Wakefulness {
    fn drop(&mut self) {
        {
            let _guard = self.shared.lock.lock();
            self.shared.ended.store(true, Ordering::Relaxed);
        }
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a thread that keeps a processor awake failed");
            }
        }
    }
}

impl Shared {
    fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    fn note_request(&self) {
        let now = self.now();
        let before = self.last_request.swap(now, Ordering::Relaxed);
        if now.saturating_sub(before) > LINGER.as_nanos() as u64 {
            self.burst.store(0, Ordering::Relaxed);
        } else if self.quiet.load(Ordering::Relaxed) && self.burst.fetch_add(1, Ordering::Relaxed) >= BURST {
            {
                let _guard = self.lock.lock();
                self.quiet.store(false, Ordering::Relaxed);
            }
            self.changed.notify_all();
        }
    }

    fn keep_awake(&self) {
        loop {
            {
                let mut guard = self.lock.lock();
                while self.quiet.load(Ordering::Relaxed) && !self.ended.load(Ordering::Relaxed) {
                    self.changed.wait(&mut guard);
                }
            }
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            while !self.quiet.load(Ordering::Relaxed) && !self.ended.load(Ordering::Relaxed) {
                for _ in 0..PAUSES {
                    std::hint::spin_loop();
                }
                if self.now().saturating_sub(self.last_request.load(Ordering::Relaxed)) > LINGER.as_nanos() as u64 {
                    self.burst.store(0, Ordering::Relaxed);
                    self.quiet.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Puts this thread into the lowest class, on one processor.
fn prepare_thread(processor: usize) -> io::Result<()> {
    let lowest = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters live through the call; 0 is this thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const lowest) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut only = CpuSet::new();
    only.set(processor);
    Ok(sched_setaffinity(None, &only)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_until(what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            thread::yield_now();
        }
    }

    #[test]
    fn only_a_burst_of_requests_wakes_up_and_silence_ends_it() {
        let awake = Wakefulness::new().unwrap();
        awake.note_request();
        assert!(awake.shared.quiet.load(Ordering::Relaxed), "one request is no burst");
        wait_until("a burst is noticed", || {
            (0..2 * BURST).for_each(|_| awake.note_request());
            !awake.shared.quiet.load(Ordering::Relaxed)
        });
        wait_until("silence is noticed", || awake.shared.quiet.load(Ordering::Relaxed));
    }
}
