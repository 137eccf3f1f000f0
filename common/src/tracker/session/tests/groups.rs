//! Trackers of several regions.

use super::*;

const EU: Option<&str> = Some("eu");
const US: Option<&str> = Some("us");

impl Shell {
    /// The trackers that get an announce at `now`, each with its exchange.
    fn announced_to(&mut self, now: Time) -> Vec<(usize, ExchangeId, AnnounceRequest)> {
        let announces = announces(self.outputs(now)).into_iter();
        announces
            .map(|(exchange, tracker, request)| (tracker, exchange, request))
            .collect()
    }

    /// All announces at `now` are refused. Returns their trackers.
    fn refuse_announces(&mut self, now: Time) -> Vec<usize> {
        let announces = self.announced_to(now);
        for (_, exchange, _) in &announces {
            let exchange = *exchange;
            self.handle(now, SessionInput::Failed { exchange });
        }
        announces.iter().map(|(tracker, ..)| *tracker).collect()
    }

    /// A peer of two regions with a tracker each. The own one, number 1, is lost at 5 s, and the
    /// other one has accepted an announce of `blobs`.
    fn in_other_region(blobs: Vec<Change>) -> Self {
        let mut shell = Self::with_regions(&[US, None]);
        shell.blobs = blobs;
        let (exchange, _) = shell.announce(ms(0));
        shell.accept(ms(0), exchange);
        assert_eq!(shell.refuse_announces(ms(5_000)), [1]);
        let announces = shell.announced_to(ms(5_000));
        assert_eq!(announces.len(), 1);
        let (tracker, exchange, request) = &announces[0];
        assert_eq!((*tracker, request.full), (0, true));
        assert_eq!(request.changes, shell.blobs);
        shell.accept(ms(5_080), *exchange);
        assert_eq!(shell.outputs(ms(5_080)), Vec::new());
        shell
    }

    /// The own tracker of [`Shell::in_other_region`] accepts the announce that is due at `now`.
    fn return_home(&mut self, now: Time) {
        let announces = self.announced_to(now);
        let (_, exchange, _) = announces
            .iter()
            .find(|(tracker, ..)| *tracker == 1)
            .expect("an announce to the own tracker");
        self.accept(now, *exchange);
    }
}

#[test]
fn only_trackers_of_the_own_region_are_used_while_one_answers() {
    let mut shell = Shell::with_regions(&[US, None, Some("ap"), EU]);
    shell.blobs = vec![wanted(1)];
    let announces = shell.announced_to(ms(0));
    let trackers: Vec<usize> = announces.iter().map(|(tracker, ..)| *tracker).collect();
    assert_eq!(trackers, [1, 3], "with the own region or without one");
    for (_, exchange, request) in announces {
        assert_eq!(request.changes, shell.blobs);
        shell.accept(ms(0), exchange);
    }
    assert_eq!(shell.session.groups(), 3);
    assert_eq!(shell.session.region(1).expect("it exists").as_str(), "eu");
    assert_eq!(shell.session.region(4), None);
    // One of the two is lost.
    let announces = shell.announced_to(ms(5_000));
    let exchange = announces[0].1;
    shell.handle(ms(5_000), SessionInput::Failed { exchange });
    assert_eq!(shell.outputs(ms(5_000)), Vec::new());
    let used: Vec<usize> = (0..5).filter(|it| shell.session.is_used(*it)).collect();
    assert_eq!(used, [1, 3]);
}

#[test]
fn requests_move_to_the_other_region_when_the_own_tracker_is_lost() {
    let mut shell = Shell::with_regions(&[US, None]);
    shell.blobs = vec![wanted(1)];
    let (exchange, _) = shell.announce(ms(0));
    shell.accept(ms(0), exchange);
    shell.request_lease(ms(4_990), blob(1));
    let (parked, tracker, _) = shell.lease_post(ms(4_990));
    assert_eq!(tracker, 1);
    assert_eq!(shell.refuse_announces(ms(5_000)), [1]);
    let outputs = shell.outputs(ms(5_000));
    assert!(outputs.contains(&SessionOutput::Cancel {
        exchange: parked,
        tracker: 1,
        reason: CancelReason::Unresponsive
    }));
    assert!(
        !outputs.contains(&SessionOutput::Unreachable),
        "{outputs:?}"
    );
    assert_eq!(lease_posts(outputs.clone()), Vec::new(), "not announced");
    let (exchange, tracker, _) = announces(outputs).remove(0);
    assert_eq!(tracker, 0);
    shell.accept(ms(5_080), exchange);
    let (_, tracker, request) = shell.lease_post(ms(5_080));
    assert_eq!(tracker, 0);
    assert!(
        !request.first_unreachable,
        "the first tracker of that region is asked"
    );
}

#[test]
fn session_returns_when_a_tracker_of_the_own_region_answers() {
    let mut shell = Shell::in_other_region(vec![wanted(1)]);
    shell.request_lease(ms(5_100), blob(1));
    let (parked, tracker, _) = shell.lease_post(ms(5_100));
    assert_eq!(tracker, 0);
    shell.return_home(ms(6_000));
    let outputs = shell.outputs(ms(6_000));
    assert!(outputs.contains(&SessionOutput::Cancel {
        exchange: parked,
        tracker: 0,
        reason: CancelReason::GroupUnused
    }));
    assert!(outputs.contains(&SessionOutput::Reachable));
    let posts = lease_posts(outputs.clone());
    assert_eq!(posts.len(), 1, "the parked request moves");
    assert_eq!(posts[0].1, 1);
    let announces = announces(outputs);
    assert_eq!(announces.len(), 1);
    assert!(announces[0].1 == 0 && announces[0].2.leaving);
    // An answer to what was cancelled changes nothing.
    let granted = LeaseAnswer::Granted {
        chunk: 3,
        term_ms: 1_000,
        from: None,
    };
    shell.answer_lease(ms(6_001), parked, granted);
    assert_eq!(shell.outputs(ms(6_001)), Vec::new());
    // From now on only the own tracker gets announces.
    shell.handle(ms(6_100), SessionInput::StateChanged(Urgency::Now));
    let trackers: Vec<usize> = (shell.announced_to(ms(6_200)).iter())
        .map(|(tracker, ..)| *tracker)
        .collect();
    assert_eq!(trackers, [1]);
}

#[test]
fn withdrawn_requests_do_not_move_back() {
    let mut shell = Shell::in_other_region(vec![wanted(1)]);
    let digest = blob(1);
    shell.request_lease(ms(5_100), digest);
    let (_, tracker, _) = shell.lease_post(ms(5_100));
    assert_eq!(tracker, 0);
    shell.handle(ms(5_200), SessionInput::WithdrawRequest { digest });
    assert_eq!(lease_posts(shell.outputs(ms(5_200))), Vec::new());
    shell.return_home(ms(6_000));
    assert_eq!(lease_posts(shell.outputs(ms(6_000))), Vec::new());
}

#[test]
fn other_region_is_tried_again_at_the_next_loss() {
    let mut shell = Shell::with_regions(&[None, US]);
    assert_eq!(shell.refuse_announces(ms(0)), [0]);
    assert_eq!(shell.refuse_announces(ms(0)), [1]);
    assert_eq!(shell.outputs(ms(0)), vec![SessionOutput::Unreachable]);
    let announces = shell.announced_to(ms(1_000));
    let (tracker, exchange, _) = announces[0];
    assert_eq!((tracker, announces.len()), (0, 2), "both are tried again");
    shell.accept(ms(1_000), exchange);
    let outputs = shell.outputs(ms(1_000));
    assert!(outputs.contains(&SessionOutput::Reachable), "{outputs:?}");
    assert!(!shell.session.is_used(1) && !shell.session.is_unresponsive(1));
    // The other region did not answer, but that was a loss ago.
    assert_eq!(shell.refuse_announces(ms(6_000)), [0]);
    let announces = shell.announced_to(ms(6_000));
    assert_eq!(announces.len(), 1);
    let (tracker, exchange, request) = &announces[0];
    assert_eq!((*tracker, request.epoch, request.full), (1, 0, true));
    shell.accept(ms(6_080), *exchange);
    assert_eq!(shell.session.accepted_announces(1), 1);
}

#[test]
fn groups_are_used_in_the_order_of_the_list() {
    let mut shell = Shell::with_regions(&[US, Some("ap"), None, US]);
    assert_eq!(shell.refuse_announces(ms(0)), [2]);
    assert_eq!(shell.refuse_announces(ms(0)), [0, 3]);
    let announces = shell.announced_to(ms(0));
    assert_eq!(announces.len(), 1);
    assert_eq!(announces[0].0, 1);
    shell.accept(ms(150), announces[0].1);
    // A tracker of the second group returns: the third group is not used any more.
    let announces = shell.announced_to(ms(1_000));
    assert_eq!(
        (announces.iter().map(|(tracker, ..)| *tracker)).collect::<Vec<_>>(),
        [0, 2, 3]
    );
    shell.accept(ms(1_080), announces[0].1);
    assert!(shell.session.is_used(0) && !shell.session.is_used(1));
}

#[test]
fn request_does_not_leave_the_region_while_a_tracker_of_it_answers() {
    let mut shell = Shell::with_regions(&[None, US]);
    shell.blobs = vec![wanted(1)];
    let (exchange, _) = shell.announce(ms(0));
    shell.accept(ms(0), exchange);
    shell.request_lease(ms(10), blob(1));
    let (exchange, ..) = shell.lease_post(ms(10));
    shell.handle(ms(20), SessionInput::Failed { exchange });
    assert_eq!(
        shell.outputs(ms(20)),
        vec![SessionOutput::LeaseWait {
            digest: blob(1),
            retry_after: Duration::from_secs(1)
        }]
    );
}

#[test]
fn blob_is_announced_to_two_trackers_of_each_used_group() {
    let mut shell = Shell::with_regions(&[EU, EU, EU, US, US, US]);
    shell.blobs = (0..32).map(wanted).collect();
    let own = shell.announced_to(ms(0));
    for (_, exchange, _) in &own {
        let exchange = *exchange;
        shell.handle(ms(0), SessionInput::Failed { exchange });
    }
    let other = shell.announced_to(ms(0));
    for (announces, first) in [(own, 0), (other, 3)] {
        assert_eq!(announces.len(), 3);
        assert_eq!(announces[0].0, first);
        for change in &shell.blobs {
            let announced = announces
                .iter()
                .filter(|(_, _, request)| request.changes.contains(change));
            assert_eq!(announced.count(), 2);
        }
    }
}

#[test]
fn leaving_tells_only_trackers_that_are_used() {
    let mut shell = Shell::with_regions(&[None, US]);
    let (exchange, _) = shell.announce(ms(0));
    shell.accept(ms(0), exchange);
    shell.handle(ms(100), SessionInput::Leave);
    let (_, request) = shell.announce(ms(100));
    assert!(request.leaving);
}
