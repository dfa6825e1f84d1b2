//! The subnets that the daemon may lease out of a network: flannel's rules of Network, SubnetLen, SubnetMin, SubnetMax.

use ipnetwork::IpNetwork;
use std::fmt;
use std::net::IpAddr;

/// A network configuration that makes no sense, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetPoolError(pub String);

impl fmt::Display for SubnetPoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SubnetPoolError {}

/// All subnets that may be leased out of one network, of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetPool {
    network: IpNetwork,
    length: u8,
    first: IpAddr,
    last: IpAddr,
}

impl SubnetPool {
    /// The pool of `network` with the optional SubnetLen, SubnetMin and SubnetMax.
    pub fn new(
        _network: IpNetwork,
        _length: Option<u8>,
        _min: Option<IpAddr>,
        _max: Option<IpAddr>,
    ) -> Result<Self, SubnetPoolError> {
        todo!()
    }

    /// The network, without host bits.
    pub fn network(&self) -> IpNetwork {
        self.network
    }

    /// Prefix length of the subnets.
    pub fn subnet_length(&self) -> u8 {
        self.length
    }

    /// All subnets in ascending order.
    pub fn candidates(&self) -> impl Iterator<Item = IpNetwork> + use<> {
        std::iter::empty()
    }

    /// Whether a lease of `subnet` fits this configuration: right size, inside SubnetMin and SubnetMax.
    pub fn is_compatible(&self, _subnet: &IpNetwork) -> bool {
        todo!()
    }

    /// One of the first 100 candidates that overlap nothing in `taken`; `choose(n)` gives an index below n. None: all are
    /// taken.
    pub fn pick<'a>(
        &self,
        _taken: impl IntoIterator<Item = &'a IpNetwork>,
        _choose: impl FnOnce(usize) -> usize,
    ) -> Option<IpNetwork> {
        todo!()
    }
}
