//! Where secrets come from. Never arguments, which every user of the machine can see, nor the environment, which children inherit.

use std::{
    fs::File,
    io::{self, IsTerminal, Read},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use rustix::{fs::FileType, io::Errno};
use zeroize::{Zeroize, Zeroizing};

use super::{
    CliResult,
    args::{CustomerArgs, CustomerKeyAddArgs, KdfArgs, NewSecretArgs, PassphraseArgs, SecretArgs, UnlockArgs},
    devices,
    error::CliError,
    prompt, say,
    sealed::output::make_private,
};
use crate::{
    crypto::{
        KEY_SIZE,
        keys::{CustomerKey, KeyBytes, SlotSecret},
        passphrase::{Hardness, MEMORY_KIB_DEFAULT},
        random,
    },
    format::keystore::{RemoteKeyName, SlotKind},
    keystore::{
        KeyFile, NewSecret, Passphrase, Provider, Providers, RecoveryKey, RecoveryKeyError, SecretKind,
        SecretSizeError, Unlock, secret::KEY_FILE_SIZE_MAX, tpm::TpmObject,
    },
};

/// The most bytes of a line that is taken for a passphrase; someone may have named a disk.
const PASSPHRASE_LEN_MAX: usize = 64 * 1024;

/// What messages call the command that gives a passphrase.
const EXTPASS: &str = "the command of --extpass";

/// What messages call where is asked.
const TERMINAL: &str = "the terminal";

/// The most bytes that are read of a command behind its first line, which nobody wants.
const EXTPASS_REST_MAX: u64 = 1024 * 1024;

/// The systemd credential that is looked for.
const CREDENTIAL: &str = "hushfs";

/// What a passphrase does not start with, so that a recovery key can be typed wherever a passphrase is asked for.
const RECOVERY_PREFIX: &[u8] = b"HUSH1-";

/// What some editors put in front of a text, in UTF-8, and nobody sees.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// How long a guess takes unless the user says otherwise.
pub const KDF_TIME: Duration = Duration::from_secs(1);

/// What is asked for at the terminal, and the options that give it without one.
#[derive(Clone, Copy)]
pub struct Typed {
    what: &'static str,
    options: &'static str,
}

const PASSPHRASE: Typed = Typed {
    what: "passphrase",
    options: "--passfile, --extpass, --passfd or --key-file",
};

/// A passphrase, where no key file will do.
const PASSPHRASE_ONLY: Typed = Typed {
    options: "--passfile, --extpass or --passfd",
    ..PASSPHRASE
};

const NEW_PASSPHRASE: Typed = Typed {
    what: "new passphrase",
    options: "--new-passfile, --new-extpass, --new-passfd or --new-key-file",
};

const CUSTOMER_KEY: Typed = Typed {
    what: "customer key",
    options: "--customer-key or --customer-key-fd",
};

const NEW_CUSTOMER_KEY: Typed = Typed {
    what: "new customer key",
    options: "--new-customer-key",
};

/// The PIN of a token or a TPM.
#[cfg(any(feature = "pkcs11", feature = "tpm2"))]
pub const PIN: Typed = Typed {
    what: "PIN",
    options: "--pin-file",
};

/// A PIN that a TPM shall want.
#[cfg(feature = "tpm2")]
pub const NEW_PIN: Typed = Typed {
    what: "new PIN",
    options: "--new-pin-file",
};

/// A new secret, for a slot to be made.
pub enum Fresh {
    /// A passphrase, and what a guess shall cost.
    Passphrase(Passphrase, Hardness),
    /// The contents of a key file.
    KeyFile(KeyFile),
    /// A recovery key, not printed yet.
    RecoveryKey(RecoveryKey),
    /// A systemd credential.
    Credential { name: String, contents: KeyFile },
    /// A command, and what it has written.
    Command { words: Vec<String>, output: KeyFile },
    /// What a TPM has sealed.
    Tpm { object: TpmObject, secret: SlotSecret },
    /// A key in a token.
    RemoteKey {
        key: RemoteKeyName,
        provider: Arc<dyn Provider>,
    },
}

impl Fresh {
    /// Returns it as the keystore takes it.
    pub fn as_new(&self) -> NewSecret<'_> {
        match self {
            Fresh::Passphrase(passphrase, hardness) => NewSecret::Passphrase(passphrase, *hardness),
            Fresh::KeyFile(file) => NewSecret::KeyFile(file),
            Fresh::RecoveryKey(key) => NewSecret::RecoveryKey(key),
            Fresh::Credential { name, contents } => NewSecret::Credential { name, contents },
            Fresh::Command { words, output } => NewSecret::Command { words, output },
            Fresh::Tpm { object, secret } => NewSecret::Tpm { object, secret },
            Fresh::RemoteKey { key, provider } => NewSecret::RemoteKey {
                key,
                provider: &**provider,
            },
        }
    }

    /// Returns its kind.
    pub fn kind(&self) -> SecretKind {
        self.as_new().kind()
    }

    /// Has it stored; a recovery key is shown first.
    ///
    /// # Errors
    ///
    /// What showing or `store` gives; nothing was stored if it could not be shown.
    pub fn store<T, E: Into<CliError>>(&self, store: impl FnOnce() -> Result<T, E>) -> CliResult<T> {
        let recovery = match self {
            Fresh::RecoveryKey(key) => Some(key),
            _ => None,
        };
        store_shown(recovery, store)
    }
}

/// Shows a recovery key, if there is one, and has it stored: one that nobody has seen is not to take the place of another secret, while one on paper that
/// opens nothing does no harm.
///
/// # Errors
///
/// What showing or `store` gives; nothing was stored if it could not be shown.
pub fn store_shown<T, E: Into<CliError>>(
    recovery: Option<&RecoveryKey>,
    store: impl FnOnce() -> Result<T, E>,
) -> CliResult<T> {
    let Some(key) = recovery else {
        return store().map_err(Into::into);
    };
    let is_read = io::stdout().is_terminal();
    show_recovery_key(key, is_read).map_err(CliError::RecoveryKeyOutput)?;
    let stored = store();
    match &stored {
        Ok(_) if is_read => say(format_args!("the recovery key is stored: it opens from now on")),
        Ok(_) => {}
        Err(_) => say(format_args!(
            "the recovery key may not be stored: keep it only if `hushfs slot test --recovery` says that it opens"
        )),
    }
    stored.map_err(Into::into)
}

/// Prints a recovery key to standard output, the one time.
fn show_recovery_key(key: &RecoveryKey, is_read: bool) -> io::Result<()> {
    let out = io::stdout();
    // The runtime opens the null device where standard output is closed.
    if is_null_device(out.as_fd())? {
        return Err(io::Error::other("leads nowhere"));
    }
    let mut line = Zeroizing::new(String::with_capacity(128));
    line.push_str(&key.to_text());
    line.push('\n');
    // Not through `Stdout`, whose buffer would keep a copy.
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        match rustix::io::write(out.as_fd(), rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    // A file that is full, or lies elsewhere, may say so only now.
    match rustix::fs::fsync(out.as_fd()) {
        // Nothing that could be synced.
        Ok(()) | Err(Errno::INVAL | Errno::NOTSUP | Errno::ROFS | Errno::NOSYS) => {}
        Err(errno) => return Err(errno.into()),
    }
    if is_read {
        say(format_args!(
            "write the recovery key down and keep it safe: it opens once this command says so, and is not shown again"
        ));
    }
    Ok(())
}

fn is_null_device(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let stat = rustix::fs::fstat(fd)?;
    let null = rustix::fs::makedev(1, 3);
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == null)
}

/// What a keystore or a sealed file is opened with, before it is.
pub struct Asked<'a> {
    /// The path that a prompt names.
    pub path: &'a Path,
    /// What the slots take that it says it has; not to be believed.
    pub claimed: &'a [&'a SlotKind],
    /// Who holds keys elsewhere.
    pub providers: &'a Providers,
}

/// Returns what the user offers to open a vault or a keystore.
pub fn unlock(asked: &Asked<'_>, args: &UnlockArgs) -> CliResult<Unlock> {
    let devices = &args.devices;
    if let Some(path) = &args.secret.key_file {
        return Ok(Unlock::KeyFile(read_key_file(path)?));
    }
    if let Some(command) = &devices.slot_command {
        let words = devices::words(command)?;
        let output = devices::run(&words)?;
        return Ok(Unlock::Command { words, output });
    }
    if let Some(tpm) = &devices.tpm2 {
        return devices::tpm::open(tpm, devices).map(Unlock::Tpm);
    }
    if let Some(key) = &devices.kms_key {
        return Ok(Unlock::RemoteKey {
            key: devices::kms::name(key)?,
            provider: devices::kms::provider()?,
        });
    }
    if let Some(uri) = &devices.pkcs11_key {
        return Ok(Unlock::RemoteKey {
            key: devices::token::name(uri)?,
            provider: devices::token_provider(asked.providers)?,
        });
    }
    if let Some(path) = &devices.identity {
        let passphrase = || match line_of(&args.secret)? {
            Some(line) => Ok(Passphrase::new(line)?),
            None => {
                let prompt = format!("Passphrase for {}: ", path.display());
                Ok(Passphrase::new(ask(&prompt, PASSPHRASE_ONLY)?)?)
            }
        };
        return devices::read_identity(path, passphrase).map(Unlock::Identity);
    }
    if let Some(unlock) = credential_as_key(asked.claimed, &args.secret)? {
        return Ok(unlock);
    }
    let store = asked.path;
    let what = if args.recovery { "Recovery key" } else { "Passphrase" };
    let line = match line_of(&args.secret)? {
        Some(line) => line,
        None => ask(&format!("{what} for {}: ", store.display()), PASSPHRASE)?,
    };
    if args.recovery || looks_like_recovery_key(&line) {
        let text = std::str::from_utf8(&line).map_err(|_| CliError::RecoveryKey(RecoveryKeyError::Prefix))?;
        return RecoveryKey::from_text(text)
            .map(Unlock::RecoveryKey)
            .map_err(CliError::RecoveryKey);
    }
    Ok(Unlock::Passphrase(Passphrase::new(line)?))
}

/// Returns a systemd credential as the key of a slot, if the keystore has one that names it, and nothing else was asked for.
///
/// That the slot is there is only a claim. What comes of a lie is a credential that is tried as a key and fails, instead of as a passphrase.
fn credential_as_key(claimed: &[&SlotKind], args: &SecretArgs) -> CliResult<Option<Unlock>> {
    let elsewhere = args.passphrase.is_given();
    let name = args.credential.as_deref().unwrap_or(CREDENTIAL);
    let is_named = |kind: &&SlotKind| matches!(kind, SlotKind::Credential { name: own } if own == name);
    if elsewhere || !claimed.iter().any(is_named) {
        return Ok(None);
    }
    // Without systemd's directory there may still be someone to ask for the passphrase of another slot.
    if args.credential.is_none() && devices::credential_path(name)?.is_none_or(|path| !path.exists()) {
        return Ok(None);
    }
    Ok(Some(Unlock::Credential {
        name: name.to_owned(),
        contents: devices::read_credential(name)?,
    }))
}

/// Returns the secret that a new vault or keystore shall be opened with.
pub fn first(store: &Path, args: &SecretArgs, kdf: &KdfArgs) -> CliResult<Fresh> {
    if let Some(path) = &args.key_file {
        return Ok(Fresh::KeyFile(read_key_file(path).map_err(of_new)?));
    }
    let line = match line_of(args).map_err(of_new)? {
        Some(line) => line,
        None => ask_twice(&format!("Passphrase for {}: ", store.display()), PASSPHRASE)?,
    };
    fresh_passphrase(line, kdf)
}

/// Returns the secret that a new slot shall be opened with.
pub fn fresh(store: &Path, args: &NewSecretArgs, unlock: &UnlockArgs, providers: &Providers) -> CliResult<Fresh> {
    if args.new_recovery {
        return Ok(Fresh::RecoveryKey(RecoveryKey::generate()));
    }
    if let Some(fresh) = fresh_device(args, unlock, providers)? {
        return Ok(fresh);
    }
    if let Some(path) = &args.new_key_file {
        if args.generate {
            generate_key_file(path)?;
        }
        return Ok(Fresh::KeyFile(read_key_file(path).map_err(of_new)?));
    }
    let sources = PassphraseArgs {
        passfile: args.new_passfile.clone(),
        extpass: args.new_extpass.clone(),
        passfd: args.new_passfd,
    };
    // The credential is of the old passphrase.
    let line = match explicit_line(&sources).map_err(of_new)? {
        Some(line) => line,
        None => ask_twice(&format!("New passphrase for {}: ", store.display()), NEW_PASSPHRASE)?,
    };
    fresh_passphrase(line, &args.kdf)
}

/// Returns a new secret that nobody types, if that was asked for.
fn fresh_device(args: &NewSecretArgs, unlock: &UnlockArgs, providers: &Providers) -> CliResult<Option<Fresh>> {
    let new = &args.devices;
    if let Some(name) = &new.new_credential {
        return Ok(Some(Fresh::Credential {
            name: name.clone(),
            contents: devices::read_credential(name).map_err(of_new)?,
        }));
    }
    if let Some(command) = &new.new_command {
        let words = devices::words(command)?;
        let output = devices::run(&words).map_err(of_new)?;
        return Ok(Some(Fresh::Command { words, output }));
    }
    if let Some(tpm) = &new.new_tpm2 {
        let (object, secret) = devices::tpm::seal(tpm, new)?;
        return Ok(Some(Fresh::Tpm { object, secret }));
    }
    if let Some(key) = &new.new_kms_key {
        return Ok(Some(Fresh::RemoteKey {
            key: devices::kms::name(key)?,
            provider: devices::kms::provider()?,
        }));
    }
    if let Some(uri) = &new.new_pkcs11_key {
        return Ok(Some(Fresh::RemoteKey {
            key: match args.generate {
                true => devices::token::make(uri, &unlock.devices)?,
                false => devices::token::name(uri)?,
            },
            provider: devices::token_provider(providers)?,
        }));
    }
    Ok(None)
}

/// Returns the passphrase of something that there is.
pub fn passphrase(of: &Path, args: &PassphraseArgs) -> CliResult<Passphrase> {
    let line = match explicit_line(args)? {
        Some(line) => line,
        None => ask(&format!("Passphrase for {}: ", of.display()), PASSPHRASE_ONLY)?,
    };
    Ok(Passphrase::new(line)?)
}

/// Returns a passphrase for something new, and what a guess at it shall cost.
pub fn new_passphrase(of: &Path, args: &PassphraseArgs, kdf: &KdfArgs) -> CliResult<(Passphrase, Hardness)> {
    let line = match explicit_line(args).map_err(of_new)? {
        Some(line) => line,
        None => ask_twice(&format!("Passphrase for {}: ", of.display()), PASSPHRASE_ONLY)?,
    };
    hardened(line, kdf)
}

fn fresh_passphrase(line: Zeroizing<Vec<u8>>, kdf: &KdfArgs) -> CliResult<Fresh> {
    let (passphrase, hardness) = hardened(line, kdf)?;
    Ok(Fresh::Passphrase(passphrase, hardness))
}

fn hardened(line: Zeroizing<Vec<u8>>, kdf: &KdfArgs) -> CliResult<(Passphrase, Hardness)> {
    if looks_like_recovery_key(&line) {
        return Err(CliError::PassphraseLikeRecoveryKey);
    }
    if !can_be_typed(&line) {
        return Err(CliError::PassphraseNotTyped);
    }
    let passphrase = Passphrase::new(line).map_err(|error| CliError::NewSecretSize { source: None, error })?;
    let memory = kdf.kdf_memory.map_or(MEMORY_KIB_DEFAULT, |bytes| {
        u32::try_from(bytes / 1024).unwrap_or(u32::MAX)
    });
    let hardness = Hardness::calibrated(memory, kdf.kdf_time.unwrap_or(KDF_TIME)).map_err(CliError::Hardness)?;
    Ok((passphrase, hardness))
}

/// Tells whether a passphrase from a file or a command could be typed where there is neither.
fn can_be_typed(line: &[u8]) -> bool {
    !line.starts_with(BYTE_ORDER_MARK) && line.iter().all(|byte| *byte == b'\t' || !byte.is_ascii_control())
}

fn looks_like_recovery_key(line: &[u8]) -> bool {
    line.get(..RECOVERY_PREFIX.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(RECOVERY_PREFIX))
}

/// Returns the line that one of the sources gives, or the systemd credential; nothing when someone must be asked.
fn line_of(args: &SecretArgs) -> CliResult<Option<Zeroizing<Vec<u8>>>> {
    if let Some(line) = explicit_line(&args.passphrase)? {
        return Ok(Some(line));
    }
    let name = args.credential.as_deref().unwrap_or(CREDENTIAL);
    let Some(path) = devices::credential_path(name)? else {
        return match &args.credential {
            Some(name) => Err(CliError::NoCredential { name: name.clone() }),
            None => Ok(None),
        };
    };
    match File::open(&path) {
        Ok(file) => first_line(&path.display().to_string(), file).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound && args.credential.is_none() => Ok(None),
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CliError::File { path, source }),
        _ => Err(CliError::NoCredential { name: name.to_owned() }),
    }
}

fn explicit_line(args: &PassphraseArgs) -> CliResult<Option<Zeroizing<Vec<u8>>>> {
    let (source, line) = if let Some(path) = &args.passfile {
        (path.display().to_string(), first_line_of_file(path)?)
    } else if let Some(command) = &args.extpass {
        (EXTPASS.to_owned(), run_extpass(command)?)
    } else if let Some(number) = args.passfd {
        (descriptor_name(number), read_passfd(number)?)
    } else {
        return Ok(None);
    };
    match line.is_empty() {
        true => Err(size_of(&source)(SecretSizeError::EmptyPassphrase)),
        false => Ok(Some(line)),
    }
}

/// Says of what cannot be a secret where it came from.
pub fn size_of(source: &str) -> impl Fn(SecretSizeError) -> CliError {
    move |error| CliError::SecretSize {
        source: Some(source.to_owned()),
        error,
    }
}

/// Says of what cannot be a secret that it was to be a new one: nothing is wrong with what there is.
pub fn of_new(error: CliError) -> CliError {
    match error {
        CliError::SecretSize { source, error } => CliError::NewSecretSize { source, error },
        other => other,
    }
}

fn run_extpass(command: &str) -> CliResult<Zeroizing<Vec<u8>>> {
    let failed = |source| CliError::System { what: EXTPASS, source };
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut output = child.stdout.take().expect("it was piped");
    let line = first_line(EXTPASS, &mut output);
    // What follows is not wanted, but the command may fail when nobody reads it. Some write without end.
    let drained = io::copy(&mut (&mut output).take(EXTPASS_REST_MAX), &mut io::sink());
    if matches!(drained, Ok(EXTPASS_REST_MAX)) {
        drop(output);
        child.kill().and_then(|()| child.wait()).map_err(failed)?;
        return Err(CliError::LongLine {
            source: EXTPASS.to_owned(),
        });
    }
    let status = child.wait().map_err(failed)?;
    if !status.success() {
        return Err(CliError::ExtPass(status));
    }
    drained.map_err(failed)?;
    line
}

/// Reads the first line of a file.
pub fn first_line_of_file(path: &Path) -> CliResult<Zeroizing<Vec<u8>>> {
    let file = File::open(path).map_err(|source| CliError::File {
        path: path.to_owned(),
        source,
    })?;
    first_line(&path.display().to_string(), file)
}

/// Reads the next line of a file descriptor.
pub fn read_passfd(number: i32) -> CliResult<Zeroizing<Vec<u8>>> {
    first_line(&descriptor_name(number), descriptor(number)?).map_err(|error| match error {
        CliError::File { source, .. } => CliError::PassFd { number, source },
        other => other,
    })
}

fn descriptor_name(number: i32) -> String {
    format!("file descriptor {number}")
}

/// Finds a file descriptor that the caller has left open for this process.
fn descriptor(number: i32) -> CliResult<Descriptor<'static>> {
    // SAFETY: F_GETFD does nothing to whatever the number stands for.
    if number < 0 || unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
        return Err(CliError::PassFd {
            number,
            source: io::Error::from_raw_os_error(libc::EBADF),
        });
    }
    // SAFETY: it is open, and nothing here closes what it was not given.
    Ok(Descriptor(unsafe { BorrowedFd::borrow_raw(number) }))
}

/// Reads from a descriptor that somebody else owns.
struct Descriptor<'fd>(BorrowedFd<'fd>);

impl Read for Descriptor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, buffer)?)
    }
}

/// Reads a line byte by byte: what follows is left for who reads next, and no copy is in a buffer.
fn first_line(source: &str, mut reader: impl Read) -> CliResult<Zeroizing<Vec<u8>>> {
    // At its full size from the start: growing would leave copies.
    let mut line = Zeroizing::new(Vec::with_capacity(PASSPHRASE_LEN_MAX));
    let mut byte = [0];
    let mut ended = false;
    loop {
        match reader.read(&mut byte) {
            Ok(0) => break,
            Ok(_) if byte[0] == b'\n' => {
                ended = true;
                break;
            }
            Ok(_) if line.len() == PASSPHRASE_LEN_MAX => {
                return Err(CliError::LongLine {
                    source: source.to_owned(),
                });
            }
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(CliError::File {
                    path: source.into(),
                    source: error,
                });
            }
        }
    }
    byte.zeroize();
    if line.is_empty() && !ended {
        return Err(CliError::NoLine {
            source: source.to_owned(),
        });
    }
    if ended && line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(line)
}

/// Reads a file that is a key as a whole.
pub fn read_key_file(path: &Path) -> CliResult<KeyFile> {
    let failed = |source| CliError::File {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    // One byte more than allowed tells a file that is too large from one that just fits.
    let mut contents = Zeroizing::new(vec![0; KEY_FILE_SIZE_MAX + 1]);
    let mut len = 0;
    while len < contents.len() {
        match file.read(&mut contents[len..]) {
            Ok(0) => break,
            Ok(got) => len += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    contents.truncate(len);
    KeyFile::new(contents).map_err(size_of(&path.display().to_string()))
}

/// Returns the key that a customer brings to a vault, if there is one.
pub fn customer_key(vault: &Path, args: &CustomerArgs) -> CliResult<Option<CustomerKey>> {
    match (&args.customer_key, args.customer_key_fd) {
        (Some(path), _) => read_customer_key(path).map(Some),
        (None, Some(number)) => read_customer_key_fd(number).map(Some),
        (None, None) if args.customer_key_prompt => {
            let typed = ask(&customer_key_prompt(vault), CUSTOMER_KEY)?;
            customer_key_of_text(&typed).map(Some)
        }
        (None, None) => Ok(None),
    }
}

/// Returns a key that a vault is to take from a customer, making its file if that was asked for.
pub fn new_customer_key(args: &CustomerKeyAddArgs) -> CliResult<CustomerKey> {
    let Some(path) = &args.new_customer_key else {
        let typed = ask_twice(&customer_key_prompt(&args.vault.vault), NEW_CUSTOMER_KEY)?;
        return customer_key_of_text(&typed);
    };
    if args.generate {
        generate_key_file(path)?;
    }
    read_customer_key(path)
}

fn customer_key_prompt(vault: &Path) -> String {
    format!("Customer key for {}: ", vault.display())
}

/// Takes a key as it is typed: as S3 has it in its requests, or as most programs show bytes.
fn customer_key_of_text(text: &[u8]) -> CliResult<CustomerKey> {
    // What decoding needs, which for base64 is a byte more than the key.
    let mut bytes = Zeroizing::new([0; KEY_SIZE + 1]);
    for encoding in [BASE64, HEXLOWER_PERMISSIVE] {
        if let Ok(len) = encoding.decode_len(text.len())
            && let Some(room) = bytes.get_mut(..len)
            && encoding.decode_mut(text, room) == Ok(KEY_SIZE)
        {
            let key = bytes.first_chunk().expect("one byte less than there is room for");
            return Ok(CustomerKey::new(KeyBytes::copy_of(key)));
        }
    }
    Err(CliError::CustomerKeyText)
}

/// Reads a customer's key from a descriptor. What follows is left for who reads next.
fn read_customer_key_fd(number: i32) -> CliResult<CustomerKey> {
    let mut key = Zeroizing::new([0_u8; KEY_SIZE]);
    let read = descriptor(number)?.read_exact(&mut *key);
    read.map_err(|source| CliError::PassFd { number, source })?;
    Ok(CustomerKey::new(KeyBytes::copy_of(&key)))
}

/// Reads a customer's key from a file. Nothing but its 32 bytes may be in the file: an end of line would make another key.
fn read_customer_key(path: &Path) -> CliResult<CustomerKey> {
    let failed = |source| CliError::File {
        path: path.to_owned(),
        source,
    };
    let mut contents = Zeroizing::new(Vec::with_capacity(KEY_SIZE + 1));
    let file = File::open(path).map_err(failed)?;
    file.take(KEY_SIZE as u64 + 1)
        .read_to_end(&mut contents)
        .map_err(failed)?;
    let key = contents
        .as_slice()
        .try_into()
        .map_err(|_| CliError::CustomerKeySize { path: path.to_owned() })?;
    Ok(CustomerKey::new(KeyBytes::copy_of(key)))
}

/// Makes a file with a random key; it must not exist.
pub fn generate_key_file(path: &Path) -> CliResult {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => CliError::Exists { path: path.to_owned() },
        _ => CliError::File {
            path: path.to_owned(),
            source,
        },
    };
    let key = Zeroizing::new(random::bytes::<32>());
    // Durable before a slot relies on it.
    make_private(path, &[&*key]).map_err(failed)
}

/// Asks at the terminal.
pub fn ask(prompt: &str, of: Typed) -> CliResult<Zeroizing<Vec<u8>>> {
    if !io::stdin().is_terminal() {
        return Err(CliError::NoTerminal {
            what: of.what,
            options: of.options,
        });
    }
    let typed = prompt::hidden_line(prompt).map_err(|source| CliError::System { what: TERMINAL, source })?;
    let source = || TERMINAL.to_owned();
    match typed {
        None => Err(CliError::NoLine { source: source() }),
        // It may have been longer.
        Some(line) if line.len() == prompt::LINE_LEN_MAX => Err(CliError::LongLine { source: source() }),
        Some(line) => Ok(line),
    }
}

/// Asks at the terminal for something new.
pub fn ask_twice(prompt: &str, of: Typed) -> CliResult<Zeroizing<Vec<u8>>> {
    let typed = ask(prompt, of)?;
    let again = ask("Again: ", of)?;
    if *typed != *again {
        return Err(CliError::TypedDifferently);
    }
    Ok(typed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bytes: &[u8]) -> CliResult<Vec<u8>> {
        first_line("test", bytes).map(|line| line.to_vec())
    }

    #[test]
    fn a_line_ends_before_its_line_end() {
        assert_eq!(line(b"secret\nmore").unwrap(), b"secret");
        assert_eq!(line(b"secret\r\n").unwrap(), b"secret");
        assert_eq!(line(b"secret").unwrap(), b"secret");
        assert_eq!(line(b" secret \n").unwrap(), b" secret ");
        assert_eq!(line(b"\n").unwrap(), b"");
        assert!(matches!(line(b""), Err(CliError::NoLine { .. })));
        assert!(matches!(
            line(&[b'x'; PASSPHRASE_LEN_MAX + 1]),
            Err(CliError::LongLine { .. })
        ));
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_an_error() {
        assert!(matches!(read_passfd(-1), Err(CliError::PassFd { .. })));
        assert!(matches!(read_passfd(999_999), Err(CliError::PassFd { .. })));
    }

    #[test]
    fn a_command_gives_its_first_line_or_its_status() {
        assert_eq!(*run_extpass("echo one; echo two").unwrap(), b"one");
        assert!(matches!(run_extpass("echo one; exit 3"), Err(CliError::ExtPass(_))));
        assert!(matches!(run_extpass("true"), Err(CliError::NoLine { .. })));
    }

    #[test]
    fn a_command_that_writes_without_end_is_ended() {
        assert!(matches!(run_extpass("yes"), Err(CliError::LongLine { .. })));
        assert!(matches!(run_extpass("yes; true"), Err(CliError::LongLine { .. })));
        assert_eq!(*run_extpass("echo one; head -c 100000 /dev/zero").unwrap(), b"one");
    }

    #[test]
    fn a_new_passphrase_can_be_typed() {
        for line in ["correct horse", "a\tb", "\u{e4}\u{1f40e}", ""] {
            assert!(can_be_typed(line.as_bytes()), "{line:?}");
        }
        // As a terminal that does not speak UTF-8 gives it.
        assert!(can_be_typed(b"\xe4"));
        for line in ["a\0b", "a\rb", "\u{1b}[Da", "\u{feff}correct horse", "a\u{7f}"] {
            assert!(!can_be_typed(line.as_bytes()), "{line:?}");
        }
        let refused = hardened(Zeroizing::new(b"a\0b".to_vec()), &KdfArgs::default());
        assert!(matches!(refused, Err(CliError::PassphraseNotTyped)));
    }

    #[test]
    fn a_customer_key_is_typed_in_base64_or_hexadecimal() {
        let key = |text: &str| customer_key_of_text(text.as_bytes()).map(|key| *key.as_bytes());
        assert_eq!(key("BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=").unwrap(), [7; 32]);
        assert_eq!(key(&"07".repeat(32)).unwrap(), [7; 32]);
        assert_eq!(key(&"AB".repeat(32)).unwrap(), key(&"ab".repeat(32)).unwrap());
        for wrong in [
            String::new(),
            "07".repeat(31),
            "07".repeat(33),
            "0x".repeat(32),
            "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc".to_owned(),
            "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH".to_owned(),
            "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBw==".to_owned(),
        ] {
            assert!(matches!(key(&wrong), Err(CliError::CustomerKeyText)), "{wrong}");
        }
    }

    #[test]
    fn a_recovery_key_is_known_by_its_start() {
        assert!(looks_like_recovery_key(b"hush1-ABC"));
        assert!(!looks_like_recovery_key(b"hush"));
    }
}
