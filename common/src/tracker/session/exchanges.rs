//! Requests in flight, and when they time out.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use bincode::{Decode, Encode};

use super::io::{CancelReason, SessionOutput, TrackerRequest};
use super::leases::AskId;
use crate::time::Time;

/// A request in flight to one tracker; never reused within a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct ExchangeId(pub u64);

/// The purpose of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Announce,
    Lease(AskId),
    Leave,
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct TrackerExchange {
    pub(super) tracker: usize,
    pub(super) purpose: Purpose,
    deadline: Time,
}

/// All requests in flight.
#[derive(Debug, Default)]
pub(super) struct Exchanges {
    in_flight: BTreeMap<ExchangeId, TrackerExchange>,
    last: u64,
}

impl Exchanges {
    /// Sends a request.
    pub(super) fn post(
        &mut self,
        outputs: &mut VecDeque<SessionOutput>,
        deadline: Time,
        tracker: usize,
        purpose: Purpose,
        request: TrackerRequest,
    ) -> ExchangeId {
        self.last += 1;
        let exchange = ExchangeId(self.last);
        self.in_flight.insert(
            exchange,
            TrackerExchange {
                tracker,
                purpose,
                deadline,
            },
        );
        outputs.push_back(SessionOutput::Post {
            exchange,
            tracker,
            request,
        });
        exchange
    }

    /// Ends an exchange; `None` if it ended before.
    pub(super) fn end(&mut self, exchange: ExchangeId) -> Option<TrackerExchange> {
        self.in_flight.remove(&exchange)
    }

    /// Ends an exchange, if it has not ended.
    pub(super) fn cancel(
        &mut self,
        outputs: &mut VecDeque<SessionOutput>,
        exchange: ExchangeId,
        reason: CancelReason,
    ) {
        if let Some(TrackerExchange { tracker, .. }) = self.end(exchange) {
            outputs.push_back(SessionOutput::Cancel {
                exchange,
                tracker,
                reason,
            });
        }
    }

    /// Ends all exchanges that match, oldest first.
    pub(super) fn cancel_all(
        &mut self,
        outputs: &mut VecDeque<SessionOutput>,
        reason: CancelReason,
        matches: impl Fn(&TrackerExchange) -> bool,
    ) {
        for exchange in self.ids(matches) {
            self.cancel(outputs, exchange, reason);
        }
    }

    /// Ends an exchange that has timed out.
    pub(super) fn expire(
        &mut self,
        outputs: &mut VecDeque<SessionOutput>,
        exchange: ExchangeId,
    ) -> Option<TrackerExchange> {
        let expired = self.end(exchange)?;
        let reason = match expired.purpose {
            Purpose::Announce | Purpose::Leave => CancelReason::AnnounceTimeout,
            Purpose::Lease(_) => CancelReason::LeaseTimeout,
        };
        outputs.push_back(SessionOutput::Cancel {
            exchange,
            tracker: expired.tracker,
            reason,
        });
        Some(expired)
    }

    /// Whether a request with this purpose is in flight.
    pub(super) fn contains(&self, purpose: Purpose) -> bool {
        let mut exchanges = self.in_flight.values();
        exchanges.any(|exchange| exchange.purpose == purpose)
    }

    /// The exchanges that have timed out, oldest first.
    pub(super) fn expired(&self, now: Time) -> Vec<ExchangeId> {
        self.ids(|exchange| exchange.deadline <= now)
    }

    fn ids(&self, matches: impl Fn(&TrackerExchange) -> bool) -> Vec<ExchangeId> {
        self.in_flight
            .iter()
            .filter(|(_, exchange)| matches(exchange))
            .map(|(id, _)| *id)
            .collect()
    }

    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let exchanges = self.in_flight.values();
        exchanges.map(|exchange| exchange.deadline).min()
    }
}

/// For announces, and for updates of leases.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
