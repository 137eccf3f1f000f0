//! A bounded pool of buffers of one length, each allocated on first use and then reused.
//!
//! Large buffers that one thread allocates and another one frees fragment the heap: the process
//! grows with the bytes that pass through it and with the number of threads. Buffers of a pool stay
//! allocated, so together they never take more than the configured number of bytes.
//!
//! Never store a pooled buffer in a cache: it returns to the pool only when the last clone of its
//! `Bytes` is dropped.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A pool of buffers; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct BufferPool(Arc<PoolInner>);

#[derive(Debug)]
struct PoolInner {
    buffer_len: usize,
    /// One permit for each buffer.
    permits: Arc<Semaphore>,
    /// Allocated buffers that are not in use.
    free: Mutex<Vec<Box<[u8]>>>,
}

/// A buffer in use, filled from its start.
#[derive(Debug)]
pub(crate) struct PooledBuffer {
    memory: Box<[u8]>,
    len: usize,
    pool: Arc<PoolInner>,
    /// Released after the memory is back in the pool.
    _permit: Option<OwnedSemaphorePermit>,
}

impl BufferPool {
    /// As many buffers of `buffer_len` as fit into `bytes`, at least one.
    pub(crate) fn new(buffer_len: usize, bytes: u64) -> Self {
        let count = usize::try_from(bytes).unwrap_or(usize::MAX) / buffer_len;
        let count = count.clamp(1, Semaphore::MAX_PERMITS);
        Self(Arc::new(PoolInner {
            buffer_len,
            permits: Arc::new(Semaphore::new(count)),
            free: Mutex::default(),
        }))
    }

    /// An empty buffer. Waits until one is free; waiters are served in order.
    pub(crate) async fn take(&self) -> PooledBuffer {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.0.permits).acquire_owned().await.ok();
        self.buffer(permit)
    }

    /// An empty buffer, if one is free.
    pub(crate) fn try_take(&self) -> Option<PooledBuffer> {
        let permit = Arc::clone(&self.0.permits).try_acquire_owned().ok()?;
        Some(self.buffer(Some(permit)))
    }

    fn buffer(&self, permit: Option<OwnedSemaphorePermit>) -> PooledBuffer {
        let free = self
            .0
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let memory = free.unwrap_or_else(|| vec![0; self.0.buffer_len].into_boxed_slice());
        PooledBuffer {
            memory,
            len: 0,
            pool: Arc::clone(&self.0),
            _permit: permit,
        }
    }
}

impl PooledBuffer {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Appends as many of the bytes as fit, and returns how many did.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> usize {
        let room = &mut self.memory[self.len..];
        let appended = bytes.len().min(room.len());
        room[..appended].copy_from_slice(&bytes[..appended]);
        self.len += appended;
        appended
    }

    /// Appends `len` bytes, or as many as fit, written by `fill`. After an error nothing is
    /// appended.
    pub(crate) fn append_with(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let room = &mut self.memory[self.len..];
        let appended = len.min(room.len());
        fill(&mut room[..appended])?;
        self.len += appended;
        Ok(())
    }

    /// The bytes. The buffer returns to the pool when their last clone is dropped.
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
    async fn buffer_is_reused_after_its_last_bytes_are_dropped() {
        let pool = BufferPool::new(4, 9);
        let mut first = pool.take().await;
        let second = pool.take().await;
        assert!(pool.try_take().is_none());
        assert_eq!((first.append(b"abc"), first.append(b"de")), (3, 1));
        let address = first.as_ref().as_ptr();
        let bytes = first.freeze();
        let empty = second.freeze();
        let clone = bytes.slice(1..);
        assert_eq!(
            (&bytes[..], &clone[..], &empty[..]),
            (&b"abcd"[..], &b"bcd"[..], &b""[..])
        );
        drop(bytes);
        assert!(pool.try_take().is_none());
        drop(clone);
        let mut again = pool.try_take().unwrap();
        assert!(again.as_ref().is_empty());
        again.append(b"x");
        assert_eq!(again.as_ref().as_ptr(), address);
    }

    #[test]
    fn failed_fill_appends_nothing() {
        let mut buffer = BufferPool::new(4, 0).try_take().unwrap();
        assert!(
            buffer
                .append_with(2, |_| Err(io::Error::other("no")))
                .is_err()
        );
        assert_eq!(buffer.len(), 0);
        let fill = |room: &mut [u8]| {
            room.fill(7);
            Ok(())
        };
        buffer.append_with(9, fill).unwrap();
        assert_eq!(buffer.as_ref(), [7; 4]);
    }
}
