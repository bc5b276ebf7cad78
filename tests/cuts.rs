//! Cuts the power of the disk under a vault, or kills the program that serves it, while loads run, and looks at what is left.
//!
//! What must hold each time is in docs/ARCHITECTURE.md, "What a crash leaves":
//!
//! 1. What fsync acknowledged is there and readable: contents, and the names of files and directories.
//! 2. A file that was not being written reads in full, with no repair.
//! 3. One that was being written reads, block by block, as the old or the new content, never as anything else.
//! 4. Everything can be listed and removed.
//! 5. After the mount that recovers it, `fsck` and `verify` find no damage.
//!
//! A program of its own, and not part of `cargo test` without a name: it takes a while and needs root, for loop devices and mounts.
//!
//! ```text
//! cargo test --release --test cuts -- --cuts 500 --seed 1
//! cargo test --release --test cuts -- --kills 1000
//! cargo test --release --test cuts -- --cuts 24 --filesystem gocryptfs
//! ```

#[path = "cuts/check.rs"]
mod check;
#[path = "cuts/device.rs"]
mod device;
#[path = "cuts/disk.rs"]
mod disk;
#[path = "cuts/history.rs"]
mod history;
#[path = "cuts/kill.rs"]
mod kill;
#[path = "cuts/load.rs"]
mod load;
#[path = "cuts/power.rs"]
mod power;
#[path = "cuts/system.rs"]
mod system;

use std::{
    fmt, fs, io,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};

use check::{Finding, Tally};
use disk::Backing;
use system::{Kind, System};

/// Why a run could not go on.
#[derive(Debug)]
pub struct Failure(pub String);

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Parser)]
#[command(about = "Cuts the power of a disk, or kills a filesystem's program, and looks at what is left")]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["cuts", "kills"])))]
pub struct Options {
    /// How often the power is cut
    #[arg(long, default_value_t = 0)]
    cuts: usize,
    /// How often the program is killed
    #[arg(long, default_value_t = 0)]
    kills: usize,
    /// What the loads do and when follows from this, as far as the machine lets it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, value_enum, default_value_t = Kind::Hushfs)]
    filesystem: Kind,
    /// What the vault lies on while the power is cut
    #[arg(long, value_enum, default_value_t = Backing::Ext4)]
    backing: Backing,
    /// What the disk writes as one
    #[arg(long, default_value = "4096", value_parser = unit)]
    unit: usize,
    /// Where to work; a directory in memory is faster
    #[arg(long, default_value_os_t = std::env::temp_dir().join("hushfs-cuts"))]
    dir: PathBuf,
    /// The hushfs to put to the test
    #[arg(long, default_value = env!("CARGO_BIN_EXE_hushfs"))]
    hushfs: PathBuf,
    /// Keeps the images of cuts with a fault in this directory
    #[arg(long)]
    keep: Option<PathBuf>,
    #[arg(skip)]
    stop: Arc<AtomicBool>,
}

fn unit(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(unit @ (512 | 4096)) => Ok(unit),
        _ => Err("disks write 512 or 4096 bytes as one".to_owned()),
    }
}

impl Options {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn check_stopped(&self) -> Result<(), Failure> {
        match self.is_stopped() {
            true => Err(Failure("stopped".to_owned())),
            false => Ok(()),
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(missing) = missing() {
        eprintln!("SKIPPED: {missing}");
        return ExitCode::from(u8::from(std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_some()));
    }
    let began = Instant::now();
    let mut tally = Tally::default();
    let ran = run(&options, &mut tally);
    report(&options, &tally, began);
    match ran {
        Ok(()) if tally.faults() == 0 => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("cuts: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Returns what this machine lacks.
fn missing() -> Option<&'static str> {
    let is_there = |path| fs::exists(path).unwrap_or(false);
    if !rustix::process::geteuid().is_root() {
        Some("loop devices and mounts need root")
    } else if !is_there("/dev/fuse") {
        Some("/dev/fuse is not there")
    } else if !is_there("/dev/loop-control") {
        Some("there are no loop devices")
    } else {
        None
    }
}

fn run(options: &Options, tally: &mut Tally) -> Result<(), Failure> {
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, options.stop.clone())?;
    }
    if options.filesystem == Kind::Plain && options.kills > 0 {
        return Err(Failure(
            "nothing serves a plain directory that could be killed".to_owned(),
        ));
    }
    // One that is there may be someone's.
    fs::create_dir(&options.dir).map_err(|error| Failure(format!("{}: {error}", options.dir.display())))?;
    let secret = options.dir.join("secret");
    fs::write(&secret, "a key file of 32 bytes, or more.\n")?;
    let system = System {
        kind: options.filesystem,
        hushfs: options.hushfs.clone(),
        secret,
    };
    let mut ran = Ok(());
    if options.cuts > 0 {
        ran = power::run(options, &system, options.cuts, tally);
    }
    if options.kills > 0 && ran.is_ok() {
        ran = kill::run(options, &system, options.kills, tally);
    }
    fs::remove_dir_all(&options.dir)?;
    ran
}

fn report(options: &Options, tally: &Tally, began: Instant) {
    println!(
        "{:?} on {:?}, seed {}, {} cuts and {} kills asked for: {} checked in {} s, {} files read, {} with a fault",
        options.filesystem,
        options.backing,
        options.seed,
        options.cuts,
        options.kills,
        tally.events,
        began.elapsed().as_secs(),
        tally.files,
        tally.faulty,
    );
    for finding in Finding::ALL {
        println!("{:>8}  {finding}", tally.count(finding));
    }
}
