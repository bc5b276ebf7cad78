//! `key`: master keys, in the words of cloud key services.

use std::{
    fmt::Write,
    fs::File,
    io::{self, IsTerminal, Read},
    path::Path,
};

use serde_json::{Map, Value, json};

use super::{
    CliResult,
    args::{
        AliasRemoveArgs, AliasSetArgs, KeyArgs, KeyChangeArgs, KeyCreateArgs, KeyDeleteArgs, KeyDescribeUpdateArgs,
        KeyShowArgs, KeyTagArgs, KeyUntagArgs, PolicySetArgs, RotationOnArgs, StoreChangeArgs, StoreListArgs,
        UnlockArgs,
    },
    devices,
    error::CliError,
    info::print_json,
    open::{self, Store},
    print, process, say, text,
};
use crate::{
    format::keystore::{KeyOperation, KeyState, LastUse, Manager, MaterialCause, POLICY_LEN_MAX},
    keystore::{
        policy::DEFAULT_POLICY,
        request::{Answer, Change, Changed, Description, KeyView, NeedView, Question},
    },
    vault::home::{ChangeError, KeySource},
};

/// What is said of a change that was only tried.
const WOULD_SUCCEED: &str =
    "DryRunOperationException: the request would have succeeded, but --dry-run was given: nothing was changed";

/// Opens a keystore and changes it; with `dry_run` tells whether that would succeed, and returns nothing.
fn change(
    vault: Option<&Path>,
    unlock: &UnlockArgs,
    dry_run: bool,
    change: Change,
) -> CliResult<Option<(Store, Changed)>> {
    let now = process::now();
    if dry_run {
        open::open_store(vault, unlock)?.keys.rehearse(change, now)?;
        say(format_args!("{WOULD_SUCCEED}"));
        return Ok(None);
    }
    let mut store = open::open_store_for_change(vault, unlock)?;
    let changed = store.keys.change(change, now)?;
    Ok(Some((store, changed)))
}

/// Opens a keystore and changes one of its keys.
fn change_key(args: &KeyChangeArgs, make: impl FnOnce(String) -> Change) -> CliResult<Option<(Store, Changed)>> {
    let key = &args.key;
    let wanted = make(key.key.clone());
    change(key.vault.as_deref(), &key.unlock, args.dry_run.dry_run, wanted)
}

/// Opens a keystore to look at one of its keys.
fn look(args: &KeyArgs, make: impl FnOnce(String) -> Question) -> CliResult<(Store, Answer)> {
    let store = open::open_store(args.vault.as_deref(), &args.unlock)?;
    let answer = store.keys.question(make(args.key.clone()))?;
    Ok((store, answer))
}

/// What is said of an answer to something else.
fn unexpected<T>() -> CliResult<T> {
    Err(CliError::Change(ChangeError::UnexpectedAnswer))
}

/// Makes a key.
pub fn create(args: &KeyCreateArgs) -> CliResult {
    let store = &args.store;
    let remote = match (&args.aws_kms, &args.pkcs11) {
        (Some(key), _) => Some(devices::kms::name(key)?),
        (None, Some(uri)) if args.generate => Some(devices::token::make(uri, &store.unlock.devices)?),
        (None, Some(uri)) => Some(devices::token::name(uri)?),
        (None, None) => None,
    };
    let create = Change::Create {
        description: args.description.clone(),
        tags: args.tags.clone(),
        alias: args.alias.clone(),
        remote,
    };
    match change(store.vault.as_deref(), &store.unlock, args.dry_run.dry_run, create)? {
        None => Ok(()),
        Some((_, Changed::Key(key))) => print(format!("{key}\n").as_bytes()),
        Some(_) => unexpected(),
    }
}

/// Says all that is known of a key.
pub fn describe(args: &KeyShowArgs) -> CliResult {
    let (store, answer) = look(&args.key, |key| Question::Describe { key })?;
    let Answer::Describe(described) = answer else {
        return unexpected();
    };
    let key = &described.key;
    let separation = Separation::of(&store.keys);
    if args.json {
        let mut json = key_json(key);
        json["arn"] = described.arn.clone().into();
        json["rotation"] = described.rotation.as_ref().map_or(Value::Null, |rotation| {
            json!({
                "enabled": rotation.period_days.is_some(),
                "period_days": rotation.period_days,
                "next": rotation.next.map(text::time),
                "on_demand": rotation.on_demand,
            })
        });
        json["holder"] = holder(&described).into();
        json["policy_enforced_by"] = separation.word().into();
        return print_json(&json);
    }
    let mut rows = vec![
        ("key", key.id.to_hex()),
        ("arn", described.arn.clone()),
        ("state", state(key)),
        ("manager", manager(key).to_owned()),
        ("origin", origin(key)),
        ("holder", holder(&described)),
        ("created", text::time(key.created)),
        ("description", text::printable(key.description.as_bytes())),
        ("aliases", text::printable(key.aliases.join(" ").as_bytes())),
    ];
    for tag in &key.tags {
        let tag = format!("{}={}", tag.name, tag.value);
        rows.push(("tag", text::printable(tag.as_bytes())));
    }
    if let Some(newest) = &key.newest {
        let versions = text::count(key.versions, "version");
        rows.push(("versions", format!("{versions}, the current one is {}", newest.version)));
    }
    let rotation = match &described.rotation {
        Ok(rotation) => rotation_line(rotation.period_days, rotation.next),
        Err(error) => error.to_string(),
    };
    rows.push(("rotation", rotation));
    rows.push(("last use", last_use_line(key.last_use)));
    let policy = if key.has_policy { "its own" } else { "default" };
    rows.push(("policy", format!("{policy}; {}", separation.line())));
    if let Some(remote) = &key.remote {
        let line = format!(
            "{} decides too, at each use that is not cached, and never shows the key",
            remote.word()
        );
        rows.push(("", line));
    }
    print_rows(&rows)
}

/// Who keeps whom from a key, in truth.
enum Separation {
    /// The process that has the keystore open decides: nobody, against who can open a slot.
    Process,
    /// An agent of another user: the operating system, against everyone but root and that user.
    Agent(u32),
    /// An agent whose memory and keystore this user can get at.
    OwnAgent(u32),
}

impl Separation {
    fn of(keys: &KeySource) -> Self {
        let own = rustix::process::geteuid();
        match keys {
            KeySource::Keystore(_) => Separation::Process,
            KeySource::Agent(agent) if own.is_root() || own.as_raw() == agent.status().uid => {
                Separation::OwnAgent(agent.status().uid)
            }
            KeySource::Agent(agent) => Separation::Agent(agent.status().uid),
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Separation::Process | Separation::OwnAgent(_) => "process",
            Separation::Agent(_) => "agent",
        }
    }

    fn line(&self) -> String {
        match self {
            Separation::Process => "a seat belt: who can open a slot can read the key, whatever it says".to_owned(),
            Separation::OwnAgent(uid) => format!(
                "against you a seat belt: the agent runs as user {uid}, and you can read what it has; against others a wall"
            ),
            Separation::Agent(uid) => {
                format!("enforced by the agent, which runs as user {uid}, against everyone but that user and root")
            }
        }
    }
}

fn print_rows(rows: &[(&str, String)]) -> CliResult {
    let mut out = String::new();
    for (name, value) in rows {
        let _ = writeln!(out, "{}", format!("{name:11} {value}").trim_end());
    }
    print(out.as_bytes())
}

/// Lists the keys.
pub fn list(args: &StoreListArgs) -> CliResult {
    let store = open::open_store(args.store.vault.as_deref(), &args.store.unlock)?;
    let keys = store.keys.keys()?;
    if args.json {
        return print_json(&json!({
            "keystore": store.keys.id().to_hex(),
            "generation": store.keys.generation(),
            "keys": keys.iter().map(key_json).collect::<Vec<_>>(),
        }));
    }
    let mut out = String::new();
    for key in &keys {
        let _ = writeln!(out, "{}", line(key));
    }
    print(out.as_bytes())
}

/// Lets a key be used again.
pub fn enable(args: &KeyChangeArgs) -> CliResult {
    change_key(args, |key| Change::Enable { key }).map(drop)
}

/// Keeps a key from being used.
pub fn disable(args: &KeyChangeArgs) -> CliResult {
    change_key(args, |key| Change::Disable { key }).map(drop)
}

/// Makes a new version of a key, and a new epoch of the vault that was named.
pub fn rotate(args: &KeyChangeArgs) -> CliResult {
    let (store, key, version) = match change_key(args, |key| Change::Rotate { key })? {
        None => return Ok(()),
        Some((store, Changed::Version(key, version))) => (store, key, version),
        Some(_) => return unexpected(),
    };
    say(format_args!("key {key} has version {version}"));
    if let Some(vault) = store.vault {
        let mut open = vault.open_with(store.keys)?;
        if open.finish(process::now())? {
            super::epochs::say_epoch(open.header().current);
        }
    }
    Ok(())
}

/// Has a key make new versions by itself.
pub fn rotation_on(args: &RotationOnArgs) -> CliResult {
    let days = args.days;
    change_key(&args.change, |key| Change::RotationOn { key, days }).map(drop)
}

/// Has a key make none by itself.
pub fn rotation_off(args: &KeyChangeArgs) -> CliResult {
    change_key(args, |key| Change::RotationOff { key }).map(drop)
}

/// Says whether and when a key makes new versions by itself.
pub fn rotation_status(args: &KeyShowArgs) -> CliResult {
    let (_, Answer::Rotation(key, status)) = look(&args.key, |key| Question::Rotation { key })? else {
        return unexpected();
    };
    if args.json {
        return print_json(&json!({
            "key": key.to_string(),
            "enabled": status.period_days.is_some(),
            "period_days": status.period_days,
            "next": status.next.map(text::time),
            "on_demand": status.on_demand,
        }));
    }
    let line = rotation_line(status.period_days, status.next);
    print(
        format!(
            "{line}; rotated on demand {}\n",
            text::count(status.on_demand as u64, "time")
        )
        .as_bytes(),
    )
}

/// Lists the versions of a key.
pub fn rotations(args: &KeyShowArgs) -> CliResult {
    let (_, Answer::Versions(key, versions)) = look(&args.key, |key| Question::Versions { key })? else {
        return unexpected();
    };
    let state = |at: usize| {
        if at + 1 == versions.len() {
            "current"
        } else {
            "non-current"
        }
    };
    if args.json {
        let versions: Vec<Value> = versions
            .iter()
            .enumerate()
            .map(|(at, version)| {
                json!({
                    "version": version.version.0,
                    "material_id": data_encoding::HEXLOWER.encode(&version.id),
                    "created": text::time(version.created),
                    "type": cause(version.cause),
                    "state": state(at),
                })
            })
            .collect();
        return print_json(&json!({"key": key.to_string(), "versions": versions}));
    }
    let mut out = String::new();
    for (at, version) in versions.iter().enumerate() {
        let _ = writeln!(
            out,
            "version {:3} {}, {}, {}, {}",
            version.version.0,
            text::time(version.created),
            cause(version.cause),
            state(at),
            data_encoding::HEXLOWER.encode(&version.id),
        );
    }
    print(out.as_bytes())
}

/// Gives a key tags.
pub fn tag(args: &KeyTagArgs) -> CliResult {
    let tags = args.tags.clone();
    change_key(&args.change, |key| Change::Tag { key, tags }).map(drop)
}

/// Takes tags from a key.
pub fn untag(args: &KeyUntagArgs) -> CliResult {
    let names = args.names.clone();
    change_key(&args.change, |key| Change::Untag { key, names }).map(drop)
}

/// Says anew what a key is for.
pub fn describe_update(args: &KeyDescribeUpdateArgs) -> CliResult {
    let description = args.description.clone();
    change_key(&args.change, |key| Change::SetDescription { key, description }).map(drop)
}

/// Has a key destroyed after some days.
pub fn delete(args: &KeyDeleteArgs) -> CliResult {
    let days = args.days;
    let (key, date, needs) = match change_key(&args.change, |key| Change::Delete { key, days })? {
        None => return Ok(()),
        Some((_, Changed::Deletion(key, date, needs))) => (key, date, needs),
        Some(_) => return unexpected(),
    };
    for line in usage_lines(&needs) {
        say(format_args!("warning: {line}"));
    }
    say(format_args!(
        "key {key} can be destroyed from {} on (`hushfs key reap`); until then `hushfs key undelete` keeps it",
        text::time(date)
    ));
    Ok(())
}

/// Keeps a key that was to be destroyed.
pub fn undelete(args: &KeyChangeArgs) -> CliResult {
    match change_key(args, |key| Change::Undelete { key })? {
        None => {}
        Some((_, Changed::Key(key))) => {
            say(format_args!(
                "key {key} stays, and is disabled until `hushfs key enable`"
            ));
        }
        Some(_) => return unexpected(),
    }
    Ok(())
}

/// Destroys the keys whose time has come.
pub fn reap(args: &StoreChangeArgs) -> CliResult {
    let store = &args.store;
    let changed = change(
        store.vault.as_deref(),
        &store.unlock,
        args.dry_run.dry_run,
        Change::Reap,
    )?;
    let (keys, reaped) = match changed {
        None => return Ok(()),
        Some((store, Changed::Reaped(reaped))) => (store.keys, reaped),
        Some(_) => return unexpected(),
    };
    // One in a vault was open here alone, and an agent goes on with the root that it has made.
    let is_open_elsewhere = matches!(&keys, KeySource::Keystore(keystore) if !keystore.is_embedded());
    if reaped.is_empty() {
        say(format_args!(
            "no key is due: `hushfs key describe KEY` says from when on one is"
        ));
    }
    if !reaped.is_empty() && is_open_elsewhere {
        say(format_args!(
            "mounts and agents that have this keystore open cannot ask it any more: start them again soon, or their files end with ETIMEDOUT (`--key-max-stale`)"
        ));
    }
    for reaped in reaped {
        let aliases = reaped
            .aliases
            .iter()
            .map(|alias| format!(", {alias}"))
            .collect::<String>();
        say(format_args!("destroyed key {}{aliases}", reaped.key));
    }
    Ok(())
}

/// Says which vaults need a key, and when it was last used.
pub fn usage(args: &KeyShowArgs) -> CliResult {
    let (_, Answer::Usage(usage)) = look(&args.key, |key| Question::Usage { key })? else {
        return unexpected();
    };
    if args.json {
        let vaults: Vec<Value> = usage
            .vaults
            .iter()
            .map(|NeedView { vault, need }| {
                json!({
                    "vault": vault.vault.to_hex(),
                    "path": Some(&vault.path).filter(|path| !path.is_empty()),
                    "epochs": need.epochs,
                    "only_opened_by_this_key": need.alone,
                    "files": vault.files.map(|files| files.count),
                    "files_counted": vault.files.map(|files| text::time(files.time)),
                    "last_use": vault.last_use.map(text::time),
                })
            })
            .collect();
        return print_json(&json!({
            "key": usage.key.to_hex(),
            "last_use": last_use_json(usage.last_use),
            "vaults": vaults,
        }));
    }
    let mut out = format!("last use: {}\n", last_use_line(usage.last_use));
    for line in usage_lines(&usage.vaults) {
        let _ = writeln!(out, "{line}");
    }
    if usage.vaults.is_empty() {
        out.push_str("no vault is known to need it\n");
    }
    out.push_str("this is what was stored: disable the key and see what fails before you delete it\n");
    print(out.as_bytes())
}

fn usage_lines(needs: &[NeedView]) -> Vec<String> {
    let lines = needs.iter().map(|NeedView { vault, need }| {
        let path = match vault.path.as_str() {
            "" => String::new(),
            path => format!(" ({})", text::printable(path.as_bytes())),
        };
        let files = vault.files.map_or_else(String::new, |files| {
            let count = text::count(files.count, "file");
            format!(", {count} on {}", text::time(files.time))
        });
        let last_use = vault
            .last_use
            .map_or_else(String::new, |time| format!(", last opened {}", text::time(time)));
        format!(
            "vault {}{path} needs it for {}, {} of them open with it alone{files}{last_use}",
            vault.vault,
            text::count(need.epochs.into(), "epoch"),
            need.alone
        )
    });
    lines.collect()
}

/// Makes an alias, or moves it.
pub fn set_alias(args: &AliasSetArgs) -> CliResult {
    let set = Change::SetAlias {
        alias: args.alias.clone(),
        key: args.key.clone(),
    };
    change(args.vault.as_deref(), &args.unlock, args.dry_run.dry_run, set).map(drop)
}

/// Removes an alias.
pub fn remove_alias(args: &AliasRemoveArgs) -> CliResult {
    let remove = Change::RemoveAlias {
        alias: args.alias.clone(),
    };
    change(args.vault.as_deref(), &args.unlock, args.dry_run.dry_run, remove).map(drop)
}

/// Lists the aliases.
pub fn list_aliases(args: &StoreListArgs) -> CliResult {
    let store = open::open_store(args.store.vault.as_deref(), &args.store.unlock)?;
    let Answer::Aliases(aliases) = store.keys.question(Question::Aliases)? else {
        return unexpected();
    };
    if args.json {
        let aliases: Vec<Value> = aliases
            .iter()
            .map(|alias| json!({"alias": alias.name, "key": alias.key.to_hex()}))
            .collect();
        return print_json(&json!({"aliases": aliases}));
    }
    let mut out = String::new();
    for alias in aliases {
        let _ = writeln!(out, "{} {}", alias.key, text::printable(alias.name.as_bytes()));
    }
    print(out.as_bytes())
}

/// Prints the policy of a key.
pub fn show_policy(args: &KeyArgs) -> CliResult {
    let (_, Answer::Policy(policy)) = look(args, |key| Question::Policy { key })? else {
        return unexpected();
    };
    let policy = if policy.is_empty() { DEFAULT_POLICY } else { &policy };
    match io::stdout().is_terminal() {
        true => print(text::printable_lines(policy).as_bytes()),
        false => print(policy.as_bytes()),
    }
}

/// Sets the policy of a key.
pub fn set_policy(args: &PolicySetArgs) -> CliResult {
    let policy = match &args.file {
        Some(path) => read_policy(path)?,
        None => String::new(),
    };
    let lockout = args.bypass_policy_lockout_safety_check;
    change_key(&args.change, |key| Change::SetPolicy { key, policy, lockout }).map(drop)
}

fn read_policy(path: &Path) -> CliResult<String> {
    let failed = |source| CliError::File {
        path: path.to_owned(),
        source,
    };
    let mut policy = String::new();
    // One byte more than allowed, so that one that is too long is told so and not cut.
    let limit = POLICY_LEN_MAX as u64 + 1;
    let read = if path == Path::new("-") {
        io::stdin().lock().take(limit).read_to_string(&mut policy)
    } else {
        File::open(path).and_then(|file| file.take(limit).read_to_string(&mut policy))
    };
    read.map_err(failed)?;
    if policy.trim().is_empty() {
        return Err(CliError::EmptyPolicy { path: path.to_owned() });
    }
    Ok(policy)
}

/// Writes a key on a line.
pub fn line(key: &KeyView) -> String {
    let what = match key.remote {
        Some(_) => origin(key),
        None => text::count(key.versions, "version"),
    };
    let aliases: String = key.aliases.iter().map(|alias| format!(", {alias}")).collect();
    let aliases = text::printable(aliases.as_bytes());
    format!("{} {}, {what}{aliases}", key.id, state(key))
}

fn key_json(key: &KeyView) -> Value {
    let tags: Map<String, Value> = key
        .tags
        .iter()
        .map(|tag| (tag.name.clone(), tag.value.clone().into()))
        .collect();
    let newest = key.newest;
    let deletion_date = match key.state {
        KeyState::PendingDeletion { date } => Some(text::time(date)),
        KeyState::Enabled | KeyState::Disabled => None,
    };
    json!({
        "id": key.id.to_hex(),
        "aliases": key.aliases,
        "manager": manager(key),
        "origin": key.remote.as_ref().map_or("local", |remote| remote.word()),
        "remote_key": key.remote.as_ref().map(ToString::to_string),
        "state": state_word(key),
        "deletion_date": deletion_date,
        "created": text::time(key.created),
        "description": key.description,
        "tags": tags,
        "version": newest.map(|material| material.version.0),
        "material_id": newest.map(|material| data_encoding::HEXLOWER.encode(&material.id)),
        "policy": if key.has_policy { "own" } else { "default" },
        "last_use": last_use_json(key.last_use),
    })
}

/// Writes the state of a key for programs.
pub fn state_word(key: &KeyView) -> &'static str {
    match key.state {
        KeyState::Enabled => "enabled",
        KeyState::Disabled => "disabled",
        KeyState::PendingDeletion { .. } => "pending deletion",
    }
}

fn state(key: &KeyView) -> String {
    match key.state {
        KeyState::PendingDeletion { date } => format!("{}, not before {}", state_word(key), text::time(date)),
        KeyState::Enabled | KeyState::Disabled => state_word(key).to_owned(),
    }
}

fn manager(key: &KeyView) -> &'static str {
    match key.manager {
        Manager::Customer => "customer",
        Manager::Hushfs => "hushfs",
    }
}

fn origin(key: &KeyView) -> String {
    key.remote
        .as_ref()
        .map_or_else(|| "local".to_owned(), |remote| format!("{} {remote}", remote.word()))
}

/// Writes what the holder of a remote key says of it.
fn holder(described: &Description) -> String {
    match (&described.key.remote, &described.holder) {
        (None, _) => "this keystore".to_owned(),
        (Some(_), Ok(())) => "says that it can be used".to_owned(),
        (Some(_), Err(error)) => error.to_string(),
    }
}

fn cause(cause: MaterialCause) -> &'static str {
    match cause {
        MaterialCause::Creation => "creation",
        MaterialCause::AutomaticRotation => "automatic",
        MaterialCause::OnDemandRotation => "on-demand",
        MaterialCause::Rekey => "slot-removed",
    }
}

fn rotation_line(period_days: Option<u32>, next: Option<u64>) -> String {
    match (period_days, next) {
        (Some(days), Some(next)) => format!("every {days} days, next {}", text::time(next)),
        _ => "not by itself".to_owned(),
    }
}

fn operation(operation: KeyOperation) -> &'static str {
    match operation {
        KeyOperation::Encrypt => "Encrypt",
        KeyOperation::Decrypt => "Decrypt",
        KeyOperation::GenerateDataKey => "GenerateDataKey",
        KeyOperation::ReEncrypt => "ReEncrypt",
    }
}

fn last_use_line(last_use: Option<LastUse>) -> String {
    match last_use {
        Some(last) => format!("{} on {}", operation(last.operation), text::time(last.time)),
        None => "not known".to_owned(),
    }
}

fn last_use_json(last_use: Option<LastUse>) -> Value {
    last_use.map_or(
        Value::Null,
        |last| json!({"operation": operation(last.operation), "time": text::time(last.time)}),
    )
}
