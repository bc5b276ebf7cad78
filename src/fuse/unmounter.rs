//! Unmounts for a process that has given up what unmounting takes: root's rights, or those of fusermount3, which no_new_privs keeps away.
//!
//! It is done by a process of its own, forked before there is a secret. That knows one mountpoint and one question, and ends with the one that asks.

use std::{
    fs, io,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use rustix::{
    process::{Pid, WaitOptions, chdir, waitpid},
    thread::CapabilitySet,
};

use super::{
    MountError,
    mountpoint::{self, MountId, unusable},
};
use crate::sandbox;

/// Said once, before there are questions: signals do not end the process any more.
const READY: u8 = b'r';

/// What is asked for.
const UNMOUNT: u8 = b'u';
const DETACH: u8 = b'd';

/// Unmounts one mountpoint.
#[derive(Debug)]
pub struct Unmounter {
    path: PathBuf,
    /// What is mounted there, as long as it is.
    id: Mutex<Option<MountId>>,
    /// The process that does it; none where this one can.
    helper: Option<Helper>,
}

#[derive(Debug)]
struct Helper {
    process: Pid,
    /// Held from a question to its answer. None at the end, which is how the process hears of it.
    socket: Mutex<Option<UnixStream>>,
}

impl Unmounter {
    /// One for a process that gives nothing up.
    pub fn of_own(path: PathBuf) -> Self {
        Unmounter {
            path,
            id: Mutex::default(),
            helper: None,
        }
    }

    /// Starts a process that unmounts for this one, which must have one thread. When this returns, it can be asked, and has let go of what is not its own.
    ///
    /// # Errors
    ///
    /// What socketpair(2) or fork(2) gives; `UnexpectedEof` for a process that was killed at once.
    pub fn fork(path: PathBuf) -> io::Result<Self> {
        let (mut ours, theirs) = UnixStream::pair()?;
        // SAFETY: no other thread exists, so the child may do all that this process may.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop(ours);
                serve(theirs, &path);
                // Without what this process would do at its own end.
                // SAFETY: _exit(2) may always be called.
                unsafe { libc::_exit(0) }
            }
            child => {
                drop(theirs);
                let ready = ours.read_exact(&mut [0]);
                let helper = Pid::from_raw(child).map(|process| Helper {
                    process,
                    socket: Mutex::new(Some(ours)),
                });
                // With an error, dropping this waits for the end of the process.
                let unmounter = Unmounter {
                    path,
                    id: Mutex::default(),
                    helper,
                };
                ready.map(|()| unmounter)
            }
        }
    }

    /// Returns the mountpoint.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes what is mounted: nothing else will be unmounted.
    pub fn set_id(&self, id: MountId) {
        *self.id.lock() = Some(id);
    }

    /// Notes that the mount has ended: what is mounted from now on is another, whatever its number.
    pub fn close(&self) {
        *self.id.lock() = None;
    }

    /// Unmounts; `lazy` detaches a mount that is in use.
    ///
    /// # Errors
    ///
    /// EINVAL before something was mounted, or where it is no longer; EBUSY where something is mounted over it; what umount(2) gives, or fusermount3's
    /// words.
    pub fn unmount(&self, lazy: bool) -> Result<(), MountError> {
        let refused = |source| unusable(&self.path, source);
        let Some(id) = self.id.lock().clone() else {
            return Err(refused(io::Error::from_raw_os_error(libc::EINVAL)));
        };
        match &self.helper {
            None => mountpoint::unmount_one(&id, &self.path, lazy),
            Some(helper) => helper.ask(lazy, &id).map_err(refused),
        }
    }
}

impl Helper {
    fn ask(&self, lazy: bool, id: &MountId) -> io::Result<()> {
        let socket = self.socket.lock();
        let mut socket = socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let mut answer = [0; 4];
        socket.write_all(&question(lazy, id))?;
        socket.read_exact(&mut answer)?;
        match i32::from_ne_bytes(answer) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Drop for Unmounter {
    fn drop(&mut self) {
        if let Some(helper) = &self.helper {
            drop(helper.socket.lock().take());
            let _ = waitpid(Some(helper.process), WaitOptions::empty());
        }
    }
}

/// Puts a question together: what is to be done, and of which mount, each with its length before it.
fn question(lazy: bool, id: &MountId) -> Vec<u8> {
    let mut question = vec![if lazy { DETACH } else { UNMOUNT }];
    for part in [&id.device, &id.source] {
        question.extend((part.len() as u32).to_ne_bytes());
        question.extend(part);
    }
    question
}

fn read_question(socket: &mut impl Read) -> io::Result<(bool, MountId)> {
    let mut what = [0];
    socket.read_exact(&mut what)?;
    let mut part = || {
        let mut len = [0; 4];
        socket.read_exact(&mut len)?;
        let mut part = vec![0; u32::from_ne_bytes(len) as usize];
        socket.read_exact(&mut part).map(|()| part)
    };
    let (device, source) = (part()?, part()?);
    Ok((what[0] == DETACH, MountId { device, source }))
}

/// The life of the process that unmounts.
fn serve(mut socket: UnixStream, path: &Path) {
    prepare(socket.as_raw_fd());
    if socket.write_all(&[READY]).is_err() {
        return;
    }
    // It ends when the other end is closed, however that came about.
    while let Ok((lazy, id)) = read_question(&mut socket) {
        let errno = match mountpoint::unmount_one(&id, path, lazy) {
            Ok(()) => 0,
            Err(MountError::MountpointUnusable { source, .. }) => source.raw_os_error().unwrap_or(libc::EIO),
            Err(_) => libc::EPERM,
        };
        if socket.write_all(&errno.to_ne_bytes()).is_err() {
            return;
        }
    }
}

/// Lets go of all that is not for unmounting.
fn prepare(socket: RawFd) {
    // Who ends a mount by a signal to all its processes waits for the other one.
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let _ = rustix::thread::set_name(c"hushfs-unmount");
    let _ = chdir("/");
    // The vault's lock, the log, and the pipe whose end says that a mount has failed are the other one's.
    for descriptor in open_descriptors().unwrap_or_default() {
        if descriptor > 2 && descriptor != socket {
            // SAFETY: this process has nothing but the socket, and nobody else uses these.
            unsafe { libc::close(descriptor) };
        }
    }
    if let Ok(null) = fs::File::options().read(true).write(true).open("/dev/null") {
        let null = OwnedFd::from(null);
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    if rustix::process::geteuid().is_root() {
        // Others have what fusermount3 gives them, for which they must be able to gain rights.
        let _ = sandbox::drop_capabilities_but(CapabilitySet::SYS_ADMIN);
    }
}

fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let listed = fs::read_dir("/proc/self/fd")?;
    let names = listed.map(|entry| Ok(entry?.file_name()));
    let names: Vec<_> = names.collect::<io::Result<_>>()?;
    Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
}
