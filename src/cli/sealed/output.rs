//! A file that appears under its name when all of it is there, or not at all; or a stream.

use std::{
    ffi::OsStr,
    fs::{self, File, FileTimes, Metadata, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, RenameFlags},
    io::Errno,
    process::umask,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use super::super::{CliResult, error::CliError};
use crate::{backing::Dir, crypto::random};

/// Where devices lie.
const DEVICES: &str = "/dev";

/// Stands for standard output.
const STDOUT: &str = "/dev/stdout";

/// What is written to.
pub enum Output {
    /// Standard output.
    Stdout(io::Stdout),
    /// Something there is that is no ordinary file: a descriptor left open for this process, a pipe, a device.
    Special { path: PathBuf, file: File },
    /// A file to be made.
    File(NewFile),
}

/// A file under another name until it is whole. Dropped before that, it is gone.
pub struct NewFile {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    replaces: bool,
    is_kept: bool,
}

/// What is to be done with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Writing to what the caller has left open.
    Stream,
    /// Writing to what is there. A link to it is followed in directories of devices only.
    Special { follows_link: bool },
    /// Making a file, which may replace what is there.
    File,
}

impl Output {
    /// Tells whether there can be such an output, before a passphrase is thought of; makes nothing. Returns whether it would be a file.
    pub fn check(path: Option<&Path>, force: bool) -> CliResult<bool> {
        match path {
            Some(path) => Ok(kind_at(path, force)? == Kind::File),
            None => Ok(false),
        }
    }

    /// Begins to write to a path, or to standard output. A file that is there is replaced only with `force`.
    pub fn create(path: Option<PathBuf>, force: bool) -> CliResult<Self> {
        let Some(path) = path.filter(|path| path != Path::new(STDOUT)) else {
            return Ok(Output::Stdout(io::stdout()));
        };
        let failed = |source| CliError::File {
            path: path.clone(),
            source,
        };
        match kind_at(&path, force)? {
            Kind::Stream => {
                let file = OpenOptions::new().append(true).open(&path).map_err(failed)?;
                return Ok(Output::Special { path, file });
            }
            Kind::Special { follows_link } => {
                let file = open_special(&path, follows_link).map_err(failed)?;
                return Ok(Output::Special { path, file });
            }
            Kind::File if path.is_dir() => return Err(failed(io::ErrorKind::IsADirectory.into())),
            Kind::File => {}
        }
        NewFile::create(&path, force).map(Output::File).map_err(failed)
    }

    /// Tells whether it is a file, which stays.
    pub fn is_file(&self) -> bool {
        matches!(self, Output::File(_))
    }

    /// Says where writing has failed.
    pub fn failed(&self, source: io::Error) -> CliError {
        let path = match self {
            Output::Stdout(_) => return CliError::Output(source),
            Output::Special { path, .. } => path,
            Output::File(new) => &new.path,
        };
        CliError::File {
            path: path.clone(),
            source,
        }
    }

    /// Gives a file the mode and times of what it was made of, and makes it durable. It has not got its name yet.
    pub fn make_durable(&mut self, of: Option<&Metadata>) -> CliResult {
        let done = match self {
            Output::Stdout(_) | Output::Special { .. } => Ok(()),
            Output::File(new) => new.make_durable(of),
        };
        done.map_err(|source| self.failed(source))
    }

    /// Ends what was written and is durable. A file gets its name, and has it durably when this returns.
    pub fn finish(mut self) -> CliResult {
        let finished = match &mut self {
            Output::Stdout(stdout) => stdout.flush(),
            Output::Special { .. } => Ok(()),
            Output::File(new) => new.finish(),
        };
        finished.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => CliError::ExistsForce { path: self.path() },
            _ => self.failed(source),
        })
    }

    fn path(&self) -> PathBuf {
        match self {
            Output::Stdout(_) => PathBuf::new(),
            Output::Special { path, .. } => path.clone(),
            Output::File(new) => new.path.clone(),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Stdout(stdout) => stdout.write(bytes),
            Output::Special { file, .. } => file.write(bytes),
            Output::File(new) => new.file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Stdout(stdout) => stdout.flush(),
            Output::Special { .. } | Output::File(_) => Ok(()),
        }
    }
}

/// Makes a file that nobody else may read, durably; AlreadyExists where something has its name. A failure leaves none.
pub fn make_private(path: &Path, contents: &[&[u8]]) -> io::Result<()> {
    if path.symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut new = NewFile::create(path, false)?;
    contents.iter().try_for_each(|part| new.file.write_all(part))?;
    new.make_durable(None)?;
    new.finish()
}

impl NewFile {
    fn create(path: &Path, replaces: bool) -> io::Result<Self> {
        let number = data_encoding::HEXLOWER.encode(&random::bytes::<8>());
        let temporary = path.with_file_name(format!(".{number}.tmp.hush"));
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&temporary)?;
        let new = NewFile {
            path: path.to_owned(),
            temporary: temporary.clone(),
            file,
            replaces,
            is_kept: false,
        };
        remove_when_stopped(temporary)?;
        Ok(new)
    }

    fn make_durable(&mut self, of: Option<&Metadata>) -> io::Result<()> {
        if let Some(of) = of.filter(|of| of.is_file()) {
            // Nobody but its maker may run as someone else what was sealed by another, nor read what its maker keeps from them.
            let mode = of.permissions().mode() & 0o777 & !mask();
            self.file.set_permissions(Permissions::from_mode(mode))?;
            let times = FileTimes::new()
                .set_modified(of.modified()?)
                .set_accessed(of.accessed()?);
            self.file.set_times(times)?;
        }
        self.file.sync_all()
    }

    fn finish(&mut self) -> io::Result<()> {
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        // Before the file has its name: it is there, or this has failed.
        let directory = match Dir::open(parent.unwrap_or(Path::new("."))) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
            opened => Some(opened?),
        };
        self.rename()?;
        self.is_kept = true;
        match directory {
            Some(directory) => directory.sync(),
            // One that may be written to and not be read, as where people put files for someone, cannot be synced by itself.
            None => Ok(rustix::fs::syncfs(&self.file)?),
        }
    }

    fn rename(&self) -> io::Result<()> {
        if self.replaces {
            return fs::rename(&self.temporary, &self.path);
        }
        match rustix::fs::renameat_with(CWD, &self.temporary, CWD, &self.path, RenameFlags::NOREPLACE) {
            // A filesystem that has no such rename.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.link(),
            renamed => Ok(renamed?),
        }
    }

    fn link(&self) -> io::Result<()> {
        match rustix::fs::linkat(CWD, &self.temporary, CWD, &self.path, AtFlags::empty()) {
            // Nor more than one name for a file.
            Err(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP | Errno::MLINK | Errno::INVAL) => self.claim(),
            linked => {
                linked?;
                fs::remove_file(&self.temporary)
            }
        }
    }

    /// Takes the name with an empty file, which nobody else can do any more, and puts what was written in its place.
    fn claim(&self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).open(&self.path)?;
        let renamed = fs::rename(&self.temporary, &self.path);
        if renamed.is_err() {
            let _ = fs::remove_file(&self.path);
        }
        renamed
    }
}

/// Returns what a new file's mode is not to have, umask(2).
fn mask() -> u32 {
    // There is no other way to learn of it; nothing else makes files meanwhile.
    let mask = umask(Mode::RWXG | Mode::RWXO);
    umask(mask);
    mask.as_raw_mode()
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_kept {
            // There is nobody left to tell; the name says that it is unfinished.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Says what is to be done with a path, or that something is there which the user has not given up.
///
/// Another user may have put a pipe, or a link to a device, where a file was to be: without `force` nothing is written to but what the caller has left open, and
/// character devices where only root makes them.
fn kind_at(path: &Path, force: bool) -> CliResult<Kind> {
    if is_left_open(path) {
        return Ok(Kind::Stream);
    }
    let Ok(there) = fs::symlink_metadata(path) else {
        return Ok(Kind::File);
    };
    let follows_link = is_among_devices(path);
    let is_written_to = match follows_link {
        true => {
            fs::metadata(path).is_ok_and(|there| is_special(&there) && (force || there.file_type().is_char_device()))
        }
        false => force && is_special(&there) && is_trusted(&there),
    };
    match (is_written_to, force) {
        (true, _) => Ok(Kind::Special { follows_link }),
        (false, true) => Ok(Kind::File),
        (false, false) => Err(CliError::ExistsForce { path: path.to_owned() }),
    }
}

/// Tells whether a path means what the caller has left open for this process, as a shell's `>(...)` does.
fn is_left_open(path: &Path) -> bool {
    let is_number = |name: &OsStr| name.as_bytes().iter().all(u8::is_ascii_digit);
    let directories = ["/dev/fd", "/proc/self/fd"].map(Path::new);
    [STDOUT, "/dev/stderr"].map(Path::new).contains(&path)
        || path.file_name().is_some_and(is_number) && path.parent().is_some_and(|parent| directories.contains(&parent))
}

/// Tells whether a path is of a directory under `/dev` that other users put nothing in.
fn is_among_devices(path: &Path) -> bool {
    let is_closed = |parent: &Path| {
        let closed = |directory: Metadata| is_trusted(&directory) && directory.mode() & 0o022 == 0;
        parent == Path::new(DEVICES) || fs::metadata(parent).is_ok_and(closed)
    };
    path.starts_with(DEVICES) && path.parent().is_some_and(is_closed)
}

/// Tells whether something is written to, and not replaced.
fn is_special(there: &Metadata) -> bool {
    let kind = there.file_type();
    !kind.is_file() && !kind.is_dir() && !kind.is_symlink()
}

/// Tells whether something belongs to the user or to root.
fn is_trusted(there: &Metadata) -> bool {
    there.uid() == 0 || there.uid() == rustix::process::geteuid().as_raw()
}

fn open_special(path: &Path, follows_link: bool) -> io::Result<File> {
    let flags = if follows_link { 0 } else { libc::O_NOFOLLOW };
    let mut options = OpenOptions::new();
    let file = options.write(true).custom_flags(flags | libc::O_NOCTTY).open(path)?;
    let opened = file.metadata()?;
    // Another may stand there since it was looked at.
    match is_special(&opened) && (follows_link || is_trusted(&opened)) {
        true => Ok(file),
        false => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

/// Has a file removed when a signal ends the process, which then ends as it would have.
fn remove_when_stopped(temporary: PathBuf) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // It may have got its name meanwhile.
            let _ = fs::remove_file(temporary);
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    });
    Ok(())
}
