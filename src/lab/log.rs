//! What a service's log says about it.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// Lines of a log that are shown when a story fails.
const SHOWN: usize = 80;

/// The last lines of a log.
pub(super) fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let skipped = lines.len().saturating_sub(SHOWN);
    let mut shown = if skipped > 0 {
        format!("  ({skipped} lines before)\n")
    } else {
        String::new()
    };
    for line in &lines[skipped..] {
        shown.push_str("  ");
        shown.push_str(line);
        shown.push('\n');
    }
    shown
}

/// The lines that tell of an error which none of the `expected` texts announces.
pub(super) fn unexpected(path: &Path, expected: &[String]) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let is_unexpected =
        |line: &&str| is_error(line) && !expected.iter().any(|known| line.contains(known.as_str()));
    text.lines()
        .filter(is_unexpected)
        .map(str::to_owned)
        .collect()
}

/// A line at level ERROR, or of a panic.
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
    fn errors_and_panics_count_and_words_about_errors_do_not() {
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
