//! What a local keystore knows of the vaults that use it.

use serde::{Deserialize, Serialize};

use super::{KeystoreError, LocalKeystore, keys::SECONDS_PER_DAY};
use crate::{
    format::keystore::{FileCount, VAULT_KEYS_MAX, VAULT_PATH_LEN_MAX, VAULTS_MAX, VaultKey, VaultRecord},
    ids::{Epoch, KeyId, NamesMark, VaultId},
    keystore::{custodian::KeyHandle, policy::action},
};

/// What a vault tells its keystore of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultUse {
    /// Where it is, if the keystore is elsewhere.
    pub path: Option<String>,
    /// The keys that its epochs are wrapped under, by rising id.
    pub keys: Vec<VaultKey>,
    /// How many files it has, if they were counted just now.
    pub files: Option<u64>,
}

/// What a vault shows of itself when it is opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultLook {
    /// The mark of its names root, which is one for the vault's life.
    pub names: NamesMark,
    /// Where it is, if the keystore is elsewhere.
    pub path: Option<String>,
}

/// Whether a vault is the one that the keystore knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// It is.
    Known,
    /// Nothing is noted that would tell it from another.
    New,
    /// The vault with this id has another names root.
    OtherNames,
    /// Nothing is noted of it, and this vault was last seen in its place.
    InPlaceOf(VaultId),
}

impl LocalKeystore {
    /// Tells whether a vault is the one that the keystore knows by its id.
    ///
    /// Who may have data keys made, of whatever key, can write a vault header that authenticates; but not one with the names root of a vault that they
    /// cannot read.
    pub fn standing(&self, vault: VaultId, look: &VaultLook) -> Standing {
        match self.body.names_mark(vault) {
            Some(names) if names == look.names => Standing::Known,
            Some(_) => Standing::OtherNames,
            None if self.vault_index(vault).is_ok() => Standing::New,
            None => {
                let other = look.path.as_deref().and_then(|path| self.other_at(vault, path));
                other.map_or(Standing::New, Standing::InPlaceOf)
            }
        }
    }

    /// Returns another vault that was last seen at a path where this one was not.
    pub fn other_at(&self, vault: VaultId, path: &str) -> Option<VaultId> {
        let mut there = self.body.vaults.iter().filter(|record| record.path == path);
        let first = there.next()?.vault;
        let is_its_own = first == vault || there.any(|record| record.vault == vault);
        (!is_its_own).then_some(first)
    }

    /// Notes what a vault is to be known by, the first time. Tells whether it was.
    ///
    /// # Errors
    ///
    /// [`KeystoreError::OtherVault`] when something else is noted.
    pub fn note_names(&mut self, vault: VaultId, names: NamesMark) -> Result<bool, KeystoreError> {
        match self.body.names_mark(vault) {
            None => {
                self.body.set_names_mark(vault, names);
                Ok(true)
            }
            Some(noted) if noted == names => Ok(false),
            Some(_) => Err(KeystoreError::OtherVault { vault }),
        }
    }

    /// Returns the lowest number that a vault's current epoch may have, if the keystore has a record of the vault.
    pub fn epoch_floor(&self, vault: VaultId) -> Option<Epoch> {
        let at = self.vault_index(vault).ok()?;
        Some(self.body.vaults[at].lowest_epoch)
    }

    /// Raises that number; it never falls. Tells whether it changed, and with it whether the keystore must be stored.
    ///
    /// Whoever makes an epoch the current one stores the vault header first and raises this after: the other way round, a crash in
    /// between would leave a vault that cannot be opened.
    ///
    /// # Errors
    ///
    /// [`KeystoreError::TooManyVaults`] when there is no room for another vault.
    pub fn raise_epoch_floor(&mut self, vault: VaultId, epoch: Epoch) -> Result<bool, KeystoreError> {
        let vaults = &mut self.body.vaults;
        match vaults.binary_search_by_key(&vault, |record| record.vault) {
            Ok(at) if vaults[at].lowest_epoch >= epoch => Ok(false),
            Ok(at) => {
                vaults[at].lowest_epoch = epoch;
                Ok(true)
            }
            Err(_) if vaults.len() >= VAULTS_MAX => Err(KeystoreError::TooManyVaults { vault }),
            Err(at) => {
                vaults.insert(at, VaultRecord::new(vault, epoch));
                Ok(true)
            }
        }
    }

    /// Keeps what a vault that has a record says of itself. Tells whether that is news worth a store of its own: the day of the last use,
    /// or anything else.
    pub fn note_vault(&mut self, vault: VaultId, vault_use: VaultUse, now: u64) -> bool {
        let time = self.clock(now);
        let Ok(at) = self.vault_index(vault) else { return false };
        let record = &mut self.body.vaults[at];
        let mut noted = record.clone();
        let path = vault_use.path.filter(|path| path.len() <= VAULT_PATH_LEN_MAX);
        noted.path = path.unwrap_or_default();
        noted.keys = vault_use.keys;
        // It may come from a client of an agent, who may send anything: what the file cannot have is not kept.
        noted.keys.sort_by_key(|key| key.key);
        noted.keys.dedup_by_key(|key| key.key);
        noted.keys.truncate(VAULT_KEYS_MAX);
        if let Some(count) = vault_use.files {
            noted.files = Some(FileCount { count, time });
        }
        let seen_today = record
            .last_use
            .is_some_and(|last| time < last.saturating_add(SECONDS_PER_DAY));
        let is_news = noted != *record || !seen_today;
        noted.last_use = Some(time);
        *record = noted;
        is_news
    }

    /// Returns the vaults that are known to need a key.
    ///
    /// # Errors
    ///
    /// As for [`describe`](Self::describe).
    pub fn usage(&self, key: &KeyHandle) -> Result<Vec<(&VaultRecord, VaultKey)>, KeystoreError> {
        let id: KeyId = self.consult(key, action::GET_KEY_LAST_USAGE)?.id;
        let needs = |record: &'_ VaultRecord| record.keys.iter().find(|key| key.key == id).copied();
        let of_key = self
            .body
            .vaults
            .iter()
            .filter_map(|record| Some((record, needs(record)?)));
        Ok(of_key.collect())
    }

    fn vault_index(&self, vault: VaultId) -> Result<usize, usize> {
        self.body.vaults.binary_search_by_key(&vault, |record| record.vault)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{VAULT, default_key, keystore, unlock},
        *,
    };

    #[test]
    fn an_epoch_floor_never_falls() {
        let mut keystore = keystore();
        assert_eq!(keystore.epoch_floor(VAULT), None);
        assert_eq!(keystore.raise_epoch_floor(VAULT, Epoch(2)), Ok(true));
        assert_eq!(keystore.raise_epoch_floor(VaultId([1; 16]), Epoch(9)), Ok(true));
        assert_eq!(keystore.raise_epoch_floor(VAULT, Epoch(1)), Ok(false));
        assert_eq!(keystore.raise_epoch_floor(VAULT, Epoch(2)), Ok(false));
        assert_eq!(keystore.raise_epoch_floor(VAULT, Epoch(3)), Ok(true));
        let bytes = keystore.encode(1).unwrap();
        assert_eq!(unlock(&bytes, 1).unwrap().epoch_floor(VAULT), Some(Epoch(3)));
    }

    const NAMES: NamesMark = NamesMark([5; 16]);

    fn look(names: NamesMark, path: &str) -> VaultLook {
        VaultLook {
            names,
            path: Some(path.to_owned()),
        }
    }

    #[test]
    fn a_vault_is_known_by_its_names_root_from_its_first_use_on() {
        let mut keystore = keystore();
        let other = NamesMark([6; 16]);
        assert_eq!(keystore.standing(VAULT, &look(other, "/srv/vault")), Standing::New);
        keystore.raise_epoch_floor(VAULT, Epoch(1)).unwrap();
        assert_eq!(keystore.standing(VAULT, &look(other, "/srv/vault")), Standing::New);
        assert_eq!(keystore.note_names(VAULT, NAMES), Ok(true));
        assert_eq!(keystore.note_names(VaultId([1; 16]), other), Ok(true));
        assert_eq!(keystore.note_names(VAULT, NAMES), Ok(false));
        let refused = KeystoreError::OtherVault { vault: VAULT };
        assert_eq!(keystore.note_names(VAULT, other), Err(refused));
        let bytes = keystore.encode(1).unwrap();
        let keystore = unlock(&bytes, 1).unwrap();
        assert_eq!(keystore.standing(VAULT, &look(NAMES, "/else")), Standing::Known);
        assert_eq!(
            keystore.standing(VAULT, &look(other, "/srv/vault")),
            Standing::OtherNames
        );
    }

    #[test]
    fn a_vault_that_is_not_known_does_not_take_the_place_of_one_that_is() {
        let mut keystore = keystore();
        let key = default_key(&keystore);
        keystore.raise_epoch_floor(VAULT, Epoch(1)).unwrap();
        keystore.note_names(VAULT, NAMES).unwrap();
        keystore.note_vault(VAULT, needs(key.0, 1), 1000);
        let stranger = VaultId([9; 16]);
        let standing = |keystore: &LocalKeystore, path| keystore.standing(stranger, &look(NAMES, path));
        assert_eq!(standing(&keystore, "/srv/vault"), Standing::InPlaceOf(VAULT));
        assert_eq!(standing(&keystore, "/srv/other"), Standing::New);
        // Used once elsewhere it is known, and may be moved here.
        keystore.raise_epoch_floor(stranger, Epoch(1)).unwrap();
        keystore.note_names(stranger, NAMES).unwrap();
        assert_eq!(standing(&keystore, "/srv/vault"), Standing::Known);
        assert_eq!(keystore.other_at(stranger, "/srv/vault"), Some(VAULT));
        keystore.note_vault(stranger, needs(key.0, 1), 1000);
        assert_eq!(keystore.other_at(stranger, "/srv/vault"), None);
        assert_eq!(keystore.other_at(VAULT, "/srv/vault"), None);
    }

    #[test]
    fn records_of_vaults_have_a_limit() {
        let mut keystore = keystore();
        let vault = |i: usize| VaultId(std::array::from_fn(|at| if at < 8 { i.to_be_bytes()[at] } else { 0 }));
        for i in 0..VAULTS_MAX {
            keystore.raise_epoch_floor(vault(i), Epoch(1)).unwrap();
            keystore.note_names(vault(i), NAMES).unwrap();
        }
        let vault = vault(VAULTS_MAX);
        assert_eq!(
            keystore.raise_epoch_floor(vault, Epoch(1)),
            Err(KeystoreError::TooManyVaults { vault })
        );
        assert!(keystore.encode(1).is_ok());
    }

    fn needs(key: KeyId, epochs: u32) -> VaultUse {
        VaultUse {
            path: Some("/srv/vault".into()),
            keys: vec![VaultKey {
                key,
                epochs,
                alone: epochs,
            }],
            files: None,
        }
    }

    #[test]
    fn news_of_a_vault_are_kept_and_its_use_once_a_day() {
        let mut keystore = keystore();
        let key = default_key(&keystore);
        assert!(!keystore.note_vault(VAULT, needs(key.0, 1), 1000), "no record, no news");
        keystore.raise_epoch_floor(VAULT, Epoch(1)).unwrap();
        assert!(keystore.note_vault(VAULT, needs(key.0, 1), 1000));
        assert!(!keystore.note_vault(VAULT, needs(key.0, 1), 2000));
        assert!(keystore.note_vault(VAULT, needs(key.0, 2), 2000));
        assert!(keystore.note_vault(VAULT, needs(key.0, 2), 2000 + SECONDS_PER_DAY));
        let counted = VaultUse {
            files: Some(12),
            ..needs(key.0, 2)
        };
        assert!(keystore.note_vault(VAULT, counted, 100_000));
        let bytes = keystore.encode(100_000).unwrap();
        let keystore = unlock(&bytes, 1).unwrap();
        let usage = keystore.usage(&key).unwrap();
        let (record, need) = usage[0];
        assert_eq!((record.vault, record.path.as_str()), (VAULT, "/srv/vault"));
        assert_eq!((need.epochs, need.alone), (2, 2));
        assert_eq!(record.files.map(|files| files.count), Some(12));
        assert_eq!(record.last_use, Some(100_000));
    }

    #[test]
    fn keys_in_any_order_and_number_can_be_stored() {
        let mut keystore = keystore();
        keystore.raise_epoch_floor(VAULT, Epoch(1)).unwrap();
        let need = |byte: u8| VaultKey {
            key: KeyId([byte; 16]),
            epochs: 1,
            alone: 1,
        };
        let hostile = VaultUse {
            keys: [9, 3, 3, 9].into_iter().chain(20..60).map(need).collect(),
            ..VaultUse::default()
        };
        keystore.note_vault(VAULT, hostile, 1);
        assert_eq!(keystore.vaults()[0].keys.len(), VAULT_KEYS_MAX);
        assert!(keystore.encode(1).is_ok());
    }

    #[test]
    fn a_path_that_is_too_long_is_not_kept() {
        let mut keystore = keystore();
        keystore.raise_epoch_floor(VAULT, Epoch(1)).unwrap();
        let long = VaultUse {
            path: Some("x".repeat(VAULT_PATH_LEN_MAX + 1)),
            ..VaultUse::default()
        };
        keystore.note_vault(VAULT, long, 1);
        assert_eq!(keystore.vaults()[0].path, "");
        assert!(keystore.encode(1).is_ok());
    }
}
