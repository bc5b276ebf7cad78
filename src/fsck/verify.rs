//! Reads and authenticates contents, by several threads: one walks, and hands the others files, large ones in parts.

use std::{
    collections::HashSet,
    num::NonZeroUsize,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use parking_lot::Mutex;
use rustix::fs::{FileType, Stat};

use super::{
    Event,
    finding::{Finding, Problem, unusable},
    tree,
    walk::{Content, Entry, Place, Visitor, WalkError, walk},
};
use crate::{
    backing::Dir,
    crypto::{random, seal::BlockSum},
    format::{
        layout::Layout,
        name::{self, Shape},
    },
    units::CipherSize,
    vault::{
        Vault, VaultError,
        content::ContentError,
        file::{FileContent, VaultFile},
    },
};

/// Bytes of plaintext that are read by one thread at a time, and chosen together.
const PART_SIZE: u64 = 64 << 20;

/// Parts that wait to be read; each may hold a descriptor.
const QUEUE_PARTS: usize = 64;

/// What is to be read, and how.
pub struct Options<'o> {
    /// Threads that read.
    pub threads: NonZeroUsize,
    /// Which part of the bytes is to be read, of 1; everything without it.
    pub sample: Option<f64>,
    /// Knows files that were verified before and need not be again.
    pub known: Option<&'o dyn Known>,
}

/// Remembers which files were verified, by their attributes on disk.
pub trait Known: Sync {
    /// Tells whether a file was verified, and has not changed since.
    fn is_verified(&self, file: &Stat) -> bool;

    /// Takes a file that was verified whole, and is as it was sealed.
    fn verified(&self, file: &Stat);
}

/// How much was verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Directories.
    pub directories: u64,
    /// Files that there are.
    pub files: u64,
    /// Files that were read, at least in part.
    pub files_read: u64,
    /// Files that were verified before and have not changed.
    pub files_known: u64,
    /// Bytes of plaintext that there are.
    pub bytes: u64,
    /// Bytes of plaintext that were read.
    pub bytes_read: u64,
}

/// Checks the structure of what paths of the view name, or of everything, and reads the contents.
///
/// # Errors
///
/// [`WalkError`] for a path under which nothing is found; whatever else cannot be read is a [`Finding`].
pub fn verify(
    vault: &Vault,
    root: &Dir,
    paths: &[PathBuf],
    options: &Options<'_>,
    stops: &(dyn Fn() -> bool + Sync),
    report: &(dyn Fn(Event) + Sync),
) -> Result<Verified, WalkError> {
    let (sender, receiver) = sync_channel(QUEUE_PARTS);
    let receiver = Mutex::new(receiver);
    let readers = Readers { options, stops, report };
    thread::scope(|scope| {
        for _ in 0..options.threads.get() {
            scope.spawn(|| readers.work(&receiver));
        }
        let mut chooser = Chooser {
            layout: vault.layout(),
            readers: &readers,
            queue: sender,
            seen: HashSet::new(),
            summary: Verified {
                directories: 1,
                ..Verified::default()
            },
        };
        walk(vault, root, paths, &mut chooser)?;
        // The readers end when the queue is empty and the sender gone.
        Ok(chooser.summary)
    })
}

/// Adds up the sizes of the files that [`verify`] would read, from their sizes on disk alone.
pub fn bytes_in(vault: &Vault, root: &Dir, paths: &[PathBuf]) -> u64 {
    let size = |dir: &Dir, disk: &str| {
        let size = dir.stat(disk).map_or(0, |stat| stat.st_size as u64);
        vault.layout().plain_size(CipherSize(size)).0
    };
    let everything = [PathBuf::new()];
    let paths = if paths.is_empty() { &everything[..] } else { paths };
    let mut bytes = 0;
    // What is not found is told of by the walk.
    for located in paths.iter().filter_map(|path| vault.locate(root, path).ok()) {
        if let Some(entry) = &located.entry {
            bytes += size(&located.dir, &entry.disk);
            continue;
        }
        tree::each_directory(located.dir, &mut |_, listed| {
            let Ok((dir, entries)) = listed else { return };
            for entry in entries.iter().filter(|entry| entry.kind == FileType::RegularFile) {
                let is_entry = matches!(
                    name::shape(&entry.name),
                    Shape::Inline(_) | Shape::Long | Shape::Conflict(..)
                );
                if let Some(disk) = std::str::from_utf8(&entry.name).ok().filter(|_| is_entry) {
                    bytes += size(dir, disk);
                }
            }
        });
    }
    bytes
}

/// A file being read.
struct Job {
    file: Arc<VaultFile>,
    place: Place,
    stat: Stat,
    /// All of it is read, so that its sum can be compared.
    whole: bool,
    /// Parts that are not read yet.
    left: AtomicUsize,
    found: Mutex<Found>,
}

/// What reading a file has brought.
#[derive(Default)]
struct Found {
    sum: BlockSum,
    damaged: Vec<Range<u64>>,
    failed: Option<VaultError>,
}

impl Job {
    fn content(&self) -> &FileContent {
        self.file.content().expect("only files with content are read")
    }

    /// Says what is wrong with the file, once all of its parts are read.
    fn problem(&self) -> Option<Problem> {
        let mut found = self.found.lock();
        if let Some(error) = found.failed.take() {
            return Some(unusable(error));
        }
        if !found.damaged.is_empty() {
            return Some(Problem::BlocksDamaged(merged(std::mem::take(&mut found.damaged))));
        }
        if !self.whole {
            return None;
        }
        let compared = self.content().check_sum(found.sum);
        compared.err().map(|error| unusable(error.into()))
    }
}

/// Puts ranges in order, and those together that touch.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => merged.push(range),
        }
    }
    merged
}

/// A part of a file, by its blocks.
struct Part {
    job: Arc<Job>,
    blocks: Range<u64>,
}

/// What all threads share.
struct Readers<'r> {
    options: &'r Options<'r>,
    stops: &'r (dyn Fn() -> bool + Sync),
    report: &'r (dyn Fn(Event) + Sync),
}

impl Readers<'_> {
    fn work(&self, queue: &Mutex<Receiver<Part>>) {
        loop {
            // Held while it waits: who else waits for a part waits for this.
            let part = queue.lock().recv();
            let Ok(part) = part else { return };
            if !(self.stops)() {
                self.read(part);
            }
        }
    }

    fn read(&self, Part { job, blocks }: Part) {
        let mut damaged: Vec<Range<u64>> = Vec::new();
        let sum = job
            .content()
            .verify_blocks(blocks, &mut |bytes| (self.report)(Event::Read(bytes)), &mut |blocks| {
                damaged.push(blocks)
            });
        {
            let mut found = job.found.lock();
            found.damaged.extend(merged(damaged));
            match sum {
                Ok(sum) => found.sum += sum,
                Err(ContentError::Damaged(block)) => found.damaged.push(block.0..block.0 + 1),
                Err(error) => found.failed = Some(error.into()),
            }
        }
        if job.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finish(&job);
        }
    }

    fn finish(&self, job: &Job) {
        match (job.problem(), self.options.known) {
            (Some(problem), _) => (self.report)(Event::Found(job.place.finding(problem))),
            (None, Some(known)) if job.whole => known.verified(&job.stat),
            (None, _) => {}
        }
    }
}

/// Chooses what is read, while it walks.
struct Chooser<'c> {
    layout: Layout,
    readers: &'c Readers<'c>,
    queue: SyncSender<Part>,
    /// Files with several names that were seen under another.
    seen: HashSet<u64>,
    summary: Verified,
}

impl Chooser<'_> {
    fn file(&mut self, place: &Place, stat: Stat, file: Arc<VaultFile>) {
        let Some(content) = file.content() else {
            // Never written: there is nothing to read.
            self.summary.files_read += 1;
            return;
        };
        let size = content.size().0;
        self.summary.bytes += size;
        if self.readers.options.known.is_some_and(|known| known.is_verified(&stat)) {
            self.summary.files_known += 1;
            (self.readers.report)(Event::Read(size));
            return;
        }
        let count = content.block_count();
        let step = PART_SIZE / self.layout.block_size();
        let all = (0..count)
            .step_by(step as usize)
            .map(|start| start..(start + step).min(count));
        let parts: Vec<_> = all.filter(|_| self.is_chosen()).collect();
        let len =
            |part: &Range<u64>| (part.end * self.layout.block_size()).min(size) - part.start * self.layout.block_size();
        self.summary.bytes_read += parts.iter().map(len).sum::<u64>();
        if parts.is_empty() && count > 0 {
            return;
        }
        self.summary.files_read += 1;
        let job = Arc::new(Job {
            whole: parts.len() as u64 == count.div_ceil(step),
            left: AtomicUsize::new(parts.len()),
            found: Mutex::default(),
            place: place.clone(),
            file,
            stat,
        });
        if parts.is_empty() {
            self.readers.finish(&job);
        }
        for blocks in parts {
            let job = job.clone();
            // It fails only when the readers are gone, which end after this.
            let _ = self.queue.send(Part { job, blocks });
        }
    }

    fn is_chosen(&self) -> bool {
        let Some(part) = self.readers.options.sample else {
            return true;
        };
        let drawn = u64::from_le_bytes(random::bytes()) as f64 / u64::MAX as f64;
        drawn < part
    }
}

impl Visitor for Chooser<'_> {
    fn entry(&mut self, entry: Entry<'_>) {
        (self.readers.report)(Event::Entry);
        if let Content::Directory(_) = entry.content {
            self.summary.directories += 1;
            return;
        }
        let Content::File(file) = entry.content else { return };
        if entry.stat.st_nlink > 1 && !self.seen.insert(entry.stat.st_ino) {
            return;
        }
        self.summary.files += 1;
        self.file(entry.place, entry.stat, file);
    }

    fn found(&mut self, finding: Finding) {
        (self.readers.report)(Event::Found(finding));
    }

    fn stops(&self) -> bool {
        (self.readers.stops)()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        let all = |ranges: &[Range<u64>]| merged(ranges.to_vec());
        assert_eq!(all(&[4..5, 0..1, 1..2, 7..9]), [0..2, 4..5, 7..9]);
        assert!(all(&[]).is_empty());
    }
}
