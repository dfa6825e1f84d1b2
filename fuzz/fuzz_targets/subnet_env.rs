//! The daemon's subnet file, perhaps Go flannel's: what is read is written and read as the same.
#![no_main]

use ipam::subnet_env::SubnetEnv;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(env) = SubnetEnv::parse(text) else { return };
    assert_eq!(SubnetEnv::parse(&env.render()).expect("what we write can be read"), env);
});
