//! What the figures were measured on, and beside what.

use crate::Result;
use std::fs;

/// How busy the machine is otherwise, in one sentence.
pub(super) fn load() -> Result<String> {
    let load = fs::read_to_string("/proc/loadavg")?;
    let minute = load.split_whitespace().next().unwrap_or_default();
    Ok(format!("Load average of the minute before: {minute}."))
}

/// Processor, memory, kernel and distribution, in one sentence.
pub(super) fn description() -> Result<String> {
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let value = |text: &str, key: &str, separator: char| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
        line.split_once(separator).map(|(_, value)| value.trim().trim_matches('"').to_owned()).unwrap_or_default()
    };
    let count = processors.lines().filter(|line| line.starts_with("processor")).count();
    let memory = value(&fs::read_to_string("/proc/meminfo")?, "MemTotal", ':');
    let gigabytes = memory.trim_end_matches(" kB").parse::<u64>().unwrap_or_default() >> 20;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let system = value(&fs::read_to_string("/etc/os-release").unwrap_or_default(), "PRETTY_NAME", '=');
    Ok(format!(
        "Machine: {count} x {}, {gigabytes} GiB of memory, Linux {}, {system}.",
        value(&processors, "model name", ':'),
        kernel.trim()
    ))
}
