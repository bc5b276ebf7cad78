//! Vaults of earlier versions still open: tests/format/frozen/README.md says what is in them.

use std::{fs, os::unix::ffi::OsStrExt, path::Path, process::Command};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{
    fixed::{here, python},
    support::HUSHFS,
};

const PASSPHRASE: &str = "correct horse battery staple";
const RECOVERY_KEY: &str = "HUSH1-6TDZ79A8-63QVYEHG-W7RXG6J9-Y3DSCNDN-YBZAK08Y-ZVH6XAFA-84P61VFC-N1PCARK6";
const RECOVERY_KEY_2: &str = "HUSH1-9H61AK86-3JXSQ77Y-GQFG3ENG-S83WCYZ2-0WG6E19Q-2SMBV4Y3-N85F1VEB-SDYVW8AJ";
const ROOT: &str = "d6bfbd0147efc54645fee6e2c6d0efd31a55216a79cd6c9559a58668db1c6822";
const ROOT_XCHACHA: &str = "6f0ccd1e11ad69cc14de46f77f69fcd5634f00930ce7eb8fd691f06712d3aeab";

/// A frozen vault, unpacked.
struct Frozen {
    name: &'static str,
    dir: TempDir,
}

impl Frozen {
    fn unpack(name: &'static str) -> Self {
        let dir = TempDir::new().unwrap();
        let vault = dir.path().join("vault");
        fs::create_dir(&vault).unwrap();
        let status = Command::new("tar")
            .args(["--xattrs", "--xattrs-include=user.*", "-xf"])
            .arg(here().join(format!("frozen/{name}.tar")))
            .arg("-C")
            .arg(&vault)
            .status()
            .unwrap();
        assert!(status.success());
        fs::write(dir.path().join("passphrase"), PASSPHRASE).unwrap();
        let recovery = if name == "v2" { RECOVERY_KEY_2 } else { RECOVERY_KEY };
        fs::write(dir.path().join("recovery"), recovery).unwrap();
        Frozen { name, dir }
    }

    fn known(&self) -> Value {
        serde_json::from_slice(&fs::read(here().join(format!("frozen/{}.json", self.name))).unwrap()).unwrap()
    }

    /// Runs hushfs on the vault in its directory, where the files with secrets are.
    fn run(&self, subcommand: &[&str], secret: &[&str], rest: &[&str]) -> Vec<u8> {
        let output = Command::new(HUSHFS)
            .args(subcommand)
            .args(secret)
            .arg("vault")
            .args(rest)
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{subcommand:?} {secret:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    /// What hushfs gives for all that is in the vault.
    fn listing(&self, secret: &[&str]) -> Value {
        let out = self.dir.path().join("out");
        self.run(&["export"], secret, &["/", "out"]);
        let mut entries = Vec::new();
        list(&out, &out, &mut entries);
        fs::remove_dir_all(out).unwrap();
        entries.sort_by_key(|entry| entry["path"].as_str().unwrap().to_owned());
        Value::Array(entries)
    }
}

fn list(root: &Path, at: &Path, out: &mut Vec<Value>) {
    for path in fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()) {
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        let mut entry = json!({ "path": encoded(path.strip_prefix(root).unwrap().as_os_str().as_bytes()) });
        if kind.is_dir() {
            entry["type"] = "directory".into();
            list(root, &path, out);
        } else if kind.is_symlink() {
            entry["type"] = "link".into();
            entry["target"] = encoded(fs::read_link(&path).unwrap().as_os_str().as_bytes()).into();
        } else {
            let content = fs::read(&path).unwrap();
            entry["type"] = "file".into();
            entry["size"] = content.len().into();
            entry["blake3"] = blake3::hash(&content).to_hex().as_str().into();
        }
        let attributes = attributes(&path);
        if !kind.is_symlink() && !attributes.is_empty() {
            entry["xattrs"] = attributes.into();
        }
        out.push(entry);
    }
}

fn attributes(path: &Path) -> Map<String, Value> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let names = names[..len].split(|&byte| byte == 0);
    names
        .filter(|name| name.starts_with(b"user."))
        .map(|name| {
            let mut value = vec![0; 4096];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (encoded(name), encoded(&value[..len]).into())
        })
        .collect()
}

/// Encodes as the second reader does: percent signs for all but the plainest bytes.
fn encoded(bytes: &[u8]) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-~/".contains(&byte);
    bytes
        .iter()
        .map(|&byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

#[test]
fn the_first_version_s_vault_opens_with_every_secret_and_holds_what_it_held() {
    let frozen = Frozen::unpack("v1");
    let key_file = here().join("frozen/v1.key");
    let secrets: [&[&str]; 3] = [
        &["--passfile", "passphrase"],
        &["--key-file", key_file.to_str().unwrap()],
        &["--recovery", "--passfile", "recovery"],
    ];
    for secret in secrets {
        assert_eq!(frozen.listing(secret), frozen.known(), "{secret:?}");
    }
    frozen.run(&["verify"], secrets[1], &[]);
    frozen.run(&["fsck"], secrets[1], &[]);
}

#[test]
fn the_first_version_s_vault_of_the_other_suite_opens() {
    let frozen = Frozen::unpack("v1-xchacha");
    let secret = ["--passfile", "passphrase"];
    assert_eq!(frozen.listing(&secret), frozen.known());
    frozen.run(&["verify"], &secret, &[]);
    frozen.run(&["fsck"], &secret, &[]);
}

#[test]
fn the_vault_with_a_keystore_of_version_2_opens_with_every_secret_and_its_keys_are_as_they_were() {
    let frozen = Frozen::unpack("v2");
    let key_file = here().join("frozen/v2.key");
    let secrets: [&[&str]; 3] = [
        &["--passfile", "passphrase"],
        &["--key-file", key_file.to_str().unwrap()],
        &["--recovery", "--passfile", "recovery"],
    ];
    for secret in secrets {
        assert_eq!(frozen.listing(secret), frozen.known(), "{secret:?}");
    }
    frozen.run(&["verify"], secrets[1], &[]);
    frozen.run(&["fsck"], secrets[1], &[]);

    let json = |subcommand: &[&str], rest: &[&str]| -> Value {
        serde_json::from_slice(&frozen.run(subcommand, secrets[1], rest)).unwrap()
    };
    let mail = json(&["key", "describe", "--json"], &["alias/post"]);
    assert_eq!(mail["id"], "8e95b6b7f9a82221c77e2b8495aaeebf");
    assert_eq!(mail["aliases"], json!(["alias/mail", "alias/post"]));
    assert_eq!(mail["tags"], json!({"cost": "", "team": "blue"}));
    assert_eq!(
        (&mail["state"], &mail["policy"], &mail["version"]),
        (&json!("enabled"), &json!("own"), &json!(2))
    );
    assert_eq!(mail["rotation"]["next"], "2027-12-26T11:14:18Z");
    assert_eq!(
        mail["last_use"],
        json!({"operation": "Decrypt", "time": "2026-11-21T11:14:18Z"})
    );
    let off = json(&["key", "describe", "--json"], &["alias/off"]);
    assert_eq!(off["state"], "disabled");
    let going = json(&["key", "describe", "--json"], &["9a0779de96e5d799a86db4af5bd41ca5"]);
    assert_eq!(
        (&going["state"], &going["deletion_date"]),
        (&json!("pending deletion"), &json!("2026-12-21T11:14:18Z"))
    );
    let usage = json(&["key", "usage", "--json"], &["alias/mail"]);
    assert_eq!(
        (&usage["vaults"][0]["epochs"], &usage["vaults"][0]["files"]),
        (&json!(2), &json!(6))
    );
    let policy = frozen.run(&["key", "policy", "show"], secrets[1], &["alias/mail"]);
    assert!(String::from_utf8(policy).unwrap().contains("not without the place"));
}

#[test]
fn the_vault_with_several_keys_opens_and_its_files_have_the_keys_they_had() {
    let frozen = Frozen::unpack("v2-keys");
    let customer = here().join("frozen/v2-keys.customer");
    let (pass, customer) = (["--passfile", "passphrase"], customer.to_str().unwrap());
    let secret = [&pass[..], &["--customer-key", customer]].concat();
    assert_eq!(frozen.listing(&secret), frozen.known());
    frozen.run(&["verify"], &secret, &[]);
    frozen.run(&["fsck"], &secret, &[]);
    let info = |path: &str| -> Value {
        serde_json::from_slice(&frozen.run(&["file", "info", "--json"], &pass, &[path])).unwrap()
    };
    let models = [
        ("own", "SSE-S3", json!(["alias/hushfs/default"])),
        ("post/before", "SSE-S3", json!(["alias/hushfs/default"])),
        ("post/new", "SSE-KMS", json!(["alias/mail"])),
        ("post/after", "SSE-KMS", json!(["alias/mail"])),
        ("moved", "SSE-KMS", json!(["alias/mail"])),
        ("linked", "SSE-KMS", json!(["alias/mail"])),
        ("post/below/file", "SSE-KMS", json!(["alias/mail"])),
        ("post/old/file", "SSE-S3", json!(["alias/hushfs/default"])),
        ("post/empty", "SSE-KMS", json!(["alias/mail"])),
        ("plain/file", "SSE-KMS", json!(["alias/off"])),
        ("theirs", "SSE-C", json!([])),
        ("post/theirs", "SSE-C", json!([])),
    ];
    for (path, model, aliases) in models {
        let info = info(path);
        assert_eq!((&info["model"], &info["aliases"]), (&json!(model), &aliases), "{path}");
    }
    assert!(info("post/new")["epoch"].as_u64() < info("post/after")["epoch"].as_u64());
    assert_eq!(info("theirs")["authenticated"], false);
    let shown: Value =
        serde_json::from_slice(&frozen.run(&["vault", "encryption", "show", "--json"], &pass, &[])).unwrap();
    let mut paths: Vec<_> = shown["directories"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| of["path"].clone())
        .collect();
    paths.sort_by_key(ToString::to_string);
    assert_eq!(paths, ["post", "post/old"]);
    // Each file within its key, and without the customer's.
    frozen.run(&["rewrap"], &pass, &["--retire"]);
    assert_eq!(frozen.listing(&secret), frozen.known());
    assert_eq!(info("post/new")["epoch"], info("post/after")["epoch"]);
    assert_eq!(info("plain/file")["aliases"], json!(["alias/off"]));
}

#[test]
fn a_frozen_vault_can_be_rewrapped_and_still_holds_what_it_held() {
    for name in ["v1", "v2"] {
        let frozen = Frozen::unpack(name);
        let secret = ["--passfile", "passphrase"];
        frozen.run(&["rewrap"], &secret, &["--retire"]);
        assert_eq!(frozen.listing(&secret), frozen.known(), "{name}");
        let keystore = fs::read(frozen.dir.path().join("vault/keystore.hush")).unwrap();
        assert_eq!(keystore[8], 2, "{name}: what is stored is of today's version");
    }
}

#[test]
fn the_second_reader_reads_the_same() {
    let key_file = here().join("frozen/v1.key");
    let key_file_2 = here().join("frozen/v2.key");
    let runs = [
        ("v1", "root", ROOT),
        ("v1", "passphrase", PASSPHRASE),
        ("v1", "key-file", key_file.to_str().unwrap()),
        ("v1", "recovery-key", RECOVERY_KEY),
        ("v1-xchacha", "root", ROOT_XCHACHA),
        ("v1-xchacha", "passphrase", PASSPHRASE),
        ("v2", "passphrase", PASSPHRASE),
        ("v2", "key-file", key_file_2.to_str().unwrap()),
        ("v2", "recovery-key", RECOVERY_KEY_2),
        ("v2-keys", "passphrase", PASSPHRASE),
    ];
    for (name, kind, secret) in runs {
        let Some(mut command) = python("decryptor.py") else {
            return;
        };
        let frozen = Frozen::unpack(name);
        let output = command
            .arg(frozen.dir.path().join("vault"))
            .args([kind, secret])
            .args((name == "v2-keys").then(|| here().join("frozen/v2-keys.customer")))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{name} {kind}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let listing: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(listing, frozen.known(), "{name} {kind}");
    }
}

#[test]
fn the_second_reader_reads_snapshots() {
    for (name, secret) in [("v1", ROOT), ("v1-xchacha", ROOT_XCHACHA)] {
        let Some(mut command) = python("decryptor.py") else {
            return;
        };
        let frozen = Frozen::unpack(name);
        frozen.run(&["snapshot"], &["--passfile", "passphrase"], &["-o", "snapshot"]);
        let output = command
            .arg(frozen.dir.path().join("vault"))
            .args(["root", secret, "--snapshot"])
            .arg(frozen.dir.path().join("snapshot"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let of = |listing: &Value| -> Vec<[Value; 3]> {
            let entries = listing.as_array().unwrap().iter();
            let mut entries: Vec<_> = entries
                .map(|entry| ["path", "type", "size"].map(|field| entry[field].clone()))
                .collect();
            entries.sort_by_key(|entry| entry[0].to_string());
            entries
        };
        let listed = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(of(&listed), of(&frozen.known()), "{name}");
    }
}
