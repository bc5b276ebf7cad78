//! What a keystore says of its audit log: an extension of its body (docs/FORMAT.md section 10).

use super::{FormatError, KeystoreBody, body::Extension, in_range};
use crate::{
    crypto::wrap::{WRAPPED_SIZE, Wrapped},
    format::Reader,
    ids::{KeystoreId, LogId},
};

/// The kind of the extension. While the log is on it is critical: who does not know it would use keys without a record.
pub(super) const EXTENSION: u16 = 1;

/// Which log a keystore has, and what its keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditSettings {
    /// Whether calls are recorded.
    pub is_on: bool,
    /// The log.
    pub log: LogId,
    /// The number of its first line.
    pub first: u64,
    /// The seed of the keys of this log and of those before it, wrapped under the keystore's root.
    pub seed: Wrapped,
}

/// Returns the additional data of the wrap of an audit seed.
pub fn audit_seed_aad(keystore: KeystoreId) -> Vec<u8> {
    [b"hushfs v1 audit seed".as_slice(), &keystore.0].concat()
}

impl AuditSettings {
    fn decode(data: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader(data);
        let is_on = match reader.take::<1>()? {
            [0] => false,
            [1] => true,
            _ => return Err(FormatError::OutOfRange("audit settings")),
        };
        let settings = AuditSettings {
            is_on,
            log: LogId(reader.take()?),
            first: reader.u64()?,
            seed: Wrapped(reader.take::<WRAPPED_SIZE>()?),
        };
        reader.end()?;
        Ok(settings)
    }

    fn encode(&self) -> Extension {
        let parts: [&[u8]; 4] = [
            &[u8::from(self.is_on)],
            &self.log.0,
            &self.first.to_le_bytes(),
            &self.seed.0,
        ];
        Extension {
            kind: EXTENSION,
            critical: u8::from(self.is_on),
            data: parts.concat(),
        }
    }
}

impl KeystoreBody {
    /// Returns which audit log the keystore has, if it ever had one.
    pub fn audit_settings(&self) -> Option<AuditSettings> {
        let extension = self.extensions.iter().find(|extension| extension.kind == EXTENSION)?;
        Some(AuditSettings::decode(&extension.data).expect("checked when the body was decoded"))
    }

    /// Sets which audit log the keystore has.
    pub fn set_audit_settings(&mut self, settings: &AuditSettings) {
        self.extensions.retain(|extension| extension.kind != EXTENSION);
        self.extensions.push(settings.encode());
    }
}

/// Checks that there is at most one such extension, and that it decodes.
pub(super) fn check(extensions: &[Extension]) -> Result<(), FormatError> {
    let mut found = extensions.iter().filter(|extension| extension.kind == EXTENSION);
    if let Some(extension) = found.next() {
        let settings = AuditSettings::decode(&extension.data)?;
        in_range(extension.critical == u8::from(settings.is_on), "audit settings")?;
    }
    in_range(found.next().is_none(), "audit settings")
}
