//! The environment of the sub-machines: everything that all of them use.

use super::blobs::Blobs;
use super::config::SwarmConfig;
use super::counters::TransferCounters;
use super::io::Output;
use super::outbox::Outbox;
use super::rng::Rng;
use super::timers::Timers;
use crate::time::Time;

/// The environment while the machine handles one input.
#[derive(Debug)]
pub(super) struct Context {
    /// The time of the input.
    pub(super) now: Time,
    /// Apart, so that what changes is in few cache lines.
    pub(super) config: Box<SwarmConfig>,
    pub(super) rng: Rng,
    pub(super) outputs: Outbox,
    pub(super) timers: Timers,
    pub(super) counters: TransferCounters,
    pub(super) due: DueWork,
    pub(super) blobs: Blobs,
    /// Transfers at once in each direction.
    pub(super) slots: u32,
    /// Whether a tracker answers.
    pub(super) has_tracker: bool,
    /// Whether an origin is worth asking.
    pub(super) has_origin: bool,
}

impl Context {
    pub(super) fn new(config: SwarmConfig, rng_seed: u64) -> Self {
        Self {
            now: Time::ZERO,
            rng: Rng::new(rng_seed),
            outputs: Outbox::default(),
            timers: Timers::new(),
            counters: TransferCounters::default(),
            due: DueWork::default(),
            blobs: Blobs::default(),
            slots: config.slots.max(1),
            has_tracker: true,
            has_origin: true,
            config: Box::new(config),
        }
    }

    pub(super) fn output(&mut self, output: Output) {
        self.outputs.push(output);
    }
}

/// Work that an input made possible, done once after the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// A download slot may be fillable.
    FillSlots,
    /// A lease may be needed, or needed no longer.
    SeekLeases,
}

/// A set of [`Work`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DueWork(u8);

impl DueWork {
    pub(super) fn add(&mut self, work: Work) {
        self.0 |= Self::bit(work);
    }

    pub(super) fn add_if(&mut self, condition: bool, work: Work) {
        if condition {
            self.add(work);
        }
    }

    /// Marks work as done.
    pub(super) fn remove(&mut self, work: Work) {
        self.0 &= !Self::bit(work);
    }

    pub(super) fn contains(self, work: Work) -> bool {
        self.0 & Self::bit(work) != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    const fn bit(work: Work) -> u8 {
        1 << work as u8
    }
}
