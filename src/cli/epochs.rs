//! `rewrap` and `vault rotate`: new epochs of the keys of a vault, and files moved to them.

use super::{
    CliResult,
    args::{OnOff, RewrapArgs, RotateArgs},
    encryption,
    error::CliError,
    open, process,
    progress::Progress,
    say, text,
};
use crate::{
    ids::Epoch,
    vault::{
        home::OpenVault,
        rewrap::{self, Outcome, Scope, Step, Target, Wanted},
    },
};

/// Says which epoch new files use.
pub fn say_epoch(epoch: Epoch) {
    say(format_args!(
        "new files use epoch {epoch}; `hushfs rewrap` moves the others to it"
    ));
}

/// Makes a new epoch.
pub fn rotate(args: &RotateArgs) -> CliResult {
    let mut open = match args.accept_older_header {
        true => open::open_older_for_change(&args.vault)?,
        false => open::open_for_change(&args.vault)?,
    };
    say_epoch(open.rotate(process::now())?);
    Ok(())
}

/// Moves headers to the newest epoch of their key, or to another key.
pub fn rewrap(args: &RewrapArgs) -> CliResult {
    let mut open = open::open_for_change(&args.vault)?;
    process::raise_descriptor_limit();
    let bucket_key = args.bucket_key.map(OnOff::is_on);
    if bucket_key == Some(false) {
        open.allow_without_bucket_key(process::now())?;
    }
    let target = target(args, &mut open)?;
    let scopes = scopes(args, &open)?;
    let mut progress = None;
    let wanted = Wanted { target, bucket_key };
    let outcome = rewrap::rewrap(&open.vault, &scopes, wanted, &mut |step| {
        match step {
            Step::Counted(total) => progress = Some(Progress::items("headers", total)),
            Step::Examined => progress.iter().for_each(|progress| progress.advance(1)),
            Step::Written | Step::Synced | Step::Renamed => {}
        }
        Ok(())
    });
    drop(progress);
    let outcome = outcome.map_err(|source| CliError::Rewrap {
        vault: args.vault.vault.clone(),
        source,
    })?;
    say_failures(&outcome);
    let moved = text::count(outcome.rewrapped, "header");
    let already = outcome.current;
    match target {
        Target::OwnKey if !open.header().chains.is_empty() => {
            say(format_args!(
                "{moved} moved to the newest epoch of their key, {already} of it already"
            ));
        }
        Target::OwnKey => {
            let epoch = open.header().current;
            say(format_args!("{moved} moved to epoch {epoch}, {already} of it already"));
        }
        Target::Epoch(epoch) => say(format_args!("{moved} moved to epoch {epoch}, {already} of it already")),
    }
    if !outcome.is_complete() {
        return Err(CliError::NotRewrapped {
            count: outcome.failed.len(),
        });
    }
    if args.retire {
        let retired = open.retire_epochs_except(&outcome.used, process::now())?;
        say(format_args!("{} retired", text::count(retired.len() as u64, "epoch")));
        if outcome.without_bucket_key == 0 {
            open.end_without_bucket_key()?;
        }
    }
    if args.paths.is_empty() {
        open.record_files(outcome.rewrapped + outcome.current, process::now())?;
    }
    Ok(())
}

fn target(args: &RewrapArgs, open: &mut OpenVault) -> CliResult<Target> {
    if args.vault_key {
        return Ok(Target::Epoch(open.header().current));
    }
    let Some(key) = &args.key else {
        return Ok(Target::OwnKey);
    };
    let key = open.keys().find_key(key)?;
    Ok(Target::Epoch(open.epoch_of_key(key, process::now())?))
}

/// Returns what is to be walked through. A file without a header has nothing to be moved.
fn scopes(args: &RewrapArgs, open: &OpenVault) -> CliResult<Vec<Scope>> {
    if args.paths.is_empty() {
        let everything = Scope::everything(open.home.dir()).map_err(|source| CliError::Rewrap {
            vault: args.vault.vault.clone(),
            source,
        })?;
        return Ok(vec![everything]);
    }
    let mut scopes = Vec::new();
    for path in &args.paths {
        let scope = Scope::of(path, encryption::locate(open, path)?).map_err(|source| CliError::InVault {
            path: text::printable(path.as_os_str().as_encoded_bytes()),
            source,
        })?;
        scopes.extend(scope);
    }
    Ok(scopes)
}

/// Names what a walk could not deal with.
pub fn say_failures(outcome: &Outcome) {
    for failure in &outcome.failed {
        let problem = text::message(&failure.error.to_string());
        let disk_path = text::printable(failure.disk_path.as_bytes());
        match &failure.path {
            Some(path) => {
                let path = text::printable(path.as_os_str().as_encoded_bytes());
                say(format_args!("{path} ({disk_path}): {problem}"));
            }
            None => say(format_args!("{disk_path}: {problem}")),
        }
    }
}
