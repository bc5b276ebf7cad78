//! What the process asks of the system: no core dumps, enough descriptors, ignored signals, the log.

use std::{io::Write, os::unix::net::UnixDatagram, sync::OnceLock};

use log::LevelFilter;
use rustix::{
    fs::{Mode, OFlags},
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
};

use super::{args::Command, text};
use crate::{keystore::Reach, sandbox::Outside};

/// Descriptors asked for as root; the kernel's own limit is often the same.
const DESCRIPTORS_AS_ROOT: u64 = 1 << 20;

/// Bytes of locked memory asked for as root: two million keys.
const LOCKED_AS_ROOT: u64 = 64 << 20;

/// Of so many descriptors one may be held by a cache: files and directories each take as many again while they are open.
const DESCRIPTORS_PER_CACHED: u64 = 8;

/// Keeps secrets out of core dumps and away from debuggers, before there are any; ignores signals that would end a mount.
pub fn harden() {
    // A core dump holds what memory holds: keys. Neither can fail for who lowers a limit, and there is nobody to tell yet.
    let _ = set_limit(Resource::Core, Some(0));
    // This makes the files in /proc/self root's, but the process itself may use them still: descriptors are reached through there.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    // libtss2 would say on standard error what hushfs says in its own words.
    #[cfg(feature = "tpm2")]
    if std::env::var_os("TSS2_LOG").is_none() {
        // SAFETY: this process has one thread yet.
        unsafe { std::env::set_var("TSS2_LOG", "all+NONE") };
    }
    // SIGPIPE is ignored by the Rust runtime. Writing beyond RLIMIT_FSIZE shall be an error of that write.
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Raises the limit on open files as far as it goes, and returns how many descriptors caches may hold. Best called before there are threads.
pub fn raise_descriptor_limit() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    if rustix::process::geteuid().is_root() {
        let system = std::fs::read_to_string("/proc/sys/fs/nr_open");
        let system = system.ok().and_then(|text| text.trim().parse().ok());
        let wanted = Some(DESCRIPTORS_AS_ROOT.min(system.unwrap_or(DESCRIPTORS_AS_ROOT)));
        if limit.maximum.is_some() && limit.maximum < wanted {
            // A container may forbid it; then the limit stays.
            let _ = set_limit(Resource::Nofile, wanted);
            limit = getrlimit(Resource::Nofile);
        }
    }
    let _ = set_limit(Resource::Nofile, limit.maximum);
    let now = getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS_AS_ROOT);
    let cached = (now / DESCRIPTORS_PER_CACHED).clamp(16, 8192);
    // Caches of files and of directories, and as much again for files that are open.
    make_room_for_descriptors((4 * cached).min(now - 1));
    cached as usize
}

/// Raises the limit on the size of files as far as it goes; returns it, in bytes, where there is still one.
pub fn raise_size_limit() -> Option<u64> {
    if set_limit(Resource::Fsize, None).is_err() {
        let _ = set_limit(Resource::Fsize, getrlimit(Resource::Fsize).maximum);
    }
    getrlimit(Resource::Fsize).current
}

/// Raises the limit on locked memory, for keys, as far as it goes: who gives up privileges is held to it.
pub fn raise_locked_limit() {
    let limit = getrlimit(Resource::Memlock);
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= LOCKED_AS_ROOT);
    let maximum = match rustix::process::geteuid().is_root() && !enough(limit.maximum) {
        true => Some(LOCKED_AS_ROOT),
        false => limit.maximum,
    };
    // A container may forbid it; then some keys lie in memory that is not locked.
    let _ = set_limit(Resource::Memlock, maximum);
}

/// Sets both limits of a resource; none is no limit.
fn set_limit(resource: Resource, limit: Option<u64>) -> rustix::io::Result<()> {
    let (current, maximum) = (limit, limit);
    setrlimit(resource, Rlimit { current, maximum })
}

/// Has the kernel make its table of this process's descriptors as large as it will be.
///
/// It doubles when it is full, and once there are threads each time waits until every processor has been seen idle or switching (`expand_fdtable` in
/// fs/file.c): 10 ms and more, in which a request waits, six times on the way to 4096 open files.
fn make_room_for_descriptors(count: u64) {
    let number = i32::try_from(count).unwrap_or(i32::MAX);
    let path = OFlags::PATH | OFlags::CLOEXEC;
    let room = rustix::fs::open("/", path, Mode::empty()).and_then(|fd| rustix::io::fcntl_dupfd_cloexec(fd, number));
    // Without the room it only takes longer.
    drop(room);
}

/// Where syslog listens, journald's included.
const SYSLOG: &str = "/dev/log";

/// Facility daemon, severity notice (RFC 3164 section 4.1.1).
const SYSLOG_PRIORITY: u32 = 3 * 8 + 5;

/// Set once this process is in the background without a log file.
static TO_SYSLOG: OnceLock<UnixDatagram> = OnceLock::new();

/// Has the log go to syslog from now on, if there is one: nobody sees the standard error of a background process.
pub fn log_to_syslog() {
    let socket = UnixDatagram::unbound().and_then(|socket| socket.connect(SYSLOG).map(|()| socket));
    if let Ok(socket) = socket {
        TO_SYSLOG.get_or_init(|| socket);
    }
}

/// Takes the lines of the log: to standard error, or to syslog.
struct LogTarget;

impl Write for LogTarget {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        match TO_SYSLOG.get() {
            None => std::io::stderr().write_all(line)?,
            Some(socket) => {
                let text = String::from_utf8_lossy(line);
                let message = format!("<{SYSLOG_PRIORITY}>hushfs[{}]: {}", std::process::id(), text.trim_end());
                // A line that syslog does not take is lost, as with syslog(3).
                let _ = socket.send(message.as_bytes());
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Starts the log: on standard error, which a background process turns to its log file, or else to syslog.
pub fn start_log(verbose: u8, command: &Command) {
    let (has_file, in_service) = match command {
        Command::Mount(args) => (args.log_file.is_some(), true),
        Command::Agent(args) => (false, !args.status),
        _ => (false, false),
    };
    let level = match verbose {
        0 if has_file => LevelFilter::Info,
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    env_logger::Builder::new()
        // At the lowest levels, other crates write down what crosses the network, keys included.
        .filter_level(level.min(LevelFilter::Warn))
        .filter_module("hushfs", level)
        .filter_module("fuser", level)
        // It calls every refusal an error, and hushfs says what they mean.
        .filter_module("tss_esapi", LevelFilter::Off)
        .target(env_logger::Target::Pipe(Box::new(LogTarget)))
        .format(move |out, record| {
            let line = text::printable(record.args().to_string().as_bytes());
            if in_service {
                let now = humantime::format_rfc3339_millis(std::time::SystemTime::now());
                writeln!(out, "{now} {:5} {line}", record.level())
            } else {
                let level = record.level().as_str().to_lowercase();
                writeln!(out, "hushfs: {level}: {line}")
            }
        })
        .init();
}

/// Returns whom a process that asks for keys must be able to reach.
pub fn outside(reach: Reach) -> Outside {
    match reach {
        Reach::Here => Outside::Nobody,
        Reach::Agent => Outside::UnixSockets,
        Reach::Network => Outside::Network,
        Reach::ForeignCode => Outside::ForeignCode,
    }
}

/// Returns the time in seconds since 1970.
pub fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs())
}
