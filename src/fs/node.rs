//! Inodes that the kernel knows, and how to find each one's file on disk again.
//!
//! A node remembers a directory and a name, not a descriptor: there may be millions of nodes, and only thousands of descriptors.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use rustix::fs::{FileType, Stat};

use super::{acl::Acl, attr::Time};
use crate::{
    backing::{Dir, DirStream},
    vault::{DirectoryKeys, file::VaultFile},
};

/// The node number of the root, fixed by FUSE.
pub const ROOT: u64 = 1;

/// Stands for inode number 1 of the backing filesystem, which FUSE keeps for the root.
const NODE_OF_INO_1: u64 = u64::MAX - 1;

/// Nodes are spread over so many tables, each with a lock of its own.
const SHARDS: usize = 64;

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
}

/// What is left of a file whose last name is gone.
#[derive(Clone, Debug)]
pub enum Remains {
    /// A directory is kept open.
    Dir(Arc<Dir>),
    /// Of everything else, the attributes it had; a regular file that is open has its own.
    Stat(Box<Stat>),
}

/// An attribute that the kernel asks for often and that few files have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// security.capability: asked for before the first write to a file.
    Capability = 1,
    /// system.posix_acl_access: asked for before a file is used by other than its owner.
    AccessAcl = 2,
}

/// An inode that the kernel knows.
#[derive(Debug)]
pub struct Node {
    /// The number, the same as `st_ino` in the mount.
    pub id: u64,
    /// Tells this node from an earlier one that had the same number.
    pub generation: u64,
    /// The kind of file.
    pub kind: FileType,
    /// How often the kernel has looked it up, less how often it forgot it.
    lookups: AtomicU64,
    /// Open handles.
    opens: AtomicU32,
    /// Its last name is gone.
    dead: AtomicBool,
    /// Renamed, and its seal or header still admits the old name.
    pub unsettled: AtomicBool,
    /// Attributes that the kernel asks for often, and that this file is known not to have: bits of [`Absent`].
    absent: AtomicU8,
    /// In the sealer's queue.
    pub queued: AtomicBool,
    /// One of its names; nothing for the root, and when that name is gone.
    ///
    /// Held while the file is renamed, linked, loaded or sealed, since its place in the vault is part of its seal. Locked before `file`; when
    /// two are needed, in the order of their numbers.
    pub link: Mutex<Option<Link>>,
    /// What is left of a file without a name, for those who have it open.
    pub remains: Mutex<Option<Remains>>,
    /// The data file, while it is open or was a short time ago.
    pub file: Mutex<Option<Arc<VaultFile>>>,
    /// Of a regular file: when the kernel holds that it was last modified, which is what applications saw.
    ///
    /// With its writeback cache the kernel writes later than applications do, and takes no time from here once it knows the file.
    pub mtime: Mutex<Option<Time>>,
    /// Of a directory: its keys, once they were needed.
    pub keys: OnceLock<DirectoryKeys>,
    /// Of a directory: a listing under way.
    pub stream: Mutex<Option<DirStream>>,
    /// Of a directory: the access control list that what is made in it inherits, once it was looked for.
    pub default_acl: Mutex<Option<Option<Arc<Acl>>>>,
    /// Of a directory: names on disk that sync tools made of entries, once it was looked for them.
    pub conflicts: Mutex<Option<Arc<Vec<String>>>>,
}

impl Node {
    fn new(id: u64, generation: u64, kind: FileType, link: Option<Link>) -> Self {
        Node {
            id,
            generation,
            kind,
            lookups: AtomicU64::new(0),
            opens: AtomicU32::new(0),
            dead: AtomicBool::new(false),
            unsettled: AtomicBool::new(false),
            absent: AtomicU8::new(0),
            queued: AtomicBool::new(false),
            link: Mutex::new(link),
            remains: Mutex::new(None),
            file: Mutex::new(None),
            mtime: Mutex::new(None),
            keys: OnceLock::new(),
            stream: Mutex::new(None),
            default_acl: Mutex::new(None),
            conflicts: Mutex::new(None),
        }
    }

    /// Tells whether its last name is gone.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Notes that its last name is gone.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::Release);
    }

    /// Tells whether it is known not to have an attribute.
    pub fn lacks(&self, attribute: Absent) -> bool {
        self.absent.load(Ordering::Acquire) & attribute as u8 != 0
    }

    /// Notes that it does not have an attribute.
    pub fn found_without(&self, attribute: Absent) {
        self.absent.fetch_or(attribute as u8, Ordering::AcqRel);
    }

    /// Notes that it may have an attribute now.
    pub fn may_have(&self, attribute: Absent) {
        self.absent.fetch_and(!(attribute as u8), Ordering::AcqRel);
    }

    /// Tells whether a handle is open.
    pub fn is_open(&self) -> bool {
        self.opens.load(Ordering::Acquire) > 0
    }

    /// Tells whether the kernel has forgotten it.
    pub fn is_forgotten(&self) -> bool {
        self.lookups.load(Ordering::Acquire) == 0
    }

    /// Counts one more open handle.
    pub fn opened(&self) {
        self.opens.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts one handle less; tells whether it was the last.
    pub fn released(&self) -> bool {
        self.opens.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Tells whether this is its name.
    pub fn is_at(&self, parent: &Node, name: &[u8]) -> bool {
        let link = self.link.lock();
        link.as_ref()
            .is_some_and(|link| link.parent.id == parent.id && *link.name == *name)
    }
}

/// All nodes that the kernel knows.
#[derive(Debug)]
pub struct NodeTable {
    shards: [RwLock<HashMap<u64, Arc<Node>>>; SHARDS],
}

/// Returns the node number for a file on disk.
pub fn node_id(ino: u64) -> u64 {
    if ino == ROOT { NODE_OF_INO_1 } else { ino }
}

impl NodeTable {
    /// Makes a table with the root in it.
    pub fn new() -> (Self, Arc<Node>) {
        let root = Arc::new(Node::new(ROOT, 0, FileType::Directory, None));
        let table = NodeTable {
            shards: std::array::from_fn(|_| RwLock::new(HashMap::new())),
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

    /// Returns the node of a file found on disk under a name, and counts a look-up.
    pub fn look_up(&self, stat: &Stat, parent: &Arc<Node>, name: &[u8], disk: &str) -> Arc<Node> {
        let link = || Link {
            parent: parent.clone(),
            name: name.into(),
            disk: disk.into(),
            conflict_of: None,
        };
        let id = node_id(stat.st_ino);
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut shard = self.shard(id).write();
        let node = match shard.entry(id) {
            Entry::Vacant(entry) => entry.insert(Arc::new(Node::new(id, 0, kind, Some(link())))).clone(),
            Entry::Occupied(mut entry) => {
                let known = entry.get();
                if known.is_dead() || known.kind != kind {
                    // The number was given to another file before the kernel forgot the one that had it. The kernel's count goes on for both
                    // together, since it names the number only; the generation tells it that they are two.
                    let node = Node::new(id, known.generation + 1, kind, Some(link()));
                    node.lookups
                        .store(known.lookups.load(Ordering::Acquire), Ordering::Release);
                    entry.insert(Arc::new(node));
                } else {
                    // Any of several names will do, as long as it is there. Whoever holds the lock knows better.
                    if let Some(mut current) = known.link.try_lock()
                        && !current
                            .as_ref()
                            .is_some_and(|at| at.parent.id == parent.id && *at.name == *name)
                    {
                        *current = Some(link());
                    }
                }
                entry.get().clone()
            }
        };
        if node.lookups.fetch_add(1, Ordering::AcqRel) == 0 && kind == FileType::RegularFile {
            *node.mtime.lock() = Some(Time {
                seconds: stat.st_mtime,
                nanos: stat.st_mtime_nsec as u32,
            });
        }
        node
    }

    /// Takes back one look-up that the kernel was not told of.
    pub fn undo_look_up(&self, id: u64) {
        self.forget(id, 1);
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
        let mut next = Some(node);
        while let Some(node) = next {
            if !self.remove_one(&node) {
                return;
            }
            next = node
                .link
                .lock()
                .take()
                .map(|link| link.parent)
                .filter(|parent| parent.is_forgotten());
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
        }
        is_known && !is_used
    }

    /// Returns how many nodes there are.
    pub fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }
}
