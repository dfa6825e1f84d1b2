//! The delegate's configuration.

use cni_spec::{CniError, NetworkConfig};
use ipam::subnet_env::SubnetEnv;
use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

/// What `config` delegates, completed as flannel's own plugin does: the name and version of the network, `bridge` with
/// `isGateway`, `mtu`, `ipMasq` unless the daemon masquerades, `host-local` with this node's subnets as ranges and routes to
/// the cluster's networks; what is given stays. Without `env` all that follows from it is left out, which is enough for DEL
/// and GC.
///
/// # Errors
/// `InvalidConfig` for what flannel refuses: `delegate` with `name`, with `ipam`, or with a `type` that is no string.
pub(crate) fn delegate(config: &NetworkConfig, env: Option<&SubnetEnv>) -> Result<Map<String, Value>, CniError> {
    let field = config.field("delegate");
    let mut delegate = field.object()?.cloned().unwrap_or_default();
    field.field("type")?.string()?;
    for key in ["name", "ipam"] {
        if delegate.contains_key(key) {
            return Err(field.invalid(format!("must not have '{key}' field, it'll be set by flannel")));
        }
    }
    for key in ["runtimeConfig", "args"] {
        let given = config.json.get(key).filter(|value| !value.is_null());
        delegate.extend(given.map(|value| (key.to_owned(), value.clone())));
    }
    delegate.insert("name".into(), config.name.clone().into());
    if config.json.contains_key("cniVersion") {
        delegate.insert("cniVersion".into(), config.version.as_str().into());
    }
    let mut default = |key: &str, value: Value| {
        delegate.entry(key).or_insert(value);
    };
    default("type", "bridge".into());
    if let Some(env) = env {
        default("ipMasq", (!env.ip_masq).into());
        default("mtu", env.mtu.into());
    }
    if delegate.get("type").is_some_and(|kind| kind == "bridge") {
        delegate.entry("isGateway").or_insert(true.into());
    }
    delegate.insert("ipam".into(), ipam(config, env)?.into());
    Ok(delegate)
}

fn ipam(config: &NetworkConfig, env: Option<&SubnetEnv>) -> Result<Map<String, Value>, CniError> {
    let mut ipam = config.field("ipam").object()?.cloned().unwrap_or_default();
    ipam.entry("type").or_insert("host-local".into());
    if let Some(env) = env {
        let of_network = |network: IpNetwork| IpNetwork::new(network.network(), network.prefix()).unwrap_or(network);
        let ranges: Vec<Value> = env.subnets().map(|subnet| json!([{"subnet": of_network(subnet)}])).collect();
        ipam.insert("ranges".into(), ranges.into());
        let routes = config.field("ipam").field("routes")?;
        let mut routes: Vec<Value> = routes.items()?.iter().filter_map(|item| item.value().cloned()).collect();
        routes.extend(env.networks().map(|network| json!({"dst": network})));
        ipam.insert("routes".into(), routes.into());
    }
    Ok(ipam)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/48\n\
        FLANNEL_IPV6_SUBNET=fd00:244:0:3::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    fn rendered(config: Value, env: Option<&str>) -> Result<String, CniError> {
        let config = NetworkConfig::parse(config.to_string().as_bytes()).unwrap();
        let env = env.map(|text| SubnetEnv::parse(text).unwrap());
        delegate(&config, env.as_ref()).map(|rendered| serde_json::to_string(&rendered).unwrap())
    }

    /// The text is what flannel's own plugin writes, to the byte.
    #[test]
    fn golden_kube_flannel() {
        let config = json!({
            "cniVersion": "0.3.1", "name": "cbr0", "type": "flannel",
            "delegate": {"hairpinMode": true, "isDefaultGateway": true},
        });
        let env =
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        let wanted = concat!(
            r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.3.0/24"}]],"#,
            r#""routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"#,
            r#""mtu":1450,"name":"cbr0","type":"bridge"}"#
        );
        assert_eq!(rendered(config, Some(env)).unwrap(), wanted);
    }

    #[test]
    fn golden_dual_stack_with_everything_given() {
        let config = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "flannel", "runtimeConfig": {"mac": "02:00:00:00:00:01"},
            "delegate": {"type": "ptp", "mtu": 1400, "ipMasq": true},
            "ipam": {"type": "host-local", "dataDir": "/d", "ranges": [[{"subnet": "1.2.3.0/24"}]],
                     "routes": [{"dst": "192.0.2.0/24", "gw": "10.244.3.9"}]},
        });
        let wanted = concat!(
            r#"{"cniVersion":"1.0.0","ipMasq":true,"ipam":{"dataDir":"/d","ranges":[[{"subnet":"10.244.3.0/24"}],"#,
            r#"[{"subnet":"fd00:244:0:3::/64"}]],"routes":[{"dst":"192.0.2.0/24","gw":"10.244.3.9"},"#,
            r#"{"dst":"10.244.0.0/16"},{"dst":"fd00:244::/48"}],"type":"host-local"},"mtu":1400,"name":"net","#,
            r#""runtimeConfig":{"mac":"02:00:00:00:00:01"},"type":"ptp"}"#
        );
        assert_eq!(rendered(config, Some(ENV)).unwrap(), wanted);
    }

    #[test]
    fn without_the_daemons_file_there_is_enough_to_remove() {
        let config = json!({"name": "net", "type": "flannel"});
        let wanted = r#"{"ipam":{"type":"host-local"},"isGateway":true,"name":"net","type":"bridge"}"#;
        assert_eq!(rendered(config, None).unwrap(), wanted);
    }

    #[test]
    fn what_flannel_sets_is_refused() {
        for delegate in [json!({"name": "x"}), json!({"ipam": {}}), json!({"type": 7}), json!("bridge")] {
            let config = json!({"name": "net", "type": "flannel", "delegate": delegate});
            let error = rendered(config, Some(ENV)).unwrap_err();
            assert!(error.msg.starts_with("delegate"), "{error}");
        }
    }
}
