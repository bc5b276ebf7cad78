//! Master keys that are disabled, on their way out or elsewhere, and what a mount makes of that.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Bench, HUSHFS, can_mount};

/// Long enough for a loaded machine; nothing is timed against it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a command of two words or more that opens a keystore.
pub fn run(bench: &Bench, words: &str, rest: &[&str]) -> Output {
    let output = Command::new(HUSHFS)
        .args(words.split(' '))
        .arg("--passfile")
        .arg(bench.passfile())
        .args(rest)
        .env("HOME", bench.plain())
        .env_remove("XDG_CONFIG_HOME")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{words} {rest:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn errno_of_reading(bench: &Bench, name: &str) -> Option<i32> {
    fs::read(bench.mnt().join(name))
        .err()
        .and_then(|error| error.raw_os_error())
}

#[test]
fn files_of_a_key_that_cannot_be_used_say_so_and_others_go_on() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::new();
    let vault = bench.vault();
    let vault = vault.to_str().unwrap();
    run(&bench, "key create --alias alias/old", &[vault]);
    run(&bench, "vault encryption set --key alias/old", &[vault]);
    bench.mount(&[]);
    fs::write(bench.mnt().join("old"), b"old").unwrap();
    bench.unmount();
    run(&bench, "vault encryption set --key alias/hushfs/default", &[vault]);
    bench.mount(&[]);
    fs::write(bench.mnt().join("new"), b"new").unwrap();
    assert_eq!(fs::read(bench.mnt().join("old")).unwrap(), b"old");
    bench.unmount();

    for (change, errno) in [("disable", libc::EKEYREVOKED), ("delete --days 7", libc::EKEYEXPIRED)] {
        run(&bench, &format!("key {change}"), &[vault, "alias/old"]);
        bench.mount(&[]);
        assert_eq!(errno_of_reading(&bench, "old"), Some(errno), "{change}");
        assert_eq!(fs::metadata(bench.mnt().join("old")).unwrap().len(), 3);
        assert_eq!(fs::read(bench.mnt().join("new")).unwrap(), b"new");
        fs::write(bench.mnt().join("new"), b"newer").unwrap();
        fs::write(bench.mnt().join("new"), b"new").unwrap();
        bench.unmount();
    }
    run(&bench, "key undelete", &[vault, "alias/old"]);
    run(&bench, "key enable", &[vault, "alias/old"]);
    bench.mount(&[]);
    assert_eq!(fs::read(bench.mnt().join("old")).unwrap(), b"old");
    bench.unmount();
}

#[test]
fn a_mount_whose_key_is_disabled_ends_with_its_name_and_code() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::new();
    let vault = bench.vault();
    let vault = vault.to_str().unwrap();
    let id = run(&bench, "key create --alias alias/mine", &[vault]).stdout;
    let id = String::from_utf8(id).unwrap();
    run(&bench, "vault encryption set --key alias/mine", &[vault]);
    run(&bench, "key disable", &[vault, "alias/mine"]);
    let output = bench.try_mount(&[]).expect("the mount is refused");
    assert_eq!(output.status.code(), Some(10));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!(
            "hushfs: DisabledException: the vault's key cannot be used: key {} is disabled: enable it with `hushfs key enable`\n",
            id.trim_end()
        )
    );
}

#[test]
fn vaults_under_one_keystore_are_mounted_while_it_changes() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::new();
    let keys = bench.plain().join("keys");
    let keys = keys.to_str().unwrap();
    run(&bench, "keystore init --kdf-memory 64M --kdf-time 1ms", &[keys]);
    fs::remove_dir_all(bench.vault()).unwrap();
    let vault = bench.vault();
    let vault = vault.to_str().unwrap();
    run(&bench, "init", &["--keystore", keys, vault]);
    bench.mount(&["-o", &format!("keystore={keys}")]);
    fs::write(bench.mnt().join("a"), b"a").unwrap();
    run(&bench, "key create --alias alias/new", &["--keystore", keys]);
    run(&bench, "key disable", &["--keystore", keys, "alias/new"]);
    assert_eq!(fs::read(bench.mnt().join("a")).unwrap(), b"a");
    bench.remount();
    assert_eq!(fs::read(bench.mnt().join("a")).unwrap(), b"a");
    bench.unmount();
}

/// Runs hushfs on the bench's vault, and returns what it prints as JSON.
fn json(bench: &Bench, words: &str, rest: &[&str]) -> serde_json::Value {
    serde_json::from_slice(&run(bench, words, rest).stdout).unwrap()
}

/// The key that a file of the vault has, by its id.
fn key_of(bench: &Bench, vault: &str, path: &str) -> String {
    let info = json(bench, "file info --json", &[vault, path]);
    assert_eq!(info["authenticated"], true, "{path}: {info}");
    info["key"].as_str().unwrap().to_owned()
}

fn describe(bench: &Bench, vault: &str, key: &str) -> String {
    let described = json(bench, "key describe --json", &[vault, key]);
    described["id"].as_str().unwrap().to_owned()
}

/// A vault with a key besides its own, `alias/mail`; and the ids of both.
fn with_two_keys() -> (Bench, String, String) {
    let bench = Bench::new();
    let vault = bench.vault();
    let vault = vault.to_str().unwrap();
    run(&bench, "key create --alias alias/mail", &[vault]);
    let own = describe(&bench, vault, "alias/hushfs/default");
    let mail = describe(&bench, vault, "alias/mail");
    (bench, own, mail)
}

#[test]
fn directories_give_their_key_to_new_files_and_renames_keep_it() {
    if !can_mount() {
        return;
    }
    let (mut bench, own, mail) = with_two_keys();
    let vault = bench.vault();
    let vault = vault.to_str().unwrap();
    bench.mount(&[]);
    fs::create_dir_all(bench.mnt().join("mail/old")).unwrap();
    fs::write(bench.mnt().join("mail/before"), b"before").unwrap();
    // Mounted, the vault is someone else's.
    let output = Command::new(HUSHFS)
        .args(["vault", "encryption", "set", "--key", "alias/mail", "--passfile"])
        .arg(bench.passfile())
        .args([vault, "mail"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(6));
    bench.unmount();

    run(&bench, "vault encryption set --key alias/mail", &[vault, "mail"]);
    bench.mount(&[]);
    let at = |path: &str| bench.mnt().join(path);
    fs::write(at("plain"), b"plain").unwrap();
    fs::write(at("mail/new"), b"new").unwrap();
    fs::write(at("mail/old/new"), b"new").unwrap();
    fs::create_dir_all(at("mail/born/below")).unwrap();
    fs::write(at("mail/born/below/new"), b"new").unwrap();
    fs::write(at("moved in"), b"moved in").unwrap();
    fs::rename(at("moved in"), at("mail/moved in")).unwrap();
    fs::write(at("mail/moved out"), b"moved out").unwrap();
    fs::rename(at("mail/moved out"), at("moved out")).unwrap();
    fs::hard_link(at("mail/new"), at("linked")).unwrap();
    // What is in a directory that moves keeps its key; what is made in it afterwards gets that of the new place.
    fs::rename(at("mail/born"), at("born")).unwrap();
    fs::write(at("born/below/later"), b"later").unwrap();
    fs::rename(at("mail"), at("post")).unwrap();
    fs::write(at("post/renamed"), b"renamed").unwrap();
    bench.unmount();
    let keys = [
        ("plain", &own),
        ("post/before", &own),
        ("post/new", &mail),
        ("post/old/new", &mail),
        ("born/below/new", &mail),
        ("born/below/later", &own),
        ("post/moved in", &own),
        ("moved out", &mail),
        ("linked", &mail),
        ("post/renamed", &mail),
    ];
    for (path, key) in keys {
        assert_eq!(&key_of(&bench, vault, path), key, "{path}");
    }
    let shown = json(&bench, "vault encryption show --json", &[vault]);
    assert_eq!(shown["directories"][0]["path"], "post");

    // A key that cannot be used takes its files along and nothing else.
    run(&bench, "key disable", &[vault, "alias/mail"]);
    bench.mount(&[]);
    for (path, key) in keys {
        if *key == own {
            fs::read(bench.mnt().join(path)).unwrap();
        } else {
            assert_eq!(errno_of_reading(&bench, path), Some(libc::EKEYREVOKED), "{path}");
        }
    }
    let refused = fs::File::create(bench.mnt().join("post/none")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EKEYREVOKED));
    assert!(!bench.mnt().join("post/none").exists());
    fs::write(bench.mnt().join("fine"), b"fine").unwrap();
    bench.unmount();

    run(&bench, "key enable", &[vault, "alias/mail"]);
    let info = json(&bench, "file info --json", &[vault, "post/new"]);
    assert_eq!(
        (&info["model"], &info["state"], &info["size"]),
        (&"SSE-KMS".into(), &"sealed".into(), &3.into())
    );
    let info = json(&bench, "file info --json", &[vault, "plain"]);
    assert_eq!(info["model"], "SSE-S3");
    run(&bench, "verify", &[vault]);
    run(&bench, "fsck", &[vault]);
}

#[test]
fn a_file_gets_another_key_and_its_content_is_not_touched() {
    if !can_mount() {
        return;
    }
    let (mut bench, own, mail) = with_two_keys();
    let vault = bench.vault();
    let vault = vault.to_str().unwrap();
    bench.mount(&[]);
    fs::create_dir(bench.mnt().join("many")).unwrap();
    for number in 0..300 {
        fs::write(bench.mnt().join(format!("many/{number}")), format!("content {number}")).unwrap();
    }
    fs::write(bench.mnt().join("one"), b"one").unwrap();
    bench.unmount();
    let before = data_files(&bench.vault());
    run(&bench, "rewrap --key alias/mail", &[vault, "one", "one"]);
    assert_eq!(key_of(&bench, vault, "one"), mail);
    assert_eq!(key_of(&bench, vault, "many/7"), own);

    // Killed at any moment, every file has one key or the other; the next run completes it.
    for millis in [40, 60, 80, 100, 120] {
        let mut child = Command::new(HUSHFS)
            .args(["rewrap", "--key", "alias/mail", "--passfile"])
            .arg(bench.passfile())
            .args([vault, "many"])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(millis));
        child.kill().unwrap();
        child.wait().unwrap();
        run(&bench, "verify", &[vault]);
    }
    run(&bench, "rewrap --key alias/mail", &[vault, "many"]);
    for number in [0, 7, 299] {
        assert_eq!(key_of(&bench, vault, &format!("many/{number}")), mail);
    }
    assert_eq!(data_files(&bench.vault()), before, "no byte of a content");
    // Without --key each file stays with the key it has.
    run(&bench, "rewrap --retire", &[vault]);
    assert_eq!(key_of(&bench, vault, "many/7"), mail);
    run(&bench, "rewrap --vault-key", &[vault, "one"]);
    assert_eq!(key_of(&bench, vault, "one"), own);
    run(&bench, "verify", &[vault]);
    assert_eq!(data_files(&bench.vault()), before);
    // A new data key, and the same key over it.
    run(&bench, "rekey", &[vault, "many/7"]);
    assert_eq!(key_of(&bench, vault, "many/7"), mail);
}

/// The data files of a vault and what is in them.
fn data_files(vault: &std::path::Path) -> std::collections::BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut files = std::collections::BTreeMap::new();
    let mut waiting = vec![vault.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                waiting.push(entry.path());
            } else if !entry.file_name().to_str().unwrap().contains('.') {
                files.insert(entry.path(), fs::read(entry.path()).unwrap());
            }
        }
    }
    files
}

#[test]
fn files_of_a_customer_key_need_it_and_others_do_not() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::new();
    let vault = bench.vault();
    let vault = vault.to_str().unwrap();
    let key = bench.plain().join("customer.key");
    let option = format!("customer-key={}", key.display());
    fs::write(&key, [7; 32]).unwrap();
    let refused = bench.try_mount(&["-o", &option]).expect("no customer key was allowed");
    assert_eq!(refused.status.code(), Some(10));
    fs::remove_file(&key).unwrap();
    let id = run(
        &bench,
        "vault customer-key add --generate",
        &["--new-customer-key", key.to_str().unwrap(), vault],
    );
    let id = String::from_utf8(id.stdout).unwrap();
    let secret = fs::read(&key).unwrap();
    for file in ["vault.hush", "keystore.hush"] {
        let stored = fs::read(bench.vault().join(file)).unwrap();
        assert!(!stored.windows(16).any(|part| part == &secret[..16]), "{file}");
    }
    bench.mount(&["-o", &option]);
    fs::write(bench.mnt().join("theirs"), b"theirs").unwrap();
    bench.unmount();

    bench.mount(&[]);
    fs::write(bench.mnt().join("ours"), b"ours").unwrap();
    assert_eq!(errno_of_reading(&bench, "theirs"), Some(libc::ENOKEY));
    assert_eq!(fs::metadata(bench.mnt().join("theirs")).unwrap().len(), 6);
    fs::rename(bench.mnt().join("ours"), bench.mnt().join("ours too")).unwrap();
    bench.unmount();

    fs::write(&key, [7; 32]).unwrap();
    let refused = bench.try_mount(&["-o", &option]).expect("the key is wrong");
    assert_eq!(refused.status.code(), Some(3));
    fs::write(&key, &secret).unwrap();
    // No custodian is asked for a customer's key, so none can take it back.
    bench.mount(&["-o", &option, "--key-ttl", "1s"]);
    fs::remove_file(&key).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2500));
    fs::write(&key, &secret).unwrap();
    assert_eq!(fs::read(bench.mnt().join("theirs")).unwrap(), b"theirs");
    assert_eq!(fs::read(bench.mnt().join("ours too")).unwrap(), b"ours");
    bench.unmount();
    let info = json(&bench, "file info --json", &[vault, "theirs"]);
    assert_eq!(
        (&info["model"], &info["key"], &info["authenticated"]),
        (&"SSE-C".into(), &id.trim_end().into(), &false.into())
    );
    // The key goes when no file has it.
    let output = Command::new(HUSHFS)
        .args(["vault", "customer-key", "remove", "--passfile"])
        .arg(bench.passfile())
        .args([vault, id.trim_end()])
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    run(
        &bench,
        "rewrap --vault-key",
        &["--customer-key", key.to_str().unwrap(), vault, "theirs"],
    );
    run(&bench, "vault customer-key remove", &[vault, id.trim_end()]);
    bench.mount(&[]);
    assert_eq!(fs::read(bench.mnt().join("theirs")).unwrap(), b"theirs");
    bench.unmount();
}

/// A mounted vault under a keystore of its own: `old` was written under a key of that, `new` under another.
struct TwoKeys {
    bench: Bench,
    keystore: String,
}

impl TwoKeys {
    /// Has everything in the vault read, which is not mounted.
    fn verify(&self) {
        let vault = self.bench.vault();
        run(
            &self.bench,
            "verify",
            &["--keystore", &self.keystore, vault.to_str().unwrap()],
        );
    }

    fn mounted(options: &[&str]) -> Self {
        let mut bench = Bench::new();
        let keystore = bench.plain().join("keys").to_str().unwrap().to_owned();
        run(&bench, "keystore init --kdf-memory 64M --kdf-time 1ms", &[&keystore]);
        fs::remove_dir_all(bench.vault()).unwrap();
        let vault = bench.vault();
        let vault = vault.to_str().unwrap();
        run(&bench, "init", &["--keystore", &keystore, vault]);
        run(&bench, "key create --alias alias/old", &["--keystore", &keystore]);
        let options = [options, &["--keystore", &keystore]].concat();
        let set = |bench: &Bench, key: &str| {
            let rest = ["--keystore", &keystore, "--key", key, vault];
            run(bench, "vault encryption set", &rest);
        };
        set(&bench, "alias/old");
        bench.mount(&options);
        fs::write(bench.mnt().join("old"), b"old").unwrap();
        bench.unmount();
        set(&bench, "alias/hushfs/default");
        bench.mount(&options);
        fs::write(bench.mnt().join("new"), b"new").unwrap();
        TwoKeys { bench, keystore }
    }

    /// Does something to the key of `old`, and has the mount look.
    fn change(&self, what: &str) {
        self.administer(what);
        self.look();
    }

    /// Does something to the key of `old`.
    fn administer(&self, what: &str) {
        let key = ["--keystore", &self.keystore, "alias/old"];
        run(&self.bench, &format!("key {what}"), &key);
    }

    /// Has the mount look at its keys.
    fn look(&self) {
        let pid = Pid::from_raw(self.bench.pid() as i32).unwrap();
        kill_process(pid, Signal::HUP).unwrap();
    }

    /// Waits until reading `old` by its name gives an errno, or its content.
    fn wait_for(&self, errno: Option<i32>) {
        self.wait_for_reading("old", errno);
    }

    /// As [`wait_for`](Self::wait_for), for any file.
    fn wait_for_reading(&self, name: &str, errno: Option<i32>) {
        let deadline = Instant::now() + PATIENCE;
        while errno_of_reading(&self.bench, name) != errno {
            assert!(
                Instant::now() < deadline,
                "{errno:?} does not come: {}",
                self.bench.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_keystore_that_is_away_for_a_while_costs_nothing_and_for_longer_no_data() {
    if !can_mount() {
        return;
    }
    let mut two = TwoKeys::mounted(&["-v", "-o", "key-ttl=1s,key-max-stale=25s"]);
    let mnt = two.bench.mnt();
    let file = two.bench.plain().join("keys/keystore.hush");
    let aside = two.bench.plain().join("aside");
    let open = File::options().read(true).write(true).open(mnt.join("old")).unwrap();
    fs::rename(&file, &aside).unwrap();
    wait_for_log(&two.bench, "can be used for a while without");
    // Keys at hand serve on: for what is there, and for what is new.
    open.write_all_at(&[b'1'; 5000], 0).unwrap();
    open.sync_all().unwrap();
    fs::write(mnt.join("meanwhile"), b"meanwhile").unwrap();
    File::open(mnt.join("meanwhile")).unwrap().sync_all().unwrap();
    two.wait_for(Some(libc::ETIMEDOUT));
    // Who writes now is told so, and nothing of what was synced is touched.
    let written = open.write_all_at(&[b'2'; 5000], 0).and_then(|()| open.sync_all());
    assert_eq!(errno(written), Some(libc::ETIMEDOUT));
    assert_eq!(errno(File::create(mnt.join("later"))), Some(libc::ETIMEDOUT));
    assert_eq!(fs::metadata(mnt.join("meanwhile")).unwrap().len(), 9);
    fs::rename(&aside, &file).unwrap();
    // Each key is asked for by itself.
    two.wait_for(None);
    two.wait_for_reading("meanwhile", None);
    drop(open);
    for _ in 0..2 {
        assert_eq!(fs::read(mnt.join("meanwhile")).unwrap(), b"meanwhile");
        // Of what could not be synced each block is old or new.
        let old = fs::read(mnt.join("old")).unwrap();
        assert_eq!(old.len(), 5000);
        for block in old.chunks(4096) {
            assert!(block.iter().all(|byte| b"12".contains(byte) && *byte == block[0]));
        }
        two.bench.remount();
    }
    two.bench.unmount();
    two.verify();
}

/// Sets the clock of a daemon, and of nobody else, forward and back by hours.
#[test]
fn a_clock_that_jumps_changes_neither_keys_nor_seals_nor_times() {
    let library = format!(
        "/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1",
        std::env::consts::ARCH
    );
    if !can_mount() {
        return;
    }
    if !std::path::Path::new(&library).exists() {
        assert!(
            std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none(),
            "libfaketime is not installed"
        );
        eprintln!("SKIPPED: libfaketime is not installed");
        return;
    }
    let options = ["-v", "-o", "key-ttl=1s,key-max-stale=5s"];
    let mut two = TwoKeys::mounted(&options);
    two.bench.unmount();
    let clock = two.bench.plain().join("clock");
    fs::write(&clock, "+0").unwrap();
    let options = [&options[..], &["--keystore", &two.keystore]].concat();
    let ended = two.bench.try_mount_with(&options, |command| {
        command
            .env("LD_PRELOAD", &library)
            .env("FAKETIME_TIMESTAMP_FILE", &clock)
            .env("FAKETIME_NO_CACHE", "1")
            // A clock that is set leaves this one alone.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    });
    assert!(ended.is_none(), "{ended:?}");
    for jump in ["+20h", "-20h", "+2h", "+0"] {
        fs::write(&clock, jump).unwrap();
        let name = format!("after {jump}");
        fs::write(two.bench.mnt().join(&name), &name).unwrap();
        // Longer than a key is used without being asked for, and than a closed file stays unsealed.
        thread::sleep(Duration::from_millis(5500));
        assert_eq!(fs::read(two.bench.mnt().join("old")).unwrap(), b"old", "{jump}");
        let is_unsealed = |bytes: &Vec<u8>| bytes.starts_with(b"HUSHDATA") && bytes.get(10) != Some(&2);
        let deadline = Instant::now() + PATIENCE;
        while data_files(&two.bench.vault()).values().any(is_unsealed) {
            assert!(Instant::now() < deadline, "{jump}: a file stays unsealed");
            thread::sleep(Duration::from_millis(100));
        }
        let meta = fs::metadata(two.bench.mnt().join(&name)).unwrap();
        let age = meta.modified().unwrap().elapsed().unwrap_or_default();
        assert!(age < PATIENCE, "{jump}: written {age:?} ago");
    }
    // A key that is taken away is missed, whatever the clock says.
    fs::write(&clock, "-20h").unwrap();
    two.administer("disable");
    two.wait_for(Some(libc::EKEYREVOKED));
    two.administer("enable");
    two.wait_for(None);
    let log = two.bench.log();
    assert!(!log.contains("for a while without"), "{log}");
    two.bench.unmount();
}

/// Waits until a daemon has logged something; what it says last arrives after its end.
fn wait_for_log(bench: &Bench, text: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !bench.log().contains(text) {
        assert!(Instant::now() < deadline, "{text:?} is not said: {}", bench.log());
        thread::sleep(Duration::from_millis(10));
    }
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn a_key_that_is_disabled_under_a_mount_closes_its_files_until_it_is_back() {
    if !can_mount() {
        return;
    }
    let mut two = TwoKeys::mounted(&[]);
    let old = two.bench.mnt().join("old");
    let open = File::options().read(true).write(true).open(&old).unwrap();
    let read = |file: &File| file.read_at(&mut [0; 8], 0);
    assert_eq!(read(&open).unwrap(), 3);
    for (change, back, gives) in [
        ("disable", &["enable"][..], libc::EKEYREVOKED),
        ("delete --days 7", &["undelete", "enable"], libc::EKEYEXPIRED),
    ] {
        two.change(change);
        two.wait_for(Some(gives));
        assert_eq!(errno(File::open(&old)), Some(gives), "{change}");
        assert_eq!(errno(File::options().write(true).open(&old)), Some(gives), "{change}");
        assert_eq!(
            errno(fs::rename(&old, two.bench.mnt().join("older"))),
            Some(gives),
            "{change}"
        );
        // What the kernel had of it is gone too, at the latest after the second time.
        let deadline = Instant::now() + PATIENCE;
        while errno(read(&open)) != Some(gives) {
            assert!(Instant::now() < deadline, "{change}: the open file is still read");
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(errno(open.set_len(1)), Some(gives), "{change}");
        assert_eq!(fs::metadata(&old).unwrap().len(), 3);
        assert_eq!(fs::read(two.bench.mnt().join("new")).unwrap(), b"new");
        let mut another = File::create(two.bench.mnt().join("another")).unwrap();
        another.write_all(change.as_bytes()).unwrap();
        another.sync_all().unwrap();
        for change in back {
            two.change(change);
        }
        two.wait_for(None);
        assert_eq!(read(&open).unwrap(), 3);
    }
    drop(open);
    let log = two.bench.log();
    // Disabled, pending deletion, and disabled again by `undelete`.
    let said = log.matches("its files cannot be used").count();
    assert_eq!(said, 3, "once for each: {log}");
    two.bench.remount();
    assert_eq!(fs::read(&old).unwrap(), b"old");
    two.bench.unmount();
}

#[test]
fn what_was_written_and_cannot_be_stored_any_more_is_an_error_of_fsync_and_the_mount_ends_well() {
    if !can_mount() {
        return;
    }
    let mut two = TwoKeys::mounted(&["-v"]);
    let old = two.bench.mnt().join("old");
    let open = File::options().write(true).open(&old).unwrap();
    // In the file, but not sealed yet; then only in the kernel.
    open.write_all_at(&[b'1'; 4096], 0).unwrap();
    open.sync_all().unwrap();
    two.administer("disable");
    // After that, since the kernel writes what it has of a file whenever someone closes it, as each program does that is started here.
    open.write_all_at(&[b'2'; 4096], 0).unwrap();
    two.look();
    wait_for_log(&two.bench, "its files cannot be used");
    assert_eq!(errno(open.sync_all()), Some(libc::EKEYREVOKED));
    drop(open);
    two.bench.unmount();
    wait_for_log(&two.bench, "which may not be used now: 1");

    two.administer("enable");
    two.bench.mount_again();
    assert_eq!(fs::read(&old).unwrap(), [b'1'; 4096]);
    wait_for_log(&two.bench, "was left open");
    two.bench.unmount();
    two.verify();
}

#[test]
fn a_file_whose_seal_was_put_off_is_sealed_when_its_key_is_back() {
    if !can_mount() {
        return;
    }
    let mut two = TwoKeys::mounted(&["-v"]);
    let old = two.bench.mnt().join("old");
    let open = File::options().write(true).open(&old).unwrap();
    open.write_all_at(b"OLD", 0).unwrap();
    open.sync_all().unwrap();
    drop(open);
    two.change("disable");
    two.wait_for(Some(libc::EKEYREVOKED));
    // Longer than a file stays unsealed that nobody has open.
    thread::sleep(Duration::from_secs(5));
    two.change("enable");
    two.wait_for(None);
    two.bench.unmount();
    let log = two.bench.log();
    assert!(!log.contains("unsealed"), "{log}");
    two.bench.mount_again();
    assert_eq!(fs::read(&old).unwrap(), b"OLD");
    two.bench.unmount();
    let log = two.bench.log();
    assert!(!log.contains("was left open"), "{log}");
}

#[test]
fn keys_are_asked_for_again_without_being_told_to() {
    if !can_mount() {
        return;
    }
    let mut two = TwoKeys::mounted(&["-o", "key-ttl=1s,key-max-stale=0s"]);
    two.administer("disable");
    two.wait_for(Some(libc::EKEYREVOKED));
    two.administer("enable");
    two.wait_for(None);
    // Where nobody may wait for an answer, a keystore that is away closes all of its files.
    let file = two.bench.plain().join("keys/keystore.hush");
    let aside = two.bench.plain().join("aside");
    fs::rename(&file, &aside).unwrap();
    two.wait_for(Some(libc::ETIMEDOUT));
    assert_eq!(errno_of_reading(&two.bench, "new"), Some(libc::ETIMEDOUT));
    fs::rename(&aside, &file).unwrap();
    two.wait_for(None);
    two.bench.unmount();
}
