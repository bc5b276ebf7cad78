//! Secrets that nobody types: a systemd credential, what a command writes, an identity, a TPM, a key in a token or in AWS KMS.

#[cfg(feature = "aws")]
pub mod kms;
#[cfg(any(feature = "aws", feature = "pkcs11"))]
mod patient;
#[cfg(feature = "pkcs11")]
pub mod token;
#[cfg(feature = "tpm2")]
pub mod tpm;

use std::{
    env,
    fs::File,
    io::{self, IsTerminal, Read},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zeroize::Zeroizing;

use super::{
    CliResult,
    args::{DeviceArgs, NewDeviceArgs},
    error::CliError,
    say, secret,
};
use crate::keystore::{
    KeyFile, Provider, Providers,
    identity::{IDENTITY_FILE_SIZE_MAX, Identity, IdentityFile, ShareCode},
    secret::KEY_FILE_SIZE_MAX,
};

/// Where systemd puts credentials.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// How long the command of --slot-command may take: someone may have to find a key and touch it.
const COMMAND_TIME: Duration = Duration::from_secs(120);

/// How often it is looked whether the command has ended.
const COMMAND_POLL: Duration = Duration::from_millis(10);

/// Returns the path of a systemd credential, if systemd has given any.
pub fn credential_path(name: &str) -> CliResult<Option<PathBuf>> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(CliError::NoCredential { name: name.to_owned() });
    }
    let directory = env::var_os(CREDENTIALS_DIRECTORY).map(PathBuf::from);
    Ok(directory.map(|directory| directory.join(name)))
}

/// Reads a systemd credential as a whole.
pub fn read_credential(name: &str) -> CliResult<KeyFile> {
    let none = || CliError::NoCredential { name: name.to_owned() };
    let path = credential_path(name)?.ok_or_else(none)?;
    match secret::read_key_file(&path) {
        Err(CliError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Err(none()),
        result => result,
    }
}

/// Splits a command into words as a shell would; nothing is expanded, and no shell is run.
pub fn words(command: &str) -> CliResult<Vec<String>> {
    shlex::split(command)
        .filter(|words| words.first().is_some_and(|word| !word.is_empty()))
        .ok_or(CliError::NoCommand)
}

/// Runs a command and returns all that it writes to its standard output.
///
/// It is one that the user has named now, never one that merely stands in a vault. It has the terminal if there is one, for it may have to ask.
pub fn run(words: &[String]) -> CliResult<KeyFile> {
    let failed = |source| CliError::Command {
        program: words[0].clone(),
        source,
    };
    let as_key = |output| KeyFile::new(output).map_err(secret::size_of(&words[0]));
    let stdin = match io::stdin().is_terminal() {
        true => Stdio::inherit(),
        false => Stdio::null(),
    };
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .stdin(stdin)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let deadline = Instant::now() + COMMAND_TIME;
    let output = child.stdout.take().expect("it was piped");
    let written = read_until(output, deadline).and_then(|output| wait_until(&mut child, deadline).map(|()| output));
    let output = written.map_err(|source| {
        // Whatever it still does is of no use. It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
        failed(source)
    })?;
    if output.len() > KEY_FILE_SIZE_MAX {
        // It is cut short, and its status would tell of that.
        let _ = child.kill();
        let _ = child.wait();
        return as_key(output);
    }
    let status = child.wait().map_err(failed)?;
    if !status.success() {
        return Err(CliError::CommandStatus {
            program: words[0].clone(),
            status,
        });
    }
    as_key(output)
}

/// Reads to the end, or a byte more than a key may have.
fn read_until(mut output: ChildStdout, deadline: Instant) -> io::Result<Zeroizing<Vec<u8>>> {
    // At its full size from the start: growing would leave copies.
    let mut bytes = Zeroizing::new(vec![0; KEY_FILE_SIZE_MAX + 1]);
    let mut len = 0;
    while len < bytes.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&output.as_fd(), PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        match output.read(&mut bytes[len..])? {
            0 => break,
            got => len += got,
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

fn wait_until(child: &mut Child, deadline: Instant) -> io::Result<()> {
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(COMMAND_POLL);
    }
    Ok(())
}

/// Reads an identity; `passphrase` gives one for it if it needs one.
pub fn read_identity(
    path: &Path,
    passphrase: impl FnOnce() -> CliResult<crate::keystore::Passphrase>,
) -> CliResult<Identity> {
    let failed = |error| CliError::Identity {
        path: path.to_owned(),
        error,
    };
    match IdentityFile::parse(&read_small(path)?).map_err(failed)? {
        IdentityFile::Plain(identity) => Ok(identity),
        IdentityFile::Locked(locked) => locked.unlock(&passphrase()?).map_err(failed),
    }
}

/// Reads a file with an identity or a recipient.
pub fn read_small(path: &Path) -> CliResult<Zeroizing<Vec<u8>>> {
    let failed = |source| CliError::File {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mut contents = Zeroizing::new(Vec::with_capacity(IDENTITY_FILE_SIZE_MAX + 1));
    let limit = IDENTITY_FILE_SIZE_MAX as u64 + 1;
    file.take(limit).read_to_end(&mut contents).map_err(failed)?;
    if contents.len() > IDENTITY_FILE_SIZE_MAX {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(contents)
}

/// Makes sure that a vault is that of who shared it, by the codes of the slots that the identity opens, or says what to compare.
pub fn check_share_code(args: &DeviceArgs, codes: &[ShareCode]) -> CliResult {
    let Some(told) = &args.share_code else {
        let codes: Vec<_> = codes.iter().map(ShareCode::to_string).collect();
        say(format_args!(
            "warning: whoever can write to a vault can make one that this identity opens: ask who shared it \
             whether the share code is {}, then give it with --share-code",
            codes.join(" or ")
        ));
        return Ok(());
    };
    match ShareCode::from_text(told) {
        None => Err(CliError::NoShareCode),
        Some(told) if !codes.contains(&told) => Err(CliError::OtherShareCode),
        Some(_) => Ok(()),
    }
}

/// Returns the way to a PIN that the user has named, or else to the terminal.
#[cfg(any(feature = "pkcs11", feature = "tpm2"))]
fn ask_pin(args: &DeviceArgs) -> Box<crate::keystore::secret::AskPin> {
    let (file, number) = (args.pin_file.clone(), args.pin_fd);
    Box::new(move |of| {
        let read = match (&file, number) {
            (Some(path), _) => secret::first_line_of_file(path),
            (None, Some(number)) => secret::read_passfd(number),
            (None, None) => secret::ask(&format!("PIN of {of}: "), secret::PIN),
        };
        read.map_err(|error| io::Error::other(error.to_string()))
    })
}

/// Returns who holds keys elsewhere, as far as the user has said how to reach them.
pub fn providers(args: &DeviceArgs) -> CliResult<Providers> {
    let pkcs11 = args.pkcs11_module.as_deref().map(|module| token::open(module, args));
    Ok(Providers {
        // By the environment: a keystore that is opened in another way may have keys there too.
        aws_kms: kms::provider().ok(),
        pkcs11: pkcs11.transpose()?,
    })
}

/// Returns who holds keys in tokens.
pub fn token_provider(providers: &Providers) -> CliResult<Arc<dyn Provider>> {
    providers.pkcs11.clone().ok_or(CliError::NoModule)
}

/// What stands for tokens where nothing reaches them.
#[cfg(not(feature = "pkcs11"))]
pub mod token {
    use super::*;
    use crate::format::keystore::RemoteKeyName;

    const NOT_BUILT: CliError = CliError::NotBuilt { feature: "pkcs11" };

    pub fn open(_: &Path, _: &DeviceArgs) -> CliResult<Arc<dyn Provider>> {
        Err(NOT_BUILT)
    }

    pub fn name(_: &str) -> CliResult<RemoteKeyName> {
        Err(NOT_BUILT)
    }

    pub fn make(_: &str, _: &DeviceArgs) -> CliResult<RemoteKeyName> {
        Err(NOT_BUILT)
    }
}

/// What stands for AWS KMS where nothing reaches it.
#[cfg(not(feature = "aws"))]
pub mod kms {
    use super::*;
    use crate::format::keystore::RemoteKeyName;

    const NOT_BUILT: CliError = CliError::NotBuilt { feature: "aws" };

    pub fn provider() -> CliResult<Arc<dyn Provider>> {
        Err(NOT_BUILT)
    }

    pub fn name(_: &str) -> CliResult<RemoteKeyName> {
        Err(NOT_BUILT)
    }
}

/// What stands for TPMs where nothing reaches them.
#[cfg(not(feature = "tpm2"))]
pub mod tpm {
    use super::*;
    use crate::{
        crypto::keys::SlotSecret,
        keystore::tpm::{TpmObject, Unsealer},
    };

    const NOT_BUILT: CliError = CliError::NotBuilt { feature: "tpm2" };

    pub fn open(_: &str, _: &DeviceArgs) -> CliResult<Box<dyn Unsealer>> {
        Err(NOT_BUILT)
    }

    pub fn seal(_: &str, _: &NewDeviceArgs) -> CliResult<(TpmObject, SlotSecret)> {
        Err(NOT_BUILT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keystore::SecretSizeError;

    fn ran(words: &[&str]) -> CliResult<KeyFile> {
        run(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_command_is_split_as_a_shell_would_and_nothing_is_expanded() {
        let split = |text| words(text).unwrap();
        assert_eq!(split("pass show 'my vault'"), ["pass", "show", "my vault"]);
        assert_eq!(
            split("a \"b c\" d\\ e $HOME * `f`"),
            ["a", "b c", "d e", "$HOME", "*", "`f`"]
        );
        for none in ["", "  ", "a 'b", "''"] {
            assert!(matches!(words(none), Err(CliError::NoCommand)), "{none}");
        }
    }

    #[test]
    fn what_a_command_writes_is_a_key_if_it_is_long_enough_and_the_command_succeeds() {
        assert!(ran(&["printf", "%032d", "7"]).is_ok());
        assert!(matches!(
            ran(&["printf", "%031d", "7"]),
            Err(CliError::SecretSize {
                error: SecretSizeError::KeyFileSize(31),
                ..
            })
        ));
        assert!(matches!(
            ran(&["head", "-c", "2000000", "/dev/zero"]),
            Err(CliError::SecretSize { error: SecretSizeError::KeyFileSize(size), .. }) if size == KEY_FILE_SIZE_MAX + 1
        ));
        assert!(matches!(
            ran(&["sh", "-c", "printf %032d 7; exit 3"]),
            Err(CliError::CommandStatus { .. })
        ));
        assert!(matches!(ran(&["/nonexistent"]), Err(CliError::Command { .. })));
    }

    #[test]
    fn a_command_has_no_longer_than_it_has() {
        let spawn = |script| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap()
        };
        let soon = || Instant::now() + Duration::from_millis(50);
        let mut child = spawn("exec sleep 60");
        let error = read_until(child.stdout.take().unwrap(), soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        child.kill().unwrap();
        child.wait().unwrap();
        let mut child = spawn("printf x; exec >&-; exec sleep 60");
        let output = read_until(child.stdout.take().unwrap(), Instant::now() + COMMAND_TIME).unwrap();
        assert_eq!(*output, b"x");
        assert_eq!(
            wait_until(&mut child, soon()).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_credential_is_a_name_and_no_path() {
        for name in ["", ".", "..", "a/b", "/etc/passwd"] {
            assert!(
                matches!(credential_path(name), Err(CliError::NoCredential { .. })),
                "{name}"
            );
        }
    }
}
