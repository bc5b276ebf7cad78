//! Identifiers: of vaults, files, directories, master keys and epochs.

use std::fmt;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};

/// Characters that the b64 form of a 16-byte id has.
pub const ID_TEXT_LEN: usize = 22;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Returns the id as lower-case hexadecimal.
            pub fn to_hex(&self) -> String {
                HEXLOWER.encode(&self.0)
            }

            /// Returns the id as base64url without padding, the form used in names on disk.
            pub fn to_b64(&self) -> String {
                BASE64URL_NOPAD.encode(&self.0)
            }

            /// Parses the form of [`to_b64`](Self::to_b64).
            pub fn from_b64(text: &[u8]) -> Option<Self> {
                let bytes = BASE64URL_NOPAD.decode(text).ok()?;
                Some(Self(bytes.try_into().ok()?))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.to_hex())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }
    };
}

id!(
    /// Names a vault for ever; part of every authenticated field in it.
    VaultId
);
id!(
    /// Names a file's content: its header carries it, and so does its data file.
    FileId
);
id!(
    /// Names a directory through renames; the keys of the names in it come from it.
    DirectoryId
);
id!(
    /// Tells the names root of a vault from another; the root does not come from it.
    NamesMark
);
id!(
    /// Names a master key in a keystore.
    KeyId
);
id!(
    /// Names a keystore.
    KeystoreId
);
id!(
    /// Names one audit log of a keystore, which may have begun others before.
    LogId
);
id!(
    /// Names one local record of a vault: another one begins with another name.
    RecordId
);
id!(
    /// Names one snapshot of a vault; its key comes from it.
    SnapshotId
);

/// The number of a vault key: new files use the current one, old headers name theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u32);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
