//! Loop devices, filesystems on them, and programs that are run for it.

use std::{
    ffi::CStr,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::Failure;

/// Room for the loads of one run, several times over.
const IMAGE_SIZE: u64 = 512 << 20;

/// Long enough for a loaded machine; nothing is timed against it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a program to its end; what it says is in the error if it fails.
pub fn run(command: &mut Command) -> Result<Output, Failure> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure(format!("{command:?}: {error}")))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(Failure(format!(
        "{command:?}: {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )))
}

/// What the vault lies on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Backing {
    Ext4,
    Xfs,
    Btrfs,
}

impl Backing {
    /// Returns what makes one of a file.
    fn make(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Backing::Ext4 => (
                "mkfs.ext4",
                &[
                    "-q",
                    "-F",
                    "-N",
                    "16384",
                    "-J",
                    "size=16",
                    "-E",
                    "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
                ],
            ),
            Backing::Xfs => ("mkfs.xfs", &["-q", "-f", "-K"]),
            Backing::Btrfs => ("mkfs.btrfs", &["-q", "-f", "-K", "-m", "single", "-d", "single"]),
        }
    }

    /// Returns its name for mount(2), and its options.
    ///
    /// Short commits, where they can be had: more of them for cuts to fall between.
    fn mount(self) -> (&'static str, Option<&'static CStr>) {
        match self {
            Backing::Ext4 => ("ext4", Some(c"commit=1")),
            Backing::Xfs => ("xfs", None),
            Backing::Btrfs => ("btrfs", Some(c"commit=1")),
        }
    }
}

/// Makes an image with an empty filesystem.
pub fn make_image(backing: Backing, path: &Path) -> Result<(), Failure> {
    fs::File::create(path)?.set_len(IMAGE_SIZE)?;
    let (program, arguments) = backing.make();
    run(Command::new(program).args(arguments).arg(path))?;
    Ok(())
}

/// A loop device over a file.
pub struct Loop {
    device: PathBuf,
    is_removed: bool,
}

impl Loop {
    pub fn new(file: &Path) -> Result<Self, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match run(Command::new("losetup").args(["--find", "--show"]).arg(file)) {
                Ok(output) => {
                    let device = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
                    // What it was before may be in the kernel's cache still, where something else has looked at the device.
                    run(Command::new("blockdev").arg("--flushbufs").arg(&device))?;
                    return Ok(Loop {
                        device,
                        is_removed: false,
                    });
                }
                // Between finding a free one and taking it another program may have.
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Takes the device away.
    pub fn remove(mut self) -> Result<(), Failure> {
        self.is_removed = true;
        run(Command::new("losetup").arg("--detach").arg(&self.device)).map(drop)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if !self.is_removed {
            // After an error. One that is in use goes when it no longer is.
            let _ = run(Command::new("losetup").arg("--detach").arg(&self.device));
        }
    }
}

/// A filesystem, mounted.
pub struct Disk {
    device: Option<Loop>,
    at: PathBuf,
}

impl Disk {
    /// Mounts it, which replays its journal.
    pub fn mount(backing: Backing, image: &Path, at: &Path) -> Result<Self, Failure> {
        let device = Loop::new(image)?;
        let (kind, options) = backing.mount();
        match rustix::mount::mount(&device.device, at, kind, MountFlags::NOATIME, options) {
            Ok(()) => Ok(Disk {
                device: Some(device),
                at: at.to_owned(),
            }),
            Err(error) => {
                device.remove()?;
                Err(Failure(format!("{kind} does not mount: {error}")))
            }
        }
    }

    pub fn unmount(mut self) -> Result<(), Failure> {
        unmount(&self.at)?;
        self.device.take().map_or(Ok(()), Loop::remove)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.device.is_some() {
            // After an error; the loop device goes with it.
            let _ = detach(&self.at);
        }
    }
}

/// Unmounts what is there, once nothing uses it.
pub fn unmount(at: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match rustix::mount::unmount(at, UnmountFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::BUSY) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(Failure(format!("{} does not unmount: {error}", at.display()))),
        }
    }
}

/// Clears away a mount whose server is dead.
pub fn detach(at: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(at, UnmountFlags::DETACH)?)
}

/// Tells whether something is mounted there.
pub fn is_mounted(at: &Path) -> io::Result<bool> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().any(|line| line.split(' ').nth(4) == at.to_str()))
}

/// Writes everything on the filesystem of a path to its disk.
pub fn sync_filesystem(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(fs::File::open(path)?)?)
}
