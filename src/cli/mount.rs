//! `mount` and `unmount`.

use std::{
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{
    CliResult,
    args::{AuditArg, JournalArg, MountArgs, RollbackArg, UnmountArgs},
    daemon::{self, Side},
    error::CliError,
    open, options, outside, process,
    record::MountRecord,
    say,
};
use crate::{
    backing::Dir,
    fs::{Fs, FsOptions},
    fuse::{self, MountError, MountId, MountOptions, Unmounter},
    sandbox::{Needs, Sandbox},
    vault::{
        freshness::Limits,
        home::{FileAudit, Lock, OpenVault},
    },
};

/// How long `unmount` waits for the mount's process to write and seal what is left.
const UNMOUNT_WAIT: Duration = Duration::from_secs(600);

/// How long before it says what it waits for.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(5);

/// Mounts a vault, in the background unless told otherwise.
pub fn mount(mut args: MountArgs) -> CliResult {
    let kernel_options = options::apply(&mut args)?;
    let log = args
        .log_file
        .as_deref()
        .map(|path| open_log(path, &args.vault))
        .transpose()?;
    if args.foreground {
        if let Some(log) = log {
            rustix::stdio::dup2_stderr(log).map_err(|errno| CliError::System {
                what: "the log file",
                source: errno.into(),
            })?;
        }
        return serve(&args, kernel_options, || {});
    }
    match daemon::fork(log)? {
        Side::Called(result) => result,
        Side::Background(background) => serve(&args, kernel_options, || background.ready()),
    }
}

fn open_log(path: &Path, vault: &Path) -> CliResult<File> {
    outside::check(path, vault)?;
    File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| CliError::File {
            path: path.to_owned(),
            source,
        })
}

/// Mounts and serves until the mount ends. Whatever can fail without a secret does so before one is asked for.
fn serve(args: &MountArgs, kernel_options: Vec<String>, ready: impl FnOnce()) -> CliResult {
    let cached_descriptors = process::raise_descriptor_limit();
    process::raise_locked_limit();
    // A block that the limit lies in would be half written, and what it was is lost then.
    if let Some(bytes) = process::raise_size_limit().filter(|_| !args.ro) {
        return Err(CliError::FileSizeLimit { bytes });
    }
    let lock = if args.ro { Lock::Shared } else { Lock::Exclusive };
    if args.audit.is_some() && args.unlock.agent.is_some() {
        return Err(CliError::FileAuditByAgent);
    }
    let home = open::enter_vault(&args.vault, lock, &args.unlock)?;
    fuse::check_mountpoint(&args.mountpoint)?;
    let (vault_path, mountpoint) = check_places(&args.vault, &args.mountpoint)?;
    // Before there are secrets, which would be in both processes.
    let unmounter = new_unmounter(args, mountpoint)?;
    let mut open = open::open_entered(home, &args.unlock, &args.customer)?;
    // Before anything is changed: what a mount completes is newer than all that was seen.
    let record = match &args.record {
        Some(named) => Some(MountRecord::begin(&open, named, args.rollback)?),
        None if args.rollback == RollbackArg::Refuse => return Err(CliError::RollbackWithoutRecord),
        None => None,
    };
    if !args.ro {
        // Something else may mount a shared vault at this very time, and two new versions of one key are a conflict.
        if !args.shared {
            open::rotate_due(open.keys_mut());
        }
        if open.finish(process::now())? {
            log::info!("completed a change of keys");
        }
    }
    let file_audit = match args.audit {
        Some(AuditArg::PerFile) => Some(file_audit(&open)?),
        None => None,
    };
    let limits = Limits {
        ttl: args.key_ttl.unwrap_or(Limits::default().ttl),
        max_stale: args.key_max_stale.unwrap_or(Limits::default().max_stale),
    };
    let sandbox = new_sandbox(args, &open, &vault_path, record.as_ref());
    let watch = record.map(|record| record.into_watch(&open));
    let (vault, home, keeper) = open.into_kept_vault(limits);
    home.recover(&vault, lock, args.apply_journal)?;
    // The kernel has applied the callers' own masks already.
    rustix::process::umask(rustix::fs::Mode::empty());
    let io_error = |source| CliError::File {
        path: args.vault.clone(),
        source,
    };
    let directory = home.open_dir().map_err(io_error)?;
    let journal = match args.journal {
        // A sync tool would carry it about.
        JournalArg::Auto => !args.shared && directory.is_on_disk().map_err(io_error)?,
        JournalArg::Always => true,
        JournalArg::Never => false,
    };
    let mut fs = Fs::new(
        vault,
        directory,
        FsOptions {
            read_only: args.ro,
            shared: args.shared,
            acl: args.acl,
            own_uid: rustix::process::geteuid().as_raw(),
            own_gid: rustix::process::getegid().as_raw(),
            cached_descriptors,
            journal,
        },
    )
    .map_err(|error| CliError::View {
        path: vault_path.display().to_string(),
        error,
    })?;
    if let Some(watch) = watch {
        fs.set_watch(watch);
    }
    let options = MountOptions {
        mountpoint: args.mountpoint.clone(),
        read_only: args.ro,
        allow_other: args.allow_other,
        fsname: match &args.fsname {
            Some(name) => name.into(),
            None => vault_path.clone().into_os_string(),
        },
        kernel_options,
        idle: args.idle,
        transport: args.transport.into(),
        stay_awake: args.stay_awake.into(),
        threads: args.threads,
        sandbox: Arc::new(sandbox),
        unmounter: Arc::new(unmounter),
    };
    fuse::mount(fs, keeper, &options, file_audit, ready)?;
    // The lock was held to the end: who gets it next finds everything sealed.
    drop(home);
    Ok(())
}

/// Returns what unmounts when the mount is to end by itself.
fn new_unmounter(args: &MountArgs, mountpoint: PathBuf) -> CliResult<Unmounter> {
    if args.no_sandbox {
        return Ok(Unmounter::of_own(mountpoint));
    }
    Unmounter::fork(mountpoint).map_err(|source| CliError::System {
        what: "a process that unmounts",
        source,
    })
}

/// Returns what the process gives up before it serves: what neither the vault's files nor asking for its keys takes, nor what is noted elsewhere.
fn new_sandbox(args: &MountArgs, open: &OpenVault, vault: &Path, record: Option<&MountRecord>) -> Sandbox {
    if args.no_sandbox {
        return Sandbox::off();
    }
    let mut directories = vec![vault.to_owned()];
    // With the audit log of the keystore, which lies beside it.
    directories.extend(open.keys().keystore().map(|keystore| keystore.path().to_owned()));
    directories.extend(record.map(MountRecord::directory));
    Sandbox::new(Needs {
        directories,
        removes_in: Vec::new(),
        filesystem: true,
        outside: process::outside(open.reach()),
    })
}

/// Returns what records who opened which file. Names of files do not go where the vault itself is.
fn file_audit(open: &OpenVault) -> CliResult<FileAudit> {
    let keystore = open.keys().keystore().ok_or(CliError::FileAuditByAgent)?;
    if keystore.is_embedded() {
        return Err(CliError::FileAuditInVault);
    }
    let audit = keystore.file_audit().map_err(CliError::Audit)?;
    audit.ok_or_else(|| CliError::NotAudited {
        path: keystore.path().to_owned(),
    })
}

/// Refuses a mountpoint in the vault, where it would show as a stranger's; returns the paths of both without links.
fn check_places(vault: &Path, mountpoint: &Path) -> CliResult<(PathBuf, PathBuf)> {
    let canonical = |path: &Path| {
        fs::canonicalize(path).map_err(|source| CliError::File {
            path: path.to_owned(),
            source,
        })
    };
    let (vault, canonical_mountpoint) = (canonical(vault)?, canonical(mountpoint)?);
    if canonical_mountpoint.starts_with(&vault) {
        return Err(CliError::MountpointInVault {
            mountpoint: mountpoint.to_owned(),
        });
    }
    Ok((vault, canonical_mountpoint))
}

/// Ends a mount, and waits until its process has let go of the vault.
pub fn unmount(args: &UnmountArgs) -> CliResult {
    let mountpoint = canonical_mountpoint(&args.mountpoint);
    let Some(mounted) = fuse::find_mount(&mountpoint) else {
        return Err(CliError::NotMounted {
            mountpoint: args.mountpoint.clone(),
        });
    };
    // A process that stands still would not answer, and is not waited for either.
    let server = if args.lazy { None } else { Server::of(&mountpoint) };
    let id = MountId::at(&mountpoint, mounted.fsname.as_os_str()).ok();
    // What could not be written is told to who had it open at that time. The name is the vault's path unless the user chose another.
    let vault = (mounted.fsname.is_absolute() && !mounted.read_only).then(|| Dir::open(&mounted.fsname));
    fuse::unmount(&mountpoint, args.lazy).map_err(|error| match error {
        MountError::MountpointUnusable { source, .. } if source.kind() == io::ErrorKind::ResourceBusy => {
            CliError::Busy {
                mountpoint: args.mountpoint.clone(),
            }
        }
        other => CliError::Mount(other),
    })?;
    if let Some(place) = id.as_ref().and_then(fuse::another_place) {
        say(format_args!(
            "it goes on at {}, where it is mounted as well",
            place.display()
        ));
        return Ok(());
    }
    if let Some(server) = server {
        server.wait(&mounted.fsname)?;
        return match vault.map_or(Ok(()), |vault| vault?.sync_filesystem()) {
            // It is another user's, or in another namespace.
            Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound) => Ok(()),
            synced => synced.map_err(|source| CliError::NotDurable {
                vault: mounted.fsname,
                source,
            }),
        };
    }
    if args.lazy || mounted.read_only {
        return Ok(());
    }
    // Who serves it cannot be asked. The name in the mount table is the vault's path unless the user chose another.
    match Dir::open(&mounted.fsname) {
        Ok(vault) if mounted.fsname.is_absolute() => wait_for_lock(&vault, &mounted.fsname),
        _ => Ok(()),
    }
}

/// The process that serves a mount.
struct Server(OwnedFd);

impl Server {
    /// Asks the mount for its process; nothing where that cannot be told, as by root for another user's mount.
    fn of(mountpoint: &Path) -> Option<Self> {
        let mut number = [0; 16];
        let len = rustix::fs::getxattr(mountpoint, fuse::PROCESS_ATTRIBUTE, &mut number).ok()?;
        let number = std::str::from_utf8(&number[..len]).ok()?.parse().ok()?;
        let process = pidfd_open(Pid::from_raw(number)?, PidfdFlags::empty()).ok()?;
        // Seen from another namespace the number may be anybody's.
        let name = fs::read_to_string(format!("/proc/{number}/comm")).ok()?;
        (name.trim_end() == "hushfs").then_some(Server(process))
    }

    /// Waits until it has ended: everything is written then, and the vault let go of.
    fn wait(&self, vault: &Path) -> CliResult {
        if self.has_ended(UNMOUNT_PATIENCE) {
            return Ok(());
        }
        say(format_args!(
            "{}: unmounted, and waiting until its process has written what is left; where the mount is in other namespaces, as of containers, it goes on there",
            vault.display()
        ));
        if self.has_ended(UNMOUNT_WAIT) {
            return Ok(());
        }
        Err(CliError::StillWriting {
            vault: vault.to_owned(),
        })
    }

    /// Waits so long for its end; tells whether it has come.
    fn has_ended(&self, wait: Duration) -> bool {
        let limit = Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: 0,
        };
        let mut ended = [PollFd::new(&self.0, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut ended, Some(&limit))) != Ok(0)
    }
}

/// Returns the mountpoint without links, also when its process is gone and nothing about the directory itself can be asked.
fn canonical_mountpoint(path: &Path) -> PathBuf {
    if let Ok(canonical) = fs::canonicalize(path) {
        return canonical;
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match (fs::canonicalize(parent), path.file_name()) {
        (Ok(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

fn wait_for_lock(vault: &Dir, path: &Path) -> CliResult {
    match vault.lock_within(UNMOUNT_WAIT) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(CliError::StillWriting { vault: path.to_owned() })
        }
        // A directory that cannot be locked is not waited for.
        _ => Ok(()),
    }
}
