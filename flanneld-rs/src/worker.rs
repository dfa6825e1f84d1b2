//! What this process does itself for the data path, kept in step with what is wanted of it.

use crate::backend::{Work, udp};
use crate::extension::{Commands, Runner};
use crate::family::{Family, PerFamily};
use std::sync::Arc;

/// The running parts.
#[derive(Debug, Default)]
pub struct Worker {
    proxies: PerFamily<udp::Proxy>,
    commands: Option<(Arc<Commands>, Runner)>,
}

impl Worker {
    /// Starts, changes and ends what `work` asks for; what is as it should be is left alone.
    ///
    /// # Errors
    /// What could not be started, in words; the next call tries again.
    pub fn ensure(&mut self, work: &Work) -> Result<(), String> {
        let plan = |family| match work {
            Work::Udp(plans) => plans.iter().find(|plan| plan.family == family),
            Work::None | Work::Commands(..) => None,
        };
        let outcomes = Family::ALL.map(|family| self.ensure_proxy(family, plan(family)));
        let commands = self.ensure_commands(work);
        let failures: Vec<String> = outcomes.into_iter().chain([commands]).filter_map(Result::err).collect();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    fn ensure_commands(&mut self, work: &Work) -> Result<(), String> {
        let Work::Commands(commands, plan) = work else {
            self.commands = None;
            return Ok(());
        };
        match &self.commands {
            Some((running, runner)) if running == commands => runner.ensure(plan),
            _ => {
                let runner = Runner::start(commands.clone(), plan.clone());
                let outcome = runner.ensure(plan);
                self.commands = Some((commands.clone(), runner));
                outcome
            }
        }
    }

    fn ensure_proxy(&mut self, family: Family, plan: Option<&udp::Plan>) -> Result<(), String> {
        let running = self.proxies.take(family);
        let Some(plan) = plan else { return Ok(()) };
        let mut proxy = match running.filter(|proxy| proxy.serves(plan)) {
            Some(proxy) => proxy,
            None => {
                let proxy = udp::Proxy::start(plan).map_err(|error| error.to_string())?;
                tracing::info!("carrying packets of {} over UDP {}", plan.device, plan.bind);
                proxy
            }
        };
        proxy.set_nodes(plan);
        let refused = proxy.take_refused();
        if refused > 0 {
            tracing::debug!("{}: {refused} packets could not be sent", plan.device);
        }
        self.proxies.set(family, proxy);
        Ok(())
    }
}
