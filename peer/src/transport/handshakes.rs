//! Bounds on handshakes. Each costs a signature and memory before the other side has shown a
//! certificate, and its first packet may carry a forged address.
//!
//! When many are open, a client must first prove that it receives packets at its address (QUIC
//! Retry, RFC 9000, section 8.1). When too many are open, the packets of further clients are
//! dropped: an honest one sends them again, and is served if there is room by then.

use std::sync::Arc;

use flotilla_runtime::log_limit::LogLimit;
use quinn::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Open handshakes from which on addresses are validated.
const VALIDATE_FROM: usize = 32;
/// The most open handshakes. A handshake takes a few milliseconds.
const MAX_OPEN: usize = 256;

/// The handshakes that are open.
#[derive(Debug, Clone)]
pub(super) struct Handshakes {
    permits: Arc<Semaphore>,
    overload: Arc<LogLimit>,
}

/// What to do with a new connection.
#[derive(Debug)]
enum Admission {
    Accept(OwnedSemaphorePermit),
    Validate,
    Drop,
}

impl Handshakes {
    pub(super) fn new() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(MAX_OPEN)),
            overload: Arc::new(LogLimit::once_a_minute()),
        }
    }

    /// Admits a new connection, whose handshake is open until the permit is dropped. `None` if it
    /// has been answered or dropped.
    pub(super) fn admit(&self, incoming: Incoming) -> Option<(Incoming, OwnedSemaphorePermit)> {
        match self.decide(incoming.remote_address_validated()) {
            Admission::Accept(permit) => Some((incoming, permit)),
            Admission::Validate => {
                // A connection that is not validated may be answered with a Retry.
                let _ = incoming.retry();
                None
            }
            Admission::Drop => {
                if let Some(suppressed) = self.overload.admit() {
                    tracing::warn!(
                        handshakes = MAX_OPEN,
                        suppressed,
                        "too many connections are being opened; dropping further ones"
                    );
                }
                incoming.ignore();
                None
            }
        }
    }

    fn decide(&self, is_validated: bool) -> Admission {
        let open = MAX_OPEN - self.permits.available_permits();
        if open >= VALIDATE_FROM && !is_validated {
            return Admission::Validate;
        }
        match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => Admission::Accept(permit),
            Err(_) => Admission::Drop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_validated_under_load_and_excess_is_dropped() {
        let handshakes = Handshakes::new();
        let mut open = Vec::new();
        let mut accept = |is_validated, count| {
            for _ in 0..count {
                match handshakes.decide(is_validated) {
                    Admission::Accept(permit) => open.push(permit),
                    refused => panic!("{refused:?}"),
                }
            }
        };
        accept(false, VALIDATE_FROM);
        assert!(matches!(handshakes.decide(false), Admission::Validate));
        accept(true, MAX_OPEN - VALIDATE_FROM);
        assert!(matches!(handshakes.decide(true), Admission::Drop));
        drop(open);
        assert!(matches!(handshakes.decide(false), Admission::Accept(_)));
    }
}
