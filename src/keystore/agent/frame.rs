//! What goes over an agent's socket: one frame there, one back.
//!
//! A frame is a length (u32, little endian), then so many bytes: a magic, a version (u16) and a body, which is bincode at fixed width as
//! in stored files. Both sides bound what they read, in bytes and in time, before they look at it; frames may have keys in them and are wiped.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use bincode::Options;
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::format::keystore::BODY_SIZE_MAX;

/// The version of the protocol.
pub const PROTOCOL_VERSION: u16 = 1;

/// The most bytes a request has: a policy of 32 KiB, or wraps of 8 KiB with their contexts.
pub const REQUEST_SIZE_MAX: usize = 64 * 1024;

/// The most bytes a reply has: it tells of a keystore no more than is in it.
pub const REPLY_SIZE_MAX: usize = BODY_SIZE_MAX;

const MAGIC: [u8; 8] = *b"HUSHAGNT";

/// Magic and version.
const FRONT_SIZE: usize = MAGIC.len() + 2;

/// Why a frame was not read or written.
#[derive(Debug)]
pub enum FrameError {
    /// It is above its limit.
    TooLarge,
    /// It is not of this protocol, or does not decode.
    Malformed,
    /// It is of another version.
    Version(u16),
    /// The other side took too long.
    Timeout,
    /// The other side has gone.
    Closed,
    /// The socket failed.
    Io(io::Error),
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => FrameError::Timeout,
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                FrameError::Closed
            }
            _ => FrameError::Io(error),
        }
    }
}

fn options(limit: usize) -> impl Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_little_endian()
        .with_limit(limit as u64)
        .reject_trailing_bytes()
}

/// Encodes a frame, length included.
///
/// # Errors
///
/// [`FrameError::TooLarge`].
pub fn encode<T: Serialize>(message: &T, size_max: usize) -> Result<Zeroizing<Vec<u8>>, FrameError> {
    let options = || options(size_max - FRONT_SIZE);
    let size = options().serialized_size(message).map_err(|_| FrameError::TooLarge)?;
    let len = u32::try_from(size as usize + FRONT_SIZE).map_err(|_| FrameError::TooLarge)?;
    // As large as it will be: a vector that grows leaves copies behind.
    let mut frame = Zeroizing::new(Vec::with_capacity(4 + len as usize));
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    options()
        .serialize_into(&mut *frame, message)
        .map_err(|_| FrameError::TooLarge)?;
    Ok(frame)
}

/// Decodes a frame without its length.
///
/// # Errors
///
/// [`FrameError::Malformed`], [`FrameError::Version`].
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, FrameError> {
    let rest = frame.strip_prefix(&MAGIC).ok_or(FrameError::Malformed)?;
    let (version, body) = rest.split_first_chunk::<2>().ok_or(FrameError::Malformed)?;
    match u16::from_le_bytes(*version) {
        PROTOCOL_VERSION => options(body.len()).deserialize(body).map_err(|_| FrameError::Malformed),
        version => Err(FrameError::Version(version)),
    }
}

/// Reads a frame, and returns it without its length.
///
/// # Errors
///
/// The [`FrameError`] that says why not; [`FrameError::Timeout`] when it is not there as a whole at the deadline.
pub fn read(stream: &UnixStream, size_max: usize, deadline: Instant) -> Result<Zeroizing<Vec<u8>>, FrameError> {
    let mut len = [0; 4];
    fill(stream, &mut len, deadline)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > size_max {
        return Err(FrameError::TooLarge);
    }
    let mut frame = Zeroizing::new(vec![0; len]);
    fill(stream, &mut frame, deadline)?;
    Ok(frame)
}

fn fill(mut stream: &UnixStream, mut out: &mut [u8], deadline: Instant) -> Result<(), FrameError> {
    while !out.is_empty() {
        // Anew for each part: who sends a byte now and then does not get more time for it.
        stream.set_read_timeout(Some(time_left(deadline)?))?;
        match stream.read(out) {
            Ok(0) => return Err(FrameError::Closed),
            Ok(count) => out = &mut out[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Writes what [`encode`] gave.
///
/// # Errors
///
/// The [`FrameError`] that says why not.
pub fn write(mut stream: &UnixStream, mut frame: &[u8], deadline: Instant) -> Result<(), FrameError> {
    while !frame.is_empty() {
        stream.set_write_timeout(Some(time_left(deadline)?))?;
        match stream.write(frame) {
            Ok(0) => return Err(FrameError::Closed),
            Ok(count) => frame = &frame[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn time_left(deadline: Instant) -> Result<Duration, FrameError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(FrameError::Timeout);
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;
    use crate::keystore::agent::{Reply, Request};

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(100)
    }

    #[test]
    fn a_frame_goes_over_a_socket() {
        let (one, other) = UnixStream::pair().unwrap();
        let frame = encode(&Request::Status, REQUEST_SIZE_MAX).unwrap();
        write(&one, &frame, soon()).unwrap();
        let read = read(&other, REQUEST_SIZE_MAX, soon()).unwrap();
        assert!(matches!(decode::<Request>(&read), Ok(Request::Status)));
    }

    #[test]
    fn what_is_too_large_is_neither_sent_nor_read() {
        let long = "x".repeat(REQUEST_SIZE_MAX);
        assert!(matches!(encode(&long, REQUEST_SIZE_MAX), Err(FrameError::TooLarge)));
        let (mut one, other) = UnixStream::pair().unwrap();
        one.write_all(&(REQUEST_SIZE_MAX as u32 + 1).to_le_bytes()).unwrap();
        assert!(matches!(
            read(&other, REQUEST_SIZE_MAX, soon()),
            Err(FrameError::TooLarge)
        ));
    }

    #[test]
    fn another_version_and_a_frame_of_something_else_are_told_apart() {
        let frame = encode(&Request::Status, REQUEST_SIZE_MAX).unwrap();
        let changed = |at: usize| {
            let mut frame = frame[4..].to_vec();
            frame[at] ^= 0x40;
            decode::<Request>(&frame).map(drop).unwrap_err()
        };
        assert!(matches!(changed(0), FrameError::Malformed));
        assert!(matches!(changed(8), FrameError::Version(0x41)));
        assert!(matches!(decode::<Request>(b""), Err(FrameError::Malformed)));
        let longer = [&frame[4..], &[0]].concat();
        assert!(matches!(decode::<Request>(&longer), Err(FrameError::Malformed)));
    }

    #[test]
    fn who_sends_slowly_does_not_get_more_time() {
        let (mut one, other) = UnixStream::pair().unwrap();
        let sender = thread::spawn(move || {
            for byte in 10u32.to_le_bytes().into_iter().chain([0; 10]) {
                thread::sleep(Duration::from_millis(30));
                if one.write_all(&[byte]).is_err() {
                    return;
                }
            }
        });
        assert!(matches!(
            read(&other, REQUEST_SIZE_MAX, soon()),
            Err(FrameError::Timeout)
        ));
        drop(other);
        sender.join().unwrap();
    }

    #[test]
    fn who_hangs_up_is_noticed() {
        let (one, other) = UnixStream::pair().unwrap();
        drop(one);
        assert!(matches!(
            read(&other, REQUEST_SIZE_MAX, soon()),
            Err(FrameError::Closed)
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_do_not_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<Request>(&bytes);
            let framed = [&MAGIC[..], &PROTOCOL_VERSION.to_le_bytes(), &bytes].concat();
            let _ = decode::<Request>(&framed);
            let _ = decode::<Reply>(&framed);
        }

        #[test]
        fn the_length_of_a_list_in_a_frame_is_not_believed(len in any::<u64>(), kind in 0u32..16) {
            let framed = [&MAGIC[..], &PROTOCOL_VERSION.to_le_bytes(), &kind.to_le_bytes(), &[0; 16], &len.to_le_bytes()].concat();
            let _ = decode::<Request>(&framed);
        }
    }
}
