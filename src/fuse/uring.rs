//! The fast transport: FUSE over io_uring (Documentation/filesystems/fuse/fuse-io-uring.rst, fs/fuse/dev_uring.c; Linux 6.14).
//!
//! The kernel has a queue for each processor, and puts a request into the queue of the processor it is made on. A thread on that processor takes it:
//! so who asks and who answers take turns on one processor, where with /dev/fuse one processor wakes the other up.
//!
//! Sealing or opening much data would hold a queue for long: that goes to a few workers, with rings of their own. What waits for the disk goes to a pool.
//!
//! /dev/fuse stays open beside the rings: INIT, FORGET and what the kernel asks before all queues are there come through it.

mod abi;
mod entry;
mod port;
mod queue;
mod wire;
mod worker;

use std::{
    fs, io,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use io_uring::{IoUring, opcode, register::Restriction};

use self::{
    entry::Entry,
    port::{Entries, Mailbox, Place, Port, Ring},
    queue::Queue,
    wire::{Writer, decode},
    worker::{Jobs, Worker},
};
use super::{
    asks::Asks,
    kernel,
    pool::{Job, Pool},
    request::Asked,
    server::Server,
};
use crate::{sandbox::Sandbox, vault::own_keys::Ask};

/// Requests under way in a queue, of which the kernel keeps the others back: so many where there are few processors.
const DEPTH_MAX: usize = 8;

/// So many for all queues together, but two for each at least.
const DEPTH_TOTAL: usize = 256;

/// Entries of each queue for what the kernel writes while requests wait for that; one where there are two.
const SPARE_ENTRIES: usize = 2;

/// The longest answer that is not put into the payload at once.
const SMALL_ANSWER_MAX: usize = 256;

/// Threads that seal and open much data, at most.
const WORKERS_MAX: usize = 8;

/// Rings for all processors and workers, not used yet.
pub struct Rings {
    shared: Arc<Shared>,
    queues: Vec<Ring>,
    workers: Vec<Ring>,
}

/// The threads that serve the rings.
pub struct RingThreads {
    threads: Vec<JoinHandle<()>>,
}

/// What all threads of a mount know.
struct Shared {
    server: Arc<Server>,
    slow: Arc<Pool>,
    asks: Asks,
    entries: Arc<Entries>,
    /// Where a queue's thread gets its entries back, with answers in them.
    homes: Vec<Mailbox<(Place, Entry)>>,
    jobs: Jobs,
    /// Of each queue, how many entries hold requests that have the kernel write first.
    writing_first: Vec<AtomicUsize>,
    writing_first_max: usize,
    /// The kernel was told to look for no holes.
    looks_for_no_holes: AtomicBool,
    /// Entries that the kernel will still use.
    alive: AtomicUsize,
    ended: AtomicBool,
}

/// Returns whether the kernel would accept this transport: if it has it, and the administrator has allowed it.
pub fn is_offered() -> bool {
    fs::read_to_string("/sys/module/fuse/parameters/enable_uring").is_ok_and(|value| value.trim() == "Y")
}

impl Rings {
    /// Makes rings and buffers, before the kernel is told of them: from then on it waits for them.
    ///
    /// # Errors
    ///
    /// What keeps a ring from being made: no such system call, or not for this process.
    pub fn prepare(server: &Arc<Server>, slow: &Arc<Pool>, asks: &Asks) -> io::Result<Self> {
        let processors = possible_processors()?;
        let workers = processors.clamp(2, WORKERS_MAX);
        let depth = (DEPTH_TOTAL / processors).clamp(2, DEPTH_MAX);
        let entries = Entries::new(processors, depth, kernel::MAX_WRITE as usize)?;
        let count = entries.count();
        // A worker may get hold of any entry.
        let new_rings = |number, entries| (0..number).map(|_| new_ring(entries)).collect::<io::Result<_>>();
        Ok(Rings {
            queues: new_rings(processors, count)?,
            workers: new_rings(workers, count)?,
            shared: Arc::new(Shared {
                server: server.clone(),
                slow: slow.clone(),
                asks: asks.clone(),
                homes: (0..processors).map(|_| Mailbox::new()).collect::<io::Result<_>>()?,
                jobs: Jobs::new(workers)?,
                writing_first: (0..processors).map(|_| AtomicUsize::new(0)).collect(),
                writing_first_max: (depth - SPARE_ENTRIES).max(1),
                looks_for_no_holes: AtomicBool::new(false),
                alive: AtomicUsize::new(count),
                ended: AtomicBool::new(false),
                entries: Arc::new(entries),
            }),
        })
    }

    /// Registers the rings with the kernel, which uses them as soon as the last one is there. Their threads have entered a sandbox.
    ///
    /// # Errors
    ///
    /// What keeps a ring from being registered. The mount is then of no use.
    pub fn start(self, device: &OwnedFd, sandbox: &Arc<Sandbox>) -> io::Result<RingThreads> {
        let (ready, all_ready) = mpsc::channel();
        let mut threads = Vec::new();
        let count = self.queues.len();
        let port = |ring| Ok::<_, io::Error>(Port::new(ring, device.try_clone()?, self.shared.entries.clone()));
        for (number, ring) in self.workers.into_iter().enumerate() {
            let worker = Worker::new(number, port(ring)?, self.shared.clone());
            let thread = thread::Builder::new().name(format!("worker-{number}"));
            threads.push(sandbox.spawn(thread, move || worker.run())?);
        }
        for (number, ring) in self.queues.into_iter().enumerate() {
            let queue = Queue::new(number as u16, port(ring)?, self.shared.clone());
            let ready = ready.clone();
            let thread = thread::Builder::new().name(format!("ring-{number}"));
            threads.push(sandbox.spawn(thread, move || queue.run(&ready))?);
        }
        drop(ready);
        for _ in 0..count {
            let result = all_ready.recv().map_err(|_| io::Error::other("a ring ended early"));
            if let Err(error) = result.and_then(|registered| registered) {
                self.shared.end();
                return Err(error);
            }
        }
        Ok(RingThreads { threads })
    }
}

impl RingThreads {
    /// Waits until the mount has ended.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                log::error!("a thread of a ring failed");
            }
        }
    }
}

/// Makes a ring in which so many entries can complete at once, and mail, and which takes nothing else: what a ring does passes by the filter of system
/// calls, and most of them have an operation here.
fn new_ring(entries: usize) -> io::Result<Ring> {
    let ring: Ring = IoUring::builder().setup_r_disabled().build(entries as u32 + 1)?;
    let mut only = [opcode::UringCmd80::CODE, opcode::Read::CODE].map(Restriction::sqe_op);
    ring.submitter().register_restrictions(&mut only)?;
    ring.submitter().register_enable_rings()?;
    Ok(ring)
}

impl Shared {
    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Notes that the kernel will not use an entry any more. With the last one all threads end.
    fn lost_entry(&self) {
        if self.alive.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.end();
        }
    }

    /// Ends all threads.
    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.homes.iter().for_each(Mailbox::ring_bell);
        self.jobs.wake_all();
    }

    /// Has a request answered by a thread that may wait for the disk.
    fn answer_slowly(self: &Arc<Self>, job: Job, place: Place, entry: Entry) {
        let shared = self.clone();
        self.slow.run(job, move || shared.answer_here(place, entry));
    }

    fn answer_here(self: &Arc<Self>, place: Place, mut entry: Entry) {
        match answer(&self.server, &mut entry) {
            None => self.send_home(place, entry),
            Some(ask) => self.answer_later(ask, place, entry),
        }
    }

    /// As [`answer_slowly`](Self::answer_slowly), for a request that has the kernel write what it holds of a file. Were all entries of a queue taken
    /// by such requests, these writes would never come: where there are too many it is given back, refused.
    ///
    /// # Errors
    ///
    /// The entry.
    fn answer_after_writes(self: &Arc<Self>, place: Place, mut entry: Entry) -> Result<(), Entry> {
        let header = entry.header();
        let queue = usize::from(place.queue);
        if self.writing_first[queue].fetch_add(1, Ordering::AcqRel) >= self.writing_first_max {
            self.writing_first[queue].fetch_sub(1, Ordering::AcqRel);
            // From now on the kernel answers by itself, and takes every file for nothing but data (fuse_lseek in fs/fuse/file.c).
            if !self.looks_for_no_holes.swap(true, Ordering::Relaxed) {
                log::warn!(
                    "too many look for holes at once in files open for writing: none are shown until the next mount"
                );
            }
            entry.answer(header.unique, 0, libc::ENOSYS);
            return Err(entry);
        }
        let shared = self.clone();
        self.slow.run(Job::Long, move || {
            shared.server.have_kernel_write(header.nodeid);
            shared.writing_first[queue].fetch_sub(1, Ordering::AcqRel);
            shared.answer_here(place, entry);
        });
        Ok(())
    }

    /// Has a key asked for that a request needs, and then the request answered, by a thread that may wait for who has the key.
    fn answer_later(self: &Arc<Self>, ask: Arc<Ask>, place: Place, mut entry: Entry) {
        let shared = self.clone();
        self.asks.run(ask.key(), move || {
            match answer_after(&shared.server, &ask, &mut entry) {
                None => shared.send_home(place, entry),
                Some(next) => shared.answer_later(next, place, entry),
            }
        });
    }

    /// Gives an entry with an answer to the thread of its queue.
    fn send_home(&self, place: Place, entry: Entry) {
        self.homes[usize::from(place.queue)].put((place, entry));
    }
}

/// Returns how many processors the kernel has queues for, which may be more than there are.
fn possible_processors() -> io::Result<usize> {
    let list = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    count_processors(list.trim()).ok_or_else(|| io::Error::other(format!("processors {list:?}")))
}

/// Counts what a list like `0-3,8` names.
fn count_processors(list: &str) -> Option<usize> {
    let mut count = 0;
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        count += last.checked_sub(first)? + 1;
    }
    Some(count)
}

/// Who serves a request.
enum Urgency {
    /// The queue's thread.
    Inline,
    /// A worker.
    Bulk,
    /// A thread that may wait for the disk.
    Slow(Job),
    /// Such a thread, which has the kernel write first.
    AfterWrites,
}

impl Urgency {
    fn of(server: &Server, entry: &mut Entry) -> Self {
        let header = entry.header();
        let (fixed, payload, len) = entry.parts();
        match decode(&header, &fixed, &payload[..len]).map(|asked| asked.operation) {
            Ok(operation) if operation.is_bulk() => Urgency::Bulk,
            Ok(operation) if server.needs_kernel_write(header.nodeid, &operation) => Urgency::AfterWrites,
            Ok(operation) if server.may_wait(&operation) => Urgency::Slow(operation.job()),
            _ => Urgency::Inline,
        }
    }
}

/// Answers a request in its own buffers. Whatever happens, the kernel gets an answer; later, where it is returned what is to be asked before.
fn answer(server: &Server, entry: &mut Entry) -> Option<Arc<Ask>> {
    let header = entry.header();
    let filled = catch_unwind(AssertUnwindSafe(|| fill(server, entry, None)));
    finish(entry, &header, filled.unwrap_or(Filled::FAILED))
}

/// Asks, and answers a request after that.
fn answer_after(server: &Server, ask: &Ask, entry: &mut Entry) -> Option<Arc<Ask>> {
    let header = entry.header();
    let filled = catch_unwind(AssertUnwindSafe(|| fill(server, entry, Some(ask))));
    finish(entry, &header, filled.unwrap_or(Filled::FAILED))
}

fn finish(entry: &mut Entry, header: &abi::InHeader, filled: Filled) -> Option<Arc<Ask>> {
    match filled {
        Filled::Answer { len, error } => {
            entry.answer(header.unique, len, error);
            None
        }
        Filled::Later(ask) => Some(ask),
    }
}

/// What was put into an entry.
enum Filled {
    /// So many bytes of payload, or an errno.
    Answer { len: usize, error: i32 },
    /// Nothing: the request is still in it.
    Later(Arc<Ask>),
}

impl Filled {
    const FAILED: Self = Filled::Answer {
        len: 0,
        error: libc::EIO,
    };
}

/// Serves a request, after something was asked if need be.
fn fill(server: &Server, entry: &mut Entry, ask: Option<&Ask>) -> Filled {
    let header = entry.header();
    let (fixed, payload, len) = entry.parts();
    let (time_to_live, keeps_content) = (server.time_to_live(), server.keeps_content());
    let new_writer = |payload, limit| Writer::new(payload, limit, time_to_live, keeps_content);
    if abi::has_long_answer(header.opcode) {
        // The answer takes the place of the question, which is a name at most.
        let question = payload[..len].to_vec();
        let limit = wire::listing_size(&header, &fixed).unwrap_or(payload.len());
        let mut writer = new_writer(payload, limit);
        let later = match decode(&header, &fixed, &question) {
            Ok(asked) => serve(server, &asked, ask, &mut writer),
            Err(errno) => {
                writer.error = errno;
                None
            }
        };
        let (len, error) = (writer.len(), writer.error);
        if let Some(ask) = later {
            payload[..question.len()].copy_from_slice(&question);
            return Filled::Later(ask);
        }
        return Filled::Answer { len, error };
    }
    let mut small = [0; SMALL_ANSWER_MAX];
    let mut writer = new_writer(&mut small, SMALL_ANSWER_MAX);
    match decode(&header, &fixed, &payload[..len]) {
        Ok(asked) => {
            if let Some(ask) = serve(server, &asked, ask, &mut writer) {
                return Filled::Later(ask);
            }
        }
        Err(errno) => writer.error = errno,
    }
    let (used, error) = (writer.len(), writer.error);
    payload[..used].copy_from_slice(&small[..used]);
    Filled::Answer { len: used, error }
}

/// Serves a request, after something was asked if need be; returns what is to be asked next.
fn serve(server: &Server, asked: &Asked<'_>, ask: Option<&Ask>, writer: &mut Writer<'_>) -> Option<Arc<Ask>> {
    if let Some(ask) = ask
        && let Err(error) = server.ask(asked, ask)
    {
        server.refuse(asked, error, writer);
        return None;
    }
    server.serve(asked, writer).err().map(|waiting| waiting.ask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_counted() {
        assert_eq!(count_processors("0"), Some(1));
        assert_eq!(count_processors("0-3"), Some(4));
        assert_eq!(count_processors("0-3,7,9-10"), Some(7));
        for wrong in ["", "a", "3-1", "0-"] {
            assert_eq!(count_processors(wrong), None, "{wrong:?}");
        }
    }
}
