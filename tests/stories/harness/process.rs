//! A service as a process of its own, without a laboratory round it.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::tools::run;

/// For a service to start, and to end.
const BOUND: Duration = Duration::from_secs(30);
const POLL_EVERY: Duration = Duration::from_millis(5);

/// A service as a process; killed if the story ends before it.
pub(crate) struct Process {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    pub(crate) address: SocketAddr,
}

impl Process {
    /// Starts a service and waits until it says where it listens.
    ///
    /// # Panics
    /// If it does not say so; with its log.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::start_and_read(command, usize::MAX)
    }

    /// As [`Process::start`]; nobody reads its log from the line on that says where it listens.
    pub(crate) fn start_unread(command: &mut Command) -> Self {
        Self::start_and_read(command, 1)
    }

    /// Reads its log until so many lines have said where it listens.
    fn start_and_read(command: &mut Command, addresses: usize) -> Self {
        let mut child = command
            .env("FLOTILLA_LOG", "info")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start a service");
        let (sender, address) = mpsc::channel();
        let said = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&said);
        let log = BufReader::new(child.stderr.take().expect("its log"));
        std::thread::spawn(move || {
            let mut left = addresses;
            for line in log.lines().map_while(Result::ok) {
                lines.lock().expect("its log").push(line.clone());
                let fields: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
                let named = ["mirror", "address"]
                    .into_iter()
                    .find_map(|key| fields[key].as_str());
                if let Some(address) = named.and_then(|address| address.parse().ok()) {
                    let _ = sender.send(address);
                    left -= 1;
                    if left == 0 {
                        return;
                    }
                } else {
                    eprintln!("{line}");
                }
            }
        });
        match address.recv_timeout(BOUND) {
            Ok(address) => Self {
                child,
                log: said,
                address,
            },
            Err(error) => panic!("{command:?} did not start: {error}"),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until it logs a line with all of these words.
    ///
    /// # Panics
    /// If it does not; with its log.
    pub(crate) async fn says(&self, words: &[&str]) {
        let has_all = |line: &String| words.iter().all(|word| line.contains(word));
        let said = async {
            while !self.log.lock().expect("its log").iter().any(has_all) {
                sleep(POLL_EVERY).await;
            }
        };
        assert!(
            timeout(BOUND, said).await.is_ok(),
            "it never said {words:?}"
        );
    }

    /// Sends SIGTERM.
    ///
    /// # Panics
    /// If it is gone.
    pub(crate) fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Sends SIGHUP, as `systemctl reload` does.
    ///
    /// # Panics
    /// If it is gone.
    pub(crate) fn reload(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, signal: &str) {
        run(Path::new("kill"), [signal, &self.child.id().to_string()]).expect("send a signal");
    }

    /// Waits until nobody can connect any more.
    ///
    /// # Panics
    /// If it goes on listening.
    pub(crate) async fn accepts_nothing_new(&self) {
        let closed = async {
            while TcpStream::connect(self.address).is_ok() {
                sleep(POLL_EVERY).await;
            }
        };
        timeout(BOUND, closed).await.expect("it goes on listening");
    }

    /// Waits until it says that everything in flight was finished, and for a good end.
    ///
    /// # Panics
    /// If it does not end, or not with status 0.
    pub(crate) async fn ends_well(self) {
        self.says(&["\"INFO\"", " stopped\"", "\"drained\":\"Complete\""])
            .await;
        self.ends().await;
    }

    /// Waits for a good end.
    ///
    /// # Panics
    /// If it does not end, or not with status 0.
    pub(crate) async fn ends(mut self) {
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait().expect("ask for its status") {
                    return status;
                }
                sleep(POLL_EVERY).await;
            }
        };
        let status = timeout(BOUND, ended).await.expect("it does not end");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
