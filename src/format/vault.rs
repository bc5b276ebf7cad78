//! The vault header `vault.hush`: id, suite, epochs and their wraps, the keys beside the vault's own (docs/FORMAT.md section 3).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    FormatError, Reader,
    body::{self, Extension, MAC_SIZE},
    layout::Layout,
};
use crate::{
    crypto::{
        block::Suite,
        keys::MacKey,
        wrap::{WRAPPED_SIZE, Wrapped},
    },
    ids::{DirectoryId, Epoch, KeyId, VaultId},
};

/// The newest version; that of a vault with several keys.
const KIND: body::Kind = body::Kind {
    magic: b"HUSHVALT",
    version: 2,
    size_max: 1 << 20,
};

/// The version of a vault with one key, which an older hushfs reads too.
const KIND_1: body::Kind = body::Kind { version: 1, ..KIND };

/// The largest vault header, in bytes.
pub const VAULT_HEADER_MAX: usize = body::FRONT_SIZE + KIND.size_max + MAC_SIZE;

/// The most epochs a vault may have at a time; `rewrap` retires old ones.
pub const EPOCHS_MAX: usize = 1024;

const WRAPS_MAX: usize = 16;
const CONTEXT_PAIRS_MAX: usize = 16;

/// The most keys that files may have beside the vault's own.
pub const CHAINS_MAX: usize = 64;

/// The most directories that may have a key of their own for new files.
pub const DIRECTORY_KEYS_MAX: usize = 4096;

/// The largest wrapped epoch key, in bytes: what an AWS KMS ciphertext may have, and more.
pub const BLOB_SIZE_MAX: usize = 8192;

/// Feature bits this version knows: none yet.
const FEATURES_KNOWN: u64 = 0;

/// The extension that says where bucket keys are off, and that files may be without. A hushfs that does not know it could not read those.
const BUCKET_KEYS: u16 = 1;

/// Where new files get no bucket key: the custodian wraps a secret of each file's own.
///
/// That a vault has this at all means that files of it may be without a bucket key, wherever they are and whatever new files get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketKeysOff {
    /// In the vault, where a directory has no key of its own.
    pub vault: bool,
    /// In these directories, each of which has a key of its own, and in those below that have none.
    pub directories: BTreeSet<DirectoryId>,
}

impl BucketKeysOff {
    fn encode(&self) -> Vec<u8> {
        let directories = self.directories.iter().flat_map(|directory| directory.0);
        std::iter::once(u8::from(self.vault)).chain(directories).collect()
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader(bytes);
        let [vault] = reader.take()?;
        let mut directories = Vec::new();
        while !reader.0.is_empty() {
            directories.push(DirectoryId(reader.take()?));
        }
        if vault > 1 || !body::rises(&directories) {
            return Err(FormatError::OutOfRange("bucket keys"));
        }
        Ok(BucketKeysOff {
            vault: vault == 1,
            directories: directories.into_iter().collect(),
        })
    }
}

/// Who can open a wrap of an epoch key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CustodianKind {
    /// A keystore that has the key, or knows who has it.
    Local,
    /// A customer who brings the key and has it stored nowhere.
    Customer,
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
    /// The names root, wrapped under this epoch; zeros where the epoch is of a key beside the vault's own.
    pub names_root: Wrapped,
    /// The epoch key; any one wrap opens to it.
    pub wraps: Vec<EpochWrap>,
}

/// What stands for the names root in epochs of keys that open no names.
pub const NO_NAMES_ROOT: Wrapped = Wrapped([0; WRAPPED_SIZE]);

/// A key that files of the vault have beside the vault's own, and its epochs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyChain {
    /// The key; in the keystore, or a customer's.
    pub key: KeyId,
    /// Numbers of epochs that are wrapped under this key alone, rising. New files of the key use the last.
    pub epochs: Vec<Epoch>,
}

impl KeyChain {
    /// Returns the epoch that new files of the key use.
    pub fn current(&self) -> Epoch {
        *self.epochs.last().expect("a chain without epochs does not decode")
    }
}

/// The key that new files get in a directory, and in those below that have none of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryKey {
    /// The directory.
    pub directory: DirectoryId,
    /// The key of one of the chains.
    pub key: KeyId,
}

/// The body of a vault header; that of version 1 ends before the chains.
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
    /// The keys beside the vault's own, by rising id. What is in none of them is an epoch of the vault's own key.
    pub chains: Vec<KeyChain>,
    /// Directories with a key of their own for new files, by rising id.
    pub directories: Vec<DirectoryKey>,
}

/// The body of version 1.
#[derive(Serialize, Deserialize)]
struct BodyV1 {
    vault: VaultId,
    created: u64,
    suite: u16,
    block_size: u32,
    features: u64,
    current: Epoch,
    epochs: Vec<EpochRecord>,
    extensions: Vec<Extension>,
}

impl From<BodyV1> for VaultHeader {
    fn from(body: BodyV1) -> Self {
        VaultHeader {
            vault: body.vault,
            created: body.created,
            suite: body.suite,
            block_size: body.block_size,
            features: body.features,
            current: body.current,
            epochs: body.epochs,
            extensions: body.extensions,
            chains: Vec::new(),
            directories: Vec::new(),
        }
    }
}

impl From<&VaultHeader> for BodyV1 {
    fn from(header: &VaultHeader) -> Self {
        BodyV1 {
            vault: header.vault,
            created: header.created,
            suite: header.suite,
            block_size: header.block_size,
            features: header.features,
            current: header.current,
            epochs: header.epochs.clone(),
            extensions: header.extensions.clone(),
        }
    }
}

/// A vault header as read: its shape was checked, but nothing in it is to be believed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
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
            chains: Vec::new(),
            directories: Vec::new(),
        }
    }

    /// Returns the version it is stored in: the oldest that can say it.
    pub fn version(&self) -> u16 {
        if self.chains.is_empty() {
            KIND_1.version
        } else {
            KIND.version
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

    /// Returns the record of the current epoch, without which no header decodes.
    pub fn current_epoch(&self) -> &EpochRecord {
        self.epoch(self.current)
            .expect("a header without its current epoch does not decode")
    }

    /// Returns the chain of a key beside the vault's own.
    pub fn chain(&self, key: KeyId) -> Option<&KeyChain> {
        self.chains.iter().find(|chain| chain.key == key)
    }

    /// Returns the chain that an epoch is in; nothing for one of the vault's own key.
    pub fn chain_of(&self, epoch: Epoch) -> Option<&KeyChain> {
        self.chains.iter().find(|chain| chain.epochs.contains(&epoch))
    }

    /// Returns where bucket keys are off; nothing in a vault in which no file was ever without.
    pub fn bucket_keys_off(&self) -> Option<BucketKeysOff> {
        let extension = self.bucket_keys_extension()?;
        Some(BucketKeysOff::decode(&extension.data).expect("checked when the header was decoded, or made here"))
    }

    /// Says where bucket keys are off; nothing where no file is without.
    pub fn set_bucket_keys_off(&mut self, off: Option<&BucketKeysOff>) {
        self.extensions.retain(|extension| extension.kind != BUCKET_KEYS);
        self.extensions.extend(off.map(|off| Extension {
            kind: BUCKET_KEYS,
            critical: 1,
            data: off.encode(),
        }));
    }

    fn bucket_keys_extension(&self) -> Option<&Extension> {
        self.extensions.iter().find(|extension| extension.kind == BUCKET_KEYS)
    }

    /// Returns who has the key of a chain.
    pub fn custodian(&self, chain: &KeyChain) -> CustodianKind {
        let record = self.epoch(chain.current());
        record
            .and_then(|record| record.wraps.first())
            .map(|wrap| wrap.custodian)
            .expect("an epoch of a chain is there and has a wrap")
    }

    /// Returns what the wrap of an epoch key under a customer's key authenticates.
    pub fn customer_purpose(vault: VaultId, epoch: Epoch, key: KeyId) -> Vec<u8> {
        [
            &b"hushfs v1 customer key wrap"[..],
            &vault.0,
            &epoch.0.to_le_bytes(),
            &key.0,
        ]
        .concat()
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
        let mut out = match self.version() {
            1 => body::encode(KIND_1, &BodyV1::from(self))?,
            _ => body::encode(KIND, self)?,
        };
        let mac = key.mac(&out);
        out.extend_from_slice(&mac);
        Ok(out)
    }

    fn check(&self) -> Result<(), FormatError> {
        if self.features & !FEATURES_KNOWN != 0 {
            return Err(FormatError::UnknownFeature);
        }
        body::check_extensions(&self.extensions, &[BUCKET_KEYS])?;
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
        self.check_chains()?;
        self.check_directories()?;
        self.check_bucket_keys()
    }

    fn check_chains(&self) -> Result<(), FormatError> {
        if self.chains.len() > CHAINS_MAX || !body::rises(self.chains.iter().map(|chain| chain.key)) {
            return Err(FormatError::OutOfRange("keys of the vault"));
        }
        let mut in_chains = BTreeSet::new();
        for chain in &self.chains {
            let epochs_of_key = chain.epochs.iter().filter(|&&epoch| self.is_epoch_of(epoch, chain.key));
            if chain.epochs.is_empty()
                || !body::rises(&chain.epochs)
                || epochs_of_key.count() != chain.epochs.len()
                || !chain.epochs.iter().all(|&epoch| in_chains.insert(epoch))
            {
                return Err(FormatError::OutOfRange("epochs of a key"));
            }
        }
        // The vault itself opens by its keystore, and by nothing that a stranger brings.
        let own = self.epochs.iter().filter(|epoch| !in_chains.contains(&epoch.number));
        let mut own_wraps = own.flat_map(|epoch| &epoch.wraps);
        if in_chains.contains(&self.current) || own_wraps.any(|wrap| wrap.custodian != CustodianKind::Local) {
            return Err(FormatError::OutOfRange("epochs of the vault"));
        }
        Ok(())
    }

    /// Tells whether an epoch is there, is wrapped under one key alone, and opens no names.
    fn is_epoch_of(&self, epoch: Epoch, key: KeyId) -> bool {
        self.epoch(epoch).is_some_and(|record| {
            record.names_root == NO_NAMES_ROOT && matches!(&record.wraps[..], [wrap] if wrap.key == key)
        })
    }

    fn check_directories(&self) -> Result<(), FormatError> {
        let is_keystores = |key| {
            self.chain(key)
                .is_some_and(|chain| self.custodian(chain) == CustodianKind::Local)
        };
        if self.directories.len() > DIRECTORY_KEYS_MAX
            || !body::rises(self.directories.iter().map(|of| of.directory))
            || !self.directories.iter().all(|of| is_keystores(of.key))
        {
            return Err(FormatError::OutOfRange("keys of directories"));
        }
        Ok(())
    }

    fn check_bucket_keys(&self) -> Result<(), FormatError> {
        let mut found = self.extensions.iter().filter(|extension| extension.kind == BUCKET_KEYS);
        let Some(extension) = found.next() else { return Ok(()) };
        let off = BucketKeysOff::decode(&extension.data)?;
        let has_key = |id: &DirectoryId| self.directories.iter().any(|of| of.directory == *id);
        if extension.critical != 1 || found.next().is_some() || !off.directories.iter().all(has_key) {
            return Err(FormatError::OutOfRange("bucket keys"));
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
        let version = body::version(KIND, bytes)?;
        let (header, rest) = if version == KIND_1.version {
            let (body, rest) = body::decode::<BodyV1>(KIND_1, bytes)?;
            (body.into(), rest)
        } else {
            body::decode::<VaultHeader>(KIND, bytes)?
        };
        let (message, mac) = body::split_mac(bytes, rest)?;
        header.check()?;
        if header.version() != version {
            return Err(FormatError::OutOfRange("format version"));
        }
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

    fn epoch_of(number: u32, key: u8, custodian: CustodianKind) -> EpochRecord {
        let mut record = epoch(number);
        record.names_root = NO_NAMES_ROOT;
        record.wraps[0].key = KeyId([key; 16]);
        record.wraps[0].custodian = custodian;
        record
    }

    /// A header with a second key of the keystore, which a directory has, and a customer's.
    fn several() -> VaultHeader {
        let mut header = header();
        header.epochs.push(epoch_of(2, 4, CustodianKind::Local));
        header.epochs.push(epoch_of(3, 5, CustodianKind::Customer));
        header.epochs.push(epoch_of(4, 4, CustodianKind::Local));
        let chain = |key, epochs: &[u32]| KeyChain {
            key: KeyId([key; 16]),
            epochs: epochs.iter().copied().map(Epoch).collect(),
        };
        header.chains = vec![chain(4, &[2, 4]), chain(5, &[3])];
        header.directories = vec![DirectoryKey {
            directory: DirectoryId([7; 16]),
            key: KeyId([4; 16]),
        }];
        header
    }

    fn fault(change: impl FnOnce(&mut VaultHeader)) -> FormatError {
        fault_of(header(), change)
    }

    fn fault_of(mut header: VaultHeader, change: impl FnOnce(&mut VaultHeader)) -> FormatError {
        change(&mut header);
        let mut bytes = match header.version() {
            1 => body::encode(KIND_1, &BodyV1::from(&header)).unwrap(),
            _ => body::encode(KIND, &header).unwrap(),
        };
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
    fn where_bucket_keys_are_off_is_said_once_and_of_directories_with_a_key() {
        let off = |vault, directories: &[u8]| BucketKeysOff {
            vault,
            directories: directories.iter().map(|&id| DirectoryId([id; 16])).collect(),
        };
        for (mut header, off) in [
            (header(), off(true, &[])),
            (several(), off(false, &[7])),
            (several(), off(false, &[])),
        ] {
            let version = header.version();
            header.set_bucket_keys_off(Some(&off));
            assert_eq!(header.version(), version, "an older hushfs refuses the extension");
            let bytes = header.encode(&key()).unwrap();
            let read = UnverifiedVaultHeader::decode(&bytes).unwrap().verify(&key()).unwrap();
            assert_eq!(read.bucket_keys_off(), Some(off));
            header.set_bucket_keys_off(None);
            assert_eq!(header.bucket_keys_off(), None);
        }
        let wrong = FormatError::OutOfRange("bucket keys");
        let with = |data: Vec<u8>, critical, count| {
            move |header: &mut VaultHeader| {
                let extension = Extension {
                    kind: BUCKET_KEYS,
                    critical,
                    data,
                };
                header.extensions = vec![extension; count];
            }
        };
        assert_eq!(fault(|h| h.set_bucket_keys_off(Some(&off(false, &[7])))), wrong);
        assert_eq!(fault(with(vec![1], 1, 2)), wrong);
        assert_eq!(fault(with(vec![1], 0, 1)), wrong);
        assert_eq!(fault(with(vec![2], 1, 1)), wrong);
        assert_eq!(fault(with(vec![], 1, 1)), FormatError::TooShort);
        assert_eq!(fault(with(vec![1, 7], 1, 1)), FormatError::TooShort);
        let twice = [&[1][..], &[7; 32]].concat();
        assert_eq!(fault_of(several(), with(twice, 1, 1)), wrong);
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
    fn a_header_of_several_keys_is_of_version_2_and_verifies_to_the_same() {
        let several = several();
        let bytes = several.encode(&key()).unwrap();
        assert_eq!((header().encode(&key()).unwrap()[8], bytes[8]), (1, 2));
        let header = UnverifiedVaultHeader::decode(&bytes).unwrap().verify(&key()).unwrap();
        assert_eq!(header, several);
        assert_eq!(header.chain(KeyId([4; 16])).unwrap().current(), Epoch(4));
        assert_eq!(header.chain_of(Epoch(3)).unwrap().key, KeyId([5; 16]));
        assert_eq!(header.chain_of(Epoch(1)), None);
        for i in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[i] ^= 1;
            let accepted = UnverifiedVaultHeader::decode(&bytes).is_ok_and(|header| header.verify(&key()).is_ok());
            assert!(!accepted, "byte {i}");
        }
    }

    #[test]
    fn version_2_is_for_several_keys_only() {
        let mut bytes = body::encode(KIND, &header()).unwrap();
        bytes.extend_from_slice(&[0; MAC_SIZE]);
        assert_eq!(
            UnverifiedVaultHeader::decode(&bytes).unwrap_err(),
            FormatError::OutOfRange("format version")
        );
    }

    #[test]
    fn each_broken_rule_of_several_keys_has_its_error() {
        let fault = |change: fn(&mut VaultHeader)| fault_of(several(), change);
        let epochs = FormatError::OutOfRange("epochs of a key");
        assert_eq!(fault(|h| h.chains[0].epochs.clear()), epochs);
        assert_eq!(fault(|h| h.chains[0].epochs = vec![Epoch(4), Epoch(2)]), epochs);
        assert_eq!(fault(|h| h.chains[0].epochs.push(Epoch(9))), epochs);
        assert_eq!(fault(|h| h.chains[0].epochs = vec![Epoch(2), Epoch(3)]), epochs);
        assert_eq!(fault(|h| h.chains[0].epochs = vec![Epoch(1)]), epochs);
        assert_eq!(fault(|h| h.epochs[1].names_root = epoch(2).names_root), epochs);
        assert_eq!(fault(|h| h.epochs[1].wraps.push(epoch(2).wraps[0].clone())), epochs);
        let keys = FormatError::OutOfRange("keys of the vault");
        assert_eq!(fault(|h| h.chains.reverse()), keys);
        assert_eq!(fault(|h| h.chains.push(h.chains[1].clone())), keys);
        let vault = FormatError::OutOfRange("epochs of the vault");
        assert_eq!(fault(|h| h.current = Epoch(4)), vault);
        assert_eq!(fault(|h| h.chains.truncate(1)), vault, "a customer's epoch in no chain");
        assert_eq!(
            fault(|h| h.epochs[0].wraps[0].custodian = CustodianKind::Customer),
            vault
        );
        let directories = FormatError::OutOfRange("keys of directories");
        assert_eq!(fault(|h| h.directories[0].key = KeyId([9; 16])), directories);
        assert_eq!(fault(|h| h.directories[0].key = KeyId([5; 16])), directories);
        assert_eq!(fault(|h| h.directories.push(h.directories[0])), directories);
        assert_eq!(
            fault(|h| {
                let all = 0..=u32::try_from(DIRECTORY_KEYS_MAX).unwrap();
                h.directories = all
                    .map(|i| DirectoryKey {
                        directory: DirectoryId(std::array::from_fn(|at| *i.to_be_bytes().get(at).unwrap_or(&0))),
                        key: KeyId([4; 16]),
                    })
                    .collect();
            }),
            directories
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
            for kind in [KIND_1, KIND] {
                let mut with_front = body::encode(kind, &bytes).unwrap();
                with_front.extend_from_slice(&[0; 32]);
                let _ = UnverifiedVaultHeader::decode(&with_front);
            }
        }
    }
}
