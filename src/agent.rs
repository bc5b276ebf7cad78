//! The agent: holds a keystore for other users, and answers what they ask over a Unix socket as far as the policies of the keys allow.
//!
//! Who asks is what the kernel says of the other end (SO_PEERCRED, SO_PEERGROUPS), and nothing that a client sends. A client gets epoch
//! keys, never a master key; it has no way to slots. Each connection carries one request (`keystore::agent` has the words of both sides)
//! and has a thread and a deadline of its own; there is a bound on the connections of one user and of all, so that who is idle or hostile
//! holds nobody else up. Nothing is asked of a key server while anything is locked.

mod peer;
mod rate;
mod service;
mod socket;
mod under_way;

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
    num::NonZeroU32,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

pub use self::socket::{Access, Listener, default_socket};
use self::{peer::Peer, rate::Rates, service::Service};
use crate::{
    keystore::agent::{
        Refusal, Reply, Request,
        frame::{self, FrameError, REPLY_SIZE_MAX, REQUEST_SIZE_MAX},
    },
    vault::home::OpenKeystore,
};

/// How long a client may take to send its request, and to take the answer.
const CLIENT_WAIT: Duration = Duration::from_secs(5);

/// How long the end waits for answers that are under way.
const END_WAIT: Duration = Duration::from_secs(10);

/// The most connections at a time; each has a thread, and at most 64 KiB of a request.
const CONNECTIONS_MAX: usize = 512;

/// The most of them that one user has.
const CONNECTIONS_OF_USER_MAX: usize = 64;

/// The most clients let in before it is looked whether the agent is to end: somebody who connects again and again is not to keep it from that.
const ACCEPTS_MAX: usize = 64;

/// How often keys are looked at that rotate by themselves.
const ROTATION_POLL: Duration = Duration::from_secs(3600);

/// Why an agent does not start, or has ended.
#[derive(Debug)]
pub enum AgentStartError {
    /// Another agent listens at the socket.
    Running { socket: PathBuf },
    /// What is at the socket's place is none.
    NotASocket { socket: PathBuf },
    /// The socket cannot be made.
    Socket { socket: PathBuf, source: io::Error },
    /// systemd has passed something else than one listening socket.
    Passed,
    /// The system did not let it wait for clients.
    Wait(io::Error),
}

impl fmt::Display for AgentStartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AgentStartError::Running { socket } => write!(
                f,
                "{}: an agent listens there already: end it with `hushfs lock`, or name another socket",
                socket.display()
            ),
            AgentStartError::NotASocket { socket } => {
                write!(f, "{}: exists and is no socket: name another", socket.display())
            }
            AgentStartError::Socket { socket, source } => write!(f, "{}: {source}", socket.display()),
            AgentStartError::Passed => f.write_str("LISTEN_FDS: not one listening Unix socket"),
            AgentStartError::Wait(source) => write!(f, "waiting for clients: {source}"),
        }
    }
}

impl std::error::Error for AgentStartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AgentStartError::Socket { source, .. } | AgentStartError::Wait(source) => Some(source),
            _ => None,
        }
    }
}

/// Answers until a signal or an owner ends it, each user at most `rate` requests a second. `ready` is called once clients are answered.
///
/// # Errors
///
/// The [`AgentStartError`] that says why not.
pub fn serve(
    listener: &Listener,
    keystore: OpenKeystore,
    rate: Option<NonZeroU32>,
    ready: impl FnOnce(),
) -> Result<(), AgentStartError> {
    let (wake, waker) = UnixStream::pair().map_err(AgentStartError::Wait)?;
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        let waker = waker.try_clone().map_err(AgentStartError::Wait)?;
        signal_hook::low_level::pipe::register(signal, waker).map_err(AgentStartError::Wait)?;
    }
    // A client that gave up between poll and accept must not keep a signal from being seen.
    listener.socket().set_nonblocking(true).map_err(AgentStartError::Wait)?;
    let server = Arc::new(Server {
        service: Service::new(keystore),
        rates: rate.map(Rates::new),
        connections: Mutex::default(),
        waker,
    });
    server.service.rotate_due(now());
    ready();
    let mut rotated = Instant::now();
    while wait_for(listener.socket(), &wake)? {
        server.accept_waiting(listener.socket());
        if rotated.elapsed() >= ROTATION_POLL {
            rotated = Instant::now();
            server.service.rotate_due(now());
        }
    }
    let give_up = Instant::now() + END_WAIT;
    while !server.connections.lock().is_empty() && Instant::now() < give_up {
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Waits for a client or an hour; tells whether it goes on.
fn wait_for(listener: &UnixListener, wake: &UnixStream) -> Result<bool, AgentStartError> {
    let mut both = [PollFd::new(listener, PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: ROTATION_POLL.as_secs().try_into().expect("an hour has few seconds"),
        tv_nsec: 0,
    };
    match poll(&mut both, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(both[1].revents().is_empty()),
        Err(errno) => Err(AgentStartError::Wait(errno.into())),
    }
}

/// What all threads share.
struct Server {
    service: Service,
    rates: Option<Rates>,
    /// How many connections each user has. Nothing else is locked under it.
    connections: Mutex<BTreeMap<u32, usize>>,
    /// Ends the agent when something is written to it.
    waker: UnixStream,
}

/// A place among the connections, given back on drop.
struct Place {
    server: Arc<Server>,
    uid: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = self.server.connections.lock();
        if let Some(count) = connections.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.uid);
            }
        }
    }
}

impl Server {
    /// Lets in who waits, or some of many: the others wait for the next time.
    fn accept_waiting(self: &Arc<Self>, listener: &UnixListener) {
        for _ in 0..ACCEPTS_MAX {
            match listener.accept() {
                Ok((stream, _)) => self.clone().take(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::warn!("a client could not be let in: {error}");
                    // As when there are no more descriptors: not at once again.
                    thread::sleep(Duration::from_millis(50));
                    return;
                }
            }
        }
    }

    /// Gives a connection a thread, or refuses it.
    fn take(self: Arc<Self>, stream: UnixStream) {
        let peer = match stream.set_nonblocking(false).and_then(|()| Peer::of(&stream)) {
            Ok(peer) => peer,
            Err(error) => return log::warn!("a client that the kernel does not know was refused: {error}"),
        };
        let uid = peer.principal.uid;
        if self
            .rates
            .as_ref()
            .is_some_and(|rates| !rates.allow(uid, Instant::now()))
        {
            log::debug!("{peer}: makes more requests than are allowed in a second");
            return refuse(&stream, Refusal::Throttled);
        }
        let Some(place) = self.place(uid) else {
            log::debug!("{peer}: has too many requests under way");
            return refuse(&stream, Refusal::Busy);
        };
        let started = thread::Builder::new().name("client".into()).spawn(move || {
            place.server.answer(&stream, &peer);
        });
        if let Err(error) = started {
            log::warn!("no thread for a client: {error}");
        }
    }

    fn place(self: &Arc<Self>, uid: u32) -> Option<Place> {
        let mut connections = self.connections.lock();
        if connections.values().sum::<usize>() >= CONNECTIONS_MAX {
            return None;
        }
        let of_user = connections.entry(uid).or_default();
        if *of_user >= CONNECTIONS_OF_USER_MAX {
            return None;
        }
        *of_user += 1;
        Some(Place {
            server: self.clone(),
            uid,
        })
    }

    /// Reads the request of a connection and answers it.
    fn answer(&self, stream: &UnixStream, peer: &Peer) {
        let deadline = Instant::now() + CLIENT_WAIT;
        let request =
            frame::read(stream, REQUEST_SIZE_MAX, deadline).and_then(|frame| frame::decode::<Request>(&frame));
        let request = match request {
            Ok(request) => request,
            Err(FrameError::Malformed | FrameError::TooLarge | FrameError::Version(_)) => {
                log::warn!("{peer}: sent no request of this version");
                return refuse(stream, Refusal::Malformed);
            }
            Err(error) => return log::debug!("{peer}: {error:?}"),
        };
        let ends = matches!(request, Request::Lock);
        let reply = self.service.reply(peer, request, now());
        let ends = ends && reply.is_ok();
        let sent = frame::encode(&reply, REPLY_SIZE_MAX)
            .and_then(|frame| frame::write(stream, &frame, Instant::now() + CLIENT_WAIT));
        if let Err(error) = sent {
            log::debug!("{peer}: did not take the answer: {error:?}");
        }
        if ends {
            // Cannot fail while the other end is polled, and there is one waker for all.
            let _ = (&self.waker).write(&[1]);
        }
    }
}

/// Says no without a thread: in one short write that fits into any socket's buffer.
fn refuse(stream: &UnixStream, refusal: Refusal) {
    let reply: Reply = Err(refusal);
    let Ok(frame) = frame::encode(&reply, REPLY_SIZE_MAX) else {
        return;
    };
    let _ = frame::write(stream, &frame, Instant::now() + Duration::from_millis(100));
}

/// Returns the time in seconds since 1970.
fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::{
        crypto::locked::LockedKey,
        format::keystore::RemoteKeyName,
        keystore::{
            AgentClient, Context, KeyError, KeyFile, KeystoreError, LocalKeystore, NewKey, NewSecret, Provider,
            Providers,
            custodian::check_custodian,
            provider::{ProviderError, RemoteKeyState},
        },
        vault::home::KeystoreHome,
    };

    #[test]
    fn a_client_is_a_custodian_as_good_as_any() {
        let temp = tempfile::tempdir().unwrap();
        let secret = KeyFile::new(vec![1; 32].into()).unwrap();
        let keystore = LocalKeystore::create("main", &NewSecret::KeyFile(&secret), now()).unwrap();
        let key = keystore.key_of_alias("alias/hushfs/default").unwrap();
        let open = KeystoreHome::create(&temp.path().join("keys"), keystore, now()).unwrap();
        let path = temp.path().join("agent.sock");
        let listener = Listener::bind(&path, Access::All).unwrap();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let serving = thread::spawn(move || serve(&listener, open, None, || ready.send(()).unwrap()));
        is_ready.recv().unwrap();
        let client = AgentClient::connect(&path).unwrap();
        check_custodian(&client, &key);
        client.lock().unwrap();
        serving.join().unwrap().unwrap();
        let away = crate::keystore::Custodian::generate(&client, &key, &crate::keystore::Context::default());
        assert!(away.unwrap_err().is_transient(), "an agent that is away passes");
    }

    fn server(path: &std::path::Path) -> Arc<Server> {
        let secret = KeyFile::new(vec![1; 32].into()).unwrap();
        let keystore = LocalKeystore::create("main", &NewSecret::KeyFile(&secret), 1).unwrap();
        let open = KeystoreHome::create(path, keystore, 1).unwrap();
        Arc::new(Server {
            service: Service::new(open),
            rates: None,
            connections: Mutex::default(),
            waker: UnixStream::pair().unwrap().0,
        })
    }

    #[test]
    fn whether_to_end_is_looked_at_however_many_clients_wait() {
        let temp = tempfile::tempdir().unwrap();
        let server = server(&temp.path().join("keys"));
        let path = temp.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let clients: Vec<_> = (0..=ACCEPTS_MAX).map(|_| UnixStream::connect(&path).unwrap()).collect();
        server.accept_waiting(&listener);
        assert!(listener.accept().is_ok(), "one is left for the next time");
        assert!(listener.accept().is_err());
        drop(clients);
    }

    #[test]
    fn one_user_has_so_many_connections_and_no_more() {
        let temp = tempfile::tempdir().unwrap();
        let server = server(&temp.path().join("keys"));
        let mut places: Vec<_> = (0..CONNECTIONS_OF_USER_MAX).map(|_| server.place(1).unwrap()).collect();
        assert!(server.place(1).is_none());
        assert!(server.place(2).is_some());
        places.pop();
        assert!(server.place(1).is_some());
        drop(places);
        assert!(server.connections.lock().is_empty());
        let users = CONNECTIONS_MAX / CONNECTIONS_OF_USER_MAX;
        let all: Vec<_> = (0..users as u32)
            .flat_map(|uid| (0..CONNECTIONS_OF_USER_MAX).map(move |_| uid))
            .map(|uid| server.place(uid).unwrap())
            .collect();
        assert!(server.place(users as u32).is_none());
        drop(all);
    }

    /// Tells of each call, and answers none before the other end of a channel is gone.
    #[derive(Debug)]
    struct Hanging {
        called: mpsc::Sender<()>,
        released: Mutex<mpsc::Receiver<()>>,
    }

    impl Provider for Hanging {
        fn name(&self) -> &'static str {
            "a token that hangs"
        }

        fn generate(&self, _: &RemoteKeyName, _: &Context) -> Result<(LockedKey, Vec<u8>), ProviderError> {
            self.called.send(()).unwrap();
            let _ = self.released.lock().recv();
            Err(ProviderError::NotFound)
        }

        fn unwrap(&self, _: &RemoteKeyName, _: &Context, _: &[u8]) -> Result<LockedKey, ProviderError> {
            Err(ProviderError::NotFound)
        }

        fn describe(&self, _: &RemoteKeyName) -> Result<RemoteKeyState, ProviderError> {
            Ok(RemoteKeyState::Enabled)
        }
    }

    #[test]
    fn a_token_that_hangs_leaves_its_user_the_other_keys() {
        let temp = tempfile::tempdir().unwrap();
        let secret = KeyFile::new(vec![1; 32].into()).unwrap();
        let mut keystore = LocalKeystore::create("main", &NewSecret::KeyFile(&secret), 1).unwrap();
        let (called, calls) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let released = Mutex::new(released);
        keystore.set_providers(Providers {
            aws_kms: Some(Arc::new(Hanging { called, released })),
            pkcs11: None,
        });
        let arn = "arn:aws:kms:eu-central-1:111122223333:key/1".to_owned();
        let new = NewKey {
            remote: Some(RemoteKeyName::AwsKms { arn }),
            ..NewKey::default()
        };
        let (hangs, here) = (
            keystore.create_key(&new, 1).unwrap().0,
            keystore.key_of_alias("alias/hushfs/default").unwrap().0,
        );
        let open = KeystoreHome::create(&temp.path().join("keys"), keystore, 1).unwrap();
        let service = Service::new(open);
        let peer = Peer::of(&UnixStream::pair().unwrap().0).unwrap();
        let generate = |key| {
            let context = Context::default();
            service.reply(&peer, Request::Generate { key, context }, 1)
        };
        thread::scope(|scope| {
            for _ in 0..32 {
                scope.spawn(|| generate(hangs));
                calls.recv().unwrap();
            }
            let refused = generate(hangs).unwrap_err();
            let error = KeyError::Unavailable {
                key: hangs,
                provider: "a token that hangs",
            };
            assert_eq!(refused, Refusal::Keystore(KeystoreError::Key(error)));
            assert!(generate(here).is_ok());
            drop(release);
        });
        assert!(calls.try_recv().is_err(), "it was not asked once more");
    }

    #[test]
    fn only_owners_do_what_no_policy_speaks_of() {
        let temp = tempfile::tempdir().unwrap();
        let secret = KeyFile::new(vec![1; 32].into()).unwrap();
        let keystore = LocalKeystore::create("main", &NewSecret::KeyFile(&secret), 1).unwrap();
        let open = KeystoreHome::create(&temp.path().join("keys"), keystore, 1).unwrap();
        let service = Service::new(open);
        let peer = |uid| {
            let mut peer = Peer::of(&UnixStream::pair().unwrap().0).unwrap();
            peer.principal.uid = uid;
            peer.principal.gids = vec![uid];
            peer
        };
        let own = rustix::process::geteuid().as_raw();
        for uid in [0, own] {
            assert!(service.reply(&peer(uid), Request::Lock, 1).is_ok());
        }
        let stranger = own + 1;
        let refused = service.reply(&peer(stranger), Request::Lock, 1).unwrap_err();
        assert_eq!(refused, Refusal::Keystore(KeystoreError::NotOwner { uid: stranger }));
    }
}
