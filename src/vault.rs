//! A vault opened: its keys, its directories' ids, one file's header and content.
//!
//! What is here works on the backing directory by names on disk; who may do what, inodes and caches are the concern of `fs`.

pub mod content;
pub mod file;
pub mod home;
pub mod rewrap;

use std::{collections::BTreeMap, fmt, io};

use zeroize::Zeroize;

use crate::{
    backing::Dir,
    crypto::{
        keys::{DataKey, MacKey, NamesRoot, SivKey, WrappingKey},
        random,
    },
    format::{
        FormatError,
        directory::{self, DIRECTORY_HEADER_SIZE, DirectoryHeader},
        header::{FileHeader, HEADER_SIZE, UnverifiedHeader},
        layout::Layout,
        name::{self, DiskName, LONG_NAME_FILE_MAX},
        xattr::XattrKeys,
    },
    ids::{DirectoryId, Epoch, FileId, VaultId},
    vault::content::ContentError,
};

/// Why a file or directory of the vault cannot be used. The rest of the vault can.
#[derive(Debug)]
pub enum VaultError {
    /// The backing filesystem failed.
    Io(io::Error),
    /// The file's header is not in its directory.
    HeaderMissing(FileId),
    /// The file's header does not decode or authenticate.
    HeaderDamaged(FileId, FormatError),
    /// The file's header lies in a directory that is not its own.
    HeaderMisplaced(FileId),
    /// The file's header is of an epoch that this vault does not have, or whose key is not at hand.
    EpochMissing(Epoch),
    /// The directory's header does not decode or authenticate.
    DirectoryDamaged(FormatError),
    /// The directory is under a name or in a directory that is not its own.
    DirectoryMisplaced,
    /// A name on disk does not open.
    NameDamaged(FormatError),
    /// The target of a link does not open.
    LinkDamaged(FormatError),
    /// An attribute does not open.
    XattrDamaged(FormatError),
    /// The content cannot be read, written or trusted.
    Content(ContentError),
}

impl fmt::Display for VaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VaultError::Io(error) => error.fmt(f),
            VaultError::HeaderMissing(id) => write!(f, "its header {} is missing", name::header_file(*id)),
            VaultError::HeaderDamaged(id, error) => write!(f, "its header {}: {error}", name::header_file(*id)),
            VaultError::HeaderMisplaced(id) => {
                write!(f, "its header {} belongs to another directory", name::header_file(*id))
            }
            VaultError::EpochMissing(epoch) => write!(f, "its header is of epoch {epoch}, whose key is not here"),
            VaultError::DirectoryDamaged(error) => write!(f, "its {}: {error}", name::DIRECTORY_HEADER),
            VaultError::DirectoryMisplaced => f.write_str("directory moved or renamed by someone outside hushfs"),
            VaultError::NameDamaged(error) => write!(f, "its name: {error}"),
            VaultError::LinkDamaged(error) => write!(f, "its target: {error}"),
            VaultError::XattrDamaged(error) => write!(f, "an extended attribute: {error}"),
            VaultError::Content(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for VaultError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            VaultError::Io(error) => Some(error),
            VaultError::Content(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for VaultError {
    fn from(error: io::Error) -> Self {
        VaultError::Io(error)
    }
}

impl From<ContentError> for VaultError {
    fn from(error: ContentError) -> Self {
        match error {
            ContentError::Io(error) => VaultError::Io(error),
            error => VaultError::Content(error),
        }
    }
}

/// The wrapping keys of a vault's epochs.
#[derive(Debug)]
pub struct EpochKeys {
    keys: BTreeMap<Epoch, WrappingKey>,
    current: Epoch,
}

impl EpochKeys {
    /// Gathers the keys that were opened; that of the current epoch must be among them.
    pub fn new(keys: BTreeMap<Epoch, WrappingKey>, current: Epoch) -> Self {
        assert!(
            keys.contains_key(&current),
            "a vault opens with the key of its current epoch"
        );
        EpochKeys { keys, current }
    }

    /// Returns the epoch that new files use.
    pub fn current(&self) -> Epoch {
        self.current
    }

    /// Returns the key that wraps data keys in an epoch.
    ///
    /// # Errors
    ///
    /// [`VaultError::EpochMissing`]: never a default, and an error of the file at hand only.
    pub fn wrapping_key(&self, epoch: Epoch) -> Result<&WrappingKey, VaultError> {
        self.keys.get(&epoch).ok_or(VaultError::EpochMissing(epoch))
    }
}

/// A vault whose keys are open.
#[derive(Debug)]
pub struct Vault {
    id: VaultId,
    layout: Layout,
    epochs: EpochKeys,
    names_root: NamesRoot,
    directory_header_key: MacKey,
    symlink_key: SivKey,
    xattr_keys: XattrKeys,
}

/// A directory's id, and the key of the names in it.
#[derive(Debug)]
pub struct DirectoryKeys {
    /// The id.
    pub id: DirectoryId,
    name_key: SivKey,
}

impl DirectoryKeys {
    /// Seals a name of this directory.
    pub fn seal_name(&self, name: &[u8]) -> DiskName {
        name::seal(&self.name_key, name)
    }

    /// Opens the sealed name of an entry; nothing when it is not one of this directory.
    pub fn open_name(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        name::open(&self.name_key, sealed).ok()
    }

    /// Opens the name of a long entry, which its long-name file holds.
    ///
    /// # Errors
    ///
    /// [`VaultError::NameDamaged`] when that file is missing or not this entry's.
    pub fn open_long_name(&self, dir: &Dir, entry: &str) -> Result<Vec<u8>, VaultError> {
        let bytes = dir
            .read_small(&name::long_name_file(entry), LONG_NAME_FILE_MAX)?
            .ok_or(VaultError::NameDamaged(FormatError::TooShort))?;
        let sealed = name::decode_long_name(&bytes, entry).map_err(VaultError::NameDamaged)?;
        self.open_name(&sealed)
            .ok_or(VaultError::NameDamaged(FormatError::NotAuthentic))
    }
}

impl Vault {
    /// Puts an opened vault together.
    pub fn new(id: VaultId, layout: Layout, epochs: EpochKeys, names_root: NamesRoot) -> Self {
        Vault {
            id,
            layout,
            epochs,
            directory_header_key: names_root.directory_header_key(),
            symlink_key: names_root.symlink_key(),
            xattr_keys: XattrKeys {
                value: names_root.xattr_key(),
                name: names_root.xattr_name_key(),
            },
            names_root,
        }
    }

    /// Returns the vault's id.
    pub fn id(&self) -> VaultId {
        self.id
    }

    /// Returns how data files are divided into blocks.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns the keys of the epochs.
    pub fn epochs(&self) -> &EpochKeys {
        &self.epochs
    }

    /// Returns the key of the targets of symbolic links.
    pub fn symlink_key(&self) -> &SivKey {
        &self.symlink_key
    }

    /// Returns the keys of extended attributes.
    pub fn xattr_keys(&self) -> &XattrKeys {
        &self.xattr_keys
    }

    /// Returns the keys of the root directory.
    pub fn root_keys(&self) -> DirectoryKeys {
        self.directory_keys(self.names_root.root_directory_id())
    }

    fn directory_keys(&self, id: DirectoryId) -> DirectoryKeys {
        DirectoryKeys {
            id,
            name_key: self.names_root.directory_name_key(id),
        }
    }

    /// Returns the keys of a directory found under a name.
    ///
    /// # Errors
    ///
    /// [`VaultError::DirectoryDamaged`] or [`VaultError::DirectoryMisplaced`] when its header is not its own.
    pub fn load_directory(&self, dir: &Dir, parent: DirectoryId, name: &[u8]) -> Result<DirectoryKeys, VaultError> {
        let Some(header) = self.load_directory_header(dir)? else {
            return Ok(self.directory_keys(self.names_root.directory_id(parent, name)));
        };
        if !header.admits(&directory::place(&self.directory_header_key, parent, name)) {
            return Err(VaultError::DirectoryMisplaced);
        }
        Ok(self.directory_keys(header.directory))
    }

    /// Returns a directory's header, if it has one.
    ///
    /// # Errors
    ///
    /// [`VaultError::DirectoryDamaged`] when it is not authentic.
    pub fn load_directory_header(&self, dir: &Dir) -> Result<Option<DirectoryHeader>, VaultError> {
        match dir.read_small(name::DIRECTORY_HEADER, DIRECTORY_HEADER_SIZE) {
            Ok(None) => Ok(None),
            Ok(Some(bytes)) => DirectoryHeader::decode(&bytes, &self.directory_header_key)
                .map(Some)
                .map_err(VaultError::DirectoryDamaged),
            Err(error) if error.raw_os_error() == Some(libc::EFBIG) => {
                Err(VaultError::DirectoryDamaged(FormatError::TrailingBytes))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Prepares a directory for another name: afterwards both the present and the coming one fit it, durably.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives; the directory is as before then.
    pub fn announce_directory_rename(
        &self,
        dir: &Dir,
        id: DirectoryId,
        from: (DirectoryId, &[u8]),
        to: (DirectoryId, &[u8]),
    ) -> Result<(), VaultError> {
        let place = |(parent, name)| directory::place(&self.directory_header_key, parent, name);
        self.store_directory_header(dir, id, place(from), Some(place(to)))
    }

    /// Ends a directory's rename: only the present name fits it from now on.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives; both names fit then.
    pub fn settle_directory(&self, dir: &Dir, id: DirectoryId, at: (DirectoryId, &[u8])) -> Result<(), VaultError> {
        let place = directory::place(&self.directory_header_key, at.0, at.1);
        self.store_directory_header(dir, id, place, None)
    }

    fn store_directory_header(
        &self,
        dir: &Dir,
        directory: DirectoryId,
        place: [u8; 32],
        next_place: Option<[u8; 32]>,
    ) -> Result<(), VaultError> {
        let header = DirectoryHeader {
            directory,
            place,
            next_place,
        };
        // A header is no change that anyone should see in the directory's time of modification.
        let before = dir.stat_self()?;
        dir.replace(
            name::DIRECTORY_HEADER,
            &name::temporary_file(name::DIRECTORY_HEADER),
            &header.encode(&self.directory_header_key),
        )?;
        dir.keep_modified(&before)?;
        Ok(())
    }

    /// Makes a header with a new file id and a new data key.
    pub fn new_header(&self, directory: DirectoryId) -> FileHeader {
        FileHeader::new(
            self.layout.suite(),
            self.epochs.current(),
            FileId(random::bytes()),
            directory,
            DataKey::new(random::key()),
        )
    }

    /// Loads and verifies a file's header from its directory.
    ///
    /// # Errors
    ///
    /// The [`VaultError`] that says what is wrong with it.
    pub fn load_header(&self, dir: &Dir, directory: DirectoryId, file: FileId) -> Result<FileHeader, VaultError> {
        let mut bytes = match dir.read_small(&name::header_file(file), HEADER_SIZE) {
            Ok(bytes) => bytes.ok_or(VaultError::HeaderMissing(file))?,
            Err(error) if error.raw_os_error() == Some(libc::EFBIG) => {
                return Err(VaultError::HeaderDamaged(file, FormatError::TrailingBytes));
            }
            Err(error) => return Err(error.into()),
        };
        let header = self.verify_header(file, &bytes)?;
        bytes.zeroize();
        if header.fields.directory != directory {
            return Err(VaultError::HeaderMisplaced(file));
        }
        Ok(header)
    }

    /// Verifies a file's header, wherever it lies.
    fn verify_header(&self, file: FileId, bytes: &[u8]) -> Result<FileHeader, VaultError> {
        let damaged = |error| VaultError::HeaderDamaged(file, error);
        let header = UnverifiedHeader::decode(bytes).map_err(damaged)?;
        let key = self.epochs.wrapping_key(header.epoch())?;
        let header = header
            .verify(self.id, key)
            .map_err(|_| damaged(FormatError::NotAuthentic))?;
        if header.fields.file != file {
            return Err(damaged(FormatError::NotAuthentic));
        }
        if header.fields.suite != self.layout.suite() {
            return Err(damaged(FormatError::OutOfRange("suite")));
        }
        Ok(header)
    }

    /// Verifies a file's header and encodes it anew under the current epoch; nothing when it is of that already.
    ///
    /// The directory stays the one that the header names, whether it lies there or not: whoever opens the file compares.
    ///
    /// # Errors
    ///
    /// The [`VaultError`] that says what is wrong with it.
    pub fn rewrap_header(&self, file: FileId, bytes: &[u8]) -> Result<Option<[u8; HEADER_SIZE]>, VaultError> {
        let mut header = self.verify_header(file, bytes)?;
        if header.fields.epoch == self.epochs.current() {
            return Ok(None);
        }
        header.fields.epoch = self.epochs.current();
        self.encode_header(&header).map(Some)
    }

    /// Stores a header in the directory it names. It is not durable yet.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives; no header is left then.
    pub fn store_header(&self, dir: &Dir, header: &FileHeader) -> Result<(), VaultError> {
        dir.write_small(&name::header_file(header.fields.file), &self.encode_header(header)?)?;
        Ok(())
    }

    /// Encodes a header under the key of its epoch.
    ///
    /// # Errors
    ///
    /// [`VaultError::EpochMissing`].
    pub fn encode_header(&self, header: &FileHeader) -> Result<[u8; HEADER_SIZE], VaultError> {
        let key = self.epochs.wrapping_key(header.fields.epoch)?;
        Ok(header.encode(self.id, key))
    }

    /// Makes the header with which a file can also be opened from another directory.
    pub fn header_for_directory(&self, header: FileHeader, directory: DirectoryId) -> FileHeader {
        FileHeader::new(
            header.fields.suite,
            self.epochs.current(),
            header.fields.file,
            directory,
            header.data_key,
        )
    }
}
