//! What is particular to Kubernetes, on a real API server too where there is one: what is written, to the byte; nodes that come,
//! go and come back; what an administrator lays down.

use crate::keepers::Running;
use crate::kube_api::{KubeApi, on_both};
use crate::place::{Node, Place, config, leases, node, run, until, v4};
use flanneld_rs::network_config::NetworkConfig;
use flanneld_rs::store::{Contact, Given, KubeOptions, KubeStore, LeaseStore, Store, StoreError};
use std::time::Duration;

on_both! {
    what_is_written_is_what_go_flannel_writes
    a_family_without_an_underlay_is_taken_back
    an_administrators_addresses_are_published
    a_node_gets_its_podcidr_late
    a_node_that_is_re_created_moves_to_its_new_subnet
    a_podcidr_outside_of_the_network_is_refused
    what_takes_no_part_or_makes_no_sense_hides_nothing
    the_node_is_found_by_the_pod
    a_watch_that_is_too_late_lists_again
    a_server_that_does_not_stream_is_asked_for_a_list
    events_are_made_where_they_may_be
}

fn run_on<F: Future<Output = ()>>(api: KubeApi, test: impl FnOnce(Place) -> F) {
    run(Place::Kube(api), test);
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

async fn what_is_written_is_what_go_flannel_writes(place: Place) {
    let api = place.kube();
    let dual = node(1).dual();
    api.join("node-1", &["10.5.1.0/24", "fd00:5:0:1::/64"]).await;
    let text = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
    let store = api.open("node-1");
    let own = dual.acquire(&store, &NetworkConfig::parse(text).unwrap()).await.unwrap();
    assert_eq!(own.lease.key(), "10.5.1.0-24&fd00:5:0:1::-64");
    let vtep = r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:01"}"#;
    let expected = pairs(&[
        ("backend-data", vtep),
        ("backend-type", "vxlan"),
        ("backend-v6-data", vtep),
        ("kube-subnet-manager", "true"),
        ("public-ip", "192.168.64.1"),
        ("public-ipv6", "fd00:64::1"),
    ]);
    assert_eq!(api.annotations("node-1").await, expected);
    let object = api.node("node-1").await;
    let conditions = object["status"]["conditions"].as_array().unwrap();
    let network = conditions.iter().find(|condition| condition["type"] == "NetworkUnavailable").unwrap();
    let members = ["status", "reason", "message"].map(|member| network[member].as_str().unwrap());
    assert_eq!(members, ["False", "FlannelIsUp", "Flannel is running on this node"]);
    assert!(network["lastTransitionTime"].is_string() && network["lastHeartbeatTime"].is_string());

    // The backend data of a plain route is the text null; and what is as it should be is not written again.
    let mut plain = node(2);
    plain.announcement.backend_type = "host-gw".into();
    plain.announcement.endpoints.v4.as_mut().unwrap().data = None;
    api.join("node-2", &["10.5.2.0/24"]).await;
    let (second, host_gw) = (api.open("node-2"), r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#);
    let own = plain.acquire(&second, &NetworkConfig::parse(host_gw).unwrap()).await.unwrap();
    let expected = pairs(&[
        ("backend-data", "null"),
        ("backend-type", "host-gw"),
        ("kube-subnet-manager", "true"),
        ("public-ip", "192.168.64.2"),
    ]);
    assert_eq!(api.annotations("node-2").await, expected);
    let before = api.node("node-2").await["metadata"]["resourceVersion"].clone();
    assert_eq!(second.renew(&own, &plain.announcement).await.unwrap(), own);
    plain.acquire(&api.open("node-2"), &NetworkConfig::parse(host_gw).unwrap()).await.unwrap();
    assert_eq!(api.node("node-2").await["metadata"]["resourceVersion"], before);
}

async fn a_family_without_an_underlay_is_taken_back(place: Place) {
    let api = place.kube();
    api.join("node-1", &["10.5.1.0/24", "fd00:5:0:1::/64"]).await;
    let text = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
    let config = NetworkConfig::parse(text).unwrap();
    node(1).dual().acquire(&api.open("node-1"), &config).await.unwrap();
    let laid_down = [("node-public-ipv6", "fd00:64::77"), ("public-ipv6-overwrite", "fd00:64::78")];
    api.annotate("node-1", &laid_down).await;
    // The machine comes up without IPv6.
    let store = api.open("node-1");
    let own = node(1).acquire(&store, &config).await.unwrap();
    let vtep = r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:01"}"#;
    let expected = pairs(&[
        ("backend-data", vtep),
        ("backend-type", "vxlan"),
        ("kube-subnet-manager", "true"),
        ("node-public-ipv6", "fd00:64::77"),
        ("public-ip", "192.168.64.1"),
        ("public-ipv6-overwrite", "fd00:64::78"),
    ]);
    assert_eq!(api.annotations("node-1").await, expected);
    // What the list shows is what was left there, so that nothing has to be renewed.
    let watch = store.watch();
    until(&mut watch.receiver(), |snapshot| leases(snapshot).get(&own.lease.subnets) == Some(&own.lease)).await;
}

async fn an_administrators_addresses_are_published(place: Place) {
    let api = place.kube();
    api.join("node-1", &["10.5.1.0/24"]).await;
    api.annotate("node-1", &[("public-ip-overwrite", "203.0.113.7"), ("node-public-ip", "192.168.64.99")]).await;
    let store = api.open("node-1");
    let watch = store.watch();
    let mut seen = watch.receiver();
    let given = until(&mut seen, |snapshot| snapshot.contact == Contact::Live).await.given;
    assert_eq!(given.public.v4, "192.168.64.99".parse().ok());
    let mut keeper = Running::start(&node(1), api.open("node-1"), config(), None);
    let public = |lease: &flanneld_rs::lease::Lease| lease.announcement.public_ip().map(|ip| ip.to_string());
    let lease = keeper.until(|_| true).await;
    assert_eq!(public(&lease).as_deref(), Some("203.0.113.7"));
    until(&mut seen, |snapshot| leases(snapshot).get(&lease.subnets) == Some(&lease)).await;
    // While we run.
    api.annotate("node-1", &[("public-ip-overwrite", "203.0.113.8")]).await;
    let lease = keeper.until(|held| public(&held.lease).as_deref() == Some("203.0.113.8")).await;
    until(&mut seen, |snapshot| leases(snapshot).get(&lease.subnets) == Some(&lease)).await;
    // Somebody else writes over what we have written.
    api.annotate("node-1", &[("public-ip", "192.0.2.1"), ("backend-data", "null")]).await;
    let other = api.open("node-2");
    let watch = other.watch();
    until(&mut watch.receiver(), |snapshot| leases(snapshot).get(&lease.subnets) == Some(&lease)).await;
}

async fn a_node_gets_its_podcidr_late(place: Place) {
    let api = place.kube();
    let mut keeper = Running::start(&node(1), api.open("node-1"), config(), None);
    // Not yet registered, then without a podCIDR: both are told, with what is to be looked at.
    keeper.until_health(|health| health.as_ref().is_err_and(|why| why.contains("there is no node"))).await;
    api.join("node-1", &[]).await;
    keeper.until_health(|health| health.as_ref().is_err_and(|why| why.contains("--allocate-node-cidrs"))).await;
    assert_eq!(api.annotations("node-1").await, []);
    api.give("node-1", &["10.5.1.0/24"]).await;
    let lease = keeper.until(|_| true).await;
    assert_eq!(lease.key(), "10.5.1.0-24");
    keeper.until_health(Result::is_ok).await;
    assert!(!keeper.task.is_finished());
}

async fn a_node_that_is_re_created_moves_to_its_new_subnet(place: Place) {
    let api = place.kube();
    api.join("node-1", &["10.5.1.0/24"]).await;
    let mut keeper = Running::start(&node(1), api.open("node-1"), config(), None);
    keeper.until(|_| true).await;
    let observer = api.open("node-2");
    let watch = observer.watch();
    let mut seen = watch.receiver();
    until(&mut seen, |snapshot| leases(snapshot).len() == 1).await;
    // Deleted: the others take it out; and what it says of itself comes back with it.
    api.leave("node-1").await;
    until(&mut seen, |snapshot| leases(snapshot).is_empty()).await;
    keeper.until_health(|health| health.as_ref().is_err_and(|why| why.contains("there is no node"))).await;
    api.join("node-1", &["10.5.1.0/24"]).await;
    until(&mut seen, |snapshot| leases(snapshot).len() == 1).await;
    keeper.until_health(Result::is_ok).await;
    // At once, with another subnet.
    api.leave("node-1").await;
    api.join("node-1", &["10.5.7.0/24"]).await;
    let lease = keeper.until(|held| held.lease.key() == "10.5.7.0-24").await;
    let now = until(&mut seen, |snapshot| leases(snapshot).get(&lease.subnets) == Some(&lease)).await;
    assert_eq!(leases(&now).len(), 1);
    assert!(!keeper.task.is_finished());
}

async fn a_podcidr_outside_of_the_network_is_refused(place: Place) {
    let api = place.kube();
    for (name, cidr) in [("node-1", "10.6.1.0/24"), ("node-2", "10.0.0.0/14")] {
        api.join(name, &[cidr]).await;
        let own: Node = Node { name: name.into(), ..node(1) };
        let error = own.acquire(&api.open(name), &config()).await.unwrap_err();
        let StoreError::Unassigned(text) = &error else { panic!("{error:?}") };
        assert!(text.contains(cidr) && text.contains("10.5.0.0/16") && text.contains("--cluster-cidr"), "{text}");
    }
    // Of a dual-stack cluster, the family that is in use.
    api.join("node-3", &["10.5.3.0/26", "fd00::/64"]).await;
    let options = KubeOptions { families: vec![flanneld_rs::family::Family::V4], ..api.options("node-3") };
    let own = node(3).acquire(&Store::Kube(KubeStore::new(options).unwrap()), &config()).await.unwrap();
    assert_eq!(v4(&own), "10.5.3.0/26");
    assert_eq!(own.lease.key(), "10.5.3.0-26");
}

async fn what_takes_no_part_or_makes_no_sense_hides_nothing(place: Place) {
    let api = place.kube();
    let store = api.open("node-1");
    let watch = store.watch();
    let mut seen = watch.receiver();
    for number in 1..=4 {
        api.join(&format!("node-{number}"), &[&format!("10.5.{number}.0/24")]).await;
    }
    let own = node(1).acquire(&store, &config()).await.unwrap();
    api.annotate("node-3", &[("kube-subnet-manager", "true"), ("public-ip", "fish")]).await;
    api.annotate("node-4", &[("kube-subnet-manager", "true"), ("public-ip", "192.0.2.4"), ("backend-data", "{")]).await;
    let snapshot = until(&mut seen, |snapshot| leases(snapshot).len() == 1 && snapshot.skipped.len() == 2).await;
    assert_eq!(leases(&snapshot).iter().collect::<Vec<_>>(), [&own.lease]);
    let (name, why) = snapshot.skipped.iter().next().unwrap();
    assert!(*name == api.name("node-3") && why.contains("public-ip") && why.contains("fish"), "{name}: {why}");
    let subnets = snapshot.given.subnets;
    assert_eq!(snapshot.given, Given { subnets, ..Given::default() });
    assert_eq!(subnets, own.lease.subnets);
    // One of the two is mended, the other goes.
    api.annotate("node-3", &[("public-ip", "192.0.2.3"), ("backend-data", "null")]).await;
    api.leave("node-4").await;
    until(&mut seen, |snapshot| leases(snapshot).len() == 2 && snapshot.skipped.is_empty()).await;
}

async fn the_node_is_found_by_the_pod(place: Place) {
    let api = place.kube();
    api.join("node-1", &["10.5.1.0/24"]).await;
    let options = KubeOptions { node: None, pod: Some(("default".into(), "absent".into())), ..api.options("node-1") };
    let store = Store::Kube(KubeStore::new(options.clone()).unwrap());
    let error = node(1).acquire(&store, &config()).await.unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(text) if text.contains("default/absent")), "{error:?}");
    // A pod of a real server needs more than this test is about.
    if let Some(double) = &api.double {
        double.put_pod("default", "absent", &api.name("node-1"));
        assert_eq!(v4(&node(1).acquire(&store, &config()).await.unwrap()), "10.5.1.0/24");
    }
    let error = KubeStore::new(KubeOptions { pod: None, ..options }).unwrap_err();
    assert!(error.to_string().contains("NODE_NAME"), "{error}");
}

async fn a_watch_that_is_too_late_lists_again(place: Place) {
    let api = place.kube();
    for number in 1..=2 {
        let name = format!("node-{number}");
        api.join(&name, &[&format!("10.5.{number}.0/24")]).await;
        let own = Node { name: name.clone(), ..node(number) };
        own.acquire(&api.open(&name), &config()).await.unwrap();
    }
    // Away while one node goes, another changes and all history is forgotten; a real server forgets in minutes only.
    let store = api.open_with("node-1", Duration::from_secs(1));
    let watch = store.watch();
    let mut seen = watch.receiver();
    until(&mut seen, |snapshot| leases(snapshot).len() == 2).await;
    if let Some(double) = &api.double {
        double.faults(|faults| faults.hangs = true);
        double.delete_node(&api.name("node-2"));
        double.annotate(&api.name("node-1"), &api.annotation("public-ip"), "192.0.2.1");
        double.compact();
        double.cut();
        double.faults(|faults| faults.hangs = false);
    } else {
        api.leave("node-2").await;
        api.annotate("node-1", &[("public-ip", "192.0.2.1")]).await;
    }
    let snapshot = until(&mut seen, |snapshot| leases(snapshot).len() == 1).await;
    let address = |snapshot: &_| leases(snapshot).iter().next().unwrap().announcement.public_ip();
    assert_eq!(
        address(&until(&mut seen, |now| address(now) == "192.0.2.1".parse().ok()).await),
        "192.0.2.1".parse().ok()
    );
    drop(snapshot);
}

async fn a_server_that_does_not_stream_is_asked_for_a_list(place: Place) {
    let api = place.kube();
    if let Some(double) = &api.double {
        double.faults(|faults| faults.no_streams = true);
    }
    let annotations =
        |number: u8| [("kube-subnet-manager", "true".to_owned()), ("public-ip", format!("192.0.2.{number}"))];
    for number in 1..=240_u8 {
        let name = format!("node-{number}");
        if let Some(double) = &api.double {
            double.put_node(&api.name(&name), &[&format!("10.5.{number}.0/24")]);
            annotations(number)
                .iter()
                .for_each(|(annotation, value)| double.annotate(&api.name(&name), &api.annotation(annotation), value));
        } else if number <= 5 {
            api.join(&name, &[&format!("10.5.{number}.0/24")]).await;
            let [(managed, yes), (public, address)] = &annotations(number);
            api.annotate(&name, &[(managed, yes), (public, address)]).await;
        }
    }
    let expected = if api.double.is_some() { 240 } else { 5 };
    let store = api.open("node-1");
    let watch = store.watch();
    let mut seen = watch.receiver();
    // What a real server has in memory may lag behind for a moment.
    until(&mut seen, |snapshot| snapshot.contact == Contact::Live && leases(snapshot).len() == expected).await;
    api.leave("node-1").await;
    until(&mut seen, |snapshot| leases(snapshot).len() == expected - 1).await;
}

async fn events_are_made_where_they_may_be(place: Place) {
    let api = place.kube();
    let refused = KubeStore::new(api.options("node-1")).unwrap().tell("too early").await.unwrap_err();
    assert!(
        matches!(&refused, StoreError::Invalid(text) if text.contains("event") && text.contains("403")),
        "{refused:?}"
    );
    // Somebody with more rights than flannel has.
    let options = KubeOptions { kubeconfig: Some(api.kubeconfig("admin")), ..api.options("node-1") };
    let trouble = "no podCIDR yet ".repeat(500);
    KubeStore::new(options).unwrap().tell(&trouble).await.unwrap();
    if let Some(double) = &api.double {
        let events = double.events();
        assert_eq!(events[0]["involvedObject"]["name"], api.name("node-1"));
        assert_eq!((events.len(), &events[0]["type"]), (1, &"Warning".into()));
    }
}
