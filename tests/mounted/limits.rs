//! Large numbers: of entries, names, links, levels.

use std::{
    ffi::CString,
    fs,
    io::{self, Write},
    mem::MaybeUninit,
    ops::Range,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::RawDir,
    process::{Resource, Rlimit, setrlimit},
    thread::{CapabilitySet, remove_capability_from_bounding_set},
};

use crate::support::{Bench, can_mount, is_root, which};

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
fn targets_of_every_length_are_stored_as_any_filesystem_takes_them() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let lengths = [1, 700, 739, 740, 1023, 1024, 3043, 3044, 4095];
    let link = |len: usize| bench.mnt().join(format!("link-{len}"));
    for len in lengths {
        std::os::unix::fs::symlink("t".repeat(len), link(len)).unwrap();
        assert_eq!(fs::read_link(link(len)).unwrap().as_os_str().len(), len);
        assert_eq!(fs::symlink_metadata(link(len)).unwrap().len(), len as u64);
    }
    let links: Vec<_> = fs::read_dir(bench.vault())
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .collect();
    assert_eq!(links.len(), lengths.len());
    assert!(links.iter().all(|text| text.as_os_str().len() <= 1023));
    bench.unmount();
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

/// A block that such a limit lies in would be half written.
#[test]
fn a_limit_on_the_size_of_files_is_lifted_or_nothing_is_mounted() {
    if !can_mount() {
        return;
    }
    if !is_root() || which("setpriv").is_none() {
        eprintln!("SKIPPED: root may lift any limit, and only setpriv takes that right away");
        return;
    }
    let bench = Bench::new();
    let mount = |limit: &str, wrapper: &str| {
        let script = format!("ulimit {limit} -f 100; exec {wrapper} \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_hushfs"), "mount", "--passfile"]);
        command.args([bench.passfile(), bench.vault(), bench.mnt()]);
        command.output().unwrap()
    };
    let refused = mount("", "setpriv --bounding-set=-sys_resource");
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("files may not be larger than"), "{said}");
    let mounted = mount("-S", "");
    assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
    let file = fs::File::create(bench.mnt().join("file")).unwrap();
    file.write_all_at(&[1; 300_000], 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert!(bench.run_unmount().status.success());
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

fn directory(bench: &Bench, i: usize) -> PathBuf {
    bench.mnt().join(format!("directory-{i}"))
}

/// Mounts a vault anew, after it got so many directories with so many empty files each.
fn with_directories(directories: usize, files: usize) -> Bench {
    let mut bench = Bench::mounted();
    for i in 0..directories {
        fs::create_dir(directory(&bench, i)).unwrap();
        for j in 0..files {
            fs::File::create(directory(&bench, i).join(format!("a file's name {j}"))).unwrap();
        }
    }
    bench.remount();
    bench
}

/// Memory of the daemon's own, in bytes.
fn resident(bench: &Bench) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", bench.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// What the daemon may keep for each file that the kernel knows: a million take 400 MB then.
const BYTES_PER_FILE_MAX: usize = 400;

#[test]
fn memory_for_what_the_kernel_knows_is_bounded_and_given_back() {
    if !can_mount() {
        return;
    }
    let (directories, files) = (55, 400);
    let bench = with_directories(directories, files);
    let look_at = |directories: Range<usize>| {
        for i in directories {
            for entry in fs::read_dir(directory(&bench, i)).unwrap() {
                assert_eq!(entry.unwrap().metadata().unwrap().len(), 0);
            }
        }
    };
    // Threads' stacks and buffers are there once, however many files there are.
    look_at(0..5);
    let before = resident(&bench);
    look_at(5..directories);
    let known = resident(&bench) - before;
    let each = known / ((directories - 5) * files);
    eprintln!("{each} bytes for each file");
    assert!(each <= BYTES_PER_FILE_MAX, "{each} bytes for each file");
    if !is_root() {
        eprintln!("SKIPPED: only root can have the kernel forget files");
        return;
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while resident(&bench) > before + known / 4 {
        assert!(
            Instant::now() < deadline,
            "{} of {known} bytes stay",
            resident(&bench) - before
        );
        // What was used lately is forgotten the second time.
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        thread::sleep(Duration::from_millis(500));
    }
}

/// Tells whether a mount can be held to a limit.
fn can_limit() -> bool {
    if !can_mount() {
        return false;
    }
    if !is_root() {
        eprintln!("SKIPPED: only root gives up the right to raise a limit");
    }
    is_root()
}

/// Mounts again, with a journal, and so many descriptors at most that nobody may raise it.
fn mount_with_descriptors(bench: &mut Bench, limit: u64) {
    let ended = bench.try_mount_with(&["--journal"], |command| {
        // SAFETY: system calls only, between fork and exec.
        unsafe {
            command.pre_exec(move || {
                let limits = Rlimit {
                    current: Some(limit),
                    maximum: Some(limit),
                };
                setrlimit(Resource::Nofile, limits)?;
                // Root has it back after exec otherwise, and raises the limit.
                Ok(remove_capability_from_bounding_set(CapabilitySet::SYS_RESOURCE)?)
            });
        }
    });
    assert!(ended.is_none(), "{ended:?}");
}

#[test]
fn a_journal_is_applied_in_more_directories_than_there_may_be_open() {
    const DESCRIPTORS: u64 = 256;
    const DIRECTORIES: usize = 600;
    if !can_limit() {
        return;
    }
    let mut bench = with_directories(DIRECTORIES, 0);
    bench.unmount();
    bench.mount(&["--journal"]);
    let path = |bench: &Bench, i| directory(bench, i).join("file");
    let written = || (0..DIRECTORIES).step_by(30);
    let write = |bench: &Bench, i, byte| {
        let file = fs::File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path(bench, i));
        let file = file.unwrap();
        file.write_all_at(&[byte; 5 * 4096], 0).unwrap();
        file.sync_all().unwrap();
        file
    };
    let first: Vec<_> = written().map(|i| write(&bench, i, 1)).collect();
    let before = data_files(&bench.vault());
    assert_eq!(before.len(), first.len());
    let second: Vec<_> = written().map(|i| write(&bench, i, 2)).collect();
    bench.kill();
    drop((first, second));
    // As a power cut leaves them: what was written last had reached the journal alone.
    for (path, bytes) in before {
        fs::OpenOptions::new()
            .write(true)
            .open(path)
            .unwrap()
            .write_all_at(&bytes, 0)
            .unwrap();
    }
    mount_with_descriptors(&mut bench, DESCRIPTORS);
    for i in written() {
        assert!(fs::read(path(&bench, i)).unwrap() == [2; 5 * 4096], "{i}");
    }
    bench.unmount();
    bench.assert_whole("after the journal was applied");
}

/// Returns the data files of a vault and what is in them.
fn data_files(vault: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut found, mut waiting) = (Vec::new(), vec![vault.to_owned()]);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_none() {
                found.push((path.clone(), fs::read(path).unwrap()));
            }
        }
    }
    found
}

#[test]
fn few_descriptors_are_enough_for_many_files_and_too_many_open_ones_are_told_so() {
    const DESCRIPTORS: u64 = 256;
    if !can_limit() {
        return;
    }
    // A hundred thousand by hand, with HUSHFS_LARGE=1.
    let files = if std::env::var_os("HUSHFS_LARGE").is_some() {
        1000
    } else {
        50
    };
    let directories = 100;
    let mut bench = with_directories(directories, 0);
    bench.unmount();
    mount_with_descriptors(&mut bench, DESCRIPTORS);
    let path = |bench: &Bench, i, j| directory(bench, i).join(format!("file {j}"));
    let all = || (0..directories).flat_map(|i| (0..files).map(move |j| (i, j)));
    for (i, j) in all() {
        fs::write(path(&bench, i, j), format!("{i}/{j}")).unwrap();
    }
    for (i, j) in all() {
        assert_eq!(fs::read(path(&bench, i, j)).unwrap(), format!("{i}/{j}").into_bytes());
    }
    let mut open = Vec::new();
    let refused = all().find_map(|(i, j)| match fs::File::open(path(&bench, i, j)) {
        Ok(file) => {
            open.push((i, j, file));
            None
        }
        Err(error) => Some(error),
    });
    let refused = refused.expect("each open file takes a descriptor of the daemon");
    assert_eq!(refused.raw_os_error(), Some(libc::EMFILE), "after {}", open.len());
    assert!(
        open.len() as u64 > DESCRIPTORS / 4,
        "only {} files can be open",
        open.len()
    );
    // Those that are open go on, and when some are closed there is room.
    for (i, j, file) in &open {
        let mut content = vec![0; format!("{i}/{j}").len()];
        file.read_exact_at(&mut content, 0).unwrap();
        assert_eq!(content, format!("{i}/{j}").into_bytes());
    }
    open.clear();
    // New ones that are open can still get their headers.
    let new = |i| fs::File::create_new(bench.mnt().join(format!("new {i}")));
    let mut new: Vec<_> = (0..DESCRIPTORS).map_while(|i| new(i).ok()).collect();
    assert!(new.len() > 50, "only {} files can be open", new.len());
    for file in &mut new {
        file.write_all(b"written").unwrap();
        file.sync_all().unwrap();
    }
    drop(new);
    let deadline = Instant::now() + Duration::from_secs(60);
    // A handle is given back after close(2) has returned.
    while let Err(error) = fs::write(bench.mnt().join("afterwards"), "afterwards") {
        assert!(Instant::now() < deadline, "{error}");
        thread::sleep(Duration::from_millis(20));
    }
    bench.remount();
    for (i, j) in all() {
        assert_eq!(fs::read(path(&bench, i, j)).unwrap(), format!("{i}/{j}").into_bytes());
    }
    bench.unmount();
    assert!(bench.run("verify", &[]).status.success());
}

/// Writes the first byte again, durably.
fn overwrite(path: &Path) -> io::Result<()> {
    let file = fs::File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0)?;
    file.write_all_at(&byte, 0)?;
    file.sync_data()
}

/// What the daemon has open.
fn open_files(bench: &Bench) -> impl Iterator<Item = PathBuf> {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", bench.pid())).unwrap();
    descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
}

/// truncate(2): as ftruncate(2), but nobody has the file open.
fn truncate(path: &Path, size: i64) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a C string.
    match unsafe { libc::truncate(path.as_ptr(), size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[test]
fn files_that_nobody_has_open_take_no_descriptors_whatever_is_done_with_their_names() {
    const DESCRIPTORS: u64 = 256;
    if !can_limit() {
        return;
    }
    let mut bench = Bench::mounted();
    let files = 4 * DESCRIPTORS;
    let path = |bench: &Bench, kind: &str, i| bench.mnt().join(format!("{kind} {i}"));
    for i in 0..files {
        fs::write(path(&bench, "file", i), i.to_string()).unwrap();
    }
    type Act = fn(&Path, &Path) -> io::Result<()>;
    let acts: [(&str, &str, Act); 7] = [
        ("file", "file", |file, _| overwrite(file)),
        ("file", "removed", |_, new| {
            fs::write(new, "as SQLite does with its journals")?;
            fs::File::open(new)?.sync_all()?;
            overwrite(new)?;
            fs::remove_file(new)
        }),
        ("file", "backup", |old, new| {
            fs::hard_link(old, new)?;
            overwrite(old)?;
            fs::remove_file(new)
        }),
        ("file", "renamed", |old, new| fs::rename(old, new)),
        ("renamed", "linked", |old, new| fs::hard_link(old, new)),
        ("renamed", "linked", |old, _| fs::remove_file(old)),
        ("linked", "linked", |old, _| truncate(old, 1)),
    ];
    for (from, to, act) in acts {
        // None is open at first.
        bench.unmount();
        mount_with_descriptors(&mut bench, DESCRIPTORS);
        for i in 0..files {
            let act = act(&path(&bench, from, i), &path(&bench, to, i));
            act.unwrap_or_else(|error| panic!("{from} {i} to {to}: {error}"));
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        // What is gone takes no room either.
        while open_files(&bench).any(|file| file.as_os_str().as_bytes().ends_with(b" (deleted)")) {
            assert!(Instant::now() < deadline, "{from} to {to}");
            thread::sleep(Duration::from_millis(50));
        }
    }
    bench.remount();
    for i in 0..files {
        let begin = i.to_string().into_bytes()[..1].to_vec();
        assert_eq!(fs::read(path(&bench, "linked", i)).unwrap(), begin);
    }
    bench.unmount();
    bench.assert_whole("at last");
}

#[test]
fn listings_that_nobody_ends_hold_few_descriptors() {
    if !can_mount() {
        return;
    }
    let (directories, files) = (100, 150);
    let bench = with_directories(directories, files);
    // Open, so that the kernel forgets none of them, whoever drops its caches.
    let open: Vec<_> = (0..directories)
        .map(|i| fs::File::open(directory(&bench, i)).unwrap())
        .collect();
    for i in 0..directories {
        assert!(fs::metadata(directory(&bench, i).join("none")).is_err());
    }
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", bench.pid())).unwrap().count();
    let before = descriptors();
    for directory in &open {
        let mut part = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(directory, &mut part);
        assert!(entries.next().is_some_and(|entry| entry.is_ok()));
    }
    let held = descriptors() - before;
    assert!((1..=64).contains(&held), "{held} descriptors");
}
