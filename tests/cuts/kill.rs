//! kill -9 of the program that serves the mount, while loads run, and of the commands that change keys.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    Failure, Options,
    check::{self, Finding, Tally},
    disk,
    history::{Clock, Cut},
    load::Worker,
    system::{Mounted, System},
};

/// Files that each worker begins with: a tree is used for one kill.
const FILES: usize = 12;

/// The longest time before a kill, in milliseconds.
const PAUSE_MAX: u64 = 900;

/// Every so many kills the vault's keys change, by commands that are killed too, and the vault is checked as a whole.
const CHECK_EACH: usize = 10;

/// Kills the program so often.
pub fn run(options: &Options, system: &System, kills: usize, tally: &mut Tally) -> Result<(), Failure> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    let (vault, view) = (options.dir.join("vault"), options.dir.join("view"));
    fs::create_dir_all(&vault)?;
    fs::create_dir_all(&view)?;
    system.init(&vault)?;
    let mut round = Round {
        system,
        vault,
        view,
        rng: StdRng::seed_from_u64(rng.random()),
        clock: Arc::default(),
    };
    // Files that nobody touches, for ever.
    let mut quiet = Worker::all(&round.view, "quiet", &round.clock, &mut rng);
    let mut mounted = system.mount(&round.vault, &round.view)?;
    for worker in &mut quiet {
        worker.prepare(FILES)?;
    }
    for kill in 1..=kills {
        options.check_stopped()?;
        let faults = tally.faults();
        mounted = round.kill_once(kill, mounted, &quiet, tally)?;
        tally.events += 1;
        if kill % CHECK_EACH == 0 || kill == kills {
            mounted.unmount()?;
            round.check_vault(tally)?;
            mounted = system.mount(&round.vault, &round.view)?;
        }
        if tally.faults() > faults {
            tally.faulty += 1;
            println!("  in kill {}", tally.events);
        }
    }
    check::remove_all(&round.view, tally);
    mounted.unmount()
}

/// What is the same in each round.
struct Round<'r> {
    system: &'r System,
    vault: PathBuf,
    view: PathBuf,
    rng: StdRng,
    clock: Arc<Clock>,
}

impl Round<'_> {
    /// Has loads run in new trees, kills the program, mounts again, and looks at what is there.
    fn kill_once(
        &mut self,
        kill: usize,
        mut mounted: Mounted,
        quiet: &[Worker],
        tally: &mut Tally,
    ) -> Result<Mounted, Failure> {
        let mut workers = Worker::all(&self.view, &format!("k{kill}-"), &self.clock, &mut self.rng);
        for worker in &mut workers {
            worker.prepare(FILES)?;
        }
        if kill == 1 || self.rng.random_bool(0.5) {
            // Sealed files first.
            mounted.unmount()?;
            let all = workers.iter().chain(quiet);
            all.map(Worker::note_sync).collect::<Result<Vec<_>, _>>()?;
            mounted = self.system.mount(&self.vault, &self.view)?;
        }
        let cut = self.load_and_kill(mounted, &mut workers, tally)?;
        let mounted = self.system.mount(&self.vault, &self.view)?;
        let all = quiet.iter().chain(&workers);
        let expected: Vec<_> = all.map(|worker| (worker.name.as_str(), worker.expected(cut))).collect();
        // A tree that was never synced may be gone; these were not lost, for a kill leaves the caches of the disk.
        check::check_trees(&self.view, &expected, tally);
        for worker in &workers {
            let tree = self.view.join(&worker.name);
            check::remove_all(&tree, tally);
            if let Err(error) = fs::remove_dir(&tree) {
                tally.add(Finding::Undeletable, format!("{}: {error}", tree.display()));
            }
        }
        Ok(mounted)
    }

    fn load_and_kill(
        &mut self,
        mut mounted: Mounted,
        workers: &mut [Worker],
        tally: &mut Tally,
    ) -> Result<Cut, Failure> {
        let (stop, is_killed) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            for worker in workers {
                let (stop, is_killed) = (&stop, &is_killed);
                scope.spawn(move || {
                    let ended = worker.run(stop);
                    // Afterwards everything fails, at once.
                    (ended.is_err() && !is_killed.load(Ordering::Acquire)).then_some(ended)
                });
            }
            let stirring = scope.spawn(|| stir(&self.view, &stop));
            thread::sleep(Duration::from_millis(self.rng.random_range(20..PAUSE_MAX)));
            if mounted.has_died()? {
                tally.add(Finding::Unusable, "the program died under load");
            }
            is_killed.store(true, Ordering::Release);
            let before = self.clock.tick();
            let killed = mounted.kill();
            let after = self.clock.tick();
            stop.store(true, Ordering::Relaxed);
            stirring.join().expect("it does not panic");
            killed.map(|()| Cut { before, after })
        })
    }

    /// Changes the keys with commands that are killed at first, and has the vault checked by its own program.
    fn check_vault(&mut self, tally: &mut Tally) -> Result<(), Failure> {
        for mut command in self.system.changes_of_keys(&self.vault) {
            let mut child = command.spawn()?;
            thread::sleep(Duration::from_millis(self.rng.random_range(0..150)));
            child.kill()?;
            child.wait()?;
            let output = command.spawn()?.wait_with_output()?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                tally.add(Finding::Unusable, format!("{command:?}: {said}"));
            }
        }
        let structure = self.system.check_structure(&self.vault)?;
        for complaint in structure.into_iter().chain(self.system.check_contents(&self.vault)?) {
            tally.add(Finding::Complaint, complaint.text);
        }
        Ok(())
    }
}

/// Has what lies in the kernel written now and then, so that kills find the program at it.
fn stir(view: &Path, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(50));
        // It fails when the program is dead.
        let _ = disk::sync_filesystem(view);
    }
}
