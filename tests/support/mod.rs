//! A vault in a temporary directory, mounted by the real program.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// The program under test.
pub const HUSHFS: &str = env!("CARGO_BIN_EXE_hushfs");

const PASSPHRASE: &str = "correct horse battery staple\n";

/// Long enough for a loaded machine; nothing is timed against it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Tells whether mounts work here. Where they must, as in CI, their absence fails the test.
pub fn can_mount() -> bool {
    let device = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let missing = match device {
        Err(error) => format!("/dev/fuse: {error}"),
        Ok(_) if !rustix::process::geteuid().is_root() && which("fusermount3").is_none() => {
            "fusermount3 is not installed".to_owned()
        }
        Ok(_) => return true,
    };
    assert!(
        std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none(),
        "mounted tests must run here, but: {missing}"
    );
    eprintln!("SKIPPED: {missing}");
    false
}

/// Tells whether the test runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Looks a program up in PATH.
pub fn which(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// A vault, its mountpoint, and a plain directory beside them.
pub struct Bench {
    dir: TempDir,
    child: Option<Child>,
    options: Vec<String>,
    /// How requests come; from HUSHFS_TRANSPORT if the test does not say, or else as the program likes.
    transport: Option<String>,
}

impl Bench {
    /// Makes a vault in a new temporary directory, not mounted.
    pub fn new() -> Self {
        Self::with_init_options(&[])
    }

    /// As [`Bench::new`], with options for `hushfs init`.
    pub fn with_init_options(options: &[&str]) -> Self {
        Self::in_dir(TempDir::new().expect("a temporary directory"), options)
    }

    /// Makes a vault in a directory that the test has prepared.
    pub fn in_dir(dir: TempDir, options: &[&str]) -> Self {
        let bench = Bench {
            dir,
            child: None,
            options: Vec::new(),
            transport: std::env::var("HUSHFS_TRANSPORT").ok(),
        };
        for sub in ["mnt", "plain"] {
            fs::create_dir_all(bench.path(sub)).unwrap();
        }
        fs::write(bench.passfile(), PASSPHRASE).unwrap();
        let output = bench
            .command("init")
            .args(["--kdf-memory", "64M", "--kdf-time", "1ms"])
            .args(options)
            .arg(bench.vault())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "init: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        bench
    }

    /// Makes a vault and mounts it.
    pub fn mounted() -> Self {
        let mut bench = Self::new();
        bench.mount(&[]);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The backing directory.
    pub fn vault(&self) -> PathBuf {
        self.path("vault")
    }

    /// The view.
    pub fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    /// A directory without encryption on the same filesystem.
    pub fn plain(&self) -> PathBuf {
        self.path("plain")
    }

    /// A file with the passphrase.
    pub fn passfile(&self) -> PathBuf {
        self.path("passphrase")
    }

    /// A subcommand with the passphrase.
    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(HUSHFS);
        command
            .arg(subcommand)
            .arg("--passfile")
            .arg(self.passfile())
            .stdin(Stdio::null());
        command
    }

    /// Mounts the vault, with the program in the foreground so that the test owns it.
    pub fn mount(&mut self, options: &[&str]) {
        let output = self.try_mount(options);
        assert!(
            output.is_none(),
            "mount: {}",
            String::from_utf8_lossy(&output.unwrap().stderr)
        );
    }

    /// As [`Bench::mount`], with a transport of the test's own choice.
    pub fn mount_over(&mut self, transport: &str, options: &[&str]) {
        self.transport = Some(transport.to_owned());
        self.mount(options);
    }

    /// As [`Bench::mount`]; returns what the program said if it ended instead.
    pub fn try_mount(&mut self, options: &[&str]) -> Option<Output> {
        self.try_mount_with(options, |_| {})
    }

    /// As [`Bench::try_mount`], with something done to the command before it is started.
    pub fn try_mount_with(&mut self, options: &[&str], prepare: impl FnOnce(&mut Command)) -> Option<Output> {
        assert!(self.child.is_none(), "mounted already");
        self.options = options.iter().map(|&option| option.to_owned()).collect();
        let mut command = self.command("mount");
        prepare(&mut command);
        let mut child = command
            .arg("--foreground")
            .args(
                self.transport
                    .iter()
                    .map(|transport| format!("--transport={transport}")),
            )
            .args(options)
            .arg(self.vault())
            .arg(self.mnt())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !self.is_mounted() {
            if child.try_wait().unwrap().is_some() {
                return Some(child.wait_with_output().unwrap());
            }
            assert!(Instant::now() < deadline, "the mount does not appear");
            thread::sleep(Duration::from_millis(5));
        }
        // Whatever the daemon logs must not block it.
        if let Some(mut stderr) = child.stderr.take() {
            let log = self.path("log");
            thread::spawn(move || {
                let mut file = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
                let _ = std::io::copy(&mut stderr, &mut file);
            });
        }
        self.child = Some(child);
        None
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Tells whether something is mounted at the mountpoint.
    pub fn is_mounted(&self) -> bool {
        let at = fs::canonicalize(self.dir.path()).unwrap().join("mnt");
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().any(|line| line.split(' ').nth(4) == at.to_str())
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("mounted").id()
    }

    /// Unmounts, and waits until the daemon has ended well.
    pub fn unmount(&mut self) {
        assert_eq!(self.unmount_for_code(), Some(0), "the daemon failed: {}", self.log());
    }

    /// Unmounts, and returns what the daemon ends with.
    pub fn unmount_for_code(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("mounted");
        let output = self.run_unmount();
        assert!(
            output.status.success(),
            "unmount: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        child.wait().unwrap().code()
    }

    /// Waits until the daemon has ended well, after something else has unmounted.
    pub fn wait_for_end(&mut self) {
        let mut child = self.child.take().expect("mounted");
        assert!(child.wait().unwrap().success(), "the daemon failed: {}", self.log());
    }

    /// Makes sure that the daemon has ended well by now.
    pub fn has_ended(&mut self) {
        let mut child = self.child.take().expect("mounted");
        let ended = child.try_wait().unwrap();
        assert!(
            ended.is_some_and(|status| status.success()),
            "{ended:?}: {}",
            self.log()
        );
    }

    /// Runs `hushfs unmount`, once nothing uses the mount.
    pub fn run_unmount(&self) -> Output {
        let unmount = || Command::new(HUSHFS).arg("unmount").arg(self.mnt()).output().unwrap();
        let is_busy = |output: &Output| String::from_utf8_lossy(&output.stderr).contains("in use");
        let deadline = Instant::now() + PATIENCE;
        let mut output = unmount();
        // A program that another test starts holds this one's open files for a moment, between fork and exec.
        while is_busy(&output) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
            output = unmount();
        }
        output
    }

    /// Unmounts and mounts again with the same options.
    pub fn remount(&mut self) {
        self.unmount();
        self.mount_again();
    }

    /// Mounts with the options of the last time.
    pub fn mount_again(&mut self) {
        let options = self.options.clone();
        self.mount(&options.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Kills the daemon without warning, and clears away the dead mount.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("mounted");
        child.kill().unwrap();
        child.wait().unwrap();
        self.detach();
    }

    fn detach(&self) {
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("umount");
            command.arg("-l");
            command
        } else {
            let mut command = Command::new("fusermount3");
            command.args(["-u", "-z"]);
            command
        };
        let _ = command.arg(self.mnt()).stderr(Stdio::null()).status();
    }

    /// Runs a subcommand on the vault and returns what it said.
    pub fn run(&self, subcommand: &str, rest: &[&str]) -> Output {
        self.command(subcommand).arg(self.vault()).args(rest).output().unwrap()
    }

    /// Asserts that `fsck` and `verify` find no damage in the vault, which is not mounted.
    #[track_caller]
    pub fn assert_whole(&self, when: &str) {
        for command in ["fsck", "verify"] {
            let output = self.run(command, &[]);
            assert!(
                output.status.success(),
                "{when}: {command}: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.detach();
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Lists the regular files, directories and links of a tree with what identifies them, for comparison.
pub fn snapshot(root: &Path) -> Vec<String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    fn walk(root: &Path, at: &Path, out: &mut Vec<String>) {
        let mut entries: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let meta = fs::symlink_metadata(&path).unwrap();
            let kind = meta.file_type();
            let detail = if kind.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if kind.is_file() {
                let content = fs::read(&path).unwrap();
                assert_eq!(content.len() as u64, meta.len(), "{}", path.display());
                format!("{} bytes, {}", meta.len(), checksum(&content))
            } else if kind.is_fifo() {
                "fifo".into()
            } else {
                String::new()
            };
            let mtime = if kind.is_dir() {
                (0, 0)
            } else {
                (meta.mtime(), meta.mtime_nsec())
            };
            out.push(format!(
                "{} {:o} {} {} {mtime:?} {detail}",
                path.strip_prefix(root).unwrap().display(),
                meta.mode(),
                if kind.is_dir() { 0 } else { meta.nlink() },
                meta.uid(),
            ));
            if kind.is_dir() {
                walk(root, &path, out);
            }
        }
    }
    let mut out = Vec::new();
    walk(root, root, &mut out);
    out
}

/// Returns a short checksum: enough to compare two files in a test.
pub fn checksum(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_string()
}

/// A small generator of pseudorandom numbers, so that a seed tells all.
pub struct Rng(u64);

impl Rng {
    /// Starts from a seed, printed so that a failure can be repeated.
    pub fn new(default_seed: u64) -> Self {
        let seed = std::env::var("HUSHFS_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or(default_seed);
        eprintln!("seed {seed} (HUSHFS_SEED sets it)");
        Rng(seed | 1)
    }

    /// Returns another one, for another thread.
    pub fn fork(&mut self) -> Rng {
        Rng(self.next() | 1)
    }

    /// Returns the next number (xorshift64*).
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Returns a number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Returns bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}
