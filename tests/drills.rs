//! What to run when something has leaked, carried out: the table of docs/KEYS.md, on a vault with thousands of files, with kills in the middle.
//!
//! For each leak the thief really has it: the bytes, out of the library. What holds, each time:
//!
//! 1. Before, the thief opens what the table says.
//! 2. The commands can be killed at any time and started again.
//! 3. After, every file opens and is what it was, and what has leaked opens nothing that lies in the vault now.

#[path = "support/unmounted.rs"]
mod unmounted;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::{fs::DirEntryExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use hushfs::{
    crypto::{
        block::{BlockCipher, Suite},
        derive,
        keys::{DataKey, EpochKey, KeyBytes},
        locked::LockedKey,
        slot::{SealedKey, open_root},
        wrap::{Wrapped, unwrap},
    },
    format::{
        header::UnverifiedHeader,
        keystore::{MaterialVersion, UnverifiedKeystoreFile, material_aad, slot_aad},
        preamble::UnverifiedPreamble,
        vault::{EpochWrap, UnverifiedVaultHeader, VaultHeader},
    },
    fs::{Caller, Fs, NameIn, ROOT},
    ids::{Epoch, FileId, KeyId, KeystoreId, VaultId},
    keystore::{Context, Custodian, KeyFile, KeyHandle, LocalKeystore, Passphrase, SlotChoice, Unlock, WrappedKey},
    units::BlockIndex,
    vault::home::{Lock, VaultHome},
};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tempfile::TempDir;

const DIRECTORIES: usize = 150;
const FILES_EACH: usize = 20;

/// After how many files of the vault made or replaced a command is killed.
const KILLS: [usize; 3] = [1, 20, 150];

/// A vault full of files, and the secrets of who owns it.
struct Drill {
    dir: TempDir,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

/// What the files of a vault say on disk.
struct OnDisk {
    headers: BTreeMap<FileId, Vec<u8>>,
    data: Vec<Vec<u8>>,
    unfinished: usize,
}

impl Drill {
    fn new(init: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("pass"), b"correct horse\n").unwrap();
        fs::write(dir.path().join("new-pass"), b"battery staple\n").unwrap();
        fs::write(dir.path().join("key"), [7; 32]).unwrap();
        let drill = Drill {
            dir,
            files: BTreeMap::new(),
        };
        drill.run(init);
        drill
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hushfs"));
        command
            .args(arguments.split(' '))
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command that must succeed; returns what it prints.
    fn run(&self, arguments: &str) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command again and again and kills it in the middle of its work, then lets it end.
    fn run_with_kills(&self, arguments: &str) {
        let mut left_half = 0;
        for changes in KILLS {
            let before = self.entries();
            let mut child = self.command(arguments).spawn().unwrap();
            // It stands still while it is looked at: what is seen is what the kill leaves.
            while stop(&child) {
                if self.entries().difference(&before).count() >= changes && self.is_half() {
                    child.kill().unwrap();
                    left_half += 1;
                    break;
                }
                kill_process(Pid::from_child(&child), Signal::CONT).unwrap();
                thread::sleep(Duration::from_millis(10));
            }
            let output = child.wait_with_output().unwrap();
            if output.status.success() {
                break;
            }
            let message = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                output.status.signal(),
                Some(Signal::KILL.as_raw()),
                "{arguments}: {message}"
            );
        }
        assert!(left_half >= 1, "{arguments}: never killed in the middle");
        self.run(arguments);
    }

    /// Tells whether a command that goes over all files has not come to its end.
    fn is_half(&self) -> bool {
        let found = self.on_disk();
        found.unfinished > 0 || found.epochs().len() > 1 || found.headers.len() > self.files.len()
    }

    /// Returns what lies in the directories of the vault: a file that is replaced is another of the same name.
    fn entries(&self) -> BTreeSet<(PathBuf, u64)> {
        let mut found = BTreeSet::new();
        let mut waiting = vec![self.path("vault")];
        while let Some(directory) = waiting.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    waiting.push(entry.path());
                } else {
                    found.insert((entry.path(), entry.ino()));
                }
            }
        }
        found
    }

    fn with_fs(&self, unlock: &Unlock, act: impl FnOnce(&Fs, Caller)) {
        let home = VaultHome::enter(&self.path("vault"), Lock::Exclusive).unwrap();
        unmounted::with_fs(home.open(unlock, &SlotChoice::Any).unwrap(), act);
    }

    /// Writes so many files into a new directory, and remembers what is in them.
    fn fill_directory(&mut self, unlock: &Unlock, name: &str, count: usize) {
        self.fill_directories(unlock, &[name.to_owned()], count);
    }

    fn fill_directories(&mut self, unlock: &Unlock, names: &[String], count: usize) {
        let mut files = std::mem::take(&mut self.files);
        self.with_fs(unlock, |fs, caller| {
            for name in names {
                let at = NameIn {
                    parent: ROOT,
                    name: name.as_bytes(),
                };
                let parent = fs.make_directory(at, 0o755, caller).unwrap().node.id;
                for number in 0..count {
                    let file = format!("file {number}");
                    let content = format!("{name}/{number}\n").repeat(1 + 97 * (number % 5)).into_bytes();
                    let at = NameIn {
                        parent,
                        name: file.as_bytes(),
                    };
                    let found = fs.create(at, 0o640, caller).unwrap();
                    fs.write(found.node.id, 0, &content).unwrap();
                    fs.release(found.node.id);
                    files.insert(Path::new(name).join(file), content);
                }
            }
        });
        self.files = files;
    }

    /// Writes thousands of files.
    fn fill(&mut self, unlock: &Unlock) {
        let names: Vec<_> = (0..DIRECTORIES).map(|number| format!("directory {number}")).collect();
        self.fill_directories(unlock, &names, FILES_EACH);
    }

    /// Asserts that every file opens and is what it was.
    fn assert_all_open(&self, secret: &str) {
        let out = self.path("out");
        self.run(&format!("export {secret} vault / out"));
        let mut found = 0;
        for directory in fs::read_dir(&out).unwrap() {
            let directory = directory.unwrap().path();
            for file in fs::read_dir(&directory).unwrap() {
                let file = file.unwrap().path();
                let expected = &self.files[file.strip_prefix(&out).unwrap()];
                assert!(fs::read(&file).unwrap() == *expected, "{}", file.display());
                found += 1;
            }
        }
        assert_eq!(found, self.files.len());
        fs::remove_dir_all(out).unwrap();
        self.run(&format!("verify {secret} vault"));
        self.run(&format!("fsck {secret} vault"));
    }

    fn on_disk(&self) -> OnDisk {
        let mut found = OnDisk {
            headers: BTreeMap::new(),
            data: Vec::new(),
            unfinished: 0,
        };
        let mut waiting = vec![self.path("vault")];
        while let Some(directory) = waiting.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                if entry.file_type().unwrap().is_dir() {
                    waiting.push(entry.path());
                } else if name.ends_with(".tmp.hush") {
                    found.unfinished += 1;
                } else if !name.contains('.') {
                    found.data.push(fs::read(entry.path()).unwrap());
                } else if let Some(file) = name
                    .strip_suffix(".hush")
                    .and_then(|id| FileId::from_b64(id.as_bytes()))
                {
                    found.headers.insert(file, fs::read(entry.path()).unwrap());
                }
            }
        }
        found
    }

    fn file(&self, name: &str) -> Vec<u8> {
        fs::read(self.path("vault").join(name)).unwrap()
    }

    fn header(&self) -> VaultHeader {
        UnverifiedVaultHeader::decode(&self.file("vault.hush"))
            .unwrap()
            .claims()
            .clone()
    }
}

/// Has a process stand still; returns whether it does, and has not ended.
fn stop(child: &Child) -> bool {
    kill_process(Pid::from_child(child), Signal::STOP).unwrap();
    let either = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let status = waitid(WaitId::Pid(Pid::from_child(child)), either).unwrap().unwrap();
    status.stopped()
}

impl OnDisk {
    fn epochs(&self) -> BTreeSet<Epoch> {
        // A kill may have left the header of a new file half written: nothing uses it.
        let headers = self
            .headers
            .values()
            .filter_map(|bytes| UnverifiedHeader::decode(bytes).ok());
        headers.map(|header| header.epoch()).collect()
    }

    /// Counts the headers that an epoch key opens.
    fn opened_by(&self, vault: VaultId, key: &EpochKey) -> usize {
        let key = key.header_wrapping_key(vault);
        let opens = |bytes: &&Vec<u8>| UnverifiedHeader::decode(bytes).is_ok_and(|it| it.verify(vault, &key).is_ok());
        self.headers.values().filter(opens).count()
    }

    /// Returns the data keys of the headers that an epoch key opens.
    fn data_keys(&self, vault: VaultId, key: &EpochKey) -> BTreeMap<FileId, DataKey> {
        let key = key.header_wrapping_key(vault);
        let headers = self.headers.iter();
        headers
            .filter_map(|(file, bytes)| {
                let header = UnverifiedHeader::decode(bytes).ok()?.verify(vault, &key).ok()?;
                let key = DataKey::new(KeyBytes::copy_of(header.data_key.as_bytes()));
                Some((*file, key))
            })
            .collect()
    }

    /// Counts the data files that some data keys open: by their commitment, or a first block.
    fn data_opened_by(&self, keys: &BTreeMap<FileId, DataKey>) -> usize {
        let commitments: BTreeSet<_> = keys.iter().map(|(file, key)| key.commitment(*file, 1)).collect();
        let opens = |bytes: &&Vec<u8>| {
            let preamble = UnverifiedPreamble::decode(bytes).unwrap();
            let block = &bytes[256..bytes.len().min(256 + 4096 + 28)];
            let opens_block = |key: &DataKey| {
                let mut plain = vec![0; block.len() - 28];
                let cipher = BlockCipher::new(Suite::Aes256GcmSiv, key, preamble.file());
                cipher.open(BlockIndex(0), block, &mut plain).is_ok()
            };
            commitments.contains(preamble.commitment()) || keys.get(&preamble.file()).is_some_and(opens_block)
        };
        self.data.iter().filter(opens).count()
    }
}

/// A version of a master key, as it is without the keystore around it.
struct Material {
    keystore: KeystoreId,
    key: KeyId,
    version: MaterialVersion,
    secret: [u8; 32],
}

impl Material {
    /// Takes the newest version of a key out of a keystore that `key` opens.
    fn leak(keystore: &[u8], id: &str) -> Self {
        let file = UnverifiedKeystoreFile::decode(keystore).unwrap();
        let (keystore, slot) = (file.id(), file.slots()[0].clone());
        let sealed = SealedKey {
            encapsulated: slot.encapsulated.clone(),
            sealed: slot.sealed_root.as_bytes().to_vec(),
        };
        let secret = derive::key_file_slot(&[7; 32]);
        let root = open_root(&secret, &slot_aad(keystore, slot.id, &slot.kind), &sealed).unwrap();
        let body = file.verify(&root.mac_key()).unwrap();
        let key = body.keys.iter().find(|key| key.id.to_hex() == id).unwrap();
        let material = key.materials.last().unwrap();
        let aad = material_aad(keystore, key.id, material.version);
        Material {
            keystore,
            key: key.id,
            version: material.version,
            secret: unwrap(root.as_bytes(), &aad, &material.wrapped, |bytes| *bytes).unwrap(),
        }
    }

    /// Returns the epoch keys that it opens, said to be of whatever version: docs/FORMAT.md section 3.
    fn epoch_keys(&self, header: &VaultHeader) -> Vec<EpochKey> {
        let mut opened = Vec::new();
        for epoch in &header.epochs {
            let context = Context::for_epoch(header.vault, epoch.number).encode();
            for wrap in &epoch.wraps {
                let (version, wrapped) = wrap.blob.split_first_chunk::<4>().unwrap();
                for version in BTreeSet::from([*version, self.version.0.to_le_bytes()]) {
                    let purpose = b"hushfs v1 master key wrap".as_slice();
                    let aad = [purpose, &self.keystore.0, &self.key.0, &version, &context].concat();
                    let wrapped = Wrapped(wrapped.try_into().unwrap());
                    let key = unwrap(&self.secret, &aad, &wrapped, |bytes| {
                        EpochKey::new(LockedKey::copy_of(bytes))
                    });
                    opened.extend(key);
                }
            }
        }
        opened
    }
}

/// Returns the epoch keys that a keystore opens.
fn epoch_keys(keystore: &LocalKeystore, header: &VaultHeader) -> Vec<EpochKey> {
    let of_epoch = |epoch: Epoch, wrap: &EpochWrap| {
        let blob = WrappedKey::new(wrap.blob.clone()).unwrap();
        let context = Context::for_epoch(header.vault, epoch);
        keystore.unwrap(&KeyHandle(wrap.key), &context, &blob).ok()
    };
    let epochs = header.epochs.iter();
    epochs
        .flat_map(|epoch| epoch.wraps.iter().filter_map(move |wrap| of_epoch(epoch.number, wrap)))
        .collect()
}

fn key_file() -> Unlock {
    Unlock::KeyFile(KeyFile::new(vec![7; 32].into()).unwrap())
}

fn passphrase(text: &str) -> Unlock {
    Unlock::Passphrase(Passphrase::new(text.as_bytes().to_vec().into()).unwrap())
}

#[test]
fn after_a_passphrase_has_leaked_with_the_keystore() {
    let kdf = "--kdf-memory 64M --kdf-time 1ms";
    let mut drill = Drill::new(&format!("init {kdf} --passfile pass vault"));
    drill.fill(&passphrase("correct horse"));
    let header = drill.header();
    let (thief, _) = LocalKeystore::unlock(
        &drill.file("keystore.hush"),
        &passphrase("correct horse"),
        &SlotChoice::Any,
    )
    .unwrap();
    let leaked = epoch_keys(&thief, &header);
    assert_eq!(leaked.len(), 1);
    assert_eq!(drill.on_disk().opened_by(header.vault, &leaked[0]), drill.files.len());

    drill.run(&format!("passwd {kdf} --passfile pass --new-passfile new-pass vault"));
    drill.fill_directory(&passphrase("battery staple"), "after", 3);
    drill.run_with_kills("rewrap --passfile new-pass vault");
    drill.run("rewrap --retire --passfile new-pass vault");

    drill.assert_all_open("--passfile new-pass");
    let now = drill.file("keystore.hush");
    assert!(LocalKeystore::unlock(&now, &passphrase("correct horse"), &SlotChoice::Any).is_err());
    assert!(epoch_keys(&thief, &drill.header()).is_empty());
    assert_eq!(drill.on_disk().opened_by(header.vault, &leaked[0]), 0);
}

#[test]
fn after_an_epoch_key_has_leaked_and_with_it_every_data_key() {
    let mut drill = Drill::new("init --key-file key vault");
    drill.fill(&key_file());
    let header = drill.header();
    let (keystore, _) = LocalKeystore::unlock(&drill.file("keystore.hush"), &key_file(), &SlotChoice::Any).unwrap();
    let leaked = epoch_keys(&keystore, &header).remove(0);
    let before = drill.on_disk();
    let data_keys = before.data_keys(header.vault, &leaked);
    assert_eq!(data_keys.len(), drill.files.len());
    assert_eq!(before.data_opened_by(&data_keys), drill.files.len());

    drill.run("vault rotate --key-file key vault");
    drill.fill_directory(&key_file(), "after", 3);
    drill.run_with_kills("rewrap --key-file key vault");
    drill.run("rewrap --retire --key-file key vault");
    drill.assert_all_open("--key-file key");
    let rewrapped = drill.on_disk();
    assert_eq!(rewrapped.opened_by(header.vault, &leaked), 0);
    let vault_header = UnverifiedVaultHeader::decode(&drill.file("vault.hush")).unwrap();
    assert!(vault_header.verify(&leaked.vault_header_mac_key(header.vault)).is_err());
    // Who has read the headers before has the data keys still: contents have to be encrypted again.
    assert_eq!(rewrapped.data_opened_by(&data_keys), data_keys.len());

    drill.run_with_kills("rekey --key-file key vault /");
    drill.assert_all_open("--key-file key");
    assert_eq!(drill.on_disk().data_opened_by(&data_keys), 0);
}

#[test]
fn after_a_data_key_has_leaked() {
    let mut drill = Drill::new("init --key-file key vault");
    drill.fill(&key_file());
    let header = drill.header();
    let (keystore, _) = LocalKeystore::unlock(&drill.file("keystore.hush"), &key_file(), &SlotChoice::Any).unwrap();
    let epoch = epoch_keys(&keystore, &header).remove(0);
    let others = drill.on_disk().data_keys(header.vault, &epoch);
    drill.fill_directory(&key_file(), "secret", 400);
    let mut leaked = drill.on_disk().data_keys(header.vault, &epoch);
    leaked.retain(|file, _| !others.contains_key(file));
    assert_eq!(drill.on_disk().data_opened_by(&leaked), 400);

    drill.run_with_kills("rekey --key-file key vault secret");

    drill.assert_all_open("--key-file key");
    let after = drill.on_disk();
    assert_eq!(after.data_opened_by(&leaked), 0);
    assert_eq!(
        after.data_opened_by(&others),
        others.len(),
        "other files are left alone"
    );
}

#[test]
fn after_a_version_of_a_master_key_has_leaked() {
    let mut drill = Drill::new("init --key-file key vault");
    let id = drill.run("key create --key-file key vault");
    let id = id.trim();
    drill.run(&format!("vault encryption set --key-file key --key {id} vault"));
    drill.fill(&key_file());
    drill.run("rewrap --retire --key-file key vault");
    let (header, material) = (drill.header(), Material::leak(&drill.file("keystore.hush"), id));
    let opened = material.epoch_keys(&header);
    assert_eq!((opened.len(), header.epochs.len()), (1, 1));
    assert_eq!(drill.on_disk().opened_by(header.vault, &opened[0]), drill.files.len());

    drill.run(&format!("key rotate --key-file key vault {id}"));
    drill.fill_directory(&key_file(), "after", 3);
    drill.run_with_kills("rewrap --key-file key vault");
    drill.run("rewrap --retire --key-file key vault");

    drill.assert_all_open("--key-file key");
    assert!(material.epoch_keys(&drill.header()).is_empty());
    assert_eq!(drill.on_disk().opened_by(header.vault, &opened[0]), 0);
}
