//! One open data file: nothing yet, or content with a key.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use rustix::{
    fs::{self, FileType, Stat, Timestamps},
    io::Errno,
};

use super::{
    Vault, VaultError,
    access::EpochAccess,
    beginning::Beginning,
    choice::KeyOfFile,
    content::{Content, SealTicket, Stored},
    journal::{Identity, Journal, Journaled},
    own_keys::{NewOwnKey, OwnAccess},
};
use crate::{
    backing::{BackingFile, Dir, Storage, mtime_of},
    format::{
        header::{FileHeader, HEADER_SIZE_MAX, UnverifiedHeader},
        name,
    },
    ids::{DirectoryId, Epoch, FileId},
    units::CipherSize,
};

/// Content whose durable blocks are changed by way of the journal.
pub type FileContent = Content<Journaled<Arc<BackingFile>>>;

/// The journal of the data files of a mount.
pub type FileJournal = Journal<Arc<BackingFile>>;

/// An open data file.
///
/// A file that was never written has no id and no key; they are made, and the header stored, before its first byte.
#[derive(Debug)]
pub struct VaultFile {
    file: Arc<BackingFile>,
    content: OnceLock<Keyed>,
    id: OnceLock<FileId>,
    /// The key that its header shall have, where that is not the one of other new files.
    kept_key: OnceLock<KeyOfFile>,
    /// A secret of its own for its header, asked for when it was made or opened so that no write has to wait.
    prepared: Mutex<Option<NewOwnKey>>,
    /// Held while content is made for a file that has none.
    creating: Mutex<()>,
    /// Its header is made by this, if it has one.
    made_header: bool,
    /// The inode number of the data file, where that was looked at.
    inode: Option<u64>,
    /// Headers that were stored, one for each directory that the file came into, and how many of them are known to be on disk with their names.
    headers_stored: AtomicU32,
    headers_durable: AtomicU32,
    /// The preamble is known to be on disk, this one or an older one.
    beginning_durable: AtomicBool,
    /// There are zeros in it that nobody wrote; see [`Beginning::Zeros`].
    is_zeros: bool,
    /// Where changes of what is durable go first.
    journal: Option<Arc<FileJournal>>,
    /// Attributes or names were changed since the data file was last synced whole.
    attributes_changed: AtomicBool,
    /// Handles that the kernel has by which it can be written.
    writers: AtomicU32,
    /// How often content had been changed when it last became durable.
    durable_changes: AtomicU64,
    /// Changes since then may be lost.
    changes_lost: AtomicBool,
    /// A sync of the header has not succeeded.
    header_in_doubt: AtomicBool,
}

/// Content with a key, and whether that may be used.
#[derive(Debug)]
struct Keyed {
    content: FileContent,
    /// Of the epoch whose key wraps the file's.
    access: Arc<EpochAccess>,
    /// Of the file alone, where it has no bucket key.
    own: Option<Arc<OwnAccess>>,
}

impl Keyed {
    fn new(vault: &Vault, content: FileContent, header: &FileHeader) -> Result<Self, VaultError> {
        Ok(Keyed {
            content,
            access: vault.epochs().access(header.fields.epoch)?,
            own: vault.own_access(header),
        })
    }

    fn check(&self) -> Result<(), VaultError> {
        self.access.check()?;
        self.own.as_ref().map_or(Ok(()), |own| own.check())
    }
}

/// How many headers a file had when it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeaderCount(u32);

/// By which names a file may be opened.
#[derive(Clone, Copy, Debug)]
pub struct FoundAt<'a> {
    /// The directory.
    pub directory: DirectoryId,
    /// The name.
    pub name: &'a [u8],
}

impl VaultFile {
    /// Takes a file that was just created.
    pub fn created(file: BackingFile, journal: Option<Arc<FileJournal>>) -> Self {
        Self::blank(Arc::new(file), journal)
    }

    fn blank(file: Arc<BackingFile>, journal: Option<Arc<FileJournal>>) -> Self {
        VaultFile {
            journal,
            attributes_changed: AtomicBool::new(true),
            writers: AtomicU32::new(0),
            durable_changes: AtomicU64::new(0),
            changes_lost: AtomicBool::new(false),
            header_in_doubt: AtomicBool::new(false),
            file,
            content: OnceLock::new(),
            id: OnceLock::new(),
            kept_key: OnceLock::new(),
            prepared: Mutex::new(None),
            creating: Mutex::new(()),
            made_header: true,
            inode: None,
            headers_stored: AtomicU32::new(1),
            headers_durable: AtomicU32::new(0),
            beginning_durable: AtomicBool::new(false),
            is_zeros: false,
        }
    }

    /// Opens a data file found under a name: loads its header from `dir` and checks all that can be checked at once.
    ///
    /// # Errors
    ///
    /// The check that failed.
    pub fn load(
        vault: &Vault,
        file: BackingFile,
        journal: Option<Arc<FileJournal>>,
        dir: &Dir,
        at: FoundAt<'_>,
    ) -> Result<Self, VaultError> {
        let mut this = Self::blank(Arc::new(file), journal);
        // Before the first read: with it a network filesystem forgets when the file was last read, and would have to ask for all attributes again.
        let stat = this.file.stat()?;
        // Someone put something else in its place since it was looked up: to write to a device would be worse than to read from one.
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(VaultError::Io(Errno::IO.into()));
        }
        this.inode = Some(stat.st_ino);
        let size = CipherSize(stat.st_size as u64);
        let preamble = match Beginning::read(&this.file)? {
            Beginning::Empty => return Ok(this),
            Beginning::Zeros => {
                this.is_zeros = true;
                return Ok(this);
            }
            Beginning::Preamble(preamble) => preamble,
        };
        let header = vault.load_header(dir, at.directory, preamble.file())?;
        let preamble = &preamble;
        let storage = this.storage(vault, (preamble.file(), preamble.claimed_seal_count()), size);
        let content = Content::load(storage, vault.layout(), &header, Stored { size, preamble }, |key| {
            Some(key.place(at.directory, at.name))
        })?;
        this.made_header = false;
        // What was sealed was durable before, its header too.
        if content.is_sealed() {
            this.headers_were_synced(this.headers());
            this.beginning_was_synced();
        }
        this.set_content(header.fields.file, Keyed::new(vault, content, &header)?);
        Ok(this)
    }

    fn storage(
        &self,
        vault: &Vault,
        (file, seal_count): (FileId, u64),
        durable: CipherSize,
    ) -> Journaled<Arc<BackingFile>> {
        let identity = Identity {
            file,
            seal_count,
            durable: durable.0,
        };
        Journaled::new(self.file.clone(), self.journal.clone(), vault.layout(), identity)
    }

    fn set_content(&self, id: FileId, keyed: Keyed) {
        // The id first: who sees content may ask for the id.
        self.id.get_or_init(|| id);
        self.content.get_or_init(|| keyed);
    }

    /// Returns the data file.
    pub fn backing(&self) -> &Arc<BackingFile> {
        &self.file
    }

    /// Returns the inode number of a data file that was found under a name.
    pub fn inode(&self) -> Option<u64> {
        self.inode
    }

    /// Returns the attributes of the data file, with the size that it has with what is not in it yet.
    ///
    /// # Errors
    ///
    /// What fstat(2) gives.
    pub fn stat(&self) -> io::Result<Stat> {
        // First: what is not held any more is in the file then.
        let held_end = self.content().map_or(0, |content| content.storage().held_end());
        let mut stat = self.file.stat()?;
        stat.st_size = stat.st_size.max(held_end as i64);
        Ok(stat)
    }

    /// Returns the size of its content, in bytes; nothing where there are zeros in it that nobody wrote.
    pub fn size(&self) -> Option<u64> {
        let content = self.content().map(|content| content.size().0);
        content.or((!self.is_zeros).then_some(0))
    }

    /// Makes the file durable; its attributes and names too, unless it is for its data only.
    ///
    /// # Errors
    ///
    /// What the journal or the backing filesystem gives; what a sync gave that nobody asked for, if it has failed since the last.
    pub fn sync(&self, data_only: bool) -> io::Result<()> {
        let changes = self.changes();
        let journaled = self
            .content()
            .map(Content::storage)
            .filter(|storage| storage.is_journaled());
        let Some(storage) = journaled else {
            let synced = if data_only {
                self.file.sync_data()
            } else {
                self.file.sync_all()
            };
            return self.was_synced(changes, self.with_untold(synced));
        };
        storage.sync_with(|data_changed| {
            let attributes_changed = !data_only && self.attributes_changed.swap(false, Ordering::AcqRel);
            let synced = match (attributes_changed, data_changed) {
                (true, _) => self.file.sync_all(),
                (false, true) => self.file.sync_data(),
                (false, false) => Ok(()),
            };
            self.was_synced(changes, self.with_untold(synced)).inspect_err(|_| {
                self.attributes_changed.fetch_or(attributes_changed, Ordering::AcqRel);
            })
        })
    }

    /// Returns how a sync went that someone asked for: not well where one before it has failed of which nobody was told.
    fn with_untold(&self, synced: io::Result<()>) -> io::Result<()> {
        let untold = self
            .content()
            .map_or(Ok(()), |content| content.storage().take_untold_failure());
        synced.and(untold)
    }

    /// Makes the data file durable with what is in it, and if asked to with attributes and names, not what the journal alone has; for who does so unasked:
    /// an error is that of the next [`sync`](Self::sync), too.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives.
    pub fn sync_unasked(&self, with_attributes: bool) -> io::Result<()> {
        let changes = self.changes();
        let sync = || {
            let synced = if with_attributes {
                self.file.sync_all()
            } else {
                self.file.sync_data()
            };
            self.was_synced(changes, synced)
        };
        let Some(storage) = self.content().map(Content::storage) else {
            return sync();
        };
        storage.sync_in_place(|| {
            sync().inspect_err(|error| {
                if changes > self.durable_changes.load(Ordering::Acquire) {
                    storage.note_untold_failure(error);
                }
            })
        })
    }

    /// Tells whether there may be less in the data file than the journal has of it, since a sync has failed.
    pub fn is_in_doubt(&self) -> bool {
        self.content().is_some_and(|content| content.storage().is_in_doubt())
    }

    /// Tells whether changes may be lost although they can be read: a sync has failed, after which the kernel takes for written what it could not write,
    /// and the next sync succeeds (fsync(2); ext4 and XFS). A seal would say that they are there.
    pub fn may_have_lost_changes(&self) -> bool {
        let is_untold = || {
            self.content()
                .is_some_and(|content| content.storage().has_untold_failure())
        };
        self.changes_lost.load(Ordering::Acquire) || is_untold()
    }

    /// Makes the header in a directory durable, not its name.
    ///
    /// # Errors
    ///
    /// What the backing filesystem gives, and [`io::ErrorKind::InvalidData`] where a sync that has failed has left no header.
    pub fn sync_header(&self, dir: &Dir, id: FileId) -> io::Result<()> {
        let name = name::header_file(id);
        let is_in_doubt = self.header_in_doubt.swap(true, Ordering::AcqRel);
        let header = dir.open_file(&name, !is_in_doubt)?;
        if is_in_doubt {
            // After a failed sync the kernel takes for written what it could not write, unless that is written again.
            let bytes = dir.read_small(&name, HEADER_SIZE_MAX)?.unwrap_or_default();
            UnverifiedHeader::decode(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            header.write_at(&bytes, 0).map_err(|short| short.error)?;
        }
        header.sync_all()?;
        self.header_in_doubt.store(false, Ordering::Release);
        Ok(())
    }

    fn changes(&self) -> u64 {
        self.content().map_or(0, Content::changes)
    }

    fn was_synced(&self, changes: u64, synced: io::Result<()>) -> io::Result<()> {
        match &synced {
            Ok(()) => {
                self.durable_changes.fetch_max(changes, Ordering::AcqRel);
            }
            Err(error) if changes > self.durable_changes.load(Ordering::Acquire) => {
                if !self.changes_lost.swap(true, Ordering::AcqRel) {
                    let id = self.id().map(|id| id.to_string()).unwrap_or_default();
                    log::error!(
                        "file {id}: a sync has failed: {error}: what was written since the last one may be lost, and no seal is set before the next mount"
                    );
                }
            }
            Err(_) => {}
        }
        synced
    }

    /// Begins sealing, as [`Content::begin_seal`]; nothing for a file that [may have lost changes](Self::may_have_lost_changes).
    pub fn begin_seal(&self) -> Option<SealTicket> {
        let ticket = self.content()?.begin_seal();
        ticket.filter(|_| !self.may_have_lost_changes())
    }

    /// Notes that attributes or names were changed: a sync of more than the data has to reach the data file itself.
    pub fn attributes_were_changed(&self) {
        self.attributes_changed.store(true, Ordering::Release);
    }

    /// Counts a handle by which it can be written, before the kernel has that.
    pub fn note_writer(&self) {
        self.writers.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts one less.
    pub fn release_writer(&self) {
        let one_less = |writers: u32| writers.checked_sub(1);
        let _ = self.writers.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less);
    }

    /// Tells whether the kernel has a handle by which it can be written.
    pub fn is_open_for_writing(&self) -> bool {
        self.writers.load(Ordering::Acquire) > 0
    }

    /// Sets the times of access and modification.
    ///
    /// # Errors
    ///
    /// What futimens(2) gives.
    pub fn set_times(&self, times: &Timestamps) -> io::Result<()> {
        let set = || fs::futimens(self.file.fd(), times);
        let Some(content) = self.content() else {
            self.attributes_were_changed();
            return Ok(set()?);
        };
        // Neither a seal, which puts back the times it finds, nor the journal may come between.
        let is_held = content.while_quiet(|storage| {
            storage.with_times(|| {
                set()?;
                Ok(match times.last_modification.tv_nsec {
                    fs::UTIME_OMIT => None,
                    fs::UTIME_NOW => Some(mtime_of(&self.file.stat()?)),
                    _ => Some(times.last_modification),
                })
            })
        })?;
        // When content was last modified is in the journal with it.
        if times.last_access.tv_nsec != fs::UTIME_OMIT || !is_held {
            self.attributes_were_changed();
        }
        Ok(())
    }

    /// Checks that a file which was opened by one of its names may be opened by this one too.
    ///
    /// # Errors
    ///
    /// As for [`load`](Self::load).
    pub fn admits(&self, vault: &Vault, dir: &Dir, at: FoundAt<'_>) -> Result<(), VaultError> {
        let (Some(content), Some(id)) = (self.content(), self.id()) else {
            // There is nothing in it. A crash can leave several names of a file whose key and first bytes it has lost.
            return Ok(());
        };
        vault.load_header(dir, at.directory, id)?;
        content.check_place(|key| key.place(at.directory, at.name))?;
        Ok(())
    }

    /// Takes note that the file's last name is gone.
    pub fn last_name_is_gone(&self) {
        if let Some(content) = self.content() {
            content.storage().last_name_is_gone();
        }
    }

    /// Returns the content, whether or not its key may be used; nothing for a file that was never written.
    pub fn content(&self) -> Option<&FileContent> {
        self.content.get().map(|keyed| &keyed.content)
    }

    /// Returns the content for who reads or changes it; nothing for a file that was never written.
    ///
    /// # Errors
    ///
    /// [`VaultError::EpochKey`] while the key may not be used.
    pub fn usable_content(&self) -> Result<Option<&FileContent>, VaultError> {
        let Some(keyed) = self.content.get() else {
            return Ok(None);
        };
        keyed.check()?;
        Ok(Some(&keyed.content))
    }

    /// Has it asked whether a file that is being opened may be used, where it has no bucket key and it is time to.
    ///
    /// # Errors
    ///
    /// [`VaultError::EpochKey`] and [`VaultError::KeyNeeded`].
    pub fn confirm(&self, vault: &Vault) -> Result<(), VaultError> {
        match (self.content.get(), self.id()) {
            (Some(Keyed { own: Some(own), .. }), Some(id)) => vault.own_keys().confirm(id, own),
            _ => Ok(()),
        }
    }

    /// Takes a secret for the header of a file that was never written.
    pub fn prepare(&self, new: NewOwnKey) {
        *self.prepared.lock() = Some(new);
    }

    /// Tells whether it has one.
    pub fn is_prepared(&self) -> bool {
        self.prepared.lock().is_some()
    }

    /// Gives it away, for a header of this epoch.
    pub fn take_prepared(&self, epoch: Epoch) -> Option<NewOwnKey> {
        self.prepared.lock().take_if(|new| new.epoch == epoch)
    }

    /// Returns the epoch whose key wraps the file's; nothing for a file that was never written.
    pub fn epoch(&self) -> Option<Epoch> {
        self.content.get().map(|keyed| keyed.access.epoch())
    }

    /// Returns the key that the file has; nothing for one that was never written.
    pub fn key(&self) -> Option<KeyOfFile> {
        self.content.get().map(|keyed| KeyOfFile {
            epoch: keyed.access.epoch(),
            bucket_key: keyed.own.is_none(),
        })
    }

    /// Has a file that was never written get a header of a key, that of another file whose place it is to take.
    pub fn keep_key(&self, key: KeyOfFile) {
        self.kept_key.get_or_init(|| key);
    }

    /// Returns that key.
    pub fn kept_key(&self) -> Option<KeyOfFile> {
        self.kept_key.get().copied()
    }

    /// Returns the id; nothing for a file that was never written.
    pub fn id(&self) -> Option<FileId> {
        self.id.get().copied()
    }

    /// Returns the content, making it with the header that `make_header` stores.
    ///
    /// # Errors
    ///
    /// What `make_header` gives, [`ContentError::ReadOnly`](super::ContentError::ReadOnly), and as for [`usable_content`](Self::usable_content).
    pub fn content_or_create(
        &self,
        vault: &Vault,
        make_header: impl FnOnce() -> Result<FileHeader, VaultError>,
    ) -> Result<&FileContent, VaultError> {
        if !self.file.is_writable() {
            return Err(VaultError::Content(super::ContentError::ReadOnly));
        }
        if let Some(content) = self.usable_content()? {
            return Ok(content);
        }
        let _creating = self.creating.lock();
        if self.content.get().is_none() {
            let header = make_header()?;
            self.drop_zeros()?;
            let storage = self.storage(vault, (header.fields.file, 0), CipherSize(0));
            let content = Content::create(storage, vault.layout(), &header);
            self.set_content(header.fields.file, Keyed::new(vault, content, &header)?);
        }
        Ok(self.usable_content()?.expect("set above"))
    }

    /// Tells whether there is nothing in it but zeros that nobody wrote; see [`Beginning::Zeros`].
    pub fn is_zeros(&self) -> bool {
        self.is_zeros
    }

    /// Makes a file of zeros that nobody wrote empty.
    ///
    /// # Errors
    ///
    /// What ftruncate(2) gives.
    pub fn drop_zeros(&self) -> io::Result<()> {
        if self.is_zeros { self.file.set_len(0) } else { Ok(()) }
    }

    /// Tells whether its header was made by this, so that no other file can need it. One that was found there may be needed by a copy of the data file that
    /// someone made, or by what was another name of the file where it was copied from. Neither is to be told by the file: either has a place when it was
    /// renamed or changed.
    pub fn made_header(&self) -> bool {
        self.made_header
    }

    /// Tells whether the header still has to be made durable before anything can rely on the file.
    pub fn header_needs_sync(&self) -> bool {
        self.content.get().is_some()
            && self.headers_durable.load(Ordering::Acquire) < self.headers_stored.load(Ordering::Acquire)
    }

    /// Returns how many headers there are, to be asked before they are made durable.
    pub fn headers(&self) -> HeaderCount {
        HeaderCount(self.headers_stored.load(Ordering::Acquire))
    }

    /// Notes that the headers that there were are on disk, with their names.
    pub fn headers_were_synced(&self, headers: HeaderCount) {
        self.headers_durable.fetch_max(headers.0, Ordering::AcqRel);
    }

    /// Notes that the file has another header that may not be on disk: in another directory.
    pub fn header_was_added(&self) {
        self.headers_stored.fetch_add(1, Ordering::AcqRel);
    }

    /// Tells whether the preamble may not be on disk yet, in any version.
    pub fn beginning_needs_sync(&self) -> bool {
        !self.beginning_durable.load(Ordering::Acquire)
    }

    /// Notes that a preamble was stored and made durable.
    pub fn beginning_was_synced(&self) {
        self.beginning_durable.store(true, Ordering::Release);
    }
}
