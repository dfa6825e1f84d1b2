//! What a runtime hands over: variables of the environment, separated by NUL, and after two NULs the standard input.
#![no_main]

use cni_spec::{AddResult, Arguments, AttachmentId, CniError, NetworkConfig, Plugin, Sandbox};
use libfuzzer_sys::fuzz_target;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

/// Hands the previous result on, and has nothing to do otherwise.
struct Chained;

impl Plugin for Chained {
    fn add(&self, _: &Sandbox, config: &NetworkConfig) -> Result<AddResult, CniError> {
        Ok(config.prev_result.clone().unwrap_or_default())
    }
    fn del(&self, _: &AttachmentId, _: Option<&Path>, _: &Arguments, _: &NetworkConfig) -> Result<(), CniError> {
        Ok(())
    }
    fn check(&self, _: &Sandbox, _: &NetworkConfig) -> Result<(), CniError> {
        Ok(())
    }
    fn gc(&self, _: &NetworkConfig, _: &[AttachmentId]) -> Result<(), CniError> {
        Ok(())
    }
    fn status(&self, _: &NetworkConfig) -> Result<(), CniError> {
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let split = data.windows(2).position(|pair| pair == [0, 0]);
    let (environment, stdin) = split.map_or((data, &[][..]), |at| (&data[..at], &data[at + 2..]));
    let variables = || {
        environment.split(|byte| *byte == 0).filter_map(|variable| {
            let equals = variable.iter().position(|byte| *byte == b'=')?;
            Some((&variable[..equals], &variable[equals + 1..]))
        })
    };
    let env = |name: &str| {
        variables().find(|(key, _)| *key == name.as_bytes()).map(|(_, value)| OsString::from_vec(value.to_vec()))
    };
    let answer = cni_spec::answer("cni-plugin", env, stdin, |_| Some(&Chained));
    if answer.status != 0 {
        // The runtime must be able to read why.
        let error: serde_json::Value = serde_json::from_slice(&answer.stdout).expect("an error object");
        assert!(error["code"].is_u64() && error["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{error}");
    } else if !answer.stdout.is_empty() {
        serde_json::from_slice::<serde_json::Value>(&answer.stdout).expect("a result");
    }
});
