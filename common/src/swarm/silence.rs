//! Neighbours that stand still: their connection is there, and nothing comes of what they are
//! asked.
//!
//! ```text
//!            twice in a row a request had no answer in time
//! speaking ──────────────────────────────────────────────────▶ silent: what it holds is set aside, its uploads take no slot,
//!     ▲                                                          │      and the tracker is told that it is out of reach
//!     └──── it says anything, or some time has passed ───────────┘
//! ```
//!
//! A machine that is paused or swaps keeps its connections until they time out, which takes
//! seconds. Its chunks must not seem to be around for so long: whatever only it has is asked of
//! others and, if nobody has it, of the tracker. Nothing is forgotten meanwhile; a neighbour that
//! was only slow is asked again.

use core::time::Duration;

use super::PeerSlot;
use super::machine::PeerMachine;
use super::timers::Timer;
use crate::time::Time;

/// Requests in a row without an answer, after which a neighbour is taken for silent.
const UNANSWERED: u32 = 2;
/// After this time a silent neighbour is asked again, if its connection still stands.
const SILENCE: Duration = Duration::from_secs(10);

impl PeerMachine {
    /// A request had no answer in time.
    pub(super) fn unanswered(&mut self, now: Time, slot: PeerSlot) {
        let Some(peer) = self
            .peers
            .get_mut(slot.0 as usize)
            .filter(|peer| peer.is_up())
        else {
            return;
        };
        peer.unanswered += 1;
        if peer.unanswered < UNANSWERED || peer.silent_until.is_some() {
            return;
        }
        peer.silent_until = Some(now + SILENCE);
        self.timers.by(Timer::Stall, now + SILENCE);
        let blobs = peer.blobs.clone();
        for blob in blobs {
            if let Some(blob) = self.blobs.get_mut(blob) {
                blob.set_aside(slot);
            }
        }
        self.uploads.drop_peer(slot);
        self.wants_leases = true;
    }

    /// A neighbour said something.
    pub(super) fn spoke(&mut self, slot: PeerSlot) {
        let Some(peer) = self.peers.get_mut(slot.0 as usize) else {
            return;
        };
        peer.unanswered = 0;
        if peer.silent_until.take().is_none() {
            return;
        }
        let blobs = peer.blobs.clone();
        for blob in blobs {
            if let Some(blob) = self.blobs.get_mut(blob) {
                blob.take_back(slot);
            }
        }
        self.wants_fill = true;
        self.wants_leases = true;
    }

    /// Whoever was silent for long enough is asked again.
    pub(super) fn end_silences(&mut self, now: Time) {
        for slot in (0..self.peers.len() as u32).map(PeerSlot) {
            match self.peers[slot.0 as usize].silent_until {
                Some(until) if until <= now => {
                    self.spoke(slot);
                    // One more without an answer, and it is silent again.
                    self.peers[slot.0 as usize].unanswered = UNANSWERED - 1;
                }
                Some(until) => self.timers.by(Timer::Stall, until),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::fixture::{BLOB, PEER, meet, ms, outputs, wanting};
    use crate::swarm::{Have, Input, Output, Source};

    /// A machine that wants a blob of two chunks, which its one neighbour holds.
    fn machine() -> PeerMachine {
        let mut machine = wanting(2);
        meet(&mut machine, ms(0), PEER, Have::Complete);
        machine
    }

    fn pass(machine: &mut PeerMachine, from: u64, to: u64) -> Vec<Output> {
        let mut all = Vec::new();
        for now in (from..to).step_by(10) {
            machine.handle_timeout(ms(now));
            all.extend(outputs(machine));
        }
        all
    }

    fn asks_for_a_lease(outputs: &[Output]) -> bool {
        let starves = |output: &Output| match output {
            Output::LeaseTake {
                missing, starving, ..
            } => *starving && missing.count() == 2,
            _ => false,
        };
        outputs.iter().any(starves)
    }

    #[test]
    fn what_only_a_silent_neighbour_has_is_asked_of_the_tracker_long_before_its_connection_is_lost()
    {
        let mut machine = machine();
        let outputs = pass(&mut machine, 0, 2000);
        assert!(asks_for_a_lease(&outputs), "{outputs:?}");
        assert_eq!(
            machine
                .unreachable(ms(2000), Some(BLOB))
                .collect::<Vec<_>>(),
            [PEER]
        );
    }

    #[test]
    fn a_word_is_enough_to_be_asked_again() {
        let mut machine = machine();
        pass(&mut machine, 0, 2000);
        machine.handle(
            ms(2000),
            Input::Have {
                peer: PEER,
                blob: BLOB,
                have: Have::Complete,
            },
        );
        let outputs = pass(&mut machine, 2000, 2010);
        assert!(
            outputs
                .iter()
                .any(|output| matches!(output, Output::Fetch { .. })),
            "{outputs:?}"
        );
        assert_eq!(machine.unreachable(ms(2010), Some(BLOB)).count(), 0);
    }

    #[test]
    fn who_says_nothing_is_asked_again_after_a_while() {
        let mut machine = machine();
        pass(&mut machine, 0, 2000);
        let asks = |output: &&Output| {
            matches!(
                output,
                Output::Fetch {
                    source: Source::Peer(_),
                    ..
                }
            )
        };
        let fetches = |outputs: &[Output]| outputs.iter().filter(asks).count();
        let silent = pass(&mut machine, 2000, 9000);
        assert_eq!(fetches(&silent), 0);
        let later = pass(&mut machine, 9000, 16_000);
        assert_eq!(fetches(&later), 1, "once, and it is silent again");
    }

    #[test]
    fn one_that_answers_at_last_is_not_silent() {
        let mut machine = machine();
        let outputs = pass(&mut machine, 0, 400);
        let second = outputs.iter().rev().find_map(|output| match output {
            Output::Fetch { transfer, .. } => Some(*transfer),
            _ => None,
        });
        machine.handle(
            ms(400),
            Input::FirstByte {
                transfer: second.expect("asked again"),
            },
        );
        pass(&mut machine, 400, 2000);
        assert_eq!(machine.unreachable(ms(2000), Some(BLOB)).count(), 0);
    }
}
