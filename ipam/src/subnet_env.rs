//! The file in which the daemon tells this node's plugins what they may hand out: `KEY=VALUE` lines as flannel writes
//! them.

use crate::address::without_host_bits;
use crate::own_file::replace;
use crate::regular_file::read_bounded;
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Where plugins look unless `subnetFile` says otherwise.
pub const DEFAULT_PATH: &str = "/run/flannel/subnet.env";

/// Largest file that is read, in bytes.
const LARGEST: usize = 64 << 10;

/// Most networks of one family (a list of cluster CIDRs).
const MOST_NETWORKS: usize = 64;

/// Keys of network and subnet, per family, in the order of the file.
const FAMILIES: [(&str, &str); 2] =
    [("FLANNEL_NETWORK", "FLANNEL_SUBNET"), ("FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET")];

/// Smallest MTU of IPv4 (RFC 791), largest that the kernel takes.
const MTU: std::ops::RangeInclusive<u32> = 68..=65_535;

/// What the daemon leased for this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// the cluster's networks, IPv4 first
    pub networks: Vec<IpNetwork>,
    /// this node's subnets, at most one per family, IPv4 first, each with its gateway (the first usable address) as address
    pub subnets: Vec<IpNetwork>,
    /// MTU for pods, in bytes
    pub mtu: u32,
    /// whether the daemon masquerades what leaves the cluster
    pub ip_masq: bool,
}

/// Why a subnet file is of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubnetEnvError {
    /// there is none at this path: the daemon is not ready
    Missing(PathBuf),
    /// it cannot be read or written; text with path and errno
    Io(String),
    /// its content is wrong; text with the line
    Invalid(String),
}

impl fmt::Display for SubnetEnvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SubnetEnvError::Missing(path) => {
                let path = path.display();
                write!(
                    f,
                    "subnet file {path} does not exist: flanneld has no lease yet (is it running, and what does it log?)"
                )
            }
            SubnetEnvError::Io(text) => f.write_str(text),
            SubnetEnvError::Invalid(text) => write!(f, "{text} (restart flanneld, which writes the file anew)"),
        }
    }
}

impl std::error::Error for SubnetEnvError {}

impl SubnetEnv {
    /// The cluster's networks.
    pub fn networks(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.networks.iter().copied()
    }

    /// This node's subnets, with the gateway as address.
    pub fn subnets(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.subnets.iter().copied()
    }

    /// Reads the text of a subnet file. Unknown keys, comments and empty lines are skipped; of a key that occurs twice the
    /// last counts, as for a shell that sources the file.
    ///
    /// # Errors
    /// `Invalid` with the line, or the key that is missing.
    pub fn parse(text: &str) -> Result<Self, SubnetEnvError> {
        let mut values = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let number = index + 1;
            let (key, value) = line
                .split_once('=')
                .ok_or_else(|| SubnetEnvError::Invalid(format!("line {number} is not KEY=VALUE: {}", excerpt(line))))?;
            values.insert(key.trim(), Value { number, key: key.trim(), text: value.trim() });
        }
        let mut read = SubnetEnv { networks: Vec::new(), subnets: Vec::new(), mtu: 0, ip_masq: false };
        for (is_ipv4, (network, subnet_key)) in [true, false].into_iter().zip(FAMILIES) {
            let networks = values.get(network).map(|value| value.networks(is_ipv4)).transpose()?.unwrap_or_default();
            let subnet = values.get(subnet_key).map(|value| value.network(value.text, is_ipv4)).transpose()?;
            if subnet.is_some() == networks.is_empty() {
                return Err(SubnetEnvError::Invalid(format!("{network} and {subnet_key} come only together")));
            }
            read.networks.extend(networks.into_iter().map(without_host_bits));
            read.subnets.extend(subnet);
        }
        if read.subnets.is_empty() {
            return Err(SubnetEnvError::Invalid("neither FLANNEL_SUBNET nor FLANNEL_IPV6_SUBNET is set".into()));
        }
        let needed = |key| values.get(key).ok_or_else(|| SubnetEnvError::Invalid(format!("{key} is not set")));
        let mtu = needed("FLANNEL_MTU")?;
        read.mtu =
            mtu.text.parse().ok().filter(|bytes| MTU.contains(bytes)).ok_or_else(|| mtu.wanted("68 to 65535"))?;
        let ip_masq = needed("FLANNEL_IPMASQ")?;
        read.ip_masq = ip_masq.text.parse().map_err(|_| ip_masq.wanted("true or false"))?;
        Ok(read)
    }

    /// The text of the file, to the byte as flannel writes it.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (is_ipv4, (network_key, subnet_key)) in [true, false].into_iter().zip(FAMILIES) {
            let of_family = |networks: &[IpNetwork]| -> Vec<String> {
                networks.iter().filter(|network| network.is_ipv4() == is_ipv4).map(IpNetwork::to_string).collect()
            };
            let subnets = of_family(&self.subnets);
            if let Some(subnet) = subnets.first() {
                let networks = of_family(&self.networks).join(",");
                text += &format!("{network_key}={networks}\n{subnet_key}={subnet}\n");
            }
        }
        text + &format!("FLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n", self.mtu, self.ip_masq)
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// `Missing`; `Io`; `Invalid`, which also covers a file larger than 64 KiB.
    pub fn read(path: &Path) -> Result<Self, SubnetEnvError> {
        let about = |text: String| SubnetEnvError::Invalid(format!("subnet file {}: {text}", path.display()));
        let content = match read_bounded(path, LARGEST) {
            Ok(Some((content, _))) => content,
            Ok(None) => return Err(SubnetEnvError::Missing(path.to_owned())),
            Err(error) if error.kind() == ErrorKind::FileTooLarge => return Err(about(error.to_string())),
            Err(error) => return Err(io_error("reading subnet file", path, &error)),
        };
        let text = str::from_utf8(&content).map_err(|_| about("not text".into()))?;
        SubnetEnv::parse(text).map_err(|error| match error {
            SubnetEnvError::Invalid(text) => about(text),
            other => other,
        })
    }

    /// Replaces the file at `path` atomically, creating parent directories. Pods' plugins may run as anybody: all may read it.
    ///
    /// # Errors
    /// `Io`; the file that was there stays as it was.
    pub fn write(&self, path: &Path) -> Result<(), SubnetEnvError> {
        if path.file_name().is_none() {
            return Err(SubnetEnvError::Io(format!("subnet file {} is not the path of a file", path.display())));
        }
        let written = replace(path, 0o644, |out| out.write_all(self.render().as_bytes()));
        written.map_err(|error| io_error("writing subnet file", path, &error))
    }
}

/// A value and where it stands.
struct Value<'a> {
    number: usize,
    key: &'a str,
    text: &'a str,
}

impl Value<'_> {
    fn networks(&self, is_ipv4: bool) -> Result<Vec<IpNetwork>, SubnetEnvError> {
        let parts: Vec<&str> = self.text.split(',').collect();
        if parts.len() > MOST_NETWORKS {
            return Err(self.wanted("a list of at most 64 networks"));
        }
        parts.into_iter().map(|part| self.network(part.trim(), is_ipv4)).collect()
    }

    fn network(&self, text: &str, is_ipv4: bool) -> Result<IpNetwork, SubnetEnvError> {
        // A bare address is not a network, although ipnetwork takes it for one.
        let network = text.contains('/').then(|| text.parse().ok()).flatten();
        let what =
            if is_ipv4 { "an IPv4 network such as 10.42.0.0/16" } else { "an IPv6 network such as fd00:42::/56" };
        network.filter(|network: &IpNetwork| network.is_ipv4() == is_ipv4).ok_or_else(|| self.wanted(what))
    }

    fn wanted(&self, what: &str) -> SubnetEnvError {
        let Value { number, key, text } = self;
        SubnetEnvError::Invalid(format!("line {number}: {key} must be {what}, but is {}", excerpt(text)))
    }
}

/// Foreign text for a message.
fn excerpt(text: &str) -> String {
    format!("{:?}", text.chars().take(64).collect::<String>())
}

fn io_error(action: &str, path: &Path, error: &io::Error) -> SubnetEnvError {
    let reason = error.raw_os_error().map_or_else(|| error.to_string(), |number| Errno::from_raw(number).to_string());
    SubnetEnvError::Io(format!("{action} {}: {reason}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    const DUAL: &str = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.0.1/24\nFLANNEL_IPV6_NETWORK=2001:cafe:42::/56\n\
                        FLANNEL_IPV6_SUBNET=2001:cafe:42::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn reads_and_writes_to_the_byte() {
        let env = SubnetEnv::parse(DUAL).unwrap();
        assert_eq!(env.subnets, ["10.42.0.1/24".parse().unwrap(), "2001:cafe:42::1/64".parse().unwrap()]);
        assert_eq!((env.mtu, env.ip_masq), (1450, true));
        assert_eq!(env.render(), DUAL);
        let single = "FLANNEL_NETWORK=10.1.0.0/16,10.2.0.0/16\nFLANNEL_SUBNET=10.1.7.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n";
        assert_eq!(SubnetEnv::parse(single).unwrap().render(), single);
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        for (from, to, word) in [
            ("10.42.0.1/24", "10.42.0.1", "line 2: FLANNEL_SUBNET"),
            ("10.42.0.1/24", "fd00::1/64", "an IPv4 network"),
            ("10.42.0.0/16", "10.42.0.0/33", "line 1: FLANNEL_NETWORK"),
            ("1450", "67", "68 to 65535"),
            ("1450", "-1", "68 to 65535"),
            ("=true", "=yes", "true or false"),
            ("FLANNEL_MTU=1450\n", "", "FLANNEL_MTU is not set"),
            ("FLANNEL_IPMASQ=", "x", "line 6 is not KEY=VALUE"),
            ("FLANNEL_SUBNET", "X", "come only together"),
        ] {
            let error = SubnetEnv::parse(&DUAL.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(SubnetEnv::parse("").unwrap_err().to_string().contains("neither"));
    }

    /// Seeded changes to a good file: each is either refused with words or read as something that can be written again.
    #[test]
    fn hostile_text_is_answered() {
        let pieces = [
            "=",
            "\n",
            ",",
            "/",
            "::",
            "-1",
            "\0",
            "\u{661}",
            "99999999999999999999",
            "FLANNEL_MTU=",
            "10.42.0.1/24",
            "#",
        ];
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut dice = move |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % below as u64).unwrap()
        };
        let (mut read, mut refused) = (0, 0);
        for _ in 0..5000 {
            let mut text: Vec<char> = DUAL.chars().collect();
            for _ in 0..1 + dice(3) {
                let (from, length) = (dice(text.len()), dice(8));
                let to = (from + length).min(text.len());
                text.splice(from..to, pieces[dice(pieces.len())].chars());
            }
            match SubnetEnv::parse(&text.into_iter().collect::<String>()) {
                Ok(env) => {
                    read += 1;
                    assert_eq!(SubnetEnv::parse(&env.render()), Ok(env));
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().len() < 500);
                }
            }
        }
        assert!(read > 50 && refused > 1000, "{read} {refused}");
    }

    #[test]
    fn replaces_the_file_and_tells_of_its_absence() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/flannel/subnet.env");
        let missing = SubnetEnv::read(&path).unwrap_err();
        assert_eq!(missing, SubnetEnvError::Missing(path.clone()));
        assert!(missing.to_string().contains("flanneld"));
        let env = SubnetEnv::parse(DUAL).unwrap();
        env.write(&path).unwrap();
        SubnetEnv { mtu: 1400, ..env.clone() }.write(&path).unwrap();
        assert_eq!(SubnetEnv::read(&path).unwrap().mtu, 1400);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no draft stays behind");
        assert!(env.write(&path.join("below")).unwrap_err().to_string().contains("EEXIST"));
        fs::write(&path, vec![b'#'; 65 << 10]).unwrap();
        assert!(SubnetEnv::read(&path).unwrap_err().to_string().contains("more than"));
    }
}
