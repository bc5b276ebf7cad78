//! The filesystems that can be put to the test, each on a directory of ciphertext.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use serde_json::Value;

use crate::{
    Failure,
    disk::{self, PATIENCE},
};

/// Which filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Hushfs,
    Gocryptfs,
    Securefs,
    /// The directory itself, without encryption: what the harness must find nothing in.
    Plain,
}

/// A program, and the secret it is run with.
#[derive(Clone, Debug)]
pub struct System {
    pub kind: Kind,
    /// The hushfs under test.
    pub hushfs: PathBuf,
    /// 32 bytes, the passphrase of those that take one.
    pub secret: PathBuf,
}

/// A mount, and the program that serves it.
pub struct Mounted {
    at: PathBuf,
    child: Option<Child>,
}

/// A problem that the filesystem's own check has named, and the path in the view, if it is known.
pub struct Complaint {
    pub path: Option<PathBuf>,
    pub text: String,
}

impl System {
    /// Makes a vault.
    pub fn init(&self, vault: &Path) -> Result<(), Failure> {
        let mut command = match self.kind {
            Kind::Hushfs => {
                let mut command = Command::new(&self.hushfs);
                command
                    .args(["init", "--kdf-memory", "64M", "--kdf-time", "1ms"])
                    .arg("--key-file")
                    .arg(&self.secret);
                command
            }
            Kind::Gocryptfs => {
                let mut command = Command::new("gocryptfs");
                command
                    .args(["-q", "-init", "-scryptn", "10", "-passfile"])
                    .arg(&self.secret);
                command
            }
            Kind::Securefs => {
                let mut command = Command::new("securefs");
                command
                    .args(["create", "--format", "4", "-r", "1", "--keyfile"])
                    .arg(&self.secret);
                command
            }
            Kind::Plain => return Ok(()),
        };
        disk::run(command.arg(vault)).map(drop)
    }

    /// Mounts a vault and waits until it is there.
    pub fn mount(&self, vault: &Path, at: &Path) -> Result<Mounted, Failure> {
        let mut command = match self.kind {
            Kind::Hushfs => self.hushfs(&["mount", "--foreground"]),
            Kind::Gocryptfs => {
                let mut command = Command::new("gocryptfs");
                command.args(["-q", "-fg", "-nosyslog", "-passfile"]).arg(&self.secret);
                command
            }
            Kind::Securefs => {
                let mut command = Command::new("securefs");
                command.args(["mount", "--keyfile"]).arg(&self.secret);
                command
            }
            Kind::Plain => {
                let flags = rustix::mount::MountFlags::BIND;
                rustix::mount::mount(vault, at, "", flags, None).map_err(|error| Failure(error.to_string()))?;
                return Ok(Mounted {
                    at: at.to_owned(),
                    child: None,
                });
            }
        };
        let file = fs::File::create(self.log_file())?;
        let mut child = command
            .args([vault, at])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // An interrupt is for the harness, which unmounts.
            .process_group(0)
            .spawn()?;
        let deadline = Instant::now() + PATIENCE;
        while !disk::is_mounted(at)? {
            let ended = child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                return Err(Failure(format!(
                    "the vault does not mount: {ended:?}: {}",
                    self.log().trim()
                )));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Mounted {
            at: at.to_owned(),
            child: Some(child),
        })
    }

    /// What the program of the last mount has said.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.log_file()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn log_file(&self) -> PathBuf {
        self.secret.with_file_name("log")
    }

    /// Has the structure checked, of a vault that is not mounted.
    pub fn check_structure(&self, vault: &Path) -> Result<Vec<Complaint>, Failure> {
        match self.kind {
            Kind::Hushfs => self.complaints("fsck", vault),
            _ => Ok(Vec::new()),
        }
    }

    /// Has contents authenticated, of a vault that is not mounted.
    pub fn check_contents(&self, vault: &Path) -> Result<Vec<Complaint>, Failure> {
        match self.kind {
            Kind::Hushfs => self.complaints("verify", vault),
            _ => Ok(Vec::new()),
        }
    }

    /// The commands that change the keys of a vault that is not mounted.
    pub fn changes_of_keys(&self, vault: &Path) -> Vec<Command> {
        if self.kind != Kind::Hushfs {
            return Vec::new();
        }
        let commands = [&["vault", "rotate"][..], &["rewrap"], &["rewrap", "--retire"]];
        commands
            .iter()
            .map(|words| {
                let mut command = self.hushfs(words);
                command
                    .arg(vault)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped());
                command
            })
            .collect()
    }

    fn hushfs(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.hushfs);
        command.args(words).arg("--key-file").arg(&self.secret);
        command
    }

    fn complaints(&self, subcommand: &str, vault: &Path) -> Result<Vec<Complaint>, Failure> {
        let output = self.hushfs(&[subcommand, "--json"]).arg(vault).output()?;
        let lines = output.stdout.split(|&byte| byte == b'\n');
        let found: Vec<Value> = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
        let Some((_, findings)) = found.split_last().filter(|(last, _)| last["type"] == "summary") else {
            return Ok(vec![Complaint {
                path: None,
                text: format!("{subcommand}: {}", String::from_utf8_lossy(&output.stderr).trim()),
            }]);
        };
        let damage = findings.iter().filter(|finding| finding["severity"] != "note");
        Ok(damage
            .map(|finding| Complaint {
                path: finding["path"].as_str().map(|path| path.trim_start_matches('/').into()),
                text: format!("{subcommand}: {finding}"),
            })
            .collect())
    }
}

impl Mounted {
    /// Unmounts, and waits until the program has ended.
    pub fn unmount(mut self) -> Result<(), Failure> {
        disk::unmount(&self.at)?;
        if let Some(mut child) = self.child.take() {
            let status = child.wait()?;
            if !status.success() {
                return Err(Failure(format!("the program ended with {status}")));
            }
        }
        Ok(())
    }

    /// Kills the program without warning, and clears away the dead mount.
    pub fn kill(mut self) -> Result<(), Failure> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(disk::detach(&self.at)?)
    }

    /// Tells whether the program has ended by itself.
    pub fn has_died(&mut self) -> Result<bool, Failure> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?.is_some()),
            None => Ok(false),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // After an error; what it left must not stay behind.
            let _ = child.kill();
            let _ = child.wait();
            let _ = disk::detach(&self.at);
        }
    }
}
