//! Outages of a whole storage, made outside the origin that uses it.

use std::sync::Arc;

use flotilla_origin::storage::Storage;
use rustix::process::{Pid, Signal, kill_process};

use super::{Behaviour, GateState, MountedDirectory, Server, start_program};

/// A form of outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outage {
    /// Connections are accepted and carry no byte, also open ones.
    Hangs,
    /// Connections are refused, and open ones are closed.
    Refuses,
    /// The server answers, but not as it should.
    Answers(Behaviour),
    /// The process of the storage is stopped (SIGSTOP).
    ProcessStops,
    /// The process of the storage is killed, and started again when the outage ends.
    ProcessDies,
    /// A directory lost its file system: the empty directory below is left.
    Unmounted,
}

/// A storage whose outages are made outside of this process.
pub(crate) enum StorageServer {
    Http(Server),
    Directory(MountedDirectory),
}

impl StorageServer {
    /// Opens the storage.
    pub(crate) fn storage(&self) -> Arc<dyn Storage> {
        match self {
            Self::Http(server) => server.storage(),
            Self::Directory(directory) => directory.storage(),
        }
    }

    /// Begins an outage; `None` ends it.
    pub(crate) fn set_outage(&mut self, outage: Option<Outage>) {
        match self {
            Self::Http(server) => server.set_outage(outage),
            Self::Directory(directory) => directory.set_outage(outage),
        }
    }
}

impl Server {
    /// Begins an outage; `None` ends it.
    ///
    /// # Panics
    /// If a server has no outage of this form.
    pub(crate) fn set_outage(&mut self, outage: Option<Outage>) {
        match outage {
            None => self.end_outage(),
            Some(Outage::Hangs) => self.gate.set(GateState::Hanging),
            Some(Outage::Refuses) => self.gate.set(GateState::Refusing),
            Some(Outage::Answers(behaviour)) => self.faults().set_behaviour(Some(behaviour)),
            Some(Outage::ProcessStops) => signal(&self.process, Signal::STOP),
            Some(Outage::ProcessDies) => {
                self.process.kill().expect("kill the server");
                self.process.wait().expect("wait for the server");
            }
            Some(Outage::Unmounted) => panic!("{:?} has no file system", self.kind),
        }
    }

    fn end_outage(&mut self) {
        self.gate.set(GateState::Open);
        self.faults().set_behaviour(None);
        if self.process.try_wait().expect("query the server").is_none() {
            signal(&self.process, Signal::CONT);
            return;
        }
        let (kind, address) = (self.kind, self.address);
        self.process = start_program(kind, address, self.gate.address, self.dir.path());
        self.wait_until_listening();
    }
}

/// Sends a signal to a child process.
pub(super) fn signal(process: &std::process::Child, signal: Signal) {
    kill_process(Pid::from_child(process), signal).expect("send a signal");
}
