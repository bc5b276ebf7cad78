//! `info` and `key list`: what a vault says of itself, before and after it was authenticated.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{
    CliResult,
    args::{InfoArgs, KeyListArgs},
    print, secret, text,
};
use crate::{
    format::{
        FORMAT_VERSION,
        keystore::{KeyRecord, KeyState, Manager, Slot},
    },
    vault::home::{Lock, VaultHome},
};

/// Prints what the vault's files say. Nothing is authenticated, and nothing is locked: a mounted vault can be asked too.
pub fn info(args: &InfoArgs) -> CliResult {
    let home = VaultHome::enter(&args.vault, Lock::Unlocked)?;
    let header = home.claims();
    let slots = home.claimed_slots();
    let layout = header.layout().ok();
    let suite = layout.map_or("unknown", |layout| layout.suite().name());
    let block_size = layout.map_or(0, |layout| layout.block_size());
    if args.json {
        let epochs: Vec<Value> = header
            .epochs
            .iter()
            .map(|epoch| json!({"number": epoch.number.0, "created": text::time(epoch.created)}))
            .collect();
        return print_json(&json!({
            "authenticated": false,
            "vault": header.vault.to_hex(),
            "created": text::time(header.created),
            "format": FORMAT_VERSION,
            "suite": suite,
            "block_size": block_size,
            "current_epoch": header.current.0,
            "epochs": epochs,
            "keystore": "embedded",
            "slots": slots.iter().map(slot_json).collect::<Vec<_>>(),
        }));
    }
    let mut out = String::new();
    let rows = [
        ("vault", header.vault.to_hex()),
        ("created", text::time(header.created)),
        ("format", FORMAT_VERSION.to_string()),
        ("suite", suite.to_owned()),
        ("block size", block_size.to_string()),
        (
            "epoch",
            format!(
                "{} of {}",
                header.current,
                text::count(header.epochs.len() as u64, "epoch")
            ),
        ),
        ("keystore", "embedded".to_owned()),
    ];
    for (name, value) in rows {
        let _ = writeln!(out, "{name:11} {value}");
    }
    for slot in &slots {
        let _ = writeln!(out, "{:11} {}", format!("slot {}", slot.id), slot_line(slot));
    }
    out.push_str("nothing of this is authenticated: whoever can write to the vault can make it say anything\n");
    print(out.as_bytes())
}

/// Prints the slots and keys of a keystore that was opened.
pub fn list_keys(args: &KeyListArgs) -> CliResult {
    let vault = &args.vault;
    let home = VaultHome::enter(&vault.vault, Lock::Unlocked)?;
    let unlock = secret::unlock(&vault.vault, &vault.unlock)?;
    let choice = secret::choice(&home, vault.unlock.slot.as_deref());
    let open = home.open(&unlock, &choice)?;
    let keystore = open.keystore();
    let aliases = |key: &KeyRecord| -> Vec<String> {
        let of_key = keystore.aliases().iter().filter(|alias| alias.key == key.id);
        of_key.map(|alias| alias.name.clone()).collect()
    };
    if args.json {
        let keys: Vec<Value> = keystore
            .keys()
            .iter()
            .map(|key| {
                json!({
                    "id": key.id.to_hex(),
                    "aliases": aliases(key),
                    "manager": manager(key),
                    "state": state(key),
                    "created": text::time(key.created),
                    "version": key.materials.last().map(|material| material.version.0),
                })
            })
            .collect();
        return print_json(&json!({
            "keystore": keystore.id().to_hex(),
            "generation": keystore.generation(),
            "opened_by": open.slot.0,
            "slots": keystore.slots().iter().map(slot_json).collect::<Vec<_>>(),
            "keys": keys,
            "current_epoch": open.header().current.0,
        }));
    }
    let mut out = String::new();
    for slot in keystore.slots() {
        let mark = if slot.id == open.slot { " (opened it now)" } else { "" };
        let _ = writeln!(out, "slot {:3} {}{mark}", slot.id.0, slot_line(slot));
    }
    for key in keystore.keys() {
        let versions = text::count(key.materials.len() as u64, "version");
        let _ = writeln!(
            out,
            "key {} {}, {versions}, {}",
            key.id,
            state(key),
            aliases(key).join(" ")
        );
    }
    print(out.as_bytes())
}

fn slot_line(slot: &Slot) -> String {
    format!(
        "{:?}, {}, {}",
        slot.label,
        text::slot_kind(slot),
        text::time(slot.created)
    )
}

fn slot_json(slot: &Slot) -> Value {
    json!({
        "id": slot.id.0,
        "name": slot.label,
        "kind": text::slot_kind_word(slot),
        "created": text::time(slot.created),
    })
}

fn state(key: &KeyRecord) -> &'static str {
    match key.state {
        KeyState::Enabled => "enabled",
        KeyState::Disabled => "disabled",
        KeyState::PendingDeletion { .. } => "pending deletion",
    }
}

fn manager(key: &KeyRecord) -> &'static str {
    match key.manager {
        Manager::Customer => "customer",
        Manager::Hushfs => "hushfs",
    }
}

/// Prints a value, indented, on lines of its own.
pub fn print_json(value: &Value) -> CliResult {
    print(format!("{value:#}\n").as_bytes())
}
