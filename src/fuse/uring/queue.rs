//! The thread of one processor's queue.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use rustix::thread::{CpuSet, sched_setaffinity};

use super::{
    Shared, Urgency, answer,
    port::{Event, Place, Port},
};

/// The kernel refuses registrations until it has seen the answer to INIT, which was sent just before.
const REGISTER_TRIES: usize = 1000;
const REGISTER_PAUSE: Duration = Duration::from_millis(1);

/// One processor's queue.
pub struct Queue {
    number: u16,
    port: Port,
    shared: Arc<Shared>,
}

impl Queue {
    /// Makes the queue of a processor.
    pub fn new(number: u16, port: Port, shared: Arc<Shared>) -> Self {
        Queue { number, port, shared }
    }

    /// Serves until the mount has ended; tells through `ready` once when all is registered, or why not.
    pub fn run(mut self, ready: &mpsc::Sender<io::Result<()>>) {
        self.stay_on_processor();
        let mut events = match self.register() {
            Ok(early) => early,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        let _ = ready.send(Ok(()));
        if let Err(error) = self.serve(&mut events) {
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

    /// Registers all entries; returns what came already.
    fn register(&mut self) -> io::Result<Vec<Event>> {
        for place in self.shared.entries.places(self.number) {
            self.port.register(place)?;
        }
        self.port.await_mail(&self.shared.homes[usize::from(self.number)])?;
        let mut early = Vec::new();
        // A registration that is accepted completes with its first request; one that is not, at once.
        for _ in 0..REGISTER_TRIES {
            let mut refused = false;
            for event in self.port.submit()? {
                match event {
                    Event::Lost(place, error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                        refused = true;
                        self.port.register(place)?;
                    }
                    Event::Lost(_, error) => return Err(error),
                    event => early.push(event),
                }
            }
            if !refused {
                return Ok(early);
            }
            thread::sleep(REGISTER_PAUSE);
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    fn serve(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        loop {
            for event in events.drain(..) {
                match event {
                    Event::Mail => self.take_back()?,
                    Event::Request(place) => self.take_request(place)?,
                    Event::Lost(..) => self.shared.lost_entry(),
                }
            }
            if self.shared.has_ended() {
                return Ok(());
            }
            self.port.wait(events)?;
        }
    }

    fn take_back(&mut self) -> io::Result<()> {
        let home = &self.shared.homes[usize::from(self.number)];
        for (place, entry) in home.empty() {
            self.port.commit(place, entry)?;
        }
        self.port.await_mail(home)
    }

    fn take_request(&mut self, place: Place) -> io::Result<()> {
        let mut entry = self.shared.entries.take(place);
        match Urgency::of(&self.shared.server, &mut entry) {
            Urgency::Inline => match answer(&self.shared.server, &mut entry) {
                None => self.port.commit(place, entry)?,
                Some(ask) => self.shared.answer_later(ask, place, entry),
            },
            Urgency::Bulk => self.shared.jobs.give(place, entry),
            Urgency::Slow(job) => self.shared.answer_slowly(job, place, entry),
            Urgency::AfterWrites => {
                if let Err(entry) = self.shared.answer_after_writes(place, entry) {
                    self.port.commit(place, entry)?;
                }
            }
        }
        Ok(())
    }
}
