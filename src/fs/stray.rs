//! Names that are not a file's own: `Fs` asks before it takes one for another name of a file that it knows.
//!
//! One node stands for all names of a file, and so what was opened by one of them is read by all. But who can write to the vault can link a file to any
//! name. A name that is refused gets a node of its own, by which it can be removed and not be opened.

use std::sync::Arc;

use rustix::fs::{FileType, Stat};

use super::{
    Fs, FsError, FsResult, LINK_PATIENCE, OpenDirectory,
    node::{Link, Node, node_id},
};
use crate::{
    format::name::{self, Shape},
    vault::file::VaultFile,
};

impl Fs {
    /// Checks that a file which is known under another name may be found under this one too.
    ///
    /// # Errors
    ///
    /// As for opening the file by either.
    pub(super) fn admit_name(
        &self,
        node: &Arc<Node>,
        directory: &OpenDirectory,
        (name, disk): (&[u8], &str),
        stat: &Stat,
    ) -> FsResult<()> {
        if node.kind != FileType::RegularFile {
            return Ok(());
        }
        let mut known = match node.link.try_lock() {
            Some(link) => link,
            // It is being opened, renamed or sealed, which may take long.
            None if node.is_admitted(&directory.node, name) => return Ok(()),
            None => node.link.try_lock_for(LINK_PATIENCE).ok_or(FsError::Stale)?,
        };
        if known.as_ref().is_some_and(|at| at.is(&directory.node, name)) {
            node.admit(&directory.node, name);
            return Ok(());
        }
        let link = Link {
            parent: directory.node.clone(),
            name: name.into(),
            disk: disk.into(),
            conflict_of: self.conflict_of(&directory.node, disk),
            other: None,
        };
        if self.options.shared && !node.is_open() {
            // Someone else may have renamed it.
            self.let_go(node);
        }
        let open = node.file.lock().clone();
        let was_open = open.is_some();
        let file = match &*known {
            _ if was_open => open,
            Some(at) if self.is_there(node, at).unwrap_or(false) => Some(self.load_file(node, Some(at))?),
            Some(_) => {
                // Someone else has renamed it, and nothing says that the name before was its own: the kernel may go on to open it by that.
                node.kill();
                return Err(FsError::Stale);
            }
            // What is opened later is opened by the name that is known then.
            None => None,
        };
        let at = self.found_at(&link)?;
        let in_vault = self.at(&directory.node, disk);
        match &file {
            // What another machine made of it stands on disk.
            Some(_) if self.options.shared => {
                let backing = directory.dir.open_file(disk, true)?;
                VaultFile::load(&self.vault, backing, None, &directory.dir, at).map_err(in_vault)?;
            }
            Some(file) => file.admits(&self.vault, &directory.dir, at).map_err(in_vault)?,
            None => {}
        }
        // Any of several names will do, as long as it is there.
        let before = known.replace(link);
        node.admit(&directory.node, name);
        let was_unknown = before.is_none();
        if let Some(at) = known.as_mut().filter(|_| stat.st_nlink > 1) {
            at.other = before.and_then(Link::into_other);
        }
        drop(known);
        if was_unknown && file.as_ref().is_some_and(|file| file.begin_seal().is_some()) {
            // It waits for a name to be sealed with.
            self.note_change(node);
        }
        if !was_open && file.is_some() {
            self.keep_idle(node);
        }
        Ok(())
    }

    /// Returns what is wrong with a name that was not admitted. Where it would be by now, the kernel has to look it up again.
    pub(super) fn why_stray(&self, link: &Link) -> FsError {
        let admit = || -> FsResult<()> {
            let directory = self.directory(link.parent.id)?;
            let stat = directory.dir.stat(&link.disk)?;
            match self.nodes.find(node_id(stat.st_ino)) {
                Some(node) => self.admit_name(&node, &directory, (&link.name, &link.disk), &stat),
                None => Ok(()),
            }
        };
        admit().err().unwrap_or(FsError::Stale)
    }

    /// Returns the name that an entry on disk has the place of, where it is a copy that a sync tool made of another.
    pub(super) fn conflict_of(&self, parent: &Arc<Node>, disk: &str) -> Option<Box<[u8]>> {
        match name::shape(disk.as_bytes()) {
            Shape::Conflict(base, _) => self.plain_name(parent, &base),
            _ => None,
        }
    }
}
