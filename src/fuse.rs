//! Speaks FUSE: decodes requests, calls `fs`, replies, logs. The only module that knows the fuser crate.

mod adapter;
mod asks;
mod awake;
mod kernel;
mod keys;
mod memory;
mod mountpoint;
mod pool;
mod records;
mod request;
mod server;
mod unmounter;
mod uring;

use std::{
    ffi::OsString,
    fmt,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use self::{
    adapter::Adapter,
    asks::Asks,
    awake::Wakefulness,
    kernel::Wanted,
    keys::KeyChecks,
    mountpoint::Mountpoint,
    pool::Pool,
    records::FileRecords,
    server::Server,
    uring::{RingThreads, Rings},
};
pub use self::{
    mountpoint::{MountId, Mounted, another_place, find_mount, is_kernel_option},
    server::PROCESS_ATTRIBUTE,
    unmounter::Unmounter,
};
use crate::{
    fs::Fs,
    sandbox::Sandbox,
    vault::{
        home::FileAudit,
        keeper::{Keeper, Source},
    },
};

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

/// Whether processors are kept awake while requests come fast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StayAwake {
    /// Where it helps: requests come over io_uring, and processors without work halt under a hypervisor.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
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
    pub fsname: OsString,
    /// Options for the kernel, as mount(8) has them: nosuid, noexec, noatime...
    pub kernel_options: Vec<String>,
    /// Unmount after so long without use.
    pub idle: Option<Duration>,
    /// How requests come from the kernel.
    pub transport: Transport,
    /// Whether processors are kept awake.
    pub stay_awake: StayAwake,
    /// Threads that serve requests; chosen by the number of processors if not given.
    pub threads: Option<usize>,
    /// What the process gives up before it serves.
    pub sandbox: Arc<Sandbox>,
    /// What unmounts, which who has given that up cannot.
    pub unmounter: Arc<Unmounter>,
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
    /// It has ended, and not everything that was changed could be made durable.
    NotDurable,
    /// Requests cannot come over io_uring.
    NoUring(io::Error),
}

impl MountError {
    /// Tells whether nothing was unmounted because it is not mounted.
    fn is_not_mounted(&self) -> bool {
        matches!(self, MountError::MountpointUnusable { source, .. } if source.raw_os_error() == Some(libc::EINVAL))
    }
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
            MountError::NotDurable => {
                f.write_str("not everything that was changed could be made durable: the log says what")
            }
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
            MountError::NoFusermount
            | MountError::Fusermount(_)
            | MountError::UnknownOption(_)
            | MountError::NotDurable => None,
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

/// Mounts a filesystem and serves it until it is unmounted, also by SIGTERM, SIGINT or the end of the terminal; then seals what was changed.
///
/// Meanwhile `keeper` is asked whether the vault's keys may still be used; SIGHUP has it asked at once. `ready` is called once applications can use the
/// mount.
/// Where there is an `audit`, it is told who opens which file.
///
/// # Errors
///
/// Why it could not be mounted, or what ended it.
pub fn mount<S>(
    fs: Fs,
    keeper: Keeper<S>,
    options: &MountOptions,
    audit: Option<FileAudit>,
    ready: impl FnOnce(),
) -> Result<(), MountError>
where
    S: Source + Send + 'static,
{
    let fs = Arc::new(fs);
    let records = audit
        .map(|audit| FileRecords::start(audit, &options.sandbox))
        .transpose();
    let records = records.map_err(MountError::Session)?.map(Arc::new);
    // Before: who sees the mount may ask for its end.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(MountError::Session)?;
    let signal_handle = signals.handle();
    let connection = match Connection::new(&fs, options, options.transport, records.as_ref()) {
        Err(MountError::NoUring(error)) if options.transport == Transport::Auto => {
            log::warn!("no io_uring, requests come through /dev/fuse: {error}");
            Connection::new(&fs, options, Transport::Device, records.as_ref())
        }
        result => result,
    };
    let Connection {
        mountpoint,
        server,
        session,
        ring_threads,
    } = connection?;
    let unmounter = &options.unmounter;
    unmounter.set_id(mountpoint.id().clone());
    let failed = |error| leave(&mountpoint, unmounter, error);
    kernel::tune(mountpoint.path());
    let stay_awake = match options.stay_awake {
        StayAwake::Auto => ring_threads.is_some() && awake::helps(),
        StayAwake::Always => true,
        StayAwake::Never => false,
    };
    // Files of the system were read. This thread and those to come; the ones that are there have entered.
    options.sandbox.enter_thread();
    if stay_awake {
        match Wakefulness::new() {
            Ok(awake) => server.set_awake(awake),
            // Without it the mount works, it is only slower.
            Err(error) => log::warn!("processors are not kept awake: {error}"),
        }
    }
    let sealer = {
        let fs = fs.clone();
        thread::Builder::new()
            .name("sealer".into())
            .spawn(move || fs.run_sealer())
    }
    .map_err(failed)?;
    let journal = {
        let fs = fs.clone();
        thread::Builder::new()
            .name("journal".into())
            .spawn(move || fs.run_journal())
    }
    .map_err(failed)?;
    let keys = KeyChecks::start(keeper, fs.clone(), session.notifier()).map_err(failed)?;
    if let Some(idle) = options.idle {
        let (unmounter, server) = (unmounter.clone(), server.clone());
        let unmount_when_idle = move || {
            loop {
                thread::sleep(IDLE_CHECK);
                if server.idle_for() < idle {
                    continue;
                }
                match unmounter.unmount(false) {
                    Ok(()) => log::info!("unmounted after {} without use", humantime::format_duration(idle)),
                    Err(error) if error.is_not_mounted() => {}
                    // A file or directory is in use: then it is not idle.
                    Err(_) => continue,
                }
                return;
            }
        };
        // Without the thread the mount works, it only stays.
        if let Err(error) = thread::Builder::new().name("idle".into()).spawn(unmount_when_idle) {
            log::warn!("--idle does not work: {error}");
        }
    }
    ready();
    let on_signal = {
        let (unmounter, keys) = (unmounter.clone(), keys.clone());
        // Only now: who goes to the background has let go of the terminal.
        let terminal = Terminal::of_process();
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || serve_signals(signals, &unmounter, &keys, &terminal))
    }
    .map_err(failed)?;
    // All threads but those of the session are there, and have done what only their start needs.
    options.sandbox.enter_process();
    let served = session.run().map_err(failed);
    unmounter.close();
    if let Some(threads) = ring_threads {
        threads.join();
    }
    signal_handle.close();
    keys.end();
    if let Some(records) = records {
        records.finish();
    }
    fs.stop_sealer();
    for thread in [sealer, journal, on_signal] {
        if thread.join().is_err() {
            log::error!("a background thread failed");
        }
    }
    let is_durable = fs.options().read_only || fs.seal_all();
    fs.finish_record();
    served.and_then(|()| is_durable.then_some(()).ok_or(MountError::NotDurable))
}

/// Ends a mount that cannot be served, unless it was ended; returns why.
fn leave(mountpoint: &Mountpoint, unmounter: &Unmounter, why: io::Error) -> MountError {
    if !mountpoint.is_gone()
        && let Err(error) = unmounter.unmount(true)
    {
        log::error!("{} stays mounted: {error}", unmounter.path().display());
    }
    MountError::Session(why)
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
    fn new(
        fs: &Arc<Fs>,
        options: &MountOptions,
        transport: Transport,
        records: Option<&Arc<FileRecords>>,
    ) -> Result<Self, MountError> {
        let server = Arc::new(Server::new(fs.clone(), records.cloned()));
        let slow = Arc::new(Pool::new("slow", SLOW_THREADS, &options.sandbox));
        let asks = Asks::default();
        let rings = prepare_rings(transport, &server, &slow, &asks)?;
        let wanted = Wanted {
            shared: fs.options().shared,
            acl: fs.options().acl,
            uring: rings.is_some(),
        };
        let adapter = Adapter::new(server.clone(), slow, asks, wanted);
        let mountpoint = Mountpoint::mount(options)?;
        let connect = || {
            let config = kernel::session_config(options, rings.is_some());
            let session = fuser::Session::from_fd(adapter, mountpoint.device()?, fuser::SessionACL::All, config)
                .map_err(MountError::Session)?;
            // Before the first request, which may need it.
            server.set_notifier(session.notifier());
            // The kernel knows of the rings now, and waits for them: there is no way back to /dev/fuse in this mount.
            let device = mountpoint.device()?;
            let ring_threads = match rings.map(|rings| rings.start(&device, &options.sandbox)).transpose() {
                // Someone was fast. Whoever mounted again now would undo it; the session ends by itself.
                Err(_) if mountpoint.is_gone() => None,
                started => started.map_err(MountError::NoUring)?,
            };
            Ok((session, ring_threads))
        };
        match connect() {
            Ok((session, ring_threads)) => Ok(Connection {
                mountpoint,
                server,
                session,
                ring_threads,
            }),
            Err(error) => {
                if !mountpoint.is_gone() {
                    mountpoint.unmount_now();
                }
                Err(error)
            }
        }
    }
}

fn prepare_rings(
    transport: Transport,
    server: &Arc<Server>,
    slow: &Arc<Pool>,
    asks: &Asks,
) -> Result<Option<Rings>, MountError> {
    match transport {
        Transport::Device => Ok(None),
        Transport::Auto if !uring::is_offered() => Ok(None),
        // What waits for who has a key would keep an entry of a ring, of which others have need.
        Transport::Auto if server.fs().defers() => Ok(None),
        Transport::Uring if !uring::is_offered() => Err(MountError::NoUring(io::ErrorKind::Unsupported.into())),
        Transport::Auto | Transport::Uring => {
            let rings = Rings::prepare(server, slow, asks).map_err(MountError::NoUring)?;
            Ok(Some(rings))
        }
    }
}

/// The terminal that the process was called from, if it still belongs to one.
struct Terminal {
    was_there: bool,
}

impl Terminal {
    fn of_process() -> Self {
        Terminal {
            was_there: Self::is_there(),
        }
    }

    fn is_there() -> bool {
        io::stdin().is_terminal() || io::stderr().is_terminal()
    }

    /// Tells whether it was closed: what was called from it ends with it.
    fn is_gone(&self) -> bool {
        self.was_there && !Self::is_there()
    }
}

/// Has keys asked for, or unmounts, as a signal says; while the mount is in use, detaches it, so that the last user ends it.
fn serve_signals(mut signals: Signals, unmounter: &Unmounter, keys: &KeyChecks, terminal: &Terminal) {
    for signal in &mut signals {
        if signal == SIGHUP && !terminal.is_gone() {
            log::info!("asking for the vault's keys on signal {signal}");
            keys.check_now();
            continue;
        }
        log::info!("unmounting on signal {signal}");
        let path = unmounter.path().display();
        match unmounter.unmount(false) {
            Ok(()) => return,
            Err(error) if error.is_not_mounted() => {
                log::warn!("not mounted on {path} any more: served until its last user is gone");
            }
            Err(_) => match unmounter.unmount(true) {
                Ok(()) => log::warn!("{path} is in use: detached, and served until its last user is gone"),
                Err(error) => log::error!("{path} stays mounted: {error}"),
            },
        }
    }
}
