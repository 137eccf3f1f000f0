//! Memory in blocks of one length, as many as there may be, each of them used again and again.
//!
//! What passes through in large pieces must not come anew from the allocator each time: pieces that
//! are taken by one thread and given back by another leave holes that grow with the bytes that pass
//! and with the threads of the machine. A block is allocated when it is needed for the first time
//! and then stays, so all together never have more than was set.
//!
//! It must never be held on to by what keeps bytes, such as a cache: its place is free only when
//! the last of its bytes was dropped.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A pool of blocks.
#[derive(Clone, Debug)]
pub(crate) struct BufferPool(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    block_len: usize,
    places: Arc<Semaphore>,
    /// Those that are not in use, of those that were allocated.
    free: Mutex<Vec<Box<[u8]>>>,
}

/// A block that is in use, filled from its beginning.
#[derive(Debug)]
pub(crate) struct PooledBuffer {
    memory: Box<[u8]>,
    len: usize,
    pool: Arc<Pool>,
    /// Given back after the memory.
    _place: Option<OwnedSemaphorePermit>,
}

impl BufferPool {
    /// BufferPool of `block_len` in `bytes`, at least one.
    pub(crate) fn new(block_len: usize, bytes: u64) -> Self {
        let blocks = usize::try_from(bytes).unwrap_or(usize::MAX) / block_len;
        let places = Arc::new(Semaphore::new(blocks.clamp(1, Semaphore::MAX_PERMITS)));
        Self(Arc::new(Pool {
            block_len,
            places,
            free: Mutex::default(),
        }))
    }

    /// An empty block; waits for one, in turn with others.
    pub(crate) async fn take(&self) -> PooledBuffer {
        // The pool is never closed.
        let place = Arc::clone(&self.0.places).acquire_owned().await.ok();
        self.block(place)
    }

    /// An empty block, if there is one.
    pub(crate) fn try_take(&self) -> Option<PooledBuffer> {
        let place = Arc::clone(&self.0.places).try_acquire_owned().ok()?;
        Some(self.block(Some(place)))
    }

    fn block(&self, place: Option<OwnedSemaphorePermit>) -> PooledBuffer {
        let used = self
            .0
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let memory = used.unwrap_or_else(|| vec![0; self.0.block_len].into_boxed_slice());
        PooledBuffer {
            memory,
            len: 0,
            pool: Arc::clone(&self.0),
            _place: place,
        }
    }
}

impl PooledBuffer {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Appends as many of the bytes as there is room for, and says how many.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> usize {
        let room = &mut self.memory[self.len..];
        let now = bytes.len().min(room.len());
        room[..now].copy_from_slice(&bytes[..now]);
        self.len += now;
        now
    }

    /// Appends `len` bytes, or what there is room for, as `fill` writes them.
    pub(crate) fn append_with(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let room = &mut self.memory[self.len..];
        let now = len.min(room.len());
        fill(&mut room[..now])?;
        self.len += now;
        Ok(())
    }

    /// The bytes, which hold the block until the last of them is dropped.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        let memory = core::mem::take(&mut self.memory);
        self.pool
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(memory);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_block_is_used_again_when_all_of_its_bytes_are_dropped() {
        let blocks = BufferPool::new(4, 9);
        let (mut first, second) = (blocks.take().await, blocks.take().await);
        assert!(blocks.try_take().is_none());
        assert_eq!((first.append(b"abc"), first.append(b"de")), (3, 1));
        let place = first.as_ref().as_ptr();
        let (bytes, part) = (first.freeze(), second.freeze());
        let clone = bytes.slice(1..);
        assert_eq!(
            (&bytes[..], &clone[..], &part[..]),
            (&b"abcd"[..], &b"bcd"[..], &b""[..])
        );
        drop(bytes);
        assert!(blocks.try_take().is_none());
        drop(clone);
        let mut again = blocks.try_take().unwrap();
        assert!(again.as_ref().is_empty());
        again.append(b"x");
        assert_eq!(again.as_ref().as_ptr(), place);
    }

    #[test]
    fn what_could_not_be_filled_is_not_there() {
        let mut block = BufferPool::new(4, 0).try_take().unwrap();
        assert!(
            block
                .append_with(2, |_| Err(io::Error::other("no")))
                .is_err()
        );
        assert_eq!(block.len(), 0);
        let fill = |room: &mut [u8]| {
            room.fill(7);
            Ok(())
        };
        block.append_with(9, fill).unwrap();
        assert_eq!(block.as_ref(), [7; 4]);
    }
}
