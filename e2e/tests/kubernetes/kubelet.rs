//! What a kubelet does with the pods of a DaemonSet, as far as ours need it: their containers, with exactly the rights that
//! the manifest gives them, in a real containerd.

use e2e::Result;
use e2e::containerd::Containerd;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    Capability, ContainerConfig, ContainerMetadata, ContainerState, ContainerStatusRequest, CreateContainerRequest,
    ImageSpec, ImageStatusRequest, KeyValue, LinuxContainerConfig, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, PodSandboxStatusRequest, PortMapping, RemovePodSandboxRequest, RunPodSandboxRequest,
    SecurityProfile, StartContainerRequest, StatusRequest, StopContainerRequest, StopPodSandboxRequest,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tonic::transport::Channel;

const LIMIT: Duration = Duration::from_secs(60);

/// What a kubelet hides of /proc, and what it keeps from being written there (k8s.io/kubernetes, `procMount: Default`).
const MASKED: [&str; 9] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A kubelet of one node.
pub(crate) struct Kubelet<'a> {
    containerd: &'a Containerd,
    runtime: tokio::runtime::Runtime,
    client: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    directory: PathBuf,
    /// what `spec.nodeName` is
    pub(crate) node: String,
}

/// A pod that was started.
pub(crate) struct Pod {
    sandbox: String,
    containers: Vec<String>,
}

impl<'a> Kubelet<'a> {
    pub(crate) fn new(containerd: &'a Containerd, directory: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let connect = async || tonic::transport::Endpoint::new(containerd.endpoint()).unwrap().connect().await;
        let channel = runtime.block_on(connect()).unwrap();
        let (client, images) = (RuntimeServiceClient::new(channel.clone()), ImageServiceClient::new(channel));
        Kubelet { containerd, runtime, client, images, directory: directory.into(), node: "node1".into() }
    }

    /// Whether the runtime has an image under this name.
    pub(crate) fn has_image(&mut self, name: &str) -> bool {
        let image = Some(ImageSpec { image: name.into(), ..ImageSpec::default() });
        let request = ImageStatusRequest { image, verbose: false };
        self.runtime.block_on(self.images.image_status(request)).unwrap().into_inner().image.is_some()
    }

    /// Whether the runtime would attach a pod to a network, as a kubelet asks before it says that the node is ready.
    pub(crate) fn network_is_ready(&mut self) -> bool {
        let answer = self.runtime.block_on(self.client.status(StatusRequest::default())).unwrap();
        let conditions = answer.into_inner().status.unwrap().conditions;
        conditions.iter().any(|condition| condition.r#type == "NetworkReady" && condition.status)
    }

    /// Starts a pod sandbox and no container: on the node's network, or attached to the pods'.
    pub(crate) fn sandbox(&mut self, name: &str, ports: &[(i32, i32)], of_the_node: bool) -> Result<Pod> {
        let config = sandbox_config(name, ports, of_the_node, &self.directory);
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let answer = self.runtime.block_on(self.client.run_pod_sandbox(request))?;
        Ok(Pod { sandbox: answer.into_inner().pod_sandbox_id, containers: Vec::new() })
    }

    /// The address of an attached sandbox.
    pub(crate) fn address(&mut self, pod: &Pod) -> String {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.sandbox.clone(), verbose: false };
        let status = self.runtime.block_on(self.client.pod_sandbox_status(request)).unwrap().into_inner();
        status.status.unwrap().network.unwrap().ip
    }

    /// Starts the pod of a DaemonSet: volumes, then one container after the other; those in `initContainers` have to end
    /// well before the next.
    pub(crate) fn start(&mut self, name: &str, pod: &Value, maps: &BTreeMap<String, Value>) -> Result<Pod> {
        assert_eq!(pod["hostNetwork"], true);
        let mut volumes = BTreeMap::new();
        for volume in list(&pod["volumes"]) {
            volumes.insert(text(&volume["name"]), self.volume(volume, maps));
        }
        let mut started = self.sandbox(name, &[], true)?;
        for (key, to_end) in [("initContainers", true), ("containers", false)] {
            for container in list(&pod[key]) {
                let outcome = self.container(&started, container, pod, &volumes);
                let (id, log) = match outcome {
                    Ok(made) => made,
                    Err(error) => {
                        self.remove(&started);
                        return Err(error);
                    }
                };
                started.containers.push(id.clone());
                if to_end && let Err(error) = self.ends_well(&id, &log) {
                    self.remove(&started);
                    return Err(format!("{}: {error}", text(&container["name"])).into());
                }
            }
        }
        Ok(started)
    }

    /// The path that a volume is mounted from.
    fn volume(&self, volume: &Value, maps: &BTreeMap<String, Value>) -> String {
        if let Some(path) = volume["hostPath"]["path"].as_str() {
            if volume["hostPath"]["type"] == "DirectoryOrCreate" {
                fs::create_dir_all(self.containerd.file(path)).unwrap();
            }
            return path.into();
        }
        let name = text(&volume["configMap"]["name"]);
        let directory = self.directory.join(&name);
        fs::create_dir_all(&directory).unwrap();
        for (file, content) in maps[&name].as_object().unwrap() {
            fs::write(directory.join(file), text(content)).unwrap();
        }
        directory.display().to_string()
    }

    fn container(
        &mut self,
        pod: &Pod,
        container: &Value,
        spec: &Value,
        volumes: &BTreeMap<String, String>,
    ) -> Result<(String, PathBuf)> {
        let name = text(&container["name"]);
        let rights = &container["securityContext"];
        let profile = &spec["securityContext"]["seccompProfile"]["type"];
        assert_eq!(profile, "RuntimeDefault", "no other is known here");
        let security = LinuxContainerSecurityContext {
            capabilities: Some(Capability {
                add_capabilities: texts(&rights["capabilities"]["add"]),
                drop_capabilities: texts(&rights["capabilities"]["drop"]),
                ..Capability::default()
            }),
            namespace_options: Some(on_the_node()),
            readonly_rootfs: rights["readOnlyRootFilesystem"] == true,
            no_new_privs: rights["allowPrivilegeEscalation"] == false,
            masked_paths: MASKED.map(String::from).to_vec(),
            readonly_paths: READ_ONLY.map(String::from).to_vec(),
            seccomp: Some(SecurityProfile::default()),
            ..LinuxContainerSecurityContext::default()
        };
        let mount = |mount: &Value| Mount {
            container_path: text(&mount["mountPath"]),
            host_path: volumes[&text(&mount["name"])].clone(),
            readonly: mount["readOnly"] == true,
            ..Mount::default()
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.clone(), attempt: 0 }),
            image: Some(ImageSpec { image: text(&container["image"]), ..ImageSpec::default() }),
            command: texts(&container["command"]),
            args: texts(&container["args"]),
            envs: list(&container["env"]).iter().map(|variable| self.variable(variable)).collect(),
            mounts: list(&container["volumeMounts"]).iter().map(mount).collect(),
            log_path: format!("{}.{name}.log", &pod.sandbox[..12]),
            linux: Some(LinuxContainerConfig { resources: None, security_context: Some(security) }),
            ..ContainerConfig::default()
        };
        let log = self.directory.join(&config.log_path);
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.sandbox.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox_config("daemon", &[], true, &self.directory)),
        };
        let id = self.runtime.block_on(self.client.create_container(request))?.into_inner().container_id;
        let start = StartContainerRequest { container_id: id.clone() };
        self.runtime.block_on(self.client.start_container(start))?;
        Ok((id, log))
    }

    fn variable(&self, variable: &Value) -> KeyValue {
        let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            Some("spec.nodeName") => self.node.clone(),
            _ => text(&variable["value"]),
        };
        KeyValue { key: text(&variable["name"]), value }
    }

    fn ends_well(&mut self, container: &str, log: &Path) -> Result<()> {
        let (code, said) = self.end(container, log)?;
        if code == 0 { Ok(()) } else { Err(format!("exit code {code}: {said}").into()) }
    }

    /// Waits for the end of a container; its exit code and what it said.
    fn end(&mut self, container: &str, log: &Path) -> Result<(i32, String)> {
        let start = Instant::now();
        loop {
            let request = ContainerStatusRequest { container_id: container.into(), verbose: false };
            let status = self.runtime.block_on(self.client.container_status(request))?.into_inner().status.unwrap();
            if status.state == ContainerState::ContainerExited as i32 {
                return Ok((status.exit_code, fs::read_to_string(log).unwrap_or_default()));
            }
            if start.elapsed() > LIMIT {
                return Err(format!("still runs: {}", fs::read_to_string(log).unwrap_or_default()).into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the last container of a pod, which is to end by itself, has ended; its exit code and what it said.
    pub(crate) fn last_words(&mut self, pod: &Pod) -> (i32, String) {
        let log = self.log_of(pod);
        self.end(pod.containers.last().unwrap(), &log).unwrap()
    }

    /// The log of the DaemonSet's container.
    fn log_of(&self, pod: &Pod) -> PathBuf {
        self.directory.join(format!("{}.kube-flannel.log", &pod.sandbox[..12]))
    }

    /// What the DaemonSet's container has said so far.
    pub(crate) fn log(&self, pod: &Pod) -> String {
        fs::read_to_string(self.log_of(pod)).unwrap_or_default()
    }

    /// Ends the containers of a pod as a kubelet does, with SIGTERM first; then the pod.
    pub(crate) fn remove(&mut self, pod: &Pod) {
        for container_id in pod.containers.clone() {
            let stop = StopContainerRequest { container_id, timeout: 10 };
            self.runtime.block_on(self.client.stop_container(stop)).unwrap();
        }
        let (stop, remove) = (
            StopPodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() },
            RemovePodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() },
        );
        self.runtime.block_on(self.client.stop_pod_sandbox(stop)).unwrap();
        self.runtime.block_on(self.client.remove_pod_sandbox(remove)).unwrap();
    }
}

fn sandbox_config(name: &str, ports: &[(i32, i32)], of_the_node: bool, logs: &Path) -> PodSandboxConfig {
    let metadata =
        PodSandboxMetadata { name: name.into(), uid: format!("uid-{name}"), namespace: "default".into(), attempt: 0 };
    let security = LinuxSandboxSecurityContext {
        namespace_options: Some(if of_the_node { on_the_node() } else { NamespaceOption::default() }),
        ..LinuxSandboxSecurityContext::default()
    };
    let port = |&(host_port, container_port)| PortMapping { host_port, container_port, ..PortMapping::default() };
    PodSandboxConfig {
        metadata: Some(metadata),
        hostname: if of_the_node { String::new() } else { name.into() },
        log_directory: logs.display().to_string(),
        port_mappings: ports.iter().map(port).collect(),
        linux: Some(LinuxPodSandboxConfig { security_context: Some(security), ..LinuxPodSandboxConfig::default() }),
        ..PodSandboxConfig::default()
    }
}

fn on_the_node() -> NamespaceOption {
    NamespaceOption { network: NamespaceMode::Node as i32, ..NamespaceOption::default() }
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().into()
}

pub(crate) fn texts(value: &Value) -> Vec<String> {
    list(value).iter().map(text).collect()
}
