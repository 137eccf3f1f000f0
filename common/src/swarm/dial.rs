//! Dials: how many at once, and for how long one of them is waited for.
//!
//! ```text
//!              answered
//! Dialling ──────────────▶ Up          nobody waits for a dial that is late: its peer counts as out of reach, the tracker
//!    │ late, then failed               is told so, and a pull whose neighbours are all like that asks for leases at once
//!    ▼
//!   Down, dialled again later, and forgotten after some failures
//! ```
//!
//! A machine that died says nothing, so a dial to it ends with the driver's time-out, after
//! seconds. One that lives answers within a few round trips. A dial that is late goes on all the
//! same, and whoever answers late is a neighbour like any other. What must never happen: that a
//! pull stands still for as long as dials to the dead take.

use core::time::Duration;

use super::machine::PeerMachine;
use super::timers::Timer;
use super::{BlobSlot, Config, Nearness, Output, PeerFacts, PeerSlot};
use crate::time::Time;

/// How often the wait before the next dial doubles at most; after that many failures the peer is
/// forgotten.
const REDIALS: u32 = 4;
/// The answer to a dial may take so many times longer from another region.
const FAR: u32 = 4;

/// Whether there is a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// None; not to be dialled before a time.
    Down { not_before: Time, failures: u32 },
    /// A dial is under way, and is not waited for once it is late.
    Dialling {
        failures: u32,
        late_at: Time,
        is_late: bool,
    },
    /// It stands.
    Up,
}

impl Link {
    /// Whether a dial is under way that was not given up in thought.
    pub(super) fn may_answer(&self) -> bool {
        matches!(self, Self::Dialling { is_late: false, .. })
    }

    /// Whether the peer did not answer when it was dialled last.
    fn is_unanswered(&self) -> bool {
        match self {
            Self::Up => false,
            Self::Down { failures, .. } => *failures > 0,
            Self::Dialling {
                failures, is_late, ..
            } => *is_late || *failures > 0,
        }
    }
}

impl Config {
    /// How long a dial is waited for.
    pub(super) fn answer_to_dial(&self, nearness: Nearness) -> Duration {
        if nearness == Nearness::Elsewhere {
            self.dial * FAR
        } else {
            self.dial
        }
    }
}

impl PeerMachine {
    /// Peers that the tracker should count on no more for our sake: they do not answer, fell
    /// silent, or send corrupt bytes. Those to meet over `blob` come first.
    pub fn unreachable(
        &self,
        now: Time,
        blob: Option<BlobSlot>,
    ) -> impl Iterator<Item = PeerSlot> + '_ {
        let of_use = blob
            .and_then(|blob| self.blobs.get(blob))
            .map_or(&[][..], |blob| &blob.handout);
        let others = (0_u32..)
            .map(PeerSlot)
            .take(self.peers.len())
            .filter(|slot| !of_use.contains(slot));
        of_use.iter().copied().chain(others).filter(move |slot| {
            let peer = &self.peers[slot.0 as usize];
            peer.link.is_unanswered()
                || peer.silent_until.is_some_and(|_| peer.is_up())
                || (!peer.is_up() && peer.is_quarantined(now))
        })
    }

    /// Whether nobody exchanges the blob with us, and whoever was dialled over it did not answer.
    pub(super) fn is_abandoned(&self, slot: BlobSlot) -> bool {
        let Some(blob) = self.blobs.get(slot) else {
            return false;
        };
        let is_unanswered = |slot: &PeerSlot| self.peers[slot.0 as usize].link.is_unanswered();
        blob.who.is_empty() && blob.handout.iter().any(is_unanswered)
    }

    /// Gives up in thought the dials that nobody answered in time, which makes room for others.
    pub(super) fn note_late_dials(&mut self, now: Time) {
        let mut next = Time::MAX;
        for peer in &mut self.peers {
            if let Link::Dialling {
                late_at,
                is_late: is_late @ false,
                ..
            } = &mut peer.link
            {
                if *late_at <= now {
                    *is_late = true;
                    self.wants_leases = true;
                } else {
                    next = next.min(*late_at);
                }
            }
        }
        self.timers.by(Timer::Dial, next);
    }

    /// Dials a peer that the driver asked for, under the same limits as the peers of handouts.
    pub(super) fn on_dial(&mut self, now: Time, facts: &PeerFacts) {
        self.introduce(facts);
        let peer = &mut self.peers[facts.peer.0 as usize];
        let Link::Down {
            not_before,
            failures,
        } = peer.link
        else {
            return;
        };
        if not_before.max(peer.quarantined_until) > now
            || self.connections + self.dialling >= self.config.max_connections
            || self.dialling >= self.config.max_dialling
        {
            return;
        }
        let late_at = now + self.config.answer_to_dial(facts.nearness);
        peer.link = Link::Dialling {
            failures,
            late_at,
            is_late: false,
        };
        self.dialling += 1;
        self.timers.by(Timer::Dial, late_at);
        self.outputs.push_back(Output::Dial { peer: facts.peer });
    }

    pub(super) fn on_dial_failed(&mut self, now: Time, slot: PeerSlot) {
        let Some(peer) = self.peers.get_mut(slot.0 as usize) else {
            return;
        };
        let Link::Dialling { failures, .. } = peer.link else {
            return;
        };
        self.dialling -= 1;
        self.wants_leases = true;
        peer.link = Link::Down {
            not_before: now + self.config.redial * (1 << failures),
            failures: failures + 1,
        };
        if failures + 1 > REDIALS {
            self.forget_peer(slot);
        }
        self.meet(now);
    }

    /// A peer that cannot be reached leaves all handouts.
    fn forget_peer(&mut self, slot: PeerSlot) {
        for at in 0..self.wanted.len() {
            if let Some(blob) = self.blobs.get_mut(self.wanted[at]) {
                let before = blob.handout.len();
                blob.handout.retain(|peer| *peer != slot);
                self.peers[slot.0 as usize].handouts -= (before - blob.handout.len()) as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::fixture::{BLOB, facts, ms, outputs, wanting};
    use crate::swarm::{Input, Output};

    /// A machine that wants a blob of eight chunks, and has been told of so many peers.
    fn machine(peers: u32, nearness: Nearness) -> PeerMachine {
        let mut machine = wanting(8);
        let peers = (0..peers)
            .map(|peer| facts(PeerSlot(peer), nearness))
            .collect();
        machine.handle(ms(0), Input::Handout { blob: BLOB, peers });
        machine
    }

    fn dialled(outputs: &[Output]) -> usize {
        outputs
            .iter()
            .filter(|output| matches!(output, Output::Dial { .. }))
            .count()
    }

    fn starves(outputs: &[Output]) -> bool {
        outputs
            .iter()
            .any(|output| matches!(output, Output::LeaseTake { starving: true, .. }))
    }

    fn until(machine: &mut PeerMachine, now: Time) -> Vec<Output> {
        machine.handle_timeout(now);
        outputs(machine)
    }

    #[test]
    fn whose_neighbours_are_all_dead_asks_for_leases_before_the_dials_have_failed() {
        let mut machine = machine(2, Nearness::SameZone);
        let before = until(&mut machine, ms(249));
        assert_eq!((dialled(&before), starves(&before)), (2, false));
        assert_eq!(machine.unreachable(ms(249), Some(BLOB)).count(), 0);
        assert!(starves(&until(&mut machine, ms(250))));
        assert_eq!(
            machine.unreachable(ms(250), Some(BLOB)).count(),
            2,
            "and says why"
        );
        for chunk in 0..3 {
            let granted = Input::LeaseGranted {
                blob: BLOB,
                chunk,
                term: Duration::from_secs(1),
            };
            machine.handle(ms(251), granted);
            let goes_on = starves(&until(&mut machine, ms(251)));
            assert_eq!(
                goes_on,
                chunk < 2,
                "one lease for each slot, while others run"
            );
        }
    }

    #[test]
    fn the_answer_from_another_region_may_take_longer() {
        let mut machine = machine(2, Nearness::Elsewhere);
        assert!(!starves(&until(&mut machine, ms(250))));
        until(&mut machine, ms(1000));
        assert_eq!(machine.unreachable(ms(1000), None).count(), 2);
    }

    #[test]
    fn who_answers_late_is_a_neighbour_like_any_other() {
        let mut machine = machine(2, Nearness::SameZone);
        until(&mut machine, ms(250));
        let facts = facts(PeerSlot(1), Nearness::SameZone);
        machine.handle(
            ms(800),
            Input::Connected {
                facts,
                round_trip: Duration::from_millis(400),
            },
        );
        let unreachable: Vec<_> = machine.unreachable(ms(800), Some(BLOB)).collect();
        assert_eq!(unreachable, [PeerSlot(0)]);
        assert!(until(&mut machine, ms(800)).contains(&Output::Greet {
            peer: PeerSlot(1),
            blob: BLOB
        }));
        machine.handle(ms(3000), Input::DialFailed { peer: PeerSlot(0) });
        assert_eq!(machine.dialling, 0);
    }

    #[test]
    fn requested_dials_keep_the_limits() {
        let mut machine = machine(0, Nearness::SameZone);
        let most = machine.config.max_dialling;
        for peer in 0..most + 5 {
            // A second request for a peer that is being dialled does nothing.
            for _ in 0..2 {
                let facts = facts(PeerSlot(peer), Nearness::SameZone);
                machine.handle(ms(0), Input::Dial { facts });
            }
        }
        assert_eq!(dialled(&outputs(&mut machine)), most as usize);
        machine.handle(ms(1), Input::DialFailed { peer: PeerSlot(0) });
        let failed = facts(PeerSlot(0), Nearness::SameZone);
        machine.handle(ms(2), Input::Dial { facts: failed });
        assert_eq!(
            dialled(&outputs(&mut machine)),
            0,
            "redial time not reached"
        );
        let quarantined = facts(PeerSlot(most), Nearness::SameZone);
        machine.peers[most as usize].quarantined_until = ms(100);
        machine.handle(ms(3), Input::Dial { facts: quarantined });
        assert_eq!(dialled(&outputs(&mut machine)), 0, "quarantined");
        machine.handle(ms(100), Input::Dial { facts: quarantined });
        assert_eq!(dialled(&outputs(&mut machine)), 1);
    }

    #[test]
    fn dials_to_the_dead_are_bounded_and_leave_room_for_others() {
        let mut machine = machine(64, Nearness::SameZone);
        let most = machine.config.max_dialling as usize;
        let mut under_way = 0;
        for tick in 0..12 {
            let now = ms(tick * 250);
            under_way += dialled(&until(&mut machine, now));
            assert!(under_way <= most, "{under_way} at {now:?}");
        }
        assert_eq!(under_way, most);
        for peer in 0..10 {
            machine.handle(
                ms(3000),
                Input::DialFailed {
                    peer: PeerSlot(peer),
                },
            );
        }
        assert_eq!(
            dialled(&until(&mut machine, ms(3000))),
            10,
            "others have their turn"
        );
    }
}
