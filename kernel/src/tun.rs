//! TUN devices: the kernel hands the IP packets that it routes into one to a process, and takes packets from it
//! (Documentation/networking/tuntap.rst).
//!
//! Ours are persistent: device, addresses and routes outlive the process, so that between two lives of a daemon packets
//! are dropped in the device, and never take another route.

use crate::netns::Netns;
use crate::{Error, Result};
use nix::errno::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

const CLONE_DEVICE: &str = "/dev/net/tun";

/// A TUN device and this process's hold on it: one packet for each read and write, without any header before it. Nobody
/// else can hold it meanwhile.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
}

impl Tun {
    /// Takes the device `name` in the namespace of the calling thread, and makes it if there is none: persistent, down,
    /// without addresses. Where it is persistent already, its state is left alone.
    ///
    /// EBUSY if another process holds it, or if the name is that of a device of another kind.
    pub fn open(name: &str) -> Result<Self> {
        let tun = Self::attach(name, 0)?;
        tun.keep()?;
        Ok(tun)
    }

    /// As [`Tun::open`], but one that is new goes with the process until it is [kept](Tun::keep).
    pub(crate) fn open_for_now(name: &str) -> Result<Self> {
        Self::attach(name, 0)
    }

    /// From now on the device outlives this process.
    pub(crate) fn keep(&self) -> Result<()> {
        control(&self.file, libc::TUNSETPERSIST, 1)
            .map_err(|errno| Error::new(format!("making TUN device {} persistent", self.name), errno))
    }

    /// As [`Tun::open`], for many packets at once: each read and write has a `struct virtio_net_hdr` before the packet, TCP
    /// packets of up to 64 KiB come and go in one piece, and checksums may be left to the reader.
    pub fn open_with_offload(name: &str) -> Result<Self> {
        let tun = Self::attach(name, libc::IFF_VNET_HDR)?;
        tun.keep()?;
        let offload = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        control(&tun.file, libc::TUNSETOFFLOAD, offload as usize)
            .map_err(|errno| Error::new(format!("switching on the offload of TUN device {name}"), errno))?;
        Ok(tun)
    }

    fn attach(name: &str, mode: libc::c_int) -> Result<Self> {
        let operation = || format!("opening TUN device {name}");
        let mut request = request(name, mode).ok_or_else(|| {
            Error::new(operation(), Errno::EINVAL)
                .because("a name has 1 to 15 bytes, and no '%', '/', ':' or white space")
        })?;
        let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(CLONE_DEVICE);
        let file = file.map_err(|error| {
            Error::io(operation(), &error).because(format!("{CLONE_DEVICE} cannot be opened (is module tun loaded?)"))
        })?;
        let refused = |errno| {
            let error = Error::new(operation(), errno);
            match errno {
                Errno::EBUSY => {
                    error.because("another process holds it: end that first (is another flanneld running?)")
                }
                Errno::EINVAL => {
                    error.because("there is a device of this name which is none of ours: delete or rename it")
                }
                _ => error,
            }
        };
        control(&file, libc::TUNSETIFF, (&raw mut request).expose_provenance()).map_err(refused)?;
        // Without an owner anybody who may open the clone device could take over a persistent device while its daemon is
        // away (`tun_not_capable` in drivers/net/tun.c).
        let owner = nix::unistd::geteuid().as_raw() as usize;
        control(&file, libc::TUNSETOWNER, owner).map_err(refused)?;
        Ok(Tun { file, name: name.to_owned() })
    }

    /// As [`Tun::open`], in another namespace.
    pub fn open_in(netns: &Netns, name: &str) -> Result<Self> {
        let _inside = netns.enter()?;
        Self::open(name)
    }

    /// The name that it was opened by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the device still exists; once it was deleted this hold on it is of no use any more.
    pub fn is_attached(&self) -> bool {
        let mut answer =
            libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 } };
        control(&self.file, libc::TUNGETIFF, (&raw mut answer).expose_provenance()).is_ok()
    }

    /// Reads one packet, and returns its length. A packet that is longer than `buffer` is cut off.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; EBADFD once the device was deleted, which is for ever.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Gives one packet to the kernel, as if it had come in by this device.
    ///
    /// # Errors
    /// EINVAL if it is no IP packet, EIO while the device is down, EBADFD once it was deleted.
    pub fn write(&self, packet: &[u8]) -> io::Result<usize> {
        (&self.file).write(packet)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// The argument of TUNSETIFF; none if the name can be none (`dev_valid_name`, and `%` would make the kernel number it).
fn request(name: &str, mode: libc::c_int) -> Option<libc::ifreq> {
    let forbidden = |c: u8| matches!(c, b'/' | b':' | b'%' | 0) || c.is_ascii_whitespace();
    if !(1..libc::IFNAMSIZ).contains(&name.len()) || matches!(name, "." | "..") || name.bytes().any(forbidden) {
        return None;
    }
    // The constants fit: the field is 16 bits of flags, whatever their sign.
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI | mode) as libc::c_short;
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Some(libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } })
}

fn control(file: &File, request: libc::Ioctl, argument: usize) -> std::result::Result<(), Errno> {
    // SAFETY: the descriptor is open; TUNSETIFF and TUNGETIFF read and write one ifreq, whose address the argument is then,
    // and the two other requests take a number.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), request, argument) }).map(drop)
}
