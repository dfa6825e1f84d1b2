//! CNI scenarios, each run on Debian's reference plugins and on ours: a scenario that is red on the reference is wrong,
//! one that is red on ours only is ours.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod answers;
mod kills;
mod lives;
mod reach;
mod stack;

/// All scenarios, whatever their subject.
mod scenario {
    pub(crate) use crate::answers::*;
    pub(crate) use crate::kills::*;
    pub(crate) use crate::lives::*;
    pub(crate) use crate::reach::*;
}

/// Declares each scenario as one test per stack.
macro_rules! scenarios {
    (everywhere: $($scenario:ident)*; ours: $($own:ident)*; native: $($native:ident)*; limited: $($limited:ident)*) => {
        mod reference {
            $(#[test] fn $scenario() { crate::scenario::$scenario(&crate::stack::Stack::reference()); })*
        }
        mod bridge {
            $(#[test] fn $scenario() { crate::scenario::$scenario(&crate::stack::Stack::bridge()); })*
            $(#[test] fn $own() { crate::scenario::$own(&crate::stack::Stack::bridge()); })*
        }
        mod native {
            $(#[test] fn $scenario() { crate::scenario::$scenario(&crate::stack::Stack::native()); })*
            $(#[test] fn $own() { crate::scenario::$own(&crate::stack::Stack::native()); })*
            $(#[test] fn $native() { crate::scenario::$native(&crate::stack::Stack::native()); })*
        }
        mod limited {
            $(#[test] fn $limited() { crate::scenario::$limited(&crate::stack::Stack::limited()); })*
        }
    };
}

scenarios! {
    everywhere:
        result_of_add
        result_of_add_in_the_first_versions
        pods_and_node_reach_each_other
        a_pod_reaches_itself_through_the_bridge
        del_can_be_repeated
        del_after_the_namespace_is_gone
        check_tells_a_missing_address
        check_tells_a_missing_route
        the_same_id_can_return
        a_second_add_does_no_harm
        parallel_adds_get_different_addresses;
    ours:
        the_first_packet_arrives
        a_reused_address_answers_at_once
        a_killed_add_is_undone_by_del
        a_killed_del_is_finished_by_del;
    native:
        a_killed_add_is_undone_by_gc
        gc_keeps_what_is_valid
        status_tells_what_is_missing;
    limited:
        a_killed_add_is_undone_by_del
        a_killed_add_is_undone_by_gc
        a_killed_del_is_finished_by_del
        gc_keeps_what_is_valid
}
