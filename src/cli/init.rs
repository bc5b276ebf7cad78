//! `init` and `keystore init`: vaults and keystores are made.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use super::{
    CliResult,
    args::{InitArgs, KdfArgs, KeystoreInitArgs, SecretArgs, UnlockArgs},
    devices, encryption,
    error::CliError,
    open, process, say, secret,
};
use crate::{
    format::layout::Layout,
    keystore::{LocalKeystore, NewSecret, Providers, RecoveryKey, local::DEFAULT_ALIAS},
    vault::home::{CreateError, Form, KeystoreHome, VaultHome},
};

/// The name of the slot for a recovery key.
const RECOVERY_NAME: &str = "recovery key";

/// Makes a vault.
pub fn init(args: &InitArgs) -> CliResult {
    make_vault(args)?;
    say_who_may_read(&args.vault);
    Ok(())
}

fn make_vault(args: &InitArgs) -> CliResult {
    let layout = u32::try_from(args.block_size)
        .ok()
        .and_then(|size| Layout::new(args.suite, size).ok())
        .ok_or(CliError::BlockSize(args.block_size))?;
    // Nobody is to think of a passphrase in vain.
    VaultHome::check_free(&args.vault)?;
    if args.keystore.is_some() || args.agent.is_some() {
        return init_under(args, layout);
    }
    if let Some(key) = &args.kms_key {
        return init_by_kms(args, key, layout);
    }
    let (keystore, recovery) = make_keystore(&args.vault, &args.secret, &args.kdf, args.recovery_key)?;
    let create = || VaultHome::create(&args.vault, form(args, layout), keystore, process::now());
    secret::store_shown(recovery.as_ref(), create).map(drop)
}

/// Makes a vault that a key of AWS KMS opens, and whose epoch keys it wraps.
fn init_by_kms(args: &InitArgs, key: &str, layout: Layout) -> CliResult {
    let (key, provider) = (devices::kms::name(key)?, devices::kms::provider()?);
    let label = provider.name();
    let secret = NewSecret::RemoteKey {
        key: &key,
        provider: &*provider,
    };
    let providers = Providers {
        aws_kms: Some(provider.clone()),
        ..Providers::default()
    };
    let now = process::now();
    let keystore = LocalKeystore::create_for(&key, providers, (label, &secret), now)
        .map_err(|error| CliError::Create(CreateError::Keystore(error)))?;
    VaultHome::create(&args.vault, form(args, layout), keystore, now)?;
    Ok(())
}

fn form(args: &InitArgs, layout: Layout) -> Form {
    Form {
        layout,
        bucket_key: args.bucket_key.is_on(),
    }
}

/// Makes a vault under a key of a keystore that there is, or that an agent holds.
fn init_under(args: &InitArgs, layout: Layout) -> CliResult {
    let context = encryption::context(&args.context)?;
    let unlock = UnlockArgs {
        secret: args.secret.clone(),
        keystore: args.keystore.clone(),
        agent: args.agent.clone(),
        ..UnlockArgs::default()
    };
    let store = open::open_store_for_change(None, &unlock)?;
    let key = args.key.as_deref().unwrap_or(DEFAULT_ALIAS);
    let key = store.keys.find_key(key)?;
    let form = form(args, layout);
    VaultHome::create_under(&args.vault, form, store.keys, (key, context), process::now())?;
    Ok(())
}

/// Makes a keystore that vaults can share.
pub fn init_keystore(args: &KeystoreInitArgs) -> CliResult {
    let path = match &args.path {
        Some(path) => path.clone(),
        None => {
            let path = open::default_keystore().ok_or(CliError::WhichKeystore)?;
            make_parents(&path)?;
            path
        }
    };
    KeystoreHome::check_free(&path)?;
    let (keystore, recovery) = make_keystore(&path, &args.secret, &args.kdf, args.recovery_key)?;
    let now = process::now();
    let create = || KeystoreHome::create_recorded(&path, keystore, now);
    secret::store_shown(recovery.as_ref(), create)?;
    say_who_may_read(&path);
    Ok(())
}

/// Says so where others may read a directory that was there already: who may open it can lock it.
fn say_who_may_read(path: &Path) {
    let Ok(mode) = fs::metadata(path).map(|metadata| metadata.permissions().mode() & 0o777) else {
        return;
    };
    if mode & 0o044 != 0 {
        say(format_args!(
            "other users may read {} (mode {mode:03o}), and who may can keep it from being opened: `chmod 700` it unless it is shared with them",
            path.display()
        ));
    }
}

fn make_parents(path: &Path) -> CliResult {
    let Some(parent) = path.parent() else { return Ok(()) };
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
    made.map_err(|source| CliError::File {
        path: parent.to_owned(),
        source,
    })
}

/// Makes a keystore in memory, with the slots that the user wants.
fn make_keystore(
    path: &Path,
    secret: &SecretArgs,
    kdf: &KdfArgs,
    recovery: bool,
) -> CliResult<(LocalKeystore, Option<RecoveryKey>)> {
    let first = secret::first(path, secret, kdf)?;
    let now = process::now();
    let failed = |error| CliError::Create(CreateError::Keystore(error));
    let mut keystore = LocalKeystore::create(&first.kind().to_string(), &first.as_new(), now).map_err(failed)?;
    let recovery = recovery.then(RecoveryKey::generate);
    if let Some(key) = &recovery {
        keystore
            .add_slot(RECOVERY_NAME, &NewSecret::RecoveryKey(key), now)
            .map_err(failed)?;
    }
    Ok((keystore, recovery))
}
