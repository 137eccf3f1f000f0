//! The origin of a region: its state, its queue, and its requests under way.

use core::time::Duration;

use flotilla_common::failover::Outcome as CallOutcome;
use flotilla_common::time::Time;
use rand::Rng;

use crate::scenario::{Origins, micros};
use crate::service::{Condition, Latency, Server};
use crate::slab::Key;
use crate::storage_site::SimulatedStorage;

/// What an origin asks of clients beyond its limit, as the real one.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What an origin does with a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Admission {
    /// Serves it at this time.
    Serves(Time),
    /// Keeps it until it works again.
    Holds,
    /// Answers without the bytes.
    Answers(CallOutcome),
}

/// The origin of one region.
#[derive(Debug)]
pub(crate) struct SimulatedOrigin {
    pub(crate) condition: Condition,
    /// The share of the image's layers, the last ones, that the region does not have yet.
    pub(crate) lacking_share: f64,
    /// Replaces `latency` while the origin is slow.
    pub(crate) slow: Option<Latency>,
    /// Bytes of bodies that it has sent, but for those of transfers under way.
    pub(crate) sent_bytes: u64,
    /// Its storage, if a storage fails in the scenario.
    pub(crate) storage: Option<Box<SimulatedStorage>>,
    latency: Latency,
    server: Server,
    service_time: Duration,
    under_way: u32,
    max_requests: u32,
    /// Requests that it took while it hung.
    held: Vec<Key>,
}

impl SimulatedOrigin {
    pub(crate) fn new(settings: &Origins, storage: Option<Box<SimulatedStorage>>) -> Self {
        Self {
            condition: Condition::Up,
            lacking_share: 0.0,
            slow: None,
            sent_bytes: 0,
            storage,
            latency: Latency::new(settings.p50_ms, settings.p99_ms),
            server: Server::default(),
            service_time: micros(settings.service_us),
            under_way: 0,
            max_requests: settings.max_requests,
            held: Vec::new(),
        }
    }

    /// A request arrives: for the proofs, or for a layer; `layer` of `layers` is its number.
    pub(crate) fn admit(
        &mut self,
        now: Time,
        call: Key,
        layer: Option<(u32, u32)>,
        rng: &mut impl Rng,
    ) -> Admission {
        match self.condition {
            Condition::Up => {}
            Condition::Refuses => return Admission::Answers(refused()),
            Condition::Hangs => {
                self.held.push(call);
                return Admission::Holds;
            }
        }
        if self.under_way >= self.max_requests {
            let retry_after = RETRY_AFTER;
            return Admission::Answers(CallOutcome::Busy { retry_after });
        }
        if layer.is_some_and(|layer| self.lacks(layer)) {
            return Admission::Answers(CallOutcome::Missing);
        }
        self.under_way += 1;
        let latency = self.slow.unwrap_or(self.latency).draw(rng);
        Admission::Serves(self.server.serve(now, self.service_time) + latency)
    }

    fn lacks(&self, (layer, layers): (u32, u32)) -> bool {
        let present = f64::from(layers) * (1.0 - self.lacking_share);
        f64::from(layer) >= present.round()
    }

    /// Whether a request that was admitted is served now; otherwise it is held.
    pub(crate) fn serves(&mut self, call: Key) -> bool {
        let serves = self.condition == Condition::Up;
        if !serves {
            self.held.push(call);
        }
        serves
    }

    /// A request that was admitted has ended.
    pub(crate) fn end(&mut self) {
        self.under_way -= 1;
    }

    /// The requests that it took while it hung.
    pub(crate) fn take_held(&mut self) -> Vec<Key> {
        core::mem::take(&mut self.held)
    }

    /// How long a probe takes in the origin.
    pub(crate) fn probe_time(&self, rng: &mut impl Rng) -> Duration {
        self.slow.unwrap_or(self.latency).draw(rng)
    }
}

/// The outcome of a call that is answered 500.
pub(crate) fn internal_error() -> CallOutcome {
    CallOutcome::Failed {
        error: "500 Internal Server Error".to_owned(),
    }
}

/// The outcome of a call to a stopped process.
pub(crate) fn refused() -> CallOutcome {
    CallOutcome::Failed {
        error: "connection refused".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand_pcg::Pcg64Mcg;

    use super::*;
    use crate::slab::Slab;

    #[test]
    fn requests_beyond_the_limit_are_answered_429_with_a_pause() {
        let settings: Origins = toml::from_str("up = '1Gbit'\nmax_requests = 2\nservice_us = 1000")
            .expect("valid settings");
        let mut origin = SimulatedOrigin::new(&settings, None);
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let call = Slab::new().insert(());
        let mut admit =
            |origin: &mut SimulatedOrigin| origin.admit(Time::ZERO, call, Some((0, 1)), &mut rng);
        let at = |millis| Admission::Serves(Time::ZERO + Duration::from_millis(millis));
        assert_eq!(admit(&mut origin), at(2));
        assert_eq!(admit(&mut origin), at(3));
        let retry_after = RETRY_AFTER;
        let busy = Admission::Answers(CallOutcome::Busy { retry_after });
        assert_eq!(admit(&mut origin), busy);
        origin.end();
        assert_eq!(admit(&mut origin), at(4));
    }

    #[test]
    fn lagging_origin_lacks_the_last_layers() {
        let settings: Origins = toml::from_str("up = '1Gbit'").expect("valid settings");
        let mut origin = SimulatedOrigin::new(&settings, None);
        origin.lacking_share = 0.25;
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let call = Slab::new().insert(());
        let mut lacks = |layer| {
            origin.admit(Time::ZERO, call, Some((layer, 4)), &mut rng)
                == Admission::Answers(CallOutcome::Missing)
        };
        assert_eq!([0, 1, 2, 3].map(&mut lacks), [false, false, false, true]);
    }
}
