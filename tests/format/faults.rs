//! Malformed files: each is refused with the error that names what is wrong with it.

use std::{collections::BTreeSet, fs};

use hushfs::{
    format::{
        FormatError::{
            self, Newer, NotAuthentic, NotCanonical, NotOne, OutOfRange, TooShort, TrailingBytes, UnknownFeature,
        },
        directory::DirectoryHeader,
        header::UnverifiedHeader,
        keystore::{SlotId, UnverifiedKeystoreFile},
        link, name,
        preamble::UnverifiedPreamble,
        vault::UnverifiedVaultHeader,
    },
    keystore::{LocalKeystore, Passphrase, SlotChoice, Unlock, UnlockError},
};

use super::fixed::{
    FILE, VAULT, directory_header_key, epoch_key, here, keystore_root, name_key, names_root, seal_key, xattr_keys,
};

/// The faults and their errors; `tests/format/vectors.py` makes the files, `tests/format/faults` has them.
const FAULTS: &[(&str, FormatError)] = &[
    ("header_wrong_magic", NotOne),
    ("header_newer_version", Newer(2)),
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
    ("vault_header_newer_version", Newer(2)),
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
    ("vault_header_no_epoch", OutOfRange("current epoch")),
    ("vault_header_epoch_zero", OutOfRange("order of the epochs")),
    ("vault_header_epochs_fall", OutOfRange("order of the epochs")),
    ("vault_header_current_missing", OutOfRange("current epoch")),
    ("vault_header_no_wrap", OutOfRange("number of wraps")),
    ("vault_header_too_many_wraps", OutOfRange("number of wraps")),
    ("vault_header_context_falls", OutOfRange("encryption context")),
    ("vault_header_blob_too_large", OutOfRange("size of a wrapped epoch key")),
    ("vault_header_context_not_utf8", NotCanonical),
    ("keystore_wrong_magic", NotOne),
    ("keystore_newer_version", Newer(2)),
    ("keystore_version_zero", OutOfRange("format version")),
    ("keystore_cut", TooShort),
    ("keystore_trailing", TrailingBytes),
    ("keystore_too_long", OutOfRange("length of the body")),
    ("keystore_bad_mac", NotAuthentic),
    ("keystore_no_slot", OutOfRange("number of slots")),
    ("keystore_too_many_slots", OutOfRange("number of slots")),
    ("keystore_slots_fall", OutOfRange("slot id")),
    ("keystore_unknown_slot_kind", NotCanonical),
    ("keystore_label_too_long", OutOfRange("length of a label")),
    ("keystore_public_key_size", OutOfRange("size of a public key")),
    ("keystore_no_key", OutOfRange("number of keys")),
    ("keystore_unknown_manager", NotCanonical),
    ("keystore_option_two", NotCanonical),
    ("keystore_no_material", OutOfRange("number of materials")),
    ("keystore_material_zero", OutOfRange("version of a material")),
    ("keystore_aliases_fall", OutOfRange("name of an alias")),
    ("keystore_vaults_fall", OutOfRange("vault id")),
    ("keystore_critical_extension", UnknownFeature),
    ("keystore_huge_count", NotCanonical),
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
        "header" => UnverifiedHeader::decode(bytes)?
            .verify(VAULT, &epoch_key().header_wrapping_key(VAULT))
            .map(drop)
            .map_err(|_| NotAuthentic),
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
        kind => panic!("no such kind: {kind}"),
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
