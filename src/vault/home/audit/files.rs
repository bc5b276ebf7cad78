//! What the files of an audit log are called.

use std::io;

use rustix::fs::RenameFlags;

use crate::{
    backing::Dir,
    format::{
        audit::Line,
        name::{AUDIT_LOG, AUDIT_STATE, COMING_AUDIT_LOG, COMING_AUDIT_STATE, old_audit_log},
    },
};

/// The names of a log and its state: in a vault they must not be taken for a stranger's, elsewhere they say what they are to other programs.
#[derive(Clone, Copy, Debug)]
pub(super) struct AuditNames {
    pub log: &'static str,
    pub state: &'static str,
    is_embedded: bool,
}

/// Bytes at the start of a line in which its number stands.
const LINE_START: usize = 4096;

impl AuditNames {
    pub(super) fn of(is_embedded: bool) -> Self {
        let (log, state) = match is_embedded {
            true => (AUDIT_LOG, AUDIT_STATE),
            false => ("audit.jsonl", "audit.state"),
        };
        AuditNames {
            log,
            state,
            is_embedded,
        }
    }

    /// Returns the names of a log that was begun and is not in its place yet.
    pub(super) fn coming(self) -> Self {
        let (log, state) = match self.is_embedded {
            true => (COMING_AUDIT_LOG, COMING_AUDIT_STATE),
            false => ("audit-new.jsonl", "audit-new.state"),
        };
        AuditNames { log, state, ..self }
    }

    /// Gives the files of a coming log these names, and the log that has one another. Done again, it goes on where it was interrupted.
    pub(super) fn put_in_place(self, dir: &Dir) -> io::Result<()> {
        let coming = self.coming();
        match dir.stat(coming.log) {
            Ok(_) => {
                self.set_aside(dir)?;
                dir.rename(coming.log, dir, self.log, RenameFlags::empty())?;
                // The state goes last: while it has not, it is known what is to be done.
                dir.sync()?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        dir.rename(coming.state, dir, self.state, RenameFlags::empty())?;
        dir.sync()
    }

    /// Gives a log that is there another name, by the number of its first line. An empty one, and the state, are of no use to anyone.
    pub(super) fn set_aside(self, dir: &Dir) -> io::Result<()> {
        let Some(first) = self.first_line(dir)? else {
            remove(dir, self.log)?;
            return remove(dir, self.state);
        };
        // Only a number that is free: a log is never replaced.
        for number in first..=u64::MAX {
            let old = match self.is_embedded {
                true => old_audit_log(number),
                false => format!("audit-{number}.jsonl"),
            };
            // Nobody else gives such names meanwhile: the keystore is locked.
            match dir.stat(&old) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    dir.rename(self.log, dir, &old, RenameFlags::empty())?;
                    return remove(dir, self.state);
                }
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Returns the number of the first line of the log, 0 where that says none; nothing when there is no log, or an empty one.
    fn first_line(self, dir: &Dir) -> io::Result<Option<u64>> {
        let mut start = vec![0; LINE_START];
        let file = match dir.open_file(self.log, true) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result?,
        };
        let len = crate::backing::Storage::read_at(&file, &mut start, 0)?;
        if len == 0 {
            return Ok(None);
        }
        let line = start[..len].split(|&byte| byte == b'\n').next().unwrap_or_default();
        Ok(Some(Line::decode(line).map_or(0, |line| line.seq)))
    }
}

/// Tells whether a name is that of an audit log or its state, in a vault or elsewhere, in use or set aside.
pub(in crate::vault::home) fn is_log(name: &[u8]) -> bool {
    name.starts_with(b"audit")
        && [&b".hush"[..], b".jsonl", b".state"]
            .iter()
            .any(|end| name.ends_with(end))
}

/// Tells whether a name is that of a log, or its state, that a keystore outside of vaults was to have.
pub(in crate::vault::home) fn is_coming(name: &[u8]) -> bool {
    let coming = AuditNames::of(false).coming();
    [coming.log, coming.state].map(str::as_bytes).contains(&name)
}

/// Removes the log that a keystore was to have that there is not.
pub(in crate::vault::home) fn remove_coming(dir: &Dir) -> io::Result<()> {
    let coming = AuditNames::of(false).coming();
    remove(dir, coming.log)?;
    remove(dir, coming.state)
}

fn remove(dir: &Dir, name: &str) -> io::Result<()> {
    match dir.unlink(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
