//! The agent's socket: made where it is to be, or passed by systemd.

use std::{
    fs, io,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use rustix::net::{AddressFamily, SocketType, sockopt};

use super::AgentStartError;

/// Where the socket of a system's agent is.
const SYSTEM_SOCKET: &str = "/run/hushfs/agent.sock";

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
    /// Where it is, to be removed in the end; none where systemd made it.
    path: Option<PathBuf>,
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
            path: None,
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
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            // Everybody must be able to reach it, and nobody else to put another in its place.
            match fs::DirBuilder::new().mode(0o755).create(parent) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
                _ => {}
            }
        }
        remove_stale(path)?;
        // Nobody but this user connects before the mode is what it shall be.
        let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(mask);
        let listener = Listener {
            socket: bound.map_err(failed)?,
            // As it is found from the root, where a process in the background goes.
            path: Some(fs::canonicalize(path).map_err(failed)?),
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
        self.path.as_deref()?.parent()
    }

    pub(super) fn socket(&self) -> &UnixListener {
        &self.socket
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Someone may have removed it, or its directory, already.
            let _ = fs::remove_file(path);
        }
    }
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
        first.path = None;
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
}
