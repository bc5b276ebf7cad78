//! The keystore of a mounted vault, or the agent that holds it, asked for the vault's keys again and again.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};

use parking_lot::Mutex;

use super::{
    KeySource, KeystoreHome, OpenKeystore, VAULT_HEADER,
    asker::EpochAsker,
    audit::{AuditLog, REFUSED, Recorded},
    authenticate,
};
use crate::{
    backing::{Stamp, alarm},
    crypto::keys::EpochKey,
    format::{
        FormatError,
        layout::Layout,
        name::KEYSTORE,
        vault::{CustodianKind, EpochRecord, UnverifiedVaultHeader, VaultHeader},
    },
    ids::{Epoch, KeyId, NamesMark, VaultId},
    keystore::{AgentClient, Context, Custodian, KeyError, KeyHandle, LocalKeystore, WrappedKey},
    vault::{
        EpochKeys, TakenEpoch, Vault,
        access::EpochAccess,
        header_watch::EpochTaker,
        keeper::{Question, Source},
        own_keys::FileCustodian,
    },
};

/// What messages call a keystore whose file cannot be used.
const KEYSTORE_FILE: &str = "its keystore";

/// Who is asked for the keys of a mounted vault again.
#[derive(Debug)]
pub enum KeptKeys {
    /// The keystore that opened it.
    Keystore(KeystoreSource),
    /// The agent that did.
    Agent(AgentSource),
}

impl KeptKeys {
    pub(super) fn new(keys: KeySource, header: &VaultHeader) -> Self {
        match keys {
            KeySource::Keystore(keystore) => KeptKeys::Keystore(KeystoreSource::new(*keystore, header)),
            KeySource::Agent(agent) => KeptKeys::Agent(AgentSource {
                epochs: Epochs::of(header),
                agent,
            }),
        }
    }

    fn source(&self) -> &dyn Source {
        match self {
            KeptKeys::Keystore(keystore) => keystore,
            KeptKeys::Agent(agent) => agent,
        }
    }
}

impl Source for KeptKeys {
    fn has_custodian(&self, epoch: Epoch) -> bool {
        self.source().has_custodian(epoch)
    }

    fn refresh(&mut self) {
        match self {
            KeptKeys::Keystore(keystore) => keystore.refresh(),
            KeptKeys::Agent(agent) => agent.refresh(),
        }
    }

    fn question(&self, epoch: Epoch) -> Question {
        self.source().question(epoch)
    }

    fn unanswered(&self, epoch: Epoch) -> KeyError {
        self.source().unanswered(epoch)
    }

    fn learn(&mut self, epoch: &Arc<EpochRecord>) {
        match self {
            KeptKeys::Keystore(keystore) => keystore.learn(epoch),
            KeptKeys::Agent(agent) => agent.learn(epoch),
        }
    }
}

/// An agent, which answers as it sees fit each time. One that is away is a keystore that cannot be asked for the moment.
#[derive(Debug)]
pub struct AgentSource {
    epochs: Epochs,
    agent: AgentClient,
}

impl Source for AgentSource {
    fn has_custodian(&self, epoch: Epoch) -> bool {
        self.epochs.has_custodian(epoch)
    }

    fn refresh(&mut self) {}

    fn learn(&mut self, epoch: &Arc<EpochRecord>) {
        self.epochs.learn(epoch);
    }

    fn question(&self, epoch: Epoch) -> Question {
        let (agent, record, vault) = (self.agent.clone(), self.epochs.record(epoch).clone(), self.epochs.vault);
        // Whoever is at the socket may be stopped, or wait for a key server.
        Question::slow(self.epochs.first_key(epoch), move || {
            EpochAsker::new(&agent, vault)
                .unwrap(&record)
                .map(|key| key.header_wrapping_key(vault))
        })
    }

    fn unanswered(&self, epoch: Epoch) -> KeyError {
        AgentClient::away(self.epochs.first_key(epoch))
    }
}

/// Asks for the secrets of files without a bucket key.
#[derive(Debug)]
pub enum KeyAsker {
    /// The keystore that opened the vault. Locked while it is looked at, not while it is asked.
    Keystore(Box<Mutex<KeystoreSource>>),
    /// The agent that did.
    Agent(AgentClient),
}

impl KeyAsker {
    /// Makes one that stays what it is when `keys` are changed or dropped; what is stored of a keystore it sees.
    ///
    /// # Errors
    ///
    /// What opening the directory of the keystore once more gives.
    pub(super) fn new(keys: &KeySource, header: &VaultHeader) -> io::Result<Self> {
        Ok(match keys {
            KeySource::Keystore(keystore) => {
                let source = KeystoreSource::new(keystore.to_be_asked()?, header);
                KeyAsker::Keystore(Box::new(Mutex::new(source)))
            }
            KeySource::Agent(agent) => KeyAsker::Agent(agent.clone()),
        })
    }

    /// Asks, and has it on record before the answer is handed out.
    fn ask<T>(&self, key: KeyHandle, act: impl FnOnce(&dyn Custodian) -> Result<T, KeyError>) -> Result<T, KeyError> {
        let source = match self {
            KeyAsker::Keystore(source) => source,
            KeyAsker::Agent(agent) => return act(agent),
        };
        let unavailable = |provider| KeyError::Unavailable { key: key.0, provider };
        let (keystore, log) = {
            let mut source = source.lock();
            source.refresh();
            if source.is_lost {
                return Err(unavailable(KEYSTORE_FILE));
            }
            let log = AuditLog::of(&source.home, &source.keystore);
            (source.keystore.clone(), log)
        };
        let unrecorded = |error| {
            log::warn!("{REFUSED}: {error}");
            unavailable(AUDIT_LOG)
        };
        let log = log.map_err(unrecorded)?;
        let custodian = Recorded::new(&keystore);
        let answer = act(&custodian);
        if let Some(log) = log {
            log.record_again(&keystore, &custodian.into_calls())
                .map_err(unrecorded)?;
        }
        answer
    }
}

impl FileCustodian for KeyAsker {
    fn generate(&self, key: KeyHandle, context: &Context) -> Result<(EpochKey, WrappedKey), KeyError> {
        self.ask(key, |custodian| custodian.generate(&key, context))
    }

    fn unwrap(&self, key: KeyHandle, context: &Context, wrapped: &WrappedKey) -> Result<EpochKey, KeyError> {
        self.ask(key, |custodian| custodian.unwrap(&key, context, wrapped))
    }

    fn unanswered(&self, key: KeyHandle) -> Option<KeyError> {
        match self {
            KeyAsker::Keystore(source) => {
                let provider = source.lock().holder(key.0)?;
                Some(KeyError::Unavailable { key: key.0, provider })
            }
            KeyAsker::Agent(_) => Some(AgentClient::away(key.0)),
        }
    }
}

/// Takes over the epochs that another machine has made, by the keystore that opened the vault. What holds for a header when a vault is opened holds here, too.
#[derive(Debug)]
pub struct HeaderReader {
    source: Mutex<KeystoreSource>,
    names: NamesMark,
    layout: Layout,
    /// The header and the keystore that were of no use: they are not tried again.
    refused: Mutex<Option<(Stamp, Option<Stamp>)>>,
}

impl HeaderReader {
    /// Makes one; nothing where an agent has the keys, which would have to be waited for.
    pub(super) fn new(keys: &KeySource, header: &VaultHeader, vault: &Vault) -> Option<Self> {
        let KeySource::Keystore(keystore) = keys else {
            return None;
        };
        Some(HeaderReader {
            source: Mutex::new(KeystoreSource::new(keystore.to_be_asked().ok()?, header)),
            names: vault.names_root.mark(),
            layout: vault.layout,
            refused: Mutex::default(),
        })
    }

    /// Opens what is new in a header, with a keystore that has all its keys itself.
    fn open(
        &self,
        keys: &Recorded<'_>,
        is_embedded: bool,
        header: &UnverifiedVaultHeader,
        known: &EpochKeys,
    ) -> Result<Vec<TakenEpoch>, String> {
        let asked = alarm::since_boot();
        let claims = header.claims();
        let vault = claims.vault;
        let mut asker = EpochAsker::new(keys, vault);
        let key = asker
            .unwrap(claims.current_epoch())
            .map_err(|error| error.to_string())?;
        let damaged = |error: FormatError| error.to_string();
        let (header, names_root) = authenticate(header, &key, &key.vault_header_mac_key(vault)).map_err(damaged)?;
        if names_root.mark() != self.names {
            return Err("it has other names".into());
        }
        if header.layout().map_err(damaged)? != self.layout {
            return Err("it has another layout".into());
        }
        match keys.keystore().epoch_floor(vault) {
            Some(lowest) if header.current < lowest => return Err("it is an old one that was put back".into()),
            None if is_embedded => return Err(format!("{KEYSTORE} is of another vault")),
            _ => {}
        }
        let mut taken = Vec::new();
        for record in untaken(&header, known) {
            let opened = asker.unwrap(record).map_err(|error| error.to_string())?;
            let key = opened.header_wrapping_key(vault);
            taken.push(TakenEpoch {
                access: Arc::new(EpochAccess::new(record.number, Ok(key))),
                record: Arc::new(record.clone()),
                asked,
                is_current: record.number == header.current,
            });
        }
        Ok(taken)
    }
}

/// Returns what a header has of the vault's own key since the epoch that is in use: one before it was retired, and is back. Which files have another key is read
/// once, when a vault is opened.
fn untaken<'h>(header: &'h VaultHeader, known: &EpochKeys) -> impl Iterator<Item = &'h EpochRecord> {
    let current = known.current();
    let is_new = move |record: &&EpochRecord| record.number > current && header.chain_of(record.number).is_none();
    header.epochs.iter().filter(is_new)
}

impl EpochTaker for HeaderReader {
    fn take(&self, header: &UnverifiedVaultHeader, stamp: Stamp, known: &EpochKeys) -> Result<Vec<TakenEpoch>, String> {
        let claims = header.claims();
        if claims.current <= known.current() {
            return Err("it is not newer than the one in use".into());
        }
        if claims.bucket_keys_off().is_some() {
            return Err("it has files without a bucket key".into());
        }
        let mut source = self.source.lock();
        source.refresh();
        if source.is_lost {
            return Err(format!("{KEYSTORE} cannot be asked"));
        }
        let current = std::iter::once(claims.current_epoch());
        let mut wraps = untaken(claims, known).chain(current).flat_map(|record| &record.wraps);
        if wraps.any(|wrap| source.holder(wrap.key).is_some()) {
            return Err("its key is held elsewhere".into());
        }
        let tried = Some((stamp, source.seen));
        if *self.refused.lock() == tried {
            return Err("it was looked at before".into());
        }
        let log = AuditLog::of(&source.home, &source.keystore).map_err(|error| error.to_string())?;
        let custodian = Recorded::new(&source.keystore);
        let opened = self.open(&custodian, source.home.is_embedded(), header, known);
        if let Some(log) = log {
            let recorded = log.record_again(&source.keystore, &custodian.into_calls());
            recorded.map_err(|error| error.to_string())?;
        }
        *self.refused.lock() = tried.filter(|_| opened.is_err());
        opened
    }
}

/// The epochs of a vault, as its header had them when it was opened, and what was taken over since.
#[derive(Debug)]
struct Epochs {
    vault: VaultId,
    records: BTreeMap<Epoch, Arc<EpochRecord>>,
}

impl Epochs {
    fn of(header: &VaultHeader) -> Self {
        let epochs = header.epochs.iter();
        Epochs {
            vault: header.vault,
            records: epochs.map(|epoch| (epoch.number, Arc::new(epoch.clone()))).collect(),
        }
    }

    fn learn(&mut self, epoch: &Arc<EpochRecord>) {
        self.records.insert(epoch.number, epoch.clone());
    }

    fn record(&self, epoch: Epoch) -> &Arc<EpochRecord> {
        let record = self.records.get(&epoch);
        record.expect("the keeper asks for the vault's epochs")
    }

    fn first_key(&self, epoch: Epoch) -> KeyId {
        let first = self.record(epoch).wraps.first();
        first.expect("an epoch without wraps does not decode").key
    }

    fn has_custodian(&self, epoch: Epoch) -> bool {
        let mut wraps = self.record(epoch).wraps.iter();
        wraps.any(|wrap| wrap.custodian == CustodianKind::Local)
    }
}

/// What messages call a log in which it cannot be recorded that a key was used.
const AUDIT_LOG: &str = "its audit log";

/// Asks the keystore that opened a vault. Its root stays in memory, so that neither a passphrase nor Argon2id is needed again; what others do to its file
/// is seen.
#[derive(Debug)]
pub struct KeystoreSource {
    epochs: Epochs,
    home: KeystoreHome,
    keystore: Arc<LocalKeystore>,
    /// The file as it was when it was looked at last; none before the first time, and while it cannot be used.
    seen: Option<Stamp>,
    /// The file cannot be used: what the keystore says now is not known.
    is_lost: bool,
    /// Epochs whose answer from the keystore as it is now is on record. One that is asked for again in memory is no news for an audit log.
    on_record: Arc<Mutex<BTreeSet<Epoch>>>,
}

impl KeystoreSource {
    pub(super) fn new(keystore: OpenKeystore, header: &VaultHeader) -> Self {
        let (home, keystore) = keystore.into_parts();
        KeystoreSource {
            epochs: Epochs::of(header),
            home,
            keystore: Arc::new(keystore),
            seen: None,
            is_lost: false,
            // They were opened with the vault.
            on_record: Arc::new(Mutex::new(header.epochs.iter().map(|epoch| epoch.number).collect())),
        }
    }

    /// Returns the first of an epoch's keys that a key server or an HSM holds.
    fn remote_key(&self, epoch: Epoch) -> Option<(KeyId, &'static str)> {
        let mut wraps = self.epochs.record(epoch).wraps.iter();
        wraps.find_map(|wrap| Some((wrap.key, self.holder(wrap.key)?)))
    }

    /// Returns who holds a key; nothing of one that is in the keystore itself.
    fn holder(&self, key: KeyId) -> Option<&'static str> {
        let key = self.keystore.keys().iter().find(|other| other.id == key)?;
        Some(match self.keystore.providers().of(key.remote.as_ref()?) {
            Ok(provider) => provider.name(),
            Err(missing) => missing.0,
        })
    }

    fn read(&mut self, stamp: Stamp) -> Result<(), String> {
        let bytes = self.home.read().map_err(|error| error.to_string())?;
        let bytes = bytes.ok_or("it is gone")?;
        match self.keystore.stored_meanwhile(&bytes) {
            Ok(Some(keystore)) => {
                self.keystore = Arc::new(keystore);
                self.on_record.lock().clear();
            }
            // Whoever holds back what is new can do so without this: what is known stays.
            Ok(None) => log::warn!("{KEYSTORE}: an older one was put back; what the newer one said counts"),
            // Who took a slot away, or a key out of it, has given it another root.
            Err(FormatError::NotAuthentic) => {
                return Err("a slot was removed or changed since, or keys were destroyed (`hushfs key reap`), or it is damaged: mount again".into());
            }
            Err(error) => return Err(error.to_string()),
        }
        self.seen = Some(stamp);
        Ok(())
    }
}

impl Source for KeystoreSource {
    fn has_custodian(&self, epoch: Epoch) -> bool {
        self.epochs.has_custodian(epoch)
    }

    fn refresh(&mut self) {
        let looked = match self.home.stat() {
            Ok(stat) => {
                let stamp = Stamp::from(&stat);
                if self.seen == Some(stamp) {
                    return;
                }
                self.read(stamp)
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(reason) = &looked {
            self.seen = None;
            if !self.is_lost {
                log::warn!("{KEYSTORE} of {VAULT_HEADER} cannot be asked: {reason}");
            }
        }
        self.is_lost = looked.is_err();
    }

    fn question(&self, epoch: Epoch) -> Question {
        if self.is_lost {
            let error = self.unanswered(epoch);
            return Question::quick(move || Err(error));
        }
        let (keystore, record, vault) = (
            self.keystore.clone(),
            self.epochs.record(epoch).clone(),
            self.epochs.vault,
        );
        let remote = self.remote_key(epoch);
        let key = remote.map_or_else(|| self.epochs.first_key(epoch), |(key, _)| key);
        let unrecorded = move || KeyError::Unavailable {
            key,
            provider: AUDIT_LOG,
        };
        let is_news = remote.is_some() || !self.on_record.lock().contains(&epoch);
        let log = match is_news.then(|| AuditLog::of(&self.home, &self.keystore)).transpose() {
            Ok(log) => log.flatten(),
            Err(error) => {
                log::warn!("{REFUSED}: {error}");
                return Question::quick(move || Err(unrecorded()));
            }
        };
        let on_record = self.on_record.clone();
        let ask = move || {
            let custodian = Recorded::new(&keystore);
            let opened = EpochAsker::new(&custodian, vault).unwrap(&record);
            if let Some(log) = log {
                log.record_again(&keystore, &custodian.into_calls()).map_err(|error| {
                    log::warn!("{REFUSED}: {error}");
                    unrecorded()
                })?;
                on_record.lock().insert(epoch);
            }
            opened.map(|key| key.header_wrapping_key(vault))
        };
        match remote {
            Some((key, _)) => Question::slow(key, ask),
            None => Question::quick(ask),
        }
    }

    fn learn(&mut self, epoch: &Arc<EpochRecord>) {
        self.epochs.learn(epoch);
        self.on_record.lock().insert(epoch.number);
    }

    fn unanswered(&self, epoch: Epoch) -> KeyError {
        let remote = self.remote_key(epoch).filter(|_| !self.is_lost);
        let (key, provider) = remote.unwrap_or_else(|| (self.epochs.first_key(epoch), KEYSTORE_FILE));
        KeyError::Unavailable { key, provider }
    }
}
