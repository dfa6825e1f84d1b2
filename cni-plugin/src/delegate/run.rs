//! Running an executable of somebody else's: in bounded time, with an answer of bounded size, and never for longer than this
//! process itself is there. Runtimes kill a plugin that takes too long; what it leaves running would hold their pipes open
//! (they wait for the end of what is said on standard error), and go on at an attachment that they take for abandoned.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Most that is read of an answer, in bytes.
pub(super) const LONGEST_ANSWER: usize = 4 << 20;
/// How often it is looked whether a silent process is still there.
const LOOK: Duration = Duration::from_millis(100);
/// The first wait for a process that has closed its output, as all do that come to their end; each is twice the last.
const MOMENT: Duration = Duration::from_micros(50);
/// How long a process may take to be gone that was killed. One that hangs in the kernel does not go.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// a step that failed, and how
    Io(&'static str, io::Error),
    /// more than [`LONGEST_ANSWER`]
    TooLong,
    /// none in time
    TooLate,
}

/// Starts `command`, gives it `input`, and returns what it printed, and how it ended. Whatever goes wrong, it is killed then,
/// with all processes of its group.
pub(super) fn run(command: &mut Command, input: Vec<u8>, limit: Duration) -> Result<(Vec<u8>, ExitStatus), Trouble> {
    let end = Instant::now() + limit;
    kernel::process::end_with_us(command);
    let spawned = command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut started = Started(spawned.map_err(|error| Trouble::Io("starting it", error))?);
    let parts = converse(&mut started.0, input).map_err(|error| Trouble::Io("talking to it", error))?;
    let (mut answer, mut pause) = (Vec::new(), MOMENT);
    while Instant::now() < end {
        match parts.recv_timeout(LOOK) {
            Ok(part) => answer.extend(part.map_err(|error| Trouble::Io("reading its answer", error))?),
            Err(silence) => {
                // What it has left running may hold its output open, and is not waited for.
                if let Some(status) = started.0.try_wait().map_err(|error| Trouble::Io("waiting for it", error))? {
                    answer.extend(parts.try_iter().flatten().flatten());
                    return Ok((answer, status));
                }
                if silence == RecvTimeoutError::Disconnected {
                    thread::sleep(pause);
                    pause = LOOK.min(pause * 2);
                }
            }
        }
        if answer.len() > LONGEST_ANSWER {
            return Err(Trouble::TooLong);
        }
    }
    Err(Trouble::TooLate)
}

/// Hands `input` over, and returns what it says, part by part. Neither side waits for the other, however much both have to say;
/// a plugin need not read what it is given.
fn converse(child: &mut Child, input: Vec<u8>) -> io::Result<Receiver<io::Result<Vec<u8>>>> {
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    thread::Builder::new().spawn(move || stdin.map(|mut stdin| stdin.write_all(&input)))?;
    let (tell, parts) = sync_channel(1);
    thread::Builder::new().spawn(move || {
        let (Some(mut stdout), mut buffer) = (stdout, vec![0; 1 << 16]) else { return };
        loop {
            let part = match stdout.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => Ok(buffer.get(..length).unwrap_or_default().to_vec()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let is_last = part.is_err();
            if tell.send(part).is_err() || is_last {
                return;
            }
        }
    })?;
    Ok(parts)
}

/// A process, killed with its group when this is dropped, unless it has been waited for.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let end = Instant::now() + LAST_BREATH;
        // As long as it was not waited for, the number is its own.
        let mut pause = MOMENT;
        while let Ok(None) = self.0.try_wait() {
            if let Ok(group) = i32::try_from(self.0.id()) {
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            if Instant::now() > end {
                return;
            }
            thread::sleep(pause);
            pause = LOOK.min(pause * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    /// Long on a machine under load; what hangs is only waited for where the limit is short.
    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(500);

    #[expect(clippy::disallowed_methods, reason = "a plugin of somebody else's")]
    fn shell(script: &str, input: &[u8], limit: Duration) -> Result<(String, bool), Trouble> {
        let mut command = Command::new("/bin/sh");
        let (answer, status) = run(command.args(["-c", script]), input.to_vec(), limit)?;
        Ok((String::from_utf8(answer).unwrap(), status.success()))
    }

    /// Whether the process whose number is in a file is gone, or is going.
    fn is_gone(file: &Path) -> bool {
        let pid: i32 = fs::read_to_string(file).unwrap().trim().parse().unwrap();
        let stat = |_| fs::read_to_string(format!("/proc/{pid}/stat")).ok().filter(|stat| !stat.contains(") Z "));
        let looks = (0..200).map(|look| {
            thread::sleep(Duration::from_millis(if look == 0 { 0 } else { 50 }));
            stat(look)
        });
        looks.into_iter().any(|stat| stat.is_none())
    }

    #[test]
    fn what_it_says_is_read_and_what_it_is_given_need_not_be() {
        let long = vec![b'x'; 300_000];
        assert_eq!(shell("wc -c", &long, LONG).unwrap(), ("300000\n".into(), true));
        assert_eq!(shell("echo done; exit 3", &long, LONG).unwrap(), ("done\n".into(), false));
        assert_eq!(shell("exec >&-; sleep 0.2", b"", LONG).unwrap(), (String::new(), true));
        assert!(matches!(shell("exec cat /dev/zero", b"", LONG), Err(Trouble::TooLong)));
    }

    #[test]
    fn who_does_not_come_to_an_end_is_killed_with_all_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let (own, other) = (directory.path().join("own"), directory.path().join("other"));
        for tail in ["wait", "exec >&-; wait", "while :; do echo x; sleep 0.01; done"] {
            let script = format!("echo $$ >{}; sleep 1000 & echo $! >{}; {tail}", own.display(), other.display());
            assert!(matches!(shell(&script, b"", SHORT), Err(Trouble::TooLate)), "{tail}");
            assert!(is_gone(&own) && is_gone(&other), "{tail}");
        }
    }

    #[test]
    fn what_it_leaves_running_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let left = directory.path().join("left");
        let script = format!("echo answer; sleep 1000 & echo $! >{}", left.display());
        assert_eq!(shell(&script, b"", LONG).unwrap(), ("answer\n".into(), true));
        // It was meant to stay.
        let pid: i32 = fs::read_to_string(&left).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
}
