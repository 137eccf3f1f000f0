//! Whether what a benchmark writes has room: asked before it works for minutes.

use flotilla_common::units::ByteSize;

use crate::cli::CommandError;

/// Looks whether the temporary folder has room for so many bytes.
///
/// # Errors
/// If it has not, with what would help; if it cannot be asked.
pub(super) fn for_bytes(bytes: u64) -> Result<(), CommandError> {
    let folder = std::env::temp_dir();
    let failed = |error: String| CommandError::failed("find room for what is measured", error);
    let system = rustix::fs::statvfs(&folder)
        .map_err(|error| failed(format!("{}: {error}", folder.display())))?;
    let free = ByteSize(system.f_bavail.saturating_mul(system.f_frsize));
    if bytes <= free.0 {
        return Ok(());
    }
    Err(failed(format!(
        "{} is written to {}, which has {free} free: give a smaller --size, or a larger folder by TMPDIR",
        ByteSize(bytes),
        folder.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_is_told_what_would_help() {
        assert!(for_bytes(1).is_ok());
        let refused = for_bytes(u64::MAX).map_err(|error| error.to_string());
        assert!(refused.is_err_and(|error| error.contains("--size") && error.contains("TMPDIR")));
    }
}
