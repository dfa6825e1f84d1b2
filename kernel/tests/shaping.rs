//! Queues, filters and ifb devices on the real kernel: what is set is read back, and what is limited flows at that rate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on must fail")]

use kernel::Mac;
use kernel::netlink::{Link, LinkChange, LinkKind, Netlink, TokenBucket, VethSpec};
use kernel::netns::Netns;
use nix::errno::Errno;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

const BUCKET: TokenBucket = TokenBucket { rate: 1_250_000, burst: 12_500, limit: 25_000 };
/// Ethernet, IPv4 and UDP headers of a datagram.
const HEADERS: usize = 14 + 20 + 8;

/// A host and a pod, and the two ends of the pair that joins them, with an address each.
struct Pair {
    host: Netlink,
    pod: Netlink,
    near: Link,
    far: Link,
}

const NEAR: &str = "192.0.2.1";
const FAR: &str = "192.0.2.2";

fn pair() -> Pair {
    let netns = Netns::create().expect("these tests make network namespaces: run them as root, or in a user namespace");
    let mut host = Netlink::open_in(&netns).unwrap();
    let netns = Netns::create().unwrap();
    let mut pod = Netlink::open_in(&netns).unwrap();
    let spec = VethSpec {
        mac: Some(Mac::derive("near")),
        mtu: Some(1450),
        up: true,
        peer_mac: Some(Mac::derive("far")),
        ..VethSpec::new("veth0", "eth0", &netns)
    };
    host.create_veth(&spec).unwrap();
    let near = find(&mut host, "veth0");
    let far = find(&mut pod, "eth0");
    pod.set_link(far.index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    host.add_address(near.index, format!("{NEAR}/24").parse().unwrap()).unwrap();
    pod.add_address(far.index, format!("{FAR}/24").parse().unwrap()).unwrap();
    Pair { host, pod, near, far }
}

fn find(netlink: &mut Netlink, name: &str) -> Link {
    netlink.link(name).unwrap().unwrap_or_else(|| panic!("{name} is missing"))
}

#[test]
fn token_buckets_come_and_go() {
    let Pair { mut host, near, .. } = pair();
    assert_eq!(host.token_bucket(&near).unwrap(), None);
    assert!(!host.delete_token_bucket(&near).unwrap());
    let fast = TokenBucket { rate: 5_000_000_000, burst: 50_000_000, limit: 60_000_000 };
    for wanted in [BUCKET, fast, TokenBucket { rate: 1_000, burst: 3_000, limit: 15_000 }] {
        host.add_token_bucket(&near, &wanted).unwrap();
        let found = host.token_bucket(&near).unwrap().unwrap();
        assert_eq!((found.rate, found.limit), (wanted.rate, wanted.limit));
        assert!(found.burst.abs_diff(wanted.burst) <= 1 + wanted.burst / 1000, "{found:?} for {wanted:?}");
        let error = host.add_token_bucket(&near, &wanted).unwrap_err();
        assert_eq!(error.errno, Errno::EEXIST);
        assert!(error.to_string().contains(&format!("veth0 to {} bit/s by tbf", wanted.rate * 8)), "{error}");
        assert!(host.delete_token_bucket(&near).unwrap());
        assert!(!host.delete_token_bucket(&near).unwrap());
        assert_eq!(host.token_bucket(&near).unwrap(), None);
    }
    host.delete_link("veth0").unwrap();
    assert!(!host.delete_token_bucket(&near).unwrap());
    assert_eq!(host.add_token_bucket(&near, &BUCKET).unwrap_err().errno, Errno::ENODEV);
}

#[test]
fn redirections_come_and_go() {
    let Pair { mut host, near, .. } = pair();
    assert_eq!(host.ingress_redirection(&near).unwrap(), None);
    assert!(!host.delete_ingress_redirection(&near).unwrap());
    host.create_ifb("ifb-test", 1450, "whose").unwrap();
    let ifb = find(&mut host, "ifb-test");
    assert_eq!((&ifb.kind, ifb.mtu, ifb.up), (&LinkKind::Other("ifb".into()), 1450, true));
    assert_eq!((ifb.alias.as_str(), host.addresses_of(ifb.index).unwrap()), ("whose", vec![]));
    assert_eq!(host.create_ifb("ifb-test", 1450, "").unwrap_err().errno, Errno::EEXIST);
    assert_eq!(find(&mut host, "ifb-test").alias, "whose", "a refused creation changes nothing");

    let nowhere = Link { index: 9999, ..ifb.clone() };
    let error = host.redirect_ingress(&near, &nowhere).unwrap_err();
    assert!(error.to_string().contains("redirecting what comes in by veth0 to ifb-test"), "{error}");
    assert_eq!(host.ingress_redirection(&near).unwrap(), None);
    host.redirect_ingress(&near, &ifb).expect("a failure leaves nothing behind");
    assert_eq!(host.ingress_redirection(&near).unwrap(), Some(ifb.index));
    assert_eq!(host.redirect_ingress(&near, &ifb).unwrap_err().errno, Errno::EEXIST);
    assert_eq!(host.ingress_redirection(&near).unwrap(), Some(ifb.index), "a refused redirection changes nothing");
    assert!(host.delete_ingress_redirection(&near).unwrap());
    assert!(!host.delete_ingress_redirection(&near).unwrap());
    assert_eq!(host.ingress_redirection(&near).unwrap(), None);
}

/// Floods `to` from `from` for a bit more than a second with three times the rate of [`BUCKET`]; the bytes per second that
/// arrive in the first second, whole frames, and the time that the last datagram of that second was on its way.
fn flood(from: &Netns, to: &Netns, address: &str) -> (f64, Duration) {
    const SIZE: usize = 1000;
    let receiver = to.run(|| UdpSocket::bind((address, 7000))).unwrap().unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let address: IpAddr = address.parse().unwrap();
    let sender = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    let epoch = Instant::now();
    let sending = std::thread::spawn(move || {
        let interval = Duration::from_secs_f64(SIZE as f64 / (3.0 * BUCKET.rate as f64));
        let mut sent = 0u32;
        while epoch.elapsed() < Duration::from_millis(1300) {
            if epoch.elapsed() < interval * sent {
                std::thread::sleep(Duration::from_micros(300));
                continue;
            }
            let mut datagram = [0; SIZE];
            datagram[..8].copy_from_slice(&(epoch.elapsed().as_nanos() as u64).to_be_bytes());
            sender.send_to(&datagram, (address, 7000)).unwrap();
            sent += 1;
        }
    });
    let mut datagram = [0; SIZE];
    receiver.recv(&mut datagram).expect("nothing comes through");
    let (start, mut bytes, mut delay) = (Instant::now(), SIZE + HEADERS, Duration::ZERO);
    while start.elapsed() < Duration::from_secs(1) && receiver.recv(&mut datagram).is_ok() {
        bytes += SIZE + HEADERS;
        delay = epoch.elapsed() - Duration::from_nanos(u64::from_be_bytes(*datagram.first_chunk().unwrap()));
    }
    sending.join().unwrap();
    (bytes as f64, delay)
}

/// The receiver stops looking up to one datagram late, and the machine may be busy.
fn assert_is_the_rate(measured: (f64, Duration)) {
    let (bytes, delay) = measured;
    let part = bytes / BUCKET.rate as f64;
    assert!((0.95..=1.05).contains(&part), "{part} of the rate in the first second");
    let queue = Duration::from_secs_f64(f64::from(BUCKET.limit) / BUCKET.rate as f64);
    assert!(delay > queue / 2 && delay < queue * 2, "{delay:?} in a queue for {queue:?}");
}

#[test]
fn what_leaves_flows_at_the_rate_from_the_first_second() {
    let Pair { mut host, pod, near, .. } = pair();
    host.add_token_bucket(&near, &BUCKET).unwrap();
    assert_is_the_rate(flood(host.netns(), pod.netns(), FAR));
}

#[test]
fn what_comes_in_flows_at_the_rate_from_the_first_second() {
    let Pair { mut host, pod, near, far } = pair();
    host.create_ifb("ifb-test", far.mtu, "").unwrap();
    let ifb = find(&mut host, "ifb-test");
    host.add_token_bucket(&ifb, &BUCKET).unwrap();
    host.redirect_ingress(&near, &ifb).unwrap();
    assert_is_the_rate(flood(pod.netns(), host.netns(), NEAR));
}
