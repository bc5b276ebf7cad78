//! Operations on files: content, attributes, durability.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use rustix::fs::{self, FileType, Mode, Timespec, Timestamps};

use super::{
    Attr, Caller, FoundAt, Fs, FsError, FsResult, SetAttr, SetTime,
    node::{Node, Remains},
};
use crate::{
    units::{BlockIndex, PlainOffset, PlainSize},
    vault::{
        VaultError,
        beginning::Beginning,
        choice::KeyOfFile,
        content::ContentError,
        file::{FileContent, VaultFile},
        own_keys::{Ask, NewOwnKey},
    },
};

/// Bytes copied by one call of [`Fs::copy_range`], so that no request takes long; callers call again.
const COPY_STEP: u64 = 16 << 20;

/// Bytes read and written at a time while copying.
const COPY_CHUNK: usize = 1 << 20;

/// What fallocate(2) can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Reserve space, and extend the file to the range's end.
    Extend,
    /// Reserve space behind the end too, without extending.
    KeepSize,
    /// Free the range; it reads as zeros.
    PunchHole,
    /// Make the range zeros, and extend the file to its end.
    ZeroRange,
    /// Make the range zeros as far as the file reaches.
    ZeroRangeKeepSize,
}

impl Allocate {
    /// Reads the mode of fallocate(2); nothing for those that shift content, which sealed blocks cannot.
    pub fn from_mode(mode: i32) -> Option<Self> {
        const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        const ZERO_KEEP: i32 = ZERO | KEEP;
        match mode {
            0 => Some(Allocate::Extend),
            KEEP => Some(Allocate::KeepSize),
            PUNCH => Some(Allocate::PunchHole),
            ZERO => Some(Allocate::ZeroRange),
            ZERO_KEEP => Some(Allocate::ZeroRangeKeepSize),
            _ => None,
        }
    }
}

/// A file that an operation works on, held as by a handle: nobody closes it meanwhile, and it is kept for a while afterwards.
///
/// Made before the link of the node is locked, so that it goes after that.
pub(super) struct InUse<'f> {
    fs: &'f Fs,
    node: Arc<Node>,
}

impl<'f> InUse<'f> {
    /// Holds a node's file; nothing for a node of another kind.
    pub fn of_file(fs: &'f Fs, node: &Arc<Node>) -> Option<Self> {
        let is_file = node.kind == FileType::RegularFile;
        is_file.then(|| {
            fs.hold(node);
            InUse { fs, node: node.clone() }
        })
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.fs.unhold(&self.node);
    }
}

impl Fs {
    /// Opens a file, and counts a handle.
    ///
    /// # Errors
    ///
    /// What keeps it from being opened or trusted; [`FsError::ReadOnly`] for writing where nothing may be written.
    pub fn open(&self, id: u64, for_writing: bool) -> FsResult<()> {
        let node = self.node(id)?;
        if for_writing {
            self.check_writable()?;
        }
        if node.lacks_end.load(Ordering::Acquire) && !node.is_open() {
            self.correct_size(&node)?;
        }
        self.hold(&node);
        let opened = self.file(&node).and_then(|file| self.ready(&node, &file, for_writing));
        if opened.is_err() {
            self.unhold(&node);
        }
        opened
    }

    /// Has the kernel look a file up again that it goes by another size of, which would make zeros of what could not be written.
    ///
    /// # Errors
    ///
    /// [`FsError::Stale`], by which it does.
    fn correct_size(&self, node: &Arc<Node>) -> FsResult<()> {
        let link = node.link.lock();
        let mut slot = node.file.lock();
        let Some(at) = &*link else { return Ok(()) };
        let Some(file) = slot.take() else {
            // Who opens it finds that its size differs.
            node.set_size(u64::MAX);
            return Ok(());
        };
        let renewed = self.nodes.renew(node, at, file);
        drop((slot, link));
        self.note_change(&renewed);
        self.keep_idle(&renewed);
        Err(FsError::Stale)
    }

    /// Counts a handle, so that nobody closes the file that is opened then.
    fn hold(&self, node: &Arc<Node>) {
        if !node.is_open() && (self.options.shared || self.is_refused(node)) {
            // Someone else may have written it since it was looked at last, or wrapped its key anew.
            self.let_go(node);
        }
        node.opened();
    }

    /// Counts a handle less. The file stays open for a while.
    fn unhold(&self, node: &Arc<Node>) {
        if node.released() {
            self.keep_unused(node.clone());
        }
    }

    /// Has a file that is being opened ready for what comes: its key may be used, or one is there for its first byte.
    fn ready(&self, node: &Arc<Node>, file: &VaultFile, for_writing: bool) -> FsResult<()> {
        file.confirm(&self.vault).map_err(|error| self.at(node, "")(error))?;
        if self.readable(node, file)?.is_some() || !for_writing {
            return Ok(());
        }
        let link = node.link.lock().clone();
        if let Some(link) = link {
            let key = match file.kept_key() {
                Some(key) => key,
                None => self.key_of_new_files(&link.parent)?,
            };
            if !key.bucket_key && !file.is_prepared() {
                let new = self.vault.own_keys().for_new_file(key.epoch);
                file.prepare(new.map_err(self.at(&link.parent, &link.disk))?);
            }
        }
        Ok(())
    }

    /// Counts a handle less. The file stays open for a while.
    pub fn release(&self, id: u64) {
        if let Ok(node) = self.node(id) {
            self.unhold(&node);
        }
    }

    /// Counts a handle by which a file can be written, before it is given to the kernel.
    pub fn note_writer(&self, id: u64) {
        if let Some(file) = self.open_file(id) {
            file.note_writer();
        }
    }

    /// Counts one less.
    pub fn release_writer(&self, id: u64) {
        if let Some(file) = self.open_file(id) {
            file.release_writer();
        }
    }

    /// Tells whether the kernel has a handle by which a file can be written.
    pub fn is_open_for_writing(&self, id: u64) -> bool {
        self.open_file(id).is_some_and(|file| file.is_open_for_writing())
    }

    fn open_file(&self, id: u64) -> Option<Arc<VaultFile>> {
        self.node(id).ok()?.file.lock().clone()
    }

    /// Reads up to `len` bytes at `offset` into `plain`, which grows as needed; returns where in it they are.
    ///
    /// # Errors
    ///
    /// EIO where a block does not authenticate.
    pub fn read(&self, id: u64, offset: u64, len: usize, plain: &mut Vec<u8>) -> FsResult<Range<usize>> {
        let node = self.node(id)?;
        let file = self.file(&node)?;
        match self.readable(&node, &file)? {
            None => self.nothing_in(&node, &file).map(|()| 0..0),
            Some(content) => content
                .read(PlainOffset(offset), len, plain)
                .map_err(|error| self.at(&node, "")(error.into())),
        }
    }

    /// As [`Fs::read`], into `room`, which may be written to also behind what was read; returns how many bytes there were.
    ///
    /// # Errors
    ///
    /// As [`Fs::read`].
    pub fn read_into(&self, id: u64, offset: u64, len: usize, room: &mut [u8]) -> FsResult<usize> {
        let node = self.node(id)?;
        let file = self.file(&node)?;
        match self.readable(&node, &file)? {
            None => self.nothing_in(&node, &file).map(|()| 0),
            Some(content) => content
                .read_into(PlainOffset(offset), len, room)
                .map_err(|error| self.at(&node, "")(error.into())),
        }
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives.
    pub fn write(&self, id: u64, offset: u64, data: &[u8]) -> FsResult<()> {
        self.check_writable()?;
        let node = self.node(id)?;
        let file = self.file(&node)?;
        let content = self.content(&node, &file)?;
        let written = self.with_room(|| {
            content
                .write(PlainOffset(offset), data)
                .map_err(|error| self.at(&node, "")(error.into()))
        });
        if written.is_err() && offset + data.len() as u64 > content.size().0 {
            node.lacks_end.store(true, Ordering::Release);
        }
        // Also where it failed: the file may not be sealed any more.
        self.note_change(&node);
        written
    }

    /// Returns a file's content, if it has any; refuses that of a file whose key may not be used now.
    fn readable<'f>(&self, node: &Node, file: &'f VaultFile) -> FsResult<Option<&'f FileContent>> {
        file.usable_content().map_err(|error| self.at(node, "")(error))
    }

    /// Refuses to read a file of zeros that nobody wrote, where it could not be made empty: the kernel has a size of it.
    fn nothing_in(&self, node: &Node, file: &VaultFile) -> FsResult<()> {
        if file.is_zeros() {
            let damaged = ContentError::Damaged(BlockIndex(0));
            return Err(self.at(node, "")(damaged.into()));
        }
        Ok(())
    }

    /// Returns a file's content, giving it a key first if it has none.
    pub(super) fn content<'f>(&self, node: &Arc<Node>, file: &'f VaultFile) -> FsResult<&'f FileContent> {
        if let Some(content) = self.readable(node, file)?
            && file.backing().is_writable()
        {
            return Ok(content);
        }
        self.with_room(|| {
            let link = node.link.lock();
            if link.is_none() && !node.is_dead() {
                // Its header would lie nowhere, and it has a name still: the kernel looks that up.
                return Err(FsError::Stale);
            }
            self.content_at(link.as_ref(), file)
        })
    }

    /// As [`Fs::content`], with the link locked.
    pub(super) fn content_at<'f>(&self, link: Option<&super::Link>, file: &'f VaultFile) -> FsResult<&'f FileContent> {
        let make_header = || {
            let Some(link) = link else {
                // Without a name it can never be opened again, so its key needs no keeping.
                return Ok(self.vault.new_header(self.vault.root_keys().id));
            };
            let dir = self.dir(&link.parent).map_err(into_vault_error)?;
            let directory = self.keys(&link.parent).map_err(into_vault_error)?.id;
            let key = match file.kept_key() {
                Some(key) => key,
                None => self.key_of_new_files(&link.parent).map_err(into_vault_error)?,
            };
            let header = if key.bucket_key {
                self.vault.new_header_of(key.epoch, directory)
            } else {
                let new = match file.take_prepared(key.epoch) {
                    Some(new) => new,
                    None => self.vault.own_keys().for_new_file(key.epoch)?,
                };
                self.vault.new_header_without_bucket_key(&new, directory)
            };
            self.vault.store_header(&dir, &header)?;
            Ok(header)
        };
        file.content_or_create(&self.vault, make_header)
            .map_err(|error| match link {
                Some(link) => self.at(&link.parent, &link.disk)(error),
                None => self.at(&self.root, "")(error),
            })
    }

    /// Returns the key of a new file in a directory: that of the nearest directory above with one of its own, or the vault's.
    ///
    /// All of it is in memory: the keys of a directory are never known without those above it.
    pub(super) fn key_of_new_files(&self, directory: &Arc<Node>) -> FsResult<KeyOfFile> {
        let choice = self.vault.choice();
        let mut at = directory.clone();
        while choice.is_by_directory() {
            if let Some(key) = choice.of_directory(self.keys(&at)?.id) {
                return Ok(key);
            }
            let link = at.link.lock().clone();
            match link {
                Some(link) => at = link.parent,
                None => break,
            }
        }
        Ok(self.vault.key_of_new_files())
    }

    /// Refuses to make a file that could not be written to: better told when it is made than when it is closed.
    pub(super) fn check_key_of_new_files(&self, directory: &Arc<Node>) -> FsResult<()> {
        let key = self.key_of_new_files(directory)?;
        self.check_usable(directory, key)
    }

    fn check_usable(&self, directory: &Arc<Node>, key: KeyOfFile) -> FsResult<()> {
        let usable = self.vault.epochs().check(key.epoch);
        let lasting = usable.and_then(|()| self.vault.check_not_retired(key.epoch));
        lasting.map_err(self.at(directory, ""))
    }

    /// As [`Fs::check_key_of_new_files`]; returns the secret that the header of a new file gets, where it is to have no bucket key. The file gets `key`, or
    /// where nothing is said that of its directory.
    pub(super) fn secret_of_new_file(
        &self,
        directory: &Arc<Node>,
        key: Option<KeyOfFile>,
    ) -> FsResult<Option<NewOwnKey>> {
        let key = key.map_or_else(|| self.key_of_new_files(directory), Ok)?;
        self.check_usable(directory, key)?;
        if key.bucket_key {
            return Ok(None);
        }
        let new = self.vault.own_keys().for_new_file(key.epoch);
        new.map(Some).map_err(self.at(directory, ""))
    }

    /// Asks for a key that an operation needed, which is to be done again then.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn ask(&self, ask: &Ask) -> FsResult<()> {
        self.vault.own_keys().ask(ask).map_err(self.at(&self.root, ""))
    }

    /// Tells whether operations may end with a key that is to be asked for.
    pub fn defers(&self) -> bool {
        self.vault.own_keys().is_deferred()
    }

    /// Has the sealer look at a file that was changed.
    pub(super) fn note_change(&self, node: &Arc<Node>) {
        if !node.is_dead() {
            self.seal_queue.push(node);
        }
    }

    /// Changes attributes, and returns them all.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives.
    pub fn set_attr(&self, id: u64, caller: Caller, changes: &SetAttr) -> FsResult<Attr> {
        self.check_writable()?;
        let node = self.node(id)?;
        if !node.is_open()
            && changes.size.is_none()
            && let Some(Remains::Stat(stat)) = node.remains.lock().as_deref_mut()
        {
            // Nobody will ever see it on disk. The kernel sends the times of a file also after its name is gone.
            changes.apply(stat);
            return Ok(Attr::new(stat, node.id, &self.vault.layout()));
        }
        if let SetAttr {
            mode: None,
            uid: None,
            gid: None,
            size: None,
            atime: None,
            mtime: Some(SetTime::At(mtime)),
            ..
        } = *changes
            && !node.queued.load(Ordering::Acquire)
        {
            // The kernel sends the time also where it sent it before, with every rename and unlink.
            let attr = self.node_attr(&node)?;
            if attr.mtime == mtime {
                return Ok(attr);
            }
        }
        if !changes.has_times_of_changes {
            // Before anything is changed: only the owner may do so.
            self.set_times_asked(&node, caller, changes)?;
        }
        if let Some(size) = changes.size {
            self.set_size(&node, size, caller)?;
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            self.chown(&node, changes.uid, changes.gid)?;
        }
        if let Some(mode) = changes.mode {
            self.acl_after_chmod(&node, mode)?;
            self.set_mode(&node, mode)?;
        }
        if changes.has_times_of_changes {
            // Who may write a file need not own it: it keeps the time at which it was changed here.
            allow_refusal(self.set_times(&node, changes.atime, changes.mtime))?;
        }
        let attr = self.node_attr(&node)?;
        if changes.mtime.is_some() {
            *node.mtime.lock() = attr.mtime;
        }
        Ok(attr)
    }

    /// Sets times that an application asked for.
    fn set_times_asked(&self, node: &Arc<Node>, caller: Caller, changes: &SetAttr) -> FsResult<()> {
        let set = self.set_times(node, changes.atime, changes.mtime);
        if !is_refused(&set) || changes.atime != Some(SetTime::Now) || changes.mtime.is_none() || caller.uid == 0 {
            return set;
        }
        if self.node_attr(node)?.uid == caller.uid {
            return set;
        }
        // The kernel, whose time it is, lets who does not own the file ask for nothing but the present, as who may write it can.
        self.set_times(node, Some(SetTime::Now), Some(SetTime::Now))
    }

    /// The kernel need not have a handle (truncate(2)).
    fn set_size(&self, node: &Arc<Node>, size: u64, caller: Caller) -> FsResult<()> {
        let _held = InUse::of_file(self, node);
        let file = self.file(node)?;
        if size > 0 || file.content().is_some() {
            let content = self.content(node, &file)?;
            if size != content.size().0 {
                self.sync_beginning(node, &file, content)?;
            }
            let set = content
                .set_size(PlainSize(size))
                .map_err(|error| self.at(node, "")(error.into()));
            self.note_change(node);
            set?;
        }
        if caller.uid != 0 {
            self.drop_privileges_of(node, caller)?;
        }
        Ok(())
    }

    /// Clears set-user-id and set-group-id, as a change of content by an ordinary user must; file capabilities go too. Tells whether there was any.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives.
    pub fn drop_privileges(&self, id: u64, caller: Caller) -> FsResult<bool> {
        self.drop_privileges_of(&self.node(id)?, caller)
    }

    fn drop_privileges_of(&self, node: &Arc<Node>, caller: Caller) -> FsResult<bool> {
        let attr = self.node_attr(node)?;
        let mode = attr.mode;
        let mut kept = mode & !libc::S_ISUID;
        // Without group execution the bit stands for mandatory locking, not for privilege; who is not in the group could not have set it.
        if mode & libc::S_IXGRP != 0 || !caller.is_in_group(attr.gid) {
            kept &= !libc::S_ISGID;
        }
        if kept != mode {
            self.set_mode(node, kept & 0o7777)?;
        }
        Ok(kept != mode)
    }

    fn chown(&self, node: &Arc<Node>, uid: Option<u32>, gid: Option<u32>) -> FsResult<()> {
        if node.kind == FileType::Directory {
            return Ok(self.dir(node)?.chown_self(uid, gid)?);
        }
        if let Some(file) = node.file.lock().clone() {
            let (uid, gid) = (uid.map(fs::Uid::from_raw), gid.map(fs::Gid::from_raw));
            file.attributes_were_changed();
            return Ok(fs::fchown(file.backing().fd(), uid, gid)?);
        }
        Ok(self.entry(node)?.chown(uid, gid)?)
    }

    pub(super) fn set_mode(&self, node: &Arc<Node>, mode: u32) -> FsResult<()> {
        if node.kind == FileType::Directory {
            return Ok(self.dir(node)?.chmod_self(mode)?);
        }
        if let Some(file) = node.file.lock().clone() {
            file.attributes_were_changed();
            return Ok(fs::fchmod(file.backing().fd(), Mode::from_raw_mode(mode & 0o7777))?);
        }
        Ok(self.entry(node)?.chmod(mode)?)
    }

    fn set_times(&self, node: &Arc<Node>, atime: Option<SetTime>, mtime: Option<SetTime>) -> FsResult<()> {
        if atime.is_none() && mtime.is_none() {
            return Ok(());
        }
        let times = Timestamps {
            last_access: timespec(atime),
            last_modification: timespec(mtime),
        };
        if node.kind == FileType::Directory {
            return Ok(self.dir(node)?.set_times_self(&times)?);
        }
        if let Some(file) = node.file.lock().clone() {
            return Ok(file.set_times(&times)?);
        }
        Ok(self.entry(node)?.set_times(&times)?)
    }

    /// Makes a file durable: content, header, and its name.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives.
    pub fn sync_file(&self, id: u64, data_only: bool) -> FsResult<()> {
        let node = self.node(id)?;
        if node.kind != FileType::RegularFile {
            return Ok(());
        }
        let file = self.file(&node)?;
        self.with_descriptors(|| self.sync_header(&node, &file))?;
        Ok(file.sync(data_only)?)
    }

    /// Makes a new file durable, header and beginning, before its size changes without a write: the new size may reach the disk at once, as ext4 has it, and
    /// what was written before it much later. A crash would leave a file of that size that begins with zeros, and does not open.
    fn sync_beginning(&self, node: &Arc<Node>, file: &VaultFile, content: &FileContent) -> FsResult<()> {
        if !file.beginning_needs_sync() {
            return Ok(());
        }
        content
            .ensure_preamble()
            .map_err(|error| self.at(node, "")(error.into()))?;
        self.sync_header(node, file)?;
        file.sync(true)?;
        file.beginning_was_synced();
        Ok(())
    }

    /// Makes a new file's header durable, and the names of both: without them what is in the file is lost.
    pub(super) fn sync_header(&self, node: &Arc<Node>, file: &VaultFile) -> FsResult<()> {
        let link = node.link.lock();
        if link.is_none() && !node.is_dead() && file.header_needs_sync() {
            // It lies where the name is that is left, wherever that is.
            if !self.syncs_at_once {
                return Err(FsError::Stale);
            }
            let headers = file.headers();
            self.root_dir.sync_filesystem()?;
            file.headers_were_synced(headers);
        }
        self.sync_header_at(link.as_ref(), file)
    }

    /// As [`Fs::sync_header`], with the link locked.
    pub(super) fn sync_header_at(&self, link: Option<&super::Link>, file: &VaultFile) -> FsResult<()> {
        if !file.header_needs_sync() {
            return Ok(());
        }
        let (Some(link), Some(id)) = (link, file.id()) else {
            return Ok(());
        };
        let headers = file.headers();
        let dir = self.dir(&link.parent)?;
        file.sync_header(&dir, id)?;
        dir.sync()?;
        file.headers_were_synced(headers);
        Ok(())
    }

    /// Makes a directory's names durable.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives.
    pub fn sync_directory(&self, id: u64) -> FsResult<()> {
        let node = self.node(id)?;
        Ok(self.dir(&node)?.sync()?)
    }

    /// Reserves or frees space.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives.
    pub fn allocate(&self, id: u64, offset: u64, len: u64, how: Allocate) -> FsResult<()> {
        self.check_writable()?;
        let node = self.node(id)?;
        let allocated = self.allocate_in(&node, offset, len, how);
        self.note_change(&node);
        allocated
    }

    fn allocate_in(&self, node: &Arc<Node>, offset: u64, len: u64, how: Allocate) -> FsResult<()> {
        let file = self.file(node)?;
        let content = self.content(node, &file)?;
        let in_vault = |error: crate::vault::content::ContentError| self.at(node, "")(error.into());
        let end = offset.checked_add(len).ok_or(FsError::Invalid)?;
        let extends = matches!(how, Allocate::Extend | Allocate::ZeroRange);
        if matches!(how, Allocate::Extend | Allocate::KeepSize) {
            self.with_room(|| content.allocate(PlainOffset(offset), len).map_err(in_vault))?;
        } else {
            self.sync_beginning(node, &file, content)?;
            content.punch(PlainOffset(offset), len).map_err(in_vault)?;
        }
        if extends && end > content.size().0 {
            self.sync_beginning(node, &file, content)?;
            content.set_size(PlainSize(end)).map_err(in_vault)?;
        }
        Ok(())
    }

    /// Finds the next data, or the next hole.
    ///
    /// # Errors
    ///
    /// [`FsError::NoSuchOffset`] where there is none.
    pub fn seek(&self, id: u64, offset: u64, hole: bool) -> FsResult<u64> {
        let node = self.node(id)?;
        let file = self.file(&node)?;
        let content = self.readable(&node, &file)?.ok_or(FsError::NoSuchOffset)?;
        let at = if hole {
            content.seek_hole(PlainOffset(offset))
        } else {
            content.seek_data(PlainOffset(offset))
        };
        let at = at.map_err(|error| self.at(&node, "")(error.into()))?;
        at.map(|at| at.0).ok_or(FsError::NoSuchOffset)
    }

    /// Copies bytes from one file into another; returns how many, fewer than asked for where much was asked for.
    ///
    /// # Errors
    ///
    /// What reading or writing gives before anything was copied.
    pub fn copy_range(&self, from: (u64, u64), to: (u64, u64), len: u64) -> FsResult<u64> {
        let len = len.min(COPY_STEP);
        let mut plain = Vec::new();
        let mut done = 0;
        while done < len {
            let step = COPY_CHUNK.min((len - done) as usize);
            let copied = self.read(from.0, from.1 + done, step, &mut plain).and_then(|range| {
                let len = range.len();
                if len > 0 {
                    self.write(to.0, to.1 + done, &plain[range])?;
                }
                Ok(len as u64)
            });
            match copied {
                Ok(0) => break,
                Ok(copied) => done += copied,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Reads and checks all of a file; `progress` hears of bytes read.
    ///
    /// # Errors
    ///
    /// The first fault found.
    pub fn verify(&self, id: u64, progress: impl FnMut(u64)) -> FsResult<()> {
        let node = self.node(id)?;
        let file = self.file(&node)?;
        match self.readable(&node, &file)? {
            None => Ok(()),
            Some(content) => content
                .verify(progress)
                .map_err(|error| self.at(&node, "")(error.into())),
        }
    }

    /// Returns the id of a file by its data file alone, without its key; nothing for one that was never written.
    pub(super) fn id_on_disk(dir: &crate::backing::Dir, disk: &str) -> FsResult<Option<crate::ids::FileId>> {
        match Beginning::read(&dir.open_file(disk, true)?) {
            Ok(beginning) => Ok(beginning.preamble().map(|preamble| preamble.file())),
            Err(VaultError::Io(error)) => Err(error.into()),
            Err(_) => Ok(None),
        }
    }

    /// Returns a file's place under a name, for its seal.
    pub(super) fn found_at<'l>(&self, link: &'l super::Link) -> FsResult<FoundAt<'l>> {
        Ok(FoundAt {
            directory: self.keys(&link.parent)?.id,
            name: link.conflict_of.as_ref().unwrap_or(&link.name),
        })
    }
}

fn into_vault_error(error: FsError) -> VaultError {
    match error {
        FsError::Vault { source, .. } => source,
        other => VaultError::Io(std::io::Error::from_raw_os_error(other.errno())),
    }
}

/// Tells whether something is for the owner of the file only.
fn is_refused(result: &FsResult<()>) -> bool {
    matches!(result, Err(error) if error.errno() == libc::EPERM)
}

fn allow_refusal(result: FsResult<()>) -> FsResult<()> {
    if is_refused(&result) { Ok(()) } else { result }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: fs::UTIME_OMIT,
        },
        Some(SetTime::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: fs::UTIME_NOW,
        },
        Some(SetTime::At(time)) => Timespec {
            tv_sec: time.seconds,
            tv_nsec: time.nanos.into(),
        },
    }
}
