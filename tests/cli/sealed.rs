//! `seal`, `open`, `reseal`: single files by the command line.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{Read, Write},
    os::unix::{
        fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
        process::{CommandExt, ExitStatusExt},
    },
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::{Pid, Signal, kill_process},
};

use super::{Given, Place, given, normal};

const WAYS: &str = "`hushfs info report.hush` lists the ways in";

fn done() -> Given {
    given(0, "", "")
}

impl Place {
    /// A place with a file of some blocks, and the same one sealed for `key`.
    fn with_sealed() -> Self {
        let place = Place::new();
        place.write("report", &content());
        assert_eq!(place.run("seal --key-file key report"), done());
        place
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Makes an identity; what others are to seal for is in a file of the same name with `.pub`.
    fn identity(&self, name: &str) {
        let made = self.run(&format!("recipient generate {name}"));
        assert_eq!(made.code, 0);
        self.write(&format!("{name}.pub"), made.out.as_bytes());
    }

    /// Runs a command that is given its key only when something else was done: it has opened its file before that.
    fn run_meanwhile(&self, arguments: &str, act: impl FnOnce()) -> Given {
        let fifo = self.path("slow");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let mut command = self.command(&arguments.split(' ').collect::<Vec<_>>());
        let child = command.args(["--key-file", "slow"]);
        let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut key = OpenOptions::new().write(true).open(&fifo).unwrap();
        act();
        key.write_all(&fs::read(self.path("key")).unwrap()).unwrap();
        drop(key);
        let output = child.wait_with_output().unwrap();
        fs::remove_file(fifo).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        given(
            output.status.code().unwrap(),
            &text(output.stdout),
            &text(output.stderr),
        )
    }

    fn opens(&self, with: &str) {
        assert_eq!(self.run(&format!("open --force -o again {with} report.hush")), done());
        assert!(fs::read(self.path("again")).unwrap() == content());
    }
}

fn content() -> Vec<u8> {
    (0..150_000u32).map(|i| (i / 5) as u8).collect()
}

#[test]
fn a_file_is_sealed_opened_and_removed_with_its_mode_and_time() {
    let place = Place::new();
    place.write("report", &content());
    fs::set_permissions(place.path("report"), Permissions::from_mode(0o640)).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000);
    let file = OpenOptions::new().write(true).open(place.path("report")).unwrap();
    file.set_modified(time).unwrap();
    assert_eq!(place.run("seal --remove --key-file key report"), done());
    assert_eq!(place.names(), ["key", "other", "pass", "report.hush"]);
    let sealed = fs::read(place.path("report.hush")).unwrap();
    assert_eq!(sealed.len(), 234 + 3 * 28 + content().len() + 32);
    assert_eq!(place.run("open --remove --customer-key key report.hush"), done());
    assert_eq!(place.names(), ["key", "other", "pass", "report"]);
    assert!(fs::read(place.path("report")).unwrap() == content());
    let metadata = fs::metadata(place.path("report")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.modified().unwrap()), (0o640, time));
}

#[test]
fn who_keeps_new_files_from_others_keeps_what_is_opened_from_them() {
    let place = Place::new();
    place.write("report", &content());
    fs::set_permissions(place.path("report"), Permissions::from_mode(0o666)).unwrap();
    let script = r#"umask 027; "$0" seal --key-file key report && "$0" open --key-file key -o opened report.hush"#;
    let status = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_hushfs")])
        .current_dir(place.path("."))
        .status();
    assert!(status.unwrap().success());
    for name in ["report.hush", "opened"] {
        let mode = fs::metadata(place.path(name)).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o640, "{name}");
    }
}

#[test]
fn nothing_is_overwritten_unless_that_is_asked_for() {
    let place = Place::with_sealed();
    let exists = |name: &str| {
        let message = format!("hushfs: {name}: exists already: name another with -o, or replace it with --force\n");
        given(1, "", &message)
    };
    let before = fs::read(place.path("report.hush")).unwrap();
    assert_eq!(place.run("seal --key-file key report"), exists("report.hush"));
    assert_eq!(place.run("open --key-file key report.hush"), exists("report"));
    assert!(fs::read(place.path("report.hush")).unwrap() == before);
    assert_eq!(place.run("seal --force --key-file key report"), done());
    assert!(fs::read(place.path("report.hush")).unwrap() != before);
    assert_eq!(place.run("open --force --key-file key report.hush"), done());
}

#[test]
fn pipes_pass_through_and_no_terminal_gets_what_is_sealed() {
    let place = Place::new();
    let plain = content().repeat(40);
    let through = |arguments: &[&str], input: &[u8]| {
        let mut child = place
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success());
        output.stdout
    };
    let sealed = through(&["seal", "--key-file", "key"], &plain);
    assert!(sealed.len() > plain.len());
    assert!(through(&["open", "--key-file", "key", "-o", "-", "-"], &sealed) == plain);
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/ptmx").unwrap();
    let mut seal = place.command(&["seal", "--key-file", "key", "-"]);
    assert_eq!(
        place.run_with(seal.stdout(terminal)),
        given(
            2,
            "",
            "hushfs: standard output is a terminal: redirect it, or name a file with -o\n"
        )
    );
    // A device is written to, and stays what it is.
    place.write("report", b"x");
    assert_eq!(place.run("seal --force --key-file key -o /dev/null report"), done());
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
}

#[test]
fn pipes_and_links_that_stand_where_a_file_was_to_be_are_not_written_to() {
    let place = Place::with_vault();
    place.write("report", b"secret");
    assert_eq!(place.run("seal --remove --key-file key report"), done());
    rustix::fs::mknodat(CWD, place.path("report"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let mut pipe = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(place.path("report"))
        .unwrap();
    symlink("report", place.path("to-pipe")).unwrap();
    symlink("/dev/null", place.path("to-device")).unwrap();
    symlink("/dev/fd/1", place.path("to-output")).unwrap();
    for (arguments, name) in [
        ("open --key-file key report.hush", "report"),
        ("open --remove --key-file key report.hush", "report"),
        ("open --key-file key -o to-pipe report.hush", "to-pipe"),
        ("open --key-file key -o to-device report.hush", "to-device"),
        ("open --key-file key -o to-output report.hush", "to-output"),
        ("seal --key-file key -o to-pipe key", "to-pipe"),
        ("snapshot --key-file key -o to-pipe vault", "to-pipe"),
        ("snapshot --key-file key -o to-device vault", "to-device"),
    ] {
        let message = format!("hushfs: {name}: exists already: name another with -o, or replace it with --force\n");
        assert_eq!(place.run(arguments), given(1, "", &message), "{arguments}");
    }
    let mut written = [0; 16];
    assert_eq!(pipe.read(&mut written).unwrap(), 0);
    // As files are, links are replaced; a pipe of the user's own is what they mean.
    for name in ["to-pipe", "to-device", "to-output"] {
        assert_eq!(
            place.run(&format!("open --force --key-file key -o {name} report.hush")),
            done()
        );
        assert!(fs::symlink_metadata(place.path(name)).unwrap().is_file());
    }
    assert_eq!(place.run("open --force --key-file key report.hush"), done());
    assert_eq!(pipe.read(&mut written).unwrap(), 6);
    assert!(!fs::metadata(place.path("report")).unwrap().is_file());
    let nothing = "hushfs: --remove removes one file when another was made of it: name both\n";
    for rest in ["--force", "-o /dev/null", "-o /dev/stdout", "--force -o /dev/fd/1"] {
        let refused = place.run(&format!("open --remove --key-file key {rest} report.hush"));
        assert_eq!(refused, given(2, "", nothing), "{rest}");
    }
    assert!(place.path("report.hush").exists());
}

#[test]
fn what_is_named_in_dev_is_written_to() {
    let place = Place::new();
    place.write("report", b"secret");
    assert_eq!(place.run("seal --key-file key report"), done());
    assert_eq!(place.run("open --key-file key -o /dev/null report.hush"), done());
    assert_eq!(place.run("open --key-file key -o /dev/full report.hush").code, 1);
    for name in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        let open = format!("open --key-file key -o {name} report.hush");
        assert_eq!(place.run(&open), given(0, "secret", ""), "{name}");
        // Also where it leads to a file, which stays the one it is.
        let mut command = place.command(&open.split(' ').collect::<Vec<_>>());
        let out = File::create(place.path("out")).unwrap();
        assert_eq!(place.run_with(command.stdout(out.try_clone().unwrap())), done());
        assert_eq!(fs::read(place.path("out")).unwrap(), b"secret", "{name}");
        assert_eq!(
            fs::metadata(place.path("out")).unwrap().ino(),
            out.metadata().unwrap().ino()
        );
    }
    let open = "open --key-file key -o /dev/stderr report.hush";
    assert_eq!(place.run(open), given(0, "", "secret"));
}

#[test]
fn what_is_cut_or_changed_gives_no_file() {
    let place = Place::with_sealed();
    let good = fs::read(place.path("report.hush")).unwrap();
    let refused = |bytes: &[u8], code: i32, message: &str| {
        place.write("report.hush", bytes);
        let expected = given(code, "", &format!("hushfs: report.hush: {message}\n"));
        assert_eq!(place.run("open --force --key-file key report.hush"), expected);
        // The one that was there stays, and nothing half lies beside it.
        assert!(fs::read(place.path("report")).unwrap() == content());
        assert_eq!(place.names(), ["key", "other", "pass", "report", "report.hush"]);
    };
    let cut = "cut short, or something was put behind its end";
    let stride = 65536 + 28;
    refused(&good[..good.len() - 1], 9, cut);
    refused(&good[..good.len() - 32], 9, cut);
    refused(&good[..234 + stride + 32], 9, cut);
    refused(&[good.as_slice(), b"x"].concat(), 9, cut);
    let mut changed = good.clone();
    changed[234 + stride + 100] ^= 1;
    refused(&changed, 9, "damaged or tampered with at byte 65536 of its content");
    let mut changed = good.clone();
    changed[50] ^= 1;
    refused(&changed, 9, "damaged or tampered with (authentication failed)");
    for other in [b"%PDF-1.7 and so on".as_slice(), b"", b"four", b"battery", b"HUSHSEAm"] {
        refused(other, 4, "not a sealed file");
        assert_eq!(place.run("info report.hush").code, 4);
    }
    refused(&good[..4], 9, "cut short");
    refused(&good[..12], 9, "cut short");
    refused(
        b"HUSHSEAL\x02\0\x01\0\0\0\0\0",
        5,
        "made by a newer hushfs (format version 2)",
    );
}

#[test]
fn a_file_that_was_changed_meanwhile_is_not_removed_whatever_time_it_has() {
    let place = Place::new();
    place.write("report", &content());
    let change = || {
        let file = OpenOptions::new().write(true).open(place.path("report")).unwrap();
        let time = file.metadata().unwrap().modified().unwrap();
        file.write_at(b"new", 140_000).unwrap();
        file.set_modified(time).unwrap();
    };
    let message =
        "hushfs: report: was changed meanwhile, and not removed: what was made of it may be of the old or the new\n";
    let sealed = place.run_meanwhile("seal --remove report", change);
    assert_eq!(sealed, given(1, "", message));
    assert_eq!(place.names(), ["key", "other", "pass", "report", "report.hush"]);
}

#[test]
fn a_file_that_was_replaced_meanwhile_is_not_resealed() {
    let place = Place::with_sealed();
    place.identity("ann");
    place.write("report", b"the next");
    let resealed = place.run_meanwhile("reseal --add-recipient ann.pub report.hush", || {
        assert_eq!(place.run("seal --force --key-file key report"), done());
    });
    let message = "hushfs: report.hush: was changed meanwhile, and not resealed: try again\n";
    assert_eq!(resealed, given(1, "", message));
    assert_eq!(place.run("open --force --key-file key report.hush"), done());
    assert_eq!(fs::read(place.path("report")).unwrap(), b"the next");
    assert!(place.names().iter().all(|name| !name.ends_with(".tmp.hush")));
}

#[test]
fn of_two_who_reseal_a_file_one_is_refused() {
    let place = Place::with_sealed();
    place.identity("ann");
    let reseal = "reseal --add-recipient ann.pub report.hush";
    let resealed = place.run_meanwhile(reseal, || {
        let message = "hushfs: report.hush: is being resealed by another process: try again\n";
        assert_eq!(place.run(&format!("{reseal} --key-file key")), given(6, "", message));
    });
    assert_eq!(resealed, done());
    place.opens("--identity ann");
}

#[test]
fn a_link_to_a_sealed_file_is_not_resealed() {
    let place = Place::with_sealed();
    place.identity("ann");
    symlink("report.hush", place.path("link.hush")).unwrap();
    let message = "hushfs: link.hush: a symbolic link, which `reseal` would replace by a file: name the file itself\n";
    assert_eq!(
        place.run("reseal --add-recipient ann.pub --key-file key link.hush"),
        given(2, "", message)
    );
    assert!(place.path("link.hush").is_symlink());
}

#[test]
fn nothing_half_is_left_when_it_is_stopped() {
    let place = Place::new();
    let mut child = place
        .command(&["seal", "--key-file", "key", "-o", "out"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&content().repeat(10)).unwrap();
    let names = ["key", "other", "pass"];
    let started = Instant::now();
    while place.names() == names {
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::TERM.as_raw()));
    assert_eq!(place.names(), names);
}

#[test]
fn a_key_that_cannot_be_written_leaves_no_file() {
    let place = Place::with_vault();
    let names = place.names();
    for command in [
        "recipient generate new",
        "slot add --key-file key --new-key-file new --generate vault",
    ] {
        // As on a full disk.
        let script = format!("trap '' XFSZ; ulimit -f 0; exec \"$0\" {command}");
        let ended = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_hushfs")])
            .current_dir(place.path("."))
            .output()
            .unwrap();
        assert_eq!(ended.status.code(), Some(1), "{command}");
        assert_eq!(place.names(), names, "{command}");
        assert_eq!(place.run(command).code, 0, "{command}");
        fs::remove_file(place.path("new")).unwrap();
    }
}

#[test]
fn a_file_is_sealed_into_a_directory_that_cannot_be_read() {
    let place = Place::new();
    place.write("report", &content());
    fs::create_dir(place.path("drop")).unwrap();
    fs::set_permissions(place.path("drop"), Permissions::from_mode(0o733)).unwrap();
    // Root could read it.
    let mut command = Command::new(env!("CARGO_BIN_EXE_hushfs"));
    command.args(["seal", "--remove", "--key-file", "key", "-o", "drop/x", "report"]);
    command.current_dir(place.path("."));
    if rustix::process::geteuid().is_root() {
        fs::set_permissions(place.0.path(), Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(place.path("key"), Permissions::from_mode(0o644)).unwrap();
        command.uid(65534).gid(65534);
    } else {
        fs::set_permissions(place.path("drop"), Permissions::from_mode(0o300)).unwrap();
    }
    assert_eq!(place.run_with(&mut command), done());
    fs::set_permissions(place.path("drop"), Permissions::from_mode(0o700)).unwrap();
    assert!(place.path("drop/x").exists() && !place.path("report").exists());
}

#[test]
fn a_partner_opens_what_was_sealed_for_them_until_they_are_dropped() {
    let place = Place::new();
    place.identity("ann");
    place.identity("bob");
    place.write("report", &content());
    assert_eq!(
        place.run("seal --recipient ann.pub --passfile pass --kdf-memory 64M --kdf-time 1ms report"),
        done()
    );
    place.opens("--identity ann");
    place.opens("--passfile pass");
    let wrong = |message: &str| given(3, "", &format!("hushfs: report.hush: {message}: {WAYS}\n"));
    let open = |with: &str| place.run(&format!("open -o out {with} report.hush"));
    assert_eq!(open("--identity bob"), wrong("does not open with an identity"));
    assert_eq!(open("--passfile other"), wrong("wrong passphrase"));
    assert_eq!(open("--key-file key"), wrong("does not open with a key file"));
    let info = place.run("info report.hush");
    let recipient = fs::read_to_string(place.path("ann.pub")).unwrap();
    let expected = format!(
        "\
sealed file ID
suite       aes-256-gcm-siv
block size  65536
way 1       passphrase (Argon2id, 64 MiB, 3 passes)
way 2       recipient {}...
nothing of this is authenticated: whoever can write to the file can make it say anything
",
        &recipient[.."hush-recipient-1-".len() + 12]
    );
    assert_eq!((info.code, normal(&info.out)), (0, expected));
    // Bob for Ann, by who has the passphrase; the content is not touched.
    let before = fs::read(place.path("report.hush")).unwrap();
    let reseal = |rest: &str| place.run(&format!("reseal --passfile pass {rest} report.hush"));
    assert_eq!(reseal("--add-recipient bob.pub --drop ann.pub"), done());
    assert!(
        fs::read(place.path("report.hush"))
            .unwrap()
            .ends_with(&before[before.len() - 150_000..])
    );
    place.opens("--identity bob");
    assert_eq!(open("--identity ann"), wrong("does not open with an identity"));
    assert_eq!(
        reseal("--drop 9"),
        given(1, "", "hushfs: no way \"9\": `hushfs info` lists them\n")
    );
    assert_eq!(
        reseal("--drop 1 --drop bob.pub"),
        given(1, "", "hushfs: report.hush: nothing would open it any more\n")
    );
    let json: serde_json::Value = serde_json::from_str(&place.run("info --json report.hush").out).unwrap();
    assert_eq!(
        (&json["ways"][0]["kind"], &json["ways"][1]["number"]),
        (&"passphrase".into(), &3.into())
    );
}

#[test]
fn a_key_of_a_keystore_opens_while_it_is_enabled() {
    let place = Place::new();
    let keystore = "--key-file key --keystore keys";
    assert_eq!(place.run("keystore init --key-file key keys").code, 0);
    let made = place.run(&format!("key create {keystore} --alias alias/reports"));
    let id = made.out.trim();
    place.write("report", &content());
    assert_eq!(
        place.run(&format!(
            "seal {keystore} --key alias/reports --context team=blue report"
        )),
        done()
    );
    place.opens(keystore);
    place.opens(&format!("{keystore} --context team=blue"));
    assert_eq!(
        place.run(&format!("open {keystore} --context team=red -o out report.hush")),
        given(
            9,
            "",
            "hushfs: report.hush: its encryption context has not that value for \"team\"\n"
        )
    );
    assert_eq!(place.run(&format!("key rotate {keystore} alias/reports")).code, 0);
    place.opens(keystore);
    assert_eq!(place.run(&format!("key disable {keystore} alias/reports")), done());
    let refused = place.run(&format!("open {keystore} -o out report.hush"));
    assert_eq!(
        (refused.code, refused.err.as_str()),
        (
            10,
            format!(
                "hushfs: DisabledException: report.hush: key {id} is disabled: enable it with `hushfs key enable`\n"
            )
            .as_str()
        )
    );
    assert!(!place.path("out").exists());
    let info = place.run("info report.hush");
    assert!(info.out.contains("context     team=blue\n"), "{}", info.out);
    assert!(
        info.out.contains(&format!("way 1       key {id} of keystore ")),
        "{}",
        info.out
    );
}

#[test]
fn options_of_no_use_are_refused() {
    let place = Place::with_sealed();
    File::create(place.path("plain")).unwrap();
    let refused = |arguments: &str, message: &str| {
        assert_eq!(
            place.run(arguments),
            given(2, "", &format!("hushfs: {message}\n")),
            "{arguments}"
        );
    };
    let only = "is for opening a keystore: name one with --keystore or, to seal, a key with --key";
    refused("seal --recovery -o out report", &format!("--recovery {only}"));
    refused("seal --keystore keys -o out report", &format!("--keystore {only}"));
    refused(
        "open --slot 1 --key-file key -o out report.hush",
        &format!("--slot {only}"),
    );
    refused(
        "open --key-file key plain",
        "plain: does not end in .hush: name the file to make with -o",
    );
    refused(
        "seal --remove --key-file key -o - report",
        "--remove removes one file when another was made of it: name both",
    );
    symlink("report", place.path("link")).unwrap();
    for command in [
        "seal --remove --key-file key link",
        "open --remove --key-file key -o out link",
    ] {
        refused(
            command,
            "link: a symbolic link, and --remove removes files: name the file itself",
        );
    }
    fs::remove_file(place.path("link")).unwrap();
    refused(
        "seal --remove --key-file key key",
        "key: is the key file that opens what is made of it: with --remove nothing would",
    );
    refused(
        "seal --key-file key --context hushfs:file=1 -o out report",
        "report: names in an encryption context must not start with hushfs:",
    );
    assert_eq!(
        place.names(),
        ["key", "other", "pass", "plain", "report", "report.hush"]
    );
}
