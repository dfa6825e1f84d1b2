//! The address management plugin `static`: addresses that the configuration names. Nothing is recorded, and that nobody
//! else has them is up to whoever wrote them down.

use crate::error::IpamError;
use cni_spec::{
    AddResult, Arguments, AttachmentId, CniError, Code, Dns, Field, IpAssignment, NetworkConfig, Route, Sandbox,
    SpecVersion,
};
use ipnetwork::IpNetwork;
use std::net::IpAddr;
use std::path::Path;

/// Most addresses and routes, each.
const MOST: usize = 64;

/// `static`
#[derive(Clone, Copy, Debug)]
pub struct Plugin;

impl cni_spec::Plugin for Plugin {
    fn add(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<AddResult, CniError> {
        let ipam = config.field("ipam");
        let routes = bounded(&ipam.field("routes")?)?.iter().map(Route::read).collect::<Result<_, _>>()?;
        let ips = addresses(config, &sandbox.args)?;
        Ok(AddResult { ips, routes, dns: Dns::read(&ipam.field("dns")?)?, ..AddResult::default() })
    }

    fn del(&self, _: &AttachmentId, _: Option<&Path>, _: &Arguments, _: &NetworkConfig) -> Result<(), CniError> {
        Ok(())
    }

    fn check(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<(), CniError> {
        let listed = config.prev_result.iter().flat_map(|result| &result.ips).collect::<Vec<_>>();
        for wanted in addresses(config, &sandbox.args)? {
            let found = listed.iter().find(|ip| ip.address == wanted.address);
            let differs = |ip: &IpAssignment| wanted.gateway.is_some() && ip.gateway != wanted.gateway;
            if found.is_none_or(|ip| differs(ip)) {
                let text = format!("address {} (gateway {:?}) is not in prevResult", wanted.address, wanted.gateway);
                return Err(IpamError::NotHeld(text).into());
            }
        }
        Ok(())
    }

    fn gc(&self, _: &NetworkConfig, _: &[AttachmentId]) -> Result<(), CniError> {
        Ok(())
    }

    fn status(&self, config: &NetworkConfig) -> Result<(), CniError> {
        // Addresses may come with each ADD: none here is no reason to refuse.
        addresses(config, &Arguments::new()).map(drop)
    }
}

/// The addresses of the place that counts: `runtimeConfig.ips`, else `args.cni.ips`, else those of the configuration and
/// after them those of `CNI_ARGS` (`IP=`, `GATEWAY=`, both lists with commas).
fn addresses(config: &NetworkConfig, args: &Arguments) -> Result<Vec<IpAssignment>, CniError> {
    let ipam = config.field("ipam");
    if ipam.object()?.is_none() {
        return Err(ipam.invalid(
            "missing: add \"ipam\": {\"type\": \"static\", \"addresses\": [{\"address\": \"10.1.0.5/24\"}]}",
        ));
    }
    let given = [config.field("runtimeConfig").field("ips")?, config.field("args").field("cni")?.field("ips")?];
    let mut found = Vec::new();
    for list in &given {
        if found.is_empty() {
            found = bounded(list)?.iter().map(|item| assignment(item, None)).collect::<Result<Vec<_>, _>>()?;
        }
    }
    if found.is_empty() {
        for item in bounded(&ipam.field("addresses")?)? {
            found.push(assignment(&item.field("address")?, item.field("gateway")?.address()?)?);
        }
        found.extend(asked_for(args)?);
    }
    // The results of 0.1.0 and 0.2.0 have room for one address per family.
    let four = found.iter().filter(|ip| ip.address.is_ipv4()).count();
    if config.version < SpecVersion::V0_3_0 && four.max(found.len() - four) > 1 {
        return Err(ipam.invalid("CNI versions before 0.3.0 do not support more than 1 address per family"));
    }
    Ok(found)
}

fn asked_for(args: &Arguments) -> Result<Vec<IpAssignment>, CniError> {
    let list =
        |key: &str| args.get(key).into_iter().flat_map(|text| text.split(',')).map(str::trim).collect::<Vec<_>>();
    let wrong = |key: &str, text: &str, wanted: &str| {
        CniError::new(Code::InvalidEnvironment, format!("CNI_ARGS {key}: {:?} is not {wanted}", excerpt(text)))
    };
    let mut found = Vec::new();
    for text in list("IP").into_iter().filter(|text| !text.is_empty()).take(MOST) {
        let address = text
            .contains('/')
            .then(|| text.parse::<IpNetwork>().ok())
            .flatten()
            .ok_or_else(|| wrong("IP", text, "an address with prefix length such as 10.1.0.5/16"))?;
        found.push(IpAssignment { interface: None, address, gateway: None });
    }
    for text in list("GATEWAY").into_iter().filter(|text| !text.is_empty()).take(MOST) {
        let gateway: IpAddr = text.parse().map_err(|_| wrong("GATEWAY", text, "an address"))?;
        for ip in found.iter_mut().filter(|ip| ip.address.contains(gateway)) {
            ip.gateway = Some(gateway);
        }
    }
    Ok(found)
}

fn assignment(field: &Field<'_>, gateway: Option<IpAddr>) -> Result<IpAssignment, CniError> {
    let wanted = || field.wanted("an address with prefix length such as 10.1.0.5/16");
    Ok(IpAssignment { interface: None, address: field.network()?.ok_or_else(wanted)?, gateway })
}

fn bounded<'a>(list: &Field<'a>) -> Result<Vec<Field<'a>>, CniError> {
    let items = list.items()?;
    if items.len() > MOST { Err(list.invalid(format!("more than {MOST} entries"))) } else { Ok(items) }
}

fn excerpt(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn found(ipam: Value, more: Value, args: &[(&str, &str)]) -> Result<Vec<(String, String)>, CniError> {
        let mut config = json!({"cniVersion": "1.0.0", "name": "n", "type": "bridge", "ipam": ipam});
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        let config = NetworkConfig::parse(config.to_string().as_bytes()).unwrap();
        let args = args.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let shown = |gateway: Option<IpAddr>| gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
        Ok(addresses(&config, &args)?.iter().map(|ip| (ip.address.to_string(), shown(ip.gateway))).collect())
    }

    fn pairs(wanted: &[(&str, &str)]) -> Vec<(String, String)> {
        wanted.iter().map(|(address, gateway)| (address.to_string(), gateway.to_string())).collect()
    }

    #[test]
    fn the_runtime_comes_before_the_arguments_and_these_before_the_configuration() {
        let ipam = json!({"type": "static", "addresses": [
            {"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00::5/64"}
        ]});
        let (none, args) = (json!({}), json!({"cni": {"ips": ["10.2.0.5/24"]}}));
        assert_eq!(
            found(ipam.clone(), none.clone(), &[]).unwrap(),
            pairs(&[("10.1.0.5/24", "10.1.0.1"), ("fd00::5/64", "")])
        );
        let more = json!({"args": args});
        assert_eq!(found(ipam.clone(), more, &[("IP", "10.9.0.1/24")]).unwrap(), pairs(&[("10.2.0.5/24", "")]));
        let more = json!({"args": args, "runtimeConfig": {"ips": ["10.3.0.5/16", "fd01::5/48"]}});
        assert_eq!(found(ipam, more, &[]).unwrap(), pairs(&[("10.3.0.5/16", ""), ("fd01::5/48", "")]));
        let args = [("IP", "10.4.0.5/24, fd02::5/64"), ("GATEWAY", "10.4.0.1,fd02::1")];
        let wanted = pairs(&[("10.4.0.5/24", "10.4.0.1"), ("fd02::5/64", "fd02::1")]);
        assert_eq!(found(json!({"type": "static"}), none, &args).unwrap(), wanted);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (ipam, more, args, named) in [
            (json!({"addresses": [{"address": "10.1.0.5"}]}), json!({}), ("X", ""), "ipam.addresses[0].address"),
            (json!({"addresses": [{}]}), json!({}), ("X", ""), "ipam.addresses[0].address"),
            (json!({}), json!({"runtimeConfig": {"ips": [7]}}), ("X", ""), "runtimeConfig.ips[0]"),
            (json!({}), json!({}), ("IP", "10.1.0.5"), "CNI_ARGS IP"),
            (json!({}), json!({}), ("GATEWAY", "nobody"), "CNI_ARGS GATEWAY"),
            (json!(null), json!({}), ("X", ""), "ipam: missing"),
        ] {
            let error = found(ipam, more, &[args]).unwrap_err();
            assert!(error.msg.contains(named), "{error}");
        }
        let two = json!({"addresses": [{"address": "10.1.0.5/24"}, {"address": "10.1.0.6/24"}]});
        assert!(found(two, json!({"cniVersion": "0.2.0"}), &[]).unwrap_err().msg.contains("0.3.0"));
    }
}
