//! Threads that each serve connections of their own with a single-threaded runtime.
//!
//! A multi-threaded runtime moves tasks between threads. With a thousand busy connections that
//! costs more than it balances, and moved tasks wait long. Here, a new connection goes to the
//! thread with the fewest connections and stays there.
//!
//! It must never run handlers that compute for long or block on a disk: no other thread takes over
//! the connections of a busy one.

use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Every how many tasks a thread takes one that another thread queued: a new connection, or a
/// response that was computed elsewhere. Tokio's default is 31, with which hundreds of new
/// connections would queue behind each other on a busy thread.
const GLOBAL_QUEUE_INTERVAL: u32 = 2;

/// The threads. Dropping them stops the threads and drops the tasks that still run there.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
    _running: DropGuard,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    /// One clone per connection.
    connections: Arc<()>,
}

/// Counts a connection on its thread until it is dropped.
#[derive(Debug)]
pub(super) struct WorkerSlot {
    _counted: Arc<()>,
}

impl Workers {
    /// Starts `number` threads, at least one.
    ///
    /// # Errors
    /// The operating system refuses a thread or a file descriptor.
    pub fn start(number: usize) -> io::Result<Self> {
        let running = CancellationToken::new();
        let workers = (0..number.max(1)).map(|number| Worker::start(number, running.clone()));
        let workers = workers.collect::<io::Result<_>>();
        let running = running.drop_guard();
        Ok(Self {
            workers: workers?,
            _running: running,
        })
    }

    /// Picks the thread with the fewest connections, and counts one more there.
    pub(super) fn least_loaded(&self) -> (&Handle, WorkerSlot) {
        let fewest = self
            .workers
            .iter()
            .min_by_key(|worker| Arc::strong_count(&worker.connections));
        let worker = fewest.unwrap_or(&self.workers[0]);
        (
            &worker.runtime,
            WorkerSlot {
                _counted: Arc::clone(&worker.connections),
            },
        )
    }
}

impl Worker {
    fn start(number: usize, running: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .global_queue_interval(GLOBAL_QUEUE_INTERVAL)
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new()
            .name(format!("http-{number}"))
            .spawn(move || {
                runtime.block_on(running.cancelled());
                runtime.shutdown_background();
            })?;
        Ok(Self {
            runtime: handle,
            connections: Arc::default(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn connections_go_to_the_least_loaded_thread() {
        let workers = Workers::start(2).unwrap();
        let (first, _first_slot) = workers.least_loaded();
        let (second, second_slot) = workers.least_loaded();
        assert_ne!(first.id(), second.id());
        drop(second_slot);
        assert_eq!(workers.least_loaded().0.id(), second.id());
    }
}
