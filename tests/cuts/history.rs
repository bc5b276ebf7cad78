//! What a load did and when, and what must be there after a cut because of it.
//!
//! Each worker has a history of its own, of a tree that nobody else touches: steps follow each other, and each has a tick of one common clock from before it
//! began and one from after it was answered. A cut has a tick from before and one from after it too. So a step that was answered before the cut is *certain* to have
//! been answered, one that began after it cannot have happened, and between them is at most one.
//!
//! Syncing promises this, of what was done before:
//!
//! - fsync of a file: its content, and that it can be found under some name it has had since it got one.
//! - fsync of a directory: the names in it, and that the directory itself and what it lies in can be found.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// A clock that moves on when it is read.
#[derive(Debug, Default)]
pub struct Clock(AtomicU64);

impl Clock {
    pub fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

/// When the power was cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// A tick from before it.
    pub before: u64,
    /// A tick from after it.
    pub after: u64,
}

/// A file, directory or link of a history, numbered as they were made.
pub type ObjectId = usize;

/// The directory that all others of a history lie in.
pub const TOP: ObjectId = 0;

/// An entry: a directory, and a name in it.
pub type Entry = (ObjectId, Arc<str>);

/// What an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink(String),
}

/// What a step does.
#[derive(Clone, Debug)]
pub enum Action {
    /// An object gets a name, its first or another one.
    Bind(Entry, ObjectId),
    Unbind(Entry),
    /// What had the second name loses it.
    Rename(Entry, Entry),
    /// The bytes follow from the seed.
    Write {
        object: ObjectId,
        offset: u64,
        len: u64,
        seed: u64,
    },
    Truncate(ObjectId, u64),
    Punch {
        object: ObjectId,
        offset: u64,
        len: u64,
    },
    SyncFile(ObjectId),
    SyncDirectory(ObjectId),
    /// The vault was unmounted and its disk synced.
    SyncAll,
}

#[derive(Clone, Debug)]
struct Step {
    action: Action,
    start: u64,
    /// Never, for one that failed or that nobody waited for.
    end: u64,
}

#[derive(Debug)]
struct Log {
    kinds: Vec<Kind>,
    steps: Vec<Step>,
}

/// What one worker did.
#[derive(Clone, Debug)]
pub struct History {
    clock: Arc<Clock>,
    log: Arc<Mutex<Log>>,
}

impl History {
    pub fn new(clock: &Arc<Clock>) -> Self {
        History {
            clock: clock.clone(),
            log: Arc::new(Mutex::new(Log {
                kinds: vec![Kind::Directory],
                steps: Vec::new(),
            })),
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an object that has no name yet.
    pub fn add(&self, kind: Kind) -> ObjectId {
        let mut log = self.log();
        log.kinds.push(kind);
        log.kinds.len() - 1
    }

    /// Does something and remembers it.
    pub fn perform<T>(&self, action: Action, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let at = {
            let mut log = self.log();
            let start = self.clock.tick();
            log.steps.push(Step {
                action,
                start,
                end: u64::MAX,
            });
            log.steps.len() - 1
        };
        let result = act();
        match &result {
            Ok(_) => self.log().steps[at].end = self.clock.tick(),
            Err(error) if is_refusal(error) => drop(self.log().steps.pop()),
            Err(_) => {}
        }
        result
    }

    /// Returns what must be there after a cut.
    pub fn expected(&self, cut: Cut) -> Expected {
        let log = self.log();
        let possible = log.steps.iter().take_while(|step| step.start < cut.after);
        let mut expected = Expected::new(log.kinds.clone());
        for (at, step) in possible.enumerate() {
            expected.apply(at, step, step.end < cut.before);
        }
        expected
    }
}

/// Tells whether the filesystem cannot do that at all, or not with such a name: not a fault here.
pub fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EPERM | libc::ENAMETOOLONG)
    )
}

/// What may be there after a cut, and what must.
pub struct Expected {
    kinds: Vec<Kind>,
    /// What each entry was, and since which step.
    entries: BTreeMap<Entry, Vec<(usize, Option<ObjectId>)>>,
    /// As of the last step.
    current: HashMap<Entry, ObjectId>,
    /// The step whose sync made an entry certain.
    entry_floors: HashMap<Entry, usize>,
    objects: Vec<Object>,
    steps: Vec<Action>,
}

/// What is known of an object.
#[derive(Clone, Debug, Default)]
struct Object {
    names: Vec<Entry>,
    /// How many names it had, and since which step.
    counts: Vec<(usize, usize)>,
    /// The step whose sync made its existence certain.
    floor: Option<usize>,
    /// The step whose sync made its content certain.
    content_floor: Option<usize>,
    /// The steps that changed its content.
    changes: Vec<usize>,
}

/// What a file may hold.
pub struct Versions {
    /// Whether the first was synced.
    pub is_synced: bool,
    /// What was synced last, or nothing, and what it became by each step since.
    pub all: Vec<Vec<u8>>,
    /// What those steps changed, though perhaps to what it was.
    touched: Vec<Range<u64>>,
}

impl Versions {
    /// Tells whether a part of the file was changed since it was synced.
    pub fn is_touched(&self, part: Range<u64>) -> bool {
        let overlaps = |range: &Range<u64>| range.start < part.end && part.start < range.end;
        self.touched.iter().any(overlaps)
    }
}

impl Expected {
    fn new(kinds: Vec<Kind>) -> Self {
        let mut objects = vec![Object::default(); kinds.len()];
        objects[TOP].floor = Some(0);
        Expected {
            kinds,
            entries: BTreeMap::new(),
            current: HashMap::new(),
            entry_floors: HashMap::new(),
            objects,
            steps: Vec::new(),
        }
    }

    fn apply(&mut self, at: usize, step: &Step, is_certain: bool) {
        self.steps.push(step.action.clone());
        match &step.action {
            Action::Bind(entry, object) => self.bind(at, entry, Some(*object)),
            Action::Unbind(entry) => self.bind(at, entry, None),
            Action::Rename(from, to) => {
                let object = self.current.get(from).copied();
                self.bind(at, to, object);
                self.bind(at, from, None);
            }
            Action::Write { object, .. } | Action::Truncate(object, _) | Action::Punch { object, .. } => {
                self.objects[*object].changes.push(at);
            }
            Action::SyncFile(object) if is_certain => {
                self.objects[*object].content_floor = Some(at);
                self.found_from(at, *object);
            }
            Action::SyncDirectory(object) if is_certain => {
                self.names_certain(at, *object);
                self.found_from(at, *object);
            }
            Action::SyncAll if is_certain => {
                for object in 0..self.objects.len() {
                    self.objects[object].content_floor = Some(at);
                    self.names_certain(at, object);
                }
            }
            Action::SyncFile(_) | Action::SyncDirectory(_) | Action::SyncAll => {}
        }
    }

    /// Gives an entry to an object, or to none, and takes it from whose it was.
    fn bind(&mut self, at: usize, entry: &Entry, object: Option<ObjectId>) {
        let before = match object {
            Some(object) => self.current.insert(entry.clone(), object),
            None => self.current.remove(entry),
        };
        self.entries.entry(entry.clone()).or_default().push((at, object));
        if let Some(before) = before {
            let object = &mut self.objects[before];
            object.names.retain(|name| name != entry);
            object.counts.push((at, object.names.len()));
        }
        if let Some(object) = object {
            let object = &mut self.objects[object];
            object.names.push(entry.clone());
            object.counts.push((at, object.names.len()));
        }
    }

    /// An object can be found from now on, and so can what it lies in.
    fn found_from(&mut self, at: usize, mut object: ObjectId) {
        while object != TOP {
            self.objects[object].floor = Some(at);
            let Some((parent, _)) = self.objects[object].names.first() else {
                return;
            };
            object = *parent;
        }
    }

    fn names_certain(&mut self, at: usize, directory: ObjectId) {
        for (entry, bound) in &self.entries {
            if entry.0 == directory {
                self.entry_floors.insert(entry.clone(), at);
                if let Some((_, Some(object))) = bound.last() {
                    self.objects[*object].floor = Some(at);
                }
            }
        }
    }

    pub fn kind(&self, object: ObjectId) -> &Kind {
        &self.kinds[object]
    }

    /// Returns the names that were ever in a directory.
    pub fn names_in(&self, directory: ObjectId) -> impl Iterator<Item = &Arc<str>> {
        let within = self.entries.keys().filter(move |entry| entry.0 == directory);
        within.map(|entry| &entry.1)
    }

    /// Returns what an entry may be, nothing included, or `None` for one that never was.
    pub fn allowed(&self, entry: &Entry) -> Option<Vec<Option<ObjectId>>> {
        let bound = self.entries.get(entry)?;
        let floor = self.entry_floors.get(entry).copied();
        let mut allowed = Vec::new();
        // Before its first step it was not there.
        let mut since = None;
        for &(at, object) in bound {
            if floor.is_some_and(|floor| at < floor) {
                since = object;
            } else {
                allowed.push(object);
            }
        }
        allowed.push(since);
        allowed.dedup();
        Some(allowed)
    }

    /// Returns the objects that must be found somewhere.
    pub fn certain(&self) -> impl Iterator<Item = ObjectId> {
        let is_certain = |object: &Object| {
            let Some(floor) = object.floor else { return false };
            let before = object.counts.iter().rev().find(|(at, _)| *at < floor);
            let since = object.counts.iter().filter(|(at, _)| *at >= floor);
            before.into_iter().chain(since).all(|(_, count)| *count > 0) && before.is_some()
        };
        let certain = self
            .objects
            .iter()
            .enumerate()
            .filter(move |(_, object)| is_certain(object));
        certain.map(|(id, _)| id)
    }

    /// Returns the last name that an object is known to have had, for people.
    pub fn last_name(&self, object: ObjectId) -> String {
        let last = self.entries.iter().flat_map(|(entry, bound)| {
            let mine = bound.iter().filter(|(_, bound)| *bound == Some(object));
            mine.map(move |(at, _)| (*at, entry))
        });
        match last.max() {
            Some((_, (TOP, name))) => name.to_string(),
            Some((_, (parent, name))) => format!("{}/{name}", self.last_name(*parent)),
            None => format!("object {object}"),
        }
    }

    /// Returns what a file may hold.
    pub fn versions(&self, object: ObjectId) -> Versions {
        let Object {
            content_floor, changes, ..
        } = &self.objects[object];
        let mut all = vec![Vec::new()];
        let mut touched = Vec::new();
        for &at in changes {
            let last = all.last_mut().expect("it begins with one");
            if content_floor.is_some_and(|floor| at < floor) {
                change(last, &self.steps[at]);
                continue;
            }
            let mut next = last.clone();
            let range = change(&mut next, &self.steps[at]);
            // What lies behind an end that moves is made anew.
            let end = (last.len() != next.len()).then_some(last.len().min(next.len()) as u64);
            touched.push(range.start.min(end.unwrap_or(u64::MAX))..end.map_or(range.end, |_| u64::MAX));
            all.push(next);
        }
        Versions {
            is_synced: content_floor.is_some(),
            all,
            touched,
        }
    }

    /// Returns what was done last to an object, for who looks for the cause of a fault.
    pub fn story(&self, object: ObjectId) -> String {
        const LAST: usize = 12;
        let is_about = |action: &Action| match action {
            Action::Bind(_, other)
            | Action::Write { object: other, .. }
            | Action::Truncate(other, _)
            | Action::Punch { object: other, .. }
            | Action::SyncFile(other)
            | Action::SyncDirectory(other) => *other == object,
            Action::Unbind(entry) | Action::Rename(entry, _) => self
                .entries
                .get(entry)
                .is_some_and(|bound| bound.iter().any(|(_, bound)| *bound == Some(object))),
            Action::SyncAll => true,
        };
        let about: Vec<_> = self
            .steps
            .iter()
            .enumerate()
            .filter(|(_, step)| is_about(step))
            .collect();
        let last = &about[about.len().saturating_sub(LAST)..];
        let known = &self.objects[object];
        format!(
            "found since {:?}, content since {:?}: {last:?}",
            known.floor, known.content_floor
        )
    }
}

/// Does to bytes what a step does to a file; returns where.
fn change(content: &mut Vec<u8>, action: &Action) -> Range<u64> {
    match *action {
        Action::Write { offset, len, seed, .. } => {
            let end = (offset + len) as usize;
            if content.len() < end {
                content.resize(end, 0);
            }
            fill(&mut content[offset as usize..end], offset, seed);
            offset..offset + len
        }
        Action::Truncate(_, size) => {
            content.resize(size as usize, 0);
            size..size
        }
        Action::Punch { offset, len, .. } => {
            let end = content.len().min((offset + len) as usize);
            if let Some(range) = content.get_mut(offset as usize..end) {
                range.fill(0);
            }
            offset..offset + len
        }
        _ => 0..0,
    }
}

/// Fills a buffer with what a write with this seed has at this offset.
pub fn fill(buf: &mut [u8], offset: u64, seed: u64) {
    for (i, byte) in buf.iter_mut().enumerate() {
        let at = offset + i as u64;
        *byte = (mix(seed, at / 8) >> (at % 8 * 8)) as u8;
    }
}

/// SplitMix64 of two words.
fn mix(seed: u64, word: u64) -> u64 {
    let mut z = seed
        .wrapping_mul(0xD134_2543_DE82_EF95)
        .wrapping_add(word.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
