//! The same random script on a mount and on a plain directory gives the same answers.

use std::{
    fs, io,
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::Path,
};

use crate::support::{Bench, Rng, can_mount, checksum, snapshot};

/// One step, with numbers that stand for names.
#[derive(Clone, Debug)]
enum Step {
    Write(usize, u64, usize),
    Append(usize, usize),
    Truncate(usize, u64),
    Read(usize),
    Mkdir(usize),
    Rmdir(usize),
    Unlink(usize),
    Rename(usize, usize),
    Link(usize, usize),
    Symlink(usize, usize),
    Chmod(usize, u32),
    List(usize),
    Copy(usize, usize),
}

/// Names that collide often: files, directories and deep paths share them.
fn path(n: usize) -> String {
    let names = [
        "a",
        "b",
        "c",
        "dir",
        "dir/a",
        "dir/b",
        "dir/sub",
        "dir/sub/a",
        "other",
        "other/a",
        "other/b",
    ];
    match n {
        n if n < names.len() => names[n].to_owned(),
        n => format!("other/{}", "l".repeat(150 + n * 7)),
    }
}

const NAMES: usize = 14;

fn step(rng: &mut Rng) -> Step {
    let name = rng.below(NAMES);
    let other = rng.below(NAMES);
    let offset = match rng.below(3) {
        0 => rng.below(20_000) as u64,
        1 => 4096 * rng.below(6) as u64,
        _ => (4096 * (1 + rng.below(5)) - 1) as u64,
    };
    match rng.below(16) {
        0..=2 => Step::Write(name, offset, 1 + rng.below(9000)),
        3 => Step::Append(name, 1 + rng.below(5000)),
        4 => Step::Truncate(name, offset),
        5 => Step::Read(name),
        6 | 7 => Step::Mkdir(name),
        8 => Step::Rmdir(name),
        9 => Step::Unlink(name),
        10 | 11 => Step::Rename(name, other),
        12 => Step::Link(name, other),
        13 => Step::Symlink(name, other),
        14 if rng.below(2) == 0 => Step::Copy(name, other),
        14 => Step::Chmod(name, 0o400 | (rng.below(0o1000) as u32)),
        _ => Step::List(name),
    }
}

/// Runs a step; what it answers is compared.
fn run(root: &Path, step: &Step, seed: u64) -> String {
    let at = |n: &usize| root.join(path(*n));
    let data = |len: usize| (0..len).map(|i| (i as u64 ^ seed) as u8).collect::<Vec<_>>();
    let answer: io::Result<String> = (|| match step {
        Step::Write(n, offset, len) => {
            let file = fs::OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(at(n))?;
            file.write_all_at(&data(*len), *offset)?;
            Ok(file.metadata()?.len().to_string())
        }
        Step::Append(n, len) => {
            use std::io::Write;
            let mut file = fs::OpenOptions::new().create(true).append(true).open(at(n))?;
            file.write_all(&data(*len))?;
            Ok(file.metadata()?.len().to_string())
        }
        Step::Truncate(n, size) => {
            fs::OpenOptions::new().write(true).open(at(n))?.set_len(*size)?;
            Ok(String::new())
        }
        Step::Read(n) => Ok(checksum(&fs::read(at(n))?)),
        Step::Mkdir(n) => fs::create_dir(at(n)).map(|()| String::new()),
        Step::Rmdir(n) => fs::remove_dir(at(n)).map(|()| String::new()),
        Step::Unlink(n) => fs::remove_file(at(n)).map(|()| String::new()),
        Step::Rename(n, to) => fs::rename(at(n), at(to)).map(|()| String::new()),
        Step::Link(n, to) => fs::hard_link(at(n), at(to)).map(|()| String::new()),
        Step::Symlink(n, to) => symlink(path(*n), at(to)).map(|()| String::new()),
        Step::Chmod(n, mode) => {
            // Of the link's target, which may be outside: not for links.
            if fs::symlink_metadata(at(n))?.is_symlink() {
                return Ok(String::new());
            }
            fs::set_permissions(at(n), fs::Permissions::from_mode(*mode | 0o700)).map(|()| String::new())
        }
        Step::List(n) => {
            let mut names: Vec<_> = fs::read_dir(at(n))?.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            Ok(format!("{names:?}"))
        }
        Step::Copy(n, to) => Ok(fs::copy(at(n), at(to))?.to_string()),
    })();
    match answer {
        Ok(text) => format!("ok {text}"),
        Err(error) => format!("errno {:?}", error.raw_os_error()),
    }
}

fn without_times(mut lines: Vec<String>) -> Vec<String> {
    for line in &mut lines {
        let from = line.find('(').unwrap_or(0);
        let to = line[from..].find(')').map_or(from, |at| from + at + 1);
        line.replace_range(from..to, "");
    }
    lines
}

fn compare(options: &[&str], seed: u64, steps: usize) {
    if !can_mount() {
        return;
    }
    let mut rng = Rng::new(seed);
    let mut bench = Bench::new();
    bench.mount(options);
    for i in 0..steps {
        let step = step(&mut rng);
        let on_mount = run(&bench.mnt(), &step, i as u64);
        let on_disk = run(&bench.plain(), &step, i as u64);
        assert_eq!(on_mount, on_disk, "step {i}: {step:?}");
        if i % 400 == 399 {
            bench.remount();
        }
    }
    assert_eq!(
        without_times(snapshot(&bench.mnt())),
        without_times(snapshot(&bench.plain()))
    );
    bench.unmount();
    let verified = bench.run("verify", &[]);
    assert!(
        verified.status.success(),
        "{}",
        String::from_utf8_lossy(&verified.stderr)
    );
}

#[test]
fn a_mount_answers_as_a_plain_directory_does() {
    compare(&[], 20_261, 2_500);
}

#[test]
fn a_shared_mount_answers_as_a_plain_directory_does() {
    compare(&["--shared"], 31_337, 1_200);
}
