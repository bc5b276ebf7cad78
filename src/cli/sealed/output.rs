//! A file that appears under its name when all of it is there, or not at all; or a stream.

use std::{
    fs::{self, File, FileTimes, Metadata, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
};

use rustix::fs::{CWD, RenameFlags};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use super::super::{CliResult, error::CliError};
use crate::crypto::random;

/// What is written to.
pub enum Output {
    /// Standard output.
    Stdout(io::Stdout),
    /// Something there is that is no ordinary file: a pipe, a device.
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

impl Output {
    /// Tells whether there can be such an output, before a passphrase is thought of; makes nothing.
    pub fn check(path: Option<&Path>, force: bool) -> CliResult {
        match path {
            Some(path) if !force && fs::symlink_metadata(path).is_ok() && !is_special(path) => {
                Err(CliError::ExistsForce { path: path.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Begins to write to a path, or to standard output. A file that is there is replaced only with `force`.
    pub fn create(path: Option<PathBuf>, force: bool) -> CliResult<Self> {
        Output::check(path.as_deref(), force)?;
        let Some(path) = path else {
            return Ok(Output::Stdout(io::stdout()));
        };
        let failed = |source| CliError::File {
            path: path.clone(),
            source,
        };
        if path.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        if is_special(&path) {
            let file = OpenOptions::new().write(true).open(&path).map_err(failed)?;
            return Ok(Output::Special { path, file });
        }
        let number = data_encoding::HEXLOWER.encode(&random::bytes::<8>());
        let temporary = path.with_file_name(format!(".{number}.tmp.hush"));
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed)?;
        remove_when_stopped(temporary.clone()).map_err(failed)?;
        Ok(Output::File(NewFile {
            path,
            temporary,
            file,
            replaces: force,
            is_kept: false,
        }))
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

    /// Ends what was written. A file gets the mode and times of what it was made of, and is durable when this returns.
    pub fn finish(mut self, of: Option<&Metadata>) -> CliResult {
        let finished = match &mut self {
            Output::Stdout(stdout) => stdout.flush(),
            Output::Special { .. } => Ok(()),
            Output::File(new) => new.finish(of),
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

impl NewFile {
    fn finish(&mut self, of: Option<&Metadata>) -> io::Result<()> {
        if let Some(of) = of.filter(|of| of.is_file()) {
            // Nobody but its maker may run as someone else what was sealed by another.
            self.file
                .set_permissions(Permissions::from_mode(of.permissions().mode() & 0o777))?;
            let times = FileTimes::new()
                .set_modified(of.modified()?)
                .set_accessed(of.accessed()?);
            self.file.set_times(times)?;
        }
        self.file.sync_all()?;
        self.rename()?;
        self.is_kept = true;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn rename(&self) -> io::Result<()> {
        if self.replaces {
            return fs::rename(&self.temporary, &self.path);
        }
        match rustix::fs::renameat_with(CWD, &self.temporary, CWD, &self.path, RenameFlags::NOREPLACE) {
            // A filesystem that has no such rename.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                fs::hard_link(&self.temporary, &self.path)?;
                fs::remove_file(&self.temporary)
            }
            renamed => Ok(renamed?),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_kept {
            // There is nobody left to tell; the name says that it is unfinished.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Tells whether something is there that is written to, and not replaced.
fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
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
