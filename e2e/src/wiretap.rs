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
    /// Listens on all bridges in `network`, for packets from or to `pods` and for those to the tunnels' UDP `port`.
    pub fn start(network: &Netns, pods: &str, port: u16) -> Result<Self> {
        oracle::nft(network, &format!("add table bridge {TABLE}"))?;
        for counter in ["clear", "sealed"] {
            oracle::nft(network, &format!("add counter bridge {TABLE} {counter}"))?;
        }
        let chain = "{ type filter hook prerouting priority -300 ; }";
        oracle::nft(network, &format!("add chain bridge {TABLE} frames {chain}"))?;
        for (rule, counter) in [
            (format!("ip saddr {pods}"), "clear"),
            (format!("ip daddr {pods}"), "clear"),
            (format!("udp dport {port}"), "sealed"),
        ] {
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
