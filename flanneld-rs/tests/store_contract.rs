//! What every lease store does, shown on a directory and on a real etcd; and what each does besides.
// Helpers stop wherever something is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

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
#[path = "store_contract/members.rs"]
mod members;
#[path = "store_contract/place.rs"]
mod place;
#[path = "store_contract/rotation.rs"]
mod rotation;

/// Each test once for each store.
macro_rules! both_stores {
    ($($test:ident)*) => {
        mod file {
            $(#[test] fn $test() { crate::place::run(crate::place::Place::directory(), crate::contract::$test) })*
        }
        mod etcd {
            $(#[test] fn $test() {
                let server = crate::etcd_server::EtcdServer::shared();
                crate::place::run(crate::place::Place::etcd(server), crate::contract::$test)
            })*
        }
    };
}

both_stores! {
    a_lease_is_acquired_watched_and_renewed
    the_configuration_is_read
    changes_of_the_configuration_are_told
    the_same_public_address_gets_its_subnet_back
    the_previous_subnet_is_taken_again_if_it_is_free_and_fits
    a_node_whose_address_changed_keeps_its_subnet
    twenty_nodes_get_twenty_subnets
    the_last_subnet_goes_to_one_of_two
    dual_stack_subnets_never_overlap_in_either_family
    ipv6_alone_works
    changed_attributes_of_a_known_subnet_are_seen
    the_last_of_many_changes_counts
    a_deleted_lease_is_seen_and_noticed_by_its_owner
    a_reservation_stays_one
    a_lost_lease_is_noticed
    an_overwritten_lease_of_the_same_node_is_none_lost
    what_is_no_lease_hides_none
    an_expired_lease_is_gone_and_free
    a_lease_that_no_longer_fits_is_given_up
    a_released_lease_is_free
}
