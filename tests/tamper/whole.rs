//! Everything that can be done to the files of a small vault, one after another: each byte changed, each length cut to, each pair
//! exchanged, each replaced by each, deleted, put back as it was, mixed with another vault's. Read in this process.
//!
//! What always holds: what is read is what was written there, at one time if there were several, or an error; or the vault does not open.
//! What is missing is reported. What is documented as undetected is counted under its own name.
//!
//! `HUSHFS_TAMPER=whole` leaves nothing out; without it some bytes in the middle of long files are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
};

use hushfs::{
    format::audit::STATE_SIZE,
    fs::{Caller, Fs, FsError, NameIn, ROOT},
    vault::{
        home::OpenVault,
        rewrap::{Scope, Target, rewrap},
    },
};
use rustix::fs::{CWD, RenameFlags, XattrFlags};
use tempfile::TempDir;

use crate::{
    sample::{BLOCK, LONG_NAME, copy},
    support::{HUSHFS, Rng},
    survey::{
        ATTRIBUTES_EXCHANGED, EMPTIED, LINKS_EXCHANGED, OTHER_NAME_OF_SEVERAL, Outcome, Seen, Tree, What, judge, open,
        survey,
    },
    unmounted::with_fs,
};

/// Outcomes by what was done.
#[derive(Default)]
struct Table(BTreeMap<(String, Outcome), usize>);

impl Table {
    fn count(&mut self, what: &str, outcome: Outcome) {
        *self.0.entry((what.to_owned(), outcome)).or_default() += 1;
    }

    fn print(&self) {
        for ((what, outcome), count) in &self.0 {
            eprintln!("{what:<44} {count:>6}  {outcome}");
        }
    }

    /// Prints the table; fails where something is undetected that is not in the list.
    fn check(&self, documented: &[Outcome]) {
        self.print();
        for (what, outcome) in self.0.keys() {
            let is_documented = matches!(
                outcome,
                Outcome::Shut | Outcome::Correct | Outcome::Refused | Outcome::MissingReported
            ) || documented.contains(outcome);
            assert!(is_documented, "{what}: {outcome}");
        }
    }
}

/// A small vault with one of everything.
struct Small {
    dir: TempDir,
    /// What it shows.
    tree: Tree,
}

impl Small {
    fn new(seed: u64) -> Self {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("key"), [7; 32]).unwrap();
        let init = Command::new(HUSHFS)
            .args(["init", "--key-file", "key", "vault"])
            .current_dir(dir.path())
            .output();
        let init = init.unwrap();
        assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
        let vault = dir.path().join("vault");
        with_fs(open(&vault).unwrap(), |fs, caller| plant(fs, caller, seed));
        let mut small = Small { dir, tree: Tree::new() };
        small.look();
        copy(&vault, &small.master());
        small
    }

    /// Takes what the vault shows now as what it shall show.
    fn look(&mut self) {
        self.tree = survey(&self.vault(), &Tree::new()).unwrap();
        assert!(self.tree.len() > 15, "{}", self.tree.len());
        for (path, seen) in &self.tree {
            let whole = match &seen.what {
                What::File(blocks) => blocks.iter().all(Option::is_some),
                What::Link(target) => target.is_some(),
                What::Directory => true,
                What::Refused => false,
            };
            assert!(
                whole && seen.attributes.is_some(),
                "{:?}",
                String::from_utf8_lossy(path)
            );
        }
    }

    fn vault(&self) -> PathBuf {
        self.dir.path().join("vault")
    }

    fn master(&self) -> PathBuf {
        self.dir.path().join("master")
    }

    fn restore(&self) {
        fs::remove_dir_all(self.vault()).unwrap();
        copy(&self.master(), &self.vault());
    }

    /// Looks at the vault, and counts what it finds.
    fn judge(&self, table: &mut Table, what: &str, detail: &str, versions: &[&Tree]) {
        let outcomes = match survey(&self.vault(), versions[0]) {
            Err(_) => BTreeSet::from([Outcome::Shut]),
            Ok(seen) => {
                judge(&self.vault(), &seen, versions).unwrap_or_else(|wrong| panic!("{what}: {detail}: {wrong}"))
            }
        };
        // The gravest alone: that the rest of the vault is as it was is no news.
        table.count(what, *outcomes.last().unwrap());
    }

    /// Returns all that is on disk, below the vault: path and what kind of file it is.
    fn entries(&self) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        collect(&self.vault(), &mut found);
        found.sort();
        found
    }
}

/// Says what kind of file of hushfs's an entry is.
fn kind(path: &Path) -> String {
    let meta = fs::symlink_metadata(path).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let kind = match name {
        "vault.hush" | "keystore.hush" | "dir.hush" => name,
        _ if name.starts_with("journal-") => "journal",
        _ if name.ends_with(".long.hush") => "long name",
        _ if name.ends_with(".link.hush") => "link file",
        _ if name.ends_with(".hush") => "header",
        _ if meta.is_dir() => "directory",
        _ if meta.is_symlink() => "link",
        _ => "data file",
    };
    kind.to_owned()
}

fn collect(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        found.push((path.clone(), kind(&path)));
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            collect(&path, found);
        }
    }
}

/// Writes a file anew.
fn write(fs: &Fs, parent: u64, name: &str, bytes: &[u8], caller: Caller) -> u64 {
    let at = NameIn {
        parent,
        name: name.as_bytes(),
    };
    let id = fs.create(at, 0o644, caller).unwrap().node.id;
    if !bytes.is_empty() {
        fs.write(id, 0, bytes).unwrap();
    }
    fs.release(id);
    id
}

fn plant(fs: &Fs, caller: Caller, seed: u64) {
    let mut rng = Rng::new(seed);
    let at = |parent, name: &'static str| NameIn {
        parent,
        name: name.as_bytes(),
    };
    let make = |name| fs.make_directory(at(ROOT, name), 0o755, caller).unwrap().node.id;
    let (dir, other) = (make("dir"), make("other"));
    for name in ["renamed", "renamed-too"] {
        let id = make("before");
        write(fs, id, "inner", &rng.bytes(40), caller);
        fs.clear(fs.rename(at(ROOT, "before"), at(ROOT, name), 0).unwrap());
    }
    for (parent, name, len) in [
        (ROOT, "one", 100),
        (ROOT, "two", 100),
        (ROOT, "blocks", BLOCK + 50),
        (ROOT, "empty", 0),
        (ROOT, LONG_NAME, 60),
        (dir, "inner", 70),
        (other, "inner", 70),
    ] {
        let id = write(fs, parent, name, &rng.bytes(len), caller);
        if name == "one" || name == "two" {
            fs.set_xattr(id, b"user.one", &rng.bytes(10), 0, caller).unwrap();
        }
        if name == "one" {
            fs.set_xattr(id, b"user.two", &rng.bytes(10), 0, caller).unwrap();
        }
    }
    let linked = write(fs, ROOT, "linked", &rng.bytes(90), caller);
    fs.link(linked, at(ROOT, "linked-too")).unwrap();
    fs.link(linked, at(dir, "linked")).unwrap();
    let sparse = write(fs, ROOT, "sparse", &rng.bytes(20), caller);
    fs.open(sparse, true).unwrap();
    fs.write(sparse, 2 * BLOCK as u64, &rng.bytes(20)).unwrap();
    fs.release(sparse);
    let target = |rng: &mut Rng, len| rng.bytes(len).iter().map(|byte| b'a' + byte % 26).collect::<Vec<_>>();
    for (name, len) in [("link", 5), ("link-too", 6), ("long-link", 4000)] {
        fs.make_link(at(ROOT, name), &target(&mut rng, len), caller).unwrap();
    }
}

/// Offsets of a file that are looked at: all, or without `HUSHFS_TAMPER=whole` all at its ends and around the preamble, and some between.
fn offsets(size: usize) -> impl Iterator<Item = usize> {
    let is_whole = is_whole();
    (0..size).filter(move |&i| is_whole || i < 320 || i + 40 > size || i % 61 == 0)
}

fn is_whole() -> bool {
    std::env::var("HUSHFS_TAMPER").is_ok_and(|value| value == "whole")
}

#[test]
fn each_byte_of_each_file() {
    let small = Small::new(1);
    let mut table = Table::default();
    for (path, kind) in small.entries() {
        if !fs::symlink_metadata(&path).unwrap().is_file() {
            continue;
        }
        let original = fs::read(&path).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        for i in offsets(original.len()) {
            let changes: &[u8] = if is_whole() {
                &[1 << (i % 8), 0xff]
            } else {
                &[1 << (i % 8)]
            };
            for change in changes {
                file.write_all_at(&[original[i] ^ change], i as u64).unwrap();
                small.judge(
                    &mut table,
                    &format!("a byte of: {kind}"),
                    &format!("{path:?}: byte {i}"),
                    &[&small.tree],
                );
            }
            file.write_all_at(&original[i..=i], i as u64).unwrap();
        }
    }
    table.check(&[]);
}

#[test]
fn each_length_of_each_file() {
    let small = Small::new(2);
    let mut table = Table::default();
    for (path, kind) in small.entries() {
        if !fs::symlink_metadata(&path).unwrap().is_file() {
            continue;
        }
        let original = fs::read(&path).unwrap();
        let longer = [original.len() + 1, original.len() + 4124];
        for len in offsets(original.len()).chain(longer) {
            fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(len as u64)
                .unwrap();
            let what = match len {
                0 => format!("emptied: {kind}"),
                len if len > original.len() => format!("extended: {kind}"),
                _ => format!("cut: {kind}"),
            };
            small.judge(&mut table, &what, &format!("{path:?} to {len}"), &[&small.tree]);
            fs::write(&path, &original).unwrap();
        }
    }
    table.check(&[EMPTIED]);
}

#[test]
fn each_character_of_each_link_and_each_byte_of_each_attribute() {
    let small = Small::new(3);
    let mut table = Table::default();
    for (path, kind) in small.entries() {
        if kind == "link" {
            let target = fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes();
            let put = |target: &[u8]| {
                let _ = fs::remove_file(&path);
                rustix::fs::symlinkat(target, CWD, &path).unwrap();
            };
            for i in 0..target.len() {
                let mut changed = target.clone();
                changed[i] = if changed[i] == b'A' { b'B' } else { b'A' };
                put(&changed);
                small.judge(
                    &mut table,
                    "a character of: link",
                    &format!("{path:?}: {i}"),
                    &[&small.tree],
                );
                if i > 0 {
                    put(&target[..i]);
                    small.judge(&mut table, "cut: link", &format!("{path:?} to {i}"), &[&small.tree]);
                }
            }
            put(&target);
        }
        for (name, value) in attributes(&path) {
            for i in 0..value.len() {
                let mut changed = value.clone();
                changed[i] ^= 1 << (i % 8);
                for (what, bytes) in [("a byte of: attribute", &changed[..]), ("cut: attribute", &value[..i])] {
                    rustix::fs::setxattr(&path, &*name, bytes, XattrFlags::empty()).unwrap();
                    small.judge(&mut table, what, &format!("{path:?}: {name} at {i}"), &[&small.tree]);
                }
            }
            rustix::fs::setxattr(&path, &*name, &value, XattrFlags::empty()).unwrap();
        }
    }
    table.check(&[]);
}

fn attributes(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..len]
        .split(|&byte| byte == 0)
        .filter(|name| name.starts_with(b"user.hush."));
    names
        .map(|name| {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut value = vec![0; 4096];
            let len = rustix::fs::lgetxattr(path, &*name, &mut value[..]).unwrap();
            (name, value[..len].to_vec())
        })
        .collect()
}

/// What exchanges do that `verify` cannot see: docs/SECURITY.md has them.
const OF_EXCHANGES: [Outcome; 4] = [LINKS_EXCHANGED, ATTRIBUTES_EXCHANGED, EMPTIED, OTHER_NAME_OF_SEVERAL];

#[test]
fn each_pair_exchanged() {
    let small = Small::new(4);
    let mut table = Table::default();
    let entries = small.entries();
    for (i, (one, kind)) in entries.iter().enumerate() {
        for (other, other_kind) in &entries[i + 1..] {
            if other.starts_with(one) {
                continue;
            }
            let exchange = || rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
            exchange();
            small.judge(
                &mut table,
                &format!("exchanged: {kind}, {other_kind}"),
                &format!("{one:?} {other:?}"),
                &[&small.tree],
            );
            exchange();
        }
    }
    table.check(&OF_EXCHANGES);
}

#[test]
fn each_pair_of_attributes_exchanged() {
    let small = Small::new(5);
    let mut table = Table::default();
    let all: Vec<_> = small
        .entries()
        .into_iter()
        .flat_map(|(path, _)| {
            attributes(&path)
                .into_iter()
                .map(move |(name, value)| (path.clone(), name, value))
        })
        .collect();
    assert_eq!(all.len(), 3);
    let set = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
    };
    for (one, name, value) in &all {
        for (other, other_name, other_value) in &all {
            set(one, name, other_value);
            set(other, other_name, value);
            let what = if name == other_name {
                "exchanged: same attribute"
            } else {
                "exchanged: two attributes"
            };
            small.judge(&mut table, what, &format!("{one:?} {other:?}"), &[&small.tree]);
            set(one, name, value);
            set(other, other_name, other_value);
        }
    }
    table.check(&[ATTRIBUTES_EXCHANGED]);
}

/// Puts a copy of an entry where another is, or nothing.
fn replace(from: Option<&Path>, to: &Path) {
    match fs::symlink_metadata(to) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(to).unwrap(),
        Ok(_) => fs::remove_file(to).unwrap(),
        Err(_) => {}
    }
    if let Some(from) = from {
        copy(from, to);
    }
}

#[test]
fn each_replaced_by_each_and_deleted() {
    let small = Small::new(6);
    let mut table = Table::default();
    let entries = small.entries();
    let in_master = |path: &Path| small.master().join(path.strip_prefix(small.vault()).unwrap());
    for (to, kind) in &entries {
        for (from, other_kind) in &entries {
            if to.starts_with(from) || from.starts_with(to) {
                continue;
            }
            replace(Some(&in_master(from)), to);
            let what = format!("replaced: {kind}, by {other_kind}");
            small.judge(&mut table, &what, &format!("{to:?} by {from:?}"), &[&small.tree]);
        }
        replace(None, to);
        small.judge(
            &mut table,
            &format!("deleted: {kind}"),
            &format!("{to:?}"),
            &[&small.tree],
        );
        replace(Some(&in_master(to)), to);
    }
    // A file without content needs no header, and a link no other file: nothing tells that there was one.
    table.check(&[&OF_EXCHANGES[..], &[Outcome::Missing]].concat());
    for (what, outcome) in table.0.keys().filter(|(_, outcome)| *outcome == Outcome::Missing) {
        let is_alone = ["data file", "link", "directory", "long name"].iter().any(|kind| {
            what.starts_with(&format!("deleted: {kind}")) || what.starts_with(&format!("replaced: {kind}"))
        });
        assert!(is_alone, "{what}: {outcome}");
    }
}

/// A link costs nobody a key, and shows as one file under two names: the second must not read as what the first was opened as.
#[test]
fn each_file_linked_to_each_name() {
    let small = Small::new(12);
    let mut table = Table::default();
    let entries = small.entries();
    let files = || entries.iter().filter(|(_, kind)| kind == "data file");
    for (from, _) in files() {
        for (to, kind) in files().filter(|(to, _)| to != from) {
            let aside = small.dir.path().join("aside");
            fs::rename(to, &aside).unwrap();
            fs::hard_link(from, to).unwrap();
            let detail = format!("{to:?} is {from:?}");
            small.judge(&mut table, &format!("linked: {kind}"), &detail, &[&small.tree]);
            fs::remove_file(to).unwrap();
            fs::rename(&aside, to).unwrap();
        }
    }
    table.check(&[ATTRIBUTES_EXCHANGED, EMPTIED, OTHER_NAME_OF_SEVERAL]);
}

/// What hushfs writes to a file that someone has linked does not make the link one of its own.
#[test]
fn a_file_is_linked_written_to_and_renamed() {
    let mut small = Small::new(13);
    let entries = small.entries();
    let data = |path: &&(PathBuf, String)| path.1 == "data file" && path.0.parent() == Some(&*small.vault());
    let ino = |fs: &Fs, name: &str| fs.look_up(ROOT, name.as_bytes()).unwrap().node.id;
    let mut found = (0, 0);
    with_fs(open(&small.vault()).unwrap(), |fs, _| {
        found = (ino(fs, "one"), ino(fs, "two"));
    });
    let on_disk = |wanted: u64| {
        let is_it = |path: &&(PathBuf, String)| fs::metadata(&path.0).unwrap().ino() == wanted;
        entries.iter().filter(data).find(is_it).unwrap().0.clone()
    };
    let (one, two) = (on_disk(found.0), on_disk(found.1));
    fs::remove_file(&two).unwrap();
    fs::hard_link(one, &two).unwrap();
    let at = |name: &'static str| NameIn {
        parent: ROOT,
        name: name.as_bytes(),
    };
    let is_refused = |result: Result<(), FsError>| {
        let error = result.unwrap_err();
        assert_eq!(error.errno(), libc::EIO, "{error}");
    };
    with_fs(open(&small.vault()).unwrap(), |fs, _| {
        let id = ino(fs, "one");
        fs.open(id, true).unwrap();
        fs.write(id, 0, b"written by hushfs").unwrap();
        fs.release(id);
        is_refused(fs.open(ino(fs, "two"), false));
        is_refused(fs.rename(at("two"), at("three"), 0).map(drop));
        fs.clear(fs.rename(at("one"), at("four"), 0).unwrap());
    });
    with_fs(open(&small.vault()).unwrap(), |fs, _| {
        let id = ino(fs, "four");
        fs.open(id, false).unwrap();
        fs.clear(fs.rename(at("four"), at("five"), 0).unwrap());
        is_refused(fs.open(ino(fs, "two"), false));
        fs.clear(fs.unlink(at("two")).unwrap());
        fs.release(id);
    });
    small.look();
    assert!(small.tree.contains_key(&b"five"[..]) && !small.tree.contains_key(&b"two"[..]));
}

/// Changes much of what [`plant`] made.
fn change(open: OpenVault) {
    let mut open = open;
    open.rotate(1000).unwrap();
    let root = open.home.open_dir().unwrap();
    let scopes = [Scope::everything(&root).unwrap()];
    rewrap(&open.vault, &scopes, Target::OwnKey, &mut |_| Ok(())).unwrap();
    with_fs(open, |fs, caller| {
        let mut rng = Rng::new(99);
        let find = |name: &str| fs.look_up(ROOT, name.as_bytes()).unwrap().node.id;
        for (name, offset, len) in [
            ("one", 0, 100),
            ("blocks", 0, 10),
            ("sparse", 3 * BLOCK, 30),
            ("linked", 5, 20),
        ] {
            let id = find(name);
            fs.open(id, true).unwrap();
            fs.write(id, offset as u64, &rng.bytes(len)).unwrap();
            fs.release(id);
        }
        fs.set_xattr(find("one"), b"user.one", &rng.bytes(12), 0, caller)
            .unwrap();
        let at = |name: &'static str| NameIn {
            parent: ROOT,
            name: name.as_bytes(),
        };
        fs.clear(fs.rename(at("two"), at("three"), 0).unwrap());
        fs.clear(fs.rename(at("renamed"), at("renamed-again"), 0).unwrap());
        fs.clear(fs.unlink(at("link")).unwrap());
        fs.make_link(at("link"), b"elsewhere", caller).unwrap();
    });
}

/// Returns each entry's path below a directory.
fn below(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = Vec::new();
    collect(root, &mut found);
    found
        .into_iter()
        .map(|(path, _)| path.strip_prefix(root).unwrap().to_owned())
        .collect()
}

/// Where nothing but whole files of two times meet: what is read is of the one or of the other.
#[test]
fn old_files_among_new_ones() {
    let mut small = Small::new(7);
    let before = small.tree.clone();
    let old = small.dir.path().join("old");
    copy(&small.vault(), &old);
    change(open(&small.vault()).unwrap());
    small.look();
    let after = small.tree.clone();
    fs::remove_dir_all(small.master()).unwrap();
    copy(&small.vault(), &small.master());

    let versions = [&after, &before];
    let mut table = Table::default();
    let paths: Vec<PathBuf> = below(&old).union(&below(&small.master())).cloned().collect();
    let is_directory = |path: &Path| [&old, &small.master()].iter().any(|root| root.join(path).is_dir());
    let put = |path: &Path| {
        let from = old.join(path);
        let to = small.vault().join(path);
        if to.parent().unwrap().is_dir() {
            replace(fs::symlink_metadata(&from).is_ok().then_some(&*from), &to);
        }
    };
    let is_header = |path: &Path| path.extension().is_some_and(|extension| extension == "hush");
    for path in &paths {
        put(path);
        small.judge(&mut table, "one old file", &format!("{path:?}"), &versions);
        // Each other file of the directory with it, of which one is its header.
        for other in paths
            .iter()
            .filter(|other| is_header(other) && other.parent() == path.parent())
        {
            small.restore();
            put(path);
            put(other);
            small.judge(
                &mut table,
                "an old file and another",
                &format!("{path:?} {other:?}"),
                &versions,
            );
        }
        small.restore();
    }
    let mut rng = Rng::new(5);
    let files: Vec<_> = paths.iter().filter(|path| !is_directory(path)).collect();
    for round in 0..if is_whole() { 2000 } else { 100 } {
        let chosen: Vec<_> = files.iter().filter(|_| rng.next().is_multiple_of(2)).collect();
        chosen.iter().for_each(|path| put(path));
        small.judge(
            &mut table,
            "some old files",
            &format!("round {round}: {chosen:?}"),
            &versions,
        );
        small.restore();
    }
    // The whole of the old vault, which nothing in it can tell.
    fs::remove_dir_all(small.vault()).unwrap();
    copy(&old, &small.vault());
    small.judge(&mut table, "the old vault", "", &[&before]);
    table.check(&[&OF_EXCHANGES[..], &[Outcome::Missing]].concat());
}

/// A journal says what changed before a crash. Put back later it says nothing: not in its own inode, nor as another file.
#[test]
fn an_old_journal() {
    let mut small = Small::new(11);
    let crash = small.dir.path().join("crash");
    let journals = |vault: &Path| {
        let entries = fs::read_dir(vault).unwrap().map(|entry| entry.unwrap().path());
        entries
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("journal-"))
            .collect::<Vec<_>>()
    };
    with_fs(open(&small.vault()).unwrap(), |fs, _| {
        let id = fs.look_up(ROOT, b"blocks").unwrap().node.id;
        fs.open(id, true).unwrap();
        for round in 0..3 {
            fs.write(id, 0, &[round; 100]).unwrap();
            fs.sync_file(id, true).unwrap();
        }
        copy(&small.vault(), &crash);
        fs.write(id, 0, &[9; 200]).unwrap();
        fs.release(id);
    });
    let old = journals(&crash);
    assert!(!old.is_empty(), "what is written over durable blocks is in a journal");
    small.look();
    let mut table = Table::default();
    for journal in old {
        let at = small.vault().join(journal.file_name().unwrap());
        replace(Some(&journal), &at);
        small.judge(&mut table, "an old journal, read", "", &[&small.tree]);
        with_fs(open(&small.vault()).unwrap(), |_, _| ());
        small.judge(&mut table, "an old journal, mounted", "", &[&small.tree]);
        replace(None, &at);
    }
    table.check(&[]);
}

#[test]
fn files_of_another_vault() {
    let (small, other) = (Small::new(8), Small::new(15));
    let mut table = Table::default();
    let in_master = |path: &Path| small.master().join(path.strip_prefix(small.vault()).unwrap());
    for (from, other_kind) in other.entries() {
        // Beside what is there.
        let beside = small.vault().join(from.file_name().unwrap());
        if fs::symlink_metadata(&beside).is_err() {
            replace(Some(&from), &beside);
            let what = format!("another vault's {other_kind} added");
            small.judge(&mut table, &what, &format!("{from:?}"), &[&small.tree]);
            replace(None, &beside);
        }
        for (to, kind) in small.entries() {
            replace(Some(&from), &to);
            let what = format!("replaced: {kind}, by another vault's {other_kind}");
            small.judge(&mut table, &what, &format!("{to:?} by {from:?}"), &[&small.tree]);
            replace(Some(&in_master(&to)), &to);
        }
    }
    // An empty file has nothing that says whose it is, and no file says which attributes it has.
    table.check(&[ATTRIBUTES_EXCHANGED, EMPTIED, Outcome::Missing]);
    let seen: Seen = other.tree[&b"one"[..]].clone();
    assert_ne!(small.tree[&b"one"[..]], seen, "the vaults differ");
}

#[test]
fn each_byte_of_the_audit_log() {
    let small = Small::new(10);
    let mut vault = open(&small.vault()).unwrap();
    let keystore = vault.keys_mut().keystore_mut().unwrap();
    keystore.audit_on(false, 1).unwrap();
    for _ in 0..2 {
        drop(open(&small.vault()).unwrap());
    }
    let vault = open(&small.vault()).unwrap();
    let keystore = vault.keys().keystore().unwrap();
    let (log, copy) = (small.vault().join("audit.hush"), small.dir.path().join("copy"));
    let good = fs::read(&log).unwrap();
    let is_good = |file: &Path, bytes: &[u8]| {
        fs::write(file, bytes).unwrap();
        let verified = keystore.verify_log((file == copy).then_some(file));
        verified.is_ok_and(|verified| {
            verified.is_some_and(|verified| verified.problems.is_empty() && verified.besides.is_none())
        })
    };
    assert!(is_good(&log, &good) && is_good(&copy, &good));
    let step = if is_whole() { 1 } else { 7 };
    for i in (0..good.len()).step_by(step) {
        let mut changed = good.clone();
        changed[i] ^= 1 << (i % 7);
        assert!(!is_good(&log, &changed), "byte {i}");
        // Without its end the last line is one that was never finished.
        assert!(i == good.len() - 1 || !is_good(&copy, &changed), "byte {i} of a copy");
    }
    // Where its end was, the keystore and the state know; of a copy nobody does, but that it had a first record.
    for i in 0..good.len() {
        assert!(!is_good(&log, &good[..i]), "cut to {i}");
    }
    assert!(!is_good(&copy, b""));
    fs::write(&log, &good).unwrap();
    // The state beside it: each byte of the one that is there keeps the keystore from being used until it is put right.
    let state = small.vault().join("audit-state.hush");
    let good = fs::read(&state).unwrap();
    let place = [0, 4096].into_iter().find(|&at| good.get(at) == Some(&b'H')).unwrap();
    for i in place..place + STATE_SIZE {
        let mut changed = good.clone();
        changed[i] ^= 1 << (i % 8);
        fs::write(&state, &changed).unwrap();
        assert!(open(&small.vault()).is_err(), "byte {i} of the state");
    }
    fs::write(&state, &good).unwrap();
    open(&small.vault()).unwrap();
}
