//! The MTU of devices and pods follows from that of the underlay, backend by backend and family by family. What headers take is
//! the kernel's own word (`kernel/tests/mtu.rs`); VXLAN devices are made here, and one byte more is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use flanneld_rs::backend::{Backend, Means, Node};
use flanneld_rs::family::{Family, PerFamily};
use flanneld_rs::lease::{Announcement, Endpoint, Lease, LeaseTable};
use flanneld_rs::network_config::NetworkConfig;
use flanneld_rs::uplink::{Uplink, Way};
use ipnetwork::IpNetwork;
use kernel::netlink::{LinkChange, Netlink, VethSpec};
use kernel::netns::Netns;
use kernel::wireguard::PublicKey;
use kernel::{Overlay, Tunnel, apply, diff};

const UNDERLAYS: [u32; 5] = [1500, 9001, 1460, 1420, 1280];

fn backend(options: &str) -> Backend {
    let config = format!(r#"{{"Network": "10.5.0.0/16", "Backend": {options}}}"#);
    let means = Means { wireguard: Some((PublicKey([1; 32]), false)), ..Means::default() };
    Backend::new(&NetworkConfig::parse(&config).unwrap(), means).unwrap()
}

fn per_family<T: std::str::FromStr<Err: std::fmt::Debug>>(v4: &str, v6: &str) -> PerFamily<T> {
    PerFamily { v4: Some(v4.parse().unwrap()), v6: Some(v6.parse().unwrap()) }
}

fn uplink(mtus: [u32; 2]) -> Uplink {
    let way = |family: Family, address: &IpNetwork| {
        let (local, on_link) = (address.ip(), vec![*address]);
        let mtu = if family == Family::V4 { mtus[0] } else { mtus[1] };
        Way {
            interface: "eth0".into(),
            mtu,
            local,
            public: local,
            translated: false,
            on_link,
            drivers: Default::default(),
        }
    };
    Uplink { ways: per_family("192.0.2.1/24", "2001:db8::1/64").map(way) }
}

/// What a node with pods of these families has, with one peer.
fn desired(backend: &Backend, uplink: &Uplink, families: &[Family]) -> (Overlay, Vec<String>) {
    let of =
        |all: PerFamily<IpNetwork>| families.iter().filter_map(|family| Some((*family, *all.get(*family)?))).collect();
    let own = Lease {
        subnets: of(per_family("10.5.1.0/24", "fd00:5:1::/64")),
        announcement: backend.announcement(uplink, families),
    };
    let data = r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44","PublicKey":"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="}"#;
    let public: PerFamily<IpNetwork> = per_family("192.0.2.2/32", "2001:db8::2/128");
    let endpoint =
        |(family, public): (Family, &IpNetwork)| (family, Endpoint { public_ip: public.ip(), data: Some(data.into()) });
    let announcement = Announcement {
        backend_type: own.announcement.backend_type.clone(),
        endpoints: public.iter().map(endpoint).collect(),
    };
    let peer = Lease { subnets: of(per_family("10.5.2.0/24", "fd00:5:2::/64")), announcement };
    let leases: LeaseTable = [own.clone(), peer].into_iter().collect();
    let networks = per_family("10.5.0.0/16", "fd00:5::/32");
    let desired = backend.desired(&Node { networks: &networks, uplink, own: &own }, &leases);
    let reasons = desired.reasons().into_iter().cloned().collect();
    (desired.overlay, reasons)
}

fn devices(overlay: &Overlay) -> Vec<(&str, u32)> {
    overlay.links.iter().map(|(name, link)| (name.as_str(), link.mtu())).collect()
}

#[test]
fn each_backend_leaves_room_for_its_headers_in_each_family() {
    const V4: &[Family] = &[Family::V4];
    const V6: &[Family] = &[Family::V6];
    const BOTH: &[Family] = &Family::ALL;
    // Families of the pods, what the headers take, and the least that these families need.
    for (options, families, overhead, least) in [
        (r#"{"Type": "vxlan"}"#, V4, 50, 68),
        (r#"{"Type": "vxlan"}"#, V6, 70, 1280),
        (r#"{"Type": "vxlan"}"#, BOTH, 70, 1280),
        (r#"{"Type": "host-gw"}"#, V4, 0, 68),
        (r#"{"Type": "host-gw"}"#, V6, 0, 1280),
        (r#"{"Type": "host-gw"}"#, BOTH, 0, 1280),
        (r#"{"Type": "alloc"}"#, BOTH, 0, 1280),
        (r#"{"Type": "ipip"}"#, V4, 20, 68),
        (r#"{"Type": "udp"}"#, V4, 28, 68),
        (r#"{"Type": "udp"}"#, V6, 48, 1280),
        (r#"{"Type": "udp"}"#, BOTH, 48, 1280),
        // 32 bytes more than UDP alone.
        (r#"{"Type": "wireguard"}"#, V4, 60, 68),
        (r#"{"Type": "wireguard"}"#, V6, 80, 1280),
        (r#"{"Type": "wireguard"}"#, BOTH, 80, 1280),
        (r#"{"Type": "wireguard", "Mode": "ipv4"}"#, BOTH, 60, 1280),
        (r#"{"Type": "wireguard", "Mode": "ipv6"}"#, BOTH, 80, 1280),
        (r#"{"Type": "wireguard", "Mode": "auto"}"#, V4, 60, 68),
        (r#"{"Type": "wireguard", "Mode": "auto"}"#, BOTH, 80, 1280),
    ] {
        for mtu in UNDERLAYS {
            let (backend, uplink) = (backend(options), uplink([mtu, mtu]));
            let pods = backend.mtu(&uplink, families);
            assert_eq!(pods, (mtu - overhead).max(least), "{options} {families:?} over {mtu}");
            // No device carries less than pods send, but for IPv4 where pods need more for the sake of IPv6: the node tells them.
            let (overlay, _) = desired(&backend, &uplink, families);
            for (device, found) in devices(&overlay) {
                let told = mtu == 1280 && families.len() == 2;
                assert!(found >= pods || told, "{options} {families:?} over {mtu}: {device} has {found}");
            }
        }
    }
}

#[test]
fn families_over_different_interfaces_have_each_its_own_mtu() {
    for (options, expected, pods) in [
        (r#"{"Type": "vxlan"}"#, [("flannel-v6.1", 1430), ("flannel.1", 8951)], 1430),
        (r#"{"Type": "udp"}"#, [("flannel0", 8973), ("flannel0-v6", 1452)], 1452),
        (r#"{"Type": "wireguard"}"#, [("flannel-wg", 8941), ("flannel-wg-v6", 1420)], 1420),
    ] {
        let (backend, uplink) = (backend(options), uplink([9001, 1500]));
        assert_eq!(devices(&desired(&backend, &uplink, &Family::ALL).0), expected);
        assert_eq!(backend.mtu(&uplink, &Family::ALL), pods);
    }
    // One tunnel for both goes by either interface.
    let auto = backend(r#"{"Type": "wireguard", "Mode": "auto"}"#);
    assert_eq!(devices(&desired(&auto, &uplink([9001, 1500]), &Family::ALL).0), [("flannel-wg", 1420)]);
}

/// IPv6 has no smaller packets than 1280 bytes, and VXLAN of the kernel sends no fragments: IPv4 goes on, and it is told.
#[test]
fn a_family_that_does_not_fit_is_left_out_by_itself() {
    for (mtu, fits) in [(1349, false), (1350, true)] {
        let (overlay, reasons) = desired(&backend(r#"{"Type": "vxlan"}"#), &uplink([mtu, mtu]), &Family::ALL);
        assert_eq!(overlay.links.contains_key("flannel-v6.1"), fits);
        assert_eq!(overlay.routes.contains_key(&"fd00:5:2::/64".parse().unwrap()), fits);
        assert!(overlay.links.contains_key("flannel.1"));
        assert!(overlay.routes.contains_key(&"10.5.2.0/24".parse().unwrap()));
        assert_eq!(reasons.len(), usize::from(!fits));
        assert!(reasons.iter().all(|reason| reason.contains("IPv6 needs 1280: give it an MTU of 1350")), "{reasons:?}");
    }
}

#[test]
fn the_kernel_takes_a_vxlan_device_of_this_mtu_and_not_a_byte_more() {
    let (here, far) = (Netns::create().expect("run these tests as root"), Netns::create().unwrap());
    let mut netlink = Netlink::open_in(&here).unwrap();
    let eth0 = VethSpec { mtu: Some(1500), up: true, ..VethSpec::new("eth0", "eth0", &far) };
    netlink.create_veth(&eth0).unwrap();
    let eth0 = netlink.link("eth0").unwrap().unwrap().index;
    for address in ["192.0.2.1/24", "2001:db8::1/64"] {
        netlink.add_address(eth0, address.parse().unwrap()).unwrap();
    }
    let backend = backend(r#"{"Type": "vxlan"}"#);
    let scope = kernel::Scope {
        devices: ["flannel.1".into(), "flannel-v6.1".into()].into(),
        networks: Vec::new(),
        own: Vec::new(),
    };
    for mtu in UNDERLAYS {
        let change = |mtu| LinkChange { mtu: Some(mtu), ..LinkChange::default() };
        netlink.set_link(eth0, &change(mtu)).unwrap();
        // The devices of the round before follow.
        let (mut overlay, _) = desired(&backend, &uplink([mtu, mtu]), &Family::ALL);
        overlay.routes.clear();
        let changes = diff(&kernel::observe(&mut netlink, &scope).unwrap(), &overlay);
        assert_eq!(apply(&mut netlink, &changes), [], "over {mtu}");
        for (device, wanted) in &overlay.links {
            let Tunnel::Vxlan(_) = wanted else { panic!("{wanted}") };
            let found = netlink.link(device).unwrap().unwrap();
            assert_eq!(found.mtu, wanted.mtu(), "{device} over {mtu}");
            let refused = netlink.set_link(found.index, &change(found.mtu + 1));
            assert!(refused.is_err(), "{device} over {mtu} takes more than {}", found.mtu);
        }
        assert_eq!(overlay.links.len(), if mtu < 1350 { 1 } else { 2 });
    }
}
