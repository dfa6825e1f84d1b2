//! How far the commands have got: pure but for the clock that it is told.

use super::{Environment, back_off};
use crate::family::PerFamily;
use crate::lease::Subnets;
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;
use std::net::IpAddr;
use tokio::time::Instant;

/// A node that is gone is not cleaned up after for ever.
const REMOVALS: u32 = 3;

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// what this node is
    pub environment: Environment,
    /// the other nodes
    pub neighbours: BTreeMap<Subnets, Neighbour>,
}

/// Another node, as its command is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// its subnets, as far as they are used
    pub subnets: PerFamily<IpNetwork>,
    /// its addresses
    pub public: PerFamily<IpAddr>,
    /// what its own first command has said
    pub data: String,
}

/// One command for one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Job {
    Start(Environment),
    Add(Subnets, Neighbour),
    Remove(Subnets, Neighbour),
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Run(Job),
    /// nothing until then, unless the plan changes
    Wait(Instant),
    /// nothing unless the plan changes
    Done,
}

/// What has been done, and what has failed.
#[derive(Debug, Default)]
pub(super) struct Progress {
    started: Option<Environment>,
    added: BTreeMap<Subnets, Neighbour>,
    failed: BTreeMap<Subject, Failure>,
}

/// What a failure is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Node,
    Addition(Subnets),
    Removal(Subnets),
}

#[derive(Debug)]
struct Failure {
    reason: String,
    count: u32,
    until: Instant,
}

impl Job {
    fn subject(&self) -> Subject {
        match self {
            Job::Start(_) => Subject::Node,
            Job::Add(subnets, _) => Subject::Addition(*subnets),
            Job::Remove(subnets, _) => Subject::Removal(*subnets),
        }
    }

    /// The variables of flannel, those of the other family included.
    pub(super) fn environment(&self) -> Environment {
        match self {
            Job::Start(environment) => environment.clone(),
            Job::Add(_, neighbour) | Job::Remove(_, neighbour) => variables(&neighbour.subnets, &neighbour.public),
        }
    }

    /// What the command reads.
    pub(super) fn input(&self) -> &str {
        match self {
            Job::Start(_) => "",
            Job::Add(_, neighbour) | Job::Remove(_, neighbour) => &neighbour.data,
        }
    }
}

/// Subnets and addresses as flannel's commands know them; empty where there is none.
pub(crate) fn variables(subnets: &PerFamily<IpNetwork>, public: &PerFamily<IpAddr>) -> Environment {
    let subnet = |subnet: Option<&IpNetwork>| subnet.map(ToString::to_string).unwrap_or_default();
    let address = |address: Option<&IpAddr>| address.map(ToString::to_string).unwrap_or_default();
    Environment::from([
        ("SUBNET", subnet(subnets.v4.as_ref())),
        ("IPV6SUBNET", subnet(subnets.v6.as_ref())),
        ("PUBLIC_IP", address(public.v4.as_ref())),
        ("PUBLIC_IPV6", address(public.v6.as_ref())),
    ])
}

impl Progress {
    /// The next step towards `plan`: this node first, then what has to go, then what is new. What has failed waits for its
    /// time, and holds up nothing else.
    pub(super) fn next(&mut self, plan: &Plan, now: Instant) -> Step {
        let Progress { started, added, failed } = self;
        failed.retain(|subject, _| match subject {
            Subject::Node => true,
            Subject::Addition(subnets) => plan.neighbours.contains_key(subnets),
            Subject::Removal(subnets) => added.contains_key(subnets),
        });
        let mut wait: Option<Instant> = None;
        let mut may_run = |job: &Job| match failed.get(&job.subject()).filter(|failure| failure.until > now) {
            Some(failure) => {
                wait = Some(wait.map_or(failure.until, |wait| wait.min(failure.until)));
                false
            }
            None => true,
        };
        if started.as_ref() != Some(&plan.environment) {
            let start = Job::Start(plan.environment.clone());
            return match may_run(&start) {
                true => Step::Run(start),
                false => wait.map_or(Step::Done, Step::Wait),
            };
        }
        let unwanted = added.iter().filter(|(subnets, done)| plan.neighbours.get(subnets) != Some(done));
        let removals = unwanted.map(|(subnets, done)| Job::Remove(*subnets, done.clone()));
        let missing = plan.neighbours.iter().filter(|(subnets, _)| !added.contains_key(subnets));
        let additions = missing.map(|(subnets, wanted)| Job::Add(*subnets, wanted.clone()));
        match removals.chain(additions).find(|job| may_run(job)) {
            Some(job) => Step::Run(job),
            None => wait.map_or(Step::Done, Step::Wait),
        }
    }

    /// What became of a job.
    pub(super) fn record(&mut self, job: Job, outcome: Result<(), String>, now: Instant) {
        let subject = job.subject();
        let Err(reason) = outcome else {
            self.failed.remove(&subject);
            match job {
                Job::Start(environment) => self.started = Some(environment),
                Job::Add(subnets, neighbour) => drop(self.added.insert(subnets, neighbour)),
                Job::Remove(subnets, _) => drop(self.added.remove(&subnets)),
            }
            return;
        };
        let count = self.failed.get(&subject).map_or(0, |failure| failure.count) + 1;
        match job {
            Job::Remove(subnets, _) if count >= REMOVALS => {
                self.failed.remove(&subject);
                self.added.remove(&subnets);
            }
            _ => drop(self.failed.insert(subject, Failure { reason, count, until: now + back_off(count) })),
        }
    }

    /// What has failed and is not done yet.
    pub(super) fn outcome(&self) -> Result<(), String> {
        match self.failed.values().next() {
            None => Ok(()),
            Some(first) if self.failed.len() == 1 => Err(first.reason.clone()),
            Some(first) => Err(format!("{} (and {} more)", first.reason, self.failed.len() - 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn plan(own: &str, neighbours: &[(&str, &str)]) -> Plan {
        let neighbour = |(subnet, public): &(&str, &str)| {
            let subnets = PerFamily { v4: Some(subnet.parse().unwrap()), v6: None };
            let public = PerFamily { v4: Some(public.parse().unwrap()), v6: None };
            (subnets, Neighbour { subnets, public, data: String::new() })
        };
        Plan { environment: [("SUBNET", own.into())].into(), neighbours: neighbours.iter().map(neighbour).collect() }
    }

    /// Runs what is to be run until there is nothing, at one moment; the words for it. Commands with `bad` in them fail.
    fn settle(progress: &mut Progress, plan: &Plan, now: Instant, bad: &str) -> (Vec<String>, Step) {
        let mut done = Vec::new();
        loop {
            match progress.next(plan, now) {
                Step::Run(job) => {
                    let word = match &job {
                        Job::Start(_) => "start",
                        Job::Add(..) => "add",
                        Job::Remove(..) => "remove",
                    };
                    let environment = job.environment();
                    let public = environment.get("PUBLIC_IP").cloned().unwrap_or_default();
                    let words = format!("{word} {} {public}", environment["SUBNET"]);
                    let outcome = if bad.is_empty() || !words.contains(bad) { Ok(()) } else { Err(words.clone()) };
                    done.push(words);
                    progress.record(job, outcome, now);
                    assert!(done.len() < 50, "{done:?}");
                }
                step => return (done, step),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_run_twice_and_what_has_changed_goes_first() {
        let (mut progress, now) = (Progress::default(), Instant::now());
        let two = plan("10.5.1.0/24", &[("10.5.2.0/24", "192.0.2.2"), ("10.5.3.0/24", "192.0.2.3")]);
        let (done, step) = settle(&mut progress, &two, now, "");
        assert_eq!(done, ["start 10.5.1.0/24 ", "add 10.5.2.0/24 192.0.2.2", "add 10.5.3.0/24 192.0.2.3"]);
        assert_eq!((step, progress.outcome()), (Step::Done, Ok(())));
        assert_eq!(settle(&mut progress, &two, now, "").0, [""; 0]);
        let changed = plan("10.5.1.0/24", &[("10.5.3.0/24", "192.0.2.9"), ("10.5.4.0/24", "192.0.2.4")]);
        let (done, _) = settle(&mut progress, &changed, now, "");
        assert_eq!(
            done,
            [
                "remove 10.5.2.0/24 192.0.2.2",
                "remove 10.5.3.0/24 192.0.2.3",
                "add 10.5.3.0/24 192.0.2.9",
                "add 10.5.4.0/24 192.0.2.4"
            ]
        );
        let moved = Plan { environment: [("SUBNET", "10.5.9.0/24".into())].into(), ..changed };
        assert_eq!(settle(&mut progress, &moved, now, "").0, ["start 10.5.9.0/24 "]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_waits_longer_each_time_and_holds_up_nobody() {
        let (mut progress, mut now) = (Progress::default(), Instant::now());
        let two = plan("10.5.1.0/24", &[("10.5.2.0/24", "192.0.2.2"), ("10.5.3.0/24", "192.0.2.3")]);
        let (done, step) = settle(&mut progress, &two, now, "10.5.2.0");
        assert_eq!(done.len(), 3, "the second node is served: {done:?}");
        assert_eq!(step, Step::Wait(now + Duration::from_secs(1)));
        assert_eq!(progress.outcome(), Err("add 10.5.2.0/24 192.0.2.2".into()));
        for seconds in [2, 4, 8, 16, 32, 60, 60] {
            let Step::Wait(until) = progress.next(&two, now) else { panic!("it should wait") };
            now = until;
            let (done, step) = settle(&mut progress, &two, now, "10.5.2.0");
            assert_eq!(done, ["add 10.5.2.0/24 192.0.2.2"]);
            assert_eq!(step, Step::Wait(now + Duration::from_secs(seconds)));
        }
        now += Duration::from_secs(60);
        assert_eq!(settle(&mut progress, &two, now, ""), (vec!["add 10.5.2.0/24 192.0.2.2".into()], Step::Done));
        assert_eq!(progress.outcome(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_is_gone_is_forgotten_in_the_end_and_a_failed_start_comes_first() {
        let (mut progress, mut now) = (Progress::default(), Instant::now());
        let one = plan("10.5.1.0/24", &[("10.5.2.0/24", "192.0.2.2")]);
        assert_eq!(settle(&mut progress, &one, now, "start").0, ["start 10.5.1.0/24 "]);
        now += Duration::from_secs(1);
        assert_eq!(settle(&mut progress, &one, now, "").0.len(), 2);
        let none = plan("10.5.1.0/24", &[]);
        for _ in 0..REMOVALS {
            assert_eq!(settle(&mut progress, &none, now, "remove").0, ["remove 10.5.2.0/24 192.0.2.2"]);
            now += Duration::from_secs(60);
        }
        assert_eq!(settle(&mut progress, &none, now, "remove"), (Vec::new(), Step::Done));
        assert_eq!(progress.outcome(), Ok(()));
    }
}
