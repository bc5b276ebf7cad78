//! Changes of `vault.hush` and `keystore.hush`: the vault does not open, with the exit code that says why, and nothing panics.

use std::{fs, path::PathBuf, process::Output};

use hushfs::{
    keystore::{Passphrase, SlotChoice, Unlock, UnlockError},
    vault::home::{Lock, OpenError, VaultHome},
};
use zeroize::Zeroizing;

use crate::{
    sample::{Sample, key_file, open},
    support::{Bench, can_mount},
};

const FILES: [&str; 2] = ["vault.hush", "keystore.hush"];

/// Damaged, wrong key for what is there, or made by a newer version, which a changed version number looks like.
fn assert_refused(result: Result<impl Sized, OpenError>, codes: &[u8], what: &str) {
    let error = result.err().unwrap_or_else(|| panic!("{what}: the vault opens"));
    // As docs/CLI.md has them; that the program keeps to it is asked of the program below.
    let code = match &error {
        OpenError::Io { .. } | OpenError::InUse { .. } | OpenError::NoDirectory { .. } => panic!("{what}: {error}"),
        OpenError::Newer { .. } => 5,
        OpenError::Unlock(UnlockError::WrongSecret(_) | UnlockError::NoSlotOfKind(_)) => 3,
        _ => 4,
    };
    assert!(codes.contains(&code), "{what}: {code}: {error}");
    assert!(!error.to_string().contains('\n'), "{what}: {error}");
}

fn assert_output(output: &Output, codes: &[i32], what: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code().is_some_and(|code| codes.contains(&code)),
        "{what}: {}: {stderr}",
        output.status
    );
    assert!(!stderr.contains("panicked"), "{what}: {stderr}");
    if !output.status.success() {
        assert_eq!(stderr.lines().count(), 1, "{what}: {stderr}");
    }
}

#[test]
fn a_changed_byte_keeps_the_vault_shut() {
    if !can_mount() {
        return;
    }
    let sample = Sample::new();
    let (vault, key_file) = (sample.vault(), key_file(&sample.bench));
    for file in FILES {
        let original = fs::read(vault.join(file)).unwrap();
        for i in (0..original.len()).step_by(5) {
            let mut changed = original.clone();
            changed[i] ^= 1 << (i % 8);
            fs::write(vault.join(file), &changed).unwrap();
            let what = format!("byte {i} of {file}");
            // Fields that a newer version would use say so.
            assert_refused(open(&vault, &key_file), &[3, 4, 5], &what);
        }
        fs::write(vault.join(file), &original).unwrap();
    }
    open(&vault, &key_file).unwrap();
}

#[test]
fn a_changed_byte_keeps_the_vault_shut_for_a_passphrase() {
    if !can_mount() {
        return;
    }
    let sample = Sample::new();
    let vault = sample.vault();
    let typed = fs::read_to_string(sample.bench.passfile()).unwrap();
    let unlock = Unlock::Passphrase(Passphrase::new(Zeroizing::new(typed.trim_end().into())).unwrap());
    let open = || VaultHome::enter(&vault, Lock::Unlocked)?.open(&unlock, &SlotChoice::Any);
    for file in FILES {
        let original = fs::read(vault.join(file)).unwrap();
        for i in (0..original.len()).step_by(41) {
            let mut changed = original.clone();
            changed[i] ^= 1;
            fs::write(vault.join(file), &changed).unwrap();
            assert_refused(open(), &[3, 4, 5], &format!("byte {i} of {file}"));
        }
        fs::write(vault.join(file), &original).unwrap();
    }
    open().unwrap();
}

#[test]
fn a_cut_file_keeps_the_vault_shut() {
    if !can_mount() {
        return;
    }
    let sample = Sample::new();
    let (vault, key_file) = (sample.vault(), key_file(&sample.bench));
    for file in FILES {
        let original = fs::read(vault.join(file)).unwrap();
        for len in (0..original.len()).step_by(37) {
            fs::write(vault.join(file), &original[..len]).unwrap();
            assert_refused(open(&vault, &key_file), &[4], &format!("{file} cut to {len}"));
        }
        for more in [1, 4124, 5 << 20] {
            let extended = [original.clone(), vec![0; more]].concat();
            fs::write(vault.join(file), &extended).unwrap();
            assert_refused(open(&vault, &key_file), &[4], &format!("{file} extended by {more}"));
        }
        fs::write(vault.join(file), &original).unwrap();
    }
    open(&vault, &key_file).unwrap();
}

#[test]
fn the_program_says_so_in_one_line() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    for file in FILES {
        let path = bench.vault().join(file);
        let original = fs::read(&path).unwrap();
        let len = original.len();
        for at in [0, 13, 40, len / 2, len - 40, len - 1] {
            let mut changed = original.clone();
            changed[at] ^= 0x10;
            fs::write(&path, &changed).unwrap();
            let what = format!("byte {at} of {file}");
            let mut mounting = bench.command("mount");
            mounting.arg("--foreground").arg(bench.vault()).arg(bench.mnt());
            assert_output(&mounting.output().unwrap(), &[3, 4, 5], &what);
            let mut info = std::process::Command::new(crate::support::HUSHFS);
            // It authenticates nothing.
            assert_output(
                &info.arg("info").arg(bench.vault()).output().unwrap(),
                &[0, 4, 5],
                &what,
            );
        }
        fs::write(&path, &original[..len / 2]).unwrap();
        let mut info = std::process::Command::new(crate::support::HUSHFS);
        assert_output(&info.arg("info").arg(bench.vault()).output().unwrap(), &[4], file);
        fs::write(&path, &original).unwrap();
    }
    assert!(!bench.is_mounted());
}

#[test]
fn files_of_another_vault_do_not_open_this_one() {
    if !can_mount() {
        return;
    }
    let (one, other) = (Sample::new(), Sample::new());
    for file in FILES {
        one.restore();
        fs::copy(other.vault().join(file), one.vault().join(file)).unwrap();
        assert_output(&one.bench.run("ls", &[]), &[4], file);
        assert_refused(open(&one.vault(), &key_file(&one.bench)), &[4], file);
    }
    // Both together are the other vault: no name of this one opens with it.
    let output = one.bench.run("ls", &[]);
    assert_eq!(output.status.code(), Some(4));
    for file in FILES {
        fs::copy(other.vault().join(file), one.vault().join(file)).unwrap();
    }
    let output = one.bench.run("ls", &[]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(9), &b""[..]));
}

#[test]
fn an_older_vault_header_is_refused_after_a_rotation() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let path: PathBuf = bench.vault().join("vault.hush");
    let before = fs::read(&path).unwrap();
    let rotated = std::process::Command::new(crate::support::HUSHFS)
        .args(["vault", "rotate", "--passfile"])
        .arg(bench.passfile())
        .arg(bench.vault())
        .output()
        .unwrap();
    assert_output(&rotated, &[0], "rotate");
    fs::write(&path, before).unwrap();
    // For what writes; who only reads is told.
    for (command, codes) in [("rewrap", &[4]), ("ls", &[0])] {
        let output = bench.run(command, &[]);
        assert_output(&output, codes, "an old header");
        assert!(String::from_utf8_lossy(&output.stderr).contains("old"), "{command}");
    }
}
