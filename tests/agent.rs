//! An agent with real processes and other users: what each may do, and what they are told.
//!
//! Other users are numbers without accounts, which clients become by setuid(2); that takes root. As another user the same is tried with one
//! user alone, in `an_agent_of_one_s_own`.

#[path = "support/kms.rs"]
mod kms;
#[path = "support/mod.rs"]
mod support;

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use support::{HUSHFS, can_mount, is_root, which};
use tempfile::TempDir;

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// May use the key, and not administer it.
const USER: u32 = 61001;

/// May administer the key, and not use it.
const ADMINISTRATOR: u32 = 61002;

/// May do nothing.
const STRANGER: u32 = 61003;

/// May use the key too, and has an account, without which fusermount3 mounts nothing: daemon's number everywhere.
const ACCOUNT: u32 = 1;

/// Has the agent and its keystore, and what opens keys elsewhere.
const HOLDER: u32 = 61004;

/// Of this group.
const GROUP: u32 = 61100;

/// A user with groups.
#[derive(Clone, Copy)]
struct User {
    uid: u32,
    groups: &'static [u32],
}

const fn user(uid: u32) -> User {
    User { uid, groups: &[] }
}

/// Tells whether the test can be several users. Where it must, as in CI, that it cannot fails the test.
fn can_be_others() -> bool {
    if is_root() {
        return true;
    }
    assert!(
        std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none(),
        "these tests must run here, but: not root"
    );
    eprintln!("SKIPPED: not root, and so not other users");
    false
}

/// A keystore, an agent that holds it, and a directory for each user.
struct Place {
    dir: TempDir,
    /// Can be read and run by every user, as the program under test need not be.
    program: PathBuf,
    agent: Option<Child>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = dir.path().join("hushfs");
        // By another process: a file that this one had open for writing could not be run while other tests fork.
        succeeded(Command::new("install").args(["-m", "0755", HUSHFS]).arg(&program));
        fs::write(dir.path().join("secret"), [7; 32]).unwrap();
        let place = Place {
            dir,
            program,
            agent: None,
        };
        place.good("keystore init --key-file secret keys");
        place
    }

    /// A place with an agent, and a vault under a key of its keystore.
    fn with_vault() -> Self {
        let mut place = Place::new();
        place.start_agent("");
        place.good("key create --agent agent.sock --alias alias/mail");
        place.good("init --agent agent.sock --key alias/mail vault");
        place
    }

    /// Mounts the vault by the agent, and makes a file in it.
    fn mount_with_file(&self, options: &str) {
        fs::create_dir(self.path("mnt")).unwrap();
        self.good(&format!("mount --agent agent.sock {options} vault mnt"));
        fs::write(self.path("mnt/file"), "hello").unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments.split_whitespace())
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("CREDENTIALS_DIRECTORY")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null());
        command
    }

    fn as_user(&self, user: User, arguments: &str) -> Command {
        let mut command = self.command(arguments);
        become_user(&mut command, user);
        command
    }

    fn good(&self, arguments: &str) -> String {
        succeeded(&mut self.command(arguments))
    }

    /// Runs a command as a user, on the agent; returns exit code, standard output and standard error.
    fn run(&self, user: User, arguments: &str) -> (i32, String, String) {
        let output = self.as_user(user, arguments).output().unwrap();
        told(&output)
    }

    fn start_agent(&mut self, options: &str) {
        let command = format!("agent --foreground --socket agent.sock --keystore keys --key-file secret {options}");
        self.start(self.command(&command));
    }

    fn start(&mut self, mut command: Command) {
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        self.agent = Some(child);
        let deadline = Instant::now() + PATIENCE;
        while told(&self.command("agent --status --socket agent.sock").output().unwrap()).0 != 0 {
            assert!(
                self.agent.as_mut().unwrap().try_wait().unwrap().is_none(),
                "the agent ended"
            );
            assert!(Instant::now() < deadline, "the agent does not answer");
            thread::sleep(Duration::from_millis(5));
        }
        // What it logs must not block it.
        let mut log = self.agent.as_mut().unwrap().stderr.take().unwrap();
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    }

    fn kill_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }

    /// Makes a directory that belongs to a user.
    fn directory_of(&self, uid: u32, name: &str) {
        fs::create_dir(self.path(name)).unwrap();
        std::os::unix::fs::chown(self.path(name), Some(uid), Some(uid)).unwrap();
    }

    /// Makes a key of which USER and GROUP are users, and ADMINISTRATOR administers it; returns its id.
    fn key_with_policy(&self, alias: &str) -> String {
        let id = self
            .good(&format!("key create --agent agent.sock --alias {alias}"))
            .trim()
            .to_owned();
        let policy = format!(
            r#"{{"Version": "2012-10-17", "Statement": [
              {{"Sid": "owner", "Effect": "Allow", "Principal": {{"uid": 0}}, "Action": "kms:*", "Resource": "*"}},
              {{"Sid": "administrators", "Effect": "Allow", "Principal": {{"uid": {ADMINISTRATOR}}}, "Resource": "*",
                "Action": ["kms:Enable*", "kms:Disable*", "kms:Put*", "kms:Get*", "kms:Describe*", "kms:Schedule*", "kms:Cancel*",
                           "kms:Rotate*", "kms:List*", "kms:TagResource"]}},
              {{"Sid": "users", "Effect": "Allow", "Principal": {{"uid": [{USER}, {ACCOUNT}], "gid": {GROUP}}}, "Resource": "*",
                "Action": ["kms:Decrypt", "kms:GenerateDataKey", "kms:DescribeKey"]}}]}}"#
        );
        fs::write(self.path("policy.json"), policy).unwrap();
        self.good(&format!("key policy set --agent agent.sock --file policy.json {id}"));
        id
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.kill_agent();
        for name in ["mnt", "mnt2"] {
            let _ = Command::new("umount")
                .arg("-l")
                .arg(self.path(name))
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn become_user(command: &mut Command, user: User) {
    // SAFETY: only system calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let set = libc::setgroups(user.groups.len(), user.groups.as_ptr()) == 0
                && libc::setgid(user.uid) == 0
                && libc::setuid(user.uid) == 0;
            if set {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
}

fn told(output: &Output) -> (i32, String, String) {
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

fn succeeded(command: &mut Command) -> String {
    let (code, out, err) = told(&command.output().unwrap());
    assert_eq!(code, 0, "{command:?}: {err}");
    out
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

#[test]
fn who_may_use_a_key_makes_and_reads_a_vault_and_a_stranger_is_told_why_not() {
    if !can_be_others() {
        return;
    }
    let mut place = Place::new();
    place.start_agent("");
    let id = place.key_with_policy("alias/mail");
    place.directory_of(USER, "home");
    let made = place.run(user(USER), "init --agent agent.sock --key alias/mail home/vault");
    assert_eq!(made, (0, String::new(), String::new()));
    let shown = place.run(user(USER), "vault encryption show --agent agent.sock home/vault");
    assert!(shown.1.contains("alias/mail"), "{shown:?}");
    assert_eq!(place.run(user(USER), "ls --agent agent.sock home/vault").0, 0);
    // Whoever it is now, what they may do is the same, and the vault's files are no secret here.
    for entry in ["home/vault", "home"] {
        fs::set_permissions(place.path(entry), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for entry in fs::read_dir(place.path("home/vault")).unwrap() {
        fs::set_permissions(entry.unwrap().path(), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let refused = |uid: u32| {
        format!(
            "hushfs: AccessDeniedException: the vault's key cannot be used: user {uid} is not authorized to perform kms:Decrypt \
             on key {id} because no statement of its policy allows it\n"
        )
    };
    for other in [STRANGER, ADMINISTRATOR] {
        let got = place.run(user(other), "ls --agent agent.sock home/vault");
        assert_eq!(got, (10, String::new(), refused(other)));
    }
    // A member of the group, by a supplementary one.
    let member = User {
        uid: STRANGER,
        groups: &[GROUP],
    };
    assert_eq!(place.run(member, "ls --agent agent.sock home/vault").0, 0);
    // Without the agent nobody opens it: the keystore is root's.
    let got = place.run(user(USER), "ls --keystore keys --key-file secret home/vault");
    assert_ne!(got.0, 0, "{got:?}");
    // The default key has no policy but the owner's.
    let got = place.run(user(USER), "init --agent agent.sock home/other");
    assert_eq!(got.0, 10, "{got:?}");
    assert!(got.2.contains("AccessDeniedException"), "{got:?}");
}

#[test]
fn administrators_and_users_are_different_people() {
    if !can_be_others() {
        return;
    }
    let mut place = Place::new();
    place.start_agent("");
    let id = place.key_with_policy("alias/mail");
    let administer = |uid: u32, what: &str| place.run(user(uid), &format!("key {what} --agent agent.sock alias/mail"));
    for what in [
        "describe",
        "disable",
        "enable",
        "rotate",
        "rotations",
        "delete",
        "undelete",
        "enable",
        "usage",
        "policy show",
    ] {
        assert_eq!(administer(ADMINISTRATOR, what).0, 0, "{what}");
    }
    for what in ["disable", "rotate", "delete", "policy show", "usage"] {
        let got = administer(USER, what);
        assert_eq!(got.0, 10, "{what}: {got:?}");
        assert!(got.2.starts_with(&format!(
            "hushfs: AccessDeniedException: user {USER} is not authorized to perform kms:"
        )));
    }
    // What neither may: make keys, destroy them, end the agent.
    for (what, uid) in [("key create", ADMINISTRATOR), ("key reap", USER)] {
        let got = place.run(user(uid), &format!("{what} --agent agent.sock"));
        assert_eq!(
            (got.0, got.2.contains("does not own the keystore")),
            (10, true),
            "{got:?}"
        );
    }
    assert_eq!(place.run(user(STRANGER), "lock --agent agent.sock").0, 10);
    // A list is of what one may know of.
    let listed = |uid| place.run(user(uid), "key list --agent agent.sock").1;
    assert_eq!(listed(STRANGER), "");
    assert!(listed(USER).contains(&id) && !listed(USER).contains("hushfs/default"));
    assert!(listed(0).contains("hushfs/default"));
    let aliases = place.run(user(USER), "key alias list --agent agent.sock").1;
    assert_eq!(aliases, format!("{id} alias/mail\n"));
    // The administrator's own lockout is noticed, and a dry run changes nothing.
    fs::write(
        place.path("locked.json"),
        r#"{"Statement": [{"Effect": "Allow", "Principal": {"uid": 0}, "Action": "kms:*", "Resource": "*"}]}"#,
    )
    .unwrap();
    let set = "key policy set --agent agent.sock --file locked.json alias/mail";
    let got = place.run(user(ADMINISTRATOR), set);
    assert_eq!(
        (got.0, got.2.contains("MalformedPolicyDocumentException")),
        (2, true),
        "{got:?}"
    );
    let got = place.run(
        user(ADMINISTRATOR),
        "key disable --dry-run --agent agent.sock alias/mail",
    );
    assert_eq!(
        (got.0, got.2.contains("DryRunOperationException")),
        (0, true),
        "{got:?}"
    );
    assert!(
        place
            .run(user(USER), "key list --agent agent.sock")
            .1
            .contains("enabled")
    );
    // What is disabled is disabled for all, in AWS's words.
    place.directory_of(USER, "home");
    assert_eq!(administer(ADMINISTRATOR, "disable").0, 0);
    let got = place.run(user(USER), "init --agent agent.sock --key alias/mail home/vault");
    assert_eq!((got.0, got.2.contains("DisabledException")), (10, true), "{got:?}");
}

#[test]
fn what_an_agent_does_and_refuses_is_in_the_audit_log_with_who_asked() {
    if !can_be_others() {
        return;
    }
    let mut place = Place::new();
    place.start_agent("");
    let id = place.key_with_policy("alias/mail");
    place.directory_of(USER, "home");
    let exit = |uid: u32, arguments: &str| place.run(user(uid), arguments).0;
    assert_eq!(exit(USER, "init --agent agent.sock --key alias/mail home/vault"), 0);
    fs::set_permissions(place.path("home/vault"), fs::Permissions::from_mode(0o755)).unwrap();
    for entry in fs::read_dir(place.path("home/vault")).unwrap() {
        fs::set_permissions(entry.unwrap().path(), fs::Permissions::from_mode(0o644)).unwrap();
    }
    assert_eq!(exit(STRANGER, "ls --agent agent.sock home/vault"), 10);
    assert_eq!(exit(USER, "key disable --agent agent.sock alias/mail"), 10);
    assert_eq!(exit(ADMINISTRATOR, "key create --agent agent.sock"), 10);
    assert_eq!(
        exit(ADMINISTRATOR, "key disable --dry-run --agent agent.sock alias/mail"),
        0
    );
    assert_eq!(exit(ADMINISTRATOR, "key disable --agent agent.sock alias/mail"), 0);
    assert_eq!(exit(ADMINISTRATOR, "key enable --agent agent.sock alias/mail"), 0);
    assert_eq!(exit(USER, "ls --agent agent.sock home/vault"), 0);
    let records = |who: u32| -> Vec<serde_json::Value> {
        let shown = place.good(&format!("audit show --json --principal {who} --keystore keys"));
        shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let told = |who: u32| -> Vec<(String, Option<String>)> {
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let of = |record: &serde_json::Value| (text(&record["eventName"]).unwrap(), text(&record["errorCode"]));
        records(who).iter().map(of).collect()
    };
    let good = |name: &str| (name.to_owned(), None);
    let denied = |name: &str| (name.to_owned(), Some("AccessDeniedException".to_owned()));
    assert_eq!(
        told(USER),
        // The second time is that the agent looks whether the vault is what it says, before it keeps that.
        [
            good("GenerateDataKey"),
            good("Decrypt"),
            denied("DisableKey"),
            good("Decrypt"),
        ]
    );
    assert_eq!(told(STRANGER), [denied("Decrypt")]);
    assert_eq!(
        told(ADMINISTRATOR),
        [denied("CreateKey"), good("DisableKey"), good("EnableKey")]
    );
    assert_eq!(told(0), [good("StartLogging"), good("CreateKey"), good("PutKeyPolicy")]);
    for who in [USER, STRANGER, ADMINISTRATOR] {
        for record in records(who) {
            let identity = &record["userIdentity"];
            assert_eq!((&identity["uid"], &identity["gid"]), (&who.into(), &who.into()));
            let own = place.agent.as_ref().unwrap().id();
            assert!(
                identity["pid"]
                    .as_u64()
                    .is_some_and(|pid| pid > 0 && pid != u64::from(own))
            );
            assert!(identity["role"].is_null(), "it opened no slot: {identity}");
            let names_key = record["resources"][0]["ARN"]
                .as_str()
                .is_some_and(|arn| arn.ends_with(&id));
            assert_eq!(names_key, record["eventName"] != "CreateKey", "{record}");
        }
    }
    place.good("audit verify --keystore keys --key-file secret");
}

#[test]
fn an_agent_that_cannot_record_a_call_refuses_it() {
    let place = Place::with_vault();
    let log = fs::read(place.path("keys/audit.jsonl")).unwrap();
    fs::remove_file(place.path("keys/audit.jsonl")).unwrap();
    let got = told(&place.command("ls --agent agent.sock vault").output().unwrap());
    assert_eq!((got.0, got.2.contains("audit log")), (11, true), "{got:?}");
    let disable = "key disable --agent agent.sock alias/mail";
    let got = told(&place.command(disable).output().unwrap());
    assert_eq!((got.0, got.2.contains("could not record")), (1, true), "{got:?}");
    fs::write(place.path("keys/audit.jsonl"), log).unwrap();
    // What was refused did not happen, and the log goes on.
    place.good("ls --agent agent.sock vault");
    place.good("audit verify --keystore keys --key-file secret");
    // Another log that is begun beside the agent is the one it goes on in.
    place.good("keystore audit on --new-log --keystore keys --key-file secret");
    place.good("ls --agent agent.sock vault");
    place.good("audit verify --keystore keys --key-file secret");
    assert!(place.good("audit show --keystore keys").contains("Decrypt"));
}

#[test]
fn the_log_is_looked_at_beside_the_agent_and_names_of_files_do_not_come_by_it() {
    let mut place = Place::new();
    place.start_agent("");
    place.good("init --agent agent.sock vault");
    fs::create_dir(place.path("mnt")).unwrap();
    for (command, text) in [
        (
            "mount --audit per-file --agent agent.sock vault mnt",
            "--audit per-file",
        ),
        ("audit verify --agent agent.sock", "nor give a way to its slots"),
        ("keystore audit off --agent agent.sock", "nor give a way to its slots"),
    ] {
        let got = told(&place.command(command).output().unwrap());
        assert_eq!((got.0, got.2.contains(text)), (2, true), "{command}: {got:?}");
    }
    place.good("audit export --keystore keys");
}

#[test]
fn a_description_says_who_enforces_the_policy() {
    if !can_be_others() {
        return;
    }
    let mut place = Place::new();
    place.start_agent("");
    place.key_with_policy("alias/mail");
    let line = |text: String| text.lines().find(|line| line.starts_with("policy")).unwrap().to_owned();
    let describe = "key describe --agent agent.sock alias/mail";
    assert_eq!(
        line(place.run(user(USER), describe).1),
        "policy      its own; enforced by the agent, which runs as user 0, against everyone but that user and root"
    );
    assert_eq!(
        line(place.good(describe)),
        "policy      its own; against you a seat belt: the agent runs as user 0, and you can read what it has; against others a wall"
    );
    assert!(line(place.good("key describe --keystore keys --key-file secret alias/mail")).contains("seat belt"));
    let json = place.run(user(USER), &format!("{describe} --json")).1;
    assert!(json.contains("\"policy_enforced_by\": \"agent\""), "{json}");
}

#[test]
fn what_is_done_to_the_keystore_beside_the_agent_counts() {
    let place = Place::with_vault();
    place.good("key disable --keystore keys --key-file secret alias/mail");
    let got = told(&place.command("ls --agent agent.sock vault").output().unwrap());
    assert_eq!((got.0, got.2.contains("DisabledException")), (10, true), "{got:?}");
    place.good("key enable --keystore keys --key-file secret alias/mail");
    place.good("ls --agent agent.sock vault");
    // A vault of the agent is one of its keystore too.
    place.good("ls --keystore keys --key-file secret vault");
    place.good("key rotate --agent agent.sock alias/mail");
    place.good("vault rotate --agent agent.sock vault");
    place.good("rewrap --retire --agent agent.sock vault");
    let usage = place.good("key usage --agent agent.sock alias/mail");
    assert!(usage.contains("needs it for 1 epoch"), "{usage}");
    // Slots are not the agent's to give.
    for command in ["slot list", "share list", "slot test"] {
        let got = told(
            &place
                .command(&format!("{command} --agent agent.sock"))
                .output()
                .unwrap(),
        );
        assert_eq!(
            (got.0, got.2.contains("nor give a way to its slots")),
            (2, true),
            "{command}: {got:?}"
        );
    }
}

#[test]
fn a_mount_goes_on_when_the_agent_is_killed_and_the_next_one_is_not_had() {
    if !can_mount() {
        return;
    }
    let mut place = Place::with_vault();
    place.mount_with_file("");
    place.kill_agent();
    assert_eq!(fs::read_to_string(place.path("mnt/file")).unwrap(), "hello");
    fs::write(place.path("mnt/another"), "more").unwrap();
    place.good("unmount mnt");
    let got = told(&place.command("mount --agent agent.sock vault mnt").output().unwrap());
    assert_eq!((got.0, got.2.contains("no agent there")), (11, true), "{got:?}");
    assert!(!is_mounted(&fs::canonicalize(place.path("mnt")).unwrap()));
    place.start_agent("");
    assert_eq!(place.good("cat --agent agent.sock vault another"), "more");
}

#[test]
fn a_mount_asks_its_agent_again_and_obeys() {
    if !can_mount() {
        return;
    }
    let place = Place::with_vault();
    place.mount_with_file("--key-ttl 1s");
    let until = |is_there: fn(&std::io::Result<String>) -> bool| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let read = fs::read_to_string(place.path("mnt/file"));
            if is_there(&read) {
                return;
            }
            assert!(Instant::now() < deadline, "{read:?}");
            thread::sleep(Duration::from_millis(50));
        }
    };
    place.good("key disable --agent agent.sock alias/mail");
    until(|read| matches!(read, Err(error) if error.raw_os_error() == Some(libc::EKEYREVOKED)));
    place.good("key enable --agent agent.sock alias/mail");
    until(|read| matches!(read, Ok(text) if text == "hello"));
    place.good("unmount mnt");
    let refused = place.good("audit show --errors --event Decrypt --keystore keys");
    assert!(refused.contains("DisabledException"), "{refused}");
}

#[test]
fn files_without_a_bucket_key_are_asked_for_one_by_one_and_a_stopped_agent_keeps_no_other_waiting() {
    if !can_mount() {
        return;
    }
    let place = Place::with_vault();
    place.mount_with_file("");
    fs::create_dir(place.path("mnt/mail")).unwrap();
    place.good("unmount mnt");
    place.good("vault encryption set --agent agent.sock --key alias/mail --bucket-key off vault mail");
    place.good("mount --agent agent.sock vault mnt");
    for name in ["one", "two"] {
        fs::write(place.path("mnt/mail").join(name), name).unwrap();
    }
    place.good("unmount mnt");
    place.good("mount --agent agent.sock vault mnt");
    assert_eq!(fs::read_to_string(place.path("mnt/mail/one")).unwrap(), "one");
    let shown = place.good("audit show --json --keystore keys");
    let of_files = |name: &str| {
        let of_file = |line: &&str| line.contains("hushfs:file") && line.contains(&format!("\"{name}\""));
        shown.lines().filter(of_file).count()
    };
    assert_eq!((of_files("GenerateDataKey"), of_files("Decrypt")), (2, 1), "{shown}");

    let agent = rustix::process::Pid::from_child(place.agent.as_ref().unwrap());
    rustix::process::kill_process(agent, rustix::process::Signal::STOP).unwrap();
    let started = Instant::now();
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let file = place.path("mnt/mail/two");
            thread::spawn(move || fs::read(file).err().and_then(|error| error.raw_os_error()))
        })
        .collect();
    thread::sleep(Duration::from_millis(200));
    for number in 0..20 {
        assert_eq!(fs::read_to_string(place.path("mnt/file")).unwrap(), "hello");
        assert_eq!(
            fs::read_to_string(place.path("mnt/mail/one")).unwrap(),
            "one",
            "it was asked for"
        );
        fs::write(place.path(&format!("mnt/{number}")), "new").unwrap();
        assert_eq!(fs::read_dir(place.path("mnt/mail")).unwrap().count(), 2);
    }
    assert!(
        waiting.iter().any(|waiting| !waiting.is_finished()),
        "all of it while some wait"
    );
    for waiting in waiting {
        assert_eq!(waiting.join().unwrap(), Some(libc::ETIMEDOUT));
    }
    assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
    rustix::process::kill_process(agent, rustix::process::Signal::CONT).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while fs::read_to_string(place.path("mnt/mail/two")).ok().as_deref() != Some("two") {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(50));
    }
    place.good("unmount mnt");
    assert_eq!(place.good("cat --agent agent.sock vault mail/two"), "two");
    place.good("verify --agent agent.sock vault");
    place.good("rewrap --agent agent.sock --bucket-key on --retire vault");
}

#[test]
fn a_user_mounts_by_the_agent_of_another() {
    if !can_be_others() || !can_mount() {
        return;
    }
    let mut place = Place::new();
    place.start_agent("");
    place.key_with_policy("alias/mail");
    for name in ["home", "mnt"] {
        place.directory_of(ACCOUNT, name);
    }
    assert_eq!(
        place
            .run(user(ACCOUNT), "init --agent agent.sock --key alias/mail home/vault")
            .0,
        0
    );
    let mounted = place.run(user(ACCOUNT), "mount --agent agent.sock home/vault mnt");
    if mounted.0 == 8 {
        assert!(std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none(), "{mounted:?}");
        return eprintln!("SKIPPED: users may not mount here: {}", mounted.2);
    }
    assert_eq!(mounted.0, 0, "{mounted:?}");
    let mut write = Command::new("sh");
    write
        .arg("-c")
        .arg(format!("echo hello > {0}/f && cat {0}/f", place.path("mnt").display()));
    become_user(&mut write, user(ACCOUNT));
    assert_eq!(succeeded(&mut write), "hello\n");
    let got = place.run(user(ACCOUNT), "unmount mnt");
    assert_eq!(got.0, 0, "{got:?}");
}

/// Has the agent of HOLDER, who alone has the `settings` and `options` for a key that is held elsewhere, serve the mount of another user.
///
/// `create` are the arguments by which the keystore gets the key, and `theirs` what else becomes HOLDER's; nothing where users may not mount here.
fn serve_the_mount_of_another(
    create: &str,
    options: &str,
    settings: &[(&str, &str)],
    theirs: Option<&Path>,
) -> Option<Place> {
    let mut place = Place::new();
    let made = format!("key create --keystore keys --key-file secret --alias alias/elsewhere {options} {create}");
    succeeded(place.command(&made).envs(settings.iter().copied()));
    let policy = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"},
    ]});
    fs::write(place.path("policy.json"), policy.to_string()).unwrap();
    place.good("key policy set --keystore keys --key-file secret --file policy.json alias/elsewhere");
    let own = [place.path("keys"), place.path("secret")];
    succeeded(
        Command::new("chown")
            .arg("-R")
            .arg(HOLDER.to_string())
            .args(own)
            .args(theirs),
    );
    // For the agent's socket.
    fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let arguments = format!("agent --foreground --socket agent.sock --keystore keys --key-file secret {options}");
    let mut agent = place.as_user(user(HOLDER), &arguments);
    agent.envs(settings.iter().copied());
    place.start(agent);

    for name in ["home", "mnt"] {
        place.directory_of(ACCOUNT, name);
    }
    let good = |arguments: &str| {
        let (code, out, err) = place.run(user(ACCOUNT), arguments);
        assert_eq!(code, 0, "{arguments}: {err}");
        out
    };
    let shell = |script: &str| {
        let mut shell = Command::new("sh");
        // Nobody else can enter it.
        shell
            .arg("-c")
            .arg(format!("cd mnt && {script}"))
            .current_dir(place.dir.path());
        become_user(&mut shell, user(ACCOUNT));
        succeeded(&mut shell)
    };
    good("init --agent agent.sock --key alias/elsewhere --bucket-key off home/vault");
    let mounted = place.run(user(ACCOUNT), "mount --agent agent.sock home/vault mnt");
    if mounted.0 == 8 {
        assert!(std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none(), "{mounted:?}");
        eprintln!("SKIPPED: users may not mount here: {}", mounted.2);
        return None;
    }
    assert_eq!(mounted.0, 0, "{mounted:?}");
    assert_eq!(shell("echo hello > f && echo more > g && cat f"), "hello\n");
    good("unmount mnt");
    good("mount --agent agent.sock home/vault mnt");
    assert_eq!(shell("cat f g"), "hello\nmore\n");
    good("unmount mnt");
    good("vault rotate --agent agent.sock home/vault");
    good("rewrap --agent agent.sock --retire home/vault");
    assert_eq!(good("cat --agent agent.sock home/vault f"), "hello\n");

    let records = place.good("audit show --json --keystore keys");
    let records = records.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_files: Vec<_> = records
        .filter(|record| record["requestParameters"]["encryptionContext"]["hushfs:file"].is_string())
        .collect();
    assert!(of_files.iter().all(|record| record["userIdentity"]["uid"] == ACCOUNT));
    let count = |name: &str| of_files.iter().filter(|record| record["eventName"] == name).count();
    // Made with the first mount and by `rewrap`; opened with the second mount, by `rewrap` before and after, and by `cat`.
    assert_eq!((count("GenerateDataKey"), count("Decrypt")), (4, 7));
    Some(place)
}

#[test]
fn a_key_of_kms_that_an_agent_has_serves_the_mount_of_another_user() {
    if !can_be_others() || !can_mount() {
        return;
    }
    for server in [kms::MOTO, kms::LOCALSTACK] {
        let Some(url) = kms::server(server) else { continue };
        let key = kms::new_key(&url);
        let settings = [
            ("AWS_ENDPOINT_URL", url.as_str()),
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", "a+very/secret=key"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ];
        let place = serve_the_mount_of_another(&format!("--aws-kms {key}"), "", &settings, None);
        // Of the two this one knows states of keys.
        if let Some(place) = place.filter(|_| server == kms::LOCALSTACK) {
            kms::ask(&url, "DisableKey", &json!({ "KeyId": key }));
            let refused = place.run(user(ACCOUNT), "mount --agent agent.sock home/vault mnt");
            assert_eq!(refused.0, 10, "{refused:?}");
            assert!(refused.2.contains("disabled"), "{refused:?}");
        }
    }
}

#[test]
fn a_key_of_a_token_that_an_agent_has_serves_the_mount_of_another_user() {
    if !can_be_others() || !can_mount() {
        return;
    }
    let Some(module) = kms::server("HUSHFS_TEST_SOFTHSM") else {
        return;
    };
    // A token of the holder's own, which nobody else can read.
    let token = tempfile::tempdir().unwrap();
    fs::set_permissions(token.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (tokens, config, pin) = (
        token.path().join("tokens"),
        token.path().join("conf"),
        token.path().join("pin"),
    );
    fs::create_dir(&tokens).unwrap();
    fs::write(
        &config,
        format!(
            "directories.tokendir = {}\nobjectstore.backend = file\n",
            tokens.display()
        ),
    )
    .unwrap();
    fs::write(&pin, "123456\n").unwrap();
    let config = config.to_str().unwrap();
    succeeded(
        Command::new("softhsm2-util")
            .args([
                "--init-token",
                "--free",
                "--label",
                "agent",
                "--so-pin",
                "87654321",
                "--pin",
                "123456",
            ])
            .env("SOFTHSM2_CONF", config),
    );
    let options = format!("--pkcs11-module {module} --pin-file {}", pin.display());
    let create = "--pkcs11 pkcs11:token=agent;object=master --generate";
    serve_the_mount_of_another(create, &options, &[("SOFTHSM2_CONF", config)], Some(token.path()));
}

#[test]
fn a_policy_decides_on_each_file_without_a_bucket_key() {
    if !can_mount() {
        return;
    }
    let place = Place::with_vault();
    place.good("vault bucket-key --agent agent.sock off vault");
    place.mount_with_file("");
    fs::write(place.path("mnt/secret"), "of few").unwrap();
    place.good("unmount mnt");
    let info: Value = serde_json::from_str(&place.good("file info --agent agent.sock --json vault secret")).unwrap();
    let policy = |condition: &Value| {
        let policy = json!({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"},
            {"Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*", "Condition": condition},
        ]});
        fs::write(place.path("policy.json"), policy.to_string()).unwrap();
        place.good("key policy set --agent agent.sock --file policy.json alias/mail");
    };
    policy(&json!({"StringEquals": {"kms:EncryptionContext:hushfs:file": info["file"]}}));
    place.good("mount --agent agent.sock --key-ttl 1s vault mnt");
    let secret = || fs::read_to_string(place.path("mnt/secret"));
    assert_eq!(secret().unwrap_err().raw_os_error(), Some(libc::EACCES));
    assert_eq!(fs::read_to_string(place.path("mnt/file")).unwrap(), "hello");
    fs::write(place.path("mnt/new"), "made and read").unwrap();
    assert_eq!(fs::read_to_string(place.path("mnt/new")).unwrap(), "made and read");
    let refused = place.good("audit show --json --errors --event Decrypt --keystore keys");
    let refused: Value = serde_json::from_str(refused.lines().next().unwrap()).unwrap();
    assert_eq!(refused["errorCode"], "AccessDeniedException", "{refused}");
    assert_eq!(
        refused["requestParameters"]["encryptionContext"]["hushfs:file"], info["file"],
        "{refused}"
    );
    policy(&json!({"StringEquals": {"kms:EncryptionContext:hushfs:file": "another"}}));
    let deadline = Instant::now() + PATIENCE;
    while secret().ok().as_deref() != Some("of few") {
        assert!(Instant::now() < deadline, "it is allowed");
        thread::sleep(Duration::from_millis(50));
    }
    place.good("unmount mnt");
}

#[test]
fn directories_and_customers_have_keys_in_a_vault_of_an_agent_s() {
    if !can_mount() {
        return;
    }
    let place = Place::with_vault();
    place.mount_with_file("");
    fs::create_dir(place.path("mnt/dir")).unwrap();
    place.good("unmount mnt");
    let key = place.good("key create --agent agent.sock --alias alias/dir");
    place.good("vault encryption set --agent agent.sock --key alias/dir vault dir");
    let add = "vault customer-key add --agent agent.sock --generate --new-customer-key theirs vault";
    let customer = place.good(add);
    place.good("mount --agent agent.sock vault mnt");
    fs::write(place.path("mnt/dir/file"), "of the directory").unwrap();
    place.good("unmount mnt");
    place.good("mount --agent agent.sock --customer-key theirs vault mnt");
    fs::write(place.path("mnt/theirs"), "of the customer").unwrap();
    assert_eq!(
        fs::read_to_string(place.path("mnt/dir/file")).unwrap(),
        "of the directory"
    );
    place.good("unmount mnt");

    place.good("key disable --agent agent.sock alias/dir");
    let run = |arguments: &str| told(&place.command(arguments).output().unwrap());
    let cat = |arguments: &str| run(&format!("cat --agent agent.sock {arguments}"));
    assert_eq!(cat("vault dir/file").0, 10);
    assert_eq!(cat("vault theirs").0, 10);
    let (code, out, _) = cat("--customer-key theirs vault theirs");
    assert_eq!((code, out.as_str()), (0, "of the customer"));
    place.good("key enable --agent agent.sock alias/dir");
    assert_eq!(cat("vault dir/file"), (0, "of the directory".to_owned(), String::new()));
    place.good("rewrap --agent agent.sock --customer-key theirs --vault-key --retire vault");
    place.good(&format!(
        "vault customer-key remove --agent agent.sock vault {}",
        customer.trim()
    ));
    assert_eq!(cat("vault theirs"), (0, "of the customer".to_owned(), String::new()));
    // What the agent was asked for: of the directory's key, and nothing of the customer's.
    let records = place.good("audit show --json --keystore keys");
    let of_key = |line: &&str| line.contains("\"GenerateDataKey\"") && line.contains(key.trim());
    assert_eq!(records.lines().filter(of_key).count(), 1, "{records}");
    assert!(!records.contains(customer.trim()));
}

#[test]
fn who_is_idle_or_sends_anything_holds_nobody_up() {
    let mut place = Place::new();
    place.start_agent("");
    let socket = place.path("agent.sock");
    // Idle ones, but not as many as one user may have.
    let idle: Vec<_> = (0..40).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    for bytes in [
        &b""[..],
        b"\xff\xff\xff\xff",
        b"\x0a\x00\x00\x00HUSHAGNT\x01\x00",
        b"\x0a\x00\x00\x00HUSHAGNT\x09\x00",
        b"\x10\x00\x00\x00GET / HTTP/1.1\r\n\r\n",
        b"\x12\x00\x00\x00HUSHAGNT\x01\x00\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // A refusal or nothing; in either case an end.
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let end = stream.read_to_end(&mut Vec::new());
        assert!(end.is_ok() || end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    }
    let start = Instant::now();
    place.good("key list --agent agent.sock");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    drop(idle);
}

#[test]
fn a_hundred_clients_at_once_are_answered() {
    let mut place = Place::new();
    place.start_agent("");
    place.good("key create --agent agent.sock --alias alias/mail");
    let clients: Vec<_> = (0..100)
        .map(|_| {
            place
                .command("key describe --agent agent.sock alias/mail")
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for client in clients {
        let (code, out, err) = told(&client.wait_with_output().unwrap());
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("alias/mail"));
    }
}

#[test]
fn a_client_that_asks_too_often_waits_and_then_is_told_so() {
    let mut place = Place::new();
    place.start_agent("--rate 2");
    let status = || told(&place.command("agent --status --socket agent.sock").output().unwrap());
    // The client itself waits for its turn.
    let started = Instant::now();
    for _ in 0..6 {
        assert_eq!(status().0, 0);
    }
    assert!(
        started.elapsed() >= Duration::from_millis(1400),
        "{:?}",
        started.elapsed()
    );
    let others: Vec<_> = (0..60)
        .map(|_| {
            let mut command = place.command("agent --status --socket agent.sock");
            thread::spawn(move || told(&command.output().unwrap()))
        })
        .collect();
    let said: Vec<_> = others.into_iter().map(|other| other.join().unwrap()).collect();
    let refused = said.iter().find(|said| said.0 != 0).expect("sixty take half a minute");
    assert_eq!(refused.0, 11, "{refused:?}");
    assert_eq!(
        refused.2,
        "hushfs: ThrottlingException: you make more requests than the agent allows in a second: try again\n"
    );
    assert!(said.iter().any(|said| said.0 == 0));
}

#[test]
fn an_agent_of_one_s_own_is_started_looked_at_and_locked() {
    let mut place = Place::new();
    // In the background, as one calls it at a terminal.
    place.good("agent --socket agent.sock --keystore keys --key-file secret");
    let status = place.good("agent --status --json --socket agent.sock");
    let own = format!("\"uid\": {}", rustix::process::geteuid().as_raw());
    assert!(status.contains(&own), "{status}");
    let again = told(
        &place
            .command("agent --socket agent.sock --keystore keys --key-file secret")
            .output()
            .unwrap(),
    );
    assert_eq!(
        (again.0, again.2.contains("listens there already")),
        (6, true),
        "{again:?}"
    );
    let pid = status
        .lines()
        .find_map(|line| line.trim().strip_prefix("\"pid\": "))
        .unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", pid.trim_end_matches(','))).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    place.good("lock --agent agent.sock");
    let deadline = Instant::now() + PATIENCE;
    while place.path("agent.sock").exists() {
        assert!(Instant::now() < deadline, "the agent does not end");
        thread::sleep(Duration::from_millis(5));
    }
    let got = told(&place.command("key list --agent agent.sock").output().unwrap());
    assert_eq!(got.0, 11, "{got:?}");
    place.agent = None;
}

#[test]
fn a_group_has_the_socket_to_itself() {
    if !can_be_others() {
        return;
    }
    let mut place = Place::new();
    place.start_agent(&format!("--group {GROUP}"));
    let status = "agent --status --socket agent.sock";
    let member = User {
        uid: STRANGER,
        groups: &[GROUP],
    };
    assert_eq!(place.run(member, status).0, 0);
    let got = place.run(user(STRANGER), status);
    assert_eq!((got.0, got.2.contains("not for this user")), (10, true), "{got:?}");
}

#[test]
fn a_socket_that_systemd_passes_is_taken() {
    let mut place = Place::new();
    let socket = std::os::unix::net::UnixListener::bind(place.path("agent.sock")).unwrap();
    let notified = std::os::unix::net::UnixDatagram::bind(place.path("notify.sock")).unwrap();
    let mut command = place.command("agent --keystore keys --key-file secret");
    command
        .env("LISTEN_FDS", "1")
        .env("NOTIFY_SOCKET", place.path("notify.sock"));
    // The variable is set between fork and exec, when the process knows its number: by the shell.
    let arguments: Vec<_> = command.get_args().map(|a| a.to_str().unwrap().to_owned()).collect();
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(format!(
            "LISTEN_PID=$$ exec {} {}",
            place.program.display(),
            arguments.join(" ")
        ))
        .current_dir(place.dir.path())
        .env("LISTEN_FDS", "1")
        .env("NOTIFY_SOCKET", place.path("notify.sock"))
        .stdin(Stdio::null());
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: only system calls between fork and exec.
    unsafe {
        // A descriptor that has that number already is closed by the exec unless told otherwise.
        shell.pre_exec(
            move || match libc::dup2(fd, 3) != -1 && libc::fcntl(3, libc::F_SETFD, 0) != -1 {
                true => Ok(()),
                false => Err(std::io::Error::last_os_error()),
            },
        );
    }
    place.start(shell);
    notified.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut message = [0; 64];
    let len = notified.recv(&mut message).unwrap();
    assert!(message[..len].starts_with(b"READY=1"));
    let pid = place.agent.as_ref().unwrap().id();
    // SAFETY: the process is this test's own child, which has not been waited for.
    assert_eq!(unsafe { libc::kill(pid as i32, libc::SIGTERM) }, 0);
    assert!(
        place.agent.take().unwrap().wait().unwrap().success(),
        "SIGTERM ends it cleanly"
    );
}

#[test]
fn the_units_are_ones_that_systemd_takes_and_leave_the_agent_little() {
    if which("systemd-analyze").is_none() {
        assert!(
            std::env::var_os("HUSHFS_TESTS_MUST_NOT_SKIP").is_none(),
            "this test must run here, but: no systemd-analyze"
        );
        return eprintln!("SKIPPED: no systemd-analyze");
    }
    let temp = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/systemd");
    let units = ["hushfs-agent.service", "hushfs-agent.socket"];
    for unit in units {
        let text = fs::read_to_string(source.join(unit))
            .unwrap()
            .replace("/usr/bin/hushfs", HUSHFS);
        // The manual pages are not installed here.
        let text: Vec<_> = text
            .lines()
            .filter(|line| !line.starts_with("Documentation="))
            .collect();
        fs::write(temp.path().join(unit), text.join("\n")).unwrap();
    }
    let analyze = |arguments: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        command
            .args(arguments)
            .current_dir(temp.path())
            .env("SYSTEMD_UNIT_PATH", format!("{}:", temp.path().display()));
        let (code, out, err) = told(&command.output().unwrap());
        assert_eq!(code, 0, "{arguments:?}: {out}{err}");
        err
    };
    assert_eq!(analyze(&["verify", units[0], units[1]]), "");
    // Tenths of its measure of exposure, which is 96 for a unit without any of this.
    analyze(&["security", "--offline=true", "--threshold=15", "./hushfs-agent.service"]);
}
