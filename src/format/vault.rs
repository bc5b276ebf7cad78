//! The vault header `vault.hush`: id, suite, epochs and their wraps (docs/FORMAT.md section 3).

use serde::{Deserialize, Serialize};

use super::{
    FormatError,
    body::{self, Extension, MAC_SIZE},
    layout::Layout,
};
use crate::{
    crypto::{block::Suite, keys::MacKey, wrap::Wrapped},
    ids::{Epoch, KeyId, VaultId},
};

const MAGIC: &[u8; 8] = b"HUSHVALT";

/// The largest body, in bytes.
const BODY_SIZE_MAX: usize = 1 << 20;

/// The largest vault header, in bytes.
pub const VAULT_HEADER_MAX: usize = body::FRONT_SIZE + BODY_SIZE_MAX + MAC_SIZE;

/// The most epochs a vault may have at a time; `rewrap` retires old ones.
pub const EPOCHS_MAX: usize = 1024;

const WRAPS_MAX: usize = 16;
const CONTEXT_PAIRS_MAX: usize = 16;

/// The largest wrapped epoch key, in bytes: what an AWS KMS ciphertext may have, and more.
pub const BLOB_SIZE_MAX: usize = 8192;

/// Feature bits this version knows: none yet.
const FEATURES_KNOWN: u64 = 0;

/// Who can open a wrap of an epoch key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CustodianKind {
    /// A local keystore.
    Local,
}

/// An epoch key as wrapped by one custodian.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochWrap {
    /// Who can open it.
    pub custodian: CustodianKind,
    /// The master key it is under.
    pub key: KeyId,
    /// Pairs of the encryption context beside those every epoch has.
    pub context: Vec<(String, String)>,
    /// What the custodian made.
    pub blob: Vec<u8>,
}

/// One epoch of a vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Its number.
    pub number: Epoch,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// The names root, wrapped under this epoch.
    pub names_root: Wrapped,
    /// The epoch key; any one wrap opens to it.
    pub wraps: Vec<EpochWrap>,
}

/// The body of a vault header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultHeader {
    /// The vault's id.
    pub vault: VaultId,
    /// When the vault was made, in seconds since 1970.
    pub created: u64,
    suite: u16,
    block_size: u32,
    features: u64,
    /// The epoch new files use.
    pub current: Epoch,
    /// All epochs, by rising number.
    pub epochs: Vec<EpochRecord>,
    extensions: Vec<Extension>,
}

/// A vault header as read: its shape was checked, but nothing in it is to be believed yet.
#[derive(Clone, Debug)]
pub struct UnverifiedVaultHeader {
    header: VaultHeader,
    message: Vec<u8>,
    mac: [u8; MAC_SIZE],
}

impl VaultHeader {
    /// Makes the header of a new vault.
    pub fn new(vault: VaultId, created: u64, layout: Layout, first: EpochRecord) -> Self {
        VaultHeader {
            vault,
            created,
            suite: layout.suite().number(),
            block_size: u32::try_from(layout.block_size()).expect("a block is at most 64 KiB"),
            features: 0,
            current: first.number,
            epochs: vec![first],
            extensions: Vec::new(),
        }
    }

    /// Returns how data files are divided into blocks.
    ///
    /// # Errors
    ///
    /// [`FormatError::OutOfRange`] when suite or block size are none of this version's.
    pub fn layout(&self) -> Result<Layout, FormatError> {
        let suite = Suite::from_number(self.suite).ok_or(FormatError::OutOfRange("suite"))?;
        Layout::new(suite, self.block_size)
    }

    /// Returns the record of an epoch.
    pub fn epoch(&self, number: Epoch) -> Option<&EpochRecord> {
        self.epochs.iter().find(|epoch| epoch.number == number)
    }

    /// Returns what the wrap of the names root under an epoch authenticates.
    pub fn names_root_purpose(vault: VaultId, epoch: Epoch) -> Vec<u8> {
        [&b"hushfs v1 names root"[..], &vault.0, &epoch.0.to_le_bytes()].concat()
    }

    /// Encodes the header; `key` is that of the current epoch.
    ///
    /// # Errors
    ///
    /// [`FormatError::OutOfRange`] when it breaks a limit, which the caller should have kept.
    pub fn encode(&self, key: &MacKey) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let mut out = body::encode(MAGIC, BODY_SIZE_MAX, self)?;
        let mac = key.mac(&out);
        out.extend_from_slice(&mac);
        Ok(out)
    }

    fn check(&self) -> Result<(), FormatError> {
        if self.features & !FEATURES_KNOWN != 0 {
            return Err(FormatError::UnknownFeature);
        }
        body::check_extensions(&self.extensions)?;
        self.layout()?;
        if self.epochs.len() > EPOCHS_MAX {
            return Err(FormatError::OutOfRange("number of epochs"));
        }
        if !body::rises(self.epochs.iter().map(|epoch| epoch.number)) || self.epochs.iter().any(|e| e.number.0 == 0) {
            return Err(FormatError::OutOfRange("order of the epochs"));
        }
        if self.epoch(self.current).is_none() {
            return Err(FormatError::OutOfRange("current epoch"));
        }
        for wrap in self.epochs.iter().flat_map(|epoch| &epoch.wraps) {
            if wrap.blob.len() > BLOB_SIZE_MAX {
                return Err(FormatError::OutOfRange("size of a wrapped epoch key"));
            }
            if wrap.context.len() > CONTEXT_PAIRS_MAX || !body::rises(wrap.context.iter().map(|pair| &pair.0)) {
                return Err(FormatError::OutOfRange("encryption context"));
            }
        }
        if self
            .epochs
            .iter()
            .any(|epoch| !(1..=WRAPS_MAX).contains(&epoch.wraps.len()))
        {
            return Err(FormatError::OutOfRange("number of wraps"));
        }
        Ok(())
    }
}

impl UnverifiedVaultHeader {
    /// Decodes a vault header.
    ///
    /// # Errors
    ///
    /// The [`FormatError`] that names the first thing wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (header, rest) = body::decode::<VaultHeader>(MAGIC, BODY_SIZE_MAX, bytes)?;
        let (message, mac) = body::split_mac(bytes, rest)?;
        header.check()?;
        Ok(UnverifiedVaultHeader {
            header,
            message: message.to_vec(),
            mac,
        })
    }

    /// Returns the header to find the keys by that will authenticate it. Nothing else may be done with it.
    pub fn claims(&self) -> &VaultHeader {
        &self.header
    }

    /// Checks the MAC.
    ///
    /// # Errors
    ///
    /// [`FormatError::NotAuthentic`] when the header was changed since the holder of the current epoch key wrote it.
    pub fn verify(self, key: &MacKey) -> Result<VaultHeader, FormatError> {
        if key.check(&self.message, &self.mac) {
            Ok(self.header)
        } else {
            Err(FormatError::NotAuthentic)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::{keys::KeyBytes, wrap};

    fn key() -> MacKey {
        MacKey::new(KeyBytes::copy_of(&[6; 32]))
    }

    fn epoch(number: u32) -> EpochRecord {
        EpochRecord {
            number: Epoch(number),
            created: 1_800_000_000,
            names_root: wrap::wrap(&[1; 32], b"", &[2; 32]),
            wraps: vec![EpochWrap {
                custodian: CustodianKind::Local,
                key: KeyId([3; 16]),
                context: vec![("a".into(), "b".into())],
                blob: vec![7; 100],
            }],
        }
    }

    fn header() -> VaultHeader {
        let layout = Layout::new(Suite::Aes256GcmSiv, 4096).unwrap();
        VaultHeader::new(VaultId([1; 16]), 1_800_000_000, layout, epoch(1))
    }

    fn fault(change: impl FnOnce(&mut VaultHeader)) -> FormatError {
        let mut header = header();
        change(&mut header);
        let mut bytes = body::encode(MAGIC, BODY_SIZE_MAX, &header).unwrap();
        let mac = key().mac(&bytes);
        bytes.extend_from_slice(&mac);
        assert_eq!(
            header.encode(&key()).unwrap_err(),
            UnverifiedVaultHeader::decode(&bytes).unwrap_err()
        );
        UnverifiedVaultHeader::decode(&bytes).unwrap_err()
    }

    #[test]
    fn what_is_encoded_verifies_to_the_same() {
        let mut header = header();
        header.epochs.push(epoch(2));
        header.current = Epoch(2);
        let bytes = header.encode(&key()).unwrap();
        assert_eq!(
            UnverifiedVaultHeader::decode(&bytes).unwrap().verify(&key()),
            Ok(header)
        );
    }

    #[test]
    fn no_byte_can_be_changed() {
        let good = header().encode(&key()).unwrap();
        for i in 0..good.len() {
            let mut bytes = good.clone();
            bytes[i] ^= 1;
            let accepted = UnverifiedVaultHeader::decode(&bytes).is_ok_and(|header| header.verify(&key()).is_ok());
            assert!(!accepted, "byte {i}");
        }
        for len in 0..good.len() {
            assert!(UnverifiedVaultHeader::decode(&good[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn each_broken_limit_has_its_error() {
        assert_eq!(fault(|h| h.features = 4), FormatError::UnknownFeature);
        assert_eq!(
            fault(|h| h.extensions = vec![Extension {
                kind: 9,
                critical: 1,
                data: vec![]
            }]),
            FormatError::UnknownFeature
        );
        assert_eq!(fault(|h| h.suite = 9), FormatError::OutOfRange("suite"));
        assert_eq!(fault(|h| h.block_size = 4097), FormatError::OutOfRange("block size"));
        assert_eq!(
            fault(|h| h.current = Epoch(2)),
            FormatError::OutOfRange("current epoch")
        );
        assert_eq!(
            fault(|h| h.epochs.push(epoch(1))),
            FormatError::OutOfRange("order of the epochs")
        );
        assert_eq!(
            fault(|h| h.epochs[0].wraps.clear()),
            FormatError::OutOfRange("number of wraps")
        );
        assert_eq!(
            fault(|h| h.epochs[0].wraps[0].blob = vec![0; BLOB_SIZE_MAX + 1]),
            FormatError::OutOfRange("size of a wrapped epoch key")
        );
        assert_eq!(
            fault(|h| h.epochs[0].wraps[0].context.push(("a".into(), "c".into()))),
            FormatError::OutOfRange("encryption context")
        );
        assert_eq!(
            fault(|h| h.epochs = (1..=1025).map(epoch).collect()),
            FormatError::OutOfRange("number of epochs")
        );
    }

    #[test]
    fn an_extension_that_is_not_critical_is_kept() {
        let mut header = header();
        header.extensions = vec![Extension {
            kind: 9,
            critical: 0,
            data: vec![1, 2],
        }];
        let bytes = header.encode(&key()).unwrap();
        assert_eq!(
            UnverifiedVaultHeader::decode(&bytes).unwrap().verify(&key()),
            Ok(header)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_give_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = UnverifiedVaultHeader::decode(&bytes);
            let mut with_front = body::encode(MAGIC, BODY_SIZE_MAX, &bytes).unwrap();
            with_front.extend_from_slice(&[0; 32]);
            let _ = UnverifiedVaultHeader::decode(&with_front);
        }
    }
}
