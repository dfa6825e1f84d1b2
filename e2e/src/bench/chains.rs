//! ADD and DEL of whole chains as a container runtime pays for them, ours beside the reference's, and the mere start of the
//! executable.

mod crowd;
mod present;
mod shapes;
mod side;

use super::{Figure, Sample, Wishes};
use crate::{Result, tools};
use kernel::netns::Netns;
use shapes::Shape;
use side::Side;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How many ADDs or DELs run at once, beside one at a time.
const CROWDS: [usize; 3] = [4, 16, 64];

/// Pods' namespaces. These are used again and again, by all sides in turn: the kernel's slow removal of a namespace would be
/// paid by whoever is measured next. The last two have a pod of each side all the time.
struct Pods(Vec<Netns>);

/// The directories of both sides' executables.
struct Plugins {
    theirs: PathBuf,
    ours: PathBuf,
}

pub(super) fn measure(wishes: &Wishes, directory: &Path) -> Result<Vec<Figure>> {
    let bridge = tools::from_package("/usr/lib/cni/bridge", "containernetworking-plugins")?;
    let theirs = bridge.parent().ok_or("no directory")?.to_owned();
    let plugins = Plugins { theirs, ours: tools::plugin_directory(&directory.join("bin"))? };
    let most = CROWDS.into_iter().max().unwrap_or(1);
    let pods = Pods((0..most + 2).map(|_| Ok(Netns::create()?)).collect::<Result<_>>()?);
    let mut figures = Vec::new();
    for shape in Shape::all() {
        eprintln!("  {}", shape.name);
        figures.extend(one_shape(wishes, &shape, &plugins, &pods, &directory.join(shape.key))?);
    }
    eprintln!("  beside the ports of others");
    figures.extend(present::measure(wishes, &plugins, &pods, &directory.join("present"))?);
    figures.push(version(wishes, &bridge, &plugins.ours.join("bridge"))?);
    Ok(figures)
}

/// One chain of ours beside theirs, one at a time and in crowds.
fn one_shape(wishes: &Wishes, shape: &Shape, plugins: &Plugins, pods: &Pods, directory: &Path) -> Result<Vec<Figure>> {
    let (theirs, ours) = shape.sides(plugins, directory)?;
    // On an empty node, the first pod brings the bridge up, and the last one takes directories along.
    let [.., first, second] = pods.0.as_slice() else { return Err("too few namespaces".into()) };
    let residents = [(&theirs, first), (&ours, second)];
    let residents = residents.map(|(side, pod)| (side, Side::attachment("resident".into(), pods.0.len(), pod)));
    residents.iter().try_for_each(|(side, resident)| side.add(resident))?;
    let mut times: [Times; 2] = Default::default();
    let (mut probe, mut probe_processor) = (Sample::default(), Sample::default());
    for round in 0..wishes.times(shape.rounds) {
        for (side, times) in [&theirs, &ours].into_iter().zip(&mut times) {
            one_by_one(side, pods, round, times)?;
        }
        if shape.probed {
            side::probe(&ours.runtime.node, pods, |bare| probe.measure_both(&mut probe_processor, bare))?;
        }
    }
    let [reference, own] = &times;
    let mut figures = Vec::new();
    type Of = fn(&Times) -> &Sample;
    let mut both = |verb: &str, wall: Of, processor: Of, wanted: f64| {
        let (ours, theirs) = (processor(own).median(), processor(reference).median());
        let note = format!(
            "p99: {:.2} beside {:.2} ms; processor: {ours:.2} beside {theirs:.2} ms ({:.3})",
            wall(own).percentile(99),
            wall(reference).percentile(99),
            ours / theirs
        );
        let figure = Figure::time(format!("{}: {verb}, p50", shape.name), wall(own).median());
        figures.push(figure.beside(wall(reference).median()).wanted(wanted).note(note));
    };
    both("ADD", |times| &times.add, |times| &times.add_processor, shape.wanted_add);
    both("DEL", |times| &times.del, |times| &times.del_processor, shape.wanted_del);
    if shape.probed {
        let figure = Figure::time(format!("{}: ADD beside the bare kernel work", shape.name), own.add.median());
        let (ours, bare) = (own.add_processor.median(), probe_processor.median());
        let note = format!(
            "beside kernel/examples/attach.rs, a process too; processor: {ours:.2} beside {bare:.2} ms ({:.3})",
            ours / bare
        );
        figures.push(figure.beside(probe.median()).wanted(1.3).note(note));
    }
    for size in CROWDS.into_iter().filter(|_| shape.crowded) {
        figures.extend(crowd::measure(wishes, shape, [&theirs, &ours], pods, size)?);
    }
    residents.iter().try_for_each(|(side, resident)| side.del(resident))?;
    Ok(figures)
}

#[derive(Default)]
struct Times {
    add: Sample,
    del: Sample,
    add_processor: Sample,
    del_processor: Sample,
}

fn one_by_one(side: &Side, pods: &Pods, round: usize, times: &mut Times) -> Result<()> {
    let pod = pods.0.first().ok_or("no namespace")?;
    let attachment = Side::attachment(format!("alone{round}"), 0, pod);
    times.add.measure_both(&mut times.add_processor, || side.add(&attachment))?;
    times.del.measure_both(&mut times.del_processor, || side.del(&attachment))
}

/// From start to exit of an executable that only says which versions it knows.
fn version(wishes: &Wishes, reference: &Path, ours: &Path) -> Result<Figure> {
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
