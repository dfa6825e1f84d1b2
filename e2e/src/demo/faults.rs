//! Breaking things behind the daemon's back while packets flow.

use super::Fault;
use crate::cluster::{Backend, Cluster};
use crate::stream::Stream;
use crate::{Result, eventually, probe};
use kernel::netlink::{Netlink, RouteSpec};
use kernel::netns::Netns;
use std::net::IpAddr;
use std::time::Duration;

/// One request per millisecond.
const INTERVAL: Duration = Duration::from_millis(1);
/// The daemon of a healthy node heals well within this.
const HEAL_LIMIT: Duration = Duration::from_secs(10);

/// Each fault in turn, under a stream from the first node's first pod to the second node's.
pub(super) fn run(cluster: &mut Cluster, backend: Backend, say: &dyn Fn(&str)) -> Result<Vec<Fault>> {
    say("killing the daemon of node1 (SIGKILL) under a stream of 1000 packets per second, and starting it again");
    let crash = during(cluster, "daemon killed and restarted", |cluster, _, _| {
        let node = cluster.nodes.first_mut().ok_or("no node")?;
        node.kill_daemon()?;
        node.start_daemon()?;
        node.wait_ready()
    })?;
    let what = match backend {
        Backend::Vxlan => "flannel.1 deleted",
        Backend::HostGw => "route deleted",
        Backend::Udp => "flannel0 deleted",
        Backend::WireGuard => "flannel-wg deleted",
    };
    say(&format!("{what} on node1 behind the daemon's back, under the same stream"));
    let device = during(cluster, what, |cluster, pod, target| {
        let node = cluster.nodes.first().ok_or("no node")?;
        match backend {
            Backend::Vxlan => delete_device(&node.host.network, "flannel.1")?,
            Backend::WireGuard => delete_device(&node.host.network, "flannel-wg")?,
            Backend::HostGw => delete_route(&node.host.network, target)?,
            Backend::Udp => delete_device(&node.host.network, "flannel0")?,
        }
        eventually(HEAL_LIMIT, || probe::ask(pod, target, Duration::from_millis(100)).map(|_| ()))
    })?;
    Ok(vec![crash, device])
}

fn during(
    cluster: &mut Cluster,
    what: &str,
    work: impl FnOnce(&mut Cluster, &Netns, IpAddr) -> Result<()>,
) -> Result<Fault> {
    let [first, second, ..] = cluster.nodes.as_slice() else { return Err("two nodes are needed".into()) };
    let (from, to) = (first.pods.first().ok_or("no pod")?, second.pods.first().ok_or("no pod")?);
    let (network, target) = (from.sandbox.network().try_clone()?, to.address);
    let stream = Stream::start(&network, target, INTERVAL)?;
    work(cluster, &network, target)?;
    // A little more, so that what comes after the fault is seen too.
    stream.wait_for_answers(300)?;
    let report = stream.stop()?;
    let outage_ms = report.longest_outage.as_secs_f64() * 1000.0;
    Ok(Fault { what: what.into(), sent: report.sent, lost: report.lost, outage_ms })
}

fn delete_device(node: &Netns, name: &str) -> Result<()> {
    match Netlink::open_in(node)?.delete_link(name)? {
        true => Ok(()),
        false => Err(format!("there is no {name} to delete").into()),
    }
}

fn delete_route(node: &Netns, target: IpAddr) -> Result<()> {
    let mut netlink = Netlink::open_in(node)?;
    let towards = netlink.routes()?.into_iter().filter(|route| route.via.is_some() && route.dst.contains(target));
    let route = towards.max_by_key(|route| route.dst.prefix()).ok_or("there is no route to delete")?;
    netlink.delete_route(&RouteSpec { dst: route.dst, via: route.via, protocol: 0, ..RouteSpec::default() })?;
    Ok(())
}
