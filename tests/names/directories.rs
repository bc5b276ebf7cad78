//! Directories that a sync tool changes while a shared filesystem knows them: what is shown and made in one is of the directory that it is now.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use hushfs::fs::{Caller, Fs, NameIn, ROOT};

use crate::{
    assert_sealed, at,
    copies::{listed, read, rename, with_mount, with_shared},
    open,
    support::Bench,
    unmounted,
};

fn directory(fs: &Fs, name: &[u8]) -> u64 {
    fs.look_up(ROOT, name).unwrap().node.id
}

fn make(fs: &Fs, parent: u64, name: &[u8], content: &[u8], caller: Caller) {
    // As the kernel does where a directory is another now.
    let create = || fs.create(NameIn { parent, name }, 0o600, caller);
    let id = create().or_else(|_| create()).unwrap().node.id;
    fs.write(id, 0, content).unwrap();
    fs.release(id);
}

/// Lists a directory until it is as it should be.
fn wait_for(fs: &Fs, name: &[u8], wanted: &[&str]) {
    let is_there = || listed(fs, directory(fs, name)) == wanted;
    for _ in 0..100 {
        if is_there() {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("{:?} instead of {wanted:?}", listed(fs, directory(fs, name)));
}

/// Makes one directory on disk like another, as a sync tool does: what is another gets another file.
fn mirror(from: &Path, to: &Path) {
    let names = |path: &Path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name());
    for name in names(to).filter(|name| !from.join(name).exists()) {
        let gone = to.join(name);
        if gone.is_dir() {
            fs::remove_dir_all(gone)
        } else {
            fs::remove_file(gone)
        }
        .unwrap();
    }
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            let _ = fs::create_dir(&to);
            mirror(&from, &to);
        } else if fs::read(&to).ok() != Some(fs::read(&from).unwrap()) {
            let coming = to.with_extension("coming");
            fs::copy(&from, &coming).unwrap();
            fs::rename(coming, to).unwrap();
        }
    }
}

/// The directory with a header that is on disk in a vault's root.
fn with_header(bench: &Bench) -> PathBuf {
    let mut entries = fs::read_dir(bench.vault()).unwrap().map(|entry| entry.unwrap().path());
    entries.find(|path| path.join("dir.hush").exists()).unwrap()
}

#[test]
fn a_directory_that_was_listed_before_its_header_came_is_shown_when_it_has() {
    let bench = Bench::with_init_options(&[]);
    with_mount(&bench, |fs, caller| {
        let parent = fs.make_directory(at(b"before"), 0o700, caller).unwrap().node.id;
        make(fs, parent, b"one", b"1", caller);
        rename(fs, at(b"before"), at(b"after")).unwrap();
    });
    let header = with_header(&bench).join("dir.hush");
    let away = bench.vault().with_extension("away");
    fs::rename(&header, &away).unwrap();
    with_shared(&bench, |fs, caller| {
        let id = directory(fs, b"after");
        assert_eq!(listed(fs, id), [""; 0]);
        fs::rename(&away, &header).unwrap();
        // Whether or not it was looked at a moment ago.
        make(fs, id, b"two", b"2", caller);
        assert_eq!(listed(fs, id), ["one", "two"]);
        assert_eq!(read(fs, id, b"one").unwrap(), b"1");
        fs::rename(&header, &away).unwrap();
        wait_for(fs, b"after", &[]);
        fs::rename(&away, &header).unwrap();
        wait_for(fs, b"after", &["one", "two"]);
    });
    assert_sealed(&bench, 2);
}

#[test]
fn a_directory_in_whose_place_another_comes_shows_the_names_of_that() {
    let bench = Bench::with_init_options(&[]);
    with_mount(&bench, |fs, caller| {
        for (name, files) in [(b"cur", &["file"][..]), (b"new", &["file", "other"])] {
            let parent = fs.make_directory(at(name), 0o700, caller).unwrap().node.id;
            files
                .iter()
                .for_each(|file| make(fs, parent, file.as_bytes(), name, caller));
        }
    });
    let elsewhere = bench.vault().with_extension("elsewhere");
    let copied = Command::new("cp").arg("-a").args([&bench.vault(), &elsewhere]).status();
    assert!(copied.unwrap().success());
    {
        let open = unmounted::open(&elsewhere, &bench.passfile());
        unmounted::with_fs(open, |fs, _| {
            rename(fs, at(b"cur"), at(b"old")).unwrap();
            rename(fs, at(b"new"), at(b"cur")).unwrap();
        });
    }
    with_shared(&bench, |fs, caller| {
        let id = directory(fs, b"cur");
        assert_eq!(read(fs, id, b"file").unwrap(), b"cur");
        mirror(&elsewhere, &bench.vault());
        wait_for(fs, b"cur", &["file", "other"]);
        wait_for(fs, b"old", &["file"]);
        for (name, content) in [(b"cur", b"new"), (b"old", b"cur")] {
            assert_eq!(read(fs, directory(fs, name), b"file").unwrap(), content);
        }
        make(fs, directory(fs, b"cur"), b"here", b"made here", caller);
    });
    let (fs, _home, _) = open(&bench);
    assert_eq!(listed(&fs, directory(&fs, b"cur")), ["file", "here", "other"]);
    drop((fs, _home));
    assert_sealed(&bench, 4);
}
