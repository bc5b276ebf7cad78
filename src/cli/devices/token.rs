//! Keys in PKCS#11 tokens, named by the user.

use std::{path::Path, sync::Arc};

use super::{super::say, CliError, CliResult, DeviceArgs, ask_pin, patient::patient};
use crate::{
    format::keystore::RemoteKeyName,
    keystore::{
        Provider,
        pkcs11::{KeyUri, Pkcs11},
    },
};

/// Returns who holds keys in the tokens of a module.
pub fn open(module: &Path, args: &DeviceArgs) -> CliResult<Arc<dyn Provider>> {
    Ok(patient(Arc::new(load(module, args)?)))
}

fn load(module: &Path, args: &DeviceArgs) -> CliResult<Pkcs11> {
    Pkcs11::new(module, ask_pin(args)).map_err(CliError::Pkcs11)
}

/// Reads the name of a key in a token.
pub fn name(uri: &str) -> CliResult<RemoteKeyName> {
    let key: KeyUri = uri.parse().map_err(CliError::TokenKey)?;
    Ok(key.into_name())
}

/// Makes a key in a token, and returns its whole name.
pub fn make(uri: &str, args: &DeviceArgs) -> CliResult<RemoteKeyName> {
    let key: KeyUri = uri.parse().map_err(CliError::TokenKey)?;
    let module = args.pkcs11_module.as_deref().ok_or(CliError::NoModule)?;
    let made = load(module, args)?.create(&key).map_err(CliError::Pkcs11)?;
    say(format_args!("made key {made}"));
    Ok(made.into_name())
}
