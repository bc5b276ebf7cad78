//! Rules of the code that a reader would otherwise have to remember. Reads the sources as text.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The floor of each module; each uses only lower ones, and two on one floor do not know each other.
const FLOORS: [(&str, u32); 15] = [
    ("units", 0),
    ("sync", 0),
    ("ids", 0),
    ("crypto", 1),
    ("format", 2),
    ("backing", 3),
    ("keystore", 3),
    ("sandbox", 3),
    ("vault", 4),
    ("agent", 5),
    ("fs", 5),
    ("fsck", 5),
    ("fuse", 6),
    ("cli", 7),
    ("main", 8),
];

/// Crates with ciphers, hashes and randomness: for `crypto` alone.
const CIPHER_CRATES: [&str; 8] = [
    "aes_gcm_siv",
    "aws_lc_rs",
    "chacha20poly1305",
    "blake3",
    "argon2",
    "hpke",
    "getrandom",
    "rand",
];

/// A source file without its tests.
struct Source {
    path: PathBuf,
    /// The module on a floor that it belongs to.
    module: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    collect(&root, &root, &mut found);
    assert!(found.len() > 30, "the sources are where they are expected");
    found
}

fn collect(root: &Path, dir: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, found);
            continue;
        }
        let relative = path.strip_prefix(root).unwrap().to_owned();
        let is_test = relative.with_extension("").iter().any(|part| part == "tests");
        if path.extension().is_none_or(|extension| extension != "rs") || is_test {
            continue;
        }
        let first = relative.components().next().unwrap().as_os_str().to_string_lossy();
        let text = fs::read_to_string(&path).unwrap();
        // Tests stand at the end of a file.
        let text = text.split("\n#[cfg(test)]\n").next().unwrap().to_owned();
        found.push(Source {
            module: first.trim_end_matches(".rs").to_owned(),
            path: relative,
            text,
        });
    }
}

fn floor(module: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// Returns lines of code, with their numbers, without comments.
fn code(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    let lines = source.text.lines().enumerate().map(|(i, line)| (i + 1, line));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn fail_if_any(broken: Vec<String>, rule: &str) {
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

/// Reports each line of code outside the `allowed` modules that `is_broken`.
fn check(allowed: &[&str], rule: &str, is_broken: impl Fn(&str) -> bool) {
    let mut broken = Vec::new();
    for source in sources() {
        if allowed.contains(&source.module.as_str()) {
            continue;
        }
        for (number, line) in code(&source) {
            if is_broken(line) {
                broken.push(format!("{}:{number}: {}", source.path.display(), line.trim()));
            }
        }
    }
    fail_if_any(broken, rule);
}

/// Returns the modules of this crate that a file names in `crate::...` paths, groups of `use` included.
fn uses(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("crate::") {
        rest = &rest[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 1;
            let mut word = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    c if depth == 1 && (c.is_alphanumeric() || c == '_') => word.push(c),
                    _ => {}
                }
                let ends = !(c.is_alphanumeric() || c == '_');
                if ends && !word.is_empty() && (depth <= 1 || c == '{') {
                    found.push(std::mem::take(&mut word));
                }
                if depth == 0 {
                    break;
                }
            }
        } else {
            found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    found
}

#[test]
fn modules_use_only_lower_floors() {
    let mut broken = Vec::new();
    for source in sources() {
        let Some(own) = floor(&source.module) else { continue };
        // Links in comments may point upwards.
        let text: String = code(&source).map(|(_, line)| format!("{line}\n")).collect();
        for used in uses(&text) {
            if let Some(other) = floor(&used)
                && used != source.module
                && other >= own
            {
                broken.push(format!(
                    "{}: floor {own} uses `{used}` on floor {other}",
                    source.path.display()
                ));
            }
        }
    }
    fail_if_any(
        broken,
        "a module uses only modules on lower floors (docs/ARCHITECTURE.md)",
    );
}

#[test]
fn every_module_has_a_floor() {
    for source in sources() {
        assert!(
            source.module == "lib" || floor(&source.module).is_some(),
            "{} has no floor",
            source.path.display()
        );
    }
}

#[test]
fn only_crypto_names_a_cipher_crate() {
    check(
        &["crypto"],
        "only `crypto` names a crate with ciphers, hashes or randomness",
        |line| CIPHER_CRATES.iter().any(|name| line.contains(&format!("{name}::"))),
    );
}

#[test]
fn only_fuse_names_fuser() {
    check(&["fuse"], "only `fuse` knows the fuser crate", |line| {
        line.contains("fuser::")
    });
}

#[test]
fn only_the_command_line_prints() {
    check(
        &[],
        "only `cli` prints, with `print` and `say`: the macros panic where nobody can be told; others log or return errors",
        |line| {
            ["println!(", "eprintln!(", "print!(", "eprint!("]
                .iter()
                .any(|macro_| line.contains(macro_))
        },
    );
}

#[test]
fn nothing_is_unwrapped_or_unfinished() {
    check(
        &[],
        "`expect` states why it cannot fail; nothing is left to do later",
        |line| {
            [".unwrap()", "todo!(", "unimplemented!(", "dbg!("]
                .iter()
                .any(|word| line.contains(word))
        },
    );
}

#[test]
fn the_lowest_floors_do_no_io() {
    let lowest = ["units", "ids", "crypto", "format"];
    let others: Vec<_> = FLOORS
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !lowest.contains(name))
        .collect();
    check(&others, "floors 0 to 2 do no I/O, read no clock, log nothing", |line| {
        ["std::fs", "std::net", "SystemTime", "log::"]
            .iter()
            .any(|word| line.contains(word))
    });
}

#[test]
fn every_file_says_what_it_is() {
    for source in sources() {
        assert!(
            source.text.starts_with("//!"),
            "{} does not begin with //!",
            source.path.display()
        );
        assert_ne!(source.path.file_name().unwrap(), "mod.rs", "{}", source.path.display());
    }
}
