//! Operations on names: making, removing, linking and renaming.
//!
//! Each that touches more than one file says what a crash between its steps leaves. They rely on the backing filesystem to keep
//! changes of names in their order, as ext4, xfs and tmpfs do, and Btrfs until something is synced (see [`late`](super::late)); what must be on disk
//! *before* a name changes is synced.

use std::{io, sync::Arc, time::Instant};

use rustix::fs::{FileType, RenameFlags, Stat, Timespec};

use super::{
    Caller, Found, Fs, FsError, FsResult, Leftovers, OpenDirectory,
    file::InUse,
    late::Needless,
    leftovers::{Gone, GoneFile, How},
    node::{Absent, Link, Node, Remains, node_id},
    xattr::Birth,
};
use crate::{
    backing::{BackingFile, Dir, Entry, Storage},
    format::{
        layout::PREAMBLE_SIZE,
        link::{self, DiskTarget, LINK_FILE_MAX},
        name::{self, DiskName, NAME_MAX, Shape},
        preamble::Places,
    },
    ids::FileId,
    vault::{VaultError, choice::KeyOfFile, content::ContentError, file::VaultFile},
};

/// A name in a directory, as operations on two of them take it.
#[derive(Clone, Copy, Debug)]
pub struct NameIn<'n> {
    /// The directory's node number.
    pub parent: u64,
    /// The name in plaintext.
    pub name: &'n [u8],
}

/// An entry that is about to lose its name: it is removed, or another takes its place.
struct Going<'f> {
    /// Where it is: the directory, and the name on disk.
    entry: (Arc<Node>, String),
    stat: Stat,
    node: Option<Arc<Node>>,
    gone: Option<Gone>,
    remains: Option<Remains>,
    /// The file of a long link's target.
    link_file: Option<FileId>,
    /// Its node was marked as dead before it was gone.
    has_begun: bool,
    _held: Option<InUse<'f>>,
}

impl Going<'_> {
    /// Tells whether it has no other name.
    fn is_last(&self) -> bool {
        self.stat.st_nlink == 1 || FileType::from_raw_mode(self.stat.st_mode) == FileType::Directory
    }

    fn is(&self, id: u64) -> bool {
        self.node.as_ref().is_some_and(|node| node.id == id)
    }

    /// Tells whether a name of it that is left is known, and in this directory.
    fn has_another_name_in(&self, directory: &OpenDirectory) -> bool {
        let link = self.node.as_ref().and_then(|node| node.link.lock().clone());
        link.is_some_and(|at| at.parent.id == directory.node.id)
    }

    /// Tells whether another may have its inode number at once, because nothing keeps it open: its node must not be taken for that of the other.
    fn frees_number(&self) -> bool {
        self.is_last() && self.gone.is_none() && !matches!(self.remains, Some(Remains::Dir(_)))
    }

    /// Notes that it is about to go, with the node's link locked.
    fn begin(&mut self) {
        let node = self.node.as_ref().filter(|_| self.frees_number());
        self.has_begun = node.is_some_and(|node| node.kill());
    }

    /// Notes that it stays.
    fn take_back(&mut self) {
        if let Some(node) = self.node.as_ref().filter(|_| self.has_begun) {
            node.revive();
        }
    }
}

/// Returns the time as inodes get it, which the kernel has as of its last tick.
fn now() -> Timespec {
    rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse)
}

/// One side of a rename: where an entry is, and where it goes.
struct Side<'a> {
    node: Option<Arc<Node>>,
    stat: Stat,
    from: (&'a OpenDirectory, &'a str, &'a [u8]),
    to: (&'a OpenDirectory, &'a [u8]),
}

impl Fs {
    /// Returns the name on disk for an entry to be made, with its long-name file in place where it needs one.
    ///
    /// A crash after this leaves a long-name file without an entry, which nothing shows and `fsck` removes.
    fn prepare_name(&self, directory: &OpenDirectory, name: &[u8]) -> FsResult<DiskName> {
        if name.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        self.check_header(directory)?;
        let disk = directory.keys().seal_name(name);
        if let Some(sealed) = &disk.long {
            let (file, bytes) = (disk.long_name_file(), name::encode_long_name(sealed));
            self.keep(&directory.node, &file);
            // What a crash left of one may be empty.
            let known = directory.dir.read_small(&file, bytes.len());
            if !known.is_ok_and(|known| known.is_some_and(|known| known == bytes)) {
                let new = directory.dir.write_small(&file, &bytes)?;
                self.new_before_names(&directory.dir, &file, &new)?;
            }
        }
        Ok(disk)
    }

    /// Removes the long-name file of an entry that is gone.
    fn drop_long_name(&self, directory: &OpenDirectory, entry: &str) {
        let base = match name::shape(entry.as_bytes()) {
            Shape::Long => entry.to_owned(),
            Shape::Conflict(base, _) if name::shape(base.as_bytes()) == Shape::Long => base,
            _ => return,
        };
        self.remove_in_order(directory, Needless::LongName(base));
    }

    /// Removes the long-name file of an entry that is gone, or of which a sync tool's copy is, unless such a copy or the entry needs it.
    pub(super) fn remove_long_name(&self, directory: &OpenDirectory, base: &str) {
        // As with headers: on another machine the entry may go on.
        if self.options.shared || directory.dir.stat(base).is_ok() {
            return;
        }
        let is_other =
            |copy: &String| !matches!(name::shape(copy.as_bytes()), Shape::Conflict(other, _) if other == base);
        if self
            .conflicts(directory)
            .is_ok_and(|copies| copies.iter().all(is_other))
        {
            let _ = directory.dir.unlink(&name::long_name_file(base));
        }
    }

    /// Removes the file of a long target whose link is gone from a directory.
    fn drop_link_file(&self, directory: &OpenDirectory, link: FileId) {
        self.remove_in_order(directory, Needless::LinkFile(link));
    }

    /// Removes from a directory the file of a long target whose link is gone from it, unless a copy of the link needs that.
    pub(super) fn remove_link_file(&self, directory: &OpenDirectory, link: FileId) {
        // As with headers: on another machine the link may go on.
        if self.options.shared {
            return;
        }
        if needs_link_file(&directory.dir, link).is_ok_and(|needs| !needs) {
            let _ = directory.dir.unlink(&name::link_file(link));
        }
    }

    /// Tells whether what a caller makes is to be given to them: another user makes it for them.
    fn gives_to(&self, caller: Caller) -> bool {
        (caller.uid, caller.gid) != (self.options.own_uid, self.options.own_gid)
    }

    /// Gives a new entry to the caller, where another user made it for them.
    fn give_to(&self, caller: Caller, directory: &OpenDirectory, made: &Entry, mode: u32) -> FsResult<()> {
        // In a set-group-id directory the group is the directory's, as the backing filesystem has set it.
        let inherits_group = directory.dir.stat_self()?.st_mode & libc::S_ISGID != 0;
        let gid = (!inherits_group).then_some(caller.gid);
        match made.chown(Some(caller.uid), gid) {
            // Mounted by an ordinary user: everything is theirs.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) && self.options.own_uid != 0 => return Ok(()),
            result => result?,
        }
        // A change of owner clears these.
        if mode & (libc::S_ISUID | libc::S_ISGID) != 0 && FileType::from_raw_mode(mode) == FileType::RegularFile {
            made.chmod(mode)?;
        }
        Ok(())
    }

    /// Gives what was just made at a name to the caller, and not what someone else has put there meanwhile; returns its attributes.
    fn give_named(
        &self,
        caller: Caller,
        directory: &OpenDirectory,
        disk: &str,
        since: Timespec,
        birth: &Birth,
    ) -> FsResult<Stat> {
        if !self.gives_to(caller) && !birth.has_lists() {
            return Ok(directory.dir.stat(disk)?);
        }
        let entry = directory.dir.entry(disk)?;
        let stat = entry.stat()?;
        // The time at which it was made nobody can set.
        let since = since.tv_sec as u64 * 1_000_000_000 + since.tv_nsec as u64;
        let is_new = matches!(entry.born(), born if born == 0 || born >= since);
        let is_kind = stat.st_mode & libc::S_IFMT == birth.mode & libc::S_IFMT;
        if !is_new || !is_kind || stat.st_dev != self.device {
            return Err(FsError::Stale);
        }
        if self.gives_to(caller) {
            self.give_to(caller, directory, &entry, birth.first_mode())?;
        }
        Ok(entry.stat()?)
    }

    /// Finishes making an entry; takes it away again if that fails.
    fn made(
        &self,
        directory: &OpenDirectory,
        (name, disk): (&[u8], &DiskName),
        given: FsResult<Stat>,
        birth: &Birth,
    ) -> FsResult<Found> {
        let result = given
            .and_then(|stat| self.found(directory, name, &disk.entry, &stat))
            .and_then(|found| self.with_lists(found, birth));
        if result.is_err() {
            let gone = match FileType::from_raw_mode(birth.mode) {
                FileType::Directory => directory.dir.rmdir(&disk.entry),
                _ => directory.dir.unlink(&disk.entry),
            };
            if gone.is_ok() {
                self.drop_long_name(directory, &disk.entry);
            }
        }
        result
    }

    /// Gives what was made the access control lists it inherits.
    fn with_lists(&self, mut found: Found, birth: &Birth) -> FsResult<Found> {
        if !self.options.acl {
            return Ok(found);
        }
        let since = found.node.attributes_set();
        found.node.found_without(Absent::AccessAcl, since);
        let given = self
            .give_lists(&found.node, birth)
            .and_then(|()| self.node_attr(&found.node));
        match given {
            Ok(attr) => found.attr = attr,
            Err(error) => {
                self.forget(found.node.id, 1);
                return Err(error);
            }
        }
        Ok(found)
    }

    /// Creates a file and opens it.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives.
    pub fn create(&self, at: NameIn<'_>, mode: u32, caller: Caller) -> FsResult<Found> {
        self.check_writable()?;
        self.with_room(|| self.create_once(at, mode, caller, None))
    }

    /// As [`Fs::create`], with the key of another file, whatever other new files in the directory get.
    ///
    /// # Errors
    ///
    /// As for [`Fs::create`], and what keeps the other file from being opened.
    pub fn create_like(&self, at: NameIn<'_>, mode: u32, caller: Caller, other: u64) -> FsResult<Found> {
        self.check_writable()?;
        let key = self.file(&self.node(other)?)?.key();
        self.with_room(|| self.create_once(at, mode, caller, key.map(|key| self.vault.key_to_keep(key))))
    }

    fn create_once(&self, at: NameIn<'_>, mode: u32, caller: Caller, key: Option<KeyOfFile>) -> FsResult<Found> {
        let directory = self.directory(at.parent)?;
        let secret = self.secret_of_new_file(&directory.node, key)?;
        let disk = self.prepare_name(&directory, at.name)?;
        let birth = self.birth(&directory.node, libc::S_IFREG | mode & 0o7777, caller)?;
        let file = directory.dir.create_file(&disk.entry, birth.first_mode() & 0o7777)?;
        let give = || -> FsResult<Stat> {
            self.check_reserve(&file)?;
            if self.gives_to(caller) {
                self.give_to(caller, &directory, &Entry::of(&file)?, birth.first_mode())?;
            }
            Ok(file.stat()?)
        };
        let found = self.made(&directory, (at.name, &disk), give(), &birth)?;
        let file = VaultFile::created(file, self.journal.clone());
        if let Some(key) = key {
            file.keep_key(key);
        }
        if let Some(secret) = secret {
            file.prepare(secret);
        }
        *found.node.file.lock() = Some(Arc::new(file));
        found
            .node
            .found_without(Absent::Capability, found.node.attributes_set());
        found.node.opened();
        Ok(found)
    }

    /// Makes a special file, or an ordinary one without opening it.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives.
    pub fn make_node(&self, at: NameIn<'_>, mode: u32, device: u32, caller: Caller) -> FsResult<Found> {
        self.check_writable()?;
        self.with_room(|| self.make_node_once(at, mode, device, caller))
    }

    fn make_node_once(&self, at: NameIn<'_>, mode: u32, device: u32, caller: Caller) -> FsResult<Found> {
        let directory = self.directory(at.parent)?;
        if FileType::from_raw_mode(mode) == FileType::RegularFile {
            self.check_key_of_new_files(&directory.node)?;
        }
        let disk = self.prepare_name(&directory, at.name)?;
        let birth = self.birth(&directory.node, mode, caller)?;
        let since = now();
        directory.dir.mknod(&disk.entry, birth.first_mode(), device.into())?;
        let given = self.give_named(caller, &directory, &disk.entry, since, &birth);
        self.made(&directory, (at.name, &disk), given, &birth)
    }

    /// Makes a directory: one mkdir(2), since its id follows from its name.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives.
    pub fn make_directory(&self, at: NameIn<'_>, mode: u32, caller: Caller) -> FsResult<Found> {
        self.check_writable()?;
        self.with_room(|| self.make_directory_once(at, mode, caller))
    }

    fn make_directory_once(&self, at: NameIn<'_>, mode: u32, caller: Caller) -> FsResult<Found> {
        let directory = self.directory(at.parent)?;
        let disk = self.prepare_name(&directory, at.name)?;
        let birth = self.birth(&directory.node, libc::S_IFDIR | mode & 0o7777, caller)?;
        let since = now();
        directory.dir.mkdir(&disk.entry, birth.first_mode() & 0o7777)?;
        let given = self.give_named(caller, &directory, &disk.entry, since, &birth);
        let found = self.made(&directory, (at.name, &disk), given, &birth)?;
        if let Some(state) = &found.node.directory {
            // It has no header yet, and the one it gets says the same.
            state
                .keys
                .get_or_init(|| self.vault.born_directory_keys(directory.keys().id, at.name));
        }
        Ok(found)
    }

    /// Makes a symbolic link.
    ///
    /// A crash between the file of a long target and the link leaves a file that nothing refers to.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives.
    pub fn make_link(&self, at: NameIn<'_>, target: &[u8], caller: Caller) -> FsResult<Found> {
        self.check_writable()?;
        self.with_room(|| self.make_link_once(at, target, caller))
    }

    fn make_link_once(&self, at: NameIn<'_>, target: &[u8], caller: Caller) -> FsResult<Found> {
        let directory = self.directory(at.parent)?;
        let sealed = link::seal(self.vault.symlink_key(), target).map_err(|_| FsError::NameTooLong)?;
        let disk = self.prepare_name(&directory, at.name)?;
        let made = || {
            if let Some((id, bytes)) = &sealed.file {
                self.write_before_names(&directory.dir.write_small(&name::link_file(*id), bytes)?)?;
            }
            let (since, birth) = (now(), Birth::of_link());
            directory.dir.symlink(&sealed.text, &disk.entry)?;
            let given = self.give_named(caller, &directory, &disk.entry, since, &birth);
            self.made(&directory, (at.name, &disk), given, &birth)
        };
        made().inspect_err(|_: &FsError| {
            if let Some((id, _)) = &sealed.file {
                let _ = directory.dir.unlink(&name::link_file(*id));
            }
        })
    }

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    ///
    /// EIO where it does not open.
    pub fn read_link(&self, id: u64) -> FsResult<Vec<u8>> {
        let node = self.node(id)?;
        if node.kind != FileType::Symlink {
            return Err(FsError::Invalid);
        }
        self.by_link(&node, |link| {
            let dir = self.dir(&link.parent)?;
            self.read_link_at(&dir, &link.disk)
                .map_err(|error| self.at(&node, "")(error))
        })
    }

    fn read_link_at(&self, dir: &Dir, disk: &str) -> Result<Vec<u8>, VaultError> {
        let key = self.vault.symlink_key();
        match link::decode(&dir.readlink(disk)?).map_err(VaultError::LinkDamaged)? {
            DiskTarget::Inline(sealed) => link::open_inline(key, &sealed)
                .map_err(|_| VaultError::LinkDamaged(crate::format::FormatError::NotAuthentic)),
            DiskTarget::Long { link, .. } => {
                let bytes = dir
                    .read_small(&name::link_file(link), LINK_FILE_MAX)?
                    .ok_or(VaultError::LinkDamaged(crate::format::FormatError::TooShort))?;
                link::open_file(key, link, &bytes).map_err(VaultError::LinkDamaged)
            }
        }
    }

    /// Returns the link file of a symbolic link, if its target is a long one.
    fn link_file_of(dir: &Dir, disk: &str, stat: &Stat) -> Option<FileId> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return None;
        }
        match link::decode(&dir.readlink(disk).ok()?).ok()? {
            DiskTarget::Long { link, .. } => Some(link),
            DiskTarget::Inline(_) => None,
        }
    }

    /// Removes a file's name.
    ///
    /// The data file goes first: a crash leaves a header that nothing uses.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives.
    pub fn unlink(&self, at: NameIn<'_>) -> FsResult<Leftovers> {
        self.check_writable()?;
        let directory = self.directory(at.parent)?;
        let disk = self.existing_disk_name(&directory, at.name)?;
        self.unlink_entry((&directory, &disk), at.name)
    }

    fn unlink_entry(&self, (directory, disk): (&OpenDirectory, &str), name: &[u8]) -> FsResult<Leftovers> {
        let stat = directory.dir.stat(disk)?;
        let mut going = self.going((directory, disk), name, stat)?;
        self.remove_entry(&mut going, || directory.dir.unlink(disk))?;
        self.forget_conflict(directory, disk);
        self.drop_long_name(directory, disk);
        Ok(self.leftovers(going, directory, How::Removed))
    }

    /// Prepares for the end of an entry: keeps hold of what it is, for those who have looked it up and may still use it.
    fn going<'f>(&'f self, (directory, disk): (&OpenDirectory, &str), name: &[u8], stat: Stat) -> FsResult<Going<'f>> {
        // A node that is dead had the number before.
        let node = self.nodes.find(node_id(stat.st_ino)).filter(|node| !node.is_dead());
        let held = node.as_ref().and_then(|node| InUse::of_file(self, node));
        Ok(Going {
            entry: (directory.node.clone(), disk.to_owned()),
            gone: self.before_it_goes(directory, disk, name, &stat, node.as_ref()),
            remains: Some(self.remains_of(directory, disk, &stat)?),
            link_file: Self::link_file_of(&directory.dir, disk, &stat),
            stat,
            node,
            has_begun: false,
            _held: held,
        })
    }

    /// Removes an entry by `act`, with its link locked: nobody opens or seals it by the name that goes.
    fn remove_entry(&self, going: &mut Going<'_>, act: impl FnOnce() -> io::Result<()>) -> FsResult<()> {
        let node = going.node.clone();
        let mut link = node.as_ref().map(|node| node.link.lock());
        going.begin();
        match act() {
            Ok(()) => {
                self.lost_a_name(going, link.as_deref_mut());
                Ok(())
            }
            Err(error) => {
                going.take_back();
                Err(error.into())
            }
        }
    }

    /// Removes what served an entry that is gone, and returns what is to be cleared later.
    fn leftovers(&self, going: Going<'_>, directory: &OpenDirectory, how: How) -> Leftovers {
        let mut leftovers = Leftovers::default();
        if let Some(link) = going.link_file {
            self.drop_link_file(directory, link);
        }
        let how = if going.is_last() {
            *self.removed_at.lock() = Some(Instant::now());
            how
        } else if going.has_another_name_in(directory) {
            return leftovers;
        } else {
            How::OneOfSeveral
        };
        leftovers.gone.extend(going.gone.map(|gone| Gone { how, ..gone }));
        leftovers
    }

    /// Keeps hold of a file whose name is about to go: those who have looked it up may still open it. A file that cannot be opened can be removed
    /// all the same; its header then stays behind.
    fn before_it_goes(
        &self,
        directory: &OpenDirectory,
        disk: &str,
        name: &[u8],
        stat: &Stat,
        node: Option<&Arc<Node>>,
    ) -> Option<Gone> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return None;
        }
        let file = match node.and_then(|node| self.file(node).ok()) {
            // Also an empty one: while it is open its inode number is not another's, whose node this one would be taken for.
            Some(file) => GoneFile::Open(file),
            None if (stat.st_size as u64) < PREAMBLE_SIZE => return None,
            None => GoneFile::Closed(directory.dir.open_file(disk, true).ok()?),
        };
        let name = match name::shape(disk.as_bytes()) {
            Shape::Conflict(base, _) => self.plain_name(&directory.node, &base)?.into_vec(),
            _ => name.to_vec(),
        };
        Some(Gone {
            directory: directory.clone(),
            disk: disk.to_owned(),
            name,
            file,
            how: How::Removed,
        })
    }

    /// Returns what will be left of a file when its name goes, for those who have it open or work in it: a directory is kept open.
    fn remains_of(&self, directory: &OpenDirectory, disk: &str, stat: &Stat) -> FsResult<Remains> {
        let mut stat = *stat;
        stat.st_nlink = 0;
        let id = node_id(stat.st_ino);
        let is_known_directory =
            FileType::from_raw_mode(stat.st_mode) == FileType::Directory && self.nodes.find(id).is_some();
        if !is_known_directory {
            return Ok(Remains::Stat(stat));
        }
        let open = self.dirs.lock().peek(&id).cloned();
        Ok(Remains::Dir(match open {
            Some(dir) => dir,
            None => Arc::new(directory.dir.open_dir(disk)?),
        }))
    }

    /// After a name was removed or replaced, with the link of what had it locked: the last one takes the node with it.
    fn lost_a_name(&self, going: &mut Going<'_>, link: Option<&mut Option<Link>>) {
        let (Some(node), Some(link)) = (&going.node, link) else {
            return;
        };
        node.moved();
        if !going.is_last() {
            let (directory, disk) = &going.entry;
            let is_it = |at: &Link| at.is_entry(directory, disk);
            if let Some(at) = link.as_mut()
                && at.other.as_ref().is_some_and(|other| is_it(other))
            {
                at.other = None;
            }
            if link.as_ref().is_some_and(is_it) {
                // Another name that was known goes on, if it is there.
                let other = link.take().and_then(|at| at.other);
                *link = other
                    .map(|other| *other)
                    .filter(|at| self.is_there(node, at).unwrap_or(false));
            }
            return;
        }
        node.kill();
        match (&*node.file.lock(), &self.journal) {
            (Some(file), _) => file.last_name_is_gone(),
            (None, Some(journal)) => journal.was_removed(going.stat.st_ino),
            (None, None) => {}
        }
        *node.remains.lock() = going.remains.take().map(Box::new);
        *link = None;
        if node.kind == FileType::Directory {
            self.dirs.lock().pop(&node.id);
        }
    }

    /// Tells whether a node's file is on disk under a name.
    pub(super) fn is_there(&self, node: &Node, at: &Link) -> FsResult<bool> {
        let stat = self.dir(&at.parent)?.stat(&at.disk);
        Ok(stat.is_ok_and(|stat| stat.st_dev == self.device && node_id(stat.st_ino) == node.id))
    }

    /// Forgets a sync tool's copy that was removed or renamed.
    fn forget_conflict(&self, directory: &OpenDirectory, disk: &str) {
        if is_copy(disk) {
            *directory.state().conflicts.lock() = None;
        }
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    ///
    /// [`FsError::NotEmpty`] when it holds entries, or files that are none of hushfs's and none that sync tools have made of these.
    pub fn remove_directory(&self, at: NameIn<'_>) -> FsResult<()> {
        self.check_writable()?;
        let directory = self.directory(at.parent)?;
        let disk = self.existing_disk_name(&directory, at.name)?;
        let stat = directory.dir.stat(&disk)?;
        let mut going = self.going((&directory, &disk), at.name, stat)?;
        let removed = self.remove_entry(&mut going, || directory.dir.rmdir(&disk));
        match removed {
            Err(FsError::Io(error)) if is_not_empty(&error) => {
                let dir = directory.dir.open_dir(&disk)?;
                let mut foreign = clear_empty_directory(&dir)?;
                if foreign.is_some() {
                    // Some filesystems show files that were removed, under other names, until they are closed: NFS, and many of FUSE.
                    self.free_room();
                    foreign = clear_empty_directory(&dir)?;
                }
                refuse_foreign(&disk, foreign)?;
                self.remove_entry(&mut going, || directory.dir.rmdir(&disk))?;
            }
            result => result?,
        }
        self.forget_conflict(&directory, &disk);
        self.drop_long_name(&directory, &disk);
        Ok(())
    }

    /// Gives a file another name.
    ///
    /// In another directory the file needs a header there. A crash leaves at most that header without the name.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives.
    pub fn link(&self, id: u64, to: NameIn<'_>) -> FsResult<Found> {
        self.check_writable()?;
        self.with_room(|| self.link_once(id, to))
    }

    fn link_once(&self, id: u64, to: NameIn<'_>) -> FsResult<Found> {
        let node = self.node(id)?;
        let target = self.directory(to.parent)?;
        let _held = InUse::of_file(self, &node);
        let link = node.link.lock();
        // The name that was known is gone, and there is another: the kernel looks that one up when it hears of it.
        let at = link.as_ref().ok_or(FsError::Stale)?;
        let dir = self.dir(&at.parent)?;
        if at.conflict_of.is_some() {
            return Err(FsError::NotSupported);
        }
        let disk = self.prepare_name(&target, to.name)?;
        if target.dir.stat(&disk.entry).is_ok() {
            return Err(FsError::Exists);
        }
        let elsewhere = at.parent.id != target.node.id;
        let _arriving = target.state().arrivals.begin();
        if node.kind == FileType::RegularFile {
            let file = self.load_file(&node, Some(at))?;
            // The file must have an id now: at its first write nobody would know all directories that need a header.
            let content = self.content_at(Some(at), &file)?;
            let in_vault = |error: ContentError| self.at(&at.parent, &at.disk)(error.into());
            content.ensure_preamble().map_err(in_vault)?;
            if elsewhere {
                // Both directories need theirs then, and who syncs the file later knows of one.
                self.sync_header_at(Some(at), &file)?;
                self.copy_header(&node, at, &file, &target)?;
            }
            file.attributes_were_changed();
            let admitted = content
                .admit_several_names(|storage| self.content_before_names(storage))
                .map_err(in_vault);
            self.note_change(&node);
            admitted?;
        } else if elsewhere {
            self.copy_link_file(&dir, &at.disk, &target)?;
        }
        dir.link(&at.disk, &target.dir, &disk.entry)?;
        let stat = target.dir.stat(&disk.entry);
        drop(link);
        let found = stat.map_err(FsError::from).and_then(|stat| {
            // The name that was known went to another file just now. The kernel has nobody do so meanwhile; others can.
            if node_id(stat.st_ino) != node.id {
                return Err(FsError::Stale);
            }
            self.found(&target, to.name, &disk.entry, &stat)
        });
        // The kernel goes on to believe that the name is not there.
        if found.is_err() && target.dir.unlink(&disk.entry).is_ok() {
            self.drop_long_name(&target, &disk.entry);
        }
        found
    }

    fn set_places(
        &self,
        at: &Link,
        file: &VaultFile,
        places: impl FnOnce(&crate::crypto::seal::SealKey, Places) -> Places,
    ) -> FsResult<()> {
        let in_vault = |error| self.at(&at.parent, &at.disk)(error);
        let Some(content) = file.usable_content().map_err(in_vault)? else {
            return Ok(());
        };
        file.attributes_were_changed();
        let last = |storage: &_| self.content_before_names(storage);
        content.set_places(last, places).map_err(|error| in_vault(error.into()))
    }

    /// Has a file's header in another directory; with its name durable, if that of the one it has is durable.
    ///
    /// One that is there, of another name of the file, stays as it is: a crash while it is written anew would take it from that name.
    fn copy_header(&self, node: &Arc<Node>, at: &Link, file: &VaultFile, to: &OpenDirectory) -> FsResult<()> {
        let Some(id) = file.id() else { return Ok(()) };
        let in_vault = |error| self.at(&at.parent, &at.disk)(error);
        let dir = self.dir(&at.parent)?;
        let header = self
            .vault
            .load_header(&dir, self.keys(&at.parent)?.id, id)
            .map_err(in_vault)?;
        let header_file = name::header_file(id);
        self.keep(&to.node, &header_file);
        // Always what is in it is written: a rename takes the old one away, and reaches the disk with the other names, whether or not contents do.
        match self.vault.load_header(&to.dir, to.keys().id, id) {
            Ok(_) => self.write_before_names(&to.dir.open_file(&header_file, false)?)?,
            Err(_) => {
                let header = self.vault.header_for_directory(header, to.keys().id);
                let new = self.vault.store_header(&to.dir, &header).map_err(in_vault)?;
                self.new_before_names(&to.dir, &header_file, &new)?;
            }
        }
        if file.header_needs_sync() {
            file.header_was_added();
            self.note_change(node);
        } else if !self.contents_first {
            to.dir.sync()?;
        }
        Ok(())
    }

    /// Has what was written to a small file on disk before names that are changed from now on.
    fn write_before_names(&self, file: &BackingFile) -> io::Result<()> {
        match self.contents_first {
            true => file.write_back(),
            false => file.sync_all(),
        }
    }

    /// As [`write_before_names`](Self::write_before_names), of a file that was just made. An error leaves none: it would be taken for one that is on disk.
    fn new_before_names(&self, dir: &Dir, name: &str, file: &BackingFile) -> io::Result<()> {
        self.write_before_names(file).inspect_err(|_| {
            let _ = dir.unlink(name);
        })
    }

    /// As [`write_before_names`](Self::write_before_names), of content.
    fn content_before_names(&self, content: &impl Storage) -> io::Result<()> {
        match self.contents_first {
            true => content.write_back(),
            false => content.sync_data(),
        }
    }

    /// Copies the file of a long target into another directory, so that it is on disk before the link is, unless another name of the link has it there.
    fn copy_link_file(&self, from: &Dir, disk: &str, to: &OpenDirectory) -> FsResult<()> {
        let stat = from.stat(disk)?;
        if let Some(id) = Self::link_file_of(from, disk, &stat) {
            let file = name::link_file(id);
            self.keep(&to.node, &file);
            let bytes = from.read_small(&file, LINK_FILE_MAX)?;
            match (bytes, to.dir.read_small(&file, LINK_FILE_MAX)) {
                (None, _) => {}
                (Some(bytes), Ok(Some(there))) if bytes == there => {
                    self.write_before_names(&to.dir.open_file(&file, false)?)?;
                }
                (Some(bytes), _) => self.write_before_names(&to.dir.write_small(&file, &bytes)?)?,
            }
        }
        Ok(())
    }

    /// Renames, replaces or exchanges; `flags` are those of renameat2(2).
    ///
    /// Before the names change, everything is durable that is needed to open both entries under the old and the new name: headers in the
    /// new directory, the coming place in a file's seal or a directory's header. After it, what served the old name only is removed. So a crash
    /// at any point leaves entries that open, and at most a header too many.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives.
    pub fn rename(&self, from: NameIn<'_>, to: NameIn<'_>, flags: u32) -> FsResult<Leftovers> {
        self.check_writable()?;
        let flags = RenameFlags::from_bits(flags).ok_or(FsError::Invalid)?;
        self.with_room(|| {
            let target = self.directory(to.parent)?;
            let there = self.existing_disk_name(&target, to.name)?;
            if is_copy(&there) {
                self.rename_over_copy(from, (&target, &there), to, flags)
            } else {
                self.rename_once(from, to, flags)
            }
        })
    }

    /// Renames to the name by which a sync tool's copy shows. What is renamed gets it as its own; then the copy goes.
    ///
    /// A crash between leaves both, of which the copy does not show.
    fn rename_over_copy(
        &self,
        from: NameIn<'_>,
        (target, copy): (&OpenDirectory, &str),
        to: NameIn<'_>,
        flags: RenameFlags,
    ) -> FsResult<Leftovers> {
        if flags.contains(RenameFlags::EXCHANGE) {
            return Err(FsError::NotSupported);
        }
        let source_dir = self.directory(from.parent)?;
        let source = source_dir.dir.stat(&self.existing_disk_name(&source_dir, from.name)?)?;
        let replaced = target.dir.stat(copy)?;
        if source.st_ino == replaced.st_ino {
            return Ok(Leftovers::default());
        }
        if flags.contains(RenameFlags::NOREPLACE) {
            return Err(FsError::Exists);
        }
        if FileType::from_raw_mode(replaced.st_mode) == FileType::Directory {
            // It must be empty.
            self.remove_directory(to)?;
            return self.rename_once(from, to, flags);
        }
        let mut leftovers = self.rename_once(from, to, flags)?;
        match self.unlink_entry((target, copy), to.name) {
            Ok(more) => leftovers.gone.extend(more.gone),
            Err(error) => log::warn!("{copy:?} stays, although another took its name: {error}"),
        }
        Ok(leftovers)
    }

    fn rename_once(&self, from: NameIn<'_>, to: NameIn<'_>, flags: RenameFlags) -> FsResult<Leftovers> {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let source_dir = self.directory(from.parent)?;
        let target_dir = self.directory(to.parent)?;
        let source_disk = self.existing_disk_name(&source_dir, from.name)?;
        let source_stat = source_dir.dir.stat(&source_disk)?;
        if exchange && is_copy(&source_disk) {
            // Its name on disk goes on saying that what has it is a copy of another entry.
            return Err(FsError::NotSupported);
        }
        let target_disk = if exchange {
            DiskName {
                entry: target_dir.seal_name(to.name)?,
                long: None,
            }
        } else {
            self.prepare_name(&target_dir, to.name)?
        };
        let target_disk = target_disk.entry.as_str();
        let target_stat = match target_dir.dir.stat(target_disk) {
            Ok(stat) => Some(stat),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        match &target_stat {
            // Two names of one file, or one name: nothing happens (rename(2)).
            Some(target) if target.st_ino == source_stat.st_ino => return Ok(Leftovers::default()),
            Some(_) if flags.contains(RenameFlags::NOREPLACE) => return Err(FsError::Exists),
            None if exchange => return Err(FsError::NotFound),
            _ => {}
        }
        let _arriving = [Some(&target_dir), Some(&source_dir).filter(|_| exchange)]
            .map(|directory| directory.map(|directory| directory.state().arrivals.begin()));
        self.check_own_name(&source_dir, (from.name, &source_disk), &source_stat)?;
        if let Some(target) = target_stat.as_ref().filter(|_| exchange) {
            self.check_own_name(&target_dir, (to.name, target_disk), target)?;
        }
        let source = Side {
            node: self.nodes.find(node_id(source_stat.st_ino)),
            stat: source_stat,
            from: (&source_dir, &source_disk, from.name),
            to: (&target_dir, to.name),
        };
        let other = target_stat.filter(|_| exchange).map(|stat| Side {
            node: self.nodes.find(node_id(stat.st_ino)),
            stat,
            from: (&target_dir, target_disk, to.name),
            to: (&source_dir, from.name),
        });
        let replaced = target_stat.filter(|_| !exchange);
        let mut going = match replaced {
            Some(stat) => Some(self.going((&target_dir, target_disk), to.name, stat)?),
            None => None,
        };
        let moving: Vec<_> = [Some(&source), other.as_ref()]
            .into_iter()
            .flatten()
            .filter_map(|side| side.node.clone())
            .collect();
        let _held: Vec<_> = moving.iter().filter_map(|node| InUse::of_file(self, node)).collect();
        // The places of both change, or one goes: nobody may load or seal them meanwhile.
        let mut nodes: Vec<_> = moving
            .iter()
            .chain(going.iter().filter_map(|going| going.node.as_ref()))
            .cloned()
            .collect();
        nodes.sort_by_key(|node| node.id);
        let mut links: Vec<_> = nodes.iter().map(|node| (node.id, node.link.lock())).collect();

        let source_file = self.announce(&source, replaced.is_some())?;
        let other_file = match &other {
            Some(other) => self.announce(other, false)?,
            None => None,
        };
        let rename = || source_dir.dir.rename(&source_disk, &target_dir.dir, target_disk, flags);
        going.iter_mut().for_each(Going::begin);
        let renamed = match rename() {
            Err(error) if is_not_empty(&error) && replaced.is_some() => target_dir
                .dir
                .open_dir(target_disk)
                .map_err(FsError::from)
                .and_then(|dir| refuse_foreign(target_disk, clear_empty_directory(&dir)?))
                .and_then(|()| Ok(rename()?)),
            result => result.map_err(FsError::from),
        };
        if renamed.is_err() {
            going.iter_mut().for_each(Going::take_back);
        }
        renamed?;

        for (node, link) in &mut links {
            if let Some(going) = going.as_mut().filter(|going| going.is(*node)) {
                self.lost_a_name(going, Some(&mut **link));
            }
            let side = [Some(&source), other.as_ref()]
                .into_iter()
                .flatten()
                .find(|side| side.node.as_ref().is_some_and(|n| n.id == *node));
            if let Some(side) = side {
                let disk = if std::ptr::eq(side, &raw const source) {
                    target_disk
                } else {
                    &source_disk
                };
                // Of several names the one that was known may be another than the one that is renamed.
                let (from, old_disk, _) = side.from;
                let known = link
                    .take()
                    .and_then(|known| match known.is_entry(&from.node, old_disk) {
                        true => known.other,
                        false => known.into_other(),
                    });
                **link = Some(Link {
                    parent: side.to.0.node.clone(),
                    name: side.to.1.into(),
                    disk: disk.into(),
                    conflict_of: None,
                    other: known.filter(|other| side.stat.st_nlink > 1 && !other.is_entry(&from.node, old_disk)),
                });
            }
        }
        if source_dir.node.id != target_dir.node.id {
            // With the links locked: the next rename may need the same header here again.
            self.drop_what_served(&source, target_disk, source_file.as_ref());
            if let Some(other) = &other {
                self.drop_what_served(other, &source_disk, other_file.as_ref());
            }
        }
        moving.iter().for_each(|node| node.moved());
        drop(links);
        for node in &moving {
            self.note_rename(node);
        }
        self.forget_conflict(&source_dir, &source_disk);
        if !exchange && !flags.contains(RenameFlags::WHITEOUT) {
            self.drop_long_name(&source_dir, &source_disk);
        }
        let how = if is_copy(&source_disk) {
            How::ReplacedByCopy
        } else {
            How::Removed
        };
        let leftovers = going.map(|going| self.leftovers(going, &target_dir, how));
        Ok(leftovers.unwrap_or_default())
    }

    /// Refuses to rename a file by a name that someone has given it: it would be given the new one by hushfs.
    fn check_own_name(&self, directory: &OpenDirectory, (name, disk): (&[u8], &str), stat: &Stat) -> FsResult<()> {
        match self.nodes.find(node_id(stat.st_ino)) {
            Some(node) if stat.st_nlink > 1 => self.admit_name(&node, directory, (name, disk), stat),
            _ => Ok(()),
        }
    }

    /// Makes everything durable that an entry needs under its new name; returns the file, if it has content.
    fn announce(&self, side: &Side<'_>, replaces: bool) -> FsResult<Option<Arc<VaultFile>>> {
        let (from, disk, shown) = side.from;
        let (to, to_name) = side.to;
        let elsewhere = from.node.id != to.node.id;
        match FileType::from_raw_mode(side.stat.st_mode) {
            FileType::Directory => {
                self.announce_directory(side)?;
                Ok(None)
            }
            FileType::RegularFile if Self::has_header(side)? => {
                let at = Link {
                    parent: from.node.clone(),
                    name: shown.into(),
                    disk: disk.into(),
                    conflict_of: self.conflict_of(&from.node, disk),
                    other: None,
                };
                let found_at = self.found_at(&at)?;
                let loaded;
                let file = match &side.node {
                    Some(node) => {
                        let known = node.link.is_locked();
                        debug_assert!(known, "the links of both sides are locked");
                        loaded = self.load_for_rename(node, &at)?;
                        &loaded
                    }
                    None => {
                        let backing = from.dir.open_file(disk, false)?;
                        loaded = Arc::new(
                            VaultFile::load(&self.vault, backing, None, &from.dir, found_at)
                                .map_err(self.at(&from.node, disk))?,
                        );
                        &loaded
                    }
                };
                let several_names = side.stat.st_nlink != 1;
                if elsewhere {
                    if several_names {
                        // The other names go on needing the header where they are.
                        self.sync_header_at(Some(&at), file)?;
                    }
                    // A node that the kernel does not know has nothing waiting to be sealed.
                    let node = side.node.as_ref().unwrap_or(&self.root);
                    self.copy_header(node, &at, file, to)?;
                }
                if replaces && file.header_needs_sync() {
                    // The old content goes with the rename: the new one must be able to be opened then.
                    let (dir, id) = (&to.dir, file.id().unwrap_or(FileId([0; 16])));
                    let headers = file.headers();
                    self.write_before_names(&dir.open_file(&name::header_file(id), true)?)?;
                    if !self.contents_first {
                        dir.sync()?;
                        file.headers_were_synced(headers);
                    }
                }
                if file.content().is_some_and(|content| content.is_renaming()) {
                    // A rename before this one may not be on disk yet; only two places fit into a seal.
                    from.dir.sync()?;
                }
                self.set_places(&at, file, |key, places| {
                    // On another machine it may have got another name.
                    if places.current.is_none() || (several_names && self.options.shared) {
                        return places;
                    }
                    Places {
                        // Also of a copy that a sync tool made: should the rename fail, it is the one that its content has.
                        current: Some(key.place(found_at.directory, found_at.name)),
                        next: Some(key.place(to.keys().id, to_name)),
                    }
                })?;
                Ok(Some(file.clone()))
            }
            FileType::Symlink if elsewhere => {
                self.copy_link_file(&from.dir, disk, to)?;
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Tells whether a file that is renamed has a header, with its node's link locked: nobody gives it one then.
    ///
    /// The size on disk alone does not tell: a header is stored before the first byte, and the kernel writes while it renames.
    fn has_header(side: &Side<'_>) -> FsResult<bool> {
        if let Some(node) = &side.node
            && let Some(file) = &*node.file.lock()
        {
            return Ok(file.id().is_some());
        }
        let (from, disk, _) = side.from;
        Ok(from.dir.stat(disk)?.st_size as u64 >= PREAMBLE_SIZE)
    }

    /// Returns the file of a node that is renamed; damaged ones can be renamed in their directory, but not be trusted afterwards.
    fn load_for_rename(&self, node: &Arc<Node>, at: &Link) -> FsResult<Arc<VaultFile>> {
        if let Some(file) = &*node.file.lock() {
            return Ok(file.clone());
        }
        // Another of the file's names may be the one in the node; the one that is renamed is there for sure.
        self.load_file(node, Some(at))
    }

    pub(super) fn plain_name(&self, parent: &Arc<Node>, entry: &str) -> Option<Box<[u8]>> {
        match name::shape(entry.as_bytes()) {
            Shape::Inline(sealed) => Some(self.keys(parent).ok()?.open_name(&sealed)?.into()),
            Shape::Long => {
                let dir = self.dir(parent).ok()?;
                Some(self.keys(parent).ok()?.open_long_name(&dir, entry).ok()?.into())
            }
            _ => None,
        }
    }

    /// Has a directory's header admit the old and the new name.
    fn announce_directory(&self, side: &Side<'_>) -> FsResult<()> {
        let (from, disk, shown) = side.from;
        let (to, to_name) = side.to;
        // The id of a copy that a sync tool made follows from the name of what it is a copy of.
        let base = self.conflict_of(&from.node, disk);
        let name = base.as_deref().unwrap_or(shown);
        let dir = from.dir.open_dir(disk)?;
        let in_vault = |error| self.at(&from.node, disk)(error);
        let known = side.node.as_ref().and_then(|node| node.keys()).map(|keys| keys.id);
        let id = match known {
            Some(id) => id,
            None => {
                let keys = self
                    .vault
                    .load_directory(&dir, from.keys().id, name)
                    .map_err(in_vault)?;
                match side.node.as_ref().and_then(|node| node.directory.as_ref()) {
                    // From now on the name no longer says what the id is.
                    Some(state) => state.keys.get_or_init(|| keys).id,
                    None => keys.id,
                }
            }
        };
        self.vault
            .announce_directory_rename(&dir, id, (from.keys().id, name), (to.keys().id, to_name))
            .map_err(in_vault)
    }

    /// Removes from the old directory what an entry needed there; `disk` is its name in the new one.
    fn drop_what_served(&self, side: &Side<'_>, disk: &str, file: Option<&Arc<VaultFile>>) {
        let (from, old_disk, name) = side.from;
        let how = match side.stat.st_nlink {
            1 => How::Moved,
            _ => How::OneOfSeveral,
        };
        if let Some(file) = file {
            self.drop_header(Gone {
                directory: from.clone(),
                disk: old_disk.to_owned(),
                name: name.to_vec(),
                file: GoneFile::Open(file.clone()),
                how,
            });
        }
        if let Some(link) = Self::link_file_of(&side.to.0.dir, disk, &side.stat) {
            self.drop_link_file(from, link);
        }
    }
}

/// Tells whether a link in a directory has its target in this file.
fn needs_link_file(dir: &Dir, link: FileId) -> io::Result<bool> {
    let mut links = Vec::new();
    dir.each_entry(|entry| {
        if matches!(entry.kind, FileType::Symlink | FileType::Unknown) {
            links.extend(std::str::from_utf8(entry.name).map(str::to_owned));
        }
    })?;
    let has_it = |disk: &String| {
        let target = dir.readlink(disk).ok().and_then(|text| link::decode(&text).ok());
        matches!(target, Some(DiskTarget::Long { link: found, .. }) if found == link)
    };
    Ok(links.iter().any(has_it))
}

/// Tells whether an entry on disk is a copy that a sync tool made of another.
pub(super) fn is_copy(disk: &str) -> bool {
    matches!(name::shape(disk.as_bytes()), Shape::Conflict(..))
}

fn is_not_empty(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST))
}

/// Removes hushfs's own files from a directory that holds no entries, and what sync tools have made of these; nothing where there is something else, whose
/// name is returned.
///
/// A crash in between leaves an empty directory under another id, which makes no difference to an empty one.
fn clear_empty_directory(dir: &Dir) -> FsResult<Option<Vec<u8>>> {
    let mut own = Vec::new();
    let mut foreign: Option<Vec<u8>> = None;
    let mut stream = dir.stream()?;
    while let Some(entry) = stream.next_entry()? {
        match name::shape(entry.name) {
            Shape::Dots => {}
            Shape::Header(_)
            | Shape::LongNameFile(_)
            | Shape::LinkFile(_)
            | Shape::DirectoryHeader
            | Shape::Temporary => own.push(entry.name.to_vec()),
            Shape::Inline(_) | Shape::Long | Shape::Conflict(..) => return Err(FsError::NotEmpty),
            Shape::Stranger if entry.kind != FileType::Directory && name::is_left_by_sync_tool(entry.name) => {
                own.push(entry.name.to_vec());
            }
            Shape::VaultFile | Shape::LostAndFound | Shape::Stranger => {
                foreign.get_or_insert(entry.name.to_vec());
            }
        }
    }
    if foreign.is_some() {
        return Ok(foreign);
    }
    for name in own {
        if let Ok(name) = std::str::from_utf8(&name) {
            match dir.unlink(name) {
                // A header that its operation's clearing removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
    }
    Ok(None)
}

/// Refuses to remove the directory with this name on disk where something in it is in the way, and logs what.
fn refuse_foreign(disk: &str, foreign: Option<Vec<u8>>) -> FsResult<()> {
    let Some(foreign) = foreign else { return Ok(()) };
    log::warn!(
        "{disk} looks empty and stays: {:?} in it was not made by hushfs: remove that from the vault's directory",
        String::from_utf8_lossy(&foreign)
    );
    Err(FsError::NotEmpty)
}
