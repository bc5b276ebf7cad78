//! hushfs: a plaintext view over a ciphertext directory.
//!
//! Modules stand on floors, each using only lower ones; `docs/ARCHITECTURE.md` has the map.

pub mod agent;
pub mod backing;
pub mod cli;
pub mod crypto;
pub mod format;
pub mod fs;
pub mod fsck;
pub mod fuse;
pub mod ids;
pub mod keystore;
pub mod sandbox;
pub mod sync;
pub mod units;
pub mod vault;
