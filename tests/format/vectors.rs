//! Known answers: every derivation, and one stored form of everything, with all random values fixed.

use std::sync::Arc;

use data_encoding::HEXLOWER;
use hushfs::{
    crypto::{
        OpenError,
        block::{BlockCipher, Suite},
        derive::{self, context},
        keys::{AuditKey, AuditSeed, CustomerKey, FileSecret, KeyBytes, SlotAuthenticator, SlotSecret, WrappingKey},
        locked::LockedKey,
        passphrase::Hardness,
        seal::BlockSum,
        wrap::{Wrapped, unwrap},
    },
    format::{
        directory::{self, DirectoryHeader},
        header::{OwnKey, UnverifiedHeader},
        keystore::{
            self, AuditHead, KeyOperation, KeystoreBody, Manager, MaterialCause, MaterialVersion, RemoteKeyName,
            SlotId, SlotKind, UnverifiedKeystoreFile, VaultRecord, material_aad,
        },
        link::{self, DiskTarget},
        name,
        preamble::{State, UnverifiedPreamble},
        record::{self, Noted, SeenFile, SeenHome},
        sealed::{UnverifiedSealedHeader, WayKind},
        snapshot::{FileState, Item, SealedContent, SnapshotFront, SnapshotHead, What},
        vault::{CustodianKind, UnverifiedVaultHeader, VaultHeader},
    },
    ids::{Epoch, FileId, LogId, NamesMark, RecordId, SnapshotId, VaultId},
    keystore::{
        KeyFile, Passphrase, RecoveryKey, Unlock,
        identity::{Identity, IdentityFile, parse_recipient, recipient_to_text},
        way::Opener,
    },
    units::{BlockIndex, PlainSize},
};

use super::fixed::{
    DIRECTORY, FILE, KEY_ID, KEYSTORE, VAULT, data_key, data_key_of_key, directory_header_key, epoch_key, hex, key,
    keystore_root, long_name_hash, name_key, names_root, python, seal_key, secret, vectors, xattr_keys,
};
use super::{
    faults::{open_record, open_snapshot},
    support::HUSHFS,
};

#[test]
fn the_second_reader_makes_the_same_vectors() {
    let Some(mut command) = python("vectors.py") else {
        return;
    };
    let output = command.arg("check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_derivation_gives_its_known_answer() {
    let vectors = vectors();
    let known = vectors["derivations"].as_object().unwrap();
    let text = |bytes: &[u8]| HEXLOWER.encode(bytes);
    let key_bytes = KeyBytes::copy_of(&key());
    let stretched = Hardness {
        salt: [0x66; 16],
        memory_kib: 8192,
        passes: 1,
        lanes: 1,
    };
    let derived = [
        (
            context::HEADER_WRAPPING_KEY,
            text(epoch_key().header_wrapping_key(VAULT).as_bytes()),
        ),
        (context::FILE_WRAPPING_KEY, text(file_wrapping_key().as_bytes())),
        (
            context::NAMES_ROOT_WRAPPING_KEY,
            text(epoch_key().names_root_wrapping_key(VAULT).as_bytes()),
        ),
        (
            context::VAULT_HEADER_MAC_KEY,
            text(epoch_key().vault_header_mac_key(VAULT).as_bytes()),
        ),
        (context::NAMES_ROOT_MARK, names_root().mark().to_hex()),
        (context::ROOT_DIRECTORY_ID, names_root().root_directory_id().to_hex()),
        (
            context::DIRECTORY_ID,
            names_root().directory_id(DIRECTORY, b"name").to_hex(),
        ),
        (context::DIRECTORY_NAME_KEY, text(name_key().as_bytes())),
        (context::DIRECTORY_HEADER_KEY, text(directory_header_key().as_bytes())),
        (context::LONG_NAME, long_name_hash()),
        (context::JOURNAL_KEY, text(names_root().journal_key().as_bytes())),
        (context::SYMLINK_KEY, text(names_root().symlink_key().as_bytes())),
        (context::XATTR_KEY, text(names_root().xattr_key().as_bytes())),
        (context::XATTR_NAME_KEY, text(names_root().xattr_name_key().as_bytes())),
        (
            context::BLOCK_KEY,
            text(data_key_of_key().block_key(FILE, 1).as_bytes()),
        ),
        (
            context::FILE_KEY_COMMITMENT,
            text(&data_key_of_key().commitment(FILE, 1)),
        ),
        (context::KEYSTORE_MAC_KEY, text(keystore_root().mac_key().as_bytes())),
        (context::KEY_MATERIAL_ID, text(&derive::key_material_id(&key()))),
        (
            context::KEY_FILE_SLOT,
            text(derive::key_file_slot(b"contents of the key file, longer than 32 bytes").as_bytes()),
        ),
        (
            context::RECOVERY_SLOT,
            text(derive::recovery_slot(&key_bytes).as_bytes()),
        ),
        (
            context::RECOVERY_KEY_CHECKSUM,
            text(&derive::recovery_key_checksum(&key_bytes)),
        ),
        (
            context::PASSPHRASE_SLOT,
            text(stretched.stretch(b"passphrase").unwrap().as_bytes()),
        ),
        (
            context::SLOT_AUTHENTICATOR,
            text(SlotSecret::new(KeyBytes::copy_of(&key())).authenticator().as_bytes()),
        ),
        (
            context::SHARE_CODE,
            text(&SlotAuthenticator::new(KeyBytes::copy_of(&key())).share_code()),
        ),
        (
            context::IDENTITY_PASSPHRASE,
            text(stretched.stretch_for_identity(b"passphrase").unwrap().as_bytes()),
        ),
        (context::TEXT_CHECKSUM, text(&derive::text_checksum(1, &key()))),
        (
            context::CUSTOMER_KEY,
            text(
                CustomerKey::new(KeyBytes::copy_of(&key()))
                    .epoch_wrapping_key(VAULT)
                    .as_bytes(),
            ),
        ),
        (
            context::AUDIT_FIRST_KEY,
            text(
                AuditSeed::new(LockedKey::copy_of(&key()))
                    .first_key(LogId(FILE.0))
                    .as_bytes(),
            ),
        ),
        (
            context::AUDIT_NEXT_KEY,
            text(AuditKey::new(KeyBytes::copy_of(&key())).next().as_bytes()),
        ),
        (
            context::SNAPSHOT_KEY,
            text(names_root().snapshot_key(SnapshotId(FILE.0)).as_bytes()),
        ),
    ];
    for (context, derived) in &derived {
        assert_eq!(known[*context], **derived, "{context}");
    }
    // These give no key to the outside: the wrap, the preamble and the record below need them.
    let elsewhere = [context::COMMITTING_WRAP, context::SEAL_KEY, context::RECORD_KEY];
    for context in context::ALL {
        let tested = derived.iter().any(|(tested, _)| *tested == context) || elsewhere.contains(&context);
        assert!(tested && known.contains_key(context), "{context}");
    }
    assert_eq!(known.len(), context::ALL.len());
}

#[test]
fn the_known_wrap_opens() {
    let wrapped = Wrapped(hex(&vectors()["wrap"]).try_into().unwrap());
    assert_eq!(unwrap(&key(), b"purpose", &wrapped, |bytes| *bytes), Ok(secret()));
}

/// AES-256-GCM-SIV does not commit to its key: these 48 bytes open to one secret under one key and to another under a second. The
/// commitment in front of them can be that of one key only.
#[test]
fn what_the_cipher_opens_under_two_keys_is_a_wrap_under_one_only() {
    let vectors = vectors();
    let blob = |i: usize| Wrapped(hex(&vectors["salamander"][i]).try_into().unwrap());
    let (first, second) = (blob(0), blob(1));
    assert_eq!((&first.0[..16], &first.0[48..]), (&second.0[..16], &second.0[48..]));
    let open = |kek: &[u8; 32], blob: &Wrapped| unwrap(kek, b"purpose", blob, |bytes| *bytes);
    let opened = [open(&key(), &first).unwrap(), open(&secret(), &second).unwrap()];
    assert_ne!(opened[0], opened[1]);
    assert_eq!(open(&secret(), &first), Err(OpenError));
    assert_eq!(open(&key(), &second), Err(OpenError));
}

#[test]
fn names_seal_to_the_known_bytes() {
    for known in vectors()["names"].as_array().unwrap() {
        let (plain, sealed) = (hex(&known["name"]), hex(&known["sealed"]));
        let disk = name::seal(&name_key(), &plain);
        assert_eq!(known["entry"], disk.entry);
        assert_eq!(disk.long.unwrap_or_else(|| sealed.clone()), sealed);
        assert_eq!(name::open(&name_key(), &sealed), Ok(plain));
    }
}

#[test]
fn blocks_seal_to_the_known_bytes() {
    let vectors = vectors();
    for (suite, known) in Suite::ALL.into_iter().zip(["block suite 1", "block suite 2"]) {
        let known = hex(&vectors[known]);
        let cipher = BlockCipher::new(suite, &data_key(), FILE);
        let mut sealed = vec![0x77; known.len()];
        cipher.seal(BlockIndex(7), b"attack at dawn", &mut sealed);
        assert_eq!(sealed, known, "{suite}");
        let mut plain = [0; 14];
        cipher.open(BlockIndex(7), &known, &mut plain).unwrap();
        assert_eq!(&plain, b"attack at dawn");
    }
}

#[test]
fn the_known_header_verifies() {
    let bytes = hex(&vectors()["header"]);
    let header = UnverifiedHeader::decode(&bytes).unwrap();
    let header = header.verify(VAULT, &epoch_key().header_wrapping_key(VAULT)).unwrap();
    assert_eq!(header.data_key.as_bytes(), &secret());
    let fields = header.fields;
    assert_eq!((fields.suite, fields.epoch), (Suite::Aes256GcmSiv, Epoch(3)));
    assert_eq!((fields.file, fields.directory), (FILE, DIRECTORY));
}

/// That of a file whose secret is the same as the key of its epoch.
fn file_wrapping_key() -> WrappingKey {
    let of_epoch = epoch_key().header_wrapping_key(VAULT);
    FileSecret::of(&epoch_key()).file_wrapping_key(&of_epoch)
}

#[test]
fn the_known_header_without_a_bucket_key_verifies() {
    let bytes = hex(&vectors()["header 2"]);
    let header = UnverifiedHeader::decode(&bytes).unwrap();
    let wrap = header.own().unwrap();
    assert_eq!((wrap.key(), wrap.blob().len()), (KEY_ID, 100));
    let own = Arc::new(OwnKey {
        secret: FileSecret::of(&epoch_key()),
        wrap: wrap.clone(),
    });
    assert!(header.verify(VAULT, &file_wrapping_key()).is_err());
    let of_epoch = epoch_key().header_wrapping_key(VAULT);
    let header = header.verify_own(VAULT, &of_epoch, &own).unwrap();
    assert_eq!(header.data_key.as_bytes(), &secret());
    assert_eq!((header.fields.epoch, header.fields.directory), (Epoch(3), DIRECTORY));
}

#[test]
fn the_known_vault_header_without_bucket_keys_verifies() {
    let bytes = hex(&vectors()["vault header without bucket keys"]);
    let mac_key = epoch_key().vault_header_mac_key(VAULT);
    let header = UnverifiedVaultHeader::decode(&bytes).unwrap().verify(&mac_key).unwrap();
    assert_eq!(header.encode(&mac_key).unwrap(), bytes);
    let off = header.bucket_keys_off().unwrap();
    assert!(off.vault);
    assert_eq!(off.directories.into_iter().collect::<Vec<_>>(), [DIRECTORY]);
}

#[test]
fn the_known_preamble_verifies_and_has_the_sum_of_its_block() {
    let vectors = vectors();
    let preamble = UnverifiedPreamble::decode(&hex(&vectors["preamble"])).unwrap();
    assert_eq!(preamble.commitment(), &data_key().commitment(FILE, 1));
    let preamble = preamble.verify(&seal_key()).unwrap();
    assert_eq!(
        (preamble.state, preamble.sparse, preamble.cutting),
        (State::Sealed, false, false)
    );
    assert_eq!(
        (preamble.file, preamble.seal_count, preamble.plain_size),
        (FILE, 5, PlainSize(14))
    );
    assert_eq!(preamble.places.current, Some(seal_key().place(DIRECTORY, b"name")));
    assert_eq!(preamble.places.next, Some(seal_key().place(DIRECTORY, b"coming")));
    let tag = BlockCipher::tag(&hex(&vectors["first block"]));
    assert_eq!(preamble.sum, seal_key().term(BlockIndex(0), &tag));
}

#[test]
fn the_known_directory_header_is_what_is_written() {
    let bytes = hex(&vectors()["directory header"]);
    let header = DirectoryHeader::decode(&bytes, &directory_header_key()).unwrap();
    let place = |name: &[u8]| directory::place(&directory_header_key(), DIRECTORY, name);
    assert_eq!(header.directory.0, FILE.0);
    assert_eq!(
        (header.place, header.next_place),
        (place(b"name"), Some(place(b"coming")))
    );
    assert_eq!(header.encode(&directory_header_key()).to_vec(), bytes);
}

#[test]
fn the_known_links_open() {
    let vectors = vectors();
    let key = names_root().symlink_key();
    let text = vectors["link"].as_str().unwrap();
    let Ok(DiskTarget::Inline(sealed)) = link::decode(text.as_bytes()) else {
        panic!("{text}")
    };
    assert_eq!(link::open_inline(&key, &sealed), Ok(b"target".to_vec()));
    assert_eq!(
        link::open_file(&key, FILE, &hex(&vectors["link file"])),
        Ok(vec![b't'; 3044])
    );
}

#[test]
fn the_known_attribute_opens() {
    let vectors = vectors();
    let hash = xattr_keys().hash(b"user.colour");
    let text = data_encoding::BASE64URL_NOPAD.encode(&hex(&vectors["xattr hash"]));
    assert_eq!(hash.disk_name(true), format!("user.hush.{text}"));
    assert_eq!(hash.disk_name(false), format!("trusted.hush.{text}"));
    let opened = xattr_keys().open(hash, &hex(&vectors["xattr"]));
    assert_eq!(opened, Ok((b"user.colour".to_vec(), b"red".to_vec())));
}

#[test]
fn the_known_recovery_key_is_read_and_printed() {
    let vectors = vectors();
    let text = vectors["recovery key"].as_str().unwrap();
    assert_eq!(*RecoveryKey::from_text(text).unwrap().to_text(), text);
}

#[test]
fn the_known_identities_and_recipient_are_read_and_written() {
    let vectors = vectors();
    let known = |name: &str| vectors[name].as_str().unwrap().to_owned();
    let read = |name: &str| IdentityFile::parse(known(name).as_bytes()).unwrap();
    let (IdentityFile::Plain(plain), IdentityFile::Locked(locked)) = (read("identity"), read("locked identity")) else {
        panic!("each is what it is called");
    };
    assert_eq!(*plain.to_text(), known("identity"));
    assert_eq!(locked.to_text(), known("locked identity"));
    let passphrase = Passphrase::new(b"passphrase".to_vec().into()).unwrap();
    assert_eq!(locked.unlock(&passphrase).unwrap().to_text(), plain.to_text());
    let recipient = parse_recipient(known("recipient").as_bytes()).unwrap();
    assert_eq!(&recipient, plain.recipient());
    assert_eq!(recipient_to_text(&recipient), known("recipient"));
}

#[test]
fn the_known_vault_header_verifies() {
    let bytes = hex(&vectors()["vault header"]);
    let mac_key = epoch_key().vault_header_mac_key(VAULT);
    let header = UnverifiedVaultHeader::decode(&bytes).unwrap().verify(&mac_key).unwrap();
    assert_eq!(header.encode(&mac_key).unwrap(), bytes);
    let record = header.epoch(Epoch(3)).unwrap();
    let names_root = epoch_key().names_root_wrapping_key(VAULT).unwrap(
        &VaultHeader::names_root_purpose(VAULT, Epoch(3)),
        &record.names_root,
        |bytes| *bytes,
    );
    assert_eq!(names_root, Ok(secret()));
}

#[test]
fn the_known_vault_header_of_several_keys_verifies() {
    let bytes = hex(&vectors()["vault header 2"]);
    let mac_key = epoch_key().vault_header_mac_key(VAULT);
    let header = UnverifiedVaultHeader::decode(&bytes).unwrap().verify(&mac_key).unwrap();
    assert_eq!(header.encode(&mac_key).unwrap(), bytes);
    let chains: Vec<_> = header
        .chains
        .iter()
        .map(|chain| (chain.key.0, chain.current()))
        .collect();
    assert_eq!(chains, [(FILE.0, Epoch(5)), (KEY_ID.0, Epoch(6))]);
    assert_eq!(header.custodian(&header.chains[0]), CustodianKind::Customer);
    assert_eq!(
        (header.directories[0].directory, header.directories[0].key),
        (DIRECTORY, KEY_ID)
    );
    let wrap = &header.epoch(Epoch(5)).unwrap().wraps[0];
    let epoch_key = CustomerKey::new(KeyBytes::copy_of(&secret()))
        .epoch_wrapping_key(VAULT)
        .unwrap(
            &VaultHeader::customer_purpose(VAULT, Epoch(5), wrap.key),
            &Wrapped(wrap.blob.as_slice().try_into().unwrap()),
            |bytes| *bytes,
        );
    assert_eq!(epoch_key, Ok(key()));
}

fn known_keystore(name: &str) -> (KeystoreBody, Vec<u8>) {
    let bytes = hex(&vectors()[name]);
    let file = UnverifiedKeystoreFile::decode(&bytes).unwrap();
    (file.verify(&keystore_root().mac_key()).unwrap(), bytes)
}

#[test]
fn the_known_keystore_verifies() {
    let (body, bytes) = known_keystore("keystore");
    assert_eq!(keystore::encode(&body, &keystore_root().mac_key()).unwrap(), bytes);
    assert_eq!((body.id, body.generation, body.keys[0].id), (KEYSTORE, 7, KEY_ID));
    let material = &body.keys[0].materials[0];
    let aad = material_aad(KEYSTORE, KEY_ID, MaterialVersion(1));
    assert_eq!(unwrap(&key(), &aad, &material.wrapped, |bytes| *bytes), Ok(secret()));
    assert_eq!(material.id, derive::key_material_id(&secret()));
    assert_eq!((body.audit.seq, body.audit.hash), (5, secret()));
    let vault = &body.vaults[0];
    assert_eq!(
        (vault.vault, vault.lowest_epoch, vault.path.as_str()),
        (VAULT, Epoch(3), "/srv/vault")
    );
    assert_eq!(
        (vault.keys[0].key, vault.keys[0].epochs, vault.keys[0].alone),
        (KEY_ID, 2, 1)
    );
    assert_eq!(
        vault.files.map(|files| (files.count, files.time)),
        Some((99, 1_700_000_001))
    );
    assert_eq!(vault.last_use, Some(1_700_000_002));
}

#[test]
fn the_known_keystore_of_every_kind_verifies() {
    let (body, bytes) = known_keystore("keystore of every kind");
    assert_eq!(keystore::encode(&body, &keystore_root().mac_key()).unwrap(), bytes);
    let kinds: Vec<_> = body.slots.iter().map(|slot| slot.kind.word()).collect();
    assert_eq!(
        kinds,
        [
            "passphrase",
            "key-file",
            "recovery-key",
            "credential",
            "command",
            "tpm2",
            "recipient",
            "aws-kms",
            "pkcs11"
        ]
    );
    assert_eq!(body.names_mark(VAULT), Some(names_root().mark()));
    assert_eq!(body.names_mark(VaultId(FILE.0)), Some(NamesMark(KEY_ID.0)));
    assert_eq!(body.names_mark(VaultId([9; 16])), None);
    let key = &body.keys[0];
    assert_eq!((key.manager, key.policy.as_str()), (Manager::Customer, "{}"));
    assert_eq!(
        (key.tags[0].name.as_str(), key.tags[0].value.as_str()),
        ("cost", "none")
    );
    let last_use = key.last_use.unwrap();
    assert_eq!(
        (last_use.operation, last_use.time),
        (KeyOperation::Decrypt, 1_700_000_003)
    );
    let causes: Vec<_> = key.materials.iter().map(|material| material.cause).collect();
    let (automatic, on_demand) = (MaterialCause::AutomaticRotation, MaterialCause::OnDemandRotation);
    assert_eq!(
        causes,
        [MaterialCause::Creation, automatic, on_demand, MaterialCause::Rekey]
    );
    let remote: Vec<_> = body.keys.iter().filter_map(|key| key.remote.clone()).collect();
    let arn = "arn:aws:kms:eu-central-1:111122223333:key/1".to_owned();
    let (token, label, id) = ("token".to_owned(), "key".to_owned(), vec![1]);
    assert_eq!(
        remote,
        [
            RemoteKeyName::AwsKms { arn },
            RemoteKeyName::Pkcs11 { token, label, id }
        ]
    );
}

#[test]
fn the_known_keystore_of_version_1_becomes_one_of_today() {
    let (body, old) = known_keystore("keystore 1");
    assert_eq!((old[8], body.id, body.generation), (1, KEYSTORE, 7));
    assert_eq!(body.audit, AuditHead::default());
    let key = &body.keys[0];
    assert_eq!((key.remote.clone(), key.tags.len(), key.policy.as_str()), (None, 0, ""));
    let causes: Vec<_> = key.materials.iter().map(|material| material.cause).collect();
    assert_eq!(causes, [MaterialCause::Creation, MaterialCause::Rekey]);
    assert_eq!(body.vaults, [VaultRecord::new(VAULT, Epoch(3))]);
    let new = keystore::encode(&body, &keystore_root().mac_key()).unwrap();
    assert_eq!(new[8], 2);
    let file = UnverifiedKeystoreFile::decode(&new).unwrap();
    assert_eq!(file.verify(&keystore_root().mac_key()), Ok(body));
}

#[test]
fn the_known_sealed_header_verifies() {
    let bytes = hex(&vectors()["sealed header"]);
    let header = UnverifiedSealedHeader::decode(&bytes).unwrap();
    let claims = header.claims().clone();
    assert_eq!(header.verify(&data_key()), Ok(claims.clone()));
    assert_eq!(claims.encode(&data_key()).unwrap(), bytes);
    assert_eq!((claims.file, claims.layout.block_size()), (FILE, 65536));
    let pair = |name: &str| (name.to_owned(), "value".to_owned());
    assert_eq!(claims.context, [pair("a"), pair("b")]);
    let (slot, by_key) = (&claims.ways[0], &claims.ways[1]);
    assert_eq!((slot.id, &slot.kind), (SlotId(1), &WayKind::Slot(SlotKind::KeyFile)));
    let key = WayKind::Key {
        keystore: KEYSTORE,
        key: KEY_ID,
        blob: b"blob".to_vec(),
    };
    assert_eq!((by_key.id, &by_key.kind), (SlotId(3), &key));
    let file = KeyFile::new([FILE.0, FILE.0].concat().into()).unwrap();
    let unlock = Unlock::KeyFile(file);
    let opened = Opener::Secret(&unlock).data_key(&claims).unwrap();
    assert_eq!(opened.as_bytes(), data_key().as_bytes());
}

#[test]
fn the_record_of_the_vectors_is_read_and_made() {
    let bytes = hex(&vectors()["record"]);
    let key = names_root().record_key();
    let place = key.place(DIRECTORY, b"name");
    let content = seal_key().content_mark(PlainSize(14), BlockSum::from_bytes(&secret()));
    let mut one = SeenFile::new(FILE, 5, place, Some(&content));
    one.set_gone();
    let mut other = SeenFile::new(FileId(KEY_ID.0), 0, 0, None);
    other.set_suspect();
    let noted = [Noted::Files(vec![one, other]), Noted::Homes(vec![seen_home()])];
    assert_eq!(open_record(&bytes).unwrap(), noted);

    let mut made = record::encode_front(&key, VAULT, RecordId(KEYSTORE.0)).to_vec();
    for (noted, time) in noted.iter().zip(1_700_000_000..) {
        let before = *made.last_chunk().unwrap();
        made.extend(record::encode_batch(&key, &before, time, noted).0);
    }
    assert_eq!(made, bytes);
}

fn seen_home() -> SeenHome {
    SeenHome {
        epoch: Epoch(3),
        header: [0xaa; 16],
        keystore: KEYSTORE,
        generation: 7,
    }
}

#[test]
fn the_snapshot_of_the_vectors_is_read_and_made() {
    let bytes = hex(&vectors()["snapshot"]);
    let (head, entries) = open_snapshot(&bytes).unwrap();
    let expected = SnapshotHead {
        time: 1_700_000_000,
        in_use: true,
        base: Some(SnapshotId(KEY_ID.0)),
        home: seen_home(),
    };
    assert_eq!(head, expected);
    let names: Vec<_> = entries.iter().map(|entry| (entry.depth, &entry.name[..])).collect();
    let known: [(u16, &[u8]); 7] = [
        (0, b"a"),
        (1, b"blank"),
        (1, b"open"),
        (1, b"sealed"),
        (0, b"link"),
        (0, b"pipe"),
        (0, b"unreadable"),
    ];
    assert_eq!(names, known);
    let sealed = FileState::Written {
        file: FILE,
        size: PlainSize(14),
        count: 5,
        sealed: Some(SealedContent {
            mark: [0x66; 16],
            placed: true,
        }),
    };
    assert_eq!(
        entries[3].what,
        What::File {
            stamp: 3,
            state: sealed
        }
    );

    let front = SnapshotFront {
        vault: VAULT,
        snapshot: SnapshotId(FILE.0),
    };
    let mut plain = head.encode().to_vec();
    let end = Item::End { entries: 7 };
    for item in entries.into_iter().map(Item::Entry).chain([end]) {
        item.encode_into(&mut plain);
    }
    let chunk = front.seal_chunk(&names_root().snapshot_key(front.snapshot), 0, true, &plain);
    assert_eq!([&front.encode()[..], &chunk].concat(), bytes);
}

#[test]
fn the_second_reader_opens_sealed_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("key"), [7; 32]).unwrap();
    let identity = Identity::generate();
    std::fs::write(path("recipient"), recipient_to_text(identity.recipient())).unwrap();
    for (suite, size) in [
        ("aes-256-gcm-siv", 0),
        ("aes-256-gcm-siv", 65536),
        ("xchacha20-poly1305", 65537),
    ] {
        let content: Vec<u8> = (0..size).map(|i| (i / 3) as u8).collect();
        std::fs::write(path("file"), &content).unwrap();
        let status = std::process::Command::new(HUSHFS)
            .args([
                "seal",
                "--force",
                "--suite",
                suite,
                "--key-file",
                "key",
                "--recipient",
                "recipient",
                "file",
            ])
            .current_dir(dir.path())
            .status()
            .unwrap();
        assert!(status.success());
        for (kind, secret) in [
            ("key-file", path("key").display().to_string()),
            ("identity", identity.to_text().to_string()),
        ] {
            let Some(mut command) = python("decryptor.py") else {
                return;
            };
            let output = command.arg(path("file.hush")).args([kind, &secret]).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(output.stdout == content, "{suite}, {size} bytes, {kind}");
        }
    }
}
