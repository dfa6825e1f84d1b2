//! Plugins that are killed, and who cleans up after them.

use crate::stack::Stack;
use e2e::oracle;
use e2e::runner::Attachment;
use e2e::tools;
use kernel::netns::Netns;
use std::collections::BTreeMap;
use std::fs;

/// Runs `verb` once for each system call that it makes, killed at that call, each time followed by `undo` and a look at
/// what is left.
fn kill_everywhere(stack: &Stack, verb: &str, prepare: impl Fn(&Attachment), undo: impl Fn(&Attachment)) {
    tools::from_package("/usr/bin/strace", "strace").unwrap();
    let network = Netns::create().unwrap();
    let attachment = Attachment::eth0("box", network.path());
    let trace = stack.work.path().join("trace");
    let strace = ["/usr/bin/strace", "-f", "-qq", "-o", trace.to_str().unwrap(), "-e"];
    let call = |filter: &str| {
        prepare(&attachment);
        let wrapper: Vec<&str> = strace.into_iter().chain([filter]).collect();
        let output = stack.runtime.call(&wrapper, verb, &stack.network, &attachment).unwrap();
        undo(&attachment);
        output.status.success()
    };
    // Once in peace, which tells what calls there are, and leaves what all attachments share.
    assert!(call("trace=all"));
    let points = points(&fs::read_to_string(&trace).unwrap());
    assert!(points.len() > 40, "hardly any system calls: {points:?}");
    for (name, count) in points {
        // How often a call is made differs a little from run to run: one that was not killed at this point is fine.
        call(&format!("inject={name}:signal=KILL:when={count}"));
        let context = format!("{verb} killed at {name} number {count}");
        stack.assert_clean(&context);
        assert!(!oracle::links(&network).unwrap().contains("eth0"), "{context}: eth0 is left");
    }
}

/// The system calls in a trace: name, and the how-manieth of its name, as strace counts for its injection. Those that
/// change nothing but the process's own memory are left out.
fn points(trace: &str) -> Vec<(String, usize)> {
    let own =
        ["execve", "brk", "mmap", "munmap", "mprotect", "madvise", "arch_prctl", "prlimit64", "getrandom", "futex"];
    let mut counts = BTreeMap::<&str, usize>::new();
    let calls = trace.lines().filter_map(|line| line.split_whitespace().nth(1)?.split_once('('));
    for (name, _) in calls.filter(|(name, _)| !own.contains(name) && !name.starts_with("rt_sig")) {
        *counts.entry(name).or_default() += 1;
    }
    counts.into_iter().flat_map(|(name, count)| (1..=count).map(move |number| (name.to_owned(), number))).collect()
}

pub(crate) fn a_killed_add_is_undone_by_del(stack: &Stack) {
    kill_everywhere(stack, "ADD", |_| {}, |attachment| stack.del(attachment));
}

pub(crate) fn a_killed_del_is_finished_by_del(stack: &Stack) {
    let prepare = |attachment: &Attachment| {
        stack.runtime.add(&stack.network, attachment).unwrap();
    };
    kill_everywhere(stack, "DEL", prepare, |attachment| stack.del(attachment));
}

pub(crate) fn a_killed_add_is_undone_by_gc(stack: &Stack) {
    let network = stack.network.version("1.1.0");
    kill_everywhere(stack, "ADD", |_| {}, |_| stack.runtime.gc(&network, &[]).unwrap());
}
