//! How much memory simulations may use.

use std::fs;

/// Used where the free memory is not known.
const DEFAULT_BYTES: u64 = 2 << 30;

/// Nine tenths of the memory that is free on this machine and in this control group, in bytes.
pub(super) fn usable_bytes() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| available_bytes(&text));
    let group = control_group_bytes("/sys/fs/cgroup");
    let free = machine.into_iter().chain(group).min();
    free.unwrap_or(DEFAULT_BYTES) / 10 * 9
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The limit of a control group less its use, in bytes; `None` without a limit.
fn control_group_bytes(folder: &str) -> Option<u64> {
    let number = |file: &str| -> Option<u64> {
        let text = fs::read_to_string(format!("{folder}/{file}")).ok()?;
        text.trim().parse().ok()
    };
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_from_meminfo() {
        let text = "MemTotal:       24660844 kB\nMemAvailable:   23571948 kB\n";
        assert_eq!(available_bytes(text), Some(23_571_948 * 1024));
        assert_eq!(available_bytes("MemTotal: 1 kB\n"), None);
    }
}
