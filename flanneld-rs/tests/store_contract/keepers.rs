//! Whole keepers: a crowd on a real etcd that starts at once, an etcd that says no, and a list that comes late.

use crate::etcd_server::EtcdServer;
use crate::place::{Node, PATIENCE, Place, config, node, run};
use etcd_client::{Client, ConnectOptions, Permission};
use flanneld_rs::health::{Condition, Health};
use flanneld_rs::keeper::Keeper;
use flanneld_rs::lease::{Announcement, Lease, LeaseTable, parse_key};
use flanneld_rs::network_config::NetworkConfig;
use flanneld_rs::reload::Configuration;
use flanneld_rs::store::{
    Contact, EtcdOptions, EtcdStore, Held, LeaseStore, LeaseWatch, Password, Snapshot, Store, StoreError, User,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A keeper at work, as in a daemon of its own.
pub(crate) struct Running {
    pub(crate) leases: watch::Receiver<Option<Held>>,
    health: Health,
    pub(crate) task: JoinHandle<StoreError>,
    _announced: watch::Sender<Announcement>,
    _watch: Option<LeaseWatch>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    pub(crate) fn start(node: &Node, store: Store, config: NetworkConfig, remembered: Option<Held>) -> Self {
        let watch = store.watch();
        let mut running = Self::seeing(watch.receiver(), node, store, config, remembered);
        running._watch = Some(watch);
        running
    }

    /// One that is shown these lists and not those of the store.
    fn seeing(
        snapshots: watch::Receiver<Snapshot>,
        node: &Node,
        store: Store,
        config: NetworkConfig,
        remembered: Option<Held>,
    ) -> Self {
        let health = Health::new();
        // All else is well.
        for condition in [Condition::Peers, Condition::Overlay, Condition::Firewall, Condition::Files] {
            health.set(condition, Ok(()));
        }
        let (announced, announcement) = watch::channel(node.announcement.clone());
        let keeper = Keeper {
            store: Arc::new(store),
            config: watch::Sender::new(Arc::new(Configuration { config, text: None })).subscribe(),
            node: node.name.clone(),
            previous: node.previous,
            remembered,
            margin: Duration::from_secs(3600),
            announcement,
            snapshots,
            health: health.clone(),
        };
        let (publish, leases) = watch::channel(None);
        Running { leases, health, task: tokio::spawn(keeper.run(publish)), _announced: announced, _watch: None }
    }

    /// Waits for a lease that is published.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Held) -> bool) -> Lease {
        let published = self.leases.wait_for(|held| held.as_ref().is_some_and(&wanted));
        let published = timeout(PATIENCE, published).await.ok().and_then(Result::ok).and_then(|held| held.clone());
        published.unwrap_or_else(|| panic!("no such lease; health: {:?}", self.health.ready())).lease
    }

    /// Waits until the health is as wanted.
    pub(crate) async fn until_health(&self, wanted: impl Fn(&Result<(), String>) -> bool) {
        let reached = timeout(PATIENCE, async {
            while !wanted(&self.health.ready()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(reached.await.is_ok(), "health: {:?}", self.health.ready());
    }
}

#[test]
fn fifty_daemons_that_start_at_once_get_fifty_of_64_subnets() {
    run(Place::etcd(EtcdServer::shared()), async |place| {
        let config = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.64.0","SubnetMax":"10.5.127.0","Backend":{"Type":"host-gw"}}"#;
        let config = NetworkConfig::parse(config).unwrap();
        // All of them remember the same subnet, as machines do that were made from one image.
        let nodes = (1..=50).map(|number| node(number).remembers("10.5.100.0/24"));
        let mut keepers: Vec<_> = nodes.map(|node| Running::start(&node, place.open(), config.clone(), None)).collect();
        let mut subnets = BTreeSet::new();
        for keeper in &mut keepers {
            let lease = keeper.until(|_| true).await;
            assert!(subnets.insert(lease.subnets), "{lease} has two owners");
        }
        assert!(keepers.iter().all(|keeper| !keeper.task.is_finished()), "none has given up");
        let prefix = format!("{}/subnets/", place.options().prefix);
        let client = place.client().await;
        let options = etcd_client::GetOptions::new().with_prefix();
        let listed = client.kv_client().get(prefix.as_str(), Some(options)).await.unwrap();
        let listed: BTreeSet<_> =
            listed.kvs().iter().map(|kv| parse_key(&kv.key_str().unwrap()[prefix.len()..]).unwrap()).collect();
        assert_eq!(listed, subnets, "what the store has is what the nodes have");
    });
}

/// An etcd with users: root, and `node` without any permission so far.
async fn with_users(place: &Place) -> (Client, impl Fn() -> Store) {
    let mut admin = place.client().await;
    admin.user_add("root", "root's", None).await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    admin.role_add("nodes").await.unwrap();
    admin.user_add("node", "its own", None).await.unwrap();
    admin.user_grant_role("node", "nodes").await.unwrap();
    admin.auth_enable().await.unwrap();
    let options = place.options();
    let root = ConnectOptions::new().with_user("root", "root's");
    let admin = Client::connect(&options.endpoints, Some(root)).await.unwrap();
    let open = move || {
        let user = Some(User { name: "node".into(), password: Password::Text("its own".into()) });
        Store::Etcd(EtcdStore::new(EtcdOptions { user, ..options.clone() }).unwrap())
    };
    (admin, open)
}

#[test]
fn a_node_without_permission_serves_its_pods_if_it_has_any() {
    run(Place::etcd(Arc::new(EtcdServer::start())), async |place| {
        let (mut admin, open) = with_users(&place).await;
        // Nothing to lose: the operator is told at once.
        let mut first = Running::start(&node(1), open(), config(), None);
        let error = timeout(PATIENCE, &mut first.task).await.unwrap().unwrap();
        assert!(matches!(&error, StoreError::Invalid(text) if text.contains("permission denied")), "{error}");

        let mut first = node(1).remembers("10.5.9.0/24");
        first.announcement.backend_type = "host-gw".into();
        let lease = Lease { subnets: first.previous, announcement: first.announcement.clone() };
        let remembered = Some(Held::new(lease.clone(), None));
        let mut first = Running::start(&first, open(), config(), remembered);
        assert_eq!(first.until(|_| true).await, lease);
        first.until_health(Result::is_ok).await;

        // It may write its own key and no other: the memory is confirmed, and from then on has an end.
        let prefix = format!("{}/subnets/", place.options().prefix);
        let own = format!("{prefix}{}", lease.key());
        admin.role_grant_permission("nodes", Permission::read(prefix.as_str()).with_prefix()).await.unwrap();
        admin.role_grant_permission("nodes", Permission::read_write(own.as_str())).await.unwrap();
        assert_eq!(first.until(|held| held.expires.is_some()).await, lease);

        // Another node takes that one: ours goes without and says so, but does not end.
        admin.put(own.as_str(), node(2).announcement.to_json(), None).await.unwrap();
        first.until_health(|health| health.as_ref().is_err_and(|why| why.contains("permission denied"))).await;
        assert!(!first.task.is_finished());
        admin.role_grant_permission("nodes", Permission::read_write(prefix.as_str()).with_prefix()).await.unwrap();
        first.until(|held| held.lease.subnets != lease.subnets).await;
        first.until_health(Result::is_ok).await;
    });
}

#[test]
fn a_list_that_comes_after_our_own_write_is_waited_for() {
    run(Place::directory(), async |place| {
        let live = |leases: LeaseTable| Snapshot {
            leases: Some(Arc::new(leases)),
            contact: Contact::Live,
            ..Snapshot::default()
        };
        let (show, shown) = watch::channel(live(LeaseTable::default()));
        let mut keeper = Running::seeing(shown, &node(1), place.open(), config(), None);
        let lease = keeper.until(|_| true).await;
        let key = format!("subnets/{}", lease.key());
        // The end of the lease is in it, by the clock on the wall: written once more, some moment of that later, it is another
        // text.
        let moment = || std::thread::sleep(Duration::from_millis(5));
        let (text, _) = place.get(&key).await.unwrap();
        // It is still the list from before; the keeper has seen that when it waits for time to pass.
        tokio::time::pause();
        tokio::time::sleep(Duration::from_millis(500)).await;
        show.send_replace(live([lease.clone()].into_iter().collect()));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(place.get(&key).await.unwrap().0, text, "renewed, though all is as it was left");

        // One that has shown the lease and does so no longer is believed: the store is asked.
        moment();
        show.send_replace(live(LeaseTable::default()));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (again, _) = place.get(&key).await.unwrap();
        assert_ne!(again, text);
        // But not without end.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(place.get(&key).await.unwrap().0, again);
        moment();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (third, _) = place.get(&key).await.unwrap();
        assert_ne!(third, again);
        // And ever more rarely, while the list stays as it is.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(place.get(&key).await.unwrap().0, third);
        moment();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_ne!(place.get(&key).await.unwrap().0, third);
    });
}
