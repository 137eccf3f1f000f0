//! A host: a thread with a runtime of its own, in a network namespace of its own if it has a link.
//! What is started or connected on that thread belongs to the host; when the thread ends, so do its
//! processes and its namespace.

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

use super::network::{Carried, Link};
use super::{LabError, Shape};

/// Whether a host shares the network of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Namespace {
    Shared,
    Own,
}

/// One machine of a laboratory. Clones are the same machine.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    address: Ipv4Addr,
    runtime: Handle,
    thread_id: Pid,
    link: Option<Link>,
    /// Ends the thread; the field below waits for it.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Host {
    /// Starts the thread; `plug` gives it its link, if it has one.
    pub(super) fn start(
        name: &str,
        address: Ipv4Addr,
        namespace: Namespace,
        plug: impl FnOnce(&Self) -> Result<Option<Link>, LabError>,
    ) -> Result<Self, LabError> {
        let what = format!("start host {name}");
        let (tell, told) = mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || live(namespace, &tell, stopped))
            .map_err(|error| LabError::failed(what.as_str(), error))?;
        let begun = told
            .recv()
            .map_err(|_| LabError::failed(what.as_str(), "its thread ended"))?;
        let (runtime, thread_id) = begun.map_err(|why| LabError::failed(what.as_str(), why))?;
        let inner = Inner {
            name: name.to_owned(),
            address,
            runtime,
            thread_id,
            link: None,
            stop: Some(stop),
            thread: Some(thread),
        };
        let mut this = Self(Arc::new(inner));
        let link = plug(&this)?;
        if let Some(inner) = Arc::get_mut(&mut this.0) {
            inner.link = link;
        }
        Ok(this)
    }

    /// Its name: that of the service on it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Under which the other hosts know it.
    pub fn address(&self) -> Ipv4Addr {
        self.0.address
    }

    /// Where a service that must not be reached from other hosts listens.
    pub fn private(&self, port: u16) -> SocketAddr {
        let address = if self.0.link.is_some() {
            Ipv4Addr::LOCALHOST
        } else {
            self.0.address
        };
        SocketAddr::from((address, port))
    }

    /// Where a service that other hosts use listens.
    pub fn public(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.0.address, port))
    }

    /// The number by which `ip` finds the host's namespace.
    pub(super) fn thread_id(&self) -> Pid {
        self.0.thread_id
    }

    /// Runs a future on this host: its connections come from here.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.0.runtime.spawn(future)
    }

    /// A command whose process the kernel kills with this host. Start it with
    /// [`Host::start_process`].
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    }

    /// Starts a process on this host, in a process group of its own.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_process(&self, mut command: Command) -> Result<Child, LabError> {
        let what = format!("start {command:?} on {}", self.0.name);
        command.process_group(0).stdin(Stdio::null());
        let (tell, told) = mpsc::sync_channel(1);
        self.spawn(async move {
            // Nobody hears it if the caller is gone, and then the child ends with the host.
            let _ = tell.send(command.spawn());
        });
        let started = told
            .recv()
            .map_err(|_| LabError::failed(what.as_str(), "the host has ended"))?;
        started.map_err(|error| LabError::failed(what, error))
    }

    /// Runs a program on this host to its end and gives what it printed. `input` is handed to it.
    ///
    /// # Errors
    /// If it does not start or does not succeed, with what it said.
    pub fn run(&self, program: &[&str], input: &str) -> Result<String, LabError> {
        let (words, input) = (
            program
                .iter()
                .map(|&word| word.to_owned())
                .collect::<Vec<_>>(),
            input.to_owned(),
        );
        let (tell, told) = mpsc::sync_channel(1);
        self.spawn(async move {
            let _ = tell.send(run_to_end(&words, &input));
        });
        let what = || format!("run {} on {}", program.join(" "), self.0.name);
        let ran = told
            .recv()
            .map_err(|_| LabError::failed(what(), "the host has ended"))?;
        ran.map_err(|why| LabError::failed(what(), why))
    }

    /// Cuts its link in the switch: what is sent to or from it is lost without a word.
    ///
    /// # Errors
    /// If it has none, as on loopback, or the switch refuses.
    pub fn cut(&self) -> Result<(), LabError> {
        self.link()?.open(false)
    }

    /// Heals what [`Host::cut`] did.
    ///
    /// # Errors
    /// As there.
    pub fn heal(&self) -> Result<(), LabError> {
        self.link()?.open(true)
    }

    /// Shapes its link both ways from now on.
    ///
    /// # Errors
    /// As [`Host::cut`].
    pub fn shape(&self, shape: Shape) -> Result<(), LabError> {
        self.link()?.shape(self, shape)
    }

    /// What its link carried from it and to it since it was shaped.
    ///
    /// # Errors
    /// As [`Host::cut`].
    pub fn carried(&self) -> Result<[Carried; 2], LabError> {
        self.link()?.carried(self)
    }

    fn link(&self) -> Result<&Link, LabError> {
        let none = || {
            LabError::failed(
                format!("change the link of {}", self.0.name),
                "loopback has no links",
            )
        };
        self.0.link.as_ref().ok_or_else(none)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop = None;
        let thread = self
            .thread
            .take()
            .filter(|thread| thread.thread().id() != thread::current().id());
        if let Some(thread) = thread {
            // If it panicked, nothing of that matters now.
            let _ = thread.join();
        }
    }
}

type Begun = Result<(Handle, Pid), String>;

/// The thread's life.
fn live(namespace: Namespace, tell: &mpsc::SyncSender<Begun>, stopped: oneshot::Receiver<()>) {
    let begin = || {
        if namespace == Namespace::Own {
            enter_new_namespace()?;
        }
        runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())
    };
    match begin() {
        Ok(runtime) => {
            let _ = tell.send(Ok((runtime.handle().clone(), gettid())));
            // Ends when the sender is dropped.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        }
        Err(why) => {
            let _ = tell.send(Err(why));
        }
    }
}

/// Moves this thread into a new network namespace, which then has no other reason to exist. A
/// helper makes it, since making one by oneself is unsafe in Rust's eyes; it says when it has.
fn enter_new_namespace() -> Result<(), String> {
    let mut command = Command::new("unshare");
    command
        .args(["--net", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut maker = command
        .spawn()
        .map_err(|error| format!("run unshare: {error}"))?;
    let mut echo = [0; 1];
    let sent = maker.stdin.as_mut().map(|stdin| stdin.write_all(b"\n"));
    let came = maker
        .stdout
        .as_mut()
        .map(|stdout| stdout.read_exact(&mut echo));
    let entered = match (sent, came) {
        (Some(Ok(())), Some(Ok(()))) => File::open(format!("/proc/{}/ns/net", maker.id()))
            .and_then(|file| {
                Ok(move_into_link_name_space(
                    file.as_fd(),
                    Some(LinkNameSpaceType::Network),
                )?)
            })
            .map_err(|error| format!("enter a network namespace: {error}")),
        _ => Err(String::new()),
    };
    // Closes its stdin, at which it ends.
    let ended = maker
        .wait_with_output()
        .map_err(|error| format!("wait for unshare: {error}"))?;
    entered.map_err(|why| {
        if why.is_empty() {
            String::from_utf8_lossy(&ended.stderr).trim().to_owned()
        } else {
            why
        }
    })
}

fn run_to_end(words: &[String], input: &str) -> Result<String, String> {
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
        // A program that ends early says why on its stderr.
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
