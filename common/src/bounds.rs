//! Lower bounds of the time of a burst, and percentiles to compare with them.
//!
//! In bytes, bytes per second and seconds. Only basic arithmetic is used, so every machine computes
//! the same values.

/// The fluid bound, `max(F/u_s, F/d_min, N F / (u_s + sum of u_i))`: no schedule is
/// faster.
///
/// `origin_up` is u_s, `slowest_down` d_min, `peers_up` the sum of all peers' uplinks.
pub fn fluid_s(
    image_bytes: u64,
    peers: u64,
    origin_up: f64,
    slowest_down: f64,
    peers_up: f64,
) -> f64 {
    let bytes = image_bytes as f64;
    let all = peers as f64 * bytes / (origin_up + peers_up);
    (bytes / origin_up).max(bytes / slowest_down).max(all)
}

/// The pipelined bound of equal capacities, `(F/u)(1 + floor(log2 N)/M)`: every chunk goes through
/// a binary tree.
pub fn pipelined_s(image_bytes: u64, peers: u64, chunks: u64, rate: f64) -> f64 {
    let depth = f64::from(peers.max(1).ilog2());
    image_bytes as f64 / rate * (1.0 + depth / chunks.max(1) as f64)
}

/// The percentile `share` (0 to 1) of ascending values by nearest rank; 0 without values.
pub fn percentile(ascending: &[f64], share: f64) -> f64 {
    let rank = libm::ceil(ascending.len() as f64 * share) as usize;
    ascending
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_a_known_burst() {
        // 16 peers, 64 MiB in 256 chunks, 50 Mbit/s everywhere.
        let rate = 50e6 / 8.0;
        let bytes = 64 << 20;
        let pipelined = pipelined_s(bytes, 16, 256, rate);
        assert!(
            (pipelined - 10.737_418_24 * (1.0 + 4.0 / 256.0)).abs() < 1e-9,
            "{pipelined}"
        );
        let fluid = fluid_s(bytes, 16, rate, rate, 16.0 * rate);
        assert!((fluid - 10.737_418_24).abs() < 1e-9, "{fluid}");
    }

    #[test]
    fn percentiles_are_measured_values() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 100.0);
        assert_eq!(percentile(&values, 0.99), 198.0);
        assert_eq!(percentile(&values, 1.0), 200.0);
        assert_eq!(percentile(&values[..1], 0.99), 1.0);
        assert_eq!(percentile(&[], 0.99), 0.0);
    }

    #[test]
    fn bounds_of_zero_peers_are_zero() {
        assert_eq!(pipelined_s(0, 0, 0, 1.0), 0.0);
    }
}
