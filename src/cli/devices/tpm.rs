//! The TPM that the user has named.

use std::{env, io};

use super::{CliError, CliResult, DeviceArgs, NewDeviceArgs, ask_pin, secret};
use crate::{
    crypto::keys::SlotSecret,
    keystore::tpm::{Tpm2, TpmObject, Unsealer},
};

/// What names a TPM to other programs.
const VARIABLES: [&str; 2] = ["TPM2TOOLS_TCTI", "TCTI"];

/// The TPM of this machine, as the kernel shares it out.
const DEFAULT: &str = "device:/dev/tpmrm0";

/// Returns the name of the TPM: the one given, or that of the environment, or the machine's.
fn name(given: &str) -> String {
    if !given.is_empty() {
        return given.to_owned();
    }
    let named = VARIABLES.iter().find_map(|variable| env::var(variable).ok());
    named.unwrap_or_else(|| DEFAULT.to_owned())
}

/// Returns the TPM that the user has named.
pub fn open(given: &str, args: &DeviceArgs) -> CliResult<Box<dyn Unsealer>> {
    let tpm = Tpm2::new(&name(given), ask_pin(args)).map_err(CliError::Tpm)?;
    Ok(Box::new(tpm))
}

/// Has the TPM seal the secret of a new slot.
pub fn seal(given: &str, args: &NewDeviceArgs) -> CliResult<(TpmObject, SlotSecret)> {
    let nobody = Box::new(|_: &str| Err(io::ErrorKind::NotFound.into()));
    let tpm = Tpm2::new(&name(given), nobody).map_err(CliError::Tpm)?;
    // Nobody is to think of a PIN in vain.
    tpm.check().map_err(CliError::Tpm)?;
    let pin = match (&args.new_pin_file, args.new_pin) {
        (Some(path), _) => Some(secret::first_line_of_file(path)?),
        (None, true) => Some(secret::ask_twice("New PIN of the TPM: ", secret::NEW_PIN)?),
        (None, false) => None,
    };
    let pin = pin.as_ref().map(|pin| pin.as_slice());
    tpm.seal(args.tpm2_pcrs, pin).map_err(CliError::Tpm)
}
