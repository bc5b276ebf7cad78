//! `info`: what a vault says of itself, before anything of it was authenticated.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{
    CliResult,
    args::InfoArgs,
    print, sealed,
    slots::{slot_json, slot_line},
    text,
};
use crate::{format::FORMAT_VERSION, vault::home::VaultHome};

/// Prints what the vault's files say. Nothing is authenticated, and nothing is locked: a mounted vault can be asked too.
pub fn info(args: &InfoArgs) -> CliResult {
    if args.vault.is_file() {
        return sealed::info(args);
    }
    let home = VaultHome::look(&args.vault)?;
    let header = home.claims();
    let slots = home.claimed_slots();
    let keystore = if home.keystore().is_some() {
        "embedded"
    } else {
        "elsewhere"
    };
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
            "keystore": keystore,
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
        ("keystore", keystore.to_owned()),
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

/// Prints a value, indented, on lines of its own.
pub fn print_json(value: &Value) -> CliResult {
    print(format!("{value:#}\n").as_bytes())
}
