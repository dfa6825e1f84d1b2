//! A way in for the fuzz targets: configurations, the files that plugins leave for later, and what other plugins answer. Not
//! part of any build but theirs.

use crate::attachments::Attached;
use crate::config::{self, Dialect, PluginConfig};
use crate::host_ports::{HostPortConfig, Record};
use crate::tuning::backup::Backup;
use crate::tuning::settings::Settings;
use crate::{delegate, flannel, plan};
use cni_spec::{AddResult, Arguments, AttachmentId, CniError, NetworkConfig, SpecVersion};
use ipam::subnet_env::SubnetEnv;
use ipnetwork::IpNetwork;
use std::path::Path;

/// A configuration, read by every plugin there is; its prevResult stands for what the address management would answer. Where
/// all is valid, the plan for a pod is made, and its result told.
pub fn configuration(config: &NetworkConfig, args: &Arguments, env: &SubnetEnv) {
    let id = AttachmentId { container_id: "box".into(), ifname: "eth0".into() };
    let allocated = config.prev_result.clone().unwrap_or_default();
    for dialect in [Dialect::FlannelRs, Dialect::Bridge, Dialect::PointToPoint] {
        let _ = (config::keeper(dialect, config), config::bridge_name(dialect, config));
        let _ = config::host_ports(dialect, config);
        let Ok(parsed) = PluginConfig::parse(dialect, config, args) else { continue };
        let Ok(plan) = plan::pod(&parsed, &config.name, &id, &allocated) else { continue };
        let result = plan.result(None, Path::new("/sandbox"));
        let _ = SpecVersion::ALL.map(|version| result.to_text(version));
    }
    if let Ok(ports) = HostPortConfig::parse(config) {
        let addresses: Vec<IpNetwork> = allocated.ips.iter().map(|ip| ip.address).collect();
        let _ = ports.forwards(&addresses);
    }
    let _ = Settings::parse(config, args, "eth0").map(|settings| settings.change());
    for env in [Some(env), None] {
        let _ = flannel::render::delegate(config, env);
    }
}

/// The content of a file that one of our plugins, or the reference's of that name, left for DEL, CHECK, GC or a restart. What
/// is read is written and read as the same.
pub fn note(content: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<Record>(content) {
        let text = serde_json::to_vec(&record).expect("a record can be written");
        assert_eq!(serde_json::from_slice::<Record>(&text).expect("what we write can be read"), record);
        let _ = record.forwards.iter().map(|forward| (forward.subnet(), forward.serves_loopback())).count();
    }
    if let Ok(attached) = serde_json::from_slice::<Attached>(content) {
        let text = serde_json::to_vec(&attached).expect("a record can be written");
        assert_eq!(serde_json::from_slice::<Attached>(&text).expect("what we write can be read"), attached);
        let _ = (attached.id(), attached.owner(), attached.tables());
    }
    if let Ok(backup) = serde_json::from_slice::<Backup>(content) {
        let _ = backup.change();
    }
}

/// The answer of a plugin of somebody else's, as a result and as an error.
pub fn answer(content: &[u8], version: SpecVersion) -> (Result<AddResult, CniError>, CniError) {
    delegate::read_answer(content, version)
}
