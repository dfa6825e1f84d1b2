//! Specification versions.

/// A version of the CNI specification that we speak, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.1.0
    V0_1_0,
    /// 0.2.0
    V0_2_0,
    /// 0.3.0
    V0_3_0,
    /// 0.3.1
    V0_3_1,
    /// 0.4.0: CHECK
    V0_4_0,
    /// 1.0.0: no more `version` in `ips`
    V1_0_0,
    /// 1.1.0: GC, STATUS, interface mtu and socketPath, route mtu, advmss, priority, table, scope
    V1_1_0,
}
