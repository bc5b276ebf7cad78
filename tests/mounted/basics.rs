//! What everybody does with a directory, seen from both sides.

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount},
    process::{Pid, Signal, kill_process},
};

use crate::support::{Bench, can_mount, is_root, snapshot};

#[test]
fn files_survive_a_remount_and_the_vault_shows_none_of_them() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let mnt = bench.mnt();
    fs::create_dir_all(mnt.join("letters/2026")).unwrap();
    fs::write(
        mnt.join("letters/2026/to-ann.txt"),
        "meet me at the harbour".repeat(1000),
    )
    .unwrap();
    symlink("letters/2026/to-ann.txt", mnt.join("latest")).unwrap();
    fs::hard_link(mnt.join("letters/2026/to-ann.txt"), mnt.join("copy")).unwrap();
    let before = snapshot(&mnt);
    bench.remount();
    assert_eq!(snapshot(&mnt), before);
    bench.unmount();
    for entry in walk(&bench.vault()) {
        let shown = entry.to_string_lossy().into_owned();
        assert!(!shown.contains("ann") && !shown.contains("letters"), "{shown}");
        let meta = fs::symlink_metadata(&entry).unwrap();
        if meta.is_symlink() {
            assert!(!fs::read_link(&entry).unwrap().to_string_lossy().contains("ann"));
        } else if meta.is_file() {
            let bytes = fs::read(&entry).unwrap();
            assert!(!bytes.windows(7).any(|window| window == b"harbour"), "{shown}");
        }
    }
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            out.extend(walk(&path));
        }
        out.push(path);
    }
    out
}

#[test]
fn what_names_in_a_directory_need_stays_as_it_is_when_another_is_made_there() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let mnt = bench.mnt();
    for directory in ["here", "there"] {
        fs::create_dir(mnt.join(directory)).unwrap();
    }
    fs::write(mnt.join("here/file"), "bytes").unwrap();
    symlink("x/".repeat(1500), mnt.join("here/link")).unwrap();
    for name in ["file", "link"] {
        fs::hard_link(mnt.join("here").join(name), mnt.join("there").join(name)).unwrap();
    }
    bench.remount();
    let inodes = |bench: &Bench| {
        let beside = walk(&bench.vault())
            .into_iter()
            .filter(|path| path.extension().is_some());
        let inode = |path: std::path::PathBuf| (fs::symlink_metadata(&path).unwrap().ino(), path);
        beside.map(inode).collect::<std::collections::BTreeSet<_>>()
    };
    let before = inodes(&bench);
    for name in ["file", "link"] {
        // Known by the name there, and made once more here.
        fs::symlink_metadata(mnt.join("there").join(name)).unwrap();
        fs::hard_link(
            mnt.join("there").join(name),
            mnt.join("here").join(format!("{name}-again")),
        )
        .unwrap();
    }
    assert_eq!(inodes(&bench), before);
    let shown = snapshot(&mnt);
    bench.remount();
    assert_eq!(snapshot(&mnt), shown);
}

#[test]
fn equal_files_look_different_in_the_vault() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    for name in ["one", "two"] {
        fs::write(bench.mnt().join(name), [7; 4096]).unwrap();
    }
    bench.unmount();
    let contents: Vec<_> = walk(&bench.vault())
        .iter()
        .filter(|path| !path.to_string_lossy().ends_with(".hush"))
        .map(|path| fs::read(path).unwrap())
        .collect();
    assert_eq!(contents.len(), 2);
    assert_ne!(contents[0][256..], contents[1][256..]);
}

#[test]
fn unlinked_files_stay_usable_while_open() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let path = bench.mnt().join("gone");
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    file.write_all(b"before").unwrap();
    fs::remove_file(&path).unwrap();
    file.write_all(b" and after").unwrap();
    file.sync_all().unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before and after");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    fs::write(&path, "another").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "another");
}

#[test]
fn renames_within_and_across_directories_keep_content_after_a_remount() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let mnt = bench.mnt();
    fs::create_dir_all(mnt.join("a/b")).unwrap();
    fs::create_dir(mnt.join("c")).unwrap();
    for i in 0..20 {
        fs::write(mnt.join(format!("a/b/{i}")), format!("file {i}")).unwrap();
    }
    bench.remount();
    // Sealed by now: each rename must carry its place along.
    for i in 0..10 {
        fs::rename(mnt.join(format!("a/b/{i}")), mnt.join(format!("a/b/r{i}"))).unwrap();
    }
    for i in 10..20 {
        fs::rename(mnt.join(format!("a/b/{i}")), mnt.join(format!("c/r{i}"))).unwrap();
    }
    fs::rename(mnt.join("a/b"), mnt.join("c/d")).unwrap();
    fs::rename(mnt.join("c/d/r0"), mnt.join("c/d/r00")).unwrap();
    fs::rename(mnt.join("c/d/r00"), mnt.join("c/d/r000")).unwrap();
    fs::rename(mnt.join("c/d/r1"), mnt.join("c/d/r2")).unwrap();
    for round in 0..2 {
        assert_eq!(
            fs::read_to_string(mnt.join("c/d/r000")).unwrap(),
            "file 0",
            "round {round}"
        );
        assert_eq!(fs::read_to_string(mnt.join("c/d/r2")).unwrap(), "file 1");
        for i in 3..10 {
            assert_eq!(
                fs::read_to_string(mnt.join(format!("c/d/r{i}"))).unwrap(),
                format!("file {i}")
            );
        }
        for i in 10..20 {
            assert_eq!(
                fs::read_to_string(mnt.join(format!("c/r{i}"))).unwrap(),
                format!("file {i}")
            );
        }
        bench.remount();
    }
    fs::remove_dir_all(mnt.join("a")).unwrap();
    fs::remove_dir_all(mnt.join("c")).unwrap();
    bench.unmount();
    let left: Vec<_> = walk(&bench.vault());
    assert_eq!(
        left.len(),
        2,
        "only the vault header and the keystore are left: {left:?}"
    );
}

#[test]
fn exchange_swaps_files_across_directories() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let mnt = bench.mnt();
    fs::create_dir(mnt.join("d")).unwrap();
    fs::write(mnt.join("one"), "1").unwrap();
    fs::write(mnt.join("d/two"), "22").unwrap();
    bench.remount();
    renameat_with(CWD, mnt.join("one"), CWD, mnt.join("d/two"), RenameFlags::EXCHANGE).unwrap();
    let again = renameat_with(CWD, mnt.join("one"), CWD, mnt.join("d/two"), RenameFlags::NOREPLACE);
    assert_eq!(again.unwrap_err(), rustix::io::Errno::EXIST);
    for _ in 0..2 {
        assert_eq!(fs::read_to_string(mnt.join("one")).unwrap(), "22");
        assert_eq!(fs::read_to_string(mnt.join("d/two")).unwrap(), "1");
        bench.remount();
    }
}

#[test]
fn files_without_permissions_can_be_written_by_who_creates_them() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let path = bench.mnt().join("locked");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o0)
        .open(&path)
        .unwrap();
    file.write_all(b"content").unwrap();
    drop(file);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0);
    bench.remount();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"content");
}

#[test]
fn who_has_unmounted_finds_the_process_ended_whatever_the_mount_is_called() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::new();
    for options in [&["--fsname", "other"], &["--ro", "--fsname=other"]] {
        bench.mount(options);
        if options[0] != "--ro" {
            fs::write(bench.mnt().join("file"), vec![7; 30 << 20]).unwrap();
        }
        assert!(bench.run_unmount().status.success());
        bench.has_ended();
    }
}

#[test]
fn who_unmounts_does_not_wait_for_another_place_of_the_mount() {
    if !can_mount() {
        return;
    }
    if !is_root() {
        eprintln!("SKIPPED: only root can bind a mount to another place");
        return;
    }
    let mut bench = Bench::mounted();
    fs::write(bench.mnt().join("file"), b"content").unwrap();
    let place = bench.plain().join("place");
    fs::create_dir(&place).unwrap();
    mount_bind(bench.mnt(), &place).unwrap();
    let output = bench.run_unmount();
    assert!(output.status.success());
    let said = format!(
        "hushfs: it goes on at {}, where it is mounted as well\n",
        place.display()
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), said);
    assert_eq!(fs::read(place.join("file")).unwrap(), b"content");
    unmount(&place, UnmountFlags::empty()).unwrap();
    bench.wait_for_end();
}

#[test]
fn a_mount_that_was_detached_leaves_alone_what_is_mounted_in_its_place() {
    if !can_mount() {
        return;
    }
    if !is_root() {
        eprintln!("SKIPPED: only root can mount something in the place of another mount");
        return;
    }
    let mut bench = Bench::mounted();
    fs::write(bench.mnt().join("file"), b"in use").unwrap();
    let in_use = fs::File::open(bench.mnt().join("file")).unwrap();
    let pid = Pid::from_raw(bench.pid() as i32).unwrap();
    let terminate = |expected: &str| {
        kill_process(pid, Signal::TERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !bench.log().contains(expected) {
            assert!(Instant::now() < deadline, "{expected:?} is not in: {}", bench.log());
            thread::sleep(Duration::from_millis(20));
        }
    };
    terminate("detached");
    mount("none", bench.mnt(), "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(bench.mnt().join("of another"), b"").unwrap();
    terminate("not mounted on");
    assert!(bench.mnt().join("of another").exists());
    unmount(bench.mnt(), UnmountFlags::DETACH).unwrap();
    drop(in_use);
    bench.wait_for_end();
}

#[test]
fn a_sparse_file_keeps_its_holes() {
    use rustix::fs::{SeekFrom as At, seek};
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let path = bench.mnt().join("sparse");
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    const FAR: u64 = 10 << 30;
    file.write_all_at(b"start", 0).unwrap();
    file.write_all_at(b"end", FAR).unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().len(), FAR + 3);
    assert!(
        file.metadata().unwrap().blocks() < 1000,
        "10 GiB of nothing take no space"
    );
    assert_eq!(seek(&file, At::Data(1 << 20)).unwrap(), FAR);
    assert!(seek(&file, At::Hole(0)).unwrap() <= 1 << 20);
    drop(file);
    bench.remount();
    let file = fs::File::open(&path).unwrap();
    let mut bytes = [1; 5];
    file.read_exact_at(&mut bytes, FAR - 2).unwrap();
    assert_eq!(&bytes, b"\0\0end");
    file.read_exact_at(&mut bytes, 5 << 30).unwrap();
    assert_eq!(bytes, [0; 5]);
}

#[test]
fn extended_attributes_are_kept_and_hidden() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let path = bench.mnt().join("f");
    fs::write(&path, "x").unwrap();
    let long = format!("user.{}", "n".repeat(250));
    for name in ["user.colour", &long] {
        rustix::fs::setxattr(&path, name, b"red", rustix::fs::XattrFlags::empty()).unwrap();
    }
    let nameless = rustix::fs::setxattr(&path, "user.", b"red", rustix::fs::XattrFlags::empty());
    assert_eq!(nameless, Err(rustix::io::Errno::INVAL));
    bench.remount();
    let mut value = [0; 10];
    for name in ["user.colour", &long] {
        assert_eq!(rustix::fs::getxattr(&path, name, &mut value).unwrap(), 3);
    }
    let mut names = [0; 1000];
    let len = rustix::fs::listxattr(&path, &mut names).unwrap();
    assert_eq!(len, "user.colour".len() + 1 + 255 + 1);
    rustix::fs::removexattr(&path, "user.colour").unwrap();
    assert_eq!(
        rustix::fs::getxattr(&path, "user.colour", &mut value).unwrap_err(),
        rustix::io::Errno::NODATA
    );
}

#[test]
fn times_before_1970_and_with_nanoseconds_are_kept() {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let path = bench.mnt().join("old");
    fs::write(&path, "x").unwrap();
    for (tv_sec, tv_nsec) in [(-2, 800_000_000), (-1_000_000, 1), (0, 0), (4_000_000_000, 999_999_999)] {
        let time = Timespec { tv_sec, tv_nsec };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
        bench.remount();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (tv_sec, tv_nsec));
        assert_eq!((meta.atime(), meta.atime_nsec()), (tv_sec, tv_nsec));
    }
}

#[test]
fn sealing_does_not_change_the_time_of_modification() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let path = bench.mnt().join("f");
    fs::write(&path, "x").unwrap();
    fs::File::open(&path).unwrap().sync_all().unwrap();
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    bench.remount();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
}

#[test]
fn a_file_moved_away_and_back_at_once_keeps_its_header() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let mnt = bench.mnt();
    for dir in ["a", "b"] {
        fs::create_dir(mnt.join(dir)).unwrap();
    }
    let (here, there) = (mnt.join("a/file"), mnt.join("b/file"));
    fs::write(&here, "still here").unwrap();
    // Each move stores a header in one directory and removes the one in the other: a removal that comes late takes the next move's.
    for _ in 0..2000 {
        fs::rename(&here, &there).unwrap();
        fs::rename(&there, &here).unwrap();
    }
    bench.remount();
    assert_eq!(fs::read_to_string(&here).unwrap(), "still here");
}

#[test]
fn a_file_moved_while_its_first_bytes_are_written_keeps_its_header() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let mnt = bench.mnt();
    for dir in ["a", "b"] {
        fs::create_dir(mnt.join(dir)).unwrap();
    }
    // Closing has the kernel write without a lock that a rename would wait for: the header must be where the name is then.
    for i in 0..2000 {
        let name = format!("file-{i}");
        let mut file = fs::File::create(mnt.join("a").join(&name)).unwrap();
        file.write_all(name.as_bytes()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| drop(file));
            let start = std::time::Instant::now();
            while start.elapsed().as_micros() < i % 100 * 3 {
                std::hint::spin_loop();
            }
            fs::rename(mnt.join("a").join(&name), mnt.join("b").join(&name)).unwrap();
        });
    }
    bench.remount();
    for i in 0..2000 {
        let name = format!("file-{i}");
        assert_eq!(fs::read_to_string(mnt.join("b").join(&name)).unwrap(), name);
    }
}

#[test]
fn a_new_file_that_a_power_cut_left_as_zeros_can_be_written_again() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let paths = ["a", "b", "c"].map(|name| bench.mnt().join(name));
    for path in &paths {
        fs::write(path, "never synced").unwrap();
    }
    let inodes = paths.each_ref().map(|path| fs::metadata(path).unwrap().ino());
    bench.unmount();
    for entry in fs::read_dir(bench.vault()).unwrap() {
        let entry = entry.unwrap();
        if inodes.contains(&entry.metadata().unwrap().ino()) {
            let len = entry.metadata().unwrap().len();
            fs::write(entry.path(), vec![0; len as usize]).unwrap();
        }
    }
    let checked = bench.run("fsck", &[]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(
        checked.status.success() && said.matches("never synced").count() == 3,
        "{said}"
    );
    bench.mount_again();
    let [a, b, c] = &paths;
    assert!(fs::read(a).unwrap().is_empty());
    fs::write(a, "again").unwrap();
    fs::File::options()
        .append(true)
        .open(b)
        .unwrap()
        .write_all(b"more")
        .unwrap();
    fs::remove_file(c).unwrap();
    bench.remount();
    assert_eq!(fs::read_to_string(a).unwrap(), "again");
    assert!(fs::read(b).unwrap().ends_with(b"more"));
    bench.unmount();
    let verified = bench.run("verify", &[]);
    assert!(verified.status.success(), "{verified:?}");
}
