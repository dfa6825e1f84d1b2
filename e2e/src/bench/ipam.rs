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

pub(super) fn measure(wishes: &Wishes, directory: &Path) -> Result<Vec<Figure>> {
    fs::create_dir_all(directory)?;
    let reference = tools::from_package("/usr/lib/cni/host-local", "containernetworking-plugins")?;
    let ours = tools::plugin_directory(&directory.join("bin"))?.join("host-local");
    let mut figures = Vec::new();
    let mut at_hundred = None;
    for count in [100, 1_000, 10_000, 60_000] {
        let mut medians = Vec::new();
        for (name, executable) in [("go", &reference), ("rs", &ours)] {
            let data = directory.join(format!("{name}-{count}"));
            reserve(&data, count)?;
            let (mut add, mut del) = (Sample::default(), Sample::default());
            // The first one of ours reads the directory that it has not written.
            call(executable, &data, "ADD", "first")?;
            // The reference takes half a second for each among many.
            let rounds = if name == "go" && count > 5_000 { 10 } else { 50 };
            for round in 0..wishes.times(rounds) {
                let id = format!("measured{round}");
                add.measure(|| call(executable, &data, "ADD", &id))?;
                del.measure(|| call(executable, &data, "DEL", &id))?;
            }
            medians.push((add.median(), del.median()));
            fs::remove_dir_all(&data)?;
        }
        let [(go_add, go_del), (add, del)] = medians.as_slice() else { return Err("two contenders".into()) };
        let own_growth = *add / *at_hundred.get_or_insert(*add);
        let note = format!("{own_growth:.2} x its own time at 100 (wanted: at most 2)");
        figures
            .push(Figure::time(format!("host-local ADD beside {count} reservations"), *add).beside(*go_add).note(note));
        figures.push(Figure::time(format!("host-local DEL beside {count} reservations"), *del).beside(*go_del));
    }
    Ok(figures)
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
