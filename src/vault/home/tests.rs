use super::*;
use crate::{
    crypto::{block::Suite, passphrase::Hardness},
    keystore::{KeyFile, NewSecret, Passphrase, UnlockError},
};

const EASY: Hardness = Hardness {
    salt: [0; 16],
    memory_kib: 8 * 1024,
    passes: 1,
    lanes: 1,
};

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(text.as_bytes().to_vec().into()).unwrap()
}

fn key_file(byte: u8) -> KeyFile {
    KeyFile::new(vec![byte; 32].into()).unwrap()
}

fn layout() -> Layout {
    Layout::new(Suite::Aes256GcmSiv, 4096).unwrap()
}

fn keystore() -> LocalKeystore {
    LocalKeystore::create("main", &NewSecret::KeyFile(&key_file(1)), 100).unwrap()
}

fn vault() -> (tempfile::TempDir, OpenVault) {
    let temp = tempfile::tempdir().unwrap();
    let open = VaultHome::create(temp.path(), layout(), keystore(), 100).unwrap();
    (temp, open)
}

fn open_with(path: &Path, byte: u8) -> Result<OpenVault, OpenError> {
    VaultHome::enter(path, Lock::Exclusive)?.open(&Unlock::KeyFile(key_file(byte)), &SlotChoice::Any)
}

/// The two files, as they stood at one time.
#[derive(Clone)]
struct Files {
    header: Vec<u8>,
    keystore: Vec<u8>,
}

fn files(path: &Path) -> Files {
    Files {
        header: fs::read(path.join(VAULT_HEADER)).unwrap(),
        keystore: fs::read(path.join(KEYSTORE)).unwrap(),
    }
}

fn put(path: &Path, header: &[u8], keystore: &[u8]) {
    fs::write(path.join(VAULT_HEADER), header).unwrap();
    fs::write(path.join(KEYSTORE), keystore).unwrap();
}

#[test]
fn what_was_made_opens() {
    let (temp, open) = vault();
    let (id, names) = (open.vault.id(), open.vault.root_keys().id);
    let header = open.vault.new_header(names);
    open.vault.store_header(open.home.dir(), &header).unwrap();
    drop(open);
    let open = open_with(temp.path(), 1).unwrap();
    assert_eq!((open.vault.id(), open.vault.root_keys().id), (id, names));
    assert_eq!(open.header().current, Epoch(1));
    assert_eq!(open.keystore().epoch_floor(id), Some(Epoch(1)));
    let loaded = open
        .vault
        .load_header(open.home.dir(), names, header.fields.file)
        .unwrap();
    assert_eq!(loaded.data_key.as_bytes(), header.data_key.as_bytes());
}

#[test]
fn only_an_empty_or_a_new_directory_becomes_a_vault() {
    let temp = tempfile::tempdir().unwrap();
    let create = |path: &Path| VaultHome::create(path, layout(), keystore(), 1).map(drop);
    let inside = temp.path().join("new");
    create(&inside).unwrap();
    assert!(matches!(create(&inside), Err(CreateError::IsVault { .. })));
    match create(temp.path()) {
        Err(CreateError::NotEmpty { entry, .. }) => assert_eq!(entry, "new"),
        other => panic!("{other:?}"),
    }
    fs::remove_file(inside.join(VAULT_HEADER)).unwrap();
    assert!(matches!(create(&inside), Err(CreateError::Unfinished { .. })));
    fs::rename(inside.join(KEYSTORE), inside.join("keystore.tmp.hush")).unwrap();
    create(&inside).unwrap();
    assert!(matches!(
        create(&temp.path().join("no/such")),
        Err(CreateError::Io { .. })
    ));
    let held = Dir::open(&temp.path().join("new")).unwrap();
    held.lock(true).unwrap();
    assert!(matches!(create(&inside), Err(CreateError::InUse { .. })));
}

#[test]
fn each_thing_in_the_way_of_opening_has_its_error() {
    let (temp, open) = vault();
    drop(open);
    let path = temp.path();
    let good = files(path);

    assert!(matches!(
        open_with(&path.join("none"), 1),
        Err(OpenError::NoDirectory { .. })
    ));
    assert!(matches!(
        open_with(path, 2),
        Err(OpenError::Unlock(UnlockError::WrongSecret(_)))
    ));
    let mut bytes = good.header.clone();
    bytes[8] = 7;
    put(path, &bytes, &good.keystore);
    assert!(matches!(
        open_with(path, 1),
        Err(OpenError::Newer {
            file: VAULT_HEADER,
            version: Some(7)
        })
    ));
    let mut bytes = good.keystore.clone();
    *bytes.last_mut().unwrap() ^= 1;
    put(path, &good.header, &bytes);
    assert!(matches!(
        open_with(path, 1),
        Err(OpenError::Damaged {
            file: KEYSTORE,
            error: FormatError::NotAuthentic
        })
    ));
    let mut bytes = good.header.clone();
    *bytes.last_mut().unwrap() ^= 1;
    put(path, &bytes, &good.keystore);
    assert!(matches!(
        open_with(path, 1),
        Err(OpenError::Damaged {
            file: VAULT_HEADER,
            error: FormatError::NotAuthentic
        })
    ));
    put(path, &vec![0; VAULT_HEADER_MAX + 1], &good.keystore);
    assert!(matches!(
        open_with(path, 1),
        Err(OpenError::Damaged {
            error: FormatError::TrailingBytes,
            ..
        })
    ));
    let other = tempfile::tempdir().unwrap();
    drop(VaultHome::create(other.path(), layout(), keystore(), 1).unwrap());
    put(path, &good.header, &files(other.path()).keystore);
    assert!(matches!(
        open_with(path, 1),
        Err(OpenError::Key(KeyError::NotFound { .. }))
    ));

    fs::remove_file(path.join(KEYSTORE)).unwrap();
    assert!(matches!(open_with(path, 1), Err(OpenError::KeystoreMissing { .. })));
    fs::remove_file(path.join(VAULT_HEADER)).unwrap();
    assert!(matches!(open_with(path, 1), Err(OpenError::NotAVault { .. })));
    fs::write(path.join(KEYSTORE), &good.keystore).unwrap();
    assert!(matches!(open_with(path, 1), Err(OpenError::HeaderMissing { .. })));
    fs::create_dir(path.join(VAULT_HEADER)).unwrap();
    assert!(matches!(open_with(path, 1), Err(OpenError::Io { .. })));
}

#[test]
fn a_lock_keeps_out_who_it_excludes() {
    let (temp, open) = vault();
    let enter = |lock| VaultHome::enter(temp.path(), lock);
    assert!(matches!(enter(Lock::Shared), Err(OpenError::InUse { .. })));
    assert!(matches!(enter(Lock::Exclusive), Err(OpenError::InUse { .. })));
    enter(Lock::Unlocked).unwrap();
    let (_vault, home) = open.into_vault();
    assert!(matches!(enter(Lock::Shared), Err(OpenError::InUse { .. })));
    drop(home);
    let shared = enter(Lock::Shared).unwrap();
    drop(enter(Lock::Shared).unwrap());
    assert!(matches!(enter(Lock::Exclusive), Err(OpenError::InUse { .. })));
    drop(shared);
    enter(Lock::Exclusive).unwrap();
}

#[test]
fn an_old_header_put_back_is_refused() {
    let (temp, mut open) = vault();
    let old = files(temp.path());
    assert_eq!(open.rotate(101).unwrap(), Epoch(2));
    drop(open);
    let new = files(temp.path());
    put(temp.path(), &old.header, &new.keystore);
    assert!(matches!(
        open_with(temp.path(), 1),
        Err(OpenError::RolledBack {
            current: Epoch(1),
            lowest: Epoch(2)
        })
    ));
    // A sync tool may bring the header before the keystore; it opens again when that has come too.
    put(temp.path(), &new.header, &old.keystore);
    assert!(matches!(
        open_with(temp.path(), 1),
        Err(OpenError::Key(KeyError::Rejected { .. }))
    ));
    put(temp.path(), &new.header, &new.keystore);
    open_with(temp.path(), 1).unwrap();
}

/// Every state that a crash in a change can leave must open for who shall have access, and be completed by the next command.
#[test]
fn a_change_that_was_interrupted_anywhere_opens_and_is_completed() {
    type Change = fn(&mut OpenVault) -> Result<Epoch, ChangeError>;
    let changes: [(u8, Change); 3] = [
        (1, |open| open.rotate(200)),
        (1, |open| open.remove_slot(SlotId(2), 200)),
        (3, |open| {
            open.replace_slot(SlotId(1), &NewSecret::KeyFile(&key_file(3)), 200)
        }),
    ];
    for (byte, change) in changes {
        let (temp, mut open) = vault();
        let path = temp.path();
        open.add_slot("second", &NewSecret::KeyFile(&key_file(2)), 101).unwrap();
        let header = open.vault.new_header(open.vault.root_keys().id);
        open.vault.store_header(open.home.dir(), &header).unwrap();
        let old = files(path);
        drop(open);

        // The keystore after step 1, which the next write replaces: made by keeping step 2 from happening.
        let mut open = open_with(path, 1).unwrap();
        fs::remove_file(path.join(VAULT_HEADER)).unwrap();
        fs::create_dir(path.join(VAULT_HEADER)).unwrap();
        assert!(matches!(
            change(&mut open),
            Err(ChangeError::Io { file: VAULT_HEADER, .. })
        ));
        drop(open);
        fs::remove_dir(path.join(VAULT_HEADER)).unwrap();
        let after_1 = fs::read(path.join(KEYSTORE)).unwrap();
        assert_ne!(after_1, old.keystore);
        put(path, &old.header, &after_1);
        let mut open = open_with(path, byte).unwrap();
        assert_eq!(open.header().current, Epoch(1));
        assert!(open.finish(201).unwrap());
        assert_eq!(open.header().current, Epoch(2));
        assert!(!open.finish(202).unwrap());
        drop(open);

        // Step 3 has not happened.
        let new = files(path);
        put(path, &new.header, &after_1);
        let mut open = open_with(path, byte).unwrap();
        assert_eq!(open.keystore().epoch_floor(open.vault.id()), Some(Epoch(1)));
        assert!(open.finish(203).unwrap());
        assert_eq!(open.keystore().epoch_floor(open.vault.id()), Some(Epoch(2)));
        let root = open.vault.root_keys().id;
        open.vault
            .load_header(open.home.dir(), root, header.fields.file)
            .unwrap();
        drop(open);
        for gone in [1, 2, 3].into_iter().filter(|gone| *gone > byte) {
            assert!(gone == 2 || open_with(path, gone).is_err());
        }
    }
}

#[test]
fn who_was_shut_out_opens_nothing_new() {
    let (temp, mut open) = vault();
    open.add_slot("guest", &NewSecret::Passphrase(&passphrase("guest"), EASY), 101)
        .unwrap();
    let old = files(temp.path());
    drop(open);
    let guest = || Unlock::Passphrase(passphrase("guest"));
    let enter = || VaultHome::enter(temp.path(), Lock::Exclusive).unwrap();
    let mut open = enter().open(&guest(), &SlotChoice::Any).unwrap();
    assert_eq!(open.slot, SlotId(2));
    let owner = open.remove_slot(SlotId(1), 102).unwrap();
    assert_eq!(owner, Epoch(2));
    assert!(matches!(
        open.remove_slot(SlotId(2), 103),
        Err(ChangeError::Keystore(crate::keystore::KeystoreError::LastSlot { .. }))
    ));
    drop(open);
    assert!(open_with(temp.path(), 1).is_err());
    let new = files(temp.path());
    put(temp.path(), &new.header, &old.keystore);
    assert!(matches!(
        open_with(temp.path(), 1),
        Err(OpenError::Key(KeyError::Rejected { .. }))
    ));
}

#[test]
fn an_older_epoch_that_does_not_open_costs_its_own_files_only() {
    let (temp, mut open) = vault();
    open.rotate(101).unwrap();
    open.header.epochs[0].wraps[0].blob[50] ^= 1;
    store(
        &open.home.dir,
        VAULT_HEADER,
        &open.header.encode(&open.mac_key).unwrap(),
    )
    .unwrap();
    drop(open);
    let open = open_with(temp.path(), 1).unwrap();
    assert!(open.vault.epochs().wrapping_key(Epoch(1)).is_err());
    assert!(open.vault.epochs().wrapping_key(Epoch(2)).is_ok());
}

#[test]
fn a_context_pair_of_hushfs_in_the_file_does_not_open() {
    let (temp, mut open) = vault();
    open.header.epochs[0].wraps[0].context = vec![("hushfs:vault".into(), "x".into())];
    store(
        &open.home.dir,
        VAULT_HEADER,
        &open.header.encode(&open.mac_key).unwrap(),
    )
    .unwrap();
    drop(open);
    assert!(matches!(
        open_with(temp.path(), 1),
        Err(OpenError::Key(KeyError::Rejected { .. }))
    ));
}

#[test]
fn replaced_files_keep_their_mode() {
    use std::os::unix::fs::PermissionsExt;
    let (temp, mut open) = vault();
    let file = temp.path().join(VAULT_HEADER);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    open.rotate(101).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
}
