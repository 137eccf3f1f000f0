//! A single service as a child process.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::tools::run;

/// Limit for a service to start, to log a line, and to end.
const TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A running service; dropping it kills it.
pub(crate) struct TestService {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    pub(crate) address: SocketAddr,
}

impl TestService {
    /// Starts a service and waits until it logs its address.
    ///
    /// # Panics
    /// If it does not start, with its log.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::start_and_read(command, usize::MAX)
    }

    /// As [`TestService::start`], but closes the service's stderr after it has logged its address.
    pub(crate) fn start_without_log_reader(command: &mut Command) -> Self {
        Self::start_and_read(command, 1)
    }

    /// Reads its log until `address_lines` lines had an address.
    fn start_and_read(command: &mut Command, address_lines: usize) -> Self {
        let mut child = command
            .env("FLOTILLA_LOG", "info")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start a service");
        let (sender, address) = mpsc::channel();
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        let stderr = BufReader::new(child.stderr.take().expect("its log"));
        std::thread::spawn(move || {
            let mut left = address_lines;
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().expect("its log").push(line.clone());
                let fields: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
                let field = ["mirror", "address"]
                    .into_iter()
                    .find_map(|key| fields[key].as_str());
                if let Some(address) = field.and_then(|address| address.parse().ok()) {
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
        match address.recv_timeout(TIMEOUT) {
            Ok(address) => Self {
                child,
                log,
                address,
            },
            Err(error) => panic!("{command:?} did not start: {error}"),
        }
    }

    /// The id of its process.
    pub(crate) fn process_id(&self) -> String {
        self.child.id().to_string()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until it has logged a line that contains all of `words`.
    ///
    /// # Panics
    /// If it does not within 30 s.
    pub(crate) async fn wait_until_logged(&self, words: &[&str]) {
        let has_all = |line: &String| words.iter().all(|word| line.contains(word));
        let logged = async {
            while !self.log.lock().expect("its log").iter().any(has_all) {
                sleep(POLL_INTERVAL).await;
            }
        };
        assert!(
            timeout(TIMEOUT, logged).await.is_ok(),
            "no log line with {words:?} after {TIMEOUT:?}"
        );
    }

    /// Sends SIGTERM.
    ///
    /// # Panics
    /// If it has ended.
    pub(crate) fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Sends SIGHUP, as `systemctl reload` does.
    ///
    /// # Panics
    /// If it has ended.
    pub(crate) fn reload(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, signal: &str) {
        run(Path::new("kill"), [signal, &self.process_id()]).expect("send a signal");
    }

    /// Waits until its listener is closed.
    ///
    /// # Panics
    /// If it still listens after 30 s.
    pub(crate) async fn wait_until_closed(&self) {
        let closed = async {
            while TcpStream::connect(self.address).is_ok() {
                sleep(POLL_INTERVAL).await;
            }
        };
        timeout(TIMEOUT, closed)
            .await
            .expect("it closes its listener");
    }

    /// Waits until it has logged that it drained completely, and has ended.
    ///
    /// # Panics
    /// If it does not end, or not with status 0.
    pub(crate) async fn wait_until_drained(self) {
        self.wait_until_logged(&["\"INFO\"", " stopped\"", "\"drained\":\"Complete\""])
            .await;
        self.wait_until_ended().await;
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// If it does not end, or not with status 0.
    pub(crate) async fn wait_until_ended(mut self) {
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait().expect("ask for its status") {
                    return status;
                }
                sleep(POLL_INTERVAL).await;
            }
        };
        let status = timeout(TIMEOUT, ended).await.expect("it ends in time");
        assert!(status.success(), "{status}");
    }
}

impl Drop for TestService {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
