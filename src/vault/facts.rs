//! What is known of a file without reading its content, also where its key cannot be used.

use std::io;

use rustix::fs::FileType;

use super::{
    Vault, VaultError,
    beginning::Beginning,
    file::{FoundAt, VaultFile},
    path::Located,
    read_header,
};
use crate::{
    backing::Storage,
    format::header::{OwnWrap, UnverifiedHeader},
    ids::{Epoch, FileId},
    units::{CipherSize, PlainSize},
};

/// What is known of a regular file.
#[derive(Debug)]
pub struct FileFacts {
    /// The size in plaintext, by that of the data file.
    pub size: PlainSize,
    /// What a file has from its first byte on.
    pub written: Option<WrittenFacts>,
}

/// What is known of a file that was written.
#[derive(Debug)]
pub struct WrittenFacts {
    /// The file's id.
    pub id: FileId,
    /// The epoch that its header names.
    pub epoch: Epoch,
    /// The key that its secret is wrapped under, for itself alone, where it has no bucket key; with what was made of it.
    pub own: Option<OwnWrap>,
    /// Its cipher, by number.
    pub suite: u16,
    /// It is complete, and not being written.
    pub is_sealed: bool,
    /// Why nothing here is authenticated, where it is not.
    pub unopened: Option<VaultError>,
}

impl Vault {
    /// Returns what is known of a file.
    ///
    /// # Errors
    ///
    /// What reading it gives, and what keeps it from saying anything of itself; [`FileFacts`] of a file that says something and does not open.
    pub fn file_facts(&self, located: &Located) -> Result<FileFacts, VaultError> {
        let entry = match &located.entry {
            None => return Err(io::Error::from_raw_os_error(libc::EISDIR).into()),
            Some(entry) if entry.kind != FileType::RegularFile => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file").into());
            }
            Some(entry) => entry,
        };
        let data = located.dir.open_file(&entry.disk, true)?;
        let size = self.layout.plain_size(CipherSize(data.len()?));
        let Some(preamble) = Beginning::read(&data)?.preamble() else {
            return Ok(FileFacts { size, written: None });
        };
        let id = preamble.file();
        let header = UnverifiedHeader::decode(&read_header(&located.dir, id)?)
            .map_err(|error| VaultError::HeaderDamaged(id, error))?;
        let at = FoundAt {
            directory: located.directory(),
            name: &entry.name,
        };
        let written = WrittenFacts {
            id,
            epoch: header.epoch(),
            own: header.own().cloned(),
            suite: header.suite().number(),
            is_sealed: preamble.claims_to_be_sealed(),
            unopened: VaultFile::load(self, data, None, &located.dir, at).err(),
        };
        Ok(FileFacts {
            size,
            written: Some(written),
        })
    }
}
