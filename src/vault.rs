//! A vault opened: its keys, its directories' ids, one file's header and content.
//!
//! What is here works on the backing directory by names on disk; who may do what, inodes and caches are the concern of `fs`.

pub mod access;
pub mod beginning;
pub mod choice;
pub mod content;
pub mod facts;
pub mod file;
pub mod freshness;
pub mod header_watch;
pub mod home;
pub mod journal;
pub mod keeper;
pub mod own_keys;
pub mod path;
pub mod record;
pub mod rewrap;
pub mod sealed;
pub mod snapshot;
pub mod tree;

use std::{collections::BTreeMap, fmt, io, sync::Arc, time::Duration};

use parking_lot::RwLock;
use zeroize::Zeroize;

use crate::{
    backing::{BackingFile, Dir},
    crypto::{
        keys::{DataKey, MacKey, NamesRoot, SivKey, WrappingKey},
        random,
        record::RecordKey,
    },
    format::{
        FormatError,
        directory::{self, DIRECTORY_HEADER_SIZE, DirectoryHeader},
        header::{FileHeader, HEADER_SIZE_MAX, UnverifiedHeader},
        layout::Layout,
        name::{self, DiskName, LONG_NAME_FILE_MAX},
        vault::EpochRecord,
        xattr::XattrKeys,
    },
    ids::{DirectoryId, Epoch, FileId, SnapshotId, VaultId},
    keystore::KeyError,
    vault::{
        access::EpochAccess,
        choice::{KeyChoice, KeyOfFile},
        content::ContentError,
        header_watch::{EpochTaker, HeaderWatch},
        own_keys::{Ask, NewOwnKey, OwnAccess, OwnKeys},
        record::Backwards,
    },
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
    /// The file's header is of an epoch that this vault does not have.
    EpochMissing(Epoch),
    /// A header would be of an epoch that another machine has retired: nobody could open it.
    EpochRetired(Epoch),
    /// The file's header is of an epoch whose key its custodian does not give, or did not when it was last asked.
    EpochKey(Epoch, KeyError),
    /// Who has the key of a file without a bucket key has to be asked first, which nobody else is to wait for.
    KeyNeeded(Arc<Ask>),
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
    /// The file is older than when it was last seen here, and such files are refused.
    RolledBack(Backwards),
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
            VaultError::EpochRetired(epoch) => {
                write!(
                    f,
                    "another machine has retired epoch {epoch}: mount the vault again to store something new"
                )
            }
            VaultError::EpochKey(epoch, error) => write!(f, "its header is of epoch {epoch}: {error}"),
            VaultError::KeyNeeded(ask) => write!(f, "it has no bucket key, and key {} was not asked for it", ask.key()),
            VaultError::DirectoryDamaged(error) => write!(f, "its {}: {error}", name::DIRECTORY_HEADER),
            VaultError::DirectoryMisplaced => f.write_str("directory moved or renamed by someone outside hushfs"),
            VaultError::NameDamaged(error) => write!(f, "its name: {error}"),
            VaultError::LinkDamaged(error) => write!(f, "its target: {error}"),
            VaultError::XattrDamaged(error) => write!(f, "an extended attribute: {error}"),
            VaultError::Content(error) => error.fmt(f),
            VaultError::RolledBack(backwards) => backwards.fmt(f),
        }
    }
}

impl std::error::Error for VaultError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            VaultError::Io(error) => Some(error),
            VaultError::Content(error) => Some(error),
            VaultError::EpochKey(_, error) => Some(error),
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

/// The wrapping keys of a vault's epochs, and why there is none where there is none.
#[derive(Debug)]
pub struct EpochKeys {
    keys: BTreeMap<Epoch, Arc<EpochAccess>>,
    current: Epoch,
    /// What another machine has made since the vault was opened.
    taken: RwLock<Vec<TakenEpoch>>,
}

/// An epoch that another machine has made, taken over while the vault is open.
#[derive(Clone, Debug)]
pub struct TakenEpoch {
    /// Its key.
    pub access: Arc<EpochAccess>,
    /// What the vault header says of it.
    pub record: Arc<EpochRecord>,
    /// When its key was asked for, as a time since boot.
    pub asked: Duration,
    /// New files use it.
    pub is_current: bool,
}

impl EpochKeys {
    /// Starts with the key of the current epoch, without which no vault opens.
    pub fn new(current: Epoch, key: WrappingKey) -> Self {
        let mut this = EpochKeys {
            keys: BTreeMap::new(),
            current,
            taken: RwLock::default(),
        };
        this.insert(current, Ok(key));
        this
    }

    /// Adds the key of an epoch, or why it does not open.
    pub fn insert(&mut self, epoch: Epoch, key: Result<WrappingKey, KeyError>) {
        self.keys.insert(epoch, Arc::new(EpochAccess::new(epoch, key)));
    }

    /// Makes an epoch the current one.
    pub fn advance(&mut self, epoch: Epoch, key: WrappingKey) {
        self.insert(epoch, Ok(key));
        self.current = epoch;
    }

    /// Takes over what another machine has made.
    fn take_over(&self, taken: Vec<TakenEpoch>) {
        self.taken.write().extend(taken);
    }

    /// Returns what was taken over, but for so many that came first.
    pub fn taken_since(&self, first: usize) -> Vec<TakenEpoch> {
        self.taken.read().iter().skip(first).cloned().collect()
    }

    /// Returns the newest epoch that the vault header had when it was opened, of whatever key.
    pub fn newest(&self) -> Epoch {
        self.keys.keys().next_back().copied().unwrap_or(self.current)
    }

    /// Returns the epoch that new files use.
    pub fn current(&self) -> Epoch {
        let taken = self.taken.read();
        let newest = taken.iter().rev().find(|taken| taken.is_current);
        newest.map_or(self.current, |taken| taken.access.epoch())
    }

    /// Returns the keys of all epochs that the vault had when it was opened, by rising number, with whether they may be used.
    pub fn all(&self) -> impl Iterator<Item = &Arc<EpochAccess>> {
        self.keys.values()
    }

    /// Returns the key of an epoch, with whether it may be used.
    ///
    /// # Errors
    ///
    /// [`VaultError::EpochMissing`].
    pub fn access(&self, epoch: Epoch) -> Result<Arc<EpochAccess>, VaultError> {
        if let Some(access) = self.keys.get(&epoch) {
            return Ok(access.clone());
        }
        let taken = self.taken.read();
        let found = taken.iter().find(|taken| taken.access.epoch() == epoch);
        found
            .map(|taken| taken.access.clone())
            .ok_or(VaultError::EpochMissing(epoch))
    }

    /// Checks that the key that wraps data keys in an epoch is there and may be used.
    ///
    /// # Errors
    ///
    /// [`VaultError::EpochMissing`] or [`VaultError::EpochKey`]: never a default, and an error of the file at hand only.
    pub fn check(&self, epoch: Epoch) -> Result<(), VaultError> {
        self.access(epoch)?.check()
    }
}

/// A vault whose keys are open.
#[derive(Debug)]
pub struct Vault {
    id: VaultId,
    layout: Layout,
    epochs: EpochKeys,
    choice: KeyChoice,
    own_keys: OwnKeys,
    /// Where something else may change the vault.
    header_watch: Option<HeaderWatch>,
    /// Takes over what else makes epochs, where the keys are at hand.
    taker: Option<Box<dyn EpochTaker>>,
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
            choice: KeyChoice::default(),
            own_keys: OwnKeys::new(id),
            header_watch: None,
            taker: None,
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

    /// Looks from now on whether something else changes the vault header, which is in this directory.
    pub fn watch_header(&mut self, dir: Dir) {
        let known = self.epochs.keys.keys().copied().collect();
        self.header_watch = Some(HeaderWatch::new(self.id, dir, known));
    }

    /// Takes over no epoch from now on: a vault header would have to be compared with a record, which is done when a vault is opened.
    pub fn take_over_nothing(&mut self) {
        self.taker = None;
    }

    /// Checks that what is wrapped in an epoch can be opened later.
    ///
    /// # Errors
    ///
    /// [`VaultError::EpochRetired`].
    pub fn check_not_retired(&self, epoch: Epoch) -> Result<(), VaultError> {
        let Some(watch) = &self.header_watch else {
            return Ok(());
        };
        watch.look(&self.epochs, self.taker.as_deref(), false);
        watch.check(epoch)
    }

    /// Returns which keys files have and get.
    pub fn choice(&self) -> &KeyChoice {
        &self.choice
    }

    /// Returns the secrets of files without a bucket key.
    pub fn own_keys(&self) -> &OwnKeys {
        &self.own_keys
    }

    /// Returns the key of a new file, unless its directory has one of its own.
    pub fn key_of_new_files(&self) -> KeyOfFile {
        if let Some(watch) = &self.header_watch {
            watch.look(&self.epochs, self.taker.as_deref(), false);
        }
        let of_vault = || KeyOfFile {
            epoch: self.epochs.current(),
            bucket_key: self.choice.has_bucket_key(),
        };
        self.choice.customer().map_or_else(of_vault, KeyOfFile::of_epoch)
    }

    /// Returns the epoch that new files of the same key as an epoch's use.
    pub fn newest_epoch_like(&self, epoch: Epoch) -> Epoch {
        self.choice.newest_like(epoch).unwrap_or(self.epochs.current())
    }

    /// Returns the key for another header of a file that keeps its key: the newest epoch of it that can be used.
    pub fn key_to_keep(&self, key: KeyOfFile) -> KeyOfFile {
        let newest = self.newest_epoch_like(key.epoch);
        match self.epochs.check(newest) {
            Ok(()) => KeyOfFile { epoch: newest, ..key },
            Err(_) => key,
        }
    }

    /// Returns the key of the targets of symbolic links.
    pub fn symlink_key(&self) -> &SivKey {
        &self.symlink_key
    }

    /// Returns the key of the MACs in journals.
    pub fn journal_key(&self) -> MacKey {
        self.names_root.journal_key()
    }

    /// Returns the keys of extended attributes.
    pub fn xattr_keys(&self) -> &XattrKeys {
        &self.xattr_keys
    }

    /// Returns the key of what was seen of the vault.
    pub fn record_key(&self) -> RecordKey {
        self.names_root.record_key()
    }

    /// Returns the key of a snapshot of the vault.
    pub fn snapshot_key(&self, snapshot: SnapshotId) -> SivKey {
        self.names_root.snapshot_key(snapshot)
    }

    /// Returns the keys of the root directory.
    pub fn root_keys(&self) -> DirectoryKeys {
        self.directory_keys(self.names_root.root_directory_id())
    }

    /// Returns the keys of a directory whose id is known.
    pub fn directory_keys(&self, id: DirectoryId) -> DirectoryKeys {
        DirectoryKeys {
            id,
            name_key: self.names_root.directory_name_key(id),
        }
    }

    /// Returns the keys of a directory that is made under a name, which it keeps until it is renamed.
    pub fn born_directory_keys(&self, parent: DirectoryId, name: &[u8]) -> DirectoryKeys {
        self.directory_keys(self.names_root.directory_id(parent, name))
    }

    /// Returns the keys of a directory found under a name.
    ///
    /// # Errors
    ///
    /// [`VaultError::DirectoryDamaged`] or [`VaultError::DirectoryMisplaced`] when its header is not its own.
    pub fn load_directory(&self, dir: &Dir, parent: DirectoryId, name: &[u8]) -> Result<DirectoryKeys, VaultError> {
        let Some(header) = self.load_directory_header(dir)? else {
            return Ok(self.born_directory_keys(parent, name));
        };
        if !self.admits(&header, parent, name) {
            return Err(VaultError::DirectoryMisplaced);
        }
        Ok(self.directory_keys(header.directory))
    }

    /// Tells whether a directory with a header may be found under a name.
    pub fn admits(&self, header: &DirectoryHeader, parent: DirectoryId, name: &[u8]) -> bool {
        header.admits(&directory::place(&self.directory_header_key, parent, name))
    }

    /// Returns a directory's header, if it has one.
    ///
    /// # Errors
    ///
    /// [`VaultError::DirectoryDamaged`] when it is not authentic.
    pub fn load_directory_header(&self, dir: &Dir) -> Result<Option<DirectoryHeader>, VaultError> {
        self.load_directory_header_under(dir, name::DIRECTORY_HEADER)
    }

    /// As [`load_directory_header`](Self::load_directory_header), under another name: a copy that a sync tool or a repair has made.
    ///
    /// # Errors
    ///
    /// [`VaultError::DirectoryDamaged`] when it is not authentic.
    pub fn load_directory_header_under(&self, dir: &Dir, name: &str) -> Result<Option<DirectoryHeader>, VaultError> {
        match dir.read_small(name, DIRECTORY_HEADER_SIZE) {
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
        let header = DirectoryHeader {
            directory: id,
            place: directory::place(&self.directory_header_key, from.0, from.1),
            next_place: Some(directory::place(&self.directory_header_key, to.0, to.1)),
        };
        self.store_directory_header(dir, name::DIRECTORY_HEADER, &header)
    }

    /// Ends a directory's rename: only the present name fits it from now on.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives; both names fit then.
    pub fn settle_directory(&self, dir: &Dir, id: DirectoryId, at: (DirectoryId, &[u8])) -> Result<(), VaultError> {
        self.settle_directory_under(dir, name::DIRECTORY_HEADER, id, at)
    }

    /// As [`settle_directory`](Self::settle_directory), in a copy under another name, beside the header that there is.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives.
    pub fn settle_directory_under(
        &self,
        dir: &Dir,
        name: &str,
        id: DirectoryId,
        at: (DirectoryId, &[u8]),
    ) -> Result<(), VaultError> {
        let header = DirectoryHeader {
            directory: id,
            place: directory::place(&self.directory_header_key, at.0, at.1),
            next_place: None,
        };
        self.store_directory_header(dir, name, &header)
    }

    fn store_directory_header(&self, dir: &Dir, name: &str, header: &DirectoryHeader) -> Result<(), VaultError> {
        // A header is no change that anyone should see in the directory's time of modification.
        let before = dir.stat_self()?;
        let bytes = header.encode(&self.directory_header_key);
        dir.replace_for(name, &name::temporary_file(name), &bytes, &before)?;
        dir.keep_modified(&before)?;
        Ok(())
    }

    /// Makes a header with a new file id and a new data key, of the epoch that new files use, and with a bucket key.
    pub fn new_header(&self, directory: DirectoryId) -> FileHeader {
        self.new_header_of(self.key_of_new_files().epoch, directory)
    }

    /// As [`new_header`](Self::new_header), of another epoch.
    pub fn new_header_of(&self, epoch: Epoch, directory: DirectoryId) -> FileHeader {
        let (id, key) = random::id_and_key();
        FileHeader::new(self.layout.suite(), epoch, FileId(id), directory, DataKey::new(key))
    }

    /// Makes a header with a new data key, which a secret of the file's own wraps.
    pub fn new_header_without_bucket_key(&self, new: &NewOwnKey, directory: DirectoryId) -> FileHeader {
        let (_, key) = random::id_and_key();
        let header = FileHeader::new(self.layout.suite(), new.epoch, new.file, directory, DataKey::new(key));
        FileHeader {
            own: Some(new.own().clone()),
            ..header
        }
    }

    /// Returns whether a file may be used that has no bucket key; nothing where it has one.
    pub fn own_access(&self, header: &FileHeader) -> Option<Arc<OwnAccess>> {
        let own = header.own.as_ref()?;
        Some(self.own_keys.access(header.fields.file, header.fields.epoch, own))
    }

    /// Loads and verifies a file's header from its directory.
    ///
    /// # Errors
    ///
    /// The [`VaultError`] that says what is wrong with it.
    pub fn load_header(&self, dir: &Dir, directory: DirectoryId, file: FileId) -> Result<FileHeader, VaultError> {
        let header = self.load_header_of_any(dir, file)?;
        if header.fields.directory != directory {
            return Err(VaultError::HeaderMisplaced(file));
        }
        Ok(header)
    }

    /// As [`load_header`](Self::load_header), of a header that may be for another directory: for who looks what has become of it.
    ///
    /// # Errors
    ///
    /// The [`VaultError`] that says what is wrong with it.
    pub fn load_header_of_any(&self, dir: &Dir, file: FileId) -> Result<FileHeader, VaultError> {
        let mut bytes = read_header(dir, file)?;
        let header = self.verify_header(file, &bytes)?;
        bytes.zeroize();
        Ok(header)
    }

    /// Verifies a file's header, wherever it lies.
    fn verify_header(&self, file: FileId, bytes: &[u8]) -> Result<FileHeader, VaultError> {
        let damaged = |error| VaultError::HeaderDamaged(file, error);
        let header = UnverifiedHeader::decode(bytes).map_err(damaged)?;
        let access = match (self.epochs.access(header.epoch()), &self.header_watch) {
            (Err(VaultError::EpochMissing(epoch)), Some(watch)) => {
                watch.look(&self.epochs, self.taker.as_deref(), true);
                self.epochs.access(epoch)?
            }
            (access, _) => access?,
        };
        let key = access.key()?;
        let verified = match header.own() {
            None => header.verify(self.id, key),
            Some(wrap) => {
                let access = self.own_keys.known(file, header.epoch(), wrap)?;
                header.verify_own(self.id, key, access.own())
            }
        };
        let header = verified.map_err(|_| damaged(FormatError::NotAuthentic))?;
        if header.fields.file != file {
            return Err(damaged(FormatError::NotAuthentic));
        }
        if header.fields.suite != self.layout.suite() {
            return Err(damaged(FormatError::OutOfRange("suite")));
        }
        Ok(header)
    }

    /// Verifies a file's header and encodes it anew, of another epoch or with or without a bucket key; nothing when it is so already.
    ///
    /// The directory stays the one that the header names, whether it lies there or not: whoever opens the file compares. What is returned
    /// was opened once, to the same key: the old version can be replaced.
    ///
    /// # Errors
    ///
    /// The [`VaultError`] that says what is wrong with it.
    pub fn rewrap_header(&self, file: FileId, bytes: &[u8], key: KeyOfFile) -> Result<Option<Vec<u8>>, VaultError> {
        let claimed = UnverifiedHeader::decode(bytes).map_err(|error| VaultError::HeaderDamaged(file, error))?;
        if claimed.own().is_some() && !key.bucket_key && claimed.epoch() == key.epoch {
            // To open it would take a call, for nothing but to know; `verify` is for that.
            return Ok(None);
        }
        let mut header = match self.verify_header(file, bytes) {
            // Nothing is to be done, whoever has the key.
            Err(VaultError::EpochKey(own, _)) if own == key.epoch && claimed.own().is_none() && key.bucket_key => {
                return Ok(None);
            }
            verified => verified?,
        };
        if header.fields.epoch == key.epoch && header.own.is_none() && key.bucket_key {
            return Ok(None);
        }
        header.fields.epoch = key.epoch;
        header.own = match key.bucket_key {
            true => None,
            false => Some(self.own_keys.for_file(key.epoch, file)?.own().clone()),
        };
        let rewrapped = self.encode_header(&header)?;
        let again = self.verify_header(file, &rewrapped)?;
        // Its commitment was checked against its key, and is the one that the data file has.
        if again.fields != header.fields {
            return Err(VaultError::HeaderDamaged(file, FormatError::NotAuthentic));
        }
        Ok(Some(rewrapped))
    }

    /// Stores a header in the directory it names, and returns its file. It is not durable yet.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives; no header is left then.
    pub fn store_header(&self, dir: &Dir, header: &FileHeader) -> Result<BackingFile, VaultError> {
        let bytes = self.encode_header(header)?;
        Ok(dir.write_small(&name::header_file(header.fields.file), &bytes)?)
    }

    /// Encodes a header, under the key of its epoch and the file's own secret, if it has one.
    ///
    /// # Errors
    ///
    /// [`VaultError::EpochMissing`] or [`VaultError::EpochRetired`].
    pub fn encode_header(&self, header: &FileHeader) -> Result<Vec<u8>, VaultError> {
        self.check_not_retired(header.fields.epoch)?;
        let access = self.epochs.access(header.fields.epoch)?;
        Ok(header.encode(self.id, access.key()?))
    }

    /// Makes the header with which a file can also be opened from another directory, under the same key.
    pub fn header_for_directory(&self, header: FileHeader, directory: DirectoryId) -> FileHeader {
        let Some(own) = header.own else {
            let key = KeyOfFile::of_epoch(header.fields.epoch);
            return FileHeader::new(
                header.fields.suite,
                self.key_to_keep(key).epoch,
                header.fields.file,
                directory,
                header.data_key,
            );
        };
        // The secret stays, and with it the epoch: it is wrapped under the version that the key had then.
        let fields = header.fields;
        let header = FileHeader::new(fields.suite, fields.epoch, fields.file, directory, header.data_key);
        FileHeader {
            own: Some(own),
            ..header
        }
    }
}

/// Reads a file's header, whatever it is worth.
fn read_header(dir: &Dir, file: FileId) -> Result<Vec<u8>, VaultError> {
    match dir.read_small(&name::header_file(file), HEADER_SIZE_MAX) {
        Ok(bytes) => bytes.ok_or(VaultError::HeaderMissing(file)),
        Err(error) if error.raw_os_error() == Some(libc::EFBIG) => {
            Err(VaultError::HeaderDamaged(file, FormatError::TrailingBytes))
        }
        Err(error) => Err(error.into()),
    }
}
