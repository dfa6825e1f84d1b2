//! Network namespaces on the real kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must fail")]
#![allow(clippy::disallowed_methods, reason = "a process is what keeps a namespace alive")]

use kernel::netns::Netns;
use kernel::sysctl;
use nix::errno::Errno;
use std::path::Path;

fn fresh() -> Netns {
    Netns::create().expect("these tests make network namespaces: run them as root, or in a user namespace")
}

#[test]
fn a_guard_enters_and_returns() {
    let (before, inside) = (Netns::current().unwrap().id(), fresh());
    assert_ne!(before, inside.id());
    {
        let _guard = inside.enter().unwrap();
        assert_eq!(Netns::current().unwrap().id(), inside.id());
    }
    assert_eq!(Netns::current().unwrap().id(), before);
}

#[test]
fn a_thread_works_inside_and_the_caller_stays_outside() {
    let (before, inside) = (Netns::current().unwrap().id(), fresh());
    assert_eq!(inside.run(|| Netns::current().unwrap().id()).unwrap(), inside.id());
    assert_eq!(Netns::current().unwrap().id(), before);
}

#[test]
fn handles_and_paths_lead_to_the_same_namespace() {
    let one = fresh();
    assert_eq!(one.try_clone().unwrap().id(), one.id());
    assert_eq!(Netns::open(&one.path()).unwrap().id(), one.id());
}

#[test]
fn a_pinned_namespace_outlives_its_handle() {
    let path = std::env::temp_dir().join(format!("netns-test-{}", std::process::id()));
    let namespace = fresh();
    let id = namespace.id();
    namespace.pin(&path).unwrap();
    assert_eq!(namespace.pin(&path).unwrap_err().errno, Errno::EEXIST);
    drop(namespace);
    let found = Netns::open(&path).map(|found| found.id());
    Netns::unpin(&path).unwrap();
    assert_eq!(found.unwrap(), id);
    assert!(!path.exists());
    Netns::unpin(&path).expect("gone already is success");
}

#[test]
fn what_is_no_network_namespace_is_refused() {
    for path in ["/proc/self/ns/mnt", "/dev/null", "/etc"] {
        let error = Netns::open(Path::new(path)).unwrap_err();
        assert_eq!(error.errno, Errno::EINVAL, "{error}");
        assert!(error.to_string().contains(path), "{error}");
    }
    assert_eq!(Netns::open(Path::new("/nowhere")).unwrap_err().errno, Errno::ENOENT);
}

#[test]
fn sysctls_are_those_of_the_namespace() {
    let outside = sysctl::get("net.ipv4.conf.lo.forwarding").unwrap();
    fresh()
        .run(|| {
            let value = if outside == "0" { "1" } else { "0" };
            sysctl::set("net.ipv4.conf.lo.forwarding", value).unwrap();
            assert_eq!(sysctl::get("net/ipv4/conf/lo/forwarding").unwrap(), value);
        })
        .unwrap();
    assert_eq!(sysctl::get("net.ipv4.conf.lo.forwarding").unwrap(), outside);
    let error = sysctl::set("net.ipv4.conf.nowhere0.forwarding", "1").unwrap_err();
    assert_eq!(error.errno, Errno::ENOENT);
    assert!(error.to_string().contains("net.ipv4.conf.nowhere0.forwarding"), "{error}");
}

/// By a descriptor, by a mount, by a process: whatever keeps a namespace alive is seen, and nothing is seen of one that is
/// gone.
#[test]
fn the_living_are_found_whatever_they_live_by() {
    let lives = |name: &str| {
        let mut names = Vec::new();
        let collect = &mut |netns: &Netns| netns.name().map(|name| names.push(name));
        kernel::netns::for_each_living(collect).unwrap();
        let found = names.iter().filter(|found| *found == name).count();
        assert!(found <= 1, "{name} was visited {found} times");
        found == 1
    };
    // Somebody else who looks around has it open for a moment.
    let ends = |name: &str| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while lives(name) {
            assert!(std::time::Instant::now() < deadline, "{name} does not end");
        }
    };
    let path = std::env::temp_dir().join(format!("netns living {}", std::process::id()));
    let namespace = fresh();
    let name = namespace.name().unwrap();
    assert!(lives(&name), "by a descriptor");
    namespace.pin(&path).unwrap();
    let guard = namespace.enter().unwrap();
    let mut process = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    drop(guard);
    drop(namespace);
    let mounted_and_inhabited = lives(&name);
    process.kill().unwrap();
    process.wait().unwrap();
    let mounted = lives(&name);
    Netns::unpin(&path).unwrap();
    assert!(mounted_and_inhabited && mounted);
    ends(&name);
    assert!(lives(&Netns::current().unwrap().name().unwrap()), "our own");

    let namespace = fresh();
    let name = namespace.name().unwrap();
    let guard = namespace.enter().unwrap();
    let mut process = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    drop(guard);
    drop(namespace);
    let inhabited = lives(&name);
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(inhabited, "by a process");
    ends(&name);
}
