//! Curves over simulated time: bytes by source and by zone, and stalls by reason.
//!
//! Time is cut into at most [`MAX_BUCKETS`] buckets of equal width. The end of a run is not known
//! before, so the width starts small, and doubles whenever the buckets are used up.

use core::time::Duration;
use std::collections::BTreeMap;

use flotilla_common::swarm::{StallReason, StallTimes};
use flotilla_common::time::Time;
use serde::{Deserialize, Serialize};

use crate::peer::{Location, SimulatedPeer};
use crate::slab::Key;

/// Maximum number of buckets; even, because two become one.
const MAX_BUCKETS: usize = 240;
/// Width of a bucket at the start.
const FIRST_WIDTH: Duration = Duration::from_millis(10);
/// Maximum number of rows of [`Timeline::zone_bytes`]; neighbouring zones share a row beyond it.
const MAX_ZONES: u32 = 64;

/// Where bytes come from, as seen by the peer that receives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ByteSource {
    /// A peer of the same zone.
    SameZone,
    /// A peer of another zone of the region.
    OtherZone,
    /// A peer of another region.
    OtherRegion,
    /// The origin of the own region.
    OwnOrigin,
    /// The origin of another region.
    OtherOrigin,
}

impl ByteSource {
    /// The source of bytes between two peers.
    pub(crate) fn of_peer(from: Location, to: Location) -> Self {
        if from.region != to.region {
            Self::OtherRegion
        } else if from.zone != to.zone {
            Self::OtherZone
        } else {
            Self::SameZone
        }
    }

    /// Every source.
    pub const ALL: [Self; 5] = [
        Self::SameZone,
        Self::OtherZone,
        Self::OtherRegion,
        Self::OwnOrigin,
        Self::OtherOrigin,
    ];

    /// Whether the bytes come from an origin.
    pub const fn is_origin(self) -> bool {
        matches!(self, Self::OwnOrigin | Self::OtherOrigin)
    }

    /// Whether the bytes cross from one region to another.
    pub const fn is_wide_area(self) -> bool {
        matches!(self, Self::OtherRegion | Self::OtherOrigin)
    }
}

/// Curves over time. Bucket `i` is the time from `i * bucket_s` to `(i + 1) * bucket_s`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// Width of a bucket, in seconds.
    pub bucket_s: f64,
    /// Bytes by source, of the sources that sent any.
    pub bytes: Vec<ByteSeries>,
    /// Bytes received in each zone. Zones are numbered across regions.
    pub zone_bytes: Vec<Vec<u64>>,
    /// Stalls by reason, of the reasons that occurred.
    pub stalls: Vec<StallSeries>,
}

/// The bytes of one source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ByteSeries {
    /// The source.
    pub source: ByteSource,
    /// Bytes, per bucket.
    pub bytes: Vec<u64>,
}

/// The stalls of one reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StallSeries {
    /// The reason.
    pub reason: StallReason,
    /// Seconds, summed over the peers, per bucket.
    pub seconds: Vec<f64>,
}

/// Records a [`Timeline`].
#[derive(Debug)]
pub(super) struct TimelineRecorder {
    width: Duration,
    /// Rows by [`ByteSource`], by zone and by [`StallReason`].
    bytes: Vec<Vec<f64>>,
    zone_bytes: Vec<Vec<f64>>,
    stalls: Vec<Vec<f64>>,
    zones: u32,
    /// When the bytes of the fetches under way began to flow.
    flow_starts: BTreeMap<u64, Time>,
    /// The stalls of each peer up to `sampled_at`.
    sampled: Vec<StallTimes>,
    sampled_at: Time,
}

impl TimelineRecorder {
    pub(super) fn new(zones: u32) -> Self {
        let rows = |count: usize| vec![vec![0.0; MAX_BUCKETS]; count];
        Self {
            width: FIRST_WIDTH,
            bytes: rows(ByteSource::ALL.len()),
            zone_bytes: rows(zones.clamp(1, MAX_ZONES) as usize),
            stalls: rows(StallReason::ALL.len()),
            zones: zones.max(1),
            flow_starts: BTreeMap::new(),
            sampled: Vec::new(),
            sampled_at: Time::ZERO,
        }
    }

    /// The width of a bucket at present.
    pub(super) fn bucket(&self) -> Duration {
        self.width
    }

    pub(super) fn start_flow(&mut self, now: Time, fetch: Key) {
        self.flow_starts.insert(fetch.to_bits(), now);
    }

    /// Bytes that have flowed evenly since the flow's start.
    pub(super) fn add_bytes(
        &mut self,
        now: Time,
        fetch: Key,
        source: ByteSource,
        zone: u32,
        bytes: u64,
    ) {
        let start = self.flow_starts.remove(&fetch.to_bits()).unwrap_or(now);
        self.make_room(now);
        let rows = self.zone_bytes.len() as u64;
        let zone = u64::from(zone) * rows / u64::from(self.zones);
        let width = self.width;
        for row in [
            &mut self.bytes[source as usize],
            &mut self.zone_bytes[zone as usize],
        ] {
            spread(row, width, start, now, bytes as f64);
        }
    }

    /// Adds the time for which each peer has stalled since the last sample.
    pub(super) fn sample_stalls(&mut self, now: Time, peers: &[SimulatedPeer]) {
        self.make_room(now);
        self.sampled.resize(peers.len(), StallTimes::default());
        let mut spent = StallTimes::default();
        for (peer, sampled) in peers.iter().zip(&mut self.sampled) {
            if peer.is_alive && peer.started_at <= now {
                let times = peer.machine.total_stall_times(now);
                spent += times - *sampled;
                *sampled = times;
            }
        }
        for (reason, row) in StallReason::ALL.into_iter().zip(&mut self.stalls) {
            let seconds = spent[reason].as_secs_f64();
            if seconds > 0.0 {
                spread(row, self.width, self.sampled_at, now, seconds);
            }
        }
        self.sampled_at = now;
    }

    /// Doubles the width of the buckets until `now` is in one of them.
    fn make_room(&mut self, now: Time) {
        while bucket_of(self.width, now) >= MAX_BUCKETS {
            self.width *= 2;
            for row in self.rows_mut() {
                for at in 0..MAX_BUCKETS / 2 {
                    row[at] = row[2 * at] + row[2 * at + 1];
                }
                row[MAX_BUCKETS / 2..].fill(0.0);
            }
        }
    }

    fn rows_mut(&mut self) -> impl Iterator<Item = &mut Vec<f64>> {
        let byte_rows = self.bytes.iter_mut().chain(&mut self.zone_bytes);
        byte_rows.chain(&mut self.stalls)
    }

    pub(super) fn finish(mut self, now: Time) -> Timeline {
        self.make_room(now);
        let buckets = bucket_of(self.width, now) + 1;
        let whole = |row: &Vec<f64>| -> Vec<u64> {
            let rounded = row[..buckets].iter().map(|value| value.round() as u64);
            rounded.collect()
        };
        let is_used = |row: &&Vec<f64>| row.iter().any(|value| *value > 0.0);
        let bytes = ByteSource::ALL.into_iter().zip(&self.bytes);
        let stalls = StallReason::ALL.into_iter().zip(&self.stalls);
        Timeline {
            bucket_s: self.width.as_secs_f64(),
            bytes: bytes
                .filter(|(_, row)| is_used(row))
                .map(|(source, row)| ByteSeries {
                    source,
                    bytes: whole(row),
                })
                .collect(),
            zone_bytes: self.zone_bytes.iter().map(whole).collect(),
            stalls: stalls
                .filter(|(_, row)| is_used(row))
                .map(|(reason, row)| StallSeries {
                    reason,
                    seconds: row[..buckets].to_vec(),
                })
                .collect(),
        }
    }
}

fn bucket_of(width: Duration, at: Time) -> usize {
    (u128::from(at.as_nanos()) / width.as_nanos()) as usize
}

/// Adds an amount to a row, evenly from one time to another; both must be within the row.
fn spread(row: &mut [f64], width: Duration, from: Time, to: Time, amount: f64) {
    let (first, last) = (bucket_of(width, from), bucket_of(width, to));
    let length = to.saturating_since(from).as_nanos() as f64;
    if first == last || length == 0.0 {
        row[last] += amount;
        return;
    }
    let width = width.as_nanos() as f64;
    let (from, to) = (from.as_nanos() as f64, to.as_nanos() as f64);
    for (at, value) in row.iter_mut().enumerate().take(last + 1).skip(first) {
        let start = (at as f64 * width).max(from);
        let end = ((at + 1) as f64 * width).min(to);
        *value += amount * (end - start).max(0.0) / length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    fn key(number: u64) -> Key {
        Key::from_bits(number)
    }

    #[test]
    fn bytes_are_spread_over_the_time_in_which_they_flowed() {
        let mut recorder = TimelineRecorder::new(2);
        recorder.start_flow(at(5), key(1));
        recorder.add_bytes(at(35), key(1), ByteSource::OwnOrigin, 1, 300);
        let timeline = recorder.finish(at(35));
        assert_eq!(timeline.bucket_s, 0.01);
        assert_eq!(timeline.bytes[0].source, ByteSource::OwnOrigin);
        assert_eq!(timeline.bytes[0].bytes, [50, 100, 100, 50]);
        assert_eq!(timeline.zone_bytes, [vec![0; 4], vec![50, 100, 100, 50]]);
    }

    #[test]
    fn buckets_double_so_that_a_long_run_keeps_its_sums() {
        let mut recorder = TimelineRecorder::new(1);
        for second in 0..100 {
            recorder.start_flow(at(second * 1000), key(second));
            recorder.add_bytes(
                at(second * 1000 + 500),
                key(second),
                ByteSource::SameZone,
                0,
                1000,
            );
        }
        let timeline = recorder.finish(at(100_000));
        assert_eq!(timeline.bucket_s, 0.64);
        assert!(timeline.bytes[0].bytes.len() <= MAX_BUCKETS);
        let sum: u64 = timeline.bytes[0].bytes.iter().sum();
        assert!(sum.abs_diff(100_000) < 100, "{sum}");
    }

    #[test]
    fn many_zones_share_rows() {
        let mut recorder = TimelineRecorder::new(1000);
        recorder.add_bytes(at(1), key(1), ByteSource::SameZone, 999, 7);
        let timeline = recorder.finish(at(1));
        assert_eq!(timeline.zone_bytes.len(), 64);
        assert_eq!(timeline.zone_bytes[63], [7]);
    }
}
