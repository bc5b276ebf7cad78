//! `mount --audit per-file`: who opened which file.

use std::{
    fs,
    process::{self, Command},
};

use serde_json::Value;

use super::keys::run;
use crate::support::{Bench, HUSHFS, can_mount};

/// A bench whose vault is under a keystore of its own, and the path of that.
fn audited() -> (Bench, String) {
    let bench = Bench::new();
    let keys = bench.plain().join("keys");
    let keys = keys.to_str().unwrap().to_owned();
    run(&bench, "keystore init --kdf-memory 64M --kdf-time 1ms", &[&keys]);
    fs::remove_dir_all(bench.vault()).unwrap();
    let vault = bench.vault();
    run(&bench, "init", &["--keystore", &keys, vault.to_str().unwrap()]);
    (bench, keys)
}

/// Returns what the audit log of a keystore has.
pub fn records(keys: &str) -> Vec<Value> {
    let shown = Command::new(HUSHFS)
        .args(["audit", "show", "--json", "--keystore", keys])
        .output()
        .unwrap();
    let text = String::from_utf8(shown.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn files_that_are_made_and_opened_are_on_record_with_who_did_it() {
    if !can_mount() {
        return;
    }
    let (mut bench, keys) = audited();
    bench.mount(&["-o", &format!("keystore={keys},audit=per-file")]);
    fs::create_dir(bench.mnt().join("dir")).unwrap();
    fs::write(bench.mnt().join("dir/made"), b"x").unwrap();
    fs::read(bench.mnt().join("dir/made")).unwrap();
    for number in 0..200 {
        fs::write(bench.mnt().join(format!("{number}")), b"x").unwrap();
    }
    // The keystore goes on being used and changed meanwhile.
    run(&bench, "key create", &["--keystore", &keys]);
    bench.unmount();
    let records = records(&keys);
    let of_files: Vec<_> = records
        .iter()
        .filter(|record| record["eventCategory"] == "Data")
        .collect();
    assert_eq!(of_files.len(), 202);
    let what = |record: &Value| {
        let parameters = &record["requestParameters"];
        [&record["eventName"], &parameters["path"], &parameters["access"]]
            .map(|value| value.as_str().unwrap().to_owned())
    };
    assert_eq!(what(of_files[0]), ["CreateFile", "dir/made", "write"]);
    assert_eq!(what(of_files[1]), ["OpenFile", "dir/made", "read"]);
    assert_eq!(what(of_files[201]), ["CreateFile", "199", "write"]);
    let who = &of_files[1]["userIdentity"];
    assert_eq!(who["uid"], rustix::process::geteuid().as_raw());
    assert_eq!(who["gid"], rustix::process::getegid().as_raw());
    // The kernel gives the thread that asks.
    let thread = who["pid"].as_u64().unwrap();
    assert!(fs::exists(format!("/proc/{}/task/{thread}", process::id())).unwrap());
    run(&bench, "audit verify", &["--keystore", &keys]);
}

#[test]
fn names_of_files_are_not_recorded_in_a_vault_nor_where_nothing_is() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::new();
    let refused = bench.try_mount(&["--audit=per-file"]).expect("it ends");
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("names of files into the vault"));
    let (mut bench, keys) = audited();
    run(&bench, "keystore audit off", &["--keystore", &keys]);
    let refused = bench
        .try_mount(&["--audit=per-file", &format!("--keystore={keys}")])
        .expect("it ends");
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("records nothing"));
}
