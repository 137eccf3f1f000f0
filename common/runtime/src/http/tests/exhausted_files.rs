//! A server whose process has no file descriptor left. The limit on open files belongs to a
//! process, so the server is a child process: this test's program with another test's name.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;

const FOLDER_VARIABLE: &str = "FLOTILLA_TEST_FOLDER";
const CHILD: &str = "http::tests::exhausted_files::child_without_file_descriptors";
/// The child's limit on open files.
const LIMIT: u64 = 64;

/// The server of the test below: it takes all file descriptors until a file tells it to release
/// them. Does nothing when it is run by itself.
#[tokio::test]
async fn child_without_file_descriptors() {
    let Some(folder) = std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from) else {
        return;
    };
    let limit = Rlimit {
        current: Some(LIMIT),
        ..getrlimit(Resource::Nofile)
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let (address, _shutdown) = start(hello()).await;
    // Lets the server open its spare file.
    assert!(
        exchange(address, GET_ONCE)
            .await
            .unwrap()
            .ends_with("hello")
    );
    fs::write(folder.join("address.new"), address.to_string()).unwrap();
    let mut taken = Vec::new();
    while !folder.join("release").exists() {
        // The server closes the connection of the request above a moment after its client.
        while let Ok(file) = File::open("/dev/null") {
            taken.push(file);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        if folder.join("address.new").exists() {
            fs::rename(folder.join("address.new"), folder.join("address")).unwrap();
        }
    }
    drop(taken);
    fs::write(folder.join("released"), b"").unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
}

const GET_ONCE: &[u8] = b"GET / HTTP/1.1\r\nhost: origin\r\nconnection: close\r\n\r\n";

/// Ends the child when the test ends.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn wait_for(file: &Path) -> String {
    for _ in 0..3000 {
        if let Ok(text) = fs::read_to_string(file) {
            return text;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} does not appear", file.display());
}

#[tokio::test]
async fn requests_are_answered_503_at_once_without_file_descriptors() {
    let folder = tempfile::tempdir().unwrap();
    let _child = KillOnDrop(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", CHILD])
            .env(FOLDER_VARIABLE, folder.path())
            .spawn()
            .unwrap(),
    );
    let address = wait_for(&folder.path().join("address")).await;
    let address: SocketAddr = address.parse().unwrap();
    for _ in 0..3 {
        let answer = timeout(Duration::from_secs(5), exchange(address, GET));
        let answer = answer.await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("UNAVAILABLE"), "{answer}");
    }
    fs::write(folder.path().join("release"), b"").unwrap();
    wait_for(&folder.path().join("released")).await;
    let answer = exchange(address, GET_ONCE).await.unwrap();
    assert!(answer.ends_with("hello"), "{answer}");
}
