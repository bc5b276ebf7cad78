//! Copies that sync tools make when two machines changed a file.

use std::{fs, path::PathBuf};

use crate::{
    sample::{Outcome, Plain, Sample, judge},
    support::can_mount,
};

/// What sync tools add to a name, and what it shows as.
const COPIES: [(&str, &str); 4] = [
    (" (conflicted copy)", " (conflict conflicted copy)"),
    (
        " (Anna's conflicted copy 2026-01-31)",
        " (conflict Anna's conflicted copy 2026-01-31)",
    ),
    (
        ".sync-conflict-20260131-120000-ABCDEFG",
        " (conflict sync-conflict-20260131-120000-ABCDEFG)",
    ),
    ("~1", " (conflict ~1)"),
];

fn with_suffix(disk: &std::path::Path, suffix: &str) -> PathBuf {
    let mut name = disk.file_name().unwrap().to_owned();
    name.push(suffix);
    disk.with_file_name(name)
}

/// Mounts the sample with a copy of `odd` in it; returns where it is mounted, and where the copy shows.
fn mount_with_copy(sample: &mut Sample) -> (PathBuf, PathBuf) {
    let disk = sample.disk("odd");
    let (suffix, shown) = COPIES[0];
    fs::copy(&disk, with_suffix(&disk, suffix)).unwrap();
    sample.bench.mount(&[]);
    let mnt = sample.bench.mnt();
    let copy = mnt.join(format!("odd{shown}"));
    (mnt, copy)
}

#[test]
fn conflict_copies_show_read_and_go() {
    if !can_mount() {
        return;
    }
    let mut sample = Sample::new();
    for (suffix, shown) in COPIES {
        sample.restore();
        for path in ["odd", "dir/inner"] {
            let disk = sample.disk(path);
            let header = sample.header(path);
            fs::copy(&disk, with_suffix(&disk, suffix)).unwrap();
            sample.bench.mount(&[]);
            let mnt = sample.bench.mnt();
            let copy = format!("{path}{shown}");
            let dir = mnt.join(path).parent().unwrap().to_owned();
            let names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(names.contains(&mnt.join(&copy)), "{suffix:?}: {names:?}");
            let plain = &sample.tree[path];
            assert_eq!(judge(&mnt, path, plain), Outcome::Original, "{suffix:?}");
            assert_eq!(judge(&mnt, &copy, plain), Outcome::Original, "{suffix:?}");
            // The copy keeps the header that both need.
            fs::remove_file(mnt.join(path)).unwrap();
            sample.bench.remount();
            assert!(header.exists(), "{suffix:?}");
            assert_eq!(judge(&mnt, &copy, plain), Outcome::Original, "{suffix:?}");
            assert_eq!(judge(&mnt, path, plain), Outcome::Gone, "{suffix:?}");
            fs::remove_file(mnt.join(&copy)).unwrap();
            sample.bench.unmount();
            assert!(!with_suffix(&disk, suffix).exists(), "{suffix:?}");
            assert!(!header.exists(), "{suffix:?}: the header of nobody stays");
        }
    }
}

#[test]
fn removing_or_moving_a_conflict_copy_keeps_the_original() {
    if !can_mount() {
        return;
    }
    let mut sample = Sample::new();
    for moved in [false, true] {
        sample.restore();
        let (mnt, copy) = mount_with_copy(&mut sample);
        if moved {
            fs::rename(&copy, mnt.join("dir/odd")).unwrap();
        } else {
            fs::remove_file(&copy).unwrap();
        }
        sample.bench.remount();
        assert_eq!(judge(&mnt, "odd", &sample.tree["odd"]), Outcome::Original, "{moved}");
        if moved {
            assert_eq!(judge(&mnt, "dir/odd", &sample.tree["odd"]), Outcome::Original);
        }
        sample.bench.unmount();
    }
}

#[test]
fn a_conflict_copy_that_was_written_to_opens_again() {
    if !can_mount() {
        return;
    }
    let mut sample = Sample::new();
    let (mnt, copy) = mount_with_copy(&mut sample);
    fs::write(&copy, "what both wrote").unwrap();
    for _ in 0..2 {
        // Sealed at the end.
        sample.bench.remount();
        assert_eq!(fs::read(&copy).unwrap(), b"what both wrote");
        assert_eq!(judge(&mnt, "odd", &sample.tree["odd"]), Outcome::Original);
    }
    sample.bench.unmount();
}

#[test]
fn a_conflict_copy_can_take_the_place_of_the_original() {
    if !can_mount() {
        return;
    }
    let mut sample = Sample::new();
    let (mnt, copy) = mount_with_copy(&mut sample);
    fs::write(mnt.join("odd"), "the other machine's").unwrap();
    fs::rename(&copy, mnt.join("odd")).unwrap();
    for _ in 0..2 {
        assert_eq!(judge(&mnt, "odd", &sample.tree["odd"]), Outcome::Original);
        sample.bench.remount();
    }
    sample.bench.unmount();
    assert_eq!(sample.bench.run("verify", &[]).status.code(), Some(0));
}

#[test]
fn a_conflict_copy_that_was_renamed_goes_without_the_header_of_the_original() {
    if !can_mount() {
        return;
    }
    let mut sample = Sample::new();
    let (mnt, copy) = mount_with_copy(&mut sample);
    fs::rename(&copy, mnt.join("kept")).unwrap();
    sample.bench.remount();
    fs::remove_file(mnt.join("kept")).unwrap();
    sample.bench.remount();
    assert_eq!(judge(&mnt, "odd", &sample.tree["odd"]), Outcome::Original);
    sample.bench.unmount();
}

#[test]
fn what_is_saved_by_rename_as_a_conflict_copy_takes_its_place() {
    if !can_mount() {
        return;
    }
    let mut sample = Sample::new();
    let (mnt, copy) = mount_with_copy(&mut sample);
    for round in ["first", "second"] {
        fs::write(mnt.join("new"), round).unwrap();
        fs::rename(mnt.join("new"), &copy).unwrap();
        assert_eq!(fs::read_to_string(&copy).unwrap(), round);
        let shows = fs::read_dir(&mnt).unwrap().map(|entry| entry.unwrap().path());
        assert_eq!(shows.filter(|path| *path == copy).count(), 1, "{round}");
    }
    sample.bench.remount();
    assert_eq!(fs::read_to_string(&copy).unwrap(), "second");
    assert_eq!(judge(&mnt, "odd", &sample.tree["odd"]), Outcome::Original);
    fs::remove_file(&copy).unwrap();
    assert!(!copy.exists());
    sample.bench.unmount();
}

#[test]
fn a_conflict_copy_of_another_file_does_not_read_under_this_name() {
    if !can_mount() {
        return;
    }
    let mut sample = Sample::new();
    let disk = sample.disk("odd");
    let (suffix, shown) = COPIES[0];
    fs::copy(sample.disk("one"), with_suffix(&disk, suffix)).unwrap();
    sample.bench.mount(&[]);
    let mnt = sample.bench.mnt();
    let Plain::File(_) = &sample.tree["odd"] else {
        unreachable!()
    };
    let copy = format!("odd{shown}");
    assert_eq!(judge(&mnt, &copy, &sample.tree["odd"]), Outcome::Refused);
    fs::remove_file(mnt.join(&copy)).unwrap();
    // Its removal did not take the other file's header along.
    sample.bench.remount();
    for path in ["one", "odd"] {
        assert_eq!(judge(&mnt, path, &sample.tree[path]), Outcome::Original, "{path}");
    }
}
