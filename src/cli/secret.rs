//! Where secrets come from. Never arguments, which every user of the machine can see, nor the environment, which children inherit.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use zeroize::{Zeroize, Zeroizing};

use super::{
    CliResult,
    args::{KdfArgs, NewSecretArgs, SecretArgs, UnlockArgs},
    error::CliError,
    print,
};
use crate::{
    crypto::{
        passphrase::{Hardness, MEMORY_KIB_DEFAULT},
        random,
    },
    keystore::{
        KeyFile, NewSecret, Passphrase, RecoveryKey, RecoveryKeyError, SecretKind, SlotChoice, Unlock,
        slot::KEY_FILE_SIZE_MAX,
    },
    vault::home::VaultHome,
};

/// The most bytes of a line that is taken for a passphrase; someone may have named a disk.
const PASSPHRASE_LEN_MAX: usize = 64 * 1024;

/// The systemd credential that is looked for.
const CREDENTIAL: &str = "hushfs";

/// Where systemd puts credentials.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// What a passphrase does not start with, so that a recovery key can be typed wherever a passphrase is asked for.
const RECOVERY_PREFIX: &[u8] = b"HUSH1-";

/// How long a guess takes unless the user says otherwise.
const KDF_TIME: Duration = Duration::from_secs(1);

/// A new secret, for a slot to be made.
pub enum Fresh {
    /// A passphrase, and what a guess shall cost.
    Passphrase(Passphrase, Hardness),
    /// The contents of a key file.
    KeyFile(KeyFile),
    /// A recovery key, not printed yet.
    RecoveryKey(RecoveryKey),
}

impl Fresh {
    /// Returns it as the keystore takes it.
    pub fn as_new(&self) -> NewSecret<'_> {
        match self {
            Fresh::Passphrase(passphrase, hardness) => NewSecret::Passphrase(passphrase, *hardness),
            Fresh::KeyFile(file) => NewSecret::KeyFile(file),
            Fresh::RecoveryKey(key) => NewSecret::RecoveryKey(key),
        }
    }

    /// Returns its kind.
    pub fn kind(&self) -> SecretKind {
        match self {
            Fresh::Passphrase(..) => SecretKind::Passphrase,
            Fresh::KeyFile(_) => SecretKind::KeyFile,
            Fresh::RecoveryKey(_) => SecretKind::RecoveryKey,
        }
    }

    /// Shows a recovery key, after it was stored: nobody shall write down one that opens nothing.
    pub fn show(&self) -> CliResult {
        match self {
            Fresh::RecoveryKey(key) => show_recovery_key(key),
            Fresh::Passphrase(..) | Fresh::KeyFile(_) => Ok(()),
        }
    }
}

/// Prints a recovery key to standard output, the one time.
pub fn show_recovery_key(key: &RecoveryKey) -> CliResult {
    let mut line = Zeroizing::new(String::with_capacity(128));
    line.push_str(&key.to_text());
    line.push('\n');
    // Not through `Stdout`, whose buffer would keep a copy.
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        let written = rustix::io::write(io::stdout().as_fd(), rest).map_err(|errno| CliError::Output(errno.into()))?;
        rest = &rest[written..];
    }
    if io::stdout().is_terminal() {
        eprintln!("hushfs: write the recovery key down and keep it safe: it opens the vault, and is not shown again");
    }
    print(b"")
}

/// Returns what the user offers to open a vault.
pub fn unlock(vault: &Path, args: &UnlockArgs) -> CliResult<Unlock> {
    if let Some(path) = &args.secret.key_file {
        return Ok(Unlock::KeyFile(read_key_file(path)?));
    }
    let what = if args.recovery { "Recovery key" } else { "Passphrase" };
    let line = match line_of(&args.secret)? {
        Some(line) => line,
        None => ask(&format!("{what} for {}: ", vault.display()))?,
    };
    if args.recovery || looks_like_recovery_key(&line) {
        let text = std::str::from_utf8(&line).map_err(|_| CliError::RecoveryKey(RecoveryKeyError::Prefix))?;
        return RecoveryKey::from_text(text)
            .map(Unlock::RecoveryKey)
            .map_err(CliError::RecoveryKey);
    }
    Ok(Unlock::Passphrase(Passphrase::new(line)?))
}

/// Returns which slots a vault is to be opened by: a name, or a number where no slot has that name.
pub fn choice(home: &VaultHome, slot: Option<&str>) -> SlotChoice {
    let Some(slot) = slot else {
        return SlotChoice::Any;
    };
    let named = home.claimed_slots().iter().any(|other| other.label == slot);
    match slot.parse() {
        Ok(id) if !named => SlotChoice::Id(crate::format::keystore::SlotId(id)),
        _ => SlotChoice::Label(slot.to_owned()),
    }
}

/// Returns the secret that a new vault shall be opened with.
pub fn first(vault: &Path, args: &SecretArgs, kdf: &KdfArgs) -> CliResult<Fresh> {
    if let Some(path) = &args.key_file {
        return Ok(Fresh::KeyFile(read_key_file(path)?));
    }
    let line = match line_of(args)? {
        Some(line) => line,
        None => ask_twice("Passphrase", vault)?,
    };
    fresh_passphrase(line, kdf)
}

/// Returns the secret that a new slot shall be opened with.
pub fn fresh(vault: &Path, args: &NewSecretArgs) -> CliResult<Fresh> {
    if args.new_recovery {
        return Ok(Fresh::RecoveryKey(RecoveryKey::generate()));
    }
    if let Some(path) = &args.new_key_file {
        if args.generate {
            generate_key_file(path)?;
        }
        return Ok(Fresh::KeyFile(read_key_file(path)?));
    }
    let sources = SecretArgs {
        passfile: args.new_passfile.clone(),
        extpass: args.new_extpass.clone(),
        passfd: args.new_passfd,
        ..SecretArgs::default()
    };
    // The credential is of the old passphrase.
    let line = match explicit_line(&sources)? {
        Some(line) => line,
        None => ask_twice("New passphrase", vault)?,
    };
    fresh_passphrase(line, &args.kdf)
}

fn fresh_passphrase(line: Zeroizing<Vec<u8>>, kdf: &KdfArgs) -> CliResult<Fresh> {
    if looks_like_recovery_key(&line) {
        return Err(CliError::PassphraseLikeRecoveryKey);
    }
    let passphrase = Passphrase::new(line)?;
    let memory = kdf.kdf_memory.map_or(MEMORY_KIB_DEFAULT, |bytes| {
        u32::try_from(bytes / 1024).unwrap_or(u32::MAX)
    });
    let hardness = Hardness::calibrated(memory, kdf.kdf_time.unwrap_or(KDF_TIME));
    Ok(Fresh::Passphrase(passphrase, hardness))
}

fn looks_like_recovery_key(line: &[u8]) -> bool {
    line.get(..RECOVERY_PREFIX.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(RECOVERY_PREFIX))
}

/// Returns the line that one of the sources gives, or the systemd credential; nothing when someone must be asked.
fn line_of(args: &SecretArgs) -> CliResult<Option<Zeroizing<Vec<u8>>>> {
    if let Some(line) = explicit_line(args)? {
        return Ok(Some(line));
    }
    let Some(directory) = std::env::var_os(CREDENTIALS_DIRECTORY).map(PathBuf::from) else {
        return match &args.credential {
            Some(name) => Err(CliError::NoCredential { name: name.clone() }),
            None => Ok(None),
        };
    };
    let name = args.credential.as_deref().unwrap_or(CREDENTIAL);
    let path = directory.join(name);
    match File::open(&path) {
        Ok(file) if !name.contains('/') => first_line(&path.display().to_string(), file).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound && args.credential.is_none() => Ok(None),
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CliError::File { path, source }),
        _ => Err(CliError::NoCredential { name: name.to_owned() }),
    }
}

fn explicit_line(args: &SecretArgs) -> CliResult<Option<Zeroizing<Vec<u8>>>> {
    if let Some(path) = &args.passfile {
        let file = File::open(path).map_err(|source| CliError::File {
            path: path.clone(),
            source,
        })?;
        return first_line(&path.display().to_string(), file).map(Some);
    }
    if let Some(command) = &args.extpass {
        return run_extpass(command).map(Some);
    }
    if let Some(number) = args.passfd {
        return read_passfd(number).map(Some);
    }
    Ok(None)
}

fn run_extpass(command: &str) -> CliResult<Zeroizing<Vec<u8>>> {
    let failed = |source| CliError::System {
        what: "the command of --extpass",
        source,
    };
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut output = child.stdout.take().expect("it was piped");
    let line = first_line("the command of --extpass", &mut output);
    // What follows is not wanted, but the command may fail when nobody reads it.
    let drained = io::copy(&mut output, &mut io::sink());
    let status = child.wait().map_err(failed)?;
    if !status.success() {
        return Err(CliError::ExtPass(status));
    }
    drained.map_err(failed)?;
    line
}

fn read_passfd(number: i32) -> CliResult<Zeroizing<Vec<u8>>> {
    // SAFETY: F_GETFD does nothing to whatever the number stands for.
    if number < 0 || unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
        return Err(CliError::PassFd {
            number,
            source: io::Error::from_raw_os_error(libc::EBADF),
        });
    }
    // SAFETY: it is open, and nothing here closes it before the end of this function.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    first_line(&format!("file descriptor {number}"), Descriptor(fd)).map_err(|error| match error {
        CliError::File { source, .. } => CliError::PassFd { number, source },
        other => other,
    })
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

fn read_key_file(path: &Path) -> CliResult<KeyFile> {
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
    Ok(KeyFile::new(contents)?)
}

fn generate_key_file(path: &Path) -> CliResult {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => CliError::Exists { path: path.to_owned() },
        _ => CliError::File {
            path: path.to_owned(),
            source,
        },
    };
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let key = Zeroizing::new(random::bytes::<32>());
    // Durable before a slot relies on it.
    file.write_all(&*key).and_then(|()| file.sync_all()).map_err(failed)
}

fn ask(prompt: &str) -> CliResult<Zeroizing<Vec<u8>>> {
    if !io::stdin().is_terminal() {
        return Err(CliError::NoTerminal);
    }
    rpassword::prompt_password(prompt)
        .map(|typed| Zeroizing::new(typed.into_bytes()))
        .map_err(|source| CliError::System {
            what: "the terminal",
            source,
        })
}

fn ask_twice(what: &str, vault: &Path) -> CliResult<Zeroizing<Vec<u8>>> {
    let typed = ask(&format!("{what} for {}: ", vault.display()))?;
    let again = ask("Again: ")?;
    if *typed != *again {
        return Err(CliError::PassphrasesDiffer);
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
    fn a_recovery_key_is_known_by_its_start() {
        assert!(looks_like_recovery_key(b"hush1-ABC"));
        assert!(!looks_like_recovery_key(b"hush"));
    }
}
