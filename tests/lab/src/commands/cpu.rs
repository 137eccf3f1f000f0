//! The machine's CPU usage, as a check: if the CPUs are busy, a benchmark of links measures them.

use flotilla::command::CommandError;

/// CPU time since boot, in ticks, summed over all CPUs.
#[derive(Clone, Copy, Debug)]
pub(super) struct CpuTimes {
    busy: u64,
    total: u64,
}

impl CpuTimes {
    /// Reads the current times.
    pub(super) fn now() -> Result<Self, CommandError> {
        const PATH: &str = "/proc/stat";
        let failed = |error| CommandError::failed(format!("read {PATH}"), error);
        let text = std::fs::read_to_string(PATH).map_err(failed)?;
        Ok(Self::parse(&text))
    }

    /// The fields of proc_stat(5) are user, nice, system, idle, iowait, irq, softirq and steal; the
    /// times of guests, which follow, are included in user and nice.
    fn parse(text: &str) -> Self {
        let fields = text
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .take(8);
        let times: Vec<u64> = fields.map(|field| field.parse().unwrap_or(0)).collect();
        let total = times.iter().sum();
        let idle: u64 = times.iter().skip(3).take(2).sum();
        Self {
            busy: total - idle,
            total,
        }
    }

    /// The busy share of the time since `earlier`, from 0 to 1.
    pub(super) fn busy_share_since(self, earlier: Self) -> f64 {
        let total = self.total.saturating_sub(earlier.total);
        self.busy.saturating_sub(earlier.busy) as f64 / total.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_iowait_are_not_busy() {
        let before = CpuTimes::parse("cpu  10 0 10 70 10 0 0 0 0 0\ncpu0 1 1 1 1\n");
        let after = CpuTimes::parse("cpu  20 0 20 80 20 5 5 0 0 0\n");
        assert_eq!(after.busy_share_since(before), 0.6);
        assert_eq!(after.busy_share_since(after), 0.0);
    }
}
