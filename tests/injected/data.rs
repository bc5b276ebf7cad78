//! Operations on the content of files.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use rustix::fs::{FallocateFlags, copy_file_range, fallocate};

use super::{
    BLOCK, Broken, FILE, OTHER, Operation, State, blend, content_of, fail_every_call, pattern, writable, write_synced,
};

/// A file that is not there yet.
const NEW: &str = "new";

fn with(old: &[u8], offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut new = old.to_vec();
    new.resize(new.len().max(offset + bytes.len()), 0);
    new[offset..offset + bytes.len()].copy_from_slice(bytes);
    new
}

/// Compares the file that is there with what it was and is to be.
fn file_is(dir: &Path, new: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Result<State, Broken> {
    let old = content_of(FILE);
    blend(&dir.join(FILE), &old, &new(old.clone()))
}

fn new_is(dir: &Path, content: &[u8]) -> Result<State, Broken> {
    let path = dir.join(NEW);
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::Old),
        _ => match blend(&path, b"", content)? {
            State::Old => Ok(State::Between),
            state => Ok(state),
        },
    }
}

fn write_new(dir: &Path, content: &[u8]) -> io::Result<()> {
    write_synced(&File::create(dir.join(NEW))?, content, 0)
}

fn overwrite(dir: &Path, bytes: &[u8], offset: u64) -> io::Result<()> {
    write_synced(&writable(dir, FILE)?, bytes, offset)
}

fn set_len(dir: &Path, len: u64) -> io::Result<()> {
    let file = writable(dir, FILE)?;
    file.set_len(len)?;
    file.sync_all()
}

fn cut(mut content: Vec<u8>, len: usize) -> Vec<u8> {
    content.resize(len, 0);
    content
}

fn small() -> Vec<u8> {
    pattern(55, 100)
}

fn large() -> Vec<u8> {
    pattern(66, 300_000)
}

fn blocks() -> Vec<u8> {
    pattern(77, 3 * BLOCK)
}

fn parts() -> Vec<u8> {
    pattern(88, 2 * BLOCK + 1000)
}

/// Where the end of the file is.
const END: u64 = 5 * BLOCK as u64 + 100;

static WRITING: [Operation; 6] = [
    Operation {
        name: "write a small file",
        act: |dir| write_new(dir, &small()),
        state: |dir| new_is(dir, &small()),
        again: true,
    },
    Operation {
        name: "write a large file",
        act: |dir| write_new(dir, &large()),
        state: |dir| new_is(dir, &large()),
        again: true,
    },
    Operation {
        name: "overwrite blocks",
        act: |dir| overwrite(dir, &blocks(), BLOCK as u64),
        state: |dir| file_is(dir, |old| with(&old, BLOCK, &blocks())),
        again: true,
    },
    Operation {
        name: "overwrite parts of blocks",
        act: |dir| overwrite(dir, &parts(), 700),
        state: |dir| file_is(dir, |old| with(&old, 700, &parts())),
        again: true,
    },
    Operation {
        name: "append",
        act: |dir| overwrite(dir, &parts(), END),
        state: |dir| file_is(dir, |old| with(&old, END as usize, &parts())),
        again: true,
    },
    Operation {
        name: "write behind the end",
        act: |dir| overwrite(dir, &small(), 60_000),
        state: |dir| file_is(dir, |old| with(&old, 60_000, &small())),
        again: true,
    },
];

static SIZES: [Operation; 8] = [
    Operation {
        name: "cut inside a block",
        act: |dir| set_len(dir, 9_000),
        state: |dir| file_is(dir, |old| cut(old, 9_000)),
        again: true,
    },
    Operation {
        name: "cut between blocks",
        act: |dir| set_len(dir, 2 * BLOCK as u64),
        state: |dir| file_is(dir, |old| cut(old, 2 * BLOCK)),
        again: true,
    },
    Operation {
        name: "cut to nothing",
        act: |dir| set_len(dir, 0),
        state: |dir| file_is(dir, |old| cut(old, 0)),
        again: true,
    },
    Operation {
        name: "extend",
        act: |dir| set_len(dir, 50_000),
        state: |dir| file_is(dir, |old| cut(old, 50_000)),
        again: true,
    },
    Operation {
        name: "punch a hole",
        act: |dir| {
            let file = writable(dir, FILE)?;
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&file, flags, 3000, 10_000)?;
            file.sync_all()
        },
        state: |dir| file_is(dir, |old| with(&old, 3000, &[0; 10_000])),
        again: true,
    },
    Operation {
        name: "reserve space",
        act: |dir| {
            let file = writable(dir, FILE)?;
            fallocate(&file, FallocateFlags::empty(), 0, 50_000)?;
            file.sync_all()
        },
        state: |dir| file_is(dir, |old| cut(old, 50_000)),
        again: true,
    },
    Operation {
        name: "copy into a file",
        act: |dir| {
            let from = File::open(dir.join(OTHER))?;
            let to = writable(dir, FILE)?;
            let (mut at, mut to_at) = (0, BLOCK as u64);
            while at < 3000 {
                let left = 3000 - at as usize;
                if copy_file_range(&from, Some(&mut at), &to, Some(&mut to_at), left)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            to.sync_all()
        },
        state: |dir| file_is(dir, |old| with(&old, BLOCK, &content_of(OTHER))),
        again: true,
    },
    Operation {
        name: "replace by rename",
        act: |dir| {
            let temporary = dir.join("temporary");
            write_synced(&File::create(&temporary)?, &large(), 0)?;
            fs::rename(temporary, dir.join(FILE))?;
            File::open(dir)?.sync_all()
        },
        state: |dir| match file_is(dir, |_| large())? {
            State::Between => Err("it is neither the old file nor the new one".into()),
            state => Ok(state),
        },
        again: true,
    },
];

static READING: [Operation; 2] = [
    Operation {
        name: "read",
        act: |dir| {
            let found = fs::read(dir.join(FILE))?;
            assert!(found == content_of(FILE), "{}: garbage", dir.display());
            Ok(())
        },
        state: |dir| file_is(dir, |old| old),
        again: true,
    },
    Operation {
        name: "list",
        act: |dir| {
            let mut names = Vec::new();
            for entry in fs::read_dir(dir)? {
                names.push(entry?.file_name());
            }
            assert!(names.len() == 5, "{}: {names:?}", dir.display());
            Ok(())
        },
        state: |dir| file_is(dir, |old| old),
        again: true,
    },
];

#[test]
fn every_call_of_a_write_fails() {
    fail_every_call(&WRITING);
}

#[test]
fn every_call_of_a_change_of_size_fails() {
    fail_every_call(&SIZES);
}

#[test]
fn every_call_of_a_read_fails() {
    fail_every_call(&READING);
}
