//! Full and read-only disks, hostile files.

use super::*;

/// A small file system that is unmounted in the end.
struct Small(TempDir);

impl Small {
    /// None without the privilege to mount.
    fn mount(options: &str) -> Option<Self> {
        let small = Small(tempdir().unwrap());
        small.remount(nix::mount::MsFlags::empty(), options).ok()?;
        Some(small)
    }

    fn remount(&self, flags: nix::mount::MsFlags, options: &str) -> nix::Result<()> {
        nix::mount::mount(Some("tmpfs"), self.0.path(), Some("tmpfs"), flags, Some(options))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH).ok();
    }
}

#[test]
fn nothing_is_lost_on_a_full_or_read_only_disk() {
    use nix::mount::MsFlags;
    for options in ["size=1m,nr_inodes=24", "size=24k,nr_inodes=1000"] {
        let Some(small) = Small::mount(options) else {
            eprintln!("skipped: mounting needs root");
            return;
        };
        let ipam = pool(small.0.path());
        let mut given = BTreeMap::new();
        let error = loop {
            let pod = given.len();
            match try_add(&ipam, pod) {
                Ok(result) => given.insert(pod, result.ips.iter().map(|ip| ip.address.ip()).collect::<Vec<_>>()),
                Err(error) => break error,
            };
        };
        assert!((1..13).contains(&given.len()), "{options}: {}", given.len());
        assert_eq!(error.code, cni_spec::Code::Io, "{error}");
        assert!(error.msg.contains("ENOSPC") && error.msg.contains(small.0.path().to_str().unwrap()), "{error}");
        for (pod, addresses) in &given {
            assert_eq!(held(&ipam, pod), *addresses, "{options}");
        }
        assert_eq!(files(&small.0).len(), 2 * given.len(), "{options}: all sets or none");

        small.remount(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, "").unwrap();
        let error = host_local::status(&ipam, NETWORK).map(|()| drop(add(&ipam, "ro"))).unwrap_err();
        assert!(error.msg.contains("EROFS"), "{error}");
        assert!(host_local::del(&ipam.data_dir, NETWORK, &id(0)).is_err());
        small.remount(MsFlags::MS_REMOUNT, "").unwrap();

        // Leaving works on a full disk, and makes room.
        for pod in given.keys() {
            del(&ipam, pod);
        }
        assert!(files(&small.0).is_empty());
        assert_eq!(add(&ipam, "again").len(), 2);
    }
}

/// A seeded sequence (xorshift64): the same hostile input in every run.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    /// Fragments of what belongs into the files, and of what does not.
    fn content(&mut self) -> Vec<u8> {
        let pieces: [&[u8]; 10] =
            [b"10.1.0.3", b",", b"\r\n", b"eth0", b"pod1", b"\0", b"\xff", b"fd00::3", b"\n", b"last_reserved_ip.0"];
        (0..self.below(5)).flat_map(|_| pieces[self.below(pieces.len())]).copied().collect()
    }
}

/// Overwrites one file, of the reference's or of ours, or an entry of the index while its stamp is in order.
fn sabotage(place: &Place, dice: &mut Dice) {
    let content = dice.content();
    let target = match dice.below(6) {
        0 => place.side.join("released"),
        1 => place.side.join("reservation"),
        2 => place.last_reserved(dice.below(2)),
        3 => place.directory.join(format!("10.1.0.{}", 2 + dice.below(13))),
        4 => place.directory.join(format!("fd00::{:x}", 2 + dice.below(13))),
        _ => {
            let entries: Vec<_> = fs::read_dir(place.side.join("owners")).unwrap().map(Result::unwrap).collect();
            if !entries.is_empty() {
                let entry = entries[dice.below(entries.len())].path();
                let text = String::from_utf8_lossy(&content).replace('\0', "x");
                fs::remove_file(&entry).unwrap();
                symlink(if text.is_empty() { "x" } else { &text }, entry).unwrap();
            }
            return;
        }
    };
    fs::write(target, content).unwrap();
}

/// Reservations that somebody holds, read without the ledger.
fn owned(directory: &Path) -> BTreeMap<IpAddr, Holder> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .filter_map(|path| {
            Some((path.file_name()?.to_str()?.parse().ok()?, reservation::read(&path).unwrap().holder()?))
        })
        .collect()
}

/// Whatever is in the files, operations end without panic and never give one address to two.
#[test]
fn hostile_files_do_no_harm() {
    let directory = tempdir().unwrap();
    let ipam = pool(directory.path());
    let place = Place::new(directory.path(), NETWORK).unwrap();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut added = 0;
    del(&ipam, "nobody");
    add(&ipam, "somebody");
    for round in 0..400 {
        sabotage(&place, &mut dice);
        let before = owned(&place.directory);
        let pod = id(dice.below(8));
        match dice.below(4) {
            0 => {
                host_local::del(directory.path(), NETWORK, &pod).unwrap();
                assert!(
                    !owned(&place.directory).values().any(|holder| holder.is(&pod)),
                    "round {round}: DEL left some"
                );
            }
            1 => host_local::gc(directory.path(), NETWORK, &[pod]).unwrap(),
            _ => {
                if let Ok(result) = host_local::add(&ipam, NETWORK, &Sandbox { id: pod, ..sandbox("") }, &|_, _| Ok(()))
                {
                    added += 1;
                    for ip in result.ips.iter().map(|ip| ip.address.ip()) {
                        assert_eq!(before.get(&ip), None, "round {round}: {ip} was somebody's");
                    }
                }
            }
        }
    }
    assert!(added > 50, "{added}");
}
