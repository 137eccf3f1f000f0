//! Reload of identity files without a restart: the files are polled, and loaded when they change.
//!
//! ```text
//! every 2 s, and at once on SIGHUP:   files unchanged          nothing
//!                                     changed and valid        used by new connections
//!                                     changed and invalid      checked again: a pair may be half written
//!                                     invalid for 5 s, SIGHUP  one error with the fix; the previous
//!                                                              identity stays in use
//! ```
//!
//! A service must never lose its identity, and the same files must never be reported twice.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use flotilla_common::seal::TrustedKeys;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use super::files::IdentityError;
use super::live_identity::Validity;
use super::seal_keys::load_trusted_keys;
use super::tls::Identity;
use crate::shutdown::Shutdown;

const DAY_S: u64 = 24 * 60 * 60;
/// A reminder is due at most this long before a certificate expires.
const REMINDER_S: u64 = 30 * DAY_S;
/// The minimum time between two reminders.
const REMINDER_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// How often files are polled, and how long a change may take.
#[derive(Clone, Copy, Debug)]
pub struct ReloadTiming {
    /// Time between two polls. Default 2 s.
    pub poll: Duration,
    /// How long files may be invalid before an error is logged. Default 5 s.
    pub settle: Duration,
}

impl Default for ReloadTiming {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(2),
            settle: Duration::from_secs(5),
        }
    }
}

/// A value that is loaded from files, and loaded again when they change.
pub trait Reloadable: Send + 'static {
    /// The files; empty for a value that never changes.
    fn files(&self) -> Vec<PathBuf>;

    /// Loads the files again.
    ///
    /// # Errors
    /// The files are not valid; the previous value stays in use.
    fn reload(&self) -> Result<(), IdentityError>;

    /// A short description for the log.
    fn describe(&self) -> String;

    /// The action that an operator must take soon, if any.
    fn reminder(&self) -> Option<String> {
        None
    }
}

impl Reloadable for Identity {
    fn files(&self) -> Vec<PathBuf> {
        let files = Self::files(self);
        files.map_or_else(Vec::new, |files| {
            vec![
                files.certificate.clone(),
                files.key.clone(),
                files.authority.clone(),
            ]
        })
    }

    fn reload(&self) -> Result<(), IdentityError> {
        Self::reload(self)
    }

    fn describe(&self) -> String {
        let left = self
            .ends_unix_s()
            .saturating_sub(self.clock().unix_seconds());
        format!(
            "TLS identity, certificate valid for {} days and {} h",
            left / DAY_S,
            left % DAY_S / 3600
        )
    }

    fn reminder(&self) -> Option<String> {
        expiry_reminder(self.validity(), self.clock().unix_seconds())
    }
}

/// A reminder in the last third of a certificate's validity, at most 30 days before its end.
pub(super) fn expiry_reminder(validity: Validity, now_unix_s: u64) -> Option<String> {
    let life = validity.ends_unix_s.saturating_sub(validity.begins_unix_s);
    let left = validity.ends_unix_s.saturating_sub(now_unix_s);
    if left > REMINDER_S.min(life / 3) {
        return None;
    }
    let fix =
        "issue a new one (flotilla pki issue --renew) and replace the files; no restart is needed";
    Some(match left {
        0 => format!("certificate expired; new connections fail: {fix}"),
        left => {
            format!(
                "certificate expires in {} days and {} h: {fix}",
                left / DAY_S,
                left % DAY_S / 3600
            )
        }
    })
}

/// The trusted origin keys. Clones share them, also after a reload.
#[derive(Clone, Debug)]
pub struct LiveKeys {
    current: Arc<ArcSwap<TrustedKeys>>,
    file: Option<PathBuf>,
}

impl LiveKeys {
    /// Loads the keys from a file.
    ///
    /// # Errors
    /// As [`load_trusted_keys`].
    pub fn load(file: &Path) -> Result<Self, IdentityError> {
        let keys = load_trusted_keys(file)?;
        Ok(Self {
            file: Some(file.to_owned()),
            ..Self::from(keys)
        })
    }

    /// The current keys.
    pub fn current(&self) -> Arc<TrustedKeys> {
        self.current.load_full()
    }
}

/// Keys that never change.
impl From<TrustedKeys> for LiveKeys {
    fn from(keys: TrustedKeys) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(keys)),
            file: None,
        }
    }
}

impl Reloadable for LiveKeys {
    fn files(&self) -> Vec<PathBuf> {
        self.file.iter().cloned().collect()
    }

    fn reload(&self) -> Result<(), IdentityError> {
        if let Some(file) = &self.file {
            self.current.store(Arc::new(load_trusted_keys(file)?));
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!("trusted origin keys: {}", self.current())
    }
}

/// Reloads `subject` when its files change, until the shutdown.
pub fn reload_on_change(subject: impl Reloadable, timing: ReloadTiming, shutdown: &Shutdown) {
    if subject.files().is_empty() {
        return;
    }
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => Some(hangup),
        Err(error) => {
            tracing::warn!(%error, "SIGHUP handler failed; changed files are noticed at the next poll");
            None
        }
    };
    let mut watch = Watch::new(subject, timing.settle);
    let stop = shutdown.clone();
    shutdown.spawn(async move {
        let mut ticks = tokio::time::interval(timing.poll);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_requested = tokio::select! {
                () = stop.wait() => return,
                _ = ticks.tick() => false,
                () = wait_for_hangup(&mut hangup) => true,
            };
            let polled = tokio::task::spawn_blocking(move || {
                let seen = watch.poll(is_requested, Instant::now());
                (watch, seen)
            });
            // Fails only after a panic, or when the runtime stops.
            let Ok((again, seen)) = polled.await else {
                return;
            };
            watch = again;
            watch.log(&seen, is_requested);
        }
    });
}

async fn wait_for_hangup(hangup: &mut Option<Signal>) {
    if let Some(signal) = hangup
        && signal.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

/// The properties by which a file has changed: device, inode, length, and the times of content and
/// inode (permissions may have been the fault). `None` for a missing file.
type FileStamp = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

fn stamp(path: &PathBuf) -> FileStamp {
    let metadata = fs::metadata(path).ok()?;
    let modified = (metadata.mtime(), metadata.mtime_nsec());
    let changed = (metadata.ctime(), metadata.ctime_nsec());
    Some((
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        modified,
        changed,
    ))
}

/// The outcome of one poll.
#[derive(Debug)]
pub(super) enum PollOutcome {
    Unchanged,
    Reloaded,
    /// Invalid, perhaps in the middle of a change.
    Settling,
    /// Invalid, and not reported before.
    Invalid(IdentityError),
}

/// The state of watching one value.
#[derive(Debug)]
pub(super) struct Watch<R> {
    subject: R,
    settle: Duration,
    /// The files as they were when they were last loaded or reported.
    settled: Vec<FileStamp>,
    invalid_since: Option<Instant>,
    reminded_at: Option<Instant>,
}

impl<R: Reloadable> Watch<R> {
    pub(super) fn new(subject: R, settle: Duration) -> Self {
        // The files may have changed since they were loaded: the first poll loads them again.
        Self {
            subject,
            settle,
            settled: Vec::new(),
            invalid_since: None,
            reminded_at: None,
        }
    }

    pub(super) fn poll(&mut self, is_requested: bool, now: Instant) -> PollOutcome {
        // Taken before the files are read, so that the next poll notices changes in between.
        let stamps: Vec<_> = self.subject.files().iter().map(stamp).collect();
        if stamps == self.settled && !is_requested {
            return PollOutcome::Unchanged;
        }
        let is_first = self.settled.is_empty();
        let Err(error) = self.subject.reload() else {
            self.invalid_since = None;
            self.settled = stamps;
            return if is_first && !is_requested {
                PollOutcome::Unchanged
            } else {
                PollOutcome::Reloaded
            };
        };
        let invalid_since = *self.invalid_since.get_or_insert(now);
        if !is_requested && now.duration_since(invalid_since) < self.settle {
            return PollOutcome::Settling;
        }
        self.invalid_since = None;
        self.settled = stamps;
        PollOutcome::Invalid(error)
    }

    fn log(&mut self, outcome: &PollOutcome, is_requested: bool) {
        match outcome {
            PollOutcome::Unchanged => {}
            PollOutcome::Reloaded => {
                tracing::info!(current = self.subject.describe(), "files reloaded")
            }
            PollOutcome::Settling => {
                tracing::debug!(
                    current = self.subject.describe(),
                    "files are not valid yet; checking again"
                )
            }
            PollOutcome::Invalid(error) => {
                tracing::error!(%error, current = self.subject.describe(), "reload failed; keeping the previous files in use");
            }
        }
        let due = self
            .reminded_at
            .is_none_or(|at| at.elapsed() >= REMINDER_INTERVAL);
        if let Some(reminder) = self.subject.reminder().filter(|_| due || is_requested) {
            self.reminded_at = Some(Instant::now());
            tracing::warn!("{reminder}");
        }
    }
}
