//! A real containerd and runc run pod sandboxes with a conflist: first with Debian's reference plugins, to prove the
//! set-up, then with ours.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use e2e::containerd::Containerd;
use e2e::workdir::WorkDir;
use e2e::{oracle, tools};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StatusRequest, StopPodSandboxRequest,
};
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::fs;
use std::future::Future;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[test]
fn reference_plugins() {
    let bridge = tools::from_package("/usr/lib/cni/bridge", "containernetworking-plugins").unwrap();
    sandboxes(bridge.parent().unwrap(), |work| {
        json!({
            "type": "bridge", "bridge": "cbr0", "isGateway": true, "isDefaultGateway": true,
            "ipam": {"type": "host-local", "dataDir": networks(work), "ranges": [[{"subnet": "10.88.0.0/24"}]]},
        })
    });
}

#[test]
fn our_plugins() {
    let work = WorkDir::new().unwrap();
    let plugins = tools::plugin_directory(&work.path().join("bin")).unwrap();
    sandboxes(&plugins, |work| {
        let file = work.path().join("subnet.env");
        let lines =
            "FLANNEL_NETWORK=10.88.0.0/16\nFLANNEL_SUBNET=10.88.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        fs::write(&file, lines).unwrap();
        json!({
            "type": "flannel-rs", "bridge": "cbr0", "subnetFile": file, "dataDir": networks(work),
            "attachmentsDir": work.path().join("attachments"), "hostPortsDir": work.path().join("host-ports"),
        })
    });
}

fn networks(work: &WorkDir) -> PathBuf {
    work.path().join("networks")
}

type Client = RuntimeServiceClient<tonic::transport::Channel>;

/// The life of two sandboxes, with containerd killed and started again in the middle.
fn sandboxes(plugins: &Path, plugin: impl FnOnce(&WorkDir) -> Value) {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    let work = WorkDir::new().unwrap();
    let node = Netns::create().expect("the tests need root");
    oracle::ip(&node, "link set lo up").unwrap();
    let list = json!({"cniVersion": "1.0.0", "name": "net1", "plugins": [plugin(&work)]});
    let mut containerd = Containerd::start(&node, work.path(), plugins, &list).unwrap();

    let sandboxes: Vec<(String, IpAddr)> = with_client(&containerd, async |mut client| {
        wait_for_network(&mut client).await;
        let mut sandboxes = Vec::new();
        for name in ["one", "two"] {
            let id = run(&mut client, name).await.unwrap_or_else(|error| panic!("{error}\n{}", containerd.log()));
            let address = address(&mut client, &id).await;
            sandboxes.push((id, address));
        }
        sandboxes
    });
    let [(one, address_of_one), (two, address_of_two)] = sandboxes.as_slice() else { panic!("two sandboxes wanted") };
    assert_ne!(address_of_one, address_of_two);
    assert!(containerd.ctr(&["containers", "list", "--quiet"]).unwrap().contains(one));
    assert!(containerd.ctr(&["tasks", "list"]).unwrap().contains("RUNNING"));
    for (id, address) in &sandboxes {
        assert!(address.to_string().starts_with("10.88.0."));
        assert_answers(&node, *address);
        let owner = fs::read_to_string(networks(&work).join("net1").join(address.to_string())).unwrap();
        assert!(owner.starts_with(id.as_str()), "{address} belongs to {owner:?} and not to {id}");
    }

    containerd.kill().unwrap();
    assert_answers(&node, *address_of_one);
    containerd.resume().unwrap();

    with_client(&containerd, async |mut client| {
        wait_for_network(&mut client).await;
        assert_eq!(address(&mut client, one).await, *address_of_one);
        remove(&mut client, one).await;
    });
    assert!(!networks(&work).join("net1").join(address_of_one.to_string()).exists(), "the address is still reserved");
    assert_answers(&node, *address_of_two);
    with_client(&containerd, async |mut client| remove(&mut client, two).await);
    let links = oracle::links(&node).unwrap();
    assert_eq!(links.into_iter().collect::<Vec<_>>(), ["cbr0", "lo"], "links left in the node");
    assert_eq!(containerd.ctr(&["containers", "list", "--quiet"]).unwrap(), "");
}

/// Nothing listens in a pause container: its kernel's refusal is the answer.
fn assert_answers(node: &Netns, address: IpAddr) {
    let start = Instant::now();
    let limit = Duration::from_secs(1);
    let refused = node.run(|| TcpStream::connect_timeout(&SocketAddr::new(address, 80), limit)).unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{address} after {:?}: {refused}", start.elapsed());
}

fn with_client<T, F: Future<Output = T>>(containerd: &Containerd, work: impl FnOnce(Client) -> F) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { work(Client::connect(containerd.endpoint()).await.unwrap()).await })
}

async fn wait_for_network(client: &mut Client) {
    let start = Instant::now();
    loop {
        // Right after its start it answers that it is not initialized yet.
        let status = client.status(StatusRequest::default()).await.map(|answer| answer.into_inner().status.unwrap());
        if status.as_ref().is_ok_and(|status| status.conditions.iter().all(|condition| condition.status)) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "not ready: {status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn run(client: &mut Client, name: &str) -> Result<String, String> {
    let metadata =
        PodSandboxMetadata { name: name.into(), uid: format!("uid-{name}"), namespace: "default".into(), attempt: 0 };
    let config = PodSandboxConfig {
        metadata: Some(metadata),
        hostname: name.into(),
        linux: Some(LinuxPodSandboxConfig::default()),
        ..PodSandboxConfig::default()
    };
    let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    let answer = client.run_pod_sandbox(request).await.map_err(|status| status.to_string())?;
    Ok(answer.into_inner().pod_sandbox_id)
}

async fn address(client: &mut Client, id: &str) -> IpAddr {
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
    let status = client.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
    status.network.unwrap().ip.parse().unwrap()
}

async fn remove(client: &mut Client, id: &str) {
    // Kubernetes may repeat both.
    for _ in 0..2 {
        client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.into() }).await.unwrap();
    }
    for _ in 0..2 {
        client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.into() }).await.unwrap();
    }
}

/// containerd's own client attaches containers too, with a CNI library of its own.
#[test]
fn ctr_attaches_and_detaches() {
    tools::set_helper(env!("CARGO_BIN_EXE_e2e"));
    let work = WorkDir::new().unwrap();
    let node = Netns::create().expect("the tests need root");
    oracle::ip(&node, "link set lo up").unwrap();
    let plugins = tools::plugin_directory(&work.path().join("bin")).unwrap();
    let plugin = json!({
        "type": "bridge", "bridge": "cbr0", "isGateway": true, "isDefaultGateway": true,
        "attachmentsDir": work.path().join("attachments"),
        "ipam": {"type": "host-local", "dataDir": networks(&work), "ranges": [[{"subnet": "10.88.0.0/24"}]]},
    });
    let list = json!({"cniVersion": "1.0.0", "name": "net1", "plugins": [plugin]});
    let containerd = Containerd::start(&node, work.path(), &plugins, &list).unwrap();
    let mut container = containerd.ctr_run_cni("box", &plugins).unwrap();
    let limit = Duration::from_secs(20);
    container
        .until(limit, || {
            let tasks = containerd.ctr(&["tasks", "list"])?;
            if tasks.contains("RUNNING") { Ok(()) } else { Err(tasks.into()) }
        })
        .unwrap();
    let reserved = || -> Vec<IpAddr> {
        let entries = fs::read_dir(networks(&work).join("net1")).unwrap();
        entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).collect()
    };
    let [address] = reserved()[..] else { panic!("one address wanted: {:?}", reserved()) };
    assert_answers(&node, address);
    containerd.ctr(&["tasks", "kill", "--signal", "SIGKILL", "box"]).unwrap();
    container.wait(limit).unwrap();
    assert_eq!(reserved(), Vec::<IpAddr>::new(), "{}", container.last_words());
    assert_eq!(oracle::links(&node).unwrap().into_iter().collect::<Vec<_>>(), ["cbr0", "lo"]);
}
