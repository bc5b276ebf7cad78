//! Everything a command can fail with, its one line on standard error, and its exit code.

use std::{fmt, io, path::PathBuf};

use super::text;
use crate::{
    fs::FsError,
    fuse::MountError,
    keystore::{KeyError, KeystoreError, RecoveryKeyError, SecretKind, SecretSizeError, UnlockError},
    vault::home::{ChangeError, CreateError, OpenError},
};

// The exit codes of docs/CLI.md.
pub const FAILED: u8 = 1;
pub const USAGE: u8 = 2;
const WRONG_SECRET: u8 = 3;
const BAD_VAULT: u8 = 4;
const NEWER: u8 = 5;
const IN_USE: u8 = 6;
const BAD_MOUNTPOINT: u8 = 7;
const NO_FUSE: u8 = 8;
const DAMAGE: u8 = 9;

/// Why a command failed.
#[derive(Debug)]
pub enum CliError {
    /// The vault does not open.
    Open(OpenError),
    /// The vault cannot be made.
    Create(CreateError),
    /// The keys cannot be changed.
    Change(ChangeError),
    /// The mount failed.
    Mount(MountError),
    /// The mount is in use.
    Busy { mountpoint: PathBuf },
    /// No vault is mounted there.
    NotMounted { mountpoint: PathBuf },
    /// The mountpoint is the vault or inside it.
    MountpointInVault { mountpoint: PathBuf },
    /// The vault stays locked although the mount is gone.
    StillWriting { vault: PathBuf },
    /// Something in the vault cannot be read.
    View { path: String, error: FsError },
    /// A file outside the vault cannot be read or written.
    File { path: PathBuf, source: io::Error },
    /// A file that is to be made exists.
    Exists { path: PathBuf },
    /// Standard output cannot be written.
    Output(io::Error),
    /// The system did not let the process do something.
    System { what: &'static str, source: io::Error },
    /// The command of --extpass failed.
    ExtPass(std::process::ExitStatus),
    /// The file descriptor of --passfd cannot be read.
    PassFd { number: i32, source: io::Error },
    /// There is no such systemd credential.
    NoCredential { name: String },
    /// A source of a secret has no line.
    NoLine { source: String },
    /// A line is too long to be a passphrase.
    LongLine { source: String },
    /// What was given cannot be a secret.
    SecretSize(SecretSizeError),
    /// What was given is no recovery key.
    RecoveryKey(RecoveryKeyError),
    /// A new passphrase looks like a recovery key.
    PassphraseLikeRecoveryKey,
    /// The new passphrase was not typed the same twice.
    PassphrasesDiffer,
    /// There is nobody to ask.
    NoTerminal,
    /// There is no such slot.
    NoSuchSlot { slot: String },
    /// The slot to change has to be named.
    WhichSlot,
    /// A block size that no vault has.
    BlockSize(u64),
    /// A mount option that there is not.
    UnknownOption(String),
    /// A mount option whose value does not parse.
    OptionValue { option: String, reason: String },
    /// A mount option that was given another way too.
    OptionTwice(String),
    /// `verify` or `fsck` found damage, which was printed.
    DamageFound,
    /// Some files were left out, which was printed.
    Incomplete { count: u64 },
    /// The background process ended before it was ready; it has said why.
    Child(u8),
    /// Headers could not be rewrapped; they were printed.
    NotRewrapped { count: usize },
    /// rewrap was stopped by an error of the backing filesystem.
    Rewrap { vault: PathBuf, source: io::Error },
}

impl CliError {
    /// Returns the exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Open(error) => open_code(error),
            CliError::Create(CreateError::InUse { .. }) => IN_USE,
            CliError::Mount(error) => mount_code(error),
            CliError::NotMounted { .. } | CliError::MountpointInVault { .. } => BAD_MOUNTPOINT,
            CliError::View { error, .. } if error.is_damage() => DAMAGE,
            CliError::SecretSize(_) | CliError::RecoveryKey(_) => WRONG_SECRET,
            CliError::NoTerminal
            | CliError::WhichSlot
            | CliError::BlockSize(_)
            | CliError::UnknownOption(_)
            | CliError::OptionValue { .. }
            | CliError::PassphraseLikeRecoveryKey
            | CliError::OptionTwice(_) => USAGE,
            CliError::DamageFound | CliError::NotRewrapped { .. } => DAMAGE,
            CliError::Child(code) => *code,
            CliError::Create(_)
            | CliError::Change(_)
            | CliError::Busy { .. }
            | CliError::StillWriting { .. }
            | CliError::View { .. }
            | CliError::File { .. }
            | CliError::Exists { .. }
            | CliError::Output(_)
            | CliError::System { .. }
            | CliError::ExtPass(_)
            | CliError::PassFd { .. }
            | CliError::NoCredential { .. }
            | CliError::NoLine { .. }
            | CliError::LongLine { .. }
            | CliError::PassphrasesDiffer
            | CliError::NoSuchSlot { .. }
            | CliError::Incomplete { .. }
            | CliError::Rewrap { .. } => FAILED,
        }
    }

    /// Returns the line to print; nothing where all was said.
    pub fn message(&self) -> Option<String> {
        match self {
            CliError::DamageFound | CliError::Child(_) => None,
            // Whoever read the output has seen enough.
            CliError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => None,
            error => Some(text::without_numbers(&error.to_string())),
        }
    }
}

fn open_code(error: &OpenError) -> u8 {
    match error {
        OpenError::NoDirectory { .. }
        | OpenError::NotAVault { .. }
        | OpenError::HeaderMissing { .. }
        | OpenError::KeystoreMissing { .. }
        | OpenError::Damaged { .. }
        | OpenError::RolledBack { .. }
        | OpenError::Unlock(
            UnlockError::Format(_) | UnlockError::HostileParameters { .. } | UnlockError::DamagedSlot { .. },
        )
        | OpenError::Key(KeyError::Rejected { .. } | KeyError::NotFound { .. } | KeyError::Commitment { .. }) => {
            BAD_VAULT
        }
        OpenError::Newer { .. } => NEWER,
        OpenError::InUse { .. } => IN_USE,
        OpenError::Unlock(UnlockError::NoSuchSlot(_) | UnlockError::NoSlotOfKind(_) | UnlockError::WrongSecret(_))
        | OpenError::Key(_) => WRONG_SECRET,
        OpenError::Io { .. } => FAILED,
    }
}

fn mount_code(error: &MountError) -> u8 {
    match error {
        MountError::MountpointUnusable { .. } => BAD_MOUNTPOINT,
        MountError::NoFuseDevice(_) | MountError::NoFusermount | MountError::NoUring(_) => NO_FUSE,
        MountError::UnknownOption(_) => USAGE,
        MountError::Refused(error) if error.kind() == io::ErrorKind::PermissionDenied => NO_FUSE,
        MountError::Fusermount(_) | MountError::Refused(_) | MountError::Session(_) => FAILED,
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CliError::Open(OpenError::Unlock(UnlockError::WrongSecret(SecretKind::Passphrase))) => {
                f.write_str("wrong passphrase: try again, or another way in (`hushfs info` lists them)")
            }
            CliError::Open(OpenError::Unlock(
                error @ (UnlockError::WrongSecret(_) | UnlockError::NoSlotOfKind(_) | UnlockError::NoSuchSlot(_)),
            )) => write!(f, "{error}: `hushfs info` lists the ways in"),
            CliError::Open(error) => error.fmt(f),
            CliError::Create(error) => error.fmt(f),
            CliError::Change(ChangeError::Keystore(error @ KeystoreError::Key(cause))) => write!(f, "{error}: {cause}"),
            CliError::Change(error) => error.fmt(f),
            CliError::Mount(error) => error.fmt(f),
            CliError::Busy { mountpoint } => write!(
                f,
                "{0}: in use: close what `lsof +f -- {0}` lists, or detach it with `hushfs unmount --lazy`",
                mountpoint.display()
            ),
            CliError::NotMounted { mountpoint } => {
                write!(f, "{}: no vault is mounted there", mountpoint.display())
            }
            CliError::MountpointInVault { mountpoint } => write!(
                f,
                "{}: is in the vault itself: name a directory outside",
                mountpoint.display()
            ),
            CliError::StillWriting { vault } => write!(
                f,
                "{}: unmounted, but still locked: wait until its process has ended",
                vault.display()
            ),
            CliError::View { path, error } => write!(f, "{path}: {error}"),
            CliError::File { path, source } => write!(f, "{}: {source}", path.display()),
            CliError::Exists { path } => write!(f, "{}: exists already: name another", path.display()),
            CliError::Output(source) => write!(f, "standard output: {source}"),
            CliError::System { what, source } => write!(f, "{what}: {source}"),
            CliError::ExtPass(status) => write!(f, "the command of --extpass ended with {status}"),
            CliError::PassFd { number, source } => write!(f, "file descriptor {number}: {source}"),
            CliError::NoCredential { name } => write!(
                f,
                "no systemd credential {name:?}: set LoadCredential={name}:... in the unit"
            ),
            CliError::NoLine { source } => write!(f, "{source}: has no line with a passphrase"),
            CliError::LongLine { source } => write!(f, "{source}: too long for a passphrase: use --key-file"),
            CliError::SecretSize(error) => error.fmt(f),
            CliError::RecoveryKey(error) => error.fmt(f),
            CliError::PassphraseLikeRecoveryKey => {
                f.write_str("a passphrase cannot look like a recovery key: choose another")
            }
            CliError::PassphrasesDiffer => f.write_str("the passphrases differ: nothing was changed, try again"),
            CliError::NoTerminal => f.write_str(
                "no passphrase: standard input is not a terminal to ask on: use --passfile, --extpass, --passfd or --key-file",
            ),
            CliError::NoSuchSlot { slot } => write!(f, "no slot {slot:?}: `hushfs info` lists them"),
            CliError::WhichSlot => f.write_str("which passphrase is to be changed: name its slot with --change"),
            CliError::BlockSize(size) => {
                write!(f, "block size {size}: must be a power of two from 4096 to 65536")
            }
            CliError::UnknownOption(option) => {
                write!(f, "unknown mount option {option:?}: see `hushfs mount --help`")
            }
            CliError::OptionValue { option, reason } => write!(f, "mount option {option:?}: {reason}"),
            CliError::OptionTwice(option) => write!(f, "mount option {option:?}: given twice"),
            CliError::DamageFound => f.write_str("damage found"),
            CliError::Incomplete { count } => write!(f, "{count} not copied, see above"),
            CliError::Child(code) => write!(f, "the background process ended with code {code}"),
            CliError::NotRewrapped { count } => write!(
                f,
                "{count} not rewrapped, see above: `hushfs fsck` says more; no epoch was retired"
            ),
            CliError::Rewrap { vault, source } => write!(
                f,
                "{}: {source}: every file still opens; start rewrap again",
                vault.display()
            ),
        }
    }
}

impl std::error::Error for CliError {}

impl From<OpenError> for CliError {
    fn from(error: OpenError) -> Self {
        CliError::Open(error)
    }
}

impl From<CreateError> for CliError {
    fn from(error: CreateError) -> Self {
        CliError::Create(error)
    }
}

impl From<ChangeError> for CliError {
    fn from(error: ChangeError) -> Self {
        CliError::Change(error)
    }
}

impl From<MountError> for CliError {
    fn from(error: MountError) -> Self {
        CliError::Mount(error)
    }
}

impl From<SecretSizeError> for CliError {
    fn from(error: SecretSizeError) -> Self {
        CliError::SecretSize(error)
    }
}
