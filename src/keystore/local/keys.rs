//! Master keys from creation to destruction, with the states and the refusals that users know from cloud key services.
//!
//! Every call goes the same way: the key is found, its policy asked, its state looked at, and then something changes. What a key that is
//! disabled or pending deletion still allows is said by [`Allowed`].

use serde::{Deserialize, Serialize};

use super::{KeyError, KeystoreError, LocalKeystore, Made, next_material};
use crate::{
    crypto::random,
    format::keystore::{
        DESCRIPTION_LEN_MAX, KEYS_MAX, KeyOperation, KeyRecord, KeyState, Manager, MaterialCause, RemoteKeyName,
        TAG_NAME_CHARS_MAX, TAG_VALUE_CHARS_MAX, TAGS_MAX, Tag,
    },
    ids::KeyId,
    keystore::{
        custodian::{Context, KeyHandle},
        policy::{Decision, Policy, action},
        provider::RemoteKeyState,
        word::Word,
    },
};

/// Days from the wish to delete a key to the first day it can be destroyed, unless the user says otherwise.
pub const DELETION_DAYS_DEFAULT: u64 = 30;

/// The fewest and the most such days.
const DELETION_DAYS: std::ops::RangeInclusive<u64> = 7..=30;

/// The last days of these, whose beginning the keystore has to see: fewer than any wish leaves.
const LAST_DAYS: u64 = 6;

pub(super) const SECONDS_PER_DAY: u64 = 24 * 60 * 60;

/// Names of tags that start so, in whichever case, are not the user's: hushfs has the ones, AWS the others.
const TAG_RESERVED_PREFIXES: [&str; 2] = ["hushfs:", "aws:"];

/// What a key to be made shall be.
#[derive(Clone, Debug, Default)]
pub struct NewKey<'a> {
    /// What it is for.
    pub description: &'a str,
    /// Tags, as name and value.
    pub tags: &'a [(String, String)],
    /// Another name.
    pub alias: Option<&'a str>,
    /// The key in a key server or an HSM that it stands for; otherwise its material is made here.
    pub remote: Option<RemoteKeyName>,
}

/// In which states of a key something is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allowed {
    /// When it is enabled.
    Enabled,
    /// Unless it is pending deletion.
    NotPending,
    /// Always.
    Always,
}

/// A key that was destroyed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reaped {
    /// The key.
    pub key: KeyId,
    /// The aliases that went with it.
    pub aliases: Vec<String>,
}

impl LocalKeystore {
    /// Makes a key, enabled, that the user manages.
    ///
    /// # Errors
    ///
    /// The [`KeystoreError`] that says what is wrong with its description, tags or alias, or that there are too many keys; for a remote
    /// key also the [`KeyError`] that says why it cannot be used.
    pub fn create_key(&mut self, new: &NewKey<'_>, now: u64) -> Result<KeyHandle, KeystoreError> {
        if self.body.keys.len() >= KEYS_MAX {
            return Err(KeystoreError::TooManyKeys);
        }
        check_description(new.description)?;
        if let Some(alias) = new.alias {
            self.check_new_alias(alias)?;
        }
        let mut key = KeyRecord {
            description: new.description.to_owned(),
            remote: new.remote.clone(),
            ..blank_key(Manager::Customer, self.clock(now))
        };
        for (name, value) in new.tags {
            put_tag(&mut key, name, value)?;
        }
        let handle = self.insert_key(key)?;
        if let Some(alias) = new.alias {
            self.insert_alias(alias, handle.0);
        }
        Ok(handle)
    }

    /// Makes the key that vaults use unless told otherwise.
    pub(super) fn make_managed_key(&mut self, now: u64) -> Result<KeyHandle, KeystoreError> {
        let created = self.clock(now);
        self.insert_key(blank_key(Manager::Hushfs, created))
    }

    /// Gives a key its first material, or asks who holds it, and puts it among the others.
    fn insert_key(&mut self, mut key: KeyRecord) -> Result<KeyHandle, KeystoreError> {
        if let Some(name) = &key.remote {
            self.check_remote(key.id, name)?;
        } else {
            let made = Made {
                time: key.created,
                cause: MaterialCause::Creation,
            };
            key.materials.push(next_material(&self.root, self.body.id, &key, made)?);
        }
        let id = key.id;
        let at = self.body.keys.partition_point(|other| other.id < id);
        self.body.keys.insert(at, key);
        Ok(KeyHandle(id))
    }

    /// Makes sure that a remote key is there and can be used.
    fn check_remote(&self, key: KeyId, name: &RemoteKeyName) -> Result<(), KeyError> {
        let provider = self.provider_of(key, name)?;
        let state = provider
            .describe(name)
            .map_err(|error| error.of_key(key, provider.name()))?;
        match state {
            RemoteKeyState::Enabled => Ok(()),
            RemoteKeyState::Disabled => Err(KeyError::Disabled { key }),
            RemoteKeyState::PendingDeletion { .. } => Err(KeyError::PendingDeletion { key }),
            RemoteKeyState::Unavailable => Err(KeyError::Unavailable {
                key,
                provider: provider.name(),
            }),
        }
    }

    /// Asks who holds a remote key whether it could be used; that is besides what the keystore says of it.
    ///
    /// # Errors
    ///
    /// As for [`describe`](Self::describe), and the [`KeyError`] that says why it cannot be used.
    pub fn ask_holder(&self, key: &KeyHandle) -> Result<(), KeystoreError> {
        let key = self.consult(key, action::DESCRIBE_KEY)?;
        match &key.remote {
            Some(name) => Ok(self.check_remote(key.id, name)?),
            None => Ok(()),
        }
    }

    /// Returns a key and all that is known of it but its secrets.
    ///
    /// # Errors
    ///
    /// [`KeyError::NotFound`], [`KeyError::AccessDenied`].
    pub fn describe(&self, key: &KeyHandle) -> Result<&KeyRecord, KeystoreError> {
        self.consult(key, action::DESCRIBE_KEY)
    }

    /// Returns a key for looking at, which its policy must allow and its state always does.
    pub(super) fn consult(&self, key: &KeyHandle, action: Word) -> Result<&KeyRecord, KeystoreError> {
        let key = &self.body.keys[self.key_index(key)?];
        self.authorize(key, action, None)?;
        Ok(key)
    }

    /// Lets a key be used again.
    ///
    /// # Errors
    ///
    /// [`KeyError::PendingDeletion`], and as for every change [`KeyError::NotFound`], [`KeyError::AccessDenied`] and
    /// [`KeystoreError::Managed`].
    pub fn enable(&mut self, key: &KeyHandle) -> Result<(), KeystoreError> {
        self.administer(key, action::ENABLE_KEY, Allowed::NotPending)?.state = KeyState::Enabled;
        Ok(())
    }

    /// Keeps a key from being used until it is enabled.
    ///
    /// # Errors
    ///
    /// As for [`enable`](Self::enable).
    pub fn disable(&mut self, key: &KeyHandle) -> Result<(), KeystoreError> {
        self.administer(key, action::DISABLE_KEY, Allowed::NotPending)?.state = KeyState::Disabled;
        Ok(())
    }

    /// Says that a key shall be destroyed; it cannot be used from now on. Returns the earliest time of that, which may become later: of
    /// the last days the keystore has to see the beginning.
    ///
    /// # Errors
    ///
    /// [`KeystoreError::DeletionWindow`], and as for [`enable`](Self::enable).
    pub fn schedule_deletion(&mut self, key: &KeyHandle, days: u64, now: u64) -> Result<u64, KeystoreError> {
        if !DELETION_DAYS.contains(&days) {
            return Err(KeystoreError::DeletionWindow { days });
        }
        let date = self.clock(now) + days * SECONDS_PER_DAY;
        let key = self.administer(key, action::SCHEDULE_KEY_DELETION, Allowed::NotPending)?;
        key.state = KeyState::PendingDeletion { date };
        Ok(date)
    }

    /// Puts off the destruction of keys whose last days have begun since a time, in which the clock may as well have jumped: one that was back when the wish was
    /// made, and is right again, would leave nothing of the days in which the key may be missed.
    pub(super) fn postpone_unseen(&mut self, before: u64) {
        let last_days = LAST_DAYS * SECONDS_PER_DAY;
        let earliest = self.body.last_time.saturating_add(last_days);
        let was_far_off = |date: u64| date > before.saturating_add(last_days);
        let is_postponed = |key: &KeyRecord| matches!(key.state, KeyState::PendingDeletion { date } if was_far_off(date) && date < earliest);
        // Looked for first: what is changed is copied.
        if !self.body.keys.iter().any(is_postponed) {
            return;
        }
        for key in self.body.keys.iter_mut().filter(|key| is_postponed(key)) {
            key.state = KeyState::PendingDeletion { date: earliest };
        }
    }

    /// Says that a key shall not be destroyed after all. It is disabled then.
    ///
    /// # Errors
    ///
    /// [`KeystoreError::NotPendingDeletion`], and as for [`enable`](Self::enable).
    pub fn cancel_deletion(&mut self, key: &KeyHandle) -> Result<(), KeystoreError> {
        let key = self.administer(key, action::CANCEL_KEY_DELETION, Allowed::Always)?;
        if !matches!(key.state, KeyState::PendingDeletion { .. }) {
            return Err(KeystoreError::NotPendingDeletion { key: key.id });
        }
        key.state = KeyState::Disabled;
        Ok(())
    }

    /// Destroys the keys whose time has come, with their aliases. What only they open is lost.
    ///
    /// The keystore gets a new root, under which the materials of the other keys are wrapped: nothing in the file as it is from now on
    /// opens with what an old copy of it holds. Who has an old copy and a secret that opens it still has the destroyed keys.
    ///
    /// The time is that of the clock, not the latest one seen: of two that differ the earlier keeps the key.
    ///
    /// # Errors
    ///
    /// [`KeystoreError::UnusableSlot`], when the new root cannot be sealed to every slot.
    pub fn reap(&mut self, now: u64) -> Result<Vec<Reaped>, KeystoreError> {
        self.clock(now);
        let is_due = |key: &KeyRecord| matches!(key.state, KeyState::PendingDeletion { date } if date <= now);
        let (due, keys): (Vec<_>, Vec<_>) = self.body.keys.iter().cloned().partition(is_due);
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let renewed = self.under_new_root(&self.body.slots, keys)?;
        self.replace_root(renewed);
        let mut reaped = Vec::new();
        for key in due {
            let (gone, kept) = std::mem::take(&mut self.body.aliases)
                .into_iter()
                .partition(|alias| alias.key == key.id);
            self.body.aliases = kept;
            reaped.push(Reaped {
                key: key.id,
                aliases: gone.into_iter().map(|alias| alias.name).collect(),
            });
        }
        Ok(reaped)
    }

    /// Says anew what a key is for.
    ///
    /// # Errors
    ///
    /// [`KeystoreError::DescriptionLength`], and as for [`enable`](Self::enable).
    pub fn set_description(&mut self, key: &KeyHandle, description: &str) -> Result<(), KeystoreError> {
        check_description(description)?;
        let key = self.administer(key, action::UPDATE_KEY_DESCRIPTION, Allowed::NotPending)?;
        description.clone_into(&mut key.description);
        Ok(())
    }

    /// Gives a key tags; one it has by that name gets the new value.
    ///
    /// # Errors
    ///
    /// [`KeystoreError::InvalidTag`], [`KeystoreError::TooManyTags`], and as for [`enable`](Self::enable).
    pub fn tag(&mut self, key: &KeyHandle, tags: &[(String, String)]) -> Result<(), KeystoreError> {
        let key = self.administer(key, action::TAG_RESOURCE, Allowed::NotPending)?;
        let mut tagged = key.clone();
        for (name, value) in tags {
            put_tag(&mut tagged, name, value)?;
        }
        *key = tagged;
        Ok(())
    }

    /// Takes tags from a key; names that none has are passed over, as AWS does.
    ///
    /// # Errors
    ///
    /// As for [`enable`](Self::enable).
    pub fn untag(&mut self, key: &KeyHandle, names: &[String]) -> Result<(), KeystoreError> {
        let key = self.administer(key, action::UNTAG_RESOURCE, Allowed::NotPending)?;
        key.tags.retain(|tag| !names.contains(&tag.name));
        Ok(())
    }

    /// Sets the policy of a key; an empty text is the default one.
    ///
    /// # Errors
    ///
    /// [`KeystoreError::Policy`], [`KeystoreError::PolicyLockout`] unless `lockout` is accepted, and as for [`enable`](Self::enable).
    pub fn put_policy(&mut self, key: &KeyHandle, text: &str, lockout: bool) -> Result<(), KeystoreError> {
        let (principal, default) = (self.principal.clone(), self.default_policy.clone());
        let key = self.administer(key, action::PUT_KEY_POLICY, Allowed::Always)?;
        let id = key.id;
        let text_in_force = if text.is_empty() { &*default } else { text };
        let policy = Policy::parse(text_in_force).map_err(|error| KeystoreError::Policy { key: id, error })?;
        if !lockout && !policy.allows(&principal, action::PUT_KEY_POLICY, None) {
            return Err(KeystoreError::PolicyLockout { key: id });
        }
        text.clone_into(&mut key.policy);
        Ok(())
    }

    /// Returns the text of a key's policy; empty for the default.
    ///
    /// # Errors
    ///
    /// As for [`describe`](Self::describe).
    pub fn policy(&self, key: &KeyHandle) -> Result<&str, KeystoreError> {
        Ok(self.policy_text(self.consult(key, action::GET_KEY_POLICY)?))
    }

    /// Returns a key to be changed, if its manager, its policy and its state allow that.
    pub(super) fn administer(
        &mut self,
        key: &KeyHandle,
        action: Word,
        allowed: Allowed,
    ) -> Result<&mut KeyRecord, KeystoreError> {
        let at = self.key_index(key)?;
        let key = &self.body.keys[at];
        if key.manager == Manager::Hushfs {
            return Err(KeystoreError::Managed { key: key.id });
        }
        self.authorize(key, action, None)?;
        check_state(key, allowed)?;
        Ok(&mut self.body.keys[at])
    }

    /// Asks the policy of a key.
    pub(super) fn authorize(&self, key: &KeyRecord, action: Word, context: Option<&Context>) -> Result<(), KeyError> {
        let denied = |explicit| KeyError::Denied {
            key: key.id,
            uid: self.principal.uid,
            action,
            explicit,
        };
        // A policy that does not parse was written by a newer version, and says something that is not understood here.
        let policy = Policy::parse(self.policy_text(key)).map_err(|_| denied(false))?;
        match policy.decide(&self.principal, action, context) {
            Decision::Allowed => Ok(()),
            Decision::Denied => Err(denied(true)),
            Decision::NotAllowed => Err(denied(false)),
        }
    }

    /// Returns the policy that holds for a key; empty for the default of all.
    fn policy_text<'a>(&'a self, key: &'a KeyRecord) -> &'a str {
        if key.policy.is_empty() {
            &self.default_policy
        } else {
            &key.policy
        }
    }

    /// Tells whether who asks may do something with a key that has no encryption context.
    ///
    /// # Errors
    ///
    /// [`KeyError::NotFound`], [`KeyError::Denied`].
    pub fn check_allowed(&self, key: &KeyHandle, action: Word) -> Result<(), KeyError> {
        self.authorize(&self.body.keys[self.key_index(key)?], action, None)
    }

    /// Tells whether who asks may unwrap with a key under a context, without doing so.
    ///
    /// # Errors
    ///
    /// Those of a key that cannot be used.
    pub fn check_usable(&self, key: &KeyHandle, context: &Context) -> Result<(), KeyError> {
        self.usable(key, action::DECRYPT, context).map(drop)
    }

    /// Returns a key that may be used for something, and notes that it was.
    pub(super) fn usable(&self, key: &KeyHandle, action: Word, context: &Context) -> Result<&KeyRecord, KeyError> {
        let key = &self.body.keys[self.key_index(key)?];
        self.authorize(key, action, Some(context))?;
        check_state(key, Allowed::Enabled)?;
        Ok(key)
    }

    /// Notes what a key was used for; the time is that of the next store.
    pub(super) fn note_use(&self, key: &KeyHandle, operation: KeyOperation) {
        self.uses.lock().insert(key.0, operation);
    }
}

/// Returns a key that is enabled and has nothing yet, not even a material.
pub(super) fn blank_key(manager: Manager, created: u64) -> KeyRecord {
    KeyRecord {
        id: KeyId(random::bytes()),
        manager,
        remote: None,
        state: KeyState::Enabled,
        created,
        description: String::new(),
        rotation: None,
        tags: Vec::new(),
        policy: String::new(),
        last_use: None,
        materials: Vec::new(),
    }
}

pub(super) fn check_state(key: &KeyRecord, allowed: Allowed) -> Result<(), KeyError> {
    match (key.state, allowed) {
        (KeyState::Enabled, _) | (_, Allowed::Always) | (KeyState::Disabled, Allowed::NotPending) => Ok(()),
        (KeyState::Disabled, Allowed::Enabled) => Err(KeyError::Disabled { key: key.id }),
        (KeyState::PendingDeletion { .. }, _) => Err(KeyError::PendingDeletion { key: key.id }),
    }
}

fn check_description(description: &str) -> Result<(), KeystoreError> {
    if description.len() > DESCRIPTION_LEN_MAX {
        return Err(KeystoreError::DescriptionLength(description.len()));
    }
    Ok(())
}

fn put_tag(key: &mut KeyRecord, name: &str, value: &str) -> Result<(), KeystoreError> {
    let plain = |text: &str| !text.chars().any(char::is_control);
    let is_reserved = |prefix: &str| {
        name.get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    let name_fits = (1..=TAG_NAME_CHARS_MAX).contains(&name.chars().count());
    if !name_fits
        || TAG_RESERVED_PREFIXES.into_iter().any(is_reserved)
        || value.chars().count() > TAG_VALUE_CHARS_MAX
        || !plain(name)
        || !plain(value)
    {
        return Err(KeystoreError::InvalidTag { name: name.to_owned() });
    }
    match key.tags.binary_search_by(|tag| tag.name.as_str().cmp(name)) {
        Ok(at) => value.clone_into(&mut key.tags[at].value),
        Err(_) if key.tags.len() >= TAGS_MAX => return Err(KeystoreError::TooManyTags { key: key.id }),
        Err(at) => key.tags.insert(
            at,
            Tag {
                name: name.to_owned(),
                value: value.to_owned(),
            },
        ),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{default_key, epoch, keystore, unlock, with_remote_key},
        *,
    };
    use crate::{
        crypto::keys::EpochKey,
        format::keystore::{SlotId, UnverifiedKeystoreFile},
        keystore::{
            NewSecret, Principal,
            custodian::{Custodian, WrappedKey},
            slot::tests::key_file,
        },
    };

    const DAY: u64 = SECONDS_PER_DAY;

    fn with_key() -> (LocalKeystore, KeyHandle) {
        let mut keystore = keystore();
        let key = keystore.create_key(&NewKey::default(), 1000).unwrap();
        (keystore, key)
    }

    fn tags(names: &[&str]) -> Vec<(String, String)> {
        names.iter().map(|name| ((*name).to_owned(), "v".to_owned())).collect()
    }

    #[test]
    fn a_new_key_is_enabled_and_has_what_it_was_given() {
        let mut keystore = keystore();
        let new = NewKey {
            description: "mail",
            tags: &tags(&["b", "a"]),
            alias: Some("alias/mail"),
            remote: None,
        };
        let key = keystore.create_key(&new, 500).unwrap();
        let bytes = keystore.encode(500).unwrap();
        let keystore = unlock(&bytes, 1).unwrap();
        let record = keystore.describe(&key).unwrap();
        assert_eq!((record.state, record.manager), (KeyState::Enabled, Manager::Customer));
        assert_eq!((record.description.as_str(), record.created), ("mail", 500));
        let names: Vec<_> = record.tags.iter().map(|tag| tag.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(keystore.key_of_alias("alias/mail"), Some(key));
        assert_eq!(record.materials[0].cause, MaterialCause::Creation);
    }

    #[test]
    fn what_no_key_can_have_makes_none() {
        let mut keystore = keystore();
        let long = "x".repeat(DESCRIPTION_LEN_MAX + 1);
        for (new, aws_name) in [
            (
                NewKey {
                    description: &long,
                    ..NewKey::default()
                },
                "ValidationException",
            ),
            (
                NewKey {
                    tags: &tags(&["hushfs:x"]),
                    ..NewKey::default()
                },
                "TagException",
            ),
            (
                NewKey {
                    tags: &tags(&["AWS:createdBy"]),
                    ..NewKey::default()
                },
                "TagException",
            ),
            (
                NewKey {
                    alias: Some("mail"),
                    ..NewKey::default()
                },
                "InvalidAliasNameException",
            ),
        ] {
            assert_eq!(keystore.create_key(&new, 1).unwrap_err().aws_name(), Some(aws_name));
        }
        assert_eq!((keystore.keys().len(), keystore.aliases().len()), (1, 1));
        while keystore.keys().len() < KEYS_MAX {
            keystore.create_key(&NewKey::default(), 1).unwrap();
        }
        let error = keystore.create_key(&NewKey::default(), 1).unwrap_err();
        assert_eq!(error.aws_name(), Some("LimitExceededException"));
    }

    #[test]
    fn a_remote_key_is_there_and_enabled_before_it_is_taken_in() {
        let (mut keystore, key, server) = with_remote_key();
        let name = keystore.describe(&key).unwrap().remote.clone().unwrap();
        let mut make = |name: &RemoteKeyName| {
            let remote = Some(name.clone());
            let new = NewKey {
                remote,
                ..NewKey::default()
            };
            keystore.create_key(&new, 1).map_err(|error| error.aws_name())
        };
        assert!(make(&name).is_ok());
        let arn = "arn:aws:kms:eu-central-1:111122223333:key/none".to_owned();
        assert_eq!(make(&RemoteKeyName::AwsKms { arn }), Err(Some("NotFoundException")));
        server.set(&name, RemoteKeyState::Disabled);
        assert_eq!(make(&name), Err(Some("DisabledException")));
        server.set(&name, RemoteKeyState::PendingDeletion { date: Some(7) });
        assert_eq!(make(&name), Err(Some("KMSInvalidStateException")));
        server.set_down(true);
        assert_eq!(make(&name), Err(Some("KeyUnavailableException")));
        let (token, label, id) = ("t".to_owned(), "l".to_owned(), Vec::new());
        assert_eq!(
            make(&RemoteKeyName::Pkcs11 { token, label, id }),
            Err(None),
            "nobody serves it"
        );
    }

    #[test]
    fn a_key_s_holder_is_asked_besides_the_keystore() {
        let (keystore, key, server) = with_remote_key();
        assert_eq!(keystore.ask_holder(&key), Ok(()));
        assert_eq!(keystore.ask_holder(&default_key(&keystore)), Ok(()), "nobody to ask");
        let name = keystore.describe(&key).unwrap().remote.clone().unwrap();
        server.set(&name, RemoteKeyState::Disabled);
        assert_eq!(keystore.describe(&key).unwrap().state, KeyState::Enabled);
        let disabled = KeyError::Disabled { key: key.0 };
        assert_eq!(keystore.ask_holder(&key), Err(disabled.into()));
    }

    type Operation = fn(&mut LocalKeystore, &KeyHandle, &WrappedKey) -> Result<(), KeystoreError>;

    /// What each state of a key allows: AWS's table, in its words. The columns are enabled, disabled, pending deletion.
    #[test]
    fn each_state_allows_what_cloud_key_services_allow() {
        const OK: &str = "";
        const DISABLED: &str = "DisabledException";
        const INVALID: &str = "KMSInvalidStateException";
        let table: &[(&str, Operation, [&str; 3])] = &[
            (
                "Encrypt",
                |k, key, _| {
                    let secret = EpochKey::new(random::locked_key());
                    Ok(k.wrap(key, &epoch(1), &secret).map(drop)?)
                },
                [OK, DISABLED, INVALID],
            ),
            (
                "Decrypt",
                |k, key, blob| Ok(k.unwrap(key, &epoch(1), blob).map(drop)?),
                [OK, DISABLED, INVALID],
            ),
            (
                "GenerateDataKey",
                |k, key, _| Ok(k.generate(key, &epoch(1)).map(drop)?),
                [OK, DISABLED, INVALID],
            ),
            (
                "ReEncrypt",
                |k, key, blob| Ok(k.rewrap(key, &epoch(1), blob, key, &epoch(2)).map(drop)?),
                [OK, DISABLED, INVALID],
            ),
            ("DescribeKey", |k, key, _| k.describe(key).map(drop), [OK, OK, OK]),
            ("EnableKey", |k, key, _| k.enable(key), [OK, OK, INVALID]),
            ("DisableKey", |k, key, _| k.disable(key), [OK, OK, INVALID]),
            (
                "ScheduleKeyDeletion",
                |k, key, _| k.schedule_deletion(key, 7, 1).map(drop),
                [OK, OK, INVALID],
            ),
            (
                "CancelKeyDeletion",
                |k, key, _| k.cancel_deletion(key),
                [INVALID, INVALID, OK],
            ),
            (
                "RotateKeyOnDemand",
                |k, key, _| k.rotate_on_demand(key, 1).map(drop),
                [OK, DISABLED, INVALID],
            ),
            (
                "EnableKeyRotation",
                |k, key, _| k.enable_rotation(key, 365, 1),
                [OK, DISABLED, INVALID],
            ),
            (
                "DisableKeyRotation",
                |k, key, _| k.disable_rotation(key),
                [OK, DISABLED, INVALID],
            ),
            (
                "GetKeyRotationStatus",
                |k, key, _| k.rotation_status(key).map(drop),
                [OK, OK, OK],
            ),
            ("ListKeyRotations", |k, key, _| k.rotations(key).map(drop), [OK, OK, OK]),
            ("GetKeyLastUsage", |k, key, _| k.usage(key).map(drop), [OK, OK, OK]),
            (
                "UpdateKeyDescription",
                |k, key, _| k.set_description(key, "x"),
                [OK, OK, INVALID],
            ),
            ("TagResource", |k, key, _| k.tag(key, &tags(&["a"])), [OK, OK, INVALID]),
            (
                "UntagResource",
                |k, key, _| k.untag(key, &["a".into()]),
                [OK, OK, INVALID],
            ),
            ("GetKeyPolicy", |k, key, _| k.policy(key).map(drop), [OK, OK, OK]),
            ("PutKeyPolicy", |k, key, _| k.put_policy(key, "", false), [OK, OK, OK]),
            (
                "CreateAlias",
                |k, key, _| k.set_alias("alias/new", key),
                [OK, OK, INVALID],
            ),
            ("DeleteAlias", |k, _, _| k.remove_alias("alias/old"), [OK, OK, OK]),
        ];
        for (name, operation, expected) in table {
            for (state, expected) in [
                KeyState::Enabled,
                KeyState::Disabled,
                KeyState::PendingDeletion { date: 9 },
            ]
            .into_iter()
            .zip(expected)
            {
                let (mut keystore, key) = with_key();
                keystore.set_alias("alias/old", &key).unwrap();
                let (_, blob) = keystore.generate(&key, &epoch(1)).unwrap();
                let at = keystore.key_index(&key).unwrap();
                keystore.body.keys[at].state = state;
                let before = keystore.body.clone();
                let got = operation(&mut keystore, &key, &blob);
                let got_name = got
                    .as_ref()
                    .map_or_else(|error| error.aws_name().unwrap_or("?"), |()| OK);
                assert_eq!(got_name, *expected, "{name} when {state:?}: {got:?}");
                if got.is_err() {
                    assert_eq!(
                        keystore.body, before,
                        "{name} when {state:?} was refused and changed something"
                    );
                }
            }
        }
    }

    #[test]
    fn a_disabled_key_can_be_enabled_and_opens_what_it_wrapped() {
        let (mut keystore, key) = with_key();
        let (secret, blob) = keystore.generate(&key, &epoch(1)).unwrap();
        keystore.disable(&key).unwrap();
        let bytes = keystore.encode(1).unwrap();
        let mut keystore = unlock(&bytes, 1).unwrap();
        let error = keystore.unwrap(&key, &epoch(1), &blob).unwrap_err();
        assert_eq!(error, KeyError::Disabled { key: key.0 });
        keystore.enable(&key).unwrap();
        assert_eq!(
            keystore.unwrap(&key, &epoch(1), &blob).unwrap().as_bytes(),
            secret.as_bytes()
        );
    }

    #[test]
    fn deletion_takes_7_to_30_days_and_a_cancelled_one_leaves_the_key_disabled() {
        let (mut keystore, key) = with_key();
        for days in [0, 6, 31, u64::MAX] {
            let error = keystore.schedule_deletion(&key, days, 1000).unwrap_err();
            assert_eq!(error, KeystoreError::DeletionWindow { days });
        }
        assert_eq!(keystore.schedule_deletion(&key, 30, 1000), Ok(1000 + 30 * DAY));
        keystore.cancel_deletion(&key).unwrap();
        assert_eq!(keystore.describe(&key).unwrap().state, KeyState::Disabled);
        assert_eq!(keystore.schedule_deletion(&key, 7, 1000), Ok(1000 + 7 * DAY));
        keystore.encode(1000 + DAY).unwrap();
        assert_eq!(keystore.reap(1000 + 7 * DAY - 1), Ok(vec![]));
        let reaped = keystore.reap(1000 + 7 * DAY).unwrap();
        assert_eq!((reaped.len(), reaped[0].key), (1, key.0));
        assert_eq!(keystore.describe(&key), Err(KeyError::NotFound { key: key.0 }.into()));
    }

    #[test]
    fn a_clock_set_back_keeps_a_key_longer_and_never_shorter() {
        let (mut keystore, key) = with_key();
        keystore.encode(1000 + 20 * DAY).unwrap();
        // The clock says day 0, but day 20 was seen.
        let date = keystore.schedule_deletion(&key, 7, 1000).unwrap();
        assert_eq!(date, 1000 + 27 * DAY);
        // Someone set it far ahead for a moment: that destroys nothing, then or later.
        keystore.encode(1000 + 999 * DAY).unwrap();
        assert_eq!(keystore.reap(date), Ok(vec![]));
        assert_eq!(keystore.reap(1000 + 1005 * DAY - 1), Ok(vec![]));
        assert_eq!(keystore.reap(1000 + 1005 * DAY).unwrap().len(), 1);
    }

    #[test]
    fn a_clock_that_was_back_when_a_key_was_deleted_leaves_it_days_once_it_is_right() {
        for looked_between in [false, true] {
            let (mut keystore, key) = with_key();
            // It is day 100, and the clock says 10.
            assert_eq!(
                keystore.schedule_deletion(&key, 30, 1000 + 10 * DAY),
                Ok(1000 + 40 * DAY)
            );
            let right = 1000 + 100 * DAY;
            if looked_between {
                keystore.encode(right - 1).unwrap();
            }
            assert_eq!(keystore.reap(right), Ok(vec![]));
            assert_eq!(keystore.reap(right + 6 * DAY - 2), Ok(vec![]));
            assert_eq!(keystore.reap(right + 6 * DAY).unwrap().len(), 1);
        }
    }

    #[test]
    fn a_clock_that_comes_right_just_before_the_day_leaves_days_too() {
        let (mut keystore, key) = with_key();
        let date = keystore.schedule_deletion(&key, 7, 1000).unwrap();
        assert_eq!(keystore.reap(date - 1), Ok(vec![]));
        assert_eq!(keystore.reap(date + 5 * DAY), Ok(vec![]));
        assert_eq!(keystore.reap(date - 1 + 6 * DAY).unwrap().len(), 1);
    }

    #[test]
    fn a_keystore_that_is_looked_at_every_week_puts_a_destruction_off_once() {
        let (mut keystore, key) = with_key();
        let date = keystore.schedule_deletion(&key, 30, 1000).unwrap();
        for week in 1..=4 {
            assert_eq!(keystore.reap(1000 + week * 7 * DAY), Ok(vec![]));
        }
        let put_off = 1000 + 34 * DAY;
        assert_eq!(
            keystore.describe(&key).unwrap().state,
            KeyState::PendingDeletion { date: put_off }
        );
        assert!(put_off < date + 7 * DAY);
        assert_eq!(keystore.reap(1000 + 35 * DAY).unwrap().len(), 1);
    }

    #[test]
    fn a_destroyed_key_takes_its_aliases_and_nothing_of_the_others() {
        let (mut keystore, key) = with_key();
        let other = keystore.create_key(&NewKey::default(), 1).unwrap();
        for (alias, key) in [("alias/a", &key), ("alias/b", &other), ("alias/c", &key)] {
            keystore.set_alias(alias, key).unwrap();
        }
        let (secret, kept) = keystore.generate(&other, &epoch(1)).unwrap();
        let (_, lost) = keystore.generate(&key, &epoch(1)).unwrap();
        keystore.add_slot("two", &NewSecret::KeyFile(&key_file(2)), 1).unwrap();
        keystore.schedule_deletion(&key, 7, 1).unwrap();
        keystore.encode(1000 + 2 * DAY).unwrap();
        let old_file = keystore.encode(1).unwrap();
        let reaped = keystore.reap(1000 + 8 * DAY).unwrap();
        assert_eq!(reaped[0].aliases, ["alias/a", "alias/c"]);
        let new_file = keystore.encode(1).unwrap();

        for byte in [1, 2] {
            let keystore = unlock(&new_file, byte).unwrap();
            assert_eq!(keystore.key_of_alias("alias/a"), None);
            let opened = keystore.unwrap(&other, &epoch(1), &kept).unwrap();
            assert_eq!(opened.as_bytes(), secret.as_bytes());
            let error = keystore.unwrap(&key, &epoch(1), &lost).unwrap_err();
            assert_eq!(error, KeyError::NotFound { key: key.0 });
            assert_eq!(
                keystore.describe(&other).unwrap().materials.len(),
                1,
                "nobody was shut out"
            );
        }
        // What the old file gives does not open the new one: neither root nor wrapped material is shared.
        let old = unlock(&old_file, 1).unwrap();
        let file = UnverifiedKeystoreFile::decode(&new_file).unwrap();
        assert!(file.verify(&old.root.mac_key()).is_err());
        let wrapped = |keystore: &LocalKeystore| keystore.describe(&other).unwrap().materials[0].wrapped.clone();
        assert_ne!(wrapped(&old), wrapped(&keystore));
    }

    #[test]
    fn a_destruction_that_cannot_be_sealed_to_every_slot_changes_nothing() {
        let (mut keystore, key) = with_key();
        keystore.add_slot("bad", &NewSecret::KeyFile(&key_file(2)), 1).unwrap();
        keystore.body.slots[1].public_key = vec![0xFF; 1216];
        keystore.schedule_deletion(&key, 7, 1000).unwrap();
        keystore.encode(1000 + 2 * DAY).unwrap();
        assert_eq!(
            keystore.reap(1000 + 8 * DAY),
            Err(KeystoreError::UnusableSlot { slot: SlotId(2) })
        );
        assert!(keystore.describe(&key).is_ok());
    }

    #[test]
    fn the_key_that_hushfs_manages_is_not_administered() {
        let mut keystore = keystore();
        let key = default_key(&keystore);
        let managed = KeystoreError::Managed { key: key.0 };
        assert_eq!(managed.aws_name(), Some("AccessDeniedException"));
        assert_eq!(keystore.disable(&key), Err(managed.clone()));
        assert_eq!(keystore.schedule_deletion(&key, 30, 1), Err(managed.clone()));
        assert_eq!(keystore.tag(&key, &tags(&["a"])), Err(managed.clone()));
        assert_eq!(keystore.set_alias("alias/mine", &key), Err(managed.clone()));
        assert_eq!(keystore.put_policy(&key, "", false), Err(managed));
        assert!(keystore.describe(&key).is_ok());
    }

    #[test]
    fn tags_are_replaced_by_name_and_have_a_limit() {
        let (mut keystore, key) = with_key();
        let names: Vec<String> = (0..TAGS_MAX).map(|i| format!("{i:02}")).collect();
        keystore
            .tag(&key, &tags(&names.iter().map(String::as_str).collect::<Vec<_>>()))
            .unwrap();
        keystore.tag(&key, &[("00".into(), "new".into())]).unwrap();
        assert_eq!(keystore.describe(&key).unwrap().tags[0].value, "new");
        let error = keystore
            .tag(&key, &[("00".into(), "newer".into()), ("more".into(), String::new())])
            .unwrap_err();
        assert_eq!(error.aws_name(), Some("LimitExceededException"));
        assert_eq!(keystore.describe(&key).unwrap().tags[0].value, "new", "all or nothing");
        keystore.untag(&key, &["00".into(), "none".into()]).unwrap();
        assert_eq!(keystore.describe(&key).unwrap().tags.len(), TAGS_MAX - 1);
        let long = ("é".repeat(TAG_NAME_CHARS_MAX), "é".repeat(TAG_VALUE_CHARS_MAX));
        keystore.tag(&key, std::slice::from_ref(&long)).unwrap();
        for (name, value) in [
            ("", ""),
            ("a\n", ""),
            ("a", "\x1b"),
            ("hushfs:a", ""),
            (&format!("{}x", long.0), ""),
            ("a", &format!("{}x", long.1)),
        ] {
            let error = keystore.tag(&key, &[(name.into(), value.into())]).unwrap_err();
            assert_eq!(error.aws_name(), Some("TagException"), "{name:?} {value:?}");
        }
        assert!(keystore.encode(1).is_ok());
    }

    #[test]
    fn uses_are_stored_with_the_keystore() {
        let (mut keystore, key) = with_key();
        let last_use = |keystore: &LocalKeystore| {
            let last_use = keystore.describe(&key).unwrap().last_use;
            last_use.map(|last_use| (last_use.operation, last_use.time))
        };
        let (_, blob) = keystore.generate(&key, &epoch(1)).unwrap();
        assert_eq!(last_use(&keystore), None);
        let _ = keystore.encode(2000).unwrap();
        assert_eq!(last_use(&keystore), Some((KeyOperation::GenerateDataKey, 2000)));
        keystore.unwrap(&key, &epoch(1), &blob).unwrap();
        let bytes = keystore.encode(3000).unwrap();
        let keystore = unlock(&bytes, 1).unwrap();
        assert_eq!(last_use(&keystore), Some((KeyOperation::Decrypt, 3000)));
        assert!(keystore.unwrap(&key, &epoch(2), &blob).is_err());
        assert!(keystore.uses.lock().is_empty(), "what was refused is no use");
    }

    const READERS: &str = r#"{"Statement": [
        {"Sid": "administrators", "Effect": "Allow", "Principal": {"uid": 7}, "Action": "kms:*", "Resource": "*"},
        {"Sid": "users", "Effect": "Allow", "Principal": {"role": "backup"}, "Action": ["kms:Decrypt", "kms:DescribeKey"],
         "Resource": "*", "Condition": {"StringLike": {"kms:EncryptionContext:hushfs:vault": "07*"}}}]}"#;

    fn principal(uid: u32, role: &str) -> Principal {
        Principal {
            uid,
            role: role.into(),
            ..Principal::default()
        }
    }

    #[test]
    fn a_policy_is_asked_at_each_use() {
        let (mut keystore, key) = with_key();
        let (_, blob) = keystore.generate(&key, &epoch(1)).unwrap();
        keystore.set_principal(principal(7, "laptop"));
        keystore.put_policy(&key, READERS, false).unwrap();
        keystore.disable(&key).unwrap();
        keystore.enable(&key).unwrap();
        keystore.set_principal(principal(8, "backup"));
        assert!(keystore.unwrap(&key, &epoch(1), &blob).is_ok());
        let denied = |uid, action| KeyError::Denied {
            key: key.0,
            uid,
            action,
            explicit: false,
        };
        let generating = denied(8, action::GENERATE_DATA_KEY);
        assert_eq!(
            generating.to_string(),
            format!(
                "user 8 is not authorized to perform kms:GenerateDataKey on key {key} because no statement of its policy allows it"
            )
        );
        assert_eq!(keystore.generate(&key, &epoch(1)).map(drop), Err(generating));
        assert_eq!(keystore.disable(&key), Err(denied(8, action::DISABLE_KEY).into()));
        // The condition needs a context, and looking at a key has none.
        let describing = denied(8, action::DESCRIBE_KEY);
        assert_eq!(keystore.describe(&key).map(drop), Err(describing.into()));
        keystore.set_principal(principal(9, "laptop"));
        let unwrapping = denied(9, action::DECRYPT);
        assert_eq!(keystore.unwrap(&key, &epoch(1), &blob).map(drop), Err(unwrapping));
        keystore.set_principal(principal(7, "laptop"));
        keystore.put_policy(&key, "", false).unwrap();
        keystore.set_principal(principal(9, "laptop"));
        assert!(keystore.unwrap(&key, &epoch(1), &blob).is_ok());
    }

    #[test]
    fn nobody_locks_themselves_out_by_mistake() {
        let (mut keystore, key) = with_key();
        keystore.set_principal(principal(8, "laptop"));
        assert_eq!(
            keystore.put_policy(&key, READERS, false),
            Err(KeystoreError::PolicyLockout { key: key.0 })
        );
        assert_eq!(keystore.policy(&key), Ok(""));
        let error = keystore.put_policy(&key, "{", true).unwrap_err();
        assert_eq!(error.aws_name(), Some("MalformedPolicyDocumentException"));
        keystore.put_policy(&key, READERS, true).unwrap();
        let denied = keystore.put_policy(&key, "", true).unwrap_err();
        assert_eq!(denied.aws_name(), Some("AccessDeniedException"));
    }

    #[test]
    fn a_policy_that_is_not_understood_denies() {
        let (mut keystore, key) = with_key();
        let at = keystore.key_index(&key).unwrap();
        keystore.body.keys[at].policy = r#"{"Statement": {"NotAction": "kms:*"}}"#.into();
        let error = keystore.generate(&key, &epoch(1)).unwrap_err();
        assert_eq!(error.aws_name(), Some("AccessDeniedException"));
    }

    #[test]
    fn what_someone_else_has_stored_is_taken_if_it_is_of_the_same_root() {
        let (mut mine, key) = with_key();
        let mut theirs = unlock(&mine.encode(1).unwrap(), 1).unwrap();
        theirs.disable(&key).unwrap();
        let stored = theirs.encode(2).unwrap();
        let old = mine.encode(1).unwrap();
        mine.refresh(&stored).unwrap();
        assert_eq!(mine.describe(&key).unwrap().state, KeyState::Disabled);
        theirs.refresh(&stored).unwrap();
        theirs.encode(3).unwrap();
        assert!(theirs.refresh(&old).is_err(), "an older one");
        let slot = theirs.add_slot("two", &NewSecret::KeyFile(&key_file(2)), 1).unwrap();
        let _ = theirs.remove_slot(slot, 1).unwrap();
        assert!(mine.refresh(&theirs.encode(4).unwrap()).is_err(), "another root");
        assert_eq!(mine.describe(&key).unwrap().state, KeyState::Disabled);
    }
}
