//! Answers of broken or hostile trackers.

use core::time::Duration;

use super::*;

#[test]
fn tracker_that_asks_for_full_announces_without_end_gets_one_a_second() {
    let mut shell = Shell::new(1);
    let mut now = ms(0);
    let mut count = 0;
    while now < ms(10_000) {
        for (exchange, ..) in announces(shell.outputs(now)) {
            count += 1;
            let answer = AnnounceAnswer::Resync { epoch: 8 };
            shell.handle(now, SessionInput::AnnounceAnswered { exchange, answer });
        }
        now = shell.session.poll_timeout().expect("the next announce");
    }
    assert_eq!(count, 11);
}

#[test]
fn answers_are_kept_within_limits() {
    let mut shell = Shell::new(1);
    shell.blobs = vec![wanted(1)];
    let (exchange, _) = shell.announce(ms(0));
    let named = NamedPeer {
        index: 0,
        progress: 0,
    };
    let handout = Handout {
        digest: blob(1),
        peers: vec![named; 1000],
    };
    let answer = AnnounceAnswer::Accepted {
        epoch: EPOCH,
        next_ms: 0,
        lease_delay_ms: 0,
        peers: vec![info("vm-1")],
        handouts: vec![handout],
    };
    shell.handle(ms(0), SessionInput::AnnounceAnswered { exchange, answer });
    assert_eq!(shell.session.poll_timeout(), Some(ms(100)));
    shell.request_lease(ms(0), blob(1));
    let outputs = shell.outputs(ms(0));
    let named = outputs.iter().find_map(|output| match output {
        SessionOutput::Handouts(handouts) => Some(handouts[0].peers.len()),
        _ => None,
    });
    assert_eq!(named, Some(64));
    let mut posts = lease_posts(outputs);
    let (exchange, ..) = posts.remove(0);
    let granted = LeaseAnswer::Granted {
        chunk: 0,
        term_ms: 0,
        from: None,
    };
    shell.answer_lease(ms(1), exchange, granted);
    let granted = SessionOutput::LeaseGranted {
        digest: blob(1),
        chunk: 0,
        term: Duration::from_millis(100),
        from: None,
    };
    assert!(shell.outputs(ms(1)).contains(&granted));
}

#[test]
fn lease_requests_are_delayed_by_ten_seconds_at_most() {
    let mut shell = Shell::new(1);
    shell.blobs = vec![wanted(1)];
    shell.request_lease(ms(0), blob(1));
    let (exchange, _) = shell.announce(ms(0));
    let handout = Handout {
        digest: blob(1),
        peers: Vec::new(),
    };
    let answer = AnnounceAnswer::Accepted {
        epoch: EPOCH,
        next_ms: u32::MAX,
        lease_delay_ms: u32::MAX,
        peers: Vec::new(),
        handouts: vec![handout],
    };
    shell.handle(ms(0), SessionInput::AnnounceAnswered { exchange, answer });
    assert_eq!(lease_posts(shell.outputs(ms(10_000))).len(), 1);
}
