//! Every fault, in both families: how long until all is well, and how many packets it cost.

use super::{Figure, Sample, Wishes};
use crate::Result;
use crate::cluster::{Backend, Cluster, Families, Settings, Store};
use crate::faults::{Fault, Victim, family_name};
use std::path::Path;

pub(super) fn measure(wishes: &Wishes, directory: &Path) -> Result<Vec<Figure>> {
    let (mut figures, mut all) = (Vec::new(), Sample::default());
    for backend in [Backend::Vxlan, Backend::HostGw] {
        let directory = directory.join(backend.to_string());
        std::fs::create_dir_all(&directory)?;
        let settings = Settings::new(backend, Store::File).with(Families::Dual);
        let mut victim = Victim::new(Cluster::start(&settings, &directory, 2, 1)?, backend);
        for fault in Fault::ALL.into_iter().filter(|fault| fault.applies(backend, Store::File)) {
            for v6 in [false, true] {
                let (mut healed, mut lost, mut bare) = (Sample::default(), Vec::new(), Vec::new());
                for _ in 0..wishes.times(5) {
                    let outcome = victim.suffer(fault, v6)?;
                    healed.add(outcome.healed);
                    all.add(outcome.healed);
                    lost.push(outcome.struck.lost);
                    bare.extend(outcome.bare.map(|bare| bare.lost));
                }
                let worst = healed.percentile(100);
                let lost = median(lost).unwrap_or_default();
                let beside = median(bare).map(|bare| format!(" ({bare} beside the tunnel)")).unwrap_or_default();
                let note = format!("worst {worst:.2} ms; {lost} packets lost of 1000 per second{beside}, p50");
                let what = format!("{backend}, {}: {fault}, to heal, p50", family_name(v6));
                figures.push(Figure::time(what, healed.median()).note(note));
            }
        }
    }
    let note = format!("worst {:.2} ms; wanted: 250 ms at the median, 2 s at worst", all.percentile(100));
    figures.push(Figure::time("all faults: to heal, p50", all.median()).note(note));
    Ok(figures)
}

fn median(mut counts: Vec<usize>) -> Option<usize> {
    counts.sort_unstable();
    counts.get(counts.len() / 2).copied()
}
