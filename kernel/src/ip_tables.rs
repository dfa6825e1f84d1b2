//! The tables of iptables that are no part of nftables (`iptables-legacy`): only looked at, to tell people of what is in the
//! way there.

use crate::{Error, Result};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

/// IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES (linux/netfilter_ipv4/ip_tables.h), which IPv6 has too.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// XT_TABLE_MAXNAMELEN
const NAME: usize = 32;
/// sizeof(struct ipt_getinfo), whose last member is the size of the entries.
const INFO: usize = 84;
/// The entries in struct ipt_get_entries, behind name and size, aligned for their counters.
const ENTRIES: usize = 40;
/// Name and revision of a target in struct xt_error_target, behind which it holds a text.
const TARGET: usize = 30;
/// Larger tables are not looked at.
const MAX_BYTES: usize = 16 << 20;

/// The tables of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// iptables
    V4,
    /// ip6tables
    V6,
}

/// Whether the table called `table` has a chain called `chain`, in the namespace of the calling thread. A table that nobody
/// has used so far is not brought to life by the question.
///
/// # Errors
/// The kernel has the table and does not show it.
pub fn has_chain(family: Family, table: &str, chain: &str) -> Result<bool> {
    let list = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    // Absent without the module.
    let names = fs::read_to_string(list).unwrap_or_default();
    if !names.lines().any(|name| name == table) {
        return Ok(false);
    }
    // A chain begins with an entry whose target is called ERROR and holds the chain's name, NUL and all.
    let wanted = [chain.as_bytes(), &[0]].concat();
    let length = TARGET + wanted.len();
    let begins_chain = |bytes: &[u8]| bytes.starts_with(b"ERROR\0") && bytes.get(TARGET..) == Some(&wanted[..]);
    let entries =
        entries(family, table).map_err(|errno| Error::new(format!("reading iptables' table {table}"), errno))?;
    Ok(entries.windows(length).any(begins_chain))
}

#[expect(clippy::disallowed_methods, reason = "this crate is where such sockets live")]
fn entries(family: Family, table: &str) -> std::result::Result<Vec<u8>, Errno> {
    // Any socket of the family will do; nothing is sent.
    let of = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let socket = socket(of, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut info = named(table, INFO)?;
    ask(&socket, family, GET_INFO, &mut info)?;
    let size = info.last_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes)).ok_or(Errno::EBADMSG)?;
    let length = usize::try_from(size).ok().filter(|size| *size <= MAX_BYTES).ok_or(Errno::EFBIG)?;
    let mut answer = named(table, ENTRIES + length)?;
    answer.get_mut(NAME..NAME + 4).ok_or(Errno::EINVAL)?.copy_from_slice(&size.to_ne_bytes());
    ask(&socket, family, GET_ENTRIES, &mut answer)?;
    Ok(answer.split_off(ENTRIES))
}

/// A buffer that begins with the table's name.
fn named(table: &str, length: usize) -> std::result::Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; length];
    let name = buffer.get_mut(..table.len()).filter(|_| table.len() < NAME).ok_or(Errno::EINVAL)?;
    name.copy_from_slice(table.as_bytes());
    Ok(buffer)
}

fn ask(socket: &OwnedFd, family: Family, question: libc::c_int, buffer: &mut [u8]) -> std::result::Result<(), Errno> {
    let level = match family {
        Family::V4 => libc::IPPROTO_IP,
        Family::V6 => libc::IPPROTO_IPV6,
    };
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the pointers are to a live buffer and to its length, which the kernel does not write beyond, and the
    // descriptor is open for the length of the call.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, question, buffer.as_mut_ptr().cast(), &raw mut length) };
    Errno::result(result).map(drop)
}
