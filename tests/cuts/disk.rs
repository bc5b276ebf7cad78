//! Loop devices, ext4 on them, and programs that are run for it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

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

/// Makes an image with an empty ext4.
pub fn make_image(path: &Path) -> Result<(), Failure> {
    fs::File::create(path)?.set_len(IMAGE_SIZE)?;
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-N", "16384", "-J", "size=16"])
        .args(["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"])
        .arg(path))?;
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

/// An ext4, mounted.
pub struct Ext4 {
    device: Option<Loop>,
    at: PathBuf,
}

impl Ext4 {
    /// Mounts it, which replays its journal.
    pub fn mount(image: &Path, at: &Path) -> Result<Self, Failure> {
        let device = Loop::new(image)?;
        // Short commits: more of them for cuts to fall between.
        match rustix::mount::mount(&device.device, at, "ext4", MountFlags::NOATIME, Some(c"commit=1")) {
            Ok(()) => Ok(Ext4 {
                device: Some(device),
                at: at.to_owned(),
            }),
            Err(error) => {
                device.remove()?;
                Err(Failure(format!("ext4 does not mount: {error}")))
            }
        }
    }

    pub fn unmount(mut self) -> Result<(), Failure> {
        unmount(&self.at)?;
        self.device.take().map_or(Ok(()), Loop::remove)
    }
}

impl Drop for Ext4 {
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
