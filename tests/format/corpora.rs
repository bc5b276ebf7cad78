//! What the fuzz targets start from (fuzz/corpus): the vectors, and what is made the same each time. HUSHFS_WRITE_CORPORA=1 writes them.

use std::fs;

use data_encoding::BASE64URL_NOPAD;
use hushfs::{
    crypto::{
        block::Suite,
        keys::{AuditSeed, KeyBytes, MacKey},
        locked::LockedKey,
    },
    format::{
        audit::Chain,
        journal::{Change as FileChange, EntryFile, GroupWriter, JournalHeader, JournalPlace},
        keystore::AuditHead,
        name,
    },
    ids::{Epoch, KeyId, LogId, VaultId},
    keystore::{
        Context, KeyFile, NewSecret, Unlock,
        agent::{Done, Refusal, Reply, Request, frame},
        policy::DEFAULT_POLICY,
        request::{Answer, Change, Question},
        way::{NewWay, Opener},
    },
    vault::sealed::{SealedFile, UnopenedFile},
};

use super::fixed::{FILE, VAULT, here, hex, key, vectors};

/// What the sealed file of the corpus has in it.
const SEALED: &[u8] = b"sealed for a key file of 64 sevens\n";

/// A policy with one of each element.
const POLICY: &str = r#"{"Version":"2012-10-17","Id":"one","Statement":[
{"Sid":"all","Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"},
{"Effect":"Deny","Principal":{"hushfs":["uid:1000","gid:27","role:lap*"]},"Action":["kms:Decrypt","kms:Describe*"],"Resource":"*",
"Condition":{"StringEquals":{"kms:EncryptionContext:hushfs:vault":["01"]}}}]}"#;

fn key_file() -> KeyFile {
    KeyFile::new(vec![7; 64].into()).unwrap()
}

fn frame_of(request: &Request) -> Vec<u8> {
    frame::encode(request, frame::REQUEST_SIZE_MAX).unwrap()[4..].to_vec()
}

fn change(change: Change) -> Request {
    Request::Change { change, dry_run: false }
}

/// Requests as the target takes them: seconds that pass, the length of the frame, the frame.
fn session(requests: &[Request]) -> Vec<u8> {
    let mut out = Vec::new();
    for request in requests {
        let frame = frame_of(request);
        out.extend_from_slice(&86_400u32.to_le_bytes());
        out.extend_from_slice(&(frame.len() as u16).to_le_bytes());
        out.extend_from_slice(&frame);
    }
    out
}

fn requests() -> Vec<Request> {
    let key = || "alias/two".to_owned();
    let pairs = || vec![("team".to_owned(), "blue".to_owned())];
    vec![
        change(Change::Create {
            description: "two".to_owned(),
            tags: pairs(),
            alias: Some(key()),
            remote: None,
        }),
        Request::Question(Question::Describe { key: key() }),
        change(Change::RotationOn { key: key(), days: 90 }),
        change(Change::Rotate { key: key() }),
        change(Change::Untag {
            key: key(),
            names: vec!["team".to_owned()],
        }),
        change(Change::SetPolicy {
            key: key(),
            policy: DEFAULT_POLICY.to_owned(),
            lockout: false,
        }),
        change(Change::Disable { key: key() }),
        change(Change::Delete { key: key(), days: 7 }),
        change(Change::Undelete { key: key() }),
        change(Change::SetAlias {
            alias: "alias/three".to_owned(),
            key: key(),
        }),
        change(Change::Reap),
    ]
}

fn audit_log() -> Vec<u8> {
    let seed = AuditSeed::new(LockedKey::copy_of(&[9; 32]));
    let mut chain = Chain::start(&seed, LogId([5; 16]), AuditHead::default());
    let events = [r#"{"a":1}"#, r#"{"b":"\u00e4, \"mac\":"}"#, r#"{"c":[]}"#];
    events.iter().flat_map(|event| chain.append(event).unwrap()).collect()
}

/// The header of a journal, and two groups.
fn journal() -> [Vec<u8>; 2] {
    let key = MacKey::new(KeyBytes::copy_of(&key()));
    let header = JournalHeader {
        vault: VAULT,
        place: JournalPlace { inode: 12, born: 34 },
        generation: 3,
    };
    let file = EntryFile {
        file: FILE,
        inode: 56,
        seal_count: 7,
        mtime: (89, 10),
    };
    let changes = [
        FileChange::Write(256, b"a sealed block"),
        FileChange::Zero(4380, 4124),
        FileChange::SetLen(300),
    ];
    let groups = changes.chunks(2).zip(0..).flat_map(|(changes, sequence)| {
        let mut group = GroupWriter::new(header.generation, sequence);
        changes.iter().for_each(|change| group.push(&file, *change));
        group.finish(&key)
    });
    [header.encode(&key).to_vec(), groups.collect()]
}

/// Target, name and content of each file but those that are random.
fn corpora() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let vectors = vectors();
    let bytes = |name: &str| hex(&vectors[name]);
    let text = |name: &str| vectors[name].as_str().unwrap().as_bytes().to_vec();
    let entry = |i: usize| vectors["names"][i]["entry"].as_str().unwrap().as_bytes().to_vec();
    let long = name::encode_long_name(&hex(&vectors["names"][4]["sealed"]));
    let attribute = format!("user.hush.{}", BASE64URL_NOPAD.encode(&bytes("xattr hash")));
    let reply = |reply: Reply| frame::encode(&reply, frame::REPLY_SIZE_MAX).unwrap()[4..].to_vec();
    let generate = Request::Generate {
        key: KeyId([3; 16]),
        context: Context::for_epoch(VaultId([1; 16]), Epoch(3)),
    };
    let [journal, groups] = journal();
    vec![
        ("agent_frame", "change", frame_of(&requests()[0])),
        ("agent_frame", "question", frame_of(&requests()[1])),
        ("agent_frame", "generate", frame_of(&generate)),
        (
            "agent_frame",
            "answer",
            reply(Ok(Done::Answer(Answer::Find(KeyId([3; 16]))))),
        ),
        ("agent_frame", "refusal", reply(Err(Refusal::Busy))),
        ("audit", "good", audit_log()),
        ("directory", "good", bytes("directory header")),
        ("header", "good", bytes("header")),
        ("header", "good_without_bucket_key", bytes("header 2")),
        ("identity", "identity", text("identity")),
        ("identity", "locked", text("locked identity")),
        ("identity", "recipient", text("recipient")),
        ("identity", "recovery-key", text("recovery key")),
        ("journal", "good", journal),
        ("journal", "good-groups", groups),
        ("keystore", "good", bytes("keystore")),
        ("keystore", "good-1", bytes("keystore 1")),
        ("link", "good", text("link")),
        ("link", "good-file", bytes("link file")),
        ("long_name", "good", [entry(4), long].concat()),
        ("name", "good", entry(0)),
        ("name", "conflict", [entry(0), b" (conflicted copy)".to_vec()].concat()),
        ("policy", "default", DEFAULT_POLICY.into()),
        ("policy", "each", POLICY.into()),
        ("preamble", "good", bytes("preamble")),
        ("request", "session", session(&requests())),
        ("sealed_header", "good", bytes("sealed header")),
        ("vault_header", "good", bytes("vault header")),
        ("vault_header", "good-2", bytes("vault header 2")),
        ("xattr", "good", bytes("xattr")),
        ("xattr", "name", attribute.into_bytes()),
    ]
}

#[test]
fn the_corpora_of_the_fuzz_targets_are_the_vectors() {
    let root = here().join("../../fuzz/corpus");
    let sealed_file = root.join("sealed_file/good");
    if std::env::var_os("HUSHFS_WRITE_CORPORA").is_some() {
        for (target, name, bytes) in corpora() {
            fs::create_dir_all(root.join(target)).unwrap();
            fs::write(root.join(target).join(name), bytes).unwrap();
        }
        let mut sealed = Vec::new();
        let way = NewWay::Secret(NewSecret::KeyFile(&key_file()));
        let file = SealedFile::new(Suite::Aes256GcmSiv, Vec::new(), &[way]).unwrap();
        file.seal(SEALED, &mut sealed, |_| ()).unwrap();
        fs::create_dir_all(root.join("sealed_file")).unwrap();
        fs::write(&sealed_file, sealed).unwrap();
    }
    for (target, name, bytes) in corpora() {
        assert!(
            fs::read(root.join(target).join(name)).unwrap() == bytes,
            "{target}/{name}"
        );
    }
    let mut plain = Vec::new();
    let unlock = Unlock::KeyFile(key_file());
    let sealed = fs::read(sealed_file).unwrap();
    let opened = UnopenedFile::enter(&sealed[..])
        .unwrap()
        .open(&Opener::Secret(&unlock))
        .unwrap();
    opened.copy_to(&mut plain, |_| ()).unwrap();
    assert_eq!(plain, SEALED);
}
