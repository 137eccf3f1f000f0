//! The counters of the machine.

/// Transfers that the machine has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransferCounters {
    /// Chunks received from neighbours.
    pub from_peers: u64,
    /// Chunks received from origins under a lease.
    pub from_origin_leased: u64,
    /// Chunks received from origins without a lease.
    pub from_origin_unleased: u64,
    /// Chunks served to neighbours.
    pub served: u64,
    /// Requests refused because all slots were taken.
    pub refused_busy: u64,
    /// Own requests that a neighbour refused.
    pub refused_by_others: u64,
    /// Downloads that failed or stalled.
    pub failures: u64,
    /// Chunks that failed their verification.
    pub corrupt: u64,
}
