//! Version 1 of the body, as read: it becomes today's in memory, and is stored so the next time.

use serde::{Deserialize, Serialize};

use super::{
    Alias, AuditHead, KIND, KeyRecord, KeyState, KeystoreBody, Manager, Material, MaterialCause, MaterialVersion,
    Rotation, Slot, SlotKind, VaultRecord,
};
use crate::{
    crypto::wrap::Wrapped,
    format::{
        FormatError,
        body::{self, Extension},
    },
    ids::{Epoch, KeyId, KeystoreId, VaultId},
};

const KIND_V1: body::Kind = body::Kind { version: 1, ..KIND };

#[derive(Serialize, Deserialize)]
struct Body {
    id: KeystoreId,
    generation: u64,
    last_time: u64,
    slots: Vec<Slot>,
    keys: Vec<KeyV1>,
    aliases: Vec<Alias>,
    vaults: Vec<VaultV1>,
    extensions: Vec<Extension>,
}

#[derive(Serialize, Deserialize)]
struct KeyV1 {
    id: KeyId,
    manager: Manager,
    state: KeyState,
    created: u64,
    description: String,
    rotation: Option<Rotation>,
    materials: Vec<MaterialV1>,
}

#[derive(Serialize, Deserialize)]
struct MaterialV1 {
    version: MaterialVersion,
    id: [u8; 32],
    created: u64,
    wrapped: Wrapped,
}

#[derive(Serialize, Deserialize)]
struct VaultV1 {
    vault: VaultId,
    lowest_epoch: Epoch,
}

/// Decodes a keystore of version 1; returns it with the bytes behind the body.
pub(super) fn decode(bytes: &[u8]) -> Result<(KeystoreBody, &[u8]), FormatError> {
    let (old, rest) = body::decode::<Body>(KIND_V1, bytes)?;
    let known = |slot: &Slot| {
        matches!(
            slot.kind,
            SlotKind::Passphrase(_) | SlotKind::KeyFile | SlotKind::Recovery
        )
    };
    if !old.slots.iter().all(known) {
        return Err(FormatError::NotCanonical);
    }
    let body = KeystoreBody {
        id: old.id,
        generation: old.generation,
        last_time: old.last_time,
        audit: AuditHead::default(),
        slots: old.slots,
        keys: old.keys.into_iter().map(KeyRecord::from).collect(),
        aliases: old.aliases,
        vaults: old.vaults.into_iter().map(VaultRecord::from).collect(),
        extensions: old.extensions,
    };
    Ok((body, rest))
}

impl From<KeyV1> for KeyRecord {
    fn from(old: KeyV1) -> Self {
        KeyRecord {
            id: old.id,
            manager: old.manager,
            remote: None,
            state: old.state,
            created: old.created,
            description: old.description,
            rotation: old.rotation,
            tags: Vec::new(),
            policy: String::new(),
            last_use: None,
            materials: old.materials.into_iter().map(Material::from).collect(),
        }
    }
}

impl From<MaterialV1> for Material {
    fn from(old: MaterialV1) -> Self {
        let cause = match old.version {
            MaterialVersion(1) => MaterialCause::Creation,
            _ => MaterialCause::Rekey,
        };
        Material {
            version: old.version,
            id: old.id,
            created: old.created,
            cause,
            wrapped: old.wrapped,
        }
    }
}

impl From<VaultV1> for VaultRecord {
    fn from(old: VaultV1) -> Self {
        VaultRecord::new(old.vault, old.lowest_epoch)
    }
}
