//! The slots of a local keystore: added, removed, replaced.

use std::sync::Arc;

use super::{KeystoreError, LocalKeystore, Made, next_material};
use crate::{
    crypto::{keys::KeystoreRoot, random, recipient::Recipient, wrap},
    format::keystore::{
        AuditSettings, KeyRecord, LABEL_LEN_MAX, MaterialCause, SLOTS_MAX, Slot, SlotId, SlotKind, material_aad,
    },
    ids::KeyId,
    keystore::{
        identity::ShareCode,
        secret::{NewSecret, NewSecretError, SecretKind},
        slot::{SlotDraft, authenticator, seal_again},
    },
};

/// Every key has a new material, because someone who could open the keystore no longer shall.
///
/// They may hold a copy of the old file, and with it every epoch key that was wrapped so far. So each vault must add an epoch, and use
/// it for what is written from now on; older epochs stay within their reach until their files are rewrapped.
#[must_use = "each vault that uses one of these keys needs a new epoch"]
#[derive(Debug, PartialEq, Eq)]
pub struct Rekeyed {
    /// The keys whose vaults need a new epoch.
    pub keys: Vec<KeyId>,
}

impl LocalKeystore {
    /// Adds a slot under a free id. The other slots and all keys stay as they are.
    ///
    /// # Errors
    ///
    /// The [`KeystoreError`] that says what is wrong with the label or the secret, or that there are too many slots.
    pub fn add_slot(&mut self, label: &str, secret: &NewSecret<'_>, now: u64) -> Result<SlotId, KeystoreError> {
        let slots = &self.body.slots;
        if !(1..=LABEL_LEN_MAX).contains(&label.len()) {
            return Err(KeystoreError::LabelLength(label.len()));
        }
        if let Some(taken) = slots.iter().find(|slot| slot.label == label) {
            return Err(KeystoreError::LabelTaken { slot: taken.id });
        }
        if slots.len() >= SLOTS_MAX {
            return Err(KeystoreError::TooManySlots);
        }
        let id = (1..)
            .map(SlotId)
            .find(|id| slots.iter().all(|slot| slot.id != *id))
            .expect("of more numbers than slots one is free");
        let created = self.clock(now);
        let slot = self.seal_slot(&SlotDraft {
            id,
            label,
            created,
            secret,
        })?;
        let at = self.body.slots.partition_point(|slot| slot.id < id);
        self.body.slots.insert(at, slot);
        Ok(id)
    }

    /// Removes a slot, and shuts out who holds its secret, even with a copy of the keystore as it was.
    ///
    /// # Errors
    ///
    /// [`KeystoreError::LastSlot`] when nothing would open the keystore; those of a key that cannot be rotated.
    pub fn remove_slot(&mut self, slot: SlotId, now: u64) -> Result<Rekeyed, KeystoreError> {
        let at = self.slot_index(slot)?;
        if self.body.slots.len() == 1 {
            return Err(KeystoreError::LastSlot { slot });
        }
        let mut slots = self.body.slots.clone();
        slots.remove(at);
        self.rekey(&slots, now)
    }

    /// Gives a slot another secret, of the same or another kind, and shuts out who holds the one before. A slot that is called by its kind is
    /// then called by the new one.
    ///
    /// # Errors
    ///
    /// As for adding and removing a slot.
    pub fn replace_slot(&mut self, slot: SlotId, secret: &NewSecret<'_>, now: u64) -> Result<Rekeyed, KeystoreError> {
        let at = self.slot_index(slot)?;
        let created = self.clock(now);
        let mut slots = self.body.slots.clone();
        let label = &self.label_with(at, secret.kind());
        slots[at] = self.seal_slot(&SlotDraft {
            id: slot,
            label,
            created,
            secret,
        })?;
        self.rekey(&slots, now)
    }

    /// Returns what who has just opened a slot can compare with what who made it has told them: a stranger's slot has another.
    ///
    /// # Errors
    ///
    /// [`KeystoreError::NoSuchSlot`], or [`KeystoreError::UnusableSlot`] when the slot is damaged.
    pub fn share_code(&self, slot: SlotId) -> Result<ShareCode, KeystoreError> {
        let record = &self.body.slots[self.slot_index(slot)?];
        authenticator(record, self.body.id, &self.root)
            .map(|authenticator| ShareCode(authenticator.share_code()))
            .map_err(|_| KeystoreError::UnusableSlot { slot })
    }

    /// Returns the share code of each slot of a recipient, by rising id: who was shared with twice was told two.
    ///
    /// # Errors
    ///
    /// As for [`share_code`](Self::share_code).
    pub fn share_codes_of(&self, recipient: &Recipient) -> Result<Vec<ShareCode>, KeystoreError> {
        let is_theirs = |slot: &&Slot| matches!(&slot.kind, SlotKind::Recipient { recipient: own, .. } if own == recipient.as_bytes());
        let slots = self.body.slots.iter().filter(is_theirs);
        slots.map(|slot| self.share_code(slot.id)).collect()
    }

    pub(super) fn slot_index(&self, slot: SlotId) -> Result<usize, KeystoreError> {
        self.body
            .slots
            .binary_search_by_key(&slot, |other| other.id)
            .map_err(|_| KeystoreError::NoSuchSlot { slot })
    }

    /// Returns the label of a slot once it has a secret of a kind.
    fn label_with(&self, at: usize, kind: SecretKind) -> String {
        let slots = &self.body.slots;
        let slot = &slots[at];
        match SecretKind::of(&slot.kind) != kind && is_called_by_its_kind(slot) {
            true => free_label(slots, &kind.to_string()),
            false => slot.label.clone(),
        }
    }

    fn seal_slot(&self, draft: &SlotDraft<'_>) -> Result<Slot, KeystoreError> {
        draft.seal(self.body.id, &self.root).map_err(|error| match error {
            NewSecretError::Hardness(error) => KeystoreError::Hardness(error),
            NewSecretError::Recipient => KeystoreError::Recipient,
            NewSecretError::Remote { provider, error } => KeystoreError::RemoteSlot { provider, error },
        })
    }

    /// Gives the keystore a new root, and every key a new material.
    ///
    /// The new root keeps a removed secret out of the file as it is from now on; the new materials make a copy of the old file useless
    /// for what is wrapped from now on. Keys that are disabled get one too: they may be enabled again.
    fn rekey(&mut self, slots: &[Slot], now: u64) -> Result<Rekeyed, KeystoreError> {
        let made = Made {
            time: self.clock(now),
            cause: MaterialCause::Rekey,
        };
        let mut renewed = self.under_new_root(slots, self.body.keys.clone())?;
        for key in renewed.keys.iter_mut().filter(|key| key.remote.is_none()) {
            let material = next_material(&renewed.root, self.body.id, key, made)?;
            key.materials.push(material);
        }
        self.replace_root(renewed);
        Ok(Rekeyed {
            keys: self.body.keys.iter().map(|key| key.id).collect(),
        })
    }

    /// Makes a new root, seals it to `slots`, and wraps the materials of `keys` anew under it.
    pub(super) fn under_new_root(&self, slots: &[Slot], mut keys: Vec<KeyRecord>) -> Result<Renewed, KeystoreError> {
        let keystore = self.body.id;
        let root = KeystoreRoot::new(random::locked_key());
        let slots = slots
            .iter()
            .map(|slot| {
                seal_again(slot, keystore, &self.root, &root).map_err(|_| KeystoreError::UnusableSlot { slot: slot.id })
            })
            .collect::<Result<Vec<_>, _>>()?;
        for key in &mut keys {
            for material in &mut key.materials {
                let secret = self.unwrap_material(key.id, material)?;
                let aad = material_aad(keystore, key.id, material.version);
                material.wrapped = wrap::wrap(root.as_bytes(), &aad, secret.as_bytes());
            }
        }
        let audit = self
            .audit_settings_under(root.as_bytes())
            .map_err(|_| KeystoreError::AuditSeed)?;
        Ok(Renewed {
            root,
            slots,
            keys,
            audit,
        })
    }

    /// Takes what [`under_new_root`](Self::under_new_root) made.
    pub(super) fn replace_root(&mut self, renewed: Renewed) {
        self.root = Arc::new(renewed.root);
        self.body.slots = renewed.slots;
        self.body.keys = renewed.keys;
        if let Some(settings) = &renewed.audit {
            self.body.set_audit_settings(settings);
        }
    }
}

/// Returns a label for a slot of a kind that no slot has.
pub fn free_label(slots: &[Slot], kind: &str) -> String {
    let labels = (1..).map(|number| match number {
        1 => kind.to_owned(),
        _ => format!("{kind} {number}"),
    });
    let mut free = labels.filter(|label| slots.iter().all(|slot| slot.label != *label));
    free.next().expect("there are more numbers than slots")
}

/// Tells whether a slot has such a label as one gets that nobody has named.
fn is_called_by_its_kind(slot: &Slot) -> bool {
    let kind = SecretKind::of(&slot.kind).to_string();
    let names: &[&str] = match &slot.kind {
        SlotKind::Recipient { .. } => &["recipient"],
        SlotKind::Remote { .. } => &[&kind, "AWS KMS"],
        _ => &[&kind],
    };
    let is_numbered = |rest: &str| {
        rest.strip_prefix(' ')
            .is_some_and(|number| number.parse::<u32>().is_ok())
    };
    let mut rests = names.iter().filter_map(|name| slot.label.strip_prefix(name));
    rests.any(|rest| rest.is_empty() || is_numbered(rest))
}

/// All that hangs on the root of a keystore, under a new one.
pub(super) struct Renewed {
    root: KeystoreRoot,
    slots: Vec<Slot>,
    keys: Vec<KeyRecord>,
    audit: Option<AuditSettings>,
}
