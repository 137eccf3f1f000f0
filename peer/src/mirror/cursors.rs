//! The offsets of all readers.
//!
//! The driver needs the lowest offset of each blob's readers, because chunks from there on are
//! fetched first. The mirror needs their order, because bodies of one blob are cut in the order of
//! their offsets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_common::chunk::Geometry;
use flotilla_common::digest::Digest;
use flotilla_runtime::shutdown::Shutdown;
use tokio::sync::Notify;

use crate::driver::{Commands, DriverCommand};

/// The cursors of all readers, by blob.
#[derive(Debug)]
pub(super) struct Cursors {
    table: Mutex<Table>,
    /// Notified after each change.
    changed: Notify,
    commands: Commands,
    shutdown: Shutdown,
}

#[derive(Debug, Default)]
struct Table {
    /// The offset of each reader by its number, by blob.
    offsets: BTreeMap<Digest, BTreeMap<u64, u64>>,
    next_reader: u64,
    /// Blobs of which the driver does not know the lowest offset yet, because its queue was full.
    unsent: BTreeSet<Digest>,
}

impl Table {
    fn lowest(&self, digest: &Digest) -> Option<u64> {
        self.offsets.get(digest)?.values().min().copied()
    }

    fn command(&self, digest: Digest) -> DriverCommand {
        DriverCommand::ReadersMoved {
            digest,
            lowest: self.lowest(&digest),
        }
    }
}

impl Cursors {
    pub(super) fn new(commands: Commands, shutdown: Shutdown) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::default(),
            changed: Notify::new(),
            commands,
            shutdown,
        })
    }

    /// Adds a reader of a blob that starts at `offset`.
    pub(super) fn open(
        self: &Arc<Self>,
        digest: Digest,
        geometry: Geometry,
        offset: u64,
    ) -> Cursor {
        let mut table = self.lock();
        let reader = table.next_reader;
        table.next_reader += 1;
        table
            .offsets
            .entry(digest)
            .or_default()
            .insert(reader, offset);
        self.notify_driver(&mut table, digest);
        Cursor {
            cursors: Arc::clone(self),
            digest,
            geometry,
            reader,
        }
    }

    fn update(self: &Arc<Self>, digest: Digest, change: impl FnOnce(&mut BTreeMap<u64, u64>)) {
        let mut table = self.lock();
        let offsets = table.offsets.entry(digest).or_default();
        change(offsets);
        if offsets.is_empty() {
            table.offsets.remove(&digest);
        }
        self.notify_driver(&mut table, digest);
    }

    /// Sends the lowest offset. The table stays locked meanwhile, so that the driver receives the
    /// offsets in the order of the changes. With a full queue it receives the offset of a later
    /// moment, but it never misses the last one.
    fn notify_driver(self: &Arc<Self>, table: &mut Table, digest: Digest) {
        if self.commands.try_send(table.command(digest)) || !table.unsent.insert(digest) {
            return;
        }
        let cursors = Arc::clone(self);
        self.shutdown.spawn(async move {
            let room = cursors.commands.reserve().await;
            let mut table = cursors.lock();
            table.unsent.remove(&digest);
            if let Some(room) = room {
                room.send(table.command(digest));
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // No code panics while it holds the lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The cursor of one reader; dropping it removes the reader.
#[derive(Debug)]
pub(super) struct Cursor {
    cursors: Arc<Cursors>,
    digest: Digest,
    geometry: Geometry,
    reader: u64,
}

impl Cursor {
    /// Moves the reader from one offset to another. The driver is told about a new chunk only.
    pub(super) fn advance(&self, from: u64, to: u64) {
        let Self {
            geometry, digest, ..
        } = self;
        if geometry.chunk_at(from) == geometry.chunk_at(to) {
            let mut table = self.cursors.lock();
            if let Some(offsets) = table.offsets.get_mut(digest) {
                offsets.insert(self.reader, to);
            }
        } else {
            self.cursors.update(*digest, |offsets| {
                offsets.insert(self.reader, to);
            });
        }
        self.cursors.changed.notify_waiters();
    }

    /// Waits until no reader of the blob has a lower offset.
    pub(super) async fn wait_until_lowest(&self) {
        loop {
            let changed = self.cursors.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_lowest() {
                return;
            }
            changed.await;
        }
    }

    fn is_lowest(&self) -> bool {
        let table = self.cursors.lock();
        let Some(offsets) = table.offsets.get(&self.digest) else {
            return true;
        };
        let own = offsets.get(&self.reader).copied().unwrap_or_default();
        offsets.values().all(|other| *other >= own)
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.cursors.update(self.digest, |offsets| {
            offsets.remove(&self.reader);
        });
        self.cursors.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    struct Setup {
        cursors: Arc<Cursors>,
        commands: Commands,
        queue: mpsc::Receiver<DriverCommand>,
        digest: Digest,
        geometry: Geometry,
    }

    impl Setup {
        fn new() -> Self {
            let (commands, queue) = Commands::channel();
            Self {
                cursors: Cursors::new(commands.clone(), Shutdown::new()),
                commands,
                queue,
                digest: Digest::sha256(b"blob"),
                geometry: Geometry::for_size(64 << 20),
            }
        }

        /// The offset of a chunk.
        fn at(&self, chunk: u64) -> u64 {
            chunk * self.geometry.chunk_size()
        }

        fn open(&self, chunk: u64) -> Cursor {
            let offset = self.at(chunk);
            self.cursors.open(self.digest, self.geometry, offset)
        }

        /// The offsets that the driver received since the last call.
        fn received(&mut self) -> Vec<Option<u64>> {
            let mut offsets = Vec::new();
            while let Ok(command) = self.queue.try_recv() {
                if let DriverCommand::ReadersMoved { digest, lowest } = command {
                    assert_eq!(digest, self.digest);
                    offsets.push(lowest);
                }
            }
            offsets
        }
    }

    #[tokio::test]
    async fn driver_receives_the_lowest_offset_of_all_readers() {
        let mut setup = Setup::new();
        let first = setup.open(8);
        let second = setup.open(2);
        let [two, eight, nine] = [setup.at(2), setup.at(8), setup.at(9)];
        assert_eq!(setup.received(), [Some(eight), Some(two)]);
        second.advance(two, two + 1);
        assert!(setup.received().is_empty(), "same chunk");
        second.advance(two + 1, nine);
        assert_eq!(setup.received(), [Some(eight)]);
        drop(first);
        drop(second);
        assert_eq!(setup.received(), [Some(nine), None]);
    }

    #[tokio::test]
    async fn last_offset_is_sent_after_the_queue_was_full() {
        let mut setup = Setup::new();
        let other = Digest::sha256(b"other");
        while setup.commands.try_send(DriverCommand::Damaged {
            digest: other,
            chunk: 0,
        }) {}
        let cursor = setup.open(0);
        cursor.advance(0, setup.at(3));
        drop(cursor);
        assert!(setup.received().is_empty());
        let command = timeout(SOON, setup.queue.recv()).await;
        assert!(matches!(
            command,
            Ok(Some(DriverCommand::ReadersMoved { lowest: None, .. }))
        ));
    }

    #[tokio::test]
    async fn wait_until_lowest_ends_when_lower_readers_are_closed() {
        let setup = Setup::new();
        let low = setup.open(0);
        let high = setup.open(5);
        timeout(SOON, low.wait_until_lowest())
            .await
            .expect("lowest");
        let wait = high.wait_until_lowest();
        tokio::pin!(wait);
        let too_early = timeout(Duration::from_millis(20), wait.as_mut()).await;
        assert!(too_early.is_err());
        drop(low);
        timeout(SOON, wait).await.expect("lowest now");
    }
}
