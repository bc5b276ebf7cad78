//! Names of entries: sealed under the directory's key, in base64url, or as a hash when too long (docs/FORMAT.md section 6.3).

use data_encoding::BASE64URL_NOPAD;

use super::{FORMAT_VERSION, FormatError, Reader};
use crate::{
    crypto::{OpenError, TAG_SIZE, derive::long_name_hash, keys::SivKey, siv},
    ids::{FileId, ID_TEXT_LEN},
};

/// The longest name, in bytes: what Linux allows.
pub const NAME_MAX: usize = 255;

/// Names are padded to a multiple of this, so that their exact length does not show.
const PADDING: usize = 16;

/// The longest sealed name whose base64url fits into [`NAME_MAX`] bytes and is padded in full steps.
const SEALED_INLINE_MAX: usize = 176;

/// Characters of the hash that stands for a long name. No sealed name has this length.
const LONG_HASH_LEN: usize = 44;

/// Deterministic: the same name in the same directory always seals to the same bytes, so that lookups need no listing.
const NAME_NONCE: [u8; siv::NONCE_SIZE] = [0; siv::NONCE_SIZE];

const LONG_NAME_MAGIC: &[u8; 8] = b"HUSHNAME";

/// The largest long-name file, in bytes.
pub const LONG_NAME_FILE_MAX: usize = 12 + NAME_MAX + 1 + TAG_SIZE;

/// The name of the vault header.
pub const VAULT_HEADER: &str = "vault.hush";
/// The name of the embedded keystore.
pub const KEYSTORE: &str = "keystore.hush";
/// The name of the audit log of an embedded keystore.
pub const AUDIT_LOG: &str = "audit.hush";
/// The name of where that log stands.
pub const AUDIT_STATE: &str = "audit-state.hush";
/// The name of an audit log that was begun and is not in its place yet.
pub const COMING_AUDIT_LOG: &str = "audit-new.hush";
/// The name of where that log stands.
pub const COMING_AUDIT_STATE: &str = "audit-state-new.hush";
/// The name of a directory header.
pub const DIRECTORY_HEADER: &str = "dir.hush";

/// The name of the directory in which repairs keep what they change.
pub const LOST_AND_FOUND: &str = "lost+found.hush";

/// What the name of an audit log starts with that was set aside; the number of its first line and the suffix follow.
const OLD_AUDIT_LOG: &str = "audit-";

/// What the name of a journal starts with; a random number and the suffix follow.
const JOURNAL: &str = "journal-";

/// What stands between the name of an entry and what a sync tool has added to it, where its copy is shown.
pub const CONFLICT_MARK: &str = " (conflict";

/// Bytes of the hash that tells shortened names of copies from each other.
const SHORTENED_HASH_SIZE: usize = 6;

// What a tool has added is what is left of the name on disk, of which the shortest entry takes 43 bytes; the mark, the hash and what is around them fit into that.
const _: () = assert!(CONFLICT_MARK.len() + " )~".len() + SHORTENED_HASH_SIZE.div_ceil(3) * 4 <= 43);

const HEADER_SUFFIX: &str = ".hush";
const LONG_NAME_SUFFIX: &str = ".long.hush";
const LINK_SUFFIX: &str = ".link.hush";
const TEMPORARY_SUFFIX: &str = ".tmp.hush";

/// The name of an entry on disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DiskName {
    /// The entry's name in the backing directory.
    pub entry: String,
    /// The sealed name, where it does not fit into the entry's.
    pub long: Option<Vec<u8>>,
}

impl DiskName {
    /// Returns the name of the file that holds the sealed name.
    pub fn long_name_file(&self) -> String {
        long_name_file(&self.entry)
    }
}

/// Returns the name of the file that holds a long entry's sealed name.
pub fn long_name_file(entry: &str) -> String {
    format!("{entry}{LONG_NAME_SUFFIX}")
}

/// Returns the name of a file's header.
pub fn header_file(file: FileId) -> String {
    format!("{}{HEADER_SUFFIX}", file.to_b64())
}

/// Returns the name of the file that holds a long link's target.
pub fn link_file(link: FileId) -> String {
    format!("{}{LINK_SUFFIX}", link.to_b64())
}

/// Returns a name for the unfinished replacement of `name`.
pub fn temporary_file(name: &str) -> String {
    format!("{}{TEMPORARY_SUFFIX}", name.strip_suffix(HEADER_SUFFIX).unwrap_or(name))
}

/// Returns whose header an unfinished replacement was to become; nothing for one of anything else.
pub fn temporary_header(entry: &str) -> Option<FileId> {
    entry.strip_suffix(TEMPORARY_SUFFIX).and_then(parse_id)
}

/// Returns the name of an embedded keystore's audit log that was set aside; it starts with the line of this number.
pub fn old_audit_log(first: u64) -> String {
    format!("{OLD_AUDIT_LOG}{first}{HEADER_SUFFIX}")
}

/// Returns the name of a journal. Each has one of its own, so that a sync tool never puts that of another machine in its place.
pub fn journal_file(number: u64) -> String {
    format!("{JOURNAL}{number}{HEADER_SUFFIX}")
}

/// Tells whether a name is that of a journal.
pub fn is_journal(entry: &[u8]) -> bool {
    let entry = std::str::from_utf8(entry).ok();
    entry
        .and_then(|entry| entry.strip_prefix(JOURNAL))
        .is_some_and(is_number)
}

/// Seals a name.
pub fn seal(key: &SivKey, name: &[u8]) -> DiskName {
    let mut padded = name.to_vec();
    padded.resize(name.len().next_multiple_of(PADDING), 0);
    let sealed = siv::seal(key.as_bytes(), &NAME_NONCE, b"", &padded);
    if sealed.len() <= SEALED_INLINE_MAX {
        DiskName {
            entry: BASE64URL_NOPAD.encode(&sealed),
            long: None,
        }
    } else {
        DiskName {
            entry: BASE64URL_NOPAD.encode(&long_name_hash(&sealed)),
            long: Some(sealed),
        }
    }
}

/// Opens a sealed name.
///
/// # Errors
///
/// [`OpenError`] when it was not sealed for this directory, or is no name.
pub fn open(key: &SivKey, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
    let mut name = siv::open(key.as_bytes(), &NAME_NONCE, b"", sealed)?;
    let padded_len = name.len();
    while name.last() == Some(&0) {
        name.pop();
    }
    let canonical = !name.is_empty() && name.len() <= NAME_MAX && name.len().next_multiple_of(PADDING) == padded_len;
    let is_name = canonical && !name.iter().any(|&byte| byte == 0 || byte == b'/') && name != b"." && name != b"..";
    if is_name { Ok(name) } else { Err(OpenError) }
}

/// What a name in a backing directory can be, by its shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `.` or `..`.
    Dots,
    /// An entry with this sealed name.
    Inline(Vec<u8>),
    /// An entry whose sealed name is in its long-name file.
    Long,
    /// The header of a file.
    Header(FileId),
    /// The sealed name of a long entry; the entry's name.
    LongNameFile(String),
    /// The target of a long link.
    LinkFile(FileId),
    /// A directory header.
    DirectoryHeader,
    /// The vault header, the keystore, an audit log, or a journal.
    VaultFile,
    /// The directory of what repairs have changed.
    LostAndFound,
    /// An unfinished replacement.
    Temporary,
    /// What a sync tool may have made of an entry: the part that can be its name, and the rest.
    Conflict(String, String),
    /// None of hushfs's.
    Stranger,
}

/// Tells what a name in a backing directory can be. Whether a sealed name opens is for its directory's key to say.
pub fn shape(entry: &[u8]) -> Shape {
    let Ok(entry) = std::str::from_utf8(entry) else {
        return Shape::Stranger;
    };
    match entry {
        "." | ".." => return Shape::Dots,
        VAULT_HEADER | KEYSTORE | AUDIT_LOG | AUDIT_STATE | COMING_AUDIT_LOG | COMING_AUDIT_STATE => {
            return Shape::VaultFile;
        }
        LOST_AND_FOUND => return Shape::LostAndFound,
        DIRECTORY_HEADER => return Shape::DirectoryHeader,
        _ => {}
    }
    if entry.strip_prefix(OLD_AUDIT_LOG).is_some_and(is_number) || is_journal(entry.as_bytes()) {
        return Shape::VaultFile;
    }
    if entry.ends_with(TEMPORARY_SUFFIX) {
        return Shape::Temporary;
    }
    if let Some(name) = entry.strip_suffix(LONG_NAME_SUFFIX) {
        return if is_long_hash(name) {
            Shape::LongNameFile(name.to_owned())
        } else {
            Shape::Stranger
        };
    }
    if let Some(id) = entry.strip_suffix(LINK_SUFFIX).and_then(parse_id) {
        return Shape::LinkFile(id);
    }
    if let Some(id) = entry.strip_suffix(HEADER_SUFFIX).and_then(parse_id) {
        return Shape::Header(id);
    }
    if is_long_hash(entry) {
        return Shape::Long;
    }
    if let Some(sealed) = decode_inline(entry) {
        return Shape::Inline(sealed);
    }
    conflict(entry)
}

/// Tells whether the rest of a name is a number with the suffix.
fn is_number(rest: &str) -> bool {
    let number = rest.strip_suffix(HEADER_SUFFIX).unwrap_or("");
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

fn parse_id(text: &str) -> Option<FileId> {
    if text.len() != ID_TEXT_LEN {
        return None;
    }
    FileId::from_b64(text.as_bytes())
}

fn is_long_hash(entry: &str) -> bool {
    entry.len() == LONG_HASH_LEN && BASE64URL_NOPAD.decode(entry.as_bytes()).is_ok()
}

fn decode_inline(entry: &str) -> Option<Vec<u8>> {
    let sealed = BASE64URL_NOPAD.decode(entry.as_bytes()).ok()?;
    let fits = sealed.len() > TAG_SIZE && sealed.len() <= SEALED_INLINE_MAX && sealed.len().is_multiple_of(PADDING);
    fits.then_some(sealed)
}

/// Splits a foreign name at the first character outside base64url, where sync tools put what they add.
fn conflict(entry: &str) -> Shape {
    let is_b64 = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match entry.find(|c| !is_b64(c)) {
        Some(at) if decode_inline(&entry[..at]).is_some() || is_long_hash(&entry[..at]) => {
            Shape::Conflict(entry[..at].to_owned(), entry[at..].to_owned())
        }
        _ => Shape::Stranger,
    }
}

/// Returns the name under which a sync tool's copy of an entry shows; `rest` is what the tool has added. Of a name that would be too long it has the
/// beginning, and a hash that tells it from others with the same beginning.
pub fn conflict_name(name: &[u8], rest: &str) -> Vec<u8> {
    let rest = rest.trim_matches([' ', '.', '(', ')']);
    let added = format!("{CONFLICT_MARK} {rest})");
    if name.len() + added.len() <= NAME_MAX {
        return [name, added.as_bytes()].concat();
    }
    let added = format!(
        "~{}{added}",
        BASE64URL_NOPAD.encode(&long_name_hash(name)[..SHORTENED_HASH_SIZE])
    );
    let mut len = name.len().min(NAME_MAX.saturating_sub(added.len()));
    while len > 0 && is_inside_character(name[len]) {
        len -= 1;
    }
    [&name[..len], added.as_bytes()].concat()
}

/// Tells whether a byte is none that a character begins with in UTF-8.
fn is_inside_character(byte: u8) -> bool {
    byte & 0xC0 == 0x80
}

/// Encodes a long-name file.
pub fn encode_long_name(sealed: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(12 + sealed.len());
    out.extend_from_slice(LONG_NAME_MAGIC);
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    let len = u16::try_from(sealed.len()).expect("a sealed name has at most 272 bytes");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(sealed);
    out
}

/// Decodes a long-name file that belongs to `entry`.
///
/// # Errors
///
/// [`FormatError::NotAuthentic`] when it does not give that entry's hash or its name needs no file, or another that names what is wrong.
pub fn decode_long_name(bytes: &[u8], entry: &str) -> Result<Vec<u8>, FormatError> {
    let mut reader = Reader(bytes);
    reader.magic_and_version(LONG_NAME_MAGIC)?;
    let len = usize::from(reader.u16()?);
    match reader.0.len().cmp(&len) {
        std::cmp::Ordering::Less => return Err(FormatError::TooShort),
        std::cmp::Ordering::Greater => return Err(FormatError::TrailingBytes),
        std::cmp::Ordering::Equal => {}
    }
    // The hash has no key: anybody could give an entry a second name on disk.
    let is_inline = reader.0.len() <= SEALED_INLINE_MAX;
    if is_inline || BASE64URL_NOPAD.encode(&long_name_hash(reader.0)) != entry {
        return Err(FormatError::NotAuthentic);
    }
    Ok(reader.0.to_vec())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::keys::KeyBytes;

    fn key() -> SivKey {
        SivKey::new(KeyBytes::copy_of(&[6; 32]))
    }

    #[test]
    fn names_of_every_length_come_back() {
        for len in 1..=NAME_MAX {
            let name = vec![b'n'; len];
            let disk = seal(&key(), &name);
            assert!(disk.entry.len() <= NAME_MAX && !disk.entry.contains('.'));
            match (shape(disk.entry.as_bytes()), &disk.long) {
                (Shape::Inline(sealed), None) => {
                    assert!(len <= 160);
                    assert_eq!(open(&key(), &sealed).unwrap(), name);
                }
                (Shape::Long, Some(sealed)) => {
                    assert!(len > 160);
                    let file = encode_long_name(sealed);
                    assert!(file.len() <= LONG_NAME_FILE_MAX);
                    assert_eq!(&decode_long_name(&file, &disk.entry).unwrap(), sealed);
                    assert_eq!(open(&key(), sealed).unwrap(), name);
                    assert_eq!(shape(disk.long_name_file().as_bytes()), Shape::LongNameFile(disk.entry));
                }
                other => panic!("length {len}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_name_that_fits_has_no_second_name_on_disk() {
        let inline = siv::seal(key().as_bytes(), &NAME_NONCE, b"", &[b'n'; 16]);
        let forged = BASE64URL_NOPAD.encode(&long_name_hash(&inline));
        assert_eq!(
            decode_long_name(&encode_long_name(&inline), &forged),
            Err(FormatError::NotAuthentic)
        );
    }

    #[test]
    fn lengths_on_disk_are_those_of_the_format() {
        let lengths: std::collections::BTreeSet<_> = (1..=160)
            .map(|len| seal(&key(), &vec![b'n'; len]).entry.len())
            .collect();
        assert_eq!(
            lengths.into_iter().collect::<Vec<_>>(),
            [43, 64, 86, 107, 128, 150, 171, 192, 214, 235]
        );
        assert_eq!(seal(&key(), &[b'n'; 161]).entry.len(), 44);
    }

    #[test]
    fn another_directory_gives_another_name_and_opens_none() {
        let other = SivKey::new(KeyBytes::copy_of(&[7; 32]));
        assert_ne!(seal(&key(), b"a"), seal(&other, b"a"));
        let Shape::Inline(sealed) = shape(seal(&key(), b"a").entry.as_bytes()) else {
            panic!()
        };
        assert_eq!(open(&other, &sealed), Err(OpenError));
    }

    #[test]
    fn sealed_bytes_that_are_no_name_do_not_open() {
        let sealed = |plain: &[u8]| siv::seal(key().as_bytes(), &NAME_NONCE, b"", plain);
        let padded = |name: &[u8], to: usize| {
            let mut plain = name.to_vec();
            plain.resize(to, 0);
            sealed(&plain)
        };
        assert!(open(&key(), &padded(b"name", 16)).is_ok());
        for bad in [
            padded(b"name", 32),
            padded(b"", 16),
            padded(b".", 16),
            padded(b"..", 16),
            padded(b"a/b", 16),
            padded(b"a\0b", 16),
            padded(b"name", 4),
        ] {
            assert_eq!(open(&key(), &bad), Err(OpenError));
        }
    }

    #[test]
    fn shapes() {
        let id = FileId([3; 16]);
        assert_eq!(shape(header_file(id).as_bytes()), Shape::Header(id));
        assert_eq!(shape(link_file(id).as_bytes()), Shape::LinkFile(id));
        assert_eq!(shape(b"dir.hush"), Shape::DirectoryHeader);
        assert_eq!(shape(b"vault.hush"), Shape::VaultFile);
        assert_eq!(shape(b"lost+found.hush"), Shape::LostAndFound);
        assert_eq!(shape(journal_file(u64::MAX).as_bytes()), Shape::VaultFile);
        assert_eq!(shape(temporary_file(&header_file(id)).as_bytes()), Shape::Temporary);
        assert_eq!(temporary_header(&temporary_file(&header_file(id))), Some(id));
        assert_eq!(temporary_header(&temporary_file("vault.hush")), None);
        let coming = [COMING_AUDIT_LOG, COMING_AUDIT_STATE];
        for audit in [AUDIT_LOG, AUDIT_STATE, &old_audit_log(12)].into_iter().chain(coming) {
            assert_eq!(shape(audit.as_bytes()), Shape::VaultFile, "{audit}");
        }
        assert_eq!(shape(b"."), Shape::Dots);
        for stranger in [
            &b".stfolder"[..],
            b"desktop.ini",
            b"x.hush",
            b"audit-.hush",
            b"audit-1x.hush",
            b"\xff\xfe",
            b"short",
        ] {
            assert_eq!(shape(stranger), Shape::Stranger, "{stranger:?}");
        }
        let entry = seal(&key(), b"report.txt").entry;
        let copy = format!("{entry} (Ann's conflicted copy)");
        assert_eq!(
            shape(copy.as_bytes()),
            Shape::Conflict(entry.clone(), " (Ann's conflicted copy)".into())
        );
        let copy = format!("{entry}.sync-conflict-20260101-120000-ABCDEFG");
        assert!(matches!(shape(copy.as_bytes()), Shape::Conflict(name, _) if name == entry));
    }

    #[test]
    fn a_copy_of_any_name_shows_under_a_name_that_fits_and_is_no_others() {
        let longest_rest = ".".to_owned() + &"x".repeat(NAME_MAX - 44);
        for rest in [" (Ann's conflicted copy)", &longest_rest] {
            let mut shown = std::collections::BTreeSet::new();
            for len in 1..=NAME_MAX {
                for name in ["n".repeat(len), "\u{e4}".repeat(len / 2) + "n"] {
                    shown.insert(conflict_name(name.as_bytes(), rest));
                }
            }
            // One letter is among both.
            assert_eq!(shown.len(), NAME_MAX + NAME_MAX.div_ceil(2) - 1, "{rest}");
            for name in shown {
                assert!(name.len() <= NAME_MAX, "{rest}");
                let name = String::from_utf8(name).unwrap();
                assert!(name.contains(CONFLICT_MARK) && name.ends_with(')'), "{name}");
            }
        }
        assert_eq!(conflict_name(b"a", ".sync-conflict-1"), b"a (conflict sync-conflict-1)");
        // Neither text nor a character to cut at.
        assert!(conflict_name(&[0x80; NAME_MAX], &longest_rest).starts_with(b"~"));
    }

    #[test]
    fn each_malformed_long_name_file_has_its_error() {
        let disk = seal(&key(), &[b'n'; 200]);
        let good = encode_long_name(disk.long.as_ref().unwrap());
        let decode = |bytes: &[u8]| decode_long_name(bytes, &disk.entry).unwrap_err();
        assert_eq!(decode(&good[..5]), FormatError::TooShort);
        assert_eq!(decode(&good[..good.len() - 1]), FormatError::TooShort);
        assert_eq!(decode(&[&good[..], b"x"].concat()), FormatError::TrailingBytes);
        let mut changed = good.clone();
        changed[20] ^= 1;
        assert_eq!(decode(&changed), FormatError::NotAuthentic);
    }

    proptest! {
        #[test]
        fn any_entry_has_a_shape(entry in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Shape::Inline(sealed) = shape(&entry) {
                let _ = open(&key(), &sealed);
            }
        }
    }
}
