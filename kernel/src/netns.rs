//! Network namespaces: entered by guard or by thread, never by global state.

mod living;
mod sandbox;

pub use living::{for_each_living, sees_all_processes};
pub use sandbox::{die_with_parent, enter_user_namespace, isolate_mounts};

use crate::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use std::fs;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread;

/// The namespace of the calling thread; /proc/self would be that of the process's first thread.
const OWN: &str = "/proc/thread-self/ns/net";
/// ioctl_ns(2): which kind of namespace a descriptor is.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
/// asm-generic/socket.h
const SO_NETNS_COOKIE: libc::c_int = 71;

/// A network namespace, kept alive by an open descriptor.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    id: (u64, u64),
}

impl Netns {
    /// The namespace that the calling thread is in.
    pub fn current() -> Result<Self> {
        let operation = "opening the present network namespace";
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let fd = open(OWN, flags, Mode::empty()).map_err(|errno| Error::new(operation, errno))?;
        Netns::of(fd).map_err(|errno| Error::new(operation, errno))
    }

    /// Opens the namespace that `path` stands for: `/proc/<pid>/ns/net`, or a file on which one was mounted.
    ///
    /// Fails with EINVAL if `path` is anything but a network namespace.
    pub fn open(path: &Path) -> Result<Self> {
        let operation = || format!("opening network namespace {}", path.display());
        // A path that comes from outside may name a pipe, whose open would block.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let fd = open(path, flags, Mode::empty()).map_err(|errno| Error::new(operation(), errno))?;
        if !is_network_namespace(&fd) {
            return Err(Error::new(operation(), Errno::EINVAL).because(
                "it exists but is no network namespace (was it unmounted, or is the path that of something else?)",
            ));
        }
        Netns::of(fd).map_err(|errno| Error::new(operation(), errno))
    }

    fn of(fd: OwnedFd) -> std::result::Result<Self, Errno> {
        let status = fstat(&fd)?;
        Ok(Netns { fd, id: (status.st_dev, status.st_ino) })
    }

    /// Makes a new, anonymous namespace with nothing but a loopback device that is down. It exists as long as the value
    /// (or a process, mount or device in it) does.
    pub fn create() -> Result<Self> {
        // On a thread of its own, because unshare moves the calling thread.
        on_thread("making a network namespace", || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| Error::new("making a network namespace", errno))?;
            Netns::current()
        })
    }

    /// A name of the namespace that the calling thread is in. Unlike [`Netns::id`], which is used again once a namespace is
    /// gone, no other namespace has had or will have it before the next boot. (Linux before 5.14 does not count
    /// namespaces: there the inode number must do.)
    pub fn current_name() -> Result<String> {
        let operation = "asking for the name of the network namespace";
        let socket = UnixDatagram::unbound().map_err(|error| Error::io(operation, &error))?;
        let mut cookie = 0u64;
        let mut length = size_of::<u64>() as libc::socklen_t;
        // SAFETY: both pointers are to live variables, the length says how large the first one is, and the descriptor is
        // open for the length of the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        match Errno::result(result) {
            Ok(_) => Ok(format!("netns-{cookie}")),
            Err(Errno::ENOPROTOOPT) => Ok(format!("inode-{}", Netns::current()?.id.1)),
            Err(errno) => Err(Error::new(operation, errno)),
        }
    }

    /// The [name](Netns::current_name) of this namespace.
    pub fn name(&self) -> Result<String> {
        let _inside = self.enter()?;
        Netns::current_name()
    }

    /// A second handle on the same namespace.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().map_err(|error| Error::io("duplicating a network namespace", &error))?;
        Ok(Netns { fd, id: self.id })
    }

    /// Device and inode number; two handles are on the same namespace if and only if these are equal.
    pub fn id(&self) -> (u64, u64) {
        self.id
    }

    /// A path under which other processes can open this namespace while the value lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()))
    }

    /// Moves the calling thread into this namespace until the guard is dropped.
    pub fn enter(&self) -> Result<Guard> {
        let former = Netns::current()?;
        // Proves that there is a way back, while it can still be an error: a process in a user namespace of its own may
        // not return to a network namespace from outside.
        setns(&former.fd, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::new("making sure of the way back to the present network namespace", errno))?;
        setns(&self.fd, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::new("entering a network namespace", errno))?;
        Ok(Guard { former, _stays_on_its_thread: PhantomData })
    }

    /// Runs `work` inside this namespace, on a thread of its own, and waits for it. A panic in `work` goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_thread("entering a network namespace", || {
            setns(&self.fd, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::new("entering a network namespace", errno))?;
            Ok(work())
        })
    }

    /// Mounts this namespace on the file `path`, which is made, so that it lives on without this process
    /// (what `ip netns add` does). Fails with EEXIST if the file exists.
    pub fn pin(&self, path: &Path) -> Result<()> {
        let operation = || format!("mounting a network namespace on {}", path.display());
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|error| Error::io(operation(), &error))?;
        let source = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|errno| {
            let _ = fs::remove_file(path);
            Error::new(operation(), errno)
        })
    }

    /// Undoes [`Netns::pin`]; a path that is gone already is success.
    pub fn unpin(path: &Path) -> Result<()> {
        let operation = || format!("unmounting the network namespace {}", path.display());
        match umount2(path, MntFlags::MNT_DETACH) {
            // Not a mount (any more), or no such file.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(Error::new(operation(), errno)),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(operation(), &error)),
            _ => Ok(()),
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The calling thread is inside a namespace; dropping this brings it back to where it was.
#[must_use = "dropping the guard leaves the namespace at once"]
#[derive(Debug)]
pub struct Guard {
    former: Netns,
    /// Raw pointers are not Send: dropped on another thread, the guard would move that one.
    _stays_on_its_thread: PhantomData<*const ()>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(errno) = setns(&self.former.fd, CloneFlags::CLONE_NEWNET) {
            // Going on would change the network of somebody else: worse than not going on.
            eprintln!("fatal: cannot return to the former network namespace: {errno}");
            std::process::abort();
        }
    }
}

fn on_thread<T: Send>(operation: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, work);
        match thread.map_err(|error| Error::io(operation, &error))?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn is_network_namespace(fd: &OwnedFd) -> bool {
    // Asked first, since an ioctl on a file of another kind could mean anything.
    if !fstatfs(fd).is_ok_and(|status| status.filesystem_type() == NSFS_MAGIC) {
        return false;
    }
    // SAFETY: the descriptor is open for the length of the call, and this request has no argument.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
    kind == libc::CLONE_NEWNET
}

#[expect(clippy::disallowed_methods, reason = "this is the door that the rule points to")]
fn setns(fd: &OwnedFd, kind: CloneFlags) -> std::result::Result<(), Errno> {
    nix::sched::setns(fd, kind)
}

#[expect(clippy::disallowed_methods, reason = "this is the door that the rule points to")]
fn unshare(kind: CloneFlags) -> std::result::Result<(), Errno> {
    nix::sched::unshare(kind)
}
