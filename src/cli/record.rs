//! `record`, and the record of a mount: what was last seen of a vault on this machine.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use serde_json::json;

use super::{
    CliResult,
    args::{RecordAcceptArgs, RecordArgs, RecordForgetArgs, RecordShowArgs, RollbackArg},
    error::CliError,
    info::print_json,
    open,
    outside::is_inside,
    print, say, text,
};
use crate::{
    format::FormatError,
    fs::Watch,
    vault::{
        Vault,
        file::VaultFile,
        home::{OpenVault, VaultHome},
        path::Entry,
        record::{Record, Start},
        snapshot,
    },
};

/// The directory of records where none is named: $STATE_DIRECTORY, as systemd gives it; /var/lib/hushfs for root; $XDG_STATE_HOME/hushfs.
fn default_directory() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value: &std::ffi::OsString| !value.is_empty());
    if let Some(list) = variable("STATE_DIRECTORY") {
        return std::env::split_paths(&list).next();
    }
    if rustix::process::geteuid().is_root() {
        return Some("/var/lib/hushfs".into());
    }
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("hushfs"))
}

/// Returns the directory of records that was named, or the default one. It must not lie in the vault, which whoever puts back an older version
/// can write to.
fn directory(named: Option<&Path>, vault: &Path) -> CliResult<PathBuf> {
    let path = match named {
        Some(path) if !path.as_os_str().is_empty() => path.to_owned(),
        _ => default_directory().ok_or(CliError::WhichRecord)?,
    };
    if is_inside(&path, vault) {
        return Err(CliError::RecordInVault { path });
    }
    Ok(path)
}

/// Opens the record of a vault, and says what has become of it.
pub fn open_record(vault: &Vault, home: &VaultHome, named: Option<&Path>) -> CliResult<Record> {
    let path = directory(named, home.path())?;
    let follows_names = home.dir().can_sync_filesystem();
    let (record, start) = Record::open(vault, &path, follows_names).map_err(CliError::Record)?;
    let place = path.display();
    match start {
        Start::Whole => {}
        Start::New => log::warn!(
            "there is no record of this vault in {place}: it is begun now, and what was put back before is not noticed"
        ),
        Start::Damaged { problem, kept } => log::warn!(
            "the record in {place} {}: what stands before that is used, and the whole was kept as {}",
            damage(&problem),
            kept.display()
        ),
    }
    Ok(record)
}

/// Says what is wrong with a record.
fn damage(problem: &FormatError) -> String {
    match problem {
        FormatError::TooShort => {
            "was cut or changed, or a crash came while it was written: its end is missing".to_owned()
        }
        problem => format!("was changed or damaged ({problem})"),
    }
}

/// What a vault can be compared with.
pub struct Known {
    /// The record; nothing where there is none, or nothing in it.
    pub record: Option<Record>,
    /// Why that is not all that was ever seen.
    pub lacks: Option<String>,
}

/// Opens the record of a vault to compare with it.
pub fn known(vault: &Vault, home: &VaultHome, named: Option<&Path>) -> CliResult<Known> {
    let path = directory(named, home.path())?;
    let place = path.display();
    let Some((record, problem)) = look(vault, home, &path)? else {
        let lacks = Some(format!(
            "there is no record of this vault in {place}: nothing was compared with it"
        ));
        return Ok(Known { record: None, lacks });
    };
    let record = Some(record).filter(|record| !record.is_empty());
    let compared = match record {
        Some(_) => "only what stands before that was compared",
        None => "nothing was compared with it",
    };
    let lacks = match problem {
        Some(problem) => Some(format!("the record in {place} {}: {compared}", damage(&problem))),
        None if record.is_none() => Some(format!("nothing is noted in the record in {place} yet: {compared}")),
        None => None,
    };
    Ok(Known { record, lacks })
}

/// Opens the record of a vault, if there is one. None is begun, and what is wrong with it stays as it is: who looks next is told too.
fn look(vault: &Vault, home: &VaultHome, path: &Path) -> CliResult<Option<(Record, Option<FormatError>)>> {
    Record::open_read_only(vault, path, home.dir().can_sync_filesystem()).map_err(CliError::Record)
}

/// Refuses a record that is not authentic: who has put another vault in the place of this one would have what was seen here forgotten. One that is missing its
/// end is what a crash leaves.
fn check_authentic(vault: &Vault, home: &VaultHome, named: &Path) -> CliResult {
    let path = directory(Some(named), home.path())?;
    match look(vault, home, &path)? {
        Some((_, Some(problem))) if problem != FormatError::TooShort => Err(CliError::RecordRefused { path, problem }),
        _ => Ok(()),
    }
}

/// The record of a mount.
pub struct MountRecord {
    record: Record,
    refuses: bool,
    /// The vault header or the keystore is older than it was; what was seen stays noted.
    is_older: bool,
}

impl MountRecord {
    /// Opens the record for a mount, and compares the vault header and the keystore as they were found.
    pub fn begin(open: &OpenVault, named: &Path, rollback: RollbackArg) -> CliResult<Self> {
        let refuses = rollback == RollbackArg::Refuse;
        if refuses {
            check_authentic(&open.vault, &open.home, named)?;
        }
        let record = open_record(&open.vault, &open.home, Some(named))?;
        let backwards = record.compare_home(&open.seen());
        match backwards {
            Some(backwards) if refuses => return Err(CliError::VaultRolledBack(backwards)),
            Some(backwards) => log::warn!("the vault is {backwards}"),
            None => {}
        }
        Ok(MountRecord {
            record,
            refuses,
            is_older: backwards.is_some(),
        })
    }

    /// Returns the directory that the record is kept in.
    pub fn directory(&self) -> PathBuf {
        self.record.directory()
    }

    /// Notes the vault header and the keystore as the mount has them.
    pub fn into_watch(self, open: &OpenVault) -> Watch {
        if !self.is_older {
            self.record.note_home(open.seen());
        }
        Watch::new(self.record, self.refuses)
    }
}

/// Says what the record holds.
pub fn show(args: &RecordShowArgs) -> CliResult {
    let (opened, _) = open::open_even_in_use(&args.vault)?;
    let path = directory(args.record.dir(), opened.home.path())?;
    let Some((record, problem)) = look(&opened.vault, &opened.home, &path)? else {
        return Err(CliError::NoRecord { path });
    };
    if let Some(problem) = problem {
        let place = path.display();
        log::warn!(
            "the record in {place} {}: what stands before that is shown",
            damage(&problem)
        );
    }
    let size = record.size();
    let home = record.home();
    if args.json {
        return print_json(&json!({
            "vault": opened.vault.id().to_hex(),
            "files": size.files,
            "gone": size.gone,
            "not_accepted": size.suspect,
            "bytes": size.bytes,
            "time": (size.time > 0).then(|| text::time(size.time)),
            "epoch": home.map(|home| home.epoch.0),
            "keystore_version": home.map(|home| home.generation),
        }));
    }
    let mut rows = vec![
        ("vault", opened.vault.id().to_hex()),
        ("files", size.files.to_string()),
        ("gone", text::count(size.gone, "file")),
        ("not accepted", text::count(size.suspect, "file")),
        ("size", text::count(size.bytes, "byte")),
    ];
    if size.time > 0 {
        rows.push(("written", text::time(size.time)));
    }
    if let Some(home) = home {
        rows.push(("epoch", home.epoch.to_string()));
        rows.push(("keystore", format!("version {}", home.generation)));
    }
    let lines: String = rows
        .iter()
        .map(|(name, value)| format!("{name:13} {value}\n"))
        .collect();
    print(lines.as_bytes())
}

/// Takes files, or all of the vault, as they are now for what is to be seen from now on.
pub fn accept(args: &RecordAcceptArgs) -> CliResult {
    let (opened, _) = open::open_even_in_use(&args.vault)?;
    let record = open_record(&opened.vault, &opened.home, args.record.dir())?;
    let (vault, home) = (&opened.vault, &opened.home);
    let mut accepted = 0;
    for path in &args.paths {
        accepted += u64::from(accept_one(vault, home, &record, path)?);
    }
    if args.all {
        accepted += snapshot::accept_all(vault, home.dir(), &record).map_err(|error| CliError::Snapshot {
            path: home.path().to_owned(),
            error,
        })?;
    }
    if args.all || args.header {
        record.note_home(opened.seen());
    }
    record
        .write(|| match home.dir().can_sync_filesystem() {
            true => home.dir().sync_filesystem(),
            false => Ok(()),
        })
        .map_err(CliError::Record)?;
    say(format_args!("{} noted as now", text::count(accepted, "file")));
    Ok(())
}

fn accept_one(vault: &Vault, home: &VaultHome, record: &Record, path: &Path) -> CliResult<bool> {
    let failed = |source| CliError::InVault {
        path: text::printable(OsStr::as_encoded_bytes(path.as_os_str())),
        source,
    };
    let located = vault.locate(home.dir(), path).map_err(failed)?;
    let Some(Entry { name, disk, .. }) = &located.entry else {
        return Err(CliError::DirectoryNotAccepted { path: path.to_owned() });
    };
    let file = located
        .dir
        .open_file(disk, true)
        .map_err(|error| failed(error.into()))?;
    let at = crate::vault::file::FoundAt {
        directory: located.directory(),
        name,
    };
    let file = VaultFile::load(vault, file, None, &located.dir, at).map_err(failed)?;
    Ok(record.accept_file(&file, at))
}

/// Removes the record.
pub fn forget(args: &RecordForgetArgs) -> CliResult {
    let (opened, _) = open::open_even_in_use(&args.vault)?;
    let path = directory(args.record.dir(), opened.home.path())?;
    match Record::forget(&opened.vault, &path).map_err(CliError::Record)? {
        true => Ok(()),
        false => Err(CliError::NoRecord { path }),
    }
}

impl RecordArgs {
    fn dir(&self) -> Option<&Path> {
        self.record.as_deref()
    }
}
