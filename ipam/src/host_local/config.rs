//! The configuration of `host-local`, in all the places where it may be.

use super::resolv_conf;
use super::{DEFAULT_DATA_DIR, HostLocal};
use crate::address::without_host_bits;
use crate::range::{Range, RangeError, RangeSet};
use cni_spec::{Arguments, CniError, Code, Dns, Field, NetworkConfig, Route, SpecVersion};
use ipnetwork::IpNetwork;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

/// Most range sets, routes and requested addresses, each.
const MOST: usize = 64;

/// Longest path that the kernel takes, in bytes (PATH_MAX less the terminating zero).
const LONGEST_PATH: usize = 4095;

impl HostLocal {
    /// Reads the `ipam` object of `config`, `runtimeConfig.ipRanges`, and the addresses asked for in `CNI_ARGS` (`IP=`),
    /// `args.cni.ips` and `runtimeConfig.ips`.
    ///
    /// # Errors
    /// `InvalidConfig` with the path of the field; `InvalidEnvironment` for `CNI_ARGS`; `Io` for `resolvConf`.
    pub fn parse(config: &NetworkConfig, args: &Arguments) -> Result<Self, CniError> {
        let ipam = config.field("ipam");
        if ipam.object()?.is_none() {
            return Err(
                ipam.invalid("missing: add \"ipam\": {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": ...}]]}")
            );
        }
        let mut sets = runtime_sets(config)?;
        if ipam.field("subnet")?.value().is_some() {
            sets.push(set_of(&ipam, vec![range(&ipam)?])?);
        }
        for set in bounded(&ipam.field("ranges")?)? {
            sets.push(range_set(&set)?);
        }
        let dns = match path(&ipam.field("resolvConf")?)? {
            None => Dns::default(),
            Some(path) => resolv_conf::read(&path)?,
        };
        let routes = bounded(&ipam.field("routes")?)?.iter().map(Route::read).collect::<Result<_, _>>()?;
        let sets = consistent(sets, config.version, &ipam)?;
        Ok(HostLocal { sets, requested: requested(config, args)?, routes, dns, data_dir: data_dir(config)? })
    }

    /// One address out of each of `subnets`, whose addresses are the gateways: `10.42.3.1/24`. `dataDir` is at the top of
    /// `config`; `runtimeConfig` and requested addresses are as in [`Self::parse`].
    ///
    /// # Errors
    /// As for [`Self::parse`].
    pub fn for_subnets(
        config: &NetworkConfig,
        args: &Arguments,
        subnets: impl IntoIterator<Item = IpNetwork>,
        routes: Vec<Route>,
    ) -> Result<Self, CniError> {
        let place = config.field("subnetFile");
        let mut sets = runtime_sets(config)?;
        for subnet in subnets {
            let network = without_host_bits(subnet);
            let gateway = Some(subnet.ip()).filter(|ip| *ip != network.ip());
            let range = Range::new(network, None, None, gateway).map_err(|error| place.invalid(error))?;
            sets.push(set_of(&place, vec![range])?);
        }
        let sets = consistent(sets, config.version, &place)?;
        let data_dir = path(&config.field("dataDir"))?.unwrap_or_else(|| DEFAULT_DATA_DIR.into());
        Ok(HostLocal { sets, requested: requested(config, args)?, routes, dns: Dns::default(), data_dir })
    }
}

/// `ipam.dataDir`, all that DEL and GC need.
pub(super) fn data_dir(config: &NetworkConfig) -> Result<PathBuf, CniError> {
    Ok(path(&config.field("ipam").field("dataDir")?)?.unwrap_or_else(|| DEFAULT_DATA_DIR.into()))
}

fn path(field: &Field<'_>) -> Result<Option<PathBuf>, CniError> {
    let Some(path) = field.string()? else { return Ok(None) };
    if path.len() > LONGEST_PATH || path.contains('\0') { Err(field.wanted("a path")) } else { Ok(Some(path.into())) }
}

fn bounded<'a>(list: &Field<'a>) -> Result<Vec<Field<'a>>, CniError> {
    let items = list.items()?;
    if items.len() > MOST { Err(list.invalid(format!("more than {MOST} entries"))) } else { Ok(items) }
}

fn runtime_sets(config: &NetworkConfig) -> Result<Vec<RangeSet>, CniError> {
    bounded(&config.field("runtimeConfig").field("ipRanges")?)?.iter().map(range_set).collect()
}

fn range_set(field: &Field<'_>) -> Result<RangeSet, CniError> {
    let ranges = field.items()?.iter().map(range).collect::<Result<_, _>>()?;
    set_of(field, ranges)
}

fn set_of(field: &Field<'_>, ranges: Vec<Range>) -> Result<RangeSet, CniError> {
    RangeSet::new(ranges).map_err(|error| field.invalid(error))
}

fn range(field: &Field<'_>) -> Result<Range, CniError> {
    let subnet = field.field("subnet")?;
    let Some(network) = subnet.network()? else { return Err(subnet.wanted("a network such as 10.1.0.0/16")) };
    let [start, end, gateway] = ["rangeStart", "rangeEnd", "gateway"].map(|key| field.field(key)?.address());
    Range::new(network, start?, end?, gateway?).map_err(|error: RangeError| field.invalid(error))
}

/// What concerns the sets together.
fn consistent(sets: Vec<RangeSet>, version: SpecVersion, place: &Field<'_>) -> Result<Vec<RangeSet>, CniError> {
    if sets.is_empty() {
        return Err(place.invalid("no IP ranges specified"));
    }
    for (index, set) in sets.iter().enumerate() {
        if let Some(other) = sets.iter().skip(index + 1).find(|other| set.overlaps(other)) {
            return Err(place.invalid(format!("range sets {set} and {other} overlap")));
        }
    }
    // The results of 0.1.0 and 0.2.0 have room for one address per family.
    let most = sets.iter().filter(|set| set.is_ipv4()).count().max(sets.iter().filter(|set| !set.is_ipv4()).count());
    if version < SpecVersion::V0_3_0 && most > 1 {
        return Err(place.invalid("CNI versions before 0.3.0 do not support more than 1 address per family"));
    }
    Ok(sets)
}

/// Every address that somebody asked for.
fn requested(config: &NetworkConfig, args: &Arguments) -> Result<BTreeSet<IpAddr>, CniError> {
    let mut requested = BTreeSet::new();
    if let Some(text) = args.get("IP").filter(|text| !text.is_empty()) {
        let text = text.as_str();
        requested.insert(address(text).ok_or_else(|| {
            let text = format!("CNI_ARGS: IP={} is not an IP address", text.escape_default());
            CniError::new(Code::InvalidEnvironment, text)
        })?);
    }
    let lists = [config.field("args").field("cni")?.field("ips")?, config.field("runtimeConfig").field("ips")?];
    for item in lists.iter().map(bounded).collect::<Result<Vec<_>, _>>()?.iter().flatten() {
        let text = item.string()?.unwrap_or_default();
        requested.insert(address(text).ok_or_else(|| item.wanted("an IP address"))?);
    }
    Ok(requested)
}

/// An address, with or without a prefix length, which the range decides about anyway.
fn address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = match text.contains('/') {
        true => text.parse::<IpNetwork>().ok()?.ip(),
        false => text.parse().ok()?,
    };
    Some(address.to_canonical())
}
