//! The bytes of the format: known answers, malformed files, vaults of earlier versions, and docs/FORMAT.md itself.
//!
//! tests/format/vectors.py makes the known answers and the malformed files from the document, without hushfs.

mod support;

#[path = "format/audit.rs"]
mod audit;
#[path = "format/corpora.rs"]
mod corpora;
#[path = "format/document.rs"]
mod document;
#[path = "format/faults.rs"]
mod faults;
#[path = "format/fixed.rs"]
mod fixed;
#[path = "format/frozen.rs"]
mod frozen;
#[path = "format/mutations.rs"]
mod mutations;
#[path = "format/vectors.rs"]
mod vectors;
