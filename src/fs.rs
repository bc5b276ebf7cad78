//! The operations of a filesystem on a vault: no FUSE type, no system call of its own.
//!
//! Everything here works on node numbers and names in plaintext. `fuse` calls it for a mount, `cli` for reading a vault without one, and tests
//! without either.

mod acl;
mod attr;
mod directory;
mod error;
mod file;
mod listing;
mod node;
mod sealer;
mod xattr;

use std::{num::NonZeroUsize, sync::Arc};

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::{FileType, Stat};

pub use attr::{Attr, SetAttr, SetTime, Time};
pub use directory::{Leftovers, NameIn};
pub use error::FsError;
pub use file::Allocate;
pub use listing::{Listed, ListedPlus};
pub use node::{Node, ROOT};

use self::{
    node::{Link, NodeTable, Remains},
    sealer::SealQueue,
};
use crate::{
    backing::{Dir, process},
    format::{link, name::NAME_MAX},
    vault::{
        DirectoryKeys, Vault, VaultError,
        file::{FoundAt, VaultFile},
    },
};

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
    /// Directories in use lately, by node number.
    dirs: Mutex<LruCache<u64, Arc<Dir>>>,
    /// Files that no handle has open but that were in use lately, by node number.
    idle_files: Mutex<LruCache<u64, Arc<Node>>>,
    /// Files without a name that no handle has open, kept open until the kernel forgets them, by node number.
    removed_files: Mutex<LruCache<u64, Arc<Node>>>,
    seal_queue: SealQueue,
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
    pub fn new(vault: Vault, root_dir: Dir, options: FsOptions) -> FsResult<Self> {
        let capacity = NonZeroUsize::new(options.cached_descriptors).unwrap_or(NonZeroUsize::MIN);
        let (nodes, root) = NodeTable::new();
        root.keys.get_or_init(|| vault.root_keys());
        let device = root_dir.stat_self()?.st_dev;
        Ok(Fs {
            vault,
            options,
            nodes,
            root,
            root_dir: Arc::new(root_dir),
            device,
            dirs: Mutex::new(LruCache::new(capacity)),
            idle_files: Mutex::new(LruCache::new(capacity)),
            removed_files: Mutex::new(LruCache::new(capacity)),
            seal_queue: SealQueue::new(options.cached_descriptors),
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
        // Up to the next directory that is open, then down again: paths may be thousands of names deep.
        let mut missing = Vec::new();
        let mut at = node.clone();
        let mut dir = loop {
            if at.id == ROOT {
                break self.root_dir.clone();
            }
            if let Some(dir) = self.dirs.lock().get(&at.id) {
                break dir.clone();
            }
            if let Some(Remains::Dir(dir)) = &*at.remains.lock() {
                break dir.clone();
            }
            let link = at.link.lock().clone().ok_or(FsError::Stale)?;
            missing.push((at.id, link.disk));
            at = link.parent;
        };
        for (id, disk) in missing.into_iter().rev() {
            dir = Arc::new(dir.open_dir(&disk)?);
            self.dirs.lock().put(id, dir.clone());
        }
        Ok(dir)
    }

    /// Returns a directory's keys.
    fn keys<'n>(&self, node: &'n Arc<Node>) -> FsResult<&'n DirectoryKeys> {
        if let Some(keys) = node.keys.get() {
            return Ok(keys);
        }
        let dir = self.dir(node)?;
        let link = node.link.lock().clone().ok_or(FsError::Stale)?;
        let parent = self.keys(&link.parent)?.id;
        let keys = self
            .vault
            .load_directory(&dir, parent, &link.name)
            .map_err(self.at(node, ""))?;
        Ok(node.keys.get_or_init(|| keys))
    }

    /// Returns a directory with its descriptor and keys.
    fn directory(&self, id: u64) -> FsResult<OpenDirectory> {
        let node = self.node(id)?;
        let dir = self.dir(&node)?;
        self.keys(&node)?;
        Ok(OpenDirectory { node, dir })
    }

    /// Returns attributes of a file on disk; reads the link where only that tells the size.
    fn attr(&self, dir: &Dir, disk: &str, stat: &Stat) -> FsResult<Attr> {
        let mut attr = Attr::new(stat, node::node_id(stat.st_ino), &self.vault.layout());
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
        if stat.st_dev != self.device {
            // Mounted inside the backing directory by someone: not ours to show.
            return Err(FsError::NotFound);
        }
        let attr = self.attr(&directory.dir, disk, stat)?;
        let node = self.nodes.look_up(stat, &directory.node, name, disk);
        Ok(Found { node, attr })
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
            let stat = file.backing().stat()?;
            return Ok(with_id(Attr::new(&stat, node.id, &self.vault.layout())));
        }
        if let Some(Remains::Stat(stat)) = &*node.remains.lock() {
            return Ok(with_id(Attr::new(stat, node.id, &self.vault.layout())));
        }
        let (dir, disk) = self.entry_of(node)?;
        self.attr(&dir, &disk, &dir.stat(&disk)?).map(with_id)
    }

    /// Returns the directory and name on disk by which a node can be reached.
    fn entry_of(&self, node: &Arc<Node>) -> FsResult<(Arc<Dir>, Box<str>)> {
        let link = node.link.lock().clone().ok_or(FsError::Stale)?;
        Ok((self.dir(&link.parent)?, link.disk))
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
        let link = node.link.lock();
        self.load_file(node, link.as_ref())
    }

    /// Opens a node's data file, with the link locked so that no rename changes its place meanwhile.
    fn load_file(&self, node: &Arc<Node>, link: Option<&Link>) -> FsResult<Arc<VaultFile>> {
        let mut slot = node.file.lock();
        if let Some(file) = &*slot {
            return Ok(file.clone());
        }
        let link = link.ok_or(FsError::Stale)?;
        let dir = self.dir(&link.parent)?;
        let backing = dir.open_file(&link.disk, self.options.read_only)?;
        let at = FoundAt {
            directory: self.keys(&link.parent)?.id,
            name: link.conflict_of.as_ref().unwrap_or(&link.name),
        };
        let file = VaultFile::load(&self.vault, backing, &dir, at).map_err(self.at(&link.parent, &link.disk))?;
        let file = Arc::new(file);
        *slot = Some(file.clone());
        let left_open = file.content().is_some_and(|content| content.begin_seal().is_some());
        if left_open && !self.options.read_only && !self.options.shared {
            // By a crash: nobody else writes it, so what is there is all there is.
            log::info!("{:?} was left open; it is sealed as it is", link.disk);
            self.seal_queue.push(node);
        }
        Ok(file)
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

    /// Keeps a file open that lost its last name, for who has looked it up and not opened it yet.
    fn keep_removed(&self, node: &Arc<Node>) {
        let evicted = self.removed_files.lock().push(node.id, node.clone());
        if let Some((_, evicted)) = evicted
            && evicted.id != node.id
        {
            evicted.close_if_unused();
        }
    }

    /// Does what takes space; if there is none, frees what is only kept open, and tries again.
    fn with_room<T>(&self, act: impl Fn() -> FsResult<T>) -> FsResult<T> {
        match act() {
            Err(error) if matches!(error.errno(), libc::ENOSPC | libc::EDQUOT) => {
                let mut removed = Vec::new();
                while let Some((_, node)) = self.removed_files.lock().pop_lru() {
                    removed.push(node);
                }
                if removed.is_empty() {
                    return Err(error);
                }
                removed.iter().for_each(|node| node.close_if_unused());
                act()
            }
            result => result,
        }
    }

    /// Closes a file that nothing needs open: no handle, and no seal still to be set.
    fn let_go(&self, node: &Node) {
        let mut slot = node.file.lock();
        let unsealed = slot
            .as_ref()
            .is_some_and(|file| file.content().is_some_and(|content| content.begin_seal().is_some()));
        // Without a name it cannot be opened again, and the kernel may still ask for it.
        let in_use = node.is_open() || (node.is_dead() && !node.is_forgotten());
        if !in_use && (!unsealed || node.is_dead() || self.options.read_only) {
            *slot = None;
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
    fn keys(&self) -> &DirectoryKeys {
        self.node.keys.get().expect("a directory is opened with its keys")
    }

    /// Returns the name on disk of an entry.
    fn seal_name(&self, name: &[u8]) -> FsResult<String> {
        if name.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        Ok(self.keys().seal_name(name).entry)
    }
}
