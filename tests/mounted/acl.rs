//! POSIX access control lists, set and read by Debian's tools and checked by what other users may do.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Output},
};

use crate::support::{Bench, can_mount, is_root};

/// Users and groups that own nothing here.
const ANN: u32 = 54_321;
const BEN: u32 = 54_322;
const TEAM: u32 = 54_400;

fn run(program: &str, arguments: &[&str], path: &Path) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).arg(path);
    command.output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn set(list: &[&str], path: &Path) {
    let output = run("setfacl", list, path);
    assert!(
        output.status.success(),
        "setfacl {list:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn get(path: &Path) -> String {
    let output = run("getfacl", &["-cnE", "--absolute-names"], path);
    String::from_utf8(output.stdout)
        .unwrap()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Tells whether a user may read a file.
fn may_read(user: u32, group: u32, path: &Path) -> bool {
    let status = Command::new("cat")
        .arg(path)
        .uid(user)
        .gid(group)
        .output()
        .unwrap()
        .status;
    status.success()
}

fn mounted_with_lists() -> Bench {
    let mut bench = Bench::new();
    let others: &[&str] = if is_root() {
        &["--acl", "--allow-other"]
    } else {
        &["--acl"]
    };
    bench.mount(others);
    bench
}

#[test]
fn lists_and_permissions_follow_each_other() {
    if !can_mount() {
        return;
    }
    let mut bench = mounted_with_lists();
    let file = bench.mnt().join("file");
    fs::write(&file, "text").unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
    set(&["-m", "u:54321:rw,g:54400:r"], &file);
    assert_eq!(
        get(&file),
        "user::rw- user:54321:rw- group::r-- group:54400:r-- mask::rw- other::---"
    );
    assert_eq!(mode(&file), 0o660);
    fs::set_permissions(&file, PermissionsExt::from_mode(0o604)).unwrap();
    assert_eq!(
        get(&file),
        "user::rw- user:54321:rw- group::r-- group:54400:r-- mask::--- other::r--"
    );
    bench.remount();
    assert_eq!(mode(&file), 0o604);
    assert_eq!(
        get(&file),
        "user::rw- user:54321:rw- group::r-- group:54400:r-- mask::--- other::r--"
    );
    set(&["-b"], &file);
    // setfacl leaves the group what the mask let it have.
    assert_eq!(get(&file), "user::rw- group::--- other::r--");
    assert_eq!(mode(&file), 0o604);
}

#[test]
fn what_is_made_in_a_directory_inherits_its_default_list() {
    if !can_mount() {
        return;
    }
    let mut bench = mounted_with_lists();
    let team = bench.mnt().join("team");
    fs::create_dir(&team).unwrap();
    fs::set_permissions(&team, PermissionsExt::from_mode(0o755)).unwrap();
    set(&["-d", "-m", "u:54321:rwx,o::-"], &team);
    for again in [false, true] {
        if again {
            bench.remount();
        }
        let (file, below) = (team.join(format!("file-{again}")), team.join(format!("below-{again}")));
        let made = Command::new("sh")
            .args(["-c", "umask 077; echo text > \"$0\"; mkdir \"$1\""])
            .args([&file, &below])
            .status()
            .unwrap();
        assert!(made.success());
        // The default list takes the place of the mask.
        assert_eq!(get(&file), "user::rw- user:54321:rwx group::r-x mask::rw- other::---");
        assert_eq!(mode(&file), 0o660);
        assert_eq!(
            get(&below),
            "user::rwx user:54321:rwx group::r-x mask::rwx other::--- \
             default:user::rwx default:user:54321:rwx default:group::r-x default:mask::rwx default:other::---"
        );
    }
    fs::set_permissions(&team, PermissionsExt::from_mode(0o2755)).unwrap();
    fs::create_dir(team.join("group")).unwrap();
    assert_eq!(
        mode(&team.join("group")) & 0o7000,
        0o2000,
        "set-group-id is inherited too"
    );
    set(&["-k"], &team);
    let plain = team.join("plain");
    let made = Command::new("sh")
        .args(["-c", "umask 027; echo text > \"$0\""])
        .arg(&plain)
        .status()
        .unwrap();
    assert!(made.success());
    assert_eq!(get(&plain), "user::rw- group::r-- other::---");
}

#[test]
fn lists_decide_who_may_read() {
    if !can_mount() || !is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    let mut bench = mounted_with_lists();
    for dir in [bench.mnt(), bench.mnt().parent().unwrap().to_owned()] {
        fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let file = bench.mnt().join("file");
    fs::write(&file, "text").unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    assert!(!may_read(ANN, ANN, &file));
    set(&["-m", "u:54321:r"], &file);
    assert!(may_read(ANN, ANN, &file) && !may_read(BEN, BEN, &file));
    set(&["-m", "g:54400:r"], &file);
    assert!(may_read(BEN, TEAM, &file));
    bench.remount();
    assert!(may_read(ANN, ANN, &file) && may_read(BEN, TEAM, &file) && !may_read(BEN, BEN, &file));
    set(&["-x", "u:54321"], &file);
    assert!(!may_read(ANN, ANN, &file));
}

#[test]
fn a_list_set_by_who_is_not_in_the_group_clears_set_group_id() {
    if !can_mount() || !is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    let bench = mounted_with_lists();
    for dir in [bench.mnt(), bench.mnt().parent().unwrap().to_owned()] {
        fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let dir = bench.mnt().join("dir");
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(ANN), Some(TEAM)).unwrap();
    // The groups of the process that calls setfacl: its first one, then the others.
    let cases = [(TEAM, "", true), (ANN, "54400", true), (ANN, "54401", false)];
    for (named, (first, others, keeps)) in (BEN..).zip(cases) {
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o2770)).unwrap();
        let groups = if others.is_empty() {
            "--clear-groups".to_owned()
        } else {
            format!("--groups={others}")
        };
        let status = Command::new("setpriv")
            .args([format!("--reuid={ANN}"), format!("--regid={first}"), groups])
            .args(["setfacl", "-m", &format!("u:{named}:rx")])
            .arg(&dir)
            .status()
            .unwrap();
        assert!(status.success());
        assert_eq!(mode(&dir) & 0o2000 != 0, keeps, "{first} {others:?}");
    }
}

#[test]
fn without_the_option_lists_are_refused() {
    if !can_mount() {
        return;
    }
    let bench = Bench::mounted();
    let file = bench.mnt().join("file");
    fs::write(&file, "text").unwrap();
    let output = run("setfacl", &["-m", "u:54321:r"], &file);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && words.contains("not supported"), "{words}");
}
