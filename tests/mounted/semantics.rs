//! What docs/SEMANTICS.md says of files and directories, where the suites do not show it or differ from it.

use std::{
    ffi::CStr,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::{
        fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
        process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FallocateFlags, FlockOperation, Mode, OFlags, SeekFrom, XattrFlags, fallocate, fcntl_lock, flock},
    io::Errno,
};

use crate::support::{Bench, can_mount, is_root};

fn read_write(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).unwrap()
}

#[test]
fn appends_from_many_processes_do_not_overwrite_each_other() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let path = bench.mnt().join("log");
    let script = "import os, sys\n\
                  log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n\
                  for i in range(500): os.write(log, b'%s %04d %s\\n' % (sys.argv[2].encode(), i, b'.' * (i % 90)))";
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            let mut command = Command::new("python3");
            command.args(["-c", script]).arg(&path).arg(writer.to_string());
            command.spawn().unwrap()
        })
        .collect();
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    bench.remount();
    let text = fs::read_to_string(&path).unwrap();
    let mut next = [0; 6];
    for line in text.lines() {
        let (writer, rest) = line.split_once(' ').unwrap();
        let writer: usize = writer.parse().unwrap();
        assert_eq!(rest, format!("{:04} {}", next[writer], ".".repeat(next[writer] % 90)));
        next[writer] += 1;
    }
    assert_eq!(next, [500; 6]);
}

#[test]
fn direct_io_works_at_any_alignment() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let path = bench.mnt().join("file");
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .unwrap();
    let mut expected = vec![0; 70_000];
    for (offset, len) in [
        (0_usize, 4096_usize),
        (1, 1),
        (4095, 2),
        (10_000, 33_333),
        (69_999, 1),
        (511, 8193),
    ] {
        let data = vec![(offset % 251) as u8 + 1; len + 1];
        // From an address that nothing is aligned to.
        direct.write_all_at(&data[1..], offset as u64).unwrap();
        expected[offset..offset + len].fill((offset % 251) as u8 + 1);
    }
    let mut found = vec![0; 70_003];
    let mut at = 0;
    while let Ok(read @ 1..) = direct.read_at(&mut found[at + 3..(at + 3 + 777).min(70_003)], at as u64) {
        at += read;
    }
    assert_eq!((at, &found[3..]), (70_000, &expected[..]));
    assert!(fs::read(&path).unwrap() == expected, "as read through the cache");
}

#[test]
fn mapped_memory_and_writes_show_the_same_bytes() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let path = bench.mnt().join("file");
    let file = read_write(&path);
    file.set_len(10_000).unwrap();
    // SAFETY: nobody truncates the file below what is used of the mapping.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file).unwrap() };
    file.write_all_at(b"written", 5000).unwrap();
    assert_eq!(&map[5000..5007], b"written");
    map[9000..9006].copy_from_slice(b"mapped");
    let other = Command::new("tail").args(["-c", "+9001"]).arg(&path).output().unwrap();
    assert!(
        other.stdout.starts_with(b"mapped"),
        "another process reads what is mapped here"
    );
    // What was stored behind a new end is gone when the file grows again.
    file.set_len(4100).unwrap();
    file.set_len(8192).unwrap();
    assert_eq!(map[4100..8192], vec![0; 8192 - 4100]);
    map.flush().unwrap();
    drop((map, file));
    bench.remount();
    let mut expected = vec![0; 8192];
    assert_eq!(fs::read(&path).unwrap().len(), expected.len());
    expected.fill(0);
    assert!(fs::read(&path).unwrap() == expected);
}

#[test]
fn a_position_in_a_directory_stays_valid_while_entries_come_and_go() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let dir = bench.mnt().join("dir");
    fs::create_dir(&dir).unwrap();
    let name = |i: usize| format!("entry-{i:04}-{}", "x".repeat(i % 60));
    for i in 0..1000 {
        fs::write(dir.join(name(i)), "").unwrap();
    }
    let fd = rustix::fs::open(&dir, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
    let mut listing = rustix::fs::Dir::read_from(&fd).unwrap();
    let is_dots = |name: &CStr| matches!(name.to_bytes(), b"." | b"..");
    let mut seen = Vec::new();
    let mut middle = 0;
    while let Some(entry) = listing.read() {
        let entry = entry.unwrap();
        if is_dots(entry.file_name()) {
            continue;
        }
        seen.push(entry.file_name().to_owned());
        if seen.len() == 300 {
            middle = entry.offset();
        }
    }
    assert_eq!(seen.len(), 1000);
    // Every third goes, on both sides of the position; others come.
    for name in seen.iter().step_by(3) {
        fs::remove_file(dir.join(name.to_str().unwrap())).unwrap();
    }
    for i in 2000..2100 {
        fs::write(dir.join(name(i)), "").unwrap();
    }
    listing.seek(middle).unwrap();
    let mut after = Vec::new();
    while let Some(entry) = listing.read() {
        let name = entry.unwrap().file_name().to_owned();
        if !is_dots(&name) && !name.to_bytes().starts_with(b"entry-20") {
            after.push(name);
        }
    }
    // What was removed may still be listed, by a listing that began before; what stays is listed once, in its order.
    let stays = |name: &std::ffi::CString| dir.join(name.to_str().unwrap()).exists();
    after.retain(stays);
    let expected: Vec<_> = seen[300..].iter().filter(|name| stays(name)).cloned().collect();
    assert!(
        after == expected,
        "{} entries instead of {}",
        after.len(),
        expected.len()
    );
}

#[test]
fn a_hole_is_found_where_it_begins() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let path = bench.mnt().join("file");
    let file = read_write(&path);
    // Reserved and written in part: that the rest of it was looked at makes it no data.
    fallocate(&file, FallocateFlags::empty(), 0, 4 << 20).unwrap();
    file.write_all_at(&[7; 57_344], 0).unwrap();
    file.sync_all().unwrap();
    file.read_exact_at(&mut [0; 8192], 61_440).unwrap();
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(0)), Ok(57_344));
    // The page that a hole shares with data on disk is a hole here.
    let file = read_write(&bench.mnt().join("sparse"));
    file.write_all_at(b"at the end", 8192).unwrap();
    for (offset, hole) in [(0, 0), (1, 1), (8191, 8191), (8192, 8202)] {
        assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(offset)), Ok(hole), "{offset}");
    }
    // rustix has no negative offsets.
    let script = "import os, sys\nf = os.open(sys.argv[1], os.O_RDONLY)\n\
                  for whence in os.SEEK_DATA, os.SEEK_HOLE:\n\
                  \x20try: os.lseek(f, -1, whence); sys.exit(1)\n\
                  \x20except OSError as error: assert error.errno == 6, error";
    let status = Command::new("python3")
        .args(["-c", script])
        .arg(&path)
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn holes_are_looked_for_in_many_files_at_once_while_they_are_written() {
    if !can_mount() {
        return;
    }
    const FILES: usize = 16;
    const CHUNK: u64 = 64 << 10;
    let bench = Bench::mounted();
    let device = fs::metadata(bench.mnt()).unwrap().dev();
    let (done, ended) = mpsc::channel();
    let look = |file: File, done: Sender<()>| {
        for round in 0..50 {
            file.write_all_at(&[7; CHUNK as usize], round % 16 * CHUNK).unwrap();
            let size = (round + 1).min(16) * CHUNK;
            assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(0)), Ok(size));
        }
        done.send(()).unwrap();
    };
    let lookers: Vec<_> = (0..FILES)
        .map(|number| {
            let (file, done) = (read_write(&bench.mnt().join(number.to_string())), done.clone());
            thread::spawn(move || look(file, done))
        })
        .collect();
    drop(done);
    for _ in 0..FILES {
        if let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(Duration::from_secs(120)) {
            // Nothing else ends a mount that does not answer.
            let minor = rustix::fs::minor(device);
            fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1").unwrap();
            panic!("the mount does not answer");
        }
    }
    lookers.into_iter().for_each(|looker| looker.join().unwrap());
}

#[test]
fn space_is_reserved_freed_and_zeroed() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let path = bench.mnt().join("file");
    let file = read_write(&path);
    let mut expected = vec![7; 100_000];
    file.write_all_at(&expected, 0).unwrap();
    fallocate(&file, FallocateFlags::KEEP_SIZE, 100_000, 100_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100_000);
    fallocate(
        &file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        5000,
        50_000,
    )
    .unwrap();
    expected[5000..55_000].fill(0);
    fallocate(&file, FallocateFlags::ZERO_RANGE, 99_000, 3000).unwrap();
    expected[99_000..].fill(0);
    expected.resize(102_000, 0);
    fallocate(
        &file,
        FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        101_000,
        3000,
    )
    .unwrap();
    let hole = rustix::fs::seek(&file, SeekFrom::Hole(0)).unwrap();
    let data = rustix::fs::seek(&file, SeekFrom::Data(hole)).unwrap();
    assert!(
        (5000..16_384).contains(&hole) && (45_000..=55_000).contains(&data),
        "{hole} {data}"
    );
    fallocate(&file, FallocateFlags::empty(), 0, 104_000).unwrap();
    expected.resize(104_000, 0);
    assert!(fs::read(&path).unwrap() == expected);
    for shift in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        assert_eq!(fallocate(&file, shift, 4096, 4096), Err(Errno::OPNOTSUPP));
    }
    drop(file);
    bench.remount();
    assert!(fs::read(&path).unwrap() == expected);
}

#[test]
fn ranges_are_copied_between_files_at_any_offset() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    fs::write(bench.mnt().join("from"), &bytes).unwrap();
    let (from, to) = (
        read_write(&bench.mnt().join("from")),
        read_write(&bench.mnt().join("to")),
    );
    let (mut at_from, mut at_to) = (12_345, 777);
    let mut left = 2_500_000;
    while left > 0 {
        let copied = rustix::fs::copy_file_range(&from, Some(&mut at_from), &to, Some(&mut at_to), left).unwrap();
        assert!(copied > 0);
        left -= copied;
    }
    let found = fs::read(bench.mnt().join("to")).unwrap();
    assert!(found[..777].iter().all(|&byte| byte == 0) && found[777..] == bytes[12_345..2_512_345]);
}

/// Asks another process whether it gets a lock at once.
fn other_process_locks(path: &Path, call: &str) -> bool {
    let script = format!(
        "import fcntl, sys\n\
         try: fcntl.{call}(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n\
         except BlockingIOError: sys.exit(1)"
    );
    let status = Command::new("python3")
        .args(["-c", &script])
        .arg(path)
        .status()
        .unwrap();
    status.success()
}

#[test]
fn locks_exclude_other_processes_and_end_with_their_holder() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let path = bench.mnt().join("file");
    fs::write(&path, "x").unwrap();
    let file = read_write(&path);
    flock(&file, FlockOperation::LockExclusive).unwrap();
    assert!(!other_process_locks(&path, "flock") && other_process_locks(&path, "lockf"));
    flock(&file, FlockOperation::Unlock).unwrap();
    fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
    assert!(other_process_locks(&path, "flock") && !other_process_locks(&path, "lockf"));
    drop(file);
    assert!(other_process_locks(&path, "lockf"), "closing the file ended the lock");

    let hold = "import fcntl, sys, time\n\
                file = open(sys.argv[1], 'r+'); fcntl.lockf(file, fcntl.LOCK_EX); fcntl.flock(file, fcntl.LOCK_EX)\n\
                print('held', flush=True); time.sleep(1000)";
    let mut holder = Command::new("python3")
        .args(["-c", hold])
        .arg(&path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut word = [0; 4];
    let mut stdout = holder.stdout.take().unwrap();
    stdout.read_exact(&mut word).unwrap();
    let waiter = thread::spawn({
        let path = path.clone();
        move || {
            let file = read_write(&path);
            fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
            flock(&file, FlockOperation::LockExclusive).unwrap();
        }
    });
    assert!(!other_process_locks(&path, "lockf"));
    holder.kill().unwrap();
    holder.wait().unwrap();
    waiter.join().unwrap();
}

#[test]
fn extended_attributes_have_the_limits_of_linux() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let path = bench.mnt().join("file");
    fs::write(&path, "x").unwrap();
    let set = |name: &str, value: &[u8], flags| rustix::fs::lsetxattr(&path, name, value, flags);
    assert_eq!(
        set(&format!("user.{}", "n".repeat(251)), b"x", XattrFlags::empty()),
        Err(Errno::RANGE)
    );
    assert_eq!(set("user.a", b"1", XattrFlags::REPLACE), Err(Errno::NODATA));
    set("user.a", b"1", XattrFlags::CREATE).unwrap();
    assert_eq!(set("user.a", b"2", XattrFlags::CREATE), Err(Errno::EXIST));
    set("user.a", b"", XattrFlags::REPLACE).unwrap();
    set("user.a", &[1; 1000], XattrFlags::empty()).unwrap();
    let mut small = [0; 999];
    assert_eq!(rustix::fs::getxattr(&path, "user.a", &mut small), Err(Errno::RANGE));
    assert_eq!(set("user.b", &vec![1; 70_000], XattrFlags::empty()), Err(Errno::TOOBIG));
    assert_eq!(set("nospace.a", b"x", XattrFlags::empty()), Err(Errno::OPNOTSUPP));
    let mut count = 0;
    let full = loop {
        match set(&format!("user.number-{count}"), b"x", XattrFlags::CREATE) {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
    };
    // Some backing filesystems have room for fewer.
    assert_eq!(full, Errno::NOSPC);
    set("user.number-0", b"y", XattrFlags::REPLACE).unwrap();
    let mut names = vec![0; 65_536];
    let len = rustix::fs::listxattr(&path, &mut names).unwrap();
    assert_eq!(names[..len].iter().filter(|&&byte| byte == 0).count(), count + 1);
    let link = bench.mnt().join("link");
    std::os::unix::fs::symlink("file", &link).unwrap();
    let refused = rustix::fs::lsetxattr(&link, "user.a", b"x", XattrFlags::empty());
    assert_eq!(refused, Err(Errno::PERM));
}

#[test]
fn files_reach_to_fifteen_tebibytes() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let path = bench.mnt().join("large");
    const END: u64 = 15 << 40;
    let file = read_write(&path);
    file.set_len(END).unwrap();
    file.write_all_at(b"end", END - 3).unwrap();
    drop(file);
    bench.remount();
    let file = File::open(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), END);
    let mut bytes = [1; 6];
    file.read_exact_at(&mut bytes, END - 6).unwrap();
    assert_eq!(&bytes, b"\0\0\0end");
    assert_eq!(
        rustix::fs::seek(&file, SeekFrom::Data(4096)).unwrap() >> 20,
        (END - 3) >> 20
    );
}

#[test]
fn what_could_not_be_written_behind_the_end_is_not_there_for_who_opens_the_file_next() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let path = bench.mnt().join("log");
    let file = read_write(&path);
    file.write_all_at(b"a line\n", 0).unwrap();
    file.sync_all().unwrap();
    // Into the cache, if not here; no filesystem below takes that.
    let _ = file.write_at(b"x", 17 << 40);
    assert!(file.sync_all().is_err());
    drop(file);
    // The kernel tells a moment later that it was closed.
    let deadline = Instant::now() + Duration::from_secs(60);
    while File::open(&path).unwrap().metadata().unwrap().len() != 7 {
        assert!(Instant::now() < deadline, "{:?}", fs::metadata(&path));
        thread::sleep(Duration::from_millis(20));
    }
    for line in ["and one\n", "and another\n"] {
        let mut log = OpenOptions::new().append(true).open(&path).unwrap();
        log.write_all(line.as_bytes()).unwrap();
        log.sync_all().unwrap();
    }
    let expected = "a line\nand one\nand another\n";
    assert_eq!(fs::metadata(&path).unwrap().len(), expected.len() as u64);
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    bench.remount();
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
}

#[test]
fn unnamed_temporary_files_are_refused_as_not_supported() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let refused = rustix::fs::open(bench.mnt(), OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR);
    assert_eq!(refused.unwrap_err(), Errno::OPNOTSUPP);
}

#[test]
fn free_space_is_what_fits_into_that_of_the_backing_filesystem() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let (view, vault) = (
        rustix::fs::statvfs(bench.mnt()).unwrap(),
        rustix::fs::statvfs(bench.vault()).unwrap(),
    );
    assert_eq!(
        (view.f_blocks, view.f_frsize, view.f_files),
        // Sealing adds 28 bytes to 4096.
        (vault.f_blocks * 4096 / 4124, vault.f_frsize, vault.f_files)
    );
    let used = |stat: &rustix::fs::StatVfs| stat.f_blocks - stat.f_bfree;
    assert!(view.f_bavail < vault.f_bavail && used(&view) <= used(&vault));
    assert_eq!(view.f_namemax, 255);
}

#[test]
fn times_move_as_posix_says() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let dir = bench.mnt().join("dir");
    fs::create_dir(&dir).unwrap();
    let path = dir.join("file");
    let times = |path: &Path| {
        let meta = fs::metadata(path).unwrap();
        ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()))
    };
    let file = read_write(&path);
    // Coarse clocks move every 4 ms at most.
    let pause = || thread::sleep(std::time::Duration::from_millis(15));
    // What is done to the file, whether its content changed, and whether its directory did.
    type Step<'a> = (&'a str, &'a dyn Fn(), bool, bool);
    let renamed = dir.join("renamed");
    let steps: [Step<'_>; 7] = [
        ("write", &|| (&file).write_all(b"text").unwrap(), true, false),
        ("truncate", &|| file.set_len(2).unwrap(), true, false),
        (
            "chmod",
            &|| fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap(),
            false,
            false,
        ),
        (
            "setxattr",
            &|| rustix::fs::setxattr(&path, "user.a", b"1", XattrFlags::empty()).unwrap(),
            false,
            false,
        ),
        (
            "link",
            &|| fs::hard_link(&path, dir.join("other")).unwrap(),
            false,
            true,
        ),
        ("unlink", &|| fs::remove_file(dir.join("other")).unwrap(), false, true),
        ("rename", &|| fs::rename(&path, &renamed).unwrap(), false, true),
    ];
    for (step, act, content, names) in steps {
        let (file_before, dir_before) = (times(&path), times(&dir));
        pause();
        act();
        let (file_after, dir_after) = (times(if path.exists() { &path } else { &renamed }), times(&dir));
        assert!(file_after.1 > file_before.1, "{step}: ctime");
        assert_eq!(file_after.0 > file_before.0, content, "{step}: mtime");
        assert_eq!(dir_after.0 > dir_before.0, names, "{step}: mtime of the directory");
    }
}

#[test]
fn what_was_removed_stays_usable_while_it_is_open() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let path = |name: &str| bench.mnt().join(name);
    let open_dir =
        |name: &str| rustix::fs::open(path(name), OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
    fs::create_dir(path("removed")).unwrap();
    fs::create_dir(path("replaced")).unwrap();
    fs::create_dir(path("other")).unwrap();
    let (removed, replaced) = (open_dir("removed"), open_dir("replaced"));
    fs::remove_dir(path("removed")).unwrap();
    fs::rename(path("other"), path("replaced")).unwrap();
    for dir in [removed, replaced] {
        assert_eq!(rustix::fs::fstat(&dir).unwrap().st_nlink, 0);
        rustix::fs::fchmod(&dir, Mode::RWXU).unwrap();
        rustix::fs::fsync(&dir).unwrap();
        let made = rustix::fs::openat(&dir, "file", OFlags::CREATE | OFlags::RDWR, Mode::RWXU);
        assert_eq!(made.unwrap_err(), Errno::NOENT);
    }

    for content in ["", "text"] {
        fs::write(path("file"), content).unwrap();
        let file = read_write(&path("file"));
        fs::remove_file(path("file")).unwrap();
        rustix::fs::fsetxattr(&file, "user.a", b"1", XattrFlags::empty()).unwrap();
        let mut value = [0; 8];
        assert_eq!(rustix::fs::fgetxattr(&file, "user.a", &mut value).unwrap(), 1);
        file.set_permissions(PermissionsExt::from_mode(0o600)).unwrap();
        file.write_all_at(b"more", 5000).unwrap();
        assert_eq!(
            (file.metadata().unwrap().len(), file.metadata().unwrap().nlink()),
            (5004, 0)
        );
    }

    rustix::fs::mkfifoat(rustix::fs::CWD, path("fifo"), Mode::RWXU).unwrap();
    let fifo = read_write(&path("fifo"));
    fs::remove_file(path("fifo")).unwrap();
    fifo.set_permissions(PermissionsExt::from_mode(0o640)).unwrap();
    assert_eq!(
        (
            fifo.metadata().unwrap().nlink(),
            fifo.metadata().unwrap().mode() & 0o777
        ),
        (0, 0o640)
    );
}

#[test]
fn a_fifo_that_is_open_outlives_one_of_its_names() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let path = |name: &str| bench.mnt().join(name);
    rustix::fs::mkfifoat(rustix::fs::CWD, path("fifo"), Mode::RWXU).unwrap();
    for other in ["removed", "replaced"] {
        fs::hard_link(path("fifo"), path(other)).unwrap();
        let fifo = read_write(&path("fifo"));
        if other == "removed" {
            fs::remove_file(path(other)).unwrap();
        } else {
            fs::write(path("file"), "").unwrap();
            fs::rename(path("file"), path(other)).unwrap();
        }
        fifo.set_permissions(PermissionsExt::from_mode(0o640)).unwrap();
        let metadata = fifo.metadata().unwrap();
        assert_eq!((metadata.nlink(), metadata.mode() & 0o777), (1, 0o640));
    }
}

/// Without its writeback cache the kernel goes by the sizes and times that it is told.
#[test]
fn a_shared_mount_tells_of_what_its_journal_holds() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::new();
    bench.mount(&["--shared", "--journal=always"]);
    let path = bench.mnt().join("log");
    fs::write(&path, [0; 30_000]).unwrap();
    let log = OpenOptions::new().write(true).open(&path).unwrap();
    log.sync_all().unwrap();
    // After a cut all goes by way of the journal, where what is written next waits for a second.
    log.set_len(6).unwrap();
    thread::sleep(Duration::from_millis(1200));
    let before = log.metadata().unwrap().modified().unwrap();
    log.write_all_at(&[b'x'; 9_000], 6).unwrap();
    drop(log);
    let after = fs::metadata(&path).unwrap();
    assert_eq!(after.len(), 9_006);
    assert!(after.modified().unwrap() > before);
    let mut log = OpenOptions::new().append(true).open(&path).unwrap();
    log.write_all(b"end\n").unwrap();
    drop(log);
    let whole = fs::read(&path).unwrap();
    assert_eq!((whole.len(), &whole[9_006..]), (9_010, &b"end\n"[..]));
}

#[test]
fn removing_a_file_just_written_leaves_no_error_for_syncfs() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let root = File::open(bench.mnt()).unwrap();
    for name in ["removed", "replaced"] {
        fs::write(bench.mnt().join(name), "text").unwrap();
    }
    fs::write(bench.mnt().join("new"), "text").unwrap();
    fs::remove_file(bench.mnt().join("removed")).unwrap();
    fs::rename(bench.mnt().join("new"), bench.mnt().join("replaced")).unwrap();
    rustix::fs::syncfs(&root).unwrap();
}

#[test]
fn only_reads_that_reach_the_vault_move_the_time_of_access() {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, utimensat};
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    let (view, plain) = (bench.mnt().join("file"), bench.plain().join("file"));
    let long_ago = Timestamps {
        last_access: Timespec { tv_sec: 1, tv_nsec: 0 },
        last_modification: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
    };
    for path in [&view, &plain] {
        fs::write(path, "text").unwrap();
        utimensat(CWD, path, &long_ago, AtFlags::empty()).unwrap();
    }
    let moves = |path: &Path| {
        fs::read(path).unwrap();
        fs::metadata(path).unwrap().atime() != 1
    };
    assert!(!moves(&view), "the kernel had it in its cache");
    bench.remount();
    assert_eq!(moves(&view), moves(&plain), "as the backing filesystem is mounted");
}

#[test]
fn a_file_can_be_opened_that_was_removed_since_it_was_looked_up() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::mounted();
    for (name, content) in [("empty", ""), ("text", "text")] {
        fs::write(bench.mnt().join(name), content).unwrap();
    }
    bench.remount();
    for (name, content) in [("empty", ""), ("text", "text")] {
        let path = bench.mnt().join(name);
        let looked_up = rustix::fs::open(&path, OFlags::PATH, Mode::empty()).unwrap();
        fs::remove_file(&path).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&looked_up);
        assert_eq!(fs::read_to_string(format!("/proc/self/fd/{fd}")).unwrap(), content);
    }
}

#[test]
fn a_name_that_is_replaced_all_the_time_can_always_be_opened() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let path = bench.mnt().join("name");
    fs::write(&path, "0").unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for writer in 0..2 {
            let (path, stop) = (&path, &stop);
            scope.spawn(move || {
                let new = path.with_extension(writer.to_string());
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    fs::write(&new, "1").unwrap();
                    fs::rename(&new, path).unwrap();
                }
            });
        }
        let mut failed = None;
        for _ in 0..2000 {
            failed = failed.or(fs::read(&path).err());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(failed.is_none(), "{failed:?}");
    });
}

/// Returns a file's mode as the kernel knows it, without asking for anything that would make it look.
fn known_mode(path: &Path) -> u32 {
    let flags = rustix::fs::AtFlags::empty();
    let known = rustix::fs::statx(rustix::fs::CWD, path, flags, rustix::fs::StatxFlags::MODE).unwrap();
    u32::from(known.stx_mode) & 0o7777
}

#[test]
fn set_user_id_ends_with_any_change_of_content_by_an_ordinary_user() {
    if !can_mount() || !is_root() {
        return;
    }
    let mut bench = Bench::new();
    // Other users have to reach the mountpoint.
    fs::set_permissions(bench.mnt().parent().unwrap(), PermissionsExt::from_mode(0o711)).unwrap();
    bench.mount(&["--allow-other", "-o", "suid"]);
    fs::set_permissions(bench.mnt(), PermissionsExt::from_mode(0o755)).unwrap();
    let path = bench.mnt().join("program");
    let change = |script: &str, mode: u32| {
        fs::write(&path, [7; 20_000]).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        assert_eq!(known_mode(&path), mode);
        let mut command = Command::new("python3");
        let script = format!("import os, sys, mmap, ctypes\nf = os.open(sys.argv[1], os.O_RDWR{script}");
        command.args(["-c", &script]).arg(&path).uid(54_321).gid(54_321);
        assert!(command.status().unwrap().success(), "{script}");
        known_mode(&path)
    };
    for script in [
        ")\nos.write(f, b'x')",
        " | os.O_APPEND)\nos.write(f, b'x')",
        " | os.O_DIRECT)\nos.pwritev(f, [mmap.mmap(-1, 4096)], 4096)",
        " | os.O_TRUNC)",
        ")\nos.ftruncate(f, 10)",
        ")\nos.posix_fallocate(f, 0, 100_000)",
        ")\nassert ctypes.CDLL(None).fallocate(f, 3, ctypes.c_long(0), ctypes.c_long(4096)) == 0",
        ")\nassert os.copy_file_range(f, f, 100, 0, 10_000) == 100",
    ] {
        for (before, after) in [(0o6777, 0o777), (0o6666, 0o666), (0o2666, 0o666), (0o777, 0o777)] {
            assert_eq!(change(script, before), after, "{before:o} {script}");
        }
    }
}

#[test]
fn a_file_keeps_its_other_names_when_one_goes() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let path = |name: &str| bench.mnt().join(name);
    fs::write(path("first"), "text").unwrap();
    // The kernel knows both names, and asks for neither again.
    fs::hard_link(path("first"), path("second")).unwrap();
    fs::remove_file(path("second")).unwrap();
    fs::hard_link(path("first"), path("third")).unwrap();
    fs::remove_file(path("third")).unwrap();
    rustix::fs::setxattr(path("first"), "user.a", b"1", XattrFlags::empty()).unwrap();
    assert_eq!(
        (
            fs::read(path("first")).unwrap(),
            fs::metadata(path("first")).unwrap().nlink()
        ),
        (b"text".to_vec(), 1)
    );
}
