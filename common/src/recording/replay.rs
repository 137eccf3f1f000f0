//! Repeats a recording with a fresh machine, and compares the outputs.

use std::collections::VecDeque;

use super::{Entry, MAGIC, Machine};
use crate::codec::{self, CodecError};
use crate::swarm::PeerMachine;
use crate::time::Time;
use crate::tracker::{TrackerMachine, TrackerSession};

/// What a replay has shown: the machine made the recorded outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// The machine's name.
    pub machine: &'static str,
    /// Inputs and timeouts.
    pub inputs: u64,
    /// Outputs that were compared.
    pub outputs: u64,
    /// The time of the last input.
    pub until: Time,
}

/// Why a recording was not repeated, or not with the same outputs.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The bytes are not a recording.
    #[error("not a recording: the first line does not begin with '{MAGIC}'")]
    NotARecording,
    /// Of a machine that this build does not know.
    #[error("recording of '{0}', which is not a machine of this build")]
    UnknownMachine(String),
    /// An entry cannot be decoded.
    #[error("entry {entry} cannot be decoded: {source}")]
    Entry {
        /// Its number, from 0.
        entry: u64,
        /// The fault.
        source: CodecError,
    },
    /// The setup is not the first entry, or not the only one.
    #[error("entry {0} is out of place: a recording has one setup, which comes first")]
    Setup(u64),
    /// The machine made another output than the recorded one.
    #[error(
        "output {output} differs, after input {input} at {at:?}\n  recorded: {recorded}\n  replayed: {replayed}"
    )]
    Differs {
        /// The output's number, from 1.
        output: u64,
        /// The number of the last input before it, from 1.
        input: u64,
        /// The time of that input.
        at: Time,
        /// What the recording has; `none` without any.
        recorded: String,
        /// What the machine made; `none` without any.
        replayed: String,
    },
}

/// Repeats a recording with a fresh machine of its kind.
///
/// # Errors
/// If the bytes are not a recording, or the machine makes other outputs than the recorded ones.
pub fn replay(recording: &[u8]) -> Result<Replayed, ReplayError> {
    let first_line = recording.iter().position(|byte| *byte == b'\n');
    let (name, entries) = recording.split_at(first_line.unwrap_or_default());
    let name = name
        .strip_prefix(MAGIC.as_bytes())
        .ok_or(ReplayError::NotARecording)?;
    let entries = Entries {
        bytes: &entries[1..],
        number: 0,
    };
    match name {
        name if name == PeerMachine::NAME.as_bytes() => replay_as::<PeerMachine>(entries),
        name if name == TrackerMachine::NAME.as_bytes() => replay_as::<TrackerMachine>(entries),
        name if name == TrackerSession::NAME.as_bytes() => replay_as::<TrackerSession>(entries),
        name => {
            let name = String::from_utf8_lossy(name).into_owned();
            Err(ReplayError::UnknownMachine(name))
        }
    }
}

/// An entry that was read.
type ReadEntry<M> = Entry<<M as Machine>::Setup, <M as Machine>::Input, <M as Machine>::Output>;

/// The entries that are left.
struct Entries<'a> {
    bytes: &'a [u8],
    /// The number of the next entry.
    number: u64,
}

impl<'a> Entries<'a> {
    /// The next entry; `None` at the end, or if the next one is cut off.
    fn next<M: Machine>(&mut self) -> Result<Option<ReadEntry<M>>, ReplayError> {
        let Some((entry, rest)) = self.split_first() else {
            return Ok(None);
        };
        self.bytes = rest;
        let number = self.number;
        self.number += 1;
        let entry = codec::decode(entry).map_err(|source| ReplayError::Entry {
            entry: number,
            source,
        })?;
        Ok(Some(entry))
    }

    fn split_first(&self) -> Option<(&'a [u8], &'a [u8])> {
        let (len, rest) = self.bytes.split_first_chunk()?;
        let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
        rest.split_at_checked(len)
    }
}

fn replay_as<M: Machine>(mut entries: Entries<'_>) -> Result<Replayed, ReplayError> {
    let Some(Entry::Setup(setup)) = entries.next::<M>()? else {
        return Err(ReplayError::Setup(0));
    };
    let mut machine = M::create(setup);
    let mut replayed = Replayed {
        machine: M::NAME,
        inputs: 0,
        outputs: 0,
        until: Time::ZERO,
    };
    let mut outputs = VecDeque::new();
    while let Some(entry) = entries.next::<M>()? {
        match entry {
            Entry::Setup(_) => return Err(ReplayError::Setup(entries.number - 1)),
            Entry::Input(now, input) => {
                replayed.count_input(now);
                machine.handle(now, input);
            }
            Entry::Timeout(now) => {
                replayed.count_input(now);
                machine.handle_timeout(now);
            }
            Entry::Output(recorded) => {
                replayed.outputs += 1;
                let made = outputs.pop_front();
                if made.as_ref() != Some(&recorded) {
                    return Err(replayed.differs::<M>(Some(&recorded), made.as_ref()));
                }
            }
            Entry::Drained => {
                if let Some(made) = outputs.front() {
                    replayed.outputs += 1;
                    return Err(replayed.differs::<M>(None, Some(made)));
                }
            }
        }
        outputs.extend(core::iter::from_fn(|| machine.poll_output()));
    }
    Ok(replayed)
}

impl Replayed {
    fn count_input(&mut self, now: Time) {
        self.inputs += 1;
        self.until = now;
    }

    fn differs<M: Machine>(
        &self,
        recorded: Option<&M::Output>,
        replayed: Option<&M::Output>,
    ) -> ReplayError {
        let describe = |output: Option<&M::Output>| {
            output.map_or("none".to_owned(), |output| format!("{output:?}"))
        };
        ReplayError::Differs {
            output: self.outputs,
            input: self.inputs,
            at: self.until,
            recorded: describe(recorded),
            replayed: describe(replayed),
        }
    }
}
