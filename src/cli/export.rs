//! `export`: copies out of a vault into a plain directory, with modes, times, links and, as far as they can be set, attributes and owners.

mod target;

use std::{ffi::OsStr, io, os::unix::ffi::OsStrExt, path::Path};

use rustix::fs::{FileType, Timespec, Timestamps, XattrFlags};

use self::target::Target;
use super::{
    CliResult,
    args::ExportArgs,
    error::CliError,
    outside,
    progress::Progress,
    text,
    view::{self, CHUNK, LeftOut, Place, View},
};
use crate::{
    backing::{BackingFile, Entry, Storage},
    fs::{ACCESS_LIST, Attr, FsError},
};

/// What the names of attributes begin with that the system goes by, as it does by `security.capability`.
const PRIVILEGED_NAMESPACES: [&[u8]; 2] = [b"security.", b"trusted."];

/// Copies a file or a directory out of a vault.
pub fn export(args: &ExportArgs) -> CliResult {
    outside::check(&args.destination, &args.vault.vault)?;
    let view = View::open(&args.vault)?;
    let start = view.find(&args.path)?;
    let mut run = Run {
        view: &view,
        progress: Progress::counter("bytes"),
        left_out: LeftOut::default(),
        with_privileges: args.with_privileges,
    };
    if Progress::is_seen() {
        run.progress = Progress::bytes("exporting", total(&view, &args.path)?);
    }
    if start.attr.kind() == FileType::Directory {
        run.directory(&start, Target::root(&args.destination)?)?;
    } else {
        let exists = || CliError::Exists {
            path: args.destination.clone(),
        };
        let name = args.destination.file_name().ok_or_else(exists)?;
        if args.destination.symlink_metadata().is_ok() {
            return Err(exists());
        }
        run.copy(&start, &Target::parent(&args.destination)?, name);
    }
    drop(run.progress);
    run.left_out.result("copied")
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
    /// Also what nothing in a vault authenticates, and lets who runs or opens the copy do more than they could.
    with_privileges: bool,
}

/// A directory whose entries are being copied; it gets its mode and times when they are.
struct Level {
    place: Place,
    target: Target,
    waiting: Vec<view::Entry>,
}

impl Run<'_> {
    fn complain(&mut self, error: &CliError) {
        self.left_out.note(error);
        self.progress.complain(&error.to_string());
    }

    /// Copies everything below a directory into one that exists.
    fn directory(&mut self, start: &Place, target: Target) -> CliResult {
        let waiting = self.entries(start)?;
        let mut levels = vec![Level {
            place: start.clone(),
            target,
            waiting,
        }];
        while let Some(level) = levels.last_mut() {
            let Some(entry) = level.waiting.pop() else {
                if let Some(done) = levels.pop() {
                    self.end(&done);
                }
                continue;
            };
            let name = OsStr::from_bytes(&entry.name);
            if entry.place.attr.kind() != FileType::Directory {
                self.copy(&entry.place, &level.target, name);
                self.view.forget(&entry.place);
                continue;
            }
            let made = level.target.directory(name);
            let opened = made.and_then(|target| Ok((target, self.entries(&entry.place)?)));
            match opened {
                Ok((target, waiting)) => levels.push(Level {
                    place: entry.place,
                    target,
                    waiting,
                }),
                Err(error) => self.complain(&error),
            }
        }
        Ok(())
    }

    /// Ends a directory whose entries were copied.
    fn end(&mut self, done: &Level) {
        match done.target.entry() {
            Ok(entry) => self.attributes(&done.place, &entry, &done.target.at("")),
            Err(error) => self.complain(&error),
        }
    }

    /// Lists a directory, and complains of what cannot be listed.
    fn entries(&mut self, place: &Place) -> CliResult<Vec<view::Entry>> {
        let listed = self.view.entries(place)?;
        listed.left_out.iter().for_each(|error| self.complain(error));
        Ok(listed.entries)
    }

    /// Copies what is not a directory.
    fn copy(&mut self, place: &Place, target: &Target, name: &OsStr) {
        match self.make(place, target, name) {
            Ok(made) => self.attributes(place, &made, &target.at(name)),
            Err(error) => self.complain(&error),
        }
    }

    fn make(&self, place: &Place, target: &Target, name: &OsStr) -> CliResult<Entry> {
        match place.attr.kind() {
            FileType::RegularFile => {
                let file = target.file(name)?;
                let failed = |source| target.failed(name, source);
                self.content(place, &file, failed)?;
                Entry::of(&file).map_err(failed)
            }
            FileType::Symlink => {
                let to = self.view.fs.read_link(place.id).map_err(|error| place.error(error))?;
                target.link(&to, name)
            }
            FileType::BlockDevice | FileType::CharacterDevice if !self.with_privileges => {
                Err(CliError::DeviceLeftOut {
                    path: place.printable_path(),
                })
            }
            kind => target.special(name, kind, place.attr.rdev),
        }
    }

    /// Copies a file's content; holes stay holes. A file that is damaged keeps what came before the damage.
    fn content(&self, place: &Place, file: &BackingFile, failed: impl Fn(io::Error) -> CliError) -> CliResult {
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
                let written = file.write_at(&buffer[range.clone()], at);
                written.map_err(|short| failed(short.error))?;
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
    fn attributes(&mut self, place: &Place, made: &Entry, path: &Path) {
        let attr = &place.attr;
        if rustix::process::geteuid().is_root() {
            // A filesystem without owners keeps its own.
            let _ = made.chown(Some(attr.uid), Some(attr.gid));
        }
        let mut left_out = Vec::new();
        let set = self.extended_attributes(place, made, &mut left_out);
        let has_list = matches!(set, Ok(true));
        match set {
            Ok(true) => {}
            Ok(false) => self.progress.complain(&format!(
                "{}: its access control list cannot be kept there: its group may do nothing",
                place.printable_path()
            )),
            Err(error) => self.complain(&place.error(error)),
        }
        // Without the list its mask would be what the group may do, more than the list says.
        let mask = if has_list { 0 } else { libc::S_IRWXG };
        if let Err(source) = self.set_mode_and_times(attr, mask, made, &mut left_out) {
            self.complain(&CliError::File {
                path: path.to_owned(),
                source,
            });
        }
        if !left_out.is_empty() {
            let (path, left_out) = (place.printable_path(), left_out.join(", "));
            self.progress.complain(&format!(
                "{path}: copied without {left_out}: --with-privileges keeps that"
            ));
        }
    }

    /// Sets extended attributes; tells whether its access control list is among them, if it has one.
    fn extended_attributes(&self, place: &Place, made: &Entry, left_out: &mut Vec<String>) -> Result<bool, FsError> {
        let mut has_list = true;
        let is_root = rustix::process::geteuid().is_root();
        let names = match self.view.fs.list_xattrs(place.id, is_root) {
            Err(FsError::Io(error)) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(true),
            names => names?,
        };
        for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            let value = self.view.fs.get_xattr(place.id, name)?;
            if !self.with_privileges && PRIVILEGED_NAMESPACES.iter().any(|start| name.starts_with(start)) {
                left_out.push(text::printable(name));
            } else if let Err(error) = made.set_xattr(name, &value, XattrFlags::empty()) {
                log::info!("{}: attribute left out: {error}", place.printable_path());
                has_list &= name != ACCESS_LIST;
            }
        }
        Ok(has_list)
    }

    fn set_mode_and_times(&self, attr: &Attr, mask: u32, made: &Entry, left_out: &mut Vec<String>) -> io::Result<()> {
        let mut mode = attr.mode & !mask;
        // Those of a directory let nobody do more.
        if !self.with_privileges && attr.kind() != FileType::Directory {
            for (bit, name) in [(libc::S_ISUID, "set-user-ID bit"), (libc::S_ISGID, "set-group-ID bit")] {
                if mode & bit != 0 {
                    left_out.push(name.to_owned());
                }
                mode &= !bit;
            }
        }
        if attr.kind() != FileType::Symlink {
            made.chmod(mode)?;
        }
        made.set_times(&Timestamps {
            last_access: timespec(attr.atime),
            last_modification: timespec(attr.mtime),
        })
    }
}

fn timespec(time: crate::fs::Time) -> Timespec {
    Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanos.into(),
    }
}
