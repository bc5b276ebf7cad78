use std::collections::BTreeSet;

use super::*;
use crate::{
    backing::Storage,
    crypto::{
        block::Suite,
        keys::{DataKey, KeyBytes, SivKey},
        passphrase::Hardness,
    },
    format::{
        journal::{Change, EntryFile, FIRST_GROUP, GroupWriter, JournalHeader, JournalPlace},
        keystore::{KeyState, SlotId, VAULT_KEYS_MAX},
        layout::PREAMBLE_SIZE,
        preamble::Preamble,
    },
    ids::FileId,
    keystore::{KeyFile, NewKey, NewSecret, Passphrase, UnlockError},
    vault::VaultError,
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

fn call() -> Call {
    Call::new("Test", serde_json::Value::Null)
}

fn vault() -> (tempfile::TempDir, OpenVault) {
    let temp = tempfile::tempdir().unwrap();
    let open = VaultHome::create(temp.path(), layout(), keystore(), 100).unwrap();
    (temp, open)
}

fn keystore_of(open: &OpenVault) -> &LocalKeystore {
    open.keys().keystore().unwrap().keystore()
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
    assert_eq!(keystore_of(&open).epoch_floor(id), Some(Epoch(1)));
    let key = keystore_of(&open).key_of_alias(DEFAULT_ALIAS).unwrap();
    assert_eq!(keystore_of(&open).usage(&key).unwrap()[0].1.alone, 1);
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
        Err(OpenError::Newer { path: of, version: Some(7) }) if of == path.join(VAULT_HEADER)
    ));
    let mut bytes = good.keystore.clone();
    *bytes.last_mut().unwrap() ^= 1;
    put(path, &good.header, &bytes);
    assert!(matches!(
        open_with(path, 1),
        Err(OpenError::Damaged { path: of, error: FormatError::NotAuthentic }) if of == path.join(KEYSTORE)
    ));
    let mut bytes = good.header.clone();
    *bytes.last_mut().unwrap() ^= 1;
    put(path, &bytes, &good.keystore);
    assert!(matches!(
        open_with(path, 1),
        Err(OpenError::Damaged { path: of, error: FormatError::NotAuthentic }) if of == path.join(VAULT_HEADER)
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
        Err(OpenError::Key(KeyError::Rejected { .. }))
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

/// What the data file has that [`with_a_journal`] makes, and what the journal has of it.
const OLD: [u8; 20] = [1; 20];
const NEW: [u8; 20] = [2; 20];

/// Makes a vault with a journal that a crash has left, and that nobody has locked: with a change of a data file that was sealed so often.
fn with_a_journal(seal_count: u64, is_copy: bool) -> (tempfile::TempDir, Vault) {
    let (temp, open) = vault();
    let (vault, home) = open.into_vault();
    let (dir, id) = (home.dir(), FileId([5; 16]));
    let preamble = Preamble {
        seal_count,
        ..Preamble::new(id, [0; 32])
    };
    let seal_key = DataKey::new(KeyBytes::copy_of(&[5; 32])).seal_key(id, 1);
    let mut bytes = preamble.encode(&seal_key).to_vec();
    bytes.extend(OLD);
    let data_file = dir.write_small(&data_name(), &bytes).unwrap();
    dir.write_small(&name::header_file(id), b"").unwrap();

    let file = dir.create_file(&name::journal_file(7), 0o600).unwrap();
    let mut place: JournalPlace = file.place().unwrap().into();
    place.inode += u64::from(is_copy);
    let header = JournalHeader {
        vault: vault.id(),
        place,
        generation: 1,
    };
    let mut group = GroupWriter::new(1, 0);
    let entry = EntryFile {
        file: id,
        inode: data_file.inode().unwrap(),
        seal_count: 1,
        mtime: (0, 0),
    };
    group.push(&entry, Change::Write(PREAMBLE_SIZE, &NEW));
    file.write_at(&header.encode(&vault.journal_key()), 0).unwrap();
    file.write_at(&group.finish(&vault.journal_key()), FIRST_GROUP).unwrap();
    (temp, vault)
}

fn data_name() -> String {
    name::seal(&SivKey::new(KeyBytes::copy_of(&[3; 32])), b"file").entry
}

fn data(path: &Path) -> Vec<u8> {
    fs::read(path.join(data_name())).unwrap()[PREAMBLE_SIZE as usize..].to_vec()
}

#[test]
fn those_who_read_wait_for_each_other_where_there_is_a_journal() {
    let (temp, vault) = with_a_journal(1, false);
    let enter = || VaultHome::enter(temp.path(), Lock::Shared).unwrap();
    let homes = [enter(), enter(), enter()];
    let vault = &vault;
    let recovered = thread::scope(|scope| {
        let recover = |home: &VaultHome| home.recover(vault, Lock::Shared, false).unwrap().journals;
        let threads = homes.each_ref().map(|home| scope.spawn(move || recover(home)));
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(recovered.iter().sum::<usize>(), 1);
    assert_eq!(data(temp.path()), NEW);
    for home in &homes {
        let locked = VaultHome::enter(temp.path(), Lock::Exclusive);
        assert!(matches!(locked, Err(OpenError::InUse { .. })), "{home:?} has no lock");
    }
}

#[test]
fn a_journal_is_not_passed_over_while_someone_else_reads() {
    for is_copy in [false, true] {
        let (temp, vault) = with_a_journal(1, is_copy);
        let enter = || VaultHome::enter(temp.path(), Lock::Shared).unwrap();
        let (home, other) = (enter(), enter());
        let at_once = |home: &VaultHome| home.recover_within(Duration::ZERO, &vault, Lock::Shared, is_copy);
        assert!(matches!(at_once(&home), Err(OpenError::JournalInUse { .. })));
        assert_eq!(data(temp.path()), OLD);
        drop(other);
        assert_eq!(at_once(&home).unwrap().journals, 1);
        assert_eq!(data(temp.path()), NEW);
    }
}

#[test]
fn a_journal_that_stays_without_anything_to_be_done_keeps_nobody_waiting() {
    for (seal_count, is_copy) in [(2, false), (1, true)] {
        let (temp, vault) = with_a_journal(seal_count, is_copy);
        let enter = || VaultHome::enter(temp.path(), Lock::Shared).unwrap();
        let (home, _other) = (enter(), enter());
        home.recover_within(Duration::ZERO, &vault, Lock::Shared, false)
            .unwrap();
        assert_eq!(data(temp.path()), OLD);
        let locked = VaultHome::enter(temp.path(), Lock::Exclusive);
        assert!(matches!(locked, Err(OpenError::InUse { .. })));
    }
}

#[test]
fn who_waited_for_a_journal_takes_no_vault_that_was_changed_meanwhile() {
    let (temp, vault) = with_a_journal(1, false);
    let home = VaultHome::enter(temp.path(), Lock::Shared).unwrap();
    let path = temp.path().join(VAULT_HEADER);
    let mut header = fs::read(&path).unwrap();
    let last = header.len() - 1;
    header[last] ^= 1;
    fs::write(&path, header).unwrap();
    let recovered = home.recover(&vault, Lock::Shared, false);
    assert!(matches!(recovered, Err(OpenError::InUse { .. })));
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
            Err(ChangeError::Io { path: of, .. }) if of == path.join(VAULT_HEADER)
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
        assert_eq!(keystore_of(&open).epoch_floor(open.vault.id()), Some(Epoch(1)));
        assert!(open.finish(203).unwrap());
        assert_eq!(keystore_of(&open).epoch_floor(open.vault.id()), Some(Epoch(2)));
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
    assert_eq!(open.keys().keystore().unwrap().slot, SlotId(2));
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
    assert!(open.vault.epochs().check(Epoch(1)).is_err());
    assert!(open.vault.epochs().check(Epoch(2)).is_ok());
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

/// A keystore of its own, and a vault under a key of it.
fn shared() -> (tempfile::TempDir, KeyHandle) {
    let temp = tempfile::tempdir().unwrap();
    let mut keystore = KeystoreHome::create(&temp.path().join("keys"), keystore(), 100).unwrap();
    let key = keystore
        .change(100, call(), |keystore| keystore.create_key(&NewKey::default(), 100))
        .unwrap();
    create_under(temp.path(), "vault", key).unwrap();
    (temp, key)
}

fn keys(temp: &Path) -> OpenKeystore {
    let home = KeystoreHome::enter(&temp.join("keys")).unwrap();
    home.open(&Unlock::KeyFile(key_file(1)), &SlotChoice::Any).unwrap()
}

fn create_under(temp: &Path, vault: &str, key: KeyHandle) -> Result<OpenVault, CreateError> {
    VaultHome::create_under(&temp.join(vault), layout(), keys(temp).into(), (key, Vec::new()), 100)
}

fn open_shared(temp: &Path) -> Result<OpenVault, OpenError> {
    open_shared_at(temp, "vault")
}

fn open_shared_at(temp: &Path, vault: &str) -> Result<OpenVault, OpenError> {
    let home = KeystoreHome::enter(&temp.join("keys")).unwrap();
    let home = VaultHome::enter_with(&temp.join(vault), Lock::Exclusive, Some(home))?;
    home.open(&Unlock::KeyFile(key_file(1)), &SlotChoice::Any)
}

#[test]
fn a_keystore_of_its_own_knows_its_vaults() {
    let (temp, key) = shared();
    let open = open_shared(temp.path()).unwrap();
    let vault = open.vault.id();
    assert_eq!(keystore_of(&open).epoch_floor(vault), Some(Epoch(1)));
    let usage = keystore_of(&open).usage(&key).unwrap();
    let (record, need) = usage[0];
    let path = fs::canonicalize(temp.path().join("vault")).unwrap();
    assert_eq!((record.vault, record.path.as_str()), (vault, path.to_str().unwrap()));
    assert_eq!((need.epochs, need.alone), (1, 1));
    assert!(matches!(
        KeystoreHome::create(&temp.path().join("keys"), keystore(), 1).map(drop),
        Err(CreateError::IsKeystore { .. })
    ));
    assert!(matches!(
        KeystoreHome::enter(&temp.path().join("vault")).map(drop),
        Err(OpenError::NoKeystore { .. })
    ));
    assert!(matches!(
        VaultHome::enter(&temp.path().join("keys"), Lock::Shared).map(drop),
        Err(OpenError::HeaderMissing { .. })
    ));
}

#[test]
fn a_vault_whose_files_are_to_have_no_bucket_key_says_so_in_its_first_header() {
    let temp = tempfile::tempdir().unwrap();
    let form = Form {
        layout: layout(),
        bucket_key: false,
    };
    drop(VaultHome::create(temp.path(), form, keystore(), 100).unwrap());
    let open = open_with(temp.path(), 1).unwrap();
    assert_eq!(open.header().current, Epoch(1));
    let off = open.header().bucket_keys_off().unwrap();
    assert!(off.vault && off.directories.is_empty());
}

#[test]
fn the_keystore_of_a_vault_is_not_taken_for_one_of_its_own() {
    let (temp, open) = vault();
    drop(open);
    assert!(matches!(
        KeystoreHome::enter(temp.path()).map(drop),
        Err(OpenError::KeystoreOfVault { path }) if path == temp.path()
    ));
    fs::remove_file(temp.path().join(VAULT_HEADER)).unwrap();
    assert!(KeystoreHome::enter(temp.path()).is_ok());
}

/// A crash while a vault is made leaves its header without a record.
#[test]
fn a_vault_that_its_keystore_does_not_know_yet_opens_and_is_recorded() {
    let (temp, key) = shared();
    let before = fs::read(temp.path().join("keys").join(KEYSTORE)).unwrap();
    drop(create_under(temp.path(), "second", key).unwrap());
    fs::write(temp.path().join("keys").join(KEYSTORE), before).unwrap();
    let mut open = open_shared_at(temp.path(), "second").unwrap();
    let vault = open.vault.id();
    assert_eq!(keystore_of(&open).epoch_floor(vault), None);
    assert!(open.finish(200).unwrap());
    assert_eq!(keys(temp.path()).keystore().epoch_floor(vault), Some(Epoch(1)));
    assert!(!open.finish(201).unwrap());
}

/// What someone writes who may have data keys made under a key, and knows nothing of the vault: the MAC is right.
fn forged(keystore: &LocalKeystore, key: KeyHandle, vault: VaultId, epoch: Epoch) -> Vec<u8> {
    let names_root = NamesRoot::new(random::locked_key());
    let keys = [(key, Vec::new())];
    let (epoch_key, record) = make_epoch(keystore, &keys, (vault, epoch), Some(&names_root), 100).unwrap();
    let header = VaultHeader::new(vault, 100, layout(), record);
    header.encode(&epoch_key.vault_header_mac_key(vault)).unwrap()
}

#[test]
fn who_may_only_have_data_keys_made_puts_no_vault_of_their_own_in_the_place_of_another() {
    let (temp, _) = shared();
    let path = temp.path().join("vault").join(VAULT_HEADER);
    let mut keystore = keys(temp.path());
    let theirs = keystore
        .change(101, call(), |keystore| keystore.create_key(&NewKey::default(), 101))
        .unwrap();
    let vault = open_shared(temp.path()).unwrap().vault.id();
    let header = fs::read(&path).unwrap();

    fs::write(&path, forged(keystore.keystore(), theirs, vault, Epoch(2))).unwrap();
    match open_shared(temp.path()) {
        Err(OpenError::OtherVault { vault: refused }) => assert_eq!(refused, vault),
        other => panic!("{other:?}"),
    }
    assert_eq!(keys(temp.path()).keystore().epoch_floor(vault), Some(Epoch(1)));

    let stranger = VaultId([9; 16]);
    fs::write(&path, forged(keystore.keystore(), theirs, stranger, Epoch(1))).unwrap();
    match open_shared(temp.path()) {
        Err(OpenError::InPlaceOf {
            vault: refused, known, ..
        }) => assert_eq!((refused, known), (stranger, vault)),
        other => panic!("{other:?}"),
    }
    assert_eq!(keys(temp.path()).keystore().epoch_floor(stranger), None);

    fs::write(&path, header).unwrap();
    let mut open = open_shared(temp.path()).unwrap();
    assert!(!open.finish(102).unwrap());
    assert_eq!(open.rotate(103).unwrap(), Epoch(2));
    drop(open);
    open_shared(temp.path()).unwrap();
}

#[test]
fn a_vault_that_is_not_that_of_the_keystore_in_it_does_not_open() {
    let (temp, open) = vault();
    let key = keystore_of(&open).key_of_alias(DEFAULT_ALIAS).unwrap();
    let header = forged(keystore_of(&open), key, VaultId([9; 16]), Epoch(1));
    let same_id = forged(keystore_of(&open), key, open.vault.id(), Epoch(1));
    drop(open);
    fs::write(temp.path().join(VAULT_HEADER), header).unwrap();
    assert!(matches!(
        open_with(temp.path(), 1),
        Err(OpenError::Key(KeyError::Rejected { .. }))
    ));
    fs::write(temp.path().join(VAULT_HEADER), same_id).unwrap();
    assert!(matches!(open_with(temp.path(), 1), Err(OpenError::OtherVault { .. })));
}

#[test]
fn a_backup_of_a_vault_gets_an_epoch_above_all_that_the_keystore_has_seen() {
    let (temp, _) = shared();
    let header = temp.path().join("vault").join(VAULT_HEADER);
    let enter = |lock| {
        let keys = KeystoreHome::enter(&temp.path().join("keys")).unwrap();
        VaultHome::enter_with(&temp.path().join("vault"), lock, Some(keys)).unwrap()
    };
    let open = |home: VaultHome| home.open(&Unlock::KeyFile(key_file(1)), &SlotChoice::Any);
    let old = fs::read(&header).unwrap();
    let mut newer = open_shared(temp.path()).unwrap();
    newer.rotate(101).unwrap();
    assert_eq!(newer.rotate(102).unwrap(), Epoch(3));
    drop(newer);
    let newest = fs::read(&header).unwrap();
    fs::write(&header, &old).unwrap();
    // Who only reads may.
    assert_eq!(open(enter(Lock::Shared)).unwrap().header().current, Epoch(1));
    assert!(matches!(
        open(enter(Lock::Exclusive)),
        Err(OpenError::RolledBack { .. })
    ));

    let mut home = enter(Lock::Exclusive);
    home.accept_older_header();
    let mut accepted = open(home).unwrap();
    let epoch = accepted.rotate(103).unwrap();
    assert!(epoch > Epoch(3));
    let vault = accepted.header().vault;
    assert_eq!(keystore_of(&accepted).epoch_floor(vault), Some(epoch));
    drop(accepted);
    assert_eq!(open_shared(temp.path()).unwrap().header().current, epoch);
    // There is one newest header again.
    for other in [old, newest] {
        fs::write(&header, other).unwrap();
        assert!(matches!(open_shared(temp.path()), Err(OpenError::RolledBack { .. })));
    }
}

/// Rotating, and removing a slot, take one write of a shared keystore; each vault takes the other two steps on its own.
#[test]
fn a_vault_takes_up_what_was_changed_in_its_keystore() {
    let (temp, key) = shared();
    let slot = keys(temp.path())
        .change(101, call(), |k| {
            k.add_slot("two", &NewSecret::KeyFile(&key_file(2)), 101)
        })
        .unwrap();
    keys(temp.path())
        .change(102, call(), |keystore| keystore.rotate_on_demand(&key, 102))
        .unwrap();
    let header = fs::read(temp.path().join("vault").join(VAULT_HEADER)).unwrap();
    let mut open = open_shared(temp.path()).unwrap();
    assert_eq!(open.header().current, Epoch(1));
    assert!(open.finish(103).unwrap());
    assert_eq!(open.header().current, Epoch(2));
    drop(open);
    let new = fs::read(temp.path().join("vault").join(VAULT_HEADER)).unwrap();
    fs::write(temp.path().join("vault").join(VAULT_HEADER), header).unwrap();
    assert!(matches!(open_shared(temp.path()), Err(OpenError::RolledBack { .. })));
    fs::write(temp.path().join("vault").join(VAULT_HEADER), new).unwrap();

    let _ = keys(temp.path())
        .change(104, call(), |k| k.remove_slot(slot, 104))
        .unwrap();
    let mut open = open_shared(temp.path()).unwrap();
    assert!(open.finish(105).unwrap());
    assert_eq!(open.header().current, Epoch(3));
    assert!(!open.finish(106).unwrap());
}

#[test]
fn a_keystore_that_cannot_be_written_opens_its_vaults_unless_it_must_be() {
    let (temp, key) = shared();
    let file = temp.path().join("keys").join(KEYSTORE);
    let mut open = open_shared(temp.path()).unwrap();
    keys(temp.path())
        .change(101, call(), |keystore| keystore.rotate_on_demand(&key, 101))
        .unwrap();
    let stored = fs::read(&file).unwrap();
    // A directory in its place fails whoever reads or replaces it, root too.
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(!open.finish(900_000).unwrap());
    drop(open);
    fs::remove_dir(&file).unwrap();
    fs::write(&file, &stored).unwrap();
    let mut open = open_shared(temp.path()).unwrap();
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(open.finish(900_000).is_err(), "the vault is behind its keystore");
}

#[test]
fn a_keystore_that_changes_while_its_vault_is_entered_is_the_one_that_opens_it() {
    let (temp, key) = shared();
    let early = KeystoreHome::enter(&temp.path().join("keys")).unwrap();
    keys(temp.path())
        .change(101, call(), |keystore| keystore.rotate_on_demand(&key, 101))
        .unwrap();
    assert!(open_shared(temp.path()).unwrap().finish(102).unwrap());
    let home = VaultHome::enter_with(&temp.path().join("vault"), Lock::Shared, Some(early)).unwrap();
    let open = home.open(&Unlock::KeyFile(key_file(1)), &SlotChoice::Any).unwrap();
    assert_eq!(open.header().current, Epoch(2));
}

#[test]
fn two_who_change_a_keystore_at_a_time_keep_each_other_s_change() {
    let (temp, key) = shared();
    let mut open = open_shared(temp.path()).unwrap();
    let mut other = keys(temp.path());
    let made = other
        .change(101, call(), |keystore| keystore.create_key(&NewKey::default(), 101))
        .unwrap();
    open.rotate(102).unwrap();
    other.change(103, call(), |keystore| keystore.disable(&made)).unwrap();
    let after = keys(temp.path());
    let after = after.keystore();
    assert_eq!(after.describe(&made).unwrap().state, KeyState::Disabled);
    assert_eq!(after.epoch_floor(open.vault.id()), Some(Epoch(2)));
    assert_eq!(after.describe(&key).unwrap().state, KeyState::Enabled);

    // One who was shut out meanwhile does not write what they had open.
    let slot = other
        .change(104, call(), |k| {
            k.add_slot("two", &NewSecret::KeyFile(&key_file(2)), 104)
        })
        .unwrap();
    let _ = other.change(105, call(), |k| k.remove_slot(slot, 105)).unwrap();
    let header = fs::read(temp.path().join("vault").join(VAULT_HEADER)).unwrap();
    assert!(matches!(open.rotate(106), Err(ChangeError::KeystoreChanged { .. })));
    assert_eq!(fs::read(temp.path().join("vault").join(VAULT_HEADER)).unwrap(), header);
    fs::remove_file(temp.path().join("keys").join(KEYSTORE)).unwrap();
    assert!(matches!(
        other.change(107, call(), |keystore| keystore.enable(&made)),
        Err(ChangeError::KeystoreChanged { .. })
    ));
}

#[test]
fn a_change_that_fails_stores_nothing_and_a_rehearsal_never_does() {
    let (temp, key) = shared();
    let file = temp.path().join("keys").join(KEYSTORE);
    let before = fs::read(&file).unwrap();
    let failed = keys(temp.path()).change(101, call(), |keystore| keystore.cancel_deletion(&key));
    assert!(matches!(failed, Err(ChangeError::Keystore(_))));
    keys(temp.path())
        .rehearse(101, |keystore| keystore.disable(&key))
        .unwrap();
    assert_eq!(fs::read(&file).unwrap(), before);
    assert!(!keys(temp.path()).update(101, |_| Ok::<_, KeyError>(false)).unwrap());
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn the_key_of_a_vault_is_changed_and_a_crash_on_the_way_leaves_one_that_opens() {
    let (temp, old) = shared();
    let new = keys(temp.path())
        .change(101, call(), |keystore| keystore.create_key(&NewKey::default(), 101))
        .unwrap();
    let keystore_before = fs::read(temp.path().join("keys").join(KEYSTORE)).unwrap();
    let mut open = open_shared(temp.path()).unwrap();
    let pairs = vec![("team".to_owned(), "blue".to_owned())];
    assert_eq!(open.set_key((new, pairs.clone()), None, 102).unwrap(), Epoch(2));
    assert_eq!(open.rotate(103).unwrap(), Epoch(3));
    let wraps = &open.header().epoch(Epoch(3)).unwrap().wraps;
    assert_eq!(
        (wraps[0].key, &wraps[0].context),
        (new.0, &pairs),
        "the next epoch is as this one"
    );
    drop(open);
    // The header is there, the record of it is not.
    fs::write(temp.path().join("keys").join(KEYSTORE), keystore_before).unwrap();
    let mut open = open_shared(temp.path()).unwrap();
    assert!(open.finish(104).unwrap());
    let needs = |key: &KeyHandle| keystore_of(&open).usage(key).unwrap()[0].1;
    assert_eq!((needs(&old).epochs, needs(&new).epochs), (1, 2));
    let used = BTreeSet::from([Epoch(3)]);
    assert_eq!(open.retire_epochs_except(&used, 105).unwrap(), [Epoch(1), Epoch(2)]);
    assert!(keystore_of(&open).usage(&old).unwrap().is_empty());
}

#[test]
fn what_another_machine_has_retired_wraps_nothing_new() {
    for retires in [false, true] {
        let (temp, open) = vault();
        let (mut vault, home) = open.into_vault();
        let dir = home.open_dir().unwrap();
        vault.watch_header(home.open_dir().unwrap());
        drop(home);
        let mut other = open_with(temp.path(), 1).unwrap();
        assert_eq!(other.rotate(101).unwrap(), Epoch(2));
        if retires {
            other.retire_epochs_except(&BTreeSet::from([Epoch(2)]), 102).unwrap();
        }
        let header = vault.new_header(vault.root_keys().id);
        let stored = vault.store_header(&dir, &header);
        let is_refused = matches!(stored, Err(VaultError::EpochRetired(Epoch(1))));
        assert_eq!((is_refused, stored.is_err()), (retires, retires));
        let file = name::header_file(header.fields.file);
        assert_eq!(dir.read_small(&file, 1 << 10).unwrap().is_none(), retires);
    }
}

/// Opens a vault as a mount with `--shared` does; whoever else opens it is another machine.
fn mounted(open: OpenVault) -> (Vault, Dir, Keeper<KeptKeys>) {
    let (mut vault, home, keeper) = open.into_kept_vault(Limits::default());
    vault.watch_header(home.open_dir().unwrap());
    (vault, home.open_dir().unwrap(), keeper)
}

/// Stores a header of the newest epoch that a vault knows; returns its file.
fn store_new(vault: &Vault, dir: &Dir) -> FileId {
    let header = vault.new_header(vault.root_keys().id);
    vault.store_header(dir, &header).unwrap();
    header.fields.file
}

#[test]
fn what_another_machine_has_made_is_taken_over_and_asked_for_as_the_rest() {
    let (temp, key) = shared();
    let (vault, dir, mut keeper) = mounted(open_shared(temp.path()).unwrap());
    let mut other = open_shared(temp.path()).unwrap();
    assert_eq!(other.rotate(101).unwrap(), Epoch(2));
    let file = store_new(&other.vault, &dir);
    let root = vault.root_keys().id;
    assert_eq!(vault.load_header(&dir, root, file).unwrap().fields.epoch, Epoch(2));
    assert_eq!(vault.key_of_new_files().epoch, Epoch(2));
    // What is retired does not matter any more.
    other.retire_epochs_except(&BTreeSet::from([Epoch(2)]), 102).unwrap();
    assert_eq!(other.rotate(103).unwrap(), Epoch(3));
    let newest = store_new(&other.vault, &dir);
    assert_eq!(vault.load_header(&dir, root, newest).unwrap().fields.epoch, Epoch(3));
    assert!(matches!(
        vault.check_not_retired(Epoch(1)),
        Err(VaultError::EpochRetired(Epoch(1)))
    ));
    store_new(&vault, &dir);
    keeper.learn(vault.epochs());
    assert_eq!(keeper.round(true), []);
    keys(temp.path())
        .change(104, call(), |keystore| keystore.disable(&key))
        .unwrap();
    let refused: Vec<_> = keeper.round(true).iter().map(|change| change.epoch).collect();
    assert_eq!(refused, [1, 2, 3].map(Epoch));
    let error = vault.load_header(&dir, root, newest).unwrap_err();
    assert!(matches!(
        error,
        VaultError::EpochKey(Epoch(3), KeyError::Disabled { .. })
    ));
}

#[test]
fn of_another_machine_is_taken_over_only_what_is_authentic_and_newer() {
    let (temp, open) = vault();
    let before = files(temp.path());
    let (vault, dir, _keeper) = mounted(open);
    let mut other = open_with(temp.path(), 1).unwrap();
    assert_eq!(other.rotate(101).unwrap(), Epoch(2));
    let file = store_new(&other.vault, &dir);
    drop(other);
    let (root, now) = (vault.root_keys().id, files(temp.path()));
    let is_missing = || {
        matches!(
            vault.load_header(&dir, root, file),
            Err(VaultError::EpochMissing(Epoch(2)))
        )
    };
    let write = |name, bytes: &[u8]| {
        fs::remove_file(temp.path().join(name)).unwrap();
        fs::write(temp.path().join(name), bytes).unwrap();
    };
    // The header has arrived, and the keystore has not.
    write(KEYSTORE, &before.keystore);
    assert!(is_missing());
    let mut changed = now.header.clone();
    *changed.last_mut().unwrap() ^= 1;
    write(VAULT_HEADER, &changed);
    write(KEYSTORE, &now.keystore);
    assert!(is_missing());
    assert_eq!(vault.key_of_new_files().epoch, Epoch(1));
    write(VAULT_HEADER, &now.header);
    assert!(!is_missing());
    assert_eq!(vault.key_of_new_files().epoch, Epoch(2));
    // An old one is put back.
    write(VAULT_HEADER, &before.header);
    vault.load_header(&dir, root, FileId([9; 16])).unwrap_err();
    assert!(!is_missing());
    assert_eq!(vault.key_of_new_files().epoch, Epoch(2));
}

#[test]
fn a_vault_header_that_is_half_there_retires_nothing() {
    let (temp, open) = vault();
    let bytes = files(temp.path()).header;
    let (mut vault, home) = open.into_vault();
    for part in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        fs::write(temp.path().join(VAULT_HEADER), &bytes[..part]).unwrap();
        vault.watch_header(home.open_dir().unwrap());
        vault.check_not_retired(Epoch(1)).unwrap();
    }
    fs::remove_file(temp.path().join(VAULT_HEADER)).unwrap();
    vault.watch_header(home.open_dir().unwrap());
    vault.check_not_retired(Epoch(1)).unwrap();
}

#[test]
fn a_vault_is_under_at_most_so_many_keys() {
    let (temp, _) = shared();
    let mut open = open_shared(temp.path()).unwrap();
    let mut keystore = keys(temp.path());
    let mut make = || keystore.change(101, call(), |keystore| keystore.create_key(&NewKey::default(), 101));
    for _ in 1..VAULT_KEYS_MAX {
        let key = make().unwrap();
        open.set_key((key, Vec::new()), None, 101).unwrap();
    }
    let key = make().unwrap();
    assert!(matches!(
        open.set_key((key, Vec::new()), None, 102),
        Err(ChangeError::TooManyKeys)
    ));
}

#[test]
fn a_key_that_cannot_be_used_says_why_for_the_files_of_its_epochs_only() {
    let (temp, old) = shared();
    let mut keystore = keys(temp.path());
    let new = keystore
        .change(101, call(), |keystore| keystore.create_key(&NewKey::default(), 101))
        .unwrap();
    let mut open = open_shared(temp.path()).unwrap();
    open.set_key((new, Vec::new()), None, 102).unwrap();
    drop(open);
    keystore.change(103, call(), |keystore| keystore.disable(&old)).unwrap();
    let open = open_shared(temp.path()).unwrap();
    assert!(open.vault.epochs().check(Epoch(2)).is_ok());
    assert!(matches!(
        open.vault.epochs().check(Epoch(1)),
        Err(VaultError::EpochKey(Epoch(1), KeyError::Disabled { .. }))
    ));
    assert!(matches!(
        open.vault.epochs().check(Epoch(9)),
        Err(VaultError::EpochMissing(Epoch(9)))
    ));
    drop(open);
    keystore.change(104, call(), |keystore| keystore.disable(&new)).unwrap();
    assert!(matches!(
        open_shared(temp.path()),
        Err(OpenError::Key(KeyError::Disabled { .. }))
    ));
    let home = KeystoreHome::enter(&temp.path().join("keys")).unwrap();
    let mut home = VaultHome::enter_with(&temp.path().join("vault"), Lock::Exclusive, Some(home)).unwrap();
    let mut keystore = home
        .open_keystore(&Unlock::KeyFile(key_file(1)), &SlotChoice::Any)
        .unwrap();
    keystore.change(105, call(), |keystore| keystore.enable(&new)).unwrap();
    assert!(home.open_with(keystore.into()).is_ok());
}

#[test]
fn a_keystore_in_its_vault_is_not_stored_for_news_alone() {
    let (temp, open) = vault();
    drop(open);
    let before = files(temp.path()).keystore;
    let mut open = open_with(temp.path(), 1).unwrap();
    assert!(!open.finish(900_000).unwrap());
    assert_eq!(files(temp.path()).keystore, before);
    open.record_files(12, 900_001).unwrap();
    let open = open_with_again(open);
    let key = keystore_of(&open).key_of_alias(DEFAULT_ALIAS).unwrap();
    let usage = keystore_of(&open).usage(&key).unwrap();
    assert_eq!(usage[0].0.files.map(|files| files.count), Some(12));
    assert_eq!(usage[0].0.path, "", "it lies in the vault");
    assert!(keystore_of(&open).describe(&key).unwrap().last_use.is_some());
}

fn open_with_again(open: OpenVault) -> OpenVault {
    let path = open.home.path().to_owned();
    drop(open);
    open_with(&path, 1).unwrap()
}

#[test]
fn a_key_that_is_due_rotates_when_asked_and_the_vault_follows() {
    let (temp, mut open) = vault();
    let year = 366 * 24 * 60 * 60;
    assert_eq!(open.rotate_due(200).unwrap(), []);
    assert_eq!(open.rotate_due(year).unwrap().len(), 1);
    assert_eq!(open.rotate_due(year).unwrap(), []);
    drop(open);
    let mut open = open_with(temp.path(), 1).unwrap();
    assert!(open.finish(year).unwrap());
    assert_eq!(open.header().current, Epoch(2));
}

#[test]
fn a_vault_whose_key_was_destroyed_says_so() {
    let (temp, mut open) = vault();
    let day = 24 * 60 * 60;
    let keystore = open.keys_mut().keystore_mut().unwrap();
    let key = keystore
        .change(100, call(), |keystore| keystore.create_key(&NewKey::default(), 100))
        .unwrap();
    open.set_key((key, Vec::new()), None, 100).unwrap();
    let keystore = open.keys_mut().keystore_mut().unwrap();
    keystore
        .change(100, call(), |keystore| keystore.schedule_deletion(&key, 7, 100))
        .unwrap();
    keystore
        .change(2 * day, call(), |keystore| keystore.reap(2 * day).map(drop))
        .unwrap();
    keystore
        .change(8 * day, call(), |keystore| keystore.reap(8 * day).map(drop))
        .unwrap();
    drop(open);
    assert!(matches!(
        open_with(temp.path(), 1),
        Err(OpenError::Key(KeyError::NotFound { .. }))
    ));
}

#[test]
fn what_others_do_to_a_keystore_is_seen_by_a_vault_that_is_open() {
    let temp = tempfile::tempdir().unwrap();
    let (keys, path) = (temp.path().join("keys"), temp.path().join("vault"));
    KeystoreHome::create(&keys, keystore(), 1).unwrap();
    let open_keystore = || {
        KeystoreHome::enter(&keys)
            .unwrap()
            .open(&Unlock::KeyFile(key_file(1)), &SlotChoice::Any)
            .unwrap()
    };
    let mut other = open_keystore();
    let key = other
        .change(2, call(), |keystore| keystore.create_key(&NewKey::default(), 2))
        .unwrap();
    let open = VaultHome::create_under(&path, layout(), open_keystore().into(), (key, Vec::new()), 3).unwrap();
    let (vault, _home, mut keeper) = open.into_kept_vault(Limits::default());
    let mut said = || {
        keeper.round(true);
        match vault.epochs().check(Epoch(1)) {
            Ok(_) => None,
            Err(VaultError::EpochKey(_, error)) => Some(error),
            Err(error) => panic!("{error}"),
        }
    };
    let file = keys.join(KEYSTORE);
    assert_eq!(said(), None);

    other.change(4, call(), |keystore| keystore.disable(&key)).unwrap();
    let key_id = key.0;
    let disabled = Some(KeyError::Disabled { key: key_id });
    assert_eq!(said(), disabled);
    let bytes = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    assert_eq!(said(), disabled, "that nobody can be asked does not enable it");
    fs::write(&file, &bytes).unwrap();
    other.change(5, call(), |keystore| keystore.enable(&key)).unwrap();
    assert_eq!(said(), None);

    // What is older than what is known says nothing.
    let newest = fs::read(&file).unwrap();
    fs::write(&file, &bytes).unwrap();
    assert_eq!(said(), None);
    fs::write(&file, b"something else").unwrap();
    assert_eq!(said(), None, "a key that cannot be asked for serves on for a while");
    fs::write(&file, &newest).unwrap();
    let mut other = open_keystore();
    other
        .change(6, call(), |keystore| keystore.schedule_deletion(&key, 7, 6))
        .unwrap();
    assert_eq!(said(), Some(KeyError::PendingDeletion { key: key_id }));
}
