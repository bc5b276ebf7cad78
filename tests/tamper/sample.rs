//! A sealed vault with one of everything, kept as a master copy that each case damages anew, and the judge of what it reads as.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind},
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
    process::Command,
};

use hushfs::{
    backing::Dir,
    fs::{Fs, FsError, FsOptions, ROOT},
    ids::FileId,
    keystore::{KeyFile, SlotChoice, Unlock},
    vault::{
        DirectoryKeys, Vault,
        home::{Lock, OpenError, OpenVault, VaultHome},
    },
};
use rustix::fs::XattrFlags;
use zeroize::Zeroizing;

use crate::support::{Bench, HUSHFS, Rng};

/// Plaintext bytes of a block.
pub const BLOCK: usize = 4096;
/// Bytes of a block in a data file.
pub const STRIDE: u64 = 4124;
/// Bytes of the preamble.
pub const PREAMBLE: u64 = 256;

/// A name of more than 160 bytes, which does not fit on disk.
pub const LONG_NAME: &str = concat!(
    "a name that is much longer than what fits into an entry of the backing directory once it is sealed and encoded, ",
    "so that hushfs keeps it in a file of its own beside the entry, which someone may change like any other"
);

/// What is at a path of the view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plain {
    Directory,
    File(Vec<u8>),
    Link(PathBuf),
}

/// The sealed vault.
pub struct Sample {
    pub bench: Bench,
    /// All that is in the view, by path.
    pub tree: BTreeMap<String, Plain>,
    /// The backing filesystem has extended attributes.
    pub xattrs: bool,
}

impl Sample {
    /// Makes the vault, seals it by an unmount, and keeps a copy.
    pub fn new() -> Self {
        let mut bench = Bench::new();
        let key_file = key_file(&bench);
        fs::write(&key_file, [7; 64]).unwrap();
        // `--passfile` belongs to the subcommand of the subcommand.
        let added = Command::new(HUSHFS)
            .args(["key", "add", "--passfile"])
            .arg(bench.passfile())
            .arg("--new-key-file")
            .arg(&key_file)
            .arg(bench.vault())
            .output()
            .unwrap();
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        bench.mount(&[]);
        let tree = plant(&bench.mnt());
        let xattrs = [("user.one", "first"), ("user.two", "other")]
            .iter()
            .all(|(name, value)| {
                rustix::fs::setxattr(bench.mnt().join("one"), *name, value.as_bytes(), XattrFlags::empty()).is_ok()
            });
        if !xattrs {
            eprintln!("SKIPPED: attributes: the backing filesystem has none");
        }
        bench.unmount();
        let sample = Sample { bench, tree, xattrs };
        copy(&sample.vault(), &sample.master());
        sample
    }

    /// The vault directory.
    pub fn vault(&self) -> PathBuf {
        self.bench.vault()
    }

    fn master(&self) -> PathBuf {
        self.bench.plain().join("master")
    }

    /// Puts the vault back as it was sealed.
    pub fn restore(&self) {
        fs::remove_dir_all(self.vault()).unwrap();
        copy(&self.master(), &self.vault());
    }

    /// Opens the vault in this process.
    pub fn open(&self) -> OpenVault {
        open(&self.vault(), &key_file(&self.bench)).unwrap()
    }

    /// A filesystem on the vault for reading, without a mount.
    pub fn view(&self) -> Fs {
        let (vault, home) = self.open().into_vault();
        let options = FsOptions {
            read_only: true,
            shared: false,
            acl: true,
            own_uid: 0,
            own_gid: 0,
            cached_descriptors: 100,
            journal: true,
        };
        Fs::new(vault, home.open_dir().unwrap(), options).unwrap()
    }

    /// Returns where a path of the view is on disk. Asked of the sealed vault, before it is damaged.
    pub fn disk(&self, path: &str) -> PathBuf {
        let (vault, _home) = self.open().into_vault();
        let mut at = self.vault();
        let mut keys = vault.root_keys();
        let mut names = path.split('/').peekable();
        while let Some(name) = names.next() {
            at.push(keys.seal_name(name.as_bytes()).entry);
            if names.peek().is_some() {
                keys = enter(&vault, &at, &keys, name);
            }
        }
        at
    }

    /// Returns where the header of a file is.
    pub fn header(&self, path: &str) -> PathBuf {
        header_of(&self.disk(path))
    }
}

/// Returns where the header of a data file is.
pub fn header_of(data: &Path) -> PathBuf {
    let bytes = fs::read(data).unwrap();
    let id = FileId(bytes[16..32].try_into().unwrap());
    data.with_file_name(format!("{}.hush", id.to_b64()))
}

fn enter(vault: &Vault, disk: &Path, parent: &DirectoryKeys, name: &str) -> DirectoryKeys {
    vault
        .load_directory(&Dir::open(disk).unwrap(), parent.id, name.as_bytes())
        .unwrap()
}

pub fn key_file(bench: &Bench) -> PathBuf {
    bench.plain().join("key-file")
}

/// Opens a vault with a key file, which costs nothing.
pub fn open(vault: &Path, key_file: &Path) -> Result<OpenVault, OpenError> {
    let key = Zeroizing::new(fs::read(key_file).unwrap());
    let unlock = Unlock::KeyFile(KeyFile::new(key).unwrap());
    VaultHome::enter(vault, Lock::Unlocked)?.open(&unlock, &SlotChoice::Any)
}

pub fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// Fills a view.
fn plant(mnt: &Path) -> BTreeMap<String, Plain> {
    let mut rng = Rng::new(4711);
    let mut tree = BTreeMap::new();
    for dir in ["dir", "dir/sub", "other"] {
        fs::create_dir(mnt.join(dir)).unwrap();
        tree.insert(dir.to_owned(), Plain::Directory);
    }
    // These two have a header of their own.
    for dir in ["renamed", "also-renamed"] {
        fs::create_dir(mnt.join("before")).unwrap();
        fs::rename(mnt.join("before"), mnt.join(dir)).unwrap();
        tree.insert(dir.to_owned(), Plain::Directory);
    }
    for (path, len) in [
        ("one", 100),
        ("blocks", 3 * BLOCK + 1000),
        ("blocks-too", 3 * BLOCK + 1000),
        ("odd", 5000),
        ("empty", 0),
        ("dir/inner", 6000),
        ("dir/inner-too", 6000),
        ("dir/sub/deep", 300),
        ("renamed/inner", 3000),
        ("also-renamed/inner", 3000),
        (LONG_NAME, 400),
        ("linked", 2000),
    ] {
        let content = rng.bytes(len);
        fs::write(mnt.join(path), &content).unwrap();
        tree.insert(path.to_owned(), Plain::File(content));
    }
    for name in ["linked-here", "other/linked-there"] {
        fs::hard_link(mnt.join("linked"), mnt.join(name)).unwrap();
        tree.insert(name.to_owned(), tree["linked"].clone());
    }
    let mut content = vec![0; 6 * BLOCK];
    for block in [0, 4] {
        content[block * BLOCK..][..BLOCK].copy_from_slice(&rng.bytes(BLOCK));
    }
    let sparse = fs::File::create(mnt.join("sparse")).unwrap();
    sparse.set_len(content.len() as u64).unwrap();
    for block in [0, 4] {
        let at = block * BLOCK;
        sparse.write_all_at(&content[at..at + BLOCK], at as u64).unwrap();
    }
    tree.insert("sparse".to_owned(), Plain::File(content));
    for (path, target) in [
        ("link", "one".to_owned()),
        ("link-too", "odd".to_owned()),
        ("long-link", "t".repeat(4000)),
    ] {
        std::os::unix::fs::symlink(&target, mnt.join(path)).unwrap();
        tree.insert(path.to_owned(), Plain::Link(target.into()));
    }
    tree
}

/// What reading a path gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What was written.
    Original,
    /// EIO.
    Refused,
    /// No such entry.
    Gone,
    /// What nobody wrote there.
    Wrong(String),
}

fn failed(error: &io::Error) -> Outcome {
    match error.raw_os_error() {
        Some(libc::EIO) => Outcome::Refused,
        _ if error.kind() == ErrorKind::NotFound => Outcome::Gone,
        _ => Outcome::Wrong(error.to_string()),
    }
}

/// Reads a path of a mounted view, and judges it. Each block is read alone too: one that is not original must be refused.
pub fn judge(mnt: &Path, path: &str, plain: &Plain) -> Outcome {
    let at = mnt.join(path);
    let meta = match fs::symlink_metadata(&at) {
        Ok(meta) => meta,
        Err(error) => return failed(&error),
    };
    match plain {
        Plain::Directory => match fs::read_dir(&at).and_then(|entries| entries.collect::<io::Result<Vec<_>>>()) {
            Ok(_) => Outcome::Original,
            Err(error) => failed(&error),
        },
        Plain::Link(target) => match fs::read_link(&at) {
            Ok(found) if found == *target => Outcome::Original,
            Ok(found) => Outcome::Wrong(found.display().to_string()),
            Err(error) => failed(&error),
        },
        Plain::File(content) => {
            let blocks = if meta.is_file() {
                judge_blocks(&at, content)
            } else {
                Ok(())
            };
            match (fs::read(&at), blocks) {
                (_, Err(wrong)) => Outcome::Wrong(wrong),
                (Ok(found), _) if found == *content => Outcome::Original,
                (Ok(found), _) => Outcome::Wrong(format!("{} bytes, {}", found.len(), difference(&found, content))),
                (Err(error), _) => failed(&error),
            }
        }
    }
}

fn judge_blocks(at: &Path, content: &[u8]) -> Result<(), String> {
    let Ok(file) = fs::File::open(at) else { return Ok(()) };
    for (i, expected) in content.chunks(BLOCK).enumerate() {
        let mut found = vec![0; expected.len()];
        match file.read_at(&mut found, (i * BLOCK) as u64) {
            Ok(len) if found[..len] == *expected => {}
            Ok(len) => return Err(format!("block {i}: {len} other bytes")),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
            Err(error) => return Err(format!("block {i}: {error}")),
        }
    }
    Ok(())
}

pub fn difference(found: &[u8], content: &[u8]) -> String {
    match found.iter().zip(content).position(|(one, other)| one != other) {
        Some(at) => format!("other from {at} on"),
        None => "other length".to_owned(),
    }
}

/// Reads a file of a view in this process, whole.
pub fn read(view: &Fs, path: &str) -> Result<Vec<u8>, FsError> {
    let id = find(view, path)?;
    view.open(id, false)?;
    let mut content = Vec::new();
    let result = loop {
        let mut buffer = Vec::new();
        match view.read(id, content.len() as u64, BLOCK, &mut buffer) {
            Ok(range) if range.is_empty() => break Ok(()),
            Ok(range) => content.extend_from_slice(&buffer[range]),
            Err(error) => break Err(error),
        }
    };
    view.release(id);
    result.map(|()| content)
}

pub fn find(view: &Fs, path: &str) -> Result<u64, FsError> {
    Path::new(path)
        .iter()
        .try_fold(ROOT, |at, name| Ok(view.look_up(at, name.as_bytes())?.node.id))
}
