//! A disk with a volatile cache: a file, served over FUSE, that remembers which writes came after the last flush.
//!
//! A loop device on the file passes the filesystem's writes on as writes and its flushes as fsync(2). A write that has been answered lies in the
//! cache of the drive; only a flush makes it certain.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use rand::{RngExt, rngs::StdRng};

/// What is remembered as one.
const PAGE_SIZE: usize = 4096;

/// The name of the disk in its mount.
const FILE_NAME: &str = "disk";

const FILE: INodeNo = INodeNo(2);

/// For ever: nothing changes but through the kernel.
const TTL: Duration = Duration::from_secs(86400);

type Page = Arc<[u8; PAGE_SIZE]>;

/// Pages by their number; what was never written is zero.
type Pages = HashMap<u64, Page>;

/// What a cut leaves of the writes that were not flushed.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    All,
    None,
    /// Those up to some instant, the last perhaps in part.
    Prefix,
    /// Any of their units, each with the same chance.
    Subset,
}

impl Fate {
    /// Chooses one; a subset is what a drive that reorders writes leaves, and the hardest.
    pub fn choose(rng: &mut StdRng) -> Self {
        match rng.random_range(0..8) {
            0 => Fate::All,
            1 => Fate::None,
            2 | 3 => Fate::Prefix,
            _ => Fate::Subset,
        }
    }
}

/// What the disk holds, and what it would hold.
#[derive(Debug, Default)]
struct Contents {
    /// With all that was written: what is read.
    current: Pages,
    /// As of the last flush.
    flushed: Pages,
    /// Writes since, in their order.
    pending: Vec<(u64, Arc<[u8]>)>,
}

impl Contents {
    fn write(&mut self, offset: u64, data: &[u8]) {
        put(&mut self.current, offset, data);
        self.pending.push((offset, data.into()));
    }

    fn flush(&mut self) {
        for (offset, data) in self.pending.drain(..) {
            for number in pages_of(offset, data.len()) {
                if let Some(page) = self.current.get(&number) {
                    self.flushed.insert(number, page.clone());
                }
            }
        }
    }

    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (number, within) = (at / PAGE_SIZE as u64, at as usize % PAGE_SIZE);
            let step = (PAGE_SIZE - within).min(len - done);
            if let Some(page) = self.current.get(&number) {
                out[done..done + step].copy_from_slice(&page[within..within + step]);
            }
            done += step;
        }
        out
    }
}

fn pages_of(offset: u64, len: usize) -> std::ops::Range<u64> {
    offset / PAGE_SIZE as u64..(offset + len as u64).div_ceil(PAGE_SIZE as u64)
}

fn put(pages: &mut Pages, offset: u64, data: &[u8]) {
    let mut done = 0;
    while done < data.len() {
        let at = offset + done as u64;
        let (number, within) = (at / PAGE_SIZE as u64, at as usize % PAGE_SIZE);
        let step = (PAGE_SIZE - within).min(data.len() - done);
        let page = pages.entry(number).or_insert_with(|| Arc::new([0; PAGE_SIZE]));
        Arc::make_mut(page)[within..within + step].copy_from_slice(&data[done..done + step]);
        done += step;
    }
}

/// The disk, mounted.
pub struct Device {
    contents: Arc<Mutex<Contents>>,
    size: u64,
    path: PathBuf,
    session: Option<BackgroundSession>,
}

impl Device {
    /// Makes a disk with the contents of an image, which may be sparse, as a file in the directory `at`.
    pub fn new(image: &Path, at: &Path) -> io::Result<Self> {
        let file = fs::File::open(image)?;
        let size = file.metadata()?.len();
        let mut flushed = Pages::new();
        let mut page = [0; PAGE_SIZE];
        for number in 0..size / PAGE_SIZE as u64 {
            file.read_exact_at(&mut page, number * PAGE_SIZE as u64)?;
            if page != [0; PAGE_SIZE] {
                flushed.insert(number, Arc::new(page));
            }
        }
        let contents = Arc::new(Mutex::new(Contents {
            current: flushed.clone(),
            flushed,
            pending: Vec::new(),
        }));
        let served = Served {
            contents: contents.clone(),
            size,
        };
        let session = fuser::spawn_mount(served, at, &Config::default())?;
        Ok(Device {
            contents,
            size,
            path: at.join(FILE_NAME),
            session: Some(session),
        })
    }

    /// The file, for a loop device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Cuts the power, now, and returns what is on the disk then. The disk itself goes on.
    pub fn cut(&self, fate: Fate, unit: usize, rng: &mut StdRng) -> Snapshot {
        let contents = lock(&self.contents);
        let mut pages = contents.flushed.clone();
        let pending = &contents.pending;
        let chance = rng.random_range(0.1..0.9);
        let whole = match fate {
            Fate::All => pending.len(),
            Fate::None | Fate::Subset => 0,
            Fate::Prefix => rng.random_range(0..=pending.len()),
        };
        for (offset, data) in &pending[..whole] {
            put(&mut pages, *offset, data);
        }
        for (i, (offset, data)) in pending.iter().enumerate().skip(whole) {
            let mut at = 0;
            // In the middle of a prefix's last write.
            let end = match fate {
                Fate::Prefix if i == whole => rng.random_range(0..=data.len() / unit) * unit,
                Fate::Subset => data.len(),
                _ => break,
            };
            while at < end {
                // Units are those of the disk, wherever a write begins.
                let next = end.min(at + unit - (*offset as usize + at) % unit);
                if !matches!(fate, Fate::Subset) || rng.random_bool(chance) {
                    put(&mut pages, offset + at as u64, &data[at..next]);
                }
                at = next;
            }
        }
        Snapshot {
            pages,
            size: self.size,
            unflushed: pending.len(),
        }
    }

    /// Takes the disk away; nothing may use it any more.
    pub fn remove(mut self) -> io::Result<()> {
        self.session.take().map_or(Ok(()), BackgroundSession::umount_and_join)
    }
}

/// What a cut has left on the disk.
pub struct Snapshot {
    pages: Pages,
    size: u64,
    /// How many writes had not been flushed.
    pub unflushed: usize,
}

impl Snapshot {
    /// Writes it as a sparse image.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let file = fs::File::create(path)?;
        file.set_len(self.size)?;
        for (number, page) in &self.pages {
            file.write_all_at(&page[..], number * PAGE_SIZE as u64)?;
        }
        Ok(())
    }
}

/// The filesystem with the one file.
struct Served {
    contents: Arc<Mutex<Contents>>,
    size: u64,
}

impl Served {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let is_file = ino == FILE;
        FileAttr {
            ino,
            size: if is_file { self.size } else { 0 },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: PAGE_SIZE as u32,
        }
    }
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == FILE_NAME {
            reply.entry(&TTL, &self.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // What the loop device writes must come here at once.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = u64::from(size).min(self.size.saturating_sub(offset));
        let data = lock(&self.contents).read(offset, len as usize);
        reply.data(&data);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        lock(&self.contents).write(offset, data);
        reply.written(data.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Of a descriptor that is closed, not of the disk.
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        lock(&self.contents).flush();
        reply.ok();
    }
}

fn lock(contents: &Mutex<Contents>) -> MutexGuard<'_, Contents> {
    contents.lock().unwrap_or_else(PoisonError::into_inner)
}
