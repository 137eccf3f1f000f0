//! Threads that serve connections, each its own: what one connection does never waits for another
//! thread's lock, and those of a thread take turns, first come first served.
//!
//! A runtime of several threads moves work between them. With a thousand busy connections the
//! moving costs more than it evens out, and who was moved often waits long. A new connection goes
//! to the thread that has fewest.
//!
//! It must never be used for handlers that compute for long or wait for a disk on the runtime's
//! thread: nobody takes a thread's other connections over meanwhile.

use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// One in so many tasks is taken from what other threads want run here: new connections, and
/// answers that were made elsewhere. By default it is one in 31, and on a busy thread hundreds of
/// new connections would wait for each other.
const FROM_OTHERS_EVERY: u32 = 2;

/// The threads; they end with it, and all that still runs on them ends where it stands.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
    _running: DropGuard,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    /// A clone for each connection.
    seats: Arc<()>,
}

/// A connection's place on a thread, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    _counted: Arc<()>,
}

impl Workers {
    /// As many threads as `number`, at least one.
    ///
    /// # Errors
    /// The system has no thread or no descriptor for one.
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

    /// The thread with the fewest connections, and a seat on it.
    pub(super) fn seat(&self) -> (&Handle, Seat) {
        let fewest = self
            .workers
            .iter()
            .min_by_key(|worker| Arc::strong_count(&worker.seats));
        let worker = fewest.unwrap_or(&self.workers[0]);
        (
            &worker.runtime,
            Seat {
                _counted: Arc::clone(&worker.seats),
            },
        )
    }
}

impl Worker {
    fn start(number: usize, running: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .global_queue_interval(FROM_OTHERS_EVERY)
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
            seats: Arc::default(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn connections_go_where_there_are_fewest() {
        let workers = Workers::start(2).unwrap();
        let (first, _first_seat) = workers.seat();
        let (second, second_seat) = workers.seat();
        assert_ne!(first.id(), second.id());
        drop(second_seat);
        assert_eq!(workers.seat().0.id(), second.id());
    }
}
