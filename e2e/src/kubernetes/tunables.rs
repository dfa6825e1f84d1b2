//! What a kubelet changes on the whole machine, and what it was before.

use kernel::sysctl;

const NAMES: [&str; 6] = [
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

/// The values of before, which dropping this brings back.
#[derive(Debug)]
pub(crate) struct Tunables(Vec<(&'static str, String)>);

impl Tunables {
    /// As they are now; a kernel need not have all of them.
    pub(crate) fn save() -> Self {
        Tunables(NAMES.into_iter().filter_map(|name| Some((name, sysctl::get(name).ok()?))).collect())
    }
}

impl Drop for Tunables {
    fn drop(&mut self) {
        for (name, value) in &self.0 {
            let _ = sysctl::set(name, value);
        }
    }
}
