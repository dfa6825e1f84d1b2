//! A plugin for tests: ADD passes prevResult on (or answers with one address), everything else succeeds; with
//! `"fail": true` in the configuration every verb fails. What was called is remembered.

use cni_spec::{AddResult, Arguments, AttachmentId, CniError, Code, IpAssignment, NetworkConfig, Plugin, Sandbox};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

#[derive(Default)]
pub(crate) struct Echo {
    pub(crate) calls: RefCell<Vec<String>>,
}

impl Echo {
    fn call(&self, verb: &str, who: &str, config: &NetworkConfig) -> Result<(), CniError> {
        self.calls.borrow_mut().push(format!("{verb} {who} {} {}", config.name, config.plugin));
        if config.field("fail").bool()?.unwrap_or(false) {
            return Err(CniError::new(Code::Kernel, "told to fail").with_details("by the test"));
        }
        Ok(())
    }
}

impl Plugin for Echo {
    fn add(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<AddResult, CniError> {
        self.call("ADD", &sandbox.id.container_id, config)?;
        if let Some(result) = &config.prev_result {
            return Ok(result.clone());
        }
        // Touches every kind of typed reading.
        let ipam = config.field("ipam");
        let mtu = config.field("mtu").number()?;
        for set in ipam.field("ranges")?.items()? {
            for range in set.items()? {
                range.field("subnet")?.network()?;
                range.field("rangeStart")?.address()?;
            }
        }
        let address = ipam.field("address")?.parsed()?;
        let ips = address.map(|address| IpAssignment { interface: None, address, gateway: None });
        let interface = cni_spec::Interface { name: sandbox.id.ifname.clone(), mtu, ..Default::default() };
        Ok(AddResult { interfaces: vec![interface], ips: ips.into_iter().collect(), ..AddResult::default() })
    }

    fn del(
        &self,
        id: &AttachmentId,
        netns: Option<&Path>,
        _: &Arguments,
        config: &NetworkConfig,
    ) -> Result<(), CniError> {
        let netns = netns.map_or_else(|| "none".into(), |path| path.display().to_string());
        self.call("DEL", &format!("{} {netns}", id.container_id), config)
    }

    fn check(&self, sandbox: &Sandbox, config: &NetworkConfig) -> Result<(), CniError> {
        self.call("CHECK", &sandbox.id.container_id, config)
    }

    fn gc(&self, config: &NetworkConfig, valid: &[AttachmentId]) -> Result<(), CniError> {
        let valid: Vec<_> = valid.iter().map(|id| format!("{}/{}", id.container_id, id.ifname)).collect();
        self.call("GC", &valid.join("+"), config)
    }

    fn status(&self, config: &NetworkConfig) -> Result<(), CniError> {
        self.call("STATUS", "-", config)
    }
}

/// An environment for `answer`.
pub(crate) type Env = BTreeMap<&'static str, OsString>;

/// All that a `command` may need, in order.
pub(crate) fn env(command: &str) -> Env {
    let variables = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "pod1"),
        ("CNI_NETNS", "/run/netns/pod1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];
    variables.map(|(name, value)| (name, OsString::from(value))).into()
}
