//! The process edge: this program starts itself as a plugin, with real pipes and a real environment.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)] // a test fails by panicking
#![allow(clippy::disallowed_methods)] // starts processes: the product under test is a process

mod echo;

use echo::{Echo, env};
use std::fs::File;
use std::io::Write;
use std::process::{Command, ExitCode, Output, Stdio};

const AS_PLUGIN: &str = "--as-plugin";
const CONFIG: &str = r#"{"cniVersion":"0.4.0","name":"net","type":"echo","ipam":{"address":"10.1.0.5/16"}}"#;

fn plugin(command: &str) -> Command {
    let mut plugin = Command::new(std::env::current_exe().unwrap());
    plugin.arg(AS_PLUGIN).env_clear().envs(env(command));
    plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    plugin
}

/// Runs the plugin with `config` on its standard input.
fn run(mut plugin: Command, config: &str) -> Output {
    let mut child = plugin.spawn().unwrap();
    // A plugin that ends without reading breaks this pipe, which is its right.
    let _ = child.stdin.take().unwrap().write_all(config.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn answers_on_standard_output() {
    let output = run(plugin("ADD"), CONFIG);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).starts_with("{\n    \"cniVersion\": \"0.4.0\","), "{}", text(&output.stdout));
    assert_eq!(text(&output.stderr), "");
    let output = run(plugin("DEL"), CONFIG);
    assert_eq!((output.status.code(), text(&output.stdout), text(&output.stderr)), (Some(0), "", ""));
    let output = run(plugin("DEL"), "rubbish");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("\"code\": 6"), "{}", text(&output.stdout));
}

fn tells_a_person_what_it_is() {
    let mut bare = plugin("");
    bare.env_clear();
    let output = run(bare, "");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), ""));
    assert!(text(&output.stderr).contains("CNI protocol versions supported: 0.1.0, "), "{}", text(&output.stderr));
}

fn answers_version_while_standard_input_stays_open() {
    let mut child = plugin("VERSION").spawn().unwrap();
    let open = child.stdin.take();
    // Were it to read, this would wait for ever.
    let output = child.wait_with_output().unwrap();
    drop(open);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("supportedVersions"));
}

fn survives_a_reader_that_has_gone() {
    let mut child = plugin("ADD").spawn().unwrap();
    drop(child.stdout.take());
    child.stdin.take().unwrap().write_all(CONFIG.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "neither success nor a signal");
    assert!(text(&output.stderr).starts_with("printing the answer: "), "{}", text(&output.stderr));
}

fn reports_standard_input_that_cannot_be_read() {
    let mut plugin = plugin("ADD");
    plugin.stdin(File::open("/").unwrap());
    let output = plugin.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("\"code\": 5"), "{}", text(&output.stdout));
}

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == AS_PLUGIN) {
        let echo = Echo::default();
        return cni_spec::serve("echo", |name| (name == "echo").then_some(&echo));
    }
    answers_on_standard_output();
    tells_a_person_what_it_is();
    answers_version_while_standard_input_stays_open();
    survives_a_reader_that_has_gone();
    reports_standard_input_that_cannot_be_read();
    println!("process: 5 tests passed");
    ExitCode::SUCCESS
}
