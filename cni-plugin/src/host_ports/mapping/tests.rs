use super::*;
use serde_json::{Value, json};

fn config(mappings: Value, mut keys: Value) -> Result<HostPortConfig, CniError> {
    keys["name"] = "net".into();
    keys["runtimeConfig"] = json!({"portMappings": mappings});
    HostPortConfig::parse(&NetworkConfig::parse(keys.to_string().as_bytes()).unwrap())
}

fn forwards(mappings: Value, addresses: &[&str]) -> Result<Vec<String>, CniError> {
    let addresses: Vec<IpNetwork> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let forwards = config(mappings, json!({}))?.forwards(&addresses)?;
    Ok(forwards.iter().map(Forward::to_string).collect())
}

const BOTH: [&str; 2] = ["10.9.0.7/24", "fd09::7/64"];

#[test]
fn a_mapping_is_a_forward_of_each_family_that_the_pod_has() {
    let web = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "TCP"}]);
    assert_eq!(
        forwards(web.clone(), &BOTH).unwrap(),
        ["tcp 0.0.0.0:8080 -> 10.9.0.7:80", "tcp [::]:8080 -> [fd09::7]:80"]
    );
    assert_eq!(forwards(web.clone(), &BOTH[..1]).unwrap(), ["tcp 0.0.0.0:8080 -> 10.9.0.7:80"]);
    assert_eq!(forwards(web.clone(), &[]).unwrap(), [""; 0]);
    // Of several addresses of a family the first counts.
    assert_eq!(forwards(web, &["10.9.0.7/24", "10.8.0.1/24"]).unwrap(), ["tcp 0.0.0.0:8080 -> 10.9.0.7:80"]);
    assert_eq!(config(json!(null), json!({})).unwrap().mappings, []);
}

#[test]
fn a_host_address_is_of_one_family() {
    let at = |host: &str| forwards(json!([{"hostIP": host, "hostPort": 1, "containerPort": 2}]), &BOTH).unwrap();
    assert_eq!(at("192.0.2.1"), ["tcp 192.0.2.1:1 -> 10.9.0.7:2"]);
    assert_eq!(at("0.0.0.0"), ["tcp 0.0.0.0:1 -> 10.9.0.7:2"]);
    assert_eq!(at("::"), ["tcp [::]:1 -> [fd09::7]:2"]);
    assert_eq!(at("::ffff:192.0.2.1"), ["tcp 192.0.2.1:1 -> 10.9.0.7:2"]);
    assert_eq!(at("").len(), 2, "as if it were absent");
}

#[test]
fn two_mappings_of_one_port_must_agree() {
    let mapping = |host: &str, pod: u16| json!({"hostIP": host, "hostPort": 1, "containerPort": pod});
    for [first, second] in
        [["0.0.0.0", "0.0.0.0"], ["0.0.0.0", "192.0.2.1"], ["192.0.2.1", "0.0.0.0"], ["", "192.0.2.1"]]
    {
        let error = forwards(json!([mapping(first, 2), mapping(second, 3)]), &BOTH).unwrap_err();
        assert!(error.code == Code::InvalidConfig && error.msg.contains("contradict"), "{error:?}");
        assert!(forwards(json!([mapping(first, 2), mapping(second, 2)]), &BOTH).is_ok());
    }
    assert_eq!(forwards(json!([mapping("192.0.2.1", 2), mapping("192.0.2.2", 3)]), &BOTH).unwrap().len(), 2);
    assert_eq!(forwards(json!([mapping("192.0.2.1", 2), mapping("::", 3)]), &BOTH).unwrap().len(), 2);
}

#[test]
fn masquerading_is_read_from_two_keys() {
    for (keys, expected) in [
        (json!({}), Masquerade::Neighbours),
        (json!({"snat": true}), Masquerade::Neighbours),
        (json!({"snat": false}), Masquerade::Nobody),
        (json!({"masqAll": true}), Masquerade::Everybody),
        (json!({"snat": false, "masqAll": true}), Masquerade::Nobody),
        (json!({"markMasqBit": 0, "conditionsV4": [], "backend": "nftables"}), Masquerade::Neighbours),
    ] {
        assert_eq!(config(json!([]), keys).unwrap().masquerade, expected);
    }
}

#[test]
fn a_record_reads_as_it_was_written() {
    let forwards = config(json!([{"hostPort": 1, "containerPort": 2, "protocol": "sctp"}]), json!({"masqAll": true}))
        .unwrap()
        .forwards(&BOTH.map(|address| address.parse().unwrap()))
        .unwrap();
    let text = serde_json::to_string(&forwards).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Forward>>(&text).unwrap(), forwards);
    assert!(
        text.contains(r#""protocol":"sctp","host":"0.0.0.0","hostPort":1,"pod":"10.9.0.7/24","podPort":2"#),
        "{text}"
    );
    assert!(serde_json::from_str::<Vec<Forward>>(&text.replace("sctp", "icmp")).is_err());
}
