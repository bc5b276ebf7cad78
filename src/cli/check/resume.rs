//! What `verify --resume` keeps: which files were verified, so that a run that was stopped can go on.
//!
//! A file of text outside the vault: a line that names the vault, then a line for each file that was verified whole, with its inode number, size and
//! times as they are in the backing directory. A file that was touched since has another time of change, which no program can set, and is
//! verified again; one that was changed just before the run is, too, for that time may be too coarse to tell. Lines are written as files are done; one that a kill has cut short is nobody's.

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, Stat, flock};

use super::{super::error::CliError, CliResult, is_inside, process};
use crate::{backing::is_settled, fsck::Known, ids::VaultId};

/// What was verified, and where it is written.
pub struct Resume {
    path: PathBuf,
    done: HashSet<Line>,
    /// When the run was begun, in seconds since 1970.
    begun: u64,
    out: Mutex<Out>,
}

/// Inode number, time of change in seconds and nanoseconds, size in bytes.
type Line = [i64; 4];

struct Out {
    file: File,
    /// Why a line could not be written; the run goes on without.
    failed: Option<std::io::Error>,
}

impl Resume {
    /// Opens the file, or makes it, and reads what there is for this vault.
    pub fn open(path: &Path, vault: &Path, id: VaultId) -> CliResult<Self> {
        if is_inside(path, vault) {
            return Err(CliError::ResumeInVault { path: path.to_owned() });
        }
        let failed = |source| CliError::File {
            path: path.to_owned(),
            source,
        };
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let mut file = options.open(path).map_err(failed)?;
        // A pipe would be waited for without end.
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(CliError::ResumeOther { path: path.to_owned() });
        }
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| failed(errno.into()))?;
        let first = format!("hushfs verify 1 {id}");
        let mut lines = BufReader::new(&mut file).split(b'\n');
        let done = match lines.next().transpose().map_err(failed)? {
            None => {
                file.write_all(format!("{first}\n").as_bytes()).map_err(failed)?;
                HashSet::new()
            }
            Some(line) if line != first.as_bytes() => return Err(CliError::ResumeOther { path: path.to_owned() }),
            Some(_) => {
                let lines = lines.map_while(Result::ok);
                let done = lines.filter_map(|line| parse(&line)).collect();
                // Behind a line that was cut short, a new one must begin.
                file.seek(std::io::SeekFrom::End(0))
                    .and_then(|_| file.write_all(b"\n"))
                    .map_err(failed)?;
                done
            }
        };
        Ok(Resume {
            path: path.to_owned(),
            done,
            begun: process::now(),
            out: Mutex::new(Out { file, failed: None }),
        })
    }

    /// Ends a run: a whole one leaves nothing, one that was stopped leaves what the next goes on with.
    pub fn close(self, stopped: bool) -> CliResult {
        let out = self.out.into_inner();
        let ended = match out.failed {
            Some(error) => Err(error),
            None if stopped => out.file.sync_all(),
            None => std::fs::remove_file(&self.path),
        };
        ended.map_err(|source| CliError::File {
            path: self.path,
            source,
        })
    }
}

fn parse(line: &[u8]) -> Option<Line> {
    let mut numbers = std::str::from_utf8(line).ok()?.split(' ').map(str::parse);
    let mut next = || numbers.next()?.ok();
    let line = [next()?, next()?, next()?, next()?];
    numbers.next().is_none().then_some(line)
}

fn line_of(file: &Stat) -> Line {
    [
        file.st_ino as i64,
        file.st_ctime,
        file.st_ctime_nsec as i64,
        file.st_size,
    ]
}

impl Known for Resume {
    fn is_verified(&self, file: &Stat) -> bool {
        self.done.contains(&line_of(file))
    }

    fn verified(&self, file: &Stat) {
        if !is_settled(file, self.begun) {
            return;
        }
        let [inode, seconds, nanoseconds, size] = line_of(file);
        let mut out = self.out.lock();
        if let Err(error) = out
            .file
            .write_all(format!("{inode} {seconds} {nanoseconds} {size}\n").as_bytes())
        {
            out.failed.get_or_insert(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_changed_just_before_is_verified_again() {
        let temp = tempfile::tempdir().unwrap();
        let (path, vault) = (temp.path().join("state"), temp.path().join("vault"));
        std::fs::create_dir(&vault).unwrap();
        let resume = Resume::open(&path, &vault, VaultId([1; 16])).unwrap();
        let mut stat = rustix::fs::stat(&vault).unwrap();
        let verified = |stat: &Stat| {
            resume.verified(stat);
            std::fs::read_to_string(&path).unwrap().lines().count() - 1
        };
        stat.st_ctime = resume.begun as i64 - 1;
        assert_eq!(verified(&stat), 0);
        stat.st_ctime -= 1;
        assert_eq!(verified(&stat), 1);
    }

    #[test]
    fn a_line_that_was_cut_short_is_nobodys() {
        assert_eq!(parse(b"5 100 7 4096"), Some([5, 100, 7, 4096]));
        for cut in [
            &b"5 100 7"[..],
            b"5 100 7 ",
            b"",
            b"5 100 7 4096 1",
            b"x 100 7 1",
            b"\xff",
        ] {
            assert_eq!(parse(cut), None);
        }
    }
}
