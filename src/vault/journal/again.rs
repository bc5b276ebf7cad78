//! What the journal has of a data file is written to it again, within the mount, after a sync has failed.
//!
//! The kernel then takes for written what it could not write, and may let go of it; the next sync succeeds (fsync(2)). Unlike recovery this goes on
//! beside readers that wait for nobody: no byte is what it was before, not even for a moment. So the last change of each byte is the only one that is done.

use std::{io, ops::Range};

use rangemap::RangeSet;

use super::recovery::preamble_of;
use crate::{
    backing::Storage,
    format::journal::{Change, Entry},
};

/// Zeros written at once, in bytes.
const ZEROS: usize = 64 << 10;

/// Writes to a data file what entries about it say, in their order, and what it has been since.
///
/// # Errors
///
/// What reading or writing the data file gives.
pub(super) fn write_again(file: &impl Storage, entries: &[Entry<'_>]) -> io::Result<()> {
    let Some(present) = preamble_of(file)? else {
        return Ok(());
    };
    let size = file.len()?;
    let mut done = RangeSet::new();
    // Sealed since, everything of that time was durable.
    let entries = entries
        .iter()
        .filter(|entry| entry.file.seal_count >= present.claimed_seal_count());
    for entry in entries.rev() {
        let range = match entry.change {
            Change::Write(offset, bytes) => offset..offset + bytes.len() as u64,
            Change::Zero(offset, len) => offset..offset + len,
            Change::SetLen(len) => len..u64::MAX,
        };
        if range.is_empty() {
            continue;
        }
        for gap in done.gaps(&range) {
            match entry.change {
                Change::Write(offset, bytes) => {
                    let piece = &bytes[(gap.start - offset) as usize..(gap.end - offset) as usize];
                    file.write_with_mtime(piece, gap.start, None)?;
                }
                // That whole pages were freed is not lost with what they held.
                Change::Zero(..) | Change::SetLen(_) => clear(file, gap.start..gap.end.min(size))?,
            }
        }
        done.insert(range);
    }
    Ok(())
}

/// Writes zeros where a range is no hole.
fn clear(file: &impl Storage, range: Range<u64>) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end
        && let Some(data) = file.next_data(at)?.filter(|&data| data < range.end)
    {
        let end = file.next_hole(data)?.min(range.end).min(data + ZEROS as u64);
        file.write_with_mtime(&vec![0; (end - data) as usize], data, None)?;
        at = end;
    }
    Ok(())
}
