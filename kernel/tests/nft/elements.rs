//! Elements come and go without the rest of the table.

use crate::sample::{address, network};
use crate::{fresh, nft, sample, with};
use kernel::nft::{Element, Field, Nft, Protocol, Set, Table, Value};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

fn one_set(set: Set) -> Table {
    Table { name: "pods-only".into(), sets: BTreeMap::from([("pods".into(), set)]), ..Table::default() }
}

#[test]
fn elements_are_added_and_removed_and_twice_is_once() {
    let table = one_set(Set::addresses(Field::Ipv4Address, [address("10.0.0.1")]));
    let (namespace, mut connection) = with(&table);
    let two = [Element::from(address("10.0.0.1")), Element::from(address("10.0.0.2"))];
    connection.add_elements(&table, "pods", &two).unwrap();
    connection.add_elements(&table, "pods", &two).unwrap();
    let listing = nft(&namespace, &["list", "set", "ip", "pods-only", "pods"], "");
    assert!(listing.contains("{ 10.0.0.1, 10.0.0.2 }"), "{listing}");
    // One of them is not there: the other goes all the same.
    let gone = [Element::from(address("10.0.0.9")), Element::from(address("10.0.0.2"))];
    connection.remove_elements(&table, "pods", &gone).unwrap();
    connection.remove_elements(&table, "pods", &gone).unwrap();
    assert!(connection.is_intact(&table).unwrap());
    connection.add_elements(&table, "pods", &[]).unwrap();
}

#[test]
fn prefixes_are_added_and_removed() {
    let table = one_set(Set::networks(Field::Ipv4Address, [network("10.0.0.0/24")]));
    let (_namespace, mut connection) = with(&table);
    for text in ["10.0.1.0/24", "255.255.255.0/24", "0.0.0.0/8", "10.0.3.0/32"] {
        let element = [Element::from(network(text))];
        connection.add_elements(&table, "pods", &element).unwrap();
        connection.add_elements(&table, "pods", &element).unwrap();
        assert!(!connection.is_intact(&table).unwrap(), "{text}");
        connection.remove_elements(&table, "pods", &element).unwrap();
        assert!(connection.is_intact(&table).unwrap(), "{text}");
    }
    let error = connection.add_elements(&table, "pods", &[network("10.0.0.0/16").into()]).unwrap_err();
    assert!(matches!(error.errno, Errno::ENOTEMPTY | Errno::EEXIST), "an overlap: {error}");
    assert!(error.to_string().contains("set pods of nft table ip pods-only"), "{error}");
}

#[test]
fn prefixes_with_host_bits_are_what_they_contain() {
    let networks = ["10.1.0.1/16", "10.9.9.9/8", "192.0.2.7/24"].map(network);
    let table = one_set(Set::networks(Field::Ipv4Address, networks));
    let (namespace, mut connection) = with(&table);
    assert!(connection.is_intact(&table).unwrap());
    let listing = nft(&namespace, &["list", "set", "ip", "pods-only", "pods"], "");
    assert!(listing.contains("{ 10.0.0.0/8, 192.0.2.0/24 }"), "{listing}");
}

#[test]
fn a_map_does_not_change_its_mind_silently() {
    let table = sample::host_ports();
    let (_namespace, mut connection) = with(&table);
    let key = [Value::Protocol(Protocol::Tcp), Value::Port(8080)];
    let other = Element::entry(key, [address("10.244.3.99").into(), Value::Port(80)]);
    let error = connection.add_elements(&table, "ports", &[other]).unwrap_err();
    assert!(matches!(error.errno, Errno::EBUSY | Errno::EEXIST), "{error}");
    assert!(connection.is_intact(&table).unwrap());
}

#[test]
fn a_missing_table_is_an_error_to_add_to_and_none_to_remove_from() {
    let table = one_set(Set::addresses(Field::Ipv4Address, []));
    let mut connection = Nft::open_in(&fresh()).unwrap();
    let elements = [Element::from(address("10.0.0.1")), Element::from(address("10.0.0.2"))];
    assert_eq!(connection.add_elements(&table, "pods", &elements).unwrap_err().errno, Errno::ENOENT);
    connection.remove_elements(&table, "pods", &elements).unwrap();
    assert_eq!(connection.add_elements(&table, "unknown", &elements).unwrap_err().errno, Errno::EINVAL);
}

#[test]
fn a_set_of_many_elements_is_programmed_and_compared_whole() {
    let addresses = (0..20_000u32).map(|number| Ipv4Addr::from_bits(0x0a00_0000 + 3 * number).into());
    let mut table = one_set(Set::addresses(Field::Ipv4Address, addresses));
    let (_namespace, mut connection) = with(&table);
    assert!(connection.is_intact(&table).unwrap());
    table.sets.get_mut("pods").unwrap().elements.pop_last();
    assert!(!connection.is_intact(&table).unwrap());
    let networks =
        (0..5_000u32).map(|number| network(&format!("{}/24", Ipv4Addr::from_bits(0x0a00_0000 + (number << 8)))));
    let table = one_set(Set::networks(Field::Ipv4Address, networks));
    connection.replace(&table).unwrap();
    assert!(connection.is_intact(&table).unwrap());
}
