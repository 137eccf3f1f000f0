//! A model of storage whose calls wait until the explorer performs them. A version is a hash of the
//! body, like an S3 `ETag`.

mod interface;

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use flotilla_runtime::clock::Clock;
use tokio::sync::oneshot;

use crate::storage::{Entry, Key, Object, Page, StorageTime, Version};

/// The faults that may occur in one run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    /// Number of faulty writes. Such a write applies although it fails, applies later, or applies
    /// twice.
    pub(super) writes: u32,
    /// The prefix of the keys whose writes may be faulty, without the region.
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

/// A model of storage, shared by the actors of one run. It may hold the buckets of several regions:
/// see [`ModelStorage::of_region`].
#[derive(Clone)]
pub(super) struct ModelStorage {
    state: Arc<Mutex<State>>,
    /// Precedes all keys of this handle: empty, or a region of one letter and a slash.
    region: &'static str,
}

impl Default for ModelStorage {
    fn default() -> Self {
        let clock = Clock::tokio();
        let state = State {
            objects: BTreeMap::new(),
            modified: BTreeMap::new(),
            clock,
            start_ms: (clock.unix_nanos() - clock.now().as_nanos()) / 1_000_000,
            history: Vec::new(),
            pending: Vec::new(),
            late: Vec::new(),
            faults: Faults::NONE,
            private: &[],
            is_exploring: false,
            activity: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            region: "",
        }
    }
}

struct State {
    objects: BTreeMap<String, Bytes>,
    /// When each key was written, by the storage's clock: tokio's, and the wall clock at the start.
    modified: BTreeMap<String, StorageTime>,
    clock: Clock,
    start_ms: u64,
    /// All applied writes, in order.
    history: Vec<(String, Bytes)>,
    pending: Vec<Pending>,
    /// Writes that failed for their caller and may still apply.
    late: Vec<Call>,
    faults: Faults,
    /// Prefixes of keys that only one actor uses, with the region.
    private: &'static [&'static str],
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
    Object(Option<Object>),
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

/// A key or prefix without its region.
fn without_region(key: &str) -> &str {
    match key.as_bytes() {
        [_, b'/', ..] => &key[2..],
        _ => key,
    }
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
                faults.writes > 0 && without_region(key).starts_with(faults.prefix)
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

    /// The key, or the prefix of a listing.
    fn key(&self) -> Option<&str> {
        match self {
            Self::Create(key, _)
            | Self::Swap(key, ..)
            | Self::Read(key)
            | Self::List(key, ..)
            | Self::Delete(key)
            | Self::Remove(key, _) => Some(key),
            Self::Pause(_) => None,
        }
    }

    /// The call and the kind of its key, which are the same in each run.
    fn kind(&self) -> String {
        let described = self.describe();
        let Some(key) = self.key() else {
            return described;
        };
        let rest = without_region(key);
        let rest = rest.find('/').map_or("", |end| &rest[end..]);
        described[..described.len() - rest.len()].to_owned()
    }

    /// Whether only one actor ever uses the key. The order of such calls does not matter, so they
    /// are performed at once.
    fn is_private(&self, private: &[&str]) -> bool {
        let Some(key) = self.key() else { return false };
        match self {
            Self::Create(..) | Self::Read(_) if without_region(key).starts_with("seg/") => true,
            _ => private.iter().any(|prefix| key.starts_with(prefix)),
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
            Call::Read(key) => Reply::Object(self.object(key)),
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

    fn object(&self, key: &str) -> Option<Object> {
        let body = self.objects.get(key)?;
        Some(Object {
            version: version(body),
            body: body.clone(),
            modified: self.modified.get(key).copied(),
        })
    }

    fn put(&mut self, key: &str, body: &Bytes) {
        let now_ms = self.start_ms + self.clock.now().as_nanos() / 1_000_000;
        let modified = StorageTime::from_unix_ms(now_ms);
        self.modified.insert(key.to_owned(), modified);
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
            modified: self.modified.get(key).copied(),
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
        self.state.lock().expect("no panic while it is locked")
    }

    /// The bucket of a region, of one letter and a slash: `a/`.
    pub(super) fn of_region(&self, region: &'static str) -> Self {
        assert_eq!(without_region(region), "", "{region}");
        Self {
            state: Arc::clone(&self.state),
            region,
        }
    }

    /// Declares that only one actor uses the keys under these prefixes, region included, or that
    /// all only read them. The order of such calls does not matter, so the explorer does not vary
    /// it.
    pub(super) fn keep_private(&self, prefixes: &'static [&'static str]) {
        self.lock().private = prefixes;
    }

    /// Ends the exploration: from now on calls are performed at once.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.is_exploring = false;
        state.pending.clear();
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
        let key = format!("{}{key}", self.region);
        let state = self.lock();
        state
            .history
            .iter()
            .filter(|(at, _)| *at == key)
            .map(|(_, body)| body.clone())
            .collect()
    }

    /// All objects of the region under a prefix.
    pub(super) fn objects(&self, prefix: &str) -> Vec<(Key, Bytes)> {
        let prefix = format!("{}{prefix}", self.region);
        let state = self.lock();
        let found = state
            .objects
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix));
        found
            .map(|(key, body)| (self.without(key), body.clone()))
            .collect()
    }

    /// Sets the storage's clock to that of replicas which are created now: it has been behind all
    /// that were created earlier, before tokio's clock was advanced.
    pub(super) fn correct_clock(&self) {
        let mut state = self.lock();
        let now = state.clock.now().as_nanos();
        state.start_ms = state.clock.unix_nanos().saturating_sub(now) / 1_000_000;
    }

    /// Replaces all objects of the region, as a restored copy does.
    pub(super) fn restore(&self, copy: &[(Key, Bytes)]) {
        let mut state = self.lock();
        let region = self.region;
        state.objects.retain(|key, _| !key.starts_with(region));
        for (key, body) in copy {
            state.put(&format!("{region}{key}"), body);
        }
    }

    /// A key of this handle as it is stored.
    fn within(&self, key: &Key) -> String {
        format!("{}{key}", self.region)
    }

    /// A stored key as this handle knows it.
    fn without(&self, key: &str) -> Key {
        key[self.region.len()..].parse().expect("a key")
    }

    /// Pauses an actor until the explorer lets it continue.
    pub(super) async fn pause(&self, name: &'static str) {
        self.call(Call::Pause(name)).await;
    }

    /// Drops the writes whose actors have been cancelled: so much time passes that no storage call
    /// can last longer.
    pub(super) fn drop_abandoned_writes(&self) {
        let mut state = self.lock();
        state.pending.retain(|pending| !pending.reply.is_closed());
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
        let private = state.private;
        if let Some(private) = state
            .pending
            .iter()
            .position(|pending| pending.call.is_private(private))
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
}

impl core::fmt::Debug for ModelStorage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("ModelStorage")
    }
}
