//! Lists that an API server cannot give just now, or not in a stream; and watches that lead to nothing. Thousands of nodes ask
//! with one, so how often they ask matters.

use crate::api_server::{Call, Faults};
use crate::kube_api::KubeApi;
use crate::place::{PATIENCE, Place, config, leases, node, run, until};
use flanneld_rs::store::{Contact, LeaseStore, LeaseWatch, Snapshot, Store};
use std::time::{Duration, Instant};

fn is_live(snapshot: &Snapshot) -> bool {
    snapshot.contact == Contact::Live
}

/// A node with a lease, and a test.
fn with_a_node<F: Future<Output = ()>>(test: impl FnOnce(Place, Store) -> F) {
    run(Place::Kube(KubeApi::double()), async |place| {
        place.give(&node(1), &["10.5.1.0/24"]).await;
        let store = place.kube().open("node-1");
        node(1).acquire(&store, &config()).await.unwrap();
        place.kube().double_of().calls();
        test(place, store).await;
    });
}

fn set(place: &Place, set: impl FnOnce(&mut Faults)) {
    place.kube().double_of().faults(set);
}

/// Follows the store, and has it behind it to ask for all that there is.
async fn listed(place: &Place, store: &Store) -> LeaseWatch {
    let watch = store.watch();
    until(&mut watch.receiver(), is_live).await;
    place.kube().double_of().calls();
    watch
}

/// For each request, whether it is a watch, whether that begins with a list, and the version.
fn asked(calls: &[Call]) -> Vec<(bool, bool, &str)> {
    calls.iter().map(|call| (call.watch.0, call.watch.1, call.version.as_str())).collect()
}

const STREAM: (bool, bool, &str) = (true, true, "0");

/// The requests until one of this kind came.
async fn until_asked(place: &Place, wanted: impl Fn(&(bool, bool, &str)) -> bool) -> Vec<Call> {
    let (deadline, mut calls) = (Instant::now() + PATIENCE, Vec::new());
    while !asked(&calls).iter().any(&wanted) {
        assert!(Instant::now() < deadline, "{calls:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        calls.extend(place.kube().double_of().calls());
    }
    calls
}

#[test]
fn a_stream_that_breaks_off_is_asked_for_again_when_the_server_wants_it() {
    for code in [429, 504] {
        with_a_node(async |place, store| {
            set(&place, |faults| faults.broken_streams = (2, code, 1));
            let (watch, start) = (store.watch(), Instant::now());
            let snapshot = until(&mut watch.receiver(), is_live).await;
            assert_eq!(leases(&snapshot).len(), 1);
            assert!(start.elapsed() >= Duration::from_secs(2), "{code}: {:?}", start.elapsed());
            let calls = place.kube().double_of().calls();
            assert_eq!(asked(&calls), [STREAM; 3], "{code}");
        });
    }
}

#[test]
fn a_server_that_cannot_stream_lists_from_its_memory_and_is_asked_again_after_a_new_connection() {
    with_a_node(async |place, store| {
        let double = place.kube().double_of();
        // As by an etcd that is too old.
        set(&place, |faults| faults.broken_streams = (1, 500, 0));
        let watch = store.watch();
        let mut seen = watch.receiver();
        until(&mut seen, |snapshot| is_live(snapshot) && leases(snapshot).len() == 1).await;
        let calls = double.calls();
        assert_eq!(asked(&calls[..2]), [STREAM, (false, false, "0")]);
        double.cut();
        double.compact();
        let calls = until_asked(&place, |(_, streams, _)| *streams).await;
        assert!(calls.iter().all(|call| call.watch.0), "no other list but a streamed one: {calls:?}");
        double.delete_node(&place.kube().name("node-1"));
        until(&mut seen, |snapshot| leases(snapshot).is_empty()).await;
    });
}

#[test]
fn a_stream_that_comes_to_a_halt_is_an_outage_and_no_refusal() {
    with_a_node(async |place, store| {
        set(&place, |faults| faults.halted_streams = true);
        let watch = store.watch();
        let mut seen = watch.receiver();
        until(&mut seen, Snapshot::is_down).await;
        set(&place, |faults| faults.halted_streams = false);
        until(&mut seen, |snapshot| is_live(snapshot) && leases(snapshot).len() == 1).await;
        let calls = place.kube().double_of().calls();
        assert!(asked(&calls).iter().all(|call| *call == STREAM), "{calls:?}");
    });
}

#[test]
fn a_server_that_stays_behind_is_believed_in_the_end() {
    with_a_node(async |place, store| {
        let (double, watch) = (place.kube().double_of(), listed(&place, &store).await);
        let mut seen = watch.receiver();
        // As where etcd was restored: what comes after the last version is not known, nor will that be.
        set(&place, |faults| faults.broken_streams = (3, 504, 1));
        double.cut();
        double.compact();
        let calls = until_asked(&place, |call| *call == STREAM).await;
        let behind = calls.iter().filter(|call| call.watch.1 && call.version != "0").count();
        assert_eq!(behind, 3, "{calls:?}");
        double.delete_node(&place.kube().name("node-1"));
        until(&mut seen, |snapshot| is_live(snapshot) && leases(snapshot).is_empty()).await;
    });
}

#[test]
fn watches_that_end_at_once_are_made_ever_more_rarely() {
    with_a_node(async |place, store| {
        let (double, watch) = (place.kube().double_of(), listed(&place, &store).await);
        let mut seen = watch.receiver();
        set(&place, |faults| faults.empty_watches = true);
        double.cut();
        tokio::time::sleep(Duration::from_secs(6)).await;
        let calls = double.calls();
        assert!((2..=8).contains(&calls.len()), "{} requests", calls.len());
        set(&place, |faults| faults.empty_watches = false);
        double.delete_node(&place.kube().name("node-1"));
        until(&mut seen, |snapshot| leases(snapshot).is_empty()).await;
    });
}
