//! `audit` and `keystore audit`: the log of what keys were used for and who changed them.

use std::{
    fmt::Write as _,
    io::{self, BufWriter, Write},
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use super::{
    CliResult,
    args::{
        AuditExportArgs, AuditFilterArgs, AuditOnArgs, AuditShowArgs, AuditVerifyArgs, StoreArgs, StoreListArgs,
        UnlockArgs,
    },
    error::CliError,
    info::print_json,
    open, print, process, say, text,
};
use crate::{
    format::audit::Line,
    vault::home::{AuditError, LogReader},
};

/// Lists records.
pub fn show(args: &AuditShowArgs) -> CliResult {
    let filter = Filter::new(&args.filter)?;
    let mut out = BufWriter::new(io::stdout().lock());
    each_record(&args.filter, |seq, record| {
        if !filter.takes(&record) {
            return Ok(());
        }
        match args.json {
            true => writeln!(out, "{record}"),
            false => writeln!(out, "{}", line(seq, &record)),
        }
    })?;
    out.flush().map_err(CliError::Output)?;
    say(format_args!(
        "nothing of this was verified: `hushfs audit verify` does that"
    ));
    Ok(())
}

/// Writes records as AWS's log files are.
pub fn export(args: &AuditExportArgs) -> CliResult {
    let filter = Filter::new(&args.filter)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut before = "{\"Records\":[";
    each_record(&args.filter, |_, record| {
        if !filter.takes(&record) {
            return Ok(());
        }
        write!(out, "{before}{record}")?;
        before = ",\n";
        Ok(())
    })?;
    let end = if before.starts_with('{') {
        "{\"Records\":[]}"
    } else {
        "]}"
    };
    writeln!(out, "{end}")
        .and_then(|()| out.flush())
        .map_err(CliError::Output)?;
    say(format_args!(
        "nothing of this was verified: `hushfs audit verify` does that"
    ));
    Ok(())
}

/// Verifies the log.
pub fn verify(args: &AuditVerifyArgs) -> CliResult {
    let mut store = open::open_store(args.store.vault.as_deref(), &args.store.unlock)?;
    let keystore = store.keystore_mut()?;
    let verified = match keystore.verify_log(args.log.as_deref()) {
        Ok(Some(verified)) => verified,
        Ok(None) => {
            return Err(CliError::NoAuditLog {
                path: keystore.path().to_owned(),
            });
        }
        Err(error) => return Err(CliError::Audit(error)),
    };
    let is_damaged = !verified.problems.is_empty() || verified.besides.as_ref().is_some_and(AuditError::is_damage);
    let problems = verified.problems.iter();
    if args.json {
        let problems: Vec<Value> = problems
            .map(|(line, problem)| json!({"line": line, "problem": problem.to_string()}))
            .chain(
                verified
                    .besides
                    .iter()
                    .map(|error| json!({"line": null, "problem": error.to_string()})),
            )
            .collect();
        print_json(&json!({
            "records": verified.good,
            "last": verified.last,
            "known_to_keystore": verified.head.seq,
            "damaged": is_damaged,
            "problems": problems,
        }))?;
    } else {
        let mut out = String::new();
        for (line, problem) in problems {
            let _ = writeln!(out, "line {line}: {problem}");
        }
        if let Some(error) = &verified.besides {
            let _ = writeln!(out, "{error}");
        }
        print(out.as_bytes())?;
        let known = match args.log {
            Some(_) => "whether its end was cut off cannot be told".to_owned(),
            None => format!("the keystore itself knows them up to {}", verified.head.seq),
        };
        say(format_args!(
            "{} as written, the last is {}; {known}",
            text::count(verified.good, "record"),
            verified.last.map_or_else(|| "none".to_owned(), |last| last.to_string()),
        ));
    }
    if is_damaged { Err(CliError::DamageFound) } else { Ok(()) }
}

/// Has calls recorded.
pub fn on(args: &AuditOnArgs) -> CliResult {
    let store = &args.store;
    // Nothing is rotated by the way, which a log that is damaged would not let through.
    let mut store = open::open_store_exclusively(store.vault.as_deref(), &store.unlock)?;
    if !store.keystore_mut()?.audit_on(args.new_log, process::now())? {
        say(format_args!("it is on already"));
    }
    Ok(())
}

/// Has calls recorded no longer.
pub fn off(args: &StoreArgs) -> CliResult {
    let mut store = open::open_store_exclusively(args.vault.as_deref(), &args.unlock)?;
    store.keystore_mut()?.audit_off(process::now())?;
    Ok(())
}

/// Says whether calls are recorded.
pub fn status(args: &StoreListArgs) -> CliResult {
    let mut store = open::open_store(args.store.vault.as_deref(), &args.store.unlock)?;
    let keystore = store.keystore_mut()?.keystore();
    let (settings, head) = (keystore.audit_settings(), keystore.audit_head());
    let is_on = settings.as_ref().is_some_and(|settings| settings.is_on);
    if args.json {
        return print_json(&json!({
            "on": is_on,
            "log": settings.as_ref().map(|settings| settings.log.to_hex()),
            "first": settings.as_ref().map(|settings| settings.first),
            "known_to_keystore": head.seq,
        }));
    }
    let mut out = format!("calls are {}recorded\n", if is_on { "" } else { "not " });
    if let Some(settings) = settings {
        let _ = writeln!(
            out,
            "log {}, from record {} on; the keystore itself knows them up to {}",
            settings.log, settings.first, head.seq
        );
    }
    print(out.as_bytes())
}

/// Calls a function for each record of a log, with its number; names lines that are none.
fn each_record(args: &AuditFilterArgs, mut act: impl FnMut(u64, Value) -> io::Result<()>) -> CliResult {
    let mut reader = match &args.log {
        Some(path) => LogReader::open(path),
        None => {
            let unlock = UnlockArgs {
                keystore: args.keystore.clone(),
                ..UnlockArgs::default()
            };
            LogReader::of(&open::find_keystore(args.vault.as_deref(), &unlock)?)
        }
    }
    .map_err(missing_is_none)?;
    let mut number: u64 = 0;
    while let Some(bytes) = reader.next_line().map_err(CliError::Audit)? {
        number += 1;
        let record = Line::decode(&bytes)
            .ok()
            .and_then(|line| Some((line.seq, serde_json::from_str(line.event).ok()?)));
        match record {
            Some((seq, record)) => act(seq, record).map_err(CliError::Output)?,
            None => {
                let path = text::printable(reader.path().as_os_str().as_encoded_bytes());
                say(format_args!("{path}: line {number}: no record"));
            }
        }
    }
    Ok(())
}

fn missing_is_none(error: AuditError) -> CliError {
    match error {
        AuditError::Missing { file } => CliError::NoAuditLog { path: file },
        error => CliError::Audit(error),
    }
}

/// Which records are wanted.
struct Filter<'a> {
    args: &'a AuditFilterArgs,
    since: Option<SystemTime>,
    until: Option<SystemTime>,
}

impl<'a> Filter<'a> {
    fn new(args: &'a AuditFilterArgs) -> CliResult<Self> {
        let now = SystemTime::now();
        let time = |text: &Option<String>| text.as_deref().map(|text| parse_time(text, now)).transpose();
        Ok(Filter {
            since: time(&args.since)?,
            until: time(&args.until)?,
            args,
        })
    }

    fn takes(&self, record: &Value) -> bool {
        let args = self.args;
        let time = record["eventTime"]
            .as_str()
            .and_then(|text| humantime::parse_rfc3339(text).ok());
        args.key.as_deref().is_none_or(|key| names_key(record, key))
            && args
                .principal
                .as_deref()
                .is_none_or(|who| is_principal(&record["userIdentity"], who))
            && args.event.as_deref().is_none_or(|event| {
                let name = record["eventName"].as_str();
                name.is_some_and(|name| name.eq_ignore_ascii_case(event))
            })
            && self.since.is_none_or(|since| time.is_some_and(|time| time >= since))
            && self.until.is_none_or(|until| time.is_some_and(|time| time <= until))
            && (!args.errors || record.get("errorCode").is_some())
    }
}

/// Tells whether a record is about a key: by its id or ARN, or as the call has named it.
fn names_key(record: &Value, key: &str) -> bool {
    let is_it = |value: &Value| {
        let text = value.as_str().unwrap_or_default();
        text == key || text.ends_with(&format!(":key/{key}"))
    };
    let resources = record["resources"].as_array();
    resources.is_some_and(|resources| resources.iter().any(|resource| is_it(&resource["ARN"])))
        || ["keyId", "targetKeyId", "aliasName"]
            .iter()
            .any(|name| is_it(&record["requestParameters"][name]))
}

/// Tells whether this is who asked: a user id, or the name of the slot that opened the keystore.
fn is_principal(identity: &Value, who: &str) -> bool {
    identity["principalId"] == who || identity["role"] == who
}

/// Takes a time, a day, or how long ago.
fn parse_time(text: &str, now: SystemTime) -> CliResult<SystemTime> {
    let day = format!("{text}T00:00:00Z");
    humantime::parse_rfc3339_weak(text)
        .or_else(|_| humantime::parse_rfc3339(&day))
        .ok()
        .or_else(|| now.checked_sub(humantime::parse_duration(text).unwrap_or(Duration::MAX)))
        .ok_or_else(|| CliError::AuditTime(text.to_owned()))
}

/// Writes a record for people.
fn line(seq: u64, record: &Value) -> String {
    let text = |value: &Value| text::printable(value.as_str().unwrap_or_default().as_bytes());
    let who = &record["userIdentity"];
    let mut out = format!(
        "{seq:6} {} uid {}",
        text(&record["eventTime"]),
        text(&who["principalId"])
    );
    if who["role"].is_string() {
        let _ = write!(out, " ({})", text(&who["role"]));
    }
    let _ = write!(out, " {}", text(&record["eventName"]));
    for resource in record["resources"].as_array().into_iter().flatten() {
        let arn = text(&resource["ARN"]);
        let _ = write!(out, " {}", arn.rsplit('/').next().unwrap_or_default());
    }
    let parameters = &record["requestParameters"];
    for (name, value) in parameters["encryptionContext"].as_object().into_iter().flatten() {
        let _ = write!(out, " {}={}", text::printable(name.as_bytes()), text(value));
    }
    for name in ["aliasName", "slotName", "path"] {
        if parameters[name].is_string() {
            let _ = write!(out, " {}", text(&parameters[name]));
        }
    }
    if record["errorCode"].is_string() {
        let _ = write!(
            out,
            " {}: {}",
            text(&record["errorCode"]),
            text(&record["errorMessage"])
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_days_moments_or_so_long_ago() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let seconds = |text: &str| {
            let time = parse_time(text, now).unwrap();
            time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
        };
        assert_eq!(seconds("1970-01-02"), 86_400);
        assert_eq!(seconds("1970-01-02T00:00:01Z"), 86_401);
        assert_eq!(seconds("1970-01-02 00:00:01"), 86_401);
        assert_eq!(seconds("10s"), 999_990);
        for wrong in ["", "yesterday", "1970-13-01"] {
            assert!(parse_time(wrong, now).is_err(), "{wrong}");
        }
    }
}
