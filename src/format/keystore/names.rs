//! By what a keystore knows its vaults again: an extension of its body (docs/FORMAT.md section 4).

use super::{FormatError, KeystoreBody, VAULTS_MAX, body, body::Extension, in_range};
use crate::{
    format::Reader,
    ids::{NamesMark, VaultId},
};

/// The kind of the extension. It is critical: who does not know it would take a vault of someone else's for the one that is meant.
pub(super) const EXTENSION: u16 = 2;

/// Bytes of a vault in it: id and mark.
pub(super) const MARK_SIZE: usize = 16 + 16;

/// The marks of the names roots of vaults, by rising vault id.
type Marks = Vec<(VaultId, NamesMark)>;

impl KeystoreBody {
    /// Returns the mark of a vault's names root, if it was noted.
    pub fn names_mark(&self, vault: VaultId) -> Option<NamesMark> {
        let marks = self.names_marks();
        let at = marks.binary_search_by_key(&vault, |(vault, _)| *vault).ok()?;
        Some(marks[at].1)
    }

    /// Notes the mark of a vault's names root.
    pub fn set_names_mark(&mut self, vault: VaultId, mark: NamesMark) {
        let mut marks = self.names_marks();
        match marks.binary_search_by_key(&vault, |(vault, _)| *vault) {
            Ok(at) => marks[at].1 = mark,
            Err(at) => marks.insert(at, (vault, mark)),
        }
        self.extensions.retain(|extension| extension.kind != EXTENSION);
        self.extensions.push(encode(&marks));
    }

    fn names_marks(&self) -> Marks {
        let extension = self.extensions.iter().find(|extension| extension.kind == EXTENSION);
        let decode = |extension: &Extension| decode(&extension.data).expect("checked when the body was decoded");
        extension.map_or_else(Vec::new, decode)
    }
}

fn encode(marks: &Marks) -> Extension {
    let pairs = marks.iter().flat_map(|(vault, mark)| [vault.0, mark.0]);
    Extension {
        kind: EXTENSION,
        critical: 1,
        data: pairs.flatten().collect(),
    }
}

fn decode(data: &[u8]) -> Result<Marks, FormatError> {
    let mut reader = Reader(data);
    let mut marks = Vec::with_capacity(data.len() / MARK_SIZE);
    while !reader.0.is_empty() {
        marks.push((VaultId(reader.take()?), NamesMark(reader.take()?)));
    }
    Ok(marks)
}

/// Checks that there is at most one such extension, and that it decodes.
pub(super) fn check(extensions: &[Extension]) -> Result<(), FormatError> {
    let mut found = extensions.iter().filter(|extension| extension.kind == EXTENSION);
    if let Some(extension) = found.next() {
        let marks = decode(&extension.data)?;
        in_range((1..=VAULTS_MAX).contains(&marks.len()), "marks of vaults")?;
        in_range(body::rises(marks.iter().map(|(vault, _)| *vault)), "marks of vaults")?;
        in_range(extension.critical == 1, "marks of vaults")?;
    }
    in_range(found.next().is_none(), "marks of vaults")
}
