//! The audit log, read by the program that stands in docs/FORMAT.md.

use std::fs;

use hushfs::{
    crypto::{keys::AuditSeed, locked::LockedKey},
    format::{audit::Chain, keystore::AuditHead},
    ids::LogId,
};

use super::fixed::{here, python};

/// Returns the Python program in the section about audit logs.
fn program() -> String {
    let document = fs::read_to_string(here().join("../../docs/FORMAT.md")).unwrap();
    let section = document.split("\n## 10. Audit log\n").nth(1).expect("the section");
    let program = section.split("```python\n").nth(1).expect("a program");
    program.split("```").next().unwrap().to_owned()
}

#[test]
fn the_program_in_the_document_verifies_what_is_written_and_nothing_else() {
    let temp = tempfile::tempdir().unwrap();
    let (script, log) = (temp.path().join("verify.py"), temp.path().join("log"));
    fs::write(&script, program()).unwrap();
    let seed = AuditSeed::new(LockedKey::copy_of(&[9; 32]));
    let mut chain = Chain::start(&seed, LogId([5; 16]), AuditHead { seq: 6, hash: [1; 32] });
    let lines = [r#"{"a":1}"#, r#"{"b":"\u00e4, \"mac\":"}"#, r#"{"c":[]}"#];
    let lines = lines.map(|event| String::from_utf8(chain.append(event).unwrap()).unwrap());
    let hash = data_encoding::HEXLOWER.encode(&chain.head().hash);
    let run = |text: &str| {
        fs::write(&log, text).unwrap();
        let mut command = python(script.to_str().unwrap())?;
        let output = command.arg("09".repeat(32)).arg(&log).output().unwrap();
        Some((
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        ))
    };
    let Some((is_whole, said)) = run(&lines.concat()) else {
        return;
    };
    assert!(is_whole, "{said}");
    assert_eq!(said, format!("record 9 has the hash {hash}\n"));
    for (tampered, fault) in [
        (lines.concat().replace("\"b\"", "\"B\""), "record 8 was changed"),
        ([&lines[0][..], &lines[2]].concat(), "record 8 was changed"),
        ([&lines[1][..], &lines[2]].concat(), "record 8 was changed"),
    ] {
        let (is_whole, said) = run(&tampered).expect("it ran before");
        assert!(!is_whole && said.contains(fault), "{said}");
    }
}
