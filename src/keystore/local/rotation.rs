//! New versions of keys: on demand, and by themselves when it is time.
//!
//! A rotation adds a material and encrypts nothing anew: what older materials wrapped still opens. A vault whose current epoch is under
//! an older one gets a new epoch when it is next opened for writing.

use serde::{Deserialize, Serialize};

use super::{
    KeystoreError, LocalKeystore, Made,
    keys::{Allowed, SECONDS_PER_DAY},
    next_material,
};
use crate::{
    format::keystore::{
        KeyRecord, KeyState, MATERIALS_MAX, Manager, Material, MaterialCause, MaterialVersion, Rotation,
    },
    ids::KeyId,
    keystore::{
        custodian::{KeyError, KeyHandle},
        policy::action,
    },
};

/// Days from one rotation to the next, unless the user says otherwise. The key that hushfs manages always has so many.
pub const ROTATION_DAYS_DEFAULT: u32 = 365;

/// The fewest and the most such days.
const ROTATION_DAYS: std::ops::RangeInclusive<u64> = 90..=2560;

/// How often a key may be rotated on demand.
pub const ON_DEMAND_ROTATIONS_MAX: usize = 25;

/// The most materials that rotations give a key. What is left is for slots that are removed: whom a slot let in can be shut out then, however often a
/// vault was rotated.
pub const ROTATED_MATERIALS_MAX: usize = MATERIALS_MAX / 2;

/// A rotation on demand is refused so long before one that comes by itself.
const DUE_SECONDS: u64 = 20 * 60;

/// When a key rotates by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationStatus {
    /// Days from one rotation to the next; none when it does not rotate, or not in its state.
    pub period_days: Option<u32>,
    /// The next one, in seconds since 1970.
    pub next: Option<u64>,
    /// How often it was rotated on demand.
    pub on_demand: usize,
}

impl LocalKeystore {
    /// Adds a material to a key because the user asks for it; wraps use it from now on. The key's schedule stays.
    ///
    /// # Errors
    ///
    /// The [`KeyError`] of a key that cannot be used, or has no material here; [`KeystoreError::TooManyRotations`];
    /// [`KeystoreError::RotationDue`]; [`KeystoreError::Managed`].
    pub fn rotate_on_demand(&mut self, key: &KeyHandle, now: u64) -> Result<MaterialVersion, KeystoreError> {
        let time = self.clock(now);
        let record = self.administer(key, action::ROTATE_KEY_ON_DEMAND, Allowed::Enabled)?;
        let id = record.id;
        if on_demand(record) >= ON_DEMAND_ROTATIONS_MAX {
            return Err(KeystoreError::TooManyRotations { key: id });
        }
        let next = record.rotation.map(|rotation| rotation.next);
        if next.is_some_and(|next| next <= time + DUE_SECONDS) {
            return Err(KeystoreError::RotationDue { key: id });
        }
        Ok(self.add_material(key, time, MaterialCause::OnDemandRotation)?)
    }

    /// Adds a material to the key that hushfs manages; users ask for it by a new epoch of a vault, which is made under the newest there is where the key has
    /// as many as rotations may give it.
    ///
    /// # Errors
    ///
    /// [`KeyError::NotFound`]; [`KeyError::Unsupported`] for another key.
    pub fn renew(&mut self, key: &KeyHandle, now: u64) -> Result<MaterialVersion, KeyError> {
        let time = self.clock(now);
        if self.body.keys[self.key_index(key)?].manager != Manager::Hushfs {
            return Err(KeyError::Unsupported { key: key.0 });
        }
        let record = &self.body.keys[self.key_index(key)?];
        match record.materials.last() {
            Some(newest) if has_all_rotations(record) => Ok(newest.version),
            _ => self.add_material(key, time, MaterialCause::OnDemandRotation),
        }
    }

    fn add_material(&mut self, key: &KeyHandle, time: u64, cause: MaterialCause) -> Result<MaterialVersion, KeyError> {
        let at = self.key_index(key)?;
        if has_all_rotations(&self.body.keys[at]) {
            return Err(KeyError::Limit { key: key.0 });
        }
        let material = next_material(&self.root, self.body.id, &self.body.keys[at], Made { time, cause })?;
        let version = material.version;
        self.body.keys[at].materials.push(material);
        Ok(version)
    }

    /// Has a key rotate by itself, every so many days from now on.
    ///
    /// # Errors
    ///
    /// [`KeystoreError::RotationPeriod`]; [`KeyError::Unsupported`] for a remote key, whose holder rotates it; as for
    /// [`rotate_on_demand`](Self::rotate_on_demand).
    pub fn enable_rotation(&mut self, key: &KeyHandle, days: u64, now: u64) -> Result<(), KeystoreError> {
        let wrong = KeystoreError::RotationPeriod { days };
        let Ok(period_days) = u32::try_from(days) else {
            return Err(wrong);
        };
        if !ROTATION_DAYS.contains(&days) {
            return Err(wrong);
        }
        let next = self.clock(now) + days * SECONDS_PER_DAY;
        let key = self.administer(key, action::ENABLE_KEY_ROTATION, Allowed::Enabled)?;
        if key.remote.is_some() {
            return Err(KeyError::Unsupported { key: key.id }.into());
        }
        key.rotation = Some(Rotation { period_days, next });
        Ok(())
    }

    /// Has a key rotate on demand only.
    ///
    /// # Errors
    ///
    /// As for [`enable_rotation`](Self::enable_rotation).
    pub fn disable_rotation(&mut self, key: &KeyHandle) -> Result<(), KeystoreError> {
        self.administer(key, action::DISABLE_KEY_ROTATION, Allowed::Enabled)?
            .rotation = None;
        Ok(())
    }

    /// Tells when a key rotates by itself. One that is pending deletion does not.
    ///
    /// # Errors
    ///
    /// [`KeyError::NotFound`], [`KeyError::AccessDenied`].
    pub fn rotation_status(&self, key: &KeyHandle) -> Result<RotationStatus, KeystoreError> {
        let key = self.consult(key, action::GET_KEY_ROTATION_STATUS)?;
        let rotation = schedule(key).filter(|_| !matches!(key.state, KeyState::PendingDeletion { .. }));
        Ok(RotationStatus {
            period_days: rotation.map(|rotation| rotation.period_days),
            next: rotation.map(|rotation| rotation.next),
            on_demand: on_demand(key),
        })
    }

    /// Returns the versions of a key, rising; the last is the current one.
    ///
    /// # Errors
    ///
    /// As for [`rotation_status`](Self::rotation_status).
    pub fn rotations(&self, key: &KeyHandle) -> Result<&[Material], KeystoreError> {
        Ok(&self.consult(key, action::LIST_KEY_ROTATIONS)?.materials)
    }

    /// Rotates the keys whose time has come and that are enabled; returns them. One that was missed for years is rotated once; one that has as many
    /// materials as rotations may give it, no more.
    ///
    /// # Errors
    ///
    /// The [`KeyError`] of a key that cannot be rotated; keys before it are rotated then.
    pub fn rotate_due(&mut self, now: u64) -> Result<Vec<KeyId>, KeyError> {
        let time = self.clock(now);
        let is_due = |key: &&KeyRecord| {
            key.state == KeyState::Enabled
                && schedule(key).is_some_and(|rotation| rotation.next <= time)
                && !has_all_rotations(key)
        };
        let due: Vec<_> = self.body.keys.iter().filter(is_due).map(|key| key.id).collect();
        for id in &due {
            let key = KeyHandle(*id);
            self.add_material(&key, time, MaterialCause::AutomaticRotation)?;
            let at = self.key_index(&key)?;
            if let Some(rotation) = &mut self.body.keys[at].rotation {
                rotation.next = time + u64::from(rotation.period_days) * SECONDS_PER_DAY;
            }
        }
        Ok(due)
    }
}

/// Returns when a key rotates by itself: as the user says, or for hushfs's own a year after its newest version.
fn schedule(key: &KeyRecord) -> Option<Rotation> {
    match key.manager {
        Manager::Customer => key.rotation,
        Manager::Hushfs => key.materials.last().map(|newest| Rotation {
            period_days: ROTATION_DAYS_DEFAULT,
            next: newest
                .created
                .saturating_add(u64::from(ROTATION_DAYS_DEFAULT) * SECONDS_PER_DAY),
        }),
    }
}

fn has_all_rotations(key: &KeyRecord) -> bool {
    key.materials.len() >= ROTATED_MATERIALS_MAX
}

fn on_demand(key: &KeyRecord) -> usize {
    let asked_for = |material: &&Material| material.cause == MaterialCause::OnDemandRotation;
    key.materials.iter().filter(asked_for).count()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            NewKey,
            tests::{default_key, epoch, keystore, with_remote_key},
        },
        *,
    };
    use crate::keystore::custodian::Custodian;

    const DAY: u64 = SECONDS_PER_DAY;

    fn with_key() -> (LocalKeystore, KeyHandle) {
        let mut keystore = keystore();
        let key = keystore.create_key(&NewKey::default(), 1000).unwrap();
        (keystore, key)
    }

    fn versions(keystore: &LocalKeystore, key: &KeyHandle) -> usize {
        keystore.rotations(key).unwrap().len()
    }

    #[test]
    fn a_key_of_the_user_s_does_not_rotate_by_itself_unless_told() {
        let (mut keystore, key) = with_key();
        let status = keystore.rotation_status(&key).unwrap();
        assert_eq!((status.period_days, status.next), (None, None));
        // Another date than that of the key that hushfs manages.
        assert_eq!(keystore.rotate_due(1000 + 300 * DAY), Ok(vec![]));
    }

    #[test]
    fn a_key_rotates_one_period_after_it_was_told_and_every_one_from_then() {
        let (mut keystore, key) = with_key();
        keystore.enable_rotation(&key, 90, 1000).unwrap();
        let first = 1000 + 90 * DAY;
        assert_eq!(keystore.rotation_status(&key).unwrap().next, Some(first));
        assert_eq!(keystore.rotate_due(first - 1), Ok(vec![]));
        assert_eq!(keystore.rotate_due(first), Ok(vec![key.0]));
        assert_eq!(keystore.rotate_due(first), Ok(vec![]));
        let newest = keystore.rotations(&key).unwrap().last().unwrap();
        assert_eq!(
            (newest.cause, newest.created),
            (MaterialCause::AutomaticRotation, first)
        );
        // Nobody looked for a long time: once is enough, and the next is a period from then.
        let late = first + 250 * DAY;
        assert_eq!(keystore.rotate_due(late), Ok(vec![key.0]));
        assert_eq!(keystore.rotation_status(&key).unwrap().next, Some(late + 90 * DAY));
        keystore.disable_rotation(&key).unwrap();
        assert_eq!(keystore.rotate_due(late + 91 * DAY), Ok(vec![default_key(&keystore).0]));
    }

    #[test]
    fn a_clock_set_back_rotates_nothing_twice() {
        let (mut keystore, key) = with_key();
        keystore.enable_rotation(&key, 90, 1000).unwrap();
        keystore.rotate_due(1000 + 90 * DAY).unwrap();
        assert_eq!(keystore.rotate_due(0), Ok(vec![]));
        keystore.enable_rotation(&key, 100, 0).unwrap();
        assert_eq!(
            keystore.rotation_status(&key).unwrap().next,
            Some(1000 + 190 * DAY),
            "counted from the latest time seen"
        );
    }

    #[test]
    fn a_period_has_a_range() {
        let (mut keystore, key) = with_key();
        for days in [0, 89, 2561, u64::MAX] {
            let error = keystore.enable_rotation(&key, days, 1).unwrap_err();
            assert_eq!(error.aws_name(), Some("ValidationException"), "{days}");
        }
        for days in [90, 2560] {
            keystore.enable_rotation(&key, days, 1).unwrap();
        }
    }

    #[test]
    fn the_key_that_hushfs_manages_rotates_every_year_and_cannot_be_told_otherwise() {
        let mut keystore = keystore();
        let key = default_key(&keystore);
        let status = keystore.rotation_status(&key).unwrap();
        assert_eq!((status.period_days, status.next), (Some(365), Some(100 + 365 * DAY)));
        assert_eq!(keystore.rotate_due(100 + 365 * DAY), Ok(vec![key.0]));
        let managed = Err(KeystoreError::Managed { key: key.0 });
        assert_eq!(keystore.enable_rotation(&key, 90, 1), managed);
        assert_eq!(keystore.disable_rotation(&key), managed);
        assert_eq!(keystore.rotate_on_demand(&key, 1).map(drop), managed);
    }

    #[test]
    fn a_key_that_is_not_enabled_waits_and_is_rotated_when_it_is() {
        let (mut keystore, key) = with_key();
        keystore.enable_rotation(&key, 90, 1000).unwrap();
        keystore.disable(&key).unwrap();
        assert_eq!(keystore.rotate_due(1000 + 100 * DAY), Ok(vec![]));
        assert_eq!(keystore.rotation_status(&key).unwrap().period_days, Some(90));
        keystore.schedule_deletion(&key, 30, 1).unwrap();
        assert_eq!(keystore.rotation_status(&key).unwrap().period_days, None);
        keystore.cancel_deletion(&key).unwrap();
        keystore.enable(&key).unwrap();
        assert_eq!(keystore.rotate_due(1000 + 101 * DAY), Ok(vec![key.0]));
    }

    #[test]
    fn a_key_is_rotated_on_demand_at_most_25_times() {
        let (mut keystore, key) = with_key();
        let (secret, first) = keystore.generate(&key, &epoch(1)).unwrap();
        keystore.enable_rotation(&key, 365, 1000).unwrap();
        let next = keystore.rotation_status(&key).unwrap().next;
        for number in 1..=25 {
            assert_eq!(keystore.rotate_on_demand(&key, 2000), Ok(MaterialVersion(number + 1)));
        }
        let error = keystore.rotate_on_demand(&key, 2000).unwrap_err();
        assert_eq!(error.aws_name(), Some("LimitExceededException"));
        let status = keystore.rotation_status(&key).unwrap();
        assert_eq!((status.on_demand, status.next), (25, next), "the schedule stays");
        let opened = keystore.unwrap(&key, &epoch(1), &first).unwrap();
        assert_eq!(opened.as_bytes(), secret.as_bytes());
        // Those that come by themselves go on.
        assert_eq!(keystore.rotate_due(1000 + 365 * DAY).unwrap().len(), 2);
        assert_eq!(versions(&keystore, &key), 27);
    }

    #[test]
    fn a_key_that_rotates_by_itself_in_20_minutes_is_not_rotated_on_demand() {
        let (mut keystore, key) = with_key();
        keystore.enable_rotation(&key, 90, 0).unwrap();
        let next = keystore.rotation_status(&key).unwrap().next.unwrap();
        let error = keystore.rotate_on_demand(&key, next - DUE_SECONDS).unwrap_err();
        assert_eq!(error.aws_name(), Some("ConflictException"));
    }

    #[test]
    fn a_remote_key_is_rotated_by_who_holds_it() {
        let (mut keystore, key, _) = with_remote_key();
        let unsupported = KeystoreError::Key(KeyError::Unsupported { key: key.0 });
        assert_eq!(unsupported.aws_name(), Some("UnsupportedOperationException"));
        assert_eq!(keystore.rotate_on_demand(&key, 1), Err(unsupported.clone()));
        assert_eq!(keystore.enable_rotation(&key, 365, 1), Err(unsupported));
        assert_eq!(keystore.rotate_due(1), Ok(vec![]));
        assert_eq!(versions(&keystore, &key), 0);
    }
}
