//! The commands of the extension backend: what is to be run, in which order, and until it has succeeded.
//!
//! flannel runs a command for each event. Here a command is run for each difference between what the store holds and what
//! has been done: nothing is run again for a node that is as it was, and what fails is tried again. A daemon that starts has
//! done nothing yet.

mod command_line;
mod process;
mod progress;

pub use command_line::CommandLine;
pub(crate) use progress::variables;
pub use progress::{Neighbour, Plan};

use progress::{Job, Progress, Step};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// The variables that a command finds in its environment, beside those of the daemon.
pub type Environment = BTreeMap<&'static str, String>;

/// The commands that the configuration names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commands {
    /// before the lease; its standard output is what the other nodes' commands read
    pub pre_startup: Option<CommandLine>,
    /// with the lease, before any of the following
    pub post_startup: Option<CommandLine>,
    /// for each other node
    pub subnet_add: Option<CommandLine>,
    /// for each other node that is gone or has changed, as it was
    pub subnet_remove: Option<CommandLine>,
    /// when the daemon ends in good order
    pub shutdown: Option<CommandLine>,
}

/// Runs the command that comes before the lease. None: there is none, and no data to announce.
///
/// # Errors
/// What is wrong with it, with its last words.
pub async fn pre_startup(commands: &Commands) -> Result<Option<String>, String> {
    match &commands.pre_startup {
        None => Ok(None),
        Some(command) => run("PreStartupCommand", command, &Environment::new(), "").await.map(Some),
    }
}

/// Runs the command for the end of the daemon. What is wrong with it is logged.
pub async fn shutdown(command: &CommandLine) {
    if let Err(error) = run("ShutdownCommand", command, &Environment::new(), "").await {
        tracing::error!("{error}");
    }
}

/// Runs one command; returns its trimmed standard output.
async fn run(what: &str, command: &CommandLine, environment: &Environment, input: &str) -> Result<String, String> {
    let subnet = environment.get("SUBNET").map(|subnet| format!(" for {subnet}")).unwrap_or_default();
    match process::run(command, environment, input).await {
        Ok(output) => {
            let words = process::shortened(&output.all);
            tracing::info!("{what}{subnet}: done{}{words}", if words.is_empty() { "" } else { ": " });
            Ok(output.standard.trim().to_owned())
        }
        Err(error) => Err(format!("{what}{subnet}: {error}")),
    }
}

/// Keeps what the commands have done in step with a [`Plan`]; dropping it ends a command that is running.
#[derive(Debug)]
pub struct Runner {
    wanted: watch::Sender<Plan>,
    outcome: Arc<Mutex<Result<(), String>>>,
    task: JoinHandle<()>,
}

impl Runner {
    /// Starts with `plan`. To be called inside a tokio runtime.
    pub fn start(commands: Arc<Commands>, plan: Plan) -> Self {
        let (wanted, plans) = watch::channel(plan);
        let outcome = Arc::new(Mutex::new(Err("commands have not been run yet".into())));
        let task = tokio::spawn(keep(commands, plans, outcome.clone()));
        Runner { wanted, outcome, task }
    }

    /// Takes over a plan, and tells how far the last one has got.
    ///
    /// # Errors
    /// What has failed, or is not done yet.
    pub fn ensure(&self, plan: &Plan) -> Result<(), String> {
        let changed = self.wanted.send_if_modified(|present| {
            let changed = *present != *plan;
            if changed {
                present.clone_from(plan);
            }
            changed
        });
        if changed {
            self.tell(Err("commands are being run".into()));
        }
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self, outcome: Result<(), String>) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One command at a time, as flannel has it: scripts may rely on it.
async fn keep(commands: Arc<Commands>, mut plans: watch::Receiver<Plan>, outcome: Arc<Mutex<Result<(), String>>>) {
    let mut progress = Progress::default();
    loop {
        let plan = plans.borrow_and_update().clone();
        let step = progress.next(&plan, Instant::now());
        if !matches!(step, Step::Run(_)) && !plans.has_changed().unwrap_or(true) {
            *outcome.lock().unwrap_or_else(PoisonError::into_inner) = progress.outcome();
        }
        match step {
            Step::Run(job) => {
                let (what, command) = match &job {
                    Job::Start(_) => ("PostStartupCommand", &commands.post_startup),
                    Job::Add(..) => ("SubnetAddCommand", &commands.subnet_add),
                    Job::Remove(..) => ("SubnetRemoveCommand", &commands.subnet_remove),
                };
                let done = match command {
                    Some(command) => run(what, command, &job.environment(), job.input()).await.map(drop),
                    None => Ok(()),
                };
                if let Err(error) = &done {
                    tracing::error!("{error}");
                }
                progress.record(job, done, Instant::now());
            }
            Step::Wait(until) => tokio::select! {
                () = sleep_until(until) => {}
                changed = plans.changed() => if changed.is_err() { return },
            },
            Step::Done => {
                if plans.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Between two attempts of one command: short at first.
fn back_off(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(6)).min(Duration::from_secs(60))
}
