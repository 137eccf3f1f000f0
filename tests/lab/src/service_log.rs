//! A service's log file.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// Lines that an error message shows.
const TAIL_LINES: usize = 80;

/// The last lines of a log, indented.
pub(crate) fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let skipped = lines.len().saturating_sub(TAIL_LINES);
    let mut tail = if skipped > 0 {
        format!("  (after {skipped} other lines)\n")
    } else {
        String::new()
    };
    for line in &lines[skipped..] {
        tail.push_str("  ");
        tail.push_str(line);
        tail.push('\n');
    }
    tail
}

/// The log's errors, except for lines that contain one of the `expected` texts.
pub(crate) fn unexpected_errors(path: &Path, expected: &[String]) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let is_unexpected =
        |line: &&str| is_error(line) && !expected.iter().any(|known| line.contains(known.as_str()));
    text.lines()
        .filter(is_unexpected)
        .map(str::to_owned)
        .collect()
}

/// Whether a line has level ERROR or reports a panic.
fn is_error(line: &str) -> bool {
    match serde_json::from_str::<Value>(line) {
        Ok(record) => record.get("level").is_some_and(|level| level == "ERROR"),
        Err(_) => line.contains("panicked at"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_error_level_and_panics_are_errors() {
        assert!(is_error(
            r#"{"timestamp":"t","level":"ERROR","message":"encode metrics"}"#
        ));
        assert!(is_error("thread 'main' panicked at src/main.rs:1:1:"));
        assert!(!is_error(
            r#"{"level":"WARN","message":"ask origin","error":"ERROR panicked at noon"}"#
        ));
        assert!(!is_error("error: bad flag"));
    }
}
