//! Operations on extended attributes.

use std::{io, sync::Arc};

use rustix::fs::{FileType, XattrFlags};

use super::{
    Caller, Fs, FsError, FsResult,
    acl::{self, Acl},
    node::{Absent, Node},
};
use crate::{
    backing::{Dir, Entry, process},
    format::{
        FormatError,
        xattr::{XATTR_NAME_MAX, XattrHash},
    },
    vault::{VaultError, file::VaultFile},
};

/// Set by the kernel for file capabilities; asked for at every first write to a file.
const CAPABILITY: &[u8] = b"security.capability";

/// How many bytes the names of all attributes may take on disk: XATTR_LIST_MAX of linux/limits.h.
const XATTR_LIST_MAX: usize = 65_536;

/// What an attribute's name may begin with; xattr(7). What else is in `system.` means something to the kernel that is not here.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// Labels of SELinux, which the kernel keeps for mounts like this one by itself. Refused as such, so that `ls -l` asks once for the whole mount
/// instead of once for each file.
const SELINUX: &[u8] = b"security.selinux";

/// The permissions of something to be made.
#[derive(Debug)]
pub(super) struct Birth {
    /// As in `st_mode`.
    pub mode: u32,
    /// The list that will govern access to it, and the one that a directory hands on.
    lists: Option<(Acl, Arc<Acl>)>,
}

impl Birth {
    /// Returns that of a symbolic link, which lets everyone read it.
    pub fn of_link() -> Self {
        Birth {
            mode: libc::S_IFLNK | 0o777,
            lists: None,
        }
    }

    /// Tells whether it gets access control lists.
    pub fn has_lists(&self) -> bool {
        self.lists.is_some()
    }

    /// Returns the mode to make it with: until it has its list, the group's bits would grant the group what is meant for those named in the list.
    pub fn first_mode(&self) -> u32 {
        match &self.lists {
            Some((access, _)) if !access.is_minimal() => self.mode & !0o070,
            _ => self.mode,
        }
    }
}

/// A file on disk, of which the attributes are asked for.
enum Carrier {
    /// A directory.
    Dir(Arc<Dir>),
    /// Not open.
    Entry(Entry),
    /// Open, and perhaps without a name.
    File(Arc<VaultFile>),
}

impl Carrier {
    fn get(&self, attribute: &str) -> io::Result<Vec<u8>> {
        match self {
            Carrier::Dir(dir) => dir.get_xattr(".", attribute),
            Carrier::Entry(entry) => entry.get_xattr(attribute),
            Carrier::File(file) => file.backing().get_xattr(attribute),
        }
    }

    fn set(&self, attribute: &str, value: &[u8], flags: XattrFlags) -> io::Result<()> {
        match self {
            Carrier::Dir(dir) => dir.set_xattr(".", attribute, value, flags),
            Carrier::Entry(entry) => entry.set_xattr(attribute, value, flags),
            Carrier::File(file) => {
                file.attributes_were_changed();
                file.backing().set_xattr(attribute, value, flags)
            }
        }
    }

    fn remove(&self, attribute: &str) -> io::Result<()> {
        match self {
            Carrier::Dir(dir) => dir.remove_xattr(".", attribute),
            Carrier::Entry(entry) => entry.remove_xattr(attribute),
            Carrier::File(file) => {
                file.attributes_were_changed();
                file.backing().remove_xattr(attribute)
            }
        }
    }

    fn list(&self) -> io::Result<Vec<Vec<u8>>> {
        match self {
            Carrier::Dir(dir) => dir.list_xattrs("."),
            Carrier::Entry(entry) => entry.list_xattrs(),
            Carrier::File(file) => file.backing().list_xattrs(),
        }
    }
}

/// Tells whether a file is a regular one or a directory: these may have user attributes.
fn is_plain(node: &Node) -> bool {
    matches!(node.kind, FileType::Directory | FileType::RegularFile)
}

impl Fs {
    fn carrier(&self, node: &Arc<Node>) -> FsResult<Carrier> {
        if node.kind == FileType::Directory {
            return Ok(Carrier::Dir(self.dir(node)?));
        }
        if let Some(file) = node.file.lock().clone() {
            return Ok(Carrier::File(file));
        }
        self.entry(node).map(Carrier::Entry)
    }

    fn disk_name(&self, name: &[u8], plain_file: bool) -> FsResult<(XattrHash, String)> {
        if name.len() > XATTR_NAME_MAX {
            return Err(FsError::Io(io::Error::from_raw_os_error(libc::ERANGE)));
        }
        if NAMESPACES.contains(&name) {
            return Err(FsError::Invalid);
        }
        let is_list = is_acl(name) && self.options.acl;
        let is_known = is_list || NAMESPACES.iter().any(|namespace| name.starts_with(namespace));
        if !is_known || name == SELINUX {
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
        self.xattr_of(&self.node(id)?, name)
    }

    fn xattr_of(&self, node: &Arc<Node>, name: &[u8]) -> FsResult<Vec<u8>> {
        let absent = Absent::from_name(name);
        if absent.is_some_and(|absent| node.lacks(absent)) || (name == CAPABILITY && node.kind != FileType::RegularFile)
        {
            return Err(FsError::NoAttribute);
        }
        let (hash, disk_name) = self.disk_name(name, is_plain(node))?;
        let since = node.attributes_set();
        let sealed = self
            .carrier(node)
            .and_then(|carrier| carrier.get(&disk_name).map_err(no_attribute))
            .inspect_err(|error| {
                if let (Some(absent), FsError::NoAttribute, false) = (absent, error, self.options.shared) {
                    node.found_without(absent, since);
                }
            })?;
        let (_, value) = self.open_xattr(node, hash, &sealed)?;
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
    pub fn set_xattr(&self, id: u64, name: &[u8], value: &[u8], flags: i32, caller: Caller) -> FsResult<()> {
        self.check_writable()?;
        let node = self.node(id)?;
        if self.options.acl && name == acl::ACCESS {
            return self.set_access_acl(&node, value, caller);
        }
        if self.options.acl && name == acl::DEFAULT {
            return self.set_default_acl(&node, value);
        }
        let flags = XattrFlags::from_bits(flags as u32).ok_or(FsError::Invalid)?;
        self.store_xattr(&node, name, value, flags)
    }

    fn store_xattr(&self, node: &Arc<Node>, name: &[u8], value: &[u8], flags: XattrFlags) -> FsResult<()> {
        let (_, disk_name) = self.disk_name(name, is_plain(node))?;
        let sealed = self.vault.xattr_keys().seal(name, value).map_err(|error| match error {
            FormatError::OutOfRange(_) => FsError::Io(io::Error::from_raw_os_error(libc::ERANGE)),
            _ => FsError::Invalid,
        })?;
        let note = || {
            if let Some(absent) = Absent::from_name(name) {
                node.may_have(absent);
            }
        };
        note();
        let carrier = self.carrier(node)?;
        let names = carrier.list()?;
        let len: usize = names.iter().map(|name| name.len() + 1).sum();
        let is_new = names.iter().all(|name| name != disk_name.as_bytes());
        if is_new && len + disk_name.len() + 1 > XATTR_LIST_MAX {
            // One more and they could not be listed at all.
            return Err(FsError::Io(io::Error::from_raw_os_error(libc::ENOSPC)));
        }
        let set = carrier.set(&disk_name, &sealed, flags);
        note();
        set.map_err(no_attribute)
    }

    /// Sets the list that governs access, and the permissions that it shows as.
    ///
    /// A crash between the two leaves a list and permissions of which neither grants what neither the old nor the new ones do.
    fn set_access_acl(&self, node: &Arc<Node>, value: &[u8], caller: Caller) -> FsResult<()> {
        let list = Acl::decode(value).ok_or(FsError::Invalid)?;
        let attr = self.node_attr(node)?;
        let mut mode = attr.mode & 0o7000 | list.permissions();
        let keeps_group_id = caller.uid == 0 || caller.gid == attr.gid || process::is_in_group(caller.pid, attr.gid);
        if !keeps_group_id {
            // As chmod(2) does for who is not in the file's group.
            mode &= !libc::S_ISGID;
        }
        if list.is_minimal() {
            self.set_mode(node, mode)?;
            self.drop_acl(node, acl::ACCESS)
        } else {
            self.store_xattr(node, acl::ACCESS, value, XattrFlags::empty())?;
            self.set_mode(node, mode)
        }
    }

    fn set_default_acl(&self, node: &Arc<Node>, value: &[u8]) -> FsResult<()> {
        let list = Acl::decode(value).ok_or(FsError::Invalid)?;
        let Some(state) = &node.directory else {
            return Err(FsError::Io(io::Error::from_raw_os_error(libc::EACCES)));
        };
        let mut cached = state.default_acl.lock();
        *cached = None;
        self.store_xattr(node, acl::DEFAULT, value, XattrFlags::empty())?;
        *cached = Some(Some(Arc::new(list)));
        Ok(())
    }

    fn drop_acl(&self, node: &Arc<Node>, name: &[u8]) -> FsResult<()> {
        match self.drop_xattr(node, name) {
            Err(FsError::NoAttribute) => Ok(()),
            result => result,
        }
    }

    /// Returns an access control list of a node.
    fn acl_of(&self, node: &Arc<Node>, name: &[u8]) -> FsResult<Option<Acl>> {
        match self.xattr_of(node, name) {
            Ok(value) => match Acl::decode(&value) {
                Some(list) => Ok(Some(list)),
                None => Err(self.at(node, "")(VaultError::XattrDamaged(FormatError::OutOfRange(
                    "access control list",
                )))),
            },
            Err(FsError::NoAttribute) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the list that what is made in a directory inherits.
    pub(super) fn default_acl(&self, directory: &Arc<Node>) -> FsResult<Option<Arc<Acl>>> {
        let Some(state) = directory.directory.as_ref().filter(|_| self.options.acl) else {
            return Ok(None);
        };
        let mut cached = state.default_acl.lock();
        if let Some(known) = &*cached
            && !self.options.shared
        {
            return Ok(known.clone());
        }
        let found = self.acl_of(directory, acl::DEFAULT)?.map(Arc::new);
        *cached = Some(found.clone());
        Ok(found)
    }

    /// Returns the permissions of what a caller makes in a directory: by the directory's default list, or else by the caller's mask.
    pub(super) fn birth(&self, directory: &Arc<Node>, mode: u32, caller: Caller) -> FsResult<Birth> {
        Ok(match self.default_acl(directory)? {
            None => Birth {
                mode: mode & !(caller.umask & 0o777),
                lists: None,
            },
            Some(default) => {
                let (access, mode) = Acl::clone(&default).inherited(mode);
                Birth {
                    mode,
                    lists: Some((access, default)),
                }
            }
        })
    }

    /// Gives what was just made the lists it inherits, and then the permissions that were kept back until now.
    pub(super) fn give_lists(&self, node: &Arc<Node>, birth: &Birth) -> FsResult<()> {
        let Some((access, default)) = &birth.lists else {
            return Ok(());
        };
        if node.kind == FileType::Directory {
            self.set_default_acl(node, &default.encode())?;
        }
        if access.is_minimal() {
            return Ok(());
        }
        self.store_xattr(node, acl::ACCESS, &access.encode(), XattrFlags::empty())?;
        // A directory may have got set-group-id from the one it is in.
        let special = self.node_attr(node)?.mode & 0o7000;
        self.set_mode(node, special | birth.mode & 0o777)
    }

    /// Has the list that governs access follow a change of permissions.
    pub(super) fn acl_after_chmod(&self, node: &Arc<Node>, mode: u32) -> FsResult<()> {
        if !self.options.acl || node.kind == FileType::Symlink {
            return Ok(());
        }
        match self.acl_of(node, acl::ACCESS)? {
            Some(list) => {
                let list = list.with_permissions(mode);
                self.store_xattr(node, acl::ACCESS, &list.encode(), XattrFlags::empty())
            }
            None => Ok(()),
        }
    }

    /// Returns the names of all attributes, each followed by a zero byte, as listxattr(2) does.
    ///
    /// # Errors
    ///
    /// What llistxattr(2) gives.
    pub fn list_xattrs(&self, id: u64, caller_is_root: bool) -> FsResult<Vec<u8>> {
        let node = self.node(id)?;
        let carrier = self.carrier(&node)?;
        let mut names = Vec::new();
        for disk_name in carrier.list()? {
            let Some(hash) = XattrHash::from_disk_name(&disk_name) else {
                continue;
            };
            let sealed = match carrier.get(&hash.disk_name(is_plain(&node))) {
                // Removed since it was listed.
                Err(error) if error.raw_os_error() == Some(libc::ENODATA) => continue,
                sealed => sealed?,
            };
            let (name, _) = self.open_xattr(&node, hash, &sealed)?;
            // As the kernel does: attributes of the administrator show to the administrator only, and lists where they count.
            let hidden = (!caller_is_root && name.starts_with(b"trusted.")) || (is_acl(&name) && !self.options.acl);
            if !hidden {
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
        if is_acl(name) {
            // Removing a list that is not there is no error (acl_delete_def_file(3)).
            return self.drop_acl(&node, name);
        }
        self.drop_xattr(&node, name)
    }

    fn drop_xattr(&self, node: &Arc<Node>, name: &[u8]) -> FsResult<()> {
        let (_, disk_name) = self.disk_name(name, is_plain(node))?;
        if let Some(state) = node.directory.as_ref().filter(|_| name == acl::DEFAULT) {
            *state.default_acl.lock() = None;
        }
        self.carrier(node)?.remove(&disk_name).map_err(no_attribute)
    }
}

impl Absent {
    fn from_name(name: &[u8]) -> Option<Self> {
        match name {
            CAPABILITY => Some(Absent::Capability),
            acl::ACCESS => Some(Absent::AccessAcl),
            _ => None,
        }
    }
}

fn is_acl(name: &[u8]) -> bool {
    name == acl::ACCESS || name == acl::DEFAULT
}

fn no_attribute(error: io::Error) -> FsError {
    match error.raw_os_error() {
        Some(libc::ENODATA) => FsError::NoAttribute,
        _ => FsError::Io(error),
    }
}
