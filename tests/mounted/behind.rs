//! What someone who can write to the vault does to it while it is mounted, and takes back before anybody opens a file.

use std::{
    fs,
    io::Write,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::fs::{AtFlags, CWD, RenameFlags, StatxFlags, renameat_with, statx};

use crate::support::{Bench, can_mount, is_root};

/// Who may change one of the files.
const OWNER: u32 = 54_321;

/// The file on disk of one in the mount.
fn on_disk(bench: &Bench, path: &str) -> PathBuf {
    let ino = fs::symlink_metadata(bench.mnt().join(path)).unwrap().ino();
    let mut directories = vec![bench.vault()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            if entry.metadata().unwrap().ino() == ino {
                return entry.path();
            }
            if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path());
            }
        }
    }
    panic!("{path} is not in the vault");
}

fn exchange(one: &Path, other: &Path) {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
}

/// Has the kernel ask for attributes; what it is told may be an error.
fn ask(path: &Path) {
    let _ = statx(CWD, path, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS);
}

/// The files in a vault, known on disk, in a mount that has looked none of them up.
fn mounted_with(files: &[(&str, &[u8])]) -> (Bench, Vec<PathBuf>) {
    let mut bench = Bench::mounted();
    for (path, content) in files {
        if let Some(parent) = Path::new(path).parent() {
            fs::create_dir_all(bench.mnt().join(parent)).unwrap();
        }
        fs::write(bench.mnt().join(path), content).unwrap();
    }
    let disk = files.iter().map(|(path, _)| on_disk(&bench, path)).collect();
    bench.remount();
    (bench, disk)
}

#[test]
fn a_name_that_was_another_files_for_a_moment_does_not_stay_it() {
    if !can_mount() {
        return;
    }
    let (bench, disk) = mounted_with(&[("x", b"text of x"), ("y", b"text of y"), ("d/z", b"text of z")]);
    for other in [1, 2] {
        let (mnt, name) = (bench.mnt(), ["x", "y", "d/z"][other]);
        // Where the other is known already too.
        for known in [false, true] {
            if known {
                ask(&mnt.join(name));
            }
            exchange(&disk[0], &disk[other]);
            ask(&mnt.join("x"));
            exchange(&disk[0], &disk[other]);
            let (read, of_x) = (fs::read_to_string(mnt.join(name)), fs::read_to_string(mnt.join("x")));
            assert_eq!(read.unwrap(), format!("text of {}", &name[name.len() - 1..]));
            assert_eq!(of_x.unwrap(), "text of x");
        }
    }
}

#[test]
fn a_size_that_was_so_for_a_moment_does_not_stay() {
    if !can_mount() {
        return;
    }
    let (long, short, log) = (vec![1; 5419], vec![2; 100], vec![3; 9000]);
    let (bench, disk) = mounted_with(&[("long", &long), ("short", &short), ("log", &log)]);
    let sizes = [256 + 4124, 256 + 28 + 3000, 0];
    for ((disk, name), size) in disk.iter().zip(["long", "short", "log"]).zip(sizes) {
        let (before, modified) = (fs::read(disk).unwrap(), fs::metadata(disk).unwrap().modified().unwrap());
        let file = fs::OpenOptions::new().write(true).open(disk).unwrap();
        file.set_len(size).unwrap();
        ask(&bench.mnt().join(name));
        fs::write(disk, before).unwrap();
        file.set_modified(modified).unwrap();
    }
    assert!(fs::read(bench.mnt().join("long")).unwrap() == long);
    assert!(fs::read(bench.mnt().join("short")).unwrap() == short);
    let mut end = fs::OpenOptions::new()
        .append(true)
        .open(bench.mnt().join("log"))
        .unwrap();
    end.write_all(b"appended").unwrap();
    drop(end);
    assert!(fs::read(bench.mnt().join("log")).unwrap() == [&log[..], b"appended"].concat());
}

#[test]
fn attributes_are_those_of_the_file_that_is_meant() {
    if !can_mount() {
        return;
    }
    if !is_root() {
        eprintln!("SKIPPED: only root mounts for others");
        return;
    }
    let (mut bench, disk) = mounted_with(&[("mine", b"text of mine"), ("secret", b"text of secret")]);
    let (mine, secret) = (bench.mnt().join("mine"), bench.mnt().join("secret"));
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&mine, fs::Permissions::from_mode(0o666)).unwrap();
    chown(&mine, Some(OWNER), Some(OWNER)).unwrap();
    bench.unmount();
    // Others have to reach the mountpoint.
    fs::set_permissions(bench.mnt().parent().unwrap(), PermissionsExt::from_mode(0o711)).unwrap();
    bench.mount(&["--allow-other"]);
    fs::set_permissions(bench.mnt(), PermissionsExt::from_mode(0o755)).unwrap();
    // The kernel knows both, and nobody has them open.
    ask(&mine);
    ask(&secret);
    exchange(&disk[0], &disk[1]);
    ask(&secret);
    let mut change = Command::new("chmod");
    let changed = change
        .arg("0777")
        .arg("mine")
        .current_dir(bench.mnt())
        .uid(OWNER)
        .gid(OWNER);
    changed.stderr(Stdio::null()).status().unwrap();
    exchange(&disk[0], &disk[1]);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&disk[1]), 0o600, "on disk");
    // When it is opened the kernel has to look it up again.
    assert_eq!(fs::read_to_string(&secret).unwrap(), "text of secret");
    assert_eq!(mode(&secret), 0o600, "as the kernel has it");
}

#[test]
fn a_directory_is_not_shown_where_someone_else_has_moved_it() {
    if !can_mount() {
        return;
    }
    let (bench, _) = mounted_with(&[("public/file", b"1"), ("private/file", b"2")]);
    let disk = ["public", "private"].map(|name| on_disk(&bench, name));
    let file = bench.mnt().join("public/file");
    // Known by their names, with what is in them.
    assert_eq!(fs::read_to_string(&file).unwrap(), "1");
    assert_eq!(fs::read_to_string(bench.mnt().join("private/file")).unwrap(), "2");
    exchange(&disk[0], &disk[1]);
    ask(&bench.mnt().join("public"));
    assert_ne!(fs::read_to_string(&file).unwrap_or_default(), "2");
    exchange(&disk[0], &disk[1]);
    ask(&bench.mnt().join("private"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "1");
    assert_eq!(fs::read_to_string(bench.mnt().join("private/file")).unwrap(), "2");
}
