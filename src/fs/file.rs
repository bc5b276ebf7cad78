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
    backing::BackingFile,
    format::name,
    units::{PlainOffset, PlainSize},
    vault::{VaultError, content::Content, file::VaultFile},
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
        if self.options.shared && !node.is_open() {
            // Someone else may have written it since it was looked at last.
            self.let_go(&node);
        }
        // Counted first, so that nobody closes the file between.
        node.opened();
        if let Err(error) = self.file(&node) {
            node.released();
            return Err(error);
        }
        Ok(())
    }

    /// Counts a handle less. The file stays open for a while.
    pub fn release(&self, id: u64) {
        let Ok(node) = self.node(id) else { return };
        if !node.released() {
            return;
        }
        if node.is_dead() && !node.is_forgotten() {
            self.keep_removed(&node);
        } else {
            self.keep_idle(&node);
        }
    }

    /// Reads up to `len` bytes at `offset` into `plain`, which grows as needed; returns where in it they are.
    ///
    /// # Errors
    ///
    /// EIO where a block does not authenticate.
    pub fn read(&self, id: u64, offset: u64, len: usize, plain: &mut Vec<u8>) -> FsResult<Range<usize>> {
        let node = self.node(id)?;
        let file = self.file(&node)?;
        match file.content() {
            None => Ok(0..0),
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
        match file.content() {
            None => Ok(0),
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
        self.with_room(|| {
            content
                .write(PlainOffset(offset), data)
                .map_err(|error| self.at(&node, "")(error.into()))
        })?;
        self.note_change(&node);
        Ok(())
    }

    /// Returns a file's content, giving it a key first if it has none.
    pub(super) fn content<'f>(&self, node: &Arc<Node>, file: &'f VaultFile) -> FsResult<&'f Content<Arc<BackingFile>>> {
        if let Some(content) = file.content()
            && file.backing().is_writable()
        {
            return Ok(content);
        }
        let link = node.link.lock();
        self.content_at(link.as_ref(), file)
    }

    /// As [`Fs::content`], with the link locked.
    pub(super) fn content_at<'f>(
        &self,
        link: Option<&super::Link>,
        file: &'f VaultFile,
    ) -> FsResult<&'f Content<Arc<BackingFile>>> {
        let make_header = || {
            let Some(link) = link else {
                // Without a name it can never be opened again, so its key needs no keeping.
                return Ok(self.vault.new_header(self.vault.root_keys().id));
            };
            let dir = self.dir(&link.parent).map_err(into_vault_error)?;
            let directory = self.keys(&link.parent).map_err(into_vault_error)?.id;
            let header = self.vault.new_header(directory);
            self.vault.store_header(&dir, &header)?;
            Ok(header)
        };
        file.content_or_create(&self.vault, make_header)
            .map_err(|error| match link {
                Some(link) => self.at(&link.parent, &link.disk)(error),
                None => self.at(&self.root, "")(error),
            })
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
            && let Some(Remains::Stat(stat)) = &mut *node.remains.lock()
        {
            // Nobody will ever see it on disk. The kernel sends the times of a file also after its name is gone.
            changes.apply(stat);
            return Ok(Attr::new(stat, node.id, &self.vault.layout()));
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
        if let SetAttr {
            mode: None,
            uid: None,
            gid: None,
            size: None,
            atime: None,
            mtime: Some(SetTime::At(mtime)),
        } = *changes
            && !node.queued.load(Ordering::Acquire)
        {
            // The kernel sends the time also where it sent it before, with every rename and unlink.
            let attr = self.node_attr(&node)?;
            if attr.mtime == mtime {
                return Ok(attr);
            }
        }
        if changes.atime.is_some() || changes.mtime.is_some() {
            let times = Timestamps {
                last_access: timespec(changes.atime),
                last_modification: timespec(changes.mtime),
            };
            self.set_times(&node, &times)?;
        }
        let attr = self.node_attr(&node)?;
        if changes.mtime.is_some() {
            *node.mtime.lock() = Some(attr.mtime);
        }
        Ok(attr)
    }

    fn set_size(&self, node: &Arc<Node>, size: u64, caller: Caller) -> FsResult<()> {
        let file = self.file(node)?;
        if size > 0 || file.content().is_some() {
            let content = self.content(node, &file)?;
            content
                .set_size(PlainSize(size))
                .map_err(|error| self.at(node, "")(error.into()))?;
            self.note_change(node);
        }
        if caller.uid != 0 {
            self.drop_privileges_of(node, caller)?;
        }
        if !node.is_open() {
            self.keep_idle(node);
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
            return Ok(fs::fchown(file.backing().fd(), uid, gid)?);
        }
        let (dir, disk) = self.entry_of(node)?;
        Ok(dir.chown(&disk, uid, gid)?)
    }

    pub(super) fn set_mode(&self, node: &Arc<Node>, mode: u32) -> FsResult<()> {
        if node.kind == FileType::Directory {
            return Ok(self.dir(node)?.chmod_self(mode)?);
        }
        if let Some(file) = node.file.lock().clone() {
            return Ok(fs::fchmod(file.backing().fd(), Mode::from_raw_mode(mode & 0o7777))?);
        }
        let (dir, disk) = self.entry_of(node)?;
        Ok(dir.chmod(&disk, mode)?)
    }

    fn set_times(&self, node: &Arc<Node>, times: &Timestamps) -> FsResult<()> {
        if node.kind == FileType::Directory {
            return Ok(self.dir(node)?.set_times_self(times)?);
        }
        if let Some(file) = node.file.lock().clone() {
            let set = || fs::futimens(file.backing().fd(), times);
            // A seal puts back the times it found: it must not find them while they change.
            let result = match file.content() {
                Some(content) => content.while_quiet(|_| set()),
                None => set(),
            };
            return Ok(result?);
        }
        let (dir, disk) = self.entry_of(node)?;
        Ok(dir.set_times(&disk, times)?)
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
        self.sync_header(&node, &file)?;
        if data_only {
            Ok(crate::backing::Storage::sync_data(&**file.backing())?)
        } else {
            Ok(file.backing().sync_all()?)
        }
    }

    /// Makes a new file's header durable, and the names of both: without them what is in the file is lost.
    pub(super) fn sync_header(&self, node: &Arc<Node>, file: &VaultFile) -> FsResult<()> {
        let link = node.link.lock();
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
        let dir = self.dir(&link.parent)?;
        dir.open_file(&name::header_file(id), true)?.sync_all()?;
        dir.sync()?;
        file.header_was_synced();
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
        let file = self.file(&node)?;
        let content = self.content(&node, &file)?;
        let in_vault = |error: crate::vault::content::ContentError| self.at(&node, "")(error.into());
        let end = offset.checked_add(len).ok_or(FsError::Invalid)?;
        let extends = matches!(how, Allocate::Extend | Allocate::ZeroRange);
        if matches!(how, Allocate::Extend | Allocate::KeepSize) {
            self.with_room(|| content.allocate(PlainOffset(offset), len).map_err(in_vault))?;
        } else {
            content.punch(PlainOffset(offset), len).map_err(in_vault)?;
        }
        if extends && end > content.size().0 {
            content.set_size(PlainSize(end)).map_err(in_vault)?;
        }
        self.note_change(&node);
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
        let content = file.content().ok_or(FsError::NoSuchOffset)?;
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
        match file.content() {
            None => Ok(()),
            Some(content) => content
                .verify(progress)
                .map_err(|error| self.at(&node, "")(error.into())),
        }
    }

    /// Returns the id of a file by its data file alone, without its key; nothing for one that was never written.
    pub(super) fn id_on_disk(dir: &crate::backing::Dir, disk: &str) -> FsResult<Option<crate::ids::FileId>> {
        use crate::{backing::Storage, format::preamble::UnverifiedPreamble};
        let file = dir.open_file(disk, true)?;
        let mut bytes = [0; crate::format::layout::PREAMBLE_SIZE as usize];
        let got = file.read_at(&mut bytes, 0)?;
        Ok(UnverifiedPreamble::decode(&bytes[..got])
            .ok()
            .map(|preamble| preamble.file()))
    }

    /// Returns a file's place under a name, for its seal.
    pub(super) fn found_at<'l>(&self, link: &'l super::Link) -> FsResult<FoundAt<'l>> {
        Ok(FoundAt {
            directory: self.keys(&link.parent)?.id,
            name: &link.name,
        })
    }
}

fn into_vault_error(error: FsError) -> VaultError {
    match error {
        FsError::Vault { source, .. } => source,
        other => VaultError::Io(std::io::Error::from_raw_os_error(other.errno())),
    }
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
