//! Offsets, sizes and indices as types of their own, so that a plaintext offset cannot be used where a ciphertext offset is meant.
//!
//! Only [`Layout`](crate::format::layout::Layout) turns one side into the other.

/// An offset into a file's plaintext, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlainOffset(pub u64);

/// A size of plaintext, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlainSize(pub u64);

/// An offset into a data file on the backing filesystem, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CipherOffset(pub u64);

/// A size of a data file on the backing filesystem, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CipherSize(pub u64);

/// The index of a block in a file, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u64);
