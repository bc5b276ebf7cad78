//! `fsck`, `fsck --repair` and `verify`: each kind of finding is made, named, mended where there is one answer, and the data compared.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::Duration,
};

use hushfs::{
    crypto::seal::SealKey,
    format::preamble::{Places, Preamble, State, UnverifiedPreamble},
    fs::{Caller, Fs, NameIn, ROOT},
    keystore::{KeyFile, SlotChoice, Unlock},
    units::PlainSize,
    vault::home::{Lock, OpenVault, VaultHome},
};
use rustix::{
    io::ioctl_fionread,
    process::{Signal, kill_process},
};
use serde_json::Value;

use super::{Given, Place, json_lines, unmounted, write};

const BLOCK: usize = 4096;

const PREAMBLE: usize = 256;

const STRIDE: usize = BLOCK + 28;

/// A vault with something of everything.
struct Sample {
    place: Place,
    plain: BTreeMap<String, Vec<u8>>,
}

fn long_name() -> String {
    "long-".repeat(48)
}

fn open(vault: &Path) -> OpenVault {
    let key = KeyFile::new(vec![7; 32].into()).unwrap();
    let home = VaultHome::enter(vault, Lock::Unlocked).unwrap();
    home.open(&Unlock::KeyFile(key), &SlotChoice::Any).unwrap()
}

fn plant(fs: &Fs, caller: Caller) {
    let long_name = long_name();
    let at = |parent, name| NameIn { parent, name };
    let content = |seed: u8, len: usize| (0..len).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect::<Vec<_>>();
    write(fs, at(ROOT, b"a"), b"hello\n", caller);
    write(fs, at(ROOT, b"blocks"), &content(1, 3 * BLOCK + 1000), caller);
    write(fs, at(ROOT, long_name.as_bytes()), &content(2, 500), caller);
    fs.make_link(at(ROOT, b"link"), b"a", caller).unwrap();
    fs.make_link(at(ROOT, b"long-link"), &[b't'; 4000], caller).unwrap();
    let dir = fs.make_directory(at(ROOT, b"dir"), 0o755, caller).unwrap().node.id;
    write(fs, at(dir, b"inner"), &content(3, 9000), caller);
    write(fs, at(dir, b"too"), &content(4, 200), caller);
    // Each born under a name of its own, or they would have one id.
    for (name, before) in [("renamed", "before"), ("also-renamed", "before-too")] {
        let dir = fs
            .make_directory(at(ROOT, before.as_bytes()), 0o755, caller)
            .unwrap()
            .node
            .id;
        write(fs, at(dir, b"inner"), &content(5, 300 + name.len()), caller);
        fs.clear(
            fs.rename(at(ROOT, before.as_bytes()), at(ROOT, name.as_bytes()), 0)
                .unwrap(),
        );
    }
}

impl Sample {
    fn new() -> Self {
        let place = Place::with_vault();
        place.with_fs(None, plant);
        let mut sample = Sample {
            place,
            plain: BTreeMap::new(),
        };
        sample.plain = sample.read_all();
        assert_eq!(sample.plain.len(), 12);
        sample
    }

    fn vault(&self) -> PathBuf {
        self.place.path("vault")
    }

    /// Returns where a path of the view is on disk.
    fn disk(&self, path: &str) -> PathBuf {
        let (vault, home) = open(&self.vault()).into_vault();
        let located = vault.locate(home.dir(), Path::new(path)).unwrap();
        let directory = self.vault().join(located.disk_path);
        located
            .entry
            .map_or(directory.clone(), |entry| directory.join(entry.disk))
    }

    fn header(&self, path: &str) -> PathBuf {
        let data = self.disk(path);
        let id: [u8; 16] = fs::read(&data).unwrap()[16..32].try_into().unwrap();
        data.with_file_name(format!("{}.hush", hushfs::ids::FileId(id).to_b64()))
    }

    fn beside(&self, directory: &Path, suffix: &str) -> PathBuf {
        let mut entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let found = entries.find(|path| path.to_str().unwrap().ends_with(suffix));
        found.unwrap_or_else(|| panic!("nothing ends with {suffix}"))
    }

    fn run(&self, words: &str) -> Given {
        self.place.run(&format!("{words} --key-file key vault"))
    }

    /// Reads everything that there is in the view, each file, link and directory.
    fn read_all(&self) -> BTreeMap<String, Vec<u8>> {
        let out = self.place.path("out");
        let _ = fs::remove_dir_all(&out);
        assert_eq!(self.place.run("export --key-file key vault / out").code, 0);
        let mut all = BTreeMap::new();
        collect(&out, &out, &mut all);
        all
    }

    /// Has the vault repaired, and compares it with what it was, but for what is `gone`. Returns what the repair has told.
    fn repair_all(&self, gone: &[&str]) -> Vec<Value> {
        self.repair_all_with("", gone)
    }

    /// As [`repair_all`](Self::repair_all), with further options.
    fn repair_all_with(&self, options: &str, gone: &[&str]) -> Vec<Value> {
        let told = self.run(&format!("fsck --repair --json{options}"));
        assert_eq!(told.code, 1, "{}{}", told.out, told.err);
        for check in ["fsck", "verify"] {
            let clean = self.run(check);
            assert_eq!((clean.code, clean.out.as_str()), (0, ""), "{check}: {}", clean.err);
        }
        let mut expected = self.plain.clone();
        expected.retain(|path, _| !gone.contains(&path.as_str()));
        assert_eq!(self.read_all(), expected);
        let told = json_lines(&told.out);
        for finding in &told[..told.len() - 1] {
            assert_eq!(finding["corrected"], true, "{finding}");
        }
        assert_eq!(told.last().unwrap()["corrected"], (told.len() - 1) as u64);
        told
    }

    /// Returns the first file that repairs have kept and whose path ends so.
    fn kept(&self, suffix: &str) -> PathBuf {
        let mut waiting = vec![self.vault().join("lost+found.hush")];
        while let Some(directory) = waiting.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.to_str().unwrap().ends_with(suffix) {
                    return path;
                }
                if path.is_dir() {
                    waiting.push(path);
                }
            }
        }
        panic!("nothing kept ends with {suffix}");
    }
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let status = std::process::Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .unwrap();
    assert!(status.success());
}

fn collect(root: &Path, at: &Path, all: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_symlink() {
            all.insert(
                name,
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
            );
        } else if kind.is_dir() {
            all.insert(name, b"directory".to_vec());
            collect(root, &path, all);
        } else {
            all.insert(name, fs::read(&path).unwrap());
        }
    }
}

/// Runs fsck, and returns the findings' words and severities.
fn found(sample: &Sample, options: &str) -> Vec<(String, String)> {
    let fsck = sample.run(&format!("fsck --json{options}"));
    let lines = json_lines(&fsck.out);
    let word = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
    let mut found: Vec<_> = lines[..lines.len() - 1]
        .iter()
        .map(|finding| (word(finding, "code"), word(finding, "severity")))
        .collect();
    found.sort();
    found
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut pairs: Vec<_> = expected
        .iter()
        .map(|(code, severity)| ((*code).to_owned(), (*severity).to_owned()))
        .collect();
    pairs.sort();
    pairs
}

#[test]
fn a_vault_in_order_has_no_findings() {
    let sample = Sample::new();
    for command in ["fsck", "fsck --no-key", "fsck --repair", "verify", "verify --threads 1"] {
        let given = sample.run(command);
        assert_eq!((given.code, given.out.as_str()), (0, ""), "{command}: {}", given.err);
    }
    assert!(!sample.vault().join("lost+found.hush").exists());
}

#[test]
fn leftovers_and_strangers_are_set_aside() {
    let sample = Sample::new();
    let vault = sample.vault();
    let header = sample.header("dir/inner");
    fs::copy(&header, vault.join(header.file_name().unwrap())).unwrap();
    for name in [
        format!("{}.long.hush", "A".repeat(44)),
        format!("{}.link.hush", "B".repeat(21) + "A"),
        "x.tmp.hush".to_owned(),
        "notes.txt".to_owned(),
        ".stfolder".to_owned(),
    ] {
        fs::write(vault.join(name), "someone's").unwrap();
    }
    fs::create_dir_all(sample.disk("dir").join("photos.d/more")).unwrap();
    let expected = pairs(&[
        ("orphaned-header", "note"),
        ("orphaned-long-name", "note"),
        ("orphaned-link-file", "note"),
        ("temporary", "note"),
        ("stranger", "warning"),
        ("stranger", "warning"),
        ("sync-tool", "note"),
    ]);
    assert_eq!(found(&sample, ""), expected);
    assert_eq!(sample.run("verify").code, 4, "a stranger is named");
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 1, "{}", told.out);
    let line = "corrected: ? (notes.txt): not made by hushfs; set aside, kept in lost+found.hush/1/notes.txt";
    assert!(told.out.lines().any(|told| told == line), "{}", told.out);
    assert_eq!(found(&sample, ""), pairs(&[("sync-tool", "note")]));
    assert_eq!(fs::read(sample.kept("notes.txt")).unwrap(), b"someone's");
    assert!(sample.kept("photos.d/more").is_dir());
    assert_eq!(sample.read_all(), sample.plain);
    // What is set aside stays, and keys can be changed: the damaged among it are in nobody's way.
    sample.place.run("vault rotate --key-file key vault");
    assert_eq!(sample.run("rewrap --retire").code, 0);
    assert!(sample.kept("x.tmp.hush").is_file());
}

#[test]
fn a_missing_or_damaged_header_is_made_from_another_of_the_file() {
    let sample = Sample::new();
    let header = sample.header("a");
    let other = sample.disk("dir").join(header.file_name().unwrap());
    for damage in [(|header| fs::remove_file(header).unwrap()) as fn(&Path), |header| {
        fs::write(header, "HUSHHEAD").unwrap()
    }] {
        fs::copy(&header, &other).unwrap();
        damage(&header);
        assert_eq!(sample.run("fsck").code, 4);
        let told = sample.repair_all(&[]);
        let repair = told.iter().find(|told| told["path"] == "a").unwrap();
        assert!(
            repair["repair"]
                .as_str()
                .unwrap()
                .starts_with("its header was made from "),
            "{repair}"
        );
    }
}

#[test]
fn a_file_without_a_header_anywhere_is_left_and_named() {
    let sample = Sample::new();
    fs::remove_file(sample.header("a")).unwrap();
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 4);
    assert!(told.out.starts_with("damage: a ("), "{}", told.out);
    assert!(
        told.out
            .ends_with("left: nothing in the vault to mend it with: take it from a backup\n")
    );
    assert!(!sample.vault().join("lost+found.hush").exists());
}

#[test]
fn a_header_that_was_set_aside_comes_back_with_its_file() {
    let sample = Sample::new();
    let (data, away) = (sample.disk("a"), sample.place.path("away"));
    fs::rename(&data, &away).unwrap();
    assert_eq!(sample.run("fsck --repair").code, 1);
    fs::rename(&away, &data).unwrap();
    assert_eq!(found(&sample, ""), pairs(&[("header-missing", "damage")]));
    sample.repair_all(&[]);
}

#[test]
fn a_file_that_someone_moved_does_not_get_a_header_for_where_it_is() {
    let sample = Sample::new();
    // Under a name that is one of the directory, but not the file's.
    let (header, to) = (sample.header("a"), sample.disk("dir/inner"));
    fs::copy(sample.disk("a"), &to).unwrap();
    let told = sample.run("fsck --repair");
    assert_eq!(told.code & 4, 4, "{}", told.out);
    assert!(told.out.contains("damage: dir/inner"), "{}", told.out);
    assert!(!to.with_file_name(header.file_name().unwrap()).exists());
    assert_eq!(sample.place.run("cat --key-file key vault dir/inner").code, 9);
}

#[test]
fn a_directory_header_is_made_again_from_the_headers_in_it() {
    let sample = Sample::new();
    let header = sample.disk("renamed").join("dir.hush");
    let other = sample.disk("also-renamed").join("dir.hush");
    for (code, damage) in [
        (
            "directory-header-missing",
            Box::new(|| fs::remove_file(&header).unwrap()) as Box<dyn Fn()>,
        ),
        ("directory-header", Box::new(|| fs::write(&header, "short").unwrap())),
        (
            "directory-misplaced",
            Box::new(|| assert!(fs::copy(&other, &header).is_ok())),
        ),
    ] {
        damage();
        assert_eq!(found(&sample, ""), pairs(&[(code, "damage")]));
        assert_eq!(sample.run("verify").code, 4, "{code}");
        // Anyone could have moved it there: the user is asked.
        let told = sample.run("fsck --repair");
        assert_eq!(told.code, 4, "{code}");
        let command = "`hushfs fsck --repair --accept-directory=renamed vault`";
        assert!(told.out.contains(command), "{code}: {}", told.out);
        assert_eq!(found(&sample, ""), pairs(&[(code, "damage")]));
        sample.repair_all_with(" --accept-directory /renamed/", &[]);
    }
    // A directory that never had one gets none.
    let header = sample.disk("dir").join("dir.hush");
    fs::copy(&other, &header).unwrap();
    sample.repair_all(&[]);
    assert!(!header.exists());
}

#[test]
fn an_empty_directory_that_may_have_a_key_of_its_own_keeps_its_id() {
    let sample = Sample::new();
    sample.place.with_fs(None, |fs, caller| {
        let at = |name| NameIn { parent: ROOT, name };
        fs.make_directory(at(b"x"), 0o755, caller).unwrap();
        fs.clear(fs.rename(at(b"x"), at(b"secret"), 0).unwrap());
    });
    let header = sample.disk("secret").join("dir.hush");
    let bytes = fs::read(&header).unwrap();
    for command in [
        "key create --key-file key --alias alias/s vault",
        "vault encryption set --key-file key --key alias/s vault secret",
    ] {
        let given = sample.place.run(command);
        assert_eq!(given.code, 0, "{command}: {}", given.err);
    }
    let mut damaged = bytes.clone();
    damaged[40] ^= 1;
    fs::write(&header, &damaged).unwrap();
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 4, "{}", told.out);
    assert!(told.out.contains("left: it may be directory "), "{}", told.out);
    assert!(fs::read(&header).unwrap() == damaged);
    // With that of another directory, as someone may have moved it there.
    fs::copy(sample.disk("renamed").join("dir.hush"), &header).unwrap();
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 4, "{}", told.out);
    assert!(told.out.contains("left: more than one answer"), "{}", told.out);
    assert!(header.exists());
    // Without a key that could be its own it needs no header.
    fs::write(&header, &damaged).unwrap();
    assert_eq!(
        sample
            .place
            .run("vault encryption unset --key-file key --gone vault")
            .code,
        0
    );
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 1, "{}", told.out);
    assert!(told.out.contains("; it needs no header, kept in "), "{}", told.out);
    assert!(!header.exists());
}

#[test]
fn directories_that_someone_exchanged_are_left_and_both_named() {
    let sample = Sample::new();
    let (one, other) = (sample.disk("dir"), sample.disk("renamed"));
    fs::rename(&one, sample.vault().join("between")).unwrap();
    fs::rename(&other, &one).unwrap();
    fs::rename(sample.vault().join("between"), &other).unwrap();
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 4, "{}", told.out);
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let lines: Vec<_> = told
        .out
        .lines()
        .filter(|line| line.contains("more than one answer"))
        .collect();
    assert_eq!(lines.len(), 2, "{}", told.out);
    for line in lines {
        assert!(line.contains(&name(&one)) && line.contains(&name(&other)), "{line}");
    }
}

#[test]
fn a_directory_that_someone_moved_does_not_get_a_header_for_where_it_is() {
    let sample = Sample::new();
    let (moved, to) = (sample.disk("dir"), sample.disk("renamed"));
    let others = fs::read(sample.disk("also-renamed").join("dir.hush")).unwrap();
    fs::remove_dir_all(&to).unwrap();
    fs::rename(moved, &to).unwrap();
    let header = to.join("dir.hush");
    // Without a header, as it was made, with a damaged one, and with that of another directory.
    for (planted, code) in [
        (None, "directory-header-missing"),
        (Some(b"short".as_slice()), "directory-header"),
        (Some(&others), "directory-misplaced"),
    ] {
        if let Some(bytes) = planted {
            fs::write(&header, bytes).unwrap();
        }
        for options in ["", " --accept-directory dir --accept-directory also-renamed"] {
            let told = sample.run(&format!("fsck --repair{options}"));
            assert_eq!(told.code, 4, "{code}: {}", told.out);
            let why = "left: nothing proves that what is in it, made in directory ";
            assert!(told.out.contains(why), "{code}: {}", told.out);
            assert_eq!(found(&sample, ""), pairs(&[(code, "damage")]));
        }
        assert_eq!(sample.run("verify").code, 4, "{code}");
        let read = sample.place.run("cat --key-file key vault renamed/inner");
        assert!(read.code != 0 && read.out.is_empty(), "{code}");
    }
}

#[test]
fn a_directory_of_which_there_are_two_gets_no_header() {
    let sample = Sample::new();
    let (one, other) = (sample.disk("renamed"), sample.disk("also-renamed"));
    copy(&one, &other);
    for damage in [
        |header: &Path| fs::remove_file(header).unwrap(),
        |header: &Path| fs::write(header, "short").unwrap(),
    ] {
        for directory in [&one, &other] {
            damage(&directory.join("dir.hush"));
        }
        let told = sample.run("fsck --repair --accept-directory renamed");
        assert_eq!(told.code, 4, "{}", told.out);
        let lines = told
            .out
            .lines()
            .filter(|line| line.contains("left: more than one answer"));
        assert_eq!(lines.count(), 2, "{}", told.out);
        for directory in [&one, &other] {
            fs::write(directory.join("dir.hush"), "").unwrap();
        }
    }
}

#[test]
fn an_entry_in_the_wrong_directory_goes_back() {
    let sample = Sample::new();
    let (data, header) = (sample.disk("dir/inner"), sample.header("dir/inner"));
    for file in [&data, &header] {
        fs::rename(file, sample.vault().join(file.file_name().unwrap())).unwrap();
    }
    assert_eq!(sample.run("fsck").code, 4);
    sample.repair_all(&[]);
    // A copy of it has two answers.
    fs::copy(&data, sample.vault().join(data.file_name().unwrap())).unwrap();
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 4);
    assert!(told.out.contains("left: more than one answer"), "{}", told.out);
}

/// Makes a directory `name`, first as `born` where there is one, with something of everything in it; `mark` is in all names and contents.
fn fill_directory(sample: &Sample, name: &'static str, born: Option<&'static str>, mark: &'static str) {
    sample.place.with_fs(None, |fs, caller| {
        let at = |parent, name| NameIn { parent, name };
        let named = |rest: &str| format!("{mark}-{rest}");
        let (file, again, empty, link, sub) = (
            named("file"),
            named("again"),
            named("empty"),
            named("link"),
            named("sub"),
        );
        let (long, alone) = (named(&long_name()[..200]), named("alone"));
        let first = born.unwrap_or(name).as_bytes();
        let dir = fs.make_directory(at(ROOT, first), 0o755, caller).unwrap().node.id;
        for name in [&file, &long, &alone] {
            write(fs, at(dir, name.as_bytes()), &[mark.as_bytes()[0]; 5000], caller);
        }
        let linked = fs.look_up(dir, file.as_bytes()).unwrap().node.id;
        fs.link(linked, at(dir, again.as_bytes())).unwrap();
        fs.release(fs.create(at(dir, empty.as_bytes()), 0o600, caller).unwrap().node.id);
        fs.make_link(at(dir, link.as_bytes()), b"a", caller).unwrap();
        let sub = fs
            .make_directory(at(dir, sub.as_bytes()), 0o755, caller)
            .unwrap()
            .node
            .id;
        write(fs, at(sub, b"below"), mark.as_bytes(), caller);
        if born.is_some() {
            fs.clear(fs.rename(at(ROOT, first), at(ROOT, name.as_bytes()), 0).unwrap());
        }
    });
}

/// A directory `name` that two machines make, the one under `born` first, and whether its `dir.hush` comes to the other too.
type Made = (&'static str, &'static str, bool);

/// Makes directories twice, apart from each other, and merges what is on disk as a sync tool does.
fn merge_directories(sample: &mut Sample, made: &[Made]) {
    let away = |name: &str| sample.place.path(&format!("away-{name}"));
    for &(name, born, keeps_header) in made {
        fill_directory(sample, name, Some(born), "one");
        copy(&sample.disk(name), &away(name));
        if !keeps_header {
            fs::remove_file(away(name).join("dir.hush")).unwrap();
        }
    }
    let mut plain = sample.read_all();
    for &(name, ..) in made {
        fs::remove_dir_all(sample.disk(name)).unwrap();
        fill_directory(sample, name, None, "other");
    }
    plain.extend(sample.read_all());
    for &(name, ..) in made {
        let from = format!("{}/.", away(name).display());
        let status = std::process::Command::new("cp")
            .args(["-a", &from])
            .arg(sample.disk(name))
            .status();
        assert!(status.unwrap().success());
    }
    sample.plain = plain;
}

#[test]
fn directories_of_one_name_that_were_merged_are_one() {
    let mut sample = Sample::new();
    merge_directories(&mut sample, &[("Photos", "New Folder", true)]);
    assert_eq!(found(&sample, ""), pairs(&[("name", "damage"); 7]));
    let told = sample.run("fsck");
    let why = "the name does not open: it was made here while the directory had another id";
    assert_eq!(told.out.matches(why).count(), 7, "{}", told.out);
    sample.repair_all(&[]);
    // And as hushfs itself has it: what was written there goes on.
    fill_directory(&sample, "more", None, "more");
    assert_eq!(sample.run("verify").code, 0);
}

#[test]
fn what_was_made_in_a_directory_with_another_id_stays_where_the_user_says() {
    let mut sample = Sample::new();
    merge_directories(&mut sample, &[("Photos", "New Folder", false)]);
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 4, "{}", told.out);
    assert_eq!(
        told.out
            .matches("left: nothing proves that it, made in directory ")
            .count(),
        7
    );
    assert!(
        told.out
            .contains("`hushfs fsck --repair --accept-directory=Photos vault` gives it a name there")
    );
    assert_eq!(found(&sample, ""), pairs(&[("name", "damage"); 7]));
    sample.repair_all_with(" --accept-directory Photos", &[]);
}

#[test]
fn a_conflict_copy_of_a_directory_header_says_what_else_the_directory_was() {
    let mut sample = Sample::new();
    merge_directories(&mut sample, &[("Photos", "New Folder", true)]);
    let disk = sample.disk("Photos");
    // It lost, as had another directory been renamed to this name too: the names made without it count.
    fs::rename(
        disk.join("dir.hush"),
        disk.join("dir.sync-conflict-20260101-100000-ABCDEFG.hush"),
    )
    .unwrap();
    let told = sample.run("fsck");
    assert_eq!(
        (told.code, told.out.matches("damage: ").count()),
        (4, 7),
        "{}",
        told.out
    );
    sample.repair_all(&[]);
    sample.kept("dir.sync-conflict-20260101-100000-ABCDEFG.hush");
}

#[test]
fn a_name_that_both_of_two_merged_directories_have_is_left_until_one_is_renamed() {
    let mut sample = Sample::new();
    merge_directories(&mut sample, &[("Photos", "New Folder", true)]);
    let disk = sample.disk("Photos");
    let header = fs::read(disk.join("dir.hush")).unwrap();
    // Both have it: once with the one id, once with the other.
    fs::remove_file(disk.join("dir.hush")).unwrap();
    sample.place.with_fs(None, |fs, caller| {
        let photos = fs.look_up(ROOT, b"Photos").unwrap().node.id;
        write(
            fs,
            NameIn {
                parent: photos,
                name: b"one-file",
            },
            b"other",
            caller,
        );
    });
    fs::write(disk.join("dir.hush"), header).unwrap();
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 5, "{}", told.out);
    assert_eq!(
        told.out.matches("left: more than one answer").count(),
        1,
        "{}",
        told.out
    );
    sample.place.with_fs(None, |fs, _| {
        let photos = fs.look_up(ROOT, b"Photos").unwrap().node.id;
        let at = |name| NameIn { parent: photos, name };
        fs.clear(fs.rename(at(b"one-file"), at(b"one-renamed"), 0).unwrap());
    });
    let file = sample
        .plain
        .insert("Photos/one-file".to_owned(), b"other".to_vec())
        .unwrap();
    sample.plain.insert("Photos/one-renamed".to_owned(), file);
    sample.repair_all(&[]);
}

#[test]
fn what_another_machine_made_in_a_directory_that_was_renamed_stays_where_the_user_says() {
    let mut sample = Sample::new();
    let (disk, inner) = (sample.disk("renamed"), sample.disk("renamed/inner"));
    let header = sample.header("renamed/inner");
    sample.place.with_fs(None, |fs, _| {
        let at = |name| NameIn { parent: ROOT, name };
        fs.clear(fs.rename(at(b"renamed"), at(b"again"), 0).unwrap());
    });
    let now = sample.disk("again");
    fs::create_dir(&disk).unwrap();
    for file in [&inner, &header] {
        fs::copy(now.join(file.file_name().unwrap()), file).unwrap();
    }
    // Not where there is one, though it is damaged.
    fs::write(disk.join("dir.hush"), "of another directory").unwrap();
    let told = sample.run("fsck --repair --accept-directory renamed");
    assert_eq!(told.code, 4, "{}", told.out);
    assert!(fs::read(disk.join("dir.hush")).unwrap() == b"of another directory");
    fs::remove_file(disk.join("dir.hush")).unwrap();
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 4, "{}", told.out);
    let accepting = "`hushfs fsck --repair --accept-directory=renamed vault` makes its header";
    assert!(told.out.contains(accepting), "{}", told.out);
    assert!(
        told.out.contains(now.file_name().unwrap().to_str().unwrap()),
        "{}",
        told.out
    );
    for name in ["", "/inner"] {
        let plain = sample.plain[&format!("renamed{name}")].clone();
        sample.plain.insert(format!("again{name}"), plain);
    }
    sample.repair_all_with(" --accept-directory renamed", &[]);
}

#[test]
fn a_directory_with_its_header_of_an_earlier_name_is_opened_where_the_user_says() {
    let mut sample = Sample::new();
    let before = fs::read(sample.disk("renamed").join("dir.hush")).unwrap();
    sample.place.with_fs(None, |fs, _| {
        let at = |name| NameIn { parent: ROOT, name };
        fs.clear(fs.rename(at(b"renamed"), at(b"again"), 0).unwrap());
    });
    for name in ["", "/inner"] {
        let plain = sample.plain.remove(&format!("renamed{name}")).unwrap();
        sample.plain.insert(format!("again{name}"), plain);
    }
    fs::write(sample.disk("again").join("dir.hush"), before).unwrap();
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 4, "{}", told.out);
    let accepting = "`hushfs fsck --repair --accept-directory=again vault` makes its header";
    assert!(told.out.contains(accepting), "{}", told.out);
    sample.repair_all_with(" --accept-directory again", &[]);
}

#[test]
fn what_was_put_behind_a_sealed_file_is_taken_away() {
    let sample = Sample::new();
    for tail in [7, 5000] {
        let mut file = fs::OpenOptions::new().append(true).open(sample.disk("blocks")).unwrap();
        file.write_all(&vec![b'x'; tail]).unwrap();
        assert_eq!(found(&sample, ""), pairs(&[("size", "damage")]));
        assert_eq!(found(&sample, " --no-key"), pairs(&[("size", "damage")]));
        sample.repair_all(&[]);
        let kept = sample.kept(&format!(
            "{}.tail",
            sample.disk("blocks").file_name().unwrap().to_str().unwrap()
        ));
        assert!(fs::read(&kept).unwrap().iter().all(|byte| *byte == b'x'));
        fs::remove_dir_all(sample.vault().join("lost+found.hush")).unwrap();
    }
    // What is missing cannot be made up.
    let file = fs::OpenOptions::new().write(true).open(sample.disk("blocks")).unwrap();
    file.set_len((PREAMBLE + STRIDE) as u64).unwrap();
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 4);
    assert!(told.out.contains("take it from a backup"), "{}", told.out);
}

/// Writes a file as one does that is killed before it is sealed.
fn leave_open(sample: &Sample, name: &str, bytes: &[u8]) {
    let (fs, _home, caller) = unmounted::fs_of(open(&sample.vault()), false);
    let name = name.as_bytes();
    write(&fs, NameIn { parent: ROOT, name }, bytes, caller);
}

/// Gives a file that is left open another name in a directory, and leaves it open.
fn link_and_leave_open(sample: &Sample, name: &str, (directory, other): (&str, &str)) {
    let (fs, _home, _) = unmounted::fs_of(open(&sample.vault()), false);
    let id = fs.look_up(ROOT, name.as_bytes()).unwrap().node.id;
    let parent = match directory {
        "" => ROOT,
        name => fs.look_up(ROOT, name.as_bytes()).unwrap().node.id,
    };
    let name = other.as_bytes();
    fs.link(id, NameIn { parent, name }).unwrap();
}

/// Tells whether a sealed file may be found under one name only.
fn is_placed(sample: &Sample, path: &str) -> bool {
    let bytes = fs::read(sample.disk(path)).unwrap();
    let preamble = UnverifiedPreamble::decode(&bytes[..PREAMBLE]).unwrap();
    let preamble = preamble.verify(&seal_key(sample, path)).unwrap();
    assert_eq!(preamble.state, State::Sealed, "{path}");
    preamble.places.current.is_some()
}

#[test]
fn a_link_that_someone_makes_does_not_take_its_name_from_a_file_that_is_repaired() {
    let mut sample = Sample::new();
    leave_open(&sample, "open", &[b'o'; BLOCK]);
    sample.plain.insert("open".to_owned(), vec![b'o'; BLOCK]);
    let disk = sample.disk("open");
    let copy = format!("{} (copy)", disk.file_name().unwrap().to_str().unwrap());
    for link in [".link-x", &copy] {
        fs::hard_link(&disk, sample.vault().join(link)).unwrap();
    }
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 1, "{}{}", told.out, told.err);
    assert!(is_placed(&sample, "open"));
    fs::remove_file(sample.vault().join(copy)).unwrap();
    assert_eq!(sample.read_all(), sample.plain);
}

#[test]
fn a_file_with_several_names_is_sealed_for_all_of_them() {
    let mut sample = Sample::new();
    for (name, other) in [("open", ("", "second")), ("open-too", ("dir", "second"))] {
        leave_open(&sample, name, &[b'o'; BLOCK]);
        link_and_leave_open(&sample, name, other);
        let other = [other.0, other.1].join("/");
        for name in [name, other.trim_start_matches('/')] {
            sample.plain.insert(name.to_owned(), vec![b'o'; BLOCK]);
        }
    }
    sample.repair_all(&[]);
    assert!(!is_placed(&sample, "open") && !is_placed(&sample, "open-too"));
}

#[test]
fn a_file_that_may_have_another_name_where_nobody_can_look_stays_open() {
    let sample = Sample::new();
    leave_open(&sample, "open", &[b'o'; BLOCK]);
    link_and_leave_open(&sample, "open", ("dir", "second"));
    let header = sample.header("dir/second");
    let aside = sample.place.path("header");
    fs::rename(&header, &aside).unwrap();
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 4, "{}{}", told.out, told.err);
    assert!(
        told.out
            .contains("left: it is linked to more than its name, perhaps to one in "),
        "{}",
        told.out
    );
    fs::rename(&aside, &header).unwrap();
    assert_eq!(sample.run("fsck --repair").code, 1);
    assert!(!is_placed(&sample, "dir/second"));
}

#[test]
fn a_file_left_open_is_named_and_sealed() {
    let mut sample = Sample::new();
    leave_open(&sample, "open", &[b'o'; 2 * BLOCK]);
    sample.plain.insert("open".to_owned(), vec![b'o'; 2 * BLOCK]);
    let fsck = sample.run("fsck");
    assert_eq!(fsck.code, 0, "it can be read");
    assert!(
        fsck.out.starts_with("note: open (") && fsck.out.ends_with(": open since an unclean end\n"),
        "{}",
        fsck.out
    );
    assert_eq!(found(&sample, " --no-key"), pairs(&[("left-open", "note")]));
    let disk = sample.disk("open");
    let mut file = fs::OpenOptions::new().append(true).open(&disk).unwrap();
    file.write_all(&[1; 10]).unwrap();
    let modified = fs::metadata(&disk).unwrap().modified().unwrap();
    assert!(sample.run("fsck").out.contains("with a torn tail of 10 bytes"));
    sample.repair_all(&[]);
    let name = disk.file_name().unwrap().to_str().unwrap();
    assert_eq!(fs::read(sample.kept(&format!("{name}.tail"))).unwrap(), [1; 10]);
    assert_eq!(
        fs::read(sample.kept(&format!("{name}.preamble"))).unwrap().len(),
        PREAMBLE
    );
    assert_eq!(fs::read(&disk).unwrap()[10], 2, "sealed");
    assert_eq!(fs::metadata(&disk).unwrap().modified().unwrap(), modified);
}

#[test]
fn a_copied_vault_is_repaired_only_with_what_its_journal_has() {
    let mut sample = Sample::new();
    let (crash, disk) = (sample.place.path("crash"), sample.disk("blocks"));
    let older = fs::read(&disk).unwrap();
    let newer = [7; 2 * BLOCK];
    sample.place.with_fs(None, |fs, _| {
        let id = fs.look_up(ROOT, b"blocks").unwrap().node.id;
        fs.open(id, true).unwrap();
        fs.write(id, 0, &newer).unwrap();
        fs.sync_file(id, true).unwrap();
        copy(&sample.vault(), &crash);
        fs.release(id);
    });
    fs::remove_dir_all(sample.vault()).unwrap();
    fs::rename(&crash, sample.vault()).unwrap();
    // A power cut leaves the blocks of before: they are synced when the journal begins anew.
    let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
    file.write_all_at(&older[PREAMBLE..], PREAMBLE as u64).unwrap();
    assert!(
        sample.read_all() == sample.plain,
        "what was synced is in the journal alone"
    );
    let left = pairs(&[("journal-copied", "damage"), ("left-open", "note")]);
    for command in ["fsck", "verify", "verify --sample 50%"] {
        let given = sample.run(command);
        assert_eq!(given.code, 4, "{command}: {}", given.out);
        assert!(
            given.out.contains("`hushfs fsck --apply-journal`"),
            "{command}: {}",
            given.out
        );
    }
    assert_eq!(found(&sample, ""), left);
    let refused = sample.run("fsck --repair");
    assert_eq!((refused.code, refused.out.as_str()), (8, ""), "{}", refused.err);
    assert!(refused.err.contains("--apply-journal"), "{}", refused.err);
    assert_eq!(found(&sample, ""), left, "nothing was sealed");
    let repaired = sample.run("fsck --repair --apply-journal");
    assert_eq!(repaired.code, 1, "{}{}", repaired.out, repaired.err);
    sample.plain.get_mut("blocks").unwrap()[..newer.len()].copy_from_slice(&newer);
    assert!(sample.read_all() == sample.plain);
    for command in ["fsck", "verify"] {
        let clean = sample.run(command);
        assert_eq!((clean.code, clean.out.as_str()), (0, ""), "{command}");
    }
}

#[test]
fn a_file_left_open_with_a_damaged_block_is_left() {
    let sample = Sample::new();
    leave_open(&sample, "open", &[b'o'; 3 * BLOCK]);
    let disk = sample.disk("open");
    let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
    file.write_all_at(&[9], (PREAMBLE + STRIDE + 100) as u64).unwrap();
    let before = fs::read(&disk).unwrap();
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 4, "{}", told.out);
    assert!(
        told.out.contains("block 1 is damaged or tampered with; left: "),
        "{}",
        told.out
    );
    assert!(fs::read(&disk).unwrap() == before);
}

#[test]
fn a_cut_is_finished_once_what_it_takes_away_is_kept() {
    let mut sample = Sample::new();
    let disk = sample.disk("blocks");
    let size = BLOCK + 100;
    mark_as_being_cut(&sample, "blocks", size as u64);
    let before = fs::read(&disk).unwrap();
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 1, "{}", told.out);
    let done = "open since an unclean end; the cut was finished and the file sealed, every block that is left was verified, kept in ";
    assert!(told.out.contains(done), "{}", told.out);
    sample.plain.get_mut("blocks").unwrap().truncate(size);
    assert!(sample.read_all() == sample.plain);
    let name = disk.file_name().unwrap().to_str().unwrap();
    let tail = fs::read(sample.kept(&format!("{name}.tail"))).unwrap();
    assert!(tail == before[PREAMBLE + STRIDE..], "from the block of the cut on");
    // Not where a block before it is damaged.
    mark_as_being_cut(&sample, "blocks", size as u64 - 50);
    let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
    file.write_all_at(&[9; 16], (PREAMBLE + 100) as u64).unwrap();
    let before = fs::read(&disk).unwrap();
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 4, "{}", told.out);
    assert!(
        told.out.contains("block 0 is damaged or tampered with; left: "),
        "{}",
        told.out
    );
    assert!(fs::read(&disk).unwrap() == before);
}

fn seal_key(sample: &Sample, path: &str) -> SealKey {
    let (vault, home) = open(&sample.vault()).into_vault();
    let located = vault.locate(home.dir(), Path::new(path)).unwrap();
    let preamble = UnverifiedPreamble::decode(&fs::read(sample.disk(path)).unwrap()[..PREAMBLE]).unwrap();
    let header = vault
        .load_header(&located.dir, located.directory(), preamble.file())
        .unwrap();
    let fields = &header.fields;
    header.data_key.seal_key(fields.file, fields.suite.number())
}

/// Has a file begin as a kill in the middle of a cut to a size leaves it.
fn mark_as_being_cut(sample: &Sample, path: &str, size: u64) {
    let disk = sample.disk(path);
    let preamble = UnverifiedPreamble::decode(&fs::read(&disk).unwrap()[..PREAMBLE]).unwrap();
    let key = seal_key(sample, path);
    let cut = Preamble {
        state: State::Open,
        plain_size: PlainSize(size),
        cutting: true,
        places: Places::default(),
        ..preamble.verify(&key).unwrap()
    };
    let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
    file.write_all_at(&cut.encode(&key), 0).unwrap();
}

#[test]
fn a_repair_that_fails_says_so_whatever_it_was_of() {
    let sample = Sample::new();
    leave_open(&sample, "open", &[b'o'; BLOCK]);
    // Nothing can be kept.
    fs::write(sample.vault().join("lost+found.hush"), "in the way").unwrap();
    let told = sample.run("fsck --repair --json");
    assert_eq!(told.code, 8, "{}", told.out);
    let told = json_lines(&told.out);
    assert_eq!(
        (&told[0]["severity"], &told[0]["corrected"]),
        (&"note".into(), &false.into())
    );
    assert_eq!(told[1]["exit_code"], 8);
}

#[test]
fn every_damaged_block_is_named() {
    let sample = Sample::new();
    let disk = sample.disk("blocks");
    let mut file = fs::OpenOptions::new().read(true).write(true).open(&disk).unwrap();
    for block in [0, 1, 3] {
        file.seek(SeekFrom::Start((PREAMBLE + block * STRIDE + 50) as u64))
            .unwrap();
        let mut byte = [0];
        file.read_exact(&mut byte).unwrap();
        file.write_all_at(&[byte[0] ^ 1], (PREAMBLE + block * STRIDE + 50) as u64)
            .unwrap();
    }
    let verify = sample.run("verify");
    assert_eq!(verify.code, 4);
    let name = disk.file_name().unwrap().to_str().unwrap();
    assert_eq!(
        verify.out,
        format!("damage: blocks ({name}): blocks 0-1, 3 are damaged or tampered with\n")
    );
}

#[test]
fn an_older_block_in_a_newer_file_is_named() {
    let sample = Sample::new();
    let disk = sample.disk("blocks");
    let before = fs::read(&disk).unwrap();
    sample.place.with_fs(None, |fs, _| {
        let found = fs.look_up(ROOT, b"blocks").unwrap();
        fs.open(found.node.id, true).unwrap();
        fs.write(found.node.id, 0, &[7; 2 * BLOCK]).unwrap();
        fs.release(found.node.id);
    });
    let mut mixed = fs::read(&disk).unwrap();
    mixed[PREAMBLE..PREAMBLE + STRIDE].copy_from_slice(&before[PREAMBLE..PREAMBLE + STRIDE]);
    fs::write(&disk, mixed).unwrap();
    assert!(sample.run("verify").out.contains("some blocks are of an older version"));
    assert_eq!(sample.run("fsck").code, 0, "fsck reads no contents");
}

#[test]
fn a_damaged_attribute_is_taken_away_and_kept() {
    let sample = Sample::new();
    let mut is_possible = true;
    sample.place.with_fs(None, |fs, caller| {
        let id = fs.look_up(ROOT, b"a").unwrap().node.id;
        is_possible = fs.set_xattr(id, b"user.colour", b"red", 0, caller).is_ok();
    });
    if !is_possible {
        assert!(std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none());
        eprintln!("SKIPPED: the backing filesystem has no attributes");
        return;
    }
    let disk = sample.disk("a");
    let mut names = vec![0; 4096];
    let len = rustix::fs::listxattr(&disk, &mut names[..]).unwrap();
    let name = names[..len]
        .split(|byte| *byte == 0)
        .find(|name| name.starts_with(b"user.hush."));
    let name = std::str::from_utf8(name.unwrap()).unwrap();
    rustix::fs::setxattr(&disk, name, b"nonsense", rustix::fs::XattrFlags::empty()).unwrap();
    assert_eq!(found(&sample, ""), pairs(&[("attribute", "damage")]));
    sample.repair_all(&[]);
    let mut value = [0; 100];
    let len = rustix::fs::getxattr(sample.kept(".xattr"), name, &mut value[..]).unwrap();
    assert_eq!(&value[..len], b"nonsense");
}

#[test]
fn long_names_and_long_links_get_their_files_from_elsewhere() {
    let sample = Sample::new();
    let (vault, dir) = (sample.vault(), sample.disk("dir"));
    for (suffix, code) in [(".long.hush", "name"), (".link.hush", "link")] {
        let file = sample.beside(&vault, suffix);
        let away = dir.join(file.file_name().unwrap());
        fs::rename(&file, &away).unwrap();
        let names: Vec<_> = found(&sample, "").into_iter().map(|(code, _)| code).collect();
        assert!(names.iter().any(|name| name == code), "{names:?}");
        assert!(found(&sample, " --no-key").iter().any(|(name, _)| name == code));
        sample.repair_all(&[]);
        // With nothing to take it from.
        let bytes = fs::read(&file).unwrap();
        fs::remove_dir_all(vault.join("lost+found.hush")).unwrap();
        fs::write(&file, "nothing").unwrap();
        let told = sample.run("fsck --repair");
        assert_eq!(told.code, 4, "{suffix}: {}", told.out);
        fs::write(&file, bytes).unwrap();
    }
}

#[test]
fn the_target_of_a_link_that_says_nothing_of_itself_stays() {
    let sample = Sample::new();
    sample.place.with_fs(None, |fs, caller| {
        let at = |parent, name| NameIn { parent, name };
        let dir = fs.make_directory(at(ROOT, b"of-links"), 0o755, caller).unwrap();
        fs.make_link(at(dir.node.id, b"far"), &[b't'; 4000], caller).unwrap();
        fs.clear(fs.rename(at(ROOT, b"of-links"), at(ROOT, b"links"), 0).unwrap());
    });
    let (vault, dir) = (sample.vault(), sample.disk("links"));
    // Its name does not open for want of the directory's header.
    let target = sample.beside(&dir, ".link.hush");
    let header = fs::read(dir.join("dir.hush")).unwrap();
    fs::remove_file(dir.join("dir.hush")).unwrap();
    sample.run("fsck --repair");
    assert!(target.exists());
    fs::write(dir.join("dir.hush"), header).unwrap();
    assert_eq!(found(&sample, ""), []);
    // Its own text is damaged.
    let (target, link) = (sample.beside(&vault, ".link.hush"), sample.disk("long-link"));
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("nonsense", &link).unwrap();
    sample.run("fsck --repair");
    assert!(target.exists());
}

#[test]
fn a_conflict_copy_is_a_note_and_stays() {
    let sample = Sample::new();
    let disk = sample.disk("a");
    let copy = format!("{} (Ann's conflicted copy)", disk.to_str().unwrap());
    fs::copy(&disk, &copy).unwrap();
    for command in ["fsck", "fsck --repair", "verify", "fsck --no-key"] {
        let given = sample.run(command);
        assert_eq!(given.code, 0, "{command}: {}", given.out);
        assert!(given.out.contains("conflict copy of a sync tool"), "{command}");
    }
    assert!(Path::new(&copy).exists());
}

#[test]
fn without_a_key_the_form_is_checked() {
    let sample = Sample::new();
    fs::remove_file(sample.header("a")).unwrap();
    fs::write(sample.header("dir/inner"), "HUSHHEAD").unwrap();
    fs::write(sample.disk("renamed").join("dir.hush"), "short").unwrap();
    fs::write(sample.disk("dir/too"), "no preamble").unwrap();
    let link = sample.disk("link");
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
    let stray = sample.header("blocks");
    fs::copy(&stray, sample.disk("also-renamed").join(stray.file_name().unwrap())).unwrap();
    let expected = pairs(&[
        ("header-missing", "damage"),
        ("malformed", "damage"),
        ("malformed", "damage"),
        ("preamble", "damage"),
        ("link", "damage"),
        ("orphaned-header", "note"),
    ]);
    assert_eq!(found(&sample, " --no-key"), expected);
    let given = sample.place.run("fsck --no-key vault");
    assert_eq!(given.code, 4, "{}", given.err);
}

/// Whose vault root repairs.
const OWNER: u32 = 65534;

/// Tells whether root runs the tests, who alone repairs the vault of someone else.
fn repairs_as_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        assert!(std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none());
        eprintln!("SKIPPED: only root repairs the vault of someone else");
    }
    is_root
}

fn give_to_owner(sample: &Sample) {
    for entry in all_below(&sample.vault()) {
        std::os::unix::fs::lchown(&entry, Some(OWNER), Some(OWNER)).unwrap();
    }
}

#[test]
fn what_root_repairs_stays_the_owners() {
    use std::os::unix::fs::MetadataExt;

    if !repairs_as_root() {
        return;
    }
    let sample = Sample::new();
    leave_open(&sample, "open", &[b'o'; BLOCK]);
    let header = sample.header("dir/inner");
    fs::rename(&header, sample.vault().join(header.file_name().unwrap())).unwrap();
    fs::remove_file(sample.disk("renamed").join("dir.hush")).unwrap();
    fs::write(sample.disk("dir").join("notes.txt"), "").unwrap();
    let link_file = sample.beside(&sample.vault(), ".link.hush");
    fs::rename(&link_file, sample.disk("dir").join(link_file.file_name().unwrap())).unwrap();
    give_to_owner(&sample);
    let told = sample.run("fsck --repair --accept-directory renamed");
    assert_eq!(told.code, 1, "{}{}", told.out, told.err);
    for made in [&header, &sample.disk("renamed").join("dir.hush"), &link_file] {
        assert!(made.exists(), "{}", made.display());
    }
    for entry in all_below(&sample.vault()) {
        let meta = fs::symlink_metadata(&entry).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (OWNER, OWNER), "{}", entry.display());
    }
}

#[test]
fn what_is_put_in_the_way_of_roots_repair_is_not_given_away() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    if !repairs_as_root() {
        return;
    }
    let sample = Sample::new();
    leave_open(&sample, "open", &[b'o'; BLOCK]);
    give_to_owner(&sample);
    let lost = sample.vault().join("lost+found.hush");
    let owner_of = |path: &Path| fs::symlink_metadata(path).unwrap().uid();
    // The owner of the vault can rename a file or a directory of root's that is in it.
    fs::write(&lost, "root's").unwrap();
    assert_eq!(sample.run("fsck --repair").code, 8);
    assert_eq!(owner_of(&lost), 0);
    fs::remove_file(&lost).unwrap();
    fs::create_dir(&lost).unwrap();
    fs::set_permissions(&lost, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(lost.join("secret"), "root's").unwrap();
    let told = sample.run("fsck --repair");
    assert_eq!(told.code, 1, "{}{}", told.out, told.err);
    for (path, owner) in [("", 0), ("secret", 0), ("1", OWNER)] {
        assert_eq!(owner_of(&lost.join(path)), owner, "{path:?}");
    }
}

/// Returns a directory and everything in it.
fn all_below(directory: &Path) -> Vec<PathBuf> {
    let (mut all, mut waiting) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(path) = waiting.pop() {
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        all.push(path);
    }
    all
}

#[test]
fn exit_codes_are_those_of_fsck() {
    let sample = Sample::new();
    for (words, code) in [
        ("fsck --quickly vault", 16),
        ("verify --sample 120% --key-file key vault", 16),
        ("verify --sample 5% --resume x --key-file key vault", 16),
        ("verify --resume vault/state --key-file key vault", 16),
        ("verify --resume pass --key-file key vault", 16),
        ("fsck --key-file other vault", 8),
        ("fsck --key-file key none", 8),
        ("verify --key-file key vault none", 8),
        ("fsck --help", 0),
    ] {
        let given = sample.place.run(words);
        assert_eq!(given.code, code, "{words}: {}", given.err);
    }
    // Something mended and something left.
    fs::write(sample.vault().join("notes.txt"), "").unwrap();
    fs::remove_file(sample.header("a")).unwrap();
    let told = sample.run("fsck --repair --json");
    assert_eq!(told.code, 5);
    let told = json_lines(&told.out);
    let summary = told.last().unwrap();
    let field = |name: &str| summary[name].as_u64().unwrap();
    assert_eq!((field("corrected"), field("damage"), field("exit_code")), (1, 1, 5));
    assert_eq!(summary["interrupted"], false);
    for finding in &told[..2] {
        for field in ["severity", "code", "disk_path", "problem", "repair"] {
            assert!(finding[field].is_string(), "{field}: {finding}");
        }
    }
}

#[test]
fn a_sample_says_what_it_has_read() {
    let sample = Sample::new();
    let given = sample.run("verify --sample 100% --json");
    let summary = json_lines(&given.out).pop().unwrap();
    assert_eq!(summary["bytes"], summary["bytes_read"]);
    let mut read = Vec::new();
    for _ in 0..8 {
        let given = sample.run("verify --sample 50%");
        assert_eq!((given.code, given.out.as_str()), (0, ""));
        assert!(
            given.err.contains(" of 7 files with ") && given.err.contains(" of 2"),
            "{}",
            given.err
        );
        read.push(given.err);
    }
    read.dedup();
    assert!(read.len() > 1, "another part each time: {read:?}");
}

/// Starts a command whose output nobody reads, so that it waits in the middle.
fn stopped(sample: &Sample, words: &str) -> std::process::Child {
    for i in 0..3000 {
        fs::write(sample.vault().join(format!("stranger-{i}-{}.txt", "x".repeat(150))), "").unwrap();
    }
    let words = format!("{words} --key-file key vault");
    let mut command = sample.place.command(&words.split(' ').collect::<Vec<_>>());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (out, err) = (child.stdout.as_ref().unwrap(), child.stderr.as_ref().unwrap());
    // Pipes take 64 KiB (pipe(7)).
    while ioctl_fionread(out).unwrap().max(ioctl_fionread(err).unwrap()) < 60_000 {
        thread::sleep(Duration::from_millis(5));
    }
    child
}

#[test]
fn an_interrupted_run_says_so_and_what_it_found() {
    let sample = Sample::new();
    let child = stopped(&sample, "fsck --json");
    kill_process(rustix::process::Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(32 | 4));
    let told = json_lines(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(told.last().unwrap()["interrupted"], true);
    assert!(told.len() > 2 && told.len() < 3001, "{} lines", told.len());
}

#[test]
fn a_stopped_verify_goes_on_where_it_was() {
    let sample = Sample::new();
    for kill in [Signal::INT, Signal::KILL] {
        let child = stopped(&sample, "verify --resume state");
        kill_process(rustix::process::Pid::from_child(&child), kill).unwrap();
        child.wait_with_output().unwrap();
        let state = fs::read_to_string(sample.place.path("state")).unwrap();
        let done = state
            .lines()
            .filter(|line| line.split(' ').count() == 4 && !line.starts_with('h'))
            .count();
        // A line that a kill cut short is nobody's.
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(sample.place.path("state"))
            .unwrap();
        file.write_all(b"12 34").unwrap();
        let again = sample.run("verify --resume state --json");
        let summary = json_lines(&again.out).pop().unwrap();
        assert_eq!(summary["files_known"], done as u64, "{state}");
        assert_eq!(summary["warnings"], 3000);
        assert!(!sample.place.path("state").exists(), "what is finished starts anew");
    }
    // What changed since is read again.
    let disk = sample.disk("blocks");
    let state = |disk: &Path| {
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(disk).unwrap();
        format!(
            "{} {} {} {}\n",
            meta.ino(),
            meta.ctime(),
            meta.ctime_nsec(),
            meta.size()
        )
    };
    let (vault, _home) = open(&sample.vault()).into_vault();
    let first = format!("hushfs verify 1 {}\n", vault.id());
    sample
        .place
        .write("state", format!("{first}{}", state(&disk)).as_bytes());
    let known = json_lines(&sample.run("verify --resume state --json").out)
        .pop()
        .unwrap();
    assert_eq!(known["files_known"], 1);
    sample
        .place
        .write("state", format!("{first}{}", state(&disk)).as_bytes());
    let mut bytes = fs::read(&disk).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&disk, bytes).unwrap();
    assert!(sample.run("verify --resume state").out.contains("damage: blocks ("));
}

#[test]
fn a_verify_that_nobody_hears_keeps_what_the_next_goes_on_with() {
    let sample = Sample::new();
    fs::write(sample.vault().join("stranger.txt"), "").unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = sample
        .place
        .command(&["verify", "--resume", "state", "--json", "--key-file", "key", "vault"]);
    assert_ne!(sample.place.run_with(command.stdout(writer)).code, 0);
    assert!(sample.place.path("state").exists());
}

#[test]
fn a_repair_that_is_killed_again_and_again_loses_nothing() {
    const ACCEPTED: &str = " --accept-directory renamed --accept-directory also-renamed --accept-directory accepted";
    let kills = std::env::var("HUSHFS_TESTS_KILLS").map_or(12, |text| text.parse().unwrap());
    let mut sample = Sample::new();
    let made = [("Photos", "New Folder", true), ("accepted", "Newer Folder", false)];
    merge_directories(&mut sample, &made);
    for i in 0..20 {
        let name = format!("open-{i}");
        leave_open(&sample, &name, &vec![i; 2 * BLOCK]);
        sample.plain.insert(name.clone(), vec![i; 2 * BLOCK]);
        let mut file = fs::OpenOptions::new().append(true).open(sample.disk(&name)).unwrap();
        file.write_all(&[1; 5]).unwrap();
    }
    let header = sample.header("a");
    fs::rename(&header, sample.disk("dir").join(header.file_name().unwrap())).unwrap();
    let (data, header) = (sample.disk("dir/too"), sample.header("dir/too"));
    for file in [&data, &header] {
        fs::rename(file, sample.vault().join(file.file_name().unwrap())).unwrap();
    }
    fs::write(sample.disk("renamed").join("dir.hush"), "short").unwrap();
    fs::remove_file(sample.disk("also-renamed").join("dir.hush")).unwrap();
    let mut file = fs::OpenOptions::new().append(true).open(sample.disk("blocks")).unwrap();
    file.write_all(&[1; 5000]).unwrap();
    for i in 0..20 {
        fs::write(sample.vault().join(format!("stranger-{i}.txt")), "someone's").unwrap();
    }
    let broken = sample.place.path("broken");
    copy(&sample.vault(), &broken);
    let mut rng = 12345_u64;
    for kill in 0..kills {
        copy(&broken, &sample.vault());
        // Killed until it gets through.
        for attempt in 0.. {
            let words = format!("fsck --repair{ACCEPTED} --key-file key vault");
            let mut command = sample.place.command(&words.split(' ').collect::<Vec<_>>());
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if attempt < 20 {
                thread::sleep(Duration::from_millis(5 + (rng >> 33) % 150));
                child.kill().unwrap();
            }
            if child.wait().unwrap().code().is_some() {
                break;
            }
        }
        let told = sample.run(&format!("fsck --repair{ACCEPTED}"));
        assert!(matches!(told.code, 0 | 1), "kill {kill}: {}", told.out);
        for check in ["fsck", "verify"] {
            let clean = sample.run(check);
            assert_eq!((clean.code, clean.out.as_str()), (0, ""), "kill {kill}: {check}");
        }
        assert_eq!(sample.read_all(), sample.plain, "kill {kill}");
        for i in 0..20 {
            assert_eq!(
                fs::read(sample.kept(&format!("stranger-{i}.txt"))).unwrap(),
                b"someone's"
            );
        }
    }
}

#[test]
fn the_units_are_ones_that_systemd_takes() {
    let is_there = std::process::Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_ok();
    if !is_there {
        assert!(
            std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none(),
            "this test must run here, but: no systemd-analyze"
        );
        return eprintln!("SKIPPED: no systemd-analyze");
    }
    let temp = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/systemd");
    let units = ["hushfs-verify@.service", "hushfs-verify@.timer"];
    let instances = units.map(|unit| unit.replace('@', "@srv-vault"));
    for (unit, instance) in units.iter().zip(&instances) {
        let text = fs::read_to_string(source.join(unit)).unwrap();
        let text = text.replace("/usr/bin/hushfs", env!("CARGO_BIN_EXE_hushfs"));
        // The manual pages are not installed here.
        let text: Vec<_> = text
            .lines()
            .filter(|line| !line.starts_with("Documentation="))
            .collect();
        fs::write(temp.path().join(instance), text.join("\n")).unwrap();
    }
    let analyze = |arguments: &[&str]| {
        let mut command = std::process::Command::new("systemd-analyze");
        command
            .args(arguments)
            .current_dir(temp.path())
            .env("SYSTEMD_UNIT_PATH", format!("{}:", temp.path().display()));
        let output = command.output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {err}");
        err
    };
    assert_eq!(analyze(&["verify", &instances[0], &instances[1]]), "");
    analyze(&[
        "security",
        "--offline=true",
        "--threshold=15",
        &format!("./{}", instances[0]),
    ]);
}
