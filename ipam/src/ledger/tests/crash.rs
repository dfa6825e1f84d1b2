//! A process that is killed: the operation ends at its n-th change to the disk. Unwinding runs no code of the ledger but
//! the release of the lock, which the kernel would do for a dead process.

use super::*;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

thread_local!(static LEFT: Cell<Option<usize>> = const { Cell::new(None) });

struct Killed;

pub(in crate::ledger) fn step() {
    LEFT.set(LEFT.get().map(|left| {
        if left == 0 {
            LEFT.set(None);
            resume_unwind(Box::new(Killed));
        }
        left - 1
    }));
}

/// Runs `operation` and kills it after `changes` changes. True if it came that far.
fn after(changes: usize, operation: impl FnOnce()) -> bool {
    LEFT.set(Some(changes));
    let killed = catch_unwind(AssertUnwindSafe(operation));
    LEFT.set(None);
    match killed {
        Ok(()) => false,
        Err(reason) if reason.is::<Killed>() => true,
        Err(reason) => resume_unwind(reason),
    }
}

/// A crash at any point, of any operation, leaves nothing that the next operations do not put right.
#[test]
fn survives_a_kill_between_any_two_changes() {
    type Operation = fn(&HostLocal);
    let operations: [(&str, bool, Operation); 6] = [
        ("add", false, |ipam| drop(try_add(ipam, "victim"))),
        ("add after a foreign change", true, |ipam| drop(try_add(ipam, "victim"))),
        ("del", false, |ipam| drop(host_local::del(&ipam.data_dir, NETWORK, &id("old")))),
        ("del after a foreign change", true, |ipam| drop(host_local::del(&ipam.data_dir, NETWORK, &id("old")))),
        ("gc", false, |ipam| drop(host_local::gc(&ipam.data_dir, NETWORK, &[id("stays")]))),
        ("check after a foreign change", true, |ipam| drop(host_local::check(ipam, NETWORK, &id("stays")))),
    ];
    for (name, foreign_change, operation) in operations {
        let mut kills = 0;
        loop {
            let directory = tempdir().unwrap();
            let ipam = pool(directory.path());
            let stays = add(&ipam, "stays");
            add(&ipam, "old");
            if foreign_change {
                foreign(&directory, "10.1.0.7", "go\r\neth0");
                foreign(&directory, "10.1.0.9", "");
            }
            let killed = crash::after(kills, || operation(&ipam));

            // The next one gets addresses of its own, whatever state the crash left.
            let before = files(&directory);
            let next = add(&ipam, "next");
            assert!(next.iter().all(|ip| before.get(ip).is_none_or(String::is_empty)), "{name}, killed after {kills}");
            assert_eq!(held(&ipam, "stays"), stays, "{name}, killed after {kills}");
            // The runtime's DELs find everything.
            for container_id in ["victim", "old", "go", "next"] {
                del(&ipam, container_id);
            }
            let left = files(&directory);
            // What names nobody stays until it is in the way.
            let left: BTreeMap<_, _> = left.into_iter().filter(|(_, content)| !content.is_empty()).collect();
            assert!(left.values().all(|content| content == "stays\r\neth0"), "{name}, killed after {kills}: {left:?}");
            assert_eq!(left.keys().copied().collect::<Vec<_>>(), stays, "{name}, killed after {kills}");
            // And no address is lost: 13 in all.
            let mut given: BTreeSet<IpAddr> = stays.into_iter().collect();
            for pod in 0..12 {
                given.extend(add(&ipam, pod));
            }
            assert_eq!(given.len(), 26, "{name}, killed after {kills}");
            assert!(try_add(&ipam, "one too many").is_err());

            if !killed {
                break;
            }
            kills += 1;
        }
        assert!(kills > 3, "{name} was killed only {kills} times");
    }
}

/// Killed while the dead make room, and the machine does not boot again: they are found once more.
#[test]
fn survives_a_kill_while_the_dead_are_buried() {
    let mut kills = 0;
    loop {
        let directory = tempdir().unwrap();
        let ipam = HostLocal { sets: vec![set("10.1.0.0/29")], ..pool(directory.path()) };
        world::boot("the first");
        for pod in 0..5 {
            add(&ipam, pod);
        }
        world::boot("the second");
        let killed = crash::after(kills, || drop(try_add(&ipam, "victim")));
        del(&ipam, "victim");
        let given: BTreeSet<IpAddr> = (10..15).flat_map(|pod| add(&ipam, pod)).collect();
        assert_eq!((given.len(), files(&directory).len()), (5, 5), "killed after {kills}");
        assert!(try_add(&ipam, "one too many").is_err(), "killed after {kills}");
        if !killed {
            break;
        }
        kills += 1;
    }
    assert!(kills > 15, "killed only {kills} times");
}
