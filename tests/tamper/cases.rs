//! The table of what someone may do to a vault, each judged on a real mount.
//!
//! What always holds: a path of the view reads as what was written there or is refused or gone, whatever else was damaged; what the case
//! did not touch reads as before; `verify` reports; and the damaged tree can be removed through the mount. What is documented as
//! undetected has its own outcome, so that the day it is detected this table says so.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::Path,
    process::Command,
};

use crate::{
    sample::{BLOCK, LONG_NAME, Outcome, PREAMBLE, Plain, STRIDE, Sample, header_of, judge},
    support::can_mount,
};

/// What a path that a case touched must read as; all others as the original.
enum Expect {
    /// EIO.
    Refused,
    /// Not there.
    Gone,
    /// Other content, which is documented as undetected.
    Undetected(Vec<u8>),
    /// Another target, which is documented as undetected.
    UndetectedTarget(&'static str),
}

use Expect::{Gone, Refused, Undetected, UndetectedTarget};

/// One kind of tampering.
struct Case {
    name: &'static str,
    damage: Box<dyn Fn(&Sample)>,
    expect: Vec<(&'static str, Expect)>,
    /// The exit code of `verify`.
    verify: i32,
    /// What `rm -rf` cannot remove: directories whose names do not open, and strangers' files.
    stuck: &'static [&'static str],
}

fn case(
    name: &'static str,
    damage: impl Fn(&Sample) + 'static,
    expect: impl IntoIterator<Item = (&'static str, Expect)>,
) -> Case {
    Case {
        name,
        damage: Box::new(damage),
        expect: expect.into_iter().collect(),
        verify: 4,
        stuck: &[],
    }
}

impl Case {
    /// Damage that even `verify` does not see, because nothing is wrong with what is left.
    fn unseen_by_verify(self) -> Self {
        Case { verify: 0, ..self }
    }

    fn stuck(self, stuck: &'static [&'static str]) -> Self {
        Case { stuck, ..self }
    }
}

fn data(sample: &Sample, path: &str) -> fs::File {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(sample.disk(path))
        .unwrap()
}

fn block_at(index: u64) -> u64 {
    PREAMBLE + index * STRIDE
}

fn read_block(file: &fs::File, index: u64) -> Vec<u8> {
    let mut block = vec![0; STRIDE as usize];
    file.read_exact_at(&mut block, block_at(index)).unwrap();
    block
}

fn cut(path: &'static str, size: u64) -> impl Fn(&Sample) {
    move |sample| data(sample, path).set_len(size).unwrap()
}

fn append(path: &'static str, bytes: Vec<u8>) -> impl Fn(&Sample) {
    move |sample| {
        let file = data(sample, path);
        file.write_all_at(&bytes, file.metadata().unwrap().len()).unwrap();
    }
}

fn overwrite(path: &'static str, at: u64, bytes: Vec<u8>) -> impl Fn(&Sample) {
    move |sample| data(sample, path).write_all_at(&bytes, at).unwrap()
}

fn exchange(one: &Path, other: &Path) {
    let between = one.with_file_name("between");
    fs::rename(one, &between).unwrap();
    fs::rename(other, one).unwrap();
    fs::rename(&between, other).unwrap();
}

/// Links a file to the name of another.
fn link(from: &Path, to: &Path) {
    fs::remove_file(to).unwrap();
    fs::hard_link(from, to).unwrap();
}

/// Puts a file in the place of an entry.
fn put(from: &Path, to: &Path) {
    let _ = fs::remove_file(to);
    assert!(
        Command::new("cp")
            .arg("-a")
            .arg(from)
            .arg(to)
            .status()
            .unwrap()
            .success()
    );
}

fn contents() -> Vec<Case> {
    let refused = |path| [(path, Refused)];
    vec![
        case(
            "cut at the edge of a block",
            cut("blocks", block_at(2)),
            refused("blocks"),
        ),
        case(
            "cut inside a block",
            cut("blocks", block_at(2) + 2000),
            refused("blocks"),
        ),
        case("cut by one byte", cut("one", PREAMBLE + 127), refused("one")),
        case("cut inside a nonce", cut("blocks", block_at(2) + 5), refused("blocks")),
        case("cut to the preamble", cut("odd", PREAMBLE), refused("odd")),
        case("cut inside the preamble", cut("odd", 100), refused("odd")),
        case("cut to one byte", cut("odd", 1), refused("odd")),
        case(
            "cut a sparse file inside a hole",
            cut("sparse", block_at(2)),
            refused("sparse"),
        ),
        case("cut to nothing", cut("odd", 0), [("odd", Undetected(Vec::new()))]).unseen_by_verify(),
        case("extended by a few zeros", append("odd", vec![0; 100]), refused("odd")),
        case(
            "extended by a block of zeros",
            append("blocks", vec![0; STRIDE as usize]),
            refused("blocks"),
        ),
        case("extended by one byte", append("one", vec![0]), refused("one")),
        case("extended by garbage", append("one", vec![0x5a; 10_000]), refused("one")),
        case(
            "sparse file extended by zeros",
            append("sparse", vec![0; STRIDE as usize]),
            refused("sparse"),
        ),
        // What a crash makes of a new file: it is empty.
        case("an empty file filled with zeros", append("empty", vec![0; 5000]), []).unseen_by_verify(),
        case(
            "an empty file filled with garbage",
            append("empty", vec![0xa5; 5000]),
            refused("empty"),
        ),
        case(
            "an empty file filled with another's content",
            |sample| put(&sample.disk("odd"), &sample.disk("empty")),
            refused("empty"),
        ),
        case(
            "a block zeroed",
            overwrite("blocks", block_at(1), vec![0; STRIDE as usize]),
            refused("blocks"),
        ),
        case(
            "the last block zeroed",
            overwrite("odd", block_at(1), vec![0; 28 + 904]),
            refused("odd"),
        ),
        case(
            "a whole file zeroed",
            overwrite("odd", 0, vec![0; 5312]),
            [("odd", Undetected(Vec::new()))],
        )
        .unseen_by_verify(),
        case(
            "two blocks exchanged",
            |sample| {
                let file = data(sample, "blocks");
                let (one, other) = (read_block(&file, 0), read_block(&file, 2));
                file.write_all_at(&other, block_at(0)).unwrap();
                file.write_all_at(&one, block_at(2)).unwrap();
            },
            refused("blocks"),
        ),
        case(
            "a block of another file",
            |sample| {
                let block = read_block(&data(sample, "blocks-too"), 1);
                data(sample, "blocks").write_all_at(&block, block_at(1)).unwrap();
            },
            refused("blocks"),
        ),
        case(
            "a hole moved over a block",
            |sample| {
                data(sample, "blocks")
                    .write_all_at(&vec![0; 3 * STRIDE as usize], block_at(0))
                    .unwrap();
            },
            refused("blocks"),
        ),
        case(
            "two blocks of a sparse file exchanged",
            |sample| {
                let file = data(sample, "sparse");
                let block = read_block(&file, 4);
                file.write_all_at(&block, block_at(2)).unwrap();
            },
            refused("sparse"),
        ),
        case(
            "sealed set to open",
            overwrite("blocks", 10, vec![1]),
            refused("blocks"),
        ),
        case(
            "sparse flag set",
            |sample| {
                let file = data(sample, "blocks");
                let mut flags = [0];
                file.read_exact_at(&mut flags, 11).unwrap();
                file.write_all_at(&[flags[0] | 1], 11).unwrap();
                file.write_all_at(&vec![0; STRIDE as usize], block_at(1)).unwrap();
            },
            refused("blocks"),
        ),
        case(
            "placed flag cleared, and contents exchanged",
            |sample| {
                for path in ["blocks", "blocks-too"] {
                    let file = data(sample, path);
                    let mut flags = [0];
                    file.read_exact_at(&mut flags, 11).unwrap();
                    file.write_all_at(&[flags[0] & !2], 11).unwrap();
                }
                exchange(&sample.disk("blocks"), &sample.disk("blocks-too"));
            },
            [("blocks", Refused), ("blocks-too", Refused)],
        ),
        case(
            "preamble of another file",
            |sample| {
                let mut preamble = [0; PREAMBLE as usize];
                data(sample, "blocks-too").read_exact_at(&mut preamble, 0).unwrap();
                data(sample, "blocks").write_all_at(&preamble, 0).unwrap();
            },
            refused("blocks"),
        ),
    ]
}

/// A zeroed block of a sparse file is a hole to who opens it, as docs/FORMAT.md says: only the sum tells.
fn sparse_block_zeroed(sample: &Sample) -> Case {
    let Plain::File(content) = &sample.tree["sparse"] else {
        unreachable!()
    };
    let mut content = content.clone();
    content[..BLOCK].fill(0);
    case(
        "a block of a sparse file zeroed",
        overwrite("sparse", block_at(0), vec![0; STRIDE as usize]),
        [("sparse", Undetected(content))],
    )
}

/// Files with several names are bound to their directory only, as docs/FORMAT.md says.
fn linked_file_elsewhere(sample: &Sample) -> Case {
    let Plain::File(content) = &sample.tree["linked"] else {
        unreachable!()
    };
    case(
        "a file with several names copied over another in its directory",
        |sample| put(&sample.disk("linked"), &sample.disk("odd")),
        [("odd", Undetected(content.clone()))],
    )
    .unseen_by_verify()
}

fn places() -> Vec<Case> {
    vec![
        case(
            "contents of two names exchanged",
            |sample| exchange(&sample.disk("blocks"), &sample.disk("blocks-too")),
            [("blocks", Refused), ("blocks-too", Refused)],
        ),
        case(
            "a file moved over another name",
            |sample| fs::rename(sample.disk("odd"), sample.disk("one")).unwrap(),
            [("odd", Gone), ("one", Refused)],
        ),
        case(
            "a file copied over another name",
            |sample| put(&sample.disk("odd"), &sample.disk("blocks")),
            [("blocks", Refused)],
        ),
        case(
            "a file with its header under a name of another directory",
            |sample| {
                let to = sample.disk("dir/inner");
                let header = sample.header("odd");
                put(&header, &to.with_file_name(header.file_name().unwrap()));
                put(&sample.disk("odd"), &to);
            },
            [("dir/inner", Refused)],
        ),
        case(
            "a file of several names with its header under a name of a third directory",
            |sample| {
                let to = sample.disk("dir/inner");
                let header = sample.header("linked");
                put(&header, &to.with_file_name(header.file_name().unwrap()));
                put(&sample.disk("linked"), &to);
            },
            [("dir/inner", Refused)],
        ),
        case(
            "a file of another directory, its own header kept",
            |sample| put(&sample.disk("renamed/inner"), &sample.disk("dir/inner")),
            [("dir/inner", Refused)],
        ),
        case(
            "a file with its header under the same disk name in another directory",
            |sample| {
                let (data, header) = (sample.disk("odd"), sample.header("odd"));
                for file in [data, header] {
                    put(&file, &sample.disk("dir").join(file.file_name().unwrap()));
                }
            },
            [],
        )
        .stuck(&["dir"]),
        case(
            "a hard link of a file over another name of its directory",
            |sample| link(&sample.disk("blocks"), &sample.disk("odd")),
            [("odd", Refused)],
        ),
        case(
            "a hard link of a file over a name of another directory",
            |sample| link(&sample.disk("blocks"), &sample.disk("dir/inner")),
            [("dir/inner", Refused)],
        ),
        // Known by that name first, it cannot be admitted under its own.
        case(
            "a hard link of a file over a name that is looked up before it",
            |sample| link(&sample.disk("one"), &sample.disk("blocks")),
            [("blocks", Refused), ("one", Refused)],
        ),
        case(
            "a hard link of a file with several names over a name of another directory",
            |sample| link(&sample.disk("linked"), &sample.disk("renamed/inner")),
            [("renamed/inner", Refused)],
        ),
        case(
            "a directory moved into another",
            |sample| {
                let dir = sample.disk("dir");
                fs::rename(&dir, sample.disk("other").join(dir.file_name().unwrap())).unwrap();
            },
            [
                ("dir", Gone),
                ("dir/inner", Gone),
                ("dir/inner-too", Gone),
                ("dir/sub", Gone),
                ("dir/sub/deep", Gone),
            ],
        )
        .stuck(&["other"]),
        case(
            "a renamed directory moved to another's name",
            |sample| {
                fs::rename(sample.disk("other"), sample.vault().join("moved away")).unwrap();
                fs::rename(sample.disk("renamed"), sample.disk("other")).unwrap();
            },
            [
                ("renamed", Gone),
                ("renamed/inner", Gone),
                ("other", Refused),
                ("other/linked-there", Refused),
            ],
        )
        .stuck(&["other"]),
        case(
            "a renamed and another directory exchanged",
            |sample| exchange(&sample.disk("dir"), &sample.disk("renamed")),
            [
                ("dir", Refused),
                ("dir/inner", Refused),
                ("dir/inner-too", Refused),
                ("dir/sub", Refused),
                ("dir/sub/deep", Refused),
                ("renamed/inner", Gone),
            ],
        )
        .stuck(&["dir", "renamed"]),
        case(
            "two renamed directories exchanged",
            |sample| exchange(&sample.disk("renamed"), &sample.disk("also-renamed")),
            [
                ("renamed", Refused),
                ("renamed/inner", Refused),
                ("also-renamed", Refused),
                ("also-renamed/inner", Refused),
            ],
        )
        .stuck(&["renamed", "also-renamed"]),
        case(
            "dir.hush deleted",
            |sample| fs::remove_file(sample.disk("renamed").join("dir.hush")).unwrap(),
            [("renamed/inner", Gone)],
        )
        .stuck(&["renamed"]),
        case(
            "dir.hush of another directory",
            |sample| {
                let from = sample.disk("also-renamed").join("dir.hush");
                put(&from, &sample.disk("renamed").join("dir.hush"));
            },
            [("renamed", Refused), ("renamed/inner", Refused)],
        )
        .stuck(&["renamed"]),
        case(
            "dir.hush in a directory that had none",
            |sample| {
                let from = sample.disk("renamed").join("dir.hush");
                put(&from, &sample.disk("other").join("dir.hush"));
            },
            [("other", Refused), ("other/linked-there", Refused)],
        )
        .stuck(&["other"]),
        case(
            "dir.hush changed",
            |sample| {
                let path = sample.disk("renamed").join("dir.hush");
                let mut bytes = fs::read(&path).unwrap();
                bytes[20] ^= 1;
                fs::write(path, bytes).unwrap();
            },
            [("renamed", Refused), ("renamed/inner", Refused)],
        )
        .stuck(&["renamed"]),
        case(
            "dir.hush emptied",
            |sample| fs::write(sample.disk("renamed").join("dir.hush"), "").unwrap(),
            [("renamed", Refused), ("renamed/inner", Refused)],
        )
        .stuck(&["renamed"]),
        case(
            "dir.hush of the root directory",
            |sample| {
                put(
                    &sample.disk("renamed").join("dir.hush"),
                    &sample.vault().join("dir.hush"),
                )
            },
            [],
        ),
    ]
}

fn headers() -> Vec<Case> {
    vec![
        case(
            "header of another file",
            |sample| put(&sample.header("odd"), &sample.header("one")),
            [("one", Refused)],
        ),
        case(
            "headers of two files exchanged",
            |sample| exchange(&sample.header("odd"), &sample.header("one")),
            [("one", Refused), ("odd", Refused)],
        ),
        case(
            "header missing",
            |sample| fs::remove_file(sample.header("odd")).unwrap(),
            [("odd", Refused)],
        ),
        case(
            "header emptied",
            |sample| fs::write(sample.header("odd"), "").unwrap(),
            [("odd", Refused)],
        ),
        case(
            "header cut",
            |sample| {
                fs::OpenOptions::new()
                    .write(true)
                    .open(sample.header("odd"))
                    .unwrap()
                    .set_len(181)
                    .unwrap()
            },
            [("odd", Refused)],
        ),
        case(
            "header extended",
            |sample| {
                let mut bytes = fs::read(sample.header("odd")).unwrap();
                bytes.push(0);
                fs::write(sample.header("odd"), bytes).unwrap();
            },
            [("odd", Refused)],
        ),
        case(
            "header is a directory",
            |sample| {
                let header = sample.header("odd");
                fs::remove_file(&header).unwrap();
                fs::create_dir(header).unwrap();
            },
            [("odd", Refused)],
        ),
        case(
            "header is a symbolic link to the header",
            |sample| {
                let header = sample.header("odd");
                let to = sample.vault().with_file_name("header-outside");
                fs::rename(&header, &to).unwrap();
                std::os::unix::fs::symlink(to, header).unwrap();
            },
            [("odd", Refused)],
        ),
        case(
            "header is a fifo",
            |sample| {
                let header = sample.header("odd");
                fs::remove_file(&header).unwrap();
                assert!(Command::new("mkfifo").arg(header).status().unwrap().success());
            },
            [("odd", Refused)],
        ),
    ]
}

fn links() -> Vec<Case> {
    let replace = |path: &'static str, target: &'static str| {
        move |sample: &Sample| {
            let disk = sample.disk(path);
            fs::remove_file(&disk).unwrap();
            std::os::unix::fs::symlink(target, disk).unwrap();
        }
    };
    vec![
        case(
            "a link to a path in plaintext",
            replace("link", "/etc/passwd"),
            [("link", Refused)],
        ),
        case("a link to nothing sealed", replace("link", "AAAA"), [("link", Refused)]),
        case(
            "a long link to a path in plaintext",
            replace("long-link", "/etc/passwd"),
            [("long-link", Refused)],
        ),
        case(
            "a file replaced by a link out of the vault",
            replace("odd", "/etc/passwd"),
            [("odd", Refused)],
        ),
        case(
            "a link's target put under another",
            |sample| put(&sample.disk("link-too"), &sample.disk("link")),
            [("link", UndetectedTarget("odd"))],
        )
        .unseen_by_verify(),
        case(
            "the file of a long link changed",
            |sample| {
                let file = fs::read_dir(sample.vault())
                    .unwrap()
                    .map(|entry| entry.unwrap().path())
                    .find(|path| path.as_os_str().as_bytes().ends_with(b".link.hush"))
                    .unwrap();
                let mut bytes = fs::read(&file).unwrap();
                bytes[1000] ^= 4;
                fs::write(file, bytes).unwrap();
            },
            [("long-link", Refused)],
        ),
        case(
            "a directory replaced by a link out of the vault",
            |sample| {
                let disk = sample.disk("other");
                fs::remove_dir_all(&disk).unwrap();
                std::os::unix::fs::symlink("/etc", disk).unwrap();
            },
            [("other", Refused), ("other/linked-there", Refused)],
        ),
    ]
}

fn strangers() -> Vec<Case> {
    let plant =
        |name: &'static str| move |sample: &Sample| fs::write(sample.vault().join(name), "someone else's").unwrap();
    vec![
        case("a stranger's file", plant("foo.txt"), []),
        case("a stranger's file with spaces", plant("Read me first"), []),
        case(
            "a name that nobody sealed",
            plant("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
            [],
        ),
        case(
            "a long name that nobody sealed",
            plant("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
            [],
        ),
        case(
            "a name sealed for another directory",
            |sample| {
                let from = sample.disk("dir/inner");
                put(&from, &sample.vault().join(from.file_name().unwrap()));
            },
            [],
        ),
        case("a header of nobody", plant("AAAAAAAAAAAAAAAAAAAAAA.hush"), []).unseen_by_verify(),
        case(
            "a stranger's file in a directory",
            |sample| {
                fs::write(sample.disk("dir").join("foo.txt"), "someone else's").unwrap();
            },
            [],
        )
        .stuck(&["dir"]),
        case(
            "the file of a long name deleted",
            |sample| {
                let entry = sample.disk(LONG_NAME);
                let name = format!("{}.long.hush", entry.file_name().unwrap().to_str().unwrap());
                fs::remove_file(entry.with_file_name(name)).unwrap();
            },
            [],
        ),
    ]
}

/// Runs a case: damages, mounts, judges every path, removes all.
fn run(sample: &mut Sample, case: &Case) {
    let name = case.name;
    sample.restore();
    (case.damage)(sample);
    let verify = sample.bench.run("verify", &[]);
    assert_eq!(
        verify.status.code(),
        Some(case.verify),
        "{name}: {}{}",
        String::from_utf8_lossy(&verify.stdout),
        String::from_utf8_lossy(&verify.stderr)
    );
    sample.bench.mount(&[]);
    let mnt = sample.bench.mnt();
    let mut hidden = BTreeSet::new();
    for (path, plain) in &sample.tree {
        let outcome = judge(&mnt, path, plain);
        let expected = case.expect.iter().find(|(at, _)| at == path).map(|(_, expect)| expect);
        match expected {
            None => assert_eq!(outcome, Outcome::Original, "{name}: {path:?}"),
            Some(Refused) => assert_eq!(outcome, Outcome::Refused, "{name}: {path:?}"),
            Some(Gone) => {
                assert_eq!(outcome, Outcome::Gone, "{name}: {path:?}");
                hidden.insert(path.clone());
            }
            Some(Undetected(content)) => {
                let found = fs::read(mnt.join(path)).unwrap_or_else(|error| panic!("{name}: {path:?}: {error}"));
                assert!(found == *content, "{name}: {path:?}: {} bytes", found.len());
            }
            Some(UndetectedTarget(target)) => {
                assert_eq!(
                    fs::read_link(mnt.join(path)).unwrap(),
                    Path::new(target),
                    "{name}: {path:?}"
                );
            }
        }
    }
    let mut shown: BTreeSet<String> = fs::read_dir(&mnt)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    if case.name == "the file of a long name deleted" {
        // It opens by its name still, but a listing cannot know that.
        shown.insert(LONG_NAME.to_owned());
    }
    let expected: BTreeSet<String> = sample
        .tree
        .keys()
        .filter(|path| !path.contains('/') && !hidden.contains(*path))
        .cloned()
        .collect();
    assert_eq!(shown, expected, "{name}");
    remove_all(sample, case, &shown);
}

fn remove_all(sample: &mut Sample, case: &Case, shown: &BTreeSet<String>) {
    let name = case.name;
    let mnt = sample.bench.mnt();
    for entry in shown {
        let output = Command::new("rm")
            .arg("-rf")
            .arg("--")
            .arg(mnt.join(entry))
            .output()
            .unwrap();
        if !case.stuck.contains(&entry.as_str()) {
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}: {entry:?}: {stderr}");
            assert!(fs::symlink_metadata(mnt.join(entry)).is_err(), "{name}: {entry:?}");
        }
    }
    // What stays is known to be so; the day it can be removed this tells.
    let left: BTreeSet<_> = fs::read_dir(&mnt)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(
        left,
        case.stuck.iter().map(|&entry| entry.to_owned()).collect(),
        "{name}"
    );
    sample.bench.unmount();
}

fn run_all(cases: impl FnOnce(&Sample) -> Vec<Case>) {
    if !can_mount() {
        return;
    }
    let mut sample = Sample::new();
    for case in cases(&sample) {
        eprintln!("{}", case.name);
        run(&mut sample, &case);
    }
}

#[test]
fn an_untouched_vault_is_original() {
    run_all(|_| vec![case("nothing", |_| {}, []).unseen_by_verify()]);
}

#[test]
fn contents_are_original_or_refused() {
    run_all(|sample| {
        let mut cases = contents();
        cases.push(sparse_block_zeroed(sample));
        cases.push(linked_file_elsewhere(sample));
        cases
    });
}

#[test]
fn files_and_directories_stay_in_their_places() {
    run_all(|_| places());
}

#[test]
fn headers_are_each_files_own() {
    run_all(|_| headers());
}

#[test]
fn links_lead_where_they_led_or_nowhere() {
    run_all(|_| links());
}

#[test]
fn strangers_are_not_shown() {
    run_all(|_| strangers());
}

#[test]
fn an_older_version_of_a_block_is_found_by_verify() {
    if !can_mount() {
        return;
    }
    let mut sample = Sample::new();
    let before = fs::read(sample.disk("blocks")).unwrap();
    let Plain::File(old) = sample.tree["blocks"].clone() else {
        unreachable!()
    };
    sample.bench.mount(&[]);
    let path = sample.bench.mnt().join("blocks");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0x11; 2 * BLOCK], 0).unwrap();
    drop(file);
    sample.bench.unmount();
    let disk = sample.disk("blocks");
    let after = fs::read(&disk).unwrap();

    let mut mixed = after.clone();
    let block = block_at(1) as usize..block_at(2) as usize;
    mixed[block.clone()].copy_from_slice(&before[block]);
    fs::write(&disk, &mixed).unwrap();
    assert_eq!(sample.bench.run("verify", &[]).status.code(), Some(4));
    sample.bench.mount(&[]);
    let mut new = old.clone();
    new[..2 * BLOCK].fill(0x11);
    match fs::read(&path) {
        // Each block by itself is one that hushfs sealed; only the sum tells that they do not belong together.
        Ok(found) => {
            for (i, block) in found.chunks(BLOCK).enumerate() {
                let range = i * BLOCK..i * BLOCK + block.len();
                assert!(*block == old[range.clone()] || *block == new[range], "block {i}");
            }
        }
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO)),
    }
    sample.bench.unmount();
    // The old preamble over new blocks, and the whole old file, which is documented as undetected.
    fs::write(
        &disk,
        [&before[..PREAMBLE as usize], &after[PREAMBLE as usize..]].concat(),
    )
    .unwrap();
    assert_eq!(sample.bench.run("verify", &[]).status.code(), Some(4));
    fs::write(&disk, &before).unwrap();
    assert_eq!(sample.bench.run("verify", &[]).status.code(), Some(0));
    sample.bench.mount(&[]);
    assert!(fs::read(&path).unwrap() == old);
}

#[test]
fn attributes_are_bound_to_their_names() {
    if !can_mount() {
        return;
    }
    let mut sample = Sample::new();
    if !sample.xattrs {
        return;
    }
    let disk = sample.disk("one");
    let value = |path: &Path, name: &str| {
        let mut value = [0; 300];
        rustix::fs::getxattr(path, name, &mut value[..]).map(|len| value[..len].to_vec())
    };
    let mut names = vec![0; 4096];
    let len = rustix::fs::listxattr(&disk, &mut names[..]).unwrap();
    let names: Vec<_> = names[..len]
        .split(|&byte| byte == 0)
        .filter(|name| name.starts_with(b"user.hush."))
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .collect();
    assert_eq!(names.len(), 2);
    let (one, other) = (value(&disk, &names[0]).unwrap(), value(&disk, &names[1]).unwrap());
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(&disk, name, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    let mut changed = one.clone();
    changed[20] ^= 1;
    for (what, damaged) in [
        ("another's value", other.clone()),
        ("a changed value", changed),
        ("an empty value", Vec::new()),
        ("a value in plaintext", b"first".to_vec()),
    ] {
        set(&names[0], &damaged);
        assert_eq!(sample.bench.run("verify", &[]).status.code(), Some(4), "{what}");
        sample.bench.mount(&[]);
        let path = sample.bench.mnt().join("one");
        let found = [value(&path, "user.one"), value(&path, "user.two")];
        assert!(found.contains(&Err(rustix::io::Errno::IO)), "{what}: {found:?}");
        assert!(
            found.contains(&Ok(b"first".to_vec())) || found.contains(&Ok(b"other".to_vec())),
            "{what}: {found:?}"
        );
        // The content has nothing to do with it, and the attribute can be set anew or removed.
        assert_eq!(
            judge(&sample.bench.mnt(), "one", &sample.tree["one"]),
            Outcome::Original,
            "{what}"
        );
        let bad = if found[0].is_err() { "user.one" } else { "user.two" };
        rustix::fs::removexattr(&path, bad).unwrap();
        sample.bench.unmount();
        set(&names[0], &one);
        set(&names[1], &other);
    }
}

#[test]
fn a_damaged_file_is_named_in_the_log() {
    if !can_mount() {
        return;
    }
    let mut sample = Sample::new();
    fs::remove_file(sample.header("odd")).unwrap();
    sample.bench.mount(&[]);
    assert_eq!(judge(&sample.bench.mnt(), "odd", &sample.tree["odd"]), Outcome::Refused);
    let disk = sample.disk("odd");
    sample.bench.unmount();
    let log = sample.bench.log();
    assert!(log.contains(disk.file_name().unwrap().to_str().unwrap()), "{log}");
    assert!(log.contains("is missing"), "{log}");
    assert!(!header_of(&disk).exists());
}

#[test]
fn removing_a_copy_put_over_another_file_keeps_the_original() {
    if !can_mount() {
        return;
    }
    let mut sample = Sample::new();
    for (original, over) in [("odd", "blocks"), ("linked", "one")] {
        put(&sample.disk(original), &sample.disk(over));
        sample.bench.mount(&[]);
        let mnt = sample.bench.mnt();
        fs::remove_file(mnt.join(over)).unwrap();
        sample.bench.remount();
        assert_eq!(
            judge(&mnt, original, &sample.tree[original]),
            Outcome::Original,
            "{original}"
        );
        sample.bench.unmount();
    }
}
