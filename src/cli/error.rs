//! Everything a command can fail with, its one line on standard error, and its exit code.

use std::{fmt, io, path::PathBuf};

use super::text;
#[cfg(feature = "aws")]
use crate::keystore::aws::AwsError;
#[cfg(feature = "pkcs11")]
use crate::keystore::pkcs11::{Pkcs11Error, UriError};
use crate::{
    agent::AgentStartError,
    crypto::passphrase::HardnessError,
    format::FormatError,
    fs::FsError,
    fuse::MountError,
    keystore::{
        AgentError, ContextError, KeyError, KeystoreError, ProviderError, RecoveryKeyError, SecretKind,
        SecretSizeError, UnlockError, agent::Refusal, identity::IdentityError, tpm::TpmError, way::WayError,
    },
    vault::{
        VaultError,
        home::{AuditError, ChangeError, CreateError, OpenError},
        record::{Backwards, RecordError},
        sealed::SealedError,
        snapshot::SnapshotError,
    },
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
const KEY_REFUSED: u8 = 10;
const KEY_UNAVAILABLE: u8 = 11;

// Those of `fsck` and `verify`, as fsck(8) has them: bits.
pub const CORRECTED: u8 = 1;
pub const LEFT: u8 = 4;
pub const OPERATION: u8 = 8;
pub const CHECK_USAGE: u8 = 16;
pub const CANCELLED: u8 = 32;

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
    /// Files may not grow as large as they are wanted.
    FileSizeLimit { bytes: u64 },
    /// The mount is in use.
    Busy { mountpoint: PathBuf },
    /// No vault is mounted there.
    NotMounted { mountpoint: PathBuf },
    /// The mountpoint is the vault or inside it.
    MountpointInVault { mountpoint: PathBuf },
    /// What a command is to write would be in the vault.
    OutputInVault { path: PathBuf },
    /// The vault stays locked although the mount is gone.
    StillWriting { vault: PathBuf },
    /// What was unmounted lies where something cannot be written any more.
    NotDurable { vault: PathBuf, source: io::Error },
    /// Something in the vault cannot be read.
    View { path: String, error: FsError },
    /// Something in the vault cannot be used, found without a view.
    InVault { path: String, source: VaultError },
    /// A file outside the vault cannot be read or written.
    File { path: PathBuf, source: io::Error },
    /// A file that is to be made exists.
    Exists { path: PathBuf },
    /// A file that is to be made exists, and may be replaced if the user says so.
    ExistsForce { path: PathBuf },
    /// A file cannot be sealed, or a sealed one not be opened.
    Sealed { path: PathBuf, error: Box<SealedError> },
    /// What is sealed would go to a terminal.
    SealedToTerminal,
    /// The name of a sealed file does not say what it was called.
    NoOutputName { path: PathBuf },
    /// There is no file to remove, or none was made of it.
    NothingToRemove,
    /// What is to be removed is a symbolic link.
    LinkToRemove { path: PathBuf },
    /// A symbolic link is not resealed.
    LinkToReseal { path: PathBuf },
    /// Another process is resealing a file.
    ResealedElsewhere { path: PathBuf },
    /// A file that was to be resealed is not the one that was read.
    NotResealed { path: PathBuf },
    /// What is to be removed is the key file that opens what was made of it.
    KeyToRemove { path: PathBuf },
    /// A file that was to be removed is not the one that was read.
    ChangedMeanwhile { path: PathBuf },
    /// A sealed file has another encryption context than was asked for.
    OtherContext { path: PathBuf, name: String },
    /// An option means something only to a keystore.
    OnlyWithKeystore { option: &'static str },
    /// A sealed file has no such way.
    NoSuchWay { way: String },
    /// Nothing would open a sealed file any more.
    LastWay { path: PathBuf },
    /// Standard output cannot be written.
    Output(io::Error),
    /// A new recovery key cannot be shown.
    RecoveryKeyOutput(io::Error),
    /// The system did not let the process do something.
    System { what: &'static str, source: io::Error },
    /// The command of --extpass failed.
    ExtPass(std::process::ExitStatus),
    /// The file descriptor of --passfd cannot be read.
    PassFd { number: i32, source: io::Error },
    /// There is no such systemd credential.
    NoCredential { name: String },
    /// A file is no customer key.
    CustomerKeySize { path: PathBuf },
    /// What was typed is no customer key.
    CustomerKeyText,
    /// What was given is no id of a key.
    NoKeyId { text: String },
    /// Something in the vault is no directory.
    NotDirectory { path: PathBuf },
    /// What was given as a command is none.
    NoCommand,
    /// The command of a slot cannot be run, or did not end in time.
    Command { program: String, source: io::Error },
    /// The command of a slot failed.
    CommandStatus {
        program: String,
        status: std::process::ExitStatus,
    },
    /// A file is no identity or recipient, or its passphrase is wrong.
    Identity { path: PathBuf, error: IdentityError },
    /// What was given as a share code is none.
    NoShareCode,
    /// The vault was not made by who has told the share code.
    OtherShareCode,
    /// A key in a token was named, but not the way to the token.
    NoModule,
    /// This hushfs was built without something.
    #[cfg(not(all(feature = "aws", feature = "pkcs11", feature = "tpm2")))]
    NotBuilt { feature: &'static str },
    /// The TPM did not seal, or there is none.
    #[cfg(feature = "tpm2")]
    Tpm(TpmError),
    /// A key of AWS KMS cannot be found.
    #[cfg(feature = "aws")]
    Aws(Box<AwsError>),
    /// A PKCS#11 module or token did not do what it was asked for.
    #[cfg(feature = "pkcs11")]
    Pkcs11(Pkcs11Error),
    /// What was given names no key in a token.
    #[cfg(feature = "pkcs11")]
    TokenKey(UriError),
    /// A source of a secret has no line.
    NoLine { source: String },
    /// A line is too long to be a passphrase.
    LongLine { source: String },
    /// What was given cannot be a secret; where it came from, if that has a name.
    SecretSize {
        source: Option<String>,
        error: SecretSizeError,
    },
    /// What was given cannot be a new secret.
    NewSecretSize {
        source: Option<String>,
        error: SecretSizeError,
    },
    /// A new passphrase cannot be stretched.
    Hardness(HardnessError),
    /// What was given is no recovery key.
    RecoveryKey(RecoveryKeyError),
    /// A new passphrase looks like a recovery key.
    PassphraseLikeRecoveryKey,
    /// A new passphrase has bytes that no keyboard gives.
    PassphraseNotTyped,
    /// What is new was not typed the same twice.
    TypedDifferently,
    /// There is nobody to ask for something, which these options would give.
    NoTerminal { what: &'static str, options: &'static str },
    /// There is no such slot.
    NoSuchSlot { slot: String },
    /// A secret was tried on some slots, which were printed, and opens none.
    NoSlotOpens { tried: usize },
    /// The name of a slot could be the number of another.
    NumberAsName { name: String },
    /// Nothing is shared with them.
    NotShared { who: String },
    /// The slot to change has to be named.
    WhichSlot,
    /// No keystore was named, and there is no place for a default one.
    WhichKeystore,
    /// What was given is no encryption context.
    Context(ContextError),
    /// A file that is to hold a policy is empty.
    EmptyPolicy { path: PathBuf },
    /// A block size that no vault has.
    BlockSize(u64),
    /// A mount option that there is not.
    UnknownOption(String),
    /// A mount option whose value does not parse.
    OptionValue { option: String, reason: String },
    /// A mount option that was given another way too.
    OptionTwice(String),
    /// Mount options that exclude each other, or one that needs another: what clap says.
    Together(String),
    /// Damage was found, which was printed.
    DamageFound,
    /// The record cannot be used.
    Record(RecordError),
    /// There is no record to remove.
    NoRecord { path: PathBuf },
    /// Nobody says where the record is.
    WhichRecord,
    /// The record would lie in the vault.
    RecordInVault { path: PathBuf },
    /// Files shall be refused for which there is nothing to compare them with.
    RollbackWithoutRecord,
    /// The vault header or the keystore is older than it was, and such are refused.
    VaultRolledBack(Backwards),
    /// There is a record that is not authentic, and older versions are refused.
    RecordRefused { path: PathBuf, problem: FormatError },
    /// Files are accepted, not directories.
    DirectoryNotAccepted { path: PathBuf },
    /// A snapshot cannot be taken, read or compared with.
    Snapshot { path: PathBuf, error: SnapshotError },
    /// `verify` or `fsck` ends with this code; what it found was printed.
    Checked(u8),
    /// There is a journal that was made elsewhere, which a repair would make worthless.
    JournalCopied { path: PathBuf },
    /// What `verify --resume` keeps would be in the vault.
    ResumeInVault { path: PathBuf },
    /// A file is not what `verify --resume` has kept for this vault.
    ResumeOther { path: PathBuf },
    /// The agent does not start.
    Agent(AgentStartError),
    /// There is no such group.
    NoGroup { name: String },
    /// No socket was named, and there is no place for a default one.
    WhichSocket,
    /// The audit log cannot be read; calls that cannot be recorded are an error of opening or changing.
    Audit(AuditError),
    /// There is no audit log.
    NoAuditLog { path: PathBuf },
    /// The keystore records no calls.
    NotAudited { path: PathBuf },
    /// Who opened which file would be recorded in the vault.
    FileAuditInVault,
    /// Who opened which file would have to be recorded by an agent.
    FileAuditByAgent,
    /// What was given is no time.
    AuditTime(String),
    /// Names in a directory do not open, or something is mounted in their place.
    EntriesLeftOut { path: String, count: u64 },
    /// A device is not copied unless the user says so.
    DeviceLeftOut { path: String },
    /// Someone has put something else in the place of what was made.
    Exchanged { path: PathBuf },
    /// Some of many things were not done, which was told; and the exit code of the first whose key may not be used.
    LeftOut {
        count: u64,
        done: &'static str,
        key: Option<u8>,
    },
    /// The background process ended before it was ready; it has said why.
    Child(u8),
    /// Headers could not be rewrapped; they were printed.
    NotRewrapped { count: usize },
    /// A file has several names, which a copy would part.
    SeveralNames { path: String },
    /// rewrap was stopped by an error of the backing filesystem.
    Rewrap { vault: PathBuf, source: io::Error },
}

impl CliError {
    /// Returns the exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Open(error) => open_code(error),
            CliError::Create(CreateError::InUse { .. }) | CliError::ResealedElsewhere { .. } => IN_USE,
            CliError::Create(CreateError::Key(error)) => key_code(error),
            CliError::Create(CreateError::Keystore(error)) => keystore_code(error),
            CliError::Create(CreateError::Audit(error)) => audit_code(error),
            CliError::Create(CreateError::Record(error) | CreateError::Log(error)) | CliError::Change(error) => {
                change_code(error)
            }
            CliError::Mount(error) => mount_code(error),
            CliError::NotMounted { .. } | CliError::MountpointInVault { .. } => BAD_MOUNTPOINT,
            CliError::View { error, .. } if error.key_error().is_some() => error.key_error().map_or(DAMAGE, key_code),
            CliError::View { error, .. } if error.is_damage() => DAMAGE,
            CliError::InVault { source, .. } => match source {
                VaultError::Io(_) => FAILED,
                VaultError::EpochKey(_, error) => key_code(error),
                _ => DAMAGE,
            },
            CliError::CustomerKeySize { .. } | CliError::CustomerKeyText => WRONG_SECRET,
            CliError::Identity {
                error: IdentityError::NoMemory(_),
                ..
            }
            | CliError::Hardness(_) => FAILED,
            CliError::SecretSize { .. } | CliError::RecoveryKey(_) | CliError::Identity { .. } => WRONG_SECRET,
            CliError::NoSlotOpens { .. } => WRONG_SECRET,
            CliError::OtherShareCode => BAD_VAULT,
            #[cfg(feature = "tpm2")]
            CliError::Tpm(error) => tpm_code(*error),
            #[cfg(feature = "aws")]
            CliError::Aws(error) if error.is_usage() => USAGE,
            #[cfg(feature = "aws")]
            CliError::Aws(error) => provider_code(error.reason()),
            #[cfg(feature = "pkcs11")]
            CliError::Pkcs11(Pkcs11Error::KeyExists { .. }) => FAILED,
            #[cfg(feature = "pkcs11")]
            CliError::Pkcs11(error) => provider_code(error.reason()),
            #[cfg(feature = "pkcs11")]
            CliError::TokenKey(_) => USAGE,
            CliError::Audit(error) => audit_code(error),
            CliError::Sealed { error, .. } => sealed_code(error),
            CliError::OtherContext { .. } => DAMAGE,
            CliError::SealedToTerminal
            | CliError::NoOutputName { .. }
            | CliError::NothingToRemove
            | CliError::LinkToRemove { .. }
            | CliError::LinkToReseal { .. }
            | CliError::KeyToRemove { .. }
            | CliError::OnlyWithKeystore { .. }
            | CliError::FileAuditInVault
            | CliError::FileAuditByAgent
            | CliError::NotAudited { .. }
            | CliError::AuditTime(_)
            | CliError::NoTerminal { .. }
            | CliError::NewSecretSize { .. }
            | CliError::WhichSlot
            | CliError::NumberAsName { .. }
            | CliError::WhichKeystore
            | CliError::Context(_)
            | CliError::EmptyPolicy { .. }
            | CliError::BlockSize(_)
            | CliError::UnknownOption(_)
            | CliError::OptionValue { .. }
            | CliError::PassphraseLikeRecoveryKey
            | CliError::PassphraseNotTyped
            | CliError::OptionTwice(_)
            | CliError::Together(_)
            | CliError::NoCommand
            | CliError::NoKeyId { .. }
            | CliError::NotDirectory { .. }
            | CliError::NoShareCode
            | CliError::OutputInVault { .. }
            | CliError::ResumeInVault { .. }
            | CliError::ResumeOther { .. }
            | CliError::NoModule => USAGE,
            #[cfg(not(all(feature = "aws", feature = "pkcs11", feature = "tpm2")))]
            CliError::NotBuilt { .. } => USAGE,
            CliError::Agent(AgentStartError::Running { .. }) => IN_USE,
            CliError::NoGroup { .. } | CliError::WhichSocket => USAGE,
            CliError::Agent(_) => FAILED,
            CliError::DamageFound | CliError::NotRewrapped { .. } | CliError::EntriesLeftOut { .. } => DAMAGE,
            CliError::Record(RecordError::Newer { .. }) => NEWER,
            CliError::Record(RecordError::Busy { .. } | RecordError::InUse { .. }) => IN_USE,
            CliError::Record(_) | CliError::NoRecord { .. } => FAILED,
            CliError::WhichRecord
            | CliError::RecordInVault { .. }
            | CliError::RollbackWithoutRecord
            | CliError::DirectoryNotAccepted { .. } => USAGE,
            CliError::VaultRolledBack(_) | CliError::RecordRefused { .. } => BAD_VAULT,
            CliError::Snapshot { error, .. } => match error {
                SnapshotError::Format(FormatError::Newer(_)) => NEWER,
                SnapshotError::Format(_) => DAMAGE,
                SnapshotError::OtherVault => USAGE,
                SnapshotError::Io(_) => FAILED,
            },
            CliError::Child(code) | CliError::Checked(code) => *code,
            CliError::LeftOut { key, .. } => key.unwrap_or(FAILED),
            CliError::Create(_)
            | CliError::FileSizeLimit { .. }
            | CliError::Busy { .. }
            | CliError::StillWriting { .. }
            | CliError::NotDurable { .. }
            | CliError::View { .. }
            | CliError::File { .. }
            | CliError::Exists { .. }
            | CliError::Output(_)
            | CliError::RecoveryKeyOutput(_)
            | CliError::System { .. }
            | CliError::ExtPass(_)
            | CliError::PassFd { .. }
            | CliError::NoCredential { .. }
            | CliError::Command { .. }
            | CliError::CommandStatus { .. }
            | CliError::NoLine { .. }
            | CliError::LongLine { .. }
            | CliError::TypedDifferently
            | CliError::NoSuchSlot { .. }
            | CliError::NoAuditLog { .. }
            | CliError::ExistsForce { .. }
            | CliError::DeviceLeftOut { .. }
            | CliError::Exchanged { .. }
            | CliError::ChangedMeanwhile { .. }
            | CliError::NotResealed { .. }
            | CliError::NoSuchWay { .. }
            | CliError::LastWay { .. }
            | CliError::SeveralNames { .. }
            | CliError::NotShared { .. }
            | CliError::JournalCopied { .. }
            | CliError::Rewrap { .. } => FAILED,
        }
    }

    /// Returns the exit code of `verify` and `fsck`, which have their own.
    pub fn check_code(&self) -> u8 {
        match self {
            CliError::Checked(code) => *code,
            other if other.exit_code() == USAGE => CHECK_USAGE,
            _ => OPERATION,
        }
    }

    /// Returns the line to print; nothing where all was said.
    pub fn message(&self) -> Option<String> {
        match self {
            CliError::DamageFound | CliError::Checked(_) | CliError::Child(_) => None,
            // Whoever read the output has seen enough.
            CliError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => None,
            error => {
                let (name, advice) = in_aws_words(error);
                let name = name.map_or_else(String::new, |name| format!("{name}: "));
                Some(format!("{name}{}{advice}", text::message(&error.to_string())))
            }
        }
    }
}

fn open_code(error: &OpenError) -> u8 {
    match error {
        OpenError::NoDirectory { .. }
        | OpenError::NotAVault { .. }
        | OpenError::HeaderMissing { .. }
        | OpenError::KeystoreMissing { .. }
        | OpenError::NoKeystore { .. }
        | OpenError::Damaged { .. }
        | OpenError::RolledBack { .. }
        | OpenError::OtherVault { .. }
        | OpenError::InPlaceOf { .. }
        | OpenError::Unlock(
            UnlockError::Format(_) | UnlockError::HostileParameters { .. } | UnlockError::DamagedSlot { .. },
        )
        | OpenError::Key(KeyError::Rejected { .. } | KeyError::IncorrectKey { .. } | KeyError::Commitment { .. }) => {
            BAD_VAULT
        }
        OpenError::Key(error) => key_code(error),
        OpenError::WrongCustomerKey => WRONG_SECRET,
        OpenError::NoCustomerKeys => KEY_REFUSED,
        OpenError::KeystoreOfVault { .. } => USAGE,
        OpenError::Newer { .. } => NEWER,
        OpenError::InUse { .. } | OpenError::JournalInUse { .. } => IN_USE,
        OpenError::Unlock(UnlockError::NoSuchSlot(_) | UnlockError::NoSlotOfKind(_) | UnlockError::WrongSecret(_)) => {
            WRONG_SECRET
        }
        OpenError::Unlock(UnlockError::Tpm { error, .. }) => tpm_code(*error),
        OpenError::Unlock(UnlockError::Remote { error, .. }) => provider_code(*error),
        OpenError::Audit(error) => audit_code(error),
        OpenError::Unlock(UnlockError::NoMemory { .. }) | OpenError::FilesApart { .. } | OpenError::Io { .. } => FAILED,
    }
}

fn audit_code(error: &AuditError) -> u8 {
    match error {
        AuditError::InUse { .. } => IN_USE,
        error if error.is_damage() => DAMAGE,
        _ => FAILED,
    }
}

fn sealed_code(error: &SealedError) -> u8 {
    match error {
        SealedError::Format(FormatError::NotOne) => BAD_VAULT,
        SealedError::Format(FormatError::Newer(_)) => NEWER,
        SealedError::Format(_) | SealedError::Damaged { .. } | SealedError::WrongEnd => DAMAGE,
        SealedError::Way(error) => way_code(error),
        SealedError::Read(_) | SealedError::Write(_) => FAILED,
    }
}

fn way_code(error: &WayError) -> u8 {
    match error {
        WayError::Damaged { .. } | WayError::Costly { .. } => DAMAGE,
        WayError::Unlock(UnlockError::Tpm { error, .. }) => tpm_code(*error),
        WayError::Unlock(UnlockError::Remote { error, .. }) | WayError::Remote { error, .. } => provider_code(*error),
        WayError::Key(error) => key_code(error),
        WayError::Unlock(UnlockError::NoMemory { .. }) | WayError::Hardness(HardnessError::NoMemory { .. }) => FAILED,
        WayError::Context(_) | WayError::Hardness(HardnessError::OutOfRange) => USAGE,
        WayError::NoWayOfKind(_)
        | WayError::WrongSecret(_)
        | WayError::NotOfKeystore { .. }
        | WayError::Unlock(_)
        | WayError::Recipient => WRONG_SECRET,
    }
}

fn tpm_code(error: TpmError) -> u8 {
    match error {
        TpmError::Name | TpmError::PinLength => USAGE,
        TpmError::NoTpm => KEY_UNAVAILABLE,
        TpmError::NoPin
        | TpmError::WrongPin
        | TpmError::LockedOut
        | TpmError::Registers
        | TpmError::OtherTpm
        | TpmError::Refused(_) => WRONG_SECRET,
    }
}

fn provider_code(error: ProviderError) -> u8 {
    match error {
        ProviderError::Unavailable => KEY_UNAVAILABLE,
        ProviderError::NotFound
        | ProviderError::Disabled
        | ProviderError::PendingDeletion
        | ProviderError::AccessDenied
        | ProviderError::Unauthorized
        | ProviderError::Unsupported => KEY_REFUSED,
        ProviderError::Rejected | ProviderError::IncorrectKey | ProviderError::Commitment => DAMAGE,
        ProviderError::Limit => FAILED,
    }
}

fn key_code(error: &KeyError) -> u8 {
    match error {
        KeyError::Unavailable { .. } => KEY_UNAVAILABLE,
        KeyError::NotFound { .. }
        | KeyError::Disabled { .. }
        | KeyError::PendingDeletion { .. }
        | KeyError::NoProvider { .. }
        | KeyError::Unsupported { .. }
        | KeyError::AccessDenied { .. }
        | KeyError::Denied { .. }
        | KeyError::NotBrought { .. } => KEY_REFUSED,
        KeyError::Rejected { .. } | KeyError::IncorrectKey { .. } | KeyError::Commitment { .. } => DAMAGE,
        KeyError::Limit { .. } => FAILED,
    }
}

fn change_code(error: &ChangeError) -> u8 {
    match error {
        ChangeError::KeystoreInUse { .. } => IN_USE,
        ChangeError::Keystore(error) => keystore_code(error),
        ChangeError::HeldByAgent => USAGE,
        ChangeError::Agent(error) => agent_code(error),
        ChangeError::NoSuchCustomerKey { .. } => KEY_REFUSED,
        ChangeError::Audit(error) => audit_code(error),
        ChangeError::TooManyEpochs
        | ChangeError::TooManyKeys
        | ChangeError::UnexpectedAnswer
        | ChangeError::TooManyChains
        | ChangeError::TooManyDirectories
        | ChangeError::NoDirectoryKey
        | ChangeError::CustomerKeyInUse { .. }
        | ChangeError::KeystoreChanged { .. }
        | ChangeError::Format { .. }
        | ChangeError::Io { .. } => FAILED,
    }
}

fn agent_code(error: &AgentError) -> u8 {
    match error {
        error if error.is_transient() => KEY_UNAVAILABLE,
        AgentError::Refused(Refusal::Keystore(error)) => keystore_code(error),
        AgentError::NotAllowed { .. } => KEY_REFUSED,
        AgentError::Version { .. } => NEWER,
        AgentError::Refused(_)
        | AgentError::Unreachable { .. }
        | AgentError::NoAnswer { .. }
        | AgentError::Protocol { .. } => FAILED,
    }
}

fn keystore_code(error: &KeystoreError) -> u8 {
    match error {
        KeystoreError::Key(error) => key_code(error),
        KeystoreError::RemoteSlot { error, .. } => provider_code(*error),
        KeystoreError::NoSuchKey { .. }
        | KeystoreError::NoSuchAlias { .. }
        | KeystoreError::Managed { .. }
        | KeystoreError::NotOwner { .. }
        | KeystoreError::NotPendingDeletion { .. } => KEY_REFUSED,
        KeystoreError::NotAnArn { .. }
        | KeystoreError::InvalidAlias { .. }
        | KeystoreError::ReservedAlias { .. }
        | KeystoreError::DescriptionLength(_)
        | KeystoreError::DeletionWindow { .. }
        | KeystoreError::RotationPeriod { .. }
        | KeystoreError::InvalidTag { .. }
        | KeystoreError::Policy { .. }
        | KeystoreError::PolicyLockout { .. } => USAGE,
        KeystoreError::OtherVault { .. } => BAD_VAULT,
        KeystoreError::LabelLength(_)
        | KeystoreError::LabelTaken { .. }
        | KeystoreError::TooManySlots
        | KeystoreError::NoSuchSlot { .. }
        | KeystoreError::LastSlot { .. }
        | KeystoreError::UnusableSlot { .. }
        | KeystoreError::Hardness(_)
        | KeystoreError::Recipient
        | KeystoreError::AuditSeed
        | KeystoreError::TooManyVaults { .. }
        | KeystoreError::AliasTaken { .. }
        | KeystoreError::TooManyAliases
        | KeystoreError::TooManyKeys
        | KeystoreError::RotationDue { .. }
        | KeystoreError::TooManyRotations { .. }
        | KeystoreError::TooManyTags { .. } => FAILED,
    }
}

/// Returns the name that AWS KMS gives the error, and what to do about it, to be put before and behind its text.
fn in_aws_words(error: &CliError) -> (Option<&'static str>, &'static str) {
    let name = match error {
        // Said of the two files, which is what the user has to look at.
        CliError::Open(OpenError::Key(KeyError::Rejected { .. })) => None,
        CliError::Open(OpenError::Key(error)) | CliError::Create(CreateError::Key(error)) => error.aws_name(),
        CliError::Open(OpenError::Unlock(UnlockError::Remote { error, .. })) => error.aws_name(),
        CliError::Create(CreateError::Keystore(error)) | CliError::Change(ChangeError::Keystore(error)) => {
            error.aws_name()
        }
        CliError::Create(CreateError::Record(ChangeError::Keystore(error))) => error.aws_name(),
        CliError::Change(ChangeError::Agent(error)) => error.aws_name(),
        CliError::View { error, .. } => error.key_error().and_then(KeyError::aws_name),
        CliError::Sealed { error, .. } => match &**error {
            SealedError::Way(WayError::Key(error)) => error.aws_name(),
            SealedError::Way(WayError::Remote { error, .. } | WayError::Unlock(UnlockError::Remote { error, .. })) => {
                error.aws_name()
            }
            _ => None,
        },
        _ => None,
    };
    let key_error = match error {
        CliError::Open(OpenError::Key(error))
        | CliError::Create(CreateError::Key(error))
        | CliError::Change(ChangeError::Keystore(KeystoreError::Key(error))) => Some(error),
        CliError::View { error, .. } => error.key_error(),
        CliError::Sealed { error, .. } => match &**error {
            SealedError::Way(WayError::Key(error)) => Some(error),
            _ => None,
        },
        _ => None,
    };
    let advice = match key_error {
        Some(KeyError::Disabled { .. }) => ": enable it with `hushfs key enable`",
        Some(KeyError::PendingDeletion { .. }) => ": keep it with `hushfs key undelete`, then enable it",
        Some(KeyError::Unavailable { .. }) => ": try again later",
        _ => "",
    };
    (name, advice)
}

fn mount_code(error: &MountError) -> u8 {
    match error {
        MountError::MountpointUnusable { .. } => BAD_MOUNTPOINT,
        MountError::NoFuseDevice(_) | MountError::NoFusermount | MountError::NoUring(_) => NO_FUSE,
        MountError::UnknownOption(_) => USAGE,
        MountError::Refused(error) if error.kind() == io::ErrorKind::PermissionDenied => NO_FUSE,
        MountError::Fusermount(_) | MountError::Refused(_) | MountError::Session(_) | MountError::NotDurable => FAILED,
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
            CliError::OutputInVault { path } => write!(
                f,
                "{}: would lie in the vault itself, among what is encrypted: name a place outside",
                path.display()
            ),
            CliError::StillWriting { vault } => write!(
                f,
                "{}: unmounted, but still locked: wait until its process has ended",
                vault.display()
            ),
            CliError::FileSizeLimit { bytes } => write!(
                f,
                "files may not be larger than {bytes} bytes here (RLIMIT_FSIZE, `ulimit -Hf`), and what is written across that would be lost: lift the \
                 limit, or mount with --ro"
            ),
            CliError::NotDurable { vault, source } => write!(
                f,
                "{}: unmounted, but what was changed last may not be on disk: {source}: the mount's log says more",
                vault.display()
            ),
            CliError::View { path, error } => write!(f, "{path}: {error}"),
            CliError::InVault { path, source } => write!(f, "{path}: {source}"),
            CliError::File { path, source } => write!(f, "{}: {source}", path.display()),
            CliError::Exists { path } => write!(f, "{}: exists already: name another", path.display()),
            CliError::ExistsForce { path } => write!(
                f,
                "{}: exists already: name another with -o, or replace it with --force",
                path.display()
            ),
            CliError::Sealed { path, error } => match &**error {
                SealedError::Format(FormatError::NotOne) => write!(f, "{}: not a sealed file", path.display()),
                error @ SealedError::Way(
                    WayError::NoWayOfKind(_) | WayError::WrongSecret(_) | WayError::NotOfKeystore { .. },
                ) => write!(f, "{0}: {error}: `hushfs info {0}` lists the ways in", path.display()),
                error => write!(f, "{}: {error}", path.display()),
            },
            CliError::SealedToTerminal => {
                f.write_str("standard output is a terminal: redirect it, or name a file with -o")
            }
            CliError::NoOutputName { path } => write!(
                f,
                "{}: does not end in .hush: name the file to make with -o",
                path.display()
            ),
            CliError::NothingToRemove => f.write_str("--remove removes one file when another was made of it: name both"),
            CliError::LinkToRemove { path } => write!(
                f,
                "{}: a symbolic link, and --remove removes files: name the file itself",
                path.display()
            ),
            CliError::LinkToReseal { path } => write!(
                f,
                "{}: a symbolic link, which `reseal` would replace by a file: name the file itself",
                path.display()
            ),
            CliError::ResealedElsewhere { path } => {
                write!(f, "{}: is being resealed by another process: try again", path.display())
            }
            CliError::NotResealed { path } => write!(
                f,
                "{}: was changed meanwhile, and not resealed: try again",
                path.display()
            ),
            CliError::KeyToRemove { path } => write!(
                f,
                "{}: is the key file that opens what is made of it: with --remove nothing would",
                path.display()
            ),
            CliError::ChangedMeanwhile { path } => write!(
                f,
                "{}: was changed meanwhile, and not removed: what was made of it may be of the old or the new",
                path.display()
            ),
            CliError::OtherContext { path, name } => write!(
                f,
                "{}: its encryption context has not that value for {name:?}",
                path.display()
            ),
            CliError::OnlyWithKeystore { option } => {
                write!(f, "{option} is for opening a keystore: name one with --keystore or, to seal, a key with --key")
            }
            CliError::NoSuchWay { way } => write!(f, "no way {way:?}: `hushfs info` lists them"),
            CliError::LastWay { path } => write!(f, "{}: nothing would open it any more", path.display()),
            CliError::Output(source) => write!(f, "standard output: {source}"),
            CliError::RecoveryKeyOutput(source) => write!(
                f,
                "standard output: {source}: the recovery key is not stored, nothing was changed; have it printed where it can be read"
            ),
            CliError::System { what, source } => write!(f, "{what}: {source}"),
            CliError::ExtPass(status) => write!(f, "the command of --extpass ended with {status}"),
            CliError::PassFd { number, source } => write!(f, "file descriptor {number}: {source}"),
            CliError::NoCredential { name } => write!(
                f,
                "no systemd credential {name:?}: set LoadCredential={name}:... in the unit"
            ),
            CliError::CustomerKeySize { path } => write!(
                f,
                "{}: not a customer key: it has 32 bytes and nothing else",
                path.display()
            ),
            CliError::CustomerKeyText => {
                f.write_str("not a customer key: its 32 bytes are typed as 44 characters of base64, or 64 hexadecimal digits")
            }
            CliError::NoKeyId { text } => write!(f, "{text:?}: not the id of a key: it has 32 hexadecimal digits"),
            CliError::NotDirectory { path } => write!(
                f,
                "{}: not a directory: `hushfs rewrap --key` gives a file another key",
                path.display()
            ),
            CliError::NoCommand => f.write_str("not a command: write a program and its arguments, quoted as for a shell"),
            CliError::Command { program, source } => write!(f, "{program}: {source}"),
            CliError::CommandStatus { program, status } => write!(f, "{program} ended with {status}"),
            CliError::Identity { path, error } => write!(f, "{}: {error}", path.display()),
            CliError::NoShareCode => f.write_str("not a share code: it has 16 letters and digits, such as 9KMB-T0XN-4ZQH-7RVD"),
            CliError::OtherShareCode => f.write_str(
                "the vault has another share code: it is not the one that was shared with you, or was shared anew; ask who did",
            ),
            CliError::NoModule => f.write_str("where is the token: name its PKCS#11 module with --pkcs11-module"),
            #[cfg(not(all(feature = "aws", feature = "pkcs11", feature = "tpm2")))]
            CliError::NotBuilt { feature } => write!(
                f,
                "this hushfs was built without {feature}: build it with `cargo build --release --features {feature}`"
            ),
            #[cfg(feature = "tpm2")]
            CliError::Tpm(error) => error.fmt(f),
            #[cfg(feature = "aws")]
            CliError::Aws(error) => write!(f, "AWS KMS: {error}"),
            #[cfg(feature = "pkcs11")]
            CliError::Pkcs11(error) => error.fmt(f),
            #[cfg(feature = "pkcs11")]
            CliError::TokenKey(error) => error.fmt(f),
            CliError::NoLine { source } => write!(f, "{source}: has no line with a passphrase"),
            CliError::LongLine { source } => write!(f, "{source}: too long for a passphrase: use --key-file"),
            CliError::SecretSize { source, error } | CliError::NewSecretSize { source, error } => match source {
                Some(source) => write!(f, "{source}: {error}"),
                None => error.fmt(f),
            },
            CliError::Hardness(error) => error.fmt(f),
            CliError::RecoveryKey(error) => error.fmt(f),
            CliError::PassphraseLikeRecoveryKey => {
                f.write_str("a passphrase cannot look like a recovery key: choose another")
            }
            CliError::PassphraseNotTyped => f.write_str(
                "a passphrase cannot have control characters or start with a byte order mark, for nobody could type it: choose another, or use a key file, which may have any bytes",
            ),
            CliError::TypedDifferently => f.write_str("the second time it was typed differently: nothing was changed, try again"),
            CliError::NoTerminal { what, options } => {
                write!(f, "no {what}: standard input is not a terminal to ask on: use {options}")
            }
            CliError::NoSuchSlot { slot } => write!(f, "no slot {slot:?}: `hushfs info` lists them"),
            CliError::NoSlotOpens { tried: 0 } => f.write_str("no slot is for such a secret: `hushfs info` lists them"),
            CliError::NoSlotOpens { .. } => f.write_str("no slot opens with it"),
            CliError::NumberAsName { name } => write!(
                f,
                "{name:?}: a slot cannot be called by a number, which may be another's: choose a name with letters"
            ),
            CliError::NotShared { who } => write!(f, "not shared with {who:?}: `hushfs share list` says with whom"),
            CliError::WhichSlot => f.write_str("which passphrase is to be changed: name its slot with --change"),
            CliError::WhichKeystore => {
                f.write_str("no keystore: name a vault or --keystore, for there is no home directory to look in")
            }
            CliError::Context(error) => error.fmt(f),
            CliError::EmptyPolicy { path } => write!(
                f,
                "{}: no policy in it: `--default` sets the default one",
                path.display()
            ),
            CliError::BlockSize(size) => {
                write!(f, "block size {size}: must be a power of two from 4096 to 65536")
            }
            CliError::UnknownOption(option) => {
                write!(f, "unknown mount option {option:?}: see `hushfs mount --help`")
            }
            CliError::OptionValue { option, reason } => write!(f, "mount option {option:?}: {reason}"),
            CliError::OptionTwice(option) => write!(f, "mount option {option:?}: given twice"),
            CliError::Together(reason) => f.write_str(reason),
            CliError::Agent(error) => error.fmt(f),
            CliError::NoGroup { name } => write!(f, "no group {name:?} on this machine"),
            CliError::WhichSocket => f.write_str("no socket: name one, for XDG_RUNTIME_DIR is not set"),
            CliError::Audit(error) => error.fmt(f),
            CliError::NoAuditLog { path } => write!(
                f,
                "{}: no audit log there: `hushfs keystore audit on` begins one",
                path.display()
            ),
            CliError::NotAudited { path } => write!(
                f,
                "{}: the keystore records nothing: switch that on with `hushfs keystore audit on`",
                path.display()
            ),
            CliError::FileAuditInVault => f.write_str(
                "--audit per-file would write names of files into the vault: it needs a keystore of its own (`hushfs keystore init`)",
            ),
            CliError::FileAuditByAgent => f.write_str(
                "--audit per-file writes to the log beside the keystore, which an agent keeps from others: mount with --keystore, or without --audit",
            ),
            CliError::AuditTime(text) => write!(
                f,
                "{text:?} is no time: write 2026-01-31, 2026-01-31T12:00:00Z, or so long ago: 2h, 7days"
            ),
            CliError::DamageFound => f.write_str("damage found"),
            CliError::Record(error) => error.fmt(f),
            CliError::NoRecord { path } => write!(f, "there is no record of this vault in {}", path.display()),
            CliError::WhichRecord => {
                f.write_str("where is the record? name its directory: `--record` with a directory")
            }
            CliError::RecordInVault { path } => write!(
                f,
                "{}: a record in the vault would be put back together with it: name another directory",
                path.display()
            ),
            CliError::RollbackWithoutRecord => {
                f.write_str("`--rollback refuse` needs something to compare files with: add `--record`")
            }
            CliError::RecordRefused { path, problem } => write!(
                f,
                "the record in {} was changed or damaged, or is of another vault ({problem}): put it back from a backup, or begin another with `hushfs record forget`",
                path.display()
            ),
            CliError::VaultRolledBack(backwards) => write!(
                f,
                "the vault is {backwards}: if that is right, `hushfs record accept --header`"
            ),
            CliError::DirectoryNotAccepted { path } => write!(
                f,
                "{}: a directory: name files, or accept all with `--all`",
                path.display()
            ),
            CliError::Snapshot { path, error } => write!(f, "{}: {error}", path.display()),
            CliError::Checked(code) => write!(f, "the check ends with {code}"),
            CliError::JournalCopied { path } => write!(
                f,
                "{}: a journal of an unclean end, made elsewhere, which a repair would make worthless: add --apply-journal if the vault was copied as that end had left it, otherwise remove the journal",
                path.display()
            ),
            CliError::ResumeInVault { path } => {
                write!(f, "{}: what is kept of a run must not be in the vault: name a file elsewhere", path.display())
            }
            CliError::ResumeOther { path } => write!(
                f,
                "{}: not kept by `hushfs verify --resume` for this vault: name another file, or remove this one",
                path.display()
            ),
            CliError::EntriesLeftOut { path, count } => write!(
                f,
                "{path}: {} left out, whose names do not open or which lie on another filesystem: `hushfs fsck` names them",
                text::count(*count, "entry")
            ),
            CliError::DeviceLeftOut { path } => write!(
                f,
                "{path}: a device, which whoever keeps the vault may have made: --with-privileges copies it too"
            ),
            CliError::Exchanged { path } => write!(
                f,
                "{}: another user has put something else in its place: name a directory that only you can write to",
                path.display()
            ),
            CliError::LeftOut { count, done, .. } => write!(f, "{} not {done}, see above", text::count(*count, "file")),
            CliError::Child(code) => write!(f, "the background process ended with code {code}"),
            CliError::NotRewrapped { count } => write!(
                f,
                "{count} not rewrapped, see above: `hushfs fsck` says more; no epoch was retired"
            ),
            CliError::SeveralNames { path } => write!(
                f,
                "{path}: has several names: copy it, and link the copy under the other names"
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

impl From<AuditError> for CliError {
    fn from(error: AuditError) -> Self {
        CliError::Open(OpenError::Audit(error))
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

impl From<KeystoreError> for CliError {
    fn from(error: KeystoreError) -> Self {
        CliError::Change(ChangeError::Keystore(error))
    }
}

impl From<MountError> for CliError {
    fn from(error: MountError) -> Self {
        CliError::Mount(error)
    }
}

impl From<AgentStartError> for CliError {
    fn from(error: AgentStartError) -> Self {
        CliError::Agent(error)
    }
}

impl From<SecretSizeError> for CliError {
    fn from(error: SecretSizeError) -> Self {
        CliError::SecretSize { source: None, error }
    }
}
