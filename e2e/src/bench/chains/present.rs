//! Chains with host ports where many pods have theirs already.

use super::shapes::{native_whole, side, with_ports};
use super::side::{Side, node, ports};
use super::{Plugins, Pods, Times, one_by_one};
use crate::bench::{Figure, Wishes};
use crate::runner::{Attachment, Network};
use crate::{Result, tools};
use kernel::netns::Netns;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

/// Those who are there have the numbers from here on; those who are measured the ones before.
const FIRST: usize = 100;

pub(super) fn measure(wishes: &Wishes, plugins: &Plugins, pods: &Pods, directory: &Path) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut alone = None;
    for count in [0].into_iter().chain(wishes.present.iter().copied()) {
        let directory = directory.join(count.to_string());
        let (theirs, ours) = (node()?, node()?);
        let theirs = side(&theirs, &directory.join("theirs"), &plugins.theirs, with_ports)?;
        // Both of ours have their ports in the same tables and files.
        let chained = side(&ours, &directory.join("ours"), &plugins.ours, with_ports)?;
        let native = side(&ours, &directory.join("ours"), &plugins.ours, native_whole)?;
        fill_ours(&chained, &directory.join("ours"), count)?;
        fill_theirs(&theirs, pods, count)?;
        let mut times: [Times; 3] = Default::default();
        // The reference takes seconds for each among many.
        let seldom = wishes.times(if count > 2000 { 2 } else { 5 });
        for round in 0..wishes.times(20) {
            let sides = [(&chained, true), (&native, true), (&theirs, round < seldom)];
            for ((side, wanted), times) in sides.into_iter().zip(&mut times) {
                if wanted {
                    one_by_one(side, pods, round, times)?;
                }
            }
        }
        let [chained, native, theirs] = &times;
        let first = alone.get_or_insert([chained.add.median(), native.add.median()]);
        for ((name, times), first) in [("bridge + portmap", chained), ("flannel-rs", native)].into_iter().zip(first) {
            let growth = times.add.median() / *first;
            let named = |verb: &str| format!("{name}, 3 ports, beside the ports of {count} pods: {verb}");
            let add = Figure::time(named("ADD"), times.add.median()).beside(theirs.add.median());
            figures.push(add.note(format!("{growth:.2} x its own time beside none")));
            figures.push(Figure::time(named("DEL"), times.del.median()).beside(theirs.del.median()));
        }
    }
    Ok(figures)
}

fn name(number: usize) -> String {
    format!("present{number}")
}

fn address(number: usize) -> Result<Ipv4Addr> {
    Ok(Ipv4Addr::from(u32::from_be_bytes([10, 88, 1, 0]) + u32::try_from(number)?))
}

/// Has our portmap publish the ports of pods, of which nothing else is there.
fn fill_ours(side: &Side, directory: &Path, count: u32) -> Result<()> {
    for number in (FIRST..).take(usize::try_from(count)?) {
        let result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "mac": "0a:58:00:00:00:01", "sandbox": "/proc/self/ns/net"}],
            "ips": [{"interface": 0, "address": format!("{}/16", address(number)?), "gateway": "10.88.0.1"}],
        });
        let portmap = json!({
            "type": "portmap", "hostPortsDir": directory.join("ports"), "runtimeConfig": {"portMappings": ports(number)},
            "prevResult": result,
        });
        let network = Network::new(json!({"cniVersion": "1.0.0", "name": "net1", "plugins": [portmap]}))?;
        let attachment = Attachment::eth0(name(number), "/proc/self/ns/net");
        let output = side.runtime.call(&[], "ADD", &network, &attachment)?;
        if !output.status.success() {
            return Err(format!("portmap: {}", String::from_utf8_lossy(&output.stdout)).into());
        }
    }
    Ok(())
}

/// Adds the rules that the reference portmap would have made, behind those that it does make for one pod.
fn fill_theirs(side: &Side, pods: &Pods, count: u32) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let pod = pods.0.first().ok_or("no namespace")?;
    let first = Side::attachment("first".into(), 0, pod);
    side.add(&first)?;
    let mut rules = String::from("*nat\n");
    let numbers = || (FIRST..).take(count as usize);
    for number in numbers() {
        writeln!(rules, ":CNI-DN-{number:021} - [0:0]")?;
    }
    for number in numbers() {
        let (name, address) = (name(number), address(number)?);
        let mappings = ports(number);
        let mappings: Vec<&Value> = mappings.as_array().into_iter().flatten().collect();
        let host_ports: Vec<String> = mappings.iter().map(|mapping| mapping["hostPort"].to_string()).collect();
        let comment = format!("dnat name: \\\"net1\\\" id: \\\"{name}\\\"");
        writeln!(
            rules,
            "-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"{comment}\" -m multiport --dports {} -j CNI-DN-{number:021}",
            host_ports.join(",")
        )?;
        for mapping in mappings {
            let (outer, inner) = (&mapping["hostPort"], &mapping["containerPort"]);
            for source in ["10.88.0.0/16", "127.0.0.1/32"] {
                writeln!(
                    rules,
                    "-A CNI-DN-{number:021} -s {source} -p tcp -m tcp --dport {outer} -j CNI-HOSTPORT-SETMARK"
                )?;
            }
            writeln!(
                rules,
                "-A CNI-DN-{number:021} -p tcp -m tcp --dport {outer} -j DNAT --to-destination {address}:{inner}"
            )?;
        }
    }
    rules.push_str("COMMIT\n");
    restore(&side.runtime.node, &rules)?;
    side.del(&first)
}

fn restore(node: &Netns, rules: &str) -> Result<()> {
    let tool = tools::from_package("/usr/sbin/iptables-restore", "iptables")?;
    let mut child = {
        let _inside = node.enter()?;
        Command::new(tool).arg("--noflush").stdin(Stdio::piped()).spawn()?
    };
    child.stdin.take().ok_or("no pipe")?.write_all(rules.as_bytes())?;
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(format!("iptables-restore: {status}").into()) }
}
