//! A node that has its IPv6 address and its way out from a router keeps both when it starts to forward, and is given back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use flanneld_rs::backend::{Backend, Means};
use flanneld_rs::family::{Family, PerFamily};
use flanneld_rs::files::Files;
use flanneld_rs::firewall::Policy;
use flanneld_rs::health::Health;
use flanneld_rs::ip_forward::IpForward;
use flanneld_rs::lease::{Lease, LeaseTable};
use flanneld_rs::network_config::NetworkConfig;
use flanneld_rs::options::Options;
use flanneld_rs::reconcile::{Reconciler, Source};
use flanneld_rs::uninstall::{Outcome, uninstall};
use flanneld_rs::uplink::Choice;
use kernel::netlink::{LinkChange, Netlink, RouteSpec, VethSpec};
use kernel::netns::Netns;
use kernel::sysctl;
use kernel::watch::Wake;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket, sockopt,
};
use std::collections::BTreeSet;
use std::net::SocketAddrV6;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Generous: the machine may be busy with other tests.
const LIMIT: Duration = Duration::from_secs(20);
const ACCEPT_RA: &str = "net/ipv6/conf/eth0/accept_ra";
const FORWARDING: &str = "net/ipv6/conf/all/forwarding";
/// linux/rtnetlink.h: RTPROT_RA
const FROM_A_ROUTER: u8 = 9;
/// RTPROT_STATIC
const STATIC: u8 = 4;

/// A router on the other end of eth0.
struct Router {
    socket: OwnedFd,
    index: u32,
}

impl Router {
    /// In a namespace of its own, with the node in the one of the calling thread.
    fn new(beyond: &Netns) -> Self {
        for (netns, device) in [(&Netns::current().unwrap(), "eth0"), (beyond, "peer")] {
            // Devices that are made from now on have their addresses at once.
            netns.run(|| sysctl::set("net/ipv6/conf/default/accept_dad", "0").unwrap()).unwrap();
            netns.run(|| sysctl::set("net/ipv6/conf/default/router_solicitations", "0").unwrap()).unwrap();
            assert!(Netlink::open_in(netns).unwrap().link(device).unwrap().is_none());
        }
        let mut netlink = Netlink::open().unwrap();
        netlink.create_veth(&VethSpec { up: true, ..VethSpec::new("eth0", "peer", beyond) }).unwrap();
        let mut other = Netlink::open_in(beyond).unwrap();
        let index = other.link("peer").unwrap().unwrap().index;
        other.set_link(index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        #[allow(
            clippy::disallowed_methods,
            reason = "Debian's routers are no part of the tests, and this one says little"
        )]
        let open =
            || socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::IcmpV6).unwrap();
        let socket = beyond.run(open).unwrap();
        // RFC 4861 section 6.1.2: nobody has forwarded it.
        setsockopt(&socket, sockopt::Ipv6MulticastHops, &255).unwrap();
        Router { socket, index }
    }

    /// Says that it is a router for so many seconds (0: no more), and that 2001:db8:50::/64 is on the link (RFC 4861 section 4.2,
    /// RFC 4862). The kernel fills in the checksum.
    fn advertise(&self, seconds: u16) {
        let mut packet = vec![134, 0, 0, 0, 64, 0];
        packet.extend(seconds.to_be_bytes());
        packet.extend([0; 8]);
        packet.extend([3, 4, 64, 0xc0]);
        packet.extend([3600u32, 1800, 0].iter().flat_map(|number| number.to_be_bytes()));
        packet.extend("2001:db8:50::".parse::<std::net::Ipv6Addr>().unwrap().octets());
        let everybody = SockaddrIn6::from(SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, self.index));
        // Until the cable is plugged in there is no way; who waits for an effect says it again.
        let _ = sendto(self.socket.as_raw_fd(), &packet, &everybody, MsgFlags::empty());
    }

    /// Repeats it until the node has, or has no, default route of a router.
    fn convince(&self, netlink: &mut Netlink, seconds: u16, what: &str) {
        let start = Instant::now();
        while has_way_out(netlink) != (seconds > 0) {
            assert!(start.elapsed() < LIMIT, "{what}: the node does not hear its router");
            self.advertise(seconds);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether the node hears it now, shown by taking the way out away and giving it back.
    fn is_heard(&self, netlink: &mut Netlink, what: &str) {
        self.convince(netlink, 0, what);
        self.convince(netlink, 1800, what);
    }
}

fn has_way_out(netlink: &mut Netlink) -> bool {
    let routes = netlink.routes().unwrap();
    routes.iter().any(|route| route.dst.to_string() == "::/0" && route.protocol == FROM_A_ROUTER && route.via.is_some())
}

fn get(key: &str) -> String {
    sysctl::get(key).unwrap()
}

#[test]
fn the_way_out_that_a_router_gave_outlives_the_start_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (node, beyond) = (Netns::create().unwrap(), Netns::create().unwrap());
    node.run(|| start_and_end(&beyond, dir.path())).unwrap();
}

fn start_and_end(beyond: &Netns, dir: &Path) {
    let router = Router::new(beyond);
    let mut netlink = Netlink::open().unwrap();
    router.is_heard(&mut netlink, "before");
    assert_eq!((get(ACCEPT_RA), get(FORWARDING)), ("1".into(), "0".into()));

    let flags = [
        "flanneld-rs".into(),
        "--iface=eth0".into(),
        format!("--subnet-file={}", dir.join("subnet.env").display()),
        format!("--state-dir={}", dir.join("state").display()),
    ];
    let options = Options::parse_go_style(flags).unwrap();
    let mut reconciler = reconciler(&options);
    let own = Lease {
        subnets: PerFamily { v4: None, v6: Some("fd42:0:0:1::/64".parse().unwrap()) },
        announcement: reconciler.announcement().unwrap(),
    };
    let leases: Arc<LeaseTable> = Arc::new([own.clone()].into_iter().collect());
    let mut pass =
        || assert!(reconciler.pass(&own, &leases, Source::Store, Wake::EVERYTHING), "{:?}", reconciler.health.ready());
    pass();
    assert_eq!((get(ACCEPT_RA), get(FORWARDING)), ("2".into(), "1".into()));
    // Not heard of again: the kernel never forgot it.
    assert!(has_way_out(&mut netlink));
    router.is_heard(&mut netlink, "while it forwards");

    // As sysctl --system does.
    sysctl::set(ACCEPT_RA, "1").unwrap();
    pass();
    assert_eq!(get(ACCEPT_RA), "2");
    // Somebody who hears routers himself.
    sysctl::set(ACCEPT_RA, "0").unwrap();
    pass();
    assert_eq!(get(ACCEPT_RA), "0");
    sysctl::set(ACCEPT_RA, "2").unwrap();

    let report = uninstall(&options, false);
    assert!(report.items.iter().all(|item| item.outcome == Outcome::Done), "{report}");
    assert_eq!((get(ACCEPT_RA), get(FORWARDING)), ("1".into(), "0".into()));
    assert!(has_way_out(&mut netlink));
    router.is_heard(&mut netlink, "afterwards");
}

#[test]
fn devices_that_no_router_speaks_on_and_forwarding_of_others_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (node, beyond) = (Netns::create().unwrap(), Netns::create().unwrap());
    node.run(|| {
        let router = Router::new(&beyond);
        let mut netlink = Netlink::open().unwrap();
        netlink.create_veth(&VethSpec { up: true, ..VethSpec::new("eth1", "other", &beyond) }).unwrap();
        router.is_heard(&mut netlink, "before");
        let ip_forward = IpForward::recorded_in(dir.path());
        // The router is on another device than the tunnels' packets.
        assert_eq!(ip_forward.switch_on(Family::V6, &BTreeSet::new()), Ok(None));
        let settings = || ["eth0", "eth1"].map(|device| get(&kernel::advertisements::accept_ra(device)));
        assert_eq!(settings(), ["2", "1"]);
        // One that comes later is not ours to change.
        assert_eq!(ip_forward.switch_on(Family::V6, &["eth1"].into()), Ok(None));
        assert_eq!(settings(), ["2", "1"]);
        // Switched off behind our back: what it was is given back all the same.
        sysctl::set(FORWARDING, "0").unwrap();
        let back: Vec<String> = ip_forward.to_return().unwrap().settings.into_iter().map(|back| back.key).collect();
        assert_eq!(back, [kernel::advertisements::accept_ra("eth0")]);
        // Routers of the uplink may speak later, unless the way out is another one.
        let way_out = RouteSpec {
            dst: "::/0".parse().unwrap(),
            dev: Some(netlink.link("eth1").unwrap().unwrap().index),
            protocol: STATIC,
            metric: Some(2048),
            ..RouteSpec::default()
        };
        netlink.add_route(&way_out).unwrap();
        assert_eq!(ip_forward.switch_on(Family::V6, &["eth1"].into()), Ok(None));
        assert_eq!(settings(), ["2", "1"]);
        assert!(netlink.delete_route(&way_out).unwrap());
        sysctl::set(FORWARDING, "0").unwrap();
        assert_eq!(ip_forward.switch_on(Family::V6, &["eth1"].into()), Ok(None));
        assert_eq!(settings(), ["2", "2"]);
        sysctl::set(FORWARDING, "0").unwrap();

        // An administrator's forwarding, with its consequences.
        sysctl::set(ACCEPT_RA, "1").unwrap();
        sysctl::set(FORWARDING, "1").unwrap();
        let ip_forward = IpForward::recorded_in(&dir.path().join("another"));
        assert_eq!(ip_forward.switch_on(Family::V6, &["eth0"].into()), Ok(None));
        assert_eq!(get(ACCEPT_RA), "1");
        assert_eq!(ip_forward.written(), [""; 0].map(std::path::PathBuf::from));
    })
    .unwrap();
}

fn reconciler(options: &Options) -> Reconciler {
    let config =
        r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd42::/48", "Backend": {"Type": "host-gw"}}"#;
    let config = Arc::new(NetworkConfig::parse(config).unwrap());
    let backend = Backend::new(&config, Means::default()).unwrap();
    let ports = cni_plugin::host_ports::HostPorts::recorded_in(&options.host_ports_dir);
    let attachments = cni_plugin::attachments::Attachments::recorded_in(&options.attachments_dir);
    let choice = Choice::parse(options).unwrap();
    let files = Files::of(options);
    let mut reconciler =
        Reconciler::new(config, backend, choice, Policy::from(options), files, (ports, attachments), Health::new())
            .unwrap();
    reconciler.ip_forward = IpForward::recorded_in(&options.state_dir);
    reconciler
}
