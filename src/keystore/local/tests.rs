use std::sync::Arc;

use super::{rotation::ROTATED_MATERIALS_MAX, *};
use crate::{
    crypto::passphrase::HardnessError,
    format::keystore::{KeyState, Manager, MaterialCause, SLOTS_MAX, slot_authenticator_aad},
    ids::{Epoch, FileId, VaultId},
    keystore::{
        custodian::check_custodian,
        provider::{ProviderError, RemoteKeyState, memory::MemoryProvider},
        recovery::RecoveryKey,
        secret::SecretKind,
        slot::{
            seal_again,
            tests::{EASY, key_file, passphrase},
        },
    },
};

pub(super) const VAULT: VaultId = VaultId([7; 16]);

pub(super) fn keystore() -> LocalKeystore {
    LocalKeystore::create("stick", &NewSecret::KeyFile(&key_file(1)), 100).unwrap()
}

pub(super) fn unlock(bytes: &[u8], byte: u8) -> Result<LocalKeystore, UnlockError> {
    LocalKeystore::unlock(bytes, &Unlock::KeyFile(key_file(byte)), &SlotChoice::Any).map(|(keystore, _)| keystore)
}

pub(super) fn default_key(keystore: &LocalKeystore) -> KeyHandle {
    keystore.key_of_alias(DEFAULT_ALIAS).unwrap()
}

pub(super) fn epoch(number: u32) -> Context {
    Context::for_epoch(VAULT, Epoch(number))
}

#[test]
fn the_local_keystore_is_a_custodian() {
    let mut keystore = keystore();
    check_custodian(&keystore, &default_key(&keystore));
    keystore.renew(&default_key(&keystore), 1).unwrap();
    check_custodian(&keystore, &default_key(&keystore));
}

/// A keystore with one key that a server in memory holds.
pub(super) fn with_remote_key() -> (LocalKeystore, KeyHandle, Arc<MemoryProvider>) {
    let name = RemoteKeyName::AwsKms {
        arn: "arn:aws:kms:eu-central-1:111122223333:key/1".into(),
    };
    let server = Arc::new(MemoryProvider::default());
    server.set(&name, RemoteKeyState::Enabled);
    let mut keystore = keystore();
    keystore.set_providers(Providers {
        aws_kms: Some(server.clone()),
        pkcs11: None,
    });
    let new = NewKey {
        remote: Some(name),
        ..NewKey::default()
    };
    let key = keystore.create_key(&new, 1).unwrap();
    (keystore, key, server)
}

#[test]
fn a_keystore_is_a_custodian_of_keys_that_others_hold() {
    let (keystore, key, _) = with_remote_key();
    check_custodian(&keystore, &key);
    check_custodian(&keystore, &default_key(&keystore));
}

#[test]
fn what_a_provider_says_is_an_error_of_the_key() {
    let (mut keystore, key, server) = with_remote_key();
    let record = &keystore.keys()[keystore.key_index(&key).unwrap()];
    let name = record.remote.clone().unwrap();
    let (_, wrapped) = keystore.generate(&key, &epoch(1)).unwrap();
    let open = |keystore: &LocalKeystore| keystore.unwrap(&key, &epoch(1), &wrapped).map(drop);
    let key = key.0;
    server.set(&name, RemoteKeyState::Disabled);
    assert_eq!(open(&keystore), Err(KeyError::Disabled { key }));
    server.set(&name, RemoteKeyState::PendingDeletion { date: None });
    assert_eq!(open(&keystore), Err(KeyError::PendingDeletion { key }));
    server.set(&name, RemoteKeyState::Enabled);
    server.set_down(true);
    let provider = server.name();
    assert_eq!(open(&keystore), Err(KeyError::Unavailable { key, provider }));
    keystore.set_providers(Providers::default());
    let provider = "AWS KMS";
    assert_eq!(open(&keystore), Err(KeyError::NoProvider { key, provider }));
    assert_eq!(keystore.renew(&KeyHandle(key), 1), Err(KeyError::Unsupported { key }));
}

/// The server still has the key, so the vaults are not lost with the keystore.
#[test]
fn a_new_keystore_with_a_key_of_the_same_id_and_name_opens_what_a_lost_one_wrapped() {
    let (lost, key, server) = with_remote_key();
    let (secret, wrapped) = lost.generate(&key, &epoch(1)).unwrap();
    let mut new = keystore();
    new.set_providers(Providers {
        aws_kms: Some(server),
        pkcs11: None,
    });
    let record = lost.keys()[lost.key_index(&key).unwrap()].clone();
    let at = new.body.keys.partition_point(|other| other.id < record.id);
    new.body.keys.insert(at, record);
    let opened = new.unwrap(&key, &epoch(1), &wrapped).unwrap();
    assert_eq!(opened.as_bytes(), secret.as_bytes());
}

#[test]
fn a_remote_key_stays_as_it_is_when_a_slot_goes() {
    let (mut keystore, key, _) = with_remote_key();
    let (_, wrapped) = keystore.generate(&key, &epoch(1)).unwrap();
    let gone = keystore.add_slot("lost", &NewSecret::KeyFile(&key_file(2)), 1).unwrap();
    let _ = keystore.remove_slot(gone, 1).unwrap();
    assert!(keystore.is_under_newest(&key, &wrapped));
    assert!(keystore.unwrap(&key, &epoch(1), &wrapped).is_ok());
    let bytes = keystore.encode(1).unwrap();
    assert_eq!(unlock(&bytes, 1).unwrap().keys(), keystore.keys());
}

#[test]
fn a_keystore_unlocks_with_each_of_its_slots() {
    let (typed, recovery) = (passphrase("x"), RecoveryKey::generate());
    let mut keystore = keystore();
    let (secret, wrapped) = keystore.generate(&default_key(&keystore), &epoch(1)).unwrap();
    keystore
        .add_slot("laptop", &NewSecret::Passphrase(&typed, EASY), 2)
        .unwrap();
    keystore
        .add_slot("paper", &NewSecret::RecoveryKey(&recovery), 2)
        .unwrap();
    let bytes = keystore.encode(2).unwrap();
    let again = RecoveryKey::from_text(&recovery.to_text()).unwrap();
    for (unlock, slot) in [
        (Unlock::KeyFile(key_file(1)), 1),
        (Unlock::Passphrase(typed), 2),
        (Unlock::RecoveryKey(again), 3),
    ] {
        let (opened, by) = LocalKeystore::unlock(&bytes, &unlock, &SlotChoice::Any).unwrap();
        assert_eq!(by, SlotId(slot));
        let key = opened.unwrap(&default_key(&opened), &epoch(1), &wrapped).unwrap();
        assert_eq!(key.as_bytes(), secret.as_bytes());
    }
    assert_eq!(
        unlock(&bytes, 2).unwrap_err(),
        UnlockError::WrongSecret(SecretKind::KeyFile)
    );
}

#[test]
fn a_removed_secret_with_a_copy_of_the_old_file_opens_nothing_newer() {
    let mut keystore = keystore();
    let key = default_key(&keystore);
    let removed = keystore.add_slot("lost", &NewSecret::KeyFile(&key_file(2)), 2).unwrap();
    let (_, before) = keystore.generate(&key, &epoch(1)).unwrap();
    let old_file = keystore.encode(2).unwrap();

    let rekeyed = keystore.remove_slot(removed, 3).unwrap();
    assert_eq!(rekeyed.keys, [key.0]);
    let (secret, after) = keystore.generate(&key, &epoch(2)).unwrap();
    let new_file = keystore.encode(3).unwrap();

    let thief = unlock(&old_file, 2).unwrap();
    assert!(
        thief.unwrap(&key, &epoch(1), &before).is_ok(),
        "what was open to the thief stays so"
    );
    let refused = Err(KeyError::Rejected { key: key.0 });
    assert_eq!(thief.unwrap(&key, &epoch(2), &after).map(|_| ()), refused);
    // Nor with the version that the old file has in front.
    let renamed = [&before.as_bytes()[..4], &after.as_bytes()[4..]].concat();
    let renamed = WrappedKey::new(renamed).unwrap();
    assert_eq!(thief.unwrap(&key, &epoch(2), &renamed).map(|_| ()), refused);
    assert!(unlock(&new_file, 2).is_err());
    // The root that the old file gave is not that of the new file.
    let file = UnverifiedKeystoreFile::decode(&new_file).unwrap();
    assert_eq!(file.verify(&thief.root.mac_key()), Err(FormatError::NotAuthentic));

    let owner = unlock(&new_file, 1).unwrap();
    assert!(owner.unwrap(&key, &epoch(1), &before).is_ok());
    assert_eq!(
        owner.unwrap(&key, &epoch(2), &after).unwrap().as_bytes(),
        secret.as_bytes()
    );
}

#[test]
fn a_replaced_secret_opens_nothing_newer_and_the_new_one_does() {
    let mut keystore = keystore();
    keystore
        .add_slot("other", &NewSecret::KeyFile(&key_file(3)), 1)
        .unwrap();
    let key = default_key(&keystore);
    let old_file = keystore.encode(1).unwrap();
    let _ = keystore
        .replace_slot(SlotId(1), &NewSecret::KeyFile(&key_file(2)), 9)
        .unwrap();
    assert_eq!(
        (keystore.slots()[0].label.as_str(), keystore.slots()[0].created),
        ("stick", 100)
    );
    let (_, after) = keystore.generate(&key, &epoch(2)).unwrap();
    let bytes = keystore.encode(9).unwrap();
    assert!(unlock(&bytes, 1).is_err());
    assert!(unlock(&old_file, 1).unwrap().unwrap(&key, &epoch(2), &after).is_err());
    assert!(unlock(&bytes, 2).unwrap().unwrap(&key, &epoch(2), &after).is_ok());
    assert!(unlock(&bytes, 3).unwrap().unwrap(&key, &epoch(2), &after).is_ok());
}

#[test]
fn a_replaced_slot_that_was_called_by_its_kind_is_called_by_the_new_one() {
    let stick = key_file(3);
    let recovery = RecoveryKey::generate();
    for (label, after) in [
        ("key file", "recovery key 2"),
        ("key file 2", "recovery key 2"),
        ("key files", "key files"),
        ("key file of Ada", "key file of Ada"),
        ("passphrase", "passphrase"),
    ] {
        let mut keystore = keystore();
        let slot = keystore.add_slot(label, &NewSecret::KeyFile(&stick), 1).unwrap();
        keystore
            .add_slot("recovery key", &NewSecret::RecoveryKey(&recovery), 1)
            .unwrap();
        let label_of = |keystore: &LocalKeystore| keystore.slots()[1].label.clone();
        let _ = keystore
            .replace_slot(slot, &NewSecret::KeyFile(&key_file(4)), 1)
            .unwrap();
        assert_eq!(label_of(&keystore), label, "of the same kind");
        let _ = keystore
            .replace_slot(slot, &NewSecret::RecoveryKey(&RecoveryKey::generate()), 1)
            .unwrap();
        assert_eq!(label_of(&keystore), after, "{label}");
    }
}

#[test]
fn a_wrap_that_does_not_open_is_no_wrap_whoever_holds_the_key() {
    let (mut keystore, key, server) = with_remote_key();
    let name = keystore.describe(&key).unwrap().remote.clone().unwrap();
    let (_, wrapped) = keystore.generate(&key, &epoch(1)).unwrap();
    server.set_spoiling(true);
    let refused = KeyError::Commitment { key: key.0 };
    assert_eq!(keystore.generate(&key, &epoch(2)).map(drop), Err(refused));
    let secret = EpochKey::new(random::locked_key());
    assert_eq!(keystore.wrap(&key, &epoch(2), &secret).map(drop), Err(refused));
    let moved = keystore.rewrap(&key, &epoch(1), &wrapped, &key, &epoch(2));
    assert_eq!(moved.map(drop), Err(refused));
    let file = Context::for_file(FileId([1; 16]));
    assert_eq!(
        keystore.generate(&key, &file).map(drop),
        Err(refused),
        "a way into a sealed file"
    );
    let slot = NewSecret::RemoteKey {
        key: &name,
        provider: &*server,
    };
    let error = ProviderError::Commitment;
    let provider = server.name();
    assert_eq!(
        keystore.add_slot("kms", &slot, 1),
        Err(KeystoreError::RemoteSlot { provider, error })
    );
    // A call for each file of a vault is enough.
    let file = Context::for_file_of(VaultId([1; 16]), FileId([1; 16]));
    assert!(keystore.generate(&key, &file).is_ok());
}

#[test]
fn a_keystore_with_any_byte_flipped_is_refused() {
    let bytes = keystore().encode(1).unwrap();
    for at in (0..bytes.len()).step_by(7) {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(unlock(&changed, 1).is_err(), "byte {at}");
    }
    assert!(unlock(&bytes, 1).is_ok());
}

#[test]
fn a_keystore_of_another_root_in_the_same_slot_is_refused() {
    let (mut one, mut two) = (keystore(), keystore());
    two.body.id = one.body.id;
    let slot = one.body.slots[0].clone();
    let _ = one.encode(1).unwrap();
    two.body.slots[0] = slot;
    let bytes = two.encode(1).unwrap();
    assert_eq!(
        unlock(&bytes, 1).unwrap_err(),
        UnlockError::Format(FormatError::NotAuthentic)
    );
}

/// A writer of the file who cannot open it knows a slot's public key, and makes a keystore of their own around it.
#[test]
fn a_keystore_that_a_stranger_made_for_a_slot_is_refused() {
    let mut keystore = keystore();
    keystore
        .add_slot("laptop", &NewSecret::KeyFile(&key_file(2)), 1)
        .unwrap();
    let bytes = keystore.encode(1).unwrap();
    let seen = UnverifiedKeystoreFile::decode(&bytes).unwrap();

    let mut forged = LocalKeystore::create("laptop", &NewSecret::KeyFile(&key_file(9)), 1).unwrap();
    let own = forged.body.slots[0].clone();
    forged.body.id = seen.id();
    let victim = Slot {
        // The stranger can wrap an authenticator under a root of their own, but must make it up.
        authenticator: wrap::wrap(
            forged.root.as_bytes(),
            &slot_authenticator_aad(seen.id(), seen.slots()[1].id),
            &[0; 32],
        ),
        ..seen.slots()[1].clone()
    };
    let victim = seal_again(&victim, seen.id(), &forged.root, &forged.root).unwrap();
    forged.body.slots = vec![own, victim];
    let bytes = forged.encode(1).unwrap();
    assert_eq!(
        unlock(&bytes, 2).unwrap_err(),
        UnlockError::DamagedSlot { slot: SlotId(2) }
    );
}

#[test]
fn a_wrapped_key_is_of_its_keystore_and_key() {
    let mut keystore = keystore();
    let key = default_key(&keystore);
    let other = keystore.create_key(&NewKey::default(), 1).unwrap();
    let (_, wrapped) = keystore.generate(&key, &epoch(1)).unwrap();
    let refused = keystore.unwrap(&other, &epoch(1), &wrapped).unwrap_err();
    assert_eq!(refused, KeyError::Rejected { key: other.0 });
    let moved = keystore.rewrap(&key, &epoch(1), &wrapped, &other, &epoch(1)).unwrap();
    assert!(keystore.unwrap(&other, &epoch(1), &moved).is_ok());
}

#[test]
fn a_disabled_key_gets_a_new_material_when_a_slot_goes() {
    let mut keystore = keystore();
    let gone = keystore.add_slot("lost", &NewSecret::KeyFile(&key_file(2)), 1).unwrap();
    keystore.body.keys[0].state = KeyState::Disabled;
    let _ = keystore.remove_slot(gone, 1).unwrap();
    assert_eq!(keystore.keys()[0].materials.len(), 2);
}

#[test]
fn rotation_wraps_with_the_new_material_and_opens_with_the_old() {
    let mut keystore = keystore();
    let key = default_key(&keystore);
    let (secret, old) = keystore.generate(&key, &epoch(1)).unwrap();
    assert_eq!(keystore.renew(&key, 200), Ok(MaterialVersion(2)));
    let new = keystore.rewrap(&key, &epoch(1), &old, &key, &epoch(1)).unwrap();
    assert_eq!((old.as_bytes()[0], new.as_bytes()[0]), (1, 2));
    for wrapped in [old, new] {
        let opened = keystore.unwrap(&key, &epoch(1), &wrapped).unwrap();
        assert_eq!(opened.as_bytes(), secret.as_bytes());
    }
    assert_eq!(
        keystore.renew(&KeyHandle(KeyId([0; 16])), 1),
        Err(KeyError::NotFound { key: KeyId([0; 16]) })
    );
}

#[test]
fn rotations_leave_a_key_materials_for_slots_that_are_removed() {
    let mut keystore = keystore();
    let key = default_key(&keystore);
    let newest = |keystore: &LocalKeystore| keystore.rotations(&key).unwrap().last().unwrap().version;
    for _ in 1..ROTATED_MATERIALS_MAX {
        keystore.renew(&key, 1).unwrap();
    }
    let last = newest(&keystore);
    assert_eq!(
        keystore.renew(&key, 1),
        Ok(last),
        "a vault's new epoch goes under the newest"
    );
    assert_eq!(newest(&keystore), last);
    let other = keystore.create_key(&NewKey::default(), 1).unwrap();
    keystore.enable_rotation(&other, 90, 1).unwrap();
    let years = 10 * 365 * 24 * 3600;
    assert_eq!(
        keystore.rotate_due(years),
        Ok(vec![other.0]),
        "one that has all is in nobody's way"
    );
    let gone = keystore.add_slot("lost", &NewSecret::KeyFile(&key_file(2)), 1).unwrap();
    let _ = keystore.remove_slot(gone, 1).unwrap();
    assert!(newest(&keystore) > last);
}

#[test]
fn a_key_has_at_most_a_thousand_materials() {
    let mut keystore = keystore();
    let key = default_key(&keystore);
    let made = Made {
        time: 1,
        cause: MaterialCause::Rekey,
    };
    for _ in 1..MATERIALS_MAX {
        let material = next_material(&keystore.root, keystore.body.id, &keystore.body.keys[0], made).unwrap();
        keystore.body.keys[0].materials.push(material);
    }
    let limit = KeyError::Limit { key: key.0 };
    let gone = keystore.add_slot("lost", &NewSecret::KeyFile(&key_file(2)), 1).unwrap();
    assert_eq!(keystore.remove_slot(gone, 1), Err(KeystoreError::Key(limit)));
    let bytes = keystore.encode(1).unwrap();
    assert!(unlock(&bytes, 2).is_ok(), "the removal that failed changed nothing");
}

#[test]
fn a_material_that_is_not_what_it_says_is_not_used() {
    let mut keystore = keystore();
    let key = default_key(&keystore);
    let (_, wrapped) = keystore.generate(&key, &epoch(1)).unwrap();
    keystore.body.keys[0].materials[0].id[0] ^= 1;
    let error = keystore.unwrap(&key, &epoch(1), &wrapped).unwrap_err();
    assert_eq!(error, KeyError::Commitment { key: key.0 });
}

#[test]
fn a_change_that_is_refused_says_why() {
    let mut keystore = keystore();
    let file = key_file(2);
    let secret = NewSecret::KeyFile(&file);
    let typed = passphrase("x");
    let too_easy = NewSecret::Passphrase(&typed, crate::crypto::passphrase::Hardness { passes: 0, ..EASY });
    let (first, ninth) = (SlotId(1), SlotId(9));
    assert_eq!(keystore.add_slot("", &secret, 1), Err(KeystoreError::LabelLength(0)));
    assert_eq!(
        keystore.add_slot(&"x".repeat(65), &secret, 1),
        Err(KeystoreError::LabelLength(65))
    );
    assert_eq!(
        keystore.add_slot("stick", &secret, 1),
        Err(KeystoreError::LabelTaken { slot: first })
    );
    assert_eq!(
        keystore.add_slot("easy", &too_easy, 1),
        Err(KeystoreError::Hardness(HardnessError::OutOfRange))
    );
    assert_eq!(
        keystore.remove_slot(first, 1),
        Err(KeystoreError::LastSlot { slot: first })
    );
    assert_eq!(
        keystore.remove_slot(ninth, 1),
        Err(KeystoreError::NoSuchSlot { slot: ninth })
    );
    assert_eq!(
        keystore.replace_slot(ninth, &secret, 1),
        Err(KeystoreError::NoSuchSlot { slot: ninth })
    );
    for i in 2..=SLOTS_MAX {
        keystore.add_slot(&format!("slot {i}"), &secret, 1).unwrap();
    }
    assert_eq!(keystore.add_slot("more", &secret, 1), Err(KeystoreError::TooManySlots));
}

#[test]
fn a_slot_that_nothing_can_be_sealed_to_can_still_be_removed() {
    let mut keystore = keystore();
    let bad = keystore.add_slot("bad", &NewSecret::KeyFile(&key_file(2)), 1).unwrap();
    let third = keystore
        .add_slot("third", &NewSecret::KeyFile(&key_file(3)), 1)
        .unwrap();
    keystore.body.slots[1].public_key = vec![0xFF; 1216];
    assert_eq!(
        keystore.remove_slot(third, 1),
        Err(KeystoreError::UnusableSlot { slot: bad })
    );
    let _ = keystore.remove_slot(bad, 1).unwrap();
    let _ = keystore.remove_slot(third, 1).unwrap();
}

#[test]
fn the_id_of_a_removed_slot_is_free_again() {
    let mut keystore = keystore();
    let (two, three) = (key_file(2), key_file(3));
    assert_eq!(keystore.add_slot("two", &NewSecret::KeyFile(&two), 1), Ok(SlotId(2)));
    assert_eq!(
        keystore.add_slot("three", &NewSecret::KeyFile(&three), 1),
        Ok(SlotId(3))
    );
    let _ = keystore.remove_slot(SlotId(2), 1).unwrap();
    assert_eq!(keystore.add_slot("new", &NewSecret::KeyFile(&two), 1), Ok(SlotId(2)));
    let bytes = keystore.encode(1).unwrap();
    assert!(unlock(&bytes, 2).is_ok());
}

#[test]
fn each_store_is_a_new_generation_and_time_stands_still_rather_than_back() {
    let mut keystore = keystore();
    keystore.encode(500).unwrap();
    keystore.encode(400).unwrap();
    assert_eq!((keystore.generation(), keystore.body.last_time), (2, 500));
    keystore.renew(&default_key(&keystore), 300).unwrap();
    assert_eq!(keystore.keys()[0].materials[1].created, 500);
}

#[test]
fn a_new_keystore_has_the_default_key() {
    let keystore = keystore();
    assert_eq!(keystore.keys().len(), 1);
    assert_eq!(keystore.keys()[0].manager, Manager::Hushfs);
    assert_eq!(keystore.aliases()[0].name, DEFAULT_ALIAS);
    assert_eq!(keystore.key_of_alias("alias/other"), None);
}

#[test]
fn keys_are_not_printed() {
    let printed = format!("{:?}", keystore());
    assert!(printed.contains("root: KeystoreRoot([redacted])"), "{printed}");
}
