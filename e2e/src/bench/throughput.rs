//! How much one TCP stream between pods of two nodes carries, by backend. Both nodes, both pods and the measurement share
//! the processors of one machine.

use super::{Figure, Sample, Wishes};
use crate::cluster::{Backend, Cluster, Settings, Store};
use crate::probe::{ask, throughput};
use crate::{Result, eventually};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// How long data is sent in one measurement.
const TIME: Duration = Duration::from_secs(2);
/// How long the first packet may take.
const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn measure(wishes: &Wishes, directory: &Path) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for backend in [Backend::HostGw, Backend::Vxlan, Backend::WireGuard, Backend::Udp] {
        let directory = directory.join(backend.to_string());
        fs::create_dir_all(&directory)?;
        let cluster = Cluster::start(&Settings::new(backend, Store::File), &directory, 2, 1)?;
        let [first, second] = cluster.nodes.as_slice() else { return Err("two nodes are needed".into()) };
        let (from, to) = (first.pods.first().ok_or("no pod")?, second.pods.first().ok_or("no pod")?);
        eventually(LIMIT, || ask(from.sandbox.network(), to.address, Duration::from_millis(200)))?;
        let mut gigabits = Sample::default();
        for _ in 0..wishes.times(5) {
            let bits = throughput(from.sandbox.network(), to.address, TIME)?;
            // A sample keeps times, in milliseconds.
            gigabits.add(Duration::from_secs_f64(bits / 1e12));
        }
        let what = format!("one TCP stream between pods of two nodes, {backend}");
        let note = if backend == Backend::WireGuard && kernel::wireguard::WireGuard::open()?.is_none() {
            "encrypted by the daemons; all of it on one machine"
        } else {
            "all of it on one machine; more is better"
        };
        figures.push(Figure { unit: "Gbit/s", ..Figure::time(what, gigabits.median()) }.note(note));
    }
    Ok(figures)
}
