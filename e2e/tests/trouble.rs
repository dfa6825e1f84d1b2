//! Disks, locks and clocks that do not do what they should: a clear error, nothing lost, nothing left, and what comes later
//! works.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

use e2e::runner::{Attachment, Failure, Network};
use e2e::soak::ground::Ground;
use e2e::soak::remains::{Remains, devices};
use e2e::soak::ways::{Size, WAYS, Way};
use e2e::tools;
use e2e::workdir::WorkDir;
use kernel::netns::{Netns, isolate_mounts};
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::statvfs;
use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// `CNI error codes`: I/O failure, and "try again later" (CNI specification, section 5).
const IO: u64 = 5;
const TRY_AGAIN: u64 = 11;
const NOT_AVAILABLE: u64 = 50;

/// A node whose plugins have their files on a file system of their own, with one pod that stays.
struct Node {
    ground: Ground,
    network: Network,
    pod: Netns,
    attachment: Attachment,
    intact: Remains,
    _bystander: Netns,
    _work: WorkDir,
}

impl Node {
    fn new(way: Way) -> Self {
        tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
        // Of this thread and those that it starts: nothing stays mounted, whatever happens.
        isolate_mounts().unwrap();
        let work = WorkDir::new().unwrap();
        let ground = Ground::new(work.path()).unwrap();
        mount(Some("tmpfs"), &ground.files, Some("tmpfs"), MsFlags::empty(), Some("size=4m")).unwrap();
        let network = way.network(&ground.files, Size::Small).unwrap();
        let (bystander, pod) = (Netns::create().unwrap(), Netns::create().unwrap());
        ground.runtime.add(&network, &way.attachment("bystander".into(), &bystander.path(), 8080)).unwrap();
        let attachment = way.attachment("victim".into(), &pod.path(), 8081);
        ground.runtime.add(&network, &attachment).unwrap();
        ground.runtime.del(&network, &attachment).unwrap();
        let intact = ground.remains().unwrap();
        Node { ground, network, pod, attachment, intact, _bystander: bystander, _work: work }
    }

    fn remount(&self, flags: MsFlags, options: &str) {
        let flags = flags | MsFlags::MS_REMOUNT;
        mount(Some("tmpfs"), &self.ground.files, Some("tmpfs"), flags, Some(options)).unwrap();
    }

    /// Leaves room for so many more inodes, or pages.
    fn make_narrow(&self, what: Narrow, room: u64) {
        let usage = statvfs(&self.ground.files).unwrap();
        let options = match what {
            Narrow::Inodes => format!("size=4m,nr_inodes={}", usage.files() - usage.files_free() + room),
            Narrow::Pages => {
                let used = usage.blocks() - usage.blocks_free() + room;
                format!("nr_inodes=0,size={}", used * usage.fragment_size())
            }
        };
        self.remount(MsFlags::empty(), &options);
    }

    fn make_wide(&self) {
        self.remount(MsFlags::empty(), "size=4m,nr_inodes=0");
    }

    fn add(&self) -> e2e::Result<serde_json::Value> {
        self.ground.runtime.add(&self.network, &self.attachment)
    }

    fn del(&self) -> e2e::Result<()> {
        self.ground.runtime.del(&self.network, &self.attachment)
    }

    fn assert_intact(&self, context: &str) {
        if let Some(difference) = self.ground.remains().unwrap().difference(&self.intact) {
            panic!("{context}: left on the node:\n{difference}");
        }
        assert_eq!(devices(&self.pod).unwrap(), ["lo"], "{context}");
    }

    /// A pod comes, is as it should be, and goes.
    fn assert_usable(&self, context: &str) {
        self.add().unwrap_or_else(|error| panic!("{context}: later ADD: {error}"));
        self.ground.runtime.check(&self.network, &self.attachment).unwrap();
        self.del().unwrap();
        self.assert_intact(context);
    }
}

#[derive(Clone, Copy, Debug)]
enum Narrow {
    Inodes,
    Pages,
}

/// Code and text of a plugin's refusal.
fn refusal(error: e2e::Error) -> (u64, String) {
    let failure = error.downcast::<Failure>().unwrap();
    (failure.code.unwrap_or_else(|| panic!("no error object: {failure}")), failure.message)
}

#[test]
fn a_full_disk_is_told_and_left_as_it_was() {
    for way in WAYS {
        for what in [Narrow::Inodes, Narrow::Pages] {
            let node = Node::new(way);
            for room in 0.. {
                let context = format!("{}, room for {room} {what:?}", way.name());
                node.make_narrow(what, room);
                match node.add() {
                    Ok(_) => {
                        node.del().unwrap_or_else(|error| panic!("{context}: DEL: {error}"));
                        node.assert_intact(&context);
                        assert!(room > 0, "{context}: {:?} are not used up", what);
                        break;
                    }
                    Err(error) => {
                        let (code, message) = refusal(error);
                        assert_eq!(code, IO, "{context}: {message}");
                        let names = message.contains(node.ground.files.to_str().unwrap());
                        let tells = message.contains("ENOSPC") || message.contains("No space left");
                        assert!(names && tells, "{context}: {message}");
                        if !matches!(way, Way::Chain | Way::Flannel) {
                            node.assert_intact(&format!("{context}, without DEL"));
                        }
                        node.del().unwrap_or_else(|error| panic!("{context}: DEL: {error}"));
                        node.assert_intact(&context);
                    }
                }
            }
            node.make_wide();
            node.assert_usable(way.name());
        }
    }
}

#[test]
fn a_read_only_disk_is_told_and_loses_nothing() {
    for way in WAYS {
        let node = Node::new(way);
        let context = way.name();
        node.remount(MsFlags::MS_RDONLY, "size=4m");
        let (code, message) = refusal(node.add().unwrap_err());
        assert_eq!(code, IO, "{context}: {message}");
        assert!(message.contains("EROFS") || message.contains("Read-only"), "{context}: {message}");
        let (code, message) = refusal(node.ground.runtime.status(&node.network).unwrap_err());
        assert_eq!(code, NOT_AVAILABLE, "{context}: {message}");
        node.remount(MsFlags::empty(), "size=4m");
        node.add().unwrap();
        node.remount(MsFlags::MS_RDONLY, "size=4m");
        let (code, message) = refusal(node.del().unwrap_err());
        assert_eq!(code, IO, "{context}: {message}");
        node.remount(MsFlags::empty(), "size=4m");
        node.del().unwrap();
        node.assert_intact(context);
        node.assert_usable(context);
    }
}

#[test]
fn directories_that_somebody_removed_come_back() {
    for way in WAYS {
        let node = Node::new(way);
        let context = way.name();
        let forget = || {
            for entry in fs::read_dir(&node.ground.files).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    fs::remove_dir_all(entry.path()).unwrap();
                }
            }
        };
        node.add().unwrap();
        forget();
        node.del().unwrap_or_else(|error| panic!("{context}: DEL: {error}"));
        assert_eq!(devices(&node.pod).unwrap(), ["lo"], "{context}");
        // What the records alone knew is found by GC.
        node.ground.runtime.gc(&node.network, &[]).unwrap();
        let links = e2e::oracle::links(&node.ground.runtime.node).unwrap();
        assert!(!links.iter().any(|name| name.starts_with("veth") || name.starts_with("ifb")), "{context}: {links:?}");
        let ruleset = e2e::oracle::nft(&node.ground.runtime.node, "list ruleset").unwrap();
        assert!(!ruleset.contains("8081") && !ruleset.contains("8080"), "{context}: {ruleset}");
        node.add().unwrap_or_else(|error| panic!("{context}: ADD: {error}"));
        node.ground.runtime.check(&node.network, &node.attachment).unwrap();
        node.del().unwrap();
    }
}

/// A process of its own that holds the lock of `file`, until it is killed.
struct Holder(std::process::Child);

impl Holder {
    fn of(file: &Path) -> Self {
        let mut flock = Command::new("flock");
        let mut child = flock
            .args(["--no-fork", file.to_str().unwrap(), "sh", "-c", "echo held; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("flock of util-linux");
        let mut line = [0; 5];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lock files below a directory.
fn locks(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(locks(&path));
        } else if path.file_name().is_some_and(|name| name == "lock") {
            found.push(path);
        }
    }
    found
}

/// Each kind of lock and both verbs, at the same time: it takes as long as the plugins have patience.
#[test]
fn a_lock_that_nobody_lets_go_is_told_with_its_holder() {
    let run = |kind: &str, verb: &str| {
        let node = Node::new(Way::Native);
        let context = format!("{verb} without the lock of {kind}");
        if verb == "DEL" {
            node.add().unwrap();
        }
        let lock = locks(&node.ground.files.join(kind)).into_iter().next().unwrap();
        let holder = Holder::of(&lock);
        let start = Instant::now();
        let outcome = if verb == "DEL" { node.del() } else { node.add().map(drop) };
        assert!(start.elapsed() < Duration::from_secs(40), "{context}: {:?}", start.elapsed());
        let (code, message) = refusal(outcome.unwrap_err());
        assert_eq!(code, TRY_AGAIN, "{context}: {message}");
        let named = message.contains(&format!("by process {}", holder.0.id()));
        assert!(named && message.contains(lock.to_str().unwrap()), "{context}: {message}");
        // One that died holding it is as good as none.
        drop(holder);
        node.del().unwrap();
        node.assert_intact(&context);
        node.assert_usable(&context);
    };
    std::thread::scope(|scope| {
        for kind in ["networks", "host-ports"] {
            for verb in ["ADD", "DEL"] {
                scope.spawn(move || run(kind, verb));
            }
        }
    });
}

/// Gives everything below `directory` the time `when`.
fn touch(directory: &Path, when: SystemTime) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            touch(&entry.path(), when);
        }
        if !kind.is_symlink() {
            File::open(entry.path()).unwrap().set_times(FileTimes::new().set_modified(when)).unwrap();
        }
    }
}

/// Times of files are told by the wall clock, which may be set; releases by the one that counts since boot, which differs
/// from one container of a runtime to another (time_namespaces(7)) and begins anew with each boot.
#[test]
fn clocks_that_jump_change_nothing() {
    for way in [Way::Native, Way::Chain, Way::Flannel] {
        let node = Node::new(way);
        let (past, future) = (SystemTime::UNIX_EPOCH, SystemTime::now() + Duration::from_secs(60 * 365 * 86_400));
        for when in [past, future] {
            touch(&node.ground.files, when);
            node.add().unwrap();
            touch(&node.ground.files, when);
            node.ground.runtime.check(&node.network, &node.attachment).unwrap();
            touch(&node.ground.files, when);
            node.del().unwrap();
            node.assert_intact(way.name());
            touch(&node.ground.files, when);
            node.ground.runtime.gc(&node.network, &[("bystander", "eth0")]).unwrap();
            node.assert_intact(way.name());
            node.assert_usable(way.name());
        }
    }
    let node = Node::new(Way::Native);
    let later = ["/usr/bin/unshare", "--time", "--boottime", "100000000", "--fork"];
    for (add, del) in [(&later[..], &[][..]), (&[], &later[..]), (&later[..], &later[..])] {
        for (verb, wrapper) in [("ADD", add), ("DEL", del)] {
            let output = node.ground.runtime.call(wrapper, verb, &node.network, &node.attachment).unwrap();
            assert!(output.status.success(), "{verb} under {wrapper:?}: {output:?}");
        }
        node.assert_intact("another time since boot");
        node.assert_usable("another time since boot");
    }
}

/// What a trace of strace says that a process called while it held a lock, for each lock taken: its file, and the calls.
fn under_locks(trace: &str) -> Vec<(PathBuf, Vec<String>)> {
    let mut opened = String::new();
    let mut held: Option<(&str, PathBuf, Vec<String>)> = None;
    let mut windows = Vec::new();
    for line in trace.lines() {
        // 4711  openat(AT_FDCWD, "/x/lock", ...) = 5
        let (pid, call) = line.split_once(' ').map_or((line, ""), |(pid, call)| (pid, call.trim_start()));
        if call.starts_with("open") && call.contains("/lock\"") {
            opened = call.split('"').nth(1).unwrap_or_default().into();
        } else if call.starts_with("flock(") && call.contains("LOCK_EX") {
            assert!(held.is_none(), "a lock in a lock: {call}");
            held = Some((pid, opened.clone().into(), Vec::new()));
        } else if call.starts_with("flock(") && call.contains("LOCK_UN") {
            windows.extend(held.take().map(|(_, lock, calls)| (lock, calls)));
        } else if let Some((holder, _, calls)) = &mut held
            && *holder == pid
        {
            // Devices that are going already are others' business: those of processes of their own.
            calls.push(call.to_owned());
        }
    }
    assert!(held.is_none(), "a lock that is kept: {held:?}");
    windows
}

/// A lock is held for a few dozen system calls on files, and not while the kernel works: what others wait for is never a
/// device that is made or removed. Under the lock on the node's ports there is the transaction that goes with what is
/// recorded, of which the kernel does one at a time in any case (nf_tables' commit mutex).
#[test]
fn locks_are_held_for_moments_and_not_across_work_of_the_kernel() {
    for way in [Way::Native, Way::Masquerade, Way::PointToPoint] {
        let node = Node::new(way);
        let trace = node.ground.files.join("trace");
        let calls =
            "flock,open,openat,socket,sendto,sendmsg,recvfrom,recvmsg,poll,ppoll,futex,nanosleep,clock_nanosleep,setns";
        let filter = format!("trace={calls},%file,read,write,close");
        let strace = ["/usr/bin/strace", "-f", "-qq", "-s", "4096", "-o", trace.to_str().unwrap(), "-e", &filter];
        for verb in ["ADD", "DEL"] {
            let context = format!("{verb} of {}", way.name());
            let output = node.ground.runtime.call(&strace, verb, &node.network, &node.attachment).unwrap();
            assert!(output.status.success(), "{context}: {output:?}");
            let windows = under_locks(&fs::read_to_string(&trace).unwrap());
            fs::remove_file(&trace).unwrap();
            assert!(!windows.is_empty(), "{context}");
            for (lock, calls) in windows {
                let context = format!("{context}, {}: {calls:#?}", lock.display());
                assert!(calls.len() < 60, "{context}");
                let is_ports = lock.starts_with(node.ground.files.join("host-ports"));
                assert!(is_ports || lock.starts_with(node.ground.files.join("networks")), "{context}");
                let waits = ["poll", "ppoll", "futex", "nanosleep", "clock_nanosleep", "setns", "flock"];
                let is = |call: &String, names: &[&str]| names.iter().any(|name| call.starts_with(&format!("{name}(")));
                assert!(!calls.iter().any(|call| is(call, &waits)), "{context}");
                let messages: Vec<_> = calls.iter().filter(|call| is(call, &["sendto", "sendmsg"])).collect();
                // One transaction for each family, or for each of its sets.
                assert!(messages.iter().all(|call| call.contains("NFNL_MSG_BATCH_BEGIN")), "{context}");
                assert!(messages.len() <= if is_ports { 4 } else { 0 }, "{context}");
            }
        }
        node.assert_intact(way.name());
    }
}
