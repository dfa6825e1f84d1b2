//! A node with one pod that is to be left alone, and another one that plugins are killed over.

use super::ground::Ground;
use super::killer::{Killer, Strike};
use super::remains::{Remains, devices};
use super::ways::{Size, Way};
use crate::Result;
use crate::runner::{Attachment, Network};
use kernel::netns::Netns;
use std::path::Path;

/// What a runtime may be in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Gc,
}

impl std::fmt::Display for Verb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Gc => "GC",
        })
    }
}

/// A node for one way to attach pods.
pub(super) struct Scene {
    ground: Ground,
    network: Network,
    addresses: Network,
    pod: Netns,
    attachment: Attachment,
    _bystander: Netns,
    intact: Remains,
    calls: [u64; 3],
}

const BYSTANDER: (&str, &str) = ("bystander", "eth0");

impl Scene {
    /// Attaches the bystander, and once the other pod, to count the system calls of it.
    pub(super) fn new(way: Way, directory: &Path) -> Result<Self> {
        let ground = Ground::new(directory)?;
        let network = way.network(&ground.files, Size::Small)?;
        let (bystander, pod) = (Netns::create()?, Netns::create()?);
        let attachment = way.attachment("victim".into(), &pod.path(), 8081);
        ground.runtime.add(&network, &way.attachment(BYSTANDER.0.into(), &bystander.path(), 8080))?;
        // What the first pod that comes and goes makes for all that follow.
        ground.runtime.add(&network, &attachment)?;
        ground.runtime.del(&network, &attachment)?;
        let addresses = way.addresses(&ground.files, Size::Small)?;
        let intact = ground.remains()?;
        let mut scene =
            Scene { ground, network, addresses, pod, attachment, _bystander: bystander, intact, calls: [u64::MAX; 3] };
        for verb in [Verb::Add, Verb::Del, Verb::Add, Verb::Gc, Verb::Add, Verb::Del, Verb::Add, Verb::Gc] {
            let mut killer = Killer::counting();
            scene.carry_out(verb, &mut |child, config| killer.handle(child, config))?;
            if let Some(calls) = scene.calls.get_mut(verb as usize) {
                // Where it had to wait, it asked again and again.
                *calls = killer.seen().min(*calls);
            }
        }
        scene.compare()?;
        Ok(scene)
    }

    /// How many system calls a verb takes.
    pub(super) fn calls(&self, verb: Verb) -> u64 {
        self.calls.get(verb as usize).copied().unwrap_or_default()
    }

    /// Runs a verb for the pod, as a runtime would.
    fn carry_out(&self, verb: Verb, handling: crate::runner::Handling<'_>) -> Result<()> {
        let (runtime, network, attachment) = (&self.ground.runtime, &self.network, &self.attachment);
        match verb {
            Verb::Add => runtime.add_by(handling, network, attachment).map(drop),
            Verb::Del => runtime.del_by(handling, network, attachment),
            Verb::Gc => runtime.gc_by(handling, network, &[BYSTANDER]),
        }
    }

    /// Runs a verb that has to succeed.
    pub(super) fn succeed(&self, verb: Verb) -> Result<()> {
        let outcome = self.carry_out(verb, &mut |child, config| Killer::counting().handle(child, config));
        outcome.map_err(|error| format!("{verb}: {error}").into())
    }

    /// Runs a verb that is killed at system call `at`; where that was. None: it took fewer calls this time, and succeeded.
    pub(super) fn kill(&self, verb: Verb, at: u64) -> Result<Option<Strike>> {
        let mut killer = Killer::at(at);
        let outcome = self.carry_out(verb, &mut |child, config| killer.handle(child, config));
        match (killer.struck(), outcome) {
            (Some(strike), _) => Ok(Some(strike.clone())),
            (None, Ok(())) => Ok(None),
            (None, Err(error)) => Err(format!("{verb}, not killed: {error}").into()),
        }
    }

    /// Nothing may be left but what was there before.
    pub(super) fn compare(&self) -> Result<()> {
        if let Some(difference) = self.ground.remains()?.difference(&self.intact) {
            return Err(format!("left on the node:\n{difference}").into());
        }
        let devices = devices(&self.pod)?;
        if devices != ["lo"] {
            return Err(format!("left in the pod: {devices:?}").into());
        }
        Ok(())
    }

    /// A pod can come, is as it should be, and goes; and no address is lost.
    pub(super) fn prove_use(&self) -> Result<()> {
        self.succeed(Verb::Add)?;
        let checked = self.ground.runtime.check(&self.network, &self.attachment);
        self.succeed(Verb::Del)?;
        checked.map_err(|error| format!("CHECK after ADD: {error}"))?;
        self.fill()?;
        self.compare()
    }

    /// Used and free addresses are together what the network has.
    fn fill(&self) -> Result<()> {
        let (runtime, wanted) = (&self.ground.runtime, Size::Small.pods() - 1);
        let filler = |number: usize| Attachment::eth0(format!("filler{number}"), self.pod.path());
        let mut free = 0;
        while free <= wanted && runtime.add(&self.addresses, &filler(free)).is_ok() {
            free += 1;
        }
        (0..free).try_for_each(|number| runtime.del(&self.addresses, &filler(number)))?;
        if free == wanted { Ok(()) } else { Err(format!("{free} addresses are free instead of {wanted}").into()) }
    }
}
