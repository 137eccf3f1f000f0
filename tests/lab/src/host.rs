//! A host: a thread with its own async runtime and, optionally, its own network namespace. Sockets
//! that the thread opens and processes that it starts are in that namespace; when the thread ends,
//! the processes and the namespace end with it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;

use rustix::thread::{LinkNameSpaceType, Pid, gettid, move_into_link_name_space};
use tokio::runtime::{self, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::error::LabError;

/// The network namespace of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Namespace {
    /// The one of this process.
    Shared,
    /// One of its own.
    Own,
}

/// One machine of a laboratory. Clones are the same machine.
#[derive(Clone, Debug)]
pub struct Host(Arc<HostThread>);

#[derive(Debug)]
struct HostThread {
    name: String,
    address: Ipv4Addr,
    namespace: Namespace,
    runtime: Handle,
    thread_id: Pid,
    /// Dropping it ends the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Host {
    /// Starts the host's thread.
    pub(crate) fn start(
        name: &str,
        address: Ipv4Addr,
        namespace: Namespace,
    ) -> Result<Self, LabError> {
        let action = format!("start host {name}");
        let (sender, receiver) = mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run_thread(namespace, &sender, stopped))
            .map_err(|error| LabError::failed(action.as_str(), error))?;
        let started = receiver
            .recv()
            .map_err(|_| LabError::failed(action.as_str(), "its thread ended"))?;
        let (runtime, thread_id) =
            started.map_err(|cause| LabError::failed(action.as_str(), cause))?;
        Ok(Self(Arc::new(HostThread {
            name: name.to_owned(),
            address,
            namespace,
            runtime,
            thread_id,
            stop: Some(stop),
            thread: Some(thread),
        })))
    }

    /// The host's name, which is also that of its service.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The address that other hosts use.
    pub fn address(&self) -> Ipv4Addr {
        self.0.address
    }

    /// The address of a service that only clients on this host may reach.
    pub fn private_address(&self, port: u16) -> SocketAddr {
        let address = match self.0.namespace {
            Namespace::Own => Ipv4Addr::LOCALHOST,
            Namespace::Shared => self.0.address,
        };
        SocketAddr::from((address, port))
    }

    /// The address of a service that other hosts use.
    pub fn public_address(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.0.address, port))
    }

    /// The id by which `ip` finds the host's namespace.
    pub(crate) fn thread_id(&self) -> Pid {
        self.0.thread_id
    }

    /// Runs a future on this host, so that its connections start here.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.0.runtime.spawn(future)
    }

    /// A command whose process the kernel kills when the host ends. Start it with
    /// [`Host::start_process`].
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    }

    /// Starts a process on this host, in its own process group.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_process(&self, mut command: Command) -> Result<Child, LabError> {
        let action = format!("start {command:?} on {}", self.0.name);
        command.process_group(0).stdin(Stdio::null());
        let started = self.run_on_thread(&action, move || command.spawn())?;
        started.map_err(|error| LabError::failed(action, error))
    }

    /// Runs a program on this host to its end, with `input` on its stdin, and returns its stdout.
    ///
    /// # Errors
    /// If it does not start or fails, with its stderr.
    pub fn run(&self, program: &[&str], input: &str) -> Result<String, LabError> {
        let action = format!("run {} on {}", program.join(" "), self.0.name);
        let words: Vec<String> = program.iter().map(|&word| word.to_owned()).collect();
        let input = input.to_owned();
        let output = self.run_on_thread(&action, move || run_program(&words, &input))?;
        output.map_err(|cause| LabError::failed(action, cause))
    }

    /// Runs a blocking function on the host's thread and waits for its result.
    fn run_on_thread<T: Send + 'static>(
        &self,
        action: &str,
        function: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, LabError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.spawn(async move {
            // Fails if the caller is gone; what was started then ends with the host.
            let _ = sender.send(function());
        });
        receiver
            .recv()
            .map_err(|_| LabError::failed(action, "the host has ended"))
    }
}

impl Drop for HostThread {
    fn drop(&mut self) {
        self.stop = None;
        // The last clone may be dropped on the host's own thread, which cannot join itself.
        let thread = self
            .thread
            .take()
            .filter(|thread| thread.thread().id() != thread::current().id());
        if let Some(thread) = thread {
            // A panic of the thread was printed; there is nothing else to do about it.
            let _ = thread.join();
        }
    }
}

type StartResult = Result<(Handle, Pid), String>;

/// Enters the namespace, reports the runtime, and drives it until `stopped`.
fn run_thread(
    namespace: Namespace,
    report: &mpsc::SyncSender<StartResult>,
    stopped: oneshot::Receiver<()>,
) {
    let start = || {
        if namespace == Namespace::Own {
            enter_new_namespace()?;
        }
        runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())
    };
    match start() {
        Ok(runtime) => {
            let _ = report.send(Ok((runtime.handle().clone(), gettid())));
            // Returns when the sender is dropped.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        }
        Err(cause) => {
            let _ = report.send(Err(cause));
        }
    }
}

/// Moves this thread into a new network namespace, which only this thread then keeps alive. A
/// helper process (`unshare --net cat`) creates it, because `unshare(2)` is an unsafe function in
/// Rust; it echoes a byte as soon as it is in the namespace.
fn enter_new_namespace() -> Result<(), String> {
    let mut command = Command::new("unshare");
    command
        .args(["--net", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut helper = command
        .spawn()
        .map_err(|error| format!("run unshare: {error}"))?;
    let mut echo = [0; 1];
    let sent = helper.stdin.as_mut().map(|stdin| stdin.write_all(b"\n"));
    let received = helper
        .stdout
        .as_mut()
        .map(|stdout| stdout.read_exact(&mut echo));
    let entered = match (sent, received) {
        (Some(Ok(())), Some(Ok(()))) => Some(enter_namespace_of(helper.id())),
        _ => None,
    };
    // Closes the helper's stdin, which ends it.
    let output = helper
        .wait_with_output()
        .map_err(|error| format!("wait for unshare: {error}"))?;
    entered.unwrap_or_else(|| Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn enter_namespace_of(process_id: u32) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("enter a network namespace: {error}");
    let namespace = File::open(format!("/proc/{process_id}/ns/net")).map_err(failed)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|error| failed(error.into()))
}

fn run_program(words: &[String], input: &str) -> Result<String, String> {
    let Some((program, arguments)) = words.split_first() else {
        return Err("no program is named".to_owned());
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        // Fails if the program has ended; its stderr says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }
}
