//! How things are written for people: times, sizes, modes, names from the vault.

use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::FileType;

use crate::{
    crypto::recipient::Recipient,
    format::keystore::SlotKind,
    keystore::identity::{RECIPIENT_PREFIX, recipient_to_text},
};

/// The last second of the year 9999, which is the last that the usual form can tell.
const TIME_MAX: u64 = 253_402_300_799;

/// Writes a time in seconds since 1970. It may come from a file that nobody has authenticated.
pub fn time(seconds: u64) -> String {
    if seconds > TIME_MAX {
        return format!("{seconds} seconds after 1970");
    }
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// Writes the kind of a slot, with what a guess costs.
pub fn slot_kind(kind: &SlotKind) -> String {
    match kind {
        SlotKind::Passphrase(hardness) => format!(
            "passphrase (Argon2id, {} MiB, {} passes)",
            hardness.memory_kib / 1024,
            hardness.passes
        ),
        SlotKind::KeyFile => "key file".to_owned(),
        SlotKind::Recovery => "recovery key".to_owned(),
        SlotKind::Credential { name } => format!("credential {name:?}"),
        SlotKind::Command { words } => format!("command {words:?}"),
        SlotKind::Tpm2 { pcrs, pin, .. } => {
            let registers: Vec<_> = (0..32)
                .filter(|bit| pcrs >> bit & 1 == 1)
                .map(|bit| bit.to_string())
                .collect();
            let pin = if *pin { ", PIN" } else { "" };
            format!("TPM 2.0 (registers {}{pin})", registers.join("+"))
        }
        SlotKind::Recipient { recipient, .. } => format!("recipient {}", recipient_start(recipient)),
        SlotKind::Remote { key, .. } => format!("{} {key}", key.word()),
    }
}

/// Writes how the text of a recipient begins, by which people know it.
pub fn recipient_start(public_key: &[u8]) -> String {
    const SHOWN: usize = 12;
    let text = Recipient::from_bytes(public_key).map(|recipient| recipient_to_text(&recipient));
    let start = text.ok().map(|text| text[..RECIPIENT_PREFIX.len() + SHOWN].to_owned());
    start.map_or_else(|| "(not one)".to_owned(), |start| format!("{start}..."))
}

/// Writes kind and permissions as ls(1) does.
pub fn mode(mode: u32) -> String {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        _ => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// Makes a message fit for people and their terminal, whatever names and words of others are in it.
pub fn message(text: &str) -> String {
    printable(without_numbers(text).as_bytes())
}

/// Leaves out the numbers that the standard library puts behind the system's words: "(os error 2)" helps nobody.
pub fn without_numbers(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    let mut rest = message;
    while let Some((before, after)) = rest.split_once(" (os error ") {
        out.push_str(before);
        rest = after.split_once(')').map_or("", |(_, rest)| rest);
    }
    out.push_str(rest);
    out
}

/// Writes how many of something there are.
pub fn count(number: u64, what: &str) -> String {
    match (number, what) {
        (1, _) => format!("1 {what}"),
        (_, "entry" | "directory") => format!("{number} {}ies", &what[..what.len() - 1]),
        _ => format!("{number} {what}s"),
    }
}

/// Makes a name from the vault fit for a terminal: control characters could do anything to one.
pub fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(name)
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// As [`printable`], of a text of several lines that somebody else may have written. Beside control characters those are shown that have a terminal write
/// what follows in another order.
pub fn printable_lines(text: &str) -> String {
    let fit = |c: char| match c {
        '\n' | '\t' => c,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => char::REPLACEMENT_CHARACTER,
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(fit).collect()
}

/// Writes a name as a word that a shell takes for it, and a terminal for text.
pub fn shell_word(name: &[u8]) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+,:@%".contains(byte);
    let text = std::str::from_utf8(name).ok();
    match text.filter(|text| !text.chars().any(char::is_control)) {
        Some(text) if !name.is_empty() && name.iter().all(is_plain) => text.to_owned(),
        Some(text) => format!("'{}'", text.replace('\'', r"'\''")),
        None => format!("$'{}'", name.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_as_those_of_ls() {
        assert_eq!(mode(0o100644), "-rw-r--r--");
        assert_eq!(mode(0o041777), "drwxrwxrwt");
        assert_eq!(mode(0o104750), "-rwsr-x---");
        assert_eq!(mode(0o102640), "-rw-r-S---");
        assert_eq!(mode(0o120777), "lrwxrwxrwx");
    }

    #[test]
    fn a_shell_takes_a_word_for_the_name() {
        assert_eq!(shell_word(b"dir/a.txt"), "dir/a.txt");
        assert_eq!(shell_word(b""), "''");
        assert_eq!(shell_word("\u{e4} $(x)".as_bytes()), "'\u{e4} $(x)'");
        assert_eq!(shell_word(b"it's"), r"'it'\''s'");
        assert_eq!(shell_word(b"a\x1b[2J\n'\\\xff"), r"$'a\x1b[2J\n\'\\\xff'");
    }

    #[test]
    fn no_time_in_a_file_is_too_much() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(TIME_MAX), "9999-12-31T23:59:59Z");
        assert_eq!(time(u64::MAX), "18446744073709551615 seconds after 1970");
    }

    #[test]
    fn messages_have_no_numbers_of_errors() {
        let error = std::io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(
            without_numbers(&format!("a: {error}: do b")),
            "a: No such file or directory: do b"
        );
        assert_eq!(without_numbers("plain"), "plain");
    }

    #[test]
    fn a_name_cannot_command_the_terminal() {
        assert_eq!(printable(b"a\x1b[2Jb"), "a\u{fffd}[2Jb");
        assert_eq!(printable("ä".as_bytes()), "ä");
        let policy = "{\n\t\"a\": 1,\r\"b\u{9b}2J\u{202e}\"}\n";
        assert_eq!(
            printable_lines(policy),
            "{\n\t\"a\": 1,\u{fffd}\"b\u{fffd}2J\u{fffd}\"}\n"
        );
        let error = std::io::Error::from_raw_os_error(libc::EEXIST);
        assert_eq!(
            message(&format!("a\x1b]0;b\x07: {error}")),
            "a\u{fffd}]0;b\u{fffd}: File exists"
        );
    }
}
