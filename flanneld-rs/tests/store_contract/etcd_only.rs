//! What only etcd can suffer.

use crate::authority::Authority;
use crate::etcd_server::EtcdServer;
use crate::place::{CONFIG, Place, config, leases, node, persist, run, until};
use etcd_client::{Client, ConnectOptions};
use flanneld_rs::store::{Contact, EtcdOptions, EtcdStore, LEASE_TTL, LeaseStore, Password, Store, StoreError, User};
use std::sync::Arc;

fn server_of(place: &Place) -> Arc<EtcdServer> {
    let Place::Etcd { server, .. } = place else { panic!("no etcd") };
    server.clone()
}

#[test]
fn leases_outlive_an_outage_and_compaction_and_the_watch_comes_back() {
    run(Place::etcd(Arc::new(EtcdServer::start())), async |place| {
        let (store, server) = (place.open(), server_of(&place));
        let own = node(1).acquire(&store, &config()).await.unwrap();
        let gone = node(2).acquire(&store, &config()).await.unwrap();
        let moved = node(5).acquire(&store, &config()).await.unwrap();
        let watch = store.watch();
        let mut seen = watch.receiver();
        until(&mut seen, |snapshot| leases(snapshot).len() == 3).await;

        server.stop();
        let snapshot = until(&mut seen, |snapshot| matches!(snapshot.contact, Contact::Down { .. })).await;
        assert_eq!(leases(&snapshot).len(), 3, "what was known stays in force");
        let error = store.renew(&own, &own.lease.announcement).await.unwrap_err();
        assert!(matches!(&error, StoreError::Unavailable(text) if text.contains("127.0.0.1")), "{error}");

        server.restart();
        // Changed and compacted before the watch is back, or just after.
        place.delete(&format!("subnets/{}", gone.lease.key())).await;
        let elsewhere = node(6).announcement;
        place.put_with_end(&format!("subnets/{}", moved.lease.key()), &elsewhere.to_json()).await;
        let new = node(3).acquire(&place.open(), &config()).await.unwrap();
        let mut client = place.client().await;
        let revision = client.put("/unrelated", "", None).await.unwrap().header().unwrap().revision();
        client.compact(revision, None).await.unwrap();
        let snapshot = until(&mut seen, |snapshot| {
            snapshot.contact == Contact::Live && leases(snapshot).get(&new.lease.subnets).is_some()
        })
        .await;
        assert_eq!(leases(&snapshot).len(), 3);
        assert!(leases(&snapshot).get(&gone.lease.subnets).is_none());
        // A subnet that was known has other attributes now, and the own one is still there.
        assert_eq!(leases(&snapshot).get(&moved.lease.subnets).unwrap().announcement, elsewhere);
        assert_eq!(leases(&snapshot).get(&own.lease.subnets), Some(&own.lease));
        // And it goes on: the same handle renews, the same watch sees.
        store.renew(&own, &own.lease.announcement).await.unwrap();
        node(4).acquire(&store, &config()).await.unwrap();
        until(&mut seen, |snapshot| leases(snapshot).len() == 4).await;
    });
}

#[test]
fn the_first_endpoint_may_be_dead() {
    run(Place::etcd(EtcdServer::shared()), async |place| {
        let mut options = place.options();
        // flannel's default names port 4001 first, where nothing has listened for years. Port 1: nothing ever.
        options.endpoints.insert(0, "http://127.0.0.1:1".into());
        options.prefix.push('/');
        let store = Store::Etcd(EtcdStore::new(options).unwrap());
        place.put("config", CONFIG).await;
        assert_eq!(store.network_config().await.unwrap(), CONFIG);
        let watch = store.watch();
        let mut seen = watch.receiver();
        let own = node(1).acquire(&store, &config()).await.unwrap();
        until(&mut seen, |snapshot| leases(snapshot).get(&own.lease.subnets).is_some()).await;
    });
}

#[test]
fn nobody_there_is_told_with_the_address() {
    run(Place::etcd(EtcdServer::shared()), async |place| {
        let options = EtcdOptions { endpoints: vec!["http://127.0.0.1:1".into()], ..place.options() };
        let store = EtcdStore::new(options).unwrap();
        let error = store.network_config().await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Unavailable(text) if text.contains("127.0.0.1:1") && text.contains("--etcd-endpoints")
                && text.to_lowercase().contains("connection refused")),
            "{error}"
        );
        let watch = store.watch();
        let snapshot = until(&mut watch.receiver(), |snapshot| matches!(snapshot.contact, Contact::Down { .. })).await;
        assert!(snapshot.leases.is_none(), "no list is not an empty list");
    });
}

#[test]
fn etcd_leases_that_carry_no_key_are_given_back() {
    run(Place::etcd(Arc::new(EtcdServer::start())), async |place| {
        let store = place.open();
        let mut own = node(1).acquire(&store, &config()).await.unwrap();
        for _ in 0..3 {
            own = store.renew(&own, &own.lease.announcement).await.unwrap();
        }
        place.delete(&format!("subnets/{}", own.lease.key())).await;
        store.renew(&own, &own.lease.announcement).await.unwrap_err();
        node(1).acquire(&store, &config()).await.unwrap();
        let only = flanneld_rs::network_config::NetworkConfig::parse(
            r#"{"Network":"10.7.0.0/16","SubnetMin":"10.7.9.0","SubnetMax":"10.7.9.0","Backend":{"Type":"host-gw"}}"#,
        )
        .unwrap();
        let stores: Vec<_> = (10..15).map(|number| (node(number), place.open())).collect();
        futures::future::join_all(stores.iter().map(|(node, store)| node.acquire(store, &only))).await;
        // One for the key that was deleted by hand, and one for each of the two that are held.
        let left = place.client().await.leases().await.unwrap().leases().len();
        assert_eq!(left, 3);
    });
}

#[test]
fn a_password_is_asked_for_and_given() {
    run(Place::etcd(Arc::new(EtcdServer::start())), async |place| {
        let mut admin = place.client().await;
        place.put("config", CONFIG).await;
        admin.user_add("root", "the secret", None).await.unwrap();
        admin.user_grant_role("root", "root").await.unwrap();
        admin.auth_enable().await.unwrap();
        let user = |password: &str| Some(User { name: "root".into(), password: Password::Text(password.into()) });
        let with = |user| EtcdStore::new(EtcdOptions { user, ..place.options() }).unwrap();
        assert_eq!(with(user("the secret")).network_config().await.unwrap(), CONFIG);
        for wrong in [user("another"), None] {
            let error = with(wrong).network_config().await.unwrap_err();
            assert!(matches!(&error, StoreError::Invalid(_)), "{error}");
            assert!(!error.to_string().contains("another"));
        }
    });
}

/// Whatever befalls tokens and passwords while the daemon runs.
#[test]
fn a_password_in_a_file_is_taken_up_anew_and_lost_tokens_are_replaced() {
    run(Place::etcd(Arc::new(EtcdServer::start())), async |place| {
        let (mut admin, server) = (place.client().await, server_of(&place));
        admin.user_add("root", "the first", None).await.unwrap();
        admin.user_grant_role("root", "root").await.unwrap();
        admin.auth_enable().await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        let options = || {
            let user = Some(User { name: "root".into(), password: Password::File(file.clone()) });
            EtcdOptions { user, ..place.options() }
        };
        for (content, complaint) in [(None, "No such file"), (Some(""), "is empty"), (Some("\n"), "is empty")] {
            content.iter().for_each(|content| std::fs::write(&file, content).unwrap());
            let error = EtcdStore::new(options()).unwrap_err();
            let text = error.to_string();
            assert!(matches!(&error, StoreError::Invalid(_)) && text.contains("--etcd-password-file"), "{text}");
            assert!(text.contains(complaint), "{text}");
        }
        std::fs::write(&file, "the first\n").unwrap();
        let store = Store::Etcd(EtcdStore::new(options()).unwrap());
        let watch = store.watch();
        let mut seen = watch.receiver();
        let own = node(1).acquire(&store, &config()).await.unwrap();
        until(&mut seen, |snapshot| leases(snapshot).get(&own.lease.subnets).is_some()).await;

        // Simple tokens are in the server's memory only.
        server.restart();
        let own = persist(async || store.renew(&own, &own.lease.announcement).await).await;
        let second = persist(async || node(2).acquire(&store, &config()).await).await;
        until(&mut seen, |snapshot| leases(snapshot).get(&second.lease.subnets).is_some()).await;

        // Replaced by a rename, as secrets that are mounted are.
        let root = ConnectOptions::new().with_user("root", "the first");
        let mut admin = Client::connect(place.options().endpoints, Some(root)).await.unwrap();
        admin.user_change_password("root", "the second").await.unwrap();
        let next = directory.path().join("next");
        std::fs::write(&next, "the second").unwrap();
        std::fs::rename(next, &file).unwrap();
        let own = persist(async || store.renew(&own, &own.lease.announcement).await).await;
        let third = persist(async || node(3).acquire(&store, &config()).await).await;
        until(&mut seen, |snapshot| leases(snapshot).get(&third.lease.subnets).is_some()).await;
        assert!(leases(&seen.borrow()).get(&own.lease.subnets).is_some());
    });
}

#[test]
fn tls_works_with_an_authority_alone_and_with_a_client_certificate() {
    run(Place::directory(), async |_| {
        let authority = Authority::new();
        authority.issue("client", "clientAuth");
        let missing =
            |error: &StoreError| matches!(error, StoreError::Unavailable(text) if text.contains("not there yet"));
        let ask = async |server: &EtcdServer, client: Option<&str>| {
            EtcdStore::new(authority.options(server.port(), client)).unwrap().network_config().await.unwrap_err()
        };
        let error = ask(&authority.serve(&[]), None).await;
        assert!(missing(&error), "an authority is enough: {error}");

        let server = authority.serve_the_known();
        let error = ask(&server, Some("client")).await;
        assert!(missing(&error), "{error}");
        let error = ask(&server, None).await;
        assert!(!missing(&error), "a client without certificate must be turned away");
    });
}

#[test]
fn contradicting_options_are_told_before_anything_is_sent() {
    let options = EtcdOptions {
        endpoints: vec!["http://127.0.0.1:2379".into()],
        prefix: "/coreos.com/network".into(),
        cafile: None,
        certfile: None,
        keyfile: None,
        user: None,
        ttl: LEASE_TTL,
    };
    let file = Some(std::path::PathBuf::from("/nonexistent.pem"));
    let https = vec!["https://127.0.0.1:2379".to_owned()];
    for (options, names) in [
        (EtcdOptions { endpoints: Vec::new(), ..options.clone() }, "--etcd-endpoints"),
        (EtcdOptions { cafile: file.clone(), ..options.clone() }, "not https"),
        (EtcdOptions { endpoints: https.clone(), certfile: file.clone(), ..options.clone() }, "belong together"),
        (EtcdOptions { endpoints: https, cafile: file, ..options.clone() }, "/nonexistent.pem"),
    ] {
        let error = EtcdStore::new(options).unwrap_err();
        assert!(matches!(&error, StoreError::Invalid(text) if text.contains(names)), "{error}");
    }
    let secret =
        EtcdOptions { user: Some(User { name: "u".into(), password: Password::Text("secret".into()) }), ..options };
    assert!(!format!("{secret:?}").contains("secret"));
}

#[test]
fn keys_of_other_programs_are_none_of_ours() {
    run(Place::etcd(EtcdServer::shared()), async |place| {
        let mut client: Client = place.client().await;
        let prefix = place.options().prefix;
        let value = r#"{"PublicIP":"192.168.64.9"}"#;
        client.put(format!("{prefix}/subnets-old/10.5.1.0-24"), value, None).await.unwrap();
        client.put(format!("{prefix}/subnets"), value, None).await.unwrap();
        client.put(format!("{prefix}/subnets/10.5.2.0-24"), value, None).await.unwrap();
        let store = place.open();
        let watch = store.watch();
        let snapshot = until(&mut watch.receiver(), |snapshot| snapshot.contact == Contact::Live).await;
        assert_eq!(leases(&snapshot).len(), 1);
        assert!(snapshot.skipped.is_empty(), "{:?}", snapshot.skipped);
    });
}
