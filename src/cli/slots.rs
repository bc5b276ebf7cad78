//! `slot` and `passwd`: ways into a keystore.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{
    CliResult,
    args::{PasswdArgs, SlotAddArgs, SlotRemoveArgs, StoreArgs, StoreListArgs},
    epochs::say_epoch,
    error::CliError,
    info::print_json,
    open::{self, Target},
    print, process, say, secret, text,
};
use crate::{
    format::keystore::{Slot, SlotId, SlotKind},
    keystore::{
        KeystoreError, UnlockError,
        local::{Rekeyed, free_label},
    },
    vault::home::Call,
};

/// Lists the slots.
pub fn list(args: &StoreListArgs) -> CliResult {
    let mut store = open::open_store(args.store.vault.as_deref(), &args.store.unlock)?;
    let store = store.keystore_mut()?;
    let (keystore, opened_by) = (store.keystore(), store.slot);
    if args.json {
        return print_json(&json!({
            "keystore": keystore.id().to_hex(),
            "generation": keystore.generation(),
            "opened_by": opened_by.0,
            "slots": keystore.slots().iter().map(slot_json).collect::<Vec<_>>(),
        }));
    }
    let mut out = String::new();
    for slot in keystore.slots() {
        let mark = if slot.id == opened_by { " (opened it now)" } else { "" };
        let _ = writeln!(out, "slot {:3} {}{mark}", slot.id.0, slot_line(slot));
    }
    print(out.as_bytes())
}

/// Says which slots a secret opens, and of those that it might why not.
pub fn test(args: &StoreArgs) -> CliResult {
    let tried = open::try_slots(args.vault.as_deref(), &args.unlock)?;
    let mut out = String::new();
    for (slot, result) in &tried {
        let answer = match result {
            Ok(()) => "opens".to_owned(),
            // The slot stands before it.
            Err(UnlockError::NoMemory { error, .. }) => format!("not tried: {error}"),
            Err(UnlockError::Tpm { error, .. }) => format!("does not open: {error}"),
            Err(UnlockError::Remote { provider, error, .. }) => format!("does not open: {provider}: {error}"),
            Err(error) => format!("does not open: {error}"),
        };
        let _ = writeln!(out, "slot {:3} {}: {answer}", slot.id.0, slot_line(slot));
    }
    print(out.as_bytes())?;
    match tried.iter().any(|(_, result)| result.is_ok()) {
        true => Ok(()),
        false => Err(CliError::NoSlotOpens { tried: tried.len() }),
    }
}

/// Adds a slot.
pub fn add(args: &SlotAddArgs) -> CliResult {
    check_name(args.name.as_deref())?;
    let mut store = open::open_store_for_change(args.store.vault.as_deref(), &args.store.unlock)?;
    let keystore = store.keystore_mut()?;
    let providers = keystore.keystore().providers().clone();
    let fresh = secret::fresh(keystore.path(), &args.new, &args.store.unlock, &providers)?;
    let now = process::now();
    let kind = fresh.kind().to_string();
    let call = Call::new("AddSlot", json!({"slotName": args.name, "kind": kind}));
    fresh.store(|| {
        keystore.change(now, call, |keystore| {
            let name = match &args.name {
                Some(name) => name.clone(),
                None => free_label(keystore.slots(), &kind),
            };
            keystore.add_slot(&name, &fresh.as_new(), now)
        })
    })?;
    Ok(())
}

/// Refuses a name that could be the number of another slot.
pub fn check_name(name: Option<&str>) -> CliResult {
    match name {
        Some(name) if open::slot_number(name).is_some() => Err(CliError::NumberAsName { name: name.to_owned() }),
        _ => Ok(()),
    }
}

/// Removes a slot.
pub fn remove(args: &SlotRemoveArgs) -> CliResult {
    let mut target = open::open_target(args.vault.as_deref(), &args.unlock)?;
    let slot = open::find_slot(target.keystore_mut()?.keystore().slots(), &args.remove)?;
    remove_from(&mut target, slot)
}

/// Removes a slot, and says which it was: what was typed may be the name of one and the number of another.
pub fn remove_from(target: &mut Target, slot: SlotId) -> CliResult {
    let now = process::now();
    let was = find(target, slot)?;
    match target {
        Target::Vault(vault) => {
            let epoch = vault.remove_slot(slot, now)?;
            say_removed(&was);
            say_epoch(epoch);
        }
        Target::Keystore(store) => {
            let call = Call::new("RemoveSlot", json!({"slotId": slot.0}));
            let rekeyed = store
                .keystore_mut()?
                .change(now, call, |keystore| keystore.remove_slot(slot, now))?;
            say_removed(&was);
            say_rekeyed(&rekeyed);
        }
    }
    Ok(())
}

fn say_removed(slot: &Slot) {
    say(format_args!(
        "removed slot {} {:?}, {}",
        slot.id,
        slot.label,
        text::slot_kind(&slot.kind)
    ));
}

fn find(target: &mut Target, slot: SlotId) -> CliResult<Slot> {
    let slots = target.keystore_mut()?.keystore().slots();
    let found = slots.iter().find(|other| other.id == slot).cloned();
    found.ok_or_else(|| KeystoreError::NoSuchSlot { slot }.into())
}

/// Changes the secret of a slot.
pub fn passwd(args: &PasswdArgs) -> CliResult {
    let mut target = open::open_target(args.store.vault.as_deref(), &args.store.unlock)?;
    let keystore = target.keystore_mut()?;
    let slots = keystore.keystore().slots();
    let slot = match &args.change {
        Some(slot) => open::find_slot(slots, slot)?,
        None => slot_to_change(slots, keystore.slot)?,
    };
    let providers = keystore.keystore().providers().clone();
    let fresh = secret::fresh(keystore.path(), &args.new, &args.store.unlock, &providers)?;
    let (now, new) = (process::now(), fresh.as_new());
    let was = find(&mut target, slot)?;
    match &mut target {
        Target::Vault(vault) => {
            let epoch = fresh.store(|| vault.replace_slot(slot, &new, now))?;
            say_epoch(epoch);
        }
        Target::Keystore(store) => {
            let call = Call::new(
                "ReplaceSlot",
                json!({"slotId": slot.0, "kind": fresh.kind().to_string()}),
            );
            let keystore = store.keystore_mut()?;
            let rekeyed =
                fresh.store(|| keystore.change(now, call, |keystore| keystore.replace_slot(slot, &new, now)))?;
            say_rekeyed(&rekeyed);
        }
    }
    let is = find(&mut target, slot)?;
    if is.label != was.label {
        say(format_args!(
            "slot {slot} was called {:?}, and is {:?} now",
            was.label, is.label
        ));
    }
    Ok(())
}

/// Returns the slot that opened the keystore, but who used the recovery key has forgotten a passphrase and wants that changed.
fn slot_to_change(slots: &[Slot], opened_by: SlotId) -> CliResult<SlotId> {
    let slot = slots.iter().find(|slot| slot.id == opened_by);
    if slot.is_none_or(|slot| slot.kind != SlotKind::Recovery) {
        return Ok(opened_by);
    }
    let mut passphrases = slots.iter().filter(|slot| matches!(slot.kind, SlotKind::Passphrase(_)));
    match (passphrases.next(), passphrases.next()) {
        (Some(only), None) => Ok(only.id),
        _ => Err(CliError::WhichSlot),
    }
}

/// Says what follows from someone being shut out of a keystore that vaults share.
fn say_rekeyed(rekeyed: &Rekeyed) {
    say(format_args!(
        "{} with a new version; a vault uses it for new files from its next mount on",
        text::count(rekeyed.keys.len() as u64, "key")
    ));
}

/// Writes a slot for people.
pub fn slot_line(slot: &Slot) -> String {
    format!(
        "{:?}, {}, {}",
        slot.label,
        text::slot_kind(&slot.kind),
        text::time(slot.created)
    )
}

/// Writes a slot for programs.
pub fn slot_json(slot: &Slot) -> Value {
    json!({
        "id": slot.id.0,
        "name": slot.label,
        "kind": slot.kind.word(),
        "created": text::time(slot.created),
    })
}
