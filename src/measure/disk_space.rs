//! Checks for free disk space, before a benchmark works for minutes.

use flotilla_common::units::ByteSize;

use crate::command::CommandError;

/// Checks that the temporary folder has room for `bytes` bytes.
///
/// # Errors
/// If it has not, with what helps; if the file system cannot be queried.
pub fn require_disk_space(bytes: u64) -> Result<(), CommandError> {
    let folder = std::env::temp_dir();
    let failed = |error: String| CommandError::failed("check the free disk space", error);
    let system = rustix::fs::statvfs(&folder)
        .map_err(|error| failed(format!("{}: {error}", folder.display())))?;
    let free = ByteSize(system.f_bavail.saturating_mul(system.f_frsize));
    if bytes <= free.0 {
        return Ok(());
    }
    Err(failed(format!(
        "this needs {} in {}, which has {free} free; choose a smaller --size, or set TMPDIR to another directory",
        ByteSize(bytes),
        folder.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_an_error_that_names_the_fixes() {
        assert!(require_disk_space(1).is_ok());
        let refused = require_disk_space(u64::MAX).map_err(|error| error.to_string());
        assert!(refused.is_err_and(|error| error.contains("--size") && error.contains("TMPDIR")));
    }
}
