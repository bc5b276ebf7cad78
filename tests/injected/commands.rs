//! Commands that change a vault, or its keystore, without a mount.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

use super::{CALLS_MAX, can_inject, content_of, is_whole};
use crate::{
    FILE, KEPT,
    injector::{Fault, Injector},
    support::{Bench, HUSHFS},
};

const KDF: &str = "--kdf-memory 64M --kdf-time 1ms";

/// What opens the vault, whether or not a command was interrupted.
const SECRET: &str = "--key-file key";

/// A command that changes what lies in a directory with the vault `vault` and the files `key`, `pass` and `other`.
struct Change {
    /// What is run before, without faults.
    before: &'static str,
    command: &'static str,
}

static CHANGES: [Change; 10] = [
    Change {
        before: "",
        command: "init --key-file key new",
    },
    Change {
        before: "",
        command: "vault rotate --key-file key vault",
    },
    Change {
        before: "vault rotate --key-file key vault",
        command: "rewrap --key-file key vault",
    },
    Change {
        before: "vault rotate --key-file key vault",
        command: "rewrap --key-file key --retire vault",
    },
    Change {
        before: "",
        command: "rekey --key-file key vault /",
    },
    Change {
        before: "",
        command: "slot add --key-file key KDF --new-passfile pass --name laptop vault",
    },
    Change {
        before: "slot add --key-file key KDF --new-passfile pass --name laptop vault",
        command: "slot remove --key-file key vault laptop",
    },
    Change {
        before: "slot add --key-file key KDF --new-passfile pass --name laptop vault",
        command: "passwd --passfile pass KDF --new-passfile other vault",
    },
    Change {
        before: "",
        command: "key create --key-file key --alias alias/mail vault",
    },
    Change {
        before: "key create --key-file key --alias alias/mail vault",
        command: "vault encryption set --key-file key --key alias/mail vault",
    },
];

/// Changes that are recorded, and those of the audit log.
static RECORDED_CHANGES: [Change; 4] = [
    Change {
        before: "",
        command: "keystore audit on --key-file key vault",
    },
    Change {
        before: "keystore audit on --key-file key vault",
        command: "keystore audit on --new-log --key-file key vault",
    },
    Change {
        before: "keystore audit on --key-file key vault",
        command: "vault rotate --key-file key vault",
    },
    Change {
        before: "keystore audit on --key-file key vault",
        command: "keystore audit off --key-file key vault",
    },
];

/// A directory in which commands are run.
struct Place(TempDir);

impl Place {
    /// Makes one with a vault that has files.
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        for (name, content) in [("pass", "correct horse\n"), ("other", "battery staple\n")] {
            fs::write(place.path(name), content).unwrap();
        }
        fs::write(place.path("key"), [7; 32]).unwrap();
        let mut bench = Bench::with_init_options(&[]);
        bench.mount(&[]);
        for name in [KEPT, FILE] {
            fs::write(bench.mnt().join(name), content_of(name)).unwrap();
        }
        bench.unmount();
        copy(&bench.vault(), &place.path("vault"));
        fs::copy(bench.passfile(), place.path("first")).unwrap();
        place.succeed("slot add --passfile first --new-key-file key vault");
        place.succeed("slot remove --key-file key vault 1");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(HUSHFS);
        command
            .args(arguments.replace("KDF", KDF).split(' '))
            .current_dir(self.0.path())
            .env("HOME", self.0.path())
            .env_remove("XDG_CONFIG_HOME")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn succeed(&self, arguments: &str) {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments}: {}", said(&output));
    }

    /// Puts everything back to how it was when it was kept.
    fn restore(&self, kept: &Path) {
        for name in ["vault", "new"] {
            let _ = fs::remove_dir_all(self.path(name));
            if kept.join(name).exists() {
                copy(&kept.join(name), &self.path(name));
            }
        }
    }

    /// Says what is wrong with a vault that has to open and be whole.
    fn fault_of(&self, vault: &str) -> Option<String> {
        let mut commands = vec!["slot test", "fsck", "verify"];
        if self.path(vault).join("audit.hush").exists() {
            commands.push("audit verify");
        }
        for command in commands {
            let output = self.run(&format!("{command} {SECRET} {vault}"));
            if !output.status.success() {
                return Some(format!("{command}: {}", said(&output)));
            }
        }
        if vault == "vault" {
            for name in [KEPT, FILE] {
                let output = self.run(&format!("cat {SECRET} vault {name}"));
                if output.stdout != content_of(name) {
                    return Some(format!("{name} is something else: {}", said(&output)));
                }
            }
        }
        None
    }
}

fn said(output: &Output) -> String {
    format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr))
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// The faults of a command, and each how many-th call they befall.
fn faults() -> Vec<(Fault, usize)> {
    match is_whole() {
        true => vec![
            (Fault::Once(libc::ENOSPC), 1),
            (Fault::From(libc::ENOSPC), 1),
            (Fault::Once(libc::EIO), 1),
            (Fault::From(libc::EIO), 1),
        ],
        false => vec![(Fault::From(libc::ENOSPC), 1), (Fault::Once(libc::EIO), 5)],
    }
}

#[test]
fn every_call_of_a_command_fails() {
    if can_inject() {
        try_faults(&CHANGES, &faults());
    }
}

#[test]
fn every_call_of_a_command_that_is_recorded_fails() {
    if can_inject() {
        let step = if is_whole() { 1 } else { 4 };
        try_faults(
            &RECORDED_CHANGES,
            &[(Fault::Once(libc::EIO), step), (Fault::From(libc::EIO), step)],
        );
    }
}

#[test]
fn files_are_made_where_no_rename_refuses_to_replace_and_no_file_has_two_names() {
    if !can_inject() {
        return;
    }
    let place = Place(tempfile::tempdir().unwrap());
    fs::write(place.path("key"), [7; 32]).unwrap();
    fs::write(place.path("report"), content_of(FILE)).unwrap();
    let commands = [
        ("recipient generate ann", "ann"),
        ("seal --key-file key report", "report.hush"),
    ];
    for (command, made) in commands {
        let mut hushfs = place.command(command);
        let injector = Injector::watch(&mut hushfs, place.0.path());
        injector.arm(Fault::Lacking(libc::EINVAL), 1);
        let output = hushfs.output().unwrap();
        let hits = injector.disarm().hits;
        assert!(output.status.success(), "{command}: {}", said(&output));
        for call in ["renameat2", "linkat", "fsync"] {
            assert!(hits.iter().any(|hit| hit.starts_with(call)), "{command}: {hits:?}");
        }
        let content = fs::read(place.path(made)).unwrap();
        assert!(!content.is_empty());
        let mut again = place.command(command);
        Injector::watch(&mut again, place.0.path()).arm(Fault::Lacking(libc::EINVAL), 1);
        assert!(!again.output().unwrap().status.success(), "{command}");
        assert!(fs::read(place.path(made)).unwrap() == content, "{command}");
    }
    let mut names: Vec<_> = fs::read_dir(place.0.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["ann", "key", "report", "report.hush"]);
}

fn try_faults(changes: &[Change], faults: &[(Fault, usize)]) {
    let place = Place::new();
    let pristine = tempfile::tempdir().unwrap();
    copy(&place.path("vault"), &pristine.path().join("vault"));
    let mut broken = Vec::new();
    for change in changes {
        let vault = change.command.rsplit(' ').find(|word| ["vault", "new"].contains(word));
        let vault = vault.unwrap_or("vault");
        let kept = tempfile::tempdir().unwrap();
        if !change.before.is_empty() {
            place.succeed(change.before);
        }
        copy(&place.path("vault"), &kept.path().join("vault"));
        let (mut trials, mut refused) = (0, 0);
        for &(fault, step) in faults {
            for n in (1..CALLS_MAX).step_by(step) {
                place.restore(kept.path());
                let mut command = place.command(change.command);
                let injector = Injector::watch(&mut command, place.0.path());
                injector.arm(fault, n);
                let output = command.output().unwrap();
                let outcome = injector.disarm();
                if outcome.hits.is_empty() {
                    break;
                }
                trials += 1;
                refused += u32::from(!output.status.success());
                let mut complain = |what: String| {
                    broken.push(format!(
                        "{}, {fault:?}, call {n}: {what}\n    failed: {:?}\n    it said {}",
                        change.command,
                        outcome.hits,
                        said(&output)
                    ));
                };
                let lines = String::from_utf8_lossy(&output.stderr).lines().count();
                if output.status.signal().is_some() || (!output.status.success() && lines == 0) {
                    complain("it ends without a word".into());
                }
                // A vault that was not made is none yet.
                if (vault == "vault" || output.status.success())
                    && let Some(what) = place.fault_of(vault)
                {
                    complain(what);
                    continue;
                }
                let again = place.run(change.command);
                // What was done though it was said to have failed cannot be done again, and says so.
                if !again.status.success() && !output.status.success() {
                    let message = said(&again);
                    let is_done = ["already", "no slot", "wrong passphrase", "exists", "not empty"];
                    if !is_done.iter().any(|word| message.contains(word)) {
                        complain(format!("done again it fails: {message}"));
                    }
                }
                if let Some(what) = place.fault_of(vault) {
                    complain(format!("done again: {what}"));
                }
            }
        }
        eprintln!("{}: {trials} faults, {refused} of them told", change.command);
        assert!(trials > 0, "{}", change.command);
        place.restore(pristine.path());
    }
    assert!(broken.is_empty(), "{} faults:\n{}", broken.len(), broken.join("\n"));
}
