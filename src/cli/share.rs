//! `recipient` and `share`: vaults for others, without a secret in common.

use std::{fmt::Write as _, io, path::Path};

use serde_json::json;
use zeroize::Zeroizing;

use super::{
    CliResult,
    args::{RecipientGenerateArgs, RecipientShowArgs, ShareAddArgs, ShareRemoveArgs, StoreArgs},
    devices,
    error::CliError,
    open, print, process, say,
    sealed::output::make_private,
    secret, slots,
};
use crate::{
    crypto::recipient::Recipient,
    format::keystore::{Slot, SlotId, SlotKind},
    keystore::{
        NewSecret,
        identity::{Identity, IdentityError, RECIPIENT_PREFIX, parse_recipient, recipient_to_text},
        local::free_label,
    },
    vault::home::Call,
};

/// Makes an identity, and prints whom others are to share with.
pub fn generate(args: &RecipientGenerateArgs) -> CliResult {
    let exists = || CliError::Exists {
        path: args.identity.clone(),
    };
    // Nobody is to think of a passphrase in vain.
    if args.identity.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let identity = Identity::generate();
    let sources = &args.passphrase;
    let is_locked = args.lock || sources.is_given();
    let text = match is_locked {
        true => {
            let (passphrase, hardness) = secret::new_passphrase(&args.identity, sources, &args.kdf)?;
            let locked = identity.lock(&passphrase, hardness);
            Zeroizing::new(locked.map_err(failed(&args.identity))?.to_text())
        }
        false => identity.to_text(),
    };
    let comment = b"# hushfs identity: whoever has it opens what is shared with it\n";
    // Durable before anyone shares with it.
    make_private(&args.identity, &[comment, text.as_bytes(), b"\n"]).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => exists(),
        _ => CliError::File {
            path: args.identity.clone(),
            source,
        },
    })?;
    show_recipient(&identity)
}

/// Prints whom others are to share with.
pub fn show(args: &RecipientShowArgs) -> CliResult {
    let passphrase = || secret::passphrase(&args.identity, &args.passphrase);
    show_recipient(&devices::read_identity(&args.identity, passphrase)?)
}

fn show_recipient(identity: &Identity) -> CliResult {
    print(format!("{}\n", recipient_to_text(identity.recipient())).as_bytes())
}

/// Adds a slot for a recipient, and prints the code they are to be told.
pub fn add(args: &ShareAddArgs) -> CliResult {
    slots::check_name(args.name.as_deref())?;
    let recipient = read_recipient(&args.recipient)?;
    let mut store = open::open_store_for_change(args.vault.as_deref(), &args.unlock)?;
    let now = process::now();
    let call = Call::new("AddSlot", json!({"slotName": args.name, "kind": "recipient"}));
    let code = store.keystore_mut()?.change(now, call, |keystore| {
        let name = match &args.name {
            Some(name) => name.clone(),
            None => free_label(keystore.slots(), "recipient"),
        };
        let slot = keystore.add_slot(&name, &NewSecret::Recipient(&recipient), now)?;
        keystore.share_code(slot)
    })?;
    say(format_args!(
        "shared; tell them this code, by another way than the vault itself:"
    ));
    print(format!("{code}\n").as_bytes())
}

/// Removes the slots of a recipient, and shuts them out from what is written later.
pub fn remove(args: &ShareRemoveArgs) -> CliResult {
    let mut target = open::open_target(args.vault.as_deref(), &args.unlock)?;
    let of_recipient = find(target.keystore_mut()?.keystore().slots(), &args.recipient)?;
    for slot in of_recipient {
        slots::remove_from(&mut target, slot)?;
    }
    Ok(())
}

/// Lists who a vault is shared with.
pub fn list(args: &StoreArgs) -> CliResult {
    let mut store = open::open_store(args.vault.as_deref(), &args.unlock)?;
    let keystore = store.keystore_mut()?.keystore();
    let mut out = String::new();
    for slot in keystore.slots().iter().filter(|slot| is_recipient(slot)) {
        let code = keystore.share_code(slot.id)?;
        let _ = writeln!(
            out,
            "slot {:3} {}, share code {code}",
            slot.id.0,
            slots::slot_line(slot)
        );
    }
    print(out.as_bytes())
}

fn is_recipient(slot: &Slot) -> bool {
    matches!(slot.kind, SlotKind::Recipient { .. })
}

/// Finds the slots of a recipient: by its text, a file with it, or the name or number of a slot.
fn find(slots: &[Slot], text: &str) -> CliResult<Vec<SlotId>> {
    let shared: Vec<Slot> = slots.iter().filter(|slot| is_recipient(slot)).cloned().collect();
    if let Ok(slot) = open::find_slot(&shared, text) {
        return Ok(vec![slot]);
    }
    let none = || CliError::NotShared { who: text.to_owned() };
    let wanted = match read_recipient(text) {
        Err(CliError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Err(none()),
        result => result?,
    };
    let is_theirs =
        |slot: &&Slot| matches!(&slot.kind, SlotKind::Recipient { recipient, .. } if recipient == wanted.as_bytes());
    let found: Vec<_> = shared.iter().filter(is_theirs).map(|slot| slot.id).collect();
    match found.is_empty() {
        true => Err(none()),
        false => Ok(found),
    }
}

/// Reads a recipient: the text itself, or a file with it.
pub fn read_recipient(text: &str) -> CliResult<Recipient> {
    if text.trim_start().starts_with(RECIPIENT_PREFIX) {
        return parse_recipient(text.as_bytes()).map_err(failed(Path::new("RECIPIENT")));
    }
    let path = Path::new(text);
    parse_recipient(&devices::read_small(path)?).map_err(failed(path))
}

fn failed(path: &Path) -> impl Fn(IdentityError) -> CliError {
    move |error| CliError::Identity {
        path: path.to_owned(),
        error,
    }
}
