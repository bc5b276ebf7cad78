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

/// Who looks at every block of a hole is busy for an hour.
#[test]
fn cutting_sealing_and_verifying_take_no_time_for_a_hole_of_terabytes() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let path = bench.mnt().join("sparse");
    let file = fs::File::create(&path).unwrap();
    file.write_all_at(b"start", 0).unwrap();
    match file.set_len(8 << 40) {
        // The filesystem under the vault has its own limit.
        Err(error) if error.raw_os_error() == Some(libc::EFBIG) => return,
        result => result.unwrap(),
    }
    file.write_all_at(b"middle", 4 << 40).unwrap();
    drop(file);
    bench.remount();
    bench.unmount();
    let started = Instant::now();
    assert!(bench.run("verify", &[]).status.success());
    bench.mount_again();
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    let mut buf = [1; 7];
    file.read_exact_at(&mut buf, 4 << 40).unwrap();
    assert_eq!(&buf, b"middle\0");
    file.set_len((4 << 40) + 3).unwrap();
    file.set_len(3).unwrap();
    drop(file);
    bench.remount();
    assert_eq!(fs::read(&path).unwrap(), b"sta");
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}
