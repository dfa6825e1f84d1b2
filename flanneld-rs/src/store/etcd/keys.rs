//! The requests to etcd: each is one round trip, and carrying it out twice is the same as once.

use super::EtcdStore;
use crate::lease::{Announcement, Lease, Subnets, key, parse_key};
use crate::network_config;
use crate::store::StoreError;
use etcd_client::{
    Compare, CompareOp, GetOptions, GetResponse, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use std::time::Duration;

/// Largest answer that is taken: gRPC's default of 4 MB is some 10,000 leases.
pub(super) const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// In a simulation the server is a value in memory.
macro_rules! simulated {
    ($store:ident.$request:ident($($argument:expr),*)) => {
        #[cfg(test)]
        if let Some(wire) = &$store.simulated {
            return wire.$request($($argument),*).await;
        }
    };
}

/// A key whose name is a lease's.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) subnets: Subnets,
    /// what is in it; empty when that is no lease: the subnets may be somebody's all the same
    pub(super) announcement: Announcement,
    /// revision of its last change
    pub(super) revision: i64,
    /// revision of its creation
    pub(super) created: i64,
    /// etcd lease; 0: a reservation
    pub(super) lease: i64,
}

impl Entry {
    fn parse(name: &str, kv: &KeyValue) -> Option<Self> {
        Some(Self {
            subnets: parse_key(name).ok()?,
            announcement: Announcement::parse(kv.value()).unwrap_or_default(),
            revision: kv.mod_revision(),
            created: kv.create_revision(),
            lease: kv.lease(),
        })
    }

    /// It is this node's, or nobody's: what cannot be read was not written by a node that holds it.
    pub(super) fn is_of(&self, announcement: &Announcement) -> bool {
        self.announcement == Announcement::default() || self.announcement.is_same_node(announcement)
    }
}

/// What must be true of a key for it to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    /// it does not exist
    Absent,
    /// nobody has written it since
    Revision(i64),
}

impl Expect {
    fn compare(self, key: &str) -> Compare {
        match self {
            Self::Absent => Compare::version(key, CompareOp::Equal, 0),
            Self::Revision(revision) => Compare::mod_revision(key, CompareOp::Equal, revision),
        }
    }
}

/// What became of a write.
pub(super) enum Put {
    /// done, at this revision
    Done(i64),
    /// what was expected is not so; this is what there is
    Refused(Option<Entry>),
}

impl EtcdStore {
    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.connection.options().prefix)
    }

    fn lease_key(&self, subnets: &Subnets) -> String {
        self.key(&format!("subnets/{}", key(subnets)))
    }

    /// What all lease keys begin with.
    pub(super) fn lease_prefix(&self) -> String {
        self.key("subnets/")
    }

    /// The key of the network configuration.
    pub(super) fn config_key(&self) -> String {
        self.key("config")
    }

    async fn transact(&self, doing: &str, txn: &Txn) -> Result<TxnResponse, StoreError> {
        self.connection.call(doing, |client| async move { client.kv_client().txn(txn.clone()).await }).await
    }

    async fn read(&self, key: &str, prefix: bool) -> Result<GetResponse, StoreError> {
        self.connection
            .call(&format!("reading {key}"), |client| async move {
                let options = prefix.then(|| GetOptions::new().with_prefix());
                client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES).get(key, options).await
            })
            .await
    }

    /// The network configuration.
    pub(super) async fn config(&self) -> Result<String, StoreError> {
        let key = self.config_key();
        let answer = self.read(&key, false).await?;
        let Some(kv) = answer.kvs().first() else {
            return Err(StoreError::Unavailable(format!(
                "{}: {key} is not there yet: write the network configuration to it (etcdctl put {key} '{{\"Network\":...}}')",
                self.connection.name()
            )));
        };
        let invalid = |why: &str| StoreError::Invalid(format!("{}: {key} {why}", self.connection.name()));
        if kv.value().len() > network_config::MAX_BYTES {
            return Err(invalid("is too large for a network configuration"));
        }
        kv.value_str().map(str::to_owned).map_err(|_| invalid("is no UTF-8 text"))
    }

    /// All keys, in one read.
    pub(super) async fn list_raw(&self) -> Result<GetResponse, StoreError> {
        self.read(&self.lease_prefix(), true).await
    }

    /// All keys whose name is a lease's.
    pub(super) async fn list(&self) -> Result<Vec<Entry>, StoreError> {
        simulated!(self.list());
        let prefix = self.lease_prefix();
        let answer = self.list_raw().await?;
        Ok(answer.kvs().iter().filter_map(|kv| Entry::parse(kv.key_str().ok()?.strip_prefix(&prefix)?, kv)).collect())
    }

    pub(super) async fn get(&self, subnets: &Subnets) -> Result<Option<Entry>, StoreError> {
        simulated!(self.get(*subnets));
        let answer = self.read(&self.lease_key(subnets), false).await?;
        Ok(answer.kvs().first().and_then(|kv| Entry::parse(&key(subnets), kv)))
    }

    /// Writes a lease if what is expected of its key is so, on an etcd lease (0: on none).
    pub(super) async fn put(&self, lease: &Lease, id: i64, expect: Expect) -> Result<Put, StoreError> {
        simulated!(self.put(lease.clone(), id, expect));
        let (key, value) = (self.lease_key(&lease.subnets), lease.announcement.to_json());
        let options = (id != 0).then(|| PutOptions::new().with_lease(id));
        let txn = Txn::new()
            .when([expect.compare(&key)])
            .and_then([TxnOp::put(key.as_str(), value.as_str(), options)])
            .or_else([TxnOp::get(key.as_str(), None)]);
        let answer = self.transact(&format!("writing {key}"), &txn).await?;
        if answer.succeeded() {
            return Ok(Put::Done(answer.header().map_or(0, |header| header.revision())));
        }
        let found = answer.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(found) => found.kvs().first().cloned(),
            _ => None,
        });
        Ok(match found {
            // Exactly what was to be written, on the etcd lease that nobody else knows: the answer to an earlier attempt was
            // lost on its way.
            Some(kv) if kv.lease() == id && kv.value() == value.as_bytes() => Put::Done(kv.mod_revision()),
            found => Put::Refused(found.and_then(|kv| Entry::parse(&lease.key(), &kv))),
        })
    }

    /// Deletes a lease if nobody has written it since that revision. False: somebody has, or it is gone.
    pub(super) async fn delete(&self, subnets: &Subnets, revision: i64) -> Result<bool, StoreError> {
        simulated!(self.delete(*subnets, revision));
        let key = self.lease_key(subnets);
        let txn =
            Txn::new().when([Expect::Revision(revision).compare(&key)]).and_then([TxnOp::delete(key.as_str(), None)]);
        let answer = self.transact(&format!("deleting {key}"), &txn).await?;
        Ok(answer.succeeded())
    }

    /// A new etcd lease, and how long it lives: the server may make it longer than asked for.
    pub(super) async fn grant(&self) -> Result<(i64, Duration), StoreError> {
        simulated!(self.grant(self.connection.options().ttl));
        let seconds = i64::try_from(self.connection.options().ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let answer = self
            .connection
            .call("granting a lease", |client| async move { client.lease_client().grant(seconds, None).await })
            .await?;
        Ok((answer.id(), Duration::from_secs(u64::try_from(answer.ttl()).unwrap_or_default())))
    }

    /// Ends an etcd lease, at best: it ends by itself in time.
    pub(super) async fn revoke(&self, id: i64) {
        simulated!(self.revoke(id));
        if id != 0 {
            let revoked = self
                .connection
                .call("revoking a lease", |client| async move { client.lease_client().revoke(id).await });
            if let Err(error) = revoked.await {
                tracing::debug!("etcd lease {id:x} is left to expire: {error}");
            }
        }
    }
}
