//! Asks at the terminal for what must not be shown, and leaves the terminal as it was however that ends: a signal has its effect when that is done.

use std::{
    fs::File,
    io::{self, Write},
    mem,
    os::fd::OwnedFd,
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use libc::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, c_int};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    termios::{InputModes, LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr},
};
use zeroize::Zeroizing;

/// A terminal takes so many bytes of a line, and drops what is more without a word.
pub const LINE_LEN_MAX: usize = 4095;

/// What ends or stops a process that waits at a terminal.
const SIGNALS: [c_int; 5] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP];

/// Where signals are told of: its end to read, and its end to write. It stays open, for a handler may run late.
static TOLD: OnceLock<(OwnedFd, OwnedFd)> = OnceLock::new();

/// Whether somebody is asked.
static IS_UP: AtomicBool = AtomicBool::new(false);

/// Tells whether somebody is asked for something now.
#[cfg(any(feature = "aws", feature = "pkcs11"))]
pub fn is_up() -> bool {
    IS_UP.load(Ordering::Relaxed)
}

/// Asks for a line that is not shown; it comes without its end. None at the end of input.
///
/// # Errors
///
/// Those of the terminal; [`io::ErrorKind::Interrupted`] after a signal that has not ended the process.
pub fn hidden_line(prompt: &str) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let terminal = File::options().read(true).write(true).open("/dev/tty")?;
    loop {
        let caught = Caught::signals()?;
        IS_UP.store(true, Ordering::Relaxed);
        let asked = ask(&terminal, prompt);
        IS_UP.store(false, Ordering::Relaxed);
        match caught.end() {
            None => return asked.map(|answer| answer.filter(|line| !line.is_empty()).map(without_end)),
            Some(signal) => raise(signal)?,
        }
    }
}

fn ask(mut terminal: &File, prompt: &str) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let hidden = Hidden::new(terminal)?;
    let asked = terminal.write_all(prompt.as_bytes()).and_then(|()| read_line(terminal));
    drop(hidden);
    // The one that was typed was not shown.
    terminal.write_all(b"\n")?;
    asked
}

/// Reads a line with its end, of which the terminal gives no byte before the user is done with it. None when a signal comes first.
fn read_line(terminal: &File) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut line = Zeroizing::new(vec![0; LINE_LEN_MAX + 1]);
    let mut len = 0;
    while len < line.len() && !line[..len].ends_with(b"\n") {
        if !wait_for(terminal)? {
            return Ok(None);
        }
        match rustix::io::read(terminal, &mut line[len..]) {
            Ok(0) => break,
            Ok(got) => len += got,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    line.truncate(len);
    Ok(Some(line))
}

fn without_end(mut line: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    line
}

/// Waits until there is something to read; tells whether no signal came first.
fn wait_for(terminal: &File) -> io::Result<bool> {
    let (told, _) = told()?;
    loop {
        let mut both = [PollFd::new(terminal, PollFlags::IN), PollFd::new(told, PollFlags::IN)];
        match poll(&mut both, None) {
            Ok(_) => return Ok(both[1].revents().is_empty()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A terminal that shows nothing of what is typed, until this is dropped.
struct Hidden<'t> {
    terminal: &'t File,
    before: Termios,
}

impl<'t> Hidden<'t> {
    fn new(terminal: &'t File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut hidden = before.clone();
        hidden.local_modes &= !(LocalModes::ECHO | LocalModes::ECHONL);
        // Somebody may have left it otherwise: the terminal edits the line, ends it with Enter, and makes signals of its keys.
        hidden.local_modes |= LocalModes::ICANON | LocalModes::ISIG;
        hidden.input_modes |= InputModes::ICRNL;
        tcsetattr(terminal, OptionalActions::Now, &hidden)?;
        Ok(Hidden { terminal, before })
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        // Fails for a terminal that is gone.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

/// Signals that are told of and have no effect, until this is dropped.
struct Caught {
    before: Vec<(c_int, libc::sigaction)>,
}

impl Caught {
    /// Catches what is not ignored, as SIGHUP is under nohup(1).
    fn signals() -> io::Result<Self> {
        // Before a handler needs it.
        told()?;
        // SAFETY: all bytes of it may be zero: no flags, and an empty mask.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = tell as extern "C" fn(c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        let mut caught = Caught { before: Vec::new() };
        for signal in SIGNALS {
            let before = exchange_action(signal, &action)?;
            caught.before.push((signal, before));
            if before.sa_sigaction == libc::SIG_IGN {
                exchange_action(signal, &before)?;
            }
        }
        Ok(caught)
    }

    /// Lets signals have their effect again; returns the one that came meanwhile.
    fn end(self) -> Option<c_int> {
        drop(self);
        let (told, _) = TOLD.get()?;
        // One may come several times.
        let mut signals = [0; 64];
        match rustix::io::read(told, &mut signals) {
            Ok(1..) => Some(c_int::from(signals[0])),
            _ => None,
        }
    }
}

impl Drop for Caught {
    fn drop(&mut self) {
        for (signal, before) in &self.before {
            // As it has not failed before.
            let _ = exchange_action(*signal, before);
        }
    }
}

/// Tells of a signal. It runs in between anything: only system calls.
extern "C" fn tell(signal: c_int) {
    if let (Some((_, teller)), Ok(signal)) = (TOLD.get(), u8::try_from(signal)) {
        // A pipe that is full has told of many.
        let _ = rustix::io::write(teller, &[signal]);
    }
}

fn told() -> io::Result<&'static (OwnedFd, OwnedFd)> {
    if let Some(told) = TOLD.get() {
        return Ok(told);
    }
    let made = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    Ok(TOLD.get_or_init(|| made))
}

fn exchange_action(signal: c_int, action: &libc::sigaction) -> io::Result<libc::sigaction> {
    // SAFETY: all bytes of it may be zero.
    let mut before = unsafe { mem::zeroed() };
    // SAFETY: both are there, and what handles the signal may do so at any time.
    match unsafe { libc::sigaction(signal, ptr::from_ref(action), &mut before) } {
        0 => Ok(before),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has a signal its effect. Comes back from a stop when somebody lets the process go on.
fn raise(signal: c_int) -> io::Result<()> {
    // SAFETY: it touches no memory.
    unsafe { libc::raise(signal) };
    match signal {
        SIGTSTP => Ok(()),
        // Its handler, if it has one, ends the process in its own way.
        _ => Err(io::ErrorKind::Interrupted.into()),
    }
}
