//! The settings of the machine.

use core::time::Duration;

/// Settings of a [`super::Failover`]: [`FailoverConfig::of_origins`] has the values that origins
/// use, and [`FailoverConfig::of_peers`] those that peers use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverConfig {
    /// A call without the head of its answer for this long makes its source suspect.
    pub slow_after: Duration,
    /// After a call without the head of its answer for this long, other requests prefer the next
    /// source while probes decide, and the call's own request asks the next source too.
    pub hung_after: Duration,
    /// A probe without a result for this long has failed.
    pub probe_timeout: Duration,
    /// A suspect source is Out when so many probes have failed, none of them good in between.
    pub suspect_probes: u32,
    /// Time between the starts of two probes of a suspect source.
    pub suspect_probe_interval: Duration,
    /// A source is Out after so many failed calls in a row, even if its probes are good...
    pub failures_in_a_row: u32,
    /// ...and at least this long after the first of them.
    pub failures_over: Duration,
    /// Pause before the first probe of a source that is Out. Shortened by up to a quarter at
    /// random, like the later ones, so that the probes of a fleet do not coincide.
    pub first_pause: Duration,
    /// Longest pause between two probes; pauses double up to it.
    pub max_pause: Duration,
    /// A source that is Out returns after so many good probes in a row.
    pub good_probes: u32,
    /// Time between the starts of these probes.
    pub good_probe_interval: Duration,
    /// The shares of requests that ask a returning source, step by step, in percent.
    pub return_shares: Vec<u8>,
    /// How long each step takes.
    pub return_step: Duration,
    /// How long a request's first choice, in the own region, may take to the head of its answer.
    pub own_timeout: Duration,
    /// How long every other source may take to the head of its answer.
    pub other_timeout: Duration,
    /// After this long without a head from one of these, the next source is asked too.
    pub hedge_delay: Duration,
    /// How long a whole request may take when its first choice is Out or avoided, or since its
    /// first choice went Out.
    pub request_timeout: Duration,
    /// How long requests for content that a region lacks ask other regions first.
    pub missing_ttl: Duration,
    /// Maximum number of such pieces of content; the oldest are forgotten.
    pub missing_limit: usize,
    /// Upper bound of the time for which a busy source is asked last.
    pub max_retry_after: Duration,
}

impl FailoverConfig {
    /// The values that origins use. Own absence is looked up anew by each request, so that
    /// questions to other regions about what is absent here stay within their limit.
    pub fn of_origins() -> Self {
        Self {
            missing_limit: 0,
            ..Self::default()
        }
    }

    /// The values that peers use. An origin whose storage hangs turns to another region after
    /// 1.5 s itself. A peer that did so at the same time would fetch the same bytes from there once
    /// more. An origin that hangs itself answers no probe: it is Out after 1.75 s, which bounds how
    /// long a pull waits for the manifest of its tag.
    pub fn of_peers() -> Self {
        Self {
            slow_after: Duration::from_millis(500),
            suspect_probe_interval: Duration::from_millis(250),
            hung_after: Duration::from_secs(2),
            ..Self::default()
        }
    }
}

impl Default for FailoverConfig {
    fn default() -> Self {
        Self {
            slow_after: Duration::from_secs(1),
            hung_after: Duration::from_millis(1500),
            probe_timeout: Duration::from_secs(1),
            suspect_probes: 2,
            suspect_probe_interval: Duration::from_millis(500),
            failures_in_a_row: 5,
            failures_over: Duration::from_secs(2),
            first_pause: Duration::from_secs(1),
            max_pause: Duration::from_secs(30),
            good_probes: 3,
            good_probe_interval: Duration::from_secs(1),
            return_shares: vec![10, 30, 100],
            return_step: Duration::from_secs(5),
            own_timeout: Duration::from_secs(5),
            other_timeout: Duration::from_millis(1500),
            hedge_delay: Duration::from_millis(300),
            request_timeout: Duration::from_secs(4),
            missing_ttl: Duration::from_secs(10),
            missing_limit: 1024,
            max_retry_after: Duration::from_secs(30),
        }
    }
}
