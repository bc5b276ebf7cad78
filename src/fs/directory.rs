//! Operations on names: making, removing, linking and renaming.
//!
//! Each that touches more than one file says what a crash between its steps leaves. They rely on the backing filesystem to keep
//! changes of names in their order, as ext4, xfs, btrfs and tmpfs do; what must be on disk *before* a name changes is synced.

use std::{io, sync::Arc};

use rustix::fs::{FileType, RenameFlags, Stat};

use super::{
    Caller, Found, Fs, FsError, FsResult, OpenDirectory,
    node::{Absent, Link, Node, Remains, node_id},
    xattr::Birth,
};
use crate::{
    backing::{BackingFile, Dir, RawEntry},
    format::{
        layout::PREAMBLE_SIZE,
        link::{self, DiskTarget, LINK_FILE_MAX},
        name::{self, DiskName, NAME_MAX, Shape},
        preamble::Places,
    },
    ids::FileId,
    vault::{
        VaultError,
        file::{FoundAt, VaultFile},
    },
};

/// A name in a directory, as operations on two of them take it.
#[derive(Clone, Copy, Debug)]
pub struct NameIn<'n> {
    /// The directory's node number.
    pub parent: u64,
    /// The name in plaintext.
    pub name: &'n [u8],
}

/// Headers that an operation may have left without a use, for [`Fs::clear`].
#[must_use = "headers stay behind otherwise"]
#[derive(Debug, Default)]
pub struct Leftovers {
    gone: Vec<Gone>,
}

/// A file's last name in a directory that is gone.
#[derive(Debug)]
struct Gone {
    directory: OpenDirectory,
    /// The name on disk.
    disk: String,
    /// The name that the file was sealed for.
    name: Vec<u8>,
    file: GoneFile,
    /// A sync tool's copy took its place, which has the same header.
    replaced_by_copy: bool,
}

/// The file that had a name, to tell which header was its own.
#[derive(Debug)]
enum GoneFile {
    /// It was open, and so checked.
    Open(Arc<VaultFile>),
    /// It was not; what its data file says of itself is still to be checked.
    Closed(BackingFile),
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
        let disk = directory.keys().seal_name(name);
        if let Some(sealed) = &disk.long {
            let file = disk.long_name_file();
            if directory.dir.stat(&file).is_err() {
                let written = directory.dir.write_small(&file, &name::encode_long_name(sealed))?;
                written.sync_all()?;
            }
        }
        Ok(disk)
    }

    /// Removes the long-name file of an entry that is gone.
    fn drop_long_name(dir: &Dir, entry: &str) {
        if name::shape(entry.as_bytes()) == Shape::Long {
            let _ = dir.unlink(&name::long_name_file(entry));
        }
    }

    /// Gives a new entry to the caller, where another user made it for them.
    fn give_to(&self, caller: Caller, directory: &OpenDirectory, disk: &str, mode: u32) -> FsResult<()> {
        if (caller.uid, caller.gid) == (self.options.own_uid, self.options.own_gid) {
            return Ok(());
        }
        // In a set-group-id directory the group is the directory's, as the backing filesystem has set it.
        let inherits_group = directory.dir.stat_self()?.st_mode & libc::S_ISGID != 0;
        let gid = (!inherits_group).then_some(caller.gid);
        match directory.dir.chown(disk, Some(caller.uid), gid) {
            // Mounted by an ordinary user: everything is theirs.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) && self.options.own_uid != 0 => return Ok(()),
            result => result?,
        }
        // A change of owner clears these.
        if mode & (libc::S_ISUID | libc::S_ISGID) != 0 && FileType::from_raw_mode(mode) == FileType::RegularFile {
            directory.dir.chmod(disk, mode)?;
        }
        Ok(())
    }

    /// Finishes making an entry; takes it away again if that fails.
    fn made(
        &self,
        directory: &OpenDirectory,
        name: &[u8],
        disk: &DiskName,
        caller: Caller,
        birth: &Birth,
    ) -> FsResult<Found> {
        let result = self
            .give_to(caller, directory, &disk.entry, birth.first_mode())
            .and_then(|()| Ok(directory.dir.stat(&disk.entry)?))
            .and_then(|stat| self.found(directory, name, &disk.entry, &stat))
            .and_then(|found| self.with_lists(found, birth));
        if result.is_err() {
            let gone = match FileType::from_raw_mode(birth.mode) {
                FileType::Directory => directory.dir.rmdir(&disk.entry),
                _ => directory.dir.unlink(&disk.entry),
            };
            if gone.is_ok() {
                Self::drop_long_name(&directory.dir, &disk.entry);
            }
        }
        result
    }

    /// Gives what was made the access control lists it inherits.
    fn with_lists(&self, mut found: Found, birth: &Birth) -> FsResult<Found> {
        if !self.options.acl {
            return Ok(found);
        }
        found.node.found_without(Absent::AccessAcl);
        let given = self
            .give_lists(&found.node, birth)
            .and_then(|()| self.node_attr(&found.node));
        match given {
            Ok(attr) => found.attr = attr,
            Err(error) => {
                self.nodes.undo_look_up(found.node.id);
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
        self.with_room(|| self.create_once(at, mode, caller))
    }

    fn create_once(&self, at: NameIn<'_>, mode: u32, caller: Caller) -> FsResult<Found> {
        let directory = self.directory(at.parent)?;
        let disk = self.prepare_name(&directory, at.name)?;
        let birth = self.birth(&directory.node, libc::S_IFREG | mode & 0o7777, caller)?;
        let file = directory.dir.create_file(&disk.entry, birth.first_mode() & 0o7777)?;
        let found = self.made(&directory, at.name, &disk, caller, &birth)?;
        *found.node.file.lock() = Some(Arc::new(VaultFile::created(file)));
        found.node.found_without(Absent::Capability);
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
        let disk = self.prepare_name(&directory, at.name)?;
        let birth = self.birth(&directory.node, mode, caller)?;
        directory.dir.mknod(&disk.entry, birth.first_mode(), device.into())?;
        self.made(&directory, at.name, &disk, caller, &birth)
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
        directory.dir.mkdir(&disk.entry, birth.first_mode() & 0o7777)?;
        self.made(&directory, at.name, &disk, caller, &birth)
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
        if let Some((id, bytes)) = &sealed.file {
            directory.dir.write_small(&name::link_file(*id), bytes)?.sync_all()?;
        }
        let made = directory.dir.symlink(&sealed.text, &disk.entry);
        if made.is_err()
            && let Some((id, _)) = &sealed.file
        {
            let _ = directory.dir.unlink(&name::link_file(*id));
        }
        made?;
        self.made(&directory, at.name, &disk, caller, &Birth::of_link())
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
        let (dir, disk) = self.entry_of(&node)?;
        self.read_link_at(&dir, &disk)
            .map_err(|error| self.at(&node, "")(error))
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
        let stat = directory.dir.stat(&disk)?;
        let gone = self.before_it_goes(&directory, &disk, at.name, &stat);
        let link_file = Self::link_file_of(&directory.dir, &disk, &stat);
        directory.dir.unlink(&disk)?;
        self.forget_conflict(&directory, &disk);
        Self::drop_long_name(&directory.dir, &disk);
        if let Some(link) = link_file
            && stat.st_nlink == 1
        {
            let _ = directory.dir.unlink(&name::link_file(link));
        }
        let mut leftovers = Leftovers::default();
        let remains = self.remains_of(&directory, &disk, &stat)?;
        if self.lost_a_name(&directory, at.name, &stat, remains) {
            leftovers.gone.extend(gone);
        }
        Ok(leftovers)
    }

    /// Removes headers that an operation left without a use.
    ///
    /// Not part of the operation, since nobody needs to wait for it: a header too many is harmless.
    pub fn clear(&self, leftovers: Leftovers) {
        for gone in leftovers.gone {
            self.drop_header(gone);
        }
    }

    /// Keeps hold of a file whose name is about to go: those who have looked it up may still open it. A file that cannot be opened can be removed
    /// all the same; its header then stays behind.
    fn before_it_goes(&self, directory: &OpenDirectory, disk: &str, name: &[u8], stat: &Stat) -> Option<Gone> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return None;
        }
        let node = self.nodes.find(node_id(stat.st_ino));
        let open = node.and_then(|node| self.file(&node).ok());
        if (stat.st_size as u64) < PREAMBLE_SIZE {
            return None;
        }
        let file = match open {
            Some(file) => GoneFile::Open(file),
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
            replaced_by_copy: false,
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
            return Ok(Remains::Stat(Box::new(stat)));
        }
        let open = self.dirs.lock().peek(&id).cloned();
        Ok(Remains::Dir(match open {
            Some(dir) => dir,
            None => Arc::new(directory.dir.open_dir(disk)?),
        }))
    }

    /// After a name was removed or replaced: the last one takes the node with it. Tells whether it was the last.
    fn lost_a_name(&self, directory: &OpenDirectory, name: &[u8], stat: &Stat, remains: Remains) -> bool {
        let last = stat.st_nlink == 1 || FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if let Some(node) = self.nodes.find(node_id(stat.st_ino)) {
            if last {
                node.kill();
                if node.kind == FileType::RegularFile && !node.is_open() {
                    self.keep_removed(&node);
                }
                *node.remains.lock() = Some(remains);
            }
            if last || node.is_at(&directory.node, name) {
                *node.link.lock() = None;
            }
            if last && node.kind == FileType::Directory {
                self.dirs.lock().pop(&node.id);
            }
        }
        last
    }

    /// Removes the header of a file from the directory it is gone from, unless another file needs it: a sync tool's copy, the original where the copy
    /// is gone, or the true owner where someone had put a copy of its data under another name.
    fn drop_header(&self, gone: Gone) {
        let Gone {
            directory,
            disk,
            name,
            file,
            replaced_by_copy,
        } = gone;
        let file = match file {
            GoneFile::Open(file) => file,
            GoneFile::Closed(backing) => {
                let at = FoundAt {
                    directory: directory.keys().id,
                    name: &name,
                };
                match VaultFile::load(&self.vault, backing, &directory.dir, at) {
                    Ok(file) => Arc::new(file),
                    // What a file says of itself that fails its checks is nothing to remove headers by.
                    Err(error) => {
                        log::debug!("the header of {disk:?} stays behind: {error}");
                        return;
                    }
                }
            }
        };
        let Some(id) = file.id() else { return };
        let was_copy = matches!(name::shape(disk.as_bytes()), Shape::Conflict(..));
        let others = if was_copy || replaced_by_copy || !file.owns_header() {
            files_in(&directory.dir).map(Arc::new)
        } else {
            self.conflicts(&directory)
        };
        let needed = match others {
            Ok(others) => others
                .iter()
                .any(|other| !matches!(Self::id_on_disk(&directory.dir, other), Ok(found) if found != Some(id))),
            Err(_) => true,
        };
        if !needed && let Err(error) = directory.dir.unlink(&name::header_file(id)) {
            log::debug!("header {} stays behind: {error}", name::header_file(id));
        }
    }

    /// Forgets a sync tool's copy that was removed or renamed.
    fn forget_conflict(&self, directory: &OpenDirectory, disk: &str) {
        if matches!(name::shape(disk.as_bytes()), Shape::Conflict(..)) {
            *directory.node.conflicts.lock() = None;
        }
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    ///
    /// [`FsError::NotEmpty`] when it holds entries, or files that are none of hushfs's.
    pub fn remove_directory(&self, at: NameIn<'_>) -> FsResult<()> {
        self.check_writable()?;
        let directory = self.directory(at.parent)?;
        let disk = self.existing_disk_name(&directory, at.name)?;
        let stat = directory.dir.stat(&disk)?;
        let remains = self.remains_of(&directory, &disk, &stat)?;
        match directory.dir.rmdir(&disk) {
            Err(error) if is_not_empty(&error) => {
                clear_empty_directory(&directory.dir.open_dir(&disk)?)?;
                directory.dir.rmdir(&disk)?;
            }
            result => result?,
        }
        Self::drop_long_name(&directory.dir, &disk);
        self.lost_a_name(&directory, at.name, &stat, remains);
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
        let node = self.node(id)?;
        let target = self.directory(to.parent)?;
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
        if node.kind == FileType::RegularFile {
            let file = self.load_file(&node, Some(at))?;
            // The file must have an id now: at its first write nobody would know all directories that need a header.
            self.content_at(Some(at), &file)?
                .ensure_preamble()
                .map_err(|error| self.at(&at.parent, &at.disk)(error.into()))?;
            if elsewhere {
                self.copy_header(&node, at, &file, &target)?;
            }
            // From now on it may be found under more names than one.
            self.set_places(at, &file, |_, _| Places::default())?;
            self.note_change(&node);
        } else if elsewhere {
            self.copy_link_file(&dir, &at.disk, &target.dir)?;
        }
        dir.link(&at.disk, &target.dir, &disk.entry)?;
        let stat = target.dir.stat(&disk.entry)?;
        drop(link);
        self.found(&target, to.name, &disk.entry, &stat)
    }

    fn set_places(
        &self,
        at: &Link,
        file: &VaultFile,
        places: impl FnOnce(&crate::crypto::seal::SealKey, Places) -> Places,
    ) -> FsResult<()> {
        let Some(content) = file.content() else { return Ok(()) };
        content
            .set_places(places)
            .map_err(|error| self.at(&at.parent, &at.disk)(error.into()))
    }

    /// Stores a file's header in another directory; durably, if the one it has is durable.
    fn copy_header(&self, node: &Arc<Node>, at: &Link, file: &VaultFile, to: &OpenDirectory) -> FsResult<()> {
        let Some(id) = file.id() else { return Ok(()) };
        let in_vault = |error| self.at(&at.parent, &at.disk)(error);
        let dir = self.dir(&at.parent)?;
        let header = self
            .vault
            .load_header(&dir, self.keys(&at.parent)?.id, id)
            .map_err(in_vault)?;
        let header = self.vault.header_for_directory(header, to.keys().id);
        self.vault.store_header(&to.dir, &header).map_err(in_vault)?;
        if !file.header_needs_sync() {
            to.dir.open_file(&name::header_file(id), true)?.sync_all()?;
            to.dir.sync()?;
        } else {
            self.note_change(node);
        }
        Ok(())
    }

    /// Copies the file of a long target into another directory, durably.
    fn copy_link_file(&self, from: &Dir, disk: &str, to: &Dir) -> FsResult<()> {
        let stat = from.stat(disk)?;
        if let Some(id) = Self::link_file_of(from, disk, &stat) {
            let file = name::link_file(id);
            if let Some(bytes) = from.read_small(&file, LINK_FILE_MAX)? {
                to.write_small(&file, &bytes)?.sync_all()?;
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
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let source_dir = self.directory(from.parent)?;
        let target_dir = self.directory(to.parent)?;
        let source_disk = self.existing_disk_name(&source_dir, from.name)?;
        let source_stat = source_dir.dir.stat(&source_disk)?;
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
        let replaced_file = replaced
            .as_ref()
            .and_then(|stat| self.before_it_goes(&target_dir, target_disk, to.name, stat));
        // Both files' places change: nobody may load or seal them meanwhile.
        let mut nodes: Vec<_> = [&Some(&source), &other.as_ref()]
            .into_iter()
            .flatten()
            .filter_map(|side| side.node.clone())
            .collect();
        nodes.sort_by_key(|node| node.id);
        let mut links: Vec<_> = nodes.iter().map(|node| (node.id, node.link.lock())).collect();

        let source_file = self.announce(&source, replaced.is_some())?;
        let other_file = match &other {
            Some(other) => self.announce(other, false)?,
            None => None,
        };
        let replaced_link_file = replaced
            .as_ref()
            .and_then(|stat| Self::link_file_of(&target_dir.dir, target_disk, stat));
        let remains = match &replaced {
            Some(stat) => Some(self.remains_of(&target_dir, target_disk, stat)?),
            None => None,
        };
        let rename = || source_dir.dir.rename(&source_disk, &target_dir.dir, target_disk, flags);
        match rename() {
            Err(error) if is_not_empty(&error) && replaced.is_some() => {
                clear_empty_directory(&target_dir.dir.open_dir(target_disk)?)?;
                rename()?;
            }
            result => result?,
        }

        for (node, link) in &mut links {
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
                **link = Some(Link {
                    parent: side.to.0.node.clone(),
                    name: side.to.1.into(),
                    disk: disk.into(),
                    conflict_of: None,
                });
            }
        }
        if source_dir.node.id != target_dir.node.id {
            // Not left for later, and with the links locked: the next rename may need the same header here again.
            self.drop_what_served(&source, target_disk, source_file.as_ref());
            if let Some(other) = &other {
                self.drop_what_served(other, &source_disk, other_file.as_ref());
            }
        }
        drop(links);
        for node in &nodes {
            self.note_rename(node);
        }
        self.forget_conflict(&source_dir, &source_disk);
        if !exchange && !flags.contains(RenameFlags::WHITEOUT) {
            Self::drop_long_name(&source_dir.dir, &source_disk);
        }
        let mut leftovers = Leftovers::default();
        if let (Some(stat), Some(remains)) = (&replaced, remains) {
            if stat.st_nlink == 1
                && let Some(link) = replaced_link_file
            {
                let _ = target_dir.dir.unlink(&name::link_file(link));
            }
            if self.lost_a_name_by_rename(&target_dir, stat, remains) {
                let replaced_by_copy = matches!(name::shape(source_disk.as_bytes()), Shape::Conflict(..));
                leftovers.gone.extend(replaced_file.map(|gone| Gone {
                    replaced_by_copy,
                    ..gone
                }));
            }
        }
        Ok(leftovers)
    }

    fn lost_a_name_by_rename(&self, directory: &OpenDirectory, stat: &Stat, remains: Remains) -> bool {
        // The name is another node's now: none is given here, so that it is not taken for the lost one.
        let last = self.lost_a_name(directory, b"", stat, remains);
        if let Some(node) = self.nodes.find(node_id(stat.st_ino))
            && !node.is_dead()
        {
            let mut link = node.link.lock();
            let gone = link.as_ref().is_some_and(|at| {
                at.parent.id == directory.node.id
                    && directory
                        .dir
                        .stat(&at.disk)
                        .map_or(true, |now| now.st_ino != stat.st_ino)
            });
            if gone {
                *link = None;
            }
        }
        last
    }

    /// Makes everything durable that an entry needs under its new name; returns the file, if it has content.
    fn announce(&self, side: &Side<'_>, replaces: bool) -> FsResult<Option<Arc<VaultFile>>> {
        let (from, disk, name) = side.from;
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
                    name: name.into(),
                    disk: disk.into(),
                    conflict_of: None,
                };
                let loaded;
                let file = match &side.node {
                    Some(node) => {
                        let known = node.link.is_locked();
                        debug_assert!(known, "the links of both sides are locked");
                        loaded = self.load_for_rename(node, &at, disk)?;
                        &loaded
                    }
                    None => {
                        let backing = from.dir.open_file(disk, false)?;
                        let found_at = FoundAt {
                            directory: from.keys().id,
                            name,
                        };
                        loaded = Arc::new(
                            VaultFile::load(&self.vault, backing, &from.dir, found_at)
                                .map_err(self.at(&from.node, disk))?,
                        );
                        &loaded
                    }
                };
                if elsewhere {
                    // A node that the kernel does not know has nothing waiting to be sealed.
                    let node = side.node.as_ref().unwrap_or(&self.root);
                    self.copy_header(node, &at, file, to)?;
                }
                if replaces && file.header_needs_sync() {
                    // The old content goes with the rename: the new one must be able to be opened then.
                    let (dir, id) = (&to.dir, file.id().unwrap_or(FileId([0; 16])));
                    dir.open_file(&name::header_file(id), true)?.sync_all()?;
                    dir.sync()?;
                    file.header_was_synced();
                }
                let several_names = side.stat.st_nlink != 1;
                if file.content().is_some_and(|content| content.is_renaming()) {
                    // A rename before this one may not be on disk yet; only two places fit into a seal.
                    from.dir.sync()?;
                }
                self.set_places(&at, file, |key, places| {
                    if several_names || places.current.is_none() {
                        return places;
                    }
                    Places {
                        current: Some(key.place(from.keys().id, name)),
                        next: Some(key.place(to.keys().id, to_name)),
                    }
                })?;
                Ok(Some(file.clone()))
            }
            FileType::Symlink if elsewhere => {
                self.copy_link_file(&from.dir, disk, &to.dir)?;
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
    fn load_for_rename(&self, node: &Arc<Node>, at: &Link, disk: &str) -> FsResult<Arc<VaultFile>> {
        if let Some(file) = &*node.file.lock() {
            return Ok(file.clone());
        }
        // Another of the file's names may be the one in the node; the one that is renamed is there for sure.
        let link = Link {
            conflict_of: match name::shape(disk.as_bytes()) {
                Shape::Conflict(base, _) => self.plain_name(&at.parent, &base),
                _ => None,
            },
            ..at.clone()
        };
        self.load_file(node, Some(&link))
    }

    fn plain_name(&self, parent: &Arc<Node>, entry: &str) -> Option<Box<[u8]>> {
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
        let (from, disk, name) = side.from;
        let (to, to_name) = side.to;
        let dir = from.dir.open_dir(disk)?;
        let in_vault = |error| self.at(&from.node, disk)(error);
        let known = side.node.as_ref().and_then(|node| node.keys.get()).map(|keys| keys.id);
        let id = match known {
            Some(id) => id,
            None => {
                let keys = self
                    .vault
                    .load_directory(&dir, from.keys().id, name)
                    .map_err(in_vault)?;
                match &side.node {
                    // From now on the name no longer says what the id is.
                    Some(node) => node.keys.get_or_init(|| keys).id,
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
        if side.stat.st_nlink != 1 {
            return;
        }
        let (from, old_disk, name) = side.from;
        if let Some(file) = file {
            self.drop_header(Gone {
                directory: from.clone(),
                disk: old_disk.to_owned(),
                name: name.to_vec(),
                file: GoneFile::Open(file.clone()),
                replaced_by_copy: false,
            });
        }
        if let Some(link) = Self::link_file_of(&side.to.0.dir, disk, &side.stat) {
            let _ = from.dir.unlink(&name::link_file(link));
        }
    }
}

fn is_not_empty(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST))
}

/// Lists the names on disk in a directory that may be files'.
fn files_in(dir: &Dir) -> FsResult<Vec<String>> {
    let is_file = |entry: &RawEntry| {
        let is_entry = matches!(
            name::shape(&entry.name),
            Shape::Inline(_) | Shape::Long | Shape::Conflict(..)
        );
        is_entry && matches!(entry.kind, FileType::RegularFile | FileType::Unknown)
    };
    let entries = dir.entries()?.into_iter().filter(is_file);
    Ok(entries.filter_map(|entry| String::from_utf8(entry.name).ok()).collect())
}

/// Removes hushfs's own files from a directory that holds no entries.
///
/// A crash in between leaves an empty directory under another id, which makes no difference to an empty one.
fn clear_empty_directory(dir: &Dir) -> FsResult<()> {
    let mut own = Vec::new();
    for entry in dir.entries()? {
        match name::shape(&entry.name) {
            Shape::Dots => {}
            Shape::Header(_)
            | Shape::LongNameFile(_)
            | Shape::LinkFile(_)
            | Shape::DirectoryHeader
            | Shape::Temporary => own.push(entry.name),
            Shape::Inline(_) | Shape::Long | Shape::Conflict(..) | Shape::VaultFile | Shape::Stranger => {
                return Err(FsError::NotEmpty);
            }
        }
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
    Ok(())
}
