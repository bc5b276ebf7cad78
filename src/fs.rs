//! The operations of a filesystem on a vault: no FUSE type, no system call of its own.
//!
//! Everything here works on node numbers and names in plaintext. `fuse` calls it for a mount, `cli` for reading a vault without one, and tests
//! without either.

mod acl;
mod attr;
mod directory;
mod error;
mod file;
mod late;
mod leftovers;
mod listing;
mod node;
mod record;
mod sealer;
mod stray;
mod xattr;

use std::{
    num::NonZeroUsize,
    os::fd::AsRawFd,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use lru::LruCache;
use parking_lot::Mutex;
use rustix::{
    fs::{FileType, Stat},
    io::Errno,
};

pub use acl::ACCESS as ACCESS_LIST;
pub use attr::{Attr, SetAttr, SetTime, Time};
pub use directory::NameIn;
pub use error::FsError;
pub use file::Allocate;
pub use leftovers::Leftovers;
pub use listing::{Listed, ListedPlus};
pub use node::{Node, ROOT};
pub use record::Watch;

use self::{
    late::Late,
    leftovers::Unused,
    listing::Listing,
    node::{DirectoryState, HeaderLook, Link, NodeTable, Remains, node_id},
    sealer::SealQueue,
};
use crate::{
    backing::{BackingFile, Dir, Entry, Storage, process},
    format::{
        link,
        name::{DIRECTORY_HEADER, NAME_MAX},
    },
    ids::Epoch,
    vault::{
        DirectoryKeys, Vault, VaultError,
        file::{FileContent, FileJournal, FoundAt, VaultFile},
        journal::InVault,
    },
};

/// Listings that can go on where they stopped: each holds a descriptor, and what one system call read.
const LISTINGS_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("it is not 0");

/// How often something is done again because a name was changed meanwhile.
const RENAMES_MAX: usize = 100;

/// How often and how long what finds no room waits for that of files that were removed just before.
const ROOM_ATTEMPTS: usize = 20;
const ROOM_PATIENCE: Duration = Duration::from_millis(10);
const ROOM_PATIENCE_MAX: Duration = Duration::from_millis(200);
const REMOVED_LATELY: Duration = Duration::from_secs(1);

/// How often an entry is looked at that someone else changes.
const CHANGES_MAX: usize = 4;

/// Descriptors that no data file gets; fewer where there are few at all.
const DESCRIPTORS_KEPT: u64 = 64;

/// How long a look-up waits for who renames, opens or seals a file that has another name.
const LINK_PATIENCE: Duration = Duration::from_secs(10);

/// How long an attribute waits for who opens or closes the file.
const FILE_PATIENCE: Duration = Duration::from_millis(50);

/// How long a directory's header is taken for what it was when it was last looked at, while something else may change the vault.
const HEADER_AGE_MAX: Duration = Duration::from_secs(1);

/// The result of an operation.
pub type FsResult<T> = Result<T, FsError>;

/// How a filesystem behaves; decided once, when it is made.
#[derive(Clone, Copy, Debug)]
pub struct FsOptions {
    /// Nothing may be changed.
    pub read_only: bool,
    /// Something else may change the backing directory at the same time.
    pub shared: bool,
    /// The user id that owns what this process creates.
    pub own_uid: u32,
    /// The group id that owns what this process creates.
    pub own_gid: u32,
    /// POSIX access control lists govern who may do what.
    pub acl: bool,
    /// Descriptors that caches may hold, of files and directories each.
    pub cached_descriptors: usize,
    /// What is written over durable blocks goes to a journal first, so that a power cut leaves none in half.
    pub journal: bool,
}

/// Who asks for an operation.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id; 0 for a process that cannot be seen from here.
    pub pid: u32,
    /// Permissions that the process never grants; the kernel has taken them away already unless lists govern access.
    pub umask: u32,
}

impl Caller {
    /// Tells whether the caller is in a group, or need not be.
    fn is_in_group(&self, gid: u32) -> bool {
        self.uid == 0 || self.gid == gid || process::is_in_group(self.pid, gid)
    }
}

/// A filesystem on an opened vault.
#[derive(Debug)]
pub struct Fs {
    vault: Vault,
    options: FsOptions,
    nodes: NodeTable,
    root: Arc<Node>,
    root_dir: Arc<Dir>,
    /// The device of the backing directory: what is mounted inside it is not part of the vault.
    device: u64,
    /// Many files are made durable by one sync of the backing filesystem; not all filesystems do it.
    syncs_at_once: bool,
    /// What is written back is on disk before names that are changed afterwards, without a sync.
    contents_first: bool,
    /// Directories in use lately, by node number.
    dirs: Mutex<LruCache<u64, Arc<Dir>>>,
    /// Files that no handle has open but that were in use lately, by node number.
    idle_files: Mutex<LruCache<u64, Arc<Node>>>,
    /// Files without a name that no handle has open, kept open until the kernel forgets them, by node number.
    removed_files: Mutex<LruCache<u64, Arc<Node>>>,
    /// Headers that may have no use any more, and wait for a look at their directories.
    unused_headers: Mutex<Vec<Unused>>,
    /// What waits to be removed, where changes of names may reach the disk in another order.
    late: Option<Late>,
    /// When a file's last name was last removed: what it took may not be free yet.
    removed_at: Mutex<Option<Instant>>,
    /// Listings under way, by the directory's node number and where they go on.
    listings: Mutex<LruCache<(u64, u64), Listing>>,
    seal_queue: SealQueue,
    journal: Option<Arc<FileJournal>>,
    /// The local record, where there is one.
    watch: Option<Watch>,
    /// Data files have descriptors below this one.
    data_files_end: u64,
}

/// A node with its attributes: what a look-up gives.
#[derive(Debug)]
pub struct Found {
    /// The node; the look-up was counted.
    pub node: Arc<Node>,
    /// Its attributes.
    pub attr: Attr,
}

impl Fs {
    /// Makes a filesystem on an opened vault.
    ///
    /// # Errors
    ///
    /// What reading the root's attributes gives.
    pub fn new(mut vault: Vault, root_dir: Dir, options: FsOptions) -> FsResult<Self> {
        let capacity = NonZeroUsize::new(options.cached_descriptors).unwrap_or(NonZeroUsize::MIN);
        let (nodes, root) = NodeTable::new();
        if let Some(state) = &root.directory {
            state.keys.get_or_init(|| vault.root_keys());
        }
        if options.shared {
            vault.watch_header(root_dir.open_dir(".")?);
        }
        let device = root_dir.stat_self()?.st_dev;
        let syncs_at_once = root_dir.can_sync_filesystem();
        let contents_first = root_dir.keeps_contents_first();
        let late = (!root_dir.keeps_order()).then(Late::default);
        let journal = if options.journal && !options.read_only {
            let home = Box::new(InVault::new(root_dir.open_dir(".")?));
            let files_max = options.cached_descriptors;
            Some(Arc::new(FileJournal::new(
                home,
                vault.id(),
                vault.journal_key(),
                files_max,
            )))
        } else {
            None
        };
        Ok(Fs {
            vault,
            options,
            nodes,
            root,
            root_dir: Arc::new(root_dir),
            device,
            syncs_at_once,
            contents_first,
            dirs: Mutex::new(LruCache::new(capacity)),
            idle_files: Mutex::new(LruCache::new(capacity)),
            removed_files: Mutex::new(LruCache::new(capacity)),
            unused_headers: Mutex::default(),
            late,
            removed_at: Mutex::default(),
            listings: Mutex::new(LruCache::new(LISTINGS_MAX)),
            seal_queue: SealQueue::new(options.cached_descriptors),
            journal,
            watch: None,
            data_files_end: process::descriptor_limit()
                .map_or(u64::MAX, |limit| limit - DESCRIPTORS_KEPT.min(limit / 4)),
        })
    }

    /// Returns the vault.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Returns how the filesystem behaves.
    pub fn options(&self) -> &FsOptions {
        &self.options
    }

    /// Returns the state of the backing filesystem, in blocks of plaintext: what is said to be free can be written, though ciphertext is longer.
    ///
    /// # Errors
    ///
    /// What fstatvfs(3) gives.
    pub fn stat_filesystem(&self) -> FsResult<rustix::fs::StatVfs> {
        let mut stat = self.root_dir.statvfs()?;
        let layout = self.vault.layout();
        for blocks in [&mut stat.f_blocks, &mut stat.f_bfree, &mut stat.f_bavail] {
            let plain = u128::from(*blocks) * u128::from(layout.block_size()) / u128::from(layout.stride());
            *blocks = plain as u64;
        }
        Ok(stat)
    }

    /// Returns how many inodes the kernel knows.
    pub fn node_count(&self) -> usize {
        self.nodes.count()
    }

    fn node(&self, id: u64) -> FsResult<Arc<Node>> {
        self.nodes.find(id).ok_or(FsError::Stale)
    }

    /// Refuses changes of a filesystem that is mounted for reading only.
    fn check_writable(&self) -> FsResult<()> {
        if self.options.read_only {
            Err(FsError::ReadOnly)
        } else {
            Ok(())
        }
    }

    /// Adds to an error where in the vault it happened.
    fn at(&self, node: &Node, entry: &str) -> impl FnOnce(VaultError) -> FsError {
        let disk_path = match (self.disk_path(node), entry) {
            (path, "") => path,
            (path, entry) if path.is_empty() => entry.to_owned(),
            (path, entry) => format!("{path}/{entry}"),
        };
        move |source| match source {
            VaultError::Io(error) => FsError::Io(error),
            source => FsError::Vault { source, disk_path },
        }
    }

    /// Returns a node's path in the backing directory, as far as it is known.
    fn disk_path(&self, node: &Node) -> String {
        let mut names: Vec<Box<str>> = Vec::new();
        // Nobody waits here: a path for a message must not deadlock with who holds a link.
        let mut link = node.link.try_lock().and_then(|link| link.clone());
        while let Some(Link { parent, disk, .. }) = link {
            names.push(disk);
            link = parent.link.try_lock().and_then(|link| link.clone());
        }
        names.reverse();
        names.join("/")
    }

    /// Returns a node's path in the view; for messages only: empty where a rename is under way.
    pub fn plain_path(&self, id: u64) -> String {
        let mut names = Vec::new();
        let mut link = self.nodes.find(id).and_then(|node| node.link.try_lock()?.clone());
        while let Some(Link { parent, name, .. }) = link {
            names.push(String::from_utf8_lossy(&name).into_owned());
            link = parent.link.try_lock().and_then(|link| link.clone());
        }
        names.reverse();
        names.join("/")
    }

    /// Returns a directory's descriptor, opening what is needed of the path to it.
    fn dir(&self, node: &Arc<Node>) -> FsResult<Arc<Dir>> {
        if node.kind != FileType::Directory {
            return Err(FsError::NotDirectory);
        }
        for _ in 0..RENAMES_MAX {
            if let Some(dir) = self.open_path(node)? {
                return Ok(dir);
            }
        }
        Err(FsError::Stale)
    }

    /// As [`Fs::dir`]; nothing where some directory of the path was renamed meanwhile, and another may be where it was.
    fn open_path(&self, node: &Arc<Node>) -> FsResult<Option<Arc<Dir>>> {
        // Up to the next directory that is open, then down again: paths may be thousands of names deep.
        let mut missing: Vec<(Arc<Node>, Link)> = Vec::new();
        let mut at = node.clone();
        let mut dir = loop {
            if at.id == ROOT {
                break self.root_dir.clone();
            }
            if let Some(dir) = self.dirs.lock().get(&at.id) {
                break dir.clone();
            }
            if let Some(Remains::Dir(dir)) = at.remains.lock().as_deref() {
                break dir.clone();
            }
            let link = at.link.lock().clone().ok_or(FsError::Stale)?;
            let parent = link.parent.clone();
            missing.push((at, link));
            at = parent;
        };
        for (node, link) in missing.into_iter().rev() {
            let opened = dir.open_dir(&*link.disk);
            if !node.is_still_at(&link) {
                return Ok(None);
            }
            dir = Arc::new(opened?);
            if !node.is_of_inode(dir.stat_self()?.st_ino) {
                // Someone else has put another in its place.
                return Err(FsError::Stale);
            }
            self.dirs.lock().put(node.id, dir.clone());
        }
        Ok(Some(dir))
    }

    /// Returns a directory's keys.
    fn keys<'n>(&self, node: &'n Arc<Node>) -> FsResult<&'n DirectoryKeys> {
        let state = node.directory.as_ref().ok_or(FsError::NotDirectory)?;
        if let Some(keys) = state.keys.get() {
            return Ok(keys);
        }
        let keys = self.load_keys(node)?;
        Ok(state.keys.get_or_init(|| keys))
    }

    fn load_keys(&self, node: &Arc<Node>) -> FsResult<DirectoryKeys> {
        self.by_link(node, |link| {
            let dir = self.dir(node)?;
            let parent = self.keys(&link.parent)?.id;
            // Not what the link says of it: who lists it may still be about to note that it is a sync tool's copy, and keys are looked up once.
            let base = self.conflict_of(&link.parent, &link.disk);
            let name = base.as_deref().unwrap_or(&link.name);
            let loaded = self.vault.load_directory(&dir, parent, name);
            loaded.map_err(self.at(node, ""))
        })
    }

    /// Returns the node of a directory as it is now: where something else may change the vault, another directory may have come into its place, or its header
    /// later than the directory. What has the keys of the one before would show no name of it, and new files would be lost.
    fn as_it_is_now(&self, node: Arc<Node>, dir: &Dir) -> FsResult<Arc<Node>> {
        if !self.options.shared || node.id == ROOT || node.is_dead() {
            return Ok(node);
        }
        let state = node.directory.as_ref().ok_or(FsError::NotDirectory)?;
        let last = *state.header.lock();
        if last.is_some_and(|last| last.at.elapsed() < HEADER_AGE_MAX) {
            return Ok(node);
        }
        let mut look = HeaderLook {
            at: Instant::now(),
            stamp: dir.stamp(DIRECTORY_HEADER)?,
            is_missed: false,
        };
        let is_as_before = last.is_some_and(|last| last.stamp == look.stamp && !last.is_missed);
        let has_its_keys = is_as_before || self.has_its_keys(&node, dir)?;
        look.is_missed = !has_its_keys && look.stamp.is_none() && !last.is_some_and(|last| last.is_missed);
        if has_its_keys || look.is_missed {
            *state.header.lock() = Some(look);
            return Ok(node);
        }
        log::warn!(
            "{:?}: something else has changed its {DIRECTORY_HEADER}: it is another directory from now on",
            self.disk_path(&node)
        );
        Ok(self.nodes.renew_directory(&node))
    }

    /// Tells whether a directory's keys are those that it would get now, or not known yet.
    fn has_its_keys(&self, node: &Arc<Node>, dir: &Dir) -> FsResult<bool> {
        let Some(known) = node.keys() else { return Ok(true) };
        let header = self.vault.load_directory_header(dir).map_err(self.at(node, ""))?;
        // Renamed, by whoever: the header may come before or after the new name.
        if header.is_some_and(|header| header.directory == known.id) {
            return Ok(true);
        }
        Ok(self.load_keys(node)?.id == known.id)
    }

    /// Looks once more at a directory's header before a name is made there.
    ///
    /// # Errors
    ///
    /// [`FsError::Stale`] where it is another: the kernel tries again, and the directory is looked at anew. EBUSY where it is gone, until it is known whether
    /// for long.
    fn check_header(&self, directory: &OpenDirectory) -> FsResult<()> {
        let mut last = directory.state().header.lock();
        let Some(look) = *last else { return Ok(()) };
        if directory.dir.stamp(DIRECTORY_HEADER)? != look.stamp {
            *last = None;
            return Err(FsError::Stale);
        }
        if look.is_missed {
            Err(Errno::BUSY.into())
        } else {
            Ok(())
        }
    }

    /// Returns a directory with its descriptor and keys.
    fn directory(&self, id: u64) -> FsResult<OpenDirectory> {
        let node = self.node(id)?;
        let dir = self.dir(&node)?;
        let node = self.as_it_is_now(node, &dir)?;
        self.keys(&node)?;
        Ok(OpenDirectory { node, dir })
    }

    /// Returns attributes of a file on disk; reads the link where only that tells the size.
    fn attr(&self, dir: &Dir, disk: &str, stat: &Stat) -> FsResult<Attr> {
        let mut attr = Attr::new(stat, node_id(stat.st_ino), &self.vault.layout());
        if attr.kind() == FileType::Symlink && attr.size == 0 {
            let target = link::decode(&dir.readlink(disk)?);
            attr.size = target.map_or(0, |target| target.len() as u64);
        }
        Ok(attr)
    }

    /// Finds an entry of a directory, and counts a look-up.
    ///
    /// # Errors
    ///
    /// [`FsError::NotFound`], or what keeps the directory from being read.
    pub fn look_up(&self, parent: u64, name: &[u8]) -> FsResult<Found> {
        self.with_descriptors(|| self.look_up_once(parent, name))
    }

    fn look_up_once(&self, parent: u64, name: &[u8]) -> FsResult<Found> {
        let directory = self.directory(parent)?;
        let disk = directory.seal_name(name)?;
        match directory.dir.stat(&disk) {
            Ok(stat) => self.found(&directory, name, &disk, &stat),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.look_up_conflict(&directory, name)?.ok_or(FsError::NotFound)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a look-up of an entry that is there.
    fn found(&self, directory: &OpenDirectory, name: &[u8], disk: &str, stat: &Stat) -> FsResult<Found> {
        let mut found = self.found_once(directory, name, disk, stat);
        for _ in 0..CHANGES_MAX {
            if !matches!(found, Err(FsError::Stale)) {
                break;
            }
            // Someone else has changed what the kernel was told of it: it is another one now.
            found = self.found_once(directory, name, disk, &directory.dir.stat(disk)?);
        }
        found
    }

    fn found_once(&self, directory: &OpenDirectory, name: &[u8], disk: &str, stat: &Stat) -> FsResult<Found> {
        if stat.st_dev != self.device {
            // Mounted inside the backing directory by someone: not ours to show.
            return Err(FsError::NotFound);
        }
        let mut attr = self.attr(&directory.dir, disk, stat)?;
        let node = self.nodes.look_up((stat, attr.size), &directory.node, name, disk);
        if self.options.shared {
            node.is_below(&directory.node, disk);
        }
        if let Err(error) = self.admit_name(&node, directory, (name, disk), stat) {
            if matches!(error, FsError::Stale) {
                self.forget(node.id, 1);
                return Err(error);
            }
            if error.is_damage() {
                log::warn!("{error}");
            }
            self.forget(node.id, 1);
            let node = self.nodes.look_up_stray(stat, &directory.node, name, disk);
            attr.ino = node.id;
            return Ok(Found { node, attr });
        }
        if let Err(error) = self.settle_size(&node, &mut attr, || directory.dir.stat(disk)) {
            self.forget(node.id, 1);
            return Err(error);
        }
        Ok(Found { node, attr })
    }

    /// Gives a regular file the size that the kernel goes by from now on.
    ///
    /// The size of a data file says nothing: who can write to the vault can cut it until the kernel has asked, and then put back what was there. So the size
    /// of a file that is open here is that of its content, and of one that is not it is compared with what is found when it is opened. Once told, the kernel
    /// stays with it (with its writeback cache); so for another size there has to be another node.
    ///
    /// # Errors
    ///
    /// [`FsError::Stale`] where someone else has changed the size, and it has to be looked up again; what `look` gives, which looks at the file once more.
    fn settle_size(&self, node: &Node, attr: &mut Attr, look: impl FnOnce() -> std::io::Result<Stat>) -> FsResult<()> {
        if attr.kind() != FileType::RegularFile || node.is_stray {
            return Ok(());
        }
        let mut file = node.file.try_lock_for(FILE_PATIENCE);
        if file.is_none() && attr.size == node.size() {
            // Who has it for longer is opening it, and looks at what was told when that is done.
            return Ok(());
        }
        let file = file.get_or_insert_with(|| node.file.lock());
        if let Some(size) = file.as_ref().and_then(|file| self.known_size(node, file)) {
            attr.size = size;
        } else if self.options.shared {
            if let Some(file) = file.as_ref() {
                *attr = self.file_attr(node, file)?;
            }
            node.set_size(attr.size);
        } else if attr.size != node.size() {
            // It may have been closed since it was looked at.
            let stat = look()?;
            self.check_inode(node, &stat)?;
            *attr = Attr::new(&stat, node.id, &self.vault.layout());
            if attr.size != node.size() {
                node.kill();
                return Err(FsError::Stale);
            }
        }
        Ok(())
    }

    /// Returns the attributes of a file's data file, with --shared once what the journal holds of it is there: the kernel goes by nothing else then.
    fn file_attr(&self, node: &Node, file: &VaultFile) -> FsResult<Attr> {
        if self.options.shared
            && let Some(content) = file.content()
        {
            // Where it fails the next fsync says so, and the size is right all the same.
            let _ = content.storage().sync_announced();
        }
        Ok(Attr::new(&file.stat()?, node.id, &self.vault.layout()))
    }

    /// Returns the size of an open file's content; nothing where only the data file tells it, or another machine changes that.
    fn known_size(&self, node: &Node, file: &VaultFile) -> Option<u64> {
        file.size().filter(|_| !self.options.shared || node.is_open())
    }

    /// Commits what writes have left to the journal, until [`Fs::stop_sealer`]; for a thread of its own.
    pub fn run_journal(&self) {
        if let Some(journal) = &self.journal {
            journal.run();
        }
    }

    /// Notes that the kernel forgot look-ups of a node.
    pub fn forget(&self, id: u64, count: u64) {
        let Some(node) = self.nodes.forget(id, count) else {
            return;
        };
        if node.kind == FileType::Directory {
            self.dirs.lock().pop(&id);
        } else {
            self.idle_files.lock().pop(&id);
            self.removed_files.lock().pop(&id);
            self.let_go(&node);
        }
        self.nodes.remove_unused(node);
    }

    /// Returns a node's attributes.
    ///
    /// # Errors
    ///
    /// What fstat(2) gives.
    pub fn get_attr(&self, id: u64) -> FsResult<Attr> {
        let node = self.node(id)?;
        self.node_attr(&node)
    }

    fn node_attr(&self, node: &Arc<Node>) -> FsResult<Attr> {
        let with_id = |mut attr: Attr| {
            attr.ino = node.id;
            attr
        };
        if node.kind == FileType::Directory {
            let stat = self.dir(node)?.stat_self()?;
            return Ok(with_id(Attr::new(&stat, node.id, &self.vault.layout())));
        }
        if let Some(file) = node.file.lock().clone() {
            let mut attr = self.file_attr(node, &file)?;
            attr.size = self.known_size(node, &file).unwrap_or(attr.size);
            return Ok(attr);
        }
        if let Some(Remains::Stat(stat)) = node.remains.lock().as_deref() {
            return Ok(with_id(Attr::new(stat, node.id, &self.vault.layout())));
        }
        self.by_link(node, |link| {
            let dir = self.dir(&link.parent)?;
            let look = || dir.stat(&link.disk);
            let stat = look()?;
            self.check_inode(node, &stat)?;
            let mut attr = with_id(self.attr(&dir, &link.disk, &stat)?);
            self.settle_size(node, &mut attr, look)?;
            Ok(attr)
        })
    }

    /// Returns a node's entry on disk.
    fn entry(&self, node: &Arc<Node>) -> FsResult<Entry> {
        self.by_link(node, |link| {
            let entry = self.dir(&link.parent)?.entry(&*link.disk)?;
            self.check_inode(node, &entry.stat()?)?;
            Ok(entry)
        })
    }

    /// Checks that what was found under a node's name is its file, and none that someone else has put there.
    fn check_inode(&self, node: &Node, stat: &Stat) -> FsResult<()> {
        let is_it = node.is_of_inode(stat.st_ino) && stat.st_dev == self.device;
        is_it.then_some(()).ok_or(FsError::Stale)
    }

    /// Does something by a node's name, without its lock, and again if it got another one meanwhile.
    fn by_link<T>(&self, node: &Arc<Node>, act: impl Fn(&Link) -> FsResult<T>) -> FsResult<T> {
        for _ in 0..RENAMES_MAX {
            let link = node.link.lock().clone().ok_or(FsError::Stale)?;
            let result = act(&link);
            if node.is_still_at(&link) {
                return result;
            }
        }
        Err(FsError::Stale)
    }

    /// Returns a node's data file, opening it if it is not.
    fn file(&self, node: &Arc<Node>) -> FsResult<Arc<VaultFile>> {
        if node.kind != FileType::RegularFile {
            return Err(if node.kind == FileType::Directory {
                FsError::IsDirectory
            } else {
                FsError::NotSupported
            });
        }
        if let Some(file) = &*node.file.lock() {
            return Ok(file.clone());
        }
        self.with_descriptors(|| {
            let link = node.link.lock();
            self.load_file(node, link.as_ref())
        })
    }

    /// Opens a node's data file, with the link locked so that no rename changes its place meanwhile.
    fn load_file(&self, node: &Arc<Node>, link: Option<&Link>) -> FsResult<Arc<VaultFile>> {
        let mut slot = node.file.lock();
        if let Some(file) = &*slot {
            return Ok(file.clone());
        }
        let link = link.filter(|_| !node.is_dead()).ok_or(FsError::Stale)?;
        if node.is_stray {
            return Err(self.why_stray(link));
        }
        let dir = self.dir(&link.parent)?;
        let backing = dir.open_file(&link.disk, self.options.read_only)?;
        self.check_reserve(&backing)?;
        let at = self.found_at(link)?;
        let file = VaultFile::load(&self.vault, backing, self.journal.clone(), &dir, at)
            .map_err(self.at(&link.parent, &link.disk))?;
        if file.inode().is_some_and(|inode| node_id(inode) != node.id) {
            // Someone else has put another in its place: the kernel has to look it up.
            return Err(FsError::Stale);
        }
        self.compare_with_record(&file, link, at)
            .map_err(self.at(&link.parent, &link.disk))?;
        if file.is_zeros() && !self.options.read_only && !self.options.shared {
            // By a crash, as below.
            log::warn!(
                "{:?} was new at an unclean end and never synced: it is empty",
                link.disk
            );
            file.drop_zeros()?;
            // The kernel goes by the size it was told, and would make zeros of what is not there: it has to look the file up as another.
            node.kill();
            return Err(FsError::Stale);
        }
        let file = Arc::new(file);
        let renewed = file.size().filter(|&size| size != node.size()).map(|_| {
            // Of a crash, or someone else has changed it.
            self.nodes.renew(node, link, file.clone())
        });
        let node = match &renewed {
            Some(renewed) => renewed,
            None => {
                *slot = Some(file.clone());
                node
            }
        };
        if file.begin_seal().is_some() && !self.options.read_only && !self.options.shared {
            // By a crash: nobody else writes it, so what is there is all there is.
            log::info!("{:?} was left open; it is sealed as it is", link.disk);
            self.seal_queue.push(node);
        }
        match renewed {
            Some(renewed) => {
                drop(slot);
                self.keep_idle(&renewed);
                Err(FsError::Stale)
            }
            None => Ok(file),
        }
    }

    /// Tells whether a file is open here whose key may not be used now.
    fn is_refused(&self, node: &Node) -> bool {
        let file = node.file.lock();
        file.as_ref().is_some_and(|file| file.usable_content().is_err())
    }

    /// Returns the inodes of which the kernel may have content that was opened with the key of an epoch.
    pub fn inodes_of_epoch(&self, epoch: Epoch) -> Vec<u64> {
        self.nodes.of_epoch(epoch).iter().map(|node| node.id).collect()
    }

    /// Keeps a file that no handle has open for a while, and lets the one that was not used for longest go.
    fn keep_idle(&self, node: &Arc<Node>) {
        if node.is_forgotten() {
            self.let_go(node);
            self.nodes.remove_unused(node.clone());
            return;
        }
        let evicted = self.idle_files.lock().push(node.id, node.clone());
        if let Some((_, evicted)) = evicted
            && evicted.id != node.id
        {
            self.let_go(&evicted);
        }
    }

    /// Keeps a file for a while that an operation has used, unless a handle has it open. Anything else goes if the kernel forgot it meanwhile: a directory only
    /// where this reference is the last.
    fn keep_unused(&self, node: Arc<Node>) {
        match (node.kind, node.is_forgotten()) {
            (FileType::RegularFile, _) if node.is_open() => {}
            (FileType::RegularFile, false) if node.is_dead() => self.keep_removed(&node),
            (FileType::RegularFile, _) => self.keep_idle(&node),
            (_, true) => self.nodes.remove_unused(node),
            (_, false) => {}
        }
    }

    /// Keeps a file open that lost its last name, for who has looked it up and not opened it yet.
    fn keep_removed(&self, node: &Arc<Node>) {
        let evicted = self.removed_files.lock().push(node.id, node.clone());
        if let Some((_, evicted)) = evicted
            && evicted.id != node.id
        {
            evicted.close_if_unused();
        }
    }

    /// Does what takes space; if there is none, frees what is only kept open, and tries again. What was removed just now may be closed in a moment.
    fn with_room<T>(&self, act: impl Fn() -> FsResult<T>) -> FsResult<T> {
        let mut result = self.with_descriptors(&act);
        let begun = Instant::now();
        for attempt in 0..ROOM_ATTEMPTS {
            let is_full = |error: &FsError| matches!(error.errno(), libc::ENOSPC | libc::EDQUOT);
            if !result.as_ref().is_err_and(is_full) || (attempt > 0 && begun.elapsed() > ROOM_PATIENCE_MAX) {
                break;
            }
            let was_freed = self.free_room();
            let may_be_freed = self.removed_at.lock().is_some_and(|at| at.elapsed() < REMOVED_LATELY);
            if !was_freed && !may_be_freed {
                break;
            }
            if attempt > 0 {
                std::thread::sleep(ROOM_PATIENCE);
            }
            result = act();
        }
        result
    }

    /// Closes files without a name that no handle has open, and removes headers that have no use; tells whether there were any.
    fn free_room(&self) -> bool {
        if let Some(journal) = &self.journal {
            journal.let_go_of_removed();
        }
        let mut was_freed = self.remove_late() | self.drop_unused_headers(true);
        loop {
            let Some((_, node)) = self.removed_files.lock().pop_lru() else {
                return was_freed;
            };
            node.close_if_unused();
            was_freed = true;
        }
    }

    /// Does what takes descriptors; if there are none, gives back those that are kept for later, and tries again. For who holds no lock of a node.
    fn with_descriptors<T>(&self, act: impl Fn() -> FsResult<T>) -> FsResult<T> {
        match act() {
            Err(error) if matches!(error.errno(), libc::EMFILE | libc::ENFILE) => {
                self.free_descriptors();
                act()
            }
            result => result,
        }
    }

    /// Keeps back the last descriptors, for what open files need to be written and synced: their headers and directories.
    ///
    /// # Errors
    ///
    /// EMFILE for a data file that has one of them: the lowest that is free is what open(2) gives.
    fn check_reserve(&self, file: &BackingFile) -> FsResult<()> {
        match file.fd().as_raw_fd() as u64 >= self.data_files_end {
            true => Err(Errno::MFILE.into()),
            false => Ok(()),
        }
    }

    fn free_descriptors(&self) {
        let close_idle = || {
            loop {
                let Some((_, node)) = self.idle_files.lock().pop_lru() else {
                    return;
                };
                self.let_go(&node);
            }
        };
        self.dirs.lock().clear();
        close_idle();
        // Files that are to be sealed stay open until they are, and a slow disk may have many of them wait.
        self.seal_now();
        close_idle();
        if let Some(journal) = &self.journal
            && let Err(error) = journal.checkpoint()
        {
            log::warn!("files stay open, the journal cannot begin anew: {error}");
        }
    }

    /// Closes a file that nothing needs open: no handle, and no seal still to be set or to be made to admit one name only.
    fn let_go(&self, node: &Node) {
        let mut slot = node.file.lock();
        // What another machine is writing is not this one's to seal.
        let is_ours = |content: &FileContent| !self.options.shared || content.changes() > 0;
        let content = slot.as_ref().and_then(|file| file.content());
        let unsealed = content.is_some_and(|content| content.begin_seal().is_some() && is_ours(content))
            || node.unsettled.load(Ordering::Acquire);
        // Without a name it cannot be opened again, and the kernel may still ask for it.
        let in_use = node.is_open() || (node.is_dead() && !node.is_forgotten());
        if !in_use
            && (!unsealed || node.is_dead() || self.options.read_only)
            && let Some(file) = slot.take()
        {
            if let Some(size) = file.size() {
                node.set_size(size);
            }
            node.remember_epoch(&file);
        }
    }
}

/// A directory ready for operations on its names.
#[derive(Clone, Debug)]
struct OpenDirectory {
    node: Arc<Node>,
    dir: Arc<Dir>,
}

impl OpenDirectory {
    fn state(&self) -> &DirectoryState {
        self.node.directory.as_ref().expect("only a directory is opened as one")
    }

    fn keys(&self) -> &DirectoryKeys {
        self.state().keys.get().expect("a directory is opened with its keys")
    }

    /// Returns the name on disk of an entry.
    fn seal_name(&self, name: &[u8]) -> FsResult<String> {
        if name.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        Ok(self.keys().seal_name(name).entry)
    }
}
