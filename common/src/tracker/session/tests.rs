//! The session on a virtual clock; each test plays the shell and the trackers.

mod announces;
mod groups;
mod lease_requests;
mod limits;

use core::time::Duration;

use super::*;
use crate::chunk_map::ChunkMap;
use crate::digest::Digest;
use crate::name::PeerId;
use crate::time::Time;
use crate::wire::tracker::{
    AnnounceAnswer, AnnounceRequest, BlobState, Change, Handout, LeaseAnswer, LeaseAsk,
    LeaseRequest, NamedPeer, NeighboursWanted, PeerInfo,
};

const EPOCH: u64 = 7;
const INTERVAL_MS: u32 = 5_000;

fn ms(millis: u64) -> Time {
    Time::ZERO + Duration::from_millis(millis)
}

fn blob(number: u8) -> Digest {
    Digest::sha256(&[number])
}

fn info(name: &str) -> PeerInfo {
    PeerInfo {
        id: name.parse().expect("a label"),
        addr: "10.0.0.1:4001".parse().expect("an address"),
        region: "eu".parse().expect("a label"),
        zone: "eu-a".parse().expect("a label"),
    }
}

fn wanted(number: u8) -> Change {
    Change {
        digest: blob(number),
        state: BlobState::Wanted { progress: 0 },
    }
}

fn held(number: u8) -> Change {
    Change {
        digest: blob(number),
        state: BlobState::Held { progress: 15 },
    }
}

/// A session, and the state that its peer announces.
struct Shell {
    session: TrackerSession,
    blobs: Vec<Change>,
    neighbours: Vec<NeighboursWanted>,
    connected: Vec<PeerId>,
}

impl Shell {
    fn new(trackers: usize) -> Self {
        Self::with_regions(&vec![None; trackers])
    }

    /// A session of a peer in the region `eu` with a tracker for each of `regions`.
    fn with_regions(regions: &[Option<&str>]) -> Self {
        let tracker = |(number, region): (usize, &Option<&str>)| TrackerUrl {
            region: region.map(|region| region.parse().expect("a label")),
            url: format!("http://tracker-{number}"),
        };
        let trackers = regions.iter().enumerate().map(tracker).collect();
        Self {
            session: TrackerSession::new(ms(0), info("me"), trackers),
            blobs: Vec::new(),
            neighbours: Vec::new(),
            connected: Vec::new(),
        }
    }

    /// Handles everything that is due and returns all outputs. Snapshots are answered.
    fn outputs(&mut self, now: Time) -> Vec<SessionOutput> {
        self.session.handle_timeout(now);
        let mut outputs = Vec::new();
        while let Some(output) = self.session.poll_output() {
            if let SessionOutput::NeedSnapshot { tracker } = output {
                let snapshot = PeerSnapshot {
                    blobs: self.blobs.clone(),
                    neighbours: self.neighbours.clone(),
                    connected: self.connected.clone(),
                    ..PeerSnapshot::default()
                };
                self.handle(now, SessionInput::Snapshot { tracker, snapshot });
            } else {
                outputs.push(output);
            }
        }
        outputs
    }

    fn handle(&mut self, now: Time, input: SessionInput) {
        self.session.handle(now, input);
    }

    /// The only announce at `now`.
    fn announce(&mut self, now: Time) -> (ExchangeId, AnnounceRequest) {
        let mut announces = announces(self.outputs(now));
        assert_eq!(announces.len(), 1, "one announce at {now:?}");
        let (exchange, _, request) = announces.remove(0);
        (exchange, request)
    }

    fn accept(&mut self, now: Time, exchange: ExchangeId) {
        let answer = AnnounceAnswer::Accepted {
            epoch: EPOCH,
            next_ms: INTERVAL_MS,
            lease_delay_ms: 0,
            peers: Vec::new(),
            handouts: Vec::new(),
        };
        self.handle(now, SessionInput::AnnounceAnswered { exchange, answer });
    }

    /// Announces `blobs` to every tracker at time 0.
    fn announced(trackers: usize, blobs: Vec<Change>) -> Self {
        let mut shell = Self::new(trackers);
        shell.blobs = blobs;
        for (exchange, ..) in announces(shell.outputs(ms(0))) {
            shell.accept(ms(0), exchange);
        }
        assert_eq!(shell.outputs(ms(0)), Vec::new());
        shell
    }

    fn request_lease(&mut self, now: Time, digest: Digest) {
        self.handle(
            now,
            SessionInput::RequestLease {
                digest,
                missing: ChunkMap::full(4),
                starving: false,
                unreachable: Vec::new(),
                origins: 2,
            },
        );
    }

    fn answer_lease(&mut self, now: Time, exchange: ExchangeId, answer: LeaseAnswer) {
        self.handle(now, SessionInput::LeaseAnswered { exchange, answer });
    }

    /// The only lease request or update at `now`, and the tracker that it goes to.
    fn lease_post(&mut self, now: Time) -> (ExchangeId, usize, LeaseRequest) {
        let mut posts = lease_posts(self.outputs(now));
        assert_eq!(posts.len(), 1, "one lease request at {now:?}");
        posts.remove(0)
    }
}

fn announces(outputs: Vec<SessionOutput>) -> Vec<(ExchangeId, usize, AnnounceRequest)> {
    let announce = |output| match output {
        SessionOutput::Post {
            exchange,
            tracker,
            request: TrackerRequest::Announce(request),
        } => Some((exchange, tracker, request)),
        _ => None,
    };
    outputs.into_iter().filter_map(announce).collect()
}

fn lease_posts(outputs: Vec<SessionOutput>) -> Vec<(ExchangeId, usize, LeaseRequest)> {
    let post = |output| match output {
        SessionOutput::Post {
            exchange,
            tracker,
            request: TrackerRequest::Lease(request),
        } => Some((exchange, tracker, request)),
        _ => None,
    };
    outputs.into_iter().filter_map(post).collect()
}

#[test]
fn first_announce_is_full_and_later_ones_carry_changes() {
    let mut shell = Shell::new(1);
    shell.blobs = vec![wanted(1), held(2)];
    let (exchange, first) = shell.announce(ms(0));
    assert_eq!((first.epoch, first.sequence, first.full), (0, 0, true));
    assert_eq!(first.changes, shell.blobs);
    shell.accept(ms(10), exchange);
    assert_eq!(shell.session.poll_timeout(), Some(ms(5_010)));

    shell.blobs = vec![wanted(1), held(3)];
    let (exchange, second) = shell.announce(ms(5_010));
    assert_eq!(
        (second.epoch, second.sequence, second.full),
        (EPOCH, 1, false)
    );
    let gone = Change {
        digest: blob(2),
        state: BlobState::Gone,
    };
    assert_eq!(second.changes, vec![held(3), gone]);
    shell.accept(ms(5_010), exchange);

    let (_, third) = shell.announce(ms(10_010));
    assert_eq!(third.sequence, 2);
    assert!(third.changes.is_empty());
}

#[test]
fn resync_makes_next_announce_full_with_new_epoch() {
    let mut shell = Shell::announced(1, vec![held(1)]);
    let (exchange, delta) = shell.announce(ms(5_000));
    assert!(!delta.full);
    let answer = AnnounceAnswer::Resync { epoch: 8 };
    shell.handle(
        ms(5_001),
        SessionInput::AnnounceAnswered { exchange, answer },
    );
    let (_, full) = shell.announce(ms(5_006));
    assert_eq!((full.epoch, full.sequence, full.full), (8, 0, true));
    assert_eq!(full.changes, vec![held(1)]);
}

#[test]
fn changes_within_five_milliseconds_go_into_one_announce() {
    let mut shell = Shell::announced(1, Vec::new());
    shell.handle(ms(100), SessionInput::StateChanged(Urgency::Now));
    shell.handle(ms(104), SessionInput::StateChanged(Urgency::Now));
    assert_eq!(shell.session.poll_timeout(), Some(ms(105)));
    let (exchange, _) = shell.announce(ms(105));
    shell.handle(ms(106), SessionInput::StateChanged(Urgency::Now));
    assert_eq!(
        announces(shell.outputs(ms(107))),
        Vec::new(),
        "one announce at a time"
    );
    shell.accept(ms(120), exchange);
    assert_eq!(shell.session.poll_timeout(), Some(ms(125)));
}

#[test]
fn failed_announce_is_retried_in_full_after_a_second() {
    let mut shell = Shell::announced(1, vec![held(1)]);
    let (exchange, _) = shell.announce(ms(5_000));
    shell.handle(ms(5_010), SessionInput::Failed { exchange });
    assert_eq!(
        shell.outputs(ms(5_010)),
        vec![SessionOutput::Unreachable],
        "it was the only tracker"
    );
    shell.handle(ms(5_020), SessionInput::StateChanged(Urgency::Now));
    assert_eq!(shell.outputs(ms(6_009)), Vec::new());
    let (exchange, full) = shell.announce(ms(6_010));
    assert_eq!((full.epoch, full.sequence, full.full), (0, 0, true));
    shell.accept(ms(6_020), exchange);
    assert_eq!(shell.outputs(ms(6_020)), vec![SessionOutput::Reachable]);
}

#[test]
fn unanswered_announce_silences_tracker_then_times_out() {
    let mut shell = Shell::new(1);
    let (exchange, _) = shell.announce(ms(0));
    assert_eq!(shell.outputs(ms(1_999)), Vec::new());
    assert_eq!(
        shell.outputs(ms(2_000)),
        vec![SessionOutput::Unreachable],
        "the last tracker gets twice the time"
    );
    assert_eq!(
        shell.outputs(ms(5_000)),
        vec![SessionOutput::Cancel {
            exchange,
            tracker: 0,
            reason: CancelReason::AnnounceTimeout
        }]
    );
    shell.accept(ms(5_100), exchange);
    assert_eq!(shell.outputs(ms(5_100)), Vec::new(), "the exchange is over");
    shell.announce(ms(6_000));
}

#[test]
fn late_answer_makes_tracker_reachable_again() {
    let mut shell = Shell::new(1);
    let (exchange, _) = shell.announce(ms(0));
    shell.outputs(ms(2_000));
    shell.accept(ms(2_500), exchange);
    assert_eq!(shell.outputs(ms(2_500)), vec![SessionOutput::Reachable]);
    assert!(!shell.session.is_unresponsive(0));
}

#[test]
fn each_blob_is_announced_to_two_trackers() {
    let mut shell = Shell::new(4);
    shell.blobs = (0..32).map(wanted).collect();
    let announces = announces(shell.outputs(ms(0)));
    assert_eq!(announces.len(), 4);
    for change in &shell.blobs {
        let announced = announces
            .iter()
            .filter(|(_, _, request)| request.changes.contains(change));
        assert_eq!(announced.count(), 2);
    }
}

#[test]
fn lease_request_waits_until_blob_is_announced() {
    let mut shell = Shell::new(1);
    shell.blobs = vec![wanted(1)];
    shell.request_lease(ms(0), blob(1));
    let (exchange, _) = shell.announce(ms(0));
    shell.accept(ms(10), exchange);
    let (_, _, request) = shell.lease_post(ms(10));
    let LeaseAsk::Take { number, .. } = request.ask else {
        panic!("{request:?}");
    };
    assert_eq!((number, request.first_unreachable), (1, false));
}

#[test]
fn lease_request_waits_two_seconds_for_the_announce() {
    let mut shell = Shell::announced(1, Vec::new());
    shell.request_lease(ms(100), blob(1));
    assert_eq!(lease_posts(shell.outputs(ms(2_099))), Vec::new());
    shell.lease_post(ms(2_100));
}

#[test]
fn granted_lease_is_reported() {
    let mut shell = Shell::announced(1, vec![wanted(1)]);
    shell.request_lease(ms(0), blob(1));
    let (exchange, ..) = shell.lease_post(ms(0));
    let granted = LeaseAnswer::Granted {
        chunk: 3,
        term_ms: 1_000,
        from: None,
    };
    shell.answer_lease(ms(20), exchange, granted.clone());
    let digest = blob(1);
    assert_eq!(
        shell.outputs(ms(20)),
        vec![SessionOutput::LeaseGranted {
            digest,
            chunk: 3,
            term: Duration::from_secs(1),
            from: None,
        }]
    );
    shell.answer_lease(ms(21), exchange, granted);
    assert_eq!(shell.outputs(ms(21)), Vec::new(), "an answer comes once");
}

#[test]
fn lease_granted_to_a_withdrawn_request_is_given_back_unless_it_may_be_needed() {
    for starving in [false, true] {
        let mut shell = Shell::announced(1, vec![wanted(1)]);
        let digest = blob(1);
        let request = SessionInput::RequestLease {
            digest,
            missing: ChunkMap::full(4),
            starving,
            unreachable: Vec::new(),
            origins: 2,
        };
        shell.handle(ms(0), request);
        let (exchange, ..) = shell.lease_post(ms(0));
        shell.handle(ms(5), SessionInput::WithdrawRequest { digest });
        assert_eq!(shell.outputs(ms(5)).len(), usize::from(starving));
        let granted = LeaseAnswer::Granted {
            chunk: 3,
            term_ms: 1_000,
            from: None,
        };
        shell.answer_lease(ms(6), exchange, granted);
        if starving {
            let (_, _, given_back) = shell.lease_post(ms(6));
            assert_eq!(given_back.ask, LeaseAsk::Failed { chunk: 3 });
        } else {
            let granted = SessionOutput::LeaseGranted {
                digest,
                chunk: 3,
                term: Duration::from_secs(1),
                from: None,
            };
            assert_eq!(shell.outputs(ms(6)), [granted]);
        }
    }
}

#[test]
fn newer_lease_request_replaces_older_one() {
    let mut shell = Shell::announced(1, vec![wanted(1)]);
    let digest = blob(1);
    shell.request_lease(ms(0), digest);
    let (older, ..) = shell.lease_post(ms(0));
    shell.request_lease(ms(100), digest);
    let (newer, ..) = shell.lease_post(ms(100));
    shell.answer_lease(ms(110), older, LeaseAnswer::Wait { retry_ms: 9_000 });
    assert_eq!(shell.outputs(ms(110)), Vec::new());
    shell.answer_lease(ms(120), newer, LeaseAnswer::Wait { retry_ms: 300 });
    assert_eq!(
        shell.outputs(ms(120)),
        vec![SessionOutput::LeaseWait {
            digest,
            retry_after: Duration::from_millis(300)
        }]
    );
}

#[test]
fn tracker_that_does_not_know_the_peer_gets_an_announce() {
    let mut shell = Shell::announced(1, vec![wanted(1)]);
    let digest = blob(1);
    shell.request_lease(ms(0), digest);
    let (exchange, ..) = shell.lease_post(ms(0));
    shell.answer_lease(ms(10), exchange, LeaseAnswer::Unknown);
    assert_eq!(
        shell.outputs(ms(10)),
        vec![SessionOutput::LeaseWait {
            digest,
            retry_after: Duration::ZERO
        }]
    );
    shell.announce(ms(15));
}

#[test]
fn late_renewal_reports_a_lost_lease() {
    let mut shell = Shell::announced(1, vec![wanted(1)]);
    let digest = blob(1);
    for (update, lost) in [
        (
            LeaseUpdate::Renew {
                chunk: 2,
                received: 9,
                from: None,
            },
            vec![SessionOutput::LeaseLost { digest, chunk: 2 }],
        ),
        (
            LeaseUpdate::Done {
                chunk: 2,
                from: None,
            },
            Vec::new(),
        ),
    ] {
        shell.handle(ms(0), SessionInput::UpdateLease { digest, update });
        let (exchange, ..) = shell.lease_post(ms(0));
        shell.answer_lease(ms(0), exchange, LeaseAnswer::NotHeld);
        assert_eq!(shell.outputs(ms(0)), lost);
    }
}

#[test]
fn failed_request_goes_to_the_second_tracker() {
    let mut shell = Shell::announced(2, vec![wanted(1)]);
    let digest = blob(1);
    shell.request_lease(ms(0), digest);
    let (exchange, first, _) = shell.lease_post(ms(0));
    shell.handle(ms(10), SessionInput::Failed { exchange });
    let (exchange, second, request) = shell.lease_post(ms(10));
    assert_ne!(first, second);
    assert!(request.first_unreachable);
    shell.handle(ms(20), SessionInput::Failed { exchange });
    assert_eq!(
        shell.outputs(ms(20)),
        vec![SessionOutput::LeaseWait {
            digest,
            retry_after: Duration::from_secs(1)
        }]
    );
}

#[test]
fn not_first_answer_moves_request_to_next_tracker() {
    let mut shell = Shell::announced(2, vec![wanted(1)]);
    shell.request_lease(ms(0), blob(1));
    let (exchange, first, _) = shell.lease_post(ms(0));
    shell.answer_lease(ms(10), exchange, LeaseAnswer::NotFirst);
    let (_, second, request) = shell.lease_post(ms(10));
    assert_ne!(first, second);
    assert!(!request.first_unreachable, "the first tracker answered");
}

#[test]
fn parked_request_moves_when_its_tracker_becomes_unresponsive() {
    let mut shell = Shell::announced(2, vec![wanted(1)]);
    shell.request_lease(ms(0), blob(1));
    let (parked, first, _) = shell.lease_post(ms(0));
    // Nothing came for three seconds: an announce must find out whether the tracker is alive.
    let announces = announces(shell.outputs(ms(3_000)));
    assert_eq!(announces, Vec::new());
    let announces = super::tests::announces(shell.outputs(ms(3_005)));
    assert_eq!(announces.len(), 1);
    assert_eq!(announces[0].1, first);
    let outputs = shell.outputs(ms(4_005));
    assert!(outputs.contains(&SessionOutput::Cancel {
        exchange: parked,
        tracker: first,
        reason: CancelReason::Unresponsive
    }));
    let posts = lease_posts(outputs);
    assert_eq!(posts.len(), 1);
    assert_ne!(posts[0].1, first);
    assert!(posts[0].2.first_unreachable);
}

#[test]
fn unresponsive_tracker_is_skipped() {
    let mut shell = Shell::announced(2, vec![wanted(1)]);
    shell.request_lease(ms(0), blob(1));
    let (_, first, _) = shell.lease_post(ms(0));
    let announces = announces(shell.outputs(ms(5_000)));
    for (exchange, tracker, _) in announces {
        if tracker == first {
            shell.handle(ms(5_001), SessionInput::Failed { exchange });
        } else {
            shell.accept(ms(5_001), exchange);
        }
    }
    shell.outputs(ms(5_001));
    shell.request_lease(ms(5_100), blob(1));
    let (_, tracker, request) = shell.lease_post(ms(5_100));
    assert_ne!(tracker, first);
    assert!(request.first_unreachable);
}

#[test]
fn without_trackers_a_lease_request_waits() {
    let mut shell = Shell::new(0);
    assert_eq!(shell.session.poll_timeout(), None);
    let digest = blob(1);
    shell.request_lease(ms(0), digest);
    assert_eq!(
        shell.outputs(ms(0)),
        vec![SessionOutput::LeaseWait {
            digest,
            retry_after: Duration::from_secs(1)
        }]
    );
}

#[test]
fn leaving_tells_every_tracker_and_sends_nothing_else() {
    let mut shell = Shell::announced(2, vec![wanted(1)]);
    shell.handle(ms(100), SessionInput::Leave);
    let announces = announces(shell.outputs(ms(100)));
    assert_eq!(announces.len(), 2);
    for (exchange, _, request) in announces {
        assert!(request.leaving && request.full && request.changes.is_empty());
        assert!(!shell.session.has_left());
        shell.accept(ms(110), exchange);
    }
    assert!(shell.session.has_left());
    shell.request_lease(ms(120), blob(1));
    shell.handle(ms(120), SessionInput::StateChanged(Urgency::Now));
    assert_eq!(shell.outputs(ms(6_000)), Vec::new());
    assert_eq!(shell.session.poll_timeout(), None);
}

#[test]
fn leaving_drops_requests_that_were_not_sent() {
    let mut shell = Shell::announced(1, Vec::new());
    shell.request_lease(ms(100), blob(1));
    shell.handle(ms(100), SessionInput::Leave);
    let outputs = shell.outputs(ms(100));
    assert_eq!(outputs.len(), 1, "{outputs:?}");
    assert!(announces(outputs)[0].2.leaving);
}

#[test]
fn leaving_does_not_wait_longer_than_a_second() {
    let mut shell = Shell::announced(1, Vec::new());
    shell.handle(ms(100), SessionInput::Leave);
    shell.outputs(ms(100));
    assert_eq!(shell.session.poll_timeout(), Some(ms(1_100)));
    shell.outputs(ms(1_100));
    assert!(shell.session.has_left());
}
