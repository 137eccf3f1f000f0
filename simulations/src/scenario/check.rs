//! Checks of values, and the errors that name the key and the fix.

use super::ScenarioError;

/// The fix for a value that must be a share.
pub(super) const WRITE_SHARE: &str = "write a share from 0 to 1";
/// The fix for a value that must be a time in seconds.
pub(super) const WRITE_SECONDS: &str = "write seconds, 0 or more";
/// The fix for a value that must be a time in milliseconds.
pub(super) const WRITE_MILLIS: &str = "write milliseconds, 0 or more";
/// The fix for a value that must be a rate.
pub(super) const WRITE_RATE: &str = "write a rate above zero, such as \"50Mbit\"";

/// An error that names `key` and says how to fix it, unless the condition holds.
pub(super) fn require(holds: bool, key: &'static str, cure: &str) -> Result<(), ScenarioError> {
    if holds {
        Ok(())
    } else {
        Err(ScenarioError::Value {
            key,
            cure: cure.to_owned(),
        })
    }
}

pub(super) fn require_share(value: f64, key: &'static str) -> Result<(), ScenarioError> {
    require((0.0..=1.0).contains(&value), key, WRITE_SHARE)
}

pub(super) fn require_seconds(value: f64, key: &'static str) -> Result<(), ScenarioError> {
    require(is_time(value), key, WRITE_SECONDS)
}

pub(super) fn require_millis(value: f64, key: &'static str) -> Result<(), ScenarioError> {
    require(is_time(value), key, WRITE_MILLIS)
}

/// Whether a number of seconds or milliseconds fits into a duration.
pub(super) fn is_time(value: f64) -> bool {
    (0.0..=1e9).contains(&value)
}
