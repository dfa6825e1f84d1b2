//! The store that the options name.

use super::{EtcdOptions, EtcdStore, FileStore, KubeOptions, KubeStore, LEASE_TTL, Password, SILENCE, Store, User};
use crate::config_file::ConfigFile;
use crate::network_config::NetworkConfig;
use crate::options::Options;
use std::path::Path;

impl Store {
    /// As the options name it. It need not answer yet.
    ///
    /// # Errors
    /// One line: what is wrong with the options or what they name.
    pub(crate) fn of(options: &Options) -> Result<Self, String> {
        if let Some(dir) = &options.store_dir {
            return FileStore::open(dir, LEASE_TTL).map(Store::File).map_err(|error| error.to_string());
        }
        let kubernetes = &options.kubernetes;
        if kubernetes.kube_subnet_mgr {
            let families = options.net_config_file().map(read_config).transpose()?;
            let kube = KubeOptions {
                kubeconfig: kubernetes.kubeconfig().cloned(),
                api_url: kubernetes.api_url().map(String::from),
                annotation_prefix: kubernetes.kube_annotation_prefix.clone(),
                node: options.node_name.clone(),
                pod: kubernetes.pod(),
                set_condition: kubernetes.set_node_network_unavailable,
                families: families.map(|config| config.families()).unwrap_or_default(),
                silence: SILENCE,
            };
            return KubeStore::new(kube).map(Store::Kube).map_err(|error| error.to_string());
        }
        let password = || match &options.etcd_password_file {
            Some(path) => Password::File(path.clone()),
            None => Password::Text(options.etcd_password.clone().unwrap_or_default()),
        };
        let etcd = EtcdOptions {
            endpoints: options.etcd_endpoints.clone(),
            prefix: options.etcd_prefix.clone(),
            cafile: options.etcd_cafile.clone(),
            certfile: options.etcd_certfile.clone(),
            keyfile: options.etcd_keyfile.clone(),
            user: options.etcd_username.clone().map(|name| User { name, password: password() }),
            ttl: LEASE_TTL,
        };
        EtcdStore::new(etcd).map(Store::Etcd).map_err(|error| error.to_string())
    }
}

fn read_config(path: &Path) -> Result<NetworkConfig, String> {
    let file = ConfigFile::at(path);
    let text = file.read_now().map_err(|error| error.to_string())?;
    NetworkConfig::parse(&text).map_err(|error| format!("{error} (in {file})"))
}
