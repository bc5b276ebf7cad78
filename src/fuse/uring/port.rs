//! A ring of one thread: commands to the kernel, and a mailbox by which other threads wake it up.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::IntoBytes;

use super::{abi::RingCommand, entry::Entry};

/// `enum fuse_uring_cmd`
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

/// Marks that there is mail; other completions have the place of their entry.
const MAIL: u64 = u64::MAX;

/// Where an entry belongs: the processor's queue, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The queue.
    pub queue: u16,
    /// The entry in it.
    pub index: u16,
}

/// The entries of all queues: those that the kernel has. The others are with the thread that works on them.
pub struct Entries {
    queues: Vec<Vec<Mutex<Option<Entry>>>>,
}

/// What a ring has completed.
pub enum Event {
    /// There is mail.
    Mail,
    /// A request is in an entry.
    Request(Place),
    /// The kernel does not use an entry any more: the mount has ended, or the registration was refused.
    Lost(Place, io::Error),
}

/// Things for a thread, and the way to wake it up for them.
pub struct Mailbox<T> {
    things: Mutex<Vec<T>>,
    event: OwnedFd,
}

/// A ring whose submissions have room for a command of FUSE's.
pub type Ring = IoUring<squeue::Entry128, cqueue::Entry>;

/// A thread's ring.
pub struct Port {
    ring: Ring,
    device: OwnedFd,
    /// The kernel writes into them until the ring is gone.
    entries: Arc<Entries>,
    /// Where the counter of the mailbox is read into.
    count: Box<[u8; 8]>,
}

impl Entries {
    /// Makes entries for `queues` queues.
    pub fn new(queues: usize, depth: usize, payload_size: usize) -> io::Result<Self> {
        let new_queue = |_| {
            (0..depth)
                .map(|_| Ok(Mutex::new(Some(Entry::new(payload_size)?))))
                .collect::<io::Result<_>>()
        };
        Ok(Entries {
            queues: (0..queues).map(new_queue).collect::<io::Result<_>>()?,
        })
    }

    /// Returns the places of one queue.
    pub fn places(&self, queue: u16) -> impl Iterator<Item = Place> + use<> {
        (0..self.queues[usize::from(queue)].len() as u16).map(move |index| Place { queue, index })
    }

    /// Returns how many there are.
    pub fn count(&self) -> usize {
        self.queues.iter().map(Vec::len).sum()
    }

    fn slot(&self, place: Place) -> &Mutex<Option<Entry>> {
        &self.queues[usize::from(place.queue)][usize::from(place.index)]
    }

    /// Takes an entry that the kernel has put a request into.
    pub fn take(&self, place: Place) -> Entry {
        self.slot(place).lock().take().expect("the kernel had it")
    }
}

impl Place {
    fn to_number(self) -> u64 {
        u64::from(self.queue) << 16 | u64::from(self.index)
    }

    fn from_number(number: u64) -> Self {
        Place {
            queue: (number >> 16) as u16,
            index: number as u16,
        }
    }
}

impl<T> Mailbox<T> {
    /// Makes an empty one.
    pub fn new() -> io::Result<Self> {
        Ok(Mailbox {
            things: Mutex::new(Vec::new()),
            event: eventfd(0, EventfdFlags::CLOEXEC)?,
        })
    }

    /// Puts something in, and wakes the thread up.
    pub fn put(&self, thing: T) {
        self.things.lock().push(thing);
        self.ring_bell();
    }

    /// Wakes the thread up for something that is not in here.
    pub fn ring_bell(&self) {
        if let Err(error) = rustix::io::write(&self.event, &1_u64.to_ne_bytes()) {
            log::error!("a ring cannot be woken up: {error}");
        }
    }

    /// Takes everything out.
    pub fn empty(&self) -> Vec<T> {
        std::mem::take(&mut *self.things.lock())
    }
}

impl Port {
    /// Gives a ring the mount and the entries it is for.
    pub fn new(ring: Ring, device: OwnedFd, entries: Arc<Entries>) -> Self {
        Port {
            ring,
            device,
            entries,
            count: Box::new([0; 8]),
        }
    }

    /// Gives an entry to the kernel for the first time.
    pub fn register(&mut self, place: Place) -> io::Result<()> {
        let slot = self.entries.slot(place).lock();
        let vectors = slot.as_ref().expect("nobody has taken it yet").vectors();
        drop(slot);
        let command = self.command(REGISTER, place, 0).addr(Some(vectors)).build();
        self.push(with_len(command, 2).user_data(place.to_number()))
    }

    /// Gives an entry with an answer to the kernel; the next request in it comes to this ring.
    pub fn commit(&mut self, place: Place, entry: Entry) -> io::Result<()> {
        let command = self.command(COMMIT_AND_FETCH, place, entry.commit_id()).build();
        *self.entries.slot(place).lock() = Some(entry);
        self.push(command.user_data(place.to_number()))
    }

    /// Has the ring complete when something is put into a mailbox, once.
    pub fn await_mail<T>(&mut self, mailbox: &Mailbox<T>) -> io::Result<()> {
        let (fd, buffer) = (mailbox.event.as_raw_fd(), self.count.as_mut_ptr());
        let entry: squeue::Entry128 = opcode::Read::new(types::Fd(fd), buffer, 8).build().into();
        self.push(entry.user_data(MAIL))
    }

    /// Submits what was given, without waiting, and returns what has completed.
    pub fn submit(&mut self) -> io::Result<Vec<Event>> {
        self.ring.submit()?;
        Ok(self.completed().collect())
    }

    /// Submits what was given, and adds what completes to `events`, at least one.
    pub fn wait(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(1) {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                result => {
                    result?;
                    events.extend(self.completed());
                    return Ok(());
                }
            }
        }
    }

    fn completed(&mut self) -> impl Iterator<Item = Event> {
        self.ring
            .completion()
            .map(|done| match (done.user_data(), done.result()) {
                (MAIL, _) => Event::Mail,
                (number, result) if result < 0 => {
                    Event::Lost(Place::from_number(number), io::Error::from_raw_os_error(-result))
                }
                (number, _) => Event::Request(Place::from_number(number)),
            })
    }

    fn command(&self, command: u32, place: Place, commit_id: u64) -> opcode::UringCmd80 {
        let request = RingCommand {
            flags: 0,
            commit_id,
            queue: place.queue,
            padding: [0; 6],
        };
        let mut bytes = [0; 80];
        bytes[..size_of::<RingCommand>()].copy_from_slice(request.as_bytes());
        opcode::UringCmd80::new(types::Fd(self.device.as_raw_fd()), command).cmd(bytes)
    }

    fn push(&mut self, entry: squeue::Entry128) -> io::Result<()> {
        // SAFETY: what the entry refers to lives as long as the ring: an entry's buffers, kept by `entries` or by the thread that works on it and
        // commits it here, or the mailbox's counter. Both are dropped after the ring.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }
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
