//! Certificates that are replaced under a store that goes on.

use crate::authority::Authority;
use crate::place::{PATIENCE, Place, config, leases, node, persist, run, until};
use flanneld_rs::store::{Contact, EtcdStore, LeaseStore, Store, StoreError};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Passes connections on, counts them, and cuts them off.
#[derive(Clone)]
struct Relay {
    port: u16,
    /// all there ever were
    opened: Arc<AtomicUsize>,
    connections: Arc<Mutex<JoinSet<()>>>,
}

impl Relay {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let relay = Relay { port, opened: Arc::default(), connections: Arc::default() };
        let this = relay.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                this.opened.fetch_add(1, Ordering::Relaxed);
                this.connections.lock().unwrap().spawn(async move {
                    let mut far = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                    // However it ends, it has ended.
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        relay
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    /// Those that there are now.
    fn open(&self) -> usize {
        let mut connections = self.connections.lock().unwrap();
        while connections.try_join_next().is_some() {}
        connections.len()
    }

    fn cut(&self) {
        self.connections.lock().unwrap().abort_all();
    }
}

#[test]
fn replaced_certificates_are_taken_up_without_restart() {
    run(Place::directory(), async |_| {
        let authority = Authority::new();
        let server = authority.serve_the_known();
        let relay = Relay::start(server.port()).await;
        for name in ["node", "next"] {
            authority.issue(name, "clientAuth");
        }
        let store = Store::Etcd(EtcdStore::new(authority.options(relay.port, Some("node"))).unwrap());
        let watch = store.watch();
        let mut seen = watch.receiver();
        until(&mut seen, |snapshot| snapshot.contact == Contact::Live).await;
        let own = node(1).acquire(&store, &config()).await.unwrap();
        let before = relay.opened();

        // One file after the other, the first one away for a moment: meanwhile the connection that there is goes on.
        let (certificate, key) = (authority.file("node.pem"), authority.file("node.key"));
        std::fs::remove_file(&key).unwrap();
        let own = store.renew(&own, &own.lease.announcement).await.unwrap();
        std::fs::copy(authority.file("next.key"), &key).unwrap();
        let own = store.renew(&own, &own.lease.announcement).await.unwrap();
        assert_eq!(relay.opened(), before);

        // Nothing but the watch is at work now: it takes the new pair up, and the former connection ends.
        std::fs::copy(authority.file("next.pem"), &certificate).unwrap();
        let renewed = tokio::time::timeout(PATIENCE, async {
            while relay.opened() == before || relay.open() != 1 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(renewed.await.is_ok(), "{} connections then, {} now, {} open", before, relay.opened(), relay.open());
        let second = persist(async || node(2).acquire(&store, &config()).await).await;
        until(&mut seen, |snapshot| leases(snapshot).get(&second.lease.subnets).is_some()).await;

        // The connection breaks in the middle of a rotation: that is to be waited for, whatever is wrong with the files.
        let (good, missing) = (std::fs::read(&key).unwrap(), authority.file("away"));
        std::fs::rename(&key, &missing).unwrap();
        relay.cut();
        let unusable = async |part: &str| {
            let refused = async || match store.renew(&own, &own.lease.announcement).await {
                // The end of the former connection has not been noticed yet.
                Err(StoreError::Unavailable(text)) if !text.contains(part) => Err(StoreError::Unavailable(text)),
                outcome => Ok(outcome),
            };
            let outcome = persist(refused).await;
            assert!(matches!(&outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
        };
        unusable("--etcd-keyfile: reading").await;
        authority.issue("third", "clientAuth");
        std::fs::copy(authority.file("third.key"), &key).unwrap();
        unusable("belong together").await;
        std::fs::write(&key, good).unwrap();
        persist(async || store.renew(&own, &own.lease.announcement).await).await;
        let third = persist(async || node(3).acquire(&store, &config()).await).await;
        until(&mut seen, |snapshot| leases(snapshot).get(&third.lease.subnets).is_some()).await;
    });
}
