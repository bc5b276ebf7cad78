//! What a command writes besides the vault must lie outside it: in there a sync tool would take plaintext along, and no mount would show it.

use std::path::Path;

use super::{CliResult, error::CliError};

/// Refuses to write something in a vault; best called before a secret is asked for.
pub fn check(path: &Path, vault: &Path) -> CliResult {
    match is_inside(path, vault) {
        true => Err(CliError::OutputInVault { path: path.to_owned() }),
        false => Ok(()),
    }
}

/// Tells whether a path is a directory or in it, or would be once it is made: links are followed as far as there is something.
pub fn is_inside(path: &Path, directory: &Path) -> bool {
    let canonical = |path: &Path| match path.as_os_str().is_empty() {
        true => Path::new(".").canonicalize(),
        false => path.canonicalize(),
    };
    let existing = path.ancestors().find_map(|ancestor| canonical(ancestor).ok());
    match (existing, canonical(directory)) {
        (Some(existing), Ok(directory)) => existing.starts_with(directory),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn what_is_there_and_what_is_to_be_made_is_inside_by_any_way() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        fs::create_dir_all(at("vault/empty")).unwrap();
        fs::create_dir(at("vaults")).unwrap();
        fs::write(at("vault/file"), "").unwrap();
        symlink(at("vault"), at("link")).unwrap();
        symlink(at("vault/file"), at("vaults/file")).unwrap();
        for inside in [
            "vault",
            "vault/",
            "vault/file",
            "vault/none",
            "vault/none/none",
            "vaults/../vault/none",
            "link",
            "link/none",
            "vaults/file",
        ] {
            assert!(is_inside(&at(inside), &at("vault")), "{inside}");
            assert!(is_inside(&at(inside), &at("link")), "{inside}");
            assert!(check(&at(inside), &at("vault")).is_err(), "{inside}");
        }
        for outside in ["", "none", "vaults", "vaults/none", "vault/../none", "link/../none"] {
            assert!(!is_inside(&at(outside), &at("vault")), "{outside}");
            assert!(check(&at(outside), &at("vault")).is_ok(), "{outside}");
        }
        assert!(!is_inside(&at("vault"), &at("none")));
        assert!(is_inside(Path::new("none"), Path::new(".")));
    }
}
