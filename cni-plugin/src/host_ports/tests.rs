use super::*;
use std::fs;

fn forward(protocol: &str, host: &str, host_port: u16, pod: &str, masquerade: &str) -> Forward {
    serde_json::from_value(serde_json::json!({
        "protocol": protocol, "host": host, "hostPort": host_port, "pod": pod, "podPort": 80, "masquerade": masquerade,
    }))
    .unwrap()
}

/// The whole table of each family as nft(8) would read it; every kind of element is in it.
#[test]
fn golden_tables() {
    let forwards = [
        forward("tcp", "0.0.0.0", 8080, "10.9.0.7/24", "neighbours"),
        forward("udp", "192.0.2.1", 53, "10.9.0.7/24", "neighbours"),
        forward("tcp", "0.0.0.0", 8081, "10.8.0.7/16", "nobody"),
        forward("sctp", "192.0.2.1", 9, "10.9.0.8/24", "nobody"),
        forward("tcp", "0.0.0.0", 8082, "10.9.0.9/24", "everybody"),
        forward("tcp", "192.0.2.1", 8083, "10.9.0.9/24", "everybody"),
        forward("tcp", "::", 8080, "fd09::7/64", "neighbours"),
        forward("udp", "2001:db8::1", 53, "fd09::7/64", "everybody"),
    ];
    for (family, name) in [(Family::Ip, "host_ports_ipv4.nft"), (Family::Ip6, "host_ports_ipv6.nft")] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let text = table(family, &forwards).to_string();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &text).unwrap();
        }
        let expected = fs::read_to_string(&path).expect("a golden file (UPDATE_GOLDEN=1 writes it)");
        assert_eq!(text, expected, "{name} differs; look, then UPDATE_GOLDEN=1");
    }
}

/// The parts of an attachment, one by one, are what the whole table has of it.
#[test]
fn elements_are_those_of_the_table() {
    for masquerade in ["nobody", "neighbours", "everybody"] {
        for host in ["0.0.0.0", "192.0.2.1"] {
            let forward = forward("tcp", host, 8080, "10.9.0.7/24", masquerade);
            let whole = table(Family::Ip, [&forward]);
            let mut empty = table(Family::Ip, []);
            for (set, elements) in table::elements([&forward]) {
                empty.sets.get_mut(set).unwrap().elements.extend(elements);
            }
            assert_eq!(whole, empty);
            assert_eq!(table(Family::Ip6, [&forward]), table(Family::Ip6, []));
        }
    }
}
