//! What goes into the machine and what comes out of it.

use core::time::Duration;

use crate::chunk::Geometry;
use crate::interner::Slot;
use crate::map::ChunkMap;
use crate::time::Time;

/// A blob that the driver has interned: its index in the machine's table. Small numbers, reused
/// after [`Input::Forget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobSlot(pub u32);

/// A peer that the driver has interned: its index in the machine's table. Small numbers; one may be
/// given to another peer once [`super::PeerMachine::is_idle`] says that nothing refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerSlot(pub u32);

impl Slot for BlobSlot {
    fn at(index: u32) -> Self {
        Self(index)
    }

    fn index(self) -> u32 {
        self.0
    }
}

impl Slot for PeerSlot {
    fn at(index: u32) -> Self {
        Self(index)
    }

    fn index(self) -> u32 {
        self.0
    }
}

/// An origin, by its place in the configured order: 0 is the own region's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OriginSlot(pub u32);

/// One download of one chunk, numbered by the machine and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId(pub u64);

/// One neighbour's request for a chunk, numbered by the driver and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId(pub u64);

/// Where a chunk comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A connected neighbour.
    Peer(PeerSlot),
    /// An origin.
    Origin(OriginSlot),
}

/// How far away a peer is, in order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nearness {
    /// In the own zone: traffic is cheap.
    SameZone,
    /// In another zone of the own region.
    SameRegion,
    /// In another region.
    Elsewhere,
}

/// What the driver knows about a peer when it names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerFacts {
    /// The peer's slot.
    pub peer: PeerSlot,
    /// How far away it is.
    pub nearness: Nearness,
    /// A stable hash of the peer's id, the same on every machine: without a tracker it decides who
    /// asks the origin for which chunk.
    pub key: u64,
}

/// At most eight chunks of one blob, told to neighbours at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    len: u8,
    chunks: [u32; Batch::MAX],
}

impl Batch {
    /// Chunks that a batch may carry.
    pub const MAX: usize = 8;

    /// The chunks, in the order they were held.
    pub fn chunks(&self) -> &[u32] {
        &self.chunks[..usize::from(self.len)]
    }

    /// Whether another chunk would not fit.
    pub fn is_full(&self) -> bool {
        usize::from(self.len) == Self::MAX
    }

    /// Whether the batch says nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a chunk; false, and nothing happens, if the batch is full.
    pub fn push(&mut self, chunk: u32) -> bool {
        let fits = !self.is_full();
        if fits {
            self.chunks[usize::from(self.len)] = chunk;
            self.len += 1;
        }
        fits
    }
}

/// What a neighbour says it holds of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Have {
    /// These chunks, besides those it named before.
    Chunks(Batch),
    /// Exactly these chunks: a greeting, or a correction.
    Map(ChunkMap),
    /// All of them.
    Complete,
}

/// Why an upload is not served, or why a neighbour did not serve us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// All its slots are taken: leave it alone for half a chunk time.
    Busy,
    /// It does not hold the chunk (any more), or will not serve it to us.
    Gone,
}

/// Why a download ended without its chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection or stream broke, or the origin answered an error that another attempt may
    /// cure.
    Link,
    /// The bytes were not what the chunk table says: the source lies.
    Corrupt,
    /// The driver's own bound on time ran out.
    Timeout,
    /// Our own store could not take the bytes: nobody's fault out there.
    Store,
}

/// Everything that can happen to the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A blob is known, with what the store holds of it. It is served to others from now on, and
    /// fetched only once it is wanted. Before it, nothing else may mention the slot.
    AddBlob {
        /// Its slot; not in use.
        blob: BlobSlot,
        /// Its size and cut. [`Geometry::whole`] for what can be checked only as a whole.
        geometry: Geometry,
        /// The chunks held, verified or to be verified on their first read.
        held: ChunkMap,
    },
    /// Fetch all of the blob. Answered by [`Output::Complete`], at once if it is held already.
    Want {
        /// An added blob.
        blob: BlobSlot,
    },
    /// Nobody waits for the blob any more: downloads of it are cancelled, what is held is still
    /// served.
    Unwant {
        /// An added blob.
        blob: BlobSlot,
    },
    /// The readers of the blob wait for this chunk and those after it; `None` when there is no
    /// reader.
    Reader {
        /// A wanted blob.
        blob: BlobSlot,
        /// The lowest chunk that a reader waits for.
        cursor: Option<u32>,
    },
    /// Chunks thought to be held are not (a stored chunk failed its check): fetched again if the
    /// blob is wanted.
    Lost {
        /// An added blob.
        blob: BlobSlot,
        /// The chunk that is gone.
        chunk: u32,
    },
    /// The blob left the store; its slot may be used again. Its neighbours
    /// ([`super::PeerMachine::neighbours`], asked before) are to be told. Uploads of it that still
    /// run are the driver's to end.
    Forget {
        /// An added blob.
        blob: BlobSlot,
    },

    /// Peers that hold or want the blob, from a tracker, from the last run or from configuration.
    Handout {
        /// An added blob.
        blob: BlobSlot,
        /// The peers, nearest first; never this peer itself.
        peers: Vec<PeerFacts>,
    },
    /// The driver needs a connection to a peer for something other than a blob, such as a manifest.
    /// The peer is dialled unless it is connected, being dialled, quarantined or waiting for its
    /// redial time, or a connection limit is reached.
    Dial {
        /// The peer; never this peer itself.
        facts: PeerFacts,
    },
    /// A connection stands, whoever dialled. Says again what is known about the peer.
    Connected {
        /// Who it is.
        facts: PeerFacts,
        /// Round trip, as far as it is known.
        round_trip: Duration,
    },
    /// The connection is gone: all transfers on it have failed, and the driver need not say so one
    /// by one.
    Disconnected {
        /// Who it was.
        peer: PeerSlot,
    },
    /// A dial ended without a connection.
    DialFailed {
        /// Who was dialled.
        peer: PeerSlot,
    },
    /// A neighbour says how fast its uplink is, in bits per second.
    RateHint {
        /// A connected peer.
        peer: PeerSlot,
        /// Bits per second.
        bits_per_second: u64,
    },
    /// A neighbour says what it holds.
    Have {
        /// A connected peer.
        peer: PeerSlot,
        /// An added blob.
        blob: BlobSlot,
        /// What it holds.
        have: Have,
    },

    /// A neighbour holds and wants nothing of a blob any more.
    Forgot {
        /// A connected peer.
        peer: PeerSlot,
        /// An added blob.
        blob: BlobSlot,
    },

    /// A neighbour asks for a chunk. Answered at once by [`Output::Serve`] or [`Output::Refuse`].
    UploadRequest {
        /// A connected peer.
        peer: PeerSlot,
        /// An added blob.
        blob: BlobSlot,
        /// The chunk asked for.
        chunk: u32,
        /// The driver's number for it.
        upload: UploadId,
    },
    /// Bytes of an upload have left; said now and then, at least twice per chunk if it is worth a
    /// slot's reuse.
    UploadProgress {
        /// A served upload.
        upload: UploadId,
        /// Bytes sent so far.
        sent: u64,
    },
    /// An upload is over, well or not; its slot is free.
    UploadEnded {
        /// A served upload.
        upload: UploadId,
    },

    /// The source accepted: the answer has begun.
    FirstByte {
        /// A fetch of ours.
        transfer: TransferId,
    },
    /// Bytes of a download have come; said now and then, at least twice a second while it moves.
    Progress {
        /// A fetch of ours.
        transfer: TransferId,
        /// Bytes received so far.
        received: u64,
    },
    /// The chunk is here, verified and written.
    Received {
        /// A fetch of ours.
        transfer: TransferId,
    },
    /// The neighbour will not serve it.
    Refused {
        /// A fetch of ours.
        transfer: TransferId,
        /// Why.
        reason: Refusal,
    },
    /// The download ended without its chunk.
    Failed {
        /// A fetch of ours.
        transfer: TransferId,
        /// Why.
        why: Failure,
    },

    /// The tracker lets us fetch a chunk from the origin.
    LeaseGranted {
        /// The blob of our request.
        blob: BlobSlot,
        /// The chunk.
        chunk: u32,
        /// How long the lease lasts unless it is renewed.
        term: Duration,
    },
    /// A request came back without a lease: the machine asks again while it still lacks chunks.
    /// When the tracker names a holder to dial instead, that is an [`Input::Handout`] of that peer,
    /// and then this.
    LeaseWait {
        /// The blob of our request.
        blob: BlobSlot,
        /// Not before this long from now; may be zero after a request that was parked.
        retry_after: Duration,
    },
    /// The tracker says a lease is no longer ours (a renewal came too late).
    LeaseLost {
        /// The blob.
        blob: BlobSlot,
        /// The chunk.
        chunk: u32,
    },
    /// No configured tracker answers; lease requests under way are void. A fleet without a tracker
    /// says this once.
    TrackerUnreachable,
    /// A tracker answers (again). Said once at the start, too.
    TrackerReachable,

    /// An origin answered well outside of a fetch (a manifest, a seal): it is healthy.
    OriginUp {
        /// Which.
        origin: OriginSlot,
    },
    /// An origin failed outside of a fetch.
    OriginDown {
        /// Which.
        origin: OriginSlot,
    },
}

/// Everything that the machine wants done. Outputs are to be carried out in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Connect to a peer; answered by [`Input::Connected`] or [`Input::DialFailed`].
    Dial {
        /// Whom.
        peer: PeerSlot,
    },
    /// Close the connection to a peer; the machine has forgotten it already and needs no answer.
    HangUp {
        /// Whom.
        peer: PeerSlot,
    },
    /// Tell a neighbour what is held of a blob ([`super::PeerMachine::held`]), even if it is
    /// nothing: that says the blob is wanted.
    Greet {
        /// A connected peer.
        peer: PeerSlot,
        /// The blob.
        blob: BlobSlot,
    },
    /// Tell all neighbours that may care ([`super::PeerMachine::audience`]) about newly held
    /// chunks.
    Have {
        /// The blob.
        blob: BlobSlot,
        /// The chunks.
        batch: Batch,
    },

    /// Ask a source for a chunk. Answered by [`Input::FirstByte`], [`Input::Progress`] and at last
    /// one of [`Input::Received`], [`Input::Refused`] (peers only) and [`Input::Failed`].
    Fetch {
        /// The number to answer with.
        transfer: TransferId,
        /// The blob.
        blob: BlobSlot,
        /// The chunk.
        chunk: u32,
        /// From where.
        source: Source,
    },
    /// Stop a download; the machine has forgotten it, and no answer is needed.
    Cancel {
        /// The fetch.
        transfer: TransferId,
    },
    /// Send the chunk of a request.
    Serve {
        /// The request.
        upload: UploadId,
    },
    /// Refuse a request.
    Refuse {
        /// The request.
        upload: UploadId,
        /// Why.
        reason: Refusal,
    },

    /// Announce to the trackers now rather than at the next interval: a new want, a completed blob,
    /// or too few neighbours for a wanted blob.
    Announce,
    /// Ask the tracker for a lease on a chunk of `missing`; the tracker parks the request. A second
    /// request for the same blob takes the place of the first, whose answer is void.
    LeaseTake {
        /// The blob.
        blob: BlobSlot,
        /// Chunks that neither we nor any neighbour has.
        missing: ChunkMap,
        /// Whether nothing of the blob has moved for so long that something must be wrong.
        starving: bool,
    },
    /// Withdraw a parked request: it is needed no more. No answer.
    LeaseDrop {
        /// The blob.
        blob: BlobSlot,
    },
    /// A lease is taken up (at once, with 0 bytes), or its download moves: extend it. No answer
    /// unless it is lost.
    LeaseRenew {
        /// The blob.
        blob: BlobSlot,
        /// The chunk.
        chunk: u32,
        /// Bytes of it received so far.
        received: u64,
    },
    /// The chunk of a lease is here.
    LeaseDone {
        /// The blob.
        blob: BlobSlot,
        /// The chunk.
        chunk: u32,
    },
    /// The chunk of a lease will not come through us.
    LeaseFailed {
        /// The blob.
        blob: BlobSlot,
        /// The chunk.
        chunk: u32,
    },

    /// Every chunk of a wanted blob is held. Wants end by [`Input::Unwant`]; until then a lost
    /// chunk is fetched again.
    Complete {
        /// The blob.
        blob: BlobSlot,
    },
    /// A neighbour sent bytes that fail their check. It is hung up on and not used before `until`;
    /// refuse it at the door.
    Quarantine {
        /// Who.
        peer: PeerSlot,
        /// Until when.
        until: Time,
    },
}
