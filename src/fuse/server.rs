//! Answers requests from a filesystem. Decides nothing about files.

use std::{
    cell::RefCell,
    ffi::CStr,
    process,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use fuser::{INodeNo, Notifier};

use super::{
    awake::Wakefulness,
    kernel,
    records::FileRecords,
    request::{Answer, Asked, NowOrLater, Operation, Reply, Waiting},
};
use crate::{
    fs::{Allocate, Caller, Found, Fs, FsError, FsResult, Leftovers, NameIn, ROOT},
    vault::{home::FileUse, own_keys::Ask},
};

/// An attribute of the root that no vault has: the process that serves the mount, for who ends it.
pub const PROCESS_ATTRIBUTE: &CStr = c"user.hushfs.process";

/// A sync that takes no longer than this is done by the thread that has the request: to hand it over would take as long.
const QUICK_SYNC: Duration = Duration::from_micros(50);

/// So many in a row, and the next is thought to be quick too.
const QUICK_SYNCS: u32 = 16;

thread_local! {
    /// Plaintext of the read at hand, reused from request to request.
    static PLAIN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Serves the requests of one mount, from any thread.
pub struct Server {
    fs: Arc<Fs>,
    /// How long the kernel may keep names and attributes.
    time_to_live: Duration,
    started: Instant,
    /// Milliseconds after `started` at which the last request came.
    last_used: AtomicU64,
    notifier: OnceLock<Notifier>,
    awake: OnceLock<Wakefulness>,
    /// Where it goes who opens which file, if anywhere.
    records: Option<Arc<FileRecords>>,
    /// How many of the last syncs in a row were quick.
    quick_syncs: AtomicU32,
}

impl Server {
    /// Makes a server.
    pub fn new(fs: Arc<Fs>, records: Option<Arc<FileRecords>>) -> Self {
        Server {
            time_to_live: kernel::time_to_live(fs.options().shared),
            fs,
            started: Instant::now(),
            last_used: AtomicU64::new(0),
            notifier: OnceLock::new(),
            awake: OnceLock::new(),
            records,
            quick_syncs: AtomicU32::new(0),
        }
    }

    /// Returns the filesystem.
    pub fn fs(&self) -> &Fs {
        &self.fs
    }

    /// Returns how long the kernel may keep names and attributes.
    pub fn time_to_live(&self) -> Duration {
        self.time_to_live
    }

    /// Tells whether the kernel may keep what it has of a file's content when the file is opened again.
    pub fn keeps_content(&self) -> bool {
        !self.fs.options().shared
    }

    /// Gives the way to tell the kernel things unasked, once there is one.
    pub fn set_notifier(&self, notifier: Notifier) {
        self.notifier.get_or_init(|| notifier);
    }

    /// Keeps processors awake while requests come fast.
    pub fn set_awake(&self, awake: Wakefulness) {
        self.awake.get_or_init(|| awake);
    }

    /// Returns how long ago the last request came.
    pub fn idle_for(&self) -> Duration {
        let last = Duration::from_millis(self.last_used.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }

    /// Tells whether a request may wait on the disk for long, so that a thread that takes the kernel's requests should not serve it.
    ///
    /// Syncs are thought to take as long as those before them: on memory, and on disks with a cache that survives, they are quick.
    pub fn may_wait(&self, operation: &Operation<'_>) -> bool {
        match operation {
            Operation::Sync { .. } | Operation::SyncDirectory => self.quick_syncs.load(Ordering::Relaxed) < QUICK_SYNCS,
            operation => operation.is_slow(),
        }
    }

    /// Tells whether the kernel has to [write](Self::have_kernel_write) before a request is served: it may hold pages of the file that it has not written
    /// yet, and does not write them for this request. Who closes a file has written them (fuse_release in fs/fuse/file.c).
    pub fn needs_kernel_write(&self, ino: u64, operation: &Operation<'_>) -> bool {
        matches!(operation, Operation::Seek { .. }) && self.fs.is_open_for_writing(ino)
    }

    /// Has the kernel write what it holds of a file, and waits for it: on a thread that takes no requests, since others must serve these writes.
    pub fn have_kernel_write(&self, ino: u64) {
        // Dropping its pages writes them.
        if let Some(notifier) = self.notifier.get() {
            kernel::drop_pages(notifier, ino);
        }
    }

    fn timed_sync(&self, sync: impl FnOnce() -> FsResult<()>) -> FsResult<()> {
        let start = Instant::now();
        let result = sync();
        if start.elapsed() > QUICK_SYNC {
            self.quick_syncs.store(0, Ordering::Relaxed);
        } else if self.quick_syncs.load(Ordering::Relaxed) < QUICK_SYNCS {
            self.quick_syncs.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    fn note_use(&self, operation: &Operation<'_>) {
        // Much data keeps processors busy by itself.
        if let Some(awake) = self.awake.get()
            && !operation.is_bulk()
        {
            awake.note_request();
        }
        let is_use = !matches!(
            operation,
            Operation::StatFilesystem | Operation::Flush | Operation::Release { .. } | Operation::OpenDirectory
        );
        if is_use {
            let now = self.started.elapsed().as_millis() as u64;
            self.last_used.store(now, Ordering::Relaxed);
        }
    }

    /// Serves a request. Where who has a key is to be asked first, which may take long, it is given back: to be served again after
    /// [`ask`](Self::ask), on a thread that nothing else needs.
    ///
    /// # Errors
    ///
    /// What is to be asked.
    pub fn serve<R: Reply>(&self, asked: &Asked<'_>, reply: R) -> Result<(), Waiting<R>> {
        if !self.fs.defers() {
            self.answer(asked, reply);
            return Ok(());
        }
        let mut waiting = None;
        let now_or_later = NowOrLater {
            reply,
            waiting: &mut waiting,
        };
        self.answer(asked, now_or_later);
        waiting.map_or(Ok(()), Err)
    }

    /// Asks for the key that a request needs.
    ///
    /// # Errors
    ///
    /// Why there is none: for [`refuse`](Self::refuse).
    pub fn ask(&self, asked: &Asked<'_>, ask: &Ask) -> FsResult<()> {
        let answer = self.fs.ask(ask);
        // What others read of the file when it was opened before is not to be read any more.
        if answer.is_err() && matches!(asked.operation, Operation::Open { .. }) {
            self.drop_pages(asked.ino);
        }
        answer
    }

    /// Takes from the kernel what it has of a file; a little later where it writes that first, which must not keep the request at hand waiting.
    fn drop_pages(&self, ino: u64) {
        let Some(notifier) = self.notifier.get().cloned() else {
            return;
        };
        if !self.fs.is_open_for_writing(ino) {
            return kernel::drop_pages(&notifier, ino);
        }
        let drop_pages = move || kernel::drop_pages(&notifier, ino);
        if let Err(error) = thread::Builder::new().name("drop".into()).spawn(drop_pages) {
            log::warn!("pages of inode {ino} stay in the kernel: no thread to drop them: {error}");
        }
    }

    /// Answers a request whose key was refused.
    pub fn refuse(&self, asked: &Asked<'_>, error: FsError, reply: impl Reply) {
        log::warn!("request {} ({}): {error}", asked.unique, asked.operation.name());
        let answer = failed(asked, &error);
        let result: FsResult<()> = Err(error);
        match asked.operation {
            Operation::Open { flags } => self.note_open(asked.caller, &result, || self.opened_file(asked.ino, flags)),
            Operation::Create { name, .. } => {
                self.note_open(asked.caller, &result, || self.created_file(asked.ino, name))
            }
            _ => {}
        }
        reply.send(answer);
    }

    /// Answers a request. Work that nobody waits for comes after the answer.
    fn answer<R: Reply>(&self, asked: &Asked<'_>, mut reply: R) {
        self.note_use(&asked.operation);
        let (fs, ino, caller) = (&*self.fs, asked.ino, asked.caller);
        let at = |name| NameIn { parent: ino, name };
        match &asked.operation {
            Operation::LookUp { name } => match fs.look_up(ino, name) {
                Err(FsError::NotFound) => reply.send(Answer::NoEntry),
                result => entry(asked, result, reply),
            },
            Operation::GetAttr => attr(asked, fs.get_attr(ino), reply),
            Operation::SetAttr(changes) => attr(asked, fs.set_attr(ino, caller, changes), reply),
            Operation::ReadLink => bytes(asked, fs.read_link(ino), reply),
            Operation::MakeLink { name, target } => entry(asked, fs.make_link(at(name), target, caller), reply),
            Operation::MakeNode { name, mode, device } => {
                entry(asked, fs.make_node(at(name), *mode, *device, caller), reply);
            }
            Operation::MakeDirectory { name, mode } => {
                entry(asked, fs.make_directory(at(name), *mode, caller), reply);
            }
            Operation::Unlink { name } => self.done_then_clear(asked, fs.unlink(at(name)), reply),
            Operation::RemoveDirectory { name } => done(asked, fs.remove_directory(at(name)), reply),
            Operation::Rename { name, to, flags } => {
                self.done_then_clear(asked, fs.rename(at(name), *to, *flags), reply);
            }
            Operation::Link { to } => entry(asked, fs.link(ino, *to), reply),
            Operation::Open { flags } => {
                let result = fs.open(ino, is_for_writing(*flags));
                self.note_open(asked.caller, &result, || self.opened_file(ino, *flags));
                match result {
                    Ok(()) => {
                        self.note_writer(ino, *flags);
                        reply.send(Answer::Opened);
                    }
                    Err(error) => reply.send(failed(asked, &error)),
                }
            }
            Operation::Create { name, mode, flags } => {
                let result = fs.create(at(name), *mode, caller);
                self.note_open(asked.caller, &result, || self.created_file(ino, name));
                match result {
                    Ok(found) => {
                        self.note_writer(found.node.id, *flags);
                        reply.send(Answer::Created(&found));
                    }
                    Err(error) => reply.send(failed(asked, &error)),
                }
            }
            Operation::Read { offset, len } => {
                if let Some(room) = reply.room() {
                    return match fs.read_into(ino, *offset, *len, room) {
                        Ok(got) => reply.send(Answer::InRoom(got)),
                        Err(error) => reply.send(failed(asked, &error)),
                    };
                }
                PLAIN.with_borrow_mut(|plain| match fs.read(ino, *offset, *len, plain) {
                    Ok(range) => reply.send(Answer::Bytes(&plain[range])),
                    Err(error) => reply.send(failed(asked, &error)),
                });
            }
            Operation::Write {
                offset,
                data,
                drops_privileges,
            } => {
                let mut result = fs.write(ino, *offset, data);
                if result.is_ok() && *drops_privileges {
                    result = self.drop_privileges(ino, caller);
                }
                match result {
                    Ok(()) => reply.send(Answer::Written(data.len() as u32)),
                    Err(error) => reply.send(failed(asked, &error)),
                }
            }
            // Nothing waits in this process; the kernel does not ask again.
            Operation::Flush => reply.send(Answer::Failed(libc::ENOSYS)),
            Operation::Release { flags } => {
                reply.send(Answer::Done);
                if is_for_writing(*flags) {
                    fs.release_writer(ino);
                }
                fs.release(ino);
            }
            Operation::Sync { data_only } => {
                done(asked, self.timed_sync(|| fs.sync_file(ino, *data_only)), reply);
            }
            Operation::OpenDirectory if fs.options().shared => reply.send(Answer::Opened),
            // Listings need no handle: the kernel does not ask again, and keeps what it has read.
            Operation::OpenDirectory => reply.send(Answer::Failed(libc::ENOSYS)),
            Operation::List { offset } => {
                let result = fs.list(ino, *offset, |entry| reply.add(entry));
                done(asked, result, reply);
            }
            Operation::ListPlus { offset } => {
                let result = fs.list_plus(ino, *offset, |entry| reply.add_plus(entry));
                done(asked, result.map(drop), reply);
            }
            Operation::SyncDirectory => done(asked, self.timed_sync(|| fs.sync_directory(ino)), reply),
            Operation::StatFilesystem => match fs.stat_filesystem() {
                Ok(stat) => reply.send(Answer::Filesystem(&stat)),
                Err(error) => reply.send(failed(asked, &error)),
            },
            Operation::SetXattr { name, value, flags } => {
                done(asked, fs.set_xattr(ino, name, value, *flags, caller), reply);
            }
            Operation::GetXattr { name, size } if ino == ROOT && *name == PROCESS_ATTRIBUTE.to_bytes() => {
                xattr(asked, Ok(process::id().to_string().into_bytes()), *size, reply);
            }
            Operation::GetXattr { name, size } => xattr(asked, fs.get_xattr(ino, name), *size, reply),
            Operation::ListXattrs { size } => xattr(asked, fs.list_xattrs(ino, caller.uid == 0), *size, reply),
            Operation::RemoveXattr { name } => done(asked, fs.remove_xattr(ino, name), reply),
            Operation::Allocate { offset, len, mode } => {
                let mut result = match Allocate::from_mode(*mode) {
                    Some(how) => fs.allocate(ino, *offset, *len, how),
                    None => Err(FsError::NotSupported),
                };
                if result.is_ok() && caller.uid != 0 {
                    result = self.drop_privileges(ino, caller);
                }
                done(asked, result, reply);
            }
            Operation::Seek { offset, whence } => match self.seek(ino, *offset, *whence) {
                Ok(offset) => reply.send(Answer::Offset(offset)),
                Err(error) => reply.send(failed(asked, &error)),
            },
            Operation::CopyRange { offset, to, len } => {
                let mut result = fs.copy_range((ino, *offset), *to, *len);
                if caller.uid != 0 {
                    result = result.and_then(|copied| self.drop_privileges(to.0, caller).map(|()| copied));
                }
                match result {
                    // At most 16 MiB a call, so it fits.
                    Ok(copied) => reply.send(Answer::Written(copied as u32)),
                    Err(error) => reply.send(failed(asked, &error)),
                }
            }
            // None is known here, as on files of filesystems that have no ioctls of their own.
            Operation::Ioctl => reply.send(Answer::Failed(libc::ENOTTY)),
        }
    }

    fn note_writer(&self, ino: u64, flags: i32) {
        if is_for_writing(flags) {
            self.fs.note_writer(ino);
        }
    }

    fn opened_file(&self, ino: u64, flags: i32) -> FileUse {
        FileUse {
            for_writing: is_for_writing(flags),
            ..FileUse::of(self.fs.plain_path(ino))
        }
    }

    fn created_file(&self, parent: u64, name: &[u8]) -> FileUse {
        let name = String::from_utf8_lossy(name);
        let path = match self.fs.plain_path(parent) {
            parent if parent.is_empty() => name.into_owned(),
            parent => format!("{parent}/{name}"),
        };
        let (is_new, for_writing) = (true, true);
        FileUse {
            is_new,
            for_writing,
            ..FileUse::of(path)
        }
    }

    /// Has it recorded that a file was opened, or was not, if that is wanted; not before it is known.
    fn note_open<T>(&self, caller: Caller, result: &FsResult<T>, file: impl FnOnce() -> FileUse) {
        let is_known = result.as_ref().err().is_none_or(|error| error.key_needed().is_none());
        if is_known && let Some(records) = &self.records {
            records.note(FileUse {
                uid: caller.uid,
                gid: caller.gid,
                pid: caller.pid,
                errno: result.as_ref().err().map(FsError::errno),
                ..file()
            });
        }
    }

    fn done_then_clear(&self, asked: &Asked<'_>, result: FsResult<Leftovers>, reply: impl Reply) {
        match result {
            Ok(leftovers) => {
                reply.send(Answer::Done);
                self.fs.clear(leftovers);
            }
            Err(error) => reply.send(failed(asked, &error)),
        }
    }

    /// Takes set-user-id and set-group-id from a file whose content an ordinary user changed. The kernel is told: with what it knows of the mode it
    /// would go on to give programs these privileges.
    fn drop_privileges(&self, ino: u64, caller: Caller) -> FsResult<()> {
        // Attributes alone are at no place in the content.
        const ATTRIBUTES: i64 = -1;
        if self.fs.drop_privileges(ino, caller)?
            && let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(INodeNo(ino), ATTRIBUTES, 0)
        {
            log::warn!("the mode of inode {ino} stays in the kernel: {error}");
        }
        Ok(())
    }

    fn seek(&self, ino: u64, offset: i64, whence: i32) -> FsResult<u64> {
        if !matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) {
            return Err(FsError::Invalid);
        }
        let from = u64::try_from(offset).map_err(|_| FsError::NoSuchOffset)?;
        self.fs.seek(ino, from, whence == libc::SEEK_HOLE)
    }
}

fn is_for_writing(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

/// Logs what is worth it, once, here at the edge, and returns what applications see.
fn failed(asked: &Asked<'_>, error: &FsError) -> Answer<'static> {
    if let Some(ask) = error.key_needed() {
        return Answer::Later(ask.clone());
    }
    let (unique, operation) = (asked.unique, asked.operation.name());
    if error.is_damage() {
        log::error!("request {unique} ({operation}): {error}");
    } else {
        log::debug!("request {unique} ({operation}): {error}");
    }
    Answer::Failed(error.errno())
}

fn done(asked: &Asked<'_>, result: FsResult<()>, reply: impl Reply) {
    match result {
        Ok(()) => reply.send(Answer::Done),
        Err(error) => reply.send(failed(asked, &error)),
    }
}

fn entry(asked: &Asked<'_>, result: FsResult<Found>, reply: impl Reply) {
    match result {
        Ok(found) => reply.send(Answer::Entry(&found)),
        Err(error) => reply.send(failed(asked, &error)),
    }
}

fn attr(asked: &Asked<'_>, result: FsResult<crate::fs::Attr>, reply: impl Reply) {
    match result {
        Ok(attr) => reply.send(Answer::Attr(&attr)),
        Err(error) => reply.send(failed(asked, &error)),
    }
}

fn bytes(asked: &Asked<'_>, result: FsResult<Vec<u8>>, reply: impl Reply) {
    match result {
        Ok(bytes) => reply.send(Answer::Bytes(&bytes)),
        Err(error) => reply.send(failed(asked, &error)),
    }
}

/// Answers as getxattr(2) does: the size when none is given, ERANGE when it is too small.
fn xattr(asked: &Asked<'_>, result: FsResult<Vec<u8>>, size: u32, reply: impl Reply) {
    match result {
        Ok(value) if size == 0 => reply.send(Answer::Size(value.len() as u32)),
        Ok(value) if value.len() > size as usize => reply.send(Answer::Failed(libc::ERANGE)),
        result => bytes(asked, result, reply),
    }
}
