//! A keystore that an agent holds: what is asked of it over a socket, and the client, which is a custodian.
//!
//! The agent decides by who is at the other end of the socket, as the kernel says, and by the policies of the keys; what a client says of
//! itself counts for nothing. `agent` has the other side. Each request has a connection of its own: an agent that was started again is as
//! good as the one before, and one that is away is [`KeyError::Unavailable`].

pub mod frame;

use std::{
    fmt, io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use self::frame::{FrameError, REPLY_SIZE_MAX, REQUEST_SIZE_MAX};
use super::{
    custodian::{Context, Custodian, KeyError, KeyHandle, WrappedKey},
    local::{KeystoreError, Standing, VaultLook, VaultUse},
    request::{Answer, Change, Changed, Question},
};
use crate::{
    crypto::{KEY_SIZE, keys::EpochKey, locked::LockedKey},
    ids::{Epoch, KeyId, KeystoreId, NamesMark, VaultId},
};

/// How long a client waits for a place, when the agent has as much to do for its user as it does for one.
const BUSY_WAIT: Duration = Duration::from_secs(10);

/// How often it asks.
const BUSY_POLL: Duration = Duration::from_millis(20);

/// How long an answer may take: three calls to a key server, or a change that waits for another's.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// Who holds a key that cannot be had for the moment.
const NAME: &str = "the agent";

/// What keeps an agent from handing out a key.
const AUDIT_LOG: &str = "the agent's audit log";

/// What a client asks.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// What agent are you?
    Status,
    /// Wrap this.
    Wrap {
        key: KeyId,
        context: Context,
        secret: Secret,
    },
    /// Unwrap this.
    Unwrap {
        key: KeyId,
        context: Context,
        wrapped: WrappedKey,
    },
    /// Make an epoch key.
    Generate { key: KeyId, context: Context },
    /// Wrap this anew.
    Rewrap {
        from: KeyId,
        context: Context,
        wrapped: WrappedKey,
        to: KeyId,
        to_context: Context,
    },
    /// What is known of this epoch of this vault, which looks like this? Answered to who may unwrap its key.
    Vault {
        vault: VaultId,
        epoch: Epoch,
        wrap: Wrap,
        look: VaultLook,
    },
    /// Keep this of this vault, whose current epoch is this. Done for who may unwrap its key, and only if it opens and the names root is the vault's.
    Record {
        vault: VaultId,
        epoch: Epoch,
        wrap: Wrap,
        names: NamesMark,
        vault_use: VaultUse,
    },
    /// Make a new version of this key, if hushfs manages it.
    Renew { key: KeyId },
    /// Something about keys.
    Question(Question),
    /// A change of keys; with `dry_run` only whether it would succeed.
    Change { change: Change, dry_run: bool },
    /// Forget all keys, and end.
    Lock,
}

/// One of the wraps of an epoch's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrap {
    /// The key it is under.
    pub key: KeyId,
    /// The pairs of its context beside those that every epoch has.
    pub pairs: Vec<(String, String)>,
    /// The wrapped key.
    pub wrapped: WrappedKey,
}

impl Wrap {
    /// Returns the context of the wrap: vault and epoch are what who asks says, and what the blob must have been made with.
    ///
    /// # Errors
    ///
    /// [`KeyError::Rejected`]: hushfs never writes such pairs, so whoever did has no wrap of ours.
    pub fn context(&self, vault: VaultId, epoch: Epoch) -> Result<Context, KeyError> {
        self.pairs
            .iter()
            .try_fold(Context::for_epoch(vault, epoch), |context, (name, value)| {
                context.with(name, value)
            })
            .map_err(|_| KeyError::Rejected { key: self.key })
    }
}

/// What the agent answers.
pub type Reply = Result<Done, Refusal>;

/// What it did.
#[derive(Debug, Serialize, Deserialize)]
pub enum Done {
    Status(AgentStatus),
    Wrapped(WrappedKey),
    Unwrapped(Secret),
    Generated(Secret, WrappedKey),
    Vault(VaultState),
    /// Whether the lowest epoch of the vault was raised.
    Recorded(bool),
    Answer(Answer),
    Changed(Changed),
    /// A key has a new version, or the agent ends.
    Nothing,
}

/// Why it did not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The keystore or a policy does not allow it.
    Keystore(KeystoreError),
    /// The change could not be stored.
    NotStored,
    /// It could not be recorded in the audit log.
    NotRecorded,
    /// The keystore was replaced by one that the agent cannot read: someone who had a slot no longer shall.
    Replaced,
    /// This user has as many requests under way as one may.
    Busy,
    /// The request is none of this version.
    Malformed,
    /// This user makes more requests than are allowed in a second.
    Throttled,
}

/// What an agent says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The keystore it holds.
    pub keystore: KeystoreId,
    /// How often that has been stored.
    pub generation: u64,
    /// The user it runs as.
    pub uid: u32,
    /// Its process.
    pub pid: u32,
    /// When it started, in seconds since 1970.
    pub started: u64,
    /// Requests it has answered.
    pub answered: u64,
    /// Requests it has refused.
    pub refused: u64,
}

/// What a keystore knows of an epoch of a vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultState {
    /// The lowest number that the vault's current epoch may have; none without a record.
    pub floor: Option<Epoch>,
    /// Whether it is the vault that the keystore knows.
    pub standing: Standing,
    /// Whether the wrap is under the newest version of its key.
    pub is_newest: bool,
}

/// An epoch key on its way: read into locked memory at once.
#[derive(Debug)]
pub struct Secret(pub EpochKey);

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0.as_bytes())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Secret, E> {
                let bytes: &[u8; KEY_SIZE] = bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))?;
                Ok(Secret(EpochKey::new(LockedKey::copy_of(bytes))))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// Why an agent did not do what it was asked for.
#[derive(Debug)]
pub enum AgentError {
    /// It refused.
    Refused(Refusal),
    /// Nobody listens there.
    Unreachable { socket: PathBuf, source: io::Error },
    /// The socket is not for this user.
    NotAllowed { socket: PathBuf },
    /// It does not answer in time, or hung up.
    NoAnswer { socket: PathBuf },
    /// It speaks another version.
    Version { socket: PathBuf, version: u16 },
    /// What answers is no agent, or what was asked is too large for one.
    Protocol { socket: PathBuf },
}

impl AgentError {
    /// Returns it as what happened to a key.
    pub fn of_key(self, key: KeyId) -> KeyError {
        match self {
            AgentError::Refused(Refusal::Keystore(KeystoreError::Key(error))) => error,
            AgentError::NotAllowed { .. } => KeyError::AccessDenied { key, provider: NAME },
            AgentError::Refused(Refusal::NotRecorded) => KeyError::Unavailable {
                key,
                provider: AUDIT_LOG,
            },
            _ => KeyError::Unavailable { key, provider: NAME },
        }
    }

    /// Returns the name AWS KMS gives this error, if it has one like it.
    pub fn aws_name(&self) -> Option<&'static str> {
        match self {
            AgentError::Refused(Refusal::Keystore(error)) => error.aws_name(),
            AgentError::Refused(Refusal::Throttled) => Some("ThrottlingException"),
            _ => None,
        }
    }

    /// Tells whether the same may succeed later with nothing changed.
    pub fn is_transient(&self) -> bool {
        match self {
            AgentError::Unreachable { .. } | AgentError::NoAnswer { .. } => true,
            AgentError::Refused(Refusal::Busy | Refusal::Throttled) => true,
            AgentError::Refused(Refusal::Keystore(KeystoreError::Key(error))) => error.is_transient(),
            _ => false,
        }
    }
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AgentError::Refused(Refusal::Keystore(error)) => error.fmt(f),
            AgentError::Refused(Refusal::NotStored) => {
                f.write_str("the agent could not store the change: its log says why")
            }
            AgentError::Refused(Refusal::NotRecorded) => {
                f.write_str("the agent refused, for it could not record the call in its audit log: its messages say why")
            }
            AgentError::Refused(Refusal::Replaced) => f.write_str(
                "the keystore was given other ways in, or keys of it were destroyed, since the agent opened it: end the agent (`hushfs lock`) and start it again",
            ),
            AgentError::Refused(Refusal::Busy) => {
                f.write_str("the agent has too many requests of yours under way: try again")
            }
            AgentError::Refused(Refusal::Throttled) => {
                f.write_str("you make more requests than the agent allows in a second: try again")
            }
            AgentError::Refused(Refusal::Malformed) => f.write_str("the agent did not understand the request"),
            AgentError::Unreachable { socket, source } => write!(
                f,
                "{}: no agent there: {source}: start one with `hushfs agent`",
                socket.display()
            ),
            AgentError::NotAllowed { socket } => write!(f, "{}: this agent is not for this user", socket.display()),
            AgentError::NoAnswer { socket } => {
                write!(f, "{}: the agent does not answer: try again later", socket.display())
            }
            AgentError::Version { socket, version } => write!(
                f,
                "{}: the agent speaks version {version} of the protocol: use the same hushfs on both sides",
                socket.display()
            ),
            AgentError::Protocol { socket } => write!(
                f,
                "{}: what answers is no agent, or the request is too large for it",
                socket.display()
            ),
        }
    }
}

impl std::error::Error for AgentError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AgentError::Refused(Refusal::Keystore(error)) => Some(error),
            AgentError::Unreachable { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// The way to an agent.
#[derive(Clone, Debug)]
pub struct AgentClient {
    socket: PathBuf,
    status: AgentStatus,
}

impl AgentClient {
    /// Finds an agent, and asks what it is.
    ///
    /// # Errors
    ///
    /// The [`AgentError`] that says why not.
    pub fn connect(socket: &Path) -> Result<Self, AgentError> {
        // As it is found from elsewhere: a mount in the background asks again, from the root.
        let from_root = std::path::absolute(socket).map_err(|source| AgentError::Unreachable {
            socket: socket.to_owned(),
            source,
        })?;
        match ask(socket, &Request::Status)? {
            Done::Status(status) => Ok(AgentClient {
                socket: from_root,
                status,
            }),
            _ => Err(AgentError::Protocol {
                socket: socket.to_owned(),
            }),
        }
    }

    /// Returns what the agent said of itself when it was found.
    pub fn status(&self) -> &AgentStatus {
        &self.status
    }

    /// Returns what happened to a key when the agent is away.
    pub fn away(key: KeyId) -> KeyError {
        KeyError::Unavailable { key, provider: NAME }
    }

    /// Asks, and returns the answer if it is of the kind that `take` takes.
    fn ask<T>(&self, request: &Request, take: impl FnOnce(Done) -> Option<T>) -> Result<T, AgentError> {
        take(ask(&self.socket, request)?).ok_or_else(|| AgentError::Protocol {
            socket: self.socket.clone(),
        })
    }

    /// Asks about keys.
    ///
    /// # Errors
    ///
    /// The [`AgentError`] that says why not.
    pub fn question(&self, question: Question) -> Result<Answer, AgentError> {
        self.ask(&Request::Question(question), |done| match done {
            Done::Answer(answer) => Some(answer),
            _ => None,
        })
    }

    /// Has keys changed.
    ///
    /// # Errors
    ///
    /// The [`AgentError`] that says why not.
    pub fn change(&self, change: Change, dry_run: bool) -> Result<Changed, AgentError> {
        self.ask(&Request::Change { change, dry_run }, |done| match done {
            Done::Changed(changed) => Some(changed),
            _ => None,
        })
    }

    /// Asks what is known of an epoch of a vault.
    ///
    /// # Errors
    ///
    /// The [`AgentError`] that says why not.
    pub fn vault(
        &self,
        (vault, epoch): (VaultId, Epoch),
        wrap: Wrap,
        look: VaultLook,
    ) -> Result<VaultState, AgentError> {
        let request = Request::Vault {
            vault,
            epoch,
            wrap,
            look,
        };
        self.ask(&request, |done| match done {
            Done::Vault(state) => Some(state),
            _ => None,
        })
    }

    /// Has the keystore know of a vault; tells whether its lowest epoch was raised.
    ///
    /// # Errors
    ///
    /// The [`AgentError`] that says why not.
    pub fn record(
        &self,
        (vault, epoch): (VaultId, Epoch),
        wrap: Wrap,
        (names, vault_use): (NamesMark, VaultUse),
    ) -> Result<bool, AgentError> {
        let request = Request::Record {
            vault,
            epoch,
            wrap,
            names,
            vault_use,
        };
        self.ask(&request, |done| match done {
            Done::Recorded(raised) => Some(raised),
            _ => None,
        })
    }

    /// Has a key that hushfs manages get a new version.
    ///
    /// # Errors
    ///
    /// The [`AgentError`] that says why not.
    pub fn renew(&self, key: KeyHandle) -> Result<(), AgentError> {
        self.ask(&Request::Renew { key: key.0 }, nothing)
    }

    /// Has the agent forget its keys and end.
    ///
    /// # Errors
    ///
    /// The [`AgentError`] that says why not.
    pub fn lock(&self) -> Result<(), AgentError> {
        self.ask(&Request::Lock, nothing)
    }
}

fn nothing(done: Done) -> Option<()> {
    matches!(done, Done::Nothing).then_some(())
}

impl Custodian for AgentClient {
    fn id(&self) -> KeystoreId {
        self.status.keystore
    }

    fn wrap(&self, key: &KeyHandle, context: &Context, secret: &EpochKey) -> Result<WrappedKey, KeyError> {
        let request = Request::Wrap {
            key: key.0,
            context: context.clone(),
            secret: Secret(EpochKey::new(LockedKey::copy_of(secret.as_bytes()))),
        };
        let wrapped = self.ask(&request, |done| match done {
            Done::Wrapped(wrapped) => Some(wrapped),
            _ => None,
        });
        wrapped.map_err(|error| error.of_key(key.0))
    }

    fn unwrap(&self, key: &KeyHandle, context: &Context, wrapped: &WrappedKey) -> Result<EpochKey, KeyError> {
        let request = Request::Unwrap {
            key: key.0,
            context: context.clone(),
            wrapped: wrapped.clone(),
        };
        let unwrapped = self.ask(&request, |done| match done {
            Done::Unwrapped(Secret(secret)) => Some(secret),
            _ => None,
        });
        unwrapped.map_err(|error| error.of_key(key.0))
    }

    fn generate(&self, key: &KeyHandle, context: &Context) -> Result<(EpochKey, WrappedKey), KeyError> {
        let request = Request::Generate {
            key: key.0,
            context: context.clone(),
        };
        let generated = self.ask(&request, |done| match done {
            Done::Generated(Secret(secret), wrapped) => Some((secret, wrapped)),
            _ => None,
        });
        generated.map_err(|error| error.of_key(key.0))
    }

    fn rewrap(
        &self,
        from: &KeyHandle,
        context: &Context,
        wrapped: &WrappedKey,
        to: &KeyHandle,
        to_context: &Context,
    ) -> Result<WrappedKey, KeyError> {
        let request = Request::Rewrap {
            from: from.0,
            context: context.clone(),
            wrapped: wrapped.clone(),
            to: to.0,
            to_context: to_context.clone(),
        };
        let rewrapped = self.ask(&request, |done| match done {
            Done::Wrapped(wrapped) => Some(wrapped),
            _ => None,
        });
        rewrapped.map_err(|error| error.of_key(from.0))
    }
}

/// Asks once more while the agent says that it is busy.
fn ask(socket: &Path, request: &Request) -> Result<Done, AgentError> {
    let give_up = Instant::now() + BUSY_WAIT;
    loop {
        match ask_once(socket, request) {
            Err(AgentError::Refused(Refusal::Busy | Refusal::Throttled)) if Instant::now() < give_up => {
                thread::sleep(BUSY_POLL);
            }
            other => return other,
        }
    }
}

fn ask_once(socket: &Path, request: &Request) -> Result<Done, AgentError> {
    let failed = |error| match error {
        FrameError::Version(version) => AgentError::Version {
            socket: socket.to_owned(),
            version,
        },
        FrameError::TooLarge | FrameError::Malformed => AgentError::Protocol {
            socket: socket.to_owned(),
        },
        FrameError::Timeout | FrameError::Closed | FrameError::Io(_) => AgentError::NoAnswer {
            socket: socket.to_owned(),
        },
    };
    let frame = frame::encode(request, REQUEST_SIZE_MAX).map_err(failed)?;
    let stream = connect_to(socket)?;
    let deadline = Instant::now() + ANSWER_WAIT;
    // One that has no place for another request says so, and hangs up without reading it.
    let sent = frame::write(&stream, &frame, deadline);
    let reply = match (frame::read(&stream, REPLY_SIZE_MAX, deadline), sent) {
        (Ok(reply), _) => reply,
        (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(failed(error)),
    };
    match frame::decode::<Reply>(&reply).map_err(failed)? {
        Ok(done) => Ok(done),
        Err(refusal) => Err(AgentError::Refused(refusal)),
    }
}

/// Connects, without waiting for ever where the agent is stopped and the queue at its socket is full.
fn connect_to(path: &Path) -> Result<UnixStream, AgentError> {
    let unreachable = |source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied => AgentError::NotAllowed {
            socket: path.to_owned(),
        },
        _ => AgentError::Unreachable {
            socket: path.to_owned(),
            source,
        },
    };
    let address = SocketAddrUnix::new(path).map_err(|errno| unreachable(errno.into()))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(|errno| unreachable(errno.into()))?;
    let give_up = Instant::now() + BUSY_WAIT;
    loop {
        match connect(&socket, &address) {
            Ok(()) => break,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) if Instant::now() < give_up => {
                thread::sleep(BUSY_POLL);
            }
            Err(errno) => return Err(unreachable(errno.into())),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).map_err(unreachable)?;
    Ok(stream)
}
