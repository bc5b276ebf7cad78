//! Looks at the vault header while something else may change the vault: another machine may make epochs, and retire those that are known here.
//!
//! What it finds is not authenticated, and can do no more than have something refused, which whoever can write to the vault can do without it. An
//! [`EpochTaker`] authenticates it and takes over what came since.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{EpochKeys, TakenEpoch, VaultError};
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

/// Opens epochs that another machine has made.
pub trait EpochTaker: Debug + Send + Sync {
    /// Returns what is new in a header, if that is authentic and newer than what is known; `stamp` is its file's.
    ///
    /// # Errors
    ///
    /// Why it is not taken over.
    fn take(&self, header: &UnverifiedVaultHeader, stamp: Stamp, known: &EpochKeys) -> Result<Vec<TakenEpoch>, String>;
}

/// The vault header, as something else may have changed it.
#[derive(Debug)]
pub struct HeaderWatch {
    vault: VaultId,
    dir: Dir,
    /// The epochs that the vault had when it was opened.
    opened: BTreeSet<Epoch>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    at: Option<Instant>,
    stamp: Option<Stamp>,
    /// The epochs that it had at the last look, if they are not those that are known.
    epochs: Option<BTreeSet<Epoch>>,
    /// What it had could not be taken over: the keystore may come later.
    is_refused: bool,
}

impl HeaderWatch {
    /// Begins with the epochs that are known of a vault.
    pub fn new(vault: VaultId, dir: Dir, opened: BTreeSet<Epoch>) -> Self {
        HeaderWatch {
            vault,
            dir,
            opened,
            seen: Mutex::default(),
        }
    }

    /// Refuses to wrap anything with the key of an epoch that the vault had no more at the last [look](Self::look).
    ///
    /// # Errors
    ///
    /// [`VaultError::EpochRetired`].
    pub fn check(&self, epoch: Epoch) -> Result<(), VaultError> {
        let seen = self.seen.lock();
        match seen.epochs.as_ref().is_some_and(|epochs| !epochs.contains(&epoch)) {
            true => Err(VaultError::EpochRetired(epoch)),
            false => Ok(()),
        }
    }

    /// Looks at the header, unless that was done a moment ago and it is not to be `at_once`; takes over what it can, and logs what has changed.
    pub fn look(&self, epochs: &EpochKeys, taker: Option<&dyn EpochTaker>, at_once: bool) {
        let mut seen = self.seen.lock();
        if !at_once && seen.at.is_some_and(|at| at.elapsed() < AGE_MAX) {
            return;
        }
        seen.at = Some(Instant::now());
        // What is being replaced is looked at once more.
        let Ok(Some(stamp)) = self.dir.stamp(VAULT_HEADER) else {
            return;
        };
        if seen.stamp == Some(stamp) && !seen.is_refused {
            return;
        }
        let Some(header) = self.read() else { return };
        let now: BTreeSet<Epoch> = header.claims().epochs.iter().map(|epoch| epoch.number).collect();
        let has_new = now.iter().any(|&epoch| epochs.access(epoch).is_err());
        let mut refusal = None;
        if let Some(taker) = taker.filter(|_| has_new) {
            match taker.take(&header, stamp, epochs) {
                Ok(taken) => take_over(epochs, taken),
                Err(why) => refusal = Some(why),
            }
        }
        let taken = epochs.taken_since(0);
        let taken = taken.iter().map(|taken| taken.access.epoch());
        let known: BTreeSet<Epoch> = self.opened.iter().copied().chain(taken).collect();
        let now = (now != known).then_some(now);
        if let Some(now) = &now
            && seen.epochs.as_ref() != Some(now)
        {
            tell(now, &known, refusal.as_deref());
        }
        (seen.stamp, seen.epochs, seen.is_refused) = (Some(stamp), now, refusal.is_some());
    }

    fn read(&self) -> Option<UnverifiedVaultHeader> {
        let bytes = self.dir.read_small(VAULT_HEADER, VAULT_HEADER_MAX).ok()??;
        let header = UnverifiedVaultHeader::decode(&bytes).ok()?;
        (header.claims().vault == self.vault).then_some(header)
    }
}

fn take_over(epochs: &EpochKeys, taken: Vec<TakenEpoch>) {
    for taken in &taken {
        let epoch = taken.access.epoch();
        match taken.is_current {
            true => {
                log::warn!("{VAULT_HEADER}: another machine has made epoch {epoch}, which new files use from now on")
            }
            false => log::warn!("{VAULT_HEADER}: another machine has made epoch {epoch}, whose files can be used"),
        }
    }
    epochs.take_over(taken);
}

fn tell(now: &BTreeSet<Epoch>, known: &BTreeSet<Epoch>, refusal: Option<&str>) {
    let list = |epochs: Vec<&Epoch>| epochs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let (came, gone) = (
        list(now.difference(known).collect()),
        list(known.difference(now).collect()),
    );
    if !came.is_empty() {
        let why = refusal.map_or_else(String::new, |why| format!(" ({why})"));
        log::warn!(
            "{VAULT_HEADER}: another machine has made epoch {came}: mount the vault again to use its files{why}"
        );
    }
    if !gone.is_empty() {
        log::warn!("{VAULT_HEADER}: another machine has retired epoch {gone}: nothing new is stored under it");
    }
}
