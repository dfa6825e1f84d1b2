//! The benchmark: each figure beside that of Debian's reference plugins, measured alternately in the same run, so that a
//! busy machine slows both.

mod chains;
mod daemon;
mod faults;
mod footprint;
mod ipam;
mod machine;
mod overlay;
mod sample;
mod throughput;

use crate::Result;
use crate::table::Table;
use sample::Sample;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two parts: the kernel removes namespaces, and writes files back, after their last user is gone, and nothing
/// tells when it is done.
const SETTLE: Duration = Duration::from_secs(3);

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Wishes {
    /// Write the result into e2e/BENCHMARKS.md as well
    #[arg(long)]
    pub write: bool,
    /// Measure less often: for a first impression
    #[arg(long)]
    pub quick: bool,
    /// Measure only these parts: addresses, chains, daemon, faults, throughput, kernel
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Beside so many pods' ports each chain with host ports is measured
    #[arg(long, value_delimiter = ',', default_value = "1000,5000")]
    pub present: Vec<u32>,
}

impl Wishes {
    /// How often something is measured that is normally measured `usual` times.
    fn times(&self, usual: usize) -> usize {
        if self.quick { usual.div_ceil(5) } else { usual }
    }
}

/// One line of the result.
#[derive(Clone, Debug, PartialEq)]
struct Figure {
    what: String,
    /// the reference's time, if there is one to compare with
    reference: Option<f64>,
    ours: f64,
    unit: &'static str,
    /// the largest ratio of ours to the reference that is wanted
    wanted: Option<f64>,
    /// the largest value of ours that is wanted
    most: Option<f64>,
    note: String,
}

impl Figure {
    /// Our own time, in milliseconds.
    fn time(what: impl Into<String>, ours: f64) -> Self {
        Figure { what: what.into(), reference: None, ours, unit: "ms", wanted: None, most: None, note: String::new() }
    }

    fn beside(self, reference: f64) -> Self {
        Figure { reference: Some(reference), ..self }
    }

    fn wanted(self, ratio: f64) -> Self {
        Figure { wanted: Some(ratio), ..self }
    }

    /// It is to be less than this.
    fn below(self, most: f64) -> Self {
        Figure { most: Some(most), ..self }
    }

    fn note(self, note: impl Into<String>) -> Self {
        Figure { note: note.into(), ..self }
    }

    fn row(&self) -> [String; 6] {
        let number = |value: f64| format!("{value:.2} {}", self.unit);
        let ratio = self.reference.map(|reference| self.ours / reference);
        let judged = match (ratio, self.wanted, self.most) {
            (Some(ratio), Some(wanted), _) if ratio <= wanted => format!("≤ {wanted:.2}: met"),
            (Some(_), Some(wanted), _) => format!("≤ {wanted:.2}: MISSED"),
            (_, _, Some(most)) if self.ours < most => format!("< {most} {}: met", self.unit),
            (_, _, Some(most)) => format!("< {most} {}: MISSED", self.unit),
            _ => String::new(),
        };
        [
            self.what.clone(),
            self.reference.map(number).unwrap_or_default(),
            number(self.ours),
            ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default(),
            judged,
            self.note.clone(),
        ]
    }
}

/// Measures everything with files in `directory`, prints the table, and writes it if wished.
pub fn run(wishes: &Wishes, directory: &Path) -> Result<()> {
    type Part<'a> = &'a dyn Fn() -> Result<Vec<Figure>>;
    let parts: [(&str, &str, Part<'_>); 6] = [
        ("addresses", "address allocation", &|| ipam::measure(wishes, &directory.join("ipam"))),
        ("chains", "the CNI executable", &|| chains::measure(wishes, &directory.join("chains"))),
        ("daemon", "the daemon", &|| daemon::measure(wishes, &directory.join("daemon"))),
        ("throughput", "throughput by backend", &|| throughput::measure(wishes, &directory.join("throughput"))),
        ("faults", "faults", &|| faults::measure(wishes, &directory.join("faults"))),
        ("kernel", "programming the kernel", &|| overlay::measure(wishes)),
    ];
    let load = machine::load()?;
    let mut figures = Vec::new();
    for (key, name, measure) in parts {
        if wishes.only.is_empty() || wishes.only.iter().any(|only| only == key) {
            std::thread::sleep(SETTLE);
            eprintln!("measuring {name}");
            figures.extend(measure()?);
        }
    }
    let text = document(&figures, &load)?;
    std::io::stdout().write_all(text.as_bytes())?;
    if wishes.write {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("BENCHMARKS.md");
        std::fs::write(&path, text).map_err(|error| format!("writing {}: {error}", path.display()))?;
    }
    Ok(())
}

fn document(figures: &[Figure], load: &str) -> Result<String> {
    let mut table = Table::new(["measurement", "reference", "ours", "ratio", "wanted", "note"]);
    for figure in figures {
        table.row(figure.row());
    }
    Ok(format!(
        "# Benchmarks\n\n{} {load}\n\nWritten by `make bench ARGS=--write`. The reference is Debian's package \
         containernetworking-plugins, measured alternately with ours in the same run; the ratio is ours to the reference's, \
         smaller is better. Its portmap uses iptables, as kube-flannel has it. \"At once\" is the time until all are done, \
         divided by their number. Processor time is that of the processes themselves, without what the kernel does later on its \
         own account: on a busy machine it tells more than the wall clock, which counts whoever else had the processors, the \
         RTNL, and RCU. All files are on a tmpfs.\n\n{}",
        machine::description()?,
        table.markdown()
    ))
}
