//! UDP sockets for tunnels: both families at one port, and whole bursts in one system call where the kernel can (UDP
//! segmentation and receive offload, udp(7)).

use crate::{Error, Result};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

/// IP_PMTUDISC_OMIT and IPV6_PMTUDISC_OMIT (linux/in.h, linux/in6.h): no DF bit, and no heed to what routers are said to
/// have told of the path, as in the kernel's own tunnels; who may forge an ICMP message must not shrink them.
const OMIT: libc::c_int = 5;
/// Room for the bursts of a fast sender, in bytes.
const BUFFER: usize = 4 << 20;

/// A socket that tunnels share.
#[derive(Debug)]
pub struct TunnelSocket {
    /// the socket; a blocking one
    pub socket: UdpSocket,
    /// it is an IPv6 socket, and sees IPv4 addresses as mapped ones
    pub dual: bool,
}

impl TunnelSocket {
    /// Listens at `port` of all addresses of both families, or of IPv4 where there is no IPv6.
    pub fn bind(port: u16) -> Result<Self> {
        let failed = |errno| {
            let error = Error::new(format!("listening at UDP port {port}"), errno);
            match errno {
                Errno::EADDRINUSE => error.because("another process, or a WireGuard device of the kernel, has it"),
                _ => error,
            }
        };
        let (fd, dual) = match open(AddressFamily::Inet6) {
            Ok(fd) => (fd, true),
            Err(Errno::EAFNOSUPPORT) => (open(AddressFamily::Inet).map_err(failed)?, false),
            Err(errno) => return Err(failed(errno)),
        };
        let (fd, dual) = match listen(&fd, dual, port) {
            Ok(()) => (fd, dual),
            // The module is there, and the administrator has switched IPv6 off.
            Err(Errno::EADDRNOTAVAIL) if dual => {
                let fd = open(AddressFamily::Inet).map_err(failed)?;
                listen(&fd, false, port).map_err(failed)?;
                (fd, false)
            }
            Err(errno) => return Err(failed(errno)),
        };
        tune(&fd, dual);
        Ok(TunnelSocket { socket: fd.into(), dual })
    }

    /// The address in the form that this socket sends to.
    pub fn target(&self, address: SocketAddr) -> SockaddrStorage {
        match address {
            SocketAddr::V4(v4) if self.dual => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into(),
            other => SockaddrStorage::from(other),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the door that the rule points to")]
fn open(family: AddressFamily) -> std::result::Result<OwnedFd, Errno> {
    socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
}

fn listen(fd: &OwnedFd, dual: bool, port: u16) -> std::result::Result<(), Errno> {
    let any = if dual {
        setsockopt(fd, sockopt::Ipv6V6Only, &false)?;
        SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
    } else {
        SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)
    };
    bind(fd.as_raw_fd(), &SockaddrStorage::from(any))
}

/// What makes it fast, or more robust; a kernel that lacks some of it still carries packets.
fn tune(fd: &OwnedFd, dual: bool) {
    let _ = setsockopt(fd, sockopt::RcvBufForce, &BUFFER).or_else(|_| setsockopt(fd, sockopt::RcvBuf, &BUFFER));
    let _ = setsockopt(fd, sockopt::SndBufForce, &BUFFER).or_else(|_| setsockopt(fd, sockopt::SndBuf, &BUFFER));
    let _ = setsockopt(fd, sockopt::UdpGroSegment, &true);
    let _ = set(fd, libc::SOL_IP, libc::IP_MTU_DISCOVER);
    if dual {
        let _ = set(fd, libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER);
    }
}

fn set(fd: &OwnedFd, level: libc::c_int, option: libc::c_int) -> std::result::Result<(), Errno> {
    let value = OMIT;
    // SAFETY: the pointer and the length describe a live c_int, and the descriptor is open for the length of the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}
