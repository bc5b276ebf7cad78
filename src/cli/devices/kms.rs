//! Keys in AWS KMS, named by the user.

use std::sync::{Arc, LazyLock};

use super::{CliError, CliResult, patient::patient};
use crate::{
    format::keystore::RemoteKeyName,
    keystore::{
        Provider,
        aws::{AwsKms, Environment, Limits},
    },
};

/// There is one environment, so there is one way to AWS, and its credentials are looked for once.
static KMS: LazyLock<Arc<AwsKms>> = LazyLock::new(|| Arc::new(AwsKms::new(Environment::Process, Limits::default())));

/// Returns AWS KMS. Nothing is read or asked yet.
pub fn provider() -> CliResult<Arc<dyn Provider>> {
    Ok(patient(KMS.clone()))
}

/// Returns the name of a key as it is stored.
pub fn name(key: &str) -> CliResult<RemoteKeyName> {
    KMS.resolve(key).map_err(|error| CliError::Aws(Box::new(error)))
}
