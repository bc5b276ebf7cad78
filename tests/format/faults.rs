//! Malformed files: each is refused with the error that names what is wrong with it.

use std::{collections::BTreeSet, fs, sync::Arc};

use hushfs::{
    crypto::keys::FileSecret,
    format::{
        FormatError::{
            self, Newer, NotAuthentic, NotCanonical, NotOne, OutOfRange, TooShort, TrailingBytes, UnknownFeature,
        },
        directory::DirectoryHeader,
        header::{OwnKey, UnverifiedHeader},
        keystore::{SlotId, UnverifiedKeystoreFile},
        link, name,
        preamble::UnverifiedPreamble,
        record::{self, Noted, RECORD_FRONT_SIZE},
        sealed::UnverifiedSealedHeader,
        snapshot::{Entry, Item, SNAPSHOT_HEAD_SIZE, SnapshotFront, SnapshotHead},
        vault::UnverifiedVaultHeader,
    },
    keystore::{LocalKeystore, Passphrase, SlotChoice, Unlock, UnlockError},
};

use super::fixed::{
    FILE, VAULT, data_key, directory_header_key, epoch_key, here, keystore_root, name_key, names_root, seal_key,
    xattr_keys,
};

/// The faults and their errors; `tests/format/vectors.py` makes the files, `tests/format/faults` has them.
const FAULTS: &[(&str, FormatError)] = &[
    ("header_wrong_magic", NotOne),
    ("header_newer_version", Newer(3)),
    ("header_version_zero", OutOfRange("format version")),
    ("header_cut", TooShort),
    ("header_trailing", TrailingBytes),
    ("header_wrong_encoding", OutOfRange("body encoding")),
    ("header_wrong_length", OutOfRange("length of the body")),
    ("header_unknown_suite", OutOfRange("suite")),
    ("header_other_suite", NotAuthentic),
    ("header_wrong_epoch", NotAuthentic),
    ("header_wrong_file", NotAuthentic),
    ("header_wrong_directory", NotAuthentic),
    ("header_wrong_vault", NotAuthentic),
    ("header_bad_commitment", NotAuthentic),
    ("header_bad_wrap_commitment", NotAuthentic),
    ("header_bad_wrap", NotAuthentic),
    ("header_2_cut", TooShort),
    ("header_2_trailing", TrailingBytes),
    ("header_2_as_version_1", OutOfRange("length of the body")),
    ("header_1_as_version_2", OutOfRange("length of the body")),
    ("header_2_wrong_length", OutOfRange("size of a wrapped key")),
    ("header_2_no_blob", OutOfRange("length of the body")),
    ("header_2_blob_too_large", OutOfRange("length of the body")),
    ("header_2_blob_length", OutOfRange("size of a wrapped key")),
    ("header_2_other_key", NotAuthentic),
    ("header_2_other_directory", NotAuthentic),
    ("header_2_other_blob", NotAuthentic),
    ("header_2_other_vault", NotAuthentic),
    ("header_2_bad_wrap", NotAuthentic),
    ("header_2_without_epoch_key", NotAuthentic),
    ("preamble_wrong_magic", NotOne),
    ("preamble_newer_version", Newer(2)),
    ("preamble_version_zero", OutOfRange("format version")),
    ("preamble_cut", TooShort),
    ("preamble_unknown_state", OutOfRange("state")),
    ("preamble_unknown_flag", OutOfRange("flags")),
    ("preamble_reserved", OutOfRange("reserved bytes")),
    ("preamble_reserved_tail", OutOfRange("reserved bytes")),
    ("preamble_bad_mac", NotAuthentic),
    ("preamble_other_key", NotAuthentic),
    ("dirhush_wrong_magic", NotOne),
    ("dirhush_newer_version", Newer(2)),
    ("dirhush_version_zero", OutOfRange("format version")),
    ("dirhush_cut", TooShort),
    ("dirhush_trailing", TrailingBytes),
    ("dirhush_unknown_flag", OutOfRange("flags")),
    ("dirhush_reserved", OutOfRange("flags")),
    ("dirhush_bad_mac", NotAuthentic),
    ("longname_wrong_magic", NotOne),
    ("longname_newer_version", Newer(2)),
    ("longname_version_zero", OutOfRange("format version")),
    ("longname_cut", TooShort),
    ("longname_trailing", TrailingBytes),
    ("longname_wrong_hash", NotAuthentic),
    ("link_wrong_magic", NotOne),
    ("link_newer_version", Newer(2)),
    ("link_version_zero", OutOfRange("format version")),
    ("link_cut", NotAuthentic),
    ("link_reserved", OutOfRange("reserved bytes")),
    ("link_no_target", NotAuthentic),
    ("link_wrong_id", NotAuthentic),
    ("xattr_cut", TooShort),
    ("xattr_changed", NotAuthentic),
    ("xattr_moved", NotAuthentic),
    ("xattr_wrong_name", NotAuthentic),
    ("xattr_name_beyond_end", TooShort),
    ("vault_header_wrong_magic", NotOne),
    ("vault_header_newer_version", Newer(3)),
    ("vault_header_version_zero", OutOfRange("format version")),
    ("vault_header_cut", TooShort),
    ("vault_header_trailing", TrailingBytes),
    ("vault_header_wrong_encoding", OutOfRange("body encoding")),
    ("vault_header_too_long", OutOfRange("length of the body")),
    ("vault_header_body_left_over", NotCanonical),
    ("vault_header_bad_mac", NotAuthentic),
    ("vault_header_unknown_suite", OutOfRange("suite")),
    ("vault_header_block_size", OutOfRange("block size")),
    ("vault_header_unknown_feature", UnknownFeature),
    ("vault_header_critical_extension", UnknownFeature),
    ("vault_header_too_many_extensions", OutOfRange("number of extensions")),
    ("vault_header_bucket_keys_not_critical", OutOfRange("bucket keys")),
    ("vault_header_bucket_keys_twice", OutOfRange("bucket keys")),
    ("vault_header_bucket_keys_state", OutOfRange("bucket keys")),
    ("vault_header_bucket_keys_empty", TooShort),
    ("vault_header_bucket_keys_of_no_directory", OutOfRange("bucket keys")),
    ("vault_header_2_bucket_keys_fall", OutOfRange("bucket keys")),
    ("vault_header_no_epoch", OutOfRange("current epoch")),
    ("vault_header_epoch_zero", OutOfRange("order of the epochs")),
    ("vault_header_epochs_fall", OutOfRange("order of the epochs")),
    ("vault_header_current_missing", OutOfRange("current epoch")),
    ("vault_header_no_wrap", OutOfRange("number of wraps")),
    ("vault_header_too_many_wraps", OutOfRange("number of wraps")),
    ("vault_header_context_falls", OutOfRange("encryption context")),
    ("vault_header_blob_too_large", OutOfRange("size of a wrapped epoch key")),
    ("vault_header_customer_epoch", OutOfRange("epochs of the vault")),
    ("vault_header_2_one_key", OutOfRange("format version")),
    ("vault_header_2_body_left_over", NotCanonical),
    ("vault_header_2_keys_fall", OutOfRange("keys of the vault")),
    ("vault_header_2_too_many_keys", OutOfRange("keys of the vault")),
    ("vault_header_2_key_without_epoch", OutOfRange("epochs of a key")),
    ("vault_header_2_epochs_fall", OutOfRange("epochs of a key")),
    ("vault_header_2_epoch_missing", OutOfRange("epochs of a key")),
    ("vault_header_2_epoch_of_other_key", OutOfRange("epochs of a key")),
    ("vault_header_2_opens_names", OutOfRange("epochs of a key")),
    ("vault_header_2_two_wraps", OutOfRange("epochs of a key")),
    ("vault_header_2_current_of_key", OutOfRange("epochs of the vault")),
    ("vault_header_2_customer_in_none", OutOfRange("epochs of the vault")),
    ("vault_header_2_directory_of_no_key", OutOfRange("keys of directories")),
    (
        "vault_header_2_directory_of_customer",
        OutOfRange("keys of directories"),
    ),
    ("vault_header_2_directories_fall", OutOfRange("keys of directories")),
    ("vault_header_2_too_many_directories", OutOfRange("keys of directories")),
    ("vault_header_2_unknown_custodian", NotCanonical),
    ("vault_header_context_not_utf8", NotCanonical),
    ("keystore_wrong_magic", NotOne),
    ("keystore_newer_version", Newer(3)),
    ("keystore_version_zero", OutOfRange("format version")),
    ("keystore_cut", TooShort),
    ("keystore_trailing", TrailingBytes),
    ("keystore_too_long", OutOfRange("length of the body")),
    ("keystore_bad_mac", NotAuthentic),
    ("keystore_no_slot", OutOfRange("number of slots")),
    ("keystore_too_many_slots", OutOfRange("number of slots")),
    ("keystore_slots_fall", OutOfRange("slot id")),
    ("keystore_unknown_slot_kind", NotCanonical),
    ("keystore_1_unknown_slot_kind", NotCanonical),
    ("keystore_1_body_of_2", NotCanonical),
    ("keystore_credential_path", OutOfRange("name of a credential")),
    ("keystore_command_empty", OutOfRange("number of words")),
    ("keystore_command_too_long", OutOfRange("words of a command")),
    ("keystore_tpm_registers", OutOfRange("registers of a TPM")),
    ("keystore_tpm_pin_two", NotCanonical),
    ("keystore_recipient_size", OutOfRange("size of a public key")),
    (
        "keystore_slot_blob_too_large",
        OutOfRange("size of a wrapped slot secret"),
    ),
    ("keystore_remote_url", OutOfRange("ARN of a key")),
    ("keystore_remote_token_label", OutOfRange("label of a token")),
    ("keystore_remote_unknown", NotCanonical),
    ("keystore_remote_material", OutOfRange("number of materials")),
    ("keystore_material_cause", NotCanonical),
    ("keystore_tags_fall", OutOfRange("name of a tag")),
    ("keystore_too_many_tags", OutOfRange("number of tags")),
    ("keystore_tag_too_long", OutOfRange("name of a tag")),
    ("keystore_policy_too_long", OutOfRange("length of a policy")),
    ("keystore_last_use_unknown", NotCanonical),
    ("keystore_vault_path_too_long", OutOfRange("length of a path")),
    ("keystore_vault_keys_fall", OutOfRange("key id of a vault")),
    ("keystore_vault_too_many_keys", OutOfRange("number of a vault's keys")),
    ("keystore_label_too_long", OutOfRange("length of a label")),
    ("keystore_public_key_size", OutOfRange("size of a public key")),
    ("keystore_no_key", OutOfRange("number of keys")),
    ("keystore_unknown_manager", NotCanonical),
    ("keystore_option_two", NotCanonical),
    ("keystore_no_material", OutOfRange("number of materials")),
    ("keystore_material_zero", OutOfRange("version of a material")),
    ("keystore_aliases_fall", OutOfRange("name of an alias")),
    ("keystore_marks_fall", OutOfRange("marks of vaults")),
    ("keystore_marks_cut", TooShort),
    ("keystore_marks_none", OutOfRange("marks of vaults")),
    ("keystore_marks_not_critical", OutOfRange("marks of vaults")),
    ("keystore_marks_twice", OutOfRange("marks of vaults")),
    ("keystore_too_many_marks", OutOfRange("marks of vaults")),
    ("keystore_vaults_fall", OutOfRange("vault id")),
    ("keystore_critical_extension", UnknownFeature),
    ("keystore_huge_count", NotCanonical),
    ("sealed_wrong_magic", NotOne),
    ("sealed_newer_version", Newer(2)),
    ("sealed_version_zero", OutOfRange("format version")),
    ("sealed_cut", TooShort),
    ("sealed_trailing", TrailingBytes),
    ("sealed_wrong_encoding", OutOfRange("body encoding")),
    ("sealed_too_long", OutOfRange("length of the body")),
    ("sealed_unknown_suite", OutOfRange("suite")),
    ("sealed_other_suite", NotAuthentic),
    ("sealed_block_size", OutOfRange("block size")),
    ("sealed_other_block_size", NotAuthentic),
    ("sealed_bad_commitment", NotAuthentic),
    ("sealed_bad_mac", NotAuthentic),
    ("sealed_pairs_fall", NotCanonical),
    (
        "sealed_too_many_pairs",
        OutOfRange("number of pairs in the encryption context"),
    ),
    ("sealed_no_way", OutOfRange("number of ways")),
    ("sealed_ways_fall", NotCanonical),
    ("sealed_too_many_ways", OutOfRange("number of ways")),
    ("sealed_unknown_way", NotCanonical),
    ("sealed_blob_too_large", OutOfRange("size of a wrapped key")),
    ("sealed_critical_extension", UnknownFeature),
    ("record_wrong_magic", NotOne),
    ("record_newer_version", Newer(2)),
    ("record_version_zero", OutOfRange("format version")),
    ("record_cut", TooShort),
    ("record_reserved", OutOfRange("vault")),
    ("record_other_vault", OutOfRange("vault")),
    ("record_other_key", NotAuthentic),
    ("record_batch_kind", OutOfRange("kind of a batch")),
    ("record_batch_empty", OutOfRange("size of a batch")),
    ("record_batch_too_large", OutOfRange("size of a batch")),
    ("record_unknown_flag", OutOfRange("flags")),
    ("record_bad_front_mac", NotAuthentic),
    ("record_bad_batch_mac", NotAuthentic),
    ("record_batch_missing", NotAuthentic),
    ("snapshot_wrong_magic", NotOne),
    ("snapshot_newer_version", Newer(2)),
    ("snapshot_cut", NotAuthentic),
    ("snapshot_reserved", OutOfRange("reserved bytes")),
    ("snapshot_other_vault", NotAuthentic),
    ("snapshot_other_key", NotAuthentic),
    ("snapshot_not_the_last", NotAuthentic),
    ("snapshot_unknown_flag", OutOfRange("flags")),
    ("snapshot_entry_cut", TooShort),
    ("snapshot_empty_name", OutOfRange("name")),
    ("snapshot_name_with_slash", OutOfRange("name")),
    ("snapshot_unknown_kind", OutOfRange("kind of an entry")),
    ("snapshot_placed_two", OutOfRange("flags")),
    ("snapshot_wrong_count", OutOfRange("number of entries")),
    ("snapshot_trailing", TrailingBytes),
];

/// Keystores whose slot asks Argon2id for what hushfs never runs. As files they are well formed.
const HOSTILE: &[&str] = &[
    "keystore_hostile_argon2_memory",
    "keystore_hostile_argon2_passes",
    "keystore_hostile_argon2_lanes",
    "keystore_weak_argon2_memory",
    "keystore_no_argon2_passes",
];

/// Decodes and authenticates a file as its kind says.
pub fn open(kind: &str, bytes: &[u8]) -> Result<(), FormatError> {
    match kind {
        "header" => {
            let header = UnverifiedHeader::decode(bytes)?;
            let verified = match header.own() {
                None => header.verify(VAULT, &epoch_key().header_wrapping_key(VAULT)),
                // As of a custodian that opens whatever the header has: the wrap must notice.
                Some(wrap) => header.verify_own(
                    VAULT,
                    &epoch_key().header_wrapping_key(VAULT),
                    &Arc::new(OwnKey {
                        secret: FileSecret::of(&epoch_key()),
                        wrap: wrap.clone(),
                    }),
                ),
            };
            verified.map(drop).map_err(|_| NotAuthentic)
        }
        "preamble" => UnverifiedPreamble::decode(bytes)?.verify(&seal_key()).map(drop),
        "dirhush" => DirectoryHeader::decode(bytes, &directory_header_key()).map(drop),
        "longname" => {
            let entry = name::seal(&name_key(), &[b'n'; 161]).entry;
            name::decode_long_name(bytes, &entry).map(drop)
        }
        "link" => link::open_file(&names_root().symlink_key(), FILE, bytes).map(drop),
        "xattr" => xattr_keys().open(xattr_keys().hash(b"user.colour"), bytes).map(drop),
        "vault" => UnverifiedVaultHeader::decode(bytes)?
            .verify(&epoch_key().vault_header_mac_key(VAULT))
            .map(drop),
        "keystore" => UnverifiedKeystoreFile::decode(bytes)?
            .verify(&keystore_root().mac_key())
            .map(drop),
        "sealed" => UnverifiedSealedHeader::decode(bytes)?.verify(&data_key()).map(drop),
        "record" => open_record(bytes).map(drop),
        "snapshot" => open_snapshot(bytes).map(drop),
        kind => panic!("no such kind: {kind}"),
    }
}

/// Decodes and authenticates a record; returns what its batches note.
pub fn open_record(bytes: &[u8]) -> Result<Vec<Noted>, FormatError> {
    let key = names_root().record_key();
    let mut before = record::decode_front(&key, VAULT, bytes)?;
    let mut rest = &bytes[RECORD_FRONT_SIZE..];
    let mut noted = Vec::new();
    while !rest.is_empty() {
        let batch = record::decode_batch(&key, &before, rest)?;
        before = batch.mac;
        rest = &rest[batch.size..];
        noted.push(batch.noted);
    }
    Ok(noted)
}

/// Decodes and authenticates a snapshot of one chunk; returns its head and its entries.
pub fn open_snapshot(bytes: &[u8]) -> Result<(SnapshotHead, Vec<Entry>), FormatError> {
    let (front, chunk) = bytes.split_first_chunk().ok_or(TooShort)?;
    let front = SnapshotFront::decode(front)?;
    let plain = front.open_chunk(&names_root().snapshot_key(front.snapshot), 0, true, chunk)?;
    let head = SnapshotHead::decode(&plain)?;
    let mut rest = &plain[SNAPSHOT_HEAD_SIZE..];
    let mut entries = Vec::new();
    loop {
        let (item, size) = Item::decode(rest)?;
        rest = &rest[size..];
        match item {
            Item::Entry(entry) => entries.push(entry),
            Item::End { entries: count } if count != entries.len() as u64 => {
                return Err(OutOfRange("number of entries"));
            }
            Item::End { .. } if !rest.is_empty() => return Err(TrailingBytes),
            Item::End { .. } => return Ok((head, entries)),
        }
    }
}

fn read(fault: &str) -> Vec<u8> {
    fs::read(here().join("faults").join(format!("{fault}.bin"))).unwrap()
}

#[test]
fn each_fault_has_its_error() {
    for (fault, error) in FAULTS {
        let kind = fault.split('_').next().unwrap();
        assert_eq!(open(kind, &read(fault)), Err(error.clone()), "{fault}");
    }
}

#[test]
fn hostile_argon2_parameters_are_refused_before_they_are_run() {
    for fault in HOSTILE {
        let bytes = read(fault);
        assert_eq!(open("keystore", &bytes), Ok(()), "{fault}");
        let typed = Unlock::Passphrase(Passphrase::new(b"passphrase".to_vec().into()).unwrap());
        let error = LocalKeystore::unlock(&bytes, &typed, &SlotChoice::Any)
            .map(drop)
            .unwrap_err();
        assert_eq!(error, UnlockError::HostileParameters { slot: SlotId(1) }, "{fault}");
    }
}

#[test]
fn every_file_of_faults_is_in_the_table() {
    let files = fs::read_dir(here().join("faults")).unwrap();
    let files: BTreeSet<String> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    let table = FAULTS.iter().map(|(fault, _)| fault).chain(HOSTILE);
    assert_eq!(files, table.map(|fault| format!("{fault}.bin")).collect());
}
