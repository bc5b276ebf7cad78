//! What can go wrong around a vault: each with its one line, its exit code, and nothing lost.

mod support;

use std::{
    fs,
    io::Write,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::mount::UnmountFlags;
use support::{Bench, HUSHFS, Rng, can_mount, which};
use tempfile::TempDir;

/// Asserts that a command ended with this code and one line that says so.
#[track_caller]
fn assert_fails(output: &Output, code: i32, word: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains(word), "{word:?} is not in: {stderr}");
    assert!(output.stdout.is_empty());
}

/// A test that cannot run says so by name; where it must run, that is a failure.
fn skip(test: &str, why: &str) {
    assert!(
        std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none(),
        "{test} must run here, but: {why}"
    );
    eprintln!("SKIPPED: {test}: {why}");
}

/// Tells whether the test runs as root, with mounts, and with these programs.
fn has(test: &str, programs: &[&str]) -> bool {
    if !can_mount() {
        return false;
    }
    if !rustix::process::geteuid().is_root() {
        skip(test, "needs root");
        return false;
    }
    if let Some(missing) = programs.iter().find(|program| which(program).is_none()) {
        skip(test, &format!("{missing} is not installed"));
        return false;
    }
    true
}

/// A mount in the foreground, which is expected to fail.
fn mount_fails(bench: &Bench, options: &[&str]) -> Output {
    let mut command = bench.command("mount");
    command.arg("--foreground").args(options);
    command.arg(bench.vault()).arg(bench.mnt()).output().unwrap()
}

/// Runs a shell script in a mount namespace of its own: $1 is the program, $2 the vault, $3 the mountpoint, $4 the file with the passphrase.
fn in_namespace(bench: &Bench, script: &str) -> Output {
    Command::new("unshare")
        .args(["-m", "sh", "-ec", script, "sh", HUSHFS])
        .args([bench.vault(), bench.mnt(), bench.passfile()])
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A vault with a file, sealed.
fn bench_with_file() -> Bench {
    let mut bench = Bench::mounted();
    fs::write(bench.mnt().join("file"), "kept").unwrap();
    bench.unmount();
    bench
}

fn assert_kept(bench: &mut Bench) {
    bench.mount(&[]);
    assert_eq!(fs::read_to_string(bench.mnt().join("file")).unwrap(), "kept");
    bench.unmount();
}

#[test]
fn secrets_that_do_not_fit() {
    if !can_mount() {
        return;
    }
    let mut bench = bench_with_file();
    let right = fs::read(bench.passfile()).unwrap();
    fs::write(bench.passfile(), "wrong\n").unwrap();
    assert_fails(&mount_fails(&bench, &[]), 3, "wrong passphrase");
    assert_fails(&bench.run("ls", &[]), 3, "wrong passphrase");
    fs::write(bench.passfile(), "\n").unwrap();
    assert_fails(&mount_fails(&bench, &[]), 3, "empty");
    fs::write(bench.passfile(), "").unwrap();
    assert_fails(&mount_fails(&bench, &[]), 1, "no line");
    fs::write(bench.passfile(), right).unwrap();
    assert_kept(&mut bench);
}

#[test]
fn directories_that_are_no_vault_of_ours() {
    if !can_mount() {
        return;
    }
    let mut bench = bench_with_file();
    let path = bench.vault().join("vault.hush");
    let right = fs::read(&path).unwrap();
    let mut changed = right.clone();
    changed[60] ^= 1;
    fs::write(&path, &changed).unwrap();
    let output = mount_fails(&bench, &[]);
    assert_fails(&output, 4, "");
    let mut newer = right.clone();
    newer[8] = 3;
    fs::write(&path, &newer).unwrap();
    assert_fails(&mount_fails(&bench, &[]), 5, "newer");
    fs::remove_file(&path).unwrap();
    assert_fails(&mount_fails(&bench, &[]), 4, "vault.hush is missing");
    fs::write(&path, &right).unwrap();
    let keystore = bench.vault().join("keystore.hush");
    let kept = fs::read(&keystore).unwrap();
    fs::remove_file(&keystore).unwrap();
    assert_fails(&mount_fails(&bench, &[]), 4, "no keystore.hush in it");
    fs::write(&keystore, kept).unwrap();
    for dir in [bench.plain(), bench.plain().join("missing"), bench.passfile()] {
        let output = bench.command("mount").arg(dir).arg(bench.mnt()).output().unwrap();
        assert_fails(&output, 4, "");
    }
    assert_kept(&mut bench);
}

#[test]
fn a_vault_that_is_mounted_already() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    fs::write(bench.mnt().join("file"), "kept").unwrap();
    let mut second = bench.command("mount");
    let output = second.arg(bench.vault()).arg(bench.plain()).output().unwrap();
    assert_fails(&output, 6, "in use");
    assert_fails(&bench.run("verify", &[]), 8, "in use");
    assert_eq!(fs::read_to_string(bench.mnt().join("file")).unwrap(), "kept");
    bench.unmount();
    assert_kept(&mut bench);
}

#[test]
fn mountpoints_that_cannot_be_used() {
    if !can_mount() {
        return;
    }
    let mut bench = bench_with_file();
    let other = Bench::mounted();
    let in_vault = bench.vault().join("inside");
    fs::create_dir(&in_vault).unwrap();
    for (mountpoint, word) in [
        (bench.plain().join("missing"), "No such file"),
        (bench.passfile(), "Not a directory"),
        (other.mnt(), "already"),
        (in_vault.clone(), "in the vault itself"),
    ] {
        let mut command = bench.command("mount");
        let output = command.arg(bench.vault()).arg(&mountpoint).output().unwrap();
        assert_fails(&output, 7, word);
    }
    fs::remove_dir(in_vault).unwrap();
    let output = Command::new(HUSHFS).arg("unmount").arg(bench.plain()).output().unwrap();
    assert_fails(&output, 7, "no vault is mounted");
    assert_kept(&mut bench);
}

#[test]
fn without_the_fuse_device() {
    if !has("without_the_fuse_device", &["unshare"]) {
        return;
    }
    let mut bench = bench_with_file();
    let mount = r#"exec "$1" mount --foreground --passfile "$4" "$2" "$3""#;
    let missing = in_namespace(&bench, &format!("mount -t tmpfs none /dev; {mount}"));
    assert_fails(&missing, 8, "/dev/fuse");
    // Something else in its place: the kernel does not take it.
    let other = in_namespace(&bench, &format!("mount --bind /dev/null /dev/fuse; {mount}"));
    let stderr = String::from_utf8_lossy(&other.stderr);
    assert!(matches!(other.status.code(), Some(1 | 8)), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert_kept(&mut bench);
}

#[test]
fn a_backing_directory_that_cannot_be_written() {
    const TEST: &str = "a_backing_directory_that_cannot_be_written";
    if !has(TEST, &["unshare"]) {
        return;
    }
    let mut bench = bench_with_file();
    let output = in_namespace(
        &bench,
        r#"
        mount --bind "$2" "$2"
        mount -o remount,ro,bind "$2"
        "$1" mount --passfile "$4" "$2" "$3"
        cat "$3/file"
        ! (echo changed > "$3/file") 2> "$4.errors"
        ! (echo new > "$3/new") 2>> "$4.errors"
        ! mkdir "$3/dir" 2>> "$4.errors"
        "$1" unmount "$3"
        "#,
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"kept");
    let errors = fs::read_to_string(bench.passfile().with_extension("errors")).unwrap();
    assert_eq!(errors.matches("Read-only file system").count(), 3, "{errors}");
    assert_kept(&mut bench);
}

/// A vault with a directory that has a file in it.
fn bench_with_directory() -> Bench {
    let mut bench = Bench::mounted();
    fs::create_dir(bench.mnt().join("dir")).unwrap();
    fs::write(bench.mnt().join("dir/file"), "kept").unwrap();
    bench.unmount();
    bench
}

#[test]
fn epochs_of_what_is_hidden_by_a_mount_are_not_retired() {
    const TEST: &str = "epochs_of_what_is_hidden_by_a_mount_are_not_retired";
    if !has(TEST, &["unshare"]) {
        return;
    }
    let mut bench = bench_with_directory();
    // What bears no name of the vault hides nothing.
    fs::create_dir(bench.vault().join(".snapshots")).unwrap();
    let output = in_namespace(
        &bench,
        r#"
        "$1" vault rotate --passfile "$4" "$2"
        mount -t tmpfs none "$2/.snapshots"
        for dir in "$2"/*/; do mount -t tmpfs none "$dir"; done
        exec "$1" rewrap --retire --passfile "$4" "$2"
        "#,
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(9), "{stderr}");
    assert_eq!(
        stderr.matches("another filesystem is in this place").count(),
        1,
        "{stderr}"
    );
    bench.mount(&[]);
    assert_eq!(fs::read_to_string(bench.mnt().join("dir/file")).unwrap(), "kept");
    bench.unmount();
    let output = in_namespace(
        &bench,
        r#"
        mount -t tmpfs none "$2/.snapshots"
        exec "$1" rewrap --retire --passfile "$4" "$2"
        "#,
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("1 epoch retired"), "{stderr}");
}

#[test]
fn a_snapshot_says_what_is_hidden_by_a_mount() {
    const TEST: &str = "a_snapshot_says_what_is_hidden_by_a_mount";
    if !has(TEST, &["unshare"]) {
        return;
    }
    let bench = bench_with_directory();
    let output = in_namespace(
        &bench,
        r#"
        for dir in "$2"/*/; do mount -t tmpfs none "$dir"; done
        exec "$1" snapshot --passfile "$4" -o "$4.snapshot" "$2"
        "#,
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(9), "{stderr}");
    assert!(stderr.contains("dir: another filesystem is in this place"), "{stderr}");
}

#[test]
fn an_overlay_of_two_filesystems_is_refused() {
    const TEST: &str = "an_overlay_of_two_filesystems_is_refused";
    if !has(TEST, &["unshare"]) {
        return;
    }
    let bench = bench_with_file();
    let overlay = r#"
        mount -t tmpfs none "$3"
        mkdir "$3/upper" "$3/work" "$3/merged"
        mount -t overlay -o "lowerdir=$2,upperdir=$3/upper,workdir=$3/work" none "$3/merged" || exit 77
        "#;
    for (arguments, under) in [("ls", ""), ("mount --foreground", ""), ("init", "/new")] {
        let mountpoint = if under.is_empty() && arguments != "ls" {
            " /mnt"
        } else {
            ""
        };
        let script = format!(r#"{overlay} exec "$1" {arguments} --passfile "$4" "$3/merged{under}"{mountpoint}"#);
        let output = in_namespace(&bench, &script);
        if output.status.code() == Some(77) {
            return skip(TEST, "no overlay can be mounted");
        }
        assert_fails(&output, 1, "on another device than their directory");
    }
}

/// A small filesystem, unmounted at the end.
struct SmallDisk {
    at: PathBuf,
    /// Where its image lies, if it has one.
    images: Option<TempDir>,
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

#[test]
fn a_full_disk_loses_nothing_that_was_synced() {
    if !has("a_full_disk_loses_nothing_that_was_synced", &["mount"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "none"])
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(mount.success());
    // Declared first, so that it goes last.
    let _disk = SmallDisk {
        at: dir.path().to_owned(),
        images: None,
    };
    let mut bench = Bench::in_dir(dir, &[]);
    bench.mount(&[]);
    let mnt = bench.mnt();
    let synced: Vec<u8> = (0..1_000_000_u32).map(|i| (i / 7) as u8).collect();
    let mut file = fs::File::create(mnt.join("synced")).unwrap();
    file.write_all(&synced).unwrap();
    file.sync_all().unwrap();
    drop(file);
    fs::write(mnt.join("spare"), vec![1; 1_000_000]).unwrap();
    let mut grown = fs::File::create(mnt.join("grown")).unwrap();
    let mut last = Ok(());
    for _ in 0..32 {
        last = grown.write_all(&[9; 500_000]).and_then(|()| grown.sync_all());
        if last.is_err() {
            break;
        }
    }
    assert_eq!(last.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    drop(grown);
    bench.remount();
    assert!(fs::read(mnt.join("synced")).unwrap() == synced);
    assert!(fs::read(mnt.join("spare")).unwrap() == vec![1; 1_000_000]);
    // What fitted of the file that did not is what was written, or zeros where pages of the cache never got through.
    let grown = fs::read(mnt.join("grown")).unwrap();
    assert!(grown.iter().all(|&byte| byte == 9 || byte == 0), "garbage");
    fs::remove_file(mnt.join("spare")).unwrap();
    fs::write(mnt.join("again"), vec![3; 500_000]).unwrap();
    fs::File::open(mnt.join("again")).unwrap().sync_all().unwrap();
    bench.remount();
    assert!(fs::read(mnt.join("again")).unwrap() == vec![3; 500_000]);
    bench.unmount();
    let verify = bench.run("verify", &[]);
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
}

/// The file that is a disk.
const IMAGE: &str = "image";

/// Makes an ext4 of so many megabytes.
fn ext4(megabytes: u64) -> (SmallDisk, TempDir) {
    disk("mkfs.ext4", megabytes)
}

/// Makes a filesystem by this program, of so many megabytes, and mounts it.
fn disk(mkfs: &str, megabytes: u64) -> (SmallDisk, TempDir) {
    let (dir, images) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let image = images.path().join(IMAGE);
    fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
    for mut command in [Command::new(mkfs), Command::new("mount")] {
        let options: &[&str] = match command.get_program().to_str() {
            Some("mount") => &["-o", "loop"],
            Some("mkfs.ext4") => &["-q", "-F"],
            _ => &["-q"],
        };
        let is_mount = command.get_program() == "mount";
        command.args(options).arg(&image).args(is_mount.then_some(dir.path()));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let at = dir.path().to_owned();
    let images = Some(images);
    (SmallDisk { at, images }, dir)
}

#[test]
fn what_was_changed_is_on_disk_when_a_vault_is_unmounted() {
    if !has(
        "what_was_changed_is_on_disk_when_a_vault_is_unmounted",
        &["mount", "mkfs.ext4"],
    ) {
        return;
    }
    let (disk, dir) = ext4(24);
    let mut bench = Bench::in_dir(dir, &[]);
    bench.mount(&[]);
    fs::write(bench.mnt().join("goes"), b"").unwrap();
    bench.remount();
    fs::create_dir(bench.mnt().join("directory")).unwrap();
    fs::remove_file(bench.mnt().join("goes")).unwrap();
    bench.unmount();
    // What a power cut leaves now.
    let cut = TempDir::new().unwrap();
    let image = cut.path().join(IMAGE);
    fs::copy(disk.images.as_ref().unwrap().path().join(IMAGE), &image).unwrap();
    let left = TempDir::new().unwrap();
    let output = Command::new("mount")
        .args(["-o", "loop"])
        .arg(&image)
        .arg(left.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let _left = SmallDisk {
        at: left.path().to_owned(),
        images: Some(cut),
    };
    let names = Command::new(HUSHFS)
        .args(["ls", "--passfile"])
        .arg(bench.passfile())
        .arg(left.path().join("vault"))
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&names.stdout),
        "directory\n",
        "{}",
        String::from_utf8_lossy(&names.stderr)
    );
}

#[test]
fn on_btrfs_nothing_goes_that_a_name_may_still_need_after_a_power_cut() {
    let test = "on_btrfs_nothing_goes_that_a_name_may_still_need_after_a_power_cut";
    if !has(test, &["mount", "mkfs.btrfs"]) {
        return;
    }
    if !fs::read_to_string("/proc/filesystems").unwrap().contains("\tbtrfs\n") {
        // Nothing that could be installed.
        eprintln!("SKIPPED: {test}: this kernel has no Btrfs");
        return;
    }
    let (_disk, dir) = disk("mkfs.btrfs", 128);
    let mut bench = Bench::in_dir(dir, &[]);
    bench.mount(&[]);
    let mnt = bench.mnt();
    let (long, target) = ("n".repeat(250), "t".repeat(2000));
    for directory in ["a", "b"] {
        fs::create_dir(mnt.join(directory)).unwrap();
    }
    // In the directories `a` and `b`.
    let own_files = |bench: &Bench| {
        let entries = |directory: &Path| fs::read_dir(directory).unwrap().map(Result::unwrap);
        let inside = entries(&bench.vault())
            .filter(|entry| entry.file_type().unwrap().is_dir())
            .flat_map(|directory| entries(&directory.path()));
        let names = inside.map(|entry| entry.file_name().into_string().unwrap());
        names
            .filter(|name| name.ends_with(".hush") && name != "dir.hush")
            .count()
    };
    for name in ["removed", "moved", "there and back", &long] {
        fs::write(mnt.join("a").join(name), name).unwrap();
    }
    std::os::unix::fs::symlink(&target, mnt.join("a/link")).unwrap();
    rustix::fs::syncfs(fs::File::open(bench.vault()).unwrap()).unwrap();
    bench.remount();
    // Headers, and the files of the long name and of the long target.
    assert_eq!(own_files(&bench), 4 + 1 + 1);
    fs::remove_file(mnt.join("a/removed")).unwrap();
    fs::remove_file(mnt.join("a/link")).unwrap();
    fs::rename(mnt.join("a/moved"), mnt.join("b/moved")).unwrap();
    fs::rename(mnt.join("a/there and back"), mnt.join("b/there and back")).unwrap();
    fs::rename(mnt.join("b/there and back"), mnt.join("a/there and back")).unwrap();
    fs::rename(mnt.join("a").join(&long), mnt.join("a/short")).unwrap();
    fs::rename(mnt.join("a/short"), mnt.join("a").join(&long)).unwrap();
    // Whatever of these changes is lost, each name has what it needs: in `a` all that was there, in `b` two headers more.
    assert_eq!(
        own_files(&bench),
        6 + 2,
        "something went before it could be known that nothing needs it"
    );
    let deadline = Instant::now() + Duration::from_secs(60);
    while own_files(&bench) > 3 + 1 {
        assert!(Instant::now() < deadline, "{} files stay", own_files(&bench));
        thread::sleep(Duration::from_millis(100));
    }
    bench.remount();
    for (directory, name) in [("b", "moved"), ("a", "there and back"), ("a", &*long)] {
        assert_eq!(fs::read_to_string(mnt.join(directory).join(name)).unwrap(), name);
    }
    // What waits at the end goes then.
    fs::remove_file(mnt.join("b/moved")).unwrap();
    fs::remove_dir(mnt.join("b")).unwrap();
    fs::remove_file(mnt.join("a").join(&long)).unwrap();
    bench.unmount();
    assert_eq!(own_files(&bench), 1);
    let fsck = bench.run("fsck", &["--json"]);
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout));
    assert!(!String::from_utf8_lossy(&fsck.stdout).contains("\"finding\""));
}

#[test]
fn a_journal_is_kept_where_a_power_cut_leaves_files() {
    if !has(
        "a_journal_is_kept_where_a_power_cut_leaves_files",
        &["mount", "mkfs.ext4"],
    ) {
        return;
    }
    let (_disk, on_disk) = ext4(24);
    let in_memory = TempDir::new_in("/dev/shm").unwrap();
    for (dir, expected) in [
        (on_disk, [true, true, false, false]),
        (in_memory, [false, true, false, false]),
    ] {
        let mut bench = Bench::in_dir(dir, &[]);
        let options: [&[&str]; 4] = [&[], &["--journal"], &["--journal=never"], &["--shared"]];
        for (options, expected) in options.into_iter().zip(expected) {
            bench.mount(options);
            for content in ["first", "other"] {
                let mut file = fs::File::options();
                let file = file
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(bench.mnt().join("file"));
                let file = file.unwrap();
                file.write_all_at(content.as_bytes(), 0).unwrap();
                file.sync_all().unwrap();
            }
            let mut names = fs::read_dir(bench.vault())
                .unwrap()
                .map(|entry| entry.unwrap().file_name());
            let there = names.any(|name| name.as_encoded_bytes().starts_with(b"journal-"));
            assert_eq!(there, expected, "{options:?} in {:?}", bench.vault());
            bench.unmount();
        }
    }
}

#[test]
fn a_full_disk_that_has_room_again_goes_on() {
    const FILES: usize = 12;
    if !has("a_full_disk_that_has_room_again_goes_on", &["mount", "mkfs.ext4"]) {
        return;
    }
    // Declared first, so that it goes last.
    let (_disk, dir) = ext4(24);
    let mut bench = Bench::in_dir(dir, &[]);
    // The journal takes room of its own, and what is in it must find some too: here it is about the files.
    bench.mount(&[]);
    let mnt = bench.mnt();
    let path = |number: usize| mnt.join(format!("file {number}"));
    let mut rng = Rng::new(5);
    // What is in each file for sure; where a write failed, only its front is.
    let mut synced = vec![Vec::new(); FILES];
    for round in 0..3 {
        let mut refused = 0;
        while refused < 5 {
            let number = rng.below(FILES);
            let data = rng.bytes(700_000);
            let options = fs::OpenOptions::new().create(true).append(true).clone();
            let appended = options
                .open(path(number))
                .and_then(|mut file| file.write_all(&data).and_then(|()| file.sync_all()));
            match appended {
                Ok(()) => synced[number].extend(data),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "round {round}");
                    refused += 1;
                    // Back to what is known.
                    let file = fs::File::options()
                        .write(true)
                        .create(true)
                        .truncate(false)
                        .open(path(number));
                    file.and_then(|file| file.set_len(synced[number].len() as u64)).unwrap();
                }
            }
        }
        // Full: what is there can be overwritten, in the middle of blocks too.
        for (number, synced) in synced
            .iter_mut()
            .enumerate()
            .filter(|(_, synced)| synced.len() > 10_000)
        {
            let (at, data) = (rng.below(synced.len() - 5_000), rng.bytes(5_000));
            let file = fs::File::options().write(true).open(path(number)).unwrap();
            file.write_all_at(&data, at as u64).unwrap();
            file.sync_all().unwrap();
            synced[at..at + data.len()].copy_from_slice(&data);
        }
        if round == 1 {
            bench.remount();
        }
        for (number, expected) in synced.iter().enumerate() {
            let found = fs::read(path(number)).unwrap_or_default();
            assert!(
                found == *expected,
                "round {round}: file {number}: {} of {} bytes",
                found.len(),
                expected.len()
            );
        }
        // Room again.
        for number in (round..FILES).step_by(3) {
            if path(number).exists() {
                fs::remove_file(path(number)).unwrap();
            }
            synced[number].clear();
        }
        let file = fs::File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path(round + 1))
            .unwrap();
        synced[round + 1].truncate(5_000);
        file.set_len(synced[round + 1].len() as u64).unwrap();
    }
    bench.remount();
    for (number, expected) in synced.iter().enumerate() {
        assert!(fs::read(path(number)).unwrap_or_default() == *expected, "file {number}");
    }
    bench.unmount();
    bench.assert_whole("at last");
}

#[test]
fn signals_unmount_and_seal() {
    if !can_mount() {
        return;
    }
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut bench = Bench::new();
        let mut child = bench
            .command("mount")
            .arg("--foreground")
            .arg(bench.vault())
            .arg(bench.mnt())
            .spawn()
            .unwrap();
        wait_for("the mount", || bench.is_mounted());
        fs::write(bench.mnt().join("file"), "kept").unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::from_named_raw(signal).unwrap()).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(!bench.is_mounted());
        assert_sealed(&bench.vault());
        assert_kept(&mut bench);
    }
}

/// Asserts that all data files in a vault's root are sealed: byte 10 of the preamble.
fn assert_sealed(vault: &Path) {
    let mut count = 0;
    for entry in fs::read_dir(vault).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        if bytes.starts_with(b"HUSHDATA") {
            assert_eq!(bytes[10], 2, "{}", path.display());
            count += 1;
        }
    }
    assert!(count > 0);
}

#[test]
fn a_mount_in_the_background_is_ready_when_the_command_returns() {
    if !can_mount() {
        return;
    }
    let mut bench = bench_with_file();
    for _ in 0..3 {
        let mut command = bench.command("mount");
        let status = command.arg(bench.vault()).arg(bench.mnt()).status().unwrap();
        assert!(status.success());
        assert_eq!(fs::read_to_string(bench.mnt().join("file")).unwrap(), "kept");
        assert!(bench.run_unmount().status.success());
        assert_sealed(&bench.vault());
    }
    let right = fs::read(bench.passfile()).unwrap();
    fs::write(bench.passfile(), "wrong\n").unwrap();
    let mut command = bench.command("mount");
    let output = command.arg(bench.vault()).arg(bench.mnt()).output().unwrap();
    assert_fails(&output, 3, "wrong passphrase");
    assert!(!bench.is_mounted());
    fs::write(bench.passfile(), right).unwrap();
    assert_kept(&mut bench);
}

#[test]
fn a_mount_that_is_unmounted_at_once_does_not_come_back() {
    if !has("unmounting at once", &[]) {
        return;
    }
    let bench = bench_with_file();
    for round in 0..20 {
        let mut child = bench
            .command("mount")
            .arg("--foreground")
            .args([bench.vault(), bench.mnt()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // As soon as the kernel has it, before the requests of the kernel are answered.
        let begun = Instant::now();
        while rustix::mount::unmount(bench.mnt(), UnmountFlags::DETACH).is_err() {
            assert!(begun.elapsed().as_secs() < 60, "round {round}: it is never mounted");
        }
        wait_for("the end of the daemon", || child.try_wait().unwrap().is_some());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!bench.is_mounted(), "round {round}: {said}");
        assert!(!said.contains("cannot mount"), "round {round}: {said}");
    }
}

#[test]
fn an_idle_mount_ends() {
    if !can_mount() {
        return;
    }
    let mut bench = bench_with_file();
    let mut child = bench
        .command("mount")
        .args(["--foreground", "--idle", "1s"])
        .arg(bench.vault())
        .arg(bench.mnt())
        .spawn()
        .unwrap();
    wait_for("the mount", || bench.is_mounted());
    let open = fs::File::open(bench.mnt().join("file")).unwrap();
    thread::sleep(Duration::from_secs(4));
    assert!(bench.is_mounted(), "a file is open");
    drop(open);
    wait_for("the end of the mount", || !bench.is_mounted());
    assert!(child.wait().unwrap().success());
    assert_kept(&mut bench);
}

#[test]
fn a_mount_for_reading_refuses_changes() {
    if !can_mount() {
        return;
    }
    let mut bench = bench_with_file();
    bench.mount(&["--ro"]);
    let (mnt, file) = (bench.mnt(), bench.mnt().join("file"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    for result in [
        fs::write(&file, "changed"),
        fs::write(mnt.join("new"), ""),
        fs::create_dir(mnt.join("dir")),
        fs::remove_file(&file),
        fs::rename(&file, mnt.join("other")),
        fs::hard_link(&file, mnt.join("other")),
        fs::set_permissions(&file, fs::Permissions::from_mode(0o777)),
    ] {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS));
    }
    bench.unmount();
    assert_kept(&mut bench);
}

#[test]
fn a_sidecar_that_is_missing_or_anothers_costs_one_file() {
    if !can_mount() {
        return;
    }
    let make = || {
        let mut bench = Bench::mounted();
        fs::write(bench.mnt().join("damaged"), "damaged").unwrap();
        bench.unmount();
        let header = fs::read_dir(bench.vault())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.file_name().unwrap().len() == 27)
            .unwrap();
        bench.mount(&[]);
        fs::write(bench.mnt().join("file"), "kept").unwrap();
        bench.unmount();
        (bench, header)
    };
    let (mut bench, header) = make();
    let (_other, foreign) = make();
    for replacement in [None, Some(foreign)] {
        match replacement {
            None => fs::remove_file(&header).unwrap(),
            Some(foreign) => drop(fs::copy(foreign, &header).unwrap()),
        }
        bench.mount(&[]);
        let error = fs::read(bench.mnt().join("damaged")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert_eq!(fs::read_to_string(bench.mnt().join("file")).unwrap(), "kept");
        bench.unmount();
        let log = bench.log();
        assert!(log.contains(header.file_name().unwrap().to_str().unwrap()), "{log}");
    }
    assert_kept(&mut bench);
}

/// An ordinary user with a vault, a mountpoint and a copy of the program of their own.
struct User(TempDir);

impl User {
    const ID: &str = "65534";

    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let at = dir.path();
        fs::set_permissions(at, fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(HUSHFS, at.join("hushfs")).unwrap();
        for sub in ["home", "home/mnt", "empty"] {
            fs::create_dir(at.join(sub)).unwrap();
        }
        fs::write(at.join("home/pass"), "of a user\n").unwrap();
        let owner = format!("{0}:{0}", Self::ID);
        let status = Command::new("chown").args(["-R", &owner]).arg(at.join("home")).status();
        assert!(status.unwrap().success());
        User(dir)
    }

    /// Runs a script as the user, at home; $1 is the program.
    ///
    /// In a mount namespace of its own, with a FUSE device that everyone may open, as distributions have it.
    fn run(&self, script: &str) -> Output {
        const AS_USER: &str = r#"
            if ! [ -e ../fuse ]; then mknod -m 666 ../fuse c 10 229; fi
            mount --bind ../fuse /dev/fuse
            exec setpriv --reuid "$1" --regid "$1" --clear-groups sh -ec "$2" sh "$3""#;
        Command::new("unshare")
            .args(["-m", "sh", "-ec", AS_USER, "sh", Self::ID, script])
            .arg(self.0.path().join("hushfs"))
            .current_dir(self.0.path().join("home"))
            .env("HOME", self.0.path().join("home"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

const INIT: &str = r#""$1" init --kdf-memory 64M --kdf-time 10ms --passfile pass vault"#;

#[test]
fn an_ordinary_user_mounts() {
    if !has("an_ordinary_user_mounts", &["unshare", "setpriv", "fusermount3"]) {
        return;
    }
    let user = User::new();
    let script = format!(
        r#"{INIT}
        for round in 1 2; do
            "$1" mount --passfile pass vault mnt
            echo "$round" >> mnt/file
            mkdir -p mnt/dir
            mv mnt/file mnt/dir/file; cat mnt/dir/file; mv mnt/dir/file mnt/file
            stat -c %u mnt/file
            "$1" unmount mnt
        done
        "$1" verify --passfile pass vault"#
    );
    let output = user.run(&script);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(stdout.trim(), "1\n65534\n1\n2\n65534");
}

#[test]
fn an_ordinary_user_changes_files_of_another_that_they_may_write() {
    const TEST: &str = "an_ordinary_user_changes_files_of_another_that_they_may_write";
    if !has(TEST, &["unshare", "setpriv", "fusermount3", "python3"]) {
        return;
    }
    for transport in ["auto", "device"] {
        changes_files_of_another(transport);
    }
}

fn changes_files_of_another(transport: &str) {
    let user = User::new();
    let made = user.run(&format!(
        r#"{INIT}
        "$1" mount --passfile pass vault mnt
        umask 002
        mkdir mnt/dir mnt/other
        for file in cut appended touched dir/moved; do echo "of another" > "mnt/$file"; done
        "$1" unmount mnt"#
    ));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let of_another = Command::new("find")
        .arg(user.0.path().join("home/vault"))
        .args([
            "-type", "f", "-not", "-name", "*.hush", "-exec", "chown", "0", "{}", "+",
        ])
        .status();
    assert!(of_another.unwrap().success());
    let changed = user.run(&format!(
        r#"
        mount() {{ "$program" mount --transport {transport} --passfile pass vault mnt; }}
        program=$1
        mount
        [ "$(stat -c %u mnt/cut mnt/appended mnt/touched mnt/dir/moved | sort -u)" = 0 ]
        : > mnt/cut
        echo more >> mnt/appended
        python3 -c 'import os; os.fsync(os.open("mnt/appended", os.O_WRONLY))'
        touch -d 2001-01-01 mnt/touched 2> /dev/null && exit 1
        mv mnt/dir/moved mnt/other/moved
        touch mnt/touched
        [ -n "$(find mnt/touched -newer mnt/appended)" ]
        "$1" unmount mnt
        mount
        stat -c %s mnt/cut
        cat mnt/appended mnt/touched mnt/other/moved
        "$1" unmount mnt
        "$1" fsck --passfile pass vault >&2
        "$1" verify --passfile pass vault >&2"#
    ));
    let stderr = String::from_utf8_lossy(&changed.stderr);
    assert!(changed.status.success(), "{stderr}");
    let stdout = String::from_utf8_lossy(&changed.stdout);
    assert_eq!(stdout, "0\nof another\nmore\nof another\nof another\n");
    assert!(!stderr.contains("unclean end"), "{stderr}");
}

#[test]
fn an_ordinary_user_without_fusermount() {
    if !has("an_ordinary_user_without_fusermount", &["unshare", "setpriv"]) {
        return;
    }
    let user = User::new();
    assert!(user.run(INIT).status.success());
    let output = user.run(r#"PATH="$HOME/../empty"; "$1" mount --passfile pass vault mnt"#);
    assert_fails(&output, 8, "fusermount3");
}

#[test]
fn mount_fuse3_mounts() {
    if !has("mount_fuse3_mounts", &["unshare"]) {
        return;
    }
    let helper = ["/sbin/mount.fuse3", "/usr/sbin/mount.fuse3"];
    if !helper.iter().any(|path| Path::new(path).exists()) {
        return skip("mount_fuse3_mounts", "mount.fuse3 is not installed");
    }
    let mut bench = bench_with_file();
    // mount(8) gives helpers a path of its own.
    let output = in_namespace(
        &bench,
        r#"
        mount -t tmpfs none /usr/local/bin
        ln -s "$1" /usr/local/bin/hushfs
        mount -t fuse.hushfs -o "passfile=$4" "$2" "$3"
        cat "$3/file"
        "$1" unmount "$3"
        "#,
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"kept");
    assert_kept(&mut bench);
}
