//! `verify` and `fsck`: what is common to them, and their output. The checks themselves are in `fsck`.

mod resume;

use std::{
    num::NonZeroUsize,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};

use self::resume::Resume;
use super::{
    CliResult,
    args::{FsckArgs, VerifyArgs},
    error::{self, CliError},
    open,
    outside::is_inside,
    process,
    progress::Progress,
    snapshot::{self, Compared},
    text,
    view::View,
};
use crate::{
    format::name::VAULT_HEADER,
    fsck::{self, Event, Finding, Known, Severity, Told, Why},
    vault::{
        Vault,
        home::{Lock, OpenError, VaultHome},
        journal::recovery,
    },
};

/// Reads and authenticates files.
pub fn verify(args: &VerifyArgs) -> CliResult {
    let view = View::open(&args.vault)?;
    let (vault, home) = (view.fs.vault(), view.home());
    let compared = snapshot::compare(&view, &args.compare, args.json)?;
    process::raise_descriptor_limit();
    let interrupted = Arc::new(AtomicBool::new(false));
    catch_interrupts(&interrupted)?;
    let resume = match &args.resume {
        Some(path) => Some(Resume::open(path, &args.vault.vault, vault.id())?),
        None => None,
    };
    let progress = if Progress::is_seen() {
        Progress::bytes("verifying", fsck::bytes_in(vault, home.dir(), &args.paths))
    } else {
        Progress::counter("bytes")
    };
    let report = Report::new(&args.vault.vault, args.json, &progress);
    report.compared(&compared);
    if args.compare.is_all() {
        return report.finish("nothing read", json!({}), false);
    }
    let options = fsck::Options {
        threads: args
            .threads
            .or_else(|| thread::available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN),
        sample: args.sample,
        known: resume.as_ref().map(|resume| resume as &dyn Known),
    };
    let stops = || interrupted.load(Ordering::Relaxed) || report.is_cut_off();
    let verified = fsck::verify(vault, home.dir(), &args.paths, &options, &stops, &|event| match event {
        Event::Entry => {}
        Event::Read(bytes) => progress.advance(bytes),
        event => report.event(event),
    });
    let verified = verified.map_err(in_vault)?;
    let was_interrupted = interrupted.load(Ordering::Relaxed);
    if let Some(resume) = resume {
        resume.close(was_interrupted || report.is_cut_off())?;
    }
    let of = |read: u64, all: u64, what: &str| match args.sample {
        Some(_) => format!("{read} of {}", text::count(all, what)),
        None => text::count(read, what),
    };
    let known = match verified.files_known {
        0 => String::new(),
        known => format!(", {} verified before", text::count(known, "file")),
    };
    let line = format!(
        "{} with {} read{known}",
        of(verified.files_read, verified.files, "file"),
        of(verified.bytes_read, verified.bytes, "byte"),
    );
    let fields = json!({
        "directories": verified.directories,
        "files": verified.files,
        "files_read": verified.files_read,
        "files_known": verified.files_known,
        "bytes": verified.bytes,
        "bytes_read": verified.bytes_read,
    });
    report.finish(&line, fields, was_interrupted)
}

/// Checks the structure of a vault, and repairs it if that is asked for.
pub fn fsck(args: &FsckArgs) -> CliResult {
    let progress = Progress::counter("entries");
    let report = Report::new(&args.vault.vault, args.json, &progress);
    let interrupted = Arc::new(AtomicBool::new(false));
    let stops = || interrupted.load(Ordering::Relaxed) || report.is_cut_off();
    process::raise_descriptor_limit();
    let summary = if args.no_key {
        catch_interrupts(&interrupted)?;
        without_key(args, &stops, &report)?
    } else if args.repair {
        let (vault, home) = open_recovered(args, Lock::Exclusive)?;
        refuse_copied_journals(&vault, &home)?;
        catch_interrupts(&interrupted)?;
        let accepted = &args.accept_directory;
        fsck::repair(&vault, home.dir(), accepted, &stops, &mut |told| report.told(&told)).map_err(in_vault)?
    } else {
        let lock = if args.apply_journal {
            Lock::Exclusive
        } else {
            Lock::Shared
        };
        let (vault, home) = open_recovered(args, lock)?;
        catch_interrupts(&interrupted)?;
        fsck::check(&vault, home.dir(), &stops, &mut |event| report.event(event)).map_err(in_vault)?
    };
    let line = format!(
        "{} and {} checked",
        text::count(summary.directories, "directory"),
        text::count(summary.files, "file"),
    );
    let fields = json!({"directories": summary.directories, "files": summary.files});
    report.finish(&line, fields, interrupted.load(Ordering::Relaxed))
}

/// Opens a vault, and writes what a crash left in its journal to its files: what is checked is what the next mount would find.
fn open_recovered(args: &FsckArgs, lock: Lock) -> CliResult<(Vault, VaultHome)> {
    let (vault, home) = open::open_vault(&args.vault, lock)?.into_vault();
    home.recover(&vault, lock, args.apply_journal)?;
    Ok((vault, home))
}

/// Refuses to repair while there is a journal that was made elsewhere: what it has counts for a file until that is sealed, which a repair does.
fn refuse_copied_journals(vault: &Vault, home: &VaultHome) -> CliResult {
    let copies = recovery::copies(vault, home.dir()).map_err(|source| CliError::File {
        path: home.path().to_owned(),
        source,
    })?;
    match copies.first() {
        Some(journal) => Err(CliError::JournalCopied {
            path: home.path().join(journal),
        }),
        None => Ok(()),
    }
}

fn without_key(args: &FsckArgs, stops: &dyn Fn() -> bool, report: &Report<'_>) -> CliResult<fsck::Summary> {
    let home = VaultHome::enter_for_agent(&args.vault.vault, Lock::Shared)?;
    let layout = home.claims().layout().map_err(|error| OpenError::Damaged {
        path: args.vault.vault.join(VAULT_HEADER),
        error,
    })?;
    let checked = fsck::check_without_key(home.dir(), layout, stops, &mut |event| report.event(event));
    checked.map_err(|source| CliError::File {
        path: args.vault.vault.clone(),
        source,
    })
}

fn in_vault(error: fsck::WalkError) -> CliError {
    CliError::InVault {
        path: match error.path.as_os_str().is_empty() {
            true => "/".to_owned(),
            false => error.path.display().to_string(),
        },
        source: error.source,
    }
}

/// Has SIGINT and SIGTERM set a flag, so that what was found so far is told; a second one ends the process. Not before the vault is open: a prompt ends
/// at the first.
fn catch_interrupts(interrupted: &Arc<AtomicBool>) -> CliResult {
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, interrupted.clone())
            .and_then(|_| signal_hook::flag::register(signal, interrupted.clone()))
            .map_err(|source| CliError::System {
                what: "waiting for signals",
                source,
            })?;
    }
    Ok(())
}

/// Prints findings as they come, and counts them.
struct Report<'p> {
    vault: &'p Path,
    json: bool,
    progress: &'p Progress,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    damage: u64,
    warnings: u64,
    unchecked: u64,
    notes: u64,
    corrected: u64,
    /// Something is not what it was when it was compared with, and nobody with the keys has changed it.
    differs: bool,
    /// Something could not be mended, since what it takes failed.
    has_failed: bool,
    /// Why standard output cannot be written any more.
    cut_off: Option<CliError>,
}

impl<'p> Report<'p> {
    fn new(vault: &'p Path, json: bool, progress: &'p Progress) -> Self {
        Report {
            vault,
            json,
            progress,
            counts: Mutex::default(),
        }
    }

    fn is_cut_off(&self) -> bool {
        self.counts.lock().cut_off.is_some()
    }

    /// Prints what a comparison has found, where it did not do so itself.
    fn compared(&self, compared: &Compared) {
        let mut counts = self.counts.lock();
        counts.differs = compared.is_damage;
        counts.unchecked += compared.unchecked;
        for difference in &compared.differences {
            let mut line = difference.clone();
            line["type"] = "difference".into();
            if let Err(error) = self.progress.print(&line.to_string()) {
                counts.cut_off.get_or_insert(error);
            }
        }
    }

    fn event(&self, event: Event) {
        match event {
            Event::Entry => self.progress.advance(1),
            Event::Read(_) => {}
            Event::Found(finding) => self.print(&finding, None),
        }
    }

    fn told(&self, told: &Told) {
        match told {
            Told::Corrected { finding, remedy } => {
                let kept = remedy.kept.as_ref().map(|kept| format!(", kept in {kept}"));
                let done = format!("{}{}", remedy.action, kept.unwrap_or_default());
                self.print(finding, Some((true, &done)));
            }
            Told::Left {
                finding,
                why: Why::Note,
            } => self.print(finding, None),
            Told::Left { finding, why } => {
                if let Why::Failed(_) = why {
                    self.counts.lock().has_failed = true;
                }
                let advice = match why {
                    Why::Unproved(_) | Why::Shared(..) => self.accepting(finding, "makes its header"),
                    Why::UnprovedEntry(_) => self.accepting(finding, "gives it a name there"),
                    _ => String::new(),
                };
                self.print(finding, Some((false, &format!("{why}{advice}"))));
            }
        }
    }

    /// Says which command has a directory, or what is in it, believed that it belongs where it is.
    fn accepting(&self, finding: &Finding, does: &str) -> String {
        let path = finding.plain_path().or(finding.directory.clone()).unwrap_or_default();
        format!(
            ": if nobody has moved it, `hushfs fsck --repair --accept-directory={} {}` {does}",
            text::shell_word(&path),
            text::shell_word(self.vault.as_os_str().as_bytes())
        )
    }

    /// Prints a finding, with what a repair has made of it.
    fn print(&self, finding: &Finding, repair: Option<(bool, &str)>) {
        let mut counts = self.counts.lock();
        let corrected = matches!(repair, Some((true, _)));
        *match finding.problem.severity() {
            _ if corrected => &mut counts.corrected,
            Severity::Damage => &mut counts.damage,
            Severity::Warning => &mut counts.warnings,
            Severity::Unchecked => &mut counts.unchecked,
            Severity::Note => &mut counts.notes,
        } += 1;
        let line = if self.json {
            Value::Object(finding_json(finding, repair)).to_string()
        } else {
            finding_line(finding, repair)
        };
        if let Err(error) = self.progress.print(&line) {
            counts.cut_off.get_or_insert(error);
        }
    }

    /// Prints the summary; gives the exit code as an error, if it is not 0.
    fn finish(self, line: &str, fields: Value, interrupted: bool) -> CliResult {
        let counts = self.counts.into_inner();
        if let Some(error) = counts.cut_off {
            return Err(error);
        }
        let mut code = 0;
        let bits = [
            (counts.corrected > 0, error::CORRECTED),
            (counts.differs || counts.damage + counts.warnings > 0, error::LEFT),
            (counts.has_failed || counts.unchecked > 0, error::OPERATION),
            (interrupted, error::CANCELLED),
        ];
        for (_, bit) in bits.iter().filter(|(is_so, _)| *is_so) {
            code |= bit;
        }
        if self.json {
            let mut summary = Map::new();
            summary.insert("type".to_owned(), "summary".into());
            if let Value::Object(fields) = fields {
                summary.extend(fields);
            }
            let counted = [
                ("damage", counts.damage),
                ("warnings", counts.warnings),
                ("unchecked", counts.unchecked),
                ("notes", counts.notes),
                ("corrected", counts.corrected),
            ];
            summary.extend(counted.map(|(name, count)| (name.to_owned(), count.into())));
            summary.insert("interrupted".to_owned(), interrupted.into());
            summary.insert("exit_code".to_owned(), code.into());
            self.progress.print(&Value::Object(summary).to_string())?;
        } else {
            let others = counts.warnings + counts.unchecked + counts.notes;
            let interrupted = if interrupted { "interrupted: " } else { "" };
            let corrected = match counts.corrected {
                0 => String::new(),
                corrected => format!("{corrected} corrected, "),
            };
            self.progress.complain(&format!(
                "{interrupted}{line}, {corrected}{} damaged, {}",
                counts.damage,
                text::count(others, "other finding")
            ));
        }
        match code {
            0 => Ok(()),
            code => Err(CliError::Checked(code)),
        }
    }
}

fn severity(finding: &Finding) -> &'static str {
    match finding.problem.severity() {
        Severity::Damage => "damage",
        Severity::Warning => "warning",
        Severity::Unchecked => "unchecked",
        Severity::Note => "note",
    }
}

/// Writes where something is in the view; `?` stands for a name that there is not.
fn plain_path(finding: &Finding) -> String {
    match (finding.plain_path(), &finding.directory) {
        (Some(path), _) if path.is_empty() => "/".to_owned(),
        (Some(path), _) => text::printable(&path),
        (None, Some(directory)) if !directory.is_empty() => format!("{}/?", text::printable(directory)),
        (None, _) => "?".to_owned(),
    }
}

fn finding_line(finding: &Finding, repair: Option<(bool, &str)>) -> String {
    let (word, rest) = match repair {
        Some((true, done)) => ("corrected", format!("; {done}")),
        Some((false, why)) => (severity(finding), format!("; left: {why}")),
        None => (severity(finding), String::new()),
    };
    format!(
        "{word}: {} ({}): {}{}",
        plain_path(finding),
        text::printable(&finding.disk_path),
        text::message(&finding.problem.to_string()),
        text::message(&rest)
    )
}

fn finding_json(finding: &Finding, repair: Option<(bool, &str)>) -> Map<String, Value> {
    let text = |bytes: &[u8]| Value::from(String::from_utf8_lossy(bytes));
    let mut object = Map::new();
    for (name, value) in [
        ("type", "finding".into()),
        ("severity", severity(finding).into()),
        ("code", finding.problem.code().into()),
        ("path", finding.plain_path().as_deref().map_or(Value::Null, text)),
        ("directory", finding.directory.as_deref().map_or(Value::Null, text)),
        ("disk_path", text(&finding.disk_path)),
        ("problem", finding.problem.to_string().into()),
    ] {
        object.insert(name.to_owned(), value);
    }
    if let Some((corrected, repair)) = repair {
        object.insert("corrected".to_owned(), corrected.into());
        object.insert("repair".to_owned(), repair.into());
    }
    object
}
