//! The agent's socket: made where it is to be, or passed by systemd.

use std::{
    fs, io,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::net::{AddressFamily, SocketType, sockopt};

use super::AgentStartError;
use crate::backing::Dir;

/// Where the socket of a system's agent is.
const SYSTEM_SOCKET: &str = "/run/hushfs/agent.sock";

/// How long another agent that is about to start is waited for. Anyone who may read the directory can keep it locked for ever.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Who may connect to the socket. What they may do there is for policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    All,
    /// The agent's user and this group.
    Group(u32),
}

/// A socket that clients connect to.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    /// Where it is and which it is, to be removed in the end; none where systemd made it.
    made: Option<(PathBuf, u64)>,
}

/// Returns where the socket is that nobody has named: root's is the system's.
pub fn default_socket() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(SYSTEM_SOCKET.into());
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    Some(runtime.filter(|path| path.is_absolute())?.join("hushfs/agent.sock"))
}

impl Listener {
    /// Takes the socket that systemd passes to this process, if it does.
    ///
    /// # Errors
    ///
    /// [`AgentStartError::Passed`] when it is not one listening Unix socket.
    pub fn passed() -> Result<Option<Self>, AgentStartError> {
        let mut passed = sd_notify::listen_fds().map_err(|_| AgentStartError::Passed)?;
        let Some(fd) = passed.next() else { return Ok(None) };
        if passed.next().is_some() {
            return Err(AgentStartError::Passed);
        }
        // SAFETY: systemd passes this descriptor to this process, and nothing else here has taken it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let listens = sockopt::socket_acceptconn(&fd) == Ok(true)
            && sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(&fd) == Ok(SocketType::STREAM);
        if !listens {
            return Err(AgentStartError::Passed);
        }
        Ok(Some(Listener {
            socket: fd.into(),
            made: None,
        }))
    }

    /// Makes the socket. One that a dead agent has left is replaced.
    ///
    /// # Errors
    ///
    /// The [`AgentStartError`] that says what is in the way.
    pub fn bind(path: &Path, access: Access) -> Result<Self, AgentStartError> {
        let failed = |source| AgentStartError::Socket {
            socket: path.to_owned(),
            source,
        };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            // Everybody must be able to reach it, and nobody else to put another in its place.
            match fs::DirBuilder::new().mode(0o755).create(parent) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
                _ => {}
            }
        }
        // Of two agents that find a dead one's socket the later would remove that of the other.
        let _lock = lock(parent.unwrap_or(Path::new(".")));
        remove_stale(path)?;
        // Nobody but this user connects before the mode is what it shall be.
        let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(mask);
        let socket = bound.map_err(failed)?;
        // As it is found from the root, where a process in the background goes.
        let made = fs::canonicalize(path).map_err(failed)?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        let listener = Listener {
            socket,
            made: Some((made, inode)),
        };
        let mode = match access {
            Access::All => 0o666,
            Access::Group(group) => {
                std::os::unix::fs::chown(path, None, Some(group)).map_err(failed)?;
                0o660
            }
        };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
        Ok(listener)
    }

    /// Returns the directory where the socket is removed in the end; none where systemd does that.
    pub fn directory(&self) -> Option<&Path> {
        self.made.as_ref()?.0.parent()
    }

    pub(super) fn socket(&self) -> &UnixListener {
        &self.socket
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some((path, inode)) = &self.made else { return };
        // Someone may have removed it, or its directory, already, and started another agent.
        if fs::symlink_metadata(path).is_ok_and(|found| found.ino() == *inode) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Keeps other agents from starting in a directory; nothing where it cannot be locked.
fn lock(directory: &Path) -> Option<Dir> {
    let directory = Dir::open(directory).ok()?;
    directory.lock_within(LOCK_WAIT).ok()?;
    Some(directory)
}

/// Removes a socket at which nobody listens.
fn remove_stale(path: &Path) -> Result<(), AgentStartError> {
    let failed = |source| AgentStartError::Socket {
        socket: path.to_owned(),
        source,
    };
    let socket = path.to_owned();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => Err(AgentStartError::NotASocket { socket }),
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
            Err(error) => Err(failed(error)),
            Ok(_) => Err(AgentStartError::Running { socket }),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn the_socket_of_a_dead_agent_is_replaced_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("run/agent.sock");
        let mut first = Listener::bind(&path, Access::All).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o666);
        assert!(matches!(
            Listener::bind(&path, Access::All),
            Err(AgentStartError::Running { .. })
        ));
        // As if it had been killed.
        first.made = None;
        drop(first);
        let group = rustix::process::getegid().as_raw();
        let second = Listener::bind(&path, Access::Group(group)).unwrap();
        assert_eq!(mode(&path), 0o660);
        drop(second);
        assert!(!path.exists());
        fs::write(&path, "").unwrap();
        assert!(matches!(
            Listener::bind(&path, Access::All),
            Err(AgentStartError::NotASocket { .. })
        ));
    }

    #[test]
    fn of_two_agents_that_find_a_dead_ones_socket_one_starts_and_keeps_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("agent.sock");
        for _ in 0..100 {
            drop(UnixListener::bind(&path).unwrap());
            let together = std::sync::Barrier::new(2);
            let start = || {
                together.wait();
                Listener::bind(&path, Access::All)
            };
            let started =
                thread::scope(|scope| [scope.spawn(start), scope.spawn(start)].map(|one| one.join().unwrap()));
            let is_refused = |started: &&Result<Listener, _>| matches!(started, Err(AgentStartError::Running { .. }));
            assert_eq!(started.iter().filter(is_refused).count(), 1, "{started:?}");
            assert!(UnixStream::connect(&path).is_ok());
            drop(started);
            assert!(!path.exists());
        }
    }

    #[test]
    fn an_agent_that_ends_leaves_the_socket_of_another() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("agent.sock");
        let first = Listener::bind(&path, Access::All).unwrap();
        fs::rename(&path, temp.path().join("moved")).unwrap();
        let second = Listener::bind(&path, Access::All).unwrap();
        drop(first);
        assert!(UnixStream::connect(&path).is_ok());
        drop(second);
        assert!(!path.exists());
    }
}
