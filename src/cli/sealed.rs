//! `seal`, `open` and `reseal`: single files, sealed in the user's process, for who may open them.

pub mod output;

use std::{
    fmt::Write as _,
    fs::{self, File, Metadata},
    io::{self, IsTerminal, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde_json::{Value, json};

use self::output::Output;
use super::{
    CliResult,
    args::{FileArgs, InfoArgs, OpenArgs, ResealArgs, SealArgs, UnlockArgs},
    devices,
    error::CliError,
    info::print_json,
    open::{self, Store},
    print,
    progress::Progress,
    secret::{self, Asked, Fresh},
    share, text,
};
use crate::{
    crypto::recipient::Recipient,
    format::{
        keystore::{SlotId, SlotKind},
        sealed::{SealedHeader, Way, WayKind},
    },
    keystore::{
        KeyHandle, NewSecret,
        way::{NewWay, Opener},
    },
    vault::sealed::{OpenedFile, SealedError, SealedFile, UnopenedFile},
};

/// What the name of a sealed file ends in.
const SUFFIX: &str = "hush";

/// Stands for standard input and output.
const STREAM: &str = "-";

/// What is read.
struct Input {
    path: PathBuf,
    reader: Box<dyn Read>,
    /// What the system says of it, if it is a file.
    metadata: Option<Metadata>,
}

/// What is done with what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// It stays.
    Keep,
    /// It is removed, now that what was made of it is durable.
    Remove,
    /// What was made of it takes its place.
    Replace,
}

impl Input {
    fn open(path: Option<&Path>) -> CliResult<Self> {
        let Some(path) = path.filter(|path| *path != Path::new(STREAM)) else {
            return Ok(Input {
                path: "standard input".into(),
                reader: Box::new(io::stdin().lock()),
                metadata: None,
            });
        };
        let file = File::open(path).map_err(file_failed(path))?;
        let metadata = file.metadata().map_err(file_failed(path))?;
        if metadata.is_dir() {
            return Err(file_failed(path)(io::ErrorKind::IsADirectory.into()));
        }
        Ok(Input {
            path: path.to_owned(),
            reader: Box::new(file),
            metadata: Some(metadata),
        })
    }

    /// Opens a file, and has others who reseal it wait until what is returned besides is dropped: of two new headers one would be lost.
    fn open_to_reseal(path: &Path) -> CliResult<(Self, Option<File>)> {
        let kind = fs::symlink_metadata(path).map_err(file_failed(path))?.file_type();
        if kind.is_symlink() {
            return Err(CliError::LinkToReseal { path: path.to_owned() });
        }
        if !kind.is_file() {
            return Ok((Input::open(Some(path))?, None));
        }
        let file = File::open(path).map_err(file_failed(path))?;
        // Where there are no locks, it is only seen whether it was changed.
        if let Err(Errno::WOULDBLOCK) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            return Err(CliError::ResealedElsewhere { path: path.to_owned() });
        }
        let input = Input {
            path: path.to_owned(),
            metadata: Some(file.metadata().map_err(file_failed(path))?),
            // Not opened anew: on a network filesystem a lock may keep out whoever does that, this process too.
            reader: Box::new(file.try_clone().map_err(file_failed(path))?),
        };
        // Who had the lock before may have put another file in its place.
        input.check_replaceable()?;
        Ok((input, Some(file)))
    }

    fn progress(&self, what: &'static str) -> Progress {
        match &self.metadata {
            Some(metadata) if metadata.is_file() => Progress::bytes(what, metadata.len()),
            _ => Progress::counter("bytes"),
        }
    }

    fn failed(&self, source: io::Error) -> CliError {
        file_failed(&self.path)(source)
    }

    /// Tells whether what has the name now is what was read, as it was then. Whoever writes to it can set its time of modification, but not that of change.
    fn is_unchanged(&self) -> CliResult<bool> {
        let now = fs::symlink_metadata(&self.path).map_err(|source| self.failed(source))?;
        let of = |file: &Metadata| {
            let modified = (file.mtime(), file.mtime_nsec());
            (
                file.dev(),
                file.ino(),
                file.len(),
                modified,
                file.ctime(),
                file.ctime_nsec(),
            )
        };
        Ok(self.metadata.as_ref().is_some_and(|before| of(before) == of(&now)))
    }

    /// Makes sure that what was read can be replaced by what was made of it.
    fn check_replaceable(&self) -> CliResult {
        match self.is_unchanged()? {
            true => Ok(()),
            false => Err(CliError::NotResealed {
                path: self.path.clone(),
            }),
        }
    }

    /// Removes the file, now that what was made of it is durable.
    fn remove(&self) -> CliResult {
        if !self.is_unchanged()? {
            return Err(CliError::ChangedMeanwhile {
                path: self.path.clone(),
            });
        }
        fs::remove_file(&self.path).map_err(|source| self.failed(source))
    }
}

fn file_failed(path: &Path) -> impl Fn(io::Error) -> CliError + use<'_> {
    move |source| CliError::File {
        path: path.to_owned(),
        source,
    }
}

impl After {
    fn reading(args: &FileArgs) -> Self {
        match args.remove {
            true => After::Remove,
            false => After::Keep,
        }
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let number = |path| fs::metadata(path).ok().map(|file: Metadata| (file.dev(), file.ino()));
    number(one).is_some() && number(one) == number(other)
}

/// Returns where the output goes: where the user said, or by the name of what is read.
fn output_path(args: &FileArgs, by_name: impl FnOnce(&Path) -> CliResult<PathBuf>) -> CliResult<Option<PathBuf>> {
    let is_file = |path: &&PathBuf| path.as_path() != Path::new(STREAM);
    let path = match (&args.output, args.file.as_ref().filter(is_file)) {
        (Some(output), _) => Some(output).filter(is_file).cloned(),
        (None, Some(file)) => Some(by_name(file)?),
        (None, None) => None,
    };
    if args.remove && (path.is_none() || args.file.as_ref().filter(is_file).is_none()) {
        return Err(CliError::NothingToRemove);
    }
    // What is read is the file behind a link, and the link is what would go.
    if let Some(file) = args.file.as_ref().filter(|_| args.remove)
        && file.is_symlink()
    {
        return Err(CliError::LinkToRemove { path: file.clone() });
    }
    Ok(path)
}

/// Looks whether there can be such an output: nobody is to think of a passphrase in vain.
fn check_output(path: Option<&Path>, args: &FileArgs) -> CliResult {
    let is_file = Output::check(path, args.force)?;
    match args.remove && !is_file {
        true => Err(CliError::NothingToRemove),
        false => Ok(()),
    }
}

/// Seals a file.
pub fn seal(args: &SealArgs) -> CliResult {
    let files = &args.files;
    let output = output_path(files, |file| {
        let mut name = file.as_os_str().to_owned();
        name.push(".");
        name.push(SUFFIX);
        Ok(name.into())
    })?;
    if output.is_none() && io::stdout().is_terminal() {
        return Err(CliError::SealedToTerminal);
    }
    let input = Input::open(files.file.as_deref())?;
    check_output(output.as_deref(), files)?;
    let ways = NewWays::of(args, &input.path)?;
    let sealed =
        ways.with(|ways| SealedFile::new(args.suite, args.context.clone(), ways).map_err(failed(&input.path)))?;
    let output = Output::create(output, files.force)?;
    copy(
        input,
        output,
        After::reading(files),
        "sealing",
        |reader, output, progress| sealed.seal(reader, output, progress),
    )
}

/// Opens a sealed file.
pub fn open(args: &OpenArgs) -> CliResult {
    let files = &args.files;
    let output = output_path(files, |file| match file.extension() {
        Some(extension) if extension == SUFFIX => Ok(file.with_extension("")),
        _ => Err(CliError::NoOutputName { path: file.to_owned() }),
    })?;
    let mut input = Input::open(files.file.as_deref())?;
    check_output(output.as_deref(), files)?;
    let reader = std::mem::replace(&mut input.reader, Box::new(io::empty()));
    let opened = unlock(&input.path, reader, &args.unlock, args.customer_key.as_deref())?;
    for pair in &args.context {
        if !opened.file.context().contains(pair) {
            return Err(CliError::OtherContext {
                path: input.path,
                name: pair.0.clone(),
            });
        }
    }
    let output = Output::create(output, files.force)?;
    copy(
        input,
        output,
        After::reading(files),
        "opening",
        |_, output, progress| opened.copy_to(output, progress),
    )
}

/// Changes who can open a sealed file; its content stays as it is.
pub fn reseal(args: &ResealArgs) -> CliResult {
    let (mut input, _lock) = Input::open_to_reseal(&args.file)?;
    let added = recipients(&args.add_recipient)?;
    let reader = std::mem::replace(&mut input.reader, Box::new(io::empty()));
    let mut opened = unlock(&input.path, reader, &args.unlock, args.customer_key.as_deref())?;
    let dropped = args
        .drop
        .iter()
        .map(|text| find_ways(opened.file.ways(), text))
        .collect::<CliResult<Vec<_>>>()?
        .concat();
    for recipient in &added {
        opened
            .file
            .add_way(&NewWay::Secret(NewSecret::Recipient(recipient)))
            .map_err(failed(&args.file))?;
    }
    opened.file.retain_ways(|way| !dropped.contains(&way.id));
    if opened.file.ways().is_empty() {
        return Err(CliError::LastWay {
            path: args.file.clone(),
        });
    }
    let output = Output::create(Some(args.file.clone()), true)?;
    copy(input, output, After::Replace, "resealing", |_, output, _| {
        opened.reseal_to(output)
    })
}

/// Copies what is read through `act` to a file that appears when all of it is there.
fn copy(
    mut input: Input,
    mut output: Output,
    after: After,
    what: &'static str,
    act: impl FnOnce(&mut dyn Read, &mut Output, &mut dyn FnMut(u64)) -> Result<(), SealedError>,
) -> CliResult {
    // A pipe's reader may be anyone, and nothing of it stays.
    if after == After::Remove && !output.is_file() {
        return Err(CliError::NothingToRemove);
    }
    let progress = input.progress(what);
    let result = act(&mut *input.reader, &mut output, &mut |bytes| progress.advance(bytes));
    drop(progress);
    result.map_err(|error| match error {
        SealedError::Write(source) => output.failed(source),
        error => failed(&input.path)(error),
    })?;
    output.make_durable(input.metadata.as_ref())?;
    if after == After::Replace {
        input.check_replaceable()?;
    }
    output.finish()?;
    match after {
        After::Remove => input.remove(),
        After::Keep | After::Replace => Ok(()),
    }
}

/// Says who can open a sealed file. Nothing is authenticated.
pub fn info(args: &InfoArgs) -> CliResult {
    let path = &args.vault;
    let unopened = UnopenedFile::enter(Input::open(Some(path))?.reader).map_err(failed(path))?;
    let header = unopened.claims();
    if args.json {
        return print_json(&info_json(header));
    }
    let mut out = String::new();
    let rows = [
        ("sealed file", header.file.to_hex()),
        ("suite", header.layout.suite().name().to_owned()),
        ("block size", header.layout.block_size().to_string()),
    ];
    for (name, value) in rows {
        let _ = writeln!(out, "{name:11} {value}");
    }
    for (name, value) in &header.context {
        let pair = format!("{name}={value}");
        let _ = writeln!(out, "{:11} {}", "context", text::printable(pair.as_bytes()));
    }
    for way in &header.ways {
        let line = way_line(way);
        let _ = writeln!(
            out,
            "{:11} {}",
            format!("way {}", way.id),
            text::printable(line.as_bytes())
        );
    }
    out.push_str("nothing of this is authenticated: whoever can write to the file can make it say anything\n");
    print(out.as_bytes())
}

fn info_json(header: &SealedHeader) -> Value {
    let ways: Vec<Value> = header
        .ways
        .iter()
        .map(|way| {
            let kind = match &way.kind {
                WayKind::Slot(kind) => kind.word(),
                WayKind::Key { .. } => "key",
            };
            json!({"number": way.id.0, "kind": kind, "is": way_line(way)})
        })
        .collect();
    json!({
        "authenticated": false,
        "sealed_file": header.file.to_hex(),
        "suite": header.layout.suite().name(),
        "block_size": header.layout.block_size(),
        "context": header.context,
        "ways": ways,
    })
}

fn way_line(way: &Way) -> String {
    match &way.kind {
        WayKind::Slot(kind) => text::slot_kind(kind),
        WayKind::Key { keystore, key, .. } => format!("key {key} of keystore {keystore}"),
    }
}

/// Opens the header of a sealed file with what the user offers.
fn unlock<R: Read>(path: &Path, reader: R, args: &UnlockArgs, customer_key: Option<&Path>) -> CliResult<OpenedFile<R>> {
    let unopened = UnopenedFile::enter(reader).map_err(failed(path))?;
    let mut args = args.clone();
    args.secret.key_file = args.secret.key_file.or_else(|| customer_key.map(Path::to_owned));
    let by_slots = |way: &Way| matches!(way.kind, WayKind::Slot(_));
    let is_by_slots = unopened.claims().ways.iter().any(by_slots);
    if args.keystore.is_some() || args.agent.is_some() || !is_by_slots {
        let mut store = open::open_store(None, &args)?;
        return store
            .keystore_mut()?
            .use_keys(|keystore| unopened.open(&Opener::Keystore(keystore)).map_err(failed(path)));
    }
    let own = [
        ("--slot", args.slot.is_some()),
        ("--share-code", args.devices.share_code.is_some()),
    ];
    only_with_keystore(&own)?;
    let kinds = unopened.claims().ways.iter().filter_map(|way| match &way.kind {
        WayKind::Slot(kind) => Some(kind),
        WayKind::Key { .. } => None,
    });
    let kinds: Vec<&SlotKind> = kinds.collect();
    let asked = Asked {
        path,
        claimed: &kinds,
        providers: &devices::providers(&args.devices)?,
    };
    let unlock = secret::unlock(&asked, &args)?;
    unopened.open(&Opener::Secret(&unlock)).map_err(failed(path))
}

/// Refuses options that would be of no use.
fn only_with_keystore(given: &[(&'static str, bool)]) -> CliResult {
    match given.iter().find(|(_, is_given)| *is_given) {
        Some((option, _)) => Err(CliError::OnlyWithKeystore { option }),
        None => Ok(()),
    }
}

/// What shall open a new file, as the user has named it.
struct NewWays {
    recipients: Vec<Recipient>,
    secret: Option<Fresh>,
    key: Option<(Store, KeyHandle)>,
}

impl NewWays {
    fn of(args: &SealArgs, path: &Path) -> CliResult<Self> {
        let recipients = recipients(&args.recipient)?;
        let mut unlock = args.unlock.clone();
        unlock.secret.key_file = unlock.secret.key_file.or_else(|| args.customer_key.clone());
        let (secret, key) = match &args.key {
            Some(key) => {
                let mut store = open::open_store(None, &unlock)?;
                let key = store.keystore_mut()?.keystore().find_key(key)?;
                (None, Some((store, key)))
            }
            None => (new_secret(args, &unlock, path, recipients.is_empty())?, None),
        };
        Ok(NewWays {
            recipients,
            secret,
            key,
        })
    }

    /// Gives them to a function as the file takes them; what the keystore is used for is recorded.
    fn with<T>(self, act: impl FnOnce(&[NewWay<'_>]) -> CliResult<T>) -> CliResult<T> {
        let NewWays {
            recipients,
            secret,
            key,
        } = self;
        let and_others = |key: Option<NewWay<'_>>| {
            let secret = secret.as_ref().map(|fresh| NewWay::Secret(fresh.as_new()));
            let recipients = recipients.iter();
            let recipients = recipients.map(|recipient| NewWay::Secret(NewSecret::Recipient(recipient)));
            act(&key.into_iter().chain(secret).chain(recipients).collect::<Vec<_>>())
        };
        match key {
            None => and_others(None),
            Some((mut store, key)) => store
                .keystore_mut()?
                .use_keys(|keystore| and_others(Some(NewWay::Key { keystore, key }))),
        }
    }
}

/// Returns the secret that shall open a new file, of whatever kind; with `is_needed` someone is asked for a passphrase where there is none.
fn new_secret(args: &SealArgs, unlock: &UnlockArgs, path: &Path, is_needed: bool) -> CliResult<Option<Fresh>> {
    let (sources, devices) = (&unlock.secret, &unlock.devices);
    only_with_keystore(&[
        ("--keystore", unlock.keystore.is_some()),
        ("--agent", unlock.agent.is_some()),
        ("--recovery", unlock.recovery),
        ("--slot", unlock.slot.is_some()),
        ("--identity", devices.identity.is_some()),
        ("--share-code", devices.share_code.is_some()),
        ("--tpm2", devices.tpm2.is_some()),
    ])?;
    if let Some(key) = &sources.key_file {
        if args.files.remove && is_same_file(key, path) {
            return Err(CliError::KeyToRemove { path: key.clone() });
        }
        return Ok(Some(Fresh::KeyFile(
            secret::read_key_file(key).map_err(secret::of_new)?,
        )));
    }
    if let Some(name) = &sources.credential {
        let contents = devices::read_credential(name).map_err(secret::of_new)?;
        let name = name.clone();
        return Ok(Some(Fresh::Credential { name, contents }));
    }
    if let Some(command) = &devices.slot_command {
        let words = devices::words(command)?;
        let output = devices::run(&words).map_err(secret::of_new)?;
        return Ok(Some(Fresh::Command { words, output }));
    }
    if let Some(key) = &devices.kms_key {
        return Ok(Some(Fresh::RemoteKey {
            key: devices::kms::name(key)?,
            provider: devices::kms::provider()?,
        }));
    }
    if let Some(uri) = &devices.pkcs11_key {
        return Ok(Some(Fresh::RemoteKey {
            key: devices::token::name(uri)?,
            provider: devices::token_provider(&devices::providers(devices)?)?,
        }));
    }
    if !is_needed && !sources.passphrase.is_given() {
        return Ok(None);
    }
    let (passphrase, hardness) = secret::new_passphrase(path, &sources.passphrase, &args.kdf)?;
    Ok(Some(Fresh::Passphrase(passphrase, hardness)))
}

fn recipients(texts: &[String]) -> CliResult<Vec<Recipient>> {
    texts.iter().map(|text| share::read_recipient(text)).collect()
}

/// Finds ways by their number, or those of a recipient.
fn find_ways(ways: &[Way], text: &str) -> CliResult<Vec<SlotId>> {
    let found: Vec<SlotId> = match text.parse::<u32>() {
        Ok(number) => ways.iter().map(|way| way.id).filter(|id| id.0 == number).collect(),
        Err(_) => {
            let wanted = share::read_recipient(text)?;
            let is_theirs = |way: &&Way| matches!(&way.kind, WayKind::Slot(SlotKind::Recipient { recipient, .. }) if recipient == wanted.as_bytes());
            ways.iter().filter(is_theirs).map(|way| way.id).collect()
        }
    };
    match found.is_empty() {
        true => Err(CliError::NoSuchWay { way: text.to_owned() }),
        false => Ok(found),
    }
}

fn failed(path: &Path) -> impl Fn(SealedError) -> CliError {
    move |error| CliError::Sealed {
        path: path.to_owned(),
        error: Box::new(error),
    }
}
