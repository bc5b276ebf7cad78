//! The program with keys that AWS KMS holds, against the servers of `scripts/keyservers`: whether a user gets in, is kept out, and is
//! told why. What each call and each error is, the tests of `keystore::aws` say.

#[path = "support/kms.rs"]
mod kms;
mod support;

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use kms::{LOCALSTACK, MOTO, server};
use serde_json::json;
use support::{HUSHFS, can_mount};
use tempfile::TempDir;

const SECRET: &str = "a+very/secret=key";

/// What the program said: exit code, standard output, standard error.
type Said = (i32, String, String);

/// A user of a server, with a directory for vaults.
struct User {
    dir: TempDir,
    url: String,
    settings: Vec<(String, String)>,
}

impl User {
    /// A user of a server that takes any credentials.
    fn of(variable: &str) -> Option<Self> {
        let url = server(variable)?;
        let settings = [("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", SECRET)];
        Some(Self::with(url, &settings))
    }

    /// A user of moto as it is with policies, signatures and TLS.
    fn guarded(name: &str) -> Option<Self> {
        let of_server = |name: &str| server(&format!("HUSHFS_TEST_MOTO_AUTH_{name}"));
        let settings = [
            ("AWS_CA_BUNDLE", of_server("CA")?),
            ("AWS_ACCESS_KEY_ID", of_server(&format!("{name}_ID"))?),
            ("AWS_SECRET_ACCESS_KEY", of_server(&format!("{name}_SECRET"))?),
        ];
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        Some(Self::with(of_server("URL")?, &settings))
    }

    fn with(url: String, settings: &[(&str, &str)]) -> Self {
        let always = [("AWS_REGION", "eu-west-1"), ("AWS_EC2_METADATA_DISABLED", "true")];
        let settings = settings.iter().chain(&always);
        User {
            dir: TempDir::new().unwrap(),
            url,
            settings: settings
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program in the user's directory, with the user's settings and nobody else's.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(HUSHFS);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"AWS_")) {
            command.env_remove(name);
        }
        command
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .env("AWS_ENDPOINT_URL", &self.url)
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &str) -> Said {
        said(&mut self.command(&arguments.split(' ').collect::<Vec<_>>()))
    }

    /// Runs a command that must succeed, and returns its standard output.
    fn must(&self, arguments: &str) -> String {
        let (code, out, error) = self.run(arguments);
        assert_eq!(code, 0, "{arguments}: {error}");
        out
    }

    fn new_key(&self) -> String {
        kms::new_key(&self.url)
    }

    /// A vault with a key of its own; returns the key.
    fn new_vault(&self) -> String {
        let key = self.new_key();
        self.must(&format!("init --kms-key {key} vault"));
        key
    }
}

fn said(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Unmounts whatever happens.
struct Mounted<'a>(&'a User, PathBuf);

impl<'a> Mounted<'a> {
    fn new(user: &'a User, options: &str) -> Self {
        let at = user.path("mnt");
        fs::create_dir_all(&at).unwrap();
        user.must(&format!("mount {options} vault mnt"));
        Mounted(user, at)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        self.0.must("unmount mnt");
    }
}

/// A way to a server that can be cut, and listened to.
struct Cable {
    url: String,
    is_cut: Arc<AtomicBool>,
    /// What came over each connection to the server.
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Cable {
    fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url_here = format!("http://{}", listener.local_addr().unwrap());
        let server = url.strip_prefix("http://").unwrap().to_owned();
        let is_cut = Arc::new(AtomicBool::new(false));
        let asked: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let (cut, heard) = (is_cut.clone(), asked.clone());
        // Ends with the test program.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&server).unwrap();
                let number = {
                    let mut heard = heard.lock().unwrap();
                    heard.push(Vec::new());
                    heard.len() - 1
                };
                for (from, to, is_asked) in [(&client, &server, true), (&server, &client, false)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (cut, heard) = (cut.clone(), heard.clone());
                    thread::spawn(move || {
                        let mut buffer = [0; 4096];
                        while let Ok(got @ 1..) = from.read(&mut buffer) {
                            if is_asked {
                                heard.lock().unwrap()[number].extend_from_slice(&buffer[..got]);
                            }
                            if cut.load(Ordering::Relaxed) || to.write_all(&buffer[..got]).is_err() {
                                break;
                            }
                        }
                        let _ = from.shutdown(Shutdown::Both);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Cable {
            url: url_here,
            is_cut,
            asked,
        }
    }

    /// Returns how often the server was asked to make a key for a file, and to open one.
    fn calls_for_files(&self) -> (usize, usize) {
        let asked = self.asked.lock().unwrap();
        let requests: Vec<_> = asked
            .iter()
            .flat_map(|bytes| {
                let text = String::from_utf8_lossy(bytes);
                let requests = text.split("POST / HTTP").map(str::to_owned);
                requests.collect::<Vec<_>>()
            })
            .filter(|request| request.contains("hushfs:file"))
            .collect();
        let of = |operation: &str| {
            let target = format!("TrentService.{operation}\r\n");
            requests.iter().filter(|request| request.contains(&target)).count()
        };
        let counts = (of("GenerateDataKey"), of("Decrypt"));
        assert_eq!(counts.0 + counts.1, requests.len(), "nothing else is asked for a file");
        counts
    }

    fn set_cut(&self, cut: bool) {
        self.is_cut.store(cut, Ordering::Relaxed);
    }
}

/// Waits until reading a file gives an errno, or its content.
fn wait_for_reading(file: &Path, errno: Option<i32>) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let said = fs::read(file).err().and_then(|error| error.raw_os_error());
        if said == errno {
            return;
        }
        assert!(Instant::now() < deadline, "{said:?} in place of {errno:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Makes a vault under a key, writes to it, mounts it again, and reads.
fn check_life(user: &User, key: &str) {
    user.must(&format!("init --kms-key {key} vault"));
    let info = user.must("info vault");
    assert!(info.contains(&format!("aws-kms {key}")), "{info}");
    if can_mount() {
        let mounted = Mounted::new(user, &format!("--kms-key {key}"));
        fs::write(mounted.1.join("a"), "hello").unwrap();
        drop(mounted);
        let mounted = Mounted::new(user, &format!("-o kms-key={key}"));
        assert_eq!(fs::read_to_string(mounted.1.join("a")).unwrap(), "hello");
        drop(mounted);
        assert_eq!(user.must(&format!("cat --kms-key {key} vault a")), "hello");
    }
    user.must(&format!("vault rotate --kms-key {key} vault"));
    user.must(&format!("rewrap --retire --kms-key {key} vault"));
    user.must(&format!("verify --kms-key {key} vault"));
    let described = user.must(&format!("key describe --kms-key {key} vault alias/hushfs/default"));
    assert!(described.contains(key), "{described}");
}

#[test]
fn a_vault_lives_under_a_key_of_kms() {
    for user in [MOTO, LOCALSTACK].into_iter().filter_map(User::of) {
        check_life(&user, &user.new_key());
    }
}

#[test]
fn files_without_a_bucket_key_are_asked_for_of_kms() {
    for user in [MOTO, LOCALSTACK].into_iter().filter_map(User::of) {
        check_life_without_bucket_key(&user);
    }
}

/// Makes a vault without bucket keys, and moves its files to the one form and the other.
fn check_life_without_bucket_key(user: &User) {
    if !can_mount() {
        return;
    }
    let key = user.new_key();
    let options = format!("--kms-key {key}");
    user.must(&format!("init --bucket-key off {options} vault"));
    let mounted = Mounted::new(user, &options);
    for number in 0..5 {
        fs::write(mounted.1.join(format!("{number}")), format!("content {number}")).unwrap();
    }
    fs::create_dir(mounted.1.join("dir")).unwrap();
    drop(mounted);
    let mounted = Mounted::new(user, &options);
    fs::rename(mounted.1.join("4"), mounted.1.join("dir/4")).unwrap();
    assert_eq!(fs::read_to_string(mounted.1.join("dir/4")).unwrap(), "content 4");
    drop(mounted);
    assert_eq!(user.must(&format!("cat {options} vault 3")), "content 3");
    let info = user.must(&format!("file info {options} vault 3"));
    assert!(info.contains("bucket key off"), "{info}");
    user.must(&format!("vault rotate {options} vault"));
    user.must(&format!("rewrap --retire {options} vault"));
    user.must(&format!("verify {options} vault"));
    user.must(&format!("rewrap --bucket-key on --retire {options} vault"));
    assert_eq!(user.must(&format!("cat {options} vault dir/4")), "content 4");
}

#[test]
fn a_file_without_a_bucket_key_is_one_call_to_make_and_one_to_open_while_the_answer_counts() {
    const FILES: usize = 5;
    if !can_mount() {
        return;
    }
    for mut user in [MOTO, LOCALSTACK].into_iter().filter_map(User::of) {
        let key = user.new_key();
        let options = format!("--kms-key {key}");
        user.must(&format!("init --bucket-key off {options} vault"));
        let cable = Cable::to(&user.url);
        user.url = cable.url.clone();
        let file = |number: usize| user.path("mnt").join(number.to_string());
        let mounted = Mounted::new(&user, &options);
        for number in 0..FILES {
            fs::write(file(number), format!("content {number}")).unwrap();
        }
        drop(mounted);
        assert_eq!(cable.calls_for_files(), (FILES, 0), "{}", user.url);
        let mounted = Mounted::new(&user, &format!("{options} --key-ttl 3s"));
        let read_all = || {
            for number in 0..FILES {
                assert_eq!(fs::read_to_string(file(number)).unwrap(), format!("content {number}"));
            }
        };
        assert_eq!(cable.calls_for_files(), (FILES, 0), "to mount asks for no file");
        let started = Instant::now();
        read_all();
        read_all();
        let (_, opened) = cable.calls_for_files();
        if started.elapsed() < Duration::from_secs(3) {
            assert_eq!(opened, FILES);
        }
        thread::sleep(Duration::from_secs(4));
        assert_eq!(cable.calls_for_files(), (FILES, opened), "nobody opens a file");
        read_all();
        let (_, again) = cable.calls_for_files();
        assert_eq!(again, opened + FILES, "the answers from before do not count any more");
        drop(mounted);
    }
}

#[test]
fn a_server_that_is_away_loses_files_that_were_not_asked_for_and_no_other() {
    if !can_mount() {
        return;
    }
    let Some(mut user) = User::of(MOTO) else { return };
    let key = user.new_key();
    let options = format!("--kms-key {key}");
    user.must(&format!("init --bucket-key off {options} vault"));
    let mounted = Mounted::new(&user, &options);
    for name in ["one", "two"] {
        fs::write(mounted.1.join(name), name).unwrap();
    }
    drop(mounted);
    let cable = Cable::to(&user.url);
    user.url = cable.url.clone();
    let mounted = Mounted::new(&user, &format!("{options} --key-ttl 1s"));
    assert_eq!(fs::read_to_string(mounted.1.join("one")).unwrap(), "one");
    cable.set_cut(true);
    wait_for_reading(&mounted.1.join("two"), Some(libc::ETIMEDOUT));
    thread::sleep(Duration::from_secs(2));
    assert_eq!(
        fs::read_to_string(mounted.1.join("one")).unwrap(),
        "one",
        "it is missed for a while"
    );
    let refused = fs::File::create(mounted.1.join("three")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ETIMEDOUT));
    assert_eq!(fs::read_dir(&mounted.1).unwrap().count(), 2);
    cable.set_cut(false);
    wait_for_reading(&mounted.1.join("two"), None);
}

#[test]
fn so_it_does_where_signatures_and_policies_count() {
    if let (Some(user), Some(key)) = (User::guarded("USER"), server("HUSHFS_TEST_MOTO_AUTH_KEY")) {
        check_life(&user, &key);
    }
}

#[test]
fn a_key_is_named_by_its_alias_or_its_id_too() {
    let Some(user) = User::of(MOTO) else { return };
    let key = user.new_key();
    let id = key.rsplit('/').next().unwrap();
    let alias = format!("alias/{id}");
    kms::ask(
        &user.url,
        "CreateAlias",
        &json!({ "AliasName": alias, "TargetKeyId": key }),
    );
    user.must(&format!("init --kms-key {alias} vault"));
    assert!(user.must("info vault").contains(&key), "the vault keeps the ARN");
    for name in [&alias, id, &key] {
        user.must(&format!("ls --kms-key {name} vault"));
    }
}

#[test]
fn another_key_does_not_open_the_vault_and_is_not_taken_from_it() {
    let Some(user) = User::of(MOTO) else { return };
    user.new_vault();
    let other = user.new_key();
    let (code, _, error) = user.run(&format!("ls --kms-key {other} vault"));
    assert_eq!(code, 3, "{error}");
    assert!(error.contains("no slot"), "{error}");
    let (code, _, error) = user.run("ls vault");
    assert_eq!(code, 2, "{error}");
}

/// Who can write to the vault puts a keystore of their own into it, under a key of their own that KMS lets everybody use.
#[test]
fn a_keystore_under_a_strangers_key_is_refused() {
    let Some(user) = User::of(MOTO) else { return };
    let key = user.new_vault();
    let strangers = user.new_key();
    user.must(&format!("init --kms-key {strangers} theirs"));
    for file in ["keystore.hush", "vault.hush"] {
        fs::copy(user.path("theirs").join(file), user.path("vault").join(file)).unwrap();
    }
    let (code, _, error) = user.run(&format!("ls --kms-key {key} vault"));
    assert_eq!(code, 3, "{error}");
    user.must(&format!("ls --kms-key {strangers} vault"));
}

#[test]
fn who_may_not_use_the_key_is_told_so() {
    let (Some(user), Some(stranger)) = (User::guarded("USER"), User::guarded("STRANGER")) else {
        return;
    };
    let key = server("HUSHFS_TEST_MOTO_AUTH_KEY").unwrap();
    let vault = user.path("vault");
    user.must(&format!("init --kms-key {key} vault"));
    for arguments in [
        format!("ls --kms-key {key} {}", vault.display()),
        format!("init --kms-key {key} vault"),
    ] {
        let (code, out, error) = stranger.run(&arguments);
        assert_eq!((code, out.as_str()), (10, ""), "{arguments}: {error}");
        assert!(error.contains("AWS KMS") && error.contains("AccessDenied"), "{error}");
        assert!(
            error.contains("not authorized to perform"),
            "what the server said: {error}"
        );
    }
    assert!(!stranger.path("vault").join("vault.hush").exists());
}

#[test]
fn a_server_that_is_away_is_told_from_one_that_refuses() {
    let Some(mut user) = User::of(MOTO) else { return };
    let key = user.new_vault();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    user.url = format!("http://{nobody}");
    let (code, _, error) = user.run(&format!("ls --kms-key {key} vault"));
    assert_eq!(code, 11, "{error}");
    assert!(error.contains("AWS KMS") && error.contains("127.0.0.1"), "{error}");
    user.settings.retain(|(name, _)| !name.contains("ACCESS"));
    let (code, _, error) = user.run(&format!("ls --kms-key {key} vault"));
    assert_eq!(code, 10, "{error}");
    assert!(error.contains("no AWS credentials; see docs/KEYS.md"), "{error}");
}

#[test]
fn the_state_of_a_key_decides() {
    let Some(user) = User::of(LOCALSTACK) else { return };
    let key = user.new_vault();
    let ls = format!("ls --kms-key {key} vault");
    let about = json!({ "KeyId": key });
    kms::ask(&user.url, "DisableKey", &about);
    let (code, _, error) = user.run(&ls);
    assert_eq!(code, 10, "{error}");
    assert!(error.contains("the key is disabled"), "{error}");
    let (code, _, error) = user.run(&format!("init --kms-key {key} other"));
    assert_eq!(code, 10, "{error}");
    kms::ask(&user.url, "EnableKey", &about);
    user.must(&ls);
    kms::ask(
        &user.url,
        "ScheduleKeyDeletion",
        &json!({ "KeyId": key, "PendingWindowInDays": 7 }),
    );
    let (code, _, error) = user.run(&ls);
    assert_eq!(code, 10, "{error}");
    assert!(error.contains("pending deletion"), "{error}");
}

#[test]
fn another_way_in_opens_the_keystore_and_kms_still_decides() {
    let Some(mut user) = User::of(MOTO) else { return };
    let key = user.new_vault();
    fs::write(user.path("file"), [7; 32]).unwrap();
    user.must(&format!("slot add --kms-key {key} --new-key-file file vault"));
    user.must("ls --key-file file vault");
    user.url = "http://127.0.0.1:1".to_owned();
    let (code, _, error) = user.run("ls --key-file file vault");
    assert_eq!(code, 11, "{error}");
}

#[test]
fn a_vault_with_a_passphrase_gets_a_slot_of_kms() {
    let Some(user) = User::of(MOTO) else { return };
    let key = user.new_key();
    fs::write(user.path("file"), [7; 32]).unwrap();
    user.must("init --key-file file vault");
    user.must(&format!("slot add --key-file file --new-kms-key {key} vault"));
    user.must(&format!("ls --kms-key {key} vault"));
}

#[test]
fn the_log_holds_no_secret_however_much_it_says() {
    let Some(user) = User::of(MOTO) else { return };
    let key = user.new_key();
    let mut all = String::new();
    for arguments in [
        format!("-vvv init --kms-key {key} vault"),
        format!("-vvv ls --kms-key {key} vault"),
    ] {
        let (code, out, error) = user.run(&arguments);
        assert_eq!(code, 0, "{error}");
        all += &out;
        all += &error;
    }
    for secret in [SECRET, "Plaintext", "Signature="] {
        assert!(!all.contains(secret), "{secret}: {all}");
    }
}

#[test]
fn what_is_no_key_is_not_asked_for() {
    let Some(user) = User::of(MOTO) else { return };
    for name in ["nonsense!", "arn:aws:kms:evil.example/:1:key/1", "arn:aws:s3:::bucket"] {
        let (code, _, error) = user.run(&format!("init --kms-key {name} vault"));
        assert_eq!(code, 2, "{error}");
        assert!(
            error.contains("is not the ARN, the id or the alias of an AWS KMS key"),
            "{error}"
        );
    }
    assert!(!Path::new(&user.path("vault")).exists());
}

#[test]
fn a_mount_outlives_a_server_that_is_away_and_goes_on_when_it_is_back() {
    if !can_mount() {
        return;
    }
    let Some(mut user) = User::of(MOTO) else { return };
    let key = user.new_vault();
    let cable = Cable::to(&user.url);
    user.url = cable.url.clone();
    let log = user.path("log");
    let mounted = Mounted::new(
        &user,
        &format!(
            "--kms-key {key} --key-ttl 1s --key-max-stale 8s --log-file {}",
            log.display()
        ),
    );
    let file = mounted.1.join("a");
    fs::write(&file, "hello").unwrap();
    let said = |what: &str| fs::read_to_string(&log).unwrap_or_default().contains(what);
    cable.set_cut(true);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !said("can be used for a while without") {
        assert!(Instant::now() < deadline, "{}", fs::read_to_string(&log).unwrap());
        assert_eq!(fs::read(&file).unwrap(), b"hello");
        thread::sleep(Duration::from_millis(50));
    }
    wait_for_reading(&file, Some(libc::ETIMEDOUT));
    assert_eq!(fs::read_dir(&mounted.1).unwrap().count(), 1, "names are there");
    cable.set_cut(false);
    wait_for_reading(&file, None);
    assert_eq!(fs::read(&file).unwrap(), b"hello");
}

#[test]
fn a_mount_obeys_who_disables_its_key() {
    if !can_mount() {
        return;
    }
    let Some(user) = User::of(LOCALSTACK) else { return };
    let key = user.new_vault();
    let mounted = Mounted::new(&user, &format!("--kms-key {key} --key-ttl 1s"));
    let file = mounted.1.join("a");
    fs::write(&file, "hello").unwrap();
    let about = json!({ "KeyId": key });
    kms::ask(&user.url, "DisableKey", &about);
    wait_for_reading(&file, Some(libc::EKEYREVOKED));
    kms::ask(&user.url, "EnableKey", &about);
    wait_for_reading(&file, None);
    kms::ask(
        &user.url,
        "ScheduleKeyDeletion",
        &json!({ "KeyId": key, "PendingWindowInDays": 7 }),
    );
    wait_for_reading(&file, Some(libc::EKEYEXPIRED));
}
