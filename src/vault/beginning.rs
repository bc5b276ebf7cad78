//! What a data file begins with, before anything of it is believed.

use crate::{
    backing::Storage,
    format::{layout::PREAMBLE_SIZE, preamble::UnverifiedPreamble},
    vault::{VaultError, content::ContentError},
};

/// So much is looked at at once, in bytes.
const CHUNK: usize = 64 << 10;

/// What a data file begins with.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "taken apart at once, and every open has the large one"
)]
pub enum Beginning {
    /// Nothing: it is empty, for nothing was ever written to it.
    Empty,
    /// Zeros, and there is nothing else in the file: it was being written when the power went, and nothing in it was ever synced. ext4 and others that
    /// allocate late make a file's size durable before its bytes. Whoever could make such a file could as well have made it empty.
    Zeros,
    /// A preamble.
    Preamble(UnverifiedPreamble),
}

impl Beginning {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// What reading gives, and [`ContentError::Preamble`] where there is something that is none.
    pub fn read(file: &impl Storage) -> Result<Self, VaultError> {
        let mut bytes = [0; PREAMBLE_SIZE as usize];
        let got = file.read_at(&mut bytes, 0)?;
        if got == 0 {
            return Ok(Beginning::Empty);
        }
        match UnverifiedPreamble::decode(&bytes[..got]) {
            Ok(preamble) => Ok(Beginning::Preamble(preamble)),
            Err(_) if is_zero(&bytes[..got]) && is_zero_to_its_end(file)? => Ok(Beginning::Zeros),
            Err(error) => Err(VaultError::Content(ContentError::Preamble(error))),
        }
    }

    /// Returns the preamble; nothing for a file that has nothing in it.
    pub fn preamble(self) -> Option<UnverifiedPreamble> {
        match self {
            Beginning::Preamble(preamble) => Some(preamble),
            Beginning::Empty | Beginning::Zeros => None,
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

fn is_zero_to_its_end(file: &impl Storage) -> Result<bool, VaultError> {
    let mut chunk = vec![0; CHUNK];
    // What is no file has no length, and perhaps no end.
    let len = file.len()?;
    let mut at = 0;
    while at < len
        && let Some(data) = file.next_data(at)?
    {
        let got = file.read_at(&mut chunk, data)?;
        if !is_zero(&chunk[..got]) {
            return Ok(false);
        }
        if got == 0 {
            break;
        }
        at = data + got as u64;
    }
    Ok(len > 0)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt};

    use super::*;
    use crate::backing::Dir;

    fn beginning_of(write: impl FnOnce(&fs::File)) -> Result<Beginning, VaultError> {
        let dir = tempfile::tempdir().unwrap();
        write(&fs::File::create(dir.path().join("file")).unwrap());
        let file = Dir::open(dir.path()).unwrap().open_file("file", true).unwrap();
        Beginning::read(&file)
    }

    #[test]
    fn a_file_of_zeros_alone_is_one_that_was_never_synced() {
        assert!(matches!(beginning_of(|_| ()), Ok(Beginning::Empty)));
        for size in [1, 4096, 3 * CHUNK as u64 + 5] {
            let sparse = beginning_of(|file| file.set_len(size).unwrap());
            assert!(matches!(sparse, Ok(Beginning::Zeros)), "{size}");
            let written = beginning_of(|file| file.write_all_at(&vec![0; size as usize], 0).unwrap());
            assert!(matches!(written, Ok(Beginning::Zeros)), "{size}");
        }
    }

    #[test]
    fn a_preamble_that_was_overwritten_is_damage() {
        for at in [0, PREAMBLE_SIZE - 1, PREAMBLE_SIZE, 5 * CHUNK as u64, (8 << 20) - 1] {
            let damaged = beginning_of(|file| {
                file.set_len(8 << 20).unwrap();
                file.write_all_at(&[1], at).unwrap();
            });
            assert!(
                matches!(damaged, Err(VaultError::Content(ContentError::Preamble(_)))),
                "a byte at {at}"
            );
        }
    }
}
