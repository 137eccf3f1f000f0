//! Memory for parts, used again: a fresh buffer of this size costs a page fault for each of its
//! pages, since the allocator returns large ones to the system.
//!
//! What is kept is bounded; what is in use is not bounded here but by those who use it, one or two
//! buffers a transfer.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use flotilla_common::chunk::PART_SIZE;

/// Buffers that wait for their next use at most: 8 MiB, as much as one connection has on its way.
const MAX_KEPT: usize = 32;

static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// An empty buffer with room for `length` bytes, most often for a part.
pub(crate) fn take(length: usize) -> Vec<u8> {
    if length > PART_SIZE as usize {
        return Vec::with_capacity(length);
    }
    // Nothing panics while it holds the lock.
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner).pop();
    kept.unwrap_or_else(|| Vec::with_capacity(PART_SIZE as usize))
}

/// The bytes in a buffer of [`take`], which is used again when the last of them is gone.
pub(crate) fn freeze(buffer: Vec<u8>) -> Bytes {
    Bytes::from_owner(Buffer(buffer))
}

struct Buffer(Vec<u8>);

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        give_back(core::mem::take(&mut self.0));
    }
}

/// Keeps a buffer of [`take`] for its next use.
pub(crate) fn give_back(mut buffer: Vec<u8>) {
    if buffer.capacity() != PART_SIZE as usize {
        return;
    }
    buffer.clear();
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() < MAX_KEPT {
        kept.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_is_used_again_is_empty_and_never_more_are_kept_than_the_bound() {
        let frozen: Vec<Bytes> = (0..2 * MAX_KEPT)
            .map(|_| {
                let mut buffer = take(5);
                assert!(buffer.is_empty());
                buffer.extend_from_slice(b"bytes");
                freeze(buffer)
            })
            .collect();
        let slice = frozen[0].slice(1..3);
        drop(frozen);
        assert_eq!(slice, b"yt"[..]);
        drop(slice);
        assert!(KEPT.lock().expect("not poisoned").len() <= MAX_KEPT);
        assert!(take(2 * PART_SIZE as usize).capacity() >= 2 * PART_SIZE as usize);
    }
}
