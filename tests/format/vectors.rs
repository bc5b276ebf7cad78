//! Known answers: every derivation, and one stored form of everything, with all random values fixed.

use data_encoding::HEXLOWER;
use hushfs::{
    crypto::{
        OpenError,
        block::{BlockCipher, Suite},
        derive::{self, context},
        keys::{KeyBytes, SlotSecret},
        passphrase::Hardness,
        wrap::{Wrapped, unwrap},
    },
    format::{
        directory::{self, DirectoryHeader},
        header::UnverifiedHeader,
        keystore::{MaterialVersion, UnverifiedKeystoreFile, material_aad},
        link::{self, DiskTarget},
        name,
        preamble::{State, UnverifiedPreamble},
        vault::{UnverifiedVaultHeader, VaultHeader},
    },
    ids::Epoch,
    keystore::RecoveryKey,
    units::{BlockIndex, PlainSize},
};

use super::fixed::{
    DIRECTORY, FILE, KEY_ID, KEYSTORE, VAULT, data_key, data_key_of_key, directory_header_key, epoch_key, hex, key,
    keystore_root, long_name_hash, name_key, names_root, python, seal_key, secret, vectors, xattr_keys,
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
        (
            context::NAMES_ROOT_WRAPPING_KEY,
            text(epoch_key().names_root_wrapping_key(VAULT).as_bytes()),
        ),
        (
            context::VAULT_HEADER_MAC_KEY,
            text(epoch_key().vault_header_mac_key(VAULT).as_bytes()),
        ),
        (context::ROOT_DIRECTORY_ID, names_root().root_directory_id().to_hex()),
        (
            context::DIRECTORY_ID,
            names_root().directory_id(DIRECTORY, b"name").to_hex(),
        ),
        (context::DIRECTORY_NAME_KEY, text(name_key().as_bytes())),
        (context::DIRECTORY_HEADER_KEY, text(directory_header_key().as_bytes())),
        (context::LONG_NAME, long_name_hash()),
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
    ];
    for (context, derived) in &derived {
        assert_eq!(known[*context], **derived, "{context}");
    }
    // These two give no key to the outside: the wrap and the preamble below need them.
    let elsewhere = [context::COMMITTING_WRAP, context::SEAL_KEY];
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
fn the_known_keystore_verifies() {
    let bytes = hex(&vectors()["keystore"]);
    let body = UnverifiedKeystoreFile::decode(&bytes).unwrap();
    let body = body.verify(&keystore_root().mac_key()).unwrap();
    assert_eq!((body.id, body.generation, body.keys[0].id), (KEYSTORE, 7, KEY_ID));
    let material = &body.keys[0].materials[0];
    let aad = material_aad(KEYSTORE, KEY_ID, MaterialVersion(1));
    assert_eq!(unwrap(&key(), &aad, &material.wrapped, |bytes| *bytes), Ok(secret()));
    assert_eq!(material.id, derive::key_material_id(&secret()));
}
