//! What every lease store does, shown on a directory, on a real etcd, and on a Kubernetes API
//! server, real where there is one; and what each does besides.
// Helpers stop wherever something is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

// The double is shared with the end-to-end tests, which use other parts of it.
#[allow(dead_code, unreachable_pub)]
#[path = "../../e2e/src/api_server/mod.rs"]
mod api_server;
#[path = "store_contract/authority.rs"]
mod authority;
#[path = "store_contract/contract.rs"]
mod contract;
#[path = "store_contract/etcd_only.rs"]
mod etcd_only;
#[path = "store_contract/etcd_server.rs"]
mod etcd_server;
#[path = "store_contract/file_only.rs"]
mod file_only;
#[path = "store_contract/keepers.rs"]
mod keepers;
#[path = "store_contract/kube_api.rs"]
mod kube_api;
#[path = "store_contract/kube_lists.rs"]
mod kube_lists;
#[path = "store_contract/kube_only.rs"]
mod kube_only;
#[path = "store_contract/kube_protocol.rs"]
mod kube_protocol;
#[path = "store_contract/kube_server.rs"]
mod kube_server;
#[path = "store_contract/kube_trouble.rs"]
mod kube_trouble;
#[path = "store_contract/members.rs"]
mod members;
#[path = "store_contract/place.rs"]
mod place;
#[path = "store_contract/rotation.rs"]
mod rotation;

/// Each test once for each store: of any kind, and of those from whose pools a node takes its own subnet.
macro_rules! stores {
    (any: $($any:ident)*; pools: $($pools:ident)*) => {
        mod file {
            $(#[test] fn $any() { crate::place::run(crate::place::Place::directory(), crate::contract::$any) })*
            $(#[test] fn $pools() { crate::place::run(crate::place::Place::directory(), crate::contract::$pools) })*
        }
        mod etcd {
            use crate::etcd_server::EtcdServer;
            use crate::place::{Place, run};
            $(#[test] fn $any() { run(Place::etcd(EtcdServer::shared()), crate::contract::$any) })*
            $(#[test] fn $pools() { run(Place::etcd(EtcdServer::shared()), crate::contract::$pools) })*
        }
        mod kube {
            use crate::kube_api::KubeApi;
            use crate::place::{Place, run};
            $(#[test] fn $any() { run(Place::Kube(KubeApi::double()), crate::contract::$any) })*
        }
        mod kube_real {
            use crate::kube_api::KubeApi;
            use crate::place::{Place, run};
            $(#[test] fn $any() {
                if let Some(server) = crate::kube_server::KubeServer::shared() {
                    run(Place::Kube(KubeApi::real(server)), crate::contract::$any)
                }
            })*
        }
    };
}

stores! {
    any:
    a_lease_is_acquired_watched_and_renewed
    a_node_whose_address_changed_keeps_its_subnet
    ipv6_alone_works
    changed_attributes_of_a_known_subnet_are_seen
    a_deleted_lease_is_seen_and_noticed_by_its_owner;
    pools:
    the_configuration_is_read
    changes_of_the_configuration_are_told
    the_same_public_address_gets_its_subnet_back
    the_previous_subnet_is_taken_again_if_it_is_free_and_fits
    twenty_nodes_get_twenty_subnets
    the_last_subnet_goes_to_one_of_two
    dual_stack_subnets_never_overlap_in_either_family
    the_last_of_many_changes_counts
    a_reservation_stays_one
    a_lost_lease_is_noticed
    an_overwritten_lease_of_the_same_node_is_none_lost
    what_is_no_lease_hides_none
    an_expired_lease_is_gone_and_free
    a_lease_that_no_longer_fits_is_given_up
    a_released_lease_is_free
}
