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

/// How many characters names of entries have.
const ENTRY_LENS: [usize; 11] = [43, LONG_HASH_LEN, 64, 86, 107, 128, 150, 171, 192, 214, 235];

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

// What a tool has added is what is left of the name on disk, of which the shortest entry takes 43 bytes; the mark, two hashes and what is around them fit into that.
const _: () = assert!(CONFLICT_MARK.len() + " )~~".len() + 2 * (SHORTENED_HASH_SIZE.div_ceil(3) * 4) <= 43);

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

/// Splits a foreign name where sync tools add something to an entry's: at the first character outside base64url, or at one in it that a tool is known to put there.
fn conflict(entry: &str) -> Shape {
    let at = entry.find(|c: char| !is_b64(c)).filter(|at| is_entry(&entry[..*at]));
    // Of the lengths that fit the longest: what is added is short, and begins like none of them.
    let at = at.or_else(|| {
        let mut lens = ENTRY_LENS.into_iter().rev();
        lens.find(|&len| entry.get(len..).is_some_and(is_known_addition) && is_entry(&entry[..len]))
    });
    match at.map(|at| entry.split_at(at)) {
        // The copy of a file with a long name's sealed name.
        Some((_, rest)) if rest.starts_with(".long") && rest.contains(HEADER_SUFFIX) => Shape::Stranger,
        Some((base, rest)) => Shape::Conflict(base.to_owned(), rest.to_owned()),
        None => Shape::Stranger,
    }
}

fn is_b64(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

fn is_entry(name: &str) -> bool {
    decode_inline(name).is_some() || is_long_hash(name)
}

/// Tells whether tools add this to names although it begins with a character of base64url: OneDrive `-HOST` and `-HOST-2`, its client for Linux
/// `-HOST-safeBackup-0001`, ownCloud and Nextcloud `_conflict-20261122-184500`.
fn is_known_addition(rest: &str) -> bool {
    const HOST_MAX: usize = 15;
    let digits_and_dashes = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    if let Some(time) = rest.strip_prefix("_conflict-") {
        return time.starts_with(|c: char| c.is_ascii_digit()) && digits_and_dashes(time);
    }
    let Some(host) = rest.strip_prefix('-') else {
        return false;
    };
    if let Some((host, number)) = host.rsplit_once("-safeBackup-") {
        return !host.is_empty() && number.len() == 4 && digits_and_dashes(number);
    }
    let host = host
        .rsplit_once('-')
        .filter(|(_, n)| n.len() == 1 && digits_and_dashes(n))
        .map_or(host, |(host, _)| host);
    let is_of_host = |c: char| c.is_ascii_alphanumeric() || c == '-';
    (1..=HOST_MAX).contains(&host.len()) && host.chars().all(is_of_host) && !host.starts_with("safeBackup")
}

/// Tells, without decoding it, whether a name on disk has what a sync tool adds to an entry's, if it is of an entry at all.
pub fn has_addition(entry: &str) -> bool {
    !ENTRY_LENS.contains(&entry.len()) || !entry.chars().all(is_b64)
}

/// Tells whether a name that is none of hushfs's is what a sync tool has left of one: the copy, in a conflict, of what serves an entry, or an unfinished file of
/// rsync (`.NAME.Ab3xYz`) or Syncthing (`.syncthing.NAME.tmp`).
pub fn is_left_by_sync_tool(entry: &[u8]) -> bool {
    let Ok(entry) = std::str::from_utf8(entry) else {
        return false;
    };
    is_copy_of_what_serves(entry) || unfinished(entry).is_some_and(is_of_a_directory)
}

fn is_copy_of_what_serves(entry: &str) -> bool {
    let of_directory = entry.strip_prefix("dir");
    let of_file = entry.split_at_checked(ID_TEXT_LEN);
    let of_file = of_file.and_then(|(id, rest)| parse_id(id).map(|_| rest));
    let of_long_name = entry
        .split_at_checked(LONG_HASH_LEN)
        .filter(|(hash, _)| is_long_hash(hash));
    let of_long_name = of_long_name.and_then(|(_, rest)| rest.strip_prefix(".long"));
    // Tools put what they add before the last dot, or at the end.
    let is_copy = |rest: &str| {
        let begins = rest.starts_with([' ', '.', '-', '_', '(', '~']);
        begins && (rest.starts_with(HEADER_SUFFIX) || rest.ends_with(HEADER_SUFFIX))
    };
    [of_directory, of_file, of_long_name].into_iter().flatten().any(is_copy)
}

/// Returns of what a sync tool was making a file.
fn unfinished(entry: &str) -> Option<&str> {
    let of_syncthing = [".syncthing.", "~syncthing~"].into_iter();
    let mut of_syncthing = of_syncthing.filter_map(|start| entry.strip_prefix(start)?.strip_suffix(".tmp"));
    let of_rsync = || {
        let (name, random) = entry.strip_prefix('.')?.rsplit_once('.')?;
        (random.len() == 6 && random.bytes().all(|byte| byte.is_ascii_alphanumeric())).then_some(name)
    };
    of_syncthing.next().or_else(of_rsync)
}

/// Tells whether a name is of what hushfs makes in any directory.
fn is_of_a_directory(entry: &str) -> bool {
    matches!(
        shape(entry.as_bytes()),
        Shape::Inline(_)
            | Shape::Long
            | Shape::Header(_)
            | Shape::LongNameFile(_)
            | Shape::LinkFile(_)
            | Shape::DirectoryHeader
    )
}

/// Returns the name under which a sync tool's copy of an entry shows; `rest` is what the tool has added. Of a name that would be too long it has the
/// beginning, and a hash that tells it from others with the same beginning.
pub fn conflict_name(name: &[u8], rest: &str) -> Vec<u8> {
    let added = format!("{CONFLICT_MARK} {})", shown_addition(rest));
    if name.len() + added.len() <= NAME_MAX {
        return [name, added.as_bytes()].concat();
    }
    let added = format!("~{}{added}", short_hash(name));
    let mut len = name.len().min(NAME_MAX.saturating_sub(added.len()));
    while len > 0 && is_inside_character(name[len]) {
        len -= 1;
    }
    [&name[..len], added.as_bytes()].concat()
}

/// Returns how what a tool has added shows: without the dots and brackets around it, and where these are not those it most often has, with a hash. Otherwise `NAME (1)`
/// and `NAME.1` had one name, and who writes to one would read the other.
fn shown_addition(rest: &str) -> String {
    let inner = rest.trim_matches([' ', '.', '(', ')']);
    let usual = match inner.chars().next() {
        Some(first) if first.is_ascii_digit() || first.is_alphanumeric() && inner.contains(' ') => {
            format!(" ({inner})")
        }
        Some(first) if first.is_alphanumeric() => format!(".{inner}"),
        _ => inner.to_owned(),
    };
    match rest == usual {
        true => inner.to_owned(),
        false => format!("{inner}~{}", short_hash(rest.as_bytes())),
    }
}

fn short_hash(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(&long_name_hash(bytes)[..SHORTENED_HASH_SIZE])
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
            lengths.iter().copied().collect::<Vec<_>>(),
            [43, 64, 86, 107, 128, 150, 171, 192, 214, 235]
        );
        assert_eq!(seal(&key(), &[b'n'; 161]).entry.len(), 44);
        let mut known = lengths;
        known.insert(44);
        assert_eq!(known.into_iter().collect::<Vec<_>>(), ENTRY_LENS);
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
    fn what_tools_add_with_characters_of_a_sealed_name_is_known() {
        for len in [1, 20, 100, 160, 200] {
            let entry = seal(&key(), &vec![b'n'; len]).entry;
            for added in [
                "-DESKTOP1",
                "-MACBOOK-PRO",
                "-DESKTOP1-2",
                "-my.host-safeBackup-0001",
                "-a-host-of-a-long-name-safeBackup-0001",
                "_conflict-20261122-184500",
            ] {
                let copy = format!("{entry}{added}");
                assert!(copy.len() > NAME_MAX || has_addition(&copy), "{copy}");
                assert_eq!(
                    shape(copy.as_bytes()),
                    Shape::Conflict(entry.clone(), added.into()),
                    "{copy}"
                );
            }
            for other in [
                "-",
                "_",
                "-safeBackup-0001",
                "_conflict-",
                "_of-a-stranger",
                "-anamethatnohosthas",
            ] {
                let copy = format!("{entry}{other}");
                assert!(!matches!(shape(copy.as_bytes()), Shape::Conflict(..)), "{copy}");
            }
            assert!(!has_addition(&entry));
        }
    }

    #[test]
    fn what_sync_tools_leave_of_what_serves_entries_is_known() {
        let id = FileId([3; 16]).to_b64();
        let (short, long) = (seal(&key(), b"a").entry, seal(&key(), &[b'n'; 200]).entry);
        for left in [
            format!("{id}.sync-conflict-20260101-120000-ABCDEFG.hush"),
            format!("{id} (Ann's conflicted copy).hush"),
            format!("{id}-DESKTOP1.hush"),
            format!("{id}.hush.orig"),
            format!("{id}.link.sync-conflict-1.hush"),
            format!("{long}.long.sync-conflict-1.hush"),
            "dir.sync-conflict-1.hush".into(),
            "dir (1).hush".into(),
            "dir_conflict-20261122-184500.hush".into(),
            format!(".{short}.Ab3xYz"),
            format!(".{long}.Ab3xYz"),
            format!(".{id}.hush.Ab3xYz"),
            ".dir.hush.Ab3xYz".into(),
            format!(".syncthing.{short}.tmp"),
            format!("~syncthing~{id}.hush.tmp"),
        ] {
            assert!(is_left_by_sync_tool(left.as_bytes()), "{left}");
            assert_eq!(shape(left.as_bytes()), Shape::Stranger, "{left}");
        }
        for other in [
            &b"\xff"[..],
            b".~tmp~",
            b".stfolder",
            b"directory.hush",
            b"dirt",
            b"dir",
            b"dir.orig",
            b"vault.sync-conflict-1.hush",
            b"keystore (1).hush",
            b".notes.Ab3xYz",
            b".vault.hush.Ab3xYz",
            b".syncthing.notes.tmp",
            format!(".{short}.orig").as_bytes(),
            format!("{short}.sync-conflict-1").as_bytes(),
        ] {
            assert!(!is_left_by_sync_tool(other), "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn copies_of_one_entry_show_under_names_of_their_own() {
        let rests = [
            " (1)", ".1", " 1", "(1)", "..1", "-1", "~1", " (a b)", ".a b", ".a", " (a)", "-HOST", ".-HOST", "~",
        ];
        let shown: std::collections::BTreeSet<_> = rests.iter().map(|rest| conflict_name(b"n", rest)).collect();
        assert_eq!(shown.len(), rests.len());
        assert_eq!(conflict_name(b"n", " (1)"), b"n (conflict 1)");
        assert_eq!(conflict_name(b"n", "-HOST"), b"n (conflict -HOST)");
        assert_eq!(conflict_name(b"n", " (Ann's copy)"), b"n (conflict Ann's copy)");
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
