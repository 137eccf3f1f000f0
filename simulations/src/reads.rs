//! The runtime's requests for blobs. The shipped machine decides whether one is answered from the
//! store or by a pass-through.
//!
//! The runtime takes bytes at once. If no origin serves a pass-through, a real runtime turns to its
//! next host; here it repeats its request for the bytes that it lacks.

use core::time::Duration;

use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::failover::{ContentKey, Input as FailoverInput, Need};
use flotilla_common::opening::{BlobRead, BlobReadInput, BlobReadOutput, FallbackTimeouts};
use flotilla_common::swarm::{BlobSlot, Input};
use flotilla_common::time::Time;

use crate::event::Event;
use crate::fetch::FetchPurpose;
use crate::world::World;

/// After a request for a blob that no origin served, the runtime repeats it so much later.
const RUNTIME_RETRY: Duration = Duration::from_secs(1);

/// A peer's requests for blobs.
#[derive(Debug)]
pub(crate) struct BlobReads {
    /// For each blob, the request that is answered from the store.
    from_store: Vec<Option<BlobRead>>,
    /// The blobs that are passed through.
    passing: Vec<BlobSlot>,
    /// When bytes were received last, for any blob.
    pub(crate) last_received_at: Time,
    /// The time of the next `ReadWake`.
    wake_at: Time,
}

impl BlobReads {
    pub(crate) fn new(blobs: usize) -> Self {
        Self {
            from_store: (0..blobs).map(|_| None).collect(),
            passing: Vec::new(),
            last_received_at: Time::ZERO,
            wake_at: Time::MAX,
        }
    }

    /// Whether a blob is passed through to the runtime.
    pub(crate) fn is_passing(&self, blob: BlobSlot) -> bool {
        self.passing.contains(&blob)
    }

    fn poll_timeout(&self) -> Option<Time> {
        let reads = self.from_store.iter().flatten();
        reads.filter_map(BlobRead::poll_timeout).min()
    }
}

impl World<'_> {
    /// The runtime requests a blob, or what it lacks of it.
    pub(crate) fn request_blob(&mut self, peer: u32, blob: BlobSlot) {
        let now = self.now;
        let simulated = &mut self.peers[peer as usize];
        if !simulated.is_alive {
            return;
        }
        if simulated.frozen.is_some() {
            return self.repeat_request(peer, blob);
        }
        let is_stored = simulated.machine.held(blob).is_some();
        let geometry = &self.geometries[blob.0 as usize];
        let timeouts = FallbackTimeouts::default();
        let mut read = BlobRead::new(timeouts, is_stored.then_some(geometry));
        if let Some(BlobReadOutput::PassThrough(_)) = read.poll_output() {
            return self.pass_through(peer, blob);
        }
        read.handle(now, BlobReadInput::NextByte);
        simulated.reads.from_store[blob.0 as usize] = Some(read);
        let cursor = Some(simulated.cursors[blob.0 as usize]);
        self.feed(peer, Input::Reader { blob, cursor });
        self.advance_reader(peer, blob);
        self.schedule_read_wake(peer);
    }

    /// The reader takes all chunks that it can, and waits for the next one.
    pub(crate) fn advance_reader(&mut self, peer: u32, blob: BlobSlot) {
        let now = self.now;
        let simulated = &mut self.peers[peer as usize];
        let Some(read) = &mut simulated.reads.from_store[blob.0 as usize] else {
            return;
        };
        let verified: &ChunkMap = &simulated.verified[blob.0 as usize];
        let cursor = &mut simulated.cursors[blob.0 as usize];
        if !verified.contains(*cursor) {
            return;
        }
        let next = verified.first_missing(*cursor);
        *cursor = next.unwrap_or(verified.len());
        read.handle(now, BlobReadInput::Delivered);
        if next.is_some() {
            read.handle(now, BlobReadInput::NextByte);
        } else {
            simulated.reads.from_store[blob.0 as usize] = None;
        }
        self.feed(peer, Input::Reader { blob, cursor: next });
        if next.is_none() {
            self.on_blob_delivered(peer, blob);
        }
    }

    pub(crate) fn on_read_wake(&mut self, peer: u32) {
        let now = self.now;
        let simulated = &mut self.peers[peer as usize];
        if !simulated.is_alive || simulated.reads.wake_at != now {
            return;
        }
        simulated.reads.wake_at = Time::MAX;
        if simulated.frozen.is_some() {
            return;
        }
        for blob in (0..self.geometries.len() as u32).map(BlobSlot) {
            self.check_read(peer, blob);
        }
        self.schedule_read_wake(peer);
    }

    /// Checks whether a request that waits goes on waiting.
    fn check_read(&mut self, peer: u32, blob: BlobSlot) {
        let now = self.now;
        let simulated = &mut self.peers[peer as usize];
        let Some(read) = &mut simulated.reads.from_store[blob.0 as usize] else {
            return;
        };
        read.handle_timeout(now);
        let Some(BlobReadOutput::CheckSources) = read.poll_output() else {
            return;
        };
        let cursor = simulated.cursors[blob.0 as usize];
        let has_source = !simulated.machine.is_out_of_reach(now, blob, cursor);
        let sources = BlobReadInput::Sources {
            has_source,
            last_received: now.saturating_since(simulated.reads.last_received_at),
        };
        read.handle(now, sources);
        let falls_back = matches!(read.poll_output(), Some(BlobReadOutput::PassThrough(_)));
        if !has_source && !simulated.failover.is_usable() {
            simulated.failover.handle(now, FailoverInput::Demand);
            self.drain_failover(peer);
        }
        if falls_back {
            self.peers[peer as usize].reads.from_store[blob.0 as usize] = None;
            self.pass_through(peer, blob);
        }
    }

    pub(crate) fn schedule_read_wake(&mut self, peer: u32) {
        let reads = &mut self.peers[peer as usize].reads;
        if let Some(at) = reads.poll_timeout()
            && at < reads.wake_at
        {
            let at = at.max(self.now);
            reads.wake_at = at;
            self.queue.push(at, Event::ReadWake { peer });
        }
    }

    /// The rest of a blob comes from an origin.
    fn pass_through(&mut self, peer: u32, blob: BlobSlot) {
        let simulated = &mut self.peers[peer as usize];
        simulated.reads.passing.push(blob);
        let geometry = &self.geometries[blob.0 as usize];
        let from = geometry
            .chunk_range(simulated.cursors[blob.0 as usize])
            .start;
        let need = Need::Content(ContentKey(u64::from(blob.0)));
        self.fetch_from_origin(peer, FetchPurpose::PassThrough { from }, need, blob);
    }

    /// Bytes of a pass-through arrived: those of the blob up to the offset `to`.
    pub(crate) fn on_passing_through(&mut self, peer: u32, blob: BlobSlot, to: u64) {
        let first_chunk = self.geometries[0].chunk_len(0);
        let simulated = &mut self.peers[peer as usize];
        if blob == BlobSlot(0) && to >= first_chunk && simulated.first_byte_at.is_none() {
            simulated.first_byte_at = Some(self.now);
        }
    }

    /// The last byte of a pass-through arrived: the runtime has the blob.
    pub(crate) fn on_passed_through(&mut self, peer: u32, blob: BlobSlot) {
        self.note_delivery(peer);
        let bytes = self.geometries[blob.0 as usize].size();
        self.on_passing_through(peer, blob, bytes);
        if self.peers[peer as usize].is_alive {
            self.on_blob_delivered(peer, blob);
        }
    }

    /// No origin is left that passes the bytes of a blob from the offset `from` through. The
    /// runtime keeps the chunks before it.
    pub(crate) fn on_nothing_passed(&mut self, peer: u32, blob: BlobSlot, from: u64) {
        let simulated = &mut self.peers[peer as usize];
        simulated.cursors[blob.0 as usize] = self.geometries[blob.0 as usize].chunk_at(from);
        simulated.reads.passing.retain(|other| *other != blob);
        self.repeat_request(peer, blob);
    }

    fn repeat_request(&mut self, peer: u32, blob: BlobSlot) {
        let request = Event::BlobRequested { peer, blob };
        self.queue.push_after(self.now, RUNTIME_RETRY, request);
    }
}
