//! What is for nodes without Kubernetes: the Debian package, installed, upgraded, removed and purged in a root directory of
//! its own, the systemd unit, and the drop-ins that keep others' hands off our devices.

// A test that cannot go on has failed: unwrap says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
// Processes are the point here.
#![allow(clippy::disallowed_methods)]

mod node;

use e2e::tools;
use e2e::workdir::WorkDir;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// The package of the executables under test.
fn package(directory: &Path) -> PathBuf {
    fs::create_dir_all(directory).unwrap();
    for (name, executable) in
        [("flanneld-rs", tools::flanneld().unwrap()), ("cni-plugin", tools::cni_plugin().unwrap())]
    {
        symlink(executable, directory.join(name)).unwrap();
    }
    let dist = format!("DIST={}", directory.display());
    let quick = "DEB_COMPRESSION=none";
    run(Command::new("make").args(["--silent", "--directory"]).arg(root()).args(["deb-of-dist", &dist, quick]));
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let packages: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|ending| ending == "deb")).collect();
    let [package] = &packages[..] else { panic!("{packages:?}") };
    package.clone()
}

/// A root directory in which dpkg knows of no package.
fn scratch(directory: &Path) -> PathBuf {
    let root = directory.join("root");
    for path in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "opt/cni/bin"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    for path in ["var/lib/dpkg/status", "var/lib/dpkg/available"] {
        fs::write(root.join(path), "").unwrap();
    }
    root
}

fn dpkg(root: &Path, args: &[&str]) -> String {
    run(&mut dpkg_command(root, args))
}

fn dpkg_command(root: &Path, args: &[&str]) -> Command {
    let mut dpkg = Command::new("dpkg");
    // Scripts run outside of the root, which holds nothing but the package, and are told where it is ($DPKG_ROOT).
    dpkg.arg(format!("--root={}", root.display())).arg("--force-script-chrootless").args(args);
    dpkg
}

fn files_of(root: &Path) -> Vec<String> {
    let files = e2e::oracle::files(root).unwrap().into_iter().map(|(path, _)| path);
    let files = files.map(|path| path.strip_prefix(root.to_str().unwrap()).unwrap().to_owned());
    files.filter(|path| !path.starts_with("/var/lib/dpkg")).collect()
}

#[test]
fn the_package_comes_and_goes() {
    let work = WorkDir::new().unwrap();
    let (package, root) = (package(&work.path().join("dist")), scratch(work.path()));
    let package = package.to_str().unwrap();
    fs::write(root.join("opt/cni/bin/bridge"), "somebody else's").unwrap();
    dpkg(&root, &["--install", package]);
    let version = run(Command::new(root.join("usr/bin/flanneld-rs")).arg("--version"));
    assert_eq!(version.trim(), concat!("flanneld-rs ", env!("CARGO_PKG_VERSION")));
    for name in tools::PLUGINS {
        assert_eq!(
            fs::read(root.join("opt/cni/bin").join(name)).unwrap(),
            fs::read(tools::cni_plugin().unwrap()).unwrap()
        );
    }
    // What the administrator has changed is kept by an upgrade, and the directory for plugins is the administrator's to name.
    let default = root.join("etc/default/flanneld-rs");
    let changed = fs::read_to_string(&default).unwrap().replace("CNI_BIN_DIR=/opt/cni/bin", "CNI_BIN_DIR=/usr/lib/cni");
    fs::write(&default, &changed).unwrap();
    dpkg(&root, &["--install", package]);
    assert_eq!(fs::read_to_string(&default).unwrap(), changed);
    assert!(root.join("usr/lib/cni/portmap").exists());
    fs::remove_dir_all(root.join("usr/lib/cni")).unwrap();
    // In each form that systemd reads; the last one counts.
    for (number, form) in (0..).zip([r#""/@""#, "'/@'", "  /@ \t", "/elsewhere\n CNI_BIN_DIR=\"/@\" "]) {
        let directory = format!("plugins {number}");
        let set = form.replace('@', &directory);
        fs::write(&default, changed.replace("CNI_BIN_DIR=/usr/lib/cni", &format!("CNI_BIN_DIR={set}"))).unwrap();
        dpkg(&root, &["--install", package]);
        assert!(root.join(&directory).join("portmap").exists(), "{set:?}: {:?}", files_of(&root));
        fs::remove_dir_all(root.join(&directory)).unwrap();
    }
    fs::write(&default, changed.replace("/usr/lib/cni", "lib/cni")).unwrap();
    let refused = dpkg_command(&root, &["--install", package]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("CNI_BIN_DIR=lib/cni is no absolute path"), "{said}");
    fs::write(&default, changed.replace("/usr/lib/cni", "/opt/cni/bin")).unwrap();
    dpkg(&root, &["--configure", "flanneld-rs"]);

    fs::create_dir_all(root.join("var/lib/flanneld-rs")).unwrap();
    fs::write(root.join("var/lib/flanneld-rs/last-known.json"), "{}").unwrap();
    dpkg(&root, &["--remove", "flanneld-rs"]);
    let kept = ["/etc/default/flanneld-rs", "/opt/cni/bin/bridge", "/var/lib/flanneld-rs/last-known.json"];
    assert_eq!(files_of(&root), kept);
    assert_eq!(fs::read_to_string(root.join("opt/cni/bin/bridge")).unwrap(), "somebody else's");
    dpkg(&root, &["--purge", "flanneld-rs"]);
    assert_eq!(files_of(&root), ["/opt/cni/bin/bridge"]);
}

#[test]
fn the_same_executables_give_the_same_package() {
    let work = WorkDir::new().unwrap();
    let packages = ["one", "two"].map(|name| fs::read(package(&work.path().join(name))).unwrap());
    assert!(packages[0] == packages[1]);
}

/// What Debian wants of a package.
#[test]
fn lintian_has_no_complaints() {
    let work = WorkDir::new().unwrap();
    let package = package(&work.path().join("dist"));
    match Command::new("lintian")
        .args([
            "--allow-root",
            "--fail-on=error,warning",
            "--quiet",
            // Tests do without it.
            "--suppress-tags=uses-no-compression-for-control-tarball,uses-no-compression-for-data-tarball",
        ])
        .arg(package)
        .output()
    {
        Err(error) => e2e::not_tested(&format!("the Debian package by lintian: {error}")),
        Ok(output) => assert!(output.status.success() && output.stdout.is_empty(), "{output:?}"),
    }
}

/// systemd itself reads the unit and the drop-ins, as far as it is here.
#[test]
fn systemd_takes_the_unit() {
    let work = WorkDir::new().unwrap();
    let (unit, executable) = (work.path().join("flanneld-rs.service"), tools::flanneld().unwrap());
    let text = fs::read_to_string(root().join("conf/flanneld-rs.service")).unwrap();
    let text = text.replace("/usr/local/bin/flanneld-rs", executable.to_str().unwrap());
    fs::write(&unit, text.replace("/usr/local/share/doc/flanneld-rs", root().to_str().unwrap())).unwrap();
    match Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output() {
        Err(error) => e2e::not_tested(&format!("the systemd unit by systemd-analyze: {error}")),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let about: Vec<&str> = said.lines().filter(|line| line.contains("flanneld-rs.service")).collect();
            assert!(output.status.success() && about.is_empty(), "{said}");
        }
    }
}

/// Each names every kind of device that ARCHITECTURE.md says is ours, and no uplink.
#[test]
fn drop_ins_name_our_devices_and_no_others() {
    for file in ["10-flanneld-rs.network", "10-flanneld-rs.link", "10-flanneld-rs.conf"] {
        let text = fs::read_to_string(root().join("conf/network").join(file)).unwrap();
        let line = ["Name=", "OriginalName=", "match-device="]
            .iter()
            .find_map(|key| text.lines().find_map(|line| line.strip_prefix(key)));
        let patterns: Vec<&str> =
            line.unwrap().split([' ', ';']).map(|name| name.trim_start_matches("interface-name:")).collect();
        let matches = |device: &str| {
            patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(start) => device.starts_with(start),
                None => device == *pattern,
            })
        };
        for device in
            ["flannel.1", "flannel-v6.1", "flannel.ipip", "flannel0", "flannel0-v6", "flannel-wg", "flannel-wg-v6"]
        {
            assert!(matches(device), "{file}: {device}");
        }
        for device in ["cbr0", "cni0", "veth0123456789a", "ifb0123456789ab"] {
            assert!(matches(device), "{file}: {device}");
        }
        for device in ["eth0", "enp3s0", "br0", "bond0", "wlan0", "cbr01"] {
            assert!(!matches(device), "{file}: {device}");
        }
    }
}
