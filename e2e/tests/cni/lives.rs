//! Attachments that come and go: again and again, many at once, and without their namespaces.

use crate::stack::{GATEWAY, SECOND, Stack};
use e2e::oracle;
use e2e::pod::first_address;
use e2e::probe::ask;
use e2e::runner::Attachment;
use kernel::netns::Netns;
use std::collections::BTreeSet;
use std::net::IpAddr;

pub(crate) fn del_can_be_repeated(stack: &Stack) {
    let (sandbox, attachment, _) = stack.attach("box");
    for _ in 0..3 {
        stack.del(&attachment);
        assert!(!oracle::links(sandbox.network()).unwrap().contains("eth0"));
        stack.assert_clean("after DEL");
    }
    stack.del(&Attachment::eth0("never-seen", sandbox.path()));
}

pub(crate) fn del_after_the_namespace_is_gone(stack: &Stack) {
    let (sandbox, attachment, _) = stack.attach("box1");
    drop(sandbox);
    stack.del(&attachment);
    wait_for_the_kernel(stack);
    stack.assert_clean("after DEL with the path of a namespace that is gone");
    let (sandbox, attachment, _) = stack.attach("box2");
    stack.del(&Attachment { netns: None, ..attachment });
    drop(sandbox);
    wait_for_the_kernel(stack);
    stack.assert_clean("after DEL without a namespace");
}

/// The reference leaves the host end of the pair to the kernel, which removes it some time after the namespace's last
/// process has ended.
pub(crate) fn wait_for_the_kernel(stack: &Stack) {
    let gone = || match oracle::links(stack.node())?.len() {
        0..=2 => Ok(()),
        _ => Err("the host end of the pair is still there".into()),
    };
    e2e::eventually(SECOND, gone).unwrap();
}

pub(crate) fn the_same_id_can_return(stack: &Stack) {
    let (_sandbox, attachment, _) = stack.attach("box");
    for _ in 0..5 {
        stack.del(&attachment);
        let result = stack.runtime.add(&stack.network, &attachment).unwrap();
        let gateway: IpAddr = GATEWAY.parse().unwrap();
        assert_eq!(ask(stack.node(), first_address(&result).unwrap(), SECOND).unwrap().seen, gateway);
    }
}

/// Whether a second ADD of the same attachment is refused or answered, the pod works on and one DEL cleans up.
pub(crate) fn a_second_add_does_no_harm(stack: &Stack) {
    let (_sandbox, attachment, address) = stack.attach("box");
    let _ = stack.runtime.add(&stack.network, &attachment);
    assert!(ask(stack.node(), address, SECOND).is_ok());
    stack.del(&attachment);
    stack.assert_clean("after the second ADD and DEL");
}

pub(crate) fn parallel_adds_get_different_addresses(stack: &Stack) {
    let namespaces: Vec<Netns> = (0..64).map(|_| Netns::create().unwrap()).collect();
    let attachments: Vec<Attachment> =
        namespaces.iter().enumerate().map(|(n, netns)| Attachment::eth0(format!("box{n}"), netns.path())).collect();
    let addresses: BTreeSet<IpAddr> = std::thread::scope(|scope| {
        let add = |attachment| scope.spawn(move || stack.runtime.add(&stack.network, attachment).unwrap());
        let running: Vec<_> = attachments.iter().map(add).collect();
        running.into_iter().map(|add| first_address(&add.join().unwrap()).unwrap()).collect()
    });
    assert_eq!(addresses.len(), 64, "{addresses:?}");
    std::thread::scope(|scope| {
        for attachment in &attachments {
            scope.spawn(|| stack.del(attachment));
        }
    });
    stack.assert_clean("after 64 parallel DELs");
}

pub(crate) fn gc_keeps_what_is_valid(stack: &Stack) {
    let network = stack.network.version("1.1.0");
    let (_one, _, address_of_one) = stack.attach("box1");
    let (two, attachment, _) = stack.attach("box2");
    stack.runtime.gc(&network, &[("box1", "eth0")]).unwrap();
    assert!(ask(stack.node(), address_of_one, SECOND).is_ok());
    assert!(!oracle::links(two.network()).unwrap().contains("eth0"));
    stack.del(&attachment);
    stack.runtime.gc(&network, &[]).unwrap();
    stack.assert_clean("after GC of everything");
}
