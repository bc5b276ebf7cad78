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
        fs::write(dir.path().join("recovery"), RECOVERY_KEY).unwrap();
        Frozen { name, dir }
    }

    fn known(&self) -> Value {
        serde_json::from_slice(&fs::read(here().join(format!("frozen/{}.json", self.name))).unwrap()).unwrap()
    }

    /// Runs hushfs on the vault in its directory, where the files with secrets are.
    fn run(&self, subcommand: &[&str], secret: &[&str], rest: &[&str]) {
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
fn a_frozen_vault_can_be_rewrapped_and_still_holds_what_it_held() {
    let frozen = Frozen::unpack("v1");
    let secret = ["--passfile", "passphrase"];
    frozen.run(&["rewrap"], &secret, &["--retire"]);
    assert_eq!(frozen.listing(&secret), frozen.known());
}

#[test]
fn the_second_reader_reads_the_same() {
    let key_file = here().join("frozen/v1.key");
    let runs = [
        ("v1", "root", ROOT),
        ("v1", "passphrase", PASSPHRASE),
        ("v1", "key-file", key_file.to_str().unwrap()),
        ("v1", "recovery-key", RECOVERY_KEY),
        ("v1-xchacha", "root", ROOT_XCHACHA),
        ("v1-xchacha", "passphrase", PASSPHRASE),
    ];
    for (name, kind, secret) in runs {
        let Some(mut command) = python("decryptor.py") else {
            return;
        };
        let frozen = Frozen::unpack(name);
        let output = command
            .arg(frozen.dir.path().join("vault"))
            .args([kind, secret])
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
