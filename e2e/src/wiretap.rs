//! An ear on the switch: how many pod packets cross it in clear text, and how many packets of tunnels. It is a table of
//! nftables that counts every frame that comes in by any port.

use crate::{Result, oracle};
use kernel::netns::Netns;
use serde_json::Value;

const TABLE: &str = "wiretap";

/// A running ear; it ends with its namespace.
#[derive(Debug)]
pub struct Wiretap {
    network: Netns,
}

impl Wiretap {
    /// Listens on all bridges in `network`, for packets from or to the networks `pods` and for those to the tunnels' UDP `ports`.
    pub fn start(network: &Netns, pods: &[&str], ports: &[u16]) -> Result<Self> {
        oracle::nft(network, &format!("add table bridge {TABLE}"))?;
        for counter in ["clear", "sealed"] {
            oracle::nft(network, &format!("add counter bridge {TABLE} {counter}"))?;
        }
        let chain = "{ type filter hook prerouting priority -300 ; }";
        oracle::nft(network, &format!("add chain bridge {TABLE} frames {chain}"))?;
        let of_pods = pods.iter().flat_map(|pods| {
            let protocol = if pods.contains(':') { "ip6" } else { "ip" };
            ["saddr", "daddr"].map(|end| (format!("{protocol} {end} {pods}"), "clear"))
        });
        let of_tunnels = ports.iter().map(|port| (format!("udp dport {port}"), "sealed"));
        for (rule, counter) in of_pods.chain(of_tunnels) {
            oracle::nft(network, &format!("add rule bridge {TABLE} frames {rule} counter name {counter}"))?;
        }
        Ok(Wiretap { network: network.try_clone()? })
    }

    /// Packets so far: those of pods in clear text, and those of tunnels.
    pub fn counts(&self) -> Result<(u64, u64)> {
        let text = oracle::nft(&self.network, "-j list counters bridge")?;
        let listing: Value = serde_json::from_str(&text)?;
        let count = |name: &str| {
            let counters = listing["nftables"].as_array().into_iter().flatten();
            let counter = counters.map(|entry| &entry["counter"]).find(|counter| counter["name"] == name);
            counter.and_then(|counter| counter["packets"].as_u64()).ok_or_else(|| format!("no counter {name}: {text}"))
        };
        Ok((count("clear")?, count("sealed")?))
    }
}
