//! What drivers can do, and are told to: ethtool's older interface (linux/ethtool.h), which every kernel and device has.

use super::Netlink;
use crate::{Error, Result};
use nix::errno::Errno;

/// struct ethtool_drvinfo
const GET_DRIVER: u32 = 0x03;
/// struct ethtool_value: whether checksums of packets to be sent are left to the device
const GET_TX_CHECKSUM: u32 = 0x16;
const SET_TX_CHECKSUM: u32 = 0x17;
/// Size of struct ethtool_drvinfo, in which the driver's name of up to 32 bytes follows the command.
const DRIVER_BYTES: usize = 196;
const NAME_BYTES: usize = 32;

impl Netlink {
    /// Whether the checksums of packets that leave by the device are left to it, or to whoever carries its packets on; tunnels
    /// leave them to the device below. None if there is no such device, or it knows no such thing.
    pub fn tx_checksum(&self, name: &str) -> Result<Option<bool>> {
        let mut value = value(GET_TX_CHECKSUM, 0);
        let found = self.ask_driver(name, &mut value, || format!("asking for the checksum offload of {name}"))?;
        Ok(found.then(|| value.get(4..).is_some_and(|on| on.iter().any(|byte| *byte != 0))))
    }

    /// Leaves the checksums of packets to the device, or has the kernel compute them before.
    pub fn set_tx_checksum(&self, name: &str, on: bool) -> Result<()> {
        let word = if on { "on" } else { "off" };
        let operation = || format!("switching checksum offload of {name} {word}");
        match self.ask_driver(name, &mut value(SET_TX_CHECKSUM, on.into()), operation)? {
            true => Ok(()),
            false => Err(Error::new(operation(), Errno::EOPNOTSUPP)),
        }
    }

    /// Name of the driver of a device, such as "veth". None if there is no such device, or nobody has a name for it.
    pub fn driver(&self, name: &str) -> Result<Option<String>> {
        let mut answer = [0; DRIVER_BYTES];
        answer[..4].copy_from_slice(&GET_DRIVER.to_ne_bytes());
        if !self.ask_driver(name, &mut answer, || format!("asking for the driver of {name}"))? {
            return Ok(None);
        }
        let text = answer[4..4 + NAME_BYTES].split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Some(String::from_utf8_lossy(text).into_owned()).filter(|name| !name.is_empty()))
    }

    /// Hands `data` to the driver, which may answer in it. False if there is no such device or ability.
    fn ask_driver(&self, name: &str, data: &mut [u8], operation: impl Fn() -> String) -> Result<bool> {
        match self.socket.ethtool(name, data) {
            Ok(()) => Ok(true),
            Err(Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(false),
            Err(errno) => Err(Error::new(operation(), errno)),
        }
    }
}

/// struct ethtool_value
fn value(command: u32, data: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&command.to_ne_bytes());
    bytes[4..].copy_from_slice(&data.to_ne_bytes());
    bytes
}
