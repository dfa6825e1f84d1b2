//! What others on the node need of the kernel for pods to be served well. The daemon does without; it tells what is missing.

use crate::family::Family;
use kernel::sysctl;

/// What keeps packets that a bridge of the node passes on from the rules of kube-proxy; empty if nothing does. Without them a
/// pod that asks a service is answered by a pod of its own node from an address that it has not asked.
pub(crate) fn bridge_netfilter(families: &[Family]) -> String {
    let lacks = |family: &Family| {
        let key = match family {
            Family::V4 => "net/bridge/bridge-nf-call-iptables",
            Family::V6 => "net/bridge/bridge-nf-call-ip6tables",
        };
        match sysctl::get(key) {
            Ok(value) if value == "1" => None,
            Ok(value) => Some(format!("{key} is {value} (sysctl -w {key}=1)")),
            Err(_) => Some(format!("{key} is missing (modprobe br_netfilter)")),
        }
    };
    let lacking: Vec<String> = families.iter().filter_map(lacks).collect();
    if lacking.is_empty() {
        return String::new();
    }
    format!("{}: under kube-proxy, services with pods of their clients' node give no answer", lacking.join(", "))
}
