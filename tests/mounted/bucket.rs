//! Files without a bucket key: whoever has the master key is asked for each of them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{audit::records, keys::run};
use crate::support::{Bench, can_mount};

/// A vault without bucket keys, under a key of a keystore of its own that records its calls.
struct Recorded {
    bench: Bench,
    keys: String,
}

impl Recorded {
    fn new(init: &str) -> Self {
        let bench = Bench::new();
        let keys = bench.plain().join("keys").to_str().unwrap().to_owned();
        run(&bench, "keystore init --kdf-memory 64M --kdf-time 1ms", &[&keys]);
        run(&bench, "key create --alias alias/files", &["--keystore", &keys]);
        fs::remove_dir_all(bench.vault()).unwrap();
        let this = Recorded { bench, keys };
        let vault = this.bench.vault();
        run(
            &this.bench,
            &format!("init {init} --key alias/files"),
            &["--keystore", &this.keys, vault.to_str().unwrap()],
        );
        this
    }

    /// Runs a command on the vault; returns its standard output.
    fn run(&self, words: &str, paths: &[&str]) -> String {
        let vault = self.bench.vault();
        let vault = [&["--keystore", &self.keys, vault.to_str().unwrap()], paths].concat();
        String::from_utf8(run(&self.bench, words, &vault).stdout).unwrap()
    }

    fn key(&self, what: &str) {
        run(
            &self.bench,
            &format!("key {what}"),
            &["--keystore", &self.keys, "alias/files"],
        );
    }

    fn mount(&mut self, options: &[&str]) {
        let options = [options, &["--keystore", &self.keys]].concat();
        self.bench.mount(&options);
    }

    /// Returns how often the keystore was asked for each file, by the name of the call.
    fn calls(&self) -> BTreeMap<String, Vec<String>> {
        let mut calls: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for record in records(&self.keys) {
            let context = &record["requestParameters"]["encryptionContext"];
            if let Some(file) = context["hushfs:file"].as_str() {
                assert!(context["hushfs:vault"].is_string(), "{record}");
                let name = record["eventName"].as_str().unwrap();
                calls.entry(name.to_owned()).or_default().push(file.to_owned());
            }
        }
        calls
    }

    fn counts(&self) -> (usize, usize) {
        let calls = self.calls();
        let count = |name: &str| calls.get(name).map_or(0, Vec::len);
        (count("GenerateDataKey"), count("Decrypt"))
    }
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn each_file_costs_a_call_to_make_and_one_to_open_and_each_is_on_record() {
    if !can_mount() {
        return;
    }
    const FILES: usize = 20;
    let mut vault = Recorded::new("--bucket-key off");
    vault.mount(&["-o", "audit=per-file"]);
    let at = |vault: &Recorded, number: usize| vault.bench.mnt().join(format!("{number}"));
    for number in 0..FILES {
        fs::write(at(&vault, number), format!("content {number}")).unwrap();
        assert_eq!(
            fs::read(at(&vault, number)).unwrap(),
            format!("content {number}").as_bytes()
        );
    }
    assert_eq!(vault.counts(), (FILES, 0), "who makes a file has its key");
    vault.bench.remount();
    for _ in 0..3 {
        for number in 0..FILES {
            assert_eq!(
                fs::read(at(&vault, number)).unwrap(),
                format!("content {number}").as_bytes()
            );
        }
    }
    assert_eq!(
        vault.counts(),
        (FILES, FILES),
        "once for each, while the answers are fresh"
    );
    let mut calls = vault.calls();
    for files in calls.values_mut() {
        files.sort();
        files.dedup();
        assert_eq!(files.len(), FILES);
    }
    assert_eq!(calls["Decrypt"], calls["GenerateDataKey"]);
    vault.bench.unmount();
    let opened = records(&vault.keys);
    let opened = opened.iter().filter(|record| record["eventName"] == "OpenFile");
    assert!(
        opened.clone().all(|record| record["errorCode"].is_null()),
        "no open is on record that had to wait"
    );
    assert!(opened.count() >= 3 * FILES);

    // Without a mount each process asks for what it opens.
    let info = vault.run("file info", &["3"]);
    assert!(info.contains("model    SSE-KMS, bucket key off\n"), "{info}");
    assert_eq!(vault.counts(), (FILES, FILES + 1));
    vault.run("verify", &[]);
    assert_eq!(vault.counts(), (FILES, 2 * FILES + 1));
    vault.run("fsck", &[]);
    assert_eq!(vault.run("cat", &["7"]), "content 7");
    // A new data key is a new file to who has the master key.
    let (made, _) = vault.counts();
    vault.run("rekey", &["7"]);
    assert_eq!(vault.counts().0, made + 1);
    assert_eq!(vault.run("cat", &["7"]), "content 7");
    assert!(vault.run("file info", &["7"]).contains("bucket key off"));
}

#[test]
fn files_do_what_files_do() {
    if !can_mount() {
        return;
    }
    let mut vault = Recorded::new("--bucket-key off");
    vault.mount(&[]);
    let at = |vault: &Recorded, path: &str| vault.bench.mnt().join(path);
    fs::create_dir_all(at(&vault, "a/b")).unwrap();
    for (path, content) in [
        ("a/one", "one"),
        ("a/two", "two"),
        ("a/b/three", "three"),
        ("a/empty", ""),
    ] {
        fs::write(at(&vault, path), content).unwrap();
    }
    vault.bench.remount();
    // Of files that nobody has opened yet.
    fs::rename(at(&vault, "a/one"), at(&vault, "a/b/one")).unwrap();
    fs::hard_link(at(&vault, "a/two"), at(&vault, "linked")).unwrap();
    fs::rename(at(&vault, "a/b/three"), at(&vault, "a/b/tres")).unwrap();
    fs::rename(at(&vault, "a"), at(&vault, "c")).unwrap();
    File::options()
        .write(true)
        .open(at(&vault, "c/two"))
        .unwrap()
        .set_len(2)
        .unwrap();
    File::options()
        .append(true)
        .open(at(&vault, "c/empty"))
        .unwrap()
        .write_all(b"no more")
        .unwrap();
    assert_eq!(fs::read(at(&vault, "linked")).unwrap(), b"tw");
    vault.bench.remount();
    for (path, content) in [
        ("c/b/one", "one"),
        ("c/two", "tw"),
        ("linked", "tw"),
        ("c/b/tres", "three"),
        ("c/empty", "no more"),
    ] {
        assert_eq!(fs::read(at(&vault, path)).unwrap(), content.as_bytes(), "{path}");
    }
    // Deleting takes no key, and leaves nothing behind.
    vault.bench.remount();
    let before = vault.counts();
    fs::remove_dir_all(at(&vault, "c")).unwrap();
    fs::remove_file(at(&vault, "linked")).unwrap();
    assert_eq!(vault.counts(), before);
    vault.bench.unmount();
    let left = fs::read_dir(vault.bench.vault()).unwrap().count();
    assert_eq!(left, 1, "vault.hush alone");
    vault.run("fsck", &[]);
}

#[test]
fn a_key_that_is_disabled_closes_its_files_open_or_not() {
    if !can_mount() {
        return;
    }
    let mut vault = Recorded::new("--bucket-key off");
    // The vault's own key is another, so that the vault opens without it.
    run(
        &vault.bench,
        "vault encryption set --key alias/hushfs/default --bucket-key on",
        &["--keystore", &vault.keys, vault.bench.vault().to_str().unwrap()],
    );
    vault.mount(&[]);
    fs::create_dir(vault.bench.mnt().join("dir")).unwrap();
    fs::write(vault.bench.mnt().join("plain"), b"plain").unwrap();
    vault.bench.unmount();
    vault.run("vault encryption set --key alias/files --bucket-key off", &["dir"]);
    vault.mount(&["--key-ttl", "1s"]);
    let at = |vault: &Recorded, path: &str| vault.bench.mnt().join(path);
    fs::write(at(&vault, "dir/open"), b"open").unwrap();
    fs::write(at(&vault, "dir/closed"), b"closed").unwrap();
    let open = File::open(at(&vault, "dir/open")).unwrap();
    vault.key("disable");
    kill_process(Pid::from_raw(vault.bench.pid() as i32).unwrap(), Signal::HUP).unwrap();
    let wait_for = |wanted: Option<i32>, act: &mut dyn FnMut() -> Option<i32>| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            let got = act();
            if got == wanted {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{got:?} in place of {wanted:?}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    let revoked = Some(libc::EKEYREVOKED);
    wait_for(revoked, &mut || errno(open.read_at(&mut [0; 4], 0)));
    wait_for(revoked, &mut || errno(fs::read(at(&vault, "dir/closed"))));
    assert_eq!(errno(File::create(at(&vault, "dir/new"))), revoked);
    assert!(!at(&vault, "dir/new").exists());
    assert_eq!(fs::read(at(&vault, "plain")).unwrap(), b"plain");
    vault.key("enable");
    kill_process(Pid::from_raw(vault.bench.pid() as i32).unwrap(), Signal::HUP).unwrap();
    wait_for(None, &mut || errno(fs::read(at(&vault, "dir/closed"))));
    wait_for(None, &mut || errno(fs::write(at(&vault, "dir/new"), b"new")));
    wait_for(None, &mut || errno(open.read_at(&mut [0; 4], 0)));
    drop(open);
    vault.bench.unmount();
}

#[test]
fn what_a_journal_has_is_written_while_nobody_gives_the_keys_of_its_files() {
    if !can_mount() {
        return;
    }
    const BLOCKS: usize = 8;
    let mut vault = Recorded::new("--bucket-key off");
    run(
        &vault.bench,
        "vault encryption set --key alias/hushfs/default --bucket-key on",
        &["--keystore", &vault.keys, vault.bench.vault().to_str().unwrap()],
    );
    vault.mount(&["--journal"]);
    fs::create_dir(vault.bench.mnt().join("dir")).unwrap();
    vault.bench.unmount();
    vault.run("vault encryption set --key alias/files --bucket-key off", &["dir"]);
    vault.mount(&["--journal"]);
    let at = |vault: &Recorded, path: &str| vault.bench.mnt().join(path);
    let file = File::create_new(at(&vault, "dir/file")).unwrap();
    file.write_all_at(&[1; BLOCKS * 4096], 0).unwrap();
    file.sync_all().unwrap();
    let mut content = vec![1; BLOCKS * 4096];
    content[5000..13000].fill(2);
    file.write_all_at(&content[5000..13000], 5000).unwrap();
    file.sync_all().unwrap();
    vault.bench.kill();
    drop(file);
    vault.key("disable");
    vault.bench.mount_again();
    fs::write(at(&vault, "plain"), b"plain").unwrap();
    assert_eq!(errno(fs::read(at(&vault, "dir/file"))), Some(libc::EKEYREVOKED));
    vault.bench.kill();
    vault.key("enable");
    vault.bench.mount_again();
    assert_eq!(fs::read(at(&vault, "dir/file")).unwrap(), content);
    assert_eq!(fs::read(at(&vault, "plain")).unwrap(), b"plain");
    vault.bench.unmount();
    vault.run("verify", &[]);
}

#[test]
fn a_policy_decides_for_each_file() {
    if !can_mount() {
        return;
    }
    let mut vault = Recorded::new("--bucket-key off");
    vault.mount(&["--key-ttl", "1s"]);
    let at = |vault: &Recorded, path: &str| vault.bench.mnt().join(path);
    for name in ["one", "two"] {
        fs::write(at(&vault, name), name).unwrap();
    }
    vault.bench.unmount();
    let info: Value = serde_json::from_str(&vault.run("file info --json", &["one"])).unwrap();
    assert_eq!(
        (&info["bucket_key"], &info["authenticated"]),
        (&false.into(), &true.into())
    );
    let policy = serde_json::json!({"Version": "2012-10-17", "Statement": [
        {"Sid": "all", "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"},
        {"Sid": "but one", "Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*",
         "Condition": {"StringEquals": {"kms:EncryptionContext:hushfs:file": info["file"]}}},
    ]});
    let file = vault.bench.plain().join("policy.json");
    fs::write(&file, policy.to_string()).unwrap();
    let file = file.to_str().unwrap();
    vault.mount(&["--key-ttl", "1s"]);
    assert_eq!(fs::read(at(&vault, "one")).unwrap(), b"one");
    run(
        &vault.bench,
        "key policy set",
        &["--keystore", &vault.keys, "--file", file, "alias/files"],
    );
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while errno(fs::read(at(&vault, "one"))) != Some(libc::EACCES) {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(fs::read(at(&vault, "two")).unwrap(), b"two");
    vault.bench.remount();
    assert_eq!(errno(fs::read(at(&vault, "one"))), Some(libc::EACCES));
    assert_eq!(fs::read(at(&vault, "two")).unwrap(), b"two");
    vault.bench.unmount();
}

#[test]
fn files_are_moved_between_the_forms_and_no_content_is_touched() {
    if !can_mount() {
        return;
    }
    let mut vault = Recorded::new("--bucket-key on");
    vault.mount(&[]);
    for number in 0..30 {
        fs::write(vault.bench.mnt().join(format!("{number}")), format!("content {number}")).unwrap();
    }
    vault.bench.unmount();
    vault.run("rewrap --bucket-key off", &["1"]);
    assert!(vault.run("file info", &["1"]).contains("bucket key off"));
    assert!(vault.run("file info", &["2"]).contains("bucket key on"));
    let (made, _) = vault.counts();
    assert_eq!(made, 1);
    vault.run("rewrap --bucket-key off --retire", &[]);
    assert_eq!(vault.counts().0, 30, "the one was so already");
    vault.run("rewrap --bucket-key off --retire", &[]);
    assert_eq!(vault.counts().0, 30, "nothing is asked for what is so already");
    vault.run("verify", &[]);
    vault.run("rewrap --bucket-key on --retire", &[]);
    let counts = vault.counts();
    vault.run("verify", &[]);
    assert_eq!(vault.counts(), counts);
    assert_eq!(vault.run("cat", &["29"]), "content 29");
}
