//! How the peer divides the limit on open files among its parts.

use core::fmt::Display;

/// The least limit with which a peer starts.
const LEAST: u64 = 256;
/// Below this limit, a warning says what it restricts.
const ENOUGH: u64 = 4096;
/// For connections to origins and trackers and of operators, sockets, records that are saved, and
/// the log.
const OTHERS: u64 = 160;
/// A connection of the container runtime may also need a connection to an origin and a data file
/// that is closed for other purposes already.
const PER_CONNECTION: u64 = 3;
/// Connections of the container runtime at once, if the limit allows for more.
const MAX_CONNECTIONS: u64 = 8192;
/// Data files that stay open. The pulls and uploads at one time use fewer.
const MAX_STORED: u64 = 512;

/// The open files that each part of the peer may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenFilesBudget {
    /// Data files of the store.
    pub(crate) stored: usize,
    /// Connections to the mirror.
    pub(crate) connections: usize,
}

impl OpenFilesBudget {
    /// Divides the limit of this process.
    ///
    /// # Errors
    /// The limit is too low, and the fix.
    pub(crate) fn within(limit: u64) -> Result<Self, impl Display> {
        if limit < LEAST {
            return Err(format!(
                "the limit on open files is {limit}, but a peer needs at least {LEAST}; raise it \
                 with `ulimit -n`, or LimitNOFILE= in the systemd unit"
            ));
        }
        let stored = (limit / 4).min(MAX_STORED);
        let connections = (limit - stored - OTHERS.min(limit / 4)) / PER_CONNECTION;
        let budget = Self {
            // Both are bounded by constants above.
            stored: stored as usize,
            connections: connections.min(MAX_CONNECTIONS) as usize,
        };
        if limit < ENOUGH {
            tracing::warn!(
                limit,
                connections = budget.connections,
                "the limit on open files is low: the mirror refuses further connections at once; \
                 raise it with `ulimit -n`, or LimitNOFILE= in the systemd unit"
            );
        }
        Ok(budget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(limit: u64) -> Option<OpenFilesBudget> {
        OpenFilesBudget::within(limit).ok()
    }

    #[test]
    fn parts_fit_into_the_limit() {
        for limit in [256, 300, 1024, 4096, 65_536, u64::MAX] {
            let budget = within(limit).expect("enough");
            let needed = budget.stored as u64 + budget.connections as u64 * PER_CONNECTION;
            assert!(needed < limit, "{limit}: {budget:?}");
            assert!(budget.connections >= 32, "{limit}: {budget:?}");
        }
        let most = within(u64::MAX).expect("enough");
        assert_eq!((most.stored, most.connections), (512, 8192));
    }

    #[test]
    fn too_low_limit_is_refused_with_the_fix() {
        let error = OpenFilesBudget::within(255)
            .map(|_| ())
            .map_err(|error| error.to_string());
        let error = error.expect_err("too low");
        assert!(
            error.contains("255") && error.contains("ulimit -n"),
            "{error}"
        );
    }
}
