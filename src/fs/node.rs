//! Inodes that the kernel knows, and how to find each one's file on disk again.
//!
//! A node remembers a directory and a name, not a descriptor: there may be millions of nodes, and only thousands of descriptors.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use parking_lot::{Mutex, RwLock};
use rustix::fs::{FileType, Stat};

use super::{acl::Acl, attr::Time, leftovers::Arrivals};
use crate::{
    backing::{Dir, Stamp},
    ids::Epoch,
    vault::{DirectoryKeys, file::VaultFile},
};

/// The node number of the root, fixed by FUSE.
pub const ROOT: u64 = 1;

/// Stands for inode number 1 of the backing filesystem, which FUSE keeps for the root.
const NODE_OF_INO_1: u64 = u64::MAX - 1;

/// Nodes are spread over so many tables, each with a lock of its own.
const SHARDS: usize = 64;

/// How many times as much as it needs a table may have room for, and a little more, before it is made smaller.
const SPARE_CAPACITY: usize = 8;
const SPARE_CAPACITY_MIN: usize = 64;

/// Where a file's name is.
#[derive(Clone, Debug)]
pub struct Link {
    /// The directory.
    pub parent: Arc<Node>,
    /// The name, in plaintext.
    pub name: Box<[u8]>,
    /// The name on disk.
    pub disk: Box<str>,
    /// For a copy that a sync tool made in a conflict: the name whose place its content has.
    pub conflict_of: Option<Box<[u8]>>,
    /// Another of the file's names, which was known before this one.
    pub other: Option<Box<Link>>,
}

impl Link {
    /// Tells whether it is this entry on disk.
    pub fn is_entry(&self, parent: &Node, disk: &str) -> bool {
        self.parent.id == parent.id && *self.disk == *disk
    }

    /// Goes on as the other name of a file that has a new one.
    pub fn into_other(mut self) -> Option<Box<Link>> {
        self.other = None;
        Some(Box::new(self))
    }

    /// Tells whether it is this name.
    pub fn is(&self, parent: &Node, name: &[u8]) -> bool {
        self.parent.id == parent.id && *self.name == *name
    }
}

/// What is left of a file whose last name is gone.
#[derive(Clone, Debug)]
pub enum Remains {
    /// A directory is kept open.
    Dir(Arc<Dir>),
    /// Of everything else, the attributes it had; a regular file that is open has its own.
    Stat(Stat),
}

/// An attribute that the kernel asks for often and that few files have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// security.capability: asked for before the first write to a file.
    Capability = 1,
    /// system.posix_acl_access: asked for before a file is used by other than its owner.
    AccessAcl = 2,
}

/// How often attributes had been set.
#[derive(Clone, Copy, Debug)]
pub struct AttributesSet(u32);

/// Stands above the bits of [`Absent`].
const ATTRIBUTE_SET: u32 = 1 << 8;

/// An inode that the kernel knows.
#[derive(Debug)]
pub struct Node {
    /// The number, the same as `st_ino` in the mount.
    pub id: u64,
    /// Tells this node from an earlier one that had the same number.
    pub generation: u32,
    /// The kind of file.
    pub kind: FileType,
    /// A name that someone has linked a file to which is known under another: it can be removed, and not be opened.
    pub is_stray: bool,
    /// How often the kernel has looked it up, less how often it forgot it.
    lookups: AtomicU64,
    /// Open handles.
    opens: AtomicU32,
    /// Its last name is gone.
    dead: AtomicBool,
    /// Renamed, and its seal or header still admits the old name.
    pub unsettled: AtomicBool,
    /// How often its names were changed on disk, and how many of these changes are known to be durable.
    moves: AtomicU32,
    durable_moves: AtomicU32,
    /// Attributes that the kernel asks for often, and that this file is known not to have: bits of [`Absent`]. Above them, how often one was set.
    absent: AtomicU32,
    /// The size that the kernel goes by, in bytes, while the file is not open here.
    size: AtomicU64,
    /// The name under which it was found and that is its own, as [`name_number`] has it; 0 since it was renamed.
    admitted: AtomicU64,
    /// The kernel goes by a size that the file has not got: a write behind its end has failed.
    pub lacks_end: AtomicBool,
    /// In the sealer's queue.
    pub queued: AtomicBool,
    /// The epoch whose key wrapped the file's when it was last closed here; 0 for none.
    epoch: AtomicU32,
    /// One of its names; nothing for the root, and when that name is gone.
    ///
    /// Held while the file is renamed, linked, removed, loaded or sealed, since its place in the vault is part of its seal. Locked before `file`; when
    /// two are needed, in the order of their numbers.
    pub link: Mutex<Option<Link>>,
    /// What is left of a file without a name, for those who have it open.
    pub remains: Mutex<Option<Box<Remains>>>,
    /// The data file, while it is open or was a short time ago.
    pub file: Mutex<Option<Arc<VaultFile>>>,
    /// Of a regular file that was looked up: when the kernel holds that it was last modified, which is what applications saw.
    ///
    /// With its writeback cache the kernel writes later than applications do, and takes no time from here once it knows the file.
    pub mtime: Mutex<Time>,
    /// Of a directory; by itself, because of a million nodes most are files.
    pub directory: Option<Box<DirectoryState>>,
}

/// What is known of a directory.
#[derive(Debug, Default)]
pub struct DirectoryState {
    /// Its keys, once they were needed.
    pub keys: OnceLock<DirectoryKeys>,
    /// The access control list that what is made in it inherits, once it was looked for.
    pub default_acl: Mutex<Option<Option<Arc<Acl>>>>,
    /// Names on disk that sync tools made of entries, once it was looked for them.
    pub conflicts: Mutex<Option<Arc<Vec<String>>>>,
    /// Names that come into it for files whose headers may be there.
    pub arrivals: Arrivals,
    /// When its own header was looked at last, and what was there; where something else may change it.
    pub header: Mutex<Option<HeaderLook>>,
}

/// A look at a directory's header.
#[derive(Clone, Copy, Debug)]
pub struct HeaderLook {
    /// When.
    pub at: Instant,
    /// What was there.
    pub stamp: Option<Stamp>,
    /// It is gone, and may be only for the moment in which a sync tool puts another there.
    pub is_missed: bool,
}

impl Node {
    fn new(id: u64, generation: u32, kind: FileType, link: Option<Link>) -> Self {
        Node {
            id,
            generation,
            kind,
            is_stray: false,
            lookups: AtomicU64::new(0),
            opens: AtomicU32::new(0),
            dead: AtomicBool::new(false),
            unsettled: AtomicBool::new(false),
            moves: AtomicU32::new(0),
            durable_moves: AtomicU32::new(0),
            absent: AtomicU32::new(0),
            size: AtomicU64::new(0),
            admitted: AtomicU64::new(0),
            lacks_end: AtomicBool::new(false),
            queued: AtomicBool::new(false),
            epoch: AtomicU32::new(0),
            link: Mutex::new(link),
            remains: Mutex::new(None),
            file: Mutex::new(None),
            mtime: Mutex::new(Time::default()),
            directory: (kind == FileType::Directory).then(Box::default),
        }
    }

    /// Returns the node of another file, or of this one as another, with the same number. The kernel's count goes on for both together, since it names the
    /// number only; the generation tells it that they are two.
    fn successor(&self, kind: FileType, link: Option<Link>) -> Self {
        let mut node = Node::new(self.id, self.generation.wrapping_add(1), kind, link);
        node.lookups = AtomicU64::new(self.lookups.load(Ordering::Acquire));
        node
    }

    /// Returns a directory's keys, if they are known.
    pub fn keys(&self) -> Option<&DirectoryKeys> {
        self.directory.as_ref()?.keys.get()
    }

    /// Tells whether its last name is gone.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Notes that its last name is gone, or about to go; tells whether nothing had said so before.
    pub fn kill(&self) -> bool {
        !self.dead.swap(true, Ordering::AcqRel)
    }

    /// Notes that its last name was to go, and stays.
    pub fn revive(&self) {
        self.dead.store(false, Ordering::Release);
    }

    /// Notes that a name was changed on disk; with the link locked.
    pub fn moved(&self) {
        self.admitted.store(0, Ordering::Release);
        self.moves.fetch_add(1, Ordering::AcqRel);
    }

    /// Returns how often names were changed on disk, to be asked before the changes are made durable.
    pub fn moves(&self) -> u32 {
        self.moves.load(Ordering::Acquire)
    }

    /// Tells whether a change of names may not be durable.
    pub fn move_needs_sync(&self) -> bool {
        self.moves() != self.durable_moves.load(Ordering::Acquire)
    }

    /// Notes that so many changes of names are durable.
    pub fn moves_were_synced(&self, moves: u32) {
        self.durable_moves.store(moves, Ordering::Release);
    }

    /// Returns the size that the kernel goes by, in bytes, while the file is not open here.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Notes what the kernel goes by.
    pub fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// Tells whether a name is known to be its own, without the link's lock.
    pub fn is_admitted(&self, parent: &Node, name: &[u8]) -> bool {
        self.admitted.load(Ordering::Acquire) == name_number(parent, name)
    }

    /// Notes that a name is its own; with the link locked.
    pub fn admit(&self, parent: &Node, name: &[u8]) {
        self.admitted.store(name_number(parent, name), Ordering::Release);
    }

    /// Tells whether it is the node of a file on disk, by that one's inode number.
    pub fn is_of_inode(&self, inode: u64) -> bool {
        let id = node_id(inode);
        self.id == if self.is_stray { !id } else { id }
    }

    /// Tells whether it is known not to have an attribute.
    pub fn lacks(&self, attribute: Absent) -> bool {
        self.absent.load(Ordering::Acquire) & attribute as u32 != 0
    }

    /// Returns what [`found_without`](Self::found_without) has to be told, to be asked before the attribute is looked for.
    pub fn attributes_set(&self) -> AttributesSet {
        AttributesSet(self.absent.load(Ordering::Acquire) / ATTRIBUTE_SET)
    }

    /// Notes that it does not have an attribute, unless one was set since.
    pub fn found_without(&self, attribute: Absent, since: AttributesSet) {
        let note = |absent| (absent / ATTRIBUTE_SET == since.0).then_some(absent | attribute as u32);
        let _ = self.absent.fetch_update(Ordering::AcqRel, Ordering::Acquire, note);
    }

    /// Notes that it may have an attribute now; to be called before it is set and after.
    pub fn may_have(&self, attribute: Absent) {
        let note = |absent: u32| Some((absent & !(attribute as u32)).wrapping_add(ATTRIBUTE_SET));
        let _ = self.absent.fetch_update(Ordering::AcqRel, Ordering::Acquire, note);
    }

    /// Tells whether a handle is open.
    pub fn is_open(&self) -> bool {
        self.opens.load(Ordering::Acquire) > 0
    }

    /// Tells whether the kernel has forgotten it.
    pub fn is_forgotten(&self) -> bool {
        self.lookups.load(Ordering::Acquire) == 0
    }

    /// Closes the file of a node without a name, unless a handle has it open.
    pub fn close_if_unused(&self) {
        let mut file = self.file.lock();
        if !self.is_open() {
            *file = None;
        }
    }

    /// Returns the epoch whose key wraps that of the file, as far as it was ever opened here.
    pub fn epoch(&self) -> Option<Epoch> {
        let open = self.file.lock().as_ref().and_then(|file| file.epoch());
        open.or_else(|| Some(Epoch(self.epoch.load(Ordering::Acquire))).filter(|epoch| epoch.0 > 0))
    }

    /// Notes the epoch of a file that is about to be closed: the kernel may still have what was read from it.
    pub fn remember_epoch(&self, file: &VaultFile) {
        if let Some(epoch) = file.epoch() {
            self.epoch.store(epoch.0, Ordering::Release);
        }
    }

    /// Counts one more open handle.
    pub fn opened(&self) {
        self.opens.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts one handle less; tells whether it was the last.
    pub fn released(&self) -> bool {
        let one_less = |opens: u32| opens.checked_sub(1);
        self.opens.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less) == Ok(1)
    }

    /// Notes as what its directory is known now: that may have been renewed.
    pub fn is_below(&self, parent: &Arc<Node>, disk: &str) {
        // Whoever holds the lock knows better.
        if let Some(mut link) = self.link.try_lock()
            && let Some(at) = link.as_mut().filter(|at| at.is_entry(parent, disk))
        {
            at.parent = parent.clone();
        }
    }

    /// Tells whether it is known by the name that it was known by. Who changes the name on disk holds the lock meanwhile.
    pub fn is_still_at(&self, link: &Link) -> bool {
        let now = self.link.lock();
        now.as_ref().is_some_and(|now| now.is_entry(&link.parent, &link.disk))
    }
}

impl Drop for Node {
    /// Lets go of the directories above one after the other: each from within the drop of the one below would take as much stack as a path is deep.
    fn drop(&mut self) {
        let mut links: Vec<_> = self.link.get_mut().take().into_iter().collect();
        while let Some(Link { parent, other, .. }) = links.pop() {
            links.extend(other.map(|other| *other));
            if let Some(mut parent) = Arc::into_inner(parent) {
                links.extend(parent.link.get_mut().take());
            }
        }
    }
}

/// All nodes that the kernel knows.
#[derive(Debug)]
pub struct NodeTable {
    shards: [RwLock<HashMap<u64, Arc<Node>>>; SHARDS],
    /// How many nodes were removed since memory was last given back.
    pub removed: AtomicUsize,
}

/// Returns the node number for a file on disk.
pub fn node_id(ino: u64) -> u64 {
    if ino == ROOT { NODE_OF_INO_1 } else { ino }
}

/// Returns a number for a name in a directory, which nobody else can find another name for; never 0.
fn name_number(parent: &Node, name: &[u8]) -> u64 {
    static KEY: OnceLock<RandomState> = OnceLock::new();
    KEY.get_or_init(RandomState::new).hash_one((parent.id, name)) | 1
}

impl NodeTable {
    /// Makes a table with the root in it.
    pub fn new() -> (Self, Arc<Node>) {
        let root = Arc::new(Node::new(ROOT, 0, FileType::Directory, None));
        let table = NodeTable {
            shards: std::array::from_fn(|_| RwLock::new(HashMap::new())),
            removed: AtomicUsize::new(0),
        };
        table.shard(ROOT).write().insert(ROOT, root.clone());
        (table, root)
    }

    fn shard(&self, id: u64) -> &RwLock<HashMap<u64, Arc<Node>>> {
        // Inode numbers are dense, so the low bits spread well.
        &self.shards[(id as usize) % SHARDS]
    }

    /// Returns a node by its number.
    pub fn find(&self, id: u64) -> Option<Arc<Node>> {
        self.shard(id).read().get(&id).cloned()
    }

    /// Returns the node of a file found on disk under a name, and counts a look-up. A regular file that is known keeps the name it is known by: whether
    /// this one is its own too is to be seen. A directory that someone else has moved is another one, to be looked at anew. `size` is in bytes.
    pub fn look_up(&self, (stat, size): (&Stat, u64), parent: &Arc<Node>, name: &[u8], disk: &str) -> Arc<Node> {
        let link = || Link {
            parent: parent.clone(),
            name: name.into(),
            disk: disk.into(),
            conflict_of: None,
            other: None,
        };
        let id = node_id(stat.st_ino);
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut shard = self.shard(id).write();
        let mut is_new = false;
        let node = match shard.entry(id) {
            Entry::Vacant(entry) => {
                let node = entry.insert(Arc::new(Node::new(id, 0, kind, Some(link())))).clone();
                node.admit(parent, name);
                node
            }
            Entry::Occupied(mut entry) => {
                let known = entry.get();
                if kind == FileType::Directory
                    && let Some(mut current) = known.link.try_lock()
                    && current.as_ref().is_some_and(|at| !at.is(parent, name))
                {
                    // Someone else has moved it: who does so here holds the lock. What is open in it goes on by where it is now.
                    *current = Some(link());
                    known.kill();
                }
                if known.is_dead() || known.kind != kind {
                    // The number was given to another file before the kernel forgot the one that had it.
                    let node = known.successor(kind, Some(link()));
                    node.admit(parent, name);
                    is_new = true;
                    entry.insert(Arc::new(node));
                } else if kind != FileType::RegularFile
                    // Any of several names will do, as long as it is there. Whoever holds the lock knows better.
                    && let Some(mut current) = known.link.try_lock()
                    && !current.as_ref().is_some_and(|at| at.is(parent, name))
                {
                    let before = current
                        .take()
                        .filter(|_| stat.st_nlink > 1 && kind != FileType::Directory);
                    *current = Some(Link {
                        other: before.and_then(Link::into_other),
                        ..link()
                    });
                }
                entry.get().clone()
            }
        };
        if (node.lookups.fetch_add(1, Ordering::AcqRel) == 0 || is_new) && kind == FileType::RegularFile {
            node.set_size(size);
            *node.mtime.lock() = Time {
                seconds: stat.st_mtime,
                nanos: stat.st_mtime_nsec as u32,
            };
        }
        node
    }

    /// Has the kernel look a file up again that it goes by something else of: it is another one then, that is open already.
    pub fn renew(&self, node: &Arc<Node>, link: &Link, file: Arc<VaultFile>) -> Arc<Node> {
        let mut shard = self.shard(node.id).write();
        node.kill();
        let renewed = node.successor(node.kind, Some(link.clone()));
        renewed.admit(&link.parent, &link.name);
        *renewed.mtime.lock() = *node.mtime.lock();
        *renewed.file.lock() = Some(file);
        let renewed = Arc::new(renewed);
        if let Some(known) = shard.get_mut(&node.id).filter(|known| Arc::ptr_eq(known, node)) {
            *known = renewed.clone();
        }
        renewed
    }

    /// Has a directory known anew, without its keys, and returns its node. What was found in it before stays with the node that had those.
    ///
    /// To the kernel it is the same: nothing that it was told holds for longer than a look at the header.
    pub fn renew_directory(&self, node: &Arc<Node>) -> Arc<Node> {
        let link = node.link.lock().clone();
        let mut shard = self.shard(node.id).write();
        let Some(known) = shard.get_mut(&node.id).filter(|known| Arc::ptr_eq(known, node)) else {
            // Someone else was first.
            return shard.get(&node.id).unwrap_or(node).clone();
        };
        node.kill();
        let mut renewed = node.successor(node.kind, link);
        renewed.generation = node.generation;
        *known = Arc::new(renewed);
        known.clone()
    }

    /// Returns the node that stands for names of a file which are not its own, and counts a look-up.
    pub fn look_up_stray(&self, stat: &Stat, parent: &Arc<Node>, name: &[u8], disk: &str) -> Arc<Node> {
        let link = Link {
            parent: parent.clone(),
            name: name.into(),
            disk: disk.into(),
            conflict_of: None,
            other: None,
        };
        // No filesystem counts its inodes from the end.
        let id = !node_id(stat.st_ino);
        let mut shard = self.shard(id).write();
        let node = shard.entry(id).or_insert_with(|| {
            let mut node = Node::new(id, 0, FileType::RegularFile, None);
            node.is_stray = true;
            Arc::new(node)
        });
        if let Some(mut current) = node.link.try_lock() {
            *current = Some(link);
        }
        node.lookups.fetch_add(1, Ordering::AcqRel);
        node.clone()
    }

    /// Notes that the kernel forgot `count` look-ups; returns the node if none is left.
    ///
    /// It stays in the table until [`remove_unused`](Self::remove_unused): while its file is open here, a second node of the same file would write
    /// past the first one's back.
    pub fn forget(&self, id: u64, count: u64) -> Option<Arc<Node>> {
        if id == ROOT {
            return None;
        }
        let shard = self.shard(id).write();
        let node = shard.get(&id)?;
        let before = node.lookups.load(Ordering::Acquire);
        debug_assert!(before >= count, "the kernel forgot more than it looked up");
        let left = before.saturating_sub(count);
        node.lookups.store(left, Ordering::Release);
        (left == 0).then(|| node.clone())
    }

    /// Removes a node that neither the kernel knows nor anything here uses; after it the directories above that only it still used.
    pub fn remove_unused(&self, node: Arc<Node>) {
        let mut nodes = vec![node];
        while let Some(node) = nodes.pop() {
            if !self.remove_one(&node) {
                continue;
            }
            let link = node.link.lock().take();
            if let Some(Link { parent, other, .. }) = link {
                let parents = [Some(parent), other.map(|other| other.parent)];
                nodes.extend(parents.into_iter().flatten().filter(|parent| parent.is_forgotten()));
            }
        }
    }

    fn remove_one(&self, node: &Arc<Node>) -> bool {
        let mut shard = self.shard(node.id).write();
        // A directory is in use while nodes of entries refer to it: they must hear of it when it is renamed. One reference is the table's, one
        // is at hand.
        let is_used = node.id == ROOT
            || !node.is_forgotten()
            || node.queued.load(Ordering::Acquire)
            || node.is_open()
            || node.file.try_lock().is_none_or(|file| file.is_some())
            || (node.kind == FileType::Directory && Arc::strong_count(node) > 2);
        let is_known = shard.get(&node.id).is_some_and(|known| Arc::ptr_eq(known, node));
        if is_known && !is_used {
            shard.remove(&node.id);
            self.removed.fetch_add(1, Ordering::Relaxed);
            if shard.capacity() > shard.len() * SPARE_CAPACITY + SPARE_CAPACITY_MIN {
                let room = shard.len() * 2;
                shard.shrink_to(room);
            }
        }
        is_known && !is_used
    }

    /// Returns the nodes whose file is of an epoch, as far as that was ever opened here.
    pub fn of_epoch(&self, epoch: Epoch) -> Vec<Arc<Node>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            // Looked at without the lock: a file that is being opened on a slow disk would hold up others. A directory that is held here could not go.
            let is_file = |node: &&Arc<Node>| node.kind == FileType::RegularFile;
            let files: Vec<_> = shard.read().values().filter(is_file).cloned().collect();
            found.extend(files.into_iter().filter(|node| node.epoch() == Some(epoch)));
        }
        found
    }

    /// Returns how many nodes there are.
    pub fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_that_is_set_while_it_is_looked_for_is_not_said_to_be_absent() {
        let node = Node::new(2, 0, FileType::RegularFile, None);
        let since = node.attributes_set();
        node.may_have(Absent::AccessAcl);
        node.found_without(Absent::AccessAcl, since);
        assert!(!node.lacks(Absent::AccessAcl));

        let since = node.attributes_set();
        node.found_without(Absent::AccessAcl, since);
        assert!(node.lacks(Absent::AccessAcl));
        assert!(!node.lacks(Absent::Capability));
    }

    #[test]
    fn a_node_is_let_go_of_however_deep_it_is() {
        const DEPTH: u64 = 100_000;
        let mut node = Arc::new(Node::new(ROOT, 0, FileType::Directory, None));
        let root = Arc::downgrade(&node);
        for id in 2..DEPTH {
            let link = |other| Link {
                parent: node.clone(),
                name: b"d".as_slice().into(),
                disk: "d".into(),
                conflict_of: None,
                other,
            };
            let link = link(link(None).into_other());
            node = Arc::new(Node::new(id, 0, FileType::Directory, Some(link)));
        }
        drop(node);
        assert!(root.upgrade().is_none());
    }

    #[test]
    fn a_handle_that_was_never_counted_is_not_given_back() {
        let node = Node::new(2, 0, FileType::RegularFile, None);
        assert!(!node.released());
        assert!(!node.is_open());
    }
}
