//! Storage whose calls wait until they are decided. A version is the hash of a body, as an S3 ETag
//! is.

use core::ops::Range;
use core::time::Duration;
use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use tokio::sync::oneshot;

use crate::storage::{
    ByteStream, Entry, Key, Object, ObjectWriter, Page, Prefix, Storage, StorageError,
    StorageResult, Version,
};

/// How much may go wrong in one run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    /// Writes that apply though the answer is a failure, that apply later, or that apply twice.
    pub(super) writes: u32,
    /// The keys that are met by them.
    pub(super) under: &'static str,
    /// Only writes that apply later, if at all.
    pub(super) late_only: bool,
}

impl Faults {
    pub(super) const NONE: Self = Self::of(0, "");

    pub(super) const fn of(writes: u32, under: &'static str) -> Self {
        Self {
            writes,
            under,
            late_only: false,
        }
    }
}

/// A storage, shared by the actors of one run.
#[derive(Clone)]
pub(super) struct Model(Arc<Mutex<State>>);

impl Default for Model {
    fn default() -> Self {
        let (objects, history, pending, late) = Default::default();
        let faults = Faults::NONE;
        let state = State {
            objects,
            history,
            pending,
            late,
            faults,
            decided: false,
            activity: 0,
        };
        Self(Arc::new(Mutex::new(state)))
    }
}

struct State {
    objects: BTreeMap<String, Bytes>,
    /// Bodies in the order in which they came to be there.
    history: Vec<(String, Bytes)>,
    pending: Vec<Pending>,
    late: Vec<Call>,
    faults: Faults,
    /// Whether calls wait for a decision.
    decided: bool,
    activity: u64,
}

struct Pending {
    call: Call,
    reply: oneshot::Sender<Reply>,
}

#[derive(Clone, Debug)]
enum Call {
    Create(String, Bytes),
    Swap(String, Version, Bytes),
    Read(String),
    List(String, Option<String>, usize),
    Delete(String),
    /// Not a call of storage: a point in an actor.
    Point(&'static str),
}

enum Reply {
    Written(Result<(), ()>),
    Object(Option<Bytes>),
    Page(Page),
    Done,
    Failed,
}

/// What may happen next.
#[derive(Clone, Debug)]
pub(super) enum Move {
    /// A call is done, and answered.
    Perform(usize),
    /// A write is done; the answer is lost.
    Unheard(usize),
    /// A write is given up, and may apply later.
    Late(usize),
    /// A write is done and answered, and may be done again later.
    Twice(usize),
    /// A late write applies.
    Apply(usize),
    /// Late writes never come.
    Stop,
}

fn version(body: &[u8]) -> Version {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    Version::new(hasher.finish().to_string())
}

impl Call {
    const fn is_conditional_write(&self) -> bool {
        matches!(self, Self::Create(..) | Self::Swap(..))
    }

    fn meets(&self, faults: Faults) -> bool {
        match self {
            Self::Create(key, _) | Self::Swap(key, ..) => {
                faults.writes > 0 && key.starts_with(faults.under)
            }
            _ => false,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Create(key, _) => format!("create {key}"),
            Self::Swap(key, ..) => format!("swap {key}"),
            Self::Read(key) => format!("read {key}"),
            Self::List(prefix, ..) => format!("list {prefix}"),
            Self::Delete(key) => format!("delete {key}"),
            Self::Point(name) => (*name).to_owned(),
        }
    }

    /// The call and the kind of its key, without what differs from run to run.
    fn kind(&self) -> String {
        let described = self.describe();
        described.split('/').next().unwrap_or_default().to_owned()
    }

    /// What only one actor ever touches may happen at once: no order of it matters.
    fn is_private(&self) -> bool {
        match self {
            Self::Create(key, _) | Self::Read(key) => key.starts_with("seg/"),
            _ => false,
        }
    }
}

impl State {
    fn perform(&mut self, call: &Call) -> Reply {
        match call {
            Call::Create(key, body) => {
                if self.objects.contains_key(key) {
                    return Reply::Written(Err(()));
                }
                self.put(key, body);
                Reply::Written(Ok(()))
            }
            Call::Swap(key, seen, body) => {
                if self
                    .objects
                    .get(key)
                    .map(|present| version(present))
                    .as_ref()
                    != Some(seen)
                {
                    return Reply::Written(Err(()));
                }
                self.put(key, body);
                Reply::Written(Ok(()))
            }
            Call::Read(key) => Reply::Object(self.objects.get(key).cloned()),
            Call::List(prefix, after, limit) => {
                Reply::Page(self.page(prefix, after.as_deref(), *limit))
            }
            Call::Delete(key) => {
                self.objects.remove(key);
                Reply::Done
            }
            Call::Point(_) => Reply::Done,
        }
    }

    fn put(&mut self, key: &str, body: &Bytes) {
        self.objects.insert(key.to_owned(), body.clone());
        self.history.push((key.to_owned(), body.clone()));
    }

    fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        let mut found = self.objects.iter().filter(|(key, _)| {
            key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after)
        });
        let entries = found.by_ref().take(limit);
        let entry = |(key, body): (&String, &Bytes)| Entry {
            key: key.parse().expect("a key"),
            size: body.len() as u64,
        };
        let entries = entries.map(entry).collect();
        Page {
            entries,
            more: found.next().is_some(),
        }
    }
}

impl Model {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while it is locked")
    }

    /// From now on calls wait.
    pub(super) fn begin(&self, faults: Faults) {
        let mut state = self.lock();
        (state.decided, state.faults) = (true, faults);
        state.history.clear();
    }

    pub(super) fn activity(&self) -> u64 {
        self.lock().activity
    }

    /// Bodies that came to be at a key, in their order.
    pub(super) fn history(&self, key: &str) -> Vec<Bytes> {
        let state = self.lock();
        state
            .history
            .iter()
            .filter(|(at, _)| at == key)
            .map(|(_, body)| body.clone())
            .collect()
    }

    /// The objects under a prefix.
    pub(super) fn objects(&self, prefix: &str) -> Vec<(Key, Bytes)> {
        let state = self.lock();
        let found = state
            .objects
            .iter()
            .filter(|(key, _)| key.starts_with(prefix));
        found
            .map(|(key, body)| (key.parse().expect("a key"), body.clone()))
            .collect()
    }

    /// A point at which an actor waits for its turn.
    pub(super) async fn point(&self, name: &'static str) {
        self.ask(Call::Point(name)).await;
    }

    /// Acts until it is done, or its replica dies: at any moment. What it had asked of storage may
    /// still come about.
    pub(super) async fn mortal(&self, acting: impl Future<Output = ()>) {
        tokio::select! {
            () = acting => {}
            () = self.point("its replica dies") => {}
        }
    }

    async fn ask(&self, call: Call) -> Reply {
        let answer = {
            let mut state = self.lock();
            state.activity += 1;
            if !state.decided {
                return state.perform(&call);
            }
            let (reply, answer) = oneshot::channel();
            state.pending.push(Pending { call, reply });
            answer
        };
        match answer.await {
            Ok(reply) => reply,
            // The run is over.
            Err(_) => core::future::pending().await,
        }
    }

    /// All that may happen now.
    pub(super) fn moves(&self) -> Vec<Move> {
        let mut state = self.lock();
        state
            .pending
            .retain(|pending| pending.call.is_conditional_write() || !pending.reply.is_closed());
        // Who wakes first is no decision of ours, and neither is what a nonce sorts before: calls
        // of one kind stay in the order in which they came.
        state
            .pending
            .sort_by_cached_key(|pending| pending.call.kind());
        if let Some(private) = state
            .pending
            .iter()
            .position(|pending| pending.call.is_private())
        {
            return vec![Move::Perform(private)];
        }
        let mut moves = Vec::new();
        for (index, pending) in state.pending.iter().enumerate() {
            if pending.call.meets(state.faults) {
                moves.push(Move::Late(index));
                if !state.faults.late_only {
                    moves.extend([Move::Unheard(index), Move::Twice(index)]);
                }
            }
            moves.push(Move::Perform(index));
        }
        let waiting = !moves.is_empty();
        moves.extend((0..state.late.len()).map(Move::Apply));
        if !waiting && !moves.is_empty() {
            moves.push(Move::Stop);
        }
        moves
    }

    pub(super) fn describe(&self, step: &Move) -> String {
        let state = self.lock();
        let pending = |index: &usize| state.pending[*index].call.describe();
        match step {
            Move::Perform(index) => pending(index),
            Move::Unheard(index) => format!("{}; the answer is lost", pending(index)),
            Move::Late(index) => format!("{}: given up, it may come later", pending(index)),
            Move::Twice(index) => format!("{}; it may come again", pending(index)),
            Move::Apply(index) => format!("the late {}", state.late[*index].describe()),
            Move::Stop => "nothing late comes".to_owned(),
        }
    }

    pub(super) fn perform(&self, step: &Move) {
        let mut state = self.lock();
        state.activity += 1;
        let (index, reply) = match step {
            Move::Stop => return,
            Move::Apply(index) => {
                let call = state.late.remove(*index);
                state.perform(&call);
                return;
            }
            Move::Perform(index) => {
                let call = state.pending[*index].call.clone();
                (*index, state.perform(&call))
            }
            Move::Unheard(index) => {
                state.faults.writes -= 1;
                let call = state.pending[*index].call.clone();
                state.perform(&call);
                (*index, Reply::Failed)
            }
            Move::Late(index) => {
                state.faults.writes -= 1;
                let call = state.pending[*index].call.clone();
                state.late.push(call);
                (*index, Reply::Failed)
            }
            Move::Twice(index) => {
                state.faults.writes -= 1;
                let call = state.pending[*index].call.clone();
                let reply = state.perform(&call);
                state.late.push(call);
                (*index, reply)
            }
        };
        // Who asked may have crashed.
        let _ = state.pending.remove(index).reply.send(reply);
    }

    async fn write_if(&self, call: Call, key: &Key, body: &[u8]) -> StorageResult<Version> {
        match self.ask(call).await {
            Reply::Written(Ok(())) => Ok(version(body)),
            Reply::Written(Err(())) => Err(StorageError::conflict("write object", key)),
            _ => Err(StorageError::unavailable(
                "write object",
                key,
                "a fault of the model",
            )),
        }
    }
}

impl core::fmt::Debug for Model {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Model")
    }
}

#[async_trait]
impl Storage for Model {
    async fn create(&self, key: &Key, body: Bytes) -> StorageResult<Version> {
        let call = Call::Create(key.to_string(), body.clone());
        self.write_if(call, key, &body).await
    }

    async fn swap(&self, key: &Key, seen: &Version, body: Bytes) -> StorageResult<Version> {
        let call = Call::Swap(key.to_string(), seen.clone(), body.clone());
        self.write_if(call, key, &body).await
    }

    async fn read(&self, key: &Key) -> StorageResult<Option<Object>> {
        let Reply::Object(found) = self.ask(Call::Read(key.to_string())).await else {
            return Ok(None);
        };
        Ok(found.map(|body| Object {
            version: version(&body),
            body,
        }))
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> StorageResult<ByteStream> {
        let object = self
            .read(key)
            .await?
            .ok_or_else(|| StorageError::missing("read range", key))?;
        let bytes = object.body.slice(range.start as usize..range.end as usize);
        Ok(stream::once(async move { Ok(bytes) }).boxed())
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> StorageResult<Page> {
        let call = Call::List(prefix.to_string(), after.map(Key::to_string), limit);
        let Reply::Page(page) = self.ask(call).await else {
            return Ok(Page::default());
        };
        Ok(page)
    }

    async fn begin_write(&self, key: &Key) -> StorageResult<Box<dyn ObjectWriter>> {
        Ok(Box::new(Writer {
            model: self.clone(),
            key: key.clone(),
            bytes: BytesMut::new(),
        }))
    }

    async fn delete(&self, key: &Key) -> StorageResult<()> {
        self.ask(Call::Delete(key.to_string())).await;
        Ok(())
    }

    async fn presigned_get(&self, _: &Key, _: Duration) -> StorageResult<Option<String>> {
        Ok(None)
    }

    fn is_remote(&self) -> bool {
        false
    }
}

struct Writer {
    model: Model,
    key: Key,
    bytes: BytesMut,
}

#[async_trait]
impl ObjectWriter for Writer {
    async fn write(&mut self, bytes: Bytes) -> StorageResult<()> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> StorageResult<()> {
        let body = self.bytes.freeze();
        self.model.create(&self.key, body).await.map(drop)
    }
}
