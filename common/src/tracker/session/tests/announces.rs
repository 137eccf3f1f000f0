//! When announces are sent, and when they name neighbours.

use super::*;

#[test]
fn changes_that_can_wait_are_announced_after_a_pause() {
    let mut shell = Shell::announced(1, Vec::new());
    let mut announced = Vec::new();
    let mut now = ms(10);
    while now < ms(3_000) {
        shell.handle(now, SessionInput::StateChanged(Urgency::Soon));
        for (exchange, ..) in announces(shell.outputs(now)) {
            announced.push(now);
            shell.accept(now, exchange);
        }
        now += Duration::from_millis(10);
    }
    assert_eq!(announced, [ms(250), ms(1_250), ms(2_250)]);
    shell.handle(now, SessionInput::StateChanged(Urgency::Now));
    shell.announce(now + Duration::from_millis(5));
}

#[test]
fn neighbours_are_named_only_by_peers_that_look_for_some() {
    let mut shell = Shell::announced(1, vec![wanted(1), wanted(2)]);
    shell.connected = vec![info("vm-1").id];
    let (exchange, nothing) = shell.announce(ms(5_000));
    assert!(nothing.changes.is_empty() && nothing.connected.is_empty());
    shell.accept(ms(5_000), exchange);
    let sought = NeighboursWanted {
        digest: blob(2),
        count: 3,
    };
    let enough = NeighboursWanted {
        digest: blob(1),
        count: 0,
    };
    shell.neighbours = vec![enough, sought];
    let (_, some) = shell.announce(ms(10_000));
    assert_eq!(some.neighbours, [sought]);
    assert_eq!(some.changes, [wanted(2)], "for trackers of older builds");
    assert_eq!(some.connected, shell.connected);
}
