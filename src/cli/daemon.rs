//! Goes to the background: forks at once, before any thread exists, and lets the first process go when the second is ready.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::process::{WaitOptions, chdir, setsid, waitpid};

use super::{
    CliResult,
    error::{CliError, FAILED},
};

/// The signals of the terminal's keys that end a process.
const KEYS: [libc::c_int; 2] = [libc::SIGINT, libc::SIGQUIT];

/// The way on, after [`fork`].
pub enum Side {
    /// The process that was called: the other is ready, or has ended with this error.
    Called(CliResult),
    /// The process that goes to the background.
    Background(Background),
}

/// The process that goes to the background, while it still has the terminal: prompts and messages work.
pub struct Background {
    ready: File,
    log: Option<File>,
}

/// Forks. Must be called while the process has one thread.
pub fn fork(log: Option<File>) -> CliResult<Side> {
    let failed = |source| CliError::System {
        what: "going to the background",
        source,
    };
    let (mut reader, writer) = io::pipe().map_err(failed)?;
    // SAFETY: no other thread exists, so the child may do all that this process may.
    match unsafe { libc::fork() } {
        -1 => Err(failed(io::Error::last_os_error())),
        0 => {
            drop(reader);
            Ok(Side::Background(Background {
                ready: File::from(OwnedFd::from(writer)),
                log,
            }))
        }
        child => {
            drop(writer);
            leave_keys_to_child();
            let mut byte = [0];
            let is_ready = reader.read_exact(&mut byte).is_ok();
            Ok(Side::Called(if is_ready {
                Ok(())
            } else {
                Err(CliError::Child(exit_code(child)))
            }))
        }
    }
}

/// Has the terminal's keys end the child only, which has a prompt to end: who has called may go on at the terminal when this process has ended.
fn leave_keys_to_child() {
    for signal in KEYS {
        // SAFETY: nothing runs when the signal comes.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Ends this process as its child was ended, where that was by a key of the terminal.
fn end_as(signal: libc::c_int) {
    if KEYS.contains(&signal) {
        // SAFETY: the default is to end.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
}

/// Returns the exit code of a child that has closed its end without a word.
fn exit_code(child: libc::pid_t) -> u8 {
    let pid = rustix::process::Pid::from_raw(child);
    let status = waitpid(pid, WaitOptions::empty()).ok().flatten();
    let code = status.and_then(|(_, status)| status.exit_status());
    if let Some(signal) = status.and_then(|(_, status)| status.terminating_signal()) {
        end_as(signal);
    }
    // Ended by a signal, or with success before it was ready: neither is what was asked for.
    code.and_then(|code| u8::try_from(code).ok())
        .filter(|&code| code != 0)
        .unwrap_or(FAILED)
}

impl Background {
    /// Leaves the terminal and lets the first process go.
    pub fn ready(mut self) {
        if let Err(error) = self.detach() {
            log::warn!("could not leave the terminal: {error}");
        }
        // Nobody listens when the first process was killed; the mount is there all the same.
        let _ = self.ready.write_all(&[1]);
    }

    fn detach(&mut self) -> io::Result<()> {
        // Fails for who leads a session already, which is as good.
        let _ = setsid();
        // The directory it was called in can be unmounted or removed then.
        chdir("/")?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(self.log.as_ref().unwrap_or(&null))?;
        debug_assert!(null.as_raw_fd() > 2);
        if self.log.is_none() {
            super::process::log_to_syslog();
        }
        Ok(())
    }
}
