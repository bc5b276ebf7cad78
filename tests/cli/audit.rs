//! `audit`, `keystore audit`: the log of calls by the command line.

use std::{
    fs,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use super::{Given, Place, given, normal};

const KEY: &str = "--key-file key";
const UNVERIFIED: &str = "hushfs: nothing of this was verified: `hushfs audit verify` does that\n";

/// A place with a keystore of its own and a vault that uses it.
fn audited() -> Place {
    let place = Place::new();
    for command in [
        "keystore init --key-file key keys",
        "init --keystore keys --key-file key vault",
    ] {
        assert_eq!(place.run(command), given(0, "", ""), "{command}");
    }
    place
}

impl Place {
    /// Returns the records that `audit show` gives.
    fn records(&self, filter: &str) -> Vec<Value> {
        let shown = self.run(&format!("audit show --json{filter}"));
        assert_eq!((shown.code, shown.err.as_str()), (0, UNVERIFIED), "{filter}");
        shown
            .out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn event_names(&self, filter: &str) -> Vec<String> {
        let records = self.records(filter);
        records
            .iter()
            .map(|record| record["eventName"].as_str().unwrap().to_owned())
            .collect()
    }

    fn verify(&self) -> Given {
        self.run(&format!("audit verify --keystore keys {KEY}"))
    }

    fn spawn(&self, arguments: &str) -> Child {
        let mut command = self.command(&arguments.split(' ').collect::<Vec<_>>());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }
}

#[test]
fn what_happened_is_shown_filtered_and_exported() {
    let place = audited();
    let id = place
        .run(&format!("key create --keystore keys --alias alias/mail {KEY}"))
        .out;
    let id = id.trim_end();
    assert_eq!(
        place.run(&format!("key disable --keystore keys {KEY} alias/none")).code,
        10
    );
    assert_eq!(
        place
            .run(&format!(
                "key alias set --keystore keys --key alias/mail {KEY} alias/post"
            ))
            .code,
        0
    );
    assert_eq!(
        place
            .run(&format!(
                "key alias set --keystore keys --key alias/mail {KEY} alias/post"
            ))
            .code,
        0
    );
    assert_eq!(place.run(&format!("key reap --keystore keys --dry-run {KEY}")).code, 0);
    assert_eq!(place.run(&format!("ls --keystore keys {KEY} vault")).code, 0);
    let all = [
        "StartLogging",
        "GenerateDataKey",
        "CreateKey",
        "DisableKey",
        "CreateAlias",
        "UpdateAlias",
        "Decrypt",
    ];
    assert_eq!(place.event_names(" --keystore keys"), all);
    let uid = rustix::process::geteuid().as_raw();
    for (filter, expected) in [
        (format!("--key {id}"), &["CreateKey", "CreateAlias", "UpdateAlias"][..]),
        ("--key alias/none".to_owned(), &["DisableKey"]),
        ("--errors".to_owned(), &["DisableKey"]),
        ("--event decrypt".to_owned(), &["Decrypt"]),
        (format!("--principal {uid} --event Decrypt"), &["Decrypt"]),
        ("--principal key_file --event Decrypt".to_owned(), &[]),
        ("--since 1h --until 2000-01-01".to_owned(), &[]),
        ("--since 1h --event StartLogging".to_owned(), &["StartLogging"]),
    ] {
        assert_eq!(
            place.event_names(&format!(" --keystore keys {filter}")),
            expected,
            "{filter}"
        );
    }
    let shown = place.run("audit show --keystore keys --errors");
    assert_eq!(
        normal(&shown.out),
        format!(
            "     4 TIME uid {uid} (key file) DisableKey NotFoundException: no alias \"alias/none\" in this keystore\n"
        )
    );
    let exported = place.run("audit export --keystore keys");
    let exported: Value = serde_json::from_str(&exported.out).unwrap();
    assert_eq!(exported["Records"].as_array().unwrap().len(), all.len());
    assert_eq!(
        exported["Records"][6]["requestParameters"]["encryptionContext"]["hushfs:epoch"],
        "1"
    );
    let none = place.run("audit export --keystore keys --event None");
    assert_eq!(none, given(0, "{\"Records\":[]}\n", UNVERIFIED));
    assert_eq!(
        place.verify(),
        given(
            0,
            "",
            "hushfs: 7 records as written, the last is 7; the keystore itself knows them up to 6\n"
        )
    );
    assert_eq!(place.run("audit show --keystore keys --since soon").code, 2);
}

#[test]
fn who_has_changed_the_keys_of_a_vault_is_on_record() {
    let place = audited();
    let created = place.run(&format!("key create --keystore keys --alias alias/mail {KEY}"));
    let id = created.out.trim_end();
    fs::write(place.path("key2"), [8; 32]).unwrap();
    let vault = format!("--keystore keys {KEY} vault");
    let mut customer = String::new();
    for command in [
        "encryption set --key alias/mail VAULT",
        "encryption set --key alias/mail --bucket-key off VAULT /",
        "bucket-key off VAULT",
        "bucket-key on VAULT /",
        "encryption unset VAULT /",
        "customer-key add --new-customer-key key2 VAULT",
        "customer-key remove VAULT ID",
    ] {
        let command = command.replace("VAULT", &vault).replace("ID", &customer);
        let got = place.run(&format!("vault {command}"));
        assert_eq!(got.code, 0, "{command}: {}", got.err);
        customer = got.out.trim_end().to_owned();
    }
    let shown = place.run(&format!("vault encryption show --json {vault}"));
    let shown: Value = serde_json::from_str(&shown.out).unwrap();
    let changed = |name: &str| {
        let records = place.records(&format!(" --keystore keys --event {name}"));
        let mut parameters: Vec<_> = records
            .iter()
            .map(|record| record["requestParameters"].clone())
            .collect();
        for (of, record) in parameters.iter_mut().zip(&records) {
            assert!(record["errorCode"].is_null() && record["readOnly"] == false, "{record}");
            assert_eq!(of["vaultId"].as_str().unwrap().len(), 32);
            of.as_object_mut().unwrap().remove("vaultId");
        }
        (parameters, records)
    };
    let (put, records) = changed("PutBucketEncryption");
    let directory = &put[1]["directoryId"];
    assert_eq!(directory.as_str().map(str::len), Some(32), "{shown}");
    assert_eq!(
        put,
        [
            json!({"keyId": id, "bucketKeyEnabled": true}),
            json!({"keyId": id, "bucketKeyEnabled": false, "directoryId": directory}),
            json!({"keyId": id, "bucketKeyEnabled": false}),
            json!({"keyId": id, "bucketKeyEnabled": true, "directoryId": directory}),
        ]
    );
    for record in records {
        let arn = record["resources"][0]["ARN"].as_str().unwrap();
        assert!(arn.ends_with(&format!(":key/{id}")), "{record}");
    }
    assert_eq!(
        changed("DeleteBucketEncryption").0,
        [json!({"directoryIds": [directory]})]
    );
    let added = changed("AddCustomerKey").0;
    assert_eq!(added, changed("RemoveCustomerKey").0);
    assert_eq!(added[0]["customerKeyId"].as_str().map(str::len), Some(32));
    let every = place.event_names(" --keystore keys");
    let of = |name: &str| every.iter().filter(|event| *event == name).count();
    assert_eq!((of("PutBucketEncryption"), of("CreateKey")), (4, 1), "{every:?}");
}

#[test]
fn a_change_of_a_vaults_keys_that_cannot_be_recorded_does_not_take_place() {
    let place = audited();
    place.run(&format!("key create --keystore keys --alias alias/mail {KEY}"));
    let before = fs::read(place.path("vault/vault.hush")).unwrap();
    let log = fs::read(place.path("keys/audit.jsonl")).unwrap();
    place.write("keys/audit.jsonl", &log[..10]);
    for command in [
        "encryption set --key alias/mail VAULT",
        "bucket-key off VAULT",
        "customer-key add --new-customer-key key VAULT",
    ] {
        let command = command.replace("VAULT", &format!("--keystore keys {KEY} vault"));
        assert_eq!(place.run(&format!("vault {command}")).code, 9, "{command}");
    }
    assert_eq!(fs::read(place.path("vault/vault.hush")).unwrap(), before);
}

#[test]
fn no_secret_is_in_a_log() {
    let place = audited();
    assert_eq!(
        place
            .run(&format!(
                "slot add --keystore keys {KEY} --new-passfile pass --kdf-memory 64M --kdf-time 1ms"
            ))
            .code,
        0
    );
    assert_eq!(place.run(&format!("ls --keystore keys {KEY} vault")).code, 0);
    let log = fs::read_to_string(place.path("keys/audit.jsonl")).unwrap();
    assert!(!log.contains("correct horse"));
    let header = fs::read(place.path("vault/vault.hush")).unwrap();
    for start in (0..header.len() - 24).step_by(8) {
        let bytes = &header[start..start + 24];
        if bytes.iter().filter(|&&byte| byte == 0).count() < 4 {
            assert!(!log.contains(&data_encoding::HEXLOWER.encode(bytes)));
            assert!(!log.contains(&data_encoding::BASE64.encode(bytes)));
        }
    }
}

#[test]
fn damage_has_its_line_and_code_and_stops_what_cannot_be_recorded() {
    let place = audited();
    place.run(&format!("key create --keystore keys {KEY}"));
    let log = fs::read_to_string(place.path("keys/audit.jsonl")).unwrap();
    let edited = log.replacen("GenerateDataKey", "GenerateDataKex", 1);
    place.write("keys/audit.jsonl", edited.as_bytes());
    assert_eq!(
        place.verify(),
        given(
            9,
            "line 2: record 2 was changed, or is not of this keystore\n",
            "hushfs: 2 records as written, the last is 3; the keystore itself knows them up to 3\n"
        )
    );
    let json = place.run(&format!("audit verify --json --keystore keys {KEY}"));
    let json: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(
        (&json["damaged"], &json["problems"][0]["line"]),
        (&true.into(), &2.into())
    );

    let two: String = log.lines().take(2).map(|line| format!("{line}\n")).collect();
    place.write("keys/audit.jsonl", two.as_bytes());
    let cut = place.verify();
    assert_eq!(
        (cut.code, cut.out.as_str()),
        (9, "line 2: record 3 was cut off behind this line\n")
    );
    let refused = place.run(&format!("ls --keystore keys {KEY} vault"));
    assert_eq!(
        refused,
        given(
            9,
            "",
            "hushfs: refused, for it could not be recorded in the audit log: keys/audit.jsonl: was cut off: put the files of the \
             keystore back from one backup, or begin another log with `hushfs keystore audit on --new-log`\n"
        )
    );
    assert_eq!(place.run(&format!("keystore audit off --keystore keys {KEY}")).code, 9);
    assert_eq!(
        place.run(&format!("keystore audit on --new-log --keystore keys {KEY}")),
        given(0, "", "")
    );
    assert_eq!(place.run(&format!("ls --keystore keys {KEY} vault")).code, 0);
    assert_eq!(place.verify().code, 0);
    assert_eq!(
        place.event_names(" --log keys/audit-1.jsonl"),
        ["StartLogging", "GenerateDataKey"]
    );
    let old = place.run(&format!("audit verify --log keys/audit-1.jsonl --keystore keys {KEY}"));
    assert_eq!(
        old,
        given(
            0,
            "",
            "hushfs: 2 records as written, the last is 2; whether its end was cut off cannot be told\n"
        )
    );
}

#[test]
fn a_full_disk_refuses_and_leaves_everything_as_it_was() {
    let place = audited();
    let before: Vec<_> = ["keystore.hush", "audit.jsonl", "audit.state"]
        .map(|name| fs::read(place.path("keys").join(name)).unwrap())
        .into();
    let mut limited = std::process::Command::new("sh");
    limited
        .args(["-c", "ulimit -f 0; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_hushfs")])
        .args("key create --keystore keys --key-file key".split(' '))
        .current_dir(place.path(""));
    let refused = place.run_with(&mut limited);
    assert_eq!(
        refused,
        given(
            1,
            "",
            "hushfs: refused, for it could not be recorded in the audit log: keys/audit.jsonl: File too large\n"
        )
    );
    for (name, bytes) in ["keystore.hush", "audit.jsonl", "audit.state"].iter().zip(&before) {
        assert_eq!(&fs::read(place.path("keys").join(name)).unwrap(), bytes, "{name}");
    }
    assert_eq!(place.run(&format!("key create --keystore keys {KEY}")).code, 0);
    assert_eq!(place.verify().code, 0);
}

#[test]
fn a_vault_s_keystore_records_when_told_and_fsck_knows_the_files() {
    let place = Place::with_vault();
    assert_eq!(
        place.run("audit show vault"),
        given(
            1,
            "",
            "hushfs: vault/audit.hush: no audit log there: `hushfs keystore audit on` begins one\n"
        )
    );
    let none = place.run(&format!("audit verify {KEY} vault"));
    assert_eq!(none.code, 1);
    assert_eq!(
        place.run(&format!("keystore audit status {KEY} vault")).out,
        "calls are not recorded\n"
    );
    assert_eq!(place.run(&format!("keystore audit on {KEY} vault")), given(0, "", ""));
    assert_eq!(
        place.run(&format!("keystore audit on {KEY} vault")),
        given(0, "", "hushfs: it is on already\n")
    );
    assert_eq!(
        place.run(&format!("keystore audit on --new-log {KEY} vault")),
        given(0, "", "")
    );
    assert!(place.path("vault/audit-1.hush").exists());
    assert_eq!(place.run(&format!("fsck {KEY} vault")).code, 0);
    assert!(!place.run(&format!("fsck {KEY} vault")).out.contains("audit"));
    assert_eq!(place.run(&format!("ls {KEY} vault")), given(0, "", ""));
    assert_eq!(
        place.event_names(" vault"),
        ["StartLogging", "Decrypt", "Decrypt", "Decrypt"]
    );
    assert_eq!(place.run(&format!("audit verify {KEY} vault")).code, 0);
    let status = place.run(&format!("keystore audit status --json {KEY} vault"));
    let status: Value = serde_json::from_str(&status.out).unwrap();
    assert_eq!((&status["on"], &status["first"]), (&true.into(), &2.into()));
    assert_eq!(place.run(&format!("keystore audit off {KEY} vault")), given(0, "", ""));
    assert_eq!(place.run(&format!("ls {KEY} vault")), given(0, "", ""));
    assert_eq!(place.event_names(" vault").len(), 5);
}

#[test]
fn processes_that_record_at_a_time_wait_for_each_other() {
    let place = audited();
    let children: Vec<_> = (0..3)
        .flat_map(|_| {
            [
                format!("key create --keystore keys {KEY}"),
                format!("ls --keystore keys {KEY} vault"),
            ]
        })
        .map(|arguments| place.spawn(&arguments))
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(place.verify().code, 0);
    assert_eq!(place.event_names(" --keystore keys").len(), 2 + 6);
}

#[test]
fn a_process_that_is_killed_leaves_a_log_that_goes_on() {
    let place = audited();
    for delay in 0..12 {
        let mut child = place.spawn(&format!("key create --keystore keys {KEY}"));
        thread::sleep(Duration::from_millis(3 * delay));
        let _ = child.kill();
        child.wait().unwrap();
        assert_eq!(place.verify().code, 0, "killed after {} ms", 3 * delay);
    }
    assert_eq!(place.run(&format!("key create --keystore keys {KEY}")).code, 0);
    assert_eq!(place.verify().code, 0);
}
