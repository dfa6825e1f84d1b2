//! The demonstration: a cluster comes up, everybody talks to everybody, something breaks and heals.

mod faults;
mod report;
mod show;

pub use report::{Fault, Meeting, NodeRow, PodRow, Report, Throughput};

use crate::cluster::{Backend, Cluster, Settings, Store};
use crate::probe;
use crate::{Result, eventually};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// How many nodes a demonstration may have: they share one machine.
const MOST_NODES: usize = 50;
/// Pods on each node.
const PODS: usize = 2;
/// How long one question may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long data is sent to measure the throughput.
const THROUGHPUT_TIME: Duration = Duration::from_secs(2);

/// What to show.
#[derive(Clone, Debug, clap::Args)]
pub struct Wishes {
    /// Number of nodes
    #[arg(long, env = "NODES", default_value_t = 3)]
    pub nodes: usize,
    /// How packets travel between nodes: vxlan, host-gw or udp
    #[arg(long, env = "BACKEND", default_value = "vxlan")]
    pub backend: Backend,
    /// Where leases are kept: file, etcd or kube
    #[arg(long, env = "STORE", default_value = "file")]
    pub store: Store,
    /// Leave the cluster running until Ctrl-C, and say how to look into it
    #[arg(long)]
    pub keep: bool,
    /// How to print the result: text or json
    #[arg(long, default_value = "text")]
    pub output: Output,
}

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// tables for people
    Text,
    /// one JSON object
    Json,
}

/// Tells people on standard error what goes on, with the time since the start.
#[derive(Debug)]
struct Progress {
    start: Instant,
    colours: bool,
}

impl Progress {
    fn say(&self, text: &str) {
        let time = format!("{:7.2} s", self.start.elapsed().as_secs_f64());
        if self.colours {
            eprintln!("\x1b[2m{time}\x1b[0m  {text}");
        } else {
            eprintln!("{time}  {text}");
        }
    }
}

/// Runs the demonstration with its files in `directory`; the result goes to standard output.
pub fn run(wishes: &Wishes, directory: &Path) -> Result<()> {
    if !(1..=MOST_NODES).contains(&wishes.nodes) {
        return Err(format!("{} nodes: the demo runs with 1 to {MOST_NODES}", wishes.nodes).into());
    }
    let progress = Progress { start: Instant::now(), colours: std::io::stderr().is_terminal() };
    let mut cluster = build(wishes, directory, &progress)?;
    let mut report =
        Report { backend: wishes.backend.to_string(), store: wishes.store.to_string(), ..Report::default() };
    report.introduce(&cluster)?;
    progress.say("every pod asks every pod");
    report.meetings = meet(&cluster);
    if wishes.nodes > 1 {
        progress.say("sending from the first node to the second as fast as it goes");
        report.throughput = Some(throughput(&cluster)?);
        report.faults = faults::run(&mut cluster, wishes.backend, &|text| progress.say(text))?;
    }
    let mut output = std::io::stdout();
    match wishes.output {
        Output::Json => serde_json::to_writer_pretty(&mut output, &report)?,
        Output::Text => write!(output, "{}", report.text(output.is_terminal()))?,
    }
    writeln!(output)?;
    if wishes.keep {
        eprint!("{}", show::how_to_look_inside(&cluster));
        loop {
            std::thread::park();
        }
    }
    report.verdict()
}

fn build(wishes: &Wishes, directory: &Path, progress: &Progress) -> Result<Cluster> {
    progress.say(&format!("a cluster of {} nodes, {}, leases in {}", wishes.nodes, wishes.backend, wishes.store));
    let mut cluster = Cluster::new(&Settings::new(wishes.backend, wishes.store), directory)?;
    for _ in 0..wishes.nodes {
        cluster.add_node()?.start_daemon()?;
    }
    for node in &mut cluster.nodes {
        node.wait_ready()?;
        let subnet = node.subnet_file()?.remove("FLANNEL_SUBNET").unwrap_or_default();
        progress.say(&format!("{} ({}) is ready, its pods live in {subnet}", node.host.name, node.host.address));
    }
    for node in &mut cluster.nodes {
        for number in 1..=PODS {
            let pod = node.add_pod(&format!("{}-pod{number}", node.host.name))?;
            progress.say(&format!("{} got {}", pod.name, pod.address));
        }
    }
    Ok(cluster)
}

/// Every pod asks every pod, itself included.
fn meet(cluster: &Cluster) -> Vec<Meeting> {
    let pairs = cluster.pods().flat_map(|from| cluster.pods().map(move |to| (from, to)));
    pairs
        .map(|(from, to)| {
            // The first packet of a pair resolves neighbours on the way: the second is the measurement.
            let first = eventually(ANSWER_LIMIT, || probe::ask(from.sandbox.network(), to.address, ANSWER_LIMIT));
            let answer = first.and_then(|_| probe::ask(from.sandbox.network(), to.address, ANSWER_LIMIT));
            Meeting::of(from, to, &answer)
        })
        .collect()
}

fn throughput(cluster: &Cluster) -> Result<Throughput> {
    let [first, second, ..] = cluster.nodes.as_slice() else { return Err("two nodes are needed".into()) };
    let (from, to) = (first.pods.first().ok_or("no pod")?, second.pods.first().ok_or("no pod")?);
    let bits_per_second = probe::throughput(from.sandbox.network(), to.address, THROUGHPUT_TIME)?;
    Ok(Throughput { from: from.name.clone(), to: to.name.clone(), bits_per_second })
}
