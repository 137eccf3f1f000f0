//! Whether any other replica of the region reaches storage.

use core::time::Duration;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::PoisonError;

use flotilla_common::time::Time;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::timeout;

use super::Invalidator;
use super::exchange::ExchangeError;
use super::message::{Answer, Content};

/// For so long a replica without an answer counts as one that reaches storage: one lost question
/// must not make a region look as if its storage were gone.
const COUNTS_WITHOUT_ANSWER: Duration = Duration::from_secs(10);

/// How long a result is reused.
const FRESH: Duration = Duration::from_secs(1);

/// The last result, and when it was known.
pub(super) type LastStanding = tokio::sync::Mutex<Option<(Time, Option<bool>)>>;

/// Since when each address has not answered.
#[derive(Debug, Default)]
pub(super) struct Unanswered(BTreeMap<SocketAddr, Time>);

/// The last contact with one listed address.
enum Sibling {
    /// It is this process, or no process.
    None,
    Reaches(bool),
    Silent,
}

impl Invalidator {
    /// Notes whether a replica answered; `None` is a timeout.
    pub(super) fn note_answer(
        &self,
        replica: SocketAddr,
        outcome: Option<&Result<Answer, ExchangeError>>,
    ) {
        let mut unanswered = self
            .unanswered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Some(Ok(_) | Err(ExchangeError::Refused)) => {
                unanswered.0.remove(&replica);
            }
            None | Some(Err(ExchangeError::Failed(_))) => {
                let listed = self.replicas.current();
                unanswered.0.retain(|replica, _| listed.contains(replica));
                unanswered
                    .0
                    .entry(replica)
                    .or_insert_with(|| self.clock.now());
            }
        }
    }

    /// Whether another listed replica reaches storage. All of them are asked, for at most `limit`;
    /// the result is reused for a second.
    ///
    /// `Some(true)` if one of the others does, or has not answered for less than 10 s; `Some(false)`
    /// if none does; `None` if no other replica runs. An address that refuses the connection has no
    /// replica.
    pub(crate) async fn any_sibling_reaches_storage(&self, limit: Duration) -> Option<bool> {
        // The holder of the lock asks; other callers wait for its result.
        let mut last = self.standing.lock().await;
        if let Some((at, known)) = *last
            && self.clock.now().saturating_since(at) < FRESH
        {
            return known;
        }
        let known = self.ask_siblings(limit).await;
        *last = Some((self.clock.now(), known));
        known
    }

    async fn ask_siblings(&self, limit: Duration) -> Option<bool> {
        let listed = self.replicas.current();
        let mut asked: FuturesUnordered<_> = listed
            .iter()
            .map(|replica| self.ask_standing(*replica, limit))
            .collect();
        let mut reached = None;
        while let Some(sibling) = asked.next().await {
            match sibling {
                Sibling::None => {}
                Sibling::Reaches(true) => return Some(true),
                Sibling::Reaches(false) => reached = reached.or(Some(false)),
                Sibling::Silent => reached = Some(true),
            }
        }
        reached
    }

    async fn ask_standing(&self, replica: SocketAddr, limit: Duration) -> Sibling {
        let Ok(message) = self.exchange.seal(Content::Standing) else {
            return Sibling::Silent;
        };
        let outcome = timeout(limit, self.exchange.send(replica, &message)).await;
        self.note_answer(replica, outcome.as_ref().ok());
        match outcome {
            Ok(Ok(answer)) if answer.process == self.exchange.process() => Sibling::None,
            Ok(Ok(answer)) => Sibling::Reaches(answer.reaches_storage == Some(true)),
            Ok(Err(ExchangeError::Refused)) => Sibling::None,
            Ok(Err(ExchangeError::Failed(_))) | Err(_) => self.silent(replica),
        }
    }

    fn silent(&self, replica: SocketAddr) -> Sibling {
        let unanswered = self
            .unanswered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let since = unanswered.0.get(&replica);
        let silent_for = since.map_or(Duration::ZERO, |since| {
            self.clock.now().saturating_since(*since)
        });
        if silent_for < COUNTS_WITHOUT_ANSWER {
            Sibling::Silent
        } else {
            Sibling::Reaches(false)
        }
    }
}
