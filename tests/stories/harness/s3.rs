//! An S3 server in a process of its own, which a test can suspend: the storage then accepts
//! connections and answers nothing.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use super::daemon::{Daemon, free_addresses};

const BUCKET: &str = "images";

/// A running server with one bucket, which is in its memory.
#[derive(Debug)]
pub(crate) struct S3 {
    daemon: Daemon,
    address: SocketAddr,
}

impl S3 {
    /// Starts moto's server. It performs conditional writes one at a time, as an origin demands.
    ///
    /// # Panics
    /// If it does not start, with its log.
    pub(crate) fn start(moto_server: &Path) -> Self {
        let [address] = free_addresses();
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let arguments = ["-H", &ip, "-p", &port].map(Into::into);
        let dir = tempfile::tempdir().expect("a temporary folder");
        let daemon = Daemon::start(moto_server, &arguments, dir);
        daemon.wait_until("the server has a bucket", || create_bucket(address));
        Self { daemon, address }
    }

    /// The URL of an origin's storage in it.
    pub(crate) fn url(&self) -> String {
        format!("s3://{BUCKET}/fleet")
    }

    /// The environment of a process that uses it.
    pub(crate) fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ENDPOINT", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "flotilla".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "flotilla-secret".to_owned()),
        ]
    }

    /// Stops the process. Its connections stay open, and nothing is answered.
    ///
    /// # Panics
    /// If it has ended.
    pub(crate) fn suspend(&self) {
        self.daemon.signal("-STOP").expect("suspend the S3 server");
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // A suspended process does not end. An error means that it has ended already.
        let _ = self.daemon.signal("-CONT");
    }
}

fn create_bucket(address: SocketAddr) -> Result<(), String> {
    let put = || -> std::io::Result<String> {
        let mut connection = TcpStream::connect(address)?;
        let head =
            format!("PUT /{BUCKET} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 0\r\n\r\n");
        connection.write_all(head.as_bytes())?;
        let mut status = String::new();
        BufReader::new(connection).read_line(&mut status)?;
        Ok(status)
    };
    let status = put().map_err(|error| error.to_string())?;
    if status.contains(" 200 ") {
        Ok(())
    } else {
        Err(format!("create a bucket: {status}"))
    }
}
