//! What a process has used, as the kernel keeps it (proc(5)).

use std::time::Duration;

use flotilla_common::units::ByteSize;

use crate::cli::CommandError;

/// A process, by its number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process(pub(super) u32);

impl Process {
    /// Processor time that it has had so far, without that of other processes that it started.
    pub(super) fn cpu_time(self) -> Result<Duration, CommandError> {
        let ticks = ticks(&self.file("stat")?).ok_or_else(|| {
            CommandError::failed(
                format!("read the processor time of {}", self.0),
                "no name in it",
            )
        })?;
        Ok(Duration::from_secs_f64(
            ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
        ))
    }

    /// Processor time of it and of those that it started and that still run: workers that share its
    /// work.
    pub(super) fn cpu_time_with_workers(self) -> Result<Duration, CommandError> {
        let path = format!("task/{}/children", self.0);
        // A kernel may be built without this list; then there is none to add.
        let children = self.file(&path).unwrap_or_default();
        let workers = children
            .split_whitespace()
            .filter_map(|number| number.parse().ok())
            .map(Self);
        workers
            .map(Self::cpu_time)
            .try_fold(self.cpu_time()?, |sum, time| Ok(sum + time?))
    }

    /// The most memory that it has had resident so far.
    pub(super) fn peak_resident(self) -> Result<ByteSize, CommandError> {
        self.memory("VmHWM")
    }

    /// The memory that it has resident now and that is no file's: heap and stacks.
    pub(super) fn anonymous_resident(self) -> Result<ByteSize, CommandError> {
        self.memory("RssAnon")
    }

    fn memory(self, name: &str) -> Result<ByteSize, CommandError> {
        let status = self.file("status")?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        // proc_pid_status(5) says kB and means KiB.
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.map(|kib| ByteSize(kib << 10)).ok_or_else(|| {
            CommandError::failed(
                format!("read the memory of {}", self.0),
                format!("no {name} in it"),
            )
        })
    }

    fn file(self, name: &str) -> Result<String, CommandError> {
        let path = format!("/proc/{}/{name}", self.0);
        std::fs::read_to_string(&path)
            .map_err(|error| CommandError::failed(format!("read {path}"), error))
    }
}

/// proc_pid_stat(5): the second field is a name in parentheses; utime and stime are the 14th and
/// 15th.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    Some(
        fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_parenthesis_does_not_shift_the_fields() {
        assert_eq!(ticks("7 (a) b) R 1 2 3 4 5 6 7 8 9 10 40 2 0 0"), Some(42));
        assert_eq!(ticks("7"), None);
    }
}
