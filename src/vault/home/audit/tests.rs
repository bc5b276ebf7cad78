use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::fs::Timespec;
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::{
    backing::ShortWrite,
    crypto::block::Suite,
    format::{
        audit::{Line, Problem},
        layout::Layout,
        name::{AUDIT_LOG, KEYSTORE},
    },
    keystore::{KeyFile, KeyHandle, NewKey, NewSecret, SlotChoice, Unlock},
    vault::home::{CreateError, Lock, OpenError, OpenVault, VaultHome},
};

const LOG: &str = "audit.jsonl";
const STATE: &str = "audit.state";

fn key_file(byte: u8) -> KeyFile {
    KeyFile::new(vec![byte; 32].into()).unwrap()
}

fn layout() -> Layout {
    Layout::new(Suite::Aes256GcmSiv, 4096).unwrap()
}

/// A keystore of its own in `keys`, which records calls, and the way to it.
fn audited() -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("keys");
    let mut open = KeystoreHome::create(&path, new_keystore(), 100).unwrap();
    assert!(open.audit_on(false, 100).unwrap());
    assert!(!open.audit_on(false, 100).unwrap());
    (temp, path)
}

fn new_keystore() -> LocalKeystore {
    LocalKeystore::create("main", &NewSecret::KeyFile(&key_file(1)), 100).unwrap()
}

fn open(path: &Path) -> OpenKeystore {
    let home = KeystoreHome::enter(path).unwrap();
    home.open(&Unlock::KeyFile(key_file(1)), &SlotChoice::Any).unwrap()
}

fn make_key(path: &Path) -> Result<KeyHandle, ChangeError> {
    let call = Call::new("CreateKey", serde_json::json!({"description": "mail"}));
    open(path).change(101, call, |keystore| keystore.create_key(&NewKey::default(), 101))
}

fn disable(path: &Path, key: &str) -> Result<(), ChangeError> {
    let call = Call::on_key("DisableKey", key, serde_json::json!({}));
    open(path).change(102, call, |keystore| {
        let key = keystore.find_key(key)?;
        keystore.disable(&key)
    })
}

fn make_vault(keys: &Path, vault: &Path) -> Result<OpenVault, CreateError> {
    let keystore = open(keys);
    let key = keystore.keystore().find_key("alias/hushfs/default").unwrap();
    VaultHome::create_under(
        vault,
        layout(),
        keystore.into(),
        (key, vec![("team".into(), "blue".into())]),
        103,
    )
}

fn open_vault(keys: &Path, vault: &Path) -> Result<OpenVault, OpenError> {
    let keystore = KeystoreHome::enter(keys).unwrap();
    VaultHome::enter_with(vault, Lock::Shared, Some(keystore))?.open(&Unlock::KeyFile(key_file(1)), &SlotChoice::Any)
}

fn events_in(file: &Path) -> Vec<Value> {
    let text = fs::read(file).unwrap();
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_str(Line::decode(line).unwrap().event).unwrap())
        .collect()
}

fn events(keys: &Path) -> Vec<Value> {
    events_in(&keys.join(LOG))
}

fn names(keys: &Path) -> Vec<String> {
    let events = events(keys);
    events
        .iter()
        .map(|event| event["eventName"].as_str().unwrap().to_owned())
        .collect()
}

fn verify(keys: &Path) -> Verified {
    open(keys).verify_log(None).unwrap().unwrap()
}

fn is_whole(keys: &Path) -> u64 {
    let verified = verify(keys);
    assert_eq!(verified.problems, []);
    assert!(verified.besides.is_none(), "{:?}", verified.besides);
    verified.good
}

#[test]
fn a_keystore_that_is_to_record_calls_does_from_its_first_version_on() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("keys");
    let in_the_way = path.join("keystore.tmp.hush");
    fs::create_dir_all(&in_the_way).unwrap();
    let create = || KeystoreHome::create_recorded(&path, new_keystore(), 100);
    // As on a full disk, and as a kill before the keystore has its name leaves it.
    assert!(matches!(create(), Err(CreateError::Log(_))));
    fs::remove_dir(in_the_way).unwrap();
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    fs::write(path.join("audit-new.state"), "").unwrap();
    fs::write(path.join("audit-new.jsonl"), "{}\n").unwrap();
    let created = create().unwrap();
    let settings = created.keystore.audit_settings().unwrap();
    assert!(settings.is_on);
    drop(created);
    let mut names: Vec<_> = fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, [LOG, STATE, KEYSTORE]);
    assert_eq!(open(&path).keystore.generation(), 1);
    make_key(&path).unwrap();
    assert!(!open(&path).audit_on(false, 101).unwrap(), "it is on already");
}

#[test]
fn each_change_and_use_is_recorded_as_cloudtrail_would() {
    let (temp, keys) = audited();
    let key = make_key(&keys).unwrap();
    disable(&keys, "alias/none").unwrap_err();
    disable(&keys, &key.to_string()).unwrap();
    let vault = temp.path().join("vault");
    drop(make_vault(&keys, &vault).unwrap());
    drop(open_vault(&keys, &vault).unwrap());
    assert_eq!(
        names(&keys),
        [
            "StartLogging",
            "CreateKey",
            "DisableKey",
            "DisableKey",
            "GenerateDataKey",
            "Decrypt"
        ]
    );
    assert_eq!(is_whole(&keys), 6);
    let events = events(&keys);
    let arn = open(&keys).keystore().arn(key.0);
    let created = &events[1];
    assert_eq!(created["responseElements"]["keyMetadata"]["arn"], arn);
    assert_eq!(created["resources"][0]["ARN"], arn);
    assert_eq!(created["additionalEventData"]["keystoreGeneration"], 3);
    assert_eq!(created["requestParameters"]["description"], "mail");
    assert_eq!(
        (&created["readOnly"], &created["managementEvent"]),
        (&false.into(), &true.into())
    );
    let refused = &events[2];
    assert_eq!(refused["errorCode"], "NotFoundException");
    assert_eq!(refused["requestParameters"]["keyId"], "alias/none");
    assert_eq!(
        (&refused["resources"], &refused["additionalEventData"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(events[3]["resources"][0]["ARN"], arn);
    let decrypt = &events[5];
    let context = &decrypt["requestParameters"]["encryptionContext"];
    assert_eq!(
        (&context["team"], &context["hushfs:epoch"]),
        (&"blue".into(), &"1".into())
    );
    assert_eq!(decrypt["userIdentity"]["role"], "main");
    assert_eq!(decrypt["userIdentity"]["uid"], rustix::process::geteuid().as_raw());
    assert_eq!(decrypt["additionalEventData"], events[4]["additionalEventData"]);
    assert_eq!(
        decrypt["additionalEventData"]["keyMaterialId"].as_str().unwrap().len(),
        64
    );
    assert_eq!(
        (&decrypt["readOnly"], &decrypt["responseElements"]),
        (&true.into(), &Value::Null)
    );
    for event in &events {
        assert!(humantime::parse_rfc3339(event["eventTime"].as_str().unwrap()).is_ok());
        assert_eq!(
            (&event["eventSource"], &event["eventVersion"]),
            (&"hushfs".into(), &"1.11".into())
        );
    }
}

#[test]
fn a_key_that_is_refused_when_a_vault_is_opened_is_on_record() {
    let (temp, keys) = audited();
    let key = make_key(&keys).unwrap();
    let vault = temp.path().join("vault");
    let keystore = open(&keys);
    drop(VaultHome::create_under(&vault, layout(), keystore.into(), (key, Vec::new()), 103).unwrap());
    disable(&keys, &key.to_string()).unwrap();
    assert!(matches!(open_vault(&keys, &vault), Err(OpenError::Key(_))));
    let last = events(&keys).pop().unwrap();
    assert_eq!(
        (&last["eventName"], &last["errorCode"]),
        (&"Decrypt".into(), &"DisabledException".into())
    );
    is_whole(&keys);
}

#[test]
fn a_key_that_rotates_by_itself_is_an_event_of_the_service() {
    let (_temp, keys) = audited();
    let year = 366 * 24 * 60 * 60;
    assert_eq!(open(&keys).rotate_due(100 + year).unwrap().len(), 1);
    let last = events(&keys).pop().unwrap();
    assert_eq!(
        (&last["eventName"], &last["eventType"]),
        (&"RotateKey".into(), &"AwsServiceEvent".into())
    );
    let details = &last["serviceEventDetails"];
    assert_eq!(details["rotationType"], "AUTOMATIC");
    assert_ne!(details["currentKeyMaterialId"], details["previousKeyMaterialId"]);
    assert!(open(&keys).rotate_due(100 + year).unwrap().is_empty());
    assert_eq!(is_whole(&keys), 2);
}

#[test]
fn what_cannot_be_recorded_is_refused() {
    let (temp, keys) = audited();
    let vault = temp.path().join("vault");
    drop(make_vault(&keys, &vault).unwrap());
    let keystore = fs::read(keys.join(KEYSTORE)).unwrap();
    let refused = |what: &str| {
        let error = make_key(&keys).unwrap_err();
        assert!(matches!(error, ChangeError::Audit(_)), "{what}: {error}");
        assert!(matches!(open_vault(&keys, &vault), Err(OpenError::Audit(_))), "{what}");
        assert!(
            matches!(open(&keys).audit_off(104), Err(ChangeError::Audit(_))),
            "{what}"
        );
        assert_eq!(fs::read(keys.join(KEYSTORE)).unwrap(), keystore, "{what}");
    };
    for file in [LOG, STATE] {
        let (path, aside) = (keys.join(file), keys.join("aside"));
        fs::rename(&path, &aside).unwrap();
        refused("missing");
        fs::create_dir(&path).unwrap();
        refused("a directory");
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink(&aside, &path).unwrap();
        refused("a link");
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
    }
    let log = fs::read(keys.join(LOG)).unwrap();
    fs::write(keys.join(LOG), &log[..log.len() - 1]).unwrap();
    refused("cut");
    fs::write(keys.join(LOG), [&log[..], b"{}\n"].concat()).unwrap();
    refused("a strange line");
    fs::write(keys.join(LOG), &log).unwrap();
    make_key(&keys).unwrap();
}

#[test]
fn tampering_with_the_log_is_found_and_another_log_gets_on() {
    let (_temp, keys) = audited();
    for _ in 0..4 {
        make_key(&keys).unwrap();
    }
    let log = fs::read_to_string(keys.join(LOG)).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    let problems = |lines: &[&str]| {
        fs::write(keys.join(LOG), lines.join("\n") + "\n").unwrap();
        verify(&keys).problems
    };
    assert_eq!(
        problems(&[lines[0], lines[1], lines[3], lines[4]]),
        [(3, Problem::Missing { from: 3, to: 3 })]
    );
    assert_eq!(problems(&lines[..3]), [(3, Problem::CutOff { from: 4, to: 5 })]);
    let edited = lines[2].replace("CreateKey", "OtherCall");
    assert_eq!(
        problems(&[lines[0], lines[1], &edited, lines[3], lines[4]]),
        [(3, Problem::Changed { seq: 3 })]
    );
    assert_eq!(problems(&lines), []);

    // A state of before, with the log cut to match: the keystore knows better.
    let state = fs::read(keys.join(STATE)).unwrap();
    make_key(&keys).unwrap();
    fs::write(keys.join(LOG), &log).unwrap();
    fs::write(keys.join(STATE), &state).unwrap();
    assert!(matches!(verify(&keys).besides, Some(AuditError::LogOlder { .. })));
    assert_eq!(verify(&keys).problems, [(5, Problem::CutOff { from: 6, to: 6 })]);
    assert!(matches!(
        make_key(&keys),
        Err(ChangeError::Audit(AuditError::LogOlder { .. }))
    ));

    assert!(open(&keys).audit_on(true, 105).unwrap());
    make_key(&keys).unwrap();
    assert_eq!(is_whole(&keys), 2);
    assert_eq!(verify(&keys).last, Some(8));
    let old = keys.join("audit-1.jsonl");
    let verified = open(&keys).verify_log(Some(&old)).unwrap().unwrap();
    assert_eq!((verified.problems, verified.good), (vec![], 5));
}

#[test]
fn a_log_that_goes_on_as_a_hole_is_read_no_further() {
    let (temp, keys) = audited();
    make_key(&keys).unwrap();
    let good = is_whole(&keys);
    let copy = temp.path().join("copy");
    fs::copy(keys.join(LOG), &copy).unwrap();
    for log in [&keys.join(LOG), &copy] {
        let file = fs::OpenOptions::new().append(true).open(log).unwrap();
        file.set_len(file.metadata().unwrap().len() + (64 << 20)).unwrap();
        let mut reader = LogReader::open(log).unwrap();
        for _ in 0..good {
            assert!(Line::decode(&reader.next_line().unwrap().unwrap()).is_ok());
        }
        assert!(matches!(reader.next_line(), Err(AuditError::Strange { .. })));
    }
    for other in [None, Some(&*copy)] {
        let verified = open(&keys).verify_log(other).unwrap().unwrap();
        assert_eq!((verified.good, verified.problems), (good, vec![]));
        assert!(matches!(verified.besides, Some(AuditError::Strange { .. })));
    }
}

#[test]
fn a_keystore_that_was_put_back_does_not_go_with_its_log() {
    let (_temp, keys) = audited();
    let old = fs::read(keys.join(KEYSTORE)).unwrap();
    make_key(&keys).unwrap();
    // As if the process had ended before it stored the keystore: that is no reason to refuse.
    fs::write(keys.join(KEYSTORE), &old).unwrap();
    is_whole(&keys);
    make_key(&keys).unwrap();
    let generations: Vec<_> = events(&keys)
        .iter()
        .map(|event| event["additionalEventData"]["keystoreGeneration"].as_u64().unwrap())
        .collect();
    assert_eq!(generations, [2, 3, 3]);
    make_key(&keys).unwrap();
    fs::write(keys.join(KEYSTORE), &old).unwrap();
    assert!(matches!(verify(&keys).besides, Some(AuditError::KeystoreOlder { .. })));
    assert!(matches!(
        make_key(&keys),
        Err(ChangeError::Audit(AuditError::KeystoreOlder { .. }))
    ));
}

#[test]
fn an_append_that_was_cut_short_at_any_byte_is_recovered_from() {
    let (_temp, keys) = audited();
    make_key(&keys).unwrap();
    let (state, log) = (fs::read(keys.join(STATE)).unwrap(), fs::read(keys.join(LOG)).unwrap());
    make_key(&keys).unwrap();
    let later_state = fs::read(keys.join(STATE)).unwrap();
    let later_log = fs::read(keys.join(LOG)).unwrap();
    let later_keystore = fs::read(keys.join(KEYSTORE)).unwrap();

    // The line was written in part, or whole, and the state not: the keystore is that of before then, too.
    let before = {
        let mut open = open(&keys);
        open.keystore.set_audit_head(AuditHead::default());
        open.keystore.encode(1).unwrap()
    };
    for written in (log.len()..later_log.len())
        .step_by(97)
        .chain([later_log.len() - 1, later_log.len()])
    {
        fs::write(keys.join(LOG), &later_log[..written]).unwrap();
        fs::write(keys.join(STATE), &state).unwrap();
        fs::write(keys.join(KEYSTORE), &before).unwrap();
        make_key(&keys).unwrap();
        let expected = if written == later_log.len() { 4 } else { 3 };
        assert_eq!(is_whole(&keys), expected, "{written} bytes");
    }

    // The state was written in part: its other place stands, and the line is taken in.
    let newest = (0..2)
        .find(|place| State::decode(&later_state[place * 4096..][..STATE_SIZE]).is_ok())
        .unwrap();
    for written in (0..STATE_SIZE).step_by(11) {
        let mut torn = state.clone();
        torn.resize(8192, 0);
        let at = newest * 4096;
        torn[at..at + written].copy_from_slice(&later_state[at..at + written]);
        fs::write(keys.join(LOG), &later_log).unwrap();
        fs::write(keys.join(STATE), &torn).unwrap();
        fs::write(keys.join(KEYSTORE), &later_keystore).unwrap();
        make_key(&keys).unwrap();
        assert_eq!(is_whole(&keys), 4, "{written} bytes");
    }

    // Both places stand: the key before was not wiped yet.
    let mut both = later_state.clone();
    both.resize(8192, 0);
    let other = 1 - newest;
    both[other * 4096..][..STATE_SIZE].copy_from_slice(&state[other * 4096..][..STATE_SIZE]);
    fs::write(keys.join(LOG), &later_log).unwrap();
    fs::write(keys.join(STATE), &both).unwrap();
    fs::write(keys.join(KEYSTORE), &later_keystore).unwrap();
    make_key(&keys).unwrap();
    assert_eq!(is_whole(&keys), 4);
}

/// What a call on a file does before it fails.
#[derive(Clone, Copy, Debug)]
enum Does {
    Nothing,
    /// A write comes as far as the middle.
    Half,
    All,
}

/// The n-th call on two files fails, and each one behind it too where that is so.
struct Faults {
    does: Does,
    until_the_end: bool,
    calls: AtomicU32,
    nth: u32,
}

impl Faults {
    fn befall(&self) -> bool {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        call == self.nth || (self.until_the_end && call > self.nth)
    }

    fn call<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if !self.befall() {
            return act();
        }
        if let Does::All = self.does {
            act()?;
        }
        Err(io::Error::from_raw_os_error(libc::EIO))
    }
}

/// A file on which calls fail.
struct Faulty<'f> {
    file: BackingFile,
    faults: &'f Faults,
}

impl Storage for Faulty<'_> {
    fn len(&self) -> io::Result<u64> {
        self.faults.call(|| self.file.len())
    }

    fn inode(&self) -> io::Result<u64> {
        self.file.inode()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.faults.call(|| self.file.read_at(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), ShortWrite> {
        if !self.faults.befall() {
            return self.file.write_at(buf, offset);
        }
        let written = match self.faults.does {
            Does::Nothing => 0,
            Does::Half => buf.len() / 2,
            Does::All => buf.len(),
        };
        self.file.write_at(&buf[..written], offset)?;
        let error = io::Error::from_raw_os_error(libc::EIO);
        Err(ShortWrite { written, error })
    }

    fn write_with_mtime(&self, _: &[u8], _: u64, _: Option<Timespec>) -> io::Result<()> {
        unreachable!()
    }

    fn set_mtime(&self, _: Timespec) -> io::Result<()> {
        unreachable!()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.faults.call(|| self.file.set_len(len))
    }

    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        unreachable!()
    }

    fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
        unreachable!()
    }

    fn next_data(&self, _: u64) -> io::Result<Option<u64>> {
        unreachable!()
    }

    fn next_hole(&self, _: u64) -> io::Result<u64> {
        unreachable!()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.faults.call(|| self.file.sync_data())
    }
}

#[test]
fn an_append_of_which_any_call_fails_costs_that_append_only() {
    let (_temp, keys) = audited();
    make_key(&keys).unwrap();
    let before = [LOG, STATE, KEYSTORE].map(|file| (file, fs::read(keys.join(file)).unwrap()));
    for (does, until_the_end) in [
        (Does::Nothing, false),
        (Does::Half, false),
        (Does::All, false),
        (Does::Nothing, true),
        (Does::Half, true),
        (Does::All, true),
    ] {
        for nth in 1.. {
            let what = format!("{does:?}, until the end: {until_the_end}, call {nth}");
            for (file, bytes) in &before {
                fs::write(keys.join(file), bytes).unwrap();
            }
            let faults = Faults {
                does,
                until_the_end,
                calls: AtomicU32::new(0),
                nth,
            };
            let keystore = open(&keys);
            let log = AuditLog::of(&keystore.home, &keystore.keystore).unwrap().unwrap();
            let file = |name| Faulty {
                file: log.open(name, false).unwrap(),
                faults: &faults,
            };
            let (log_file, state_file) = (file(LOG), file(STATE));
            let files = Files {
                log: &log_file,
                state: &state_file,
            };
            let known = Known::of(&keystore.keystore);
            let event = r#"{"eventName":"Told"}"#.to_owned();
            let result = log.append_to(files, &[event], Some(known), known.generation + 1);
            drop((log_file, state_file));
            let acknowledged = fs::read(keys.join(LOG)).unwrap();
            if faults.calls.into_inner() < nth {
                result.unwrap();
                assert!(nth > 8, "{what}");
                break;
            }
            assert!(matches!(result, Err(AuditError::Io { .. })), "{what}: {result:?}");
            assert!(acknowledged.starts_with(&before[0].1), "{what}");
            make_key(&keys).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!((3..=4).contains(&is_whole(&keys)), "{what}");
            assert!(fs::read(keys.join(LOG)).unwrap().starts_with(&before[0].1), "{what}");
            key_in(&fs::read(keys.join(STATE)).unwrap());
        }
    }
}

/// Returns the key of the next line from a state that has one only.
fn key_in(state: &[u8]) -> Vec<u8> {
    let kept: Vec<_> = (0..2)
        .filter_map(|place| state.get(place * 4096..place * 4096 + STATE_SIZE))
        .filter(|bytes| State::decode(bytes).is_ok())
        .map(|bytes| bytes[STATE_SIZE - 64..STATE_SIZE - 32].to_vec())
        .collect();
    assert_eq!(kept.len(), 1);
    kept[0].clone()
}

#[test]
fn the_key_of_a_line_is_wiped_when_the_line_is_there() {
    let (_temp, keys) = audited();
    let mut before = key_in(&fs::read(keys.join(STATE)).unwrap());
    for _ in 0..3 {
        make_key(&keys).unwrap();
        let state = fs::read(keys.join(STATE)).unwrap();
        assert!(!state.windows(32).any(|bytes| bytes == before));
        before = key_in(&state);
    }
}

const OLD_LOG: &str = "audit-1.jsonl";
const COMING_LOG: &str = "audit-new.jsonl";
const COMING_STATE: &str = "audit-new.state";

/// The files of a keystore whose log was exchanged for another one, before and after.
struct Exchange {
    keys: PathBuf,
    old: [Vec<u8>; 3],
    new: [Vec<u8>; 3],
    _temp: TempDir,
}

impl Exchange {
    fn new() -> Self {
        let (temp, keys) = audited();
        make_key(&keys).unwrap();
        let files = || [LOG, STATE, KEYSTORE].map(|file| fs::read(keys.join(file)).unwrap());
        let old = files();
        assert!(open(&keys).audit_on(true, 105).unwrap());
        assert_eq!(fs::read(keys.join(OLD_LOG)).unwrap(), old[0]);
        let new = files();
        Exchange {
            keys,
            old,
            new,
            _temp: temp,
        }
    }

    /// Has these files there, and no others.
    fn put(&self, files: &[(&str, &[u8])]) {
        for file in [LOG, STATE, KEYSTORE, OLD_LOG, COMING_LOG, COMING_STATE] {
            let _ = fs::remove_file(self.keys.join(file));
        }
        for (file, bytes) in files {
            fs::write(self.keys.join(file), bytes).unwrap();
        }
    }

    /// Returns what there is after each step that the process may end behind, once the keystore is stored.
    fn steps(&self) -> [Vec<(&'static str, &[u8])>; 4] {
        let [old_log, old_state, _] = self.old.each_ref().map(Vec::as_slice);
        let [log, state, keystore] = self.new.each_ref().map(Vec::as_slice);
        let (coming_log, coming_state) = ((COMING_LOG, log), (COMING_STATE, state));
        let keystore = (KEYSTORE, keystore);
        [
            vec![keystore, (LOG, old_log), (STATE, old_state), coming_log, coming_state],
            vec![
                keystore,
                (OLD_LOG, old_log),
                (STATE, old_state),
                coming_log,
                coming_state,
            ],
            vec![keystore, (OLD_LOG, old_log), coming_log, coming_state],
            vec![keystore, (OLD_LOG, old_log), (LOG, log), coming_state],
        ]
    }

    fn is_refused(&self) -> bool {
        let refused = make_key(&self.keys);
        matches!(refused, Err(ChangeError::Audit(error)) if error.is_damage())
    }
}

#[test]
fn another_log_whose_beginning_is_interrupted_is_put_in_its_place_by_the_next_call() {
    let exchange = Exchange::new();
    let keys = &exchange.keys;
    for (number, step) in exchange.steps().into_iter().enumerate() {
        for looks_first in [false, true] {
            exchange.put(&step);
            if looks_first {
                assert_eq!(is_whole(keys), 1, "step {number}");
            }
            make_key(keys).unwrap_or_else(|error| panic!("step {number}: {error}"));
            assert_eq!(names(keys), ["StartLogging", "CreateKey"], "step {number}");
            assert_eq!(is_whole(keys), 2, "step {number}");
            assert_eq!(fs::read(keys.join(OLD_LOG)).unwrap(), exchange.old[0], "step {number}");
            assert!(!keys.join(COMING_LOG).exists() && !keys.join(COMING_STATE).exists());
        }
        exchange.put(&step);
        assert!(open(keys).audit_on(true, 106).unwrap(), "step {number}");
        assert_eq!(is_whole(keys), 1, "step {number}");
        assert_eq!(fs::read(keys.join(OLD_LOG)).unwrap(), exchange.old[0], "step {number}");
        assert_eq!(fs::read(keys.join("audit-3.jsonl")).unwrap(), exchange.new[0]);
        fs::remove_file(keys.join("audit-3.jsonl")).unwrap();
    }
}

#[test]
fn another_log_that_the_keystore_was_not_told_of_changes_nothing() {
    let exchange = Exchange::new();
    let keys = &exchange.keys;
    let [old_log, old_state, keystore] = exchange.old.each_ref().map(Vec::as_slice);
    let [log, state, _] = exchange.new.each_ref().map(Vec::as_slice);
    let before = [(LOG, old_log), (STATE, old_state), (KEYSTORE, keystore)];
    for coming in [
        vec![(COMING_STATE, &state[..50])],
        vec![(COMING_STATE, state)],
        vec![(COMING_STATE, state), (COMING_LOG, b"".as_slice())],
        vec![(COMING_STATE, state), (COMING_LOG, log)],
    ] {
        exchange.put(&[&before[..], &coming].concat());
        make_key(keys).unwrap();
        assert_eq!(names(keys), ["StartLogging", "CreateKey", "CreateKey"]);
        assert_eq!(is_whole(keys), 3);
        assert!(open(keys).audit_on(true, 106).unwrap());
        make_key(keys).unwrap();
        assert_eq!(names(keys), ["StartLogging", "CreateKey"]);
        assert_eq!(is_whole(keys), 2);
    }
}

#[test]
fn a_log_that_was_taken_away_is_told_from_one_that_is_coming() {
    let exchange = Exchange::new();
    for step in exchange.steps() {
        let without = |taken: &str| {
            step.iter()
                .copied()
                .filter(|(file, _)| *file != taken)
                .collect::<Vec<_>>()
        };
        exchange.put(&without(COMING_STATE));
        assert!(exchange.is_refused());
        let log = if step.iter().any(|(file, _)| *file == COMING_LOG) {
            COMING_LOG
        } else {
            LOG
        };
        exchange.put(&without(log));
        assert!(exchange.is_refused());
        // That of another log, which the keystore does not have.
        exchange.put(&[&without(COMING_STATE)[..], &[(COMING_STATE, &exchange.old[1])]].concat());
        assert!(exchange.is_refused());
    }
    // Kept from when it was coming, and put back when there is more on record.
    let (log, state) = (exchange.new[0].as_slice(), exchange.new[1].as_slice());
    exchange.put(&exchange.steps()[0]);
    make_key(&exchange.keys).unwrap();
    let keystore = fs::read(exchange.keys.join(KEYSTORE)).unwrap();
    exchange.put(&[(KEYSTORE, &keystore), (COMING_LOG, log), (COMING_STATE, state)]);
    assert!(exchange.is_refused());
}

#[test]
fn switched_off_it_records_that_and_no_more_until_it_is_on() {
    let (temp, keys) = audited();
    open(&keys).audit_off(101).unwrap();
    make_key(&keys).unwrap();
    let vault = temp.path().join("vault");
    drop(make_vault(&keys, &vault).unwrap());
    assert_eq!(names(&keys), ["StartLogging", "StopLogging"]);
    assert_eq!(is_whole(&keys), 2);
    assert!(open(&keys).file_audit().unwrap().is_none());
    assert!(open(&keys).audit_on(false, 103).unwrap());
    assert_eq!(names(&keys), ["StartLogging", "StopLogging", "StartLogging"]);
    assert_eq!(is_whole(&keys), 3);
}

#[test]
fn a_new_root_leaves_the_log_verifiable() {
    let (_temp, keys) = audited();
    let mut open_keystore = open(&keys);
    let call = || Call::new("AddSlot", Value::Null);
    let slot = open_keystore
        .change(101, call(), |keystore| {
            keystore.add_slot("two", &NewSecret::KeyFile(&key_file(2)), 101)
        })
        .unwrap();
    let _ = open_keystore
        .change(102, call(), |keystore| keystore.remove_slot(slot, 102))
        .unwrap();
    make_key(&keys).unwrap();
    assert_eq!(is_whole(&keys), 4);
}

#[test]
fn a_vault_s_own_keystore_records_nothing_until_it_is_told_to() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("vault");
    let keystore = LocalKeystore::create("main", &NewSecret::KeyFile(&key_file(1)), 100).unwrap();
    let mut open = VaultHome::create(&path, layout(), keystore, 100).unwrap();
    assert!(!path.join(AUDIT_LOG).exists());
    open.keys_mut().keystore_mut().unwrap().audit_on(false, 101).unwrap();
    open.rotate(102).unwrap();
    let names: Vec<_> = events_in(&path.join(AUDIT_LOG))
        .iter()
        .map(|event| event["eventName"].clone())
        .collect();
    assert_eq!(names, ["StartLogging", "RotateKeyOnDemand", "GenerateDataKey"]);
    let verified = open.keys().keystore().unwrap().verify_log(None).unwrap().unwrap();
    assert_eq!((verified.problems, verified.good), (vec![], 3));
}

#[test]
fn many_append_at_a_time() {
    const THREADS: u64 = 4;
    const CHANGES: u64 = 8;
    let (temp, keys) = audited();
    let vault = temp.path().join("vault");
    drop(make_vault(&keys, &vault).unwrap());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..CHANGES {
                    make_key(&keys).unwrap();
                    drop(open_vault(&keys, &vault).unwrap());
                }
            });
        }
    });
    assert_eq!(is_whole(&keys), 2 + 2 * THREADS * CHANGES);
}

#[test]
fn uses_of_files_are_recorded_without_the_keystore() {
    let (_temp, keys) = audited();
    let audit = open(&keys).file_audit().unwrap().unwrap();
    let read = FileUse {
        uid: 7,
        pid: 9,
        ..FileUse::of("dir/a\n\"b".to_owned())
    };
    let refused = FileUse {
        is_new: true,
        for_writing: true,
        errno: Some(libc::EACCES),
        ..read.clone()
    };
    audit.record(&[read.clone(), refused], 3).unwrap();
    make_key(&keys).unwrap();
    let events = events(&keys);
    assert_eq!(
        names(&keys)[1..],
        ["OpenFile", "CreateFile", "DropRecords", "CreateKey"]
    );
    assert_eq!(events[1]["requestParameters"]["path"], "dir/a\n\"b");
    assert_eq!(
        (&events[1]["userIdentity"]["uid"], &events[1]["userIdentity"]["pid"]),
        (&7.into(), &9.into())
    );
    assert_eq!(
        (&events[1]["eventCategory"], &events[1]["readOnly"]),
        (&"Data".into(), &true.into())
    );
    assert_eq!(events[2]["errorCode"], "EACCES");
    assert_eq!(events[3]["serviceEventDetails"]["dropped"], 3);
    assert_eq!(is_whole(&keys), 5);
    open(&keys).audit_on(true, 104).unwrap();
    audit.record(&[read], 0).unwrap();
    assert_eq!(names(&keys), ["StartLogging", "OpenFile"]);
    assert_eq!(is_whole(&keys), 2);
}
