//! Allocation beside many reservations.

use super::{Figure, Sample, Wishes};
use crate::{Result, tools};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// First reservation.
const FIRST: u32 = u32::from_be_bytes([10, 64, 0, 2]);
/// How many reservations there are beside the measured one.
const COUNTS: [u32; 4] = [100, 1_000, 10_000, 60_000];

/// A directory with many reservations, and whose plugin is called for it.
struct Ledger {
    count: u32,
    is_reference: bool,
    data: PathBuf,
    add: Times,
    del: Times,
}

/// By the clock, and of the processors.
#[derive(Default)]
struct Times {
    clock: Sample,
    processor: Sample,
}

impl Times {
    fn measure(&mut self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.clock.measure_both(&mut self.processor, work)
    }
}

/// In turns over all of them: what the machine is busy with besides comes and goes, and must not fall on one of them alone.
pub(super) fn measure(wishes: &Wishes, directory: &Path) -> Result<Vec<Figure>> {
    fs::create_dir_all(directory)?;
    let reference = tools::from_package("/usr/lib/cni/host-local", "containernetworking-plugins")?;
    let ours = tools::plugin_directory(&directory.join("bin"))?.join("host-local");
    let executable = |ledger: &Ledger| if ledger.is_reference { &reference } else { &ours };
    let mut ledgers = Vec::new();
    for count in COUNTS {
        for is_reference in [true, false] {
            let data = directory.join(format!("{}-{count}", if is_reference { "go" } else { "rs" }));
            reserve(&data, count)?;
            let ledger = Ledger { count, is_reference, data, add: Times::default(), del: Times::default() };
            // The first one of ours reads the directory that it has not written.
            call(executable(&ledger), &ledger.data, "ADD", "first")?;
            ledgers.push(ledger);
        }
    }
    let (most, fewer) = (wishes.times(50), wishes.times(10));
    for round in 0..most {
        // The reference takes half a second for each among many.
        for ledger in ledgers.iter_mut().filter(|ledger| round < fewer || !ledger.is_reference || ledger.count < 5_000)
        {
            let (executable, data, id) = (executable(ledger), ledger.data.clone(), format!("measured{round}"));
            ledger.add.measure(|| call(executable, &data, "ADD", &id))?;
            ledger.del.measure(|| call(executable, &data, "DEL", &id))?;
        }
    }
    Ok(ledgers.chunks_exact(2).flat_map(|pair| figures(pair, ledgers.get(1))).collect())
}

/// What a `pair` of the reference's and ours tells, beside ours with the fewest reservations.
fn figures(pair: &[Ledger], fewest: Option<&Ledger>) -> Vec<Figure> {
    let (Some((reference, ours)), Some(fewest)) = (pair.first().zip(pair.get(1)), fewest) else { return Vec::new() };
    let figure = |verb: &str, times: fn(&Ledger) -> &Times| {
        let of = |ledger| (times(ledger).clock.median(), times(ledger).processor.median());
        let ((ours_took, ours_used), (theirs_took, theirs_used)) = (of(ours), of(reference));
        let growth = ours_used / of(fewest).1;
        Figure::time(format!("host-local {verb} beside {} reservations", ours.count), ours_took)
            .beside(theirs_took)
            .note(format!(
                "processor: {ours_used:.2} beside {theirs_used:.2} ms; {growth:.2} x its own at {} (wanted: at most 2)",
                fewest.count
            ))
    };
    vec![figure("ADD", |ledger| &ledger.add), figure("DEL", |ledger| &ledger.del)]
}

/// Writes `count` reservations as host-local does.
fn reserve(data: &Path, count: u32) -> Result<()> {
    let network = data.join("net1");
    fs::create_dir_all(&network)?;
    for number in 0..count {
        let address = Ipv4Addr::from(FIRST + number);
        fs::write(network.join(address.to_string()), format!("container{number}\r\neth0"))?;
    }
    let last = Ipv4Addr::from(FIRST + count - 1);
    Ok(fs::write(network.join("last_reserved_ip.0"), last.to_string())?)
}

fn call(executable: &PathBuf, data: &Path, verb: &str, id: &str) -> Result<()> {
    let config = json!({
        "cniVersion": "1.0.0", "name": "net1", "type": "host-local",
        "ipam": {"type": "host-local", "dataDir": data, "ranges": [[{"subnet": "10.64.0.0/14"}]]},
    });
    let mut command = Command::new(executable);
    command.env_clear().env("CNI_COMMAND", verb).env("CNI_CONTAINERID", id).env("CNI_IFNAME", "eth0");
    command.env("CNI_NETNS", "/proc/self/ns/net").env("CNI_PATH", "/nowhere");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().ok_or("no pipe")?.write_all(config.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{} {verb}: {}", executable.display(), String::from_utf8_lossy(&output.stdout)).into())
}
