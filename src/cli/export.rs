//! `export`: copies out of a vault into a plain directory, with modes, times, links and, as far as they can be set, attributes and owners.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::{
    CliResult,
    args::ExportArgs,
    error::CliError,
    outside,
    progress::Progress,
    view::{CHUNK, Entry, LeftOut, Place, View},
};
use crate::fs::{Attr, FsError};

/// Copies a file or a directory out of a vault.
pub fn export(args: &ExportArgs) -> CliResult {
    outside::check(&args.destination, &args.vault.vault)?;
    let view = View::open(&args.vault)?;
    let start = view.find(&args.path)?;
    let mut run = Run {
        view: &view,
        progress: Progress::counter("bytes"),
        left_out: LeftOut::default(),
    };
    if Progress::is_seen() {
        run.progress = Progress::bytes("exporting", total(&view, &args.path)?);
    }
    if start.attr.kind() == FileType::Directory {
        make_root(&args.destination)?;
        run.directory(&start, &args.destination)?;
    } else {
        if fs::symlink_metadata(&args.destination).is_ok() {
            return Err(CliError::Exists {
                path: args.destination.clone(),
            });
        }
        run.copy(&start, &args.destination);
    }
    drop(run.progress);
    run.left_out.result("copied")
}

/// Makes the directory that is copied into, or makes sure that it is empty: nothing that was there is ever replaced.
fn make_root(path: &Path) -> CliResult {
    let failed = |source| CliError::File {
        path: path.to_owned(),
        source,
    };
    match make_directory(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::read_dir(path).map_err(failed)?.next().is_some() {
                return Err(CliError::Exists { path: path.to_owned() });
            }
            Ok(())
        }
        made => made.map_err(failed),
    }
}

/// Makes a directory for nobody else, until it has its mode.
fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// Adds up the sizes of what will be copied.
fn total(view: &View, path: &Path) -> CliResult<u64> {
    let mut waiting = vec![view.find(path)?];
    let mut bytes = 0;
    while let Some(place) = waiting.pop() {
        if place.attr.kind() == FileType::Directory {
            // What cannot be listed is told of when it is to be copied.
            let entries = view.entries(&place).into_iter().flat_map(|listed| listed.entries);
            waiting.extend(entries.map(|entry| entry.place));
        } else {
            bytes += place.attr.size;
            view.forget(&place);
        }
    }
    Ok(bytes)
}

struct Run<'v> {
    view: &'v View,
    progress: Progress,
    left_out: LeftOut,
}

/// A directory whose entries are being copied; it gets its mode and times when they are.
struct Level {
    place: Place,
    path: PathBuf,
    waiting: Vec<Entry>,
}

impl Run<'_> {
    fn complain(&mut self, error: &CliError) {
        self.left_out.note(error);
        self.progress.complain(&error.to_string());
    }

    /// Copies everything below a directory into one that exists.
    fn directory(&mut self, start: &Place, destination: &Path) -> CliResult {
        let entries = self.entries(start)?;
        let mut levels = vec![Level {
            place: start.clone(),
            path: destination.to_owned(),
            waiting: entries,
        }];
        while let Some(level) = levels.last_mut() {
            let Some(entry) = level.waiting.pop() else {
                if let Some(done) = levels.pop() {
                    self.attributes(&done.place, &done.path);
                }
                continue;
            };
            let path = level.path.join(std::ffi::OsStr::from_bytes(&entry.name));
            if entry.place.attr.kind() != FileType::Directory {
                self.copy(&entry.place, &path);
                self.view.forget(&entry.place);
                continue;
            }
            let failed = |source| CliError::File {
                path: path.clone(),
                source,
            };
            let made = make_directory(&path).map_err(failed);
            let opened = made.and_then(|()| self.entries(&entry.place));
            match opened {
                Ok(waiting) => levels.push(Level {
                    place: entry.place,
                    path,
                    waiting,
                }),
                Err(error) => self.complain(&error),
            }
        }
        Ok(())
    }

    /// Lists a directory, and complains of what cannot be listed.
    fn entries(&mut self, place: &Place) -> CliResult<Vec<Entry>> {
        let listed = self.view.entries(place)?;
        listed.left_out.iter().for_each(|error| self.complain(error));
        Ok(listed.entries)
    }

    /// Copies what is not a directory.
    fn copy(&mut self, place: &Place, path: &Path) {
        let failed = |source| CliError::File {
            path: path.to_owned(),
            source,
        };
        let kind = place.attr.kind();
        let copied = match kind {
            FileType::RegularFile => self.content(place, path),
            FileType::Symlink => self
                .view
                .fs
                .read_link(place.id)
                .map_err(|error| place.error(error))
                .and_then(|target| symlink(std::ffi::OsStr::from_bytes(&target), path).map_err(failed)),
            _ => rustix::fs::mknodat(CWD, path, kind, Mode::RUSR | Mode::WUSR, place.attr.rdev.into())
                .map_err(|errno| failed(errno.into())),
        };
        match copied {
            Ok(()) => self.attributes(place, path),
            Err(error) => self.complain(&error),
        }
    }

    /// Copies a file's content; holes stay holes. A file that is damaged keeps what came before the damage.
    fn content(&self, place: &Place, path: &Path) -> CliResult {
        let failed = |source| CliError::File {
            path: path.to_owned(),
            source,
        };
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        let size = place.attr.size;
        let mut buffer = Vec::new();
        let mut at = 0;
        while at < size {
            let data = match self.view.fs.seek(place.id, at, false) {
                Ok(data) => data.min(size),
                Err(FsError::NoSuchOffset) => break,
                Err(error) => return Err(place.error(error)),
            };
            let hole = match self.view.fs.seek(place.id, data, true) {
                Ok(hole) => hole.min(size),
                Err(FsError::NoSuchOffset) => break,
                Err(error) => return Err(place.error(error)),
            };
            self.progress.advance(data - at);
            at = data;
            while at < hole {
                let len = CHUNK.min((hole - at) as usize);
                let range = self.view.fs.read(place.id, at, len, &mut buffer);
                let range = range.map_err(|error| place.error(error))?;
                if range.is_empty() {
                    break;
                }
                file.write_all_at(&buffer[range.clone()], at).map_err(failed)?;
                self.progress.advance(range.len() as u64);
                at += range.len() as u64;
            }
            if at < hole {
                break;
            }
        }
        self.progress.advance(size.saturating_sub(at));
        file.set_len(size).map_err(failed)
    }

    /// Sets what can be set: owners only by root, attributes where the filesystem has them.
    fn attributes(&mut self, place: &Place, path: &Path) {
        let attr = &place.attr;
        if let Err(error) = self.extended_attributes(place, path) {
            self.complain(&place.error(error));
        }
        if rustix::process::geteuid().is_root() {
            let owner = Some(rustix::fs::Uid::from_raw(attr.uid));
            let group = Some(rustix::fs::Gid::from_raw(attr.gid));
            // A filesystem without owners keeps its own.
            let _ = rustix::fs::chownat(CWD, path, owner, group, AtFlags::SYMLINK_NOFOLLOW);
        }
        let set = set_mode(attr, path).and_then(|()| {
            let times = Timestamps {
                last_access: timespec(attr.atime),
                last_modification: timespec(attr.mtime),
            };
            Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
        });
        if let Err(source) = set {
            self.complain(&CliError::File {
                path: path.to_owned(),
                source,
            });
        }
    }

    fn extended_attributes(&self, place: &Place, path: &Path) -> Result<(), FsError> {
        let is_root = rustix::process::geteuid().is_root();
        let names = match self.view.fs.list_xattrs(place.id, is_root) {
            Err(FsError::Io(error)) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
            names => names?,
        };
        for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            let value = self.view.fs.get_xattr(place.id, name)?;
            if let Err(error) = rustix::fs::lsetxattr(path, name, &value, XattrFlags::empty()) {
                log::info!("{}: attribute left out: {error}", path.display());
            }
        }
        Ok(())
    }
}

fn set_mode(attr: &Attr, path: &Path) -> io::Result<()> {
    if attr.kind() == FileType::Symlink {
        return Ok(());
    }
    // Not a link: what stands there was made here, in a directory that is closed to others.
    fs::set_permissions(path, fs::Permissions::from_mode(attr.mode & 0o7777))
}

fn timespec(time: crate::fs::Time) -> Timespec {
    Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanos.into(),
    }
}
