//! Measures how a simulation's cost grows with the number of peers.
//!
//! ```text
//! cargo run --release -p flotilla-simulations --example scale -- SCENARIO.toml [PEERS...]
//! ```
//!
//! runs the scenario with rng seed 1 for each number of peers, its own number if none is given, and
//! prints a row for each: processor time and peak memory of the process, events, and events and
//! messages to and from trackers, per peer and chunk. The peak is that of the process so far, so
//! the numbers should ascend. Times and memory come from `/proc`, so there are none outside Linux.

use std::error::Error;
use std::fs;
use std::io::{Write as _, stdout};
use std::path::Path;
use std::time::Instant;

use flotilla_simulations::{Scenario, restart_with_huge_pages, run};

/// Clock ticks per second in `/proc/self/stat`: the same on every Linux.
const TICKS_PER_S: f64 = 100.0;
const RNG_SEED: u64 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    restart_with_huge_pages();
    let mut arguments = std::env::args().skip(1);
    let path = arguments
        .next()
        .ok_or("usage: scale SCENARIO.toml [PEERS...]")?;
    let mut scenario = Scenario::read(Path::new(&path))?;
    let mut counts = arguments
        .map(|count| count.parse().map_err(|error| format!("{count}: {error}")))
        .collect::<Result<Vec<u32>, _>>()?;
    if counts.is_empty() {
        counts.push(scenario.peers.count);
    }
    let mut output = stdout().lock();
    writeln!(
        output,
        "{:>8} {:>9} {:>9} {:>9} {:>12} {:>12} {:>12} {:>9}  trace",
        "peers", "wall s", "cpu s", "peak MiB", "events", "/peer/chunk", "to trackers", "p99/bound"
    )?;
    for count in counts {
        scenario.peers.count = count;
        let cpu_before = cpu_s();
        let start = Instant::now();
        let outcome = run(&scenario, RNG_SEED);
        let wall_s = start.elapsed().as_secs_f64();
        let per_peer_and_chunk =
            |count_of: u64| count_of as f64 / f64::from(count) / f64::from(scenario.image.chunks());
        writeln!(
            output,
            "{count:>8} {wall_s:>9.2} {:>9.2} {:>9.1} {:>12} {:>12.2} {:>12.3} {:>9.3}  {}",
            cpu_s() - cpu_before,
            peak_mib(),
            outcome.events,
            per_peer_and_chunk(outcome.events),
            per_peer_and_chunk(outcome.tracker_messages),
            outcome.p99_over_bound,
            outcome.trace_hash,
        )?;
    }
    Ok(())
}

/// Processor time of this process so far, in seconds; NaN if it is not known.
fn cpu_s() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the command in parentheses; user and system time are the 14th and 15th.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |index| -> Option<f64> { fields.split_whitespace().nth(index)?.parse().ok() };
    match (ticks(11), ticks(12)) {
        (Some(user), Some(system)) => (user + system) / TICKS_PER_S,
        _ => f64::NAN,
    }
}

/// Peak resident memory of this process so far, in MiB; NaN if it is not known.
fn peak_mib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.map_or(f64::NAN, |kib| kib / 1024.0)
}
