//! POSIX access control lists: their bytes in an attribute, and how they and a file's permissions follow each other.
//!
//! The kernel checks who may do what; with FUSE's POSIX_ACL it leaves to the filesystem what is here: what a new file inherits, what chmod(2) does to
//! a list, what a list does to the permissions. The rules are those of acl(5) and of the kernel's fs/posix_acl.c.

/// The attribute with the list that governs access.
pub const ACCESS: &[u8] = b"system.posix_acl_access";

/// The attribute of a directory with the list that what is made in it inherits.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// POSIX_ACL_XATTR_VERSION of linux/posix_acl_xattr.h.
const VERSION: u32 = 2;

const HEADER_SIZE: usize = 4;
const ENTRY_SIZE: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// An access control list with an entry each for owner, group and others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    entries: Vec<Entry>,
}

impl Acl {
    /// Reads a list from an attribute's bytes; nothing if they are none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (header, rest) = bytes.split_at_checked(HEADER_SIZE)?;
        if header != VERSION.to_le_bytes() || !rest.len().is_multiple_of(ENTRY_SIZE) {
            return None;
        }
        let half = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
        let entries: Vec<_> = rest
            .chunks_exact(ENTRY_SIZE)
            .map(|entry| Entry {
                tag: half(entry),
                permissions: half(&entry[2..]),
                id: u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]),
            })
            .collect();
        let count = |tag| entries.iter().filter(|entry| entry.tag == tag).count();
        let is_known = |entry: &Entry| {
            matches!(entry.tag, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER) && entry.permissions <= 7
        };
        let names_someone = count(USER) + count(GROUP) > 0;
        let is_whole = [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|&tag| count(tag) == 1)
            && count(MASK) <= 1
            && (count(MASK) == 1 || !names_someone);
        (is_whole && entries.iter().all(is_known)).then_some(Acl { entries })
    }

    /// Returns the attribute's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            bytes.extend(entry.tag.to_le_bytes());
            bytes.extend(entry.permissions.to_le_bytes());
            bytes.extend(entry.id.to_le_bytes());
        }
        bytes
    }

    /// Returns the nine permission bits that the list shows as, with those of the mask for the group if there is one.
    pub fn permissions(&self) -> u32 {
        let of = |tag| {
            let found = self.entries.iter().find(|entry| entry.tag == tag);
            found.map(|entry| u32::from(entry.permissions))
        };
        let group = of(MASK).or(of(GROUP_OBJ)).unwrap_or(0);
        of(USER_OBJ).unwrap_or(0) << 6 | group << 3 | of(OTHER).unwrap_or(0)
    }

    /// Tells whether the nine permission bits say all that the list says.
    pub fn is_minimal(&self) -> bool {
        self.entries
            .iter()
            .all(|entry| matches!(entry.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    /// Returns the list after chmod(2): owner, others, and the mask, or the group where there is none, become what `mode` says.
    pub fn with_permissions(mut self, mode: u32) -> Self {
        self.update(|_, wanted| wanted, mode);
        self
    }

    /// Returns the list that a new file gets from its directory's default list, and the new file's mode: no one gets more than `mode`, what
    /// the program that makes it asked for.
    pub fn inherited(mut self, mode: u32) -> (Self, u32) {
        self.update(|granted, wanted| granted & wanted, mode);
        let mode = mode & !0o777 | self.permissions();
        (self, mode)
    }

    /// Changes the entries that the permission bits stand for.
    fn update(&mut self, change: impl Fn(u16, u16) -> u16, mode: u32) {
        let group = if self.entries.iter().any(|entry| entry.tag == MASK) {
            MASK
        } else {
            GROUP_OBJ
        };
        for entry in &mut self.entries {
            let shift = match entry.tag {
                USER_OBJ => 6,
                tag if tag == group => 3,
                OTHER => 0,
                _ => continue,
            };
            entry.permissions = change(entry.permissions, (mode >> shift & 7) as u16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        let entries = entries.iter();
        Acl {
            entries: entries
                .map(|&(tag, permissions, id)| Entry { tag, permissions, id })
                .collect(),
        }
    }

    const NOBODY: u32 = u32::MAX;

    fn shared() -> Acl {
        acl(&[
            (USER_OBJ, 7, NOBODY),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, NOBODY),
            (GROUP, 7, 100),
            (MASK, 6, NOBODY),
            (OTHER, 4, NOBODY),
        ])
    }

    #[test]
    fn bytes_are_those_of_the_kernel() {
        // What setfacl -m u:1000:rw stores for a file of mode 0640.
        let bytes = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x06\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\
                      \x10\0\x06\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
        let decoded = Acl::decode(bytes).unwrap();
        assert_eq!(decoded.permissions(), 0o660);
        assert!(!decoded.is_minimal());
        assert_eq!(decoded.encode(), bytes);
    }

    #[test]
    fn what_is_no_list_is_none() {
        let good = shared().encode();
        assert!(Acl::decode(&good).is_some());
        for len in 0..good.len() {
            let whole = len > HEADER_SIZE && (len - HEADER_SIZE).is_multiple_of(ENTRY_SIZE);
            assert!(Acl::decode(&good[..len]).is_none() || whole, "{len}");
        }
        for (at, value) in [(0, 3), (4, 0x40), (6, 8), (4, 0x20)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(Acl::decode(&bad).is_none(), "{at}");
        }
        let without_mask = acl(&[
            (USER_OBJ, 7, NOBODY),
            (USER, 6, 1),
            (GROUP_OBJ, 5, NOBODY),
            (OTHER, 4, NOBODY),
        ]);
        assert!(Acl::decode(&without_mask.encode()).is_none());
    }

    #[test]
    fn the_group_bits_are_the_mask() {
        assert_eq!(shared().permissions(), 0o764);
        let changed = shared().with_permissions(0o2510);
        assert_eq!(changed.permissions(), 0o510);
        assert_eq!(changed.entries[2].permissions, 5, "the group's own entry stays");
        let minimal = acl(&[(USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 4, NOBODY)]);
        assert!(minimal.is_minimal());
        assert_eq!(minimal.with_permissions(0o640).permissions(), 0o640);
    }

    #[test]
    fn new_files_get_no_more_than_their_maker_asked_for() {
        let (list, mode) = shared().inherited(libc::S_IFREG | 0o4640);
        assert_eq!(mode, libc::S_IFREG | 0o4640 & 0o4764 & !0o004);
        assert_eq!(list.entries[4].permissions, 4, "the mask");
        assert_eq!(list.entries[1].permissions, 6, "named ones stay, under the mask");
    }
}
