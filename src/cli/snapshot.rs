//! `snapshot`, and what `verify` compares a vault with: a snapshot, or the record.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Write},
    path::Path,
};

use serde_json::{Value, json};

use super::{
    CliResult,
    args::{CompareArgs, SnapshotArgs},
    error::CliError,
    open, outside, print, process,
    progress::Progress,
    record, say,
    sealed::output::Output,
    text,
    view::View,
};
use crate::{
    format::snapshot::SnapshotHead,
    vault::{
        Vault,
        snapshot::{self, Difference, SnapshotError, SnapshotReader, TakeEvent},
    },
};

/// Lists what is in a vault, sealed, in a file.
pub fn take(args: &SnapshotArgs) -> CliResult {
    outside::check(&args.output, &args.vault.vault)?;
    Output::check(Some(&args.output), args.force)?;
    let (opened, in_use) = open::open_even_in_use(&args.vault)?;
    process::raise_descriptor_limit();
    let base = args.base.as_deref().map(|path| read(&opened.vault, path)).transpose()?;
    let output = Output::create(Some(args.output.clone()), args.force)?;
    let head = SnapshotHead {
        time: process::now(),
        in_use,
        base: None,
        home: opened.seen(),
    };
    let progress = Progress::counter("entries");
    let failed = |error| CliError::Snapshot {
        path: args.output.clone(),
        error,
    };
    let out = BufWriter::with_capacity(1 << 20, output);
    let (taken, mut out) = snapshot::take(
        &opened.vault,
        opened.home.dir(),
        (head, out),
        base,
        &mut |event| match event {
            TakeEvent::Entry => progress.advance(1),
            TakeEvent::Unreadable { path, error } => {
                progress.complain(&format!("{}: {error}", text::printable(path)));
            }
        },
    )
    .map_err(failed)?;
    out.flush().map_err(|error| failed(error.into()))?;
    let mut output = out.into_inner().map_err(|error| failed(error.into_error().into()))?;
    output.make_durable(None)?;
    output.finish()?;
    drop(progress);
    if in_use {
        say(format_args!(
            "the vault was in use: what was written meanwhile may be listed as before or after"
        ));
    }
    say(format_args!(
        "{} listed, {} taken over, {} unreadable",
        text::count(taken.entries, "entry"),
        text::count(taken.taken_over, "file"),
        taken.unreadable
    ));
    match taken.unreadable {
        0 => Ok(()),
        _ => Err(CliError::DamageFound),
    }
}

fn read(vault: &Vault, path: &Path) -> CliResult<SnapshotReader<BufReader<File>>> {
    let file = File::open(path).map_err(|source| CliError::File {
        path: path.to_owned(),
        source,
    })?;
    SnapshotReader::new(vault, BufReader::with_capacity(1 << 20, file)).map_err(|error| CliError::Snapshot {
        path: path.to_owned(),
        error,
    })
}

/// What a comparison has found.
#[derive(Debug, Default)]
pub struct Compared {
    /// The differences, as JSON.
    pub differences: Vec<Value>,
    /// Some were not to be expected.
    pub is_damage: bool,
    /// How much could not be compared.
    pub unchecked: u64,
}

/// Compares a vault with a snapshot and with the record, as far as was asked for, and prints the differences.
pub fn compare(view: &View, args: &CompareArgs, json: bool) -> CliResult<Compared> {
    let mut compared = Compared::default();
    let (vault, root) = (view.fs.vault(), view.home().dir());
    if let Some(path) = &args.against {
        let reader = read(vault, path)?;
        let since = text::time(reader.head().time);
        let found = compare_by(path, json, &mut compared, |report| {
            snapshot::compare(vault, root, view.seen(), reader, report)
        })?;
        if !json {
            say(format_args!(
                "{} compared with those of {since}: {} to be expected, {} not",
                text::count(found.entries, "entry"),
                text::count(found.expected, "difference"),
                found.unexpected
            ));
        }
    }
    if args.record.is_some() {
        compare_with_record(view, args, json, &mut compared)?;
    }
    Ok(compared)
}

fn compare_with_record(view: &View, args: &CompareArgs, json: bool, compared: &mut Compared) -> CliResult {
    let (vault, home) = (view.fs.vault(), view.home());
    let known = record::known(vault, home, args.record.as_deref())?;
    if let Some(lacks) = &known.lacks {
        compared.unchecked += 1;
        if json {
            compared.differences.push(unchecked_as_json(lacks));
        } else {
            print(format!("unchecked: {}\n", text::printable(lacks.as_bytes())).as_bytes())?;
        }
    }
    let Some(record) = known.record else { return Ok(()) };
    let found = compare_by(home.path(), json, compared, |report| {
        snapshot::compare_with_record(vault, home.dir(), view.seen(), &record, report)
    })?;
    if !json {
        say(format_args!(
            "{} compared with the record: {} older or unreadable, {} of the record not there any more",
            text::count(found.entries, "entry"),
            found.unexpected,
            text::count(found.missing, "file")
        ));
    }
    Ok(())
}

fn compare_by(
    path: &Path,
    json: bool,
    compared: &mut Compared,
    compare: impl FnOnce(&mut dyn FnMut(Option<Difference>)) -> Result<snapshot::Summary, SnapshotError>,
) -> CliResult<snapshot::Summary> {
    let progress = Progress::counter("entries");
    let mut printed = Ok(());
    let found = compare(&mut |difference| match difference {
        None => progress.advance(1),
        Some(difference) => {
            if json {
                compared.differences.push(as_json(&difference));
            } else if printed.is_ok() {
                printed = progress.print(&as_line(&difference));
            }
        }
    });
    drop(progress);
    printed?;
    let found = found.map_err(|error| CliError::Snapshot {
        path: path.to_owned(),
        error,
    })?;
    compared.is_damage |= found.unexpected > 0;
    Ok(found)
}

fn path_of(difference: &Difference) -> String {
    difference
        .path
        .as_deref()
        .map_or_else(|| "the vault".to_owned(), text::printable)
}

fn as_line(difference: &Difference) -> String {
    let severity = if difference.change.is_expected() {
        "since"
    } else {
        "unexpected"
    };
    format!(
        "{severity}: {}: {}",
        path_of(difference),
        text::message(&difference.change.to_string())
    )
}

fn as_json(difference: &Difference) -> Value {
    json!({
        "path": difference.path.as_deref().map(String::from_utf8_lossy),
        "change": difference.change.word(),
        "expected": difference.change.is_expected(),
        "description": difference.change.to_string(),
    })
}

fn unchecked_as_json(why: &str) -> Value {
    json!({
        "path": null,
        "change": "unchecked",
        "expected": false,
        "description": why,
    })
}
