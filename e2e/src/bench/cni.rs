//! ADD and DEL as a container runtime pays for them, and the mere start of the executable.

use super::{Figure, Sample, Wishes};
use crate::runner::{Attachment, Network, Runtime};
use crate::{Result, tools};
use kernel::netlink::{LinkChange, Netlink};
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// How many ADDs or DELs run at once.
const PARALLEL: usize = 16;

/// One way to attach pods, on a node of its own, and the pods' namespaces. These are used again and again: the kernel's
/// slow removal of a namespace would be paid by whoever is measured next.
struct Contender {
    runtime: Runtime,
    network: Network,
    pods: Vec<Netns>,
}

impl Contender {
    fn new(directory: &Path, plugins: PathBuf, plugin: Value) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let node = Netns::create()?;
        let mut netlink = Netlink::open_in(&node)?;
        let lo = netlink.link("lo")?.ok_or("no loopback device")?.index;
        netlink.set_link(lo, &LinkChange { up: Some(true), ..LinkChange::default() })?;
        let network = Network::new(json!({"cniVersion": "1.0.0", "name": "net1", "plugins": [plugin]}))?;
        let pods = (0..PARALLEL).map(|_| Ok(Netns::create()?)).collect::<Result<Vec<Netns>>>()?;
        Ok(Contender { runtime: Runtime { plugins, cache: directory.join("results"), node }, network, pods })
    }
}

#[derive(Default)]
struct Times {
    add: Sample,
    del: Sample,
    add_parallel: Sample,
    del_parallel: Sample,
}

pub(super) fn measure(wishes: Wishes, directory: &Path) -> Result<Vec<Figure>> {
    std::fs::create_dir_all(directory)?;
    let bridge = tools::from_package("/usr/lib/cni/bridge", "containernetworking-plugins")?;
    let reference_plugins = bridge.parent().ok_or("no directory")?.to_owned();
    let our_plugins = tools::plugin_directory(&directory.join("bin"))?;
    let contenders = [
        Contender::new(&directory.join("go"), reference_plugins, bridge_config(&directory.join("go")))?,
        Contender::new(&directory.join("bridge"), our_plugins.clone(), bridge_config(&directory.join("bridge")))?,
        Contender::new(&directory.join("native"), our_plugins.clone(), native_config(&directory.join("native"))?)?,
    ];
    let mut times: [Times; 3] = Default::default();
    for round in 0..wishes.times(100) {
        for (contender, times) in contenders.iter().zip(&mut times) {
            sequential(contender, times, round)?;
        }
    }
    for round in 0..wishes.times(10) {
        for (contender, times) in contenders.iter().zip(&mut times) {
            parallel(contender, times, round)?;
        }
    }
    let [go, ours, native] = &times;
    let mut figures = Vec::new();
    for (name, times) in [("bridge + host-local", ours), ("flannel-rs", native)] {
        let mut add = |what: &str, percent: usize, of: fn(&Times) -> &Sample, wanted: Option<f64>| {
            let figure = Figure::time(format!("{name}: {what}"), of(times).percentile(percent));
            let figure = figure.beside(of(go).percentile(percent));
            figures.push(wanted.map_or(figure.clone(), |wanted| figure.wanted(wanted)));
        };
        add("ADD, p50", 50, |times| &times.add, Some(0.25));
        add("ADD, p99", 99, |times| &times.add, None);
        add("DEL, p50", 50, |times| &times.del, Some(0.1));
        add("DEL, p99", 99, |times| &times.del, None);
        add("ADD, 16 in parallel, per operation", 50, |times| &times.add_parallel, None);
        add("DEL, 16 in parallel, per operation", 50, |times| &times.del_parallel, None);
    }
    figures.push(version(wishes, &bridge, &our_plugins.join("bridge"))?);
    Ok(figures)
}

/// The call of the plugin alone: no chain, no cached result.
fn call(contender: &Contender, verb: &str, attachment: &Attachment) -> Result<()> {
    let output = contender.runtime.call(&[], verb, &contender.network, attachment)?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{verb}: {}", String::from_utf8_lossy(&output.stdout)).into())
}

fn sequential(contender: &Contender, times: &mut Times, round: usize) -> Result<()> {
    let pod = contender.pods.first().ok_or("no namespace")?;
    let attachment = Attachment::eth0(format!("sequential{round}"), pod.path());
    times.add.measure(|| call(contender, "ADD", &attachment))?;
    times.del.measure(|| call(contender, "DEL", &attachment))
}

fn parallel(contender: &Contender, times: &mut Times, round: usize) -> Result<()> {
    let attachment = |(number, pod): (usize, &Netns)| Attachment::eth0(format!("p{round}x{number}"), pod.path());
    let attachments: Vec<Attachment> = contender.pods.iter().enumerate().map(attachment).collect();
    at_once(&mut times.add_parallel, &attachments, |attachment| call(contender, "ADD", attachment))?;
    at_once(&mut times.del_parallel, &attachments, |attachment| call(contender, "DEL", attachment))
}

/// Adds the time per operation when all run at once.
fn at_once(
    sample: &mut Sample,
    attachments: &[Attachment],
    work: impl Fn(&Attachment) -> Result<()> + Sync,
) -> Result<()> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let running: Vec<_> = attachments.iter().map(|attachment| scope.spawn(|| work(attachment))).collect();
        running.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })?;
    sample.add(start.elapsed() / u32::try_from(attachments.len())?);
    Ok(())
}

/// From start to exit of an executable that only says which versions it knows.
fn version(wishes: Wishes, reference: &Path, ours: &Path) -> Result<Figure> {
    let mut samples: [Sample; 2] = Default::default();
    for _ in 0..wishes.times(300) {
        for (executable, sample) in [reference, ours].into_iter().zip(&mut samples) {
            sample.measure(|| {
                let mut command = Command::new(executable);
                command.env_clear().env("CNI_COMMAND", "VERSION").stdin(Stdio::null()).stdout(Stdio::null());
                let status = command.status()?;
                if status.success() { Ok(()) } else { Err(format!("{}: {status}", executable.display()).into()) }
            })?;
        }
    }
    let [reference, ours] = samples;
    Ok(Figure::time("VERSION, start to exit, p50", ours.median()).beside(reference.median()).wanted(0.5))
}

fn bridge_config(directory: &Path) -> Value {
    json!({
        "type": "bridge", "bridge": "cbr0", "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "mtu": 1450,
        "ipam": {
            "type": "host-local",
            "dataDir": directory.join("networks"),
            "ranges": [[{"subnet": "10.88.0.0/16"}]],
        },
    })
}

fn native_config(directory: &Path) -> Result<Value> {
    std::fs::create_dir_all(directory)?;
    let file = directory.join("subnet.env");
    let lines = "FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET=10.88.0.1/16\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    std::fs::write(&file, lines)?;
    Ok(json!({
        "type": "flannel-rs", "bridge": "cbr0", "subnetFile": file, "dataDir": directory.join("networks"),
    }))
}
