//! The arguments of every command. What stands here is also the help and the manual pages.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{crypto::block::Suite, fuse::Transport};

/// Shows an encrypted directory as ordinary files.
#[derive(Debug, Parser)]
#[command(name = "hushfs", version, max_term_width = 120, propagate_version = true)]
pub struct Cli {
    /// Says more on standard error; twice for file names and requests
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Makes a vault
    Init(InitArgs),
    /// Shows a vault as files
    #[command(after_help = MOUNT_HELP)]
    Mount(MountArgs),
    /// Ends a mount; returns when everything is written
    #[command(visible_alias = "umount")]
    Unmount(UnmountArgs),
    /// Says what a vault is, without a passphrase and therefore without authenticating anything
    Info(InfoArgs),
    /// Ways into a vault (slots), and its keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Changes a passphrase, and shuts out who knows the old one
    Passwd(PasswdArgs),
    /// Moves the headers of all files to the current epoch; contents stay. May be interrupted and started again
    Rewrap(RewrapArgs),
    /// Reads and authenticates every file
    Verify(VerifyArgs),
    /// Checks the structure: names, headers, leftovers. Changes nothing
    Fsck(FsckArgs),
    /// Lists directories of a vault without mounting it
    Ls(LsArgs),
    /// Writes files of a vault to standard output without mounting it
    Cat(CatArgs),
    /// Copies a file or a directory out of a vault without mounting it
    Export(ExportArgs),
    /// Writes a completion script to standard output
    Completions {
        /// The shell to complete for
        shell: clap_complete::Shell,
    },
    /// Writes manual pages of all commands
    Man {
        /// A directory that exists
        directory: PathBuf,
    },
}

const MOUNT_HELP: &str = "\
In /etc/fstab, with /sbin/mount.fuse or with hushfs linked to /sbin/mount.fuse.hushfs:

  /srv/vault  /srv/private  fuse.hushfs  passfile=/etc/hushfs/private.pass,allow_other,nofail  0 0

Mount options: ro, rw, allow_other, noallow_other, acl, noacl, shared, idle=TIME, fsname=NAME, log-file=FILE, passfile=FILE,
extpass=COMMAND, key-file=FILE, credential=NAME, slot=SLOT, and those of mount(8): nosuid, suid, nodev, dev, noexec,
exec, noatime, atime, nodiratime, diratime, relatime, strictatime, sync, async, dirsync.";

/// Where the secret that opens the vault comes from. Without any: the systemd credential `hushfs` if there is one, or else a prompt.
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub struct SecretArgs {
    /// The passphrase is the first line of this file
    #[arg(long, value_name = "FILE", group = "secret", help_heading = "Secret")]
    pub passfile: Option<PathBuf>,
    /// The passphrase is the first line that this command, run by /bin/sh, prints
    #[arg(long, value_name = "COMMAND", group = "secret", help_heading = "Secret")]
    pub extpass: Option<String>,
    /// The passphrase is the next line of this file descriptor
    #[arg(long, value_name = "N", group = "secret", help_heading = "Secret")]
    pub passfd: Option<i32>,
    /// This file as a whole is the key: 32 bytes to 1 MiB
    #[arg(long, value_name = "FILE", group = "secret", help_heading = "Secret")]
    pub key_file: Option<PathBuf>,
    /// The passphrase is this systemd credential
    #[arg(long, value_name = "NAME", group = "secret", help_heading = "Secret")]
    pub credential: Option<String>,
}

/// How an existing vault is opened.
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub struct UnlockArgs {
    #[command(flatten)]
    pub secret: SecretArgs,
    /// Asks for the recovery key; with --passfile and its like, that gives it
    #[arg(long, conflicts_with = "key_file", help_heading = "Secret")]
    pub recovery: bool,
    /// Tries this slot only, by name or number
    #[arg(long, value_name = "SLOT", help_heading = "Secret")]
    pub slot: Option<String>,
}

/// Where a new secret comes from. Without any: a prompt, twice.
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub struct NewSecretArgs {
    /// The new passphrase is the first line of this file
    #[arg(long, value_name = "FILE", group = "new_secret", help_heading = "New secret")]
    pub new_passfile: Option<PathBuf>,
    /// The new passphrase is the first line that this command, run by /bin/sh, prints
    #[arg(long, value_name = "COMMAND", group = "new_secret", help_heading = "New secret")]
    pub new_extpass: Option<String>,
    /// The new passphrase is the next line of this file descriptor
    #[arg(long, value_name = "N", group = "new_secret", help_heading = "New secret")]
    pub new_passfd: Option<i32>,
    /// This file as a whole is the new key
    #[arg(long, value_name = "FILE", group = "new_secret", help_heading = "New secret")]
    pub new_key_file: Option<PathBuf>,
    /// Makes the key file, with random bytes; it must not exist
    #[arg(long, requires = "new_key_file", help_heading = "New secret")]
    pub generate: bool,
    /// Makes a recovery key and prints it, once, to standard output
    #[arg(long, group = "new_secret", help_heading = "New secret")]
    pub new_recovery: bool,
    #[command(flatten)]
    pub kdf: KdfArgs,
}

/// What one guess at a passphrase costs.
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub struct KdfArgs {
    /// Memory that one guess at the passphrase takes, at least 64M [default: 256M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub kdf_memory: Option<u64>,
    /// Time that one guess takes on this machine [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub kdf_time: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// A directory that is empty or not there yet
    pub vault: PathBuf,
    /// The cipher, for ever: aes-256-gcm-siv, or xchacha20-poly1305 for processors without AES instructions
    #[arg(long, default_value = "aes-256-gcm-siv", value_parser = parse_suite)]
    pub suite: Suite,
    /// Bytes in a block, for ever: a power of two from 4096 to 65536
    #[arg(long, value_name = "N", default_value = "4096", value_parser = parse_size)]
    pub block_size: u64,
    /// Also makes a recovery key and prints it, once, to standard output
    #[arg(long)]
    pub recovery_key: bool,
    #[command(flatten)]
    pub secret: SecretArgs,
    #[command(flatten)]
    pub kdf: KdfArgs,
}

#[derive(Debug, Args)]
pub struct MountArgs {
    /// The vault
    pub vault: PathBuf,
    /// The directory where its files appear
    pub mountpoint: PathBuf,
    /// Mount options with commas; see below
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Nothing can be changed
    #[arg(long)]
    pub ro: bool,
    /// Other users may look, as far as modes allow
    #[arg(long)]
    pub allow_other: bool,
    /// Stays in the foreground and logs to standard error
    #[arg(short, long)]
    pub foreground: bool,
    /// Unmounts when nothing was open or used for so long: 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub idle: Option<Duration>,
    /// Something else may change the vault meanwhile, such as a sync tool. Caches less, so it is slower
    #[arg(long)]
    pub shared: bool,
    /// POSIX access control lists (setfacl, getfacl) count; without it they are refused
    #[arg(long)]
    pub acl: bool,
    /// The name in the mount table [default: VAULT]
    #[arg(long, value_name = "NAME")]
    pub fsname: Option<String>,
    /// Where to log; file names appear only with -vv
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// How requests come from the kernel
    #[arg(long, value_name = "HOW", value_enum, default_value_t = TransportArg::Auto)]
    pub transport: TransportArg,
    /// Threads that serve requests [default: by the number of processors]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

/// How requests come from the kernel.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum TransportArg {
    /// Over io_uring where the kernel offers it, which is faster
    Auto,
    /// Over io_uring, or not at all
    IoUring,
    /// Through /dev/fuse
    Device,
}

impl From<TransportArg> for Transport {
    fn from(arg: TransportArg) -> Self {
        match arg {
            TransportArg::Auto => Transport::Auto,
            TransportArg::IoUring => Transport::Uring,
            TransportArg::Device => Transport::Device,
        }
    }
}

#[derive(Debug, Args)]
pub struct UnmountArgs {
    /// The directory where the vault is mounted
    pub mountpoint: PathBuf,
    /// Detaches a mount that is in use, and does not wait
    #[arg(long, short = 'z')]
    pub lazy: bool,
}

#[derive(Debug, Args)]
pub struct InfoArgs {
    /// The vault
    pub vault: PathBuf,
    /// Prints one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Lists the slots and the master keys
    List(KeyListArgs),
    /// Adds a slot: one more passphrase, key file or recovery key
    Add(KeyAddArgs),
    /// Removes a slot, and shuts out who holds its secret from what is written later
    Remove(KeyRemoveArgs),
    /// Makes a new version of the master key and a new epoch; new files use it, `rewrap` moves the others
    Rotate(VaultArgs),
}

/// A vault and how to open it.
#[derive(Debug, Args)]
pub struct VaultArgs {
    /// The vault
    pub vault: PathBuf,
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

#[derive(Debug, Args)]
pub struct KeyListArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// Prints one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct KeyAddArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// The name of the slot [default: by its kind]
    #[arg(long)]
    pub name: Option<String>,
    #[command(flatten)]
    pub new: NewSecretArgs,
}

#[derive(Debug, Args)]
pub struct KeyRemoveArgs {
    /// The vault
    pub vault: PathBuf,
    /// The slot to remove, by name or number
    #[arg(value_name = "SLOT")]
    pub remove: String,
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

#[derive(Debug, Args)]
pub struct PasswdArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// Changes this slot, by name or number [default: the one that opens the vault; with --recovery, the one passphrase]
    #[arg(long, value_name = "SLOT")]
    pub change: Option<String>,
    #[command(flatten)]
    pub new: NewSecretArgs,
}

#[derive(Debug, Args)]
pub struct RewrapArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// Then drops the keys of epochs that no file uses: copies of old headers, in backups or not yet synced, open no longer
    #[arg(long)]
    pub retire: bool,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// What to verify [default: everything]
    pub paths: Vec<PathBuf>,
    /// Prints one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct FsckArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// Prints one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct LsArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// Paths in the vault [default: /]
    pub paths: Vec<PathBuf>,
    /// Also mode, links, owner, size, time and target
    #[arg(short)]
    pub long: bool,
}

#[derive(Debug, Args)]
pub struct CatArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// Paths in the vault
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// A path in the vault; / for everything
    pub path: PathBuf,
    /// A name that is not taken, or, for a directory, an empty directory
    pub destination: PathBuf,
}

/// Parses a number of bytes with a suffix: 64K, 256M, 1G.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.strip_suffix(['K', 'k', 'M', 'm', 'G', 'g']) {
        Some(digits) if text.ends_with(['K', 'k']) => (digits, 10),
        Some(digits) if text.ends_with(['M', 'm']) => (digits, 20),
        Some(digits) => (digits, 30),
        None => (text, 0),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "not a size: write 4096, 64K, 256M or 1G".to_owned())
}

/// Parses a time with a unit.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "not a time: write 500ms, 30s, 10m or 2h".to_owned())
}

fn parse_suite(text: &str) -> Result<Suite, String> {
    let found = Suite::ALL.into_iter().find(|suite| suite.name() == text);
    found.ok_or_else(|| format!("suites are {}", Suite::ALL.map(Suite::name).join(", ")))
}

fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=1024).contains(&threads) => Ok(threads),
        _ => Err("a number from 1 to 1024".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64k"), Ok(65536));
        assert_eq!(parse_size("256M"), Ok(256 << 20));
        assert_eq!(parse_size("1G"), Ok(1 << 30));
        for wrong in ["", "M", "1T", "-1", "99999999999G", "1.5M"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
