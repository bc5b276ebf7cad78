//! Where the keys of a vault come from: a keystore that is open in this process, or an agent that holds one.
//!
//! Everything a vault asks of a keystore besides slots goes through here, so that it works the same with both.

use std::collections::BTreeSet;

use super::{AuditError, Call, ChangeError, OpenKeystore, Recorded};
use crate::{
    format::{
        keystore::{KeyRecord, Manager},
        vault::{EpochRecord, EpochWrap},
    },
    ids::{KeyId, KeystoreId, NamesMark, VaultId},
    keystore::{
        AgentClient, Custodian, KeyError, KeyHandle, KeystoreError, LocalKeystore, WrappedKey,
        agent::{VaultState, Wrap},
        local::{VaultLook, VaultUse},
        request::{Answer, Change, Changed, KeyView, Question},
    },
};

/// Where the keys of a vault come from.
#[derive(Debug)]
pub enum KeySource {
    /// A keystore that is open here.
    Keystore(Box<OpenKeystore>),
    /// An agent.
    Agent(AgentClient),
}

impl From<OpenKeystore> for KeySource {
    fn from(keystore: OpenKeystore) -> Self {
        KeySource::Keystore(Box::new(keystore))
    }
}

impl From<AgentClient> for KeySource {
    fn from(agent: AgentClient) -> Self {
        KeySource::Agent(agent)
    }
}

impl KeySource {
    /// Returns the keystore, if it is open here: slots and secrets are looked after there alone.
    pub fn keystore(&self) -> Option<&OpenKeystore> {
        match self {
            KeySource::Keystore(keystore) => Some(keystore),
            KeySource::Agent(_) => None,
        }
    }

    /// Returns the keystore for a change of slots.
    ///
    /// # Errors
    ///
    /// [`ChangeError::HeldByAgent`].
    pub fn keystore_mut(&mut self) -> Result<&mut OpenKeystore, ChangeError> {
        match self {
            KeySource::Keystore(keystore) => Ok(keystore),
            KeySource::Agent(_) => Err(ChangeError::HeldByAgent),
        }
    }

    /// Returns the keystore's id.
    pub fn id(&self) -> KeystoreId {
        match self {
            KeySource::Keystore(keystore) => keystore.keystore().id(),
            KeySource::Agent(agent) => agent.status().keystore,
        }
    }

    /// Returns how often the keystore has been stored.
    pub fn generation(&self) -> u64 {
        match self {
            KeySource::Keystore(keystore) => keystore.keystore().generation(),
            KeySource::Agent(agent) => agent.status().generation,
        }
    }

    /// Tells whether the keystore lies in the vault it was found by.
    pub fn is_embedded(&self) -> bool {
        self.keystore().is_some_and(OpenKeystore::is_embedded)
    }

    /// Asks about keys.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn question(&self, question: Question) -> Result<Answer, ChangeError> {
        match self {
            KeySource::Keystore(keystore) => Ok(keystore.keystore().answer(&question)?),
            KeySource::Agent(agent) => Ok(agent.question(question)?),
        }
    }

    /// Finds a key by its id, an alias, or the ARN of either.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn find_key(&self, name: &str) -> Result<KeyHandle, ChangeError> {
        if let KeySource::Keystore(keystore) = self {
            return Ok(keystore.keystore().find_key(name)?);
        }
        match self.question(Question::Find { key: name.to_owned() })? {
            Answer::Find(key) => Ok(KeyHandle(key)),
            _ => Err(ChangeError::UnexpectedAnswer),
        }
    }

    /// Returns the keys; of those that an agent holds, the ones it shows to this user.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not.
    pub fn keys(&self) -> Result<Vec<KeyView>, ChangeError> {
        match self.question(Question::Keys)? {
            Answer::Keys(keys) => Ok(keys),
            _ => Err(ChangeError::UnexpectedAnswer),
        }
    }

    /// Changes keys, durably.
    ///
    /// # Errors
    ///
    /// The [`ChangeError`] that says why not; nothing is changed then.
    pub fn change(&mut self, change: Change, now: u64) -> Result<Changed, ChangeError> {
        match self {
            KeySource::Keystore(keystore) => {
                let call = Call::of_change(keystore.keystore(), &change);
                keystore.change(now, call, |keystore| keystore.carry_out(&change, now))
            }
            KeySource::Agent(agent) => Ok(agent.change(change, false)?),
        }
    }

    /// Goes through a change without making it, to see whether it would succeed.
    ///
    /// # Errors
    ///
    /// As for [`change`](Self::change).
    pub fn rehearse(self, change: Change, now: u64) -> Result<Changed, ChangeError> {
        match self {
            KeySource::Keystore(keystore) => keystore.rehearse(now, |keystore| keystore.carry_out(&change, now)),
            KeySource::Agent(agent) => Ok(agent.change(change, true)?),
        }
    }

    /// Rotates the keys whose time has come; returns them. An agent does so by itself.
    ///
    /// # Errors
    ///
    /// As for [`change`](Self::change).
    pub fn rotate_due(&mut self, now: u64) -> Result<Vec<KeyId>, ChangeError> {
        match self {
            KeySource::Keystore(keystore) => keystore.rotate_due(now),
            KeySource::Agent(_) => Ok(Vec::new()),
        }
    }

    /// Takes the keystore as it is stored, so that what is wrapped next is under the newest versions. An agent's always is.
    pub(super) fn refresh(&mut self, now: u64) -> Result<(), ChangeError> {
        if let KeySource::Keystore(keystore) = self {
            keystore.update(now, |_| Ok::<_, KeystoreError>(false))?;
        }
        Ok(())
    }

    /// Makes a new version of those of the keys that hushfs manages.
    pub(super) fn renew_managed(&mut self, keys: &BTreeSet<KeyId>, now: u64) -> Result<(), ChangeError> {
        match self {
            KeySource::Keystore(keystore) => {
                let is_managed = |key: &&KeyRecord| key.manager == Manager::Hushfs && keys.contains(&key.id);
                let records = keystore.keystore().keys().iter();
                let managed: Vec<_> = records.filter(is_managed).map(|key| KeyHandle(key.id)).collect();
                for key in managed {
                    keystore.change(now, Call::renew(key), |keystore| keystore.renew(&key, now))?;
                }
            }
            KeySource::Agent(agent) => {
                let Answer::Keys(shown) = agent.question(Question::Keys)? else {
                    return Err(ChangeError::UnexpectedAnswer);
                };
                for key in shown
                    .iter()
                    .filter(|key| key.manager == Manager::Hushfs && keys.contains(&key.id))
                {
                    agent.renew(KeyHandle(key.id))?;
                }
            }
        }
        Ok(())
    }

    /// Returns what is known of a vault and of one of its epochs.
    pub(super) fn state(&self, vault: VaultId, epoch: &EpochRecord, look: &VaultLook) -> Result<VaultState, KeyError> {
        match self {
            KeySource::Keystore(keystore) => Ok(state_of(keystore.keystore(), vault, epoch, look)),
            KeySource::Agent(agent) => of_any_wrap(agent, vault, epoch, look),
        }
    }

    /// Has the keystore know a vault and what it needs it for, and raises its lowest epoch to the current one; tells whether that was behind.
    ///
    /// A keystore in the vault travels with it, and a sync tool makes a conflict of every store on two machines: there, news alone are
    /// not worth one. They are in memory, for the next.
    pub(super) fn record(
        &mut self,
        (vault, epoch): (VaultId, &EpochRecord),
        (names, vault_use): (NamesMark, VaultUse),
        now: u64,
    ) -> Result<bool, ChangeError> {
        match self {
            KeySource::Keystore(keystore) => {
                let is_embedded = keystore.is_embedded();
                let counted = vault_use.files.is_some();
                let (mut raised, mut is_first, mut displaced) = (false, false, None);
                keystore.update(now, |keystore| {
                    is_first = keystore.note_names(vault, names)?;
                    raised = keystore.raise_epoch_floor(vault, epoch.number)?;
                    let path = vault_use.path.as_deref();
                    displaced = path.and_then(|path| keystore.other_at(vault, path));
                    let is_news = keystore.note_vault(vault, vault_use, now);
                    Ok::<_, KeystoreError>(raised || is_first || counted || (is_news && !is_embedded))
                })?;
                if is_first {
                    log::info!("vault {vault} is known by its names root from now on: one with another is refused");
                }
                if let Some(other) = displaced {
                    log::warn!("this is vault {vault}, and where it lies the keystore has last seen vault {other}");
                }
                Ok(raised)
            }
            KeySource::Agent(agent) => {
                let mut first_error = None;
                for wrap in &epoch.wraps {
                    match agent.record((vault, epoch.number), for_agent(wrap), (names, vault_use.clone())) {
                        Ok(raised) => return Ok(raised),
                        Err(error) => drop(first_error.get_or_insert(error)),
                    }
                }
                Err(first_error.expect("an epoch without wraps does not decode").into())
            }
        }
    }

    /// Puts a change of a vault on record that is about to be stored there. What an agent records is what it is asked for, and not what its clients do.
    pub(super) fn record_change(&mut self, mut call: Call) -> Result<(), ChangeError> {
        if let KeySource::Keystore(keystore) = self {
            call.note_key(keystore.keystore());
            OpenKeystore::record(keystore, &[call])?;
        }
        Ok(())
    }

    /// Uses keys, which is on record before the result is handed out: by a keystore here, or by the agent.
    pub(super) fn use_keys<T, E: From<AuditError>>(
        &mut self,
        act: impl FnOnce(&KeysInUse<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        match self {
            KeySource::Keystore(keystore) => keystore.use_keys(|keystore| act(&KeysInUse::Keystore(keystore))),
            KeySource::Agent(agent) => act(&KeysInUse::Agent(agent)),
        }
    }
}

/// The keys of a vault while they are used.
#[derive(Debug)]
pub(super) enum KeysInUse<'k> {
    /// Those of a keystore that is open here.
    Keystore(&'k Recorded<'k>),
    /// Those of an agent.
    Agent(&'k AgentClient),
}

impl KeysInUse<'_> {
    /// Returns who wraps and unwraps.
    pub(super) fn custodian(&self) -> &dyn Custodian {
        match *self {
            KeysInUse::Keystore(keystore) => keystore,
            KeysInUse::Agent(agent) => agent,
        }
    }

    /// Tells whether a keystore that is open here has a record of a vault.
    pub(super) fn has_record(&self, vault: VaultId) -> bool {
        match self {
            KeysInUse::Keystore(keystore) => keystore.keystore().epoch_floor(vault).is_some(),
            KeysInUse::Agent(_) => false,
        }
    }

    /// As [`KeySource::state`].
    pub(super) fn state(&self, vault: VaultId, epoch: &EpochRecord, look: &VaultLook) -> Result<VaultState, KeyError> {
        match self {
            KeysInUse::Keystore(keystore) => Ok(state_of(keystore.keystore(), vault, epoch, look)),
            KeysInUse::Agent(agent) => of_any_wrap(agent, vault, epoch, look),
        }
    }
}

fn state_of(keystore: &LocalKeystore, vault: VaultId, epoch: &EpochRecord, look: &VaultLook) -> VaultState {
    let is_under_newest = |wrap: &EpochWrap| {
        let wrapped = WrappedKey::new(wrap.blob.clone()).expect("the format has the same limit");
        keystore.is_under_newest(&KeyHandle(wrap.key), &wrapped)
    };
    VaultState {
        floor: keystore.epoch_floor(vault),
        standing: keystore.standing(vault, look),
        is_newest: epoch.wraps.iter().all(is_under_newest),
    }
}

/// Asks an agent of an epoch by each of its wraps, until one is for this user. Of the wraps that are for others it says nothing.
fn of_any_wrap(
    agent: &AgentClient,
    vault: VaultId,
    epoch: &EpochRecord,
    look: &VaultLook,
) -> Result<VaultState, KeyError> {
    let mut first_error = None;
    for wrap in &epoch.wraps {
        match agent.vault((vault, epoch.number), for_agent(wrap), look.clone()) {
            Ok(state) => return Ok(state),
            Err(error) => drop(first_error.get_or_insert(error.of_key(wrap.key))),
        }
    }
    Err(first_error.expect("an epoch without wraps does not decode"))
}

fn for_agent(wrap: &EpochWrap) -> Wrap {
    Wrap {
        key: wrap.key,
        pairs: wrap.context.clone(),
        wrapped: WrappedKey::new(wrap.blob.clone()).expect("the format has the same limit"),
    }
}
