//! What a record says, with the names that CloudTrail has for it (version 1.11 of its records).

use std::{io, time::SystemTime};

use data_encoding::HEXLOWER;
use serde_json::{Map, Value, json};

use crate::{
    crypto::random,
    ids::KeyId,
    keystore::{Context, KeyError, KeyHandle, KeystoreError, LocalKeystore, WrappedKey, request::Change},
};

/// A call that a keystore was asked for.
#[derive(Clone, Debug)]
pub struct Call {
    name: &'static str,
    parameters: Value,
    response: Value,
    /// More that is worth knowing, as name and value.
    additional: Map<String, Value>,
    keys: Vec<KeyId>,
    /// Of what hushfs does by itself.
    service_details: Option<Value>,
    read_only: bool,
    /// Name and text.
    error: Option<(String, String)>,
}

impl Call {
    /// Makes a call by its name, with its parameters: an object, or null.
    pub fn new(name: &'static str, parameters: Value) -> Self {
        Call {
            name,
            parameters,
            response: Value::Null,
            additional: Map::new(),
            keys: Vec::new(),
            service_details: None,
            read_only: false,
            error: None,
        }
    }

    /// Makes a call about a key that the user has named.
    pub fn on_key(name: &'static str, key: &str, mut parameters: Value) -> Self {
        parameters["keyId"] = key.into();
        Call::new(name, parameters)
    }

    /// Makes the call by which keys are to be changed.
    pub fn of_change(keystore: &LocalKeystore, change: &Change) -> Self {
        let on_key = |key: &str, parameters| Call::on_key(change.name(), key, parameters);
        match change {
            Change::Create {
                description,
                tags,
                alias,
                remote,
            } => {
                let parameters = json!({
                    "description": description,
                    "tags": tags_json(tags),
                    "aliasName": alias,
                    "remoteKey": remote.as_ref().map(ToString::to_string),
                });
                Call::new(change.name(), parameters)
            }
            Change::Enable { key }
            | Change::Disable { key }
            | Change::Rotate { key }
            | Change::RotationOff { key }
            | Change::Undelete { key } => on_key(key, json!({})),
            Change::RotationOn { key, days } => on_key(key, json!({"rotationPeriodInDays": days})),
            Change::Tag { key, tags } => on_key(key, json!({"tags": tags_json(tags)})),
            Change::Untag { key, names } => on_key(key, json!({"tagKeys": names})),
            Change::SetDescription { key, description } => on_key(key, json!({"description": description})),
            Change::Delete { key, days } => on_key(key, json!({"pendingWindowInDays": days})),
            Change::SetAlias { alias, key } => {
                let name = match keystore.key_of_alias(alias) {
                    Some(_) => change.name(),
                    None => "CreateAlias",
                };
                Call::new(name, json!({"aliasName": alias, "targetKeyId": key}))
            }
            Change::RemoveAlias { alias } => Call::new(change.name(), json!({"aliasName": alias})),
            Change::SetPolicy { key, policy, lockout } => {
                let parameters = json!({
                    "policyName": "default",
                    "policy": if policy.is_empty() { keystore.default_policy() } else { policy },
                    "bypassPolicyLockoutSafetyCheck": lockout,
                });
                on_key(key, parameters)
            }
            Change::Reap => Call::new(change.name(), Value::Null),
        }
    }

    /// Makes the call by which a key that hushfs manages gets a new version.
    pub fn renew(key: KeyHandle) -> Self {
        Call::on_key("RotateKeyOnDemand", &key.to_string(), json!({}))
    }

    /// Makes the call by which an epoch key was unwrapped.
    pub(in crate::vault::home) fn decrypt(
        keystore: &LocalKeystore,
        key: KeyHandle,
        context: &Context,
        wrapped: &WrappedKey,
    ) -> Self {
        Call {
            read_only: true,
            ..Self::of_use("Decrypt", keystore, key, context, Some(wrapped))
        }
    }

    /// Makes the call by which an epoch key was wrapped, after it was made or under one more key.
    pub(in crate::vault::home) fn wrap(
        name: &'static str,
        keystore: &LocalKeystore,
        key: KeyHandle,
        context: &Context,
    ) -> Self {
        Call {
            read_only: true,
            ..Self::of_use(name, keystore, key, context, None)
        }
    }

    /// Makes the call by which a wrapped epoch key was wrapped anew.
    pub(in crate::vault::home) fn re_encrypt(
        keystore: &LocalKeystore,
        (from, context): (KeyHandle, &Context),
        (to, to_context): (KeyHandle, &Context),
    ) -> Self {
        let parameters = json!({
            "sourceKeyId": keystore.arn(from.0),
            "sourceEncryptionContext": pairs(context),
            "destinationKeyId": keystore.arn(to.0),
            "destinationEncryptionContext": pairs(to_context),
        });
        Call {
            read_only: true,
            keys: vec![from.0, to.0],
            ..Call::new("ReEncrypt", parameters)
        }
    }

    fn of_use(
        name: &'static str,
        keystore: &LocalKeystore,
        key: KeyHandle,
        context: &Context,
        wrapped: Option<&WrappedKey>,
    ) -> Self {
        let parameters = json!({"keyId": keystore.arn(key.0), "encryptionContext": pairs(context)});
        let mut call = Call::new(name, parameters);
        if let Some(material) = keystore.material_id(&key, wrapped) {
            call.note("keyMaterialId", HEXLOWER.encode(&material));
        }
        call.keys.push(key.0);
        call
    }

    /// Makes the event of a key that has rotated by itself.
    pub(in crate::vault::home) fn rotated(keystore: &LocalKeystore, key: KeyId) -> Self {
        let materials = keystore.keys().iter().find(|record| record.id == key);
        let mut newest = materials.map_or(&[][..], |record| &record.materials).iter().rev();
        let mut id = || newest.next().map(|material| HEXLOWER.encode(&material.id));
        let (current, previous) = (id(), id());
        let details = json!({
            "keyId": keystore.arn(key),
            "rotationType": "AUTOMATIC",
            "keyOrigin": "HUSHFS",
            "currentKeyMaterialId": current,
            "previousKeyMaterialId": previous,
        });
        Call {
            service_details: Some(details),
            keys: vec![key],
            ..Call::new("RotateKey", Value::Null)
        }
    }

    pub(in crate::vault::home) fn note(&mut self, name: &str, value: impl Into<Value>) {
        self.additional.insert(name.to_owned(), value.into());
    }

    /// Notes the key that the parameters name, as far as there is one.
    pub(in crate::vault::home) fn note_key(&mut self, keystore: &LocalKeystore) {
        let named = self.parameters["keyId"]
            .as_str()
            .or(self.parameters["targetKeyId"].as_str());
        let key = named.and_then(|name| keystore.find_key(name).ok());
        self.keys.extend(key.map(|key| key.0));
    }

    /// Notes keys that were made or destroyed.
    pub(in crate::vault::home) fn note_changed(&mut self, keystore: &LocalKeystore, changed: &[KeyId]) {
        if let ("CreateKey", [key]) = (self.name, changed) {
            self.response = json!({"keyMetadata": {"keyId": key.to_hex(), "arn": keystore.arn(*key)}});
        }
        let others: Vec<_> = changed.iter().filter(|key| !self.keys.contains(key)).copied().collect();
        self.keys.extend(others);
    }

    /// Says that a key could not be used.
    pub(in crate::vault::home) fn failed_with_key(&mut self, error: &KeyError) {
        self.failed(error.aws_name().unwrap_or("KMSInternalException"), error.to_string());
    }

    /// Says that the keystore refused.
    pub(in crate::vault::home) fn refused(&mut self, error: &KeystoreError) {
        self.failed(error.aws_name().unwrap_or("ValidationException"), error.to_string());
    }

    /// Says that it failed.
    pub(in crate::vault::home) fn failed(&mut self, name: &str, text: String) {
        self.response = Value::Null;
        self.error = Some((name.to_owned(), text));
    }
}

/// Writes tags as AWS does.
fn tags_json(tags: &[(String, String)]) -> Value {
    tags.iter()
        .map(|(name, value)| json!({"tagKey": name, "tagValue": value}))
        .collect()
}

fn pairs(context: &Context) -> Map<String, Value> {
    let pairs = context.pairs().iter();
    pairs
        .map(|(name, value)| (name.clone(), value.clone().into()))
        .collect()
}

/// A file of a vault that was opened, or was not.
#[derive(Clone, Debug)]
pub struct FileUse {
    /// Who did it.
    pub uid: u32,
    /// Their group.
    pub gid: u32,
    /// Their process.
    pub pid: u32,
    /// Where the file is in the view.
    pub path: String,
    /// Whether it was made.
    pub is_new: bool,
    /// Whether it may be written.
    pub for_writing: bool,
    /// When, in seconds since 1970.
    pub time: u64,
    /// Why it was refused: an errno.
    pub errno: Option<i32>,
}

impl FileUse {
    /// Makes a use of a file, now, of which no more is known yet.
    pub fn of(path: String) -> Self {
        FileUse {
            uid: 0,
            gid: 0,
            pid: 0,
            path,
            is_new: false,
            for_writing: false,
            time: seconds_now(),
            errno: None,
        }
    }
}

/// What every record of a process has in common.
#[derive(Debug)]
pub(super) struct Recorder {
    account: String,
    arn_prefix: String,
    identity: Value,
    host: String,
}

impl Recorder {
    pub(super) fn of(keystore: &LocalKeystore) -> Self {
        let principal = keystore.principal();
        let account = keystore.id().to_hex();
        let mut identity = identity(principal.uid, principal.gids.first().copied(), principal.pid, &account);
        // A client of an agent has opened no slot.
        if !principal.role.is_empty() {
            identity["role"] = principal.role.clone().into();
        }
        Recorder {
            arn_prefix: keystore.arn_prefix(),
            identity,
            // Not of /proc, most of which an agent under systemd does not see.
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            account,
        }
    }

    /// Writes the record of a call.
    pub(super) fn event(&self, call: &Call, generation: Option<u64>) -> String {
        let mut additional = call.additional.clone();
        if let Some(generation) = generation {
            additional.insert("keystoreGeneration".to_owned(), generation.into());
        }
        let resources: Vec<Value> = call
            .keys
            .iter()
            .map(|key| {
                json!({
                    "ARN": format!("{}key/{key}", self.arn_prefix),
                    "accountId": self.account,
                    "type": "AWS::KMS::Key",
                })
            })
            .collect();
        let mut event = self.common(call.name, seconds_now());
        event["requestParameters"] = call.parameters.clone();
        event["responseElements"] = call.response.clone();
        if !additional.is_empty() {
            event["additionalEventData"] = additional.into();
        }
        if !resources.is_empty() {
            event["resources"] = resources.into();
        }
        event["readOnly"] = call.read_only.into();
        if let Some(details) = &call.service_details {
            event["eventType"] = "AwsServiceEvent".into();
            event["serviceEventDetails"] = details.clone();
        }
        if let Some((name, text)) = &call.error {
            event["errorCode"] = name.clone().into();
            event["errorMessage"] = text.clone().into();
        }
        event.to_string()
    }

    /// Writes the record of a use of a file.
    pub(super) fn file_event(&self, file: &FileUse) -> String {
        let mut event = self.common(if file.is_new { "CreateFile" } else { "OpenFile" }, file.time);
        event["userIdentity"] = identity(file.uid, Some(file.gid), file.pid, &self.account);
        event["requestParameters"] = json!({
            "path": file.path,
            "access": if file.for_writing { "write" } else { "read" },
        });
        event["responseElements"] = Value::Null;
        event["readOnly"] = (!file.for_writing && !file.is_new).into();
        event["managementEvent"] = false.into();
        event["eventCategory"] = "Data".into();
        if let Some(errno) = file.errno {
            event["errorCode"] = errno_name(errno).into();
            event["errorMessage"] = io::Error::from_raw_os_error(errno).kind().to_string().into();
        }
        event.to_string()
    }

    /// Writes the record of how many uses of files have none.
    pub(super) fn dropped_event(&self, dropped: u64) -> String {
        let mut event = self.common("DropRecords", seconds_now());
        event["eventType"] = "AwsServiceEvent".into();
        event["serviceEventDetails"] = json!({"dropped": dropped});
        event["readOnly"] = true.into();
        event["managementEvent"] = false.into();
        event["eventCategory"] = "Data".into();
        event.to_string()
    }

    fn common(&self, name: &str, time: u64) -> Value {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(time);
        json!({
            "eventVersion": "1.11",
            "userIdentity": self.identity,
            "eventTime": humantime::format_rfc3339_seconds(time).to_string(),
            "eventSource": "hushfs",
            "eventName": name,
            "awsRegion": "local",
            "sourceIPAddress": self.host,
            "userAgent": concat!("hushfs/", env!("CARGO_PKG_VERSION")),
            "requestID": uuid(),
            "eventID": uuid(),
            "eventType": "AwsApiCall",
            "managementEvent": true,
            "eventCategory": "Management",
            "recipientAccountId": self.account,
        })
    }
}

fn identity(uid: u32, gid: Option<u32>, pid: u32, account: &str) -> Value {
    json!({
        "type": "UnixUser",
        "principalId": uid.to_string(),
        "accountId": account,
        "uid": uid,
        "gid": gid,
        "pid": pid,
    })
}

/// Returns the name of what opening a file fails with.
fn errno_name(errno: i32) -> String {
    let name = match errno {
        libc::EACCES => "EACCES",
        libc::EEXIST => "EEXIST",
        libc::EIO => "EIO",
        libc::EKEYEXPIRED => "EKEYEXPIRED",
        libc::EKEYREVOKED => "EKEYREVOKED",
        libc::ENOENT => "ENOENT",
        libc::ENOKEY => "ENOKEY",
        libc::ENOSPC => "ENOSPC",
        libc::EPERM => "EPERM",
        libc::EROFS => "EROFS",
        libc::ESTALE => "ESTALE",
        libc::ETIMEDOUT => "ETIMEDOUT",
        other => return format!("errno {other}"),
    };
    name.to_owned()
}

fn seconds_now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs())
}

/// Returns a random UUID (RFC 9562 section 5.4).
fn uuid() -> String {
    let mut bytes: [u8; 16] = random::bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = HEXLOWER.encode(&bytes);
    let [a, b, c, d, e] = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &hex[part]);
    format!("{a}-{b}-{c}-{d}-{e}")
}
