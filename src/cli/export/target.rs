//! A directory that is copied into. Others may be able to write to it: what was made there is known by its descriptor, never by its name again.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, RawMode};

use super::super::{CliResult, error::CliError};
use crate::backing::{BackingFile, Dir, Entry};

/// An open directory that is copied into.
pub struct Target {
    dir: Dir,
    /// For messages.
    path: PathBuf,
    /// To whom belongs what is made in it, where that can be known.
    owner: Option<u32>,
}

impl Target {
    /// Makes a directory, or opens one that is empty: nothing that was there is ever replaced.
    pub fn root(path: &Path) -> CliResult<Self> {
        let target = match path.file_name() {
            Some(name) => Target::parent(path)?.make_root(name)?,
            None => Target::open(path)?,
        };
        match target.is_empty().map_err(|source| target.failed("", source))? {
            true => Ok(target),
            false => Err(CliError::Exists { path: path.to_owned() }),
        }
    }

    /// Opens the directory that something is to be made in. Links on the way there are the user's.
    pub fn parent(path: &Path) -> CliResult<Self> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mut target = Target::open(parent.unwrap_or(Path::new(".")))?;
        if parent.is_none() {
            target.path = PathBuf::new();
        }
        Ok(target)
    }

    fn open(path: &Path) -> CliResult<Self> {
        let dir = Dir::open(path).map_err(|source| CliError::File {
            path: path.to_owned(),
            source,
        })?;
        Ok(Target::new(dir, path.to_owned()))
    }

    fn new(dir: Dir, path: PathBuf) -> Self {
        let owner = dir.owner_of_new();
        Target { dir, path, owner }
    }

    fn make_root(&self, name: &OsStr) -> CliResult<Self> {
        match self.directory(name) {
            Err(CliError::Exists { path }) => match self.dir.open_mounted_dir(name) {
                Ok(dir) => Ok(Target::new(dir, path)),
                Err(source) if is_other_kind(&source) => Err(CliError::Exists { path }),
                Err(source) => Err(CliError::File { path, source }),
            },
            made => made,
        }
    }

    /// Makes a directory for nobody else, until it has its mode.
    pub fn directory(&self, name: &OsStr) -> CliResult<Self> {
        let failed = |source| self.failed(name, source);
        self.dir.mkdir(name, 0o700).map_err(failed)?;
        let target = Target {
            dir: self.dir.open_dir(name).map_err(failed)?,
            path: self.at(name),
            owner: self.owner,
        };
        self.check(name, target.dir.stat_self().map_err(failed)?.st_uid)?;
        Ok(target)
    }

    /// Makes a file for nobody else, until it has its mode.
    pub fn file(&self, name: &OsStr) -> CliResult<BackingFile> {
        self.dir
            .create_file(name, 0o600)
            .map_err(|source| self.failed(name, source))
    }

    /// Makes a symbolic link.
    pub fn link(&self, to: &[u8], name: &OsStr) -> CliResult<Entry> {
        self.dir.symlink(to, name).map_err(|source| self.failed(name, source))?;
        self.made(name, FileType::Symlink)
    }

    /// Makes a pipe, a socket or a device.
    pub fn special(&self, name: &OsStr, kind: FileType, device: u32) -> CliResult<Entry> {
        self.dir
            .mknod(name, kind.as_raw_mode() | 0o600, device.into())
            .map_err(|source| self.failed(name, source))?;
        self.made(name, kind)
    }

    /// Finds what was made without being opened.
    fn made(&self, name: &OsStr, kind: FileType) -> CliResult<Entry> {
        let failed = |source| self.failed(name, source);
        let entry = self.dir.entry(name).map_err(failed)?;
        let stat = entry.stat().map_err(failed)?;
        // What has another name is not new.
        if FileType::from_raw_mode(stat.st_mode as RawMode) != kind || stat.st_nlink != 1 {
            return Err(CliError::Exchanged { path: self.at(name) });
        }
        self.check(name, stat.st_uid)?;
        Ok(entry)
    }

    /// Refuses what belongs to someone else, who has put it in the place of what was made.
    fn check(&self, name: &OsStr, owner: u32) -> CliResult {
        match self.owner.is_some_and(|own| own != owner) {
            true => Err(CliError::Exchanged { path: self.at(name) }),
            false => Ok(()),
        }
    }

    /// Returns the directory itself, for its attributes.
    pub fn entry(&self) -> CliResult<Entry> {
        self.dir.as_entry().map_err(|source| self.failed("", source))
    }

    /// Returns a path as it is told to the user.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        match name.as_ref() {
            own if own.as_os_str().is_empty() => self.path.clone(),
            name => self.path.join(name),
        }
    }

    /// Says where something failed.
    pub fn failed(&self, name: impl AsRef<Path>, source: io::Error) -> CliError {
        let path = self.at(name);
        match source.kind() {
            io::ErrorKind::AlreadyExists => CliError::Exists { path },
            _ => CliError::File { path, source },
        }
    }

    fn is_empty(&self) -> io::Result<bool> {
        let mut stream = self.dir.stream()?;
        while let Some(entry) = stream.next_entry()? {
            if ![OsStr::new("."), OsStr::new("..")].contains(&OsStr::from_bytes(entry.name)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Tells whether an error of opening a directory says that there is something else, as a link to one.
fn is_other_kind(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    };

    use super::*;

    fn name(name: &str) -> &OsStr {
        OsStr::new(name)
    }

    #[test]
    fn a_directory_that_was_there_is_opened_when_it_is_empty_and_no_link_leads_to_it() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        let is_refused = |path: PathBuf| matches!(Target::root(&path), Err(CliError::Exists { .. }));
        fs::create_dir(at("empty")).unwrap();
        fs::create_dir_all(at("full/one")).unwrap();
        fs::write(at("file"), "").unwrap();
        symlink("empty", at("link")).unwrap();
        symlink("none", at("dangling")).unwrap();
        for refused in ["link", "link/", "link/.", "dangling", "full", "full/", "file"] {
            assert!(is_refused(at(refused)), "{refused}");
        }
        for open in ["empty", "empty/", "link/../empty", "link/../new", "link/made"] {
            assert!(Target::root(&at(open)).is_ok(), "{open}");
        }
        assert!(at("empty/made").is_dir());
        assert_eq!(fs::metadata(at("new")).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_was_made_stays_the_same_whatever_stands_under_its_name() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        fs::create_dir(at("elsewhere")).unwrap();
        fs::write(at("secret"), "").unwrap();
        fs::set_permissions(at("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        let root = Target::root(&at("out")).unwrap();
        fs::rename(at("out"), at("away")).unwrap();
        symlink(at("elsewhere"), at("out")).unwrap();
        let file = root.file(name("file")).unwrap();
        fs::rename(at("away/file"), at("away/moved")).unwrap();
        symlink(at("secret"), at("away/file")).unwrap();
        Entry::of(&file).unwrap().chmod(0o640).unwrap();
        root.entry().unwrap().chmod(0o750).unwrap();
        assert!(fs::read_dir(at("elsewhere")).unwrap().next().is_none());
        let mode = |name: &str| fs::metadata(at(name)).unwrap().mode() & 0o777;
        assert_eq!(
            [
                mode("secret"),
                mode("away/moved"),
                mode("away"),
                mode("elsewhere") & 0o700
            ],
            [0o600, 0o640, 0o750, 0o700]
        );
        assert!(matches!(root.file(name("file")), Err(CliError::Exists { .. })));
        assert!(matches!(root.directory(name("file")), Err(CliError::Exists { .. })));
    }

    #[test]
    fn what_another_user_has_put_in_the_place_of_what_was_made_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        let mut root = Target::root(&at("out")).unwrap();
        // Here everything belongs to one user, so that the other is made up.
        assert_eq!(
            root.owner.unwrap_or(rustix::process::geteuid().as_raw()),
            rustix::process::geteuid().as_raw()
        );
        root.owner = Some(rustix::process::geteuid().as_raw() + 1);
        let is_exchanged = |made: CliResult| matches!(made, Err(CliError::Exchanged { .. }));
        assert!(is_exchanged(root.directory(name("directory")).map(drop)));
        assert!(is_exchanged(root.link(b"file", name("link")).map(drop)));
        root.owner = None;
        assert!(root.made(name("link"), FileType::Symlink).is_ok());
        assert!(is_exchanged(root.made(name("link"), FileType::Fifo).map(drop)));
        fs::hard_link(at("out/link"), at("out/other")).unwrap();
        assert!(is_exchanged(root.made(name("link"), FileType::Symlink).map(drop)));
    }
}
