//! Many at once, and many there already.

use crate::faults::calls;
use crate::harness::eth0;
use crate::world::{Pod, Stack, World, mapping};
use cni_plugin::restore::Restorer;
use kernel::netns::Netns;
use kernel::nft::Nft;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::symlink;

const CROWD: u16 = 64;

/// ADD for each of the crowd at once, with the mappings of its number; who succeeded.
fn all_at_once(world: &World, pods: &[Netns], mappings: impl Fn(u16) -> Value + Sync) -> Vec<u16> {
    std::thread::scope(|scope| {
        let start = |number: u16| {
            let (mappings, pod) = (&mappings, &pods[usize::from(number)]);
            scope.spawn(move || {
                let added = world.add(eth0(&format!("c{number}"), pod), &mappings(number));
                added.map(|_| number).inspect_err(|failure| assert_eq!(failure.code, 103, "{failure:?}")).ok()
            })
        };
        let calls: Vec<_> = (0..CROWD).map(start).collect();
        calls.into_iter().filter_map(|call| call.join().unwrap()).collect()
    })
}

#[test]
fn a_crowd_gets_its_ports_and_one_of_it_a_port_that_all_want() {
    let world = World::new(Stack::Native);
    let pods: Vec<Netns> = (0..CROWD).map(|_| Netns::create().unwrap()).collect();
    let own = |number: u16| json!([mapping(20000 + number, 80, "tcp"), mapping(20000 + number, 80, "udp")]);
    assert_eq!(all_at_once(&world, &pods, own).len(), usize::from(CROWD));
    // Two ports for each family of each, and a subnet.
    assert_eq!(world.elements().len(), usize::from(CROWD) * 4 + 2);
    std::thread::scope(|scope| {
        for (number, pod) in pods.iter().enumerate() {
            let world = &world;
            scope.spawn(move || world.del(eth0(&format!("c{number}"), pod), &json!([])).unwrap());
        }
    });
    world.assert_no_ports("all gone");
    let winners = all_at_once(&world, &pods, |_| json!([mapping(8080, 80, "tcp")]));
    assert_eq!(winners.len(), 1);
    world.gc(&[]).unwrap();
    world.assert_no_ports("after GC");
}

#[test]
fn an_attachment_costs_the_same_however_many_there_are() {
    let world = World::new(Stack::Chain);
    let first = Pod::start(&world, "first", &json!([mapping(1, 80, "tcp")]));
    let mappings = json!([mapping(9090, 80, "tcp"), mapping(9091, 80, "udp"), mapping(9092, 80, "sctp")]);
    let mut config = world.configs(&mappings).remove(1);
    config["prevResult"] = first.result.clone();
    let pod = Netns::create().unwrap();
    let count = || ["ADD", "CHECK", "DEL"].map(|verb| calls(&world, &pod, verb, &config).len());
    let alone = count();
    record(&world, 5000);
    let inside = world.node.host.enter().unwrap();
    let mut nft = Nft::open().unwrap();
    assert!(Restorer::new(world.ports()).restore(&mut nft).unwrap());
    drop(inside);
    assert_eq!(world.elements().len(), 5000 + 4);
    let crowded = count();
    for (verb, (alone, crowded)) in ["ADD", "CHECK", "DEL"].iter().zip(alone.into_iter().zip(crowded)) {
        // The tables are made and memory grows: what matters is that nothing is done for each of the others.
        assert!(crowded <= alone + 60, "{verb} made {alone} system calls alone and {crowded} beside 5000 others");
    }
}

/// Writes the records of many attachments with a port each, as so many calls would have.
fn record(world: &World, count: u32) {
    let state = fs::read_dir(world.directory()).unwrap().next().unwrap().unwrap().path();
    for number in 0..count {
        let (container, port) = (format!("c{number}"), 10000 + number);
        let digest = Sha256::new().chain_update(&container).chain_update([0]).chain_update("eth0").finalize();
        let key: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let forward = json!({
            "protocol": "tcp", "host": "0.0.0.0", "hostPort": port, "pod": format!("10.9.0.{}/24", 1 + number % 250),
            "podPort": 80, "masquerade": "neighbours",
        });
        let record = json!({"network": "net", "container": container, "interface": "eth0", "forwards": [forward]});
        fs::write(state.join("records").join(&key), record.to_string()).unwrap();
        let claim = state.join(format!("claims/tcp-{port}"));
        fs::create_dir(&claim).unwrap();
        symlink(&key, claim.join("0.0.0.0")).unwrap();
        symlink(&key, state.join("subnets/10.9.0.0_24").join(&key)).unwrap();
    }
}
