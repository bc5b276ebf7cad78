//! `vault encryption`, `vault customer-key` and `file`: which keys a vault has, and which of them its files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::Path,
};

use serde_json::{Map, Value, json};

use super::{
    CliResult,
    args::{
        BucketKeyArgs, CustomerKeyAddArgs, CustomerKeyRemoveArgs, EncryptionSetArgs, EncryptionShowArgs,
        EncryptionUnsetArgs, FileInfoArgs, OnOff,
    },
    epochs::say_epoch,
    error::CliError,
    info::print_json,
    keys, open, print, process, say, secret, text,
};
use crate::{
    crypto::block::Suite,
    format::{
        header::OwnWrap,
        keystore::Manager,
        vault::{CustodianKind, EpochRecord, EpochWrap, KeyChain},
    },
    ids::{DirectoryId, Epoch, KeyId, VaultId},
    keystore::{Context, WrappedKey, local::version_of, request::KeyView},
    vault::{
        choice,
        facts::{FileFacts, WrittenFacts},
        home::{ContextPairs, Lock, OpenVault},
        path::Located,
        rewrap,
    },
};

/// Finds what is under a path of a vault.
pub fn locate(open: &OpenVault, path: &Path) -> CliResult<Located> {
    let located = open.vault.locate(open.home.dir(), path);
    located.map_err(|source| CliError::InVault {
        path: text::printable(path.as_os_str().as_encoded_bytes()),
        source,
    })
}

/// Finds a directory of a vault.
fn locate_directory(open: &OpenVault, path: &Path) -> CliResult<Located> {
    let located = locate(open, path)?;
    match located.entry {
        None => Ok(located),
        Some(_) => Err(CliError::NotDirectory { path: path.to_owned() }),
    }
}

/// Says which keys the epochs of a vault are under, and which directories have one of their own.
pub fn show(args: &EncryptionShowArgs) -> CliResult {
    let open = open::open_vault(&args.vault, Lock::Unlocked)?;
    match &args.path {
        Some(path) => show_directory(&open, path, args.json),
        None if args.json => show_vault_json(&open),
        None => show_vault(&open),
    }
}

fn show_directory(open: &OpenVault, path: &Path, json: bool) -> CliResult {
    let located = locate_directory(open, path)?;
    let shown = ShownKeys::of(open)?;
    let of = KeyOfFile::new(&shown, open.vault.key_of_new_files_in(&located.directories));
    let is_own = open.vault.choice().of_directory(located.directory()).is_some();
    if json {
        let mut object = of.json();
        object.insert("set_here".to_owned(), is_own.into());
        return print_json(&Value::Object(object));
    }
    let set = if is_own { "set here" } else { "not set here" };
    let (model, key, epoch) = (of.model(), of.key_line(), of.epoch);
    let off = if of.bucket_key { "" } else { " with bucket key off" };
    print(format!("new files get {model}{off}, key {key}, epoch {epoch}; {set}\n").as_bytes())
}

fn show_vault_json(open: &OpenVault) -> CliResult {
    let (header, shown) = (open.header(), ShownKeys::of(open)?);
    let epoch_json = |epoch: &EpochRecord| {
        json!({
            "number": epoch.number.0,
            "created": text::time(epoch.created),
            "usable": open.vault.epochs().check(epoch.number).is_ok(),
            "wraps": epoch.wraps.iter().map(|wrap| shown.wrap_json(wrap)).collect::<Vec<_>>(),
        })
    };
    let chain_json = |chain: &KeyChain| {
        let mut object = KeyOfFile::new(&shown, choice::KeyOfFile::of_epoch(chain.current())).json();
        // It is chosen for directories and files, not for a key.
        object.remove("bucket_key");
        let epochs: Vec<u32> = chain.epochs.iter().map(|epoch| epoch.0).collect();
        object.insert("epochs".to_owned(), epochs.into());
        Value::Object(object)
    };
    let off = header.bucket_keys_off().unwrap_or_default();
    let directories: Vec<Value> = directories(open)?
        .into_iter()
        .map(|KeyedDirectory { id, path, key }| {
            json!({
                "directory": id.to_hex(),
                "path": path.map(|path| String::from_utf8_lossy(&path).into_owned()),
                "key": key.to_hex(),
                "bucket_key": !off.directories.contains(&id),
            })
        })
        .collect();
    print_json(&json!({
        "vault": header.vault.to_hex(),
        "keystore": open.keys().id().to_hex(),
        "current_epoch": header.current.0,
        "bucket_key": !off.vault,
        "epochs": header.epochs.iter().map(epoch_json).collect::<Vec<_>>(),
        "keys": header.chains.iter().map(chain_json).collect::<Vec<_>>(),
        "directories": directories,
    }))
}

fn show_vault(open: &OpenVault) -> CliResult {
    let (header, keys) = (open.header(), ShownKeys::of(open)?);
    let mut out = String::new();
    for epoch in header.epochs.iter().rev() {
        let current = match header.chain_of(epoch.number) {
            _ if epoch.number == header.current => " (current)",
            Some(chain) if chain.current() == epoch.number => " (current of its key)",
            _ => "",
        };
        let opened = open.vault.epochs().check(epoch.number);
        let lost = if opened.is_ok() { "" } else { " (does not open)" };
        let (number, created) = (epoch.number, text::time(epoch.created));
        let _ = writeln!(out, "epoch {number}{current}{lost}, {created}");
        for wrap in &epoch.wraps {
            let _ = writeln!(out, "  {}", keys.wrap_line(wrap));
            for (name, value) in &wrap.context {
                let (name, value) = (text::printable(name.as_bytes()), text::printable(value.as_bytes()));
                let _ = writeln!(out, "  context {name}={value}");
            }
        }
    }
    let off = header.bucket_keys_off().unwrap_or_default();
    if off.vault {
        out.push_str("bucket key off: new files are asked for one by one\n");
    }
    for KeyedDirectory { id, path, key } in directories(open)? {
        let path = path.map_or_else(|| format!("{id}, which is gone"), |path| shown(&path));
        let line = keys.find(key).map_or_else(|| key.to_string(), keys::line);
        let bucket_key = if off.directories.contains(&id) {
            ", bucket key off"
        } else {
            ""
        };
        let _ = writeln!(out, "directory {path}\n  key {line}{bucket_key}");
    }
    print(out.as_bytes())
}

fn shown(path: &[u8]) -> String {
    if path.is_empty() {
        "/".to_owned()
    } else {
        text::printable(path)
    }
}

/// A directory that has a key of its own.
struct KeyedDirectory {
    id: DirectoryId,
    /// None where it is gone.
    path: Option<Vec<u8>>,
    key: KeyId,
}

/// Returns the directories that have a key of their own.
fn directories(open: &OpenVault) -> CliResult<Vec<KeyedDirectory>> {
    let wanted = &open.header().directories;
    let mut paths = paths(open, wanted.iter().map(|of| of.directory).collect())?;
    Ok(wanted
        .iter()
        .map(|of| KeyedDirectory {
            id: of.directory,
            path: paths.remove(&of.directory),
            key: of.key,
        })
        .collect())
}

fn paths(open: &OpenVault, wanted: BTreeSet<DirectoryId>) -> CliResult<BTreeMap<DirectoryId, Vec<u8>>> {
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let found = open.vault.paths_of(open.home.dir(), &wanted);
    found.map_err(|source| CliError::InVault {
        path: open.home.path().display().to_string(),
        source,
    })
}

/// An open vault, with the keys that its keystore has or its agent shows.
struct ShownKeys<'v> {
    open: &'v OpenVault,
    keys: Vec<KeyView>,
}

impl<'v> ShownKeys<'v> {
    fn of(open: &'v OpenVault) -> CliResult<Self> {
        let keys = open.keys().keys()?;
        Ok(ShownKeys { open, keys })
    }

    fn find(&self, key: KeyId) -> Option<&KeyView> {
        self.keys.iter().find(|view| view.id == key)
    }

    fn aliases(&self, key: KeyId) -> &[String] {
        self.find(key).map_or(&[][..], |view| &view.aliases)
    }

    fn wrap_line(&self, wrap: &EpochWrap) -> String {
        let key = wrap.key;
        match self.find(key) {
            _ if wrap.custodian == CustodianKind::Customer => format!("customer key {key}"),
            Some(view) => format!("key {}", keys::line(view)),
            None if self.open.keys().keystore().is_none() => format!("key {key} not shown by the agent"),
            None => format!("key {key} not in this keystore"),
        }
    }

    fn wrap_json(&self, wrap: &EpochWrap) -> Value {
        let pairs = wrap.context.iter();
        let context: Map<String, Value> = pairs
            .map(|(name, value)| (name.clone(), value.clone().into()))
            .collect();
        json!({
            "key": wrap.key.to_hex(),
            "custodian": match wrap.custodian {
                CustodianKind::Local => "keystore",
                CustodianKind::Customer => "customer",
            },
            "aliases": self.aliases(wrap.key),
            "state": self.find(wrap.key).map(keys::state_word),
            "context": context,
        })
    }
}

/// Chooses the key of new files, in a vault or in a directory of it.
pub fn set(args: &EncryptionSetArgs) -> CliResult {
    let context = context(&args.context)?;
    let mut open = open::open_for_change(&args.vault)?;
    let key = open.keys().find_key(&args.key)?;
    let bucket_key = args.bucket_key.map(OnOff::is_on);
    let Some(path) = &args.path else {
        say_epoch(open.set_key((key, context), bucket_key, process::now())?);
        return Ok(());
    };
    let directory = locate_directory(&open, path)?;
    open.set_directory_key(directory.directory(), (key, context), bucket_key, process::now())?;
    let epoch = open.vault.key_of_new_files_in(&directory.directories).epoch;
    say(format_args!(
        "new files there use epoch {epoch}; `hushfs rewrap --key` gives the key to those that are there"
    ));
    Ok(())
}

/// Chooses whether new files get a bucket key.
pub fn set_bucket_key(args: &BucketKeyArgs) -> CliResult {
    let on = args.state.is_on();
    let mut open = open::open_for_change(&args.vault)?;
    let (epoch, there) = match &args.path {
        None => (open.set_bucket_key(on, process::now())?, ""),
        Some(path) => {
            let directory = locate_directory(&open, path)?;
            open.set_directory_bucket_key(directory.directory(), on, process::now())?;
            (open.vault.key_of_new_files_in(&directory.directories).epoch, " there")
        }
    };
    let (with, word) = if on { ("with", "on") } else { ("without", "off") };
    say(format_args!(
        "new files{there} use epoch {epoch} {with} a bucket key; `hushfs rewrap --bucket-key {word}` changes those that are there"
    ));
    Ok(())
}

/// Takes from directories the key of their own.
pub fn unset(args: &EncryptionUnsetArgs) -> CliResult {
    let mut open = open::open_for_change(&args.vault)?;
    let count = match &args.path {
        Some(path) => {
            let directory = locate_directory(&open, path)?.directory();
            open.unset_directory_keys(|id| id == directory, process::now())?
        }
        None => {
            let there = paths(&open, open.header().directories.iter().map(|of| of.directory).collect())?;
            open.unset_directory_keys(|id| !there.contains_key(&id), process::now())?
        }
    };
    let had = text::count(count as u64, "directory");
    say(format_args!("{had} had a key of its own; files keep theirs"));
    Ok(())
}

/// Takes the pairs of an encryption context, sorted as they are stored.
pub fn context(pairs: &[(String, String)]) -> CliResult<ContextPairs> {
    // Hushfs adds two pairs of its own to those of every epoch.
    let own = Context::for_epoch(VaultId([0; 16]), Epoch(1));
    pairs
        .iter()
        .try_fold(own, |context, (name, value)| context.with(name, value))
        .map_err(CliError::Context)?;
    let mut sorted = pairs.to_vec();
    sorted.sort();
    Ok(sorted)
}

/// Has a vault take a customer's key.
pub fn add_customer_key(args: &CustomerKeyAddArgs) -> CliResult {
    let mut open = open::open_for_change(&args.vault)?;
    let key = secret::new_customer_key(args)?;
    let id = open.add_customer_key(&key, process::now())?;
    print(format!("{id}\n").as_bytes())
}

/// Has a vault no longer take a customer's key.
pub fn remove_customer_key(args: &CustomerKeyRemoveArgs) -> CliResult {
    let mut open = open::open_for_change(&args.vault)?;
    let bytes = data_encoding::HEXLOWER.decode(args.key.as_bytes()).ok();
    let id = bytes
        .and_then(|bytes| bytes.try_into().ok())
        .map(KeyId)
        .ok_or_else(|| CliError::NoKeyId {
            text: text::printable(args.key.as_bytes()),
        })?;
    process::raise_descriptor_limit();
    let survey = rewrap::survey(open.home.dir()).map_err(|source| CliError::File {
        path: args.vault.vault.clone(),
        source,
    })?;
    super::epochs::say_failures(&survey);
    if !survey.is_complete() {
        return Err(CliError::DamageFound);
    }
    open.remove_customer_key(id, &survey.used, process::now())?;
    Ok(())
}

/// The key that a file has, by the epoch of its header.
struct KeyOfFile<'v> {
    shown: &'v ShownKeys<'v>,
    epoch: Epoch,
    bucket_key: bool,
    /// What the custodian has made for the file alone, where it has no bucket key.
    own: Option<&'v OwnWrap>,
    /// None for an epoch that the vault does not have.
    wrap: Option<&'v EpochWrap>,
}

impl<'v> KeyOfFile<'v> {
    fn new(shown: &'v ShownKeys<'v>, choice::KeyOfFile { epoch, bucket_key }: choice::KeyOfFile) -> Self {
        let record = shown.open.header().epoch(epoch);
        KeyOfFile {
            shown,
            epoch,
            bucket_key,
            own: None,
            wrap: record.and_then(|record| record.wraps.first()),
        }
    }

    fn view(&self) -> Option<&'v KeyView> {
        let wrap = self.wrap.filter(|wrap| wrap.custodian == CustodianKind::Local)?;
        self.shown.find(wrap.key)
    }

    /// Returns what object stores call the way it is encrypted.
    fn model(&self) -> &'static str {
        let is_customers = self.wrap.is_some_and(|wrap| wrap.custodian == CustodianKind::Customer);
        match self.view().map(|view| view.manager) {
            _ if is_customers => "SSE-C",
            Some(Manager::Hushfs) => "SSE-S3",
            Some(Manager::Customer) => "SSE-KMS",
            None => "unknown",
        }
    }

    /// Tells whether the data key is wrapped by an epoch key; for SSE-KMS, where it is asked, and wherever it is not.
    fn bucket_key(&self) -> Option<bool> {
        (self.model() == "SSE-KMS" || !self.bucket_key).then_some(self.bucket_key)
    }

    fn model_line(&self) -> String {
        let bucket_key = match self.bucket_key() {
            None => "",
            Some(true) => ", bucket key on",
            Some(false) => ", bucket key off",
        };
        format!("{}{bucket_key}", self.model())
    }

    /// Returns the version of the key that the epoch, or the file's own secret, is wrapped under.
    fn version(&self) -> Option<u32> {
        // Of a remote key only who holds it knows.
        self.view().filter(|view| view.remote.is_none())?;
        let blob = self.own.map_or(&self.wrap?.blob[..], OwnWrap::blob);
        let blob = WrappedKey::new(blob.to_vec()).ok()?;
        version_of(&blob).map(|version| version.0)
    }

    fn key_line(&self) -> String {
        let Some(wrap) = self.wrap else {
            return "not in this vault".to_owned();
        };
        match self.view() {
            Some(view) => keys::line(view),
            None => wrap.key.to_string(),
        }
    }

    fn json(&self) -> Map<String, Value> {
        let aliases = self.wrap.map_or(&[][..], |wrap| self.shown.aliases(wrap.key));
        let state = self.view().map(keys::state_word);
        let fields = [
            ("model", self.model().into()),
            ("bucket_key", self.bucket_key().into()),
            ("key", self.wrap.map(|wrap| wrap.key.to_hex()).into()),
            ("aliases", aliases.to_vec().into()),
            ("key_state", state.into()),
            ("key_version", self.version().into()),
            ("epoch", self.epoch.0.into()),
        ];
        fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }
}

/// Says which key a file has.
pub fn file_info(args: &FileInfoArgs) -> CliResult {
    let open = open::open_vault(&args.vault, Lock::Unlocked)?;
    let located = locate(&open, &args.path)?;
    let facts = open.vault.file_facts(&located).map_err(|source| CliError::InVault {
        path: text::printable(args.path.as_os_str().as_encoded_bytes()),
        source,
    })?;
    let written = facts.written.as_ref();
    let key = match written {
        Some(written) => choice::KeyOfFile {
            epoch: written.epoch,
            bucket_key: written.own.is_none(),
        },
        None => open.vault.key_of_new_files_in(&located.directories),
    };
    let shown = ShownKeys::of(&open)?;
    let of = KeyOfFile {
        own: written.and_then(|written| written.own.as_ref()),
        ..KeyOfFile::new(&shown, key)
    };
    if args.json {
        print_json(&facts_json(&facts, &of))
    } else {
        print(facts_text(&facts, &of).as_bytes())
    }
}

fn facts_json(facts: &FileFacts, of: &KeyOfFile<'_>) -> Value {
    let mut object = of.json();
    let written = facts.written.as_ref();
    let suite = written.and_then(|written| Suite::from_number(written.suite));
    let fields = [
        ("written", written.is_some().into()),
        (
            "authenticated",
            written.is_some_and(|written| written.unopened.is_none()).into(),
        ),
        ("file", written.map(|written| written.id.to_hex()).into()),
        ("suite", suite.map(Suite::name).into()),
        ("size", facts.size.0.into()),
        ("state", written.map(state_of).into()),
        (
            "problem",
            written
                .and_then(|written| Some(written.unopened.as_ref()?.to_string()))
                .into(),
        ),
    ];
    object.extend(fields.map(|(name, value)| (name.to_owned(), value)));
    Value::Object(object)
}

fn state_of(written: &WrittenFacts) -> &'static str {
    if written.is_sealed { "sealed" } else { "open" }
}

fn facts_text(facts: &FileFacts, of: &KeyOfFile<'_>) -> String {
    let mut rows = Vec::new();
    match &facts.written {
        None => rows.push(("file", "never written; its first byte gives it this key".to_owned())),
        Some(written) => {
            rows.push(("file", written.id.to_hex()));
            rows.push(("state", state_of(written).to_owned()));
        }
    }
    rows.push(("size", text::count(facts.size.0, "byte")));
    rows.push(("model", of.model_line()));
    rows.push(("key", of.key_line()));
    rows.push(("epoch", of.epoch.to_string()));
    if let Some(version) = of.version() {
        rows.push(("version", version.to_string()));
    }
    if let Some(suite) = facts
        .written
        .as_ref()
        .and_then(|written| Suite::from_number(written.suite))
    {
        rows.push(("suite", suite.name().to_owned()));
    }
    if let Some(error) = facts.written.as_ref().and_then(|written| written.unopened.as_ref()) {
        let problem = text::message(&error.to_string());
        rows.push(("problem", format!("{problem}; nothing of this is authenticated")));
    }
    let mut out = String::new();
    for (name, value) in rows {
        let _ = writeln!(out, "{name:8} {value}");
    }
    out
}
