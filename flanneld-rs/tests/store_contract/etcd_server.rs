//! A real etcd of the test's own: its own ports and data, stopped and restarted at will, gone when it is dropped.

use nix::sys::signal::Signal;
use nix::unistd::Pid;
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
        let [client, peer] = free_ports();
        // The heartbeats are fast so that an election takes no time; they also bound the shortest life of a lease.
        let fast = ["--heartbeat-interval=20".to_owned(), "--election-timeout=200".to_owned()];
        let mut server = Self::member(scheme, "default", client, peer, &format!("default=http://127.0.0.1:{peer}"));
        server.arguments.extend(fast.iter().chain(more).cloned());
        server.restart();
        server
    }

    /// Starts three that are one cluster, without TLS.
    pub(crate) fn cluster() -> [Self; 3] {
        let ports: [u16; 6] = free_ports();
        let (clients, peers) = ports.split_at(3);
        let all: Vec<_> = peers.iter().map(|port| format!("m{port}=http://127.0.0.1:{port}")).collect();
        let member = |number: usize| {
            let peer = peers[number];
            Self::member("http", &format!("m{peer}"), clients[number], peer, &all.join(","))
        };
        let servers = [0, 1, 2].map(member);
        // None of them serves alone.
        servers.iter().for_each(Self::spawn);
        servers.iter().for_each(Self::wait);
        servers
    }

    fn member(scheme: &str, name: &str, client: u16, peer: u16, cluster: &str) -> Self {
        let (clients, peers) = (format!("{scheme}://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let arguments = [
            ("--name", name),
            ("--listen-client-urls", &clients),
            ("--advertise-client-urls", &clients),
            ("--listen-peer-urls", &peers),
            ("--initial-advertise-peer-urls", &peers),
            ("--initial-cluster", cluster),
        ]
        .map(|(flag, value)| format!("{flag}={value}"));
        // A busy disk is no matter of these tests; what a killed process has written is kept all the same.
        let arguments = arguments.into_iter().chain(["--unsafe-no-fsync".to_owned()]).collect();
        Self { data: tempfile::tempdir().unwrap(), arguments, port: client, process: Mutex::new(None) }
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

    /// From now on it says nothing, and closes nothing: as a machine that hangs. [`Self::stop`] ends it all the same.
    pub(crate) fn freeze(&self) {
        let process = self.process().as_ref().unwrap().id();
        nix::sys::signal::kill(Pid::from_raw(process.try_into().unwrap()), Signal::SIGSTOP).unwrap();
    }

    /// Starts it on the data it had.
    pub(crate) fn restart(&self) {
        self.stop();
        self.spawn();
        self.wait();
    }

    // The test starts the real etcd; the product starts nothing.
    #[allow(clippy::disallowed_methods)]
    fn spawn(&self) {
        let log = std::fs::File::create(self.data.path().join("log")).unwrap();
        let mut command = Command::new("etcd");
        command.arg(format!("--data-dir={}", self.data.path().join("data").display())).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = command.spawn().expect("etcd must be installed (Debian package etcd-server)");
        *self.process() = Some(process);
    }

    /// Waits until it takes connections, which it does once it is a member of a cluster with a leader.
    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
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

/// Ports that are free, and differ.
pub(crate) fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    let listeners = [(); COUNT].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
