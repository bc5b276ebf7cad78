//! One open data file: nothing yet, or content with a key.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;

use super::{Vault, VaultError, content::Content};
use crate::{
    backing::{BackingFile, Dir, Storage},
    format::{header::FileHeader, layout::PREAMBLE_SIZE, preamble::UnverifiedPreamble},
    ids::{DirectoryId, FileId},
};

/// An open data file.
///
/// A file that was never written has no id and no key; they are made, and the header stored, before its first byte.
#[derive(Debug)]
pub struct VaultFile {
    file: Arc<BackingFile>,
    content: OnceLock<Content<Arc<BackingFile>>>,
    id: OnceLock<FileId>,
    /// Held while content is made for a file that has none.
    creating: Mutex<()>,
    /// This file is the one its header is for: made here, or sealed for the name it was found under. A copy of its data file that someone made
    /// under another name is not.
    owns_header: bool,
    /// The header, and its name, are known to be on disk.
    header_durable: AtomicBool,
}

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
    pub fn created(file: BackingFile) -> Self {
        Self::blank(Arc::new(file), true)
    }

    fn blank(file: Arc<BackingFile>, owns_header: bool) -> Self {
        VaultFile {
            file,
            content: OnceLock::new(),
            id: OnceLock::new(),
            creating: Mutex::new(()),
            owns_header,
            header_durable: AtomicBool::new(false),
        }
    }

    /// Opens a data file found under a name: loads its header from `dir` and checks all that can be checked at once.
    ///
    /// # Errors
    ///
    /// The check that failed.
    pub fn load(vault: &Vault, file: BackingFile, dir: &Dir, at: FoundAt<'_>) -> Result<Self, VaultError> {
        let mut this = Self::blank(Arc::new(file), true);
        let mut bytes = [0; PREAMBLE_SIZE as usize];
        let got = this.file.read_at(&mut bytes, 0)?;
        if got == 0 {
            return Ok(this);
        }
        let preamble = UnverifiedPreamble::decode(&bytes[..got])
            .map_err(|error| VaultError::Content(super::ContentError::Preamble(error)))?;
        let header = vault.load_header(dir, at.directory, preamble.file())?;
        let content = Content::load(this.file.clone(), vault.layout(), &header, &preamble, |key| {
            Some(key.place(at.directory, at.name))
        })?;
        this.owns_header = content.is_placed();
        // What was sealed was durable before, its header too.
        this.header_durable.store(content.is_sealed(), Ordering::Release);
        this.set_content(header.fields.file, content);
        Ok(this)
    }

    fn set_content(&self, id: FileId, content: Content<Arc<BackingFile>>) {
        // The id first: who sees content may ask for the id.
        self.id.get_or_init(|| id);
        self.content.get_or_init(|| content);
    }

    /// Returns the data file.
    pub fn backing(&self) -> &Arc<BackingFile> {
        &self.file
    }

    /// Returns the content; nothing for a file that was never written.
    pub fn content(&self) -> Option<&Content<Arc<BackingFile>>> {
        self.content.get()
    }

    /// Returns the id; nothing for a file that was never written.
    pub fn id(&self) -> Option<FileId> {
        self.id.get().copied()
    }

    /// Returns the content, making it with the header that `make_header` stores.
    ///
    /// # Errors
    ///
    /// What `make_header` gives, or [`ContentError::ReadOnly`](super::ContentError::ReadOnly).
    pub fn content_or_create(
        &self,
        vault: &Vault,
        make_header: impl FnOnce() -> Result<FileHeader, VaultError>,
    ) -> Result<&Content<Arc<BackingFile>>, VaultError> {
        if !self.file.is_writable() {
            return Err(VaultError::Content(super::ContentError::ReadOnly));
        }
        if let Some(content) = self.content.get() {
            return Ok(content);
        }
        let _creating = self.creating.lock();
        if self.content.get().is_none() {
            let header = make_header()?;
            let content = Content::create(self.file.clone(), vault.layout(), &header);
            self.set_content(header.fields.file, content);
        }
        Ok(self.content.get().expect("set above"))
    }

    /// Tells whether no other file can be meant by the header than this one; see [`FoundAt`].
    pub fn owns_header(&self) -> bool {
        self.owns_header
    }

    /// Tells whether the header still has to be made durable before anything can rely on the file.
    pub fn header_needs_sync(&self) -> bool {
        self.content.get().is_some() && !self.header_durable.load(Ordering::Acquire)
    }

    /// Notes that the header is on disk, with its name.
    pub fn header_was_synced(&self) {
        self.header_durable.store(true, Ordering::Release);
    }

    /// Notes that the file has a header that may not be on disk: one in another directory.
    pub fn header_was_replaced(&self) {
        self.header_durable.store(false, Ordering::Release);
    }
}
