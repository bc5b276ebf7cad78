//! kill -9 of the daemon under load: what fsync acknowledged is there, what was not being written is whole, the rest is old or new.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::support::{Bench, Rng, can_mount};

/// What a writer knows to be durable of a file: a prefix that it synced.
type Synced = Arc<Mutex<HashMap<PathBuf, Vec<u8>>>>;

/// Files with bytes that were written and not synced: what the daemon may have been writing when it was killed. A block that is half written over is lost, as in a
/// power cut (docs/ARCHITECTURE.md, "What a crash leaves").
type Unsynced = Arc<Mutex<HashSet<PathBuf>>>;

/// Creates files, appends to them, replaces them by rename, and notes what was synced.
fn write_until(
    stop: &AtomicBool,
    dir: &Path,
    synced: &Synced,
    unsynced: &Unsynced,
    mut rng: Rng,
) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::File::open(dir)?.sync_all()?;
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let path = dir.join(format!("file-{}", rng.below(30)));
        let data = {
            let len = 1 + rng.below(30_000);
            rng.bytes(len)
        };
        if round % 3 == 0 {
            let temporary = dir.join("temporary");
            let mut file = fs::File::create(&temporary)?;
            file.write_all(&data)?;
            file.sync_all()?;
            // Neither the old nor the new content may be claimed while the name is changing.
            synced.lock().unwrap().remove(&path);
            fs::rename(&temporary, &path)?;
            fs::File::open(dir)?.sync_all()?;
            unsynced.lock().unwrap().remove(&path);
            synced.lock().unwrap().insert(path, data);
        } else {
            let known = synced.lock().unwrap().get(&path).cloned().unwrap_or_default();
            let file = fs::OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)?;
            unsynced.lock().unwrap().insert(path.clone());
            file.write_all_at(&data, known.len() as u64)?;
            if round % 2 == 0 {
                file.sync_all()?;
                fs::File::open(dir)?.sync_all()?;
                let mut all = known;
                all.extend_from_slice(&data);
                unsynced.lock().unwrap().remove(&path);
                synced.lock().unwrap().insert(path, all);
            }
        }
    }
    Ok(())
}

#[test]
fn nothing_synced_is_lost_when_the_daemon_is_killed() {
    if !can_mount() {
        return;
    }
    let kills: usize = std::env::var("HUSHFS_KILLS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(6);
    let mut rng = Rng::new(77);
    let mut bench = Bench::mounted();
    let quiet = bench.mnt().join("quiet");
    fs::create_dir(&quiet).unwrap();
    for i in 0..50 {
        fs::write(quiet.join(i.to_string()), vec![i as u8; 5000 + i]).unwrap();
    }
    bench.remount();
    let (synced, unsynced) = (Synced::default(), Unsynced::default());
    for kill in 0..kills {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..2)
            .map(|n| {
                let (stop, synced, unsynced) = (stop.clone(), synced.clone(), unsynced.clone());
                let dir = bench.mnt().join(format!("writer-{n}"));
                let rng = rng.fork();
                thread::spawn(move || write_until(&stop, &dir, &synced, &unsynced, rng))
            })
            .collect();
        thread::sleep(Duration::from_millis(200 + rng.below(500) as u64));
        bench.kill();
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            // The writers see the mount die under them.
            let _ = writer.join().unwrap();
        }
        bench.mount_again();
        for i in 0..50 {
            assert_eq!(
                fs::read(quiet.join(i.to_string())).unwrap(),
                vec![i as u8; 5000 + i],
                "kill {kill}"
            );
        }
        // Torn ones are begun anew.
        for path in unsynced.lock().unwrap().drain() {
            if fs::read(&path).is_err() {
                synced.lock().unwrap().remove(&path);
                fs::remove_file(&path).unwrap();
            }
        }
        for (path, expected) in synced.lock().unwrap().iter() {
            let content = fs::read(path).unwrap_or_else(|error| {
                panic!("kill {kill}: {}: {error}\n{}", path.display(), bench.log());
            });
            assert!(
                content.starts_with(expected),
                "kill {kill}: {} lost synced bytes: {} of {}",
                path.display(),
                content.iter().zip(expected).take_while(|(a, b)| a == b).count(),
                expected.len()
            );
        }
    }
    // What the kills left open was sealed once it had been looked at.
    bench.unmount();
    let verified = bench.run("verify", &[]);
    assert!(
        verified.status.success(),
        "{}",
        String::from_utf8_lossy(&verified.stderr)
    );
    bench.mount_again();
    fs::remove_dir_all(bench.mnt().join("writer-0")).unwrap();
    fs::remove_dir_all(bench.mnt().join("writer-1")).unwrap();
}
