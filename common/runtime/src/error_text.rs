//! The text of errors for people.

use core::error::Error;
use std::io;

/// The text of an error with all its causes. reqwest's own text ends at "error sending request". A
/// certificate that is refused is followed by what to check.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in causes(error) {
        let message = cause.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
    }
    if is_refused_certificate(error) {
        text.push_str(
            "; check the server's certificate, and the authority that is trusted here (tls-ca)",
        );
    }
    text
}

/// Whether the server's certificate was refused, so that a repetition does not help.
pub fn is_refused_certificate(error: &(dyn Error + 'static)) -> bool {
    core::iter::once(error)
        .chain(causes(error))
        .any(|cause| matches!(tls_error(cause), Some(rustls::Error::InvalidCertificate(_))))
}

/// The causes of an error, the nearest first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> Vec<&'a (dyn Error + 'static)> {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause);
        next = cause.source();
    }
    causes
}

/// The TLS error that an error is, or that an I/O error contains: the source of an I/O error is
/// that of its content.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return tls_error(error.get_ref()?);
    }
    error.downcast_ref()
}

#[cfg(test)]
mod tests {
    use rustls::CertificateError;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("send a request")]
    struct Sending(#[source] io::Error);

    #[test]
    fn refused_certificates_say_what_to_check() {
        let refused = rustls::Error::InvalidCertificate(CertificateError::BadSignature);
        let error = Sending(io::Error::other(refused));
        assert!(is_refused_certificate(&error));
        let text = explain(&error);
        assert!(
            text.contains("BadSignature") && text.ends_with("(tls-ca)"),
            "{text}"
        );
    }

    #[test]
    fn other_errors_have_all_causes_and_no_advice() {
        let error = Sending(io::Error::other("connection refused"));
        assert!(!is_refused_certificate(&error));
        assert_eq!(explain(&error), "send a request: connection refused");
    }
}
