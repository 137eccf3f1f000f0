//! A model of storage whose calls wait until the explorer performs them. A version is a hash of the
//! body, like an S3 `ETag`.

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

/// The faults that may occur in one run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    /// Number of faulty writes. Such a write applies although it fails, applies later, or applies
    /// twice.
    pub(super) writes: u32,
    /// The prefix of the keys whose writes may be faulty.
    pub(super) prefix: &'static str,
    /// Faulty writes only apply later, or never.
    pub(super) late_only: bool,
}

impl Faults {
    pub(super) const NONE: Self = Self::of(0, "");

    pub(super) const fn of(writes: u32, prefix: &'static str) -> Self {
        Self {
            writes,
            prefix,
            late_only: false,
        }
    }
}

/// A model of storage, shared by the actors of one run.
#[derive(Clone)]
pub(super) struct ModelStorage(Arc<Mutex<State>>);

impl Default for ModelStorage {
    fn default() -> Self {
        let state = State {
            objects: BTreeMap::new(),
            history: Vec::new(),
            pending: Vec::new(),
            late: Vec::new(),
            faults: Faults::NONE,
            is_exploring: false,
            activity: 0,
        };
        Self(Arc::new(Mutex::new(state)))
    }
}

struct State {
    objects: BTreeMap<String, Bytes>,
    /// All applied writes, in order.
    history: Vec<(String, Bytes)>,
    pending: Vec<Pending>,
    /// Writes that failed for their caller and may still apply.
    late: Vec<Call>,
    faults: Faults,
    /// Whether calls wait for the explorer. Before that, calls are performed at once.
    is_exploring: bool,
    /// Counts calls and steps, to detect when all actors wait.
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
    Remove(String, Version),
    /// Not a storage call: an actor waits until the explorer lets it continue.
    Pause(&'static str),
}

enum Reply {
    Written(Result<(), ()>),
    Object(Option<Bytes>),
    Page(Page),
    Done,
    Failed,
}

/// A step that the explorer may choose next.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Performs a call and sends its response.
    Perform(usize),
    /// Performs a write and loses its response.
    LoseResponse(usize),
    /// Fails a write, which may apply later.
    Delay(usize),
    /// Performs a write and sends its response; the write may apply once more later.
    Duplicate(usize),
    /// Applies a late write.
    ApplyLate(usize),
    /// Ends the run: the late writes never apply.
    Stop,
}

fn version(body: &[u8]) -> Version {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    Version::new(hasher.finish().to_string())
}

impl Call {
    const fn is_conditional_write(&self) -> bool {
        matches!(self, Self::Create(..) | Self::Swap(..) | Self::Remove(..))
    }

    fn may_fail(&self, faults: Faults) -> bool {
        match self {
            Self::Create(key, _) | Self::Swap(key, ..) | Self::Remove(key, _) => {
                faults.writes > 0 && key.starts_with(faults.prefix)
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
            Self::Remove(key, _) => format!("remove {key}"),
            Self::Pause(name) => (*name).to_owned(),
        }
    }

    /// The call and the kind of its key, which are the same in each run.
    fn kind(&self) -> String {
        let described = self.describe();
        described.split('/').next().unwrap_or_default().to_owned()
    }

    /// Whether only one actor ever uses the key. The order of such calls does not matter, so they
    /// are performed at once.
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
                if !self.has_version(key, seen) {
                    return Reply::Written(Err(()));
                }
                self.put(key, body);
                Reply::Written(Ok(()))
            }
            Call::Remove(key, seen) => {
                if !self.has_version(key, seen) {
                    return Reply::Written(Err(()));
                }
                self.objects.remove(key);
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
            Call::Pause(_) => Reply::Done,
        }
    }

    fn has_version(&self, key: &str, seen: &Version) -> bool {
        let present = self.objects.get(key);
        present.is_some_and(|body| version(body) == *seen)
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
            version: Some(version(body)),
            modified: None,
        };
        let entries = entries.map(entry).collect();
        Page {
            entries,
            more: found.next().is_some(),
        }
    }
}

impl ModelStorage {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while it is locked")
    }

    /// Starts the exploration: from now on calls wait for the explorer.
    pub(super) fn start(&self, faults: Faults) {
        let mut state = self.lock();
        state.is_exploring = true;
        state.faults = faults;
        state.history.clear();
    }

    pub(super) fn activity(&self) -> u64 {
        self.lock().activity
    }

    /// All bodies that were written to a key, in order.
    pub(super) fn history(&self, key: &str) -> Vec<Bytes> {
        let state = self.lock();
        state
            .history
            .iter()
            .filter(|(at, _)| at == key)
            .map(|(_, body)| body.clone())
            .collect()
    }

    /// All objects under a prefix.
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

    /// Pauses an actor until the explorer lets it continue.
    pub(super) async fn pause(&self, name: &'static str) {
        self.call(Call::Pause(name)).await;
    }

    /// Runs an actor whose replica may crash at any step. Storage calls that are pending then may
    /// still apply.
    pub(super) async fn until_crash(&self, actor: impl Future<Output = ()>) {
        tokio::select! {
            () = actor => {}
            () = self.pause("its replica crashes") => {}
        }
    }

    async fn call(&self, call: Call) -> Reply {
        let answer = {
            let mut state = self.lock();
            state.activity += 1;
            if !state.is_exploring {
                return state.perform(&call);
            }
            let (reply, answer) = oneshot::channel();
            state.pending.push(Pending { call, reply });
            answer
        };
        match answer.await {
            Ok(reply) => reply,
            // The run has ended.
            Err(_) => core::future::pending().await,
        }
    }

    /// All steps that are possible now.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut state = self.lock();
        state
            .pending
            .retain(|pending| pending.call.is_conditional_write() || !pending.reply.is_closed());
        // The order in which the runtime wakes actors, and the order of random nonces, must not
        // affect the choices. So calls are sorted by kind, and calls of one kind keep their order.
        state
            .pending
            .sort_by_cached_key(|pending| pending.call.kind());
        if let Some(private) = state
            .pending
            .iter()
            .position(|pending| pending.call.is_private())
        {
            return vec![Step::Perform(private)];
        }
        let mut steps = Vec::new();
        for (index, pending) in state.pending.iter().enumerate() {
            if pending.call.may_fail(state.faults) {
                steps.push(Step::Delay(index));
                if !state.faults.late_only {
                    steps.extend([Step::LoseResponse(index), Step::Duplicate(index)]);
                }
            }
            steps.push(Step::Perform(index));
        }
        let has_pending = !steps.is_empty();
        steps.extend((0..state.late.len()).map(Step::ApplyLate));
        if !has_pending && !steps.is_empty() {
            steps.push(Step::Stop);
        }
        steps
    }

    pub(super) fn describe(&self, step: &Step) -> String {
        let state = self.lock();
        let pending = |index: &usize| state.pending[*index].call.describe();
        match step {
            Step::Perform(index) => pending(index),
            Step::LoseResponse(index) => format!("{}; its response is lost", pending(index)),
            Step::Delay(index) => format!("{} fails and may apply later", pending(index)),
            Step::Duplicate(index) => format!("{}; it may apply again later", pending(index)),
            Step::ApplyLate(index) => format!("late {}", state.late[*index].describe()),
            Step::Stop => "late writes never apply".to_owned(),
        }
    }

    pub(super) fn perform(&self, step: &Step) {
        let mut state = self.lock();
        state.activity += 1;
        let (index, reply) = match step {
            Step::Stop => return,
            Step::ApplyLate(index) => {
                let call = state.late.remove(*index);
                state.perform(&call);
                return;
            }
            Step::Perform(index) => {
                let call = state.pending[*index].call.clone();
                (*index, state.perform(&call))
            }
            Step::LoseResponse(index) => {
                state.faults.writes -= 1;
                let call = state.pending[*index].call.clone();
                state.perform(&call);
                (*index, Reply::Failed)
            }
            Step::Delay(index) => {
                state.faults.writes -= 1;
                let call = state.pending[*index].call.clone();
                state.late.push(call);
                (*index, Reply::Failed)
            }
            Step::Duplicate(index) => {
                state.faults.writes -= 1;
                let call = state.pending[*index].call.clone();
                let reply = state.perform(&call);
                state.late.push(call);
                (*index, reply)
            }
        };
        // The caller may have crashed.
        let _ = state.pending.remove(index).reply.send(reply);
    }

    async fn write_if(&self, call: Call, key: &Key) -> StorageResult<()> {
        match self.call(call).await {
            Reply::Written(Ok(())) => Ok(()),
            Reply::Written(Err(())) => Err(StorageError::conflict("write object", key)),
            _ => Err(StorageError::unavailable(
                "write object",
                key,
                "injected fault",
            )),
        }
    }
}

impl core::fmt::Debug for ModelStorage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("ModelStorage")
    }
}

#[async_trait]
impl Storage for ModelStorage {
    async fn create(&self, key: &Key, body: Bytes) -> StorageResult<Version> {
        let call = Call::Create(key.to_string(), body.clone());
        self.write_if(call, key).await?;
        Ok(version(&body))
    }

    async fn swap(&self, key: &Key, seen: &Version, body: Bytes) -> StorageResult<Version> {
        let call = Call::Swap(key.to_string(), seen.clone(), body.clone());
        self.write_if(call, key).await?;
        Ok(version(&body))
    }

    async fn read(&self, key: &Key) -> StorageResult<Option<Object>> {
        let Reply::Object(found) = self.call(Call::Read(key.to_string())).await else {
            return Ok(None);
        };
        Ok(found.map(|body| Object {
            version: version(&body),
            body,
            modified: None,
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
        let Reply::Page(page) = self.call(call).await else {
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
        self.call(Call::Delete(key.to_string())).await;
        Ok(())
    }

    async fn remove(&self, key: &Key, seen: &Version) -> StorageResult<()> {
        let call = Call::Remove(key.to_string(), seen.clone());
        self.write_if(call, key).await
    }

    async fn presigned_get(&self, _: &Key, _: Duration) -> StorageResult<Option<String>> {
        Ok(None)
    }

    fn is_remote(&self) -> bool {
        false
    }
}

struct Writer {
    model: ModelStorage,
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
