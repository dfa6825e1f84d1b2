//! Who is dead, and who is not: reboots, namespaces that go, files that others have written, and a machine that is not
//! shown.

use super::*;
use kernel::netns::Netns;
use std::cell::RefCell;
use std::fs::FileTimes;
use std::time::SystemTime;

fn in_namespace(container_id: &str, netns: &Path) -> Sandbox {
    Sandbox { netns: netns.to_owned(), ..sandbox(container_id) }
}

fn add_in(ipam: &HostLocal, container_id: &str, netns: &Netns) -> Vec<IpAddr> {
    let sandbox = in_namespace(container_id, &netns.path());
    let result = host_local::add(ipam, NETWORK, &sandbox, &|_, _| Ok(())).unwrap();
    result.ips.iter().map(|ip| ip.address.ip()).collect()
}

/// As old as a file of an earlier boot.
fn age(directory: &TempDir, name: &str) {
    let times = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000));
    File::options().write(true).open(directory.path().join(NETWORK).join(name)).unwrap().set_times(times).unwrap();
}

fn fill(ipam: &HostLocal) {
    world::boot("the first");
    for pod in 0..13 {
        add(ipam, pod);
    }
}

#[test]
fn nobody_outlives_the_boot() {
    let directory = tempdir().unwrap();
    let ipam = pool(directory.path());
    fill(&ipam);
    let error = try_add(&ipam, "late").unwrap_err().to_string();
    assert!(error.contains("0 belong to pods that are alive, 13 to pods of which nothing is known"), "{error}");
    assert_eq!(host_local::status(&ipam, NETWORK).unwrap_err().code, cni_spec::Code::NotAvailable);
    world::boot("the second");
    host_local::status(&ipam, NETWORK).unwrap();
    assert_eq!(files(&directory).len(), 26, "STATUS only looks");
    let buried = RefCell::new(Vec::new());
    let result = host_local::add(&ipam, NETWORK, &sandbox("late"), &|id, addresses| {
        buried.borrow_mut().push((id.container_id.clone(), addresses.len()));
        Ok(())
    });
    assert_eq!(result.unwrap().ips.len(), 2);
    assert_eq!(files(&directory).len(), 2, "both families of all the dead");
    assert_eq!(buried.take().len(), 13);
}

/// What cannot be cleaned up after a dead pod keeps its addresses from being given to somebody else.
#[test]
fn an_address_that_still_leads_somewhere_is_not_free() {
    let directory = tempdir().unwrap();
    let ipam = pool(directory.path());
    fill(&ipam);
    world::boot("the second");
    let error = host_local::add(&ipam, NETWORK, &sandbox("late"), &|id, _| match id.container_id.as_str() {
        "7" => Ok(()),
        _ => Err(CniError::new(cni_spec::Code::Kernel, "no")),
    });
    assert_eq!(error.unwrap().ips[0].address.to_string(), "10.1.0.9/28");
    assert_eq!(files(&directory).len(), 26);
}

#[test]
fn an_attachment_dies_with_its_namespace_and_not_before() {
    let directory = tempdir().unwrap();
    let ipam = pool(directory.path());
    let mut pods: Vec<Netns> = (0..13).map(|_| Netns::create().expect("run these tests as root")).collect();
    let held: Vec<_> = pods.iter().enumerate().map(|(pod, netns)| add_in(&ipam, &pod.to_string(), netns)).collect();
    let full = |alive: &str| {
        let error = try_add(&ipam, "late").unwrap_err().to_string();
        assert!(error.contains(&format!("({alive} belong to pods that are alive")), "{error}");
    };
    full("13");
    // The path is gone, but the namespace is not: some other process has it.
    let path = pods[12].path();
    let moved = Netns::open(&path).unwrap();
    let name = moved.name().unwrap();
    drop(pods.pop());
    world::live(|survey| survey.namespaces.insert(name.clone()));
    full("13");
    // Nobody has it, but its veth is there.
    world::live(|survey| {
        survey.namespaces.clear();
        survey.marks.insert(format!("cni-plugin:{NETWORK}:12/eth0"));
    });
    full("13");
    drop(moved);
    world::live(|survey| survey.marks.clear());
    let late = add(&ipam, "late");
    assert_eq!(late, held[12]);
    // A namespace of the same number at the same place is another one.
    let place = directory.path().join("pod");
    let first = Netns::create().unwrap();
    del(&ipam, "late");
    first.pin(&place).unwrap();
    host_local::add(&ipam, NETWORK, &in_namespace("first", &place), &|_, _| Ok(())).unwrap();
    Netns::unpin(&place).unwrap();
    drop(first);
    let second = Netns::create().unwrap();
    second.pin(&place).unwrap();
    let next = try_add(&ipam, "next");
    Netns::unpin(&place).unwrap();
    assert_eq!(next.unwrap().ips.len(), 2);
}

/// The reference's files name neither boot nor namespace: their age has to do, and a look around.
#[test]
fn what_the_reference_wrote_before_the_boot_is_free_unless_it_shows_life() {
    let directory = tempdir().unwrap();
    let ipam = pool(directory.path());
    fill(&ipam);
    let network = directory.path().join(NETWORK);
    for last in 2..15 {
        for name in [format!("10.1.0.{last}"), format!("fd00::{last:x}")] {
            fs::remove_file(network.join(&name)).unwrap();
            foreign(&directory, &name, format!("go{last}\r\neth0"));
        }
    }
    world::boot("the second");
    let refused = |alive: usize, unknown: usize| {
        let error = try_add(&ipam, "late").unwrap_err().to_string();
        let counts = format!("({alive} belong to pods that are alive, {unknown} to pods of which nothing is known");
        assert!(error.contains(&counts), "{error}");
    };
    refused(0, 13);
    // One of two addresses is young: so is the container.
    age(&directory, "10.1.0.5");
    refused(0, 13);
    age(&directory, "fd00::5");
    for sign in 0..3 {
        world::live(|survey| {
            *survey = Default::default();
            match sign {
                0 => survey.addresses.insert("fd00::5".parse().unwrap()),
                1 => survey.neighbours.insert("10.1.0.5".parse().unwrap()),
                _ => survey.marks.insert(format!("cni-plugin:{NETWORK}:go5/eth0")),
            }
        });
        refused(1, 12);
    }
    world::live(|survey| survey.marks.clear());
    assert_eq!(add(&ipam, "late"), ["10.1.0.5".parse::<IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
}

/// What is recorded of a life belongs to the reservation that was made with it, not to a later one of the same name.
#[test]
fn a_container_that_the_reference_started_again_is_not_taken_for_its_former_self() {
    let directory = tempdir().unwrap();
    let ipam = pool(directory.path());
    fill(&ipam);
    let before = files(&directory);
    for name in ["10.1.0.5", "fd00::5"] {
        fs::remove_file(directory.path().join(NETWORK).join(name)).unwrap();
        foreign(&directory, name, "3\r\neth0");
    }
    world::boot("the second");
    assert_eq!(files(&directory), before);
    let late = add(&ipam, "late");
    assert_eq!(files(&directory).len(), 4, "the dead made room, and the one that was started again stays");
    assert_eq!(held(&ipam, 3), ["10.1.0.5".parse::<IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
    assert!(!late.contains(&"10.1.0.5".parse().unwrap()));
}

/// Somebody else's hand in the directory has the index made anew, but nothing is forgotten of those who stay.
#[test]
fn what_is_known_of_lives_outlasts_foreign_changes() {
    let directory = tempdir().unwrap();
    let ipam = pool(directory.path());
    fill(&ipam);
    foreign(&directory, "10.1.0.1", "go\r\neth0");
    del(&ipam, "nobody");
    fs::remove_file(directory.path().join(NETWORK).join("10.1.0.1")).unwrap();
    del(&ipam, "nobody");
    world::boot("the second");
    add(&ipam, "late");
    assert_eq!(files(&directory).len(), 2);
    // Without the index, what is left of it is age.
    fs::remove_dir_all(directory.path().join(".index")).unwrap();
    world::boot("the third");
    for pod in 0..12 {
        add(&ipam, pod);
    }
    assert!(try_add(&ipam, "one too many").is_err(), "the one whose life is forgotten stays");
}

#[test]
fn whoever_asks_for_an_address_gets_it_from_the_dead_but_not_from_the_living() {
    let directory = tempdir().unwrap();
    let mut ipam = pool(directory.path());
    world::boot("the first");
    add(&ipam, "old");
    ipam.requested = BTreeSet::from(["10.1.0.2".parse().unwrap()]);
    let error = try_add(&ipam, "new").unwrap_err().to_string();
    assert!(
        error.contains("requested IP address 10.1.0.2 is not available in range set")
            && error.contains("container old"),
        "{error}"
    );
    world::boot("the second");
    assert_eq!(add(&ipam, "new")[0].to_string(), "10.1.0.2");
    // The same container, started again after the reboot: its former self does not stand in its way.
    world::boot("the third");
    assert_eq!(add(&ipam, "new")[0].to_string(), "10.1.0.2");
    assert!(try_add(&ipam, "new").unwrap_err().to_string().contains("duplicate allocation is not allowed"));
    // A file that names nobody is no reservation, but its address may be in use.
    foreign(&directory, "10.1.0.7", "");
    ipam.requested = BTreeSet::from(["10.1.0.7".parse().unwrap()]);
    world::live(|survey| survey.addresses.insert("10.1.0.7".parse().unwrap()));
    assert!(try_add(&ipam, "other").unwrap_err().to_string().contains("10.1.0.7"));
    world::live(|survey| survey.addresses.clear());
    assert_eq!(add(&ipam, "other")[0].to_string(), "10.1.0.7");
}

#[test]
fn gc_frees_what_names_nobody_and_leaves_the_rest_to_the_runtime() {
    let directory = tempdir().unwrap();
    let ipam = pool(directory.path());
    world::boot("the first");
    add(&ipam, "stays");
    foreign(&directory, "10.1.0.7", "");
    foreign(&directory, "10.1.0.8", "trunc\r\n");
    world::live(|survey| survey.addresses.insert("10.1.0.8".parse().unwrap()));
    world::boot("the second");
    host_local::gc(&ipam.data_dir, NETWORK, &[id("stays")]).unwrap();
    let left: Vec<String> = files(&directory).keys().map(IpAddr::to_string).collect();
    assert_eq!(left, ["10.1.0.2", "10.1.0.8", "fd00::2"]);
}

/// A random walk: pods that come, go, and die without a word, and reboots. Never two owners, and nothing is lost for good.
#[test]
fn whatever_happens_addresses_are_used_or_free() {
    let seed = 0x2545_f491_4f6c_dd1d;
    let mut dice = trouble::Dice(seed);
    let directory = tempdir().unwrap();
    let ipam = pool(directory.path());
    let (mut boot, mut born) = (0, 0);
    world::boot("0");
    let mut alive: BTreeMap<String, (Netns, Vec<IpAddr>)> = BTreeMap::new();
    let (mut full, mut killed) = (0, 0);
    for round in 0..400 {
        let context = format!("seed {seed:x}, round {round}");
        let nth = |dice: &mut trouble::Dice, alive: &BTreeMap<String, _>| alive.keys().nth(dice.below(14)).cloned();
        match dice.below(40) {
            0 => {
                boot += 1;
                world::boot(&boot.to_string());
                alive.clear();
            }
            1..=9 => {
                if let Some(pod) = nth(&mut dice, &alive) {
                    alive.remove(&pod);
                    del(&ipam, pod);
                }
            }
            10..=16 => {
                killed += nth(&mut dice, &alive).and_then(|pod| alive.remove(&pod)).map_or(0, |_| 1);
            }
            _ => {
                born += 1;
                let netns = Netns::create().unwrap();
                let sandbox = in_namespace(&format!("pod{born}"), &netns.path());
                match host_local::add(&ipam, NETWORK, &sandbox, &|_, _| Ok(())) {
                    Ok(result) => {
                        let given: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.ip()).collect();
                        let taken = alive.values().any(|(_, held)| held.iter().any(|ip| given.contains(ip)));
                        assert!(!taken, "{context}: {given:?} is a living pod's");
                        alive.insert(sandbox.id.container_id, (netns, given));
                    }
                    Err(error) => {
                        full += 1;
                        assert_eq!(alive.len(), 13, "{context}: {error}");
                        assert!(error.msg.contains("13 belong to pods that are alive, 0 to"), "{context}: {error}");
                    }
                }
            }
        }
        for (pod, (_, addresses)) in &alive {
            assert_eq!(held(&ipam, pod), *addresses, "{context}");
        }
    }
    assert!(full > 5 && killed > 20 && boot > 3, "{full} times full, {killed} killed, {boot} reboots");
}

/// Rest and death together: with a quarter free nobody gets what was released less than a minute ago, also across restarts
/// and after the range has been gone through.
#[test]
fn with_a_quarter_free_addresses_rest() {
    thread_local!(static CLOCK: Cell<u64> = const { Cell::new(100_000) });
    let seed = 0x9e37_79b9_7f4a_7c15;
    let mut dice = trouble::Dice(seed);
    let directory = tempdir().unwrap();
    let place =
        Place { clock: || Duration::from_millis(CLOCK.get()), ..Place::new(directory.path(), NETWORK).unwrap() };
    let ranges = set("10.1.0.0/26");
    let size = 61;
    let mut given: BTreeMap<IpAddr, AttachmentId> = BTreeMap::new();
    let mut released: BTreeMap<IpAddr, u64> = BTreeMap::new();
    let (mut wraps, mut early) = (0, 0);
    for step in 0..1200 {
        // Slowly enough that a quarter of the range does not go through it within the minute.
        CLOCK.set(CLOCK.get() + 1500 + dice.below(6000) as u64);
        let now = CLOCK.get();
        let mut ledger = Ledger::open(&place).unwrap();
        if given.len() < size * 3 / 4 && dice.below(2) == 0 {
            let ip = ledger.next(&ranges, 0).unwrap().unwrap();
            let id = id(step);
            assert!(ledger.reserve(&id, ip, 0, None).unwrap());
            if let Some(when) = released.get(&ip) {
                wraps += 1;
                early += u32::from(now - when < 60_000);
            }
            assert!(given.insert(ip, id).is_none(), "seed {seed:x}, step {step}: {ip} was given twice");
        } else if let Some(ip) = given.keys().nth(dice.below(size)).copied() {
            ledger.release(ip).unwrap();
            given.remove(&ip);
            released.insert(ip, now);
        }
        ledger.close();
    }
    assert!(wraps > 200, "the range was hardly gone through: {wraps}");
    assert_eq!(early, 0, "seed {seed:x}: of {wraps} addresses that were given again {early} had not rested");
}
