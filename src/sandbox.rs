//! What a process gives up once it only serves: privileges, places in the filesystem, system calls.
//!
//! Whoever takes a serving process over by a fault in it can do with it what it could do itself. So that this is little, a mount and an agent give up
//! what they will not need again as soon as they serve. Three things of the kernel's do it, each by itself:
//!
//! - capabilities, for root: all but those that files of other users need; and no_new_privs, so that no program gives any back;
//! - Landlock, where the kernel has it: files in a few directories only, no TCP;
//! - seccomp: a list of system calls.
//!
//! The first two belong to a thread and those it starts: a thread that must be there before others give anything up is started by [`Sandbox::spawn`], and
//! the others by one that has entered, by [`Sandbox::enter_thread`]. System calls are taken from all threads at once, by [`Sandbox::enter_process`]. None
//! can be taken back. docs/SECURITY.md says what stays possible.

mod calls;
mod capabilities;
mod places;

use std::{
    fmt, io,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

pub use self::capabilities::drop_all_but as drop_capabilities_but;
use self::{calls::Filter, places::Places};

/// Whom the process must still be able to ask, from the fewest to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outside {
    /// Nobody: what it needs is in its own files.
    Nobody,
    /// An agent, or clients of its own, over Unix sockets.
    UnixSockets,
    /// Key servers in the network. Names and credentials are looked up in the files of the system and of the user, which can be read; nowhere else can
    /// anything be written.
    Network,
    /// Code that is not hushfs's: a PKCS#11 module, or a program that gives credentials. Nobody knows which files and calls they need.
    ForeignCode,
}

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outside::Nobody => "nobody else",
            Outside::UnixSockets => "Unix sockets",
            Outside::Network => "the network",
            Outside::ForeignCode => "foreign code",
        })
    }
}

/// What the process is going to need.
#[derive(Clone, Debug)]
pub struct Needs {
    /// Directories in which it may do all that files allow.
    pub directories: Vec<PathBuf>,
    /// Directories in which it removes a file of its own at its end, and does nothing else.
    pub removes_in: Vec<PathBuf>,
    /// It serves a filesystem: files of others, devices, /dev/fuse.
    pub filesystem: bool,
    /// Whom it asks.
    pub outside: Outside,
}

/// What a process gives up, prepared.
#[derive(Debug)]
pub struct Sandbox(Option<Prepared>);

#[derive(Debug)]
struct Prepared {
    needs: Needs,
    places: Option<Places>,
    filter: Option<Filter>,
}

impl Sandbox {
    /// Prepares what this kernel can take away. What it cannot is said in the log, and no reason not to serve.
    pub fn new(needs: Needs) -> Self {
        let places = Places::prepare(&needs);
        let filter = match Filter::new(&needs) {
            Ok(filter) => Some(filter),
            Err(error) => {
                log::warn!("system calls are not restricted: {error}");
                None
            }
        };
        Sandbox(Some(Prepared { needs, places, filter }))
    }

    /// One that takes nothing away.
    pub fn off() -> Self {
        Sandbox(None)
    }

    /// Tells whether it takes anything away.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Starts a thread that enters before it does anything else, while this one does not enter yet. When this returns, it has entered.
    ///
    /// # Errors
    ///
    /// What pthread_create(3) gives.
    pub fn spawn<T, F>(self: &Arc<Self>, builder: thread::Builder, run: F) -> io::Result<JoinHandle<T>>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (entered, has_entered) = mpsc::channel::<()>();
        let sandbox = self.clone();
        let thread = builder.spawn(move || {
            sandbox.enter_thread();
            drop(entered);
            run()
        })?;
        // Nothing is ever sent: this is the end of the other side.
        let _ = has_entered.recv();
        Ok(thread)
    }

    /// Takes privileges and places from this thread, and from those it starts from now on.
    pub fn enter_thread(&self) {
        let Some(Prepared { needs, places, .. }) = &self.0 else {
            return;
        };
        if let Err(error) = capabilities::drop_all_but(capabilities::needed(needs)) {
            log::warn!("privileges that are not needed stay: {error}");
        }
        if let Some(places) = places {
            places.enter();
        }
    }

    /// Takes system calls from all threads, and says in the log what is in force. All threads must have entered: entering takes calls that are not
    /// allowed afterwards.
    pub fn enter_process(&self) {
        let Some(Prepared { needs, places, filter }) = &self.0 else {
            return log::warn!("no sandbox: this process keeps all it may do");
        };
        let capabilities = capabilities::describe();
        let calls = match filter.as_ref().map(Filter::enter) {
            Some(Ok(())) => true,
            Some(Err(error)) => {
                log::warn!("system calls are not restricted: {error}");
                false
            }
            None => false,
        };
        log::debug!(
            "sandbox: asks {}; capabilities {capabilities}; Landlock {}; seccomp {}",
            needs.outside,
            places.as_ref().map_or("off", Places::describe),
            match (calls, needs.outside) {
                (false, _) => "off",
                (true, Outside::ForeignCode) => "refuses what only an attack would use",
                (true, _) => "allows what is needed",
            },
        );
    }
}
