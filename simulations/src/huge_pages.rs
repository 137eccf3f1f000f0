//! Huge pages for the memory of runs.
//!
//! A run reads the state of thousands of peers in no order. With pages of 4 KiB most reads miss the
//! processor's cache of address translations, too, and that took a quarter of the time
//! (`docs/benchmarks/simulator-scale.md`). glibc asks the kernel for transparent huge pages if a
//! tunable says so, but reads it only when the process starts.

use std::env;

/// The variable with glibc's tunables.
const TUNABLES: &str = "GLIBC_TUNABLES";
const HUGE_PAGES: &str = "glibc.malloc.hugetlb=1";

/// Starts the program from its beginning again, with the same arguments and with huge pages for
/// allocated memory. To be called before anything else is done.
///
/// Returns if the environment has glibc tunables already, as it has after the restart. Also returns
/// on systems without glibc and if the program cannot be started: runs are slower then, and have
/// the same outcomes.
pub fn restart_with_huge_pages() {
    if env::var_os(TUNABLES).is_none() {
        restart_with(TUNABLES, HUGE_PAGES);
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn restart_with(variable: &str, value: &str) {
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    let Ok(program) = env::current_exe() else {
        return;
    };
    let mut arguments = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // Returns only if it fails.
    let _error = command.args(arguments).env(variable, value).exec();
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn restart_with(_variable: &str, _value: &str) {}
