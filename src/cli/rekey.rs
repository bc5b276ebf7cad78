//! `rekey`: a new data key for files, and with it their content encrypted again.
//!
//! Each file is copied beside itself and the copy takes its name, so that at any time the one or the other is there as a whole. What a kill
//! leaves is a copy under a name of its own, which the next run in that directory removes.
//!
//! A copy is as long as the file, and headers have other names: who mirrors the vault by sizes and times would keep the old data files and take the new
//! headers. So copies are later than the files, unless that is not wanted.

use std::path::Path;

use rustix::fs::FileType;

use super::{
    CliResult,
    args::RekeyArgs,
    error::CliError,
    progress::Progress,
    say, text,
    view::{CHUNK, LeftOut, Place, View},
};
use crate::{
    fs::{Caller, FsError, FsResult, NameIn, SetAttr, SetTime, Time},
    fuse::MountError,
};

/// What a copy is called until it is whole.
const UNFINISHED: &[u8] = b".hushfs-rekey";

/// How much later than the file a copy is, in seconds: what the coarsest clocks of filesystems tell apart (FAT).
const LATER: i64 = 2;

/// Gives files new data keys.
pub fn rekey(args: &RekeyArgs) -> CliResult {
    let view = View::open_for_change(&args.vault)?;
    let mut run = Run {
        view: &view,
        caller: Caller {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: std::process::id(),
            umask: 0,
        },
        progress: Progress::counter("bytes"),
        done: 0,
        left_out: LeftOut::default(),
        keeps_times: args.keep_times,
    };
    for path in &args.paths {
        run.path(path)?;
    }
    let is_durable = view.fs.seal_all();
    let Run {
        done,
        left_out,
        progress,
        keeps_times,
        ..
    } = run;
    drop(progress);
    let times = match (done, keeps_times) {
        (0, _) => String::new(),
        (_, false) => format!(", their times set {LATER} seconds later: who mirrors the vault by sizes and times sees the change"),
        (_, true) => ", with sizes and times as before: mirror the vault by content now (rsync --checksum, rclone --checksum); by sizes and times \
                      a mirror keeps the old contents, without their headers, and cannot be read"
            .to_owned(),
    };
    say(format_args!(
        "{} encrypted again under new keys{times}",
        text::count(done, "file")
    ));
    if !is_durable {
        return Err(MountError::NotDurable.into());
    }
    left_out.result("encrypted again")
}

struct Run<'v> {
    view: &'v View,
    caller: Caller,
    progress: Progress,
    done: u64,
    left_out: LeftOut,
    keeps_times: bool,
}

impl Run<'_> {
    /// Does what a path names, and all below it.
    fn path(&mut self, path: &Path) -> CliResult {
        let place = self.view.find(path)?;
        if place.attr.kind() == FileType::Directory {
            return self.directory(place);
        }
        let parent = self.view.find(path.parent().unwrap_or(Path::new("")))?;
        self.clear(&parent)?;
        self.file(&parent, &place);
        self.sync(&parent)
    }

    fn directory(&mut self, start: Place) -> CliResult {
        let mut waiting = vec![start];
        while let Some(directory) = waiting.pop() {
            let listed = self.clear(&directory).and_then(|()| self.view.entries(&directory));
            let listed = match listed {
                Ok(listed) => listed,
                Err(error) => {
                    self.complain(&error);
                    continue;
                }
            };
            listed.left_out.iter().for_each(|error| self.complain(error));
            for entry in listed.entries {
                match entry.place.attr.kind() {
                    FileType::Directory => {
                        waiting.push(entry.place);
                        continue;
                    }
                    FileType::RegularFile => self.file(&directory, &entry.place),
                    // Links and special files have no key of their own.
                    _ => {}
                }
                self.view.forget(&entry.place);
            }
            self.sync(&directory)?;
        }
        Ok(())
    }

    fn file(&mut self, parent: &Place, place: &Place) {
        let copied = match place.attr.nlink {
            0 | 1 => self.copy(parent, place).map_err(|error| place.error(error)),
            _ => Err(CliError::SeveralNames {
                path: place.printable_path(),
            }),
        };
        match copied {
            Ok(()) => self.done += 1,
            Err(error) => self.complain(&error),
        }
    }

    fn complain(&mut self, error: &CliError) {
        self.left_out.note(error);
        self.progress.complain(&error.to_string());
    }

    /// Removes what an earlier run has left in a directory.
    fn clear(&self, directory: &Place) -> CliResult {
        let removed = self.view.fs.unlink(unfinished(directory));
        match removed {
            Ok(leftovers) => self.view.fs.clear(leftovers),
            Err(FsError::NotFound) => {}
            Err(FsError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(directory.error(error)),
        }
        Ok(())
    }

    fn sync(&self, directory: &Place) -> CliResult {
        self.view
            .fs
            .sync_directory(directory.id)
            .map_err(|error| directory.error(error))
    }

    /// Copies a file, and lets the copy take its name.
    fn copy(&self, parent: &Place, place: &Place) -> FsResult<()> {
        let fs = &self.view.fs;
        let made = fs.create_like(unfinished(parent), 0o600, self.caller, place.id)?;
        let id = made.node.id;
        let copied = self.content(place, id);
        let copied = copied.and_then(|()| self.attributes(place, id));
        // Whole and durable before it takes the place of the other.
        let copied = copied.and_then(|()| fs.sync_file(id, false));
        fs.release(id);
        let name = place.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let to = NameIn {
            parent: parent.id,
            name,
        };
        let moved = match copied {
            Ok(()) => fs.rename(unfinished(parent), to, 0),
            Err(error) => {
                // The error is what counts; the next run removes what this does not.
                if let Ok(leftovers) = fs.unlink(unfinished(parent)) {
                    fs.clear(leftovers);
                }
                Err(error)
            }
        };
        fs.clear(moved?);
        fs.forget(id, 1);
        Ok(())
    }

    fn content(&self, place: &Place, to: u64) -> FsResult<()> {
        let fs = &self.view.fs;
        let size = place.attr.size;
        let mut buffer = Vec::new();
        let mut at = 0;
        while at < size {
            let data = match fs.seek(place.id, at, false) {
                Ok(data) => data,
                Err(FsError::NoSuchOffset) => break,
                Err(error) => return Err(error),
            };
            let hole = fs.seek(place.id, data, true)?.min(size);
            at = data;
            while at < hole {
                let len = CHUNK.min((hole - at) as usize);
                let range = fs.read(place.id, at, len, &mut buffer)?;
                if range.is_empty() {
                    break;
                }
                fs.write(to, at, &buffer[range.clone()])?;
                self.progress.advance(range.len() as u64);
                at += range.len() as u64;
            }
        }
        let whole = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        fs.set_attr(to, self.caller, &whole).map(drop)
    }

    fn attributes(&self, place: &Place, to: u64) -> FsResult<()> {
        let fs = &self.view.fs;
        let is_root = self.caller.uid == 0;
        let attr = &place.attr;
        if is_root || attr.uid == self.caller.uid {
            let owner = SetAttr {
                uid: is_root.then_some(attr.uid),
                gid: Some(attr.gid),
                ..SetAttr::default()
            };
            fs.set_attr(to, self.caller, &owner)?;
        }
        let names = match fs.list_xattrs(place.id, is_root) {
            Err(FsError::Io(error)) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
            names => names?,
        };
        for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            let value = fs.get_xattr(place.id, name)?;
            fs.set_xattr(to, name, &value, 0, self.caller)?;
        }
        let later = if self.keeps_times { 0 } else { LATER };
        let mtime = Time {
            seconds: attr.mtime.seconds.saturating_add(later),
            ..attr.mtime
        };
        let rest = SetAttr {
            mode: Some(attr.mode & 0o7777),
            atime: Some(SetTime::At(attr.atime)),
            mtime: Some(SetTime::At(mtime)),
            ..SetAttr::default()
        };
        fs.set_attr(to, self.caller, &rest).map(drop)
    }
}

fn unfinished(directory: &Place) -> NameIn<'static> {
    NameIn {
        parent: directory.id,
        name: UNFINISHED,
    }
}
