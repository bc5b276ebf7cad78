//! Reads a vault without mounting it: `ls` and `cat`, and what `verify`, `export` and `rekey` go by.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    os::unix::ffi::OsStrExt,
    path::{Component, Path},
};

use rustix::fs::FileType;

use super::{
    CliResult,
    args::{CatArgs, LsArgs, VaultArgs},
    error::CliError,
    open, process, say, text,
};
use crate::{
    format::record::SeenHome,
    fs::{Attr, Found, Fs, FsError, FsOptions, ROOT},
    vault::home::{Lock, OpenVault, VaultHome},
};

/// Bytes read at a time.
pub const CHUNK: usize = 1 << 20;

/// What of many things could not be done, each of which was told.
#[derive(Debug, Default)]
pub struct LeftOut {
    count: u64,
    damaged: bool,
    /// The exit code of the first whose key may not be used.
    key: Option<u8>,
}

impl LeftOut {
    /// Counts one.
    pub fn note(&mut self, error: &CliError) {
        self.count += 1;
        self.damaged |= matches!(error, CliError::EntriesLeftOut { .. });
        if let CliError::View { error: cause, .. } = error {
            self.damaged |= cause.is_damage();
            let code = cause.key_error().map(|_| error.exit_code());
            self.key = self.key.or(code);
        }
    }

    /// Ends what `done` says was done to the others.
    ///
    /// # Errors
    ///
    /// Damage, before keys that may not be used, before everything else.
    pub fn result(self, done: &'static str) -> CliResult {
        match self {
            LeftOut { count: 0, .. } => Ok(()),
            LeftOut { damaged: true, .. } => Err(CliError::DamageFound),
            LeftOut { count, key, .. } => Err(CliError::LeftOut { count, done, key }),
        }
    }
}

/// A vault opened without a mount.
pub struct View {
    /// The filesystem.
    pub fs: Fs,
    /// Holds the lock.
    home: VaultHome,
    seen: SeenHome,
}

/// A file found in a view.
#[derive(Clone)]
pub struct Place {
    /// The path, for messages; without a leading slash.
    pub path: Vec<u8>,
    /// The node's number.
    pub id: u64,
    /// Its attributes.
    pub attr: Attr,
}

/// What is in a directory.
pub struct Entries {
    /// The entries, by name.
    pub entries: Vec<Entry>,
    /// That some were left out.
    pub left_out: Option<CliError>,
}

/// A directory's entry; [`View::forget`] lets go of it.
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// The file.
    pub place: Place,
}

impl View {
    /// Opens a vault for reading, together with others that read.
    pub fn open(args: &VaultArgs) -> CliResult<Self> {
        View::new(args, open::open_vault(args, Lock::Shared)?, true)
    }

    /// Opens a vault for changing files.
    pub fn open_for_change(args: &VaultArgs) -> CliResult<Self> {
        View::new(args, open::open_for_change(args)?, false)
    }

    fn new(args: &VaultArgs, open: OpenVault, read_only: bool) -> CliResult<Self> {
        let seen = open.seen();
        let (vault, home) = open.into_vault();
        let io_error = |source| CliError::File {
            path: args.vault.clone(),
            source,
        };
        let lock = if read_only { Lock::Shared } else { Lock::Exclusive };
        home.recover(&vault, lock, false)?;
        let root = home.open_dir().map_err(io_error)?;
        let options = FsOptions {
            read_only,
            shared: false,
            acl: true,
            own_uid: rustix::process::geteuid().as_raw(),
            own_gid: rustix::process::getegid().as_raw(),
            cached_descriptors: process::raise_descriptor_limit(),
            journal: true,
        };
        let fs = Fs::new(vault, root, options).map_err(|error| CliError::View {
            path: args.vault.display().to_string(),
            error,
        })?;
        Ok(View { fs, home, seen })
    }

    /// Returns the vault's directory.
    pub fn home(&self) -> &VaultHome {
        &self.home
    }

    /// Returns what the vault header and the keystore are to be known by again.
    pub fn seen(&self) -> &SeenHome {
        &self.seen
    }

    /// Finds a file by its path from the view's root. Links on the way are not followed.
    pub fn find(&self, path: &Path) -> CliResult<Place> {
        let failed = |error| CliError::View {
            path: path.display().to_string(),
            error,
        };
        let mut place = Place {
            path: Vec::new(),
            id: ROOT,
            attr: self.fs.root_attr().map_err(failed)?,
        };
        for component in path.components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => {
                    let found = self.fs.look_up(place.id, name.as_bytes()).map_err(failed)?;
                    place = Place::new(&place.path, name.as_bytes(), &found);
                }
                Component::ParentDir | Component::Prefix(_) => return Err(failed(FsError::NotFound)),
            }
        }
        Ok(place)
    }

    /// Lists a directory by name, without `.` and `..`.
    pub fn entries(&self, place: &Place) -> CliResult<Entries> {
        let (mut entries, mut left_out) = (Vec::new(), 0);
        let mut position = 0;
        loop {
            let before = entries.len();
            let listed = self.fs.list_plus(place.id, position, |listed| {
                position = listed.entry.next;
                if let Some(found) = &listed.found {
                    entries.push(Entry {
                        name: listed.entry.name.clone(),
                        place: Place::new(&place.path, &listed.entry.name, found),
                    });
                }
                true
            });
            let unlisted = listed.map_err(|error| place.error(error))?;
            // The first call has seen everything; the next finds the end, and may begin before what is left out there.
            if before == 0 {
                left_out = unlisted;
            }
            if entries.len() == before {
                break;
            }
        }
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        let error = CliError::EntriesLeftOut {
            path: place.printable_path(),
            count: left_out,
        };
        Ok(Entries {
            entries,
            left_out: (left_out > 0).then_some(error),
        })
    }

    /// Lets go of a file that was found by listing.
    pub fn forget(&self, place: &Place) {
        self.fs.forget(place.id, 1);
    }

    /// Reads a file from begin to end.
    pub fn read(&self, place: &Place, mut take: impl FnMut(&[u8]) -> CliResult) -> CliResult {
        let mut buffer = Vec::new();
        let mut offset = 0;
        loop {
            let range = self
                .fs
                .read(place.id, offset, CHUNK, &mut buffer)
                .map_err(|error| place.error(error))?;
            if range.is_empty() {
                return Ok(());
            }
            offset += range.len() as u64;
            take(&buffer[range])?;
        }
    }
}

impl Place {
    fn new(parent: &[u8], name: &[u8], found: &Found) -> Self {
        Place {
            path: join(parent, name),
            id: found.node.id,
            attr: found.attr,
        }
    }

    /// Says of an error which file it is about.
    pub fn error(&self, error: FsError) -> CliError {
        CliError::View {
            path: self.printable_path(),
            error,
        }
    }

    /// Returns the path as it may be printed.
    pub fn printable_path(&self) -> String {
        if self.path.is_empty() {
            "/".to_owned()
        } else {
            text::printable(&self.path)
        }
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        name.to_vec()
    } else {
        [parent, b"/", name].concat()
    }
}

/// Lists directories.
pub fn ls(args: &LsArgs) -> CliResult {
    let view = View::open(&args.vault)?;
    let root = [Path::new("/").to_owned()];
    let paths = if args.paths.is_empty() { &root[..] } else { &args.paths };
    let terminal = io::stdout().is_terminal();
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut left_out = LeftOut::default();
    for (i, path) in paths.iter().enumerate() {
        let place = view.find(path)?;
        if place.attr.kind() != FileType::Directory {
            let line = line(&view, &place, path.as_os_str().as_bytes(), args.long, terminal);
            out.write_all(&line).map_err(CliError::Output)?;
            continue;
        }
        if paths.len() > 1 {
            let gap = if i > 0 { "\n" } else { "" };
            writeln!(out, "{gap}{}:", path.display()).map_err(CliError::Output)?;
        }
        let listed = view.entries(&place)?;
        if let Some(error) = &listed.left_out {
            left_out.note(error);
            say(format_args!("{}", text::message(&error.to_string())));
        }
        for entry in &listed.entries {
            let line = line(&view, &entry.place, &entry.name, args.long, terminal);
            view.forget(&entry.place);
            out.write_all(&line).map_err(CliError::Output)?;
        }
    }
    out.flush().map_err(CliError::Output)?;
    left_out.result("listed")
}

/// Returns an entry's line. A program that reads it gets the name as it is.
fn line(view: &View, place: &Place, name: &[u8], long: bool, terminal: bool) -> Vec<u8> {
    let shown = |name: &[u8]| {
        if terminal {
            text::printable(name).into_bytes()
        } else {
            name.to_vec()
        }
    };
    let mut line = Vec::new();
    if long {
        let attr = &place.attr;
        let mut front = String::new();
        let _ = write!(
            front,
            "{} {:3} {:5} {:5} {:12} {} ",
            text::mode(attr.mode),
            attr.nlink,
            attr.uid,
            attr.gid,
            attr.size,
            text::time(attr.mtime.seconds.try_into().unwrap_or(0)),
        );
        line.extend_from_slice(front.as_bytes());
    }
    line.extend(shown(name));
    if long && place.attr.kind() == FileType::Symlink {
        match view.fs.read_link(place.id) {
            Ok(target) => {
                line.extend_from_slice(b" -> ");
                line.extend(shown(&target));
            }
            Err(error) => line.extend(format!(" -> ({error})").into_bytes()),
        }
    }
    line.push(b'\n');
    line
}

/// Writes files to standard output.
pub fn cat(args: &CatArgs) -> CliResult {
    let view = View::open(&args.vault)?;
    let mut out = io::stdout().lock();
    for path in &args.paths {
        let place = view.find(path)?;
        view.read(&place, |bytes| out.write_all(bytes).map_err(CliError::Output))?;
    }
    out.flush().map_err(CliError::Output)
}
