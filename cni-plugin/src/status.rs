//! STATUS: would an ADD work now?

use crate::config::{Dialect, PluginConfig};
use cni_spec::{Arguments, CniError, Code, NetworkConfig};

/// Fails with "not available" (50) and the reason while the subnet file is missing or unusable, or no address is free.
pub(crate) fn status(dialect: Dialect, config: &NetworkConfig) -> Result<(), CniError> {
    let unavailable = |error: CniError| CniError { code: Code::NotAvailable, ..error };
    let parsed = PluginConfig::parse(dialect, config, &Arguments::new()).map_err(unavailable)?;
    parsed.ipam.status(config).map_err(unavailable)
}
