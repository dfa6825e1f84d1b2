//! Clients that never pause.

use crate::world::{NODE, Pod, Stack, World, mapping};
use serde_json::json;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Asks every 10 ms from one socket until told to stop: which names answered.
fn keep_asking(socket: &UdpSocket, done: &AtomicBool) -> Vec<String> {
    let mut answers = Vec::new();
    while !done.load(Ordering::Acquire) {
        // An unreachable port is reported by the next call: no reason to give up.
        let _ = socket.send(b"?");
        let mut buffer = [0; 128];
        if let Ok(length) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]);
            answers.push(text.split(' ').next().unwrap_or_default().to_owned());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    answers
}

fn client(world: &World, to: &str) -> UdpSocket {
    let to: SocketAddr = SocketAddr::new(to.parse().unwrap(), 8125);
    let _inside = world.outside.enter().unwrap();
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    socket
}

/// Waits until a client has been answered by `name`.
fn until_answered(socket: &UdpSocket, name: &str) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        let _ = socket.send(b"?");
        let mut buffer = [0; 128];
        if let Ok(length) = socket.recv(&mut buffer)
            && String::from_utf8_lossy(&buffer[..length]).starts_with(name)
        {
            return;
        }
    }
    panic!("no answer by {name}");
}

#[test]
fn a_udp_client_follows_to_the_next_pod_at_once() {
    for (stack, to) in [(Stack::Native, NODE[0]), (Stack::Native, NODE[1]), (Stack::Chain, NODE[0])] {
        let world = World::new(stack);
        let mappings = json!([mapping(8125, 80, "udp")]);
        let first = Pod::start(&world, "first", &mappings);
        let socket = client(&world, to);
        until_answered(&socket, "first");
        let done = AtomicBool::new(false);
        let answers = std::thread::scope(|scope| {
            let asking = scope.spawn(|| keep_asking(&socket, &done));
            std::thread::sleep(Duration::from_millis(200));
            // In between, the client speaks to the node itself, which the connection tracking remembers.
            world.del(first.attachment(), &mappings).unwrap();
            std::thread::sleep(Duration::from_millis(100));
            let second = Pod::start(&world, "second", &mappings);
            // Far less than the half minute for which the kernel would remember an unanswered flow.
            std::thread::sleep(Duration::from_millis(1000));
            done.store(true, Ordering::Release);
            drop(second);
            asking.join().unwrap()
        });
        assert_eq!(answers.last().map(String::as_str), Some("second"), "{stack:?}, {to}");
    }
}

#[test]
fn a_flow_ends_with_its_pod_and_the_node_itself_is_heard_next() {
    let world = World::new(Stack::Native);
    let mappings = json!([mapping(8125, 80, "udp")]);
    let pod = Pod::start(&world, "pod", &mappings);
    let socket = client(&world, NODE[0]);
    until_answered(&socket, "pod");
    world.del(pod.attachment(), &json!([])).unwrap();
    let inside = world.node.host.enter().unwrap();
    let server = UdpSocket::bind(("0.0.0.0", 8125)).unwrap();
    drop(inside);
    std::thread::spawn(move || {
        while let Ok((_, client)) = server.recv_from(&mut [0; 8]) {
            let _ = server.send_to(b"node itself", client);
        }
    });
    // The kernel would remember an unanswered flow for half a minute.
    until_answered(&socket, "node");
}

#[test]
fn flows_through_the_node_to_the_same_port_elsewhere_go_on() {
    use kernel::conntrack::{Conntrack, Pattern};
    use kernel::nft::Protocol;
    let world = World::new(Stack::Native);
    // Tracking begins with the first table that needs it.
    let _some = Pod::start(&world, "some", &json!([mapping(9000, 80, "tcp")]));
    let client = Pod::start(&world, "client", &json!([]));
    crate::harness::ip(&world.outside, "route add 10.9.0.0/24 via 192.0.2.1");
    crate::world::serve(&world.outside, "outside");
    let to_the_outside = || crate::world::ask_udp(&client.netns, "192.0.2.9", 80).unwrap();
    assert_eq!(to_the_outside().0, "outside");
    let pattern = Pattern::ToPort { ipv4: true, protocol: Protocol::Udp, port: 80 };
    let mut conntrack = Conntrack::open_in(&world.node.host).unwrap();
    let before = conntrack.flows(&[pattern]).unwrap();
    assert_eq!(before.len(), 1, "{before:?}");
    let _web = Pod::start(&world, "web", &json!([mapping(80, 80, "udp")]));
    // The search for stale flows begins a tenth of a second after ADD has answered.
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(conntrack.flows(&[pattern]).unwrap(), before);
}

/// A connection that was open when its pod went would hold the client's port for days.
#[test]
fn tcp_connections_of_a_pod_that_left_are_forgotten() {
    use kernel::conntrack::{Conntrack, Pattern};
    use kernel::nft::Protocol;
    for stack in [Stack::Native, Stack::Chain] {
        let world = World::new(stack);
        let mappings = json!([mapping(8080, 80, "tcp")]);
        let pod = Pod::start(&world, "pod", &mappings);
        let (inside, to) = (world.outside.enter().unwrap(), SocketAddr::new(NODE[0].parse().unwrap(), 8080));
        let open = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
        drop(inside);
        let mut conntrack = Conntrack::open_in(&world.node.host).unwrap();
        let mut flows =
            || conntrack.flows(&[Pattern::ToPort { ipv4: true, protocol: Protocol::Tcp, port: 8080 }]).unwrap();
        assert_eq!(flows().len(), 1, "{stack:?}");
        world.del(pod.attachment(), &json!([])).unwrap();
        // A process of its own does it, after DEL has answered.
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && !flows().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(flows(), [], "{stack:?}");
        drop(open);
    }
}

/// Bridges that send a packet back where it came from have delivered some twice.
#[test]
fn a_datagram_arrives_once() {
    for stack in [Stack::Native, Stack::Chain] {
        let world = World::new(stack);
        let pod = Pod::start(&world, "pod", &json!([mapping(8125, 80, "udp")]));
        let other = Pod::start(&world, "other", &json!([]));
        let own = crate::harness::addresses(&pod.result);
        let ways = [
            (&pod.netns, NODE[0].parse().unwrap(), 8125),
            (&pod.netns, NODE[1].parse().unwrap(), 8125),
            (&other.netns, NODE[0].parse().unwrap(), 8125),
            (&other.netns, own[0], 80),
            (&world.outside, NODE[0].parse().unwrap(), 8125),
        ];
        for (from, to, port) in ways {
            let inside = from.enter().unwrap();
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            drop(inside);
            socket.connect((to, port)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket.send(b"?").unwrap();
            let mut buffer = [0; 128];
            socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{stack:?}, {to}: {error}"));
            // Each copy would be answered.
            socket.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
            assert!(socket.recv(&mut buffer).is_err(), "{stack:?}: {to} answered twice");
        }
    }
}
