//! Reads what others have written: up to a limit, into memory that is wiped.

use std::io::{self, Read};

use zeroize::Zeroizing;

/// Reads to the end.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidData`] when there is more than the limit; those of the reader.
pub fn read_all(mut reader: impl Read, size_max: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    // At its full size from the start: growing would leave copies. One byte more tells what is too large from what just fits.
    let mut bytes = Zeroizing::new(vec![0; size_max + 1]);
    let mut len = 0;
    while len <= size_max {
        match reader.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if len > size_max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("more than {size_max} bytes"),
        ));
    }
    bytes.truncate(len);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_kept_to_the_byte() {
        assert_eq!(*read_all([1, 2, 3].as_slice(), 3).unwrap(), [1, 2, 3]);
        assert!(read_all([].as_slice(), 0).unwrap().is_empty());
        let error = read_all([1, 2, 3].as_slice(), 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(read_all(io::repeat(0), 100).is_err());
    }
}
