//! Recordings of a machine: what it was made with, its inputs, and its outputs, so that [`replay`]
//! can show that a fresh machine decides the same.
//!
//! A recording begins with a line that names the machine. Entries follow, each as its length (four
//! bytes, little-endian) and its [`codec`] encoding. An entry that is cut off ends the recording: a
//! process that is killed leaves one.
//!
//! ```text
//! flotilla recording: peer\n
//! Setup   Input  Output  Output  Drained   Timeout  Drained   Input  ...
//! ```

mod machines;
mod replay;

#[cfg(test)]
mod tests;

use core::fmt::Debug;
use core::ops::Deref;

use bincode::{Decode, Encode};

use crate::codec;
use crate::time::Time;

pub use replay::{ReplayError, Replayed, replay};

/// What the first line begins with.
const MAGIC: &str = "flotilla recording: ";
/// Most bytes of a recording. It ends there, and can still be replayed.
const MAX_LEN: u64 = 1 << 30;

/// A machine that can be recorded.
pub trait Machine: Sized {
    /// Its name in recordings.
    const NAME: &'static str;
    /// What it is made with.
    type Setup: Encode + Decode<()> + Debug;
    /// What it handles.
    type Input: Encode + Decode<()> + Debug;
    /// What it asks for.
    type Output: Encode + Decode<()> + Debug + PartialEq;

    /// Makes the machine.
    fn create(setup: Self::Setup) -> Self;
    /// Handles an event.
    fn handle(&mut self, now: Time, input: Self::Input);
    /// Handles what is due.
    fn handle_timeout(&mut self, now: Time);
    /// The next output, oldest first.
    fn poll_output(&mut self) -> Option<Self::Output>;
}

/// Where a recording goes.
pub trait Sink: Debug + Send {
    /// Takes the next bytes; false if it can take no more.
    fn write(&mut self, bytes: &[u8]) -> bool;
}

/// One entry of a recording. Written with references, read with values.
#[derive(Debug, Encode, Decode)]
enum Entry<Setup, Input, Output> {
    Setup(Setup),
    Input(Time, Input),
    Timeout(Time),
    Output(Output),
    /// There are no more outputs of what came before.
    Drained,
}

/// An entry to write.
type EntryOf<'a, M> =
    Entry<&'a <M as Machine>::Setup, &'a <M as Machine>::Input, &'a <M as Machine>::Output>;

/// A machine, and its recording if there is one. Without a recording it costs a branch per call.
/// The machine's queries are reached by dereferencing.
#[derive(Debug)]
pub struct Recorded<M> {
    machine: M,
    recording: Option<Recording>,
}

#[derive(Debug)]
struct Recording {
    sink: Box<dyn Sink>,
    written: u64,
    is_drained: bool,
}

impl<M: Machine> Recorded<M> {
    /// Makes a machine, which is recorded to `sink` if there is one.
    pub fn new(setup: M::Setup, sink: Option<Box<dyn Sink>>) -> Self {
        let mut recording = sink.map(|sink| Recording {
            sink,
            written: 0,
            is_drained: true,
        });
        record(&mut recording, |recording| {
            recording.write(format!("{MAGIC}{}\n", M::NAME).as_bytes())
                && recording.write_entry::<M>(&Entry::Setup(&setup))
        });
        Self {
            machine: M::create(setup),
            recording,
        }
    }

    /// Handles an event.
    pub fn handle(&mut self, now: Time, input: M::Input) {
        record(&mut self.recording, |recording| {
            recording.is_drained = false;
            recording.write_entry::<M>(&Entry::Input(now, &input))
        });
        self.machine.handle(now, input);
    }

    /// Handles what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        record(&mut self.recording, |recording| {
            recording.is_drained = false;
            recording.write_entry::<M>(&Entry::Timeout(now))
        });
        self.machine.handle_timeout(now);
    }

    /// The next output, oldest first.
    pub fn poll_output(&mut self) -> Option<M::Output> {
        let output = self.machine.poll_output();
        record(&mut self.recording, |recording| match &output {
            Some(output) => recording.write_entry::<M>(&Entry::Output(output)),
            None if recording.is_drained => true,
            None => {
                recording.is_drained = true;
                recording.write_entry::<M>(&Entry::Drained)
            }
        });
        output
    }
}

impl<M> Deref for Recorded<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.machine
    }
}

/// Writes to a recording if there is one, and ends it if nothing more can be written.
fn record(recording: &mut Option<Recording>, write: impl FnOnce(&mut Recording) -> bool) {
    if let Some(open) = recording
        && !write(open)
    {
        *recording = None;
    }
}

impl Recording {
    fn write_entry<M: Machine>(&mut self, entry: &EntryOf<'_, M>) -> bool {
        // An entry beyond the limits of the codec ends the recording.
        let Ok(bytes) = codec::encode(entry) else {
            return false;
        };
        let Ok(len) = u32::try_from(bytes.len()) else {
            return false;
        };
        self.write(&len.to_le_bytes()) && self.write(&bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        self.written += bytes.len() as u64;
        self.written <= MAX_LEN && self.sink.write(bytes)
    }
}
