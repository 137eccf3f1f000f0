//! How busy this machine's processors are: a measurement of links that the processor limits
//! measures the processor.

use crate::cli::CommandError;

/// Time that the processors have spent so far, in ticks of all of them together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Processor {
    busy: u64,
    all: u64,
}

impl Processor {
    /// As it is now.
    pub(super) fn now() -> Result<Self, CommandError> {
        const PATH: &str = "/proc/stat";
        let failed = |error| CommandError::failed(format!("read {PATH}"), error);
        let text = std::fs::read_to_string(PATH).map_err(failed)?;
        Ok(Self::parse(&text))
    }

    /// proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in
    /// user's already.
    fn parse(text: &str) -> Self {
        let fields = text
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .take(8);
        let times: Vec<u64> = fields.map(|field| field.parse().unwrap_or(0)).collect();
        let all = times.iter().sum();
        let idle: u64 = times.iter().skip(3).take(2).sum();
        Self {
            busy: all - idle,
            all,
        }
    }

    /// The share of the time since `earlier` in which they were not idle, from 0 to 1.
    pub(super) fn share_since(self, earlier: Self) -> f64 {
        let all = self.all.saturating_sub(earlier.all);
        self.busy.saturating_sub(earlier.busy) as f64 / all.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_for_a_disk_are_not_busy() {
        let before = Processor::parse("cpu  10 0 10 70 10 0 0 0 0 0\ncpu0 1 1 1 1\n");
        let after = Processor::parse("cpu  20 0 20 80 20 5 5 0 0 0\n");
        assert_eq!(after.share_since(before), 0.6);
        assert_eq!(after.share_since(after), 0.0);
    }
}
