//! What only a directory can suffer.

use crate::place::{Place, config, leases, node, run, until};
use flanneld_rs::store::{Contact, FileStore, LEASE_TTL, LeaseStore, StoreError};
use std::fs;

#[test]
fn the_directory_may_be_removed_and_come_back() {
    run(Place::directory(), async |place| {
        let store = place.open();
        let own = node(1).acquire(&store, &config()).await.unwrap();
        let watch = store.watch();
        let mut seen = watch.receiver();
        until(&mut seen, |snapshot| leases(snapshot).len() == 1).await;
        fs::remove_dir_all(place.path("subnets")).unwrap();
        let snapshot = until(&mut seen, |snapshot| matches!(snapshot.contact, Contact::Down { .. })).await;
        assert_eq!(leases(&snapshot).get(&own.lease.subnets), Some(&own.lease), "the last list stays");
        // Acquiring makes what is missing.
        let again = node(2).acquire(&store, &config()).await.unwrap();
        let snapshot = until(&mut seen, |snapshot| snapshot.contact == Contact::Live).await;
        assert_eq!(leases(&snapshot).iter().collect::<Vec<_>>(), [&again.lease]);
    });
}

#[test]
fn what_a_crash_leaves_and_what_does_not_belong_there_does_no_harm() {
    run(Place::directory(), async |place| {
        let store = place.open();
        // A daemon was killed while it wrote, and somebody put things there that are no files.
        fs::write(place.path(".writing"), "{\"Pub").unwrap();
        fs::create_dir(place.path("subnets/10.5.60.0-24")).unwrap();
        nix::unistd::mkfifo(&place.path("subnets/10.5.61.0-24"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/dev/zero", place.path("subnets/10.5.62.0-24")).unwrap();
        fs::write(place.path("subnets/10.5.63.0-24"), vec![b' '; 1 << 20]).unwrap();
        let own = node(1).acquire(&store, &config()).await.unwrap();
        let watch = store.watch();
        let snapshot = until(&mut watch.receiver(), |snapshot| snapshot.contact == Contact::Live).await;
        assert_eq!(leases(&snapshot).iter().collect::<Vec<_>>(), [&own.lease]);
        assert_eq!(snapshot.skipped.len(), 4, "{:?}", snapshot.skipped);
    });
}

#[test]
fn a_path_that_cannot_be_a_directory_is_told() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = FileStore::open(file.path(), LEASE_TTL).unwrap_err();
    assert!(matches!(&error, StoreError::Invalid(text) if text.contains("making directory") && text.contains("E")));
}

#[test]
fn a_watch_ends_when_it_is_dropped() {
    run(Place::directory(), async |place| {
        let watch = place.open().watch();
        let mut seen = watch.receiver();
        until(&mut seen, |snapshot| snapshot.contact == Contact::Live).await;
        drop(watch);
        while seen.changed().await.is_ok() {}
    });
}
