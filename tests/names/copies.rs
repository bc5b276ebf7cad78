//! Two files with one header, and copies of entries that sync tools and others make beside them: what one needs does not go with the other.

use std::{
    fs,
    path::{Path, PathBuf},
};

use hushfs::fs::{Caller, Fs, FsError, FsResult, NameIn, ROOT};

use crate::{
    assert_sealed, at, open,
    support::Bench,
    unlink,
    unmounted::{self, fs_with},
};

/// What a sync tool adds to a name on disk, and what that shows as.
const ADDED: &str = ".sync-conflict-1";
const SHOWN: &str = " (conflict sync-conflict-1)";

const CONTENT: &[u8] = b"what must not be lost";

/// Makes a file with content; returns its path on disk.
fn make(bench: &Bench, fs: &Fs, place: NameIn<'_>, caller: Caller) -> PathBuf {
    let before = on_disk(&bench.vault());
    let id = fs.create(place, 0o600, caller).unwrap().node.id;
    fs.write(id, 0, CONTENT).unwrap();
    fs.release(id);
    entry_besides(&before, &bench.vault())
}

/// Lists all paths in a directory on disk.
fn on_disk(directory: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            paths.extend(on_disk(&path));
        }
        paths.push(path);
    }
    paths
}

/// Returns the entry that is there and was not before.
fn entry_besides(before: &[PathBuf], vault: &Path) -> PathBuf {
    let mut new: Vec<_> = on_disk(vault)
        .into_iter()
        .filter(|path| !before.contains(path) && path.extension().is_none())
        .collect();
    assert_eq!(new.len(), 1, "{new:?}");
    new.remove(0)
}

/// How many names on disk end so, in the whole vault.
fn ending(bench: &Bench, suffix: &str) -> usize {
    let own = ["vault.hush", "keystore.hush", "dir.hush"];
    on_disk(&bench.vault())
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap())
        .filter(|name| name.ends_with(suffix) && !own.contains(name))
        .count()
}

fn with_added(disk: &Path) -> PathBuf {
    let mut name = disk.file_name().unwrap().to_owned();
    name.push(ADDED);
    disk.with_file_name(name)
}

fn shown(name: &str) -> Vec<u8> {
    format!("{name}{SHOWN}").into_bytes()
}

pub fn rename(fs: &Fs, from: NameIn<'_>, to: NameIn<'_>) -> FsResult<()> {
    fs.rename(from, to, 0).map(|left| fs.clear(left))
}

pub fn read(fs: &Fs, parent: u64, name: &[u8]) -> FsResult<Vec<u8>> {
    let id = fs.look_up(parent, name)?.node.id;
    fs.open(id, false)?;
    let mut buffer = Vec::new();
    let range = fs.read(id, 0, 1000, &mut buffer);
    fs.release(id);
    Ok(buffer[range?].to_vec())
}

#[track_caller]
fn assert_there(bench: &Bench, name: &[u8]) {
    let (fs, _home, _) = open(bench);
    let found = read(&fs, ROOT, name);
    assert!(found.as_ref().is_ok_and(|found| found == CONTENT), "{found:?}");
}

#[track_caller]
fn assert_sealed_without_files(bench: &Bench) {
    assert_sealed(bench, 0);
    assert_eq!(ending(bench, ".hush"), 0);
}

/// The names in a directory.
pub fn listed(fs: &Fs, id: u64) -> Vec<String> {
    let mut names = Vec::new();
    fs.list(id, 0, |entry| {
        names.push(String::from_utf8(entry.name.clone()).unwrap());
        true
    })
    .unwrap();
    names.retain(|name| name != "." && name != "..");
    names.sort();
    names
}

/// Does something with a filesystem as a mount would, to its end.
pub fn with_mount(bench: &Bench, act: impl FnOnce(&Fs, Caller)) {
    let (fs, _home, caller) = open(bench);
    act(&fs, caller);
    fs.seal_all();
}

pub fn with_shared(bench: &Bench, act: impl FnOnce(&Fs, Caller)) {
    let open = unmounted::open(&bench.vault(), &bench.passfile());
    let (fs, _home, caller) = fs_with(open, |options| options.shared = true);
    act(&fs, caller);
    fs.seal_all();
}

/// Makes a vault with a file; returns the file's path on disk, too.
fn with_file(name: &str) -> (Bench, PathBuf) {
    let bench = Bench::with_init_options(&[]);
    let mut disk = PathBuf::new();
    with_mount(&bench, |fs, caller| {
        disk = make(&bench, fs, at(name.as_bytes()), caller)
    });
    (bench, disk)
}

#[test]
fn what_was_another_name_of_a_file_before_a_restore_keeps_the_header() {
    for replaced in [false, true] {
        let (bench, _) = with_file("stays");
        with_mount(&bench, |fs, _| {
            let id = fs.look_up(ROOT, b"stays").unwrap().node.id;
            let before = on_disk(&bench.vault());
            fs.link(id, at(b"goes")).unwrap();
            let second = entry_besides(&before, &bench.vault());
            // As by a tool that knows nothing of links.
            fs.seal_all();
            let copy = second.with_extension("copy");
            fs::copy(&second, &copy).unwrap();
            fs::rename(copy, second).unwrap();
        });
        with_mount(&bench, |fs, _| {
            let id = fs.look_up(ROOT, b"goes").unwrap().node.id;
            fs.open(id, false).unwrap();
            fs.write(id, 0, b"changed").unwrap();
            fs.release(id);
        });
        with_mount(&bench, |fs, caller| {
            if replaced {
                make(&bench, fs, at(b"new"), caller);
                rename(fs, at(b"new"), at(b"goes")).unwrap();
            } else {
                unlink(fs, b"goes");
            }
        });
        assert_there(&bench, b"stays");
        assert_sealed(&bench, if replaced { 2 } else { 1 });
    }
}

#[test]
fn a_renamed_copy_that_goes_leaves_the_header_to_the_original() {
    for moved in [false, true] {
        let (bench, disk) = with_file("file");
        fs::copy(&disk, with_added(&disk)).unwrap();
        with_mount(&bench, |fs, _| rename(fs, at(&shown("file")), at(b"renamed")).unwrap());
        with_mount(&bench, |fs, caller| {
            if moved {
                let parent = fs.make_directory(at(b"d"), 0o700, caller).unwrap().node.id;
                let name = b"renamed";
                rename(fs, at(b"renamed"), NameIn { parent, name }).unwrap();
            } else {
                unlink(fs, b"renamed");
            }
        });
        assert_there(&bench, b"file");
        // And the other way round, both headers go with the last that needs them.
        with_mount(&bench, |fs, _| unlink(fs, b"file"));
        assert_eq!(ending(&bench, ".hush"), usize::from(moved));
    }
}

#[test]
fn a_file_that_is_back_before_its_header_went_keeps_it() {
    let (bench, _) = with_file("file");
    with_mount(&bench, |fs, caller| {
        let parent = fs.make_directory(at(b"d"), 0o700, caller).unwrap().node.id;
        let name = b"file";
        for _ in 0..2 {
            rename(fs, at(b"file"), NameIn { parent, name }).unwrap();
            rename(fs, NameIn { parent, name }, at(b"file")).unwrap();
        }
    });
    assert_there(&bench, b"file");
    assert_eq!(ending(&bench, ".hush"), 1);
}

/// How files get a name in another directory and lose the one they had.
const DELIVERIES: [fn(&Fs, u64, NameIn<'_>, NameIn<'_>); 3] = [
    |fs, id, from, to| {
        fs.link(id, to).unwrap();
        fs.clear(fs.unlink(from).unwrap());
    },
    // The name that is left is the one that it had first.
    |fs, id, from, to| {
        rename(fs, from, to).unwrap();
        fs.link(id, from).unwrap();
        fs.clear(fs.unlink(from).unwrap());
    },
    |fs, id, from, to| {
        fs.link(id, NameIn { name: b"kept", ..to }).unwrap();
        rename(fs, from, to).unwrap();
        fs.clear(fs.unlink(NameIn { name: b"kept", ..to }).unwrap());
    },
];

#[test]
fn a_directory_keeps_no_header_of_files_whose_names_are_elsewhere() {
    const FILES: usize = 20;
    for deliver in DELIVERIES {
        for is_closed in [false, true] {
            let bench = Bench::with_init_options(&[]);
            let name = |i: usize| format!("message {i}").into_bytes();
            let directory = |fs: &Fs, name: &[u8]| fs.look_up(ROOT, name).unwrap().node.id;
            let make_all = |fs: &Fs, caller| {
                for name in [b"tmp", b"new"] {
                    fs.make_directory(at(name), 0o700, caller).unwrap();
                }
                let parent = directory(fs, b"tmp");
                (0..FILES).for_each(|i| drop(make(&bench, fs, NameIn { parent, name: &name(i) }, caller)));
            };
            let deliver_all = |fs: &Fs| {
                let (from, to) = (directory(fs, b"tmp"), directory(fs, b"new"));
                for i in 0..FILES {
                    let name = &name(i);
                    let id = fs.look_up(from, name).unwrap().node.id;
                    deliver(fs, id, NameIn { parent: from, name }, NameIn { parent: to, name });
                }
            };
            if is_closed {
                with_mount(&bench, make_all);
                with_mount(&bench, |fs, _| deliver_all(fs));
            } else {
                with_mount(&bench, |fs, caller| {
                    make_all(fs, caller);
                    deliver_all(fs);
                });
            }
            assert_eq!(ending(&bench, ".hush"), FILES);
            with_mount(&bench, |fs, _| {
                let (from, to) = (directory(fs, b"tmp"), directory(fs, b"new"));
                assert!(listed(fs, from).is_empty());
                (0..FILES).for_each(|i| assert_eq!(read(fs, to, &name(i)).unwrap(), CONTENT));
            });
            assert_sealed(&bench, FILES);
        }
    }
}

#[test]
fn a_file_that_loses_one_of_its_names_in_a_directory_keeps_its_header_there() {
    for is_back in [false, true] {
        let (bench, _) = with_file("stays");
        with_mount(&bench, |fs, caller| {
            let parent = fs.make_directory(at(b"d"), 0o700, caller).unwrap().node.id;
            let id = fs.look_up(ROOT, b"stays").unwrap().node.id;
            let elsewhere = NameIn { parent, name: b"other" };
            fs.link(id, at(b"goes")).unwrap();
            fs.link(id, elsewhere).unwrap();
            unlink(fs, b"goes");
            if is_back {
                unlink(fs, b"stays");
                rename(fs, elsewhere, at(b"stays")).unwrap();
            }
        });
        assert_there(&bench, b"stays");
        assert_eq!(ending(&bench, ".hush"), if is_back { 1 } else { 2 });
        assert_sealed(&bench, if is_back { 1 } else { 2 });
    }
}

#[test]
fn headers_of_a_large_directory_go_when_enough_files_are_gone() {
    const FILES: usize = 1100;
    let name = |i: usize| format!("file {i}").into_bytes();
    let bench = Bench::with_init_options(&[]);
    with_mount(&bench, |fs, caller| {
        for i in 0..FILES {
            let id = fs.create(at(&name(i)), 0o600, caller).unwrap().node.id;
            fs.write(id, 0, CONTENT).unwrap();
            fs.release(id);
            fs.forget(id, 1);
        }
    });
    with_mount(&bench, |fs, _| unlink(fs, &name(0)));
    assert_eq!(ending(&bench, ".hush"), FILES, "one is too few for a look at all");
    with_mount(&bench, |fs, _| (1..3).for_each(|i| unlink(fs, &name(i))));
    assert_eq!(ending(&bench, ".hush"), FILES - 2);
}

#[test]
fn a_copy_of_a_directory_opens_under_the_id_of_the_original() {
    for original_goes in [false, true] {
        let bench = Bench::with_init_options(&[]);
        with_mount(&bench, |fs, caller| {
            let parent = fs.make_directory(at(b"d"), 0o700, caller).unwrap().node.id;
            make(&bench, fs, NameIn { parent, name: b"file" }, caller);
        });
        let disk = on_disk(&bench.vault()).into_iter().find(|path| path.is_dir()).unwrap();
        fs::create_dir(with_added(&disk)).unwrap();
        for path in on_disk(&disk) {
            fs::copy(&path, with_added(&disk).join(path.file_name().unwrap())).unwrap();
        }
        with_mount(&bench, |fs, caller| {
            let copy = fs.look_up(ROOT, &shown("d")).unwrap().node.id;
            assert_eq!(read(fs, copy, b"file").unwrap(), CONTENT);
            make(
                &bench,
                fs,
                NameIn {
                    parent: copy,
                    name: b"new",
                },
                caller,
            );
        });
        let name = if original_goes { b"d" } else { b"e" };
        with_mount(&bench, |fs, _| {
            if original_goes {
                let parent = fs.look_up(ROOT, b"d").unwrap().node.id;
                fs.clear(fs.unlink(NameIn { parent, name: b"file" }).unwrap());
                fs.remove_directory(at(b"d")).unwrap();
            }
            // Also one that nobody has looked into, as here.
            rename(fs, at(&shown("d")), at(name)).unwrap();
        });
        with_mount(&bench, |fs, _| {
            let renamed = fs.look_up(ROOT, name).unwrap().node.id;
            for file in [b"file".as_slice(), b"new"] {
                assert_eq!(read(fs, renamed, file).unwrap(), CONTENT);
            }
        });
        assert_sealed(&bench, if original_goes { 2 } else { 3 });
    }
}

#[test]
fn a_copy_whose_rename_fails_opens_as_before() {
    let (bench, disk) = with_file("file");
    fs::copy(&disk, with_added(&disk)).unwrap();
    with_mount(&bench, |fs, caller| {
        fs.make_directory(at(b"d"), 0o700, caller).unwrap();
        // Known to be what it is, as when the kernel asks.
        assert_eq!(read(fs, ROOT, &shown("file")).unwrap(), CONTENT);
        rename(fs, at(&shown("file")), at(b"d")).unwrap_err();
    });
    for _ in 0..2 {
        assert_there(&bench, &shown("file"));
        assert_there(&bench, b"file");
    }
}

#[test]
fn a_copy_is_not_exchanged() {
    let (bench, disk) = with_file("file");
    fs::copy(&disk, with_added(&disk)).unwrap();
    with_mount(&bench, |fs, caller| {
        make(&bench, fs, at(b"other"), caller);
        let copy = shown("file");
        for (from, to) in [(&copy[..], &b"other"[..]), (b"other", &copy)] {
            let refused = fs.rename(at(from), at(to), libc::RENAME_EXCHANGE).unwrap_err();
            assert_eq!(refused.errno(), libc::EOPNOTSUPP);
        }
    });
    assert_there(&bench, &shown("file"));
    assert_there(&bench, b"other");
}

#[test]
fn what_is_renamed_to_the_name_of_a_copy_takes_its_place() {
    let (bench, disk) = with_file("file");
    fs::copy(&disk, with_added(&disk)).unwrap();
    let copy = shown("file");
    with_mount(&bench, |fs, caller| {
        let id = fs.create(at(b"new"), 0o600, caller).unwrap().node.id;
        fs.write(id, 0, b"new").unwrap();
        fs.release(id);
        let refused = fs.rename(at(b"new"), at(&copy), libc::RENAME_NOREPLACE).unwrap_err();
        assert_eq!(refused.errno(), libc::EEXIST);
        rename(fs, at(&copy), at(&copy)).unwrap();
        assert_eq!(read(fs, ROOT, &copy).unwrap(), CONTENT);
        rename(fs, at(b"new"), at(&copy)).unwrap();
        assert_eq!(listed(fs, ROOT), ["file".to_owned(), format!("file{SHOWN}")]);
        assert_eq!(read(fs, ROOT, &copy).unwrap(), b"new");
    });
    assert!(!with_added(&disk).exists());
    assert_there(&bench, b"file");
    with_mount(&bench, |fs, _| {
        unlink(fs, &copy);
        assert_eq!(listed(fs, ROOT), ["file"]);
    });
    assert_there(&bench, b"file");
}

#[test]
fn a_copy_of_a_long_name_outlives_the_original() {
    let name = "n".repeat(180);
    for renamed in [false, true] {
        let (bench, disk) = with_file(&name);
        fs::copy(&disk, with_added(&disk)).unwrap();
        with_mount(&bench, |fs, _| {
            if renamed {
                rename(fs, at(name.as_bytes()), at(b"short")).unwrap();
            } else {
                unlink(fs, name.as_bytes());
            }
        });
        assert_there(&bench, &shown(&name));
        with_mount(&bench, |fs, _| unlink(fs, &shown(&name)));
        assert_eq!(ending(&bench, ".long.hush"), 0);
    }
}

#[test]
fn a_copy_of_a_long_link_outlives_the_original() {
    let bench = Bench::with_init_options(&[]);
    let target = [b't'; 3500];
    with_mount(&bench, |fs, caller| {
        fs.make_link(at(b"link"), &target, caller).unwrap();
    });
    let disk = on_disk(&bench.vault())
        .into_iter()
        .find(|path| path.is_symlink())
        .unwrap();
    std::os::unix::fs::symlink(fs::read_link(&disk).unwrap(), with_added(&disk)).unwrap();
    with_mount(&bench, |fs, _| unlink(fs, b"link"));
    with_mount(&bench, |fs, _| {
        let id = fs.look_up(ROOT, &shown("link")).unwrap().node.id;
        assert_eq!(fs.read_link(id).unwrap(), target);
        unlink(fs, &shown("link"));
    });
    assert_sealed_without_files(&bench);
}

#[test]
fn a_copy_of_the_longest_name_shows_and_goes() {
    let bench = Bench::with_init_options(&[]);
    with_mount(&bench, |fs, caller| {
        let parent = fs.make_directory(at(b"d"), 0o700, caller).unwrap().node.id;
        let name = &[b'n'; 255];
        let disk = make(&bench, fs, NameIn { parent, name }, caller);
        fs.seal_all();
        fs::copy(&disk, with_added(&disk)).unwrap();
    });
    with_mount(&bench, |fs, _| {
        let parent = fs.look_up(ROOT, b"d").unwrap().node.id;
        let names = listed(fs, parent);
        assert_eq!(names.len(), 2);
        for name in names {
            let name = name.as_bytes();
            assert_eq!(read(fs, parent, name).unwrap(), CONTENT);
            fs.clear(fs.unlink(NameIn { parent, name }).unwrap());
        }
        fs.remove_directory(at(b"d")).unwrap();
    });
    assert_sealed_without_files(&bench);
}

#[test]
fn a_mount_that_shares_leaves_to_others_what_their_files_may_need() {
    let long = [b'n'; 200];
    let bench = Bench::with_init_options(&[]);
    with_mount(&bench, |fs, caller| {
        let parent = fs.make_directory(at(b"d"), 0o700, caller).unwrap().node.id;
        for name in [&long[..], b"removed", b"replaced", b"moved"] {
            make(&bench, fs, NameIn { parent, name }, caller);
        }
        fs.make_link(NameIn { parent, name: b"link" }, &[b't'; 3500], caller)
            .unwrap();
    });
    with_shared(&bench, |fs, caller| {
        let parent = fs.look_up(ROOT, b"d").unwrap().node.id;
        make(&bench, fs, NameIn { parent, name: b"new" }, caller);
        let within = |name| NameIn { parent, name };
        rename(fs, within(b"new"), within(b"replaced")).unwrap();
        rename(fs, within(b"moved"), at(b"moved")).unwrap();
        for name in [&long[..], b"removed", b"link"] {
            fs.clear(fs.unlink(within(name)).unwrap());
        }
    });
    let (long_names, links) = (ending(&bench, ".long.hush"), ending(&bench, ".link.hush"));
    assert_eq!((long_names, links), (1, 1));
    // Of four files and the new one, and of the one that was moved another.
    assert_eq!(ending(&bench, ".hush") - long_names - links, 6);
    assert_there(&bench, b"moved");
    with_shared(&bench, |fs, _| {
        let parent = fs.look_up(ROOT, b"d").unwrap().node.id;
        fs.clear(
            fs.unlink(NameIn {
                parent,
                name: b"replaced",
            })
            .unwrap(),
        );
        fs.remove_directory(at(b"d")).unwrap();
    });
    assert_sealed(&bench, 1);
    assert_eq!(ending(&bench, ".hush"), 1);
}

#[test]
fn a_copy_whose_addition_begins_as_a_sealed_name_may_shows_and_goes() {
    let (bench, disk) = with_file("shared");
    let added = ["-DESKTOP1", "_conflict-20261122-184500", ".1", " (1)"];
    for added in added {
        fs::copy(
            &disk,
            disk.with_file_name(format!("{}{added}", disk.file_name().unwrap().display())),
        )
        .unwrap();
    }
    with_mount(&bench, |fs, _| {
        let names = listed(fs, ROOT);
        assert_eq!(names.len(), 1 + added.len(), "{names:?}");
        for name in &names {
            assert_eq!(read(fs, ROOT, name.as_bytes()).unwrap(), CONTENT, "{name}");
        }
        let id = fs.look_up(ROOT, b"shared (conflict -DESKTOP1)").unwrap().node.id;
        fs.open(id, true).unwrap();
        fs.write(id, 0, b"WHAT").unwrap();
        fs.release(id);
        unlink(fs, b"shared (conflict 1)");
        assert_eq!(listed(fs, ROOT).len(), added.len());
    });
    with_mount(&bench, |fs, _| {
        let written = read(fs, ROOT, b"shared (conflict -DESKTOP1)").unwrap();
        assert_eq!(written, b"WHAT must not be lost");
        for name in listed(fs, ROOT) {
            unlink(fs, name.as_bytes());
        }
    });
    assert_sealed_without_files(&bench);
}

#[test]
fn a_directory_goes_with_what_sync_tools_left_of_its_files_and_stays_with_what_is_not_of_the_vault() {
    let bench = Bench::with_init_options(&[]);
    let mut disk = PathBuf::new();
    with_mount(&bench, |fs, caller| {
        let parent = fs.make_directory(at(b"d"), 0o700, caller).unwrap().node.id;
        disk = make(&bench, fs, NameIn { parent, name: b"n" }, caller);
        rename(fs, at(b"d"), at(b"e")).unwrap();
    });
    let renamed = on_disk(&bench.vault()).into_iter().find(|path| path.is_dir()).unwrap();
    let entry = disk.file_name().unwrap().to_str().unwrap().to_owned();
    let header = on_disk(&renamed).into_iter().find(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.ends_with(".hush") && name != "dir.hush"
    });
    let header = header.unwrap();
    let id = header.file_stem().unwrap().to_str().unwrap();
    for (from, left) in [
        (&header, format!("{id}.sync-conflict-1.hush")),
        (&header, format!(".{id}.hush.Ab3xYz")),
        (&renamed.join(&entry), format!(".{entry}.Ab3xYz")),
        (&renamed.join(&entry), format!(".syncthing.{entry}.tmp")),
        (&renamed.join("dir.hush"), "dir (Ann's copy).hush".to_owned()),
    ] {
        fs::copy(from, renamed.join(left)).unwrap();
    }
    fs::write(renamed.join(".stfolder"), "").unwrap();
    with_mount(&bench, |fs, _| {
        let parent = fs.look_up(ROOT, b"e").unwrap().node.id;
        fs.clear(fs.unlink(NameIn { parent, name: b"n" }).unwrap());
        assert!(listed(fs, parent).is_empty());
        assert!(matches!(fs.remove_directory(at(b"e")), Err(FsError::NotEmpty)));
        assert!(renamed.join(format!(".{entry}.Ab3xYz")).exists());
        fs::remove_file(renamed.join(".stfolder")).unwrap();
        fs.remove_directory(at(b"e")).unwrap();
    });
    assert!(!renamed.exists());
    assert_sealed_without_files(&bench);
}
