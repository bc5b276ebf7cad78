//! What a keystore knows of its audit log. The log itself is written by who stores the keystore.

use super::LocalKeystore;
use crate::{
    crypto::{
        keys::AuditSeed,
        locked::LockedKey,
        random,
        wrap::{self, Wrapped},
    },
    format::{
        FormatError,
        keystore::{AuditHead, AuditSettings, audit_seed_aad},
    },
    ids::{KeyId, LogId},
    keystore::{
        custodian::{KeyHandle, WrappedKey},
        policy::Principal,
    },
};

impl LocalKeystore {
    /// Returns who asks.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// Returns which audit log the keystore has, if it ever had one.
    pub fn audit_settings(&self) -> Option<AuditSettings> {
        self.body.audit_settings()
    }

    /// Returns number and hash of the last record the keystore knows of.
    pub fn audit_head(&self) -> AuditHead {
        self.body.audit
    }

    /// Notes the last record; it is stored with the next change.
    pub fn set_audit_head(&mut self, head: AuditHead) {
        self.body.audit = head;
    }

    /// Says whether calls are recorded in the log there is.
    pub fn set_audit_on(&mut self, is_on: bool) {
        if let Some(settings) = self.body.audit_settings() {
            self.body.set_audit_settings(&AuditSettings { is_on, ..settings });
        }
    }

    /// Begins a log behind the last record the keystore knows of; calls are recorded in it from now on.
    ///
    /// The seed stays, so that the logs before can be verified.
    ///
    /// # Errors
    ///
    /// [`FormatError::NotAuthentic`] when the seed that is there does not open.
    pub fn begin_audit_log(&mut self) -> Result<(), FormatError> {
        let seed = match self.body.audit_settings() {
            Some(settings) => {
                self.audit_seed(&settings)?;
                settings.seed
            }
            None => self.wrap_audit_seed(&AuditSeed::new(random::locked_key()), self.root.as_bytes()),
        };
        let first = self.body.audit.seq.saturating_add(1);
        self.body.set_audit_settings(&AuditSettings {
            is_on: true,
            log: LogId(random::bytes()),
            first,
            seed,
        });
        Ok(())
    }

    /// Unwraps the seed of the keys of audit logs.
    ///
    /// # Errors
    ///
    /// [`FormatError::NotAuthentic`].
    pub fn audit_seed(&self, settings: &AuditSettings) -> Result<AuditSeed, FormatError> {
        let aad = audit_seed_aad(self.body.id);
        wrap::unwrap(self.root.as_bytes(), &aad, &settings.seed, |bytes| {
            AuditSeed::new(LockedKey::copy_of(bytes))
        })
        .map_err(|_| FormatError::NotAuthentic)
    }

    fn wrap_audit_seed(&self, seed: &AuditSeed, root: &[u8; 32]) -> Wrapped {
        wrap::wrap(root, &audit_seed_aad(self.body.id), seed.as_bytes())
    }

    /// Returns the settings with the seed wrapped under another root.
    pub(super) fn audit_settings_under(&self, root: &[u8; 32]) -> Result<Option<AuditSettings>, FormatError> {
        let Some(settings) = self.body.audit_settings() else {
            return Ok(None);
        };
        let seed = self.wrap_audit_seed(&self.audit_seed(&settings)?, root);
        Ok(Some(AuditSettings { seed, ..settings }))
    }

    /// Returns the id of the material that a blob was wrapped under, or the current one's where there is no blob yet. Remote keys have none here.
    pub fn material_id(&self, key: &KeyHandle, wrapped: Option<&WrappedKey>) -> Option<[u8; 32]> {
        let materials = &self.body.keys[self.key_index(key).ok()?].materials;
        let material = match wrapped {
            Some(wrapped) => {
                let (version, _) = super::decode_blob(wrapped)?;
                materials.iter().find(|material| material.version == version)?
            }
            None => materials.last()?,
        };
        Some(material.id)
    }

    /// Returns the ids of all keys.
    pub fn key_ids(&self) -> std::collections::BTreeSet<KeyId> {
        self.body.keys.iter().map(|key| key.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{keystore, unlock},
        *,
    };
    use crate::keystore::{NewSecret, slot::tests::key_file};

    #[test]
    fn the_seed_outlives_a_new_root_and_a_new_log() {
        let mut keystore = keystore();
        assert_eq!(keystore.audit_settings(), None);
        keystore.begin_audit_log().unwrap();
        let first = keystore.audit_settings().unwrap();
        assert_eq!((first.is_on, first.first), (true, 1));
        let seed = *keystore.audit_seed(&first).unwrap().as_bytes();
        let slot = keystore.add_slot("two", &NewSecret::KeyFile(&key_file(2)), 2).unwrap();
        let _ = keystore.remove_slot(slot, 3).unwrap();
        keystore.set_audit_head(AuditHead { seq: 7, hash: [1; 32] });
        keystore.begin_audit_log().unwrap();
        keystore.set_audit_on(false);
        let bytes = keystore.encode(4).unwrap();
        let keystore = unlock(&bytes, 1).unwrap();
        let second = keystore.audit_settings().unwrap();
        assert_eq!((second.is_on, second.first), (false, 8));
        assert_ne!(second.log, first.log);
        assert_ne!(second.seed, first.seed);
        assert_eq!(keystore.audit_seed(&second).unwrap().as_bytes(), &seed);
        assert!(keystore.audit_seed(&first).is_err(), "wrapped under the old root");
    }
}
