use proptest::prelude::*;

use super::*;
use crate::{
    crypto::{
        keys::KeyBytes,
        passphrase::Hardness,
        slot::{ENCAPSULATED_SIZE, PUBLIC_KEY_SIZE, SEALED_ROOT_SIZE},
        wrap::{WRAPPED_SIZE, Wrapped},
    },
    ids::{LogId, NamesMark},
};

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
        sealed_root: SealedBytes::from_slice(&[3; SEALED_ROOT_SIZE]).unwrap(),
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
        cause: MaterialCause::OnDemandRotation,
        wrapped: Wrapped([6; WRAPPED_SIZE]),
    }
}

fn key(id: u8) -> KeyRecord {
    KeyRecord {
        id: KeyId([id; 16]),
        manager: Manager::Hushfs,
        remote: None,
        state: KeyState::PendingDeletion { date: 99 },
        created: 3,
        description: "d".into(),
        rotation: Some(Rotation {
            period_days: 365,
            next: 1000,
        }),
        tags: vec![tag("a", "b"), tag("c", "")],
        policy: "{}".into(),
        last_use: Some(LastUse {
            operation: KeyOperation::Decrypt,
            time: 44,
        }),
        materials: vec![material(1), material(3)],
    }
}

fn tag(name: &str, value: &str) -> Tag {
    Tag {
        name: name.into(),
        value: value.into(),
    }
}

fn arn() -> RemoteKeyName {
    RemoteKeyName::AwsKms {
        arn: "arn:aws:kms:eu-central-1:111122223333:key/1".into(),
    }
}

fn token_key() -> RemoteKeyName {
    RemoteKeyName::Pkcs11 {
        token: "t".into(),
        label: "l".into(),
        id: vec![1, 2],
    }
}

#[test]
fn a_key_in_a_token_is_named_by_label_or_id_or_both() {
    let name = |token: &str, label: &str, id: &[u8]| RemoteKeyName::Pkcs11 {
        token: token.into(),
        label: label.into(),
        id: id.into(),
    };
    let key = name("t", "l", &[1]);
    for name in [name("t", "l", &[]), name("t", "", &[1]), name("t", "l", &[1])] {
        assert!(name.names(&key), "{name}");
    }
    for other in [
        name("u", "l", &[1]),
        name("t", "m", &[1]),
        name("t", "l", &[2]),
        name("t", "l", &[1, 0]),
        arn(),
    ] {
        assert!(!other.names(&key), "{other}");
    }
    assert!(!key.names(&name("t", "l", &[])), "what a key has not got is not named");
    assert!(arn().names(&arn()) && !arn().names(&key));
}

#[test]
fn an_id_is_name_enough_for_a_key_in_a_token() {
    let by_id = RemoteKeyName::Pkcs11 {
        token: "t".into(),
        label: String::new(),
        id: vec![1, 0xAB],
    };
    assert_eq!(by_id.to_string(), "key 01ab of token \"t\"");
    let mut body = good();
    body.keys[2].remote = Some(by_id);
    assert!(encode(&body, &mac_key()).is_ok());
}

fn remote_key(id: u8, name: RemoteKeyName) -> KeyRecord {
    KeyRecord {
        remote: Some(name),
        materials: Vec::new(),
        ..key(id)
    }
}

/// One of each kind.
fn kinds() -> Vec<SlotKind> {
    vec![
        SlotKind::Passphrase(hardness()),
        SlotKind::KeyFile,
        SlotKind::Recovery,
        SlotKind::Credential { name: "hushfs".into() },
        SlotKind::Command {
            words: vec!["fido2-assert".into(), "-G".into()],
        },
        SlotKind::Tpm2 {
            public: vec![1; 78],
            private: vec![2; 158],
            pcrs: 1 << 7,
            pin: true,
        },
        SlotKind::Recipient {
            recipient: vec![3; PUBLIC_KEY_SIZE],
            encapsulated: vec![4; ENCAPSULATED_SIZE],
            sealed: SealedBytes::from_slice(&[5; SEALED_ROOT_SIZE]).unwrap(),
        },
        SlotKind::Remote {
            key: arn(),
            blob: vec![6; 200],
        },
        SlotKind::Remote {
            key: token_key(),
            blob: vec![7; 156],
        },
    ]
}

fn good() -> KeystoreBody {
    KeystoreBody {
        id: KeystoreId([1; 16]),
        generation: 2,
        last_time: 3,
        audit: AuditHead { seq: 5, hash: [6; 32] },
        slots: (1..).zip(kinds()).map(|(id, kind)| slot(id, kind)).collect(),
        keys: vec![key(1), key(2), remote_key(3, arn()), remote_key(4, token_key())],
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
            path: "/v".into(),
            keys: vec![VaultKey {
                key: KeyId([1; 16]),
                epochs: 2,
                alone: 1,
            }],
            files: Some(FileCount { count: 9, time: 10 }),
            last_use: Some(11),
        }],
        extensions: vec![Extension {
            kind: 9,
            critical: 0,
            data: vec![1, 2],
        }],
    }
}

/// Encodes without the checks of `encode`, as an attacker would.
fn encode_unchecked(body: &KeystoreBody) -> Vec<u8> {
    let mut bytes = body::encode(KIND, body).unwrap();
    bytes.extend_from_slice(&mac_key().mac(&bytes));
    bytes
}

/// Encodes a body and reads it again.
fn read_back(body: &KeystoreBody) -> KeystoreBody {
    let bytes = encode(body, &mac_key()).unwrap();
    UnverifiedKeystoreFile::decode(&bytes)
        .unwrap()
        .verify(&mac_key())
        .unwrap()
}

/// Returns why a body is refused whose extensions were changed.
fn fault_of_extensions(body: &KeystoreBody, change: fn(&mut Vec<Extension>)) -> FormatError {
    let mut body = body.clone();
    change(&mut body.extensions);
    UnverifiedKeystoreFile::decode(&encode_unchecked(&body))
        .map(drop)
        .unwrap_err()
}

#[test]
fn what_is_encoded_decodes() {
    let bytes = encode(&good(), &mac_key()).unwrap();
    let file = UnverifiedKeystoreFile::decode(&bytes).unwrap();
    assert_eq!(file.slots().len(), 9);
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
    put(&5u64.to_le_bytes()); // audit
    put(&[6; 32]);
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
    put(&[0]); // not remote
    put(&2u32.to_le_bytes());
    put(&99u64.to_le_bytes());
    put(&3u64.to_le_bytes());
    put(&string("d"));
    put(&[1]);
    put(&365u32.to_le_bytes());
    put(&1000u64.to_le_bytes());
    put(&two); // tags
    for text in ["a", "b", "c", ""] {
        put(&string(text));
    }
    put(&string("{}"));
    put(&[1]); // last use
    put(&1u32.to_le_bytes());
    put(&44u64.to_le_bytes());
    put(&two); // materials
    for version in [1u32, 3] {
        put(&version.to_le_bytes());
        put(&[4; 32]);
        put(&8u64.to_le_bytes());
        put(&2u32.to_le_bytes());
        put(&[6; 96]);
    }
    put(&one); // aliases
    put(&string("alias/a"));
    put(&[1; 16]);
    put(&one); // vaults
    put(&[1; 16]);
    put(&4u32.to_le_bytes());
    put(&string("/v"));
    put(&one);
    put(&[1; 16]);
    put(&2u32.to_le_bytes());
    put(&1u32.to_le_bytes());
    put(&[1]);
    put(&9u64.to_le_bytes());
    put(&10u64.to_le_bytes());
    put(&[1]);
    put(&11u64.to_le_bytes());
    put(&one); // extensions
    put(&9u16.to_le_bytes());
    put(&[0]);
    put(&two);
    put(&[1, 2]);
    let mut file = b"HUSHKEYS\x02\0\x01\0".to_vec();
    file.extend_from_slice(&(expected.len() as u32).to_le_bytes());
    file.extend_from_slice(&expected);
    file.extend_from_slice(&mac_key().mac(&file));
    assert_eq!(encode(&body, &mac_key()).unwrap(), file);
}

#[test]
fn the_fields_of_every_kind_stand_in_their_order() {
    fn blob(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
    }
    let number = |number: u32| number.to_le_bytes().to_vec();
    let hardness = [[9; 16].to_vec(), number(10), number(11), number(12)].concat();
    let name = |arn: &RemoteKeyName| match arn {
        RemoteKeyName::AwsKms { arn } => [number(0), blob(arn.as_bytes())].concat(),
        RemoteKeyName::Pkcs11 { .. } => [number(1), blob(b"t"), blob(b"l"), blob(&[1, 2])].concat(),
    };
    let expected = [
        [number(0), hardness].concat(),
        number(1),
        number(2),
        [number(3), blob(b"hushfs")].concat(),
        [
            number(4),
            2u64.to_le_bytes().to_vec(),
            blob(b"fido2-assert"),
            blob(b"-G"),
        ]
        .concat(),
        [number(5), blob(&[1; 78]), blob(&[2; 158]), number(128), vec![1]].concat(),
        [number(6), blob(&[3; 1216]), blob(&[4; 1120]), vec![5; 48]].concat(),
        [number(7), name(&arn()), blob(&[6; 200])].concat(),
        [number(7), name(&token_key()), blob(&[7; 156])].concat(),
    ];
    for (kind, expected) in kinds().iter().zip(expected) {
        assert_eq!(body::encode_part(kind, 10_000).unwrap(), expected, "{}", kind.word());
        let aad = slot_aad(KeystoreId([8; 16]), SlotId(2), kind);
        assert_eq!(aad, [[8; 16].as_slice(), &[2, 0, 0, 0], &expected].concat());
    }
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
    assert_eq!(
        fault(|b| b.keys[0].policy = "x".repeat(32 * 1024 + 1)),
        "length of a policy"
    );
    assert_eq!(
        fault(|b| b.keys[0].tags = (10..=60).map(|i| tag(&i.to_string(), "")).collect()),
        "number of tags"
    );
    assert_eq!(fault(|b| b.keys[0].tags.swap(0, 1)), "name of a tag");
    assert_eq!(fault(|b| b.keys[0].tags[0].name.clear()), "name of a tag");
    assert_eq!(fault(|b| b.keys[0].tags[1].name = "é".repeat(129)), "name of a tag");
    assert_eq!(fault(|b| b.keys[0].tags[0].value = "é".repeat(257)), "value of a tag");
    assert_eq!(
        fault(|b| b.keys[2].materials = vec![material(1)]),
        "number of materials"
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
    assert_eq!(
        fault(|b| b.vaults = vec![b.vaults[0].clone(); 4097]),
        "number of vaults"
    );
    assert_eq!(fault(|b| b.vaults.push(b.vaults[0].clone())), "vault id");
    assert_eq!(fault(|b| b.vaults[0].path = "x".repeat(256)), "length of a path");
    assert_eq!(
        fault(|b| b.vaults[0].keys = vec![b.vaults[0].keys[0]; 17]),
        "number of a vault's keys"
    );
    assert_eq!(
        fault(|b| b.vaults[0].keys = vec![b.vaults[0].keys[0]; 2]),
        "key id of a vault"
    );
    assert_eq!(
        fault(|b| b.extensions = vec![b.extensions[0].clone(); 65]),
        "number of extensions"
    );
}

#[test]
fn each_fault_of_a_remote_key_s_name_has_its_name() {
    let aws = |arn: &str| RemoteKeyName::AwsKms { arn: arn.into() };
    let token = |token: &str, label: &str, id: usize| RemoteKeyName::Pkcs11 {
        token: token.into(),
        label: label.into(),
        id: vec![1; id],
    };
    let long = "x".repeat(256);
    for (name, field) in [
        (aws(""), "ARN of a key"),
        (aws("https://kms.example.com/"), "ARN of a key"),
        (aws("arn:aws:kms: "), "ARN of a key"),
        (aws(&format!("arn:{}", "x".repeat(2045))), "ARN of a key"),
        (token("", "l", 0), "label of a token"),
        (token(&long[..33], "l", 0), "label of a token"),
        (token("t", "", 0), "label of a key in a token"),
        (token("t", "a\0b", 0), "label of a key in a token"),
        (token("t", &long, 0), "label of a key in a token"),
        (token("t", "l", 256), "id of a key in a token"),
    ] {
        let mut body = good();
        body.keys[2].remote = Some(name.clone());
        let expected = Err(FormatError::OutOfRange(field));
        assert_eq!(encode(&body, &mac_key()).map(drop), expected, "{name}");
        let mut body = good();
        body.slots[0].kind = SlotKind::Remote {
            key: name.clone(),
            blob: vec![1],
        };
        assert_eq!(encode(&body, &mac_key()).map(drop), expected, "{name}");
    }
}

#[test]
fn each_fault_of_a_kind_of_slot_has_its_name() {
    let credential = |name: &str| SlotKind::Credential { name: name.into() };
    let command = |words: &[&str]| SlotKind::Command {
        words: words.iter().map(|&word| word.to_owned()).collect(),
    };
    let tpm = |public: usize, private: usize, pcrs| SlotKind::Tpm2 {
        public: vec![1; public],
        private: vec![2; private],
        pcrs,
        pin: false,
    };
    let recipient = |public: usize, encapsulated: usize| SlotKind::Recipient {
        recipient: vec![3; public],
        encapsulated: vec![4; encapsulated],
        sealed: SealedBytes::from_slice(&[5; SEALED_ROOT_SIZE]).unwrap(),
    };
    let remote = |size: usize| SlotKind::Remote {
        key: arn(),
        blob: vec![6; size],
    };
    for (kind, field) in [
        (credential(""), "name of a credential"),
        (credential(".."), "name of a credential"),
        (credential("../../etc/shadow"), "name of a credential"),
        (credential(&"x".repeat(256)), "name of a credential"),
        (command(&[]), "number of words"),
        (command(&["x"; 65]), "number of words"),
        (command(&["", "x"]), "words of a command"),
        (command(&["x", "a\0"]), "words of a command"),
        (command(&["x", &"y".repeat(4096)]), "words of a command"),
        (tpm(0, 1, 0), "size of a TPM's object"),
        (tpm(1, 2049, 0), "size of a TPM's object"),
        (tpm(1, 1, 1 << 24), "registers of a TPM"),
        (recipient(1215, 1120), "size of a public key"),
        (recipient(1216, 1121), "size of an encapsulated key"),
        (remote(8193), "size of a wrapped slot secret"),
    ] {
        let mut body = good();
        body.slots[0].kind = kind;
        let error = encode(&body, &mac_key()).unwrap_err();
        assert_eq!(error, FormatError::OutOfRange(field), "{:?}", body.slots[0].kind);
    }
    for kind in [
        tpm(2048, 2048, 0),
        remote(8192),
        command(&["x"; 64]),
        credential(&"x".repeat(255)),
    ] {
        let mut body = good();
        body.slots[0].kind = kind;
        assert!(encode(&body, &mac_key()).is_ok());
    }
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
    assert_eq!(fault(|b| b[8] = 3), FormatError::Newer(3));
    assert_eq!(fault(|b| b[10] = 2), FormatError::OutOfRange("body encoding"));
    assert_eq!(fault(|b| b[15] = 1), FormatError::OutOfRange("length of the body"));
    assert_eq!(fault(|b| b.clear()), FormatError::TooShort);
    assert_eq!(fault(|b| b.truncate(b.len() - 1)), FormatError::TooShort);
    assert_eq!(fault(|b| b.truncate(100)), FormatError::TooShort);
    assert_eq!(fault(|b| b.push(0)), FormatError::TrailingBytes);
    assert_eq!(
        fault(|b| b[16 + 16 + 8 + 8 + 40] = 200),
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
fn the_audit_extension_comes_back_and_each_fault_of_it_is_refused() {
    let settings = AuditSettings {
        is_on: true,
        log: LogId([4; 16]),
        first: 5,
        seed: Wrapped([6; WRAPPED_SIZE]),
    };
    let mut body = good();
    assert_eq!(body.audit_settings(), None);
    body.set_audit_settings(&settings);
    body.set_audit_settings(&settings);
    assert_eq!(body.extensions.len(), 2);
    let extension = body.extensions[1].clone();
    assert_eq!((extension.kind, extension.critical, extension.data.len()), (1, 1, 121));
    let read = read_back(&body);
    assert_eq!(read.audit_settings(), Some(settings));
    let fault = |change| fault_of_extensions(&body, change);
    let settings = FormatError::OutOfRange("audit settings");
    assert_eq!(fault(|e| e[1].critical = 0), settings);
    assert_eq!(fault(|e| e[1].data[0] = 2), settings);
    assert_eq!(fault(|e| e[1].data[0] = 0), settings);
    assert_eq!(fault(|e| e.push(e[1].clone())), settings);
    assert_eq!(fault(|e| e[1].data.truncate(120)), FormatError::TooShort);
    assert_eq!(fault(|e| e[1].data.push(0)), FormatError::TrailingBytes);
}

#[test]
fn marks_of_vaults_come_back_and_each_fault_of_them_is_refused() {
    let mut body = good();
    for byte in [7, 5, 6, 5] {
        body.set_names_mark(VaultId([byte; 16]), NamesMark([byte; 16]));
    }
    let extension = body.extensions[1].clone();
    assert_eq!((extension.kind, extension.critical, extension.data.len()), (2, 1, 96));
    let read = read_back(&body);
    assert_eq!(read.names_mark(VaultId([6; 16])), Some(NamesMark([6; 16])));
    assert_eq!(read.names_mark(VaultId([8; 16])), None);
    let fault = |change| fault_of_extensions(&body, change);
    let marks = FormatError::OutOfRange("marks of vaults");
    assert_eq!(fault(|e| e[1].critical = 0), marks);
    assert_eq!(fault(|e| e[1].data[0] = 9), marks);
    assert_eq!(fault(|e| e[1].data.clear()), marks);
    assert_eq!(fault(|e| e.push(e[1].clone())), marks);
    assert_eq!(fault(|e| e[1].data.truncate(95)), FormatError::TooShort);
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
fn a_sealed_root_has_one_size() {
    assert_eq!(SealedBytes::from_slice(&[7; 48]).unwrap().as_bytes(), [7; 48]);
    for size in [0, 32, 47, 49, 64] {
        assert_eq!(SealedBytes::from_slice(&vec![7; size]), None);
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = UnverifiedKeystoreFile::decode(&bytes);
        for version in 1..=2 {
        let mut framed = b"HUSHKEYS\0\0\x01\0".to_vec();
        framed[8] = version;
        framed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        framed.extend_from_slice(&bytes);
        framed.extend_from_slice(&[0; 32]);
        let _ = UnverifiedKeystoreFile::decode(&framed);
        }
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
