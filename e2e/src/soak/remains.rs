//! Everything that plugins leave on a node, as iproute2, nft and the file system tell it: what is there after a crash and
//! one DEL or GC has to be what was there before.

use crate::{Result, tools};
use kernel::netns::Netns;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Lines, each with the number of its occurrences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains(BTreeMap<String, usize>);

impl Remains {
    /// Of the plugins on `node` that have their files in `directory`.
    pub fn on(node: &Netns, directory: &Path) -> Result<Self> {
        let mut remains = Remains::default();
        // The routes of IPv6 come with the devices, some of them late.
        let looks = "link show\nroute show table all\n";
        for line in ask(node, "/sbin/ip", "iproute2", &["-4", "-oneline", "-batch", "-"], looks)?.lines() {
            remains.note(line.trim().into());
        }
        // States come and go, also of those that are to stay.
        for line in ask(node, "/sbin/ip", "iproute2", &["neigh", "show"], "")?.lines() {
            if line.contains(" lladdr ") && !line.starts_with("fe80:") {
                let words: Vec<&str> = line.split(' ').take(5).collect();
                remains.note(format!("{NEIGHBOUR}{}", words.join(" ")));
            }
        }
        for line in ask(node, "/sbin/tc", "iproute2", &["qdisc", "show"], "")?.lines() {
            remains.note(line.trim().into());
        }
        // The elements of a set are listed in no order.
        for part in ask(node, "/usr/sbin/nft", "nftables", &["list", "ruleset"], "")?.split(['\n', '{', '}', ',']) {
            remains.note(format!("nft {}", part.trim().trim_start_matches("elements = ")));
        }
        remains.note_files(directory, "")?;
        Ok(remains)
    }

    fn note(&mut self, line: String) {
        *self.0.entry(line).or_default() += 1;
    }

    fn note_files(&mut self, directory: &Path, within: &str) -> Result<()> {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let (path, shown) = (entry.path(), format!("{within}/{name}"));
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.note(format!("directory {shown}"));
                self.note_files(&path, &shown)?;
            } else if kind.is_symlink() {
                self.note(format!("link {shown} -> {}", std::fs::read_link(&path)?.display()));
            } else if !MAY_BE_THERE.iter().any(|hint| name.starts_with(hint)) {
                self.note(format!("file {shown}: {}", String::from_utf8_lossy(&std::fs::read(&path)?)));
            }
        }
        Ok(())
    }

    /// What `self` has more (+) or less (-) than `before`; none if they are alike.
    pub fn difference(&self, before: &Remains) -> Option<String> {
        let count = |of: &Remains, line: &String| of.0.get(line).copied().unwrap_or_default();
        let more = self.0.keys().filter(|line| count(self, line) > count(before, line)).map(|line| format!("+ {line}"));
        // The kernel forgets neighbours by itself when all namespaces together have many.
        let missing = |line: &&String| count(self, line) < count(before, line) && !line.starts_with(NEIGHBOUR);
        let less = before.0.keys().filter(missing).map(|line| format!("- {line}"));
        let lines: Vec<String> = more.chain(less).collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}

/// What the lines of neighbours begin with.
const NEIGHBOUR: &str = "neighbour ";

/// Hints of the address management that are no reservations: what was given last and lately (see `ipam/src/ledger.rs`).
const MAY_BE_THERE: [&str; 3] = ["last_reserved_ip.", "released", "stamp"];

/// The names of the devices in a pod.
pub fn devices(pod: &Netns) -> Result<Vec<String>> {
    let links = kernel::netlink::Netlink::open_in(pod)?.links()?;
    Ok(links.into_iter().map(|link| link.name).collect())
}

/// Runs a tool in `node` with `input`; what it printed.
fn ask(node: &Netns, path: &str, package: &str, args: &[&str], input: &str) -> Result<String> {
    let executable = tools::from_package(path, package)?;
    let output = node.run(|| {
        let mut command = Command::new(executable);
        let mut child =
            command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()))?;
        child.wait_with_output()
    })??;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout)?);
    }
    Err(format!("{path} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()).into())
}
