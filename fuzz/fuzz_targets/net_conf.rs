//! The cluster's network configuration.
#![no_main]

use flanneld_rs::network_config::NetworkConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(config) = NetworkConfig::parse(text) else { return };
    let _ = (config.networks(), config.families());
});
