//! How a command finds a vault or a keystore, and opens it with what the user offers.

use std::path::{Path, PathBuf};

use super::{
    CliResult,
    args::{CustomerArgs, UnlockArgs, VaultArgs},
    devices,
    error::CliError,
    process, say,
    secret::{self, Asked},
    text,
};
use crate::{
    format::keystore::{Slot, SlotId},
    keystore::{AgentClient, Providers, SlotChoice, Unlock, UnlockError},
    vault::home::{ChangeError, KeySource, KeystoreHome, Lock, OpenError, OpenKeystore, OpenVault, VaultHome},
};

/// How many seconds a clock may be behind the latest time that a keystore has seen, until that is told.
const CLOCK_AHEAD_MAX: u64 = 24 * 60 * 60;

/// A keystore that is open, here or by an agent, and the vault it was found by.
pub struct Store {
    /// The vault, not open.
    pub vault: Option<VaultHome>,
    /// The keystore.
    pub keys: KeySource,
}

impl Store {
    /// Returns the keystore, which must be open here: for its slots.
    pub fn keystore_mut(&mut self) -> CliResult<&mut OpenKeystore> {
        Ok(self.keys.keystore_mut()?)
    }
}

/// What a change of slots is made to.
pub enum Target {
    /// A vault with its keystore.
    Vault(Box<OpenVault>),
    /// A keystore alone.
    Keystore(Box<Store>),
}

impl Target {
    /// Returns the keystore.
    pub fn keystore_mut(&mut self) -> CliResult<&mut OpenKeystore> {
        match self {
            Target::Vault(vault) => Ok(vault.keys_mut().keystore_mut()?),
            Target::Keystore(store) => store.keystore_mut(),
        }
    }
}

/// Returns where a keystore is that nobody has named: $XDG_CONFIG_HOME/hushfs/keystore.
pub fn default_keystore() -> Option<PathBuf> {
    // As the XDG Base Directory Specification has it, a relative path does not count.
    let absolute = |variable| {
        std::env::var_os(variable)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let config = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(config.join("hushfs/keystore"))
}

/// Enters a vault with the keystore that was named, or is in it, or is the default one; with none if there is an agent.
pub fn enter_vault(vault: &Path, lock: Lock, args: &UnlockArgs) -> CliResult<VaultHome> {
    if args.agent.is_some() {
        return Ok(VaultHome::enter_for_agent(vault, lock)?);
    }
    if let Some(path) = &args.keystore {
        let keystore = KeystoreHome::enter(path)?;
        return Ok(VaultHome::enter_with(vault, lock, Some(keystore))?);
    }
    match (VaultHome::enter(vault, lock), default_keystore()) {
        (Err(OpenError::KeystoreMissing { .. }), Some(path)) if path.is_dir() => {
            let keystore = KeystoreHome::enter(&path)?;
            Ok(VaultHome::enter_with(vault, lock, Some(keystore))?)
        }
        (entered, _) => Ok(entered?),
    }
}

/// Opens a vault, asking for a secret if need be.
pub fn open_vault(args: &VaultArgs, lock: Lock) -> CliResult<OpenVault> {
    open_entered(
        enter_vault(&args.vault, lock, &args.unlock)?,
        &args.unlock,
        &args.customer,
    )
}

/// Opens a vault for a look at it; tells whether something else may be writing to it meanwhile.
pub fn open_even_in_use(args: &VaultArgs) -> CliResult<(OpenVault, bool)> {
    let entered = match enter_vault(&args.vault, Lock::Shared, &args.unlock) {
        Err(CliError::Open(OpenError::InUse { .. })) => (enter_vault(&args.vault, Lock::Unlocked, &args.unlock)?, true),
        entered => (entered?, false),
    };
    let (home, in_use) = entered;
    let open = open_entered(home, &args.unlock, &args.customer)?;
    if !in_use {
        open.home.recover(&open.vault, Lock::Shared, false)?;
    }
    Ok((open, in_use))
}

/// Opens a vault that was entered.
pub fn open_entered(mut home: VaultHome, args: &UnlockArgs, customer: &CustomerArgs) -> CliResult<OpenVault> {
    if let Some(key) = secret::customer_key(home.path(), customer)? {
        home.set_customer_key(key);
    }
    let keys = match ask_agent(args)? {
        Some(agent) => agent,
        None => open_keystore_of(&mut home, args)?.into(),
    };
    Ok(home.open_with(keys)?)
}

/// Finds the agent that was named.
fn ask_agent(args: &UnlockArgs) -> CliResult<Option<KeySource>> {
    let agent = args.agent.as_deref().map(AgentClient::connect).transpose();
    Ok(agent.map_err(ChangeError::from)?.map(KeySource::from))
}

/// Opens a keystore of its own, for an agent.
pub fn open_for_agent(args: &UnlockArgs) -> CliResult<OpenKeystore> {
    match enter_store(None, Lock::Unlocked, args)?.keys {
        KeySource::Keystore(keystore) => Ok(*keystore),
        KeySource::Agent(_) => Err(ChangeError::HeldByAgent.into()),
    }
}

fn open_keystore_of(home: &mut VaultHome, args: &UnlockArgs) -> CliResult<OpenKeystore> {
    let path = home.keystore().map_or(home.path(), KeystoreHome::path).to_owned();
    let slots = home.claimed_slots();
    open_keystore(&path, &slots, args, |unlock, choice, providers| {
        home.set_providers(providers);
        home.open_keystore(unlock, choice)
    })
}

/// Opens a keystore by `open`, with what the user offers and who holds keys elsewhere.
fn open_keystore(
    path: &Path,
    claimed: &[Slot],
    args: &UnlockArgs,
    open: impl FnOnce(&Unlock, &SlotChoice, Providers) -> Result<OpenKeystore, OpenError>,
) -> CliResult<OpenKeystore> {
    let providers = devices::providers(&args.devices)?;
    let asked = Asked {
        path,
        claimed: &claimed.iter().map(|slot| &slot.kind).collect::<Vec<_>>(),
        providers: &providers,
    };
    let unlock = secret::unlock(&asked, args)?;
    let opened = open(&unlock, &choice(claimed, args.slot.as_deref()), providers)?;
    warn_of_clock(path, opened.keystore().latest_time(), process::now());
    if let Unlock::Identity(identity) = &unlock {
        let keystore = opened.keystore();
        // It was the first slot of theirs that opened, and the code may be that of another.
        let codes = match &args.slot {
            Some(_) => vec![keystore.share_code(opened.slot)?],
            None => keystore.share_codes_of(identity.recipient())?,
        };
        devices::check_share_code(&args.devices, &codes)?;
    }
    Ok(opened)
}

/// Warns where times are reckoned from one that has not come yet: nothing sets it back, and nobody would know.
fn warn_of_clock(path: &Path, latest: u64, now: u64) {
    if latest > now.saturating_add(CLOCK_AHEAD_MAX) {
        log::warn!(
            "{}: this keystore was stored when the clock said {}, which has not come yet: until then no key rotates by itself (`hushfs key rotate` does it), and a key that is deleted stays until days after that. If the clock is right now, it was wrong then",
            path.display(),
            text::time(latest)
        );
    }
}

/// Tries what the user offers on each slot of a keystore.
pub fn try_slots(vault: Option<&Path>, args: &UnlockArgs) -> CliResult<Vec<(Slot, Result<(), UnlockError>)>> {
    let home = find_keystore(vault, args)?;
    let mut slots = home.claimed_slots();
    match choice(&slots, args.slot.as_deref()) {
        SlotChoice::Any => {}
        SlotChoice::Id(id) => slots.retain(|slot| slot.id == id),
        SlotChoice::Label(label) => slots.retain(|slot| slot.label == label),
    }
    let asked = Asked {
        path: home.path(),
        claimed: &slots.iter().map(|slot| &slot.kind).collect::<Vec<_>>(),
        providers: &devices::providers(&args.devices)?,
    };
    let unlock = secret::unlock(&asked, args)?;
    let tried = home.try_each(&unlock)?;
    let slot = |id| slots.iter().find(|slot| slot.id == id).cloned();
    Ok(tried
        .into_iter()
        .filter_map(|(id, result)| Some((slot(id)?, result)))
        .collect())
}

/// Finds a keystore, and does not open it.
pub fn find_keystore(vault: Option<&Path>, args: &UnlockArgs) -> CliResult<KeystoreHome> {
    if args.agent.is_some() {
        return Err(ChangeError::HeldByAgent.into());
    }
    match vault {
        Some(vault) => Ok(enter_vault(vault, Lock::Unlocked, args)?.into_keystore()?),
        None => enter_keystore(args),
    }
}

fn enter_keystore(args: &UnlockArgs) -> CliResult<KeystoreHome> {
    let path = args.keystore.clone().or_else(default_keystore);
    Ok(KeystoreHome::enter(&path.ok_or(CliError::WhichKeystore)?)?)
}

/// Opens a vault for a change of its keys. Completes one that was interrupted, and rotates keys that are due.
pub fn open_for_change(args: &VaultArgs) -> CliResult<OpenVault> {
    finish(open_vault(args, Lock::Exclusive)?)
}

/// As [`open_for_change`], for who makes a new epoch: a header that is older than the keystore has seen is taken.
pub fn open_older_for_change(args: &VaultArgs) -> CliResult<OpenVault> {
    let mut home = enter_vault(&args.vault, Lock::Exclusive, &args.unlock)?;
    home.accept_older_header();
    finish(open_entered(home, &args.unlock, &args.customer)?)
}

fn finish(mut open: OpenVault) -> CliResult<OpenVault> {
    rotate_due(open.keys_mut());
    if open.finish(process::now())? {
        say(format_args!("completed a change of keys"));
    }
    Ok(open)
}

/// Opens a keystore alone, for looking at it.
pub fn open_store(vault: Option<&Path>, args: &UnlockArgs) -> CliResult<Store> {
    enter_store(vault, Lock::Unlocked, args)
}

/// Opens a keystore alone, for changing it, and rotates keys that are due.
pub fn open_store_for_change(vault: Option<&Path>, args: &UnlockArgs) -> CliResult<Store> {
    let mut store = open_store_exclusively(vault, args)?;
    rotate_due(&mut store.keys);
    Ok(store)
}

/// Opens a keystore alone, for changing one thing and no other.
pub fn open_store_exclusively(vault: Option<&Path>, args: &UnlockArgs) -> CliResult<Store> {
    enter_store(vault, Lock::Exclusive, args)
}

fn enter_store(vault: Option<&Path>, lock: Lock, args: &UnlockArgs) -> CliResult<Store> {
    if let Some(vault) = vault {
        let mut home = enter_vault(vault, lock, args)?;
        let keys = match ask_agent(args)? {
            Some(agent) => agent,
            None => open_keystore_of(&mut home, args)?.into(),
        };
        return Ok(Store {
            vault: Some(home),
            keys,
        });
    }
    if let Some(keys) = ask_agent(args)? {
        return Ok(Store { vault: None, keys });
    }
    let mut home = enter_keystore(args)?;
    let (path, slots) = (home.path().to_owned(), home.claimed_slots());
    let keystore = open_keystore(&path, &slots, args, |unlock, choice, providers| {
        home.set_providers(providers);
        home.open(unlock, choice)
    })?;
    Ok(Store {
        vault: None,
        keys: keystore.into(),
    })
}

/// Opens a vault, or a keystore where none is named, for a change of slots.
pub fn open_target(vault: Option<&Path>, args: &UnlockArgs) -> CliResult<Target> {
    Ok(match vault {
        Some(vault) => {
            let home = enter_vault(vault, Lock::Exclusive, args)?;
            Target::Vault(Box::new(finish(open_entered(home, args, &CustomerArgs::default())?)?))
        }
        None => Target::Keystore(Box::new(open_store_for_change(None, args)?)),
    })
}

/// Rotates the keys whose time has come. That it fails is no reason not to do what was asked for.
pub fn rotate_due(keys: &mut KeySource) {
    match keys.rotate_due(process::now()) {
        Ok(keys) => keys
            .iter()
            .for_each(|key| log::info!("key {key} has rotated by itself")),
        Err(error) => log::warn!("a key that is due could not be rotated: {error}"),
    }
}

/// Finds a slot by its name, or by its number where no slot has that name.
pub fn find_slot(slots: &[Slot], text: &str) -> CliResult<SlotId> {
    let named = slots.iter().find(|slot| slot.label == text);
    let numbered = || {
        let number = slot_number(text);
        slots.iter().find(|slot| Some(slot.id) == number)
    };
    let found = named.or_else(numbered);
    found
        .map(|slot| slot.id)
        .ok_or_else(|| CliError::NoSuchSlot { slot: text.to_owned() })
}

/// Reads the number of a slot.
pub fn slot_number(text: &str) -> Option<SlotId> {
    text.parse().ok().map(SlotId)
}

/// Returns which slots a keystore is to be opened by: a name, or a number where no slot has that name.
fn choice(slots: &[Slot], slot: Option<&str>) -> SlotChoice {
    let Some(slot) = slot else {
        return SlotChoice::Any;
    };
    let named = slots.iter().any(|other| other.label == slot);
    match slot_number(slot) {
        Some(id) if !named => SlotChoice::Id(id),
        _ => SlotChoice::Label(slot.to_owned()),
    }
}
