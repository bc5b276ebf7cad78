//! Keys that AWS KMS holds: a [`Provider`] that speaks its JSON protocol. docs/KEYS.md says what a user sees of it.
//!
//! One thing is asked at a time, in the thread of who asks. Which server, who asks and whom to trust comes from the environment and
//! from AWS's own two files, never from a vault; a name of a key that stands in a vault is parsed strictly, for its region becomes part
//! of a host name.

mod client;
mod credentials;
mod endpoint;
mod error;
mod input;
mod metadata;
mod process;
mod settings;
mod sts;

use std::{borrow::Cow, collections::BTreeMap, sync::OnceLock};

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

pub use self::{client::Limits, error::AwsError, settings::Environment};
use self::{
    client::{Call, Client, Reply},
    credentials::{CachedSigner, CredentialCache, Whereabouts},
    endpoint::{Endpoints, KeyName, Service},
    settings::Profiles,
};
use super::{
    custodian::Context,
    provider::{Provider, ProviderError, Reach, RemoteKeyState},
};
use crate::{
    crypto::{KEY_SIZE, locked::LockedKey},
    format::keystore::RemoteKeyName,
};

/// The name that messages use.
const NAME: &str = "AWS KMS";

/// The most bytes of a blob that KMS takes.
const BLOB_SIZE_MAX: usize = 6144;

/// Characters of 32 bytes in base64.
const KEY_TEXT_LEN: usize = KEY_SIZE.div_ceil(3) * 4;

/// AWS KMS, as this user reaches it.
#[derive(Debug)]
pub struct AwsKms {
    limits: Limits,
    credentials: CredentialCache,
    /// Made when it is needed first: most keystores have no key in KMS, and none of their users a profile that must be well-formed.
    reached: OnceLock<Reached>,
}

/// The settings, read, and what sends requests by them.
#[derive(Debug)]
struct Reached {
    client: Client,
    endpoints: Endpoints,
}

/// What KMS says about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDescription {
    /// Its ARN, whatever name was asked for.
    pub arn: String,
    /// Whether it can be used.
    pub state: RemoteKeyState,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct GenerateDataKey<'a> {
    key_id: &'a str,
    key_spec: &'static str,
    encryption_context: BTreeMap<&'a str, &'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DataKey<'a> {
    #[serde(borrow)]
    plaintext: Cow<'a, str>,
    #[serde(borrow)]
    ciphertext_blob: Cow<'a, str>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Decrypt<'a> {
    // KMS would take the key that the blob names: one of anybody's.
    key_id: &'a str,
    ciphertext_blob: String,
    encryption_context: BTreeMap<&'a str, &'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Decrypted<'a> {
    #[serde(borrow)]
    plaintext: Cow<'a, str>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeKey<'a> {
    key_id: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    key_metadata: KeyMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct KeyMetadata {
    arn: String,
    key_state: String,
    key_usage: Option<String>,
    key_spec: Option<String>,
    /// Seconds since 1970, with a fraction.
    deletion_date: Option<f64>,
}

impl AwsKms {
    /// Returns AWS KMS by the settings of an environment, which are not read yet.
    pub fn new(environment: Environment, limits: Limits) -> Self {
        AwsKms {
            limits,
            credentials: CredentialCache::new(environment),
            reached: OnceLock::new(),
        }
    }

    fn reach(&self) -> Result<&Reached, AwsError> {
        if let Some(reached) = self.reached.get() {
            return Ok(reached);
        }
        let environment = self.credentials.environment();
        let profiles = Profiles::load(environment)?;
        let reached = Reached {
            client: Client::new(environment, &profiles, self.limits)?,
            endpoints: Endpoints::new(environment, &profiles)?,
        };
        Ok(self.reached.get_or_init(|| reached))
    }

    /// Looks a key up by ARN, id or alias.
    ///
    /// # Errors
    ///
    /// The [`AwsError`] that says why it cannot be looked up; [`AwsError::KeyKind`] when it is not one that can wrap keys.
    pub fn look_up(&self, key: &str) -> Result<KeyDescription, AwsError> {
        let operation = "DescribeKey";
        let key = KeyName::parse(key)?;
        let reply = self.call(operation, &key, &DescribeKey { key_id: key.text })?;
        let metadata = decode::<Described>(operation, &reply)?.key_metadata;
        let is_usable = |value: &Option<String>, wanted| value.as_deref().is_none_or(|value| value == wanted);
        if !is_usable(&metadata.key_usage, "ENCRYPT_DECRYPT") || !is_usable(&metadata.key_spec, "SYMMETRIC_DEFAULT") {
            return Err(AwsError::KeyKind { arn: metadata.arn });
        }
        // What KMS says is stored and later asked for: it must be a name of a key like any other.
        if !KeyName::parse(&metadata.arn)?.is_key_arn() {
            return Err(AwsError::Answer {
                operation,
                problem: "has no ARN of a key",
            });
        }
        let state = match metadata.key_state.as_str() {
            // The second is about where its replicas are.
            "Enabled" | "Updating" => RemoteKeyState::Enabled,
            "Disabled" => RemoteKeyState::Disabled,
            "PendingDeletion" | "PendingReplicaDeletion" => RemoteKeyState::PendingDeletion {
                date: metadata.deletion_date.map(|date| date as u64),
            },
            // Creating, PendingImport, Unavailable.
            _ => RemoteKeyState::Unavailable,
        };
        Ok(KeyDescription {
            arn: metadata.arn,
            state,
        })
    }

    /// Returns the ARN of a key, which is what is stored of it. Only where another name is given is KMS asked.
    ///
    /// # Errors
    ///
    /// As for [`look_up`](Self::look_up).
    pub fn resolve(&self, key: &str) -> Result<RemoteKeyName, AwsError> {
        let name = KeyName::parse(key)?;
        let arn = match name.is_key_arn() {
            true => key.to_owned(),
            false => self.look_up(key)?.arn,
        };
        Ok(RemoteKeyName::AwsKms { arn })
    }

    fn generate_data_key(&self, key: &str, context: &Context) -> Result<(LockedKey, Vec<u8>), AwsError> {
        let operation = "GenerateDataKey";
        let key = KeyName::parse(key)?;
        let question = GenerateDataKey {
            key_id: key.text,
            key_spec: "AES_256",
            encryption_context: pairs(context),
        };
        let reply = self.call(operation, &key, &question)?;
        let answer = decode::<DataKey<'_>>(operation, &reply)?;
        let wrong = |problem| AwsError::Answer { operation, problem };
        let secret = take_key(answer.plaintext).ok_or_else(|| wrong("has no key of 32 bytes"))?;
        let blob = BASE64
            .decode(answer.ciphertext_blob.as_bytes())
            .ok()
            .filter(|blob| (1..=BLOB_SIZE_MAX).contains(&blob.len()))
            .ok_or_else(|| wrong("has no wrapped key"))?;
        Ok((secret, blob))
    }

    fn decrypt(&self, key: &str, context: &Context, blob: &[u8]) -> Result<LockedKey, AwsError> {
        let operation = "Decrypt";
        let key = KeyName::parse(key)?;
        let question = Decrypt {
            key_id: key.text,
            ciphertext_blob: BASE64.encode(blob),
            encryption_context: pairs(context),
        };
        let reply = self.call(operation, &key, &question)?;
        let answer = decode::<Decrypted<'_>>(operation, &reply)?;
        // KMS has opened something, but nothing that was made for this.
        take_key(answer.plaintext).ok_or(AwsError::NotAKey)
    }

    fn call(&self, operation: &'static str, key: &KeyName<'_>, question: &impl Serialize) -> Result<Reply, AwsError> {
        let Reached { client, endpoints } = self.reach()?;
        let region = endpoints.region_of(key)?;
        let endpoint = endpoints.of(Service::Kms, &region);
        let body = serde_json::to_vec(question).expect("strings and maps of strings can be written as JSON");
        let signer = CachedSigner {
            cache: &self.credentials,
            at: Whereabouts {
                client,
                endpoints,
                region: &region,
            },
        };
        let target = format!("TrentService.{operation}");
        let call = Call {
            operation,
            endpoint: &endpoint,
            headers: &[
                ("content-type", "application/x-amz-json-1.1"),
                ("x-amz-target", &target),
            ],
            body: &body,
        };
        client.call(&call, &signer)
    }
}

impl Provider for AwsKms {
    fn reach(&self) -> Reach {
        match Profiles::load(self.credentials.environment()) {
            Ok(profiles) if !profiles.name_a_program() => Reach::Network,
            _ => Reach::ForeignCode,
        }
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn generate(&self, key: &RemoteKeyName, context: &Context) -> Result<(LockedKey, Vec<u8>), ProviderError> {
        reasoned(self.generate_data_key(arn(key)?, context))
    }

    fn unwrap(&self, key: &RemoteKeyName, context: &Context, blob: &[u8]) -> Result<LockedKey, ProviderError> {
        // KMS would call these invalid requests, not invalid blobs.
        if !(1..=BLOB_SIZE_MAX).contains(&blob.len()) {
            return Err(ProviderError::Rejected);
        }
        reasoned(self.decrypt(arn(key)?, context, blob))
    }

    fn describe(&self, key: &RemoteKeyName) -> Result<RemoteKeyState, ProviderError> {
        reasoned(self.look_up(arn(key)?)).map(|description| description.state)
    }
}

/// Puts an error into a keystore's words. What is lost by that goes to the log.
fn reasoned<T>(result: Result<T, AwsError>) -> Result<T, ProviderError> {
    result.map_err(|error| {
        let reason = error.reason();
        match reason {
            ProviderError::Rejected | ProviderError::IncorrectKey => log::debug!("{NAME}: {error}"),
            _ => log::warn!("{NAME}: {error}"),
        }
        reason
    })
}

fn arn(key: &RemoteKeyName) -> Result<&str, ProviderError> {
    match key {
        RemoteKeyName::AwsKms { arn } => Ok(arn),
        RemoteKeyName::Pkcs11 { .. } => Err(ProviderError::NotFound),
    }
}

fn pairs(context: &Context) -> BTreeMap<&str, &str> {
    let pairs = context.pairs().iter();
    pairs.map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

fn decode<'a, T: Deserialize<'a>>(operation: &'static str, reply: &'a Reply) -> Result<T, AwsError> {
    serde_json::from_slice(&reply.body).map_err(|_| AwsError::Answer {
        operation,
        problem: "is not that of AWS KMS",
    })
}

/// Takes 32 bytes out of base64 into locked memory, and wipes what was on the way.
fn take_key(text: Cow<'_, str>) -> Option<LockedKey> {
    let mut bytes = Zeroizing::new([0; KEY_TEXT_LEN / 4 * 3]);
    let key = (text.len() == KEY_TEXT_LEN)
        .then(|| BASE64.decode_mut(text.as_bytes(), &mut *bytes).ok())
        .flatten()
        .and_then(|len| bytes[..len].try_into().ok().map(LockedKey::copy_of));
    if let Cow::Owned(mut text) = text {
        text.zeroize();
    }
    key
}

#[cfg(test)]
mod tests;
