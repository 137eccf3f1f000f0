//! Rotation without restart: files of identities are looked at now and then, and taken up when they
//! change.
//!
//! ```text
//! every 2 s, and at once on SIGHUP:   the same files as before?  nothing
//!                                     changed and good           in use from the next connection on
//!                                     changed and bad            look again: a pair may be half written
//!                                     bad for 5 s, or SIGHUP     one ERROR with its cure; the old one stays in use
//! ```
//!
//! It must never leave a service without an identity, and never complain twice of the same files.

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
use super::live::Validity;
use super::seal_keys::load_trusted_keys;
use super::tls::Identity;
use crate::clock::Clock;
use crate::shutdown::Shutdown;

const DAY_S: u64 = 24 * 60 * 60;
/// Who has at most this long left is reminded, however long the certificate was good for.
const REMINDER_S: u64 = 30 * DAY_S;
/// Least time between two reminders.
const REMINDER_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// How often files are looked at, and how long they may be in the middle of a change.
#[derive(Clone, Copy, Debug)]
pub struct ReloadTiming {
    /// Between two looks. Default 2 s.
    pub poll: Duration,
    /// How long files may be unusable before it is said. Default 5 s.
    pub patience: Duration,
}

impl Default for ReloadTiming {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(2),
            patience: Duration::from_secs(5),
        }
    }
}

/// Something that is read from files, and read again when they change.
pub trait Reloadable: Send + 'static {
    /// The files; none for what never changes.
    fn files(&self) -> Vec<PathBuf>;

    /// Reads them again and takes them up.
    ///
    /// # Errors
    /// What is wrong with them; what was in use stays in use.
    fn reload(&self) -> Result<(), IdentityError>;

    /// A few words for the log.
    fn describe(&self) -> String;

    /// What an operator must do soon, if anything.
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
            .saturating_sub(Clock::system().unix_seconds());
        format!(
            "TLS identity, whose certificate is good for {} days and {} h",
            left / DAY_S,
            left % DAY_S / 3600
        )
    }

    fn reminder(&self) -> Option<String> {
        expiry_reminder(self.validity(), Clock::system().unix_seconds())
    }
}

/// Reminds in the last third of a certificate's life, but not before its last 30 days.
pub(super) fn expiry_reminder(validity: Validity, now_unix_s: u64) -> Option<String> {
    let life = validity.ends_unix_s.saturating_sub(validity.begins_unix_s);
    let left = validity.ends_unix_s.saturating_sub(now_unix_s);
    if left > REMINDER_S.min(life / 3) {
        return None;
    }
    let cure =
        "issue a new one (flotilla pki issue --renew) and replace the files; no restart is needed";
    Some(match left {
        0 => format!("the certificate is over and nobody accepts it: {cure}"),
        left => {
            format!(
                "the certificate is over in {} days and {} h: {cure}",
                left / DAY_S,
                left % DAY_S / 3600
            )
        }
    })
}

/// The origin keys that are trusted now. Clones share them, also after a reload.
#[derive(Clone, Debug)]
pub struct LiveKeys {
    current: Arc<ArcSwap<TrustedKeys>>,
    file: Option<PathBuf>,
}

impl LiveKeys {
    /// The keys in a file.
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

    /// The keys of this moment.
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

/// Follows the files of `subject`, if it has any, until the shutdown.
pub fn reload_on_change(subject: impl Reloadable, timing: ReloadTiming, shutdown: &Shutdown) {
    if subject.files().is_empty() {
        return;
    }
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => Some(hangup),
        Err(error) => {
            tracing::warn!(%error, "SIGHUP cannot be listened to: changed files are seen at the next look");
            None
        }
    };
    let mut watch = Watch::new(subject, timing.patience);
    let stop = shutdown.clone();
    shutdown.spawn(async move {
        let mut ticks = tokio::time::interval(timing.poll);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                () = stop.wait() => return,
                _ = ticks.tick() => false,
                () = hung_up(&mut hangup) => true,
            };
            let looked = tokio::task::spawn_blocking(move || {
                let seen = watch.look(asked, Instant::now());
                (watch, seen)
            });
            // Only fails when it panicked, or with the runtime.
            let Ok((again, seen)) = looked.await else {
                return;
            };
            watch = again;
            watch.tell(&seen, asked);
        }
    });
}

async fn hung_up(hangup: &mut Option<Signal>) {
    if let Some(signal) = hangup
        && signal.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

/// What makes a changed file a different one: device, inode, length, and the times of content and
/// of inode, since rights may be what was wrong. `None` for a file that is not there.
type Stamp = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

fn stamp(path: &PathBuf) -> Stamp {
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

/// What one look found.
#[derive(Debug)]
pub(super) enum Seen {
    Unchanged,
    Reloaded,
    /// Bad, and perhaps in the middle of a change.
    Unsettled,
    /// Bad, and said for the first time.
    Bad(IdentityError),
}

/// The memory of one subject's watch.
#[derive(Debug)]
pub(super) struct Watch<R> {
    subject: R,
    patience: Duration,
    /// The files as they were when they were last taken up, or complained of.
    settled: Vec<Stamp>,
    bad_since: Option<Instant>,
    reminded_at: Option<Instant>,
}

impl<R: Reloadable> Watch<R> {
    pub(super) fn new(subject: R, patience: Duration) -> Self {
        // They may have changed since they were read: the first look reads them again.
        Self {
            subject,
            patience,
            settled: Vec::new(),
            bad_since: None,
            reminded_at: None,
        }
    }

    pub(super) fn look(&mut self, asked: bool, now: Instant) -> Seen {
        // Before they are read: what changes meanwhile is seen at the next look.
        let stamps: Vec<_> = self.subject.files().iter().map(stamp).collect();
        if stamps == self.settled && !asked {
            return Seen::Unchanged;
        }
        let is_first = self.settled.is_empty();
        let Err(error) = self.subject.reload() else {
            self.bad_since = None;
            self.settled = stamps;
            return if is_first && !asked {
                Seen::Unchanged
            } else {
                Seen::Reloaded
            };
        };
        let bad_since = *self.bad_since.get_or_insert(now);
        if !asked && now.duration_since(bad_since) < self.patience {
            return Seen::Unsettled;
        }
        self.bad_since = None;
        self.settled = stamps;
        Seen::Bad(error)
    }

    fn tell(&mut self, seen: &Seen, asked: bool) {
        match seen {
            Seen::Unchanged => {}
            Seen::Reloaded => tracing::info!(now = self.subject.describe(), "files taken up again"),
            Seen::Unsettled => {
                tracing::debug!(now = self.subject.describe(), "files are being changed")
            }
            Seen::Bad(error) => {
                tracing::error!(%error, stays = self.subject.describe(), "CHANGED FILES CANNOT BE USED: what was in use stays in use");
            }
        }
        let due = self
            .reminded_at
            .is_none_or(|at| at.elapsed() >= REMINDER_INTERVAL);
        if let Some(reminder) = self.subject.reminder().filter(|_| due || asked) {
            self.reminded_at = Some(Instant::now());
            tracing::warn!("{reminder}");
        }
    }
}
