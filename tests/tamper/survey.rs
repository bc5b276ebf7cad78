//! Reads all that a vault shows, without a mount, and judges it against what was written there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
};

use hushfs::{
    fs::{Fs, FsError, FsOptions, ROOT},
    fsck,
    keystore::{KeyFile, SlotChoice, Unlock},
    vault::home::{Lock, OpenError, OpenVault, VaultHome},
};
use rustix::fs::FileType;

use crate::sample::BLOCK;

/// What a path holds. `None` stands for what gives an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Directory,
    /// Block by block.
    File(Vec<Option<Vec<u8>>>),
    Link(Option<Vec<u8>>),
    /// Neither kind nor content can be had.
    Refused,
}

/// What a path shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub what: What,
    /// Attributes by name; none of them where one does not open.
    pub attributes: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
}

/// A tree, by path.
pub type Tree = BTreeMap<Vec<u8>, Seen>;

/// What became of tampering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The vault does not open.
    Shut,
    /// Everything reads as it was written.
    Correct,
    /// An error, in place of what was written.
    Refused,
    /// Something is not there, and `fsck` or `verify` says so.
    MissingReported,
    /// Something is not there.
    Missing,
    /// Other content, as docs/SECURITY.md says it may be.
    Undetected(&'static str),
}

/// What docs/SECURITY.md says is not detected.
pub const LINKS_EXCHANGED: Outcome = Outcome::Undetected("targets of links exchanged");
pub const ATTRIBUTES_EXCHANGED: Outcome = Outcome::Undetected("an attribute removed, or another file's value of it");
pub const EMPTIED: Outcome = Outcome::Undetected("a file emptied");
pub const OTHER_NAME_OF_SEVERAL: Outcome =
    Outcome::Undetected("a file of several names under another name of its directory");
pub const OTHER_KIND: Outcome = Outcome::Undetected("a directory in the place of something else");

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Undetected(what) => write!(f, "undetected: {what}"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// Opens a vault with the key file that tests have.
pub fn open(vault: &Path) -> Result<OpenVault, OpenError> {
    let unlock = Unlock::KeyFile(KeyFile::new(vec![7; 32].into()).unwrap());
    VaultHome::enter(vault, Lock::Unlocked)?.open(&unlock, &SlotChoice::Any)
}

fn view(open: OpenVault) -> (Fs, VaultHome) {
    let (vault, home) = open.into_vault();
    let options = FsOptions {
        read_only: true,
        shared: false,
        acl: false,
        own_uid: 0,
        own_gid: 0,
        cached_descriptors: 64,
        journal: false,
    };
    (Fs::new(vault, home.open_dir().unwrap(), options).unwrap(), home)
}

/// Reads everything that there is, and what is at the paths of `known` though no listing has it.
///
/// # Errors
///
/// Why the vault does not open.
pub fn survey(vault: &Path, known: &Tree) -> Result<Tree, OpenError> {
    let (fs, _home) = view(open(vault)?);
    let mut tree = Tree::new();
    walk(&fs, ROOT, b"", &mut tree);
    for path in known.keys().filter(|path| !path.is_empty()) {
        if tree.contains_key(path) {
            continue;
        }
        let found = path
            .split(|&byte| byte == b'/')
            .try_fold((ROOT, FileType::Directory), |(at, _), name| {
                fs.look_up(at, name).map(|found| (found.node.id, found.attr.kind()))
            });
        match found {
            Ok((id, kind)) => {
                tree.insert(path.clone(), see(&fs, id, kind));
            }
            Err(FsError::NotFound | FsError::NotDirectory) => {}
            Err(error) if is_refusal(&error) => {
                tree.insert(path.clone(), refused());
            }
            Err(error) => panic!("{:?}: {error}", String::from_utf8_lossy(path)),
        }
    }
    Ok(tree)
}

/// EIO, or ENOKEY for a header that names an epoch which the vault has not.
fn is_refusal(error: &FsError) -> bool {
    matches!(error.errno(), libc::EIO | libc::ENOKEY)
        // A file of another kind in the place of what hushfs made.
        || matches!(error.errno(), libc::ELOOP | libc::ENOTDIR | libc::EISDIR | libc::EXDEV)
}

fn refused() -> Seen {
    Seen {
        what: What::Refused,
        attributes: None,
    }
}

fn walk(fs: &Fs, id: u64, path: &[u8], tree: &mut Tree) {
    let mut below = Vec::new();
    let listed = fs.list_plus(id, 0, |listed| {
        if let Some(found) = &listed.found {
            below.push((listed.entry.name.clone(), found.node.id, found.attr.kind()));
        }
        true
    });
    let mut seen = see(fs, id, FileType::Directory);
    if let Err(error) = listed {
        assert!(is_refusal(&error), "{:?}: {error}", String::from_utf8_lossy(path));
        seen.what = What::Refused;
    }
    tree.insert(path.to_vec(), seen);
    for (name, id, kind) in below {
        let path = if path.is_empty() {
            name
        } else {
            [path, b"/", &name].concat()
        };
        if kind == FileType::Directory {
            walk(fs, id, &path, tree);
        } else {
            tree.insert(path, see(fs, id, kind));
        }
    }
}

fn see(fs: &Fs, id: u64, kind: FileType) -> Seen {
    let what = match kind {
        FileType::Directory => What::Directory,
        FileType::RegularFile => blocks(fs, id),
        FileType::Symlink => What::Link(fs.read_link(id).ok()),
        _ => What::Refused,
    };
    let attributes = fs.list_xattrs(id, true).and_then(|names| {
        let names = names.split(|&byte| byte == 0).filter(|name| !name.is_empty());
        names.map(|name| Ok((name.to_vec(), fs.get_xattr(id, name)?))).collect()
    });
    Seen {
        what,
        attributes: attributes.ok(),
    }
}

fn blocks(fs: &Fs, id: u64) -> What {
    if let Err(error) = fs.open(id, false) {
        assert!(is_refusal(&error), "{error}");
        return What::Refused;
    }
    let mut blocks = Vec::new();
    // One more than it may have: the end shows as an empty block.
    let size = fs.get_attr(id).unwrap().size as usize;
    for block in 0..size.div_ceil(BLOCK) {
        let mut buffer = Vec::new();
        match fs.read(id, (block * BLOCK) as u64, BLOCK, &mut buffer) {
            Ok(range) => blocks.push(Some(buffer[range].to_vec())),
            Err(error) => {
                assert!(is_refusal(&error), "block {block}: {error}");
                blocks.push(None);
            }
        }
    }
    fs.release(id);
    if blocks.iter().all(Option::is_none) && !blocks.is_empty() {
        return What::Refused;
    }
    What::File(blocks)
}

/// Tells whether `fsck` or `verify` has something to say of a vault.
pub fn is_reported(vault: &Path) -> bool {
    let Ok(open) = open(vault) else { return true };
    let (fs, home) = view(open);
    let mut findings = 0;
    let checked = fsck::check(fs.vault(), home.dir(), &|| false, &mut |event| {
        findings += usize::from(matches!(event, fsck::Event::Found(_)));
    });
    checked.is_err() || findings > 0 || !verifies(&fs, ROOT)
}

fn verifies(fs: &Fs, id: u64) -> bool {
    let mut below = Vec::new();
    let listed = fs.list_plus(id, 0, |listed| {
        if let Some(found) = &listed.found {
            below.push((found.node.id, found.attr.kind()));
        }
        true
    });
    listed.is_ok()
        && below.into_iter().all(|(id, kind)| match kind {
            FileType::Directory => verifies(fs, id),
            FileType::RegularFile => fs.verify(id, |_| ()).is_ok() && fs.list_xattrs(id, true).is_ok(),
            FileType::Symlink => fs.read_link(id).is_ok(),
            _ => true,
        })
}

/// Judges what is seen of a vault against what it was at one time or another.
///
/// # Errors
///
/// What is wrong: other than any of the versions, and not documented to be possible.
pub fn judge(vault: &Path, seen: &Tree, versions: &[&Tree]) -> Result<BTreeSet<Outcome>, String> {
    let mut outcomes = BTreeSet::new();
    for (path, seen) in seen {
        let outcome = judge_path(path, seen, versions, vault)
            .map_err(|what| format!("{:?}: {what}", String::from_utf8_lossy(path)))?;
        outcomes.insert(outcome);
        outcomes.insert(judge_attributes(path, seen, versions)?);
    }
    let everywhere = |path: &Vec<u8>| versions.iter().all(|version| version.contains_key(path));
    if versions[0]
        .keys()
        .any(|path| everywhere(path) && !seen.contains_key(path))
    {
        outcomes.insert(if is_reported(vault) {
            Outcome::MissingReported
        } else {
            Outcome::Missing
        });
    }
    Ok(outcomes)
}

fn judge_path(path: &[u8], seen: &Seen, versions: &[&Tree], vault: &Path) -> Result<Outcome, String> {
    let wholes: Vec<&What> = versions.iter().filter_map(|tree| Some(&tree.get(path)?.what)).collect();
    if wholes.is_empty() {
        return Err("was never there".to_owned());
    }
    if wholes.contains(&&seen.what) {
        return Ok(Outcome::Correct);
    }
    let elsewhere = || versions.iter().flat_map(|tree| tree.values());
    match &seen.what {
        What::Refused | What::Link(None) => Ok(Outcome::Refused),
        // Nothing says what kind of file a name is of. What is in the directory was never here, and is judged at its own path.
        What::Directory if is_reported(vault) => Ok(Outcome::MissingReported),
        What::Directory => Ok(OTHER_KIND),
        What::Link(Some(_)) if elsewhere().any(|other| other.what == seen.what) => Ok(LINKS_EXCHANGED),
        What::Link(Some(target)) => Err(format!("leads to {:?}", String::from_utf8_lossy(target))),
        What::File(blocks) if blocks.is_empty() => Ok(EMPTIED),
        What::File(blocks) => {
            if wholes.iter().any(|whole| is_part_of(blocks, whole)) {
                return Ok(Outcome::Refused);
            }
            if wholes.iter().any(|whole| is_part_of_sparse(blocks, whole)) && is_reported(vault) {
                return Ok(Outcome::Undetected("a block of a sparse file zeroed, until verify"));
            }
            let directory = |path: &[u8]| path.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at);
            let same_directory = |other: &[u8]| other[..directory(other)] == path[..directory(path)];
            let is_linked = |other: &Vec<u8>| other.ends_with(b"linked") || other.ends_with(b"linked-too");
            let is_others = versions
                .iter()
                .flat_map(|tree| tree.iter())
                .any(|(at, other)| is_linked(at) && same_directory(at) && other.what == seen.what);
            if is_others {
                return Ok(OTHER_NAME_OF_SEVERAL);
            }
            Err("reads as what was never written there".to_owned())
        }
    }
}

/// The blocks that can be read are those of the file, at their places, and no more.
fn is_part_of(blocks: &[Option<Vec<u8>>], whole: &What) -> bool {
    let What::File(whole) = whole else { return false };
    let has_error = blocks.iter().any(Option::is_none);
    has_error
        && blocks.len() == whole.len()
        && blocks
            .iter()
            .zip(whole)
            .all(|(one, other)| one.is_none() || one == other)
}

/// As [`is_part_of`], where blocks of a file with a hole may have become holes.
fn is_part_of_sparse(blocks: &[Option<Vec<u8>>], whole: &What) -> bool {
    let What::File(whole) = whole else { return false };
    let is_zero = |block: &Option<Vec<u8>>| block.as_ref().is_some_and(|block| block.iter().all(|&byte| byte == 0));
    whole.iter().any(is_zero)
        && blocks.len() == whole.len()
        && blocks.iter().zip(whole).all(|(one, other)| {
            let is_as_long = one.as_ref().map(Vec::len) == other.as_ref().map(Vec::len);
            one.is_none() || one == other || (is_zero(one) && is_as_long)
        })
}

fn judge_attributes(path: &[u8], seen: &Seen, versions: &[&Tree]) -> Result<Outcome, String> {
    let Some(found) = &seen.attributes else {
        return Ok(Outcome::Refused);
    };
    let all = || versions.iter().flat_map(|tree| tree.iter());
    let is_original = all().any(|(at, one)| at == path && one.attributes.as_ref() == Some(found));
    if is_original || all().all(|(at, _)| at != path) {
        return Ok(Outcome::Correct);
    }
    for (name, value) in found {
        let was_written = |one: &Seen| one.attributes.as_ref().and_then(|all| all.get(name)) == Some(value);
        if !all().any(|(_, one)| was_written(one)) {
            return Err(format!(
                "an attribute of {:?} has a value that none had",
                String::from_utf8_lossy(path)
            ));
        }
    }
    Ok(ATTRIBUTES_EXCHANGED)
}
