//! Large numbers: of entries, names, links, levels.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::support::{Bench, can_mount};

#[test]
fn a_directory_of_many_entries_lists_each_once() {
    if !can_mount() {
        return;
    }
    // Two hundred thousand by hand, with HUSHFS_LARGE=1: creating them takes a minute.
    let count = if std::env::var_os("HUSHFS_LARGE").is_some() {
        200_000
    } else {
        5_000
    };
    let mut bench = Bench::mounted();
    let dir = bench.mnt().join("many");
    fs::create_dir(&dir).unwrap();
    for i in 0..count {
        fs::write(dir.join(format!("entry-{i}")), "").unwrap();
    }
    for _ in 0..2 {
        let mut names: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        bench.remount();
    }
    fs::remove_dir_all(&dir).unwrap();
    assert!(!dir.exists());
}

#[test]
fn names_of_255_bytes_work_in_every_operation() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let mnt = bench.mnt();
    let name = |c: char| mnt.join(c.to_string().repeat(255));
    fs::write(name('f'), "long").unwrap();
    fs::create_dir(name('d')).unwrap();
    fs::rename(name('f'), name('g')).unwrap();
    fs::hard_link(name('g'), name('h')).unwrap();
    fs::rename(name('g'), name('d').join("short")).unwrap();
    fs::rename(name('d').join("short"), name('d').join("i".repeat(200))).unwrap();
    std::os::unix::fs::symlink("t".repeat(4095), name('l')).unwrap();
    fs::rename(name('l'), name('d').join("l".repeat(161))).unwrap();
    for _ in 0..2 {
        assert_eq!(fs::read_to_string(name('h')).unwrap(), "long");
        assert_eq!(fs::read_to_string(name('d').join("i".repeat(200))).unwrap(), "long");
        let target = fs::read_link(name('d').join("l".repeat(161))).unwrap();
        assert_eq!(target, PathBuf::from("t".repeat(4095)));
        bench.remount();
    }
    fs::remove_file(name('h')).unwrap();
    fs::remove_dir_all(name('d')).unwrap();
    assert_eq!(fs::read_dir(&mnt).unwrap().count(), 0);
    let too_long = fs::write(mnt.join("x".repeat(256)), "").unwrap_err();
    assert_eq!(too_long.raw_os_error(), Some(libc::ENAMETOOLONG));
    bench.unmount();
    // One name of two went to another directory: nobody could tell that the header here had served its last.
    let left: Vec<_> = fs::read_dir(bench.vault())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.len() <= 3, "{left:?}");
}

#[test]
fn five_thousand_links_to_one_file() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let mnt = bench.mnt();
    fs::write(mnt.join("0"), "shared").unwrap();
    for dir in 0..5 {
        fs::create_dir(mnt.join(format!("d{dir}"))).unwrap();
    }
    for i in 1..5_000 {
        fs::hard_link(mnt.join("0"), mnt.join(format!("d{}/{i}", i % 5))).unwrap();
    }
    assert_eq!(fs::metadata(mnt.join("0")).unwrap().nlink(), 5_000);
    fs::write(mnt.join("d3/3333"), "changed").unwrap();
    bench.remount();
    fs::remove_file(mnt.join("0")).unwrap();
    assert_eq!(fs::read_to_string(mnt.join("d4/4")).unwrap(), "changed");
    for dir in 0..4 {
        fs::remove_dir_all(mnt.join(format!("d{dir}"))).unwrap();
    }
    assert_eq!(fs::read_to_string(mnt.join("d4/4999")).unwrap(), "changed");
    bench.remount();
    assert_eq!(fs::read_to_string(mnt.join("d4/4999")).unwrap(), "changed");
}

#[test]
fn paths_as_long_as_the_kernel_takes_them() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let mut path = bench.mnt();
    // Each level adds two bytes; the last component makes it just fit.
    while path.as_os_str().len() < 4000 {
        path.push("d");
    }
    fs::create_dir_all(&path).unwrap();
    let rest = 4095 - path.as_os_str().len() - 1;
    path.push("f".repeat(rest));
    fs::write(&path, "deep").unwrap();
    assert_eq!(path.as_os_str().len(), 4095);
    bench.remount();
    assert_eq!(fs::read_to_string(&path).unwrap(), "deep");
    fs::remove_dir_all(bench.mnt().join("d")).unwrap();
}

#[test]
fn a_hole_of_terabytes_is_cut_off_at_once() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let file = fs::File::create_new(bench.mnt().join("huge")).unwrap();
    let size = 4 << 40;
    file.set_len(size).unwrap();
    for offset in [0, size / 2, size - 5000] {
        file.write_all_at(b"here", offset).unwrap();
    }
    file.sync_all().unwrap();
    let started = Instant::now();
    file.set_len(size / 4).unwrap();
    // Looking at every block of the hole took minutes.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}
