//! Looks at the vault header while something else may change the vault: another machine may make epochs, and retire those that are known here.
//!
//! What it finds is not authenticated, for only the keystore has the key of an epoch that came since. It can do no more than have something refused,
//! which whoever can write to the vault can do without it.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::VaultError;
use crate::{
    backing::{Dir, Stamp},
    format::{
        name::VAULT_HEADER,
        vault::{UnverifiedVaultHeader, VAULT_HEADER_MAX},
    },
    ids::{Epoch, VaultId},
};

/// How long the header is taken for what it was when it was last looked at.
const AGE_MAX: Duration = Duration::from_secs(1);

/// The vault header, as something else may have changed it.
#[derive(Debug)]
pub struct HeaderWatch {
    vault: VaultId,
    dir: Dir,
    /// The epochs that the vault had when it was opened.
    known: BTreeSet<Epoch>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    at: Option<Instant>,
    stamp: Option<Stamp>,
    /// The epochs that it had at the last look, if they are not those that are known.
    epochs: Option<BTreeSet<Epoch>>,
}

impl HeaderWatch {
    /// Begins with the epochs that are known of a vault.
    pub fn new(vault: VaultId, dir: Dir, known: BTreeSet<Epoch>) -> Self {
        HeaderWatch {
            vault,
            dir,
            known,
            seen: Mutex::default(),
        }
    }

    /// Refuses to wrap anything with the key of an epoch that the vault has no more.
    ///
    /// # Errors
    ///
    /// [`VaultError::EpochRetired`].
    pub fn check(&self, epoch: Epoch) -> Result<(), VaultError> {
        let seen = self.look();
        match seen.epochs.as_ref().is_some_and(|epochs| !epochs.contains(&epoch)) {
            true => Err(VaultError::EpochRetired(epoch)),
            false => Ok(()),
        }
    }

    /// Looks at the header, unless that was done a moment ago, and logs what has changed.
    pub fn note_missing(&self) {
        drop(self.look());
    }

    fn look(&self) -> parking_lot::MutexGuard<'_, Seen> {
        let mut seen = self.seen.lock();
        if seen.at.is_some_and(|at| at.elapsed() < AGE_MAX) {
            return seen;
        }
        seen.at = Some(Instant::now());
        // What is being replaced is looked at once more.
        let Ok(stamp @ Some(_)) = self.dir.stamp(VAULT_HEADER) else {
            return seen;
        };
        if stamp != seen.stamp
            && let Some(epochs) = self.read()
        {
            let epochs = (epochs != self.known).then_some(epochs);
            if let Some(now) = &epochs
                && epochs != seen.epochs
            {
                self.tell(now);
            }
            (seen.stamp, seen.epochs) = (stamp, epochs);
        }
        seen
    }

    fn read(&self) -> Option<BTreeSet<Epoch>> {
        let bytes = self.dir.read_small(VAULT_HEADER, VAULT_HEADER_MAX).ok()??;
        let header = UnverifiedVaultHeader::decode(&bytes).ok()?;
        let claims = header.claims();
        (claims.vault == self.vault).then(|| claims.epochs.iter().map(|epoch| epoch.number).collect())
    }

    fn tell(&self, now: &BTreeSet<Epoch>) {
        let list = |epochs: Vec<&Epoch>| epochs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let (came, gone) = (
            list(now.difference(&self.known).collect()),
            list(self.known.difference(now).collect()),
        );
        if !came.is_empty() {
            log::warn!("{VAULT_HEADER}: another machine has made epoch {came}: mount the vault again to use its files");
        }
        if !gone.is_empty() {
            log::error!(
                "{VAULT_HEADER}: another machine has retired epoch {gone}: nothing new is stored under it: mount the vault again"
            );
        }
    }
}
