//! The contract.

use crate::place::{CONFIG, PATIENCE, Place, config, leases, node, until, v4};
use flanneld_rs::family::Family;
use flanneld_rs::network_config::NetworkConfig;
use flanneld_rs::store::{Contact, LEASE_TTL, LeaseStore, Snapshot, StoreError};
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

const HOST_GW_9: &str = r#"{"PublicIP":"192.168.64.9","PublicIPv6":null,"BackendType":"host-gw"}"#;

pub(crate) async fn a_lease_is_acquired_watched_and_renewed(place: Place) {
    place.give(&node(1), &["10.5.1.0/24"]).await;
    let store = place.open_as(&node(1));
    let watch = store.watch();
    let mut seen = watch.receiver();
    assert!(until(&mut seen, |snapshot| snapshot.contact == Contact::Live).await.leases.unwrap().is_empty());

    let before = SystemTime::now();
    let own = node(1).acquire(&store, &config()).await.unwrap();
    assert!(config().pools.v4.unwrap().is_compatible(&own.lease.subnets.v4.unwrap()));
    assert_eq!(own.lease.announcement, node(1).announcement);
    // A podCIDR has no end.
    assert_eq!(own.expires.is_none(), matches!(place, Place::Kube(_)));
    if let Some(expires) = own.expires {
        let life = expires.duration_since(before).unwrap();
        assert!(life >= LEASE_TTL - Duration::from_secs(1) && life < LEASE_TTL + Duration::from_secs(60), "{life:?}");
    }
    until(&mut seen, |snapshot| leases(snapshot).get(&own.lease.subnets) == Some(&own.lease)).await;

    // What is on the wire is what Go flannel would have written, in etcd to the last byte; of Kubernetes see `kube_only`.
    let value = r#"{"PublicIP":"192.168.64.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:01"}}"#;
    if !matches!(place, Place::Kube(_)) {
        let (text, for_ever) = place.get(&format!("subnets/{}", own.lease.key())).await.unwrap();
        match place {
            Place::Etcd { .. } => assert_eq!(text, value),
            _ => assert!(text.starts_with(value.strip_suffix('}').unwrap()), "{text}"),
        }
        assert!(!for_ever);
    }

    let again = store.renew(&own, &own.lease.announcement).await.unwrap();
    assert_eq!(again.lease, own.lease);
    assert!(again.expires >= own.expires);
    let once_more = store.renew(&again, &own.lease.announcement).await.unwrap();
    assert_eq!(once_more.lease, own.lease);
    // A renewal changes nothing that peers care about: the next thing seen is another node.
    place.give(&node(2), &["10.5.2.0/24"]).await;
    node(2).acquire(&place.open_as(&node(2)), &config()).await.unwrap();
    assert_eq!(leases(&until(&mut seen, |snapshot| leases(snapshot).len() != 1).await).len(), 2);
}

pub(crate) async fn the_configuration_is_read(place: Place) {
    let store = place.open();
    let missing = store.network_config().await.unwrap_err();
    assert!(matches!(&missing, StoreError::Unavailable(text) if text.contains("config is not there yet")), "{missing}");
    place.put("config", CONFIG).await;
    assert_eq!(store.network_config().await.unwrap(), CONFIG);
    place.put("config", [0xff, 0xfe]).await;
    assert!(matches!(store.network_config().await, Err(StoreError::Invalid(_))));
    place.put("config", vec![b' '; 100_000]).await;
    assert!(store.network_config().await.is_err());
}

pub(crate) async fn changes_of_the_configuration_are_told(place: Place) {
    let store = place.open();
    let (wake, mut woken) = tokio::sync::watch::channel(());
    let follow = store.follow_config(wake);
    let look = async {
        for number in 1..4 {
            let text = format!("version {number}");
            place.put("config", &text).await;
            let seen = tokio::time::timeout(PATIENCE, async {
                while store.network_config().await.as_ref() != Ok(&text) {
                    woken.changed().await.unwrap();
                }
            });
            assert!(seen.await.is_ok(), "{text} is not told of");
        }
        // Each wake in turn: those of the start, and what was told twice.
        while tokio::time::timeout(Duration::from_millis(200), woken.changed()).await.is_ok() {}
        place.put("subnets/10.5.9.0-24", HOST_GW_9).await;
        let told = tokio::time::timeout(Duration::from_millis(200), woken.changed()).await;
        assert!(told.is_err(), "a lease is no configuration");
        place.delete("config").await;
        assert!(tokio::time::timeout(PATIENCE, woken.changed()).await.is_ok(), "its end is not told");
    };
    tokio::select! {
        () = follow => panic!("it ends"),
        () = look => {}
    }
}

pub(crate) async fn the_same_public_address_gets_its_subnet_back(place: Place) {
    let first = node(1).acquire(&place.open(), &config()).await.unwrap();
    node(2).acquire(&place.open(), &config()).await.unwrap();
    // Everything else is forgotten; the name too.
    let mut forgetful = node(1).remembers("10.5.200.0/24");
    forgetful.name = "renamed".into();
    forgetful.announce(Family::V4, 1, 77);
    let again = forgetful.acquire(&place.open(), &config()).await.unwrap();
    assert_eq!(again.lease.subnets, first.lease.subnets);
    assert_eq!(again.lease.announcement, forgetful.announcement);
}

pub(crate) async fn the_previous_subnet_is_taken_again_if_it_is_free_and_fits(place: Place) {
    let store = place.open();
    // As in subnet.env: the gateway's address.
    let own = node(1).remembers("10.5.207.1/24").acquire(&store, &config()).await.unwrap();
    assert_eq!(v4(&own), "10.5.207.0/24");
    assert_ne!(v4(&node(2).remembers("10.5.207.1/24").acquire(&store, &config()).await.unwrap()), "10.5.207.0/24");
    for unfit in ["10.6.1.0/24", "10.5.208.0/25", "10.5.0.0/24", "fd00:0:0:5::/64"] {
        let own = node(3).remembers(unfit).acquire(&store, &config()).await.unwrap();
        assert!(config().pools.v4.unwrap().is_compatible(&own.lease.subnets.v4.unwrap()), "{unfit}");
        store.release(&own).await.unwrap();
    }
}

pub(crate) async fn a_node_whose_address_changed_keeps_its_subnet(place: Place) {
    place.give(&node(1), &["10.5.1.0/24"]).await;
    place.give(&node(2), &["10.5.2.0/24"]).await;
    let store = place.open_as(&node(1));
    let own = node(1).acquire(&store, &config()).await.unwrap();
    // While it runs ...
    let mut moved = node(1);
    moved.announce(Family::V4, 101, 1);
    let renewed = store.renew(&own, &moved.announcement).await.unwrap();
    assert_eq!(renewed.lease.subnets, own.lease.subnets);
    // ... and across a restart: its VTEP and its memory prove that it is the same.
    let mut back = node(1).remembers(&v4(&own));
    back.announce(Family::V4, 201, 1);
    let again = back.acquire(&place.open_as(&back), &config()).await.unwrap();
    assert_eq!(again.lease.subnets, own.lease.subnets);
    assert_eq!(again.lease.announcement, back.announcement);
    // A copy of another node's subnet file proves nothing.
    let thief = node(2).remembers(&v4(&own)).acquire(&place.open_as(&node(2)), &config()).await.unwrap();
    assert_ne!(thief.lease.subnets, own.lease.subnets);
}

pub(crate) async fn twenty_nodes_get_twenty_subnets(place: Place) {
    // Hardly more subnets than nodes, so that they do collide.
    let config = NetworkConfig::parse(
        r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.21.0","Backend":{"Type":"host-gw"}}"#,
    )
    .unwrap();
    let stores: Vec<_> = (1..=20).map(|number| (node(number), place.open())).collect();
    let acquired = stores.iter().map(|(node, store)| node.acquire(store, &config));
    let owned = futures::future::join_all(acquired).await;
    let subnets: BTreeSet<_> = owned.into_iter().map(|own| own.unwrap().lease.subnets).collect();
    assert_eq!(subnets.len(), 20);
}

pub(crate) async fn the_last_subnet_goes_to_one_of_two(place: Place) {
    let config = NetworkConfig::parse(
        r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.9.0","Backend":{"Type":"host-gw"}}"#,
    )
    .unwrap();
    let (one, other) = (place.open(), place.open());
    let (first, second) = (node(1), node(2));
    let outcomes = [futures::join!(first.acquire(&one, &config), second.acquire(&other, &config))];
    let [(first, second)] = outcomes;
    let (won, lost) = if first.is_ok() { (first, second) } else { (second, first) };
    assert_eq!(v4(&won.unwrap()), "10.5.9.0/24");
    let lost = lost.unwrap_err();
    assert!(matches!(&lost, StoreError::Exhausted(text) if text.contains("10.5.0.0/16")), "{lost}");
}

pub(crate) async fn dual_stack_subnets_never_overlap_in_either_family(place: Place) {
    let config = NetworkConfig::parse(
        r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.10.0",
            "IPv6Network":"fd00:5::/48","IPv6SubnetMin":"fd00:5:0:1::","IPv6SubnetMax":"fd00:5:0:a::",
            "Backend":{"Type":"vxlan"}}"#,
    )
    .unwrap();
    // Two nodes that pair one IPv4 subnet with different IPv6 subnets write different keys: no comparison stops them.
    let stores: Vec<_> = (1..=8).map(|number| (node(number).dual(), place.open())).collect();
    let owned = futures::future::join_all(stores.iter().map(|(node, store)| node.acquire(store, &config))).await;
    let owned: Vec<_> = owned.into_iter().map(Result::unwrap).collect();
    for family in Family::ALL {
        let subnets: BTreeSet<_> = owned.iter().map(|own| *own.lease.subnets.get(family).unwrap()).collect();
        assert_eq!(subnets.len(), 8, "{family}: {owned:#?}");
    }
    let store = place.open();
    let watch = store.watch();
    until(&mut watch.receiver(), |snapshot| leases(snapshot).iter().eq(sorted(&owned))).await;
    let again = node(3).dual().acquire(&store, &config).await.unwrap();
    assert_eq!(again.lease, owned[2].lease);
}

fn sorted(owned: &[flanneld_rs::store::OwnLease]) -> BTreeSet<&flanneld_rs::lease::Lease> {
    owned.iter().map(|own| &own.lease).collect()
}

pub(crate) async fn ipv6_alone_works(place: Place) {
    let config = NetworkConfig::parse(
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#,
    )
    .unwrap();
    let mut six = node(1).dual();
    place.give(&six, &["fd00:5:0:1::/64"]).await;
    let store = place.open_as(&six);
    six.announcement.endpoints.v4 = None;
    let own = six.acquire(&store, &config).await.unwrap();
    assert!(own.lease.key().starts_with("fd00:5:0:") && own.lease.key().ends_with("-64"), "{}", own.lease.key());
    assert_eq!(six.acquire(&place.open_as(&six), &config).await.unwrap().lease, own.lease);
    let watch = store.watch();
    until(&mut watch.receiver(), |snapshot| leases(snapshot).get(&own.lease.subnets) == Some(&own.lease)).await;
}

pub(crate) async fn changed_attributes_of_a_known_subnet_are_seen(place: Place) {
    place.give(&node(1), &["10.5.1.0/24"]).await;
    let store = place.open_as(&node(1));
    let own = node(1).acquire(&store, &config()).await.unwrap();
    let peer = place.open_as(&node(2));
    let watch = peer.watch();
    let mut seen = watch.receiver();
    until(&mut seen, |snapshot| leases(snapshot).get(&own.lease.subnets) == Some(&own.lease)).await;
    let mut changed = node(1);
    changed.announce(Family::V4, 1, 0xab);
    let renewed = store.renew(&own, &changed.announcement).await.unwrap();
    assert_eq!(renewed.lease.announcement, changed.announcement);
    until(&mut seen, |snapshot| leases(snapshot).get(&own.lease.subnets) == Some(&renewed.lease)).await;
}

/// In whatever pieces and however late the news arrives.
pub(crate) async fn the_last_of_many_changes_counts(place: Place) {
    let store = place.open();
    let own = node(1).acquire(&store, &config()).await.unwrap();
    let watch = store.watch();
    let mut seen = watch.receiver();
    until(&mut seen, |snapshot| leases(snapshot).len() == 1).await;
    let key = format!("subnets/{}", own.lease.key());
    for number in 0..100u8 {
        place.put_with_end(&key, &node(number).announcement.to_json()).await;
        if number % 10 == 9 {
            place.delete(&key).await;
        }
    }
    let last = node(200).announcement;
    place.put_with_end(&key, &last.to_json()).await;
    let is_last =
        |snapshot: &Snapshot| leases(snapshot).get(&own.lease.subnets).is_some_and(|lease| lease.announcement == last);
    until(&mut seen, is_last).await;
    // Nothing that was overtaken comes after it.
    node(2).acquire(&store, &config()).await.unwrap();
    assert!(is_last(&until(&mut seen, |snapshot| leases(snapshot).len() == 2).await));
}

pub(crate) async fn a_deleted_lease_is_seen_and_noticed_by_its_owner(place: Place) {
    place.give(&node(1), &["10.5.1.0/24"]).await;
    place.give(&node(2), &["10.5.2.0/24"]).await;
    let store = place.open_as(&node(1));
    let watch = store.watch();
    let mut seen = watch.receiver();
    let (own, other) = (
        node(1).acquire(&store, &config()).await.unwrap(),
        node(2).acquire(&place.open_as(&node(2)), &config()).await.unwrap(),
    );
    until(&mut seen, |snapshot| leases(snapshot).len() == 2).await;
    place.delete(&format!("subnets/{}", own.lease.key())).await;
    let rest = until(&mut seen, |snapshot| leases(snapshot).len() == 1).await;
    assert!(leases(&rest).get(&other.lease.subnets).is_some());
    let lost = store.renew(&own, &own.lease.announcement).await;
    assert_eq!(lost, Err(StoreError::Lost { key: own.lease.key(), by: None }));
    // As the daemon then does.
    place.give(&node(1), &["10.5.1.0/24"]).await;
    let again = node(1).remembers(&v4(&own)).acquire(&store, &config()).await.unwrap();
    assert_eq!(again.lease, own.lease);
}

pub(crate) async fn a_reservation_stays_one(place: Place) {
    let store = place.open();
    let key = "subnets/10.5.77.0-24";
    // As an administrator writes it; documentation of flannel, Documentation/reservations.md.
    place.put(key, r#"{"PublicIP": "192.168.64.1"}"#).await;
    place.put("subnets/10.5.78.0-24", HOST_GW_9).await;
    let mut own = node(1).remembers("10.5.100.1/24").acquire(&store, &config()).await.unwrap();
    assert_eq!((v4(&own).as_str(), own.expires, own.is_reservation()), ("10.5.77.0/24", None, true));
    for mac in [1, 0xcd, 0xcd] {
        let mut changed = node(1);
        changed.announce(Family::V4, 1, mac);
        own = store.renew(&own, &changed.announcement).await.unwrap();
        let (text, for_ever) = place.get(key).await.unwrap();
        assert!(for_ever && own.is_reservation() && text.contains(&format!("8f:{mac:02x}")), "{text}");
    }
    assert!(node(1).acquire(&place.open(), &config()).await.unwrap().is_reservation());
    store.release(&own).await.unwrap();
    assert!(place.get(key).await.is_some());
    // A lease of which an administrator makes a reservation becomes one.
    let other = node(2).acquire(&store, &config()).await.unwrap();
    place.put(&format!("subnets/{}", other.lease.key()), other.lease.announcement.to_json()).await;
    assert!(store.renew(&other, &other.lease.announcement).await.unwrap().is_reservation());
}

pub(crate) async fn a_lost_lease_is_noticed(place: Place) {
    let store = place.open();
    let own = node(1).acquire(&store, &config()).await.unwrap();
    let key = format!("subnets/{}", own.lease.key());
    place.put_with_end(&key, HOST_GW_9).await;
    let lost = store.renew(&own, &own.lease.announcement).await;
    assert_eq!(lost, Err(StoreError::Lost { key: own.lease.key(), by: Some("192.168.64.9".parse().unwrap()) }));
    assert!(lost.unwrap_err().to_string().contains("192.168.64.9"));
    store.release(&own).await.unwrap();
    // Neither has touched what is not ours.
    assert!(place.get(&key).await.unwrap().0.contains("192.168.64.9"));
    assert_ne!(node(1).acquire(&store, &config()).await.unwrap().lease.subnets, own.lease.subnets);
}

pub(crate) async fn an_overwritten_lease_of_the_same_node_is_none_lost(place: Place) {
    let store = place.open();
    let own = node(1).acquire(&store, &config()).await.unwrap();
    let key = format!("subnets/{}", own.lease.key());
    // Go flannel renews without looking, on a new etcd lease; here on the same node, in between two lives of ours.
    place.put_with_end(&key, r#"{"PublicIP":"192.168.64.1","PublicIPv6":null,"BackendType":"udp"}"#).await;
    let again = store.renew(&own, &own.lease.announcement).await.unwrap();
    assert_eq!(again.lease, own.lease);
    assert!(!again.is_reservation());
    // And what nobody can read is nobody's.
    place.put_with_end(&key, r#"{"PublicIP":"garbage"}"#).await;
    let again = store.renew(&again, &own.lease.announcement).await.unwrap();
    assert!(!again.is_reservation());
    assert!(place.get(&key).await.unwrap().0.starts_with(own.lease.announcement.to_json().strip_suffix('}').unwrap()));
}

pub(crate) async fn what_is_no_lease_hides_none(place: Place) {
    let store = place.open();
    // Out of the way of the names below.
    let own = node(1).remembers("10.5.200.0/24").acquire(&store, &config()).await.unwrap();
    place.put("subnets/10.5.44.0-24", b"{\"PublicIP\":").await;
    place.put("subnets/10.5.45.0-24", b"").await;
    place.put("subnets/10.5.46.0-24", [0xff, 0x00, 0x7b]).await;
    place.put("subnets/10.5.47.3-24", HOST_GW_9).await;
    place.put("subnets/lost+found", HOST_GW_9).await;
    place.put("subnets/10.5.48.0-24", HOST_GW_9).await;
    let watch = store.watch();
    let mut seen = watch.receiver();
    let snapshot = until(&mut seen, |snapshot| leases(snapshot).len() == 2).await;
    assert!(leases(&snapshot).get(&own.lease.subnets).is_some());
    let skipped: Vec<_> = snapshot.skipped.keys().map(String::as_str).collect();
    assert_eq!(skipped, ["10.5.44.0-24", "10.5.45.0-24", "10.5.46.0-24", "10.5.47.3-24", "lost+found"]);
    // They may be somebody's, of a later version perhaps.
    let config = NetworkConfig::parse(
        r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.44.0","SubnetMax":"10.5.47.0","Backend":{"Type":"host-gw"}}"#,
    )
    .unwrap();
    assert_eq!(v4(&node(2).acquire(&store, &config).await.unwrap()), "10.5.47.0/24");
    // Repaired, and gone: both are seen.
    place.put("subnets/10.5.44.0-24", HOST_GW_9).await;
    place.delete("subnets/lost+found").await;
    until(&mut seen, |snapshot| leases(snapshot).len() == 4 && snapshot.skipped.len() == 3).await;
}

pub(crate) async fn an_expired_lease_is_gone_and_free(place: Place) {
    let config = NetworkConfig::parse(
        r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.9.0","Backend":{"Type":"host-gw"}}"#,
    )
    .unwrap();
    let store = place.open_with(Duration::from_secs(1));
    let watch = store.watch();
    let mut seen = watch.receiver();
    let own = node(1).acquire(&store, &config).await.unwrap();
    until(&mut seen, |snapshot| leases(snapshot).len() == 1).await;
    until(&mut seen, |snapshot| leases(snapshot).is_empty()).await;
    let next = node(2).acquire(&place.open(), &config).await.unwrap();
    assert_eq!(next.lease.subnets, own.lease.subnets);
    let lost = store.renew(&own, &own.lease.announcement).await;
    assert_eq!(lost, Err(StoreError::Lost { key: own.lease.key(), by: Some("192.168.64.2".parse().unwrap()) }));
}

pub(crate) async fn a_lease_that_no_longer_fits_is_given_up(place: Place) {
    let store = place.open();
    let own = node(1).acquire(&store, &config()).await.unwrap();
    let peer = node(2).acquire(&store, &config()).await.unwrap();
    let smaller =
        NetworkConfig::parse(r#"{"Network":"10.5.0.0/16","SubnetLen":26,"Backend":{"Type":"host-gw"}}"#).unwrap();
    let new = node(1).remembers(&v4(&own)).acquire(&store, &smaller).await.unwrap();
    assert_eq!(new.lease.subnets.v4.unwrap().prefix(), 26);
    assert!(place.get(&format!("subnets/{}", own.lease.key())).await.is_none());
    assert!(!peer.lease.subnets.v4.unwrap().contains(new.lease.subnets.v4.unwrap().network()));
}

pub(crate) async fn a_released_lease_is_free(place: Place) {
    let store = place.open();
    let own = node(1).acquire(&store, &config()).await.unwrap();
    let renewed = store.renew(&own, &own.lease.announcement).await.unwrap();
    // An older proof of the same node is good enough.
    store.release(&own).await.unwrap();
    assert!(place.get(&format!("subnets/{}", own.lease.key())).await.is_none());
    store.release(&renewed).await.unwrap();
    assert_eq!(
        store.renew(&renewed, &own.lease.announcement).await,
        Err(StoreError::Lost { key: own.lease.key(), by: None })
    );
}
