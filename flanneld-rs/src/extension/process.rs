//! Runs a command: no shell, its own process group, bounded in time and in what is kept of its words.

use super::{CommandLine, Environment};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How much of each output is kept; the rest is read and thrown away. In bytes.
const KEPT: usize = 8 * 1024;
/// What a command leaves running in the background may hold its outputs open; they are not waited for longer than this.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What a command has said.
pub(super) struct Output {
    /// standard output
    pub(super) standard: String,
    /// standard output and standard error
    pub(super) all: String,
}

/// Runs `command` to its end, with `input` and a newline on its standard input. Whoever drops the future, or a command that
/// takes too long, ends it with all processes of its group.
pub(super) async fn run(command: &CommandLine, environment: &Environment, input: &str) -> Result<Output, String> {
    let lookup = |name: &str| environment.get(name).cloned().or_else(|| std::env::var(name).ok());
    let (program, arguments) = command.expand(lookup);
    let failed = |error: std::io::Error| format!("running {program:?}: {error}");
    let mut child = spawn(&program, &arguments, environment).map_err(failed)?;
    let group = Group::of(&child);
    let (mut standard, mut error) = (Vec::new(), Vec::new());
    let ended = {
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let words = async {
            tokio::join!(write(stdin, input), read(stdout, &mut standard), read(stderr, &mut error));
        };
        let mut words = std::pin::pin!(words);
        let status = async {
            tokio::select! {
                status = child.wait() => {
                    // What it has said is in the pipes.
                    let _ = timeout(LAST_WORDS, &mut words).await;
                    status
                }
                () = &mut words => child.wait().await,
            }
        };
        timeout(LIMIT, status).await
    };
    let (standard, error) = (String::from_utf8_lossy(&standard).into_owned(), String::from_utf8_lossy(&error));
    let all = [standard.trim(), error.trim()].join("\n").trim().to_owned();
    match ended {
        Ok(Ok(status)) => {
            group.leave_alone();
            if status.success() { Ok(Output { standard, all }) } else { Err(format!("{status}: {}", shortened(&all))) }
        }
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(format!("killed after {} s: {}", LIMIT.as_secs(), shortened(&all))),
    }
}

#[expect(clippy::disallowed_methods, reason = "the extension backend is commands of the administrator's")]
fn spawn(program: &str, arguments: &[String], environment: &Environment) -> std::io::Result<Child> {
    Command::new(program)
        .args(arguments)
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// A command's processes, killed when this is dropped.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    /// The command has ended by itself; what it has left running was meant to stay.
    fn leave_alone(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its leader was not waited for, so that the number is still its own.
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

async fn write(stdin: Option<ChildStdin>, input: &str) {
    if let Some(mut stdin) = stdin {
        // Whoever does not read it does not want it.
        let _ = stdin.write_all(format!("{input}\n").as_bytes()).await;
    }
}

/// Reads to the end, and keeps the beginning.
async fn read(output: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut output) = output else { return };
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = output.read(&mut buffer).await {
        let room = KEPT.saturating_sub(kept.len());
        kept.extend(buffer.iter().take(length.min(room)));
    }
}

/// Words of a command in one line of a log: no more than 300 letters, none of them a control character.
pub(super) fn shortened(words: &str) -> String {
    let mut line: String =
        words.chars().take(300).map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    if words.chars().nth(300).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn command(text: &str) -> CommandLine {
        CommandLine::parse(text).unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_command_has_its_variables_and_its_input() {
        let environment = Environment::from([("SUBNET", "10.5.2.0/24".into())]);
        let script = command("sh -c 'read line; echo \"$SUBNET $0 $line\"; echo oops >&2' ${SUBNET}!");
        let output = run(&script, &environment, "de:ad").await.unwrap();
        assert_eq!(output.standard, "10.5.2.0/24 10.5.2.0/24! de:ad\n");
        assert_eq!(output.all, "10.5.2.0/24 10.5.2.0/24! de:ad\noops");
        // Nobody reads it.
        run(&command("true"), &environment, &"x".repeat(1 << 20)).await.unwrap();
    }

    #[tokio::test]
    async fn failures_say_what_happened() {
        for (text, words) in [
            ("sh -c 'echo broken >&2; exit 3'", "exit status: 3: broken"),
            ("sh -c 'kill -9 $$'", "signal: 9"),
            ("/no/such/program", "/no/such/program"),
            ("$NOTHING", "running \"\""),
        ] {
            let error = run(&command(text), &Environment::new(), "").await.err().unwrap();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[tokio::test]
    async fn output_without_end_is_no_memory_without_end() {
        let output = run(&command("sh -c 'head -c 5000000 /dev/zero | tr \"\\0\" x'"), &Environment::new(), "").await;
        assert_eq!(output.unwrap().standard.len(), KEPT);
    }

    #[tokio::test]
    async fn who_leaves_something_in_the_background_is_not_waited_for() {
        let start = Instant::now();
        let output = run(&command("sh -c 'sleep 20 & echo started'"), &Environment::new(), "").await.unwrap();
        assert_eq!(output.standard, "started\n");
        assert!(start.elapsed() < Duration::from_secs(15));
    }

    #[tokio::test]
    async fn whoever_is_dropped_ends_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = command(&format!("sh -c 'sleep 60 & echo $! > {0}.new; mv {0}.new {0}; wait'", file.display()));
        let environment = Environment::new();
        let mut running = Box::pin(run(&script, &environment, ""));
        let pid: i32 = loop {
            tokio::select! {
                _ = &mut running => panic!("it should wait"),
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
            if let Ok(text) = std::fs::read_to_string(&file) {
                break text.trim().parse().unwrap();
            }
        };
        drop(running);
        // Orphans are waited for by somebody else; a zombie has no command line.
        let ended = || std::fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |words| words.is_empty());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !ended() {
            assert!(Instant::now() < deadline, "process {pid} goes on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
