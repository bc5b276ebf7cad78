//! What the agent does with a request: who asks, the policy of the key, its state, then the custodian.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    peer::Peer,
    under_way::{CallPlace, UnderWay},
};
use crate::{
    ids::{Epoch, NamesMark, VaultId},
    keystore::{
        Custodian, KeyError, KeyHandle, KeystoreError, LocalKeystore, Principal,
        agent::{AgentStatus, Done, Refusal, Reply, Request, Secret, VaultState, Wrap},
        local::{VaultLook, VaultUse},
        policy::action,
        request::{Answer, Change, Changed, Question},
    },
    vault::home::{Call, ChangeError, OpenKeystore, Recorded},
};

/// A keystore, and what is done with it for others.
pub struct Service {
    /// Held for a look and for a change, never while a key server is asked by who only uses a key.
    keystore: Mutex<OpenKeystore>,
    /// The user this process runs as: it owns the keystore, and so does root.
    uid: u32,
    started: u64,
    counts: Mutex<Counts>,
    /// Calls that wait for keys elsewhere.
    under_way: Arc<UnderWay>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    answered: u64,
    refused: u64,
}

impl Service {
    pub fn new(mut keystore: OpenKeystore) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        keystore.set_default_policy(&owners_policy(uid));
        Service {
            keystore: Mutex::new(keystore),
            uid,
            started: super::now(),
            counts: Mutex::default(),
            under_way: Arc::default(),
        }
    }

    /// Rotates the keys whose time has come.
    pub fn rotate_due(&self, now: u64) {
        match self.keystore.lock().rotate_due(now) {
            Ok(keys) => keys
                .iter()
                .for_each(|key| log::info!("key {key} has rotated by itself")),
            Err(error) => log::warn!("a key that is due could not be rotated: {error}"),
        }
    }

    /// Answers a request, and says so in the log.
    pub fn reply(&self, peer: &Peer, request: Request, now: u64) -> Reply {
        let name = name(&request);
        let reply = self.handle(&peer.principal, request, now);
        let mut counts = self.counts.lock();
        match &reply {
            Ok(_) => {
                counts.answered += 1;
                log::info!("{peer}: {name}");
            }
            Err(refusal) => {
                counts.refused += 1;
                log::warn!("{peer}: {name}: refused: {}", reason(refusal));
            }
        }
        reply
    }

    fn handle(&self, principal: &Principal, request: Request, now: u64) -> Reply {
        Ok(match request {
            Request::Status => Done::Status(self.status()?),
            Request::Wrap { key, context, secret } => {
                let key = KeyHandle(key);
                Done::Wrapped(self.use_keys(principal, &[key], |keystore| keystore.wrap(&key, &context, &secret.0))?)
            }
            Request::Unwrap { key, context, wrapped } => {
                let key = KeyHandle(key);
                let secret = self.use_keys(principal, &[key], |keystore| keystore.unwrap(&key, &context, &wrapped))?;
                Done::Unwrapped(Secret(secret))
            }
            Request::Generate { key, context } => {
                let key = KeyHandle(key);
                let (secret, wrapped) =
                    self.use_keys(principal, &[key], |keystore| keystore.generate(&key, &context))?;
                Done::Generated(Secret(secret), wrapped)
            }
            Request::Rewrap {
                from,
                context,
                wrapped,
                to,
                to_context,
            } => {
                let (from, to) = (KeyHandle(from), KeyHandle(to));
                Done::Wrapped(self.use_keys(principal, &[from, to], |keystore| {
                    keystore.rewrap(&from, &context, &wrapped, &to, &to_context)
                })?)
            }
            Request::Vault {
                vault,
                epoch,
                wrap,
                look,
            } => Done::Vault(self.vault(principal, (vault, epoch), &wrap, &look)?),
            Request::Record {
                vault,
                epoch,
                wrap,
                names,
                vault_use,
            } => Done::Recorded(self.record(principal, (vault, epoch), &wrap, (names, vault_use), now)?),
            Request::Renew { key } => {
                self.renew(principal, KeyHandle(key), now)?;
                Done::Nothing
            }
            Request::Question(question) => Done::Answer(self.answer(principal, &question)?),
            Request::Change { change, dry_run } => Done::Changed(self.change(principal, &change, dry_run, now)?),
            Request::Lock => {
                self.check_owner(principal).map_err(Refusal::Keystore)?;
                Done::Nothing
            }
        })
    }

    /// Returns the keystore as it is stored now, to be asked by a client.
    fn asked_by(&self, principal: &Principal) -> Result<LocalKeystore, Refusal> {
        let mut keystore = self.keystore.lock();
        // Who has the keystore's own secret may change it beside the agent: a key that was disabled so is disabled here too.
        keystore.refresh().map_err(refusal)?;
        Ok(keystore.keystore().asked_by(principal.clone()))
    }

    /// Uses keys as a client may; that, and that it was refused, is on record before the result is handed out.
    fn use_keys<T>(
        &self,
        principal: &Principal,
        keys: &[KeyHandle],
        act: impl FnOnce(&Recorded<'_>) -> Result<T, KeyError>,
    ) -> Result<T, Refusal> {
        let keystore = self.asked_by(principal)?;
        let _place = self.place(principal, &keystore, keys).map_err(of_key)?;
        let custodian = Recorded::new(&keystore);
        let result = act(&custodian).map_err(ChangeError::from);
        let calls = custodian.into_calls();
        let mut keystore = self.keystore.lock();
        let recorded = keystore.on_behalf_of(principal, |keystore| keystore.recorded(result, &calls));
        recorded.map_err(refusal)
    }

    /// Takes a place for a call that needs keys, as far as they are elsewhere.
    fn place(
        &self,
        principal: &Principal,
        keystore: &LocalKeystore,
        keys: &[KeyHandle],
    ) -> Result<CallPlace, KeyError> {
        let elsewhere = |handle: &&KeyHandle| keystore.provider_name(handle).is_some();
        let keys = keys.iter().filter(elsewhere).map(|handle| handle.0).collect();
        self.under_way.take(principal.uid, keys).map_err(|key| {
            log::warn!("uid {}: has too many calls of key {key} under way", principal.uid);
            let provider = keystore.provider_name(&KeyHandle(key)).unwrap_or_default();
            KeyError::Unavailable { key, provider }
        })
    }

    fn status(&self) -> Result<AgentStatus, Refusal> {
        let keystore = self.keystore.lock();
        let counts = *self.counts.lock();
        Ok(AgentStatus {
            keystore: keystore.keystore().id(),
            generation: keystore.keystore().generation(),
            uid: self.uid,
            pid: std::process::id(),
            started: self.started,
            answered: counts.answered,
            refused: counts.refused,
        })
    }

    fn vault(
        &self,
        principal: &Principal,
        of: (VaultId, Epoch),
        wrap: &Wrap,
        look: &VaultLook,
    ) -> Result<VaultState, Refusal> {
        let keystore = self.asked_by(principal)?;
        let key = KeyHandle(wrap.key);
        let context = wrap.context(of.0, of.1).map_err(of_key)?;
        keystore.check_usable(&key, &context).map_err(of_key)?;
        Ok(VaultState {
            floor: keystore.epoch_floor(of.0),
            standing: keystore.standing(of.0, look),
            is_newest: keystore.is_under_newest(&key, &wrap.wrapped),
        })
    }

    /// Keeps what a vault says of itself, if who asks can open its current epoch and knows the vault's names root: a floor that is too high would shut everyone
    /// out.
    fn record(
        &self,
        principal: &Principal,
        (vault, epoch): (VaultId, Epoch),
        wrap: &Wrap,
        (names, vault_use): (NamesMark, VaultUse),
        now: u64,
    ) -> Result<bool, Refusal> {
        let context = wrap.context(vault, epoch).map_err(of_key)?;
        // Only to see that it opens; what it is, nobody learns here.
        let key = KeyHandle(wrap.key);
        drop(self.use_keys(principal, &[key], |keystore| {
            keystore.unwrap(&key, &context, &wrap.wrapped)
        })?);
        let (mut raised, mut is_first) = (false, false);
        let counted = vault_use.files.is_some();
        let recorded = self.keystore.lock().update(now, |keystore| {
            is_first = keystore.note_names(vault, names)?;
            raised = keystore.raise_epoch_floor(vault, epoch)?;
            let is_news = keystore.note_vault(vault, vault_use, now);
            Ok::<_, KeystoreError>(raised || is_first || counted || is_news)
        });
        recorded.map_err(refusal)?;
        if is_first {
            log::info!("vault {vault} is known by its names root from now on: one with another is refused");
        }
        Ok(raised)
    }

    fn answer(&self, principal: &Principal, question: &Question) -> Result<Answer, Refusal> {
        let keystore = self.asked_by(principal)?;
        let answer = keystore.answer(question).map_err(Refusal::Keystore)?;
        // Lists are of what the client may know of.
        Ok(match answer {
            Answer::Keys(mut keys) => {
                keys.retain(|key| keystore.shows(key.id));
                Answer::Keys(keys)
            }
            Answer::Aliases(mut aliases) => {
                aliases.retain(|alias| keystore.shows(alias.key));
                Answer::Aliases(aliases)
            }
            answer => answer,
        })
    }

    fn change(&self, principal: &Principal, change: &Change, dry_run: bool, now: u64) -> Result<Changed, Refusal> {
        let mut copy = self.asked_by(principal)?;
        let call = Call::of_change(&copy, change);
        let is_allowed = match change.is_owners() {
            true => self.check_owner(principal),
            false => Ok(()),
        };
        // On a copy first: what is refused waits for no one else's change and stores nothing.
        let tried = is_allowed.and_then(|()| copy.carry_out(change, now));
        if dry_run {
            return tried.map_err(Refusal::Keystore);
        }
        self.change_if(principal, (call, tried), now, |keystore| {
            keystore.carry_out(change, now)
        })
    }

    /// Gives a key that hushfs manages a new version.
    fn renew(&self, principal: &Principal, key: KeyHandle, now: u64) -> Result<(), Refusal> {
        let asked = self.asked_by(principal)?;
        let is_allowed = asked.check_allowed(&key, action::ROTATE_KEY_ON_DEMAND);
        let tried = is_allowed.map_err(KeystoreError::from);
        self.change_if(principal, (Call::renew(key), tried), now, |keystore| {
            keystore.renew(&key, now).map_err(KeystoreError::from)
        })
        .map(drop)
    }

    /// Changes the keystore for a client, unless that was refused when it was tried; either is recorded.
    fn change_if<T, U>(
        &self,
        principal: &Principal,
        (call, tried): (Call, Result<T, KeystoreError>),
        now: u64,
        act: impl FnOnce(&mut LocalKeystore) -> Result<U, KeystoreError>,
    ) -> Result<U, Refusal> {
        self.keystore.lock().on_behalf_of(principal, |keystore| match tried {
            Ok(_) => keystore.change(now, call, act).map_err(refusal),
            Err(error) => {
                keystore.record_refused(call, &error);
                Err(Refusal::Keystore(error))
            }
        })
    }

    fn check_owner(&self, principal: &Principal) -> Result<(), KeystoreError> {
        match principal.uid {
            0 => Ok(()),
            uid if uid == self.uid => Ok(()),
            uid => Err(KeystoreError::NotOwner { uid }),
        }
    }
}

/// Returns what holds for keys without a policy of their own: everybody can reach the socket, so it is not everybody.
fn owners_policy(uid: u32) -> String {
    format!(
        r#"{{
  "Version": "2012-10-17",
  "Statement": [
    {{
      "Sid": "Owners of the keystore",
      "Effect": "Allow",
      "Principal": {{"uid": [0, {uid}]}},
      "Action": "kms:*",
      "Resource": "*"
    }}
  ]
}}
"#
    )
}

fn of_key(error: KeyError) -> Refusal {
    Refusal::Keystore(KeystoreError::Key(error))
}

/// Turns the failure of a change into what a client is told; the rest is for the log.
fn refusal(error: ChangeError) -> Refusal {
    match error {
        ChangeError::Keystore(error) => Refusal::Keystore(error),
        ChangeError::KeystoreChanged { .. } => Refusal::Replaced,
        ChangeError::Audit(error) => {
            log::error!("{error}");
            Refusal::NotRecorded
        }
        error => {
            log::error!("{error}");
            Refusal::NotStored
        }
    }
}

fn reason(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Keystore(error) => error.to_string(),
        other => format!("{other:?}"),
    }
}

/// Writes a request for the log: what, and with which key.
fn name(request: &Request) -> String {
    let of_key = |what: &str, key| format!("{what} with key {key}");
    match request {
        Request::Status => "Status".to_owned(),
        Request::Wrap { key, .. } => of_key("Encrypt", key),
        Request::Unwrap { key, .. } => of_key("Decrypt", key),
        Request::Generate { key, .. } => of_key("GenerateDataKey", key),
        Request::Rewrap { from, .. } => of_key("ReEncrypt", from),
        Request::Vault { vault, wrap, .. } => format!("state of vault {vault}, {}", of_key("Decrypt", &wrap.key)),
        Request::Record { vault, wrap, .. } => format!("record of vault {vault}, {}", of_key("Decrypt", &wrap.key)),
        Request::Renew { key } => of_key("RotateKeyOnDemand", key),
        Request::Question(question) => question.name().to_owned(),
        Request::Change { change, dry_run } => format!("{}{}", change.name(), if *dry_run { " (dry run)" } else { "" }),
        Request::Lock => "Lock".to_owned(),
    }
}
