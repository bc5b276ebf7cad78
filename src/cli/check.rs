//! `verify` and `fsck`: the checks themselves are in `fs` and in `fsck`.

use std::{collections::HashSet, path::Path};

use rustix::fs::FileType;
use serde_json::{Value, json};

use super::{
    CliResult,
    args::{FsckArgs, VerifyArgs},
    error::CliError,
    info::print_json,
    process,
    progress::Progress,
    secret, text,
    view::{Place, View},
};
use crate::{
    fs::FsError,
    fsck::{self, Finding},
    vault::home::{Lock, VaultHome},
};

/// Reads and authenticates files.
pub fn verify(args: &VerifyArgs) -> CliResult {
    let view = View::open(&args.vault)?;
    let root = [Path::new("/").to_owned()];
    let paths = if args.paths.is_empty() { &root[..] } else { &args.paths };
    let mut progress = Progress::counter("bytes");
    if Progress::is_seen() {
        let mut total = Verification::new(&view, None);
        for path in paths {
            total.tree(view.find(path)?)?;
        }
        progress = Progress::bytes("verifying", total.bytes);
    }
    let mut run = Verification::new(&view, Some((&progress, args.json)));
    for path in paths {
        run.tree(view.find(path)?)?;
    }
    let (files, bytes, findings) = (run.files, run.bytes, run.findings);
    drop(progress);
    if args.json {
        print_json(&json!({
            "files": files,
            "bytes": bytes,
            "damaged": !findings.is_empty(),
            "findings": findings,
        }))?;
    } else {
        eprintln!(
            "hushfs: {} with {} read, {} damaged",
            text::count(files, "file"),
            text::count(bytes, "byte"),
            findings.len()
        );
    }
    if findings.is_empty() {
        Ok(())
    } else {
        Err(CliError::DamageFound)
    }
}

/// A walk over the view; without a progress it only adds up sizes.
struct Verification<'v> {
    view: &'v View,
    progress: Option<(&'v Progress, bool)>,
    files: u64,
    bytes: u64,
    /// Files with several names that were read already.
    seen: HashSet<u64>,
    findings: Vec<Value>,
}

impl<'v> Verification<'v> {
    fn new(view: &'v View, progress: Option<(&'v Progress, bool)>) -> Self {
        Verification {
            view,
            progress,
            files: 0,
            bytes: 0,
            seen: HashSet::new(),
            findings: Vec::new(),
        }
    }

    fn tree(&mut self, start: Place) -> CliResult {
        let mut waiting = vec![start];
        while let Some(place) = waiting.pop() {
            if place.attr.kind() == FileType::Directory {
                match self.view.entries(&place) {
                    Ok(entries) => waiting.extend(entries.into_iter().map(|entry| entry.place)),
                    Err(error) => self.found(&place, &error)?,
                }
                // Kept: whoever is looked up below finds its way through it.
                continue;
            }
            self.file(&place)?;
            self.view.forget(&place);
        }
        Ok(())
    }

    fn file(&mut self, place: &Place) -> CliResult {
        if place.attr.kind() == FileType::RegularFile {
            if place.attr.nlink > 1 && !self.seen.insert(place.id) {
                return Ok(());
            }
            self.files += 1;
            self.bytes += place.attr.size;
        }
        let Some((progress, _)) = self.progress else {
            return Ok(());
        };
        let fs = &self.view.fs;
        let mut done = 0;
        let result = match place.attr.kind() {
            FileType::RegularFile => fs.verify(place.id, |bytes| {
                progress.advance(bytes);
                done += bytes;
            }),
            FileType::Symlink => fs.read_link(place.id).map(drop),
            _ => Ok(()),
        };
        progress.advance(place.attr.size.saturating_sub(done));
        let result = result.and_then(|()| match fs.list_xattrs(place.id, true) {
            // A filesystem without attributes has none that are damaged.
            Err(FsError::Io(error)) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            other => other.map(drop),
        });
        match result {
            Ok(()) => Ok(()),
            Err(error) => self.found(place, &error),
        }
    }

    fn found(&mut self, place: &Place, error: &FsError) -> CliResult {
        let Some((progress, json)) = self.progress else {
            return Ok(());
        };
        let path = place.printable_path();
        let (disk_path, problem) = match error {
            FsError::Vault { source, disk_path } => (disk_path.clone(), source.to_string()),
            other => (String::new(), text::without_numbers(&other.to_string())),
        };
        if !json {
            let on_disk = if disk_path.is_empty() {
                String::new()
            } else {
                format!(" ({disk_path})")
            };
            progress.print(&format!("{path}{on_disk}: {problem}"))?;
        }
        self.findings
            .push(json!({"path": path, "disk_path": disk_path, "problem": problem}));
        Ok(())
    }
}

/// Checks the structure of a vault.
pub fn fsck(args: &FsckArgs) -> CliResult {
    let vault = &args.vault;
    let home = VaultHome::enter(&vault.vault, Lock::Shared)?;
    let unlock = secret::unlock(&vault.vault, &vault.unlock)?;
    let choice = secret::choice(&home, vault.unlock.slot.as_deref());
    let (vault, home) = home.open(&unlock, &choice)?.into_vault();
    process::raise_descriptor_limit();
    let progress = Progress::counter("entries");
    let mut findings: Vec<Finding> = Vec::new();
    let mut printed = Ok(());
    let summary = fsck::check(&vault, home.dir(), &mut |event| match event {
        fsck::Event::Entry => progress.advance(1),
        fsck::Event::Found(finding) => {
            if !args.json && printed.is_ok() {
                printed = progress.print(&finding_line(&finding));
            }
            findings.push(finding);
        }
    })
    .map_err(|source| CliError::File {
        path: args.vault.vault.clone(),
        source,
    })?;
    drop(progress);
    printed?;
    let damaged = findings.iter().filter(|finding| finding.problem.is_damage()).count();
    if args.json {
        let list: Vec<Value> = findings.iter().map(finding_json).collect();
        print_json(&json!({
            "directories": summary.directories,
            "files": summary.files,
            "damaged": damaged > 0,
            "findings": list,
        }))?;
    } else {
        eprintln!(
            "hushfs: {} and {} checked, {damaged} damaged, {}",
            text::count(summary.directories, "directory"),
            text::count(summary.files, "file"),
            text::count((findings.len() - damaged) as u64, "other finding")
        );
    }
    if damaged == 0 {
        Ok(())
    } else {
        Err(CliError::DamageFound)
    }
}

fn severity(finding: &Finding) -> &'static str {
    if finding.problem.is_damage() { "damage" } else { "note" }
}

fn plain_path(finding: &Finding) -> String {
    finding
        .plain_path
        .as_deref()
        .map_or_else(|| "?".to_owned(), text::printable)
}

fn finding_line(finding: &Finding) -> String {
    format!(
        "{}: {} ({}): {}",
        severity(finding),
        plain_path(finding),
        text::printable(&finding.disk_path),
        text::without_numbers(&finding.problem.to_string())
    )
}

fn finding_json(finding: &Finding) -> Value {
    json!({
        "severity": severity(finding),
        "path": finding.plain_path.as_deref().map(String::from_utf8_lossy),
        "disk_path": String::from_utf8_lossy(&finding.disk_path),
        "problem": finding.problem.to_string(),
    })
}
