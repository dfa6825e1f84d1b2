//! What this process does itself for the data path, kept in step with what is wanted of it.

use crate::backend::{Work, udp};
use crate::family::{Family, PerFamily};

/// The running parts.
#[derive(Debug, Default)]
pub struct Worker {
    proxies: PerFamily<udp::Proxy>,
}

impl Worker {
    /// Starts, changes and ends what `work` asks for; what is as it should be is left alone.
    ///
    /// # Errors
    /// What could not be started, in words; the next call tries again.
    pub fn ensure(&mut self, work: &Work) -> Result<(), String> {
        let plan = |family| match work {
            Work::Udp(plans) => plans.iter().find(|plan| plan.family == family),
            Work::None => None,
        };
        let outcomes = Family::ALL.map(|family| self.ensure_proxy(family, plan(family)));
        let failures: Vec<String> = outcomes.into_iter().filter_map(Result::err).collect();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
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
