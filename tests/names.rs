//! What is known of files by their names, on a filesystem that is not mounted: names that come and go, and what is kept of them.

#[path = "support/mod.rs"]
mod support;
#[path = "support/unmounted.rs"]
mod unmounted;

#[path = "names/copies.rs"]
mod copies;
#[path = "names/directories.rs"]
mod directories;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use hushfs::fs::{Caller, Fs, NameIn, ROOT};
use support::Bench;

fn open(bench: &Bench) -> (Fs, unmounted::Home, Caller) {
    unmounted::fs_of(unmounted::open(&bench.vault(), &bench.passfile()), false)
}

fn at(name: &[u8]) -> NameIn<'_> {
    NameIn { parent: ROOT, name }
}

/// Makes a file with something in it, and a handle of it.
fn create(fs: &Fs, name: &[u8], caller: Caller) -> u64 {
    let id = fs.create(at(name), 0o600, caller).unwrap().node.id;
    fs.write(id, 0, b"content").unwrap();
    id
}

/// Removes a name, as the kernel asks for it.
fn unlink(fs: &Fs, name: &[u8]) {
    let left = fs.unlink(at(name)).unwrap();
    fs.clear(left);
}

/// Asserts that the vault is as a clean end leaves it.
#[track_caller]
fn assert_sealed(bench: &Bench, files: usize) {
    let output = bench.run("fsck", &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("unclean end"), "{said}");
    let checked = if files == 1 {
        "1 file checked".to_owned()
    } else {
        format!("{files} files checked")
    };
    assert!(said.contains(&checked), "{said}");
}

/// The sealer between the two halves of a removal: the name is gone from the disk, and what is known of the file says so a moment later.
#[test]
fn a_file_is_not_sealed_for_a_name_that_is_going() {
    let bench = Bench::with_init_options(&[]);
    let (fs, home, caller) = open(&bench);
    let id = create(&fs, b"stays", caller);
    let names = || -> BTreeSet<_> {
        let entries = fs::read_dir(bench.vault()).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let before = names();
    fs.link(id, at(b"goes")).unwrap();
    let goes: PathBuf = names().difference(&before).next().cloned().unwrap();
    fs.release(id);
    fs::remove_file(goes).unwrap();
    fs.seal_all();
    drop((fs, home));

    bench.assert_whole("one name is left");
    let (fs, _home, _) = open(&bench);
    let id = fs.look_up(ROOT, b"stays").unwrap().node.id;
    fs.open(id, false).unwrap();
}

#[test]
fn a_file_that_cannot_be_made_durable_keeps_no_other_from_being_sealed() {
    let bench = Bench::with_init_options(&[]);
    let (fs, home, caller) = open(&bench);
    fs.release(create(&fs, b"first", caller));
    let headers = || {
        let entries = fs::read_dir(bench.vault()).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "hush"))
    };
    let own: BTreeSet<_> = ["vault.hush", "keystore.hush", "dir.hush"].map(PathBuf::from).into();
    let header = headers()
        .find(|path| !own.contains(Path::new(path.file_name().unwrap())))
        .unwrap();
    fs::remove_file(header).unwrap();
    for name in [b"second", b"third!"] {
        fs.release(create(&fs, name, caller));
    }
    fs.seal_all();
    drop((fs, home));
    let output = bench.run("fsck", &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    // The first cannot even be looked at.
    assert!(said.contains("header"), "{said}");
    assert!(!said.contains("unclean end"), "{said}");
}

#[test]
fn a_file_whose_newer_name_goes_is_sealed_by_the_older_and_closed() {
    const FILES: usize = 10;
    let bench = Bench::with_init_options(&[]);
    let (fs, home, caller) = open(&bench);
    for i in 0..FILES {
        let (stays, goes) = (format!("stays {i}"), format!("goes {i}"));
        let id = create(&fs, stays.as_bytes(), caller);
        fs.link(id, at(goes.as_bytes())).unwrap();
        unlink(&fs, goes.as_bytes());
        fs.sync_file(id, false).unwrap();
        fs.release(id);
        // Nobody looks the other name up: the kernel knows it.
        fs.forget(id, 2);
    }
    fs.seal_all();
    assert_eq!(fs.node_count(), 1, "the root");
    drop((fs, home));
    assert_sealed(&bench, FILES);
}

#[test]
fn a_file_whose_newer_name_is_replaced_is_opened_by_the_older() {
    let bench = Bench::with_init_options(&[]);
    let (fs, home, caller) = open(&bench);
    let id = create(&fs, b"stays", caller);
    fs.link(id, at(b"name")).unwrap();
    fs.release(id);
    let other = create(&fs, b"other", caller);
    fs.release(other);
    fs.seal_all();
    let left = fs.rename(at(b"other"), at(b"name"), 0).unwrap();
    fs.clear(left);
    for (id, size) in [(id, 7), (other, 7)] {
        fs.open(id, false).unwrap();
        assert_eq!(fs.get_attr(id).unwrap().size, size);
        fs.release(id);
    }
    fs.seal_all();
    drop((fs, home));
    assert_sealed(&bench, 2);
}

#[test]
fn what_a_listing_did_not_take_is_forgotten() {
    let bench = Bench::with_init_options(&[]);
    let (fs, _home, caller) = open(&bench);
    for i in 0..20 {
        let id = create(&fs, format!("file {i}").as_bytes(), caller);
        fs.release(id);
        fs.forget(id, 1);
    }
    fs.seal_all();
    assert_eq!(fs.node_count(), 1, "the root");
    let mut taken = Vec::new();
    fs.list_plus(ROOT, 0, |listed| {
        let takes = taken.len() < 10;
        if takes {
            taken.extend(listed.found.as_ref().map(|found| found.node.id));
        }
        takes
    })
    .unwrap();
    assert_eq!(fs.node_count(), 1 + taken.len());
    taken.into_iter().for_each(|id| fs.forget(id, 1));
    assert_eq!(fs.node_count(), 1, "the root");
}

/// Where a position is a number of entries, counted when the directory was opened, as in many filesystems of FUSE, another look at it is at others.
#[test]
fn a_listing_goes_on_in_the_directory_that_it_was_begun_in() {
    use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
    let bench = Bench::with_init_options(&[]);
    let (fs, _home, caller) = open(&bench);
    for i in 0..100 {
        let id = create(&fs, format!("file {i}").as_bytes(), caller);
        fs.release(id);
        fs.forget(id, 1);
    }
    fs.seal_all();
    let watch = init(CreateFlags::NONBLOCK).unwrap();
    add_watch(&watch, bench.vault(), WatchFlags::OPEN).unwrap();
    let (mut names, mut position) = (BTreeSet::new(), 0);
    loop {
        let mut part = Vec::new();
        fs.list(ROOT, position, |listed| {
            let takes = part.len() < 7;
            if takes {
                part.push(listed.clone());
            }
            takes
        })
        .unwrap();
        let Some(last) = part.last() else { break };
        position = last.next;
        names.extend(part.into_iter().map(|listed| listed.name));
    }
    assert_eq!(names.len(), 102, "with . and ..");
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(&watch, &mut buffer);
    let mut opened = 0;
    while let Ok(event) = events.next() {
        opened += usize::from(event.file_name().is_none());
    }
    assert_eq!(opened, 1);
}

#[test]
fn files_that_had_two_names_leave_no_headers() {
    let bench = Bench::with_init_options(&[]);
    let (fs, home, caller) = open(&bench);
    for i in 0..5 {
        let id = create(&fs, format!("first {i}").as_bytes(), caller);
        fs.link(id, at(format!("second {i}").as_bytes())).unwrap();
        fs.release(id);
    }
    let stays = create(&fs, b"stays", caller);
    fs.link(stays, at(b"stays too")).unwrap();
    fs.release(stays);
    fs.seal_all();
    drop((fs, home));
    // Known to be a file's own are headers of files that were sealed for one name.
    let (fs, home, _) = open(&bench);
    for name in ["first", "second"] {
        (0..5).for_each(|i| unlink(&fs, format!("{name} {i}").as_bytes()));
    }
    unlink(&fs, b"stays too");
    fs.seal_all();
    drop((fs, home));
    let is_header = |name: &str| name.ends_with(".hush") && !["vault.hush", "keystore.hush"].contains(&name);
    let names = fs::read_dir(bench.vault()).unwrap();
    let headers = names.filter(|entry| is_header(entry.as_ref().unwrap().file_name().to_str().unwrap()));
    assert_eq!(headers.count(), 1);
    assert_sealed(&bench, 1);
}

#[test]
fn a_renamed_directory_that_the_kernel_forgot_is_forgotten_when_it_is_settled() {
    let bench = Bench::with_init_options(&[]);
    let (fs, _home, caller) = open(&bench);
    let id = fs.make_directory(at(b"old"), 0o700, caller).unwrap().node.id;
    let left = fs.rename(at(b"old"), at(b"new"), 0).unwrap();
    fs.clear(left);
    fs.forget(id, 1);
    fs.seal_all();
    assert_eq!(fs.node_count(), 1, "the root");
}
