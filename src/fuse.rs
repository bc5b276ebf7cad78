//! Speaks FUSE: decodes requests, calls `fs`, replies, logs. The only module that knows the fuser crate.

mod adapter;
mod kernel;
mod mountpoint;
mod pool;
mod request;
mod server;
mod uring;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

pub use self::mountpoint::{Mounted, find_mount, is_kernel_option};
use self::{
    adapter::Adapter,
    kernel::Wanted,
    mountpoint::Mountpoint,
    pool::Pool,
    server::Server,
    uring::{RingThreads, Rings},
};
use crate::fs::Fs;

/// How often an idle mount is looked at.
const IDLE_CHECK: Duration = Duration::from_secs(1);

/// Requests that wait on the disk at a time.
const SLOW_THREADS: usize = 4;

/// How requests come from the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Over io_uring where the kernel offers it.
    #[default]
    Auto,
    /// Over io_uring.
    Uring,
    /// Through /dev/fuse.
    Device,
}

/// How and where to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Where the view appears.
    pub mountpoint: PathBuf,
    /// Nothing may be changed.
    pub read_only: bool,
    /// Users other than the mounting one may use the mount.
    pub allow_other: bool,
    /// What stands in the first column of the mount table.
    pub fsname: String,
    /// Options for the kernel, as mount(8) has them: nosuid, noexec, noatime...
    pub kernel_options: Vec<String>,
    /// Unmount after so long without use.
    pub idle: Option<Duration>,
    /// How requests come from the kernel.
    pub transport: Transport,
    /// Threads that serve requests; chosen by the number of processors if not given.
    pub threads: Option<usize>,
}

/// Why a vault could not be mounted.
#[derive(Debug)]
pub enum MountError {
    /// The mountpoint does not exist, is no directory, or may not be used.
    MountpointUnusable {
        /// The mountpoint.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The kernel has no FUSE, or the device may not be opened.
    NoFuseDevice(io::Error),
    /// Ordinary users mount with the help of fusermount3, which is not installed.
    NoFusermount,
    /// fusermount3 refused; its words.
    Fusermount(String),
    /// An option that the kernel's mount does not have.
    UnknownOption(String),
    /// The kernel refused.
    Refused(io::Error),
    /// The connection to the kernel failed.
    Session(io::Error),
    /// Requests cannot come over io_uring.
    NoUring(io::Error),
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MountError::MountpointUnusable { path, source } => {
                write!(f, "cannot mount on {}: {source}", path.display())
            }
            MountError::NoFuseDevice(error) => {
                write!(
                    f,
                    "cannot open /dev/fuse: {error}: load the kernel's fuse module, or give the container the device"
                )
            }
            MountError::NoFusermount => {
                f.write_str("fusermount3 not found: install the package fuse3, or mount as root")
            }
            MountError::Fusermount(words) => write!(f, "fusermount3: {words}"),
            MountError::UnknownOption(option) => write!(f, "unknown mount option {option:?}"),
            MountError::Refused(error) => write!(f, "the kernel refused the mount: {error}"),
            MountError::Session(error) => write!(f, "the connection to the kernel failed: {error}"),
            MountError::NoUring(error) => write!(
                f,
                "no FUSE over io_uring: {error}: it needs Linux 6.14 and `echo Y > /sys/module/fuse/parameters/enable_uring`"
            ),
        }
    }
}

impl std::error::Error for MountError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            MountError::MountpointUnusable { source, .. } => Some(source),
            MountError::NoFuseDevice(error)
            | MountError::Refused(error)
            | MountError::Session(error)
            | MountError::NoUring(error) => Some(error),
            MountError::NoFusermount | MountError::Fusermount(_) | MountError::UnknownOption(_) => None,
        }
    }
}

/// Checks that something can be mounted on a directory, before passwords are asked for.
///
/// # Errors
///
/// [`MountError::MountpointUnusable`] or [`MountError::NoFuseDevice`].
pub fn check_mountpoint(path: &Path) -> Result<(), MountError> {
    mountpoint::check(path)?;
    mountpoint::check_device()
}

/// Ends a mount.
///
/// # Errors
///
/// What umount(2) gives, or fusermount3's words.
pub fn unmount(path: &Path, lazy: bool) -> Result<(), MountError> {
    mountpoint::unmount(path, lazy)
}

/// Mounts a filesystem and serves it until it is unmounted, also by SIGTERM, SIGINT or SIGHUP; then seals what was changed.
///
/// `ready` is called once applications can use the mount.
///
/// # Errors
///
/// Why it could not be mounted, or what ended it.
pub fn mount(fs: Fs, options: &MountOptions, ready: impl FnOnce()) -> Result<(), MountError> {
    let fs = Arc::new(fs);
    let connection = match Connection::new(&fs, options, options.transport) {
        Err(MountError::NoUring(error)) if options.transport == Transport::Auto => {
            log::warn!("no io_uring, requests come through /dev/fuse: {error}");
            Connection::new(&fs, options, Transport::Device)
        }
        result => result,
    };
    let Connection {
        mountpoint,
        server,
        session,
        ring_threads,
    } = connection?;
    kernel::tune(mountpoint.path());
    let sealer = {
        let fs = fs.clone();
        thread::Builder::new()
            .name("sealer".into())
            .spawn(move || fs.run_sealer())
    };
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(MountError::Session)?;
    let signal_handle = signals.handle();
    let path = mountpoint.path().to_owned();
    let on_signal = thread::Builder::new()
        .name("signals".into())
        .spawn(move || unmount_on_signal(signals, &path));
    if let Some(idle) = options.idle {
        let path = mountpoint.path().to_owned();
        let server = server.clone();
        let unmount_when_idle = move || {
            loop {
                thread::sleep(IDLE_CHECK);
                // Refused while a file or directory is in use: then it is not idle.
                if server.idle_for() >= idle && mountpoint::unmount(&path, false).is_ok() {
                    log::info!("unmounted after {} without use", humantime::format_duration(idle));
                    return;
                }
            }
        };
        // Without the thread the mount works, it only stays.
        if let Err(error) = thread::Builder::new().name("idle".into()).spawn(unmount_when_idle) {
            log::warn!("--idle does not work: {error}");
        }
    }
    ready();
    let served = session.run();
    if let Some(threads) = ring_threads {
        threads.join();
    }
    signal_handle.close();
    fs.stop_sealer();
    for thread in [sealer, on_signal].into_iter().flatten() {
        if thread.join().is_err() {
            log::error!("a background thread failed");
        }
    }
    if !fs.options().read_only {
        fs.seal_all();
    }
    served.map_err(MountError::Session)
}

/// A mount that the kernel sends requests to.
struct Connection {
    mountpoint: Mountpoint,
    server: Arc<Server>,
    session: fuser::Session<Adapter>,
    ring_threads: Option<RingThreads>,
}

impl Connection {
    /// Mounts, and agrees with the kernel on how requests come. Leaves no mount behind where that fails.
    fn new(fs: &Arc<Fs>, options: &MountOptions, transport: Transport) -> Result<Self, MountError> {
        let server = Arc::new(Server::new(fs.clone()));
        let slow = Arc::new(Pool::new("slow", SLOW_THREADS));
        let rings = prepare_rings(transport, &server, &slow)?;
        let wanted = Wanted {
            shared: fs.options().shared,
            acl: fs.options().acl,
            uring: rings.is_some(),
        };
        let adapter = Adapter::new(server.clone(), slow, wanted);
        let mountpoint = Mountpoint::mount(options)?;
        let connect = || {
            let config = kernel::session_config(options);
            let session = fuser::Session::from_fd(adapter, mountpoint.device()?, fuser::SessionACL::All, config)
                .map_err(MountError::Session)?;
            // The kernel knows of the rings now, and waits for them: there is no way back to /dev/fuse in this mount.
            let device = mountpoint.device()?;
            let ring_threads = rings.map(|rings| rings.start(&device)).transpose();
            Ok((session, ring_threads.map_err(MountError::NoUring)?))
        };
        match connect() {
            Ok((session, ring_threads)) => {
                server.set_notifier(session.notifier());
                Ok(Connection {
                    mountpoint,
                    server,
                    session,
                    ring_threads,
                })
            }
            Err(error) => {
                mountpoint.unmount_now();
                Err(error)
            }
        }
    }
}

fn prepare_rings(transport: Transport, server: &Arc<Server>, slow: &Arc<Pool>) -> Result<Option<Rings>, MountError> {
    match transport {
        Transport::Device => Ok(None),
        Transport::Auto if !uring::is_offered() => Ok(None),
        Transport::Uring if !uring::is_offered() => Err(MountError::NoUring(io::ErrorKind::Unsupported.into())),
        Transport::Auto | Transport::Uring => {
            let rings = Rings::prepare(server, slow).map_err(MountError::NoUring)?;
            Ok(Some(rings))
        }
    }
}

/// Unmounts when a signal asks for it; while the mount is in use, detaches it, so that the last user ends it.
fn unmount_on_signal(mut signals: Signals, path: &Path) {
    for signal in &mut signals {
        log::info!("unmounting on signal {signal}");
        if mountpoint::unmount(path, false).is_ok() {
            return;
        }
        log::warn!(
            "{} is in use: detached, and served until its last user is gone",
            path.display()
        );
        if let Err(error) = mountpoint::unmount(path, true) {
            log::error!("{error}");
        }
    }
}
