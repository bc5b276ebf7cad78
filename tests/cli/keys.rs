//! `key`, `keystore`, `vault encryption`: the lifecycle of master keys by the command line.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use hushfs::{
    backing::Dir,
    crypto::block::Suite,
    format::{layout::Layout, vault::UnverifiedVaultHeader},
    fs::{NameIn, ROOT},
    keystore::{KeyFile, LocalKeystore, NewKey, NewSecret},
    vault::home::{Call, KeystoreHome, VaultHome},
};
use serde_json::Value;

use super::{Given, Place, given, normal};

const KEY: &str = "--key-file key";

/// What a command gives that does what it shall and has nothing to say.
fn done() -> Given {
    given(0, "", "")
}

impl Place {
    /// Runs a command that must succeed and prints one JSON object.
    fn json(&self, arguments: &str) -> Value {
        let got = self.run(arguments);
        assert_eq!(got.code, 0, "{arguments}: {}", got.err);
        serde_json::from_str(&got.out).unwrap()
    }

    /// Makes a key; returns its id.
    fn create_key(&self, arguments: &str) -> String {
        let made = self.run(&format!("key create {KEY} {arguments}"));
        assert_eq!((made.code, made.err.as_str()), (0, ""));
        made.out.trim_end().to_owned()
    }

    fn refused(&self, arguments: &str, code: i32, message: &str) {
        assert_eq!(
            self.run(arguments),
            given(code, "", &format!("hushfs: {message}\n")),
            "{arguments}"
        );
    }
}

#[test]
fn a_key_is_made_described_and_changed() {
    let place = Place::with_vault();
    let id = place.create_key("--description mail --tag team=blue --tag cost=a=b --alias alias/mail vault");
    assert_eq!(id.len(), 32);
    let described = normal(&place.run(&format!("key describe {KEY} vault alias/mail")).out);
    let arn = described.lines().find(|line| line.starts_with("arn ")).unwrap();
    assert!(arn.starts_with("arn         arn:hushfs:kms:local:") && arn.ends_with(&format!(":key/{id}")));
    assert_eq!(
        described.replace(arn, "arn"),
        "\
key         ID
arn
state       enabled
manager     customer
origin      local
holder      this keystore
created     TIME
description mail
aliases     alias/mail
tag         cost=a=b
tag         team=blue
versions    1 version, the current one is 1
rotation    not by itself
last use    not known
policy      default; a seat belt: who can open a slot can read the key, whatever it says
"
    );
    let arn = arn.trim_start_matches("arn ").trim();
    for change in [
        format!("key tag {KEY} --tag team=red --tag new= vault {id}"),
        format!("key untag {KEY} --tag cost --tag none vault {arn}"),
        format!("key describe-update {KEY} --description letters vault {id}"),
        format!("key alias set {KEY} --key alias/mail vault alias/post"),
        format!("key alias remove {KEY} vault alias/mail"),
        format!("key disable {KEY} vault alias/post"),
    ] {
        assert_eq!(place.run(&change), done(), "{change}");
    }
    let json = place.json(&format!("key describe --json {KEY} vault {id}"));
    assert_eq!(json["tags"], serde_json::json!({"team": "red", "new": ""}));
    assert_eq!(
        (&json["description"], &json["state"]),
        (&"letters".into(), &"disabled".into())
    );
    assert_eq!(json["aliases"], serde_json::json!(["alias/post"]));
    assert_eq!((&json["origin"], &json["policy"]), (&"local".into(), &"default".into()));
    let list = normal(&place.run(&format!("key list {KEY} vault")).out);
    let mut lines: Vec<_> = list.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "ID disabled, 1 version, alias/post",
            "ID enabled, 1 version, alias/hushfs/default"
        ]
    );
    let aliases = place.json(&format!("key alias list --json {KEY} vault"));
    assert_eq!(aliases["aliases"][1]["alias"], "alias/post");
    assert_eq!(aliases["aliases"][1]["key"], id);
}

#[test]
fn refusals_have_the_names_and_codes_of_the_document() {
    let place = Place::with_vault();
    let id = place.create_key("--alias alias/mail vault");
    let on = |command: &str, rest: &str| format!("key {command} {KEY} vault {rest}");
    place.refused(
        &on("disable", "alias/none"),
        10,
        "NotFoundException: no alias \"alias/none\" in this keystore",
    );
    place.refused(
        &on("disable", "arn:aws:kms:x"),
        2,
        "InvalidArnException: \"arn:aws:kms:x\" is not the ARN of a key of this keystore",
    );
    place.refused(
        &on("alias set --key alias/mail", "alias/hushfs/mine"),
        2,
        "InvalidAliasNameException: \"alias/hushfs/mine\": aliases that start with alias/hushfs/ or alias/aws/ are kept for hushfs and AWS: choose another name",
    );
    place.refused(
        &on("delete --days 6", &id),
        2,
        "ValidationException: a key is deleted after 7 to 30 days, not 6",
    );
    place.refused(
        &on("rotation on --days 89", &id),
        2,
        "ValidationException: a key rotates every 90 to 2560 days, not 89",
    );
    place.refused(
        &on("undelete", &id),
        10,
        &format!("KMSInvalidStateException: key {id} is not pending deletion"),
    );
    let managed = place.json(&on("describe --json", "alias/hushfs/default"))["id"].clone();
    place.refused(
        &on("delete", "alias/hushfs/default"),
        10,
        &format!(
            "AccessDeniedException: key {} is managed by hushfs: make one of your own with `hushfs key create`",
            managed.as_str().unwrap()
        ),
    );
    place.refused(
        &format!("key create {KEY} --alias alias/mail vault"),
        1,
        &format!("AlreadyExistsException: alias \"alias/mail\" exists and stands for key {id}"),
    );
    let tag = place.run(&on("tag --tag hushfs:x=y", &id));
    assert!(
        tag.err.starts_with("hushfs: TagException: tag \"hushfs:x\": "),
        "{}",
        tag.err
    );
    assert_eq!(place.run(&on("disable", &id)), done());
    place.refused(
        &on("rotate", &id),
        10,
        &format!("DisabledException: key {id} is disabled: enable it with `hushfs key enable`"),
    );
    assert_eq!(place.run(&format!("key tag {KEY} --tag team vault {id}")).code, 2);
    assert_eq!(
        place.run(&format!("key disable {KEY} vault")).code,
        4,
        "vault is the key, and there is no keystore"
    );
}

#[test]
fn deletion_is_scheduled_and_cancelled() {
    let place = Place::with_vault();
    let id = place.create_key("vault");
    let deleted = place.run(&format!("key delete {KEY} --days 7 vault {id}"));
    assert_eq!((deleted.code, deleted.out.as_str()), (0, ""));
    assert_eq!(
        normal(&deleted.err),
        "hushfs: key ID can be destroyed from TIME on (`hushfs key reap`); until then `hushfs key undelete` keeps it\n"
    );
    place.refused(
        &format!("key delete {KEY} vault {id}"),
        10,
        &format!(
            "KMSInvalidStateException: key {id} is pending deletion: keep it with `hushfs key undelete`, then enable it"
        ),
    );
    assert_eq!(
        place.run(&format!("key reap {KEY} vault")),
        given(
            0,
            "",
            "hushfs: no key is due: `hushfs key describe KEY` says from when on one is\n"
        )
    );
    let json = place.json(&format!("key describe --json {KEY} vault {id}"));
    assert_eq!(json["state"], "pending deletion");
    assert!(json["deletion_date"].is_string());
    assert_eq!(
        place.run(&format!("key undelete {KEY} vault {id}")),
        given(
            0,
            "",
            &format!("hushfs: key {id} stays, and is disabled until `hushfs key enable`\n")
        )
    );
    assert_eq!(
        place.json(&format!("key describe --json {KEY} vault {id}"))["state"],
        "disabled"
    );
}

/// Makes a vault of long ago, with a key whose destruction is due.
fn long_ago(place: &Place) -> String {
    let secret = KeyFile::new(vec![7; 32].into()).unwrap();
    let keystore = LocalKeystore::create("key file", &NewSecret::KeyFile(&secret), 1000).unwrap();
    let layout = Layout::new(Suite::Aes256GcmSiv, 4096).unwrap();
    let mut open = VaultHome::create(&place.path("vault"), layout, keystore, 1000).unwrap();
    let keystore = open.keys_mut().keystore_mut().unwrap();
    let new = NewKey {
        alias: Some("alias/old"),
        ..NewKey::default()
    };
    let key = keystore
        .change(1000, Call::new("Test", Value::Null), |keystore| {
            keystore.create_key(&new, 1000)
        })
        .unwrap();
    keystore
        .change(1000, Call::new("Test", Value::Null), |keystore| {
            keystore.schedule_deletion(&key, 7, 1000)
        })
        .unwrap();
    // Its last days have to be seen coming.
    let later = 1000 + 2 * 24 * 60 * 60;
    keystore
        .change(later, Call::new("Test", Value::Null), |keystore| {
            keystore.reap(later).map(drop)
        })
        .unwrap();
    key.to_string()
}

#[test]
fn who_destroys_a_key_of_a_keystore_that_others_have_open_is_told() {
    let place = Place::new();
    let id = long_ago(&place);
    fs::create_dir(place.path("keys")).unwrap();
    fs::rename(place.path("vault/keystore.hush"), place.path("keys/keystore.hush")).unwrap();
    let reaped = place.run(&format!("key reap {KEY} --keystore keys"));
    assert_eq!(
        reaped,
        given(
            0,
            "",
            &format!(
                "hushfs: mounts and agents that have this keystore open cannot ask it any more: start them again soon, or their files end with ETIMEDOUT (`--key-max-stale`)\nhushfs: destroyed key {id}, alias/old\n"
            )
        )
    );
}

#[test]
fn a_keystore_that_was_stored_in_days_to_come_is_told_of() {
    let place = Place::new();
    let secret = KeyFile::new(vec![7; 32].into()).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for (days, is_told) in [(3, true), (0, false)] {
        let stored = now + days * 24 * 60 * 60;
        let keystore = LocalKeystore::create("key file", &NewSecret::KeyFile(&secret), stored).unwrap();
        drop(KeystoreHome::create(&place.path("keys"), keystore, stored).unwrap());
        let listed = place.run(&format!("key list {KEY} --keystore keys"));
        assert_eq!(listed.code, 0);
        assert_eq!(listed.err.contains("which has not come yet"), is_told, "{}", listed.err);
        fs::remove_dir_all(place.path("keys")).unwrap();
    }
}

#[test]
fn a_key_that_is_due_is_destroyed_when_asked() {
    let place = Place::new();
    let id = long_ago(&place);
    assert_eq!(
        place.run(&format!("ls {KEY} vault")),
        done(),
        "nothing destroys it by itself"
    );
    let keystore = fs::read(place.path("vault/keystore.hush")).unwrap();
    let rehearsed = place.run(&format!("key reap --dry-run {KEY} vault"));
    assert!(rehearsed.err.contains("DryRunOperationException"), "{}", rehearsed.err);
    assert_eq!(fs::read(place.path("vault/keystore.hush")).unwrap(), keystore);
    assert_eq!(
        place.run(&format!("key reap {KEY} vault")),
        given(0, "", &format!("hushfs: destroyed key {id}, alias/old\n"))
    );
    place.refused(
        &format!("key undelete {KEY} vault {id}"),
        10,
        &format!("NotFoundException: no key \"{id}\" in this keystore"),
    );
    assert_eq!(place.run(&format!("ls {KEY} vault")), done());
}

#[test]
fn the_key_that_hushfs_manages_rotates_by_itself_when_the_vault_is_opened_for_writing() {
    let place = Place::new();
    long_ago(&place);
    assert_eq!(place.run(&format!("ls {KEY} vault")), done());
    let versions = || {
        let json = place.json(&format!("key rotations --json {KEY} vault alias/hushfs/default"));
        json["versions"].as_array().unwrap().clone()
    };
    assert_eq!(versions().len(), 1, "reading changes nothing");
    assert_eq!(
        place.run(&format!("rewrap {KEY} vault")),
        given(
            0,
            "",
            "hushfs: completed a change of keys\nhushfs: 0 headers moved to epoch 2, 0 of it already\n"
        )
    );
    let versions = versions();
    assert_eq!(versions.len(), 2);
    assert_eq!(
        (&versions[0]["type"], &versions[0]["state"]),
        (&"creation".into(), &"non-current".into())
    );
    assert_eq!(
        (&versions[1]["type"], &versions[1]["state"]),
        (&"automatic".into(), &"current".into())
    );
}

#[test]
fn a_dry_run_changes_nothing_and_says_what_would_have_been() {
    let place = Place::with_vault();
    let id = place.create_key("vault");
    let before = fs::read(place.path("vault/keystore.hush")).unwrap();
    let would = given(
        0,
        "",
        "hushfs: DryRunOperationException: the request would have succeeded, but --dry-run was given: nothing was changed\n",
    );
    for command in [
        "disable",
        "rotate",
        "delete",
        "rotation on",
        "tag --tag a=b",
        "policy set --default",
    ] {
        assert_eq!(
            place.run(&format!("key {command} --dry-run {KEY} vault {id}")),
            would,
            "{command}"
        );
    }
    assert_eq!(place.run(&format!("key create --dry-run {KEY} vault")), would);
    assert_eq!(
        place.run(&format!("key alias set --dry-run --key {id} {KEY} vault alias/a")),
        would
    );
    place.refused(
        &format!("key delete --days 99 --dry-run {KEY} vault {id}"),
        2,
        "ValidationException: a key is deleted after 7 to 30 days, not 99",
    );
    assert_eq!(fs::read(place.path("vault/keystore.hush")).unwrap(), before);
}

#[test]
fn rotation_has_versions_and_a_schedule() {
    let place = Place::with_vault();
    let id = place.create_key("vault");
    let on = |command: &str| format!("key {command} {KEY} vault {id}");
    let status = |expected: &str| assert_eq!(normal(&place.run(&on("rotation status")).out), expected);
    status("not by itself; rotated on demand 0 times\n");
    assert_eq!(
        place.run(&on("rotate")),
        given(0, "", &format!("hushfs: key {id} has version 2\n")),
        "the vault is under another key"
    );
    assert_eq!(place.run(&on("rotation on --days 100")), done());
    status("every 100 days, next TIME; rotated on demand 1 time\n");
    assert_eq!(place.run(&on("rotation off")), done());
    status("not by itself; rotated on demand 1 time\n");
    let rotations = normal(&place.run(&on("rotations")).out);
    let lines: Vec<_> = rotations.lines().collect();
    assert!(
        lines[0].starts_with("version   1 TIME, creation, non-current, "),
        "{rotations}"
    );
    assert!(
        lines[1].starts_with("version   2 TIME, on-demand, current, "),
        "{rotations}"
    );
    assert_eq!(place.json(&on("rotation status --json"))["enabled"], false);
}

/// A place with a keystore of its own and two vaults that use it.
fn shared() -> Place {
    let place = Place::new();
    assert_eq!(place.run(&format!("keystore init {KEY} keys")), done());
    for vault in ["vault", "second"] {
        assert_eq!(place.run(&format!("init --keystore keys {KEY} {vault}")), done());
        assert!(!place.path(vault).join("keystore.hush").exists());
    }
    place
}

#[test]
fn a_keystore_is_made_where_none_is() {
    let place = shared();
    place.refused(&format!("keystore init {KEY} keys"), 1, "keys: is a keystore already");
    place.refused(&format!("keystore init {KEY} vault"), 1, "vault: is a vault already");
    place.refused(
        &format!("key list --keystore none {KEY}"),
        4,
        "none: no keystore (keystore.hush) there: name a vault or --keystore, or make one with `hushfs keystore init`",
    );
    place.refused(
        &format!("ls {KEY} vault"),
        4,
        "vault: no keystore.hush in it: name the keystore with --keystore, wait for the sync tool to finish, or put it back from a backup",
    );
    assert_eq!(
        place.run(&format!("init --key alias/x {KEY} more")).code,
        2,
        "--key needs --keystore"
    );
    place.refused(
        &format!("init --keystore keys --key alias/x {KEY} more"),
        10,
        "NotFoundException: no alias \"alias/x\" in this keystore",
    );
    assert!(!place.path("more").exists());
    assert_eq!(
        place
            .run(&format!("init --keystore keys --kdf-time 1s {KEY} more"))
            .code,
        2
    );
    assert!(place.run("info vault").out.contains("keystore    elsewhere\n"));
    let reserved = place.run(&format!("init --keystore keys --context hushfs:vault=x {KEY} more"));
    assert_eq!(
        reserved,
        given(
            2,
            "",
            "hushfs: names in an encryption context must not start with hushfs:\n"
        )
    );
}

#[test]
fn who_was_shared_with_twice_may_give_either_code_and_no_other_s() {
    let place = Place::with_vault();
    place.fill();
    let share = |identity: &str, name: &str| {
        let shown = place.run(&format!("recipient show {identity}"));
        place.write("recipient", shown.out.as_bytes());
        let shared = place.run(&format!("share add --name {name} {KEY} vault recipient"));
        assert_eq!(shared.code, 0, "{}", shared.err);
        shared.out.trim().to_owned()
    };
    for identity in ["ada", "bob"] {
        assert_eq!(place.run(&format!("recipient generate {identity}")).code, 0);
    }
    let codes = [share("bob", "b1"), share("bob", "b2"), share("ada", "a")];
    let listed = |options: &str| place.run(&format!("ls {options}--identity bob vault"));
    let [first, second, other] = &codes;
    let all = given(0, "a\ndir\nlink\n", "");
    for options in [
        format!("--share-code {first} "),
        format!("--share-code {second} "),
        format!("--slot b2 --share-code {second} "),
    ] {
        assert_eq!(listed(&options), all, "{options}");
    }
    for options in [
        format!("--share-code {other} "),
        format!("--slot b2 --share-code {first} "),
    ] {
        let refused = listed(&options);
        assert_eq!(refused.code, 4, "{options}");
        assert!(refused.err.starts_with("hushfs: the vault has another share code: "));
    }
    let compare = |codes: String| format!("whether the share code is {codes}, then give it with --share-code\n");
    let unasked = listed("");
    assert!(
        unasked.err.ends_with(&compare(format!("{first} or {second}"))),
        "{}",
        unasked.err
    );
    assert!(listed("--slot b2 ").err.ends_with(&compare(second.clone())));
}

#[test]
fn the_keystore_of_a_vault_is_used_with_that_vault_only() {
    let place = Place::with_vault();
    place.write("policy", b"{}");
    for command in [
        "mount --audit per-file --keystore vault --key-file key vault pass",
        "mount --audit per-file -o keystore=vault,key-file=key vault pass",
        "ls --keystore vault --key-file key vault",
        "agent --foreground --socket socket --keystore vault --key-file key",
        "init --keystore vault --key-file key second",
        "key create --keystore vault --key-file key",
        "key policy set --file policy --keystore vault --key-file key alias/hushfs/default",
        "slot test --keystore vault --key-file key",
        "keystore audit on --keystore vault --key-file key",
        "audit show --keystore vault",
        "seal --keystore vault --key alias/hushfs/default --key-file key pass",
    ] {
        place.refused(
            command,
            2,
            "vault: is a vault: --keystore names a keystore outside vaults, and without it a vault's own one is used",
        );
    }
    assert!(!place.path("pass.hush").exists());
    assert_eq!(place.run("key list --key-file key vault").code, 0);
}

#[test]
fn a_key_that_is_not_in_the_keystore_may_be_a_damaged_vault_header() {
    let place = Place::with_vault();
    let keys = place.json(&format!("key list --json {KEY} vault"));
    let id = keys["keys"][0]["id"].as_str().unwrap();
    let id = data_encoding::HEXLOWER.decode(id.as_bytes()).unwrap();
    place.damage("vault/vault.hush", |bytes| {
        let at = bytes.windows(id.len()).position(|window| window == id).unwrap();
        bytes[at] ^= 1;
    });
    let refused = place.run(&format!("ls {KEY} vault"));
    assert_eq!(refused.code, 10);
    assert!(
        refused.err.ends_with(
            " is not in this keystore: it was deleted, another keystore is meant (--keystore), or vault.hush is damaged\n"
        ),
        "{}",
        refused.err
    );
}

#[test]
fn the_default_keystore_serves_vaults_without_one() {
    let place = Place::new();
    assert_eq!(place.run(&format!("keystore init {KEY}")), done());
    assert!(place.path(".config/hushfs/keystore/keystore.hush").exists());
    let keystore = place.path(".config/hushfs/keystore");
    let init = format!("init --keystore {} {KEY} vault", keystore.display());
    assert_eq!(place.run(&init), done());
    place.fill_with(Some(&keystore));
    assert_eq!(place.run(&format!("cat {KEY} vault a")), given(0, "hello\n", ""));
    assert_eq!(place.run(&format!("key list {KEY}")).code, 0);
    assert_eq!(place.run(&format!("slot list {KEY}")).code, 0);
    let mut elsewhere = place.command(&["key", "list", "--key-file", "key"]);
    elsewhere.env("XDG_CONFIG_HOME", place.path("vault"));
    assert_eq!(place.run_with(&mut elsewhere).code, 4);
    let mut nowhere = place.command(&["key", "list", "--key-file", "key"]);
    nowhere.env_remove("HOME");
    assert_eq!(
        place.run_with(&mut nowhere),
        given(
            2,
            "",
            "hushfs: no keystore: name a vault or --keystore, for there is no home directory to look in\n"
        )
    );
}

#[test]
fn what_happens_to_a_key_happens_to_all_its_vaults() {
    let place = shared();
    let id = place.create_key("--keystore keys --alias alias/mail");
    for vault in ["vault", "second"] {
        let set = place.run(&format!(
            "vault encryption set --keystore keys {KEY} --key alias/mail {vault}"
        ));
        assert_eq!(
            set,
            given(
                0,
                "",
                "hushfs: new files use epoch 2; `hushfs rewrap` moves the others to it\n"
            )
        );
    }
    let usage = normal(&place.run(&format!("key usage --keystore keys {KEY} alias/mail")).out);
    assert!(usage.starts_with("last use: "), "{usage}");
    for vault in ["vault", "second"] {
        let path = place.path(vault);
        let line = format!(
            "vault ID ({}) needs it for 1 epoch, 1 of them open with it alone, last opened TIME",
            path.canonicalize().unwrap().display()
        );
        assert!(usage.lines().any(|one| one == line), "{usage}");
    }

    assert_eq!(
        place.run(&format!("key disable --keystore keys {KEY} alias/mail")),
        done()
    );
    for vault in ["vault", "second"] {
        place.refused(
            &format!("ls --keystore keys {KEY} {vault}"),
            10,
            &format!(
                "DisabledException: the vault's key cannot be used: key {id} is disabled: enable it with `hushfs key enable`"
            ),
        );
    }
    let deleted = place.run(&format!("key delete --keystore keys {KEY} alias/mail"));
    assert_eq!(
        deleted.err.matches("hushfs: warning: vault ").count(),
        2,
        "{}",
        deleted.err
    );
    place.refused(
        &format!("ls --keystore keys {KEY} vault"),
        10,
        &format!(
            "KMSInvalidStateException: the vault's key cannot be used: key {id} is pending deletion: \
             keep it with `hushfs key undelete`, then enable it"
        ),
    );
    for command in ["undelete", "enable"] {
        let got = place.run(&format!("key {command} --keystore keys {KEY} alias/mail"));
        assert_eq!(got.code, 0, "{}", got.err);
    }
    assert_eq!(place.run(&format!("ls --keystore keys {KEY} vault")), done());
}

#[test]
fn a_vault_catches_up_with_its_keystore_when_it_is_opened_for_writing() {
    let place = shared();
    place.create_key("--keystore keys --alias alias/mail");
    for vault in ["vault", "second"] {
        place.run(&format!(
            "vault encryption set --keystore keys {KEY} --key alias/mail {vault}"
        ));
    }
    let epoch = |vault: &str| place.json(&format!("info --json {vault}"))["current_epoch"].clone();
    let rotated = place.run(&format!("key rotate --keystore keys {KEY} vault alias/mail"));
    assert_eq!(rotated.code, 0);
    assert!(
        rotated
            .err
            .ends_with("hushfs: new files use epoch 3; `hushfs rewrap` moves the others to it\n")
    );
    assert_eq!((epoch("vault"), epoch("second")), (3.into(), 2.into()));
    assert_eq!(place.run(&format!("ls --keystore keys {KEY} second")), done());
    assert_eq!(epoch("second"), 2, "reading changes nothing");
    let rewrap = place.run(&format!("rewrap --retire --keystore keys {KEY} second"));
    assert_eq!(
        rewrap.err,
        "hushfs: completed a change of keys\nhushfs: 0 headers moved to epoch 3, 0 of it already\nhushfs: 2 epochs retired\n"
    );
    assert_eq!(epoch("second"), 3);

    let added = place.run(&format!(
        "slot add --keystore keys {KEY} --new-key-file stick --generate --name stick"
    ));
    assert_eq!(added, done());
    let removed = place.run(&format!("slot remove --keystore keys {KEY} stick"));
    assert_eq!(
        removed,
        given(
            0,
            "",
            "\
hushfs: removed slot 2 \"stick\", key file
hushfs: 2 keys with a new version; a vault uses it for new files from its next mount on
"
        )
    );
    place.run(&format!("rewrap --keystore keys {KEY} second"));
    assert_eq!((epoch("vault"), epoch("second")), (3.into(), 4.into()));
}

#[test]
fn epochs_of_several_keys_fail_one_by_one() {
    let place = Place::with_vault();
    let old = place.create_key("--alias alias/old vault");
    let new = place.create_key("--alias alias/new vault");
    assert_eq!(
        place
            .run(&format!("vault encryption set {KEY} --key alias/old vault"))
            .code,
        0
    );
    place.fill();
    let set = format!("vault encryption set {KEY} --key alias/new --context team=blue vault");
    assert_eq!(place.run(&set).code, 0);
    place.fill_more("b", b"new\n");
    let shown = normal(&place.run(&format!("vault encryption show {KEY} vault")).out);
    assert_eq!(
        shown,
        "\
epoch 3 (current), TIME
  key ID enabled, 1 version, alias/new
  context team=blue
epoch 2, TIME
  key ID enabled, 1 version, alias/old
epoch 1, TIME
  key ID enabled, 1 version, alias/hushfs/default
"
    );
    assert_eq!(place.run(&format!("key disable {KEY} vault alias/old")), done());
    let warned = |text: &str| {
        text.contains(&format!(
            "epoch 2 is left out, its files do not open: key {old} is disabled"
        ))
    };
    let cat = place.run(&format!("cat {KEY} vault a"));
    assert_eq!((cat.code, cat.out.as_str()), (10, ""));
    assert!(warned(&cat.err), "{}", cat.err);
    assert!(
        cat.err.ends_with(&format!(
            ": its header is of epoch 2: key {old} is disabled: enable it with `hushfs key enable`\n"
        )),
        "{}",
        cat.err
    );
    let rewrap = place.run(&format!("rewrap {KEY} --vault-key vault a"));
    assert_eq!(rewrap.code, 9, "{}", rewrap.err);
    let named = rewrap.err.lines().find(|line| line.starts_with("hushfs: a ("));
    assert!(
        named.is_some_and(|line| line.ends_with(&format!(".hush): its header is of epoch 2: key {old} is disabled"))),
        "{}",
        rewrap.err
    );
    let cat = place.run(&format!("cat {KEY} vault b"));
    assert_eq!((cat.code, cat.out.as_str()), (0, "new\n"));
    let json = place.json(&format!("vault encryption show --json {KEY} vault"));
    assert_eq!(json["epochs"][1]["usable"], false);
    assert_eq!(json["epochs"][2]["wraps"][0]["context"]["team"], "blue");
    assert_eq!(json["epochs"][2]["wraps"][0]["key"], new);

    // A rewrap gets files away from a key, once that can be used for it.
    assert_eq!(place.run(&format!("rewrap --retire {KEY} vault")).code, 9);
    place.run(&format!("key enable {KEY} vault alias/old"));
    assert_eq!(place.run(&format!("rewrap --retire {KEY} vault")).code, 0);
    let deleted = place.run(&format!("key delete {KEY} vault alias/old"));
    assert!(!deleted.err.contains("warning"), "{}", deleted.err);
    assert_eq!(place.run(&format!("cat {KEY} vault a")), given(0, "hello\n", ""));
    let usage = normal(&place.run(&format!("key usage {KEY} vault alias/new")).out);
    assert!(
        usage.contains("vault ID needs it for 1 epoch, 1 of them open with it alone, 3 files on TIME"),
        "{usage}"
    );
    let none = place.run(&format!("key usage {KEY} vault alias/old")).out;
    assert!(none.contains("no vault is known to need it"), "{none}");
}

#[test]
fn a_policy_is_set_shown_and_obeyed() {
    let place = Place::with_vault();
    let id = place.create_key("vault");
    place.run(&format!(
        "vault encryption set {KEY} --key {id} --context team=blue vault"
    ));
    let default = place.run(&format!("key policy show {KEY} vault {id}")).out;
    place.write("default", default.as_bytes());
    assert_eq!(
        place.run(&format!("key policy set --file default {KEY} vault {id}")),
        done()
    );
    let statement = |sid: &str, rest: &str| format!(r#"{{"Sid": "{sid}", "Resource": "*", {rest}}}"#);
    let admin = statement(
        "admin",
        r#""Effect": "Allow", "Principal": "*", "Action": ["kms:*Key*", "kms:Enc*"]"#,
    );
    let blue = statement(
        "blue",
        r#""Effect": "Allow", "Principal": {"role": "key file"}, "Action": "kms:Decrypt",
           "Condition": {"StringEquals": {"kms:EncryptionContext:team": "blue"}}"#,
    );
    let red = blue.replace("\"blue\"}}", "\"red\"}}");
    place.write("blue.json", format!(r#"{{"Statement": [{admin}, {blue}]}}"#).as_bytes());
    place.write("red.json", format!(r#"{{"Statement": [{admin}, {red}]}}"#).as_bytes());
    let set = |file: &str| place.run(&format!("key policy set --file {file} {KEY} vault {id}"));
    assert_eq!(set("blue.json"), done());
    assert_eq!(place.run(&format!("ls {KEY} vault")), done());
    assert_eq!(set("red.json"), done());
    let uid = rustix::process::geteuid().as_raw();
    place.refused(
        &format!("ls {KEY} vault"),
        10,
        &format!(
            "AccessDeniedException: the vault's key cannot be used: user {uid} is not authorized to perform kms:Decrypt on \
             key {id} because no statement of its policy allows it"
        ),
    );
    assert!(
        place
            .run(&format!("key policy show {KEY} vault {id}"))
            .out
            .contains("red")
    );
    place.write("locked.json", format!(r#"{{"Statement": [{blue}]}}"#).as_bytes());
    assert_eq!(
        set("locked.json"),
        given(
            2,
            "",
            &format!(
                "hushfs: MalformedPolicyDocumentException: under that policy you could not change the policy of key {id} again: \
                 allow yourself kms:PutKeyPolicy\n"
            )
        )
    );
    place.write(
        "wrong.json",
        br#"{"Statement": [{"Effect": "Allow", "Principal": "*", "NotAction": "*"}]}"#,
    );
    let wrong = set("wrong.json");
    assert_eq!(
        (wrong.code, wrong.err.as_str()),
        (
            2,
            format!(
                "hushfs: MalformedPolicyDocumentException: key {id}: statement 1 of the policy: an element of another name is missing, wrong or not supported\n"
            )
            .as_str()
        )
    );
    place.write("empty.json", b"\n");
    assert_eq!(
        set("empty.json"),
        given(
            2,
            "",
            "hushfs: empty.json: no policy in it: `--default` sets the default one\n"
        )
    );
    let locked = format!("key policy set --file locked.json --bypass-policy-lockout-safety-check {KEY} vault {id}");
    assert_eq!(place.run(&locked), done());
    assert_eq!(
        place.run(&format!("key policy set --default {KEY} vault {id}")).code,
        10
    );
}

#[test]
fn a_keystore_that_is_being_changed_is_waited_for() {
    let place = shared();
    let held = Dir::open(&place.path("keys")).unwrap();
    held.lock(false).unwrap();
    let start = std::time::Instant::now();
    let release = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        drop(held);
    });
    place.create_key("--keystore keys");
    assert!(start.elapsed() >= std::time::Duration::from_millis(250));
    release.join().unwrap();
    let held = Dir::open(&place.path("keys")).unwrap();
    held.lock(false).unwrap();
    assert_eq!(
        place.run(&format!("ls --keystore keys {KEY} vault")),
        done(),
        "readers do not wait"
    );
    assert!(Path::new(&place.path("keys/keystore.hush")).exists());
}

#[test]
fn the_old_names_of_the_commands_of_slots_still_work() {
    let place = Place::with_vault();
    let added = place.run(&format!(
        "key add {KEY} --new-key-file stick --generate --name stick vault"
    ));
    assert_eq!(added, done());
    assert_eq!(place.run(&format!("key remove {KEY} vault stick")).code, 0);
}

#[test]
fn files_and_directories_have_keys_of_their_own() {
    let place = Place::with_vault();
    place.fill();
    let id = place.create_key("--alias alias/mail vault");
    // Found without a mount; the vault stays as an older hushfs reads it until a second key is used.
    assert_eq!(fs::read(place.path("vault/vault.hush")).unwrap()[8], 1);
    assert_eq!(
        place.run(&format!("vault encryption set {KEY} --key alias/mail vault dir")),
        given(
            0,
            "",
            "hushfs: new files there use epoch 2; `hushfs rewrap --key` gives the key to those that are there\n"
        )
    );
    assert_eq!(fs::read(place.path("vault/vault.hush")).unwrap()[8], 2);
    assert_eq!(
        normal(&place.run(&format!("vault encryption show {KEY} vault")).out),
        "\
epoch 3 (current), TIME
  key ID enabled, 1 version, alias/hushfs/default
epoch 2 (current of its key), TIME
  key ID enabled, 1 version, alias/mail
epoch 1, TIME
  key ID enabled, 1 version, alias/hushfs/default
directory dir
  key ID enabled, 1 version, alias/mail
"
    );
    let of_directory = |path: &str| normal(&place.run(&format!("vault encryption show {KEY} vault {path}")).out);
    assert_eq!(
        of_directory("dir"),
        "new files get SSE-KMS, key ID enabled, 1 version, alias/mail, epoch 2; set here\n"
    );
    assert_eq!(
        of_directory("/"),
        "new files get SSE-S3, key ID enabled, 1 version, alias/hushfs/default, epoch 3; not set here\n"
    );
    let json = place.json(&format!("vault encryption show --json {KEY} vault"));
    assert_eq!(json["keys"][0]["key"], id.as_str());
    assert_eq!(
        (&json["directories"][0]["path"], &json["directories"][0]["key"]),
        (&"dir".into(), &id.into())
    );
    assert_eq!(
        place.run(&format!("rewrap {KEY} --key alias/mail vault dir link")),
        given(0, "", "hushfs: 1 header moved to epoch 2, 0 of it already\n")
    );
    assert_eq!(
        normal(&place.run(&format!("file info {KEY} vault dir/b")).out),
        "\
file     ID
state    sealed
size     10000 bytes
model    SSE-KMS, bucket key on
key      ID enabled, 1 version, alias/mail
epoch    2
version  1
suite    aes-256-gcm-siv
"
    );
    assert_eq!(
        place.json(&format!("file info --json {KEY} vault a"))["model"],
        "SSE-S3"
    );
    assert_eq!(
        place.run(&format!("rewrap {KEY} vault")),
        given(
            0,
            "",
            "hushfs: 1 header moved to the newest epoch of their key, 1 of it already\n"
        )
    );
    let usage = place.json(&format!("key usage --json {KEY} vault alias/mail"));
    assert_eq!(usage["vaults"][0]["epochs"], 1);

    // What cannot be is refused.
    let set = format!("vault encryption set {KEY} --key alias/mail vault");
    place.refused(
        &format!("{set} a"),
        2,
        "a: not a directory: `hushfs rewrap --key` gives a file another key",
    );
    place.refused(&format!("{set} none"), 1, "none: No such file or directory");
    assert_eq!(place.run(&format!("rewrap {KEY} --retire vault dir")).code, 2);
    assert_eq!(
        place
            .run(&format!("rewrap {KEY} --key alias/mail --vault-key vault"))
            .code,
        2
    );
    place.refused(&format!("file info {KEY} vault dir"), 1, "dir: Is a directory");
    place.refused(&format!("file info {KEY} vault link"), 1, "link: not a regular file");
    assert_eq!(place.run(&format!("rewrap {KEY} --key alias/none vault dir")).code, 10);

    // The key goes with the last file and directory that have it.
    assert_eq!(place.run(&format!("vault encryption unset {KEY} --gone vault")).code, 0);
    assert_eq!(
        place.run(&format!("vault encryption unset {KEY} vault dir")),
        given(0, "", "hushfs: 1 directory had a key of its own; files keep theirs\n")
    );
    assert_eq!(place.run(&format!("rewrap {KEY} --vault-key --retire vault")).code, 0);
    assert_eq!(fs::read(place.path("vault/vault.hush")).unwrap()[8], 1);
    let usage = place.json(&format!("key usage --json {KEY} vault alias/mail"));
    assert_eq!(usage["vaults"].as_array().map(Vec::len), Some(0));
}

#[test]
fn bucket_keys_are_on_or_off_for_a_vault_a_directory_and_files() {
    let place = Place::with_vault();
    place.fill();
    place.create_key("--alias alias/mail vault");
    place.refused(
        &format!("vault bucket-key off {KEY} vault dir"),
        1,
        "the directory has no key of its own: give it one with `hushfs vault encryption set --key KEY --bucket-key on|off`",
    );
    assert_eq!(
        place
            .run(&format!(
                "vault encryption set {KEY} --key alias/mail --bucket-key off vault dir"
            ))
            .code,
        0
    );
    let of_directory = |path: &str| normal(&place.run(&format!("vault encryption show {KEY} vault {path}")).out);
    assert_eq!(
        of_directory("dir"),
        "new files get SSE-KMS with bucket key off, key ID enabled, 1 version, alias/mail, epoch 2; set here\n"
    );
    let json = place.json(&format!("vault encryption show --json {KEY} vault"));
    assert_eq!(
        (&json["bucket_key"], &json["directories"][0]["bucket_key"]),
        (&true.into(), &false.into())
    );
    assert!(
        place
            .run(&format!("vault encryption show {KEY} vault"))
            .out
            .ends_with(", bucket key off\n")
    );
    // Setting the key again leaves it; the directory is told by itself too.
    assert_eq!(
        place
            .run(&format!("vault encryption set {KEY} --key alias/mail vault dir"))
            .code,
        0
    );
    assert!(of_directory("dir").contains("bucket key off"));
    assert_eq!(place.run(&format!("vault bucket-key on {KEY} vault dir")).code, 0);
    assert!(!of_directory("dir").contains("bucket key off"));
    assert_eq!(
        place.run(&format!("vault bucket-key off {KEY} vault")),
        given(
            0,
            "",
            "hushfs: new files use epoch 7 without a bucket key; `hushfs rewrap --bucket-key off` changes those that are there\n"
        )
    );

    let info = |path: &str| place.json(&format!("file info --json {KEY} vault {path}"));
    assert_eq!(info("dir/b")["bucket_key"], Value::Null);
    assert_eq!(
        place
            .run(&format!("rewrap {KEY} --key alias/mail --bucket-key off vault dir"))
            .err,
        "hushfs: 1 header moved to epoch 5, 0 of it already\n"
    );
    let of_file = info("dir/b");
    assert_eq!(
        (&of_file["bucket_key"], &of_file["model"], &of_file["authenticated"]),
        (&false.into(), &"SSE-KMS".into(), &true.into())
    );
    assert_eq!((&of_file["key_version"], &of_file["epoch"]), (&1.into(), &5.into()));
    // A new version of the key is one that rewrap moves to, form and all.
    assert_eq!(place.run(&format!("key rotate {KEY} vault alias/mail")).code, 0);
    assert_eq!(place.run(&format!("rewrap {KEY} vault")).code, 0);
    let of_file = info("dir/b");
    assert_eq!(
        (&of_file["bucket_key"], &of_file["key_version"]),
        (&false.into(), &2.into())
    );
    for command in ["verify", "fsck"] {
        assert_eq!(place.run(&format!("{command} {KEY} vault")).code, 0, "{command}");
    }
    assert_eq!(place.run(&format!("rewrap {KEY} --bucket-key off vault a")).code, 0);
    let own = place.run(&format!("file info {KEY} vault a")).out;
    assert!(own.contains("model    SSE-S3, bucket key off\n"), "{own}");

    // A disabled key takes its file along, and rewrap says which.
    assert_eq!(place.run(&format!("key disable {KEY} vault alias/mail")).code, 0);
    let refused = info("dir/b");
    assert_eq!(
        (&refused["authenticated"], &refused["key_state"]),
        (&false.into(), &"disabled".into())
    );
    assert_eq!(
        place
            .run(&format!("rewrap {KEY} --vault-key --bucket-key on vault"))
            .code,
        9
    );
    assert_eq!(place.run(&format!("key enable {KEY} vault alias/mail")).code, 0);
    assert_eq!(place.run(&format!("rekey {KEY} vault dir/b")).code, 0);
    assert_eq!(info("dir/b")["bucket_key"], false);

    // Back, and an older hushfs reads the vault again.
    assert_eq!(place.run(&format!("vault encryption unset {KEY} vault dir")).code, 0);
    assert_eq!(place.run(&format!("vault bucket-key on {KEY} vault")).code, 0);
    let back = format!("rewrap {KEY} --vault-key --bucket-key on --retire vault");
    assert_eq!(place.run(&back).code, 0);
    let header = fs::read(place.path("vault/vault.hush")).unwrap();
    let header = UnverifiedVaultHeader::decode(&header).unwrap();
    assert_eq!(
        (header.claims().version(), header.claims().bucket_keys_off()),
        (1, None)
    );
    assert_eq!(place.run(&format!("verify {KEY} vault")).code, 0);
}

#[test]
fn files_that_were_asked_for_in_vain_are_left_as_they_are() {
    let place = Place::with_vault();
    place.fill();
    place.create_key("--alias alias/files vault");
    for command in [
        format!("vault encryption set {KEY} --key alias/files --bucket-key off vault dir"),
        format!("rewrap {KEY} --key alias/files --bucket-key off vault dir"),
        format!("snapshot {KEY} -o before vault"),
        format!("key disable {KEY} vault alias/files"),
    ] {
        let got = place.run(&command);
        assert_eq!(got.code, 0, "{command}: {}", got.err);
    }
    let before = files_below(&place.path("vault"));
    // None of these knows how the file is, and says so; it is not damaged.
    let found = |command: &str| {
        let got = place.run(&format!("{command} --json {KEY} vault"));
        let lines = got.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let found: Vec<_> = lines
            .filter_map(|line| Some((line["path"].as_str()?.to_owned(), line["code"].as_str()?.to_owned())))
            .collect();
        (got.code, found)
    };
    let closed = [("dir/b".to_owned(), "key".to_owned())];
    for command in ["fsck", "fsck --repair", "verify"] {
        let (code, codes) = found(command);
        assert_eq!((code, &codes[..]), (8, &closed[..]), "{command}");
    }
    assert!(files_below(&place.path("vault")) == before);
    let rekeyed = place.run(&format!("rekey {KEY} vault dir/b"));
    assert_eq!(rekeyed.code, 10);
    assert!(rekeyed.err.contains("hushfs: dir/b: "), "{}", rekeyed.err);
    assert!(files_below(&place.path("vault")) == before);

    assert_eq!(place.run(&format!("key enable {KEY} vault alias/files")).code, 0);
    assert_eq!(found("fsck"), (0, Vec::new()));
    let verified = place.run(&format!("verify {KEY} --against before vault"));
    assert_eq!(verified.code, 0, "{}{}", verified.out, verified.err);
    // What whoever has the key rejects is damage.
    let header = before
        .keys()
        .find(|path| path.parent() != Some(&place.path("vault")) && path.extension().is_some())
        .unwrap();
    let mut bytes = before[header].clone();
    bytes[120] ^= 1;
    fs::write(header, bytes).unwrap();
    for command in ["fsck", "verify"] {
        let (code, codes) = found(command);
        assert_eq!(
            (code, codes),
            (4, vec![("dir/b".to_owned(), "header".to_owned())]),
            "{command}"
        );
    }
}

/// Returns the files below a vault's directory, but for its keystore, which notes when it is used.
fn files_below(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else if path.is_file() && !path.ends_with("keystore.hush") {
            files.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    files
}

#[test]
fn customer_keys_come_and_go() {
    let place = Place::with_vault();
    place.fill();
    place.write("theirs", &[9; 32]);
    place.write("other", &[8; 32]);
    place.write("short", &[9; 31]);
    place.write("line", &[[9; 32].as_slice(), b"\n"].concat());
    place.refused(
        &format!("ls {KEY} --customer-key theirs vault"),
        10,
        "the vault takes no customer keys: `hushfs vault customer-key add` allows one",
    );
    let added = place.run(&format!("vault customer-key add {KEY} --new-customer-key theirs vault"));
    assert_eq!((added.code, normal(&added.out).as_str()), (0, "ID\n"), "{}", added.err);
    assert_eq!(
        place.run(&format!("ls {KEY} --customer-key theirs vault")).out,
        "a\ndir\nlink\n"
    );
    place.refused(
        &format!("ls {KEY} --customer-key other vault"),
        3,
        "wrong customer key: `hushfs vault encryption show` lists those that the vault takes",
    );
    let by_descriptor = |file: &str| {
        let mut command = place.command(&["ls", "--key-file", "key", "--customer-key-fd", "0", "vault"]);
        command.stdin(fs::File::open(place.path(file)).unwrap());
        place.run_with(&mut command)
    };
    assert_eq!(by_descriptor("theirs").out, "a\ndir\nlink\n");
    assert_eq!(by_descriptor("other").code, 3);
    assert_eq!(
        by_descriptor("short"),
        given(1, "", "hushfs: file descriptor 0: failed to fill whole buffer\n")
    );
    for wrong in ["short", "line"] {
        place.refused(
            &format!("ls {KEY} --customer-key {wrong} vault"),
            3,
            &format!("{wrong}: not a customer key: it has 32 bytes and nothing else"),
        );
    }
    let generate = format!("vault customer-key add {KEY} --generate --new-customer-key");
    assert_eq!(place.run(&format!("{generate} theirs vault")).code, 1);
    assert_eq!(place.run(&format!("{generate} made vault")).code, 0);
    assert_eq!(fs::read(place.path("made")).unwrap().len(), 32);
    place.refused(
        &format!("vault customer-key remove {KEY} vault x"),
        2,
        "\"x\": not the id of a key: it has 32 hexadecimal digits",
    );
    let id = added.out.trim_end();
    assert_eq!(
        place.run(&format!("vault customer-key remove {KEY} vault {id}")),
        done()
    );
    assert_eq!(
        place.run(&format!("vault customer-key remove {KEY} vault {id}")).code,
        10
    );
}

#[test]
fn files_are_encrypted_again_and_stay_what_they_were() {
    let place = Place::with_vault();
    place.fill();
    place.with_fs(None, |fs, caller| {
        let at = |name: &'static [u8]| NameIn { parent: ROOT, name };
        let sparse = fs.create(at(b"sparse"), 0o600, caller).unwrap().node.id;
        fs.write(sparse, 100_000, b"far").unwrap();
        fs.release(sparse);
        let a = fs.look_up(ROOT, b"a").unwrap().node.id;
        fs.set_xattr(a, b"user.colour", b"red", 0, caller).unwrap();
        // What a kill leaves.
        let left = fs.create(at(b".hushfs-rekey"), 0o600, caller).unwrap().node.id;
        fs.write(left, 0, b"half").unwrap();
        fs.release(left);
    });
    let list = || {
        let listed = place.run(&format!("ls {KEY} -l vault / /dir")).out;
        // The times of directories are those of the names in them, which come and go.
        let lines = listed
            .lines()
            .filter(|line| !line.ends_with(".hushfs-rekey") && !line.starts_with('d'));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = list();
    let data = fs::read(place.path("vault").join(place.data_file("vault"))).unwrap();
    assert_eq!(
        place.run(&format!("rekey --keep-times {KEY} vault /")),
        given(
            0,
            "",
            "hushfs: 3 files encrypted again under new keys, with sizes and times as before: mirror the vault by content now (rsync --checksum, \
             rclone --checksum); by sizes and times a mirror keeps the old contents, without their headers, and cannot be read\n"
        )
    );
    assert_eq!(list(), before);
    assert!(!place.run(&format!("ls {KEY} vault")).out.contains("rekey"));
    assert_eq!(place.run(&format!("cat {KEY} vault a")).out, "hello\n");
    assert!(place.run(&format!("cat {KEY} vault sparse")).out.ends_with("\0far"));
    assert_eq!(place.run(&format!("verify {KEY} vault")).code, 0);
    assert_eq!(place.run(&format!("fsck {KEY} vault")).code, 0);
    let is_as_before = |path: PathBuf| path.is_file() && fs::read(path).unwrap() == data;
    assert!(
        !fs::read_dir(place.path("vault"))
            .unwrap()
            .any(|entry| is_as_before(entry.unwrap().path()))
    );
    place.with_fs(None, |fs, _| {
        let a = fs.look_up(ROOT, b"a").unwrap().node.id;
        assert_eq!(fs.get_xattr(a, b"user.colour").unwrap(), b"red");
        fs.link(
            a,
            NameIn {
                parent: ROOT,
                name: b"again",
            },
        )
        .unwrap();
    });
    let refused = "has several names: copy it, and link the copy under the other names";
    assert_eq!(
        place.run(&format!("rekey {KEY} vault a dir")),
        given(
            1,
            "",
            &format!(
                "hushfs: a: {refused}\nhushfs: 1 file encrypted again under new keys, their times set 2 seconds later: who mirrors the vault by sizes \
                 and times sees the change\nhushfs: 1 file not encrypted again, see above\n"
            )
        )
    );
}

#[test]
fn who_mirrors_a_vault_by_sizes_and_times_sees_that_files_were_encrypted_again() {
    let place = Place::with_vault();
    place.fill();
    // What rsync and rclone compare, of all that they would bring: the name on disk, the size, and whole seconds.
    let seen = || {
        let mut seen = BTreeMap::new();
        let mut waiting = vec![place.path("vault")];
        while let Some(directory) = waiting.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let (path, stat) = entry.map(|entry| (entry.path(), entry.metadata().unwrap())).unwrap();
                if stat.is_dir() {
                    waiting.push(path);
                } else if stat.is_file() {
                    seen.insert(path, (stat.size(), stat.mtime()));
                }
            }
        }
        seen
    };
    let is_data = |path: &Path| path.extension().is_none() && path.file_name().unwrap().len() > 40;
    let before = seen();
    assert_eq!(place.run(&format!("rekey {KEY} vault /")).code, 0);
    let after = seen();
    let mut compared = 0;
    for (path, (size, seconds)) in before.iter().filter(|(path, _)| is_data(path)) {
        assert_eq!(after[path], (*size, seconds + 2), "{}", path.display());
        compared += 1;
    }
    assert_eq!(compared, 2);
}
