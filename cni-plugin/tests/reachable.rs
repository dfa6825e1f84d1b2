//! When ADD returns, the pod is there for everybody: at once, in both families, also under an address that was another's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

mod harness;

use harness::{IPV4, IPV6, Node, addresses, eth0, host_end, ip};
use kernel::netlink::Netlink;
use kernel::netns::Netns;
use kernel::sysctl;
use serde_json::json;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// A lost first packet is sent again after a second (RFC 6298): what answers sooner has lost none.
const AT_ONCE: Duration = Duration::from_millis(500);

fn listen(netns: &Netns, ip: IpAddr) -> TcpListener {
    let _inside = netns.enter().unwrap();
    TcpListener::bind((ip, 80)).unwrap_or_else(|error| panic!("{ip} is not usable: {error}"))
}

fn ask(from: &Netns, ip: IpAddr) -> Duration {
    let start = Instant::now();
    let _inside = from.enter().unwrap();
    TcpStream::connect_timeout(&SocketAddr::new(ip, 80), Duration::from_secs(5))
        .unwrap_or_else(|error| panic!("{ip}: {error}"));
    start.elapsed()
}

#[test]
fn the_first_packet_arrives_in_both_families() {
    for native in [false, true] {
        let node = Node::new();
        let config = if native { node.native("1.1.0") } else { node.bridge("1.0.0", &[IPV4, IPV6]) };
        let mut earlier: Option<(Netns, Vec<TcpListener>, Vec<IpAddr>)> = None;
        for number in 0..8 {
            let pod = Netns::create().unwrap();
            let result = node.add(eth0(&format!("c{number}"), &pod), &config).unwrap();
            let ips = addresses(&result);
            let listeners: Vec<TcpListener> = ips.iter().map(|ip| listen(&pod, *ip)).collect();
            for ip in &ips {
                let took = ask(&node.host, *ip);
                assert!(took < AT_ONCE, "node to pod {number}, {ip}: {took:?}");
                // Through the bridge back to itself.
                let took = ask(&pod, *ip);
                assert!(took < AT_ONCE, "{took:?}");
            }
            if let Some((other, _, other_ips)) = &earlier {
                for (from, ip) in other_ips.iter().map(|ip| (&pod, ip)).chain(ips.iter().map(|ip| (other, ip))) {
                    let took = ask(from, *ip);
                    assert!(took < AT_ONCE, "pod to pod {number}, {ip}: {took:?}");
                }
            }
            earlier = Some((pod, listeners, ips));
        }
    }
}

#[test]
fn an_address_answers_at_once_for_its_next_holder() {
    let (node, witness) = (Node::new(), Netns::create().unwrap());
    let mut config = node.bridge("1.0.0", &[]);
    config["ipam"]["ranges"] = json!([
        [{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.5", "rangeEnd": "10.9.0.5"}],
        [{"subnet": "fd09::/64", "rangeStart": "fd09::5", "rangeEnd": "fd09::5"}],
    ]);
    let mut witness_config = config.clone();
    witness_config["ipam"]["ranges"] = json!([[{"subnet": IPV4}], [{"subnet": IPV6}]]);
    node.add(eth0("witness", &witness), &witness_config).unwrap();
    for number in 0..4 {
        let (id, pod) = (format!("c{number}"), Netns::create().unwrap());
        // Every second one insists on a MAC of its own.
        let mut config = config.clone();
        if number % 2 == 1 {
            config["runtimeConfig"] = json!({"mac": format!("02:00:00:00:00:0{number}")});
        }
        let result = node.add(eth0(&id, &pod), &config).unwrap();
        for ip in addresses(&result) {
            let _listener = listen(&pod, ip);
            let took = ask(&node.host, ip);
            assert!(took < AT_ONCE, "{ip} for holder {number}: {took:?}");
            if number == 0 {
                ask(&witness, ip);
            }
        }
        node.del(eth0(&id, &pod), &config).unwrap();
    }
}

#[test]
fn ipv6_works_where_the_runtime_switched_it_off() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    for netns in [&node.host, &pod] {
        let _inside = netns.enter().unwrap();
        for scope in ["all", "default", "lo"] {
            sysctl::set(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
        }
    }
    let result = node.add(eth0("c1", &pod), &node.bridge("1.0.0", &[IPV4, IPV6])).unwrap();
    let shown = ip(&pod, "-6 addr show eth0");
    assert!(shown.contains("fd09::2/64") && !shown.contains("fd09::2/64 scope global tentative"), "{shown}");
    assert!(ip(&pod, "-6 route").contains("default via fd09::1"), "{}", ip(&pod, "-6 route"));
    for ip in addresses(&result) {
        let _listener = listen(&pod, ip);
        assert!(ask(&node.host, ip) < AT_ONCE);
    }
    // IPv4 alone leaves IPv6 as it is.
    let other = Netns::create().unwrap();
    let _inside = other.enter().unwrap();
    sysctl::set("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    drop(_inside);
    let mut config = node.bridge("1.0.0", &["10.8.0.0/24"]);
    config["name"] = "other".into();
    config["bridge"] = "br8".into();
    node.add(eth0("c2", &other), &config).unwrap();
    assert_eq!(ip(&other, "-6 addr show eth0"), "");
}

#[test]
fn a_bridge_takes_no_advice_and_keeps_its_address() {
    let node = Node::new();
    // One bridge of ours, one that was there, one without any address of its own.
    ip(&node.host, "link add br8 type bridge");
    let mut made_by_others = node.bridge("1.0.0", &["10.8.0.0/24"]);
    made_by_others["name"] = "others".into();
    made_by_others["bridge"] = "br8".into();
    let mut layer2 = json!({"cniVersion": "1.0.0", "name": "layer2", "type": "bridge", "bridge": "br9"});
    layer2["ipam"] = json!({});
    for (name, config) in [("br7", node.bridge("1.0.0", &[IPV4, IPV6])), ("br8", made_by_others), ("br9", layer2)] {
        let pods: Vec<Netns> = (0..5).map(|_| Netns::create().unwrap()).collect();
        let mut seen = Vec::new();
        for (number, pod) in pods.iter().enumerate() {
            let result = node.add(eth0(&format!("{name}-{number}"), pod), &config).unwrap();
            seen.push(node.link(name).unwrap().mac.unwrap());
            assert_eq!(result["interfaces"][0]["mac"], seen[number].to_string(), "the result tells the truth");
            assert_eq!(node.link(host_end(&result)).unwrap().hairpin, Some(true));
        }
        for (number, pod) in pods.iter().enumerate() {
            node.del(eth0(&format!("{name}-{number}"), pod), &config).unwrap();
            seen.push(node.link(name).unwrap().mac.unwrap());
        }
        seen.dedup();
        assert_eq!(seen.len(), 1, "{name}: {seen:?}");
    }
    let _inside = node.host.enter().unwrap();
    assert_eq!(sysctl::get("net/ipv6/conf/br7/accept_ra").unwrap(), "0");
    let forwarding = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"].map(|key| sysctl::get(key).unwrap());
    assert_eq!(forwarding, ["1", "1"]);
}

/// Nothing to wait for: an interface that is still checking its address would refuse to be bound to.
#[test]
fn no_address_is_tentative() {
    let (node, pod) = (Node::new(), Netns::create().unwrap());
    node.add(eth0("c1", &pod), &node.native("1.0.0")).unwrap();
    for (netns, device) in [(&pod, "eth0"), (&node.host, "cbr0")] {
        let shown = ip(netns, &format!("-6 addr show {device} scope global"));
        assert!(shown.contains("fd09::") && !shown.contains("tentative"), "{shown}");
    }
    let link = Netlink::open_in(&pod).unwrap().link("eth0").unwrap().unwrap();
    assert!(link.up && link.running, "{link:?}");
}

/// Forwarding IPv6 alone would end a node's own address and default route that it has from a router.
#[test]
fn a_gateway_goes_on_hearing_its_routers() {
    let node = Node::new();
    ip(&node.host, "link add up0 type veth peer name up1");
    ip(&node.host, "link set up0 up");
    ip(&node.host, "link set up1 up");
    ip(&node.host, "address add 2001:db8::5/64 dev up0 valid_lft 3600 preferred_lft 1800");
    let accept_ra = |device: &str| node.host.run(|| sysctl::get(&kernel::advertisements::accept_ra(device))).unwrap();
    assert_eq!((accept_ra("up0").unwrap(), accept_ra("up1").unwrap()), ("1".into(), "1".into()));
    let pod = Netns::create().unwrap();
    node.add(eth0("c1", &pod), &node.bridge("1.0.0", &[IPV6])).unwrap();
    assert_eq!((accept_ra("up0").unwrap(), accept_ra("up1").unwrap()), ("2".into(), "1".into()));
}
