//! A snapshot: an authenticated list of all that is in a vault, sealed in chunks (docs/FORMAT.md section 12).

use super::{FORMAT_VERSION, FormatError, Reader, name::NAME_MAX, record::SeenHome};
use crate::{
    crypto::{TAG_SIZE, keys::SivKey, siv},
    ids::{DirectoryId, Epoch, FileId, KeystoreId, SnapshotId, VaultId},
    units::PlainSize,
};

const MAGIC: &[u8; 8] = b"HUSHSNAP";

/// The size of a snapshot's front, in bytes.
pub const SNAPSHOT_FRONT_SIZE: usize = 48;

/// Bytes of the list in one chunk; fewer in the last.
pub const CHUNK_SIZE: usize = 65_536;

/// Bytes of a chunk on disk.
pub const SEALED_CHUNK_SIZE: usize = CHUNK_SIZE + TAG_SIZE;

/// The size of what the list begins with, in bytes.
pub const SNAPSHOT_HEAD_SIZE: usize = 72;

/// The largest entry, in bytes: its fixed fields, the longest name, and those of a sealed file.
const ENTRY_SIZE_MAX: usize = 8 + NAME_MAX + 57;

const _: () = assert!(ENTRY_SIZE_MAX < CHUNK_SIZE);

const FLAG_IN_USE: u32 = 1;

const KIND_END: u8 = 0;
const KIND_DIRECTORY: u8 = 1;
const KIND_BLANK: u8 = 2;
const KIND_OPEN: u8 = 3;
const KIND_SEALED: u8 = 4;
const KIND_LINK: u8 = 5;
const KIND_SPECIAL: u8 = 6;
const KIND_UNREADABLE: u8 = 7;

/// Of which vault a snapshot is, and which of its snapshots. Authenticated with every chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotFront {
    /// The vault.
    pub vault: VaultId,
    /// The snapshot.
    pub snapshot: SnapshotId,
}

impl SnapshotFront {
    /// Encodes the front.
    pub fn encode(&self) -> [u8; SNAPSHOT_FRONT_SIZE] {
        let mut out = [0; SNAPSHOT_FRONT_SIZE];
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.vault.0);
        out[32..].copy_from_slice(&self.snapshot.0);
        out
    }

    /// Decodes a front; nothing is authentic before a chunk has opened.
    ///
    /// # Errors
    ///
    /// The [`FormatError`] that names the first thing wrong.
    pub fn decode(bytes: &[u8; SNAPSHOT_FRONT_SIZE]) -> Result<Self, FormatError> {
        let mut reader = Reader(bytes);
        reader.magic_and_version(MAGIC)?;
        if reader.take::<6>()? != [0; 6] {
            return Err(FormatError::OutOfRange("reserved bytes"));
        }
        Ok(SnapshotFront {
            vault: VaultId(reader.take()?),
            snapshot: SnapshotId(reader.take()?),
        })
    }

    /// Seals a chunk of the list.
    pub fn seal_chunk(&self, key: &SivKey, index: u64, last: bool, plain: &[u8]) -> Vec<u8> {
        siv::seal(key.as_bytes(), &chunk_nonce(index, last), &self.encode(), plain)
    }

    /// Opens a chunk of the list.
    ///
    /// # Errors
    ///
    /// [`FormatError::NotAuthentic`] when it is not this one: changed, of another place or snapshot, or not the last where it should be.
    pub fn open_chunk(&self, key: &SivKey, index: u64, last: bool, sealed: &[u8]) -> Result<Vec<u8>, FormatError> {
        siv::open(key.as_bytes(), &chunk_nonce(index, last), &self.encode(), sealed)
            .map_err(|_| FormatError::NotAuthentic)
    }
}

/// The key is the snapshot's own, so a chunk's place in it is all the nonce needs.
fn chunk_nonce(index: u64, last: bool) -> [u8; siv::NONCE_SIZE] {
    let mut nonce = [0; siv::NONCE_SIZE];
    nonce[..8].copy_from_slice(&index.to_le_bytes());
    nonce[8] = last.into();
    nonce
}

/// What is said of the whole vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotHead {
    /// When it was begun, in seconds since 1970.
    pub time: u64,
    /// The vault was in use meanwhile: the list is not of one moment.
    pub in_use: bool,
    /// The snapshot that unchanged files were taken over from.
    pub base: Option<SnapshotId>,
    /// The vault header and the keystore.
    pub home: SeenHome,
}

impl SnapshotHead {
    /// Encodes the head.
    pub fn encode(&self) -> [u8; SNAPSHOT_HEAD_SIZE] {
        let mut out = [0; SNAPSHOT_HEAD_SIZE];
        out[..8].copy_from_slice(&self.time.to_le_bytes());
        out[8..12].copy_from_slice(&(u32::from(self.in_use) * FLAG_IN_USE).to_le_bytes());
        out[12..28].copy_from_slice(&self.base.map_or([0; 16], |base| base.0));
        out[28..32].copy_from_slice(&self.home.epoch.0.to_le_bytes());
        out[32..48].copy_from_slice(&self.home.header);
        out[48..64].copy_from_slice(&self.home.keystore.0);
        out[64..].copy_from_slice(&self.home.generation.to_le_bytes());
        out
    }

    /// Decodes a head.
    ///
    /// # Errors
    ///
    /// The [`FormatError`] that names the first thing wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader(bytes);
        let (time, flags, base) = (reader.u64()?, reader.u32()?, reader.take::<16>()?);
        if flags & !FLAG_IN_USE != 0 {
            return Err(FormatError::OutOfRange("flags"));
        }
        Ok(SnapshotHead {
            time,
            in_use: flags & FLAG_IN_USE != 0,
            base: (base != [0; 16]).then_some(SnapshotId(base)),
            home: SeenHome {
                epoch: Epoch(reader.u32()?),
                header: reader.take()?,
                keystore: KeystoreId(reader.take()?),
                generation: reader.u64()?,
            },
        })
    }
}

/// The content of a sealed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedContent {
    /// Its mark.
    pub mark: [u8; 16],
    /// It was sealed for one name.
    pub placed: bool,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileState {
    /// Never written.
    Blank,
    /// Written, and sealed or not since.
    Written {
        /// The file's id.
        file: FileId,
        /// The size of its content.
        size: PlainSize,
        /// How often it was sealed.
        count: u64,
        /// What it was sealed with; nothing for a file that is being written.
        sealed: Option<SealedContent>,
    },
}

/// What an entry of the vault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Directory(DirectoryId),
    /// A file.
    File {
        /// The mark of the attributes by which it is known to be unchanged.
        stamp: u64,
        /// What it is.
        state: FileState,
    },
    /// A symbolic link.
    Link {
        /// The mark of what stands on disk for it.
        mark: [u8; 16],
    },
    /// A device, a socket or a pipe.
    Special {
        /// The device's number.
        device: u64,
    },
    /// Something that could not be read.
    Unreadable,
}

/// An entry of the list. A directory's entries stand right behind it, by rising names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How many directories it is in, besides the root.
    pub depth: u16,
    /// Its name.
    pub name: Vec<u8>,
    /// Its type and permissions.
    pub mode: u32,
    /// What it is.
    pub what: What,
}

/// What the list goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An entry.
    Entry(Entry),
    /// Its end.
    End {
        /// How many entries there were.
        entries: u64,
    },
}

impl Item {
    /// Encodes what the list goes on with.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        let entry = match self {
            Item::End { entries } => {
                out.push(KIND_END);
                out.extend_from_slice(&entries.to_le_bytes());
                return;
            }
            Item::Entry(entry) => entry,
        };
        let kind = match entry.what {
            What::Directory(_) => KIND_DIRECTORY,
            What::File {
                state: FileState::Blank,
                ..
            } => KIND_BLANK,
            What::File {
                state: FileState::Written { sealed: None, .. },
                ..
            } => KIND_OPEN,
            What::File { .. } => KIND_SEALED,
            What::Link { .. } => KIND_LINK,
            What::Special { .. } => KIND_SPECIAL,
            What::Unreadable => KIND_UNREADABLE,
        };
        out.push(kind);
        out.extend_from_slice(&entry.depth.to_le_bytes());
        out.push(entry.name.len().min(NAME_MAX) as u8);
        out.extend_from_slice(&entry.name[..entry.name.len().min(NAME_MAX)]);
        out.extend_from_slice(&entry.mode.to_le_bytes());
        match entry.what {
            What::Directory(id) => out.extend_from_slice(&id.0),
            What::File { stamp, state } => {
                out.extend_from_slice(&stamp.to_le_bytes());
                if let FileState::Written {
                    file,
                    size,
                    count,
                    sealed,
                } = state
                {
                    out.extend_from_slice(&file.0);
                    out.extend_from_slice(&size.0.to_le_bytes());
                    out.extend_from_slice(&count.to_le_bytes());
                    if let Some(SealedContent { mark, placed }) = sealed {
                        out.extend_from_slice(&mark);
                        out.push(placed.into());
                    }
                }
            }
            What::Link { mark } => out.extend_from_slice(&mark),
            What::Special { device } => out.extend_from_slice(&device.to_le_bytes()),
            What::Unreadable => {}
        }
    }

    /// Decodes what `bytes` begin with; returns its size too.
    ///
    /// # Errors
    ///
    /// [`FormatError::TooShort`] where the rest stands in the next chunk; otherwise what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), FormatError> {
        let mut reader = Reader(bytes);
        let [kind] = reader.take()?;
        if kind == KIND_END {
            let entries = reader.u64()?;
            return Ok((Item::End { entries }, bytes.len() - reader.0.len()));
        }
        let depth = reader.u16()?;
        let [name_len] = reader.take()?;
        let (name, rest) = reader
            .0
            .split_at_checked(name_len.into())
            .ok_or(FormatError::TooShort)?;
        reader.0 = rest;
        if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
            return Err(FormatError::OutOfRange("name"));
        }
        let mode = reader.u32()?;
        let what = match kind {
            KIND_DIRECTORY => What::Directory(DirectoryId(reader.take()?)),
            KIND_BLANK => What::File {
                stamp: reader.u64()?,
                state: FileState::Blank,
            },
            KIND_OPEN | KIND_SEALED => What::File {
                stamp: reader.u64()?,
                state: FileState::Written {
                    file: FileId(reader.take()?),
                    size: PlainSize(reader.u64()?),
                    count: reader.u64()?,
                    sealed: match kind {
                        KIND_OPEN => None,
                        _ => Some(SealedContent {
                            mark: reader.take()?,
                            placed: match reader.take()? {
                                [0] => false,
                                [1] => true,
                                _ => return Err(FormatError::OutOfRange("flags")),
                            },
                        }),
                    },
                },
            },
            KIND_LINK => What::Link { mark: reader.take()? },
            KIND_SPECIAL => What::Special { device: reader.u64()? },
            KIND_UNREADABLE => What::Unreadable,
            _ => return Err(FormatError::OutOfRange("kind of an entry")),
        };
        let entry = Entry {
            depth,
            name: name.to_vec(),
            mode,
            what,
        };
        Ok((Item::Entry(entry), bytes.len() - reader.0.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{keys::NamesRoot, locked::LockedKey};

    fn front() -> SnapshotFront {
        SnapshotFront {
            vault: VaultId([1; 16]),
            snapshot: SnapshotId([2; 16]),
        }
    }

    fn key() -> SivKey {
        NamesRoot::new(LockedKey::copy_of(&[6; 32])).snapshot_key(SnapshotId([2; 16]))
    }

    fn items() -> Vec<Item> {
        let written = |sealed| FileState::Written {
            file: FileId([4; 16]),
            size: PlainSize(5),
            count: 6,
            sealed,
        };
        let content = |placed| Some(SealedContent { mark: [7; 16], placed });
        let file = |state| What::File { stamp: 8, state };
        let whats = [
            What::Directory(DirectoryId([3; 16])),
            file(FileState::Blank),
            file(written(None)),
            file(written(content(true))),
            file(written(content(false))),
            What::Link { mark: [9; 16] },
            What::Special { device: 10 },
            What::Unreadable,
        ];
        let entry = |(depth, what)| {
            Item::Entry(Entry {
                depth: depth as u16,
                name: vec![b'n'; NAME_MAX - depth],
                mode: 0o100_644,
                what,
            })
        };
        let end = Item::End { entries: 8 };
        whats.into_iter().enumerate().map(entry).chain([end]).collect()
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        assert_eq!(SnapshotFront::decode(&front().encode()), Ok(front()));
        let home = SeenHome {
            epoch: Epoch(3),
            header: [4; 16],
            keystore: KeystoreId([5; 16]),
            generation: 6,
        };
        for (in_use, base) in [(false, None), (true, Some(SnapshotId([1; 16])))] {
            let head = SnapshotHead {
                time: 7,
                in_use,
                base,
                home,
            };
            assert_eq!(SnapshotHead::decode(&head.encode()), Ok(head));
        }
        for item in items() {
            let mut bytes = Vec::new();
            item.encode_into(&mut bytes);
            assert!(bytes.len() <= ENTRY_SIZE_MAX);
            let size = bytes.len();
            bytes.extend_from_slice(b"the next");
            assert_eq!(Item::decode(&bytes), Ok((item, size)));
        }
    }

    #[test]
    fn an_entry_that_is_cut_is_told_from_a_wrong_one() {
        for item in items() {
            let mut bytes = Vec::new();
            item.encode_into(&mut bytes);
            for len in 0..bytes.len() {
                assert_eq!(Item::decode(&bytes[..len]), Err(FormatError::TooShort), "{item:?}");
            }
        }
    }

    #[test]
    fn a_name_that_no_file_can_have_is_refused() {
        for name in [&b""[..], b"a/b", b"a\0"] {
            let mut bytes = Vec::new();
            let entry = Entry {
                depth: 0,
                name: name.to_vec(),
                mode: 0,
                what: What::Special { device: 0 },
            };
            Item::Entry(entry).encode_into(&mut bytes);
            assert_eq!(Item::decode(&bytes), Err(FormatError::OutOfRange("name")));
        }
    }

    #[test]
    fn a_chunk_opens_in_its_place_only() {
        let sealed = front().seal_chunk(&key(), 3, false, b"list");
        assert_eq!(front().open_chunk(&key(), 3, false, &sealed).unwrap(), b"list");
        let other = SnapshotFront {
            vault: VaultId([9; 16]),
            ..front()
        };
        for (front, index, last) in [(front(), 4, false), (front(), 3, true), (other, 3, false)] {
            assert_eq!(
                front.open_chunk(&key(), index, last, &sealed),
                Err(FormatError::NotAuthentic)
            );
        }
    }
}
