//! Bodies that are read as a whole, and fail soon if they are cut.
//!
//! The client library repeats a request whose connection ends, and resumes a body that breaks, up
//! to eight times with growing pauses. That is right for the bytes of a blob. A record has a few
//! hundred bytes, and its reader has to know soon that the storage fails. So a [`WholeBody`]
//! travels with the request through the library. [`Transport`](super::transport) ends the body at
//! its first error, and notes the error here; it also limits the attempts that end before an
//! answer.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use object_store::client::{HttpError, HttpErrorKind};

/// Attempts of one read whose connections may end before the answer. More than one: a connection
/// may have ended while it was idle.
const MAX_CUT_ATTEMPTS: u32 = 4;

/// The errors of one read; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct WholeBody(Arc<Errors>);

#[derive(Debug, Default)]
struct Errors {
    cut_attempts: AtomicU32,
    of_body: Mutex<Option<String>>,
}

impl WholeBody {
    /// The error of an attempt without an answer. The last of too many says that no other attempt
    /// is to be made.
    pub(super) fn map_error(&self, error: HttpError) -> HttpError {
        let is_cut = matches!(
            error.kind(),
            HttpErrorKind::Request | HttpErrorKind::Interrupted
        );
        let before = self
            .0
            .cut_attempts
            .fetch_add(u32::from(is_cut), Ordering::Relaxed);
        if is_cut && before + 1 >= MAX_CUT_ATTEMPTS {
            return HttpError::new(HttpErrorKind::Unknown, error);
        }
        error
    }

    /// Notes the error that ended the body.
    pub(super) fn note(&self, error: &HttpError) {
        let of_body = self.0.of_body.lock();
        let mut of_body = of_body.unwrap_or_else(PoisonError::into_inner);
        of_body.get_or_insert_with(|| error.to_string());
    }

    /// The error that ended the body.
    pub(super) fn take_error(&self) -> Option<String> {
        let of_body = self.0.of_body.lock();
        of_body.unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn cut_attempts_are_limited() {
        let whole = WholeBody::default();
        let kind_after = |kind| {
            let error = HttpError::new(kind, io::Error::other("cut"));
            whole.map_error(error).kind()
        };
        for _ in 1..MAX_CUT_ATTEMPTS {
            let kind = HttpErrorKind::Interrupted;
            assert_eq!(kind_after(kind), kind);
            let refused = HttpErrorKind::Connect;
            assert_eq!(kind_after(refused), refused);
        }
        assert_eq!(kind_after(HttpErrorKind::Request), HttpErrorKind::Unknown);
    }
}
