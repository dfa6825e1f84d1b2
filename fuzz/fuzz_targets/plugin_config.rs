//! A network configuration as every plugin of ours reads it: `CNI_ARGS` on the first line, then the configuration.
#![no_main]

use cni_spec::{Arguments, NetworkConfig};
use ipam::subnet_env::SubnetEnv;
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::OnceLock;

const ENV: &str = "FLANNEL_NETWORK=10.88.0.0/16\nFLANNEL_SUBNET=10.88.3.1/24\nFLANNEL_IPV6_NETWORK=fd00:88::/48\n\
    FLANNEL_IPV6_SUBNET=fd00:88:0:3::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// The daemon's file, once for all runs.
fn subnet_file() -> &'static PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("fuzz-subnet-{}.env", std::process::id()));
        std::fs::write(&path, ENV).expect("a temporary file");
        path
    })
}

fuzz_target!(|data: &[u8]| {
    let split = data.iter().position(|byte| *byte == b'\n');
    let (first, json) = split.map_or((&[][..], data), |at| (&data[..at], &data[at + 1..]));
    // The file that it names is read, and is no part of this.
    if json.windows(10).any(|window| window.eq_ignore_ascii_case(b"resolvConf")) {
        return;
    }
    let Ok(mut config) = NetworkConfig::parse(json) else { return };
    config.json.insert("subnetFile".into(), subnet_file().to_string_lossy().into());
    let first = String::from_utf8_lossy(first);
    let pairs = first.split(';').filter_map(|pair| pair.split_once('='));
    let args: Arguments = pairs.map(|(key, value)| (key.into(), value.into())).collect();
    cni_plugin::fuzzing::configuration(&config, &args, &SubnetEnv::parse(ENV).expect("a good file"));
});
