//! `init`, `key add`, `key remove`, `key rotate`, `passwd` and `rewrap`: whatever changes the keys of a vault.

use std::path::Path;

use super::{
    CliResult,
    args::{InitArgs, KeyAddArgs, KeyRemoveArgs, PasswdArgs, RewrapArgs, UnlockArgs, VaultArgs},
    error::CliError,
    process,
    progress::Progress,
    secret::{self, Fresh},
    text,
};
use crate::{
    format::{
        keystore::{Slot, SlotId, SlotKind},
        layout::Layout,
    },
    keystore::{LocalKeystore, NewSecret, RecoveryKey, SecretKind},
    vault::{
        home::{ChangeError, CreateError, Lock, OpenVault, VaultHome},
        rewrap::{self, Step},
    },
};

/// The name of the slot for a recovery key.
const RECOVERY_NAME: &str = "recovery key";

/// Makes a vault.
pub fn init(args: &InitArgs) -> CliResult {
    let layout = u32::try_from(args.block_size)
        .ok()
        .and_then(|size| Layout::new(args.suite, size).ok())
        .ok_or(CliError::BlockSize(args.block_size))?;
    // Nobody is to think of a passphrase in vain.
    VaultHome::check_free(&args.vault)?;
    let first = secret::first(&args.vault, &args.secret, &args.kdf)?;
    let now = process::now();
    let failed = |error| CliError::Create(CreateError::Keystore(error));
    let mut keystore = LocalKeystore::create(&first.kind().to_string(), &first.as_new(), now).map_err(failed)?;
    let recovery = args.recovery_key.then(RecoveryKey::generate);
    if let Some(key) = &recovery {
        keystore
            .add_slot(RECOVERY_NAME, &NewSecret::RecoveryKey(key), now)
            .map_err(failed)?;
    }
    VaultHome::create(&args.vault, layout, keystore, now)?;
    match &recovery {
        Some(key) => secret::show_recovery_key(key),
        None => Ok(()),
    }
}

/// Opens a vault for a change of its keys, and completes one that was interrupted.
fn open_for_change(vault: &Path, args: &UnlockArgs) -> CliResult<OpenVault> {
    let home = VaultHome::enter(vault, Lock::Exclusive)?;
    let unlock = secret::unlock(vault, args)?;
    let choice = secret::choice(&home, args.slot.as_deref());
    let mut open = home.open(&unlock, &choice)?;
    if open.finish(process::now())? {
        eprintln!("hushfs: completed a change of keys that was interrupted");
    }
    Ok(open)
}

/// Adds a slot.
pub fn add(args: &KeyAddArgs) -> CliResult {
    let mut open = open_for_change(&args.vault.vault, &args.vault.unlock)?;
    let fresh = secret::fresh(&args.vault.vault, &args.new)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => free_name(open.keystore().slots(), fresh.kind()),
    };
    open.add_slot(&name, &fresh.as_new(), process::now())?;
    fresh.show()
}

/// Returns a name for a slot that none has.
fn free_name(slots: &[Slot], kind: SecretKind) -> String {
    let names = (1..).map(|number| match number {
        1 => kind.to_string(),
        _ => format!("{kind} {number}"),
    });
    let mut free = names.filter(|name| slots.iter().all(|slot| slot.label != *name));
    free.next().expect("there are more numbers than slots")
}

/// Removes a slot.
pub fn remove(args: &KeyRemoveArgs) -> CliResult {
    let mut open = open_for_change(&args.vault, &args.unlock)?;
    let slot = find_slot(&open, &args.remove)?;
    let epoch = open.remove_slot(slot, process::now())?;
    say_epoch(epoch);
    Ok(())
}

/// Makes a new version of the master key, and a new epoch.
pub fn rotate(args: &VaultArgs) -> CliResult {
    let mut open = open_for_change(&args.vault, &args.unlock)?;
    let epoch = open.rotate(process::now())?;
    say_epoch(epoch);
    Ok(())
}

/// Changes the secret of a slot.
pub fn passwd(args: &PasswdArgs) -> CliResult {
    let mut open = open_for_change(&args.vault.vault, &args.vault.unlock)?;
    let slot = match &args.change {
        Some(slot) => find_slot(&open, slot)?,
        None => slot_to_change(&open)?,
    };
    let fresh: Fresh = secret::fresh(&args.vault.vault, &args.new)?;
    let epoch = open.replace_slot(slot, &fresh.as_new(), process::now())?;
    fresh.show()?;
    say_epoch(epoch);
    Ok(())
}

/// Returns the slot that opened the vault, but who used the recovery key has forgotten a passphrase and wants that changed.
fn slot_to_change(open: &OpenVault) -> CliResult<SlotId> {
    let slots = open.keystore().slots();
    let opened_by = slots.iter().find(|slot| slot.id == open.slot);
    if opened_by.is_none_or(|slot| slot.kind != SlotKind::Recovery) {
        return Ok(open.slot);
    }
    let mut passphrases = slots.iter().filter(|slot| matches!(slot.kind, SlotKind::Passphrase(_)));
    match (passphrases.next(), passphrases.next()) {
        (Some(only), None) => Ok(only.id),
        _ => Err(CliError::WhichSlot),
    }
}

/// Finds a slot by its name, or by its number where no slot has that name.
fn find_slot(open: &OpenVault, text: &str) -> CliResult<SlotId> {
    let slots = open.keystore().slots();
    let named = slots.iter().find(|slot| slot.label == text);
    let numbered = || {
        let number = text.parse().ok().map(SlotId);
        slots.iter().find(|slot| Some(slot.id) == number)
    };
    let found = named.or_else(numbered);
    found
        .map(|slot| slot.id)
        .ok_or_else(|| CliError::NoSuchSlot { slot: text.to_owned() })
}

fn say_epoch(epoch: crate::ids::Epoch) {
    eprintln!("hushfs: new files use epoch {epoch}; `hushfs rewrap` moves the others to it");
}

/// Moves all headers to the current epoch.
pub fn rewrap(args: &RewrapArgs) -> CliResult {
    let mut open = open_for_change(&args.vault.vault, &args.vault.unlock)?;
    process::raise_descriptor_limit();
    let mut progress = None;
    let outcome = rewrap::rewrap(&open.vault, open.home.dir(), &mut |step| {
        match step {
            Step::Counted(total) => progress = Some(Progress::items("headers", total)),
            Step::Examined => progress.iter().for_each(|progress| progress.advance(1)),
            Step::Written | Step::Synced | Step::Renamed => {}
        }
        Ok(())
    });
    drop(progress);
    let outcome = outcome.map_err(|source| CliError::Rewrap {
        vault: args.vault.vault.clone(),
        source,
    })?;
    for failure in &outcome.failed {
        let problem = text::without_numbers(&failure.error.to_string());
        eprintln!("hushfs: {}: {problem}", text::printable(failure.disk_path.as_bytes()));
    }
    eprintln!(
        "hushfs: {} moved to epoch {}, {} of it already",
        text::count(outcome.rewrapped, "header"),
        open.header().current,
        outcome.current
    );
    if !outcome.is_complete() {
        return Err(CliError::NotRewrapped {
            count: outcome.failed.len(),
        });
    }
    if args.retire {
        let retired = open
            .retire_epochs_except(&outcome.used)
            .map_err(|error: ChangeError| CliError::Change(error))?;
        eprintln!("hushfs: {} retired", text::count(retired.len() as u64, "epoch"));
    }
    Ok(())
}
