//! The inputs and outputs of the machine.

use core::time::Duration;

use bincode::{Decode, Encode};

use crate::chunk::Geometry;
use crate::chunk_map::ChunkMap;
use crate::interner::Slot;
use crate::origin_region::OriginRegion;
use crate::time::Time;

/// A blob that the driver has interned: its index in the machine's table. Small numbers, reused
/// after [`Input::Forget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct BlobSlot(pub u32);

/// A peer that the driver has interned: its index in the machine's table. Small numbers; one may be
/// given to another peer once [`super::PeerMachine::is_idle`] says that nothing refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
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

/// One download of one chunk, numbered by the machine and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct TransferId(pub u64);

/// One neighbour's request for a chunk, numbered by the driver and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct UploadId(pub u64);

/// The source of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ChunkSource {
    /// A connected neighbour.
    Peer(PeerSlot),
    /// The origins: the driver asks its [`Failover`](crate::failover::Failover) which of them.
    Origin,
}

/// How far away a peer is, in order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum Nearness {
    /// In the own zone: traffic is cheap.
    SameZone,
    /// In another zone of the own region.
    SameRegion,
    /// In another region.
    Elsewhere,
}

/// The facts about a peer that the driver passes with its first mention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PeerFacts {
    /// The peer's slot.
    pub peer: PeerSlot,
    /// How far away it is.
    pub nearness: Nearness,
}

/// At most eight newly held chunks of one blob, announced to neighbours at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode)]
pub struct HaveBatch {
    len: u8,
    chunks: [u32; HaveBatch::MAX],
}

impl HaveBatch {
    /// Maximum number of chunks in a batch.
    pub const MAX: usize = 8;

    /// The chunks, in the order in which they were added.
    pub fn chunks(&self) -> &[u32] {
        &self.chunks[..usize::from(self.len)]
    }

    /// Whether another chunk would not fit.
    pub fn is_full(&self) -> bool {
        usize::from(self.len) == Self::MAX
    }

    /// Whether the batch has no chunk.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a chunk; false if the batch is full, which is then unchanged.
    pub fn push(&mut self, chunk: u32) -> bool {
        let fits = !self.is_full();
        if fits {
            self.chunks[usize::from(self.len)] = chunk;
            self.len += 1;
        }
        fits
    }
}

impl<Context> Decode<Context> for HaveBatch {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        let (len, chunks) = <(u8, [u32; Self::MAX])>::decode(decoder)?;
        if usize::from(len) > Self::MAX {
            return Err(bincode::error::DecodeError::Other(
                "batch of more chunks than it has room for",
            ));
        }
        Ok(Self { len, chunks })
    }
}

bincode::impl_borrow_decode!(HaveBatch);

/// The chunks of a blob that a neighbour reports as held.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum HeldChunks {
    /// These chunks, besides those it named before.
    Chunks(HaveBatch),
    /// Exactly these chunks: the first chunk map, or a correction.
    Map(ChunkMap),
    /// All of them.
    Complete,
}

/// A chunk that a peer fetches from an origin without a lease: others leave it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Claim {
    /// The chunk.
    pub chunk: u32,
    /// How long the claim lasts, unless the chunk is seen or the claim is renewed before.
    pub term: Duration,
}

impl Claim {
    /// Maximum number of claims that are told or heard at once.
    pub const MAX_PER_MESSAGE: usize = 32;
}

/// Why a request for a chunk was refused, by us or by a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum RefusalReason {
    /// All upload slots are taken: to be asked again when it has a free one, or after a few chunk
    /// times.
    Busy,
    /// The chunk is not held (any longer), or may not be served to this peer.
    Gone,
}

/// Why a download ended without its chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum DownloadFailure {
    /// The connection or stream broke, or the origin answered with an error that may be gone at the
    /// next attempt.
    Link,
    /// The bytes do not match the chunk table.
    Corrupt,
    /// The driver's own timeout ran out.
    Timeout,
    /// The own store could not write the bytes; the source is not to blame.
    Store,
}

/// The events that the machine handles.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Input {
    /// Adds a blob with the chunks that the store holds. It is served to neighbours from now on,
    /// and fetched only once it is wanted. No input may name the slot before this one.
    AddBlob {
        /// A slot that is not in use.
        blob: BlobSlot,
        /// Its size and chunks; [`Geometry::whole`] for a blob that can be verified only as a
        /// whole.
        geometry: Geometry,
        /// The chunks held, verified or to be verified on their first read.
        held: ChunkMap,
    },
    /// Fetch all of the blob. Answered by [`Output::Complete`], at once if it is held already.
    Want {
        /// An added blob.
        blob: BlobSlot,
    },
    /// The blob is not wanted any longer: its downloads are cancelled, and held chunks are still
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
    /// A held chunk is lost, because it failed its verification in the store. It is fetched again
    /// if the blob is wanted.
    Lost {
        /// An added blob.
        blob: BlobSlot,
        /// The lost chunk.
        chunk: u32,
    },
    /// The blob left the store; its slot may be used again. The driver tells its neighbours, which
    /// it has asked [`super::PeerMachine::neighbours`] for before, and ends uploads that still run.
    Forget {
        /// An added blob.
        blob: BlobSlot,
    },

    /// Peers that hold or want the blob, from a tracker, the previous run or the configuration.
    Handout {
        /// An added blob.
        blob: BlobSlot,
        /// The peers, nearest first; never this peer itself.
        peers: Vec<PeerFacts>,
    },
    /// The driver needs a connection to a peer for something other than a blob, such as a manifest.
    /// The peer is dialed unless it is connected, being dialed, quarantined or waiting for its
    /// redial time, or a connection limit is reached.
    Dial {
        /// The peer; never this peer itself.
        facts: PeerFacts,
    },
    /// A connection was made by either side. Repeats the facts about the peer.
    Connected {
        /// The peer.
        facts: PeerFacts,
        /// The measured round trip, or zero.
        round_trip: Duration,
    },
    /// The connection is gone, and with it all its transfers, which the driver need not report one
    /// by one.
    Disconnected {
        /// The peer.
        peer: PeerSlot,
    },
    /// A dial ended without a connection.
    DialFailed {
        /// The peer.
        peer: PeerSlot,
    },
    /// A neighbour announced the rate of its uplink.
    RateHint {
        /// A connected peer.
        peer: PeerSlot,
        /// Bits per second.
        bits_per_second: u64,
    },
    /// A neighbour announced the chunks that it holds.
    Have {
        /// A connected peer.
        peer: PeerSlot,
        /// An added blob.
        blob: BlobSlot,
        /// The chunks.
        have: HeldChunks,
    },

    /// A neighbour neither holds nor wants chunks of a blob any longer.
    Forgot {
        /// A connected peer.
        peer: PeerSlot,
        /// An added blob.
        blob: BlobSlot,
    },

    /// A neighbour tells or hands on which chunks are being fetched from an origin without a lease.
    Claims {
        /// A connected peer.
        peer: PeerSlot,
        /// An added blob.
        blob: BlobSlot,
        /// The claims, at most [`Claim::MAX_PER_MESSAGE`].
        claims: Vec<Claim>,
    },

    /// A neighbour requests a chunk. Answered at once by [`Output::Serve`] or [`Output::Refuse`].
    UploadRequest {
        /// A connected peer.
        peer: PeerSlot,
        /// An added blob.
        blob: BlobSlot,
        /// The requested chunk.
        chunk: u32,
        /// The driver's number for the request.
        upload: UploadId,
    },
    /// Bytes of an upload were sent. To be reported at least twice per chunk, so that a slot is
    /// free shortly before the end.
    UploadProgress {
        /// A served upload.
        upload: UploadId,
        /// Bytes sent so far.
        sent: u64,
    },
    /// An upload has ended, completely or not; its slot is free.
    UploadEnded {
        /// A served upload.
        upload: UploadId,
    },

    /// The source has begun to send.
    FirstByte {
        /// The transfer of an [`Output::Fetch`].
        transfer: TransferId,
    },
    /// An origin has begun to send, before [`Input::FirstByte`]; and another one, if the first
    /// breaks off.
    OriginAnswered {
        /// The transfer of an [`Output::Fetch`].
        transfer: TransferId,
        /// The region of the origin.
        region: OriginRegion,
    },
    /// Bytes of a download arrived. To be reported at least twice a second while it moves.
    Progress {
        /// The transfer of an [`Output::Fetch`].
        transfer: TransferId,
        /// Bytes received so far.
        received: u64,
    },
    /// The chunk is verified and written.
    Received {
        /// The transfer of an [`Output::Fetch`].
        transfer: TransferId,
    },
    /// A neighbour that refused a request as busy has a free upload slot.
    SlotFree {
        /// A connected peer.
        peer: PeerSlot,
    },
    /// The neighbour refused the request.
    Refused {
        /// The transfer of an [`Output::Fetch`].
        transfer: TransferId,
        /// The reason.
        reason: RefusalReason,
    },
    /// The download ended without its chunk.
    Failed {
        /// The transfer of an [`Output::Fetch`].
        transfer: TransferId,
        /// The reason.
        why: DownloadFailure,
    },

    /// The tracker granted a lease: the chunk may be fetched from the origin.
    LeaseGranted {
        /// The blob of the request.
        blob: BlobSlot,
        /// The chunk.
        chunk: u32,
        /// How long the lease lasts unless it is renewed.
        term: Duration,
        /// The region whose origin is asked first; `None` if the driver decides.
        from: Option<OriginRegion>,
        /// Whether the driver has found that origin to be out. It is asked nevertheless, but the
        /// tracker is told at once that this peer waits.
        is_out: bool,
    },
    /// The tracker found that the origins from which the chunk of a lease is fetched serve no peer:
    /// those of another region are asked.
    LeaseMoved {
        /// The blob.
        blob: BlobSlot,
        /// The chunk.
        chunk: u32,
        /// The other region.
        to: OriginRegion,
    },
    /// A request came back without a lease; the machine asks again while chunks are missing. If the
    /// tracker names a holder to dial instead, an [`Input::Handout`] of that peer comes first.
    LeaseWait {
        /// The blob of the request.
        blob: BlobSlot,
        /// Delay before the next request; may be zero after a request that was parked.
        retry_after: Duration,
    },
    /// The tracker gave the lease to another peer, because a renewal came too late.
    LeaseLost {
        /// The blob.
        blob: BlobSlot,
        /// The chunk.
        chunk: u32,
    },
    /// No configured tracker answers; lease requests under way are void. Reported once at the start
    /// in a fleet without a tracker.
    TrackerUnreachable,
    /// A tracker answers (again). Reported once at the start, too.
    TrackerReachable,

    /// No origin is worth asking, as far as the driver's
    /// [`Failover`](crate::failover::Failover) knows. Fetches from origins that are under way go on.
    OriginUnusable,
    /// An origin is worth asking again. It is assumed at the start.
    OriginUsable,
}

/// The actions that the machine asks of the driver, to be carried out in order.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Output {
    /// Connect to a peer; answered by [`Input::Connected`] or [`Input::DialFailed`].
    Dial {
        /// The peer.
        peer: PeerSlot,
    },
    /// Close the connection to a peer. The machine has forgotten it; there is no answer.
    HangUp {
        /// The peer.
        peer: PeerSlot,
    },
    /// Send a neighbour the map of the chunks held ([`super::PeerMachine::held`]), even an empty
    /// one, which means that the blob is wanted.
    SendChunkMap {
        /// A connected peer.
        peer: PeerSlot,
        /// The blob.
        blob: BlobSlot,
    },
    /// Tell the neighbours of [`super::PeerMachine::have_recipients`] about newly held chunks.
    Have {
        /// The blob.
        blob: BlobSlot,
        /// The chunks.
        batch: HaveBatch,
    },

    /// Tell the neighbours of [`super::PeerMachine::claim_recipients`] which chunks are being fetched
    /// from an origin without a lease.
    Claims {
        /// The blob.
        blob: BlobSlot,
        /// The claims, at most [`Claim::MAX_PER_MESSAGE`].
        claims: Vec<Claim>,
    },

    /// Tell a new neighbour which chunks are being fetched from an origin without a lease.
    TellClaims {
        /// A connected peer.
        peer: PeerSlot,
        /// The blob.
        blob: BlobSlot,
        /// The claims, at most [`Claim::MAX_PER_MESSAGE`].
        claims: Vec<Claim>,
    },

    /// Request a chunk from a source. Answered by [`Input::FirstByte`], [`Input::Progress`] and
    /// finally one of [`Input::Received`], [`Input::Refused`] (peers only) and [`Input::Failed`].
    Fetch {
        /// The number of the transfer for its inputs.
        transfer: TransferId,
        /// The blob.
        blob: BlobSlot,
        /// The chunk.
        chunk: u32,
        /// The source.
        source: ChunkSource,
        /// If the source is an origin: the region whose origin is asked first, if the tracker has
        /// named one.
        first: Option<OriginRegion>,
    },
    /// Stop a download. The machine has forgotten it; there is no answer.
    Cancel {
        /// The transfer.
        transfer: TransferId,
    },
    /// Serve the chunk of a request.
    Serve {
        /// The request.
        upload: UploadId,
    },
    /// Tell a neighbour whose request was refused that an upload slot is free.
    TellSlotFree {
        /// A connected peer.
        peer: PeerSlot,
    },
    /// Refuse a request.
    Refuse {
        /// The request.
        upload: UploadId,
        /// The reason.
        reason: RefusalReason,
    },

    /// Announce to the trackers now: a new want.
    Announce,
    /// Announce to the trackers soon rather than at the next interval: a blob is complete, or a
    /// wanted one has too few neighbours.
    AnnounceSoon,
    /// Ask the tracker for a lease on one chunk of `missing`; the tracker parks the request. A
    /// second request for the same blob replaces the first, whose answer is void.
    LeaseTake {
        /// The blob.
        blob: BlobSlot,
        /// The chunks that neither this peer nor any neighbour holds.
        missing: ChunkMap,
        /// Whether nothing of the blob has moved for the starving timeout.
        starving: bool,
    },
    /// Withdraw a parked request that is needed no longer. There is no answer.
    LeaseDrop {
        /// The blob.
        blob: BlobSlot,
    },
    /// Renew a lease: at once with 0 bytes, then while its download moves. There is no answer
    /// unless the lease is lost.
    LeaseRenew {
        /// The blob.
        blob: BlobSlot,
        /// The chunk.
        chunk: u32,
        /// Bytes of the chunk received so far.
        received: u64,
        /// The region of the origin that sends them, as far as the driver has said.
        from: Option<OriginRegion>,
    },
    /// Report that the download of a lease has made no progress since the last renewal, and waits
    /// for the origin. There is no answer unless the lease is lost.
    LeaseWaiting {
        /// The blob.
        blob: BlobSlot,
        /// The chunk.
        chunk: u32,
        /// The region of the origin whose answer has stopped; `None` if none has begun.
        from: Option<OriginRegion>,
    },
    /// Report that the chunk of a lease was received.
    LeaseDone {
        /// The blob.
        blob: BlobSlot,
        /// The chunk.
        chunk: u32,
        /// The region of the origin that sent it; `None` if it came from a neighbour.
        from: Option<OriginRegion>,
    },
    /// Return a lease whose chunk could not be fetched.
    LeaseFailed {
        /// The blob.
        blob: BlobSlot,
        /// The chunk.
        chunk: u32,
    },

    /// Every chunk of a wanted blob is held. Until [`Input::Unwant`] ends the want, a lost chunk is
    /// fetched again.
    Complete {
        /// The blob.
        blob: BlobSlot,
    },
    /// A neighbour sent bytes that failed their verification. Its connection is closed; refuse new
    /// ones before `until`.
    Quarantine {
        /// The peer.
        peer: PeerSlot,
        /// The end of the quarantine.
        until: Time,
    },
}
