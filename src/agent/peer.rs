//! Who is at the other end of a socket, as the kernel says.

use std::{fmt, io, mem, os::fd::AsRawFd, os::unix::net::UnixStream};

use crate::keystore::Principal;

/// The most groups a process can have: NGROUPS_MAX of Linux.
const GROUPS_MAX: usize = 65536;

/// A client.
#[derive(Debug)]
pub struct Peer {
    /// Who it is for policies: user and groups at the time of the connect(2). It has no role, for it opened no slot.
    pub principal: Principal,
}

impl Peer {
    /// Asks the kernel.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = credentials(stream)?;
        let mut gids = vec![credentials.gid];
        gids.extend(groups(stream)?);
        Ok(Peer {
            principal: Principal {
                uid: credentials.uid,
                gids,
                pid: credentials.pid.try_into().unwrap_or(0),
                role: String::new(),
            },
        })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {} (process {})", self.principal.uid, self.principal.pid)
    }
}

/// Returns the credentials of a peer. Its process has number 0 where it is in a namespace of processes that this one does not see.
fn credentials(stream: &UnixStream) -> io::Result<libc::ucred> {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut size = size_of(&credentials);
    // SAFETY: the kernel writes at most `size` bytes to the struct, which has as many and of which all values are valid.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &mut size,
        )
    };
    match result {
        0 if size == size_of(&credentials) => Ok(credentials),
        0 => Err(io::ErrorKind::InvalidData.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the supplementary groups of a peer.
fn groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let mut size = size_of(&groups[..]);
        // SAFETY: the kernel writes at most `size` bytes to the vector, which has as many, and what it has written to `size`.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut size,
            )
        };
        let error = io::Error::last_os_error();
        let count = size as usize / mem::size_of::<u32>();
        match result {
            0 => {
                groups.truncate(count);
                return Ok(groups);
            }
            // It says how many there are.
            _ if error.raw_os_error() == Some(libc::ERANGE) && (groups.len() + 1..=GROUPS_MAX).contains(&count) => {
                groups.resize(count, 0);
            }
            _ => return Err(error),
        }
    }
}

fn size_of<T: ?Sized>(value: &T) -> libc::socklen_t {
    mem::size_of_val(value).try_into().expect("groups take at most 256 KiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_who_is_at_the_other_end() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        let own = Principal::of_process("laptop");
        assert_eq!((peer.principal.uid, &peer.principal.gids), (own.uid, &own.gids));
        assert_eq!(peer.principal.role, "");
        assert_eq!(peer.principal.pid, std::process::id());
    }
}
