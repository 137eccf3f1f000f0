//! A region whose facts are asked for together: questions of many entries at one time become one
//! request. So merging thousands of entries needs a few connections, and a request for about thirty
//! entries.
//!
//! ```text
//! merge ── facts ──▶ queue ──▶ at most a few requests ──▶ each question gets its values
//! merge ── facts ──▶
//! ```
//! A question fails only by an answer to itself: a record that the region cannot read fails its
//! request, and the other questions of it are asked again, each alone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use axum::body::Body;
use flotilla_common::digest::Digest;
use flotilla_common::name::{RegionName, RepositoryName};
use flotilla_common::wire::region::{
    EntryId, Fact, FactKey, FactKind, JournalPage, KeysPage, MAX_FACTS, RegionState,
    StorageStanding, TakeAnswer, TakeRequest,
};
use http::{Request, Response};
use tokio::sync::oneshot;

use super::source::{Source, SourceBlob, SourceError};

/// Requests for facts at one time. Questions that come meanwhile are asked together by the next.
const REQUESTS_AT_ONCE: usize = 4;

/// A region, asked for facts in batches.
#[derive(Debug)]
pub(super) struct FactBatches(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    source: Arc<dyn Source>,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    questions: VecDeque<Question>,
    /// Tasks that ask.
    tasks: usize,
}

/// Keys that a caller waits for: at most [`MAX_FACTS`], at least one.
#[derive(Debug)]
struct Question {
    keys: Vec<FactKey>,
    answer: oneshot::Sender<Result<Vec<Fact>, SourceError>>,
}

impl Question {
    fn answer(self, answer: Result<Vec<Fact>, SourceError>) {
        // A caller that has gone needs none.
        let _gone = self.answer.send(answer);
    }
}

impl FactBatches {
    pub(super) fn new(source: Arc<dyn Source>) -> Self {
        Self(Arc::new(Shared {
            source,
            queue: Mutex::default(),
        }))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks until no question waits.
    async fn ask_all(self: Arc<Self>) {
        while let Some(batch) = self.next_batch() {
            self.ask(batch).await;
        }
    }

    /// The questions of the next request; `None` ends the task.
    fn next_batch(&self) -> Option<Vec<Question>> {
        let mut queue = self.lock();
        let mut batch = Vec::new();
        let mut len = 0;
        while let Some(question) = queue.questions.front()
            && len + question.keys.len() <= MAX_FACTS
        {
            len += question.keys.len();
            batch.extend(queue.questions.pop_front());
        }
        if batch.is_empty() {
            queue.tasks -= 1;
            return None;
        }
        Some(batch)
    }

    async fn ask(&self, batch: Vec<Question>) {
        let keys = batch.iter().flat_map(|question| &question.keys);
        let keys: Vec<FactKey> = keys.cloned().collect();
        match self.source.facts(&keys).await {
            Ok(facts) => self.distribute(batch, facts),
            Err(error) => self.ask_each(batch, error).await,
        }
    }

    /// Gives each question its values. A region answers the first keys of a request, so those of
    /// the last questions may be missing: they are asked again.
    fn distribute(&self, batch: Vec<Question>, facts: Vec<Fact>) {
        let is_empty = facts.is_empty();
        let mut facts = facts.into_iter();
        let mut unanswered = Vec::new();
        for question in batch {
            let of_question: Vec<Fact> = facts.by_ref().take(question.keys.len()).collect();
            if of_question.is_empty() && !is_empty {
                unanswered.push(question);
            } else {
                question.answer(Ok(of_question));
            }
        }
        let mut queue = self.lock();
        for question in unanswered.into_iter().rev() {
            queue.questions.push_front(question);
        }
    }

    /// Asks the questions of a failed request one by one, unless the region is out.
    async fn ask_each(&self, batch: Vec<Question>, error: SourceError) {
        let is_answering = async {
            let state = self.source.state().await;
            state.is_ok_and(|state| state.standing != StorageStanding::Out)
        };
        let asks_again = batch.len() > 1 && is_answering.await;
        for question in batch {
            let answer = match asks_again {
                true => self.source.facts(&question.keys).await,
                false => Err(error.clone()),
            };
            question.answer(answer);
        }
    }
}

#[async_trait]
impl Source for FactBatches {
    fn region(&self) -> &RegionName {
        self.0.source.region()
    }

    async fn state(&self) -> Result<RegionState, SourceError> {
        self.0.source.state().await
    }

    async fn journal(
        &self,
        after: Option<EntryId>,
        limit: usize,
    ) -> Result<JournalPage, SourceError> {
        self.0.source.journal(after, limit).await
    }

    async fn done(&self, entries: Vec<EntryId>, sweep: Option<u128>) -> Result<(), SourceError> {
        self.0.source.done(entries, sweep).await
    }

    async fn facts(&self, keys: &[FactKey]) -> Result<Vec<Fact>, SourceError> {
        let keys = &keys[..keys.len().min(MAX_FACTS)];
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let (answer, answered) = oneshot::channel();
        let question = Question {
            keys: keys.to_vec(),
            answer,
        };
        let is_task_needed = {
            let mut queue = self.0.lock();
            queue.questions.push_back(question);
            let is_task_needed = queue.tasks < REQUESTS_AT_ONCE;
            queue.tasks += usize::from(is_task_needed);
            is_task_needed
        };
        if is_task_needed {
            tokio::spawn(Arc::clone(&self.0).ask_all());
        }
        answered.await.unwrap_or_else(|_| {
            Err(SourceError {
                region: self.region().clone(),
                reason: "the question was given up".to_owned(),
            })
        })
    }

    async fn keys(
        &self,
        kind: FactKind,
        after: Option<&FactKey>,
        limit: usize,
    ) -> Result<KeysPage, SourceError> {
        self.0.source.keys(kind, after, limit).await
    }

    async fn take(&self, request: TakeRequest) -> Result<TakeAnswer, SourceError> {
        self.0.source.take(request).await
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, SourceError> {
        self.0.source.send(request).await
    }

    async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
    ) -> Result<Option<SourceBlob>, SourceError> {
        self.0.source.blob(repository, digest, offset).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use core::sync::atomic::Ordering;

    use futures_util::future::join_all;

    use super::super::source::readable_facts;
    use super::super::test_regions::{TestRegion, index_of, tag_key};
    use super::*;

    const QUESTIONS: usize = 100;

    /// A hundred tags, of which each is asked for alone; one cannot be read.
    #[tokio::test]
    async fn questions_at_one_time_share_requests() {
        let (eu, us) = (
            TestRegion::start("eu-1").await,
            TestRegion::start("us-1").await,
        );
        let names: Vec<String> = (0..QUESTIONS).map(|number| format!("v{number}")).collect();
        let manifest = index_of(&[]);
        for name in &names {
            eu.push(&manifest, &[name.as_str()], &[&us]).await;
        }
        let source = eu.source_of(&us);
        let batches = FactBatches::new(Arc::clone(&source) as Arc<dyn Source>);
        let keys: Vec<FactKey> = names.iter().map(|name| tag_key(name)).collect();
        let ask = || {
            let questions = keys.iter().map(core::slice::from_ref);
            join_all(questions.map(|keys| readable_facts(&batches, keys)))
        };
        for (key, answer) in keys.iter().zip(ask().await) {
            let fact = answer.unwrap().remove(0).unwrap();
            assert_eq!(fact, eu.registry.fact(key).await.unwrap());
        }
        let asked = source.faults.fact_calls.load(Ordering::Relaxed);
        assert!(asked <= 10, "{asked} requests");

        eu.corrupt(&keys[7]).await;
        for (number, answer) in ask().await.into_iter().enumerate() {
            let fact = answer.unwrap().remove(0);
            assert_eq!(fact.is_ok(), number != 7, "{number}");
        }
    }
}
