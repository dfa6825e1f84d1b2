//! What `make build` leaves in `dist/`: executables that need nothing on the node, and start nothing there.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
// Processes are the point here.
#![allow(clippy::disallowed_methods)]

use e2e::oracle;
use e2e::tools;
use e2e::workdir::WorkDir;
use kernel::netns::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Program header types (elf(5)): the loader of dynamic executables, and the libraries that they want.
const PT_DYNAMIC_LOADER: u32 = 3;

#[test]
fn executables_are_static_and_small() {
    for (path, limit) in [(tools::cni_plugin().unwrap(), 2_500_000), (tools::flanneld().unwrap(), 12_500_000)] {
        let elf = fs::read(&path).unwrap();
        assert!(elf.len() < limit, "{} has {} bytes", path.display(), elf.len());
        let word = |at: usize, length: usize| {
            elf[at..at + length].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        assert_eq!(&elf[..5], b"\x7fELF\x02", "{} is no 64-bit ELF file", path.display());
        let (table, size, count) = (word(32, 8), word(54, 2), word(56, 2));
        for header in 0..count {
            let at = usize::try_from(table + header * size).unwrap();
            assert_ne!(word(at, 4) as u32, PT_DYNAMIC_LOADER, "{} needs a dynamic loader", path.display());
        }
    }
}

/// Runs a product under strace, in `node`, and returns how many programs were started in all.
fn programs_started(node: &Netns, work: &Path, product: &Path, setup: impl FnOnce(&mut Command), stdin: &str) -> usize {
    let strace = tools::from_package("/usr/bin/strace", "strace").unwrap();
    let trace = work.join("trace");
    let mut command = Command::new(strace);
    command.args(["-f", "-qq", "-e", "trace=execve,execveat", "-o"]).arg(&trace).arg(product);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    setup(&mut command);
    let inside = node.enter().unwrap();
    let mut child = command.spawn().unwrap();
    drop(inside);
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::read_to_string(trace).unwrap().lines().filter(|line| line.contains("execve")).count()
}

#[test]
fn the_plugin_starts_no_program() {
    let work = WorkDir::new().unwrap();
    let (node, pod) = (Netns::create().expect("the tests need root"), Netns::create().unwrap());
    let config = format!(
        r#"{{"cniVersion": "1.0.0", "name": "n", "type": "bridge", "isDefaultGateway": true,
            "ipam": {{"type": "host-local", "subnet": "10.88.0.0/24", "dataDir": "{}"}}}}"#,
        work.path().join("networks").display()
    );
    for verb in ["ADD", "DEL"] {
        let setup = |command: &mut Command| {
            command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "c1").env("CNI_IFNAME", "eth0");
            command.env("CNI_NETNS", pod.path()).env("CNI_PATH", "/opt/cni/bin");
        };
        let started = programs_started(&node, work.path(), &tools::cni_plugin().unwrap(), setup, &config);
        assert_eq!(started, 1, "{verb} is the only program that runs");
    }
}

#[test]
fn the_daemon_starts_no_program() {
    let work = WorkDir::new().unwrap();
    let node = Netns::create().expect("the tests need root");
    oracle::ip(&node, "link set lo up").unwrap();
    oracle::ip(&node, "link add eth0 type veth peer name eth0peer").unwrap();
    oracle::ip(&node, "link set eth0 up").unwrap();
    oracle::ip(&node, "link set eth0peer up").unwrap();
    oracle::ip(&node, "addr add 192.168.50.11/24 dev eth0").unwrap();
    let path = |name: &str| work.path().join(name);
    fs::write(path("net-conf.json"), r#"{"Network": "10.42.0.0/16", "Backend": {"Type": "vxlan"}}"#).unwrap();
    let ready = path("ready");
    let socket = std::os::unix::net::UnixDatagram::bind(&ready).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let setup = |command: &mut Command| {
        command.arg("--store-dir").arg(path("store")).arg("--net-config-path").arg(path("net-conf.json"));
        command.arg("--subnet-file").arg(path("subnet.env")).arg("--cni-conf-dir").arg(path("net.d"));
        command.args(["--iface=eth0", "--ip-masq"]).env("NOTIFY_SOCKET", &ready);
    };
    // Ends the daemon when it says that it is ready, in systemd's way.
    let mark = path("store");
    let ender = std::thread::spawn(move || {
        let mut message = [0; 64];
        let length = socket.recv(&mut message).expect("the daemon says that it is ready");
        kill(daemon(&mark), Signal::SIGTERM).unwrap();
        assert_eq!(&message[..length], b"READY=1\n");
    });
    let started = programs_started(&node, work.path(), &tools::flanneld().unwrap(), setup, "");
    ender.join().unwrap();
    assert_eq!(started, 1, "the daemon is the only program that runs");
    assert!(path("subnet.env").is_file() && path("net.d/10-flannel.conflist").is_file());
}

/// The process whose executable is the daemon's and whose command line names `mark`.
fn daemon(mark: &Path) -> Pid {
    let executable = tools::flanneld().unwrap();
    let is_it = |process: &Path| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        fs::read_link(process.join("exe")).is_ok_and(|exe| exe == executable)
            && line.split(|byte| *byte == 0).any(|argument| argument == mark.as_os_str().as_encoded_bytes())
    };
    let mut processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let found = processes.find(|process| is_it(process)).expect("the daemon runs");
    Pid::from_raw(found.file_name().unwrap().to_str().unwrap().parse().unwrap())
}
