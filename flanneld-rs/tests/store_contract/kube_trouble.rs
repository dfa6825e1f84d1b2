//! An API server in trouble, which only the double can be made to be: gone, hanging, throttling, refusing.

use crate::keepers::Running;
use crate::kube_api::KubeApi;
use crate::place::{PATIENCE, Place, config, leases, node, run, until};
use flanneld_rs::lease::Lease;
use flanneld_rs::store::{Contact, Held, LeaseStore, Snapshot, StoreError};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

fn is_down(snapshot: &Snapshot) -> bool {
    matches!(snapshot.contact, Contact::Down { .. })
}

fn is_live(snapshot: &Snapshot) -> bool {
    snapshot.contact == Contact::Live
}

/// Two nodes with leases, and a test.
fn with_two_nodes<F: Future<Output = ()>>(test: impl FnOnce(Place) -> F) {
    run(Place::Kube(KubeApi::double()), async |place| {
        for number in [1, 2] {
            place.give(&node(number), &[&format!("10.5.{number}.0/24")]).await;
            node(number).acquire(&place.open_as(&node(number)), &config()).await.unwrap();
        }
        test(place).await;
    });
}

#[test]
fn an_outage_keeps_the_list_and_is_followed_by_a_resumption() {
    with_two_nodes(async |place| {
        let api = place.kube();
        let mut keeper = Running::start(&node(1), api.open("node-1"), config(), None);
        keeper.until(|_| true).await;
        let store = api.open("node-1");
        let own = node(1).acquire(&store, &config()).await.unwrap();
        let watch = store.watch();
        let mut seen = watch.receiver();
        until(&mut seen, |snapshot| leases(snapshot).len() == 2).await;
        api.stop();
        let down = until(&mut seen, is_down).await;
        assert_eq!(leases(&down).len(), 2, "what was known stays");
        let renewed = store.renew(&own, &own.lease.announcement).await;
        assert!(matches!(&renewed, Err(StoreError::Unavailable(_))), "{renewed:?}");
        api.double_of().delete_node(&api.name("node-2"));
        api.double_of().calls();
        api.resume();
        until(&mut seen, |snapshot| is_live(snapshot) && leases(snapshot).len() == 1).await;
        let calls = api.double_of().calls();
        assert!(calls.iter().any(|call| call.watch.0 && !call.version.is_empty()), "resumed: {calls:?}");
        assert!(
            calls.iter().all(|call| call.path != "/api/v1/nodes" || !call.version.is_empty()),
            "no list: {calls:?}"
        );
        assert!(!keeper.task.is_finished());
        keeper.until_health(Result::is_ok).await;
    });
}

#[test]
fn contact_is_told_of_when_what_happened_meanwhile_is_known() {
    with_two_nodes(async |place| {
        let api = place.kube();
        let watch = api.open("node-1").watch();
        let mut seen = watch.receiver();
        until(&mut seen, |snapshot| leases(snapshot).len() == 2).await;
        api.stop();
        until(&mut seen, is_down).await;
        api.double_of().delete_node(&api.name("node-2"));
        api.double_of().compact();
        api.double_of().faults(|faults| faults.no_streams = true);
        api.resume();
        let live = until(&mut seen, is_live).await;
        assert_eq!(leases(&live).len(), 1);
    });
}

#[test]
fn a_server_that_hangs_is_noticed_by_its_silence() {
    with_two_nodes(async |place| {
        let api = place.kube();
        api.double_of().faults(|faults| faults.bookmarks = Duration::from_millis(100));
        let store = api.open_with("node-1", Duration::from_secs(4));
        let watch = store.watch();
        let mut seen = watch.receiver();
        until(&mut seen, is_live).await;
        // Bookmarks are signs of life.
        api.double_of().calls();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(api.double_of().calls(), [], "no new watch while bookmarks come");
        api.double_of().faults(|faults| faults.hangs = true);
        until(&mut seen, is_down).await;
        api.double_of().delete_node(&api.name("node-2"));
        api.double_of().faults(|faults| faults.hangs = false);
        until(&mut seen, |snapshot| is_live(snapshot) && leases(snapshot).len() == 1).await;
    });
}

#[test]
fn a_slow_request_does_not_end_the_watch() {
    with_two_nodes(async |place| {
        let api = place.kube();
        let store = api.open("node-1");
        let own = node(1).acquire(&store, &config()).await.unwrap();
        let watch = store.watch();
        let mut seen = watch.receiver();
        until(&mut seen, |snapshot| is_live(snapshot) && leases(snapshot).len() == 2).await;
        api.double_of().calls();
        api.double_of().faults(|faults| faults.queues = true);
        let renewed = store.renew(&own, &own.lease.announcement).await;
        assert!(matches!(&renewed, Err(StoreError::Unavailable(_))), "{renewed:?}");
        // By the watch of before: another one would wait in the queue.
        api.double_of().delete_node(&api.name("node-2"));
        until(&mut seen, |snapshot| leases(snapshot).len() == 1).await;
        assert!(is_live(&seen.borrow()));
        api.double_of().faults(|faults| faults.queues = false);
        let renewed = store.renew(&own, &own.lease.announcement).await;
        assert!(renewed.is_ok(), "{renewed:?}");
        let calls = api.double_of().calls();
        assert!(calls.iter().all(|call| !call.watch.0), "no other watch: {calls:?}");
    });
}

#[test]
fn a_watch_that_ends_is_followed_by_another() {
    with_two_nodes(async |place| {
        let api = place.kube();
        api.double_of().faults(|faults| faults.watches = Duration::from_millis(300));
        let store = api.open("node-1");
        let watch = store.watch();
        let mut seen = watch.receiver();
        until(&mut seen, |snapshot| leases(snapshot).len() == 2).await;
        api.double_of().calls();
        let deadline = Instant::now() + PATIENCE;
        let mut watches = Vec::new();
        while watches.len() < 5 {
            assert!(Instant::now() < deadline, "{watches:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
            watches.extend(api.double_of().calls());
        }
        assert!(watches.iter().all(|call| call.watch == (true, false) && call.version != "0"), "{watches:?}");
        let seconds: BTreeSet<u32> = watches.iter().map(|call| call.seconds.parse().unwrap()).collect();
        assert!(seconds.len() > 1 && seconds.iter().all(|seconds| (150..=290).contains(seconds)), "{seconds:?}");
        assert!(!seen.has_changed().unwrap(), "contact was never lost: {:?}", seen.borrow());
        api.double_of().delete_node(&api.name("node-2"));
        until(&mut seen, |snapshot| leases(snapshot).len() == 1).await;
    });
}

#[test]
fn heartbeats_are_no_news() {
    with_two_nodes(async |place| {
        let api = place.kube();
        let store = api.open("node-1");
        let watch = store.watch();
        let mut seen = watch.receiver();
        until(&mut seen, |snapshot| leases(snapshot).len() == 2).await;
        for _ in 0..500 {
            api.double_of().heartbeat(&api.name("node-2"));
        }
        // What comes after them has been seen with them.
        api.double_of().annotate(&api.name("node-2"), &api.annotation("public-ip"), "192.0.2.2");
        seen.changed().await.unwrap();
        let changed = "192.0.2.2".parse().ok();
        let now = seen.borrow_and_update().clone();
        assert!(
            leases(&now).iter().any(|lease| lease.announcement.public_ip() == changed),
            "the first news is the change"
        );
    });
}

#[test]
fn a_throttled_client_comes_again_when_it_is_told_to() {
    with_two_nodes(async |place| {
        let api = place.kube();
        let (store, own) = (api.open("node-1"), node(1));
        api.double_of().faults(|faults| faults.throttled = (2, 1));
        let start = Instant::now();
        own.acquire(&store, &config()).await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
        api.double_of().calls();
        api.double_of().faults(|faults| faults.throttled = (1, 2));
        let start = Instant::now();
        let watch = store.watch();
        let mut seen = watch.receiver();
        until(&mut seen, is_live).await;
        assert!(start.elapsed() >= Duration::from_secs(2) && start.elapsed() < PATIENCE);
        assert_eq!(api.double_of().calls().len(), 2, "no more requests than that");
    });
}

#[test]
fn a_patch_that_meets_another_is_made_again() {
    run(Place::Kube(KubeApi::double()), async |place| {
        let api = place.kube();
        place.give(&node(1), &["10.5.1.0/24"]).await;
        api.double_of().faults(|faults| faults.conflicts = 3);
        node(1).acquire(&api.open("node-1"), &config()).await.unwrap();
        assert_eq!(api.annotations("node-1").await.len(), 4);
        let patches: Vec<_> = api.double_of().calls().into_iter().filter(|call| call.method == "PATCH").collect();
        assert_eq!(patches.len(), 5, "three that met another, annotations, condition: {patches:?}");
        assert!(patches.iter().all(|call| call.path == format!("/api/v1/nodes/{}/status", api.name("node-1"))));
        let annotation = |name: &str| api.annotation(name);
        let expected = serde_json::json!({"metadata": {"annotations": {
            annotation("backend-data"): r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:01"}"#,
            annotation("backend-type"): "vxlan",
            annotation("kube-subnet-manager"): "true",
            annotation("public-ip"): "192.168.64.1",
        }}});
        assert_eq!(patches[0].body, expected.to_string());
    });
}

#[test]
fn a_missing_permission_is_told_and_waited_for() {
    run(Place::Kube(KubeApi::double()), async |place| {
        let api = place.kube();
        place.give(&node(1), &["10.5.1.0/24"]).await;
        api.double_of().faults(|faults| faults.forbids = true);
        let mut keeper = Running::start(&node(1), api.open("node-1"), config(), None);
        keeper.until_health(|health| health.as_ref().is_err_and(|why| why.contains("ClusterRole"))).await;
        api.double_of().faults(|faults| faults.forbids = false);
        keeper.until(|_| true).await;
        assert!(!keeper.task.is_finished());
    });
}

/// What the first node knows of its lease after a life.
async fn a_life(api: &KubeApi) -> (Lease, Option<Held>) {
    let mut keeper = Running::start(&node(1), api.open("node-1"), config(), None);
    let lease = keeper.until(|_| true).await;
    let held = keeper.leases.borrow().clone();
    (lease, held)
}

#[test]
fn a_lease_of_the_last_life_serves_until_the_cluster_speaks() {
    with_two_nodes(async |place| {
        let api = place.kube();
        let (lease, remembered) = a_life(api).await;
        api.stop();
        let mut keeper = Running::start(&node(1), api.open("node-1"), config(), remembered);
        assert_eq!(keeper.until(|_| true).await, lease);
        keeper.until_health(Result::is_ok).await;
        // In the meantime it was re-created.
        api.double_of().put_node(&api.name("node-1"), &["10.5.9.0/24"]);
        api.resume();
        keeper.until(|held| held.lease.key() == "10.5.9.0-24").await;
    });
}

#[test]
fn what_the_cluster_has_taken_back_stays_lost_when_it_falls_silent() {
    with_two_nodes(async |place| {
        let api = place.kube();
        let (lease, remembered) = a_life(api).await;
        // While the daemon was down.
        api.double_of().delete_node(&api.name("node-1"));
        let mut keeper = Running::start(&node(1), api.open("node-1"), config(), remembered);
        assert_eq!(keeper.until(|held| held.lost).await, lease, "its pods are served");
        api.stop();
        keeper.until_health(|health| health.as_ref().is_err_and(|why| why.contains("the store is away"))).await;
        assert!(keeper.leases.borrow().as_ref().unwrap().lost, "and no other gets an address");
        api.double_of().put_node(&api.name("node-1"), &["10.5.1.0/24"]);
        api.resume();
        assert_eq!(keeper.until(|held| !held.lost).await, lease);
        keeper.until_health(Result::is_ok).await;
    });
}
