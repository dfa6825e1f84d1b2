//! Nodes whose daemons are no pods: started by an init system, before there is any pod.

use crate::stage::{cluster, everybody_sees_everybody, pods, wait_until_ready};
use e2e::fabric::UPLINK;
use e2e::process::{Process, Program};
use e2e::tools;
use e2e::workdir::WorkDir;
use serde_json::json;
use std::fs;

#[test]
fn nodes_get_ready_by_daemons_that_are_no_pods() {
    let work = WorkDir::new().unwrap();
    let Some(cluster) = cluster(&work) else { return };
    let config = work.path().join("net-conf.json");
    let network = json!({"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd42::/48",
        "Backend": {"Type": "vxlan"}});
    fs::write(&config, network.to_string()).unwrap();
    let daemons = cluster.workers.iter().map(|worker| {
        for name in ["flannel-rs", "loopback"] {
            fs::copy(tools::cni_plugin().unwrap(), worker.containerd.file("/opt/cni/bin").join(name)).unwrap();
        }
        Program::new(format!("flanneld-rs-{}", worker.host.name), tools::flanneld().unwrap())
            .args(["--kube-subnet-mgr", "--ip-masq", "--iface", UPLINK, "--cni-conf-dir", "/etc/cni/net.d"])
            .args(["--net-config-path".as_ref(), config.as_os_str()])
            .args(["--kubeconfig-file".as_ref(), cluster.plane.kubeconfig("admin").unwrap().as_os_str()])
            .env("NODE_NAME", &worker.host.name)
            .network(&worker.host.network)
            .machine(worker.containerd.machine())
            .start(work.path())
            .unwrap()
    });
    let _daemons: Vec<Process> = daemons.collect();
    wait_until_ready(&cluster);
    everybody_sees_everybody(&cluster, &pods(&cluster));
}
