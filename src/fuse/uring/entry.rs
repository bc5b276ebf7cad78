//! The buffers of one request under way, shared with the kernel.

use std::io;

use memmap2::MmapMut;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::abi::{InHeader, OutHeader, RingEntryInOut};

/// Where the parts of `struct fuse_uring_req_header` begin.
const IN_OUT: usize = 0;
const OPERATION: usize = 128;
const RING: usize = 256;
const HEADERS_SIZE: usize = 288;

/// One request at a time: the kernel fills it, we answer in it.
pub struct Entry {
    headers: MmapMut,
    payload: MmapMut,
    /// What the kernel is given at registration: both buffers.
    vectors: Box<[libc::iovec; 2]>,
}

// SAFETY: the vectors point into the two mappings beside them, which move with them and stay where they are in memory.
unsafe impl Send for Entry {}

impl Entry {
    /// Makes an entry for requests and answers of up to `payload_size` bytes.
    pub fn new(payload_size: usize) -> io::Result<Self> {
        let mut headers = MmapMut::map_anon(HEADERS_SIZE)?;
        let mut payload = MmapMut::map_anon(payload_size)?;
        let vector = |map: &mut MmapMut| libc::iovec {
            iov_base: map.as_mut_ptr().cast(),
            iov_len: map.len(),
        };
        let vectors = Box::new([vector(&mut headers), vector(&mut payload)]);
        Ok(Entry {
            headers,
            payload,
            vectors,
        })
    }

    /// Returns the address of the two vectors, for registration.
    pub fn vectors(&self) -> u64 {
        self.vectors.as_ptr() as u64
    }

    fn part<T: FromBytes>(&self, at: usize) -> T {
        let (part, _) = T::read_from_prefix(&self.headers[at..]).expect("every part fits into the headers");
        part
    }

    fn set_part(&mut self, at: usize, part: &(impl IntoBytes + Immutable)) {
        let bytes = part.as_bytes();
        self.headers[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Returns the header of the request.
    pub fn header(&self) -> InHeader {
        self.part(IN_OUT)
    }

    /// Returns the number by which the kernel knows the request in the ring.
    pub fn commit_id(&self) -> u64 {
        self.part::<RingEntryInOut>(RING).commit_id
    }

    /// Returns a copy of the fixed part, and the payload.
    pub fn parts(&mut self) -> ([u8; RING - OPERATION], &mut [u8], usize) {
        let mut fixed = [0; RING - OPERATION];
        fixed.copy_from_slice(&self.headers[OPERATION..RING]);
        let len = (self.part::<RingEntryInOut>(RING).payload_size as usize).min(self.payload.len());
        (fixed, &mut self.payload, len)
    }

    /// Sets the answer: `len` bytes of payload, or an errno.
    pub fn answer(&mut self, unique: u64, len: usize, error: i32) {
        let len = if error == 0 { len } else { 0 };
        let header = OutHeader {
            len: (size_of::<OutHeader>() + len) as u32,
            error: -error,
            unique,
        };
        self.set_part(IN_OUT, &header);
        let mut ring: RingEntryInOut = self.part(RING);
        ring.payload_size = len as u32;
        self.set_part(RING, &ring);
    }
}
