//! Failover: the health of a list of sources, and which of them a request asks.
//!
//! A source is something that serves the same content as others: an origin as a peer sees it, or,
//! to an origin, its own storage (the first source) and the origins of other regions. Sources of
//! one region are replicas; the regions are in the order of preference, the own one first. One
//! [`Failover`] per process is shared by everything that asks these sources, so that one caller's
//! experience spares the others the same wait.
//!
//! ```text
//!              call of 1 s, call without head for 1.5 s, failed call
//!        ┌───────────────────────────────────────────────▶ Suspect: 2 probes, 500 ms apart
//!        │   answered call, good probe                        │
//!      Fine ◀─────────────────────────────────────────────────┤
//!        ▲                                  2 probes failed,  │
//!        │ 5 s at 100 %        5 failures in a row over 2 s   ▼
//!   Returning: 10 %, 30 %, 100 % ◀──────────────────────── Out: probes after 1 s to 30 s
//!        │              3 good probes, 1 s apart              ▲
//!        └────────────────────────────────────────────────────┘
//!                 one failed call, or one failed probe
//! ```
//!
//! # What a hung source costs
//!
//! The first caller gets no head. At 1 s the source is suspected, and probed at once and 500 ms
//! later. At 1.5 s the caller's request asks the next source, and every further request for content
//! prefers the next source. At 2.5 s at the latest both probes have failed: the source is Out. The
//! calls that still wait for its head end then, also those for facts that can change, which are
//! never asked of two regions at once. From then on a request goes to the next source directly,
//! until a good probe: a source rests until it answers, not for a time.
//!
//! # The driver's loop
//!
//! ```text
//! per request                                     once per process
//!   request = failover.request(now, need)           loop {
//!   loop {                                              while let Some(output) = failover.poll_output()
//!     match request.poll(now, failover) {                   Probe: start it; its end is Input::Probed
//!       Ask: call the source                                Changed: log it, wake the requests
//!       Wait: for an outcome, a change, a time          wait until failover.poll_timeout()
//!       Exhausted: give up                              failover.handle_timeout(now)
//!     }                                             }
//!     request.ended(now, failover, source, outcome)
//!   }
//! ```
//!
//! # What is deliberately absent
//!
//! - An opinion about content. A source that lacks something ([`Outcome::Missing`]) is healthy.
//!   Only requests for the same content ask another region first, for some seconds.
//! - Which region a write goes to, and which of two answers of different regions is newer.

mod config;
mod health;
mod machine;
mod missing;
mod request;

#[cfg(test)]
mod tests;

pub use config::FailoverConfig;
pub use health::Standing;
pub use machine::{
    ContentKey, Failover, Input, Need, Outcome, Output, ProbeId, SourceId, SourceStatus,
};
pub use request::{Request, Step};
