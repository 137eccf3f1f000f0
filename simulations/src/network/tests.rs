//! Tests of transfers between two ends, and through pipes and connections.

use proptest::prelude::*;

use super::*;

/// Nothing but the two ends.
const NOTHING: Middle = Middle::new(None, None);

fn run(network: &mut Network) -> Vec<(u64, u64)> {
    let mut done = Vec::new();
    while let Some((now, moved)) = network.pop() {
        if let Some(FlowEvent::Done { tag, .. }) = moved {
            done.push((tag, now.as_nanos() / 1_000_000));
        }
    }
    done
}

#[test]
fn transfers_share_an_uplink() {
    let mut network = Network::new();
    let hub = network.add_end(1000.0, 1000.0);
    let (a, b) = (
        network.add_end(1000.0, 1000.0),
        network.add_end(1000.0, 1000.0),
    );
    network.start(Time::ZERO, (hub, a), NOTHING, 1000, 1);
    network.start(Time::ZERO, (hub, b), NOTHING, 500, 2);
    // Both run at half the rate until the short one ends after a second.
    assert_eq!(run(&mut network), vec![(2, 1000), (1, 1500)]);
}

#[test]
fn slower_end_limits_a_transfer() {
    let mut network = Network::new();
    let fast = network.add_end(1e6, 1e6);
    let slow = network.add_end(100.0, 100.0);
    network.start(Time::ZERO, (fast, slow), NOTHING, 100, 1);
    network.start(Time::ZERO, (fast, slow), NOTHING, 100, 2);
    assert_eq!(run(&mut network), vec![(1, 2000), (2, 2000)]);
}

#[test]
fn aborted_transfer_frees_its_share() {
    let mut network = Network::new();
    let (a, b) = (
        network.add_end(1000.0, 1000.0),
        network.add_end(1000.0, 1000.0),
    );
    let first = network.start(Time::ZERO, (a, b), NOTHING, 1000, 1);
    network.start(Time::ZERO, (a, b), NOTHING, 1000, 2);
    let second = Time::from_nanos(1_000_000_000);
    while network.next_at().is_some_and(|at| at <= second) {
        network.pop();
    }
    assert_eq!(network.abort(second, first), Some(500));
    assert_eq!(network.abort(second, first), None);
    assert_eq!(run(&mut network), vec![(2, 1500)]);
}

#[test]
fn transfers_share_a_pipe() {
    let mut network = Network::new();
    let ends: Vec<End> = (0..4).map(|_| network.add_end(1000.0, 1000.0)).collect();
    let pipe = Middle::new(Some(network.add_pipe(500.0)), None);
    network.start(Time::ZERO, (ends[0], ends[1]), pipe, 500, 1);
    network.start(Time::ZERO, (ends[2], ends[3]), pipe, 250, 2);
    // Both run at half the pipe's rate until the short one ends after a second.
    assert_eq!(run(&mut network), vec![(2, 1000), (1, 1500)]);
}

#[test]
fn directions_of_a_shared_link_have_a_capacity_each() {
    let mut network = Network::new();
    let (a, b) = (
        network.add_end(1000.0, 1000.0),
        network.add_end(1000.0, 1000.0),
    );
    let forth = Middle::new(Some(network.add_pipe(500.0)), None);
    let back = Middle::new(Some(network.add_pipe(500.0)), None);
    network.start(Time::ZERO, (a, b), forth, 500, 1);
    network.start(Time::ZERO, (b, a), back, 500, 2);
    assert_eq!(run(&mut network), vec![(1, 1000), (2, 1000)]);
}

#[test]
fn pipe_leaves_the_rest_of_both_ends_to_other_transfers() {
    let mut network = Network::new();
    let ends: Vec<End> = (0..4).map(|_| network.add_end(1000.0, 1000.0)).collect();
    let pipe = Middle::new(Some(network.add_pipe(100.0)), None);
    network.start(Time::ZERO, (ends[0], ends[1]), pipe, 300, 1);
    // They share an end with the first transfer, which uses a tenth of it.
    network.start(Time::ZERO, (ends[0], ends[2]), NOTHING, 900, 2);
    network.start(Time::ZERO, (ends[3], ends[1]), NOTHING, 1800, 3);
    assert_eq!(run(&mut network), vec![(2, 1000), (3, 2000), (1, 3000)]);
}

#[test]
fn aborted_transfer_frees_its_share_of_a_pipe() {
    let mut network = Network::new();
    let ends: Vec<End> = (0..4).map(|_| network.add_end(1000.0, 1000.0)).collect();
    let pipe = Middle::new(Some(network.add_pipe(500.0)), None);
    let first = network.start(Time::ZERO, (ends[0], ends[1]), pipe, 1000, 1);
    network.start(Time::ZERO, (ends[2], ends[3]), pipe, 500, 2);
    let second = Time::from_nanos(1_000_000_000);
    while network.next_at().is_some_and(|at| at <= second) {
        network.pop();
    }
    assert_eq!(network.abort(second, first), Some(250));
    assert_eq!(run(&mut network), vec![(2, 1500)]);
}

/// Transfers of a random network: their ends, and the pipe of each, if any.
#[derive(Clone, Debug)]
struct Sample {
    /// Uplink and downlink of each end, in bytes per second.
    ends: Vec<(u32, u32)>,
    pipes: Vec<u32>,
    /// Ends and pipe; the numbers are taken modulo those of ends and of pipes plus one.
    transfers: Vec<(usize, usize, usize)>,
    /// Whether each transfer is aborted after all have started.
    aborts: Vec<bool>,
}

fn sample() -> impl Strategy<Value = Sample> {
    let rate = || (0_u32..7).prop_map(|log2| 1000 << log2);
    let transfers = prop::collection::vec((0_usize..64, 0_usize..64, 0_usize..64), 1..60);
    (
        prop::collection::vec((rate(), rate()), 2..12),
        prop::collection::vec(rate(), 1..4),
        transfers,
        prop::collection::vec(any::<bool>(), 60),
    )
        .prop_map(|(ends, pipes, transfers, aborts)| Sample {
            ends,
            pipes,
            transfers,
            aborts,
        })
}

/// The max-min fair rates of transfers, each of which passes some of the sides: all rates grow
/// together, and those through a side stop when it is full.
fn max_min(capacities: &[f64], transfers: &[Vec<usize>]) -> Vec<f64> {
    let mut rates = vec![f64::NAN; transfers.len()];
    let mut left = capacities.to_vec();
    while rates.iter().any(|rate| rate.is_nan()) {
        let growing = |side: usize| {
            let through = rates.iter().zip(transfers);
            through
                .filter(|(rate, sides)| rate.is_nan() && sides.contains(&side))
                .count()
        };
        let (side, share) = (0..left.len())
            .filter(|side| growing(*side) > 0)
            .map(|side| (side, left[side] / growing(side) as f64))
            .min_by(|one, other| one.1.total_cmp(&other.1))
            .expect("each transfer passes a side");
        for (rate, sides) in rates.iter_mut().zip(transfers) {
            if rate.is_nan() && sides.contains(&side) {
                *rate = share;
                sides.iter().for_each(|side| left[*side] -= share);
            }
        }
    }
    rates
}

/// The simulated and the max-min fair rates of the transfers that are left, in bytes per second.
fn rates_of(sample: &Sample) -> Vec<(f64, f64)> {
    let mut network = Network::new();
    let mut capacities = Vec::new();
    for (up, down) in &sample.ends {
        network.add_end(f64::from(*up), f64::from(*down));
        capacities.extend([f64::from(*up), f64::from(*down)]);
    }
    let pipes: Vec<PipeId> = sample
        .pipes
        .iter()
        .map(|rate| network.add_pipe(f64::from(*rate)))
        .collect();
    let first_pipe = capacities.len();
    capacities.extend(sample.pipes.iter().map(|rate| f64::from(*rate)));
    let mut kept = Vec::new();
    let mut aborted = Vec::new();
    for ((from, to, pipe), is_aborted) in sample.transfers.iter().zip(&sample.aborts) {
        let (from, to) = (from % sample.ends.len(), to % sample.ends.len());
        let pipe = pipe % (pipes.len() + 1);
        let middle = Middle::new(pipes.get(pipe).copied(), None);
        let ends = (from as End, to as End);
        let key = network.start(Time::ZERO, ends, middle, 1 << 40, 0);
        if *is_aborted {
            aborted.push(key);
        } else {
            let mut sides = vec![2 * from, 2 * to + 1];
            sides.extend((pipe < pipes.len()).then_some(first_pipe + pipe));
            kept.push((key, sides));
        }
    }
    for key in aborted {
        network.abort(Time::ZERO, key);
    }
    let sides: Vec<Vec<usize>> = kept.iter().map(|(_, sides)| sides.clone()).collect();
    let fair = max_min(&capacities, &sides);
    let rate = |key: &Key| network.flows.get(*key).expect("it is under way").rate * 1e9;
    let simulated = kept.iter().map(|(key, _)| rate(key));
    simulated.zip(fair).collect()
}

proptest! {
    #[test]
    fn rates_are_close_to_max_min_fair(sample in sample()) {
        for (rate, fair) in rates_of(&sample) {
            prop_assert!((rate / fair - 1.0).abs() < 0.1, "{} instead of {}", rate, fair);
        }
    }
}

/// A round trip of 100 ms, and a window of 10 kB that doubles.
const COLD: Window = Window {
    bytes: 1e4,
    max_bytes: f64::INFINITY,
    round_trip: Duration::from_millis(100),
    growth: Growth {
        share: 1.0,
        bytes: 0.0,
    },
};

/// A network with two fast ends and a connection between them.
fn with_connection(window: Window) -> (Network, (End, End), Middle) {
    let mut network = Network::new();
    let ends = (network.add_end(1e9, 1e9), network.add_end(1e9, 1e9));
    let connection = network.open_connection(window);
    (network, ends, Middle::new(None, Some(connection)))
}

#[test]
fn cold_connection_doubles_its_window_and_keeps_it() {
    let (mut network, ends, middle) = with_connection(COLD);
    network.start(Time::ZERO, ends, middle, 1_000_000, 1);
    // 640 kB after six round trips; the rest at 640 kB per round trip.
    assert_eq!(run(&mut network), vec![(1, 656)]);
    // The first 640 kB at once, and the rest at that pace.
    let second = Time::from_nanos(2_000_000_000);
    network.start(second, ends, middle, 1_000_000, 2);
    assert_eq!(run(&mut network), vec![(2, 2056)]);
}

#[test]
fn what_fits_into_the_window_is_sent_at_once() {
    let (mut network, ends, middle) = with_connection(COLD);
    network.start(Time::ZERO, ends, middle, 10_000, 1);
    assert_eq!(run(&mut network), vec![(1, 0)]);
}

#[test]
fn window_grows_no_further_than_its_maximum_or_the_slowest_end() {
    let limited = Window {
        max_bytes: 2e4,
        ..COLD
    };
    let (mut network, ends, middle) = with_connection(limited);
    network.start(Time::ZERO, ends, middle, 220_000, 1);
    // 20 kB in the first round trip, then as many in each.
    assert_eq!(run(&mut network), vec![(1, 1100)]);

    let mut network = Network::new();
    let ends = (network.add_end(1e9, 1e9), network.add_end(1e9, 1e5));
    let middle = Middle::new(None, Some(network.open_connection(COLD)));
    network.start(Time::ZERO, ends, middle, 100_000, 1);
    // The end carries 10 kB per round trip.
    assert_eq!(run(&mut network), vec![(1, 1000)]);
}

#[test]
fn transfers_of_one_connection_share_its_window() {
    let constant = Window {
        max_bytes: 1e4,
        ..COLD
    };
    let (mut network, ends, middle) = with_connection(constant);
    network.start(Time::ZERO, ends, middle, 110_000, 1);
    network.start(Time::ZERO, ends, middle, 50_000, 2);
    // 100 kB per second together; the second one began after the first window was sent for half.
    let done = run(&mut network);
    assert_eq!(done.iter().map(|(tag, _)| *tag).collect::<Vec<_>>(), [2, 1]);
    assert!((1000..1050).contains(&done[0].1), "{done:?}");
    assert!((1590..1610).contains(&done[1].1), "{done:?}");
}

#[test]
fn side_of_a_closed_connection_is_used_again() {
    let (mut network, ends, _) = with_connection(COLD);
    let sides = network.sides.len();
    for tag in 0..3 {
        let connection = network.open_connection(COLD);
        let middle = Middle::new(None, Some(connection));
        let key = network.start(Time::ZERO, ends, middle, 1_000_000, tag);
        network.abort(Time::ZERO, key);
        network.close_connection(connection);
    }
    assert_eq!(network.sides.len(), sides + 1);
}
