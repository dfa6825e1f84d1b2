//! A network configuration with its `ipam` part and `CNI_ARGS`: the arguments on the first line, then the configuration.
#![no_main]

use cni_spec::{Arguments, NetworkConfig};
use ipam::host_local::HostLocal;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let split = data.iter().position(|byte| *byte == b'\n');
    let (first, json) = split.map_or((&[][..], data), |at| (&data[..at], &data[at + 1..]));
    // The file that it names is read, and is no part of this.
    if json.windows(10).any(|window| window.eq_ignore_ascii_case(b"resolvConf")) {
        return;
    }
    let Ok(config) = NetworkConfig::parse(json) else { return };
    let first = String::from_utf8_lossy(first);
    let args: Arguments = first
        .split(';')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.into(), value.into()))
        .collect();
    let _ = HostLocal::parse(&config, &args);
});
