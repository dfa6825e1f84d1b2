//! The ledger on a real file system: crashes between any two changes, foreign hands, rest, effort, full disks.

pub(super) mod crash;
mod death;
mod trouble;
pub(super) mod world;

use super::*;
use crate::host_local::{self, HostLocal};
use crate::range::Range;
use cni_spec::{AddResult, CniError, Dns, Sandbox};
use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use tempfile::{TempDir, tempdir};

const NETWORK: &str = "cbr0";

fn set(subnet: &str) -> RangeSet {
    RangeSet::new(vec![Range::new(subnet.parse().unwrap(), None, None, None).unwrap()]).unwrap()
}

fn id(container_id: impl ToString) -> AttachmentId {
    AttachmentId { container_id: container_id.to_string(), ifname: "eth0".into() }
}

/// 13 addresses of each family, on a machine on which nobody is alive.
fn pool(data_dir: &Path) -> HostLocal {
    world::live(|_| ());
    HostLocal {
        sets: vec![
            set("10.1.0.0/28"),
            RangeSet::new(vec![Range::new("fd00::/64".parse().unwrap(), None, "fd00::e".parse().ok(), None).unwrap()])
                .unwrap(),
        ],
        requested: BTreeSet::new(),
        routes: Vec::new(),
        dns: Dns::default(),
        data_dir: data_dir.to_owned(),
    }
}

/// A sandbox of which nothing is known but whose it is.
fn sandbox(container_id: impl ToString) -> Sandbox {
    Sandbox { id: id(container_id), netns: "/no/such/namespace".into(), args: BTreeMap::new(), path: Vec::new() }
}

fn try_add(ipam: &HostLocal, container_id: impl ToString) -> Result<AddResult, CniError> {
    host_local::add(ipam, NETWORK, &sandbox(container_id), &|_, _| Ok(()))
}

fn add(ipam: &HostLocal, container_id: impl ToString) -> Vec<IpAddr> {
    try_add(ipam, container_id).unwrap().ips.iter().map(|ip| ip.address.ip()).collect()
}

fn del(ipam: &HostLocal, container_id: impl ToString) {
    host_local::del(&ipam.data_dir, NETWORK, &id(container_id)).unwrap();
}

fn held(ipam: &HostLocal, container_id: impl ToString) -> Vec<IpAddr> {
    host_local::addresses_of(&ipam.data_dir, NETWORK, &id(container_id)).unwrap()
}

/// What is in the directory, read without the ledger.
fn files(directory: &TempDir) -> BTreeMap<IpAddr, String> {
    let entries = fs::read_dir(directory.path().join(NETWORK)).unwrap().map(Result::unwrap);
    let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap().parse().ok();
    entries.filter_map(|entry| Some((name(&entry)?, fs::read_to_string(entry.path()).unwrap()))).collect()
}

fn foreign(directory: &TempDir, name: &str, content: impl AsRef<[u8]>) {
    fs::write(directory.path().join(NETWORK).join(name), content).unwrap();
}

#[test]
fn writes_what_the_reference_writes() {
    let directory = tempdir().unwrap();
    let ipam = pool(directory.path());
    assert_eq!(add(&ipam, "c1"), ["10.1.0.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]);
    let network = directory.path().join(NETWORK);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for (name, content) in [
        ("10.1.0.2", "c1\r\neth0"),
        ("fd00::2", "c1\r\neth0"),
        ("last_reserved_ip.0", "10.1.0.2"),
        ("last_reserved_ip.1", "fd00::2"),
    ] {
        assert_eq!(fs::read_to_string(network.join(name)).unwrap(), content);
        assert_eq!(mode(&network.join(name)), 0o600, "{name}");
    }
    assert_eq!(mode(&network), 0o755);
    assert_eq!(fs::read_dir(&network).unwrap().count(), 5, "nothing of ours but the lock");
}

/// The index must notice a change that follows ours within one tick of the kernel's clock.
#[test]
fn notices_foreign_changes_at_once() {
    let directory = tempdir().unwrap();
    let ipam = pool(directory.path());
    for round in 0..200 {
        add(&ipam, "ours");
        foreign(&directory, "10.1.0.1", "go\r\neth0");
        assert_eq!(held(&ipam, "go"), ["10.1.0.1".parse::<IpAddr>().unwrap()], "round {round}");
        del(&ipam, "ours");
        fs::remove_file(directory.path().join(NETWORK).join("10.1.0.1")).unwrap();
        assert_eq!(held(&ipam, "go"), Vec::<IpAddr>::new(), "round {round}");
    }
    // A reservation that is rewritten in place leaves no trace on the directory: the answer is checked against the file.
    let [ip, _] = add(&ipam, "ours")[..] else { unreachable!() };
    foreign(&directory, &ip.to_string(), "other\r\neth0");
    assert_eq!(held(&ipam, "ours").len(), 1);
    assert_eq!(held(&ipam, "other"), [ip]);
}

#[test]
fn what_is_nobodys_is_given_when_nothing_else_is_left() {
    let directory = tempdir().unwrap();
    let ipam = pool(directory.path());
    add(&ipam, "c1");
    for (last, content) in
        [(3, &b""[..]), (4, b"c9\r\n"), (5, b"\0\0\0\0\0"), (6, b"c9\r"), (7, b"\xff\xfe\xfd"), (8, &[b'x'; 5000])]
    {
        foreign(&directory, &format!("10.1.0.{last}"), content);
    }
    // Not addresses as the reference writes them: not looked at, not removed.
    for name in ["010.1.0.3", "fd00::0003", "::ffff:10.1.0.3", "notes.txt", "10.1.0.3.bak"] {
        foreign(&directory, name, "precious");
    }
    // In the way for good, but the others do not suffer.
    fs::create_dir(directory.path().join(NETWORK).join("10.1.0.9")).unwrap();
    symlink("/etc/passwd", directory.path().join(NETWORK).join("10.1.0.10")).unwrap();
    let given: Vec<String> = (0..10).map(|pod| add(&ipam, pod)[0].to_string()).collect();
    assert_eq!(given, [11, 12, 13, 14, 3, 4, 5, 6, 7, 8].map(|last| format!("10.1.0.{last}")));
    let error = try_add(&ipam, "x").unwrap_err().to_string();
    assert!(error.contains("no IP addresses available in range set: 10.1.0.1-10.1.0.14"), "{error}");
    assert_eq!(host_local::status(&ipam, NETWORK).unwrap_err().code, cni_spec::Code::NotAvailable);
    assert_eq!(fs::read(directory.path().join(NETWORK).join("notes.txt")).unwrap(), b"precious");
    // One that turns up empty later, without a change to the directory, is found when it is needed.
    File::create(directory.path().join(NETWORK).join("10.1.0.5")).unwrap();
    assert_eq!(add(&ipam, "late")[0].to_string(), "10.1.0.5");
    foreign(&directory, "10.1.0.6", "trunc\r\n");
    assert_eq!(add(&ipam, "later")[0].to_string(), "10.1.0.6");
}

#[test]
fn a_reservation_without_interface_is_every_interfaces() {
    let directory = tempdir().unwrap();
    let ipam = pool(directory.path());
    add(&ipam, "c1");
    foreign(&directory, "10.1.0.5", "old");
    add(&ipam, "c2");
    let error = try_add(&ipam, "old").unwrap_err().to_string();
    assert!(error.contains("10.1.0.5 has been allocated to old, duplicate allocation is not allowed"), "{error}");
    host_local::gc(&ipam.data_dir, NETWORK, &[id("old")]).unwrap();
    assert_eq!(files(&directory).len(), 1);
    del(&ipam, "old");
    assert!(files(&directory).is_empty());
}

/// What an operation costs does not depend on how many reservations there are: nothing lists the directory.
#[test]
fn effort_does_not_grow_with_the_pool() {
    let directory = tempdir().unwrap();
    let ranges = set("10.64.0.0/12");
    let place = Place::new(directory.path(), NETWORK).unwrap();
    Ledger::open(&place).unwrap().close();
    for pod in 0..3000_u32 {
        let ip = IpAddr::from(std::net::Ipv4Addr::from(0x0a40_0002 + pod));
        foreign(&directory, &ip.to_string(), format!("pod{pod}\r\neth0"));
    }
    foreign(&directory, "last_reserved_ip.0", "10.64.11.185");
    let ledger = Ledger::open(&place).unwrap();
    assert_eq!(ledger.scans, 1, "foreign changes are read once");
    ledger.close();
    for round in 0..10 {
        let mut ledger = Ledger::open(&place).unwrap();
        assert!(ledger.held_by(&id("new")).unwrap().is_empty());
        let ip = ledger.next(&ranges, 0).unwrap().unwrap();
        assert!(ledger.reserve(&id("new"), ip, 0, Life::of(Path::new("/proc/self/ns/net")).as_ref()).unwrap());
        assert_eq!((ledger.scans, ledger.probes, ledger.names.is_some()), (0, 1, false), "add {round}");
        ledger.close();
        let mut ledger = Ledger::open(&place).unwrap();
        assert_eq!(ledger.held_by(&id("new")).unwrap(), [ip]);
        ledger.release(ip).unwrap();
        assert_eq!((ledger.scans, ledger.names.is_some()), (0, false), "del {round}");
        ledger.close();
    }
    // A long run of taken addresses costs one listing and no reading.
    foreign(&directory, "last_reserved_ip.0", "10.64.0.1");
    let mut ledger = Ledger::open(&place).unwrap();
    assert_eq!(ledger.next(&ranges, 0).unwrap().unwrap().to_string(), "10.64.11.196", "those before it rest");
    assert_eq!((ledger.scans, ledger.probes, ledger.names.is_some()), (0, PROBES, true));
}

thread_local!(static NOW: Cell<u64> = const { Cell::new(1000) });

#[test]
fn released_addresses_rest() {
    let directory = tempdir().unwrap();
    let place = Place { clock: || Duration::from_secs(NOW.get()), ..Place::new(directory.path(), NETWORK).unwrap() };
    let ranges = set("10.1.0.0/29");
    let take = |container_id: &str| {
        let mut ledger = Ledger::open(&place).unwrap();
        let ip = ledger.next(&ranges, 0).unwrap();
        if let Some(ip) = ip {
            assert!(ledger.reserve(&id(container_id), ip, 0, None).unwrap());
        }
        ledger.close();
        ip.map(|ip| ip.to_string())
    };
    let give = |container_id: &str| {
        let mut ledger = Ledger::open(&place).unwrap();
        for ip in ledger.held_by(&id(container_id)).unwrap() {
            ledger.release(ip).unwrap();
        }
        ledger.close();
    };
    let some = |last: u8| Some(format!("10.1.0.{last}"));
    for (pod, last) in [("a", 2), ("b", 3), ("c", 4)] {
        assert_eq!(take(pod), some(last));
    }
    for (now, pod) in [(1001, "c"), (1002, "a"), (1003, "b")] {
        NOW.set(now);
        give(pod);
    }
    // Round robin goes on with those that did not rest, then those that rest the longest.
    assert_eq!(take("d"), some(5));
    assert_eq!(take("e"), some(6));
    assert_eq!(take("f"), some(4), "the least recently released");
    NOW.set(1061);
    give("f");
    assert_eq!(take("g"), some(2), "all rest, and this one was released first");
    NOW.set(1063);
    assert_eq!(take("h"), some(3), "has rested");
    assert_eq!(take("i"), some(4), "still rests, but there is no other");
    assert_eq!(take("j"), None);
}

#[test]
fn rest_ends() {
    let directory = tempdir().unwrap();
    let side = directory.path();
    let ip: IpAddr = "fd00::5".parse().unwrap();
    let at = |seconds| Released::load(side, Duration::from_secs(seconds)).when(ip).is_some();
    released::note(side, ip, Duration::from_secs(500)).unwrap();
    assert!(at(500) && at(559));
    assert!(!at(560), "60 s are over");
    assert!(!at(499), "a record of an earlier boot");
    // Torn and oversized logs are no obstacle, and do not stay so.
    fs::write(side.join("released"), [7; 30]).unwrap();
    released::note(side, ip, Duration::from_secs(700)).unwrap();
    assert!(at(701));
    fs::write(side.join("released"), vec![0xff; 1 << 20]).unwrap();
    assert!(!at(701));
    released::note(side, ip, Duration::from_secs(800)).unwrap();
    assert!(at(801));
    assert_eq!(fs::metadata(side.join("released")).unwrap().len(), 24);
    // The log does not grow for ever.
    for _ in 0..9000 {
        released::note(side, ip, Duration::from_secs(800)).unwrap();
    }
    assert!(fs::metadata(side.join("released")).unwrap().len() <= 2 * 4096 * 24);
}

#[test]
fn waits_for_the_lock_but_not_for_ever() {
    let directory = tempdir().unwrap();
    let place = Place { patience: Duration::from_millis(30), ..Place::new(directory.path(), NETWORK).unwrap() };
    let held = Ledger::open(&place).unwrap();
    let error = Ledger::open(&place).unwrap_err();
    let IpamError::Busy { holder, .. } = &error else { panic!("{error}") };
    assert_eq!(*holder, Some(std::process::id()));
    let text = cni_spec::CniError::from(error);
    assert_eq!(text.code, cni_spec::Code::TryAgain);
    assert!(text.msg.contains("cbr0/lock is locked by process"), "{text}");
    // Who gave up waiting does not take the lock later on.
    held.close();
    let patient = Place { patience: PATIENCE, ..place.clone() };
    Ledger::open(&patient).unwrap().close();

    // The lock of a directory that was deleted in the meantime protects nothing: wait for the right one.
    let held = Ledger::open(&patient).unwrap();
    let waiting = std::thread::spawn({
        let patient = patient.clone();
        move || Ledger::open(&patient).map(Ledger::close)
    });
    fs::remove_file(directory.path().join(NETWORK).join("lock")).unwrap();
    held.close();
    waiting.join().unwrap().unwrap();
    assert!(directory.path().join(NETWORK).join("lock").exists());
}

#[test]
fn names_that_are_no_file_names_are_refused() {
    for network in ["", ".", "..", "a/b", "/", ".index", "a\0b", "a\nb", &"n".repeat(256)] {
        assert!(matches!(Place::new(Path::new("/x"), network), Err(IpamError::Name(_))), "{network:?}");
    }
    let directory = tempdir().unwrap();
    host_local::del(directory.path(), NETWORK, &id("c1")).unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "DEL makes no directories");
}
