//! The command line: arguments in; standard output, standard error and exit code out. Nothing is mounted here.

use std::{
    ffi::OsString,
    fs,
    io::Write,
    os::{
        fd::AsRawFd,
        unix::fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use hushfs::{
    backing::Dir,
    fs::{Caller, Fs, NameIn, ROOT},
    keystore::{KeyFile, SlotChoice, Unlock},
    vault::home::{KeystoreHome, Lock, VaultHome},
};
use tempfile::TempDir;

#[path = "cli/audit.rs"]
mod audit;
#[path = "cli/check.rs"]
mod check;
#[path = "cli/keys.rs"]
mod keys;
#[path = "cli/prompts.rs"]
mod prompts;
#[path = "cli/sealed.rs"]
mod sealed;
#[path = "support/unmounted.rs"]
mod unmounted;

/// What a command gave.
#[derive(Debug, PartialEq, Eq)]
struct Given {
    code: i32,
    out: String,
    err: String,
}

fn given(code: i32, out: &str, err: &str) -> Given {
    Given {
        code,
        out: out.to_owned(),
        err: err.to_owned(),
    }
}

/// A directory with secrets in it, where commands are run.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        place.write("pass", b"correct horse\n");
        place.write("other", b"battery staple\n");
        place.write("key", &[7; 32]);
        place
    }

    /// A place with a vault that `key` opens, which is quicker than a passphrase.
    fn with_vault() -> Self {
        let place = Place::new();
        assert_eq!(place.run("init --key-file key vault"), given(0, "", ""));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hushfs"));
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env_remove("CREDENTIALS_DIRECTORY")
            .env_remove("XDG_CONFIG_HOME")
            .env("HOME", self.0.path())
            .stdin(Stdio::null());
        command
    }

    fn run_with(&self, command: &mut Command) -> Given {
        let output = command.output().unwrap();
        Given {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn run(&self, arguments: &str) -> Given {
        self.run_with(&mut self.command(&arguments.split(' ').collect::<Vec<_>>()))
    }

    /// Changes bytes of a file in place.
    fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(name)).unwrap();
        change(&mut bytes);
        self.write(name, &bytes);
    }

    /// Fills the vault by the library: `a` with "hello\n", `dir/b` with 10000 times "x", `link` to `a`.
    fn fill(&self) {
        self.fill_with(None);
    }

    /// As [`fill`](Self::fill), of a vault whose keystore may lie elsewhere.
    fn fill_with(&self, keystore: Option<&Path>) {
        self.with_fs(keystore, |fs, caller| {
            let at = |parent, name| NameIn { parent, name };
            write(fs, at(ROOT, b"a"), b"hello\n", caller);
            let dir = fs.make_directory(at(ROOT, b"dir"), 0o755, caller).unwrap();
            write(fs, at(dir.node.id, b"b"), &[b'x'; 10_000], caller);
            fs.make_link(at(ROOT, b"link"), b"a", caller).unwrap();
        });
    }

    /// Makes one more file.
    fn fill_more(&self, name: &str, bytes: &[u8]) {
        self.with_fs(None, |fs, caller| {
            let name = name.as_bytes();
            write(fs, NameIn { parent: ROOT, name }, bytes, caller);
        });
    }

    fn with_fs(&self, keystore: Option<&Path>, act: impl FnOnce(&Fs, Caller)) {
        let key = KeyFile::new(vec![7; 32].into()).unwrap();
        let keystore = keystore.map(|path| KeystoreHome::enter(path).unwrap());
        let home = VaultHome::enter_with(&self.path("vault"), Lock::Exclusive, keystore).unwrap();
        let open = home.open(&Unlock::KeyFile(key), &SlotChoice::Any).unwrap();
        unmounted::with_fs(open, act);
    }

    /// Returns the name in the vault of the entry that `is` tells, in a directory of it.
    fn entry(&self, directory: &str, is: impl Fn(&fs::Metadata, &str) -> bool) -> String {
        let found = fs::read_dir(self.path(directory)).unwrap().find_map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            is(&entry.metadata().unwrap(), &name).then_some(name)
        });
        found.unwrap()
    }

    fn data_file(&self, directory: &str) -> String {
        self.entry(directory, |metadata, name| metadata.is_file() && !name.contains('.'))
    }

    fn header(&self, directory: &str) -> String {
        self.entry(directory, |_, name| name.len() == 27 && name.ends_with(".hush"))
    }
}

fn write(fs: &Fs, at: NameIn<'_>, bytes: &[u8], caller: Caller) {
    let found = fs.create(at, 0o640, caller).unwrap();
    fs.write(found.node.id, 0, bytes).unwrap();
    fs.release(found.node.id);
}

const KDF: &str = "--kdf-memory 64M --kdf-time 1ms";

/// Replaces what differs from run to run: ids and times.
fn normal(text: &str) -> String {
    let is_hex = |word: &str| word.len() == 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_time = |word: &str| word.len() == 20 && word.starts_with("20") && word.ends_with('Z');
    let word = |word: &str| {
        let bare = word.trim_matches(['"', ',', ';', ':']);
        match bare {
            _ if is_hex(bare) => word.replace(bare, "ID"),
            _ if is_time(bare) => word.replace(bare, "TIME"),
            _ => word.to_owned(),
        }
    };
    let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn init_makes_a_vault_and_says_nothing() {
    let place = Place::new();
    assert_eq!(
        place.run(&format!("init {KDF} --passfile pass vault")),
        given(0, "", "")
    );
    let mode = fs::metadata(place.path("vault")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(
        place.run("init --key-file key vault"),
        given(1, "", "hushfs: vault: is a vault already\n")
    );
    assert_eq!(
        place.run("init --key-file key ."),
        given(
            1,
            "",
            &format!(
                "hushfs: .: directory is not empty ({:?} is in it): name an empty or a new one\n",
                first_entry(&place.path("."))
            )
        )
    );
    fs::remove_file(place.path("vault/vault.hush")).unwrap();
    let unfinished = place.run("init --key-file key vault");
    assert_eq!(unfinished.code, 1);
    assert!(
        unfinished
            .err
            .starts_with("hushfs: vault: holds a keystore.hush and nothing else")
    );
}

fn names_in(path: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    names
}

fn first_entry(path: &Path) -> String {
    let dir = Dir::open(path).unwrap();
    let mut stream = dir.stream().unwrap();
    loop {
        let entry = stream.next_entry().unwrap().expect("there is one");
        if !entry.name.starts_with(b".") {
            return String::from_utf8(entry.name.to_vec()).unwrap();
        }
    }
}

#[test]
fn init_refuses_what_no_vault_can_be() {
    let place = Place::new();
    assert_eq!(
        place.run("init --key-file key --block-size 5000 vault"),
        given(
            2,
            "",
            "hushfs: block size 5000: must be a power of two from 4096 to 65536\n"
        )
    );
    let suite = place.run("init --suite rot13 vault");
    assert_eq!(suite.code, 2);
    assert!(
        suite.err.contains("suites are aes-256-gcm-siv, xchacha20-poly1305"),
        "{}",
        suite.err
    );
    assert_eq!(
        place.run("init --key-file pass vault"),
        given(2, "", "hushfs: pass: a key file has 32 to 1048576 bytes; this has 14\n")
    );
    place.write("hush1", b"hush1-abc\n");
    assert_eq!(
        place.run("init --passfile hush1 vault"),
        given(
            2,
            "",
            "hushfs: a passphrase cannot look like a recovery key: choose another\n"
        )
    );
    assert!(!place.path("vault").exists());
}

#[test]
fn info_needs_no_secret() {
    let place = Place::new();
    place.run(&format!(
        "init {KDF} --passfile pass --suite xchacha20-poly1305 --block-size 64K vault"
    ));
    let info = place.run("info vault");
    assert_eq!(
        (info.code, normal(&info.out).as_str(), info.err.as_str()),
        (
            0,
            "\
vault       ID
created     TIME
format      1
suite       xchacha20-poly1305
block size  65536
epoch       1 of 1 epoch
keystore    embedded
slot 1      \"passphrase\", passphrase (Argon2id, 64 MiB, 3 passes), TIME
nothing of this is authenticated: whoever can write to the vault can make it say anything
",
            ""
        )
    );
    let json: serde_json::Value = serde_json::from_str(&place.run("info --json vault").out).unwrap();
    assert_eq!(json["authenticated"], false);
    assert_eq!(json["suite"], "xchacha20-poly1305");
    assert_eq!(json["block_size"], 65536);
    assert_eq!(json["slots"][0]["kind"], "passphrase");
    assert_eq!(json["epochs"][0]["number"], 1);
}

#[test]
fn a_secret_comes_from_any_of_its_sources() {
    let place = Place::new();
    place.run(&format!("init {KDF} --passfile pass vault"));
    let empty = given(0, "", "");
    assert_eq!(place.run("ls --passfile pass vault"), empty);
    let mut extpass = place.command(&["ls", "--extpass", "cat pass; echo more", "vault"]);
    assert_eq!(place.run_with(&mut extpass), empty);
    let mut passfd = place.command(&["ls", "--passfd", "0", "vault"]);
    passfd.stdin(fs::File::open(place.path("pass")).unwrap());
    assert_eq!(place.run_with(&mut passfd), empty);
    fs::create_dir(place.path("credentials")).unwrap();
    place.write("credentials/hushfs", b"correct horse");
    place.write("credentials/wrong", b"incorrect");
    let mut credential = place.command(&["ls", "vault"]);
    credential.env("CREDENTIALS_DIRECTORY", place.path("credentials"));
    assert_eq!(place.run_with(&mut credential), empty);
    let mut named = place.command(&["ls", "--credential", "wrong", "vault"]);
    named.env("CREDENTIALS_DIRECTORY", place.path("credentials"));
    assert_eq!(place.run_with(&mut named).code, 3);
    assert_eq!(
        place.run("ls --credential none vault"),
        given(
            1,
            "",
            "hushfs: no systemd credential \"none\": set LoadCredential=none:... in the unit\n"
        )
    );
}

#[test]
fn what_gives_no_secret_is_named() {
    let place = Place::new();
    place.run(&format!("init {KDF} --passfile pass vault"));
    place.write("empty", b"");
    place.write("blank", b"\n");
    for (arguments, code, message) in [
        (
            "ls vault",
            2,
            "no passphrase: standard input is not a terminal to ask on: use --passfile, --extpass, --passfd or --key-file",
        ),
        ("ls --passfile none vault", 1, "none: No such file or directory"),
        ("ls --passfile empty vault", 1, "empty: has no line with a passphrase"),
        ("ls --passfile blank vault", 3, "blank: the passphrase is empty"),
        (
            "ls --extpass echo vault",
            3,
            "the command of --extpass: the passphrase is empty",
        ),
        (
            "ls --key-file pass vault",
            3,
            "pass: a key file has 32 to 1048576 bytes; this has 14",
        ),
        (
            "slot add --passfile pass --new-key-file other vault",
            2,
            "other: a key file has 32 to 1048576 bytes; this has 15",
        ),
        (
            "passwd --passfile pass --new-passfile blank vault",
            2,
            "blank: the passphrase is empty",
        ),
        ("init --passfile blank new", 2, "blank: the passphrase is empty"),
        (
            "slot add --passfile pass vault",
            2,
            "no new passphrase: standard input is not a terminal to ask on: use --new-passfile, --new-extpass, --new-passfd or --new-key-file",
        ),
        (
            "passwd --passfile pass vault",
            2,
            "no new passphrase: standard input is not a terminal to ask on: use --new-passfile, --new-extpass, --new-passfd or --new-key-file",
        ),
        (
            "ls --passfile pass --customer-key-prompt vault",
            2,
            "no customer key: standard input is not a terminal to ask on: use --customer-key or --customer-key-fd",
        ),
        (
            "vault customer-key add --passfile pass --new-customer-key-prompt vault",
            2,
            "no new customer key: standard input is not a terminal to ask on: use --new-customer-key",
        ),
        (
            "recipient generate --lock identity",
            2,
            "no passphrase: standard input is not a terminal to ask on: use --passfile, --extpass or --passfd",
        ),
        ("ls --passfd 77 vault", 1, "file descriptor 77: Bad file descriptor"),
        (
            "ls --extpass false vault",
            1,
            "the command of --extpass ended with exit status: 1",
        ),
        (
            "ls --passfile other vault",
            3,
            "wrong passphrase: try again, or another way in (`hushfs info` lists them)",
        ),
        (
            "ls --key-file key vault",
            3,
            "no slot of the keystore, or not the one chosen, takes a key file: `hushfs info` lists the ways in",
        ),
        (
            "ls --slot 7 --passfile pass vault",
            3,
            "the keystore has no slot 7: `hushfs info` lists the ways in",
        ),
        (
            "ls --recovery --passfile pass vault",
            3,
            "not a recovery key: it starts with HUSH1-",
        ),
    ] {
        assert_eq!(
            place.run(arguments),
            given(code, "", &format!("hushfs: {message}\n")),
            "{arguments}"
        );
    }
    assert_eq!(place.run("ls --passfile pass --key-file key vault").code, 2);
    assert_eq!(place.run("ls --recovery --key-file key vault").code, 2);
}

#[test]
fn a_recovery_key_is_printed_once_and_opens() {
    let place = Place::new();
    let init = place.run("init --key-file key --recovery-key vault");
    assert_eq!((init.code, init.err.as_str(), init.out.lines().count()), (0, "", 1));
    assert!(init.out.starts_with("HUSH1-"));
    place.write("recovery", init.out.to_lowercase().as_bytes());
    assert_eq!(place.run("ls --passfile recovery vault"), given(0, "", ""));
    assert_eq!(place.run("ls --recovery --passfile recovery vault"), given(0, "", ""));
    let mistyped = init.out.replacen("HUSH1-", "HUSH1-U", 1);
    place.write("recovery", mistyped.as_bytes());
    assert_eq!(place.run("ls --passfile recovery vault").code, 3);
}

#[test]
fn a_recovery_key_that_nobody_sees_takes_the_place_of_nothing() {
    let place = Place::with_vault();
    place.run("keystore init --key-file key keys");
    let before = [
        fs::read(place.path("vault/keystore.hush")).unwrap(),
        fs::read(place.path("keys/keystore.hush")).unwrap(),
    ];
    for arguments in [
        "passwd --key-file key --new-recovery vault",
        "slot add --key-file key --new-recovery vault",
        "passwd --key-file key --new-recovery --keystore keys",
        "slot add --key-file key --new-recovery --keystore keys",
        "init --key-file key --recovery-key made",
        "keystore init --key-file key --recovery-key made",
    ] {
        for out in [">/dev/full", ">/dev/null", ">&-"] {
            let script = format!("exec \"$0\" {arguments} {out}");
            let mut command = Command::new("sh");
            command.args(["-c", &script, env!("CARGO_BIN_EXE_hushfs")]);
            command.current_dir(place.path("")).env("HOME", place.path(""));
            command.env_remove("XDG_CONFIG_HOME").stdin(Stdio::null());
            let told = place.run_with(&mut command);
            assert_eq!(told.code, 1, "{script}: {}", told.err);
            assert!(
                told.err.contains("the recovery key is not stored"),
                "{script}: {}",
                told.err
            );
        }
    }
    let after = [
        fs::read(place.path("vault/keystore.hush")).unwrap(),
        fs::read(place.path("keys/keystore.hush")).unwrap(),
    ];
    assert!(before == after);
    assert!(!place.path("made").exists());
    // Nor one whose reader has gone.
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(reader);
    let mut command = place.command(&["passwd", "--key-file", "key", "--new-recovery", "vault"]);
    let told = command.stdout(writer).output().unwrap();
    assert_eq!(told.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&told.stderr).contains("Broken pipe"));
    assert_eq!(place.run("ls --key-file key vault"), given(0, "", ""));
}

#[test]
fn what_is_left_out_of_a_listing_is_told() {
    let place = Place::with_vault();
    place.fill();
    for first in ["a", "b", "c"] {
        place.fill_more(&first.repeat(240), b"lost");
        let is_long_name = |_: &fs::Metadata, name: &str| name.ends_with(".long.hush");
        fs::remove_file(place.path("vault").join(place.entry("vault", is_long_name))).unwrap();
    }
    let told = "hushfs: /: 3 entries left out, whose names do not open or which lie on another filesystem: `hushfs fsck` names them";
    for arguments in ["ls", "export", "rekey"] {
        let rest = match arguments {
            "ls" => "",
            "export" => " / out",
            _ => " /",
        };
        let given = place.run(&format!("{arguments} --key-file key vault{rest}"));
        assert_eq!(given.code, 9, "{arguments}: {}", given.err);
        assert_eq!(given.err.matches(told).count(), 1, "{arguments}: {}", given.err);
    }
    assert_eq!(fs::read(place.path("out/a")).unwrap(), b"hello\n");
}

#[test]
fn a_vault_that_does_not_open_has_its_exit_code() {
    let place = Place::with_vault();
    let header = fs::read(place.path("vault/vault.hush")).unwrap();
    let keystore = fs::read(place.path("vault/keystore.hush")).unwrap();
    let ls = "ls --key-file key vault";
    let expect = |arguments: &str, code: i32, message: &str| {
        assert_eq!(place.run(arguments), given(code, "", &format!("hushfs: {message}\n")));
    };

    expect("ls --key-file key none", 4, "none: no such directory");
    // What a terminal would take for a command.
    expect(
        "ls --key-file key none\x1b]0;x\x07",
        4,
        "none\u{fffd}]0;x\u{fffd}: no such directory",
    );
    expect(
        "ls --key-file key .",
        4,
        ".: not a vault (no vault.hush in it): make one with `hushfs init`",
    );
    place.damage("vault/vault.hush", |bytes| bytes[40] ^= 1);
    let damaged = place.run(ls);
    assert_eq!((damaged.code, damaged.out.as_str()), (4, ""));
    place.write("vault/vault.hush", &header);
    place.damage("vault/vault.hush", |bytes| *bytes.last_mut().unwrap() ^= 1);
    expect(
        ls,
        4,
        "vault/vault.hush: damaged or tampered with (authentication failed): put it back from a backup or the sync tool's history",
    );
    place.write("vault/vault.hush", &header[..30]);
    expect(
        "info vault",
        4,
        "vault/vault.hush: cut short: put it back from a backup or the sync tool's history",
    );
    place.write("vault/vault.hush", &header);
    place.damage("vault/vault.hush", |bytes| bytes[8] = 9);
    let newer = "vault/vault.hush: made by a newer hushfs (format version 9): use a newer hushfs";
    expect(ls, 5, newer);
    expect("info vault", 5, newer);
    place.write("vault/vault.hush", &header);
    place.damage("vault/keystore.hush", |bytes| *bytes.last_mut().unwrap() ^= 1);
    expect(
        ls,
        4,
        "vault/keystore.hush: damaged or tampered with (authentication failed): put it back from a backup or the sync tool's history",
    );
    fs::remove_file(place.path("vault/keystore.hush")).unwrap();
    expect(
        ls,
        4,
        "vault: no keystore.hush in it: name the keystore with --keystore, wait for the sync tool to finish, or put it back from a backup",
    );
    place.write("vault/keystore.hush", &keystore);
    place.write("key2", &[8; 32]);
    expect(
        "ls --key-file key2 vault",
        3,
        "the key file does not open any slot: `hushfs info` lists the ways in",
    );
    assert_eq!(place.run(ls), given(0, "", ""));
}

#[test]
fn an_old_vault_header_put_back_is_read_and_written_to_only_when_accepted() {
    let place = Place::with_vault();
    place.fill();
    let old = fs::read(place.path("vault/vault.hush")).unwrap();
    assert_eq!(
        place.run("vault rotate --key-file key vault"),
        given(
            0,
            "",
            "hushfs: new files use epoch 2; `hushfs rewrap` moves the others to it\n"
        )
    );
    place.write("vault/vault.hush", &old);
    let line = "vault.hush: an old one was put back (epoch 1, the keystore has seen 2): wait for the sync tool to finish, or put the newest one back; a backup that is to be written to needs `hushfs vault rotate --accept-older-header` first, reading does not\n";
    for arguments in [
        "vault rotate --key-file key vault",
        "rekey --key-file key vault /",
        "rewrap --key-file key vault",
        "passwd --key-file key --new-recovery vault",
        "fsck --repair --key-file key vault",
    ] {
        let told = place.run(arguments);
        assert_eq!(
            (told.out.as_str(), told.err),
            ("", format!("hushfs: {line}")),
            "{arguments}"
        );
        assert!([4, 8].contains(&told.code), "{arguments}: {}", told.code);
    }
    for arguments in [
        "ls --key-file key vault",
        "export --key-file key vault / out",
        "fsck --key-file key vault",
    ] {
        let told = place.run(arguments);
        assert_eq!(told.code, 0, "{arguments}: {}", told.err);
        assert_eq!(told.err.matches(line).count(), 1, "{arguments}: {}", told.err);
    }
    assert_eq!(fs::read(place.path("out/a")).unwrap(), b"hello\n");
    assert_eq!(fs::read(place.path("vault/vault.hush")).unwrap(), old);

    let accepted = place.run("vault rotate --accept-older-header --key-file key vault");
    assert_eq!(accepted.code, 0, "{}", accepted.err);
    assert_eq!(place.run("cat --key-file key vault a"), given(0, "hello\n", ""));
    place.fill_more("new", b"more");
    let told = place.run("rewrap --retire --key-file key vault");
    assert_eq!(told.code, 0, "{}", told.err);
    assert_eq!(place.run("cat --key-file key vault new a"), given(0, "morehello\n", ""));
}

#[test]
fn a_vault_in_use_is_left_alone() {
    let place = Place::with_vault();
    let message = "hushfs: vault: vault is in use by another hushfs (mounted?): unmount it or wait\n";
    let held = Dir::open(&place.path("vault")).unwrap();
    held.lock(false).unwrap();
    for arguments in [
        "ls --key-file key vault",
        "vault rotate --key-file key vault",
        "mount --key-file key vault pass",
    ] {
        assert_eq!(place.run(arguments), given(6, "", message), "{arguments}");
    }
    assert_eq!(place.run("info vault").code, 0);
    assert_eq!(place.run("key list --key-file key vault").code, 0);
    assert_eq!(place.run("slot list --key-file key vault").code, 0);
    assert_eq!(place.run("key create --key-file key vault"), given(6, "", message));
    drop(held);
    let held = Dir::open(&place.path("vault")).unwrap();
    held.lock(true).unwrap();
    assert_eq!(place.run("ls --key-file key vault"), given(0, "", ""));
    assert_eq!(place.run("vault rotate --key-file key vault"), given(6, "", message));
}

#[test]
fn slots_come_and_go() {
    let place = Place::with_vault();
    let rekeyed = |epoch| format!("hushfs: new files use epoch {epoch}; `hushfs rewrap` moves the others to it\n");
    assert_eq!(
        place.run(&format!(
            "slot add --key-file key {KDF} --new-passfile pass --name laptop vault"
        )),
        given(0, "", "")
    );
    assert_eq!(
        place.run("slot add --passfile pass --new-key-file stick --generate vault"),
        given(0, "", "")
    );
    assert_eq!(
        fs::metadata(place.path("stick")).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        place.run("slot add --passfile pass --new-key-file stick --generate vault"),
        given(1, "", "hushfs: stick: exists already: name another\n")
    );
    let list = place.run("slot list --key-file stick vault");
    assert_eq!(
        normal(&list.out),
        "\
slot   1 \"key file\", key file, TIME
slot   2 \"laptop\", passphrase (Argon2id, 64 MiB, 3 passes), TIME
slot   3 \"key file 2\", key file, TIME (opened it now)
"
    );
    let json: serde_json::Value =
        serde_json::from_str(&place.run("slot list --json --key-file key vault").out).unwrap();
    assert_eq!(json["opened_by"], 1);
    assert_eq!(json["slots"][1]["name"], "laptop");
    assert_eq!(
        normal(&place.run("slot test --passfile pass vault").out),
        "slot   2 \"laptop\", passphrase (Argon2id, 64 MiB, 3 passes), TIME: opens\n"
    );
    assert_eq!(
        normal(&place.run("slot test --slot 3 --key-file stick vault").out),
        "slot   3 \"key file 2\", key file, TIME: opens\n"
    );
    assert_eq!(place.run("slot test --slot laptop --key-file stick vault").code, 3);
    assert_eq!(place.run("slot test --slot desktop --key-file stick vault").code, 3);

    assert_eq!(
        place.run("slot remove --key-file key vault desktop"),
        given(1, "", "hushfs: no slot \"desktop\": `hushfs info` lists them\n")
    );
    assert_eq!(
        place.run("slot remove --key-file key vault laptop"),
        given(
            0,
            "",
            &format!(
                "hushfs: removed slot 2 \"laptop\", passphrase (Argon2id, 64 MiB, 3 passes)\n{}",
                rekeyed(2)
            )
        )
    );
    assert_eq!(place.run("ls --passfile pass vault").code, 3);
    assert_eq!(
        place.run("slot remove --key-file key vault 3"),
        given(
            0,
            "",
            &format!("hushfs: removed slot 3 \"key file 2\", key file\n{}", rekeyed(3))
        )
    );
    assert_eq!(
        place.run("slot remove --key-file key vault 1"),
        given(
            1,
            "",
            "hushfs: slot 1 is the last; nothing would open the keystore without it: add another first\n"
        )
    );
    let recovery = place.run("slot add --key-file key --new-recovery vault");
    assert_eq!((recovery.code, recovery.err.as_str()), (0, ""));
    place.write("recovery", recovery.out.as_bytes());
    assert_eq!(place.run("ls --passfile recovery vault"), given(0, "", ""));
}

#[test]
fn a_slot_is_not_called_by_a_number() {
    let place = Place::with_vault();
    for name in ["1", "2", "007", "+1"] {
        let message = format!(
            "hushfs: {name:?}: a slot cannot be called by a number, which may be another's: choose a name with letters\n"
        );
        for command in [
            format!("slot add --key-file key --name {name} --new-key-file stick --generate vault"),
            format!("share add --key-file key --name {name} vault recipient"),
        ] {
            assert_eq!(place.run(&command), given(2, "", &message), "{command}");
        }
    }
    assert!(!place.path("stick").exists());
    let named = place.run("slot add --key-file key --name 1st --new-key-file stick --generate vault");
    assert_eq!(named, given(0, "", ""));
}

#[test]
fn a_slot_that_is_called_by_its_kind_is_called_by_the_new_one() {
    let place = Place::with_vault();
    assert_eq!(
        place.run("slot add --key-file key --name stick --new-key-file stick --generate vault"),
        given(0, "", "")
    );
    let changed = place.run(&format!("passwd --key-file key {KDF} --new-passfile pass vault"));
    assert_eq!(
        changed,
        given(
            0,
            "",
            "\
hushfs: new files use epoch 2; `hushfs rewrap` moves the others to it
hushfs: slot 1 was called \"key file\", and is \"passphrase\" now
"
        )
    );
    let recovery = place.run("passwd --key-file stick --new-recovery vault");
    assert!(!recovery.err.contains("called"), "{}", recovery.err);
    place.write("recovery", recovery.out.as_bytes());
    assert_eq!(
        normal(&place.run("slot list --passfile recovery vault").out),
        "\
slot   1 \"passphrase\", passphrase (Argon2id, 64 MiB, 3 passes), TIME
slot   2 \"stick\", recovery key, TIME (opened it now)
"
    );
}

#[test]
fn passwd_changes_one_passphrase() {
    let place = Place::new();
    place.run(&format!("init {KDF} --passfile pass vault"));
    let changed = "hushfs: new files use epoch 2; `hushfs rewrap` moves the others to it\n";
    assert_eq!(
        place.run(&format!("passwd --passfile pass {KDF} --new-passfile other vault")),
        given(0, "", changed)
    );
    assert_eq!(place.run("ls --passfile pass vault").code, 3);
    assert_eq!(place.run("ls --passfile other vault").code, 0);
    // Two lines of one descriptor: the old one and the new one.
    place.write("both", b"battery staple\ncorrect horse\n");
    let words = format!("passwd --passfd 0 {KDF} --new-passfd 0 vault");
    let mut both = place.command(&words.split(' ').collect::<Vec<_>>());
    both.stdin(fs::File::open(place.path("both")).unwrap());
    assert_eq!(place.run_with(&mut both).code, 0);
    assert_eq!(place.run("ls --passfile pass vault").code, 0);
}

#[test]
fn who_forgot_the_passphrase_changes_it_with_the_recovery_key() {
    let place = Place::new();
    let init = place.run(&format!("init {KDF} --passfile pass --recovery-key vault"));
    place.write("recovery", init.out.as_bytes());
    let passwd = format!("passwd --passfile recovery {KDF} --new-passfile other vault");
    assert_eq!(place.run(&passwd).code, 0);
    assert_eq!(place.run("ls --passfile other vault").code, 0);
    assert_eq!(place.run("ls --passfile recovery vault").code, 0);
    place.run(&format!("slot add --passfile other {KDF} --new-passfile pass vault"));
    assert_eq!(
        place.run(&passwd),
        given(
            2,
            "",
            "hushfs: which passphrase is to be changed: name its slot with --change\n"
        )
    );
}

#[test]
fn rewrap_moves_headers_and_retires_epochs() {
    let place = Place::with_vault();
    place.fill();
    let old = fs::read(place.path("vault").join(place.header("vault"))).unwrap();
    place.run("vault rotate --key-file key vault");
    assert_eq!(
        place.run("rewrap --key-file key vault"),
        given(0, "", "hushfs: 2 headers moved to epoch 2, 0 of it already\n")
    );
    assert_eq!(
        place.run("rewrap --retire --key-file key vault"),
        given(
            0,
            "",
            "hushfs: 0 headers moved to epoch 2, 2 of it already\nhushfs: 1 epoch retired\n"
        )
    );
    assert_eq!(place.run("cat --key-file key vault a"), given(0, "hello\n", ""));
    let name = place.header("vault");
    place.write(&format!("vault/{name}"), &old);
    assert_eq!(
        place.run("rewrap --key-file key vault"),
        given(
            9,
            "",
            &format!(
                "hushfs: {name}: its header is of epoch 1, whose key is not here\n\
                 hushfs: 0 headers moved to epoch 2, 1 of it already\n\
                 hushfs: 1 not rewrapped, see above: `hushfs fsck` says more; no epoch was retired\n"
            )
        )
    );
}

#[test]
fn a_vault_can_be_read_without_a_mount() {
    let place = Place::with_vault();
    place.fill();
    assert_eq!(place.run("ls --key-file key vault"), given(0, "a\ndir\nlink\n", ""));
    assert_eq!(
        place.run("ls --key-file key vault a dir"),
        given(0, "a\n\ndir:\nb\n", "")
    );
    let long = place.run("ls -l --key-file key vault");
    let lines: Vec<_> = long.out.lines().collect();
    assert!(
        lines[0].starts_with("-rw-r-----   1 ") && lines[0].ends_with(" a"),
        "{}",
        long.out
    );
    assert!(lines[2].starts_with("lrwxrwxrwx   1 ") && lines[2].ends_with(" link -> a"));
    assert_eq!(
        place.run("cat --key-file key vault a /a"),
        given(0, "hello\nhello\n", "")
    );
    assert_eq!(
        place.run("cat --key-file key vault none"),
        given(1, "", "hushfs: none: No such file or directory\n")
    );
    assert_eq!(
        place.run("cat --key-file key vault dir"),
        given(1, "", "hushfs: dir: Is a directory\n")
    );
}

#[test]
fn export_copies_without_replacing_anything() {
    let place = Place::with_vault();
    place.fill();
    assert_eq!(place.run("export --key-file key vault / out"), given(0, "", ""));
    assert_eq!(fs::read(place.path("out/a")).unwrap(), b"hello\n");
    assert_eq!(fs::read(place.path("out/dir/b")).unwrap(), [b'x'; 10_000]);
    assert_eq!(fs::read_link(place.path("out/link")).unwrap(), Path::new("a"));
    let metadata = |path: PathBuf| fs::symlink_metadata(path).unwrap();
    assert_eq!(metadata(place.path("out/a")).permissions().mode() & 0o777, 0o640);
    assert_eq!(metadata(place.path("out/dir")).permissions().mode() & 0o777, 0o755);
    let stored = place.path("vault").join(place.data_file("vault"));
    assert_eq!(
        metadata(place.path("out/a")).modified().unwrap(),
        metadata(stored).modified().unwrap()
    );
    assert_eq!(
        place.run("export --key-file key vault / out"),
        given(1, "", "hushfs: out: exists already: name another\n")
    );
    assert_eq!(place.run("export --key-file key vault dir/b b"), given(0, "", ""));
    assert_eq!(place.run("export --key-file key vault dir/b b").code, 1);
}

#[test]
fn export_copies_into_no_directory_behind_a_link() {
    let place = Place::with_vault();
    place.fill();
    fs::create_dir(place.path("elsewhere")).unwrap();
    symlink("elsewhere", place.path("out")).unwrap();
    for rest in ["/ out", "dir out/", "dir out/.", "a out"] {
        assert_eq!(
            place.run(&format!("export --key-file key vault {rest}")),
            given(1, "", "hushfs: out: exists already: name another\n"),
            "{rest}"
        );
    }
    assert!(names_in(&place.path("elsewhere")).is_empty());
    // The way there is the user's, and so is a directory that they have made.
    assert_eq!(place.run("export --key-file key vault dir out/made"), given(0, "", ""));
    assert_eq!(fs::read(place.path("elsewhere/made/b")).unwrap(), [b'x'; 10_000]);
    fs::create_dir(place.path("empty")).unwrap();
    let mut command = place.command(&["export", "--key-file", "../key", "../vault", "/", "."]);
    assert_eq!(
        place.run_with(command.current_dir(place.path("empty"))),
        given(0, "", "")
    );
    assert_eq!(fs::read(place.path("empty/a")).unwrap(), b"hello\n");
}

#[test]
fn export_leaves_out_what_would_let_others_do_more_than_they_could() {
    let place = Place::with_vault();
    let mut has_attributes = false;
    place.with_fs(None, |fs, caller| {
        let at = |name| NameIn { parent: ROOT, name };
        let file = fs.create(at(b"program"), 0o755, caller).unwrap();
        fs.write(file.node.id, 0, b"x").unwrap();
        fs.release(file.node.id);
        let mut set = |name, value| has_attributes = fs.set_xattr(file.node.id, name, value, 0, caller).is_ok();
        set(b"user.colour", b"red");
        set(b"security.hushfs", b"on");
        fs.make_directory(at(b"shared"), 0o755, caller).unwrap();
        // The one device that everyone may make.
        fs.make_node(at(b"white"), libc::S_IFCHR | 0o644, 0, caller).unwrap();
        fs.make_node(at(b"pipe"), libc::S_IFIFO | 0o640, 0, caller).unwrap();
    });
    let set_mode = |name: String, mode| {
        fs::set_permissions(place.path("vault").join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    set_mode(place.data_file("vault"), 0o6755);
    set_mode(place.entry("vault", |metadata, _| metadata.is_dir()), 0o3755);
    let mode = |path: &str| fs::symlink_metadata(place.path(path)).unwrap().permissions().mode();
    let attribute = |path: &str, name: &str| {
        let mut value = [0; 16];
        let size = rustix::fs::lgetxattr(place.path(path), name, &mut value);
        size.is_ok_and(|size| size > 0)
    };

    let told = place.run("export --key-file key vault / out");
    let without = match has_attributes {
        true => "security.hushfs, set-user-ID bit, set-group-ID bit",
        false => "set-user-ID bit, set-group-ID bit",
    };
    let device =
        "hushfs: white: a device, which whoever keeps the vault may have made: --with-privileges copies it too\n";
    let bits = format!("hushfs: program: copied without {without}: --with-privileges keeps that\n");
    assert_eq!(
        told,
        given(1, "", &format!("{device}{bits}hushfs: 1 file not copied, see above\n"))
    );
    assert_eq!(
        names_in(&place.path("out")),
        ["pipe", "program", "shared"].map(OsString::from)
    );
    assert_eq!(mode("out/program"), libc::S_IFREG | 0o755);
    assert_eq!(mode("out/pipe"), libc::S_IFIFO | 0o640);
    assert_eq!(mode("out/shared"), libc::S_IFDIR | 0o3755);
    assert_eq!(attribute("out/program", "user.colour"), has_attributes);
    assert!(!attribute("out/program", "security.hushfs"));

    let all = "export --with-privileges --key-file key vault / all";
    assert_eq!(place.run(all), given(0, "", ""));
    assert_eq!(mode("all/program"), libc::S_IFREG | 0o6755);
    assert_eq!(mode("all/white"), libc::S_IFCHR | 0o644);
    let is_root = rustix::process::geteuid().is_root();
    assert_eq!(attribute("all/program", "security.hushfs"), is_root && has_attributes);
}

#[test]
fn what_would_be_ignored_is_refused() {
    let place = Place::with_vault();
    assert_eq!(place.run("verify --skip-contents --key-file key vault").code, 16);
    assert_eq!(place.run("ls --share-code 1 --key-file key vault").code, 2);
    for memory in ["1M", "8G"] {
        assert_eq!(place.run(&format!("init --kdf-memory {memory} other")).code, 2);
    }
}

#[test]
fn memory_that_a_passphrase_needs_and_is_not_there_is_neither_damage_nor_a_panic() {
    let place = Place::new();
    let within_limit = |arguments: &str| {
        let script = format!("ulimit -v 262144; exec {} {arguments}", env!("CARGO_BIN_EXE_hushfs"));
        place.run_with(Command::new("sh").args(["-c", &script]).current_dir(place.0.path()))
    };
    let needs = |mebibytes: u32| {
        format!(
            "Argon2id needs {mebibytes} MiB of memory, and there are not as many: free some, or raise the limit (`ulimit -v`, a container's)\n"
        )
    };
    assert_eq!(
        within_limit("init --passfile pass --kdf-memory 4G vault"),
        given(1, "", &format!("hushfs: {}", needs(4096)))
    );
    assert!(!place.path("vault").exists());
    let made = place.run("init --passfile pass --kdf-memory 256M --kdf-time 1ms vault");
    assert_eq!(made, given(0, "", ""));
    assert_eq!(
        within_limit("ls --passfile pass vault"),
        given(1, "", &format!("hushfs: slot 1: {}", needs(256)))
    );
    assert_eq!(place.run("ls --passfile pass vault"), given(0, "", ""));
}

#[test]
fn a_directory_that_others_may_read_is_made_a_vault_and_said_so() {
    let place = Place::new();
    for (mode, said) in [
        (0o700, ""),
        (0o711, ""),
        (
            0o750,
            "hushfs: other users may read vault (mode 750), and who may can keep it from being opened: `chmod 700` it unless it is shared with them\n",
        ),
    ] {
        fs::create_dir(place.path("vault")).unwrap();
        fs::set_permissions(place.path("vault"), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(place.run("init --key-file key vault"), given(0, "", said));
        fs::remove_dir_all(place.path("vault")).unwrap();
    }
}

#[test]
fn nothing_else_is_written_into_the_vault() {
    let place = Place::with_vault();
    place.fill();
    symlink("vault", place.path("link")).unwrap();
    let before = names_in(&place.path("vault"));
    for (arguments, path) in [
        ("export --key-file key vault / vault/plain", "vault/plain"),
        ("export --key-file key vault a link/a", "link/a"),
        (
            "export --key-file key link dir vault/../vault/dir",
            "vault/../vault/dir",
        ),
        ("snapshot --key-file key -o vault/snapshot vault", "vault/snapshot"),
        ("mount --key-file key --log-file vault/log vault pass", "vault/log"),
        ("mount --key-file key -o log-file=link/log vault pass", "link/log"),
        // Before a secret is asked for.
        ("export vault / vault/plain", "vault/plain"),
    ] {
        let message =
            format!("hushfs: {path}: would lie in the vault itself, among what is encrypted: name a place outside\n");
        assert_eq!(place.run(arguments), given(2, "", &message), "{arguments}");
    }
    assert_eq!(names_in(&place.path("vault")), before);
    assert_eq!(place.run("export --key-file key vault / vaults"), given(0, "", ""));
}

#[test]
fn verify_and_fsck_find_damage() {
    let place = Place::with_vault();
    place.fill();
    assert_eq!(
        place.run("verify --key-file key vault"),
        given(
            0,
            "",
            "hushfs: 2 files with 10006 bytes read, 0 damaged, 0 other findings\n"
        )
    );
    assert_eq!(
        place.run("fsck --key-file key vault"),
        given(
            0,
            "",
            "hushfs: 2 directories and 3 files checked, 0 damaged, 0 other findings\n"
        )
    );
    let name = place.data_file("vault");
    place.damage(&format!("vault/{name}"), |bytes| *bytes.last_mut().unwrap() ^= 1);
    let verify = place.run("verify --key-file key vault");
    assert_eq!(verify.code, 4);
    assert!(
        verify.out.starts_with(&format!("damage: a ({name}): block 0 ")),
        "{}",
        verify.out
    );
    assert_eq!(
        verify.err,
        "hushfs: 2 files with 10006 bytes read, 1 damaged, 0 other findings\n"
    );
    assert_eq!(place.run("verify --key-file key vault dir").code, 0);
    let json = json_lines(&place.run("verify --json --key-file key vault").out);
    assert_eq!(json[0]["path"], "a");
    assert_eq!(json[0]["code"], "blocks");
    assert_eq!(json[0]["disk_path"], name.as_str());
    assert_eq!(json[1]["type"], "summary");
    assert_eq!((&json[1]["damage"], &json[1]["exit_code"]), (&1.into(), &4.into()));
    let cat = place.run("cat --key-file key vault a");
    assert_eq!((cat.code, cat.out.as_str()), (9, ""));
    let export = place.run("export --key-file key vault / out");
    assert_eq!(export.code, 9);
    assert_eq!(fs::read(place.path("out/dir/b")).unwrap(), [b'x'; 10_000]);

    let header = place.header("vault");
    fs::rename(place.path("vault").join(&header), place.path("vault/x.tmp.hush")).unwrap();
    place.write("vault/notes.txt", b"");
    let directory = place.entry("vault", |metadata, _| metadata.is_dir());
    let moved = fs::read(
        place
            .path("vault")
            .join(&directory)
            .join(place.header(&format!("vault/{directory}"))),
    )
    .unwrap();
    let stray = place.header(&format!("vault/{directory}"));
    place.write(&format!("vault/{stray}"), &moved);
    let fsck = place.run("fsck --key-file key vault");
    assert_eq!(fsck.code, 4);
    let mut lines: Vec<_> = fsck.out.lines().collect();
    lines.sort_unstable();
    let mut expected = [
        format!("damage: a ({name}): its header {header} is missing"),
        "warning: ? (notes.txt): not made by hushfs".to_owned(),
        "note: ? (x.tmp.hush): left over from an interrupted write".to_owned(),
        format!("note: ? ({stray}): header of no file in this directory"),
    ];
    expected.sort_unstable();
    assert_eq!(lines, expected);
    fs::rename(place.path("vault/x.tmp.hush"), place.path("vault").join(&header)).unwrap();
    fs::rename(
        place.path("vault").join(&directory),
        place.path("vault").join(sealed_elsewhere()),
    )
    .unwrap();
    let fsck = place.run("fsck --json --key-file key vault");
    let damage = json_lines(&fsck.out);
    assert!(damage.iter().any(|finding| {
        finding["severity"] == "damage"
            && finding["disk_path"] == sealed_elsewhere()
            && finding["problem"]
                .as_str()
                .unwrap()
                .starts_with("the name does not open")
    }));
}

#[test]
fn fsck_tells_leftovers_from_damage() {
    let place = Place::with_vault();
    place.fill();
    let name = place.data_file("vault");
    let copy = format!("{name} (conflicted copy)");
    fs::copy(place.path("vault").join(&name), place.path("vault").join(&copy)).unwrap();
    let long = "A".repeat(44);
    let id = "B".repeat(21) + "A";
    for stray in [
        format!("{long}.long.hush"),
        format!("{id}.link.hush"),
        format!("{}.txt", "A".repeat(43)),
    ] {
        place.write(&format!("vault/{stray}"), b"");
    }
    let fsck = place.run("fsck --key-file key vault");
    let mut lines: Vec<_> = fsck.out.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            format!("note: ? ({long}.long.hush): long name of no entry in this directory"),
            format!("note: ? ({id}.link.hush): target of no link in this directory"),
            format!("note: a (conflict conflicted copy) ({copy}): conflict copy of a sync tool"),
            format!("warning: ? ({}.txt): not made by hushfs", "A".repeat(43)),
        ]
    );
    assert_eq!(fsck.code, 4);
    assert_eq!(
        fsck.err,
        "hushfs: 2 directories and 4 files checked, 0 damaged, 4 other findings\n"
    );
    place.write(&format!("vault/{long}"), b"x");
    let link = place.entry("vault", |metadata, _| metadata.is_symlink());
    fs::remove_file(place.path("vault").join(&link)).unwrap();
    std::os::unix::fs::symlink("nonsense", place.path("vault").join(&link)).unwrap();
    let directory = place.entry("vault", |metadata, _| metadata.is_dir());
    place.write(&format!("vault/{directory}/dir.hush"), b"short");
    let fsck = place.run("fsck --key-file key vault");
    assert_eq!(fsck.code, 4);
    let damage: Vec<_> = fsck.out.lines().filter(|line| line.starts_with("damage: ")).collect();
    assert_eq!(damage.len(), 3, "{}", fsck.out);
    assert!(damage.contains(&format!("damage: dir ({directory}): its dir.hush: cut short").as_str()));
    assert!(
        damage
            .iter()
            .any(|line| line.starts_with(&format!("damage: ? ({long}): the name does not open")))
    );
    assert!(
        damage
            .iter()
            .any(|line| line.starts_with(&format!("damage: link ({link}): its target: ")))
    );
}

fn json_lines(out: &str) -> Vec<serde_json::Value> {
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A name that could be sealed, but is not of this vault.
fn sealed_elsewhere() -> &'static str {
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
}

#[test]
fn mount_and_unmount_refuse_what_cannot_be() {
    let place = Place::with_vault();
    for (arguments, code, message) in [
        (
            "mount --key-file key vault none",
            7,
            "cannot mount on none: No such file or directory",
        ),
        (
            "mount --key-file key vault pass",
            7,
            "cannot mount on pass: Not a directory",
        ),
        (
            "mount --key-file key -o ro,fast vault pass",
            2,
            "unknown mount option \"fast\": see `hushfs mount --help`",
        ),
        (
            "mount --key-file key -o idle=soon vault pass",
            2,
            "mount option \"idle=soon\": not a time: write 500ms, 30s, 10m or 2h",
        ),
        (
            "mount --key-file key -o key-file=key vault pass",
            2,
            "mount option \"key-file=key\": given twice",
        ),
        ("unmount vault", 7, "vault: no vault is mounted there"),
        ("umount none", 7, "none: no vault is mounted there"),
    ] {
        assert_eq!(
            place.run(arguments),
            given(code, "", &format!("hushfs: {message}\n")),
            "{arguments}"
        );
    }
    // The error of the background process is told once, and its exit code is the command's.
    let helper = place.run("./vault ./none -o ro,key-file=key");
    assert_eq!(
        helper,
        given(7, "", "hushfs: cannot mount on ./none: No such file or directory\n")
    );
}

#[test]
fn completions_and_manual_pages_are_written() {
    let place = Place::new();
    let bash = place.run("completions bash");
    assert_eq!((bash.code, bash.err.as_str()), (0, ""));
    assert!(bash.out.contains("_hushfs()"));
    fs::create_dir(place.path("man")).unwrap();
    assert_eq!(place.run("man man"), given(0, "", ""));
    for page in ["hushfs.1", "hushfs-mount.1", "hushfs-slot-add.1"] {
        assert!(place.path("man").join(page).exists(), "{page}");
    }
    assert_eq!(
        place.run("man none"),
        given(1, "", "hushfs: none: No such file or directory\n")
    );
}

/// Suite, library, whether it is what is used, and size of block, of all that `speed` measures.
fn measured() -> Vec<(&'static str, &'static str, bool, u64)> {
    let has_aws_lc = cfg!(feature = "aws-lc");
    let mut expected = Vec::new();
    for (suite, library, is_there, is_used) in [
        ("aes-256-gcm-siv", "aws-lc", has_aws_lc, true),
        ("aes-256-gcm-siv", "portable", true, !has_aws_lc),
        ("xchacha20-poly1305", "portable", true, true),
    ] {
        let sizes = [4096, 65536].into_iter().filter(|_| is_there);
        expected.extend(sizes.map(|size| (suite, library, is_used, size)));
    }
    expected
}

#[test]
fn speed_measures_what_is_built_in() {
    let place = Place::new();
    let given = place.run("speed --json --time 1ms");
    assert_eq!((given.code, given.err.as_str()), (0, ""));
    let json: serde_json::Value = serde_json::from_str(&given.out).unwrap();
    let ciphers = json["ciphers"].as_array().unwrap();
    let found = ciphers.iter().map(|cipher| {
        let text = |field: &str| cipher[field].as_str().unwrap();
        let is_used = cipher["used"].as_bool().unwrap();
        (
            text("suite"),
            text("library"),
            is_used,
            cipher["block_size"].as_u64().unwrap(),
        )
    });
    assert_eq!(found.collect::<Vec<_>>(), measured());
    let knows_cycles = json["cycles"]["hertz"].as_f64().is_some_and(|hertz| hertz > 1e6);
    for cipher in ciphers {
        for direction in ["seal", "open"] {
            let rates = cipher[direction].as_object().unwrap();
            for rate in ["one_thread", "cipher_alone", "all_threads"] {
                assert!(rates[rate].as_f64().unwrap() > 1.0, "{direction} {rate} in {cipher}");
            }
            for rate in ["one_thread_bytes_per_cycle", "cipher_alone_bytes_per_cycle"] {
                let per_cycle = rates[rate].as_f64();
                assert_eq!(per_cycle.is_some(), knows_cycles, "{direction} {rate} in {cipher}");
                assert!(per_cycle.is_none_or(|bytes| (0.0001..100.0).contains(&bytes)));
            }
        }
    }
    assert!(json["threads"].as_u64().unwrap() >= 1);
    assert!(
        json["features"]
            .as_object()
            .unwrap()
            .values()
            .all(|has| has.is_boolean())
    );
    assert!(json["argon2id"]["seconds"].as_f64().unwrap() > 0.01);
    assert_eq!(json["argon2id"]["memory_kib"], 256 * 1024);
    assert!(json["argon2id"]["passes"].as_u64().unwrap() >= 3);
    assert_eq!(json["seconds_per_measurement"], 0.001);
    assert_eq!(json["suite_of_init"], "aes-256-gcm-siv");
    let fastest = json["suite_fastest_here"].as_str().unwrap();
    assert!(measured().iter().any(|(suite, ..)| *suite == fastest));
}

#[test]
fn speed_prints_a_table() {
    let given = Place::new().run("speed --time 1ms");
    assert_eq!((given.code, given.err.as_str()), (0, ""));
    let starts = |word: &str| given.out.lines().filter(|line| line.starts_with(word)).count();
    assert_eq!(
        (
            starts("processor "),
            starts("Argon2id "),
            starts("suite       init takes ")
        ),
        (1, 1, 1)
    );
    let rows = given.out.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let (suite, library) = (*words.first()?, *words.get(1)?);
        let is_used = *words.get(2)? == "*";
        let numbers = &words[if is_used { 3 } else { 2 }..];
        let is_number = |word: &&str| *word == "-" || word.parse::<f64>().is_ok_and(|number| number >= 0.0);
        if numbers.len() != 11 || !numbers.iter().all(is_number) {
            return None;
        }
        Some((suite, library, is_used, numbers[0].parse().unwrap()))
    });
    assert_eq!(rows.collect::<Vec<_>>(), measured(), "{}", given.out);
    assert!(given.out.lines().all(|line| line.len() <= 120), "{}", given.out);
}

#[test]
fn usage_errors_have_their_exit_code() {
    let place = Place::new();
    assert_eq!(place.run("frobnicate").code, 2);
    assert_eq!(place.run("init").code, 2);
    assert_eq!(place.run("speed --time soon").code, 2);
    assert_eq!(place.run("--help").code, 0);
    let version = place.run("--version");
    assert_eq!(
        version,
        given(0, &format!("hushfs {}\n", env!("CARGO_PKG_VERSION")), "")
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let place = Place::with_vault();
    place.fill();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = place.command(&["cat", "--key-file", "key", "vault", "dir/b"]);
    command.stdout(writer);
    assert_eq!(place.run_with(&mut command), given(1, "", ""));
}

#[test]
fn what_cannot_be_said_changes_nothing_that_is_done() {
    let place = Place::with_vault();
    place.fill();
    for (command, code) in [
        ("vault rotate --key-file key vault", 0),
        ("rewrap --retire --key-file key vault", 0),
        ("fsck --key-file key vault", 0),
        ("verify --key-file key vault", 0),
        ("slot remove --key-file key vault 9", 1),
    ] {
        let mut command = place.command(&command.split(' ').collect::<Vec<_>>());
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ended = command.stderr(full).output().unwrap();
        assert_eq!(ended.status.code(), Some(code), "{command:?}");
    }
    // Retired too.
    let again = place.run("rewrap --retire --key-file key vault");
    assert!(again.err.contains("0 epochs retired"), "{again:?}");
}

#[test]
fn a_passphrase_can_come_through_a_pipe_of_any_number() {
    let place = Place::new();
    place.run(&format!("init {KDF} --passfile pass vault"));
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"correct horse\nand more").unwrap();
    drop(writer);
    let number = reader.as_raw_fd();
    let mut command = place.command(&["ls", "--passfd", "3", "vault"]);
    // SAFETY: dup2 is async-signal-safe.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, move || {
            match libc::dup2(number, 3) {
                3 if number == 3 => drop(libc::fcntl(3, libc::F_SETFD, 0)),
                3 => {}
                _ => return Err(std::io::Error::last_os_error()),
            }
            Ok(())
        });
    }
    assert_eq!(place.run_with(&mut command), given(0, "", ""));
}
