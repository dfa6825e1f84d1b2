//! The command line as Go's flag package reads it, since existing units and manifests are written for that: `-name` is `--name`,
//! what follows a flag that has a value is the value, whatever it begins with, the last of several values counts, but where flannel
//! collects them (`--iface`, `--iface-regex`), and an empty one is as none.

use clap::Command;

/// The arguments of the process, first of which is its name, in the one form that means the same to clap.
pub(super) fn arguments(command: &Command, args: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut args = args.into_iter();
    let mut all: Vec<String> = args.next().into_iter().collect();
    while let Some(arg) = args.next() {
        let Some(flag) = flag(&arg) else {
            all.push(arg);
            continue;
        };
        let (name, mut value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let has_value = has_value(command, name);
        if has_value && value.is_none() {
            value = args.next();
        }
        match value {
            Some(value) if value.is_empty() && has_value => {}
            Some(value) => all.push(format!("--{name}={value}")),
            None => all.push(format!("--{name}")),
        }
    }
    all
}

/// What follows the dashes, of what Go would take for a flag; other single letters than its `-v` are not flannel's.
fn flag(arg: &str) -> Option<&str> {
    let flag = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-').filter(|flag| flag.len() > 1 || *flag == "v"));
    flag.filter(|flag| flag.starts_with(|first: char| first.is_ascii_alphabetic()))
}

/// Whether a flag of the daemon always has a value. That of a truth value may be left out, and then nothing is its value.
fn has_value(command: &Command, name: &str) -> bool {
    let named = command.get_arguments().find(|arg| arg.get_long() == Some(name));
    named.is_some_and(|arg| arg.get_action().takes_values() && !arg.is_require_equals_set())
}
