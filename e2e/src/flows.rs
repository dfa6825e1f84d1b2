//! New flows without end: each goes by the rules of its moment, where those of a stream remember how it began.

use crate::Result;
use crate::probe::ask;
use kernel::netns::Netns;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long one answer is waited for, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(2);

/// Questions that are asked one after another, each from a socket of its own.
#[derive(Debug)]
pub struct Flows {
    done: Arc<AtomicBool>,
    thread: JoinHandle<Result<usize>>,
}

impl Flows {
    /// Starts to ask `target` from inside `network`, where it is to see `source`.
    pub fn start(network: &Netns, target: IpAddr, source: IpAddr) -> Result<Self> {
        let (network, done) = (network.try_clone()?, Arc::new(AtomicBool::new(false)));
        let until = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !until.load(Ordering::Relaxed) {
                let answer = ask(&network, target, PATIENCE).map_err(|error| format!("flow {number}: {error}"))?;
                if answer.seen != source {
                    return Err(format!("flow {number} is one of {} to {target}", answer.seen).into());
                }
                number += 1;
            }
            Ok(number)
        });
        Ok(Flows { done, thread })
    }

    /// How many there were.
    ///
    /// # Errors
    /// The first one that got no answer, or was seen as another's.
    pub fn stop(self) -> Result<usize> {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "asking panicked")?
    }
}
