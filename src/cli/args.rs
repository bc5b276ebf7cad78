//! The arguments of every command. What stands here is also the help and the manual pages.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use clap::{
    ArgGroup, Args, Parser, Subcommand, ValueEnum,
    builder::{OsStringValueParser, TypedValueParser},
};

use crate::{
    crypto::{
        block::Suite,
        passphrase::{MEMORY_KIB_MAX, MEMORY_KIB_MIN_NEW},
    },
    fuse::{StayAwake, Transport},
    keystore::local::{DELETION_DAYS_DEFAULT, ROTATION_DAYS_DEFAULT},
};

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
    /// Says what a vault or a sealed file is, without a passphrase and therefore without authenticating anything
    Info(InfoArgs),
    /// Ways into a vault or a keystore: passphrases, key files, recovery keys
    #[command(subcommand)]
    Slot(SlotCommand),
    /// Who a vault is shared with
    #[command(subcommand)]
    Share(ShareCommand),
    /// Identities, with which one opens what others share
    #[command(subcommand)]
    Recipient(RecipientCommand),
    /// Master keys: made, named, rotated, disabled, deleted
    #[command(subcommand, after_help = KEY_HELP)]
    Key(KeyCommand),
    /// Keystores outside vaults, and the audit logs of keystores
    #[command(subcommand)]
    Keystore(KeystoreCommand),
    /// Holds a keystore, and gives other users the use of its keys as far as their policies allow
    Agent(AgentArgs),
    /// Has an agent forget its keys and end
    Lock(LockArgs),
    /// Who used and changed keys: the records of an audit log
    #[command(subcommand)]
    Audit(AuditCommand),
    /// The keys of a vault and their epochs
    #[command(subcommand)]
    Vault(VaultCommand),
    /// Files in a vault
    #[command(subcommand)]
    File(FileCommand),
    /// Changes a passphrase, and shuts out who knows the old one
    Passwd(PasswdArgs),
    /// Moves the headers of files to the newest epoch of their key, or to another key; contents stay. May be interrupted and started again
    Rewrap(RewrapArgs),
    /// Encrypts files again under new data keys
    Rekey(RekeyArgs),
    /// Reads and authenticates every file
    Verify(VerifyArgs),
    /// Checks the structure: names, headers, leftovers; with --repair mends it
    Fsck(FsckArgs),
    /// Lists what is in a vault, sealed, in a file to compare the vault with later: `verify --against`
    Snapshot(SnapshotArgs),
    /// What was last seen of a vault on this machine, against older versions put back: `mount --record`
    #[command(subcommand)]
    Record(RecordCommand),
    /// Lists directories of a vault without mounting it
    Ls(LsArgs),
    /// Writes files of a vault to standard output without mounting it
    Cat(CatArgs),
    /// Copies a file or a directory out of a vault without mounting it
    Export(ExportArgs),
    /// Seals a single file, for who may open it
    #[command(after_help = SEAL_HELP)]
    Seal(Box<SealArgs>),
    /// Opens a sealed file
    Open(Box<OpenArgs>),
    /// Changes who can open a sealed file; its content stays as it is
    Reseal(Box<ResealArgs>),
    /// Measures how fast this machine seals and opens, and what a guess at a passphrase takes
    Speed(SpeedArgs),
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

/// The longest time keys are used without a question: a day, in seconds.
const KEY_TTL_MAX: u64 = 86_400;

/// The longest time keys are used without an answer: 30 days, in seconds.
const KEY_MAX_STALE_MAX: u64 = 30 * 86_400;

const MOUNT_HELP: &str = "\
In /etc/fstab, with /sbin/mount.fuse or with hushfs linked to /sbin/mount.fuse.hushfs:

  /srv/vault  /srv/private  fuse.hushfs  passfile=/etc/hushfs/private.pass,allow_other,nofail  0 0

Mount options: ro, rw, allow_other, noallow_other, acl, noacl, shared, audit=per-file, record, record=DIR, rollback=refuse, idle=TIME, key-ttl=TIME, key-max-stale=TIME, journal[=WHEN], no-sandbox, recovery, fsname=NAME, log-file=FILE, passfile=FILE,
extpass=COMMAND, key-file=FILE, credential=NAME, slot=SLOT, keystore=PATH, identity=FILE, share-code=CODE, slot-command=COMMAND, tpm2, tpm2=TPM,
kms-key=KEY, agent=SOCKET, customer-key=FILE, pkcs11-key=URI, pkcs11-module=FILE, pin-file=FILE, and those of mount(8): nosuid, suid, nodev, dev, noexec,
exec, noatime, atime, nodiratime, diratime, relatime, strictatime, sync, async, dirsync.";

const KEY_HELP: &str = "\
KEY is the id of a key, an alias (alias/mail) or an ARN as `describe` shows it. Without VAULT and --keystore, keys are those of the
keystore in $XDG_CONFIG_HOME/hushfs/keystore (~/.config/hushfs/keystore).";

const SEAL_HELP: &str = "\
What the file opens with: each --recipient, and one of --key-file, --customer-key, --credential, --slot-command, --kms-key, --pkcs11-key and the
sources of a passphrase, or, with --key, a key of a keystore, which the secret opens then. With none of them a passphrase is asked for.";

/// Where the secret that opens the vault comes from. Without any: the systemd credential `hushfs` if there is one, or else a prompt.
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub struct SecretArgs {
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
    /// This file as a whole is the key: 32 bytes to 1 MiB
    #[arg(long, value_name = "FILE", group = "secret", help_heading = "Secret")]
    pub key_file: Option<PathBuf>,
    /// The passphrase is this systemd credential; or the key, for a slot made with it
    #[arg(long, value_name = "NAME", group = "secret", help_heading = "Secret")]
    pub credential: Option<String>,
}

/// Where a passphrase comes from that is not a vault's. Without any: a prompt.
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub struct PassphraseArgs {
    /// The passphrase is the first line of this file
    #[arg(long, value_name = "FILE", group = "secret", help_heading = "Secret")]
    pub passfile: Option<PathBuf>,
    /// The passphrase is the first line that this command, run by /bin/sh, prints
    #[arg(long, value_name = "COMMAND", group = "secret", help_heading = "Secret")]
    pub extpass: Option<String>,
    /// The passphrase is the next line of this file descriptor
    #[arg(long, value_name = "N", group = "secret", help_heading = "Secret")]
    pub passfd: Option<i32>,
}

impl PassphraseArgs {
    /// Tells whether there is any.
    pub fn is_given(&self) -> bool {
        self.passfile.is_some() || self.extpass.is_some() || self.passfd.is_some()
    }
}

/// Secrets that nobody types, and where devices are. A vault is never asked for any of this.
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub struct DeviceArgs {
    /// The key is what this command writes, run without a shell: for a slot made with the same one
    #[arg(long, value_name = "COMMAND", group = "secret", help_heading = "Secret")]
    pub slot_command: Option<String>,
    /// This identity opens what was shared with it; its own passphrase, if it has one, comes as any other
    #[arg(long, value_name = "FILE", help_heading = "Secret",
          conflicts_with_all = ["key_file", "recovery", "slot_command", "tpm2", "pkcs11_key", "kms_key"])]
    pub identity: Option<PathBuf>,
    /// The code that who shared the vault has told you
    #[arg(long, value_name = "CODE", requires = "identity", help_heading = "Secret",
          conflicts_with_all = ["key_file", "recovery", "slot_command", "tpm2", "pkcs11_key", "kms_key"])]
    pub share_code: Option<String>,
    /// The TPM has the key [default: $TPM2TOOLS_TCTI, or else device:/dev/tpmrm0]
    #[arg(long, value_name = "TPM", group = "secret", help_heading = "Secret",
          num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub tpm2: Option<String>,
    /// This key of AWS KMS opens it, named by its ARN, id or alias
    #[arg(long, value_name = "KEY", group = "secret", help_heading = "Secret")]
    pub kms_key: Option<String>,
    /// This key of a PKCS#11 token has the key: pkcs11:token=LABEL;object=LABEL
    #[arg(long, value_name = "URI", group = "secret", help_heading = "Secret")]
    pub pkcs11_key: Option<String>,
    /// The PKCS#11 module through which tokens are reached; it is loaded into this process
    #[arg(long, value_name = "FILE", help_heading = "Secret")]
    pub pkcs11_module: Option<PathBuf>,
    /// The PIN of the token or TPM is the first line of this file
    #[arg(long, value_name = "FILE", group = "pin", help_heading = "Secret")]
    pub pin_file: Option<PathBuf>,
    /// The PIN of the token or TPM is the next line of this file descriptor
    #[arg(long, value_name = "N", group = "pin", help_heading = "Secret")]
    pub pin_fd: Option<i32>,
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
    /// The directory of the keystore [default: the vault, or else $XDG_CONFIG_HOME/hushfs/keystore]
    #[arg(long, value_name = "PATH", help_heading = "Secret")]
    pub keystore: Option<PathBuf>,
    /// Asks the agent at this socket, which has the keystore open, instead of opening one
    #[arg(long, value_name = "SOCKET", help_heading = "Secret",
          conflicts_with_all = ["secret", "pin", "recovery", "slot", "keystore", "identity", "share_code"])]
    pub agent: Option<PathBuf>,
    #[command(flatten)]
    pub devices: DeviceArgs,
}

/// A key that a customer brings.
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub struct CustomerArgs {
    /// Opens the files of this customer key, and gives it to new ones: a file of 32 bytes. It is stored nowhere
    #[arg(long, value_name = "FILE", group = "customer", help_heading = "Secret")]
    pub customer_key: Option<PathBuf>,
    /// The same, of which the next 32 bytes of this file descriptor are the key
    #[arg(long, value_name = "N", group = "customer", help_heading = "Secret")]
    pub customer_key_fd: Option<i32>,
    /// The same, asked for at the terminal: in base64, or 64 hexadecimal digits
    #[arg(long, group = "customer", help_heading = "Secret")]
    pub customer_key_prompt: bool,
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
    #[arg(long, value_name = "FILE", groups = ["new_secret", "can_be_made"], help_heading = "New secret")]
    pub new_key_file: Option<PathBuf>,
    /// Makes the key file with random bytes, or the key in the token; it must not exist
    #[arg(long, requires = "can_be_made", help_heading = "New secret")]
    pub generate: bool,
    /// Makes a recovery key and prints it, once, to standard output
    #[arg(long, group = "new_secret", help_heading = "New secret")]
    pub new_recovery: bool,
    #[command(flatten)]
    pub kdf: KdfArgs,
    #[command(flatten)]
    pub devices: NewDeviceArgs,
}

/// New secrets that nobody types.
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub struct NewDeviceArgs {
    /// This systemd credential as a whole is the new key: 32 bytes or more
    #[arg(long, value_name = "NAME", group = "new_secret", help_heading = "New secret")]
    pub new_credential: Option<String>,
    /// What this command writes, run without a shell, is the new key: 32 bytes or more
    #[arg(long, value_name = "COMMAND", group = "new_secret", help_heading = "New secret")]
    pub new_command: Option<String>,
    /// The TPM seals the new key [default: $TPM2TOOLS_TCTI, or else device:/dev/tpmrm0]
    #[arg(long, value_name = "TPM", group = "new_secret", help_heading = "New secret",
          num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub new_tpm2: Option<String>,
    /// The registers (PCRs) that must be as they are now: 7, 0+2+7 or none
    #[arg(long, value_name = "LIST", requires = "new_tpm2", help_heading = "New secret",
          default_value = "7", value_parser = parse_pcrs)]
    pub tpm2_pcrs: u32,
    /// The TPM shall want a PIN too, which is asked for twice
    #[arg(long, requires = "new_tpm2", group = "new_tpm2_pin", help_heading = "New secret")]
    pub new_pin: bool,
    /// The TPM shall want a PIN too, the first line of this file
    #[arg(
        long,
        value_name = "FILE",
        requires = "new_tpm2",
        group = "new_tpm2_pin",
        help_heading = "New secret"
    )]
    pub new_pin_file: Option<PathBuf>,
    /// This key of AWS KMS wraps the new key, named by its ARN, id or alias
    #[arg(long, value_name = "KEY", group = "new_secret", help_heading = "New secret")]
    pub new_kms_key: Option<String>,
    /// This key of a PKCS#11 token wraps the new key; with --pkcs11-module
    #[arg(long, value_name = "URI", groups = ["new_secret", "can_be_made"], requires = "pkcs11_module",
          help_heading = "New secret")]
    pub new_pkcs11_key: Option<String>,
}

/// What one guess at a passphrase costs.
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub struct KdfArgs {
    /// Memory that one guess at the passphrase takes, 64M to 4G [default: 256M]
    #[arg(long, value_name = "SIZE", value_parser = parse_kdf_memory)]
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
    /// Uses the keystore in this directory, which other vaults may use too, instead of one in the vault
    #[arg(long, value_name = "PATH", group = "elsewhere", conflicts_with_all = ["recovery_key", "kdf_memory", "kdf_time"])]
    pub keystore: Option<PathBuf>,
    /// Uses the keystore that the agent at this socket has open
    #[arg(long, value_name = "SOCKET", group = "elsewhere",
          conflicts_with_all = ["recovery_key", "secret", "kdf_memory", "kdf_time"])]
    pub agent: Option<PathBuf>,
    /// Makes the vault under this key of AWS KMS, named by its ARN, id or alias. No recovery key could open it without that
    #[arg(long, value_name = "KEY", group = "secret",
          conflicts_with_all = ["recovery_key", "keystore", "kdf_memory", "kdf_time"])]
    pub kms_key: Option<String>,
    /// The key of that keystore [default: alias/hushfs/default]
    #[arg(long, value_name = "KEY", requires = "elsewhere")]
    pub key: Option<String>,
    /// A pair of the encryption context, for policies and logs; may be given several times
    #[arg(long, value_name = "NAME=VALUE", requires = "elsewhere", value_parser = parse_pair)]
    pub context: Vec<(String, String)>,
    /// Whether the data keys of files are wrapped by a key of the vault, or one by one by who has the master key: a call, a policy check and a record each
    #[arg(long, value_name = "on|off", default_value = "on")]
    pub bucket_key: OnOff,
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
    /// How long the vault's keys are used before it is asked again whether they may be: 30s, 1h [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = parse_key_ttl)]
    pub key_ttl: Option<Duration>,
    /// How long they are used while nobody can be asked, from when they were last had: 0s, 8h [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = parse_key_max_stale)]
    pub key_max_stale: Option<Duration>,
    /// Something else may change the vault meanwhile, such as a sync tool. Caches less, so it is slower
    #[arg(long)]
    pub shared: bool,
    /// Write over blocks by way of a journal, so that a power cut or a kill leaves the old block or the new one
    #[arg(long, value_name = "WHEN", value_enum, num_args = 0..=1, require_equals = true,
          default_value_t = JournalArg::Auto, default_missing_value = "always")]
    pub journal: JournalArg,
    /// Apply a journal that is not where it was made: for a vault that was copied as a crash had left it
    #[arg(long)]
    pub apply_journal: bool,
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
    /// Keeps processors awake while requests come fast, so that answers arrive sooner
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = StayAwakeArg::Auto)]
    pub stay_awake: StayAwakeArg,
    /// Records more in the audit log of the keystore, which must lie outside the vault
    #[arg(long, value_name = "WHAT", value_enum)]
    pub audit: Option<AuditArg>,
    /// Compares files with what was last seen of them on this machine, in a record in this directory [default: $STATE_DIRECTORY,
    /// /var/lib/hushfs for root, or $XDG_STATE_HOME/hushfs]
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true, default_missing_value = "",
          value_parser = path_or_nothing())]
    pub record: Option<PathBuf>,
    /// What becomes of files that are older than when they were last seen
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = RollbackArg::Warn)]
    pub rollback: RollbackArg,
    /// Threads that serve requests [default: by the number of processors]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// Keeps privileges and system calls that a mount does not need, for finding out whether their lack is in the way
    #[arg(long)]
    pub no_sandbox: bool,
    #[command(flatten)]
    pub unlock: UnlockArgs,
    #[command(flatten)]
    pub customer: CustomerArgs,
}

/// When blocks are written over by way of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum JournalArg {
    /// Where a power cut leaves files: on a disk of this machine, unless --shared
    Auto,
    /// Wherever the vault lies
    Always,
    /// Nowhere
    Never,
}

/// What becomes of files that went backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RollbackArg {
    /// A warning in the log
    Warn,
    /// They cannot be opened until they are accepted
    Refuse,
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

/// What is recorded of a mount besides the use of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuditArg {
    /// Who opened which file, with its name
    PerFile,
}

/// Whether processors are kept awake while requests come fast.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum StayAwakeArg {
    /// In a virtual machine, with requests over io_uring
    Auto,
    /// On every machine
    Always,
    /// On none
    Never,
}

impl From<StayAwakeArg> for StayAwake {
    fn from(arg: StayAwakeArg) -> Self {
        match arg {
            StayAwakeArg::Auto => StayAwake::Auto,
            StayAwakeArg::Always => StayAwake::Always,
            StayAwakeArg::Never => StayAwake::Never,
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
    /// The vault, or a sealed file
    pub vault: PathBuf,
    /// Prints one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum RecipientCommand {
    /// Makes an identity, and prints whom others are to share with
    Generate(RecipientGenerateArgs),
    /// Prints the recipient of an identity
    Show(RecipientShowArgs),
}

#[derive(Debug, Args)]
pub struct RecipientGenerateArgs {
    /// The file to make; keep it secret
    pub identity: PathBuf,
    /// The identity shall need a passphrase, which is asked for twice; so it does with --passfile and its like
    #[arg(long)]
    pub lock: bool,
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
    #[command(flatten)]
    pub kdf: KdfArgs,
}

#[derive(Debug, Args)]
pub struct RecipientShowArgs {
    /// The file with the identity
    pub identity: PathBuf,
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
}

#[derive(Debug, Subcommand)]
pub enum ShareCommand {
    /// Shares a vault or a keystore, and prints the code that the recipient is to be told
    Add(ShareAddArgs),
    /// Shares it no longer, and shuts the recipient out from what is written later
    Remove(ShareRemoveArgs),
    /// Lists who it is shared with
    List(StoreArgs),
}

#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub struct ShareAddArgs {
    /// The vault whose keystore it is
    pub vault: Option<PathBuf>,
    /// What `recipient generate` has printed, or a file with it
    pub recipient: String,
    /// The name of the slot
    #[arg(long)]
    pub name: Option<String>,
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub struct ShareRemoveArgs {
    /// The vault whose keystore it is
    pub vault: Option<PathBuf>,
    /// What `recipient generate` has printed, a file with it, or the name or number of the slot
    pub recipient: String,
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

#[derive(Debug, Subcommand)]
pub enum SlotCommand {
    /// Adds a slot: one more passphrase, key file or recovery key
    Add(Box<SlotAddArgs>),
    /// Removes a slot, and shuts out who holds its secret from what is written later
    Remove(SlotRemoveArgs),
    /// Lists the slots
    List(StoreListArgs),
    /// Says which slot a secret opens
    Test(StoreArgs),
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Makes a key and prints its id
    Create(KeyCreateArgs),
    /// Says all that is known of a key
    Describe(KeyShowArgs),
    /// Lists the keys
    List(StoreListArgs),
    /// Lets a key be used again
    Enable(KeyChangeArgs),
    /// Keeps a key from being used, until it is enabled
    Disable(KeyChangeArgs),
    /// Makes a new version of a key, which vaults use for new files; at most 25 times
    Rotate(KeyChangeArgs),
    /// Has a key make new versions by itself
    #[command(subcommand)]
    Rotation(RotationCommand),
    /// Lists the versions of a key
    Rotations(KeyShowArgs),
    /// Gives a key tags
    Tag(KeyTagArgs),
    /// Takes tags from a key
    Untag(KeyUntagArgs),
    /// Says anew what a key is for
    DescribeUpdate(KeyDescribeUpdateArgs),
    /// Has a key destroyed after 7 to 30 days; it cannot be used from now on
    Delete(KeyDeleteArgs),
    /// Keeps a key that was to be destroyed; it is disabled then
    Undelete(KeyChangeArgs),
    /// Destroys the keys whose time has come. What only they open is lost for ever
    Reap(StoreChangeArgs),
    /// Says which vaults need a key, and when it was last used
    Usage(KeyShowArgs),
    /// Other names of keys
    #[command(subcommand)]
    Alias(AliasCommand),
    /// Who may do what with a key
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// As `slot add`
    #[command(hide = true)]
    Add(Box<SlotAddArgs>),
    /// As `slot remove`
    #[command(hide = true)]
    Remove(SlotRemoveArgs),
}

#[derive(Debug, Subcommand)]
pub enum RotationCommand {
    /// Makes a new version every so many days
    On(RotationOnArgs),
    /// Makes none by itself
    Off(KeyChangeArgs),
    /// Says whether and when
    Status(KeyShowArgs),
}

#[derive(Debug, Subcommand)]
pub enum AliasCommand {
    /// Makes an alias, or has it stand for another key
    Set(AliasSetArgs),
    /// Removes an alias
    Remove(AliasRemoveArgs),
    /// Lists the aliases
    List(StoreListArgs),
}

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Prints the policy of a key
    Show(KeyArgs),
    /// Sets the policy of a key
    Set(PolicySetArgs),
}

#[derive(Debug, Subcommand)]
pub enum KeystoreCommand {
    /// Makes a keystore that many vaults can use
    Init(KeystoreInitArgs),
    /// Whether a keystore records what its keys are used for and who changes them
    #[command(subcommand)]
    Audit(Box<AuditSwitch>),
}

#[derive(Debug, Subcommand)]
pub enum AuditSwitch {
    /// Has every use and change of a key recorded; what cannot be recorded is refused
    On(Box<AuditOnArgs>),
    /// Records that, and nothing after it; the log stays
    Off(StoreArgs),
    /// Says whether they are recorded
    Status(StoreListArgs),
}

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Lists records. Needs no secret, and verifies nothing
    Show(Box<AuditShowArgs>),
    /// Verifies that no record was changed, removed or cut off
    Verify(Box<AuditVerifyArgs>),
    /// Writes records as AWS's log files are: {"Records": [...]}. Needs no secret, and verifies nothing
    Export(Box<AuditExportArgs>),
}

#[derive(Debug, Args)]
pub struct AuditOnArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// Sets the log that is there aside and begins another: when it is long, or damaged
    #[arg(long)]
    pub new_log: bool,
}

#[derive(Debug, Args)]
pub struct AuditShowArgs {
    #[command(flatten)]
    pub filter: AuditFilterArgs,
    /// Prints each record as a line of JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct AuditExportArgs {
    #[command(flatten)]
    pub filter: AuditFilterArgs,
}

#[derive(Debug, Args)]
pub struct AuditVerifyArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// Verifies this file instead, a log that was set aside
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Prints one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Which log, and which of its records.
#[derive(Debug, Args)]
pub struct AuditFilterArgs {
    /// The vault whose keystore it is
    pub vault: Option<PathBuf>,
    /// The directory of the keystore [default: the vault, or else $XDG_CONFIG_HOME/hushfs/keystore]
    #[arg(long, value_name = "PATH")]
    pub keystore: Option<PathBuf>,
    /// Reads this file instead, a log that was set aside
    #[arg(long, value_name = "FILE", conflicts_with_all = ["vault", "keystore"])]
    pub log: Option<PathBuf>,
    /// Records about this key: its id or ARN, or an alias that the call has named
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Records of this user id, or of who came in by the slot of this name
    #[arg(long, value_name = "WHO")]
    pub principal: Option<String>,
    /// Records of this call: Decrypt, CreateKey...
    #[arg(long, value_name = "NAME")]
    pub event: Option<String>,
    /// Records from this time on: 2026-01-31, 2026-01-31T12:00:00Z, or so long ago: 2h, 7days
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Records up to this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Records of calls that failed
    #[arg(long)]
    pub errors: bool,
}

#[derive(Debug, Subcommand)]
pub enum VaultCommand {
    /// Makes new epochs, and a new version of the key that hushfs manages; new files use them, `rewrap` moves the others
    Rotate(RotateArgs),
    /// The master keys of a vault
    #[command(subcommand)]
    Encryption(EncryptionCommand),
    /// Whether new files have a bucket key, or are asked for one by one; `rewrap --bucket-key` changes those that are there
    BucketKey(BucketKeyArgs),
    /// Keys that customers bring at each mount, and that are stored nowhere
    #[command(subcommand)]
    CustomerKey(CustomerKeyCommand),
}

#[derive(Debug, Subcommand)]
pub enum FileCommand {
    /// Says which key a file has, and what else is known of it
    Info(FileInfoArgs),
}

#[derive(Debug, Subcommand)]
pub enum CustomerKeyCommand {
    /// Has a vault take a customer key, and prints the id that it goes by
    Add(CustomerKeyAddArgs),
    /// Has a vault no longer take a customer key, which no file may have
    Remove(CustomerKeyRemoveArgs),
}

#[derive(Debug, Subcommand)]
pub enum EncryptionCommand {
    /// Says which keys the epochs of a vault are under, and which directories have a key of their own
    Show(EncryptionShowArgs),
    /// Chooses the key of new files, in the vault or in a directory; `rewrap` moves others to it
    Set(EncryptionSetArgs),
    /// Has directories no longer have a key of their own for new files
    Unset(EncryptionUnsetArgs),
}

/// A vault and how to open it.
#[derive(Debug, Args)]
pub struct VaultArgs {
    /// The vault
    pub vault: PathBuf,
    #[command(flatten)]
    pub unlock: UnlockArgs,
    #[command(flatten)]
    pub customer: CustomerArgs,
}

/// What `vault rotate` takes.
#[derive(Debug, Args)]
pub struct RotateArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// Goes on with a vault header that is older than the keystore has seen, as that of a backup: it gets an epoch above all that were seen
    #[arg(long)]
    pub accept_older_header: bool,
}

/// A keystore and how to open it.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// The vault whose keystore it is
    pub vault: Option<PathBuf>,
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

/// A key of a keystore.
#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub struct KeyArgs {
    /// The vault whose keystore it is
    pub vault: Option<PathBuf>,
    /// The key: its id, an alias, or an ARN
    pub key: String,
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

#[derive(Clone, Copy, Debug, Args)]
pub struct DryRunArgs {
    /// Changes nothing, and says whether it would have succeeded
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct StoreListArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// Prints one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct StoreChangeArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub dry_run: DryRunArgs,
}

#[derive(Debug, Args)]
pub struct KeyShowArgs {
    #[command(flatten)]
    pub key: KeyArgs,
    /// Prints one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct KeyChangeArgs {
    #[command(flatten)]
    pub key: KeyArgs,
    #[command(flatten)]
    pub dry_run: DryRunArgs,
}

#[derive(Debug, Args)]
pub struct KeyCreateArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// What it is for
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub description: String,
    /// A tag; may be given several times
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub tags: Vec<(String, String)>,
    /// Another name, starting with alias/
    #[arg(long, value_name = "ALIAS")]
    pub alias: Option<String>,
    /// Stands for this key of AWS KMS, named by its ARN, id or alias
    #[arg(long, value_name = "KEY", conflicts_with = "pkcs11")]
    pub aws_kms: Option<String>,
    /// Stands for this key of a PKCS#11 token; with --pkcs11-module
    #[arg(long, value_name = "URI", requires = "pkcs11_module")]
    pub pkcs11: Option<String>,
    /// Makes the key in the token; it must not exist
    #[arg(long, requires = "pkcs11", conflicts_with = "dry_run")]
    pub generate: bool,
    #[command(flatten)]
    pub dry_run: DryRunArgs,
}

#[derive(Debug, Args)]
pub struct RotationOnArgs {
    #[command(flatten)]
    pub change: KeyChangeArgs,
    /// Days from one version to the next, 90 to 2560
    #[arg(long, value_name = "N", default_value_t = ROTATION_DAYS_DEFAULT.into())]
    pub days: u64,
}

#[derive(Debug, Args)]
pub struct KeyTagArgs {
    #[command(flatten)]
    pub change: KeyChangeArgs,
    /// A tag; may be given several times. One of that name gets the new value
    #[arg(long = "tag", value_name = "NAME=VALUE", required = true, value_parser = parse_pair)]
    pub tags: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub struct KeyUntagArgs {
    #[command(flatten)]
    pub change: KeyChangeArgs,
    /// The name of a tag; may be given several times
    #[arg(long = "tag", value_name = "NAME", required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct KeyDescribeUpdateArgs {
    #[command(flatten)]
    pub change: KeyChangeArgs,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    pub description: String,
}

#[derive(Debug, Args)]
pub struct KeyDeleteArgs {
    #[command(flatten)]
    pub change: KeyChangeArgs,
    /// Days until it may be destroyed, 7 to 30
    #[arg(long, value_name = "N", default_value_t = DELETION_DAYS_DEFAULT)]
    pub days: u64,
}

#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub struct AliasSetArgs {
    /// The vault whose keystore it is
    pub vault: Option<PathBuf>,
    /// The alias, starting with alias/
    pub alias: String,
    /// The key it shall stand for: its id, an alias, or an ARN
    #[arg(long)]
    pub key: String,
    #[command(flatten)]
    pub dry_run: DryRunArgs,
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub struct AliasRemoveArgs {
    /// The vault whose keystore it is
    pub vault: Option<PathBuf>,
    /// The alias, starting with alias/
    pub alias: String,
    #[command(flatten)]
    pub dry_run: DryRunArgs,
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

#[derive(Debug, Args)]
pub struct PolicySetArgs {
    #[command(flatten)]
    pub change: KeyChangeArgs,
    /// The policy is in this file; - for standard input
    #[arg(long, value_name = "FILE", required_unless_present = "default")]
    pub file: Option<PathBuf>,
    /// The default policy: whoever opens the keystore may do everything
    #[arg(long, conflicts_with = "file")]
    pub default: bool,
    /// Sets it even if you could not change it again
    #[arg(long)]
    pub bypass_policy_lockout_safety_check: bool,
}

#[derive(Debug, Args)]
pub struct SlotAddArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// The name of the slot [default: by its kind]
    #[arg(long)]
    pub name: Option<String>,
    #[command(flatten)]
    pub new: NewSecretArgs,
}

#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub struct SlotRemoveArgs {
    /// The vault whose keystore it is
    pub vault: Option<PathBuf>,
    /// The slot to remove, by name or number
    #[arg(value_name = "SLOT")]
    pub remove: String,
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

#[derive(Debug, Args)]
pub struct KeystoreInitArgs {
    /// A directory that is empty or not there yet [default: $XDG_CONFIG_HOME/hushfs/keystore]
    pub path: Option<PathBuf>,
    /// Also makes a recovery key and prints it, once, to standard output
    #[arg(long)]
    pub recovery_key: bool,
    #[command(flatten)]
    pub secret: SecretArgs,
    #[command(flatten)]
    pub kdf: KdfArgs,
}

#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Says what the agent at the socket is, instead of starting one
    #[arg(long, conflicts_with_all = ["secret", "pin", "recovery", "slot", "keystore", "identity", "share_code", "group", "foreground", "no_sandbox"])]
    pub status: bool,
    /// With --status, prints one JSON object
    #[arg(long, requires = "status")]
    pub json: bool,
    /// Where clients connect [default: the one systemd passes, or else /run/hushfs/agent.sock, or $XDG_RUNTIME_DIR/hushfs/agent.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Lets this group connect and nobody else, by its number or name; otherwise everybody may, and policies decide
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Answers each user at most so many requests in a second; a client waits and asks again for some seconds [default: no limit]
    #[arg(long, value_name = "N", conflicts_with = "status")]
    pub rate: Option<NonZeroU32>,
    /// Stays in the foreground and logs to standard error
    #[arg(short, long)]
    pub foreground: bool,
    /// Keeps privileges and system calls that an agent does not need, for finding out whether their lack is in the way
    #[arg(long)]
    pub no_sandbox: bool,
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

#[derive(Debug, Args)]
pub struct LockArgs {
    /// The agent's socket [default: /run/hushfs/agent.sock, or $XDG_RUNTIME_DIR/hushfs/agent.sock]
    #[arg(long, value_name = "SOCKET")]
    pub agent: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct EncryptionShowArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// Says which key new files get in this directory of the vault, instead
    pub path: Option<PathBuf>,
    /// Prints one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct EncryptionSetArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// A directory in the vault: it and those below get the key [default: the vault]
    pub path: Option<PathBuf>,
    /// The key: its id, an alias, or an ARN
    #[arg(long)]
    pub key: String,
    /// A pair of the encryption context, for policies and logs; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub context: Vec<(String, String)>,
    /// Whether new files get a bucket key: see `vault bucket-key` [default: as it was, or on]
    #[arg(long, value_name = "on|off")]
    pub bucket_key: Option<OnOff>,
}

/// A thing that can be on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    On,
    Off,
}

impl OnOff {
    /// Tells whether it is on.
    pub fn is_on(self) -> bool {
        self == OnOff::On
    }
}

#[derive(Debug, Args)]
pub struct BucketKeyArgs {
    /// On: the data keys of files are wrapped by a key of the vault. Off: by who has the master key, with a call, a policy check and a record for each file
    #[arg(value_name = "on|off")]
    pub state: OnOff,
    #[command(flatten)]
    pub vault: VaultArgs,
    /// A directory in the vault that has a key of its own [default: the vault]
    pub path: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct EncryptionUnsetArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// A directory in the vault
    #[arg(required_unless_present = "gone")]
    pub path: Option<PathBuf>,
    /// All directories that are not there any more
    #[arg(long, conflicts_with = "path")]
    pub gone: bool,
}

#[derive(Debug, Args)]
pub struct CustomerKeyAddArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// The key is in this file: 32 bytes, which should be random
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "new_customer_key_prompt",
        help_heading = "New secret"
    )]
    pub new_customer_key: Option<PathBuf>,
    /// The key is asked for at the terminal, twice: in base64, or 64 hexadecimal digits
    #[arg(long, conflicts_with = "new_customer_key", help_heading = "New secret")]
    pub new_customer_key_prompt: bool,
    /// Makes the file with random bytes; it must not exist
    #[arg(long, requires = "new_customer_key", help_heading = "New secret")]
    pub generate: bool,
}

#[derive(Debug, Args)]
pub struct CustomerKeyRemoveArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// The id of the key
    pub key: String,
}

#[derive(Debug, Args)]
pub struct FileInfoArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// A path in the vault
    pub path: PathBuf,
    /// Prints one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct PasswdArgs {
    #[command(flatten)]
    pub store: StoreArgs,
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
    /// Files and directories in the vault [default: everything]
    pub paths: Vec<PathBuf>,
    /// Gives the files this key, whatever they have: its id, an alias, or an ARN
    #[arg(long, conflicts_with = "vault_key")]
    pub key: Option<String>,
    /// Gives the files the vault's own key, whatever they have
    #[arg(long)]
    pub vault_key: bool,
    /// Gives the files a bucket key, or takes it from them [default: as they are]
    #[arg(long, value_name = "on|off")]
    pub bucket_key: Option<OnOff>,
    /// Then drops the keys of epochs that no file uses: copies of old headers, in backups or not yet synced, open no longer
    #[arg(long, conflicts_with = "paths")]
    pub retire: bool,
}

#[derive(Debug, Args)]
pub struct RekeyArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// Paths in the vault, with all below them; / for everything
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// Keeps the times of files, which are set two seconds later otherwise: for mirrors of the vault that compare contents, not sizes and times
    #[arg(long)]
    pub keep_times: bool,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// What to verify [default: everything]
    pub paths: Vec<PathBuf>,
    /// Reads about this part of the bytes, another each time: for timers. The structure is checked whole
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    pub sample: Option<f64>,
    /// Keeps in this file, outside the vault, what was verified; if it is there, goes on where it was stopped
    #[arg(long, value_name = "FILE", conflicts_with = "sample")]
    pub resume: Option<PathBuf>,
    /// Threads that read [default: one for each processor]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Prints a JSON object for each finding, and one for the whole
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub compare: CompareArgs,
}

/// What a vault is compared with, as a whole.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("compared").multiple(true).args(["against", "record"]))]
pub struct CompareArgs {
    /// Names what differs from this snapshot, too
    #[arg(long, value_name = "SNAPSHOT")]
    pub against: Option<PathBuf>,
    /// Names what is older than when it was last seen on this machine, too; by the record in this directory
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true, default_missing_value = "",
          value_parser = path_or_nothing())]
    pub record: Option<PathBuf>,
    /// Compares only, and reads no contents
    #[arg(long, requires = "compared")]
    pub skip_contents: bool,
}

impl CompareArgs {
    /// Tells whether comparing is all that is asked for.
    pub fn is_all(&self) -> bool {
        self.skip_contents && (self.against.is_some() || self.record.is_some())
    }
}

#[derive(Debug, Args)]
pub struct SnapshotArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Takes over files from this snapshot whose size, times and inode have not changed since, without opening them
    #[arg(long, value_name = "SNAPSHOT")]
    pub base: Option<PathBuf>,
    /// Replaces a file that is there
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Subcommand)]
pub enum RecordCommand {
    /// Says what the record holds
    Show(RecordShowArgs),
    /// Takes files as they are now: they are no longer told of
    Accept(RecordAcceptArgs),
    /// Removes the record
    Forget(RecordForgetArgs),
}

/// Where records are.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// The directory of the record [default: $STATE_DIRECTORY, /var/lib/hushfs for root, or $XDG_STATE_HOME/hushfs]
    #[arg(long, value_name = "DIR")]
    pub record: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RecordShowArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    #[command(flatten)]
    pub record: RecordArgs,
    /// Prints one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct RecordAcceptArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// Paths of files in the vault
    #[arg(required_unless_present_any = ["all", "header"])]
    pub paths: Vec<PathBuf>,
    /// All files, the vault header and the keystore
    #[arg(long)]
    pub all: bool,
    /// The vault header and the keystore
    #[arg(long)]
    pub header: bool,
    #[command(flatten)]
    pub record: RecordArgs,
}

#[derive(Debug, Args)]
pub struct RecordForgetArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    #[command(flatten)]
    pub record: RecordArgs,
}

#[derive(Debug, Args)]
pub struct FsckArgs {
    #[command(flatten)]
    pub vault: VaultArgs,
    /// Mends what has one answer; keeps a copy of what it changes in lost+found.hush in the vault
    #[arg(long)]
    pub repair: bool,
    /// Of a directory that has lost its dir.hush: what is in it belongs there, and nobody has moved it. Can be given several times
    #[arg(long, value_name = "PATH", requires = "repair")]
    pub accept_directory: Vec<PathBuf>,
    /// Checks what can be checked without a key
    #[arg(long, conflicts_with = "repair")]
    pub no_key: bool,
    /// First writes a journal to the files that is not where it was made: for a vault that was copied as a crash had left it
    #[arg(long, conflicts_with = "no_key")]
    pub apply_journal: bool,
    /// Prints a JSON object for each finding, and one for the whole
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
    /// Copies devices, set-user-ID and set-group-ID bits, and attributes of the system such as file capabilities, too: nothing in a vault authenticates them
    #[arg(long)]
    pub with_privileges: bool,
}

/// Which file is read, and which is written.
#[derive(Debug, Args)]
pub struct FileArgs {
    /// The file; - or nothing for standard input
    pub file: Option<PathBuf>,
    /// The file to make; - for standard output [default: FILE with .hush added or taken away]
    #[arg(short, long, value_name = "OUT")]
    pub output: Option<PathBuf>,
    /// Replaces the file that is there
    #[arg(long)]
    pub force: bool,
    /// Removes FILE when OUT is durable
    #[arg(long)]
    pub remove: bool,
}

#[derive(Debug, Args)]
pub struct SealArgs {
    #[command(flatten)]
    pub files: FileArgs,
    /// Opens for who has the identity: what `recipient generate` has printed, or a file with it; may be given several times
    #[arg(long, value_name = "RECIPIENT")]
    pub recipient: Vec<String>,
    /// Opens with this key of a keystore: its id, an alias, or an ARN
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// As --key-file
    #[arg(long, value_name = "FILE", group = "secret")]
    pub customer_key: Option<PathBuf>,
    /// A pair of the encryption context, for policies and logs, not secret; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub context: Vec<(String, String)>,
    /// The cipher: aes-256-gcm-siv, or xchacha20-poly1305 for processors without AES instructions
    #[arg(long, default_value = "aes-256-gcm-siv", value_parser = parse_suite)]
    pub suite: Suite,
    #[command(flatten)]
    pub unlock: UnlockArgs,
    #[command(flatten)]
    pub kdf: KdfArgs,
}

#[derive(Debug, Args)]
pub struct OpenArgs {
    #[command(flatten)]
    pub files: FileArgs,
    /// As --key-file
    #[arg(long, value_name = "FILE", group = "secret")]
    pub customer_key: Option<PathBuf>,
    /// A pair that the encryption context must have; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub context: Vec<(String, String)>,
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

#[derive(Debug, Args)]
pub struct ResealArgs {
    /// The sealed file
    pub file: PathBuf,
    /// Opens for who has the identity, too; may be given several times
    #[arg(long, value_name = "RECIPIENT", required_unless_present = "drop")]
    pub add_recipient: Vec<String>,
    /// A way that shall open it no longer: its number, as `hushfs info` shows it, or a recipient; may be given several times
    #[arg(long, value_name = "WAY")]
    pub drop: Vec<String>,
    /// As --key-file
    #[arg(long, value_name = "FILE", group = "secret")]
    pub customer_key: Option<PathBuf>,
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

#[derive(Debug, Args)]
pub struct SpeedArgs {
    /// Time for each measurement
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = parse_time)]
    pub time: Duration,
    /// Prints one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Takes a path, and no path where only the option is given.
fn path_or_nothing() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
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

/// Parses the memory that stretching a passphrase takes.
fn parse_kdf_memory(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    let allowed = u64::from(MEMORY_KIB_MIN_NEW) * 1024..=u64::from(MEMORY_KIB_MAX) * 1024;
    match allowed.contains(&bytes) {
        true => Ok(bytes),
        false => Err("must be 64M to 4G".to_owned()),
    }
}

/// Parses a time with a unit.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "not a time: write 500ms, 30s, 10m or 2h".to_owned())
}

/// Parses a part, written as a percentage.
fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    match number {
        Some(number) if number > 0.0 && number <= 100.0 => Ok(number / 100.0),
        _ => Err("not a part: write 5% or 0.5%".to_owned()),
    }
}

/// Parses how long keys are used without a question.
pub fn parse_key_ttl(text: &str) -> Result<Duration, String> {
    parse_time(text).and_then(|time| match time.as_secs() {
        1..=KEY_TTL_MAX => Ok(time),
        _ => Err("keys are asked for again after 1s to 1d".to_owned()),
    })
}

/// Parses how long keys are used without an answer.
pub fn parse_key_max_stale(text: &str) -> Result<Duration, String> {
    parse_time(text).and_then(|time| match time.as_secs() {
        0..=KEY_MAX_STALE_MAX => Ok(time),
        _ => Err("keys are used without an answer for 0s to 30d".to_owned()),
    })
}

/// Parses a name and a value.
fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("not a pair: write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Parses a list of registers of a TPM into a bit for each.
fn parse_pcrs(text: &str) -> Result<u32, String> {
    if text == "none" {
        return Ok(0);
    }
    text.split('+')
        .map(|number| number.parse::<u32>().ok().filter(|number| *number < 24))
        .try_fold(0, |pcrs, number| Some(pcrs | 1 << number?))
        .ok_or_else(|| "registers are 0 to 23, with + between them, or none".to_owned())
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
