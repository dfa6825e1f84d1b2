//! A real etcd of the test's own: its own ports and data, stopped and restarted at will, gone when it is dropped.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A running or stopped etcd.
#[derive(Debug)]
pub(crate) struct EtcdServer {
    data: tempfile::TempDir,
    arguments: Vec<String>,
    port: u16,
    process: Mutex<Option<Child>>,
}

impl EtcdServer {
    /// Starts one without TLS.
    pub(crate) fn start() -> Self {
        Self::start_with("http", &[])
    }

    /// Starts one whose clients come with this URL scheme, with more arguments.
    pub(crate) fn start_with(scheme: &str, more: &[String]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let (port, peer_port) = (free_port(), free_port());
        let (clients, peers) = (format!("{scheme}://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
        // The heartbeats are fast so that an election takes no time; they also bound the shortest life of a lease.
        let arguments = [
            ("--listen-client-urls", clients.as_str()),
            ("--advertise-client-urls", &clients),
            ("--listen-peer-urls", &peers),
            ("--initial-advertise-peer-urls", &peers),
            ("--initial-cluster", &format!("default={peers}")),
            ("--heartbeat-interval", "20"),
            ("--election-timeout", "200"),
        ]
        .map(|(flag, value)| format!("{flag}={value}"));
        let server = Self {
            data,
            arguments: arguments.into_iter().chain(more.iter().cloned()).collect(),
            port,
            process: Mutex::new(None),
        };
        server.restart();
        server
    }

    /// One for all tests that run at the moment; each uses a key prefix of its own.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<EtcdServer>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start());
            *shared = Arc::downgrade(&server);
            server
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills it.
    pub(crate) fn stop(&self) {
        if let Some(mut process) = self.process().take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Starts it on the data it had.
    // The test starts the real etcd; the product starts nothing.
    #[allow(clippy::disallowed_methods)]
    pub(crate) fn restart(&self) {
        self.stop();
        let log = std::fs::File::create(self.data.path().join("log")).unwrap();
        let mut command = Command::new("etcd");
        command.arg(format!("--data-dir={}", self.data.path().join("data").display())).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = command.spawn().expect("etcd must be installed (Debian package etcd-server)");
        *self.process() = Some(process);
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let exited = self.process().as_mut().and_then(|process| process.try_wait().unwrap());
            if exited.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.data.path().join("log")).unwrap_or_default();
                panic!("etcd did not start ({exited:?}):\n{log}");
            }
            // It has no way to tell.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}
