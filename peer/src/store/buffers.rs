//! A buffer pool for parts. A new buffer of this size costs a page fault for each of its pages,
//! because the allocator returns large buffers to the system.
//!
//! The number of idle buffers is bounded here. The number in use is bounded by the callers: one or
//! two per transfer.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use flotilla_common::chunk::PART_SIZE;

/// The most idle buffers: 8 MiB, the flow-control window of a connection.
const MAX_IDLE: usize = 32;

static IDLE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// An empty buffer with a capacity of at least `length` bytes. Buffers of more than a part are not
/// pooled.
pub(crate) fn take(length: usize) -> Vec<u8> {
    if length > PART_SIZE as usize {
        return Vec::with_capacity(length);
    }
    // No code panics while it holds the lock.
    let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    idle.unwrap_or_else(|| Vec::with_capacity(PART_SIZE as usize))
}

/// The bytes of a buffer from [`take`]. The buffer returns to the pool when the last reference to
/// them is dropped.
pub(crate) fn freeze(buffer: Vec<u8>) -> Bytes {
    Bytes::from_owner(PooledBuffer(buffer))
}

struct PooledBuffer(Vec<u8>);

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        give_back(core::mem::take(&mut self.0));
    }
}

/// Returns a buffer from [`take`] to the pool.
fn give_back(mut buffer: Vec<u8>) {
    if buffer.capacity() != PART_SIZE as usize {
        return;
    }
    buffer.clear();
    let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    if idle.len() < MAX_IDLE {
        idle.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reused_buffers_are_empty_and_the_pool_is_bounded() {
        let frozen: Vec<Bytes> = (0..2 * MAX_IDLE)
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
        assert!(IDLE.lock().expect("not poisoned").len() <= MAX_IDLE);
        assert!(take(2 * PART_SIZE as usize).capacity() >= 2 * PART_SIZE as usize);
    }
}
