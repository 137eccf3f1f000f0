//! Which region's origin a lease is fetched from: what the tracker thinks of the origins.
//!
//! The peers of a region have one list of regions whose origins they may ask, their own region
//! first. The tracker has an opinion of each of these, by what the holders of leases report, so
//! that one peer's experience spares the others the same wait.
//!
//! ```text
//!                three holders wait, none was served for 250 ms
//!        Fine ────────────────────────────────────────────────────▶ Out: one lease in a pause
//!         ▲                                                           │  of 1 s to 30 s tries it
//!         │ 8 s                                                       │ three leases served
//!         └──── Returning: 1/8, 1/4, 1/2 and all of the leases ◀──────┘
//!                         │    as from Fine                           ▲
//!                         └───────────────────────────────────────────┘
//! ```
//!
//! - Only a holder that still reports says that it waits. A lease that expires says nothing of the
//!   origin: its holder may be dead.
//! - A few peers that cannot reach an origin, or say so, do not change the opinion while it serves
//!   anybody in the region.
//! - A failed lease says nothing either: peers turn to the next origin on their own after an error.
//! - What a region lacks, its origin answers at once, and the peer asks the next one.
//!
//! Leases that wait when an origin is found to be out are moved to the next region as soon as their
//! holders report again, so that no chunk is granted twice for this reason.

use core::time::Duration;
use std::collections::BTreeMap;

use rand::RngExt as _;
use rand_pcg::Pcg64Mcg;

use super::slots::{PeerSlot, RegionSlot};
use crate::origin_region::OriginRegion;
use crate::time::Time;

/// Regions whose origins the tracker has an opinion of, for the peers of one region.
pub(super) const MAX_ORIGINS: u8 = 16;
/// An origin is out when so many holders wait for it...
const WAITING_PEERS: usize = 3;
/// ...each of which said so within this time...
const WAITING_WINDOW: Duration = Duration::from_millis(600);
/// ...and none received bytes from it for this long.
const SILENCE: Duration = Duration::from_millis(250);
/// The same for the origins of other regions: most holders have to connect to them first, which
/// takes several round trips.
const FAR_SILENCE: Duration = Duration::from_millis(1_500);
/// The first pause before a lease tries an origin that is out; pauses double.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// An origin that is out returns after so many leases that it served.
const SERVED_TRIALS: u32 = 3;
/// The shares of leases that a returning origin serves, in eighths, step by step.
const RETURN_EIGHTHS: [u8; 4] = [1, 2, 4, 8];
/// How long each step takes.
const RETURN_STEP: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Fine,
    Out {
        since: Time,
        /// When a lease may try it.
        try_at: Time,
        /// The pause after that.
        pause: Duration,
        /// Leases that it served since it is out.
        served: u32,
    },
    Returning {
        since: Time,
    },
}

/// The opinion of one region's origins.
#[derive(Debug)]
struct Opinion {
    standing: Standing,
    /// When a holder last received bytes.
    served_at: Time,
    /// Holders that wait, and when each said so last.
    waiting: Vec<(PeerSlot, Time)>,
}

impl Opinion {
    const NEW: Self = Self {
        standing: Standing::Fine,
        served_at: Time::ZERO,
        waiting: Vec::new(),
    };

    /// Whether leases are fetched there without a trial.
    fn is_usable(&self) -> bool {
        !matches!(self.standing, Standing::Out { .. })
    }

    /// Decides whether the next lease is fetched there.
    fn takes_lease(&mut self, now: Time, rng: &mut Pcg64Mcg) -> bool {
        match &mut self.standing {
            Standing::Fine => true,
            Standing::Returning { since } => {
                let step = now.saturating_since(*since).as_millis() / RETURN_STEP.as_millis();
                let eighths = RETURN_EIGHTHS.get(usize::try_from(step).unwrap_or(usize::MAX));
                match eighths {
                    Some(eighths) => rng.random_range(0..8) < *eighths,
                    None => {
                        self.standing = Standing::Fine;
                        true
                    }
                }
            }
            Standing::Out { try_at, pause, .. } => {
                let is_trial = *try_at <= now;
                if is_trial {
                    *pause = (*pause * 2).min(MAX_PAUSE);
                    *try_at = now + *pause;
                }
                is_trial
            }
        }
    }

    /// Whether the origin returns just now.
    fn on_served(&mut self, now: Time, asked_at: Time) -> bool {
        self.served_at = now;
        if let Standing::Out {
            since,
            try_at,
            pause,
            served,
        } = &mut self.standing
            && *since < asked_at
        {
            (*try_at, *pause) = (now, FIRST_PAUSE);
            *served += 1;
            if *served >= SERVED_TRIALS {
                self.standing = Standing::Returning { since: now };
                return true;
            }
        }
        false
    }

    /// Whether the origin is found to be out just now.
    fn on_waiting(&mut self, now: Time, peer: PeerSlot, silence: Duration) -> bool {
        self.waiting
            .retain(|(other, at)| *other != peer && now < *at + WAITING_WINDOW);
        if self.waiting.len() < WAITING_PEERS {
            self.waiting.push((peer, now));
        }
        let is_found_out = self.is_usable()
            && self.waiting.len() >= WAITING_PEERS
            && self.served_at + silence <= now;
        if is_found_out {
            self.standing = Standing::Out {
                since: now,
                try_at: now + FIRST_PAUSE,
                pause: FIRST_PAUSE,
                served: 0,
            };
        }
        is_found_out
    }
}

/// The opinions of the origins, for the peers of each region.
#[derive(Debug, Default)]
pub(super) struct OriginOpinions {
    by_region: BTreeMap<RegionSlot, Vec<Opinion>>,
    /// Peers of each region.
    peers: BTreeMap<RegionSlot, u32>,
}

impl OriginOpinions {
    /// A peer of a region joined.
    pub(super) fn peer_joined(&mut self, region: RegionSlot) {
        *self.peers.entry(region).or_default() += 1;
    }

    /// A peer of a region left. The last one takes its region's opinions with it, because the slot
    /// may be given to another region.
    pub(super) fn peer_left(&mut self, region: RegionSlot) {
        let left = self.peers.remove(&region).unwrap_or_default();
        if left > 1 {
            self.peers.insert(region, left - 1);
        } else {
            self.by_region.remove(&region);
        }
    }

    /// The origin from which a lease is fetched by a peer of `region` that may ask those of
    /// `origins` regions; `None` if the peer decides.
    pub(super) fn choose(
        &mut self,
        now: Time,
        region: RegionSlot,
        origins: u8,
        rng: &mut Pcg64Mcg,
    ) -> Option<OriginRegion> {
        if origins < 2 {
            return None;
        }
        let known = self.by_region.get_mut(&region);
        let known = known.map(Vec::as_mut_slice).unwrap_or_default();
        let chosen = (0..origins).find(|origin| {
            let opinion = known.get_mut(usize::from(*origin));
            opinion.is_none_or(|opinion| opinion.takes_lease(now, rng))
        });
        // If all are out, the one that served last is the best guess.
        let chosen = chosen.or_else(|| {
            let served_at = |origin: &u8| known.get(usize::from(*origin)).map(|it| it.served_at);
            (0..origins).rev().max_by_key(served_at)
        });
        chosen.map(OriginRegion)
    }

    /// Where a lease goes on whose holder waits for `origin`; `None` if it waits on.
    pub(super) fn elsewhere(
        &self,
        region: RegionSlot,
        origin: OriginRegion,
        origins: u8,
    ) -> Option<OriginRegion> {
        let known = self.by_region.get(&region)?;
        let is_usable = |origin: OriginRegion| {
            let opinion = known.get(usize::from(origin.0));
            opinion.is_none_or(Opinion::is_usable)
        };
        if is_usable(origin) {
            return None;
        }
        (0..origins).map(OriginRegion).find(|it| is_usable(*it))
    }

    /// Whether leases are fetched from the origin in the peers' own region.
    pub(super) fn is_own_usable(&self, region: RegionSlot) -> bool {
        let own = self.by_region.get(&region).and_then(|known| known.first());
        own.is_none_or(Opinion::is_usable)
    }

    /// A holder received bytes of a chunk for which it asked at `asked_at`. Whether an origin that
    /// was out returns just now.
    pub(super) fn on_served(
        &mut self,
        now: Time,
        region: RegionSlot,
        origin: OriginRegion,
        asked_at: Time,
    ) -> bool {
        self.opinion(region, origin)
            .is_some_and(|opinion| opinion.on_served(now, asked_at))
    }

    /// A holder waits, and received nothing since `since`. Whether the origin is found to be out
    /// just now.
    pub(super) fn on_waiting(
        &mut self,
        now: Time,
        region: RegionSlot,
        origin: OriginRegion,
        (peer, since): (PeerSlot, Time),
    ) -> bool {
        let silence = if origin == OriginRegion::OWN {
            SILENCE
        } else {
            FAR_SILENCE
        };
        let is_late = origin == OriginRegion::OWN || since + silence <= now;
        let opinion = self.opinion(region, origin).filter(|_| is_late);
        opinion.is_some_and(|opinion| opinion.on_waiting(now, peer, silence))
    }

    /// The number of regions' origins that are out, counted for the peers of each region.
    pub(super) fn out_count(&self) -> usize {
        let opinions = self.by_region.values().flatten();
        opinions.filter(|opinion| !opinion.is_usable()).count()
    }

    fn opinion(&mut self, region: RegionSlot, origin: OriginRegion) -> Option<&mut Opinion> {
        if origin.0 >= MAX_ORIGINS {
            return None;
        }
        let opinions = self.by_region.entry(region).or_default();
        let index = usize::from(origin.0);
        if opinions.len() <= index {
            opinions.resize_with(index + 1, || Opinion::NEW);
        }
        opinions.get_mut(index)
    }
}
