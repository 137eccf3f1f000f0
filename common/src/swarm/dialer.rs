//! The state of the connection to one peer, and how long a dial may take.
//!
//! ```text
//! Disconnected ──dial──▶ Dialing ──answered──▶ Connected
//!       ▲                   │ not answered in time: late, but the dial continues
//!       └──────failed───────┘
//! ```
//!
//! A machine that died sends nothing, so a dial to it ends only with the driver's timeout, after
//! seconds; a live one answers within a few round trips. A dial that is not answered in time is
//! *late*: the peer counts as unreachable, the tracker learns it, and a pull whose candidates are
//! all like that asks for leases at once. The dial itself continues, and a peer that answers late
//! is a neighbour like any other. So dials to dead peers never delay a pull by more than the dial
//! timeout.

use core::time::Duration;

use super::config::SwarmConfig;
use super::io::Nearness;
use crate::time::Time;

/// How often the delay before the next dial doubles; after this many failures the peer leaves all
/// lists of candidates.
const MAX_REDIALS: u32 = 4;
/// The dial timeout of a peer in another region, as a multiple.
const OTHER_REGION_FACTOR: u32 = 4;

/// The connection to one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionState {
    /// Not connected; not dialed before a time.
    Disconnected { redial_at: Time, failures: u32 },
    /// A dial is under way.
    Dialing {
        failures: u32,
        late_at: Time,
        is_late: bool,
    },
    /// Connected.
    Connected,
}

impl ConnectionState {
    /// Not connected and never dialed.
    pub(super) const NEW: Self = Self::Disconnected {
        redial_at: Time::ZERO,
        failures: 0,
    };

    /// A connection that ended at `now`.
    pub(super) fn closed(now: Time, config: &SwarmConfig) -> Self {
        Self::Disconnected {
            redial_at: now + config.redial_delay,
            failures: 0,
        }
    }

    /// A dial that begins after `failures` failed ones, and is late at `late_at`.
    pub(super) fn dial(failures: u32, late_at: Time) -> Self {
        Self::Dialing {
            failures,
            late_at,
            is_late: false,
        }
    }

    /// A dial that failed at `now`, the last of `failures` in a row.
    pub(super) fn dial_failed(now: Time, failures: u32, config: &SwarmConfig) -> Self {
        let doublings = failures.saturating_sub(1).min(MAX_REDIALS);
        Self::Disconnected {
            redial_at: now + config.redial_delay * (1 << doublings),
            failures,
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        *self == Self::Connected
    }

    pub(super) fn is_dialing(&self) -> bool {
        matches!(self, Self::Dialing { .. })
    }

    /// Whether a dial is under way that is not late.
    pub(super) fn is_dialing_in_time(&self) -> bool {
        matches!(self, Self::Dialing { is_late: false, .. })
    }

    /// Whether the peer did not answer the last dial, or not yet although it is late.
    pub(super) fn is_unanswered(&self) -> bool {
        match self {
            Self::Connected => false,
            Self::Disconnected { failures, .. } => *failures > 0,
            Self::Dialing {
                failures, is_late, ..
            } => *is_late || *failures > 0,
        }
    }

    /// Whether so many dials failed in a row that the peer is given up.
    pub(super) fn is_given_up(&self) -> bool {
        matches!(self, Self::Disconnected { failures, .. } if *failures > MAX_REDIALS)
    }

    /// Checks at `now` whether a dial is late.
    pub(super) fn check_dial(&mut self, now: Time) -> DialCheck {
        match self {
            Self::Dialing {
                late_at, is_late, ..
            } if !*is_late => {
                *is_late = *late_at <= now;
                if *is_late {
                    DialCheck::BecameLate
                } else {
                    DialCheck::LateAt(*late_at)
                }
            }
            _ => DialCheck::Nothing,
        }
    }
}

/// The result of [`ConnectionState::check_dial`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DialCheck {
    /// No dial is under way, or it was late before.
    Nothing,
    /// The dial is late from now on.
    BecameLate,
    /// The dial will be late at this time.
    LateAt(Time),
}

/// How long a dial may take before it is late.
pub(super) fn dial_timeout(nearness: Nearness, config: &SwarmConfig) -> Duration {
    if nearness == Nearness::Elsewhere {
        config.dial_timeout * OTHER_REGION_FACTOR
    } else {
        config.dial_timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redial_delay_doubles_up_to_a_bound() {
        let config = SwarmConfig::default();
        let delay = |failures| match ConnectionState::dial_failed(Time::ZERO, failures, &config) {
            ConnectionState::Disconnected { redial_at, .. } => {
                redial_at.saturating_since(Time::ZERO)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(delay(1), config.redial_delay);
        assert_eq!(delay(3), config.redial_delay * 4);
        assert_eq!(delay(5), config.redial_delay * 16);
        assert_eq!(delay(40), config.redial_delay * 16);
    }
}
