//! Operations on extended attributes.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use rustix::fs::{FileType, XattrFlags};

use super::{Fs, FsError, FsResult, node::Node};
use crate::{
    backing::Dir,
    format::{
        FormatError,
        xattr::{XATTR_NAME_MAX, XattrHash},
    },
    vault::VaultError,
};

/// Set by the kernel for file capabilities; asked for at every first write to a file.
const CAPABILITY: &[u8] = b"security.capability";

/// POSIX access control lists, which need the backing filesystem's own.
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

/// Labels of SELinux, which the kernel keeps for mounts like this one by itself. Refused as such, so that `ls -l` asks once for the whole mount
/// instead of once for each file.
const SELINUX: &[u8] = b"security.selinux";

/// Where on disk a node's attributes are.
struct Attributes {
    dir: Arc<Dir>,
    entry: Box<str>,
    /// A regular file or directory, which may have user attributes.
    plain_file: bool,
}

impl Fs {
    fn attributes(&self, node: &Arc<Node>) -> FsResult<Attributes> {
        let (dir, entry) = if node.kind == FileType::Directory {
            (self.dir(node)?, ".".into())
        } else {
            self.entry_of(node)?
        };
        Ok(Attributes {
            dir,
            entry,
            plain_file: matches!(node.kind, FileType::Directory | FileType::RegularFile),
        })
    }

    fn disk_name(&self, name: &[u8], plain_file: bool) -> FsResult<(XattrHash, String)> {
        if name.len() > XATTR_NAME_MAX {
            return Err(FsError::Io(io::Error::from_raw_os_error(libc::ERANGE)));
        }
        if name.starts_with(ACL_PREFIX) || name == SELINUX {
            return Err(FsError::NotSupported);
        }
        let hash = self.vault.xattr_keys().hash(name);
        Ok((hash, hash.disk_name(plain_file)))
    }

    /// Returns an attribute's value.
    ///
    /// # Errors
    ///
    /// [`FsError::NoAttribute`] where there is none.
    pub fn get_xattr(&self, id: u64, name: &[u8]) -> FsResult<Vec<u8>> {
        let node = self.node(id)?;
        if name == CAPABILITY && (node.kind != FileType::RegularFile || node.no_capability.load(Ordering::Acquire)) {
            return Err(FsError::NoAttribute);
        }
        let (hash, disk_name) =
            self.disk_name(name, matches!(node.kind, FileType::Directory | FileType::RegularFile))?;
        let attributes = self.attributes(&node)?;
        let sealed = attributes
            .dir
            .get_xattr(&attributes.entry, &disk_name)
            .map_err(no_attribute)
            .inspect_err(|error| {
                if name == CAPABILITY && matches!(error, FsError::NoAttribute) {
                    node.no_capability.store(true, Ordering::Release);
                }
            })?;
        let (_, value) = self.open_xattr(&node, hash, &sealed)?;
        Ok(value)
    }

    fn open_xattr(&self, node: &Node, hash: XattrHash, sealed: &[u8]) -> FsResult<(Vec<u8>, Vec<u8>)> {
        self.vault
            .xattr_keys()
            .open(hash, sealed)
            .map_err(|error| self.at(node, "")(VaultError::XattrDamaged(error)))
    }

    /// Sets an attribute; `flags` are those of setxattr(2).
    ///
    /// # Errors
    ///
    /// What setxattr(2) gives.
    pub fn set_xattr(&self, id: u64, name: &[u8], value: &[u8], flags: i32) -> FsResult<()> {
        self.check_writable()?;
        let node = self.node(id)?;
        let flags = XattrFlags::from_bits(flags as u32).ok_or(FsError::Invalid)?;
        let attributes = self.attributes(&node)?;
        let (_, disk_name) = self.disk_name(name, attributes.plain_file)?;
        let sealed = self.vault.xattr_keys().seal(name, value).map_err(|error| match error {
            FormatError::OutOfRange(_) => FsError::Io(io::Error::from_raw_os_error(libc::ERANGE)),
            _ => FsError::Invalid,
        })?;
        if name == CAPABILITY {
            node.no_capability.store(false, Ordering::Release);
        }
        attributes
            .dir
            .set_xattr(&attributes.entry, &disk_name, &sealed, flags)
            .map_err(no_attribute)
    }

    /// Returns the names of all attributes, each followed by a zero byte, as listxattr(2) does.
    ///
    /// # Errors
    ///
    /// What llistxattr(2) gives.
    pub fn list_xattrs(&self, id: u64, caller_is_root: bool) -> FsResult<Vec<u8>> {
        let node = self.node(id)?;
        let attributes = self.attributes(&node)?;
        let mut names = Vec::new();
        for disk_name in attributes.dir.list_xattrs(&attributes.entry)? {
            let Some(hash) = XattrHash::from_disk_name(&disk_name) else {
                continue;
            };
            let sealed = attributes
                .dir
                .get_xattr(&attributes.entry, &hash.disk_name(attributes.plain_file))?;
            let (name, _) = self.open_xattr(&node, hash, &sealed)?;
            // As the kernel does: attributes of the administrator show to the administrator only.
            if caller_is_root || !name.starts_with(b"trusted.") {
                names.extend_from_slice(&name);
                names.push(0);
            }
        }
        Ok(names)
    }

    /// Removes an attribute.
    ///
    /// # Errors
    ///
    /// [`FsError::NoAttribute`] where there is none.
    pub fn remove_xattr(&self, id: u64, name: &[u8]) -> FsResult<()> {
        self.check_writable()?;
        let node = self.node(id)?;
        let attributes = self.attributes(&node)?;
        let (_, disk_name) = self.disk_name(name, attributes.plain_file)?;
        attributes
            .dir
            .remove_xattr(&attributes.entry, &disk_name)
            .map_err(no_attribute)
    }
}

fn no_attribute(error: io::Error) -> FsError {
    match error.raw_os_error() {
        Some(libc::ENODATA) => FsError::NoAttribute,
        _ => FsError::Io(error),
    }
}
