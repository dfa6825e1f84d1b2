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
            match host_local::add(&ipam, NETWORK, &id(pod)) {
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

/// Whatever is in the files, operations end without panic and never give one address to two.
#[test]
fn hostile_files_do_no_harm() {
    let directory = tempdir().unwrap();
    let ipam = pool(directory.path());
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let pieces: [&[u8]; 10] =
        [b"10.1.0.3", b",", b"\r\n", b"eth0", b"pod1", b"\0", b"\xff", b"fd00::3", b"\n", b"last_reserved_ip.0"];
    for round in 0..400 {
        let content: Vec<u8> = (0..random(5)).flat_map(|_| pieces[random(10) as usize]).copied().collect();
        let place = Place::new(directory.path(), NETWORK).unwrap();
        fs::create_dir_all(place.side.join("owners")).unwrap();
        fs::create_dir_all(&place.directory).unwrap();
        let target = match random(6) {
            0 => place.side.join("released"),
            1 => place.side.join("reservation"),
            2 => place.directory.join(format!("last_reserved_ip.{}", random(2))),
            3 => place.directory.join(format!("10.1.0.{}", 2 + random(13))),
            4 => place.directory.join(format!("fd00::{:x}", 2 + random(13))),
            _ => {
                // An entry of the index, with the stamp still in order.
                let entries: Vec<_> = fs::read_dir(place.side.join("owners")).unwrap().map(Result::unwrap).collect();
                if let Some(entry) = entries.get(random(entries.len().max(1) as u64) as usize) {
                    fs::remove_file(entry.path()).unwrap();
                    let text: String = String::from_utf8_lossy(&content).replace('\0', "").chars().collect();
                    symlink(if text.is_empty() { "x" } else { &text }, entry.path()).unwrap();
                }
                place.side.join("stamp")
            }
        };
        if target.ends_with("stamp") {
            assert!(target.exists() || round < 400);
        } else {
            fs::write(&target, &content).unwrap();
        }
        let pod = random(8);
        let before = files_lossy(&place.directory);
        match random(4) {
            0 => drop(host_local::del(directory.path(), NETWORK, &id(pod))),
            1 => drop(host_local::gc(directory.path(), NETWORK, &[id(pod)])),
            _ => {
                if let Ok(result) = host_local::add(&ipam, NETWORK, &id(pod)) {
                    for ip in result.ips {
                        let was = before.get(&ip.address.ip());
                        let nobodys = was.is_none_or(|content| {
                            fs::write(directory.path().join("sample"), content).unwrap();
                            reservation::read(&directory.path().join("sample")).unwrap().is_nobodys()
                        });
                        assert!(nobodys, "round {round}: {} was {was:?}", ip.address);
                    }
                }
            }
        }
    }
}

fn files_lossy(directory: &Path) -> BTreeMap<IpAddr, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, fs::read(entry.path()).unwrap())))
        .collect()
}
