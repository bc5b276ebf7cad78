//! Operations on names and attributes.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{CWD, RenameFlags, XattrFlags, renameat_with},
    io::Errno,
};

use super::{Broken, EMPTY, FILE, INNER, OTHER, Operation, SUB, State, content_of, fail_every_call, is_there};

/// A name that is not there yet.
const NEW: &str = "new";

const ATTRIBUTE: &str = "user.test";

/// One that does not fit into the name on disk.
fn long_name() -> String {
    "long".repeat(60)
}

/// Says where something is that goes from one name to another.
fn moved(dir: &Path, from: &str, to: &str, content: &[u8]) -> Result<State, Broken> {
    match (is_there(dir, from, content)?, is_there(dir, to, content)?) {
        (true, false) => Ok(State::Old),
        (false, true) => Ok(State::New),
        (true, true) => Err(format!("it is both {from} and {to}")),
        (false, false) => Err(format!("it is neither {from} nor {to}")),
    }
}

/// Says whether something has another name, and kept the one it has.
fn linked(dir: &Path, to: &str) -> Result<State, Broken> {
    if !is_there(dir, FILE, &content_of(FILE))? {
        return Err("its old name is gone".into());
    }
    Ok(if is_there(dir, to, &content_of(FILE))? {
        State::New
    } else {
        State::Old
    })
}

/// Says whether there is something under a name.
fn made<T>(result: io::Result<T>, is_right: impl FnOnce(T) -> bool) -> Result<State, Broken> {
    match result {
        Ok(found) => match is_right(found) {
            true => Ok(State::New),
            false => Err("it is something else".into()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(State::Old),
        Err(error) => Err(error.to_string()),
    }
}

fn reversed(state: Result<State, Broken>) -> Result<State, Broken> {
    state.map(|state| if state == State::Old { State::New } else { State::Old })
}

static RENAMING: [Operation; 8] = [
    Operation {
        name: "rename",
        act: |dir| fs::rename(dir.join(FILE), dir.join(NEW)),
        state: |dir| moved(dir, FILE, NEW, &content_of(FILE)),
        again: false,
    },
    Operation {
        name: "rename to a long name",
        act: |dir| fs::rename(dir.join(FILE), dir.join(long_name())),
        state: |dir| moved(dir, FILE, &long_name(), &content_of(FILE)),
        again: false,
    },
    Operation {
        name: "rename into a directory",
        act: |dir| fs::rename(dir.join(FILE), dir.join("sub/new")),
        state: |dir| moved(dir, FILE, "sub/new", &content_of(FILE)),
        again: false,
    },
    Operation {
        name: "rename over a file",
        act: |dir| fs::rename(dir.join(FILE), dir.join(OTHER)),
        state: |dir| match fs::read(dir.join(OTHER)) {
            Ok(found) if found == content_of(OTHER) && is_there(dir, FILE, &content_of(FILE))? => Ok(State::Old),
            Ok(found) if found == content_of(FILE) && !dir.join(FILE).exists() => Ok(State::New),
            found => Err(format!("{:?}", found.map(|bytes| bytes.len()))),
        },
        again: false,
    },
    Operation {
        name: "rename over a file elsewhere",
        act: |dir| fs::rename(dir.join(FILE), dir.join(INNER)),
        state: |dir| match fs::read(dir.join(INNER)) {
            Ok(found) if found == content_of(INNER) && is_there(dir, FILE, &content_of(FILE))? => Ok(State::Old),
            Ok(found) if found == content_of(FILE) && !dir.join(FILE).exists() => Ok(State::New),
            found => Err(format!("{:?}", found.map(|bytes| bytes.len()))),
        },
        again: false,
    },
    Operation {
        name: "exchange",
        act: |dir| {
            let (one, two) = (dir.join(FILE), dir.join(INNER));
            Ok(renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE)?)
        },
        state: |dir| {
            let read = |name: &str| fs::read(dir.join(name)).map_err(|error| format!("{name}: {error}"));
            let (one, two) = (read(FILE)?, read(INNER)?);
            if (one == content_of(FILE)) && (two == content_of(INNER)) {
                Ok(State::Old)
            } else if (two == content_of(FILE)) && (one == content_of(INNER)) {
                Ok(State::New)
            } else {
                Err(format!("{} and {} bytes", one.len(), two.len()))
            }
        },
        again: false,
    },
    Operation {
        name: "rename a directory",
        act: |dir| fs::rename(dir.join(SUB), dir.join(NEW)),
        state: |dir| moved(dir, INNER, "new/inner", &content_of(INNER)),
        again: false,
    },
    Operation {
        name: "rename a directory elsewhere",
        act: |dir| fs::rename(dir.join(SUB), dir.join("empty/new")),
        state: |dir| moved(dir, INNER, "empty/new/inner", &content_of(INNER)),
        again: false,
    },
];

static MAKING: [Operation; 8] = [
    Operation {
        name: "create",
        act: |dir| File::create_new(dir.join(NEW)).map(drop),
        state: |dir| made(fs::read(dir.join(NEW)), |bytes| bytes.is_empty()),
        again: false,
    },
    Operation {
        name: "create with a long name",
        act: |dir| File::create_new(dir.join(long_name())).map(drop),
        state: |dir| {
            let listed = fs::read_dir(dir)
                .and_then(Iterator::collect::<io::Result<Vec<_>>>)
                .map_err(|error| error.to_string())?;
            let is_listed = listed.iter().any(|entry| *entry.file_name() == *long_name());
            match made(fs::read(dir.join(long_name())), |bytes| bytes.is_empty())? {
                State::New if !is_listed => Err("it is not listed".into()),
                state => Ok(state),
            }
        },
        again: false,
    },
    Operation {
        name: "make a directory",
        act: |dir| fs::create_dir(dir.join(NEW)),
        state: |dir| made(fs::read_dir(dir.join(NEW)), |entries| entries.count() == 0),
        again: false,
    },
    Operation {
        name: "make a pipe",
        act: |dir| {
            let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
            Ok(rustix::fs::mknodat(CWD, dir.join(NEW), kind, mode, 0)?)
        },
        state: |dir| {
            made(fs::symlink_metadata(dir.join(NEW)), |meta| {
                meta.mode() & libc::S_IFMT == libc::S_IFIFO
            })
        },
        again: false,
    },
    Operation {
        name: "symbolic link",
        act: |dir| symlink("short", dir.join(NEW)),
        state: |dir| made(fs::read_link(dir.join(NEW)), |target| target == Path::new("short")),
        again: false,
    },
    Operation {
        name: "symbolic link to a long target",
        act: |dir| symlink("t".repeat(4000), dir.join(NEW)),
        state: |dir| {
            made(fs::read_link(dir.join(NEW)), |target| {
                target == Path::new(&"t".repeat(4000))
            })
        },
        again: false,
    },
    Operation {
        name: "link",
        act: |dir| fs::hard_link(dir.join(FILE), dir.join(NEW)),
        state: |dir| linked(dir, NEW),
        again: false,
    },
    Operation {
        name: "link elsewhere",
        act: |dir| fs::hard_link(dir.join(FILE), dir.join("sub/new")),
        state: |dir| linked(dir, "sub/new"),
        again: false,
    },
];

static REMOVING: [Operation; 3] = [
    Operation {
        name: "unlink",
        act: |dir| fs::remove_file(dir.join(FILE)),
        state: |dir| reversed(made(fs::read(dir.join(FILE)), |bytes| bytes == content_of(FILE))),
        again: false,
    },
    Operation {
        name: "remove a directory",
        act: |dir| fs::remove_dir(dir.join(EMPTY)),
        state: |dir| reversed(made(fs::read_dir(dir.join(EMPTY)), |entries| entries.count() == 0)),
        again: false,
    },
    Operation {
        name: "remove a directory that had files",
        act: |dir| match fs::remove_file(dir.join(INNER)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => fs::remove_dir(dir.join(SUB)),
        },
        state: |dir| reversed(made(fs::read_dir(dir.join(SUB)), |entries| entries.count() < 2)),
        again: false,
    },
];

fn modified() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

static ATTRIBUTES: [Operation; 4] = [
    Operation {
        name: "mode, owner and times",
        act: |dir| {
            let path = dir.join(FILE);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            std::os::unix::fs::chown(&path, Some(7), Some(7))?;
            let file = File::open(&path)?;
            file.set_modified(modified())?;
            file.sync_all()
        },
        state: |dir| {
            is_there(dir, FILE, &content_of(FILE))?;
            let meta = fs::metadata(dir.join(FILE)).map_err(|error| error.to_string())?;
            let is_new = meta.mode() & 0o777 == 0o600 && meta.uid() == 7 && meta.modified().unwrap() == modified();
            Ok(if is_new { State::New } else { State::Between })
        },
        again: true,
    },
    Operation {
        name: "set an attribute",
        act: |dir| {
            Ok(rustix::fs::setxattr(
                dir.join(FILE),
                ATTRIBUTE,
                &[7; 300],
                XattrFlags::empty(),
            )?)
        },
        state: |dir| attribute(&dir.join(FILE)),
        again: true,
    },
    Operation {
        name: "remove an attribute",
        act: |dir| {
            let path = dir.join(FILE);
            match rustix::fs::getxattr(&path, ATTRIBUTE, &mut [0; 1000]) {
                Err(Errno::NODATA) => rustix::fs::setxattr(&path, ATTRIBUTE, &[7; 300], XattrFlags::empty())?,
                result => drop(result?),
            }
            Ok(rustix::fs::removexattr(&path, ATTRIBUTE)?)
        },
        state: |dir| {
            attribute(&dir.join(FILE))?;
            Ok(State::New)
        },
        again: true,
    },
    Operation {
        name: "sync a directory",
        act: |dir| File::open(dir)?.sync_all(),
        state: |dir| made(fs::read(dir.join(FILE)), |bytes| bytes == content_of(FILE)),
        again: true,
    },
];

/// Says whether a file has the attribute.
fn attribute(path: &Path) -> Result<State, Broken> {
    let mut value = [0; 1000];
    match rustix::fs::getxattr(path, ATTRIBUTE, &mut value) {
        Ok(len) if value[..len] == [7; 300] => Ok(State::New),
        Ok(len) => Err(format!("the attribute has {len} bytes")),
        Err(Errno::NODATA) => Ok(State::Old),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn every_call_of_a_rename_fails() {
    fail_every_call(&RENAMING);
}

#[test]
fn every_call_of_making_something_fails() {
    fail_every_call(&MAKING);
}

#[test]
fn every_call_of_removing_something_fails() {
    fail_every_call(&REMOVING);
}

#[test]
fn every_call_of_a_change_of_attributes_fails() {
    fail_every_call(&ATTRIBUTES);
}
