//! Running an executable of somebody else's: in bounded time, and with an answer of bounded size. Runtimes kill a plugin
//! that takes too long, and then wait for the end of what is said on its pipes. So the process is killed with us, and has no
//! pipes but to us: what it has started itself may be there for longer, but holds nothing of the runtime's.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::time::TimeSpec;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
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
/// What a pipe holds unless told otherwise, in bytes (pipe(7)).
const PIPE: u64 = 1 << 16;
/// What a pipe takes at once if it takes anything, in bytes (PIPE_BUF, linux/limits.h).
const AT_ONCE: usize = 4096;

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

/// Starts `command`, gives it `input`, and returns what it printed, and how it ended; what it says on standard error is said on
/// ours. Whatever goes wrong, it is killed then, with all processes of its group.
pub(super) fn run(command: &mut Command, input: Vec<u8>, limit: Duration) -> Result<(Vec<u8>, ExitStatus), Trouble> {
    let end = Instant::now() + limit;
    kernel::process::end_with_us(command);
    let command = command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut started = Started::new(command.spawn().map_err(|error| Trouble::Io("starting it", error))?);
    let mut pipes = Pipes::to(&mut started.child, input).map_err(|error| Trouble::Io("talking to it", error))?;
    let mut pause = MOMENT;
    loop {
        // In this order: whatever it has said before its end, or in time, is in the pipes when they are read.
        let (is_late, has_ended) = (Instant::now() >= end, started.has_ended());
        pipes.turn().map_err(|error| Trouble::Io("reading its answer", error))?;
        if pipes.answer.len() > LONGEST_ANSWER {
            return Err(Trouble::TooLong);
        }
        if has_ended {
            // What it has left running may hold its output open, and is not waited for.
            let status = started.status().map_err(|error| Trouble::Io("waiting for it", error))?;
            return Ok((pipes.answer, status));
        }
        if is_late {
            return Err(Trouble::TooLate);
        }
        pipes.wait(if pipes.stdout.is_some() { LOOK } else { pause });
        if pipes.stdout.is_none() {
            pause = LOOK.min(pause * 2);
        }
    }
}

/// What is said to a process and by it. No side waits for another, however much each has to say; a pipe that is closed is none.
struct Pipes {
    stdin: Option<ChildStdin>,
    /// what it was not given yet
    input: Vec<u8>,
    stdout: Option<ChildStdout>,
    answer: Vec<u8>,
    stderr: Option<ChildStderr>,
}

impl Pipes {
    fn to(child: &mut Child, input: Vec<u8>) -> io::Result<Self> {
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let ends =
            [stdin.as_ref().map(AsFd::as_fd), stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)];
        for end in ends.into_iter().flatten() {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Pipes { stdin, input, stdout, answer: Vec::new(), stderr })
    }

    /// Gives and takes what is possible at once: of the answer all that is there, until there is too much of it.
    fn turn(&mut self) -> io::Result<()> {
        let is_given = self.stdin.as_mut().is_some_and(|stdin| match stdin.write(&self.input) {
            Ok(length) => {
                self.input.drain(..length);
                self.input.is_empty()
            }
            // A plugin need not read what it is given.
            Err(error) => !is_for_later(&error),
        });
        if is_given {
            self.stdin = None;
        }
        if let Some(stdout) = &mut self.stdout {
            let room = (LONGEST_ANSWER + 1).saturating_sub(self.answer.len()) as u64;
            match stdout.take(room).read_to_end(&mut self.answer) {
                Ok(_) => self.stdout = None,
                Err(error) if is_for_later(&error) => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(stderr) = &mut self.stderr {
            let mut text = Vec::new();
            let is_open = match stderr.take(PIPE).read_to_end(&mut text) {
                Ok(length) => length as u64 == PIPE,
                Err(error) => is_for_later(&error),
            };
            say(&text);
            if !is_open {
                self.stderr = None;
            }
        }
        Ok(())
    }

    /// Until another turn may be of use, or for that long.
    fn wait(&self, at_most: Duration) {
        let stdin = self.stdin.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT));
        let stdout = self.stdout.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
        let stderr = self.stderr.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
        let mut pipes: Vec<PollFd<'_>> = [stdin, stdout, stderr].into_iter().flatten().collect();
        // The next turn finds out what happened.
        let _ = ppoll(&mut pipes, Some(TimeSpec::from_duration(at_most)), None);
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Says `text` on standard error. What nobody takes is not said: a log is nothing to wait for.
fn say(text: &[u8]) {
    let mut stderr = io::stderr();
    for part in text.chunks(AT_ONCE) {
        let taken =
            ppoll(&mut [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)], Some(TimeSpec::from_duration(LOOK)), None);
        if taken != Ok(1) || stderr.write_all(part).is_err() {
            return;
        }
    }
}

/// A process, killed with its group when this is dropped, unless it has been waited for.
struct Started {
    child: Child,
    /// also that of its group
    pid: Pid,
    is_over: bool,
}

impl Started {
    fn new(child: Child) -> Self {
        let pid = Pid::from_raw(child.id().cast_signed());
        Started { child, pid, is_over: false }
    }

    /// Whether there is nothing to wait for. Its number stays its own, and its group's.
    fn has_ended(&self) -> bool {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(self.pid), look) != Ok(WaitStatus::StillAlive)
    }

    /// How it has ended. What it has left running was meant to stay.
    fn status(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait()?;
        self.is_over = true;
        Ok(status)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let _ = killpg(self.pid, Signal::SIGKILL);
        let end = Instant::now() + LAST_BREATH;
        let mut pause = MOMENT;
        while let Ok(None) = self.child.try_wait()
            && Instant::now() < end
        {
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

    #[expect(clippy::disallowed_methods, reason = "a plugin of somebody else's")]
    fn shell(script: &str, input: &[u8], limit: Duration) -> Result<(String, bool), Trouble> {
        let mut command = Command::new("/bin/sh");
        let (answer, status) = run(command.args(["-c", script]), input.to_vec(), limit)?;
        Ok((String::from_utf8(answer).unwrap(), status.success()))
    }

    /// The process number in a file, if it has been written.
    fn number(file: &Path) -> Option<i32> {
        fs::read_to_string(file).ok()?.trim().parse().ok()
    }

    /// Whether a process is gone, or is going.
    fn is_gone(pid: i32) -> bool {
        (0..200).any(|look| {
            thread::sleep(Duration::from_millis(if look == 0 { 0 } else { 50 }));
            fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
        })
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
            // Under load it may not have come that far.
            let mut limits = (0..8).map(|attempt| Duration::from_millis(300 << attempt));
            let both = limits.find_map(|limit| {
                let _ = (fs::remove_file(&own), fs::remove_file(&other));
                assert!(matches!(shell(&script, b"", limit), Err(Trouble::TooLate)), "{tail}");
                Some([number(&own)?, number(&other)?])
            });
            assert!(both.unwrap().into_iter().all(is_gone), "{tail}");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a plugin of somebody else's")]
    fn what_it_leaves_running_goes_with_it_if_its_answer_is_of_no_use() {
        let directory = tempfile::tempdir().unwrap();
        let left = directory.path().join("left");
        let mut command = Command::new("/bin/sh");
        let command = command.args(["-c", &format!("sleep 1000 & echo $! >{}", left.display())]);
        let started = Started::new(command.process_group(0).spawn().unwrap());
        while !started.has_ended() {
            thread::sleep(MOMENT);
        }
        let left = number(&left).unwrap();
        assert!(Path::new(&format!("/proc/{left}")).exists());
        drop(started);
        assert!(is_gone(left));
    }

    /// However late we are looked after by the scheduler.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a plugin of somebody else's")]
    fn what_it_has_said_before_its_end_is_heard_after_it() {
        let mut command = Command::new("/bin/sh");
        let command = command.args(["-c", "head -c 8000 /dev/zero"]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut pipes = Pipes::to(&mut child, Vec::new()).unwrap();
        assert!(child.wait().unwrap().success());
        pipes.turn().unwrap();
        assert_eq!((pipes.answer.len(), pipes.stdout.is_none()), (8000, true));
    }

    #[test]
    fn what_it_leaves_running_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let left = directory.path().join("left");
        let script = format!("echo answer; sleep 1000 & echo $! >{}", left.display());
        assert_eq!(shell(&script, b"", LONG).unwrap(), ("answer\n".into(), true));
        // It was meant to stay.
        nix::sys::signal::kill(Pid::from_raw(number(&left).unwrap()), Signal::SIGKILL).unwrap();
    }
}
