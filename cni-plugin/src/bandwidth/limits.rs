//! The capability `bandwidth`: how fast a pod may send and receive.

use cni_spec::{CniError, Field, NetworkConfig};
use kernel::netlink::TokenBucket;

/// The limits of one attachment. As in the conventions, `ingress` is what the pod receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// of what goes to the pod
    pub(crate) ingress: Option<Limit>,
    /// of what comes from the pod
    pub(crate) egress: Option<Limit>,
}

/// One direction's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// bits per second, from [`SLOWEST`] on
    rate: u64,
    /// bits that may go at once after a pause, if the configuration says so
    burst: Option<u64>,
}

/// Below this many bits per second a full frame takes more than a second.
const SLOWEST: u64 = 12_000;
/// What a frame has besides the MTU's bytes: the Ethernet header.
const HEADER: u64 = 14;
/// Frames that must fit into the bucket: with a single one, a timer that is late would cost rate.
const FEWEST_AT_ONCE: u64 = 2;
/// Frames that must fit into the queue: the first window of a TCP connection (RFC 6928) shall not be cut down.
const FEWEST_WAITING: u64 = 10;
/// The largest burst, and the default one, as a part of a second of the rate: with it a limit holds in the very first second.
/// It bridges the few milliseconds that a timer may be late. The bursts that runtimes ask for are of another kind: by 2^31 or
/// 2^32 bits a limit of 10 Mbit/s would start after seconds at full speed.
const BURST: u64 = 100;
/// The queue as such a part: 25 ms, as in the reference plugin. With less, TCP that starts loses whole windows and waits for
/// its timer; more is nothing but delay. It holds any burst, so that no packet passes the bucket that the queue refuses: one
/// that is cut into frames later counts whole.
const QUEUE: u64 = 40;

impl Limits {
    /// The limits of `config`: those of `runtimeConfig.bandwidth`, or else those in the configuration itself, by the keys of
    /// the reference plugin. A rate of 0 is none.
    ///
    /// # Errors
    /// `InvalidConfig` for a rate that no frame gets through with, or a burst without a rate; `UnsupportedField` for
    /// limits that depend on the other side's address.
    pub(crate) fn parse(config: &NetworkConfig) -> Result<Self, CniError> {
        let granted = config.field("runtimeConfig").field("bandwidth")?;
        let field = |key: &str| match granted.value() {
            Some(_) => granted.field(key),
            None => Ok(config.field(key)),
        };
        for key in ["shapedSubnets", "unshapedSubnets"] {
            let subnets = field(key)?;
            if !subnets.items()?.is_empty() {
                let error = subnets.invalid(
                    "limits are for all of a pod's traffic here: leave it out, or keep the reference bandwidth plugin",
                );
                return Err(CniError { code: cni_spec::Code::UnsupportedField, ..error });
            }
        }
        Ok(Limits {
            ingress: Limit::parse(&field("ingressRate")?, &field("ingressBurst")?)?,
            egress: Limit::parse(&field("egressRate")?, &field("egressBurst")?)?,
        })
    }

    /// Whether there is nothing to limit.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Limits::default()
    }
}

impl Limit {
    fn parse(rate: &Field<'_>, burst: &Field<'_>) -> Result<Option<Self>, CniError> {
        let given = |field: &Field<'_>| Ok::<_, CniError>(field.number::<u64>()?.filter(|number| *number != 0));
        match (given(rate)?, given(burst)?) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(burst.invalid(format!("a burst without {}: set both", rate.path()))),
            (Some(bits), _) if bits < SLOWEST => {
                Err(rate.wanted(&format!("at least {SLOWEST} bits per second, or 0 for no limit")))
            }
            (Some(rate), burst) => Ok(Some(Limit { rate, burst })),
        }
    }

    /// The token bucket that keeps this limit on a device with this MTU (bytes).
    pub(crate) fn bucket(&self, mtu: u32) -> TokenBucket {
        let (rate, frame) = (self.rate / 8, u64::from(mtu) + HEADER);
        let size = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        let burst = (rate / BURST).min(self.burst.map_or(u64::MAX, |bits| bits / 8));
        TokenBucket {
            rate,
            burst: size(burst.max(FEWEST_AT_ONCE * frame)),
            limit: size((rate / QUEUE).max(FEWEST_WAITING * frame)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<Limits, CniError> {
        let config = format!(r#"{{"cniVersion": "1.0.0", "name": "net", "type": "bandwidth", {fields}}}"#);
        Limits::parse(&NetworkConfig::parse(config.as_bytes()).unwrap())
    }

    fn limit(rate: u64, burst: Option<u64>) -> Option<Limit> {
        Some(Limit { rate, burst })
    }

    #[test]
    fn the_runtimes_limits_replace_those_of_the_network() {
        let of_network = r#""ingressRate": 100000, "ingressBurst": 200000, "egressRate": 300000"#;
        let limits = parse(of_network).unwrap();
        assert_eq!(limits, Limits { ingress: limit(100_000, Some(200_000)), egress: limit(300_000, None) });
        let limits = parse(&format!(r#"{of_network}, "runtimeConfig": {{"bandwidth": {{"egressRate": 500000}}}}"#));
        assert_eq!(limits.unwrap(), Limits { ingress: None, egress: limit(500_000, None) });
        assert_eq!(
            parse(&format!(r#"{of_network}, "runtimeConfig": {{"bandwidth": null}}"#)).unwrap().egress,
            limit(300_000, None)
        );
        assert!(parse(r#""ingressRate": 0, "ingressBurst": 0"#).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_a_limit_is_refused_by_name() {
        for (fields, words) in [
            (r#""ingressBurst": 1000"#, "ingressBurst: a burst without ingressRate"),
            (r#""egressRate": 1000"#, "egressRate: must be at least 12000"),
            (r#""egressRate": -1"#, "egressRate: must be a whole number"),
            (r#""egressRate": "10M""#, "egressRate: must be a whole number"),
            (r#""ingressRate": 100000, "unshapedSubnets": ["10.0.0.0/8"]"#, "unshapedSubnets: limits are for all"),
            (r#""runtimeConfig": {"bandwidth": {"ingressRate": 1}}"#, "runtimeConfig.bandwidth.ingressRate"),
            (r#""runtimeConfig": {"bandwidth": 7}"#, "runtimeConfig.bandwidth"),
        ] {
            let error = parse(fields).unwrap_err();
            assert!(error.msg.contains(words), "{fields}: {}", error.msg);
        }
        assert!(parse(r#""ingressRate": 100000, "shapedSubnets": []"#).is_ok());
    }

    #[test]
    fn a_bucket_never_holds_more_than_a_small_part_of_the_first_second() {
        for rate in [SLOWEST, 100_000, 1_000_000, 10_000_000, 1_000_000_000, 100_000_000_000, u64::MAX] {
            // Absent, nothing, the runtimes' defaults, and more than there is.
            for burst in [None, Some(1), Some(268_435_456), Some((1 << 31) - 1), Some((1 << 32) - 1), Some(u64::MAX)] {
                for mtu in [1280, 1450, 65_535] {
                    let bucket = Limit { rate, burst }.bucket(mtu);
                    let frame = u64::from(mtu) + 14;
                    assert!(
                        u64::from(bucket.burst) >= 2 * frame && u64::from(bucket.limit) >= 10 * frame,
                        "{bucket:?}"
                    );
                    assert!(u64::from(bucket.burst) <= (2 * frame).max(bucket.rate / 100), "{bucket:?}");
                    assert!(u64::from(bucket.limit) <= (10 * frame).max(bucket.rate / 40), "{bucket:?}");
                    assert!(bucket.burst <= bucket.limit, "{bucket:?}");
                }
            }
        }
        let usual = Limit { rate: 10_000_000, burst: Some((1 << 31) - 1) }.bucket(1450);
        assert_eq!(usual, TokenBucket { rate: 1_250_000, burst: 12_500, limit: 31_250 });
        assert_eq!(Limit { rate: 10_000_000, burst: None }.bucket(1450), usual);
        assert_eq!(Limit { rate: 10_000_000, burst: Some(80_000) }.bucket(1450).burst, 10_000);
    }
}
