//! The fast transport: FUSE over io_uring (Documentation/filesystems/fuse/fuse-io-uring.rst, fs/fuse/dev_uring.c; Linux 6.14).
//!
//! The kernel has a queue for each processor, and puts a request into the queue of the processor it is made on. A thread on that processor takes it:
//! so who asks and who answers take turns on one processor, where with /dev/fuse one processor wakes the other up. What would hold a queue for long,
//! waiting for the disk or sealing much data, goes to threads of a pool, and comes back to the queue's thread when it is done.
//!
//! /dev/fuse stays open beside the rings: INIT, FORGET and what the kernel asks before all queues are there come through it.

mod abi;
mod entry;
mod wire;

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use parking_lot::Mutex;
use rustix::{
    event::{EventfdFlags, eventfd},
    thread::{CpuSet, sched_setaffinity},
};
use zerocopy::IntoBytes;

use self::{
    abi::RingCommand,
    entry::Entry,
    wire::{Writer, decode},
};
use super::{kernel, pool::Pool, server::Server};

/// Requests under way in a queue, of which the kernel keeps the others back: so many where there are few processors.
const DEPTH_MAX: usize = 8;

/// So many for all queues together, but two for each at least.
const DEPTH_TOTAL: usize = 256;

/// Reads and writes of more bytes than this go to the pool.
const INLINE_MAX: usize = 32 << 10;

/// The longest answer that is not put into the payload at once.
const SMALL_ANSWER_MAX: usize = 256;

/// The kernel refuses registrations until it has seen the answer to INIT, which was sent just before.
const REGISTER_TRIES: usize = 1000;
const REGISTER_PAUSE: Duration = Duration::from_millis(1);

/// `enum fuse_uring_cmd`
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

/// Threads that seal and open much data, at most.
const BULK_THREADS_MAX: usize = 8;

/// Marks what comes from the pool; other completions have the number of their entry.
const FROM_POOL: u64 = u64::MAX;

/// Rings for all processors, not used yet.
pub struct Rings {
    queues: Vec<Queue>,
}

/// The threads that serve the rings.
pub struct RingThreads {
    threads: Vec<JoinHandle<()>>,
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
    pub fn prepare(server: &Arc<Server>, slow: &Arc<Pool>) -> io::Result<Self> {
        let processors = possible_processors()?;
        let bulk = Arc::new(Pool::new("bulk", processors.clamp(2, BULK_THREADS_MAX)));
        let depth = (DEPTH_TOTAL / processors).clamp(2, DEPTH_MAX);
        let new_queue = |number| Queue::new(number as u16, depth, server.clone(), slow.clone(), bulk.clone());
        let queues = (0..processors).map(new_queue).collect::<io::Result<_>>()?;
        Ok(Rings { queues })
    }

    /// Registers the rings with the kernel, which uses them as soon as the last one is there.
    ///
    /// # Errors
    ///
    /// What keeps a ring from being registered. The mount is then of no use.
    pub fn start(self, device: &OwnedFd) -> io::Result<RingThreads> {
        let (ready, all_ready) = mpsc::channel();
        let mut threads = Vec::new();
        let count = self.queues.len();
        for queue in self.queues {
            let (ready, device) = (ready.clone(), device.try_clone()?);
            let name = format!("ring-{}", queue.number);
            threads.push(
                thread::Builder::new()
                    .name(name)
                    .spawn(move || queue.run(device, &ready))?,
            );
        }
        drop(ready);
        for _ in 0..count {
            all_ready.recv().map_err(|_| io::Error::other("a ring ended early"))??;
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

/// Requests that the pool has answered, and the way to wake up the queue for them.
struct Finished {
    entries: Mutex<Vec<(usize, Entry)>>,
    event: OwnedFd,
}

/// One processor's queue.
struct Queue {
    number: u16,
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    /// Those that the kernel or this thread has; the others are with the pool.
    entries: Vec<Option<Entry>>,
    finished: Arc<Finished>,
    /// Where the event's counter is read into.
    count: Box<[u8; 8]>,
    server: Arc<Server>,
    slow: Arc<Pool>,
    bulk: Arc<Pool>,
}

/// A completion: whose, and with what result.
type Done = (u64, i32);

impl Queue {
    fn new(number: u16, depth: usize, server: Arc<Server>, slow: Arc<Pool>, bulk: Arc<Pool>) -> io::Result<Self> {
        let new_entry = |_| Entry::new(kernel::MAX_WRITE as usize).map(Some);
        Ok(Queue {
            number,
            ring: IoUring::builder().build(2 * depth as u32)?,
            entries: (0..depth).map(new_entry).collect::<io::Result<_>>()?,
            finished: Arc::new(Finished {
                entries: Mutex::new(Vec::new()),
                event: eventfd(0, EventfdFlags::CLOEXEC)?,
            }),
            count: Box::new([0; 8]),
            server,
            slow,
            bulk,
        })
    }

    /// Serves until the mount has ended; tells through `ready` once when all is registered, or why not.
    fn run(mut self, device: OwnedFd, ready: &mpsc::Sender<io::Result<()>>) {
        self.stay_on_processor();
        let mut done = match self.register(&device) {
            Ok(done) => done,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        let _ = ready.send(Ok(()));
        if let Err(error) = self.serve(&device, &mut done) {
            log::error!("ring {} failed: {error}", self.number);
        }
    }

    fn stay_on_processor(&self) {
        let mut only = CpuSet::new();
        if usize::from(self.number) < CpuSet::MAX_CPU {
            only.set(self.number.into());
            if let Err(error) = sched_setaffinity(None, &only) {
                // There may be no such processor now; what it would ask is served wherever this thread runs.
                log::debug!("ring {} runs anywhere: {error}", self.number);
            }
        }
    }

    /// Registers all entries; returns the requests that came already.
    fn register(&mut self, device: &OwnedFd) -> io::Result<Vec<Done>> {
        for index in 0..self.entries.len() {
            self.submit_registration(device, index)?;
        }
        self.await_pool()?;
        let mut early = Vec::new();
        // A registration that is accepted completes with its first request; one that is not, at once.
        for _ in 0..REGISTER_TRIES {
            self.ring.submit()?;
            let (refused, requests): (Vec<Done>, Vec<Done>) = completions(&mut self.ring).partition(|done| done.1 < 0);
            early.extend(requests);
            if refused.is_empty() {
                return Ok(early);
            }
            for (index, result) in refused {
                if result != -libc::EAGAIN {
                    return Err(io::Error::from_raw_os_error(-result));
                }
                self.submit_registration(device, index as usize)?;
            }
            thread::sleep(REGISTER_PAUSE);
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    fn submit_registration(&mut self, device: &OwnedFd, index: usize) -> io::Result<()> {
        let entry = self.entries[index].as_ref().expect("nothing is with the pool yet");
        let vectors = entry.vectors();
        let command = self.command(device, REGISTER, 0).addr(Some(vectors)).build();
        self.push(with_len(command, 2).user_data(index as u64))
    }

    fn command(&self, device: &OwnedFd, command: u32, commit_id: u64) -> opcode::UringCmd80 {
        let request = RingCommand {
            flags: 0,
            commit_id,
            queue: self.number,
            padding: [0; 6],
        };
        let mut bytes = [0; 80];
        bytes[..size_of::<RingCommand>()].copy_from_slice(request.as_bytes());
        opcode::UringCmd80::new(types::Fd(device.as_raw_fd()), command).cmd(bytes)
    }

    fn push(&mut self, entry: squeue::Entry128) -> io::Result<()> {
        // SAFETY: what the entry refers to, an entry's buffers or the event's counter, lives as long as the ring: it is only dropped after the ring
        // (`entries`, `count`), or kept by the pool, which gives it back.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }

    /// Has the ring complete when the pool has answered something.
    fn await_pool(&mut self) -> io::Result<()> {
        let (fd, buffer) = (self.finished.event.as_raw_fd(), self.count.as_mut_ptr());
        let entry: squeue::Entry128 = opcode::Read::new(types::Fd(fd), buffer, 8).build().into();
        self.push(entry.user_data(FROM_POOL))
    }

    fn serve(&mut self, device: &OwnedFd, done: &mut Vec<Done>) -> io::Result<()> {
        // How many entries the kernel will still use.
        let mut alive = self.entries.len();
        loop {
            for (which, result) in done.drain(..) {
                if which == FROM_POOL {
                    self.take_back(device)?;
                } else if result < 0 {
                    // The mount has ended.
                    alive -= 1;
                } else {
                    self.take_request(device, which as usize)?;
                }
            }
            if alive == 0 {
                return Ok(());
            }
            match self.ring.submit_and_wait(1) {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
                result => result?,
            };
            done.extend(completions(&mut self.ring));
        }
    }

    fn take_back(&mut self, device: &OwnedFd) -> io::Result<()> {
        let entries = std::mem::take(&mut *self.finished.entries.lock());
        for (index, entry) in entries {
            self.commit(device, index, entry)?;
        }
        self.await_pool()
    }

    fn commit(&mut self, device: &OwnedFd, index: usize, entry: Entry) -> io::Result<()> {
        let command = self.command(device, COMMIT_AND_FETCH, entry.commit_id()).build();
        self.entries[index] = Some(entry);
        self.push(command.user_data(index as u64))
    }

    fn take_request(&mut self, device: &OwnedFd, index: usize) -> io::Result<()> {
        let mut entry = self.entries[index].take().expect("the kernel had it");
        let pool = match Urgency::of(&mut entry) {
            Urgency::Inline => {
                answer(&self.server, &mut entry);
                return self.commit(device, index, entry);
            }
            Urgency::Bulk => &self.bulk,
            Urgency::Slow => &self.slow,
        };
        let (server, finished) = (self.server.clone(), self.finished.clone());
        pool.run(move || {
            answer(&server, &mut entry);
            finished.entries.lock().push((index, entry));
            if let Err(error) = rustix::io::write(&finished.event, &1_u64.to_ne_bytes()) {
                log::error!("a ring cannot be woken up: {error}");
            }
        });
        Ok(())
    }
}

fn completions(ring: &mut IoUring<squeue::Entry128, cqueue::Entry>) -> impl Iterator<Item = Done> {
    ring.completion().map(|done| (done.user_data(), done.result()))
}

/// Who serves a request.
enum Urgency {
    /// The queue's thread.
    Inline,
    /// A thread for much data.
    Bulk,
    /// A thread that may wait for the disk.
    Slow,
}

impl Urgency {
    fn of(entry: &mut Entry) -> Self {
        use super::request::Operation;
        let header = entry.header();
        let (fixed, payload, len) = entry.parts();
        match decode(&header, &fixed, &payload[..len]).map(|asked| asked.operation) {
            Ok(Operation::Read { len, .. }) if len > INLINE_MAX => Urgency::Bulk,
            Ok(Operation::Write { data, .. }) if data.len() > INLINE_MAX => Urgency::Bulk,
            Ok(operation) if operation.is_slow() => Urgency::Slow,
            _ => Urgency::Inline,
        }
    }
}

/// Answers a request in its own buffers. Whatever happens, the kernel gets an answer.
fn answer(server: &Server, entry: &mut Entry) {
    let header = entry.header();
    let (len, error) = catch_unwind(AssertUnwindSafe(|| fill(server, entry))).unwrap_or((0, libc::EIO));
    entry.answer(header.unique, len, error);
}

/// Serves a request; returns how many bytes of payload the answer has, and its errno.
fn fill(server: &Server, entry: &mut Entry) -> (usize, i32) {
    let header = entry.header();
    let (fixed, payload, len) = entry.parts();
    let (time_to_live, keeps_content) = (server.time_to_live(), server.keeps_content());
    let new_writer = |payload, limit| Writer::new(payload, limit, time_to_live, keeps_content);
    if abi::has_long_answer(header.opcode) {
        // The answer takes the place of the question, which is a name at most.
        let question = payload[..len].to_vec();
        let limit = wire::listing_size(&header, &fixed).unwrap_or(payload.len());
        let mut writer = new_writer(payload, limit);
        match decode(&header, &fixed, &question) {
            Ok(asked) => server.serve(&asked, &mut writer),
            Err(errno) => writer.error = errno,
        }
        return (writer.len(), writer.error);
    }
    let mut small = [0; SMALL_ANSWER_MAX];
    let mut writer = new_writer(&mut small, SMALL_ANSWER_MAX);
    match decode(&header, &fixed, &payload[..len]) {
        Ok(asked) => server.serve(&asked, &mut writer),
        Err(errno) => writer.error = errno,
    }
    let (used, error) = (writer.len(), writer.error);
    payload[..used].copy_from_slice(&small[..used]);
    (used, error)
}

/// Sets the number of vectors, for which the library has no method: `len` of `struct io_uring_sqe`, at byte 24.
fn with_len(mut entry: squeue::Entry128, len: u32) -> squeue::Entry128 {
    const LEN_AT: usize = 24;
    const { assert!(size_of::<squeue::Entry128>() == 128) };
    // SAFETY: the entry is 128 bytes of plain data, laid out by the kernel's ABI (`repr(C)` in the library).
    unsafe {
        (&raw mut entry)
            .cast::<u8>()
            .add(LEN_AT)
            .cast::<u32>()
            .write_unaligned(len);
    }
    entry
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
