//! When addresses were released, so that they can rest: a short log, oldest first.
//!
//! A record is 16 bytes of address (IPv4 mapped into IPv6) and 8 bytes of milliseconds since boot, both big endian. What
//! cannot be read counts as nothing: the worst that follows is an address that rests too little.

use super::{REST, disk};
use crate::error::IpamError;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

const RECORD: usize = 24;

/// Most records that count; the oldest rest less where more is released in [`REST`] (68 a second).
const CAPACITY: usize = 4096;

/// The addresses that rest now.
#[derive(Debug, Default)]
pub(super) struct Released(HashMap<IpAddr, Duration>);

impl Released {
    pub(super) fn load(side: &Path, now: Duration) -> Self {
        let log = disk::read(&side.join("released"), 2 * CAPACITY * RECORD).ok().flatten().unwrap_or_default();
        let mut resting = HashMap::new();
        for (address, when) in live(&log, now) {
            // Newest first: it is the last release that counts.
            resting.entry(address).or_insert(when);
        }
        Released(resting)
    }

    /// When `ip` was released, if it still rests.
    pub(super) fn when(&self, ip: IpAddr) -> Option<Duration> {
        self.0.get(&ip).copied()
    }
}

/// The records that still count, newest first.
fn live(log: &[u8], now: Duration) -> impl Iterator<Item = (IpAddr, Duration)> {
    let whole = log.len() - log.len() % RECORD;
    log.get(..whole)
        .unwrap_or_default()
        .rchunks_exact(RECORD)
        .take(CAPACITY)
        .filter_map(|record| {
            let (address, when) = record.split_at_checked(16)?;
            let address = Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?);
            let when = u64::from_be_bytes(when.try_into().ok()?);
            Some((IpAddr::V6(address).to_canonical(), Duration::from_millis(when)))
        })
        // A record from the future was made before the last boot.
        .filter(move |(_, when)| now.checked_sub(*when).is_some_and(|age| age < REST))
}

/// Records that `ip` is being released.
pub(super) fn note(side: &Path, ip: IpAddr, now: Duration) -> Result<(), IpamError> {
    let path = side.join("released");
    let size = disk::kind(&path)?.map_or(0, |metadata| metadata.len());
    let limit = 2 * CAPACITY * RECORD;
    if size % RECORD as u64 != 0 || size + RECORD as u64 > limit as u64 {
        let log = disk::read(&path, limit)?.unwrap_or_default();
        let mut kept: Vec<_> = live(&log, now).collect();
        kept.reverse();
        let kept: Vec<u8> = kept.iter().flat_map(|(ip, when)| record(*ip, *when)).collect();
        disk::overwrite(&path, &kept, 0o600)?;
    }
    disk::append(&path, &record(ip, now), 0o600)
}

fn record(ip: IpAddr, when: Duration) -> [u8; RECORD] {
    let address = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut record = [0; RECORD];
    let when = u64::try_from(when.as_millis()).unwrap_or(u64::MAX);
    for (byte, value) in record.iter_mut().zip(address.octets().into_iter().chain(when.to_be_bytes())) {
        *byte = value;
    }
    record
}
