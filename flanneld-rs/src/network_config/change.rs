//! Which changes of the network configuration a running daemon takes over: those that leave every pod its address, and every
//! packet its way.

use super::{Backend, Fields, NetworkConfig, Vxlan, WireGuard};
use crate::lease::{self, Subnets};
use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// What an operator does who wants it all the same.
const REMEDY: &str = "restart the daemons of all nodes with it";

/// A setting: its name, whether it differs, and why it cannot change while the daemon runs, if so.
struct Setting(&'static str, bool, Option<&'static str>);

impl NetworkConfig {
    /// The names of the settings that `wanted` has otherwise, all of which can change while the node holds `held`, and nodes are
    /// reached by the addresses `nodes`.
    ///
    /// # Errors
    /// The first setting that cannot, why, and what to do instead.
    pub fn change_to(
        &self,
        wanted: &Self,
        held: Option<&Subnets>,
        nodes: &[IpAddr],
    ) -> Result<Vec<&'static str>, String> {
        let mut changes = Vec::new();
        if !self.pools.same_families(&wanted.pools) {
            return Err(format!("EnableIPv4, EnableIPv6: pods have addresses of the present families; {REMEDY}"));
        }
        for (family, pool) in self.pools.iter() {
            let Some(new) = wanted.pools.get(family).filter(|new| *new != pool) else { continue };
            let name = Fields::of(family).network;
            if !contains(new.network(), pool.network()) {
                return Err(format!(
                    "{name}: {} does not contain {}, which pods have addresses of: while it is in use it can only grow; {REMEDY}",
                    new.network(),
                    pool.network()
                ));
            }
            // What is inside goes through the tunnel, or past masquerade, and the tunnel's own packets with it.
            let taken = |node: &&IpAddr| new.network().contains(**node) && !pool.network().contains(**node);
            if let Some(node) = nodes.iter().find(taken) {
                return Err(format!(
                    "{name}: {} contains {node}, by which a node is reached: no network of pods can",
                    new.network()
                ));
            }
            changes.push(name);
        }
        if let Some(held) = held.filter(|held| !wanted.allows(held)) {
            let key = lease::key(held);
            return Err(format!("SubnetLen, SubnetMin, SubnetMax: this node's lease {key} is none of them; {REMEDY}"));
        }
        if self.not_masqueraded != wanted.not_masqueraded {
            changes.push("NonMasqueradeCIDRs");
        }
        for Setting(name, _, obstacle) in
            self.backend.settings(&wanted.backend)?.into_iter().filter(|Setting(_, differs, _)| *differs)
        {
            match obstacle {
                Some(why) => return Err(format!("Backend.{name}: {why}; {REMEDY}")),
                None => changes.push(name),
            }
        }
        Ok(changes)
    }
}

impl Backend {
    /// How each setting of `wanted` compares.
    fn settings(&self, wanted: &Self) -> Result<Vec<Setting>, String> {
        const DEVICE: Option<&str> = Some("the device would have to be made anew, and every peer's");
        const PEERS: Option<&str> = Some("peers send to the present one");
        Ok(match (self, wanted) {
            (Self::Vxlan(now), Self::Vxlan(wanted)) => {
                let Vxlan { vni, port, mtu, gbp, learning, direct_routing, tx_checksum } = now;
                vec![
                    Setting("VNI", *vni != wanted.vni, DEVICE),
                    Setting("Port", *port != wanted.port, DEVICE),
                    Setting("GBP", *gbp != wanted.gbp, DEVICE),
                    Setting("Learning", *learning != wanted.learning, DEVICE),
                    Setting("MTU", *mtu != wanted.mtu, None),
                    Setting("DirectRouting", *direct_routing != wanted.direct_routing, None),
                    Setting("txChecksum", *tx_checksum != wanted.tx_checksum, None),
                ]
            }
            (Self::Ipip { direct_routing: now }, Self::Ipip { direct_routing: wanted }) => {
                vec![Setting("DirectRouting", now != wanted, None)]
            }
            (Self::Udp { port: now }, Self::Udp { port: wanted }) => vec![Setting("Port", now != wanted, PEERS)],
            (Self::HostGw, Self::HostGw) | (Self::Alloc, Self::Alloc) => Vec::new(),
            (Self::Extension(now), Self::Extension(wanted)) => {
                let why = "what the present commands have set up would stay";
                vec![Setting("Type extension", now != wanted, Some(why))]
            }
            (Self::WireGuard(now), Self::WireGuard(wanted)) => {
                let WireGuard { port, port_v6, mtu, preshared_key, keepalive, mode } = now;
                let sessions = "sessions with nodes that have the present one would end";
                vec![
                    Setting("ListenPort", *port != wanted.port, PEERS),
                    Setting("ListenPortV6", *port_v6 != wanted.port_v6, PEERS),
                    Setting("Mode", *mode != wanted.mode, DEVICE),
                    Setting("PSK", *preshared_key != wanted.preshared_key, Some(sessions)),
                    Setting("MTU", *mtu != wanted.mtu, None),
                    Setting("PersistentKeepaliveInterval", *keepalive != wanted.keepalive, None),
                ]
            }
            _ => {
                let why = "peers with another type of backend are not reached";
                return Err(format!("Backend.Type: {} to {}: {why}; {REMEDY}", self.name(), wanted.name()));
            }
        })
    }

    /// The name in the configuration.
    fn name(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::HostGw => "host-gw",
            Self::Ipip { .. } => "ipip",
            Self::Udp { .. } => "udp",
            Self::Alloc => "alloc",
            Self::Extension(_) => "extension",
            Self::WireGuard(_) => "wireguard",
        }
    }
}

fn contains(outer: IpNetwork, inner: IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(now: &str, wanted: &str) -> Result<Vec<&'static str>, String> {
        let held = [(crate::family::Family::V4, "10.42.3.0/24".parse().unwrap())].into_iter().collect();
        let parse = |text: &str| {
            let network = if text.contains("\"Network\"") { "" } else { r#""Network":"10.42.0.0/16","# };
            NetworkConfig::parse(&format!("{{{network}{text}}}")).unwrap()
        };
        let nodes = ["10.1.2.3", "10.200.0.1", "2001:db8::1"].map(|node| node.parse().unwrap());
        parse(now).change_to(&parse(wanted), Some(&held), &nodes)
    }

    #[test]
    fn what_can_change_is_named() {
        let vxlan = r#""Backend":{"Type":"vxlan"}"#;
        let wireguard = r#""Backend":{"Type":"wireguard"}"#;
        for (now, wanted, names) in [
            (vxlan, r#""Backend":{"Type":"vxlan"},"EnableNFTables":true"#, &[][..]),
            (vxlan, r#""Backend":{"Type":"vxlan","MTU":1400,"DirectRouting":true}"#, &["MTU", "DirectRouting"]),
            (vxlan, r#""Backend":{"Type":"vxlan","txChecksum":"off"}"#, &["txChecksum"]),
            (vxlan, r#""NonMasqueradeCIDRs":["192.0.2.0/24"],"Backend":{"Type":"vxlan"}"#, &["NonMasqueradeCIDRs"]),
            (vxlan, r#""Network":"10.40.0.0/13","Backend":{"Type":"vxlan"}"#, &["Network"]),
            (vxlan, r#""SubnetMin":"10.42.2.0","SubnetMax":"10.42.9.0","Backend":{"Type":"vxlan"}"#, &["Network"]),
            (
                wireguard,
                r#""Backend":{"Type":"wireguard","PersistentKeepaliveInterval":25,"MTU":1400}"#,
                &["MTU", "PersistentKeepaliveInterval"],
            ),
            (r#""Backend":{"Type":"ipip"}"#, r#""Backend":{"Type":"ipip","DirectRouting":true}"#, &["DirectRouting"]),
        ] {
            assert_eq!(change(now, wanted).as_deref(), Ok(names), "{wanted}");
        }
    }

    #[test]
    fn what_cannot_change_is_refused_by_name() {
        let vxlan = r#""Backend":{"Type":"vxlan"}"#;
        let wireguard = r#""Backend":{"Type":"wireguard"}"#;
        for (now, wanted, name) in [
            (vxlan, r#""Backend":{"Type":"host-gw"}"#, "Backend.Type: vxlan to host-gw"),
            (vxlan, r#""Backend":{"Type":"vxlan","VNI":2}"#, "Backend.VNI"),
            (vxlan, r#""Backend":{"Type":"vxlan","Port":4789}"#, "Backend.Port"),
            (vxlan, r#""Backend":{"Type":"vxlan","GBP":true}"#, "Backend.GBP"),
            (vxlan, r#""Backend":{"Type":"vxlan","Learning":true}"#, "Backend.Learning"),
            (vxlan, r#""Network":"10.43.0.0/16","Backend":{"Type":"vxlan"}"#, "Network: 10.43.0.0/16"),
            (vxlan, r#""Network":"10.42.0.0/17","Backend":{"Type":"vxlan"}"#, "does not contain 10.42.0.0/16"),
            (vxlan, r#""SubnetLen":25,"Backend":{"Type":"vxlan"}"#, "lease 10.42.3.0-24"),
            (vxlan, r#""SubnetMin":"10.42.4.0","Backend":{"Type":"vxlan"}"#, "lease 10.42.3.0-24"),
            (
                vxlan,
                r#""EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan"}"#,
                "EnableIPv4, EnableIPv6",
            ),
            (wireguard, r#""Backend":{"Type":"wireguard","ListenPort":4}"#, "Backend.ListenPort"),
            (wireguard, r#""Backend":{"Type":"wireguard","ListenPortV6":4}"#, "Backend.ListenPortV6"),
            (wireguard, r#""Backend":{"Type":"wireguard","Mode":"auto"}"#, "Backend.Mode"),
            (
                wireguard,
                r#""Backend":{"Type":"wireguard","PSK":"dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="}"#,
                "Backend.PSK",
            ),
            (r#""Backend":{"Type":"udp"}"#, r#""Backend":{"Type":"udp","Port":4}"#, "Backend.Port"),
            (
                r#""Backend":{"Type":"extension"}"#,
                r#""Backend":{"Type":"extension","SubnetAddCommand":"true"}"#,
                "Backend.Type extension",
            ),
        ] {
            let refusal = change(now, wanted).unwrap_err();
            assert!(refusal.contains(name) && refusal.ends_with(REMEDY), "{wanted}: {refusal}");
        }
    }

    #[test]
    fn a_network_does_not_grow_over_the_nodes() {
        let vxlan = |network: &str| format!(r#""Network":"{network}","Backend":{{"Type":"vxlan"}}"#);
        let refusal = change(&vxlan("10.42.0.0/16"), &vxlan("10.0.0.0/8")).unwrap_err();
        assert!(refusal.contains("10.0.0.0/8 contains 10.1.2.3"), "{refusal}");
    }
}
