//! The beginning and the end of a mount, and what it does by itself.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{
    BLOCK, FILE, KEPT, can_inject, content_of, faults, furnish, is_whole, mount_watched, mount_watched_with, pattern,
    writable, write_synced,
};
use crate::{
    injector::{Fault, Injector},
    support::Bench,
};

/// What is written before the end, over a part of a file that is sealed.
fn changed() -> (Vec<u8>, Vec<u8>) {
    let part = pattern(99, 2 * BLOCK);
    let mut whole = content_of(FILE);
    whole[1000..1000 + part.len()].copy_from_slice(&part);
    (part, whole)
}

fn bench_with_files() -> Bench {
    let mut bench = Bench::mounted();
    furnish(&bench.mnt());
    bench.unmount();
    bench
}

/// How far apart the calls are that fail.
fn step() -> usize {
    if is_whole() { 1 } else { 4 }
}

#[test]
fn every_call_of_sealing_at_the_end_fails() {
    if !can_inject() {
        return;
    }
    let (part, whole) = changed();
    let mut failed = 0;
    for fault in faults() {
        for n in (1..).step_by(step()) {
            let mut bench = bench_with_files();
            let injector = mount_watched(&mut bench);
            let mnt = bench.mnt();
            write_synced(&writable(&mnt, FILE).unwrap(), &part, 1000).unwrap();
            fs::write(mnt.join("new"), &part).unwrap();
            fs::File::open(mnt.join("new")).unwrap().sync_all().unwrap();
            injector.arm(fault, n);
            let code = bench.unmount_for_code();
            let outcome = injector.disarm();
            // It tells whether all is durable.
            assert!(
                code == Some(0) || (code == Some(1) && !outcome.hits.is_empty()),
                "{code:?}"
            );
            failed += u32::from(code == Some(1));
            let when = format!("{fault:?}, call {n}: {:?}", outcome.hits);
            bench.assert_whole(&when);
            bench.mount(&[]);
            assert!(fs::read(mnt.join(FILE)).unwrap() == whole, "{when}");
            assert!(fs::read(mnt.join("new")).unwrap() == part, "{when}");
            assert!(fs::read(mnt.join(KEPT)).unwrap() == content_of(KEPT), "{when}");
            bench.unmount();
            if outcome.hits.is_empty() {
                break;
            }
        }
    }
    assert!(failed > 0);
}

#[test]
fn every_call_of_a_mount_fails() {
    if !can_inject() {
        return;
    }
    let mut bench = bench_with_files();
    for fault in [Fault::Once(libc::EIO), Fault::Once(libc::EMFILE)] {
        for n in (1..).step_by(step()) {
            let vault = bench.vault();
            let mut injector = None;
            let ended = bench.try_mount_with(&["--transport", "device"], |command| {
                let faults = Injector::watch(command, &vault);
                faults.arm(fault, n);
                injector = Some(faults);
            });
            let outcome = injector.unwrap().disarm();
            let when = format!("{fault:?}, call {n}: {:?}", outcome.hits);
            match ended {
                None => {
                    assert!(fs::read(bench.mnt().join(FILE)).unwrap() == content_of(FILE), "{when}");
                    bench.unmount();
                }
                Some(output) => {
                    let stderr = String::from_utf8_lossy(&output.stderr);
                    assert!(output.status.code().is_some_and(|code| code != 0), "{when}: {stderr}");
                    assert!(stderr.starts_with("hushfs: "), "{when}: {stderr}");
                }
            }
            if outcome.hits.is_empty() {
                break;
            }
        }
    }
    bench.mount(&[]);
    assert!(fs::read(bench.mnt().join(FILE)).unwrap() == content_of(FILE));
    bench.unmount();
    bench.assert_whole("at last");
}

#[test]
fn a_slow_disk_only_takes_time() {
    if !can_inject() {
        return;
    }
    let (part, whole) = changed();
    let mut bench = bench_with_files();
    let injector = mount_watched(&mut bench);
    let mnt = bench.mnt();
    injector.delay(Duration::from_millis(50));
    let writers: Vec<_> = (0..4)
        .map(|number| {
            let (dir, part) = (mnt.join(format!("directory {number}")), part.clone());
            thread::spawn(move || {
                fs::create_dir(&dir).unwrap();
                fs::write(dir.join("new"), &part).unwrap();
                fs::File::open(dir.join("new")).unwrap().sync_all().unwrap();
                fs::rename(dir.join("new"), dir.join("renamed")).unwrap();
            })
        })
        .collect();
    write_synced(&writable(&mnt, FILE).unwrap(), &part, 1000).unwrap();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    bench.unmount();
    assert!(injector.disarm().calls.len() > 50, "the calls are not seen");
    bench.assert_whole("slowly");
    bench.mount(&[]);
    assert!(fs::read(mnt.join(FILE)).unwrap() == whole);
    for number in 0..4 {
        assert!(fs::read(mnt.join(format!("directory {number}/renamed"))).unwrap() == part);
    }
    bench.unmount();
}

#[test]
fn sealing_goes_on_when_a_disk_is_back_that_was_away() {
    if !can_inject() {
        return;
    }
    let (part, whole) = changed();
    let mut bench = bench_with_files();
    let injector = mount_watched(&mut bench);
    let mnt = bench.mnt();
    write_synced(&writable(&mnt, FILE).unwrap(), &part, 1000).unwrap();
    injector.arm(Fault::From(libc::EIO), 1);
    // Longer than a file stays unsealed that nobody has open.
    thread::sleep(Duration::from_secs(6));
    let outcome = injector.disarm();
    assert!(!outcome.hits.is_empty(), "nothing was tried");
    let is_sealed = || {
        let mut states = fs::read_dir(bench.vault()).unwrap().filter_map(|entry| {
            let bytes = fs::read(entry.unwrap().path()).ok()?;
            bytes.starts_with(b"HUSHDATA").then(|| bytes[10])
        });
        states.all(|state| state == 2)
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_sealed() {
        assert!(Instant::now() < deadline, "it is never sealed: {}", bench.log());
        thread::sleep(Duration::from_millis(200));
    }
    assert!(fs::read(mnt.join(FILE)).unwrap() == whole);
    bench.unmount();
    bench.assert_whole("at last");
}

/// Tells whether the file is sealed that lies in the root alone.
fn is_sealed(bench: &Bench, file: &str) -> bool {
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let wanted = inode(&bench.mnt().join(file));
    let mut entries = fs::read_dir(bench.vault()).unwrap().map(|entry| entry.unwrap().path());
    let disk = entries.find(|path| inode(path) == wanted).unwrap();
    fs::read(disk).unwrap()[10] == 2
}

#[test]
fn a_sync_that_has_failed_is_told_and_no_seal_follows() {
    if !can_inject() {
        return;
    }
    let (part, whole) = changed();
    let mut bench = bench_with_files();
    // The sync of the data file, not of a journal.
    let injector = mount_watched_with(&mut bench, &["--journal=never"]);
    let path = bench.mnt().join(FILE);
    let open = writable(&bench.mnt(), FILE).unwrap();
    // Asked for by an application. The sync before has made durable what lies beside the data file.
    write_synced(&open, &part, 0).unwrap();
    injector.arm(Fault::Sync(libc::EIO), 1);
    let told = write_synced(&open, &part, 1000).unwrap_err();
    assert_eq!(told.raw_os_error(), Some(libc::EIO));
    let hits = injector.disarm().hits;
    assert!(hits.len() == 1 && !hits[0].contains("hush"), "{hits:?}");
    open.sync_all().unwrap();
    drop(open);
    thread::sleep(Duration::from_secs(6));
    assert!(!is_sealed(&bench, FILE), "sealed, and perhaps not there");
    bench.unmount();
    let log = bench.log();
    assert!(log.contains("a sync has failed"), "{log}");
    bench.mount(&[]);
    assert!(fs::read(&path).unwrap()[1000..1000 + part.len()] == part);
    bench.unmount();
    bench.assert_whole("asked for");

    // By the sealer: the application hears of it.
    let injector = mount_watched_with(&mut bench, &["--journal=never"]);
    fs::write(&path, &whole).unwrap();
    injector.arm(Fault::From(libc::EIO), 1);
    thread::sleep(Duration::from_secs(6));
    let hits = injector.disarm().hits;
    assert!(
        hits.iter().any(|call| call.contains("sync(")),
        "nothing was synced: {hits:?}"
    );
    let open = writable(&bench.mnt(), FILE).unwrap();
    assert_eq!(open.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));
    open.sync_all().unwrap();
    drop(open);
    bench.unmount();
    bench.mount(&[]);
    assert!(fs::read(&path).unwrap() == whole);
    bench.unmount();
    bench.assert_whole("unasked for");
}
