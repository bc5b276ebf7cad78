//! Secrets of files without a bucket key: asked for, file by file, of who has the key, and kept for a while.
//!
//! An answer may take seconds. So in a mount no operation waits for one: it ends with [`VaultError::KeyNeeded`], which says what is to be asked, before it has
//! changed anything; who serves requests asks on a thread that nobody else needs, and then has the operation done again. Without a mount it is asked at once.
//!
//! How long an answer counts is what [`freshness`](super::freshness) says of every key. But nobody asks while a file is only kept open: like an object, it
//! is asked for when it is opened, and what is open is used until the key itself is refused, of which the [keeper](super::keeper) hears.

mod questions;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lru::LruCache;
use parking_lot::Mutex;
use subtle::ConstantTimeEq;

use self::questions::Questions;
use super::{
    VaultError,
    freshness::{Limits, State, Watch},
};
use crate::{
    backing::alarm,
    crypto::{
        keys::{EpochKey, FileSecret},
        random,
    },
    format::{
        FormatError,
        header::{OwnKey, OwnWrap},
        vault::{CustodianKind, EpochWrap, VaultHeader},
    },
    ids::{Epoch, FileId, KeyId, VaultId},
    keystore::{Context, KeyError, KeyHandle, WrappedKey},
};

/// Secrets that are kept although no file is open by them.
const KEPT_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("it is not 0");

/// An answer serves whoever waited for it, however long it took and however soon the next one is due.
const GRACE: Duration = Duration::from_secs(1);

/// Who did not answer is not asked again for so long: a thousand files would wait a thousand times.
const AWAY: Duration = Duration::from_secs(2);

/// Who wraps and unwraps the secrets of files.
pub trait FileCustodian: fmt::Debug + Send + Sync {
    /// Makes a secret, and wraps it.
    ///
    /// # Errors
    ///
    /// The [`KeyError`] that says why not.
    fn generate(&self, key: KeyHandle, context: &Context) -> Result<(EpochKey, WrappedKey), KeyError>;

    /// Unwraps a secret.
    ///
    /// # Errors
    ///
    /// The [`KeyError`] that says why not.
    fn unwrap(&self, key: KeyHandle, context: &Context, wrapped: &WrappedKey) -> Result<EpochKey, KeyError>;

    /// Returns what a question for a key ends with that is not answered; nothing where nobody else is asked, so that there always is an answer.
    fn unanswered(&self, key: KeyHandle) -> Option<KeyError>;
}

/// The secret of a file, and whether it may be used now.
#[derive(Debug)]
pub struct OwnAccess {
    own: Arc<OwnKey>,
    epoch: Epoch,
    is_refused: AtomicBool,
    freshness: Mutex<Freshness>,
    /// Held while it is asked for, so that nobody asks twice at a time.
    asking: Mutex<()>,
}

#[derive(Debug)]
struct Freshness {
    watch: Watch,
    /// When the last answer came.
    answered: Duration,
}

impl OwnAccess {
    fn new(own: Arc<OwnKey>, epoch: Epoch, limits: Limits, now: Duration) -> Self {
        OwnAccess {
            own,
            epoch,
            is_refused: AtomicBool::new(false),
            freshness: Mutex::new(Freshness {
                watch: Watch::new(limits, now, Ok(())),
                answered: now,
            }),
            asking: Mutex::new(()),
        }
    }

    /// Returns the secret.
    pub fn own(&self) -> &Arc<OwnKey> {
        &self.own
    }

    /// Tells whether the file may be used now.
    ///
    /// # Errors
    ///
    /// [`VaultError::EpochKey`], with the reason.
    pub fn check(&self) -> Result<(), VaultError> {
        if !self.is_refused.load(Ordering::Acquire) {
            return Ok(());
        }
        match self.freshness.lock().watch.state() {
            State::Refused(error) => Err(VaultError::EpochKey(self.epoch, error)),
            State::Fresh | State::Stale(_) => Ok(()),
        }
    }

    /// Tells whether who opens the file has to ask first. After a refusal everybody asks: an answer is what they want to see.
    fn is_due(&self, now: Duration) -> bool {
        let freshness = self.freshness.lock();
        let watch = &freshness.watch;
        let is_refused = matches!(watch.state(), State::Refused(_));
        now >= freshness.answered.saturating_add(GRACE) && (is_refused || watch.is_due(now) || watch.is_over(now))
    }

    /// Takes an answer to a question of so long ago; gives it back where it is a refusal.
    fn answer(&self, asked: Duration, now: Duration, answer: Result<(), KeyError>) -> Result<(), VaultError> {
        let mut freshness = self.freshness.lock();
        freshness.watch.ask(asked);
        freshness.watch.answer(now, answer);
        freshness.answered = now;
        let state = freshness.watch.state();
        self.is_refused
            .store(matches!(state, State::Refused(_)), Ordering::Release);
        match (state, answer) {
            (State::Refused(error), _) => Err(VaultError::EpochKey(self.epoch, error)),
            (State::Stale(error), Err(_)) => {
                log::warn!(
                    "epoch {}: {error}; a file of it is used for a while without",
                    self.epoch
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// A secret that has no file yet.
#[derive(Debug)]
pub struct NewOwnKey {
    /// The id that its file has to have.
    pub file: FileId,
    /// The epoch that its header has to name.
    pub epoch: Epoch,
    own: Arc<OwnKey>,
    made: Duration,
}

impl NewOwnKey {
    /// Returns the secret.
    pub fn own(&self) -> &Arc<OwnKey> {
        &self.own
    }
}

/// What is to be asked of who has a key.
#[derive(Debug)]
pub struct Ask {
    key: KeyHandle,
    context: Context,
    file: FileId,
    epoch: Epoch,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A secret for a new file.
    New,
    /// The secret that a header has.
    Known(OwnWrap),
    /// The same once more.
    Again(Arc<OwnAccess>),
}

impl Ask {
    /// Returns the key that is asked for: who has it may keep others waiting that ask for it too.
    pub fn key(&self) -> KeyId {
        self.key.0
    }

    /// Returns the file that it is about.
    pub fn file(&self) -> FileId {
        self.file
    }
}

/// A key of the keystore that an epoch is wrapped under, with the pairs of its context that the user has chosen.
type UnderKey = (KeyHandle, Vec<(String, String)>);

/// The secrets of files without a bucket key in one vault.
#[derive(Debug)]
pub struct OwnKeys {
    vault: VaultId,
    custodian: Option<Arc<dyn FileCustodian>>,
    /// Whoever needs an answer waits for it.
    at_once: bool,
    limits: Limits,
    clock: fn() -> Duration,
    /// What epochs are wrapped under, by which their files are too.
    epochs: BTreeMap<Epoch, Vec<UnderKey>>,
    /// Keys whose holder did not answer, until when nobody asks again, and what was said of it.
    away: Mutex<BTreeMap<KeyId, (Duration, KeyError)>>,
    /// What is being asked, in a mount.
    questions: Questions,
    /// What was asked for lately.
    known: Mutex<LruCache<FileId, Arc<OwnAccess>>>,
    /// Secrets for new files of an epoch, made for who asked and not taken yet.
    made: Mutex<BTreeMap<Epoch, Vec<NewOwnKey>>>,
}

impl OwnKeys {
    /// Starts without anyone to ask.
    pub fn new(vault: VaultId) -> Self {
        OwnKeys {
            vault,
            custodian: None,
            at_once: true,
            limits: Limits::default(),
            clock: alarm::since_boot,
            epochs: BTreeMap::new(),
            away: Mutex::default(),
            questions: Questions::default(),
            known: Mutex::new(LruCache::new(KEPT_MAX)),
            made: Mutex::default(),
        }
    }

    /// Says who is to be asked.
    pub fn set_custodian(&mut self, custodian: Arc<dyn FileCustodian>) {
        self.custodian = Some(custodian);
    }

    /// Takes from a vault header which keys its epochs are under.
    pub fn set_epochs(&mut self, header: &VaultHeader) {
        let under = |wraps: &[EpochWrap]| {
            let in_keystore = wraps.iter().filter(|wrap| wrap.custodian == CustodianKind::Local);
            in_keystore
                .map(|wrap| (KeyHandle(wrap.key), wrap.context.clone()))
                .collect()
        };
        let epochs = header.epochs.iter();
        self.epochs = epochs.map(|epoch| (epoch.number, under(&epoch.wraps))).collect();
    }

    /// Has operations end that need an answer, instead of waiting for it; answers count for so long.
    pub fn defer(&mut self, limits: Limits) {
        self.at_once = false;
        self.limits = limits;
    }

    /// Tells whether operations may end with [`VaultError::KeyNeeded`].
    pub fn is_deferred(&self) -> bool {
        !self.at_once && self.custodian.is_some()
    }

    /// Returns the secret that a header has.
    ///
    /// # Errors
    ///
    /// [`VaultError::KeyNeeded`] where it has to be asked for, and what the answer is where that was waited for.
    pub fn known(&self, file: FileId, epoch: Epoch, wrap: &OwnWrap) -> Result<Arc<OwnAccess>, VaultError> {
        if let Some(known) = self.find(file, wrap)
            && !known.is_due((self.clock)())
        {
            known.check()?;
            return Ok(known);
        }
        let ask = Ask {
            what: match self.find(file, wrap) {
                Some(known) => What::Again(known),
                None => What::Known(wrap.clone()),
            },
            ..self.question(epoch, Some(wrap.key()), file)?
        };
        match (self.at_once, &ask.what) {
            (true, What::Known(wrap)) => self.open(&ask, wrap),
            (true, What::Again(known)) => self.open_again(&ask, known).map(|()| known.clone()),
            _ => Err(VaultError::KeyNeeded(Arc::new(ask))),
        }
    }

    /// Asks again for the secret of a file that is being opened, if it is time to.
    ///
    /// # Errors
    ///
    /// As for [`known`](Self::known).
    pub fn confirm(&self, file: FileId, access: &Arc<OwnAccess>) -> Result<(), VaultError> {
        if !access.is_due((self.clock)()) {
            return access.check();
        }
        let ask = self.question(access.epoch, Some(access.own.wrap.key()), file)?;
        self.ask_now(Ask {
            what: What::Again(access.clone()),
            ..ask
        })
    }

    /// Returns a secret for a new file, with the id that the file has to have.
    ///
    /// # Errors
    ///
    /// As for [`known`](Self::known).
    pub fn for_new_file(&self, epoch: Epoch) -> Result<NewOwnKey, VaultError> {
        loop {
            if let Some(made) = self.take_made(epoch) {
                return Ok(made);
            }
            self.ask_now(self.question(epoch, None, FileId(random::bytes()))?)?;
        }
    }

    /// As [`for_new_file`](Self::for_new_file), for a file that has an id already.
    ///
    /// # Errors
    ///
    /// What the answer is. It is waited for.
    pub fn for_file(&self, epoch: Epoch, file: FileId) -> Result<NewOwnKey, VaultError> {
        let ask = self.question(epoch, None, file)?;
        self.make(&ask)
    }

    fn take_made(&self, epoch: Epoch) -> Option<NewOwnKey> {
        let now = (self.clock)();
        let mut made = self.made.lock();
        let of_epoch = made.get_mut(&epoch)?;
        // What nobody came for in time would be used without a question.
        of_epoch.retain(|made| now.saturating_sub(made.made) < self.limits.ttl.max(GRACE));
        of_epoch.pop()
    }

    /// Returns the access to a file by a secret that is at hand: it was made, or asked for, just now.
    pub fn access(&self, file: FileId, epoch: Epoch, own: &Arc<OwnKey>) -> Arc<OwnAccess> {
        if let Some(known) = self.find(file, &own.wrap) {
            return known;
        }
        let access = Arc::new(OwnAccess::new(own.clone(), epoch, self.limits, (self.clock)()));
        self.known.lock().put(file, access.clone());
        access
    }

    fn find(&self, file: FileId, wrap: &OwnWrap) -> Option<Arc<OwnAccess>> {
        let mut known = self.known.lock();
        known.get(&file).filter(|access| access.own.wrap == *wrap).cloned()
    }

    /// Makes the question for a file of an epoch: under the key that its header names, which must be one of the epoch's, or under the epoch's first.
    fn question(&self, epoch: Epoch, named: Option<KeyId>, file: FileId) -> Result<Ask, VaultError> {
        let under = self.epochs.get(&epoch).ok_or(VaultError::EpochMissing(epoch))?;
        let found = match named {
            Some(named) => under.iter().find(|(key, _)| key.0 == named),
            None => under.first(),
        };
        let damaged = || VaultError::HeaderDamaged(file, FormatError::NotAuthentic);
        let (key, pairs) = found.ok_or_else(damaged)?;
        let own = Context::for_file_of(self.vault, file);
        let context = pairs
            .iter()
            .try_fold(own, |context, (name, value)| context.with(name, value))
            .map_err(|_| damaged())?;
        Ok(Ask {
            key: *key,
            context,
            file,
            epoch,
            what: What::New,
        })
    }

    fn ask_now(&self, ask: Ask) -> Result<(), VaultError> {
        if self.at_once {
            self.ask(&ask)
        } else {
            Err(VaultError::KeyNeeded(Arc::new(ask)))
        }
    }

    /// Asks, and keeps the answer for the operation that needs it.
    ///
    /// # Errors
    ///
    /// [`VaultError::EpochKey`] when the answer is no, [`VaultError::HeaderDamaged`] where it is that nothing was wrapped for this file.
    pub fn ask(&self, ask: &Ask) -> Result<(), VaultError> {
        match &ask.what {
            What::New => {
                let made = self.make(ask)?;
                self.made.lock().entry(ask.epoch).or_default().push(made);
                Ok(())
            }
            What::Known(wrap) => self.open(ask, wrap).map(drop),
            What::Again(access) => self.open_again(ask, access),
        }
    }

    fn open(&self, ask: &Ask, wrap: &OwnWrap) -> Result<Arc<OwnAccess>, VaultError> {
        let asked = (self.clock)();
        let secret = self.unwrap(ask, wrap).map_err(|error| match error {
            // Made for another file, or changed: it is the header that is wrong, and the key is there.
            KeyError::Rejected { .. } | KeyError::IncorrectKey { .. } | KeyError::Commitment { .. } => {
                VaultError::HeaderDamaged(ask.file, FormatError::NotAuthentic)
            }
            error => VaultError::EpochKey(ask.epoch, error),
        })?;
        let own = Arc::new(OwnKey {
            secret: FileSecret::of(&secret),
            wrap: wrap.clone(),
        });
        let access = Arc::new(OwnAccess::new(own, ask.epoch, self.limits, asked));
        access.freshness.lock().answered = (self.clock)();
        self.known.lock().put(ask.file, access.clone());
        Ok(access)
    }

    fn open_again(&self, ask: &Ask, access: &OwnAccess) -> Result<(), VaultError> {
        let _asking = access.asking.lock();
        let asked = (self.clock)();
        if !access.is_due(asked) {
            // Someone else had asked, and has the answer now.
            return access.check();
        }
        let answer = self.unwrap(ask, &access.own.wrap).and_then(|secret| {
            match bool::from(secret.as_bytes().ct_eq(access.own.secret.as_bytes())) {
                true => Ok(()),
                false => Err(KeyError::Rejected { key: ask.key.0 }),
            }
        });
        access.answer(asked, (self.clock)(), answer)
    }

    fn make(&self, ask: &Ask) -> Result<NewOwnKey, VaultError> {
        let refused = |error| VaultError::EpochKey(ask.epoch, error);
        let (key, context) = (ask.key, ask.context.clone());
        let generated = self.with_custodian(key, move |custodian| custodian.generate(key, &context));
        let (secret, wrapped) = generated.map_err(refused)?;
        let wrap = OwnWrap::new(ask.key.0, wrapped.into_bytes())
            .map_err(|error| VaultError::HeaderDamaged(ask.file, error))?;
        Ok(NewOwnKey {
            file: ask.file,
            epoch: ask.epoch,
            own: Arc::new(OwnKey {
                secret: FileSecret::of(&secret),
                wrap,
            }),
            made: (self.clock)(),
        })
    }

    fn unwrap(&self, ask: &Ask, wrap: &OwnWrap) -> Result<EpochKey, KeyError> {
        let wrapped = WrappedKey::new(wrap.blob().to_vec()).map_err(|_| KeyError::Rejected { key: ask.key.0 })?;
        let (key, context) = (ask.key, ask.context.clone());
        self.with_custodian(key, move |custodian| custodian.unwrap(key, &context, &wrapped))
    }

    fn with_custodian<T: Send + 'static>(
        &self,
        key: KeyHandle,
        act: impl FnOnce(&dyn FileCustodian) -> Result<T, KeyError> + Send + 'static,
    ) -> Result<T, KeyError> {
        // A vault that never said that files may be without a bucket key has none that hushfs made.
        let custodian = self.custodian.clone().ok_or(KeyError::Rejected { key: key.0 })?;
        if let Some((until, error)) = self.away.lock().get(&key.0)
            && (self.clock)() < *until
        {
            return Err(*error);
        }
        let answer = match custodian.unanswered(key).filter(|_| !self.at_once) {
            Some(unanswered) => self.questions.ask(key.0, unanswered, move || act(&*custodian)),
            None => act(&*custodian),
        };
        let mut away = self.away.lock();
        match &answer {
            Err(error) if error.is_transient() => drop(away.insert(key.0, ((self.clock)() + AWAY, *error))),
            _ => drop(away.remove(&key.0)),
        }
        answer
    }
}
