use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    crypto::passphrase::{Hardness, MEMORY_KIB_MIN},
    format::keystore::{RemoteKeyName, SlotId},
    keystore::{
        KeyError, KeyFile, KeyHandle, LocalKeystore, NewSecret, Passphrase, Provider, ProviderError, RecoveryKey,
        RemoteKeyState, SecretKind, Unlock, UnlockError, identity::Identity, provider::memory::MemoryProvider,
    },
};

const BLOCK: usize = BLOCK_SIZE as usize;
const STRIDE: usize = BLOCK + 28;

fn key_file(byte: u8) -> KeyFile {
    KeyFile::new(vec![byte; 32].into()).unwrap()
}

fn sealed_for(ways: &[NewWay<'_>], plain: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::new();
    let file = SealedFile::new(Suite::Aes256GcmSiv, Vec::new(), ways).unwrap();
    file.seal(plain, &mut sealed, |_| ()).unwrap();
    sealed
}

/// Returns a file that key file 1 opens.
fn sealed(plain: &[u8]) -> Vec<u8> {
    sealed_for(&[NewWay::Secret(NewSecret::KeyFile(&key_file(1)))], plain)
}

fn open_with(opener: &Opener<'_>, sealed: &[u8]) -> Result<Vec<u8>, SealedError> {
    let mut plain = Vec::new();
    UnopenedFile::enter(sealed)?.open(opener)?.copy_to(&mut plain, |_| ())?;
    Ok(plain)
}

fn open_by(unlock: &Unlock, sealed: &[u8]) -> Result<Vec<u8>, SealedError> {
    open_with(&Opener::Secret(unlock), sealed)
}

fn open(sealed: &[u8]) -> Result<Vec<u8>, SealedError> {
    open_by(&Unlock::KeyFile(key_file(1)), sealed)
}

fn way_error(result: Result<Vec<u8>, SealedError>) -> WayError {
    match result {
        Err(SealedError::Way(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7) as u8).collect()
}

#[test]
fn files_of_all_sizes_around_blocks_and_runs_come_back() {
    let edges = [
        0,
        1,
        BLOCK,
        2 * BLOCK,
        RUN_BLOCKS * BLOCK,
        (RUN_BLOCKS + 1) * BLOCK,
        2 * RUN_BLOCKS * BLOCK,
    ];
    for edge in edges {
        for len in edge.saturating_sub(1)..=edge + 1 {
            let plain = content(len);
            assert!(open(&sealed(&plain)).unwrap() == plain, "{len} bytes");
        }
    }
}

#[test]
fn a_reader_that_gives_little_at_a_time_changes_nothing() {
    struct Dribble<'a>(&'a [u8]);
    impl Read for Dribble<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = buffer.len().min(1021);
            self.0.read(&mut buffer[..len])
        }
    }
    let plain = content(3 * BLOCK + 5);
    let file = SealedFile::new(
        Suite::XChaCha20Poly1305,
        Vec::new(),
        &[NewWay::Secret(NewSecret::KeyFile(&key_file(1)))],
    )
    .unwrap();
    let (mut sealed, mut opened) = (Vec::new(), Vec::new());
    file.seal(Dribble(&plain), &mut sealed, |_| ()).unwrap();
    let unlock = Unlock::KeyFile(key_file(1));
    let entered = UnopenedFile::enter(Dribble(&sealed)).unwrap();
    let entered = entered.open(&Opener::Secret(&unlock)).unwrap();
    entered.copy_to(&mut opened, |_| ()).unwrap();
    assert!(opened == plain);
}

#[test]
fn every_flipped_byte_and_every_cut_is_noticed() {
    let good = sealed(b"attack at dawn");
    for i in 0..good.len() {
        let mut bytes = good.clone();
        bytes[i] ^= 1;
        assert!(open(&bytes).is_err(), "byte {i}");
        assert!(open(&good[..i]).is_err(), "cut to {i}");
    }
    for behind in [1, END_SIZE, STRIDE] {
        assert!(open(&[good.as_slice(), &vec![0; behind]].concat()).is_err());
    }
}

#[test]
fn blocks_cannot_be_cut_off_moved_left_out_or_brought_from_elsewhere() {
    let (good, other) = (sealed(&content(4 * BLOCK)), sealed(&content(4 * BLOCK)));
    let start = good.len() - END_SIZE - 4 * STRIDE;
    let block = |file: &[u8], i: usize| file[start + i * STRIDE..][..STRIDE].to_vec();
    let (head, end) = (&good[..start], &good[good.len() - END_SIZE..]);
    let with = |blocks: &[Vec<u8>], end: &[u8]| [head, &blocks.concat(), end].concat();
    let all = |file: &[u8]| (0..4).map(|i| block(file, i)).collect::<Vec<_>>();
    assert!(open(&with(&all(&good), end)).is_ok());
    assert!(matches!(open(&with(&all(&good), b"")), Err(SealedError::WrongEnd)));
    assert!(matches!(open(&with(&all(&good)[..3], end)), Err(SealedError::WrongEnd)));
    assert!(matches!(open(&with(&[], end)), Err(SealedError::WrongEnd)));
    let mut swapped = all(&good);
    swapped.swap(1, 2);
    assert!(matches!(
        open(&with(&swapped, end)),
        Err(SealedError::Damaged { offset: 65536 })
    ));
    let mut doubled = all(&good);
    doubled.push(block(&good, 3));
    assert!(matches!(open(&with(&doubled, end)), Err(SealedError::WrongEnd)));
    let mut foreign = all(&good);
    foreign[2] = block(&other, 2);
    assert!(matches!(open(&with(&foreign, end)), Err(SealedError::Damaged { .. })));
    assert!(matches!(
        open(&with(&all(&good), &other[other.len() - END_SIZE..])),
        Err(SealedError::WrongEnd)
    ));
    // The content of another file behind this header.
    assert!(open(&[head, &other[start..]].concat()).is_err());
    // Zeroed: damage and no hole.
    let mut zeroed = all(&good);
    zeroed[1].fill(0);
    assert!(matches!(open(&with(&zeroed, end)), Err(SealedError::Damaged { .. })));
}

#[test]
fn nothing_of_a_run_is_written_when_one_block_of_it_is_damaged() {
    let good = sealed(&content(2 * RUN_BLOCKS * BLOCK));
    let mut bytes = good.clone();
    let in_second_run = good.len() - END_SIZE - 5 * STRIDE;
    bytes[in_second_run] ^= 1;
    let unlock = Unlock::KeyFile(key_file(1));
    let opened = UnopenedFile::enter(bytes.as_slice())
        .unwrap()
        .open(&Opener::Secret(&unlock))
        .unwrap();
    let mut plain = Vec::new();
    assert!(matches!(
        opened.copy_to(&mut plain, |_| ()),
        Err(SealedError::Damaged { .. })
    ));
    assert!(plain == content(2 * RUN_BLOCKS * BLOCK)[..RUN_BLOCKS * BLOCK]);
}

#[test]
fn any_of_several_ways_opens() {
    let passphrase = |text: &str| Passphrase::new(text.as_bytes().to_vec().into()).unwrap();
    let easy = Hardness {
        salt: [0; 16],
        memory_kib: MEMORY_KIB_MIN,
        passes: 1,
        lanes: 1,
    };
    let (typed, recovery, identity) = (passphrase("horse"), RecoveryKey::generate(), Identity::generate());
    let bytes = sealed_for(
        &[
            NewWay::Secret(NewSecret::Passphrase(&typed, easy)),
            NewWay::Secret(NewSecret::RecoveryKey(&recovery)),
            NewWay::Secret(NewSecret::Recipient(identity.recipient())),
            NewWay::Secret(NewSecret::KeyFile(&key_file(1))),
        ],
        b"hello",
    );
    for unlock in [
        Unlock::Passphrase(passphrase("horse")),
        Unlock::RecoveryKey(recovery),
        Unlock::Identity(identity),
        Unlock::KeyFile(key_file(1)),
    ] {
        assert_eq!(open_by(&unlock, &bytes).unwrap(), b"hello");
    }
    assert_eq!(
        way_error(open_by(&Unlock::Passphrase(passphrase("Horse")), &bytes)),
        WayError::WrongSecret(SecretKind::Passphrase)
    );
    assert_eq!(
        way_error(open_by(&Unlock::KeyFile(key_file(2)), &bytes)),
        WayError::WrongSecret(SecretKind::KeyFile)
    );
    // A stranger's identity has no way at all.
    assert_eq!(
        way_error(open_by(&Unlock::Identity(Identity::generate()), &bytes)),
        WayError::NoWayOfKind(SecretKind::Identity)
    );
}

#[test]
fn a_key_of_a_keystore_opens_as_long_as_it_may_be_used() {
    let mut keystore = LocalKeystore::create("main", &NewSecret::KeyFile(&key_file(1)), 1).unwrap();
    let key = keystore.create_key(&Default::default(), 1).unwrap();
    let bytes = sealed_for(
        &[NewWay::Key {
            keystore: &keystore,
            key,
        }],
        b"hello",
    );
    assert_eq!(open_with(&Opener::Keystore(&keystore), &bytes).unwrap(), b"hello");
    keystore.rotate_on_demand(&key, 2).unwrap();
    assert_eq!(open_with(&Opener::Keystore(&keystore), &bytes).unwrap(), b"hello");
    keystore.disable(&key).unwrap();
    assert_eq!(
        way_error(open_with(&Opener::Keystore(&keystore), &bytes)),
        WayError::Key(KeyError::Disabled { key: key.0 })
    );
    let other = LocalKeystore::create("main", &NewSecret::KeyFile(&key_file(1)), 1).unwrap();
    assert_eq!(
        way_error(open_with(&Opener::Keystore(&other), &bytes)),
        WayError::NotOfKeystore { keystore: other.id() }
    );
    // The key file opens the keystore, not the file.
    assert_eq!(way_error(open(&bytes)), WayError::NoWayOfKind(SecretKind::KeyFile));
}

#[test]
fn a_remote_key_opens_in_the_context_it_sealed_in() {
    let server = Arc::new(MemoryProvider::default());
    let key = RemoteKeyName::AwsKms {
        arn: "arn:aws:kms:eu-west-1:111122223333:key/1".into(),
    };
    server.set(&key, RemoteKeyState::Enabled);
    let pairs = vec![("department".to_owned(), "sales".to_owned())];
    let way = NewWay::Secret(NewSecret::RemoteKey {
        key: &key,
        provider: &*server,
    });
    let file = SealedFile::new(Suite::Aes256GcmSiv, pairs, &[way]).unwrap();
    let mut bytes = Vec::new();
    file.seal(b"hello".as_slice(), &mut bytes, |_| ()).unwrap();
    let unlock = Unlock::RemoteKey {
        key: key.clone(),
        provider: server.clone() as Arc<dyn Provider>,
    };
    assert_eq!(open_by(&unlock, &bytes).unwrap(), b"hello");
    let at = bytes.windows(5).position(|window| window == b"sales").unwrap();
    bytes[at] = b'S';
    assert_eq!(
        way_error(open_by(&unlock, &bytes)),
        WayError::Damaged { way: SlotId(1) }
    );
    bytes[at] = b's';
    server.set(&key, RemoteKeyState::Disabled);
    assert!(matches!(
        way_error(open_by(&unlock, &bytes)),
        WayError::Unlock(UnlockError::Remote {
            error: ProviderError::Disabled,
            ..
        })
    ));
}

#[test]
fn ways_come_and_go_and_the_content_stays() {
    let good = sealed(&content(BLOCK + 1));
    let partner = Identity::generate();
    let mine = Unlock::KeyFile(key_file(1));
    let mut opened = UnopenedFile::enter(good.as_slice())
        .unwrap()
        .open(&Opener::Secret(&mine))
        .unwrap();
    opened
        .file
        .add_way(&NewWay::Secret(NewSecret::Recipient(partner.recipient())))
        .unwrap();
    opened.file.retain_ways(|way| way.id != SlotId(1));
    let mut resealed = Vec::new();
    opened.reseal_to(&mut resealed).unwrap();
    assert!(resealed.ends_with(&good[good.len() - END_SIZE - STRIDE - 29..]));
    assert!(open_by(&Unlock::Identity(partner), &resealed).unwrap() == content(BLOCK + 1));
    assert_eq!(way_error(open(&resealed)), WayError::NoWayOfKind(SecretKind::KeyFile));
}

#[test]
fn a_way_opens_in_its_own_file_and_place_only() {
    let header = |bytes: &[u8]| UnopenedFile::enter(bytes).unwrap().claims().clone();
    let (one, mut two) = (header(&sealed(b"")), header(&sealed(b"")));
    let unlock = Unlock::KeyFile(key_file(1));
    let opener = Opener::Secret(&unlock);
    assert!(opener.data_key(&one).is_ok());
    two.ways.clone_from(&one.ways);
    assert!(opener.data_key(&two).is_err());
    let mut renumbered = one.clone();
    renumbered.ways[0].id = SlotId(2);
    assert!(opener.data_key(&renumbered).is_err());
}

#[test]
fn other_files_are_told_from_damaged_ones() {
    for (bytes, expected) in [
        (b"".as_slice(), FormatError::NotOne),
        (b"%PDF-1.7 and so on", FormatError::NotOne),
        (b"HUSHSEAL\x02\0\x01\0\0\0\0\0", FormatError::Newer(2)),
        (
            b"HUSHSEAL\x01\0\x01\0\xff\xff\xff\xff",
            FormatError::OutOfRange("length of the body"),
        ),
        (b"HUSHSEAL", FormatError::TooShort),
    ] {
        match UnopenedFile::enter(bytes) {
            Err(SealedError::Format(error)) => assert_eq!(error, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_handle_of_no_key_seals_nothing() {
    let keystore = LocalKeystore::create("main", &NewSecret::KeyFile(&key_file(1)), 1).unwrap();
    let key = KeyHandle(crate::ids::KeyId([9; 16]));
    let made = SealedFile::new(
        Suite::Aes256GcmSiv,
        Vec::new(),
        &[NewWay::Key {
            keystore: &keystore,
            key,
        }],
    );
    assert!(matches!(
        made,
        Err(SealedError::Way(WayError::Key(KeyError::NotFound { .. })))
    ));
}

proptest! {
    #[test]
    fn any_bytes_open_or_give_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200), keep in 0usize..700) {
        let good = sealed(b"attack at dawn");
        let mut file = good.clone();
        file.truncate(keep);
        file.extend_from_slice(&bytes);
        prop_assert_eq!(open(&file).is_ok(), file == good);
    }
}
