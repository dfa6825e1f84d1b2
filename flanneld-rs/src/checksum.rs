//! Who computes the checksums of pods' packets. A tunnel leaves them to the underlay, whose card does it for little; but some
//! kernels and cards get them wrong inside of a tunnel, and whoever receives such a packet drops it without a word.

use crate::uplink::Way;
use kernel::sysctl;
use std::str::FromStr;

/// What the operator says (`txChecksum` of the backend, `--tx-checksum`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TxChecksum {
    /// the kernel computes them where the underlay is known to get them wrong; elsewhere nobody touches the tunnel's setting,
    /// which may be that of an administrator's udev rule
    #[default]
    Auto,
    /// they are left to the underlay
    On,
    /// the kernel computes them
    Off,
}

impl FromStr for TxChecksum {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(TxChecksum::Auto),
            "on" => Ok(TxChecksum::On),
            "off" => Ok(TxChecksum::Off),
            _ => Err("none of auto, on, off"),
        }
    }
}

/// A release of Linux, as far as it matters here: version and patch level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelRelease(pub u32, pub u32);

impl KernelRelease {
    /// The running kernel's, if it tells one that can be read.
    pub fn running() -> Option<Self> {
        sysctl::get("kernel.osrelease").ok()?.parse().ok()
    }
}

impl FromStr for KernelRelease {
    type Err = &'static str;

    /// Takes it from the front of what `uname -r` says, such as 6.1.0-18-amd64.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(version)), Some(Ok(level))) => Ok(KernelRelease(version, level)),
            _ => Err("no release of Linux"),
        }
    }
}

/// From here on the kernel lets a masqueraded packet keep the zero that says that a tunnel's outer packet has no checksum
/// (commit ea64d8d6c675).
const MENDED: KernelRelease = KernelRelease(5, 7);

/// Drivers whose cards, or what is behind them, are known to spoil checksums inside of tunnels: VMware's, of which several
/// versions announce an ability that the hypervisor lacks for ports other than the one that it knows.
const SPOILERS: [&str; 1] = ["vmxnet3"];

/// What this node goes by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checksums {
    /// what was said
    pub choice: TxChecksum,
    /// the kernel that runs, if it is known
    pub kernel: Option<KernelRelease>,
}

impl Checksums {
    /// Whether a tunnel by this way must leave checksums to the underlay, or must not. None: it may stay as it is.
    pub fn offload(&self, way: &Way) -> Option<bool> {
        match self.choice {
            TxChecksum::On => Some(true),
            TxChecksum::Off => Some(false),
            TxChecksum::Auto => self.flaw(way).map(|_| false),
        }
    }

    /// Why checksums cannot be left to the underlay, if they cannot.
    fn flaw(&self, way: &Way) -> Option<String> {
        if let Some(KernelRelease(version, level)) = self.kernel.filter(|kernel| *kernel < MENDED) {
            return Some(format!("Linux {version}.{level} gets those of masqueraded tunnels wrong"));
        }
        if let Some(driver) = SPOILERS.into_iter().find(|spoiler| way.drivers.contains(*spoiler)) {
            return Some(format!("driver {driver} of {} gets those inside of tunnels wrong", way.interface));
        }
        // flannel's advice to who has these in his way (its troubleshooting page, under NAT).
        way.translated.then(|| format!("addresses are translated on the way to {}, which may spoil them", way.public))
    }

    /// What an operator should know: that they are not left to the underlay, and why.
    pub fn remark(&self, way: &Way) -> Option<String> {
        let reason = match self.choice {
            TxChecksum::Auto => self.flaw(way)?,
            TxChecksum::Off => "txChecksum is off".into(),
            TxChecksum::On => return None,
        };
        Some(format!("checksums of pods' packets are computed by the kernel: {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_from_what_uname_says() {
        for (text, release) in [
            ("6.18.0", Some(KernelRelease(6, 18))),
            ("5.4.0-42-generic", Some(KernelRelease(5, 4))),
            ("5.10-rc1", Some(KernelRelease(5, 10))),
            ("4.18.0-553.el8_10.x86_64", Some(KernelRelease(4, 18))),
            ("", None),
            ("next", None),
            ("6", None),
            ("99999999999.1", None),
        ] {
            assert_eq!(text.parse().ok(), release, "{text}");
        }
        assert!(KernelRelease::running().is_some());
    }

    #[test]
    fn the_kernel_computes_what_the_underlay_would_spoil() {
        let way = |driver: &str, translated: bool| Way {
            interface: "eth0".into(),
            mtu: 1500,
            local: [192, 0, 2, 1].into(),
            public: [203, 0, 113, 1].into(),
            translated,
            on_link: Vec::new(),
            drivers: [driver.into(), "bonding".into()].into(),
        };
        let (good, translated) = (way("virtio_net", false), way("virtio_net", true));
        let vmware = way("vmxnet3", false);
        for (kernel, way, auto) in [
            ("6.18.0", &good, None),
            ("5.7.0", &good, None),
            ("5.6.19", &good, Some(false)),
            ("4.18.0", &good, Some(false)),
            ("6.18.0", &vmware, Some(false)),
            ("6.18.0", &translated, Some(false)),
        ] {
            let offload = |choice| Checksums { choice, kernel: kernel.parse().ok() }.offload(way);
            let told = Checksums { choice: TxChecksum::Auto, kernel: kernel.parse().ok() }.remark(way);
            assert_eq!((offload(TxChecksum::Auto), told.is_some()), (auto, auto.is_some()), "{kernel} {way:?}");
            assert_eq!((offload(TxChecksum::On), offload(TxChecksum::Off)), (Some(true), Some(false)));
        }
        // Who does not know his kernel leaves things alone.
        assert_eq!(Checksums::default().offload(&good), None);
    }
}
