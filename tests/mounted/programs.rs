//! Programs that know nothing of hushfs: SQLite, git, the Rust compiler, tar.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::support::{Bench, can_mount, snapshot, which};

/// Tells whether a program is there; where tests must not be skipped, its absence fails the test.
fn have(program: &str) -> bool {
    let found = which(program).is_some();
    assert!(
        found || std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none(),
        "{program} is not installed"
    );
    if !found {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

fn run(dir: &Path, program: &str, args: &[&str]) -> Output {
    let output = Command::new(program)
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn sqlite_survives_being_killed(journal: &str) {
    if !can_mount() || !have("sqlite3") {
        return;
    }
    let mut bench = Bench::mounted();
    let mnt = bench.mnt();
    let start = format!("pragma journal_mode={journal}; create table t(id integer primary key, v blob);");
    run(&mnt, "sqlite3", &["db", &start]);
    for round in 0..4 {
        let mut sqlite = Command::new("sqlite3")
            .arg("db")
            .current_dir(&mnt)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = sqlite.stdin.take().unwrap();
        let feeder = thread::spawn(move || {
            for i in 0..100_000 {
                let insert = "insert into t(v) values (randomblob(700));\n";
                let update = format!(
                    "begin; {insert} update t set v = randomblob(900) where id % 7 = {}; commit;\n",
                    i % 7
                );
                // Ends when the other side is killed.
                if input.write_all(update.as_bytes()).is_err() {
                    return;
                }
            }
        });
        // Some transactions at least, however busy the machine is.
        let written = |name: &str| mnt.join(name).metadata().map_or(0, |found| found.len());
        let begun = Instant::now();
        while written("db") + written("db-wal") < 128 << 10 && begun.elapsed() < Duration::from_secs(60) {
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(Duration::from_millis(300));
        sqlite.kill().unwrap();
        sqlite.wait().unwrap();
        feeder.join().unwrap();
        let check = run(
            &mnt,
            "sqlite3",
            &["db", "pragma integrity_check; select count(*) > 0 from t;"],
        );
        assert_eq!(
            String::from_utf8_lossy(&check.stdout),
            "ok\n1\n",
            "{journal}, round {round}"
        );
        bench.remount();
    }
}

#[test]
fn sqlite_with_a_rollback_journal_survives_being_killed() {
    sqlite_survives_being_killed("delete");
}

#[test]
fn sqlite_with_a_write_ahead_log_survives_being_killed() {
    sqlite_survives_being_killed("wal");
}

#[test]
fn git_commits_clones_packs_and_finds_nothing_wrong() {
    if !can_mount() || !have("git") {
        return;
    }
    let mut bench = Bench::mounted();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let work = bench.mnt().join("work");
    fs::create_dir(&work).unwrap();
    run(&work, "cp", &["-r", source.to_str().unwrap(), "."]);
    run(&work, "git", &["init", "-q", "."]);
    run(&work, "git", &["config", "user.email", "test@example.org"]);
    run(&work, "git", &["config", "user.name", "test"]);
    run(&work, "git", &["add", "-A"]);
    run(&work, "git", &["commit", "-qm", "one"]);
    run(&work, "git", &["mv", "src", "source"]);
    run(&work, "git", &["commit", "-qam", "two"]);
    run(&bench.mnt(), "git", &["clone", "-q", "work", "clone"]);
    run(&work, "git", &["gc", "-q"]);
    bench.remount();
    for repository in ["work", "clone"] {
        let dir = bench.mnt().join(repository);
        run(&dir, "git", &["fsck", "--full", "--strict"]);
        let status = run(&dir, "git", &["status", "--porcelain"]);
        assert!(status.stdout.is_empty(), "{}", String::from_utf8_lossy(&status.stdout));
    }
    run(&bench.mnt(), "diff", &["-r", source.to_str().unwrap(), "clone/source"]);
}

#[test]
fn a_program_is_compiled_and_run_in_the_mount() {
    if !can_mount() || !have("cargo") {
        return;
    }
    let bench = Bench::mounted();
    let mnt = bench.mnt();
    fs::create_dir_all(mnt.join("hello/src")).unwrap();
    let manifest = "[package]\nname = \"hello\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n";
    fs::write(mnt.join("hello/Cargo.toml"), manifest).unwrap();
    fs::write(mnt.join("hello/src/main.rs"), "fn main() { println!(\"hello\"); }\n").unwrap();
    let dir = mnt.join("hello");
    let built = Command::new("cargo")
        .args(["build", "-q", "--offline", "--target-dir", "target"])
        .current_dir(&dir)
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let said = run(&dir, "target/debug/hello", &[]);
    assert_eq!(said.stdout, b"hello\n");
}

#[test]
fn tar_takes_a_tree_in_and_out_again() {
    if !can_mount() || !have("tar") {
        return;
    }
    let mut bench = Bench::mounted();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let archive = bench.plain().join("in.tar");
    run(
        &bench.plain(),
        "tar",
        &["cf", archive.to_str().unwrap(), "-C", source.to_str().unwrap(), "."],
    );
    run(&bench.mnt(), "tar", &["xf", archive.to_str().unwrap()]);
    fs::remove_file(&archive).unwrap();
    bench.remount();
    run(&bench.mnt(), "tar", &["cf", archive.to_str().unwrap(), "."]);
    run(&bench.plain(), "tar", &["xf", archive.to_str().unwrap()]);
    fs::remove_file(&archive).unwrap();
    run(&bench.plain(), "diff", &["-r", source.to_str().unwrap(), "."]);
    let whole_seconds = |root: &Path| {
        let strip = |line: String| line.split(" (").next().unwrap_or_default().to_owned();
        snapshot(root).into_iter().map(strip).collect::<Vec<_>>()
    };
    assert_eq!(whole_seconds(&bench.mnt()), whole_seconds(&bench.plain()));
}

/// Delivers as programs do that want no message twice: written to one directory, linked to another, removed from the first.
#[test]
fn mail_that_is_delivered_leaves_nothing_but_its_messages() {
    const MESSAGES: usize = 50;
    if !can_mount() || !have("python3") {
        return;
    }
    let mut bench = Bench::mounted();
    let script = format!(
        "import mailbox\n\
         box = mailbox.Maildir('mail', create=True)\n\
         for i in range({MESSAGES}): box.add(f'Subject: {{i}}\\n\\ntext\\n')\n\
         assert len(box) == {MESSAGES}"
    );
    run(&bench.mnt(), "python3", &["-c", &script]);
    bench.unmount();
    let output = bench.run("fsck", &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("header of no file"), "{said}");
    bench.mount(&[]);
    run(
        &bench.mnt(),
        "python3",
        &[
            "-c",
            &format!(
                "import mailbox\n\
         box = mailbox.Maildir('mail')\n\
         assert sorted(int(message['subject']) for message in box) == list(range({MESSAGES}))"
            ),
        ],
    );
}
