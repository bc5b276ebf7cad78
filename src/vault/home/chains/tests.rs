use std::{
    fs,
    path::{Path, PathBuf},
};

use super::*;
use crate::{
    backing::Dir,
    crypto::{block::Suite, keys::KeyBytes},
    format::{header::FileHeader, layout::Layout, vault::EPOCHS_MAX},
    keystore::{KeyError, KeyFile, LocalKeystore, NewKey, NewSecret, SlotChoice, Unlock},
    vault::{
        VaultError,
        home::{Call, Lock, OpenError, VaultHome},
        rewrap::{self, Scope, Target},
    },
};

fn key_file(byte: u8) -> KeyFile {
    KeyFile::new(vec![byte; 32].into()).unwrap()
}

fn customer_key(byte: u8) -> CustomerKey {
    CustomerKey::new(KeyBytes::copy_of(&[byte; 32]))
}

/// A vault, and a key of its keystore that is not the vault's.
struct Bench {
    temp: tempfile::TempDir,
    other: KeyHandle,
}

impl Bench {
    fn new() -> (Self, OpenVault) {
        let temp = tempfile::tempdir().unwrap();
        let keystore = LocalKeystore::create("main", &NewSecret::KeyFile(&key_file(1)), 1).unwrap();
        let layout = Layout::new(Suite::Aes256GcmSiv, 4096).unwrap();
        let mut open = VaultHome::create(&temp.path().join("vault"), layout, keystore, 1).unwrap();
        let made = open
            .keys_mut()
            .keystore_mut()
            .unwrap()
            .change(1, call(), |keystore| keystore.create_key(&NewKey::default(), 1));
        let other = made.unwrap();
        (Bench { temp, other }, open)
    }

    fn path(&self) -> PathBuf {
        self.temp.path().join("vault")
    }

    fn enter(&self) -> VaultHome {
        VaultHome::enter(&self.path(), Lock::Exclusive).unwrap()
    }

    fn open(&self) -> OpenVault {
        unlock(self.enter()).unwrap()
    }
}

fn unlock(home: VaultHome) -> Result<OpenVault, OpenError> {
    home.open(&Unlock::KeyFile(key_file(1)), &SlotChoice::Any)
}

fn call() -> Call {
    Call::new("Test", serde_json::Value::Null)
}

const HERE: DirectoryId = DirectoryId([7; 16]);
const BELOW: DirectoryId = DirectoryId([8; 16]);

fn store(open: &OpenVault, header: &FileHeader) {
    open.vault.store_header(open.home.dir(), header).unwrap();
}

fn loaded(open: &OpenVault, header: &FileHeader) -> Result<Epoch, VaultError> {
    let fields = &header.fields;
    let loaded = open.vault.load_header(open.home.dir(), fields.directory, fields.file)?;
    assert_eq!(loaded.data_key.as_bytes(), header.data_key.as_bytes());
    Ok(loaded.fields.epoch)
}

/// Makes a file where directories are on the way, as a mount does.
fn new_file(open: &OpenVault, way: &[DirectoryId]) -> FileHeader {
    let header = open
        .vault
        .new_header_of(open.vault.key_of_new_files_in(way).epoch, *way.last().unwrap());
    store(open, &header);
    header
}

fn everything(open: &OpenVault, target: Target) -> rewrap::Outcome {
    let scopes = [Scope::everything(open.home.dir()).unwrap()];
    rewrap::rewrap(&open.vault, &scopes, target, &mut |_| Ok(())).unwrap()
}

fn version(path: &Path) -> u8 {
    fs::read(path.join("vault.hush")).unwrap()[8]
}

#[test]
fn a_directory_gives_its_key_to_new_files_and_to_directories_below() {
    let (bench, mut open) = Bench::new();
    let root = open.vault.root_keys().id;
    assert_eq!(version(&bench.path()), 1);
    assert!(!open.vault.choice().is_by_directory());
    open.set_directory_key(HERE, (bench.other, Vec::new()), None, 2)
        .unwrap();
    assert_eq!(version(&bench.path()), 2);
    drop(open);

    let mut open = bench.open();
    // Epoch 2 is the key's, 3 the vault's.
    assert_eq!(open.header().current, Epoch(3));
    assert_eq!(open.vault.key_of_new_files_in(&[root]).epoch, Epoch(3));
    assert_eq!(open.vault.key_of_new_files_in(&[root, HERE]).epoch, Epoch(2));
    assert_eq!(open.vault.key_of_new_files_in(&[root, HERE, BELOW]).epoch, Epoch(2));
    let file = new_file(&open, &[root, HERE, BELOW]);
    assert_eq!(loaded(&open, &file).unwrap(), Epoch(2));
    let default = open
        .keys()
        .keystore()
        .unwrap()
        .keystore()
        .key_of_alias("alias/hushfs/default")
        .unwrap();
    // A directory below may have the vault's own key again.
    open.set_directory_key(BELOW, (default, Vec::new()), None, 3).unwrap();
    let epoch = open.vault.key_of_new_files_in(&[root, HERE, BELOW]).epoch;
    assert_eq!(open.header().chain_of(epoch).unwrap().key, default.0);
    // Once more changes no key.
    open.set_directory_key(BELOW, (default, Vec::new()), None, 4).unwrap();
    assert_eq!(open.vault.key_of_new_files_in(&[root, HERE, BELOW]).epoch, epoch);
    // Another context does.
    let team = vec![("team".to_owned(), "blue".to_owned())];
    open.set_directory_key(BELOW, (default, team), None, 4).unwrap();
    assert!(open.vault.key_of_new_files_in(&[root, HERE, BELOW]).epoch > epoch);

    assert_eq!(open.unset_directory_keys(|id| id == BELOW, 5).unwrap(), 1);
    assert_eq!(open.unset_directory_keys(|id| id == BELOW, 5).unwrap(), 0);
    assert_eq!(open.vault.key_of_new_files_in(&[root, HERE, BELOW]).epoch, Epoch(2));
    let usage = open.keys().keystore().unwrap().keystore().usage(&bench.other).unwrap();
    assert_eq!((usage[0].1.epochs, usage[0].1.alone), (1, 1));
}

#[test]
fn the_header_from_before_a_change_is_refused() {
    let (bench, mut open) = Bench::new();
    let header = bench.path().join("vault.hush");
    let refused = |before: &[u8]| {
        let after = fs::read(&header).unwrap();
        fs::write(&header, before).unwrap();
        let refused = matches!(unlock(bench.enter()), Err(OpenError::RolledBack { .. }));
        fs::write(&header, after).unwrap();
        refused
    };
    let before = fs::read(&header).unwrap();
    open.set_directory_key(HERE, (bench.other, Vec::new()), None, 2)
        .unwrap();
    drop(open);
    assert!(refused(&before));
    let before = fs::read(&header).unwrap();
    let mut open = bench.open();
    let key = open.add_customer_key(&customer_key(1), 3).unwrap();
    drop(open);
    assert!(refused(&before));
    let before = fs::read(&header).unwrap();
    let mut open = bench.open();
    open.remove_customer_key(key, &BTreeSet::new(), 4).unwrap();
    open.unset_directory_keys(|_| true, 4).unwrap();
    drop(open);
    assert!(refused(&before));
}

#[test]
fn rotation_gives_every_key_an_epoch_and_rewrap_moves_each_file_within_its_key() {
    let (bench, mut open) = Bench::new();
    let root = open.vault.root_keys().id;
    open.set_directory_key(HERE, (bench.other, Vec::new()), None, 2)
        .unwrap();
    let (own, other) = (new_file(&open, &[root]), new_file(&open, &[root, HERE]));
    let slot = open.add_slot("second", &NewSecret::KeyFile(&key_file(2)), 3).unwrap();
    // Every key gets a new material, so every epoch is behind.
    open.remove_slot(slot, 4).unwrap();
    assert!(open.chains_behind().is_empty());
    let outcome = everything(&open, Target::OwnKey);
    assert_eq!((outcome.rewrapped, outcome.current, outcome.failed.len()), (2, 0, 0));
    let chain = open.header().chain(bench.other.0).unwrap().clone();
    assert_eq!(chain.epochs.len(), 2);
    assert_eq!(loaded(&open, &own).unwrap(), open.header().current);
    assert_eq!(loaded(&open, &other).unwrap(), chain.current());
    open.retire_epochs_except(&outcome.used, 5).unwrap();
    assert_eq!(open.header().epochs.len(), 2);
    // With the directory's default and the last file of the key its chain goes.
    open.unset_directory_keys(|_| true, 6).unwrap();
    let own = open.header().current;
    let outcome = everything(&open, Target::Epoch(own));
    assert_eq!(outcome.rewrapped, 2);
    open.retire_epochs_except(&outcome.used, 7).unwrap();
    assert!(open.header().chains.is_empty());
    assert_eq!(version(&bench.path()), 1);
    drop(open);
    let open = bench.open();
    assert_eq!(loaded(&open, &other).unwrap(), open.header().current);
}

#[test]
fn a_key_that_is_disabled_keeps_its_files_and_nothing_else_and_catches_up_later() {
    let (bench, mut open) = Bench::new();
    let root = open.vault.root_keys().id;
    open.set_directory_key(HERE, (bench.other, Vec::new()), None, 2)
        .unwrap();
    let (own, other) = (new_file(&open, &[root]), new_file(&open, &[root, HERE]));
    open.keys_mut()
        .keystore_mut()
        .unwrap()
        .change(3, call(), |keystore| keystore.disable(&bench.other))
        .unwrap();
    drop(open);

    let mut open = bench.open();
    loaded(&open, &own).unwrap();
    let revoked = |result| matches!(result, Err(VaultError::EpochKey(Epoch(2), KeyError::Disabled { .. })));
    assert!(revoked(loaded(&open, &other)));
    assert!(revoked(open.vault.epochs().check(Epoch(2)).map(|()| Epoch(2))));
    // Others go on, also when slots change and every material is renewed.
    let slot = open.add_slot("second", &NewSecret::KeyFile(&key_file(2)), 4).unwrap();
    open.remove_slot(slot, 5).unwrap();
    let epochs = open.header().epochs.len();
    assert_eq!(open.header().chain(bench.other.0).unwrap().epochs, [Epoch(2)]);
    // Its file needs nothing; it is not in the way of retiring what nothing needs.
    let outcome = everything(&open, Target::OwnKey);
    assert_eq!((outcome.rewrapped, outcome.current, outcome.failed.len()), (1, 1, 0));
    assert!(!open.finish(6).unwrap(), "nothing to be done while it is disabled");
    assert_eq!(open.header().epochs.len(), epochs);
    open.keys_mut()
        .keystore_mut()
        .unwrap()
        .change(7, call(), |keystore| keystore.enable(&bench.other))
        .unwrap();
    drop(open);

    let mut open = bench.open();
    assert!(open.finish(8).unwrap(), "it gets the epoch that it missed");
    assert_eq!(open.header().chain(bench.other.0).unwrap().epochs.len(), 2);
    assert!(!open.finish(9).unwrap());
    everything(&open, Target::OwnKey);
    assert!(loaded(&open, &other).unwrap() > Epoch(2));
}

#[test]
fn a_header_for_another_directory_keeps_the_key() {
    let (bench, mut open) = Bench::new();
    let root = open.vault.root_keys().id;
    open.set_directory_key(HERE, (bench.other, Vec::new()), None, 2)
        .unwrap();
    let file = new_file(&open, &[root, HERE]);
    let moved = open.vault.header_for_directory(file, root);
    assert_eq!((moved.fields.epoch, moved.fields.directory), (Epoch(2), root));
    // Rotated since, it takes the newest epoch of its key.
    open.rotate(3).unwrap();
    let chain = open.header().chain(bench.other.0).unwrap().current();
    let moved = open.vault.header_for_directory(moved, HERE);
    assert_eq!(moved.fields.epoch, chain);
    let own = open.vault.header_for_directory(open.vault.new_header(root), HERE);
    assert_eq!(own.fields.epoch, open.header().current);
}

#[test]
fn files_of_a_customer_open_with_the_customer_s_key_only() {
    let (bench, mut open) = Bench::new();
    let root = open.vault.root_keys().id;
    open.set_directory_key(HERE, (bench.other, Vec::new()), None, 2)
        .unwrap();
    let own = new_file(&open, &[root]);
    let key = open.add_customer_key(&customer_key(1), 3).unwrap();
    assert_eq!(open.add_customer_key(&customer_key(1), 3).unwrap(), key, "it is known");
    let second = open.add_customer_key(&customer_key(2), 3).unwrap();
    assert_ne!(second, key);
    drop(open);

    let mut home = bench.enter();
    home.set_customer_key(customer_key(1));
    let with_key = unlock(home).unwrap();
    let file = new_file(&with_key, &[root, HERE]);
    let epoch = loaded(&with_key, &file).unwrap();
    assert_eq!(
        with_key.header().chain_of(epoch).unwrap().key,
        key,
        "also where a directory has a key"
    );
    assert_eq!(with_key.vault.new_header(root).fields.epoch, epoch);
    drop(with_key);

    let not_brought = |open: &OpenVault| matches!(loaded(open, &file), Err(VaultError::EpochKey(_, KeyError::NotBrought { key: named })) if named == key);
    let mut open = bench.open();
    assert!(not_brought(&open));
    loaded(&open, &own).unwrap();
    let outcome = everything(&open, Target::OwnKey);
    assert!(outcome.is_complete(), "it needs no other epoch");
    open.retire_epochs_except(&outcome.used, 4).unwrap();
    assert!(open.header().chain(key).is_some());
    assert!(matches!(
        open.remove_customer_key(key, &outcome.used, 5),
        Err(ChangeError::CustomerKeyInUse { .. })
    ));
    open.remove_customer_key(second, &outcome.used, 5).unwrap();
    assert!(matches!(
        open.remove_customer_key(second, &outcome.used, 5),
        Err(ChangeError::NoSuchCustomerKey { .. })
    ));
    assert!(
        open.keys().keystore().unwrap().keystore().vaults()[0]
            .keys
            .iter()
            .all(|need| need.key != key)
    );
    drop(open);

    let mut home = bench.enter();
    home.set_customer_key(customer_key(3));
    assert!(matches!(unlock(home), Err(OpenError::WrongCustomerKey)));
    let mut home = bench.enter();
    home.set_customer_key(customer_key(1));
    let with_key = unlock(home).unwrap();
    assert_eq!(loaded(&with_key, &file).unwrap(), epoch);
    let outcome = everything(&with_key, Target::Epoch(with_key.header().current));
    assert!(outcome.is_complete());
    drop(with_key);
    let mut open = bench.open();
    loaded(&open, &file).unwrap();
    let used = rewrap::survey(open.home.dir()).unwrap().used;
    open.remove_customer_key(key, &used, 6).unwrap();
    drop(open);
    let mut home = bench.enter();
    home.set_customer_key(customer_key(1));
    assert!(matches!(unlock(home), Err(OpenError::NoCustomerKeys)));
}

#[test]
fn what_cannot_be_completed_is_refused_before_anything_is_written() {
    let (bench, mut open) = Bench::new();
    let gone = KeyHandle(KeyId([9; 16]));
    assert!(matches!(
        open.set_directory_key(HERE, (gone, Vec::new()), None, 2),
        Err(ChangeError::Keystore(_))
    ));
    assert_eq!(version(&bench.path()), 1);
    while open.header().epochs.len() < EPOCHS_MAX - 1 {
        let mut record = open.header().epochs.last().unwrap().clone();
        record.number = Epoch(record.number.0 + 1);
        open.header.epochs.push(record);
    }
    assert!(matches!(
        open.set_directory_key(HERE, (bench.other, Vec::new()), None, 2),
        Err(ChangeError::TooManyEpochs)
    ));
    assert_eq!(version(&bench.path()), 1);
}

#[test]
fn paths_lead_to_directories_and_files() {
    let (bench, open) = Bench::new();
    let root_keys = open.vault.root_keys();
    let long = "n".repeat(200);
    let mut at = bench.path();
    let mut keys = root_keys;
    for name in ["a", &long, "c"] {
        let disk = keys.seal_name(name.as_bytes());
        if let Some(sealed) = &disk.long {
            fs::write(
                at.join(disk.long_name_file()),
                crate::format::name::encode_long_name(sealed),
            )
            .unwrap();
        }
        at.push(&disk.entry);
        fs::create_dir(&at).unwrap();
        keys = open.vault.born_directory_keys(keys.id, name.as_bytes());
    }
    fs::write(at.join(keys.seal_name(b"file").entry), b"").unwrap();
    let root = Dir::open(&bench.path()).unwrap();
    let path = format!("a/{long}/c");
    let found = open.vault.locate(&root, Path::new(&path)).unwrap();
    assert!(found.entry.is_none());
    assert_eq!((found.directory(), found.directories.len()), (keys.id, 4));
    let found = open.vault.locate(&root, Path::new(&format!("/{path}/file"))).unwrap();
    assert_eq!(
        (found.directory(), found.entry.unwrap().name.as_slice()),
        (keys.id, &b"file"[..])
    );
    let errno = |path: &str| match open.vault.locate(&root, Path::new(path)) {
        Err(VaultError::Io(error)) => error.raw_os_error(),
        other => panic!("{other:?}"),
    };
    assert_eq!(errno("a/none"), Some(libc::ENOENT));
    assert_eq!(errno("a/.."), Some(libc::ENOENT));
    assert_eq!(errno(&format!("{path}/file/x")), Some(libc::ENOTDIR));
    let wanted = BTreeSet::from([keys.id, DirectoryId([1; 16]), open.vault.root_keys().id]);
    let paths = open.vault.paths_of(&root, &wanted).unwrap();
    assert_eq!(paths.len(), 2);
    assert_eq!(paths[&keys.id], path.as_bytes());
    assert_eq!(paths[&open.vault.root_keys().id], b"");
}

/// Makes a file without a bucket key.
fn new_file_without(open: &OpenVault, way: &[DirectoryId]) -> FileHeader {
    let key = open.vault.key_of_new_files_in(way);
    assert!(!key.bucket_key);
    let new = open.vault.own_keys().for_new_file(key.epoch).unwrap();
    let header = open.vault.new_header_without_bucket_key(&new, *way.last().unwrap());
    store(open, &header);
    header
}

fn header_path(open: &OpenVault, header: &FileHeader) -> PathBuf {
    let file = crate::format::name::header_file(header.fields.file);
    open.home.path().join(file)
}

fn change(open: &mut OpenVault, act: impl FnOnce(&mut LocalKeystore) -> Result<(), crate::keystore::KeystoreError>) {
    let keystore = open.keys_mut().keystore_mut().unwrap();
    keystore.change(9, call(), act).unwrap();
}

fn wanted(target: Target, bucket_key: bool) -> rewrap::Wanted {
    rewrap::Wanted {
        target,
        bucket_key: Some(bucket_key),
    }
}

fn rewrap_all(open: &OpenVault, wanted: rewrap::Wanted) -> rewrap::Outcome {
    let scopes = [Scope::everything(open.home.dir()).unwrap()];
    rewrap::rewrap(&open.vault, &scopes, wanted, &mut |_| Ok(())).unwrap()
}

#[test]
fn new_files_are_without_a_bucket_key_where_it_is_off() {
    let (bench, mut open) = Bench::new();
    let root = open.vault.root_keys().id;
    open.set_directory_key(HERE, (bench.other, Vec::new()), Some(false), 2)
        .unwrap();
    open.set_directory_key(BELOW, (bench.other, Vec::new()), None, 3)
        .unwrap();
    drop(open);
    let mut open = bench.open();
    let has = |open: &OpenVault, way: &[DirectoryId]| open.vault.key_of_new_files_in(way).bucket_key;
    assert!(has(&open, &[root]));
    assert!(!has(&open, &[root, HERE]));
    assert!(has(&open, &[root, HERE, BELOW]), "it goes with the key");
    open.set_bucket_key(false, 4).unwrap();
    open.set_directory_bucket_key(HERE, true, 5).unwrap();
    open.set_directory_bucket_key(BELOW, false, 5).unwrap();
    let other = DirectoryId([9; 16]);
    assert!(matches!(
        open.set_directory_bucket_key(other, false, 5),
        Err(ChangeError::NoDirectoryKey)
    ));
    let mut open = {
        drop(open);
        bench.open()
    };
    assert!(!has(&open, &[root]));
    assert!(has(&open, &[root, HERE]));
    assert!(!has(&open, &[root, HERE, BELOW]));
    // A directory that loses its key has what the vault has.
    open.unset_directory_keys(|_| true, 6).unwrap();
    assert!(!has(&open, &[root, HERE, BELOW]));
    open.set_bucket_key(true, 7).unwrap();
    assert!(has(&open, &[root, HERE, BELOW]));
}

#[test]
fn a_file_without_a_bucket_key_opens_by_the_keystore_and_where_it_belongs() {
    let (bench, mut open) = Bench::new();
    let root = open.vault.root_keys().id;
    open.set_directory_key(HERE, (bench.other, Vec::new()), Some(false), 2)
        .unwrap();
    let file = new_file_without(&open, &[root, HERE]);
    let second = new_file_without(&open, &[root, HERE]);
    assert_eq!(fs::read(header_path(&open, &file)).unwrap()[8], 2);
    drop(open);
    let mut open = bench.open();
    assert_eq!(loaded(&open, &file).unwrap(), file.fields.epoch);

    // Who can write to the vault puts one header in the place of another, or into another directory.
    let good = fs::read(header_path(&open, &file)).unwrap();
    fs::copy(header_path(&open, &second), header_path(&open, &file)).unwrap();
    assert!(matches!(loaded(&open, &file), Err(VaultError::HeaderDamaged(..))));
    fs::write(header_path(&open, &file), &good).unwrap();
    let elsewhere = open.vault.load_header(open.home.dir(), BELOW, file.fields.file);
    assert!(matches!(elsewhere, Err(VaultError::HeaderMisplaced(_))));
    // The header for another directory has the same secret, and needs no call but the one that opens it.
    let header = open.vault.load_header(open.home.dir(), HERE, file.fields.file).unwrap();
    let moved = open.vault.header_for_directory(header, BELOW);
    assert_eq!(moved.own.as_ref().unwrap().wrap, file.own.as_ref().unwrap().wrap);
    store(&open, &moved);
    assert_eq!(loaded(&open, &moved).unwrap(), file.fields.epoch);
    fs::write(header_path(&open, &file), &good).unwrap();

    // A disabled key takes it along.
    change(&mut open, |keystore| keystore.disable(&bench.other));
    drop(open);
    let disabled = |open: &OpenVault| {
        matches!(
            loaded(open, &file),
            Err(VaultError::EpochKey(_, KeyError::Disabled { .. }))
        )
    };
    let open = bench.open();
    assert!(disabled(&open));
    // An epoch that opens does not make up for it: what was asked before is asked again by the next process.
    let mut open = open;
    change(&mut open, |keystore| keystore.enable(&bench.other));
    drop(open);
    let mut open = bench.open();
    change(&mut open, |keystore| keystore.disable(&bench.other));
    assert!(disabled(&open));
}

#[test]
fn files_are_moved_between_the_forms_and_to_new_versions_and_it_is_resumed() {
    let (bench, mut open) = Bench::new();
    let root = open.vault.root_keys().id;
    let files: Vec<_> = (0..3).map(|_| new_file(&open, &[root])).collect();
    let epoch = |open: &OpenVault, number: usize| loaded(open, &files[number]).unwrap();
    let form = |open: &OpenVault, number: usize| fs::read(header_path(open, &files[number])).unwrap()[8];
    open.set_bucket_key(false, 2).unwrap();
    assert_eq!(open.header().current, Epoch(2));
    // Without a word files stay as they are.
    assert_eq!(everything(&open, Target::OwnKey).rewrapped, 3);
    assert_eq!((form(&open, 0), epoch(&open, 0)), (1, Epoch(2)));

    // Stopped after the first, and run again.
    let scopes = [Scope::everything(open.home.dir()).unwrap()];
    let mut written = 0;
    let stopped = rewrap::rewrap(&open.vault, &scopes, wanted(Target::OwnKey, false), &mut |step| {
        written += u32::from(step == rewrap::Step::Renamed);
        match written {
            1 => Err(std::io::Error::other("stopped")),
            _ => Ok(()),
        }
    });
    assert!(stopped.is_err());
    let forms: Vec<_> = (0..3).map(|number| form(&open, number)).collect();
    assert_eq!(forms.iter().filter(|&&form| form == 2).count(), 1);
    let outcome = rewrap_all(&open, wanted(Target::OwnKey, false));
    assert_eq!((outcome.rewrapped, outcome.current), (2, 1));
    assert_eq!((outcome.without_bucket_key, outcome.failed.len()), (3, 0));
    assert_eq!(rewrap::survey(open.home.dir()).unwrap().without_bucket_key, 3);
    assert_eq!(rewrap_all(&open, wanted(Target::OwnKey, false)).current, 3);

    // A new version of the key: a new epoch, and a new secret of each file.
    let before = fs::read(header_path(&open, &files[1])).unwrap();
    open.rotate(3).unwrap();
    assert_eq!(everything(&open, Target::OwnKey).rewrapped, 3);
    assert_eq!((form(&open, 1), epoch(&open, 1)), (2, Epoch(3)));
    assert_eq!(
        open.retire_epochs_except(&[Epoch(3)].into(), 4).unwrap(),
        [Epoch(1), Epoch(2)]
    );
    drop(open);
    let mut open = bench.open();
    // A header from before is of an epoch that is gone.
    let after = fs::read(header_path(&open, &files[1])).unwrap();
    fs::write(header_path(&open, &files[1]), before).unwrap();
    assert!(matches!(
        loaded(&open, &files[1]),
        Err(VaultError::EpochMissing(Epoch(2)))
    ));
    fs::write(header_path(&open, &files[1]), after).unwrap();

    // Back again: an older hushfs reads the vault then.
    open.set_bucket_key(true, 5).unwrap();
    let outcome = rewrap_all(&open, wanted(Target::OwnKey, true));
    assert_eq!((outcome.rewrapped, outcome.without_bucket_key), (3, 0));
    open.retire_epochs_except(&outcome.used, 6).unwrap();
    open.end_without_bucket_key().unwrap();
    drop(open);
    let open = bench.open();
    assert_eq!(open.header().bucket_keys_off(), None);
    assert_eq!((form(&open, 2), epoch(&open, 2)), (1, Epoch(4)));
}

#[test]
fn a_file_that_cannot_be_asked_for_stays_as_it_is_and_is_named() {
    let (bench, mut open) = Bench::new();
    let root = open.vault.root_keys().id;
    open.set_directory_key(HERE, (bench.other, Vec::new()), Some(false), 2)
        .unwrap();
    let theirs = new_file_without(&open, &[root, HERE]);
    let own = new_file(&open, &[root]);
    change(&mut open, |keystore| keystore.disable(&bench.other));
    drop(open);
    let open = bench.open();
    let outcome = rewrap_all(&open, wanted(Target::Epoch(open.header().current), true));
    assert_eq!(outcome.failed.len(), 1);
    assert!(matches!(
        outcome.failed[0].error,
        VaultError::EpochKey(_, KeyError::Disabled { .. })
    ));
    assert!(outcome.used.contains(&theirs.fields.epoch));
    assert_eq!(outcome.without_bucket_key, 1);
    assert_eq!(loaded(&open, &own).unwrap(), open.header().current);
}
