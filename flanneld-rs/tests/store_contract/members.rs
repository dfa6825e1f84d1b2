//! A cluster of three whose leader dies, and whose next leader hangs.

use crate::etcd_server::EtcdServer;
use crate::place::{Place, config, leases, node, persist, run, until};
use etcd_client::Client;
use flanneld_rs::store::{EtcdOptions, EtcdStore, LEASE_TTL, LeaseStore, Store, StoreError};

fn url(server: &EtcdServer) -> String {
    format!("http://127.0.0.1:{}", server.port())
}

/// A store that asks this member first.
fn open(servers: &[EtcdServer], first: usize) -> Store {
    let mut endpoints: Vec<_> = servers.iter().map(url).collect();
    endpoints.rotate_left(first);
    let prefix = "/coreos.com/network".into();
    let options =
        EtcdOptions { endpoints, prefix, cafile: None, certfile: None, keyfile: None, user: None, ttl: LEASE_TTL };
    Store::Etcd(EtcdStore::new(options).unwrap())
}

/// Which of them leads.
async fn leader(servers: &[EtcdServer]) -> usize {
    let find = async || {
        for (number, server) in servers.iter().enumerate() {
            let Ok(mut client) = Client::connect([url(server)], None).await else { continue };
            let Ok(status) = client.status().await else { continue };
            if status.header().is_some_and(|header| header.member_id() == status.leader()) {
                return Ok(number);
            }
        }
        Err(StoreError::Unavailable("no leader".into()))
    };
    persist(find).await
}

#[test]
fn a_leader_that_dies_and_one_that_hangs_are_survived() {
    run(Place::directory(), async |_| {
        let servers = EtcdServer::cluster();
        for (step, hangs) in [(0, false), (1, true)] {
            let first = leader(&servers).await;
            let store = open(&servers, first);
            let watch = store.watch();
            let mut seen = watch.receiver();
            let own = persist(async || node(3 * step + 1).acquire(&store, &config()).await).await;
            until(&mut seen, |snapshot| leases(snapshot).get(&own.lease.subnets).is_some()).await;
            let server = &servers[first];
            if hangs {
                server.freeze()
            } else {
                server.stop()
            }
            let own = persist(async || store.renew(&own, &own.lease.announcement).await).await;
            // The watch, which has heard nothing, follows the requests to another member: a hanging one says no goodbye.
            let other = open(&servers, (first + 1) % servers.len());
            let new = persist(async || node(3 * step + 2).acquire(&other, &config()).await).await;
            let snapshot = until(&mut seen, |snapshot| leases(snapshot).get(&new.lease.subnets).is_some()).await;
            assert_eq!(leases(&snapshot).get(&own.lease.subnets), Some(&own.lease));
            if !hangs {
                server.restart();
            }
        }
    });
}
