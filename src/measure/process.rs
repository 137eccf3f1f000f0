//! Resource usage of a process, as the kernel counts it (proc(5)).

use std::time::Duration;

use flotilla_common::units::ByteSize;

use crate::command::CommandError;

/// A process, by its id.
#[derive(Clone, Copy, Debug)]
pub struct Process(pub u32);

impl Process {
    /// User and system CPU time so far, without that of its children.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn cpu_time(self) -> Result<Duration, CommandError> {
        let ticks = cpu_ticks(&self.read("stat")?).ok_or_else(|| {
            CommandError::failed(
                format!("read the CPU time of process {}", self.0),
                "/proc/PID/stat is malformed",
            )
        })?;
        Ok(Duration::from_secs_f64(
            ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
        ))
    }

    /// CPU time so far of the process and of its running children, for servers with worker
    /// processes.
    ///
    /// # Errors
    /// If a process ends meanwhile.
    pub fn cpu_time_with_children(self) -> Result<Duration, CommandError> {
        let path = format!("task/{}/children", self.0);
        // The file is missing in kernels without CONFIG_PROC_CHILDREN; children are ignored there.
        let children = self.read(&path).unwrap_or_default();
        let children = children
            .split_whitespace()
            .filter_map(|id| id.parse().ok())
            .map(Self);
        children
            .map(Self::cpu_time)
            .try_fold(self.cpu_time()?, |sum, time| Ok(sum + time?))
    }

    /// Peak resident memory so far (`VmHWM`).
    ///
    /// # Errors
    /// If the process has ended.
    pub fn peak_resident(self) -> Result<ByteSize, CommandError> {
        self.memory("VmHWM")
    }

    /// Current anonymous resident memory (`RssAnon`): heap and stacks.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn anonymous_resident(self) -> Result<ByteSize, CommandError> {
        self.memory("RssAnon")
    }

    fn memory(self, name: &str) -> Result<ByteSize, CommandError> {
        let status = self.read("status")?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        // The "kB" of proc_pid_status(5) are KiB.
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.map(|kib| ByteSize(kib << 10)).ok_or_else(|| {
            CommandError::failed(
                format!("read the memory usage of process {}", self.0),
                format!("/proc/PID/status has no {name}"),
            )
        })
    }

    fn read(self, name: &str) -> Result<String, CommandError> {
        let path = format!("/proc/{}/{name}", self.0);
        std::fs::read_to_string(&path)
            .map_err(|error| CommandError::failed(format!("read {path}"), error))
    }
}

/// The sum of utime and stime, fields 14 and 15 of proc_pid_stat(5). The second field is a name in
/// parentheses that may contain spaces and parentheses.
fn cpu_ticks(stat: &str) -> Option<u64> {
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
    fn process_names_may_contain_parentheses() {
        assert_eq!(
            cpu_ticks("7 (a) b) R 1 2 3 4 5 6 7 8 9 10 40 2 0 0"),
            Some(42)
        );
        assert_eq!(cpu_ticks("7"), None);
    }
}
