//! Cuts of the power, while loads run, while the vault is unmounted, and while its keys are changed.

use std::{
    fs, io,
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
    device::{Device, Fate, Snapshot},
    disk::{self, Disk},
    history::{Clock, Cut},
    load::Worker,
    system::{Mounted, System},
};

/// One run of the loads is cut so often.
const CUTS_PER_RUN: usize = 12;

/// Files that each worker begins with.
const FILES: usize = 30;

/// The longest time between two cuts, in milliseconds.
const PAUSE_MAX: u64 = 1200;

/// A cut, to be looked at later.
struct Moment {
    cut: Cut,
    snapshot: Snapshot,
    /// How it was made, for people.
    what: String,
}

/// The directories that a run works in.
struct Places {
    device: PathBuf,
    disk: PathBuf,
    view: PathBuf,
    image: PathBuf,
}

impl Places {
    fn new(dir: &Path, name: &str) -> io::Result<Self> {
        let at = |what| dir.join(format!("{name}-{what}"));
        let places = Places {
            device: at("device"),
            disk: at("disk"),
            view: at("view"),
            image: at("image"),
        };
        for directory in [&places.device, &places.disk, &places.view] {
            fs::create_dir_all(directory)?;
        }
        Ok(places)
    }

    fn vault(&self) -> PathBuf {
        self.disk.join("vault")
    }
}

/// Cuts the power so often.
pub fn run(options: &Options, system: &System, cuts: usize, tally: &mut Tally) -> Result<(), Failure> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    let live = Places::new(&options.dir, "live")?;
    let copy = Places::new(&options.dir, "copy")?;
    disk::make_image(options.backing, &live.image)?;
    let end = tally.events + cuts;
    while tally.events < end {
        let count = CUTS_PER_RUN.min(end - tally.events);
        let seed = rng.random();
        let mut run = Run {
            options,
            system,
            live: &live,
            rng: StdRng::seed_from_u64(seed),
            moments: Vec::new(),
            clock: Arc::default(),
        };
        let workers = run.record(count, tally)?;
        let moments = std::mem::take(&mut run.moments);
        for moment in moments {
            options.check_stopped()?;
            check_cut(options, system, &copy, &moment, &workers, tally)?;
        }
    }
    Ok(())
}

/// A run of the loads on a disk that is cut.
struct Run<'r> {
    options: &'r Options,
    system: &'r System,
    live: &'r Places,
    rng: StdRng,
    moments: Vec<Moment>,
    clock: Arc<Clock>,
}

impl Run<'_> {
    /// Runs the loads, and cuts.
    fn record(&mut self, count: usize, tally: &mut Tally) -> Result<Vec<Worker>, Failure> {
        let live = self.live;
        let device = Device::new(&live.image, &live.device)?;
        let disk = Disk::mount(self.options.backing, device.path(), &live.disk)?;
        let vault = live.vault();
        fs::create_dir(&vault)?;
        self.system.init(&vault)?;
        let mounted = self.system.mount(&vault, &live.view)?;
        let mut workers = Worker::all(&live.view, "w", &self.clock, &mut self.rng);
        for worker in &mut workers {
            worker.prepare(FILES)?;
        }
        mounted.unmount()?;
        self.settle(&workers)?;

        // Half of the cuts before the keys change and half behind, and some at it.
        let mut mounted = self.system.mount(&vault, &live.view)?;
        self.load(&device, &mut mounted, &mut workers, count / 2, tally)?;
        self.unmount(&device, mounted)?;
        self.settle(&workers)?;
        self.change_keys(&device)?;
        self.settle(&workers)?;
        let mut mounted = self.system.mount(&vault, &live.view)?;
        let left = count.saturating_sub(self.moments.len());
        self.load(&device, &mut mounted, &mut workers, left, tally)?;
        mounted.unmount()?;
        disk.unmount()?;
        device.remove()?;
        self.moments.truncate(count);
        Ok(workers)
    }

    /// Makes all that was done certain.
    fn settle(&self, workers: &[Worker]) -> Result<(), Failure> {
        disk::sync_filesystem(&self.live.disk)?;
        for worker in workers {
            worker.note_sync()?;
        }
        Ok(())
    }

    /// Has the workers work, with so many cuts meanwhile.
    fn load(
        &mut self,
        device: &Device,
        mounted: &mut Mounted,
        workers: &mut [Worker],
        cuts: usize,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        let stop = AtomicBool::new(false);
        let (live, seed) = (self.live, self.rng.random());
        thread::scope(|scope| {
            let running: Vec<_> = workers
                .iter_mut()
                .map(|worker| scope.spawn(|| worker.run(&stop)))
                .collect();
            let stirring = scope.spawn(|| stir(live, &stop, StdRng::seed_from_u64(seed)));
            for _ in 0..cuts {
                let pause = self.rng.random_range(PAUSE_MAX / 6..PAUSE_MAX);
                thread::sleep(Duration::from_millis(pause));
                self.cut(device, "under load");
                if self.options.is_stopped() {
                    break;
                }
            }
            stop.store(true, Ordering::Relaxed);
            for worker in running {
                if let Err(error) = worker.join().expect("workers do not panic") {
                    tally.add(Finding::Unusable, error);
                }
            }
            Ok::<_, Failure>(stirring.join().expect("it does not panic")?)
        })?;
        if mounted.has_died()? {
            tally.add(Finding::Unusable, "the program died under load");
        }
        self.options.check_stopped()
    }

    /// Unmounts, with a cut meanwhile.
    fn unmount(&mut self, device: &Device, mounted: Mounted) -> Result<(), Failure> {
        thread::scope(|scope| {
            let unmounting = scope.spawn(|| mounted.unmount());
            thread::sleep(Duration::from_millis(self.rng.random_range(0..60)));
            self.cut(device, "unmounting");
            unmounting.join().expect("it does not panic")
        })
    }

    /// Changes the keys of the vault, with a cut in each command.
    fn change_keys(&mut self, device: &Device) -> Result<(), Failure> {
        for mut command in self.system.changes_of_keys(&self.live.vault()) {
            let child = command.spawn()?;
            thread::sleep(Duration::from_millis(self.rng.random_range(0..150)));
            self.cut(device, "changing keys");
            let output = child.wait_with_output()?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(Failure(format!("{command:?}: {said}")));
            }
        }
        Ok(())
    }

    fn cut(&mut self, device: &Device, when: &str) {
        let fate = Fate::choose(&mut self.rng);
        let before = self.clock.tick();
        let snapshot = device.cut(fate, self.options.unit, &mut self.rng);
        let after = self.clock.tick();
        let what = format!("{when}, {fate:?} of {} writes", snapshot.unflushed);
        self.moments.push(Moment {
            cut: Cut { before, after },
            snapshot,
            what,
        });
    }
}

/// Has what lies in caches written now and then, so that cuts find more than what is synced by the loads.
fn stir(live: &Places, stop: &AtomicBool, mut rng: StdRng) -> io::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(rng.random_range(20..300)));
        let at = if rng.random_bool(0.7) { &live.view } else { &live.disk };
        disk::sync_filesystem(at)?;
    }
    Ok(())
}

/// Mounts what a cut has left, and looks at it.
fn check_cut(
    options: &Options,
    system: &System,
    copy: &Places,
    moment: &Moment,
    workers: &[Worker],
    tally: &mut Tally,
) -> Result<(), Failure> {
    let faults = tally.faults();
    moment.snapshot.store(&copy.image)?;
    let disk = Disk::mount(options.backing, &copy.image, &copy.disk)?;
    let expected = workers
        .iter()
        .map(|worker| (worker.name.as_str(), worker.expected(moment.cut)));
    let trees: Vec<_> = expected.collect();
    if let Err(Failure(error)) = check_vault(system, copy, &trees, tally) {
        tally.add(Finding::Unusable, error);
    }
    disk.unmount()?;
    tally.events += 1;
    if tally.faults() > faults {
        tally.faulty += 1;
        println!("  in cut {}: {}", tally.events, moment.what);
        if let Some(keep) = &options.keep {
            moment.snapshot.store(&keep.join(format!("cut-{}.img", tally.events)))?;
        }
    }
    Ok(())
}

fn check_vault(
    system: &System,
    copy: &Places,
    trees: &[(&str, crate::history::Expected)],
    tally: &mut Tally,
) -> Result<(), Failure> {
    let vault = copy.vault();
    let mounted = system.mount(&vault, &copy.view)?;
    let unreadable = tally.count(Finding::Unreadable);
    let torn = check::check_trees(&copy.view, trees, tally);
    mounted.unmount()?;
    if tally.count(Finding::Unreadable) > unreadable {
        println!("  the program said:\n{}", system.log().trim_end());
    }
    for complaint in system.check_structure(&vault)? {
        tally.add(Finding::Complaint, complaint.text);
    }
    for complaint in system.check_contents(&vault)? {
        if complaint.path.is_none_or(|path| !torn.contains(&path)) {
            tally.add(Finding::Complaint, complaint.text);
        }
    }
    let mounted = system.mount(&vault, &copy.view)?;
    check::remove_all(&copy.view, tally);
    mounted.unmount()
}
