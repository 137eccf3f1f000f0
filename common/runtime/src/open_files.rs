//! The limit on open files of this process: files, sockets and pipes together.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit on open files to the most that the process may set for itself, and returns the
/// limit that applies from now on. [`u64::MAX`] means no limit.
///
/// Shells and container runtimes often set a soft limit of 1,024, for the sake of programs that
/// use `select`, and a much higher hard limit.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current.unwrap_or(u64::MAX);
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current.unwrap_or(u64::MAX),
        Err(error) => {
            tracing::warn!(
                soft = ?limit.current, hard = ?limit.maximum, %error,
                "raising the limit on open files failed; keeping the soft limit"
            );
            limit.current.unwrap_or(u64::MAX)
        }
    }
}

/// Whether an operation failed because this process, or the whole machine, has no file descriptor
/// left.
pub fn is_exhausted(error: &io::Error) -> bool {
    let exhausted = [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
    exhausted.contains(&error.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_limit_is_raised_to_the_hard_one() {
        let raised = raise_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(raised, limit.current.unwrap_or(u64::MAX));
        assert_eq!(raise_limit(), raised);
    }

    #[test]
    fn lack_of_descriptors_is_recognized() {
        let of = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        assert!(is_exhausted(&of(Errno::MFILE)) && is_exhausted(&of(Errno::NFILE)));
        assert!(!is_exhausted(&of(Errno::NOENT)));
        assert!(!is_exhausted(&io::Error::other("no code")));
    }
}
