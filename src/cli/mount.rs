//! `mount` and `unmount`.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    CliResult,
    args::{MountArgs, UnmountArgs},
    daemon::{self, Side},
    error::CliError,
    options, process, secret,
};
use crate::{
    backing::Dir,
    fs::{Fs, FsOptions},
    fuse::{self, MountError, MountOptions},
    vault::home::{Lock, VaultHome},
};

/// How long `unmount` waits for the mount's process to write and seal what is left.
const UNMOUNT_WAIT: Duration = Duration::from_secs(600);

/// How often it looks.
const UNMOUNT_POLL: Duration = Duration::from_millis(10);

/// Mounts a vault, in the background unless told otherwise.
pub fn mount(mut args: MountArgs) -> CliResult {
    let kernel_options = options::apply(&mut args)?;
    let log = args.log_file.as_deref().map(open_log).transpose()?;
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

fn open_log(path: &Path) -> CliResult<File> {
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
    let lock = if args.ro { Lock::Shared } else { Lock::Exclusive };
    let home = VaultHome::enter(&args.vault, lock)?;
    fuse::check_mountpoint(&args.mountpoint)?;
    let vault_path = check_places(&args.vault, &args.mountpoint)?;
    let unlock = secret::unlock(&args.vault, &args.unlock)?;
    let choice = secret::choice(&home, args.unlock.slot.as_deref());
    let mut open = home.open(&unlock, &choice)?;
    drop(unlock);
    if !args.ro && open.finish(process::now())? {
        log::info!("completed a change of keys that was interrupted");
    }
    let (vault, home) = open.into_vault();
    // The kernel has applied the callers' own masks already.
    rustix::process::umask(rustix::fs::Mode::empty());
    let io_error = |source| CliError::File {
        path: args.vault.clone(),
        source,
    };
    let fs = Fs::new(
        vault,
        home.open_dir().map_err(io_error)?,
        FsOptions {
            read_only: args.ro,
            shared: args.shared,
            acl: args.acl,
            own_uid: rustix::process::geteuid().as_raw(),
            own_gid: rustix::process::getegid().as_raw(),
            cached_descriptors: process::raise_descriptor_limit(),
        },
    )
    .map_err(|error| CliError::View {
        path: vault_path.display().to_string(),
        error,
    })?;
    let options = MountOptions {
        mountpoint: args.mountpoint.clone(),
        read_only: args.ro,
        allow_other: args.allow_other,
        fsname: args.fsname.clone().unwrap_or_else(|| vault_path.display().to_string()),
        kernel_options,
        idle: args.idle,
        threads: args.threads,
    };
    fuse::mount(fs, &options, ready)?;
    // The lock was held to the end: who gets it next finds everything sealed.
    drop(home);
    Ok(())
}

/// Refuses a mountpoint in the vault, where it would show as a stranger's; returns the vault's path without links.
fn check_places(vault: &Path, mountpoint: &Path) -> CliResult<PathBuf> {
    let canonical = |path: &Path| {
        fs::canonicalize(path).map_err(|source| CliError::File {
            path: path.to_owned(),
            source,
        })
    };
    let vault = canonical(vault)?;
    if canonical(mountpoint)?.starts_with(&vault) {
        return Err(CliError::MountpointInVault {
            mountpoint: mountpoint.to_owned(),
        });
    }
    Ok(vault)
}

/// Ends a mount, and waits until its process has let go of the vault.
pub fn unmount(args: &UnmountArgs) -> CliResult {
    let mountpoint = canonical_mountpoint(&args.mountpoint);
    let Some(mounted) = fuse::find_mount(&mountpoint) else {
        return Err(CliError::NotMounted {
            mountpoint: args.mountpoint.clone(),
        });
    };
    fuse::unmount(&mountpoint, args.lazy).map_err(|error| match error {
        MountError::MountpointUnusable { source, .. } if source.kind() == io::ErrorKind::ResourceBusy => {
            CliError::Busy {
                mountpoint: args.mountpoint.clone(),
            }
        }
        other => CliError::Mount(other),
    })?;
    if args.lazy || mounted.read_only {
        return Ok(());
    }
    // The name in the mount table is the vault's path unless the user chose another; then there is nothing to wait for.
    match Dir::open(&mounted.fsname) {
        Ok(vault) if mounted.fsname.is_absolute() => wait_for_lock(&vault, &mounted.fsname),
        _ => Ok(()),
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
    let start = Instant::now();
    loop {
        match vault.lock(false) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && start.elapsed() < UNMOUNT_WAIT => {
                thread::sleep(UNMOUNT_POLL);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(CliError::StillWriting { vault: path.to_owned() });
            }
            // A directory that cannot be locked is not waited for.
            _ => return Ok(()),
        }
    }
}
