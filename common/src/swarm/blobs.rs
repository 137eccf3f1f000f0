//! The blobs that this peer knows, and which of them it wants.

use core::time::Duration;

use super::blob_exchange::BlobExchange;
use super::io::BlobSlot;
use super::per_blob::PerBlob;

/// All known blobs, and the wanted ones in the order in which they were wanted.
///
/// A blob is in the list of wanted blobs exactly while [`BlobExchange::is_wanted`].
#[derive(Debug, Default)]
pub(super) struct Blobs {
    exchanges: PerBlob<BlobExchange>,
    wanted: Vec<BlobSlot>,
}

impl Blobs {
    pub(super) fn get(&self, slot: BlobSlot) -> Option<&BlobExchange> {
        self.exchanges.get(slot)
    }

    pub(super) fn get_mut(&mut self, slot: BlobSlot) -> Option<&mut BlobExchange> {
        self.exchanges.get_mut(slot)
    }

    pub(super) fn add(&mut self, slot: BlobSlot, blob: BlobExchange) {
        self.exchanges.insert(slot, blob);
    }

    /// Removes a blob that is not wanted.
    pub(super) fn remove(&mut self, slot: BlobSlot) {
        self.exchanges.remove(slot);
    }

    /// The blobs that are wanted and not complete, in the order in which they were wanted.
    pub(super) fn wanted(&self) -> &[BlobSlot] {
        &self.wanted
    }

    /// Starts wanting a blob; false if it is unknown, wanted already, or was wanted and is
    /// complete.
    pub(super) fn want(&mut self, slot: BlobSlot) -> bool {
        let is_new = self.get_mut(slot).is_some_and(BlobExchange::start_wanting);
        if is_new {
            self.wanted.push(slot);
        }
        is_new
    }

    /// Wants a blob again that was complete and has lost a chunk; false if it was not complete.
    pub(super) fn want_again(&mut self, slot: BlobSlot) -> bool {
        let was_complete = self.get_mut(slot).is_some_and(BlobExchange::reopen);
        if was_complete {
            self.wanted.push(slot);
        }
        was_complete
    }

    /// Stops wanting a blob.
    pub(super) fn unwant(&mut self, slot: BlobSlot) {
        self.wanted.retain(|wanted| *wanted != slot);
        if let Some(blob) = self.get_mut(slot) {
            blob.stop_wanting();
        }
    }

    /// Ends the want of a blob whose chunks are all held; false if it is not wanted or lacks some.
    pub(super) fn complete(&mut self, slot: BlobSlot) -> bool {
        let is_complete = self.get_mut(slot).is_some_and(BlobExchange::finish);
        if is_complete {
            self.wanted.retain(|wanted| *wanted != slot);
        }
        is_complete
    }

    /// How long one chunk of the blob takes at the own rate; zero for an unknown blob.
    pub(super) fn chunk_time(&self, slot: BlobSlot) -> Duration {
        self.get(slot)
            .map_or(Duration::ZERO, BlobExchange::chunk_time)
    }
}
