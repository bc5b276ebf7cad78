//! Workers: threads on any processor that seal and open much data.
//!
//! A worker gives its answer to the kernel itself, from its own ring, while the data is still in its processor's cache. The kernel then brings the next request
//! in that entry to the worker too, wherever it is made. While much data is read or written that is as it should be: entries
//! stay with the workers. One that brings a small request is sent home with its answer, to the thread on the processor that asked.

use std::{collections::VecDeque, io, sync::Arc};

use parking_lot::Mutex;

use super::{
    Shared, Urgency, answer,
    entry::Entry,
    port::{Event, Mailbox, Place, Port},
};

/// Requests that wait for a worker.
pub struct Jobs {
    waiting: Mutex<Waiting>,
    /// To wake each worker up.
    bells: Vec<Mailbox<()>>,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<(Place, Entry)>,
    /// Workers that sleep, or are about to.
    idle: Vec<usize>,
}

/// A worker.
pub struct Worker {
    number: usize,
    port: Port,
    shared: Arc<Shared>,
}

impl Jobs {
    /// Makes an empty list, for so many workers.
    pub fn new(workers: usize) -> io::Result<Self> {
        Ok(Jobs {
            waiting: Mutex::default(),
            bells: (0..workers).map(|_| Mailbox::new()).collect::<io::Result<_>>()?,
        })
    }

    /// Has a worker take a request.
    pub fn give(&self, place: Place, entry: Entry) {
        let mut waiting = self.waiting.lock();
        waiting.requests.push_back((place, entry));
        let idle = waiting.idle.pop();
        drop(waiting);
        if let Some(worker) = idle {
            self.bells[worker].ring_bell();
        }
    }

    /// Wakes all workers up.
    pub fn wake_all(&self) {
        self.bells.iter().for_each(Mailbox::ring_bell);
    }

    /// Takes a request; if there is none, the worker counts as idle, and its bell is rung for the next one.
    fn take(&self, worker: usize) -> Option<(Place, Entry)> {
        let mut waiting = self.waiting.lock();
        let request = waiting.requests.pop_front();
        if request.is_none() {
            waiting.idle.push(worker);
        }
        request
    }

    fn is_busy(&self, worker: usize) {
        self.waiting.lock().idle.retain(|&idle| idle != worker);
    }
}

impl Worker {
    /// Makes a worker.
    pub fn new(number: usize, port: Port, shared: Arc<Shared>) -> Self {
        Worker { number, port, shared }
    }

    /// Works until the mount has ended.
    pub fn run(mut self) {
        if let Err(error) = self.work() {
            log::error!("worker {} failed: {error}", self.number);
        }
    }

    fn work(&mut self) -> io::Result<()> {
        let bell = &self.shared.jobs.bells[self.number];
        self.port.await_mail(bell)?;
        let mut here = VecDeque::new();
        let mut events = Vec::new();
        while !self.shared.has_ended() {
            for event in events.drain(..) {
                match event {
                    Event::Mail => self.port.await_mail(&self.shared.jobs.bells[self.number])?,
                    Event::Request(place) => here.push_back((place, self.shared.entries.take(place))),
                    Event::Lost(..) => self.shared.lost_entry(),
                }
            }
            // One is done here; the others may find a worker that has nothing to do.
            while here.len() > 1 {
                let (place, entry) = here.pop_back().expect("there are two");
                self.shared.jobs.give(place, entry);
            }
            match here.pop_front().or_else(|| self.shared.jobs.take(self.number)) {
                Some((place, entry)) => {
                    self.answer(place, entry)?;
                    events.extend(self.port.submit()?);
                }
                None => {
                    self.port.wait(&mut events)?;
                    self.shared.jobs.is_busy(self.number);
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, place: Place, mut entry: Entry) -> io::Result<()> {
        match Urgency::of(&self.shared.server, &mut entry) {
            Urgency::Bulk => match answer(&self.shared.server, &mut entry) {
                None => self.port.commit(place, entry)?,
                Some(ask) => self.shared.answer_later(ask, place, entry),
            },
            Urgency::Inline => match answer(&self.shared.server, &mut entry) {
                None => self.shared.send_home(place, entry),
                Some(ask) => self.shared.answer_later(ask, place, entry),
            },
            Urgency::Slow(job) => self.shared.answer_slowly(job, place, entry),
            Urgency::AfterWrites => {
                if let Err(entry) = self.shared.answer_after_writes(place, entry) {
                    self.shared.send_home(place, entry);
                }
            }
        }
        Ok(())
    }
}
