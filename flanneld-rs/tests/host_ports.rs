//! The real daemon beside ports and pods that the plugins have recorded: what somebody flushes is back within a second.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

use cni_plugin::host_ports::{HostPorts, Record, table};
use kernel::netlink::{LinkChange, Netlink};
use kernel::netns::Netns;
use kernel::nft::{Family, Nft};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A daemon that ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_flushed_ruleset_is_back_within_a_second() {
    let (node, dir) = (Netns::create().expect("the tests need root"), tempfile::tempdir().unwrap());
    let _inside = node.enter().unwrap();
    let mut netlink = Netlink::open().unwrap();
    netlink.create_bridge("up0", kernel::Mac::derive("up0"), None, "").unwrap();
    let up0 = netlink.link("up0").unwrap().unwrap().index;
    netlink.set_link(up0, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    netlink.add_address(up0, "192.0.2.1/24".parse().unwrap()).unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("net-conf.json"), r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}"#).unwrap();

    let record: Record = serde_json::from_str(
        r#"{"network": "cbr0", "container": "web", "interface": "eth0", "forwards": [{"protocol": "tcp",
            "host": "0.0.0.0", "hostPort": 8080, "pod": "10.5.1.7/24", "podPort": 80, "masquerade": "neighbours"}]}"#,
    )
    .unwrap();
    HostPorts::recorded_in(path("host-ports")).publish(&record).unwrap();
    let (mut nft, wanted) = (Nft::open().unwrap(), table(Family::Ip, &record.forwards));
    assert!(nft.is_intact(&wanted).unwrap());
    assert!(nft.delete(wanted.family, &wanted.name).unwrap());

    // As the plugins write it: for this boot and network namespace, by network.
    let boot = kernel::sysctl::get("kernel.random.boot_id").unwrap();
    let place = dir.path().join("attachments").join(format!("{boot}.{}", Netns::current_name().unwrap())).join("cbr0");
    std::fs::create_dir_all(&place).unwrap();
    let pod = r#"{"network": "cbr0", "container": "web", "interface": "eth0", "sandbox": "/x", "addresses": ["10.5.1.7"],
        "masquerade": ["10.5.0.0/16"], "accepted": true, "hardwareAddress": "02:00:00:00:00:07"}"#;
    std::fs::write(place.join("0123456789abcdef0123456789abcdef"), pod).unwrap();
    let tables = [
        (Family::Inet, "cni-masquerade-cbr0", "10.5.1.7 comment \"cbr0/web/eth0\""),
        (Family::Inet, "cni-firewall", "10.5.1.7 comment \"cbr0/web/eth0\""),
        (Family::Bridge, "cni-macspoof", "02:00:00:00:00:07 comment \"cbr0/web/eth0\""),
    ];
    let listed = || {
        let output = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        tables.iter().all(|(_, name, element)| text.contains(name) && text.contains(element))
    };

    let daemon = Command::new(env!("CARGO_BIN_EXE_flanneld-rs"))
        .args(["--iface=up0", "--ip-masq"])
        .arg(format!("--store-dir={}", path("leases")))
        .arg(format!("--net-config-path={}", path("net-conf.json")))
        .arg(format!("--subnet-file={}", path("subnet.env")))
        .arg(format!("--host-ports-dir={}", path("host-ports")))
        .arg(format!("--attachments-dir={}", path("attachments")))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(path("log")).unwrap())
        .spawn()
        .unwrap();
    let _daemon = Daemon(daemon);
    until("what was missing at the start", Duration::from_secs(10), || nft.is_intact(&wanted).unwrap() && listed());
    for _round in 0..3 {
        // As `nft flush ruleset` does: all tables at once.
        assert!(nft.delete(wanted.family, &wanted.name).unwrap());
        until("what was flushed", Duration::from_secs(1), || nft.is_intact(&wanted).unwrap());
    }
    let times = [(); 3].map(|()| {
        tables.iter().for_each(|(family, name, _)| assert!(nft.delete(*family, name).unwrap()));
        let flushed = Instant::now();
        until("what the pods had", Duration::from_secs(10), listed);
        flushed.elapsed()
    });
    // On a busy machine one of them may take longer.
    assert!(times.iter().any(|time| *time < Duration::from_secs(1)), "{times:?}");
}
