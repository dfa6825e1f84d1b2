//! The choice of interfaces and addresses, over the kernel's own tables, for every flag and each family by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use flanneld_rs::family::Family;
use flanneld_rs::options::Options;
use flanneld_rs::uplink::{Choice, Chosen, Tables, Uplink};
use kernel::Mac;
use kernel::netlink::{LinkChange, Netlink, RouteSpec, VethSpec};
use kernel::netns::Netns;

/// A node with IPv4 on eth0, IPv6 on eth1, both on eth2, and neither on eth3. It has a tunnel of ours already.
struct Node {
    netlink: Netlink,
    _far: Netns,
}

impl Node {
    fn new() -> Self {
        let here =
            Netns::create().expect("these tests make network namespaces: run them as root, or in a user namespace");
        let far = Netns::create().unwrap();
        let mut node = Node { netlink: Netlink::open_in(&here).unwrap(), _far: far };
        for name in ["eth0", "eth1", "eth2", "eth3", "flannel.1"] {
            node.interface(name);
        }
        for (name, address) in [
            ("eth0", "192.0.2.1/24"),
            ("eth1", "2001:db8:1::1/64"),
            ("eth2", "198.51.100.1/24"),
            ("eth2", "2001:db8:2::1/64"),
            ("flannel.1", "10.5.1.0/32"),
        ] {
            node.address(name, address);
        }
        node.route("0.0.0.0/0", "192.0.2.254", 0, 254);
        node.route("::/0", "2001:db8:1::fe", 0, 254);
        // Another table's, and a worse one.
        node.route("0.0.0.0/0", "198.51.100.254", 0, 100);
        node.route("0.0.0.0/0", "198.51.100.254", 50, 254);
        node
    }

    fn interface(&mut self, name: &str) {
        let ours = name.starts_with("flannel");
        let spec = VethSpec {
            alias: if ours { kernel::LINK_ALIAS } else { "" },
            mtu: Some(1500),
            up: true,
            ..VethSpec::new(name, name, &self._far)
        };
        self.netlink.create_veth(&spec).unwrap();
        let mut far = Netlink::open_in(&self._far).unwrap();
        let peer = far.link(name).unwrap().unwrap().index;
        far.set_link(peer, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    }

    fn index(&mut self, name: &str) -> u32 {
        self.netlink.link(name).unwrap().unwrap().index
    }

    fn address(&mut self, name: &str, address: &str) {
        let index = self.index(name);
        self.netlink.add_address(index, address.parse().unwrap()).unwrap();
    }

    fn route(&mut self, dst: &str, via: &str, metric: u32, table: u32) {
        let metric = (metric != 0).then_some(metric);
        let (dst, via, protocol) = (dst.parse().unwrap(), Some(via.parse().unwrap()), 4);
        let route = RouteSpec { dst, via, metric, protocol, table: Some(table), ..RouteSpec::default() };
        self.netlink.add_route(&route).unwrap();
    }

    fn choose(&mut self, flags: &[&str], families: &[Family], before: Option<&Uplink>) -> Chosen {
        let arguments = std::iter::once("flanneld-rs").chain(flags.iter().copied()).map(String::from);
        let choice = Choice::parse(&Options::parse_go_style(arguments).unwrap()).unwrap();
        let tables = Tables::read(&mut self.netlink, &choice).unwrap();
        Uplink::choose(&tables, &choice, families, before)
    }
}

/// Interface, address and reason of a family, or what it lacks.
fn told(chosen: &Chosen, family: Family) -> String {
    match chosen.uplink.ways.get(family) {
        Some(way) => {
            let public = if way.translated { format!(" as {}", way.public) } else { String::new() };
            format!("{} {}{public} ({})", way.interface, way.local, chosen.reasons.get(family).unwrap())
        }
        None => format!("- {}", chosen.lacking.get(family).unwrap().split(';').next().unwrap()),
    }
}

#[test]
fn each_family_takes_the_interface_that_the_flags_lead_to() {
    let mut node = Node::new();
    for (flags, v4, v6) in [
        (&[][..], "eth0 192.0.2.1 (default route of IPv4)", "eth1 2001:db8:1::1 (default route of IPv6)"),
        (&["--iface=eth2"], "eth2 198.51.100.1 (--iface eth2)", "eth2 2001:db8:2::1 (--iface eth2)"),
        (&["--iface=eth9,eth2"], "eth2 198.51.100.1 (--iface eth2)", "eth2 2001:db8:2::1 (--iface eth2)"),
        // The first that has the family.
        (&["-iface=eth0", "-iface=eth1"], "eth0 192.0.2.1 (--iface eth0)", "eth1 2001:db8:1::1 (--iface eth1)"),
        (
            &["--iface=198.51.100.1"],
            "eth2 198.51.100.1 (--iface 198.51.100.1)",
            "eth2 2001:db8:2::1 (--iface 198.51.100.1)",
        ),
        // An address of the family itself comes before an interface that has any.
        (
            &["--iface=198.51.100.1,2001:db8:1::1"],
            "eth2 198.51.100.1 (--iface 198.51.100.1)",
            "eth1 2001:db8:1::1 (--iface 2001:db8:1::1)",
        ),
        (&["--iface=eth0"], "eth0 192.0.2.1 (--iface eth0)", "- interface eth0 (--iface eth0) has no IPv6 address"),
        (
            &["--iface=eth7"],
            "- no interface with an IPv4 address is found by --iface eth7",
            "- no interface with an IPv6 address is found by --iface eth7",
        ),
        // Names come before patterns, patterns before the address to be reached.
        (
            &["--iface-can-reach=203.0.113.9", "--iface-regex=eth1", "--iface=eth0"],
            "eth0 192.0.2.1 (--iface eth0)",
            "eth1 2001:db8:1::1 (--iface-regex eth1)",
        ),
        (
            &["--iface-regex=eth[12]"],
            "eth2 198.51.100.1 (--iface-regex eth[12])",
            "eth1 2001:db8:1::1 (--iface-regex eth[12])",
        ),
        // Addresses come before names: the pattern is eth0's index nowhere, and eth2's address.
        (
            &["--iface-regex=^198\\."],
            "eth2 198.51.100.1 (--iface-regex ^198\\.)",
            "eth2 2001:db8:2::1 (--iface-regex ^198\\.)",
        ),
        (&["--iface-regex=flannel"], "- no interface with an IPv4 address is found by --iface-regex flannel", "- no"),
        (
            &["--iface-can-reach=198.51.100.77"],
            "eth2 198.51.100.1 (--iface-can-reach 198.51.100.77)",
            "eth2 2001:db8:2::1 (--iface-can-reach 198.51.100.77)",
        ),
        (
            &["--iface-can-reach=198.51.100.77,2001:db8:1::77"],
            "eth2 198.51.100.1 (--iface-can-reach 198.51.100.77)",
            "eth1 2001:db8:1::1 (--iface-can-reach 2001:db8:1::77)",
        ),
        // A public address that is on an interface says which; flannel takes that for both families.
        (
            &["--public-ip=198.51.100.1"],
            "eth2 198.51.100.1 (public address 198.51.100.1)",
            "eth2 2001:db8:2::1 (public address 198.51.100.1)",
        ),
        // One that is not is somebody's who translates.
        (
            &["--public-ip=203.0.113.1", "--public-ipv6=2001:db8:99::1"],
            "eth0 192.0.2.1 as 203.0.113.1 (default route of IPv4)",
            "eth1 2001:db8:1::1 as 2001:db8:99::1 (default route of IPv6)",
        ),
        (
            &["--iface=eth2", "--public-ip=203.0.113.1"],
            "eth2 198.51.100.1 as 203.0.113.1 (--iface eth2)",
            "eth2 2001:db8:2::1 (--iface eth2)",
        ),
    ] {
        let chosen = node.choose(flags, &Family::ALL, None);
        assert_eq!(told(&chosen, Family::V4), v4, "{flags:?}");
        assert!(told(&chosen, Family::V6).starts_with(v6), "{flags:?}: {}", told(&chosen, Family::V6));
        let all = "eth0 [192.0.2.1/24], eth1 [2001:db8:1::1/64], eth2 [198.51.100.1/24 2001:db8:2::1/64]";
        assert_eq!(chosen.candidates, all);
        for (_, lacking) in chosen.lacking.iter() {
            assert!(lacking.ends_with(&format!("; choose one with --iface: {all}")), "{lacking}");
        }
        for family in Family::ALL {
            let alone = node.choose(flags, &[family], None);
            assert_eq!(told(&alone, family), told(&chosen, family), "one family does not depend on the other");
        }
    }
}

/// A card that is known for spoiling checksums does so below a bond or bridge as well.
#[test]
fn drivers_are_those_of_the_interface_and_of_all_below_it() {
    let mut node = Node::new();
    node.netlink.create_bridge("br0", Mac::derive("br0"), None, "").unwrap();
    node.address("br0", "203.0.113.1/24");
    let bridge = node.index("br0");
    let eth3 = node.index("eth3");
    node.netlink.set_link(eth3, &LinkChange { master: Some(Some(bridge)), ..LinkChange::default() }).unwrap();
    let choice =
        |flag: &str| Choice::parse(&Options::parse_go_style(["flanneld-rs".into(), flag.into()]).unwrap()).unwrap();
    let mut tables = Tables::read(&mut node.netlink, &choice("--iface=br0")).unwrap();
    assert!(tables.drivers.is_empty(), "there is no hardware in a namespace of its own: {:?}", tables.drivers);
    tables.drivers = [(eth3, "vmxnet3".into()), (node.index("eth0"), "e1000".into())].into();
    for (interface, drivers) in [("br0", &["vmxnet3"][..]), ("eth0", &["e1000"]), ("eth2", &[])] {
        let chosen = Uplink::choose(&tables, &choice(&format!("--iface={interface}")), &[Family::V4], None);
        assert!(chosen.uplink.ways.v4.as_ref().unwrap().drivers.iter().eq(drivers), "{interface}: {chosen:?}");
    }
}

#[test]
fn an_address_that_is_added_moves_nobody_and_one_that_goes_moves_its_family_only() {
    let mut node = Node::new();
    let flags = ["--iface=eth2"];
    let first = node.choose(&flags, &Family::ALL, None).uplink;
    // The kernel lists the newest of IPv6 first, and one without a network is likely to move between machines.
    for address in ["2001:db8:2::2/64", "2001:db8:2::99/128", "198.51.100.2/24", "203.0.113.5/32"] {
        node.address("eth2", address);
    }
    let second = node.choose(&flags, &Family::ALL, Some(&first)).uplink;
    let locals = |uplink: &Uplink| Family::ALL.map(|family| uplink.local(family).unwrap().to_string());
    assert_eq!(locals(&second), locals(&first));
    assert_eq!(locals(&node.choose(&flags, &Family::ALL, None).uplink), ["198.51.100.1", "2001:db8:2::2"]);

    // A pattern that fits all of them names none in particular.
    let pattern = ["--iface-regex=^2001:db8:2:"];
    let matched = node.choose(&pattern, &[Family::V6], Some(&first)).uplink;
    assert_eq!(matched.local(Family::V6), first.local(Family::V6));
    // A link-local one is taken from him who names it.
    node.address("eth3", "169.254.7.1/16");
    let lacking = node.choose(&["--iface=eth3"], &[Family::V4], None).lacking.v4.unwrap();
    assert!(lacking.starts_with("interface eth3 (--iface eth3) has no IPv4 address"), "{lacking}");
    let named = node.choose(&["--iface=169.254.7.1"], &[Family::V4], None);
    assert_eq!(told(&named, Family::V4), "eth3 169.254.7.1 (--iface 169.254.7.1)");
    assert!(named.uplink.directly("169.254.9.9".parse().unwrap()).is_some());

    let eth2 = node.index("eth2");
    node.netlink.delete_address(eth2, "2001:db8:2::1/64".parse().unwrap()).unwrap();
    let third = node.choose(&flags, &Family::ALL, Some(&second)).uplink;
    assert_eq!(locals(&third), ["198.51.100.1", "2001:db8:2::2"]);
    assert_eq!(third.ways.v4, second.ways.v4);

    // A default route that leads elsewhere takes its family along, and no other.
    let before = node.choose(&[], &Family::ALL, None).uplink;
    let default = RouteSpec { via: Some("192.0.2.254".parse().unwrap()), protocol: 4, ..RouteSpec::default() };
    assert!(node.netlink.delete_route(&default).unwrap());
    let after = node.choose(&[], &Family::ALL, Some(&before)).uplink;
    let interfaces = Family::ALL.map(|family| after.ways.get(family).unwrap().interface.as_str());
    assert_eq!(interfaces, ["eth2", "eth1"]);

    // What is away for a moment is remembered.
    node.netlink.delete_link("eth1").unwrap();
    let bounced = node.choose(&["--iface=eth1"], &[Family::V6], Some(&after));
    assert_eq!(bounced.uplink.ways.v6, None);
    assert_eq!(bounced.uplink.remembering(&after).ways.v6, after.ways.v6);
}
