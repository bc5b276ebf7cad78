//! The local keystore's file: docs/FORMAT.md section 4.
//!
//! Its slots can be read by anyone, for they are needed to open it; everything else is believed only after
//! [`UnverifiedKeystoreFile::verify`]. What a slot or a key means is decided in [`keystore`](crate::keystore).

use serde::{Deserialize, Serialize};

use super::{
    FormatError,
    body::{self, Extension},
};
use crate::{
    crypto::{
        keys::MacKey,
        passphrase::Hardness,
        slot::{ENCAPSULATED_SIZE, PUBLIC_KEY_SIZE, SEALED_ROOT_SIZE},
        wrap::{WRAPPED_SIZE, Wrapped},
    },
    ids::{Epoch, KeyId, KeystoreId, VaultId},
};

const MAGIC: &[u8; 8] = b"HUSHKEYS";

/// The most bytes a body may have.
pub const BODY_SIZE_MAX: usize = 4 * 1024 * 1024;

/// The most slots a keystore may have.
pub const SLOTS_MAX: usize = 32;

/// The most bytes the label of a slot may have.
pub const LABEL_LEN_MAX: usize = 64;

/// The most keys a keystore may have.
pub const KEYS_MAX: usize = 1024;

/// The most bytes the description of a key may have.
pub const DESCRIPTION_LEN_MAX: usize = 8192;

/// The most materials a key may have.
pub const MATERIALS_MAX: usize = 1000;

/// The most aliases a keystore may have.
pub const ALIASES_MAX: usize = 4096;

/// The most vaults a keystore may keep a record of.
pub const VAULTS_MAX: usize = 4096;

/// The largest slot, encoded: id, label, created, kind with Argon2id parameters, two lists, sealed root, authenticator.
const SLOT_SIZE_MAX: usize = 4
    + (8 + LABEL_LEN_MAX)
    + 8
    + (4 + 28)
    + (8 + PUBLIC_KEY_SIZE)
    + (8 + ENCAPSULATED_SIZE)
    + SEALED_ROOT_SIZE
    + WRAPPED_SIZE;

/// The largest key, encoded: id, manager, state with date, created, description, rotation, materials.
const KEY_SIZE_MAX: usize =
    16 + 4 + (4 + 8) + 8 + (8 + DESCRIPTION_LEN_MAX) + (1 + 4 + 8) + (8 + MATERIALS_MAX * (4 + 32 + 8 + WRAPPED_SIZE));

// All slots, all vaults and a key that was rotated to its limit fit together. Not every limit can be reached at once.
const _: () = assert!(SLOTS_MAX * SLOT_SIZE_MAX + VAULTS_MAX * 20 + KEY_SIZE_MAX + 1024 < BODY_SIZE_MAX);

/// A keystore as stored, without the front and the MAC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeystoreBody {
    /// Random, made once.
    pub id: KeystoreId,
    /// Grows with every store.
    pub generation: u64,
    /// The latest clock reading the keystore has seen, in seconds since 1970.
    pub last_time: u64,
    /// How the keystore is opened, by rising id.
    pub slots: Vec<Slot>,
    /// The master keys, by rising id.
    pub keys: Vec<KeyRecord>,
    /// Other names of keys, by rising name.
    pub aliases: Vec<Alias>,
    /// What is known of the vaults that use the keystore, by rising id.
    pub vaults: Vec<VaultRecord>,
    /// What later versions added.
    pub extensions: Vec<Extension>,
}

/// Names a slot of a keystore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SlotId(pub u32);

impl std::fmt::Display for SlotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The keystore root, sealed for one way of opening it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Its number.
    pub id: SlotId,
    /// Its name for the user.
    pub label: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// What opens it.
    pub kind: SlotKind,
    /// The public half of the key pair that grows from its secret.
    pub public_key: Vec<u8>,
    /// The KEM's output that belongs to `sealed_root`.
    pub encapsulated: Vec<u8>,
    /// The keystore root, sealed to `public_key`.
    pub sealed_root: SealedRootBytes,
    /// What it takes besides `public_key` to seal a root, wrapped under the root: a stranger cannot.
    pub authenticator: Wrapped,
}

/// Returns the additional data of a slot's sealed root: it opens in this keystore, slot and kind only.
///
/// Argon2id's parameters are part of the kind, so weaker ones cannot be put in.
pub fn slot_aad(keystore: KeystoreId, slot: SlotId, kind: &SlotKind) -> Vec<u8> {
    let mut aad = [keystore.0.as_slice(), &slot.0.to_le_bytes()].concat();
    match kind {
        SlotKind::Passphrase(hardness) => {
            aad.extend_from_slice(&0u32.to_le_bytes());
            aad.extend_from_slice(&hardness.salt);
            aad.extend_from_slice(&hardness.memory_kib.to_le_bytes());
            aad.extend_from_slice(&hardness.passes.to_le_bytes());
            aad.extend_from_slice(&hardness.lanes.to_le_bytes());
        }
        SlotKind::KeyFile => aad.extend_from_slice(&1u32.to_le_bytes()),
        SlotKind::Recovery => aad.extend_from_slice(&2u32.to_le_bytes()),
    }
    aad
}

/// Returns the additional data of the wrap of a slot's authenticator: it opens in this keystore and slot only.
pub fn slot_authenticator_aad(keystore: KeystoreId, slot: SlotId) -> Vec<u8> {
    [
        b"hushfs v1 slot authenticator".as_slice(),
        &keystore.0,
        &slot.0.to_le_bytes(),
    ]
    .concat()
}

/// What opens a slot. The order is that of the numbers in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotKind {
    /// A passphrase, stretched with Argon2id. The parameters are not in range until they have been stretched with.
    Passphrase(Hardness),
    /// The contents of a file.
    KeyFile,
    /// A recovery key, as printed.
    Recovery,
}

/// A sealed root as stored. Serde's arrays end at 32 bytes, so the 48 stand in rows; the encoding is the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedRootBytes([[u8; 16]; SEALED_ROOT_SIZE / 16]);

const _: () = assert!(SEALED_ROOT_SIZE.is_multiple_of(16));

impl SealedRootBytes {
    /// Takes the bytes of a sealed root, if they are as many as one has.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let (rows, rest) = bytes.as_chunks();
        if !rest.is_empty() {
            return None;
        }
        Some(SealedRootBytes(rows.try_into().ok()?))
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_flattened()
    }
}

/// A master key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Random, made once.
    pub id: KeyId,
    /// Who may administer it.
    pub manager: Manager,
    /// Whether it may be used.
    pub state: KeyState,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// What the user says it is for.
    pub description: String,
    /// When it rotates by itself, if it does.
    pub rotation: Option<Rotation>,
    /// Its versions, rising; the last is the current one. At least one.
    pub materials: Vec<Material>,
}

/// Who may administer a key. The order is that of the numbers in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Manager {
    /// The user.
    Customer,
    /// hushfs itself, as the default key.
    Hushfs,
}

/// Whether a key may be used. The order is that of the numbers in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyState {
    /// It wraps and unwraps.
    Enabled,
    /// It does neither until it is enabled.
    Disabled,
    /// It does neither, and will be destroyed.
    PendingDeletion {
        /// The earliest time of that, in seconds since 1970.
        date: u64,
    },
}

/// When a key rotates by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Days from one rotation to the next.
    pub period_days: u32,
    /// The next one, in seconds since 1970.
    pub next: u64,
}

/// The number of a key's material, from 1; a wrapped key names the one it was wrapped under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MaterialVersion(pub u32);

impl std::fmt::Display for MaterialVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Material {
    /// Its number, from 1.
    pub version: MaterialVersion,
    /// Derived from the secret: tells whether what was unwrapped is this material.
    pub id: [u8; 32],
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// The secret, wrapped under the keystore root.
    pub wrapped: Wrapped,
}

/// Returns the additional data of a material's wrap: it opens in this keystore, key and version only.
pub fn material_aad(keystore: KeystoreId, key: KeyId, version: MaterialVersion) -> Vec<u8> {
    [
        b"hushfs v1 key material".as_slice(),
        &keystore.0,
        &key.0,
        &version.0.to_le_bytes(),
    ]
    .concat()
}

/// Another name of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// The name, starting with `alias/`.
    pub name: String,
    /// The key it stands for.
    pub key: KeyId,
}

/// What a keystore knows of a vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultRecord {
    /// The vault.
    pub vault: VaultId,
    /// The lowest number its current epoch may have.
    ///
    /// Who knows the key of an older epoch could otherwise put an older vault header back and read what is written next.
    pub lowest_epoch: Epoch,
}

/// A keystore file whose MAC has not been checked: good for finding a slot to open, and nothing else.
#[derive(Debug)]
pub struct UnverifiedKeystoreFile<'a> {
    body: KeystoreBody,
    message: &'a [u8],
    mac: [u8; body::MAC_SIZE],
}

impl<'a> UnverifiedKeystoreFile<'a> {
    /// Decodes a keystore file and checks every limit.
    ///
    /// # Errors
    ///
    /// The [`FormatError`] that names the first thing wrong.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let (body, rest) = body::decode(MAGIC, BODY_SIZE_MAX, bytes)?;
        let (message, mac) = body::split_mac(bytes, rest)?;
        check(&body)?;
        Ok(Self { body, message, mac })
    }

    /// Returns the keystore's id. Not authenticated.
    pub fn id(&self) -> KeystoreId {
        self.body.id
    }

    /// Returns the slots. Not authenticated: who shows a label must expect any characters in it.
    pub fn slots(&self) -> &[Slot] {
        &self.body.slots
    }

    /// Checks the MAC and returns the body.
    ///
    /// # Errors
    ///
    /// [`FormatError::NotAuthentic`] when the file was changed, or written under another root.
    pub fn verify(self, key: &MacKey) -> Result<KeystoreBody, FormatError> {
        if key.check(self.message, &self.mac) {
            Ok(self.body)
        } else {
            Err(FormatError::NotAuthentic)
        }
    }
}

/// Encodes a keystore file.
///
/// # Errors
///
/// The [`FormatError`] that a reader would have given: nothing is written that cannot be read.
pub fn encode(keystore: &KeystoreBody, key: &MacKey) -> Result<Vec<u8>, FormatError> {
    check(keystore)?;
    let mut out = body::encode(MAGIC, BODY_SIZE_MAX, keystore)?;
    let mac = key.mac(&out);
    out.extend_from_slice(&mac);
    Ok(out)
}

/// Checks everything about a body that its types leave open.
fn check(keystore: &KeystoreBody) -> Result<(), FormatError> {
    body::check_extensions(&keystore.extensions)?;
    in_range((1..=SLOTS_MAX).contains(&keystore.slots.len()), "number of slots")?;
    in_range((1..=KEYS_MAX).contains(&keystore.keys.len()), "number of keys")?;
    in_range(keystore.aliases.len() <= ALIASES_MAX, "number of aliases")?;
    in_range(keystore.vaults.len() <= VAULTS_MAX, "number of vaults")?;
    in_range(body::rises(keystore.slots.iter().map(|slot| slot.id)), "slot id")?;
    in_range(body::rises(keystore.keys.iter().map(|key| key.id)), "key id")?;
    in_range(
        body::rises(keystore.aliases.iter().map(|alias| &alias.name)),
        "name of an alias",
    )?;
    in_range(
        body::rises(keystore.vaults.iter().map(|record| record.vault)),
        "vault id",
    )?;
    keystore.slots.iter().try_for_each(check_slot)?;
    keystore.keys.iter().try_for_each(check_key)
}

fn check_slot(slot: &Slot) -> Result<(), FormatError> {
    in_range(slot.label.len() <= LABEL_LEN_MAX, "length of a label")?;
    in_range(slot.public_key.len() == PUBLIC_KEY_SIZE, "size of a public key")?;
    in_range(
        slot.encapsulated.len() == ENCAPSULATED_SIZE,
        "size of an encapsulated key",
    )
}

fn check_key(key: &KeyRecord) -> Result<(), FormatError> {
    in_range(key.description.len() <= DESCRIPTION_LEN_MAX, "length of a description")?;
    in_range(
        (1..=MATERIALS_MAX).contains(&key.materials.len()),
        "number of materials",
    )?;
    let versions = || key.materials.iter().map(|material| material.version);
    in_range(
        body::rises(versions()) && versions().all(|v| v.0 > 0),
        "version of a material",
    )
}

fn in_range(holds: bool, field: &'static str) -> Result<(), FormatError> {
    if holds {
        Ok(())
    } else {
        Err(FormatError::OutOfRange(field))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::keys::KeyBytes;

    fn mac_key() -> MacKey {
        MacKey::new(KeyBytes::copy_of(&[5; 32]))
    }

    fn slot(id: u32, kind: SlotKind) -> Slot {
        Slot {
            id: SlotId(id),
            label: format!("slot {id}"),
            created: 7,
            kind,
            public_key: vec![1; PUBLIC_KEY_SIZE],
            encapsulated: vec![2; ENCAPSULATED_SIZE],
            sealed_root: SealedRootBytes::from_slice(&[3; SEALED_ROOT_SIZE]).unwrap(),
            authenticator: Wrapped([10; WRAPPED_SIZE]),
        }
    }

    fn hardness() -> Hardness {
        Hardness {
            salt: [9; 16],
            memory_kib: 10,
            passes: 11,
            lanes: 12,
        }
    }

    fn material(version: u32) -> Material {
        Material {
            version: MaterialVersion(version),
            id: [4; 32],
            created: 8,
            wrapped: Wrapped([6; WRAPPED_SIZE]),
        }
    }

    fn key(id: u8) -> KeyRecord {
        KeyRecord {
            id: KeyId([id; 16]),
            manager: Manager::Hushfs,
            state: KeyState::PendingDeletion { date: 99 },
            created: 3,
            description: "d".into(),
            rotation: Some(Rotation {
                period_days: 365,
                next: 1000,
            }),
            materials: vec![material(1), material(3)],
        }
    }

    fn good() -> KeystoreBody {
        KeystoreBody {
            id: KeystoreId([1; 16]),
            generation: 2,
            last_time: 3,
            slots: vec![slot(1, SlotKind::Passphrase(hardness())), slot(2, SlotKind::KeyFile)],
            keys: vec![key(1), key(2)],
            aliases: vec![
                Alias {
                    name: "alias/a".into(),
                    key: KeyId([1; 16]),
                },
                Alias {
                    name: "alias/b".into(),
                    key: KeyId([1; 16]),
                },
            ],
            vaults: vec![VaultRecord {
                vault: VaultId([1; 16]),
                lowest_epoch: Epoch(4),
            }],
            extensions: vec![Extension {
                kind: 1,
                critical: 0,
                data: vec![1, 2],
            }],
        }
    }

    /// Encodes without the checks of `encode`, as an attacker would.
    fn encode_unchecked(body: &KeystoreBody) -> Vec<u8> {
        let mut bytes = body::encode(MAGIC, BODY_SIZE_MAX, body).unwrap();
        bytes.extend_from_slice(&mac_key().mac(&bytes));
        bytes
    }

    #[test]
    fn what_is_encoded_decodes() {
        let bytes = encode(&good(), &mac_key()).unwrap();
        let file = UnverifiedKeystoreFile::decode(&bytes).unwrap();
        assert_eq!(file.slots().len(), 2);
        assert_eq!(file.id(), good().id);
        assert_eq!(file.verify(&mac_key()).unwrap(), good());
    }

    #[test]
    fn the_bytes_are_those_of_the_format() {
        fn string(text: &str) -> Vec<u8> {
            [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
        }
        let mut body = good();
        body.slots.truncate(1);
        body.keys.truncate(1);
        body.aliases.truncate(1);
        let (one, two) = (1u64.to_le_bytes(), 2u64.to_le_bytes());
        let mut expected: Vec<u8> = Vec::new();
        let mut put = |bytes: &[u8]| expected.extend_from_slice(bytes);
        put(&[1; 16]);
        put(&two);
        put(&3u64.to_le_bytes());
        put(&one); // slots
        put(&1u32.to_le_bytes());
        put(&string("slot 1"));
        put(&7u64.to_le_bytes());
        put(&0u32.to_le_bytes());
        put(&[9; 16]);
        put(&10u32.to_le_bytes());
        put(&11u32.to_le_bytes());
        put(&12u32.to_le_bytes());
        put(&1216u64.to_le_bytes());
        put(&[1; 1216]);
        put(&1120u64.to_le_bytes());
        put(&[2; 1120]);
        put(&[3; 48]);
        put(&[10; 96]);
        put(&one); // keys
        put(&[1; 16]);
        put(&1u32.to_le_bytes());
        put(&2u32.to_le_bytes());
        put(&99u64.to_le_bytes());
        put(&3u64.to_le_bytes());
        put(&string("d"));
        put(&[1]);
        put(&365u32.to_le_bytes());
        put(&1000u64.to_le_bytes());
        put(&two);
        for version in [1u32, 3] {
            put(&version.to_le_bytes());
            put(&[4; 32]);
            put(&8u64.to_le_bytes());
            put(&[6; 96]);
        }
        put(&one); // aliases
        put(&string("alias/a"));
        put(&[1; 16]);
        put(&one); // vaults
        put(&[1; 16]);
        put(&4u32.to_le_bytes());
        put(&one); // extensions
        put(&1u16.to_le_bytes());
        put(&[0]);
        put(&two);
        put(&[1, 2]);
        let mut file = b"HUSHKEYS\x01\0\x01\0".to_vec();
        file.extend_from_slice(&(expected.len() as u32).to_le_bytes());
        file.extend_from_slice(&expected);
        file.extend_from_slice(&mac_key().mac(&file));
        assert_eq!(encode(&body, &mac_key()).unwrap(), file);
    }

    #[test]
    fn each_fault_of_the_body_has_its_name() {
        let fault = |change: fn(&mut KeystoreBody)| {
            let mut body = good();
            change(&mut body);
            let error = UnverifiedKeystoreFile::decode(&encode_unchecked(&body)).unwrap_err();
            assert_eq!(
                encode(&body, &mac_key()),
                Err(error.clone()),
                "what cannot be read is not written"
            );
            match error {
                FormatError::OutOfRange(field) => field,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(fault(|b| b.slots.clear()), "number of slots");
        assert_eq!(
            fault(|b| b.slots = (0..33).map(|id| slot(id, SlotKind::Recovery)).collect()),
            "number of slots"
        );
        assert_eq!(fault(|b| b.slots.swap(0, 1)), "slot id");
        assert_eq!(fault(|b| b.slots[1].id = b.slots[0].id), "slot id");
        assert_eq!(fault(|b| b.slots[0].label = "x".repeat(65)), "length of a label");
        assert_eq!(fault(|b| b.slots[0].public_key.push(0)), "size of a public key");
        assert_eq!(fault(|b| b.slots[1].public_key.clear()), "size of a public key");
        assert_eq!(
            fault(|b| b.slots[0].encapsulated.truncate(1119)),
            "size of an encapsulated key"
        );
        assert_eq!(fault(|b| b.keys.clear()), "number of keys");
        assert_eq!(fault(|b| b.keys = vec![key(1); 1025]), "number of keys");
        assert_eq!(fault(|b| b.keys.swap(0, 1)), "key id");
        assert_eq!(
            fault(|b| b.keys[0].description = "x".repeat(8193)),
            "length of a description"
        );
        assert_eq!(fault(|b| b.keys[0].materials.clear()), "number of materials");
        assert_eq!(
            fault(|b| b.keys[0].materials = (1..=1001).map(material).collect()),
            "number of materials"
        );
        assert_eq!(fault(|b| b.keys[0].materials.swap(0, 1)), "version of a material");
        assert_eq!(fault(|b| b.keys[0].materials[0].version.0 = 0), "version of a material");
        assert_eq!(
            fault(|b| b.aliases = vec![b.aliases[0].clone(); 4097]),
            "number of aliases"
        );
        assert_eq!(fault(|b| b.aliases.swap(0, 1)), "name of an alias");
        assert_eq!(fault(|b| b.vaults = vec![b.vaults[0]; 4097]), "number of vaults");
        assert_eq!(fault(|b| b.vaults.push(b.vaults[0])), "vault id");
        assert_eq!(
            fault(|b| b.extensions = vec![b.extensions[0].clone(); 65]),
            "number of extensions"
        );
    }

    #[test]
    fn each_fault_of_the_file_has_its_name() {
        let fault = |change: fn(&mut Vec<u8>)| {
            let mut bytes = encode(&good(), &mac_key()).unwrap();
            change(&mut bytes);
            UnverifiedKeystoreFile::decode(&bytes)
                .and_then(|file| file.verify(&mac_key()))
                .unwrap_err()
        };
        assert_eq!(fault(|b| b[0] ^= 1), FormatError::NotOne);
        assert_eq!(fault(|b| b[8] = 2), FormatError::Newer(2));
        assert_eq!(fault(|b| b[10] = 2), FormatError::OutOfRange("body encoding"));
        assert_eq!(fault(|b| b[15] = 1), FormatError::OutOfRange("length of the body"));
        assert_eq!(fault(|b| b.clear()), FormatError::TooShort);
        assert_eq!(fault(|b| b.truncate(b.len() - 1)), FormatError::TooShort);
        assert_eq!(fault(|b| b.truncate(100)), FormatError::TooShort);
        assert_eq!(fault(|b| b.push(0)), FormatError::TrailingBytes);
        assert_eq!(
            fault(|b| b[48] = 200),
            FormatError::NotCanonical,
            "a count of slots above what is there"
        );
        assert_eq!(fault(|b| *b.last_mut().unwrap() ^= 1), FormatError::NotAuthentic);
        assert_eq!(fault(|b| b[16] ^= 1), FormatError::NotAuthentic);
    }

    #[test]
    fn an_unknown_critical_extension_is_refused() {
        let mut body = good();
        body.extensions[0].critical = 1;
        let error = UnverifiedKeystoreFile::decode(&encode_unchecked(&body)).unwrap_err();
        assert_eq!(error, FormatError::UnknownFeature);
    }

    #[test]
    fn a_body_above_its_limit_is_not_written() {
        let mut body = good();
        body.extensions[0].data = vec![0; BODY_SIZE_MAX];
        assert_eq!(
            encode(&body, &mac_key()),
            Err(FormatError::OutOfRange("length of the body"))
        );
    }

    #[test]
    fn the_kind_in_the_additional_data_is_the_kind_in_the_body() {
        for kind in [SlotKind::Passphrase(hardness()), SlotKind::KeyFile, SlotKind::Recovery] {
            let encoded = body::encode(MAGIC, 100, &kind).unwrap();
            let aad = slot_aad(KeystoreId([8; 16]), SlotId(2), &kind);
            assert_eq!(aad[..20], [[8; 16].as_slice(), &[2, 0, 0, 0]].concat());
            assert_eq!(aad[20..], encoded[body::FRONT_SIZE..]);
        }
    }

    #[test]
    fn a_sealed_root_has_one_size() {
        assert_eq!(SealedRootBytes::from_slice(&[7; 48]).unwrap().as_bytes(), [7; 48]);
        for size in [0, 32, 47, 49, 64] {
            assert_eq!(SealedRootBytes::from_slice(&vec![7; size]), None);
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = UnverifiedKeystoreFile::decode(&bytes);
            let mut framed = b"HUSHKEYS\x01\0\x01\0".to_vec();
            framed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            framed.extend_from_slice(&bytes);
            framed.extend_from_slice(&[0; 32]);
            let _ = UnverifiedKeystoreFile::decode(&framed);
        }

        #[test]
        fn mutated_bytes_never_panic_and_never_verify(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let original = encode(&good(), &mac_key()).unwrap();
            let mut bytes = original.clone();
            for (at, mask) in changes {
                let at = at.index(bytes.len());
                bytes[at] ^= mask;
            }
            prop_assume!(bytes != original);
            if let Ok(file) = UnverifiedKeystoreFile::decode(&bytes) {
                prop_assert_eq!(&encode_unchecked(&file.body)[..bytes.len() - 32], &bytes[..bytes.len() - 32]);
                prop_assert_eq!(file.verify(&mac_key()), Err(FormatError::NotAuthentic));
            }
            let _ = UnverifiedKeystoreFile::decode(&bytes[..cut.index(bytes.len())]);
        }
    }
}
