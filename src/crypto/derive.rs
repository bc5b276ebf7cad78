//! Every key and id that comes from another key, in one table: docs/FORMAT.md section 1.1.
//!
//! The inputs of each context have a fixed size, or one field of free length at the end, so no two inputs give the same bytes.

use zeroize::Zeroize;

use super::{
    KEY_SIZE,
    keys::{
        AuditKey, AuditSeed, CustomerKey, DataKey, EpochKey, FileSecret, KeyBytes, KeystoreRoot, MacKey, NamesRoot,
        SivKey, SlotAuthenticator, SlotSecret, WrappingKey,
    },
    record::RecordKey,
};
use crate::ids::{DirectoryId, FileId, LogId, NamesMark, SnapshotId, VaultId};

/// The context strings of the format. Each is used for one purpose only.
pub mod context {
    pub const COMMITTING_WRAP: &str = "hushfs v1 committing wrap";
    pub const HEADER_WRAPPING_KEY: &str = "hushfs v1 header wrapping key";
    pub const FILE_WRAPPING_KEY: &str = "hushfs v1 file wrapping key";
    pub const NAMES_ROOT_WRAPPING_KEY: &str = "hushfs v1 names root wrapping key";
    pub const VAULT_HEADER_MAC_KEY: &str = "hushfs v1 vault header mac key";
    pub const NAMES_ROOT_MARK: &str = "hushfs v1 names root mark";
    pub const ROOT_DIRECTORY_ID: &str = "hushfs v1 root directory id";
    pub const DIRECTORY_ID: &str = "hushfs v1 directory id";
    pub const DIRECTORY_NAME_KEY: &str = "hushfs v1 directory name key";
    pub const DIRECTORY_HEADER_KEY: &str = "hushfs v1 directory header key";
    pub const LONG_NAME: &str = "hushfs v1 long name";
    pub const JOURNAL_KEY: &str = "hushfs v1 journal key";
    pub const SYMLINK_KEY: &str = "hushfs v1 symlink key";
    pub const XATTR_KEY: &str = "hushfs v1 xattr key";
    pub const XATTR_NAME_KEY: &str = "hushfs v1 xattr name key";
    pub const BLOCK_KEY: &str = "hushfs v1 block key";
    pub const SEAL_KEY: &str = "hushfs v1 seal key";
    pub const FILE_KEY_COMMITMENT: &str = "hushfs v1 file key commitment";
    pub const KEYSTORE_MAC_KEY: &str = "hushfs v1 keystore mac key";
    pub const KEY_MATERIAL_ID: &str = "hushfs v1 key material id";
    pub const KEY_FILE_SLOT: &str = "hushfs v1 key file slot";
    pub const RECOVERY_SLOT: &str = "hushfs v1 recovery slot";
    pub const RECOVERY_KEY_CHECKSUM: &str = "hushfs v1 recovery key checksum";
    pub const PASSPHRASE_SLOT: &str = "hushfs v1 passphrase slot";
    pub const SLOT_AUTHENTICATOR: &str = "hushfs v1 slot authenticator";
    pub const SHARE_CODE: &str = "hushfs v1 share code";
    pub const IDENTITY_PASSPHRASE: &str = "hushfs v1 identity passphrase";
    pub const TEXT_CHECKSUM: &str = "hushfs v1 text checksum";
    pub const CUSTOMER_KEY: &str = "hushfs v1 customer key";
    pub const AUDIT_FIRST_KEY: &str = "hushfs v1 audit first key";
    pub const AUDIT_NEXT_KEY: &str = "hushfs v1 audit next key";
    pub const RECORD_KEY: &str = "hushfs v1 record key";
    pub const SNAPSHOT_KEY: &str = "hushfs v1 snapshot key";

    /// All of them, for the test that compares this table with docs/FORMAT.md.
    pub const ALL: [&str; 33] = [
        COMMITTING_WRAP,
        HEADER_WRAPPING_KEY,
        FILE_WRAPPING_KEY,
        NAMES_ROOT_WRAPPING_KEY,
        VAULT_HEADER_MAC_KEY,
        NAMES_ROOT_MARK,
        ROOT_DIRECTORY_ID,
        DIRECTORY_ID,
        DIRECTORY_NAME_KEY,
        DIRECTORY_HEADER_KEY,
        LONG_NAME,
        JOURNAL_KEY,
        SYMLINK_KEY,
        XATTR_KEY,
        XATTR_NAME_KEY,
        BLOCK_KEY,
        SEAL_KEY,
        FILE_KEY_COMMITMENT,
        KEYSTORE_MAC_KEY,
        KEY_MATERIAL_ID,
        KEY_FILE_SLOT,
        RECOVERY_SLOT,
        RECOVERY_KEY_CHECKSUM,
        PASSPHRASE_SLOT,
        SLOT_AUTHENTICATOR,
        SHARE_CODE,
        IDENTITY_PASSPHRASE,
        TEXT_CHECKSUM,
        CUSTOMER_KEY,
        AUDIT_FIRST_KEY,
        AUDIT_NEXT_KEY,
        RECORD_KEY,
        SNAPSHOT_KEY,
    ];
}

/// Derives `out.len()` bytes from the parts of an input, under a context of the table.
fn derive_into(context: &str, parts: &[&[u8]], out: &mut [u8]) {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize_xof().fill(out);
    hasher.zeroize();
}

/// Derives a key.
fn derive_key(context: &str, parts: &[&[u8]]) -> KeyBytes {
    let mut key = KeyBytes::zero();
    derive_into(context, parts, key.as_mut_bytes());
    key
}

/// Derives bytes that are not secret: ids, hashes, commitments.
pub(super) fn derive_public<const N: usize>(context: &str, parts: &[&[u8]]) -> [u8; N] {
    let mut out = [0; N];
    derive_into(context, parts, &mut out);
    out
}

/// Derives secret bytes of any length for the caller to wipe.
pub(super) fn derive_secret(context: &str, parts: &[&[u8]], out: &mut [u8]) {
    derive_into(context, parts, out);
}

impl EpochKey {
    /// Derives the key that wraps data keys in header sidecars.
    pub fn header_wrapping_key(&self, vault: VaultId) -> WrappingKey {
        WrappingKey::new(derive_key(context::HEADER_WRAPPING_KEY, &[self.as_bytes(), &vault.0]))
    }

    /// Derives the key that wraps the names root.
    pub fn names_root_wrapping_key(&self, vault: VaultId) -> WrappingKey {
        WrappingKey::new(derive_key(
            context::NAMES_ROOT_WRAPPING_KEY,
            &[self.as_bytes(), &vault.0],
        ))
    }

    /// Derives the key of the vault header's MAC.
    pub fn vault_header_mac_key(&self, vault: VaultId) -> MacKey {
        MacKey::new(derive_key(context::VAULT_HEADER_MAC_KEY, &[self.as_bytes(), &vault.0]))
    }
}

impl FileSecret {
    /// Derives the key that wraps the data key of one file. The key that wraps data keys in the file's epoch is in it, or who may only have secrets made
    /// could make headers that open.
    pub fn file_wrapping_key(&self, of_epoch: &WrappingKey) -> WrappingKey {
        WrappingKey::new(derive_key(
            context::FILE_WRAPPING_KEY,
            &[self.as_bytes(), of_epoch.as_bytes()],
        ))
    }
}

impl CustomerKey {
    /// Derives the key that wraps epoch keys of a vault under a customer's key: of two vaults one cannot open what is the other's.
    pub fn epoch_wrapping_key(&self, vault: VaultId) -> WrappingKey {
        WrappingKey::new(derive_key(context::CUSTOMER_KEY, &[self.as_bytes(), &vault.0]))
    }
}

impl NamesRoot {
    /// Derives what a keystore knows the vault by.
    pub fn mark(&self) -> NamesMark {
        NamesMark(derive_public(context::NAMES_ROOT_MARK, &[self.as_bytes()]))
    }

    /// Derives the id of the root directory.
    pub fn root_directory_id(&self) -> DirectoryId {
        DirectoryId(derive_public(context::ROOT_DIRECTORY_ID, &[self.as_bytes()]))
    }

    /// Derives the id of a directory that has never been renamed.
    pub fn directory_id(&self, parent: DirectoryId, name_at_birth: &[u8]) -> DirectoryId {
        DirectoryId(derive_public(
            context::DIRECTORY_ID,
            &[self.as_bytes(), &parent.0, name_at_birth],
        ))
    }

    /// Derives the key that seals the names in a directory.
    pub fn directory_name_key(&self, directory: DirectoryId) -> SivKey {
        SivKey::new(derive_key(
            context::DIRECTORY_NAME_KEY,
            &[self.as_bytes(), &directory.0],
        ))
    }

    /// Derives the key of the MACs in directory headers.
    pub fn directory_header_key(&self) -> MacKey {
        MacKey::new(derive_key(context::DIRECTORY_HEADER_KEY, &[self.as_bytes()]))
    }

    /// Derives the key of the MACs in journals.
    pub fn journal_key(&self) -> MacKey {
        MacKey::new(derive_key(context::JOURNAL_KEY, &[self.as_bytes()]))
    }

    /// Derives the key that seals targets of symbolic links.
    pub fn symlink_key(&self) -> SivKey {
        SivKey::new(derive_key(context::SYMLINK_KEY, &[self.as_bytes()]))
    }

    /// Derives the key that seals extended attributes.
    pub fn xattr_key(&self) -> SivKey {
        SivKey::new(derive_key(context::XATTR_KEY, &[self.as_bytes()]))
    }

    /// Derives the key of the MACs and marks of what was seen of the vault: in the local record and in snapshots.
    pub fn record_key(&self) -> RecordKey {
        RecordKey::new(derive_key(context::RECORD_KEY, &[self.as_bytes()]))
    }

    /// Derives the key of one snapshot.
    pub fn snapshot_key(&self, snapshot: SnapshotId) -> SivKey {
        SivKey::new(derive_key(context::SNAPSHOT_KEY, &[self.as_bytes(), &snapshot.0]))
    }

    /// Derives the key of the hashes that extended attributes are stored under.
    pub fn xattr_name_key(&self) -> MacKey {
        MacKey::new(derive_key(context::XATTR_NAME_KEY, &[self.as_bytes()]))
    }
}

/// Returns the name on disk of an entry whose sealed name is too long.
pub fn long_name_hash(sealed_name: &[u8]) -> [u8; 33] {
    derive_public(context::LONG_NAME, &[sealed_name])
}

impl DataKey {
    /// Derives the key of the file's blocks.
    pub fn block_key(&self, file: FileId, suite: u16) -> KeyBytes {
        derive_key(context::BLOCK_KEY, &[self.as_bytes(), &file.0, &suite.to_le_bytes()])
    }

    /// Derives the key of the file's seal.
    pub fn seal_key(&self, file: FileId, suite: u16) -> super::seal::SealKey {
        super::seal::SealKey::new(derive_key(
            context::SEAL_KEY,
            &[self.as_bytes(), &file.0, &suite.to_le_bytes()],
        ))
    }

    /// Derives the commitment to this key and file.
    pub fn commitment(&self, file: FileId, suite: u16) -> [u8; 32] {
        derive_public(
            context::FILE_KEY_COMMITMENT,
            &[self.as_bytes(), &file.0, &suite.to_le_bytes()],
        )
    }
}

impl KeystoreRoot {
    /// Derives the key of the keystore file's MAC.
    pub fn mac_key(&self) -> MacKey {
        MacKey::new(derive_key(context::KEYSTORE_MAC_KEY, &[self.as_bytes()]))
    }
}

impl AuditSeed {
    /// Derives the key of the first line of a log.
    pub fn first_key(&self, log: LogId) -> AuditKey {
        AuditKey::new(derive_key(context::AUDIT_FIRST_KEY, &[self.as_bytes(), &log.0]))
    }
}

impl AuditKey {
    /// Derives the key of the next line; there is no way back.
    pub fn next(&self) -> AuditKey {
        AuditKey::new(derive_key(context::AUDIT_NEXT_KEY, &[self.as_bytes()]))
    }
}

/// Returns the hash by which a line of an audit log names the one before.
pub fn audit_line_hash(line: &[u8]) -> [u8; 32] {
    *blake3::hash(line).as_bytes()
}

impl SlotSecret {
    /// Derives the key that whoever seals a root to this slot must know.
    pub fn authenticator(&self) -> SlotAuthenticator {
        SlotAuthenticator::new(derive_key(context::SLOT_AUTHENTICATOR, &[self.as_bytes()]))
    }
}

impl SlotAuthenticator {
    /// Derives what who opens a slot can compare with what who made it has told them; it gives nothing of the slot away.
    pub fn share_code(&self) -> [u8; SHARE_CODE_SIZE] {
        derive_public(context::SHARE_CODE, &[self.as_bytes()])
    }
}

/// The size of a share code in bytes: nobody finds another secret with the same code.
pub const SHARE_CODE_SIZE: usize = 10;

/// Returns the checksum at the end of a text that stands for bytes of some kind.
pub fn text_checksum(kind: u8, bytes: &[u8]) -> [u8; 4] {
    derive_public(context::TEXT_CHECKSUM, &[&[kind], bytes])
}

/// Returns the public id of one version of a master key.
pub fn key_material_id(material: &[u8; KEY_SIZE]) -> [u8; 32] {
    derive_public(context::KEY_MATERIAL_ID, &[material])
}

/// Derives a slot's secret from the contents of a key file.
pub fn key_file_slot(contents: &[u8]) -> SlotSecret {
    SlotSecret::new(derive_key(context::KEY_FILE_SLOT, &[contents]))
}

/// Derives a slot's secret from a recovery key.
pub fn recovery_slot(recovery_key: &KeyBytes) -> SlotSecret {
    SlotSecret::new(derive_key(context::RECOVERY_SLOT, &[recovery_key.as_bytes()]))
}

/// Returns the checksum printed with a recovery key.
pub fn recovery_key_checksum(recovery_key: &KeyBytes) -> [u8; 3] {
    derive_public(context::RECOVERY_KEY_CHECKSUM, &[recovery_key.as_bytes()])
}

/// Derives the key that an identity is wrapped under from what Argon2id made of a passphrase.
pub(super) fn identity_passphrase(stretched: &KeyBytes) -> WrappingKey {
    WrappingKey::new(derive_key(context::IDENTITY_PASSPHRASE, &[stretched.as_bytes()]))
}

/// Derives a slot's secret from what Argon2id made of a passphrase.
pub(super) fn passphrase_slot(stretched: &KeyBytes) -> SlotSecret {
    SlotSecret::new(derive_key(context::PASSPHRASE_SLOT, &[stretched.as_bytes()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_context_is_in_the_table_of_the_format_and_used_once() {
        let format = include_str!("../../docs/FORMAT.md");
        let mut seen = std::collections::HashSet::new();
        for context in context::ALL {
            assert!(
                format.contains(&format!("| `{context}` |")),
                "{context} is not in FORMAT.md"
            );
            assert!(seen.insert(context), "{context} is used twice");
        }
        let in_format = format.lines().filter(|line| line.starts_with("| `hushfs v1 ")).count();
        assert_eq!(
            in_format,
            context::ALL.len(),
            "FORMAT.md has contexts that the code does not"
        );
    }

    #[test]
    fn a_file_has_three_different_derived_values() {
        let key = DataKey::new(KeyBytes::copy_of(&[1; KEY_SIZE]));
        let file = FileId([2; 16]);
        assert_ne!(key.block_key(file, 1).as_bytes(), &key.commitment(file, 1));
        assert_ne!(key.commitment(file, 1), key.commitment(file, 2));
        assert_ne!(key.commitment(file, 1), key.commitment(FileId([3; 16]), 1));
    }
}
