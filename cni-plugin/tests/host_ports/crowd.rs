//! Many at once, and many there already.

use crate::faults::calls;
use crate::harness::eth0;
use crate::world::{Pod, Stack, World, mapping};
use kernel::netns::Netns;
use serde_json::{Value, json};

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
    let ports = world.ports();
    {
        let _inside = world.node.host.enter().unwrap();
        for number in 0..5000u32 {
            let forward = json!({
                "protocol": "tcp", "host": "0.0.0.0", "hostPort": 10000 + number, "pod": format!("10.9.0.{}/24", 1 + number % 250), "podPort": 80, "masquerade": "neighbours",
            });
            let record = json!({
                "network": "net", "container": format!("c{number}"), "interface": "eth0", "forwards": [forward],
            });
            ports.publish(&serde_json::from_value(record).unwrap()).unwrap();
        }
    }
    let crowded = count();
    for (verb, (alone, crowded)) in ["ADD", "CHECK", "DEL"].iter().zip(alone.into_iter().zip(crowded)) {
        // The tables are made and memory grows: what matters is that nothing is done for each of the others.
        assert!(crowded <= alone + 60, "{verb} made {alone} system calls alone and {crowded} beside 5000 others");
    }
}
