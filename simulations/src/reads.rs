//! The runtime's requests for blobs. The shipped machine decides whether one is answered from the
//! store or by a pass-through.
//!
//! The runtime reads each blob from its start to its end, or lazily: some of its chunks one after
//! the other, each by a request of its own. It takes bytes at once. If no origin serves a
//! pass-through, a real runtime turns to its next host; here it repeats its request for the bytes
//! that it lacks.

use core::time::Duration;

use flotilla_common::failover::{ContentKey, Input as FailoverInput, Need};
use flotilla_common::opening::{
    BlobRead, BlobReadInput, BlobReadOutput, FallbackTimeouts, KnownBlob,
};
use flotilla_common::swarm::{BlobSlot, Input};
use flotilla_common::time::Time;

use crate::event::Event;
use crate::fetch::FetchPurpose;
use crate::images::BlobId;
use crate::peer_blobs::PeerBlobs;
use crate::scenario::millis;
use crate::world::World;

/// After a request that no origin served, the runtime repeats it so much later.
pub(crate) const RUNTIME_RETRY: Duration = Duration::from_secs(1);

/// The time of a peer's next `ReadWake`, and what its reads share.
#[derive(Debug)]
pub(crate) struct ReadTimes {
    /// When bytes were received last, for any blob.
    pub(crate) last_received_at: Time,
    wake_at: Time,
}

impl Default for ReadTimes {
    fn default() -> Self {
        Self {
            last_received_at: Time::ZERO,
            wake_at: Time::MAX,
        }
    }
}

/// The next deadline of a peer's reads from its store.
fn poll_timeout(blobs: &PeerBlobs) -> Option<Time> {
    let reads = blobs.iter().filter_map(|(_, blob)| blob.read.as_ref());
    reads.filter_map(BlobRead::poll_timeout).min()
}

/// A blob's content, as the failover machines know it.
pub(crate) fn content_of(blob: BlobId) -> Need {
    Need::Content(content_key(blob))
}

/// The number by which the failover machines know a blob's content.
pub(crate) fn content_key(blob: BlobId) -> ContentKey {
    ContentKey(blob.0.into())
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
        let id = simulated.blobs.at(blob).id;
        let is_expected = simulated.expects(&self.images, id);
        let requested = simulated.blobs.at_mut(blob);
        // A request that was due before the peer restarted may come on top of the new one.
        if requested.is_delivered || requested.is_passing || requested.read.is_some() {
            return;
        }
        let geometry = self.images.geometry(requested.id);
        let timeouts = FallbackTimeouts::default();
        let known = match (is_stored, is_expected) {
            (true, _) => KnownBlob::Stored(geometry),
            (false, true) => KnownBlob::Expected,
            (false, false) => KnownBlob::Unknown,
        };
        let mut read = BlobRead::new(now, timeouts, known);
        if let Some(BlobReadOutput::PassThrough(_)) = read.poll_output() {
            return self.pass_through(peer, blob);
        }
        let is_expecting = read.is_expecting();
        requested.read = Some(read);
        if is_expecting {
            self.schedule_read_wake(peer);
        } else {
            self.read_from_store(peer, blob);
        }
    }

    /// The runtime reads a blob that the store knows.
    fn read_from_store(&mut self, peer: u32, blob: BlobSlot) {
        let requested = self.peers[peer as usize].blobs.at_mut(blob);
        if let Some(read) = &mut requested.read {
            read.handle(self.now, BlobReadInput::NextByte);
        }
        let cursor = Some(requested.cursor);
        self.feed(peer, Input::Reader { blob, cursor });
        self.advance_reader(peer, blob);
        self.schedule_read_wake(peer);
    }

    /// The store knows a blob from now on: a request that waited for its proof is answered.
    pub(crate) fn on_proved(&mut self, peer: u32, id: BlobId) {
        let is_whole = self.images.geometry(id).is_whole();
        let blobs = &mut self.peers[peer as usize].blobs;
        if let Some(slot) = blobs.slot(id)
            && let Some(read) = &mut blobs.at_mut(slot).read
            && read.is_expecting()
        {
            read.handle(self.now, BlobReadInput::Proved { is_whole });
            self.read_from_store(peer, slot);
        }
    }

    /// An opening of an image has ended: requests for blobs that no other one expects go past the
    /// store.
    pub(crate) fn stop_expecting(&mut self, peer: u32, image: u32) {
        for place in 0..self.images.image(image).blobs.len() {
            let id = self.images.image(image).blobs[place];
            let simulated = &mut self.peers[peer as usize];
            if simulated.expects(&self.images, id) {
                continue;
            }
            if let Some(slot) = simulated.blobs.slot(id)
                && let Some(read) = &mut simulated.blobs.at_mut(slot).read
                && read.is_expecting()
            {
                read.handle(self.now, BlobReadInput::NotExpected);
                simulated.blobs.at_mut(slot).read = None;
                self.pass_through(peer, slot);
            }
        }
    }

    /// The reader takes all chunks that it can, and waits for the next one.
    pub(crate) fn advance_reader(&mut self, peer: u32, blob: BlobSlot) {
        let now = self.now;
        let reading = self.peers[peer as usize].blobs.at_mut(blob);
        let Some(read) = &mut reading.read else {
            return;
        };
        if !reading.verified.contains(reading.cursor) {
            return;
        }
        let is_lazy = self.images.blob(reading.id).is_read_lazily();
        let next = reading.verified.first_missing(reading.cursor);
        let next = next.filter(|_| !is_lazy);
        reading.cursor = next.unwrap_or(reading.verified.len());
        read.handle(now, BlobReadInput::Delivered);
        if next.is_some() {
            read.handle(now, BlobReadInput::NextByte);
        } else {
            reading.read = None;
        }
        self.feed(peer, Input::Reader { blob, cursor: next });
        if next.is_none() {
            self.finish_read(peer, blob);
        }
    }

    /// The runtime has the bytes of a read. After a pause it begins the next one, if there is one.
    fn finish_read(&mut self, peer: u32, blob: BlobSlot) {
        let read = self.peers[peer as usize].blobs.at_mut(blob);
        read.reads_done += 1;
        match self.images.blob(read.id).read_at(read.reads_done) {
            Some(chunk) => {
                (read.cursor, read.is_passing) = (chunk, false);
                let pause = millis(self.scenario.pulls.lazy_pause_ms);
                let request = Event::BlobRequested { peer, blob };
                self.queue.push_after(self.now, pause, request);
            }
            None => self.on_blob_delivered(peer, blob),
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
        let blobs = simulated.blobs.iter();
        let reading = blobs.filter(|(_, blob)| blob.read.is_some());
        let slots: Vec<BlobSlot> = reading.map(|(slot, _)| slot).collect();
        for slot in slots {
            self.check_read(peer, slot);
        }
        self.schedule_read_wake(peer);
    }

    /// Checks whether a request that waits goes on waiting.
    fn check_read(&mut self, peer: u32, blob: BlobSlot) {
        let now = self.now;
        let simulated = &mut self.peers[peer as usize];
        let reading = simulated.blobs.at_mut(blob);
        let Some(read) = &mut reading.read else {
            return;
        };
        read.handle_timeout(now);
        match read.poll_output() {
            Some(BlobReadOutput::CheckSources) => {}
            Some(BlobReadOutput::PassThrough(_)) => {
                reading.read = None;
                return self.pass_through(peer, blob);
            }
            None => return,
        }
        let cursor = reading.cursor;
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
            self.peers[peer as usize].blobs.at_mut(blob).read = None;
            self.pass_through(peer, blob);
        }
    }

    pub(crate) fn schedule_read_wake(&mut self, peer: u32) {
        let simulated = &mut self.peers[peer as usize];
        let reads = &mut simulated.reads;
        if let Some(at) = poll_timeout(&simulated.blobs)
            && at < reads.wake_at
        {
            let at = at.max(self.now);
            reads.wake_at = at;
            self.queue.push(at, Event::ReadWake { peer });
        }
    }

    /// The rest of a read comes from an origin.
    fn pass_through(&mut self, peer: u32, blob: BlobSlot) {
        let passing = self.peers[peer as usize].blobs.at_mut(blob);
        passing.is_passing = true;
        let geometry = self.images.geometry(passing.id);
        let chunk = geometry.chunk_range(passing.cursor);
        let is_lazy = self.images.blob(passing.id).is_read_lazily();
        let to = if is_lazy { chunk.end } else { geometry.size() };
        let from = chunk.start;
        let (purpose, id) = (FetchPurpose::PassThrough { from, to }, passing.id);
        self.fetch_from_origin(peer, purpose, content_of(id), id);
    }

    /// Bytes of a pass-through arrived: those of the blob up to the offset `to`.
    pub(crate) fn on_passing_through(&mut self, peer: u32, blob: BlobId, to: u64) {
        if to >= self.images.geometry(blob).chunk_len(0) {
            self.note_first_byte(peer, blob);
        }
    }

    /// The last byte of a pass-through arrived: the runtime has the blob.
    pub(crate) fn on_passed_through(&mut self, peer: u32, blob: BlobId) {
        self.note_delivery(peer);
        self.note_first_byte(peer, blob);
        let simulated = &self.peers[peer as usize];
        if simulated.is_alive
            && let Some(slot) = simulated.blobs.slot(blob)
        {
            self.finish_read(peer, slot);
        }
    }

    /// No origin is left that passes the bytes of a blob from the offset `from` through. The
    /// runtime keeps the chunks before it.
    pub(crate) fn on_nothing_passed(&mut self, peer: u32, blob: BlobId, from: u64) {
        let cursor = self.images.geometry(blob).chunk_at(from);
        let blobs = &mut self.peers[peer as usize].blobs;
        if let Some(slot) = blobs.slot(blob) {
            let passing = blobs.at_mut(slot);
            (passing.cursor, passing.is_passing) = (cursor, false);
            self.repeat_request(peer, slot);
        }
    }

    fn repeat_request(&mut self, peer: u32, blob: BlobSlot) {
        let request = Event::BlobRequested { peer, blob };
        self.queue.push_after(self.now, RUNTIME_RETRY, request);
    }
}
