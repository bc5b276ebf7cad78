//! Who opened which file, on its way to the audit log: best effort, and no request waits for it.

use std::{collections::VecDeque, io, mem, sync::Arc, thread};

use parking_lot::{Condvar, Mutex};

use crate::{
    sandbox::Sandbox,
    vault::home::{FileAudit, FileUse},
};

/// So many records wait at most: a few megabytes, and some seconds of a slow disk.
const WAITING_MAX: usize = 16 * 1024;

/// So many are appended at a time.
const BATCH_MAX: usize = 1024;

/// Takes uses of files, and has a thread record them.
#[derive(Debug)]
pub struct FileRecords {
    queue: Arc<Queue>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    uses: VecDeque<FileUse>,
    /// Uses that there was no room for since the last append.
    dropped: u64,
    has_ended: bool,
}

impl FileRecords {
    /// Starts the thread, which has entered a sandbox.
    ///
    /// # Errors
    ///
    /// What pthread_create(3) gives.
    pub fn start(audit: FileAudit, sandbox: &Arc<Sandbox>) -> io::Result<Self> {
        Self::start_with(sandbox, move |uses, dropped| match audit.record(uses, dropped) {
            Ok(()) => true,
            Err(error) => {
                log::error!("{} uses of files are not in the audit log: {error}", uses.len());
                false
            }
        })
    }

    /// Starts the thread, which gives what is to be recorded to a function; that tells whether it did so.
    fn start_with(
        sandbox: &Arc<Sandbox>,
        record: impl Fn(&[FileUse], u64) -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let thread = {
            let queue = queue.clone();
            sandbox.spawn(thread::Builder::new().name("audit".into()), move || queue.run(record))?
        };
        Ok(FileRecords {
            queue,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Takes a use of a file; drops it where too many wait.
    pub fn note(&self, file: FileUse) {
        let mut waiting = self.queue.waiting.lock();
        if waiting.uses.len() >= WAITING_MAX {
            waiting.dropped += 1;
            return;
        }
        waiting.uses.push_back(file);
        drop(waiting);
        self.queue.changed.notify_one();
    }

    /// Returns when everything is recorded. What comes later is not.
    pub fn finish(&self) {
        self.queue.waiting.lock().has_ended = true;
        self.queue.changed.notify_one();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            log::error!("the thread of the audit log failed");
        }
    }
}

impl Queue {
    fn run(&self, record: impl Fn(&[FileUse], u64) -> bool) {
        loop {
            let mut waiting = self.waiting.lock();
            while waiting.uses.is_empty() && !waiting.has_ended {
                self.changed.wait(&mut waiting);
            }
            let count = waiting.uses.len().min(BATCH_MAX);
            let uses: Vec<_> = waiting.uses.drain(..count).collect();
            let dropped = mem::take(&mut waiting.dropped);
            let is_last = waiting.has_ended && waiting.uses.is_empty();
            drop(waiting);
            if (!uses.is_empty() || dropped > 0) && !record(&uses, dropped) {
                self.waiting.lock().dropped += dropped + uses.len() as u64;
            }
            if is_last {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn file(path: &str) -> FileUse {
        FileUse::of(path.to_owned())
    }

    #[test]
    fn everything_that_was_taken_is_recorded_in_its_order() {
        let (sender, recorded) = mpsc::channel();
        let records = FileRecords::start_with(&Arc::new(Sandbox::off()), move |uses, dropped| {
            assert_eq!(dropped, 0);
            uses.iter().for_each(|file| sender.send(file.path.clone()).unwrap());
            true
        })
        .unwrap();
        for number in 0..3000 {
            records.note(file(&number.to_string()));
        }
        records.finish();
        let recorded: Vec<_> = recorded.iter().collect();
        assert_eq!(recorded, (0..3000).map(|number| number.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn what_there_is_no_room_for_is_counted_and_so_is_what_failed() {
        let (sender, recorded) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<bool>();
        let records = FileRecords::start_with(&Arc::new(Sandbox::off()), move |uses, dropped| {
            sender.send((uses.len(), dropped)).unwrap();
            may_go_on.recv().unwrap_or(true)
        })
        .unwrap();
        records.note(file("first"));
        assert_eq!(recorded.recv().unwrap(), (1, 0));
        // The thread is busy with the first.
        for _ in 0..WAITING_MAX + 5 {
            records.note(file("more"));
        }
        go_on.send(false).unwrap();
        assert_eq!(
            recorded.recv().unwrap(),
            (BATCH_MAX, 6),
            "five without room, one that failed"
        );
        drop(go_on);
        records.finish();
        let rest: usize = recorded.iter().map(|(uses, _)| uses).sum();
        assert_eq!(rest, WAITING_MAX - BATCH_MAX);
    }
}
